// SPDX-License-Identifier: Apache-2.0

package pci

import (
	"fmt"
	"math/bits"

	vfiouser "toebox/vfio-user"
)

// Registers of the type 0 header (PCI Local Bus 3.0 §6.1).
const (
	regCommand = 0x04
	regStatus  = 0x06
	regBARs    = 0x10
	regROM     = 0x30

	commandIO          = 1 << 0
	commandMemory      = 1 << 1
	commandMaster      = 1 << 2
	commandParity      = 1 << 6
	commandSERR        = 1 << 8
	commandINTxDisable = 1 << 10

	statusINTx         = 1 << 3
	statusCapabilities = 1 << 4
	statusErrors       = 0xf900 // those that are cleared by writing 1

	numBARs     = 6
	smallestROM = 2048
	largestROM  = 16 << 20
	largestIO   = 64 << 10
)

// BARKind is what a BAR asks for (PCI Local Bus 3.0 §6.2.5.1).
type BARKind uint8

// Kinds of BARs. One of 64 bits takes the next one's register too.
const (
	Memory32 BARKind = iota
	Memory64
	IO
)

// BAR is a base address register with what is behind it. Size is a power of 2;
// 0 is a BAR that the function lacks. Read and Write get accesses of any length
// at any offset within Size, on the goroutine of the access and without any
// lock. Without Read it reads 0, without Write it ignores what is written.
type BAR struct {
	Kind         BARKind
	Prefetchable bool
	Size         uint64
	Read         func(offset uint64, p []byte)
	Write        func(offset uint64, p []byte)
}

// fields are the registers of BAR number n.
func (b *BAR) fields(n int) ([]Field, error) {
	low := Field{Offset: regBARs + 4*n, Width: 4}
	smallest, largest := uint64(16), uint64(1<<31)
	switch b.Kind {
	case Memory32:
	case Memory64:
		low.Reset, largest = 4, 1<<62
	case IO:
		low.Reset, smallest, largest = 1, 4, largestIO
	default:
		return nil, fmt.Errorf("BAR%d: kind %d", n, b.Kind)
	}
	if bits.OnesCount64(b.Size) != 1 || b.Size < smallest || b.Size > largest {
		return nil, fmt.Errorf("BAR%d: %d bytes", n, b.Size)
	}
	if b.Prefetchable {
		if b.Kind == IO {
			return nil, fmt.Errorf("BAR%d: prefetchable I/O", n)
		}
		low.Reset |= 8
	}
	mask := -b.Size // address bits that can be set
	low.Writable = mask & 0xffffffff
	if b.Kind != Memory64 {
		return []Field{low}, nil
	}
	if n == numBARs-1 {
		return nil, fmt.Errorf("BAR%d: no register for the upper half", n)
	}
	return []Field{low, {Offset: low.Offset + 4, Width: 4, Writable: mask >> 32}}, nil
}

// romSize is what a ROM of n bytes takes of the address space.
func romSize(n int) uint64 {
	if n == 0 {
		return 0
	}
	return uint64(max(1<<bits.Len(uint(n-1)), smallestROM))
}

// header is the header but for the capabilities pointer.
func (c *Config) header() ([]Field, error) {
	if c.Class > 0xffffff || c.Pin > 4 {
		return nil, fmt.Errorf("class %#x, interrupt pin %d", c.Class, c.Pin)
	}
	if len(c.ROM) > largestROM {
		return nil, fmt.Errorf("ROM of %d bytes", len(c.ROM))
	}
	command := uint64(commandMaster | commandParity | commandSERR)
	if c.Pin > 0 {
		command |= commandINTxDisable
	}
	status := Field{Offset: regStatus, Width: 2, W1C: statusErrors}
	if len(c.Capabilities) > 0 {
		status.Reset = statusCapabilities
	}
	fields := []Field{
		{Offset: 0x00, Width: 2, Reset: uint64(c.Vendor)},
		{Offset: 0x02, Width: 2, Reset: uint64(c.Device)},
		status,
		{Offset: 0x08, Width: 4, Reset: uint64(c.Class)<<8 | uint64(c.Revision)},
		{Offset: 0x0c, Width: 1, Writable: 0xff}, // cache line size
		{Offset: 0x2c, Width: 2, Reset: uint64(c.SubsystemVendor)},
		{Offset: 0x2e, Width: 2, Reset: uint64(c.Subsystem)},
		{Offset: 0x3c, Width: 1, Writable: 0xff}, // interrupt line
		{Offset: 0x3d, Width: 1, Reset: uint64(c.Pin)},
	}
	upper := false // the register is the upper half of the one before
	for i := range c.BARs {
		b := &c.BARs[i]
		if b.Size == 0 {
			upper = false
			continue
		}
		if upper {
			return nil, fmt.Errorf("BAR%d: is the upper half of BAR%d", i, i-1)
		}
		bar, err := b.fields(i)
		if err != nil {
			return nil, err
		}
		fields = append(fields, bar...)
		upper = b.Kind == Memory64
		if b.Kind == IO {
			command |= commandIO
		} else {
			command |= commandMemory
		}
	}
	if size := romSize(len(c.ROM)); size > 0 {
		fields = append(fields, Field{Offset: regROM, Width: 4, Writable: -size&0xfffff800 | 1})
		command |= commandMemory
	}
	if c.CommandMask != 0 {
		command = uint64(c.CommandMask)
	}
	return append(fields, Field{Offset: regCommand, Width: 2, Writable: command}), nil
}

// ServerConfig describes the function to vfio-user clients.
func (f *Function) ServerConfig() vfiouser.Config {
	const both = vfiouser.RegionRead | vfiouser.RegionWrite
	c := vfiouser.Config{Resettable: true}
	for i := range c.Regions {
		if size := f.RegionSize(i); size > 0 {
			c.Regions[i] = vfiouser.Region{Size: size, Flags: both}
		}
	}
	c.Regions[vfiouser.RegionROM].Flags &^= vfiouser.RegionWrite
	if f.inta {
		c.IRQs[vfiouser.IRQINTx] = vfiouser.IRQ{Count: 1, Flags: vfiouser.IRQEventFD | vfiouser.IRQMaskable | vfiouser.IRQAutoMasked}
	}
	if f.msi != nil {
		c.IRQs[vfiouser.IRQMSI] = vfiouser.IRQ{Count: uint32(f.msi.vectors()), Flags: vfiouser.IRQEventFD}
	}
	if f.msix != nil {
		c.IRQs[vfiouser.IRQMSIX] = vfiouser.IRQ{Count: uint32(f.msix.Vectors), Flags: vfiouser.IRQEventFD}
	}
	c.IRQs[vfiouser.IRQErr] = vfiouser.IRQ{Count: 1, Flags: vfiouser.IRQEventFD} // QEMU insists
	return c
}

// RegionSize returns the size of a VFIO region, 0 if the function has none.
func (f *Function) RegionSize(region int) uint64 {
	switch {
	case region == vfiouser.RegionConfig:
		return uint64(f.space.size())
	case region == vfiouser.RegionROM:
		return romSize(len(f.rom))
	case region >= 0 && region < numBARs:
		return f.bars[region].Size
	}
	return 0
}
