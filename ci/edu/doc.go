// SPDX-License-Identifier: Apache-2.0

// Package edu compares vfio-user/edu with the device that it is made after. Its
// test puts QEMU's own -device edu and ours, by vfio-user-pci, into one machine
// under qtest, does the same random operations to both and compares every
// answer: registers, configuration space, memory, INTx and MSI.
//
// The operations follow from a seed, which is the first thing a failing test
// prints. TOEBOX_SEED=N repeats that run.
package edu
