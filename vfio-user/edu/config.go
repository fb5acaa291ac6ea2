// SPDX-License-Identifier: Apache-2.0

package edu

import (
	"encoding/binary"

	vfiouser "toebox/vfio-user"
)

const configSize = 256 // conventional PCI

// Offsets in configuration space and bits there (PCI 3.0 §6.1 and §6.8.1).
const (
	cfgCommand = 0x04
	cfgStatus  = 0x06
	cfgMSI     = 0x40
	cfgUnused  = 0x4e // after MSI; QEMU lets the guest write there

	commandMaster      = 1 << 2
	commandINTxDisable = 1 << 10
	statusInterrupt    = 1 << 3
	msiEnable          = 1 << 0
)

// newConfig returns configuration space after power-on and, bit by bit, what of
// it can be written.
func newConfig() (value, writable [configSize]byte) {
	put := func(offset int, v, mask uint32) {
		binary.LittleEndian.PutUint32(value[offset:], v)
		binary.LittleEndian.PutUint32(writable[offset:], mask)
	}
	put(0x00, 0x11e8_1234, 0)           // device, vendor
	put(cfgCommand, 0x0010_0000, 0x507) // status: there are capabilities
	put(0x08, 0x00ff00_10, 0)           // class, revision
	put(0x0c, 0, 0xff)                  // cache line size
	put(0x10, 0, ^uint32(bar0Size-1))   // BAR0: memory, 32 bits
	put(0x2c, 0x1100_1af4, 0)           // subsystem
	put(0x34, cfgMSI, 0)
	put(0x3c, 0x0100, 0xff)                    // INTA, interrupt line
	put(cfgMSI, 0x0080_0005, msiEnable<<16)    // one vector, 64-bit address
	put(cfgMSI+4, 0, ^uint32(3))               // address
	for i := cfgMSI + 8; i < configSize; i++ { // address, data, unused
		writable[i] = 0xff
	}
	return value, writable
}

// writeConfigLocked stores to configuration space. QEMU shows its guest the
// BAR and MSI registers itself, and forwards what is written to them.
func (d *Device) writeConfigLocked(offset uint64, p []byte) {
	for i, b := range p {
		at, w := &d.config[offset+uint64(i)], d.writable[offset+uint64(i)]
		*at = *at&^w | b&w
	}
	// A function with MSI enabled must not use its pin (PCI 3.0 §6.8.3.3).
	d.setPinLocked(d.pin && !d.msiLocked())
}

func (d *Device) commandLocked() uint16 { return binary.LittleEndian.Uint16(d.config[cfgCommand:]) }

func (d *Device) msiLocked() bool { return d.config[cfgMSI+2]&msiEnable != 0 }

// setPinLocked sets what the function wants of its interrupt pin. Command may
// keep it from the wire, but not out of Status.
func (d *Device) setPinLocked(asserted bool) {
	d.pin = asserted
	d.config[cfgStatus] &^= statusInterrupt
	if asserted {
		d.config[cfgStatus] |= statusInterrupt
	}
	_ = d.srv.SetINTx(asserted && d.commandLocked()&commandINTxDisable == 0) // fails only without INTx
}

// notifyLocked signals an interrupt in the way that the guest has chosen.
func (d *Device) notifyLocked() {
	if d.msiLocked() {
		_ = d.srv.Trigger(vfiouser.IRQMSI, 0) // fails only without MSI
	} else {
		d.setPinLocked(true)
	}
}
