// SPDX-License-Identifier: Apache-2.0

package engine

import (
	"net/netip"
	"sync"
	"sync/atomic"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/waiter"
)

// datagram is a UDP endpoint, bound or connected to one peer. What arrives is
// taken out of the stack at once, into a queue whose bound counts each datagram:
// the stack's counts payload only, and empty datagrams would have none.
type datagram struct {
	endpoint

	ready     atomic.Bool // bound or connected: datagrams may arrive
	connected atomic.Bool
	noRead    atomic.Bool
	noWrite   atomic.Bool

	writeMu sync.Mutex // one datagram is sent at a time
	drainMu sync.Mutex // one goroutine takes datagrams out of the stack; before queueMu

	queueMu sync.Mutex
	queue   []packet
	head    int // of queue
	held    int // what the queue's datagrams count, in bytes
	window  int // bound of held
	soft    error
	groups  []netip.Addr
	remote  netip.AddrPort // of a connected endpoint

	sent, received, delivered atomic.Uint64 // bytes of payload
	packetsSent, packetsRecvd atomic.Uint64
}

// packet is a datagram that arrived. Its payload is nobody else's.
type packet struct {
	from    netip.AddrPort
	payload []byte
}

var _ Datagrams = (*datagram)(nil)

// Largest payloads: what fits a packet behind its headers.
const (
	maxDatagramV4 = 65535 - 20 - 8
	maxDatagramV6 = 65535 - 8
)

const (
	// datagramOverhead is what a waiting datagram counts besides its payload,
	// in bytes.
	datagramOverhead = 512
	maxGroups        = 64
)

func newDatagram(n *netstack, ep tcpip.Endpoint, wq *waiter.Queue, v6 bool, sink Sink) *datagram {
	d := &datagram{endpoint: endpoint{engine: n, ep: ep, wq: wq, v6: v6}, window: defaultBuffer}
	d.report(sink)
	d.register(d)
	return d
}

// NotifyEvent translates the stack's events. Locks of the stack may be held,
// but none that reading needs.
func (d *datagram) NotifyEvent(mask waiter.EventMask) {
	var ev Events
	if mask&(waiter.ReadableEvents|waiter.EventErr) != 0 {
		d.drain()
		ev |= EventReadable
	}
	if mask&waiter.WritableEvents != 0 {
		ev |= EventWritable
	}
	d.notify(ev)
}

// payloadWriter collects a datagram into memory of its size.
type payloadWriter struct{ b []byte }

func (w *payloadWriter) Write(p []byte) (int, error) {
	w.b = append(w.b, p...)
	return len(p), nil
}

// drain moves what waits in the stack into the queue, as far as it has room.
func (d *datagram) drain() {
	d.drainMu.Lock()
	defer d.drainMu.Unlock()
	for {
		if terr := d.ep.LastError(); terr != nil {
			d.note(fromStack(terr))
		}
		size, terr := d.ep.GetSockOptInt(tcpip.ReceiveQueueSizeOption)
		if terr != nil {
			return
		}
		w := payloadWriter{}
		if size > 0 {
			w.b = make([]byte, 0, size)
		}
		res, terr := d.ep.Read(&w, tcpip.ReadOptions{NeedRemoteAddr: true})
		switch terr.(type) {
		case nil:
		case *tcpip.ErrConnectionRefused:
			d.note(ErrRefused)
			continue
		default: // nothing more, or closed
			return
		}
		d.arrive(packet{
			from:    netip.AddrPortFrom(fromStackAddr(res.RemoteAddr.Addr), res.RemoteAddr.Port),
			payload: w.b,
		})
	}
}

func (d *datagram) arrive(p packet) {
	d.received.Add(uint64(len(p.payload)))
	d.packetsRecvd.Add(1)
	d.queueMu.Lock()
	defer d.queueMu.Unlock()
	cost := len(p.payload) + datagramOverhead
	if d.noRead.Load() || d.held >= d.window || d.remote.IsValid() && p.from != d.remote ||
		d.engine.hold.admit(Arrival{Bytes: cost, Held: d.held, Datagram: true}) == 0 {
		d.engine.datagramsDropped.Add(1)
		return
	}
	d.queue = append(d.queue, p)
	d.held += cost
}

// holdLocked counts what the queue holds more.
func (d *datagram) holdLocked(n int) {
	d.held += n
	d.engine.hold.release(-n, nil)
}

// popLocked takes the oldest datagram out of the queue.
func (d *datagram) popLocked() (packet, bool) {
	if d.head == len(d.queue) {
		return packet{}, false
	}
	p := d.queue[d.head]
	d.queue[d.head] = packet{}
	d.holdLocked(-len(p.payload) - datagramOverhead)
	if d.head++; d.head == len(d.queue) {
		d.queue, d.head = d.queue[:0], 0
	} else if d.head > 64 && d.head*2 > len(d.queue) {
		n := copy(d.queue, d.queue[d.head:])
		clear(d.queue[n:])
		d.queue, d.head = d.queue[:n], 0
	}
	return p, true
}

// note remembers an error that an ICMP message brought; the endpoint goes on.
func (d *datagram) note(err error) {
	d.queueMu.Lock()
	d.soft = err
	d.queueMu.Unlock()
}

// TakeError returns, once, what an ICMP message told of the peer.
func (d *datagram) TakeError() error {
	d.queueMu.Lock()
	defer d.queueMu.Unlock()
	err := d.soft
	d.soft = nil
	return err
}

// Bind sets the local address, and picks a port at once if there is none.
func (d *datagram) Bind(local netip.AddrPort) error {
	f, err := d.address(local)
	if err != nil {
		return err
	}
	f.NIC = 0 // with an interface named, the stack would not look at the address
	if terr := d.ep.Bind(f); terr != nil {
		return fromStack(terr)
	}
	d.ready.Store(true)
	return nil
}

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
	d.ready.Store(true)
	d.onlyFrom(remote)
	d.notify(EventConnected | EventWritable)
	return nil
}

// onlyFrom drops what others sent while the endpoint was bound only.
func (d *datagram) onlyFrom(remote netip.AddrPort) {
	d.queueMu.Lock()
	defer d.queueMu.Unlock()
	d.remote = remote
	for n := len(d.queue) - d.head; n > 0; n-- {
		p, _ := d.popLocked()
		if p.from != remote {
			d.engine.datagramsDropped.Add(1)
			continue
		}
		d.queue = append(d.queue, p)
		d.holdLocked(len(p.payload) + datagramOverhead)
	}
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

// Receive hands the oldest datagram to take.
func (d *datagram) Receive(take func(from netip.AddrPort, p []byte)) error {
	if err := d.readable(); err != nil {
		return err
	}
	d.queueMu.Lock()
	p, ok := d.popLocked()
	d.queueMu.Unlock()
	if !ok {
		return ErrWouldBlock
	}
	d.delivered.Add(uint64(len(p.payload)))
	take(p.from, p.payload)
	return nil
}

func (d *datagram) readable() error {
	switch {
	case !d.ready.Load():
		return ErrNotConnected
	case d.noRead.Load():
		return ErrEndOfStream
	}
	return nil
}

// Read offers one datagram and loses what take leaves of it.
func (d *datagram) Read(limit int, take func(p []byte) int) (int, error) {
	n := 0
	err := d.Receive(func(_ netip.AddrPort, p []byte) {
		n = d.offer(p, limit, take)
		d.delivered.Add(uint64(n) - uint64(len(p)))
	})
	return n, err
}

// Peek is Read without consuming.
func (d *datagram) Peek(limit int, take func(p []byte) int) (int, error) {
	if err := d.readable(); err != nil {
		return 0, err
	}
	d.queueMu.Lock()
	if d.head == len(d.queue) {
		d.queueMu.Unlock()
		return 0, ErrWouldBlock
	}
	p := d.queue[d.head]
	d.queueMu.Unlock()
	return d.offer(p.payload, limit, take), nil
}

func (d *datagram) offer(p []byte, limit int, take func(p []byte) int) int {
	p = p[:min(len(p), max(limit, 0))]
	if len(p) == 0 {
		return 0
	}
	return min(max(take(p), 0), len(p))
}

// Write sends one datagram of n bytes to the peer.
func (d *datagram) Write(n int, fill func(p []byte) error) (int, error) {
	if !d.connected.Load() {
		return 0, ErrNotConnected
	}
	return d.send(tcpip.WriteOptions{}, n, fill)
}

// SendTo sends one datagram of n bytes to an address.
func (d *datagram) SendTo(to netip.AddrPort, n int, fill func(p []byte) error) error {
	f, err := d.address(to)
	switch {
	case err != nil:
		return err
	case !d.ready.Load():
		return ErrNotConnected
	case f.Addr.Len() == 0 || f.Port == 0:
		return ErrBadAddress
	}
	_, err = d.send(tcpip.WriteOptions{To: &f}, n, fill)
	return err
}

func (d *datagram) send(opts tcpip.WriteOptions, n int, fill func(p []byte) error) (int, error) {
	switch {
	case d.noWrite.Load():
		return 0, ErrClosed
	case n < 0 || n > d.MaxDatagram():
		return 0, ErrMessageTooLong
	}
	d.writeMu.Lock()
	defer d.writeMu.Unlock()
	f := filler{fill: fill, left: n}
	k, terr := d.ep.Write(&f, opts)
	if f.err != nil {
		return 0, f.err
	}
	if terr != nil {
		return 0, fromStack(terr)
	}
	d.sent.Add(uint64(k))
	d.packetsSent.Add(1)
	return int(k), nil
}

// MaxDatagram is the longest payload.
func (d *datagram) MaxDatagram() int {
	if d.v6 {
		return maxDatagramV6
	}
	return maxDatagramV4
}

func (d *datagram) Writable() int {
	if !d.ready.Load() || d.noWrite.Load() || d.ep.Readiness(waiter.WritableEvents) == 0 {
		return 0
	}
	return d.MaxDatagram()
}

func (d *datagram) CloseWrite() error {
	if !d.ready.Load() {
		return ErrNotConnected
	}
	d.noWrite.Store(true)
	return nil
}

func (d *datagram) dropLocked() {
	d.engine.datagramsDropped.Add(uint64(len(d.queue) - d.head))
	d.holdLocked(-d.held)
	d.queue, d.head = nil, 0
}

func (d *datagram) Close() {
	if d.end() {
		d.ep.Close()
		d.engine.forget(d)
		d.queueMu.Lock()
		d.noRead.Store(true)
		d.dropLocked()
		d.queueMu.Unlock()
	}
}

// Abort is Close: there is no peer that could be told.
func (d *datagram) Abort() { d.Close() }

func (d *datagram) shut() { d.Close() }

// Join enters a multicast group.
func (d *datagram) Join(group netip.Addr) error {
	if !d.isGroup(group) {
		return ErrBadOption
	}
	d.queueMu.Lock()
	n := len(d.groups)
	d.queueMu.Unlock()
	if n >= maxGroups {
		return ErrNoMemory
	}
	if terr := d.ep.SetSockOpt(&tcpip.AddMembershipOption{NIC: nic, MulticastAddr: toStack(group)}); terr != nil {
		return fromStack(terr)
	}
	d.queueMu.Lock()
	d.groups = append(d.groups, group)
	d.queueMu.Unlock()
	return nil
}

// Leave leaves a multicast group.
func (d *datagram) Leave(group netip.Addr) error {
	if !d.isGroup(group) {
		return ErrBadOption
	}
	if terr := d.ep.SetSockOpt(&tcpip.RemoveMembershipOption{NIC: nic, MulticastAddr: toStack(group)}); terr != nil {
		return fromStack(terr)
	}
	d.queueMu.Lock()
	defer d.queueMu.Unlock()
	kept := d.groups[:0]
	for _, g := range d.groups {
		if g != group {
			kept = append(kept, g)
		}
	}
	d.groups = kept
	return nil
}

func (d *datagram) isGroup(a netip.Addr) bool {
	return a.IsMulticast() && a.Is6() == d.v6 && !a.Is4In6()
}

// Groups are the multicast groups that the endpoint is in, oldest first.
func (d *datagram) Groups() []netip.Addr {
	d.queueMu.Lock()
	defer d.queueMu.Unlock()
	return append([]netip.Addr(nil), d.groups...)
}

func (d *datagram) Info() Info {
	i := Info{
		Protocol:      UDP,
		Queued:        d.sent.Load(),
		Received:      d.received.Load(),
		Delivered:     d.delivered.Load(),
		SegmentsSent:  d.packetsSent.Load(),
		SegmentsRecvd: d.packetsRecvd.Load(),
	}
	i.Acked = i.Queued
	if d.connected.Load() {
		i.State = StateEstablished
	}
	if a, terr := d.ep.GetLocalAddress(); terr == nil {
		i.Local = netip.AddrPortFrom(fromStackAddr(a.Addr), a.Port)
		if a.Addr.Len() == 0 {
			i.Local = netip.AddrPortFrom(d.any(), a.Port)
		}
	}
	if a, terr := d.ep.GetRemoteAddress(); terr == nil {
		i.Remote = netip.AddrPortFrom(fromStackAddr(a.Addr), a.Port)
	}
	return i
}

// any is the unspecified address of the endpoint's family.
func (d *datagram) any() netip.Addr {
	if d.v6 {
		return netip.IPv6Unspecified()
	}
	return netip.IPv4Unspecified()
}

// Err is nil: nothing but its owner ends a datagram endpoint.
func (d *datagram) Err() error { return nil }

// SetOption changes a setting; the receive window is the bound of the queue.
func (d *datagram) SetOption(o Option, v int64) error {
	so := d.ep.SocketOptions()
	switch o {
	case OptReceiveWindow:
		if v < minBuffer || v > maxBuffer {
			return ErrBadOption
		}
		d.queueMu.Lock()
		d.window = int(v)
		d.queueMu.Unlock()
	case OptBroadcast, OptMulticastLoop:
		switch {
		case v != 0 && v != 1:
			return ErrBadOption
		case o == OptBroadcast:
			so.SetBroadcast(v == 1)
		default:
			so.SetMulticastLoop(v == 1)
		}
	case OptMulticastTTL:
		if v < 0 || v > 255 {
			return ErrBadOption
		}
		return fromStack(d.ep.SetSockOptInt(tcpip.MulticastTTLOption, int(v)))
	default:
		return d.setCommon(o, v)
	}
	return nil
}

func (d *datagram) Option(o Option) (int64, error) {
	so := d.ep.SocketOptions()
	switch o {
	case OptReceiveWindow:
		d.queueMu.Lock()
		defer d.queueMu.Unlock()
		return int64(d.window), nil
	case OptBroadcast:
		return flag(so.GetBroadcast()), nil
	case OptMulticastLoop:
		return flag(so.GetMulticastLoop()), nil
	case OptMulticastTTL:
		v, terr := d.ep.GetSockOptInt(tcpip.MulticastTTLOption)
		return int64(v), fromStack(terr)
	}
	return d.common(o)
}
