// SPDX-License-Identifier: Apache-2.0

package conformance

import (
	"bytes"
	"time"

	"toebox/guestdriver"
)

// driverDelay is a connection of the driver whose peer sends the pieces of a stream,
// one at each signal, under a policy clock that the test moves. They come into one
// large buffer.
type driverDelay struct {
	*T
	a      *guestdriver.Adapter
	c      *guestdriver.Conn
	q      *guestdriver.CompletionQueue
	buf    *guestdriver.Buffer
	posts  []*guestdriver.Buffer // behind it
	posted int                   // of these
	peer   Session
	pieces []int
	sent   int // pieces
	came   int // their bytes
	told   int // bytes that completions told of
	marks  []uint64
}

// driverDelay dials a peer that sends pieces, and changes the policy of receiving.
func (t *T) driverDelay(pieces []int, size int, change func(*guestdriver.ReceivePolicy)) *driverDelay {
	t.Helper()
	d := &driverDelay{T: t, a: t.driver(), q: guestdriver.NewCompletionQueue(), pieces: pieces}
	bus := d.a.Bus()
	bus.Write32(0, 0x00c0, 1)
	t.Cleanup(func() { bus.Write32(0, 0x00c0, 0) })
	var s Script
	for i, n := range pieces {
		s = append(s, Step{Op: OpWait}, Step{Op: OpSend, N: int64(n), Seed: uint64(i)})
	}
	peer, conn := t.dialPeer(d.a, append(s, Step{Op: OpDiscard}))
	d.peer, d.c = peer, conn.(*guestdriver.Conn)
	d.c.SetReadAhead(false)
	p, err := d.c.ReceivePolicy()
	check(t, "policy", err)
	change(&p)
	check(t, "set the policy", d.c.SetReceivePolicy(p))
	got, err := d.c.ReceivePolicy()
	check(t, "policy", err)
	want(t, "policy", got, p)
	d.buf = t.buffers(d.a, 1, size)[0]
	d.posts = t.buffers(d.a, 8, 64)
	d.marks, err = d.a.Counters(t.ctx)
	check(t, "counters", err)
	check(t, "post the buffer", d.c.PostBuffer(d.buf, d.q))
	d.arrived()
	return d
}

// arrived is how many bytes the adapter has received. It is answered behind all that
// was posted, and told, before.
func (d *driverDelay) arrived() int {
	d.Helper()
	return int(d.number(d.a, d.c.ID(), attrArrived))
}

// post posts one more buffer of 64 bytes; the adapter has it then.
func (d *driverDelay) post() {
	d.Helper()
	check(d.T, "post a buffer", d.c.PostBuffer(d.posts[d.posted], d.q))
	d.posted++
	d.arrived()
}

// step advances the policy clock; see notifier.step.
func (d *driverDelay) step(by time.Duration) {
	bus := d.a.Bus()
	bus.Write32(0, 0x00c4, uint32(by))
	bus.Write32(0, 0x00c8, uint32(uint64(by)>>32))
	bus.Read32(0, 0x00c8)
}

// since is how far a counter went since the buffer was posted.
func (d *driverDelay) since(i int) uint64 {
	d.Helper()
	return d.counterOf(d.a, i) - d.marks[i]
}

// piece lets the peer send its next piece and waits until it is there.
func (d *driverDelay) piece() {
	d.Helper()
	check(d.T, "peer: signal", d.peer.Signal(d.ctx))
	d.came += d.pieces[d.sent]
	d.sent++
	d.until("the bytes of the peer", func() bool { return d.arrived() == d.came })
}

// begins is piece, and waits until the adapter has noted that a wait begins; nothing
// is told of it.
func (d *driverDelay) begins() {
	d.Helper()
	before := d.since(ctrWaits)
	d.piece()
	d.until("a wait to begin", func() bool { return d.since(ctrWaits) == before+1 })
	d.silent("a wait that begins")
}

// silent wants no completion of what the adapter has told.
func (d *driverDelay) silent(what string) {
	d.Helper()
	d.arrived()
	var none [1]guestdriver.Completion
	if d.q.Poll(none[:]) != 0 {
		d.Fatalf("%s: told of %+v", what, none[0])
	}
}

// still wants nothing to be told 1 ns before a time has passed, and lets it pass.
func (d *driverDelay) still(what string, by time.Duration) {
	d.Helper()
	d.step(by - 1)
	d.silent(what + ", 1 ns early")
	d.step(1)
}

// expect wants the pieces up to one to be told of, in the place where they stand.
func (d *driverDelay) expect(what string, to int) {
	d.Helper()
	var all []byte
	for i := range to {
		all = append(all, piece(uint64(i), d.pieces[i])...)
	}
	for d.told < len(all) {
		r, err := d.q.Next(d.ctx)
		check(d.T, what, err)
		want(d.T, what, r, guestdriver.Completion{Buffer: d.buf, Conn: d.c, Op: guestdriver.OpReceive, Offset: d.told, N: r.N})
		d.told += r.N
	}
	want(d.T, what+": bytes", d.told, len(all))
	want(d.T, what+": the bytes", bytes.Equal(d.buf.Bytes()[:d.told], all), true)
}

// finish closes the connection and takes its buffers back.
func (d *driverDelay) finish() {
	d.Helper()
	check(d.T, "close", d.c.Close())
	for range 1 + d.posted {
		r, err := d.q.Next(d.ctx)
		check(d.T, "completion", err)
		if !r.Final || r.Err == nil || r.N != 0 {
			d.Errorf("a buffer after close: %+v", r)
		}
	}
}

// TestRX01_Driver: bytes wait as long as the driver's policy says, together with
// those that follow, and not a nanosecond less.
func TestRX01_Driver(t *T) {
	d := t.driverDelay([]int{100, 50, 7}, 4096, func(p *guestdriver.ReceivePolicy) {
		p.Time, p.Max = 5*time.Millisecond, 50*time.Millisecond
	})
	d.begins()
	d.step(3 * time.Millisecond)
	d.piece()
	d.still("the time", 2*time.Millisecond)
	d.expect("the bytes of both", 2)
	d.begins()
	d.still("the time of the next", 5*time.Millisecond)
	d.expect("the bytes after", 3)
	want(t, "receive_waits", d.since(ctrWaits), 2)
	want(t, "receive_by_time", d.since(ctrByTime), 2)
	d.finish()
}

// TestRX02_Driver: bytes wait for the rest of a burst like those before.
func TestRX02_Driver(t *T) {
	d := t.driverDelay(tens(11), 4096, func(p *guestdriver.ReceivePolicy) {
		p.Dynamic, p.Max = guestdriver.NotifyArrivals, 20*time.Millisecond
	})
	for i := range 4 {
		d.piece()
		d.expect("the first of a burst, at once", 2*i+1)
		d.step(2 * time.Millisecond)
		d.piece()
		d.expect("the second of a burst, at once", 2*i+2)
		d.step(100 * time.Millisecond)
	}
	d.begins()
	d.step(2 * time.Millisecond)
	d.piece()
	d.expect("a whole burst", 10)
	d.step(100 * time.Millisecond)
	d.begins()
	d.still("5/4 of the span of a burst", 2500*time.Microsecond)
	d.expect("the first of a burst that ended early", 11)
	want(t, "receive_by_arrivals", d.since(ctrByArrivals), 2)
	want(t, "receive_waits", d.since(ctrWaits), 2)
	d.finish()
}

// TestRX03_Driver: bytes wait as long as the application needs from one post to the
// next.
func TestRX03_Driver(t *T) {
	d := t.driverDelay(tens(3), 4096, func(p *guestdriver.ReceivePolicy) {
		p.Dynamic, p.Max = guestdriver.NotifyPosts, 50*time.Millisecond
	})
	for range 3 {
		d.step(10 * time.Millisecond)
		d.post()
	}
	d.piece()
	d.expect("bytes, without history", 1)
	d.step(10 * time.Millisecond)
	d.post()
	d.begins()
	d.still("the mean gap between posts", 10*time.Millisecond)
	d.expect("bytes", 2)
	want(t, "receive_by_posts", d.since(ctrByPosts), 1)
	d.step(time.Second)
	d.post()
	d.piece()
	d.expect("bytes, with a mean above the maximum", 3)
	want(t, "receive_waits", d.since(ctrWaits), 1)
	d.finish()
}

// TestRX04_Driver: bytes wait as long as the application needs from a completion to
// the next post.
func TestRX04_Driver(t *T) {
	d := t.driverDelay(tens(6), 4096, func(p *guestdriver.ReceivePolicy) {
		p.Dynamic, p.Max = guestdriver.NotifyConsumption, 50*time.Millisecond
	})
	for i := range 4 {
		d.piece()
		d.expect("bytes, without history", i+1)
		d.step(3 * time.Millisecond)
		d.post()
		d.step(70 * time.Millisecond)
	}
	d.begins()
	d.step(time.Millisecond)
	d.piece()
	d.still("the mean time to a post", 2*time.Millisecond)
	d.expect("bytes", 6)
	want(t, "receive_by_consumption", d.since(ctrByConsumption), 1)
	d.finish()
}

// TestMM08_Driver: a large buffer of the application is filled in units while bytes
// come fast, one DMA for each; with a policy that gathers nothing, as they come.
func TestMM08_Driver(t *T) {
	d := t.driverDelay([]int{2048, 2048, 1024, 3072, 3000}, 64<<10, func(p *guestdriver.ReceivePolicy) {
		p.TransferSize, p.Gather = 4096, 8192
	})
	d.piece()
	d.expect("half a unit", 1)
	d.step(time.Microsecond)
	d.piece()
	d.expect("a unit", 2)
	d.begins()
	d.step(time.Microsecond)
	writes, units := d.since(ctrPayloadWrites), d.since(ctrUnits)
	d.piece()
	d.expect("a unit, as a whole", 4)
	queueCommand(t, d.a, 2, 2) // the counters say all that was done before (SPEC.md §13)
	queueCommand(t, d.a, 3, 1)
	want(t, "DMA writes of a unit", d.since(ctrPayloadWrites)-writes, 1)
	want(t, "gathered_units", d.since(ctrUnits)-units, 1)
	p, err := d.c.ReceivePolicy()
	check(t, "policy", err)
	p.Gather = 0
	check(t, "set the policy", d.c.SetReceivePolicy(p))
	waits := d.since(ctrWaits)
	d.piece()
	d.expect("bytes, as they come", 5)
	want(t, "receive_waits", d.since(ctrWaits)-waits, 0)
	d.finish()
}

// queueCommand has the driver's first queue pair pause (2) or go on (3), and waits for
// its state.
func queueCommand(t *T, a *guestdriver.Adapter, command, state uint32) {
	t.Helper()
	bus := a.Bus()
	bus.Write32(0, 0x1000, command)
	t.until("the state of the queue pair", func() bool { return bus.Read32(0, 0x1004)&0xf == state })
}

// TestMM12_Driver: sends that the application posts interleaved on three connections
// of falling priority run as A A A B B B C C C, whoever comes first, as soon as the
// adapter takes them all at once.
func TestMM12_Driver(t *T) {
	const size = 700
	a := t.driver()
	q := guestdriver.NewCompletionQueue()
	conns := map[rune]*guestdriver.Conn{}
	d := a.Dialer()
	for i, name := range "ABC" {
		p, err := t.Peer().Serve(t.ctx, Script{{Op: OpDiscard}})
		check(t, "peer: serve", err)
		t.Cleanup(func() { p.Close() })
		conn, err := d.DialContext(t.ctx, "tcp", p.Addr().String())
		check(t, "dial", err)
		t.Cleanup(func() { conn.Close() })
		c := conn.(*guestdriver.Conn)
		d.Near = c // all on one queue pair
		send, err := c.SendPolicy()
		check(t, "policy", err)
		send.Complete = guestdriver.PointRead // the order of results is that of DMA
		check(t, "set the policy", c.SetSendPolicy(send))
		check(t, "set the schedule", c.SetSchedule(guestdriver.Schedule{Priority: 6 - 2*i, Starvation: time.Hour}))
		conns[name] = c
	}
	bufs := t.buffers(a, 9, size)
	run := func(order, asap, expect string) {
		t.Helper()
		names := map[*guestdriver.Buffer]string{}
		queueCommand(t, a, 2, 2)
		for i, name := range order {
			names[bufs[i]] = string(name)
			check(t, "send", conns[name].SendBufferWith(bufs[i], guestdriver.SendOptions{ASAP: string(name) == asap}, q))
		}
		queueCommand(t, a, 3, 1)
		got := ""
		for range order {
			r, err := q.Next(t.ctx)
			check(t, "completion", err)
			want(t, "completion", r, guestdriver.Completion{
				Buffer: r.Buffer, Conn: conns[rune(names[r.Buffer][0])], Op: guestdriver.OpSend, N: size, Point: guestdriver.PointRead, Final: true,
			})
			got += names[r.Buffer]
		}
		want(t, "order of "+order, got, expect)
	}
	moved := t.counterOf(a, ctrTurnsPriority)
	run("ABCABCABC", "", "AAABBBCCC")
	want(t, "turns_priority", t.counterOf(a, ctrTurnsPriority)-moved, 2)
	run("CBACBACBA", "", "AAABBBCCC")
	moved = t.counterOf(a, ctrTurnsExpedited)
	run("ABCABC", "C", "CCAABB")
	want(t, "turns_expedited", t.counterOf(a, ctrTurnsExpedited)-moved, 1)
	check(t, "set the schedule", conns['B'].SetSchedule(guestdriver.Schedule{Priority: 7, Starvation: time.Hour}))
	run("ABCABC", "", "BBAACC")
}
