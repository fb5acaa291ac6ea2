// SPDX-License-Identifier: Apache-2.0

package vfio

import (
	"fmt"

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
	iova, err := b.iovas.take(uint64(len(mem)), align)
	if err == nil {
		if err = ioctlBytes(b.container, ioctlMapDMA, dmaMapRequest(pool.Address(mem), iova, uint64(len(mem)))); err != nil {
			err = fmt.Errorf("map %d bytes at %#x for DMA: %w", len(mem), iova, err)
		}
	}
	if err != nil {
		unmap(mem)
		return nil, err
	}
	return pool.NewRegion(mem, iova), nil
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
