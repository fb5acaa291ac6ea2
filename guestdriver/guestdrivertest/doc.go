// SPDX-License-Identifier: Apache-2.0

// Package guestdrivertest is a fake adapter for tests of drivers: a
// guestdriver.Bus whose other side is a goroutine that plays the adapter of
// SPEC.md over heap memory, so that the race detector checks the hand-over of
// descriptors and buffers.
//
// It knows connect, listen, send, receive, termination, cancellation and a few
// attributes; connections join two queues of the same fake, or echo. What it
// answers can be intercepted and forged.
//
// The fake is safe for concurrent use. Memory of AllocDMA is shared with the
// driver under the rules of SPEC.md §4.2 and nothing else.
package guestdrivertest
