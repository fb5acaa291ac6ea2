// SPDX-License-Identifier: Apache-2.0

package conformance

import (
	"bytes"
	"fmt"
	"runtime"

	"toebox/guestdriver"
)

// ctrOrphanBytes counts received bytes dropped because the host had closed.
const ctrOrphanBytes = 60

// raceRounds is how often each race is run.
const raceRounds = 24

// race posts a request, and after a random moment, which may be none, a
// cancellation of it. It checks that both have their result and agree on who
// won (SPEC.md §5.9), and returns that of the request.
func (r *ring) race(target desc, rsp uint8) (d desc, cancelled bool) {
	r.Helper()
	target.Tag = r.tag()
	cancel := desc{Type: reqCancel, Tag: r.tag(), Conn: target.Conn, Offset: target.Tag}
	if r.rng.IntN(3) == 0 {
		r.post(target, cancel) // one run of the table
	} else {
		r.post(target)
		for range r.rng.IntN(2000) {
			runtime.Gosched()
		}
		r.post(cancel)
	}
	of := func(d desc) bool { return d.Tag == target.Tag || d.Tag == cancel.Tag }
	d = r.take("the result of the request", of)
	won := r.take("the result of the cancellation", of)
	if d.Tag != target.Tag || won.Tag != cancel.Tag {
		r.Fatalf("the cancellation was answered before its target, or one of them twice: %v, %v", d, won)
	}
	switch won.Aux {
	case stOK:
		terminal(r.T, "a cancelled request", d, rsp, stCancelled)
	case stTooLate:
		if d.Aux == stCancelled {
			r.Errorf("a request that a cancellation was too late for says it was cancelled: %v", d)
		}
	default:
		r.Errorf("cancellation: %v", won)
	}
	terminal(r.T, "the cancellation", won, rspCancelled, won.Aux)
	return d, d.Aux == stCancelled
}

// TestCE10_RaceConnect cancels connects while they succeed: either there is no
// connection, or there is one that works.
func TestCE10_RaceConnect(t *T) {
	c := t.start()
	r := c.ring(0, ringConfig{})
	p, err := t.Peer().Serve(t.ctx, Script{{Op: OpEcho}})
	check(t, "peer: serve", err)
	t.Cleanup(func() { p.Close() })
	before := c.counter(ctrConnections)
	lost := 0
	for range raceRounds {
		k := new(ctl).target(to(p.Addr()))
		m := r.alloc(len(k.b))
		copy(m.Bytes, k.b)
		d, cancelled := r.race(desc{Type: reqConnect, Aux: 1, Base: m.IOVA, Length: uint32(len(k.b))}, rspCompletion)
		if cancelled {
			lost++
			want(t, "id of a connection that never was", d.Conn, 0)
			continue
		}
		terminal(t, "a connect that was faster", d, rspCompletion, stOK)
		r.echo(d.Conn, 100)
		r.finish(d.Conn)
	}
	t.Logf("%d of %d cancelled", lost, raceRounds)
	want(t, "connections alive", c.counter(ctrConnections), before)
}

// echo sends n bytes and gets them back.
func (r *ring) echo(conn uint64, n int) {
	r.Helper()
	r.sendAll(conn, n, 5)
	r.stream(conn, 5, 0, n, n)
}

// TestCE10_RaceListen cancels listens while they succeed: either the port is
// free, or there is a listener that ends like any.
func TestCE10_RaceListen(t *T) {
	c := t.start()
	r := c.ring(0, ringConfig{})
	port := t.reachable()
	lost := 0
	for range raceRounds {
		k := new(ctl).target(goal{count: 1, lport: port})
		m := r.alloc(len(k.b))
		copy(m.Bytes, k.b)
		d, cancelled := r.race(desc{Type: reqListen, Aux: 1, Base: m.IOVA, Length: uint32(len(k.b))}, rspListen)
		if cancelled {
			lost++
		} else {
			terminal(t, "a listen that was faster", d, rspListen, stOK)
			terminal(t, "its end", r.terminate(d.Conn, 0), rspTerminated, stOK)
		}
	}
	t.Logf("%d of %d cancelled", lost, raceRounds)
	d := r.listen(goal{count: 1, lport: port})
	terminal(t, "a listen on the port afterwards", d, rspListen, stOK)
	// Tag 0 with its id is the other way to end a listener.
	terminal(t, "a cancellation of the listener", r.do(desc{Type: reqCancel, Conn: d.Conn}), rspCancelled, stOK)
	end := r.unsolicited(rspTerminated, d.Conn)
	terminal(t, "the listener", end, rspTerminated, stCancelled)
	want(t, "how it ended: listener closed", end.Length, 6)
}

// TestCE10_RaceSend cancels sends while they are acknowledged. What the peer
// has got in the end lies between what was counted and what was presented.
func TestCE10_RaceSend(t *T) {
	c := t.start()
	r := c.ring(0, ringConfig{})
	p, id := r.serve(Script{{Op: OpDiscard}})
	m := r.buffer(200_000)
	counted, presented, lost := int64(0), int64(0), 0
	for range raceRounds {
		n := 1 + t.rng.IntN(len(m.Bytes))
		d, cancelled := r.race(desc{Type: reqSend, Modify: true, Base: m.IOVA, Conn: id, Length: uint32(n)}, rspDone)
		counted += int64(d.Length)
		presented += int64(n)
		if cancelled {
			lost++
			continue
		}
		terminal(t, "a send that was faster", d, rspDone, stOK)
		want(t, "its length", d.Length, uint32(n))
	}
	t.Logf("%d of %d cancelled", lost, raceRounds)
	terminal(t, "termination", r.terminate(id, 0), rspTerminated, stOK)
	res := t.outcome(p)
	if res.Received < counted || res.Received > presented || !res.EOF {
		t.Errorf("the peer got %d bytes (EOF %t): %d were counted, %d presented", res.Received, res.EOF, counted, presented)
	}
}

// TestCE10_RaceReceive cancels buffers while bytes arrive: none is lost, and
// those in a cancelled buffer have been reported.
func TestCE10_RaceReceive(t *T) {
	const total, seed = 400_000, 6
	c := t.start()
	r := c.ring(0, ringConfig{})
	_, id := r.serve(Script{{Op: OpSend, N: total, Seed: seed}, {Op: OpDiscard}})
	m := r.buffer(8192)
	expect := make([]byte, len(m.Bytes))
	at, lost := int64(0), 0
	// An adapter that finds buffer and cancellation at once fills nothing: where it
	// does, the cancellation comes later.
	const soonest = 500
	latest := soonest
	for at < total {
		tag := r.available(id, m, 0)
		for range t.rng.IntN(latest) {
			runtime.Gosched()
		}
		cancel := r.post(desc{Type: reqCancel, Conn: id, Offset: tag})
		fill := uint32(0)
		for ended := false; !ended; {
			d := r.take("a result of the buffer", func(d desc) bool { return d.Tag == tag || d.Tag == cancel })
			ended = d.final()
			switch {
			case d.Tag == cancel:
				t.Fatalf("the cancellation was answered before its target: %v", d)
			case d.Type == rspReceive:
				if d.Aux != stOK || d.Offset != fill || d.Length == 0 || int(fill+d.Length) > len(m.Bytes) {
					t.Fatalf("delivery at %d: %v", fill, d)
				}
				b := m.Bytes[fill : fill+d.Length]
				Payload(expect[:len(b)], seed, at)
				if !bytes.Equal(b, expect[:len(b)]) {
					t.Fatalf("bytes differ in [%d, %d) of the stream", at, at+int64(len(b)))
				}
				fill += d.Length
				at += int64(d.Length)
			default:
				lost++
				terminal(t, "a cancelled buffer", d, rspDone, stCancelled)
			}
		}
		d := r.answer(cancel)
		if d.Aux != stOK && d.Aux != stTooLate {
			t.Errorf("cancellation: %v", d)
		}
		if latest = max(latest/2, soonest); fill == 0 {
			latest = min(4*latest, soonest<<12)
		}
	}
	t.Logf("%d cancelled", lost)
	want(t, "bytes of the stream", at, int64(total))
	r.finish(id)
}

// TestCE11_Simultaneous: both ends close at the same moment, each with bytes
// before its FIN.
func TestCE11_Simultaneous(t *T) {
	c := t.start()
	r := c.ring(0, ringConfig{})
	for round := range 8 {
		p, id := r.serve(Script{{Op: OpWait}, {Op: OpFIN}, {Op: OpDiscard}})
		m := r.buffer(3000)
		Payload(m.Bytes, uint64(round), 0)
		send := r.send(id, m, 0)
		signalled := make(chan error, 1)
		go func() { signalled <- p.Signal(t.ctx) }()
		for range t.rng.IntN(1000) {
			runtime.Gosched()
		}
		end := r.post(desc{Type: reqTerminate, Conn: id})
		check(t, "peer: signal", <-signalled)
		d := r.answer(send)
		terminal(t, "the send before the end", d, rspDone, stOK)
		want(t, "its length", d.Length, 3000)
		d = r.answer(end)
		terminal(t, "termination", d, rspTerminated, stOK)
		want(t, "how it ended: orderly", d.Length, 0)
		res := t.outcome(p)
		want(t, "bytes at the peer", res.Received, 3000)
		want(t, "EOF at the peer", res.EOF, true)
		want(t, "SHA-256", res.Sum, sum(m.Bytes))
		want(t, "peer's error", res.Err, "")
	}
}

// TestCE11_Linger: a graceful termination whose data nobody takes ends at the
// time limit, with a reset.
func TestCE11_Linger(t *T) {
	c := t.start()
	r := c.ring(0, ringConfig{})
	p, id := r.serve(Script{{Op: OpWait}, {Op: OpDiscard}}, attr(0x0216, 50_000_000))
	m := r.buffer(16 << 20)
	send := r.send(id, m, 0)
	r.quiet("the end of a send that the peer does not read", func(d desc) bool { return d.Tag == send })
	end := r.post(desc{Type: reqTerminate, Conn: id})
	d := r.take("the send or the termination", func(d desc) bool { return d.Tag == send || d.Tag == end })
	terminal(t, "the send, answered before the termination", d, rspDone, stTimedOut)
	if d.Length >= uint32(len(m.Bytes)) {
		t.Errorf("a send that timed out says that %d of %d bytes arrived", d.Length, len(m.Bytes))
	}
	d = r.answer(end)
	terminal(t, "termination", d, rspTerminated, stOK)
	want(t, "how it ended: reset by the host", d.Length, 1)
	terminal(t, "the id", r.terminate(id, 0), rspTerminated, stBadConnection)
	check(t, "peer: signal", p.Signal(t.ctx))
	if res := t.outcome(p); res.Err == "" || res.EOF {
		t.Errorf("the peer saw no reset: %+v", res)
	}
}

// TestCE11_EndReceiving: what arrives from then on is dropped and counted,
// sending goes on.
func TestCE11_EndReceiving(t *T) {
	c := t.start()
	r := c.ring(0, ringConfig{})
	p, id := r.serve(Script{{Op: OpWait}, {Op: OpSend, N: 5000, Seed: 1}, {Op: OpFIN}, {Op: OpDiscard}})
	m := r.buffer(64)
	tag := r.available(id, m, 0)
	end := r.post(desc{Type: reqTerminate, Conn: id, Length: 3})
	terminal(t, "the posted buffer", r.answer(tag), rspDone, stClosed)
	d := r.answer(end)
	terminal(t, "end of receiving", d, rspTerminated, stOK)
	want(t, "how it ended: half closed", d.Length, 4)
	terminal(t, "a buffer after it", r.answer(r.available(id, m, 0)), rspDone, stClosed)
	orphans := c.counter(ctrOrphanBytes)
	check(t, "peer: signal", p.Signal(t.ctx))
	t.until("the dropped bytes to be counted", func() bool { return c.counter(ctrOrphanBytes)-orphans == 5000 })
	r.sendAll(id, 2000, 3)
	terminal(t, "termination", r.terminate(id, 0), rspTerminated, stOK)
	res := t.outcome(p)
	want(t, "bytes at the peer", res.Received, 2000)
	want(t, "EOF at the peer", res.EOF, true)
}

// TestCE11_ResetBehindData: whatever of the data before a reset is delivered
// comes in order, whole, and before the reset is told; nothing comes after.
func TestCE11_ResetBehindData(t *T) {
	const total, seed = 20_000, 4
	c := t.start()
	r := c.ring(0, ringConfig{})
	p, id := r.serve(Script{{Op: OpSend, N: total, Seed: seed}, {Op: OpWait}, {Op: OpReset}})
	first := r.buffer(100)
	got := r.fill(r.available(id, first, 0), first, seed, 0)
	want(t, "bytes before the reset", got, 100)
	check(t, "peer: signal", p.Signal(t.ctx))
	m := r.buffer(1000)
	at := int64(100)
	for {
		n := r.fill(r.available(id, m, 0), m, seed, at)
		at += int64(n)
		if n < len(m.Bytes) {
			break
		}
	}
	if at > total {
		t.Errorf("%d bytes of %d", at, total)
	}
	d := r.unsolicited(rspTerminated, id)
	want(t, "how it ended: reset by the peer", d.Length, 2)
	terminal(t, "a buffer behind the reset", r.answer(r.available(id, m, 0)), rspDone, stReset)
	r.finish(id)
}

// fill checks what is delivered into one buffer until it is full or the
// connection was reset, and returns how much that was.
func (r *ring) fill(tag uint32, m guestdriver.DMA, seed uint64, from int64) int {
	r.Helper()
	at := 0
	expect := make([]byte, len(m.Bytes))
	for {
		d := r.take(fmt.Sprintf("response of tag %#x, or a termination", tag), func(d desc) bool { return d.Tag == tag || d.Type == rspTerminated })
		if d.Type == rspDone {
			terminal(r.T, "a buffer that the reset ended", d, rspDone, stReset)
			return at
		}
		if d.Tag != tag || d.Type != rspReceive || int(d.Offset) != at || d.Length == 0 || int(d.Offset+d.Length) > len(m.Bytes) {
			r.Fatalf("delivery at %d: %v", at, d)
		}
		b := m.Bytes[at : at+int(d.Length)]
		Payload(expect[:len(b)], seed, from+int64(at))
		if !bytes.Equal(b, expect[:len(b)]) {
			r.Fatalf("bytes differ in [%d, %d) of the stream", from+int64(at), from+int64(at+len(b)))
		}
		at += len(b)
		if d.final() {
			return at
		}
	}
}
