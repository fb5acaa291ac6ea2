// SPDX-License-Identifier: Apache-2.0

package qtest

import (
	"errors"
	"fmt"
	"net"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"toebox/ci/bus/internal/access"
	"toebox/ci/bus/internal/spans"
	"toebox/guestdriver"
	"toebox/images/qtest"
	"toebox/vdev/abi"
)

// Where things lie in guest-physical memory. RAM below 1 MiB has holes.
const (
	cookies      = 0x100000 // one word a vector, each in a cache line of its own
	cookieStride = 64
	firstDMA     = 0x200000
	bar0         = 0xe0000000
	bar2         = 0xe0100000
	vectors      = 33
)

// Registers of configuration space that the bus itself touches.
const (
	barBase    = 0x10
	capPCIe    = 0x10
	devControl = 8 // in the PCI Express capability
	startFLR   = 1 << 15
)

// Bus is a guestdriver.Bus under qtest.
type Bus struct {
	m   *qtest.Machine
	bdf qtest.BDF
	ram []byte

	mu       sync.Mutex // guards room and orders vector set-up and resets
	room     *spans.Set // RAM for DMA
	enabled  int
	closed   chan struct{}
	once     sync.Once
	wmu      sync.Mutex // held while a waiter registers, against Close
	waiters  sync.WaitGroup
	isClosed bool
}

var _ guestdriver.Bus = (*Bus)(nil)

// New maps the machine's RAM of that size, places the BARs of the function and
// enables memory space.
func New(m *qtest.Machine, bdf qtest.BDF, size int) (*Bus, error) {
	ram, err := unix.Mmap(int(m.RAM.Fd()), 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return nil, fmt.Errorf("qtest bus: map guest memory: %w", err)
	}
	b := &Bus{
		m: m, bdf: bdf, ram: ram, closed: make(chan struct{}),
		room: spans.New(firstDMA, uint64(size)-firstDMA),
	}
	if err := b.place(); err != nil {
		unix.Munmap(ram)
		return nil, fmt.Errorf("qtest bus: %w", err)
	}
	return b, nil
}

// place gives the two 64-bit BARs their addresses.
func (b *Bus) place() error {
	for i, v := range []uint32{bar0, 0, bar2, 0} {
		if err := b.m.WriteConfig(b.bdf, uint8(barBase+4*i), 4, v); err != nil {
			return err
		}
	}
	v, err := b.m.ReadConfig(b.bdf, access.Command, 2)
	if err != nil {
		return err
	}
	if v == 0xffff {
		return fmt.Errorf("no function at %v", b.bdf)
	}
	return access.EnableMemory(b)
}

// Name implements guestdriver.Bus.
func (b *Bus) Name() string { return "qtest " + b.bdf.String() }

// ReadConfig implements guestdriver.Bus; it reaches the first 256 bytes.
func (b *Bus) ReadConfig(offset, size int) (uint32, error) {
	if err := inConfig(offset, size); err != nil {
		return 0, err
	}
	return b.m.ReadConfig(b.bdf, uint8(offset), size)
}

// WriteConfig implements guestdriver.Bus.
func (b *Bus) WriteConfig(offset, size int, v uint32) error {
	if err := inConfig(offset, size); err != nil {
		return err
	}
	return b.m.WriteConfig(b.bdf, uint8(offset), size, v)
}

func inConfig(offset, size int) error {
	if size != 1 && size != 2 && size != 4 || offset < 0 || offset+size > 256 {
		return fmt.Errorf("qtest bus: config access of %d bytes at %#x: %w", size, offset, unix.EINVAL)
	}
	return nil
}

func address(bar int, offset uint32) uint64 {
	if bar == 0 {
		return bar0 + uint64(offset)
	}
	return bar2 + uint64(offset)
}

// Read32 implements guestdriver.Bus.
func (b *Bus) Read32(bar int, offset uint32) uint32 {
	v, err := b.m.Read32(address(bar, offset))
	if err != nil {
		return 0xffffffff
	}
	return v
}

// Write32 implements guestdriver.Bus.
func (b *Bus) Write32(bar int, offset uint32, v uint32) {
	// As on a real bus a write that nobody claims is lost.
	_ = b.m.Write32(address(bar, offset), v)
}

// AllocDMA implements guestdriver.Bus: first fit.
func (b *Bus) AllocDMA(size int) (guestdriver.DMA, error) {
	if size <= 0 {
		return guestdriver.DMA{}, fmt.Errorf("qtest bus: allocate %d bytes: %w", size, unix.EINVAL)
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	at, ok := b.room.Take(uint64(size))
	if !ok {
		return guestdriver.DMA{}, fmt.Errorf("qtest bus: allocate %d bytes: %w", size, unix.ENOMEM)
	}
	p := b.ram[at : at+uint64(size) : at+uint64(size)]
	clear(p)
	return guestdriver.DMA{Bytes: p, IOVA: at}, nil
}

// FreeDMA implements guestdriver.Bus.
func (b *Bus) FreeDMA(d guestdriver.DMA) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if _, ok := b.room.Give(d.IOVA); !ok {
		return fmt.Errorf("qtest bus: free %#x: %w", d.IOVA, unix.EINVAL)
	}
	return nil
}

func (b *Bus) cookie(v int) []byte { return b.ram[cookies+cookieStride*v:] }

// EnableVectors implements guestdriver.Bus.
func (b *Bus) EnableVectors(n int) error {
	if n < 1 || n > vectors {
		return fmt.Errorf("qtest bus: enable %d vectors: %w", n, unix.EINVAL)
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.enabled = n
	for v := range n {
		abi.StoreWord(b.cookie(v), 0)
	}
	return b.programLocked()
}

// programLocked writes the table entries and turns MSI-X on, in the order of
// the kernel: enable, then unmask.
func (b *Bus) programLocked() error {
	if b.enabled == 0 {
		return nil
	}
	if err := access.EnableMSIX(b); err != nil {
		return fmt.Errorf("qtest bus: enable vectors: %w", err)
	}
	access.Unmask(b, b.enabled, func(v int) (address uint64, data uint32) {
		return uint64(cookies + cookieStride*v), uint32(v) + 1
	})
	return nil
}

const longestLook = 500 * time.Microsecond

// Wait implements guestdriver.Bus. Clearing the word before the caller looks
// at its tables keeps a signal that comes later.
func (b *Bus) Wait(vector int) error {
	if vector < 0 || vector >= vectors {
		return fmt.Errorf("qtest bus: wait for vector %d: %w", vector, unix.EINVAL)
	}
	b.wmu.Lock()
	if b.isClosed {
		b.wmu.Unlock()
		return net.ErrClosed
	}
	b.waiters.Add(1)
	b.wmu.Unlock()
	defer b.waiters.Done()
	w := b.cookie(vector)
	for pause := 10 * time.Microsecond; ; pause = min(2*pause, longestLook) {
		if abi.LoadWord(w) != 0 {
			abi.StoreWord(w, 0)
			return nil
		}
		select {
		case <-b.closed:
			return net.ErrClosed
		case <-time.After(pause):
		}
	}
}

// Reset implements guestdriver.Bus by a function-level reset, after which it
// puts back what the kernel would: BARs, Command, MSI-X.
func (b *Bus) Reset() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.resetLocked()
}

func (b *Bus) resetLocked() error {
	err := access.KeepCommand(b, func() error {
		p, err := access.Capability(b, capPCIe)
		if err != nil {
			return err
		}
		v, err := b.ReadConfig(p+devControl, 2)
		if err == nil {
			err = b.WriteConfig(p+devControl, 2, v|startFLR)
		}
		if err == nil {
			err = b.place()
		}
		return err
	})
	if err == nil {
		err = b.programLocked()
	}
	if err != nil {
		return fmt.Errorf("qtest bus: reset: %w", err)
	}
	return nil
}

// Close implements guestdriver.Bus: it resets the function, so that nothing
// writes into the memory any more, ends every Wait and unmaps.
func (b *Bus) Close() error {
	var err error
	b.once.Do(func() {
		b.wmu.Lock()
		b.isClosed = true
		b.wmu.Unlock()
		close(b.closed)
		b.waiters.Wait()
		b.mu.Lock()
		defer b.mu.Unlock()
		b.enabled = 0
		err = errors.Join(b.resetLocked(), unix.Munmap(b.ram))
	})
	return err
}
