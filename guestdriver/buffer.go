// SPDX-License-Identifier: Apache-2.0

package guestdriver

import (
	"fmt"
	"sync/atomic"

	"toebox/vdev/abi"
)

// maxPost is the largest buffer: 1 GiB.
const maxPost = 1 << 30

// Op is what a buffer was posted for.
type Op uint8

// Operations.
const (
	OpSend      Op = iota + 1 // [Conn.SendBuffer]
	OpReceive                 // [Conn.PostBuffer], [Conn.PostBufferSkip]
	OpPeek                    // [Conn.PeekBuffer]
	OpRedirect                // [Conn.PostRedirect]
	OpBroadcast               // [SendGroup.Send]
	OpGroup                   // [ReceiveGroup.Post]
)

// Buffer is a part of registered memory, posted as a whole. It belongs to the
// application or to the adapter, never to both:
//
//	          SendBuffer, PostBuffer, PeekBuffer
//	free ────────────────────────────> posted
//	 ^                                    │
//	 └── final completion, taken off its ─┘
//	     CompletionQueue
//
// Of a posted receive buffer the bytes that a completion has told of are the
// application's to read, the rest is the adapter's to write. A posted send may
// be read, not changed.
type Buffer struct {
	m     *Memory
	whole []byte // what it was made of; SetLen cuts buf.data
	buf   buffer // what requests name
	busy  atomic.Bool

	// Set by the post, while the buffer is nobody else's.
	conn atomic.Pointer[Conn]
	op   Op
	cq   *CompletionQueue // nil: a call waits

	posted atomic.Bool // it is the connection's; written under conn.mu

	// conn.mu protects these while the buffer is posted.
	cancel   cancelState
	terminal bool // its terminal response came, that of its cancellation not
	fetched  uint32
	status   abi.Status
	n        uint32
	lost     error // why there is no terminal response
	point    CompletionPoint
	over     bool // cq nil: ended
	send     SendOptions
	once     bool // the first bytes end it
	given    bool // of a receive: the adapter has it
	copied   bool // of a receive: bytes came from the driver's buffers

	// Of a receive; see virtual.go.
	fragment bool           // ReceiveOptions.Fragment
	virtual  *VirtualBuffer // that it is a piece of; nil: none
	index    int            // among the pieces
	at       int            // where it begins among their bytes

	// Of a receive, a peek, or a redirection; see peek.go.
	skip     uint32    // bytes to skip before
	skipped  uint32    // of these, those that were
	source   *Conn     // whose the last bytes were; nil: conn's own
	redirect *Redirect // what it is the place of; then it has no memory

	// Of a broadcast: sending is that which the buffer is on its way by; each
	// connection has a send for it, which cast and part are of.
	sending atomic.Pointer[broadcast]
	cast    *broadcast
	part    *castPart // nil: it was posted alone

	earlier, later *Buffer // in the list of receive buffers, of the connection or group

	// Of a post to a receive group, whose mu protects what follows.
	group     atomic.Pointer[ReceiveGroup]
	place     groupPlace
	withdrawn bool // Cancel or Close: it goes to the application as soon as it comes back

	// For the debug mode: see debug.go.
	since    atomic.Pointer[trace] // of the post
	sum      uint32                // of a send, at its post
	summed   int                   // bytes of the last post, if it was a send
	poisoned bool                  // of a receive: behind what was received

	// cq.mu protects these, conn.mu if there is no cq.
	queued bool
	next   *Buffer // in the queue
	from   *Conn   // of the bytes done and not told
	done   uint32  // bytes that the adapter said
	told   uint32  // of these, bytes that were taken off the queue
	ended  bool
	err    error
}

// cancelState is how far the cancellation of a posted buffer is.
type cancelState uint8

const (
	cancelNone     cancelState = iota
	cancelAsked                // the response is to come
	cancelAnswered             // it has come, or never will
)

// set makes b the n bytes at off of m.
func (b *Buffer) set(m *Memory, off, n int) {
	b.m = m
	b.whole = m.dma.Bytes[off : off+n : off+n]
	b.buf = buffer{data: b.whole, iova: m.dma.IOVA + uint64(off), user: b}
}

// Bytes returns the buffer's memory, as long as SetLen says.
func (b *Buffer) Bytes() []byte { return b.buf.data }

// Cap returns the length that the buffer was made with.
func (b *Buffer) Cap() int { return len(b.whole) }

// Memory returns the region that the buffer is a part of.
func (b *Buffer) Memory() *Memory { return b.m }

// SetLen makes the next post one of the first n bytes.
func (b *Buffer) SetLen(n int) error {
	if n <= 0 || n > len(b.whole) {
		return fmt.Errorf("guestdriver: length %d of a buffer of %d bytes: %w", n, len(b.whole), errMemory)
	}
	if !b.busy.CompareAndSwap(false, true) {
		return fmt.Errorf("guestdriver: set the length of a buffer: %w", b.refuse("SetLen"))
	}
	b.buf.data = b.whole[:n:n]
	b.busy.Store(false)
	return nil
}

// claim takes a free buffer for a post.
func (b *Buffer) claim(op Op, c *Conn, cq *CompletionQueue) error {
	if !b.busy.CompareAndSwap(false, true) {
		switch op {
		case OpSend:
			return b.refuse("SendBuffer")
		case OpPeek:
			return b.refuse("PeekBuffer")
		}
		return b.refuse("PostBuffer")
	}
	if b.m.a != c.lane().a {
		b.busy.Store(false)
		return errMemory
	}
	if !b.m.pin() {
		b.busy.Store(false)
		return errMemory
	}
	b.begin(op, c, cq)
	return nil
}

// begin resets what a post changes. The memory is pinned.
func (b *Buffer) begin(op Op, c *Conn, cq *CompletionQueue) {
	b.conn.Store(c)
	if b.op, b.cq = op, cq; cq != nil && c != nil {
		cq.lane.Store(c.lane())
	}
	b.cancel, b.terminal, b.lost, b.over = cancelNone, false, nil, false
	b.fetched, b.status, b.n = 0, abi.StatusOK, 0
	b.point = PointAcknowledged
	b.send = SendOptions{}
	b.once, b.given, b.copied, b.poisoned = false, false, false, false
	b.fragment, b.virtual = false, nil
	b.skip, b.skipped, b.source, b.from = 0, 0, nil, nil
	b.cast, b.part = nil, nil
	b.done, b.told, b.ended, b.err = 0, 0, false, nil
	b.buf.filled, b.buf.consumed, b.buf.parts, b.buf.final = 0, 0, 0, false
}

// unclaim undoes a claim whose post failed.
func (b *Buffer) unclaim() {
	b.unpin()
	b.cq = nil
	b.busy.Store(false)
}

// unpin lets the memory go, if it is some.
func (b *Buffer) unpin() {
	if b.redirect == nil {
		b.m.unpin()
	}
}

// endLocked ends the post: done bytes of it count. The buffer is not the
// driver's any more when it returns.
func (b *Buffer) endLocked(done uint32, err error) {
	c := b.conn.Load()
	b.posted.Store(false)
	b.unpin()
	if b.cq != nil {
		b.cq.push(b, done, true, err)
		return
	}
	b.done, b.err, b.over = done, err, true
	if b.op == OpSend {
		c.wcond.Broadcast()
	} else {
		c.rcond.Broadcast()
	}
}

// cancelLocked asks for a posted buffer back, once.
func (b *Buffer) cancelLocked() error {
	if b.cancel != cancelNone {
		return nil
	}
	c := b.conn.Load()
	r := request{kind: kindCancel}
	if b.op == OpSend {
		r.buf = &b.buf // its response counts
	}
	_, err := c.lane().start(r, abi.Fields{Type: abi.TypeCancellation, Conn: c.id.Load(), Offset: b.buf.tag}, true)
	if err == nil {
		b.cancel = cancelAsked
	}
	return err
}

// link puts b at the end of a list of receive buffers, which a lock of its owner protects.
func (b *Buffer) link(first, last **Buffer) {
	b.earlier, b.later = *last, nil
	if b.earlier == nil {
		*first = b
	} else {
		b.earlier.later = b
	}
	*last = b
}

// unlink takes b out of such a list.
func (b *Buffer) unlink(first, last **Buffer) {
	if b.earlier == nil {
		*first = b.later
	} else {
		b.earlier.later = b.later
	}
	if b.later == nil {
		*last = b.earlier
	} else {
		b.later.earlier = b.earlier
	}
}
