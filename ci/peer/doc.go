// SPDX-License-Identifier: Apache-2.0

// Package peer is the other end of the adapter's network: it implements
// conformance.Peer by sockets of the host ([Host]), on its loopback or in another
// network namespace, and carries the same interface from a guest to the host over
// one byte stream ([Serve] on the host, [NewRemote] in the guest), one line of
// JSON for each call and answer.
//
// # Ownership and concurrency
//
// A Host owns its sockets and goroutines until Close. All methods are safe for
// concurrent use. What a remote client asks for is bounded: sessions,
// calls in flight and the length of a line.
package peer
