// SPDX-License-Identifier: Apache-2.0

// Package pool hands out pieces of memory that is mapped for DMA: what the
// buses of a Linux guest have in common.
//
// A [Pool] owns its regions until Blank, after which they are there as private
// zero pages, so that a goroutine that was about to touch them does not fault.
// It has no lock: its bus does.
package pool
