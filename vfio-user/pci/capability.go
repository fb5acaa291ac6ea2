// SPDX-License-Identifier: Apache-2.0

package pci

import (
	"fmt"
	"math/bits"

	vfiouser "toebox/vfio-user"
)

// Capability ids (PCI Code and ID Assignment).
const (
	idPM        = 0x01
	idMSI       = 0x05
	idVendor    = 0x09
	idSubsystem = 0x0d
	idExpress   = 0x10
	idMSIX      = 0x11
)

// PM is the power management capability (PCI Power Management 1.2 §3.2). D0 and
// D3hot are always there.
type PM struct {
	D1, D2 bool
	// NoSoftReset keeps the state of the function over D3hot; without it
	// leaving D3hot is a reset.
	NoSoftReset bool
	// PME says in which states the function can signal power management
	// events: bits 0 to 4 are D0, D1, D2, D3hot and D3cold.
	PME uint8
}

const (
	pmControl     = 4 // PMCSR
	pmStateMask   = 3
	pmD0          = 0
	pmD3hot       = 3
	pmNoSoftReset = 1 << 3
	pmPMEEnable   = 1 << 8
	pmPMEStatus   = 1 << 15
)

func (c PM) layout() (layout, error) {
	capabilities := Field{Offset: 2, Width: 2, Reset: 3 | uint64(c.PME)<<11} // version 1.2
	control := Field{Offset: pmControl, Width: 2, Writable: pmStateMask}
	if c.D1 {
		capabilities.Reset |= 1 << 9
	}
	if c.D2 {
		capabilities.Reset |= 1 << 10
	}
	if c.NoSoftReset {
		control.Reset |= pmNoSoftReset
	}
	if c.PME != 0 {
		control.Writable |= pmPMEEnable
		control.W1C |= pmPMEStatus
	}
	if c.PME&(1<<4) != 0 { // from D3cold: kept over the loss of power
		control.Sticky = pmPMEEnable | pmPMEStatus
	}
	control.Filter = func(old, v uint64) uint64 {
		if s := v & pmStateMask; s == 1 && !c.D1 || s == 2 && !c.D2 {
			// A state that the function does not have: that part of the
			// write is dropped.
			v = v&^pmStateMask | old&pmStateMask
		}
		return v
	}
	l := layout{id: idPM, size: 8, fields: []Field{capabilities, control}, acts: c}
	if c.PME > 31 {
		return l, fmt.Errorf("%v: PME %#x", &l, c.PME)
	}
	return l, nil
}

// Express is the PCI Express capability, version 2, of an endpoint (PCI Express
// Base 3.0 §7.8).
type Express struct {
	FLR        bool // function-level reset
	Integrated bool // in the root complex: no link
	MaxPayload int  // bytes that the function can take in a packet, 128 (also if 0) to 4096
	Speed      int  // of the link at most: 1 (also if 0) is 2.5 GT/s, 2 is 5, 3 is 8, 4 is 16
	Width      int  // lanes, 1 if 0
}

const (
	expressControl    = 8 // Device Control
	expressMaxPayload = 7 << 5
	expressFLR        = 1 << 15
)

func (c Express) layout() (layout, error) {
	l := layout{id: idExpress, size: 0x3c, acts: c}
	preset(&c.MaxPayload, 128)
	preset(&c.Speed, 1)
	preset(&c.Width, 1)
	if c.MaxPayload < 128 || c.MaxPayload > 4096 || bits.OnesCount(uint(c.MaxPayload)) != 1 ||
		c.Speed < 1 || c.Speed > 4 || c.Width < 1 || c.Width > 32 {
		return l, fmt.Errorf("%v: payload of %d bytes, speed %d, width %d", &l, c.MaxPayload, c.Speed, c.Width)
	}
	kind, device := uint64(0), uint64(1<<15|bits.TrailingZeros(uint(c.MaxPayload/128))) // role-based error reporting
	if c.FLR {
		device |= 1 << 28
	}
	if c.Integrated {
		kind = 9 << 4
	}
	l.fields = []Field{
		{Offset: 0x02, Width: 2, Reset: 2 | kind},
		{Offset: 0x04, Width: 4, Reset: device},
		// Error reporting, relaxed ordering, payload and read size (512), no snoop.
		{Offset: expressControl, Width: 2, Reset: 0x2810, Writable: 0x78ff, FLRKeeps: expressMaxPayload},
		{Offset: 0x0a, Width: 2, W1C: 0x000f},
		{Offset: 0x24, Width: 4, Reset: 0x10}, // completion timeout can be disabled
		{Offset: 0x28, Width: 2, Writable: 0x10},
	}
	if c.Integrated {
		return l, nil
	}
	speed, width := uint64(c.Speed), uint64(c.Width)<<4
	const boundary, clock, synch = 1 << 3, 1 << 6, 1 << 7
	l.fields = append(l.fields, []Field{
		{Offset: 0x0c, Width: 4, Reset: 1<<22 | width | speed}, // no ASPM
		{Offset: 0x10, Width: 2, Writable: boundary | clock | synch, FLRKeeps: boundary | clock | synch},
		{Offset: 0x12, Width: 2, Reset: width | speed},
		{Offset: 0x2c, Width: 4, Reset: 1<<(speed+1) - 2}, // all speeds up to the highest
		{Offset: 0x30, Width: 2, Reset: speed, Writable: 0x000f},
	}...)
	return l, nil
}

// MSI is the message signalled interrupts capability (PCI Local Bus 3.0 §6.8.1).
type MSI struct {
	Vectors int  // 1 (also if 0), 2, 4, 8, 16, 32
	Address int  // bits: 64 (also if 0) or 32
	Masking bool // a mask and a pending bit for each vector
}

const (
	msiControl  = 2
	msiEnable   = 1 << 0
	msiMultiple = 7 << 4 // how many vectors software allows, as a power of 2
)

// data is the offset of the data register; mask and pending bits follow.
func (c MSI) data() int {
	if c.Address == 32 {
		return 8
	}
	return 12
}

func (c MSI) masks() int   { return c.data() + 4 }
func (c MSI) pending() int { return c.data() + 8 }

// vectors is how many there are.
func (c MSI) vectors() int { return max(c.Vectors, 1) }

func (c MSI) layout() (layout, error) {
	l := layout{id: idMSI, size: c.data() + 2, acts: c}
	preset(&c.Vectors, 1)
	preset(&c.Address, 64)
	if c.Vectors < 1 || c.Vectors > 32 || bits.OnesCount(uint(c.Vectors)) != 1 || c.Address != 32 && c.Address != 64 {
		return l, fmt.Errorf("%v: %d vectors, %d address bits", &l, c.Vectors, c.Address)
	}
	capable := uint64(bits.TrailingZeros(uint(c.Vectors)))
	control := Field{Offset: msiControl, Width: 2, Reset: capable << 1, Writable: msiEnable | msiMultiple}
	control.Filter = func(_, v uint64) uint64 {
		return v&^msiMultiple | min(v&msiMultiple, capable<<4) // no more than there are
	}
	l.fields = []Field{
		{Offset: 4, Width: 4, Writable: 0xfffffffc},
		{Offset: c.data(), Width: 2, Writable: 0xffff},
	}
	if c.Address == 64 {
		control.Reset |= 1 << 7
		l.fields = append(l.fields, Field{Offset: 8, Width: 4, Writable: 0xffffffff})
	}
	if c.Masking {
		control.Reset |= 1 << 8
		l.size = c.pending() + 4
		l.fields = append(l.fields, Field{Offset: c.masks(), Width: 4, Writable: 1<<c.Vectors - 1}, Field{Offset: c.pending(), Width: 4})
	}
	l.fields = append(l.fields, control)
	return l, nil
}

// MSIX is the MSI-X capability (PCI Local Bus 3.0 §6.8.2). Table and pending
// bit array are in the BAR named, over whatever the device has there. A BAR
// that is not declared becomes one of 32 bits just for them.
type MSIX struct {
	Vectors int // 1 to 2048
	BAR     int
	Table   int // offset in the BAR, a multiple of 8
	PBA     int // offset in the BAR, a multiple of 8; 0: behind the table
}

const (
	msixControl   = 2
	msixEnable    = 1 << 15
	msixMask      = 1 << 14
	msixEntrySize = 16
	msixMost      = 2048
)

func (c MSIX) tableSize() int { return c.Vectors * msixEntrySize }
func (c MSIX) pbaSize() int   { return (c.Vectors + 63) / 64 * 8 }

// pba is the offset of the pending bit array.
func (c MSIX) pba() int {
	if c.PBA == 0 {
		return c.Table + c.tableSize()
	}
	return c.PBA
}

// end is where both have ended.
func (c MSIX) end() int { return max(c.Table+c.tableSize(), c.pba()+c.pbaSize()) }

func (c MSIX) layout() (layout, error) {
	l := layout{id: idMSIX, size: 12, acts: c}
	switch {
	case c.Vectors < 1 || c.Vectors > msixMost || c.BAR < vfiouser.RegionBAR0 || c.BAR > vfiouser.RegionBAR5:
		return l, fmt.Errorf("%v: %d vectors, BAR%d", &l, c.Vectors, c.BAR)
	case c.Table < 0 || c.PBA < 0 || c.Table > mostMSIXOffset || c.PBA > mostMSIXOffset || c.Table%8 != 0 || c.PBA%8 != 0:
		return l, fmt.Errorf("%v: table at %#x, PBA at %#x", &l, c.Table, c.PBA)
	case c.pba() < c.Table+c.tableSize() && c.Table < c.pba()+c.pbaSize():
		return l, fmt.Errorf("%v: table at %#x and PBA at %#x overlap", &l, c.Table, c.PBA)
	}
	l.fields = []Field{
		{Offset: msixControl, Width: 2, Reset: uint64(c.Vectors - 1), Writable: msixEnable | msixMask},
		{Offset: 4, Width: 4, Reset: uint64(c.Table | c.BAR)},
		{Offset: 8, Width: 4, Reset: uint64(c.pba() | c.BAR)},
	}
	return l, nil
}

// mostMSIXOffset leaves room behind what the registers can hold.
const mostMSIXOffset = 1 << 30

// Vendor is a vendor-specific capability. Its length byte is at offset 2, its
// fields come after that.
type Vendor struct {
	Size   int // bytes, 3 to 192
	Fields []Field
}

func (c Vendor) layout() (layout, error) {
	l := layout{id: idVendor, several: true, size: c.Size}
	if c.Size < 3 || c.Size > sizeConventional-headerSize {
		return l, fmt.Errorf("%v: %d bytes", &l, c.Size)
	}
	l.fields = append([]Field{{Offset: 2, Width: 1, Reset: uint64(c.Size)}}, c.Fields...)
	return l, nil
}

// Subsystem is the capability that holds subsystem ids (PCI-to-PCI Bridge 1.2
// §3.2.5.13). An endpoint has them in its header as well: see [Config].
type Subsystem struct{ Vendor, ID uint16 }

func (c Subsystem) layout() (layout, error) {
	return layout{id: idSubsystem, size: 8, fields: []Field{
		{Offset: 4, Width: 2, Reset: uint64(c.Vendor)}, {Offset: 6, Width: 2, Reset: uint64(c.ID)},
	}}, nil
}

// preset replaces zero by a default.
func preset(p *int, v int) {
	if *p == 0 {
		*p = v
	}
}
