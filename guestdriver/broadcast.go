// SPDX-License-Identifier: Apache-2.0

package guestdriver

import (
	"errors"
	"slices"
	"sync"
	"sync/atomic"

	"toebox/vdev/abi"
)

// errGrouped says that a connection is of a group already, or of a [Pool] whose
// buffers the adapter fills: it can be of one only.
var errGrouped = errors.New("guestdriver: connection is in a group")

// SendGroup is a set of connections that a buffer is sent on at once (MM04,
// broadcast): the host writes the bytes once and posts one descriptor for the
// connections of each queue pair, for which the adapter reads them once, as long as
// it has room for its copy (SPEC.md §14.8).
//
// What a connection writes by itself goes before or behind a broadcast, never in the
// middle. All methods are safe for concurrent use, but for [Conn.SetPool] of a
// connection that is being added.
type SendGroup struct {
	a  *Adapter
	id uint64

	mu    sync.Mutex // held while a broadcast is posted; before Conn.wrMu
	conns []*Conn
}

// broadcast is one buffer on its way to the connections of a group.
type broadcast struct {
	g     *SendGroup
	b     *Buffer
	parts []castPart
	sends []Buffer // one for each connection, all of the same memory
	left  int      // of these, those that the application was not told of; the queue's mu protects it

	mistaken atomic.Bool // the debug mode has found something
}

// castPart is what one request of a broadcast is for: sends to connections of one
// queue pair.
type castPart struct {
	ln    *lane
	group uint64
	sends []*Buffer
	tag   uint32             // the group's mu protects it
	open  map[uint64]*Buffer // by connection, those without a response; the lane's disp protects it
}

// NewSendGroup returns a group without connections.
func (a *Adapter) NewSendGroup() *SendGroup {
	return &SendGroup{a: a, id: a.newGroupID()}
}

// Add takes a connection in. It must not be of another group, nor use a [Pool],
// unless one of PoolConfig.Copy.
func (g *SendGroup) Add(c *Conn) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if slices.Contains(g.conns, c) {
		return nil
	}
	c.mu.Lock()
	var err error
	switch {
	case c.lane().a != g.a:
		err = errMemory
	case c.sendGroup != nil || c.pool != nil && !c.pool.cfg.Copy || c.member != nil && c.member.g.key.By != 0:
		err = errGrouped
	default:
		c.sendGroup = g
	}
	c.mu.Unlock()
	if err != nil {
		return c.opError("set", err)
	}
	if err := errors.Join(c.set(abi.AttrGroup, g.id&(1<<32-1)), c.set(abi.AttrGroupBy, byExplicitID)); err != nil {
		g.releaseLocked(c)
		return err
	}
	g.conns = append(g.conns, c)
	return nil
}

// Remove takes a connection out; broadcasts that were posted go on.
func (g *SendGroup) Remove(c *Conn) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if i := slices.Index(g.conns, c); i >= 0 {
		g.conns = slices.Delete(g.conns, i, i+1)
		g.releaseLocked(c)
	}
}

// releaseLocked has a connection be of no group; one that ended has forgotten it.
func (g *SendGroup) releaseLocked(c *Conn) {
	_ = errors.Join(c.set(abi.AttrGroupBy, 1), c.set(abi.AttrGroup, 0)) // the defaults
	c.mu.Lock()
	c.sendGroup = nil
	c.mu.Unlock()
}

// Conns returns the connections.
func (g *SendGroup) Conns() []*Conn {
	g.mu.Lock()
	defer g.mu.Unlock()
	return slices.Clone(g.conns)
}

// Send posts a buffer on all connections of the group, behind what was written on
// each, and does not wait for its end. It waits for writes of theirs that are under
// way. q gets a completion for each connection, with what became of it there; the
// buffer is the adapter's until the last of them, which is Final. A connection that
// is closed, or failed, stays in the group until it is removed. With an error
// nothing was posted, and the buffer is free.
func (g *SendGroup) Send(b *Buffer, q *CompletionQueue) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	switch {
	case len(g.conns) == 0:
		return statusErr("write", abi.StatusBadConnection)
	case b.m.a != g.a:
		return errMemory
	case !b.busy.CompareAndSwap(false, true):
		return b.refuse("SendGroup.Send")
	}
	x := g.begin(b, q)
	if x == nil {
		b.busy.Store(false)
		return errMemory
	}
	for _, c := range g.conns {
		c.wrMu.Lock()
	}
	g.a.host.broadcasts.Add(1)
	for i := range x.sends {
		x.sends[i].await()
	}
	for i := range x.parts {
		x.parts[i].post()
	}
	for _, c := range g.conns {
		c.wrMu.Unlock()
	}
	return nil
}

// Cancel asks for a buffer back that is being sent: the completions of those
// connections where that came in time unwrap to ECANCELED. Of their N bytes the
// peer has as many at least: the stream may have more, and is cut there.
func (g *SendGroup) Cancel(b *Buffer) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	x := b.sending.Load()
	if x == nil || x.g != g {
		return nil // it is over
	}
	var errs []error
	for i := range x.parts {
		errs = append(errs, x.parts[i].cancel())
	}
	return errors.Join(errs...)
}

// begin makes the sends of a broadcast; nil when the memory is registered no more.
func (g *SendGroup) begin(b *Buffer, q *CompletionQueue) *broadcast {
	n := len(g.conns)
	x := &broadcast{g: g, b: b, sends: make([]Buffer, n), left: n}
	b.op, b.send = OpSend, SendOptions{}
	b.guard()
	off := int(b.buf.iova - b.m.dma.IOVA)
	for i, c := range g.conns {
		s := &x.sends[i]
		if !b.m.pin() {
			for range i {
				b.m.unpin()
			}
			return nil
		}
		s.set(b.m, off, len(b.buf.data))
		s.begin(OpSend, c, q)
		s.cast, s.sum = x, b.sum
		s.since.Store(b.since.Load())
	}
	b.sending.Store(x)
	x.split()
	return x
}

// split makes a part of the sends to the connections of each queue pair.
func (x *broadcast) split() {
	for i := range x.sends {
		s := &x.sends[i]
		ln := s.conn.Load().lane()
		at := slices.IndexFunc(x.parts, func(p castPart) bool { return p.ln == ln })
		if at < 0 {
			at = len(x.parts)
			x.parts = append(x.parts, castPart{ln: ln, group: x.g.id})
		}
		x.parts[at].sends = append(x.parts[at].sends, s)
	}
}

// await waits until the connection is at an adapter.
func (b *Buffer) await() {
	c := b.conn.Load()
	c.mu.Lock()
	defer c.mu.Unlock()
	for c.carry != nil && c.sendStateLocked() == nil {
		c.wcond.Wait()
	}
}

// post posts the sends of a part by one request; all connections are locked, so that
// they agree with the adapter on what is outstanding. Those that cannot be sent to
// are told so.
func (p *castPart) post() {
	for _, s := range p.sends {
		s.conn.Load().mu.Lock()
	}
	p.open = make(map[uint64]*Buffer, len(p.sends))
	for _, s := range p.sends {
		c := s.conn.Load()
		s.lost = c.sendStateLocked()
		if s.lost == nil && (c.lane() != p.ln || c.carry != nil) {
			s.lost = ErrReset // it left meanwhile
		}
		if s.lost == nil {
			p.open[c.id.Load()] = s
			p.enterLocked(s)
		}
	}
	// With the first response the dispatcher waits for the locks.
	if n := len(p.open); n > 0 {
		b := p.sends[0]
		f := sendFields(p.group, &b.buf)
		f.Flags, f.Length = abi.FlagGroup, uint32(len(b.buf.data))
		var err error
		if p.tag, err = p.ln.start(request{kind: kindCast, cast: p}, f, true); err == nil {
			p.ln.a.host.broadcastSends.Add(uint64(n))
		} else {
			for _, s := range p.open {
				s.leaveLocked()
				s.lost = err
			}
		}
	}
	for _, s := range p.sends {
		c := s.conn.Load()
		if s.lost != nil {
			s.terminal = true
			s.endSendLocked()
		}
		c.mu.Unlock()
	}
}

// enterLocked enters a send that is about to be posted.
func (p *castPart) enterLocked(s *Buffer) {
	c := s.conn.Load()
	s.part = p
	s.buf.filled = uint32(len(s.buf.data))
	s.posted.Store(true)
	c.sends++
	c.requests++
	if p.ln.a.opts.CarryOver {
		c.kept = append(c.kept, keptSend{buf: &s.buf, posted: true})
	}
}

// leaveLocked undoes enterLocked.
func (b *Buffer) leaveLocked() {
	c := b.conn.Load()
	b.part = nil
	b.posted.Store(false)
	c.sends--
	c.requests--
	c.kept = slices.DeleteFunc(c.kept, func(k keptSend) bool { return k.buf == &b.buf })
}

// cancel asks for what is open of a part.
func (p *castPart) cancel() (err error) {
	together := false
	for _, s := range p.sends {
		c := s.conn.Load()
		c.mu.Lock()
		switch {
		case !s.posted.Load() || s.cancel != cancelNone:
		case s.part == nil: // it was sent again after a stop, alone
			err = errors.Join(err, s.cancelLocked())
		default:
			s.cancel = cancelAnswered // nobody says how many bytes of each were fetched
			together = true
		}
		c.mu.Unlock()
	}
	if together {
		_, lost := p.ln.start(request{kind: kindCancel}, abi.Fields{Type: abi.TypeCancellation, Conn: p.group, Offset: p.tag}, true)
		err = errors.Join(err, lost)
	}
	return err
}

// cast acts on a response to a send on a group: there is one of each connection that
// the adapter sends on, the last one FINAL; or one of the group, which refuses it.
func (ln *lane) cast(r *request, f *abi.Fields) {
	p, s := r.cast, r.cast.open[f.Conn]
	final, rejected := f.Flags&abi.FlagFinal != 0, f.Type == abi.TypeRejected
	refused := rejected || final && f.Conn == p.group
	switch {
	case !rejected && (f.Type != abi.TypeBufferDone || !pointed(f)):
		ln.a.bad.kind.Add(1)
		return
	case !final && (refused || s != nil && len(p.open) == 1):
		ln.a.bad.final.Add(1)
		return
	case !refused && s == nil:
		ln.a.bad.conn.Add(1)
		return
	case !refused && f.Length > s.buf.filled:
		ln.a.bad.length.Add(1)
		return
	}
	if final {
		ln.mu.Lock()
		ln.reqs.remove(f.Tag)
		ln.mu.Unlock()
	}
	status := abi.Status(f.Aux)
	if !refused {
		delete(p.open, f.Conn)
		s.notePoint(f)
		s.conn.Load().sent(&s.buf, status, f.Length)
	}
	if !final {
		return
	}
	open := p.open
	p.open = nil
	for _, s := range open {
		c := s.conn.Load()
		if refused && status != abi.StatusBadConnection {
			c.sent(&s.buf, status, 0)
		} else {
			c.sent(&s.buf, c.leftOut(), 0)
		}
	}
}

// leftOut is the status of a broadcast that the adapter did not send on c: c has
// failed, or a stop that is under way takes it along, and the bytes are sent where it
// arrives.
func (c *Conn) leftOut() abi.Status {
	c.mu.Lock()
	defer c.mu.Unlock()
	var s *statusError
	switch {
	case errors.As(c.werr, &s):
		return s.status
	case c.werr == nil && !c.closed && !c.wrShut && c.lane().a.opts.CarryOver:
		return abi.StatusCancelled
	}
	return abi.StatusClosed
}

// lose ends the sends that will have no response.
func (p *castPart) lose(err error) {
	open := p.open
	p.open = nil
	for _, s := range open {
		s.conn.Load().sendLost(&s.buf, err)
	}
}

// told notes that the application has the completion of one of the sends, and
// reports whether it was the last one: then the buffer is free.
func (x *broadcast) told() bool {
	if x.left--; x.left > 0 {
		return false
	}
	x.b.sending.Store(nil)
	x.b.busy.Store(false)
	return true
}
