// SPDX-License-Identifier: Apache-2.0

package abi

// Event block of a queue (SPEC.md §4.4).
const (
	EventBlockSize    = 256
	EventInPublished  = 0x00 // written by the adapter
	EventOutPublished = 0x40 // written by the host
	EventInFreed      = 0x80 // written by the host
	EventOutFreed     = 0xc0 // written by the adapter
)

// Index is a free-running slot counter modulo 2^30 (SPEC.md §4.1).
type Index uint32

// IndexMask keeps an index modulo 2^30.
const IndexMask = 1<<30 - 1

// Add returns i + n modulo 2^30.
func (i Index) Add(n int) Index { return Index(uint32(int64(i)+int64(n)) & IndexMask) }

// Sub returns how many slots i is ahead of j, modulo 2^30.
func (i Index) Sub(j Index) uint32 { return (uint32(i) - uint32(j)) & IndexMask }

// Slot returns the slot of a table of 1<<log2 slots.
func (i Index) Slot(log2 uint) int { return int(uint32(i) & (1<<log2 - 1)) }

// EventWord asks the other side to tell, or not to (SPEC.md §4.4).
type EventWord uint32

// Event words that name no index.
const (
	EventNever  EventWord = 0
	EventAlways EventWord = 2 << 30
)

// EventAt asks to be told when the slot with index i is done.
func EventAt(i Index) EventWord { return EventWord(1<<30 | uint32(i)&IndexMask) }

// Wants reports whether a producer that went from old to next tells.
func (e EventWord) Wants(old, next Index) bool {
	if old == next {
		return false
	}
	switch e >> 30 {
	case 0:
		return false
	case 1:
		return next.Sub(Index(uint32(e)&IndexMask).Add(1)) < next.Sub(old)
	}
	return true
}
