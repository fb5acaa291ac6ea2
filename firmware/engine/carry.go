// SPDX-License-Identifier: Apache-2.0

package engine

import (
	"fmt"
	"net/netip"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip/stack"
)

// Carrier is implemented by endpoints whose connection can leave the engine
// and go on in another one, without a word to the peer:
//
//	Part, then Leave until it does not answer ErrWouldBlock, then Vanish (or
//	Return)
//
// and in the other engine Open, SetOption, Restore. What Leave says is not
// acknowledged is written there again, before all else; what was received is
// read here, before Vanish.
type Carrier interface {
	Tracker
	// Part stops payload: none leaves and none arrives from now on.
	// Acknowledgements do. ErrNotSupported when both directions are done.
	Part() error
	// Quiet reports whether all that was sent before Part is acknowledged.
	Quiet() bool
	// Leave stops the rest, and says where the connection stands. ErrWouldBlock
	// while segments that arrived before are being looked at.
	Leave() (Flow, error)
	// Vanish ends the endpoint, instead of Close or Abort.
	Vanish()
	// Return takes Part and Leave back: the connection stays.
	Return()
	// Restore goes on with a connection that left another engine: it is
	// Connect with a handshake that the peer does not see. A FIN of the peer
	// comes again, as the end of the stream. A FIN of our own is the owner's to
	// send again, by CloseWrite: behind what is not acknowledged, or, in
	// StateFinWait2, at once.
	Restore(f Flow) error
	// Withdraw takes Restore back, instead of Close or Abort: the connection is
	// still where f says, for a Restore to come. It reports false, and does
	// nothing, when the connection goes on here already, as ConnectResult says
	// from then on.
	Withdraw() bool
}

// hushTime is how long the peer of a connection that left gets no answer.
const hushTime = 10 * time.Second

// Part begins to leave.
func (c *conn) Part() error {
	x := c.gate.Load()
	if x == nil {
		x = new(gate)
	}
	i := c.Info()
	c.tcp.LockUser()
	f, err := c.flowLocked(&i)
	whole := err == nil && carries(f.State)
	if whole && !x.came && x.id == (stack.TransportEndpointID{}) {
		x.id = c.stackID()
		whole = c.engine.link.gates.add(x.id, x)
	}
	if whole {
		x.block.Store(gateParting)
		c.gate.Store(x)
		c.parted = f
	}
	c.tcp.UnlockUser()
	switch {
	case err != nil:
		return err
	case !whole:
		return fmt.Errorf("engine: part in state %d: %w", f.State, ErrNotSupported)
	}
	c.engine.link.settle()
	return nil
}

// carries reports whether a connection can leave in a state: a direction is open,
// or its end is not acknowledged.
func carries(s State) bool {
	switch s {
	case StateEstablished, StateFinWait1, StateFinWait2, StateCloseWait, StateClosing, StateLastAck:
		return true
	}
	return false
}

// halves is the state of a connection by what is known of its directions: the
// stack's own is another when it has sent a FIN again.
func halves(finQueued, finAcked, peerClosed bool) State {
	switch {
	case finAcked && peerClosed:
		return StateTimeWait
	case finQueued && peerClosed:
		return StateLastAck
	case finAcked:
		return StateFinWait2
	case finQueued:
		return StateFinWait1
	case peerClosed:
		return StateCloseWait
	}
	return StateEstablished
}

// Quiet reports whether what was sent is acknowledged.
func (c *conn) Quiet() bool {
	f, err := c.Flow()
	return err != nil || f.Acked >= c.parted.Sent
}

// Leave says where the connection stands.
func (c *conn) Leave() (Flow, error) {
	x := c.gate.Load()
	if x == nil || x.block.Load() == gateOpen {
		return Flow{}, ErrInvalidState
	}
	x.block.Store(gateShut)
	c.engine.link.settle()
	i := c.Info()
	c.tcp.LockUser()
	defer c.tcp.UnlockUser()
	if !readFlow(c.tcp).idle() {
		return Flow{}, ErrWouldBlock
	}
	f, err := c.flowLocked(&i)
	if err != nil {
		return Flow{}, err
	}
	c.ackMu.Lock()
	finQueued := c.finQueued.Load()
	finAcked := finQueued && c.acks.bytes > c.queued.Load()
	peerClosed := c.peerClosed || i.State == StateCloseWait || i.State == StateClosing || i.State == StateLastAck
	c.ackMu.Unlock()
	if f.State = halves(finQueued, finAcked, peerClosed); !carries(f.State) {
		return Flow{}, fmt.Errorf("engine: leave in state %d: %w", f.State, ErrNotSupported)
	}
	// What the stack sent since then has not left.
	f.Sent = max(c.parted.Sent, f.Acked)
	return f, nil
}

// Vanish ends the endpoint and leaves its peer alone.
func (c *conn) Vanish() {
	if x := c.gate.Load(); x != nil {
		x.block.Store(gateShut)
	}
	c.engine.link.gates.quiet(hushTime)
	c.Abort()
}

// Return lets everything pass again. What was kept meanwhile was lost on the
// way, to stack and peer.
func (c *conn) Return() {
	if x := c.gate.Load(); x != nil {
		x.block.Store(gateOpen)
	}
}

// Disowner is implemented by engines that can leave connections without an
// answer.
type Disowner interface {
	// Disown says that a connection which may come from another engine does
	// not: its peer is answered with a reset.
	Disown(local, remote netip.AddrPort)
}

var _ Disowner = (*netstack)(nil)

// Disown enters a gate that lets everything pass. A connection that the stack
// has answers for itself.
func (n *netstack) Disown(local, remote netip.AddrPort) {
	id := stack.TransportEndpointID{
		LocalPort: local.Port(), LocalAddress: toStack(local.Addr()),
		RemotePort: remote.Port(), RemoteAddress: toStack(remote.Addr()),
	}
	g := &n.link.gates
	if x := g.get(id); g.known(id) && (x == nil || x.block.Load() != gateShut) {
		return
	}
	g.add(id, new(gate))
	n.greet(local.Addr(), remote.Addr())
}

// Restore goes on with f.
func (c *conn) Restore(f Flow) error {
	switch {
	case !carries(f.State):
		return fmt.Errorf("engine: restore in state %d: %w", f.State, ErrNotSupported)
	case f.MSS < minMSS || f.MSS > maxMTU || f.SendScale > maxScale || f.ReceiveScale > maxScale, f.Sent < f.Acked:
		return ErrBadOption
	case !f.Local.Addr().IsValid() || f.Local.Addr().IsUnspecified() || f.Local.Port() == 0:
		return ErrBadAddress
	}
	for _, a := range []netip.AddrPort{f.Local, f.Remote} {
		if _, err := c.address(a); err != nil {
			return err
		}
	}
	id := stack.TransportEndpointID{
		LocalPort: f.Local.Port(), LocalAddress: toStack(f.Local.Addr()),
		RemotePort: f.Remote.Port(), RemoteAddress: toStack(f.Remote.Addr()),
	}
	x := &gate{id: id, came: true, flow: f}
	switch f.State {
	case StateFinWait2:
		x.finAcked = 1
	case StateCloseWait, StateClosing, StateLastAck:
		x.peerFIN = true
		x.flow.ReceiveSequence-- // until it comes again
	}
	if !c.engine.link.gates.add(id, x) {
		return ErrAddressInUse
	}
	c.gate.Store(x)
	c.engine.greet(f.Local.Addr(), f.Remote.Addr())
	c.ep.SocketOptions().SetReuseAddress(true)
	// A listener at just this address, where it was accepted, stands in the way of
	// endpoints that are bound to no interface, as it is.
	err := fromStack(c.ep.SocketOptions().SetBindToDevice(int32(nic)))
	if err == nil {
		err = c.bind(f.Local)
	}
	if err == nil {
		err = c.Connect(f.Remote)
	}
	if err != nil {
		c.engine.link.gates.remove(id, x)
	}
	return err
}

// Withdraw ends an endpoint that nothing but the gate has answered. The stack's
// lock is held where a connection becomes one, and where its segments leave: the
// gate is shut before, so that none has left, or will.
func (c *conn) Withdraw() bool {
	x := c.gate.Load()
	if x == nil || !x.came {
		return false
	}
	x.block.Store(gateShut)
	c.engine.link.settle()
	c.tcp.LockUser()
	through := isConnected(c.state())
	c.tcp.UnlockUser()
	if !through {
		c.Vanish()
		return true
	}
	x.block.Store(gateOpen)
	c.established.Store(true)
	c.phase.CompareAndSwap(phaseConnecting, phaseSettled)
	return false
}

// dropGate takes out the gate of a connection that never came. Others have work
// to do as long as the stack has the connection.
func (c *conn) dropGate() {
	if x := c.gate.Load(); x != nil && x.came && !x.joined.Load() {
		c.engine.link.gates.remove(x.id, x)
	}
}

// Bounds of a flow that is restored.
const (
	minMSS   = 88 // what the stack's options leave room for
	maxScale = 14 // RFC 7323 section 2.3
)

func (c *conn) stackID() stack.TransportEndpointID {
	c.stateMu.Lock()
	defer c.stateMu.Unlock()
	return c.id
}
