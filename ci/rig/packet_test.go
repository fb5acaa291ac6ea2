// SPDX-License-Identifier: Apache-2.0

package rig_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"syscall"
	"testing"
	"time"

	"toebox/guestdriver"
	"toebox/vdev/abi"
	"toebox/vdev/port"
)

// udpEcho sends each datagram back on a port of the host's loopback.
func udpEcho(t *testing.T) uint16 {
	t.Helper()
	c, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	t.Cleanup(func() { c.Close(); <-done })
	go func() {
		defer close(done)
		b := make([]byte, 1<<16)
		for {
			n, from, err := c.ReadFromUDPAddrPort(b)
			if err != nil {
				return
			}
			_, _ = c.WriteToUDPAddrPort(b[:n], from)
		}
	}()
	return netip.MustParseAddrPort(c.LocalAddr().String()).Port()
}

// refusing is a port of the host's loopback that refuses everybody: its socket
// has another peer.
func refusing(t *testing.T) uint16 {
	t.Helper()
	c, err := net.DialUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)}, &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1), Port: 1})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return netip.MustParseAddrPort(c.LocalAddr().String()).Port()
}

// udpConn is what the two have in common.
type udpConn interface {
	net.Conn
	net.PacketConn
	ReadFromUDPAddrPort([]byte) (int, netip.AddrPort, error)
	WriteToUDPAddrPort([]byte, netip.AddrPort) (int, error)
	WriteToUDP([]byte, *net.UDPAddr) (int, error)
	SetReadBuffer(int) error
	SetWriteBuffer(int) error
}

// network is package net on the loopback, or the driver behind a gateway.
type network struct {
	dial   func(ctx context.Context, network, address string) (net.Conn, error)
	listen func(network, address string) (net.PacketConn, error)
	host   netip.Addr // where the host's loopback is
	any    string
}

// word says what an error is, as far as a program can tell.
func word(err error) string {
	if err == nil {
		return "ok"
	}
	s := fmt.Sprintf("%T", err)
	var op *net.OpError
	if errors.As(err, &op) {
		s = fmt.Sprintf("%s on %s from %t to %t", op.Op, op.Net, op.Source != nil, op.Addr != nil)
	}
	for name, target := range map[string]error{
		"closed": net.ErrClosed, "deadline": os.ErrDeadlineExceeded, "connected": net.ErrWriteToConnected,
		"refused": syscall.ECONNREFUSED, "too long": syscall.EMSGSIZE, "no destination": syscall.EDESTADDRREQ,
		"in use": syscall.EADDRINUSE, "invalid": syscall.EINVAL,
	} {
		if errors.Is(err, target) {
			s += ", " + name
		}
	}
	var addr *net.AddrError
	if errors.As(err, &addr) {
		s += ", " + addr.Err
	}
	var ne net.Error
	if errors.As(err, &ne) && ne.Timeout() {
		s += ", time-out"
	}
	return s
}

// session is a program that uses datagram sockets, and says what it saw.
func session(t *testing.T, w network, echo, refuse uint16) (log []string) {
	say := func(f string, a ...any) { log = append(log, fmt.Sprintf(f, a...)) }
	at := netip.AddrPortFrom(w.host, echo)
	open := func(c any, err error) udpConn {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		u, ok := c.(udpConn)
		if !ok {
			t.Fatalf("%T is no UDP connection", c)
		}
		if err := u.SetDeadline(time.Now().Add(time.Minute)); err != nil {
			t.Fatal(err)
		}
		return u
	}
	b := make([]byte, 1<<16)
	pattern := func(n int) []byte { return bytes.Repeat([]byte("0123456789abcdef"), n/16+1)[:n] }

	// With a peer.
	c := open(w.dial(t.Context(), "udp4", at.String()))
	say("peer is right: %t", c.RemoteAddr().String() == at.String())
	for _, n := range []int{1, 1400, 9000, 65507, 0, 3} {
		k, err := c.Write(pattern(n))
		say("write %d: %d %s", n, k, word(err))
		k, err = c.Read(b)
		say("read: %d %s %t", k, word(err), bytes.Equal(b[:k], pattern(n)))
	}
	k, err := c.Write(pattern(65508))
	say("write too much: %d %s", k, word(err))
	_, err = c.Write(pattern(100))
	say("write: %s", word(err))
	k, err = c.Read(b[:10])
	say("read of a part: %d %s", k, word(err))
	k, err = c.Read(nil)
	say("read of nothing: %d %s", k, word(err))
	_, err = c.WriteTo(pattern(5), net.UDPAddrFromAddrPort(at))
	say("write to, with a peer: %s", word(err))
	_, err = c.Write(pattern(7))
	say("write: %s", word(err))
	k, from, err := c.ReadFromUDPAddrPort(b)
	say("read from: %d %s %t", k, word(err), from == at)
	say("buffers: %s %s", word(c.SetReadBuffer(64<<10)), word(c.SetWriteBuffer(64<<10)))
	say("deadline: %s", word(c.SetReadDeadline(time.Now().Add(-time.Second))))
	_, err = c.Read(b)
	say("read past it: %s", word(err))
	say("deadline: %s", word(c.SetDeadline(time.Time{})))
	blocked := make(chan error, 1)
	go func() { _, err := c.Read(make([]byte, 10)); blocked <- err }()
	say("close: %s", word(c.Close()))
	say("read that waited: %s", word(<-blocked))
	say("close again: %s", word(c.Close()))
	_, err = c.Write(b[:1])
	say("write when closed: %s", word(err))
	_, err = c.Read(b)
	say("read when closed: %s", word(err))
	say("deadline when closed: %s", word(c.SetDeadline(time.Time{})))

	// Without one.
	p := open(w.listen("udp4", w.any))
	local := p.LocalAddr().(*net.UDPAddr)
	say("local: %t, remote %v", local.Port != 0, p.RemoteAddr())
	for _, n := range []int{0, 1, 1472, 65507} {
		k, err := p.WriteToUDPAddrPort(pattern(n), at)
		say("write to %d: %d %s", n, k, word(err))
		k, from, err := p.ReadFrom(b)
		say("read from: %d %s %t", k, word(err), from.String() == at.String() && bytes.Equal(b[:k], pattern(n)))
	}
	_, err = p.WriteToUDPAddrPort(pattern(65508), at)
	say("write too much: %s", word(err))
	_, err = p.Write(pattern(1))
	say("write: %s", word(err))
	_, err = p.WriteTo(pattern(1), &net.TCPAddr{})
	say("write to another network: %s", word(err))
	_, err = p.WriteToUDP(pattern(1), nil)
	say("write to nobody: %s", word(err))
	_, err = p.WriteToUDPAddrPort(pattern(1), netip.MustParseAddrPort("[::1]:9"))
	say("write to another family: %s", word(err))
	_, err = p.WriteTo(pattern(20), net.UDPAddrFromAddrPort(at))
	say("write: %s", word(err))
	k, from, err = p.ReadFromUDPAddrPort(nil)
	say("read of nothing takes one: %d %s %t", k, word(err), from == at)
	_, err = w.listen("udp4", fmt.Sprintf("%s:%d", local.IP, local.Port))
	say("the same port: %s", word(err))
	say("close: %s", word(p.Close()))
	p = open(w.listen("udp4", fmt.Sprintf("%s:%d", local.IP, local.Port)))
	say("and again: %s", word(p.Close()))
	_, err = p.WriteToUDPAddrPort(nil, at)
	say("write to when closed: %s", word(err))

	// Refused: the next read says so, and the socket goes on.
	c = open(w.dial(t.Context(), "udp", netip.AddrPortFrom(w.host, refuse).String()))
	for range 2 {
		_, err = c.Write(pattern(1))
		say("write: %s", word(err))
		_, err = c.Read(b)
		say("refused: %s", word(err))
	}
	say("close: %s", word(c.Close()))
	_, err = w.listen("tcp", w.any)
	say("listen on tcp: %s", word(err))
	return log
}

// TestPacketConn holds the driver's datagram endpoints against package net's.
func TestPacketConn(t *testing.T) {
	echo, refuse := udpEcho(t), refusing(t)
	want := session(t, network{
		dial: new(net.Dialer).DialContext, listen: net.ListenPacket,
		host: netip.AddrFrom4([4]byte{127, 0, 0, 1}), any: "127.0.0.1:0",
	}, echo, refuse)
	a := behind(t, port.NATConfig{})
	got := session(t, network{
		dial: a.DialContext, listen: a.ListenPacket, host: netip.MustParseAddr("10.0.2.2"), any: "10.0.2.15:0",
	}, echo, refuse)
	if slices.Equal(got, want) {
		return
	}
	for i := range max(len(got), len(want)) {
		g, w := "nothing", "nothing"
		if i < len(got) {
			g = got[i]
		}
		if i < len(want) {
			w = want[i]
		}
		if g != w {
			t.Errorf("driver: %s\n  package net: %s", g, w)
		}
	}
}

// TestPacketMulticast: groups of both families, from an endpoint that has both.
func TestPacketMulticast(t *testing.T) {
	a := behind(t, port.NATConfig{})
	from, err := a.ListenPacket("udp", ":0")
	if err != nil {
		t.Fatal(err)
	}
	if l := from.LocalAddr().(*net.UDPAddr); l.Port == 0 || !l.IP.Equal(net.IPv6unspecified) {
		t.Errorf("local address %v", l)
	}
	for i, group := range []*net.UDPAddr{
		{IP: net.IPv4(239, 9, 9, 9), Port: 7001}, {IP: net.ParseIP("ff15::99"), Port: 7002},
	} {
		family := []string{"udp4", "udp6"}[i]
		in, err := a.ListenMulticastUDP("udp", group)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := a.ListenMulticastUDP([]string{"udp6", "udp4"}[i], group); err == nil {
			t.Errorf("%v on the other family", group)
		}
		in.SetDeadline(time.Now().Add(time.Minute))
		from.SetDeadline(time.Now().Add(time.Minute))
		send := func(s string) {
			t.Helper()
			if _, err := from.WriteTo([]byte(s), group); err != nil {
				t.Fatal(err)
			}
		}
		expect := func(s string) {
			t.Helper()
			b := make([]byte, 100)
			n, who, err := in.ReadFromUDP(b)
			if err != nil || string(b[:n]) != s || who.Port != from.LocalAddr().(*net.UDPAddr).Port {
				t.Errorf("%q from %v, %v, want %q", b[:n], who, err, s)
			}
		}
		send("one")
		expect("one")
		if err := in.LeaveGroup(group.IP); err != nil {
			t.Fatal(err)
		}
		send("not in it")
		if err := errors.Join(in.JoinGroup(group.IP), in.SetMulticastTTL(3), in.SetTTL(9), in.SetBroadcast(false)); err != nil {
			t.Fatal(err)
		}
		send("two")
		expect("two")
		// It does not hear itself, until it wants to.
		other := &net.UDPAddr{IP: group.IP, Port: in.LocalAddr().(*net.UDPAddr).Port}
		if _, err := in.WriteToUDP([]byte("to me"), other); err != nil {
			t.Fatal(err)
		}
		send("three")
		expect("three")
		if err := in.JoinGroup(group.IP); !errors.Is(err, abi.StatusAddressInUse) {
			t.Errorf("joined twice: %v", err)
		}
		if err := in.JoinGroup(net.IPv4(10, 0, 2, 2)); err == nil {
			t.Error("joined a host")
		}
		if err := in.SetMulticastTTL(256); !errors.Is(err, abi.StatusBadValue) {
			t.Errorf("TTL 256: %v", err)
		}
		if _, err := a.ListenPacket(family, fmt.Sprintf(":%d", group.Port)); !errors.Is(err, syscall.EADDRINUSE) {
			t.Errorf("the port again: %v", err)
		}
		if err := in.Close(); err != nil {
			t.Error(err)
		}
		if err := in.JoinGroup(group.IP); !errors.Is(err, net.ErrClosed) {
			t.Errorf("join when closed: %v", err)
		}
	}
	four, err := a.ListenPacket("udp4", ":0")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := four.WriteTo([]byte("x"), &net.UDPAddr{IP: net.ParseIP("ff15::99"), Port: 1}); err == nil {
		t.Error("IPv6 from an IPv4 endpoint")
	}
	if err := errors.Join(from.Close(), four.Close()); err != nil {
		t.Error(err)
	}
}

// TestPacketReset: an adapter that is reset ends its datagram endpoints, and new
// ones work.
func TestPacketReset(t *testing.T) {
	a := behind(t, port.NATConfig{})
	at := &net.UDPAddr{IP: net.IPv4(10, 0, 2, 2), Port: int(udpEcho(t))}
	p, err := a.ListenPacket("udp4", ":0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { _, _, err := p.ReadFrom(make([]byte, 10)); done <- err }()
	a.Bus().Write32(0, 0x10, 1<<31) // CONTROL.RESET
	if err := <-done; !errors.Is(err, guestdriver.ErrReset) {
		t.Errorf("read over a reset: %v", err)
	}
	if _, err := p.WriteTo([]byte("x"), at); !errors.Is(err, guestdriver.ErrReset) {
		t.Errorf("write after a reset: %v", err)
	}
	if err := p.Close(); err != nil {
		t.Error(err)
	}
	c, err := a.Dial("udp", at.String())
	if err != nil {
		t.Fatal(err)
	}
	c.SetDeadline(time.Now().Add(time.Minute))
	b := make([]byte, 10)
	if _, err := c.Write([]byte("again")); err != nil {
		t.Error(err)
	}
	if n, err := c.Read(b); err != nil || string(b[:n]) != "again" {
		t.Errorf("%q, %v", b[:n], err)
	}
}
