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

	delayCriteria        // of the wait
	judged        bool   // they are computed
	unit          unit   // whole ones go, if there are; none: all
	since         uint64 // when the first byte behind them came

	pace  unitPace
	tempo *receiveTempo // nil until NOTIFY_DYNAMIC asks for it
}

// What a connection whose bytes may wait is charged, and one whose waits are
// dynamic besides.
const (
	delayCharge = 192
	tempoCharge = 256
)

// waits is how many bytes wait.
func (d *delay) waits() uint64 { return d.seen - d.ripe }

// arrive notes how many bytes the engine has received and handed out, and
// returns how many are new.
func (d *delay) arrive(now, received, delivered uint64) uint64 {
	d.ripe = max(d.ripe, delivered)
	d.seen = max(d.seen, d.ripe)
	if received <= d.seen {
		return 0
	}
	if d.waits() == 0 {
		d.first, d.judged = now, false
	}
	n, was := received-d.seen, d.waits()
	d.seen = received
	if whole := d.unit.whole(was); d.judged && (was == whole || d.unit.whole(d.waits()) > whole) {
		d.since = now
	}
	return n
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

// say computes the criteria of a wait from the attributes v, and from the units
// by which the buffer is filled. It reports false when nothing asks for a wait.
func (d *delay) say(v *values, now uint64, u unit) bool {
	most := v.of(abi.AttrNotifyMax)
	l := &d.delayCriteria
	*l = delayCriteria{time: never, amount: never}
	d.unit, d.since = unit{}, d.first
	var gather delayCriteria // of a unit: what is dynamic asks for no less
	if ns := d.pace.patience(now, most); u.size != 0 && ns != 0 {
		gather.time, gather.amount = ns, u.first
	}
	if v.delays() {
		if ns := v.of(abi.AttrNotifyTime); ns != 0 {
			l.after(ns, abi.CounterReceiveByTime)
		}
		if n := v.of(abi.AttrNotifyBytes); n != 0 {
			l.at(n, abi.CounterReceiveByBytes)
		}
		static := l.time != never || l.amount != never
		if mask := v.of(abi.AttrNotifyDynamic); mask != 0 && d.tempo != nil {
			d.tempo.add(l, mask, most, &gather)
		}
		if static {
			gather.amount = 0
		}
	}
	if gather.amount != 0 {
		d.unit = u
		if l.time == never && l.amount == never {
			l.at(gather.amount, abi.CounterGatheredUnits)
			l.after(gather.time, abi.CounterGatheredParts)
		}
	}
	if l.time == never && l.amount == never {
		return false
	}
	if most < l.time {
		l.time, l.byTime = most, abi.CounterReceiveByMax
	}
	return true
}

// due reports whether the wait ends, and by what. Otherwise it says when it
// ends by time.
func (d *delay) due(now uint64) (by abi.Counter, when uint64, due bool) {
	when = after(d.first, d.time)
	switch {
	case d.waits() >= d.amount:
		return d.byAmount, now, true
	case now >= when:
		return d.byTime, now, true
	}
	return 0, when, false
}

// release makes ripe what waits.
func (d *delay) release() { d.ripe = d.seen }

// releaseUnits makes ripe the whole units that wait, if there are any, else all.
// The rest waits anew, from when it came.
func (d *delay) releaseUnits() {
	whole := d.unit.whole(d.waits())
	if whole == 0 {
		d.release()
		return
	}
	d.ripe += whole
	d.first, d.judged = d.since, false
}

// delays reports whether received bytes of streams wait.
func (v *values) delays() bool {
	return v.of(abi.AttrNotifyTime)|v.of(abi.AttrNotifyBytes)|v.of(abi.AttrNotifyDynamic) != 0 && v.patient()
}

// patient reports whether anything may wait.
func (v *values) patient() bool { return v.of(abi.AttrExpedited) == 0 && v.of(abi.AttrNotifyMax) != 0 }

// unit is how large buffers are filled (MM08): in transfers of a size, the first
// of which may be shorter. Size 0: as bytes come.
type unit struct{ size, first uint64 }

// hostPage is what transfers end at multiples of, in host memory (RX12).
const hostPage = 4 << 10

// transfer is the length of a transfer to address iova that ends with a page:
// size, or less than a page less.
func transfer(iova, size uint64) uint64 { return size - iova%hostPage }

// whole is how many of n bytes make whole ones.
func (u *unit) whole(n uint64) uint64 {
	if u.size == 0 || n < u.first {
		return 0
	}
	return u.first + (n-u.first)/u.size*u.size
}

// unit is how the first buffer of c is filled, when so many bytes more are in it.
func (c *conn) unit(more uint64) unit {
	r, threshold := c.buffers.front, c.attrs.of(abi.AttrGatherThreshold)
	if r == nil || r.special() || threshold == 0 || uint64(r.length) < threshold || !c.attrs.patient() {
		return unit{}
	}
	more -= min(more, uint64(c.toSkip(r)))
	u := unit{size: c.attrs.of(abi.AttrLinkTransferSize)}
	if u.first = u.size; more < uint64(r.todo()) {
		u.first = min(transfer(r.base+uint64(r.offset)+uint64(r.done)+more, u.size), uint64(r.todo())-more)
	}
	return u
}

// unlimited is what receivable says of bytes that nothing delays.
const unlimited = math.MaxInt

// receivable is how many of the received bytes of a stream may go now; 0: they
// wait, and a time limit or an event of the connection lets it be asked again.
// An error says why there are none. Bytes that come after it has looked are not
// meant: whether they wait is not known before they are counted.
func (q *queue) receivable(c *conn) (int, error) {
	d := c.delay
	if d == nil {
		if !c.attrs.delays() && c.unit(0).size == 0 || c.proto.number() != engine.TCP || !q.newDelay(c) {
			return unlimited, nil
		}
		d = c.delay
	}
	i := c.ep.Info()
	now := q.policyTime()
	if n := d.arrive(now, i.Received, i.Delivered); n > 0 {
		d.pace.arrive(now, n, c.attrs.of(abi.AttrLinkTransferSize))
		if q.dynamic(c) {
			d.tempo.arrive(now, n, c.attrs.of(abi.AttrNotifyMax))
		}
	}
	for d.waits() > 0 && q.judge(c, now, &i) {
	}
	if d.waits() == 0 {
		q.delays.clear(d)
	}
	switch {
	case d.ripe > i.Delivered:
		return int(min(d.ripe-i.Delivered, math.MaxInt)), nil
	case d.waits() > 0:
		return 0, nil
	}
	_, err := c.ep.Peek(1, q.looks.probe)
	return 0, err
}

// judge reports whether the wait of c has ended, with all that waits or a part
// of it. Otherwise it goes on, until an alarm at the latest.
func (q *queue) judge(c *conn, now uint64, i *engine.Info) bool {
	d := c.delay
	if !d.judged {
		if !d.say(c.attrs, now, c.unit(d.ripe-i.Delivered)) {
			d.release()
			return true
		}
		d.judged = true
		q.count(abi.CounterReceiveWaits, 1)
	}
	by, when, due := d.due(now)
	switch {
	case due:
		d.releaseUnits()
	case c.failed || peerEnded(i.State):
		by = abi.CounterReceiveByEnd
		d.release()
	case q.spills || c.crowded(d.waits()):
		by = abi.CounterReceiveByRoom
		d.release()
	default:
		q.delays.set(d, alarmAt(when))
		return false
	}
	q.count(by, 1)
	return true
}

// newDelay makes the state of c, if there is adapter memory.
func (q *queue) newDelay(c *conn) bool {
	if !q.fw.memory.charge(delayCharge) {
		return false
	}
	c.delay = &delay{conn: c}
	return true
}

// delayAnew judges what waits of c by attributes that were set. What is there
// when they first ask for a wait does not wait for them.
func (q *queue) delayAnew(c *conn) {
	d := c.delay
	switch {
	case d == nil && c.phase == open && c.attrs.delays() && c.proto.number() == engine.TCP && q.newDelay(c):
		d = c.delay
		d.seen = c.ep.Info().Received
		d.release()
		return
	case d == nil:
		return
	}
	if d.judged && !d.say(c.attrs, q.policyTime(), c.unit(d.ripe-min(c.ep.Info().Delivered, d.ripe))) {
		d.release()
	}
	q.receiveSoon(c)
}

// notePost notes, for NOTIFY_DYNAMIC, that a buffer of c was posted.
func (q *queue) notePost(c *conn) {
	if c.attrs.of(abi.AttrNotifyDynamic) == 0 || c.proto.number() != engine.TCP || c.delay == nil && !q.newDelay(c) {
		return
	}
	if q.dynamic(c) {
		c.delay.tempo.post(q.policyTime())
	}
}

// noteTold notes, for NOTIFY_DYNAMIC, that the host is told of bytes of c.
func (q *queue) noteTold(c *conn) {
	if d := c.delay; d != nil && d.tempo != nil {
		d.tempo.tell(q.policyTime())
	}
}

// dynamic reports whether c remembers its tempo, and lets it begin.
func (q *queue) dynamic(c *conn) bool {
	d := c.delay
	switch {
	case c.attrs.of(abi.AttrNotifyDynamic) == 0:
		return false
	case d.tempo == nil && q.fw.memory.charge(tempoCharge):
		d.tempo = new(receiveTempo)
	}
	return d.tempo != nil
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
	now := alarmAt(q.policyTime())
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
		if c.delay.tempo != nil {
			q.fw.memory.release(tempoCharge)
		}
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
