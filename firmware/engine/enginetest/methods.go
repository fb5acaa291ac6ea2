// SPDX-License-Identifier: Apache-2.0

package enginetest

import (
	"net/netip"

	"toebox/firmware/engine"
)

// Bind sets the local address.
func (p *Endpoint) Bind(local netip.AddrPort) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.state != engine.StateClosed || p.connecting || p.local.IsValid() {
		return engine.ErrInvalidState
	}
	if a := local.Addr(); a.IsValid() && a.Is6() != p.v6 {
		return engine.ErrBadAddress
	}
	e := p.engine
	e.mu.Lock()
	defer e.mu.Unlock()
	if local.Port() != 0 {
		b := binding{p.protocol, p.v6, local.Port()}
		if e.bound[b] != nil {
			return engine.ErrAddressInUse
		}
		e.bound[b] = p
	}
	p.local = local
	if p.protocol == engine.UDP && local.Port() == 0 {
		p.local = netip.AddrPortFrom(local.Addr(), p.engine.pickPortLocked())
	}
	return nil
}

// Connect starts a handshake that the test ends; a datagram endpoint is
// connected at once.
func (p *Endpoint) Connect(remote netip.AddrPort) error {
	p.mu.Lock()
	if err := p.connectLocked(remote); err != nil {
		p.mu.Unlock()
		return err
	}
	p.mu.Unlock()
	e := p.engine
	e.mu.Lock()
	e.stats.ActiveOpens++
	e.mu.Unlock()
	if p.protocol == engine.UDP {
		p.Establish()
	} else if e.OnConnect != nil {
		e.OnConnect(p)
	}
	return nil
}

func (p *Endpoint) connectLocked(remote netip.AddrPort) error {
	if p.state != engine.StateClosed || p.connecting || p.connected || p.failure != nil || p.ended {
		return engine.ErrInvalidState
	}
	if a := remote.Addr(); !a.IsValid() || a.IsUnspecified() || a.Is6() != p.v6 || remote.Port() == 0 {
		return engine.ErrBadAddress
	}
	p.remote = remote
	addr, port := p.local.Addr(), p.local.Port()
	if !addr.IsValid() || addr.IsUnspecified() {
		addr = p.engine.address(p.v6)
	}
	if port == 0 {
		port = p.engine.pickPort()
	}
	p.local = netip.AddrPortFrom(addr, port)
	p.connecting, p.state = true, engine.StateSynSent
	return nil
}

// ConnectResult says how the handshake ended.
func (p *Endpoint) ConnectResult() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	switch {
	case p.connecting:
		return engine.ErrWouldBlock
	case p.connected:
		return nil
	case p.failure != nil:
		return p.failure
	}
	return engine.ErrNotConnected
}

// Listen waits for [Endpoint.Arrive].
func (p *Endpoint) Listen(backlog int) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.protocol != engine.TCP {
		return engine.ErrNotSupported
	}
	if p.state != engine.StateClosed && p.state != engine.StateListen || p.connecting || p.connected || p.ended {
		return engine.ErrInvalidState
	}
	if p.local.Port() == 0 {
		p.local = netip.AddrPortFrom(p.local.Addr(), p.engine.pickPort())
	}
	p.state, p.backlog = engine.StateListen, max(backlog, 1)
	return nil
}

// Accept takes an arrival.
func (p *Endpoint) Accept(attach func(engine.Endpoint) engine.Sink) (engine.Endpoint, error) {
	p.mu.Lock()
	if p.state != engine.StateListen {
		p.mu.Unlock()
		return nil, engine.ErrInvalidState
	}
	if len(p.arrivals) == 0 {
		p.mu.Unlock()
		return nil, engine.ErrWouldBlock
	}
	a := p.arrivals[0]
	p.arrivals = p.arrivals[1:]
	p.mu.Unlock()
	sink := attach(a)
	a.mu.Lock()
	a.sink = sink
	a.mu.Unlock()
	return a, nil
}

// Read offers what was delivered.
func (p *Endpoint) Read(limit int, take func([]byte) int) (int, error) {
	return p.read(limit, take, false)
}

// Peek offers it and leaves it.
func (p *Endpoint) Peek(limit int, take func([]byte) int) (int, error) {
	return p.read(limit, take, true)
}

func (p *Endpoint) read(limit int, take func([]byte) int, peek bool) (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	switch {
	case limit <= 0:
		return 0, nil
	case len(p.received) > 0:
	case p.failure != nil:
		return 0, p.failure
	case p.fin:
		return 0, engine.ErrEndOfStream
	case p.ended:
		return 0, engine.ErrAborted
	case !p.connected && !p.connecting && !p.boundDatagramLocked():
		return 0, engine.ErrNotConnected
	default:
		return 0, engine.ErrWouldBlock
	}
	n, i, lost := 0, 0, 0
	for ; i < len(p.received) && n < limit; i++ {
		offer := p.received[i][:min(len(p.received[i]), limit-n)]
		k := len(offer)
		if k > 0 {
			k = min(max(take(offer), 0), k)
		}
		n += k
		if p.protocol == engine.UDP { // the rest of a datagram is lost
			lost = len(p.received[i]) - k
			i++
			break
		}
		if k < len(p.received[i]) {
			if !peek {
				p.received[i] = p.received[i][k:]
			}
			break
		}
	}
	if !peek {
		p.received = p.received[i:]
		p.from = p.from[min(i, len(p.from)):]
		p.counts.Delivered += uint64(n)
		p.holdLocked(-n - lost)
	}
	return n, nil
}

// Write keeps the bytes for [Endpoint.Sent], as far as there is room.
func (p *Endpoint) Write(n int, fill func([]byte) error) (int, error) {
	p.writeMu.Lock()
	defer p.writeMu.Unlock()
	done := 0
	for done < n || p.protocol == engine.UDP {
		p.mu.Lock()
		free, err := p.freeLocked(), p.writeErrorLocked()
		if p.sendError != nil {
			err, p.sendError = p.sendError, nil
		}
		if err == nil && free == 0 {
			p.wasFull = true
			err = engine.ErrWouldBlock
		}
		p.mu.Unlock()
		if err != nil {
			return done, err
		}
		size := min(n-done, free, writeChunk)
		if p.protocol == engine.UDP {
			size = n
		}
		b := make([]byte, size)
		if size > 0 {
			if err := fill(b); err != nil {
				return done, err
			}
		}
		p.mu.Lock()
		if err := p.writeErrorLocked(); err != nil {
			p.mu.Unlock()
			return done, err
		}
		p.sent = append(p.sent, b)
		p.counts.Queued += uint64(size)
		p.counts.SegmentsSent++
		done += size
		if p.protocol == engine.UDP {
			p.counts.Acked = p.counts.Queued
			p.notifyLocked(engine.EventAcked)
			p.mu.Unlock()
			return done, nil
		}
		p.mu.Unlock()
	}
	return done, nil
}

func (p *Endpoint) writeErrorLocked() error {
	switch {
	case p.failure != nil:
		return p.failure
	case p.ended:
		return engine.ErrAborted
	case p.connecting:
		return engine.ErrWouldBlock
	case !p.connected:
		return engine.ErrNotConnected
	case p.closedWrite:
		return engine.ErrClosed
	}
	return nil
}

// Writable is the room that is left.
func (p *Endpoint) Writable() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.writeErrorLocked() != nil {
		return 0
	}
	return p.freeLocked()
}

// CloseWrite sends the FIN.
func (p *Endpoint) CloseWrite() error {
	p.writeMu.Lock()
	defer p.writeMu.Unlock()
	p.mu.Lock()
	defer p.mu.Unlock()
	if err := p.liveLocked(); err != nil {
		return err
	}
	if !p.closedWrite {
		p.closedWrite = true
		if p.fin {
			p.state = engine.StateLastAck
		} else {
			p.state = engine.StateFinWait1
		}
	}
	return nil
}

func (p *Endpoint) liveLocked() error {
	if p.failure != nil {
		return p.failure
	}
	if !p.connected || p.ended {
		return engine.ErrNotConnected
	}
	return nil
}

// Close ends the endpoint.
func (p *Endpoint) Close() { p.end(&p.closes) }

// Abort ends it with a reset.
func (p *Endpoint) Abort() { p.end(&p.aborts) }

func (p *Endpoint) end(count *int) {
	p.mu.Lock()
	*count++
	first := !p.ended
	p.ended = true
	if p.failure == nil && count == &p.aborts && first {
		p.failure = engine.ErrAborted
	}
	arrivals := p.arrivals
	p.arrivals = nil
	p.state = engine.StateClosed
	p.holdLocked(-p.held)
	p.mu.Unlock()
	if first {
		p.engine.forget(p)
	}
	for _, a := range arrivals {
		a.Abort()
	}
}

// Info is a snapshot.
func (p *Endpoint) Info() engine.Info {
	p.mu.Lock()
	defer p.mu.Unlock()
	i := p.counts
	i.Protocol, i.State, i.Local, i.Remote = p.protocol, p.state, p.local, p.remote
	return i
}

// Err is the failure.
func (p *Endpoint) Err() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.failure
}

// SetOption remembers a value.
func (p *Endpoint) SetOption(o engine.Option, v int64) error {
	if o > engine.OptMulticastLoop || o == engine.OptCongestion && v != 0 {
		return engine.ErrNotSupported
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.options[o] = v
	return nil
}

// Option is the value set, or 0.
func (p *Endpoint) Option(o engine.Option) (int64, error) {
	if o > engine.OptMulticastLoop {
		return 0, engine.ErrNotSupported
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.options[o], nil
}
