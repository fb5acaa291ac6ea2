// SPDX-License-Identifier: Apache-2.0

package guestdriver

import (
	"errors"
	"fmt"
	"os"
	"syscall"

	"toebox/vdev/abi"
)

// ReceiveOptions are what the adapter is to know of a receive buffer.
type ReceiveOptions struct {
	// Skip is how many bytes of the stream nobody gets before the buffer's first
	// one (RX14).
	Skip int
	// Fragment permits the adapter to give the buffer back before it is full, when
	// it holds bytes and the next one would take all that have come as a whole
	// (MM06). The final completion has no error then. Without it a buffer is full
	// before the next one is used.
	Fragment bool
}

// PostBufferWith is [Conn.PostBuffer] with options.
func (c *Conn) PostBufferWith(b *Buffer, o ReceiveOptions, q *CompletionQueue) error {
	return c.postSkipping(b, OpReceive, o, q)
}

// maxPieces bounds a virtual buffer: sequence numbers have 8 bits.
const maxPieces = 256

// VirtualBuffer is one large receive buffer made of several, its pieces, wherever
// they lie in registered memory (MM06, SPEC.md §14.10). They are posted at once and
// filled in their order, without holes:
//
//	┌─ piece 0 ─┬─ piece 1 ─┬─ piece 2 ─┐
//	│ full      │ some      │ nothing   │
//	└───────────┴───────────┴───────────┘
//
// Each piece has completions of its own, as a buffer has. One that ends before it is
// full, for whatever reason, ends those behind it. Its pieces are posted in no other
// way meanwhile.
type VirtualBuffer struct {
	pieces []*Buffer

	// The lock of the connection protects these while pieces are posted.
	id     uint8  // on the connection
	life   uint64 // the connection's id when sequence numbers began
	next   uint8  // sequence number of the piece that the adapter gets next
	open   int    // pieces that have not ended
	hole   int    // index of the first piece that ended before it was full; maxPieces: none did
	broken error  // how
}

// NewVirtualBuffer makes a virtual buffer of 1 to 256 pieces.
func NewVirtualBuffer(pieces ...*Buffer) (*VirtualBuffer, error) {
	if n := len(pieces); n == 0 || n > maxPieces {
		return nil, fmt.Errorf("guestdriver: virtual buffer of %d pieces: %w", n, errMemory)
	}
	return &VirtualBuffer{pieces: append([]*Buffer(nil), pieces...)}, nil
}

// Pieces returns the pieces in their order.
func (v *VirtualBuffer) Pieces() []*Buffer { return append([]*Buffer(nil), v.pieces...) }

// PostVirtual is [Conn.PostBuffer] for a virtual buffer. Completions name it and say
// by At where in it the bytes are. With an error nothing was posted, and all pieces
// are free, but for those that were posted before.
func (c *Conn) PostVirtual(v *VirtualBuffer, q *CompletionQueue) error {
	for i, b := range v.pieces {
		if err := b.claim(OpReceive, c, q); err != nil {
			unclaim(v.pieces[:i])
			return c.opError("read", err)
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	err := c.receiveStateLocked()
	if err == nil {
		err = c.adoptLocked(v)
	}
	if err != nil {
		unclaim(v.pieces)
		return c.opError("read", err)
	}
	c.lane().a.host.virtuals.Add(1)
	c.posting = true
	for _, b := range v.pieces {
		c.enqueueLocked(b)
	}
	c.advanceLocked()
	return nil
}

func unclaim(bufs []*Buffer) {
	for _, b := range bufs {
		b.unclaim()
	}
}

// adoptLocked gives a virtual buffer, whose pieces are claimed, a number: 1 to 255,
// so that as many of a connection can be posted at a time.
func (c *Conn) adoptLocked(v *VirtualBuffer) error {
	id := uint8(1)
	for c.virtuals[id] != nil {
		if id++; id == 0 {
			return os.NewSyscallError("read", syscall.ENOBUFS)
		}
	}
	if c.virtuals == nil {
		c.virtuals = map[uint8]*VirtualBuffer{}
	}
	c.virtuals[id] = v
	v.id, v.life, v.next, v.open = id, 0, 0, len(v.pieces)
	v.hole, v.broken = maxPieces, nil
	at := 0
	for i, b := range v.pieces {
		b.virtual, b.index, b.at = v, i, at
		at += len(b.buf.data)
	}
	return nil
}

// CancelVirtual asks for the pieces of a virtual buffer back that have not ended; see
// [Conn.CancelBuffer]. That of a piece asks for those behind it, too.
func (c *Conn) CancelVirtual(v *VirtualBuffer) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.cancelPiecesLocked(v, 0)
}

// cancelPiecesLocked asks for pieces back, from one on: the last one first, so that
// none is filled behind a hole.
func (c *Conn) cancelPiecesLocked(v *VirtualBuffer, from int) error {
	var errs []error
	for i := len(v.pieces) - 1; i >= from; i-- {
		b := v.pieces[i]
		switch {
		case !b.posted.Load() || b.conn.Load() != c || b.virtual != v: // it is over
		case b.given:
			errs = append(errs, b.cancelLocked())
		case b.cutLocked():
			c.endUserLocked(b, v.broken)
		default:
			c.endUserLocked(b, statusErr("read", abi.StatusCancelled))
		}
	}
	return c.opError("cancel", errors.Join(errs...))
}

// pieceLocked is how a request names the piece b: id and sequence number. Pieces are
// numbered anew where the connection has another id.
func (b *Buffer) pieceLocked(conn uint64) uint16 {
	v := b.virtual
	if v == nil {
		return 0
	}
	if v.life != conn {
		v.life, v.next = conn, 0
	}
	return uint16(v.id)<<8 | uint16(v.next)
}

// gaveLocked notes that the adapter has the piece.
func (b *Buffer) gaveLocked() {
	if b.virtual != nil {
		b.virtual.next++
	}
}

// cutLocked reports whether a piece before b ended before it was full.
func (b *Buffer) cutLocked() bool { return b.virtual != nil && b.index > b.virtual.hole }

// refusedLocked acts on the end of a piece: if the adapter has refused it, those
// behind it would wait for it there.
func (c *Conn) refusedLocked(v *VirtualBuffer, index int, s abi.Status) {
	if v != nil && (s == abi.StatusNoMemory || s >= abi.StatusBadType) {
		_ = c.cancelPiecesLocked(v, index+1) // an error means that a reset is about to end them
	}
}

// leftLocked notes that a piece has ended.
func (c *Conn) leftLocked(b *Buffer, err error) {
	v := b.virtual
	if v == nil {
		return
	}
	if int(b.buf.filled) < len(b.buf.data) && b.index < v.hole {
		if err == nil { // the adapter gave it back without a reason
			err = statusErr("read", abi.StatusAborted)
		}
		v.hole, v.broken = b.index, err
	}
	if v.open--; v.open == 0 {
		delete(c.virtuals, v.id)
	}
}
