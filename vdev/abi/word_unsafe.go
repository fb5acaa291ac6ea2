// SPDX-License-Identifier: Apache-2.0

package abi

import (
	"sync/atomic"
	"unsafe"
)

// LoadWord loads the aligned 32-bit word at the start of b with acquire order.
// It panics if b is shorter than 4 bytes or not 4-byte aligned. Words are in
// the order of the machine, which SPEC.md §4.2 takes to be little endian.
func LoadWord(b []byte) uint32 { return atomic.LoadUint32(word(b)) }

// StoreWord stores the aligned 32-bit word at the start of b with release
// order and a full barrier behind it. It panics as LoadWord does.
func StoreWord(b []byte, v uint32) { atomic.StoreUint32(word(b), v) }

func word(b []byte) *uint32 {
	if len(b) < 4 { // not b[3], which the race detector takes for a plain load
		panic("abi: word is cut off")
	}
	p := unsafe.Pointer(unsafe.SliceData(b))
	if uintptr(p)&3 != 0 {
		panic("abi: word is not aligned")
	}
	return (*uint32)(p)
}
