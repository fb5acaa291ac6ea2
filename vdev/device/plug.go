// SPDX-License-Identifier: Apache-2.0

package device

import (
	"sync"
	"sync/atomic"

	"toebox/firmware/engine"
)

// plug joins one engine at a time to the port. An engine that was replaced may
// still be closing: it neither sends any more nor detaches its successor.
type plug struct {
	port engine.Port

	mu      sync.Mutex
	current atomic.Pointer[socket]
}

// socket is what one engine sees of the port.
type socket struct {
	plug *plug
}

// insert pulls the engine before out and returns the port for the next.
func (p *plug) insert() *socket {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.current.Load() != nil {
		p.port.Attach(nil)
	}
	s := &socket{plug: p}
	p.current.Store(s)
	return s
}

// MTU implements [engine.Port].
func (s *socket) MTU() int { return s.plug.port.MTU() }

// Attach implements [engine.Port].
func (s *socket) Attach(receive func([]engine.Frame)) {
	s.plug.mu.Lock()
	defer s.plug.mu.Unlock()
	if s.plug.current.Load() == s {
		s.plug.port.Attach(receive)
	}
}

// Transmit implements [engine.Port].
func (s *socket) Transmit(frames []engine.Frame) int {
	if s.plug.current.Load() != s {
		return 0
	}
	return s.plug.port.Transmit(frames)
}

// Close implements [engine.Port]. The device closes the port itself.
func (s *socket) Close() error { return nil }

// noPort is a port with nothing plugged in.
type noPort struct{}

// MTU implements [engine.Port].
func (*noPort) MTU() int { return 1500 }

// Attach implements [engine.Port].
func (*noPort) Attach(func([]engine.Frame)) {}

// Transmit implements [engine.Port]: nobody takes anything.
func (*noPort) Transmit([]engine.Frame) int { return 0 }

// Close implements [engine.Port].
func (*noPort) Close() error { return nil }
