// SPDX-License-Identifier: Apache-2.0

package firmware

import (
	"math/bits"

	"toebox/vdev/abi"
)

// Ranks of a bulk transfer list: priorities, and those of expedited transfers
// above all of them.
const (
	expedited = 8
	numRanks  = 2 * expedited
)

// bulk is the bulk transfer list of one direction (MM12, SPEC.md §14.3): the
// connections that have something to move and may. It gives them turns: starved
// ones first, then by rank, equals in the order in which they came. A turn costs
// a step for each doubling of their number.
//
// A connection is known by its place, which is 0 while it is not listed: an idle
// one costs no memory here.
type bulk struct {
	places []bulkPlace // [0] is not used
	spare  int32       // list of free places, by next
	ranks  [numRanks]struct{ first, last int32 }
	used   uint     // bit r: there is one of rank r
	heap   []hunger // the one that starves first, first
	came   uint64
}

// bulkPlace is a connection in a list.
type bulkPlace struct {
	conn       *conn
	since      uint64 // when it came, on the policy clock
	prev, next int32
	at         int32 // in the heap
	rank       uint8
}

// hunger is a place in the heap.
type hunger struct {
	starved uint64 // from when on
	number  uint64 // of its coming
	place   int32
}

func (b *bulk) len() int { return len(b.heap) }

// add lists c and returns its place.
func (b *bulk) add(c *conn, rank uint8, since, patience uint64) int32 {
	i := b.spare
	if i != 0 {
		b.spare = b.places[i].next
	} else {
		if len(b.places) == 0 {
			b.places = append(b.places, bulkPlace{})
		}
		i = int32(len(b.places))
		b.places = append(b.places, bulkPlace{})
	}
	b.came++
	b.places[i] = bulkPlace{
		conn: c, since: since, at: int32(len(b.heap)), rank: rank,
	}
	b.heap = append(b.heap, hunger{after(since, patience), b.came, i})
	b.fix(int(b.places[i].at))
	b.link(i)
	return i
}

// remove takes a place out of the list.
func (b *bulk) remove(i int32) {
	b.unlink(i)
	at, last := int(b.places[i].at), len(b.heap)-1
	b.heap[at] = b.heap[last]
	b.places[b.heap[at].place].at = int32(at)
	b.heap = b.heap[:last]
	if at < last {
		b.fix(at)
	}
	b.places[i] = bulkPlace{next: b.spare}
	b.spare = i
}

// change gives a place another rank, behind those that have it already, and
// another patience.
func (b *bulk) change(i int32, rank uint8, patience uint64) {
	p := &b.places[i]
	if p.rank != rank {
		b.unlink(i)
		p.rank = rank
		b.link(i)
	}
	b.heap[p.at].starved = after(p.since, patience)
	b.fix(int(p.at))
}

// next is whose turn it is, and the counter that says why it is before another
// one, if it is. There must be one.
func (b *bulk) next(now uint64) (i int32, why abi.Counter, before bool) {
	top := bits.Len(b.used) - 1
	i = b.ranks[top].first
	if h := &b.heap[0]; h.place != i && h.starved <= now {
		return h.place, abi.CounterTurnsStarved, true
	}
	others := b.used &^ (1 << top)
	switch {
	case others == 0:
		return i, 0, false
	case top >= expedited && others < 1<<expedited:
		return i, abi.CounterTurnsExpedited, true
	}
	return i, abi.CounterTurnsPriority, true
}

func (b *bulk) link(i int32) {
	p := &b.places[i]
	l := &b.ranks[p.rank]
	p.prev, p.next = l.last, 0
	if l.last != 0 {
		b.places[l.last].next = i
	} else {
		l.first = i
		b.used |= 1 << p.rank
	}
	l.last = i
}

func (b *bulk) unlink(i int32) {
	p := &b.places[i]
	l := &b.ranks[p.rank]
	if p.prev != 0 {
		b.places[p.prev].next = p.next
	} else {
		l.first = p.next
	}
	if p.next != 0 {
		b.places[p.next].prev = p.prev
	} else {
		l.last = p.prev
	}
	if l.first == 0 {
		b.used &^= 1 << p.rank
	}
}

// before reports whether the place at x of the heap starves before that at y;
// of two at the same time the one that came first.
func (b *bulk) before(x, y int) bool {
	p, r := &b.heap[x], &b.heap[y]
	return p.starved < r.starved || p.starved == r.starved && p.number < r.number
}

// fix moves the place at i of the heap to where it belongs.
func (b *bulk) fix(i int) {
	for i > 0 && b.before(i, (i-1)/2) {
		b.swap(i, (i-1)/2)
		i = (i - 1) / 2
	}
	for {
		least := i
		for k := 2*i + 1; k <= 2*i+2 && k < len(b.heap); k++ {
			if b.before(k, least) {
				least = k
			}
		}
		if least == i {
			return
		}
		b.swap(i, least)
		i = least
	}
}

func (b *bulk) swap(x, y int) {
	b.heap[x], b.heap[y] = b.heap[y], b.heap[x]
	b.places[b.heap[x].place].at, b.places[b.heap[y].place].at = int32(x), int32(y)
}

// turn takes the connection out of a list whose turn it is, and says since when
// it was there.
func (q *queue) turn(b *bulk) (c *conn, since uint64) {
	i, why, before := b.next(q.policyTime())
	if before {
		q.count(why, 1)
	}
	c, since = b.places[i].conn, b.places[i].since
	b.remove(i)
	return c, since
}

// sendRank is the rank of c in the list of sends.
func (c *conn) sendRank() uint8 {
	r := uint8(c.attrs.of(abi.AttrPriority))
	if c.urgent > 0 {
		r += expedited
	}
	return r
}

// receiveRank is the rank of c in the lists of what was received.
func (c *conn) receiveRank() uint8 {
	r := uint8(c.attrs.of(abi.AttrPriority))
	if c.attrs.of(abi.AttrExpedited) != 0 {
		r += expedited
	}
	return r
}

func (c *conn) patience() uint64 { return c.attrs.of(abi.AttrStarvation) }

// reorder gives c its place in the lists by the attributes that it has now.
func (q *queue) reorder(c *conn) {
	if c.inTx != 0 {
		q.tx.change(c.inTx, c.sendRank(), c.patience())
	}
	if c.inRx != 0 {
		q.rx.change(c.inRx, c.receiveRank(), c.patience())
	}
	if c.inWait != 0 {
		q.wait.change(c.inWait, c.receiveRank(), c.patience())
	}
	if x := c.choice; x != nil && x.place != 0 {
		x.group.waiting.change(x.place, c.receiveRank(), c.patience())
	}
}

// unlist takes c out of all lists.
func (q *queue) unlist(c *conn) {
	if c.inTx != 0 {
		q.tx.remove(c.inTx)
	}
	if c.inRx != 0 {
		q.rx.remove(c.inRx)
	}
	if c.inWait != 0 {
		q.wait.remove(c.inWait)
	}
	c.inTx, c.inRx, c.inWait = 0, 0, 0
}

// policyTime is the time of the policy clock, the same for a whole pass.
func (q *queue) policyTime() uint64 {
	if !q.timed {
		q.timed, q.time = true, q.fw.policy.at(q.now)
	}
	return q.time
}
