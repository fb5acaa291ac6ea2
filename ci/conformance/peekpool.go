// SPDX-License-Identifier: Apache-2.0

package conformance

import (
	"io"
	"time"

	"toebox/guestdriver"
)

// TestRX13_Queues: a redirection names connections of its own queue only, and one
// that is refused moves nothing. It names no connection of another queue either as
// its own.
func TestRX13_Queues(t *T) {
	const total = 64
	c := t.start()
	near, far := c.ring(0, ringConfig{}), c.ring(1, ringConfig{})
	p, id := near.serve(Script{{Op: OpWait}, {Op: OpSend, N: total, Seed: 1}, {Op: OpDiscard}})
	_, home := near.serve(Script{{Op: OpDiscard}})
	_, there := far.serve(Script{{Op: OpDiscard}})
	dst := far.buffer(total)
	tag := far.available(there, dst, 0)
	refused := func(what string, r *ring, from, to uint64) {
		t.Helper()
		d := r.do(desc{Type: reqAvailable, Flags: flagRedirect | flagSkip, Base: to, Conn: from, Length: total, Offset: 4})
		terminal(t, what, d, rspDone, stWrongQueue)
		want(t, what+": base, connection, length, offset", [4]uint64{d.Base, d.Conn, uint64(d.Length), uint64(d.Offset)}, [4]uint64{to, from, 0, 0})
	}
	refused("to another queue", near, id, there)
	refused("to another queue, back", far, there, id)
	refused("of another queue", far, id, there)
	refused("of another queue, to that", far, id, home)
	check(t, "peer: signal", p.Signal(t.ctx))
	own := near.buffer(total)
	near.filled("bytes that were not redirected", near.available(id, own, 0), own, 1, 0)
	d := far.do(desc{Type: reqCancel, Conn: there, Offset: tag})
	terminal(t, "cancellation", d, rspCancelled, stOK)
	d = far.answer(tag)
	terminal(t, "the buffer of the other queue", d, rspDone, stCancelled)
	near.finish(id)
	near.finish(home)
	far.finish(there)
}

// TestRX13_Pool: what the adapter shows in the buffers of a driver's pool is taken
// for no payload: the same bytes come once, in order, and the buffers come back.
func TestRX13_Pool(t *T) {
	const (
		rounds = 12
		piece  = 3000
		size   = 1000
		peeked = 100
	)
	a := t.driver()
	pool, err := a.NewPool(guestdriver.PoolConfig{Buffers: 4, Size: size})
	check(t, "make a pool", err)
	var s Script
	for i := range rounds {
		s = append(s, Step{Op: OpWait}, Step{Op: OpSend, N: piece, Seed: uint64(i)})
	}
	p, conn := t.dialPeer(a, append(s, Step{Op: OpFIN}, Step{Op: OpDiscard}))
	c := conn.(*guestdriver.Conn)
	check(t, "use the pool", c.SetPool(pool))
	check(t, "PEEK_WAIT", c.SetPeekWait(200*time.Microsecond))
	check(t, "PEEK", a.SetScalar(t.ctx, c.ID(), attrPeek, peeked))
	peeks, over := t.counterOf(a, ctrPeeks), t.counterOf(a, ctrPeeksOver)
	start := t.copies(a)
	got, expect := make([]byte, piece), make([]byte, piece)
	for i := range rounds {
		check(t, "peer: signal", p.Signal(t.ctx))
		_, err := io.ReadFull(c, got)
		check(t, "read", err)
		if Payload(expect, uint64(i), 0); string(got) != string(expect) {
			t.Fatalf("round %d: other bytes", i)
		}
	}
	if n, err := c.Read(got); n != 0 || err != io.EOF {
		t.Errorf("behind the last: %d bytes, %v", n, err)
	}
	peeks, over = t.counterOf(a, ctrPeeks)-peeks, t.counterOf(a, ctrPeeksOver)-over
	if peeks < rounds || over < rounds {
		t.Errorf("%d peeks, %d without an answer, want %d at least", peeks, over, rounds)
	}
	moved := t.copies(a).since(start)
	if least := uint64(rounds * (piece + 1)); moved.adapter < least || moved.adapter > rounds*piece+peeks*peeked {
		t.Errorf("%d bytes copied by the adapter in %d peeks", moved.adapter, peeks)
	}
	st := a.Stats()
	want(t, "responses that did not fit: tags, types, finals, connections, lengths",
		[5]uint64{st.BadTags, st.BadTypes, st.BadFinals, st.BadConns, st.BadLengths}, [5]uint64{})
	check(t, "close", c.Close())
	check(t, "close the pool", pool.Close())
}
