// SPDX-License-Identifier: Apache-2.0

// Package device assembles an adapter: Ethernet port, capture, engine,
// firmware, PCI function, and the vfio-user server that offers it to QEMU.
//
//	client ── vfiouser.Server ── vdev.Function ── firmware.Firmware ── engine ── [capture] ── port
//
// [New] makes one; [Device.Serve] offers it on a socket. Buses that call the
// function directly give their own memory and interrupts and do not serve.
//
// # Firmware from elsewhere
//
// A package of any module can be the firmware, if it exports
//
//	func New(c firmware.Config) (vdev.Firmware, vdev.Counters)
//
// The package may wrap package firmware, change its Config first, or replace it:
// [vdev.Firmware] says what it has to do, [chip.Chip] in the Config what the
// function does for it, [engine.Engine] what TCP/IP it may use, SPEC.md what
// drivers expect. *firmware.Firmware and *firmware.Counters are one such pair.
//
//	toebox fw load --firmware ./my/package
//
// builds the device process with it and has it take over under a running VM.
// Its go.mod needs no line about module toebox; what it says of other modules
// holds for the whole program.
//
// A Device owns all its parts, the port, the forwarded listeners and the
// capture's writer included, from the call of New on, also when that fails. Its
// methods are safe for concurrent use. VFIOUSERDEBUG=1 shows the messages of
// vfio-user.
package device
