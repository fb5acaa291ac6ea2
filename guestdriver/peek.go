// SPDX-License-Identifier: Apache-2.0

package guestdriver

import (
	"errors"
	"math"
	"os"
	"syscall"
	"time"

	"toebox/vdev/abi"
)

// Looking at bytes before it is said where they go (RX13, RX14, SPEC.md §14.11
// and §14.12). Peeks and redirections stand among the connection's receive
// buffers and have their turn in the order of the posts:
//
//	PeekBuffer ── a copy of the first bytes ──> the application decides
//	                                               │
//	    ┌── PostBufferSkip: into its own memory ───┤
//	    └── PostRedirect: into buffers of another ─┘
//
// The adapter shows and redirects what it holds. So nothing may be read ahead:
// a connection takes them after SetReadAhead(false), while the driver holds no
// bytes of it. Where it comes to hold some later, because a stop handed them over
// with the connection, or a Read took more than it returned, those that follow end
// with ErrReadAhead, and what is held is for Read, or for the buffers posted behind.

// Redirect has the next N bytes of a connection, behind Skip bytes that nobody
// gets, go to another one: into the buffers that are posted on To, its
// application's or the driver's own, as if they were its bytes. To is one of the
// same queue pair ([Dialer.Near]).
//
// The fields must not change while it is posted, and a Redirect must not be copied.
type Redirect struct {
	To      *Conn
	N, Skip int

	place  Buffer // among the buffers of the connection; filled counts bytes delivered
	to     *Conn
	n      uint32
	before uint32 // bytes delivered before the adapter got it last
}

// source is a connection whose redirection waits for its destination.
type source struct {
	c    *Conn
	next *source
}

// errAway says that the destination of a redirection is being carried over.
var errAway = errors.New("guestdriver: destination is carried over")

func badLengths() error { return os.NewSyscallError("read", syscall.EINVAL) }

// PostBufferSkip is [Conn.PostBuffer] for what comes behind the next skip bytes,
// which nobody gets (RX14): more of them than have arrived, if need be.
func (c *Conn) PostBufferSkip(b *Buffer, skip int, q *CompletionQueue) error {
	return c.postSkipping(b, OpReceive, ReceiveOptions{Skip: skip}, q)
}

// PeekBuffer posts a buffer for a copy of what comes next, behind skip bytes that
// nobody gets: as much as there is and the buffer takes. The bytes stay, for what is
// posted next. A further peek at the same bytes waits for more of them than the
// last one showed, for a while ([Conn.SetPeekWait]).
//
// It needs SetReadAhead(false); with bytes in the driver's buffers ([Conn.Buffered])
// it ends with [ErrReadAhead].
func (c *Conn) PeekBuffer(b *Buffer, skip int, q *CompletionQueue) error {
	return c.postSkipping(b, OpPeek, ReceiveOptions{Skip: skip}, q)
}

func (c *Conn) postSkipping(b *Buffer, op Op, o ReceiveOptions, q *CompletionQueue) error {
	if uint64(o.Skip) > math.MaxUint32 {
		return c.opError("read", badLengths())
	}
	if err := b.claim(op, c, q); err != nil {
		return c.opError("read", err)
	}
	b.skip, b.fragment = uint32(o.Skip), o.Fragment
	return c.queueBuffer(b)
}

// PostRedirect posts a redirection; q gets its one completion when it is over. Those
// of the buffers that the bytes come into go where these were posted to. Err unwraps
// to ETIMEDOUT when To had no buffer for longer than SetPeekWait says, is
// net.ErrClosed when To ended; what is left of the bytes is then for what was posted
// behind it. What [Conn.PeekBuffer] needs it needs, too.
func (c *Conn) PostRedirect(r *Redirect, q *CompletionQueue) error {
	if r.To == nil || r.To == c || r.N <= 0 || uint64(r.N) > math.MaxUint32 || uint64(r.Skip) > math.MaxUint32 {
		return c.opError("read", badLengths())
	}
	if r.To.lane() != c.lane() {
		return c.opError("read", ErrOtherQueue)
	}
	b := &r.place
	if !b.busy.CompareAndSwap(false, true) {
		return c.opError("read", ErrBusy)
	}
	r.to, r.n, r.before = r.To, uint32(r.N), 0
	b.redirect, b.buf.user = r, b
	b.begin(OpRedirect, c, q)
	b.skip = uint32(r.Skip)
	err := c.queueBuffer(b)
	if err == nil {
		c.lane().a.host.redirects.Add(1)
	}
	return err
}

// CancelRedirect is [Conn.CancelBuffer] for a redirection.
func (c *Conn) CancelRedirect(r *Redirect) error { return c.CancelBuffer(&r.place) }

// SetPeekWait sets how long bytes that were shown wait for an answer, a further peek
// for more bytes, and a redirection for a buffer: 5 ms at first.
func (c *Conn) SetPeekWait(d time.Duration) error {
	return c.set(abi.AttrPeekWait, uint64(max(0, d)))
}

// answers reports whether b is a peek or a redirection.
func (b *Buffer) answers() bool { return b.op == OpPeek || b.op == OpRedirect }

// skipHeldLocked takes what b is to skip off what the driver's buffers hold.
func (c *Conn) skipHeldLocked(b *Buffer) {
	for len(c.segs) > 0 && b.skipped < b.skip {
		k := min(b.skip-b.skipped, c.segs[0].n)
		c.consumeLocked(int(k))
		b.skipped += k
		c.lane().a.host.skipped.Add(uint64(k))
	}
}

// skippedLocked notes what was skipped before a buffer that ends without a byte,
// or before a redirection.
func (c *Conn) skippedLocked(b *Buffer, f *abi.Fields) {
	if f.Type == abi.TypeRejected || b.op != OpRedirect && b.buf.filled > 0 {
		return
	}
	n := min(f.Offset, b.skip-b.skipped)
	b.skipped += n
	c.lane().a.host.skipped.Add(uint64(n))
}

// unfit reports whether a response that ends b says what cannot be.
func (b *Buffer) unfit(r *request, f *abi.Fields) bool {
	if r.kind != kindReceive && r.kind != kindRedirect || f.Type == abi.TypeRejected {
		return false
	}
	c := b.conn.Load()
	c.mu.Lock()
	defer c.mu.Unlock()
	left := b.skip - b.skipped
	if r.kind == kindRedirect {
		return f.Length != b.buf.filled-b.redirect.before || f.Offset > left
	}
	return left > 0 && f.Offset > left
}

// tells reports whether a status with which b ends is one of the connection.
func (b *Buffer) tells(s abi.Status) bool {
	switch {
	case b.virtual != nil && s == abi.StatusNoMemory: // for the virtual buffer
		return false
	case !b.answers(), s == abi.StatusEndOfStream, s == abi.StatusReset:
		return true
	}
	return b.op == OpPeek && s == abi.StatusTimedOut
}

// isRedirected reports whether a response tells of bytes of another connection than
// the buffer's.
func isRedirected(f *abi.Fields) bool {
	return f.Type == abi.TypeBufferReceive && f.Flags&abi.FlagRedirect != 0
}

// redirected acts on bytes that another connection's redirection brought into a
// buffer of r's. It returns false, and changes nothing, when they cannot be that.
func (ln *lane) redirected(r *request, f *abi.Fields, final bool) bool {
	d, _ := r.conn.(*Conn)
	c, _ := ln.a.conn(f.Conn).(*Conn)
	if r.kind != kindReceive || d == nil || c == nil || c == d || c.lane() != ln {
		ln.a.bad.conn.Add(1)
		return false
	}
	b := c.redirection(d)
	switch {
	case b == nil:
		ln.a.bad.conn.Add(1)
		return false
	// filled changes by responses only, which the caller's lock orders.
	case f.Length == 0, f.Length > b.redirect.n-b.buf.filled, !d.receivedFrom(c, f, r.buf, final):
		ln.a.bad.length.Add(1)
		return false
	}
	c.mu.Lock()
	b.buf.filled += f.Length
	c.mu.Unlock()
	ln.a.host.redirected.Add(uint64(f.Length))
	return true
}

// redirection is the one of c under way that goes to d, or nil.
func (c *Conn) redirection(d *Conn) *Buffer {
	c.mu.Lock()
	defer c.mu.Unlock()
	for b := c.userFirst; b != nil && b.given; b = b.later {
		if b.op == OpRedirect && b.redirect.to == d {
			return b
		}
	}
	return nil
}

// destinationLocked returns the id of the destination of a redirection of c.
func (c *Conn) destinationLocked(d *Conn) (uint64, error) {
	if d.away.Load() {
		if c.awaits != d {
			c.awaits = d
			s := &source{c: c, next: d.sources.Load()}
			for !d.sources.CompareAndSwap(s.next, s) {
				s.next = d.sources.Load()
			}
		}
		if d.away.Load() { // else wakeSources may have been before it
			return 0, errAway
		}
	}
	if d.lane() != c.lane() {
		return 0, ErrOtherQueue
	}
	return d.id.Load(), nil
}

// wakeSources has redirections to c that waited for it go on, or end. The caller
// holds no lock of a connection.
func (c *Conn) wakeSources() {
	for s := c.sources.Swap(nil); s != nil; s = s.next {
		s.c.mu.Lock()
		if s.c.awaits == c {
			s.c.awaits = nil
		}
		s.c.advanceLocked()
		s.c.mu.Unlock()
	}
}
