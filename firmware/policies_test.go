// SPDX-License-Identifier: Apache-2.0

package firmware_test

import (
	"flag"
	"fmt"
	"strings"
	"testing"
	"time"

	"toebox/firmware"
	"toebox/firmware/engine/enginetest"
	"toebox/firmware/firmwaretest"
	"toebox/vdev/abi"
)

var bulkMiB = flag.Int("mib", 4, "MiB of a bulk receive in TestPolicies")

const us = ms / 1000

// workload is bytes that come and a host that takes them, in time of the policy
// clock.
type workload struct {
	name string
	// next says when the next bytes come after those before, and how many, or
	// that they come so long after the host was told of all before.
	next  func(i int) (gap uint64, n int, afterTold bool)
	total int
	// The connection's own buffers: so many of a size, one behind the other,
	// each posted anew so long after it came back.
	buffers int
	size    int
	think   uint64
	bulk    int // bulk buffers of 2 KiB
}

// figures are what a run costs, per MiB, and how long bytes waited.
type figures struct {
	writes, responses, interrupts float64
	own                           float64 // share of bytes in the connection's own buffers, percent
	mean, most                    float64 // us from arrival to response
}

const segment = 1460

// workloads of TestPolicies. A segment takes 11.68 us at 1 Gbit/s.
func workloads(mib int) []workload {
	wire := func(gap uint64) func(int) (uint64, int, bool) {
		return func(int) (uint64, int, bool) { return gap, segment, false }
	}
	return []workload{
		{name: "bulk", next: wire(11_680), total: mib << 20, buffers: 4, size: 256 << 10, think: 20 * us},
		{name: "pages", next: wire(11_680), total: mib << 20, buffers: 64, size: 4 << 10, think: 20 * us},
		{name: "bursts", next: func(i int) (uint64, int, bool) {
			if i%10 == 0 {
				return 20 * ms, segment, false
			}
			return 90 * us, segment, false
		}, total: mib << 18, buffers: 4, size: 64 << 10, think: 20 * us},
		{name: "records", next: func(i int) (uint64, int, bool) {
			switch i % 6 {
			case 0:
				return 2 * ms, segment, false
			case 5:
				return 11_680, 8192 - 5*segment, false
			}
			return 11_680, segment, false
		}, total: mib << 18, buffers: 4, size: 64 << 10, think: 20 * us},
		{name: "requests", next: func(int) (uint64, int, bool) { return 50 * us, 300, true }, total: mib << 15, buffers: 4, size: 256 << 10, think: 20 * us},
		{name: "slow host", next: wire(116_800), total: mib << 18, buffers: 1, size: 16 << 10, think: 300 * us, bulk: 64},
	}
}

// policy is a set of attributes.
type policy struct {
	name    string
	dynamic bool
	attrs   []uint64
}

func policies() []policy {
	return []policy{
		{"per packet", false, []uint64{gatherThreshold, 0}},
		{"the defaults", false, nil},
		{"time, 250 us", false, []uint64{notifyTime, 250 * us}},
		{"bytes, 64 KiB", false, []uint64{notifyBytes, 64 << 10}},
		{"the same, combined", false, []uint64{notifyBytes, 64 << 10, combine, 1}},
		{"arrivals", true, []uint64{notifyDynamic, 1}},
		{"posts", true, []uint64{notifyDynamic, 2}},
		{"consumption", true, []uint64{notifyDynamic, 4}},
		{"amounts", true, []uint64{notifyDynamic, 8}},
		{"all four, combined", true, []uint64{notifyDynamic, 15, combine, 1}},
	}
}

// driven is an adapter with one connection whose queue makes its passes when the
// test says so, and whose policy clock is the test's: no goroutine, no real time.
type driven struct {
	t    *testing.T
	fw   *firmware.Firmware
	q    *firmware.Driven
	chip *firmwaretest.Chip
	host *firmwaretest.Host
	ep   *enginetest.Endpoint
	conn uint64
	now  uint64
}

// simulation is a run of a workload under a policy.
type simulation struct {
	*driven
	w       *workload
	memory  uint64
	posts   []repost
	buffers map[uint32]posted

	sent, told int
	came       []step // bytes not told of, and when they came
	steps      int
	at         uint64 // when the next come
	waiting    bool   // they come after the host was told
	sum        float64
	most       uint64
	own        int
}

type repost struct {
	at uint64
	f  abi.Fields
}

type posted struct {
	abi.Fields
	place int
}

// drive connects, with attributes.
func drive(t *testing.T, attrs []uint64) *driven {
	t.Helper()
	s := &driven{t: t, chip: firmwaretest.NewChip(8<<20, 1<<20)}
	e := enginetest.NewEngine()
	s.fw = firmware.New(firmware.Config{Chip: s.chip, Engine: e, Generation: 1, MTU: 1500, Clock: func() time.Duration { return 0 }})
	s.fw.Run()
	s.host = firmwaretest.NewHost(s.fw, s.chip, 0, 10)
	var err error
	if s.q, err = s.fw.Drive(s.host.Config); err != nil {
		t.Fatal(err)
	}
	s.fw.SetPolicyClock(true)
	tuples, n := scalars(attrs...)
	tuples = appendTarget(tuples, connectTarget())
	base := s.chip.Alloc(len(tuples), 8)
	copy(s.chip.Bytes(base, len(tuples)), tuples)
	s.post(abi.Fields{Type: abi.TypeConnect, Tag: s.host.Tag(), Aux: uint16(n + 1), Base: base, Length: uint32(len(tuples))})
	s.passes()
	s.ep = e.Last()
	s.ep.Establish()
	s.passes()
	f, ok := s.host.Take()
	if !ok || f.Aux != 0 {
		t.Fatalf("connect: %+v", f)
	}
	s.conn = f.Conn
	return s
}

func newSimulation(t *testing.T, w *workload, attrs []uint64) *simulation {
	t.Helper()
	s := &simulation{driven: drive(t, attrs), w: w, buffers: map[uint32]posted{}}
	s.memory = s.chip.Alloc(w.buffers*w.size, 4096)
	for i := range w.buffers {
		s.postOwn(i)
	}
	for range w.bulk {
		s.postBulk(s.chip.Alloc(2048, 4096))
	}
	s.passes()
	return s
}

func (s *driven) post(f abi.Fields) {
	if err := s.host.Post(f); err != nil {
		s.t.Fatal(err)
	}
}

func (s *simulation) postOwn(place int) {
	f := abi.Fields{
		Type: abi.TypeBufferAvailable, Tag: s.host.Tag(), Conn: s.conn,
		Base: s.memory + uint64(place*s.w.size), Length: uint32(s.w.size),
	}
	s.buffers[f.Tag] = posted{f, place}
	s.post(f)
}

func (s *simulation) postBulk(base uint64) {
	f := abi.Fields{Type: abi.TypeBufferAvailable, Tag: s.host.Tag(), Base: base, Length: 2048}
	s.buffers[f.Tag] = posted{f, -1}
	s.post(f)
}

// passes lets the adapter act until it is done.
func (s *driven) passes() {
	for range 10_000 {
		if !s.q.Pass() {
			return
		}
	}
	s.t.Fatal("the adapter does not rest")
}

// consume acts on the responses that are there.
func (s *simulation) consume() {
	for f, ok := s.host.Take(); ok; f, ok = s.host.Take() {
		if f.Type != abi.TypeBufferReceive || f.Aux != 0 || f.Conn != s.conn {
			s.t.Fatalf("unexpected %+v", f)
		}
		n := int(f.Length)
		if s.buffers[f.Tag].place >= 0 {
			s.own += n
		}
		s.told += n
		for n > 0 {
			c := &s.came[0]
			k := min(n, c.n)
			s.sum += float64(k) * float64(s.now-c.at)
			s.most = max(s.most, s.now-c.at)
			n -= k
			if c.n -= k; c.n == 0 {
				s.came = s.came[1:]
			}
		}
		if f.Flags&abi.FlagFinal == 0 {
			continue
		}
		for tag := f.Tag; ; tag-- {
			b, ok := s.buffers[tag]
			if !ok {
				s.t.Fatalf("a buffer that was not posted: %+v", f)
			}
			delete(s.buffers, tag)
			s.posts = append(s.posts, repost{s.now + s.w.think, b.Fields})
			if b.Base == f.Base {
				break
			}
		}
	}
}

// repost posts the buffers whose time has come, lower addresses first.
func (s *simulation) repost() {
	for len(s.posts) > 0 {
		first := -1
		for i, p := range s.posts {
			if p.at <= s.now && (first < 0 || p.at < s.posts[first].at || p.at == s.posts[first].at && p.f.Base < s.posts[first].f.Base) {
				first = i
			}
		}
		if first < 0 {
			return
		}
		f := s.posts[first].f
		s.posts = append(s.posts[:first], s.posts[first+1:]...)
		if f.Conn == 0 {
			s.postBulk(f.Base)
		} else {
			s.postOwn(int(f.Base-s.memory) / s.w.size)
		}
	}
}

// plan says when the next bytes come.
func (s *simulation) plan() {
	gap, _, after := s.w.next(s.steps)
	s.waiting = after && s.told < s.sent
	s.at = s.now + gap
}

// run plays the workload and returns what it cost.
func (s *simulation) run() figures {
	cost := s.costs(s.w.total, abi.CounterPayloadWrites, abi.CounterResponses, abi.CounterInterrupts)
	s.plan()
	for s.told < s.w.total {
		next := uint64(1) << 60
		if s.sent < s.w.total && !s.waiting {
			next = s.at
		}
		for _, p := range s.posts {
			next = min(next, p.at)
		}
		if due, ok := s.q.Due(); ok {
			next = min(next, due)
		}
		if next == 1<<60 {
			s.t.Fatalf("%s: nothing happens any more, %d bytes of %d", s.w.name, s.told, s.w.total)
		}
		s.step(next)
		if s.sent < s.w.total && !s.waiting && s.at <= s.now {
			_, n, _ := s.w.next(s.steps)
			n = min(n, s.w.total-s.sent)
			s.ep.Deliver(make([]byte, n))
			s.came = append(s.came, step{s.now, n})
			s.sent += n
			s.steps++
			s.plan()
		}
		s.passes()
		s.consume()
		s.repost()
		s.passes()
		s.consume()
		if s.waiting && s.told == s.sent {
			s.plan()
		}
	}
	c := cost()
	return figures{
		writes: c[0], responses: c[1], interrupts: c[2],
		own:  100 * float64(s.own) / float64(s.told),
		mean: s.sum / float64(s.w.total) / 1000,
		most: float64(s.most) / 1000,
	}
}

// step moves the clock to a time that is not over.
func (s *driven) step(to uint64) {
	if to > s.now {
		s.fw.StepPolicyClock(to - s.now)
		s.now = to
	}
}

// costs returns what counters moved from here on, for each MiB of total.
func (s *driven) costs(total int, counters ...abi.Counter) func() []float64 {
	var before []uint64
	for _, c := range counters {
		before = append(before, s.fw.Counters().Load(c))
	}
	return func() []float64 {
		var out []float64
		for i, c := range counters {
			out = append(out, float64(s.fw.Counters().Load(c)-before[i])/(float64(total)/(1<<20)))
		}
		return out
	}
}

func (s *driven) close() {
	s.q.End()
	if err := s.fw.Close(); err != nil {
		s.t.Error(err)
	}
}

// TestPolicies counts what receiving costs under each policy, and holds what
// sets itself against the defaults: fewer DMA writes, responses or interrupts
// for at least one workload, and nowhere 10% more.
func TestPolicies(t *testing.T) {
	mib := *bulkMiB
	var table strings.Builder
	fmt.Fprintf(&table, "\n| workload | policy | DMA writes | responses | interrupts | own buffers | mean wait | longest |\n|---|---|---|---|---|---|---|---|\n")
	better := map[string]bool{}
	for _, w := range workloads(mib) {
		var usual figures
		for _, p := range policies() {
			s := newSimulation(t, &w, p.attrs)
			f := s.run()
			s.close()
			fmt.Fprintf(&table, "| %s | %s | %.1f | %.1f | %.1f | %.0f%% | %.0f us | %.0f us |\n",
				w.name, p.name, f.writes, f.responses, f.interrupts, f.own, f.mean, f.most)
			if p.name == "the defaults" {
				usual = f
			}
			// A wait is bounded by NOTIFY_MAX, where there are buffers.
			if w.name != "slow host" && f.most > 1000 {
				t.Errorf("%s, %s: bytes waited %v us", w.name, p.name, f.most)
			}
			if !p.dynamic {
				continue
			}
			for _, c := range []struct {
				what     string
				is, then float64
			}{{"DMA writes", f.writes, usual.writes}, {"responses", f.responses, usual.responses}, {"interrupts", f.interrupts, usual.interrupts}} {
				if c.is > 1.1*c.then {
					t.Errorf("%s, %s: %.1f %s for each MiB, %.1f by default", w.name, p.name, c.is, c.what, c.then)
				}
				if c.is < 0.9*c.then {
					better[p.name] = true
				}
			}
		}
	}
	for _, p := range policies() {
		if p.dynamic && !better[p.name] {
			t.Errorf("%s is nowhere better than the defaults", p.name)
		}
	}
	t.Log(table.String())
}
