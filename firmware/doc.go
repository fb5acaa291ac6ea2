// SPDX-License-Identifier: Apache-2.0

// Package firmware is the offload logic of the adapter: it takes requests out
// of the input tables, runs connections on an [engine.Engine], moves payload
// between host memory and the engine, and writes responses, as SPEC.md (in
// vdev/abi) says.
//
// It knows the chip it runs on only as a [Chip]: memory behind DMA, interrupt
// vectors, events. Files follow the journeys of a request: queue.go (taking
// requests, handing slots back), connect.go, send.go, receive.go, respond.go.
//
// # Concurrency and ownership
//
// One goroutine owns one queue and all state of its connections; everything
// else hands it work. The chip's side ([Firmware.Doorbell], [Firmware.Command]
// and so on) may be called from any goroutine. Host memory is reached through
// [Chip] only, within a callback or by copy, never kept.
package firmware
