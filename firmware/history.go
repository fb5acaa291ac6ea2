// SPDX-License-Identifier: Apache-2.0

package firmware

import (
	"encoding/binary"
	"math/bits"
)

// historyMost is how many transfers are remembered at most (SPEC.md §7, bounds).
const historyMost = 256

// history are the last transfers of a connection: which of them found a buffer
// of the connection or of its group (SPEC.md §14.2).
type history struct {
	ring [historyMost]uint64 // policy time << 1 | found
	next int                 // place of the next transfer
	n    int
}

// add remembers a transfer.
func (h *history) add(now uint64, found bool) {
	e := now << 1
	if found {
		e |= 1
	}
	h.ring[h.next] = e
	h.next = (h.next + 1) % historyMost
	h.n = min(h.n+1, historyMost)
}

// at returns the i-th newest transfer.
func (h *history) at(i int) (when uint64, found bool) {
	e := h.ring[(h.next-1-i+2*historyMost)%historyMost]
	return e >> 1, e&1 != 0
}

// historyRule is what the attributes say of a history.
type historyRule struct {
	count     uint64 // HISTORY_COUNT
	span      uint64 // HISTORY_TIME, ns; 0: by count
	threshold uint64 // percent
	reduce    bool   // HISTORY_MODE
	wait      uint64 // BUFFER_WAIT, ns
}

// window is how many transfers count now, and how many of them found a buffer.
func (h *history) window(r *historyRule, now uint64) (n, found uint64) {
	for i := range h.n {
		when, ok := h.at(i)
		if r.span == 0 && n == r.count || r.span != 0 && now-when > r.span {
			break
		}
		n++
		if ok {
			found++
		}
	}
	return n, found
}

// patience is how long bytes wait that find no buffer now.
func (h *history) patience(r *historyRule, now uint64) uint64 {
	n, found := h.window(r, now)
	share, threshold := 100*found, r.threshold*n
	switch {
	case share >= threshold: // also without any history
		return r.wait
	case !r.reduce:
		return 0
	}
	// share < threshold: the quotient is less than the wait.
	hi, lo := bits.Mul64(r.wait, share)
	ns, _ := bits.Div64(hi, lo, threshold)
	return ns
}

// value is that of HISTORY.
func (h *history) value(r *historyRule, now uint64) []byte {
	n, found := h.window(r, now)
	le := binary.LittleEndian
	b := make([]byte, 0, 16+8*n)
	b = le.AppendUint32(b, uint32(n))
	b = le.AppendUint32(b, uint32(found))
	b = le.AppendUint64(b, h.patience(r, now))
	for i := int(n) - 1; i >= 0; i-- {
		when, ok := h.at(i)
		if ok {
			when |= 1 << 63
		}
		b = le.AppendUint64(b, when)
	}
	return b
}
