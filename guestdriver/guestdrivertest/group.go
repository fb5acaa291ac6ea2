// SPDX-License-Identifier: Apache-2.0

package guestdrivertest

import (
	"slices"

	"toebox/vdev/abi"
)

// groupLocked is the id of the group that a connection is in (SPEC.md §14.4); 0: none.
func (c *conn) groupLocked() uint64 {
	by, ok := c.scalars[abi.AttrGroupBy]
	if !ok {
		by = 1
	}
	id := by << 59
	if by&1 != 0 {
		id |= uint64(c.local.Port()) << 32
	}
	if by&2 != 0 {
		id |= c.scalars[abi.AttrPriority] << 56
	}
	if by&4 != 0 {
		id |= c.scalars[abi.AttrQoSClass] << 48
	}
	if by&16 != 0 {
		id |= c.scalars[abi.AttrGroup]
	}
	return id
}

// shareLocked posts a buffer of a group, or, with id 0, one for any connection.
func (q *queue) shareLocked(r abi.Fields) {
	if q.shared == nil {
		q.shared = map[uint64][]posted{}
	}
	q.shared[r.Conn] = append(q.shared[r.Conn], posted{f: r})
}

// deliverSharedLocked serves the first buffer of the group of a connection that has
// received something, or else of those for any. It reports false when there is none.
func (f *Fake) deliverSharedLocked(c *conn) bool {
	q := f.queues[c.q]
	if q == nil {
		return false
	}
	for _, id := range [...]uint64{c.groupLocked(), 0} {
		list := q.shared[id]
		if len(list) == 0 {
			continue
		}
		b := list[0]
		q.shared[id] = list[1:]
		a := Answer(b.f, abi.TypeBufferReceive, abi.StatusOK)
		n := copy(f.bytesLocked(b.f.Base, int(b.f.Length)), c.inbox)
		a.Base, a.Length, a.Conn = b.f.Base, uint32(n), c.id
		c.takeLocked(n)
		f.answerLocked(c.q, a)
		return true
	}
	return false
}

// cancelSharedLocked ends a buffer that is not one connection's.
func (f *Fake) cancelSharedLocked(qi int, r abi.Fields) abi.Status {
	q := f.queues[qi]
	list := q.shared[r.Conn]
	i := slices.IndexFunc(list, func(b posted) bool { return b.f.Tag == r.Offset })
	if i < 0 {
		return abi.StatusTooLate
	}
	b := list[i]
	q.shared[r.Conn] = slices.Delete(list, i, i+1)
	f.answerLocked(qi, b.back(abi.StatusCancelled))
	return abi.StatusOK
}
