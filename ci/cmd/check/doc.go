// SPDX-License-Identifier: Apache-2.0

// Command check is what a developer runs before each commit ("make test"):
// formatting, vet, staticcheck, all tests under the race detector with the
// conformance kit on function calls and a subset of it on QEMU without a guest,
// the fuzz targets of the protocol with some thousand inputs each, and a subset of
// the kit in a virtual machine.
//
// It gets QEMU and a kernel first if they are not in the cache, so that no test
// is skipped for want of them. It ends with a line "N passed, N failed, N
// skipped" and an exit status of 0 when nothing failed.
package main
