// SPDX-License-Identifier: Apache-2.0

package guestdriver

import (
	"errors"
	"fmt"
	"slices"
	"sync"

	"toebox/vdev/abi"
)

// byExplicitID is the bit of GROUP_BY that chooses by GROUP, and where GROUP_BY
// stands in the id of a group (SPEC.md §14.4).
const (
	byExplicitID = 16
	groupByShift = 59
)

// maxPool bounds the memory of a pool.
const maxPool = 1 << 30

// PoolConfig configures a [Pool].
type PoolConfig struct {
	// Buffers is how many there are, for the connections of each queue pair;
	// Size is that of each in bytes.
	Buffers, Size int
	// Copy has the driver copy what came by its own buffers into those of the
	// pool, when a consumer asks for it, instead of the adapter fill them: bytes
	// that consumers keep for long hold no memory that the adapter needs.
	Copy bool
}

// Pool is a set of receive buffers that connections share (MM04, MM15): memory
// in proportion to what is in flight, not to the number of connections. A buffer
// that was filled is its connection's until it was read and all segments of it
// were released; then it is posted again, for any of them.
//
// A connection that is not read can therefore take all buffers of its queue.
//
//	posted ── filled ──> lent to a connection, and its consumers
//	  ^                        │
//	  └── read and released ───┘
type Pool struct {
	a   *Adapter
	cfg PoolConfig
	id  uint64 // of the group
	mem *Memory

	mu      sync.Mutex
	idle    [][]*buffer // by lane: to be posted, or (Copy) to be taken
	posted  int         // buffers that the adapter has
	lent    int         // ... that connections have
	waiting []*Conn     // that found none to take
	closed  bool
	freed   bool
}

// NewPool makes a pool and posts its buffers.
func (a *Adapter) NewPool(cfg PoolConfig) (*Pool, error) {
	if cfg.Buffers <= 0 || cfg.Size <= 0 || cfg.Size > maxPool || cfg.Buffers > maxPool/len(a.lanes)/cfg.Size {
		return nil, fmt.Errorf("guestdriver: pool of %d buffers of %d bytes: %w", cfg.Buffers, cfg.Size, errMemory)
	}
	total := cfg.Buffers * len(a.lanes)
	m, err := a.Alloc(total * cfg.Size)
	if err != nil {
		return nil, fmt.Errorf("guestdriver: pool: %w", err)
	}
	m.pin()
	p := &Pool{
		a: a, cfg: cfg, mem: m, idle: make([][]*buffer, len(a.lanes)),
		id: a.newGroupID(),
	}
	all := make([]buffer, total)
	for i := range all {
		at := i * cfg.Size
		ln := i % len(a.lanes)
		all[i] = buffer{data: m.dma.Bytes[at : at+cfg.Size : at+cfg.Size], iova: m.dma.IOVA + uint64(at), pool: p, lane: ln}
		p.idle[ln] = append(p.idle[ln], &all[i])
		if a.debugging() {
			fillPoison(all[i].data)
		}
	}
	a.mu.Lock()
	a.pools = append(a.pools, p)
	a.mu.Unlock()
	for _, ln := range a.lanes {
		p.post(ln)
	}
	return p, nil
}

// postPools gives a new queue the buffers of the pools.
func (a *Adapter) postPools(ln *lane) {
	a.mu.RLock()
	pools := slices.Clone(a.pools)
	a.mu.RUnlock()
	for _, p := range pools {
		p.post(ln)
	}
}

// post gives the adapter the idle buffers of a lane, as far as there is room.
func (p *Pool) post(ln *lane) {
	if p.cfg.Copy {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	list := p.idle[ln.index]
	for len(list) > 0 && !p.closed {
		buf := list[len(list)-1]
		buf.filled, buf.consumed, buf.parts, buf.final = 0, 0, 0, false
		tag, err := ln.start(request{kind: kindPool, buf: buf}, abi.Fields{
			Type: abi.TypeBufferAvailable, Flags: abi.FlagGroup, Base: buf.iova, Conn: p.id, Length: uint32(len(buf.data)),
		}, true)
		if err != nil {
			break // the next that comes back, or a new queue, comes to it
		}
		buf.tag = tag
		p.posted++
		list = list[:len(list)-1]
	}
	p.idle[ln.index] = list
}

// put takes a buffer back that was read and released.
func (p *Pool) put(buf *buffer) {
	if p.a.debugging() {
		fillPoison(buf.data)
		buf.released = newTrace()
	}
	p.mu.Lock()
	p.lent--
	p.idle[buf.lane] = append(p.idle[buf.lane], buf)
	done := p.doneLocked()
	p.mu.Unlock()
	if done {
		p.free()
	}
	p.post(p.a.lanes[buf.lane])
}

// doneLocked reports, once, that a closed pool has all its buffers back.
func (p *Pool) doneLocked() bool {
	if !p.closed || p.freed || p.posted+p.lent > 0 {
		return false
	}
	p.freed = true
	return true
}

// copies reports whether the driver is to copy to the pool's buffers.
func (p *Pool) copies() bool {
	if p == nil || !p.cfg.Copy {
		return false
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	return !p.closed
}

// take returns an idle buffer for c to copy to; nil: c is woken when there is
// one.
func (p *Pool) take(c *Conn) *buffer {
	p.mu.Lock()
	defer p.mu.Unlock()
	for i, list := range p.idle {
		if n := len(list); n > 0 && !p.closed {
			buf := list[n-1]
			p.idle[i] = list[:n-1]
			p.lent++
			p.checkLocked(buf, 0)
			return buf
		}
	}
	if !slices.Contains(p.waiting, c) {
		p.waiting = append(p.waiting, c)
	}
	return nil
}

// wake wakes the connections that wait for a buffer. The caller holds no lock of
// a connection.
func (p *Pool) wake() {
	p.mu.Lock()
	list := p.waiting
	p.waiting = nil
	done := p.doneLocked()
	p.mu.Unlock()
	for _, c := range list {
		c.mu.Lock()
		c.rcond.Broadcast()
		c.mu.Unlock()
	}
	if done {
		p.free()
	}
}

// checkLocked looks, in the debug mode, whether somebody wrote to a buffer
// behind its first n bytes while it was nobody's.
func (p *Pool) checkLocked(buf *buffer, n int) {
	if !p.a.debugging() {
		return
	}
	if at := unpoisoned(buf.data[n:]); at >= 0 {
		p.a.mistake(&OwnershipError{Mistake: "write to a released buffer of a pool", Offset: n + at, Since: buf.released.String()})
	}
}

// pooled acts on the terminal response to a buffer of a pool. It was judged by
// fits.
func (ln *lane) pooled(buf *buffer, f *abi.Fields) {
	p := buf.pool
	p.mu.Lock()
	p.posted--
	if f.Type == abi.TypeBufferReceive {
		p.checkLocked(buf, int(f.Length))
	}
	if f.Type == abi.TypeBufferReceive && f.Length > 0 {
		p.lent++
		p.mu.Unlock()
		c, _ := ln.a.conn(f.Conn).(*Conn)
		switch {
		case c == nil || c.lane() != ln:
			ln.a.bad.conn.Add(1)
			p.put(buf)
		case f.Flags&abi.FlagPeek != 0:
			p.put(buf) // the bytes stay, and come again
		case !c.pooled(buf, f.Length):
			p.put(buf) // nobody reads it
		}
		p.wake()
		return
	}
	p.idle[ln.index] = append(p.idle[ln.index], buf)
	p.mu.Unlock()
	if f.Type == abi.TypeBufferReceive {
		p.post(ln)
	}
	p.wake()
}

// fits reports whether a response may be one to a buffer of the pool.
func (p *Pool) fits(buf *buffer, f *abi.Fields) bool {
	if f.Type == abi.TypeBufferReceive {
		return f.Offset == 0 && int64(f.Length) <= int64(len(buf.data))
	}
	return f.Length == 0
}

// lostBuffer acts on a buffer that will have no response.
func (p *Pool) lostBuffer(buf *buffer) {
	p.mu.Lock()
	p.posted--
	p.idle[buf.lane] = append(p.idle[buf.lane], buf)
	p.mu.Unlock()
	p.wake()
}

// pooled enters bytes that came in a buffer of a pool; false if nobody reads.
func (c *Conn) pooled(buf *buffer, n uint32) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed || c.rdShut || c.isGone {
		return false
	}
	buf.filled, buf.consumed, buf.final = n, 0, true
	c.bufs++
	c.segs = append(c.segs, segment{buf, 0, n})
	c.rcond.Signal()
	c.advanceLocked()
	return true
}

// SetPool has what comes on the connection from now on go to the buffers of the
// pool, which is one of the same adapter, or, with nil, to the driver's own again.
func (c *Conn) SetPool(p *Pool) error {
	by, id := uint64(1), uint64(0) // the defaults
	if p != nil && !p.cfg.Copy {
		by, id = byExplicitID, p.id&(1<<32-1)
	}
	if p != nil && p.a != c.lane().a {
		return c.opError("set", errMemory)
	}
	c.mu.Lock()
	grouped := c.sendGroup != nil || c.member != nil
	c.mu.Unlock()
	if grouped {
		return c.opError("set", errGrouped)
	}
	if err := errors.Join(c.set(abi.AttrGroup, id), c.set(abi.AttrGroupBy, by)); err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.pool = p
	if c.drawsLocked() {
		c.recallLocked()
	}
	c.advanceLocked()
	return nil
}

// drawsLocked reports whether the adapter takes buffers of a pool, or of a receive
// group, for c.
func (c *Conn) drawsLocked() bool {
	a := c.lane().a
	return c.pool != nil && !c.pool.cfg.Copy && c.pool.a == a || c.member != nil && c.member.g.a == a
}

// SetPool has connections that arrive from now on use the pool, from their first
// byte on.
func (l *Listener) SetPool(p *Pool) error {
	l.opening.Lock()
	defer l.opening.Unlock()
	l.mu.Lock()
	ids := slices.Clone(l.ids)
	l.mu.Unlock()
	if p.a != l.lane().a {
		return errMemory
	}
	if l.receive.Load() != nil {
		return errGrouped
	}
	ctx, cancel := timeout(startTimeout)
	defer cancel()
	for _, id := range ids {
		for _, s := range p.attrs() {
			if err := p.a.SetScalar(ctx, id, s.attr, s.value); err != nil {
				return err
			}
		}
	}
	l.pool.Store(p)
	return nil
}

// attrs are what makes connections members of the pool's group.
func (p *Pool) attrs() []scalarAttr {
	if p == nil || p.cfg.Copy {
		return nil
	}
	return []scalarAttr{{abi.AttrGroup, p.id & (1<<32 - 1)}, {abi.AttrGroupBy, byExplicitID}}
}

// Close takes the buffers back from the adapter. Its connections get no more
// bytes until SetPool says from where. The memory is freed when the last segment
// was released.
func (p *Pool) Close() error {
	p.mu.Lock()
	if p.closed {
		p.mu.Unlock()
		return nil
	}
	p.closed = true
	p.mu.Unlock()
	p.a.mu.Lock()
	p.a.pools = slices.DeleteFunc(p.a.pools, func(x *Pool) bool { return x == p })
	p.a.mu.Unlock()
	for _, ln := range p.a.lanes {
		ln.recallPool(p)
	}
	p.wake()
	return nil
}

// free ends a closed pool of which nothing is out.
func (p *Pool) free() {
	p.mem.unpin()
	// An error means that the adapter is closed, and the memory with it.
	_ = p.mem.Deregister()
}

// recallPool cancels the buffers of a pool that are posted on the lane. One that
// finds no room stays until it is filled.
func (ln *lane) recallPool(p *Pool) {
	for _, tag := range ln.poolTags(p) {
		_, _ = ln.start(request{kind: kindCancel}, abi.Fields{Type: abi.TypeCancellation, Conn: p.id, Offset: tag}, true)
	}
}

func (ln *lane) poolTags(p *Pool) (tags []uint32) {
	ln.mu.Lock()
	defer ln.mu.Unlock()
	for i := range ln.reqs.table {
		if r := &ln.reqs.table[i]; r.kind == kindPool && r.buf.pool == p {
			tags = append(tags, uint32(r.seq)<<16|uint32(i+1))
		}
	}
	return tags
}
