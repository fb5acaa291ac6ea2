// SPDX-License-Identifier: Apache-2.0

package firmware

import "toebox/vdev/abi"

// virtual is a virtual buffer of a connection: pieces with consecutive sequence
// numbers, used in their order without holes (SPEC.md §14.10). Those that can be
// used stand in the connection's list of buffers, one behind the other.
type virtual struct {
	next   uint8              // sequence number of the piece that is usable next
	posted int                // pieces posted and not answered
	last   *request           // the last one that is usable, while it is posted
	early  map[uint8]*request // posted before those that come before them
}

// virtualCharge is what a virtual buffer is charged.
const virtualCharge = 128

// number and sequence of a piece.
func (r *request) virtualID() uint8 { return uint8(r.piece >> 8) }
func (r *request) sequence() uint8  { return uint8(r.piece) }

// virtual is the virtual buffer of c with a number, made at its first use; nil:
// there is no adapter memory for it.
func (q *queue) virtual(c *conn, id uint8) *virtual {
	x := q.choice(c)
	if x == nil {
		return nil
	}
	v := x.virtuals[id]
	if v == nil && q.fw.memory.admit(virtualCharge) {
		if x.virtuals == nil {
			x.virtuals = make(map[uint8]*virtual)
		}
		v = new(virtual)
		x.virtuals[id] = v
	}
	return v
}

// has reports whether a piece with this sequence number is posted.
func (v *virtual) has(seq uint8) bool {
	usable := v.posted - len(v.early)
	return v.early[seq] != nil || int(v.next-1-seq) < usable
}

// early are the pieces of c that cannot be used yet.
func (c *conn) early() *requestList {
	if c.choice == nil {
		return new(requestList)
	}
	return &c.choice.early
}

// mayBePiece reports whether a request may name a piece: a buffer of a connection
// that is to be filled as a whole.
func mayBePiece(f *abi.Fields) bool {
	const not = abi.FlagFragment | abi.FlagGroup | abi.FlagOnce | abi.FlagReport | abi.FlagSkip | abi.FlagPeek | abi.FlagRedirect
	return f.Type == abi.TypeBufferAvailable && f.Conn != 0 && f.Flags&not == 0 && f.Aux>>8 != 0
}

// checkPiece says whether a piece may be posted on c.
func (q *queue) checkPiece(f *abi.Fields, c *conn) abi.Status {
	if _, ok := c.proto.(stream); !ok {
		return abi.StatusNotSupported
	}
	v := q.virtual(c, uint8(f.Aux>>8))
	switch {
	case v == nil:
		return abi.StatusNoMemory
	case v.has(uint8(f.Aux)):
		return abi.StatusBadValue
	}
	return abi.StatusOK
}

// postPiece lists a piece of c. What can be used behind it, now that it is here,
// follows.
func (q *queue) postPiece(c *conn, r *request) {
	v := c.choice.virtuals[r.virtualID()]
	if r.sequence() == 0 && v.posted == 0 {
		v.next = 0 // another one begins
	}
	v.posted++
	if r.sequence() != v.next {
		if v.early == nil {
			v.early = make(map[uint8]*request)
		}
		v.early[r.sequence()] = r
		r.early = true
		c.choice.early.push(r)
		return
	}
	for r != nil {
		c.buffers.insert(v.last, r)
		c.room += uint64(r.todo())
		v.last = r
		v.next++
		if r = v.early[v.next]; r != nil {
			delete(v.early, v.next)
			c.choice.early.remove(r)
			r.early = false
		}
	}
}

// removePiece notes that a piece leaves the list that it is in.
func (q *queue) removePiece(r *request) {
	v := r.conn.choice.virtuals[r.virtualID()]
	v.posted--
	switch {
	case r.early:
		delete(v.early, r.sequence())
	case v.last == r:
		v.last = nil
		if p := r.prev; p != nil && p.piece>>8 == r.piece>>8 {
			v.last = p
		}
	}
}

// broken is a piece that ended before it was full.
type broken struct {
	conn  *conn
	piece uint16
	early bool
	next  *request // behind it in the list of buffers
}

// breaks is what is to be remembered of r, which ends now.
func (r *request) breaks() broken {
	return broken{conn: r.conn, piece: r.piece, early: r.early, next: r.next}
}

// endPieces answers the pieces behind one that ended before it was full: without
// it there would be a hole. The sequence goes on with its number.
func (q *queue) endPieces(b broken, s abi.Status) {
	if b.piece == 0 {
		return
	}
	x := b.conn.choice
	v := x.virtuals[uint8(b.piece>>8)]
	from, to := v.next, uint8(b.piece)
	if b.early {
		from, to = to+1, from
	} else {
		for r := b.next; r != nil && r.piece>>8 == b.piece>>8; {
			next := r.next
			q.returnOne(r, s)
			r = next
		}
		v.next = uint8(b.piece)
	}
	for ; from != to && len(v.early) > 0; from++ {
		if r := v.early[from]; r != nil {
			q.returnOne(r, s)
		}
	}
}

// fragments reports whether r, the first buffer of c, is given back as it is: the
// host permits that, it holds bytes already and cannot take all that have arrived,
// which the next buffer can.
func (q *queue) fragments(c *conn, r *request) bool {
	next := r.next
	if r.flags&abi.FlagFragment == 0 || r.done == 0 || next == nil || next.special() {
		return false
	}
	n := q.ahead(c)
	return n > uint64(r.todo()) && n <= uint64(c.toSkip(next)+next.todo())
}
