// SPDX-License-Identifier: Apache-2.0

package keeper

import (
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"syscall"
	"time"

	vfiouser "toebox/vfio-user"
)

// link is a connection to a server.
type link struct {
	s    *session
	p    *running
	st   *vfiouser.Transport
	out  []byte        // for the server; under session.fwd
	back []byte        // for the client; the reader's
	done chan struct{} // closed when the connection has ended
	err  error         // why; valid once done is closed

	// Under session.mu.
	pending map[uint16]*request
	lastID  uint16
	ended   bool
	idle    chan struct{} // to be closed when nothing is pending
}

// addLocked gives a request an id on this connection.
func (l *link) addLocked(r *request) uint16 {
	for {
		l.lastID++
		if l.pending[l.lastID] == nil {
			l.pending[l.lastID] = r
			return l.lastID
		}
	}
}

// forwardLocked passes on a request of the client. fwd and mu are held.
func (l *link) forwardLocked(r *request) {
	m := vfiouser.Message{Command: r.cmd, Payload: r.payload}
	if r.posted {
		m.Flags = vfiouser.MessageNoReply
		l.lastID++
		m.ID = l.lastID
	} else {
		m.ID = l.addLocked(r)
		r.sent = time.Now()
	}
	fds := r.lent()
	if len(fds) == 0 {
		l.out = vfiouser.AppendMessage(l.out, &m)
		if len(l.out) >= maxBatch {
			l.flushLocked()
		}
		return
	}
	l.flushLocked()
	b := vfiouser.AppendMessage(nil, &m)
	fds = slices.Clone(fds)
	l.s.mu.Unlock()
	l.send(b, fds...)
	l.s.mu.Lock()
}

// send sends to the server. What fails ends the connection, and requests are
// taken back.
func (l *link) send(b []byte, fds ...int) {
	if err := l.st.Send(b, fds...); errors.Is(err, os.ErrDeadlineExceeded) {
		l.p.fail(errors.New("keeper: it does not read"), true)
	}
}

// flush sends what was gathered. fwd is held, mu is not: a server that does not
// read may be waiting for the reader of this connection, which needs it.
func (l *link) flush() {
	if len(l.out) > 0 {
		l.send(l.out)
		l.out = l.out[:0]
	}
}

// flushLocked is flush where mu is held.
func (l *link) flushLocked() {
	if len(l.out) > 0 {
		l.s.mu.Unlock()
		l.flush()
		l.s.mu.Lock()
	}
}

// read takes the server's messages until the connection ends.
func (l *link) read() {
	err := l.serve()
	l.st.Close()
	l.st.Discard()
	l.err = err
	s := l.s
	s.mu.Lock()
	l.ended = true
	var own []*request
	for id, r := range l.pending {
		if r.own != nil {
			own = append(own, r)
			delete(l.pending, id)
		}
	}
	s.mu.Unlock()
	for _, r := range own {
		r.own.err = err
		r.own.done(r.own)
	}
	close(l.done)
}

func (l *link) serve() error {
	for {
		m, ok, err := l.st.Next()
		if err != nil {
			return err
		}
		if ok {
			closeFDs(m.FDs)
			if err := l.handle(&m); err != nil {
				return err
			}
			if len(l.back) < maxBatch {
				continue
			}
		}
		if len(l.back) > 0 {
			l.s.send(l.back)
			if l.back = l.back[:0]; cap(l.back) > 4*maxBatch {
				l.back = nil
			}
		}
		if !ok {
			if err := l.st.Fill(); err == io.EOF {
				return fmt.Errorf("it has closed: %w", err)
			} else if err != nil {
				return err
			}
		}
	}
}

// handle takes one message of the server. An error is about the server.
func (l *link) handle(m *vfiouser.Message) error {
	s := l.s
	s.mu.Lock()
	defer s.mu.Unlock()
	switch m.Flags & 0xf {
	case 0:
		l.remoteLocked(m)
		return nil
	case vfiouser.MessageReply:
	default:
		return fmt.Errorf("message type %d: %w", m.Flags&0xf, syscall.EPROTO)
	}
	r := l.pending[m.ID]
	if r == nil || r.cmd != m.Command || m.Err != nil {
		return fmt.Errorf("a reply to %v that was not asked for, or too long: %w", m.Command, syscall.EPROTO)
	}
	delete(l.pending, m.ID)
	if len(l.pending) == 0 && l.idle != nil {
		close(l.idle)
		l.idle = nil
	}
	var errno syscall.Errno
	if m.Flags&vfiouser.MessageError != 0 {
		errno = m.Errno
		if errno == 0 || errno > maxErrno {
			errno = syscall.EIO
		}
	}
	if r.own != nil {
		r.own.payload = slices.Clone(m.Payload)
		if errno != 0 {
			r.own.err = &vfiouser.Error{Command: m.Command, Errno: errno}
		}
		s.mu.Unlock()
		r.own.done(r.own)
		s.mu.Lock()
		return nil
	}
	payload, err := s.settleLocked(r, m.Payload, errno)
	s.dropLocked(r)
	if err != nil {
		// The client must not get what it cannot make sense of, and a server
		// that sends such will not do.
		s.replyError(r, syscall.EIO)
		return err
	}
	if r.silent {
		return nil
	}
	out := vfiouser.Message{ID: r.id, Command: r.cmd, Flags: vfiouser.MessageReply, Payload: payload}
	if errno != 0 {
		out.Flags, out.Errno, out.Payload = vfiouser.MessageReply|vfiouser.MessageError, errno, nil
	}
	l.back = vfiouser.AppendMessage(l.back, &out)
	return nil
}

// maxErrno is the highest errno that Linux uses (MAX_ERRNO).
const maxErrno = 4095

// settleLocked makes what a server has answered part of the state, and returns
// the payload for the client.
func (s *session) settleLocked(r *request, p []byte, errno syscall.Errno) ([]byte, error) {
	want := func(n int) error {
		if errno == 0 && len(p) != n {
			return fmt.Errorf("reply to %v of %d bytes, not %d: %w", r.cmd, len(p), n, syscall.EPROTO)
		}
		return nil
	}
	switch r.cmd {
	case vfiouser.CommandDMAMap:
		m := r.dma
		r.dma.file = nil
		if errno != 0 {
			s.memory.files.drop(m.file)
		} else if err := s.memory.add(m); err != nil {
			return nil, fmt.Errorf("the server has accepted what it must not: %w", err)
		}
		return nil, nil
	case vfiouser.CommandDMAUnmap:
		// Whatever else a server objects to, the client goes on as if the
		// memory were its own again.
		if errno == syscall.EINVAL {
			return nil, nil
		}
		n := s.memory.remove(r.unmap)
		if r.unmap.flags&unmapDirty != 0 {
			return p, nil
		}
		return r.unmap.append(nil, n), nil
	case vfiouser.CommandSetIRQs:
		if errno == 0 {
			s.irqs[r.irq.index].apply(r.irq, r.payload[irqSetSize:], r.fds)
		}
		return nil, nil
	case vfiouser.CommandReset:
		return nil, nil
	case vfiouser.CommandRegionRead:
		if err := want(accessSize + int(r.access.count)); err != nil || errno != 0 {
			return nil, err
		}
		if r.access.region == regionConfig {
			s.config.read(r.access.offset, p[accessSize:])
		}
		copy(p, r.payload[:accessSize])
		return p, nil
	case vfiouser.CommandRegionWrite:
		return r.payload[:accessSize], nil
	case vfiouser.CommandRegionWriteMulti:
		return p, want(8)
	}
	return p, nil
}

// remoteLocked passes on a command of the server: a DMA message.
func (l *link) remoteLocked(m *vfiouser.Message) {
	s := l.s
	err := s.judgeRemote(m)
	if err == nil && len(s.remotes) >= maxRemotes {
		err = syscall.EBUSY
	}
	if err != nil {
		if m.Flags&vfiouser.MessageNoReply != 0 {
			return
		}
		b := vfiouser.AppendMessage(nil, &vfiouser.Message{
			ID: m.ID, Command: m.Command, Flags: vfiouser.MessageReply | vfiouser.MessageError, Errno: errnoOf(err),
		})
		s.mu.Unlock()
		_ = l.st.Send(b) // an error ends the connection
		s.mu.Lock()
		return
	}
	out := *m
	for {
		s.lastRemote++
		if _, used := s.remotes[s.lastRemote]; !used {
			break
		}
	}
	out.ID = s.lastRemote
	if m.Flags&vfiouser.MessageNoReply == 0 {
		s.remotes[out.ID] = remote{l, m.ID, m.Command}
	}
	l.back = vfiouser.AppendMessage(l.back, &out)
}

func (s *session) judgeRemote(m *vfiouser.Message) error {
	switch {
	case m.Command != vfiouser.CommandDMARead && m.Command != vfiouser.CommandDMAWrite:
		return syscall.ENOTSUP
	case m.Err != nil:
		return tooBig(m.Err)
	case !s.negotiated, len(m.Payload) < dmaAccessSize:
		return syscall.EINVAL
	}
	count, data := native64(m.Payload, 8), uint64(len(m.Payload)-dmaAccessSize)
	switch {
	case count > s.agreed.transfer:
		return syscall.E2BIG
	case m.Command == vfiouser.CommandDMAWrite && count != data, m.Command == vfiouser.CommandDMARead && data != 0:
		return syscall.EINVAL
	}
	return nil
}

// answered passes on the client's answer to a DMA message, unless the server
// that asked is gone.
func (s *session) answered(m *vfiouser.Message) {
	s.fwd.Lock()
	defer s.fwd.Unlock()
	s.mu.Lock()
	defer s.mu.Unlock()
	r, ok := s.remotes[m.ID]
	if !ok || r.cmd != m.Command {
		s.k.stats.staleReplies.Add(1)
		return
	}
	delete(s.remotes, m.ID)
	l := s.live
	if l == nil || l != r.link {
		s.k.stats.staleReplies.Add(1)
		return
	}
	out := *m
	out.ID = r.id
	if m.Err != nil {
		out.Flags, out.Errno, out.Payload = vfiouser.MessageReply|vfiouser.MessageError, syscall.EIO, nil
	}
	l.out = vfiouser.AppendMessage(l.out, &out)
	if len(l.out) >= maxBatch {
		l.flushLocked()
	}
}
