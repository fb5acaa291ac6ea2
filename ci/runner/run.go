// SPDX-License-Identifier: Apache-2.0

package runner

import (
	"context"
	"fmt"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"sync"
	"time"

	"toebox/ci/conformance"
)

// Options say what to run.
type Options struct {
	// Tests to choose from; nil: the whole kit.
	Tests []*conformance.Test
	// Run chooses by name; nil: all.
	Run *regexp.Regexp
	// Rung leaves out the tests that make no sense on it.
	Rung string
	// Peer leaves out the tests that make no sense with it; empty: nat.
	Peer string
	// Package names the run in events.
	Package string
	// Shard and Shards run every Shards-th test, beginning with Shard (1 is
	// the first). 0: all.
	Shard, Shards int
	// Count repeats each test; 0 is 1. Repetition i runs with seed Seed + i.
	Count int
	Seed  uint64
	// Env makes the environment of one test. The function it returns ends
	// it and is called once.
	Env func(ctx context.Context, t *conformance.Test, seed uint64) (*conformance.Env, func() error, error)
	// Grace is how long a test may overrun its bound before it is given up;
	// 0 is 10 s.
	Grace time.Duration
	// Sink gets the events.
	Sink Sink
}

// Select returns the tests that the options choose, in the order of their names.
func Select(o *Options) []*conformance.Test {
	all := o.Tests
	if all == nil {
		all = conformance.Tests()
	}
	var out []*conformance.Test
	for _, t := range all {
		if (o.Run == nil || o.Run.MatchString(t.Name)) && (o.Rung == "" || t.On(o.Rung)) && t.With(o.Peer, o.Rung) {
			out = append(out, t)
		}
	}
	slices.SortFunc(out, func(a, b *conformance.Test) int { return strings.Compare(a.Name, b.Name) })
	if o.Shards > 1 {
		var mine []*conformance.Test
		for i, t := range out {
			if i%o.Shards == o.Shard-1 {
				mine = append(mine, t)
			}
		}
		out = mine
	}
	return out
}

// Run runs the chosen tests one after the other and returns the counts. When
// ctx ends, the running test fails and the rest is reported as not run.
func Run(ctx context.Context, o Options) Summary {
	r := &run{o: o}
	if r.o.Grace == 0 {
		r.o.Grace = 10 * time.Second
	}
	began := time.Now()
	r.emit(Event{Action: ActionStart})
	for i := range max(o.Count, 1) {
		for _, t := range Select(&o) {
			r.one(ctx, t, o.Seed+uint64(i))
		}
	}
	action := ActionPass
	if r.sum.Failed > 0 {
		action = ActionFail
	}
	r.emit(Event{Action: action, Elapsed: seconds(time.Since(began))})
	return r.sum
}

type run struct {
	o   Options
	mu  sync.Mutex // orders events
	sum Summary
}

func seconds(d time.Duration) *float64 {
	s := d.Round(time.Microsecond).Seconds()
	return &s
}

func (r *run) emit(e Event) {
	r.mu.Lock()
	defer r.mu.Unlock()
	e.Time, e.Package = time.Now(), r.o.Package
	if r.o.Sink != nil {
		r.o.Sink(e)
	}
}

// one runs one test.
func (r *run) one(ctx context.Context, t *conformance.Test, seed uint64) {
	tb := &testRun{r: r, name: t.Name, began: time.Now(), over: make(chan struct{})}
	r.emit(Event{Action: ActionRun, Test: t.Name})
	switch env, end, err := r.env(ctx, t, seed); {
	case err != nil:
		tb.Errorf("no environment: %v", err)
		tb.finish()
	default:
		// The seed comes first, so that whatever happens the run repeats.
		tb.Logf("seed %d", seed)
		go tb.run(func() { conformance.Run(ctx, tb, t, env) })
		late := time.NewTimer(t.Bound(env) + r.o.Grace)
		select {
		case <-tb.over:
		case <-late.C:
			tb.giveUp(t.Bound(env) + r.o.Grace)
		}
		late.Stop()
		if err := end(); err != nil {
			tb.Errorf("end of the environment: %v", err)
		}
		tb.finish()
	}
	switch {
	case tb.Failed():
		r.sum.Failed++
	case tb.skipped:
		r.sum.Skipped++
	default:
		r.sum.Passed++
	}
}

func (r *run) env(ctx context.Context, t *conformance.Test, seed uint64) (*conformance.Env, func() error, error) {
	if err := ctx.Err(); err != nil {
		return nil, nil, fmt.Errorf("not run: %w", context.Cause(ctx))
	}
	return r.o.Env(ctx, t, seed)
}

// testRun is the TB of a test or of a part of it.
type testRun struct {
	r     *run
	name  string
	began time.Time
	over  chan struct{} // closed when the test's goroutine is done

	mu       sync.Mutex
	failed   bool
	skipped  bool
	gaveUp   bool // the goroutine goes on, but nobody listens to it
	cleanups []func()
}

// run calls f and the clean-ups, and closes over.
func (t *testRun) run(f func()) {
	defer close(t.over)
	t.guard(f)
	for {
		t.mu.Lock()
		n := len(t.cleanups)
		if n == 0 {
			t.mu.Unlock()
			return
		}
		c := t.cleanups[n-1]
		t.cleanups = t.cleanups[:n-1]
		t.mu.Unlock()
		t.guard(c)
	}
}

// guard calls f on a goroutine of its own, so that Fatalf can end it, and turns
// a panic into a failure.
func (t *testRun) guard(f func()) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		defer func() {
			if v := recover(); v != nil {
				buf := make([]byte, 64<<10)
				t.Errorf("panic: %v\n%s", v, buf[:runtime.Stack(buf, false)])
			}
		}()
		f()
	}()
	<-done
}

// giveUp reports a test that does not end, with all goroutines.
func (t *testRun) giveUp(after time.Duration) {
	buf := make([]byte, 1<<20)
	t.Errorf("did not end in %v: given up\n%s", after, buf[:runtime.Stack(buf, true)])
	t.mu.Lock()
	defer t.mu.Unlock()
	t.gaveUp = true
}

// finish emits the result.
func (t *testRun) finish() {
	t.mu.Lock()
	action := ActionPass
	switch {
	case t.failed:
		action = ActionFail
	case t.skipped:
		action = ActionSkip
	}
	t.mu.Unlock()
	t.r.emit(Event{Action: action, Test: t.name, Elapsed: seconds(time.Since(t.began))})
}

// line emits output; what an abandoned test says is dropped.
func (t *testRun) line(format string, args ...any) {
	t.mu.Lock()
	quiet := t.gaveUp
	t.mu.Unlock()
	if !quiet {
		t.r.emit(Event{Action: ActionOutput, Test: t.name, Output: place() + fmt.Sprintf(format, args...) + "\n"})
	}
}

// place is the line of the kit that reports: the first caller that is a test.
func place() string {
	var pcs [16]uintptr
	frames := runtime.CallersFrames(pcs[:runtime.Callers(3, pcs[:])])
	for {
		f, more := frames.Next()
		if i := strings.LastIndexByte(f.Function, '.'); i >= 0 && strings.Contains(f.Function, "/conformance.Test") {
			return fmt.Sprintf("    %s:%d: ", f.File[strings.LastIndexByte(f.File, '/')+1:], f.Line)
		}
		if !more {
			return "    "
		}
	}
}

func (t *testRun) Helper()                           {}
func (t *testRun) Logf(format string, args ...any)   { t.line(format, args...) }
func (t *testRun) Errorf(format string, args ...any) { t.line(format, args...); t.fail() }

func (t *testRun) Fatalf(format string, args ...any) {
	t.line(format, args...)
	t.fail()
	runtime.Goexit()
}

func (t *testRun) Skipf(format string, args ...any) {
	t.line(format, args...)
	t.mu.Lock()
	t.skipped = true
	t.mu.Unlock()
	runtime.Goexit()
}

func (t *testRun) fail() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.failed = true
}

// Failed reports whether the test has failed.
func (t *testRun) Failed() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.failed
}

func (t *testRun) Cleanup(f func()) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.cleanups = append(t.cleanups, f)
}

// RunSub runs a part of the test.
func (t *testRun) RunSub(name string, f func(conformance.TB)) bool {
	sub := &testRun{r: t.r, name: t.name + "/" + name, began: time.Now(), over: make(chan struct{})}
	t.r.emit(Event{Action: ActionRun, Test: sub.name})
	sub.run(func() { f(sub) })
	sub.finish()
	if sub.Failed() {
		t.fail()
	}
	return !sub.Failed()
}
