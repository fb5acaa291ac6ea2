// SPDX-License-Identifier: Apache-2.0

package engine

import (
	"net/netip"
	"sync"
	"sync/atomic"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/waiter"
)

// datagram is a UDP endpoint with one peer. Each Read offers one datagram and
// loses what the caller does not take of it; each Write sends one, and hands
// it to the network at once, so that queued bytes count as acknowledged.
type datagram struct {
	endpoint

	connected atomic.Bool
	noRead    atomic.Bool
	noWrite   atomic.Bool

	readMu  sync.Mutex
	writeMu sync.Mutex

	sent, delivered           atomic.Uint64 // bytes
	packetsSent, packetsRecvd atomic.Uint64

	stateMu sync.Mutex
	failure error
}

var _ Endpoint = (*datagram)(nil)

// Largest payloads: what fits a packet behind its headers.
const (
	maxDatagramV4 = 65535 - 20 - 8
	maxDatagramV6 = 65535 - 8
)

func newDatagram(n *netstack, ep tcpip.Endpoint, wq *waiter.Queue, v6 bool, sink Sink) *datagram {
	d := &datagram{endpoint: endpoint{engine: n, ep: ep, wq: wq, v6: v6}}
	d.report(sink)
	d.register(d)
	return d
}

// NotifyEvent translates the stack's events.
func (d *datagram) NotifyEvent(mask waiter.EventMask) {
	var ev Events
	if mask&(waiter.ReadableEvents|waiter.EventErr) != 0 {
		ev |= EventReadable
	}
	if mask&waiter.WritableEvents != 0 {
		ev |= EventWritable
	}
	d.notify(ev)
}

func (d *datagram) Bind(local netip.AddrPort) error { return d.bind(local) }

// Connect sets the peer; there is no handshake to wait for.
func (d *datagram) Connect(remote netip.AddrPort) error {
	f, err := d.address(remote)
	if err != nil {
		return err
	}
	if f.Addr.Len() == 0 || f.Port == 0 {
		return ErrBadAddress
	}
	if !d.connected.CompareAndSwap(false, true) {
		return ErrInvalidState
	}
	if terr := d.ep.Connect(f); terr != nil {
		d.connected.Store(false)
		return fromStack(terr)
	}
	d.notify(EventConnected | EventWritable)
	return nil
}

func (d *datagram) ConnectResult() error {
	if !d.connected.Load() {
		return ErrNotConnected
	}
	return nil
}

// Listen and Accept are for streams.
func (d *datagram) Listen(int) error { return ErrNotSupported }

func (d *datagram) Accept(func(Endpoint) Sink) (Endpoint, error) { return nil, ErrNotSupported }

func (d *datagram) Read(limit int, take func(p []byte) int) (int, error) {
	return d.read(limit, take, false)
}

func (d *datagram) Peek(limit int, take func(p []byte) int) (int, error) {
	return d.read(limit, take, true)
}

func (d *datagram) read(limit int, take func(p []byte) int, peek bool) (int, error) {
	if !d.connected.Load() {
		return 0, ErrNotConnected
	}
	if d.noRead.Load() {
		return 0, ErrEndOfStream
	}
	d.readMu.Lock()
	defer d.readMu.Unlock()
	w := taker{take: take, left: max(limit, 0)}
	_, terr := d.ep.Read(&w, tcpip.ReadOptions{Peek: peek})
	switch terr.(type) {
	case nil, *tcpip.ErrBadBuffer:
	default:
		return 0, d.note(terr)
	}
	if !peek {
		d.delivered.Add(uint64(w.taken))
		d.packetsRecvd.Add(1)
	}
	return w.taken, nil
}

// note remembers an error that an ICMP message brought; it is told once and
// the endpoint goes on.
func (d *datagram) note(terr tcpip.Error) error {
	err := fromStack(terr)
	switch err {
	case ErrWouldBlock, ErrEndOfStream, ErrClosed:
		return err
	}
	d.stateMu.Lock()
	d.failure = err
	d.stateMu.Unlock()
	return err
}

// Write sends one datagram of n bytes.
func (d *datagram) Write(n int, fill func(p []byte) error) (int, error) {
	switch {
	case !d.connected.Load():
		return 0, ErrNotConnected
	case d.noWrite.Load():
		return 0, ErrClosed
	case n < 0 || !d.v6 && n > maxDatagramV4 || n > maxDatagramV6:
		return 0, ErrMessageTooLong
	}
	d.writeMu.Lock()
	defer d.writeMu.Unlock()
	f := filler{fill: fill, left: n}
	k, terr := d.ep.Write(&f, tcpip.WriteOptions{})
	if f.err != nil {
		return 0, f.err
	}
	if terr != nil {
		return 0, d.note(terr)
	}
	d.sent.Add(uint64(k))
	d.packetsSent.Add(1)
	d.notify(EventAcked)
	return int(k), nil
}

func (d *datagram) Writable() int {
	if !d.connected.Load() || d.noWrite.Load() || d.ep.Readiness(waiter.WritableEvents) == 0 {
		return 0
	}
	if d.v6 {
		return maxDatagramV6
	}
	return maxDatagramV4
}

func (d *datagram) CloseWrite() error {
	if !d.connected.Load() {
		return ErrNotConnected
	}
	d.noWrite.Store(true)
	return nil
}

func (d *datagram) CloseRead() error {
	if !d.connected.Load() {
		return ErrNotConnected
	}
	d.noRead.Store(true)
	return fromStack(d.ep.Shutdown(tcpip.ShutdownRead))
}

func (d *datagram) Close() {
	if d.end() {
		d.ep.Close()
		d.engine.forget(d)
	}
}

// Abort is Close: there is no peer that could be told.
func (d *datagram) Abort() { d.Close() }

func (d *datagram) shut() { d.Close() }

func (d *datagram) Info() Info {
	i := Info{
		Protocol:      UDP,
		Queued:        d.sent.Load(),
		Acked:         d.sent.Load(),
		Received:      d.delivered.Load(),
		Delivered:     d.delivered.Load(),
		SegmentsSent:  d.packetsSent.Load(),
		SegmentsRecvd: d.packetsRecvd.Load(),
	}
	i.Acked = i.Queued
	if d.connected.Load() {
		i.State = StateEstablished
	}
	if info, ok := d.ep.Info().(*stack.TransportEndpointInfo); ok {
		i.Local = netip.AddrPortFrom(fromStackAddr(info.ID.LocalAddress), info.ID.LocalPort)
		i.Remote = netip.AddrPortFrom(fromStackAddr(info.ID.RemoteAddress), info.ID.RemotePort)
	}
	return i
}

func (d *datagram) Err() error {
	d.stateMu.Lock()
	defer d.stateMu.Unlock()
	return d.failure
}

// SetOption changes a setting; the receive window is the size of the queue.
func (d *datagram) SetOption(o Option, v int64) error {
	if o == OptReceiveWindow {
		if v < minBuffer || v > maxBuffer {
			return ErrBadOption
		}
		d.ep.SocketOptions().SetReceiveBufferSize(v, true)
		return nil
	}
	return d.setCommon(o, v)
}

func (d *datagram) Option(o Option) (int64, error) {
	if o == OptReceiveWindow {
		return d.ep.SocketOptions().GetReceiveBufferSize(), nil
	}
	return d.common(o)
}
