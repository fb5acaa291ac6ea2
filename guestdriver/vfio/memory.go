// SPDX-License-Identifier: Apache-2.0

package vfio

import (
	"fmt"

	"golang.org/x/sys/unix"

	"toebox/guestdriver"
	"toebox/guestdriver/internal/pool"
)

// AllocDMA implements guestdriver.Bus.
func (b *Bus) AllocDMA(size int) (guestdriver.DMA, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.closed {
		return guestdriver.DMA{}, errClosed
	}
	d, err := b.memory.Alloc(size, b.newRegionLocked)
	if err != nil {
		err = fmt.Errorf("vfio: %w", err)
	}
	return d, err
}

// newRegionLocked maps memory for at least n bytes: huge pages if the guest
// has some left, else pages as they are.
func (b *Bus) newRegionLocked(n int) (*pool.Region, error) {
	huge := (n + pool.HugePage - 1) &^ (pool.HugePage - 1)
	mem, err := mapHuge(huge)
	align := uint64(pool.HugePage)
	if err != nil {
		align = pool.PageSize
		if mem, err = pool.MapPages(n); err != nil {
			return nil, fmt.Errorf("allocate %d bytes: %w", n, err)
		}
	}
	iova, err := b.mapLocked(mem, align)
	if err != nil {
		unmap(mem)
		return nil, err
	}
	return pool.NewRegion(mem, iova), nil
}

// mapLocked has the IOMMU translate IOVAs to mem, whole pages, which the kernel
// pins.
func (b *Bus) mapLocked(mem []byte, align uint64) (uint64, error) {
	n := uint64(len(mem))
	iova, err := b.iovas.take(n, align)
	if err != nil {
		return 0, err
	}
	if err := ioctlBytes(b.container, ioctlMapDMA, dmaMapRequest(pool.Address(mem), iova, n)); err != nil {
		b.iovas.give(iova, n)
		return 0, fmt.Errorf("map %d bytes at %#x for DMA: %w", n, iova, err)
	}
	return iova, nil
}

// FreeDMA implements guestdriver.Bus. The memory stays mapped, for later
// allocations.
func (b *Bus) FreeDMA(d guestdriver.DMA) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.closed {
		return nil
	}
	if err := b.memory.Free(d); err != nil {
		return fmt.Errorf("vfio: %w", err)
	}
	return nil
}

// MapDMA implements guestdriver.Mapper. The kernel pins the pages: they count
// against RLIMIT_MEMLOCK, and one that cannot be written is EFAULT.
func (b *Bus) MapDMA(p []byte) (guestdriver.DMA, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	switch {
	case b.closed:
		return guestdriver.DMA{}, errClosed
	case len(p) == 0 || len(p)%pool.PageSize != 0 || pool.Address(p)%pool.PageSize != 0:
		return guestdriver.DMA{}, fmt.Errorf("vfio: map %d bytes for DMA: not whole pages: %w", len(p), unix.EINVAL)
	}
	iova, err := b.mapLocked(p, pool.PageSize)
	if err != nil {
		return guestdriver.DMA{}, fmt.Errorf("vfio: %w", err)
	}
	if b.mapped == nil {
		b.mapped = map[uint64]uint64{}
	}
	b.mapped[iova] = uint64(len(p))
	return guestdriver.DMA{Bytes: p, IOVA: iova}, nil
}

// UnmapDMA implements guestdriver.Mapper. IOVAs that the kernel does not let go
// are not used again.
func (b *Bus) UnmapDMA(d guestdriver.DMA) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.closed {
		return nil
	}
	n, ok := b.mapped[d.IOVA]
	if !ok || n != uint64(len(d.Bytes)) {
		return fmt.Errorf("vfio: unmap %d bytes at %#x: not mapped so: %w", len(d.Bytes), d.IOVA, unix.EINVAL)
	}
	delete(b.mapped, d.IOVA)
	r := dmaUnmapRequest(d.IOVA, n)
	if err := ioctlBytes(b.container, ioctlUnmapDMA, r); err != nil {
		return fmt.Errorf("vfio: unmap %d bytes at %#x: %w", n, d.IOVA, err)
	}
	if got := dmaUnmapped(r); got != n {
		return fmt.Errorf("vfio: unmap %d bytes at %#x: %d were", n, d.IOVA, got)
	}
	b.iovas.give(d.IOVA, n)
	return nil
}
