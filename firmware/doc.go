// SPDX-License-Identifier: Apache-2.0

// Package firmware is the offload logic of the adapter: it takes requests out
// of the input tables, runs connections on an [engine.Engine], moves payload
// between host memory and the engine, and writes responses, as SPEC.md (in
// vdev/abi, revision 1.0) says.
//
// It knows the chip it runs on only as a [Chip]: memory behind DMA, interrupt
// vectors, events. Files follow the journeys of a request: create.go, queue.go
// (taking requests, handing slots back, sleeping), request.go (the ledger and
// what is refused), control.go, connect.go, listen.go, send.go, receive.go,
// broadcast.go (one send on many connections), copies.go (what is kept of sends),
// senddelay.go (when sends are read), receivedelay.go and receivetempo.go (when
// received bytes go), receivegather.go, reach.go and combine.go (in how many
// transfers and responses),
// pick.go, history.go, group.go, table.go and piece.go (which buffer), skip.go
// (bytes that go to none), peek.go (bytes that are shown first, or redirected),
// placement.go (what stores received bytes are written by), spill.go
// (memory that runs short), bulk.go (whose turn it
// is), protocol.go and datagram.go (where datagrams part from streams),
// notify.go (when completions and arrivals are told; the rules are in files of
// their own: notifygather.go, notifytempo.go, notifypattern.go), reports.go,
// terminate.go, cancel.go, attributes.go and settings.go, respond.go (publishing
// responses), drain.go, state.go (state records) and carry.go (connections that
// outlive their firmware), checker.go and checkerdata.go (the protocol checker,
// which only looks).
//
// # Concurrency and ownership
//
// One goroutine, the worker, owns one queue and all state of its connections;
// everything else hands it work: commands and doorbells by [Firmware]'s methods,
// which may be called from any goroutine, events of the engine by a list that
// takes no lock, connections that another queue accepted by one that takes a
// short one. Memory accounts, ids and the directory of connections are shared
// by all queues. No lock is held while the chip or the engine is called, but
// for the one that serialises life cycle and commands, and the one of the
// adapter's addresses, which workers take for attribute requests only.
//
// Host memory is reached through [Chip] only, within a callback or by copy,
// never kept. Descriptors and control buffers are copied once and judged by the
// copy. Payload is copied once, between host memory and the engine's, within
// the engine's callbacks.
//
// # States of a queue
//
//	disabled --create--> running <--pause, resume--> paused
//	running, paused --drain--> draining --all published--> drained
//	running, paused, draining --tables unreachable--> error
//	any --destroy--> (draining for at most 1 s) --> disabled
//	any --reset--> disabled, at once
//
// # Bounds
//
// A worker's pass takes at most 256 requests and gives at most 32 turns in each
// direction. At 4,096 responses that the host does not take, it takes no
// requests, accepts and delivers nothing; targets of connect and listen
// requests are started as responses have room. What requests and connections
// need beyond that is charged to adapter memory.
package firmware
