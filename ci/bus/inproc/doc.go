// SPDX-License-Identifier: Apache-2.0

// Package inproc is the lowest rung of the bus ladder: a guestdriver.Bus that
// reaches a PCI function by function calls.
//
// DMA memory is Go heap, so that under the race detector every hand-over of a
// descriptor or a buffer between driver and adapter is checked: what neither
// an owner bit nor an event word orders is reported as a race. IOVAs lie above
// 4 GiB with unmapped pages between allocations, so that a lost upper half or
// an access past the end fails instead of hitting something.
//
// # Ownership and concurrency
//
// [Memory] is made first, since the function needs it; [New] joins both into a
// [Bus]. The bus does not own the function. All methods are safe for
// concurrent use. FreeDMA and Close return when no access of the function to
// the memory is running any more.
package inproc
