// SPDX-License-Identifier: Apache-2.0

package engine

import (
	"errors"
	"net/netip"
	"sync"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/waiter"
)

// endpoint is what connections and datagram endpoints have in common.
type endpoint struct {
	engine *netstack
	ep     tcpip.Endpoint
	wq     *waiter.Queue
	entry  waiter.Entry
	v6     bool

	gate  sync.Mutex // held while the sink is called
	sink  Sink
	ended bool // by its owner, or with the engine
}

// notify reports events until the endpoint has ended. Locks of the stack may
// be held.
func (e *endpoint) notify(ev Events) {
	if ev == 0 {
		return
	}
	e.gate.Lock()
	if !e.ended && e.sink != nil {
		e.sink.Notify(ev)
	}
	e.gate.Unlock()
}

// report sets the sink.
func (e *endpoint) report(sink Sink) {
	e.gate.Lock()
	e.sink = sink
	e.gate.Unlock()
}

func (e *endpoint) reportsTo() Sink {
	e.gate.Lock()
	defer e.gate.Unlock()
	return e.sink
}

// end makes sure that no event is reported any more, and says whether this is
// the first time.
func (e *endpoint) end() bool {
	e.gate.Lock()
	first := !e.ended
	e.ended = true
	e.gate.Unlock()
	if first {
		e.wq.EventUnregister(&e.entry)
	}
	return first
}

func (e *endpoint) hasEnded() bool {
	e.gate.Lock()
	defer e.gate.Unlock()
	return e.ended
}

// register starts the stack's notifications to l.
func (e *endpoint) register(l waiter.EventListener) {
	e.entry.Init(l, waiter.ReadableEvents|waiter.WritableEvents|waiter.EventErr|waiter.EventHUp)
	e.wq.EventRegister(&e.entry)
}

// address checks an address against the endpoint's version of IP.
func (e *endpoint) address(a netip.AddrPort) (tcpip.FullAddress, error) {
	ip := a.Addr()
	if ip.IsValid() && (ip.Is4() == e.v6 || ip.Is4In6()) {
		return tcpip.FullAddress{}, ErrBadAddress
	}
	f := tcpip.FullAddress{NIC: nic, Port: a.Port()}
	if ip.IsValid() && !ip.IsUnspecified() {
		f.Addr = toStack(ip)
	}
	return f, nil
}

func (e *endpoint) bind(local netip.AddrPort) error {
	f, err := e.address(local)
	if err != nil {
		return err
	}
	if f.Addr.Len() == 0 && f.Port == 0 {
		return nil // the stack picks both
	}
	// With an interface named, the stack would not look at the address.
	f.NIC = 0
	return fromStack(e.ep.Bind(f))
}

// taker is the writer that the stack's Read writes its segments to. It
// offers them to take; less taken than offered must be an error to the stack,
// which keeps the rest.
type taker struct {
	take  func([]byte) int
	left  int
	taken int
	count func(int) // told what was taken, with the endpoint's lock held
}

var errTaken = errors.New("engine: taken enough")

func (t *taker) Write(p []byte) (int, error) {
	offer := p[:min(len(p), t.left)]
	n := 0
	if len(offer) > 0 {
		n = min(max(t.take(offer), 0), len(offer))
		t.left -= n
		t.taken += n
		if t.count != nil {
			t.count(n)
		}
	}
	if n < len(p) {
		return n, errTaken
	}
	return n, nil
}

// filler is the source that the stack's Write reads a chunk from, straight
// into its own memory. An end of file would make the stack ask again for
// ever, so a failing fill is reported as another error and kept aside; the
// stack then drops the whole chunk.
type filler struct {
	fill func([]byte) error
	left int
	err  error
}

var errFill = errors.New("engine: fill failed")

func (f *filler) Len() int { return f.left }

func (f *filler) Read(p []byte) (int, error) {
	p = p[:min(len(p), f.left)]
	if len(p) == 0 {
		return 0, nil // the stack looks whether there is more
	}
	if f.err == nil {
		f.err = f.fill(p)
	}
	if f.err != nil {
		return 0, errFill
	}
	f.left -= len(p)
	return len(p), nil
}
