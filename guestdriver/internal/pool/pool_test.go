// SPDX-License-Identifier: Apache-2.0

package pool

import (
	"errors"
	"math/rand/v2"
	"testing"

	"toebox/guestdriver"
)

// TestRegion carves and frees at random and compares with a map of pages.
func TestRegion(t *testing.T) {
	const size = 64
	r := NewRegion(make([]byte, size*PageSize), 0)
	var used [size]bool
	held := map[int]int{}
	rng := rand.New(rand.NewPCG(1, 2))
	for i := range 20_000 {
		if rng.IntN(2) == 0 {
			n := 1 + rng.IntN(8)
			off, ok := r.carve(n * PageSize)
			if !ok {
				continue
			}
			for p := off / PageSize; p < off/PageSize+n; p++ {
				if used[p] {
					t.Fatalf("%d: page %d given twice", i, p)
				}
				used[p] = true
			}
			held[off] = n
			continue
		}
		for off, n := range held {
			if !r.put(off, n*PageSize) {
				t.Fatalf("%d: put(%d, %d) refused", i, off, n)
			}
			if r.put(off, n*PageSize) {
				t.Fatalf("%d: second put(%d, %d) accepted", i, off, n)
			}
			for p := off / PageSize; p < off/PageSize+n; p++ {
				used[p] = false
			}
			delete(held, off)
			break
		}
	}
	for off, n := range held {
		r.put(off, n*PageSize)
	}
	if len(r.free) != 1 || r.free[0] != (extent{0, size * PageSize}) {
		t.Errorf("left %v", r.free)
	}
}

func TestPool(t *testing.T) {
	mem, err := MapPages(16 * PageSize)
	if err != nil {
		t.Fatal(err)
	}
	var p Pool
	full := errors.New("no more")
	asked := 0
	grow := func(n int) (*Region, error) {
		if asked != 0 {
			return nil, full
		}
		asked = n
		return NewRegion(mem, 0x2000_0000), nil
	}
	d, err := p.Alloc(5000, grow)
	if err != nil || len(d.Bytes) != 5000 || cap(d.Bytes) != 5000 || d.IOVA != 0x2000_0000 || asked != 8192 {
		t.Fatalf("got %d bytes at %#x of a region for %d, %v", len(d.Bytes), d.IOVA, asked, err)
	}
	copy(d.Bytes, "old")
	e, err := p.Alloc(PageSize, grow)
	if err != nil || e.IOVA != 0x2000_2000 {
		t.Fatalf("got %#x, %v", e.IOVA, err)
	}
	if err := p.Free(d); err != nil {
		t.Error(err)
	}
	if err := p.Free(d); err == nil {
		t.Error("freed twice")
	}
	if d, _ = p.Alloc(PageSize, grow); d.IOVA != 0x2000_0000 || d.Bytes[0] != 0 {
		t.Errorf("again: %#x, first byte %d", d.IOVA, d.Bytes[0])
	}
	for _, bad := range []guestdriver.DMA{{Bytes: make([]byte, 1), IOVA: 1}, {Bytes: e.Bytes, IOVA: e.IOVA + 1},
		{Bytes: make([]byte, 1<<20), IOVA: e.IOVA}, {IOVA: e.IOVA}} {
		if err := p.Free(bad); err == nil {
			t.Errorf("freed %d bytes at %#x", len(bad.Bytes), bad.IOVA)
		}
	}
	for _, n := range []int{0, -1, MaxAlloc + 1} {
		if _, err := p.Alloc(n, grow); err == nil || errors.Is(err, full) {
			t.Errorf("%d bytes: %v", n, err)
		}
	}
	if _, err := p.Alloc(16*PageSize, grow); !errors.Is(err, full) {
		t.Errorf("more than there is: %v", err)
	}
	if _, err := new(Pool).Alloc(PageSize+1, func(int) (*Region, error) { return NewRegion(mem[:PageSize], 0), nil }); err == nil {
		t.Error("a region too small was taken")
	}
	// Late accesses see zero pages and do not fault.
	e.Bytes[0] = 1
	if err := p.Blank(); err != nil {
		t.Error(err)
	}
	if e.Bytes[0] != 0 {
		t.Errorf("after the end there is %d", e.Bytes[0])
	}
}
