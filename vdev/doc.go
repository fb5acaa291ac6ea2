// SPDX-License-Identifier: Apache-2.0

// Package vdev is the adapter's PCI function (SPEC.md in vdev/abi, §2, §3, §9
// to §12): configuration space with its capabilities, the register file of
// BAR0, the MSI-X table of BAR2, interrupts, bus-master DMA, resets, the
// non-volatile image and the test registers. Above it stands the vfio-user
// server or a function-call bus, below it the firmware, which sees the
// function as a [firmware.Chip].
//
// What any PCI function has is that of [pci.Function], declared in config.go:
// here is what the adapter puts on top. Registers (registers.go) are declared in
// tables: offset, reset value, access, and the hooks that make a register do
// something. Package vdev/device assembles a whole adapter.
//
// # Ownership and concurrency
//
// All methods of [Function] are safe for concurrent use. One lock guards the
// registers and is held around accesses to configuration space and resets, with
// all that these call; then comes the lock of events and causes, then that of
// the [pci.Function]. Doorbells, interrupts of unmasked MSI-X vectors and DMA
// take no lock. Guest memory belongs to the guest and is reached through [DMA]
// only, by copy or within a callback.
//
// No register access waits for the guest or its VMM: DMA that has to travel by
// message runs in goroutines of its own, and a reset abandons it.
package vdev
