// SPDX-License-Identifier: Apache-2.0

package guestdriver

import (
	"context"
	"net"
	"net/netip"
	"strconv"
	"time"

	"toebox/vdev/abi"
)

// ListenPacket makes a datagram endpoint without a peer; network is udp, udp4
// or udp6. An empty host means every address, of both families with udp. The
// result is a *[PacketConn].
func (a *Adapter) ListenPacket(network, address string) (net.PacketConn, error) {
	p, err := a.listenPacket(network, address)
	if err != nil {
		return nil, err
	}
	return p, nil
}

func (a *Adapter) listenPacket(network, address string) (*PacketConn, error) {
	fail := func(at netip.AddrPort, err error) (*PacketConn, error) {
		var addr net.Addr
		if at.IsValid() {
			addr = net.UDPAddrFromAddrPort(at)
		}
		return nil, &net.OpError{Op: "listen", Net: network, Addr: addr, Err: err}
	}
	addrs, err := listenAddrs(network, address, a.features&abi.FeatureIPv6 != 0)
	if err != nil {
		return fail(netip.AddrPort{}, err)
	}
	if !isUDP(network) {
		return nil, wrongKind(network, net.TCPAddrFromAddrPort(addrs[0]))
	}
	ctx, cancel := timeout(startTimeout)
	defer cancel()
	p := newPacketConn(network)
	p.born = a.defaults.Load()
	for i, at := range addrs {
		if at.Port() == 0 && i > 0 {
			at = netip.AddrPortFrom(at.Addr(), uint16(p.local.Port))
		}
		_, err := p.open(ctx, a.lane(), kindListen, abi.Target{Protocol: 17, Count: 1, Local: at, V6: at.Addr().Is6()}, at)
		if err != nil && i > 0 && at.Addr().Is6() {
			break // "" with udp: no IPv6 here, IPv4 serves
		}
		if err != nil {
			_ = p.Close()
			return fail(at, err)
		}
	}
	if len(p.ends) == 2 {
		p.local.IP = net.IPv6unspecified
	}
	return p, nil
}

// wrongKind is package net's error for a network that Listen or ListenPacket
// does not serve.
func wrongKind(network string, at net.Addr) error {
	return &net.OpError{Op: "listen", Net: network, Addr: at, Err: &net.AddrError{Err: "unexpected address type", Addr: at.String()}}
}

// ListenMulticastUDP makes a datagram endpoint on every address that has joined
// a group; network is udp, udp4 or udp6. As package net's it does not get what
// it sends to the group itself.
func (a *Adapter) ListenMulticastUDP(network string, group *net.UDPAddr) (*PacketConn, error) {
	if group == nil {
		return nil, &net.OpError{Op: "listen", Net: network, Err: errNoAddress}
	}
	g := group.AddrPort()
	family := "udp4"
	if g.Addr().Unmap().Is6() {
		family = "udp6"
	}
	if network != "udp" && network != family {
		return nil, &net.OpError{Op: "listen", Net: network, Addr: group, Err: &net.AddrError{Err: errNoSuitable.Error(), Addr: group.IP.String()}}
	}
	p, err := a.listenPacket(family, net.JoinHostPort("", strconv.Itoa(int(g.Port()))))
	if err != nil {
		return nil, err
	}
	p.network = network
	if err = p.JoinGroup(group.IP); err == nil {
		err = p.SetMulticastLoopback(false)
	}
	if err != nil {
		_ = p.Close()
		return nil, err
	}
	return p, nil
}

// dialPacket makes a datagram endpoint with a peer.
func (d *Dialer) dialPacket(ctx context.Context, network string, t abi.Target) (*PacketConn, error) {
	p := newPacketConn(network)
	p.born = d.Adapter.defaults.Load()
	t.Protocol = 17
	t.Limit = 0
	p.remote = net.UDPAddrFromAddrPort(t.Remote)
	if _, err := p.open(ctx, d.Adapter.lane(), kindConnect, t, t.Remote); err != nil {
		_ = p.Close()
		return nil, ctxErr(err)
	}
	return p, nil
}

// open adds an end, which has attributes. Broadcasts are allowed, as package net has it.
func (p *PacketConn) open(ctx context.Context, ln *lane, k kind, t abi.Target, at netip.AddrPort, attrs ...scalarAttr) (*packetEnd, error) {
	if err := ln.a.beginDial(); err != nil {
		return nil, err
	}
	defer ln.a.endDial()
	call := newCall()
	call.packet, call.remote = p, &target{network: p.network, addr: at}
	call.spec = packetSpec{k, t, at}
	res, err := ln.openTarget(ctx, request{kind: k, call: call}, t, append(attrs, scalarAttr{abi.AttrBroadcast, 1})...)
	return res.end, err
}

// packetOpened acts on the answer to a request for an end.
func (ln *lane) packetOpened(r request, f *abi.Fields) {
	a, p := ln.a, r.call.packet
	op := "bind"
	if r.kind == kindConnect {
		op = "connect"
	}
	if s := abi.Status(f.Aux); s != abi.StatusOK {
		a.finish(r, result{err: statusErr(op, s)})
		return
	}
	e := &packetEnd{p: p, ln: ln, id: f.Conn, spec: r.call.spec, v6: r.call.remote.addr.Addr().Is6()}
	if !a.enter(e) {
		if f.Conn == 0 || a.conn(f.Conn) != nil {
			a.bad.conn.Add(1)
		} else {
			e.terminateLocked() // nobody else knows it
		}
		a.finish(r, result{err: statusErr("socket", abi.StatusNoMemory)})
		return
	}
	p.mu.Lock()
	if p.closed { // nobody waits any more
		e.terminateLocked()
		p.mu.Unlock()
		a.finish(r, result{err: errClosed})
		return
	}
	ip := r.call.remote.addr.Addr()
	if r.kind == kindConnect {
		ip = r.call.remote.local(a)
	}
	if p.local == nil {
		p.local = &net.UDPAddr{IP: net.IP(ip.AsSlice()), Port: int(uint16(f.Length))}
	}
	p.ends = append(p.ends, e)
	err := e.beginLocked()
	p.mu.Unlock()
	if err != nil {
		a.finish(r, result{err: err}) // the caller closes
	} else if !r.call.deliver(result{end: e}) {
		a.ctl.release(r.buf)
		_ = p.Close() // at most the second time
	}
}

func isUDP(network string) bool { return network == "udp" || network == "udp4" || network == "udp6" }

// ID returns the adapter's id of the first end, for attributes.
func (p *PacketConn) ID() uint64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.ends) == 0 {
		return 0
	}
	return p.ends[0].id
}

// setError wraps an error as package net does for options.
func (p *PacketConn) setError(err error) error {
	if err == nil {
		return nil
	}
	return &net.OpError{Op: "set", Net: p.network, Addr: p.LocalAddr(), Err: err}
}

// set sets an attribute of all ends, or of those of the family of group.
func (p *PacketConn) set(attr abi.Attribute, value []byte, group netip.Addr) error {
	p.mu.Lock()
	ends, closed := append([]*packetEnd(nil), p.ends...), p.closed
	p.mu.Unlock()
	if closed {
		return p.setError(errClosed)
	}
	ctx, cancel := timeout(startTimeout)
	defer cancel()
	done := false
	for _, e := range ends {
		if group.IsValid() && group.Is6() != e.v6 {
			continue
		}
		done = true
		if err := e.ln.a.SetAttribute(ctx, e.id, attr, value); err != nil {
			return p.setError(err)
		}
	}
	p.mu.Lock()
	p.noteLocked(packetSetting{attr, value, group})
	p.mu.Unlock()
	if !done {
		return p.setError(&net.AddrError{Err: errNoSuitable.Error(), Addr: group.String()})
	}
	return nil
}

func (p *PacketConn) setScalar(attr abi.Attribute, v uint64) error {
	return p.set(attr, scalarBytes(v), netip.Addr{})
}

// JoinGroup joins a multicast group.
func (p *PacketConn) JoinGroup(ip net.IP) error { return p.group(abi.AttrJoin, ip) }

// LeaveGroup leaves a multicast group.
func (p *PacketConn) LeaveGroup(ip net.IP) error { return p.group(abi.AttrLeave, ip) }

func (p *PacketConn) group(attr abi.Attribute, ip net.IP) error {
	g, _ := netip.AddrFromSlice(ip)
	if g = g.Unmap(); !g.IsMulticast() {
		return p.setError(&net.AddrError{Err: "not a multicast address", Addr: ip.String()})
	}
	return p.set(attr, abi.AppendAddress(nil, abi.Address{Addr: g}), g)
}

// SetMulticastTTL sets the TTL, or hop limit, of multicast datagrams; 1 at first.
func (p *PacketConn) SetMulticastTTL(ttl int) error {
	return p.setScalar(abi.AttrMulticastTTL, uint64(ttl))
}

// SetMulticastLoopback sets whether endpoints of this adapter get what this one
// sends to their groups; true at first.
func (p *PacketConn) SetMulticastLoopback(on bool) error {
	return p.setScalar(abi.AttrMulticastLoop, scalarBool(on))
}

// SetBroadcast allows broadcasts, which is so at first, or forbids them.
func (p *PacketConn) SetBroadcast(on bool) error {
	return p.setScalar(abi.AttrBroadcast, scalarBool(on))
}

// SetTTL sets the TTL, or hop limit, of unicast datagrams.
func (p *PacketConn) SetTTL(ttl int) error { return p.setScalar(abi.AttrTTL, uint64(ttl)) }

// SetReadBuffer sets how much the adapter keeps for a reader that is late.
func (p *PacketConn) SetReadBuffer(bytes int) error {
	return p.setScalar(abi.AttrReceiveWindow, uint64(bytes))
}

// SetWriteBuffer sets how much may be on its way to the network.
func (p *PacketConn) SetWriteBuffer(bytes int) error {
	return p.setScalar(abi.AttrSendBuffer, uint64(bytes))
}

// LocalAddr returns a *net.UDPAddr.
func (p *PacketConn) LocalAddr() net.Addr { return p.local }

// RemoteAddr returns a *net.UDPAddr, or nil without a peer.
func (p *PacketConn) RemoteAddr() net.Addr {
	if p.remote == nil {
		return nil
	}
	return p.remote
}

// SetDeadline sets both deadlines. It reaches calls that wait already.
func (p *PacketConn) SetDeadline(t time.Time) error { return p.setDeadline(t, true, true) }

// SetReadDeadline sets the deadline of reads.
func (p *PacketConn) SetReadDeadline(t time.Time) error { return p.setDeadline(t, true, false) }

// SetWriteDeadline sets the deadline of writes. A datagram whose write it ends
// may have been sent.
func (p *PacketConn) SetWriteDeadline(t time.Time) error { return p.setDeadline(t, false, true) }

func (p *PacketConn) setDeadline(t time.Time, rd, wr bool) error {
	if !p.moveDeadlines(t, rd, wr) {
		return p.setError(errClosed)
	}
	return nil
}
