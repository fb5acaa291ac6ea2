// SPDX-License-Identifier: Apache-2.0

// Package edu is QEMU's teaching device (1234:11e8, QEMU docs/specs/edu.rst)
// over vfio-user: a complete PCI device with registers, DMA both ways, INTx and
// MSI, and the example to begin one's own device from. To try it:
//
//	go run ./vfio-user/cmd/edu --socket-path=PATH
//	qemu-system-x86_64 ... -device '{"driver":"vfio-user-pci","socket":{"type":"unix","path":"PATH"}}'
//
// What a driver sees is what QEMU's own -device edu shows it, but for three
// things. A DMA transfer takes no time of its own, where QEMU's takes 100 ms.
// The factorial ends as soon as its low 32 bits are known to be zero. And a
// transfer that leaves the device's buffer, for which QEMU has no defined
// behaviour, moves nothing, is counted, and ends as any other does.
//
// # How it is made
//
// A device is declared as a [pci.Function], which looks after configuration
// space and the choice between INTx and MSI; a [vfiouser.Server] serves it, and
// gives the device guest memory. Accesses to BAR0 come in on the server's
// goroutine and are answered at once; whatever takes time is a goroutine of the
// device's own. There are at most two of them: while one runs, its status bit
// is set and the registers that it was started from cannot be written.
//
// # Ownership
//
// All state of the device is under one lock, but for the DMA buffer, which
// belongs to the transfer that runs. Guest memory is borrowed for the length of
// a copy. Methods are safe for concurrent use.
package edu
