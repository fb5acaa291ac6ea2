// SPDX-License-Identifier: Apache-2.0

// Package firmwaretest plays the other sides of package firmware in tests:
// [Chip] is a function whose host memory is Go heap, so that the race detector
// sees the hand-over of slots and buffers; [Host] is a driver of one queue that
// knows SPEC.md §4 and §5 and nothing else.
//
// # Ownership and concurrency
//
// A Chip is safe for concurrent use. A Host belongs to one goroutine. Memory of
// a Chip is shared with the firmware: what SPEC.md gives to the adapter must
// not be touched by the test.
package firmwaretest
