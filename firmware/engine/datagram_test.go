// SPDX-License-Identifier: Apache-2.0

package engine_test

import (
	"bytes"
	"errors"
	"io"
	"net/netip"
	"testing"

	"toebox/firmware/engine"
	"toebox/firmware/engine/enginetest"
)

func TestDatagrams(t *testing.T) {
	for _, v6 := range []bool{false, true} {
		a, b := twoEngines(t, enginetest.PipeOptions{}, nil)
		ip, other := a.v4, b.v4
		if v6 {
			ip, other = a.v6, b.v6
		}
		// Datagrams that wait for the neighbour's address may be overtaken.
		listen(t, b, v6, 80, 1)
		connect(t, a, v6, addrPort(other, 80))
		x, y := open(t, a, engine.UDP, v6), open(t, b, engine.UDP, v6)
		if _, err := x.Write(1, nil); !errors.Is(err, engine.ErrNotConnected) || x.Writable() != 0 {
			t.Errorf("write before connect: %v", err)
		}
		if _, err := x.Read(1, nil); !errors.Is(err, engine.ErrNotConnected) {
			t.Errorf("read before connect: %v", err)
		}
		if err := errors.Join(x.Bind(addrPort(ip, 1000)), y.Bind(addrPort(other, 2000)),
			x.Connect(addrPort(other, 2000)), y.Connect(addrPort(ip, 1000))); err != nil {
			t.Fatal(err)
		}
		if !x.ev.seen(engine.EventConnected|engine.EventWritable) || x.ConnectResult() != nil {
			t.Error("no connected event")
		}
		if err := x.Connect(addrPort(other, 2000)); !errors.Is(err, engine.ErrInvalidState) {
			t.Errorf("second connect: %v", err)
		}
		big := bytes.Repeat([]byte("0123456789"), 6000) // many fragments
		for _, d := range [][]byte{[]byte("one"), {}, []byte("three"), big} {
			if n, err := x.Write(len(d), fillFrom(d)); n != len(d) || err != nil {
				t.Fatalf("write of %d: %d, %v", len(d), n, err)
			}
		}
		if n, err := x.Write(10, func([]byte) error { return io.EOF }); n != 0 || err != io.EOF {
			t.Errorf("failing fill: %d, %v", n, err)
		}
		if n, err := x.Write(65528, func([]byte) error { return nil }); n != 0 || !errors.Is(err, engine.ErrMessageTooLong) {
			t.Errorf("too long: %d, %v", n, err)
		}
		read := func(limit int, f func(int, func([]byte) int) (int, error)) string {
			var got []byte
			y.ev.until(t, "a datagram", func() bool {
				n, err := f(limit, func(p []byte) int { got = append(got, p...); return len(p) })
				if err != nil && !errors.Is(err, engine.ErrWouldBlock) || n != len(got) {
					t.Fatal(n, err)
				}
				return err == nil
			})
			return string(got)
		}
		if got := read(2, y.Peek); got != "on" {
			t.Errorf("peeked %q", got)
		}
		if got := read(100, y.Read); got != "one" {
			t.Errorf("read %q", got)
		}
		if got := read(100, y.Read); got != "" {
			t.Errorf("read %q of an empty datagram", got)
		}
		if got := read(2, y.Read); got != "th" { // the rest is lost
			t.Errorf("read %q", got)
		}
		if got := read(1<<20, y.Read); got != string(big) {
			t.Errorf("read %d bytes of %d", len(got), len(big))
		}
		if i := x.Info(); i.Queued != 60008 || i.Acked != 60008 || i.Local != addrPort(ip, 1000) || i.Remote != addrPort(other, 2000) || i.Protocol != engine.UDP {
			t.Errorf("%+v", i)
		}
		if i := y.Info(); i.Delivered != 60005 || i.SegmentsRecvd != 4 {
			t.Errorf("%+v", i)
		}
		if err := x.CloseWrite(); err != nil {
			t.Error(err)
		}
		y.Close()
		if _, err := x.Write(1, nil); !errors.Is(err, engine.ErrClosed) {
			t.Errorf("write after close: %v", err)
		}
		if _, err := y.Read(1, nil); !errors.Is(err, engine.ErrEndOfStream) {
			t.Errorf("read after close: %v", err)
		}
		if err := x.Listen(1); !errors.Is(err, engine.ErrNotSupported) {
			t.Errorf("listen: %v", err)
		}
		if _, err := x.Accept(nil); !errors.Is(err, engine.ErrNotSupported) {
			t.Errorf("accept: %v", err)
		}
		x.Close()
		x.Abort()
	}
}

// udp opens a bound datagram endpoint.
func udp(t *testing.T, s side, v6 bool, local netip.AddrPort) (peer, engine.Datagrams) {
	t.Helper()
	p := open(t, s, engine.UDP, v6)
	if err := p.Bind(local); err != nil {
		t.Fatal(err)
	}
	d, ok := p.Endpoint.(engine.Datagrams)
	if !ok {
		t.Fatalf("%T is no datagram endpoint", p.Endpoint)
	}
	return p, d
}

func sendTo(t *testing.T, d engine.Datagrams, to netip.AddrPort, s string) {
	t.Helper()
	if err := d.SendTo(to, len(s), fillFrom([]byte(s))); err != nil {
		t.Fatalf("send %q to %v: %v", s, to, err)
	}
}

// expectFrom waits for a datagram.
func expectFrom(t *testing.T, p peer, d engine.Datagrams, from netip.AddrPort, want string) {
	t.Helper()
	p.ev.until(t, "a datagram", func() bool {
		err := d.Receive(func(a netip.AddrPort, b []byte) {
			if a != from || string(b) != want {
				t.Errorf("%q from %v, want %q from %v", b, a, want, from)
			}
		})
		if err != nil && !errors.Is(err, engine.ErrWouldBlock) {
			t.Fatal(err)
		}
		return err == nil
	})
}

func TestDatagramsUnconnected(t *testing.T) {
	for _, v6 := range []bool{false, true} {
		a, b := twoEngines(t, enginetest.PipeOptions{}, nil)
		ip, other, wrong := a.v4, b.v4, a.v6
		if v6 {
			ip, other, wrong = a.v6, b.v6, a.v4
		}
		x, dx := udp(t, a, v6, netip.AddrPort{})
		y, dy := udp(t, b, v6, addrPort(other, 2000))
		port := x.Info().Local.Port()
		if port == 0 || x.Info().State != engine.StateClosed {
			t.Errorf("bound to %+v", x.Info())
		}
		for _, s := range []string{"one", "", "three"} {
			sendTo(t, dx, addrPort(other, 2000), s)
			expectFrom(t, y, dy, addrPort(ip, port), s)
			sendTo(t, dy, addrPort(ip, port), s+"!")
			expectFrom(t, x, dx, addrPort(other, 2000), s+"!")
		}
		for _, to := range []netip.AddrPort{addrPort(wrong, 1), addrPort(other, 0), {}} {
			if err := dx.SendTo(to, 0, nil); !errors.Is(err, engine.ErrBadAddress) {
				t.Errorf("send to %v: %v", to, err)
			}
		}
		if _, err := x.Write(1, nil); !errors.Is(err, engine.ErrNotConnected) {
			t.Errorf("write without a peer: %v", err)
		}
		z := open(t, b, engine.UDP, v6)
		if err := z.Bind(addrPort(other, 2000)); !errors.Is(err, engine.ErrAddressInUse) {
			t.Errorf("bind to a port in use: %v", err)
		}
		if err := z.Bind(addrPort(ip, 2001)); !errors.Is(err, engine.ErrBadAddress) {
			t.Errorf("bind to a foreign address: %v", err)
		}
		// What came before the peer was set, from others, is not the peer's.
		sendTo(t, dx, addrPort(other, 2000), "early")
		y.ev.until(t, "a datagram", func() bool { n, err := y.Peek(9, func(p []byte) int { return len(p) }); return n == 5 && err == nil })
		if err := y.Connect(addrPort(ip, 9)); err != nil {
			t.Fatal(err)
		}
		if err := dy.Receive(func(netip.AddrPort, []byte) {}); !errors.Is(err, engine.ErrWouldBlock) || b.Stats().DatagramsDropped != 1 {
			t.Errorf("another's datagram: %v, %d dropped", err, b.Stats().DatagramsDropped)
		}
		if err := x.CloseWrite(); err != nil {
			t.Error(err)
		}
		if err := dx.SendTo(addrPort(other, 2000), 0, nil); !errors.Is(err, engine.ErrClosed) {
			t.Errorf("send after close: %v", err)
		}
	}
}

// TestDatagramsHeld fills the queue of an endpoint whose owner does not read:
// with empty datagrams, too, what it holds is bounded, and what is lost counted.
func TestDatagramsHeld(t *testing.T) {
	for _, size := range []int{0, 1, 4000} {
		a, b := twoEngines(t, enginetest.PipeOptions{}, nil)
		_, dx := udp(t, a, false, addrPort(a.v4, 1000))
		y, dy := udp(t, b, false, addrPort(b.v4, 2000))
		if err := y.SetOption(engine.OptReceiveWindow, 65536); err != nil {
			t.Fatal(err)
		}
		sendTo(t, dx, addrPort(b.v4, 2000), "first")
		expectFrom(t, y, dy, addrPort(a.v4, 1000), "first")
		room := (65536 + size + 511) / (size + 512)
		const sent = 200
		for range sent {
			sendTo(t, dx, addrPort(b.v4, 2000), string(make([]byte, size)))
		}
		// Each event comes with an arrival, of which the last ones are lost.
		w, dw := udp(t, b, false, addrPort(b.v4, 2001))
		sendTo(t, dx, addrPort(b.v4, 2001), "last")
		expectFrom(t, w, dw, addrPort(a.v4, 1000), "last")
		n := 0
		for ; dy.Receive(func(netip.AddrPort, []byte) {}) == nil; n++ {
		}
		if n != room || b.Stats().DatagramsDropped != uint64(sent-room) {
			t.Errorf("%d bytes: held %d, want %d; dropped %d", size, n, room, b.Stats().DatagramsDropped)
		}
	}
}

// A port unreachable message is told once, and the endpoint goes on (RFC 1122
// section 4.1.3.3).
func TestDatagramsRefused(t *testing.T) {
	for _, v6 := range []bool{false, true} {
		a, b := twoEngines(t, enginetest.PipeOptions{}, nil)
		other := b.v4
		if v6 {
			other = b.v6
		}
		x := open(t, a, engine.UDP, v6)
		if err := x.Connect(addrPort(other, 7)); err != nil {
			t.Fatal(err)
		}
		d := x.Endpoint.(engine.Datagrams)
		for range 2 { // told each time, once, and the endpoint goes on
			if _, err := x.Write(1, func([]byte) error { return nil }); err != nil {
				t.Fatal(err)
			}
			x.ev.until(t, "the refusal", func() bool {
				err := d.TakeError()
				return errors.Is(err, engine.ErrRefused)
			})
			if err := d.TakeError(); err != nil {
				t.Errorf("told twice: %v", err)
			}
		}
		if err := x.Err(); err != nil {
			t.Errorf("the endpoint failed: %v", err)
		}
	}
}

func TestMulticast(t *testing.T) {
	for _, v6 := range []bool{false, true} {
		a, b := twoEngines(t, enginetest.PipeOptions{}, nil)
		ip, group, unicast := a.v4, netip.MustParseAddr("239.1.2.3"), b.v4
		if v6 {
			ip, group, unicast = a.v6, netip.MustParseAddr("ff15::123"), b.v6
		}
		x, dx := udp(t, a, v6, netip.AddrPortFrom(netip.Addr{}, 1000))
		y, dy := udp(t, b, v6, netip.AddrPortFrom(netip.Addr{}, 2000))
		if err := dy.Join(group); err != nil {
			t.Fatal(err)
		}
		if err := dy.Join(group); !errors.Is(err, engine.ErrAddressInUse) {
			t.Errorf("joined twice: %v", err)
		}
		for _, bad := range []netip.Addr{unicast, {}, netip.MustParseAddr("::ffff:239.1.2.3")} {
			if err := dy.Join(bad); !errors.Is(err, engine.ErrBadOption) {
				t.Errorf("join %v: %v", bad, err)
			}
		}
		if g := dy.Groups(); len(g) != 1 || g[0] != group {
			t.Errorf("groups %v", g)
		}
		sendTo(t, dx, addrPort(group, 2000), "to the group")
		expectFrom(t, y, dy, addrPort(ip, 1000), "to the group")
		// A loop to an endpoint of the same engine, itself included.
		if err := dx.Join(group); err != nil {
			t.Fatal(err)
		}
		sendTo(t, dx, addrPort(group, 1000), "to me")
		expectFrom(t, x, dx, addrPort(ip, 1000), "to me")
		if err := x.SetOption(engine.OptMulticastLoop, 0); err != nil {
			t.Fatal(err)
		}
		sendTo(t, dx, addrPort(group, 1000), "not to me")
		sendTo(t, dx, addrPort(group, 2000), "behind it")
		expectFrom(t, y, dy, addrPort(ip, 1000), "behind it")
		if err := dx.Receive(func(netip.AddrPort, []byte) {}); !errors.Is(err, engine.ErrWouldBlock) {
			t.Errorf("looped: %v", err)
		}
		if err := dy.Leave(group); err != nil {
			t.Fatal(err)
		}
		if err := dy.Leave(group); !errors.Is(err, engine.ErrBadAddress) {
			t.Errorf("left twice: %v", err)
		}
		if err := dy.Leave(unicast); !errors.Is(err, engine.ErrBadOption) {
			t.Errorf("left a host: %v", err)
		}
		sendTo(t, dx, addrPort(group, 2000), "too late")
		sendTo(t, dx, addrPort(unicast, 2000), "to the host")
		expectFrom(t, y, dy, addrPort(ip, 1000), "to the host")
		for i := range 64 {
			g := group.As16()
			g[15] = byte(100 + i)
			next := netip.AddrFrom16(g)
			if err := dy.Join(next.Unmap()); err != nil {
				t.Fatal(i, err)
			}
		}
		if err := dy.Join(group); !errors.Is(err, engine.ErrNoMemory) {
			t.Errorf("group 65: %v", err)
		}
	}
}

func TestBroadcast(t *testing.T) {
	a, b := twoEngines(t, enginetest.PipeOptions{}, nil)
	x, dx := udp(t, a, false, addrPort(a.v4, 1000))
	y, dy := udp(t, b, false, netip.AddrPortFrom(netip.Addr{}, 2000))
	for _, to := range []string{"255.255.255.255:2000", "198.19.255.255:2000"} {
		at := netip.MustParseAddrPort(to)
		if err := x.SetOption(engine.OptBroadcast, 0); err != nil {
			t.Fatal(err)
		}
		if err := dx.SendTo(at, 1, func([]byte) error { return nil }); !errors.Is(err, engine.ErrBadAddress) {
			t.Errorf("broadcast to %s: %v", to, err)
		}
		if err := x.SetOption(engine.OptBroadcast, 1); err != nil {
			t.Fatal(err)
		}
		sendTo(t, dx, at, to)
		expectFrom(t, y, dy, addrPort(a.v4, 1000), to)
	}
}
