// SPDX-License-Identifier: Apache-2.0

package vfio

import (
	"errors"
	"fmt"
	"slices"

	"toebox/guestdriver"
)

const (
	pageSize = 4 << 10
	hugePage = 2 << 20
)

// region is memory mapped for DMA as one piece.
type region struct {
	mem  []byte
	iova uint64
	free []extent // in order, no two adjacent
}

// extent is a free part of a region, in bytes, a multiple of pageSize.
type extent struct{ off, n int }

// carve takes n bytes out of the first extent that has them.
func (r *region) carve(n int) (off int, ok bool) {
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
func (r *region) put(off, n int) bool {
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

// pages rounds up to whole pages.
func pages(size int) int { return (size + pageSize - 1) &^ (pageSize - 1) }

// maxDMA bounds one allocation.
const maxDMA = 1 << 30

// AllocDMA implements guestdriver.Bus.
func (b *Bus) AllocDMA(size int) (guestdriver.DMA, error) {
	if size <= 0 || size > maxDMA {
		return guestdriver.DMA{}, fmt.Errorf("vfio: %d bytes of DMA memory", size)
	}
	n := pages(size)
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.closed {
		return guestdriver.DMA{}, errClosed
	}
	for _, r := range b.regions {
		if off, ok := r.carve(n); ok {
			clear(r.mem[off : off+n])
			return r.dma(off, size), nil
		}
	}
	r, err := b.newRegionLocked(n)
	if err != nil {
		return guestdriver.DMA{}, err
	}
	b.regions = append(b.regions, r)
	off, _ := r.carve(n)
	return r.dma(off, size), nil
}

func (r *region) dma(off, size int) guestdriver.DMA {
	return guestdriver.DMA{Bytes: r.mem[off : off+size : off+size], IOVA: r.iova + uint64(off)}
}

// newRegionLocked maps memory for at least n bytes: huge pages if the guest
// has some left, else pages as they are.
func (b *Bus) newRegionLocked(n int) (*region, error) {
	huge := (n + hugePage - 1) &^ (hugePage - 1)
	mem, err := mapHuge(huge)
	align := uint64(hugePage)
	if err != nil {
		align = pageSize
		if mem, err = mapPages(n); err != nil {
			return nil, fmt.Errorf("vfio: allocate %d bytes: %w", n, err)
		}
	}
	iova, err := b.iovas.take(uint64(len(mem)), align)
	if err == nil {
		if err = ioctlBytes(b.container, ioctlMapDMA, dmaMapRequest(address(mem), iova, uint64(len(mem)))); err != nil {
			err = fmt.Errorf("vfio: map %d bytes at %#x for DMA: %w", len(mem), iova, err)
		}
	}
	if err != nil {
		unmap(mem)
		return nil, err
	}
	return &region{mem: mem, iova: iova, free: []extent{{0, len(mem)}}}, nil
}

// FreeDMA implements guestdriver.Bus. The memory stays mapped, for later
// allocations.
func (b *Bus) FreeDMA(d guestdriver.DMA) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.closed {
		return nil
	}
	for _, r := range b.regions {
		if off := d.IOVA - r.iova; d.IOVA >= r.iova && off < uint64(len(r.mem)) {
			n := pages(len(d.Bytes))
			if off%pageSize != 0 || n == 0 || n > len(r.mem)-int(off) || !r.put(int(off), n) {
				break
			}
			return nil
		}
	}
	return errors.New("vfio: free of DMA memory that is not allocated")
}
