// SPDX-License-Identifier: Apache-2.0

// Package vfiousertest plays the other side of vfio-user in tests: a [Peer]
// that sends and expects literal bytes, as a client or as a server; a [Device]
// made of plain memory; guest memory and eventfds to hand over; and [Main],
// which fails a package's tests if they leak.
//
// Everything it hands out is closed when the test ends. Waits are bounded and
// fail the test. A Peer is for one goroutine; a Device is safe for concurrent
// use.
package vfiousertest
