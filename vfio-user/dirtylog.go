// SPDX-License-Identifier: Apache-2.0

package vfiouser

import (
	"fmt"
	"math/bits"
	"sync/atomic"
	"syscall"
)

// Our own limits on a log of dirty pages.
const (
	// leafPages is how many pages one leaf of a log covers: 128 MiB of pages of
	// 4 KiB in 4 KiB of bits.
	leafPages = 64 * leafWords
	leafWords = 512
	// logBuckets spreads the leaves, maxLeaves bounds them: 64 MiB of bits.
	logBuckets = 4096
	maxLeaves  = 16384
)

// dirtyLog remembers the pages that the device has written to, by IOVA: what
// becomes of the DMA maps does not touch it, so that a client can ask for a
// range after it has unmapped it.
//
// It is a hash table of leaves that are made when first needed and stay as long
// as the log. Marking takes no lock. A page is marked when the data is there
// (and not before: the client could then read the mark, and the page, too
// early), with an atomic OR even if the bit is set already: on a processor that
// stores late, that is what puts the data before the bit.
type dirtyLog struct {
	shift   uint // log2 of the page size, bytes
	full    atomic.Bool
	leaves  atomic.Int64
	buckets [logBuckets]atomic.Pointer[dirtyLeaf]
}

// dirtyLeaf holds the bits of leafPages pages from page key*leafPages on.
type dirtyLeaf struct {
	key   uint64
	next  *dirtyLeaf // in the bucket; never changes once published
	words [leafWords]atomic.Uint64
}

// find returns the leaf with a key, or nil.
func (l *dirtyLog) find(key uint64) *dirtyLeaf {
	return l.buckets[mix(key)%logBuckets].Load().find(key)
}

func (f *dirtyLeaf) find(key uint64) *dirtyLeaf {
	for f != nil && f.key != key {
		f = f.next
	}
	return f
}

// leaf returns the leaf with a key and makes it if need be. It is nil if there
// is no room for another.
func (l *dirtyLog) leaf(key uint64) *dirtyLeaf {
	bucket := &l.buckets[mix(key)%logBuckets]
	var f *dirtyLeaf
	for {
		head := bucket.Load()
		if old := head.find(key); old != nil {
			if f != nil {
				l.leaves.Add(-1) // another was faster
			}
			return old
		}
		if f == nil {
			if l.leaves.Add(1) > maxLeaves {
				l.leaves.Add(-1)
				return nil
			}
			f = &dirtyLeaf{key: key}
		}
		f.next = head
		if bucket.CompareAndSwap(head, f) {
			return f
		}
	}
}

// mark notes that [first, last] was written to. It returns false when the log
// has become full by that: from then on all of memory counts as dirty.
func (l *dirtyLog) mark(first, last uint64) bool {
	p, q := first>>l.shift, last>>l.shift
	for {
		f := l.leaf(p / leafPages)
		if f == nil {
			return l.full.Swap(true)
		}
		end := min(q, p|63)
		f.words[p/64%leafWords].Or(span(p, end))
		if end == q {
			return true
		}
		p = end + 1
	}
}

// span returns a word with the bits of pages p to q, which share it.
func span(p, q uint64) uint64 { return ^uint64(0) << (p & 63) & (^uint64(0) >> (63 - q&63)) }

// report sets a bit of out for each page of 1<<shift bytes from first on in
// which [first, last] is dirty, and clears the log there. A page of the log that
// reaches beyond the range stays marked, as what lies outside is not reported.
func (l *dirtyLog) report(first, last uint64, shift uint, out []byte) {
	if l.full.Load() {
		setBits(out, 0, (last-first)>>shift)
	}
	low, high := first>>l.shift/leafPages, last>>l.shift/leafPages
	if high-low < uint64(l.leaves.Load()) {
		for key := low; key <= high; key++ {
			l.reportLeaf(l.find(key), first, last, shift, out)
		}
		return
	}
	for i := range l.buckets {
		for f := l.buckets[i].Load(); f != nil; f = f.next {
			if f.key >= low && f.key <= high {
				l.reportLeaf(f, first, last, shift, out)
			}
		}
	}
}

func (l *dirtyLog) reportLeaf(f *dirtyLeaf, first, last uint64, shift uint, out []byte) {
	if f == nil {
		return
	}
	size := uint64(1) << l.shift
	p, q := max(first>>l.shift, f.key*leafPages), min(last>>l.shift, f.key*leafPages+leafPages-1)
	for end := p; ; p = end + 1 {
		end = min(q, p|63)
		word := &f.words[p/64%leafWords]
		mask := span(p, end)
		if word.Load()&mask != 0 {
			whole := mask
			if p<<l.shift < first {
				whole &^= span(p, p)
			}
			if end<<l.shift+(size-1) > last {
				whole &^= span(end, end)
			}
			dirty := word.And(^whole) & mask
			for at := p &^ 63; dirty != 0; {
				n := uint64(bits.TrailingZeros64(dirty))
				run := uint64(bits.TrailingZeros64(^(dirty >> n)))
				from := max((at+n)<<l.shift, first)
				to := min((at+n+run-1)<<l.shift+(size-1), last)
				setBits(out, (from-first)>>shift, (to-first)>>shift)
				dirty &^= span(n, n+run-1)
			}
		}
		if end == q {
			return
		}
	}
}

// setBits sets the bits from a to b, which counts from the lowest bit of the
// first byte on.
func setBits(out []byte, a, b uint64) {
	for ; a <= b && a%8 != 0; a++ {
		out[a/8] |= 1 << (a % 8)
	}
	for ; a+7 <= b; a += 8 {
		out[a/8] = 0xff
	}
	for ; a <= b; a++ {
		out[a/8] |= 1 << (a % 8)
	}
}

// bitmapSize returns how many bytes a bitmap for [first, last] takes, in whole
// 64-bit words, and log2 of the page size. E2BIG if that is more than limit.
func bitmapSize(first, size, pageSize uint64, limit int) (n int, shift uint, err error) {
	if size == 0 || first+(size-1) < first || pageSize == 0 || pageSize&(pageSize-1) != 0 {
		return 0, 0, fmt.Errorf("bitmap of %#x bytes at %#x in pages of %#x: %w", size, first, pageSize, syscall.EINVAL)
	}
	shift = uint(bits.TrailingZeros64(pageSize))
	words := (size-1)>>shift/64 + 1
	if words > uint64(limit)/8 {
		return 0, 0, fmt.Errorf("bitmap of %d words: %w", words, syscall.E2BIG)
	}
	return int(words) * 8, shift, nil
}

// wrote is to be called after each write of the device to memory.
func (d *DMA) wrote(iova, n uint64) {
	if l := d.log.Load(); l != nil && n > 0 {
		if !l.mark(iova, iova+(n-1)) {
			d.stats.dirtyLogsFull.Add(1)
		}
	}
}

// startLog begins to log writes, in pages of the given size or of the least
// that there is, and returns which. Writes that end after it has returned are
// in the log.
func (d *DMA) startLog(size uint64) (uint64, error) {
	if size == 0 || size&(size-1) != 0 {
		return 0, fmt.Errorf("log in pages of %#x: %w", size, syscall.EINVAL)
	}
	size = max(size, pageSize)
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.log.Load() != nil {
		return 0, fmt.Errorf("writes are being logged: %w", syscall.EINVAL)
	}
	d.log.Store(&dirtyLog{shift: uint(bits.TrailingZeros64(size))})
	// Whoever has not seen it may have stored what the client will not see yet.
	if !d.readers.wait(d.patient) {
		d.log.Store(nil)
		return 0, fmt.Errorf("start of a log: a reader does not end: %w", syscall.EBUSY)
	}
	return size, nil
}

// stopLog ends logging and forgets the log, if there is one.
func (d *DMA) stopLog() { d.log.Store(nil) }

// logged returns the log, or an error if there is none.
func (d *DMA) logged() (*dirtyLog, error) {
	if l := d.log.Load(); l != nil {
		return l, nil
	}
	return nil, fmt.Errorf("writes are not being logged: %w", syscall.EINVAL)
}

// mix scatters x over 64 bits (the finaliser of SplitMix64).
func mix(x uint64) uint64 {
	x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
	x = (x ^ x>>27) * 0x94d049bb133111eb
	return x ^ x>>31
}
