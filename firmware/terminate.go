// SPDX-License-Identifier: Apache-2.0

package firmware

import "toebox/vdev/abi"

// requestTermination ends connections or directions (SPEC.md §5.8).
func (q *queue) requestTermination(f *abi.Fields) {
	one := [1]pair{{conn: f.Conn, value: f.Length}}
	list := one[:]
	if f.Aux != 0 {
		var s abi.Status
		if list, s = q.pairs(f, abi.AttrTerminate); s != abi.StatusOK {
			q.refuse(f, s)
			return
		}
	}
	r := q.holdTargets(f, len(list))
	if r == nil {
		return
	}
	for i := range list {
		p := &list[i]
		t := target{r: r, ordinal: uint32(i), mode: p.value}
		s := p.status
		var c *conn
		if s == abi.StatusOK {
			c, s = q.lookup(p.conn)
		}
		if s == abi.StatusOK {
			s = c.checkMode(p.value)
		}
		if s != abi.StatusOK {
			q.answerTarget(r, abi.Fields{Aux: uint16(s), Conn: p.conn, Offset: t.ordinal})
			continue
		}
		q.terminate(c, t)
	}
}

// maxDiscards bounds the turns in which a termination drops received bytes: a
// window's worth, and not what comes meanwhile.
const maxDiscards = 2 * maxWindow / turnBytes

func (c *conn) checkMode(mode uint32) abi.Status {
	switch {
	case mode > abi.TerminateReceive:
		return abi.StatusBadMode
	case c.phase == listening && mode > abi.TerminateAbort:
		return abi.StatusBadState
	}
	return abi.StatusOK
}

// terminate carries out one termination of a connection that has an id.
func (q *queue) terminate(c *conn, t target) {
	half := t.mode == abi.TerminateSend || t.mode == abi.TerminateReceive
	if t.mode != abi.TerminateSend {
		q.endDelay(c)
	}
	switch {
	case c.phase == listening:
		q.emitOf(&c.origin)
		c.ep.Close()
		q.forget(c)
		q.answerTerm(c, t, abi.StatusOK, abi.EndedListener)
	case c.phase == dead && half:
		q.answerTerm(c, t, abi.StatusOK, c.ended)
	case c.phase == dead:
		c.terms = append(c.terms, t)
		q.finish(c, c.ended)
	case t.mode == abi.TerminateAbort:
		c.terms = append(c.terms, t)
		q.abort(c, abi.StatusClosed)
	case t.mode == abi.TerminateReceive:
		if !c.deaf {
			c.deaf = true
			q.failBuffers(c, abi.StatusClosed)
		}
		q.answerTerm(c, t, abi.StatusOK, abi.EndedHalfClosed)
		q.receiveSoon(c)
	default:
		c.terms = append(c.terms, t)
		c.shut = true
		q.sendSoon(c) // sends that wait do so no longer
		if t.mode == abi.TerminateGraceful && !c.closing {
			c.closing = true
			q.failBuffers(c, abi.StatusClosed)
			c.proto.linger(q, c)
			if c.failed {
				q.die(c)
				return
			}
			// What is there is dropped before the end: it would make a reset
			// of it.
			for n := 0; n < maxDiscards && q.discard(c); n++ {
			}
		}
		if c.phase == open {
			q.progressClose(c)
		}
	}
}

// progressClose goes on with ending the sending direction: FIN when all is
// fetched, results when all is acknowledged.
func (q *queue) progressClose(c *conn) {
	if !c.shut || c.phase != open || c.fetch != nil {
		return
	}
	if c.broken {
		// A FIN would say that the stream is whole.
		switch {
		case c.sends.front != nil:
		case c.closing:
			q.abort(c, abi.StatusAborted)
		default:
			c.failed, c.status, c.ended = true, abi.StatusAborted, abi.EndedHostReset
			q.die(c)
		}
		return
	}
	if !c.finSent {
		c.finSent = true
		// An error means that the connection is ending otherwise, which an
		// event tells.
		_ = c.ep.CloseWrite()
	}
	if c.acked < c.queued || c.sends.front != nil {
		return
	}
	if c.closing {
		q.finish(c, abi.EndedOrderly)
		return
	}
	q.answerTerms(c, abi.StatusOK, abi.EndedHalfClosed)
}

// abort resets a connection. Its requests are answered with s.
func (q *queue) abort(c *conn, s abi.Status) {
	q.failSends(c, s)
	q.failBuffers(c, s)
	q.finish(c, abi.EndedHostReset)
}

// finish ends a connection for good: its terminations are answered and the id
// is gone. An orderly end goes on in the background.
func (q *queue) finish(c *conn, ended uint32) {
	if ended == abi.EndedOrderly {
		c.ep.Close()
	} else {
		c.ep.Abort()
	}
	q.forget(c)
	q.answerTerms(c, abi.StatusOK, ended)
}

func (q *queue) answerTerms(c *conn, s abi.Status, ended uint32) {
	for _, t := range c.terms {
		q.answerTerm(c, t, s, ended)
	}
	c.terms = c.terms[:0]
}

func (q *queue) answerTerm(c *conn, t target, s abi.Status, ended uint32) {
	if s == abi.StatusOK {
		q.count(abi.CounterTerminations, 1)
	}
	q.answerTarget(t.r, abi.Fields{Aux: uint16(s), Conn: c.id, Length: ended, Offset: t.ordinal})
}
