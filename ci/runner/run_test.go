// SPDX-License-Identifier: Apache-2.0

package runner

import (
	"bytes"
	"context"
	"encoding/json"
	"encoding/xml"
	"errors"
	"io"
	"regexp"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"toebox/ci/conformance"
	"toebox/ci/peer"
)

// sample has one function of each kind.
func sample(hang chan struct{}) []*conformance.Test {
	return []*conformance.Test{
		{Name: "TestIF01_Good", IDs: []string{"IF01"}, Func: func(t *conformance.T) { t.Logf("fine") }},
		{Name: "TestIF02_Bad", IDs: []string{"IF02"}, Func: func(t *conformance.T) {
			t.Cleanup(func() { t.Logf("cleaned") })
			t.Errorf("first")
			t.Fatalf("second")
		}},
		{Name: "TestIF03_Skipped", IDs: []string{"IF03"}, Func: func(t *conformance.T) { t.Skipf("cure: none") }},
		{Name: "TestIF04_Panics", IDs: []string{"IF04"}, Func: func(*conformance.T) { panic("boom") }},
		{Name: "TestIF05_Parts", IDs: []string{"IF05"}, Func: func(t *conformance.T) {
			t.Run("one", func(*conformance.T) {})
			t.Run("two", func(t *conformance.T) { t.Fatalf("part failed") })
		}},
		{Name: "TestIF06_Hangs", IDs: []string{"IF06"}, Limit: time.Millisecond, Func: func(*conformance.T) { <-hang }},
		{Name: "TestIF07_Peer", IDs: []string{"IF07"}, Needs: conformance.NeedPeer, Func: func(t *conformance.T) { t.Fatalf("ran without a peer") }},
		{Name: "TestIF08_After", IDs: []string{"IF08"}, Rungs: []string{"inproc"}, Func: func(*conformance.T) {}},
	}
}

func none(context.Context, *conformance.Test, uint64) (*conformance.Env, func() error, error) {
	return &conformance.Env{}, func() error { return nil }, nil
}

func TestRun(t *testing.T) { synctest.Test(t, runSample) }

// runSample runs in a bubble, where time passes only when all stand still: when
// nothing goes on but the function that hangs.
func runSample(t *testing.T) {
	hang := make(chan struct{})
	defer close(hang)
	var c Collector
	var stream bytes.Buffer
	ended := 0
	sum := Run(t.Context(), Options{
		Tests: sample(hang), Rung: "inproc", Package: "p/inproc", Grace: time.Second, Sink: Tee(c.Sink(), JSON(&stream)),
		Env: func(ctx context.Context, test *conformance.Test, seed uint64) (*conformance.Env, func() error, error) {
			e, _, err := none(ctx, test, seed)
			return e, func() error { ended++; return nil }, err
		},
	})
	if want := (Summary{Passed: 2, Failed: 4, Skipped: 2}); sum != want || c.Summary() != want {
		t.Errorf("summary %v, collected %v, want %v", sum, c.Summary(), want)
	}
	if ended != 8 {
		t.Errorf("%d environments ended, want 8", ended)
	}
	want := map[string]struct{ action, output string }{
		"TestIF01_Good":    {ActionPass, "fine"},
		"TestIF02_Bad":     {ActionFail, "cleaned"},
		"TestIF03_Skipped": {ActionSkip, "cure: none"},
		"TestIF04_Panics":  {ActionFail, "panic: boom"},
		"TestIF05_Parts":   {ActionFail, "seed 0"},
		"TestIF06_Hangs":   {ActionFail, "runner.sample.func"}, // where it hangs
		"TestIF07_Peer":    {ActionSkip, "needs a peer"},
		"TestIF08_After":   {ActionPass, ""},
	}
	for _, r := range c.Results {
		w := want[r.Name]
		if r.Action != w.action || !strings.Contains(r.Output, w.output) {
			t.Errorf("%s: %s, output\n%s\nwant %s and %q", r.Name, r.Action, r.Output, w.action, w.output)
		}
		if r.Name == "TestIF05_Parts" && (len(r.Sub) != 2 || r.Sub[0].Action != ActionPass || r.Sub[1].Action != ActionFail) {
			t.Errorf("parts: %+v", r.Sub)
		}
	}
	// The stream alone says the same, as a guest's does.
	var again Collector
	notRun, err := Follow(&stream, "p/vm", nil, again.Sink())
	if err != nil || notRun != 0 || again.Summary() != sum {
		t.Errorf("followed: %v, %d not run, %v", again.Summary(), notRun, err)
	}
}

// TestJSON: the events are those of "go test -json": only its fields and
// actions, a start first, times in RFC 3339, a result with its time for each
// test that ran, and one for the package at the end.
func TestJSON(t *testing.T) {
	var stream bytes.Buffer
	synctest.Test(t, func(t *testing.T) {
		hang := make(chan struct{})
		defer close(hang)
		Run(t.Context(), Options{Tests: sample(hang), Rung: "inproc", Package: "p/inproc", Grace: time.Millisecond, Env: none, Sink: JSON(&stream)})
	})
	running := map[string]bool{}
	lines := strings.Split(strings.TrimSpace(stream.String()), "\n")
	for i, line := range lines {
		// As cmd/test2json documents it.
		var e struct {
			Time        *time.Time
			Action      string
			Package     string
			Test        string
			Elapsed     *float64
			Output      string
			FailedBuild string
		}
		d := json.NewDecoder(strings.NewReader(line))
		d.DisallowUnknownFields()
		if err := d.Decode(&e); err != nil || e.Time == nil || e.Package != "p/inproc" {
			t.Fatalf("line %d: %v: %s", i, err, line)
		}
		if (i == 0) != (e.Action == "start") {
			t.Errorf("line %d: action %s", i, e.Action)
		}
		switch e.Action {
		case "start":
		case "run":
			running[e.Test] = true
		case "output":
			if !strings.HasSuffix(e.Output, "\n") || e.Test != "" && !running[e.Test] {
				t.Errorf("line %d: %s", i, line)
			}
		case "pass", "fail", "skip":
			if e.Elapsed == nil || e.Test != "" && !running[e.Test] || (e.Test == "") != (i == len(lines)-1) {
				t.Errorf("line %d: %s", i, line)
			}
			delete(running, e.Test)
		default:
			t.Errorf("line %d: action %q", i, e.Action)
		}
	}
	if len(running) > 0 {
		t.Errorf("without a result: %v", running)
	}
}

func TestRunCancelled(t *testing.T) {
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(errors.New("enough"))
	var c Collector
	sum := Run(ctx, Options{Tests: sample(nil)[:1], Env: none, Sink: c.Sink()})
	if sum.Failed != 1 || !strings.Contains(c.Results[0].Output, "not run: enough") {
		t.Errorf("%v: %s", sum, c.Results[0].Output)
	}
}

func TestRunNoEnvironment(t *testing.T) {
	var c Collector
	sum := Run(t.Context(), Options{Tests: sample(nil)[:1], Sink: c.Sink(),
		Env: func(context.Context, *conformance.Test, uint64) (*conformance.Env, func() error, error) {
			return nil, nil, errors.New("no QEMU")
		}})
	if sum.Failed != 1 || !strings.Contains(c.Results[0].Output, "no QEMU") {
		t.Errorf("%v: %s", sum, c.Results[0].Output)
	}
}

// TestShards: the parts are disjoint and together all.
func TestShards(t *testing.T) {
	var got []string
	for i := 1; i <= 3; i++ {
		for _, test := range Select(&Options{Rung: "vm", Shard: i, Shards: 3}) {
			got = append(got, test.Name)
		}
	}
	var want []string
	for _, test := range Select(&Options{Rung: "vm"}) {
		want = append(want, test.Name)
	}
	slices.Sort(got)
	if len(want) < 50 || !slices.Equal(got, want) {
		t.Errorf("three shards make %d tests, all are %d", len(got), len(want))
	}
	for _, test := range Select(&Options{Run: regexp.MustCompile("^TestIF02_")}) {
		if !strings.HasPrefix(test.Name, "TestIF02_") {
			t.Errorf("%s was chosen", test.Name)
		}
	}
}

// TestFollowDeath: a guest that dies fails the running test and says "not run"
// for the rest.
func TestFollowDeath(t *testing.T) {
	stream := `{"Action":"start"}
{"Action":"run","Test":"TestA"}
{"Action":"pass","Test":"TestA","Elapsed":1.5}
{"Action":"run","Test":"TestB"}
{"Action":"run","Test":"TestB/part"}
kernel: something that is no event
{"Action":"output","Test":"TestB","Output":"half`
	var c Collector
	notRun, err := Follow(strings.NewReader(stream), "p", []string{"TestA", "TestB", "TestC", "TestD"}, c.Sink())
	if err != nil || notRun != 2 {
		t.Errorf("%d not run, %v", notRun, err)
	}
	if want := (Summary{Passed: 1, Failed: 3}); c.Summary() != want {
		t.Errorf("summary %v, want %v", c.Summary(), want)
	}
	for _, r := range c.Results {
		want := map[string]string{"TestB": "the guest ended while this test ran", "TestC": "not run", "TestD": "not run"}[r.Name]
		if !strings.Contains(r.Output, want) {
			t.Errorf("%s: output %q, want %q", r.Name, r.Output, want)
		}
	}
	if c.Results[0].Elapsed != 1500*time.Millisecond {
		t.Errorf("elapsed %v", c.Results[0].Elapsed)
	}
}

func TestExitCode(t *testing.T) {
	for _, k := range []struct {
		sum  Summary
		want int
	}{
		{Summary{Passed: 3}, 0}, {Summary{Passed: 3, Skipped: 1}, 0}, {Summary{Passed: 3, Failed: 1}, 1},
		{Summary{Skipped: 2}, 4}, {Summary{}, 0},
	} {
		if got := k.sum.ExitCode(); got != k.want {
			t.Errorf("%v: exit code %d, want %d", k.sum, got, k.want)
		}
	}
	if s := (Summary{1, 2, 3}).String(); s != "1 passed, 2 failed, 3 skipped" {
		t.Errorf("summary reads %q", s)
	}
}

func results() []Result {
	return []Result{
		{Package: "p/inproc", Name: "TestA", Action: ActionPass, Elapsed: time.Second, Output: "fine\x00\x1b[0m\n"},
		{Package: "p/inproc", Name: "TestB", Action: ActionFail, Output: "    a.go:1: <broken> & \"so\"\n", Sub: []Result{
			{Package: "p/inproc", Name: "TestB/one#01", Action: ActionPass}, {Package: "p/inproc", Name: "TestB/two", Action: ActionFail, Output: "two\n"},
		}},
		{Package: "p/vm", Name: "TestC", Action: ActionSkip, Output: "cure: buy one\n"},
	}
}

func TestJUnit(t *testing.T) {
	var b bytes.Buffer
	if err := JUnit(&b, results(), Property{"seed", "7"}); err != nil {
		t.Fatal(err)
	}
	var doc junitSuites
	if err := xml.Unmarshal(b.Bytes(), &doc); err != nil {
		t.Fatalf("%v\n%s", err, b.String())
	}
	if len(doc.Suites) != 2 || doc.Suites[0].Tests != 2 || doc.Suites[0].Failures != 1 || doc.Suites[1].Skipped != 1 {
		t.Errorf("suites: %+v", doc.Suites)
	}
	if f := doc.Suites[0].Cases[1].Failure; f == nil || !strings.Contains(f.Text, `<broken> & "so"`) || !strings.Contains(f.Text, "two") {
		t.Errorf("failure: %+v", f)
	}
	if s := doc.Suites[1].Cases[0].Skipped; s == nil || s.Message != "cure: buy one" {
		t.Errorf("skip: %+v", s)
	}
	if p := doc.Suites[0].Properties; len(p) != 1 || p[0].Name != "seed" || p[0].Value != "7" {
		t.Errorf("properties: %+v", p)
	}
}

func TestKTAP(t *testing.T) {
	var b bytes.Buffer
	if err := KTAP(&b, results()); err != nil {
		t.Fatal(err)
	}
	const want = "KTAP version 1\n" +
		"1..3\n" +
		"ok 1 TestA\n" +
		"  KTAP version 1\n" +
		"  # Subtest: TestB\n" +
		"  1..2\n" +
		"  ok 1 TestB/one_01\n" +
		"  # two\n" +
		"  not ok 2 TestB/two\n" +
		"# a.go:1: <broken> & \"so\"\n" +
		"not ok 2 TestB\n" +
		"# cure: buy one\n" +
		"ok 3 TestC # SKIP\n"
	if b.String() != want {
		t.Errorf("got\n%s\nwant\n%s", b.String(), want)
	}
}

// guest plays toebox-conformance: it makes a call to the peer and says what it
// runs.
func guest(status int, tests ...string) Exec {
	return func(_ context.Context, args []string, stdin io.Reader, stdout, _ io.Writer) (int, error) {
		io.WriteString(stdout, `{"ID":1,"Method":"nonsense"}`+"\n")
		var answer struct{ Err string }
		if err := json.NewDecoder(stdin).Decode(&answer); err != nil || answer.Err == "" {
			return 99, errors.New("no answer from the peer")
		}
		for _, name := range tests {
			io.WriteString(stdout, `{"Action":"run","Test":"`+name+`"}`+"\n"+`{"Action":"pass","Test":"`+name+`"}`+"\n")
		}
		if !slices.Contains(args, "-seed") {
			return 2, nil
		}
		return status, nil
	}
}

func TestGuest(t *testing.T) {
	var whole []string // what is said of the whole package
	o := Options{Run: regexp.MustCompile("^TestIF02_"), Package: "p/vm", Sink: func(e Event) {
		if e.Test == "" {
			whole = append(whole, e.Action)
		}
	}}
	var names []string
	for _, test := range Select(&o) {
		names = append(names, test.Name)
	}
	g := Guest{Exec: guest(0, names...), Program: "/bin/kit", Options: o}
	if sum, err := g.Run(t.Context()); err != nil || sum.Passed != len(names) || sum.Failed != 0 {
		t.Errorf("all passed: %v, %v", sum, err)
	}
	if !slices.Equal(whole, []string{ActionStart, ActionPass}) {
		t.Errorf("of the package: %v", whole)
	}
	whole = nil
	g.Exec = guest(0, names[0])
	if sum, err := g.Run(t.Context()); err == nil || sum.Passed != 1 || sum.Failed != len(names)-1 {
		t.Errorf("ended early: %v, %v", sum, err)
	}
	if !slices.Equal(whole, []string{ActionStart, ActionFail}) {
		t.Errorf("of the package, ended early: %v", whole)
	}
	g.Exec = guest(125, names...)
	if _, err := g.Run(t.Context()); err == nil {
		t.Error("status 125 is no error")
	}
	g.Exec = func(context.Context, []string, io.Reader, io.Writer, io.Writer) (int, error) {
		return 0, errors.New("panic")
	}
	if sum, err := g.Run(t.Context()); err == nil || sum.Failed != len(names) {
		t.Errorf("guest that died: %v, %v", sum, err)
	}
}

// TestGuestDies: what Remote.Sync answered for is with the host, though the guest
// dies at once and takes with it what was on its way.
func TestGuestDies(t *testing.T) {
	var last Event
	o := Options{Run: regexp.MustCompile("^TestIF02_"), Package: "p/vm", Sink: func(e Event) {
		if e.Action == ActionOutput {
			last = e
		}
	}}
	tests := Select(&o)
	g := Guest{Program: "/bin/kit", Peer: peer.NewHost(peer.HostConfig{}), Options: o}
	g.Exec = func(ctx context.Context, _ []string, in io.Reader, out, _ io.Writer) (int, error) {
		way, dead := make(chan []byte, 100), make(chan struct{})
		defer close(dead)
		go func() {
			for {
				select {
				case b := <-way:
					_, _ = out.Write(b)
				case <-dead:
					return
				}
			}
		}()
		send := writer(func(b []byte) (int, error) { way <- slices.Clone(b); return len(b), nil })
		r, err := peer.NewRemote(ctx, struct {
			io.Reader
			io.Writer
		}{in, send})
		if err != nil {
			return 0, err
		}
		for i, test := range tests {
			io.WriteString(send, `{"Action":"run","Test":"`+test.Name+`"}`+"\n")
			if err := r.Sync(ctx); err != nil {
				return 0, err
			}
			if i < len(tests)-1 {
				io.WriteString(send, `{"Action":"pass","Test":"`+test.Name+`"}`+"\n")
			}
		}
		return 0, errors.New("panic")
	}
	sum, err := g.Run(t.Context())
	if err == nil || sum.Passed != len(tests)-1 || sum.Failed != 1 {
		t.Errorf("%+v, %v", sum, err)
	}
	if last.Test != tests[len(tests)-1].Name || !strings.Contains(last.Output, "the guest ended while this test ran") {
		t.Errorf("the last word is of %s: %s", last.Test, last.Output)
	}
}

type writer func([]byte) (int, error)

func (w writer) Write(b []byte) (int, error) { return w(b) }
