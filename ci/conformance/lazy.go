// SPDX-License-Identifier: Apache-2.0

package conformance

import (
	"slices"

	"toebox/guestdriver"
)

// Attributes of SPEC.md §14.7.
const (
	attrQoSClass      = 0x0214
	attrPoint         = 0x0215
	attrDelayCriteria = 0x0220
	attrDelayCount    = 0x0221
	attrDelayBytes    = 0x0222
	attrDelayAge      = 0x0223
	attrDelayDynamic  = 0x0224
	attrASAPMode      = 0x0225
)

// Counters of SPEC.md §14.3 and §14.7.
const (
	ctrReads           = 11 // payload_reads
	ctrTransfersMerged = 103
	ctrDelayCwnd       = 104
	ctrDelayBandwidth  = 105
	ctrDelayMemory     = 106
	ctrDelayFairness   = 107
	ctrDelayClass      = 108
	ctrDelayCount      = 109
	ctrDelayBytes      = 110
	ctrDelayAge        = 111
	ctrDelayASAP       = 112
	ctrDelayOver       = 113
)

// lazy is a queue whose peer gets nothing until heal is called, under a policy
// clock that the test moves.
type lazy struct {
	*ring
	heal func()
}

// lazySender is a connection of it.
type lazySender struct {
	*lazy
	peer Session
	id   uint64
	all  []byte // that was sent
}

// lazyHeld is what fills the congestion window of a connection that has sent
// little.
const lazyHeld = 64 << 10

func (t *T) lazy() *lazy {
	t.Helper()
	c := t.start()
	c.write(0x00c0, 1)
	t.Cleanup(func() { c.write(0x00c0, 0) })
	return &lazy{ring: c.ring(0, ringConfig{})}
}

// sender dials, and sends 100 bytes that arrive: the adapter then knows the path.
func (l *lazy) sender(attrs ...func(*ctl)) *lazySender {
	l.Helper()
	p, id := l.serve(Script{{Op: OpDiscard}}, append(attrs, attr(attrPoint, 0))...)
	s := &lazySender{lazy: l, peer: p, id: id}
	l.done("a send over a good wire", s.send(false, 100)...)
	l.until("its acknowledgement", func() bool { return l.scalar(reqConnAttr, id, 0x0283) == 100 })
	return s
}

// cut makes the wire lose all frames.
func (l *lazy) cut() {
	l.Helper()
	harm := l.impair("loss=100%")
	l.heal = func() { harm() }
}

// post posts sends of n bytes each, and returns their tags.
func (s *lazySender) send(asap bool, sizes ...int) []uint32 {
	s.Helper()
	var tags []uint32
	for _, n := range sizes {
		m := s.buffer(n)
		Payload(m.Bytes, s.id, int64(len(s.all)))
		s.all = append(s.all, m.Bytes...)
		tags = append(tags, s.post(desc{Type: reqSend, Modify: true, ASAP: asap, Base: m.IOVA, Conn: s.id, Length: uint32(n)}))
	}
	return tags
}

// fill sends as much as the congestion window takes, once the adapter has found out
// that nothing arrives.
func (s *lazySender) fill() {
	s.Helper()
	s.done("the first send", s.send(false, lazyHeld)...)
	s.until("a full congestion window", func() bool {
		n := s.scalar(reqConnAttr, s.id, 0x0281)
		return n > 0 && n <= lazyHeld
	})
}

// done wants the results of sends in order.
func (r *ring) done(what string, tags ...uint32) {
	r.Helper()
	for _, tag := range tags {
		d := r.take(what, func(d desc) bool { return d.Type == rspDone })
		terminal(r.T, what, d, rspDone, stOK)
		want(r.T, what+": tag", d.Tag, tag)
	}
}

// waits waits until a counter has moved by n since before, and sees that nothing
// was answered.
func (r *ring) waits(what string, i uint32, before, n uint64) {
	r.Helper()
	r.until(what, func() bool { return r.counter(i) >= before+n })
	want(r.T, what, r.counter(i)-before, n)
	r.still(what)
}

// still sees that nothing was answered.
func (r *ring) still(what string) {
	r.Helper()
	r.settle()
	r.consume()
	if len(r.got) > 0 {
		r.Fatalf("%s: %v", what, r.got)
	}
}

// arrives ends the sending direction and compares what the peer got.
func (s *lazySender) arrives() {
	s.Helper()
	terminal(s.T, "termination", s.terminate(s.id, 0), rspTerminated, stOK)
	want(s.T, "SHA-256 at the peer", s.outcome(s.peer).Sum, sum(s.all))
}

// TestMM07_Window: while the congestion window is full sends stay in host memory,
// until their list runs by age, count, bytes, or the window opens; and no byte is
// lost or out of order by that.
func TestMM07_Window(t *T) {
	l := t.lazy()
	a := l.sender(attr(attrDelayCriteria, 1), attr(attrDelayAge, 5*ms))
	b := l.sender(attr(attrDelayCriteria, 1), attr(attrDelayAge, 5*ms), attr(attrPriority, 6))
	l.cut()
	for _, s := range []*lazySender{a, b} {
		s.fill()
	}
	cwnd, age := l.counter(ctrDelayCwnd), l.counter(ctrDelayAge)
	first := a.send(false, 1000, 2000)
	l.waits("sends wait", ctrDelayCwnd, cwnd, 2)
	reads := l.counter(ctrReads)
	l.stepClock(5*ms - 1)
	l.still("1 ns before DELAY_AGE")
	want(t, "payload_reads", l.counter(ctrReads)-reads, 0)
	l.stepClock(1)
	l.done("at DELAY_AGE", first...)
	want(t, "delay_age", l.counter(ctrDelayAge)-age, 1)

	// The list is the queue's: the least count and amount hold, and priority.
	status, _ := l.setScalar(reqConnAttr, b.id, attrDelayCount, 3)
	want(t, "set of DELAY_COUNT", status, stOK)
	status, _ = l.setScalar(reqConnAttr, a.id, attrDelayBytes, 5000)
	want(t, "set of DELAY_BYTES", status, stOK)
	cwnd = l.counter(ctrDelayCwnd)
	by := l.counter(ctrDelayCount)
	first = a.send(false, 100)
	second := b.send(false, 200)
	l.waits("sends wait", ctrDelayCwnd, cwnd, 2)
	l.done("DELAY_COUNT", slices.Concat(second, b.send(false, 300), first)...)
	want(t, "delay_count", l.counter(ctrDelayCount)-by, 1)
	by = l.counter(ctrDelayBytes)
	cwnd = l.counter(ctrDelayCwnd)
	first = a.send(false, 4999)
	l.waits("sends wait", ctrDelayCwnd, cwnd, 1)
	l.done("DELAY_BYTES", append(first, a.send(false, 1)...)...)
	want(t, "delay_bytes", l.counter(ctrDelayBytes)-by, 1)

	// No event but acknowledgements.
	cwnd, over := l.counter(ctrDelayCwnd), l.counter(ctrDelayOver)
	first = a.send(false, 700)
	l.waits("a send waits", ctrDelayCwnd, cwnd, 1)
	l.heal()
	l.done("the window opens", first...)
	want(t, "delay_over", l.counter(ctrDelayOver)-over, 1)
	a.arrives()
	b.arrives()
}

// TestMM07_Criteria: the other criteria, and DELAY_DYNAMIC.
func TestMM07_Criteria(t *T) {
	l := t.lazy()
	plain := l.sender()
	band := l.sender(attr(attrDelayCriteria, 2), attr(attrDelayDynamic, 1), attr(attrDelayAge, 5*ms))
	fair := l.sender(attr(attrDelayCriteria, 8), attr(attrDelayAge, 5*ms))
	class := l.sender(attr(attrDelayCriteria, 16), attr(attrDelayAge, 5*ms), attr(attrQoSClass, 3))
	high := l.sender(attr(attrQoSClass, 4), attr(0x0208, 4096))
	l.cut()

	l.done("nothing is held", fair.send(false, lazyHeld)...)
	l.done("something is held by another", plain.send(false, 100)...)
	n, age := l.counter(ctrDelayFairness), l.counter(ctrDelayAge)
	tags := fair.send(false, 100)
	l.waits("more than the mean is held", ctrDelayFairness, n, 1)
	l.stepClock(5 * ms)
	l.done("at DELAY_AGE", tags...)
	want(t, "delay_age", l.counter(ctrDelayAge)-age, 1)

	l.done("no sample", band.send(false, lazyHeld)...)
	l.stepClock(60_000 * ms) // a round trip at least, of which nothing was acknowledged
	n = l.counter(ctrDelayBandwidth)
	tags = band.send(false, lazyHeld/2-1)
	l.waits("nothing was acknowledged", ctrDelayBandwidth, n, 1)
	by := l.counter(ctrDelayBytes)
	l.done("half of what is held", append(tags, band.send(false, 1)...)...)
	want(t, "delay_bytes", l.counter(ctrDelayBytes)-by, 1)

	l.done("no class above", class.send(false, 100)...)
	last := high.send(false, lazyHeld)
	n = l.counter(ctrDelayClass)
	tags = class.send(false, 100)
	l.waits("a class above has sends", ctrDelayClass, n, 1)
	l.stepClock(5 * ms)
	l.done("at DELAY_AGE", tags...)

	status, _ := l.setScalar(reqConnAttr, plain.id, attrDelayCriteria, 4)
	want(t, "set of DELAY_CRITERIA", status, stOK)
	l.done("memory enough", plain.send(false, 100)...)
	used := l.scalar(reqAdapter, 0, 0x0108)
	status, size := l.setScalar(reqAdapter, 0, 0x0107, used/3*4)
	must(t, "set of MEMORY_SIZE", status, stOK)
	n = l.counter(ctrDelayMemory)
	tags = plain.send(false, 100)
	l.waits("memory is short", ctrDelayMemory, n, 1)
	l.stepClock(1 * ms)
	l.done("at DELAY_AGE", tags...)
	status, _ = l.setScalar(reqAdapter, 0, 0x0107, size)
	must(t, "set of MEMORY_SIZE", status, stOK)

	l.heal()
	l.done("the wire is good", last...)
	for _, s := range []*lazySender{plain, band, fair, class, high} {
		s.arrives()
	}
	for _, bad := range []struct {
		attr uint16
		v    uint64
	}{{attrDelayCriteria, 32}, {attrDelayCount, 0}, {attrDelayBytes, 0}, {attrDelayAge, 1 << 63}, {attrDelayDynamic, 2}, {attrASAPMode, 2}, {attrQoSClass, 256}} {
		status, _ := l.setScalar(reqConnAttr, 0, bad.attr, bad.v)
		want(t, "a value out of bounds", status, stBadValue)
	}
}

// TestMM09_ASAP: an ASAP send lets the list run, its own connection first, behind
// its own earlier bytes; with ASAP_MODE 1 it waits for 1/8 of the time.
func TestMM09_ASAP(t *T) {
	l := t.lazy()
	a := l.sender(attr(attrDelayCriteria, 1), attr(attrPriority, 7))
	b := l.sender(attr(attrDelayCriteria, 1))
	c := l.sender(attr(attrDelayCriteria, 1), attr(attrASAPMode, 1), attr(attrDelayAge, 80*ms))
	l.cut()
	for _, s := range []*lazySender{a, b, c} {
		s.fill()
	}
	cwnd, asap := l.counter(ctrDelayCwnd), l.counter(ctrDelayASAP)
	first, second := a.send(false, 100), b.send(false, 200)
	l.waits("sends wait", ctrDelayCwnd, cwnd, 2)
	l.done("ASAP", slices.Concat(second, b.send(true, 300), first)...)
	want(t, "delay_asap", l.counter(ctrDelayASAP)-asap, 1)

	cwnd = l.counter(ctrDelayCwnd)
	first = c.send(true, 400)
	l.waits("ASAP_MODE 1", ctrDelayCwnd, cwnd, 1)
	l.stepClock(10*ms - 1)
	l.still("before 1/8 of DELAY_AGE")
	l.stepClock(1)
	l.done("after 1/8 of DELAY_AGE", first...)
	want(t, "delay_asap", l.counter(ctrDelayASAP)-asap, 1)
	l.heal()
	for _, s := range []*lazySender{a, b, c} {
		s.arrives()
	}
}

// TestMM11_Adjacent: sends whose memory is adjacent are read by one DMA, each with
// its own result; one that cannot be read is the only one that fails, and those
// behind it.
func TestMM11_Adjacent(t *T) {
	c := t.start()
	r := c.ring(0, ringConfig{})
	p, id := r.serve(Script{{Op: OpDiscard}}, attr(attrPoint, 0))
	m := r.buffer(64 << 10)
	Payload(m.Bytes, 31, 0)
	run := func(what string, reads, merged uint64, parts ...[2]uint32) {
		t.Helper()
		var ds []desc
		var tags []uint32
		for _, part := range parts {
			tags = append(tags, r.tag())
			ds = append(ds, desc{Type: reqSend, Modify: true, Tag: tags[len(tags)-1], Base: m.IOVA, Conn: id, Offset: part[0], Length: part[1]})
		}
		was, with := c.counter(ctrReads), c.counter(ctrTransfersMerged)
		r.atOnce(ds...)
		for i, tag := range tags {
			d := r.answer(tag)
			terminal(t, what, d, rspDone, stOK)
			want(t, what+": length", d.Length, parts[i][1]-parts[i][0])
			want(t, what+": offset", d.Offset, parts[i][0])
		}
		r.settle()
		want(t, what+": payload_reads", c.counter(ctrReads)-was, reads)
		want(t, what+": transfers_merged", c.counter(ctrTransfersMerged)-with, merged)
	}
	run("adjacent", 1, 3, [2]uint32{0, 1000}, [2]uint32{1000, 1001}, [2]uint32{1001, 5000}, [2]uint32{5000, 7000})
	run("with a hole", 2, 0, [2]uint32{7000, 8000}, [2]uint32{8001, 9000})
	terminal(t, "termination", r.terminate(id, 0), rspTerminated, stOK)
	want(t, "SHA-256 at the peer", t.outcome(p).Sum, sum(append(slices.Clone(m.Bytes[:8000]), m.Bytes[8001:9000]...)))
}

// TestMM11_Receive: bytes that go on into buffers whose memory is adjacent are
// written by one DMA, each buffer with its own result; into others by as many as
// there are buffers.
func TestMM11_Receive(t *T) {
	const ctrDeliveriesMerged, n = 143, 3000
	c := t.start()
	r := c.ring(0, ringConfig{})
	run := func(what string, seed uint64, writes, merged uint64, parts ...[2]uint32) {
		t.Helper()
		_, id := r.serve(Script{{Op: OpSend, N: n, Seed: seed}, {Op: OpDiscard}}, attr(notifyBytes, n), attr(notifyMax, 1<<62))
		t.until("the bytes to arrive", func() bool { return r.scalar(reqConnAttr, id, bytesReceived) == n })
		m := r.buffer(16 << 10)
		skip := -m.IOVA & 4095 // transfers end with pages
		var ds []desc
		var tags []uint32
		for _, part := range parts {
			tags = append(tags, r.tag())
			ds = append(ds, desc{Type: reqAvailable, Tag: tags[len(tags)-1], Base: m.IOVA + skip + uint64(part[0]), Conn: id, Length: part[1]})
		}
		was, with := c.counter(ctrPayloadWrites), c.counter(ctrDeliveriesMerged)
		r.atOnce(ds...)
		at := int64(0)
		for i, tag := range tags {
			from := skip + uint64(parts[i][0])
			r.filled(what, tag, guestdriver.DMA{Bytes: m.Bytes[from:][:parts[i][1]], IOVA: m.IOVA + from}, seed, at)
			at += int64(parts[i][1])
		}
		r.settle()
		want(t, what+": payload_writes", c.counter(ctrPayloadWrites)-was, writes)
		want(t, what+": deliveries_merged", c.counter(ctrDeliveriesMerged)-with, merged)
		r.finish(id)
	}
	run("adjacent", 41, 1, 3, [2]uint32{0, 1000}, [2]uint32{1000, 1}, [2]uint32{1001, 999}, [2]uint32{2000, 1000})
	run("with a hole", 42, 2, 0, [2]uint32{0, 1000}, [2]uint32{1001, 2000})
}
