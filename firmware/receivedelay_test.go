// SPDX-License-Identifier: Apache-2.0

package firmware_test

import (
	"bytes"
	"math"
	"slices"
	"testing"

	"toebox/firmware"
	"toebox/firmware/engine"
	"toebox/firmware/engine/enginetest"
	"toebox/vdev/abi"
)

// setAll sets scalar attributes of a connection: attribute, value, ...
func (r *rig) setAll(conn uint64, list ...uint64) {
	r.t.Helper()
	tuples, n := scalars(list...)
	f, _ := r.attributes(conn, n, tuples)
	if f.Aux != 0 {
		r.t.Fatalf("set %v: %+v", list, f)
	}
}

// pause pauses the queue.
func (r *rig) pause() {
	r.t.Helper()
	r.fw.Command(0, abi.QueuePause, r.Config)
	if err := r.State(abi.QueuePaused); err != nil {
		r.t.Fatal(err)
	}
}

// step is a time at which bytes arrive, in ns from the start, and how many.
type step struct {
	at uint64
	n  int
}

// delivery is how many bytes were reported at a time, in one response.
type delivery struct {
	at     uint64
	length int
}

// arrivals lets bytes arrive and compares when the host is told of them: not
// 1 ns earlier. It returns the responses.
func (l *timeline) arrivals(ep *enginetest.Endpoint, in []step, want []delivery) []abi.Fields {
	l.t.Helper()
	var points []uint64
	for _, s := range in {
		points = append(points, s.at)
	}
	for _, w := range want {
		points = append(points, w.at)
		if w.at > 0 {
			points = append(points, w.at-1)
		}
	}
	slices.Sort(points)
	var got []delivery
	var seen []abi.Fields
	look := func() {
		l.t.Helper()
		for _, f := range l.settle() {
			seen = append(seen, f)
			got = append(got, delivery{l.now, int(f.Length)})
		}
	}
	for _, at := range slices.Compact(points) {
		if at > l.now {
			l.fw.StepPolicyClock(at - l.now)
			l.now = at
			look()
		}
		for len(in) > 0 && in[0].at == at {
			ep.Deliver(make([]byte, in[0].n))
			in = in[1:]
			look()
		}
	}
	if !slices.Equal(got, want) {
		l.t.Errorf("told %v, want %v", got, want)
	}
	return seen
}

// Attributes of SPEC.md §14.6.
const (
	notifyTime, notifyBytes, notifyDynamic, notifyMax, expedited = 0x0240, 0x0241, 0x0242, 0x0243, 0x0244
	receiveWindow                                                = 0x0207
)

// Counters of SPEC.md §14.6.
const (
	waits = 97 + iota
	byTime
	byBytes
	byMax
	byRoom
	byEnd
)

const (
	byArrivals = 121 + iota
	byPosts
	byConsumption
	byAmounts
	byUnits
	byParts
)

// bursts are arrivals of 10 bytes, at offsets in ms, of bursts 100 ms apart.
func bursts(offsets ...[]uint64) (in []step) {
	for i, b := range offsets {
		for _, at := range b {
			in = append(in, step{(uint64(i)*100 + at) * ms, 10})
		}
	}
	return in
}

// atOnce are deliveries of what came in the first n steps.
func atOnce(in []step, n int, more ...delivery) (want []delivery) {
	for _, s := range in[:n] {
		want = append(want, delivery{s.at, s.n})
	}
	return append(want, more...)
}

// TestReceiveDelay compares when received bytes are told of with what SPEC.md
// §14.6 says.
func TestReceiveDelay(t *testing.T) {
	three := []uint64{0, 2, 5}
	learnt := bursts(three, three, three, three, three, []uint64{0, 2}, three)
	single := bursts(three, []uint64{0}, three, three, three)
	for _, c := range []struct {
		name     string
		attrs    []uint64
		in       []step
		want     []delivery
		counters map[abi.Counter]uint64
	}{
		{"default", nil, []step{{0, 3}, {ms, 4}}, []delivery{{0, 3}, {ms, 4}}, nil},
		{"time", []uint64{notifyTime, 5 * ms, notifyMax, 50 * ms}, []step{{ms, 3}, {2 * ms, 4}, {6*ms - 1, 5}, {6 * ms, 6}},
			[]delivery{{6 * ms, 12}, {11 * ms, 6}}, map[abi.Counter]uint64{waits: 2, byTime: 2}},
		{"time beyond the maximum", []uint64{notifyTime, 5 * ms}, []step{{0, 3}, {999_999, 4}, {2 * ms, 1}},
			[]delivery{{ms, 7}, {3 * ms, 1}}, map[abi.Counter]uint64{waits: 2, byMax: 2}},
		{"bytes", []uint64{notifyBytes, 10, notifyMax, 20 * ms}, []step{{0, 9}, {3 * ms, 3}, {4 * ms, 10}, {5 * ms, 9}},
			[]delivery{{3 * ms, 12}, {4 * ms, 10}, {25 * ms, 9}}, map[abi.Counter]uint64{waits: 3, byBytes: 2, byMax: 1}},
		{"bytes and time", []uint64{notifyBytes, 10, notifyTime, 2 * ms, notifyMax, 20 * ms},
			[]step{{0, 4}, {ms, 6}, {10 * ms, 4}, {11 * ms, 5}},
			[]delivery{{ms, 10}, {12 * ms, 9}}, map[abi.Counter]uint64{waits: 2, byBytes: 1, byTime: 1}},
		{"no maximum", []uint64{notifyBytes, 10, notifyMax, 0}, []step{{0, 3}}, []delivery{{0, 3}}, nil},
		{"for ever", []uint64{notifyBytes, 10, notifyMax, math.MaxInt64, notifyTime, math.MaxInt64},
			[]step{{0, 9}, {90_000_000 * ms, 1}}, []delivery{{90_000_000 * ms, 10}}, map[abi.Counter]uint64{waits: 1, byBytes: 1}},
		{"expedited", []uint64{notifyTime, 5 * ms, notifyMax, 50 * ms, expedited, 1}, []step{{0, 3}}, []delivery{{0, 3}}, nil},
		{"half of the window", []uint64{notifyTime, 5 * ms, notifyMax, 50 * ms, receiveWindow, 8192},
			[]step{{0, 4095}, {ms, 1}}, []delivery{{ms, 4096}}, map[abi.Counter]uint64{waits: 1, byRoom: 1}},
		// Four bursts of 30 bytes in 5 ms are remembered when the fifth begins, which is told of as a whole, with
		// its last byte; the next stops at 20, which are told of after 6.25 ms; the last is judged by that one.
		{"arrivals", []uint64{notifyDynamic, 1, notifyMax, 20 * ms}, learnt,
			atOnce(learnt, 12, delivery{405 * ms, 30}, delivery{506*ms + ms/4, 20}, delivery{602 * ms, 20}, delivery{607*ms + ms/2, 10}),
			map[abi.Counter]uint64{waits: 4, byArrivals: 4}},
		{"arrivals, one alone", []uint64{notifyDynamic, 1, notifyMax, 20 * ms}, single, atOnce(single, 13), nil},
		{"arrivals, one alone, and a time", []uint64{notifyDynamic, 1, notifyMax, 20 * ms, notifyTime, 19 * ms}, single[:4],
			[]delivery{{19 * ms, 30}, {119 * ms, 10}}, map[abi.Counter]uint64{waits: 2, byTime: 2}},
		{"amounts", []uint64{notifyDynamic, 8, notifyMax, 20 * ms}, learnt,
			atOnce(learnt, 12, delivery{405 * ms, 30}, delivery{520 * ms, 20}, delivery{602 * ms, 20}, delivery{625 * ms, 10}),
			map[abi.Counter]uint64{waits: 4, byAmounts: 2, byMax: 2}},
		{"all inputs without history", []uint64{notifyDynamic, 15}, []step{{0, 1}, {1, 2}}, []delivery{{0, 1}, {1, 2}}, nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := newRig(t, 6)
			l := r.timeline()
			id, ep := r.connect()
			if c.attrs != nil {
				r.setAll(id, c.attrs...)
			}
			for range c.want {
				r.post(r.buffer(abi.TypeBufferAvailable, 0, 16384))
			}
			l.arrivals(ep, c.in, c.want)
			for k := abi.Counter(waits); k <= byParts; k++ {
				r.wantCounter(k, c.counters[k])
			}
		})
	}
}

// lateEngine makes endpoints at which bytes come when they have just been looked
// at.
type lateEngine struct {
	engine.Engine
	comes chan []byte
}

func (e *lateEngine) Open(p engine.Protocol, v6 bool, s engine.Sink) (engine.Endpoint, error) {
	ep, err := e.Engine.Open(p, v6, s)
	return &late{ep, e.comes}, err
}

type late struct {
	engine.Endpoint
	comes chan []byte
}

func (p *late) Info() engine.Info {
	i := p.Endpoint.Info()
	select {
	case b := <-p.comes:
		p.Endpoint.(*enginetest.Endpoint).Deliver(b)
	default:
	}
	return i
}

// TestReceiveDelayLate: bytes that come while the worker looks at the connection
// wait like others.
func TestReceiveDelayLate(t *testing.T) {
	comes := make(chan []byte, 1)
	r := newRig(t, 6, func(c *firmware.Config) { c.Engine = &lateEngine{c.Engine, comes} })
	l := r.timeline()
	id, _ := r.connect()
	r.setAll(id, notifyTime, 10*ms, notifyMax, 10*ms)
	comes <- []byte("abc")
	r.post(r.buffer(abi.TypeBufferAvailable, id, 8))
	if seen := r.settle(); len(seen) != 0 || len(comes) != 0 {
		t.Fatalf("told %+v, %d pieces to come", seen, len(comes))
	}
	r.wantCounter(waits, 1)
	l.fw.StepPolicyClock(10 * ms)
	if seen := r.settle(); len(seen) != 1 || seen[0].Length != 3 {
		t.Errorf("told %+v", seen)
	}
	r.wantCounter(byTime, 1)
}

// waiting is a connection whose first bytes, "abc", wait for 10 ms.
func (r *rig) waiting() (uint64, *enginetest.Endpoint, *timeline) {
	r.t.Helper()
	l := r.timeline()
	id, ep := r.connect()
	r.setAll(id, notifyTime, 10*ms, notifyMax, 10*ms)
	ep.Deliver([]byte("abc"))
	if seen := r.settle(); len(seen) != 0 {
		r.t.Fatalf("told %+v", seen)
	}
	return id, ep, l
}

// TestReceiveDelayEnds: whatever ends, and what fills the buffers, lets go what
// waits, before it and without loss.
func TestReceiveDelayEnds(t *testing.T) {
	own := func(r *rig, id uint64, n int) abi.Fields {
		b := r.buffer(abi.TypeBufferAvailable, id, n)
		r.post(b)
		return b
	}
	got := func(b abi.Fields, offset, n int, final bool) abi.Fields {
		f := abi.Fields{Type: abi.TypeBufferReceive, Tag: b.Tag, Base: b.Base, Conn: b.Conn, Offset: uint32(offset), Length: uint32(n)}
		if final {
			f.Flags = abi.FlagFinal
		}
		return f
	}
	done := func(b abi.Fields, s uint16, offset int) abi.Fields {
		return abi.Fields{Type: abi.TypeBufferDone, Flags: abi.FlagFinal, Aux: s, Tag: b.Tag, Base: b.Base, Conn: b.Conn, Offset: uint32(offset)}
	}
	for _, c := range []struct {
		name string
		by   abi.Counter
		run  func(r *rig, id uint64, ep *enginetest.Endpoint, l *timeline)
	}{
		{"FIN", byEnd, func(r *rig, id uint64, ep *enginetest.Endpoint, _ *timeline) {
			b := own(r, id, 8)
			ep.DeliverFIN()
			r.expect(got(b, 0, 3, false))
			r.expect(done(b, 13, 3))
			r.expect(abi.Fields{Type: abi.TypeTerminated, Flags: abi.FlagFinal, Conn: id, Length: 5})
		}},
		{"FIN after the host's", byEnd, func(r *rig, id uint64, ep *enginetest.Endpoint, l *timeline) {
			b := own(r, id, 8)
			f := abi.Fields{Type: abi.TypeTermination, Tag: r.Tag(), Conn: id, Length: 2}
			r.post(f)
			r.expect(abi.Fields{Type: abi.TypeTerminated, Flags: abi.FlagFinal, Tag: f.Tag, Conn: id, Length: 4})
			ep.AckFIN()
			if seen := r.settle(); len(seen) != 0 {
				r.t.Fatalf("told %+v", seen)
			}
			ep.DeliverFIN()
			r.expect(got(b, 0, 3, false))
		}},
		{"reset", byEnd, func(r *rig, id uint64, ep *enginetest.Endpoint, _ *timeline) {
			b := own(r, id, 8)
			ep.Reset()
			r.expect(got(b, 0, 3, false))
			r.expect(done(b, 5, 3))
			r.expect(abi.Fields{Type: abi.TypeTerminated, Flags: abi.FlagFinal, Aux: 5, Conn: id, Length: 2})
		}},
		{"full buffers", byRoom, func(r *rig, id uint64, ep *enginetest.Endpoint, l *timeline) {
			a, b := r.buffer(abi.TypeBufferAvailable, id, 2), r.buffer(abi.TypeBufferAvailable, id, 4)
			// The first alone would be full at once; both are posted in one pass.
			r.pause()
			r.post(a, b)
			r.fw.Command(0, abi.QueueResume, r.Config)
			if seen := r.settle(); len(seen) != 0 {
				r.t.Fatalf("told %+v", seen)
			}
			ep.Deliver([]byte("defg"))
			r.expect(got(a, 0, 2, true))
			r.expect(got(b, 0, 4, true))
			if n := ep.Unread(); n != 1 {
				r.t.Errorf("%d bytes are left", n)
			}
		}},
		{"a small buffer", byRoom, func(r *rig, id uint64, ep *enginetest.Endpoint, l *timeline) {
			r.expect(got(own(r, id, 3), 0, 3, true))
		}},
		{"cancellation", byEnd, func(r *rig, id uint64, ep *enginetest.Endpoint, _ *timeline) {
			b := own(r, id, 8)
			f := abi.Fields{Type: abi.TypeCancellation, Tag: r.Tag(), Conn: id, Offset: b.Tag}
			r.post(f)
			r.expect(got(b, 0, 3, false))
			r.expect(done(b, 2, 3))
			r.expect(abi.Fields{Type: abi.TypeCancelled, Flags: abi.FlagFinal, Tag: f.Tag, Conn: id})
		}},
		{"cancellation of the buffer that it fills", byRoom, func(r *rig, id uint64, ep *enginetest.Endpoint, _ *timeline) {
			b := r.buffer(abi.TypeBufferAvailable, id, 3)
			f := abi.Fields{Type: abi.TypeCancellation, Tag: r.Tag(), Conn: id, Offset: b.Tag}
			r.post(b)
			r.expect(got(b, 0, 3, true))
			r.post(f)
			r.expect(abi.Fields{Type: abi.TypeCancelled, Flags: abi.FlagFinal, Aux: 15, Tag: f.Tag, Conn: id})
		}},
		{"abort", byEnd, func(r *rig, id uint64, ep *enginetest.Endpoint, _ *timeline) {
			b := own(r, id, 8)
			f := abi.Fields{Type: abi.TypeTermination, Tag: r.Tag(), Conn: id, Length: 1}
			r.post(f)
			r.expect(got(b, 0, 3, false))
			r.expect(done(b, 12, 3))
			r.expect(abi.Fields{Type: abi.TypeTerminated, Flags: abi.FlagFinal, Tag: f.Tag, Conn: id, Length: 1})
		}},
		{"end of receiving", byEnd, func(r *rig, id uint64, ep *enginetest.Endpoint, _ *timeline) {
			b := own(r, id, 8)
			f := abi.Fields{Type: abi.TypeTermination, Tag: r.Tag(), Conn: id, Length: 3}
			r.post(f)
			r.expect(got(b, 0, 3, false))
			r.expect(done(b, 12, 3))
			r.expect(abi.Fields{Type: abi.TypeTerminated, Flags: abi.FlagFinal, Tag: f.Tag, Conn: id, Length: 4})
		}},
		{"drain", byEnd, func(r *rig, id uint64, ep *enginetest.Endpoint, _ *timeline) {
			b := own(r, id, 8)
			r.settle()
			r.fw.Command(0, abi.QueueDrain, r.Config)
			r.expect(got(b, 0, 3, false))
			r.expect(done(b, 2, 3))
		}},
		{"stop, bulk buffers", byEnd, func(r *rig, id uint64, ep *enginetest.Endpoint, _ *timeline) {
			b := own(r, 0, 2)
			r.settle()
			r.fw.Stop()
			f := got(b, 0, 2, true)
			f.Conn = id
			r.expect(f)
			if n := ep.Unread(); n != 1 {
				r.t.Errorf("%d bytes are left", n)
			}
		}},
		{"attribute", 0, func(r *rig, id uint64, ep *enginetest.Endpoint, _ *timeline) {
			b := own(r, id, 8)
			f := r.control(abi.TypeConnectionAttr, 1, abi.AppendSetScalar(nil, notifyTime, 0))
			f.Conn = id
			r.post(f)
			r.next()
			r.expect(got(b, 0, 3, false))
		}},
		{"attribute, longer ago", byTime, func(r *rig, id uint64, ep *enginetest.Endpoint, l *timeline) {
			b := own(r, id, 8)
			l.to(5 * ms)
			f := r.control(abi.TypeConnectionAttr, 1, abi.AppendSetScalar(nil, notifyTime, 5*ms))
			f.Conn = id
			r.post(f)
			r.next()
			r.expect(got(b, 0, 3, false))
		}},
		{"no buffer in time", byTime, func(r *rig, id uint64, ep *enginetest.Endpoint, l *timeline) {
			l.to(10 * ms)
			r.wantCounter(abi.CounterPoolEmpty, 1)
			ep.Deliver([]byte("de")) // begins another wait
			l.look()
			l.to(15 * ms)
			b := own(r, id, 8)
			r.expect(got(b, 0, 3, false))
			l.to(20*ms - 1)
			if len(l.seen) != 0 {
				r.t.Errorf("told too early: %+v", l.seen)
			}
			l.to(20 * ms)
			if len(l.seen) != 1 || l.seen[0] != got(b, 3, 2, false) {
				r.t.Errorf("told %+v", l.seen)
			}
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := newRig(t, 6)
			id, ep, l := r.waiting()
			c.run(r, id, ep, l)
			for k := abi.Counter(byTime); k <= byParts; k++ {
				if n := r.counter(k); (n != 0) != (k == c.by) {
					t.Errorf("%v is %d", k, n)
				}
			}
		})
	}
}

// TestReceiveDelayBulk: what is ripe at one time goes out in one run with one
// interrupt.
func TestReceiveDelayBulk(t *testing.T) {
	r := newRig(t, 10) // no response of the test is at the end of the table
	r.fw.SetPolicyClock(true)
	const n = 100 // more than there are turns in a pass
	ids := map[uint64]bool{}
	for i := range n {
		id, ep := r.connect()
		ids[id] = true
		r.setAll(id, notifyTime, 10*ms, notifyMax, 10*ms)
		r.post(r.buffer(abi.TypeBufferAvailable, 0, 8))
		ep.Deliver([]byte{byte(i)})
	}
	r.settle()
	r.wantCounter(abi.CounterReceiveWaits, n)
	r.pause() // the counters are exact then
	writes, interrupts := r.counter(abi.CounterDescriptorWrites), r.counter(abi.CounterInterrupts)
	r.fw.Command(0, abi.QueueResume, r.Config)
	r.fw.StepPolicyClock(10 * ms)
	for i := range n {
		f := r.next()
		if !ids[f.Conn] || f.Length != 1 {
			t.Fatalf("response %d: %+v", i, f)
		}
		delete(ids, f.Conn)
	}
	r.pause() // the counters are exact then
	if runs := r.counter(abi.CounterDescriptorWrites) - writes; runs != 1 {
		t.Errorf("%d runs of responses", runs)
	}
	if got := r.counter(abi.CounterInterrupts) - interrupts; got != 1 {
		t.Errorf("%d interrupts", got)
	}
}

// TestReceiveDelayReal lets the real policy clock end a wait.
func TestReceiveDelayReal(t *testing.T) {
	r := newRig(t, 4)
	id, ep := r.connect()
	r.setAll(id, notifyTime, ms, notifyMax, ms)
	b := r.buffer(abi.TypeBufferAvailable, id, 8)
	r.post(b)
	ep.Deliver([]byte("abc"))
	if seen := r.settle(); len(seen) != 0 {
		t.Fatalf("told %+v", seen)
	}
	r.clock.advance(999_999)
	if seen := r.settle(); len(seen) != 0 {
		t.Fatalf("told %+v", seen)
	}
	r.clock.advance(1)
	f := r.next() // the worker sleeps for 1 ms at most: a timer wakes it
	if f.Tag != b.Tag || f.Length != 3 || !bytes.Equal(r.bytes(b)[:3], []byte("abc")) {
		t.Errorf("told %+v", f)
	}
}

// TestReceiveDelayDatagrams: datagrams do not wait, whatever the defaults say.
func TestReceiveDelayDatagrams(t *testing.T) {
	r := newRig(t, 5)
	f := r.control(abi.TypeConnectionAttr, 2, abi.AppendSetScalar(abi.AppendSetScalar(nil, notifyTime, 10*ms), notifyBytes, 100))
	r.post(f)
	if got := r.next(); got.Aux != 0 {
		t.Fatalf("%+v", got)
	}
	x := connectTarget()
	x.Protocol = 17
	r.post(r.target(abi.TypeConnect, x))
	id := r.next().Conn
	b := r.buffer(abi.TypeBufferAvailable, id, 8)
	r.post(b)
	r.fake.Last().Deliver([]byte("abc"))
	if got := r.next(); got.Tag != b.Tag || got.Length != 3 {
		t.Errorf("told %+v", got)
	}
	if got, buf := r.attributes(id, 1, abi.AppendSetScalar(nil, notifyTime, 0)); got.Aux != 1 || buf[2] != 16 {
		t.Errorf("NOTIFY_TIME of a datagram endpoint: %+v, status %d", got, buf[2])
	}
}
