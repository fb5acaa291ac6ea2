// SPDX-License-Identifier: Apache-2.0

package conformance

import (
	"bytes"
	"slices"
)

// Attributes of SPEC.md §14.6.
const (
	notifyTime  = 0x0240
	notifyBytes = 0x0241
	notifyMax   = 0x0243
	expedited   = 0x0244
)

// attrArrived is BYTES_RECEIVED.
const attrArrived = 0x0284

// Counters of SPEC.md §14.6.
const (
	ctrWaits = 97 + iota
	ctrByTime
	ctrByBytes
	ctrByMax
	ctrByRoom
	ctrByRxEnd
)

const (
	ctrByArrivals = 121 + iota
	ctrByPosts
	ctrByConsumption
	ctrByAmounts
	ctrUnits
	ctrParts
	ctrCombined
)

// delayed is a connection whose peer sends the pieces of a stream, one at each
// signal, under a policy clock that the test moves.
type delayed struct {
	*notifier
	conn   uint64
	pieces []int
	came   int // bytes that the peer has sent
	sent   int // pieces
}

// delay dials a peer that sends pieces and then does what rest says.
func (t *T) delay(pieces []int, rest Script, attrs ...func(*ctl)) *delayed {
	t.Helper()
	var s Script
	for i, n := range pieces {
		s = append(s, Step{Op: OpWait}, Step{Op: OpSend, N: int64(n), Seed: uint64(i)})
	}
	if rest == nil {
		rest = Script{{Op: OpDiscard}} // a signal is for those that have not sent
	}
	n := t.notifier(append(s, rest...))
	d := &delayed{notifier: n, pieces: pieces}
	for i := uint32(ctrWaits); i <= ctrCombined; i++ {
		n.before[i] = n.counter(i)
	}
	d.conn = n.dial(n.addr, attrs...)
	return d
}

// piece lets the peer send its next piece and waits until it is there.
func (d *delayed) piece() {
	d.Helper()
	check(d.T, "peer: signal", d.peer.Signal(d.ctx))
	d.came += d.pieces[d.sent]
	d.sent++
	d.until("the bytes of the peer", func() bool { return d.scalar(reqConnAttr, d.conn, attrArrived) == uint64(d.came) })
}

// begins is piece, and waits until the adapter has noted that a wait begins.
func (d *delayed) begins() {
	d.Helper()
	before := d.counter(ctrWaits)
	d.piece()
	d.until("a wait to begin", func() bool { return d.counter(ctrWaits) == before+1 })
}

// expect compares the bytes of the pieces from one to another with those that
// the next response reports.
func (d *delayed) expect(what string, buf []byte, from, to int) desc {
	d.Helper()
	var want []byte
	for i := from; i < to; i++ {
		want = append(want, piece(uint64(i), d.pieces[i])...)
	}
	r := d.take(what, func(r desc) bool { return r.Type == rspReceive })
	if r.Conn != d.conn || int(r.Length) != len(want) || int(r.Offset+r.Length) > len(buf) ||
		!bytes.Equal(buf[r.Offset:r.Offset+r.Length], want) {
		d.Fatalf("%s: %v, want %d bytes", what, r, len(want))
	}
	return r
}

// still checks that nothing is told 1 ns before ns have passed, and lets them
// pass.
func (d *delayed) still(what string, ns uint64) {
	d.Helper()
	d.step(ns - 1)
	want(d.T, what+", 1 ns early: told", d.told(), 0)
	d.step(1)
}

// TestRX01_Time: bytes wait for NOTIFY_TIME after the first of them, and go
// together.
func TestRX01_Time(t *T) {
	d := t.delay([]int{100, 50, 7}, nil, attr(notifyTime, 5*ms), attr(notifyMax, 50*ms))
	m := d.buffer(4096)
	tag := d.available(d.conn, m, 0)
	d.begins()
	want(t, "told at once", d.told(), 0)
	d.step(3 * ms)
	d.piece()
	d.still("NOTIFY_TIME", 2*ms)
	r := d.expect("the bytes of both", m.Bytes, 0, 2)
	if r.Tag != tag || r.Offset != 0 || r.final() {
		t.Errorf("response %v", r)
	}
	d.begins()
	d.still("NOTIFY_TIME of the next", 5*ms)
	d.expect("the bytes after", m.Bytes, 2, 3)
	want(t, "receive_waits", d.since(ctrWaits), 2)
	want(t, "receive_by_time", d.since(ctrByTime), 2)
	// Without it they go at once.
	status, old := d.setScalar(reqConnAttr, d.conn, notifyTime, 0)
	want(t, "set NOTIFY_TIME", status, stOK)
	want(t, "NOTIFY_TIME before", old, 5*ms)
}

// TestRX01_Bulk: waits of several connections that end together are told of in
// one run.
func TestRX01_Bulk(t *T) {
	d := t.delay([]int{10}, nil, attr(notifyTime, 5*ms), attr(notifyMax, 50*ms))
	bufs := map[uint64][]byte{}
	const conns = 4
	for i := range conns {
		id := d.conn
		if i > 0 {
			id = d.dial(d.addr, attr(notifyTime, 5*ms), attr(notifyMax, 50*ms))
		}
		m := d.buffer(64)
		d.available(id, m, 0)
		bufs[id] = m.Bytes
	}
	for range conns {
		check(t, "peer: signal", d.peer.Signal(t.ctx))
	}
	d.until("waits to begin", func() bool { return d.since(ctrWaits) == conns })
	d.still("NOTIFY_TIME", 5*ms)
	writes := d.counter(ctrDescriptorWrites)
	d.settle()
	d.consume()
	want(t, "responses", len(d.got), conns)
	if got := d.counter(ctrDescriptorWrites) - writes; got > 1 {
		t.Errorf("runs of responses: %d, want 1", got)
	}
	for _, r := range d.got {
		if b := bufs[r.Conn]; r.Type != rspReceive || r.Length != 10 || !bytes.Equal(b[:10], piece(0, 10)) {
			t.Errorf("response %v", r)
		}
		delete(bufs, r.Conn)
	}
	d.got = nil
	want(t, "connections not told of", len(bufs), 0)
}

// TestRX05_Bytes: bytes wait until there are NOTIFY_BYTES of them; of amount and
// time the first that is met counts.
func TestRX05_Bytes(t *T) {
	d := t.delay([]int{60, 39, 1, 20, 30, 100}, nil, attr(notifyBytes, 100), attr(notifyMax, 50*ms))
	m := d.buffer(4096)
	d.available(d.conn, m, 0)
	d.begins()
	d.piece()
	want(t, "told of 99 bytes", d.told(), 0)
	d.piece()
	d.expect("100 bytes", m.Bytes, 0, 3)
	want(t, "receive_by_bytes", d.since(ctrByBytes), 1)
	status, _ := d.setScalar(reqConnAttr, d.conn, notifyTime, 10*ms)
	want(t, "set NOTIFY_TIME", status, stOK)
	d.begins()
	d.step(4 * ms)
	d.piece()
	d.still("NOTIFY_TIME before NOTIFY_BYTES", 6*ms)
	d.expect("50 bytes", m.Bytes, 3, 5)
	want(t, "receive_by_time", d.since(ctrByTime), 1)
	d.piece()
	d.expect("100 bytes, before NOTIFY_TIME", m.Bytes, 5, 6)
	want(t, "receive_by_bytes", d.since(ctrByBytes), 2)
}

// TestRX06_Maximum: NOTIFY_MAX bounds the others, to the nanosecond.
func TestRX06_Maximum(t *T) {
	d := t.delay([]int{10, 20, 5}, nil, attr(notifyTime, 1000*ms), attr(notifyBytes, 1000), attr(notifyMax, 7*ms))
	m := d.buffer(4096)
	d.available(d.conn, m, 0)
	d.begins()
	d.step(6 * ms)
	d.piece()
	d.still("NOTIFY_MAX", ms)
	d.expect("30 bytes", m.Bytes, 0, 2)
	want(t, "receive_by_max", d.since(ctrByMax), 1)
	// 0 lets nothing wait.
	status, _ := d.setScalar(reqConnAttr, d.conn, notifyMax, 0)
	want(t, "set NOTIFY_MAX", status, stOK)
	d.piece()
	d.expect("the rest, at once", m.Bytes, 2, 3)
	want(t, "receive_waits", d.since(ctrWaits), 1)
	status, _ = d.setScalar(reqConnAttr, 0, notifyMax, 1<<63)
	want(t, "NOTIFY_MAX of 2^63", status, stBadValue)
}

// TestRX06_Expedited: nothing of an expedited connection waits.
func TestRX06_Expedited(t *T) {
	d := t.delay([]int{10, 20}, nil, attr(notifyTime, 5*ms), attr(notifyMax, 50*ms), attr(expedited, 1))
	m := d.buffer(4096)
	d.available(d.conn, m, 0)
	d.piece()
	d.expect("10 bytes, at once", m.Bytes, 0, 1)
	want(t, "receive_waits", d.since(ctrWaits), 0)
	status, _ := d.setScalar(reqConnAttr, d.conn, expedited, 2)
	want(t, "EXPEDITED of 2", status, stBadValue)
	status, _ = d.setScalar(reqConnAttr, d.conn, expedited, 0)
	want(t, "set EXPEDITED", status, stOK)
	d.begins()
	d.still("NOTIFY_TIME", 5*ms)
	d.expect("20 bytes", m.Bytes, 1, 2)
}

// TestRX06_Ends: what ends, and what would have no place, lets go what waits.
func TestRX06_Ends(t *T) {
	wait := []func(*ctl){attr(notifyTime, 500*ms), attr(notifyMax, 500*ms)}
	for _, c := range []struct {
		name string
		rest Script
		size int
		by   uint32
		run  func(t *T, d *delayed, tag uint32)
		then []uint8 // types of the responses after the bytes
	}{
		{"FIN", Script{{Op: OpWait}, {Op: OpFIN}, {Op: OpWait}}, 100, ctrByRxEnd, func(t *T, d *delayed, _ uint32) {
			check(t, "peer: signal", d.peer.Signal(t.ctx))
		}, []uint8{rspDone, rspTerminated}},
		{"reset", Script{{Op: OpWait}, {Op: OpReset}}, 100, ctrByRxEnd, func(t *T, d *delayed, _ uint32) {
			check(t, "peer: signal", d.peer.Signal(t.ctx))
		}, []uint8{rspDone, rspTerminated}},
		{"full", nil, 60, ctrByRoom, nil, nil},
		{"cancellation", nil, 100, ctrByRxEnd, func(_ *T, d *delayed, tag uint32) {
			d.post(desc{Type: reqCancel, Offset: tag, Conn: d.conn})
		}, []uint8{rspDone, rspCancelled}},
		{"termination", nil, 100, ctrByRxEnd, func(_ *T, d *delayed, _ uint32) {
			d.post(desc{Type: reqTerminate, Conn: d.conn, Length: 1})
		}, []uint8{rspDone, rspTerminated}},
		{"drain", nil, 100, ctrByRxEnd, func(_ *T, d *delayed, _ uint32) {
			d.command(4)
			d.await(4)
		}, []uint8{rspDone}},
	} {
		t.Run(c.name, func(t *T) {
			d := t.delay([]int{60}, c.rest, wait...)
			d.begins()
			m := d.buffer(c.size)
			tag := d.available(d.conn, m, 0)
			if c.run != nil {
				want(t, "told at once", d.told(), 0)
				c.run(t, d, tag)
			}
			d.expect("the bytes that waited", m.Bytes, 0, 1)
			var got []uint8
			for range c.then {
				got = append(got, d.take("what ended", func(r desc) bool { return r.final() }).Type)
			}
			if !slices.Equal(got, c.then) {
				t.Errorf("types after the bytes: %d, want %d", got, c.then)
			}
			want(t, "the counter of it", d.since(c.by), 1)
		})
	}
}
