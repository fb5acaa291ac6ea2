// SPDX-License-Identifier: Apache-2.0

package keeper

import (
	"encoding/binary"
	"slices"
)

// Offsets in configuration space (PCI 3.0 §6.1) and capability ids (§H and PCI
// Express Base §7).
const (
	maxConfig     = 4096
	cfgCommand    = 0x04
	cfgStatus     = 0x06
	cfgHeaderType = 0x0e
	cfgBAR0       = 0x10
	cfgROM        = 0x30
	cfgCapPointer = 0x34
	cfgLine       = 0x3c
	cfgCaps       = 0x40
	cfgPlainEnd   = 0x100

	statusCaps = 1 << 4

	capPM   = 0x01
	capMSI  = 0x05
	capPCIe = 0x10
	capMSIX = 0x11
	capAF   = 0x13

	pmeStatus  = 1 << 15 // of PM control: write 1 to clear
	pcieFLR    = 1 << 15 // of PCIe device control: resets the function
	afFLR      = 1 << 0  // of AF control: resets the function
	maxCaps    = (cfgPlainEnd - cfgCaps) / 4
	plainBARs  = 6
	bridgeBARs = 2
)

// capability is one in the list of configuration space.
type capability struct {
	id uint8
	at int
}

// capabilities walks the list. One that loops or leaves its place ends there.
func capabilities(space []byte) []capability {
	if len(space) < cfgPlainEnd || space[cfgStatus]&statusCaps == 0 {
		return nil
	}
	var caps []capability
	for at := int(space[cfgCapPointer] &^ 3); at >= cfgCaps && len(caps) < maxCaps; at = int(space[at+1] &^ 3) {
		caps = append(caps, capability{space[at], at})
	}
	return caps
}

// register is one that is put back: the bits of mask, as last written.
type register struct {
	at, size int
	mask     uint32
	name     string
}

// registers returns the registers of a configuration space whose final values
// matter, in the order in which they are put back. Those that the device does
// things by come last, the power state at the very end.
func registers(space []byte) []register {
	if len(space) < cfgPlainEnd {
		return nil
	}
	var regs, late []register
	bars := plainBARs
	switch space[cfgHeaderType] & 0x7f {
	case 0:
		regs = append(regs, register{cfgROM, 4, ^uint32(0), "ROM BAR"})
	case 1:
		bars = bridgeBARs
	default:
		bars = 0
	}
	for i := range bars {
		regs = append(regs, register{cfgBAR0 + 4*i, 4, ^uint32(0), "BAR"})
	}
	regs = append(regs, register{cfgLine, 1, 0xff, "interrupt line"})
	late = append(late, register{cfgCommand, 2, 0xffff, "Command"})
	for _, c := range capabilities(space) {
		if c.at > cfgPlainEnd-12 {
			continue // too near to the end to be what it says
		}
		switch c.id {
		case capPCIe:
			regs = append(regs, register{c.at + 8, 2, 0xffff &^ pcieFLR, "PCIe device control"})
		case capMSI:
			regs = append(regs, register{c.at + 2, 2, 0xffff, "MSI control"})
		case capMSIX:
			regs = append(regs, register{c.at + 2, 2, 0xffff, "MSI-X control"})
		case capPM:
			late = append(late, register{c.at + 4, 2, 0xffff &^ pmeStatus, "PM control"})
		}
	}
	return append(regs, late...)
}

// configSpace is what is known of the device's configuration space.
type configSpace struct {
	fresh   []byte // as the device first had it
	value   []byte // as last read or written
	last    []byte // as last written by the client, where written says so
	written []bool // since the last reset
	regs    []register
	flr     []register // writing a bit of the mask resets the function
}

func newConfigSpace(space []byte) configSpace {
	c := configSpace{fresh: space, value: slices.Clone(space), last: make([]byte, len(space)), written: make([]bool, len(space)), regs: registers(space)}
	for _, p := range capabilities(space) {
		switch {
		case p.id == capPCIe && p.at <= cfgPlainEnd-12:
			c.flr = append(c.flr, register{at: p.at + 8, size: 2, mask: pcieFLR})
		case p.id == capAF && p.at <= cfgPlainEnd-6:
			c.flr = append(c.flr, register{at: p.at + 4, size: 1, mask: afFLR})
		}
	}
	return c
}

// in reports whether an access lies in the space.
func (c *configSpace) in(offset uint64, n int) bool {
	return offset <= uint64(len(c.value)) && uint64(n) <= uint64(len(c.value))-offset
}

// wrote notes a write of the client.
func (c *configSpace) wrote(offset uint64, p []byte) {
	if !c.in(offset, len(p)) {
		return
	}
	for _, f := range c.flr {
		var v uint32
		for i := range f.size {
			if at := f.at + i - int(offset); at >= 0 && at < len(p) {
				v |= uint32(p[at]) << (8 * i)
			}
		}
		if v&f.mask != 0 {
			c.reset()
			return // what else the write says does not survive
		}
	}
	for i, b := range p {
		c.value[int(offset)+i], c.last[int(offset)+i] = b, b
		c.written[int(offset)+i] = true
	}
}

// read notes what the device has answered.
func (c *configSpace) read(offset uint64, p []byte) {
	if c.in(offset, len(p)) {
		copy(c.value[offset:], p)
	}
}

// answer fills p with what is known.
func (c *configSpace) answer(offset uint64, p []byte) {
	for i := range p {
		p[i] = 0xff
	}
	if c.in(offset, len(p)) {
		copy(p, c.value[offset:])
	}
}

// reset notes that the device has been reset.
func (c *configSpace) reset() {
	copy(c.value, c.fresh)
	clear(c.written)
}

// configWrite is a register and the value to put back.
type configWrite struct {
	at   uint64
	data []byte
}

// final returns the writes that give a new device the final values. The bytes
// of a register that the client never wrote keep what the device has.
func (c *configSpace) final() []configWrite {
	var w []configWrite
	for _, r := range c.regs {
		if !slices.Contains(c.written[r.at:r.at+r.size], true) {
			continue
		}
		var b [4]byte
		for i := range r.size {
			b[i] = c.value[r.at+i]
			if c.written[r.at+i] {
				b[i] = c.last[r.at+i]
			}
		}
		v := binary.LittleEndian.Uint32(b[:]) & r.mask
		binary.LittleEndian.PutUint32(b[:], v)
		w = append(w, configWrite{uint64(r.at), slices.Clone(b[:r.size])})
	}
	return w
}
