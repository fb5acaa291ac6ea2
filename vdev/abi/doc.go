// SPDX-License-Identifier: Apache-2.0

// Package abi is the programming interface of the toebox offload adapter in
// Go: registers, descriptors, event words, control buffers, attributes, status
// codes and counters, as SPEC.md (in this folder) lays them down.
//
// Adapter and driver both import it and it imports the standard library only.
// Descriptors and records are views: a type over the bytes with a getter and a
// setter per field, little endian at each access, no copy. Views do not
// allocate; they panic on slices that are too short, so the caller slices
// bounds-checked memory.
//
// The owner bit and the event words are shared with another processor. They
// are loaded and stored through [LoadWord] and [StoreWord] only, which are
// atomic and give the order that SPEC.md §4 asks for; everything else in a
// slot is plain memory that belongs to one side at a time.
//
// toebox.h has the same for C, made from the constants here.
package abi

//go:generate go run ./internal/cheader/gen
