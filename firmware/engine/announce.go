// SPDX-License-Identifier: Apache-2.0

package engine

import (
	"maps"
	"net/netip"
	"slices"
	"sync"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/checksum"
	"gvisor.dev/gvisor/pkg/tcpip/header"
)

// Announcer is implemented by engines that can take over addresses which were
// another's on the same link.
type Announcer interface {
	// Announce tells the link that these addresses of the engine are here now:
	// by ARP announcements (RFC 5227 section 3) and unsolicited neighbour
	// advertisements (RFC 4861 section 7.2.6), several times, and by asking the
	// gateways for theirs.
	Announce([]netip.Addr)
	// Expect leaves segments of connections that the engine does not know without
	// an answer for some time: they may be restored.
	Expect()
	// Deafen has nothing that arrives heard, so that another can have this
	// engine's addresses; false ends that. What the engine sends still leaves.
	Deafen(deaf bool)
}

var _ Announcer = (*netstack)(nil)

// Announcements may get lost: each is made announceTimes times.
const (
	announceTimes = 3
	announceEvery = time.Second // RFC 5227 wants 2 s; a connection waits for it
	maxClaims     = 1024        // announced more than once, at a time
)

// claim is an address of the engine that is announced to everybody, or to the
// neighbour asked for its own by a request from that address: not every
// neighbour goes by announcements, but who answers has to go by a request.
type claim struct{ address, asked netip.Addr }

// announcer makes announcements.
type announcer struct {
	link  *link
	after func(time.Duration, func()) tcpip.Timer // of the stack's clock

	mu    sync.Mutex
	left  map[claim]int // announcements to come
	timer tcpip.Timer   // nil: none is to come
	ended bool
}

// Announce implements [Announcer].
func (n *netstack) Announce(addresses []netip.Addr) {
	n.configMu.Lock()
	routes := n.routes
	n.configMu.Unlock()
	for _, a := range addresses {
		n.announcer.make(claim{address: a})
		for _, r := range routes {
			if r.Gateway.IsValid() && r.Gateway.Is4() == a.Is4() {
				n.announcer.make(claim{a, r.Gateway})
			}
		}
	}
}

// Expect implements [Announcer].
func (n *netstack) Expect() { n.link.gates.quiet(hushTime) }

// Deafen implements [Announcer].
func (n *netstack) Deafen(deaf bool) {
	n.link.deaf.Store(deaf)
	if deaf {
		n.announcer.keep(nil) // another may have these addresses now
	}
}

// greet has the next hop to a peer know where this connection's end is.
func (n *netstack) greet(local, remote netip.Addr) {
	hop := remote
	r, err := n.stack.FindRoute(nic, toStack(local), toStack(remote), protocolOf(local), false)
	if err != nil {
		return // nothing will be sent either
	}
	if a := r.NextHop(); a.Len() > 0 {
		hop = fromStackAddr(a)
	}
	r.Release()
	n.announcer.make(claim{local, hop})
}

// make makes a claim now, and some times more.
func (a *announcer) make(c claim) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if _, made := a.left[c]; made || a.ended {
		return
	}
	a.send(c)
	if len(a.left) >= maxClaims {
		return
	}
	if a.left == nil {
		a.left = make(map[claim]int)
	}
	a.left[c] = announceTimes - 1
	if a.timer == nil {
		a.timer = a.after(announceEvery, a.again)
	}
}

// again repeats what was announced.
func (a *announcer) again() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.timer = nil
	if a.ended {
		return
	}
	for c, left := range a.left {
		a.send(c)
		if a.left[c] = left - 1; left == 1 {
			delete(a.left, c)
		}
	}
	if len(a.left) > 0 {
		a.timer = a.after(announceEvery, a.again)
	}
}

// keep gives up the claims to other addresses than these.
func (a *announcer) keep(addresses []netip.Prefix) {
	a.mu.Lock()
	defer a.mu.Unlock()
	maps.DeleteFunc(a.left, func(c claim, _ int) bool {
		return !slices.ContainsFunc(addresses, func(p netip.Prefix) bool { return p.Addr() == c.address })
	})
}

func (a *announcer) end() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.ended = true
	if a.timer != nil {
		a.timer.Stop()
	}
}

// send makes a claim once. One to everybody in IPv4 is made both as a request
// and as a reply, since hosts differ in what they go by.
func (a *announcer) send(c claim) {
	var frames []Frame
	add := func(b []byte) { frames = append(frames, Frame{Data: [][]byte{b}}) }
	switch {
	case c.address.Is6() && c.asked.IsValid():
		add(neighborSolicitation(a.link.mac, c))
	case c.address.Is6():
		add(neighborAdvertisement(a.link.mac, c.address))
	case c.asked.IsValid():
		add(arpFrame(a.link.mac, header.ARPRequest, c.address, c.asked))
	default:
		add(arpFrame(a.link.mac, header.ARPRequest, c.address, c.address))
		add(arpFrame(a.link.mac, header.ARPReply, c.address, c.address))
	}
	a.link.port.Transmit(frames)
}

// arpFrame is a broadcast that says, or asks, from an address about another.
func arpFrame(mac tcpip.LinkAddress, op header.ARPOp, from, about netip.Addr) []byte {
	b := make([]byte, header.EthernetMinimumSize+header.ARPSize)
	header.Ethernet(b).Encode(&header.EthernetFields{SrcAddr: mac, DstAddr: header.EthernetBroadcastAddress, Type: header.ARPProtocolNumber})
	h := header.ARP(b[header.EthernetMinimumSize:])
	h.SetIPv4OverEthernet()
	h.SetOp(op)
	copy(h.HardwareAddressSender(), mac)
	sender, target := from.As4(), about.As4()
	copy(h.ProtocolAddressSender(), sender[:])
	copy(h.ProtocolAddressTarget(), target[:])
	if op == header.ARPReply {
		copy(h.HardwareAddressTarget(), mac)
	}
	return b
}

// neighborAdvertisement says to all nodes that an address is here.
func neighborAdvertisement(mac tcpip.LinkAddress, address netip.Addr) []byte {
	target := toStack(address)
	options := header.NDPOptionsSerializer{header.NDPTargetLinkLayerAddressOption(mac)}
	b, body := ndpFrame(mac, header.ICMPv6NeighborAdvert, target, header.IPv6AllNodesMulticastAddress,
		header.ICMPv6NeighborAdvertMinimumSize, options.Length())
	na := header.NDPNeighborAdvert(body)
	na.SetTargetAddress(target)
	na.SetOverrideFlag(true)
	na.Options().Serialize(options)
	return sealNDP(b)
}

// neighborSolicitation asks a neighbour for its address, and tells it ours.
func neighborSolicitation(mac tcpip.LinkAddress, c claim) []byte {
	target := toStack(c.asked)
	options := header.NDPOptionsSerializer{header.NDPSourceLinkLayerAddressOption(mac)}
	b, body := ndpFrame(mac, header.ICMPv6NeighborSolicit, toStack(c.address), header.SolicitedNodeAddr(target),
		header.ICMPv6NeighborSolicitMinimumSize, options.Length())
	ns := header.NDPNeighborSolicit(body)
	ns.SetTargetAddress(target)
	ns.Options().Serialize(options)
	return sealNDP(b)
}

// ndpFrame makes the headers of a message to a multicast address, and returns
// the frame and the message's body with room for options.
func ndpFrame(mac tcpip.LinkAddress, kind header.ICMPv6Type, from, to tcpip.Address, size, options int) (frame, body []byte) {
	const at = header.EthernetMinimumSize + header.IPv6MinimumSize
	b := make([]byte, at+size+options)
	header.Ethernet(b).Encode(&header.EthernetFields{
		SrcAddr: mac, DstAddr: header.EthernetAddressFromMulticastIPv6Address(to), Type: header.IPv6ProtocolNumber,
	})
	header.IPv6(b[header.EthernetMinimumSize:]).Encode(&header.IPv6Fields{
		PayloadLength: uint16(size + options), TransportProtocol: header.ICMPv6ProtocolNumber,
		HopLimit: header.NDPHopLimit, SrcAddr: from, DstAddr: to,
	})
	icmp := header.ICMPv6(b[at:])
	icmp.SetType(kind)
	return b, icmp.MessageBody()
}

// sealNDP stores the checksum of the frame's message.
func sealNDP(b []byte) []byte {
	ip := header.IPv6(b[header.EthernetMinimumSize:])
	icmp := header.ICMPv6(ip.Payload())
	icmp.SetChecksum(0)
	icmp.SetChecksum(^checksum.Checksum(icmp, header.PseudoHeaderChecksum(header.ICMPv6ProtocolNumber,
		ip.SourceAddress(), ip.DestinationAddress(), uint16(len(icmp)))))
	return b
}
