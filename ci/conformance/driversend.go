// SPDX-License-Identifier: Apache-2.0

package conformance

import (
	"fmt"

	"toebox/guestdriver"
)

// TestMM14_Driver: over a wire that loses everything a send is complete when the
// adapter has read it, or has handed it to the network, if the driver's policy says
// so, and else not before the wire is good again. The completion says which.
func TestMM14_Driver(t *T) {
	const size = 200 // all of them fit into one segment
	a := t.driver()
	p, conn := t.dialPeer(a, Script{{Op: OpDiscard}})
	c := conn.(*guestdriver.Conn)
	bufs := t.buffers(a, 4, size)
	q := guestdriver.NewCompletionQueue()
	send := func(i int, point guestdriver.CompletionPoint, attribute uint64) {
		t.Helper()
		policy, err := c.SendPolicy()
		check(t, "policy", err)
		policy.Complete = point
		check(t, "set the policy", c.SetSendPolicy(policy))
		want(t, "COMPLETION_POINT", t.number(a, c.ID(), 0x0215), attribute)
		Payload(bufs[i].Bytes(), 1, int64(i*size))
		check(t, "send", c.SendBuffer(bufs[i], q))
	}
	done := func(i int, point guestdriver.CompletionPoint, acked uint64) {
		t.Helper()
		d, err := q.Next(t.ctx)
		check(t, "completion", err)
		want(t, fmt.Sprintf("completion %d", i), d, guestdriver.Completion{Buffer: bufs[i], Conn: c, Op: guestdriver.OpSend, N: size, Point: point, Final: true})
		want(t, fmt.Sprintf("BYTES_ACKED after completion %d", i), t.number(a, c.ID(), 0x0283), acked)
	}
	send(0, guestdriver.PointAcknowledged, 2)
	done(0, guestdriver.PointAcknowledged, size)
	heal := t.impair("loss=100%")
	send(1, guestdriver.PointHanded, 1)
	done(1, guestdriver.PointHanded, size)
	send(2, guestdriver.PointRead, 0)
	done(2, guestdriver.PointRead, size)
	send(3, guestdriver.PointAcknowledged, 2)
	t.until("all to be read", func() bool { return t.number(a, c.ID(), 0x0282) == 4*size })
	var none [1]guestdriver.Completion
	want(t, "completions of what nobody has acknowledged", q.Poll(none[:]), 0)
	heal()
	done(3, guestdriver.PointAcknowledged, 4*size)
	check(t, "close", c.Close())
	want(t, "SHA-256 at the peer", t.outcome(p).Sum, sum(bufs[0].Memory().Bytes()))
}
