// SPDX-License-Identifier: Apache-2.0

package port

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"os"

	"golang.org/x/sys/unix"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"gvisor.dev/gvisor/pkg/waiter"
)

// Our tunables.
const (
	dnsPort = 53
	// maxPending bounds the outbound connects that are not decided yet, those
	// that wait for their turn to dial included. Beyond it SYNs are dropped,
	// and come again.
	maxPending = 16384
)

// verdict is where a destination of the adapter leads.
type verdict uint8

const (
	dialIt       verdict = iota // as it is, or as the host's loopback
	askResolver                 // the gateway's resolver
	denied                      // on the deny list
	noSuchHost                  // on the adapter's network, where nobody else lives
	nobodyListen                // an address of the gateway that serves nothing there
)

// route decides where a connection or datagram to dst goes.
func (n *NAT) route(dst netip.AddrPort) (netip.AddrPort, verdict) {
	a := dst.Addr()
	switch {
	case a == n.gateway:
		return netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), dst.Port()), dialIt
	case a == n.gateway6:
		return netip.AddrPortFrom(netip.IPv6Loopback(), dst.Port()), dialIt
	case a == n.resolver || a == n.resolver6:
		if dst.Port() == dnsPort {
			return dst, askResolver
		}
		return dst, nobodyListen
	case n.cfg.Network.Contains(a) || n.cfg.Network6.Contains(a):
		return dst, noSuchHost
	}
	for _, p := range n.cfg.Deny {
		if p.Contains(a) {
			return dst, denied
		}
	}
	return dst, dialIt
}

// forwardTCP catches the adapter's connects.
func (n *NAT) forwardTCP() {
	// The limit is kept in front of the forwarder, where it can be counted.
	fw := tcp.NewForwarder(n.stack, 0, 2*maxPending, n.outbound)
	n.stack.SetTransportProtocolHandler(tcp.ProtocolNumber, func(id stack.TransportEndpointID, pkt *stack.PacketBuffer) bool {
		h := header.TCP(pkt.TransportHeader().Slice())
		if len(h) < header.TCPMinimumSize || h.Flags()&(header.TCPFlagSyn|header.TCPFlagAck) != header.TCPFlagSyn {
			return false
		}
		n.mu.Lock()
		_, again := n.pending[id]
		full := len(n.pending) >= maxPending || n.conns >= n.cfg.Connections
		drop := n.closed || !again && full
		if !drop && !again {
			n.pending[id] = h.SequenceNumber()
			n.conns++
		}
		n.mu.Unlock()
		if drop {
			n.stats.TCPNoRoom.Add(1)
			return true
		}
		if again {
			return true
		}
		n.stats.TCPDialing.Add(1)
		if fw.HandlePacket(id, pkt) {
			return true
		}
		n.settled(id)
		n.release()
		return false
	})
}

// settled takes a connect off the list of undecided ones, and returns the
// sequence number of its SYN.
func (n *NAT) settled(id stack.TransportEndpointID) uint32 {
	n.mu.Lock()
	defer n.mu.Unlock()
	seq, ok := n.pending[id]
	if ok {
		delete(n.pending, id)
		n.stats.TCPDialing.Add(^uint64(0))
	}
	return seq
}

// release gives back a place among the connections.
func (n *NAT) release() {
	n.mu.Lock()
	n.conns--
	n.mu.Unlock()
}

// reserve takes a place among the connections.
func (n *NAT) reserve() bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.closed || n.conns >= n.cfg.Connections {
		return false
	}
	n.conns++
	return true
}

// outbound serves one connect of the adapter in a goroutine of its own. The
// host's socket is dialled first, so that the adapter's handshake ends as the
// host's did.
func (n *NAT) outbound(r *tcp.ForwarderRequest) {
	id := r.ID()
	defer n.release()
	defer n.settled(id)
	if !n.enter(nil) {
		r.Complete(false)
		return
	}
	defer n.leave(nil)
	dst, v := n.route(netip.AddrPortFrom(toNetip(id.LocalAddress), id.LocalPort))
	var (
		c   net.Conn
		err error
	)
	switch v {
	case dialIt:
		c, err = n.dial("tcp", dst)
	case askResolver:
		c, err = n.dialResolver()
	case denied:
		n.stats.TCPDenied.Add(1)
		r.Complete(true)
		return
	case noSuchHost:
		err = unix.EHOSTUNREACH
	default:
		err = unix.ECONNREFUSED
	}
	host, ok := c.(*net.TCPConn)
	if err == nil && !ok {
		c.Close()
		err = errors.New("port: dial: not a TCP connection")
	}
	if err != nil {
		n.refuse(r, n.settled(id), err)
		return
	}
	wq := &waiter.Queue{}
	ep, terr := r.CreateEndpoint(wq)
	r.Complete(false)
	n.settled(id)
	if terr != nil {
		n.stats.TCPAborted.Add(1)
		host.SetLinger(0)
		host.Close()
		return
	}
	n.stats.TCPOutbound.Add(1)
	n.runFlow(ep, wq, host)
}

// dial opens a host socket: a stream when its turn has come, a datagram socket
// at once, since that does not wait for anyone.
func (n *NAT) dial(network string, dst netip.AddrPort) (net.Conn, error) {
	if network == "tcp" {
		select {
		case n.dials <- struct{}{}:
		case <-n.ctx.Done():
			return nil, net.ErrClosed
		}
		defer func() { <-n.dials }()
	}
	ctx, cancel := context.WithTimeout(n.ctx, n.cfg.DialTimeout)
	defer cancel()
	return n.cfg.Dial(ctx, network, dst.String())
}

// refuse answers a connect that failed on the host's side: a reset for a
// refusal, an ICMP error for a target that cannot be reached.
func (n *NAT) refuse(r *tcp.ForwarderRequest, seq uint32, err error) {
	id := r.ID()
	kind := unreachNone
	var timeout interface{ Timeout() bool }
	switch {
	case n.ctx.Err() != nil:
		n.stats.TCPAborted.Add(1) // with the gateway, which is no news
	case errors.Is(err, unix.ECONNREFUSED), errors.Is(err, unix.ECONNRESET), errors.Is(err, errNoResolver):
		n.stats.TCPRefused.Add(1)
	case errors.Is(err, unix.ENETUNREACH), errors.Is(err, unix.EADDRNOTAVAIL), errors.Is(err, unix.EAFNOSUPPORT):
		n.stats.TCPUnreachable.Add(1)
		kind = unreachNet
	case errors.Is(err, unix.EHOSTUNREACH), errors.Is(err, unix.EHOSTDOWN):
		n.stats.TCPUnreachable.Add(1)
		kind = unreachHost
	case errors.Is(err, os.ErrDeadlineExceeded), errors.As(err, &timeout) && timeout.Timeout():
		n.stats.TCPTimedOut.Add(1)
		kind = unreachHost
	default:
		// Descriptors, most likely, or a local policy.
		n.stats.TCPNoRoom.Add(1)
		n.warn("outbound connect failed", "to", toNetip(id.LocalAddress), "port", id.LocalPort, "err", err)
	}
	r.Complete(kind == unreachNone)
	if kind != unreachNone {
		n.sendUnreachable(kind, tcp.ProtocolNumber, id, seq)
	}
}

// unreach is the kind of an ICMP destination unreachable message.
type unreach uint8

const (
	unreachNone unreach = iota
	unreachNet
	unreachHost
	unreachPort
)

// sendUnreachable tells the adapter that a packet of id went nowhere. The ICMP
// message quotes the IP header and eight bytes of the transport header (RFC
// 792, RFC 4443), made anew: for TCP they are ports and sequence number.
func (n *NAT) sendUnreachable(kind unreach, proto tcpip.TransportProtocolNumber, id stack.TransportEndpointID, seq uint32) {
	v6 := id.LocalAddress.Len() == header.IPv6AddressSize
	netProto, from := header.IPv4ProtocolNumber, n.gateway
	if v6 {
		netProto, from = header.IPv6ProtocolNumber, n.gateway6
	}
	route, terr := n.stack.FindRoute(nicID, toAddress(from), id.RemoteAddress, netProto, false)
	if terr != nil {
		return
	}
	defer route.Release()

	const quoted = 8
	transport := make([]byte, quoted)
	// Source and destination port stand first in TCP and in UDP.
	header.UDP(transport).SetSourcePort(id.RemotePort)
	header.UDP(transport).SetDestinationPort(id.LocalPort)
	if proto == header.TCPProtocolNumber {
		h := append(header.TCP(transport), make([]byte, header.TCPMinimumSize-quoted)...)
		h.SetSequenceNumber(seq)
		transport = h[:quoted]
	} else {
		header.UDP(transport).SetLength(quoted)
	}

	ipLen := header.IPv4MinimumSize
	if v6 {
		ipLen = header.IPv6MinimumSize
	}
	pkt := stack.NewPacketBuffer(stack.PacketBufferOptions{
		ReserveHeaderBytes: int(route.MaxHeaderLength()) + header.ICMPv6MinimumSize + ipLen + quoted,
	})
	defer pkt.DecRef()
	b := pkt.TransportHeader().Push(header.ICMPv4MinimumSize + ipLen + quoted)
	quote := b[header.ICMPv4MinimumSize:]
	copy(quote[ipLen:], transport)
	params := stack.NetworkHeaderParams{TTL: 64, TOS: stack.DefaultTOS}
	if v6 {
		header.IPv6(quote).Encode(&header.IPv6Fields{
			PayloadLength: quoted, TransportProtocol: proto, HopLimit: 64,
			SrcAddr: id.RemoteAddress, DstAddr: id.LocalAddress,
		})
		pkt.TransportProtocolNumber = header.ICMPv6ProtocolNumber
		params.Protocol = header.ICMPv6ProtocolNumber
		h := header.ICMPv6(b)
		h.SetType(header.ICMPv6DstUnreachable)
		// Not "address unreachable", which netstack as the adapter's engine
		// passes over in silence: its connect would run into its timeout.
		h.SetCode(header.ICMPv6NetworkUnreachable)
		if kind == unreachPort {
			h.SetCode(header.ICMPv6PortUnreachable)
		}
		h.SetChecksum(header.ICMPv6Checksum(header.ICMPv6ChecksumParams{Header: h, Src: route.LocalAddress(), Dst: route.RemoteAddress()}))
	} else {
		ip := header.IPv4(quote)
		ip.Encode(&header.IPv4Fields{
			TotalLength: uint16(ipLen + quoted), Protocol: uint8(proto), TTL: 64,
			SrcAddr: id.RemoteAddress, DstAddr: id.LocalAddress,
		})
		ip.SetChecksum(^ip.CalculateChecksum())
		pkt.TransportProtocolNumber = header.ICMPv4ProtocolNumber
		params.Protocol = header.ICMPv4ProtocolNumber
		h := header.ICMPv4(b)
		h.SetType(header.ICMPv4DstUnreachable)
		switch kind {
		case unreachNet:
			h.SetCode(header.ICMPv4NetUnreachable)
		case unreachHost:
			h.SetCode(header.ICMPv4HostUnreachable)
		case unreachPort:
			h.SetCode(header.ICMPv4PortUnreachable)
		}
		h.SetChecksum(header.ICMPv4Checksum(h, 0))
	}
	route.WritePacket(params, pkt) // a lost error message is no error
}
