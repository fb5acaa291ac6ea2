// SPDX-License-Identifier: Apache-2.0

package conformance

import (
	"bytes"
	"fmt"
)

// TestCE10_Connect cancels a connect that hangs.
func TestCE10_Connect(t *T) {
	c := t.start()
	r := c.ring(0, ringConfig{})
	a, err := t.Peer().Hang(t.ctx)
	check(t, "peer: hang", err)
	_, tag := r.control(reqConnect, 0, new(ctl).target(to(a)))
	r.quiet("an answer of a connect that hangs", func(d desc) bool { return d.Tag == tag })
	count := c.counter(ctrCancellations)
	cancel := r.post(desc{Type: reqCancel, Offset: tag})
	first := r.take("a result", func(d desc) bool { return d.Tag == tag || d.Tag == cancel })
	terminal(t, "the connect, which comes first", first, rspCompletion, stCancelled)
	terminal(t, "the cancellation", r.answer(cancel), rspCancelled, stOK)
	want(t, "cancellations", c.counter(ctrCancellations)-count, 1)
	terminal(t, "a second cancellation", r.do(desc{Type: reqCancel, Offset: tag}), rspCancelled, stTooLate)
}

// TestCE10_Receive cancels posted receive buffers, some of them partly filled.
func TestCE10_Receive(t *T) {
	c := t.start()
	r := c.ring(0, ringConfig{})
	_, id := r.serve(Script{{Op: OpSend, N: 10, Seed: 3}, {Op: OpDiscard}})
	m := r.buffer(100)
	tag := r.available(id, m, 0)
	d := r.answer(tag)
	if d.Type != rspReceive || d.final() || d.Length != 10 {
		t.Fatalf("ten bytes into a buffer of 100: %v", d)
	}
	m2 := r.buffer(100)
	second := r.available(id, m2, 0)
	terminal(t, "cancellation with the wrong connection", r.do(desc{Type: reqCancel, Offset: tag}), rspCancelled, stBadTag)
	k := new(ctl)
	for _, tg := range []uint32{tag, second, 0x77777} {
		v := make([]byte, 16)
		for i := range 8 {
			v[i] = byte(id >> (8 * i))
		}
		v[8], v[9], v[10], v[11] = byte(tg), byte(tg>>8), byte(tg>>16), byte(tg>>24)
		k.tuple(true, 0x0003, v)
	}
	_, cancel := r.control(reqCancel, 0, k)
	for i, status := range []uint16{stOK, stOK, stBadTag} {
		d := r.answer(cancel)
		if d.Type != rspCancelled || d.Aux != status || d.Offset != uint32(i) || d.final() != (i == 2) {
			t.Errorf("cancellation %d: %v", i, d)
		}
	}
	d = r.answer(tag)
	terminal(t, "the partly filled buffer", d, rspDone, stCancelled)
	want(t, "its length", d.Length, 0)
	terminal(t, "the empty buffer", r.answer(second), rspDone, stCancelled)
	r.finish(id)
}

// TestCE10_Send cancels a send that the peer does not read: the count says how
// much went, and the rest is never sent.
func TestCE10_Send(t *T) {
	c := t.start()
	r := c.ring(0, ringConfig{})
	p, id := r.serve(Script{{Op: OpWait}, {Op: OpDiscard}})
	m := r.buffer(16 << 20)
	Payload(m.Bytes, 9, 0)
	tag := r.send(id, m, 0)
	r.quiet("the end of a send that the peer does not read", func(d desc) bool { return d.Tag == tag })
	cancel := r.post(desc{Type: reqCancel, Conn: id, Offset: tag})
	d := r.take("a result", func(d desc) bool { return d.Tag == tag || d.Tag == cancel })
	terminal(t, "the send, which comes first", d, rspDone, stCancelled)
	if d.Length >= uint32(len(m.Bytes)) {
		t.Errorf("a cancelled send says %d of %d bytes were done", d.Length, len(m.Bytes))
	}
	won := r.answer(cancel)
	terminal(t, "the cancellation", won, rspCancelled, stOK)
	end := r.post(desc{Type: reqTerminate, Conn: id, Length: 2})
	check(t, "peer: signal", p.Signal(t.ctx))
	terminal(t, "half-close after it", r.answer(end), rspTerminated, stOK)
	res := t.outcome(p)
	if res.Received < int64(d.Length) || res.Received > int64(len(m.Bytes)) || !res.EOF {
		t.Errorf("peer got %d bytes (EOF %v), the send counted %d", res.Received, res.EOF, d.Length)
	}
	want(t, "bytes fetched, as the cancellation says", int64(won.Length), res.Received)
	part := sum(m.Bytes[:res.Received])
	want(t, "SHA-256 of what was sent", res.Sum, part)
	r.finish(id)
}

// TestCE11_Graceful: FIN after what is queued; the peer gets everything.
func TestCE11_Graceful(t *T) {
	c := t.start()
	r := c.ring(0, ringConfig{})
	p, id := r.serve(Script{{Op: OpDiscard}})
	m := r.buffer(300000)
	Payload(m.Bytes, 4, 0)
	tag := r.send(id, m, 0)
	done := c.counter(ctrTerminations)
	end := r.post(desc{Type: reqTerminate, Conn: id, Length: 0})
	d := r.take("the send or the termination", func(d desc) bool { return d.Tag == tag || d.Tag == end })
	terminal(t, "the send, answered before the termination", d, rspDone, stOK)
	want(t, "its length", d.Length, 300000)
	d = r.answer(end)
	terminal(t, "termination", d, rspTerminated, stOK)
	want(t, "how it ended: orderly", d.Length, 0)
	res := t.outcome(p)
	want(t, "bytes at the peer", res.Received, 300000)
	want(t, "EOF at the peer", res.EOF, true)
	want(t, "SHA-256", res.Sum, sum(m.Bytes))
	want(t, "terminations", c.counter(ctrTerminations)-done, 1)
	terminal(t, "a termination afterwards", r.terminate(id, 0), rspTerminated, stBadConnection)
}

// TestCE11_Abort: RST; requests of the connection are answered before.
func TestCE11_Abort(t *T) {
	c := t.start()
	r := c.ring(0, ringConfig{})
	p, id := r.serve(Script{{Op: OpDiscard}})
	m := r.buffer(64)
	tag := r.available(id, m, 0)
	end := r.post(desc{Type: reqTerminate, Conn: id, Length: 1})
	d := r.take("the buffer or the termination", func(d desc) bool { return d.Tag == tag || d.Tag == end })
	terminal(t, "the buffer, answered before the termination", d, rspDone, stClosed)
	d = r.answer(end)
	terminal(t, "termination", d, rspTerminated, stOK)
	want(t, "how it ended: reset by the host", d.Length, 1)
	res := t.outcome(p)
	if res.Err == "" || res.EOF {
		t.Errorf("the peer saw no reset: %+v", res)
	}
}

// TestCE11_HalfClose: the peer sees the end of the stream and still sends.
func TestCE11_HalfClose(t *T) {
	c := t.start()
	r := c.ring(0, ringConfig{})
	p, id := r.serve(Script{{Op: OpDiscard}, {Op: OpSend, N: 5000, Seed: 8}})
	r.sendAll(id, 100, 1)
	d := r.terminate(id, 2)
	terminal(t, "half-close", d, rspTerminated, stOK)
	want(t, "how it ended: half closed", d.Length, 4)
	m := r.buffer(16)
	d = r.answer(r.send(id, m, 0))
	terminal(t, "send after the half-close", d, rspDone, stClosed)
	r.stream(id, 8, 0, 5000, 2048)
	d = r.unsolicited(rspTerminated, id)
	want(t, "how it ended: remote end of stream", d.Length, 5)
	res := t.outcome(p)
	want(t, "bytes at the peer", res.Received, 100)
	want(t, "peer's error", res.Err, "")
	r.finish(id)
}

// TestCE11_RemoteFIN: data first, then END_OF_STREAM on the posted buffer,
// then the unsolicited response; sending goes on.
func TestCE11_RemoteFIN(t *T) {
	c := t.start()
	r := c.ring(0, ringConfig{})
	closes := c.counter(ctrRemoteCloses)
	p, id := r.serve(Script{{Op: OpSend, N: 777, Seed: 2}, {Op: OpFIN}, {Op: OpDiscard}})
	m := r.buffer(4096)
	tag := r.available(id, m, 0)
	at := uint32(0)
	var last desc
	for {
		last = r.answer(tag)
		if last.Type != rspReceive {
			break
		}
		want(t, "offset of a delivery", last.Offset, at)
		at += last.Length
		if last.final() {
			t.Fatalf("FINAL in a buffer that is not full: %v", last)
		}
	}
	want(t, "bytes before the end", at, 777)
	terminal(t, "the posted buffer at the end of the stream", last, rspDone, stEndOfStream)
	want(t, "its length", last.Length, 0)
	expect := make([]byte, 777)
	Payload(expect, 2, 0)
	if !bytes.Equal(m.Bytes[:777], expect) {
		t.Errorf("bytes differ")
	}
	d := r.unsolicited(rspTerminated, id)
	want(t, "how it ended: remote end of stream", d.Length, 5)
	want(t, "remote_closes", c.counter(ctrRemoteCloses)-closes, 1)
	terminal(t, "a buffer after the end of the stream", r.answer(r.available(id, m, 0)), rspDone, stEndOfStream)
	r.sendAll(id, 2000, 3)
	d = r.terminate(id, 0)
	terminal(t, "termination", d, rspTerminated, stOK)
	res := t.outcome(p)
	want(t, "bytes at the peer", res.Received, 2000)
	want(t, "EOF at the peer", res.EOF, true)
}

// TestCE11_RemoteReset: what the peer sent before its reset may or may not
// come; requests are answered, then the connection is dead but keeps its id
// until the host ends it (SPEC.md §5.8).
func TestCE11_RemoteReset(t *T) {
	c := t.start()
	r := c.ring(0, ringConfig{})
	resets := c.counter(ctrResets)
	p, id := r.serve(Script{{Op: OpWait}, {Op: OpReset}})
	m := r.buffer(64)
	tag := r.available(id, m, 0)
	check(t, "peer: signal", p.Signal(t.ctx))
	d := r.take("the buffer or the reset", func(d desc) bool { return d.Tag == tag || d.Tag == 0 && d.Conn == id })
	terminal(t, "the buffer, answered before the reset is told", d, rspDone, stReset)
	d = r.unsolicited(rspTerminated, id)
	want(t, "how it ended: reset by the peer", d.Length, 2)
	want(t, "resets", c.counter(ctrResets)-resets, 1)
	terminal(t, "send on a dead connection", r.answer(r.send(id, m, 0)), rspDone, stReset)
	_, rs := r.attrs(reqConnAttr, id, new(ctl).get(0x0203, 8).get(0x0202, 24))
	want(t, "status of STATE of a dead connection", rs[0].Status, stOK)
	want(t, "STATE, closed", rs[0].scalar(), 0)
	remote, _ := addressOf(rs[1].Value)
	want(t, "REMOTE of a dead connection", remote, p.Addr())
	r.finish(id)
}

// TestCE11_BadMode: modes beyond 3, and tuples.
func TestCE11_BadMode(t *T) {
	c := t.start()
	r := c.ring(0, ringConfig{})
	p, a := r.serve(Script{{Op: OpDiscard}})
	b := r.dial(p.Addr())
	for _, mode := range []uint32{4, 0xffffffff} {
		terminal(t, fmt.Sprintf("mode %d", mode), r.terminate(a, mode), rspTerminated, stBadMode)
	}
	k := new(ctl)
	for _, id := range []uint64{a, 0x999, b} {
		v := make([]byte, 16)
		for i := range 8 {
			v[i] = byte(id >> (8 * i))
		}
		v[8] = 1
		k.tuple(true, 0x0002, v)
	}
	_, tag := r.control(reqTerminate, 0, k)
	got := map[uint64]desc{}
	for i := range 3 {
		d := r.answer(tag)
		want(t, "FINAL in the last", d.final(), i == 2)
		got[d.Conn] = d
	}
	want(t, "status of the first", got[a].Aux, stOK)
	want(t, "status of an unknown id", got[0x999].Aux, stBadConnection)
	want(t, "status of the third", got[b].Aux, stOK)
	terminal(t, "the first is gone", r.terminate(a, 1), rspTerminated, stBadConnection)
}
