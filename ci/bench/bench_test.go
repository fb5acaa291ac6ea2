// SPDX-License-Identifier: Apache-2.0

package bench_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"reflect"
	"strconv"
	"strings"
	"testing"
	"time"

	"toebox/ci/bench"
	"toebox/ci/bench/task"
	"toebox/vfio-user/vfiousertest"
)

func TestMain(m *testing.M) { vfiousertest.Main(m) }

// script is a Runner that answers with throughputs, in MB/s, and notes who was asked.
type script struct {
	virtio, adapter []uint64
	asked           []string
}

func (s *script) Run(_ context.Context, t *task.Task) (*bench.Sample, error) {
	s.asked = append(s.asked, string(t.Side)+t.Mode)
	list := &s.adapter
	if t.Side == task.Virtio {
		list = &s.virtio
	}
	if len(*list) == 0 {
		return nil, &bench.TaskError{Text: "no more"}
	}
	v := (*list)[0]
	*list = (*list)[1:]
	return &bench.Sample{
		Result: task.Result{Bytes: v * 1e6, Elapsed: time.Second, Interrupts: v},
		Window: time.Second, Other: 250 * time.Millisecond,
	}, nil
}

// twoWays is a case with two ways of the adapter.
func twoWays() *bench.Case {
	return &bench.Case{
		Name:   "send",
		Virtio: task.Task{Side: task.Virtio},
		Ways: []bench.Way{
			{Name: "first", Task: task.Task{Side: task.Adapter, Mode: "1"}, Targets: map[string]bench.Target{"throughput": {AtLeast: 6}, "fewer": {Most: 500}}},
			{Name: "second", Task: task.Task{Side: task.Adapter, Mode: "2"}, Targets: map[string]bench.Target{"throughput": {AtLeast: 6}, "fewer": {AtMost: 0.5}}},
		},
		Metrics: []bench.Metric{
			{Name: "throughput", Unit: "MB/s", More: true, Of: func(s *bench.Sample) float64 { return float64(s.Bytes) / 1e6 / s.Elapsed.Seconds() }},
			{Name: "fewer", Unit: "each", Of: func(s *bench.Sample) float64 { return float64(s.Interrupts) }},
		},
	}
}

// TestMeasure: the sides take turns, each pair of neighbours has a ratio, and targets
// are met or not only where figures count.
func TestMeasure(t *testing.T) {
	run := func(counts bool) ([]bench.Row, *script) {
		t.Helper()
		s := &script{virtio: []uint64{100, 200, 50}, adapter: []uint64{600, 10, 1400, 20, 250, 30}}
		rows, err := bench.Measure(t.Context(), s, twoWays(), 3, counts)
		if err != nil {
			t.Fatal(err)
		}
		return rows, s
	}
	rows, s := run(true)
	if got := strings.Join(s.asked, " "); got != strings.TrimSpace(strings.Repeat("virtio adapter1 adapter2 ", 3)) {
		t.Errorf("asked %s", got)
	}
	if len(rows) != 4 {
		t.Fatalf("%d rows", len(rows))
	}
	r := rows[0]
	if r.Case != "send" || r.Way != "first" || r.Metric != "throughput" || r.Unit != "MB/s" || !r.More ||
		r.Virtio.Median != 100 || r.Virtio.Min != 50 || r.Virtio.Max != 200 || r.Adapter.Median != 600 ||
		!reflect.DeepEqual(r.Ratios, []float64{6, 7, 5}) || *r.Ratio != 6 || r.Other != 0.25 {
		t.Errorf("%+v", r)
	}
	for i, want := range []bool{true, false, false, true} {
		if rows[i].Met == nil || *rows[i].Met != want {
			t.Errorf("row %d: %+v", i, rows[i])
		}
	}
	if missed, of := (&bench.Report{Rows: rows}).Missed(); missed != 2 || of != 4 {
		t.Errorf("%d of %d missed", missed, of)
	}
	rows, _ = run(false)
	for i := range rows {
		if rows[i].Met != nil || rows[i].Target == nil {
			t.Errorf("figures that do not count: %+v", rows[i])
		}
	}
	var failed *bench.TaskError
	if rows, err := bench.Measure(t.Context(), &script{virtio: []uint64{1}}, twoWays(), 3, true); rows != nil || !errors.As(err, &failed) {
		t.Errorf("%v, %v", rows, err)
	}
	alone := twoWays()
	alone.Virtio, alone.Rounds = task.Task{}, 1
	rows, err := bench.Measure(t.Context(), &script{adapter: []uint64{7, 8}}, alone, 3, true)
	if err != nil || len(rows) != 4 || rows[2].Virtio != nil || rows[2].Ratio != nil || rows[2].Adapter.Median != 8 || *rows[1].Met != true {
		t.Errorf("of one side, once: %+v, %v", rows, err)
	}
	if _, err := bench.Measure(t.Context(), &script{}, twoWays(), 0, true); err == nil {
		t.Error("no rounds were measured")
	}
}

// TestTimedRow: times have a row without a ratio, and only a machine's start a target,
// which is met or not on any network.
func TestTimedRow(t *testing.T) {
	for _, c := range []struct {
		name    string
		seconds float64
		target  string
	}{
		{bench.TimedRun, 4, "true"},
		{bench.TimedRun, 4.5, "false"},
		{bench.TimedReload, 9, "none"},
	} {
		middle := time.Duration(c.seconds * float64(time.Second))
		r := bench.TimedRow(c.name, []time.Duration{20 * time.Second, middle, time.Second})
		met := "none"
		if r.Target != nil && r.Met != nil {
			met = strconv.FormatBool(*r.Met)
		}
		if r.Case != c.name || r.Unit != "s" || r.Adapter.Median != c.seconds || r.Adapter.Min != 1 || r.Adapter.Max != 20 ||
			r.Virtio != nil || r.Ratio != nil || met != c.target {
			t.Errorf("%+v", r)
		}
	}
}

func summary(values ...float64) *bench.Summary {
	s := bench.Summarize(values)
	return &s
}

// report is one to write.
func report(counts bool) *bench.Report {
	ratio, met := 0.25, true
	r := &bench.Report{
		When: time.Unix(0, 0).UTC(), Network: "tap", Counts: counts, Pace: bench.QuickPace(),
		Machine: bench.Machine{Processor: "A <Fine> One", Processors: 2, Kernel: "6.1", Accel: "tcg", QEMU: "QEMU 11.1.3", GuestProcessors: 2, GuestKernel: "6.12", Go: "go1.26", Revision: "abc"},
		Rows: []bench.Row{{
			Case: "send", Way: "first", Metric: "guest CPU", Unit: "s/GB",
			Virtio: summary(8, 7, 9), Adapter: bench.Summarize([]float64{2, 1, 3}),
			Ratio: &ratio, Ratios: []float64{0.25, 1. / 7, 1. / 3}, Target: &bench.Target{AtMost: 0.5}, Met: &met, Other: 0.5,
		}, {
			Case: "send", Way: "first", Metric: "doorbells", Unit: "/MB",
			Virtio: summary(0, 0, 0), Adapter: bench.Summarize([]float64{0, 1, 0}),
		}},
		Failed: []string{"the rest"},
	}
	if !counts {
		r.Network, r.Rows[0].Met = "user", nil
	}
	return r
}

func TestTable(t *testing.T) {
	var b bytes.Buffer
	if err := report(true).WriteTable(&b); err != nil {
		t.Fatal(err)
	}
	const want = `A <Fine> One, 2 processors; QEMU 11.1.3; Linux 6.1; go1.26
guest: tcg, 2 processors, Linux 6.12; tap devices in a network namespace, offloads on, the host kernel's TCP as the peer of both
medians (lowest-highest) of 3 runs of each in turns, 400ms each; round trips and single connections by one thread; toebox abc
the machine was not idle: other programs took 25 % of a processor

send                                              virtio                  adapter                    ratio  target
  first, guest CPU (s/GB)                         8.00 (7.00-9.00)        2.00 (1.00-3.00)          0.250x  at most 0.500x met
  first, doorbells (/MB)                          0 (0-0)                 0 (0-1.00)                     -  

failed: the rest
`
	if b.String() != want {
		t.Errorf("got\n%s\nwant\n%s", &b, want)
	}
	b.Reset()
	if err := report(false).WriteTable(&b); err != nil || !strings.Contains(b.String(), "0.500x (does not count)") || !strings.Contains(b.String(), "user networking") {
		t.Errorf("%v\n%s", err, &b)
	}
}

// TestFiles: the JSON reads back, and the page has everything in itself.
func TestFiles(t *testing.T) {
	r := report(true)
	var b bytes.Buffer
	if err := r.WriteJSON(&b); err != nil {
		t.Fatal(err)
	}
	var back bench.Report
	if err := json.Unmarshal(b.Bytes(), &back); err != nil || !reflect.DeepEqual(&back, r) {
		t.Errorf("%v: %+v", err, back)
	}
	for _, name := range []string{`"ratio": 0.25`, `"at_most": 0.5`, `"met": true`, `"counts": true`, `"guest_kernel": "6.12"`, `"median": 8`} {
		if !strings.Contains(b.String(), name) {
			t.Errorf("no %s in\n%s", name, &b)
		}
	}
	b.Reset()
	if err := r.WritePage(&b); err != nil {
		t.Fatal(err)
	}
	page := b.String()
	for _, part := range []string{"<svg ", "A &lt;Fine&gt; One", ">send: first, guest CPU<", "at most 0.500x met", "</html>"} {
		if !strings.Contains(page, part) {
			t.Errorf("no %s", part)
		}
	}
	if strings.Count(page, "<circle ") != 3 || strings.Count(page, "<rect ") != 1 || strings.Contains(page, "NaN") {
		t.Error(page)
	}
	if page = strings.ReplaceAll(page, "http://www.w3.org/2000/svg", ""); strings.Contains(page, "http") {
		t.Error("the page asks others")
	}
}

// TestCases: each case measures the same thing on both sides.
func TestCases(t *testing.T) {
	for _, p := range []bench.Pace{bench.FullPace(), bench.QuickPace()} {
		seen := map[string]bool{}
		for _, c := range bench.Cases(p) {
			if seen[c.Name] {
				t.Errorf("%s: twice", c.Name)
			}
			seen[c.Name] = true
			var tasks []task.Task
			if c.Virtio.Side != "" {
				tasks = append(tasks, c.Virtio)
			}
			names := map[string]bool{}
			for _, m := range c.Metrics {
				names[m.Name] = true
			}
			for _, w := range c.Ways {
				tasks = append(tasks, w.Task)
				for name := range w.Targets {
					if !names[name] {
						t.Errorf("%s, %s: a target of %q, which is not measured", c.Name, w.Name, name)
					}
				}
			}
			for i, k := range tasks {
				if err := k.Check(); err != nil {
					t.Errorf("%s: %v", c.Name, err)
				}
				if c.Virtio.Side == "" || k.Kind == task.Bulk && c.Virtio.Kind == task.Connect {
					continue // there is nothing like it on the other side
				}
				if k.Kind != c.Virtio.Kind || k.Size != c.Virtio.Size || k.Conns != c.Virtio.Conns || k.For != c.Virtio.For || (k.Side == task.Virtio) != (i == 0) {
					t.Errorf("%s: %+v beside %+v", c.Name, k, c.Virtio)
				}
			}
		}
	}
	if quick, full := len(bench.Cases(bench.QuickPace())), len(bench.Cases(bench.FullPace())); quick == 0 || quick >= full {
		t.Errorf("%d quick cases of %d", quick, full)
	}
}

// TestPeer: what each of its servers does, and that Close ends connections.
func TestPeer(t *testing.T) {
	p, err := bench.NewPeer("127.0.0.1")
	if err != nil {
		t.Fatal(err)
	}
	dial := func(k task.Kind) *net.TCPConn {
		t.Helper()
		c, err := net.Dial("tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(p.Port(k))))
		if err == nil {
			err = c.SetDeadline(time.Now().Add(time.Minute))
		}
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		return c.(*net.TCPConn)
	}
	buf := make([]byte, 1<<20)
	c := dial(task.Send)
	for range 20 { // more than sockets hold
		if _, err := c.Write(buf); err != nil {
			t.Fatal(err)
		}
	}
	if err := c.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	if n, err := c.Read(buf); n != 0 || err != io.EOF {
		t.Errorf("of the sink %d bytes, %v", n, err)
	}
	if _, err := io.ReadFull(dial(task.Receive), buf); err != nil {
		t.Errorf("source: %v", err)
	}
	c = dial(task.Echo)
	if _, err := c.Write([]byte("hello")); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(c, buf[:5]); err != nil || string(buf[:5]) != "hello" {
		t.Errorf("echo: %q, %v", buf[:5], err)
	}
	c = dial(task.Connect)
	for range 2 {
		if err := p.Close(); err != nil {
			t.Error(err)
		}
	}
	if _, err := c.Read(buf); err == nil {
		t.Error("a connection is open after Close")
	}
}
