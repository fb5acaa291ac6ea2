// SPDX-License-Identifier: Apache-2.0

package conformance

import (
	"fmt"
	"net/netip"
	"time"
)

// TestIF09_ConnectionIDs: ids carry the generation, are never used twice, and
// an id that is gone names nothing (SPEC.md §5.2).
func TestIF09_ConnectionIDs(t *T) {
	c := t.start()
	r := c.ring(0, ringConfig{})
	p, err := t.Peer().Serve(t.ctx, Script{{Op: OpDiscard}})
	check(t, "peer: serve", err)
	t.Cleanup(func() { p.Close() })
	generation := uint64(c.read(regGeneration)) & 0xffff
	seen := map[uint64]bool{}
	for range 20 {
		id := r.dial(p.Addr())
		want(t, "bits 63..48 of the id", id>>48, generation)
		if id&(1<<48-1) == 0 {
			t.Errorf("id %#x has counter 0", id)
		}
		if seen[id] {
			t.Fatalf("id %#x given twice", id)
		}
		seen[id] = true
		r.finish(id)
	}
	m := r.buffer(16)
	for id := range seen {
		terminal(t, "send on an id that is gone", r.do(desc{Type: reqSend, Modify: true, Base: m.IOVA, Conn: id, Length: 16}), rspDone, stBadConnection)
		terminal(t, "buffer for an id that is gone", r.answer(r.available(id, m, 0)), rspDone, stBadConnection)
		break
	}
	terminal(t, "send on id 0", r.do(desc{Type: reqSend, Modify: true, Base: m.IOVA, Length: 16}), rspDone, stBadConnection)
	terminal(t, "termination of id 0", r.terminate(0, 1), rspTerminated, stBadConnection)
}

// TestIF09_WrongQueue: a request that names another queue's connection.
func TestIF09_WrongQueue(t *T) {
	c := t.start()
	a, b := c.ring(0, ringConfig{}), c.ring(3, ringConfig{})
	_, id := a.serve(Script{{Op: OpDiscard}})
	m := b.buffer(16)
	terminal(t, "send", b.do(desc{Type: reqSend, Modify: true, Base: m.IOVA, Conn: id, Length: 16}), rspDone, stWrongQueue)
	terminal(t, "buffer available", b.answer(b.available(id, m, 0)), rspDone, stWrongQueue)
	terminal(t, "termination", b.terminate(id, 1), rspTerminated, stWrongQueue)
	a.sendAll(id, 100, 1)
	a.finish(id)
}

// TestCE01_Connect: the completion says id, ordinal, cookie and local port,
// and the attributes of the connection agree (SPEC.md §5.6).
func TestCE01_Connect(t *T) {
	c := t.start()
	r := c.ring(0, ringConfig{})
	p, err := t.Peer().Serve(t.ctx, Script{{Op: OpEcho}})
	check(t, "peer: serve", err)
	t.Cleanup(func() { p.Close() })
	g := to(p.Addr())
	g.cookie = 0x1122334455667788
	started, ok := c.counter(ctrConnects), c.counter(ctrConnectsOK)
	d := r.connect(g)
	terminal(t, "connect", d, rspCompletion, stOK)
	want(t, "ordinal", d.Offset, 0)
	want(t, "cookie", d.Base, 0x1122334455667788)
	if d.Length == 0 || d.Length > 65535 {
		t.Errorf("local port is %d", d.Length)
	}
	want(t, "connects", c.counter(ctrConnects)-started, 1)
	want(t, "connects_ok", c.counter(ctrConnectsOK)-ok, 1)
	want(t, "connections", c.counter(ctrConnections), 1)
	_, rs := r.attrs(reqConnAttr, d.Conn, new(ctl).get(0x0200, 8).get(0x0201, 24).get(0x0202, 24).get(0x0203, 8).get(0x028b, 8))
	want(t, "PROTOCOL", rs[0].scalar(), 6)
	local, _ := addressOf(rs[1].Value)
	want(t, "port of LOCAL", uint32(local.Port()), d.Length)
	remote, _ := addressOf(rs[2].Value)
	want(t, "REMOTE", remote, p.Addr())
	want(t, "STATE, established", rs[3].scalar(), 4)
	if mss := rs[4].scalar(); mss < 256 || mss > 65535 {
		t.Errorf("MSS is %d", mss)
	}
	own := uint16(0x0101)
	if t.six {
		own = 0x0102
	}
	_, rs = r.attrs(reqAdapter, 0, new(ctl).get(own, 24))
	adapter, _ := addressOf(rs[0].Value)
	want(t, "address of LOCAL", local.Addr(), adapter.Addr())
	r.finish(d.Conn)
	want(t, "connections after the end", c.counter(ctrConnections), 0)
}

// TestCE01_LocalPort: the host may choose the local port; the same again is in use.
func TestCE01_LocalPort(t *T) {
	c := t.start()
	r := c.ring(0, ringConfig{})
	p, err := t.Peer().Serve(t.ctx, Script{{Op: OpDiscard}})
	check(t, "peer: serve", err)
	t.Cleanup(func() { p.Close() })
	g := to(p.Addr())
	g.lport = uint16(20000 + t.rng.IntN(10000))
	d := r.connect(g)
	terminal(t, "connect from a chosen port", d, rspCompletion, stOK)
	want(t, "local port", d.Length, uint32(g.lport))
	again := r.connect(g)
	terminal(t, "the same again", again, rspCompletion, stAddressInUse)
	want(t, "id of a failure", again.Conn, 0)
	g.lport, g.local = 0, netip.AddrFrom4([4]byte{203, 0, 113, 7})
	terminal(t, "from an address that is not the adapter's", r.connect(g), rspCompletion, stBadAddress)
	r.finish(d.Conn)
}

// TestCE01_Refused: a port where nobody listens.
func TestCE01_Refused(t *T) {
	c := t.start()
	r := c.ring(0, ringConfig{})
	a, err := t.Peer().Refused(t.ctx)
	check(t, "peer: refused", err)
	failed := c.counter(ctrConnectsFailed)
	for range 3 {
		d := r.connect(to(a))
		terminal(t, "connect to a port where nobody listens", d, rspCompletion, stRefused)
		want(t, "id of a failure", d.Conn, 0)
	}
	want(t, "connects_failed", c.counter(ctrConnectsFailed)-failed, 3)
	want(t, "connections", c.counter(ctrConnections), 0)
}

// TestCE01_Unreachable: nobody answers on the link.
func TestCE01_Unreachable(t *T) {
	c := t.start()
	r := c.ring(0, ringConfig{})
	g := to(netip.AddrPortFrom(t.Peer().Unreachable().Addr(), 9))
	d := r.connect(g)
	terminal(t, "connect to a host that is not there", d, rspCompletion, stHostUnreachable)
}

// TestCE01_TimeLimit: a peer that does not answer, under a limit of the target
// and under attribute CONNECT_LIMIT.
func TestCE01_TimeLimit(t *T) {
	c := t.start()
	r := c.ring(0, ringConfig{})
	a, err := t.Peer().Hang(t.ctx)
	check(t, "peer: hang", err)
	g := to(a)
	g.limit = 150 * time.Millisecond
	begin := time.Now()
	d := r.connect(g)
	terminal(t, "connect under a limit of 150 ms", d, rspCompletion, stTimedOut)
	if took := time.Since(begin); took < 100*time.Millisecond {
		t.Errorf("timed out after %v", took)
	}
	terminal(t, "connect under CONNECT_LIMIT", r.connect(to(a), attr(0x0204, 100_000_000)), rspCompletion, stTimedOut)
	want(t, "connections", c.counter(ctrConnections), 0)
}

// TestCE01_Attributes: attributes before a target hold for it.
func TestCE01_Attributes(t *T) {
	c := t.start()
	r := c.ring(0, ringConfig{})
	_, id := r.serve(Script{{Op: OpDiscard}}, attr(0x0212, 33), attr(0x0211, 0x10), attr(0x0209, 1), attr(0x0207, 65536))
	want(t, "TTL", r.scalar(reqConnAttr, id, 0x0212), 33)
	want(t, "TOS", r.scalar(reqConnAttr, id, 0x0211), 0x10)
	want(t, "NAGLE", r.scalar(reqConnAttr, id, 0x0209), 1)
	want(t, "RECEIVE_WINDOW", r.scalar(reqConnAttr, id, 0x0207), 65536)
	want(t, "default of TTL", r.scalar(reqConnAttr, 0, 0x0212), 64)
	status, old := r.setScalar(reqConnAttr, id, 0x0212, 44)
	want(t, "set of TTL on a connection", status, stOK)
	want(t, "its previous value", old, 33)
	want(t, "TTL", r.scalar(reqConnAttr, id, 0x0212), 44)
	r.finish(id)
}

// TestCE01_Malformed: what is wrong with a TARGET (SPEC.md §6.2).
func TestCE01_Malformed(t *T) {
	c := t.start()
	r := c.ring(0, ringConfig{})
	ok := to(netip.MustParseAddrPort("10.0.2.2:9"))
	for _, k := range []struct {
		name   string
		edit   func(*goal)
		status uint16
	}{
		{"protocol 0x84", func(g *goal) { g.proto = 0x84 }, stBadProtocol},
		{"family 5", func(g *goal) { g.family = 5 }, stBadAddress},
		{"count 0", func(g *goal) { g.count = 0 }, stBadValue},
		{"ports beyond 65535", func(g *goal) { g.count, g.rport = 3, 65534 }, stBadValue},
		{"reserved field", func(g *goal) { g.zero = 1 }, stReserved},
	} {
		g := ok
		k.edit(&g)
		d := r.connect(g)
		terminal(t, k.name, d, rspCompletion, k.status)
		want(t, k.name+": id", d.Conn, 0)
	}
	short := new(ctl).tuple(true, 0x0001, make([]byte, 63))
	_, tag := r.control(reqConnect, 0, short)
	terminal(t, "a TARGET of 63 bytes", r.answer(tag), rspCompletion, stBadLength)
	_, tag = r.control(reqConnect, 0, new(ctl).get(0x0001, 64))
	terminal(t, "a get of TARGET", r.answer(tag), rspCompletion, stWrongDirection)
	past := new(ctl).target(ok)
	past.b = past.b[:64]
	_, tag = r.control(reqConnect, 0, past)
	d := r.answer(tag)
	terminal(t, "a TARGET past the end", d, rspCompletion, stBadControlBuffer)
	want(t, "ordinal of a request that fails as a whole", d.Offset, 0xffffffff)
	want(t, "connections", c.counter(ctrConnections), 0)
}

// TestIF16_Protocol: TCP and UDP; any other is a status.
func TestIF16_Protocol(t *T) {
	c := t.start()
	r := c.ring(0, ringConfig{})
	for _, proto := range []uint8{1, 5, 7, 18, 255} {
		g := to(netip.MustParseAddrPort("10.0.2.2:9"))
		g.proto = proto
		terminal(t, fmt.Sprintf("connect with protocol %d", proto), r.connect(g), rspCompletion, stBadProtocol)
		g = goal{proto: proto, count: 1, lport: 9}
		terminal(t, fmt.Sprintf("listen with protocol %d", proto), r.listen(g), rspListen, stBadProtocol)
	}
}

// TestCE02_Listen: the adapter accepts by itself and announces each connection
// (SPEC.md §5.7).
func TestCE02_Listen(t *T) {
	c := t.start()
	r := c.ring(0, ringConfig{})
	port := t.reachable()
	listens, arrivals := c.counter(ctrListens), c.counter(ctrArrivals)
	d := r.listen(goal{count: 1, lport: port, cookie: 77}, attr(0x0212, 55))
	terminal(t, "listen", d, rspListen, stOK)
	want(t, "port", d.Length, uint32(port))
	want(t, "cookie", d.Base, 77)
	want(t, "ordinal", d.Offset, 0)
	listener := d.Conn
	want(t, "listens", c.counter(ctrListens)-listens, 1)
	for i := range 3 {
		s, err := t.Peer().Dial(t.ctx, port, Script{{Op: OpSend, N: 1000, Seed: 5}, {Op: OpFIN}, {Op: OpDiscard}})
		check(t, "peer: dial", err)
		a := r.unsolicited(rspArrival, 0)
		want(t, "FINAL of an arrival", a.final(), true)
		want(t, "listener of an arrival", a.Base, listener)
		want(t, "local port of an arrival", a.Offset>>16, uint32(port))
		if a.Length == 0 != t.six || a.Offset&0xffff == 0 || a.Conn == 0 || a.Conn == listener {
			t.Errorf("arrival %v", a)
		}
		_, rs := r.attrs(reqConnAttr, a.Conn, new(ctl).get(0x0202, 24).get(0x0212, 8))
		remote, _ := addressOf(rs[0].Value)
		told := netip.AddrFrom4([4]byte{byte(a.Length >> 24), byte(a.Length >> 16), byte(a.Length >> 8), byte(a.Length)})
		if t.six { // which an arrival has no place for
			told = remote.Addr()
		}
		want(t, "REMOTE and the arrival", remote, netip.AddrPortFrom(told, uint16(a.Offset)))
		want(t, "inherited TTL", rs[1].scalar(), 55)
		r.stream(a.Conn, 5, 0, 1000, 1000)
		r.sendAll(a.Conn, 500, 6)
		e := r.terminate(a.Conn, 0)
		terminal(t, "graceful termination", e, rspTerminated, stOK)
		res := t.outcome(s)
		want(t, "peer's error", res.Err, "")
		want(t, "bytes at the peer", res.Received, 500)
		want(t, "arrivals", c.counter(ctrArrivals)-arrivals, uint64(i+1))
		s.Close()
	}
	e := r.terminate(listener, 0)
	terminal(t, "termination of the listener", e, rspTerminated, stOK)
	want(t, "how it ended: listener closed", e.Length, 6)
	terminal(t, "listen on the port again", r.listen(goal{count: 1, lport: port}), rspListen, stOK)
}

// TestCE02_InUse: the same port twice, and an address of somebody else.
func TestCE02_InUse(t *T) {
	c := t.start()
	r := c.ring(0, ringConfig{})
	d := r.listen(goal{count: 1, lport: 4000})
	terminal(t, "listen", d, rspListen, stOK)
	terminal(t, "listen on the same port", r.listen(goal{count: 1, lport: 4000}), rspListen, stAddressInUse)
	terminal(t, "listen on a foreign address",
		r.listen(goal{count: 1, lport: 4001, local: netip.MustParseAddr("203.0.113.9")}), rspListen, stBadAddress)
	terminal(t, "send on a listener", r.do(desc{Type: reqSend, Modify: true, Base: r.in.IOVA, Conn: d.Conn, Length: 8}), rspDone, stBadState)
	terminal(t, "termination", r.terminate(d.Conn, 1), rspTerminated, stOK)
	terminal(t, "listen again", r.listen(goal{count: 1, lport: 4000}), rspListen, stOK)
}

// TestCE02_Several: several ports in one request, each with its own result.
func TestCE02_Several(t *T) {
	c := t.start()
	r := c.ring(0, ringConfig{})
	terminal(t, "listen", r.listen(goal{count: 1, lport: 4102}), rspListen, stOK)
	_, tag := r.control(reqListen, 0, new(ctl).target(goal{count: 4, lport: 4100, cookie: 9}).target(goal{count: 1, lport: 4200, cookie: 10}))
	seen := map[uint32]desc{}
	for range 5 {
		d := r.answer(tag)
		want(t, "type", d.Type, rspListen)
		seen[d.Offset] = d
		want(t, "FINAL in the last only", d.final(), len(seen) == 5)
	}
	for i, port := range []uint32{4100, 4101, 4102, 4103, 4200} {
		d, ok := seen[uint32(i)]
		if !ok {
			t.Fatalf("no result for target %d: %v", i, seen)
		}
		if port == 4102 {
			want(t, "status of the port in use", d.Aux, stAddressInUse)
			continue
		}
		want(t, "status", d.Aux, stOK)
		want(t, "port", d.Length, port)
		want(t, "cookie", d.Base, uint64(9+i/4))
	}
}

// TestCE02_TimeLimit: a listener with a limit ends with TIMED_OUT.
func TestCE02_TimeLimit(t *T) {
	c := t.start()
	r := c.ring(0, ringConfig{})
	d := r.listen(goal{count: 1, lport: 4300, limit: 100 * time.Millisecond})
	terminal(t, "listen", d, rspListen, stOK)
	e := r.unsolicited(rspTerminated, d.Conn)
	want(t, "status", e.Aux, stTimedOut)
}

// TestCE03_Limits: connections beyond MAX_CONNECTIONS, and memory beyond
// MEMORY_SIZE, are a status and disturb nothing.
func TestCE03_Limits(t *T) {
	c := t.start()
	r := c.ring(0, ringConfig{})
	p, first := r.serve(Script{{Op: OpDiscard}})
	r.setScalar(reqAdapter, 0, 0x010d, 2)
	second := r.dial(p.Addr())
	terminal(t, "a connection over MAX_CONNECTIONS", r.connect(to(p.Addr())), rspCompletion, stNoMemory)
	r.sendAll(first, 1000, 1)
	r.finish(second)
	second = r.dial(p.Addr())
	r.setScalar(reqAdapter, 0, 0x010d, 65536)

	used := r.scalar(reqAdapter, 0, 0x0108)
	if used < 16<<10 {
		t.Errorf("MEMORY_USED is %d with two connections", used)
	}
	status, _ := r.setScalar(reqAdapter, 0, 0x0107, used)
	want(t, "set of MEMORY_SIZE", status, stOK)
	terminal(t, "connect over MEMORY_SIZE", r.connect(to(p.Addr())), rspCompletion, stNoMemory)
	terminal(t, "listen over MEMORY_SIZE", r.listen(goal{count: 1, lport: 4400}), rspListen, stNoMemory)
	terminal(t, "buffer over MEMORY_SIZE", r.answer(r.available(first, r.buffer(64), 0)), rspDone, stNoMemory)
	terminal(t, "send over MEMORY_SIZE", r.answer(r.send(first, r.buffer(64), 0)), rspDone, stNoMemory)
	r.setScalar(reqAdapter, 0, 0x0107, 256<<20)
	third := r.dial(p.Addr())
	for _, id := range []uint64{first, second, third} {
		r.finish(id)
	}

	// An arrival over the limit is reset at once, and counted.
	const ctrArrivalsRefused = 58
	port := t.reachable()
	l := r.listen(goal{count: 1, lport: port})
	terminal(t, "listen", l, rspListen, stOK)
	r.setScalar(reqAdapter, 0, 0x010d, 1)
	kept, err := t.Peer().Dial(t.ctx, port, Script{{Op: OpDiscard}})
	check(t, "peer: dial", err)
	arrived := r.unsolicited(rspArrival, 0)
	refused := c.counter(ctrArrivalsRefused)
	// The peer hears of it while it connects, or right after.
	if over, err := t.Peer().Dial(t.ctx, port, Script{{Op: OpDiscard}}); err == nil {
		if res := t.outcome(over); res.Err == "" {
			t.Errorf("an arrival over MAX_CONNECTIONS was not reset: %+v", res)
		}
		over.Close()
	}
	want(t, "arrivals_refused", c.counter(ctrArrivalsRefused)-refused, 1)
	r.sendAll(arrived.Conn, 100, 7)
	r.setScalar(reqAdapter, 0, 0x010d, 65536)
	r.finish(arrived.Conn)
	kept.Close()
	terminal(t, "end of the listener", r.terminate(l.Conn, 0), rspTerminated, stOK)
	if now := r.scalar(reqAdapter, 0, 0x0108); now >= used {
		t.Errorf("MEMORY_USED is %d after the connections ended, %d before", now, used)
	}
}

// TestCE04_Several: one request with several targets and ranges, each result
// its own; good and bad ones side by side.
func TestCE04_Several(t *T) {
	c := t.start()
	r := c.ring(0, ringConfig{inLog: 6, outLog: 8})
	p, err := t.Peer().Serve(t.ctx, Script{{Op: OpDiscard}})
	check(t, "peer: serve", err)
	t.Cleanup(func() { p.Close() })
	no, err := t.Peer().Refused(t.ctx)
	check(t, "peer: refused", err)
	k := new(ctl)
	const n = 60
	for i := range n {
		g := to(p.Addr())
		if i%4 == 3 {
			g = to(no)
		}
		g.cookie = uint64(1000 + i)
		k.target(g)
	}
	_, tag := r.control(reqConnect, 0, k)
	seen := map[uint32]bool{}
	for range n {
		d := r.answer(tag)
		if d.Type != rspCompletion || d.Offset >= n || seen[d.Offset] {
			t.Fatalf("result %v", d)
		}
		seen[d.Offset] = true
		want(t, "cookie", d.Base, uint64(1000+d.Offset))
		want(t, "FINAL in the last only", d.final(), len(seen) == n)
		status := uint16(stOK)
		if d.Offset%4 == 3 {
			status = stRefused
		}
		want(t, fmt.Sprintf("status of target %d", d.Offset), d.Aux, status)
	}
	want(t, "connections", c.counter(ctrConnections), n*3/4)
}
