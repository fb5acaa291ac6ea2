// SPDX-License-Identifier: Apache-2.0

package conformance

import "toebox/guestdriver"

const ctrFragments = 132 // SPEC.md §14.10

// piece posts a piece of a virtual buffer.
func (r *ring) piece(conn uint64, m guestdriver.DMA, id, seq uint8) uint32 {
	r.Helper()
	return r.post(desc{Type: reqAvailable, Aux: uint16(id)<<8 | uint16(seq), Base: m.IOVA, Conn: conn, Length: uint32(len(m.Bytes))})
}

// filled takes the deliveries that fill a buffer, and compares them with the stream
// of seed from a byte on.
func (r *ring) filled(what string, tag uint32, m guestdriver.DMA, seed uint64, from int64) {
	r.Helper()
	if n := r.fill(tag, m, seed, from); n != len(m.Bytes) {
		r.Fatalf("%s: %d bytes, want %d", what, n, len(m.Bytes))
	}
}

// TestMM06_Pieces: a virtual buffer of pieces that are posted in any order is
// filled in the order of their numbers, without holes.
func TestMM06_Pieces(t *T) {
	c := t.start()
	r := c.ring(0, ringConfig{})
	const size = 300
	p, id := r.serve(Script{{Op: OpWait}, {Op: OpSend, N: 4 * size, Seed: 3}, {Op: OpWait}, {Op: OpSend, N: 2 * size, Seed: 4}, {Op: OpDiscard}})
	var m [6]guestdriver.DMA
	for i := range m {
		m[i] = r.buffer(size)
	}
	// Pieces 2, 0, 1 of 7, with another buffer between them, which comes last.
	second := r.piece(id, m[2], 7, 2)
	zeroth := r.piece(id, m[0], 7, 0)
	plain := r.available(id, m[3], 0)
	first := r.piece(id, m[1], 7, 1)
	d := r.do(desc{Type: reqAvailable, Aux: 0x0702, Base: m[4].IOVA, Conn: id, Length: size})
	terminal(t, "a piece that is posted already", d, rspDone, stBadValue)
	check(t, "peer: signal", p.Signal(t.ctx))
	for i, tag := range []uint32{zeroth, first, second, plain} {
		r.filled("buffer in the order of pieces", tag, m[i], 3, int64(i*size))
	}

	// The sequence goes on. A piece that is missing is waited for, and bytes go
	// elsewhere meanwhile.
	fourth := r.piece(id, m[4], 7, 4)
	pool := r.available(0, m[5], 0)
	check(t, "peer: signal", p.Signal(t.ctx))
	r.filledBulk(pool, m[5], 4)
	third := r.piece(id, m[3], 7, 3)
	r.filled("the piece that was missing", third, m[3], 4, size)
	if _, open := r.open[fourth]; !open {
		t.Errorf("the piece behind it was used without bytes")
	}

	// A cancelled piece ends those behind it.
	fifth := r.piece(id, m[0], 7, 5)
	d = r.do(desc{Type: reqCancel, Conn: id, Offset: fourth})
	terminal(t, "cancellation of a piece", d, rspCancelled, stOK)
	terminal(t, "the cancelled piece", r.answer(fourth), rspDone, stCancelled)
	terminal(t, "the piece behind it", r.answer(fifth), rspDone, stCancelled)
	d = r.do(desc{Type: reqAvailable, Aux: 0x0700, Base: m[0].IOVA, Length: size})
	terminal(t, "a bulk buffer as a piece", d, rspDone, stReserved)
	r.finish(id)
}

// filledBulk takes the delivery that fills a bulk buffer from the start of the
// stream of seed.
func (r *ring) filledBulk(tag uint32, m guestdriver.DMA, seed uint64) {
	r.Helper()
	d := r.answer(tag)
	expect := make([]byte, len(m.Bytes))
	Payload(expect, seed, 0)
	if d.Type != rspReceive || int(d.Length) != len(m.Bytes) || !d.final() || string(m.Bytes) != string(expect) {
		r.Fatalf("bulk buffer: %v", d)
	}
}

// TestMM06_Fragment: a buffer is given back before it is full where the host
// permits that, to take what has arrived as a whole; else it is filled.
func TestMM06_Fragment(t *T) {
	t.Run("permitted", func(t *T) {
		c, second, d := t.fragment(flagFragment)
		terminal(t, "the buffer that holds some", d, rspDone, stOK)
		want(t, "its length", d.Length, 0)
		want(t, "all of the arrival, in the next buffer", c.answer(second).Length, 64)
		c.moved("fragments", ctrFragments, 1)
		c.finish(c.id)
	})
	t.Run("not permitted", func(t *T) {
		c, second, d := t.fragment(0)
		if d.Type != rspReceive || d.Offset != 64 || d.Length != 36 || !d.final() {
			t.Errorf("the buffer that holds some: %v", d)
		}
		want(t, "the rest, in the next buffer", c.answer(second).Length, 28)
		c.moved("fragments", ctrFragments, 0)
		c.finish(c.id)
	})
}

// fragment lets 64 bytes arrive twice for two buffers of 100, and returns what
// becomes of the first, and the tag of the second.
func (t *T) fragment(flags uint8) (c *chooser, second uint32, d desc) {
	t.Helper()
	c = t.chooser(2)
	first := c.available(c.id, c.buffer(100), flags)
	second = c.available(c.id, c.buffer(100), flags)
	c.arrive()
	if d = c.answer(first); d.Type != rspReceive || d.Length != 64 || d.final() {
		t.Errorf("first arrival: %v", d)
	}
	check(t, "peer: signal", c.peer.Signal(t.ctx))
	return c, second, c.answer(first)
}
