// SPDX-License-Identifier: Apache-2.0

package guestdriver

import (
	"errors"
	"net"
	"net/netip"
	"os"
	"syscall"
	"time"

	"toebox/vdev/abi"
)

// Buffers of datagrams.
const (
	packetClass = 3 // 64 KiB: any datagram, with its header, fits
	maxPackets  = 4 // receive buffers that an end holds: posted, or not read
)

// PacketConn is a datagram endpoint of the adapter, with or without a peer. It
// behaves as a [net.UDPConn]: a write returns when its datagram was handed to
// the network, or with the reason why not.
//
// Each of its ends (one, or one of each family) holds up to maxPackets receive
// buffers. A datagram that came stays in its buffer until it is read, and the
// buffer is posted again then; while all wait for the reader the adapter keeps
// what comes, up to the read buffer's size, and drops and counts the rest.
// A reset of the adapter ends a PacketConn with [ErrReset]; with Options.CarryOver
// it is opened again, on the same port, and datagrams under way are lost.
type PacketConn struct {
	network string
	local   *net.UDPAddr
	remote  *net.UDPAddr // nil: no peer

	blocking // its mu protects what follows
	ends     []*packetEnd
	queue    []packet
	soft     error // told by the next read: the peer refused
	err      error // of an adapter that was reset or is gone

	// Opening again; see packetagain.go.
	lost     []packetSpec    // ends that the adapter has no more
	opening  bool            // a goroutine is at it
	next     *Adapter        // where
	settings []packetSetting // attributes that were set
	born     *settings       // the adapter's policies when it was opened
}

// packet is a datagram that waits for its reader, in a buffer of end.
type packet struct {
	end *packetEnd
	buf *buffer
}

// packetEnd is one endpoint of the adapter. The PacketConn's lock protects it.
type packetEnd struct {
	p        *PacketConn
	ln       *lane
	id       uint64
	spec     packetSpec
	v6       bool
	bufs     int // receive buffers held
	requests int // outstanding, without the termination
	isGone   bool
}

var (
	_ net.PacketConn = (*PacketConn)(nil)
	_ net.Conn       = (*PacketConn)(nil)
	_ endpoint       = (*packetEnd)(nil)
)

func newPacketConn(network string) *PacketConn {
	p := &PacketConn{network: network}
	p.ready()
	return p
}

func (e *packetEnd) connID() uint64 { return e.id }
func (e *packetEnd) onLane() *lane  { return e.ln }
func (e *packetEnd) shut() bool     { return e.p.shut() }
func (e *packetEnd) terminate()     { e.p.terminate() }

// beginLocked posts the first receive buffers: one always, more as there is
// memory for them.
func (e *packetEnd) beginLocked() error {
	rx := e.ln.a.rx
	for e.bufs < maxPackets && (e.bufs == 0 || classSize(packetClass) <= rx.room()/8) {
		buf := rx.alloc(packetClass, false)
		if buf == nil {
			break
		}
		e.bufs++
		if err := e.postLocked(buf); err != nil {
			return err
		}
	}
	if e.bufs == 0 {
		return os.NewSyscallError("socket", syscall.ENOBUFS)
	}
	return nil
}

// postLocked gives a held buffer to the adapter, or, with an error, to the
// arena when nothing is to be received any more.
func (e *packetEnd) postLocked(buf *buffer) error {
	err := e.p.err
	switch {
	case err != nil:
	case e.p.closed || e.isGone:
		err = errClosed
	default:
		buf.filled, buf.consumed, buf.final = 0, 0, false
		_, err = e.ln.start(request{kind: kindReceive, conn: e, buf: buf}, abi.Fields{
			Type: abi.TypeBufferAvailable, Base: buf.iova, Conn: e.id, Length: uint32(len(buf.data)),
		}, true)
		if err == nil {
			e.requests++
			return nil
		}
		if err == errNoRoom {
			err = os.NewSyscallError("read", syscall.ENOBUFS)
		}
		e.p.failLocked(err)
	}
	e.bufs--
	buf.release()
	return err
}

func (e *packetEnd) received(f *abi.Fields, buf *buffer, final bool) bool {
	p := e.p
	p.mu.Lock()
	defer p.mu.Unlock()
	s, size := abi.Status(f.Aux), uint32(len(buf.data))
	switch {
	case !final || f.Offset != 0,
		s == abi.StatusOK && f.Length > size,
		s == abi.StatusTruncated && f.Length <= size,
		s != abi.StatusOK && s != abi.StatusTruncated,
		p.remote == nil && f.Length < abi.AddressSize:
		return false
	}
	buf.filled = min(f.Length, size)
	e.requests--
	if p.closed {
		e.bufs--
		buf.release()
		return true
	}
	p.queue = append(p.queue, packet{e, buf})
	p.rcond.Signal()
	return true
}

func (e *packetEnd) bufferBack(f *abi.Fields, buf *buffer) {
	p, s := e.p, abi.Status(f.Aux)
	p.mu.Lock()
	defer p.mu.Unlock()
	e.requests--
	switch s {
	case abi.StatusRefused:
		p.soft = os.NewSyscallError("read", syscall.ECONNREFUSED)
		p.rcond.Signal()
	case abi.StatusClosed, abi.StatusCancelled:
		e.bufs--
		buf.release()
		return
	default:
		if !p.closed {
			p.failLocked(statusErr("read", s))
		}
	}
	_ = e.postLocked(buf) // an error has failed the endpoint
}

func (e *packetEnd) bufferLost(buf *buffer, _ error) {
	e.p.mu.Lock()
	defer e.p.mu.Unlock()
	e.requests--
	e.bufs--
	buf.release()
}

func (e *packetEnd) sent(buf *buffer, s abi.Status, _ uint32) { e.sendEnded(buf, packetSendErr(s)) }

func (e *packetEnd) sendLost(buf *buffer, err error) { e.sendEnded(buf, err) }

// sendEnded tells the writer that waits for the buffer, or frees it.
func (e *packetEnd) sendEnded(buf *buffer, err error) {
	p := e.p
	p.mu.Lock()
	defer p.mu.Unlock()
	e.requests--
	if buf.consumed != 0 { // nobody waits
		buf.release()
		return
	}
	buf.final, buf.err = true, err
	p.wcond.Broadcast()
}

// packetSendErr is the error of a send's status.
func packetSendErr(s abi.Status) error {
	switch s {
	case abi.StatusBadAddress:
		return &statusError{"write", syscall.EACCES, s} // a broadcast
	case abi.StatusBadLength:
		return &statusError{"write", syscall.EMSGSIZE, s}
	}
	return statusErr("write", s)
}

func (e *packetEnd) ended(uint32) { e.fail(statusErr("read", abi.StatusAborted)) }

func (e *packetEnd) fail(err error) {
	e.p.mu.Lock()
	defer e.p.mu.Unlock()
	e.p.failLocked(err)
}

func (p *PacketConn) failLocked(err error) {
	if p.err == nil {
		p.err = err
	}
	p.rcond.Broadcast()
	p.wcond.Broadcast()
}

func (e *packetEnd) gone() {
	p := e.p
	p.mu.Lock()
	defer p.mu.Unlock()
	e.isGone = true
	if e.requests > 0 {
		e.ln.a.host.lost.Add(uint64(e.requests))
	}
	p.failLocked(errClosed)
}

// roomFreed wakes writers that found the queue full.
func (p *PacketConn) roomFreed() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.wcond.Broadcast()
}

// opError wraps an error as package net does.
func (p *PacketConn) opError(op string, to net.Addr, err error) error {
	if err == nil {
		return nil
	}
	if to == nil && p.remote != nil {
		to = p.remote
	}
	return &net.OpError{Op: op, Net: p.network, Source: p.LocalAddr(), Addr: to, Err: err}
}

// nextLocked waits for a datagram, or returns why there is none.
func (p *PacketConn) nextLocked() (packet, error) {
	var v vigil
	defer v.end()
	for {
		switch {
		case p.closed:
			return packet{}, errClosed
		case p.rdl.expired:
			return packet{}, os.ErrDeadlineExceeded
		case p.soft != nil:
			err := p.soft
			p.soft = nil
			return packet{}, err
		case len(p.queue) > 0:
			d := p.queue[0]
			n := copy(p.queue, p.queue[1:])
			p.queue[n] = packet{}
			p.queue = p.queue[:n]
			return d, nil
		case p.err != nil:
			return packet{}, p.err
		}
		if len(p.ends) == 0 || !v.look(p.ends[0].ln, &p.mu) {
			p.rcond.Wait()
			v.woke()
		}
	}
}

// read copies the next datagram, or as much of it as fits.
func (p *PacketConn) read(b []byte) (int, netip.AddrPort, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for {
		d, err := p.nextLocked()
		if err != nil {
			return 0, netip.AddrPort{}, err
		}
		data := d.buf.data[:d.buf.filled]
		// A datagram is its reader's alone: the copy needs no lock.
		p.mu.Unlock()
		from, ok := netip.AddrPort{}, true
		if p.remote == nil {
			var head [abi.AddressSize]byte
			copy(head[:], data)
			data = data[abi.AddressSize:]
			var a abi.Address
			a, ok = abi.ParseAddress(head[:])
			ok = ok && a.Addr.IsValid()
			from = netip.AddrPortFrom(a.Addr, a.Port)
		}
		n := 0
		if ok {
			n = copy(b, data)
			d.end.ln.a.host.copied.Add(uint64(n))
		} else {
			d.end.ln.a.bad.length.Add(1)
		}
		p.mu.Lock()
		_ = d.end.postLocked(d.buf)
		if ok {
			return n, from, nil
		}
	}
}

// Read reads one datagram; what does not fit is lost.
func (p *PacketConn) Read(b []byte) (int, error) {
	if len(b) == 0 {
		p.mu.Lock()
		defer p.mu.Unlock()
		if p.closed {
			return 0, p.opError("read", nil, errClosed)
		}
		return 0, nil
	}
	n, _, err := p.read(b)
	return n, p.opError("read", nil, err)
}

// ReadFromUDPAddrPort reads one datagram and says where it is from.
func (p *PacketConn) ReadFromUDPAddrPort(b []byte) (int, netip.AddrPort, error) {
	n, from, err := p.read(b)
	if err != nil {
		return 0, netip.AddrPort{}, p.opError("read", nil, err)
	}
	if p.remote != nil {
		from = p.remote.AddrPort()
	}
	return n, from, nil
}

// ReadFromUDP reads one datagram and says where it is from.
func (p *PacketConn) ReadFromUDP(b []byte) (int, *net.UDPAddr, error) {
	n, from, err := p.ReadFromUDPAddrPort(b)
	if err != nil {
		return 0, nil, err
	}
	return n, net.UDPAddrFromAddrPort(from), nil
}

// ReadFrom reads one datagram and says where it is from, as a *net.UDPAddr.
func (p *PacketConn) ReadFrom(b []byte) (int, net.Addr, error) {
	n, from, err := p.ReadFromUDP(b)
	if err != nil {
		return 0, nil, err
	}
	return n, from, nil
}

// Write sends one datagram to the peer.
func (p *PacketConn) Write(b []byte) (int, error) {
	var err error
	if p.remote == nil {
		err = os.NewSyscallError("write", syscall.EDESTADDRREQ)
		p.mu.Lock()
		if p.closed {
			err = errClosed
		}
		p.mu.Unlock()
	} else {
		err = p.write(b, netip.AddrPort{})
	}
	if err != nil {
		return 0, p.opError("write", nil, err)
	}
	return len(b), nil
}

// WriteToUDPAddrPort sends one datagram to an address.
func (p *PacketConn) WriteToUDPAddrPort(b []byte, to netip.AddrPort) (int, error) {
	to = netip.AddrPortFrom(to.Addr().Unmap().WithZone(""), to.Port())
	var err error
	switch {
	case p.remote != nil:
		err = net.ErrWriteToConnected
	case !to.IsValid():
		err = errNoAddress
	default:
		err = p.write(b, to)
	}
	if err != nil {
		return 0, p.opError("write", net.UDPAddrFromAddrPort(to), err)
	}
	return len(b), nil
}

// WriteToUDP sends one datagram to an address.
func (p *PacketConn) WriteToUDP(b []byte, to *net.UDPAddr) (int, error) {
	if to == nil {
		return 0, p.opError("write", nil, errNoAddress)
	}
	return p.WriteToUDPAddrPort(b, to.AddrPort())
}

// WriteTo sends one datagram to an address, a *net.UDPAddr.
func (p *PacketConn) WriteTo(b []byte, to net.Addr) (int, error) {
	u, ok := to.(*net.UDPAddr)
	if !ok {
		return 0, p.opError("write", to, syscall.EINVAL)
	}
	return p.WriteToUDP(b, u)
}

// endLocked is the end for a destination.
func (p *PacketConn) endLocked(to netip.AddrPort) (*packetEnd, error) {
	for _, e := range p.ends {
		if !to.IsValid() || e.v6 == to.Addr().Is6() {
			return e, nil
		}
	}
	if to.Addr().Is6() {
		return nil, &net.AddrError{Err: "non-IPv4 address", Addr: to.Addr().String()}
	}
	return nil, &net.AddrError{Err: "non-IPv6 address", Addr: to.Addr().String()}
}

// writeStateLocked returns why nothing can be written now, or nil.
func (p *PacketConn) writeStateLocked() error {
	switch {
	case p.closed:
		return errClosed
	case p.wdl.expired:
		return os.ErrDeadlineExceeded
	}
	return p.err
}

// write sends one datagram, to the peer if to is not valid, and waits for its
// result.
func (p *PacketConn) write(b []byte, to netip.AddrPort) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	for {
		if err := p.writeStateLocked(); err != nil {
			return err
		}
		if p.betweenLocked() {
			p.wcond.Wait()
			continue
		}
		e, err := p.endLocked(to)
		if err == nil {
			err = p.writeLocked(e, b, to)
		}
		if !errors.Is(err, ErrReset) && !errors.Is(err, ErrGone) || !e.ln.a.opts.CarryOver {
			return err
		}
		if !e.isGone && p.err == nil { // lose or fail is about to say
			p.wcond.Wait()
		}
	}
}

// writeLocked sends one datagram from an end.
func (p *PacketConn) writeLocked(e *packetEnd, b []byte, to netip.AddrPort) error {
	var head []byte
	if to.IsValid() {
		head = abi.AppendAddress(nil, abi.Address{Addr: to.Addr(), Port: to.Port()})
	}
	n := len(head) + len(b)
	if n > classSize(packetClass) {
		return os.NewSyscallError("write", syscall.EMSGSIZE)
	}
	buf := e.ln.a.tx.alloc(classFor(n), false)
	if buf == nil {
		return os.NewSyscallError("write", syscall.ENOBUFS)
	}
	copy(buf.data[copy(buf.data, head):], b)
	e.ln.a.host.copied.Add(uint64(len(b)))
	buf.filled, buf.err = uint32(n), nil
	f := abi.Fields{Type: abi.TypeBufferSend, Modify: true, Base: buf.iova, Conn: e.id, Length: uint32(n)}
	if n == 0 {
		f.Length, f.Offset = 1, 1 // SPEC.md §5.11: an empty datagram
	}
	for {
		_, err := e.ln.start(request{kind: kindSend, conn: e, buf: buf}, f, false)
		if err == nil {
			e.requests++
			break
		}
		if err == errNoRoom {
			// roomFreed, which the lane calls, needs mu: it comes after Wait.
			if !e.ln.awaitRoom(p) {
				p.wcond.Wait()
			}
			err = p.writeStateLocked()
		}
		if err != nil {
			buf.release()
			return err
		}
	}
	var v vigil
	defer v.end()
	for !buf.final {
		if err := p.writeStateLocked(); err != nil {
			buf.consumed = 1 // whoever ends the send frees it
			return err
		}
		if !v.look(e.ln, &p.mu) {
			p.wcond.Wait()
			v.woke()
		}
	}
	err := buf.err
	buf.release()
	return err
}

// Close ends the endpoint. Datagrams not read are lost.
func (p *PacketConn) Close() error {
	if !p.shut() {
		return p.opError("close", nil, errClosed)
	}
	p.terminate()
	return nil
}

func (p *PacketConn) shut() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return false
	}
	p.closed = true
	p.rdl.setLocked(&p.mu, &p.rcond, time.Time{})
	p.wdl.setLocked(&p.mu, &p.wcond, time.Time{})
	for _, d := range p.queue {
		_ = d.end.postLocked(d.buf) // closed: to the arena
	}
	p.queue = nil
	p.rcond.Broadcast()
	p.wcond.Broadcast()
	return true
}

func (p *PacketConn) terminate() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, e := range p.ends {
		e.terminateLocked()
	}
}

// terminateLocked ends the adapter's side. Its answer takes the id out.
func (e *packetEnd) terminateLocked() {
	if !e.isGone {
		_, _ = e.ln.start(request{kind: kindTerminate, conn: e},
			abi.Fields{Type: abi.TypeTermination, Conn: e.id, Length: abi.TerminateGraceful}, true)
	}
}
