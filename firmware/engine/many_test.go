// SPDX-License-Identifier: Apache-2.0

package engine_test

import (
	"errors"
	"sync"
	"testing"
	"time"

	"toebox/firmware/engine"
	"toebox/firmware/engine/enginetest"
)

// tally is a sink that many endpoints share.
type tally struct {
	mu    sync.Mutex
	n     int // events it waits for
	of    engine.Events
	ready chan struct{}
}

func newTally(of engine.Events, n int) *tally {
	return &tally{of: of, n: n, ready: make(chan struct{})}
}

func (c *tally) Notify(ev engine.Events) {
	if ev&c.of == 0 {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.n--; c.n == 0 {
		close(c.ready)
	}
}

func (c *tally) wait(t *testing.T, what string) {
	t.Helper()
	select {
	case <-c.ready:
	case <-time.After(patience):
		t.Fatalf("%d of: %s are missing", c.n, what)
	}
}

func TestManyConnectsAtOnce(t *testing.T) {
	const many = 1000
	a, b := twoEngines(t, enginetest.PipeOptions{}, nil)
	l := listen(t, a, false, 80, 2*many)
	done := newTally(engine.EventConnected, many)
	all := make([]engine.Endpoint, many)
	for i := range all {
		ep, err := b.Open(engine.TCP, false, done)
		if err != nil {
			t.Fatal(err)
		}
		if err := ep.Connect(addrPort(a.v4, 80)); err != nil {
			t.Fatal(i, err)
		}
		all[i] = ep
	}
	done.wait(t, "connections")
	seen := make(map[uint16]bool)
	for _, ep := range all {
		if err := ep.ConnectResult(); err != nil {
			t.Fatal(err)
		}
		port := ep.Info().Local.Port()
		if port < 16000 || seen[port] {
			t.Errorf("local port %d, again %v", port, seen[port])
		}
		seen[port] = true
	}
	for range many {
		accept(t, l)
	}
	if n := a.Stats().Endpoints; n != many+1 {
		t.Errorf("%d endpoints", n)
	}
	if s := b.Stats(); s.ActiveOpens != many || a.Stats().PassiveOpens != many {
		t.Errorf("%d active and %d passive opens", s.ActiveOpens, a.Stats().PassiveOpens)
	}
	for _, ep := range all {
		ep.Abort()
	}
	if n := b.Stats().Endpoints; n != 0 {
		t.Errorf("%d endpoints after the end", n)
	}
}

func TestBacklog(t *testing.T) {
	const backlog, callers = 4, 20
	a, b := twoEngines(t, enginetest.PipeOptions{}, nil)
	l := listen(t, a, false, 80, backlog)
	if _, err := l.Accept(nil); !errors.Is(err, engine.ErrWouldBlock) {
		t.Errorf("accept with nobody there: %v", err)
	}
	var calls []peer
	for range callers {
		c := open(t, b, engine.TCP, false)
		if err := c.Connect(addrPort(a.v4, 80)); err != nil {
			t.Fatal(err)
		}
		calls = append(calls, c)
	}
	overflow := func() bool { return a.Stats().ListenOverflows > 0 }
	for limit := time.Now().Add(patience); !overflow() && time.Now().Before(limit); {
		yield()
	}
	if !overflow() {
		t.Error("a backlog of 4 took 20 connections")
	}
	// Taking those that wait lets the others in. A caller whose last ACK of
	// the handshake was dropped does not know; its bytes make up for it.
	var senders sync.WaitGroup
	for _, c := range calls {
		senders.Go(func() {
			limit := newLimit()
			for !c.ev.seen(engine.EventConnected) && !limit() {
				<-c.ev.wake
			}
			if n, err := c.Write(1, fillFrom([]byte("x"))); n != 1 || err != nil {
				t.Errorf("write: %d, %v", n, err)
			}
		})
	}
	for range callers {
		receive(t, accept(t, l), 1)
	}
	senders.Wait()
}

func TestBindAndListen(t *testing.T) {
	a, _ := twoEngines(t, enginetest.PipeOptions{}, nil)
	l := listen(t, a, false, 80, 1)
	tests := []struct {
		name string
		v6   bool
		addr string
		want error
	}{
		{"in use", false, "0.0.0.0:80", engine.ErrAddressInUse},
		{"in use at one address", false, "198.18.0.1:80", engine.ErrAddressInUse},
		{"another version", true, "[::]:80", nil},
		{"another's address", false, "198.18.0.2:81", engine.ErrBadAddress},
		{"of the other version", false, "[::1]:82", engine.ErrBadAddress},
		{"mapped", true, "[::ffff:198.18.0.1]:82", engine.ErrBadAddress},
		{"own address", false, "198.18.0.1:83", nil},
	}
	for _, tt := range tests {
		p := open(t, a, engine.TCP, tt.v6)
		if err := p.Bind(mustAddrPort(tt.addr)); !errors.Is(err, tt.want) {
			t.Errorf("%s: bind %v, want %v", tt.name, err, tt.want)
		}
		p.Close()
	}
	p := open(t, a, engine.TCP, false)
	if err := p.Listen(-5); err != nil || p.Info().Local.Port() < 16000 || p.Info().State != engine.StateListen {
		t.Errorf("listen without bind: %v, %+v", err, p.Info())
	}
	if err := p.Connect(addrPort(a.v4, 80)); !errors.Is(err, engine.ErrInvalidState) {
		t.Errorf("connect of a listener: %v", err)
	}
	if _, err := p.Read(1, func([]byte) int { return 1 }); !errors.Is(err, engine.ErrNotConnected) {
		t.Errorf("read of a listener: %v", err)
	}
	if _, err := p.Write(1, func([]byte) error { return nil }); err == nil {
		t.Error("a listener takes bytes")
	}
	// A closed listener's port is free again, and callers are refused.
	l.Close()
	l = listen(t, a, false, 80, 1)
	l.Abort()
	listen(t, a, false, 80, 1)
	if _, err := a.Open(99, false, newEvents()); !errors.Is(err, engine.ErrNotSupported) {
		t.Errorf("protocol 99: %v", err)
	}
	if _, err := a.Open(engine.TCP, false, nil); !errors.Is(err, engine.ErrInvalidState) {
		t.Errorf("no sink: %v", err)
	}
}

// Ending a listener resets who waits in its backlog.
func TestListenerEnds(t *testing.T) {
	a, b := twoEngines(t, enginetest.PipeOptions{}, nil)
	l := listen(t, a, false, 80, 4)
	c := connect(t, b, false, addrPort(a.v4, 80))
	l.ev.until(t, "arrival", func() bool { return l.ev.seen(engine.EventReadable) })
	l.Close()
	c.ev.until(t, "the reset", func() bool { return c.ev.seen(engine.EventClosed) })
	if err := c.Err(); !errors.Is(err, engine.ErrReset) {
		t.Error(err)
	}
}
