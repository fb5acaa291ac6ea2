// SPDX-License-Identifier: Apache-2.0

package engine

import (
	"net/netip"

	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
)

// Info is a snapshot. It takes no lock of the stack while the connection
// lives: an owner may ask after each event. The exception is one that has seen
// no segment since its handshake, of which the probe has said nothing yet.
func (c *conn) Info() Info {
	c.ackMu.Lock()
	p, finished := c.progress, c.finished
	c.ackMu.Unlock()
	if p.mss == 0 && c.established.Load() && !c.hasEnded() {
		p.mss = sendMSS(c.tcp)
	}
	c.stateMu.Lock()
	id := c.id
	c.stateMu.Unlock()
	i := Info{
		Protocol:   TCP,
		Local:      netip.AddrPortFrom(fromStackAddr(id.LocalAddress), id.LocalPort),
		Remote:     netip.AddrPortFrom(fromStackAddr(id.RemoteAddress), id.RemotePort),
		Acked:      c.acked(),
		Delivered:  c.delivered.Load(),
		MSS:        p.mss,
		Cwnd:       p.cwnd,
		SendWindow: p.sendWindow,
		RTT:        p.rtt,
		RTTVar:     p.rttVar,
		RTO:        p.rto,
	}
	i.Queued = c.queued.Load()
	state := c.state()
	i.State = stateOf(state)
	if finished {
		i.State = StateClosed
	}
	// The acknowledgement of a FIN that ends a connection (LAST-ACK to
	// CLOSED) covers all bytes before it, but the stack leaves the state
	// without noting the bytes. Every other orderly end has noted them.
	if state == tcp.StateClose && c.established.Load() && !c.hasEnded() && c.Err() == nil {
		i.Acked = i.Queued
	}
	i.Received = max(p.received, c.delivered.Load())
	if s, ok := c.ep.Stats().(*tcp.Stats); ok {
		i.Retransmits = s.SendErrors.Retransmits.Value()
		i.SegmentsSent = s.SegmentsSent.Value()
		i.SegmentsRecvd = s.SegmentsReceived.Value()
	}
	return i
}

func stateOf(s tcp.EndpointState) State {
	switch s {
	case tcp.StateListen:
		return StateListen
	case tcp.StateConnecting, tcp.StateSynSent:
		return StateSynSent
	case tcp.StateSynRecv:
		return StateSynReceived
	case tcp.StateEstablished:
		return StateEstablished
	case tcp.StateFinWait1:
		return StateFinWait1
	case tcp.StateFinWait2:
		return StateFinWait2
	case tcp.StateCloseWait:
		return StateCloseWait
	case tcp.StateClosing:
		return StateClosing
	case tcp.StateLastAck:
		return StateLastAck
	case tcp.StateTimeWait:
		return StateTimeWait
	}
	return StateClosed
}
