// SPDX-License-Identifier: Apache-2.0

package conformance

import (
	"bytes"
	"fmt"
	"net/netip"

	"toebox/guestdriver"
)

// control posts a control request over a fresh control buffer and returns the
// buffer and the request's tag.
func (r *ring) control(typ uint8, conn uint64, k *ctl) (guestdriver.DMA, uint32) {
	r.Helper()
	m := r.alloc(max(len(k.b), 8))
	copy(m.Bytes, k.b)
	tag := r.post(desc{Type: typ, Aux: uint16(k.tuples), Base: m.IOVA, Length: uint32(len(k.b)), Conn: conn})
	return m, tag
}

// attrs runs an attribute control (7 or 8) and returns its response and the
// results of the tuples.
func (r *ring) attrs(typ uint8, conn uint64, k *ctl) (desc, []result) {
	r.Helper()
	m, tag := r.control(typ, conn, k)
	d := r.answer(tag)
	want(r.T, "type of the response to an attribute control", d.Type, typ+16)
	return d, k.results(m.Bytes)
}

// scalar reads a scalar attribute.
func (r *ring) scalar(typ uint8, conn uint64, attr uint16) uint64 {
	r.Helper()
	_, rs := r.attrs(typ, conn, new(ctl).get(attr, 8))
	if rs[0].Status != stOK || rs[0].Length != 8 {
		r.Errorf("get of attribute %#04x: status %d, length %d", attr, rs[0].Status, rs[0].Length)
	}
	return rs[0].scalar()
}

// setScalar sets a scalar attribute and returns the status and the previous value.
func (r *ring) setScalar(typ uint8, conn uint64, attr uint16, v uint64) (uint16, uint64) {
	r.Helper()
	_, rs := r.attrs(typ, conn, new(ctl).set(attr, v))
	return rs[0].Status, rs[0].scalar()
}

// connect opens one connection and returns the completion.
func (r *ring) connect(g goal, attrs ...func(*ctl)) desc {
	r.Helper()
	k := new(ctl)
	for _, a := range attrs {
		a(k)
	}
	k.target(g)
	_, tag := r.control(reqConnect, 0, k)
	return r.answer(tag)
}

// dial opens one connection that must succeed and returns its id.
func (r *ring) dial(a netip.AddrPort, attrs ...func(*ctl)) uint64 {
	r.Helper()
	d := r.connect(to(a), attrs...)
	terminal(r.T, "connect to "+a.String(), d, rspCompletion, stOK)
	if d.Conn == 0 {
		r.Fatalf("connect answered without a connection id: %v", d)
	}
	return d.Conn
}

// attr is an option of connect and listen: a scalar for the targets behind it.
func attr(id uint16, v uint64) func(*ctl) { return func(k *ctl) { k.set(id, v) } }

// serve has the peer serve a script and dials it.
func (r *ring) serve(s Script, attrs ...func(*ctl)) (Session, uint64) {
	r.Helper()
	p, err := r.Peer().Serve(r.ctx, s)
	check(r.T, "peer: serve", err)
	r.Cleanup(func() { p.Close() })
	return p, r.dial(p.Addr(), attrs...)
}

// outcome waits for the peer's result.
func (t *T) outcome(p Session) Result {
	t.Helper()
	res, err := p.Result(t.ctx)
	check(t, "peer: result", err)
	return res
}

// listen opens a listener on a port and returns the response.
func (r *ring) listen(g goal, attrs ...func(*ctl)) desc {
	r.Helper()
	if r.six && g.family == 0 {
		g.family = 6
	}
	k := new(ctl)
	for _, a := range attrs {
		a(k)
	}
	k.target(g)
	_, tag := r.control(reqListen, 0, k)
	return r.answer(tag)
}

// reachable is one port of the adapter that the peer can dial.
func (t *T) reachable() uint16 {
	t.Helper()
	ports, err := t.Peer().Reachable(t.ctx, 1)
	check(t, "peer: reachable ports", err)
	return ports[0]
}

// buffer is DMA memory to send from or receive into.
func (r *ring) buffer(n int) guestdriver.DMA { return r.alloc(n) }

// send posts a send of [off, len) of a buffer.
func (r *ring) send(conn uint64, m guestdriver.DMA, off int) uint32 {
	r.Helper()
	return r.post(desc{Type: reqSend, Modify: true, Base: m.IOVA, Conn: conn, Length: uint32(len(m.Bytes)), Offset: uint32(off)})
}

// sendAll sends the bytes of seed [0, n) through a buffer of its own and waits
// for the result.
func (r *ring) sendAll(conn uint64, n int, seed uint64) {
	r.Helper()
	m := r.buffer(n)
	Payload(m.Bytes, seed, 0)
	d := r.answer(r.send(conn, m, 0))
	terminal(r.T, "send", d, rspDone, stOK)
	want(r.T, "length of a complete send", d.Length, uint32(n))
}

// available posts a receive buffer for a connection, or a bulk buffer (0).
func (r *ring) available(conn uint64, m guestdriver.DMA, flags uint8) uint32 {
	r.Helper()
	return r.post(desc{Type: reqAvailable, Flags: flags, Base: m.IOVA, Conn: conn, Length: uint32(len(m.Bytes))})
}

// stream receives the bytes of seed [from, from+n) through own buffers of size
// bytes and checks each delivery where it stands.
func (r *ring) stream(conn uint64, seed uint64, from int64, n int, size int) {
	r.Helper()
	m := r.buffer(size)
	expect := make([]byte, size)
	for n > 0 {
		piece := m
		piece.Bytes = m.Bytes[:min(size, n)]
		tag := r.available(conn, piece, 0)
		at := 0
		for at < len(piece.Bytes) {
			d := r.answer(tag)
			if d.Type != rspReceive || d.Aux != stOK || int(d.Offset) != at || d.Length == 0 ||
				int(d.Offset)+int(d.Length) > len(piece.Bytes) || d.Base != m.IOVA || d.Conn != conn {
				r.Fatalf("receive at %d of %d: %v", at, len(piece.Bytes), d)
			}
			b := piece.Bytes[at : at+int(d.Length)]
			Payload(expect[:len(b)], seed, from)
			if !bytes.Equal(b, expect[:len(b)]) {
				r.Fatalf("received bytes differ in [%d, %d) of the stream", from, from+int64(len(b)))
			}
			at += len(b)
			from += int64(len(b))
			n -= len(b)
			want(r.T, "FINAL with a full buffer", d.final(), at == len(piece.Bytes))
		}
	}
}

// terminate ends a connection and returns the response.
func (r *ring) terminate(conn uint64, mode uint32) desc {
	r.Helper()
	return r.do(desc{Type: reqTerminate, Conn: conn, Length: mode})
}

// finish aborts a connection and checks that its id is gone.
func (r *ring) finish(conn uint64) {
	r.Helper()
	d := r.terminate(conn, 1)
	terminal(r.T, fmt.Sprintf("abort of %#x", conn), d, rspTerminated, stOK)
	d = r.terminate(conn, 1)
	terminal(r.T, "termination of an id that is gone", d, rspTerminated, stBadConnection)
}
