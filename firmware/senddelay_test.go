// SPDX-License-Identifier: Apache-2.0

package firmware_test

import (
	"bytes"
	"slices"
	"testing"
	"time"

	"toebox/firmware/engine"
	"toebox/firmware/engine/enginetest"
	"toebox/vdev/abi"
)

// sender is a connection whose sends may wait, and what it has sent.
type sender struct {
	*rig
	id   uint64
	ep   *enginetest.Endpoint
	want []byte
}

// sender connects, with attributes, and completes sends when they are read.
func (r *rig) sender(attrs ...uint64) *sender {
	r.t.Helper()
	id, ep := r.connect()
	r.set(id, abi.AttrCompletionPoint, 0)
	for i := 0; i < len(attrs); i += 2 {
		r.set(id, abi.Attribute(attrs[i]), attrs[i+1])
	}
	return &sender{rig: r, id: id, ep: ep}
}

// send posts sends of n bytes each, and wants so many of all that were posted to
// be done then.
func (s *sender) send(asap bool, sizes ...int) []abi.Fields {
	s.t.Helper()
	var fs []abi.Fields
	for _, n := range sizes {
		f := s.buffer(abi.TypeBufferSend, s.id, n)
		f.ASAP = asap
		s.want = append(s.want, s.bytes(f)...)
		fs = append(fs, f)
	}
	s.held(fs...)
	return fs
}

// done wants results of sends, in that order, and no others.
func (r *rig) done(what string, fs ...abi.Fields) {
	r.t.Helper()
	// A pass that began before the clock was moved may answer the first of these
	// requests, and one that goes by the new time publishes before it sends.
	got := append(r.settle(), r.settle()...)
	for i, f := range fs {
		if i >= len(got) || got[i] != readDone(f, 0, f.Length-f.Offset) {
			r.t.Fatalf("%s: result %d of %+v, want that of %+v", what, i, got, f)
		}
	}
	if len(got) != len(fs) {
		r.t.Fatalf("%s: %d results, want %d: %+v", what, len(got), len(fs), got[len(fs):])
	}
}

func (s *sender) whole() {
	s.t.Helper()
	if !bytes.Equal(s.ep.Sent(), s.want) {
		s.t.Errorf("%d bytes were sent, want %d, or others", len(s.ep.Sent()), len(s.want))
	}
}

// path says what the network is like.
func (s *sender) path(cwnd uint32, rtt time.Duration) {
	i := s.ep.Info()
	i.MSS, i.Cwnd, i.SendWindow, i.RTT = 100, cwnd, 1<<20, rtt
	s.ep.SetInfo(i)
}

// TestDelayWindow: what would not fit in the congestion window stays in host
// memory, until it does.
func TestDelayWindow(t *testing.T) {
	r := newRig(t, 5)
	s := r.sender(uint64(abi.AttrDelayCriteria), 1)
	s.path(3, 0)
	first := s.send(false, 299)
	r.done("below the window", first...)
	second := s.send(false, 1)
	r.done("one byte below", second...)
	third := s.send(false, 50, 70)
	r.done("a full window")
	r.wantCounter(abi.CounterDelayCwnd, 2)
	fourth := s.send(false, 70_000)
	r.done("still full")
	r.wantCounter(abi.CounterDelayCwnd, 3)
	if len(s.ep.Sent()) != 300 {
		t.Fatalf("%d bytes were read", len(s.ep.Sent()))
	}
	// A turn of 64 KiB fills the window again: the rest waits for another time.
	s.ep.Ack(1)
	r.done("an acknowledgement", third...)
	r.wantCounter(abi.CounterDelayOver, 1)
	r.wantCounter(abi.CounterDelayCwnd, 4)
	if n := len(s.ep.Sent()); n != 300+64<<10 {
		t.Fatalf("%d bytes were read", n)
	}
	r.clock.advance(time.Millisecond - 1)
	r.done("before DELAY_AGE")
	r.clock.advance(1)
	r.done("after DELAY_AGE", fourth...)
	r.wantCounter(abi.CounterDelayAge, 1)
	s.whole()
}

// TestDelayLimits: the list of a queue runs by count, by bytes, by age, as a
// whole and in the order of the bulk list, and begins again with nothing.
func TestDelayLimits(t *testing.T) {
	r := newRig(t, 6)
	with := func(attrs ...uint64) *sender {
		t.Helper()
		s := r.sender(append([]uint64{uint64(abi.AttrDelayCriteria), 1, uint64(abi.AttrDelayAge), 1000 * ms}, attrs...)...)
		s.path(1, 0)
		r.done("the first", s.send(false, 100)...)
		return s
	}
	count, size, age := uint64(abi.AttrDelayCount), uint64(abi.AttrDelayBytes), uint64(abi.AttrDelayAge)
	a := with(uint64(abi.AttrPriority), 1)
	b := with(uint64(abi.AttrPriority), 7, count, 5)
	c := with(size, 1000)
	d := with(age, 20*ms, uint64(abi.AttrStarvation), 30*ms)

	fa := a.send(false, 10, 20)
	fb := b.send(false, 30, 40)
	r.done("four")
	fc := a.send(false, 10)
	r.done("five", append(append(slices.Clone(fb), fa...), fc...)...)
	r.wantCounter(abi.CounterDelayCount, 1)
	r.wantCounter(abi.CounterTurnsPriority, 1)

	fa = a.send(false, 10, 20, 30, 40, 50, 60) // the least of another list was 5
	fc = c.send(false, 789)
	r.done("999 bytes")
	r.done("1000 bytes", append(append(fc, c.send(false, 1)...), fa...)...)
	r.wantCounter(abi.CounterDelayBytes, 1)

	fa = a.send(false, 10)
	r.done("one")
	r.clock.advance(time.Millisecond)
	fd := d.send(false, 10)
	r.done("one, and one 1 ms later")
	r.clock.advance(20*time.Millisecond - 1)
	r.done("before the age")
	r.clock.advance(1)
	// What has been in the list for STARVATION, 10 ms, goes first; else the one
	// with the higher priority would.
	r.done("at the age", append(fa, fd...)...)
	r.wantCounter(abi.CounterDelayAge, 1)
	r.wantCounter(abi.CounterTurnsStarved, 1)
	for _, s := range []*sender{a, b, c, d} {
		s.whole()
	}
	r.wantCounter(abi.CounterDelayCwnd, 15)
}

// TestDelayASAP: ASAP lets the list run, its own connection first; or shortens
// its limits to 1/8.
func TestDelayASAP(t *testing.T) {
	r := newRig(t, 6)
	mode := uint64(abi.AttrASAPMode)
	a := r.sender(uint64(abi.AttrDelayCriteria), 1)
	b := r.sender(uint64(abi.AttrDelayCriteria), 1)
	c := r.sender(uint64(abi.AttrDelayCriteria), 1, mode, 1, uint64(abi.AttrDelayCount), 24, uint64(abi.AttrDelayAge), 80*ms)
	for _, s := range []*sender{a, b, c} {
		s.path(1, 0)
		r.done("the first", s.send(false, 100)...)
	}
	fa := a.send(false, 10, 20)
	fb := b.send(false, 30)
	r.done("no ASAP")
	fb = append(fb, b.send(true, 40)...)
	r.done("ASAP", append(fb, fa...)...)
	r.wantCounter(abi.CounterDelayASAP, 1)

	fc := c.send(true, 10, 20)
	r.done("ASAP_MODE 1")
	r.clock.advance(10*time.Millisecond - 1)
	r.done("before 1/8 of DELAY_AGE")
	r.clock.advance(1)
	r.done("after 1/8 of DELAY_AGE", fc...)
	r.wantCounter(abi.CounterDelayAge, 1)
	r.done("1/8 of DELAY_COUNT", c.send(true, 10, 20, 30)...)
	r.wantCounter(abi.CounterDelayCount, 1)
	r.wantCounter(abi.CounterDelayASAP, 1)
	for _, s := range []*sender{a, b, c} {
		s.whole()
	}
}

// TestDelayBandwidth: enough is what the peer acknowledges in a round trip, and
// DELAY_DYNAMIC sets the limits from that.
func TestDelayBandwidth(t *testing.T) {
	r := newRig(t, 5)
	s := r.sender(uint64(abi.AttrDelayCriteria), 2, uint64(abi.AttrDelayDynamic), 1, uint64(abi.AttrDelayAge), 7*ms)
	s.path(1000, 4*time.Millisecond)
	r.done("no sample", s.send(false, 5000)...)
	r.clock.advance(4*time.Millisecond - 1)
	s.ep.Ack(1000)
	r.done("a sample that is too short", s.send(false, 1000)...)
	// 2,000 bytes in 8 ms are 1,000 in a round trip; 4,000 are held.
	r.clock.advance(4*time.Millisecond + 1)
	s.ep.Ack(1000)
	r.settle()
	f := s.send(false, 1999)
	r.done("enough")
	r.wantCounter(abi.CounterDelayBandwidth, 1)
	r.done("half of what is held", append(f, s.send(false, 1)...)...)
	r.wantCounter(abi.CounterDelayBytes, 1)
	// Held are 6,000: the peer takes 12 ms for half of it, but DELAY_AGE is 7.
	f = s.send(false, 10)
	r.done("6,000 held")
	r.clock.advance(7*time.Millisecond - 1)
	r.done("before DELAY_AGE")
	r.clock.advance(1)
	r.done("at DELAY_AGE", f...)
	// Another sample: 5,410 bytes in 7 ms or more; held are 600.
	s.ep.Ack(5410)
	r.settle()
	s.set(s.id, abi.AttrDelayAge, 1000*ms)
	s.path(1000, 100*time.Microsecond)
	g := s.send(false, 5)
	r.done("600 held")
	// 300 bytes of 5,410 in 7 ms, rounded down.
	age := 300 * 7 * time.Millisecond / 5410
	r.clock.advance(age - 1)
	r.done("before its time")
	r.clock.advance(1)
	r.done("at its time", g...)
	s.whole()
}

// TestDelayOthers: criteria that look at the rest of the adapter.
func TestDelayOthers(t *testing.T) {
	t.Run("memory", func(t *testing.T) {
		r := newRig(t, 5)
		s := r.sender(uint64(abi.AttrDelayCriteria), 4)
		used := r.counter(abi.CounterMemoryUsed)
		limit := func(n uint64) {
			t.Helper()
			if f, _ := r.attributes(0, 1, abi.AppendSetScalar(nil, abi.AttrMemorySize, n)); f.Aux != 0 {
				t.Fatalf("set: %+v", f)
			}
		}
		limit((used+64)/3*4 + 8)
		r.done("3/4 not reached", s.send(false, 10)...)
		limit((used + 64) / 3 * 4)
		g := s.send(false, 10, 10)
		r.done("3/4 reached")
		r.wantCounter(abi.CounterDelayMemory, 2)
		r.clock.advance(time.Millisecond)
		r.done("after DELAY_AGE", g...)
	})
	t.Run("payload", func(t *testing.T) {
		r := newRig(t, 5)
		s := r.sender(uint64(abi.AttrDelayCriteria), 4)
		id, ep := r.connect()
		r.headroom(100_000, 100_003)
		limit := r.counter(abi.CounterMemoryUsed) + 100_003
		rest := int(limit-limit/4-r.counter(abi.CounterMemoryUsed)) - 64 // of one request
		ep.Deliver(make([]byte, rest-1))
		r.settle()
		r.done("a byte is missing", s.send(false, 10)...)
		ep.Deliver(make([]byte, 1))
		r.settle()
		f := s.send(false, 10)
		r.done("payload received")
		r.wantCounter(abi.CounterDelayMemory, 1)
		b := r.buffer(abi.TypeBufferAvailable, id, rest)
		r.post(b)
		r.expect(abi.Fields{Type: abi.TypeBufferReceive, Flags: abi.FlagFinal, Tag: b.Tag, Conn: id, Base: b.Base, Length: b.Length})
		r.done("payload delivered", append(f, s.send(false, 10)...)...)
		r.wantCounter(abi.CounterDelayOver, 1)
		s.whole()
	})
	t.Run("fairness", func(t *testing.T) {
		r := newRig(t, 5)
		s := r.sender(uint64(abi.AttrDelayCriteria), 8)
		other := r.sender()
		third := r.sender()
		r.done("alone", s.send(false, 300)...)
		r.done("alone with more", s.send(false, 300)...)
		r.done("of others", other.send(false, 599)...)
		f := s.send(false, 1)
		r.done("above the mean")
		r.wantCounter(abi.CounterDelayFairness, 1)
		r.done("of others", third.send(false, 700)...)
		r.done("at the mean", append(f, s.send(false, 1)...)...)
		r.done("above the mean again")
		// Who ends has nothing on its way.
		third.ep.Fail(engine.ErrReset)
		other.ep.Ack(599)
		r.settle()
		r.done("alone again", s.send(false, 1000)...)
		s.whole()
	})
	t.Run("class", func(t *testing.T) {
		r := newRig(t, 5)
		class := uint64(abi.AttrQoSClass)
		low := r.sender(uint64(abi.AttrDelayCriteria), 16, class, 63)
		high := r.sender(class, 64)
		r.done("nobody above", low.send(false, 10)...)
		high.ep.SetRoom(5)
		fh := high.send(false, 10)
		f := low.send(false, 10)
		r.done("a class above waits for room")
		r.wantCounter(abi.CounterDelayClass, 1)
		r.set(high.id, abi.AttrQoSClass, 63)
		r.done("the same class", append(f, low.send(false, 10)...)...)
		r.set(high.id, abi.AttrQoSClass, 255)
		f = low.send(false, 10)
		r.done("far above")
		high.ep.SetRoom(100)
		r.done("room", fh...)
		r.done("none above", append(f, low.send(false, 10)...)...)
		low.whole()
	})
}

// TestDelayEnds: what waits is not held beyond the end of what it belongs to.
func TestDelayEnds(t *testing.T) {
	full := func(r *rig) *sender {
		s := r.sender(uint64(abi.AttrDelayCriteria), 1, uint64(abi.AttrDelayAge), 1<<62)
		s.path(1, 0)
		r.done("the first", s.send(false, 100)...)
		return s
	}
	t.Run("FIN", func(t *testing.T) {
		r := newRig(t, 5)
		s := full(r)
		f := s.send(false, 200)
		r.done("waits")
		end := abi.Fields{Type: abi.TypeTermination, Tag: r.Tag(), Conn: s.id}
		r.post(end)
		r.done("flushed", f...)
		s.ep.Ack(300)
		r.expect(abi.Fields{Type: abi.TypeTerminated, Flags: abi.FlagFinal, Tag: end.Tag, Conn: s.id})
		s.whole()
		if !s.ep.FINSent() {
			t.Error("no FIN")
		}
	})
	t.Run("off", func(t *testing.T) {
		r := newRig(t, 5)
		s := full(r)
		f := s.send(false, 200)
		r.done("waits")
		r.post(r.control(abi.TypeAdapterAttr, 1, abi.AppendGet(nil, abi.AttrLink, 8)))
		set := r.control(abi.TypeConnectionAttr, 1, abi.AppendSetScalar(nil, abi.AttrDelayCriteria, 0))
		set.Conn = s.id
		r.post(set)
		if r.next(); r.next().Aux != 0 {
			t.Fatal("set")
		}
		r.done("switched off", f...)
		s.whole()
	})
	t.Run("cancelled", func(t *testing.T) {
		r := newRig(t, 5)
		s := full(r)
		r.set(s.id, abi.AttrDelayCount, 3)
		f := s.send(false, 10, 20)
		for _, f := range f {
			s.want = s.want[:100]
			cancel := abi.Fields{Type: abi.TypeCancellation, Tag: r.Tag(), Conn: s.id, Offset: f.Tag}
			r.post(cancel)
			r.expect(readDone(f, 2, 0))
			r.expect(abi.Fields{Type: abi.TypeCancelled, Flags: abi.FlagFinal, Tag: cancel.Tag, Conn: s.id})
		}
		// The list is empty: what was in it counts no more.
		f = s.send(false, 30, 40)
		r.done("two")
		r.done("three", append(f, s.send(false, 50)...)...)
		s.whole()
	})
	t.Run("drain and reset", func(t *testing.T) {
		r := newRig(t, 5)
		s, dead := full(r), full(r)
		f, g := s.send(false, 200), dead.send(false, 300)
		r.done("waits")
		dead.ep.Fail(engine.ErrReset)
		r.expect(readDone(g[0], 5, 0))
		r.expect(abi.Fields{Type: abi.TypeTerminated, Flags: abi.FlagFinal, Aux: 5, Conn: dead.id, Length: 2})
		r.fw.Command(0, abi.QueueDrain, r.Config)
		r.expect(readDone(f[0], 2, 0))
		if err := r.State(abi.QueueDrained); err != nil {
			t.Fatal(err)
		}
	})
}

// TestDelayAlone: without any other event the list runs by itself.
func TestDelayAlone(t *testing.T) {
	r := newRig(t, 5)
	s := r.sender(uint64(abi.AttrDelayCriteria), 1, uint64(abi.AttrDelayAge), 50*ms)
	s.path(1, 0)
	r.done("the first", s.send(false, 100)...)
	f := s.send(false, 10)
	r.done("waits")
	r.clock.advance(50*time.Millisecond - 1)
	r.done("waits still")
	r.clock.advance(1)
	r.expect(readDone(f[0], 0, 10))
}

// TestDelayDatagrams: datagrams wait, too.
func TestDelayDatagrams(t *testing.T) {
	r := newRig(t, 5)
	high := r.sender(uint64(abi.AttrQoSClass), 1)
	high.ep.SetRoom(5)
	high.send(false, 10)
	target := connectTarget()
	target.Protocol = 17
	f := r.target(abi.TypeConnect, target)
	r.post(f)
	got := r.next()
	if got.Tag != f.Tag || got.Aux != 0 {
		t.Fatalf("completion %+v", got)
	}
	low := &sender{rig: r, id: got.Conn, ep: r.fake.Last()}
	r.set(low.id, abi.AttrDelayCriteria, 31)
	r.set(low.id, abi.AttrDelayCount, 3)
	fs := low.send(false, 10, 20)
	r.done("two")
	for _, f := range append(fs, low.send(false, 30)...) {
		r.expect(sendDone(f, 0, f.Length))
	}
	if n := len(low.ep.Datagrams()); n != 3 {
		t.Errorf("%d datagrams", n)
	}
}

// TestAdjacent: sends whose memory is adjacent are read by one DMA; each has its
// own result, and one that cannot be read is found among them (MM11).
func TestAdjacent(t *testing.T) {
	r := newRig(t, 6)
	s := r.sender()
	base := r.Chip.Alloc(100_000, 4096)
	for i, b := 0, r.Chip.Bytes(base, 100_000); i < len(b); i++ {
		b[i] = byte(i * 7 >> 3)
	}
	part := func(at, from, to uint32) abi.Fields {
		return abi.Fields{Type: abi.TypeBufferSend, Tag: r.Tag(), Conn: s.id, Base: base + uint64(at), Length: to, Offset: from}
	}
	run := func(what string, reads, merged uint64, fs ...abi.Fields) {
		t.Helper()
		before, with := r.counter(abi.CounterPayloadReads), r.counter(abi.CounterTransfersMerged)
		for _, f := range fs {
			s.want = append(s.want, r.bytes(f)[f.Offset:]...)
		}
		r.held(fs...)
		r.done(what, fs...)
		if n := r.counter(abi.CounterPayloadReads) - before; n != reads {
			t.Errorf("%s: %d reads, want %d", what, n, reads)
		}
		if n := r.counter(abi.CounterTransfersMerged) - with; n != merged {
			t.Errorf("%s: %d merged, want %d", what, n, merged)
		}
		s.whole()
	}
	run("parts of one buffer", 1, 2, part(0, 0, 1000), part(0, 1000, 1001), part(0, 1001, 4000))
	run("neighbours", 1, 1, part(0, 100, 1000), part(1000, 0, 500))
	run("a hole", 2, 0, part(0, 0, 1000), part(1001, 0, 500))
	run("the other way", 2, 0, part(1000, 0, 500), part(0, 0, 1000))
	run("two runs", 2, 2, part(0, 0, 10), part(10, 0, 10), part(30, 0, 10), part(40, 0, 10))
	run("the same twice", 2, 0, part(0, 0, 10), part(0, 0, 10))

	// The one in the middle cannot be read: the first is sent, the last is not.
	r.Chip.Unmap(base+8192, 4096)
	first, bad, last := part(0, 0, 8000), part(8000, 0, 1000), part(9000, 0, 100)
	s.want = append(s.want, r.bytes(first)...)
	r.held(first, bad, last)
	r.expect(readDone(first, 0, 8000))
	r.expect(readDone(bad, 39, 0))
	r.expect(readDone(last, 14, 0))
	s.whole()
}
