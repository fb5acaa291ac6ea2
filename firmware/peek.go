// SPDX-License-Identifier: Apache-2.0

package firmware

import (
	"errors"

	"toebox/firmware/engine"
	"toebox/vdev/abi"
)

// Peeks and redirections (RX13, SPEC.md §14.12). A peek gives the host a copy of
// bytes that stay in the engine, and the bytes wait for an answer: a buffer of
// their connection, or a redirection to the buffers of another.
//
// Both kinds of request stand in the list of the connection's buffers. One that
// waits, at the head of it, does so until an alarm of the choice.

// errHeld says that bytes are there and wait, for more of them or for a buffer
// of another connection.
var errHeld = errors.New("firmware: received bytes are held")

// plainMost is how many buffers of a connection, the oldest, are looked at for one
// that redirected bytes may go to.
const plainMost = 16

// special reports whether r is no buffer that received bytes go into.
func (r *request) special() bool { return r.flags&(abi.FlagPeek|abi.FlagRedirect) != 0 }

// reads reports whether r is what bytes wait for with DMA_WHEN.
func (r *request) reads() bool { return r.special() || r.flags&abi.FlagOnce != 0 }

// badAnswer reports whether a buffer request has flags that do not go together.
func badAnswer(f *abi.Fields) bool {
	const some = abi.FlagPeek | abi.FlagRedirect
	if f.Flags&(some|abi.FlagSkip) == 0 {
		return false
	}
	alone := f.Flags&some == 0 || f.Flags&^abi.FlagSkip == abi.FlagPeek || f.Flags&^abi.FlagSkip == abi.FlagRedirect
	stray := f.Flags&abi.FlagRedirect != 0 && f.Flags&abi.FlagSkip == 0 && f.Offset != 0
	return !alone || stray || !maySkip(f)
}

// checkRedirect says whether bytes of c may be redirected to a connection.
func (q *queue) checkRedirect(c *conn, to uint64) abi.Status {
	d, s := q.lookup(to)
	switch {
	case s != abi.StatusOK:
		return s
	case d == c:
		return abi.StatusBadValue
	case d.phase == listening:
		return abi.StatusBadState
	case d.proto.number() != engine.TCP:
		return abi.StatusNotSupported
	case !d.takes():
		return abi.StatusClosed
	}
	return abi.StatusOK
}

// takes reports whether buffers may be posted on c.
func (c *conn) takes() bool {
	return c.phase == open && c.notice == nil && !c.deaf && !c.closing && !c.eos
}

// plain is the oldest buffer of c that redirected bytes may go to; nil: there is
// none.
func (c *conn) plain() *request {
	n := 0
	for r := c.buffers.front; r != nil && n < plainMost; r = r.next {
		if !r.special() && r.flags&abi.FlagSkip == 0 {
			return r
		}
		n++
	}
	return nil
}

// mayShow reports whether bytes of c that have no buffer of their own are shown
// first, or were.
func (c *conn) mayShow() bool {
	x := c.choice
	switch {
	case x != nil && x.state == choicePeeked:
		return true
	case x != nil && x.state == choiceReleased:
		return false
	}
	return c.attrs.of(abi.AttrPeek) != 0 && c.proto.number() == engine.TCP
}

// show shows the bytes of c, which found no buffer of their own, and lets them wait
// for an answer. It reports whether they wait no more: then all buffers will do.
func (q *queue) show(c *conn, since uint64, most int) bool {
	x := q.choice(c)
	switch {
	case x == nil:
		return true
	case x.state == choicePeeked && uint64(x.when) > q.fw.policy.now() && !q.spills:
		q.squeeze(c)
		return false
	case x.state == choicePeeked:
		q.count(abi.CounterPeeksOver, 1)
		q.endWait(x, choiceReleased)
		return true
	case q.spills:
		q.endWait(x, choiceReleased)
		return true
	}
	r := q.groupBuffer(c)
	if r == nil {
		r = q.pool.front
	}
	if r == nil {
		q.lack(c, since)
		return false
	}
	if q.check != nil {
		q.check.unchanged(r)
	}
	// An error comes back at the next look.
	_, _ = q.peekInto(c, x, r, int(min(c.attrs.of(abi.AttrPeek), uint64(r.todo()), uint64(most))))
	if x.state != choicePeeked {
		q.receiveSoon(c)
	}
	return false
}

// peekInto copies at most so many bytes of c into r and reports them. They wait for
// an answer then.
func (q *queue) peekInto(c *conn, x *choice, r *request, most int) (int, error) {
	m := &q.move
	m.to, m.left, m.moved, m.err = r.base+uint64(r.offset), most, 0, nil
	_, err := c.ep.Peek(most, q.looks.deliver)
	m.piece = nil
	n := m.moved
	f := abi.Fields{
		Type: abi.TypeBufferReceive, Flags: abi.FlagFinal | abi.FlagPeek, Tag: r.tag, Base: r.base, Conn: c.id, Length: uint32(n), Offset: r.offset,
	}
	switch {
	case m.err != nil && n == 0:
		q.returnBuffer(r, abi.StatusBadMemory)
		return datagramCost, nil
	case m.err != nil:
		f.Aux = uint16(abi.StatusBadMemory)
	case n == 0:
		if err == nil {
			err = engine.ErrWouldBlock
		}
		return 0, err
	}
	q.count(abi.CounterPeeks, 1)
	q.count(abi.CounterPeekedBytes, uint64(n))
	q.noteTold(c)
	q.removeBuffer(r)
	q.terminal(&f)
	q.settle(r)
	x.shown = c.delivered + uint64(n)
	q.endWait(x, choiceReleased)
	if wait := c.attrs.of(abi.AttrPeekWait); wait != 0 {
		x.state = choicePeeked
		q.choices.set(x, alarmAt(after(q.fw.policy.now(), wait)))
	}
	return max(n, datagramCost), nil
}

// peekStream shows bytes of c in a buffer posted with PEEK: more of them than were
// shown already, unless no more come in time.
func (q *queue) peekStream(c *conn, r *request, most int) (int, error) {
	x := q.choice(c)
	if x == nil {
		q.returnBuffer(r, abi.StatusNoMemory)
		return datagramCost, nil
	}
	shown := int(x.shown - min(x.shown, c.delivered))
	room := r.todo()
	have, err := c.ep.Peek(min(most, max(room, shown+1)), q.looks.drop)
	switch {
	case have == 0 && err == nil:
		return 0, engine.ErrWouldBlock
	case have == 0:
		return 0, err
	case q.leaving.active:
		return 0, errHeld // a stop shows nothing
	case have > shown || have >= room || q.spills || c.failed || peerEnded(c.ep.Info().State) || uint64(have) >= c.attrs.of(abi.AttrReceiveWindow)/2:
	case !q.holds(c, x, r):
	default:
		return 0, errHeld
	}
	return q.peekInto(c, x, r, min(have, room))
}

// holds reports whether bytes of c wait because of r, at the head of its buffers:
// for PEEK_WAIT.
func (q *queue) holds(c *conn, x *choice, r *request) bool {
	now := q.fw.policy.now()
	if x.holder == r {
		return uint64(x.when) > now
	}
	wait := c.attrs.of(abi.AttrPeekWait)
	x.holder = r
	q.choices.set(x, alarmAt(after(now, wait)))
	return wait != 0
}

// releaseHolder notes that r, a buffer of a connection, is at the head no more.
func (q *queue) releaseHolder(r *request) {
	if x := r.conn.choice; x != nil && x.holder == r {
		x.holder = nil
		if x.state != choiceWaiting && x.state != choicePeeked {
			q.choices.clear(x)
		}
	}
}

// redirectStream moves bytes of c into a buffer of the connection that r names. At
// an orderly stop those that find none are for the host that goes on.
func (q *queue) redirectStream(c *conn, r *request, most int) (int, error) {
	d := q.conns[r.base]
	if d == nil && q.leaving.active {
		return 0, errHeld // it has left: bytes go nowhere else
	}
	if d == nil || !d.takes() {
		q.returnBuffer(r, abi.StatusClosed)
		return datagramCost, nil
	}
	b := d.plain()
	if b == nil {
		return q.awaitSink(c, r, d)
	}
	if q.check != nil {
		q.check.unchanged(b)
	}
	n, err := q.fillBuffer(c, b, most, r.todo())
	if n > 0 {
		r.done += uint32(n)
		c.room -= uint64(n)
		q.count(abi.CounterRedirectedBytes, uint64(n))
		if r.todo() == 0 {
			q.returnBuffer(r, abi.StatusOK)
		}
	}
	return n, err
}

// awaitSink lets bytes of c, if there are some, wait for a buffer of d.
func (q *queue) awaitSink(c *conn, r *request, d *conn) (int, error) {
	if n, err := c.ep.Peek(1, q.looks.probe); n == 0 {
		if err == nil {
			err = engine.ErrWouldBlock
		}
		return 0, err
	}
	if q.leaving.active {
		return 0, errHeld // its buffers were taken away by the stop
	}
	x := q.choice(c)
	switch {
	case x == nil:
		q.returnBuffer(r, abi.StatusNoMemory)
		return datagramCost, nil
	case q.spills || !q.holds(c, x, r):
		q.count(abi.CounterRedirectsOver, 1)
		q.returnBuffer(r, abi.StatusTimedOut)
		return datagramCost, nil
	}
	if g := q.sink(d); g != nil && x.group == nil {
		x.group = g
		x.place = g.waiting.add(c, c.receiveRank(), q.policyTime(), c.patience())
	}
	q.squeeze(c)
	return 0, errHeld
}

// sink is the list of connections whose bytes wait for buffers of d; nil: there is
// no adapter memory for it, and time ends their wait.
func (q *queue) sink(d *conn) *group {
	g := q.sinks[d.id]
	if g == nil && q.fw.memory.charge(groupCharge) {
		if q.sinks == nil {
			q.sinks = make(map[uint64]*group)
		}
		g = &group{id: d.id, sink: true}
		q.sinks[d.id] = g
	}
	return g
}

// stirSink notes that c has another buffer, or takes none any more.
func (q *queue) stirSink(c *conn) {
	if len(q.sinks) == 0 {
		return
	}
	if g := q.sinks[c.id]; g != nil {
		q.stir(g)
	}
}

// supply is how many connections may use what the group has now.
func (q *queue) supply(g *group) int {
	if !g.sink {
		return g.buffers.n
	}
	if d := q.conns[g.id]; d != nil && d.takes() && d.plain() == nil {
		return 0
	}
	return 1
}
