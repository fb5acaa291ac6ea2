// SPDX-License-Identifier: Apache-2.0

package conformance

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"fmt"

	"toebox/guestdriver"
)

func sum(b []byte) string {
	h := sha256.Sum256(b)
	return hex.EncodeToString(h[:])
}

// TestMM01_Buffered sends from and receives into bulk buffers shared by
// several connections, byte exact.
func TestMM01_Buffered(t *T) {
	c := t.start()
	r := c.ring(0, ringConfig{inLog: 8, outLog: 8})
	const conns, size, total = 4, 16 << 10, 400_000
	p, err := t.Peer().Serve(t.ctx, Script{{Op: OpEcho}})
	check(t, "peer: serve", err)
	t.Cleanup(func() { p.Close() })
	bulk := map[uint32]guestdriver.DMA{}
	for range 16 {
		m := r.buffer(size)
		bulk[r.available(0, m, 0)] = m
	}
	type state struct {
		seed uint64
		sent int
		got  int
		tag  uint32
		buf  guestdriver.DMA
	}
	all := map[uint64]*state{}
	more := func(id uint64, s *state) {
		if n := min(size, total-s.sent); n > 0 {
			b := s.buf
			b.Bytes = b.Bytes[:n]
			Payload(b.Bytes, s.seed, int64(s.sent))
			s.sent += n
			s.tag = r.send(id, b, 0)
		}
	}
	for i := range conns {
		all[r.dial(p.Addr())] = &state{seed: uint64(100 + i), buf: r.buffer(size)}
	}
	pool := c.counter(ctrPoolDeliveries)
	for id, s := range all {
		more(id, s)
	}
	expect := make([]byte, size)
	for left := conns * total; left > 0; {
		d := r.take("a delivery or a completed send", func(d desc) bool { return d.Type == rspReceive || d.Type == rspDone })
		s := all[d.Conn]
		if s == nil {
			t.Fatalf("response for an unknown connection: %v", d)
		}
		if d.Type == rspDone {
			terminal(t, "send", d, rspDone, stOK)
			more(d.Conn, s)
			continue
		}
		m, ok := bulk[d.Tag]
		if !ok || !d.final() || d.Base != m.IOVA || int(d.Offset)+int(d.Length) > size || d.Length == 0 {
			t.Fatalf("delivery into a bulk buffer: %v", d)
		}
		delete(bulk, d.Tag)
		b := m.Bytes[d.Offset : d.Offset+d.Length]
		Payload(expect[:len(b)], s.seed, int64(s.got))
		if !bytes.Equal(b, expect[:len(b)]) {
			t.Fatalf("bytes [%d, %d) of connection %#x differ", s.got, s.got+len(b), d.Conn)
		}
		s.got += len(b)
		left -= len(b)
		bulk[r.available(0, m, 0)] = m
	}
	if c.counter(ctrPoolDeliveries) == pool {
		t.Errorf("pool_deliveries did not move")
	}
	for id := range all {
		r.finish(id)
	}
}

// TestMM05_PartialReceive: data is appended to a buffer that already holds
// some; each response says offset and length; full is FINAL.
func TestMM05_PartialReceive(t *T) {
	c := t.start()
	r := c.ring(0, ringConfig{})
	p, id := r.serve(Script{
		{Op: OpSend, N: 100, Seed: 7}, {Op: OpWait}, {Op: OpSend, N: 50, Seed: 8}, {Op: OpWait}, {Op: OpSend, N: 850, Seed: 9}, {Op: OpDiscard},
	})
	own := c.counter(ctrOwnDeliveries)
	m := r.buffer(512)
	const skip = 12 // filled from there
	for i := range skip {
		m.Bytes[i] = 0xee
	}
	tag := r.post(desc{Type: reqAvailable, Base: m.IOVA, Conn: id, Length: 512, Offset: skip})
	at := uint32(skip)
	for _, part := range []uint32{100, 50, 350} {
		for end := at + part; at < end; {
			d := r.answer(tag)
			if d.Type != rspReceive || d.Offset != at || d.Length == 0 || at+d.Length > 512 || d.Base != m.IOVA {
				t.Fatalf("delivery at %d: %v", at, d)
			}
			at += d.Length
			want(t, fmt.Sprintf("FINAL at %d of 512", at), d.final(), at == 512)
		}
		if at < 512 {
			check(t, "peer: signal", p.Signal(t.ctx))
		}
	}
	expect := bytes.Repeat([]byte{0xee}, 512)
	Payload(expect[12:112], 7, 0)
	Payload(expect[112:162], 8, 0)
	Payload(expect[162:], 9, 0)
	if !bytes.Equal(m.Bytes, expect) {
		t.Errorf("bytes differ")
	}
	if c.counter(ctrOwnDeliveries) == own {
		t.Errorf("own_deliveries did not move")
	}
	r.stream(id, 9, 350, 500, 500)
	r.finish(id)
}

// TestMM05_PartialSend: the same buffer filled and sent in parts, by offset.
func TestMM05_PartialSend(t *T) {
	c := t.start()
	r := c.ring(0, ringConfig{})
	p, id := r.serve(Script{{Op: OpDiscard}})
	m := r.buffer(3000)
	Payload(m.Bytes, 1, 0)
	for _, part := range [][2]uint32{{0, 1000}, {1000, 1700}, {1700, 3000}} {
		tag := r.post(desc{Type: reqSend, Modify: true, Base: m.IOVA, Conn: id, Length: part[1], Offset: part[0]})
		d := r.answer(tag)
		terminal(t, "send of a part", d, rspDone, stOK)
		want(t, "offset", d.Offset, part[0])
		want(t, "length: bytes that reached the completion point", d.Length, part[1]-part[0])
		want(t, "base", d.Base, m.IOVA)
	}
	terminal(t, "termination", r.terminate(id, 0), rspTerminated, stOK)
	res := t.outcome(p)
	want(t, "SHA-256 at the peer", res.Sum, sum(m.Bytes))
}

// TestMM05_Once: ONCE makes the first delivery final, however little.
func TestMM05_Once(t *T) {
	c := t.start()
	r := c.ring(0, ringConfig{})
	_, id := r.serve(Script{{Op: OpSend, N: 10, Seed: 7}, {Op: OpDiscard}})
	m := r.buffer(512)
	d := r.answer(r.available(id, m, flagOnce))
	terminal(t, "first delivery into a ONCE buffer", d, rspReceive, stOK)
	if d.Length == 0 || d.Length > 10 {
		t.Errorf("delivery of %d bytes", d.Length)
	}
	r.finish(id)
}

// TestMM14_CompletionPoint: with point 0 a send is done when the adapter has
// read it, with point 2 when the peer acknowledged it; the response says which.
func TestMM14_CompletionPoint(t *T) {
	c := t.start()
	r := c.ring(0, ringConfig{})
	for point := uint64(0); point <= 2; point++ {
		p, id := r.serve(Script{{Op: OpDiscard}}, attr(0x0215, point))
		want(t, "COMPLETION_POINT", r.scalar(reqConnAttr, id, 0x0215), point)
		m := r.buffer(100_000)
		Payload(m.Bytes, 5, 0)
		d := r.answer(r.send(id, m, 0))
		terminal(t, "send", d, rspDone, stOK)
		want(t, "length of a complete send", d.Length, 100_000)
		want(t, "bits 1..0 of byte 0", [2]bool{d.ASAP, d.Modify}, [3][2]bool{{true, false}, {false, true}, {}}[point])
		_, rs := r.attrs(reqConnAttr, id, new(ctl).get(0x0282, 8).get(0x0283, 8))
		want(t, "BYTES_SENT", rs[0].scalar(), 100_000)
		if point == 2 {
			want(t, "BYTES_ACKED when a send is done at point 2", rs[1].scalar(), 100_000)
		}
		terminal(t, "termination", r.terminate(id, 0), rspTerminated, stOK)
		res := t.outcome(p)
		want(t, "bytes at the peer", res.Received, 100_000)
	}
	status, _ := r.setScalar(reqConnAttr, 0, 0x0215, 3)
	want(t, "COMPLETION_POINT 3", status, stBadValue)
}

// TestMM14_Unacknowledged: what a stopped peer cannot take is not done at point
// 2, although the adapter may have read it.
func TestMM14_Unacknowledged(t *T) {
	c := t.start()
	r := c.ring(0, ringConfig{})
	p, id := r.serve(Script{{Op: OpWait}, {Op: OpDiscard}})
	m := r.buffer(24 << 20)
	Payload(m.Bytes, 6, 0)
	tag := r.send(id, m, 0)
	r.quiet("the end of a send that the peer does not read", func(d desc) bool { return d.Tag == tag })
	check(t, "peer: signal", p.Signal(t.ctx))
	d := r.answer(tag)
	terminal(t, "the send once the peer reads", d, rspDone, stOK)
	want(t, "its length", d.Length, 24<<20)
	terminal(t, "termination", r.terminate(id, 0), rspTerminated, stOK)
	want(t, "SHA-256 at the peer", t.outcome(p).Sum, sum(m.Bytes))
}

// TestRX07_Pool: without a buffer of its own a connection takes bulk buffers
// of its queue in the order posted; its own come first.
func TestRX07_Pool(t *T) {
	c := t.start()
	r := c.ring(0, ringConfig{})
	a, b := r.buffer(1000), r.buffer(1000)
	first, second := r.available(0, a, 0), r.available(0, b, 0)
	p, id := r.serve(Script{{Op: OpWait}, {Op: OpSend, N: 300, Seed: 1}, {Op: OpWait}, {Op: OpSend, N: 300, Seed: 2}, {Op: OpDiscard}})
	check(t, "peer: signal", p.Signal(t.ctx))
	d := r.take("a delivery", func(d desc) bool { return d.Type == rspReceive })
	terminal(t, "delivery into the first bulk buffer", d, rspReceive, stOK)
	want(t, "tag", d.Tag, first)
	want(t, "connection", d.Conn, id)
	got := d.Length
	own := r.buffer(600)
	tag := r.available(id, own, 0)
	for got < 300 {
		d = r.take("the rest", func(d desc) bool { return d.Type == rspReceive })
		got += d.Length
	}
	check(t, "peer: signal", p.Signal(t.ctx))
	d = r.take("a delivery", func(d desc) bool { return d.Type == rspReceive })
	want(t, "tag: the connection's own buffer first", d.Tag, tag)
	if _, ok := r.open[second]; !ok {
		t.Logf("the second bulk buffer was used by a split first delivery")
	}
	r.finish(id)
}

// TestRX07_Empty: no buffer anywhere: the bytes stay in the adapter, the window
// closes, the peer stops, and nothing is lost when buffers come.
func TestRX07_Empty(t *T) {
	c := t.start()
	r := c.ring(0, ringConfig{inLog: 8, outLog: 8})
	const total = 24 << 20
	empty := c.counter(ctrPoolEmpty)
	p, id := r.serve(Script{{Op: OpSend, N: total, Seed: 11}}, attr(0x0207, 65536))
	t.until("pool_empty to move", func() bool { return c.counter(ctrPoolEmpty) > empty })
	var got uint64
	t.until("the window to close", func() bool {
		old := got
		pause(nothing / 2)
		_, rs := r.attrs(reqConnAttr, id, new(ctl).get(0x0284, 8))
		got = rs[0].scalar()
		return got > 0 && got == old
	})
	if got > 16<<20 {
		t.Errorf("the adapter took %d bytes without any buffer", got)
	}
	r.stream(id, 11, 0, total, 256<<10)
	d := r.unsolicited(rspTerminated, id)
	want(t, "how it ended: remote end of stream", d.Length, 5)
	want(t, "peer's error", t.outcome(p).Err, "")
	want(t, "BYTES_DELIVERED", r.scalar(reqConnAttr, id, 0x0285), total)
	r.finish(id)
}

// TestMM01_BadMemory: a buffer where no memory is gets BAD_MEMORY; bytes that
// could not be written are not lost.
func TestMM01_BadMemory(t *T) {
	c := t.start()
	r := c.ring(0, ringConfig{})
	_, id := r.serve(Script{{Op: OpSend, N: 500, Seed: 4}, {Op: OpDiscard}})
	hole := guestdriver.DMA{IOVA: 0x7fff_ffff_0000, Bytes: make([]byte, 4096)}
	d := r.answer(r.available(id, hole, 0))
	if d.Aux != stBadMemory || !d.final() || d.Length != 0 {
		t.Errorf("a receive buffer where no memory is: %v", d)
	}
	r.stream(id, 4, 0, 500, 500)
	d = r.answer(r.send(id, hole, 0))
	if d.Aux != stBadMemory || !d.final() || d.Length != 0 {
		t.Errorf("a send from where no memory is: %v", d)
	}
	terminal(t, "termination", r.terminate(id, 1), rspTerminated, stOK)
}

// TestIF10_Order: sends of one connection act in the order of the table, and
// their results come in that order.
func TestIF10_Order(t *T) {
	c := t.start()
	r := c.ring(0, ringConfig{inLog: 8, outLog: 8})
	p, id := r.serve(Script{{Op: OpDiscard}})
	m := r.buffer(100 * 700)
	Payload(m.Bytes, 21, 0)
	var tags []uint32
	for i := range 100 {
		tags = append(tags, r.post(desc{Type: reqSend, Modify: true, Base: m.IOVA + uint64(700*i), Conn: id, Length: 700}))
	}
	for _, tag := range tags {
		d := r.take("the next send's result", func(d desc) bool { return d.Type == rspDone })
		want(t, "order of results", d.Tag, tag)
	}
	terminal(t, "termination", r.terminate(id, 0), rspTerminated, stOK)
	want(t, "SHA-256 at the peer", t.outcome(p).Sum, sum(m.Bytes))
}
