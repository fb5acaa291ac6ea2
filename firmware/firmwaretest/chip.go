// SPDX-License-Identifier: Apache-2.0

package firmwaretest

import (
	"errors"
	"sync"
	"sync/atomic"

	"toebox/vdev/abi"
)

// Base is the address of the first byte of a chip's memory.
const Base = 0x4000_0000

// maxPiece is the largest piece that View hands out.
const maxPiece = 64 << 10

// ErrFault is what accesses to unmapped memory return.
var ErrFault = errors.New("firmwaretest: not mapped")

// Chip implements firmware.Chip over heap memory at [Base].
type Chip struct {
	mem  []byte
	page uint64 // pieces end at multiples of it

	signals [abi.NumVectors]atomic.Uint64
	events  atomic.Uint32
	wake    chan struct{}
	views   atomic.Uint64
	reads   atomic.Uint64
	writes  atomic.Uint64

	onView atomic.Pointer[func(iova uint64, n int, write bool)]

	mu    sync.RWMutex // held for reading while memory is accessed
	holes [][2]uint64  // [from, to)
	fixed [][2]uint64  // read-only, for Write
	next  uint64       // of Alloc
	maps  uint64       // Unmaps and MapAlls
}

// NewChip makes a chip with size bytes of memory, which View hands out in
// pieces that end at multiples of page, a power of two of at least 32.
func NewChip(size int, page uint64) *Chip {
	return &Chip{mem: make([]byte, size), page: page, next: Base, wake: make(chan struct{}, 1)}
}

// Alloc returns the address of n bytes that nobody else gets, aligned to a
// multiple of align. It panics when memory is used up.
func (c *Chip) Alloc(n int, align uint64) uint64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	a := (c.next + align - 1) &^ (align - 1)
	c.next = a + uint64(n)
	if c.next > Base+uint64(len(c.mem)) {
		panic("firmwaretest: out of memory")
	}
	return a
}

// Bytes is the memory [iova, iova+n).
func (c *Chip) Bytes(iova uint64, n int) []byte {
	off := iova - Base
	return c.mem[off : off+uint64(n) : off+uint64(n)]
}

// Unmap makes accesses to [iova, iova+n) fail. When it returns none is under
// way.
func (c *Chip) Unmap(iova, n uint64) {
	c.mu.Lock()
	c.holes = append(c.holes, [2]uint64{iova, iova + n})
	c.maps++
	c.mu.Unlock()
}

// ReadOnly makes Write to [iova, iova+n) fail.
func (c *Chip) ReadOnly(iova, n uint64) {
	c.mu.Lock()
	c.fixed = append(c.fixed, [2]uint64{iova, iova + n})
	c.mu.Unlock()
}

// MapAll undoes all Unmaps.
func (c *Chip) MapAll() {
	c.mu.Lock()
	c.holes = nil
	c.maps++
	c.mu.Unlock()
}

func (c *Chip) mappedLocked(iova, n uint64) bool {
	if iova < Base || n > uint64(len(c.mem)) || iova-Base > uint64(len(c.mem))-n {
		return false
	}
	return !overlaps(c.holes, iova, n)
}

func overlaps(areas [][2]uint64, iova, n uint64) bool {
	for _, a := range areas {
		if iova < a[1] && a[0] < iova+n {
			return true
		}
	}
	return false
}

// Read implements firmware.Chip.
func (c *Chip) Read(iova uint64, p []byte) error {
	c.mu.RLock()
	defer c.mu.RUnlock()
	c.reads.Add(1)
	if !c.mappedLocked(iova, uint64(len(p))) {
		return ErrFault
	}
	copy(p, c.Bytes(iova, len(p)))
	return nil
}

// Write implements firmware.Chip.
func (c *Chip) Write(iova uint64, p []byte) error {
	c.mu.RLock()
	defer c.mu.RUnlock()
	c.writes.Add(1)
	if !c.mappedLocked(iova, uint64(len(p))) || overlaps(c.fixed, iova, uint64(len(p))) {
		return ErrFault
	}
	copy(c.Bytes(iova, len(p)), p)
	return nil
}

// OnView calls f at the start of each View, on the caller's goroutine; nil
// ends that.
func (c *Chip) OnView(f func(iova uint64, n int, write bool)) {
	if f == nil {
		c.onView.Store(nil)
		return
	}
	c.onView.Store(&f)
}

// View implements firmware.Chip.
func (c *Chip) View(iova uint64, n int, write bool, f func([]byte) error) error {
	if hook := c.onView.Load(); hook != nil {
		(*hook)(iova, n, write)
	}
	c.mu.RLock()
	defer c.mu.RUnlock()
	c.views.Add(1)
	for n > 0 {
		k := min(uint64(n), maxPiece, c.page-iova%c.page)
		if !c.mappedLocked(iova, k) {
			return ErrFault
		}
		if err := f(c.Bytes(iova, int(k))); err != nil {
			return err
		}
		iova += k
		n -= int(k)
	}
	return nil
}

// Shared implements firmware.Chip.
func (c *Chip) Shared(iova, n uint64) bool {
	c.mu.RLock()
	defer c.mu.RUnlock()
	return c.mappedLocked(iova, n)
}

// Mapping implements firmware.Chip.
func (c *Chip) Mapping(iova, n uint64) uint64 {
	c.mu.RLock()
	defer c.mu.RUnlock()
	if !c.mappedLocked(iova, n) {
		return 0
	}
	return 1 + c.maps
}

// Signal implements firmware.Chip.
func (c *Chip) Signal(vector int) {
	c.signals[vector].Add(1)
	c.poke()
}

// Event implements firmware.Chip.
func (c *Chip) Event(bits uint32) {
	c.events.Or(bits)
	c.poke()
}

func (c *Chip) poke() {
	select {
	case c.wake <- struct{}{}:
	default:
	}
}

// Wake has a token after an interrupt or event.
func (c *Chip) Wake() <-chan struct{} { return c.wake }

// Signals is how often a vector was signalled.
func (c *Chip) Signals(vector int) uint64 { return c.signals[vector].Load() }

// Events are all bits set so far.
func (c *Chip) Events() uint32 { return c.events.Load() }

// Accesses counts the calls of View, Read and Write.
func (c *Chip) Accesses() (views, reads, writes uint64) {
	return c.views.Load(), c.reads.Load(), c.writes.Load()
}
