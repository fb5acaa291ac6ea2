// SPDX-License-Identifier: Apache-2.0

package inproc

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"sync"

	"golang.org/x/sys/unix"

	"toebox/guestdriver"
	vfiouser "toebox/vfio-user"
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
	fn   Function
	mem  *Memory
	irqs *Interrupts

	mu      sync.Mutex // guards what follows and orders resets and vector set-up
	enabled int
	closed  chan struct{}
	once    sync.Once
}

var _ guestdriver.Bus = (*Bus)(nil)

// New joins a function with the memory and the interrupts that it was made
// with. As firmware and kernel do before a driver starts, it enables memory
// space.
func New(fn Function, mem *Memory, irqs *Interrupts) (*Bus, error) {
	b := &Bus{fn: fn, mem: mem, irqs: irqs, closed: make(chan struct{})}
	v, err := b.ReadConfig(command, 2)
	if err == nil {
		err = b.WriteConfig(command, 2, v|memorySpace)
	}
	if err != nil {
		return nil, fmt.Errorf("inproc: %w", err)
	}
	return b, nil
}

// Registers of configuration space that the bus itself touches.
const (
	command     = 0x04
	memorySpace = 1 << 1
	capPointer  = 0x34
	capMSIX     = 0x11
	msixEnable  = 1 << 15
)

// Name implements guestdriver.Bus.
func (b *Bus) Name() string { return "inproc" }

// ReadConfig implements guestdriver.Bus.
func (b *Bus) ReadConfig(offset, size int) (uint32, error) {
	if size != 1 && size != 2 && size != 4 || offset < 0 {
		return 0, unix.EINVAL
	}
	var p [4]byte
	if err := b.fn.ReadRegion(vfiouser.RegionConfig, uint64(offset), p[:size]); err != nil {
		return 0, err
	}
	return binary.LittleEndian.Uint32(p[:]), nil
}

// WriteConfig implements guestdriver.Bus.
func (b *Bus) WriteConfig(offset, size int, v uint32) error {
	if size != 1 && size != 2 && size != 4 || offset < 0 {
		return unix.EINVAL
	}
	var p [4]byte
	binary.LittleEndian.PutUint32(p[:], v)
	return b.fn.WriteRegion(vfiouser.RegionConfig, uint64(offset), p[:size])
}

// Read32 implements guestdriver.Bus.
func (b *Bus) Read32(bar int, offset uint32) uint32 {
	var p [4]byte
	if err := b.fn.ReadRegion(bar, uint64(offset), p[:]); err != nil {
		return 0xffffffff
	}
	return binary.LittleEndian.Uint32(p[:])
}

// Write32 implements guestdriver.Bus.
func (b *Bus) Write32(bar int, offset uint32, v uint32) {
	var p [4]byte
	binary.LittleEndian.PutUint32(p[:], v)
	// As on a real bus a write that nobody claims is lost.
	_ = b.fn.WriteRegion(bar, uint64(offset), p[:])
}

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
	p, err := b.capability(capMSIX)
	if err != nil {
		return err
	}
	for v := range b.enabled {
		// Address and data are the platform's own affair; here the vector
		// alone says where it goes.
		for i, w := range [4]uint32{0xfee00000, 0, uint32(v), 0} {
			b.Write32(2, uint32(16*v+4*i), w)
		}
	}
	v, err := b.ReadConfig(p+2, 2)
	if err != nil {
		return fmt.Errorf("inproc: enable vectors: %w", err)
	}
	return b.WriteConfig(p+2, 2, v|msixEnable)
}

// capability finds a capability; a list that does not end is an error.
func (b *Bus) capability(id uint32) (int, error) {
	p, err := b.ReadConfig(capPointer, 1)
	for i := 0; err == nil && p != 0 && i < 48; i++ {
		var v uint32
		if v, err = b.ReadConfig(int(p), 2); err == nil && v&0xff == id {
			return int(p), nil
		}
		p = v >> 8
	}
	if err == nil {
		err = errors.New("no such capability")
	}
	return 0, fmt.Errorf("inproc: capability %#x: %w", id, err)
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
	v, err := b.ReadConfig(command, 2)
	if err == nil {
		err = b.fn.Reset()
	}
	if err == nil {
		err = b.WriteConfig(command, 2, v)
	}
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
