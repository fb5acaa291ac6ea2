// SPDX-License-Identifier: Apache-2.0

// Package conformance is the kit of named functions that say whether an
// adapter keeps SPEC.md. A function is named after the requirement it proves
// (TestIF02_Gap); the same functions run on every rung of the bus ladder:
// function calls, the protocol without QEMU, QEMU without a guest, and inside a
// guest.
//
// # Independence
//
// The kit imports the driver's Bus and the abi package for its word access
// only. Every number that checks the interface (offset, bit, status, id) is a
// literal copied from SPEC.md: a wrong constant shared by driver and adapter
// agrees with itself, and only a literal finds it. The host's side of a queue
// is therefore written here a second time, in ring.go, from the text.
//
// # Environment
//
// An [Env] opens the adapter and knows the [Peer], the other end of the
// network. A function gets a [T]: the reporting of package testing plus the
// environment. Every wait is bounded and fails the function with the name of
// what it waited for.
//
// # Concurrency
//
// A function runs on one goroutine and may start others; T is safe for
// concurrent use as far as testing.T is. Functions do not run in parallel:
// on the upper rungs there is one adapter.
package conformance
