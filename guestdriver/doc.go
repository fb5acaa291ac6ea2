// SPDX-License-Identifier: Apache-2.0

// Package guestdriver drives a toebox offload adapter from user space and
// offers its connections as net.Conn, net.Listener and a dialer.
//
// The adapter is reached through a [Bus]: vfio (package vfio below this one)
// in a guest, or the implementations of ci/bus in tests. The programming
// interface is SPEC.md in vdev/abi.
//
// # Ownership and concurrency
//
// An [Adapter] owns its bus and all memory it allocates from it. One goroutine
// per queue consumes responses; every exported method is safe for concurrent
// use unless it says otherwise. Descriptors, control buffers and bounce
// buffers lie in DMA memory: a buffer that was posted belongs to the adapter
// until its terminal response.
//
// What the adapter writes is not trusted: a response that names an unknown
// tag, a wrong length or an impossible offset is counted and dropped.
package guestdriver
