// SPDX-License-Identifier: Apache-2.0

package vdev

import (
	"encoding/binary"

	"toebox/vdev/abi"
)

// configSize is the size of a PCI Express function's configuration space.
const configSize = 4096

// Registers of the type 0 header (PCI Local Bus 3.0, section 6.1).
const (
	cfgCommand = 0x04
	cfgStatus  = 0x06
	cfgCaps    = 0x40 // first capability

	commandMemory      = 1 << 1
	commandMaster      = 1 << 2
	commandINTxDisable = 1 << 10
	statusINTx         = 1 << 3
)

// Places of the capabilities and of the registers in them that act.
const (
	capPM   = cfgCaps // PCI Power Management 1.2, section 3.2
	capPCIe = 0x48    // PCI Express Base 3.0, section 7.8, version 2: 60 bytes
	capMSIX = 0x88    // PCI Local Bus 3.0, section 6.8.2
	capDSN  = 0x100   // PCI Express Base 3.0, section 7.12

	cfgPMCSR       = capPM + 4
	cfgDevCtl      = capPCIe + 8
	cfgMSIXControl = capMSIX + 2
	cfgSerial      = capDSN + 4

	pmStateMask = 3
	pmD0        = 0
	pmD3hot     = 3
	devCtlFLR   = 1 << 15
	msixEnable  = 1 << 15
	msixMask    = 1 << 14
)

// field is a field of the configuration space: its reset value, the bits that
// software may write, and those that it clears by writing 1.
type field struct {
	offset   int
	width    int // bytes: 1, 2 or 4
	reset    uint32
	writable uint32
	w1c      uint32
}

// configFields is the configuration space. What no field covers reads 0 and
// ignores writes.
func configFields() []field {
	fields := []field{
		// Header.
		{offset: 0x00, width: 2, reset: abi.VendorID},
		{offset: 0x02, width: 2, reset: abi.DeviceID},
		// Memory, master, parity, SERR#, INTx disable.
		{offset: cfgCommand, width: 2, writable: 0x0546},
		// Capabilities list; the error bits are W1C.
		{offset: cfgStatus, width: 2, reset: 0x0010, w1c: 0xf900},
		{offset: 0x08, width: 4, reset: abi.ClassCode<<8 | abi.RevisionID},
		{offset: 0x0c, width: 1, writable: 0xff}, // cache line size
		// BAR0 and BAR2: 64 bits wide, memory, not prefetchable.
		{offset: 0x10, width: 4, reset: 0x4, writable: ^uint32(abi.BARRegistersSize - 1)},
		{offset: 0x14, width: 4, writable: 0xffffffff},
		{offset: 0x18, width: 4, reset: 0x4, writable: ^uint32(abi.BARMSIXSize - 1)},
		{offset: 0x1c, width: 4, writable: 0xffffffff},
		{offset: 0x2c, width: 2, reset: abi.SubsystemVendorID},
		{offset: 0x2e, width: 2, reset: abi.SubsystemID},
		{offset: 0x3c, width: 1, writable: 0xff}, // interrupt line
		{offset: 0x3d, width: 1, reset: 1},       // INTA
	}
	caps := []struct {
		id, at int
		fields []field
	}{
		{0x01, capPM, []field{
			{offset: 2, width: 2, reset: 0x0003}, // version 1.2, no PME, no D1, no D2
			// No_Soft_Reset is 0: leaving D3hot resets the function.
			{offset: 4, width: 2, writable: pmStateMask},
		}},
		{0x10, capPCIe, []field{
			{offset: 0x02, width: 2, reset: 0x0002},     // version 2, endpoint
			{offset: 0x04, width: 4, reset: 0x10008000}, // FLR, role-based error reporting, 128 bytes payload
			// Error reporting, relaxed ordering, payload and read size, no snoop.
			{offset: 0x08, width: 2, reset: 0x2810, writable: 0x78ff},
			{offset: 0x0a, width: 2, w1c: 0x000f},
			{offset: 0x0c, width: 4, reset: 0x00400011}, // 2.5 GT/s, x1, no ASPM
			{offset: 0x10, width: 2, writable: 0x00c8},
			{offset: 0x12, width: 2, reset: 0x0011},
			{offset: 0x24, width: 4, reset: 0x00000010}, // completion timeout can be disabled
			{offset: 0x28, width: 2, writable: 0x0010},
			{offset: 0x2c, width: 4, reset: 0x00000002}, // 2.5 GT/s
			{offset: 0x30, width: 2, reset: 0x0001, writable: 0x000f},
		}},
		{0x11, capMSIX, []field{
			{offset: 2, width: 2, reset: abi.NumVectors - 1, writable: msixEnable | msixMask},
			{offset: 4, width: 4, reset: abi.MSIXTableOffset | abi.BARMSIX},
			{offset: 8, width: 4, reset: abi.MSIXPBAOffset | abi.BARMSIX},
		}},
	}
	link := 0x34
	for _, c := range caps {
		fields = append(fields,
			field{offset: link, width: 1, reset: uint32(c.at)},
			field{offset: c.at, width: 1, reset: uint32(c.id)})
		link = c.at + 1
		for _, f := range c.fields {
			f.offset += c.at
			fields = append(fields, f)
		}
	}
	// Device serial number, version 1, the only extended capability. Its 8
	// bytes are the MAC as an EUI-64: see setSerial.
	return append(fields, field{offset: capDSN, width: 4, reset: 0x00010003})
}

// configSpace is the configuration space as bytes. [Function.mu] guards it.
type configSpace struct {
	value, reset  [configSize]byte
	writable, w1c [configSize]byte
}

func newConfigSpace() *configSpace {
	c := &configSpace{}
	for _, f := range configFields() {
		for i := range f.width {
			c.reset[f.offset+i] = byte(f.reset >> (8 * i))
			c.writable[f.offset+i] = byte(f.writable >> (8 * i))
			c.w1c[f.offset+i] = byte(f.w1c >> (8 * i))
		}
	}
	c.value = c.reset
	return c
}

func (c *configSpace) word(offset int) uint16 { return binary.LittleEndian.Uint16(c.value[offset:]) }

// setSerial puts the MAC into the serial number capability as an EUI-64.
func (c *configSpace) setSerial(mac [6]byte) {
	eui := [8]byte{mac[5], mac[4], mac[3], 0xfe, 0xff, mac[2], mac[1], mac[0]}
	copy(c.value[cfgSerial:], eui[:])
	copy(c.reset[cfgSerial:], eui[:])
}

// write stores what the masks let through and reports whether the function
// level reset bit was among the bytes written.
func (c *configSpace) write(offset int, p []byte) (flr bool) {
	state := c.value[cfgPMCSR] & pmStateMask
	for i, v := range p {
		at := offset + i
		c.value[at] = c.value[at]&^c.writable[at]&^(v&c.w1c[at]) | v&c.writable[at]
		if at == cfgDevCtl+1 && v&(devCtlFLR>>8) != 0 {
			flr = true // self clearing: it is not among the writable bits
		}
	}
	if s := c.value[cfgPMCSR] & pmStateMask; s != pmD0 && s != pmD3hot {
		// A state that the function does not have: the write is dropped.
		c.value[cfgPMCSR] = c.value[cfgPMCSR]&^pmStateMask | state
	}
	return flr
}

// readConfig copies configuration space to p.
func (f *Function) readConfig(offset int, p []byte) {
	f.mu.Lock()
	defer f.mu.Unlock()
	copy(p, f.config.value[offset:])
	if f.irq.standing() && offset <= cfgStatus && cfgStatus < offset+len(p) {
		p[cfgStatus-offset] |= statusINTx
	}
}

// writeConfig writes configuration space and acts on what changed.
func (f *Function) writeConfig(offset int, p []byte) {
	f.mu.Lock()
	defer f.mu.Unlock()
	wasAsleep := f.config.word(cfgPMCSR)&pmStateMask == pmD3hot
	flr := f.config.write(offset, p)
	woke := wasAsleep && f.config.word(cfgPMCSR)&pmStateMask == pmD0
	if flr || woke {
		f.resetLocked(true)
		return
	}
	f.applyConfigLocked()
}

// applyConfigLocked makes DMA, BARs and interrupts follow the configuration
// space.
func (f *Function) applyConfigLocked() {
	if f.closed {
		return
	}
	command := f.config.word(cfgCommand)
	awake := f.config.word(cfgPMCSR)&pmStateMask == pmD0
	f.memory.Store(awake && command&commandMemory != 0)
	f.master.Store(awake && command&commandMaster != 0)
	if f.irq.configure(f.config.interrupts()) {
		f.count(abi.CounterInterrupts)
	}
}

// interrupts is what the configuration space says about interrupts.
func (c *configSpace) interrupts() irqConfig {
	command, msix := c.word(cfgCommand), c.word(cfgMSIXControl)
	return irqConfig{
		awake:       c.word(cfgPMCSR)&pmStateMask == pmD0,
		master:      command&commandMaster != 0,
		intxDisable: command&commandINTxDisable != 0,
		msix:        msix&msixEnable != 0,
		masked:      msix&msixMask != 0,
	}
}
