// SPDX-License-Identifier: Apache-2.0

package guestdriver

import (
	"context"
	"sync"
	"sync/atomic"
)

// Completion says what became of a posted [Buffer].
type Completion struct {
	Buffer   *Buffer   // nil of a redirection, and of the end of a [ReceiveGroup]'s member
	Redirect *Redirect // nil of a buffer
	Conn     *Conn     // where it was posted; of a ReceiveGroup: whose the bytes are, nil if there are none
	Op       Op
	// Of a receive the N bytes at Offset of the buffer are new. Of a send N
	// bytes of it, from its beginning, are in the stream: all of them if Err is
	// nil, a part of them if it was cancelled or failed. Of a peek N bytes were copied, of a redirection N
	// bytes were delivered to the other connection.
	Offset, N int
	// Point is how far those of a send are, as the adapter says (MM14): by
	// SendPolicy.Complete, but PointRead where it was cancelled. After a fail-over,
	// for which the driver has copied what the peer may not have, it is PointRead, too.
	Point CompletionPoint
	// From is whose the N bytes of a receive are, when they were redirected to
	// Conn; nil: its own, or those of several connections.
	From *Conn
	// Virtual is what Buffer is a piece of, or nil; At is where in it the N bytes
	// begin.
	Virtual *VirtualBuffer
	At      int
	// Skipped, with Final, is how many bytes of the stream were skipped before.
	Skipped int
	// Final: the buffer is free again. Of a broadcast it is with the last completion,
	// of which there is one for each connection.
	Final bool
	// Err of a receive buffer is io.EOF at the end of the stream, and, as of a
	// send, net.ErrClosed after Close, ErrReset after a reset of the adapter,
	// or unwraps to the errno that package net would give.
	Err error
}

// CompletionQueue collects the completions of posted buffers, of any number of
// connections, in the order in which they happened; what was told of one buffer
// and not yet taken is one completion. So it has a place for every buffer, never
// overflows and allocates nothing. It is safe for concurrent use.
type CompletionQueue struct {
	wake chan struct{}        // one token: look
	lane atomic.Pointer[lane] // of the last buffer posted

	mu         sync.Mutex
	head, tail *Buffer
}

// NewCompletionQueue returns an empty queue.
func NewCompletionQueue() *CompletionQueue {
	return &CompletionQueue{wake: make(chan struct{}, 1)}
}

// push tells that done bytes of the buffer count now. With final b must not be
// touched afterwards.
func (q *CompletionQueue) push(b *Buffer, done uint32, final bool, err error) {
	q.mu.Lock()
	switch {
	case done == b.done:
	case b.told == b.done:
		b.from = b.source
	case b.from != b.source:
		b.from = nil
	}
	b.done, b.ended, b.err = done, final, err
	if !b.queued {
		b.queued, b.next = true, nil
		if q.tail == nil {
			q.head = b
		} else {
			q.tail.next = b
		}
		q.tail = b
	}
	q.mu.Unlock()
	q.signal()
}

func (q *CompletionQueue) signal() {
	select {
	case q.wake <- struct{}{}:
	default:
	}
}

// Poll takes up to len(dst) completions off the queue and returns how many. It
// never waits.
func (q *CompletionQueue) Poll(dst []Completion) int {
	q.mu.Lock()
	defer q.mu.Unlock()
	n := 0
	for n < len(dst) && q.head != nil {
		b := q.head
		if q.head = b.next; q.head == nil {
			q.tail = nil
		}
		b.queued, b.next = false, nil
		d := Completion{
			Buffer: b, Redirect: b.redirect, Conn: b.conn.Load(), Op: b.op,
			Offset: int(b.told), N: int(b.done - b.told), Final: b.ended, Err: b.err,
		}
		if b.m == nil {
			d.Buffer = nil
		}
		if b.virtual != nil {
			d.Virtual, d.At = b.virtual, b.at+d.Offset
		}
		if x := b.cast; x != nil {
			d.Buffer, d.Op = x.b, OpBroadcast
			d.Final = x.told()
		}
		if d.N > 0 {
			d.From = b.from
			d.Point = b.point
		}
		b.told = b.done
		if b.ended {
			d.Skipped = int(b.skipped)
			b.cq = nil
			b.busy.Store(false)
		}
		dst[n] = d
		n++
	}
	return n
}

// Wait returns when there is something to take.
func (q *CompletionQueue) Wait(ctx context.Context) error {
	var v vigil
	defer v.end()
	for {
		q.mu.Lock()
		some := q.head != nil
		q.mu.Unlock()
		if some {
			q.signal() // others may wait as well
			return nil
		}
		if ln := q.lane.Load(); ln != nil && ctx.Err() == nil && v.look(ln, nil) {
			continue
		}
		select {
		case <-q.wake:
			v.woke()
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// Next takes one completion, waiting for it.
func (q *CompletionQueue) Next(ctx context.Context) (Completion, error) {
	var one [1]Completion
	for q.Poll(one[:]) == 0 {
		if err := q.Wait(ctx); err != nil {
			return Completion{}, err
		}
	}
	return one[0], nil
}
