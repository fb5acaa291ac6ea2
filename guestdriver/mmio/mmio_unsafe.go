// SPDX-License-Identifier: Apache-2.0

package mmio

import "unsafe"

// Load reads the register at offset of a mapped BAR by one 32-bit load. Later
// loads of memory come after it.
func Load(m []byte, offset uint32) uint32 {
	_ = m[offset+3:]
	return load32(unsafe.Pointer(unsafe.SliceData(m[offset:])))
}

// Store writes the register at offset by one 32-bit store. Earlier stores to
// memory come before it.
func Store(m []byte, offset, v uint32) {
	_ = m[offset+3:]
	store32(unsafe.Pointer(unsafe.SliceData(m[offset:])), v)
}
