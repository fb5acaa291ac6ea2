// SPDX-License-Identifier: Apache-2.0

package guestdrivertest

import "toebox/vdev/abi"

// castLocked begins a send on a group (SPEC.md §5.4): one chosen by GROUP alone.
func (f *Fake) castLocked(qi int, q *queue, r abi.Fields) {
	group := r.Conn
	for _, c := range f.conns {
		if c.q == qi && !c.finOut && c.scalars[abi.AttrGroupBy] == 16 && 16<<59|c.scalars[abi.AttrGroup] == group {
			r.Conn = c.id
			c.sends = append(c.sends, r)
			q.casts[r.Tag]++
		}
	}
	if q.casts[r.Tag] == 0 {
		f.answerLocked(qi, Answer(r, abi.TypeBufferDone, abi.StatusBadConnection))
	}
}

// sentLocked answers a send of a connection.
func (f *Fake) sentLocked(c *conn, s abi.Fields, status abi.Status, n uint32) {
	a := Answer(s, abi.TypeBufferDone, status)
	a.Base, a.Length, a.Offset = s.Base, n, s.Offset
	if p, ok := c.scalars[abi.AttrCompletionPoint]; ok {
		a.SetPoint(p)
	}
	if qu := f.queues[c.q]; qu != nil && s.Flags&abi.FlagGroup != 0 {
		if qu.casts[s.Tag]--; qu.casts[s.Tag] > 0 {
			a.Flags &^= abi.FlagFinal
		} else {
			delete(qu.casts, s.Tag)
		}
	}
	f.answerLocked(c.q, a)
}
