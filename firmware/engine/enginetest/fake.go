// SPDX-License-Identifier: Apache-2.0

package enginetest

import (
	"fmt"
	"net/netip"
	"sync"
	"sync/atomic"

	"toebox/firmware/engine"
)

// Engine is an engine whose endpoints do what the test says.
type Engine struct {
	// OnConnect, if set, is called at the end of each Connect that started a
	// handshake, on the caller's goroutine; it may call [Endpoint.Establish]
	// or [Endpoint.Fail] at once. Set it before the engine is used.
	OnConnect func(*Endpoint)

	held    atomic.Int64
	account atomic.Pointer[engine.Account]

	mu        sync.Mutex
	endpoints []*Endpoint
	open      map[*Endpoint]struct{}
	bound     map[binding]*Endpoint
	addresses []netip.Prefix
	routes    []engine.Route
	announced []netip.Addr
	expecting int
	deaf      bool
	stats     engine.Stats
	refusal   error
	nextPort  uint16
	closed    bool
}

var (
	_ engine.Engine    = (*Engine)(nil)
	_ engine.Announcer = (*Engine)(nil)
	_ engine.Holder    = (*Engine)(nil)
	_ engine.Endpoint  = (*Endpoint)(nil)
)

// binding is what only one listener can have.
type binding struct {
	protocol engine.Protocol
	v6       bool
	port     uint16
}

// firstPort is the first that the engine picks; they are given in turn.
const firstPort = 49152

// NewEngine returns an engine without addresses.
func NewEngine() *Engine {
	return &Engine{open: make(map[*Endpoint]struct{}), bound: make(map[binding]*Endpoint), nextPort: firstPort}
}

// Held is what has arrived and was not read.
func (e *Engine) Held() int64 { return e.held.Load() }

// Account sets where payload counts, and who is asked by [Endpoint.Arrives].
func (e *Engine) Account(a engine.Account) { e.account.Store(&a) }

// Arrives delivers as many of n bytes of a stream as the engine's account takes,
// and returns how many those are. [Endpoint.Deliver] asks nobody.
func (p *Endpoint) Arrives(n int, gap bool) int {
	p.mu.Lock()
	defer p.mu.Unlock()
	a := p.engine.accounts()
	if p.fin || p.failure != nil || p.ended || a == nil {
		return 0
	}
	n = a.Admit(engine.Arrival{Bytes: n, Held: p.held, At: p.counts.Received, Gap: gap, Sink: p.sink})
	if n > 0 {
		p.held += n
		p.engine.held.Add(int64(n))
		p.takeLocked(p.remote, make([]byte, n))
	}
	return n
}

func (e *Engine) accounts() engine.Account {
	if a := e.account.Load(); a != nil {
		return *a
	}
	return nil
}

// holdLocked counts bytes that have arrived, or were read.
func (p *Endpoint) holdLocked(n int) {
	if n < 0 || !p.ended {
		p.held += n
		p.engine.held.Add(int64(n))
		if a := p.engine.accounts(); a != nil {
			a.Release(-n, p.sink)
		}
	}
}

// SetAddresses remembers the addresses.
func (e *Engine) SetAddresses(p []netip.Prefix) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.addresses = append([]netip.Prefix(nil), p...)
	return nil
}

// SetRoutes remembers the routes.
func (e *Engine) SetRoutes(r []engine.Route) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.routes = append([]engine.Route(nil), r...)
	return nil
}

// Announce remembers the addresses.
func (e *Engine) Announce(list []netip.Addr) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.announced = append(e.announced, list...)
}

// Expect is counted.
func (e *Engine) Expect() {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.expecting++
}

// Deafen is remembered, and changes nothing.
func (e *Engine) Deafen(deaf bool) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.deaf = deaf
}

// TakenOver returns the addresses announced so far, how often Expect was called,
// and whether the engine is deaf.
func (e *Engine) TakenOver() (announced []netip.Addr, expecting int, deaf bool) {
	e.mu.Lock()
	defer e.mu.Unlock()
	return append([]netip.Addr(nil), e.announced...), e.expecting, e.deaf
}

// Addresses are those last set.
func (e *Engine) Addresses() []netip.Prefix {
	e.mu.Lock()
	defer e.mu.Unlock()
	return append([]netip.Prefix(nil), e.addresses...)
}

// Routes are those last set.
func (e *Engine) Routes() []engine.Route {
	e.mu.Lock()
	defer e.mu.Unlock()
	return append([]engine.Route(nil), e.routes...)
}

// RefuseOpen makes each Open fail with err, nil ends that.
func (e *Engine) RefuseOpen(err error) {
	e.mu.Lock()
	e.refusal = err
	e.mu.Unlock()
}

// Open makes an endpoint.
func (e *Engine) Open(p engine.Protocol, v6 bool, sink engine.Sink) (engine.Endpoint, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	switch {
	case e.closed:
		return nil, engine.ErrClosed
	case e.refusal != nil:
		return nil, e.refusal
	case p != engine.TCP && p != engine.UDP:
		return nil, fmt.Errorf("enginetest: protocol %d: %w", p, engine.ErrNotSupported)
	case sink == nil:
		return nil, engine.ErrInvalidState
	}
	return e.addLocked(p, v6, sink), nil
}

func (e *Engine) addLocked(p engine.Protocol, v6 bool, sink engine.Sink) *Endpoint {
	ep := &Endpoint{engine: e, protocol: p, v6: v6, sink: sink, room: defaultRoom, options: make(map[engine.Option]int64)}
	e.endpoints = append(e.endpoints, ep)
	e.open[ep] = struct{}{}
	return ep
}

// Endpoints are all that were ever opened or accepted, in order.
func (e *Engine) Endpoints() []*Endpoint {
	e.mu.Lock()
	defer e.mu.Unlock()
	return append([]*Endpoint(nil), e.endpoints...)
}

// Last is the endpoint that was opened or arrived last; nil without any.
func (e *Engine) Last() *Endpoint {
	e.mu.Lock()
	defer e.mu.Unlock()
	if len(e.endpoints) == 0 {
		return nil
	}
	return e.endpoints[len(e.endpoints)-1]
}

// Stats counts opens, the endpoints and what SetStats added.
func (e *Engine) Stats() engine.Stats {
	e.mu.Lock()
	defer e.mu.Unlock()
	s := e.stats
	s.Endpoints = uint64(len(e.open))
	return s
}

// SetStats sets the totals to start from.
func (e *Engine) SetStats(s engine.Stats) {
	e.mu.Lock()
	e.stats = s
	e.mu.Unlock()
}

// Close aborts all endpoints.
func (e *Engine) Close() error {
	e.mu.Lock()
	e.closed = true
	var all []*Endpoint
	for _, ep := range e.endpoints {
		if _, open := e.open[ep]; open {
			all = append(all, ep)
		}
	}
	e.mu.Unlock()
	for _, ep := range all {
		ep.Abort()
	}
	return nil
}

func (e *Engine) pickPort() uint16 {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.pickPortLocked()
}

func (e *Engine) pickPortLocked() uint16 {
	p := e.nextPort
	if e.nextPort++; e.nextPort == 0 {
		e.nextPort = firstPort
	}
	return p
}

// address is the engine's own for a version of IP.
func (e *Engine) address(v6 bool) netip.Addr {
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, p := range e.addresses {
		if p.Addr().Is6() == v6 {
			return p.Addr()
		}
	}
	if v6 {
		return netip.IPv6Unspecified()
	}
	return netip.IPv4Unspecified()
}

func (e *Engine) forget(ep *Endpoint) {
	e.mu.Lock()
	delete(e.open, ep)
	for b, owner := range e.bound {
		if owner == ep {
			delete(e.bound, b)
		}
	}
	e.mu.Unlock()
}
