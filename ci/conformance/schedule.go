// SPDX-License-Identifier: Apache-2.0

package conformance

import (
	"bytes"
	"fmt"
	"net/netip"

	"toebox/guestdriver"
	"toebox/vdev/abi"
)

// world is the state of a random schedule: connections, listeners and buffers
// in every stage, and requests of every kind against them.
type world struct {
	*ring
	echo   netip.AddrPort
	closed netip.AddrPort
	hang   netip.AddrPort
	nobody netip.AddrPort // none of its ports answers

	conns     []uint64
	listeners []uint64
	posted    []uint32 // tags of buffers and connects that may be cancelled
	spare     []uint64 // areas for reports that are the host's
	lent      map[uint32]uint64
	port      uint16 // of the adapter, where callers are announced; 0: none
	buf       guestdriver.DMA
	ctl       guestdriver.DMA
	next      int // the next free place in ctl
}

// place puts a control buffer in a ring of places: a request copies it
// when it is taken, and there are more places than requests can wait.
func (w *world) place(k *ctl) (base uint64, length uint32) {
	const room = 256
	at := w.next % (len(w.ctl.Bytes) / room) * room
	w.next++
	copy(w.ctl.Bytes[at:at+room], k.b)
	return w.ctl.IOVA + uint64(at), uint32(len(k.b))
}

func pick[E any](w *world, s []E) (e E, ok bool) {
	if len(s) == 0 {
		return e, false
	}
	return s[w.rng.IntN(len(s))], true
}

// notices are random attributes of delay, all of which end soon.
func (w *world) notices(k *ctl) {
	if w.rng.IntN(2) == 0 {
		return
	}
	k.set(notifyCount, uint64(w.rng.IntN(5))).set(notifyCeiling, uint64(1+w.rng.IntN(20))*ms)
	if w.rng.IntN(2) == 0 {
		k.set(notifyReport, 1)
	}
	switch w.rng.IntN(6) {
	case 0:
		k.set(notifyData, 1)
	case 1:
		k.set(notifyData, 1).set(notifyFailures, 1)
	case 2:
		k.set(notifyAdaptive, uint64(1+w.rng.IntN(15)))
	}
}

// reportArea is the room of a report buffer of a world.
const reportArea = 1024

// reportBuffer makes d the posting of a report buffer, now and then a bad one, in
// memory that is in no other; when all is lent it leaves d.
func (w *world) reportBuffer(d *desc) {
	n := len(w.spare)
	if n == 0 {
		return
	}
	d.Tag = w.tag()
	base := w.spare[n-1]
	w.spare, w.lent[d.Tag] = w.spare[:n-1], base
	d.Type, d.Flags, d.Conn, d.Base = reqAvailable, flagReport, 0, base
	d.Offset = uint32(w.rng.IntN(64))
	d.Length = d.Offset + uint32(256+w.rng.IntN(reportArea-256-63))
	switch w.rng.IntN(12) {
	case 0:
		d.Flags |= flagOnce
	case 1:
		d.Length = d.Offset + 255
	}
}

// call has the peer call the listener.
func (w *world) call() {
	p, err := w.Peer().Dial(w.ctx, w.port, Script{{Op: OpEcho}})
	check(w.T, "peer: dial", err)
	w.Cleanup(func() { p.Close() })
}

// step posts one random request, some of them wrong.
func (w *world) step() {
	conn, _ := pick(w, w.conns)
	if w.rng.IntN(12) == 0 {
		conn = w.rng.Uint64()
	}
	d := desc{Conn: conn}
	switch w.rng.IntN(19) {
	case 0, 1, 2:
		n := 1 + w.rng.IntN(20_000)
		d.Type, d.Modify, d.Base, d.Length = reqSend, true, w.buf.IOVA, uint32(n)
		d.Offset = uint32(w.rng.IntN(n + n/20 + 1)) // now and then beyond the end
	case 3, 4, 5:
		d.Type, d.Base, d.Length = reqAvailable, w.buf.IOVA+uint64(w.rng.IntN(1000)), uint32(w.rng.IntN(8192))
		if w.rng.IntN(3) == 0 {
			d.Conn = 0
		}
		if w.rng.IntN(4) == 0 {
			d.Flags = flagOnce
		}
	case 6, 7:
		a := w.echo
		switch w.rng.IntN(6) {
		case 0:
			a = w.closed
		case 1:
			a = w.hang
		case 2:
			a = w.nobody
		}
		k := new(ctl)
		w.notices(k)
		for range 1 + w.rng.IntN(3)/2 {
			g := to(a)
			g.limit = 300_000_000
			if a == w.nobody {
				g.count += uint16(w.rng.IntN(3))
			}
			k.target(g)
		}
		d.Type, d.Conn, d.Aux = reqConnect, 0, uint16(k.tuples)
		if w.rng.IntN(4) == 0 {
			d.Flags = flagReport
		}
		d.Base, d.Length = w.place(k)
	case 8:
		d.Type, d.Length = reqTerminate, uint32(w.rng.IntN(5))
	case 9:
		d.Type, d.Conn, d.Aux = reqListen, 0, 1
		d.Base, d.Length = w.place(new(ctl).target(goal{count: 1, lport: uint16(5000 + w.rng.IntN(8))}))
	case 10, 11:
		d.Type, d.Conn = reqCancel, 0
		d.Offset, _ = pick(w, w.posted)
		if w.rng.IntN(2) == 0 {
			d.Conn = conn
		}
	case 12:
		d.Type, d.Aux = reqConnAttr, 2
		d.Base, d.Length = w.place(new(ctl).get(0x0203, 8).get(0x0284, 8))
	case 13:
		d.Type, d.Conn, d.Aux = reqAdapter, 0, 1
		d.Base, d.Length = w.place(new(ctl).get(0x010d, 8))
	case 14:
		if l, ok := pick(w, w.listeners); ok {
			d.Type, d.Conn, d.Length = reqTerminate, l, 0
		} else {
			d.Type = uint8(9 + w.rng.IntN(7))
		}
	case 15, 16:
		if w.reportBuffer(&d); d.Type == 0 {
			w.drainGot()
			return
		}
	case 17:
		if w.port != 0 && w.rng.IntN(4) == 0 {
			w.call()
		}
		return
	default:
		d.Type, d.Flags, d.Aux = uint8(w.rng.IntN(32)), uint8(w.rng.Uint32()), uint16(w.rng.Uint32())
		d.Base, d.Length, d.Offset = w.buf.IOVA, uint32(w.rng.IntN(64)), uint32(w.rng.IntN(64))
	}
	tag := w.post(d)
	w.posted = append(w.posted, tag)
	if len(w.posted) > 64 {
		w.posted = w.posted[1:]
	}
}

// drainGot learns from the responses that came.
func (w *world) drainGot() {
	w.consume()
	for _, d := range w.got {
		if base, ok := w.lent[d.Tag]; ok && d.final() {
			list, _ := records(w.reportBytes(d))
			for _, r := range list {
				if r.typ == rspCompletion && r.status == stOK || r.typ == rspArrival {
					w.learn(r.conn)
				}
			}
			delete(w.lent, d.Tag)
			w.spare = append(w.spare, base)
			continue
		}
		switch {
		case d.Type == rspCompletion && d.Aux == stOK, d.Type == rspArrival:
			w.learn(d.Conn)
		case d.Type == rspListen && d.Aux == stOK:
			w.listeners = append(w.listeners, d.Conn)
		}
	}
	w.got = w.got[:0]
}

// learn is told of a connection.
func (w *world) learn(conn uint64) {
	w.conns = append(w.conns, conn)
	if len(w.conns) > 24 {
		w.conns = w.conns[1:]
	}
}

// Sizes of output tables: one that is full now and then, and one that takes all
// that a destroy has to say. That waits 1 s for the host, and no longer.
const (
	narrow = 6
	roomy  = 12
)

// newWorld opens queue q for a random schedule.
func (t *T) newWorld(c *card, q uint32, outLog uint) *world {
	p, err := t.Peer().Serve(t.ctx, Script{{Op: OpEcho}})
	check(t, "peer: serve", err)
	t.Cleanup(func() { p.Close() })
	w := &world{ring: c.ring(q, ringConfig{inLog: 7, outLog: outLog}), echo: p.Addr()}
	w.closed, err = t.Peer().Refused(t.ctx)
	check(t, "peer: refused", err)
	w.hang, err = t.Peer().Hang(t.ctx)
	check(t, "peer: hang", err)
	w.nobody = t.Peer().Unreachable()
	w.buf, w.ctl = w.buffer(32<<10), w.alloc(256<<10)
	w.lent = map[uint32]uint64{}
	areas := w.alloc(16 * reportArea)
	for i := range uint64(16) {
		w.spare = append(w.spare, areas.IOVA+i*reportArea)
	}
	return w
}

// announce opens a listener whose arrivals wait for each other and go through
// report buffers.
func (w *world) announce() {
	port := w.reachable()
	terminal(w.T, "listen", w.listen(goal{count: 1, lport: port}, attr(notifyReport, 1), attr(notifyCount, 3),
		attr(notifyCeiling, 20*ms)), rspListen, stOK)
	w.port = port
}

// run posts n random requests, now and then without consuming for a while.
func (w *world) run(n int) {
	for i := range n {
		w.step()
		if w.rng.IntN(20) != 0 || i%64 == 63 {
			w.drainGot()
		}
	}
}

// untaken counts the requests that were still in the table when the queue
// stopped taking: their owner bits say so.
func (w *world) untaken() int {
	n := 0
	for i := range uint32(1) << w.inLog {
		if abi.LoadWord(w.in.Bytes[32*i:])&0x80 != 0 {
			n++
		}
	}
	return n
}

// TestIF10_Schedule: under a random schedule of requests of all kinds, good and
// bad, every tag gets exactly one terminal response; an orderly stop answers
// what is left (SPEC.md §5.1, §11.2).
func TestIF10_Schedule(t *T) {
	c := t.start()
	w := t.newWorld(c, 0, narrow)
	w.announce()
	w.run(1500)
	c.write(regControl, 2)
	t.until("STATUS.STOPPED", func() bool { w.drainGot(); return c.read(regStatus)&4 != 0 })
	w.drainGot()
	want(t, "tags without a terminal response, but for those never taken", len(w.open), w.untaken())
	w.got = nil
	w.quiet("a response after the stop", func(d desc) bool { return d.Tag != 0 })
	// Started again it works as new.
	c.write(regControl, 0)
	c.run()
	r := c.ring(1, ringConfig{})
	pong(t, r.do(r.ping()))
}

// TestIF10_Destroy: so does the destroy of a queue in the middle.
func TestIF10_Destroy(t *T) {
	c := t.start()
	w := t.newWorld(c, 0, roomy)
	w.run(300)
	w.command(5)
	t.until("Q_STATE disabled", func() bool { w.drainGot(); return w.state() == 0 })
	w.drainGot()
	want(t, "tags without a terminal response, but for those never taken", len(w.open), w.untaken())
	t.until("the connections to be gone", func() bool { return c.counter(ctrConnections) == 0 })
}

// TestIF10_Reset: after a reset in the middle nothing is written into the old
// tables any more, and the adapter starts as new.
func TestIF10_Reset(t *T) {
	c := t.start()
	for range 3 {
		w := t.newWorld(c, 0, narrow)
		w.run(200)
		w.reset()
		before := append([]byte(nil), w.out.Bytes...)
		in := append([]byte(nil), w.in.Bytes...)
		payload := append([]byte(nil), w.buf.Bytes...)
		pause(nothing)
		want(t, "the output table after a reset", string(w.out.Bytes) == string(before), true)
		want(t, "the input table after a reset", string(w.in.Bytes) == string(in), true)
		want(t, "buffers after a reset", string(w.buf.Bytes) == string(payload), true)
		want(t, "connections after a reset", c.counter(ctrConnections), 0)
		c.run()
		r := c.ring(0, ringConfig{})
		pong(t, r.do(r.ping()))
		r.command(5)
		r.await(0)
	}
}

// settled fails the test when a tag has no terminal response, but for those
// whose requests were never taken.
func (w *world) settled(what string) {
	w.Helper()
	w.drainGot()
	want(w.T, fmt.Sprintf("%s, queue %d: tags without a terminal response, but for those never taken", what, w.q),
		len(w.open), w.untaken())
}

// finale is a way in which all queues end at once.
type finale struct {
	name    string
	orderly bool // everything is answered
	outLog  uint
	end     func(c *card, all []*world)
}

func finales() []finale {
	return []finale{
		{"drain", true, narrow, func(c *card, all []*world) {
			for _, w := range all {
				w.command(4)
			}
			each(all, "Q_STATE drained", func(w *world) bool { return w.state() == 4 })
		}},
		{"destroy", true, roomy, func(c *card, all []*world) {
			for _, w := range all {
				w.command(5)
			}
			each(all, "Q_STATE disabled", func(w *world) bool { return w.state() == 0 })
		}},
		{"orderly stop", true, narrow, func(c *card, all []*world) {
			c.write(regControl, 2)
			each(all[:1], "STATUS.STOPPED", func(*world) bool {
				for _, w := range all {
					w.drainGot()
				}
				return c.read(regStatus)&4 != 0
			})
		}},
		{"function-level reset", false, narrow, func(c *card, _ []*world) {
			c.side = nil
			check(c.T, "function-level reset", c.bus.Reset())
			c.until("STATUS.READY", func() bool { return c.read(regStatus)&1 != 0 })
		}},
		{"device reset", false, narrow, func(c *card, _ []*world) { c.reset() }},
	}
}

// each waits until cond holds for every world, consuming meanwhile.
func each(all []*world, what string, cond func(*world) bool) {
	for _, w := range all {
		w.until(fmt.Sprintf("%s of queue %d", what, w.q), func() bool { w.drainGot(); return cond(w) })
	}
}

// TestIF10_Endings runs random schedules on three queues at a time and ends
// them in every way there is. Orderly, each tag has its one terminal response;
// after a reset nothing more is written, and what is open is the driver's to
// complete, once.
func TestIF10_Endings(t *T) {
	t.Logf("seed %d", t.Env.Seed)
	c := t.start()
	for _, e := range finales() {
		all := []*world{t.newWorld(c, 0, e.outLog), t.newWorld(c, 1, e.outLog), t.newWorld(c, 31, e.outLog)}
		for range 120 {
			for _, w := range all {
				w.run(1 + w.rng.IntN(4))
			}
		}
		e.end(c, all)
		for _, w := range all {
			if e.orderly {
				w.settled(e.name)
				continue
			}
			before := [][]byte{bytes.Clone(w.out.Bytes), bytes.Clone(w.in.Bytes), bytes.Clone(w.buf.Bytes)}
			pause(nothing / 3)
			for i, now := range [][]byte{w.out.Bytes, w.in.Bytes, w.buf.Bytes} {
				want(t, fmt.Sprintf("%s: memory %d of queue %d stays as it was", e.name, i, w.q), bytes.Equal(now, before[i]), true)
			}
		}
		c.restart()
		want(t, e.name+": connections afterwards", c.counter(ctrConnections), 0)
	}
}

// TestIF10_Neighbours: a queue is destroyed, and created again, while others
// run their schedules; nobody's tags suffer.
func TestIF10_Neighbours(t *T) {
	t.Logf("seed %d", t.Env.Seed)
	c := t.start()
	a, b := t.newWorld(c, 2, roomy), t.newWorld(c, 5, roomy)
	for range 6 {
		w := t.newWorld(c, 9, roomy)
		for range 40 {
			a.run(2)
			w.run(2)
			b.run(2)
		}
		w.command([]uint32{4, 5}[w.rng.IntN(2)])
		for range 10 {
			a.run(2)
			b.run(2)
		}
		each([]*world{w}, "Q_STATE drained or disabled", func(w *world) bool { s := w.state(); return s == 4 || s == 0 })
		w.settled("a queue among others")
		w.command(5)
		each([]*world{w}, "Q_STATE disabled", func(w *world) bool { return w.state() == 0 })
	}
	for _, w := range []*world{a, b} {
		w.command(5)
		each([]*world{w}, "Q_STATE disabled", func(w *world) bool { return w.state() == 0 })
		w.settled("a queue that went on")
	}
}
