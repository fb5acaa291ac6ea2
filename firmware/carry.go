// SPDX-License-Identifier: Apache-2.0

package firmware

import (
	"errors"
	"net/netip"
	"time"

	"toebox/firmware/engine"
	"toebox/vdev/abi"
)

// An orderly stop hands connections over to the firmware that follows (SPEC.md
// §11.1), one after another:
//
//	open --stop--> leaving --all delivered and acknowledged, or in time--> gone
//
// What stands in the way of one (no report buffer, an end under way) lets it
// stay, to be aborted with its queue.

// Limits of leaving.
const (
	leaveWait  = 100 * time.Millisecond // for acknowledgements, SPEC.md §11.1
	leaveLimit = 1 * time.Second        // for anything else of the adapter's own
)

// leaving are the connections of a queue that leave.
type leaving struct {
	active bool
	list   []*conn
	quiet  time.Duration // when acknowledgements are waited for no more
	limit  time.Duration // the next time to look
}

// base is where a restored connection stood when it left.
type base struct{ sent, acked, received uint64 }

// leave lets the connections leave that are to, and can.
func (q *queue) leave() {
	l := &q.leaving
	for _, e := range q.roster.list {
		c := e.conn
		if c == nil || c.attrs.of(abi.AttrCarryOver) == 0 {
			continue
		}
		carrier, ok := c.ep.(engine.Carrier)
		whole := c.phase == open && !c.failed && !c.broken
		if !ok || !whole || carrier.Part() != nil {
			q.count(abi.CounterCarryRefused, 1)
			continue
		}
		c.leaving = true
		q.states.clear(&c.state)
		q.limits.clear(c)
		l.list = append(l.list, c)
	}
	l.active = len(l.list) > 0
	l.quiet = q.now + leaveWait
	l.limit = l.quiet
}

// stay takes back what leave began.
func (q *queue) stay(c *conn) {
	if c.leaving {
		c.leaving = false
		c.ep.(engine.Carrier).Return()
		q.count(abi.CounterCarryRefused, 1)
	}
}

// turnLeaving lets connections leave as far as they can now.
func (q *queue) turnLeaving() {
	l := &q.leaving
	if !l.active {
		return
	}
	q.forgetEvents()
	rest := l.list[:0]
	for i, c := range l.list {
		if q.stalled() || q.dying.Load() {
			rest = append(rest, l.list[i:]...)
			break
		}
		if !q.leaveStep(c) {
			rest = append(rest, c)
		}
	}
	clear(l.list[len(rest):])
	if l.list = rest; len(rest) == 0 {
		l.active = false
		q.progress = true
		q.returnAll()
	}
	if q.now >= l.quiet {
		l.limit = q.now + time.Millisecond
	}
}

// forgetEvents empties the ready list: who drains looks at connections itself.
func (q *queue) forgetEvents() {
	for c := q.ready.Swap(nil); c != nil; {
		next := c.nextReady
		c.nextReady = nil
		c.events.Store(0)
		c = next
	}
}

// leaveStep reports whether c has left, or stays.
func (q *queue) leaveStep(c *conn) bool {
	carrier := c.ep.(engine.Carrier)
	if !q.deliverAll(c) {
		return false
	}
	if q.now < q.leaving.quiet && !carrier.Quiet() {
		return false
	}
	f, err := carrier.Leave()
	switch {
	case errors.Is(err, engine.ErrWouldBlock) && q.now < q.leaving.quiet+leaveLimit:
		q.leaving.limit = q.now + time.Millisecond
		return false
	case err != nil, c.phase != open:
		q.stay(c)
		q.cancelAll(c)
		return true
	}
	if !q.deliverAll(c) {
		return false
	}
	unread := f.Received - min(c.ep.Info().Delivered, f.Received)
	r := q.recordOf(c, &f)
	r.Flags, r.Unread = abi.RecordExact, uint32(unread)
	r.Delivered = r.Received - unread // or dropped, where the host wants no more
	q.completeSends(c)
	q.cancelAll(c)
	if !q.putCarried(c, &r) {
		q.stay(c)
		return true
	}
	carrier.Vanish()
	c.leaving = false
	q.forget(c)
	q.count(abi.CounterStateRecords, 1)
	q.count(abi.CounterCarriedOut, 1)
	return true
}

// deliverAll delivers what was received as far as there are buffers. It reports
// false when the host has to make room first.
func (q *queue) deliverAll(c *conn) bool {
	if c.deaf || c.closing {
		for n := 0; n < maxDiscards && c.phase == open && q.discard(c); n++ {
		}
		return true
	}
	for !c.eos {
		r := q.pickAny(c)
		if r == nil {
			return true
		}
		if q.stalled() {
			return false
		}
		if n, err := c.proto.deliver(q, c, r, unlimited); n == 0 && err != nil {
			return true // there is no more, or it is dead
		}
	}
	return true
}

// putCarried writes the record of a connection that leaves, and what it has
// received that nobody took, to a report buffer.
func (q *queue) putCarried(c *conn, r *abi.StateRecord) bool {
	const unit = abi.ReportSize
	unread := int(r.Unread)
	whole := stateSize + (unread+unit-1)/unit*unit
	if !q.putState(r, abi.StatusOK, whole) {
		return false
	}
	for unread > 0 {
		b := q.reports.chunk[:0]
		for want := min(unread, reportChunk); len(b) < want; {
			n, err := c.ep.Read(want-len(b), func(p []byte) int {
				p = p[:min(len(p), want-len(b))]
				b = append(b, p...)
				return len(p)
			})
			if n == 0 || err != nil {
				return false
			}
		}
		unread -= len(b)
		for len(b)%unit != 0 { // at the end only: a chunk is whole units
			b = append(b, 0)
		}
		if !q.putReport(abi.TypeConnectionAttrs, b, 0) {
			return false
		}
	}
	return true
}

// stepRestore makes a target of a RESTORE tuple.
func (q *queue) stepRestore(j *job, value []byte) {
	j.span, j.started = abi.Target{Count: 1}, 0
	r, ok := abi.ParseStateRecord(value)
	if !ok {
		j.span.Count = 0
		j.ordinal++
		s := abi.StatusBadValue
		if len(value) != abi.StateRecordSize {
			s = abi.StatusBadLength
		}
		q.result(j, nil, netip.AddrPort{}, abi.Fields{Aux: uint16(s), Offset: j.ordinal - 1})
		return
	}
	j.restore = &r
	j.span = abi.Target{
		Protocol: uint8(r.Protocol), V6: r.Local.Addr.Is6(), Count: 1, Cookie: r.Conn,
		Local: netip.AddrPortFrom(r.Local.Addr, r.Local.Port), Remote: netip.AddrPortFrom(r.Remote.Addr, r.Remote.Port),
	}
}

// startRestore goes on with a connection that left another firmware.
func (q *queue) startRestore(j *job, ordinal uint32) {
	t, r := &j.span, j.restore
	q.count(abi.CounterConnects, 1)
	s := checkRestore(r)
	var c *conn
	if s == abi.StatusOK {
		c, s = q.openTarget(j, stream{}, ordinal, connecting)
	}
	if s == abi.StatusOK {
		carrier, ok := c.ep.(engine.Carrier)
		if s = abi.StatusNotSupported; ok {
			s = statusOf(carrier.Restore(flowOf(r)))
		}
	}
	if s != abi.StatusOK {
		q.count(abi.CounterCarryRefused, 1)
		if d, ok := q.fw.engine.(engine.Disowner); ok && s != abi.StatusNoMemory && t.Local.IsValid() && t.Remote.IsValid() {
			d.Disown(t.Local, t.Remote)
		}
		q.dropTarget(j, c, t.Remote, ordinal, s)
		return
	}
	c.remote = t.Remote
	c.restored, c.ends = true, r.State == uint32(engine.StateFinWait2)
	c.base = base{sent: r.Sent, acked: r.Acked, received: r.Received}
	j.waiting.push(c)
	q.limit(c, c.attrs.of(abi.AttrConnectLimit))
}

// withdraw ends what is under way of restoring connections, before those that are
// open leave: one that goes on here already is open, another is where its record
// says, for the host to restore again.
func (q *queue) withdraw() {
	var jobs []*job
	for _, r := range q.tags {
		if r.job != nil && r.job.waiting.front != nil {
			jobs = append(jobs, r.job)
		}
	}
	for _, j := range jobs {
		j.cancelled = true // results do not wait
		for c, next := j.waiting.front, (*conn)(nil); c != nil; c = next {
			next = c.next
			switch {
			case !c.restored:
			case c.ep.(engine.Carrier).Withdraw():
				q.dropWaiting(c, abi.StatusCancelled)
			default:
				q.connected(c)
			}
		}
	}
}

// checkRestore says whether a connection can go on (SPEC.md §6.5).
func checkRestore(r *abi.StateRecord) abi.Status {
	switch {
	case r.Protocol != uint32(engine.TCP), r.State < uint32(engine.StateEstablished), r.State > uint32(engine.StateLastAck):
		return abi.StatusNotSupported
	case !r.Local.Addr.IsValid(), !r.Remote.Addr.IsValid(), r.Local.Addr.Is6() != r.Remote.Addr.Is6(),
		r.Local.Addr.IsUnspecified(), r.Remote.Addr.IsUnspecified(), r.Remote.Addr.IsMulticast(), r.Local.Port == 0, r.Remote.Port == 0:
		return abi.StatusBadAddress
	case r.Acked > r.Sent, r.Sent > r.Accepted, r.Delivered > r.Received:
		return abi.StatusBadValue
	case r.Flags&abi.RecordExact == 0, r.Received-r.Delivered != uint64(r.Unread):
		// Where the connection stood when it ended is not known, or bytes that
		// the peer believes delivered are lost.
		return abi.StatusAborted
	}
	return abi.StatusOK
}

func flowOf(r *abi.StateRecord) engine.Flow {
	return engine.Flow{
		State:        engine.State(r.State),
		Local:        netip.AddrPortFrom(r.Local.Addr, r.Local.Port),
		Remote:       netip.AddrPortFrom(r.Remote.Addr, r.Remote.Port),
		SendSequence: r.SendSequence, ReceiveSequence: r.ReceiveSequence,
		SendWindow: r.SendWindow, ReceiveWindow: r.ReceiveWindow,
		SendScale: r.SendScale, ReceiveScale: r.ReceiveScale,
		MSS: r.MSS, SACK: r.Options&abi.RecordSACK != 0, Scaling: r.Options&abi.RecordScaling != 0,
		Timestamps: r.Options&abi.RecordTimestamps != 0, Time: r.Time, RecentTime: r.RecentTime,
	}
}
