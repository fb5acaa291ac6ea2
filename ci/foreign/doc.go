// SPDX-License-Identifier: Apache-2.0

// Package foreign holds somebody else's driver to the interface: a program in
// any language that does what it is told by lines on its standard input
// (DRIVER.md), behind "toebox test --driver CMD". The program reaches the
// adapter of the socket rung through the kit, or speaks vfio-user itself; in a
// guest it meets the adapter as any driver there does.
//
// # Ownership and concurrency
//
// A [Driver] owns its process, the connection to the adapter that it opened for
// it, and the memory. Its methods are called from one goroutine. What the
// program writes is judged line by line; it can fail a test, but neither hang
// nor crash it: each call ends with its context, and Close kills the program's
// process group.
package foreign
