// SPDX-License-Identifier: Apache-2.0

package edu

import (
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"sync"

	vfiouser "toebox/vfio-user"
	"toebox/vfio-user/pci"
)

// Registers in BAR0 (docs/specs/edu.rst, "MMIO area spec"). Those below 0x80
// take accesses of 4 bytes, the others of 4 or 8.
const (
	regID         = 0x00 // read only
	regLiveness   = 0x04 // reads as the complement of what was written
	regFactorial  = 0x08
	regStatus     = 0x20
	regIRQStatus  = 0x24 // read only
	regIRQRaise   = 0x60 // write only
	regIRQAck     = 0x64 // write only
	regDMASource  = 0x80
	regDMADest    = 0x88
	regDMACount   = 0x90 // bytes
	regDMACommand = 0x98

	wideRegisters = 0x80
	bar0Size      = 1 << 20

	identification = 0x010000ed // version 1.0

	statusComputing = 0x01 // read only
	statusIRQ       = 0x80 // interrupt after a factorial

	irqFactorial = 0x001
	irqDMA       = 0x100

	dmaStart = 1 // reads as 1 until the transfer has ended
	dmaToRAM = 2
	dmaIRQ   = 4

	bufferAt   = 0x40000 // where the device's own memory is, for DMA only
	bufferSize = 4096
)

// DefaultDMAMask is what a driver has to expect: 28 bits of address.
const DefaultDMAMask = 1<<28 - 1

// Config describes a device. The zero value is QEMU's default.
type Config struct {
	DMAMask uint64       // address bits that DMA has; 0: DefaultDMAMask
	Logger  *slog.Logger // as vfiouser.Config.Logger
}

// Device is the device, with its server.
type Device struct {
	fn   *pci.Function
	srv  *vfiouser.Server
	mask uint64
	work sync.WaitGroup // the factorial and the transfer that run

	mu        sync.Mutex
	liveness  uint32
	factorial uint32
	status    uint32
	irqs      uint32
	dma       transfer
	faults    uint64

	buffer [bufferSize]byte // of the transfer that runs
}

// transfer is what the DMA registers hold.
type transfer struct{ source, dest, count, command uint64 }

// New returns a device that no client has connected to yet.
func New(cfg Config) (*Device, error) {
	d := &Device{mask: cfg.DMAMask}
	if d.mask == 0 {
		d.mask = DefaultDMAMask
	}
	var err error
	if d.fn, err = pci.New(d.describe()); err != nil {
		return nil, fmt.Errorf("edu: %w", err)
	}
	c := d.fn.ServerConfig()
	c.Logger = cfg.Logger
	if d.srv, err = vfiouser.NewServer(d.fn, c); err != nil {
		return nil, fmt.Errorf("edu: %w", err)
	}
	d.fn.Connect(d.srv)
	return d, nil
}

// describe declares the function as QEMU's is.
func (d *Device) describe() pci.Config {
	c := pci.Config{
		Vendor: 0x1234, Device: 0x11e8, Revision: 0x10, Class: 0x00ff00,
		SubsystemVendor: 0x1af4, Subsystem: 0x1100, Pin: 1,
		Capabilities: []pci.Capability{pci.At(0x40, pci.MSI{})},
		// I/O and memory space, bus master, SERR#, INTx disable.
		CommandMask:   0x507,
		IgnoreCommand: true,
		// The next client finds the device as it is now. A reset puts
		// configuration space and the pin back, and leaves the registers alone.
		Disconnected: func() {},
	}
	c.BARs[0] = pci.BAR{Size: bar0Size, Read: d.read, Write: d.write}
	// What lies behind the capability can be written, and stays.
	for i := 0x4e; i < 0x100; i++ {
		c.Fields = append(c.Fields, pci.Field{Offset: i, Width: 1, Writable: 0xff, Sticky: 0xff})
	}
	return c
}

// Function returns the PCI function.
func (d *Device) Function() *pci.Function { return d.fn }

// Server returns what serves the device.
func (d *Device) Server() *vfiouser.Server { return d.srv }

// Close waits for what the device still does; that is bounded by the server's
// DMA time-out. The server must not be serving any more.
func (d *Device) Close() error {
	d.work.Wait()
	return nil
}

// Faults returns how many transfers were refused or ended early: beyond the
// device's buffer, or in memory that it must not access.
func (d *Device) Faults() uint64 {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.faults
}

// read serves BAR0.
func (d *Device) read(offset uint64, p []byte) {
	d.mu.Lock()
	defer d.mu.Unlock()
	switch {
	case len(p) == 4:
		binary.LittleEndian.PutUint32(p, uint32(d.readLocked(offset)))
	case len(p) == 8 && offset >= wideRegisters:
		binary.LittleEndian.PutUint64(p, d.readLocked(offset))
	case len(p) == 8:
		binary.LittleEndian.PutUint64(p, ^uint64(0))
	default:
		clear(p) // no such access
	}
}

// readLocked returns a register's value. What is no register reads as ones.
func (d *Device) readLocked(reg uint64) uint64 {
	switch reg {
	case regID:
		return identification
	case regLiveness:
		return uint64(d.liveness)
	case regFactorial:
		return uint64(d.factorial)
	case regStatus:
		return uint64(d.status)
	case regIRQStatus:
		return uint64(d.irqs)
	case regDMASource:
		return d.dma.source
	case regDMADest:
		return d.dma.dest
	case regDMACount:
		return d.dma.count
	case regDMACommand:
		return d.dma.command
	}
	return ^uint64(0)
}

// write serves BAR0. Accesses of other sizes do nothing.
func (d *Device) write(offset uint64, p []byte) {
	d.mu.Lock()
	defer d.mu.Unlock()
	switch {
	case len(p) == 4:
		d.writeLocked(offset, uint64(binary.LittleEndian.Uint32(p)))
	case len(p) == 8 && offset >= wideRegisters:
		d.writeLocked(offset, binary.LittleEndian.Uint64(p))
	}
}

// writeLocked stores to a register. 4 bytes clear the upper half of one of 8.
func (d *Device) writeLocked(reg, v uint64) {
	switch reg {
	case regLiveness:
		d.liveness = ^uint32(v)
	case regFactorial:
		if d.status&statusComputing == 0 {
			d.factorial = uint32(v)
			d.status |= statusComputing
			d.work.Go(func() { d.compute(uint32(v)) })
		}
	case regStatus:
		d.status = d.status&^statusIRQ | uint32(v)&statusIRQ
	case regIRQRaise:
		d.raiseLocked(uint32(v))
	case regIRQAck:
		d.irqs &^= uint32(v)
		if d.irqs == 0 {
			d.fn.SetINTx(false)
		}
	}
	if d.dma.command&dmaStart != 0 {
		return // until the transfer has ended
	}
	switch reg {
	case regDMASource:
		d.dma.source = v
	case regDMADest:
		d.dma.dest = v
	case regDMACount:
		d.dma.count = v
	case regDMACommand:
		if v&dmaStart != 0 {
			d.dma.command = v
			t := d.dma
			d.work.Go(func() { d.run(t) })
		}
	}
}

// raiseLocked adds reasons to the interrupt status and signals what is there.
func (d *Device) raiseLocked(reasons uint32) {
	d.irqs |= reasons
	if d.irqs != 0 {
		d.fn.Signal(0)
	}
}

// compute puts the factorial of n in place, modulo 2^32. That is 0 from 34 on,
// so no n keeps it busy.
func (d *Device) compute(n uint32) {
	f := uint32(1)
	for ; n > 0 && f != 0; n-- {
		f *= n
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.factorial = f
	d.status &^= statusComputing
	if d.status&statusIRQ != 0 {
		d.raiseLocked(irqFactorial)
	}
}

// run makes a transfer. Whatever becomes of it, it ends. One that has begun is
// not stopped by the loss of bus mastering: it is 4 KiB at most.
func (d *Device) run(t transfer) {
	err := d.move(t, d.fn.Master())
	d.mu.Lock()
	defer d.mu.Unlock()
	if err != nil {
		d.faults++
	}
	d.dma.command &^= dmaStart
	if t.command&dmaIRQ != 0 {
		d.raiseLocked(irqDMA)
	}
}

// move copies between the device's buffer and guest memory.
func (d *Device) move(t transfer, master bool) error {
	inside, outside := t.dest, t.source
	if t.command&dmaToRAM != 0 {
		inside, outside = t.source, t.dest
	}
	at := inside - bufferAt // far too large if inside lies below
	if at > bufferSize || t.count > bufferSize-at {
		return fmt.Errorf("edu: transfer of %#x bytes at %#x leaves the buffer", t.count, inside)
	}
	b := d.buffer[at:][:t.count]
	if t.command&dmaToRAM == 0 {
		clear(b) // memory that does not answer reads as zeros
	}
	switch {
	case !master:
		return errors.New("edu: not a bus master")
	case t.command&dmaToRAM != 0:
		return d.srv.DMA().Write(outside&d.mask, b)
	}
	return d.srv.DMA().Read(outside&d.mask, b)
}
