// SPDX-License-Identifier: Apache-2.0

package guestdrivertest

import (
	"encoding/binary"
	"maps"
	"net/netip"
	"slices"

	"toebox/guestdriver"
	"toebox/vdev/abi"
)

// DMA is guestdriver.DMA.
type DMA = guestdriver.DMA

// inboxLimit is how many bytes wait for receive buffers before sends wait.
const inboxLimit = 256 << 10

type queue struct {
	in, ou, event []byte
	inLog2        uint
	outLog2       uint
	inNext        abi.Index
	outNext       abi.Index
	vector        int
	paused        bool
	out           []abi.Fields // to be published
	connects      map[uint32]bool
	casts         map[uint32]int      // by tag: sends of a group that are open
	shared        map[uint64][]posted // by group: its buffers; 0: those for any connection
}

type listener struct {
	id      uint64
	q       int
	port    uint16
	v6      bool
	scalars map[abi.Attribute]uint64
}

type posted struct {
	f       abi.Fields
	filled  uint32 // of a redirection: bytes moved
	skipped uint32
}

type conn struct {
	id        uint64
	q         int
	peer      *conn // itself for an echo; nil when it is gone
	local     netip.AddrPort
	remote    netip.AddrPort
	bufs      []posted
	inbox     []byte
	shown     int // bytes of the inbox that a peek has shown
	sends     []abi.Fields
	finOut    bool // this end has sent its FIN, behind sends
	finIn     bool // the peer's FIN is behind the inbox
	finTold   bool
	closing   uint32 // tag of a graceful termination
	noReceive bool
	scalars   map[abi.Attribute]uint64 // its own policies
}

// commandLocked does a queue command.
func (f *Fake) commandLocked(q int, c abi.QueueCommand) {
	reg := func(r uint32) uint64 { return uint64(f.regs[abi.RegQueueBase+uint32(q)*abi.RegQueueStride+r]) }
	status := abi.StatusOK
	switch c {
	case abi.QueueCreate:
		sizes := reg(abi.QRegSizes)
		qu := &queue{
			inLog2: uint(sizes & 0xff), outLog2: uint(sizes >> 8 & 0xff),
			vector: int(reg(abi.QRegVector)), connects: map[uint32]bool{}, casts: map[uint32]int{},
		}
		switch {
		case f.refusing:
			status = abi.StatusBadMemory
		case f.queues[q] != nil:
			status = abi.StatusQueueBusy
		case f.regs[abi.RegStatus]&abi.StatusRunning == 0:
			status = abi.StatusNotRunning
		case qu.inLog2 < 4 || qu.inLog2 > 16 || qu.outLog2 < 4 || qu.outLog2 > 16:
			status = abi.StatusBadSize
		default:
			qu.in = f.bytesLocked(reg(abi.QRegInLo)|reg(abi.QRegInHi)<<32, 32<<qu.inLog2)
			qu.ou = f.bytesLocked(reg(abi.QRegOutLo)|reg(abi.QRegOutHi)<<32, 32<<qu.outLog2)
			qu.event = f.bytesLocked(reg(abi.QRegEventLo)|reg(abi.QRegEventHi)<<32, 256)
			if qu.in == nil || qu.ou == nil || qu.event == nil {
				status = abi.StatusBadMemory
				break
			}
			for i := range 1 << qu.outLog2 {
				if abi.LoadWord(qu.ou[i*32:])&0x80 == 0 {
					status = abi.StatusBadOwner
				}
			}
			if status == abi.StatusOK {
				f.queues[q] = qu
				f.kickLocked()
			}
		}
	case abi.QueueDestroy:
		f.queues[q] = nil
	case abi.QueuePause, abi.QueueResume:
		if f.queues[q] != nil {
			f.queues[q].paused = c == abi.QueuePause
			f.kickLocked()
		}
	default:
		status = abi.StatusBadCommand
	}
	f.regs[abi.RegQueueBase+uint32(q)*abi.RegQueueStride+abi.QRegState] = uint32(status) << 16
}

// passLocked takes requests, acts on them and publishes responses; it returns
// whether something happened.
func (f *Fake) passLocked(qi int, q *queue) bool {
	did := false
	for n := 0; !q.paused && n < 1<<q.inLog2; n++ {
		slot := q.in[q.inNext.Slot(q.inLog2)*32:][:32]
		w := abi.LoadWord(slot)
		if w&0x80 == 0 {
			break
		}
		var d [32]byte
		copy(d[:], slot)
		req := abi.Descriptor(d[:]).Decode()
		abi.StoreWord(slot, w&^0x80)
		old := q.inNext
		q.inNext = old.Add(1)
		if abi.EventWord(abi.LoadWord(q.event[abi.EventInFreed:])).Wants(old, q.inNext) {
			f.signalLocked(q.vector)
		}
		did = true
		if f.intercept == nil || !f.intercept(qi, req) {
			f.requestLocked(qi, q, req)
		}
	}
	for _, c := range f.conns {
		if c.q == qi && f.moveLocked(c) {
			did = true
		}
	}
	if f.publishLocked(q) {
		did = true
	}
	if !did {
		abi.StoreWord(q.event[abi.EventInPublished:], uint32(abi.EventAt(q.inNext)))
		slot := q.in[q.inNext.Slot(q.inLog2)*32:]
		did = !q.paused && abi.LoadWord(slot)&0x80 != 0
	}
	return did
}

// publishLocked writes responses as far as there are free slots.
func (f *Fake) publishLocked(q *queue) bool {
	old := q.outNext
	for len(q.out) > 0 {
		slot := abi.Descriptor(q.ou[q.outNext.Slot(q.outLog2)*32:][:32])
		if abi.LoadWord(slot)&0x80 == 0 {
			abi.StoreWord(q.event[abi.EventOutFreed:], uint32(abi.EventAt(q.outNext.Add(-(1 << q.outLog2)))))
			if abi.LoadWord(slot)&0x80 == 0 {
				break
			}
		}
		slot.EncodeBody(&q.out[0])
		abi.StoreWord(slot, q.out[0].Word(false))
		q.out = q.out[1:]
		q.outNext = q.outNext.Add(1)
	}
	if q.outNext == old {
		return false
	}
	if abi.EventWord(abi.LoadWord(q.event[abi.EventOutPublished:])).Wants(old, q.outNext) {
		f.signalLocked(q.vector)
	}
	return true
}

// cancelLocked ends a send or a receive buffer of a connection.
func (f *Fake) cancelLocked(c *conn, tag uint32) abi.Status {
	for i, s := range c.sends {
		if s.Tag == tag {
			c.sends = slices.Delete(c.sends, i, i+1)
			f.sentLocked(c, s, abi.StatusCancelled, 0)
			return abi.StatusOK
		}
	}
	for i, b := range c.bufs {
		if b.f.Tag == tag {
			c.bufs = slices.Delete(c.bufs, i, i+1)
			f.answerLocked(c.q, b.back(abi.StatusCancelled))
			for b.f.Aux != 0 && i < len(c.bufs) && c.bufs[i].f.Aux>>8 == b.f.Aux>>8 { // pieces behind it
				f.answerLocked(c.q, c.bufs[i].back(abi.StatusCancelled))
				c.bufs = slices.Delete(c.bufs, i, i+1)
			}
			return abi.StatusOK
		}
	}
	return abi.StatusTooLate
}

// answerLocked queues a response.
func (f *Fake) answerLocked(q int, r abi.Fields) {
	if qu := f.queues[q]; qu != nil {
		qu.out = append(qu.out, r)
	}
}

// Answer returns a FINAL response of type t to a request.
func Answer(req abi.Fields, t abi.Type, s abi.Status) abi.Fields {
	return abi.Fields{Type: t, Flags: abi.FlagFinal, Aux: uint16(s), Tag: req.Tag, Conn: req.Conn}
}

func (f *Fake) requestLocked(qi int, q *queue, r abi.Fields) {
	c := f.conns[r.Conn]
	switch r.Type {
	case abi.TypeBufferSend:
		if r.Flags&abi.FlagGroup != 0 {
			f.castLocked(qi, q, r)
			return
		}
		if c == nil || c.finOut {
			a := Answer(r, abi.TypeBufferDone, abi.StatusBadConnection)
			a.Base = r.Base
			f.answerLocked(qi, a)
			return
		}
		c.sends = append(c.sends, r)
	case abi.TypeBufferAvailable:
		if r.Flags == abi.FlagGroup || r.Conn == 0 && r.Flags == 0 {
			q.shareLocked(r)
			return
		}
		if c == nil {
			f.answerLocked(qi, Answer(r, abi.TypeBufferDone, abi.StatusBadConnection))
			return
		}
		if c.finTold || c.noReceive {
			s := abi.StatusEndOfStream
			if c.noReceive {
				s = abi.StatusClosed
			}
			f.answerLocked(qi, Answer(r, abi.TypeBufferDone, s))
			return
		}
		f.availableLocked(c, r)
	case abi.TypeConnect:
		f.connectLocked(qi, q, r)
	case abi.TypeListen:
		f.listenLocked(qi, r)
	case abi.TypeTermination:
		f.terminateLocked(qi, c, r)
	case abi.TypeCancellation:
		s := abi.StatusBadTag
		switch {
		case c != nil:
			s = f.cancelLocked(c, r.Offset)
		case q.casts[r.Offset] > 0:
			for _, c := range f.conns {
				if slices.ContainsFunc(c.sends, func(s abi.Fields) bool { return s.Tag == r.Offset }) {
					s = f.cancelLocked(c, r.Offset)
				}
			}
		case q.connects[r.Offset]:
			delete(q.connects, r.Offset)
			f.answerLocked(qi, abi.Fields{Type: abi.TypeCompletion, Flags: abi.FlagFinal, Tag: r.Offset, Aux: uint16(abi.StatusCancelled)})
			s = abi.StatusOK
		case q.shared[r.Conn] != nil:
			s = f.cancelSharedLocked(qi, r)
		}
		f.answerLocked(qi, Answer(r, abi.TypeCancelled, s))
	case abi.TypeConnectionAttr, abi.TypeAdapterAttr:
		f.attributeLocked(qi, c, r)
	default:
		f.answerLocked(qi, Answer(r, abi.TypeRejected, abi.StatusBadType))
	}
}

func (f *Fake) idLocked() uint64 {
	f.nextID++
	return uint64(f.regs[abi.RegGeneration])<<48 | f.nextID
}

// targetLocked returns the first target of a request and the policies for it.
func (f *Fake) targetLocked(r abi.Fields) (target abi.Target, scalars map[abi.Attribute]uint64, s abi.Status) {
	buf := f.bytesLocked(r.Base, int(r.Length))
	scalars = maps.Clone(f.scalars)
	for at := 0; ; {
		t, next, ok := abi.NextTuple(buf, at)
		switch {
		case !ok || !t.Set:
			return target, nil, abi.StatusBadControlBuffer
		case t.Attr == abi.AttrTarget:
			target, s = abi.ParseTarget(t.Value)
			return target, scalars, s
		case len(t.Value) == 8:
			if s := judge(t.Attr, binary.LittleEndian.Uint64(t.Value)); s != abi.StatusOK {
				return target, nil, s
			}
			scalars[t.Attr] = binary.LittleEndian.Uint64(t.Value)
		}
		at = next
	}
}

func (f *Fake) connectLocked(qi int, q *queue, r abi.Fields) {
	t, scalars, s := f.targetLocked(r)
	a := Answer(r, abi.TypeCompletion, s)
	if s != abi.StatusOK {
		f.answerLocked(qi, a)
		return
	}
	if t.Remote.Port() == HangPort {
		q.connects[r.Tag] = true
		return
	}
	f.nextPort++
	local := netip.AddrPortFrom(address(t.V6), f.nextPort)
	c := &conn{id: f.idLocked(), q: qi, local: local, remote: t.Remote, scalars: scalars}
	if t.Remote.Port() == EchoPort {
		c.peer = c
	} else if l := f.listenerLocked(t.Remote.Port(), t.V6); l != nil {
		p := &conn{id: f.idLocked(), q: l.q, local: t.Remote, remote: local, peer: c, scalars: maps.Clone(l.scalars)}
		c.peer = p
		f.conns[p.id] = p
		arrival := abi.Fields{
			Type: abi.TypeArrival, Flags: abi.FlagFinal, Conn: p.id, Base: l.id,
			Offset: uint32(l.port)<<16 | uint32(local.Port()),
		}
		if !t.V6 {
			b := local.Addr().As4()
			arrival.Length = binary.BigEndian.Uint32(b[:])
		}
		f.answerLocked(l.q, arrival)
	} else {
		a.Aux = uint16(abi.StatusRefused)
		f.answerLocked(qi, a)
		return
	}
	f.conns[c.id] = c
	a.Conn, a.Length = c.id, uint32(local.Port())
	f.answerLocked(qi, a)
}

func address(v6 bool) netip.Addr {
	if v6 {
		return netip.MustParseAddr("fd00::2")
	}
	return netip.MustParseAddr("10.0.2.15")
}

func (f *Fake) listenerLocked(port uint16, v6 bool) *listener {
	for _, l := range f.listeners {
		if l.port == port && l.v6 == v6 {
			return l
		}
	}
	return nil
}

func (f *Fake) listenLocked(qi int, r abi.Fields) {
	t, scalars, s := f.targetLocked(r)
	port := t.Local.Port()
	if port == 0 {
		f.nextPort++
		port = f.nextPort
	}
	if s == abi.StatusOK && f.listenerLocked(port, t.V6) != nil {
		s = abi.StatusAddressInUse
	}
	a := Answer(r, abi.TypeListenResponse, s)
	if s == abi.StatusOK {
		l := &listener{id: f.idLocked(), q: qi, port: port, v6: t.V6, scalars: scalars}
		f.listeners[l.id] = l
		a.Conn, a.Length = l.id, uint32(port)
	}
	f.answerLocked(qi, a)
}

func (f *Fake) terminateLocked(qi int, c *conn, r abi.Fields) {
	a := Answer(r, abi.TypeTerminated, abi.StatusOK)
	if l := f.listeners[r.Conn]; l != nil {
		delete(f.listeners, r.Conn)
		a.Length = abi.EndedListener
		f.answerLocked(qi, a)
		return
	}
	if c == nil {
		a.Aux = uint16(abi.StatusBadConnection)
		f.answerLocked(qi, a)
		return
	}
	switch r.Length {
	case abi.TerminateGraceful:
		c.finOut, c.noReceive, c.closing = true, true, r.Tag
	case abi.TerminateAbort:
		for _, s := range c.sends {
			f.sentLocked(c, s, abi.StatusClosed, 0)
		}
		c.sends = nil
		if p := c.peer; p != nil && p != c {
			f.resetLocked(p)
		}
		f.endLocked(c, abi.StatusClosed)
		a.Length = abi.EndedHostReset
		f.answerLocked(qi, a)
	case abi.TerminateSend:
		c.finOut = true
		a.Length = abi.EndedHalfClosed
		f.answerLocked(qi, a)
	case abi.TerminateReceive:
		c.noReceive = true
		a.Length = abi.EndedHalfClosed
		f.answerLocked(qi, a)
	}
}

// endLocked ends a connection's requests and takes it out.
func (f *Fake) endLocked(c *conn, s abi.Status) {
	for _, b := range c.bufs {
		f.answerLocked(c.q, b.back(s))
	}
	c.bufs = nil
	if c.peer != nil && c.peer != c {
		c.peer.peer = nil
	}
	c.peer = nil
	delete(f.conns, c.id)
}

// resetLocked tells one end that the other reset the connection.
func (f *Fake) resetLocked(c *conn) {
	c.peer = nil
	for _, s := range c.sends {
		f.sentLocked(c, s, abi.StatusReset, 0)
	}
	for _, b := range c.bufs {
		f.answerLocked(c.q, b.back(abi.StatusReset))
	}
	c.sends, c.bufs, c.inbox = nil, nil, nil
	f.answerLocked(c.q, abi.Fields{Type: abi.TypeTerminated, Flags: abi.FlagFinal, Conn: c.id, Length: abi.EndedPeerReset})
}

// moveLocked moves bytes of one connection: its sends to the peer's inbox, its
// inbox to its buffers, then its FINs.
func (f *Fake) moveLocked(c *conn) bool {
	did := false
	for len(c.sends) > 0 && (c.peer == nil || len(c.peer.inbox) < inboxLimit) {
		s := c.sends[0]
		c.sends = c.sends[1:]
		data := f.bytesLocked(s.Base+uint64(s.Offset), int(s.Length-s.Offset))
		if c.peer != nil && !c.peer.noReceive {
			c.peer.inbox = append(c.peer.inbox, data...)
		}
		f.sentLocked(c, s, abi.StatusOK, uint32(len(data)))
		did = true
	}
	if c.finOut && len(c.sends) == 0 && c.peer != nil && !c.peer.finIn {
		c.peer.finIn = true
		did = true
		f.kickLocked()
	}
	if c.noReceive && len(c.inbox) > 0 {
		c.inbox = nil
	}
	for len(c.inbox) > 0 && len(c.bufs) > 0 && f.deliverLocked(c) {
		did = true
		f.kickLocked()
	}
	for len(c.inbox) > 0 && len(c.bufs) == 0 && f.deliverSharedLocked(c) {
		did = true
		f.kickLocked()
	}
	if c.finIn && len(c.inbox) == 0 && !c.finTold && !c.noReceive {
		c.finTold = true
		for _, b := range c.bufs {
			f.answerLocked(c.q, b.back(abi.StatusEndOfStream))
		}
		c.bufs = nil
		f.answerLocked(c.q, abi.Fields{Type: abi.TypeTerminated, Flags: abi.FlagFinal, Conn: c.id, Length: abi.EndedStream})
		did = true
	}
	if c.closing != 0 && len(c.sends) == 0 {
		tag := c.closing
		c.closing = 0
		f.endLocked(c, abi.StatusClosed)
		f.answerLocked(c.q, abi.Fields{Type: abi.TypeTerminated, Flags: abi.FlagFinal, Tag: tag, Conn: c.id})
		did = true
	}
	return did
}
