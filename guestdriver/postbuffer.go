// SPDX-License-Identifier: Apache-2.0

package guestdriver

import (
	"io"
	"os"

	"toebox/vdev/abi"
)

// Receiving into the application's memory (MM02, MM03).
//
// Bytes go, in the order of the stream, to whoever asked first: posted buffers
// and calls of Read stand in one order. Before an application's buffer goes to
// the adapter the driver takes back the ones that it posted itself, and what
// came into them before is copied, so that nothing overtakes. Behind it the
// driver posts its own again, for what comes beyond, as long as it reads ahead:
//
//	buffered ── PostBuffer ──────────────────────────> posted: no reading ahead
//	    ^                                                │
//	    └── Read into other memory, WriteTo, none posted ┘
//
// What comes while nothing is posted waits in the adapter, up to its window.

// PostBuffer posts a buffer to be filled with what comes next on the connection,
// behind those posted before; q gets a completion for what was added, again and
// again until the buffer is full, cancelled, or the stream has ended. From now
// on the driver posts no buffers of its own ahead of reads (see SetReadAhead).
// With an error nothing was posted, and the buffer is free.
func (c *Conn) PostBuffer(b *Buffer, q *CompletionQueue) error {
	if err := b.claim(OpReceive, c, q); err != nil {
		return c.opError("read", err)
	}
	return c.queueBuffer(b)
}

// queueBuffer enters a claimed buffer, or place of a redirection, behind those
// posted before.
func (c *Conn) queueBuffer(b *Buffer) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	err := c.receiveStateLocked()
	if b.answers() && (!c.onDemand || len(c.segs) > 0 || c.reading) && !c.endedLocked() {
		err = ErrReadAhead
	}
	if err != nil {
		b.unclaim()
		return c.opError("read", err)
	}
	c.posting = true
	c.enqueueLocked(b)
	c.advanceLocked()
	return nil
}

// endedLocked reports whether nothing more is to be received, or asked for.
func (c *Conn) endedLocked() bool { return c.closed || c.rdShut || c.eof && len(c.segs) == 0 }

// receiveStateLocked returns why nothing can be posted to be filled, or nil.
func (c *Conn) receiveStateLocked() error {
	switch {
	case c.closed:
		return errClosed
	case c.endedLocked():
		return io.EOF
	case len(c.segs) > 0:
		return nil
	}
	return c.rerr
}

// SetReadAhead says whether the driver posts buffers of its own before anybody
// reads (the default, MM03). If it does not, what comes waits in the adapter until
// there is a Read or a posted buffer, and goes there directly.
func (c *Conn) SetReadAhead(on bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.onDemand = !on; c.onDemand {
		c.recallLocked()
	} else {
		c.posting = false
	}
	c.advanceLocked()
}

// Buffered returns how many bytes of the connection wait in buffers of the driver:
// Read returns so many without waiting.
func (c *Conn) Buffered() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	n := 0
	for _, s := range c.segs {
		n += int(s.n)
	}
	return n
}

// enqueueLocked enters a claimed buffer behind the others.
func (c *Conn) enqueueLocked(b *Buffer) {
	b.guard()
	b.posted.Store(true)
	b.link(&c.userFirst, &c.userLast)
	if c.userNext == nil {
		c.userNext = b
	}
}

// endUserLocked ends the post of an application's receive buffer.
func (c *Conn) endUserLocked(b *Buffer, err error) {
	if c.userNext == b {
		c.userNext = b.later
	}
	b.unlink(&c.userFirst, &c.userLast)
	c.leftLocked(b, err)
	b.endLocked(b.buf.filled, b.inspect(err))
}

// advanceLocked goes on with receiving after anything that may let it.
func (c *Conn) advanceLocked() {
	if c.feedLocked() {
		c.replenishLocked()
	}
}

// feedLocked gives the application's buffers that wait in the driver to the
// adapter, as far as their turn has come, and reports whether none is left.
func (c *Conn) feedLocked() bool {
	c.memberLocked()
	for c.userNext != nil {
		b := c.userNext
		switch {
		case c.closed:
			c.endUserLocked(b, errClosed)
		case c.rdShut:
			c.endUserLocked(b, io.EOF)
		case c.reading || c.carry != nil || c.paused && c.rerr == nil && !c.isGone:
			return false // takeLocked, goOn or failLocked come back to this
		case b.cutLocked():
			c.endUserLocked(b, b.virtual.broken)
		case len(c.segs) > 0 && b.answers():
			c.endUserLocked(b, ErrReadAhead)
		case len(c.segs) > 0:
			c.fillLocked(b)
		case c.rerr != nil:
			c.endUserLocked(b, c.rerr)
		case c.eof:
			c.endUserLocked(b, io.EOF)
		case c.isGone:
			c.endUserLocked(b, errClosed)
		case len(c.own) > 0:
			c.recallLocked()
			return false
		default:
			if !c.giveLocked(b) {
				return false
			}
		}
	}
	return true
}

// fillLocked copies what the driver's buffers hold into b.
func (c *Conn) fillLocked(b *Buffer) {
	c.skipHeldLocked(b)
	if len(c.segs) == 0 {
		return
	}
	data := b.buf.data
	n := 0
	for len(c.segs) > 0 && int(b.buf.filled) < len(data) {
		s := c.segs[0]
		k := copy(data[b.buf.filled:], s.buf.data[s.off:s.off+s.n])
		b.buf.filled += uint32(k)
		n += k
		c.consumeLocked(k)
	}
	c.lane().a.host.copied.Add(uint64(n))
	b.copied, b.source = true, nil
	if b.once || int(b.buf.filled) == len(data) {
		c.endUserLocked(b, nil)
	} else {
		b.cq.push(b, b.buf.filled, false, nil)
	}
}

// giveLocked posts what is left of b. It returns false when there is no room:
// roomFreed comes back to it.
func (c *Conn) giveLocked(b *Buffer) bool {
	r := request{kind: kindReceive, conn: c, buf: &b.buf}
	f := abi.Fields{
		Type: abi.TypeBufferAvailable, Base: b.buf.iova, Conn: c.id.Load(), Length: uint32(len(b.buf.data)), Offset: b.buf.filled,
	}
	switch {
	case b.op == OpRedirect:
		id, err := c.destinationLocked(b.redirect.to)
		if err == errAway {
			return false // wakeSources comes back to it
		}
		if err != nil {
			c.endUserLocked(b, err)
			return true
		}
		b.redirect.before = b.buf.filled
		r.kind = kindRedirect
		f.Flags, f.Base, f.Length, f.Offset = abi.FlagRedirect, id, b.redirect.n-b.buf.filled, 0
	case b.m.a != c.lane().a:
		c.endUserLocked(b, errMemory) // the connection is on another adapter now
		return true
	case b.op == OpPeek:
		f.Flags = abi.FlagPeek
	case b.once:
		f.Flags = abi.FlagOnce
	}
	if left := b.skip - b.skipped; left > 0 { // then there is no byte in it yet
		f.Flags |= abi.FlagSkip
		f.Offset = left
	}
	if b.fragment {
		f.Flags |= abi.FlagFragment
	}
	f.Aux = b.pieceLocked(f.Conn)
	b.guardFree()
	tag, err := c.lane().start(r, f, true)
	switch {
	case err == nil:
		b.buf.tag, b.given = tag, true
		b.cancel = cancelNone // it was for the life before
		b.gaveLocked()
		c.userNext = b.later
		c.requests++
	case err == errNoRoom:
		return c.lane().awaitRoom(c)
	default:
		c.endUserLocked(b, err)
	}
	return true
}

// recallLocked asks for the driver's own buffers back.
func (c *Conn) recallLocked() {
	if c.carry != nil {
		return
	}
	for _, buf := range c.own {
		if buf.recalled {
			continue
		}
		f := abi.Fields{Type: abi.TypeCancellation, Conn: c.id.Load(), Offset: buf.tag}
		_, err := c.lane().start(request{kind: kindCancel}, f, true)
		for err == errNoRoom && c.lane().awaitRoom(c) {
			_, err = c.lane().start(request{kind: kindCancel}, f, true)
		}
		// Without room roomFreed comes back to this; without a queue a reset does.
		buf.recalled = err == nil
	}
}

// userReceivedLocked acts on bytes that came into an application's buffer.
func (c *Conn) userReceivedLocked(b *Buffer, n uint32, final bool, s abi.Status) {
	host := &c.lane().a.host
	if b.op == OpPeek {
		host.peeks.Add(1)
		host.peeked.Add(uint64(n))
	} else {
		host.direct.Add(uint64(n))
	}
	host.skipped.Add(uint64(b.skip - b.skipped)) // by the adapter, before the first byte
	b.skipped = b.skip
	if final {
		c.requests--
		b.given = false
		c.endUserLocked(b, statusErr("read", s))
	} else if b.cq != nil {
		b.cq.push(b, b.buf.filled, false, nil)
	}
}

// userBackLocked acts on the end of an application's buffer without bytes.
func (c *Conn) userBackLocked(b *Buffer, s abi.Status) {
	c.requests--
	b.given = false
	var err error
	if s == abi.StatusOK && b.fragment {
		c.lane().a.host.fragments.Add(1)
	}
	switch {
	case s == abi.StatusCancelled && b.cancel == cancelNone && c.lane().a.opts.CarryOver:
		// By a stop: it waits for what comes after it.
		c.paused = true
		c.againLocked()
		return
	case c.closed && s == abi.StatusEndOfStream: // the peer's FIN was before the adapter heard of the close
		err = errClosed
	case s == abi.StatusEndOfStream, s == abi.StatusClosed && c.rdShut && !c.closed:
		err = io.EOF
	case s == abi.StatusClosed:
		err = errClosed
	default:
		err = statusErr("read", s)
	}
	v, index := b.virtual, b.index // judged before the buffer is another's
	c.endUserLocked(b, err)
	c.refusedLocked(v, index, s)
}

// userLostLocked acts on an application's buffer that will have no response.
func (c *Conn) userLostLocked(b *Buffer, err error) {
	c.requests--
	b.given = false
	if c.carry != nil {
		c.againLocked()
		return
	}
	c.endUserLocked(b, err)
}

// againLocked has the first buffer that the adapter does not have be the next to
// give. What follows it comes back as well.
func (c *Conn) againLocked() {
	for n := c.userFirst; n != nil; n = n.later {
		if !n.given {
			c.userNext = n
			return
		}
	}
}

// readsDirectLocked reports whether a Read into p posts p.
func (c *Conn) readsDirectLocked(p []byte) bool {
	return len(c.segs) == 0 && !c.closed && !c.rdShut && !c.eof && c.rerr == nil && !c.rdl.expired && c.lane().a.usesDirect(p)
}

// readDirectLocked posts p, which lies in registered memory, and waits until
// something has come, or a deadline or Close has got p back from the adapter. It
// may come by a copy: what the driver's own buffers got meanwhile.
func (c *Conn) readDirectLocked(p []byte) (int, error) {
	if c.reader == nil {
		c.reader = &Buffer{}
	}
	b := c.reader
	if !c.claimSlice(b, OpReceive, p[:min(len(p), maxPost)]) {
		return 0, errMemory // deregistered meanwhile
	}
	b.once = true
	c.enqueueLocked(b)
	c.advanceLocked()
	var v vigil
	defer v.end()
	for !b.over {
		if c.closed || c.rdShut || c.rdl.expired {
			c.takeBackLocked(b)
			if b.over {
				break
			}
		}
		if !v.look(c.lane(), &c.mu) {
			c.rcond.Wait()
			v.woke()
		}
	}
	host := &c.lane().a.host
	if b.copied {
		host.bufferedReads.Add(1)
	} else {
		host.directReads.Add(1)
	}
	switch {
	case b.done > 0:
		return int(b.done), nil // an error comes again
	case c.closed:
		return 0, errClosed
	case c.rdShut:
		return 0, io.EOF
	case c.rdl.expired:
		return 0, os.ErrDeadlineExceeded
	}
	return 0, b.err
}
