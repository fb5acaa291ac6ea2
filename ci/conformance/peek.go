// SPDX-License-Identifier: Apache-2.0

package conformance

import (
	"io"
	"math/rand/v2"
	"time"

	"toebox/guestdriver"
)

// Of SPEC.md §14.12.
const (
	attrPeek = 0x0262
	peekWait = 0x0263

	ctrPeeks           = 135
	ctrPeekedBytes     = 136
	ctrPeeksAnswered   = 137
	ctrPeeksOver       = 138
	ctrRedirectedBytes = 139
	ctrRedirectsOver   = 140
)

// seen takes the result of a peek into m: n bytes of the stream of seed from a byte
// on.
func (r *ring) seen(what string, tag uint32, m guestdriver.DMA, n int, seed uint64, from int64) {
	r.Helper()
	d := r.answer(tag)
	expect := make([]byte, n)
	Payload(expect, seed, from)
	if d.Type != rspReceive || d.Flags != flagPeek|flagFinal || d.Aux != stOK || int(d.Length) != n || d.Offset != 0 || string(m.Bytes[:n]) != string(expect) {
		r.Fatalf("%s: %v, want a peek at %d bytes", what, d, n)
	}
}

// TestRX13_Peek: a buffer with PEEK gets a copy of bytes, which stay for the answer;
// without one in time, to the nanosecond, bulk buffers take them.
func TestRX13_Peek(t *T) {
	c := t.chooser(2, attr(peekWait, 10*ms))
	head, body, bulk := c.buffer(16), c.buffer(56), c.buffer(64)
	pool := c.available(0, bulk, 0)
	peek := c.available(c.id, head, flagPeek)
	check(t, "peer: signal", c.peer.Signal(t.ctx))
	c.seen("a peek", peek, head, 16, 1, 0)
	c.step(10*ms - 1)
	c.none("1 ns before PEEK_WAIT")
	c.filled("the answer", c.skipping(c.id, body, 8), body, 1, 8)
	c.moved("peeks", ctrPeeks, 1)
	c.moved("peeked_bytes", ctrPeekedBytes, 16)
	c.moved("peeks_answered", ctrPeeksAnswered, 1)

	peek = c.available(c.id, head, flagPeek)
	check(t, "peer: signal", c.peer.Signal(t.ctx))
	c.seen("a peek", peek, head, 16, 2, 0)
	c.step(10*ms - 1)
	c.none("1 ns before PEEK_WAIT")
	c.step(1)
	c.filledBulk(pool, bulk, 2)
	c.moved("peeks_over", ctrPeeksOver, 1)
	c.finish(c.id)
}

// TestRX13_Arrivals: with the attribute each arrival is shown in a bulk buffer.
func TestRX13_Arrivals(t *T) {
	c := t.chooser(2, attr(peekWait, 10*ms), attr(attrPeek, 12))
	head, body := c.buffer(64), c.buffer(64)
	tag := c.available(0, head, 0)
	check(t, "peer: signal", c.peer.Signal(t.ctx))
	c.seen("the first arrival", tag, head, 12, 1, 0)
	tag = c.available(0, head, 0)
	c.none("no answer yet")
	c.filled("the answer", c.available(c.id, body, 0), body, 1, 0)
	check(t, "peer: signal", c.peer.Signal(t.ctx))
	c.seen("the second arrival", tag, head, 12, 2, 0)
	c.step(10 * ms)
	c.filledBulk(c.available(0, head, 0), head, 2)
	c.moved("peeks", ctrPeeks, 2)
	c.moved("peeks_over", ctrPeeksOver, 1)
	for a, most := range map[uint16]uint64{attrPeek: 8 << 20, peekWait: 1<<63 - 1} {
		status, _ := c.setScalar(reqConnAttr, c.id, a, most+1)
		want(t, "status of a value beyond its bound", status, stBadValue)
		status, _ = c.setScalar(reqConnAttr, c.id, a, most)
		want(t, "status of a value at its bound", status, stOK)
	}
	c.finish(c.id)
}

// TestRX13_Redirect: bytes go to the buffers of another connection while it has
// some; then, in time, back to where they came from.
func TestRX13_Redirect(t *T) {
	c := t.chooser(1, attr(peekWait, 10*ms))
	_, to := c.serve(Script{{Op: OpDiscard}})
	dst, own := c.buffer(20), c.buffer(36)
	tag := c.available(to, dst, 0)
	redirect := c.post(desc{Type: reqAvailable, Flags: flagRedirect | flagSkip, Base: to, Conn: c.id, Length: 50, Offset: 8})
	check(t, "peer: signal", c.peer.Signal(t.ctx))
	d := c.answer(tag)
	expect := make([]byte, 20)
	Payload(expect, 1, 8)
	if d.Type != rspReceive || d.Flags != flagRedirect|flagFinal || d.Conn != c.id || d.Length != 20 || string(dst.Bytes) != string(expect) {
		t.Errorf("the destination's buffer: %v", d)
	}
	c.step(10*ms - 1)
	c.none("1 ns before PEEK_WAIT")
	c.step(1)
	d = c.answer(redirect)
	terminal(t, "the redirection", d, rspDone, stTimedOut)
	want(t, "bytes redirected", d.Length, 20)
	want(t, "bytes skipped", d.Offset, 8)
	c.filled("what is left", c.available(c.id, own, 0), own, 1, 28)
	c.moved("redirected_bytes", ctrRedirectedBytes, 20)
	c.moved("redirects_over", ctrRedirectsOver, 1)
	d = c.do(desc{Type: reqAvailable, Flags: flagRedirect, Base: c.id, Conn: c.id, Length: 50})
	terminal(t, "a redirection to itself", d, rspDone, stBadValue)
	c.finish(to)
	c.finish(c.id)
}

// TestRX13_Demultiplex: a connection carries records of two kinds with headers of
// 4 to 15 bytes. The host peeks at each header, has it skipped, and the payload goes
// to the buffers of another connection, one for each kind, without a copy by the
// host and with one by the adapter.
func TestRX13_Demultiplex(t *T) {
	const records = 40
	c := t.start()
	r := c.ring(0, ringConfig{})
	// What the peer sends is pseudo-random: its bytes are the headers, as they come.
	p, id := r.serve(Script{{Op: OpSend, N: 64 << 10, Seed: 5}, {Op: OpDiscard}}, attr(peekWait, 1<<62))
	stream := make([]byte, 64<<10)
	Payload(stream, 5, 0)
	rng := rand.New(rand.NewPCG(5, 5))
	var to [2]uint64
	for i := range to {
		_, to[i] = r.serve(Script{{Op: OpDiscard}})
	}
	before := map[uint32]uint64{}
	for _, i := range []uint32{ctrCopiesBytes, ctrPeekedBytes, ctrRedirectedBytes, ctrSkippedBytes} {
		before[i] = c.counter(i)
	}
	head := r.buffer(15)
	at, payload, peeked := 0, 0, uint64(0)
	for range records {
		// The header: its first byte says kind, length, and how long it is.
		known := 0
		size := 1
		for known < size {
			d := r.answer(r.available(id, head, flagPeek))
			if d.Type != rspReceive || d.Flags&flagPeek == 0 || int(d.Length) <= known || string(head.Bytes[:d.Length]) != string(stream[at:at+int(d.Length)]) {
				t.Fatalf("a peek at byte %d: %v", at, d)
			}
			known = int(d.Length)
			peeked += uint64(known)
			size = 4 + int(head.Bytes[0]>>1)%12
		}
		kind, n := int(head.Bytes[0]&1), 1+int(head.Bytes[1])|int(head.Bytes[2]&3)<<8
		// Its payload: into buffers of the destination, of any size.
		redirect := r.post(desc{Type: reqAvailable, Flags: flagRedirect | flagSkip, Base: to[kind], Conn: id, Length: uint32(n), Offset: uint32(size)})
		at += size
		for left := n; left > 0; {
			m := r.buffer(min(left, 1+rng.IntN(600)))
			tag := r.available(to[kind], m, 0)
			for got := 0; got < len(m.Bytes); {
				d := r.answer(tag)
				if d.Type != rspReceive || d.Flags&flagRedirect == 0 || d.Conn != id || int(d.Offset) != got || d.Length == 0 {
					t.Fatalf("payload at byte %d: %v", at+got, d)
				}
				got += int(d.Length)
			}
			if string(m.Bytes) != string(stream[at:at+len(m.Bytes)]) {
				t.Fatalf("other bytes than [%d, %d) of the stream", at, at+len(m.Bytes))
			}
			at += len(m.Bytes)
			left -= len(m.Bytes)
		}
		d := r.answer(redirect)
		terminal(t, "the redirection", d, rspDone, stOK)
		payload += n
	}
	moved := func(i uint32) uint64 { return c.counter(i) - before[i] }
	want(t, "redirected_bytes", moved(ctrRedirectedBytes), uint64(payload))
	want(t, "skipped_bytes", moved(ctrSkippedBytes), uint64(at-payload))
	want(t, "peeked_bytes", moved(ctrPeekedBytes), peeked)
	want(t, "copies by the adapter: one of each byte of payload, and what was peeked at", moved(ctrCopiesBytes), uint64(payload)+peeked)
	for _, id := range append(to[:], id) {
		r.finish(id)
	}
	p.Close()
}

// TestRX13_Driver is the demultiplexer over the driver: records of two kinds, whose
// headers it peeks at, go each to the buffers of its kind's connection; then what is
// left of the stream is skipped, all but the end of it. The host copies nothing.
func TestRX13_Driver(t *T) {
	const (
		total   = 64 << 10
		records = 40
		tail    = 100
		longest = 15 // of the headers
	)
	a := t.driver()
	p, conn := t.dialPeer(a, Script{{Op: OpWait}, {Op: OpSend, N: total, Seed: 5}, {Op: OpDiscard}})
	c := conn.(*guestdriver.Conn)
	c.SetReadAhead(false)
	check(t, "PEEK_WAIT", c.SetPeekWait(time.Hour)) // a slow host changes nothing
	stream := make([]byte, total)
	Payload(stream, 5, 0)

	q := guestdriver.NewCompletionQueue()
	var to [2]*guestdriver.Conn
	for i := range to {
		far, err := t.Peer().Serve(t.ctx, Script{{Op: OpDiscard}})
		check(t, "peer: serve", err)
		t.Cleanup(func() { far.Close() })
		d := a.Dialer()
		d.Near = c
		n, err := d.DialContext(t.ctx, "tcp", far.Addr().String())
		check(t, "dial", err)
		t.Cleanup(func() { n.Close() })
		to[i] = n.(*guestdriver.Conn)
		to[i].SetReadAhead(false)
		for _, b := range t.buffers(a, 2, 600) {
			check(t, "post a buffer", to[i].PostBuffer(b, q))
		}
	}
	head := t.buffers(a, 1, longest)[0]
	next := func() guestdriver.Completion {
		d, err := q.Next(t.ctx)
		check(t, "completion", err)
		return d
	}
	before, old := a.Stats(), t.copies(a)
	check(t, "peer: signal", p.Signal(t.ctx))

	r := &guestdriver.Redirect{}
	at, payload, peeked := 0, 0, uint64(0)
	for range records {
		for known, size := 0, 1; known < size; {
			check(t, "peek", c.PeekBuffer(head, 0, q))
			d := next()
			if d.Buffer != head || d.Conn != c || d.Op != guestdriver.OpPeek || d.Err != nil || !d.Final || d.N <= known ||
				string(head.Bytes()[:d.N]) != string(stream[at:at+d.N]) {
				t.Fatalf("a peek at byte %d, of which %d are known: %+v", at, known, d)
			}
			known = d.N
			peeked += uint64(known)
			size = 4 + int(head.Bytes()[0]>>1)%12
			r.Skip = size
		}
		h := head.Bytes()
		r.To, r.N = to[h[0]&1], 1+int(h[1])|int(h[2]&3)<<8
		check(t, "redirect", c.PostRedirect(r, q))
		at += r.Skip
		end := at + r.N
		d := next()
		for ; d.Redirect == nil; d = next() {
			if d.Conn != r.To || d.From != c || d.Op != guestdriver.OpReceive || d.Err != nil || d.N == 0 || at+d.N > end ||
				string(d.Buffer.Bytes()[d.Offset:d.Offset+d.N]) != string(stream[at:at+d.N]) {
				t.Fatalf("payload at byte %d: %+v", at, d)
			}
			at += d.N
			if d.Final {
				check(t, "post a buffer again", d.Conn.PostBuffer(d.Buffer, q))
			}
		}
		want(t, "end of a redirection", d,
			guestdriver.Completion{Redirect: r, Conn: c, Op: guestdriver.OpRedirect, N: r.N, Skipped: r.Skip, Final: true})
		want(t, "bytes in the destination, up to", at, end)
		payload += r.N
	}

	last := t.buffers(a, 1, tail)[0]
	rest := total - tail - at
	check(t, "post a buffer behind what is skipped", c.PostBufferSkip(last, rest, q))
	for n := 0; n < tail; {
		d := next()
		if n += d.N; d.Buffer != last || d.Conn != c || d.N == 0 || d.Err != nil || d.Final != (n == tail) || d.Final && d.Skipped != rest {
			t.Fatalf("behind %d bytes that are skipped: %+v", rest, d)
		}
	}
	want(t, "the last bytes", string(last.Bytes()), string(stream[total-tail:]))

	s := a.Stats()
	want(t, "redirections", s.Redirects-before.Redirects, records)
	want(t, "bytes redirected", s.RedirectedBytes-before.RedirectedBytes, uint64(payload))
	want(t, "bytes skipped", s.SkippedBytes-before.SkippedBytes, uint64(total-tail-payload))
	want(t, "bytes peeked at", s.PeekedBytes-before.PeekedBytes, peeked)
	moved := t.copies(a).since(old)
	want(t, "copies by the host, in registered memory, by the adapter, in bytes",
		copies{moved.host, moved.direct, moved.adapter, 0}, copies{0, uint64(payload + tail), uint64(payload+tail) + peeked, 0})

	for _, d := range to {
		check(t, "close a destination", d.Close())
	}
	for range 4 {
		if d := next(); !d.Final || d.N != 0 || d.Err == nil || d.Conn != to[0] && d.Conn != to[1] {
			t.Errorf("a buffer of a closed destination: %+v", d)
		}
	}
	check(t, "peek", c.PeekBuffer(head, 0, q))
	check(t, "half-close", c.CloseWrite())
	if d := next(); d.Err != io.EOF || d.N != 0 || !d.Final {
		t.Errorf("a peek at the end: %+v", d)
	}
	want(t, "peer's error", t.outcome(p).Err, "")
}
