// SPDX-License-Identifier: Apache-2.0

// Package task is what the benchmark's two halves say to each other: the host sends a
// [Task], a line of JSON, and the guest's agent answers with lines of [Answer], one
// when what is measured begins and one with the [Result].
//
//	host:   {"side":"adapter","kind":"send","peer":"10.0.2.2:4000","conns":1,"size":65536, ...}
//	guest:  {"begun":true}
//	guest:  {"result":{"bytes":1073741824,"elapsed":1000000000, ...}}
//
// One task runs at a time. A line is no longer than [MaxLine].
package task
