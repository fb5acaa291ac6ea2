// SPDX-License-Identifier: Apache-2.0

package guestdriver

import (
	"net/netip"
	"sync"

	"toebox/vdev/abi"
)

// GroupBy are the attributes that a [GroupKey] is made of.
type GroupBy uint8

// Attributes of SPEC.md §14.4; a connection is in the group of those together that
// were set on it last.
const (
	GroupByPort     GroupBy = 1
	GroupByPriority GroupBy = 2
	GroupByClass    GroupBy = 4
	GroupByID       GroupBy = byExplicitID
)

// Where what a key is made of stands in the id of a group (SPEC.md §14.4), and the
// ids from which on they are the driver's own.
const (
	groupPriorityShift = 56
	groupClassShift    = 48
	groupPortShift     = 32
	driverGroups       = 1 << 31
)

// GroupKey says what the connections of a [ReceiveGroup] have in common: the values of
// the attributes that By names, all of them; those of the others are 0. With By 0 it
// is the pool of the adapter, whose buffers are for any connection that has no
// other one (RX07), as its [ChoicePolicy] says.
type GroupKey struct {
	By       GroupBy
	Port     int // local
	Priority int // of Schedule
	Class    int // of Schedule
	ID       int // below 2^31; 0: one that no other group has
}

// newGroupID is an id of a group that is nobody else's.
func (a *Adapter) newGroupID() uint64 {
	return byExplicitID<<groupByShift | driverGroups | uint64(a.groups.Add(1))
}

// id judges the key and returns the id of its group.
func (k *GroupKey) id(a *Adapter) (uint64, error) {
	bad := func(attr abi.Attribute) (uint64, error) {
		return 0, &AttributeError{"set", attr, abi.StatusBadValue}
	}
	most := func(by GroupBy, v int) int {
		if k.By&by == 0 {
			return 0
		}
		return v
	}
	switch {
	case k.By&^(GroupByPort|GroupByPriority|GroupByClass|GroupByID) != 0:
		return bad(abi.AttrGroupBy)
	case k.Port < 0 || k.Port > most(GroupByPort, 0xffff):
		return bad(abi.AttrLocal)
	case k.Priority < 0 || k.Priority > most(GroupByPriority, 7):
		return bad(abi.AttrPriority)
	case k.Class < 0 || k.Class > most(GroupByClass, 0xff):
		return bad(abi.AttrQoSClass)
	case k.ID < 0 || k.ID > most(GroupByID, driverGroups-1):
		return bad(abi.AttrGroup)
	}
	low := uint64(k.ID)
	if k.By&GroupByID != 0 && low == 0 {
		low = uint64(uint32(a.newGroupID()))
	}
	return uint64(k.By)<<groupByShift | uint64(k.Priority)<<groupPriorityShift | uint64(k.Class)<<groupClassShift |
		uint64(k.Port)<<groupPortShift | low, nil
}

// ReceiveGroup is a set of connections that receive into the same buffers (MM04):
// memory in proportion to what is in flight, of the application's own. A buffer that
// was posted is for the first connection of the group whose bytes find no buffer of its
// own (Conn.PostBuffer); its completion says which, and is Final: it has these
// bytes, in the order of the stream, and is posted again when they were used. Where
// connections are to be read with Read, a [Pool] does that by itself.
//
//	free ── Post ──> posted ── filled ──> free, with a completion
//	                  ^   │
//	                  │   └── filled for a connection that is no member ──> lent
//	                  └──────────────────── read by Read ──────────────────┘
//
// Members are those connections that were taken in by Add, or arrived at a listener
// with SetReceiveGroup. Their bytes, those that the driver has already too, come by
// completions, and so does the end of the stream: by one without a Buffer, Final, with
// Err io.EOF, net.ErrClosed, or what Read would return. What comes for others,
// which have the same attributes by chance, is for Read, as ever (not for buffers of
// PostBuffer: who uses these is better a member); so does a connection that is not
// read hold buffers of the group.
//
// Groups whose completions go to one queue go together: a member of one takes buffers
// of the others, such as those of the pool.
//
// Buffers stay posted over resets and orderly stops of the adapter. With
// Options.CarryOver so do members; one that goes on on another adapter ends here.
// Datagrams that come to buffers of a group, of endpoints that have none of their own at
// the moment, are dropped, as others are for want of room.
type ReceiveGroup struct {
	a   *Adapter
	key GroupKey
	id  uint64 // 0: the pool
	q   *CompletionQueue

	mu          sync.Mutex // after Conn.mu, before lane.mu
	first, last *Buffer    // those that are not the application's, in order of their posts
	posted      []int      // by lane: those that the adapter has
	idle        []int      // by lane: those that it is to get
	members     map[*Conn]struct{}
	hungry      map[*Conn]struct{} // members with bytes in the driver that wait for a buffer
	recalling   *Buffer            // a posted buffer that was asked for, for them
	closed      bool
	stats       ReceiveGroupStats
}

// ReceiveGroupStats count what became of the buffers of a group.
type ReceiveGroupStats struct {
	Posted  int    // buffers that the adapter has, or gets as soon as it can
	Lent    int    // ... that connections have which are no members
	Members int    // connections
	Buffers uint64 // completions with bytes
	Bytes   uint64 // ... and these
	Lends   uint64 // times that a buffer was filled for a connection that is no member
}

// groupPlace is where a buffer of a group is.
type groupPlace uint8

const (
	groupIdle   groupPlace = iota // the adapter is to get it
	groupPosted                   // the adapter has it
	groupLent                     // a connection has it that is no member, or whose turn is to come
)

// NewReceiveGroup returns a group without buffers and members. q gets the completions
// of all its buffers.
func (a *Adapter) NewReceiveGroup(key GroupKey, q *CompletionQueue) (*ReceiveGroup, error) {
	id, err := key.id(a)
	if err != nil {
		return nil, err
	}
	key.ID = int(uint32(id))
	g := &ReceiveGroup{
		a: a, key: key, id: id, q: q, posted: make([]int, len(a.lanes)), idle: make([]int, len(a.lanes)),
		members: map[*Conn]struct{}{}, hungry: map[*Conn]struct{}{},
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.closing {
		return nil, errClosed
	}
	a.receivers[g] = struct{}{}
	return g, nil
}

// Key returns what the group was made with, and the ID that it got.
func (g *ReceiveGroup) Key() GroupKey { return g.key }

// Stats returns what became of the buffers so far.
func (g *ReceiveGroup) Stats() ReceiveGroupStats {
	g.mu.Lock()
	defer g.mu.Unlock()
	s := g.stats
	for i := range g.posted {
		s.Posted += g.posted[i] + g.idle[i]
	}
	s.Members = len(g.members)
	return s
}

// Post posts a buffer for the group, behind those posted before, at the queue pair that
// has the fewest of them. With an error nothing was posted, and the buffer is free.
func (g *ReceiveGroup) Post(b *Buffer) error {
	switch {
	case b.m.a != g.a:
		return errMemory
	case !b.busy.CompareAndSwap(false, true):
		return b.refuse("ReceiveGroup.Post")
	case !b.m.pin():
		b.busy.Store(false)
		return errMemory
	}
	b.begin(OpGroup, nil, g.q)
	b.guard()
	g.mu.Lock()
	if g.closed {
		g.mu.Unlock()
		b.unclaim()
		return errClosed
	}
	at := 0
	for i := range g.posted {
		if g.posted[i]+g.idle[i] < g.posted[at]+g.idle[at] {
			at = i
		}
	}
	ln := g.a.lanes[at]
	g.q.lane.Store(ln)
	b.group.Store(g)
	b.buf.lane, b.withdrawn = at, false
	b.link(&g.first, &g.last)
	b.place = groupIdle
	g.idle[at]++
	hungry := len(g.hungry) > 0
	if !hungry {
		g.giveLocked(ln, b)
	}
	g.mu.Unlock()
	if hungry {
		g.supply(ln)
	}
	return nil
}

// supply gives idle buffers to members that wait for them, then those of a lane to the
// adapter. The caller holds no lock.
func (g *ReceiveGroup) supply(ln *lane) {
	g.feed()
	g.mu.Lock()
	defer g.mu.Unlock()
	g.giveLocked(ln, nil)
}

// feed has members look that wait for a buffer.
func (g *ReceiveGroup) feed() {
	g.mu.Lock()
	if len(g.hungry) == 0 {
		g.mu.Unlock()
		return
	}
	list := make([]*Conn, 0, len(g.hungry))
	for c := range g.hungry {
		list = append(list, c)
	}
	g.mu.Unlock()
	for _, c := range list {
		c.mu.Lock()
		c.advanceLocked()
		c.mu.Unlock()
	}
}

// giveLocked gives the adapter the idle buffers of a lane, as far as there is room:
// the next buffer that is posted, or a new queue, comes to the others. only, if it is
// the only one, need not be looked for.
func (g *ReceiveGroup) giveLocked(ln *lane, only *Buffer) {
	b := g.first
	if only != nil && g.idle[ln.index] == 1 {
		b = only
	}
	for ; b != nil && g.idle[ln.index] > 0; b = b.later {
		if b.place != groupIdle || b.buf.lane != ln.index {
			continue
		}
		f := abi.Fields{Type: abi.TypeBufferAvailable, Base: b.buf.iova, Conn: g.id, Length: uint32(len(b.buf.data))}
		if g.id != 0 {
			f.Flags = abi.FlagGroup
		}
		b.buf.filled, b.buf.consumed, b.buf.final = 0, 0, false
		b.guardFree()
		tag, err := ln.start(request{kind: kindGroup, buf: &b.buf}, f, true)
		if err != nil {
			return
		}
		b.buf.tag, b.cancel = tag, cancelNone
		g.moveLocked(b, groupPosted)
	}
}

// moveLocked notes where a buffer is.
func (g *ReceiveGroup) moveLocked(b *Buffer, to groupPlace) {
	g.countLocked(b, -1)
	b.place = to
	g.countLocked(b, 1)
	if b == g.recalling && to != groupPosted {
		g.recalling = nil
	}
}

func (g *ReceiveGroup) countLocked(b *Buffer, n int) {
	switch b.place {
	case groupIdle:
		g.idle[b.buf.lane] += n
	case groupPosted:
		g.posted[b.buf.lane] += n
	case groupLent:
		g.stats.Lent += n
	}
}

// endLocked ends the post of a buffer, of which n bytes are of c.
func (g *ReceiveGroup) endLocked(b *Buffer, c *Conn, n uint32, err error) {
	g.moveLocked(b, groupIdle)
	g.countLocked(b, -1)
	b.unlink(&g.first, &g.last)
	if n > 0 {
		g.stats.Buffers++
		g.stats.Bytes += uint64(n)
		g.a.host.groupBuffers.Add(1)
	}
	b.group.Store(nil)
	b.conn.Store(c)
	b.buf.filled = n
	b.endLocked(n, b.inspect(err))
}

// withdrawnErrLocked is the error of a buffer that was taken back.
func (g *ReceiveGroup) withdrawnErrLocked() error {
	if g.closed {
		return errClosed
	}
	return statusErr("read", abi.StatusCancelled)
}

// Cancel asks for a posted buffer back; its completion says who won, and Err of a loser
// unwraps to ECANCELED. One that is lent comes back when it was read.
func (g *ReceiveGroup) Cancel(b *Buffer) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if b.group.Load() != g {
		return nil // it is over
	}
	return g.withdrawLocked(b)
}

func (g *ReceiveGroup) withdrawLocked(b *Buffer) error {
	b.withdrawn = true
	switch b.place {
	case groupIdle:
		g.endLocked(b, nil, 0, g.withdrawnErrLocked())
	case groupPosted:
		return g.recallLocked(b)
	}
	return nil
}

// recallLocked asks the adapter for a buffer, once.
func (g *ReceiveGroup) recallLocked(b *Buffer) error {
	if b.cancel != cancelNone {
		return nil
	}
	_, err := g.a.lanes[b.buf.lane].start(request{kind: kindCancel},
		abi.Fields{Type: abi.TypeCancellation, Conn: g.id, Offset: b.buf.tag}, true)
	if err == nil {
		b.cancel = cancelAsked
	}
	return err
}

// Close takes the buffers back, each with a completion, net.ErrClosed if nothing came
// into it before. Members go on with Read; what has come for them by then is theirs.
func (g *ReceiveGroup) Close() error {
	g.a.mu.Lock()
	delete(g.a.receivers, g)
	g.a.mu.Unlock()
	g.end()
	return nil
}

func (g *ReceiveGroup) end() {
	g.mu.Lock()
	g.closed = true
	for b := g.first; b != nil; {
		later := b.later
		_ = g.withdrawLocked(b) // an error means that a reset takes it back
		b = later
	}
	members := g.members
	g.members, g.hungry = map[*Conn]struct{}{}, map[*Conn]struct{}{}
	g.mu.Unlock()
	for c := range members {
		c.mu.Lock()
		if c.member != nil && c.member.g == g {
			c.member = nil
			c.advanceLocked()
			c.rcond.Broadcast()
		}
		c.mu.Unlock()
	}
}

// fitsGroup reports whether a response may be one to a buffer of a group; of a
// datagram that was cut the length is what it had.
func (b *Buffer) fitsGroup(f *abi.Fields) bool {
	if f.Type == abi.TypeBufferReceive {
		return f.Offset == 0 && (abi.Status(f.Aux) == abi.StatusTruncated || int64(f.Length) <= int64(len(b.buf.data)))
	}
	return f.Length == 0
}

// grouped acts on the terminal response to a buffer of a group. It was judged by
// fitsGroup.
func (ln *lane) grouped(b *Buffer, f *abi.Fields) {
	g := b.group.Load()
	if f.Type != abi.TypeBufferReceive {
		if g.back(b, abi.Status(f.Aux)) {
			g.supply(ln)
		}
		return
	}
	e := ln.a.conn(f.Conn)
	c, _ := e.(*Conn)
	switch {
	case c == nil && e != nil:
		ln.a.host.groupDrops.Add(1) // a datagram
	case c == nil || c.lane() != ln:
		ln.a.bad.conn.Add(1)
	case f.Length == 0 || int64(f.Length) > int64(len(b.buf.data)):
		ln.a.bad.length.Add(1)
	case c.grouped(g, b, f):
		g.feed() // those that the buffer was asked for want another one
		return
	}
	g.again(b)
}

// again posts a buffer again that nobody has.
func (g *ReceiveGroup) again(b *Buffer) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.moveLocked(b, groupIdle)
	if b.withdrawn {
		g.endLocked(b, nil, 0, g.withdrawnErrLocked())
		return
	}
	g.giveLocked(g.a.lanes[b.buf.lane], b)
}

// back acts on a buffer that comes back without bytes, and reports whether it was asked
// for, for a member. One that was cancelled by a stop waits for what comes after that.
func (g *ReceiveGroup) back(b *Buffer, s abi.Status) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.moveLocked(b, groupIdle)
	switch {
	case b.withdrawn:
		g.endLocked(b, nil, 0, g.withdrawnErrLocked())
	case s != abi.StatusCancelled:
		g.endLocked(b, nil, 0, statusErr("read", s))
	default:
		return b.cancel != cancelNone
	}
	return false
}

// lost acts on a buffer that will have no response.
func (g *ReceiveGroup) lost(b *Buffer) { g.back(b, abi.StatusCancelled) }

// postGroups gives a new queue the buffers of the receive groups.
func (a *Adapter) postGroups(ln *lane) {
	for _, g := range a.receiveGroups() {
		g.mu.Lock()
		g.giveLocked(ln, nil)
		g.mu.Unlock()
	}
}

func (a *Adapter) receiveGroups() (all []*ReceiveGroup) {
	a.mu.RLock()
	defer a.mu.RUnlock()
	for g := range a.receivers {
		all = append(all, g)
	}
	return all
}

// endGroups ends the groups of an adapter that is closed.
func (a *Adapter) endGroups() {
	for _, g := range a.receiveGroups() {
		g.end()
	}
}

// attrs are what makes connections members.
func (g *ReceiveGroup) attrs() (all []scalarAttr) {
	if g == nil || g.key.By == 0 {
		return nil
	}
	for _, s := range []struct {
		by    GroupBy
		attr  abi.Attribute
		value int
	}{
		{GroupByPriority, abi.AttrPriority, g.key.Priority}, {GroupByClass, abi.AttrQoSClass, g.key.Class},
		{GroupByID, abi.AttrGroup, g.key.ID},
	} {
		if g.key.By&s.by != 0 {
			all = append(all, scalarAttr{s.attr, uint64(s.value)})
		}
	}
	return append(all, scalarAttr{abi.AttrGroupBy, uint64(g.key.By)})
}

// groupFields are attributes as those of a policy.
func groupFields(attrs []scalarAttr) (all []field) {
	for _, s := range attrs {
		v := int(s.value)
		all = append(all, field{s.attr, &v})
	}
	return all
}

// wrongPort is an error if a local port is not the group's.
func (g *ReceiveGroup) wrongPort(at netip.AddrPort) error {
	if g.key.By&GroupByPort != 0 && int(at.Port()) != g.key.Port {
		return &AttributeError{"set", abi.AttrLocal, abi.StatusBadValue}
	}
	return nil
}
