// SPDX-License-Identifier: Apache-2.0

package conformance

import (
	"bytes"
	"net"

	"toebox/guestdriver"
)

// TestMM04_Driver: one buffer of 1 MiB, written once by the host, is sent on 100
// connections by one descriptor and read by DMA once; then, after a change, a part of
// it on those that are left. In a guest there are 20.
func TestMM04_Driver(t *T) {
	const size, rest = 1 << 20, 5000
	conns := 100
	if t.Env.Rung == RungVM || t.Env.Rung == RungUIO {
		conns = 20 // a guest takes its time to dial
	}
	a := t.driver()
	g := a.NewSendGroup()
	var peers []Session
	var all []*guestdriver.Conn
	for range conns {
		p, conn := t.dialPeer(a, Script{{Op: OpDiscard}})
		c := conn.(*guestdriver.Conn)
		check(t, "take a connection in", g.Add(c))
		peers, all = append(peers, p), append(all, c)
	}
	by := t.number(a, all[1].ID(), attrGroupBy)
	want(t, "GROUP_BY", by, 16)
	want(t, "GROUP", t.number(a, all[1].ID(), attrGroup), t.number(a, all[2].ID(), attrGroup))
	b := t.buffers(a, 1, size)[0]
	q := guestdriver.NewCompletionQueue()
	// send broadcasts what stands in the buffer, and wants it to be sent on all
	// connections but a closed one.
	send := func(closed *guestdriver.Conn) {
		t.Helper()
		start, before, sends, read := t.copies(a), a.Stats(), t.counterOf(a, ctrGroupSends), t.counterOf(a, ctrBytesRead)
		n := len(b.Bytes())
		check(t, "broadcast", g.Send(b, q))
		told := map[*guestdriver.Conn]bool{}
		for i := range conns {
			d, err := q.Next(t.ctx)
			check(t, "completion", err)
			if told[d.Conn] {
				t.Fatalf("told twice of a connection: %+v", d)
			}
			told[d.Conn] = true
			expect := guestdriver.Completion{Buffer: b, Conn: d.Conn, Op: guestdriver.OpBroadcast, N: n, Final: i == conns-1}
			if d.Conn == closed {
				expect.N, expect.Err = 0, net.ErrClosed
			}
			want(t, "completion", d, expect)
		}
		reached := conns
		if closed != nil {
			reached--
		}
		moved, s := t.copies(a).since(start), a.Stats()
		want(t, "copies by the host, and bytes sent from where they stand", copies{host: moved.host, direct: moved.direct}, copies{direct: uint64(reached * n)})
		want(t, "bytes read by DMA", t.counterOf(a, ctrBytesRead)-read, uint64(n))
		want(t, "group_sends", t.counterOf(a, ctrGroupSends)-sends, uint64(reached))
		want(t, "broadcasts by the driver", s.Broadcasts-before.Broadcasts, 1)
		want(t, "sends for them", s.BroadcastSends-before.BroadcastSends, uint64(reached))
	}
	Payload(b.Bytes(), 1, 0)
	sent := bytes.Clone(b.Bytes())
	send(nil)
	check(t, "close", all[0].Close())
	want(t, "SHA-256 at the first peer", t.outcome(peers[0]).Sum, sum(sent))
	check(t, "shorten", b.SetLen(rest))
	Payload(b.Bytes(), 2, 0)
	sent = append(sent, b.Bytes()...)
	send(all[0])
	for i, c := range all[1:] {
		g.Remove(c)
		check(t, "close", c.Close())
		want(t, "SHA-256 at a peer", t.outcome(peers[i+1]).Sum, sum(sent))
	}
}
