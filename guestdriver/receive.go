// SPDX-License-Identifier: Apache-2.0

package guestdriver

import (
	"io"
	"os"
	"slices"
	"syscall"

	"toebox/vdev/abi"
)

// Receive buffers.
const (
	firstClass   = 1  // a connection begins with a buffer of 4 KiB
	receiveClass = 3  // and goes up to 64 KiB, when buffers come back full
	bulkParts    = 4  // after at most so many responses
	maxAhead     = 8  // then their number grows up to this, likewise
	maxReceive   = 16 // buffers held by a connection
)

// A connection posts buffers of its own (MM05): the adapter appends to the
// first until it is full, each response says what was added. A buffer counts
// as held until it is full and wholly read, and at most maxReceive are held.
//
// Rule: who is not read keeps its own buffers and no other. When they are full
// the adapter keeps the rest, and closes the window of that connection alone.
// So a connection that is never read costs at most maxReceive buffers and
// stops nobody, and nothing is copied to other memory to make room. When the
// arena runs low, connections get smaller buffers; one of 1 KiB is always
// there, from the reserve, for a connection that has none.

// replenishLocked posts buffers while the adapter has less room than the connection is
// to have: one buffer of the present class, more of the largest. A busy adapter that
// always has room tells of more bytes at a time, and asks for buffers less often.
func (c *Conn) replenishLocked() {
	if (c.posting || c.onDemand) && !c.waiting || c.drawsLocked() {
		return
	}
	rx := c.lane().a.rx
	for c.carry == nil && !c.closed && !c.isGone && !c.eof && !c.rdShut && c.rerr == nil &&
		c.bufs < maxReceive && c.room < (c.deep+1)*classSize(c.class) {
		var buf *buffer
		for class := c.class; class >= 0 && buf == nil; class-- {
			reserved := class == 0 && c.bufs == 0
			if reserved || classSize(class) <= rx.room()/8 {
				buf = rx.alloc(class, reserved)
			}
		}
		if buf == nil {
			if c.bufs == 0 {
				c.failLocked(os.NewSyscallError("read", syscall.ENOBUFS))
			}
			return
		}
		f := abi.Fields{Type: abi.TypeBufferAvailable, Base: buf.iova, Conn: c.id.Load(), Length: uint32(len(buf.data))}
		if c.onDemand {
			f.Flags = abi.FlagOnce // for the reader that waits
		}
		tag, err := c.lane().start(request{kind: kindReceive, conn: c, buf: buf, late: c.fresh}, f, true)
		if err != nil {
			rx.release(buf)
			if err != errNoRoom {
				c.failLocked(err)
			} else if c.bufs == 0 {
				c.failLocked(os.NewSyscallError("read", syscall.ENOBUFS))
			}
			return
		}
		buf.tag = tag
		c.own = append(c.own, buf)
		c.bufs++
		c.requests++
		c.room += len(buf.data)
	}
}

// begin posts the first buffers of a new connection. The adapter is told of them with
// what its first caller wants, or when one waits.
func (c *Conn) begin() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.fresh = true
	c.advanceLocked()
	c.fresh = false
}

// received acts on a buffer receive response. It returns false, and changes
// nothing, when the response does not fit the buffer.
func (c *Conn) received(f *abi.Fields, buf *buffer, final bool) bool {
	return c.receivedFrom(nil, f, buf, final)
}

// receivedFrom is received for bytes of another connection, if from is one.
func (c *Conn) receivedFrom(from *Conn, f *abi.Fields, buf *buffer, final bool) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	size := uint32(len(buf.data))
	full := uint64(f.Offset)+uint64(f.Length) == uint64(size)
	if f.Offset != buf.filled || f.Length > size-buf.filled || full && !final || f.Length == 0 && !final {
		return false
	}
	b := buf.user
	if peek := f.Flags&abi.FlagPeek != 0; peek != (b != nil && b.op == OpPeek) || peek && !final {
		return false
	}
	buf.filled += f.Length
	buf.parts++
	if b != nil {
		s := abi.Status(f.Aux)
		b.source = from
		tells := b.tells(s) // judged before the buffer is another's
		c.userReceivedLocked(b, f.Length, final, s)
		if final {
			if tells {
				c.statusLocked(s)
			}
			c.advanceLocked()
		}
		return true
	}
	c.room -= int(f.Length)
	if f.Length > 0 && !c.closed && !c.rdShut {
		if n := len(c.segs); n > 0 && c.segs[n-1].buf == buf && c.segs[n-1].off+c.segs[n-1].n == f.Offset {
			c.segs[n-1].n += f.Length
		} else {
			c.segs = append(c.segs, segment{buf, f.Offset, f.Length})
		}
		c.rcond.Signal()
	} else {
		buf.consumed += f.Length
	}
	if final {
		grow := buf.parts <= bulkParts // judged before the buffer is another's
		c.finalLocked(buf)
		switch {
		case !full || !grow:
		case c.class < receiveClass:
			c.class++
		case c.deep < maxAhead-1:
			c.deep++
		}
		c.statusLocked(abi.Status(f.Aux))
	}
	c.advanceLocked()
	return true
}

// finalLocked acts on the end of a buffer's post.
func (c *Conn) finalLocked(buf *buffer) {
	c.requests--
	c.room -= len(buf.data) - int(buf.filled)
	buf.final = true
	if i := slices.Index(c.own, buf); i >= 0 {
		c.own = slices.Delete(c.own, i, i+1)
	}
	c.recycleLocked(buf)
}

// recycleLocked frees a buffer that is neither the adapter's nor a reader's.
func (c *Conn) recycleLocked(buf *buffer) {
	if buf.final && buf.consumed == buf.filled && buf.lent == 0 {
		c.bufs--
		switch {
		case buf.pool != nil:
			buf.pool.put(buf)
		case buf.user != nil:
			buf.user.putGroup()
		case buf.block != nil: // else it came behind a state record
			buf.release()
		}
	}
}

// bufferBack acts on a receive buffer that ends without further data.
func (c *Conn) bufferBack(f *abi.Fields, buf *buffer) {
	c.mu.Lock()
	defer c.mu.Unlock()
	s := abi.Status(f.Aux)
	recalled := buf.recalled // judged before the buffer is another's
	if b := buf.user; b != nil {
		c.skippedLocked(b, f)
		tells := b.tells(s)
		c.userBackLocked(b, s)
		if tells {
			c.statusLocked(s)
		}
	} else {
		c.finalLocked(buf)
		c.statusLocked(s)
	}
	if c.userNext != nil || recalled {
		c.advanceLocked()
	}
}

// statusLocked acts on the status with which a receive buffer came back.
func (c *Conn) statusLocked(s abi.Status) {
	switch {
	case s == abi.StatusOK || s == abi.StatusCancelled || c.closed || c.rdShut:
	case s == abi.StatusEndOfStream:
		c.eof = true
		c.rcond.Broadcast()
	case s == abi.StatusReset || s == abi.StatusTimedOut:
		c.failLocked(statusErr("read", s)) // a reader sees it before the termination response
	case c.rerr == nil && !c.eof:
		c.rerr = statusErr("read", s)
		c.rcond.Broadcast()
	}
	c.memberLocked()
}

// bufferLost acts on a receive buffer that will have no response.
func (c *Conn) bufferLost(buf *buffer, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if buf.user != nil {
		c.userLostLocked(buf.user, err)
		return
	}
	c.finalLocked(buf)
}

// dropSegmentsLocked gives back what nobody will read.
func (c *Conn) dropSegmentsLocked() {
	for _, s := range c.segs {
		s.buf.consumed += s.n
		c.recycleLocked(s.buf)
	}
	c.segs = nil
}

// nextLocked waits for data and returns the first segment, or why there is
// none.
func (c *Conn) nextLocked() (segment, error) {
	var v vigil
	defer func() {
		c.waiting = false
		v.end()
	}()
	for {
		switch {
		case c.closed:
			return segment{}, errClosed
		case c.rdShut:
			return segment{}, io.EOF
		case c.rdl.expired:
			return segment{}, os.ErrDeadlineExceeded
		case len(c.segs) > 0:
			return c.segs[0], nil
		case c.rerr != nil:
			return segment{}, c.rerr
		case c.eof:
			return segment{}, io.EOF
		}
		if !c.waiting {
			// Whoever waits for the driver's buffers gets some; that may fail.
			c.waiting = true
			c.advanceLocked()
			continue
		}
		if !v.look(c.lane(), &c.mu) {
			c.rcond.Wait()
			v.woke()
		}
	}
}

// takeLocked ends the work on n bytes of the first segment.
func (c *Conn) takeLocked(n int) {
	c.reading = false
	c.consumeLocked(n)
	if c.closed || c.rdShut {
		c.dropSegmentsLocked()
	}
	c.advanceLocked()
}

// consumeLocked takes n bytes off the first segment.
func (c *Conn) consumeLocked(n int) {
	s := &c.segs[0]
	buf := s.buf
	s.off += uint32(n)
	s.n -= uint32(n)
	buf.consumed += uint32(n)
	if s.n == 0 {
		copy(c.segs, c.segs[1:])
		c.segs[len(c.segs)-1] = segment{}
		c.segs = c.segs[:len(c.segs)-1]
	}
	c.recycleLocked(buf)
}

// readAheadLocked has the driver read ahead again, unless buffers of the
// application are posted.
func (c *Conn) readAheadLocked() {
	if c.userFirst == nil {
		c.posting = false
	}
}

// Read copies what is there, up to len(p) bytes; it waits only when there is
// nothing. Then a p of at least Options.ZeroCopy bytes that lies in registered
// memory is posted itself, and what comes stands in it without a copy (MM03).
func (c *Conn) Read(p []byte) (int, error) {
	c.rdMu.Lock()
	defer c.rdMu.Unlock()
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(p) == 0 {
		if c.closed {
			return 0, c.opError("read", errClosed)
		}
		return 0, nil
	}
	if c.readsDirectLocked(p) {
		n, err := c.readDirectLocked(p)
		return n, c.opError("read", err)
	}
	c.lane().a.host.bufferedReads.Add(1)
	c.readAheadLocked()
	total := 0
	for total < len(p) && (total == 0 || len(c.segs) > 0 && !c.closed && !c.rdShut) {
		s, err := c.nextLocked()
		if err != nil {
			if total > 0 {
				break
			}
			return 0, c.opError("read", err)
		}
		c.reading = true
		c.mu.Unlock()
		n := copy(p[total:], s.buf.data[s.off:s.off+s.n])
		c.mu.Lock()
		c.takeLocked(n)
		total += n
	}
	c.lane().a.host.copied.Add(uint64(total))
	return total, nil
}

// lendLocked writes a segment to w without mu, and takes what w took, also when
// w panics.
func (c *Conn) lendLocked(w io.Writer, s segment) (n int, err error) {
	c.reading = true
	c.mu.Unlock()
	defer func() {
		c.mu.Lock()
		c.takeLocked(n)
	}()
	k, err := w.Write(s.buf.data[s.off : s.off+s.n])
	switch {
	case k < 0 || k > int(s.n):
		return 0, io.ErrShortWrite
	case err == nil && k < int(s.n):
		err = io.ErrShortWrite
	}
	return k, err
}

// WriteTo writes what comes to w until the stream ends, without a copy of its
// own: w sees the DMA memory and must not keep or change it.
func (c *Conn) WriteTo(w io.Writer) (int64, error) {
	c.rdMu.Lock()
	defer c.rdMu.Unlock()
	c.mu.Lock()
	defer c.mu.Unlock()
	c.readAheadLocked()
	var total int64
	for {
		s, err := c.nextLocked()
		if err == io.EOF {
			return total, nil
		}
		if err != nil {
			return total, c.opError("writeto", err)
		}
		n, err := c.lendLocked(w, s)
		c.lane().a.host.direct.Add(uint64(n))
		total += int64(n)
		if err != nil {
			return total, err
		}
	}
}
