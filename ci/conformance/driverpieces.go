// SPDX-License-Identifier: Apache-2.0

package conformance

import (
	"bytes"
	"errors"
	"fmt"
	"syscall"
	"time"

	"toebox/guestdriver"
)

// TestMM06_Driver: the driver's virtual buffers are filled in the order of their
// pieces, wherever these lie, and end behind a piece that was cancelled; a buffer that
// permits it comes back before it is full, for the next one to take an arrival as a
// whole.
func TestMM06_Driver(t *T) {
	const size, before, behind, part = 300, 3*300 + 1, 300, 64
	a := t.driver()
	p, conn := t.dialPeer(a, Script{
		{Op: OpWait}, {Op: OpSend, N: before + behind + 450, Seed: 1}, {Op: OpWait},
		{Op: OpSend, N: part, Seed: 2}, {Op: OpWait}, {Op: OpSend, N: part, Seed: 3}, {Op: OpDiscard},
	})
	c := conn.(*guestdriver.Conn)
	c.SetReadAhead(false)
	bufs := t.buffers(a, 8, size)
	check(t, "shorten a piece", bufs[0].SetLen(1))
	first, err := guestdriver.NewVirtualBuffer(bufs[3], bufs[0], bufs[2], bufs[1])
	check(t, "virtual buffer", err)
	second, err := guestdriver.NewVirtualBuffer(bufs[7], bufs[5], bufs[6])
	check(t, "virtual buffer", err)
	q := guestdriver.NewCompletionQueue()
	check(t, "post a virtual buffer", c.PostVirtual(first, q))
	check(t, "post a buffer", c.PostBuffer(bufs[4], q))
	check(t, "post another virtual buffer", c.PostVirtual(second, q))
	start := t.copies(a)
	check(t, "peer: signal", p.Signal(t.ctx))
	n := 0
	stream := make([]byte, before+behind+450)
	Payload(stream, 1, 0)
	for _, k := range []struct {
		what string
		v    *guestdriver.VirtualBuffer
		bufs []*guestdriver.Buffer
		size int
	}{{"the first", first, first.Pieces(), before}, {"one of its own", nil, bufs[4:5], behind}, {"the second", second, second.Pieces(), 450}} {
		for at, piece, off := 0, 0, 0; at < k.size; {
			d, err := q.Next(t.ctx)
			check(t, "completion", err)
			b := k.bufs[piece]
			expect := guestdriver.Completion{Buffer: b, Conn: c, Op: guestdriver.OpReceive, Virtual: k.v, Offset: off, N: d.N, Final: off+d.N == len(b.Bytes())}
			if k.v != nil {
				expect.At = at
			}
			want(t, fmt.Sprintf("%s, after %d bytes", k.what, at), d, expect)
			want(t, "the bytes", bytes.Equal(b.Bytes()[off:off+d.N], stream[n:n+d.N]), true)
			at, off, n = at+d.N, off+d.N, n+d.N
			if d.Final {
				piece, off = piece+1, 0
			}
		}
	}
	moved := t.copies(a).since(start)
	want(t, "copies by the host, and bytes where they stand", copies{host: moved.host, direct: moved.direct}, copies{direct: uint64(n)})
	check(t, "cancel the rest", c.CancelVirtual(second))
	for range 2 {
		d, err := q.Next(t.ctx)
		check(t, "completion", err)
		if d.Virtual != second || d.Buffer == bufs[7] || d.N != 0 || !d.Final || !errors.Is(d.Err, syscall.ECANCELED) {
			t.Errorf("a piece that was cancelled: %+v", d)
		}
	}

	policy, err := c.ReceivePolicy()
	check(t, "policy", err)
	policy.Bytes, policy.Max = part, time.Hour // so much arrives at a time
	check(t, "set the policy", c.SetReceivePolicy(policy))
	check(t, "shorten a buffer", bufs[1].SetLen(100))
	check(t, "post a buffer that may come back", c.PostBufferWith(bufs[1], guestdriver.ReceiveOptions{Fragment: true}, q))
	check(t, "post a buffer behind it", c.PostBuffer(bufs[2], q))
	t.number(a, c.ID(), attrArrived) // answered behind them: the adapter has them
	fragments, elected := a.Stats().Fragments, t.counterOf(a, ctrFragments)
	next := func(what string, expect guestdriver.Completion) {
		t.Helper()
		d, err := q.Next(t.ctx)
		check(t, what, err)
		expect.Conn, expect.Op = c, guestdriver.OpReceive
		want(t, what, d, expect)
	}
	check(t, "peer: signal", p.Signal(t.ctx))
	next("the first arrival", guestdriver.Completion{Buffer: bufs[1], N: part})
	check(t, "peer: signal", p.Signal(t.ctx))
	next("the buffer that holds it", guestdriver.Completion{Buffer: bufs[1], Offset: part, Final: true})
	next("the second arrival, as a whole", guestdriver.Completion{Buffer: bufs[2], N: part})
	want(t, "fragments, by the driver", a.Stats().Fragments-fragments, 1)
	want(t, "fragments", t.counterOf(a, ctrFragments)-elected, 1)
	check(t, "cancel the last buffer", c.CancelBuffer(bufs[2]))
	d, err := q.Next(t.ctx)
	check(t, "completion", err)
	want(t, "the last buffer is back", d.Buffer == bufs[2] && d.Final && errors.Is(d.Err, syscall.ECANCELED), true)
}
