// SPDX-License-Identifier: Apache-2.0

package guestdriver

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"strconv"
	"strings"
	"time"

	"toebox/vdev/abi"
)

// dialMargin is how much longer than the caller's deadline the adapter may
// try, so that it is the caller's that ends a dial.
const dialMargin = time.Second

// Dialer connects over an adapter. Its zero value but for Adapter is usable.
type Dialer struct {
	Adapter   *Adapter
	Timeout   time.Duration // of the whole dial; 0: none of its own
	Deadline  time.Time
	LocalAddr net.Addr // *net.TCPAddr or *net.UDPAddr; nil: the adapter picks
	Near      *Conn    // on whose queue pair TCP connections are to be; nil: any
}

// Dialer returns a dialer over the adapter.
func (a *Adapter) Dialer() *Dialer { return &Dialer{Adapter: a} }

// Dial connects; see [Dialer.DialContext].
func (a *Adapter) Dial(network, address string) (net.Conn, error) {
	return a.Dialer().DialContext(context.Background(), network, address)
}

// DialContext connects; see [Dialer.DialContext].
func (a *Adapter) DialContext(ctx context.Context, network, address string) (net.Conn, error) {
	return a.Dialer().DialContext(ctx, network, address)
}

// Dial connects without a context.
func (d *Dialer) Dial(network, address string) (net.Conn, error) {
	return d.DialContext(context.Background(), network, address)
}

// DialContext connects to address on network tcp, tcp4 or tcp6, with a *[Conn],
// or makes a datagram endpoint with that peer on udp, udp4 or udp6, a
// *[PacketConn]. Names are resolved by the adapter's resolvers; of several
// addresses the first that answers is taken, IPv4 first.
func (d *Dialer) DialContext(ctx context.Context, network, address string) (net.Conn, error) {
	if d.Timeout > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, d.Timeout)
		defer cancel()
	}
	if !d.Deadline.IsZero() {
		var cancel context.CancelFunc
		ctx, cancel = context.WithDeadline(ctx, d.Deadline)
		defer cancel()
	}
	fail := func(addr net.Addr, err error) (net.Conn, error) {
		return nil, &net.OpError{Op: "dial", Net: network, Source: d.LocalAddr, Addr: addr, Err: err}
	}
	addrs, err := d.Adapter.resolve(ctx, network, address)
	if err != nil {
		return fail(nil, err)
	}
	var first error
	var firstAddr net.Addr
	for i, addr := range addrs {
		c, err := d.connect(ctx, network, addr, len(addrs)-i)
		if err == nil {
			return c, nil
		}
		if first == nil {
			first, firstAddr = err, net.Addr(net.TCPAddrFromAddrPort(addr))
			if isUDP(network) {
				firstAddr = net.UDPAddrFromAddrPort(addr)
			}
		}
		if ctx.Err() != nil {
			break
		}
	}
	return fail(firstAddr, first)
}

// connect tries one address; left says how many, this one included, share the
// time that remains.
func (d *Dialer) connect(ctx context.Context, network string, addr netip.AddrPort, left int) (net.Conn, error) {
	t := abi.Target{Protocol: 6, Count: 1, Remote: addr, V6: addr.Addr().Is6()}
	var ap netip.AddrPort
	switch l := d.LocalAddr.(type) {
	case nil:
	case *net.TCPAddr:
		ap = l.AddrPort()
	case *net.UDPAddr:
		ap = l.AddrPort()
	}
	if d.LocalAddr != nil {
		if d.LocalAddr.Network() != network[:3] {
			return nil, &net.AddrError{Err: "mismatched local address type", Addr: d.LocalAddr.String()}
		}
		local := ap.Addr().Unmap()
		if local.IsValid() && !local.IsUnspecified() && local.Is4() != addr.Addr().Is4() {
			return nil, &net.AddrError{Err: "mismatched local address type", Addr: d.LocalAddr.String()}
		}
		t.Local = netip.AddrPortFrom(local, ap.Port())
	}
	if end, ok := ctx.Deadline(); ok {
		remain := time.Until(end)
		if left > 1 {
			var cancel context.CancelFunc
			remain = max(remain/time.Duration(left), min(remain, 2*time.Second))
			ctx, cancel = context.WithTimeout(ctx, remain)
			defer cancel()
		}
		t.Limit = uint64(max(0, remain) + dialMargin)
	}
	if err := ctx.Err(); err != nil {
		return nil, ctxErr(err)
	}
	if isUDP(network) {
		p, err := d.dialPacket(ctx, network, t)
		if err != nil {
			return nil, err
		}
		return p, nil
	}
	a := d.Adapter
	if err := a.beginDial(); err != nil {
		return nil, err
	}
	defer a.endDial()
	call := newCall()
	call.remote = &target{network: network, addr: addr}
	call.born = a.defaults.Load()
	ln := a.lane()
	if d.Near != nil {
		if ln = d.Near.lane(); ln.a != a {
			return nil, ErrOtherQueue
		}
	}
	res, err := ln.openTarget(ctx, request{kind: kindConnect, call: call}, t, append(a.carryAttrs(), call.born.over(nil, nil).list()...)...)
	if err != nil {
		return nil, ctxErr(err)
	}
	return res.conn, nil
}

// beginDial counts a connection that is asked for.
func (a *Adapter) beginDial() error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.closing {
		return errClosed
	}
	if len(a.conns)+len(a.carried)+a.dialing >= a.maxConns() {
		return statusErr("socket", abi.StatusNoMemory)
	}
	a.dialing++
	return nil
}

func (a *Adapter) endDial() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.dialing--
}

// Package net's messages for an address that is not there, and for a host that
// has no address of the family asked for.
var (
	errNoAddress  = errors.New("missing address")
	errNoSuitable = errors.New("no suitable address found")
)

// resolve returns the addresses that network and address mean.
func (a *Adapter) resolve(ctx context.Context, network, address string) ([]netip.AddrPort, error) {
	ipNetwork := "ip"
	switch network {
	case "tcp", "udp":
	case "tcp4", "tcp6", "udp4", "udp6":
		ipNetwork = "ip" + network[3:]
	default:
		return nil, net.UnknownNetworkError(network)
	}
	if address == "" {
		return nil, errNoAddress
	}
	host, service, err := net.SplitHostPort(address)
	if err != nil {
		return nil, err
	}
	port, err := strconv.ParseUint(service, 10, 16)
	if err != nil {
		n, err := net.DefaultResolver.LookupPort(ctx, network, service)
		if err != nil {
			return nil, err
		}
		port = uint64(n)
	}
	var ips []netip.Addr
	if ip, err := netip.ParseAddr(host); err == nil {
		ips = []netip.Addr{ip}
	} else if host == "" {
		return nil, &net.AddrError{Err: "missing host", Addr: address}
	} else if ips, err = a.Resolver().LookupNetIP(ctx, ipNetwork, host); err != nil {
		return nil, err
	}
	var v4, v6 []netip.AddrPort
	for _, ip := range ips {
		switch ip = ip.Unmap(); {
		case ip.Is4() && ipNetwork != "ip6":
			v4 = append(v4, netip.AddrPortFrom(ip, uint16(port)))
		case ip.Is6() && ipNetwork != "ip4":
			v6 = append(v6, netip.AddrPortFrom(ip, uint16(port)))
		}
	}
	all := append(v4, v6...)
	if len(all) == 0 {
		return nil, &net.AddrError{Err: errNoSuitable.Error(), Addr: host}
	}
	return all, nil
}

// Resolver returns a resolver that asks the resolvers of the adapter, through
// the adapter, over TCP (RFC 7766).
func (a *Adapter) Resolver() *net.Resolver {
	return &net.Resolver{
		PreferGo: true,
		Dial: func(ctx context.Context, _, _ string) (net.Conn, error) {
			servers, err := a.Addresses(ctx, 0, abi.AttrResolvers)
			if err != nil {
				return nil, err
			}
			err = errors.New("the adapter has no resolvers")
			for _, s := range servers {
				if !s.Addr.IsValid() {
					continue
				}
				port := s.Port
				if port == 0 {
					port = 53
				}
				var c net.Conn
				address := netip.AddrPortFrom(s.Addr, port).String()
				if c, err = a.DialContext(ctx, "tcp", address); err == nil {
					return c, nil
				}
			}
			return nil, err
		},
	}
}

// listenAddrs returns what a listener on network and address is bound to.
func listenAddrs(network, address string, v6 bool) ([]netip.AddrPort, error) {
	switch network {
	case "tcp", "tcp4", "tcp6", "udp", "udp4", "udp6":
	default:
		return nil, net.UnknownNetworkError(network)
	}
	host, service, err := net.SplitHostPort(address)
	if err != nil {
		return nil, err
	}
	port := uint64(0)
	if service != "" {
		if port, err = strconv.ParseUint(service, 10, 16); err != nil {
			n, err := net.LookupPort(network, service)
			if err != nil {
				return nil, err
			}
			port = uint64(n)
		}
	}
	at := func(ip netip.Addr) netip.AddrPort { return netip.AddrPortFrom(ip, uint16(port)) }
	any4, any6 := at(netip.IPv4Unspecified()), at(netip.IPv6Unspecified())
	if host == "" {
		switch {
		case network[3:] == "6":
			return []netip.AddrPort{any6}, nil
		case network[3:] == "4" || !v6:
			return []netip.AddrPort{any4}, nil
		}
		return []netip.AddrPort{any4, any6}, nil
	}
	ip, err := netip.ParseAddr(strings.Trim(host, "[]"))
	if err != nil {
		return nil, &net.AddrError{Err: "not an IP address", Addr: host}
	}
	ip = ip.Unmap()
	if ip.Is4() && network[3:] == "6" || ip.Is6() && network[3:] == "4" {
		return nil, &net.AddrError{Err: errNoSuitable.Error(), Addr: host}
	}
	return []netip.AddrPort{at(ip)}, nil
}
