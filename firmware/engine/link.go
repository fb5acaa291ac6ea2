// SPDX-License-Identifier: Apache-2.0

package engine

import (
	"encoding/binary"
	"math/bits"
	"sync"
	"sync/atomic"

	"gvisor.dev/gvisor/pkg/buffer"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
)

// link is the stack's Ethernet interface on a [Port]: packets leave as frames
// of up to 64 KiB with their segmentation described, and arrive the same way.
//
// A frame's memory is the port's, so arriving bytes are copied once, into
// views whose sizes stay close to what they hold: a connection is charged for
// the memory behind its bytes.
type link struct {
	port Port
	mac  tcpip.LinkAddress
	mtu  uint32

	dispatcher stack.NetworkDispatcher // from Attach to start
	inbound    atomic.Pointer[inbound]
	batches    sync.Pool // of *batch
	gates      gates
	judge      func(tcpip.NetworkProtocolNumber, []byte, int) (int, bool) // set before the port is attached
	unclock    func(tcpip.NetworkProtocolNumber, []byte, int)             // likewise
	receiving  sync.RWMutex                                               // held for reading while frames are received
	deaf       atomic.Bool                                                // what arrives is not heard
	stats      linkStats
}

// inbound is where arriving packets go. Packets whose checksum the port
// vouches for go to the network layer directly, since the interface would
// forget about it.
type inbound struct {
	dispatcher stack.NetworkDispatcher
	v4, v6     stack.NetworkEndpoint
}

type linkStats struct {
	sent, sentBytes         atomic.Uint64
	received, receivedBytes atomic.Uint64
	refused                 atomic.Uint64 // sent, but not taken by the port
	short, long             atomic.Uint64
	otherMAC, otherType     atomic.Uint64
	detached                atomic.Uint64 // arrived before or after the stack's life
}

var (
	_ stack.LinkEndpoint = (*link)(nil)
	_ stack.GSOEndpoint  = (*link)(nil)
)

const (
	gsoMaxSize = 65535
	// maxFrame is the largest that can hold one IP packet: an IPv6 header
	// does not count itself (RFC 8200 section 3).
	maxFrame = header.EthernetMinimumSize + header.IPv6MinimumSize + 65535
)

func newLink(p Port, mac tcpip.LinkAddress, mtu int) *link {
	return &link{port: p, mac: mac, mtu: uint32(mtu), batches: sync.Pool{New: func() any { return new(batch) }}}
}

// batch holds the frames of one Transmit and their pieces.
type batch struct {
	frames []Frame
	pieces [][]byte
}

// WritePackets sends pkts as one Transmit. What the port does not take is
// lost as on any wire, and the stack is told that it went.
func (l *link) WritePackets(pkts stack.PacketBufferList) (int, tcpip.Error) {
	b := l.batches.Get().(*batch)
	bytes, kept := 0, 0
	for _, pkt := range pkts.AsSlice() {
		if pkt.Owner != nil {
			stripSACK(pkt)
		}
		if !l.gates.idle() && !l.gates.outbound(pkt, l) {
			kept++
			continue
		}
		bytes += b.add(pkt)
	}
	sent := l.port.Transmit(b.frames)
	n := len(b.frames)
	if sent = min(max(sent, 0), n); sent < n {
		for i := range b.frames[sent:] {
			bytes -= b.frames[sent+i].Len()
		}
		l.stats.refused.Add(uint64(n - sent))
	}
	l.stats.sent.Add(uint64(sent))
	l.stats.sentBytes.Add(uint64(bytes))
	clear(b.frames)
	clear(b.pieces)
	b.frames, b.pieces = b.frames[:0], b.pieces[:0]
	l.batches.Put(b)
	return n + kept, nil
}

// settle returns when no frame is being received that arrived before.
func (l *link) settle() {
	l.receiving.Lock()
	defer l.receiving.Unlock()
}

// loopBack lets the stack receive a packet of the gates.
func (l *link) loopBack(proto tcpip.NetworkProtocolNumber, b []byte) {
	in := l.inbound.Load()
	if in == nil {
		return
	}
	pkt := stack.NewPacketBuffer(stack.PacketBufferOptions{Payload: buffer.MakeWithData(b)})
	defer pkt.DecRef()
	pkt.NetworkProtocolNumber = proto
	pkt.RXChecksumValidated = true
	if proto == header.IPv4ProtocolNumber {
		in.v4.HandlePacket(pkt)
	} else {
		in.v6.HandlePacket(pkt)
	}
}

// add appends a packet and returns its length with the Ethernet header.
func (b *batch) add(pkt *stack.PacketBuffer) int {
	first := len(b.pieces)
	views, skip := pkt.AsViewList()
	size := 0
	for v := views.Front(); v != nil; v = v.Next() {
		p := v.AsSlice()
		if skip >= len(p) {
			skip -= len(p)
			continue
		}
		p, skip = p[skip:], 0
		b.pieces = append(b.pieces, p)
		size += len(p)
	}
	f := Frame{Data: b.pieces[first:len(b.pieces):len(b.pieces)]}
	if g := &pkt.GSOOptions; g.Type == stack.GSOTCPv4 || g.Type == stack.GSOTCPv6 {
		f.HeaderLen = uint16(pkt.HeaderSize())
		f.NeedsChecksum = g.NeedsCsum
		f.ChecksumStart = f.HeaderLen - uint16(len(pkt.TransportHeader().Slice()))
		f.ChecksumOffset = g.CsumOffset
		if pkt.Data().Size() > int(g.MSS) {
			f.GSO, f.GSOSize = GSOTCPv4, g.MSS
			if g.Type == stack.GSOTCPv6 {
				f.GSO = GSOTCPv6
			}
		}
	}
	b.frames = append(b.frames, f)
	return size
}

// receive takes frames from the port.
func (l *link) receive(frames []Frame) {
	in := l.inbound.Load()
	if in == nil || l.deaf.Load() {
		l.stats.detached.Add(uint64(len(frames)))
		return
	}
	l.receiving.RLock()
	defer l.receiving.RUnlock()
	for i := range frames {
		l.receiveOne(in, &frames[i])
	}
}

func (l *link) receiveOne(in *inbound, f *Frame) {
	size := f.Len()
	l.stats.received.Add(1)
	l.stats.receivedBytes.Add(uint64(size))
	switch {
	case size <= header.EthernetMinimumSize:
		l.stats.short.Add(1)
		return
	case size > maxFrame:
		l.stats.long.Add(1)
		return
	}
	var eth [header.EthernetMinimumSize]byte
	src := pieces{list: f.Data}
	src.copyTo(eth[:])
	if eth[0]&1 == 0 && string(eth[:6]) != string(l.mac) {
		l.stats.otherMAC.Add(1)
		return
	}
	proto := tcpip.NetworkProtocolNumber(binary.BigEndian.Uint16(eth[12:]))
	switch proto {
	case header.IPv4ProtocolNumber, header.IPv6ProtocolNumber, header.ARPProtocolNumber:
	default:
		l.stats.otherType.Add(1)
		return
	}

	var payload buffer.Buffer
	vouched := f.ChecksumValid || f.NeedsChecksum
	for left := size - len(eth); left > 0; {
		n := viewSize(left)
		v := buffer.NewViewSize(n)
		src.copyTo(v.AsSlice())
		if left == size-len(eth) && l.judge != nil {
			if keep, cut := l.judge(proto, v.AsSlice(), left); cut {
				l.receiveStripped(proto, f, vouched, keep)
				v.Release()
				return
			}
		}
		if left == size-len(eth) && l.unclock != nil {
			l.unclock(proto, v.AsSlice(), left)
		}
		if left == size-len(eth) && !l.gates.idle() {
			switch l.gates.inbound(proto, v.AsSlice(), left) {
			case strip:
				l.receiveStripped(proto, f, vouched, 0)
				fallthrough
			case drop:
				v.Release()
				return
			}
		}
		if left == size-len(eth) && vouched {
			vouched = proto == header.IPv6ProtocolNumber || headerChecksumValid(v.AsSlice())
		}
		// The buffer takes the reference to v.
		_ = payload.Append(v)
		left -= n
	}
	pkt := stack.NewPacketBuffer(stack.PacketBufferOptions{Payload: payload})
	defer pkt.DecRef()
	pkt.NetworkProtocolNumber = proto
	switch {
	case vouched && proto == header.IPv4ProtocolNumber:
		pkt.RXChecksumValidated = true
		in.v4.HandlePacket(pkt)
	case vouched && proto == header.IPv6ProtocolNumber:
		pkt.RXChecksumValidated = true
		in.v6.HandlePacket(pkt)
	default:
		in.dispatcher.DeliverNetworkPacket(proto, pkt)
	}
}

// receiveStripped lets the stack see what a segment acknowledges, and the first
// keep bytes of its payload.
func (l *link) receiveStripped(proto tcpip.NetworkProtocolNumber, f *Frame, vouched bool, keep int) {
	b := make([]byte, f.Len())
	src := pieces{list: f.Data}
	src.copyTo(b)
	b = b[header.EthernetMinimumSize:]
	if proto == header.IPv4ProtocolNumber && !headerChecksumValid(b) || !vouched && !checksumValid(proto, b) {
		return
	}
	if b = stripped(proto, b, len(b), keep); b != nil && l.gates.inbound(proto, b, len(b)) == pass {
		l.loopBack(proto, b)
	}
}

// viewSize says how many of left bytes the next view holds. Views come in
// powers of two: a size that would waste more than a quarter of one is split.
func viewSize(left int) int {
	if left <= 2048 {
		return left
	}
	up := 1 << bits.Len(uint(left-1))
	if up > buffer.MaxChunkSize {
		return buffer.MaxChunkSize
	}
	if left >= up/4*3 {
		return left
	}
	return up / 2
}

// headerChecksumValid says whether b starts with a whole IPv4 header in good
// order. A port vouches for the transport checksum only.
func headerChecksumValid(b []byte) bool {
	if len(b) < header.IPv4MinimumSize {
		return false
	}
	h := header.IPv4(b)
	n := int(h.HeaderLength())
	return n >= header.IPv4MinimumSize && n <= len(b) && h.IsChecksumValid()
}

// pieces reads a frame's pieces in order.
type pieces struct {
	list [][]byte
	off  int // into list[0]
}

// copyTo fills dst, as far as there is something.
func (p *pieces) copyTo(dst []byte) {
	for len(dst) > 0 && len(p.list) > 0 {
		n := copy(dst, p.list[0][p.off:])
		dst = dst[n:]
		if p.off += n; p.off == len(p.list[0]) {
			p.list, p.off = p.list[1:], 0
		}
	}
}

// withoutSACK marks the packets of an endpoint whose SYN must not offer
// selective acknowledgements; the stack itself has one setting for all.
type withoutSACK struct{}

func (withoutSACK) KUID() uint32 { return 0 }
func (withoutSACK) KGID() uint32 { return 0 }

// stripSACK turns the SACK-permitted option of a SYN (RFC 2018 section 2)
// into no-operations. SYNs carry a complete checksum.
func stripSACK(pkt *stack.PacketBuffer) {
	if _, ok := pkt.Owner.(withoutSACK); !ok {
		return
	}
	t := header.TCP(pkt.TransportHeader().Slice())
	if len(t) < header.TCPMinimumSize || !t.Flags().Contains(header.TCPFlagSyn) || int(t.DataOffset()) > len(t) {
		return
	}
	for o := t[header.TCPMinimumSize:t.DataOffset()]; len(o) >= 2; {
		switch o[0] {
		case header.TCPOptionEOL:
			return
		case header.TCPOptionNOP:
			o = o[1:]
			continue
		case header.TCPOptionSACKPermitted:
			even := (len(t)-len(o))%2 == 0
			old := [2]byte{o[0], o[1]}
			o[0], o[1] = header.TCPOptionNOP, header.TCPOptionNOP
			updateChecksum(t, old, [2]byte{o[0], o[1]}, even)
			return
		}
		n := int(o[1])
		if n < 2 || n > len(o) {
			return
		}
		o = o[n:]
	}
}

// updateChecksum replaces two adjacent bytes in a complete checksum (RFC 1624
// equation 3). Bytes at an odd place count swapped.
func updateChecksum(t header.TCP, from, to [2]byte, even bool) {
	a, b := binary.BigEndian.Uint16(from[:]), binary.BigEndian.Uint16(to[:])
	if !even {
		a, b = bits.ReverseBytes16(a), bits.ReverseBytes16(b)
	}
	sum := uint32(^t.Checksum()) + uint32(^a) + uint32(b)
	sum = sum&0xffff + sum>>16
	sum = sum&0xffff + sum>>16
	t.SetChecksum(^uint16(sum))
}

// Attach is called when the interface is made, and with nil when it is
// removed.
func (l *link) Attach(d stack.NetworkDispatcher) {
	l.dispatcher = d
	if d == nil {
		l.inbound.Store(nil)
	}
}

// start lets packets in, once the interface has its network endpoints.
func (l *link) start(v4, v6 stack.NetworkEndpoint) {
	l.inbound.Store(&inbound{dispatcher: l.dispatcher, v4: v4, v6: v6})
}

func (l *link) IsAttached() bool { return l.inbound.Load() != nil }

// AddHeader writes the Ethernet header.
func (l *link) AddHeader(pkt *stack.PacketBuffer) {
	header.Ethernet(pkt.LinkHeader().Push(header.EthernetMinimumSize)).Encode(&header.EthernetFields{
		SrcAddr: l.mac,
		DstAddr: pkt.EgressRoute.RemoteLinkAddress,
		Type:    pkt.NetworkProtocolNumber,
	})
}

// ParseHeader is not used: receive takes the Ethernet header off itself.
func (l *link) ParseHeader(*stack.PacketBuffer) bool { return true }

// Capabilities does not claim transmit checksum offload: segments that are
// sent without a segmentation type (SYN, RST) would leave with no checksum at
// all. Those with one leave the rest of it to the port anyway.
func (l *link) Capabilities() stack.LinkEndpointCapabilities {
	return stack.CapabilityResolutionRequired
}

func (l *link) MTU() uint32                             { return l.mtu }
func (l *link) SetMTU(uint32)                           {}
func (l *link) MaxHeaderLength() uint16                 { return header.EthernetMinimumSize }
func (l *link) LinkAddress() tcpip.LinkAddress          { return l.mac }
func (l *link) SetLinkAddress(tcpip.LinkAddress)        {}
func (l *link) ARPHardwareType() header.ARPHardwareType { return header.ARPHardwareEther }
func (l *link) SupportedGSO() stack.SupportedGSO        { return stack.HostGSOSupported }
func (l *link) GSOMaxSize() uint32                      { return gsoMaxSize }
func (l *link) Wait()                                   {}
func (l *link) Close()                                  {}
func (l *link) SetOnCloseAction(func())                 {}
