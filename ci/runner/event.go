// SPDX-License-Identifier: Apache-2.0

package runner

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"
)

// Actions of events, as cmd/test2json defines them.
const (
	ActionStart  = "start"
	ActionRun    = "run"
	ActionOutput = "output"
	ActionPass   = "pass"
	ActionFail   = "fail"
	ActionSkip   = "skip"
)

// Event is one line of the event stream.
type Event struct {
	Time    time.Time `json:",omitzero"`
	Action  string
	Package string   `json:",omitempty"`
	Test    string   `json:",omitempty"`
	Elapsed *float64 `json:",omitempty"` // seconds
	Output  string   `json:",omitempty"`
}

// Sink takes events.
type Sink func(Event)

// JSON writes events as lines of JSON.
func JSON(w io.Writer) Sink {
	enc := json.NewEncoder(w)
	return func(e Event) { _ = enc.Encode(e) } // a reader that is gone is no failure of the tests
}

// Tee sends events to several sinks.
func Tee(sinks ...Sink) Sink {
	return func(e Event) {
		for _, s := range sinks {
			if s != nil {
				s(e)
			}
		}
	}
}

// maxLine bounds a line of a guest's event stream.
const maxLine = 1 << 20

// Follow reads the event stream of another process, which was to run the named
// tests, and passes it on. When the stream ends while a test runs, the test has
// failed; tests of the list that never began are reported as failed with "not
// run" as their output. It returns how many those are.
func Follow(r io.Reader, pkg string, tests []string, sink Sink) (notRun int, err error) {
	in := bufio.NewScanner(r)
	in.Buffer(make([]byte, 64<<10), maxLine)
	running := ""
	done := map[string]bool{}
	for in.Scan() {
		var e Event
		if json.Unmarshal(in.Bytes(), &e) != nil || e.Action == "" {
			// Not an event: a program that prints beside the stream.
			sink(Event{Time: time.Now(), Action: ActionOutput, Package: pkg, Test: running, Output: in.Text() + "\n"})
			continue
		}
		e.Package = pkg
		if e.Test == "" && e.Action != ActionOutput {
			continue // of the whole package: the caller's to say
		}
		if !strings.Contains(e.Test, "/") {
			switch e.Action {
			case ActionRun:
				running = e.Test
			case ActionPass, ActionFail, ActionSkip:
				running = ""
				done[e.Test] = true
			}
		}
		sink(e)
	}
	fail := func(test, why string) {
		now := time.Now()
		sink(Event{Time: now, Action: ActionOutput, Package: pkg, Test: test, Output: why + "\n"})
		sink(Event{Time: now, Action: ActionFail, Package: pkg, Test: test, Elapsed: new(float64)})
	}
	if running != "" {
		done[running] = true
		fail(running, "the guest ended while this test ran")
	}
	for _, name := range tests {
		if !done[name] {
			notRun++
			sink(Event{Time: time.Now(), Action: ActionRun, Package: pkg, Test: name})
			fail(name, "not run")
		}
	}
	return notRun, in.Err()
}

// Summary counts tests, not their parts.
type Summary struct {
	Passed, Failed, Skipped int
}

// Add adds o.
func (s *Summary) Add(o Summary) {
	s.Passed += o.Passed
	s.Failed += o.Failed
	s.Skipped += o.Skipped
}

// String is the line that ends a run.
func (s Summary) String() string {
	return fmt.Sprintf("%d passed, %d failed, %d skipped", s.Passed, s.Failed, s.Skipped)
}

// Exit codes of a run.
const (
	ExitOK      = 0
	ExitFailed  = 1
	ExitUsage   = 2
	ExitCrashed = 3
	ExitSkipped = 4
	ExitTimeout = 124
	ExitNoRig   = 125
)

// ExitCode says what the counts mean: a failure, nothing but skips, or success.
func (s Summary) ExitCode() int {
	switch {
	case s.Failed > 0:
		return ExitFailed
	case s.Passed == 0 && s.Skipped > 0:
		return ExitSkipped
	}
	return ExitOK
}

// Result is one finished test.
type Result struct {
	Package string
	Name    string
	Action  string // pass, fail or skip
	Elapsed time.Duration
	Output  string
	Sub     []Result
}

// Collector builds results from events.
type Collector struct {
	Results []Result
	open    map[string]*strings.Builder
	subs    map[string][]Result
}

// Sink returns the collector's sink.
func (c *Collector) Sink() Sink {
	c.open, c.subs = map[string]*strings.Builder{}, map[string][]Result{}
	return c.take
}

func (c *Collector) take(e Event) {
	if e.Test == "" {
		return
	}
	key := e.Package + "\x00" + e.Test
	switch e.Action {
	case ActionRun:
		c.open[key] = new(strings.Builder)
	case ActionOutput:
		if b := c.open[key]; b != nil && b.Len() < maxLine {
			b.WriteString(e.Output)
		}
	case ActionPass, ActionFail, ActionSkip:
		r := Result{Package: e.Package, Name: e.Test, Action: e.Action, Sub: c.subs[key]}
		delete(c.subs, key)
		if b := c.open[key]; b != nil {
			r.Output = b.String()
			delete(c.open, key)
		}
		if e.Elapsed != nil {
			r.Elapsed = time.Duration(*e.Elapsed * float64(time.Second))
		}
		if i := strings.LastIndexByte(e.Test, '/'); i >= 0 {
			parent := e.Package + "\x00" + e.Test[:i]
			c.subs[parent] = append(c.subs[parent], r)
			return
		}
		c.Results = append(c.Results, r)
	}
}

// Summary counts the results.
func (c *Collector) Summary() Summary { return summarize(c.Results) }

func summarize(rs []Result) Summary {
	var s Summary
	for _, r := range rs {
		switch r.Action {
		case ActionPass:
			s.Passed++
		case ActionFail:
			s.Failed++
		default:
			s.Skipped++
		}
	}
	return s
}

// packages returns the packages of results in order of first appearance.
func packages(rs []Result) []string {
	var names []string
	for _, r := range rs {
		if !slices.Contains(names, r.Package) {
			names = append(names, r.Package)
		}
	}
	return names
}
