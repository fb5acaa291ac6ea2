// SPDX-License-Identifier: Apache-2.0

// Package function holds the adapter's PCI function to vdev/abi/SPEC.md as QEMU
// sees it. Its tests serve a whole adapter by vfio-user to the real QEMU under
// qtest, without a guest, and look at it from the guest's side of the bus:
// configuration space, access rules, DMA, interrupts, power states and resets.
//
// What is compared are numbers copied from SPEC.md and the PCI specifications,
// none of the adapter's own constants. No test sleeps: each waits by looking
// again, and each look is a round trip through QEMU's main loop.
package function
