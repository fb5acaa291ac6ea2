// SPDX-License-Identifier: Apache-2.0

package port

import (
	"bytes"
	"errors"
	"net"
	"net/netip"
	"testing"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip/adapters/gonet"

	"toebox/firmware/engine/enginetest"
)

// serveUDP has the adapter send each datagram back, behind where it came from.
func (e *peer) serveUDP(t *testing.T, at netip.AddrPort) {
	t.Helper()
	a := full(at)
	c, err := gonet.DialUDP(e.stack, &a, nil, networkProtocol(at.Addr()))
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	t.Cleanup(func() { c.Close(); <-done })
	go func() {
		defer close(done)
		b := make([]byte, 1<<16)
		for {
			n, from, err := c.ReadFrom(b)
			if err != nil {
				return
			}
			_, _ = c.WriteTo(b[:n], from)
		}
	}()
}

func hostUDP(t *testing.T) *net.UDPConn {
	t.Helper()
	c, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// TestForwardUDP sends datagrams of every size to the adapter through a port of
// the host and back, from several clients, each with a flow of its own.
func TestForwardUDP(t *testing.T) {
	clock := enginetest.NewClock()
	n, p := setup(t, NATConfig{FlowIdle: time.Second, Clock: clock, Flows: 2})
	for i, guest := range []netip.AddrPort{netip.AddrPortFrom(netip.Addr{}, 90), netip.AddrPortFrom(n.adapter6, 91)} {
		at := guest
		if i == 0 {
			at = netip.AddrPortFrom(n.adapter, 90)
		}
		p.serveUDP(t, at)
		in := hostUDP(t)
		if err := n.ForwardUDP(in, guest); err != nil {
			t.Fatal(err)
		}
		var clients []*net.UDPConn
		buf := make([]byte, 65536)
		for k := range 2 {
			c, err := net.DialUDP("udp4", nil, in.LocalAddr().(*net.UDPAddr))
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { c.Close() })
			c.SetDeadline(time.Now().Add(limit))
			clients = append(clients, c)
			for _, size := range []int{1, 0, 1473, 65507} {
				want := bytes.Repeat([]byte{byte(size + k)}, size)
				if _, err := c.Write(want); err != nil {
					t.Fatal(size, err)
				}
				if got, err := c.Read(buf); err != nil || !bytes.Equal(buf[:got], want) {
					t.Fatalf("%d bytes: got %d, %v", size, got, err)
				}
			}
		}
		if s := n.Stats(); s.UDPOpen != 2 || s.UDPFlows != uint64(2*(i+1)) {
			t.Errorf("stats: %+v", s)
		}
		// A third client finds no room.
		c, err := net.DialUDP("udp4", nil, in.LocalAddr().(*net.UDPAddr))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		if _, err := c.Write([]byte("x")); err != nil {
			t.Fatal(err)
		}
		eventually(t, "it is counted", func() bool { return n.Stats().UDPNoRoom == uint64(i+1) })
		clock.Advance(time.Second)
		eventually(t, "idle flows end", func() bool { return n.Stats().UDPOpen == 0 })
		if i > 0 {
			continue
		}
		if _, err := clients[0].Write([]byte("again")); err != nil {
			t.Fatal(err)
		}
		if k, err := clients[0].Read(buf); err != nil || string(buf[:k]) != "again" {
			t.Errorf("after idling: %v", err)
		}
		clock.Advance(time.Second)
		eventually(t, "the flow ends", func() bool { return n.Stats().UDPOpen == 0 })
		n.stats.UDPFlows.Store(2)
	}
	if err := n.ForwardUDP(hostUDP(t), netip.AddrPort{}); err == nil {
		t.Error("forwarded to port 0")
	}
	n.Close()
	if err := n.ForwardUDP(hostUDP(t), netip.AddrPortFrom(netip.Addr{}, 90)); !errors.Is(err, net.ErrClosed) {
		t.Errorf("after close: %v", err)
	}
}
