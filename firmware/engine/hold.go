// SPDX-License-Identifier: Apache-2.0

package engine

import (
	"sync/atomic"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"
)

// Holder is implemented by engines that tell how much received payload they
// hold, and hold no more than they are let.
type Holder interface {
	// Held is how many received bytes nobody has read, of all endpoints, and of
	// streams those on their way through the engine. A datagram counts its
	// overhead, too.
	Held() int64
	// Account sets who is asked for each arrival of payload; nil: nobody. It is
	// called from any goroutine with locks of the engine held, those of one
	// endpoint one after the other, must not block and must not call the engine.
	Account(Account)
}

// Account is where the payload that an engine holds is counted.
type Account interface {
	// Admit says how many bytes of an arrival are taken, from the first on, and
	// counts them; of a datagram all or none. The peer of a stream sends the
	// others again; what the segment acknowledges counts.
	Admit(Arrival) int
	// Release counts n bytes no more, which left the endpoint that reports to s. A
	// negative n counts bytes that came without a question.
	Release(n int, s Sink)
}

// Arrival is payload that arrives.
type Arrival struct {
	Bytes    int    // of a datagram with its overhead
	Held     int    // bytes that count for the endpoint already
	At       uint64 // of a stream: how many bytes of it were taken before
	Gap      bool   // of a stream: bytes before these have not arrived
	Datagram bool
	Sink     Sink // of a stream: where the endpoint reports to; nil: nobody has accepted it yet
}

// hold is the account of received payload of an engine.
type hold struct {
	bytes   atomic.Int64
	account atomic.Pointer[Account]
	refused atomic.Uint64 // segments that were not taken as they came
}

// admit counts what is taken of an arrival.
func (h *hold) admit(a Arrival) int {
	n := a.Bytes
	if f := h.account.Load(); f != nil {
		n = min(max((*f).Admit(a), 0), n)
	}
	h.bytes.Add(int64(n))
	if a.Datagram && n < a.Bytes {
		h.release(n, a.Sink)
		return 0
	}
	return n
}

// release counts n bytes no more.
func (h *hold) release(n int, s Sink) {
	if n == 0 {
		return
	}
	h.bytes.Add(-int64(n))
	if f := h.account.Load(); f != nil {
		(*f).Release(n, s)
	}
}

// Held is what all endpoints hold.
func (n *netstack) Held() int64 { return n.hold.bytes.Load() }

// Account sets who is asked for payload that arrives.
func (n *netstack) Account(a Account) {
	if a == nil {
		n.hold.account.Store(nil)
		return
	}
	n.hold.account.Store(&a)
}

var _ Holder = (*netstack)(nil)

// intake is what has been taken of a connection's stream, by its sequence
// numbers: what lies between next and edge is on its way through the stack, or
// waits in it for bytes before it.
type intake struct {
	known      bool   // a segment was taken, or the probe has spoken
	next, edge uint32 // RCV.NXT as the probe said last; the end of what was taken
	pending    bool   // something waits for bytes before it
	counted    int    // bytes in the engine's account
}

// ahead is how many bytes were taken and have not arrived in order. Those that
// are missing before others count.
func (i *intake) ahead() int { return max(0, int(int32(i.edge-i.next))) }

// arrivedLocked notes that n bytes have arrived in order in all; ackMu is held.
func (c *conn) arrivedLocked(n uint64, s Sink) {
	c.progress.received = max(c.progress.received, n)
	c.recountLocked(s)
}

// recountLocked lets the account say what the connection holds; ackMu is held.
func (c *conn) recountLocked(s Sink) {
	want := 0
	if !c.settled {
		want = int(c.progress.received-min(c.delivered.Load(), c.progress.received)) + c.intake.ahead()
	}
	less := c.intake.counted - want
	c.intake.counted = want
	c.engine.hold.release(less, s)
}

// took notes that k bytes left the receive queue. The stack's lock may be held.
func (c *conn) took(k int) {
	s := c.reportsTo()
	c.ackMu.Lock()
	c.delivered.Add(uint64(k))
	c.recountLocked(s)
	c.ackMu.Unlock()
}

// settle ends the account of a connection that ends: what it holds goes with it.
func (c *conn) settle() {
	s := c.reportsTo()
	c.ackMu.Lock()
	c.settled = true
	c.recountLocked(s)
	c.ackMu.Unlock()
}

// maxAhead is how far beyond what has arrived a segment may be, in bytes, and
// count: no window is larger.
const maxAhead = 2 * maxBuffer

// admit says how many of the n bytes from seq on are taken. Those that were taken
// before are, and count once: they may come again because they were lost.
func (c *conn) admit(seq uint32, n int) int {
	s := c.reportsTo()
	c.ackMu.Lock()
	defer c.ackMu.Unlock()
	if c.settled || c.peerClosed {
		return n // the stack drops them
	}
	i := &c.intake
	if !i.known {
		i.known, i.next, i.edge = true, seq, seq
	}
	edge := i.next + uint32(i.ahead())
	more := int(int32(seq + uint32(n) - edge))
	switch {
	case more <= 0:
		return n
	case more > maxAhead:
		return 0
	}
	old := n - more // negative: as many are missing, and count as well
	k := c.engine.hold.admit(Arrival{
		Bytes: more, Held: i.counted, At: c.progress.received + uint64(i.ahead()), Gap: old < 0 || i.pending, Sink: s,
	})
	i.counted += k
	if k+old <= 0 {
		i.counted -= k
		c.engine.hold.release(k, s) // nothing of the segment itself
		return 0
	}
	i.edge = edge + uint32(k)
	return old + k
}

// taken notes what the probe says about the receiver: next is RCV.NXT, and
// nothing from limit on was kept. ackMu is held, and the stack's lock.
func (i *intake) taken(next, limit uint32, pending, closed bool) {
	switch {
	case !i.known, closed, int32(i.edge-next) < 0:
		i.edge = next
	case int32(i.edge-limit) > 0:
		i.edge = limit
	}
	i.known, i.next, i.pending = true, next, pending
}

// judge says how much of a packet that starts with b is let in: as it is, or of
// a segment the first so many bytes of its payload.
func (n *netstack) judge(proto tcpip.NetworkProtocolNumber, b []byte, size int) (keep int, cut bool) {
	if fragment(proto, b) {
		return 0, !n.hasRoom(size)
	}
	s, ok := parseInbound(proto, b, size)
	if !ok || s.payload == 0 || s.is(header.TCPFlagSyn) {
		return 0, false
	}
	c := n.conns.find(s.id)
	taken := true
	if c == nil {
		c, taken = n.caller(s.id)
	}
	switch {
	case c != nil:
		keep = c.admit(s.tcp.SequenceNumber(), s.payload)
	case taken:
		keep = s.payload
	}
	if keep == s.payload {
		return keep, false
	}
	n.hold.refused.Add(1)
	return keep, true
}

// hasRoom reports whether n bytes would be taken of which nobody knows yet whose
// they are. They count when the stack has put them together.
func (n *netstack) hasRoom(size int) bool {
	k := n.hold.admit(Arrival{Bytes: size})
	n.hold.release(k, nil)
	return k == size
}

// IPv6 extension headers behind which a segment may stand, RFC 8200 section 4.
const (
	extHopByHop    = 0
	extRouting     = 43
	extFragment    = 44
	extDestination = 60
	extUnit        = 8 // bytes; of their lengths, too
)

// upperLayer says which header stands at which place behind the extension headers
// of an IPv6 packet that starts with b: a transport's, or the one where it has to
// stop. What the stack refuses is one, too.
func upperLayer(b []byte) (next uint8, at int) {
	next, at = header.IPv6(b).NextHeader(), header.IPv6MinimumSize
	for at+extUnit <= len(b) {
		h := b[at:]
		n := extUnit
		switch next {
		case extHopByHop, extDestination:
			n *= 1 + int(h[1])
		case extRouting:
			if h[3] != 0 { // segments left: it is not for this node
				return next, at
			}
			n *= 1 + int(h[1])
		case extFragment:
			if h[2] != 0 || h[3]&^6 != 0 { // offset, M: not whole
				return next, at
			}
		default:
			return next, at
		}
		if at+n > len(b) {
			return next, at
		}
		next, at = h[0], at+n
	}
	return next, at
}

// fragment reports whether a packet may be a part of a segment: nobody can say whose
// bytes these are.
func fragment(proto tcpip.NetworkProtocolNumber, b []byte) bool {
	switch {
	case proto == header.IPv4ProtocolNumber && len(b) >= header.IPv4MinimumSize:
		h := header.IPv4(b)
		return h.Protocol() == uint8(header.TCPProtocolNumber) && (h.More() || h.FragmentOffset() != 0)
	case proto == header.IPv6ProtocolNumber && len(b) >= header.IPv6MinimumSize:
		next, _ := upperLayer(b)
		return next == extFragment
	}
	return false
}
