// SPDX-License-Identifier: Apache-2.0

package firmware

import "toebox/vdev/abi"

// scanLimit is how many connections group sends look at in one pass.
const scanLimit = 1 << 16

// requestGroupSend sends one buffer on all connections of a group (MM04, SPEC.md
// §5.4): each has a request of its own, whose parent is what the host posted.
func (q *queue) requestGroupSend(f *abi.Fields) {
	q.crowd = q.members(q.crowd[:0], f.Conn)
	defer clear(q.crowd)
	if len(q.crowd) == 0 {
		q.refuse(f, abi.StatusBadConnection)
		return
	}
	extra := len(q.crowd) * requestCharge
	if !q.fw.memory.charge(extra) {
		q.refuse(f, abi.StatusNoMemory)
		return
	}
	p := q.hold(f, nil)
	if p == nil {
		q.fw.memory.release(extra)
		return
	}
	p.extra, p.left, p.crowd = extra, uint32(len(q.crowd)), f.Conn
	if q.check != nil {
		q.check.posted(p)
	}
	q.present(p, f.Modify, true)
	for _, c := range q.crowd {
		r := q.newRequest()
		*r = request{
			tag: p.tag, kind: p.kind, flags: p.flags, asap: p.asap, conn: c, parent: p, sibling: p.members,
			base: p.base, length: p.length, offset: p.offset, kept: p.kept,
		}
		p.members = r
		if r.kept != nil {
			q.copies.join(r.kept)
		}
		q.count(abi.CounterGroupSends, 1)
	}
	// Only now: the last answer ends the request.
	for r := p.members; r != nil; {
		next, c := r.sibling, r.conn
		if s := c.proto.checkSend(c, r.length-r.offset); s != abi.StatusOK {
			q.answerMember(r, s, 0)
		} else {
			q.enqueueSend(c, r)
		}
		r = next
	}
}

// members appends the connections of a group that take sends.
func (q *queue) members(list []*conn, id uint64) []*conn {
	if !goodGroup(id) {
		return list
	}
	q.scanned += len(q.roster.list)
	for _, e := range q.roster.list {
		c := e.conn
		if c == nil || c.phase != open || c.notice != nil || c.failed || c.broken || c.shut || c.leaving {
			continue
		}
		if c.group() == id {
			list = append(list, c)
		}
	}
	return list
}

// answerMember answers the part of a group send that was one connection's.
func (q *queue) answerMember(r *request, s abi.Status, n uint32) {
	p := r.parent
	f := abi.Fields{
		Type: abi.TypeBufferDone, Aux: uint16(s), Tag: p.tag, Base: p.base, Conn: r.conn.id, Length: n, Offset: p.offset,
	}
	r.conn.namePoint(&f)
	q.leaveCopy(r)
	r.conn = nil // answered; the request is kept for its links
	if s != abi.StatusOK {
		p.bad = true
	}
	if p.left--; p.left > 0 {
		q.respond(f)
		return
	}
	if q.check != nil {
		q.check.unchanged(p)
	}
	if !p.bad {
		q.count(abi.CounterSendsDone, 1)
	}
	q.terminal(&f)
	for m := p.members; m != nil; {
		next := m.sibling
		*m = request{next: q.spare}
		q.spare = m
		m = next
	}
	q.settle(p)
}

// cancelGroupSend answers all parts of a group send that are open.
func (q *queue) cancelGroupSend(p *request) {
	for r := p.members; r != nil; {
		// With the last of them all are gone, and this was the last.
		next, c := r.sibling, r.conn
		if c != nil {
			last := p.left == 1
			q.answerSend(c, r, abi.StatusCancelled, q.reached(c))
			if c.phase == open {
				q.progressClose(c)
				q.sendSoon(c)
			}
			if last {
				return
			}
		}
		r = next
	}
}
