// SPDX-License-Identifier: Apache-2.0

package engine_test

import (
	"errors"
	"net"
	"net/netip"
	"runtime"
	"sync"
	"testing"
	"time"

	"toebox/firmware/engine"
	"toebox/firmware/engine/enginetest"
)

const patience = 3 * time.Minute

// events collects what an endpoint reports.
type events struct {
	mu   sync.Mutex
	all  engine.Events
	n    map[engine.Events]int
	wake chan struct{}
	also []*events // hear the same
}

func newEvents() *events {
	return &events{wake: make(chan struct{}, 1), n: make(map[engine.Events]int)}
}

func (e *events) Notify(ev engine.Events) {
	e.mu.Lock()
	e.all |= ev
	for b := engine.Events(1); b != 0 && b <= ev; b <<= 1 {
		if ev&b != 0 {
			e.n[b]++
		}
	}
	also := e.also
	e.mu.Unlock()
	for _, o := range also {
		o.Notify(ev)
	}
	select {
	case e.wake <- struct{}{}:
	default:
	}
}

func (e *events) seen(ev engine.Events) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.all&ev == ev
}

func (e *events) count(ev engine.Events) int {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.n[ev]
}

// until waits, from event to event, for cond.
func (e *events) until(t testing.TB, what string, cond func() bool) {
	t.Helper()
	limit := time.NewTimer(patience)
	defer limit.Stop()
	for !cond() {
		select {
		case <-e.wake:
		case <-limit.C:
			t.Fatalf("waited %v for: %s", patience, what)
		}
	}
}

// side is an engine with its addresses.
type side struct {
	engine.Engine
	port   *enginetest.PipePort
	v4, v6 netip.Addr
}

var (
	macs = []net.HardwareAddr{{2, 0, 0, 0, 0, 1}, {2, 0, 0, 0, 0, 2}}
	nets = [][]netip.Prefix{
		{netip.MustParsePrefix("198.18.0.1/15"), netip.MustParsePrefix("fd00:1::1/64")},
		{netip.MustParsePrefix("198.18.0.2/15"), netip.MustParsePrefix("fd00:1::2/64")},
	}
)

// twoEngines joins two engines by a pipe.
func twoEngines(t testing.TB, po enginetest.PipeOptions, change func(*engine.Config)) (a, b side) {
	t.Helper()
	x, y := enginetest.Pipe(po)
	var sides [2]side
	for i, p := range []*enginetest.PipePort{x, y} {
		cfg := engine.Config{Port: p, MAC: macs[i], Addresses: nets[i]}
		if change != nil {
			change(&cfg)
		}
		e, err := engine.New(cfg)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := e.Close(); err != nil {
				t.Error(err)
			}
			_ = p.Close()
		})
		sides[i] = side{Engine: e, port: p, v4: nets[i][0].Addr(), v6: nets[i][1].Addr()}
	}
	return sides[0], sides[1]
}

type peer struct {
	engine.Endpoint
	ev *events
}

func open(t testing.TB, e engine.Engine, p engine.Protocol, v6 bool) peer {
	t.Helper()
	ev := newEvents()
	ep, err := e.Open(p, v6, ev)
	if err != nil {
		t.Fatal(err)
	}
	return peer{ep, ev}
}

func listen(t testing.TB, s side, v6 bool, port uint16, backlog int) peer {
	t.Helper()
	l := open(t, s, engine.TCP, v6)
	if err := l.Bind(netip.AddrPortFrom(netip.Addr{}, port)); err != nil {
		t.Fatal(err)
	}
	if err := l.Listen(backlog); err != nil {
		t.Fatal(err)
	}
	return l
}

func accept(t testing.TB, l peer) peer {
	t.Helper()
	p := peer{ev: newEvents()}
	l.ev.until(t, "a connection to accept", func() bool {
		ep, err := l.Accept(func(engine.Endpoint) engine.Sink { return p.ev })
		if err != nil && !errors.Is(err, engine.ErrWouldBlock) {
			t.Fatal(err)
		}
		p.Endpoint = ep
		return err == nil
	})
	return p
}

func connect(t testing.TB, from side, v6 bool, to netip.AddrPort) peer {
	t.Helper()
	c := open(t, from, engine.TCP, v6)
	if err := c.Connect(to); err != nil {
		t.Fatal(err)
	}
	c.ev.until(t, "the handshake", func() bool { return c.ev.seen(engine.EventConnected) })
	if err := c.ConnectResult(); err != nil {
		t.Fatal(err)
	}
	return c
}

// connected joins a (which listens) and b; client first.
func connected(t testing.TB, a, b side) (client, server peer) {
	t.Helper()
	l := listen(t, a, false, 80, 16)
	client = connect(t, b, false, netip.AddrPortFrom(a.v4, 80))
	server = accept(t, l)
	return client, server
}

// fillFrom gives the bytes of p in turn.
func fillFrom(p []byte) func([]byte) error {
	return func(dst []byte) error {
		p = p[copy(dst, p):]
		return nil
	}
}

// send writes all of p.
func send(t testing.TB, c peer, p []byte) {
	t.Helper()
	for len(p) > 0 {
		n, err := c.Write(len(p), fillFrom(p))
		p = p[n:]
		if errors.Is(err, engine.ErrWouldBlock) {
			writable := c.ev.count(engine.EventWritable)
			if c.Writable() > 0 {
				continue
			}
			c.ev.until(t, "room to send", func() bool { return c.ev.count(engine.EventWritable) > writable || c.Writable() > 0 })
			continue
		}
		if err != nil {
			t.Errorf("write: %v", err)
			return
		}
	}
}

// receive reads n bytes.
func receive(t testing.TB, c peer, n int) []byte {
	t.Helper()
	got := make([]byte, 0, n)
	c.ev.until(t, "bytes", func() bool {
		for len(got) < n {
			_, err := c.Read(n-len(got), func(p []byte) int { got = append(got, p...); return len(p) })
			if errors.Is(err, engine.ErrWouldBlock) {
				return false
			}
			if err != nil {
				t.Fatalf("read after %d bytes: %v", len(got), err)
			}
		}
		return true
	})
	return got
}

// ending waits for the read that ends the stream and returns its error.
func ending(t testing.TB, c peer) error {
	t.Helper()
	var end error
	c.ev.until(t, "the end of the stream", func() bool {
		_, end = c.Read(1<<20, func(p []byte) int { return len(p) })
		return end != nil && !errors.Is(end, engine.ErrWouldBlock)
	})
	return end
}

func addrPort(a netip.Addr, port uint16) netip.AddrPort { return netip.AddrPortFrom(a, port) }

// yield lets the engines' goroutines run.
func yield() { runtime.Gosched() }

func mustAddrPort(s string) netip.AddrPort { return netip.MustParseAddrPort(s) }

// newLimit returns a function that says when patience is at its end.
func newLimit() func() bool {
	end := time.Now().Add(patience)
	return func() bool { return time.Now().After(end) }
}

// tap shows the frames that a port sends.
type tap struct {
	engine.Port
	see func([]engine.Frame)
}

func (p tap) Transmit(f []engine.Frame) int {
	p.see(f)
	return p.Port.Transmit(f)
}

// twoEnginesOn is twoEngines with a look at what the second one sends.
func twoEnginesOn(t testing.TB, see func([]engine.Frame)) (a, b side) {
	n := 0
	return twoEngines(t, enginetest.PipeOptions{}, func(c *engine.Config) {
		if n++; n == 2 {
			c.Port = tap{c.Port, see}
		}
	})
}
