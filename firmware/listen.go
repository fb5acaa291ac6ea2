// SPDX-License-Identifier: Apache-2.0

package firmware

import (
	"encoding/binary"
	"errors"
	"math/bits"
	"net/netip"

	"toebox/firmware/engine"
	"toebox/vdev/abi"
)

// maxBacklog bounds BACKLOG and the backlog of a target.
const maxBacklog = 1 << 16

// eventHeld in conn.events keeps a connection out of the ready list while it is
// not yet its worker's.
const eventHeld = 1 << 31

// startListen opens the n-th listener of the range under way.
func (q *queue) startListen(j *job, n uint16, ordinal uint32) {
	t := &j.span
	proto := protocolOf(t)
	s := targetStatus(t, true)
	if s == abi.StatusOK {
		s = proto.checkListen(t, j.attrs)
	}
	var c *conn
	if s == abi.StatusOK {
		c, s = q.openTarget(j, proto, ordinal, proto.listenPhase())
	}
	if s == abi.StatusOK {
		port := t.Local.Port()
		if port != 0 {
			port += n
		}
		s = statusOf(c.ep.Bind(netip.AddrPortFrom(t.Local.Addr(), port)))
	}
	if s == abi.StatusOK {
		s = statusOf(proto.listen(c, t))
	}
	if s != abi.StatusOK {
		q.dropTarget(j, c, netip.AddrPort{}, ordinal, s)
		return
	}
	c.job = nil
	q.register(c)
	q.count(abi.CounterListens, 1)
	ns := t.Limit
	if ns == 0 {
		ns = c.attrs.of(abi.AttrListenLimit)
	}
	if ns != 0 {
		q.limit(c, ns)
	}
	q.result(j, c, netip.AddrPort{}, abi.Fields{
		Conn: c.id, Offset: ordinal, Base: c.cookie, Length: uint32(c.ep.Info().Local.Port()),
	})
	q.receiveSoon(c)
}

// accept takes connections that the engine accepted, for a turn.
func (q *queue) accept(l *conn) {
	for range acceptTurn {
		if q.stalled() {
			break
		}
		if !q.acceptOne(l) {
			return
		}
		q.progress = true
	}
	q.receiveSoon(l)
}

// deafSink is for connections that are refused at once.
type deafSink struct{}

func (deafSink) Notify(engine.Events) {}

func (q *queue) acceptOne(l *conn) bool {
	var c *conn
	ep, err := l.ep.Accept(func(engine.Endpoint) engine.Sink {
		if c = q.newConn(l.proto, open, l.attrs); c == nil {
			return deafSink{}
		}
		c.events.Store(eventHeld)
		return c
	})
	if err != nil {
		if c != nil {
			q.forget(c)
		}
		if !errors.Is(err, engine.ErrWouldBlock) {
			q.fw.log.Debug("accept failed", "queue", q.index, "error", err)
		}
		return false
	}
	if c == nil {
		q.count(abi.CounterArrivalsRefused, 1) // before the peer can know
		ep.Abort()
		return true
	}
	c.ep, c.parent = ep, l.id
	// The options were good for the listener; what cannot be set after the
	// handshake was inherited from it.
	q.fw.applyOptions(c)
	if to := q.steer(l); to != q {
		c.q = to
		if to.handOver(c) {
			return true
		}
		c.q = q
	}
	q.announce(c)
	return true
}

// steer picks the queue of an accepted connection: those of STEERING that run,
// in turn; none: the listener's.
func (q *queue) steer(l *conn) *queue {
	mask := uint32(l.attrs.of(abi.AttrSteering))
	for range bits.OnesCount32(mask) {
		i := bits.TrailingZeros32(mask &^ (1<<l.ordinal - 1))
		if i == 32 {
			i = bits.TrailingZeros32(mask)
		}
		// A listener that was answered needs its ordinal no more.
		l.ordinal = uint32(i+1) % 32
		to := q.fw.queues[i].Load()
		if to == q || to != nil && to.currentState() == abi.QueueRunning {
			return to
		}
	}
	return q
}

// handOver gives a connection to another queue's worker.
func (q *queue) handOver(c *conn) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.closed {
		return false
	}
	q.hand = append(q.hand, c)
	q.wake()
	return true
}

// adopt announces connections that other queues accepted for this one.
func (q *queue) adopt() {
	if q.stalled() {
		return
	}
	q.mu.Lock()
	hand := q.hand
	q.hand = nil
	q.mu.Unlock()
	for _, c := range hand {
		q.announce(c)
		q.progress = true
	}
}

// announce makes an accepted connection known to the host (SPEC.md §5.7).
func (q *queue) announce(c *conn) {
	q.register(c)
	q.count(abi.CounterArrivals, 1)
	info := c.ep.Info()
	f := abi.Fields{
		Type: abi.TypeArrival, Flags: abi.FlagFinal, Base: c.parent, Conn: c.id,
		Offset: uint32(info.Remote.Port()) | uint32(info.Local.Port())<<16,
	}
	if a := info.Remote.Addr().Unmap(); a.Is4() {
		b := a.As4()
		f.Length = binary.BigEndian.Uint32(b[:])
	}
	q.arrived(c, info.Remote, f)
	q.event(c, engine.Events(c.events.Swap(0)&^eventHeld))
	if c.phase == open {
		q.receiveSoon(c) // bytes may have come before the sink
	}
}

// endListener ends a listener, or a datagram endpoint without a peer, that the
// host did not terminate: the host is told, and the id is gone.
func (q *queue) endListener(c *conn, s abi.Status) {
	q.emitOf(&c.origin)
	q.failSends(c, s)
	q.failBuffers(c, s)
	c.ep.Close()
	q.forget(c)
	q.answerTerms(c, s, abi.EndedListener)
	q.respond(abi.Fields{
		Type: abi.TypeTerminated, Flags: abi.FlagFinal, Aux: uint16(s), Conn: c.id, Length: abi.EndedListener,
	})
}
