// SPDX-License-Identifier: Apache-2.0

package enginetest

import (
	"net/netip"
	"sync"

	"toebox/firmware/engine"
)

// Defaults and limits of an endpoint, as the real engine's.
const (
	defaultRoom = 1 << 20
	writeChunk  = 64 << 10
)

// Endpoint is an endpoint of [Engine]. Its methods beyond engine.Endpoint are
// for the test: those with the peer's and the network's side first.
type Endpoint struct {
	engine   *Engine
	protocol engine.Protocol
	v6       bool

	writeMu sync.Mutex // one Write at a time; fill runs under it alone

	mu            sync.Mutex
	sink          engine.Sink
	state         engine.State
	connecting    bool
	connected     bool // at any time
	local, remote netip.AddrPort
	failure       error
	received      [][]byte         // not read yet: pieces of the stream, or datagrams
	from          []netip.AddrPort // of datagrams: where each is from
	held          int              // bytes in received
	soft          error            // told by TakeError
	sentTo        []netip.AddrPort // of datagrams: where each went; invalid: the peer
	groups        []netip.Addr
	sendError     error // of the next SendTo or Write of a datagram
	fin           bool  // the peer's
	counts        engine.Info
	sent          [][]byte
	room          int
	wasFull       bool
	closedWrite   bool
	finAcked      bool
	backlog       int
	arrivals      []*Endpoint
	ended         bool
	closes        int
	aborts        int
	options       map[engine.Option]int64
	flow          engine.Flow
}

// notifyLocked calls the sink with the lock held, as a real engine does: a
// sink that calls the endpoint hangs.
func (p *Endpoint) notifyLocked(ev engine.Events) {
	if !p.ended && p.sink != nil && ev != 0 {
		p.sink.Notify(ev)
	}
}

// Establish ends the handshake well.
func (p *Endpoint) Establish() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.connecting || p.ended {
		return
	}
	p.connecting, p.connected, p.state = false, true, engine.StateEstablished
	p.notifyLocked(engine.EventConnected | engine.EventWritable)
}

// Fail ends the handshake or the connection with err. What was received
// before can still be read.
func (p *Endpoint) Fail(err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.failure != nil || p.ended {
		return
	}
	ev := engine.EventClosed | engine.EventReadable | engine.EventWritable
	if p.connecting {
		p.connecting = false
		ev |= engine.EventConnected
	}
	p.failure, p.state = err, engine.StateClosed
	p.notifyLocked(ev)
}

// Refuse ends the handshake as a closed port does.
func (p *Endpoint) Refuse() { p.Fail(engine.ErrRefused) }

// Reset ends the connection as the peer's RST does.
func (p *Endpoint) Reset() { p.Fail(engine.ErrReset) }

// Deliver lets bytes, or one datagram, arrive.
func (p *Endpoint) Deliver(b []byte) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.deliverLocked(p.remote, b)
}

func (p *Endpoint) deliverLocked(from netip.AddrPort, b []byte) {
	if p.fin || p.failure != nil || p.ended {
		return
	}
	p.holdLocked(len(b))
	p.takeLocked(from, b)
}

// takeLocked queues bytes that are counted.
func (p *Endpoint) takeLocked(from netip.AddrPort, b []byte) {
	p.counts.Received += uint64(len(b))
	p.counts.SegmentsRecvd++
	p.received = append(p.received, append([]byte(nil), b...))
	p.from = append(p.from, from)
	p.notifyLocked(engine.EventReadable)
}

// DeliverFIN ends the peer's stream.
func (p *Endpoint) DeliverFIN() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.fin || p.failure != nil || p.ended {
		return
	}
	p.fin = true
	switch p.state {
	case engine.StateEstablished:
		p.state = engine.StateCloseWait
	case engine.StateFinWait1:
		p.state = engine.StateClosing
	case engine.StateFinWait2:
		p.state = engine.StateTimeWait
	}
	p.notifyLocked(engine.EventReadable | p.doneLocked())
}

// doneLocked is EventClosed when both directions are done.
func (p *Endpoint) doneLocked() engine.Events {
	if p.fin && p.finAcked {
		return engine.EventClosed
	}
	return 0
}

// Ack acknowledges up to n more of the bytes sent; it returns how many there
// were.
func (p *Endpoint) Ack(n int) int {
	p.mu.Lock()
	defer p.mu.Unlock()
	n = int(min(uint64(max(n, 0)), p.counts.Queued-p.counts.Acked))
	if n == 0 || p.ended {
		return 0
	}
	p.counts.Acked += uint64(n)
	p.notifyLocked(engine.EventAcked | p.writableLocked())
	return n
}

// AckFIN acknowledges everything and the FIN.
func (p *Endpoint) AckFIN() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.closedWrite || p.finAcked || p.ended {
		return
	}
	p.counts.Acked = p.counts.Queued
	p.finAcked = true
	switch p.state {
	case engine.StateFinWait1:
		p.state = engine.StateFinWait2
	case engine.StateClosing:
		p.state = engine.StateTimeWait
	case engine.StateLastAck:
		p.state = engine.StateClosed
	}
	p.notifyLocked(engine.EventAcked | p.doneLocked())
}

// SetRoom sets how many unacknowledged bytes Write takes; 1 MiB at first.
func (p *Endpoint) SetRoom(n int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.room = n
	p.notifyLocked(p.writableLocked())
}

// writableLocked is EventWritable when there is room after a Write found
// none.
func (p *Endpoint) writableLocked() engine.Events {
	if !p.wasFull || p.freeLocked() == 0 {
		return 0
	}
	p.wasFull = false
	return engine.EventWritable
}

func (p *Endpoint) freeLocked() int {
	return max(p.room-int(p.counts.Queued-p.counts.Acked), 0)
}

// Arrive lets a connection from remote arrive at a listener; nil when it is
// none or its backlog is full.
func (p *Endpoint) Arrive(remote netip.AddrPort) *Endpoint {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.state != engine.StateListen || p.ended {
		return nil
	}
	e := p.engine
	if len(p.arrivals) >= p.backlog {
		e.mu.Lock()
		e.stats.ListenOverflows++
		e.mu.Unlock()
		return nil
	}
	local := p.local
	if !local.Addr().IsValid() || local.Addr().IsUnspecified() {
		local = netip.AddrPortFrom(e.address(p.v6), local.Port())
	}
	e.mu.Lock()
	a := e.addLocked(p.protocol, p.v6, nil)
	e.stats.PassiveOpens++
	e.mu.Unlock()
	a.state, a.connected, a.local, a.remote = engine.StateEstablished, true, local, remote
	p.arrivals = append(p.arrivals, a)
	p.notifyLocked(engine.EventReadable)
	return a
}

// Sent is a copy of what was written: of a stream all of it, of a datagram
// endpoint the datagrams one after the other.
func (p *Endpoint) Sent() []byte {
	p.mu.Lock()
	defer p.mu.Unlock()
	var b []byte
	for _, s := range p.sent {
		b = append(b, s...)
	}
	return b
}

// Datagrams are copies of what each Write sent, or each chunk of one.
func (p *Endpoint) Datagrams() [][]byte {
	p.mu.Lock()
	defer p.mu.Unlock()
	var d [][]byte
	for _, s := range p.sent {
		d = append(d, append([]byte(nil), s...))
	}
	return d
}

// Unread is how many received bytes nobody has read: what closes the window.
func (p *Endpoint) Unread() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	n := 0
	for _, b := range p.received {
		n += len(b)
	}
	return n
}

// FINSent says whether CloseWrite was called.
func (p *Endpoint) FINSent() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.closedWrite
}

// Ends says how often Close and Abort were called: once in all is right.
func (p *Endpoint) Ends() (closes, aborts int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.closes, p.aborts
}

// SetInfo sets what Info reports of round-trip time, windows and segments;
// addresses, state and byte counts stay.
func (p *Endpoint) SetInfo(i engine.Info) {
	p.mu.Lock()
	defer p.mu.Unlock()
	c := &p.counts
	i.Queued, i.Acked, i.Received, i.Delivered = c.Queued, c.Acked, c.Received, c.Delivered
	*c = i
}
