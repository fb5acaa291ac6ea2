// SPDX-License-Identifier: Apache-2.0

// Package nontemporal copies memory with stores that do not leave the bytes in
// the processor's caches (RX11, SPEC.md §14.13): MOVNTDQ on amd64, STNP on arm64,
// where it is a hint, and the ordinary copy elsewhere. The result is the same.
//
// # Ownership and concurrency
//
// Nothing is kept. When Copy returns, its stores are ordered before all later
// ones of the caller, as those of copy are. The race detector does not see what
// assembly stores.
//
// # Faults
//
// A store, or load, that faults panics as one of copy does, also under
// debug.SetPanicOnFault: the assembly is a leaf without a frame, which the
// runtime unwinds.
//
// # Other processors
//
// The stores of arm64 run on any Linux with an emulator of programs:
//
//	GOARCH=arm64 go test -exec qemu-aarch64-static -run Copy ./firmware/nontemporal
//
// QEMU 7.2's does not pass on at which address a fault was, which TestFault asks.
package nontemporal
