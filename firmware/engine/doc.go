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
package engine
