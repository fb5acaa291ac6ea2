// SPDX-License-Identifier: Apache-2.0

package conformance

import (
	"encoding/binary"
	"fmt"

	"toebox/guestdriver"
)

// Attributes and counters of SPEC.md §14.2.
const (
	bytesReceived    = 0x0284
	bufferPolicy     = 0x0232
	bufferWait       = 0x0233
	historyCount     = 0x0234
	historyTime      = 0x0235
	historyThreshold = 0x0236
	historyMode      = 0x0237
	historyAttr      = 0x023a

	ctrBufferWaits    = 85
	ctrWaitsMet       = 86
	ctrWaitsOver      = 87
	ctrHistoryNone    = 88
	ctrHistoryReduced = 89
)

// chooser is a connection whose peer sends 64 bytes at each signal, under a
// policy clock that the test moves.
type chooser struct {
	*notifier
	peer    Session
	id      uint64
	arrived uint64
	marks   map[uint32]uint64
}

func (t *T) chooser(signals int, attrs ...func(*ctl)) *chooser {
	t.Helper()
	var s Script
	for i := range signals {
		s = append(s, Step{Op: OpWait}, Step{Op: OpSend, N: 64, Seed: uint64(1 + i)})
	}
	c := &chooser{notifier: t.notifier(Script{{Op: OpWait}}), marks: map[uint32]uint64{}}
	c.peer, c.id = c.serve(append(s, Step{Op: OpDiscard}), attrs...)
	for i := uint32(ctrBufferWaits); i < counters; i++ {
		c.marks[i] = c.counter(i)
	}
	return c
}

// moved is how far a counter went since the connection was there.
func (c *chooser) moved(what string, i uint32, by uint64) {
	c.Helper()
	want(c.T, what, c.counter(i)-c.marks[i], by)
}

// acted counts what becomes of bytes that arrive: deliveries and waits.
func (c *chooser) acted() (n uint64) {
	for _, i := range []uint32{ctrPoolDeliveries, ctrOwnDeliveries, ctrPoolEmpty, ctrBufferWaits} {
		n += c.counter(i)
	}
	return n
}

// arrive lets 64 bytes arrive, and returns when the adapter has acted on them: they
// are counted before the connection's queue hears of them.
func (c *chooser) arrive() {
	c.Helper()
	before := c.acted()
	check(c.T, "peer: signal", c.peer.Signal(c.ctx))
	c.arrived += 64
	c.until("64 bytes to arrive", func() bool { return c.scalar(reqConnAttr, c.id, bytesReceived) >= c.arrived })
	c.until("the adapter to act on them", func() bool { return c.acted() > before })
	c.settle()
	c.consume()
}

// gets takes the delivery of the bytes that came with the n-th signal, from 1
// on, which goes to a tag.
func (c *chooser) gets(what string, n uint64, tag uint32, m guestdriver.DMA) {
	c.Helper()
	d := c.take(what+": a delivery", func(d desc) bool { return d.Type == rspReceive })
	expect := make([]byte, 64)
	Payload(expect, n, 0)
	if d.Tag != tag || d.Conn != c.id || d.Length != 64 || d.Offset != 0 || !d.final() || string(m.Bytes[:64]) != string(expect) {
		c.Errorf("%s: %v, want all of arrival %d with tag %#x", what, d, n, tag)
	}
}

// none fails the test if something was told.
func (c *chooser) none(what string) {
	c.Helper()
	c.settle()
	c.consume()
	if len(c.got) != 0 {
		c.Fatalf("%s: told %v", what, c.got)
	}
}

// TestRX08_Wait: bytes wait for a buffer of their connection, to the nanosecond
// as long as BUFFER_WAIT says; then bulk buffers take them.
func TestRX08_Wait(t *T) {
	c := t.chooser(4, attr(bufferPolicy, 1), attr(bufferWait, 10*ms))
	bulk, own := c.buffer(64), c.buffer(64)
	pool := c.available(0, bulk, 0)
	c.arrive()
	c.step(10*ms - 1)
	c.none("1 ns before BUFFER_WAIT")
	c.moved("buffer_waits", ctrBufferWaits, 1)
	c.gets("a buffer in time", 1, c.available(c.id, own, 0), own)
	c.moved("buffer_waits_met", ctrWaitsMet, 1)
	c.step(20 * ms)

	c.arrive()
	c.step(10*ms - 1)
	c.none("1 ns before BUFFER_WAIT")
	c.step(1)
	c.gets("no buffer in time", 2, pool, bulk)
	c.moved("buffer_waits_over", ctrWaitsOver, 1)

	// A buffer that is there already: no wait.
	tag := c.available(c.id, own, 0)
	c.arrive()
	c.gets("a buffer before the bytes", 3, tag, own)
	c.moved("buffer_waits", ctrBufferWaits, 2)

	// Nothing at all: after the wait the bytes wait for any buffer.
	c.arrive()
	c.step(10 * ms)
	c.none("no buffer at all")
	c.gets("a bulk buffer after the wait", 4, c.available(0, bulk, 0), bulk)
	c.finish(c.id)
}

// TestRX08_End: the end of the stream ends a wait.
func TestRX08_End(t *T) {
	n := t.notifier(Script{{Op: OpWait}})
	m := n.buffer(64)
	tag := n.available(0, m, 0)
	_, id := n.serve(Script{{Op: OpSend, N: 64, Seed: 1}, {Op: OpFIN}, {Op: OpDiscard}}, attr(bufferPolicy, 1), attr(bufferWait, 1<<62))
	d := n.answer(tag)
	terminal(t, "delivery before the end of the stream", d, rspReceive, stOK)
	d = n.unsolicited(rspTerminated, id)
	want(t, "how it ended: remote end of stream", d.Length, 5)
	n.finish(id)
}

// TestRX09_History: how long bytes wait is decided by how many transfers found a
// buffer of their connection, and can be read.
func TestRX09_History(t *T) {
	const wait = 10 * ms
	c := t.chooser(13, attr(bufferPolicy, 2), attr(bufferWait, wait), attr(historyCount, 4), attr(historyThreshold, 50))
	bulk, own := c.buffer(64), c.buffer(64)
	now, from := uint64(0), uint64(0)
	step := func(ns uint64) { c.step(ns); now += ns }
	var past []uint64 // what HISTORY has to say of transfers
	found := func() { past = append(past, 1<<63|now) }
	missed := func() { past = append(past, now) }
	says := func(what string, f uint32, ns uint64) {
		t.Helper()
		_, rs := c.attrs(reqConnAttr, c.id, new(ctl).get(historyAttr, 16+8*256))
		must(t, what+": status", rs[0].Status, stOK)
		v := rs[0].Value[:rs[0].Length]
		window := past[max(0, len(past)-4):]
		must(t, what+": length of HISTORY", len(v), 16+8*len(window))
		le := binary.LittleEndian
		want(t, what+": transfers", le.Uint32(v), uint32(len(window)))
		want(t, what+": found", le.Uint32(v[4:]), f)
		want(t, what+": wait", le.Uint64(v[8:]), ns)
		for i, w := range window {
			got := le.Uint64(v[16+8*i:])
			if from == 0 {
				from = got&^(1<<63) - w&^(1<<63)
			}
			want(t, fmt.Sprintf("%s: transfer %d", what, i), got, w+from)
		}
	}
	n := uint64(0)
	early := func(what string) { // a buffer before the bytes
		t.Helper()
		tag := c.available(c.id, own, 0)
		c.arrive()
		n++
		c.gets(what, n, tag, own)
		found()
		step(ms)
	}
	after := func(what string, ns uint64) { // none, and the pool takes them after so long
		t.Helper()
		c.arrive()
		n++
		if ns > 0 {
			step(ns - 1)
			c.none(what + ": 1 ns early")
			step(1)
		}
		c.gets(what, n, c.available(0, bulk, 0), bulk)
		missed()
		step(ms)
	}
	says("no history", 0, wait)
	early("100%")
	early("100%")
	says("2 of 2", 2, wait)
	after("2 of 2", wait)
	after("2 of 3", wait)
	says("2 of 4", 2, wait)
	after("2 of 4", wait)
	says("1 of 4", 1, 0)
	c.moved("history_none", ctrHistoryNone, 0)
	after("1 of 4", 0)
	c.moved("history_none", ctrHistoryNone, 1)

	// The other mode reduces the wait.
	early("0 of 4")
	status, _ := c.setScalar(reqConnAttr, c.id, historyMode, 1)
	want(t, "status of HISTORY_MODE", status, stOK)
	says("1 of 4, reduced", 1, wait/2)
	c.arrive()
	n++
	step(wait/2 - 1)
	c.none("a reduced wait: 1 ns early")
	pool := c.available(0, bulk, 0)
	want(t, "status of a request behind it", c.scalar(reqConnAttr, c.id, bufferPolicy), 2)
	c.none("a reduced wait: 1 ns early, with a bulk buffer")
	step(1)
	c.gets("a reduced wait", n, pool, bulk)
	missed()
	c.moved("history_reduced", ctrHistoryReduced, 1)

	// Recovery restores the wait.
	early("1 of 4")
	early("2 of 4")
	early("3 of 4")
	says("3 of 4", 3, wait)
	after("3 of 4", wait)

	// By time: what is older does not count.
	status, _ = c.setScalar(reqConnAttr, c.id, historyTime, 5*ms)
	want(t, "status of HISTORY_TIME", status, stOK)
	step(4*ms + 1)
	past = nil
	says("a time window without transfers", 0, wait)
	c.finish(c.id)
}

// TestRX09_Bounds: values beyond the bounds of SPEC.md §7 are refused.
func TestRX09_Bounds(t *T) {
	c := t.start()
	r := c.ring(0, ringConfig{})
	for a, most := range map[uint16]uint64{
		bufferPolicy: 2, bufferWait: 1<<63 - 1, historyCount: 256, historyTime: 1<<63 - 1, historyThreshold: 100, historyMode: 1,
	} {
		status, _ := r.setScalar(reqConnAttr, 0, a, most)
		want(t, fmt.Sprintf("status of %#x at its bound", a), status, stOK)
		status, _ = r.setScalar(reqConnAttr, 0, a, most+1)
		want(t, fmt.Sprintf("status of %#x beyond its bound", a), status, stBadValue)
	}
	status, _ := r.setScalar(reqConnAttr, 0, historyCount, 0)
	want(t, "status of HISTORY_COUNT 0", status, stBadValue)
}
