// SPDX-License-Identifier: Apache-2.0

package port

import (
	"sync"
	"sync/atomic"

	"gvisor.dev/gvisor/pkg/tcpip/header"

	"toebox/firmware/engine"
)

// Our tunables.
const (
	// switchBuffer bounds the bytes that wait at one port of a switch.
	switchBuffer = 16 << 20
	// switchAddresses bounds what a switch learns; it floods for the rest.
	switchAddresses = 1024
)

// SwitchStats are the totals of a [Switch].
type SwitchStats struct {
	Frames             uint64 // that came
	Flooded            uint64 // of these, to all other ports
	DroppedShort       uint64 // no whole Ethernet header, or no sender
	DroppedFull        uint64 // the receiver does not keep up
	DroppedNotAttached uint64 // nobody receives
}

// Switch is an Ethernet switch: what its ports have in common is one link. It
// learns where addresses are from the frames that they send, and passes offload
// metadata on as it comes.
type Switch struct {
	mtu int

	frames, flooded, short, full, notAttached atomic.Uint64

	mu    sync.RWMutex
	ports []*SwitchPort
	table map[macAddress]*SwitchPort
}

type macAddress [header.EthernetAddressSize]byte

// NewSwitch makes a switch without ports.
func NewSwitch(mtu int) *Switch { return &Switch{mtu: mtu, table: map[macAddress]*SwitchPort{}} }

// SwitchPort is one port of a [Switch].
type SwitchPort struct {
	of   *Switch
	done chan struct{}

	receiveMu sync.Mutex // held while receive runs
	receive   func([]engine.Frame)

	mu     sync.Mutex
	wake   sync.Cond
	queue  []engine.Frame // each in one piece of its own
	bytes  int
	closed bool
}

var _ engine.Port = (*SwitchPort)(nil)

// Open adds a port.
func (s *Switch) Open() *SwitchPort {
	p := &SwitchPort{of: s, done: make(chan struct{})}
	p.wake.L = &p.mu
	s.mu.Lock()
	s.ports = append(s.ports, p)
	s.mu.Unlock()
	go p.deliver()
	return p
}

// Stats returns the totals so far.
func (s *Switch) Stats() SwitchStats {
	return SwitchStats{
		Frames: s.frames.Load(), Flooded: s.flooded.Load(), DroppedShort: s.short.Load(),
		DroppedFull: s.full.Load(), DroppedNotAttached: s.notAttached.Load(),
	}
}

// learn notes where a sender is, and returns where a frame goes; nil: to all.
func (s *Switch) learn(from *SwitchPort, src, dst macAddress) *SwitchPort {
	s.mu.RLock()
	at, known := s.table[src]
	to := s.table[dst]
	room := len(s.table) < switchAddresses
	s.mu.RUnlock()
	if at != from && (known || room) {
		s.mu.Lock()
		s.table[src] = from
		s.mu.Unlock()
	}
	return to
}

// others are the ports but one.
func (s *Switch) others(but *SwitchPort) []*SwitchPort {
	s.mu.RLock()
	defer s.mu.RUnlock()
	list := make([]*SwitchPort, 0, len(s.ports))
	for _, p := range s.ports {
		if p != but {
			list = append(list, p)
		}
	}
	return list
}

// MTU implements engine.Port.
func (p *SwitchPort) MTU() int { return p.of.mtu }

// Attach implements engine.Port.
func (p *SwitchPort) Attach(receive func([]engine.Frame)) {
	p.receiveMu.Lock()
	defer p.receiveMu.Unlock()
	p.receive = receive
}

// Transmit implements engine.Port. It never waits.
func (p *SwitchPort) Transmit(frames []engine.Frame) int {
	s := p.of
	for i := range frames {
		s.frames.Add(1)
		data := make([]byte, 0, frames[i].Len())
		for _, piece := range frames[i].Data {
			data = append(data, piece...)
		}
		if len(data) < header.EthernetMinimumSize || data[header.EthernetAddressSize]&1 != 0 {
			s.short.Add(1)
			continue
		}
		dst, src := macAddress(data), macAddress(data[header.EthernetAddressSize:])
		to := s.learn(p, src, dst)
		f := frames[i]
		f.Data = [][]byte{data}
		switch {
		case to == p: // its own neighbour on the same port has seen it
		case to != nil && dst[0]&1 == 0:
			to.enqueue(f)
		default:
			s.flooded.Add(1)
			for _, o := range s.others(p) {
				o.enqueue(f) // receivers do not change frames
			}
		}
	}
	return len(frames)
}

func (p *SwitchPort) enqueue(f engine.Frame) {
	p.mu.Lock()
	defer p.mu.Unlock()
	n := len(f.Data[0])
	if p.closed || p.bytes+n > switchBuffer {
		p.of.full.Add(1)
		return
	}
	p.queue = append(p.queue, f)
	p.bytes += n
	p.wake.Signal()
}

// deliver hands on what came, until the port is closed.
func (p *SwitchPort) deliver() {
	defer close(p.done)
	var spare []engine.Frame
	for {
		p.mu.Lock()
		for len(p.queue) == 0 && !p.closed {
			p.wake.Wait()
		}
		if p.closed {
			p.mu.Unlock()
			return
		}
		frames := p.queue
		p.queue, p.bytes = spare[:0], 0
		p.mu.Unlock()
		for rest := frames; len(rest) > 0; {
			n := min(len(rest), frameBatch)
			p.hand(rest[:n])
			rest = rest[n:]
		}
		clear(frames)
		spare = frames
	}
}

func (p *SwitchPort) hand(frames []engine.Frame) {
	p.receiveMu.Lock()
	defer p.receiveMu.Unlock()
	if p.receive == nil {
		p.of.notAttached.Add(uint64(len(frames)))
		return
	}
	p.receive(frames)
}

// Close takes the port out of its switch. It must not be called from receive.
func (p *SwitchPort) Close() error {
	s := p.of
	s.mu.Lock()
	for i, o := range s.ports {
		if o == p {
			s.ports = append(s.ports[:i:i], s.ports[i+1:]...)
			break
		}
	}
	for a, o := range s.table {
		if o == p {
			delete(s.table, a)
		}
	}
	s.mu.Unlock()
	p.mu.Lock()
	p.closed = true
	p.wake.Signal()
	p.mu.Unlock()
	<-p.done
	return nil
}

// Join makes one wire of two ports, which neither has another end any more:
// what arrives at one is sent at the other. The function that it returns takes
// them apart.
func Join(a, b engine.Port) (cut func()) {
	a.Attach(func(f []engine.Frame) { b.Transmit(f) })
	b.Attach(func(f []engine.Frame) { a.Transmit(f) })
	return func() {
		a.Attach(nil)
		b.Attach(nil)
	}
}
