// SPDX-License-Identifier: Apache-2.0

package guestdriver

import (
	"fmt"
	"sync"
)

// Size classes of DMA buffers: 1, 4, 16, 64, 256 KiB.
const (
	numClasses = 5
	// reserveClass is a class of its own, of the smallest size, whose blocks
	// are the reserve.
	reserveClass = numClasses
	uncut        = numClasses + 1 // of a block: no class
	minPiece     = 1 << 10
	blockSize    = 256 << 10 // a block is cut into pieces of one class
	chunkSize    = 1 << 20   // what is taken from the bus at a time
)

func classSize(class int) int {
	if class == reserveClass {
		return minPiece
	}
	return minPiece << (2 * class)
}

// classFor returns the smallest class that holds n bytes, or the largest.
func classFor(n int) int {
	for c := range numClasses {
		if n <= classSize(c) {
			return c
		}
	}
	return numClasses - 1
}

// buffer is a piece of DMA memory. Who holds the pointer owns it; the receive
// fields are under the connection's lock.
type buffer struct {
	data  []byte
	iova  uint64
	block *block
	next  *buffer // in the block's free list
	user  *Buffer // whose memory this is; nil: an arena's
	tag   uint32  // of the request that posted it

	recalled bool // the driver has asked for it back
	lent     int  // segments of it that consumers have

	pool     *Pool  // that it belongs to; nil: none
	lane     int    // of a pool: whose connections it is for
	released *trace // of a pool, in the debug mode: by whom

	filled   uint32 // bytes the adapter reported, from the start
	consumed uint32 // of these, bytes that the reader has taken
	parts    uint32 // responses that reported them
	final    bool   // the adapter will not write any more
	err      error  // result of the send of a datagram
}

// block is blockSize bytes of one class, or of none yet.
type block struct {
	arena      *arena
	mem        []byte
	iova       uint64
	class      int
	pieces     []buffer
	free       *buffer
	used       int
	prev, next *block // in the class's list of blocks with free pieces
}

// arena hands out DMA memory up to a limit. It grows by chunks, and shrinks
// only when the bus is closed.
//
// A share of it is a reserve of pieces of 1 KiB that only reserved allocations
// may use: whoever holds nothing can always get one, as long as there are not
// more holders than reserve pieces, for which Adapter.maxConns sees. Nobody
// therefore waits for memory that others hold, and no wait of one connection
// can depend on the reader of another.
type arena struct {
	bus     Bus
	limit   int // in blocks
	reserve int // in blocks

	mu      sync.Mutex
	blocks  int // taken from the bus
	kept    int // blocks that the reserve has
	partial [numClasses + 1]*block
	// Blocks of which nothing is handed out, by the class that they are cut for: whoever
	// takes one for the same class again need not cut it anew. The last are uncut.
	empty   [numClasses + 2][]*block
	spared  int // in empty
	used    int // bytes handed out
	usedRes int // of these, from the reserve
}

func newArena(bus Bus, limit, reserve int) *arena {
	return &arena{bus: bus, limit: limit / blockSize, reserve: reserve / blockSize}
}

// reservePieces returns how many pieces the reserve has.
func (a *arena) reservePieces() int { return a.reserve * blockSize / minPiece }

// errNoDMA says that the arena, or the bus behind it, is exhausted.
var errNoDMA = fmt.Errorf("guestdriver: DMA memory exhausted")

// alloc returns a piece of the class, or nil. A reserved allocation takes a
// piece of the reserve when there is none other of class 0.
func (a *arena) alloc(class int, reserved bool) *buffer {
	a.mu.Lock()
	defer a.mu.Unlock()
	p := a.allocLocked(class)
	if p == nil && class == 0 && reserved {
		p = a.allocLocked(reserveClass)
	}
	return p
}

func (a *arena) allocLocked(class int) *buffer {
	b := a.partial[class]
	if b == nil {
		if b = a.takeBlockLocked(class); b == nil {
			return nil
		}
		if b.class != class {
			b.format(class)
		}
		a.pushLocked(b)
	}
	p := b.free
	b.free, p.next = p.next, nil
	if b.used++; b.free == nil {
		a.removeLocked(b)
	}
	a.used += len(p.data)
	if class == reserveClass {
		a.usedRes += len(p.data)
	}
	p.filled, p.consumed, p.parts, p.final, p.err, p.recalled = 0, 0, 0, false, nil, false
	p.lent = 0
	return p
}

// takeBlockLocked returns a block of which nothing is handed out, best one that is cut
// for the class, growing the arena if need be.
func (a *arena) takeBlockLocked(class int) *block {
	reserve := class == reserveClass
	left := a.limit - a.blocks + a.spared
	switch {
	case left <= 0, reserve && a.kept == a.reserve, !reserve && left <= a.reserve-a.kept:
		return nil
	}
	if a.spared == 0 {
		n := min(chunkSize/blockSize, a.limit-a.blocks)
		mem, err := a.bus.AllocDMA(n * blockSize)
		if err != nil {
			return nil
		}
		a.blocks += n
		for i := range n {
			off := i * blockSize
			a.spareLocked(&block{
				arena: a, mem: mem.Bytes[off : off+blockSize : off+blockSize], iova: mem.IOVA + uint64(off), class: uncut,
			})
		}
	}
	if reserve {
		a.kept++
	}
	from := class
	for i := uncut; len(a.empty[from]) == 0; i-- {
		from = i
	}
	list := a.empty[from]
	b := list[len(list)-1]
	a.empty[from] = list[:len(list)-1]
	a.spared--
	return b
}

func (a *arena) spareLocked(b *block) {
	a.empty[b.class] = append(a.empty[b.class], b)
	a.spared++
}

// format cuts the block, of which nothing is handed out, into free pieces.
func (b *block) format(class int) {
	size := classSize(class)
	b.class = class
	b.pieces = make([]buffer, blockSize/size)
	b.free = nil
	for i := len(b.pieces) - 1; i >= 0; i-- {
		off := i * size
		b.pieces[i] = buffer{data: b.mem[off : off+size : off+size], iova: b.iova + uint64(off), block: b, next: b.free}
		b.free = &b.pieces[i]
	}
}

// release gives a piece back to the arena that it is from.
func (p *buffer) release() { p.block.arena.release(p) }

// release gives a piece back.
func (a *arena) release(p *buffer) {
	a.mu.Lock()
	defer a.mu.Unlock()
	b := p.block
	if b.free == nil {
		a.pushLocked(b)
	}
	p.next, b.free = b.free, p
	a.used -= len(p.data)
	if b.class == reserveClass {
		a.usedRes -= len(p.data)
	}
	if b.used--; b.used == 0 {
		a.removeLocked(b)
		if b.class == reserveClass {
			a.kept--
		}
		a.spareLocked(b)
	}
}

func (a *arena) pushLocked(b *block) {
	head := a.partial[b.class]
	b.prev, b.next = nil, head
	if head != nil {
		head.prev = b
	}
	a.partial[b.class] = b
}

func (a *arena) removeLocked(b *block) {
	if b.prev != nil {
		b.prev.next = b.next
	} else {
		a.partial[b.class] = b.next
	}
	if b.next != nil {
		b.next.prev = b.prev
	}
	b.prev, b.next = nil, nil
}

// room returns how many bytes ordinary allocations may still take.
func (a *arena) room() int {
	a.mu.Lock()
	defer a.mu.Unlock()
	return max(0, (a.limit-a.reserve)*blockSize-(a.used-a.usedRes))
}

// inUse returns the bytes handed out.
func (a *arena) inUse() int {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.used
}
