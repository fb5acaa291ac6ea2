// SPDX-License-Identifier: Apache-2.0

package guestdriver

import (
	"errors"
	"io"
	"net"
	"os"
	"syscall"

	"toebox/vdev/abi"
)

// sendClass is the largest buffer that a send is cut into: 64 KiB.
const sendClass = 3

// Write copies p into DMA buffers and posts them (MM01). It returns when all
// is posted; the adapter has each buffer until the peer has acknowledged it.
//
// Rule of memory: a connection holds at most Options.SendLimit bytes of
// buffers, and at most half of what is left for all, but one buffer of 1 KiB
// always, from the arena's reserve. It therefore waits for nobody's
// completions but its own.
func (c *Conn) Write(p []byte) (int, error) {
	c.wrMu.Lock()
	defer c.wrMu.Unlock()
	n, err := c.write(p)
	return n, c.opError("write", err)
}

func (c *Conn) write(p []byte) (int, error) {
	done := 0
	for {
		buf, err := c.sendBuffer(len(p) - done)
		if err != nil || buf == nil {
			return done, err
		}
		n := copy(buf.data, p[done:])
		c.lane().a.host.copied.Add(uint64(n))
		if err := c.send(buf, n); err != nil {
			return done, err
		}
		if done += n; done == len(p) {
			return done, nil
		}
	}
}

// WriteBuffers writes the buffers gathered, and consumes them, as
// [net.Buffers.WriteTo] does for connections of the kernel.
func (c *Conn) WriteBuffers(v *net.Buffers) (int64, error) {
	c.wrMu.Lock()
	defer c.wrMu.Unlock()
	var total int64
	left := 0
	for _, b := range *v {
		left += len(b)
	}
	for left > 0 {
		buf, err := c.sendBuffer(left)
		if err != nil {
			return total, c.opError("writev", err)
		}
		n := 0
		for _, b := range *v {
			if n += copy(buf.data[n:], b); n == len(buf.data) {
				break
			}
		}
		c.lane().a.host.copied.Add(uint64(n))
		if err := c.send(buf, n); err != nil {
			return total, c.opError("writev", err)
		}
		total += int64(n)
		left -= n
		consume(v, n)
	}
	consume(v, 0)
	return total, nil
}

// consume takes n bytes, and empty buffers, from the front of v.
func consume(v *net.Buffers, n int) {
	for len(*v) > 0 && len((*v)[0]) <= n {
		n -= len((*v)[0])
		(*v)[0] = nil
		*v = (*v)[1:]
	}
	if n > 0 {
		(*v)[0] = (*v)[0][n:]
	}
}

// ReadFrom sends what r gives until it ends, read into DMA buffers directly.
// Buffers grow with what r gives at once, so that an idle r holds little.
func (c *Conn) ReadFrom(r io.Reader) (int64, error) {
	var total int64
	want := classSize(1)
	for {
		c.wrMu.Lock()
		buf, err := c.sendBuffer(want)
		c.wrMu.Unlock()
		if err != nil {
			return total, c.opError("readfrom", err)
		}
		n, rerr := r.Read(buf.data)
		if n < 0 || n > len(buf.data) {
			n, rerr = 0, errors.New("guestdriver: reader returned an impossible count")
		}
		if n == 0 {
			c.unsend(buf)
		} else {
			c.wrMu.Lock()
			err = c.send(buf, n)
			c.wrMu.Unlock()
			if err != nil {
				return total, c.opError("readfrom", err)
			}
			c.lane().a.host.direct.Add(uint64(n))
			total += int64(n)
			if n == len(buf.data) {
				want = min(4*n, classSize(sendClass))
			} else {
				want = max(n, classSize(1))
			}
		}
		if rerr == io.EOF {
			return total, nil
		}
		if rerr != nil {
			return total, rerr
		}
	}
}

// sendStateLocked returns why nothing can be written now, or nil.
func (c *Conn) sendStateLocked() error {
	switch {
	case c.closed:
		return errClosed
	case c.wdl.expired:
		return os.ErrDeadlineExceeded
	case c.wrShut:
		return os.NewSyscallError("write", syscall.EPIPE)
	}
	return c.werr
}

// sendBuffer waits for leave to send and returns a buffer for at most n bytes;
// none when n is 0. The buffer counts as held.
func (c *Conn) sendBuffer(n int) (*buffer, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for {
		if err := c.sendStateLocked(); err != nil || n == 0 {
			return nil, err
		}
		class := min(classFor(n), sendClass)
		for class > 0 && classSize(class) > c.lane().a.opts.SendLimit {
			class--
		}
		if buf := c.sendAllocLocked(class); buf != nil {
			c.held += len(buf.data)
			return buf, nil
		}
		if c.sends == 0 {
			return nil, os.NewSyscallError("write", syscall.ENOBUFS)
		}
		c.wcond.Wait()
	}
}

// sendAllocLocked returns a buffer of the class. While sends are outstanding
// there may be none: their completions wake the writer. With none outstanding
// a smaller one does, in the end one of the reserve.
func (c *Conn) sendAllocLocked(class int) *buffer {
	tx := c.lane().a.tx
	for ; class >= 0; class-- {
		size := classSize(class)
		if c.held+size <= tx.room()/2 && (c.sends == 0 || c.held+size <= c.lane().a.opts.SendLimit) {
			if buf := tx.alloc(class, false); buf != nil {
				return buf
			}
		}
		if c.sends > 0 {
			return nil
		}
	}
	return tx.alloc(0, true)
}

// unsend gives a buffer back that was not posted.
func (c *Conn) unsend(buf *buffer) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.unsendLocked(buf)
}

func (c *Conn) unsendLocked(buf *buffer) {
	c.held -= len(buf.data)
	buf.release()
	c.wcond.Broadcast()
}

// send posts the first n bytes of the buffer. On an error it is given back.
func (c *Conn) send(buf *buffer, n int) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	buf.filled = uint32(n)
	for {
		err := c.sendStateLocked()
		if err == nil && c.carry != nil {
			c.wcond.Wait()
			continue
		}
		if err == nil {
			_, err = c.lane().start(request{kind: kindSend, conn: c, buf: buf}, sendFields(c.id.Load(), buf), false)
		}
		switch {
		case err == nil:
			c.sends++
			c.requests++
			if c.lane().a.opts.CarryOver {
				c.kept = append(c.kept, keptSend{buf: buf, posted: true})
			}
			return nil
		case err != errNoRoom:
			c.unsendLocked(buf)
			return err
		}
		// roomFreed, which the lane calls, needs mu: it comes after Wait.
		if !c.lane().awaitRoom(c) {
			c.wcond.Wait()
		}
	}
}

// sendFields is the request that sends what is in the buffer.
func sendFields(id uint64, buf *buffer) abi.Fields {
	return abi.Fields{Type: abi.TypeBufferSend, Modify: true, Base: buf.iova, Conn: id, Length: buf.filled}
}

// sent acts on the completion of a send.
func (c *Conn) sent(buf *buffer, s abi.Status) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.requests--
	if c.keepLocked(buf, s) {
		return
	}
	c.sends--
	c.unsendLocked(buf)
	if s == abi.StatusOK || c.werr != nil {
		return
	}
	if s == abi.StatusClosed && (c.closed || c.wrShut) {
		return
	}
	c.werr = statusErr("write", s)
	if s == abi.StatusReset || s == abi.StatusTimedOut {
		c.failLocked(statusErr("read", s))
	}
}

// sendLost acts on a send that will have no completion.
func (c *Conn) sendLost(buf *buffer, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.requests--
	end := abi.StatusAborted
	if c.carry != nil {
		end = abi.StatusCancelled
	}
	if c.keepLocked(buf, end) {
		return
	}
	c.sends--
	c.unsendLocked(buf)
	c.failLocked(err)
}
