// SPDX-License-Identifier: Apache-2.0

package vfiousertest

import (
	"encoding/binary"
	"fmt"
	"os"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	vfiouser "toebox/vfio-user"
)

// Hooks run instead of an access, where set, without any lock held.
type Hooks struct {
	Read, Write func(region int, offset uint64, p []byte) error
	Reset       func() error
}

// Device is a device whose regions are plain memory.
type Device struct {
	// Gone receives a value for each client that went; it holds 16.
	Gone chan struct{}

	mu    sync.Mutex
	hooks Hooks
	mem   [vfiouser.NumRegions][]byte
	calls []string
}

// NewDevice returns a device with memory for the regions of cfg.
func NewDevice(cfg vfiouser.Config) *Device {
	d := &Device{Gone: make(chan struct{}, 16)}
	for i, r := range cfg.Regions {
		d.mem[i] = make([]byte, r.Size)
	}
	return d
}

// Config returns a description with a config space, a BAR of 4 KiB, a
// read-only ROM of 4 KiB, INTx, 32 vectors of MSI-X and ERR.
func Config() vfiouser.Config {
	var c vfiouser.Config
	c.Regions[vfiouser.RegionBAR0] = vfiouser.Region{Size: 4096, Flags: vfiouser.RegionRead | vfiouser.RegionWrite}
	c.Regions[vfiouser.RegionROM] = vfiouser.Region{Size: 4096, Flags: vfiouser.RegionRead}
	c.Regions[vfiouser.RegionConfig] = vfiouser.Region{Size: 4096, Flags: vfiouser.RegionRead | vfiouser.RegionWrite}
	c.IRQs[vfiouser.IRQINTx] = vfiouser.IRQ{Count: 1, Flags: vfiouser.IRQEventFD | vfiouser.IRQMaskable | vfiouser.IRQAutoMasked}
	c.IRQs[vfiouser.IRQMSIX] = vfiouser.IRQ{Count: 32, Flags: vfiouser.IRQEventFD}
	c.IRQs[vfiouser.IRQErr] = vfiouser.IRQ{Count: 1, Flags: vfiouser.IRQEventFD}
	c.Resettable = true
	return c
}

func (d *Device) note(format string, a ...any) { d.calls = append(d.calls, fmt.Sprintf(format, a...)) }

// SetHooks has hooks run from the next access on.
func (d *Device) SetHooks(h Hooks) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.hooks = h
}

func (d *Device) hook() Hooks {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.hooks
}

// ReadRegion implements vfiouser.Device.
func (d *Device) ReadRegion(region int, offset uint64, p []byte) error {
	if f := d.hook().Read; f != nil {
		return f(region, offset, p)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	copy(p, d.mem[region][offset:])
	d.note("read %d %#x %d", region, offset, len(p))
	return nil
}

// WriteRegion implements vfiouser.Device.
func (d *Device) WriteRegion(region int, offset uint64, p []byte) error {
	if f := d.hook().Write; f != nil {
		return f(region, offset, p)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	copy(d.mem[region][offset:], p)
	d.note("write %d %#x %x", region, offset, p)
	return nil
}

// Reset implements vfiouser.Device.
func (d *Device) Reset() error {
	if f := d.hook().Reset; f != nil {
		return f()
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.note("reset")
	return nil
}

// Disconnected implements vfiouser.Device.
func (d *Device) Disconnected() {
	select {
	case d.Gone <- struct{}{}:
	default:
	}
}

// Set stores p to a region, as the device itself would.
func (d *Device) Set(region int, offset uint64, p []byte) {
	d.mu.Lock()
	defer d.mu.Unlock()
	copy(d.mem[region][offset:], p)
}

// Calls returns what the server has called since the last time, in words:
// "read REGION OFFSET LENGTH", "write REGION OFFSET BYTES", "reset".
func (d *Device) Calls() []string {
	d.mu.Lock()
	defer d.mu.Unlock()
	c := d.calls
	d.calls = nil
	return c
}

// Memory returns a file of size zeroes that can be mapped, as QEMU backs a
// guest's memory.
func Memory(t testing.TB, size int64) *os.File {
	t.Helper()
	fd, err := unix.MemfdCreate("vfiousertest", unix.MFD_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	f := os.NewFile(uintptr(fd), "vfiousertest")
	t.Cleanup(func() { f.Close() })
	if err := f.Truncate(size); err != nil {
		t.Fatal(err)
	}
	return f
}

// EventFD is an eventfd on the side of the one who is signalled.
type EventFD struct {
	t  testing.TB
	fd int
}

// NewEventFD returns an eventfd at zero, non-blocking as QEMU's are.
func NewEventFD(t testing.TB) *EventFD {
	t.Helper()
	fd, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	return &EventFD{t, fd}
}

// FD returns the descriptor.
func (e *EventFD) FD() int { return e.fd }

// Take returns how often the eventfd was signalled since the last time, and
// does not wait.
func (e *EventFD) Take() int {
	e.t.Helper()
	var b [8]byte
	n, err := unix.Read(e.fd, b[:])
	if err == unix.EAGAIN {
		return 0
	}
	if err != nil || n != 8 {
		e.t.Fatalf("eventfd: %d bytes, %v", n, err)
	}
	return int(binary.NativeEndian.Uint64(b[:]))
}

// Wait waits until the eventfd is signalled and returns how often it was.
func (e *EventFD) Wait() int {
	e.t.Helper()
	p := []unix.PollFd{{Fd: int32(e.fd), Events: unix.POLLIN}}
	deadline := time.Now().Add(patience)
	for time.Now().Before(deadline) {
		if n, err := unix.Poll(p, 100); n > 0 && err == nil {
			return e.Take()
		}
	}
	e.t.Fatal("eventfd was not signalled")
	return 0
}

// Signal signals the eventfd.
func (e *EventFD) Signal() {
	e.t.Helper()
	if _, err := unix.Write(e.fd, binary.NativeEndian.AppendUint64(nil, 1)); err != nil {
		e.t.Fatal(err)
	}
}
