// SPDX-License-Identifier: Apache-2.0

package firmware

import "toebox/vdev/abi"

// requestCancellation ends requests before their time (SPEC.md §5.9).
func (q *queue) requestCancellation(f *abi.Fields) {
	one := [1]pair{{conn: f.Conn, value: f.Offset}}
	list := one[:]
	if f.Aux != 0 {
		var s abi.Status
		if list, s = q.pairs(f, abi.AttrCancel); s != abi.StatusOK {
			q.refuse(f, s)
			return
		}
	}
	r := q.holdTargets(f, len(list))
	if r == nil {
		return
	}
	for i := range list {
		p := &list[i]
		fetched := q.fetchedOf(p.value)
		s, later := p.status, false
		if s == abi.StatusOK {
			s, later = q.cancel(p.conn, p.value, target{r: r, ordinal: uint32(i)})
		}
		if s != abi.StatusOK {
			fetched = 0
		}
		if !later {
			q.answerTarget(r, abi.Fields{Aux: uint16(s), Conn: p.conn, Length: fetched, Offset: uint32(i)})
		}
	}
}

// fetchedOf is how many bytes of a send, if the tag is one's, were fetched: they
// go out whatever becomes of it.
func (q *queue) fetchedOf(tag uint32) uint32 {
	if r := q.tags[tag]; r != nil && r.kind == abi.TypeBufferSend {
		return r.done
	}
	return 0
}

// cancel ends one request, or a listener. If later is set the answer comes when
// all targets of the request have theirs.
func (q *queue) cancel(id uint64, tag uint32, t target) (s abi.Status, later bool) {
	if tag == 0 {
		return q.cancelListener(id), false
	}
	r := q.tags[tag]
	if r == nil || r == t.r {
		if r == nil && q.recent[tag%recentTags] == tag {
			return abi.StatusTooLate, false
		}
		if id != 0 {
			if _, s := q.lookup(id); s != abi.StatusOK {
				return s, false
			}
		}
		return abi.StatusBadTag, false
	}
	if r.named() != id {
		return abi.StatusBadTag, false
	}
	switch r.kind {
	case abi.TypeBufferSend:
		if r.crowd != 0 {
			q.cancelGroupSend(r)
			break
		}
		c := r.conn
		q.answerSend(c, r, abi.StatusCancelled, q.reached(c))
		if c.phase == open {
			q.progressClose(c)
			q.sendSoon(c)
		}
	case abi.TypeBufferAvailable:
		if r.conn != nil {
			if q.endDelay(r.conn); q.tags[tag] != r {
				return abi.StatusTooLate, false // what waited has filled it
			}
		}
		q.returnBuffer(r, abi.StatusCancelled)
	case abi.TypeConnect, abi.TypeListen:
		if q.emitOf(&r.job.origin); q.tags[tag] == nil {
			return abi.StatusTooLate, false // all its targets had their results
		}
		r.job.cancelled = true
		r.job.waiters = append(r.job.waiters, t)
		q.jobSoon(r.job)
		return abi.StatusOK, true
	default:
		return abi.StatusTooLate, false // terminations and cancellations are under way
	}
	q.count(abi.CounterCancellations, 1)
	return abi.StatusOK, false
}

func (q *queue) cancelListener(id uint64) abi.Status {
	c, s := q.lookup(id)
	switch {
	case s != abi.StatusOK:
		return s
	case c.phase != listening && !c.loose:
		return abi.StatusBadTag
	}
	q.endListener(c, abi.StatusCancelled)
	return abi.StatusOK
}
