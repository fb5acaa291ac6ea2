// SPDX-License-Identifier: Apache-2.0

package firmware

import (
	"errors"
	"io"

	"toebox/firmware/engine"
	"toebox/vdev/abi"
)

// requestBuffer posts a receive buffer: a connection's own, or a bulk buffer
// (SPEC.md §5.5), or a buffer for reports.
func (q *queue) requestBuffer(f *abi.Fields) {
	if f.Flags&abi.FlagReport != 0 {
		q.requestReportBuffer(f)
		return
	}
	if f.Flags&abi.FlagGroup != 0 {
		q.postGroup(f)
		return
	}
	if f.Conn == 0 {
		if r := q.hold(f, nil); r != nil {
			if q.check != nil {
				q.check.posted(r)
			}
			q.pool.push(r)
		}
		return
	}
	c, s := q.lookup(f.Conn)
	switch {
	case s != abi.StatusOK:
	case c.phase == listening:
		s = abi.StatusBadState
	case c.phase == dead:
		s = c.status
	case c.deaf || c.closing:
		s = abi.StatusClosed
	case c.eos:
		s = abi.StatusEndOfStream
	case f.Flags&(abi.FlagSkip|abi.FlagPeek|abi.FlagRedirect) != 0 && c.proto.number() != engine.TCP:
		s = abi.StatusNotSupported
	case f.Flags&abi.FlagRedirect != 0:
		s = q.checkRedirect(c, f.Base)
	case f.Aux != 0:
		s = q.checkPiece(f, c)
	}
	if s != abi.StatusOK {
		q.refuse(f, s)
		return
	}
	if r := q.hold(f, c); r != nil {
		if q.check != nil && r.flags&abi.FlagRedirect == 0 {
			q.check.posted(r)
		}
		if r.piece = f.Aux; r.piece != 0 {
			q.postPiece(c, r)
		} else {
			c.buffers.push(r)
			c.room += r.wants()
		}
		if r.reads() {
			c.reads++
		}
		q.stirSink(c)
		if q.spills {
			q.feed(c)
		}
		q.notePost(c)
		q.receiveSoon(c)
	}
}

// receiveSoon gives c a turn to deliver, or to accept.
func (q *queue) receiveSoon(c *conn) {
	q.receiveSince(c, q.policyTime())
}

// receiveSince is receiveSoon for one that waits since a time.
func (q *queue) receiveSince(c *conn, since uint64) {
	if c.inRx == 0 {
		c.inRx = q.rx.add(c, c.receiveRank(), since, c.patience())
	}
}

// turnReceive gives connections turns.
func (q *queue) turnReceive() {
	q.expireWaits()
	q.turnGroups()
	for n := q.pool.n; n > 0 && q.wait.len() > 0; n-- {
		c, since := q.turn(&q.wait)
		c.inWait = 0
		q.receiveSince(c, since)
	}
	for n := 0; n < turns+q.ripe && q.rx.len() > 0 && !q.stalled() && !q.dying.Load(); n++ {
		c, since := q.turn(&q.rx)
		c.inRx = 0
		q.progress = true
		switch c.phase {
		case listening:
			q.accept(c)
		case open:
			q.receive(c, since)
		}
	}
}

// receive delivers what has arrived, for a turn: into the connection's own
// buffers in order, else into bulk buffers. It waits since a time.
func (q *queue) receive(c *conn, since uint64) {
	if c.choice != nil {
		q.leaveGroup(c.choice)
	}
	if c.notice != nil {
		q.gate(c)
		return
	}
	if c.closing || c.deaf {
		if q.discard(c) {
			q.receiveSoon(c)
		}
		return
	}
	if c.eos {
		return
	}
	for moved := 0; ; {
		if moved > 0 {
			since = q.policyTime()
		}
		if moved >= turnBytes || q.stalled() {
			q.receiveSince(c, since)
			return
		}
		most, err := q.receivable(c)
		if most == 0 && err == nil {
			return // it waits
		}
		if err == nil {
			r := q.pick(c)
			if r == nil {
				r = q.starve(c, since, most)
			}
			if r == nil {
				return
			}
			if q.check != nil {
				q.check.unchanged(r)
			}
			var n int
			n, err = c.proto.deliver(q, c, r, most)
			moved += n
		}
		switch {
		case err == nil:
		case errors.Is(err, errHeld):
			return
		case errors.Is(err, engine.ErrWouldBlock) && !c.failed:
			q.emptied(c)
			return
		default:
			q.endReceive(c, err)
			return
		}
	}
}

// starve looks what there is for a connection that has no buffer: data waits,
// for a buffer of its own or for any, the end is reported. It returns the buffer
// for data that waits no longer.
func (q *queue) starve(c *conn, since uint64, most int) *request {
	_, err := c.ep.Peek(1, q.looks.probe)
	if err == nil && c.mayShow() && !c.awaitsRead() {
		if !q.show(c, since, most) {
			return nil
		}
		if r := q.pick(c); r != nil {
			return r
		}
	}
	switch {
	case err == nil && c.awaitsRead():
		q.squeeze(c)
		if !c.unread {
			q.count(abi.CounterReadWaits, 1)
			c.unread = true
		}
	case err == nil && q.awaits(c):
		q.joinGroup(c, since)
		q.squeeze(c)
	case err == nil && q.pool.front != nil:
		return q.poolBuffer(c)
	case err == nil:
		q.lack(c, since)
	case errors.Is(err, engine.ErrWouldBlock) && !c.failed:
		q.emptied(c)
	default:
		q.endReceive(c, err)
	}
	return nil
}

// lack lets c, for whose bytes there is no buffer at all, wait for any.
func (q *queue) lack(c *conn, since uint64) {
	q.joinGroup(c, since)
	q.squeeze(c)
	if c.inWait == 0 {
		q.count(abi.CounterPoolEmpty, 1)
		c.inWait = q.wait.add(c, c.receiveRank(), since, c.patience())
	}
}

func (q *queue) probe(p []byte) int { return min(len(p), 1) }

// deliverStream moves at most so many bytes into one buffer and reports them. A
// buffer that cannot be written is answered BAD_MEMORY; its bytes go to the next.
// What is to be skipped before counts as moved.
func (q *queue) deliverStream(c *conn, r *request, most int) (int, error) {
	skipped, ready, err := q.skip(c, r, most)
	if !ready {
		return skipped, err
	}
	if most != unlimited {
		most -= skipped
	}
	n := 0
	switch {
	case r.flags&abi.FlagPeek != 0:
		n, err = q.peekStream(c, r, most)
	case r.flags&abi.FlagRedirect != 0:
		n, err = q.redirectStream(c, r, most)
	default:
		n, err = q.fillBuffer(c, r, most, unlimited)
	}
	return skipped + n, err
}

// fillBuffer moves bytes of c into r, which may be another connection's: at most
// those that may go, and no more than a limit.
func (q *queue) fillBuffer(c *conn, r *request, most, limit int) (int, error) {
	m := &q.move
	m.to, m.left, m.moved, m.err = r.base+uint64(r.offset)+uint64(r.done), min(r.todo(), most, limit), 0, nil
	if limit == unlimited {
		q.reachOver(c, r, most)
	}
	q.place(c)
	err := q.readStream(c, most)
	m.into = nil
	q.placed(m.moved)
	if m.moved == 0 && m.err == nil {
		if err == nil {
			err = engine.ErrWouldBlock
		}
		return 0, err
	}
	for left := m.moved; ; {
		n, next := min(left, r.todo()), r.next
		left -= n
		// The byte that could not be written belongs into the first that is not full.
		failed := m.err != nil && left == 0 && (n < r.todo() || limit != unlimited)
		q.filled(c, r, n, failed)
		switch {
		case failed:
			return m.moved, nil
		case left == 0 && m.err == nil:
			return m.moved, err
		}
		r = next
	}
}

// filled tells of n bytes of c in r, or also that no more can be written to it.
func (q *queue) filled(c *conn, r *request, n int, failed bool) {
	c.delivered += uint64(n)
	q.count(abi.CounterBytesReceived, uint64(n))
	q.count(abi.CounterBytesDelivered, uint64(n))
	f := abi.Fields{
		Type: abi.TypeBufferReceive, Tag: r.tag, Base: r.base, Conn: c.id,
		Length: uint32(n), Offset: r.offset + r.done,
	}
	r.done += uint32(n)
	bulk := r.conn == nil
	if !bulk && r.conn != c {
		f.Flags = abi.FlagRedirect
	}
	if n > 0 {
		c.skipped = 0
		if !bulk {
			r.conn.room -= uint64(n)
			if r.conn != c && r.conn.fits.Load() != 0 {
				q.feed(r.conn)
			}
		}
		q.noteTold(c)
		q.delivered(c, r, n)
	}
	if failed {
		f.Aux = uint16(abi.StatusBadMemory)
		if n == 0 {
			f.Type, f.Flags = abi.TypeBufferDone, 0
			f.Conn = r.named()
			if r.done == 0 {
				f.Offset += r.skipped
			}
		}
	}
	if !bulk && !failed && r.todo() > 0 && r.flags&abi.FlagOnce == 0 {
		if q.check != nil && r.summed == q.check {
			q.check.remember(r)
		}
		q.respondBytes(c, r, &f)
		return
	}
	end := r.breaks()
	q.removeBuffer(r)
	f.Flags |= abi.FlagFinal
	q.answered(f.Tag, f.Aux)
	q.respondBytes(c, r, &f)
	q.settle(r)
	if failed {
		q.endPieces(end, abi.StatusBadMemory)
	}
}

// deliver copies received bytes p to where the mover stands. It takes them only
// when they are written.
func (q *queue) deliver(p []byte) int {
	m := &q.move
	n := min(len(p), m.left)
	if n == 0 || m.err != nil {
		return 0
	}
	n = m.within(n)
	err := q.writePiece(p[:n])
	if err != nil && m.crosses(n) {
		n = m.keepApart()
		err = q.writePiece(p[:n])
	}
	if err != nil {
		m.err = err
		return 0
	}
	q.count(abi.CounterDeliveriesMerged, m.pass(n))
	q.count(abi.CounterPayloadWrites, 1)
	q.count(abi.CounterPayloadBytesWritten, uint64(n))
	q.count(abi.CounterCopiesBytes, uint64(n))
	m.to += uint64(n)
	m.left -= n
	m.moved += n
	return n
}

// writePiece copies received bytes to where the mover stands, as one transfer.
func (q *queue) writePiece(p []byte) error {
	q.move.piece = p
	err := q.fw.chip.View(q.move.to, len(p), true, q.looks.copyOut)
	if err == nil && len(q.move.piece) > 0 {
		err = io.ErrShortWrite
	}
	return err
}

func (q *queue) copyOut(dst []byte) error {
	n := q.store(dst, q.move.piece)
	q.move.piece = q.move.piece[n:]
	return nil
}

// removeBuffer takes a posted buffer out of the list it is in.
func (q *queue) removeBuffer(r *request) {
	q.count(abi.CounterBuffersReturned, 1)
	switch {
	case r.early:
		q.removePiece(r)
		r.conn.choice.early.remove(r)
	case r.conn != nil:
		if r.piece != 0 {
			q.removePiece(r)
		}
		r.conn.buffers.remove(r)
		r.conn.room -= r.wants()
		if r.reads() {
			r.conn.reads--
		}
		q.releaseHolder(r)
		if r.conn.fits.Load() != 0 {
			q.feed(r.conn)
		}
	case r.group != nil:
		r.group.buffers.remove(r)
		q.idleGroup(r.group)
	case r.flags&abi.FlagReport != 0:
		q.reports.buffers.remove(r)
	default:
		q.pool.remove(r)
	}
}

// returnBuffer answers a posted buffer that gets no more bytes, and pieces behind
// it.
func (q *queue) returnBuffer(r *request, s abi.Status) {
	end := r.breaks()
	q.returnOne(r, s)
	q.endPieces(end, s)
}

func (q *queue) returnOne(r *request, s abi.Status) {
	q.removeBuffer(r)
	if q.check != nil {
		q.check.unchanged(r)
	}
	f := abi.Fields{
		Type: abi.TypeBufferDone, Aux: uint16(s), Tag: r.tag, Base: r.base, Offset: r.offset + r.done,
	}
	switch {
	case r.flags&abi.FlagRedirect != 0:
		f.Length, f.Offset = r.done, r.skipped
	case r.done == 0:
		f.Offset += r.skipped
	}
	f.Conn = r.named()
	q.terminal(&f)
	q.settle(r)
}

// failBuffers returns all of a connection's own buffers.
func (q *queue) failBuffers(c *conn, s abi.Status) {
	for r := c.buffers.front; r != nil; r = c.buffers.front {
		q.returnBuffer(r, s)
	}
	for early := c.early(); early.front != nil; {
		q.returnBuffer(early.front, s)
	}
	q.stirSink(c)
}

// endReceive reports the end of the stream, or the death of the connection,
// once all data before it was delivered.
func (q *queue) endReceive(c *conn, err error) {
	if errors.Is(err, engine.ErrEndOfStream) {
		if q.checkFailed(c); c.phase != open {
			return
		}
		if !c.failed {
			c.eos = true
			q.count(abi.CounterRemoteCloses, 1)
			q.failBuffers(c, abi.StatusEndOfStream)
			q.respond(abi.Fields{
				Type: abi.TypeTerminated, Flags: abi.FlagFinal, Conn: c.id, Length: abi.EndedStream,
			})
			return
		}
	}
	q.fault(c, err)
}

// fault ends a connection that the engine failed to read.
func (q *queue) fault(c *conn, err error) {
	if !c.failed {
		c.failed = true
		c.status, c.ended = statusOf(err), endedBy(err)
	}
	q.die(c)
}

// discard drops what arrives on a connection whose host does not want it. It
// reports whether there may be more.
func (q *queue) discard(c *conn) bool {
	n, err := c.ep.Read(turnBytes, q.looks.drop)
	q.count(abi.CounterBytesReceived, uint64(n))
	q.count(abi.CounterOrphanBytes, uint64(n))
	switch {
	case err == nil && n > 0:
		return true
	case err == nil, errors.Is(err, engine.ErrWouldBlock), errors.Is(err, engine.ErrEndOfStream):
		q.checkFailed(c)
	default:
		q.fault(c, err)
	}
	return false
}

func (q *queue) drop(p []byte) int { return len(p) }
