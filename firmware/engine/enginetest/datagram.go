// SPDX-License-Identifier: Apache-2.0

package enginetest

import (
	"net/netip"
	"slices"

	"toebox/firmware/engine"
)

var _ engine.Datagrams = (*Endpoint)(nil)

// maxDatagram is the longest payload over IPv4.
const maxDatagram = 65507

// DeliverFrom lets a datagram arrive from an address.
func (p *Endpoint) DeliverFrom(from netip.AddrPort, b []byte) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.deliverLocked(from, b)
}

// Unreachable lets an ICMP message arrive that says so of the peer's port.
func (p *Endpoint) Unreachable() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.soft = engine.ErrRefused
	p.notifyLocked(engine.EventReadable)
}

// FailSend lets the next datagram that is to be sent fail with err.
func (p *Endpoint) FailSend(err error) {
	p.mu.Lock()
	p.sendError = err
	p.mu.Unlock()
}

// SentTo are the destinations of the datagrams that SendTo sent, in order.
func (p *Endpoint) SentTo() []netip.AddrPort {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Clone(p.sentTo)
}

func (p *Endpoint) boundDatagramLocked() bool {
	return p.protocol == engine.UDP && p.local.IsValid()
}

// Receive takes the oldest datagram.
func (p *Endpoint) Receive(take func(netip.AddrPort, []byte)) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.received) == 0 {
		return engine.ErrWouldBlock
	}
	b, from := p.received[0], p.from[0]
	p.received, p.from = p.received[1:], p.from[1:]
	p.holdLocked(-len(b))
	p.counts.Delivered += uint64(len(b))
	take(from, b)
	return nil
}

// SendTo keeps a datagram for [Endpoint.Datagrams].
func (p *Endpoint) SendTo(to netip.AddrPort, n int, fill func([]byte) error) error {
	p.writeMu.Lock()
	defer p.writeMu.Unlock()
	p.mu.Lock()
	err := p.sendError
	p.sendError = nil
	switch {
	case err != nil:
	case p.ended || p.closedWrite:
		err = engine.ErrClosed
	case !p.boundDatagramLocked():
		err = engine.ErrNotConnected
	case to.Addr().Is6() != p.v6:
		err = engine.ErrBadAddress
	case p.freeLocked() == 0:
		p.wasFull = true
		err = engine.ErrWouldBlock
	}
	p.mu.Unlock()
	if err != nil {
		return err
	}
	b := make([]byte, n)
	if n > 0 {
		if err := fill(b); err != nil {
			return err
		}
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.sent, p.sentTo = append(p.sent, b), append(p.sentTo, to)
	p.counts.Queued += uint64(n)
	p.counts.Acked = p.counts.Queued
	p.counts.SegmentsSent++
	return nil
}

// MaxDatagram is the longest payload.
func (p *Endpoint) MaxDatagram() int {
	if p.v6 {
		return maxDatagram + 20
	}
	return maxDatagram
}

// TakeError is what Unreachable brought.
func (p *Endpoint) TakeError() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	err := p.soft
	p.soft = nil
	return err
}

// Join enters a group.
func (p *Endpoint) Join(g netip.Addr) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	switch {
	case !g.IsMulticast() || g.Is6() != p.v6:
		return engine.ErrBadOption
	case slices.Contains(p.groups, g):
		return engine.ErrAddressInUse
	}
	p.groups = append(p.groups, g)
	return nil
}

// Leave leaves a group.
func (p *Endpoint) Leave(g netip.Addr) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	i := slices.Index(p.groups, g)
	switch {
	case !g.IsMulticast() || g.Is6() != p.v6:
		return engine.ErrBadOption
	case i < 0:
		return engine.ErrBadAddress
	}
	p.groups = slices.Delete(p.groups, i, i+1)
	return nil
}

// Groups are those joined.
func (p *Endpoint) Groups() []netip.Addr {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Clone(p.groups)
}
