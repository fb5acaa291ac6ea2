// SPDX-License-Identifier: Apache-2.0

package vdev

import (
	"toebox/vdev/abi"
	vfiouser "toebox/vfio-user"
	"toebox/vfio-user/pci"
)

// Places of the capabilities and of a register in them.
const (
	capPM   = 0x40
	capPCIe = 0x48
	capMSIX = 0x88
	capDSN  = 0x100

	cfgSerial = capDSN + 4
)

// describe declares the PCI function (SPEC.md §2).
func (f *Function) describe() pci.Config {
	return pci.Config{
		Vendor: abi.VendorID, Device: abi.DeviceID, Revision: abi.RevisionID, Class: abi.ClassCode,
		SubsystemVendor: abi.SubsystemVendorID, Subsystem: abi.SubsystemID, Pin: 1,
		BARs: [6]pci.BAR{
			abi.BARRegisters: {Kind: pci.Memory64, Size: abi.BARRegistersSize, Read: f.readRegister, Write: f.writeRegister},
			abi.BARMSIX:      {Kind: pci.Memory64, Size: abi.BARMSIXSize},
		},
		Capabilities: []pci.Capability{
			pci.At(capPM, pci.PM{}),
			pci.At(capPCIe, pci.Express{FLR: true}),
			pci.At(capMSIX, pci.MSIX{Vectors: abi.NumVectors, BAR: abi.BARMSIX, Table: abi.MSIXTableOffset, PBA: abi.MSIXPBAOffset}),
			pci.At(capDSN, pci.DSN{}), // see setSerial
		},
		Reset: func(pci.ResetKind) { f.resetLocked(true) },
		Changed: func(was, now pci.State) {
			if f.irq.changed(was, now) {
				f.count(abi.CounterInterrupts)
			}
		},
		Disconnected: func() { _ = f.Reset() },
	}
}

// setSerial puts the MAC into the serial number capability as an EUI-64.
func (f *Function) setSerial(mac [6]byte) {
	var eui uint64
	for _, b := range []byte{mac[0], mac[1], mac[2], 0xff, 0xfe, mac[3], mac[4], mac[5]} {
		eui = eui<<8 | uint64(b)
	}
	f.pci.Preset(cfgSerial, 8, eui)
}

// ServerConfig describes the function to vfio-user clients.
func (f *Function) ServerConfig() vfiouser.Config { return f.pci.ServerConfig() }

// ReadRegion implements [vfiouser.Device].
func (f *Function) ReadRegion(region int, offset uint64, p []byte) error {
	if region == vfiouser.RegionConfig {
		f.mu.Lock()
		defer f.mu.Unlock()
	}
	return f.pci.ReadRegion(region, offset, p)
}

// WriteRegion implements [vfiouser.Device].
func (f *Function) WriteRegion(region int, offset uint64, p []byte) error {
	if region == vfiouser.RegionConfig {
		f.mu.Lock()
		defer f.mu.Unlock()
	}
	return f.pci.WriteRegion(region, offset, p)
}

// Reset implements [vfiouser.Device]: a device reset.
func (f *Function) Reset() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.pci.Reset()
}

// Disconnected implements [vfiouser.Device]. The next client finds the
// function as after a reset.
func (f *Function) Disconnected() { f.pci.Disconnected() }
