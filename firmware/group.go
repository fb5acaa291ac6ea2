// SPDX-License-Identifier: Apache-2.0

package firmware

import (
	"encoding/binary"
	"math"

	"toebox/firmware/engine"
	"toebox/vdev/abi"
)

// Bits of GROUP_BY, and where they and the values that they choose stand in the
// id of a group (SPEC.md §14.4).
const (
	byPort      = 1
	byPriority  = 2
	byClass     = 4
	byMulticast = 8
	byID        = 16
	byAll       = 31

	groupMask     = 59
	groupPriority = 56
	groupClass    = 48
	groupPort     = 32
)

// groupID is the id of a group by what its members have in common.
func groupID(by, port, priority, class, low uint64) uint64 {
	id := by << groupMask
	if by&byPort != 0 {
		id |= port << groupPort
	}
	if by&byPriority != 0 {
		id |= priority << groupPriority
	}
	if by&byClass != 0 {
		id |= class << groupClass
	}
	if by&(byMulticast|byID) != 0 {
		id |= low
	}
	return id
}

// goodGroup reports whether an id is one of a group.
func goodGroup(id uint64) bool {
	by := id >> groupMask
	return by != 0 && id == groupID(by, id>>groupPort&0xffff, id>>groupPriority&7, id>>groupClass&0xff, id&math.MaxUint32)
}

// group is the id of the group that c belongs to; 0: none.
func (c *conn) group() uint64 {
	if c.groupID != 0 {
		return c.groupID
	}
	by := c.attrs.of(abi.AttrGroupBy)
	if by == 0 {
		return 0
	}
	low := uint64(0)
	if by&byID != 0 {
		low = c.attrs.of(abi.AttrGroup)
	}
	if d, ok := c.ep.(engine.Datagrams); ok && by&byMulticast != 0 {
		if joined := d.Groups(); len(joined) > 0 {
			b := joined[0].AsSlice()
			low ^= uint64(binary.BigEndian.Uint32(b[len(b)-4:]))
		}
	}
	port := uint64(0)
	if by&byPort != 0 {
		port = uint64(c.ep.Info().Local.Port())
	}
	c.groupID = groupID(by, port, c.attrs.of(abi.AttrPriority), c.attrs.of(abi.AttrQoSClass), low)
	return c.groupID
}

// Groups without buffers and waiting connections stay known as long as they are
// few: the search for those that wait is for new ones only.
const idleGroups = 64

// groupCharge is what a group with buffers is charged.
const groupCharge = 256

// group are the buffers that connections share, on one queue.
type group struct {
	id      uint64
	sink    bool // no group: who waits for buffers of the connection with this id
	buffers requestList
	waiting bulk // connections with bytes and no buffer
	woken   int  // connections out of waiting that have not had their turn
	stirred bool // in queue.stirred
}

// postGroup posts a buffer of a group.
func (q *queue) postGroup(f *abi.Fields) {
	if !goodGroup(f.Conn) {
		q.refuse(f, abi.StatusBadConnection)
		return
	}
	g := q.groups[f.Conn]
	if g == nil && !q.fw.memory.admit(groupCharge) {
		q.refuse(f, abi.StatusNoMemory)
		return
	}
	if g == nil {
		g = q.newGroup(f.Conn)
	}
	r := q.hold(f, nil)
	if r == nil {
		q.idleGroup(g)
		return
	}
	r.group = g
	if q.check != nil {
		q.check.posted(r)
	}
	g.buffers.push(r)
	q.stir(g)
}

// newGroup makes a group, with those of its connections that wait already.
func (q *queue) newGroup(id uint64) *group {
	if q.groups == nil {
		q.groups = make(map[uint64]*group)
	}
	g := &group{id: id}
	q.groups[id] = g
	for _, p := range q.wait.places {
		if p.conn != nil {
			q.joinGroup(p.conn, p.since)
		}
	}
	for _, x := range q.choices {
		q.joinGroup(x.conn, q.policyTime())
	}
	return g
}

// idleGroup forgets a group that has nothing, unless few are known.
func (q *queue) idleGroup(g *group) {
	if g.sink && g.waiting.len() == 0 && g.woken == 0 && !g.stirred && q.sinks[g.id] == g {
		delete(q.sinks, g.id)
		q.fw.memory.release(groupCharge)
	}
	if g.sink {
		return
	}
	if g.buffers.n == 0 && g.waiting.len() == 0 && g.woken == 0 && !g.stirred && len(q.groups) > idleGroups {
		delete(q.groups, g.id)
		q.fw.memory.release(groupCharge)
	}
}

// groupBuffer is the oldest buffer of c's group; nil: there is none.
func (q *queue) groupBuffer(c *conn) *request {
	if len(q.groups) == 0 {
		return nil
	}
	if g := q.groups[c.group()]; g != nil {
		return g.buffers.front
	}
	return nil
}

// joinGroup lets c, whose bytes found no buffer, wait for one of its group. It
// waits since a time.
func (q *queue) joinGroup(c *conn, since uint64) {
	if len(q.groups) == 0 {
		return
	}
	g := q.groups[c.group()]
	if g == nil {
		return
	}
	if x := q.choice(c); x != nil && x.group == nil {
		x.group = g
		x.place = g.waiting.add(c, c.receiveRank(), since, c.patience())
	}
}

// leaveGroup takes a connection that has its turn, or goes, out of the list of
// those that wait.
func (q *queue) leaveGroup(x *choice) {
	g := x.group
	if g == nil {
		return
	}
	x.group = nil
	if x.place == 0 {
		g.woken--
	} else {
		g.waiting.remove(x.place)
		x.place = 0
	}
	q.stir(g)
}

// stir notes that a group may have both buffers and connections that wait.
func (q *queue) stir(g *group) {
	if !g.stirred && q.supply(g) > g.woken && g.waiting.len() > 0 {
		g.stirred = true
		q.stirred = append(q.stirred, g)
	}
	q.idleGroup(g)
}

// turnGroups gives turns to as many connections as there are buffers of their
// groups.
func (q *queue) turnGroups() {
	for _, g := range q.stirred {
		g.stirred = false
		for q.supply(g) > g.woken && g.waiting.len() > 0 {
			c, since := q.turn(&g.waiting)
			c.choice.place = 0
			g.woken++
			q.receiveSince(c, since)
		}
		q.idleGroup(g)
	}
	clear(q.stirred)
	q.stirred = q.stirred[:0]
}

// regroup notes that c may belong to another group.
func (q *queue) regroup(c *conn) {
	c.groupID = 0
	if c.phase == open {
		q.receiveSoon(c)
	}
}

// returnGroups returns the buffers of all groups.
func (q *queue) returnGroups() {
	for _, g := range q.groups {
		for r := g.buffers.front; r != nil; r = g.buffers.front {
			q.returnBuffer(r, abi.StatusCancelled)
		}
	}
}
