// SPDX-License-Identifier: Apache-2.0

package port

import (
	"errors"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"gvisor.dev/gvisor/pkg/waiter"
)

// Our tunables.
const (
	// readQuantum is the most that one read moves from a host socket, bytes.
	readQuantum = 256 << 10
	// keepAliveIdle and keepAliveInterval find out about an adapter that
	// vanished without a word (a device reset) behind an idle connection.
	keepAliveIdle     = 2 * time.Minute
	keepAliveInterval = 20 * time.Second
	// lingerLimit bounds how long the adapter may take to acknowledge the
	// rest of a connection that is closed here, and lingerBytes how much
	// such connections may hold together.
	lingerLimit = 5 * time.Minute
	lingerBytes = 256 << 20
	// hostCheck is how often a connection that waits for the adapter's
	// window looks whether its host side is still alive.
	hostCheck = time.Second
)

// flow is one connection: an endpoint of the gateway towards the adapter and a
// socket of the host, each one's bytes, end and failure passed to the other.
//
//	          adapter's FIN               host's FIN
//	open ───────────────────▶ half ───────────────────▶ closed in order
//	  │   shutdown(host, W)     │   shutdown(ep, W)        (either may come first)
//	  └──────── reset or error of either side ───────▶ reset: both reset
//
// Two goroutines serve it. Neither owns a buffer: the kernel copies straight
// between the socket and the stack's own chunks.
type flow struct {
	n    *NAT
	ep   tcpip.Endpoint
	wq   *waiter.Queue
	host *net.TCPConn
	raw  syscall.RawConn

	room int          // of the send buffer, bytes
	sent atomic.Int64 // payload from the host so far

	ended atomic.Bool // the host's FIN was passed on

	once sync.Once
	dead chan struct{} // closed by reset and finish
}

// rawConn is the descriptor's view of a socket.
func rawConn(c net.Conn) (syscall.RawConn, error) {
	s, ok := c.(syscall.Conn)
	if !ok {
		return nil, errors.New("port: not a socket")
	}
	return s.SyscallConn()
}

var errWouldBlock = errors.New("port: socket would block")

// run serves the connection until both directions are done.
func (n *NAT) runFlow(ep tcpip.Endpoint, wq *waiter.Queue, host *net.TCPConn) {
	f := &flow{n: n, ep: ep, wq: wq, host: host, dead: make(chan struct{})}
	raw, err := host.SyscallConn()
	f.raw = raw
	if err != nil || !n.enter(f) {
		f.reset()
		return
	}
	defer n.leave(f)
	f.setOptions(n.stats.TCPOpen.Add(1))
	defer n.stats.TCPOpen.Add(^uint64(0))

	fromHost := make(chan struct{})
	go func() {
		defer close(fromHost)
		f.fromHost()
	}()
	f.toHost(fromHost)
	<-fromHost
	select {
	case <-f.dead:
	default:
		f.finish()
	}
}

// share is a connection's part of bufferBudget when open of them are open.
func share(open uint64, most int) int {
	return int(max(min(bufferBudget/max(open, 1), uint64(most)), minBuffer))
}

// setOptions sets the endpoint up as one of open connections.
func (f *flow) setOptions(open uint64) {
	o := f.ep.SocketOptions()
	// Fixed sizes: no tuning that could shrink the room between the look at
	// it and the write.
	f.room = share(open, sendBuffer)
	o.SetSendBufferSize(int64(f.room), false)
	if r := share(open, receiveBuffer); r < receiveBuffer {
		o.SetReceiveBufferSize(int64(r), false)
	}
	o.SetKeepAlive(true)
	idle := tcpip.KeepaliveIdleOption(keepAliveIdle)
	interval := tcpip.KeepaliveIntervalOption(keepAliveInterval)
	f.ep.SetSockOpt(&idle)
	f.ep.SetSockOpt(&interval)
}

// reset ends both sides with a reset, once.
func (f *flow) reset() {
	f.once.Do(func() {
		close(f.dead)
		f.n.stats.TCPResets.Add(1)
		f.ep.Abort()
		f.host.SetLinger(0)
		f.host.Close()
	})
}

// shut implements closer.
func (f *flow) shut() { f.reset() }

// finish closes both sides in order. What the adapter has not acknowledged yet
// is the janitor's business from here.
func (f *flow) finish() {
	f.once.Do(func() {
		close(f.dead)
		f.host.Close()
		f.ep.Close()
		if f.unacknowledged() {
			f.n.linger(f)
		}
	})
}

// toHost moves the adapter's bytes to the host until the adapter's FIN, then
// watches for a reset until the other direction is done.
func (f *flow) toHost(fromHost <-chan struct{}) {
	e, ch := waiter.NewChannelEntry(waiter.ReadableEvents | waiter.EventErr | waiter.EventHUp)
	f.wq.EventRegister(&e)
	defer f.wq.EventUnregister(&e)
	for {
		end, err := f.drain()
		if err != nil {
			f.reset()
			return
		}
		if end {
			break
		}
		select {
		case <-ch:
		case <-f.dead:
			return
		}
	}
	if f.host.CloseWrite() != nil {
		f.reset()
		return
	}
	for {
		select {
		case <-ch:
			if f.failed() {
				f.reset()
				return
			}
		case <-fromHost:
			return
		case <-f.dead:
			return
		}
	}
}

// failed says whether the endpoint was reset after the adapter's FIN. Netstack
// then takes it to the closed state, where it gets in an orderly way only after
// a FIN of its own.
func (f *flow) failed() bool {
	switch tcp.EndpointState(f.ep.State()) {
	case tcp.StateError:
		return true
	case tcp.StateClose:
		return !f.ended.Load()
	}
	return false
}

// drain writes everything that is readable to the host. end: the adapter's FIN
// is next.
func (f *flow) drain() (end bool, err error) {
	w := socketWriter{f: f}
	werr := f.raw.Write(func(fd uintptr) bool {
		w.fd, w.err = int(fd), nil
		for {
			r, terr := f.ep.Read(&w, tcpip.ReadOptions{})
			f.n.stats.BytesToHost.Add(uint64(r.Count))
			if w.err == errWouldBlock {
				return false // called again when the socket has room
			}
			if w.err != nil {
				err = w.err
				return true
			}
			switch terr.(type) {
			case nil:
			case *tcpip.ErrWouldBlock:
				return true
			case *tcpip.ErrClosedForReceive:
				end = true
				return true
			default:
				err = errors.New(terr.String())
				return true
			}
		}
	})
	if werr != nil && err == nil {
		err = werr
	}
	return end, err
}

// socketWriter writes to a non-blocking socket. The stack calls it with the
// connection's lock held, so it never waits.
type socketWriter struct {
	f   *flow
	fd  int
	err error
}

func (w *socketWriter) Write(p []byte) (int, error) {
	done := 0
	for done < len(p) {
		k, err := unix.Write(w.fd, p[done:])
		if k > 0 {
			done += k
		}
		switch {
		case err == unix.EINTR:
		case err == unix.EAGAIN:
			w.err = errWouldBlock
			return done, w.err
		case err != nil:
			w.err = err
			return done, err
		}
	}
	return done, nil
}

// fromHost moves the host's bytes to the adapter until the host's FIN.
func (f *flow) fromHost() {
	e, ch := waiter.NewChannelEntry(waiter.WritableEvents | waiter.EventErr | waiter.EventHUp)
	f.wq.EventRegister(&e)
	defer f.wq.EventUnregister(&e)
	for {
		full, err := f.fill()
		switch {
		case err == io.EOF:
			f.ended.Store(true)
			f.ep.Shutdown(tcpip.ShutdownWrite)
			return
		case err != nil:
			f.reset()
			return
		case full && !f.waitRoom(ch):
			return
		}
	}
}

// waitRoom waits until the send buffer may have room again. A host side that
// was reset meanwhile does not show by itself, since nobody reads from it.
func (f *flow) waitRoom(ch <-chan struct{}) bool {
	t := time.NewTimer(hostCheck)
	defer t.Stop()
	select {
	case <-ch:
		return true
	case <-f.dead:
		return false
	case <-t.C:
	}
	if f.hostFailed() {
		f.reset()
		return false
	}
	return true
}

// hostFailed says whether the host's socket was reset.
func (f *flow) hostFailed() (failed bool) {
	err := f.raw.Control(func(fd uintptr) {
		p := []unix.PollFd{{Fd: int32(fd)}}
		if _, err := unix.Poll(p, 0); err == nil {
			failed = p[0].Revents&unix.POLLERR != 0
		}
	})
	return failed || err != nil
}

// fill reads from the host into the send buffer until the host has no more
// (and then waits for it) or the buffer is full. io.EOF is the host's FIN.
func (f *flow) fill() (full bool, err error) {
	rerr := f.raw.Read(func(fd uintptr) bool {
		for {
			n, e := waiting(int(fd))
			if e == unix.EAGAIN {
				return false // called again when the socket is readable
			}
			if e != nil {
				err = e
				return true
			}
			p := socketPayload{fd: int(fd), n: min(n, readQuantum)}
			k, terr := f.ep.Write(&p, tcpip.WriteOptions{})
			f.n.stats.BytesFromHost.Add(uint64(k))
			f.sent.Add(k)
			switch terr.(type) {
			case nil:
			case *tcpip.ErrWouldBlock:
				full = true
				return true
			default:
				// The stack threw away what it could not take.
				if err = p.err; err == nil {
					err = errors.New(terr.String())
				}
				return true
			}
		}
	})
	if rerr != nil && err == nil {
		err = rerr
	}
	return full, err
}

// waiting says how many bytes can be read from a socket without waiting: at
// least one, or io.EOF, EAGAIN or the socket's error.
func waiting(fd int) (int, error) {
	n, err := unix.IoctlGetInt(fd, unix.SIOCINQ)
	if err != nil || n > 0 {
		return n, err
	}
	var b [1]byte
	for {
		n, _, err = unix.Recvfrom(fd, b[:], unix.MSG_PEEK|unix.MSG_DONTWAIT)
		if err != unix.EINTR {
			break
		}
	}
	if err == nil && n == 0 {
		err = io.EOF
	}
	return n, err
}

// socketPayload is a tcpip.Payloader that reads the stack's next bytes from a
// socket in which n bytes are known to wait. The number must hold: a payloader
// that falls short loses the bytes it had read.
type socketPayload struct {
	fd, n int
	err   error
}

// Len implements tcpip.Payloader.
func (p *socketPayload) Len() int { return p.n }

// Read implements io.Reader.
func (p *socketPayload) Read(b []byte) (int, error) {
	if len(b) == 0 {
		return 0, nil
	}
	for {
		n, err := unix.Read(p.fd, b)
		if err == unix.EINTR {
			continue
		}
		if err == nil && n == 0 {
			err = io.ErrUnexpectedEOF
		}
		if err != nil {
			p.err = err
			return 0, err
		}
		return n, nil
	}
}

// held is the most that the send buffer may still hold, bytes.
func (f *flow) held() int { return int(min(f.sent.Load(), int64(f.room))) }

// linger hands an endpoint that is closed, but not acknowledged, to janitor,
// or aborts it when too much lingers already.
func (n *NAT) linger(f *flow) {
	n.mu.Lock()
	fits := n.lingerHeld+f.held() <= lingerBytes
	if fits {
		n.lingering[f] = time.Now().Add(lingerLimit)
		n.lingerHeld += f.held()
	}
	n.mu.Unlock()
	if !fits {
		n.stats.TCPResets.Add(1)
		f.ep.Abort()
	}
}

// janitor aborts closed endpoints whose rest the adapter does not take. Without
// it an adapter with a closed window would keep send buffers here for ever.
func (n *NAT) janitor() {
	defer n.wg.Done()
	t := time.NewTicker(time.Second)
	defer t.Stop()
	for {
		select {
		case <-n.ctx.Done():
			return
		case now := <-t.C:
			n.sweep(now)
		}
	}
}

// sweep forgets endpoints that are done, and aborts those whose time is up.
func (n *NAT) sweep(now time.Time) {
	var late []*flow
	n.mu.Lock()
	for f, end := range n.lingering {
		if f.unacknowledged() {
			if now.Before(end) {
				continue
			}
			late = append(late, f)
		}
		delete(n.lingering, f)
		n.lingerHeld -= f.held()
	}
	n.mu.Unlock()
	for _, f := range late {
		n.stats.TCPResets.Add(1)
		f.ep.Abort()
	}
}

// unacknowledged says whether the closed endpoint has its FIN still to send, or
// acknowledged, and so may hold data.
func (f *flow) unacknowledged() bool {
	switch tcp.EndpointState(f.ep.State()) {
	case tcp.StateEstablished, tcp.StateCloseWait, tcp.StateFinWait1, tcp.StateClosing, tcp.StateLastAck:
		return true
	}
	return false
}
