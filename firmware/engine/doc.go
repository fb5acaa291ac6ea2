// SPDX-License-Identifier: Apache-2.0

// Package engine is the adapter's TCP/IP engine behind a small interface, so
// that the firmware knows connections and bytes but not a protocol stack.
//
// [Engine] and [Endpoint] are what the firmware asks for; [New] returns the
// implementation over gVisor netstack, an unmodified module, joined to the
// Ethernet side by a link endpoint of our own that carries segments of up to
// 64 KiB with virtio-net offload metadata ([Port], [Frame]). Package
// enginetest holds a fake for tests of the firmware.
//
// # Ownership and concurrency
//
// Every method is safe for concurrent use and none blocks. Payload crosses the
// boundary by one copy: [Endpoint.Read] hands slices of the engine's own
// memory to a callback, [Endpoint.Write] has a callback fill the engine's own
// memory; neither slice may be kept. Readiness is reported through [Sink],
// which is called with engine locks held and therefore only records.
//
// The callbacks of Read and Peek run with the endpoint's lock held and must
// not call the endpoint; the callback of Write may ask for its Info. A callback
// that reads memory of the guest must recover from its faults itself.
//
// # What holds an endpoint's memory
//
// Received bytes that nobody reads stay with the engine and close the window
// (1 MiB at first, 16 MiB at most, charged by the memory behind them); [Holder]
// says how many they are, and lets the owner take fewer. Queued
// bytes stay until the peer acknowledges them, up to [OptSendBuffer]. After
// Close a connection lives on without its owner until the peer has everything,
// then for [Config.TimeWait]; a peer that never sends its FIN is given up after
// 60 s.
//
// # Connections that go from engine to engine
//
// [Carrier] takes a connection out of one engine and into another, which may be
// another process or another adapter, without a word to the peer. The stack
// only knows how to open connections; what plays the peer in a handshake that
// never leaves, and translates sequence numbers and time stamps afterwards, is
// in gate.go. Other connections pay one atomic load for each packet.
//
// # Standards
//
// TCP as RFC 9293 with window scaling and timestamps (RFC 7323), SACK (RFC 2018,
// RFC 6675), Reno (RFC 5681) and, if asked for, RACK (RFC 8985); UDP, ICMP, ARP
// and IPv6 neighbour discovery (RFC 4861) without router advertisements or
// duplicate address detection: addresses and routes are those given.
package engine
