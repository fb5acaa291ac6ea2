// SPDX-License-Identifier: Apache-2.0

package inproc

import (
	"fmt"
	"net"
	"sync"

	"golang.org/x/sys/unix"

	"toebox/ci/bus/internal/access"
	"toebox/guestdriver"
)

// Function is the device below the bus; *vdev.Function implements it.
type Function interface {
	ReadRegion(region int, offset uint64, p []byte) error
	WriteRegion(region int, offset uint64, p []byte) error
	Reset() error
}

// Interrupts receives the function's interrupts; it is made before the
// function and implements what vdev calls IRQs.
type Interrupts struct {
	vectors [vectors]chan struct{} // each holds at most one signal
	intx    chan struct{}
}

const (
	vectors  = 33
	indexMSI = 2 // VFIO_PCI_MSIX_IRQ_INDEX
)

// NewInterrupts returns Interrupts that nobody waits for yet.
func NewInterrupts() *Interrupts {
	i := &Interrupts{intx: make(chan struct{}, 1)}
	for v := range i.vectors {
		i.vectors[v] = make(chan struct{}, 1)
	}
	return i
}

// Trigger implements vdev.IRQs.
func (i *Interrupts) Trigger(index, vector int) error {
	ch := i.intx
	if index == indexMSI {
		if vector < 0 || vector >= vectors {
			return unix.EINVAL
		}
		ch = i.vectors[vector]
	}
	select {
	case ch <- struct{}{}:
	default: // the one before was not looked at yet: one signal is enough
	}
	return nil
}

// Bus is a guestdriver.Bus by function calls.
type Bus struct {
	*access.Regions
	fn   Function
	mem  *Memory
	irqs *Interrupts

	mu      sync.Mutex // guards what follows and orders resets and vector set-up
	enabled int
	closed  chan struct{}
	once    sync.Once
}

var (
	_ guestdriver.Bus    = (*Bus)(nil)
	_ guestdriver.Mapper = (*Bus)(nil)
)

// New joins a function with the memory and the interrupts that it was made
// with. As firmware and kernel do before a driver starts, it enables memory
// space.
func New(fn Function, mem *Memory, irqs *Interrupts) (*Bus, error) {
	b := &Bus{
		Regions: access.NewRegions(fn.ReadRegion, fn.WriteRegion, fn.WriteRegion),
		fn:      fn, mem: mem, irqs: irqs, closed: make(chan struct{}),
	}
	if err := access.EnableMemory(b); err != nil {
		return nil, fmt.Errorf("inproc: %w", err)
	}
	return b, nil
}

// Name implements guestdriver.Bus.
func (b *Bus) Name() string { return "inproc" }

// AllocDMA implements guestdriver.Bus.
func (b *Bus) AllocDMA(size int) (guestdriver.DMA, error) {
	d, err := b.mem.alloc(size)
	if err != nil {
		return d, fmt.Errorf("inproc: allocate %d bytes of DMA memory: %w", size, err)
	}
	return d, nil
}

// FreeDMA implements guestdriver.Bus.
func (b *Bus) FreeDMA(d guestdriver.DMA) error {
	if err := b.mem.free(d); err != nil {
		return fmt.Errorf("inproc: free DMA memory at %#x: %w", d.IOVA, err)
	}
	return nil
}

// MapDMA implements guestdriver.Mapper. Of any memory: it is all of one process.
func (b *Bus) MapDMA(p []byte) (guestdriver.DMA, error) {
	if len(p) == 0 {
		return guestdriver.DMA{}, fmt.Errorf("inproc: map no memory for DMA: %w", unix.EINVAL)
	}
	d, err := b.mem.add(p)
	if err != nil {
		return d, fmt.Errorf("inproc: map %d bytes for DMA: %w", len(p), err)
	}
	return d, nil
}

// UnmapDMA implements guestdriver.Mapper.
func (b *Bus) UnmapDMA(d guestdriver.DMA) error {
	if err := b.mem.free(d); err != nil {
		return fmt.Errorf("inproc: unmap memory at %#x: %w", d.IOVA, err)
	}
	return nil
}

// EnableVectors implements guestdriver.Bus.
func (b *Bus) EnableVectors(n int) error {
	if n < 1 || n > vectors {
		return fmt.Errorf("inproc: enable %d vectors: %w", n, unix.EINVAL)
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.enabled = n
	return b.programLocked()
}

// programLocked unmasks the table entries and turns MSI-X on.
func (b *Bus) programLocked() error {
	if b.enabled == 0 {
		return nil
	}
	access.Unmask(b, b.enabled, access.Anywhere)
	if err := access.EnableMSIX(b); err != nil {
		return fmt.Errorf("inproc: enable vectors: %w", err)
	}
	return nil
}

// Wait implements guestdriver.Bus.
func (b *Bus) Wait(vector int) error {
	if vector < 0 || vector >= vectors {
		return fmt.Errorf("inproc: wait for vector %d: %w", vector, unix.EINVAL)
	}
	select {
	case <-b.closed:
		return net.ErrClosed
	default:
	}
	select {
	case <-b.irqs.vectors[vector]:
		return nil
	case <-b.closed:
		return net.ErrClosed
	}
}

// Reset implements guestdriver.Bus. Like the kernel around a function-level
// reset it puts Command and the MSI-X set-up back afterwards.
func (b *Bus) Reset() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	err := access.KeepCommand(b, b.fn.Reset)
	if err == nil {
		err = b.programLocked()
	}
	if err != nil {
		return fmt.Errorf("inproc: reset: %w", err)
	}
	return nil
}

// Close implements guestdriver.Bus. As a kernel does when a driver lets go, it
// resets the function, so that nothing writes into the memory that goes.
func (b *Bus) Close() error {
	var err error
	b.once.Do(func() {
		close(b.closed)
		b.mu.Lock()
		b.enabled = 0
		b.mu.Unlock()
		err = b.fn.Reset()
		b.mem.clear()
	})
	return err
}
