// SPDX-License-Identifier: Apache-2.0

package conformance

import "toebox/guestdriver"

// Of SPEC.md §14.11.
const (
	attrSkip        = 0x0264
	bytesDelivered  = 0x0285
	ctrSkippedBytes = 134
)

// skipping posts a buffer of a connection with SKIP.
func (r *ring) skipping(conn uint64, m guestdriver.DMA, n uint32) uint32 {
	r.Helper()
	return r.post(desc{Type: reqAvailable, Flags: flagSkip, Base: m.IOVA, Conn: conn, Length: uint32(len(m.Bytes)), Offset: n})
}

// TestRX14_Skip: bytes of the stream are skipped before those of a buffer, once by
// its request or each time by the connection's attribute.
func TestRX14_Skip(t *T) {
	c := t.chooser(5)
	a, b, more := c.buffer(48), c.buffer(24), c.buffer(24)
	tag := c.skipping(c.id, a, 16)
	c.arrive()
	c.filled("behind 16 bytes", tag, a, 1, 16)
	c.moved("skipped_bytes", ctrSkippedBytes, 16)

	// More than has arrived, and more than one buffer's.
	tag = c.skipping(c.id, b, 80)
	next := c.skipping(c.id, more, 24)
	check(t, "peer: signal", c.peer.Signal(t.ctx))
	c.arrived += 64
	c.until("an arrival to be skipped", func() bool { return c.counter(ctrSkippedBytes)-c.marks[ctrSkippedBytes] == 16+64 })
	c.arrive()
	c.filled("behind 80 bytes", tag, b, 3, 16)
	c.moved("skipped_bytes", ctrSkippedBytes, 16+80+24)
	d := c.do(desc{Type: reqCancel, Conn: c.id, Offset: next})
	terminal(t, "cancellation of a buffer that has skipped", d, rspCancelled, stOK)
	d = c.answer(next)
	terminal(t, "the buffer that has skipped", d, rspDone, stCancelled)
	want(t, "bytes that it has skipped", d.Offset, 24)

	// The attribute: before each buffer, also of the pool.
	status, _ := c.setScalar(reqConnAttr, c.id, attrSkip, 8)
	want(t, "status of SKIP", status, stOK)
	tag, next = c.available(c.id, b, 0), c.available(c.id, more, 0)
	c.arrive()
	c.filled("the first buffer", tag, b, 4, 8)
	c.filled("the second buffer", next, more, 4, 40)
	pool := c.buffer(64)
	tag = c.available(0, pool, 0)
	c.arrive()
	d = c.answer(tag)
	expect := make([]byte, 56)
	Payload(expect, 5, 8)
	if d.Type != rspReceive || d.Length != 56 || d.Conn != c.id || !d.final() || string(pool.Bytes[:56]) != string(expect) {
		t.Errorf("bulk buffer: %v", d)
	}
	c.moved("skipped_bytes", ctrSkippedBytes, 16+80+24+3*8)
	want(t, "BYTES_DELIVERED", c.scalar(reqConnAttr, c.id, bytesDelivered), c.arrived)

	status, _ = c.setScalar(reqConnAttr, c.id, attrSkip, 1<<32)
	want(t, "status of SKIP 2^32", status, stBadValue)
	d = c.do(desc{Type: reqAvailable, Flags: flagSkip, Base: pool.IOVA, Length: 64, Offset: 8})
	terminal(t, "a bulk buffer that skips", d, rspDone, stReserved)
	c.finish(c.id)
}

// TestRX14_Window: skipped bytes open the window: more of them go than it holds.
func TestRX14_Window(t *T) {
	c := t.start()
	r := c.ring(0, ringConfig{})
	const skip = 1 << 20
	p, id := r.serve(Script{{Op: OpSend, N: skip + 1000, Seed: 9}, {Op: OpFIN}, {Op: OpDiscard}}, attr(0x0207, 64<<10))
	m := r.buffer(1000)
	before := c.counter(ctrSkippedBytes)
	r.filled("behind 1 MiB", r.skipping(id, m, skip), m, 9, skip)
	want(t, "skipped_bytes", c.counter(ctrSkippedBytes)-before, skip)
	r.unsolicited(rspTerminated, id)
	r.finish(id)
	t.outcome(p)
}
