// SPDX-License-Identifier: Apache-2.0

package firmware

import (
	"sync/atomic"

	"toebox/firmware/engine"
	"toebox/vdev/abi"
)

// spill says when received payload has to leave adapter memory, or must not come
// into it (MM13, SPEC.md §14.9).
type spill struct {
	threshold atomic.Int64 // SPILL_THRESHOLD; 0: 3/4 of MEMORY_SIZE
	on        atomic.Bool
}

// spillAt is SPILL_THRESHOLD.
func (f *Firmware) spillAt() int64 {
	limit := f.memory.limit.Load()
	if n := f.spill.threshold.Load(); n != 0 {
		return min(n, limit)
	}
	return limit / 4 * 3
}

// reserve is what payload leaves of a memory size to requests: those that take it
// out must find room.
const reserve = 64 // one part in so many

// transit is what a queue has besides MEMORY_SIZE for bytes that leave at once, so
// that connections with buffers go on whatever others hold.
const transit = 64 << 10

// places is how many buffers of a connection count for what leaves at once: more
// take their place as they are filled.
const places = 8

// account is where the engine counts the payload that it holds.
type account struct{ fw *Firmware }

// Admit takes of a stream as much as there is room for: for connections that hold
// some up to half-way between the threshold and the limit, for others up to 7/8 of
// that way, for bytes that leave at once all but the reserve, and transit.
func (x account) Admit(a engine.Arrival) int {
	m := &x.fw.memory
	limit := m.limit.Load()
	rest, most := limit-x.fw.spillAt(), limit-limit/reserve
	mark := limit - rest/2
	if a.Held == 0 && (a.Sink != nil || a.Datagram) {
		mark = limit - rest/8
	}
	n := m.hold(a.Bytes, min(mark, most))
	c, _ := a.Sink.(*conn)
	switch {
	case n == a.Bytes:
		return n
	case a.Datagram:
		m.leave(n)
		return 0
	case c == nil || a.Gap:
		return n
	}
	at := a.At + uint64(n)
	fits := c.fits.Load()
	if fits <= at {
		return n
	}
	more := int(min(uint64(a.Bytes-n), fits-at))
	k := m.hold(more, most)
	return n + k + c.lend(more-k)
}

// lend takes up to n bytes of the queue's transit. The engine asks for one
// connection at a time, and so it does when bytes leave.
func (c *conn) lend(n int) int {
	for {
		lent := c.q.lent.Load()
		k := min(int64(n), transit-lent)
		if k <= 0 {
			return 0
		}
		if c.q.lent.CompareAndSwap(lent, lent+k) {
			c.lent += int(k)
			return int(k)
		}
	}
}

// Release gives back what n bytes took: transit first.
func (x account) Release(n int, s engine.Sink) {
	if c, _ := s.(*conn); c != nil && n > 0 && c.lent > 0 {
		k := min(n, c.lent)
		c.lent -= k
		c.q.lent.Add(-int64(k))
		n -= k
	}
	x.fw.memory.leave(n)
}

// feed notes, while memory is short, up to where in the stream the bytes of c leave
// at once.
func (q *queue) feed(c *conn) {
	at := c.delivered
	if q.spills && !q.jammed && !c.awaitsRead() {
		r := c.buffers.front
		for n := 0; n < places && r != nil && !r.special(); n++ {
			at += r.wants()
			r = r.next
		}
	}
	if at == c.delivered {
		at = 0
	}
	c.fits.Store(at)
}

// watchMemory notes that memory went above the threshold, or as far below as 1/8
// of what lies between it and the limit, and lets all queues see it.
func (f *Firmware) watchMemory() {
	used, at := int64(f.memory.load()), f.spillAt()
	on := f.spill.on.Load()
	switch {
	case !on && used > at, on && used <= at-(f.memory.limit.Load()-at)/8:
	default:
		return
	}
	if f.spill.on.CompareAndSwap(on, !on) {
		if !on {
			f.counters.Add(abi.CounterMemoryShort, 1)
		}
		f.wakeAll()
	}
}

// turnSpill acts on the threshold being crossed: above it what waits for a buffer
// of its own waits no more, and the windows of connections without any close;
// below, they open.
func (q *queue) turnSpill() {
	q.fw.watchMemory()
	on := q.fw.spill.on.Load()
	jammed, crossed := on && q.held.n >= holdLimit, on != q.spills
	if !crossed && jammed == q.jammed {
		return
	}
	q.spills, q.jammed = on, jammed
	for _, e := range q.roster.list {
		if e.conn != nil {
			q.feed(e.conn)
		}
	}
	if !crossed {
		return
	}
	q.progress = true
	if !on {
		for n := len(q.squeezed); n > 0; n-- {
			q.unsqueeze(q.squeezed[n-1])
		}
		return
	}
	for _, x := range q.choices {
		q.receiveSoon(x.conn)
	}
	for _, d := range q.delays {
		q.receiveSoon(d.conn)
	}
	for _, p := range q.wait.places {
		if p.conn != nil {
			q.squeeze(p.conn)
		}
	}
	if q.held.n < holdLimit {
		return
	}
	for _, p := range q.rx.places { // they have no turn until the host takes responses
		if p.conn != nil {
			q.squeeze(p.conn)
		}
	}
}

// narrow is the receive window, in bytes, of a connection whose payload has
// nowhere to go while adapter memory is short. Where it was wider, the engine drops
// what comes beyond it, and the peer sends that again. It is not so narrow that a
// host which gives buffers one by one would feel it.
const narrow = 64 << 10

// squeeze narrows the window of c, whose payload has nowhere to go, if memory is
// short.
func (q *queue) squeeze(c *conn) {
	if !q.spills || c.squeezed != 0 || c.proto.number() != engine.TCP || c.phase != open {
		return
	}
	q.squeezed = append(q.squeezed, c)
	c.squeezed = int32(len(q.squeezed))
	q.count(abi.CounterWindowsClosed, 1)
	q.window(c)
}

// unsqueeze opens the window of c again.
func (q *queue) unsqueeze(c *conn) {
	if c.squeezed == 0 {
		return
	}
	i, last := int(c.squeezed-1), len(q.squeezed)-1
	q.squeezed[i] = q.squeezed[last]
	q.squeezed[i].squeezed = int32(i + 1)
	q.squeezed[last] = nil
	q.squeezed = q.squeezed[:last]
	c.squeezed = 0
	q.window(c)
}

// window gives c the receive window that it has now. One that has just ended
// refuses it.
func (q *queue) window(c *conn) {
	n := c.attrs.of(abi.AttrReceiveWindow)
	if c.squeezed != 0 {
		n = min(n, narrow)
	}
	if c.phase == open {
		_ = c.ep.SetOption(engine.OptReceiveWindow, int64(n))
	}
}
