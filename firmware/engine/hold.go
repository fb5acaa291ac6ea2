// SPDX-License-Identifier: Apache-2.0

package engine

import (
	"sync/atomic"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"
)

// Holder is implemented by engines that tell how much received payload they
// hold, and hold no more than they are let.
type Holder interface {
	// Held is how many received bytes nobody has read, of all endpoints. A
	// datagram counts its overhead, too. It may trail by what arrives at this
	// moment.
	Held() int64
	// Refuse sets what is asked for each segment and datagram with payload that
	// arrives: whether the payload is to be dropped, for an endpoint that holds
	// some already or none, and of a stream reports to that Sink (else nil). The peer
	// of a stream sends it again; what the segment acknowledges counts. It is called
	// from any goroutine, must not block and must not call the engine.
	Refuse(func(holding bool, s Sink) bool)
}

// hold is the account of received payload of an engine.
type hold struct {
	bytes   atomic.Int64
	refuse  atomic.Pointer[func(bool, Sink) bool]
	refused atomic.Uint64 // segments whose payload was dropped
}

func (h *hold) full(holding bool, s Sink) bool {
	f := h.refuse.Load()
	return f != nil && (*f)(holding, s)
}

// Held is what all endpoints hold.
func (n *netstack) Held() int64 { return n.hold.bytes.Load() }

// Refuse sets the judge of payload that arrives.
func (n *netstack) Refuse(f func(holding bool, s Sink) bool) {
	if f == nil {
		n.hold.refuse.Store(nil)
		return
	}
	n.hold.refuse.Store(&f)
}

var _ Holder = (*netstack)(nil)

// receivedLocked notes that n bytes have arrived in all; ackMu is held.
func (c *conn) receivedLocked(n uint64) {
	if !c.settled {
		c.engine.hold.bytes.Add(int64(n - c.progress.received))
	}
	c.progress.received = n
}

// took notes that k bytes left the receive queue. The stack's lock may be held.
func (c *conn) took(k int) {
	c.ackMu.Lock()
	c.delivered.Add(uint64(k))
	if !c.settled {
		c.engine.hold.bytes.Add(-int64(k))
	}
	c.ackMu.Unlock()
}

// settle ends the account of a connection that ends: what it holds goes with it.
func (c *conn) settle() {
	c.ackMu.Lock()
	if !c.settled {
		c.settled = true
		c.engine.hold.bytes.Add(int64(c.delivered.Load() - c.progress.received))
	}
	c.ackMu.Unlock()
}

// holds reports whether there are bytes that nobody has read.
func (c *conn) holds() bool {
	c.ackMu.Lock()
	defer c.ackMu.Unlock()
	return c.progress.received > c.delivered.Load()
}

// refuses reports whether the payload of a packet that starts with b is to be
// dropped.
func (n *netstack) refuses(proto tcpip.NetworkProtocolNumber, b []byte, size int) bool {
	if !n.hold.full(true, nil) {
		return false
	}
	s, ok := parseInbound(proto, b, size)
	if !ok || s.payload == 0 || s.is(header.TCPFlagSyn) {
		return false
	}
	holding, sink := false, Sink(nil)
	if c := n.conns.find(s.id); c != nil {
		holding, sink = c.holds(), c.reportsTo()
	}
	if !n.hold.full(holding, sink) {
		return false
	}
	n.hold.refused.Add(1)
	return true
}
