// SPDX-License-Identifier: Apache-2.0

package firmware

import (
	"math"
	"time"

	"toebox/firmware/engine"
	"toebox/vdev/abi"
)

// delay lets the received bytes of a connection wait in the engine, so that they
// go to the host in larger parts (SPEC.md §14.6):
//
//	none waits --the first byte--> waiting --a criterion--> ripe --delivered--> none waits
//
// What is ripe goes as soon as there is a buffer. Positions are those of the
// engine's counts, from the start of the stream; times are of the policy clock.
type delay struct {
	alarm // when waiting ends by time
	conn  *conn

	seen  uint64 // bytes that have come
	ripe  uint64 // up to where they may go
	first uint64 // when the first byte from ripe on came, while some wait
}

// delayCharge is what a connection whose bytes have waited is charged.
const delayCharge = 128

// waits is how many bytes wait.
func (d *delay) waits() uint64 { return d.seen - d.ripe }

// arrive notes how many bytes the engine has received and handed out. It
// reports whether a wait begins.
func (d *delay) arrive(now, received, delivered uint64) bool {
	d.ripe = max(d.ripe, delivered)
	d.seen = max(d.seen, d.ripe)
	if received <= d.seen {
		return false
	}
	begins := d.waits() == 0
	if begins {
		d.first = now
	}
	d.seen = received
	return begins
}

// criteria of a wait: the least time and amount that a policy asks for, and
// the policy's counter.
type delayCriteria struct {
	time, amount     uint64
	byTime, byAmount abi.Counter
}

func (l *delayCriteria) after(ns uint64, by abi.Counter) {
	if ns <= l.time {
		l.time, l.byTime = ns, by
	}
}

func (l *delayCriteria) at(bytes uint64, by abi.Counter) {
	if bytes <= l.amount {
		l.amount, l.byAmount = bytes, by
	}
}

// criteria are those of the attributes v.
func (d *delay) criteria(v *values) delayCriteria {
	l := delayCriteria{time: v.of(abi.AttrNotifyMax), byTime: abi.CounterReceiveByMax, amount: math.MaxUint64}
	if ns := v.of(abi.AttrNotifyTime); ns != 0 {
		l.after(ns, abi.CounterReceiveByTime)
	}
	if n := v.of(abi.AttrNotifyBytes); n != 0 {
		l.at(n, abi.CounterReceiveByBytes)
	}
	return l
}

// due reports whether the wait ends, and by what. Otherwise it says when it
// ends by time.
func (d *delay) due(now uint64, l *delayCriteria) (by abi.Counter, when uint64, due bool) {
	when = after(d.first, l.time)
	switch {
	case d.waits() >= l.amount:
		return l.byAmount, now, true
	case now >= when:
		return l.byTime, now, true
	}
	return 0, when, false
}

// release makes ripe what waits.
func (d *delay) release() { d.ripe = d.seen }

// delays reports whether received bytes of streams wait.
func (v *values) delays() bool {
	return v.of(abi.AttrNotifyTime)|v.of(abi.AttrNotifyBytes) != 0 &&
		v.of(abi.AttrExpedited) == 0 && v.of(abi.AttrNotifyMax) != 0
}

// unlimited is what receivable says of bytes that nothing delays.
const unlimited = math.MaxInt

// receivable is how many of the received bytes of a stream may go now; 0: they
// wait, and a time limit or an event of the connection lets it be asked again.
func (q *queue) receivable(c *conn) int {
	d := c.delay
	if d == nil {
		if !c.attrs.delays() || c.proto.number() != engine.TCP {
			return unlimited
		}
		if !q.fw.memory.charge(delayCharge) {
			return unlimited
		}
		d = &delay{conn: c}
		c.delay = d
	}
	i := c.ep.Info()
	now := q.fw.policy.now()
	begins := d.arrive(now, i.Received, i.Delivered)
	switch {
	case d.waits() == 0:
	case !c.attrs.delays():
		d.release()
	default:
		if begins {
			q.count(abi.CounterReceiveWaits, 1)
		}
		if by, when, due := q.judge(c, now, i.State); due {
			q.count(by, 1)
			d.release()
		} else {
			q.delays.set(d, alarmAt(when))
		}
	}
	if d.waits() == 0 {
		q.delays.clear(d)
	}
	switch {
	case d.ripe > i.Delivered:
		return int(min(d.ripe-i.Delivered, math.MaxInt))
	case d.waits() > 0:
		return 0
	}
	return unlimited // nothing is there, or the end
}

// judge reports whether the wait of c ends, and by what; otherwise when it ends
// by time.
func (q *queue) judge(c *conn, now uint64, s engine.State) (by abi.Counter, when uint64, due bool) {
	d := c.delay
	l := d.criteria(c.attrs)
	by, when, due = d.due(now, &l)
	switch {
	case due:
	case c.failed || peerEnded(s):
		return abi.CounterReceiveByEnd, now, true
	case c.crowded(d.waits()):
		return abi.CounterReceiveByRoom, now, true
	}
	return by, when, due
}

// crowded reports whether n bytes are so many that more would have no place:
// they fill the connection's own buffers, or half of the receive window.
func (c *conn) crowded(n uint64) bool {
	return c.buffers.n > 0 && n >= c.room || n >= c.attrs.of(abi.AttrReceiveWindow)/2
}

// ripeTurns bounds the turns beyond the usual ones that a pass gives because
// waits have ended: what they are of goes out in one run.
const ripeTurns = 1024

// expireDelays gives turns to connections whose bytes have waited long enough.
func (q *queue) expireDelays() {
	q.ripe = 0
	if len(q.delays) == 0 {
		return
	}
	now := alarmAt(q.fw.policy.now())
	for d := q.delays.next(); d != nil && d.when <= now && q.ripe < ripeTurns; d = q.delays.next() {
		q.delays.clear(d)
		q.receiveSoon(d.conn)
		q.ripe++
	}
}

// endDelay delivers what waits of c as far as there are buffers: something of c
// ends.
func (q *queue) endDelay(c *conn) {
	d := c.delay
	if d == nil || d.waits() == 0 || c.phase != open || c.notice != nil || c.deaf || c.closing {
		return
	}
	q.count(abi.CounterReceiveByEnd, 1)
	d.release()
	q.delays.clear(d)
	q.deliverAll(c)
}

// forgetDelay ends all waiting of c, which ends.
func (q *queue) forgetDelay(c *conn) {
	if c.delay != nil {
		q.delays.clear(c.delay)
		q.fw.memory.release(delayCharge)
		c.delay = nil
	}
}

// delayDeadline is when a wait ends on the clock of time limits; 0: never, or
// the policy clock stands still.
func (q *queue) delayDeadline() time.Duration {
	if len(q.delays) == 0 {
		return 0
	}
	return q.fw.policy.when(uint64(q.delays.next().when))
}
