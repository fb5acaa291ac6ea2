// SPDX-License-Identifier: Apache-2.0

package port

import (
	"encoding/binary"
	"errors"
	"net/netip"
	"sync"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/transport/udp"
	"gvisor.dev/gvisor/pkg/waiter"
)

// DHCP message layout, RFC 2131 section 2. Numbers are big-endian.
const (
	dhcpOp      = 0
	dhcpHType   = 1
	dhcpHLen    = 2
	dhcpXID     = 4
	dhcpFlags   = 10
	dhcpCIAddr  = 12
	dhcpYIAddr  = 16
	dhcpSIAddr  = 20
	dhcpGIAddr  = 24
	dhcpCHAddr  = 28
	dhcpCookie  = 236
	dhcpOptions = 240
	// dhcpMinReply is the BOOTP message size that old relays insist on, RFC
	// 1542 section 2.1.
	dhcpMinReply = 300

	bootRequest  = 1
	bootReply    = 2
	htypeEther   = 1
	dhcpMagic    = 0x63825363
	dhcpServer67 = 67
	dhcpClient68 = 68
)

// DHCP options, RFC 2132.
const (
	optPad           = 0
	optSubnetMask    = 1
	optRouter        = 3
	optDNS           = 6
	optDomainName    = 15
	optInterfaceMTU  = 26
	optRequestedIP   = 50
	optLeaseTime     = 51
	optMessageType   = 53
	optServerID      = 54
	optMessage       = 56
	optRenewalTime   = 58
	optRebindingTime = 59
	optEnd           = 255
)

// DHCP message types, RFC 2132 section 9.6.
const (
	dhcpDiscover = 1
	dhcpOffer    = 2
	dhcpRequest  = 3
	dhcpDecline  = 4
	dhcpAck      = 5
	dhcpNak      = 6
	dhcpRelease  = 7
	dhcpInform   = 8
)

// leaseSeconds is nominal: the address never goes to anyone else.
const leaseSeconds = 86400

// dhcpServer answers for the one address it has. It keeps no state.
type dhcpServer struct {
	server, client, resolver netip.Addr
	network                  netip.Prefix
	mtu                      int
	domain                   string
}

var errDHCP = errors.New("port: malformed DHCP message")

// dhcpMessage is what the server looks at in a request.
type dhcpMessage struct {
	kind      byte
	requested netip.Addr // option 50, invalid without it
	server    netip.Addr // option 54, invalid without it
	ciaddr    netip.Addr
}

// parseDHCP judges a request: an Ethernet client's, not relayed, options in
// order, each at most once and of its length, ended by the end option.
func parseDHCP(b []byte) (dhcpMessage, error) {
	var m dhcpMessage
	if len(b) < dhcpOptions || b[dhcpOp] != bootRequest || b[dhcpHType] != htypeEther || b[dhcpHLen] != header.EthernetAddressSize ||
		binary.BigEndian.Uint32(b[dhcpCookie:]) != dhcpMagic || binary.BigEndian.Uint32(b[dhcpGIAddr:]) != 0 {
		return m, errDHCP
	}
	m.ciaddr = netip.AddrFrom4([4]byte(b[dhcpCIAddr:]))
	seen := [256]bool{}
	for o := b[dhcpOptions:]; ; {
		if len(o) == 0 {
			return m, errDHCP
		}
		code := o[0]
		if code == optPad {
			o = o[1:]
			continue
		}
		if code == optEnd {
			break
		}
		if len(o) < 2 || len(o) < 2+int(o[1]) || seen[code] {
			return m, errDHCP
		}
		seen[code] = true
		v := o[2 : 2+int(o[1])]
		o = o[2+int(o[1]):]
		switch code {
		case optMessageType:
			if len(v) != 1 {
				return m, errDHCP
			}
			m.kind = v[0]
		case optRequestedIP, optServerID:
			if len(v) != 4 {
				return m, errDHCP
			}
			a := netip.AddrFrom4([4]byte(v))
			if code == optRequestedIP {
				m.requested = a
			} else {
				m.server = a
			}
		}
	}
	if m.kind == 0 {
		return m, errDHCP // BOOTP
	}
	return m, nil
}

// answer returns the reply to a request, nil when it gets none.
func (s *dhcpServer) answer(b []byte) ([]byte, error) {
	m, err := parseDHCP(b)
	if err != nil {
		return nil, err
	}
	switch m.kind {
	case dhcpDiscover:
		return s.reply(b, dhcpOffer, s.client), nil
	case dhcpRequest:
		if m.server.IsValid() && m.server != s.server {
			return nil, nil // the client chose another server
		}
		want := m.requested
		if !want.IsValid() {
			want = m.ciaddr // renewing
		}
		if want != s.client {
			return s.reply(b, dhcpNak, netip.IPv4Unspecified()), nil
		}
		return s.reply(b, dhcpAck, s.client), nil
	case dhcpInform:
		return s.reply(b, dhcpAck, netip.IPv4Unspecified()), nil
	case dhcpDecline, dhcpRelease:
		return nil, nil
	}
	return nil, errDHCP
}

// reply builds an answer to the request b (RFC 2131 section 4.3.1, table 3).
func (s *dhcpServer) reply(b []byte, kind byte, yiaddr netip.Addr) []byte {
	r := make([]byte, dhcpOptions, dhcpMinReply)
	r[dhcpOp], r[dhcpHType], r[dhcpHLen] = bootReply, htypeEther, header.EthernetAddressSize
	copy(r[dhcpXID:dhcpXID+4], b[dhcpXID:])
	copy(r[dhcpFlags:dhcpFlags+2], b[dhcpFlags:])
	copy(r[dhcpCHAddr:dhcpCHAddr+16], b[dhcpCHAddr:])
	binary.BigEndian.PutUint32(r[dhcpCookie:], dhcpMagic)
	if kind == dhcpAck {
		copy(r[dhcpCIAddr:dhcpCIAddr+4], b[dhcpCIAddr:])
	}
	copy(r[dhcpYIAddr:], yiaddr.AsSlice())

	opt := func(code byte, v ...byte) { r = append(append(r, code, byte(len(v))), v...) }
	opt(optMessageType, kind)
	opt(optServerID, s.server.AsSlice()...)
	if kind == dhcpNak {
		opt(optMessage, []byte("not your address")...)
	} else {
		if yiaddr == s.client { // not in the answer to an inform
			opt(optLeaseTime, binary.BigEndian.AppendUint32(nil, leaseSeconds)...)
			opt(optRenewalTime, binary.BigEndian.AppendUint32(nil, leaseSeconds/2)...)
			opt(optRebindingTime, binary.BigEndian.AppendUint32(nil, leaseSeconds/8*7)...)
		}
		opt(optSubnetMask, binary.BigEndian.AppendUint32(nil, ^uint32(0)<<(32-s.network.Bits()))...)
		opt(optRouter, s.server.AsSlice()...)
		opt(optDNS, s.resolver.AsSlice()...)
		opt(optInterfaceMTU, byte(s.mtu>>8), byte(s.mtu))
		if s.domain != "" && len(s.domain) < 256 {
			opt(optDomainName, []byte(s.domain)...)
		}
	}
	r = append(r, optEnd)
	for len(r) < dhcpMinReply {
		r = append(r, optPad)
	}
	return r
}

// serveDHCP listens on the gateway. Answers are broadcast: the client may not
// have the address yet that they would go to.
func (n *NAT) serveDHCP() error {
	s, err := n.listenUDP(netip.AddrPortFrom(netip.IPv4Unspecified(), dhcpServer67))
	if err != nil {
		return err
	}
	s.ep.SocketOptions().SetBroadcast(true)
	return s.serve(func(b []byte, from tcpip.FullAddress) {
		n.stats.DHCPRequests.Add(1)
		r, err := n.dhcp.answer(b)
		if err != nil || from.Port != dhcpClient68 {
			n.stats.DHCPDropped.Add(1)
			return
		}
		if r == nil {
			return
		}
		if s.send(r, tcpip.FullAddress{NIC: nicID, Addr: header.IPv4Broadcast, Port: dhcpClient68}) {
			n.stats.DHCPReplies.Add(1)
		}
	})
}

// service is a datagram endpoint of the gateway itself.
type service struct {
	n    *NAT
	ep   tcpip.Endpoint
	wq   *waiter.Queue
	once sync.Once
	done chan struct{} // closed by shut
}

func (n *NAT) listenUDP(at netip.AddrPort) (*service, error) {
	s := &service{n: n, wq: &waiter.Queue{}, done: make(chan struct{})}
	ep, err := n.stack.NewEndpoint(udp.ProtocolNumber, networkProtocol(at.Addr()), s.wq)
	if err != nil {
		return nil, goError(err)
	}
	s.ep = ep
	local := tcpip.FullAddress{NIC: nicID, Port: at.Port()}
	if !at.Addr().IsUnspecified() {
		local.Addr = toAddress(at.Addr())
	}
	if err := ep.Bind(local); err != nil {
		ep.Close()
		return nil, goError(err)
	}
	return s, nil
}

// shut implements closer.
func (s *service) shut() { s.once.Do(func() { close(s.done) }) }

// serve passes datagrams to handle, one after the other, until Close. The bytes
// are valid during the call only.
func (s *service) serve(handle func(b []byte, from tcpip.FullAddress)) error {
	if !s.n.enter(s) {
		s.ep.Close()
		return errors.New("port: closed")
	}
	go func() {
		defer s.n.leave(s)
		defer s.ep.Close()
		e, ch := waiter.NewChannelEntry(waiter.ReadableEvents)
		s.wq.EventRegister(&e)
		defer s.wq.EventUnregister(&e)
		var c collector
		for {
			c.b = c.b[:0]
			r, err := s.ep.Read(&c, tcpip.ReadOptions{NeedRemoteAddr: true})
			if err == nil {
				handle(c.b, r.RemoteAddr)
				continue
			}
			select {
			case <-ch:
			case <-s.done:
				return
			}
		}
	}()
	return nil
}

func (s *service) send(b []byte, to tcpip.FullAddress) bool {
	p := payload(b)
	_, err := s.ep.Write(&p, tcpip.WriteOptions{To: &to})
	return err == nil
}
