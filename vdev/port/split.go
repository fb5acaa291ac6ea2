// SPDX-License-Identifier: Apache-2.0

package port

import (
	"bytes"
	"encoding/binary"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/checksum"
	"gvisor.dev/gvisor/pkg/tcpip/header"

	"toebox/firmware/engine"
)

// minSegment is the smallest size that a frame is cut to, in bytes of payload, as
// in Linux (TCP_MIN_SND_MSS): a size of 1 would make 65,000 frames of one.
const minSegment = 48

// split turns a frame into what a wire would carry: a frame that stands for
// many becomes those, and every checksum is complete. The results are copies. A
// frame whose metadata does not fit its bytes stays in one piece.
func split(f *engine.Frame) [][]byte {
	whole := bytes.Join(f.Data, nil)
	ipv6 := f.GSO == engine.GSOTCPv6
	if f.GSO == engine.GSONone || f.GSOSize < minSegment || len(whole) > streamFrame ||
		tcpHeaders(whole, ipv6) != int(f.HeaderLen) || len(whole) == int(f.HeaderLen) {
		completeChecksum(whole, f)
		return [][]byte{whole}
	}
	head, payload := whole[:f.HeaderLen], whole[f.HeaderLen:]
	size := int(f.GSOSize)
	out := make([][]byte, 0, (len(payload)+size-1)/size)
	for at := 0; at < len(payload); at += size {
		part := payload[at:min(at+size, len(payload))]
		b := append(append(make([]byte, 0, len(head)+len(part)), head...), part...)
		segment(b, at, at+len(part) == len(payload), ipv6, len(out))
		out = append(out, b)
	}
	return out
}

// tcpHeaders is the length of the headers of b if it is TCP over IP, Ethernet's
// included, else -1.
func tcpHeaders(b []byte, ipv6 bool) int {
	const eth = header.EthernetMinimumSize
	ipLen, proto := header.IPv6MinimumSize, header.IPv6ProtocolNumber
	if !ipv6 {
		ipLen, proto = header.IPv4MinimumSize, header.IPv4ProtocolNumber
	}
	if len(b) < eth+ipLen+header.TCPMinimumSize || header.Ethernet(b).Type() != proto {
		return -1
	}
	next := tcpip.TransportProtocolNumber(0)
	if ipv6 {
		next = header.IPv6(b[eth:]).TransportProtocol()
	} else {
		ip := header.IPv4(b[eth:])
		next, ipLen = ip.TransportProtocol(), int(ip.HeaderLength())
	}
	if next != header.TCPProtocolNumber || ipLen < header.IPv4MinimumSize || len(b) < eth+ipLen+header.TCPMinimumSize {
		return -1
	}
	tcpLen := int(header.TCP(b[eth+ipLen:]).DataOffset())
	if tcpLen < header.TCPMinimumSize || eth+ipLen+tcpLen > len(b) {
		return -1
	}
	return eth + ipLen + tcpLen
}

// segment makes b, a copy of the headers with a part of the data, a frame of
// its own: the i-th, with the data from offset at on.
func segment(b []byte, at int, last, ipv6 bool, i int) {
	l3 := b[header.EthernetMinimumSize:]
	var src, dst tcpip.Address
	var l4 []byte
	if ipv6 {
		ip := header.IPv6(l3)
		l4 = l3[header.IPv6MinimumSize:]
		ip.SetPayloadLength(uint16(len(l4)))
		src, dst = ip.SourceAddress(), ip.DestinationAddress()
	} else {
		ip := header.IPv4(l3)
		l4 = l3[ip.HeaderLength():]
		ip.SetTotalLength(uint16(len(l3)))
		ip.SetID(ip.ID() + uint16(i))
		ip.SetChecksum(0)
		ip.SetChecksum(^ip.CalculateChecksum())
		src, dst = ip.SourceAddress(), ip.DestinationAddress()
	}
	tcp := header.TCP(l4)
	tcp.SetSequenceNumber(tcp.SequenceNumber() + uint32(at))
	flags := tcp.Flags()
	if !last {
		flags &^= header.TCPFlagFin | header.TCPFlagPsh
	}
	if i > 0 {
		flags &^= header.TCPFlagCwr // RFC 3168: on the first one only
	}
	tcp.SetFlags(uint8(flags))
	tcp.SetChecksum(0)
	sum := header.PseudoHeaderChecksum(header.TCPProtocolNumber, src, dst, uint16(len(l4)))
	binary.BigEndian.PutUint16(l4[header.TCPChecksumOffset:], ^checksum.Checksum(l4, sum))
}
