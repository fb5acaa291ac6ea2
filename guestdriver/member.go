// SPDX-License-Identifier: Apache-2.0

package guestdriver

import (
	"io"
	"slices"

	"toebox/vdev/abi"
)

// member is a connection's part in a receive group.
type member struct {
	g    *ReceiveGroup
	end  Buffer // stands for the end of the stream in the queue; it has no memory
	told bool
	wait bool // it is in g.hungry
}

// leaveGroup returns the attributes of a connection that leaves its group: the defaults.
func leaveGroup() []scalarAttr { return []scalarAttr{{abi.AttrGroup, 0}, {abi.AttrGroupBy, 1}} }

// Add takes a connection in, and sets the attributes on it that this needs: of those of
// the key all but the port, which it must have. Bytes that the driver has of it are
// the first that come by completions. It must not be in another group, nor use a
// [Pool]; but to be in the pool of the adapter, which needs no attributes, goes with a
// [SendGroup].
func (g *ReceiveGroup) Add(c *Conn) error {
	c.mu.Lock()
	err := g.wrongPort(c.local.AddrPort())
	switch {
	case c.member != nil && c.member.g == g:
		c.mu.Unlock()
		return nil
	case c.closed:
		err = errClosed
	case c.lane().a != g.a:
		err = errMemory
	case c.member != nil || c.pool != nil || c.sendGroup != nil && g.key.By != 0:
		err = errGrouped
	}
	if err == nil && !c.joinLocked(g) {
		err = errClosed
	}
	c.mu.Unlock()
	if err != nil {
		return c.opError("set", err)
	}
	if attrs := g.attrs(); attrs != nil {
		err = c.policy(true, groupFields(attrs))
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if err != nil {
		c.partLocked(g)
	} else if c.member != nil && len(c.own) > 0 {
		c.recallLocked()
	}
	c.advanceLocked()
	return err
}

// joinLocked enters c as a member; false if the group is closed.
func (c *Conn) joinLocked(g *ReceiveGroup) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.closed {
		return false
	}
	c.member = &member{g: g}
	c.member.end.op = OpGroup
	c.member.end.conn.Store(c)
	g.members[c] = struct{}{}
	return true
}

// partLocked undoes joinLocked.
func (c *Conn) partLocked(g *ReceiveGroup) bool {
	if c.member == nil || c.member.g != g {
		return false
	}
	c.member = nil
	g.mu.Lock()
	defer g.mu.Unlock()
	delete(g.members, c)
	delete(g.hungry, c)
	return true
}

// Remove takes a connection out; what comes from now on is for Read. What has come into
// a buffer of the group before has its completion still, but no end of the stream
// does.
func (g *ReceiveGroup) Remove(c *Conn) {
	c.mu.Lock()
	was := c.partLocked(g)
	c.mu.Unlock()
	if !was {
		return
	}
	if g.key.By != 0 {
		_ = c.policy(true, groupFields(leaveGroup())) // one that ended has forgotten it
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.advanceLocked()
	c.rcond.Broadcast()
}

// SetReceiveGroup has connections that arrive from now on be members of the group,
// from their first byte on; with nil, of none.
func (l *Listener) SetReceiveGroup(g *ReceiveGroup) error {
	l.opening.Lock()
	defer l.opening.Unlock()
	l.mu.Lock()
	ids, addrs := slices.Clone(l.ids), slices.Clone(l.addrs)
	l.mu.Unlock()
	attrs := leaveGroup()
	if g == nil && l.receive.Load() == nil {
		return nil
	}
	if g != nil {
		for _, at := range addrs {
			if err := g.wrongPort(at); err != nil {
				return err
			}
		}
		if g.a != l.lane().a {
			return errMemory
		}
		if p := l.pool.Load(); p != nil && !p.cfg.Copy {
			return errGrouped
		}
		if g.key.By != 0 {
			attrs = g.attrs()
		}
	}
	ctx, cancel := timeout(startTimeout)
	defer cancel()
	for _, id := range ids {
		if err := l.lane().policy(ctx, id, true, groupFields(attrs), func(abi.Attribute, uint64) {}); err != nil {
			return err
		}
	}
	l.receive.Store(g)
	return nil
}

// arriveIn makes a connection that has arrived a member, as its listener says.
func (c *Conn) arriveIn(l *Listener) {
	p, g := l.pool.Load(), l.receive.Load()
	c.mu.Lock()
	c.pool = p
	if g != nil && g.a == c.lane().a {
		c.joinLocked(g)
	}
	c.mu.Unlock()
	for _, s := range slices.Concat(p.attrs(), g.attrs()) {
		c.note(s.attr, s.value)
	}
}

// grouped acts on bytes of c that came into a buffer of a group; false if nobody takes
// them.
func (c *Conn) grouped(g *ReceiveGroup, b *Buffer, f *abi.Fields) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	peek := f.Flags&abi.FlagPeek != 0
	takes := c.takesLocked(g) && len(c.segs) == 0
	if c.closed || c.rdShut || c.isGone || peek && !takes {
		return false // bytes that were shown only come again
	}
	g.mu.Lock()
	if takes {
		host := &g.a.host
		if peek {
			b.op = OpPeek
			host.peeks.Add(1)
			host.peeked.Add(uint64(f.Length))
		} else {
			host.direct.Add(uint64(f.Length))
		}
		g.endLocked(b, c, f.Length, statusErr("read", abi.Status(f.Aux)))
		g.mu.Unlock()
		return true
	}
	g.moveLocked(b, groupLent)
	if !c.takesLocked(g) {
		g.stats.Lends++
		g.a.host.groupLends.Add(1)
	}
	g.mu.Unlock()
	b.buf.filled, b.buf.consumed, b.buf.final = f.Length, 0, true
	c.bufs++
	c.segs = append(c.segs, segment{&b.buf, 0, f.Length})
	c.rcond.Signal()
	c.advanceLocked()
	return true
}

// takesLocked reports whether bytes of c in a buffer of g are for its completion.
func (c *Conn) takesLocked(g *ReceiveGroup) bool { return c.member != nil && c.member.g.q == g.q }

// putGroup takes a buffer back that was lent and read.
func (b *Buffer) putGroup() {
	if g := b.group.Load(); g != nil {
		g.again(b)
	}
}

// memberLocked tells of what the driver has of a member: its bytes, in buffers of the
// group, and the end of its stream.
func (c *Conn) memberLocked() {
	m := c.member
	if m == nil || m.told {
		return
	}
	for len(c.segs) > 0 && !c.closed && !c.rdShut {
		if c.reading || !c.tellLocked(m.g) {
			return // takeLocked, or a buffer, comes back to this
		}
	}
	if m.wait {
		m.wait = false
		m.g.mu.Lock()
		delete(m.g.hungry, c)
		m.g.mu.Unlock()
	}
	var err error
	switch {
	case c.closed:
		err = errClosed
	case c.rdShut, c.eof:
		err = io.EOF
	case c.rerr != nil:
		err = c.rerr
	case c.isGone:
		err = errClosed
	case c.carry == nil && c.lane().a != m.g.a:
		err = errMemory // it goes on on another adapter
		c.member = nil
	default:
		return
	}
	m.told = true
	m.g.mu.Lock()
	delete(m.g.members, c)
	m.g.mu.Unlock()
	m.g.q.push(&m.end, 0, true, err)
}

// tellLocked completes a buffer of the group with the first bytes that the driver has
// of c: the one that they are in, else another by a copy. It reports false when there
// is none: then c is told when there is one.
func (c *Conn) tellLocked(g *ReceiveGroup) bool {
	s := &c.segs[0]
	host := &g.a.host
	if b := s.buf.user; b != nil && s.off == 0 && s.buf.lent == 0 {
		if in := b.group.Load(); in != nil && in.q == g.q {
			n := s.n
			c.bufs--
			c.segs = slices.Delete(c.segs, 0, 1)
			host.direct.Add(uint64(n))
			in.mu.Lock()
			defer in.mu.Unlock()
			in.endLocked(b, c, n, nil)
			return true
		}
	}
	b := g.take(c)
	if b == nil {
		c.member.wait = true
		return false
	}
	n := 0
	for len(c.segs) > 0 && n < len(b.buf.data) {
		s := c.segs[0]
		k := copy(b.buf.data[n:], s.buf.data[s.off:s.off+s.n])
		n += k
		c.consumeLocked(k)
	}
	host.copied.Add(uint64(n))
	g.mu.Lock()
	defer g.mu.Unlock()
	g.endLocked(b, c, uint32(n), nil)
	return true
}

// take returns a buffer for what the driver has of a member, or nil, and asks for
// one.
func (g *ReceiveGroup) take(c *Conn) *Buffer {
	g.mu.Lock()
	defer g.mu.Unlock()
	var posted *Buffer
	for b := g.first; b != nil; b = b.later {
		if b.place == groupIdle && !b.withdrawn {
			g.moveLocked(b, groupLent)
			return b
		}
		if b.place == groupPosted && b.cancel == cancelNone && posted == nil {
			posted = b
		}
	}
	g.hungry[c] = struct{}{}
	// Without room, or a queue, there will be one that comes back anyhow.
	if g.recalling == nil && posted != nil && g.recallLocked(posted) == nil {
		g.recalling = posted
	}
	return nil
}
