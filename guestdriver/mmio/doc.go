// SPDX-License-Identifier: Apache-2.0

// Package mmio reaches the registers of a mapped BAR by exactly one 32-bit
// access each (SPEC.md §2.1), in order with memory that the device shares.
//
// The mapping is the caller's; [Load] and [Store] check offset against its
// length and are safe for concurrent use. Offsets are multiples of 4.
package mmio
