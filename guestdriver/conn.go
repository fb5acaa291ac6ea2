// SPDX-License-Identifier: Apache-2.0

package guestdriver

import (
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"toebox/vdev/abi"
)

// Conn is a TCP connection of the adapter. It behaves as a [net.TCPConn].
//
//	          Close                       terminal response
//	open ───────────────> closing ──────────────────────────> gone
//	  │ reset, time-out, firmware gone (rerr, werr set)         ^
//	  └──────────────────────> dead ── Close ───────────────────┘
type Conn struct {
	on      atomic.Pointer[lane] // another adapter's after a fail-over
	id      atomic.Uint64        // another one after it was carried over
	network string
	local   *net.TCPAddr
	remote  *net.TCPAddr

	rdMu sync.Mutex // one reader at a time; held while it copies
	wrMu sync.Mutex // one writer at a time

	blocking // its mu protects what follows

	// Receive: segs are the bytes that wait for a reader, in order of the
	// stream. reading is set while a reader works on segs[0] without mu.
	segs    []segment
	reading bool
	eof     bool
	rdShut  bool // CloseRead
	bufs    int  // receive buffers held: posted, or not wholly read
	room    int  // bytes that the adapter may still write
	class   int  // of the next receive buffer
	deep    int  // how many more of them than one the adapter has room in
	rerr    error
	own     []*buffer // those that the adapter has

	// Buffers of the application, in order; see postbuffer.go.
	userFirst, userLast *Buffer
	userNext            *Buffer // the first that the adapter does not have
	reader              *Buffer // of a Read into registered memory; rdMu protects it
	posting             bool    // PostBuffer is in use: no reading ahead
	onDemand            bool    // no reading ahead at all
	waiting             bool    // a reader waits for the driver's buffers
	fresh               bool    // nobody has called it yet
	paused              bool    // a stop is under way
	awaits              *Conn   // the destination that the next redirection waits for

	virtuals map[uint8]*VirtualBuffer // posted, by id

	// As the destination of redirections: away is set while it is carried over,
	// sources are those that wait for the end of that.
	away    atomic.Bool
	sources atomic.Pointer[source]

	pool      *Pool      // whose buffers are used; nil: the driver's own
	sendGroup *SendGroup // that it is in
	member    *member    // its part in a receive group; nil: none
	spare     *Segment   // to be used again

	// Send.
	held   int // bytes of DMA memory: posted, or being filled
	sends  int // posted
	werr   error
	wrShut bool      // CloseWrite
	one    [1][]byte // of a Write; wrMu protects it
	direct []*Buffer // of a Write from registered memory; wrMu protects them

	// Carrying over; see carry.go. kept are the sends not completed, in order,
	// acked the bytes of those completed; both only with Options.CarryOver.
	carry    *carried // nil: the adapter has the connection
	kept     []keptSend
	acked    uint64
	born     *settings // the adapter's when it began
	settings settings  // attributes that were set
	stay     bool      // it cannot be carried over

	linger   int    // seconds; negative: none
	mode     uint32 // of the termination, once closed
	isGone   bool
	requests int // outstanding, without the termination
}

// segment is n bytes at off of a receive buffer.
type segment struct {
	buf    *buffer
	off, n uint32
}

func newConn(ln *lane, id uint64, network string, local, remote *net.TCPAddr) *Conn {
	c := &Conn{network: network, local: local, remote: remote, class: firstClass, linger: -1}
	c.id.Store(id)
	c.on.Store(ln)
	c.onDemand = ln.a.opts.NoReadAhead
	c.born = ln.a.defaults.Load()
	c.ready()
	return c
}

func (c *Conn) connID() uint64 { return c.id.Load() }
func (c *Conn) onLane() *lane  { return c.lane() }

// lane is where the connection is, or goes on. It changes with mu held.
func (c *Conn) lane() *lane { return c.on.Load() }

// ID returns the adapter's id of the connection, for attributes. A connection
// that was carried over has another one than before.
func (c *Conn) ID() uint64 { return c.id.Load() }

// LocalAddr returns a *net.TCPAddr.
func (c *Conn) LocalAddr() net.Addr { return c.local }

// RemoteAddr returns a *net.TCPAddr.
func (c *Conn) RemoteAddr() net.Addr { return c.remote }

// opError wraps an error as package net does.
func (c *Conn) opError(op string, err error) error {
	if err == nil || err == io.EOF {
		return err
	}
	return &net.OpError{Op: op, Net: c.network, Source: c.local, Addr: c.remote, Err: err}
}

// setError wraps an error as package net does for deadlines and buffer sizes:
// those name the local address alone.
func (c *Conn) setError(err error) error {
	if err == nil {
		return nil
	}
	return &net.OpError{Op: "set", Net: c.network, Addr: c.local, Err: err}
}

// SetDeadline sets both deadlines. It reaches calls that wait already.
func (c *Conn) SetDeadline(t time.Time) error { return c.setDeadline(t, true, true) }

// SetReadDeadline sets the deadline of reads.
func (c *Conn) SetReadDeadline(t time.Time) error { return c.setDeadline(t, true, false) }

// SetWriteDeadline sets the deadline of writes.
func (c *Conn) SetWriteDeadline(t time.Time) error { return c.setDeadline(t, false, true) }

func (c *Conn) setDeadline(t time.Time, rd, wr bool) error {
	if !c.moveDeadlines(t, rd, wr) {
		return c.setError(errClosed)
	}
	return nil
}

// Close ends the connection. Data written before still goes out, as long as
// the linger time allows. When there is none that the peer has not acknowledged,
// the adapter hears of it with the next request, at most a millisecond later.
func (c *Conn) Close() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.shutLocked() {
		return c.opError("close", errClosed)
	}
	c.terminateLocked()
	return nil
}

func (c *Conn) shut() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.shutLocked()
}

func (c *Conn) shutLocked() bool {
	if c.closed {
		return false
	}
	mode := uint32(abi.TerminateGraceful)
	if c.linger == 0 {
		mode = abi.TerminateAbort
	}
	c.closeLocked(mode)
	return true
}

func (c *Conn) terminate() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.terminateLocked()
}

// abort resets a connection that nobody has seen yet.
func (c *Conn) abort() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.closed {
		c.closeLocked(abi.TerminateAbort)
		c.terminateLocked()
	}
}

// closeLocked ends calls. The adapter is not told.
func (c *Conn) closeLocked(mode uint32) {
	c.closed, c.mode = true, mode
	c.rdl.setLocked(&c.mu, &c.rcond, time.Time{})
	c.wdl.setLocked(&c.mu, &c.wcond, time.Time{})
	c.rcond.Broadcast()
	c.wcond.Broadcast()
	if !c.reading {
		c.dropSegmentsLocked()
	}
	c.feedLocked()
}

// terminateLocked ends a closed connection, behind everything that was posted.
// One that is being carried over is ended where it arrives.
func (c *Conn) terminateLocked() {
	if c.isGone || c.carry != nil {
		return
	}
	// The peer waits for the end only behind what it has not acknowledged.
	late := c.sends == 0 && c.mode == abi.TerminateGraceful
	// An error means that a reset has ended, or is about to end, the connection.
	_, _ = c.lane().start(request{kind: kindTerminate, conn: c, late: late},
		abi.Fields{Type: abi.TypeTermination, Conn: c.id.Load(), Length: c.mode}, true)
}

// CloseWrite sends a FIN behind what was written.
func (c *Conn) CloseWrite() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case c.closed:
		return c.opError("close", errClosed)
	case c.wrShut:
		return nil
	case c.werr != nil || c.isGone:
		return c.opError("close", os.NewSyscallError("shutdown", syscall.ENOTCONN))
	}
	c.wrShut = true
	c.wcond.Broadcast()
	return c.opError("close", c.halfCloseLocked(abi.TerminateSend))
}

// CloseRead ends receiving: reads return io.EOF, what comes is dropped.
func (c *Conn) CloseRead() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case c.closed:
		return c.opError("close", errClosed)
	case c.rdShut:
		return nil
	}
	c.rdShut = true
	c.rcond.Broadcast()
	if !c.reading {
		c.dropSegmentsLocked()
	}
	c.feedLocked()
	if c.isGone || c.eof || c.rerr != nil {
		return nil
	}
	return c.opError("close", c.halfCloseLocked(abi.TerminateReceive))
}

// halfCloseLocked ends a direction; of a carried connection when it goes on.
func (c *Conn) halfCloseLocked(mode uint32) error {
	if c.carry != nil {
		return nil
	}
	_, err := c.lane().start(request{kind: kindHalfClose, conn: c},
		abi.Fields{Type: abi.TypeTermination, Conn: c.id.Load(), Length: mode}, true)
	return err
}

// ended acts on a termination response that nobody asked for (SPEC.md §5.8).
func (c *Conn) ended(how uint32) {
	switch how {
	case abi.EndedStream:
		c.mu.Lock()
		c.eof = true
		c.rcond.Broadcast()
		c.feedLocked()
		c.mu.Unlock()
	case abi.EndedTimedOut:
		c.fail(statusErr("read", abi.StatusTimedOut))
	default:
		c.fail(statusErr("read", abi.StatusReset))
	}
}

// fail makes reads, behind the data that is there, and writes return err.
func (c *Conn) fail(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.failLocked(err)
}

func (c *Conn) failLocked(err error) {
	if c.rerr == nil && !c.eof {
		c.rerr = err
	}
	if c.werr == nil {
		var s *statusError
		if errors.As(err, &s) && s.op == "read" {
			err = &statusError{"write", s.errno, s.status}
		}
		c.werr = err
	}
	c.rcond.Broadcast()
	c.wcond.Broadcast()
	c.feedLocked()
}

// gone acts on the terminal response to a termination: the id is no more.
func (c *Conn) gone() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.isGone = true
	c.dropKeptLocked()
	// Every request is answered before (SPEC.md §5.8). Of one that was not,
	// the adapter may still use the buffer: it stays out of circulation.
	if c.requests > 0 {
		c.lane().a.host.lost.Add(uint64(c.requests))
	}
	c.failLocked(errClosed)
}

// roomFreed wakes those that found the queue full.
func (c *Conn) roomFreed() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.rcond.Broadcast()
	c.wcond.Broadcast()
	c.advanceLocked()
}
