// SPDX-License-Identifier: Apache-2.0

package engine

import (
	"encoding/binary"
	"math"
	"sync"
	"sync/atomic"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/checksum"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
)

// gate stands between the stack and the wire for one connection that leaves
// the engine or came from another:
//
//	plain -> parting -> shut       the connection leaves
//	joining -> through             it came, its numbers are translated
//	through -> parting -> shut     it leaves again
//
// The stack can only open connections. So the gate plays the peer in a
// handshake that never reaches the wire, with the peer's sequence number and
// options, and from then on adds a constant to the stack's sequence numbers
// and time stamps on their way out and takes it off acknowledgements, SACK
// blocks and echoes on their way in.
type gate struct {
	block  atomic.Uint32 // gateOpen ...
	joined atomic.Bool   // the next five are set
	came   bool          // from another engine
	id     stack.TransportEndpointID

	flow  Flow   // as it came
	shift uint32 // wire = stack + shift
	ticks uint32 // the same of time stamps
	scale uint8  // the window scale that the stack believes in

	finAcked uint32 // numbers below the flow's that our FIN has, which comes again
	peerFIN  bool   // it comes again, behind the handshake

	acked   atomic.Uint32 // what the stack has acknowledged last
	peerAck atomic.Uint32 // what the peer has acknowledged, on the wire
	edge    atomic.Uint32 // end of the window that it opened last
	sent    atomic.Uint32 // end of what the stack has sent, in its own numbers
}

// What a gate lets pass.
const (
	gateOpen    uint32 = iota
	gateParting        // what carries no payload
	gateShut           // nothing
)

// gates are those of an engine.
type gates struct {
	stack *stack.Stack
	hush  atomic.Int64  // until then unknown connections get no answer, ns of the stack's clock
	n     atomic.Int32  // gates in the map
	kept  atomic.Uint64 // segments that got no answer

	mu   sync.RWMutex
	all  map[stack.TransportEndpointID]*gate
	most int // gates that make a sweep worth while
}

// minGates is the number of gates from which those without use are looked for.
const minGates = 64

func (g *gates) get(id stack.TransportEndpointID) *gate {
	g.mu.RLock()
	defer g.mu.RUnlock()
	return g.all[id]
}

// add enters a gate; false when its connection has one that is in use.
func (g *gates) add(id stack.TransportEndpointID, x *gate) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if old := g.all[id]; old != nil && g.used(id, old) && old.block.Load() != gateShut {
		return false
	}
	if g.all == nil {
		g.all, g.most = make(map[stack.TransportEndpointID]*gate), minGates
	}
	if len(g.all) >= g.most {
		for id, old := range g.all {
			if !g.used(id, old) {
				delete(g.all, id)
			}
		}
		g.most = max(minGates, 2*len(g.all))
	}
	g.all[id] = x
	g.n.Store(int32(len(g.all)))
	return true
}

// remove takes out x, unless another stands in its place.
func (g *gates) remove(id stack.TransportEndpointID, x *gate) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.all[id] == x {
		delete(g.all, id)
		g.n.Store(int32(len(g.all)))
	}
}

// used reports whether the gate still has something to do: its connection may
// linger in the stack after its owner closed it, and one that left may come
// back.
func (g *gates) used(id stack.TransportEndpointID, x *gate) bool {
	return x.block.Load() == gateShut && g.hushed() || x.came && !x.joined.Load() || g.known(id)
}

// known reports whether the stack has a connection with these addresses.
func (g *gates) known(id stack.TransportEndpointID) bool {
	proto := header.IPv4ProtocolNumber
	if id.LocalAddress.Len() == header.IPv6AddressSize {
		proto = header.IPv6ProtocolNumber
	}
	e := g.stack.FindTransportEndpoint(proto, tcp.ProtocolNumber, id, nic)
	t, ok := e.(*tcp.Endpoint)
	return ok && tcp.EndpointState(t.State()) != tcp.StateListen
}

// quiet leaves segments of unknown connections without an answer for d.
func (g *gates) quiet(d time.Duration) {
	g.hush.Store(int64(g.now() + d))
}

func (g *gates) now() time.Duration {
	return g.stack.Clock().NowMonotonic().Sub(tcpip.MonotonicTime{})
}

func (g *gates) hushed() bool {
	until := g.hush.Load()
	if until == 0 || int64(g.now()) < until {
		return until != 0
	}
	g.hush.CompareAndSwap(until, 0)
	return false
}

// idle reports whether all packets pass as they are.
func (g *gates) idle() bool { return g.n.Load() == 0 && g.hush.Load() == 0 }

// segment is the header of a TCP segment in place.
type segment struct {
	id      stack.TransportEndpointID // as the stack sees the connection
	tcp     header.TCP                // with its options
	at      int                       // of the TCP header in the packet
	payload int
	partial bool // the checksum is the pseudo header's only
}

// parseInbound reads the headers at the start of an IP packet of size bytes.
// It reports false for what is no TCP segment, or not a whole one.
func parseInbound(proto tcpip.NetworkProtocolNumber, b []byte, size int) (s segment, ok bool) {
	at, total := 0, 0
	switch {
	case proto == header.IPv4ProtocolNumber && len(b) >= header.IPv4MinimumSize:
		ip := header.IPv4(b)
		at, total = int(ip.HeaderLength()), int(ip.TotalLength())
		if ip.Protocol() != uint8(tcp.ProtocolNumber) || ip.FragmentOffset() != 0 {
			return s, false
		}
		s.id.LocalAddress, s.id.RemoteAddress = ip.DestinationAddress(), ip.SourceAddress()
	case proto == header.IPv6ProtocolNumber && len(b) >= header.IPv6MinimumSize:
		ip := header.IPv6(b)
		total = header.IPv6MinimumSize + int(ip.PayloadLength())
		var next uint8
		if next, at = upperLayer(b); next != uint8(tcp.ProtocolNumber) {
			return s, false
		}
		s.id.LocalAddress, s.id.RemoteAddress = ip.DestinationAddress(), ip.SourceAddress()
	default:
		return s, false
	}
	if total > size || at < header.IPv4MinimumSize || len(b) < at+header.TCPMinimumSize {
		return s, false
	}
	t := header.TCP(b[at:])
	n := int(t.DataOffset())
	if n < header.TCPMinimumSize || n > len(t) || at+n > total {
		return s, false
	}
	s.tcp, s.at, s.payload = t[:n], at, total-at-n
	s.id.LocalPort, s.id.RemotePort = t.DestinationPort(), t.SourcePort()
	return s, true
}

// parseOutbound reads the headers of a packet of the stack.
func parseOutbound(pkt *stack.PacketBuffer) (s segment, ok bool) {
	t := header.TCP(pkt.TransportHeader().Slice())
	if pkt.TransportProtocolNumber != tcp.ProtocolNumber || len(t) < header.TCPMinimumSize || int(t.DataOffset()) > len(t) {
		return s, false
	}
	switch b := pkt.NetworkHeader().Slice(); pkt.NetworkProtocolNumber {
	case header.IPv4ProtocolNumber:
		if len(b) < header.IPv4MinimumSize {
			return s, false
		}
		s.id.LocalAddress, s.id.RemoteAddress = header.IPv4(b).SourceAddress(), header.IPv4(b).DestinationAddress()
	case header.IPv6ProtocolNumber:
		if len(b) < header.IPv6MinimumSize {
			return s, false
		}
		s.id.LocalAddress, s.id.RemoteAddress = header.IPv6(b).SourceAddress(), header.IPv6(b).DestinationAddress()
	default:
		return s, false
	}
	s.tcp, s.payload = t[:t.DataOffset()], pkt.Data().Size()
	s.id.LocalPort, s.id.RemotePort = t.SourcePort(), t.DestinationPort()
	g := &pkt.GSOOptions
	s.partial = (g.Type == stack.GSOTCPv4 || g.Type == stack.GSOTCPv6) && g.NeedsCsum
	return s, true
}

// is reports whether all of flags are set.
func (s *segment) is(flags header.TCPFlags) bool { return s.tcp.Flags().Contains(flags) }

// bare reports whether the segment takes no room in the sequence space.
func (s *segment) bare() bool {
	return s.payload == 0 && s.tcp.Flags()&(header.TCPFlagSyn|header.TCPFlagFin) == 0
}

// put16 stores two bytes of the header and keeps the checksum as right or wrong
// as it was.
func (s *segment) put16(at int, v uint16) {
	b := s.tcp[at : at+2]
	old := [2]byte(b)
	binary.BigEndian.PutUint16(b, v)
	if !s.partial {
		updateChecksum(s.tcp, old, [2]byte(b), at%2 == 0)
	}
}

func (s *segment) put32(at int, v uint32) {
	s.put16(at, uint16(v>>16))
	s.put16(at+2, uint16(v))
}

// Offsets in a TCP header, RFC 9293 section 3.1.
const (
	atSequence = 4
	atAck      = 8
	atWindow   = 14
)

// options calls f with the offset and length of each option.
func (s *segment) options(f func(kind byte, at, n int)) {
	for at := header.TCPMinimumSize; at < len(s.tcp); {
		switch s.tcp[at] {
		case header.TCPOptionEOL:
			return
		case header.TCPOptionNOP:
			at++
			continue
		}
		if at+2 > len(s.tcp) || s.tcp[at+1] < 2 || at+int(s.tcp[at+1]) > len(s.tcp) {
			return
		}
		n := int(s.tcp[at+1])
		f(s.tcp[at], at, n)
		at += n
	}
}

// outbound looks at a packet that is about to leave, and changes it; false: it
// is not to leave.
func (g *gates) outbound(pkt *stack.PacketBuffer, l *link) bool {
	s, ok := parseOutbound(pkt)
	if !ok {
		return true
	}
	x := g.get(s.id)
	if x == nil {
		return true
	}
	switch x.block.Load() {
	case gateShut:
		return false
	case gateParting:
		if !s.bare() {
			return false
		}
	}
	if !x.came {
		return true
	}
	if s.is(header.TCPFlagSyn) {
		return g.handshake(x, &s, l)
	}
	if x.joined.Load() {
		x.translateOut(&s)
	}
	return true
}

// handshake answers the SYN of a connection that comes. Another SYN is that of a
// new connection with the same addresses, which needs no gate.
func (g *gates) handshake(x *gate, s *segment, l *link) bool {
	if s.is(header.TCPFlagAck) || x.joined.Load() {
		g.remove(s.id, x)
		return true
	}
	first := s.tcp.SequenceNumber() + 1
	x.shift = x.flow.SendSequence - x.finAcked - first
	o := header.ParseSynOptions(s.tcp[header.TCPMinimumSize:], false)
	x.ticks = x.flow.Time + 1 - o.TSVal
	x.scale = 0
	if o.WS > 0 && x.flow.Scaling {
		x.scale = uint8(o.WS)
	}
	x.acked.Store(x.flow.ReceiveSequence)
	x.peerAck.Store(x.flow.SendSequence)
	x.edge.Store(x.flow.SendSequence + x.flow.SendWindow)
	x.sent.Store(first)
	x.joined.Store(true)
	l.loopBack(x.synAck(s, &o))
	if x.peerFIN {
		l.loopBack(x.fin(s, &o))
	}
	return false
}

// synAck is the peer's part of the handshake.
func (x *gate) synAck(s *segment, o *header.TCPSynOptions) (tcpip.NetworkProtocolNumber, []byte) {
	f := &x.flow
	opts := []byte{header.TCPOptionMSS, 4, byte(f.MSS >> 8), byte(f.MSS)}
	if f.Timestamps {
		opts = append(opts, header.TCPOptionNOP, header.TCPOptionNOP, header.TCPOptionTS, 10)
		opts = binary.BigEndian.AppendUint32(opts, f.RecentTime)
		opts = binary.BigEndian.AppendUint32(opts, o.TSVal)
	}
	if f.SACK {
		opts = append(opts, header.TCPOptionNOP, header.TCPOptionNOP, header.TCPOptionSACKPermitted, 2)
	}
	if f.Scaling {
		opts = append(opts, header.TCPOptionNOP, header.TCPOptionWS, 3, f.SendScale)
	}
	return ofPeer(s, opts, header.TCPFields{
		SeqNum: f.ReceiveSequence - 1, Flags: header.TCPFlagSyn | header.TCPFlagAck,
		// Not more than the peer's own: what is sent beyond it makes all later
		// acknowledgements unacceptable to the peer.
		WindowSize: uint16(min(math.MaxUint16, f.SendWindow)),
	})
}

// fin is the peer's FIN, once more.
func (x *gate) fin(s *segment, o *header.TCPSynOptions) (tcpip.NetworkProtocolNumber, []byte) {
	f := &x.flow
	var opts []byte
	if f.Timestamps {
		opts = append(opts, header.TCPOptionNOP, header.TCPOptionNOP, header.TCPOptionTS, 10)
		opts = binary.BigEndian.AppendUint32(opts, f.RecentTime)
		opts = binary.BigEndian.AppendUint32(opts, o.TSVal)
	}
	return ofPeer(s, opts, header.TCPFields{
		SeqNum: f.ReceiveSequence, Flags: header.TCPFlagFin | header.TCPFlagAck,
		WindowSize: uint16(min(math.MaxUint16, f.SendWindow>>f.SendScale)),
	})
}

// ofPeer is an IP packet with a segment of the peer that answers s, a SYN.
func ofPeer(s *segment, opts []byte, f header.TCPFields) (tcpip.NetworkProtocolNumber, []byte) {
	n := header.TCPMinimumSize + len(opts)
	from, to := s.id.RemoteAddress, s.id.LocalAddress
	proto, ip := tcpip.NetworkProtocolNumber(header.IPv4ProtocolNumber), header.IPv4MinimumSize
	if to.Len() == header.IPv6AddressSize {
		proto, ip = header.IPv6ProtocolNumber, header.IPv6MinimumSize
	}
	b := make([]byte, ip+n)
	if proto == header.IPv4ProtocolNumber {
		h := header.IPv4(b)
		h.Encode(&header.IPv4Fields{TotalLength: uint16(len(b)), TTL: defaultTTL, Protocol: uint8(tcp.ProtocolNumber), SrcAddr: from, DstAddr: to})
		h.SetChecksum(^h.CalculateChecksum())
	} else {
		header.IPv6(b).Encode(&header.IPv6Fields{
			PayloadLength: uint16(n), TransportProtocol: tcp.ProtocolNumber, HopLimit: defaultTTL, SrcAddr: from, DstAddr: to,
		})
	}
	t := header.TCP(b[ip:])
	f.SrcPort, f.DstPort = s.id.RemotePort, s.id.LocalPort
	f.AckNum, f.DataOffset = s.tcp.SequenceNumber()+1, uint8(n)
	t.Encode(&f)
	copy(t[header.TCPMinimumSize:], opts)
	return proto, b
}

// translateOut changes a segment of the stack to what the peer expects.
func (x *gate) translateOut(s *segment) {
	t := s.tcp
	x.acked.Store(t.AckNumber())
	seq := t.SequenceNumber()
	end := seq + uint32(s.payload)
	if s.is(header.TCPFlagFin) {
		end++
	}
	// One sender: the endpoint's lock is held.
	if int32(end-x.sent.Load()) > 0 {
		x.sent.Store(end)
	}
	seq += x.shift
	// While the stack has not got to what the peer already has, its own number
	// is too old for a bare segment, and the peer would drop it.
	if p := x.peerAck.Load(); s.bare() && int32(p-seq) > 0 {
		seq = p
	}
	// Nor does every peer look at an acknowledgement from beyond its window,
	// which it may have closed over what is under way.
	if e := x.edge.Load(); s.bare() && int32(seq-e) > 0 {
		seq = e
	}
	s.put32(atSequence, seq)
	if from, to := x.scale, x.flow.ReceiveScale; from != to {
		w := uint64(t.WindowSize()) << from >> to
		s.put16(atWindow, uint16(min(w, math.MaxUint16)))
	}
	s.options(func(kind byte, at, n int) {
		if kind == header.TCPOptionTS && n == 10 {
			s.put32(at+2, binary.BigEndian.Uint32(t[at+2:])+x.ticks)
		}
	})
}

// verdict is what becomes of a packet that arrived.
type verdict uint8

const (
	pass verdict = iota
	drop
	strip // only what it acknowledges counts
)

// inbound looks at the headers at the start of an IP packet of size bytes that
// arrived, and changes them.
func (g *gates) inbound(proto tcpip.NetworkProtocolNumber, b []byte, size int) verdict {
	s, ok := parseInbound(proto, b, size)
	if !ok {
		return pass
	}
	x := g.get(s.id)
	if x == nil {
		// The stack would answer what it does not know with a reset.
		if !s.is(header.TCPFlagSyn) && g.hushed() && !g.known(s.id) {
			g.kept.Add(1)
			return drop
		}
		return pass
	}
	switch x.block.Load() {
	case gateShut:
		return drop
	case gateParting:
		if s.is(header.TCPFlagSyn) {
			return drop
		}
		if !s.bare() {
			return strip
		}
	}
	switch {
	case !x.came:
	case s.is(header.TCPFlagSyn):
		if !g.used(s.id, x) {
			g.remove(s.id, x) // a new connection with the same addresses
		}
	case !x.joined.Load():
		return drop // the stack does not have it yet; the peer sends it again
	default:
		x.translateIn(&s)
	}
	return pass
}

// stripped is the packet b of size bytes without its FIN, with the first keep
// bytes of its payload. Its TCP checksum is not set.
func stripped(proto tcpip.NetworkProtocolNumber, b []byte, size, keep int) []byte {
	s, ok := parseInbound(proto, b, size)
	if !ok || fragment(proto, b) {
		return nil
	}
	keep = min(keep, s.payload)
	out := append([]byte(nil), b[:s.at+len(s.tcp)+keep]...)
	if proto == header.IPv4ProtocolNumber {
		h := header.IPv4(out)
		h.SetTotalLength(uint16(len(out)))
		h.SetChecksum(0)
		h.SetChecksum(^h.CalculateChecksum())
	} else {
		header.IPv6(out).SetPayloadLength(uint16(len(out) - header.IPv6MinimumSize))
	}
	t := header.TCP(out[s.at:])
	t.SetFlags(uint8(t.Flags() &^ (header.TCPFlagFin | header.TCPFlagPsh)))
	return out
}

// checksumValid checks the TCP checksum of a whole packet.
func checksumValid(proto tcpip.NetworkProtocolNumber, b []byte) bool {
	s, ok := parseInbound(proto, b, len(b))
	if !ok {
		return false
	}
	end := s.at + len(s.tcp) + s.payload
	sum := header.PseudoHeaderChecksum(tcp.ProtocolNumber, s.id.RemoteAddress, s.id.LocalAddress, uint16(end-s.at))
	return checksum.Checksum(b[s.at:end], sum) == 0xffff
}

// translateIn changes a segment of the peer to what the stack expects.
func (x *gate) translateIn(s *segment) {
	t := s.tcp
	raw := t.AckNumber()
	if s.is(header.TCPFlagAck) && int32(raw-x.peerAck.Load()) >= 0 {
		x.peerAck.Store(raw)
		x.edge.Store(raw + uint32(t.WindowSize())<<x.flow.SendScale)
	}
	sent := x.sent.Load()
	ack := raw - x.shift
	if beyond := ack - sent; int32(beyond) > 0 {
		// The peer has more than this stack has sent so far. That acknowledges
		// all that it has sent, and the window reaches as far beyond.
		w := uint32(t.WindowSize()) + beyond>>x.flow.SendScale
		s.put16(atWindow, uint16(min(w, math.MaxUint16)))
		ack = sent
	}
	s.put32(atAck, ack)
	// The number of a bare segment may lie beyond this stack's window, when
	// payload that the peer sent was lost in the move: the stack would drop
	// what it acknowledges with it.
	if a := x.acked.Load(); s.bare() && !s.is(header.TCPFlagRst) && int32(t.SequenceNumber()-a) > 0 {
		s.put32(atSequence, a)
	}
	s.options(func(kind byte, at, n int) {
		switch {
		case kind == header.TCPOptionTS && n == 10:
			s.put32(at+6, binary.BigEndian.Uint32(t[at+6:])-x.ticks)
		case kind == header.TCPOptionSACK:
			for at += 2; n >= 6; at, n = at+4, n-4 {
				v := binary.BigEndian.Uint32(t[at:]) - x.shift
				if int32(v-sent) > 0 {
					v = sent // an empty block says nothing
				}
				s.put32(at, v)
			}
		}
	})
}
