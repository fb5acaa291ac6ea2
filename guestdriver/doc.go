// SPDX-License-Identifier: Apache-2.0

// Package guestdriver drives a toebox offload adapter from user space and
// offers its connections as net.Conn, net.Listener and a dialer, its datagram
// endpoints as net.PacketConn.
//
// The adapter is reached through a [Bus]: vfio or uio (packages below this one)
// in a guest, or the implementations of ci/bus in tests. The programming
// interface is SPEC.md in vdev/abi.
//
// # Ownership and concurrency
//
// An [Adapter] owns its bus and all memory it allocates from it. One goroutine
// per queue consumes responses, and calls that wait for one, in other modes than
// [ModeInterrupt], in its place (attend.go); every exported method is safe for concurrent
// use unless it says otherwise. Descriptors, control buffers and bounce
// buffers lie in DMA memory: a buffer that was posted belongs to the adapter
// until its terminal response.
//
// An application that wants no copies registers memory ([Adapter.Alloc],
// [Adapter.Map] for what it has mapped itself, [Adapter.Register]) and posts parts of it ([Buffer], [Conn.SendBuffer],
// [Conn.PostBuffer], [CompletionQueue]), or gives slices of it to Write,
// WriteBuffers and Read. It has the memory back with the final completion, or
// with the return of the call, and not before the adapter is done with it: when a
// call's deadline passes meanwhile the adapter is asked for it first. Who gets
// which bytes when both kinds meet stands in postbuffer.go. Several consumers share
// what came by a [Segment] each, connections share receive buffers by a [Pool],
// or, with a completion for each and under the application's own hand, by a
// [ReceiveGroup]; one buffer is sent on many of them by a [SendGroup], and several are
// filled as one by a [VirtualBuffer]. Where
// bytes go can be decided after a look at the first of them: peek.go. What the
// adapter may leave waiting, for how long, and whose turn comes first, say policies:
// [SendPolicy], [ReceivePolicy], [Schedule], [Placement], and [ChoicePolicy] which buffer
// takes them, of each connection or of those to come; datagram endpoints have some of them
// (packetpolicy.go).
// Options.Debug finds memory that is touched by whom it does not belong to.
//
// Every wait is bounded by a deadline, a context, or the end of the adapter.
// DMA memory is bounded by Options.Memory: how sends and receive buffers share
// it, so that a connection that is never read or never acknowledged stops no
// other, stands above [Conn.Write] and in receive.go.
//
// [Queue] is the interface below, for driver developers: it posts and consumes
// descriptors and knows nothing of what they mean; [Queue.BulkConnect] and
// [ReadReport] are what it knows of many results in one response. Package guestdrivertest has
// a fake adapter for tests of both.
//
// # Resets
//
// When the adapter was reset or has new firmware, everything outstanding ends
// once with [ErrReset], connections fail, and the driver starts over by
// itself: listeners are open again, calls made meanwhile wait. It learns of it
// from the adapter's vector, or from looking each Options.Watch.
//
// # Carrying over
//
// With Options.CarryOver TCP connections survive an orderly stop (SPEC.md
// §11.1) of the adapter, by whoever it is stopped, and go on in what runs after
// it: reads and writes just take longer, what was not acknowledged is sent
// again, attributes set by methods of [Conn] are set again, and policies that it
// had from the adapter. Those that the
// adapter does not hand over (being dialed, more unread data
// than the report buffers take), and all of them when it was not stopped in
// order, fail with [ErrReset] as above.
//
// What the adapter writes is not trusted: a response that names an unknown
// tag, a wrong length or an impossible offset is counted and dropped.
package guestdriver
