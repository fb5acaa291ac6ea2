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
// A p of at least Options.ZeroCopy bytes that lies in registered memory goes
// without a copy (MM02), at any address that suits Options.Align: the adapter fetches it from where it
// is, and Write returns when the peer has acknowledged it. When a deadline or
// Close ends that early the count says what is in the stream. With
// Options.CarryOver Write copies always: what was not acknowledged must outlive
// the call.
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
		var n int
		var err error
		if c.writesDirect(p[done:]) {
			c.one[0] = p[done:]
			n, err = c.writeRun(c.one[:])
			c.one[0] = nil
		} else {
			c.lane().a.host.bufferedWrites.Add(1)
			n, err = c.writeCopy(p[done:])
		}
		if done += n; err != nil || done == len(p) {
			return done, err
		}
	}
}

func (c *Conn) writeCopy(p []byte) (int, error) {
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

// WriteBuffers writes the buffers, and consumes them, as [net.Buffers.WriteTo]
// does for connections of the kernel: those that Write would copy gathered, the
// others posted as they are, several at a time.
func (c *Conn) WriteBuffers(v *net.Buffers) (int64, error) {
	c.wrMu.Lock()
	defer c.wrMu.Unlock()
	var total int64
	for {
		consume(v, 0)
		if len(*v) == 0 {
			return total, nil
		}
		var n int
		var err error
		if c.writesDirect((*v)[0]) {
			n, err = c.writeRun(*v)
		} else {
			n, err = c.gather(*v)
		}
		consume(v, n)
		if total += int64(n); err != nil {
			return total, c.opError("writev", err)
		}
	}
}

// gather copies the first slices of v into one buffer, up to the first that
// goes without a copy, and posts it.
func (c *Conn) gather(v [][]byte) (int, error) {
	left := 0
	for i, p := range v {
		if left >= classSize(sendClass) || i > 0 && c.writesDirect(p) {
			v = v[:i]
			break
		}
		left += len(p)
	}
	c.lane().a.host.bufferedWrites.Add(1)
	buf, err := c.sendBuffer(left)
	if err != nil {
		return 0, err
	}
	n := 0
	for _, p := range v {
		if n += copy(buf.data[n:], p); n == len(buf.data) {
			break
		}
	}
	c.lane().a.host.copied.Add(uint64(n))
	if err := c.send(buf, n); err != nil {
		return 0, err
	}
	return n, nil
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
	var v vigil
	defer v.end()
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
		if !v.look(c.lane(), &c.mu) {
			c.wcond.Wait()
			v.woke()
		}
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
	if buf.user != nil {
		return // its poster is told
	}
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
			buf, err = c.homeLocked(buf)
		}
		if err == nil {
			buf.tag, err = c.lane().start(request{kind: kindSend, conn: c, buf: buf}, sendFields(c.id.Load(), buf), false)
		}
		switch {
		case err == nil:
			if buf.user != nil {
				buf.user.posted.Store(true)
			}
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
	f := abi.Fields{Type: abi.TypeBufferSend, Modify: true, Base: buf.iova, Conn: id, Length: buf.filled}
	if b := buf.user; b != nil {
		f.ASAP, f.Modify = b.send.ASAP, !b.send.Unchanged
	}
	return f
}

// sent acts on the completion of a send.
func (c *Conn) sent(buf *buffer, s abi.Status, n uint32) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.requests--
	n += c.keptOffLocked(buf) // of what was posted again the response counts the rest
	if c.keepLocked(buf, s) {
		return
	}
	c.sends--
	c.sendOverLocked(buf, s, n)
	if s == abi.StatusOK || c.werr != nil || s == abi.StatusCancelled && buf.user != nil {
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
	if c.keepLostLocked(buf) {
		return
	}
	c.sends--
	c.sendLostLocked(buf, err)
	c.failLocked(err)
}
