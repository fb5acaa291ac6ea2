// SPDX-License-Identifier: Apache-2.0

package vfiouser

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// inputBuffer is what one recvmsg asks for at first; it grows to the
	// longest message that arrives, bounded by stream.maxSize.
	inputBuffer = 64 << 10
	// minRead is the least room a recvmsg gets before input is moved down.
	minRead = 4 << 10
	// After spinMisses vain polls in a row only the fills numbered by powers of
	// two and one in spinProbe still poll: on a processor that the peer needs to
	// run, polling can only delay it.
	spinMisses = 4
	spinProbe  = 256
)

// message is one message as it came in.
type message struct {
	header
	payload []byte // until the next fill
	fds     []int  // owned by whoever handles the message; -1: taken
	badFDs  bool   // some were cut off or too many; none is left in fds
	tooLong bool   // longer than we take; the payload is being discarded
}

// close closes the file descriptors that were not taken.
func (m *message) close() { closeFDs(m.fds) }

func closeFDs(fds []int) {
	for i, fd := range fds {
		if fd >= 0 {
			unix.Close(fd)
			fds[i] = -1
		}
	}
}

// attached are the file descriptors of a message that is not complete yet.
type attached struct {
	at  uint64 // where the message starts in the stream
	fds []int
	bad bool
}

// stream cuts the byte stream of a socket into messages and attributes file
// descriptors to them. One recvmsg may bring many messages. The kernel ends a
// read after the bytes of the sendmsg that carried descriptors, so those belong
// to the message that the last byte of the read belongs to.
//
// next and fill are for one goroutine; send is safe for concurrent use.
type stream struct {
	uc      *net.UnixConn
	rc      syscall.RawConn
	spin    time.Duration // how long fill polls before it sleeps, if that has paid lately
	timeout time.Duration // of a send that cannot proceed
	maxSize int           // of a message
	maxFDs  int           // of a message

	buf  []byte
	r, w int        // buf[r:w] is input; r is at the start of a message
	base uint64     // place of buf[0] in the stream
	skip int        // bytes at r that end a message which was too long
	need int        // size of the message at r, once known
	att  []attached // in stream order, at most two
	in   *socketIO  // for fill
	recv func(fd uintptr) bool
	got  received // result of recv

	misses uint // polls in vain since the last that was not

	sendMu  sync.Mutex
	out     *socketIO // for send, under sendMu
	write   func(fd uintptr) bool
	pending outgoing // argument and result of write, under sendMu
}

type received struct {
	n     int
	errno unix.Errno
	slept bool
}

type outgoing struct {
	p, oob []byte
	errno  unix.Errno
	timed  bool // a deadline has been set
}

// newStream takes over c.
func newStream(c *net.UnixConn, maxSize, maxFDs int, spin, timeout time.Duration) (*stream, error) {
	rc, err := c.SyscallConn()
	if err != nil {
		return nil, err
	}
	s := &stream{
		uc: c, rc: rc, spin: spin, timeout: timeout, maxSize: maxSize, maxFDs: maxFDs,
		buf: make([]byte, inputBuffer), in: new(socketIO), out: new(socketIO),
	}
	s.recv, s.write = s.tryRecv, s.tryWrite
	return s, nil
}

// next returns the next message that has arrived whole. It does not read.
// An error means that the stream cannot be cut any further.
func (s *stream) next() (m message, ok bool, err error) {
	if s.skip > 0 {
		n := min(s.skip, s.w-s.r)
		s.r, s.skip = s.r+n, s.skip-n
		if s.skip > 0 {
			return m, false, nil
		}
	}
	if s.w-s.r < headerSize {
		s.need = headerSize
		return m, false, nil
	}
	h := parseHeader(s.buf[s.r:s.w])
	if h.size < headerSize {
		return m, false, fmt.Errorf("%v message of %d bytes: %w", h.cmd, h.size, syscall.EBADMSG)
	}
	if uint64(h.size) > uint64(s.maxSize) {
		m = message{header: h, tooLong: true}
		m.fds, m.badFDs = s.take(s.base + uint64(s.r))
		s.r, s.skip = s.r+headerSize, int(h.size)-headerSize
		return m, true, nil
	}
	size := int(h.size)
	if s.w-s.r < size {
		s.need = size
		return m, false, nil
	}
	m = message{header: h, payload: s.buf[s.r+headerSize : s.r+size : s.r+size]}
	m.fds, m.badFDs = s.take(s.base + uint64(s.r))
	s.r += size
	return m, true, nil
}

// fill reads more input, waiting for it if there is none. It ends with io.EOF
// if the peer has closed between two messages.
func (s *stream) fill() error {
	s.makeRoom()
	s.got = received{}
	if err := s.rc.Read(s.recv); err != nil {
		return err
	}
	switch {
	case s.got.errno == unix.ECONNRESET:
		return io.EOF
	case s.got.errno != 0:
		return os.NewSyscallError("recvmsg", s.got.errno)
	case s.got.n == 0 && s.r == s.w && s.skip == 0:
		return io.EOF
	case s.got.n == 0:
		return io.ErrUnexpectedEOF
	}
	return nil
}

// makeRoom moves input to the front of the buffer, or gets a larger buffer, so
// that the message at r fits.
func (s *stream) makeRoom() {
	if s.r == s.w {
		s.base += uint64(s.r)
		s.r, s.w = 0, 0
	}
	need := max(s.need, headerSize)
	if len(s.buf)-s.r >= need && len(s.buf)-s.w >= minRead {
		return
	}
	to := s.buf
	if need > len(s.buf) {
		to = make([]byte, min(max(need, 2*len(s.buf)), s.maxSize)+minRead)
	}
	n := copy(to, s.buf[s.r:s.w])
	s.base += uint64(s.r)
	s.buf, s.r, s.w = to, 0, n
}

// tryRecv makes the recvmsg for fill; false asks the poller to wait.
func (s *stream) tryRecv(fd uintptr) bool {
	var until time.Time
	for {
		n, oob, cut, errno := s.in.recv(int(fd), s.buf[s.w:])
		switch errno {
		case 0:
			if len(oob) > 0 || cut {
				// Before anything else: these are ours to close now.
				s.attach(n, oob, cut)
			}
			if !until.IsZero() {
				s.misses = 0
			}
			s.w += n
			s.got.n = n
			return true
		case unix.EINTR:
			continue
		case unix.EAGAIN:
			if s.spin <= 0 || s.got.slept {
				return false
			}
			now := time.Now()
			switch {
			case until.IsZero() && s.misses >= spinMisses && s.misses%spinProbe != 0 && s.misses&(s.misses-1) != 0:
				s.misses++
				s.got.slept = true
				return false
			case until.IsZero():
				until = now.Add(s.spin)
			case now.After(until):
				s.misses++
				s.got.slept = true
				return false
			}
		default:
			s.got.errno = errno
			return true
		}
	}
}

// attach takes in the file descriptors of a read of n bytes to buf[w:].
func (s *stream) attach(n int, oob []byte, cut bool) {
	fds := parseRights(oob)
	at, lost := s.lastStart(s.w + n)
	if lost || n == 0 {
		closeFDs(fds)
		return
	}
	if k := len(s.att) - 1; k < 0 || s.att[k].at != at {
		s.att = append(s.att, attached{at: at})
	}
	a := &s.att[len(s.att)-1]
	a.fds = append(a.fds, fds...)
	a.bad = a.bad || cut || len(a.fds) > s.maxFDs
	if a.bad {
		closeFDs(a.fds)
		a.fds = nil
	}
}

// lastStart returns where in the stream the message starts that holds the byte
// before buf[w]. lost says that it is one that is being discarded.
func (s *stream) lastStart(w int) (at uint64, lost bool) {
	if s.skip >= w-s.r {
		return 0, s.skip > 0
	}
	r := s.r + s.skip
	for w-r > headerSize {
		size := uint64(parseHeader(s.buf[r:w]).size)
		if size < headerSize || size >= uint64(w-r) {
			break // the stream ends here, or the message reaches to w
		}
		r += int(size)
	}
	return s.base + uint64(r), false
}

// take returns the file descriptors of the message that starts at at.
func (s *stream) take(at uint64) (fds []int, bad bool) {
	if len(s.att) == 0 || s.att[0].at != at {
		return nil, false
	}
	a := s.att[0]
	s.att = append(s.att[:0], s.att[1:]...)
	return a.fds, a.bad
}

// parseRights returns the file descriptors in a control message buffer. What
// it cannot parse can hold none.
func parseRights(oob []byte) []int {
	cmsgs, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return nil
	}
	var fds []int
	for i := range cmsgs {
		if f, err := unix.ParseUnixRights(&cmsgs[i]); err == nil {
			fds = append(fds, f...)
		}
	}
	return fds
}

// send writes p, with fds attached to its first byte. It keeps neither and
// waits no longer than the time-out for a peer that does not read; after an
// error the stream is of no more use.
func (s *stream) send(p []byte, fds ...int) error {
	s.sendMu.Lock()
	defer s.sendMu.Unlock()
	s.pending = outgoing{p: p}
	if len(fds) > 0 {
		s.pending.oob = unix.UnixRights(fds...)
	}
	err := s.rc.Write(s.write)
	if s.pending.timed {
		s.uc.SetWriteDeadline(time.Time{})
	}
	if err == nil && s.pending.errno != 0 {
		err = os.NewSyscallError("sendmsg", s.pending.errno)
	}
	s.pending = outgoing{}
	if err != nil {
		// Half a message may be out: nothing sensible can follow it.
		s.uc.Close()
	}
	return err
}

// tryWrite makes the sendmsgs for send; false asks the poller to wait.
func (s *stream) tryWrite(fd uintptr) bool {
	o := &s.pending
	for len(o.p) > 0 {
		n, errno := s.out.send(int(fd), o.p, o.oob)
		switch errno {
		case 0:
			o.p, o.oob = o.p[n:], nil
		case unix.EINTR:
		case unix.EAGAIN:
			if !o.timed {
				o.timed = true
				s.uc.SetWriteDeadline(time.Now().Add(s.timeout))
			}
			return false
		default:
			o.errno = errno
			return true
		}
	}
	return true
}

// close ends the stream for both sides and unblocks fill and send.
func (s *stream) close() { s.uc.Close() }

// discard closes the file descriptors of messages that never became complete.
// For the goroutine of next and fill, after its last call.
func (s *stream) discard() {
	for _, a := range s.att {
		closeFDs(a.fds)
	}
	s.att = nil
}

// isClosed reports whether err is the ordinary end of a connection: the peer
// has gone, or we have closed it ourselves.
func isClosed(err error) bool {
	return errors.Is(err, io.EOF) || errors.Is(err, net.ErrClosed) || errors.Is(err, syscall.EPIPE) ||
		errors.Is(err, syscall.ECONNRESET)
}
