// SPDX-License-Identifier: Apache-2.0

package guestdrivertest

import (
	"slices"

	"toebox/vdev/abi"
)

// special are the flags of what is no buffer that received bytes go into.
const special = abi.FlagPeek | abi.FlagRedirect

// back answers a receive buffer, a peek or a redirection that ends without bytes.
func (b *posted) back(s abi.Status) abi.Fields {
	a := Answer(b.f, abi.TypeBufferDone, s)
	a.Base, a.Offset = b.f.Base, b.filled
	switch {
	case b.f.Flags&abi.FlagRedirect != 0:
		a.Length, a.Offset = b.filled, b.skipped
	case b.f.Flags&abi.FlagSkip != 0 && b.filled == 0:
		a.Offset = b.skipped
	}
	return a
}

// availableLocked posts a buffer, a peek or a redirection on a connection.
func (f *Fake) availableLocked(c *conn, r abi.Fields) {
	b := posted{f: r}
	if r.Flags&(abi.FlagSkip|abi.FlagRedirect) == 0 {
		b.filled = r.Offset
	}
	if r.Flags&abi.FlagRedirect != 0 && (f.conns[r.Base] == nil || f.conns[r.Base].q != c.q) {
		f.answerLocked(c.q, b.back(abi.StatusBadConnection))
		return
	}
	c.bufs = append(c.bufs, b)
}

// takeLocked takes n bytes off the inbox.
func (c *conn) takeLocked(n int) {
	c.inbox = c.inbox[n:]
	c.shown -= min(c.shown, n)
}

// deliverLocked serves the first buffer of a connection that has received
// something. It reports false when the bytes wait.
func (f *Fake) deliverLocked(c *conn) bool {
	b := &c.bufs[0]
	if b.f.Flags&abi.FlagSkip != 0 && b.skipped < b.f.Offset {
		n := min(len(c.inbox), int(b.f.Offset-b.skipped))
		b.skipped += uint32(n)
		c.takeLocked(n)
		return true
	}
	switch {
	case b.f.Flags&abi.FlagPeek != 0:
		return f.peekLocked(c, b)
	case b.f.Flags&abi.FlagRedirect != 0:
		return f.redirectLocked(c, b)
	}
	_, done := f.fillLocked(c, b, len(c.inbox))
	if done {
		c.bufs = c.bufs[1:]
	}
	return true
}

// fillLocked moves bytes of c, at most so many, into a buffer of c or of another
// connection.
func (f *Fake) fillLocked(c *conn, b *posted, most int) (n int, done bool) {
	a := Answer(b.f, abi.TypeBufferReceive, abi.StatusOK)
	n = copy(f.bytesLocked(b.f.Base+uint64(b.filled), int(b.f.Length-b.filled)), c.inbox[:min(most, len(c.inbox))])
	a.Base, a.Length, a.Offset, a.Conn = b.f.Base, uint32(n), b.filled, c.id
	c.takeLocked(n)
	b.filled += uint32(n)
	if done = b.filled == b.f.Length || b.f.Flags&abi.FlagOnce != 0; !done {
		a.Flags = 0
	}
	if b.f.Conn != c.id {
		a.Flags |= abi.FlagRedirect
	}
	f.answerLocked(c.q, a)
	return n, done
}

// peekLocked shows bytes, unless all that there are were shown: then it waits, for
// ever.
func (f *Fake) peekLocked(c *conn, b *posted) bool {
	room := int(b.f.Length)
	if len(c.inbox) <= c.shown && len(c.inbox) < room && !c.finIn {
		return false
	}
	a := Answer(b.f, abi.TypeBufferReceive, abi.StatusOK)
	n := copy(f.bytesLocked(b.f.Base, room), c.inbox)
	a.Flags |= abi.FlagPeek
	a.Base, a.Length = b.f.Base, uint32(n)
	c.shown = max(c.shown, n)
	c.bufs = c.bufs[1:]
	f.answerLocked(c.q, a)
	return true
}

// redirectLocked moves bytes to the buffers of another connection.
func (f *Fake) redirectLocked(c *conn, b *posted) bool {
	d := f.conns[b.f.Base]
	if d == nil || d.finTold || d.noReceive {
		f.answerLocked(c.q, b.back(abi.StatusClosed))
		c.bufs = c.bufs[1:]
		return true
	}
	i := slices.IndexFunc(d.bufs, func(p posted) bool { return p.f.Flags&(special|abi.FlagSkip) == 0 })
	if i < 0 {
		return false
	}
	n, done := f.fillLocked(c, &d.bufs[i], int(b.f.Length-b.filled))
	if done {
		d.bufs = slices.Delete(d.bufs, i, i+1)
	}
	if b.filled += uint32(n); b.filled == b.f.Length {
		f.answerLocked(c.q, b.back(abi.StatusOK))
		c.bufs = c.bufs[1:]
	}
	return true
}
