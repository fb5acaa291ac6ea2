// SPDX-License-Identifier: Apache-2.0

package firmware_test

import (
	"math"
	"net/netip"
	"slices"
	"testing"
	"time"

	"toebox/vdev/abi"
)

const ms = uint64(time.Millisecond)

// release is how many notices were told at a time, in ns from the start.
type release struct {
	at uint64
	n  int
}

// timeline steps the manual policy clock of a rig.
type timeline struct {
	*rig
	now  uint64
	told []release
	seen []abi.Fields
}

func (r *rig) timeline() *timeline {
	r.fw.SetPolicyClock(true)
	return &timeline{rig: r}
}

// look lets the adapter act, and notes what it told.
func (l *timeline) look() {
	l.t.Helper()
	seen := l.settle()
	l.seen = append(l.seen, seen...)
	n := len(seen)
	if n == 0 {
		return
	}
	if k := len(l.told) - 1; k >= 0 && l.told[k].at == l.now {
		l.told[k].n += n
		return
	}
	l.told = append(l.told, release{l.now, n})
}

func (l *timeline) to(at uint64) {
	l.t.Helper()
	if at > l.now {
		l.fw.StepPolicyClock(at - l.now)
		l.now = at
		l.look()
	}
}

// play establishes connections at times, in order, and compares when the host
// is told with want: not 1 ns earlier.
func (l *timeline) play(establish []uint64, want []release) {
	l.t.Helper()
	points := slices.Clone(establish)
	for _, w := range want {
		points = append(points, w.at)
		if w.at > 0 {
			points = append(points, w.at-1)
		}
	}
	slices.Sort(points)
	eps := l.fake.Endpoints()
	for _, at := range slices.Compact(points) {
		l.to(at)
		for len(establish) > 0 && establish[0] == at {
			eps[0].Establish()
			l.look()
			eps, establish = eps[1:], establish[1:]
		}
	}
	if !slices.Equal(l.told, want) {
		l.t.Errorf("told %v, want %v", l.told, want)
	}
}

// scalars appends set tuples: attribute, value, ...
func scalars(list ...uint64) (tuples []byte, n int) {
	for i := 0; i < len(list); i += 2 {
		tuples = abi.AppendSetScalar(tuples, abi.Attribute(list[i]), list[i+1])
	}
	return tuples, len(list) / 2
}

func every(from, gap uint64, n int) []uint64 {
	var list []uint64
	for i := range uint64(n) {
		list = append(list, from+i*gap)
	}
	return list
}

// TestGathering compares when notices are told with what SPEC.md §14.1 says.
func TestGathering(t *testing.T) {
	const (
		count, amount, first, last, ceiling, adaptive = 0x0250, 0x0251, 0x0252, 0x0253, 0x0254, 0x0255
	)
	bursts := slices.Concat(every(0, ms, 10), every(10_010*ms, ms, 10), every(20_020*ms, ms, 10), every(30_030*ms, ms, 7))
	for _, c := range []struct {
		name      string
		attrs     []uint64
		establish []uint64
		want      []release
		counters  map[abi.Counter]uint64
	}{
		{"default", nil, every(0, ms, 3), []release{{0, 1}, {ms, 1}, {2 * ms, 1}}, map[abi.Counter]uint64{64: 0, 65: 0}},
		{"count", []uint64{count, 3}, every(0, ms, 4), []release{{2 * ms, 3}, {1003 * ms, 1}}, map[abi.Counter]uint64{64: 4, 65: 1, 69: 1}},
		{"amount", []uint64{count, 0, amount, 65}, every(0, ms, 3), []release{{2 * ms, 3}}, map[abi.Counter]uint64{66: 1}},
		{"first", []uint64{count, 0, first, 5 * ms}, []uint64{0, ms, 4 * ms, 7 * ms}, []release{{5 * ms, 3}, {12 * ms, 1}}, map[abi.Counter]uint64{67: 2}},
		// Joins when the time of the others has come: they go first.
		{"first at the time", []uint64{count, 0, first, 5 * ms}, []uint64{0, 5 * ms}, []release{{5 * ms, 1}, {10 * ms, 1}}, map[abi.Counter]uint64{67: 2}},
		{"last", []uint64{count, 0, last, 10 * ms}, []uint64{0, ms, 3 * ms, 25 * ms}, []release{{0, 1}, {10 * ms, 2}, {25 * ms, 1}}, map[abi.Counter]uint64{68: 3}},
		{"last, never told before", []uint64{count, 0, last, math.MaxInt64}, []uint64{0, ms}, []release{{0, 1}, {1001 * ms, 1}}, map[abi.Counter]uint64{68: 1, 69: 1}},
		{"ceiling", []uint64{count, 0, ceiling, 4 * ms}, []uint64{0, 3 * ms}, []release{{4 * ms, 2}}, map[abi.Counter]uint64{69: 1}},
		{"no ceiling but one", []uint64{count, 0}, []uint64{0, 3 * ms}, []release{{1000 * ms, 2}}, map[abi.Counter]uint64{69: 1}},
		{"ceiling 0", []uint64{count, 9, ceiling, 0}, []uint64{0, ms}, []release{{0, 1}, {ms, 1}}, map[abi.Counter]uint64{69: 2}},
		{"for ever", []uint64{count, 2, ceiling, math.MaxInt64}, []uint64{0, 90_000_000 * ms}, []release{{90_000_000 * ms, 2}}, map[abi.Counter]uint64{65: 1}},
		{"count before first", []uint64{count, 2, first, 5 * ms}, []uint64{0, ms, 2 * ms}, []release{{ms, 2}, {7 * ms, 1}}, map[abi.Counter]uint64{65: 1, 67: 1}},

		{"bursts", []uint64{adaptive, 8}, bursts,
			[]release{{1000 * ms, 10}, {10_019 * ms, 10}, {20_029 * ms, 10}, {31_030 * ms, 7}}, map[abi.Counter]uint64{69: 2, 70: 2}},
		// Gaps of 2 ms: 5 in 10 ms. The first four go at once; the fifth starts a list that the ninth ends.
		{"rate", []uint64{adaptive, 1}, every(0, 2*ms, 9),
			[]release{{0, 1}, {2 * ms, 1}, {4 * ms, 1}, {6 * ms, 1}, {16 * ms, 5}}, map[abi.Counter]uint64{70: 5}},
		{"rate falls", []uint64{adaptive, 1}, slices.Concat(every(0, 2*ms, 6), []uint64{300 * ms}),
			[]release{{0, 1}, {2 * ms, 1}, {4 * ms, 1}, {6 * ms, 1}, {18 * ms, 2}, {300 * ms, 1}}, map[abi.Counter]uint64{70: 6}},
		// All targets start at once: as many as the rule knows, for 10 ms.
		{"requests", []uint64{adaptive, 2}, every(0, ms, 12), []release{{10 * ms, 10}, {20 * ms, 2}}, map[abi.Counter]uint64{70: 2}},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := newRig(t, 6)
			tuples, n := scalars(c.attrs...)
			x := connectTarget()
			x.Count = uint16(len(c.establish))
			l := r.timeline()
			r.post(r.control(abi.TypeConnect, n+1, appendTarget(tuples, x)))
			r.settle()
			l.play(c.establish, c.want)
			for _, k := range []abi.Counter{64, 65, 66, 67, 68, 69, 70, 71, 72, 73} {
				want := c.counters[k]
				if k == 64 && c.attrs != nil {
					want = uint64(len(c.establish))
				}
				r.wantCounter(k, want)
			}
			r.wantCounter(abi.CounterMemoryUsed, uint64(8192*len(c.establish)))
		})
	}
}

// TestGatheringPeriod: the rig's clock starts at 1 s, a multiple of the period.
func TestGatheringPeriod(t *testing.T) {
	r := newRig(t, 6)
	l := r.timeline()
	tuples, n := scalars(0x0255, 4)
	x := connectTarget()
	x.Count = 11
	r.post(r.control(abi.TypeConnect, n+1, appendTarget(tuples, x)))
	r.settle()
	l.play(
		// 3 in the first period; 4 in the second; 2 in the third; the fourth is empty, so that the fifth waits for none.
		[]uint64{0, 10 * ms, 20 * ms, 110 * ms, 120 * ms, 130 * ms, 199 * ms, 210 * ms, 220 * ms, 430 * ms, 510 * ms},
		[]release{{0, 1}, {10 * ms, 1}, {20 * ms, 1}, {130 * ms, 3}, {200 * ms, 1}, {300 * ms, 2}, {430 * ms, 1}, {510 * ms, 1}})
	r.wantCounter(abi.CounterNotifyDynamic, 8)
}

// TestGatheringMixed lets notices of different attributes share a list: the
// strictest wins, and a default one takes the list with it.
func TestGatheringMixed(t *testing.T) {
	r := newRig(t, 6)
	l := r.timeline()
	var tuples []byte
	n := 0
	add := func(attrs ...uint64) {
		a, k := scalars(attrs...)
		tuples = appendTarget(append(tuples, a...), connectTarget())
		n += k + 1
	}
	add(0x0250, 5)             // 0
	add(0x0250, 3)             // 1
	add(0x0250, 0, 0x0252, ms) // 2: NOTIFY_FIRST of the list
	add(0x0252, 0, 0x0250, 1)  // 3: the default
	f := r.control(abi.TypeConnect, n, tuples)
	r.post(f)
	r.settle()
	eps := r.fake.Endpoints()
	eps[0].Establish()
	l.look()
	l.to(2 * ms)
	eps[2].Establish() // 1 ms is over since the first
	l.look()
	eps[0].Deliver([]byte("x"))
	l.to(3 * ms)
	eps[1].Establish()
	l.look()
	eps[3].Establish()
	l.look()
	if want := []release{{2 * ms, 2}, {3 * ms, 2}}; !slices.Equal(l.told, want) {
		t.Errorf("told %v, want %v", l.told, want)
	}
	for i, ordinal := range []uint32{0, 2, 1, 3} {
		if got := l.seen[i]; got.Offset != ordinal || got.Tag != f.Tag || (got.Flags == abi.FlagFinal) != (i == 3) {
			t.Errorf("response %d: %+v", i, got)
		}
	}
	r.wantCounter(abi.CounterNotifyFirst, 1)
	r.wantCounter(abi.CounterNotifyCount, 1)
}

// TestGatheringReal lets the worker's own timer release notices by a clock that
// goes.
func TestGatheringReal(t *testing.T) {
	for name, attrs := range map[string][]uint64{
		"first":   {0x0252, ms, 0x0254, math.MaxInt64},
		"last":    {0x0253, ms, 0x0254, math.MaxInt64},
		"dynamic": {0x0255, 2, 0x0254, math.MaxInt64},
		"ceiling": {0x0254, ms},
		"held":    {0x0256, 1, 0x0254, ms},
		"report":  {0x0259, 1, 0x0254, ms},
	} {
		r := newRig(t, 6)
		r.fw.Close()
		r.start(r.fake, 6) // the system's clock
		r.connect()        // the last notification
		tuples, n := scalars(append([]uint64{0x0250, 0}, attrs...)...)
		x := connectTarget()
		x.Count = 6
		r.post(r.control(abi.TypeConnect, n+1, appendTarget(tuples, x)))
		r.settle()
		r.fake.Last().Establish()
		if f, err := r.Next(); err != nil || f.Type != abi.TypeCompletion || f.Aux != 0 || f.Offset != 5 {
			t.Fatalf("%s: response %+v, %v", name, f, err)
		}
	}
}

// TestUntold: what the host was not told of does not exist for it, and data and
// the end of the stream wait.
func TestUntold(t *testing.T) {
	r := newRig(t, 5)
	tuples, n := scalars(0x0250, 2)
	x := connectTarget()
	x.Count = 2
	r.post(r.buffer(abi.TypeBufferAvailable, 0, 100), r.control(abi.TypeConnect, n+1, appendTarget(tuples, x)))
	r.settle()
	eps := r.fake.Endpoints()
	eps[0].Establish()
	eps[0].Deliver([]byte("early"))
	eps[0].DeliverFIN()
	id := uint64(7<<48 | 1)
	for _, f := range []abi.Fields{
		r.buffer(abi.TypeBufferSend, id, 4),
		r.buffer(abi.TypeBufferAvailable, id, 4),
		{Type: abi.TypeTermination, Tag: r.Tag(), Conn: id, Length: 1},
		{Type: abi.TypeCancellation, Tag: r.Tag(), Conn: id, Offset: 0x7777},
	} {
		r.post(f)
		if got := r.next(); got.Aux != 36 || got.Tag != f.Tag {
			t.Errorf("response %+v, want BAD_CONNECTION", got)
		}
	}
	if seen := r.settle(); len(seen) != 0 {
		t.Fatalf("told %+v", seen)
	}
	if n := eps[0].Unread(); n != 5 {
		t.Errorf("%d bytes are in the adapter", n)
	}
	eps[1].Refuse()
	want := []abi.Type{abi.TypeCompletion, abi.TypeCompletion, abi.TypeBufferReceive, abi.TypeTerminated}
	for i, typ := range want {
		if got := r.next(); got.Type != typ || i != 1 && got.Conn != id {
			t.Errorf("response %d: %+v, want type %d", i, got, typ)
		}
	}
}

// TestNoticeMemory: what waits is charged for, and goes when there is no
// memory to wait in.
func TestNoticeMemory(t *testing.T) {
	r := newRig(t, 6)
	tuples, n := scalars(0x0250, 0)
	x := connectTarget()
	x.Count = 3
	f := r.control(abi.TypeConnect, n+1, appendTarget(tuples, x))
	r.post(f)
	r.settle()
	// Two notices fit.
	held := r.counter(abi.CounterMemoryUsed)
	if set, _ := r.attributes(0, 1, abi.AppendSetScalar(nil, abi.AttrMemorySize, held+2*256+255)); set.Aux != 0 {
		t.Fatal(set)
	}
	eps := r.fake.Endpoints()
	eps[0].Establish()
	r.settle()
	r.wantCounter(abi.CounterMemoryUsed, held+256)
	eps[1].Establish()
	if seen := r.settle(); len(seen) != 0 {
		t.Fatalf("told %+v", seen)
	}
	eps[2].Establish()
	for i := range uint32(3) {
		if got := r.next(); got.Offset != i || (got.Flags == abi.FlagFinal) != (i == 2) {
			t.Errorf("response %+v", got)
		}
	}
	r.settle()
	r.wantCounter(abi.CounterNotifyEnd, 1)
	r.wantCounter(abi.CounterMemoryUsed, 3*8192)
}

// TestNoticeEnds: what ends a request or a listener tells first what waits of
// it.
func TestNoticeEnds(t *testing.T) {
	connect := func(r *rig, count uint16, attrs ...uint64) abi.Fields {
		tuples, n := scalars(attrs...)
		x := connectTarget()
		x.Count = count
		f := r.control(abi.TypeConnect, n+1, appendTarget(tuples, x))
		r.post(f)
		r.settle()
		return f
	}
	t.Run("cancellation", func(t *testing.T) {
		r := newRig(t, 6)
		other := connect(r, 1, 0x0250, 0)
		f := connect(r, 3, 0x0250, 0)
		held := connect(r, 1, 0x0256, 5)
		eps := r.fake.Endpoints()
		for _, i := range []int{0, 1, 4} {
			eps[i].Establish()
			r.settle()
		}
		cancel := abi.Fields{Type: abi.TypeCancellation, Tag: r.Tag(), Offset: f.Tag}
		r.post(cancel)
		// Its own first, then what was gathered with it; what was not established after that.
		for i, want := range []struct {
			tag    uint32
			status uint16
			final  bool
		}{{f.Tag, 0, false}, {other.Tag, 0, true}, {f.Tag, 2, false}, {f.Tag, 2, true}} {
			if got := r.next(); got.Tag != want.tag || got.Aux != want.status || (got.Flags == abi.FlagFinal) != want.final {
				t.Errorf("response %d: %+v, want %+v", i, got, want)
			}
		}
		r.expect(abi.Fields{Type: abi.TypeCancelled, Flags: abi.FlagFinal, Tag: cancel.Tag})
		// All of it has happened: too late.
		cancel = abi.Fields{Type: abi.TypeCancellation, Tag: r.Tag(), Offset: held.Tag}
		r.post(cancel)
		if got := r.next(); got.Tag != held.Tag || got.Aux != 0 || got.Flags != abi.FlagFinal {
			t.Errorf("response %+v", got)
		}
		r.expect(abi.Fields{Type: abi.TypeCancelled, Flags: abi.FlagFinal, Aux: 15, Tag: cancel.Tag})
		r.wantCounter(abi.CounterNotifyEnd, 2)
	})
	t.Run("listener", func(t *testing.T) {
		for name, end := range map[string]func(id uint64) abi.Fields{
			"termination":  func(id uint64) abi.Fields { return abi.Fields{Type: abi.TypeTermination, Conn: id} },
			"cancellation": func(id uint64) abi.Fields { return abi.Fields{Type: abi.TypeCancellation, Conn: id} },
		} {
			r := newRig(t, 6)
			tuples, n := scalars(0x0250, 0)
			r.post(r.control(abi.TypeListen, n+1, appendTarget(tuples, listenTarget())))
			l := r.next().Conn
			listener := r.fake.Last()
			for i := range 2 {
				listener.Arrive(netip.AddrPortFrom(peer.Addr(), uint16(1000+i)))
			}
			if seen := r.settle(); len(seen) != 0 {
				t.Fatalf("%s: told %+v", name, seen)
			}
			f := end(l)
			f.Tag = r.Tag()
			r.post(f)
			for i := range 2 {
				if got := r.next(); got.Type != abi.TypeArrival || got.Offset&0xffff != uint32(1000+i) || got.Base != l {
					t.Errorf("%s: response %+v", name, got)
				}
			}
			if got := r.next(); got.Type != abi.TypeTerminated {
				t.Errorf("%s: response %+v", name, got)
			}
		}
	})
	t.Run("drain", func(t *testing.T) {
		r := newRig(t, 6)
		gathered := connect(r, 1, 0x0250, 0)
		held := connect(r, 1, 0x0256, 5)
		f := connect(r, 6, 0x0250, 0, 0x0259, 1)
		riding := connect(r, 1, 0x0256, 5, 0x0257, 1)
		buf := r.reportBuffer(256, 0)
		r.post(buf)
		eps := r.fake.Endpoints()
		for _, e := range eps[:8] {
			e.Establish()
		}
		eps[8].Refuse()
		if seen := r.settle(); len(seen) != 0 {
			t.Fatalf("told %+v", seen)
		}
		r.fw.Command(0, abi.QueueDrain, r.Config)
		if err := r.State(abi.QueueDrained); err != nil {
			t.Fatal(err)
		}
		told := map[uint32]int{}
		for _, got := range r.Pending() {
			told[got.Tag]++
			if got.Tag == buf.Tag && got != reported(abi.TypeCompletion, buf, 4) {
				t.Errorf("response %+v", got)
			}
		}
		if told[gathered.Tag] != 1 || told[held.Tag] != 1 || told[riding.Tag] != 1 || told[buf.Tag] != 1 || told[f.Tag] != 2 {
			t.Errorf("told %v", told)
		}
		r.wantCounter(abi.CounterNotifyEnd, 1)
	})
}

// TestReportCeiling: without a report buffer records go as responses at their
// ceiling.
func TestReportCeiling(t *testing.T) {
	r := newRig(t, 5)
	l := r.timeline()
	tuples, n := scalars(0x0259, 1, 0x0254, 20*ms)
	x := connectTarget()
	x.Count = 3
	r.post(r.control(abi.TypeConnect, n+1, appendTarget(tuples, x)))
	r.settle()
	l.play([]uint64{0, 5 * ms}, []release{{20 * ms, 1}, {25 * ms, 1}})
	r.wantCounter(abi.CounterReportsWaiting, 2)
	// The third waits for a buffer that comes.
	r.fake.Last().Establish()
	l.look()
	buf := r.reportBuffer(256, 0)
	r.post(buf)
	r.expect(reported(abi.TypeCompletion, buf, 1))
	r.wantCounter(abi.CounterReportsWaiting, 3)
	r.wantCounter(abi.CounterReports, 1)
}

// TestNoticesFull: with the adapter's room for responses used up nothing is
// released; then everything is, once.
func TestNoticesFull(t *testing.T) {
	r := newRig(t, 4)
	tuples, n := scalars(0x0250, 0)
	r.post(r.control(abi.TypeConnect, n+1, appendTarget(tuples, connectTarget())))
	r.settle()
	l := r.timeline()
	r.fake.Last().Establish()
	l.look()
	// Targets that all fail at once.
	many := abi.Target{Protocol: 6, Count: 9000, Local: netip.MustParseAddrPort("0.0.0.0:0"), Remote: netip.MustParseAddrPort("224.0.0.1:1")}
	tuples, n = scalars(0x0256, 1) // their failures take no gathered notice with them
	f := r.control(abi.TypeConnect, n+1, appendTarget(tuples, many))
	r.post(f)
	if err := r.Wait("the adapter to be full", func() bool { return r.counter(abi.CounterRequestsStalled) > 0 }); err != nil {
		t.Fatal(err)
	}
	r.fw.StepPolicyClock(2e9)
	r.quiet()
	r.wantCounter(abi.CounterNotifyCeiling, 0)
	told := 0
	for range 9001 {
		if got := r.next(); got.Tag != f.Tag {
			told++
		}
	}
	if told != 1 {
		t.Errorf("the notice was told %d times", told)
	}
}

// TestNoticeReset resets while notices wait in every place.
func TestNoticeReset(t *testing.T) {
	r := newRig(t, 6)
	for _, attrs := range [][]uint64{{0x0250, 0}, {0x0250, 1, 0x0256, 1}, {0x0257, 1, 0x0256, 1}, {0x0259, 1}} {
		tuples, n := scalars(attrs...)
		r.post(r.control(abi.TypeConnect, n+1, appendTarget(tuples, connectTarget())))
		r.settle()
		if attrs[0] == 0x0257 {
			r.fake.Last().Refuse()
		} else {
			r.fake.Last().Establish()
		}
	}
	r.post(r.reportBuffer(256, 0))
	r.settle()
	r.fw.Reset()
	r.wantCounter(abi.CounterMemoryUsed, 0)
}

// TestNotifyAttributes sets and gets them as defaults.
func TestNotifyAttributes(t *testing.T) {
	r := newRig(t, 4)
	for _, c := range []struct {
		a    abi.Attribute
		v    uint64
		want abi.Status
	}{
		{0x0250, 1 << 20, 0}, {0x0250, 1<<20 + 1, 52}, {0x0251, 64 << 20, 0}, {0x0251, 64<<20 + 1, 52},
		{0x0252, math.MaxInt64, 0}, {0x0252, 1 << 63, 52}, {0x0253, 1 << 63, 52}, {0x0254, 1 << 63, 52}, {0x0254, 0, 0},
		{0x0255, 15, 0}, {0x0255, 16, 52}, {0x0256, 8 << 20, 0}, {0x0256, 8<<20 + 1, 52}, {0x0257, 2, 52}, {0x0259, 2, 52}, {0x0259, 1, 0},
	} {
		_, buf := r.attributeRequest(r.control(abi.TypeConnectionAttr, 1, abi.AppendSetScalar(nil, c.a, c.v)))
		if s, _ := abi.TupleResult(buf); s != c.want {
			t.Errorf("set %#x to %d: %v, want %v", c.a, c.v, s, c.want)
		}
	}
	value := func(mode, scope byte, limit uint32, pattern string) []byte {
		return abi.AppendNotifyPattern(nil, abi.NotifyPattern{Mode: mode, Scope: scope, Bytes: limit, Pattern: []byte(pattern)})
	}
	old := make([]byte, 16)
	for _, c := range []struct {
		v    []byte
		want abi.Status
	}{
		{value(1, 0, 0, "GET "), 0}, {value(2, 1, 1<<20, "\r\n\r\n"), 0}, {value(2, 0, 1<<20+1, "x"), 52}, {value(3, 0, 0, "x"), 52},
		{value(1, 2, 0, "x"), 52}, {value(1, 0, 0, ""), 52}, {make([]byte, 15), 38}, {value(1, 0, 0, string(make([]byte, 65))), 38},
		{slices.Concat([]byte{1, 0, 1, 0, 0, 0, 0, 0}, []byte{0, 0, 0, 0, 0, 0, 0, 0x80}, []byte("x")), 52}, {value(0, 0, 0, "off"), 0},
	} {
		tuple := abi.AppendTuple(nil, true, abi.AttrNotifyPattern, c.v)
		_, buf := r.attributeRequest(r.control(abi.TypeConnectionAttr, 1, tuple))
		s, n := abi.TupleResult(buf)
		if s != c.want || s == 0 && (int(n) != len(old) || n <= uint32(len(c.v)) && !slices.Equal(buf[8:8+n], old)) {
			t.Errorf("set % x: %v, length %d, %x before, want %v and % x", c.v, s, n, buf[8:], c.want, old)
		}
		if s == 0 {
			if old = c.v; c.v[0] == 0 {
				old = make([]byte, 16)
			}
		}
		get := r.control(abi.TypeConnectionAttr, 1, abi.AppendGet(nil, abi.AttrNotifyPattern, 80))
		_, buf = r.attributeRequest(get)
		if _, n := abi.TupleResult(buf); !slices.Equal(buf[8:8+n], old) {
			t.Errorf("after % x the value is % x", c.v, buf[8:8+n])
		}
	}
}
