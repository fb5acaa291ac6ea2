// SPDX-License-Identifier: Apache-2.0

package vfiouser

import (
	"encoding/binary"
	"sync/atomic"
	"unsafe"
)

// The functions here take slices of the length that their names say, aligned to
// it. Go has no atomics of 8 and 16 bits; a plain access of that width is one
// instruction on every machine, and the functions are not inlined, so that the
// compiler cannot merge or drop it.

//go:noinline
func load8(b []byte) uint8 { return *(*uint8)(unsafe.Pointer(&b[0])) }

//go:noinline
func load16(b []byte) uint16 { return *(*uint16)(unsafe.Pointer(&b[:2][0])) }

func load32(b []byte) uint32 { return atomic.LoadUint32((*uint32)(unsafe.Pointer(&b[:4][0]))) }

func load64(b []byte) uint64 { return atomic.LoadUint64((*uint64)(unsafe.Pointer(&b[:8][0]))) }

//go:noinline
func store8(b []byte, v uint8) { *(*uint8)(unsafe.Pointer(&b[0])) = v }

//go:noinline
func store16(b []byte, v uint16) { *(*uint16)(unsafe.Pointer(&b[:2][0])) = v }

func store32(b []byte, v uint32) { atomic.StoreUint32((*uint32)(unsafe.Pointer(&b[:4][0])), v) }

func store64(b []byte, v uint64) { atomic.StoreUint64((*uint64)(unsafe.Pointer(&b[:8][0])), v) }

func swap32(b []byte, v uint32) uint32 {
	return atomic.SwapUint32((*uint32)(unsafe.Pointer(&b[:4][0])), v)
}

func cas32(b []byte, old, new uint32) bool {
	return atomic.CompareAndSwapUint32((*uint32)(unsafe.Pointer(&b[:4][0])), old, new)
}

// loadBytes copies b, which lies at off of a page, to p, of equal length: in one
// go if it is a word.
func loadBytes(p, b []byte, off uint64) {
	if off&uint64(len(b)-1) == 0 {
		switch len(b) {
		case 1:
			p[0] = load8(b)
			return
		case 2:
			binary.NativeEndian.PutUint16(p, load16(b))
			return
		case 4:
			binary.NativeEndian.PutUint32(p, load32(b))
			return
		case 8:
			binary.NativeEndian.PutUint64(p, load64(b))
			return
		}
	}
	copy(p, b)
}

// storeBytes is the reverse of loadBytes.
func storeBytes(b, p []byte, off uint64) {
	if off&uint64(len(b)-1) == 0 {
		switch len(b) {
		case 1:
			store8(b, p[0])
			return
		case 2:
			store16(b, binary.NativeEndian.Uint16(p))
			return
		case 4:
			store32(b, binary.NativeEndian.Uint32(p))
			return
		case 8:
			store64(b, binary.NativeEndian.Uint64(p))
			return
		}
	}
	copy(b, p)
}
