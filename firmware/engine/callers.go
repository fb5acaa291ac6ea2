// SPDX-License-Identifier: Apache-2.0

package engine

import (
	"sync"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
)

// callers are the connections that nobody has accepted yet and that have sent
// payload. The stack tells nobody of them, so each is kept as a conn without an
// endpoint, which only counts what it holds:
//
//	none --payload--> counted --Accept--> the accepted conn's
//	                  counted --it ended--> none, at the next sweep
type callers struct {
	mu    sync.Mutex // held while a connection comes into the engine's table, too
	all   map[stack.TransportEndpointID]*conn
	timer tcpip.Timer // of the next sweep; nil: none is to come
	ended bool
}

// sweepEvery is for how long payload may count whose connection ended before it
// was accepted.
const sweepEvery = 100 * time.Millisecond

// caller is who counts the payload of a connection that is in no table yet; nil when
// nobody does. Then taken says whether the stack may have it: it keeps nothing of
// a connection that ends, or that it does not know. What comes for a listener
// belongs to a handshake by SYN cookies: the stack would keep it, for a connection
// that is not there yet.
func (n *netstack) caller(id stack.TransportEndpointID) (c *conn, taken bool) {
	h := &n.callers
	h.mu.Lock()
	defer h.mu.Unlock()
	if a := n.conns.find(id); a != nil {
		return a, true
	}
	if w := h.all[id]; w != nil {
		return w, true
	}
	switch state := n.stateOf(id); {
	case state == tcp.StateListen:
		return nil, false
	case !unaccepted(state), h.ended:
		return nil, true
	}
	if h.all == nil {
		h.all = make(map[stack.TransportEndpointID]*conn)
	}
	w := &conn{endpoint: endpoint{engine: n}}
	h.all[id] = w
	if h.timer == nil {
		h.timer = n.stack.Clock().AfterFunc(sweepEvery, n.sweep)
	}
	return w, true
}

// unaccepted reports whether a connection that is in no table may be one that waits
// to be accepted. One that its owner closed has sent a FIN.
func unaccepted(s tcp.EndpointState) bool {
	switch s {
	case tcp.StateConnecting, tcp.StateSynRecv, tcp.StateEstablished, tcp.StateCloseWait:
		return true
	}
	return false
}

// stateOf is the state of the stack's endpoint with these addresses, or of the
// listener there; StateClose: there is none.
func (n *netstack) stateOf(id stack.TransportEndpointID) tcp.EndpointState {
	proto := tcpip.NetworkProtocolNumber(header.IPv4ProtocolNumber)
	if id.LocalAddress.Len() == header.IPv6AddressSize {
		proto = header.IPv6ProtocolNumber
	}
	if t, ok := n.stack.FindTransportEndpoint(proto, tcp.ProtocolNumber, id, nic).(*tcp.Endpoint); ok {
		return tcp.EndpointState(t.State())
	}
	return tcp.StateClose
}

// find is the caller with these addresses, if there is one.
func (h *callers) find(id stack.TransportEndpointID) *conn {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.all[id]
}

// list enters c into the table of connections, with what was counted for it before.
func (h *callers) list(id stack.TransportEndpointID, c *conn) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if w := h.all[id]; w != nil {
		delete(h.all, id)
		c.inherit(w)
	}
	c.engine.conns.add(id, c)
}

// sweep lets go of callers that have ended.
func (n *netstack) sweep() {
	h := &n.callers
	h.mu.Lock()
	defer h.mu.Unlock()
	h.timer = nil
	for id, w := range h.all {
		if h.ended || !unaccepted(n.stateOf(id)) {
			delete(h.all, id)
			w.settle()
		}
	}
	if len(h.all) > 0 {
		h.timer = n.stack.Clock().AfterFunc(sweepEvery, n.sweep)
	}
}

// end lets go of all callers, for good.
func (n *netstack) endCallers() {
	h := &n.callers
	h.mu.Lock()
	h.ended = true
	if h.timer != nil {
		h.timer.Stop()
	}
	h.mu.Unlock()
	n.sweep()
}

// inherit takes over what was counted for c before it was accepted. Nobody knows c
// yet. What w is still asked is uncounted, until the probe speaks of c.
func (c *conn) inherit(w *conn) {
	w.ackMu.Lock()
	defer w.ackMu.Unlock()
	c.ackMu.Lock()
	defer c.ackMu.Unlock()
	c.intake, c.progress.received = w.intake, w.progress.received
	w.intake, w.settled = intake{}, true
}
