// SPDX-License-Identifier: Apache-2.0

package runner

import (
	"encoding/xml"
	"fmt"
	"io"
	"strings"
	"time"
)

// Text writes one line for each finished test, and the output of those that
// did not pass; verbose: of all.
func Text(w io.Writer, verbose bool) Sink {
	var c Collector
	take := c.Sink()
	seen := 0
	return func(e Event) {
		take(e)
		if e.Test == "" && e.Action == ActionOutput {
			fmt.Fprint(w, e.Output)
		}
		for ; seen < len(c.Results); seen++ {
			r := &c.Results[seen]
			word := map[string]string{ActionPass: "ok  ", ActionFail: "FAIL", ActionSkip: "skip"}[r.Action]
			fmt.Fprintf(w, "%s %s %s (%.2fs)\n", word, short(r.Package), r.Name, r.Elapsed.Seconds())
			if verbose || r.Action != ActionPass {
				printOutput(w, r)
			}
		}
	}
}

// short is the last element of a package's name.
func short(pkg string) string { return pkg[strings.LastIndexByte(pkg, '/')+1:] }

func printOutput(w io.Writer, r *Result) {
	fmt.Fprint(w, r.Output)
	for i := range r.Sub {
		if r.Sub[i].Action != ActionPass {
			fmt.Fprintf(w, "  --- %s %s\n", r.Sub[i].Action, r.Sub[i].Name)
			printOutput(w, &r.Sub[i])
		}
	}
}

type junitSuites struct {
	XMLName xml.Name     `xml:"testsuites"`
	Suites  []junitSuite `xml:"testsuite"`
}

type junitSuite struct {
	Name       string          `xml:"name,attr"`
	Tests      int             `xml:"tests,attr"`
	Failures   int             `xml:"failures,attr"`
	Skipped    int             `xml:"skipped,attr"`
	Time       string          `xml:"time,attr"`
	Properties []junitProperty `xml:"properties>property,omitempty"`
	Cases      []junitCase     `xml:"testcase"`
}

type junitProperty struct {
	Name  string `xml:"name,attr"`
	Value string `xml:"value,attr"`
}

type junitCase struct {
	Class   string        `xml:"classname,attr"`
	Name    string        `xml:"name,attr"`
	Time    string        `xml:"time,attr"`
	Failure *junitMessage `xml:"failure,omitempty"`
	Skipped *junitMessage `xml:"skipped,omitempty"`
	Out     string        `xml:"system-out,omitempty"`
}

type junitMessage struct {
	Message string `xml:"message,attr"`
	Text    string `xml:",chardata"`
}

// Property is a fact about a run: seed, accelerator, kernel, QEMU.
type Property struct{ Name, Value string }

// JUnit writes results as a JUnit file, one suite for each package.
func JUnit(w io.Writer, rs []Result, props ...Property) error {
	var doc junitSuites
	for _, pkg := range packages(rs) {
		s := junitSuite{Name: pkg}
		for _, p := range props {
			s.Properties = append(s.Properties, junitProperty(p))
		}
		var total time.Duration
		for i := range rs {
			r := &rs[i]
			if r.Package != pkg {
				continue
			}
			s.Tests++
			total += r.Elapsed
			c := junitCase{Class: pkg, Name: r.Name, Time: fmt.Sprintf("%.6f", r.Elapsed.Seconds())}
			var out strings.Builder
			printOutput(&out, r)
			switch r.Action {
			case ActionFail:
				s.Failures++
				c.Failure = &junitMessage{Message: "failed", Text: clean(out.String())}
			case ActionSkip:
				s.Skipped++
				c.Skipped = &junitMessage{Message: strings.TrimSpace(clean(out.String()))}
			default:
				c.Out = clean(out.String())
			}
			s.Cases = append(s.Cases, c)
		}
		s.Time = fmt.Sprintf("%.6f", total.Seconds())
		doc.Suites = append(doc.Suites, s)
	}
	if _, err := io.WriteString(w, xml.Header); err != nil {
		return fmt.Errorf("runner: junit: %w", err)
	}
	enc := xml.NewEncoder(w)
	enc.Indent("", "  ")
	if err := enc.Encode(doc); err != nil {
		return fmt.Errorf("runner: junit: %w", err)
	}
	_, err := io.WriteString(w, "\n")
	return err
}

// clean drops what XML 1.0 cannot carry.
func clean(s string) string {
	return strings.Map(func(r rune) rune {
		if r < 0x20 && r != '\n' && r != '\t' {
			return -1
		}
		return r
	}, s)
}

// KTAP writes results in the kernel's test format, version 1.
func KTAP(w io.Writer, rs []Result) error {
	var b strings.Builder
	b.WriteString("KTAP version 1\n")
	ktap(&b, rs, "")
	_, err := io.WriteString(w, b.String())
	return err
}

func ktap(b *strings.Builder, rs []Result, indent string) {
	fmt.Fprintf(b, "%s1..%d\n", indent, len(rs))
	for i := range rs {
		r := &rs[i]
		if len(r.Sub) > 0 {
			fmt.Fprintf(b, "%s  KTAP version 1\n%s  # Subtest: %s\n", indent, indent, ktapName(r))
			ktap(b, r.Sub, indent+"  ")
		}
		if r.Action != ActionPass {
			for line := range strings.Lines(r.Output) {
				fmt.Fprintf(b, "%s# %s\n", indent, strings.TrimSpace(line))
			}
		}
		word, tail := "ok", ""
		switch r.Action {
		case ActionFail:
			word = "not ok"
		case ActionSkip:
			tail = " # SKIP"
		}
		fmt.Fprintf(b, "%s%s %d %s%s\n", indent, word, i+1, ktapName(r), tail)
	}
}

// ktapName is a name that the format can carry: no '#', which begins a directive.
func ktapName(r *Result) string { return strings.ReplaceAll(r.Name, "#", "_") }
