// SPDX-License-Identifier: Apache-2.0

package conformance

import (
	"bytes"
	"encoding/binary"
	"slices"
)

// arrive lets the peer go on with its script and waits until more segments came
// than before.
func (n *notifier) arrive() {
	n.Helper()
	before := n.counter(ctrSegmentsIn)
	check(n.T, "peer: signal", n.peer.Signal(n.ctx))
	n.until("a segment from the peer", func() bool { return n.counter(ctrSegmentsIn) > before })
}

// notice waits for the completion of tag, which comes before the first bytes,
// and then for these.
func (n *notifier) notice(tag uint32, stream []byte, buf []byte) uint64 {
	n.Helper()
	d := n.take("completion or bytes", func(d desc) bool { return d.Tag == tag || d.Type == rspReceive })
	terminal(n.T, "the completion, before bytes", d, rspCompletion, stOK)
	if len(stream) > 0 {
		r := n.take("a buffer receive", func(r desc) bool { return r.Type == rspReceive && r.Conn == d.Conn })
		if int(r.Length) > len(buf) || !bytes.HasPrefix(stream, buf[:r.Length]) {
			n.Errorf("received %q of %q", buf[:min(int(r.Length), len(buf))], stream)
		}
	}
	return d.Conn
}

// bulk posts a bulk buffer and returns its memory.
func (n *notifier) bulk() []byte {
	n.Helper()
	m := n.buffer(4096)
	n.available(0, m, 0)
	return m.Bytes
}

// piece is what the peer sends in a step of its script.
func piece(seed uint64, n int) []byte {
	b := make([]byte, n)
	Payload(b, seed, 0)
	return b
}

// TestCE07_Data: a completion waits until enough bytes have arrived, and comes
// before the first buffer receive.
func TestCE07_Data(t *T) {
	n := t.notifier(Script{{Op: OpWait}, {Op: OpSend, N: 3, Seed: 1}, {Op: OpWait}, {Op: OpSend, N: 2, Seed: 2}, {Op: OpWait}})
	buf := n.bulk()
	tag := n.gather(1, attr(notifyData, 5))
	want(t, "told without data", n.told(), 0)
	n.arrive()
	want(t, "told after 3 bytes of 5", n.told(), 0)
	check(t, "peer: signal", n.peer.Signal(t.ctx))
	n.notice(tag, append(piece(1, 3), piece(2, 2)...), buf)
	want(t, "notify_data", n.since(ctrByData), 1)
}

// TestCE07_Arrival: an arrival waits for its first byte.
func TestCE07_Arrival(t *T) {
	n := t.notifier(Script{{Op: OpWait}})
	port := t.reachable()
	terminal(t, "listen", n.listen(goal{count: 1, lport: port}, attr(notifyData, 1)), rspListen, stOK)
	buf := n.bulk()
	s, err := t.Peer().Dial(t.ctx, port, Script{{Op: OpWait}, {Op: OpSend, N: 4, Seed: 3}, {Op: OpWait}})
	check(t, "peer: dial", err)
	t.Cleanup(func() { s.Close() })
	n.waiting(1)
	want(t, "told without data", n.told(), 0)
	check(t, "peer: signal", s.Signal(t.ctx))
	d := n.unsolicited(rspArrival, 0)
	r := n.take("a buffer receive", func(r desc) bool { return r.Type == rspReceive })
	if r.Conn != d.Conn || r.Length != 4 || !bytes.Equal(buf[:4], piece(3, 4)) {
		t.Errorf("received %v after %v", r, d)
	}
}

// TestCE07_Failures: failures go at once, or with the next release.
func TestCE07_Failures(t *T) {
	n := t.notifier(Script{{Op: OpWait}, {Op: OpSend, N: 1, Seed: 4}, {Op: OpWait}})
	no, err := t.Peer().Refused(t.ctx)
	check(t, "peer: refused", err)
	waits := n.gather(1, attr(notifyData, 1))
	d := n.connect(to(no), attr(notifyData, 1))
	terminal(t, "a failure, at once", d, rspCompletion, stRefused)
	k := new(ctl).set(notifyData, 1).set(notifyFailures, 1).target(to(no))
	_, tag := n.control(reqConnect, 0, k)
	n.waiting(1)
	want(t, "told of a failure that waits", n.told(), 0)
	check(t, "peer: signal", n.peer.Signal(t.ctx))
	terminal(t, "the connection with data", n.answer(waits), rspCompletion, stOK)
	terminal(t, "the failure with it", n.answer(tag), rspCompletion, stRefused)
	// The ceiling applies to it.
	_, tag = n.control(reqConnect, 0, k)
	n.waiting(1)
	n.after("NOTIFY_CEILING of a failure", 1000*ms, 1)
	_ = tag
}

// TestCE07_Ceiling: the ceiling holds, and so does the end of the connection.
func TestCE07_Ceiling(t *T) {
	n := t.notifier(Script{{Op: OpWait}, {Op: OpFIN}, {Op: OpWait}})
	n.gather(1, attr(notifyData, 1), attr(notifyCeiling, 30*ms))
	n.after("NOTIFY_CEILING", 30*ms, 1)
	want(t, "notify_ceiling", n.since(ctrByCeiling), 1)
	check(t, "peer: signal", n.peer.Signal(t.ctx)) // the first goes on
	n.take("its end", func(d desc) bool { return d.Type == rspTerminated && d.Length == 5 })
	tag := n.gather(1, attr(notifyData, 1))
	check(t, "peer: signal", n.peer.Signal(t.ctx))
	check(t, "peer: signal", n.peer.Signal(t.ctx))
	d := n.answer(tag)
	terminal(t, "connect that ends without data", d, rspCompletion, stOK)
	end := n.unsolicited(rspTerminated, d.Conn)
	want(t, "how it ended: end of stream", end.Length, 5)
	want(t, "notify_end", n.since(ctrByEnd), 1)
}

// byPattern is an option: NOTIFY_PATTERN.
func byPattern(mode, scope uint8, limit uint32, time uint64, text []byte) func(*ctl) {
	b := make([]byte, 16, 16+len(text))
	b[0], b[1] = mode, scope
	binary.LittleEndian.PutUint16(b[2:], uint16(len(text)))
	binary.LittleEndian.PutUint32(b[4:], limit)
	binary.LittleEndian.PutUint64(b[8:], time)
	return func(k *ctl) { k.tuple(true, notifyPattern, append(b, text...)) }
}

// TestCE08_Start: a pattern at the start of the stream, over two segments.
func TestCE08_Start(t *T) {
	n := t.notifier(Script{{Op: OpWait}, {Op: OpSend, N: 2, Seed: 5}, {Op: OpWait}, {Op: OpSend, N: 6, Seed: 6}, {Op: OpWait}})
	stream := slices.Concat(piece(5, 2), piece(6, 6))
	buf := n.bulk()
	tag := n.gather(1, byPattern(1, 0, 0, 0, stream[:4]))
	n.arrive()
	want(t, "told after half of the pattern", n.told(), 0)
	check(t, "peer: signal", n.peer.Signal(t.ctx))
	n.notice(tag, stream, buf)
	want(t, "notify_pattern", n.since(ctrByPattern), 1)
}

// TestCE08_End: an end marker anywhere in the stream, over two segments.
func TestCE08_End(t *T) {
	n := t.notifier(Script{{Op: OpWait}, {Op: OpSend, N: 100, Seed: 7}, {Op: OpWait}, {Op: OpSend, N: 50, Seed: 8}, {Op: OpWait}})
	stream := slices.Concat(piece(7, 100), piece(8, 50))
	buf := n.bulk()
	tag := n.gather(1, byPattern(2, 0, 0, 0, stream[90:110]))
	n.arrive()
	want(t, "told after half of the marker", n.told(), 0)
	check(t, "peer: signal", n.peer.Signal(t.ctx))
	n.notice(tag, stream, buf)
	want(t, "notify_pattern", n.since(ctrByPattern), 1)
}

// TestCE08_Ceilings: bytes and time end the wait for a pattern that does not
// come.
func TestCE08_Ceilings(t *T) {
	n := t.notifier(Script{{Op: OpWait}, {Op: OpSend, N: 31, Seed: 9}, {Op: OpWait}, {Op: OpSend, N: 1, Seed: 10}, {Op: OpWait}})
	never := bytes.Repeat([]byte{0x5a}, 64)
	buf := n.bulk()
	tag := n.gather(1, byPattern(1, 0, 32, 0, never))
	n.arrive()
	want(t, "told after 31 bytes of 32", n.told(), 0)
	check(t, "peer: signal", n.peer.Signal(t.ctx))
	n.notice(tag, append(piece(9, 31), piece(10, 1)...), buf)
	n.gather(1, byPattern(2, 0, 0, 40*ms, never))
	n.after("the time ceiling of a pattern", 40*ms, 1)
	n.gather(1, byPattern(2, 0, 0, 5000*ms, never))
	n.after("NOTIFY_CEILING before it", 1000*ms, 1)
	want(t, "notify_ceiling", n.since(ctrByCeiling), 3)
	want(t, "notify_pattern", n.since(ctrByPattern), 0)
}

// TestCE08_Scope: a match releases its own notice, or all that wait.
func TestCE08_Scope(t *T) {
	for scope, others := range []int{0, 3} {
		t.Run([]string{"own", "all"}[scope], func(t *T) {
			n := t.notifier(Script{{Op: OpWait}, {Op: OpSend, N: 8, Seed: 11}, {Op: OpWait}})
			match := n.gather(1, byPattern(2, uint8(scope), 0, 0, piece(11, 8)[3:7]))
			// The others are served elsewhere: a signal is for the first alone.
			p, err := t.Peer().Serve(t.ctx, Script{{Op: OpWait}})
			check(t, "peer: serve", err)
			t.Cleanup(func() { p.Close() })
			n.addr = p.Addr()
			n.gather(2, attr(notifyCount, 0))
			n.gather(1, attr(notifyData, 1000))
			want(t, "told", n.told(), 0)
			check(t, "peer: signal", n.peer.Signal(t.ctx))
			terminal(t, "the connection that matched", n.answer(match), rspCompletion, stOK)
			want(t, "told with it", n.told(), others)
		})
	}
}
