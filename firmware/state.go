// SPDX-License-Identifier: Apache-2.0

package firmware

import (
	"cmp"
	"encoding/binary"
	"net/netip"
	"slices"
	"time"

	"toebox/firmware/engine"
	"toebox/vdev/abi"
)

// Bounds of periodic state.
const (
	minReportPeriod = time.Millisecond // SPEC.md §7
	reportTurn      = 64               // reports in one pass
)

// appendRecord appends the state record of c (SPEC.md §7.1).
func (q *queue) appendRecord(b []byte, c *conn) []byte {
	r := q.record(c)
	q.count(abi.CounterStateRecords, 1)
	return abi.AppendStateRecord(b, &r)
}

// record is what is known of c at this moment.
func (q *queue) record(c *conn) abi.StateRecord {
	if t, ok := c.ep.(engine.Tracker); ok {
		if f, err := t.Flow(); err == nil {
			return q.recordOf(c, &f)
		}
	}
	// It is dead, or does not tell more.
	i := c.ep.Info()
	acked := min(max(i.Acked, c.acked), c.queued)
	return abi.StateRecord{
		Conn: c.id, Local: recordAddress(i.Local), Remote: recordAddress(i.Remote),
		State: uint32(i.State), Protocol: uint32(i.Protocol),
		Accepted: c.accepted(), Sent: c.accepted(), Acked: c.base.acked + acked,
		Received: c.base.received + i.Received, Delivered: c.base.received + c.delivered,
		RTT: uint64(i.RTT), RTO: uint64(i.RTO), Uptime: uint64(q.now),
	}
}

// accepted is how many bytes were fetched for c, in a life before included: what the
// peer may have of them is fetched once more.
func (c *conn) accepted() uint64 { return max(c.base.sent, c.base.acked+c.queued) }

// recordOf is the record of a connection whose flow is known.
func (q *queue) recordOf(c *conn, f *engine.Flow) abi.StateRecord {
	r := abi.StateRecord{
		Conn: c.id, Local: recordAddress(f.Local), Remote: recordAddress(f.Remote),
		State: uint32(f.State), Protocol: uint32(c.proto.number()),
		Accepted: c.accepted(), Sent: max(c.base.sent, c.base.acked+f.Sent), Acked: c.base.acked + f.Acked,
		Received: c.base.received + f.Received, Delivered: c.base.received + c.delivered,
		MSS: f.MSS, SendWindow: f.SendWindow, ReceiveWindow: f.ReceiveWindow,
		RTT: uint64(f.RTT), RTO: uint64(f.RTO), Timers: uint64(f.Timers),
		SendSequence: f.SendSequence, ReceiveSequence: f.ReceiveSequence,
		SendScale: f.SendScale, ReceiveScale: f.ReceiveScale, Uptime: uint64(q.now),
	}
	if f.SACK {
		r.Options |= abi.RecordSACK
	}
	if f.Timestamps {
		r.Options |= abi.RecordTimestamps
		r.Time, r.RecentTime = f.Time, f.RecentTime
	}
	if f.Scaling {
		r.Options |= abi.RecordScaling
	}
	return r
}

// namedRecord is the record of the connection whose id stands in value.
func (q *queue) namedRecord(value []byte) ([]byte, abi.Status) {
	if len(value) < abi.StateRecordSize {
		return make([]byte, abi.StateRecordSize), abi.StatusOK // for the length
	}
	c, s := q.lookup(binary.LittleEndian.Uint64(value))
	switch {
	case s != abi.StatusOK:
		return nil, s
	case c.phase == listening:
		return nil, abi.StatusBadState
	}
	return q.appendRecord(nil, c), abi.StatusOK
}

// allRecords are the records of the queue's connections whose ids are above
// the one that stands in value, as many as have room there.
func (q *queue) allRecords(value []byte) ([]byte, abi.Status) {
	after := uint64(0)
	if len(value) >= 8 {
		after = binary.LittleEndian.Uint64(value)
	}
	if len(value) < abi.StateRecordSize {
		if q.roster.above(after) == nil {
			return nil, abi.StatusOK
		}
		return make([]byte, abi.StateRecordSize), abi.StatusOK // for the length
	}
	b := make([]byte, 0, len(value))
	for _, e := range q.roster.above(after) {
		if cap(b)-len(b) < abi.StateRecordSize {
			break
		}
		if e.conn != nil {
			b = q.appendRecord(b, e.conn)
		}
	}
	return b, abi.StatusOK
}

// stateTimer says when the next periodic report of a connection is due, on the
// policy clock.
type stateTimer struct {
	alarm
	conn *conn
}

// armReport sets when the next periodic report of c is due.
func (q *queue) armReport(c *conn) {
	period := c.attrs.of(abi.AttrReportPeriod)
	if period == 0 || c.phase != open {
		q.states.clear(&c.state)
		return
	}
	c.state.conn = c
	q.states.set(&c.state, alarmAt(after(q.fw.policy.now(), period)))
}

// turnStates reports the state of connections whose period is over.
func (q *queue) turnStates() {
	if len(q.states) == 0 {
		return
	}
	defer q.flushReport()
	now := q.fw.policy.now()
	for n := 0; n < reportTurn && !q.stalled(); n++ {
		t := q.states.next()
		due := uint64(t.when)
		if due > now {
			return
		}
		q.progress = true
		period := t.conn.attrs.of(abi.AttrReportPeriod)
		next := after(due, period)
		if next <= now {
			next = after(now, period)
		}
		q.states.set(t, alarmAt(next))
		q.report(t.conn)
	}
}

// report tells the host where c stands: through a report buffer if it wants that
// and there is one.
func (q *queue) report(c *conn) {
	if c.notice != nil {
		return // it does not know of c yet
	}
	r := q.record(c)
	q.count(abi.CounterStateRecords, 1)
	if c.attrs.of(abi.AttrNotifyReport) != 0 && q.putState(&r, abi.StatusOK, stateSize) {
		return
	}
	q.respond(abi.Fields{
		Type: abi.TypeConnectionAttrs, Flags: abi.FlagFinal, Conn: c.id,
		Base: r.Acked, Length: uint32(r.Received), Offset: uint32(r.Delivered),
	})
}

// stateSize is the length of a state record in a report buffer.
const stateSize = abi.ReportSize + abi.StateRecordSize

// putState writes a state record to a report buffer, behind the record that
// names it (SPEC.md §6.4), where there is room for n bytes: for these two and
// what the caller writes behind them. It reports false when there is none.
func (q *queue) putState(r *abi.StateRecord, s abi.Status, n int) bool {
	b := abi.AppendReport(q.reports.chunk[:0], abi.Report{
		Status: s, Type: abi.TypeConnectionAttrs, Flags: abi.FlagFinal, Conn: r.Conn, Protocol: uint8(r.Protocol),
		LocalPort: r.Local.Port, Remote: netip.AddrPortFrom(r.Remote.Addr, r.Remote.Port), Uptime: r.Uptime,
	})
	b = abi.AppendStateRecord(b, r)
	for q.reportSpace(n) {
		if q.putReport(abi.TypeConnectionAttrs, b, 1) {
			return true
		}
	}
	return false
}

// reportSpace makes the first report buffer one that takes n bytes more: those
// with records that do not are given back. It reports false when the next one
// does not either, or there is none.
func (q *queue) reportSpace(n int) bool {
	for q.reportRoom() > 0 && q.reportRoom() < n {
		if q.reports.buffers.front.done == 0 {
			return false
		}
		q.endReport(abi.StatusOK)
	}
	return q.reportRoom() > 0
}

// stateDeadline is when a report is due on the clock of time limits; 0: none,
// or the policy clock stands still.
func (q *queue) stateDeadline() time.Duration {
	if len(q.states) == 0 {
		return 0
	}
	return q.fw.policy.when(uint64(q.states.next().when))
}

// roster lists connections by id. Ids only grow, so that a new one goes to the
// end; one that is gone leaves a hole until half are holes.
type roster struct {
	list  []rosterEntry
	holes int
}

type rosterEntry struct {
	id   uint64
	conn *conn // nil: gone
}

func (r *roster) add(c *conn) { r.list = append(r.list, rosterEntry{c.id, c}) }

func (r *roster) find(id uint64) (int, bool) {
	return slices.BinarySearchFunc(r.list, id, func(e rosterEntry, id uint64) int { return cmp.Compare(e.id, id) })
}

func (r *roster) remove(id uint64) {
	i, ok := r.find(id)
	if !ok || r.list[i].conn == nil {
		return
	}
	r.list[i].conn = nil
	r.holes++
	if r.holes > 32 && r.holes > len(r.list)/2 {
		r.list = slices.DeleteFunc(r.list, func(e rosterEntry) bool { return e.conn == nil })
		r.holes = 0
	}
}

// above are the entries with ids above id, holes included; nil: there is no
// connection among them.
func (r *roster) above(id uint64) []rosterEntry {
	i, found := r.find(id)
	if found {
		i++
	}
	if k := slices.IndexFunc(r.list[i:], func(e rosterEntry) bool { return e.conn != nil }); k >= 0 {
		return r.list[i+k:]
	}
	return nil
}

func recordAddress(a netip.AddrPort) abi.Address { return abi.Address{Addr: a.Addr(), Port: a.Port()} }
