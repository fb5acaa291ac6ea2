// SPDX-License-Identifier: Apache-2.0

package port

import (
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/checksum"
	"gvisor.dev/gvisor/pkg/tcpip/header"
)

// filter judges packets of the adapter before the gateway's stack sees them.
// The stack listens to every address (that is how it catches connections to
// anywhere), so without the filter it would also answer for every address:
// address resolution (and so break the adapter's own duplicate detection) and
// echo. The filter also checks checksums, which the stack leaves to its link.
type filter struct {
	own   map[tcpip.Address]bool // addresses the gateway answers for
	stats *counters
}

// Offsets in ICMPv6 neighbour discovery (RFC 4861 section 4.3).
const (
	ndTargetOffset = 8
	ndTargetEnd    = 24
)

// admit says whether p, an L3 packet, goes on. offloaded: the sender vouches
// for the transport checksum.
func (f *filter) admit(proto tcpip.NetworkProtocolNumber, p []byte, offloaded bool) bool {
	switch proto {
	case header.ARPProtocolNumber:
		return f.admitARP(p)
	case header.IPv4ProtocolNumber:
		return f.admitIPv4(p, offloaded)
	case header.IPv6ProtocolNumber:
		return f.admitIPv6(p, offloaded)
	}
	f.stats.DroppedProtocol.Add(1)
	return false
}

// carriesDatagram reports whether an admitted packet holds UDP, or may: a fragment
// of IPv6 says it only behind its header.
func carriesDatagram(proto tcpip.NetworkProtocolNumber, p []byte) bool {
	switch proto {
	case header.IPv4ProtocolNumber:
		return header.IPv4(p).TransportProtocol() == header.UDPProtocolNumber
	case header.IPv6ProtocolNumber:
		return header.IPv6(p).TransportProtocol() != header.TCPProtocolNumber
	}
	return false
}

func (f *filter) admitARP(p []byte) bool {
	a := header.ARP(p)
	if !a.IsValid() {
		f.stats.DroppedShort.Add(1)
		return false
	}
	if a.Op() == header.ARPRequest && !f.own[tcpip.AddrFrom4Slice(a.ProtocolAddressTarget())] {
		f.stats.DroppedNeighbor.Add(1)
		return false
	}
	return true
}

func (f *filter) admitIPv4(p []byte, offloaded bool) bool {
	ip := header.IPv4(p)
	if !ip.IsValid(len(p)) {
		f.stats.DroppedShort.Add(1)
		return false
	}
	if !ip.IsChecksumValid() {
		f.stats.DroppedChecksum.Add(1)
		return false
	}
	if ip.More() || ip.FragmentOffset() != 0 {
		return true // judged whole by nobody: the stack reassembles it
	}
	body := p[ip.HeaderLength():ip.TotalLength()]
	if ip.TransportProtocol() == header.ICMPv4ProtocolNumber {
		if len(body) >= header.ICMPv4MinimumSize && header.ICMPv4(body).Type() == header.ICMPv4Echo && !f.own[ip.DestinationAddress()] {
			f.stats.DroppedEcho.Add(1)
			return false
		}
		return true
	}
	return offloaded || f.checkTransport(ip.TransportProtocol(), body, ip.SourceAddress(), ip.DestinationAddress())
}

func (f *filter) admitIPv6(p []byte, offloaded bool) bool {
	ip := header.IPv6(p)
	if !ip.IsValid(len(p)) {
		f.stats.DroppedShort.Add(1)
		return false
	}
	body := p[header.IPv6MinimumSize : header.IPv6MinimumSize+int(ip.PayloadLength())]
	if ip.TransportProtocol() == header.ICMPv6ProtocolNumber {
		return f.admitICMPv6(body, ip.DestinationAddress())
	}
	return offloaded || f.checkTransport(ip.TransportProtocol(), body, ip.SourceAddress(), ip.DestinationAddress())
}

func (f *filter) admitICMPv6(body []byte, dst tcpip.Address) bool {
	if len(body) < header.ICMPv6MinimumSize {
		f.stats.DroppedShort.Add(1)
		return false
	}
	switch header.ICMPv6(body).Type() {
	case header.ICMPv6EchoRequest:
		if !f.own[dst] {
			f.stats.DroppedEcho.Add(1)
			return false
		}
	case header.ICMPv6NeighborSolicit:
		if len(body) < ndTargetEnd {
			f.stats.DroppedShort.Add(1)
			return false
		}
		if !f.own[tcpip.AddrFrom16Slice(body[ndTargetOffset:ndTargetEnd])] {
			f.stats.DroppedNeighbor.Add(1)
			return false
		}
	}
	return true
}

// checkTransport checks the checksum of a whole TCP segment or UDP datagram.
// Other protocols pass: the stack has no use for them.
func (f *filter) checkTransport(proto tcpip.TransportProtocolNumber, body []byte, src, dst tcpip.Address) bool {
	switch proto {
	case header.TCPProtocolNumber:
		if len(body) < header.TCPMinimumSize {
			f.stats.DroppedShort.Add(1)
			return false
		}
	case header.UDPProtocolNumber:
		if len(body) < header.UDPMinimumSize {
			f.stats.DroppedShort.Add(1)
			return false
		}
		n := int(header.UDP(body).Length())
		if n < header.UDPMinimumSize || n > len(body) {
			f.stats.DroppedShort.Add(1)
			return false
		}
		body = body[:n]
		if header.UDP(body).Checksum() == 0 && src.Len() == header.IPv4AddressSize {
			return true // RFC 768: none was made
		}
	default:
		return true
	}
	// The sum over pseudo header and segment, checksum included, is all ones.
	sum := header.PseudoHeaderChecksum(proto, src, dst, uint16(len(body)))
	if checksum.Checksum(body, sum) != 0xffff {
		f.stats.DroppedChecksum.Add(1)
		return false
	}
	return true
}
