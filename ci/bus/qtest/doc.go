// SPDX-License-Identifier: Apache-2.0

// Package qtest is the rung of the bus ladder between function calls and a
// guest: a guestdriver.Bus on a real QEMU under -accel qtest, which has no
// running CPUs. Configuration space, registers and the MSI-X table go through
// QEMU's vfio-user client; the guest's RAM is a file that this process maps,
// so that descriptors are loaded and stored as a guest's driver would.
//
// An MSI-X entry points at a word of RAM and an interrupt is its data
// appearing there, as in QEMU's own libqos. Nobody tells when that happens:
// [Bus.Wait] looks again after pauses of at most half a millisecond.
//
// # Ownership and concurrency
//
// The bus maps the machine's RAM and unmaps it at Close; slices of AllocDMA
// must not be used after it. It does not own the machine. All methods are safe
// for concurrent use.
package qtest
