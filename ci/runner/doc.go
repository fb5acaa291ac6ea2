// SPDX-License-Identifier: Apache-2.0

// Package runner runs the conformance kit without package testing, on the host
// and in the guest alike, and reports.
//
// The native truth is the event stream of "go test -json" (test2json): [Run]
// emits it as things happen, [Follow] reads it from a guest and says what
// became of the tests of a guest that died. Text, JUnit and KTAP are made from
// it by [Text], [JUnit] and [KTAP].
//
// A test that does not end in its time is given up: its goroutines are dumped
// into its output, its adapter is taken away, and the next test runs.
//
// # Concurrency
//
// Tests run one after the other. Sinks are called from one goroutine at a
// time.
package runner
