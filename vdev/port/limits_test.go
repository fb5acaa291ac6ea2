// SPDX-License-Identifier: Apache-2.0

package port

import (
	"bytes"
	"context"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"

	"toebox/firmware/engine"
	"toebox/firmware/engine/enginetest"
)

// crowdLimit is the patience of a test with all of thousands of connections.
const crowdLimit = 3 * limit

// TestManyConnects opens 2,000 connections at once, with a dial limit far below,
// and sends a byte both ways on each.
func TestManyConnects(t *testing.T) {
	const count = 2000
	n, p := setup(t, NATConfig{Dials: 64})
	l := hostListen(t, "127.0.0.1:0")
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				c.SetDeadline(time.Now().Add(crowdLimit))
				io.Copy(c, c)
			}()
		}
	}()
	to := netip.AddrPortFrom(n.gateway, portOf(l.Addr()))
	// The first resolves the gateway's MAC: only so many packets wait for it.
	first, err := p.dial(deadline(t), to)
	if err != nil {
		t.Fatal(err)
	}
	first.Close()
	var wg sync.WaitGroup
	up := make(chan struct{})
	ctx, cancel := context.WithTimeout(context.Background(), crowdLimit)
	defer cancel()
	ready := make(chan struct{}, count)
	for range count {
		wg.Add(1)
		go func() {
			defer wg.Done()
			c, err := p.dial(ctx, to)
			ready <- struct{}{}
			if err != nil {
				t.Error(err)
				return
			}
			defer c.Close()
			<-up // all are open at a time
			c.SetDeadline(time.Now().Add(crowdLimit))
			c.Write([]byte{42})
			b := make([]byte, 1)
			if _, err := io.ReadFull(c, b); err != nil || b[0] != 42 {
				t.Errorf("echo: %v %v", b, err)
			}
		}()
	}
	for range count {
		<-ready
	}
	eventually(t, "all are open", func() bool { return n.Stats().TCPOpen >= count })
	close(up)
	wg.Wait()
	s := n.Stats()
	if s.TCPOutbound != count+1 || s.DroppedQueueFull != 0 || s.TCPNoRoom != 0 {
		t.Errorf("stats: %+v", s)
	}
	eventually(t, "all are gone", func() bool { return n.Stats().TCPOpen == 0 })
}

// TestManyInbound: host clients that come all at once, before the gateway knows
// the adapter's MAC address, all get through; so do those after a second
// adapter took the place of the first.
func TestManyInbound(t *testing.T) {
	const count = 500
	checkLeaks(t)
	n, err := NewNAT(NATConfig{ConnectTimeout: crowdLimit})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { n.Close() })
	l := hostListen(t, "127.0.0.1:0")
	if err := n.Forward(l, netip.AddrPortFrom(netip.Addr{}, 80)); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		p := newPeer(t, n, n.Lease(), true)
		gl := p.listen(t, netip.AddrPortFrom(n.adapter, 80))
		go func() {
			for {
				c, err := gl.Accept()
				if err != nil {
					return
				}
				go func() {
					defer c.Close()
					io.Copy(c, c)
				}()
			}
		}()
		var wg sync.WaitGroup
		for range count {
			wg.Add(1)
			go func() {
				defer wg.Done()
				c, err := net.Dial("tcp", l.Addr().String())
				if err != nil {
					t.Error(err)
					return
				}
				defer c.Close()
				c.SetDeadline(time.Now().Add(crowdLimit))
				c.Write([]byte{42})
				b := make([]byte, 1)
				if _, err := io.ReadFull(c, b); err != nil || b[0] != 42 {
					t.Errorf("echo: %v %v", b, err)
				}
			}()
		}
		wg.Wait()
		eventually(t, "all are gone", func() bool { return n.Stats().TCPOpen == 0 })
		gl.Close()
		n.Attach(nil)
	}
	if s := n.Stats(); s.TCPInbound != 2*count || s.TCPTimedOut != 0 {
		t.Errorf("stats: %+v", s)
	}
}

// TestConnectionLimit: connects over the limit get no answer until there is room.
func TestConnectionLimit(t *testing.T) {
	n, p := setup(t, NATConfig{Connections: 1})
	a, _ := outboundPair(t, n, p)
	l := hostListen(t, "127.0.0.1:0")
	to := netip.AddrPortFrom(n.gateway, portOf(l.Addr()))
	got := make(chan error, 1)
	go func() {
		c, err := p.dial(deadline(t), to)
		if err == nil {
			c.Close()
		}
		got <- err
	}()
	eventually(t, "the second connect is dropped", func() bool { return n.Stats().TCPNoRoom > 0 })
	abortGuest(p)
	a.Close()
	if err := <-got; err != nil && !strings.Contains(err.Error(), "aborted") {
		t.Error(err)
	}
}

// TestLinger: what an adapter does not acknowledge after both sides ended is
// given up in time.
func TestLinger(t *testing.T) {
	n, p := setup(t, NATConfig{})
	a, h := outboundPair(t, n, p)
	// More than the adapter's window: nobody reads it.
	go h.Write(make([]byte, 4<<20))
	a.CloseWrite()
	eventually(t, "the window is closed", func() bool { return n.Stats().BytesFromHost > 640<<10 })
	h.SetReadDeadline(time.Now().Add(limit))
	io.Copy(io.Discard, h) // the adapter's FIN
	h.Close()              // with the rest in the socket
	n.mu.Lock()
	if len(n.lingering) != 0 {
		t.Error("lingers before its time")
	}
	n.mu.Unlock()
	// The host's FIN is behind bytes that have no room: drop them on the way.
	var f *flow
	n.mu.Lock()
	for c := range n.closers {
		if x, ok := c.(*flow); ok {
			f = x
		}
	}
	n.mu.Unlock()
	f.finish()
	n.mu.Lock()
	if len(n.lingering) != 1 || n.lingerHeld != sendBuffer {
		t.Errorf("%d linger with %d bytes", len(n.lingering), n.lingerHeld)
	}
	n.mu.Unlock()
	n.sweep(time.Now())
	if !f.unacknowledged() {
		t.Error("given up early")
	}
	n.sweep(time.Now().Add(2 * lingerLimit))
	if f.unacknowledged() || n.Stats().TCPResets != 1 {
		t.Error("not given up")
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if len(n.lingering) != 0 || n.lingerHeld != 0 {
		t.Errorf("%d linger with %d bytes", len(n.lingering), n.lingerHeld)
	}
}

// lossy is a port on which the first answer to a SYN is lost.
type lossy struct {
	engine.Port
	lost atomic.Bool
}

// Attach implements engine.Port.
func (l *lossy) Attach(receive func([]engine.Frame)) {
	if receive == nil {
		l.Port.Attach(nil)
		return
	}
	l.Port.Attach(func(frames []engine.Frame) {
		receive(slices.DeleteFunc(slices.Clone(frames), func(f engine.Frame) bool {
			const ethernet, ip = header.EthernetMinimumSize, header.IPv4MinimumSize
			b := slices.Concat(f.Data...)
			return len(b) >= ethernet+ip+header.TCPMinimumSize && header.Ethernet(b).Type() == header.IPv4ProtocolNumber &&
				header.TCP(b[ethernet+ip:]).Flags() == header.TCPFlagSyn|header.TCPFlagAck && l.lost.CompareAndSwap(false, true)
		}))
	})
}

// TestTimeout: a connection whose SYN was sent again waits no longer than others for
// what is lost later.
func TestTimeout(t *testing.T) {
	checkLeaks(t)
	n, err := NewNAT(NATConfig{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { n.Close() })
	way := &lossy{Port: n}
	outboundPair(t, n, newPeer(t, way, n.Lease(), true))
	if !way.lost.Load() {
		t.Fatal("nothing was lost")
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	for c := range n.closers {
		f, ok := c.(*flow)
		if !ok {
			continue
		}
		var info tcpip.TCPInfoOption
		if err := f.ep.GetSockOpt(&info); err != nil {
			t.Fatal(err)
		}
		if info.RTO > maxTimeout {
			t.Errorf("round trip %v, time-out %v, want at most %v", info.RTT, info.RTO, maxTimeout)
		}
	}
}

// TestWarnings: connects that fail for want of something on the host are told
// of now and then, those that end with the gateway not at all.
func TestWarnings(t *testing.T) {
	var log syncBuffer
	clock := enginetest.NewClock()
	hanging := make(chan struct{})
	n, p := setup(t, NATConfig{
		Clock:  clock,
		Logger: slog.New(slog.NewTextHandler(&log, nil)),
		Dial: func(ctx context.Context, _, addr string) (net.Conn, error) {
			if addr == "203.0.113.2:80" {
				close(hanging)
				<-ctx.Done()
				return nil, ctx.Err()
			}
			return nil, unix.EMFILE
		},
	})
	fail := func(times int) {
		t.Helper()
		for range times {
			if _, err := p.dial(deadline(t), netip.MustParseAddrPort("203.0.113.1:80")); err == nil {
				t.Fatal("connected")
			}
		}
	}
	lines := func() int { return bytes.Count(log.Bytes(), []byte("outbound connect failed")) }
	fail(15)
	if got := lines(); got != 10 {
		t.Errorf("%d lines at once, want 10", got)
	}
	clock.Advance(time.Second)
	fail(2)
	if got := lines(); got != 11 || !bytes.Contains(log.Bytes(), []byte("suppressed=5")) {
		t.Errorf("%d lines after a second, want 11; the last of them with the 5 that are missing:\n%s", got, log.Bytes())
	}
	go p.dial(deadline(t), netip.MustParseAddrPort("203.0.113.2:80"))
	<-hanging
	clock.Advance(time.Minute)
	n.Close()
	if got, s := lines(), n.Stats(); got != 11 || s.TCPAborted != 1 || s.TCPNoRoom != 17 {
		t.Errorf("%d lines after Close; %+v", got, s)
	}
}

func TestShare(t *testing.T) {
	for _, c := range []struct {
		open uint64
		want int
	}{{0, 512 << 10}, {1, 512 << 10}, {1024, 512 << 10}, {2048, 256 << 10}, {16384, 32 << 10}, {1 << 20, 32 << 10}} {
		if got := share(c.open, 512<<10); got != c.want {
			t.Errorf("%d open: %d, want %d", c.open, got, c.want)
		}
	}
}

func TestConfig(t *testing.T) {
	for _, c := range []NATConfig{
		{Network: netip.MustParsePrefix("fd00::/64")},
		{Network: netip.MustParsePrefix("10.0.2.0/28")},
		{Network6: netip.MustParsePrefix("10.0.2.0/24")},
		{Network6: netip.MustParsePrefix("fd00::/127")},
		{MTU: 100}, {MTU: 70000},
		{MAC: net.HardwareAddr{1, 2, 3, 4, 5, 6}}, {MAC: net.HardwareAddr{2, 2}},
		{Dials: -1}, {FlowIdle: -1},
	} {
		if n, err := NewNAT(c); err == nil {
			n.Close()
			t.Errorf("%+v: accepted", c)
		}
	}
	n, err := NewNAT(NATConfig{Network: netip.MustParsePrefix("192.168.7.9/24"), MTU: 9000, Domain: "lab"})
	if err != nil {
		t.Fatal(err)
	}
	defer n.Close()
	want := Lease{
		Prefixes: []netip.Prefix{netip.MustParsePrefix("192.168.7.15/24"), netip.MustParsePrefix("fd00:2::15/64")},
		Routes: []engine.Route{
			{Destination: netip.MustParsePrefix("192.168.7.0/24")},
			{Destination: netip.MustParsePrefix("0.0.0.0/0"), Gateway: netip.MustParseAddr("192.168.7.2")},
			{Destination: netip.MustParsePrefix("fd00:2::/64")},
			{Destination: netip.MustParsePrefix("::/0"), Gateway: netip.MustParseAddr("fd00:2::2")},
		},
		Resolvers: []netip.Addr{netip.MustParseAddr("192.168.7.3"), netip.MustParseAddr("fd00:2::3")},
		Domain:    "lab",
		MTU:       9000,
	}
	if got := n.Lease(); !reflect.DeepEqual(got, want) {
		t.Errorf("lease %+v, want %+v", got, want)
	}
}

// TestStatsFields holds Stats and counters together.
func TestStatsFields(t *testing.T) {
	var c counters
	in := reflect.TypeFor[counters]()
	if a, b := in.NumField(), reflect.TypeFor[Stats]().NumField(); a != b {
		t.Fatalf("%d counters for %d fields", a, b)
	}
	c.TCPOpen.Add(7)
	if s := c.snapshot(); s.TCPOpen != 7 {
		t.Errorf("%+v", s)
	}
}
