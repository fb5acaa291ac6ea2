// SPDX-License-Identifier: Apache-2.0

package port

import (
	"sync"

	"gvisor.dev/gvisor/pkg/buffer"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/stack"

	"toebox/firmware/engine"
)

// Our tunables.
const (
	// queueLimit bounds the frames under way to the adapter. With sendBuffer
	// per connection it holds the full windows of 8,000 connections, or the
	// handshakes of more connections than the gateway has room for.
	queueLimit = 1 << 16
	// frameBatch is the most frames handed to the adapter in one call.
	frameBatch = 64
	// maxGSO is the longest IP packet either side may send, in bytes.
	maxGSO = 65535
)

// link joins the gateway's stack to the adapter. It is the stack's link
// endpoint on one side and the working half of an engine.Port on the other.
//
// Frames from the adapter run through the gateway's stack in the goroutine of
// Transmit. Frames to the adapter go through a queue to one goroutine (pump),
// for two reasons: a Transmit must not call back into receive (an ARP reply
// would), and the stacks must never wait for each other. The second is why
// neither direction ever blocks: WritePackets may be called with an endpoint's
// lock held, and the adapter's receive path, which is what empties the queue,
// may call Transmit, whose ICMP errors take endpoint locks of the gateway. Were
// WritePackets to wait for room, pump could wait for the lock of the writer
// that waits for pump. So the queue is large but bounded, and beyond its limit
// frames are dropped, as on any Ethernet, and counted. Its memory is
// small: a queued frame of bulk data is a header and a reference to bytes that
// the connection's send buffer holds anyway.
type link struct {
	mtu    uint32
	mac    tcpip.LinkAddress
	filter *filter
	stats  *counters

	dispMu sync.RWMutex
	disp   stack.NetworkDispatcher // nil until attached to the stack and after close

	// datagramMu is held while the stack takes a datagram. A flow opens with
	// the first one, and its endpoint would lose another that comes before it is
	// ready. Segments of TCP go side by side.
	datagramMu sync.Mutex

	queueMu sync.Mutex
	queue   []*stack.PacketBuffer // each with a reference of the queue's
	closed  bool

	wake chan struct{} // holds a token while pump has something to look at
	done chan struct{} // closed by pump when it ends

	receiveMu sync.Mutex // held while receive runs
	receive   func([]engine.Frame)
}

var (
	_ stack.LinkEndpoint = (*link)(nil)
	_ stack.GSOEndpoint  = (*link)(nil)
)

func newLink(mtu int, mac tcpip.LinkAddress, f *filter, c *counters) *link {
	l := &link{mtu: uint32(mtu), mac: mac, filter: f, stats: c, wake: make(chan struct{}, 1), done: make(chan struct{})}
	go l.pump()
	return l
}

// The static half of stack.LinkEndpoint.
func (l *link) MTU() uint32                             { return l.mtu }
func (l *link) SetMTU(uint32)                           {}
func (l *link) MaxHeaderLength() uint16                 { return header.EthernetMinimumSize }
func (l *link) LinkAddress() tcpip.LinkAddress          { return l.mac }
func (l *link) SetLinkAddress(tcpip.LinkAddress)        {}
func (l *link) Wait()                                   {}
func (l *link) ARPHardwareType() header.ARPHardwareType { return header.ARPHardwareEther }
func (l *link) Close()                                  {}
func (l *link) SetOnCloseAction(func())                 {}
func (l *link) ParseHeader(*stack.PacketBuffer) bool    { return true }
func (l *link) SupportedGSO() stack.SupportedGSO        { return stack.HostGSOSupported }
func (l *link) GSOMaxSize() uint32                      { return maxGSO }

// Capabilities says that received checksums are checked: transmitOne does it.
// It does not claim checksum offload for sending, since segments without a GSO
// type would then leave with none at all.
func (l *link) Capabilities() stack.LinkEndpointCapabilities {
	return stack.CapabilityResolutionRequired | stack.CapabilityRXChecksumOffload
}

// Attach implements stack.LinkEndpoint.
func (l *link) Attach(d stack.NetworkDispatcher) {
	l.dispMu.Lock()
	defer l.dispMu.Unlock()
	l.disp = d
}

// IsAttached implements stack.LinkEndpoint.
func (l *link) IsAttached() bool { return l.dispatcher() != nil }

func (l *link) dispatcher() stack.NetworkDispatcher {
	l.dispMu.RLock()
	defer l.dispMu.RUnlock()
	return l.disp
}

// transmit takes frames of the adapter.
func (l *link) transmit(frames []engine.Frame) int {
	d := l.dispatcher()
	if d == nil {
		l.stats.DroppedClosed.Add(uint64(len(frames)))
		return 0
	}
	taken := 0
	for i := range frames {
		if l.transmitOne(d, &frames[i]) {
			taken++
		}
	}
	return taken
}

func (l *link) transmitOne(d stack.NetworkDispatcher, f *engine.Frame) bool {
	n := f.Len()
	if n < header.EthernetMinimumSize {
		l.stats.DroppedShort.Add(1)
		return false
	}
	if n > header.EthernetMinimumSize+maxGSO {
		l.stats.DroppedLong.Add(1)
		return false
	}
	// The one copy of this direction. The Ethernet header goes elsewhere, so
	// that a full GSO packet fits a pooled chunk of 64 KiB.
	var eth [header.EthernetMinimumSize]byte
	v := buffer.NewView(n - len(eth))
	got := 0
	for _, p := range f.Data {
		if got < len(eth) {
			k := copy(eth[got:], p)
			got += k
			p = p[k:]
		}
		if len(p) > 0 {
			v.Write(p) // never fails: it grows
		}
	}
	h := header.Ethernet(eth[:])
	kind, ok := l.addressed(h.DestinationAddress())
	if ok {
		ok = l.filter.admit(h.Type(), v.AsSlice(), f.NeedsChecksum || f.ChecksumValid)
	} else {
		l.stats.DroppedOtherMAC.Add(1)
	}
	if !ok {
		v.Release()
		return false
	}
	l.stats.FramesFromAdapter.Add(1)
	l.stats.BytesFromAdapter.Add(uint64(n))
	datagram := carriesDatagram(h.Type(), v.AsSlice())
	pkt := stack.NewPacketBuffer(stack.PacketBufferOptions{Payload: buffer.MakeWithView(v)})
	pkt.NetworkProtocolNumber = h.Type()
	pkt.PktType = kind
	if datagram {
		l.datagramMu.Lock()
	}
	d.DeliverNetworkPacket(h.Type(), pkt) // never waits
	if datagram {
		l.datagramMu.Unlock()
	}
	pkt.DecRef()
	return true
}

// addressed tells what kind of destination a MAC address is, and whether
// the gateway listens to it.
func (l *link) addressed(dst tcpip.LinkAddress) (tcpip.PacketType, bool) {
	switch {
	case dst == l.mac:
		return tcpip.PacketHost, true
	case dst == header.EthernetBroadcastAddress:
		return tcpip.PacketBroadcast, true
	case header.IsMulticastEthernetAddress(dst):
		return tcpip.PacketMulticast, true
	}
	return tcpip.PacketOtherHost, false
}

// AddHeader implements stack.LinkEndpoint.
func (l *link) AddHeader(pkt *stack.PacketBuffer) {
	header.Ethernet(pkt.LinkHeader().Push(header.EthernetMinimumSize)).Encode(&header.EthernetFields{
		SrcAddr: l.mac,
		DstAddr: pkt.EgressRoute.RemoteLinkAddress,
		Type:    pkt.NetworkProtocolNumber,
	})
}

// WritePackets implements stack.LinkEndpoint. It is called with locks of the
// stack held and never waits.
func (l *link) WritePackets(pkts stack.PacketBufferList) (int, tcpip.Error) {
	list := pkts.AsSlice()
	l.queueMu.Lock()
	room := queueLimit - len(l.queue)
	if l.closed {
		room = 0
	}
	n := min(room, len(list))
	for _, p := range list[:n] {
		l.queue = append(l.queue, p.IncRef())
	}
	l.queueMu.Unlock()
	if n < len(list) {
		l.stats.DroppedQueueFull.Add(uint64(len(list) - n))
	}
	l.kick()
	if n == 0 && len(list) > 0 {
		return 0, &tcpip.ErrNoBufferSpace{}
	}
	return n, nil
}

func (l *link) kick() {
	select {
	case l.wake <- struct{}{}:
	default:
	}
}

// setReceive sets where frames go, and waits for a call that is running.
func (l *link) setReceive(receive func([]engine.Frame)) {
	l.receiveMu.Lock()
	defer l.receiveMu.Unlock()
	l.receive = receive
}

// close ends pump and lets go of what is queued.
func (l *link) close() {
	l.Attach(nil)
	l.queueMu.Lock()
	l.closed = true
	l.queueMu.Unlock()
	l.kick()
	<-l.done
}

// pump hands queued frames to the adapter until close.
func (l *link) pump() {
	defer close(l.done)
	var (
		spare  []*stack.PacketBuffer
		frames [frameBatch]engine.Frame
	)
	for range l.wake {
		for {
			l.queueMu.Lock()
			batch, closed := l.queue, l.closed
			l.queue = spare[:0]
			l.queueMu.Unlock()
			if closed {
				release(batch)
				return
			}
			if len(batch) == 0 {
				spare = batch
				break
			}
			for b := batch; len(b) > 0; {
				n := min(len(b), frameBatch)
				l.deliver(frames[:n], b[:n])
				b = b[n:]
			}
			// A burst must not pin its high-water mark for ever.
			if spare = batch; cap(spare) > queueLimit/8 {
				spare = nil
			}
		}
	}
}

// deliver passes one batch to receive and gives up its references.
func (l *link) deliver(frames []engine.Frame, pkts []*stack.PacketBuffer) {
	defer release(pkts)
	l.receiveMu.Lock()
	defer l.receiveMu.Unlock()
	if l.receive == nil {
		l.stats.DroppedNotAttached.Add(uint64(len(pkts)))
		return
	}
	bytes := 0
	for i, p := range pkts {
		describe(&frames[i], p)
		bytes += p.Size()
	}
	l.stats.FramesToAdapter.Add(uint64(len(pkts)))
	l.stats.BytesToAdapter.Add(uint64(bytes))
	l.receive(frames)
}

func release(pkts []*stack.PacketBuffer) {
	for i, p := range pkts {
		p.DecRef()
		pkts[i] = nil
	}
}

// describe fills f with the pieces and the offload metadata of p. The slice of
// pieces is reused.
func describe(f *engine.Frame, p *stack.PacketBuffer) {
	*f = engine.Frame{Data: f.Data[:0]}
	views, off := p.AsViewList()
	for v := views.Front(); v != nil; v = v.Next() {
		b := v.AsSlice()
		if off >= len(b) {
			off -= len(b)
			continue
		}
		f.Data = append(f.Data, b[off:])
		off = 0
	}
	g := &p.GSOOptions
	if g.Type != stack.GSOTCPv4 && g.Type != stack.GSOTCPv6 {
		return
	}
	if g.NeedsCsum {
		f.NeedsChecksum = true
		f.ChecksumStart = header.EthernetMinimumSize + g.L3HdrLen
		f.ChecksumOffset = g.CsumOffset
	}
	if p.Data().Size() > int(g.MSS) {
		f.GSO = engine.GSOTCPv4
		if g.Type == stack.GSOTCPv6 {
			f.GSO = engine.GSOTCPv6
		}
		f.GSOSize = g.MSS
		f.HeaderLen = uint16(p.HeaderSize())
	}
}
