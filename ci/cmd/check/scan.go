// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"cmp"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"

	"toebox/ci/runner"
)

// scan reads the event stream of "go test -json".
type scan struct {
	collect runner.Sink
	output  map[string]*strings.Builder // of packages, outside their tests
	bad     map[string]bool             // packages that failed
	took    map[string]float64          // s, of packages
}

func newScan(collect runner.Sink) *scan {
	return &scan{collect: collect, output: map[string]*strings.Builder{}, bad: map[string]bool{}, took: map[string]float64{}}
}

const maxLine = 4 << 20

func (s *scan) read(r io.Reader) {
	in := bufio.NewScanner(r)
	in.Buffer(make([]byte, 64<<10), maxLine)
	for in.Scan() {
		var e struct {
			runner.Event
			ImportPath string // of build output
		}
		if json.Unmarshal(in.Bytes(), &e) != nil {
			continue
		}
		pkg := e.Package
		if pkg == "" {
			pkg, _, _ = strings.Cut(e.ImportPath, " ")
		}
		if e.Test == "" && e.Output != "" {
			if s.output[pkg] == nil {
				s.output[pkg] = new(strings.Builder)
			}
			s.output[pkg].WriteString(e.Output)
		}
		if e.Test == "" && e.Action == runner.ActionFail {
			s.bad[pkg] = true
		}
		if e.Test == "" && e.Elapsed != nil {
			s.took[pkg] = *e.Elapsed
		}
		s.collect(e.Event)
	}
	// A line beyond the limit ends the scan; the stream must still be read.
	_, _ = io.Copy(io.Discard, r)
}

// count counts tests and returns the text of each that is not green. The
// functions of the kit count one by one.
func (s *scan) count(rs []runner.Result) (sum runner.Summary, red []string) {
	failed := map[string]bool{}
	for _, r := range rs {
		parts := []runner.Result{r}
		if len(r.Sub) > 0 && (r.Name == "TestInproc" || r.Name == "TestSocket" || r.Name == "TestQTest") {
			parts = r.Sub
		}
		for _, p := range parts {
			switch p.Action {
			case runner.ActionPass:
				sum.Passed++
				continue
			case runner.ActionFail:
				sum.Failed++
				failed[p.Package] = true
			default:
				sum.Skipped++
			}
			again := "^" + r.Name + "$"
			if p.Name != r.Name {
				again += "/^" + strings.TrimPrefix(p.Name, r.Name+"/") + "$"
			}
			red = append(red, fmt.Sprintf("%s %s %s\n%s%sagain: go test -race -run '%s' %s\n",
				p.Action, p.Package, p.Name, p.Output, outputs(p.Sub), again, r.Package))
		}
	}
	// A package that does not build or dies has no failed test to count.
	for pkg := range s.bad {
		if !failed[pkg] {
			sum.Failed++
			text := ""
			if b := s.output[pkg]; b != nil {
				text = b.String()
			}
			red = append(red, fmt.Sprintf("fail %s\n%s", pkg, text))
		}
	}
	return sum, red
}

// slowest names the n packages whose tests took longest, which is where to look
// when all of them take too long. Several run at a time.
func (s *scan) slowest(n int) string {
	names := slices.SortedFunc(maps.Keys(s.took), func(a, b string) int {
		return cmp.Or(cmp.Compare(s.took[b], s.took[a]), strings.Compare(a, b))
	})
	var out []string
	for _, name := range names[:min(n, len(names))] {
		out = append(out, fmt.Sprintf("%s %.0fs", strings.TrimPrefix(name, "toebox/"), s.took[name]))
	}
	return strings.Join(out, ", ")
}

func outputs(rs []runner.Result) string {
	var b strings.Builder
	for _, r := range rs {
		if r.Action != runner.ActionPass {
			b.WriteString(r.Output)
			b.WriteString(outputs(r.Sub))
		}
	}
	return b.String()
}

// counter reads the last line of a suite.
type counter struct {
	line []byte
	sum  runner.Summary
}

func (c *counter) Write(p []byte) (int, error) {
	for _, b := range p {
		if b != '\n' {
			c.line = append(c.line, b)
			continue
		}
		var s runner.Summary
		if n, _ := fmt.Sscanf(string(c.line), "%d passed, %d failed, %d skipped", &s.Passed, &s.Failed, &s.Skipped); n == 3 {
			c.sum = s
		}
		c.line = c.line[:0]
	}
	return len(p), nil
}
