// SPDX-License-Identifier: Apache-2.0

package firmware

import (
	"math"
	"math/bits"
	"time"

	"toebox/vdev/abi"
)

// Bits of DELAY_CRITERIA (SPEC.md §14.7).
const (
	enoughWindow    = 1 << iota // the congestion window is full
	enoughBandwidth             // the path is
	enoughMemory                // adapter memory is short
	enoughFair                  // others of the queue hold less
	enoughClass                 // a higher class has something to send
	enoughAll       = 1<<iota - 1
)

const (
	parkCharge  = 192              // of a connection with DELAY_CRITERIA
	minSample   = time.Millisecond // of the rate at which a peer acknowledges
	asapShorter = 8                // ASAP_MODE 1
)

// parking is what a connection with DELAY_CRITERIA knows of the sends that it has
// not fetched: they may be left in host memory (MM07).
//
//	none --criterion holds--> listed --list runs, none holds--> none
type parking struct {
	alarm      // when it has waited for DELAY_AGE, policy clock; of one that is listed
	conn       *conn
	n          int    // sends that are not wholly fetched
	bytes      uint64 // of them that are not fetched
	free       int    // how many of them may be fetched whatever the criteria say
	listed     bool
	since      uint64 // when it was listed
	counted    int    // of n, as waiting
	prev, next *parking

	// The rate of acknowledgement: bytes in span ns; 0: not known yet.
	began, from uint64 // of the sample that is being taken
	started     bool
	bytesIn     uint64
	span        uint64
}

// parkings are the connections of a queue whose sends wait, in the order in which
// they began to. They all go when one says so, judging the whole list.
type parkings struct {
	front, back *parking
	ages        timers[*parking]
	n           uint64 // sends in it
	bytes       uint64
	// The least that those ask for which came since the list was empty.
	most, size uint64
}

// load is what the connections of a queue have for the network, for the criteria
// that compare one with the others.
type load struct {
	bytes   uint64 // fetched and not acknowledged
	conns   uint64 // that have such bytes
	classes [256]uint32
	some    [4]uint64 // bit k: a connection of class k has sends that are not fetched
}

// fly notes that c has n bytes more on their way.
func (l *load) fly(c *conn, n uint64) {
	if n > 0 && c.queued == c.acked {
		l.conns++
	}
	l.bytes += n
}

// land notes that n bytes of c are on their way no more; it is left with rest.
func (l *load) land(n, rest uint64) {
	if n > 0 && rest == 0 {
		l.conns--
	}
	l.bytes -= n
}

// class notes which class the sends that c has not fetched are of.
func (l *load) class(c *conn) {
	k := uint8(0)
	if c.fetch != nil {
		k = uint8(c.attrs.of(abi.AttrQoSClass))
	}
	if k == c.class {
		return
	}
	if old := c.class; old != 0 {
		if l.classes[old]--; l.classes[old] == 0 {
			l.some[old/64] &^= 1 << (old % 64)
		}
	}
	if k != 0 {
		l.classes[k]++
		l.some[k/64] |= 1 << (k % 64)
	}
	c.class = k
}

// above reports whether a class above k has sends that are not fetched.
func (l *load) above(k uint8) bool {
	w := int(k / 64)
	if l.some[w]&^(2<<(k%64)-1) != 0 {
		return true
	}
	for w++; w < len(l.some); w++ {
		if l.some[w] != 0 {
			return true
		}
	}
	return false
}

// switchParking makes or drops what c needs for DELAY_CRITERIA. What waits is
// judged anew.
func (q *queue) switchParking(c *conn) {
	on := c.attrs.of(abi.AttrDelayCriteria) != 0
	switch {
	case !on:
		q.dropParking(c)
	case c.parked == nil && q.fw.memory.charge(parkCharge):
		d := &parking{conn: c}
		for r := c.fetch; r != nil; r = r.next {
			d.n++
			d.bytes += uint64(r.todo())
		}
		c.parked = d
	}
}

func (q *queue) dropParking(c *conn) {
	if c.parked == nil {
		return
	}
	q.unpark(c.parked)
	c.parked = nil
	q.fw.memory.release(parkCharge)
}

// waitMore notes a send more that is to be fetched.
func (d *parking) waitMore(r *request) {
	n := uint64(r.todo())
	d.n++
	d.bytes += n
	if d.listed {
		l := &d.conn.q.parked
		l.n++
		l.bytes += n
	}
}

// waitLess notes that a send is not to be fetched any more, and the bytes of it
// that were not.
func (d *parking) waitLess(r *request) {
	n := uint64(r.todo())
	d.n--
	d.bytes -= n
	d.free = max(0, min(d.free-1, d.n))
	if !d.listed {
		return
	}
	l := &d.conn.q.parked
	l.n--
	l.bytes -= n
	d.counted = min(d.counted, d.n)
	if d.n == 0 {
		d.conn.q.unpark(d)
	}
}

// unpark takes d out of the list.
func (q *queue) unpark(d *parking) {
	if !d.listed {
		return
	}
	l := &q.parked
	if d.prev != nil {
		d.prev.next = d.next
	} else {
		l.front = d.next
	}
	if d.next != nil {
		d.next.prev = d.prev
	} else {
		l.back = d.prev
	}
	d.prev, d.next, d.listed, d.counted = nil, nil, false, 0
	l.n -= uint64(d.n)
	l.bytes -= d.bytes
	l.ages.clear(d)
}

// holdBack decides whether the sends of c, which could be fetched, are left in
// host memory for now, or go by the list. It reports false when they are fetched
// as others are.
func (q *queue) holdBack(c *conn) bool {
	d := c.parked
	if d.free > 0 {
		return false
	}
	now := q.policyTime()
	why, wait := q.enough(c, now)
	if !wait {
		if !d.listed {
			return false
		}
		q.count(abi.CounterDelayOver, 1)
		q.unpark(d)
		q.sendSince(c, d.since)
		return true
	}
	v := c.attrs
	count, size, age := v.of(abi.AttrDelayCount), v.of(abi.AttrDelayBytes), v.of(abi.AttrDelayAge)
	if v.of(abi.AttrDelayDynamic) != 0 {
		half := (c.queued - c.acked) / 2
		count, size = math.MaxUint64, half
		if d.bytesIn > 0 {
			age = min(age, scale(half, d.span, d.bytesIn))
		}
	}
	urgent := c.urgent > 0
	if urgent && v.of(abi.AttrASAPMode) != 0 {
		count, size, age = count/asapShorter, size/asapShorter, age/asapShorter
	}
	q.count(why, uint64(d.n-d.counted))
	q.park(d, now)
	l := &q.parked
	l.most, l.size = min(l.most, count), min(l.size, size)
	due := after(d.since, age)
	l.ages.set(d, alarmAt(due))
	switch {
	case urgent && v.of(abi.AttrASAPMode) == 0:
		q.runParked(abi.CounterDelayASAP)
	case l.n >= l.most:
		q.runParked(abi.CounterDelayCount)
	case l.bytes >= l.size:
		q.runParked(abi.CounterDelayBytes)
	case due <= now:
		q.runParked(abi.CounterDelayAge)
	}
	return true
}

// park puts d into the list.
func (q *queue) park(d *parking, now uint64) {
	d.counted = d.n
	if d.listed {
		return
	}
	l := &q.parked
	if l.front == nil {
		l.most, l.size = never, never
	}
	d.listed, d.since, d.prev = true, now, l.back
	if l.back != nil {
		l.back.next = d
	} else {
		l.front = d
	}
	l.back = d
	l.n += uint64(d.n)
	l.bytes += d.bytes
}

// runParked gives a turn to all whose sends wait, for what they have now.
func (q *queue) runParked(why abi.Counter) {
	q.count(why, 1)
	for d := q.parked.front; d != nil; d = q.parked.front {
		q.unpark(d)
		d.free = d.n
		q.sendSince(d.conn, d.since)
	}
}

// expireParked runs the list when one in it has waited for its time.
func (q *queue) expireParked() {
	if d := q.parked.ages.next(); d != nil && d.when <= alarmAt(q.policyTime()) {
		q.runParked(abi.CounterDelayAge)
	}
}

// parkedDeadline is when the list runs on the clock of time limits; 0: it is
// empty, or the policy clock stands still.
func (q *queue) parkedDeadline() time.Duration {
	if len(q.parked.ages) == 0 {
		return 0
	}
	return q.fw.policy.when(uint64(q.parked.ages.next().when))
}

// enough reports whether the adapter has enough to send for c, and the counter
// of the criterion that says so.
func (q *queue) enough(c *conn, now uint64) (abi.Counter, bool) {
	mask := c.attrs.of(abi.AttrDelayCriteria)
	if c.shut {
		return 0, false // its end waits for the sends
	}
	info, d := c.ep.Info(), c.parked
	d.learn(now, c.acked, uint64(info.RTT))
	held := c.queued - c.acked
	window := uint64(info.Cwnd) * uint64(info.MSS)
	limit := q.fw.memory.limit.Load()
	switch {
	case mask&enoughWindow != 0 && window > 0 && held >= window:
		return abi.CounterDelayCwnd, true
	case mask&enoughBandwidth != 0 && held > 0 && d.span > 0 && held >= scale(d.bytesIn, uint64(info.RTT), d.span):
		return abi.CounterDelayBandwidth, true
	case mask&enoughMemory != 0 && q.fw.memory.used.Load() >= limit-limit/4:
		return abi.CounterDelayMemory, true
	case mask&enoughFair != 0 && q.load.conns > 1 && held*q.load.conns > q.load.bytes:
		return abi.CounterDelayFairness, true
	case mask&enoughClass != 0 && q.load.above(uint8(c.attrs.of(abi.AttrQoSClass))):
		return abi.CounterDelayClass, true
	}
	return 0, false
}

// learn goes on with measuring how fast the peer acknowledges: a sample takes a
// round trip at least.
func (d *parking) learn(now, acked, rtt uint64) {
	if !d.started {
		d.started, d.began, d.from = true, now, acked
		return
	}
	if t := now - min(d.began, now); t >= max(rtt, uint64(minSample)) {
		d.span, d.bytesIn = t, acked-d.from
		d.began, d.from = now, acked
	}
}

// fetchable is how many sends of c the turn that it has may fetch.
func (c *conn) fetchable() int {
	if c.parked == nil || c.parked.free == 0 {
		return math.MaxInt
	}
	return c.parked.free
}

// scale is a * b / c, rounded down, or as large as it can be. c is not 0.
func scale(a, b, c uint64) uint64 {
	hi, lo := bits.Mul64(a, b)
	if hi >= c {
		return math.MaxUint64
	}
	n, _ := bits.Div64(hi, lo, c)
	return n
}
