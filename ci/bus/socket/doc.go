// SPDX-License-Identifier: Apache-2.0

// Package socket is the rung between function calls and QEMU: a
// guestdriver.Bus that reaches a device server by the vfio-user protocol
// itself, with package vfiouser's client. The server may be in this process or
// in another (toebox-device, or anybody's).
//
// Configuration space and registers travel as messages; stores to registers
// are posted, as QEMU's are. DMA memory is one memfd of which each allocation
// is mapped for the device by a DMA_MAP of its own, at IOVAs above 4 GiB with
// unmapped pages between. Interrupts are eventfds.
//
// # Ownership and concurrency
//
// The bus owns the connection. All methods are safe for concurrent use. After
// FreeDMA the device does not reach the memory any more: the server answers an
// unmap when no access is running.
//
// When the server dies, or a request is not answered in time, the adapter is
// gone for good: Read32 gives all ones, every Wait ends, other calls fail. DMA
// memory stays until Close.
package socket
