// SPDX-License-Identifier: Apache-2.0

// Package port holds the Ethernet sides of the adapter: implementations of
// [engine.Port] and wrappers around any of them.
//
//	adapter                              this package
//	engine ── Transmit ──────────────▶  NAT      a gateway in this process, no privilege needed
//	       ◀─ receive ── queue ──────
//	                                   Stream   length-prefixed frames on a socket: QEMU's -netdev stream, passt
//	                                   Tap      a tap device: the host's kernel at the other end; segments of up to 64 KiB both ways
//	          any of them inside Capture (pcapng of both directions) or Impair (a bad wire, seeded)
//
// [NAT] is the default: a second TCP/IP stack that plays the gateway of a
// small network with one adapter in it. It turns the adapter's connections
// into sockets of the host, accepted connections of host listeners into
// connections to the adapter, and datagrams both ways. Its IP addresses follow the user-mode network of
// QEMU (slirp), so that what people know by heart works: gateway (and the
// host's loopback) 10.0.2.2, resolver 10.0.2.3, adapter 10.0.2.15.
//
// # Ownership
//
// Frames belong to the caller of Transmit and of receive during that call.
// A Transmit copies a frame once, into memory of the gateway; a frame towards
// the adapter is handed over in the gateway's own memory and copied by the
// receiver. Payload between the gateway and a host socket is moved by the
// kernel from and to the gateway's memory, so no buffer waits beside an idle
// connection.
//
// # Concurrency
//
// Everything exported is safe for concurrent use. A Transmit runs the
// gateway's input in the caller's goroutine and never waits; what the gateway
// sends goes through a queue to one goroutine, which calls receive. Attach(nil)
// and Close must not be called from receive.
//
// # Hostile frames and packets
//
// The adapter's frames are the guest's word in the end, and what hosts send is
// the network's. Both are dropped, refused or cut at a limit, and counted by
// reason in [Stats]; nothing is allocated without a bound and every wait ends.
package port
