// SPDX-License-Identifier: Apache-2.0

package firmware

import (
	"errors"
	"net/netip"
	"sync/atomic"
	"time"

	"toebox/firmware/engine"
	"toebox/vdev/abi"
)

// phase is where a connection or listener stands:
//
//	connecting -> open -> dead -> gone
//	listening -> gone
//
// connecting ends in open when the handshake succeeded, in gone otherwise (it
// never had an id); open ends in dead by the peer or the network, and in gone
// by a termination; dead ends in gone by a termination.
type phase uint8

const (
	connecting phase = iota
	listening
	open
	dead
	gone
)

// conn is a connection or a listener. All but the first fields belong to the
// worker of its queue.
type conn struct {
	q         *queue
	events    atomic.Uint32 // engine.Events not looked at; not 0: in the ready list
	nextReady *conn

	id    uint64
	ep    engine.Endpoint
	proto protocol
	loose bool // a datagram endpoint without a peer
	phase phase
	attrs *values    // shared, never changed in place
	alarm            // its time limit
	state stateTimer // of periodic reports

	// Of a connect or listen request until it is answered.
	job     *job
	ordinal uint32
	cookie  uint64
	remote  netip.AddrPort

	// Links of job.waiting.
	prev, next *conn

	parent uint64 // listener's id, of an accepted connection
	origin origin // of arrivals that wait, of a listener

	// The completion or arrival that the host was not told: nothing of the
	// connection goes before it, and its id is not known.
	notice *notice

	base     base // of a restored connection
	restored bool
	ends     bool // ... whose FIN was acknowledged
	leaving  bool // an orderly stop hands it over

	// Sending: sends holds all that are not answered; those before fetch are
	// wholly in the engine.
	sends   requestList
	fetch   *request
	urgent  int    // sends with ASAP from fetch on
	queued  uint64 // bytes that the engine took
	acked   uint64
	full    bool // no room until EventWritable
	broken  bool // bytes are missing: SPEC.md §5.4
	shut    bool // the host ended sending
	finSent bool
	inTx    int32    // place in queue.tx, 0: none
	class   uint8    // of what is not fetched, as load knows it
	parked  *parking // nil: sends do not wait

	// Receiving.
	buffers   requestList
	room      uint64        // bytes that go into them
	reads     int32         // of these, posted with ONCE
	unread    bool          // bytes wait for such a one
	delay     *delay        // nil: no byte has waited yet
	delivered uint64        // skipped ones included
	skipped   uint32        // because of SKIP, before the next buffer is begun
	deaf      bool          // the host ended receiving
	eos       bool          // the peer's FIN was reported
	inRx      int32         // place in queue.rx, 0: none
	inWait    int32         // place in queue.wait, 0: none
	choice    *choice       // nil: bytes never waited for a buffer of its own
	groupID   uint64        // of its buffer group; 0: not known, or none
	squeezed  int32         // 1 + place in queue.squeezed: its window is closed; 0: it is not
	fits      atomic.Uint64 // while memory is short: up to where in the stream bytes leave at once; 0: none do
	lent      int           // bytes of queue.lent; of whom the engine counts for

	// Ending.
	terms   []target
	closing bool       // graceful termination under way
	failed  bool       // the engine reported a failure
	status  abi.Status // of a dead connection
	ended   uint32
}

// Notify implements [engine.Sink]: it puts the connection into its queue's
// ready list, a stack that any goroutine pushes to and the worker takes whole.
func (c *conn) Notify(e engine.Events) {
	if c.events.Or(uint32(e)) != 0 || e == 0 {
		return
	}
	q := c.q
	for {
		top := q.ready.Load()
		c.nextReady = top
		if q.ready.CompareAndSwap(top, c) {
			break
		}
	}
	q.wake()
}

// collect acts on the events of connections.
func (q *queue) collect() {
	if q.ready.Load() == nil {
		return
	}
	// Oldest first: the stack is turned round.
	var first *conn
	for c := q.ready.Swap(nil); c != nil; {
		c.nextReady, first, c = first, c, c.nextReady
	}
	q.progress = true
	for c := first; c != nil; {
		// From the swap on, c may be pushed again: its link is read before.
		next := c.nextReady
		q.event(c, engine.Events(c.events.Swap(0)))
		c = next
	}
}

func (q *queue) event(c *conn, e engine.Events) {
	switch c.phase {
	case connecting:
		q.connected(c)
	case listening:
		q.receiveSoon(c)
	case open:
		if e&engine.EventWritable != 0 {
			c.full = false
		}
		if e&engine.EventClosed != 0 {
			q.checkFailed(c)
		}
		if e&(engine.EventAcked|engine.EventWritable|engine.EventClosed) != 0 && c.phase == open {
			q.completeSends(c)
		}
		if c.phase == open {
			q.progressClose(c)
		}
		if c.phase == open {
			q.sendSoon(c)
			if e&(engine.EventReadable|engine.EventClosed) != 0 {
				q.receiveSoon(c)
			}
			if e&engine.EventReadable != 0 && q.held.n >= holdLimit {
				q.squeeze(c) // no turn comes until the host takes responses
			}
		}
	}
}

// newConn charges for a connection or listener, or returns nil.
func (q *queue) newConn(proto protocol, p phase, a *values) *conn {
	charge := connectionCharge
	if p == listening {
		charge = listenerCharge
	} else if n := q.fw.adapter.maxConnections.Load(); uint64(q.fw.counters.connections.Load()) >= n {
		return nil
	}
	if !q.fw.memory.charge(charge) {
		return nil
	}
	if p != listening {
		q.fw.counters.connection(1)
	}
	return &conn{q: q, proto: proto, phase: p, attrs: a}
}

// register gives c its id and makes it known.
func (q *queue) register(c *conn) {
	c.id = q.fw.newID()
	q.conns[c.id] = c
	q.fw.dir.add(c.id, q.index)
	if c.phase == open {
		q.roster.add(c)
		q.armReport(c)
	}
}

// forget gives back what c was charged, and its id. The endpoint has been
// closed or aborted.
func (q *queue) forget(c *conn) {
	if c.phase == gone {
		return
	}
	charge := connectionCharge
	if c.phase == listening {
		charge = listenerCharge
	} else {
		q.fw.counters.connection(-1)
	}
	if c.phase == open {
		q.load.land(c.queued-c.acked, 0)
	}
	q.dropParking(c)
	c.phase = gone
	q.forgetDelay(c)
	q.limits.clear(c)
	q.states.clear(&c.state)
	q.dropChoice(c)
	q.unsqueeze(c)
	q.unlist(c)
	q.fw.memory.release(charge)
	if c.id != 0 {
		delete(q.conns, c.id)
		q.roster.remove(c.id)
		q.fw.dir.remove(c.id)
		q.stirSink(c)
	}
}

// lookup finds the connection that a request names.
func (q *queue) lookup(id uint64) (*conn, abi.Status) {
	if c := q.conns[id]; c != nil {
		if c.notice != nil {
			return nil, abi.StatusBadConnection
		}
		return c, abi.StatusOK
	}
	if q.fw.dir.has(id) {
		return nil, abi.StatusWrongQueue
	}
	return nil, abi.StatusBadConnection
}

// checkFailed looks whether the engine gave the connection up. Sends fail at
// once; receives when what has arrived is delivered.
func (q *queue) checkFailed(c *conn) {
	err := c.ep.Err()
	if err == nil || c.failed {
		return
	}
	q.completeSends(c)
	c.failed = true
	c.status, c.ended = statusOf(err), endedBy(err)
	q.failSends(c, c.status)
	if c.deaf || c.eos || c.closing {
		q.die(c)
	}
}

// die ends a connection that the peer or the network ended: its requests are
// answered, then the host is told (SPEC.md §5.8).
func (q *queue) die(c *conn) {
	if c.ended == abi.EndedPeerReset {
		q.count(abi.CounterResets, 1)
	}
	q.failSends(c, c.status)
	q.failBuffers(c, c.status)
	q.load.land(c.queued-c.acked, 0)
	c.phase = dead
	q.stirSink(c)
	q.forgetDelay(c)
	q.limits.clear(c)
	q.states.clear(&c.state)
	q.dropChoice(c)
	q.unsqueeze(c)
	if c.closing {
		q.finish(c, c.ended)
		return
	}
	q.answerTerms(c, abi.StatusOK, c.ended)
	q.respond(abi.Fields{
		Type: abi.TypeTerminated, Flags: abi.FlagFinal, Aux: uint16(c.status), Conn: c.id, Length: c.ended,
	})
}

// expire acts on time limits that are reached.
func (q *queue) expire() {
	for c := q.limits.next(); c != nil && c.when <= q.now && !q.stalled(); c = q.limits.next() {
		q.limits.clear(c)
		q.progress = true
		switch c.phase {
		case connecting:
			q.failTarget(c, abi.StatusTimedOut)
		case listening:
			q.endListener(c, abi.StatusTimedOut)
		case open:
			if c.closing { // the linger of a graceful termination
				q.abort(c, abi.StatusTimedOut)
			} else { // a datagram endpoint's time
				q.endListener(c, abi.StatusTimedOut)
			}
		}
	}
}

// limit arms a time limit; the longest ones are none.
func (q *queue) limit(c *conn, ns uint64) {
	when := q.now + time.Duration(ns)
	if ns < 1<<62 && when > 0 {
		q.limits.set(c, when)
	}
}

// statusOf maps what an engine answers to a status (SPEC.md §8).
func statusOf(err error) abi.Status {
	switch {
	case err == nil:
		return abi.StatusOK
	case errors.Is(err, engine.ErrEndOfStream):
		return abi.StatusEndOfStream
	case errors.Is(err, engine.ErrRefused):
		return abi.StatusRefused
	case errors.Is(err, engine.ErrReset):
		return abi.StatusReset
	case errors.Is(err, engine.ErrTimedOut):
		return abi.StatusTimedOut
	case errors.Is(err, engine.ErrHostUnreachable):
		return abi.StatusHostUnreachable
	case errors.Is(err, engine.ErrNetUnreachable):
		return abi.StatusNetUnreachable
	case errors.Is(err, engine.ErrAddressInUse):
		return abi.StatusAddressInUse
	case errors.Is(err, engine.ErrBadAddress):
		return abi.StatusBadAddress
	case errors.Is(err, engine.ErrNoPorts):
		return abi.StatusNoPorts
	case errors.Is(err, engine.ErrNoMemory):
		return abi.StatusNoMemory
	case errors.Is(err, engine.ErrNotSupported):
		return abi.StatusNotSupported
	case errors.Is(err, engine.ErrBadOption):
		return abi.StatusBadValue
	case errors.Is(err, engine.ErrMessageTooLong):
		return abi.StatusBadLength
	case errors.Is(err, engine.ErrNotConnected), errors.Is(err, engine.ErrInvalidState):
		return abi.StatusBadState
	}
	return abi.StatusAborted
}

// endedBy says how a failure ended a connection (SPEC.md §5.8).
func endedBy(err error) uint32 {
	switch {
	case errors.Is(err, engine.ErrReset), errors.Is(err, engine.ErrRefused):
		return abi.EndedPeerReset
	case errors.Is(err, engine.ErrAborted):
		return abi.EndedHostReset
	}
	return abi.EndedTimedOut
}
