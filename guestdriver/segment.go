// SPDX-License-Identifier: Apache-2.0

package guestdriver

import "sync/atomic"

// Segment is received bytes where they are in DMA memory, lent to one consumer.
// Several share them by a segment each (Retain). When all have released theirs,
// and all of the buffer was read, the buffer is posted again (MM15).
//
// Consumers must not change the bytes. A segment is used by one goroutine at a
// time.
type Segment struct {
	c     *Conn
	buf   *buffer
	bytes []byte
	over  atomic.Bool
	since atomic.Pointer[trace] // of the release, in the debug mode
	next  *Segment              // in the connection's list of those to use again
}

// ReadSegment waits for data and lends it as it is, without a copy, except of a
// connection whose [Pool] copies: as many bytes as stand in one buffer.
func (c *Conn) ReadSegment() (*Segment, error) {
	c.rdMu.Lock()
	defer c.rdMu.Unlock()
	c.mu.Lock()
	defer c.mu.Unlock()
	c.readAheadLocked()
	for {
		s, err := c.nextLocked()
		if err != nil {
			return nil, c.opError("read", err)
		}
		if p := c.pool; p.copies() {
			if buf := p.take(c); buf != nil {
				return c.copiedLocked(buf), nil
			}
			c.rcond.Wait() // a consumer's last release wakes it
			continue
		}
		seg := c.lendSegmentLocked(s.buf, s.buf.data[s.off:s.off+s.n])
		c.lane().a.host.direct.Add(uint64(s.n))
		c.consumeLocked(int(s.n))
		c.advanceLocked()
		return seg, nil
	}
}

// copiedLocked moves what the driver's buffers hold to a shared one and lends
// that. There is something.
func (c *Conn) copiedLocked(buf *buffer) *Segment {
	n := 0
	for len(c.segs) > 0 && n < len(buf.data) {
		s := c.segs[0]
		k := copy(buf.data[n:], s.buf.data[s.off:s.off+s.n])
		n += k
		c.consumeLocked(k)
	}
	c.lane().a.host.copied.Add(uint64(n))
	buf.filled, buf.consumed, buf.final = uint32(n), uint32(n), true
	c.bufs++ // recycleLocked takes it back
	seg := c.lendSegmentLocked(buf, buf.data[:n])
	c.advanceLocked()
	return seg
}

// lendSegmentLocked lends bytes of a buffer.
func (c *Conn) lendSegmentLocked(buf *buffer, p []byte) *Segment {
	s := c.spare
	if s != nil {
		c.spare = s.next
		s.next = nil
	} else {
		s = &Segment{c: c}
	}
	s.buf, s.bytes = buf, p[:len(p):len(p)]
	s.over.Store(false)
	buf.lent++
	return s
}

// Bytes returns the bytes; nil when the segment was released.
func (s *Segment) Bytes() []byte {
	if s.over.Load() {
		return nil
	}
	return s.bytes
}

// Conn returns the connection that received the bytes.
func (s *Segment) Conn() *Conn { return s.c }

// Retain lends the bytes to one more consumer.
func (s *Segment) Retain() (*Segment, error) {
	s.c.mu.Lock()
	defer s.c.mu.Unlock()
	if s.over.Load() {
		return nil, s.misused("retain")
	}
	return s.c.lendSegmentLocked(s.buf, s.bytes), nil
}

// Release ends the consumer's use of the bytes. A second time it is an error,
// [ErrReleased], and nothing else; the debug mode never fails to see that.
func (s *Segment) Release() error {
	c := s.c
	c.mu.Lock()
	if s.over.Swap(true) {
		c.mu.Unlock()
		return s.misused("release")
	}
	buf := s.buf
	debug := c.lane().a.debugging()
	if debug {
		s.since.Store(newTrace())
	}
	s.buf, s.bytes = nil, nil
	if !debug {
		s.next, c.spare = c.spare, s
	}
	buf.lent--
	pool := buf.pool
	c.recycleLocked(buf)
	c.advanceLocked()
	c.mu.Unlock()
	if pool != nil {
		pool.wake()
	}
	return nil
}

func (s *Segment) misused(call string) error {
	a := s.c.lane().a
	if !a.debugging() {
		return ErrReleased
	}
	return a.mistake(&OwnershipError{Mistake: call + " of a released segment", Offset: -1, Since: s.since.Load().String(), err: ErrReleased})
}
