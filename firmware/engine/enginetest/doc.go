// SPDX-License-Identifier: Apache-2.0

// Package enginetest plays the other side of package engine in tests.
//
// [Engine] is an engine without a network: a test finds the endpoints that the
// code under test has opened and says what happens to them ([Endpoint.Deliver],
// [Endpoint.Ack], [Endpoint.Refuse], [Endpoint.Arrive]...). It starts no
// goroutine and knows no time: events are reported within the call that causes
// them, on the caller's goroutine, with the endpoint's lock held, as a real
// engine does.
//
// [Pipe] joins two real engines back to back in memory, with loss and
// reordering if wanted, and [Clock] is time that a test moves.
//
// # Ownership and concurrency
//
// Everything is safe for concurrent use. Slices handed to callbacks are valid
// during the call; slices returned to the test are copies.
package enginetest
