// SPDX-License-Identifier: Apache-2.0

package conformance

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"time"

	"toebox/guestdriver"
	"toebox/vdev/abi"
)

// number is an attribute of a connection, or a default, as the driver reads it.
func (t *T) number(a *guestdriver.Adapter, conn uint64, attr uint16) uint64 {
	t.Helper()
	v, err := a.Scalar(t.ctx, conn, abi.Attribute(attr))
	check(t, fmt.Sprintf("attribute %#04x", attr), err)
	return v
}

// numbers compares attributes of a connection, or defaults.
func (t *T) numbers(a *guestdriver.Adapter, conn uint64, what string, values map[uint16]uint64) {
	t.Helper()
	for attr, v := range values {
		want(t, fmt.Sprintf("%s: attribute %#04x", what, attr), t.number(a, conn, attr), v)
	}
}

// TestRX05_Driver: the driver's policies of receiving. The adapter's are those of
// connections to come, dialed and accepted; bytes then wait until there are enough,
// and not when the policy says so.
func TestRX05_Driver(t *T) {
	a := t.driver()
	usual, err := a.ReceivePolicy(t.ctx)
	check(t, "the policy by default", err)
	want(t, "the policy by default", usual, guestdriver.ReceivePolicy{Max: time.Millisecond, TransferSize: 64 << 10, Gather: 128 << 10})
	p := usual
	p.Bytes, p.Max = 1000, time.Hour
	check(t, "set the adapter's policy", a.SetReceivePolicy(t.ctx, p))
	schedule := guestdriver.Schedule{Priority: 6, Class: 9, Starvation: time.Second}
	check(t, "set the adapter's schedule", a.SetSchedule(t.ctx, schedule))
	numbers := map[uint16]uint64{
		notifyTime: 0, notifyBytes: 1000, notifyMax: 3600_000 * ms, expedited: 0, combine: 0,
		0x0227: 64 << 10, 0x0228: 128 << 10, 0x0242: 0, 0x0213: 6, 0x0214: 9, 0x0226: 1000 * ms,
	}
	t.numbers(a, 0, "defaults", numbers)

	script := Script{{Op: OpWait}, {Op: OpSend, N: 999, Seed: 1}, {Op: OpWait}, {Op: OpSend, N: 1, Seed: 2}, {Op: OpWait}, {Op: OpSend, N: 7, Seed: 3}, {Op: OpDiscard}}
	dialed, conn := t.dialPeer(a, script)
	port := t.reachable()
	l, err := a.Listen("tcp", fmt.Sprintf(":%d", port))
	check(t, "listen", err)
	t.Cleanup(func() { l.Close() })
	arrived, err := t.Peer().Dial(t.ctx, port, script)
	check(t, "peer: dial", err)
	t.Cleanup(func() { arrived.Close() })
	accepted, err := l.Accept()
	check(t, "accept", err)
	t.Cleanup(func() { accepted.Close() })

	for _, end := range []struct {
		what string
		peer Session
		conn net.Conn
	}{{"dialed", dialed, conn}, {"accepted", arrived, accepted}} {
		c := end.conn.(*guestdriver.Conn)
		got, err := c.ReceivePolicy()
		check(t, end.what+": policy", err)
		want(t, end.what+": policy", got, p)
		turn, err := c.Schedule()
		check(t, end.what+": schedule", err)
		want(t, end.what+": schedule", turn, schedule)
		t.numbers(a, c.ID(), end.what, numbers)

		c.SetReadAhead(false)
		q := guestdriver.NewCompletionQueue()
		b := t.buffers(a, 1, 2000)[0]
		check(t, "post a buffer", c.PostBuffer(b, q))
		waits, by := t.counterOf(a, ctrWaits), t.counterOf(a, ctrByBytes)
		check(t, "peer: signal", end.peer.Signal(t.ctx))
		t.until("999 bytes to wait", func() bool {
			return t.counterOf(a, ctrWaits) == waits+1 && t.number(a, c.ID(), attrArrived) == 999
		})
		want(t, end.what+": bytes delivered of 999", t.number(a, c.ID(), 0x0285), 0)
		var none [1]guestdriver.Completion
		want(t, end.what+": completions", q.Poll(none[:]), 0)
		check(t, "peer: signal", end.peer.Signal(t.ctx))
		d, err := q.Next(t.ctx)
		check(t, "completion", err)
		want(t, end.what+": 1,000 bytes", d, guestdriver.Completion{Buffer: b, Conn: c, Op: guestdriver.OpReceive, N: 1000})
		want(t, "receive_by_bytes", t.counterOf(a, ctrByBytes)-by, 1)

		got.Expedited = true
		check(t, "set the policy of a connection", c.SetReceivePolicy(got))
		check(t, "peer: signal", end.peer.Signal(t.ctx))
		d, err = q.Next(t.ctx)
		check(t, "completion", err)
		want(t, end.what+": 7 bytes, at once", d, guestdriver.Completion{Buffer: b, Conn: c, Op: guestdriver.OpReceive, Offset: 1000, N: 7})
		want(t, "the bytes", bytes.Equal(b.Bytes()[:1007], append(append(piece(1, 999), piece(2, 1)...), piece(3, 7)...)), true)
		check(t, "close", c.Close())
		d, err = q.Next(t.ctx)
		check(t, "completion", err)
		if d.Buffer != b || !d.Final || d.Err == nil || d.N != 0 {
			t.Errorf("the buffer after close: %+v", d)
		}
	}
}

// TestRX12_Driver: what the adapter reports of sixteen buffers in one response, the
// driver tells of each.
func TestRX12_Driver(t *T) {
	const buffers, size, rounds = 16, 4 << 10, 2
	a := t.driver()
	p, conn := t.dialPeer(a, Script{{Op: OpWait}, {Op: OpSend, N: buffers * size, Seed: 1}, {Op: OpWait}, {Op: OpSend, N: buffers * size, Seed: 2}, {Op: OpDiscard}})
	c := conn.(*guestdriver.Conn)
	c.SetReadAhead(false)
	policy, err := c.ReceivePolicy()
	check(t, "policy", err)
	policy.Bytes, policy.Max, policy.Combine = buffers*size, time.Hour, true
	check(t, "set the policy", c.SetReceivePolicy(policy))
	t.numbers(a, c.ID(), "combined", map[uint16]uint64{combine: 1, notifyBytes: buffers * size})
	bufs := t.buffers(a, buffers, size)
	q := guestdriver.NewCompletionQueue()
	for round := range rounds {
		for _, b := range bufs {
			check(t, "post a buffer", c.PostBuffer(b, q))
		}
		// What is behind them was taken: they were before. One of them alone would be full.
		t.number(a, c.ID(), attrArrived)
		before, results := a.Stats(), t.counterOf(a, ctrCombined)
		check(t, "peer: signal", p.Signal(t.ctx))
		for i, b := range bufs {
			d, err := q.Next(t.ctx)
			check(t, "completion", err)
			want(t, fmt.Sprintf("completion %d", i), d, guestdriver.Completion{Buffer: b, Conn: c, Op: guestdriver.OpReceive, N: size, Final: true})
		}
		s := a.Stats()
		want(t, "combined responses", s.Combined-before.Combined, 1)
		want(t, "buffers reported by them", s.CombinedBuffers-before.CombinedBuffers, buffers)
		want(t, "results_combined", t.counterOf(a, ctrCombined)-results, buffers-1)
		expect := make([]byte, buffers*size)
		Payload(expect, uint64(round+1), 0)
		want(t, "the bytes", bytes.Equal(bufs[0].Memory().Bytes(), expect), true)
	}
}

// TestMM07_Driver: the driver's policies of sending, with adapter memory short: sends
// wait until there are enough of them, or one is wanted soon; none is lost or out of
// order.
func TestMM07_Driver(t *T) {
	const size = 1000
	a := t.driver()
	usual, err := a.SendPolicy(t.ctx)
	check(t, "the policy by default", err)
	want(t, "the policy by default", usual, guestdriver.SendPolicy{Count: 32, Bytes: 256 << 10, Age: time.Millisecond})
	p, conn := t.dialPeer(a, Script{{Op: OpDiscard}})
	c := conn.(*guestdriver.Conn)
	policy := guestdriver.SendPolicy{Delay: guestdriver.DelayMemory, Count: 3, Bytes: 1 << 20, Age: time.Hour}
	check(t, "set the policy", c.SetSendPolicy(policy))
	got, err := c.SendPolicy()
	check(t, "policy", err)
	want(t, "policy", got, policy)
	t.numbers(a, c.ID(), "policy", map[uint16]uint64{
		attrDelayCriteria: 4, attrDelayCount: 3, attrDelayBytes: 1 << 20, attrDelayAge: 3600_000 * ms, attrDelayDynamic: 0, attrASAPMode: 0, attrKeepSends: 0,
	})
	bufs := t.buffers(a, 6, size)
	for i, b := range bufs {
		Payload(b.Bytes(), 1, int64(i*size))
	}
	q := guestdriver.NewCompletionQueue()
	done := func(what string, bufs ...*guestdriver.Buffer) {
		t.Helper()
		for _, b := range bufs {
			d, err := q.Next(t.ctx)
			check(t, what, err)
			want(t, what, d, guestdriver.Completion{Buffer: b, Conn: c, Op: guestdriver.OpSend, N: size, Final: true})
		}
	}
	// Memory is short at three quarters of it: what is in use is four fifths then.
	used := t.number(a, 0, memoryUsed)
	limit := t.number(a, 0, 0x0107)
	check(t, "MEMORY_SIZE", a.SetScalar(t.ctx, 0, 0x0107, used/4*5))
	reads := t.counterOf(a, ctrReads)
	waits := func(n uint64, b *guestdriver.Buffer, o guestdriver.SendOptions) {
		t.Helper()
		before := t.counterOf(a, ctrDelayMemory)
		check(t, "send", c.SendBufferWith(b, o, q))
		if n > 0 {
			t.until("a send to wait", func() bool { return t.counterOf(a, ctrDelayMemory) >= before+n })
		}
	}
	asap, count := t.counterOf(a, ctrDelayASAP), t.counterOf(a, ctrDelayCount)
	waits(1, bufs[0], guestdriver.SendOptions{})
	want(t, "payload_reads", t.counterOf(a, ctrReads)-reads, 0)
	waits(0, bufs[1], guestdriver.SendOptions{ASAP: true})
	done("with ASAP", bufs[:2]...)
	want(t, "delay_asap", t.counterOf(a, ctrDelayASAP)-asap, 1)
	waits(1, bufs[2], guestdriver.SendOptions{})
	for _, b := range bufs[3:5] {
		waits(0, b, guestdriver.SendOptions{})
	}
	done("three of them", bufs[2:5]...)
	want(t, "delay_count", t.counterOf(a, ctrDelayCount)-count, 1)
	waits(1, bufs[5], guestdriver.SendOptions{})
	policy.Delay = 0
	check(t, "set the policy", c.SetSendPolicy(policy))
	done("nothing waits any more", bufs[5])
	check(t, "MEMORY_SIZE", a.SetScalar(t.ctx, 0, 0x0107, limit))
	check(t, "close", c.Close())
	want(t, "SHA-256 at the peer", t.outcome(p).Sum, sum(bufs[0].Memory().Bytes()))
}

// TestMM10_Driver: a buffer that is sent again unchanged is not read again.
func TestMM10_Driver(t *T) {
	const size = 1 << 20
	a := t.driver()
	p, conn := t.dialPeer(a, Script{{Op: OpDiscard}})
	c := conn.(*guestdriver.Conn)
	policy, err := c.SendPolicy()
	check(t, "policy", err)
	policy.Keep = true
	check(t, "set the policy", c.SetSendPolicy(policy))
	b := t.buffers(a, 1, size)[0]
	q := guestdriver.NewCompletionQueue()
	var all []byte
	for i, s := range []struct {
		change, said bool
		read         uint64
	}{{true, true, size}, {false, false, 0}, {true, true, size}, {false, true, size}, {false, false, 0}} {
		if s.change {
			Payload(b.Bytes(), uint64(i), 0)
		}
		all = append(all, b.Bytes()...)
		before := t.counterOf(a, ctrBytesRead)
		check(t, "send", c.SendBufferWith(b, guestdriver.SendOptions{Unchanged: !s.said}, q))
		d, err := q.Next(t.ctx)
		check(t, "completion", err)
		want(t, "completion", d, guestdriver.Completion{Buffer: b, Conn: c, Op: guestdriver.OpSend, N: size, Final: true})
		want(t, fmt.Sprintf("bytes read for send %d", i), t.counterOf(a, ctrBytesRead)-before, s.read)
	}
	check(t, "close", c.Close())
	want(t, "SHA-256 at the peer", t.outcome(p).Sum, sum(all))
}

// TestRX11_Driver: bytes are written past the caches when the driver's placement says
// so, and not before.
func TestRX11_Driver(t *T) {
	const n = 30_000
	a := t.driver()
	p, conn := t.dialPeer(a, Script{{Op: OpWait}, {Op: OpSend, N: n, Seed: 1}, {Op: OpWait}, {Op: OpSend, N: n, Seed: 2}, {Op: OpDiscard}})
	c := conn.(*guestdriver.Conn)
	place, err := c.Placement()
	check(t, "placement", err)
	want(t, "placement by default", place, guestdriver.Placement{Budget: 1 << 20})
	for round, went := range []uint64{0, n} {
		if round == 1 {
			place.Stores = guestdriver.StoresNonTemporal
			check(t, "set the placement", c.SetPlacement(place))
			t.numbers(a, c.ID(), "placement", map[uint16]uint64{placement: 1, placementBudget: 1 << 20})
		}
		before := t.counterOf(a, ctrNonTemporal)
		check(t, "peer: signal", p.Signal(t.ctx))
		check(t, "read", expect(io.LimitReader(c, n), uint64(round+1), 0, n))
		want(t, "nontemporal_bytes", t.counterOf(a, ctrNonTemporal)-before, went)
	}
}
