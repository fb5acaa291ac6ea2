// SPDX-License-Identifier: Apache-2.0

package firmware

import (
	"errors"
	"io"

	"toebox/firmware/engine"
	"toebox/vdev/abi"
)

// mover is the state of the one copy that a worker has under way: payload of a
// send on its way into the engine, or of a receive on its way out.
type mover struct {
	// Send: the request that the next bytes come from, and how many of its
	// bytes are before them.
	r   *request
	pos uint32
	bad *request // its memory could not be read

	// Receive: where the next bytes go, how many fit.
	to    uint64
	left  int
	moved int
	err   error
	into  *request // the buffer that they go into; nil: no other is behind it
	own   int      // how many fit into that one
	apart bool     // one transfer for each buffer
	head  bool     // of a datagram: its source goes first
	size  int      // of a datagram: with its header

	piece []byte // engine memory that is still to be filled or copied out
}

// requestSend queues a send (SPEC.md §5.4).
func (q *queue) requestSend(f *abi.Fields) {
	if f.Flags&abi.FlagGroup != 0 {
		q.requestGroupSend(f)
		return
	}
	c, s := q.lookup(f.Conn)
	switch {
	case s != abi.StatusOK:
	case c.phase == listening:
		s = abi.StatusBadState
	case c.phase == dead, c.failed:
		s = c.status
	case c.broken:
		s = abi.StatusAborted
	case c.shut:
		s = abi.StatusClosed
	default:
		s = c.proto.checkSend(c, f.Length-f.Offset)
	}
	if s != abi.StatusOK {
		q.refuse(f, s)
		return
	}
	r := q.hold(f, c)
	if r == nil {
		return
	}
	if q.check != nil {
		q.check.posted(r)
	}
	if keep := c.attrs.of(abi.AttrKeepSends) != 0; keep || f.Modify {
		q.present(r, f.Modify, keep)
	}
	q.enqueueSend(c, r)
}

// enqueueSend puts a send behind those that c has.
func (q *queue) enqueueSend(c *conn, r *request) {
	if c.parked == nil && c.attrs.of(abi.AttrDelayCriteria) != 0 {
		q.switchParking(c)
	}
	c.sends.push(r)
	if c.fetch == nil {
		c.fetch = r
		q.load.class(c)
	}
	if c.parked != nil {
		c.parked.waitMore(r)
	}
	if r.asap {
		c.urgent++
	}
	q.sendSoon(c)
}

// sendSoon gives c a turn if it has something to send and room for it, and is
// not to wait (SPEC.md §14.7).
func (q *queue) sendSoon(c *conn) {
	if c.fetch == nil || c.full || c.phase != open {
		return
	}
	switch {
	case c.inTx != 0:
		if c.urgent > 0 {
			q.reorder(c)
		}
	case c.parked != nil && q.holdBack(c):
	default:
		q.sendSince(c, q.policyTime())
	}
}

// sendSince gives a turn to c, which waits since a time.
func (q *queue) sendSince(c *conn, since uint64) {
	if c.inTx == 0 {
		c.inTx = q.tx.add(c, c.sendRank(), since, c.patience())
	}
}

// turnSend gives connections turns.
func (q *queue) turnSend() {
	for n := 0; n < turns && q.tx.len() > 0 && !q.dying.Load(); n++ {
		c, _ := q.turn(&q.tx)
		c.inTx = 0
		q.progress = true
		if c.fetch == nil || c.full || c.phase != open {
			continue
		}
		c.proto.send(q, c)
	}
}

// sendStream moves up to a turn's bytes of c into the engine: as many requests as
// that takes in one call, since the engine likes large writes.
func (q *queue) sendStream(c *conn) {
	n := 0
	for r, left := c.fetch, c.fetchable(); r != nil && left > 0 && n < turnBytes && !r.bad; r = r.next {
		n += r.todo()
		left--
		if q.check != nil {
			q.check.unchanged(r)
		}
	}
	if n == 0 {
		q.breakStream(c)
		return
	}
	m := &q.move
	m.r, m.pos, m.bad = c.fetch, c.fetch.done, nil
	got, err := c.ep.Write(min(n, turnBytes), q.looks.fill)
	m.r, m.piece = nil, nil
	q.sent(c, got)
	switch {
	case m.bad != nil:
		m.bad.bad = true
		m.bad = nil
	case errors.Is(err, engine.ErrWouldBlock):
		c.full = true
	case err != nil:
		c.full = true
		if q.checkFailed(c); !c.failed {
			// Bytes may be missing: what lies behind must not follow.
			c.broken = true
			q.failSends(c, statusOf(err))
		}
	}
	if c.phase == open {
		q.completeSends(c)
		q.progressClose(c)
		q.sendSoon(c)
	}
}

// fill copies the next bytes to send into engine memory p.
func (q *queue) fill(p []byte) error {
	m, apart := &q.move, false
	for len(p) > 0 {
		r := m.r
		if r == nil || r.bad {
			return io.ErrUnexpectedEOF // the engine asks for more than it was offered
		}
		own := min(len(p), int(r.length-r.offset-m.pos))
		if r.kept != nil {
			done, err := q.fillKept(r, m.pos, p[:own])
			if err != nil {
				m.bad = r
				return err
			}
			if done {
				p = p[own:]
				m.advance(own)
				continue
			}
		}
		n, more := own, 0
		if !apart && r.kept == nil {
			n, more = m.adjacent(own, len(p))
		}
		err := q.fetch(r.base+uint64(r.offset)+uint64(m.pos), p[:n])
		if err != nil && more > 0 {
			// Each request has a result of its own: which one cannot be read?
			apart, n, more = true, own, 0
			err = q.fetch(r.base+uint64(r.offset)+uint64(m.pos), p[:n])
		}
		if err != nil {
			m.bad = r
			return err
		}
		q.count(abi.CounterPayloadReads, 1)
		q.count(abi.CounterTransfersMerged, uint64(more))
		q.count(abi.CounterPayloadBytesRead, uint64(n))
		q.count(abi.CounterCopiesBytes, uint64(n))
		p = p[n:]
		m.advance(n)
	}
	return nil
}

// fetch copies host memory to p, by one DMA.
func (q *queue) fetch(iova uint64, p []byte) error {
	m := &q.move
	m.piece = p
	err := q.fw.chip.View(iova, len(p), false, q.looks.copyIn)
	if err == nil && len(m.piece) > 0 {
		err = io.ErrUnexpectedEOF
	}
	return err
}

// adjacent extends the n bytes that come next, at most to limit, over the requests
// behind whose memory goes on where that of the one before ends (MM11). It says how
// many they are.
func (m *mover) adjacent(n, limit int) (size, more int) {
	for r := m.r; n < limit; more++ {
		end := r.base + uint64(r.length)
		if r = r.next; r == nil || r.bad || r.kept != nil || end == 0 || r.base+uint64(r.offset) != end {
			break
		}
		n += min(limit-n, r.todo())
	}
	return n, more
}

// advance goes on by n bytes.
func (m *mover) advance(n int) {
	for n > 0 {
		left := int(m.r.length - m.r.offset - m.pos)
		if n < left {
			m.pos += uint32(n)
			return
		}
		n -= left
		m.r, m.pos = m.r.next, 0
	}
}

func (q *queue) copyIn(src []byte) error {
	n := copy(q.move.piece, src)
	q.move.piece = q.move.piece[n:]
	return nil
}

// sent notes that the engine took n more bytes.
func (q *queue) sent(c *conn, n int) {
	q.count(abi.CounterBytesSent, uint64(n))
	for n > 0 && c.fetch != nil {
		r := c.fetch
		if r.done == 0 {
			r.start = c.queued
		}
		k := min(n, r.todo())
		q.load.fly(c, uint64(k))
		if c.parked != nil {
			c.parked.bytes -= uint64(k)
		}
		r.done += uint32(k)
		c.queued += uint64(k)
		n -= k
		if r.todo() == 0 {
			c.fetched()
		}
	}
}

// fetched goes to the next request to fetch.
func (c *conn) fetched() {
	if c.fetch.asap {
		c.urgent--
	}
	c.fetch.past = true
	if c.parked != nil {
		c.parked.waitLess(c.fetch)
	}
	if c.fetch = c.fetch.next; c.fetch == nil {
		c.q.load.class(c)
	}
}

// breakStream ends the sending of c at a request whose memory cannot be read:
// what lies behind a gap must not reach the peer (SPEC.md §5.4).
func (q *queue) breakStream(c *conn) {
	c.broken = true
	s := abi.StatusBadMemory
	for c.fetch != nil {
		r := c.fetch
		if r.done == 0 {
			r.start = c.queued
		}
		r.status, s = s, abi.StatusAborted
		c.fetched()
	}
	q.completeSends(c)
	q.progressClose(c)
}

// reached is the stream position that has reached the completion point.
func (q *queue) reached(c *conn) uint64 {
	info := c.ep.Info()
	if a := min(info.Acked, c.queued); a > c.acked {
		q.count(abi.CounterBytesAcked, a-c.acked)
		q.load.land(a-c.acked, c.queued-a)
		c.acked = a
	}
	switch c.attrs.of(abi.AttrCompletionPoint) {
	case 0: // read
		return c.queued
	case 1:
		// Handed to the network: the engine sends all that the windows allow.
		window := min(uint64(info.Cwnd)*uint64(info.MSS), uint64(info.SendWindow))
		return min(c.queued, c.acked+window)
	}
	return c.acked
}

// namePoint has the response to a send say which point its length counts to.
func (c *conn) namePoint(f *abi.Fields) {
	if _, ok := c.proto.(stream); ok {
		f.SetPoint(c.attrs.of(abi.AttrCompletionPoint))
	}
}

// completeSends answers the sends that have reached the completion point, in
// order.
func (q *queue) completeSends(c *conn) {
	reached := q.reached(c)
	for r := c.sends.front; r != nil && r != c.fetch && r.end() <= reached; r = c.sends.front {
		q.answerSend(c, r, r.status, reached)
	}
}

// failSends answers all sends of c. Each says how many bytes reached the
// completion point.
func (q *queue) failSends(c *conn, s abi.Status) {
	if c.sends.front == nil {
		return
	}
	reached := q.reached(c)
	for r := c.sends.front; r != nil; r = c.sends.front {
		q.answerSend(c, r, s, reached)
	}
}

// answerSend answers one send, wherever in its list it is.
func (q *queue) answerSend(c *conn, r *request, s abi.Status, reached uint64) {
	n := uint64(0)
	if r.done > 0 && reached > r.start {
		n = min(reached-r.start, uint64(r.done))
	}
	q.endSend(c, r, s, uint32(n))
}

// endSend answers one send of which n bytes count.
func (q *queue) endSend(c *conn, r *request, s abi.Status, n uint32) {
	if c.fetch == r {
		c.fetched()
	} else if !r.past {
		if r.asap {
			c.urgent--
		}
		if c.parked != nil {
			c.parked.waitLess(r)
		}
	}
	c.sends.remove(r)
	if q.check != nil {
		q.check.unchanged(r)
	}
	if r.parent != nil {
		q.answerMember(r, s, n)
		return
	}
	if s == abi.StatusOK {
		q.count(abi.CounterSendsDone, 1)
	}
	f := abi.Fields{
		Type: abi.TypeBufferDone, Aux: uint16(s), Tag: r.tag,
		Base: r.base, Conn: c.id, Length: n, Offset: r.offset,
	}
	c.namePoint(&f)
	q.terminal(&f)
	q.settle(r)
}
