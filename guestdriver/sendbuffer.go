// SPDX-License-Identifier: Apache-2.0

package guestdriver

import (
	"os"

	"toebox/vdev/abi"
)

// directRun is how many pieces of one call are posted at a time.
const directRun = 64

// SendOptions are what the adapter is to know of a send.
type SendOptions struct {
	// ASAP ends the wait of sends that [SendPolicy] lets wait, and has this one
	// go before those of other connections without it (MM09).
	ASAP bool
	// Unchanged promises that the buffer's bytes are those that were sent from
	// the same memory last, so that an adapter which has them still, by
	// SendPolicy.Keep, need not read them (MM10). If they are not, the old bytes
	// may be sent.
	Unchanged bool
}

// SendBuffer posts a buffer, behind everything written before, and does not
// wait for its end: q gets the completion (MM02). Nothing is copied. While it
// waits for a place in the input table the write deadline holds. With an error
// nothing was posted, and the buffer is free.
func (c *Conn) SendBuffer(b *Buffer, q *CompletionQueue) error {
	return c.SendBufferWith(b, SendOptions{}, q)
}

// SendBufferWith is SendBuffer with options.
func (c *Conn) SendBufferWith(b *Buffer, o SendOptions, q *CompletionQueue) error {
	if err := b.claim(OpSend, c, q); err != nil {
		return c.opError("write", err)
	}
	b.send = o
	c.wrMu.Lock()
	defer c.wrMu.Unlock()
	if err := c.post(b); err != nil {
		b.unclaim()
		return c.opError("write", err)
	}
	return nil
}

// CancelBuffer asks for a buffer back that was posted on c (CE10); the final
// completion says who won, and Err of a loser unwraps to ECANCELED. Of a send that was cancelled N bytes are in the
// stream; with Options.CarryOver the connection does not survive a stop then.
func (c *Conn) CancelBuffer(b *Buffer) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !b.posted.Load() || b.conn.Load() != c {
		return nil // it is over
	}
	if b.virtual != nil {
		return c.cancelPiecesLocked(b.virtual, b.index)
	}
	if b.op != OpSend && !b.given {
		c.endUserLocked(b, statusErr("read", abi.StatusCancelled))
		return nil
	}
	return c.opError("cancel", b.cancelLocked())
}

// post posts a claimed buffer as a send.
func (c *Conn) post(b *Buffer) error {
	b.guard()
	return c.send(&b.buf, len(b.buf.data))
}

// sendOverLocked ends a send of which n bytes count.
func (c *Conn) sendOverLocked(buf *buffer, s abi.Status, n uint32) {
	b := buf.user
	if b == nil {
		c.unsendLocked(buf)
		return
	}
	b.status, b.n, b.terminal = s, n, true
	b.endSendLocked()
	c.wcond.Broadcast()
}

// pointed reports whether the response to a send names a completion point that is
// one.
func pointed(f *abi.Fields) bool {
	_, ok := f.Point()
	return ok
}

// notePoint notes which point the response to a send names. Nobody else looks at
// that before the send is ended.
func (b *Buffer) notePoint(f *abi.Fields) {
	if b != nil {
		p, _ := f.Point()
		b.point = pointOf(p)
	}
}

// sendLostLocked ends a send that has no completion.
func (c *Conn) sendLostLocked(buf *buffer, err error) {
	if buf.user == nil {
		c.unsendLocked(buf)
		return
	}
	b := buf.user
	b.lost, b.terminal = err, true
	b.endSendLocked()
	c.wcond.Broadcast()
}

// endSendLocked ends a send whose terminal response came, unless that of its
// cancellation, which follows, says how much of it is in the stream.
func (b *Buffer) endSendLocked() {
	if b.cancel == cancelAsked {
		return
	}
	c, n := b.conn.Load(), b.n
	err := b.lost
	switch {
	case err != nil, b.status == abi.StatusOK:
	case b.status == abi.StatusCancelled:
		if b.part == nil {
			n, b.point = b.fetched, PointRead
		}
		err = statusErr("write", b.status)
	case b.status == abi.StatusClosed:
		err = errClosed
	default:
		err = statusErr("write", b.status)
	}
	c.lane().a.host.direct.Add(uint64(n))
	b.endLocked(n, b.inspect(err))
}

// cancelled acts on the response to the cancellation of a send: fetched bytes
// of it are in the stream if that won.
func (b *Buffer) cancelled(s abi.Status, fetched uint32) {
	c := b.conn.Load()
	c.mu.Lock()
	defer c.mu.Unlock()
	b.cancel = cancelAnswered
	if s == abi.StatusOK {
		b.fetched = fetched
	}
	if b.terminal {
		b.endSendLocked()
	}
}

// writesDirect reports whether p goes without a copy.
func (c *Conn) writesDirect(p []byte) bool {
	a := c.lane().a
	return !a.opts.CarryOver && a.usesDirect(p)
}

// usesDirect reports whether p is long enough, lies in registered memory, and at an
// address that suits, to be used as it is.
func (a *Adapter) usesDirect(p []byte) bool {
	if a.opts.ZeroCopy < 0 || len(p) < a.opts.ZeroCopy {
		return false
	}
	m, off := a.lookup(p)
	return m != nil && (a.opts.Align <= 1 || (m.dma.IOVA+uint64(off))%uint64(a.opts.Align) == 0)
}

// writeRun sends the first slices of v, as far as they go without a copy, and
// waits for their ends. It returns how many bytes of them are in the stream.
func (c *Conn) writeRun(v [][]byte) (total int, err error) {
	n := 0
	for n < len(v) && n < directRun && c.writesDirect(v[n]) {
		p := v[n]
		b := c.piece(n)
		if !c.claimSlice(b, OpSend, p[:min(len(p), maxPost)]) {
			err = errMemory // deregistered meanwhile
			break
		}
		if err = c.post(b); err != nil {
			b.m.unpin()
			break
		}
		c.lane().a.host.directWrites.Add(1)
		if n++; len(p) > maxPost {
			break
		}
	}
	total, ended := c.awaitRun(n)
	if ended != nil {
		err = ended
	}
	return total, err
}

// piece returns a buffer for the i-th piece of a call.
func (c *Conn) piece(i int) *Buffer {
	if i == len(c.direct) {
		c.direct = append(c.direct, &Buffer{})
	}
	return c.direct[i]
}

// claimSlice makes b the registered memory p; false if it is not that.
func (c *Conn) claimSlice(b *Buffer, op Op, p []byte) bool {
	m, off := c.lane().a.lookup(p)
	if m == nil || !m.pin() {
		return false
	}
	b.set(m, off, len(p))
	b.begin(op, c, nil)
	return true
}

// takeBackLocked cancels a buffer of a call that waits for its end. An error
// other than the lack of room means that a reset is about to end it.
func (c *Conn) takeBackLocked(b *Buffer) {
	if !b.over && b.op == OpReceive && !b.given {
		c.endUserLocked(b, nil)
	}
	for !b.over && b.cancelLocked() == errNoRoom && c.lane().awaitRoom(c) {
	}
}

// awaitRun waits for the ends of the first n pieces, which were posted, and
// returns how many bytes of them are in the stream. They are all the caller's
// again: a deadline or Close cancels what is left, the last piece first, so that
// nothing is sent behind a gap.
func (c *Conn) awaitRun(n int) (total int, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	var v vigil
	defer v.end()
	for i := range n {
		b := c.direct[i]
		for !b.over {
			if c.closed || c.wdl.expired {
				for j := n - 1; j >= i; j-- {
					c.takeBackLocked(c.direct[j])
				}
			}
			if !v.look(c.lane(), &c.mu) {
				c.wcond.Wait()
				v.woke()
			}
		}
		total += int(b.done)
		if b.err != nil && err == nil {
			err = b.err
			switch {
			case c.closed:
				err = errClosed
			case c.wdl.expired && b.status == abi.StatusCancelled:
				err = os.ErrDeadlineExceeded
			}
		}
	}
	return total, err
}
