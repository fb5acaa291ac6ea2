// SPDX-License-Identifier: Apache-2.0

package conformance

import (
	"bytes"
	"encoding/binary"
	"errors"
	"net"
	"net/netip"
	"time"

	"toebox/guestdriver"
)

// address24 is an ADDRESS without a prefix (SPEC.md §6.1).
func address24(a netip.AddrPort) []byte {
	b := make([]byte, 24)
	b[0] = 4
	if a.Addr().Is6() {
		b[0] = 6
	}
	binary.LittleEndian.PutUint16(b[2:], a.Port())
	copy(b[8:], a.Addr().AsSlice())
	return b
}

// peered makes a datagram endpoint with a peer.
func (r *ring) peered(a netip.AddrPort, attrs ...func(*ctl)) uint64 {
	r.Helper()
	g := to(a)
	g.proto = 17
	d := r.connect(g, attrs...)
	terminal(r.T, "datagram endpoint for "+a.String(), d, rspCompletion, stOK)
	if d.Conn == 0 || d.Length == 0 {
		r.Fatalf("datagram endpoint: %v", d)
	}
	return d.Conn
}

// unpeered makes a datagram endpoint without one, on a port that the adapter
// picks, and returns its id and port.
func (r *ring) unpeered(family uint8, attrs ...func(*ctl)) (uint64, uint16) {
	r.Helper()
	d := r.listen(goal{proto: 17, family: family, count: 1}, attrs...)
	terminal(r.T, "datagram endpoint", d, rspListen, stOK)
	if d.Conn == 0 || d.Length == 0 || d.Length > 65535 {
		r.Fatalf("datagram endpoint: %v", d)
	}
	return d.Conn, uint16(d.Length)
}

// datagram sends one datagram, behind a header if there is one, and returns
// the response.
func (r *ring) datagram(conn uint64, header, payload []byte) desc {
	r.Helper()
	m := r.buffer(max(1, len(header)+len(payload)))
	off := 0
	if len(header)+len(payload) == 0 {
		off = 1 // an empty one
	}
	copy(m.Bytes[copy(m.Bytes, header):], payload)
	return r.answer(r.send(conn, m, off))
}

// arrives waits for the datagram of a posted buffer and compares it.
func (r *ring) arrives(what string, conn uint64, tag uint32, m guestdriver.DMA, header, payload []byte) {
	r.Helper()
	d := r.answer(tag)
	terminal(r.T, what, d, rspReceive, stOK)
	whole := append(append([]byte(nil), header...), payload...)
	if int(d.Length) != len(whole) || d.Offset != 0 || d.Conn != conn || d.Base != m.IOVA {
		r.Fatalf("%s: %v, want %d bytes", what, d, len(whole))
	}
	if !bytes.Equal(m.Bytes[:len(whole)], whole) {
		r.Errorf("%s: its bytes differ", what)
	}
}

func pattern(n int, seed uint64) []byte {
	b := make([]byte, n)
	Payload(b, seed, 0)
	return b
}

// echoes opens the peer's UDP port.
func (t *T) echoes() netip.AddrPort {
	t.Helper()
	s, err := t.Peer().Datagrams(t.ctx)
	check(t, "peer: datagrams", err)
	t.Cleanup(func() { s.Close() })
	return s.Addr()
}

// TestIF16_Boundaries: one send is one datagram is one buffer, from the empty
// one to the largest (SPEC.md §5.11).
func TestIF16_Boundaries(t *T) {
	c := t.start()
	r := c.ring(0, ringConfig{})
	id := r.peered(t.echoes())
	sent, delivered := c.counter(ctrDatagramsSent), c.counter(ctrDatagramsDelivered)
	m := r.buffer(65536)
	sizes := []int{1, 0, 1472, 1473, 9000, 65507, 0, 2}
	for i, n := range sizes {
		tag := r.available(id, m, 0)
		d := r.datagram(id, nil, pattern(n, uint64(i)))
		terminal(t, "send", d, rspDone, stOK)
		want(t, "length of a send", d.Length, uint32(n))
		r.arrives("the echo", id, tag, m, nil, pattern(n, uint64(i)))
	}
	want(t, "datagrams_sent", c.counter(ctrDatagramsSent)-sent, uint64(len(sizes)))
	want(t, "datagrams_delivered", c.counter(ctrDatagramsDelivered)-delivered, uint64(len(sizes)))
	terminal(t, "a datagram of 65,508 bytes", r.datagram(id, nil, make([]byte, 65508)), rspDone, stBadLength)

	// Two that wait are not merged; bulk buffers serve, too.
	for range 2 {
		terminal(t, "send", r.datagram(id, nil, pattern(10, 7)), rspDone, stOK)
	}
	for range 2 {
		tag := r.available(0, m, 0)
		r.arrives("a datagram in a bulk buffer", id, tag, m, nil, pattern(10, 7))
	}
	want(t, "STATE", r.scalar(reqConnAttr, id, 0x0203), 4)
	want(t, "PROTOCOL", r.scalar(reqConnAttr, id, 0x0200), 17)
	r.finish(id)
	want(t, "connections", c.counter(ctrConnections), 0)
}

// TestIF16_Truncated: what does not fit is lost, and the host learns how long
// the datagram was.
func TestIF16_Truncated(t *T) {
	c := t.start()
	r := c.ring(0, ringConfig{})
	at := t.echoes()
	before := c.counter(ctrDatagramsTruncated)
	id := r.peered(at)
	m := r.buffer(100)
	tag := r.available(id, m, 0)
	terminal(t, "send", r.datagram(id, nil, pattern(1000, 3)), rspDone, stOK)
	d := r.answer(tag)
	terminal(t, "a datagram of 1000 bytes in a buffer of 100", d, rspReceive, stTruncated)
	want(t, "its true length", d.Length, 1000)
	if !bytes.Equal(m.Bytes, pattern(1000, 3)[:100]) {
		t.Errorf("the bytes that fit differ")
	}
	tag = r.available(id, m, 0)
	terminal(t, "send", r.datagram(id, nil, pattern(5, 4)), rspDone, stOK)
	r.arrives("the next one", id, tag, m, nil, pattern(5, 4))

	loose, _ := r.unpeered(4)
	small := r.buffer(30)
	tag = r.available(loose, small, 0)
	terminal(t, "send", r.datagram(loose, address24(at), pattern(10, 5)), rspDone, stOK)
	d = r.answer(tag)
	terminal(t, "header and 10 bytes in a buffer of 30", d, rspReceive, stTruncated)
	want(t, "true length, with header", d.Length, 34)
	if !bytes.Equal(small.Bytes, append(address24(at), pattern(10, 5)[:6]...)) {
		t.Errorf("header, or the bytes that fit, differ")
	}
	want(t, "datagrams_truncated", c.counter(ctrDatagramsTruncated)-before, 2)
}

// TestIF16_Header: the address header of endpoints without a peer, both ways,
// and what is wrong with one.
func TestIF16_Header(t *T) {
	c := t.start()
	r := c.ring(0, ringConfig{})
	first, second := t.echoes(), t.echoes()
	id, port := r.unpeered(4)
	m := r.buffer(65536)
	for i, n := range []int{0, 1, 1473, 65507} {
		for _, at := range []netip.AddrPort{first, second} {
			tag := r.available(id, m, 0)
			d := r.datagram(id, address24(at), pattern(n, uint64(i)))
			terminal(t, "send", d, rspDone, stOK)
			want(t, "length of a send, with header", d.Length, uint32(24+n))
			r.arrives("the echo", id, tag, m, address24(at), pattern(n, uint64(i)))
		}
	}
	edit := func(at int, v byte) []byte {
		h := address24(first)
		h[at] = v
		return h
	}
	v6 := address24(netip.AddrPortFrom(netip.MustParseAddr("fd00:2::2"), 9))
	for _, k := range []struct {
		name   string
		header []byte
		status uint16
	}{
		{"of 23 bytes", address24(first)[:23], stBadLength},
		{"family 0", edit(0, 0), stBadAddress},
		{"family 5", edit(0, 5), stBadAddress},
		{"another family", v6, stBadAddress},
		{"a prefix", edit(1, 24), stBadAddress},
		{"a reserved byte", edit(5, 1), stBadAddress},
		{"port 0", address24(netip.AddrPortFrom(first.Addr(), 0)), stBadAddress},
		{"no address", address24(netip.AddrPortFrom(netip.IPv4Unspecified(), 9)), stBadAddress},
	} {
		d := r.datagram(id, k.header, nil)
		terminal(t, "header with "+k.name, d, rspDone, k.status)
		want(t, "length of a failed send", d.Length, 0)
	}
	terminal(t, "too long behind a header", r.datagram(id, address24(first), make([]byte, 65508)), rspDone, stBadLength)
	_, rs := r.attrs(reqConnAttr, id, new(ctl).get(0x0201, 24).get(0x0203, 8))
	local, _ := addressOf(rs[0].Value)
	want(t, "port of LOCAL", local.Port(), port)
	want(t, "STATE", rs[1].scalar(), 0)
	terminal(t, "a second one on the port", r.listen(goal{proto: 17, count: 1, lport: port}), rspListen, stAddressInUse)
	terminal(t, "one with a backlog", r.listen(goal{proto: 17, count: 1, backlog: 1}), rspListen, stReserved)
	terminal(t, "termination", r.terminate(id, 0), rspTerminated, stOK)
	terminal(t, "the port again", r.listen(goal{proto: 17, count: 1, lport: port}), rspListen, stOK)
}

// TestIF16_Refused: ICMP port unreachable is told once and ends nothing.
func TestIF16_Refused(t *T) {
	c := t.start()
	r := c.ring(0, ringConfig{})
	a, err := t.Peer().Unwilling(t.ctx)
	check(t, "peer: unwilling", err)
	id := r.peered(a)
	before := c.counter(ctrDatagramsRefused)
	m := r.buffer(100)
	for range 2 {
		first, second := r.available(id, m, 0), r.available(id, m, 0)
		terminal(t, "send", r.datagram(id, nil, pattern(1, 1)), rspDone, stOK)
		d := r.answer(first)
		terminal(t, "the oldest buffer", d, rspDone, stRefused)
		want(t, "length", d.Length, 0)
		terminal(t, "cancellation of the other", r.do(desc{Type: reqCancel, Conn: id, Offset: second}), rspCancelled, stOK)
		terminal(t, "the other", r.answer(second), rspDone, stCancelled)
	}
	// Without a buffer a send is told.
	t.until("a refused send", func() bool { return r.datagram(id, nil, pattern(1, 1)).Aux == stRefused })
	if n := c.counter(ctrDatagramsRefused) - before; n < 3 {
		t.Errorf("datagrams_refused counted %d", n)
	}
	want(t, "STATE", r.scalar(reqConnAttr, id, 0x0203), 4)
	r.finish(id)
}

// TestIF16_Dropped: datagrams that find no buffer wait up to RECEIVE_WINDOW;
// what is lost is counted.
func TestIF16_Dropped(t *T) {
	c := t.start()
	r := c.ring(0, ringConfig{})
	id := r.peered(t.echoes(), attr(0x0207, 4096))
	dropped := c.counter(ctrDatagramsDropped)
	// Each counts 512 bytes more than it has: 8 fit, empty as they are.
	for n := uint64(0); n < 30; n++ {
		terminal(t, "send", r.datagram(id, nil, nil), rspDone, stOK)
	}
	t.until("the drop of what has no room", func() bool { return c.counter(ctrDatagramsDropped)-dropped >= 22 })
	m := r.buffer(64)
	for range 8 {
		r.arrives("one that was held", id, r.available(id, m, 0), m, nil, nil)
	}
	want(t, "datagrams_dropped", c.counter(ctrDatagramsDropped)-dropped, 22)
	// A buffer that cannot be written costs the datagram.
	bad := r.post(desc{Type: reqAvailable, Base: 0x7fff_ffff_0000, Conn: id, Length: 64})
	good := r.available(id, m, 0)
	terminal(t, "send", r.datagram(id, nil, pattern(3, 1)), rspDone, stOK)
	terminal(t, "a buffer that is not mapped", r.answer(bad), rspDone, stBadMemory)
	terminal(t, "send", r.datagram(id, nil, pattern(4, 2)), rspDone, stOK)
	r.arrives("the next one", id, good, m, nil, pattern(4, 2))
	want(t, "datagrams_dropped", c.counter(ctrDatagramsDropped)-dropped, 23)
	// A send that cannot be read costs nothing else.
	d := r.do(desc{Type: reqSend, Modify: true, Base: 0x7fff_ffff_0000, Conn: id, Length: 10})
	terminal(t, "a send that is not mapped", d, rspDone, stBadMemory)
	tag := r.available(id, m, 0)
	terminal(t, "send", r.datagram(id, nil, pattern(6, 2)), rspDone, stOK)
	r.arrives("its echo", id, tag, m, nil, pattern(6, 2))
}

// TestIF16_Multicast: join, leave, loop and TTL over IPv4 and IPv6.
func TestIF16_Multicast(t *T) {
	c := t.start()
	r := c.ring(0, ringConfig{})
	for _, k := range []struct {
		family uint8
		group  netip.Addr
		own    uint16 // attribute of the adapter's address
	}{{4, netip.MustParseAddr("239.255.77.1"), 0x0101}, {6, netip.MustParseAddr("ff15::77:1"), 0x0102}} {
		_, rs := r.attrs(reqAdapter, 0, new(ctl).get(k.own, 24))
		own, _ := addressOf(rs[0].Value)
		a, aport := r.unpeered(k.family)
		b, bport := r.unpeered(k.family)
		join := func(conn uint64, attribute uint16, group netip.Addr) uint16 {
			_, rs := r.attrs(reqConnAttr, conn, new(ctl).tuple(true, attribute, address24(netip.AddrPortFrom(group, 0))))
			return rs[0].Status
		}
		want(t, "join", join(b, 0x021b, k.group), stOK)
		want(t, "join again", join(b, 0x021b, k.group), stAddressInUse)
		want(t, "join of a host", join(b, 0x021b, own.Addr()), stBadValue)
		_, rs = r.attrs(reqConnAttr, b, new(ctl).get(0x021b, 240))
		got, _ := addressOf(rs[0].Value)
		want(t, "groups", got, netip.AddrPortFrom(k.group, 0))
		want(t, "length of one group", rs[0].Length, 24)

		m := r.buffer(256)
		toGroup := address24(netip.AddrPortFrom(k.group, bport))
		source := address24(netip.AddrPortFrom(own.Addr(), aport))
		tag := r.available(b, m, 0)
		terminal(t, "send to the group", r.datagram(a, toGroup, pattern(50, 9)), rspDone, stOK)
		r.arrives("the group's datagram", b, tag, m, source, pattern(50, 9))

		// Loop off, and on again: what was sent between does not come.
		tag = r.available(b, m, 0)
		status, old := r.setScalar(reqConnAttr, a, 0x021a, 0)
		want(t, "set of MULTICAST_LOOP", status, stOK)
		want(t, "its default", old, 1)
		terminal(t, "send without loop", r.datagram(a, toGroup, pattern(51, 9)), rspDone, stOK)
		r.setScalar(reqConnAttr, a, 0x021a, 1)
		terminal(t, "send with loop", r.datagram(a, toGroup, pattern(52, 9)), rspDone, stOK)
		r.arrives("the looped one", b, tag, m, source, pattern(52, 9))

		want(t, "default of MULTICAST_TTL", r.scalar(reqConnAttr, a, 0x0219), 1)
		status, _ = r.setScalar(reqConnAttr, a, 0x0219, 33)
		want(t, "set of MULTICAST_TTL", status, stOK)
		status, _ = r.setScalar(reqConnAttr, a, 0x0219, 256)
		want(t, "MULTICAST_TTL 256", status, stBadValue)

		want(t, "leave", join(b, 0x021c, k.group), stOK)
		want(t, "leave again", join(b, 0x021c, k.group), stBadAddress)
		tag = r.available(b, m, 0)
		terminal(t, "send to a group that nobody is in", r.datagram(a, toGroup, pattern(53, 9)), rspDone, stOK)
		want(t, "join once more", join(b, 0x021b, k.group), stOK)
		terminal(t, "send", r.datagram(a, toGroup, pattern(54, 9)), rspDone, stOK)
		r.arrives("the one after the join", b, tag, m, source, pattern(54, 9))
		r.finish(a)
		r.finish(b)
	}
}

// TestIF16_Broadcast: allowed by attribute only.
func TestIF16_Broadcast(t *T) {
	c := t.start()
	r := c.ring(0, ringConfig{})
	_, rs := r.attrs(reqAdapter, 0, new(ctl).get(0x0101, 24))
	own, bits := addressOf(rs[0].Value)
	last := own.Addr().As4()
	for i := bits; i < 32; i++ {
		last[i/8] |= 0x80 >> (i % 8)
	}
	a, aport := r.unpeered(4)
	b, bport := r.unpeered(4)
	m := r.buffer(256)
	for _, to := range []netip.Addr{netip.AddrFrom4([4]byte{255, 255, 255, 255}), netip.AddrFrom4(last)} {
		header := address24(netip.AddrPortFrom(to, bport))
		status, _ := r.setScalar(reqConnAttr, a, 0x0218, 0)
		want(t, "set of BROADCAST", status, stOK)
		terminal(t, "a broadcast that is not allowed", r.datagram(a, header, pattern(9, 1)), rspDone, stBadAddress)
		status, _ = r.setScalar(reqConnAttr, a, 0x0218, 1)
		want(t, "set of BROADCAST", status, stOK)
		// The adapter is on its own link.
		tag := r.available(b, m, 0)
		frames := c.counter(ctrFramesSent)
		terminal(t, "a broadcast", r.datagram(a, header, pattern(9, 2)), rspDone, stOK)
		r.arrives("the broadcast", b, tag, m, address24(netip.AddrPortFrom(own.Addr(), aport)), pattern(9, 2))
		t.until("its frame", func() bool { return c.counter(ctrFramesSent) > frames })
	}
}

// TestIF16_Ends: cancellation, time limit, termination, limits and drain of
// datagram endpoints.
func TestIF16_Ends(t *T) {
	c := t.start()
	r := c.ring(0, ringConfig{})
	m := r.buffer(64)
	id, _ := r.unpeered(4)
	tag := r.available(id, m, 0)
	terminal(t, "cancellation by tag", r.do(desc{Type: reqCancel, Conn: id, Offset: tag}), rspCancelled, stOK)
	terminal(t, "the buffer", r.answer(tag), rspDone, stCancelled)
	tag = r.available(id, m, 0)
	terminal(t, "cancellation of the endpoint", r.do(desc{Type: reqCancel, Conn: id}), rspCancelled, stOK)
	terminal(t, "its buffer", r.answer(tag), rspDone, stCancelled)
	d := r.unsolicited(rspTerminated, id)
	want(t, "status of its end", d.Aux, stCancelled)
	terminal(t, "an id that is gone", r.answer(r.available(id, m, 0)), rspDone, stBadConnection)

	d = r.listen(goal{proto: 17, count: 1, limit: 100 * time.Millisecond})
	terminal(t, "one with a limit", d, rspListen, stOK)
	tag = r.available(d.Conn, m, 0)
	terminal(t, "its buffer", r.answer(tag), rspDone, stTimedOut)
	want(t, "status of its end", r.unsolicited(rspTerminated, d.Conn).Aux, stTimedOut)

	id, _ = r.unpeered(4)
	tag = r.available(id, m, 0)
	e := r.terminate(id, 2)
	terminal(t, "end of sending", e, rspTerminated, stOK)
	want(t, "how it ended", e.Length, 4)
	terminal(t, "a send after it", r.datagram(id, address24(netip.MustParseAddrPort("10.0.2.2:9")), nil), rspDone, stClosed)
	terminal(t, "end of receiving", r.terminate(id, 3), rspTerminated, stOK)
	terminal(t, "its buffer", r.answer(tag), rspDone, stClosed)
	terminal(t, "a buffer after it", r.answer(r.available(id, m, 0)), rspDone, stClosed)
	terminal(t, "termination", r.terminate(id, 0), rspTerminated, stOK)

	// Limits are those of connections.
	used := c.counter(ctrMemoryUsed)
	id, _ = r.unpeered(4)
	want(t, "connections", c.counter(ctrConnections), 1)
	if c.counter(ctrMemoryUsed) < used+8<<10 {
		t.Errorf("memory_used is %d, %d before", c.counter(ctrMemoryUsed), used)
	}
	r.setScalar(reqAdapter, 0, 0x010d, 1)
	terminal(t, "one over MAX_CONNECTIONS", r.listen(goal{proto: 17, count: 1}), rspListen, stNoMemory)
	r.setScalar(reqAdapter, 0, 0x010d, 65536)
	for _, a := range []uint16{0x0206, 0x0209, 0x020a, 0x020b, 0x0210, 0x0216, 0x0280, 0x0281, 0x0283, 0x028b} {
		_, rs := r.attrs(reqConnAttr, id, new(ctl).get(a, 8))
		want(t, "get of an attribute of streams", rs[0].Status, stNotSupported)
	}
	tag = r.available(id, m, 0)
	r.scalar(reqAdapter, 0, 0x0113) // the buffer was taken before
	r.command(4)
	terminal(t, "a buffer at a drain", r.answer(tag), rspDone, stCancelled)
}

// TestIF15_PacketConn: the driver's net.PacketConn and connected UDP.
func TestIF15_PacketConn(t *T) {
	a := t.driver()
	at := t.echoes()
	network := "udp4"
	if t.six {
		network = "udp6"
	}
	p, err := a.ListenPacket(network, ":0")
	check(t, "listen", err)
	c, err := a.DialContext(t.ctx, "udp", at.String())
	check(t, "dial", err)
	end, _ := t.ctx.Deadline()
	check(t, "deadline", errors.Join(p.SetDeadline(end), c.SetDeadline(end)))
	b := make([]byte, 1<<16)
	for i, n := range []int{0, 1, 1473, 65507} {
		_, err := p.WriteTo(pattern(n, uint64(i)), net.UDPAddrFromAddrPort(at))
		check(t, "write to", err)
		k, from, err := p.ReadFrom(b)
		check(t, "read from", err)
		if !bytes.Equal(b[:k], pattern(n, uint64(i))) || from.String() != at.String() {
			t.Errorf("read %d bytes of %d from %v", k, n, from)
		}
		_, err = c.Write(pattern(n, uint64(i)))
		check(t, "write", err)
		k, err = c.Read(b)
		check(t, "read", err)
		if !bytes.Equal(b[:k], pattern(n, uint64(i))) {
			t.Errorf("read %d bytes of %d", k, n)
		}
	}
	check(t, "close", errors.Join(p.Close(), c.Close()))
	if _, _, err := p.ReadFrom(b); !errors.Is(err, net.ErrClosed) {
		t.Errorf("read after close: %v", err)
	}
}
