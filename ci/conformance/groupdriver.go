// SPDX-License-Identifier: Apache-2.0

package conformance

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"time"

	"toebox/guestdriver"
)

// TestMM04_GroupDriver: connections that arrive at a listener of the driver receive into
// eight buffers of the application, without a copy by the host, in memory that depends on
// what is in flight; a buffer of their own comes first, and others receive as ever.
func TestMM04_GroupDriver(t *T) {
	const flight, size, message, last = 8, 2048, 1024, 100
	conns := 40
	if t.Env.Rung == RungVM || t.Env.Rung == RungUIO {
		conns = 10 // a guest takes its time
	}
	a := t.driver()
	ports, err := t.Peer().Reachable(t.ctx, 2)
	check(t, "peer: reachable ports", err)
	q := guestdriver.NewCompletionQueue()
	g, err := a.NewReceiveGroup(guestdriver.GroupKey{By: guestdriver.GroupByPort, Port: int(ports[0])}, q)
	check(t, "make a group", err)
	bufs := t.buffers(a, flight, size)
	used := t.number(a, 0, memoryUsed)
	for _, b := range bufs {
		check(t, "post to the group", g.Post(b))
	}
	want(t, "adapter memory for the group", t.number(a, 0, memoryUsed)-used, flight*64+256)

	listen := func(port uint16) *guestdriver.Listener {
		l, err := a.Listen("tcp4", fmt.Sprintf(":%d", port))
		check(t, "listen", err)
		t.Cleanup(func() { l.Close() })
		return l.(*guestdriver.Listener)
	}
	arrive := func(l *guestdriver.Listener, port uint16, s Script) (Session, *guestdriver.Conn) {
		p, err := t.Peer().Dial(t.ctx, port, s)
		check(t, "peer: dial", err)
		t.Cleanup(func() { p.Close() })
		c, err := l.Accept()
		check(t, "accept", err)
		t.Cleanup(func() { c.Close() })
		return p, c.(*guestdriver.Conn)
	}
	script := func(i int) Script {
		return Script{
			{Op: OpWait}, {Op: OpSend, N: message, Seed: uint64(i)}, {Op: OpWait}, {Op: OpSend, N: last, Seed: uint64(1000 + i)},
			{Op: OpWait}, {Op: OpFIN}, {Op: OpDiscard},
		}
	}
	l, plain := listen(ports[0]), listen(ports[1])
	check(t, "have arrivals be members", l.SetReceiveGroup(g))
	var peers []Session
	index := map[*guestdriver.Conn]int{}
	all := make([]*guestdriver.Conn, conns)
	for i := range conns {
		p, c := arrive(l, ports[0], script(i))
		peers, all[i], index[c] = append(peers, p), c, i
	}
	other, stranger := arrive(plain, ports[1], script(conns))
	want(t, "members", g.Stats().Members, conns)

	// A message from each.
	start, group := t.copies(a), t.counterOf(a, ctrGroupDeliveries)
	for _, p := range peers {
		check(t, "peer: signal", p.Signal(t.ctx))
	}
	got := make([][]byte, conns)
	take := func(what string) guestdriver.Completion {
		t.Helper()
		d, err := q.Next(t.ctx)
		check(t, what, err)
		return d
	}
	for whole := 0; whole < conns; {
		d := take("a completion of the group")
		i, ours := index[d.Conn]
		if !ours || d.Op != guestdriver.OpGroup || d.Buffer == nil || d.N == 0 || d.Offset != 0 || !d.Final || d.Err != nil {
			t.Fatalf("completion of the group: %+v", d)
		}
		got[i] = append(got[i], d.Buffer.Bytes()[:d.N]...)
		if len(got[i]) == message {
			must(t, "the message", bytes.Equal(got[i], piece(uint64(i), message)), true)
			whole++
		}
		check(t, "post again", g.Post(d.Buffer))
	}
	s := g.Stats()
	want(t, "what the group says of it", s, guestdriver.ReceiveGroupStats{Posted: flight, Members: conns, Buffers: s.Buffers, Bytes: uint64(conns * message)})
	want(t, "group_deliveries", t.counterOf(a, ctrGroupDeliveries)-group, s.Buffers)
	moved := t.copies(a).since(start)
	want(t, "copies by the host and by the adapter, in bytes", copies{host: moved.host, adapter: moved.adapter}, copies{adapter: uint64(conns * message)})
	t.Logf("%d connections, %d KiB of host memory and %d bytes of adapter memory for receive buffers", conns, flight*size>>10, flight*64+256)

	// Not for others.
	check(t, "peer: signal", other.Signal(t.ctx))
	check(t, "read", expect(io.LimitReader(stranger, message), uint64(conns), 0, message))
	// A buffer of its own first.
	own := t.buffers(a, 1, last)[0]
	check(t, "post a buffer of one's own", all[0].PostBuffer(own, q))
	check(t, "peer: signal", peers[0].Signal(t.ctx))
	for n := 0; n < last; {
		d := take("a completion of a buffer of one's own")
		want(t, "a buffer of one's own", d, guestdriver.Completion{
			Buffer: own, Conn: all[0], Op: guestdriver.OpReceive, Offset: n, N: d.N, Final: n+d.N == last,
		})
		n += max(d.N, 1)
	}
	want(t, "its bytes", bytes.Equal(own.Bytes(), piece(1000, last)), true)
	want(t, "group_deliveries", t.counterOf(a, ctrGroupDeliveries)-group, s.Buffers)

	// The ends: of the peer, and one's own.
	check(t, "peer: signal", peers[0].Signal(t.ctx))
	want(t, "end of a stream", take("an end"), guestdriver.Completion{Conn: all[0], Op: guestdriver.OpGroup, Final: true, Err: io.EOF})
	check(t, "close", all[1].Close())
	want(t, "a connection that was closed", take("an end"), guestdriver.Completion{Conn: all[1], Op: guestdriver.OpGroup, Final: true, Err: net.ErrClosed})
	want(t, "members", g.Stats().Members, conns-2)
	check(t, "close the group", g.Close())
	for range bufs {
		d := take("a buffer that was taken back")
		want(t, "a buffer that was taken back", d, guestdriver.Completion{Buffer: d.Buffer, Op: guestdriver.OpGroup, Final: true, Err: net.ErrClosed})
	}
	// A member goes on with Read.
	check(t, "peer: signal", peers[2].Signal(t.ctx))
	check(t, "read", expect(io.LimitReader(all[2], last), 1002, 0, last))
}

// TestMM04_GroupByDriver: a group by a conjunction of attributes takes in connections by
// them, with bytes that wait already; a cancelled buffer comes back once.
func TestMM04_GroupByDriver(t *T) {
	a := t.driver()
	p, conn := t.dialPeer(a, Script{{Op: OpSend, N: 64, Seed: 1}, {Op: OpWait}, {Op: OpSend, N: 64, Seed: 2}, {Op: OpDiscard}})
	c := conn.(*guestdriver.Conn)
	q := guestdriver.NewCompletionQueue()
	key := guestdriver.GroupKey{
		By:       guestdriver.GroupByPriority | guestdriver.GroupByClass | guestdriver.GroupByID,
		Priority: 5, Class: 9, ID: 0xabc,
	}
	g, err := a.NewReceiveGroup(key, q)
	check(t, "make a group", err)
	want(t, "its key", g.Key(), key)
	bufs := t.buffers(a, 2, 128)
	for _, b := range bufs {
		check(t, "post to the group", g.Post(b))
	}
	t.until("bytes before it is a member", func() bool { return c.Buffered() == 64 })
	check(t, "take a connection in", g.Add(c))
	t.numbers(a, c.ID(), "member", map[uint16]uint64{priorityAttr: 5, classAttr: 9, groupAttr: 0xabc, groupByAttr: 22})
	take := func(what string) guestdriver.Completion {
		t.Helper()
		d, err := q.Next(t.ctx)
		check(t, what, err)
		return d
	}
	for seed := range uint64(2) {
		var all []byte
		for len(all) < 64 {
			d := take("a completion of the group")
			if d.Buffer == nil || d.Conn != c || d.Op != guestdriver.OpGroup || d.N == 0 || !d.Final || d.Err != nil {
				t.Fatalf("completion of the group: %+v", d)
			}
			all = append(all, d.Buffer.Bytes()[:d.N]...)
			check(t, "post again", g.Post(d.Buffer))
		}
		want(t, "the bytes", bytes.Equal(all, piece(seed+1, 64)), true)
		if seed == 0 {
			check(t, "peer: signal", p.Signal(t.ctx))
		}
	}
	check(t, "cancel", g.Cancel(bufs[0]))
	d := take("a cancelled buffer")
	if d.Buffer != bufs[0] || d.Conn != nil || d.N != 0 || !d.Final || d.Err == nil {
		t.Errorf("a cancelled buffer: %+v", d)
	}
	g.Remove(c)
	t.numbers(a, c.ID(), "no member", map[uint16]uint64{groupAttr: 0, groupByAttr: 1})
	check(t, "close the group", g.Close())
	want(t, "the other buffer", take("the other buffer"), guestdriver.Completion{Buffer: bufs[1], Op: guestdriver.OpGroup, Final: true, Err: net.ErrClosed})
}

// TestRX12_GroupDriver: what the adapter reports of shared buffers in one response, the
// driver tells of each.
func TestRX12_GroupDriver(t *T) {
	const buffers, size = 8, 1 << 10
	a := t.driver()
	p, conn := t.dialPeer(a, Script{{Op: OpWait}, {Op: OpSend, N: buffers * size, Seed: 1}, {Op: OpDiscard}})
	c := conn.(*guestdriver.Conn)
	c.SetReadAhead(false)
	policy, err := c.ReceivePolicy()
	check(t, "policy", err)
	policy.Bytes, policy.Max, policy.Combine = buffers*size, time.Hour, true
	check(t, "set the policy", c.SetReceivePolicy(policy))
	q := guestdriver.NewCompletionQueue()
	g, err := a.NewReceiveGroup(guestdriver.GroupKey{By: guestdriver.GroupByID}, q)
	check(t, "make a group", err)
	check(t, "take a connection in", g.Add(c))
	bufs := t.buffers(a, buffers, size)
	for _, b := range bufs {
		check(t, "post to the group", g.Post(b))
	}
	t.number(a, c.ID(), attrArrived) // what was posted before was taken
	before, results := a.Stats(), t.counterOf(a, ctrCombined)
	check(t, "peer: signal", p.Signal(t.ctx))
	for i, b := range bufs {
		d, err := q.Next(t.ctx)
		check(t, "completion", err)
		want(t, fmt.Sprintf("completion %d", i), d, guestdriver.Completion{Buffer: b, Conn: c, Op: guestdriver.OpGroup, N: size, Final: true})
	}
	s := a.Stats()
	want(t, "combined responses", s.Combined-before.Combined, 1)
	want(t, "buffers reported by them", s.CombinedBuffers-before.CombinedBuffers, buffers)
	want(t, "results_combined", t.counterOf(a, ctrCombined)-results, buffers-1)
	want(t, "the bytes", bytes.Equal(bufs[0].Memory().Bytes(), piece(1, buffers*size)), true)
	check(t, "close the group", g.Close())
}
