// SPDX-License-Identifier: Apache-2.0

package firmware

import "toebox/vdev/abi"

// reachOver lets the mover go on into the buffers behind r, which the first bytes
// go into, as far as a turn goes: those whose memory begins where that of the one
// before ends, and that nothing is to be decided about first (MM11, SPEC.md §14.3).
func (q *queue) reachOver(c *conn, r *request, most int) {
	m := &q.move
	m.into, m.own, m.apart = nil, m.left, false
	if r.conn != c || m.left < r.todo() || !r.simple(r.flags&abi.FlagSkip) || c.decides() {
		return
	}
	for last, next := r, r.next; next != nil && m.left < min(most, turnBytes); last, next = next, next.next {
		end := last.base + uint64(last.length)
		if end == 0 || next.base+uint64(next.offset) != end || !next.simple(0) {
			return
		}
		if q.check != nil {
			q.check.unchanged(next)
		}
		m.left += min(next.todo(), most-m.left)
		m.into = r
	}
}

// simple reports whether bytes go into r, which its turn has come to, as they come:
// it has none of the flags that say otherwise, but for those allowed.
func (r *request) simple(allowed abi.Flags) bool {
	return !r.special() && r.piece == 0 && r.flags&(abi.FlagSkip|abi.FlagFragment)&^allowed == 0
}

// decides reports whether something is asked of c at each of its buffers.
func (c *conn) decides() bool {
	return c.attrs.of(abi.AttrSkip)|c.attrs.of(abi.AttrDMAWhen) != 0 || c.attrs.of(abi.AttrPlacement) == placeAdaptive
}

// within is how many of n bytes go into one transfer.
func (m *mover) within(n int) int {
	if m.into != nil && m.apart {
		return min(n, m.own)
	}
	return n
}

// crosses reports whether the next n bytes are of more than one buffer.
func (m *mover) crosses(n int) bool { return m.into != nil && n > m.own }

// keepApart lets each buffer have transfers of its own: one cannot be written, and
// each has a result of its own. It returns how many bytes go into the next one.
func (m *mover) keepApart() int {
	m.apart = true
	return m.own
}

// pass goes on by n bytes, which were one transfer, and returns into how many buffers
// but the first they went.
func (m *mover) pass(n int) (more uint64) {
	for m.into != nil && n >= m.own {
		n -= m.own
		m.own = 0
		if m.into = m.into.next; m.into != nil {
			m.own = m.into.todo()
		}
		if n > 0 {
			more++
		}
	}
	m.own -= n
	return more
}
