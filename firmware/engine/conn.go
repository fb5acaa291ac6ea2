// SPDX-License-Identifier: Apache-2.0

package engine

import (
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv4"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv6"
	"gvisor.dev/gvisor/pkg/tcpip/ports"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"gvisor.dev/gvisor/pkg/waiter"
)

// conn is a TCP endpoint: a connection or a listener.
//
//	idle --Connect--> connecting --handshake over--> settled
//	idle --Listen---> listening
//	Accept makes one that is settled
//
// The stack's own state decides everything else.
type conn struct {
	endpoint
	tcp *tcp.Endpoint

	phase       atomic.Uint32
	began       tcpip.MonotonicTime // of the handshake; set before the connection is listed
	established atomic.Bool         // at any time
	noSACK      atomic.Bool

	readMu    sync.Mutex // one Read or Peek at a time
	taker     taker
	delivered atomic.Uint64 // bytes that Read's caller took; changes with the stack's lock held

	writeMu   sync.Mutex // one Write at a time
	filler    filler
	queued    atomic.Uint64 // bytes; changed under writeMu
	finQueued atomic.Bool

	ackMu      sync.Mutex // may be taken with the stack's lock held, and calls nothing
	acks       ackCounter
	progress   progress
	intake     intake
	settled    bool // it has ended, and holds nothing any more
	peerClosed bool // its FIN is here
	finished   bool // both directions are done, though the stack waits

	gate   atomic.Pointer[gate] // of a connection that leaves or came
	parted Flow                 // when it began to leave; the owner's

	stateMu sync.Mutex
	failure error // why it ended, once known
	id      stack.TransportEndpointID
	listed  bool // in the engine's connTable, under id
}

// Phases of a conn.
const (
	phaseIdle uint32 = iota
	phaseConnecting
	phaseSettled
	phaseListening
)

var (
	_ Endpoint = (*conn)(nil)
	_ Carrier  = (*conn)(nil)
)

// writeChunk is what one Write of the stack takes at most, and becomes one of
// its segments. It is the size of its largest piece of memory, so that fill is
// called once for each.
const writeChunk = 64 << 10

func newConn(n *netstack, ep *tcp.Endpoint, wq *waiter.Queue, v6 bool) *conn {
	c := &conn{endpoint: endpoint{engine: n, ep: ep, wq: wq, v6: v6}, tcp: ep}
	c.taker.count = c.took
	c.setSendBuffer(defaultBuffer)
	return c
}

// setSendBuffer sets the size of the send buffer and turns its automatic
// tuning off, which has stalled. The stack's way to set it races with its
// probe; so the lock is taken here.
func (c *conn) setSendBuffer(n int64) {
	c.tcp.LockUser()
	c.tcp.SocketOptions().SetSendBufferSize(c.tcp.OnSetSendBufferSize(n), false)
	c.tcp.UnlockUser()
	c.tcp.WakeupWriters()
}

// attach starts to report to sink.
func (c *conn) attach(sink Sink) {
	c.report(sink)
	c.register(c)
}

func (c *conn) state() tcp.EndpointState { return tcp.EndpointState(c.ep.State()) }

func isConnecting(s tcp.EndpointState) bool {
	return s == tcp.StateConnecting || s == tcp.StateSynSent || s == tcp.StateSynRecv
}

func isConnected(s tcp.EndpointState) bool {
	switch s {
	case tcp.StateEstablished, tcp.StateFinWait1, tcp.StateFinWait2, tcp.StateTimeWait, tcp.StateCloseWait, tcp.StateLastAck, tcp.StateClosing:
		return true
	}
	return false
}

// NotifyEvent translates the stack's events. The endpoint's lock may be held.
func (c *conn) NotifyEvent(mask waiter.EventMask) {
	state := c.state()
	if state == tcp.StateInitial || state == tcp.StateBound {
		return // a Connect that did not start has said so
	}
	var ev Events
	ended := mask&(waiter.EventHUp|waiter.EventErr) != 0
	// Of arriving bytes the probe tells, once they are counted: an owner that
	// waits for so many looks at the count.
	if mask&waiter.ReadableEvents != 0 && (ended || c.phase.Load() == phaseListening) {
		ev |= EventReadable
	}
	if mask&waiter.WritableEvents != 0 {
		ev |= EventWritable
	}
	if !isConnecting(state) && c.phase.Load() == phaseConnecting {
		if isConnected(state) {
			c.established.Store(true)
		}
		if c.phase.CompareAndSwap(phaseConnecting, phaseSettled) {
			ev |= EventConnected
		}
	}
	if ended {
		// The last acknowledgement, that of a FIN, ends a connection without
		// another word from the probe.
		ev |= EventClosed | EventAcked
	}
	c.notify(ev)
}

// Bind sets the local address.
func (c *conn) Bind(local netip.AddrPort) error {
	// As package net does for listeners: connections accepted before, which
	// linger in FIN-WAIT or TIME-WAIT, do not keep the port. The stack would
	// then let a listener at one address beside one at all; that is refused
	// here.
	if c.listened(local) {
		return ErrAddressInUse
	}
	c.ep.SocketOptions().SetReuseAddress(true)
	err := c.bind(local)
	c.learnAddresses()
	return err
}

// listened reports whether a listener has the port at an address that local
// includes or is included in.
func (c *conn) listened(local netip.AddrPort) bool {
	f, err := c.address(local)
	if err != nil || f.Port == 0 {
		return false
	}
	proto := ipv4.ProtocolNumber
	if c.v6 {
		proto = ipv6.ProtocolNumber
	}
	at := []tcpip.Address{{}, f.Addr}
	if f.Addr.Len() == 0 {
		for _, a := range c.engine.stack.AllAddresses()[nic] {
			if a.Protocol == proto {
				at = append(at, a.AddressWithPrefix.Address)
			}
		}
	}
	return slices.ContainsFunc(at, func(a tcpip.Address) bool {
		id := stack.TransportEndpointID{LocalPort: f.Port, LocalAddress: a}
		return c.engine.stack.CheckRegisterTransportEndpoint([]tcpip.NetworkProtocolNumber{proto}, tcp.ProtocolNumber, id, ports.Flags{}, 0) != nil
	})
}

// learnAddresses copies the endpoint's addresses from the stack.
func (c *conn) learnAddresses() {
	info, ok := c.ep.Info().(*stack.TransportEndpointInfo)
	if !ok {
		return
	}
	c.stateMu.Lock()
	c.id = info.ID
	c.stateMu.Unlock()
}

// list enters the connection into the engine's table for the probe, and makes
// up for what the probe may have said before.
func (c *conn) list() {
	c.learnAddresses()
	c.stateMu.Lock()
	id := c.id
	c.listed = true
	c.stateMu.Unlock()
	c.engine.callers.list(id, c)
	waiting, err := c.ep.GetSockOptInt(tcpip.ReceiveQueueSizeOption)
	if err == nil && waiting > 0 {
		s := c.reportsTo()
		c.ackMu.Lock()
		c.arrivedLocked(uint64(waiting), s)
		c.ackMu.Unlock()
	}
	if isConnected(c.state()) {
		c.notify(EventReadable)
	}
	if c.hasEnded() {
		c.unlist()
	}
}

func (c *conn) unlist() {
	c.stateMu.Lock()
	id, listed := c.id, c.listed
	c.listed = false
	c.stateMu.Unlock()
	if listed {
		c.engine.conns.remove(id, c)
	}
}

// Connect starts a handshake.
func (c *conn) Connect(remote netip.AddrPort) error {
	f, err := c.address(remote)
	if err != nil {
		return err
	}
	ip := remote.Addr()
	if f.Addr.Len() == 0 || f.Port == 0 || ip.IsMulticast() || ip == netip.AddrFrom4([4]byte{255, 255, 255, 255}) {
		return ErrBadAddress
	}
	if !c.phase.CompareAndSwap(phaseIdle, phaseConnecting) {
		return ErrInvalidState
	}
	c.began = c.engine.stack.Clock().NowMonotonic()
	terr := c.ep.Connect(f)
	if _, started := terr.(*tcpip.ErrConnectStarted); !started {
		c.phase.Store(phaseIdle)
		if terr == nil {
			return ErrInvalidState
		}
		if _, used := terr.(*tcpip.ErrBadLocalAddress); used {
			return ErrAddressInUse // the same two addresses and ports, already
		}
		return fromStack(terr)
	}
	c.list()
	return nil
}

// ConnectResult says how the handshake ended.
func (c *conn) ConnectResult() error {
	switch c.phase.Load() {
	case phaseConnecting:
		return ErrWouldBlock
	case phaseSettled:
		if c.established.Load() {
			return nil
		}
		if err := c.Err(); err != nil {
			return err
		}
		return ErrAborted
	}
	return ErrNotConnected
}

// Listen starts to accept connections.
func (c *conn) Listen(backlog int) error {
	switch c.phase.Load() {
	case phaseIdle, phaseListening:
	default:
		return ErrInvalidState
	}
	if err := c.ep.(*tcp.Endpoint).Listen(min(max(backlog, 1), maxBacklog)); err != nil {
		return fromStack(err)
	}
	c.phase.Store(phaseListening)
	c.learnAddresses()
	return nil
}

// Accept takes one established connection.
func (c *conn) Accept(attach func(Endpoint) Sink) (Endpoint, error) {
	ep, wq, terr := c.ep.Accept(nil)
	if terr != nil {
		return nil, fromStack(terr)
	}
	t, ok := ep.(*tcp.Endpoint)
	if !ok {
		ep.Abort()
		return nil, ErrInvalidState
	}
	a := newConn(c.engine, t, wq, c.v6)
	a.phase.Store(phaseSettled)
	a.established.Store(true)
	a.list()
	a.attach(attach(a))
	return c.engine.keep(a)
}

// Read offers received bytes.
func (c *conn) Read(limit int, take func(p []byte) int) (int, error) {
	return c.read(limit, take, false)
}

// Peek offers received bytes and leaves them.
func (c *conn) Peek(limit int, take func(p []byte) int) (int, error) {
	return c.read(limit, take, true)
}

func (c *conn) read(limit int, take func(p []byte) int, peek bool) (int, error) {
	if limit <= 0 {
		return 0, nil
	}
	c.readMu.Lock()
	defer c.readMu.Unlock()
	w := &c.taker
	count := w.count
	if peek {
		w.count = nil
	}
	w.take, w.left, w.taken = take, limit, 0
	_, terr := c.ep.Read(w, tcpip.ReadOptions{Peek: peek})
	n := w.taken
	w.take, w.count = nil, count
	if n > 0 {
		if !peek {
			c.ep.ModerateRecvBuf(n)
		}
		return n, nil
	}
	switch terr.(type) {
	case nil, *tcpip.ErrBadBuffer:
		return 0, nil // the caller took nothing
	}
	return 0, c.transferError(terr)
}

// transferError gives the error of a read or write that moved nothing. A
// connection that failed answers with the failure, also when the stack has
// told it once and says only "closed" from then on.
func (c *conn) transferError(terr tcpip.Error) error {
	err := fromStack(terr)
	if c.state() != tcp.StateError {
		return err
	}
	switch terr.(type) {
	case *tcpip.ErrClosedForReceive, *tcpip.ErrClosedForSend, *tcpip.ErrWouldBlock:
		if failure := c.Err(); failure != nil {
			return failure
		}
		return ErrReset
	}
	return c.fail(err)
}

// fail remembers why the connection ended; the first reason stays.
func (c *conn) fail(err error) error {
	c.stateMu.Lock()
	defer c.stateMu.Unlock()
	if c.failure == nil {
		c.failure = err
	}
	return c.failure
}

// Err is why the connection ended, or nil.
func (c *conn) Err() error {
	c.stateMu.Lock()
	known := c.failure
	c.stateMu.Unlock()
	if known != nil {
		return known
	}
	switch c.state() {
	case tcp.StateError:
		if terr := c.ep.LastError(); terr != nil {
			return c.fail(fromStack(terr))
		}
	case tcp.StateClose:
		// A reset that arrives after the peer's FIN leaves this one; other
		// errors left over from before have not ended the connection.
		if _, reset := c.ep.LastError().(*tcpip.ErrAborted); reset {
			return c.fail(ErrReset)
		}
	}
	return nil
}

// Write queues bytes in chunks: a chunk is queued as a whole or, when fill
// fails, not at all.
func (c *conn) Write(n int, fill func(p []byte) error) (int, error) {
	c.writeMu.Lock()
	defer c.writeMu.Unlock()
	if n <= 0 {
		return 0, nil
	}
	c.countFromHere()
	done := 0
	for done < n {
		want := min(n-done, writeChunk)
		c.filler = filler{fill: fill, left: want}
		k, terr := c.ep.Write(&c.filler, tcpip.WriteOptions{})
		failed := c.filler.err
		c.filler = filler{}
		if k > 0 {
			c.addQueued(uint64(k))
			done += int(k)
		}
		switch {
		case failed != nil:
			return done, failed
		case terr != nil:
			return done, c.transferError(terr)
		case int(k) < want:
			return done, ErrWouldBlock
		}
	}
	return done, nil
}

// countFromHere notes where the first byte's sequence number is, as long as
// nothing has been sent: then SND.UNA stands there.
func (c *conn) countFromHere() {
	if c.queued.Load() > 0 || c.finQueued.Load() {
		return
	}
	una, ok := sendUnacked(c.tcp, c.engine.unacked)
	if !ok {
		return // no connection yet: Write will say so
	}
	c.ackMu.Lock()
	c.acks.start(una)
	c.ackMu.Unlock()
}

// addQueued counts bytes that the stack has taken. The peer may have been
// faster to acknowledge them, and its event found them not counted yet.
func (c *conn) addQueued(k uint64) {
	before := c.queued.Load()
	c.queued.Store(before + k)
	c.ackMu.Lock()
	ahead := c.acks.bytes > before
	c.ackMu.Unlock()
	if ahead {
		c.notify(EventAcked)
	}
}

// Writable is the free room of the send buffer.
func (c *conn) Writable() int {
	if !isConnected(c.state()) {
		return 0
	}
	acked := c.acked()
	used := int64(c.queued.Load() - acked)
	return int(max(c.ep.SocketOptions().GetSendBufferSize()-used, 0))
}

// CloseWrite sends a FIN after what is queued, once.
func (c *conn) CloseWrite() error {
	c.writeMu.Lock()
	defer c.writeMu.Unlock()
	if c.finQueued.Load() {
		return c.Err()
	}
	if !isConnected(c.state()) {
		return c.notConnected()
	}
	c.countFromHere()
	c.finQueued.Store(true)
	return fromStack(c.ep.Shutdown(tcpip.ShutdownWrite))
}

func (c *conn) notConnected() error {
	if err := c.Err(); err != nil {
		return err
	}
	return ErrNotConnected
}

// Close ends the connection in an orderly way, in the background.
func (c *conn) Close() {
	if c.end() {
		c.unlist()
		c.part()
		c.settle()
		c.dropGate()
		c.engine.forget(c)
	}
}

// Abort ends it with a reset.
func (c *conn) Abort() {
	if c.end() {
		c.unlist()
		_ = c.fail(ErrAborted)
		c.ep.Abort()
		c.settle()
		c.dropGate()
		c.engine.forget(c)
	}
}

func (c *conn) shut() { c.Abort() }
