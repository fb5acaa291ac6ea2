// SPDX-License-Identifier: Apache-2.0

// Package peer is the other end of the adapter's network: it implements
// conformance.Peer by sockets on the host's loopback ([Host]), or in a network
// namespace with a tap device ([Network]), and carries the same interface from
// a guest to the host over one byte stream ([Serve] on the host, [NewRemote] in
// the guest), one line of JSON for each call and answer.
//
// # Ownership and concurrency
//
// A Host owns its sockets and goroutines until Close. All methods are safe for
// concurrent use. What a remote client asks for is bounded: sessions,
// calls in flight and the length of a line.
package peer
