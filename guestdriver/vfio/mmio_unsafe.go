// SPDX-License-Identifier: Apache-2.0

package vfio

import "unsafe"

// load reads the register at offset of a mapped BAR by one 32-bit load.
func load(m []byte, offset uint32) uint32 {
	_ = m[offset+3:]
	return load32(unsafe.Pointer(unsafe.SliceData(m[offset:])))
}

// store writes the register at offset by one 32-bit store.
func store(m []byte, offset, v uint32) {
	_ = m[offset+3:]
	store32(unsafe.Pointer(unsafe.SliceData(m[offset:])), v)
}
