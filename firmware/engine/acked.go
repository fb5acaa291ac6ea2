// SPDX-License-Identifier: Apache-2.0

package engine

import (
	"sync"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
)

// ackCounter turns SND.UNA, which wraps, into a count of payload bytes.
type ackCounter struct {
	started bool
	una     uint32
	bytes   uint64
}

// start begins to count at una, where nothing has been sent yet.
func (a *ackCounter) start(una uint32) {
	if !a.started {
		a.started, a.una = true, una
	}
}

// advance notes SND.UNA and says whether it moved. It moves by less than
// 2^31: the send buffer is far smaller.
func (a *ackCounter) advance(una uint32) bool {
	if d := int32(una - a.una); a.started && d > 0 {
		a.una = una
		a.bytes += uint64(d)
		return true
	}
	return false
}

// progress is what the stack's probe last said about a connection.
type progress struct {
	mss, cwnd, sendWindow uint32
	rtt, rttVar, rto      time.Duration
	received              uint64
}

// connTable finds a connection by its addresses, for the probe, which the
// stack calls with the endpoint's lock held after each segment that arrives.
type connTable struct {
	shards [connShards]connShard
}

const connShards = 64

type connShard struct {
	mu    sync.RWMutex
	conns map[stack.TransportEndpointID]*conn
	_     [32]byte // keeps shards on cache lines of their own
}

func (t *connTable) init() {
	for i := range t.shards {
		t.shards[i].conns = make(map[stack.TransportEndpointID]*conn)
	}
}

func (t *connTable) shard(id stack.TransportEndpointID) *connShard {
	h := (uint32(id.LocalPort)<<16 | uint32(id.RemotePort)) * 0x9e3779b1
	return &t.shards[h>>16%connShards]
}

func (t *connTable) add(id stack.TransportEndpointID, c *conn) {
	s := t.shard(id)
	s.mu.Lock()
	s.conns[id] = c
	s.mu.Unlock()
}

// remove forgets c, unless another connection has its addresses by now.
func (t *connTable) remove(id stack.TransportEndpointID, c *conn) {
	s := t.shard(id)
	s.mu.Lock()
	if s.conns[id] == c {
		delete(s.conns, id)
	}
	s.mu.Unlock()
}

// find is the connection with these addresses, if there is one.
func (t *connTable) find(id stack.TransportEndpointID) *conn {
	s := t.shard(id)
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.conns[id]
}

// observe is the probe.
func (n *netstack) observe(state *tcp.TCPEndpointState) {
	id := stack.TransportEndpointID(state.ID)
	c := n.conns.find(id)
	if c == nil {
		c = n.callers.find(id)
	}
	if c != nil {
		c.observe(state)
	}
}

// observe runs with the endpoint's lock held, so that what Read has delivered
// and what waits to be read belong together.
func (c *conn) observe(state *tcp.TCPEndpointState) {
	snd, rcv := &state.Sender, &state.Receiver
	sink := c.reportsTo()
	c.ackMu.Lock()
	var ev Events
	if c.acks.advance(uint32(snd.SndUna)) {
		ev |= EventAcked
	}
	p := &c.progress
	p.mss = uint32(max(snd.MaxPayloadSize, 0))
	p.cwnd = uint32(max(snd.SndCwnd, 0))
	p.sendWindow = uint32(snd.SndWnd)
	p.rtt, p.rttVar, p.rto = snd.RTTState.SRTT, snd.RTTState.RTTVar, snd.RTO
	n := c.delivered.Load() + uint64(max(state.RcvBufState.RcvBufUsed, 0))
	if n > p.received {
		ev |= EventReadable
	}
	c.intake.taken(uint32(rcv.RcvNxt), uint32(rcv.RcvAcc), rcv.PendingBufUsed > 0, state.RcvBufState.RcvClosed)
	c.arrivedLocked(n, sink)
	if state.RcvBufState.RcvClosed && !c.peerClosed {
		c.peerClosed = true
		ev |= EventReadable
	}
	// Retransmitting a FIN in LAST-ACK takes the stack to FIN-WAIT-1, and the
	// acknowledgement to FIN-WAIT-2, where it waits for the FIN that it has
	// had. Both directions are done all the same.
	if !c.finished && state.RcvBufState.RcvClosed && c.finQueued.Load() && c.acks.bytes > c.queued.Load() {
		switch c.state() {
		case tcp.StateFinWait1, tcp.StateFinWait2:
			c.finished = true
			ev |= EventClosed
		}
	}
	c.ackMu.Unlock()
	c.notify(ev)
}

// acked is the count of bytes that the peer acknowledged. The peer may have
// acknowledged bytes that Write has handed to the stack but not yet counted,
// and the FIN counts one: neither makes it more than was queued.
func (c *conn) acked() uint64 {
	c.ackMu.Lock()
	n := c.acks.bytes
	c.ackMu.Unlock()
	return min(n, c.queued.Load())
}
