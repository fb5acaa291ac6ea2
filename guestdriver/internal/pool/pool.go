// SPDX-License-Identifier: Apache-2.0

package pool

import (
	"errors"
	"fmt"
	"slices"

	"toebox/guestdriver"
)

// Sizes in bytes.
const (
	PageSize = 4 << 10
	HugePage = 2 << 20
	MaxAlloc = 1 << 30 // of one allocation
)

// Region is memory mapped for DMA as one piece.
type Region struct {
	mem  []byte
	iova uint64
	free []extent // in order, no two adjacent
}

// extent is a free part of a region, in bytes, a multiple of PageSize.
type extent struct{ off, n int }

// NewRegion makes a region of memory that begins and ends with a page.
func NewRegion(mem []byte, iova uint64) *Region {
	return &Region{mem: mem, iova: iova, free: []extent{{0, len(mem)}}}
}

// carve takes n bytes out of the first extent that has them.
func (r *Region) carve(n int) (off int, ok bool) {
	for i := range r.free {
		e := &r.free[i]
		if e.n < n {
			continue
		}
		off = e.off
		e.off += n
		if e.n -= n; e.n == 0 {
			r.free = slices.Delete(r.free, i, i+1)
		}
		return off, true
	}
	return 0, false
}

// put gives [off, off+n) back; false when a part of it is free already.
func (r *Region) put(off, n int) bool {
	i := 0
	for i < len(r.free) && r.free[i].off < off {
		i++
	}
	if i > 0 && r.free[i-1].off+r.free[i-1].n > off || i < len(r.free) && off+n > r.free[i].off {
		return false
	}
	r.free = slices.Insert(r.free, i, extent{off, n})
	if i+1 < len(r.free) && off+n == r.free[i+1].off {
		r.free[i].n += r.free[i+1].n
		r.free = slices.Delete(r.free, i+1, i+2)
	}
	if i > 0 && r.free[i-1].off+r.free[i-1].n == off {
		r.free[i-1].n += r.free[i].n
		r.free = slices.Delete(r.free, i, i+1)
	}
	return true
}

func (r *Region) dma(off, size int) guestdriver.DMA {
	return guestdriver.DMA{Bytes: r.mem[off : off+size : off+size], IOVA: r.iova + uint64(off)}
}

// Pool is all DMA memory of a bus.
type Pool struct {
	regions []*Region
}

// Alloc returns zeroed memory. It calls grow for a region of at least n bytes,
// whole pages, when none has so much left.
func (p *Pool) Alloc(size int, grow func(n int) (*Region, error)) (guestdriver.DMA, error) {
	if size <= 0 || size > MaxAlloc {
		return guestdriver.DMA{}, fmt.Errorf("%d bytes of DMA memory", size)
	}
	n := Pages(size)
	for _, r := range p.regions {
		if off, ok := r.carve(n); ok {
			clear(r.mem[off : off+n])
			return r.dma(off, size), nil
		}
	}
	r, err := grow(n)
	if err != nil {
		return guestdriver.DMA{}, err
	}
	p.regions = append(p.regions, r)
	off, ok := r.carve(n)
	if !ok {
		return guestdriver.DMA{}, fmt.Errorf("a region of %d bytes for %d", len(r.mem), n)
	}
	return r.dma(off, size), nil
}

// Free gives memory of Alloc back. It stays mapped, for later allocations.
func (p *Pool) Free(d guestdriver.DMA) error {
	for _, r := range p.regions {
		if off := d.IOVA - r.iova; d.IOVA >= r.iova && off < uint64(len(r.mem)) {
			n := Pages(len(d.Bytes))
			if off%PageSize != 0 || n == 0 || n > len(r.mem)-int(off) || !r.put(int(off), n) {
				break
			}
			return nil
		}
	}
	return errors.New("free of DMA memory that is not allocated")
}

// Blank replaces all memory by private zero pages.
func (p *Pool) Blank() error {
	var errs []error
	for _, r := range p.regions {
		errs = append(errs, Blank(r.mem))
	}
	return errors.Join(errs...)
}

// Pages rounds up to whole pages.
func Pages(size int) int { return (size + PageSize - 1) &^ (PageSize - 1) }
