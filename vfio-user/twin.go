// SPDX-License-Identifier: Apache-2.0

package vfiouser

import (
	"fmt"
	"net"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// A twin socket carries the server's commands and their replies, so that neither
// waits for the client's, vfio-user "Version". The server makes it if the client
// asks, and passes one end with its reply.

// twin is one end, and the goroutine that reads from it.
type twin struct {
	st   *stream
	done chan struct{} // closed when that has ended
}

// newTwin returns a twin on st. handle gets each message; an error of its ends the
// twin. ended is called once it has ended, by whomever.
func newTwin(st *stream, handle func(m *message) error, ended func()) *twin {
	t := &twin{st: st, done: make(chan struct{})}
	go func() {
		defer close(t.done)
		for {
			m, ok, err := st.next()
			switch {
			case err != nil:
			case ok:
				err = handle(&m)
				m.close() // no message that travels here has any
			default:
				err = st.fill()
			}
			if err != nil {
				break
			}
		}
		st.close()
		st.discard()
		ended()
	}()
	return t
}

// stop ends the twin and returns once its goroutine has ended.
func (t *twin) stop() {
	if t != nil {
		t.st.close()
		<-t.done
	}
}

// fileConn takes over a descriptor that should be a unix stream socket.
func fileConn(fd int) (*net.UnixConn, error) {
	f := os.NewFile(uintptr(fd), "twin")
	defer f.Close()
	if kind, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_TYPE); err != nil || kind != unix.SOCK_STREAM {
		return nil, fmt.Errorf("not a stream socket: %w", syscall.ENOTSOCK)
	}
	c, err := net.FileConn(f)
	if err != nil {
		return nil, err
	}
	u, ok := c.(*net.UnixConn)
	if !ok {
		c.Close()
		return nil, fmt.Errorf("not a unix socket: %w", syscall.ENOTSOCK)
	}
	return u, nil
}

// startTwin makes the twin of the server and has the reply that is being made
// carry the client's end.
func (c *conn) startTwin() error {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return os.NewSyscallError("socketpair", err)
	}
	u, err := fileConn(fds[0])
	var st *stream
	if err == nil {
		// It is not polled: a second goroutine that does would be in the way.
		st, err = newStream(u, headerSize+dmaAccessSize+max(c.srv.cfg.MaxTransfer, leastMessage), c.srv.cfg.MaxFDs, -1, c.srv.cfg.SendTimeout)
		if err != nil {
			u.Close()
		}
	}
	if err != nil {
		unix.Close(fds[1])
		return err
	}
	c.twin.Store(newTwin(st, func(m *message) error { return c.handleTwin(st, m) }, c.calls.close))
	c.outFDs = append(c.outFDs, fds[1])
	return nil
}

// handleTwin takes a reply to a command of ours. Nothing else may come this way.
func (c *conn) handleTwin(st *stream, m *message) error {
	c.srv.stats.messages.Add(1)
	switch {
	case m.flags&flagTypeMask == typeReply:
		if !c.calls.answer(m) {
			c.srv.stats.strayReplies.Add(1)
		}
		return nil
	case m.flags&flagNoReply != 0:
		c.srv.stats.noReplyFailed.Add(1)
		return nil
	}
	c.srv.stats.errors.Add(1)
	return st.send(header{id: m.id, cmd: m.cmd, size: headerSize, flags: typeReply | flagError, errno: uint32(syscall.EINVAL)}.appendTo(nil))
}

// commands returns the stream that commands to the client travel on.
func (c *conn) commands() *stream {
	if t := c.twin.Load(); t != nil {
		return t.st
	}
	return c.st
}

// startTwin has the client serve the server's commands on the socket that came
// with the answer to its version.
func (c *Client) startTwin(answer *twinSocket, fds []int) error {
	if answer == nil || !answer.Supported {
		return nil
	}
	if !c.cfg.TwinSocket || answer.Index == nil || *answer.Index >= uint64(len(fds)) {
		return fmt.Errorf("vfiouser: server answers with a twin socket that there is not: %w", syscall.EPROTO)
	}
	fd := fds[*answer.Index]
	fds[*answer.Index] = -1
	u, err := fileConn(fd)
	if err != nil {
		return fmt.Errorf("vfiouser: twin socket: %v: %w", err, syscall.EPROTO)
	}
	st, err := newStream(u, headerSize+dmaAccessSize+max(c.cfg.MaxTransfer, leastMessage), c.cfg.MaxFDs, -1, c.cfg.Timeout)
	if err != nil {
		u.Close()
		return fmt.Errorf("vfiouser: twin socket: %w", err)
	}
	// A server that cannot send commands any more is one that went wrong.
	t := newTwin(st, func(m *message) error {
		if m.flags&flagTypeMask == typeReply {
			return nil // we asked nothing here
		}
		return c.serve(st, m)
	}, c.st.close)
	c.mu.Lock()
	c.twin = t
	err = c.err
	c.mu.Unlock()
	if err != nil {
		t.stop() // nobody else does any more
	}
	return err
}
