// SPDX-License-Identifier: Apache-2.0

//go:build amd64 || arm64

package mmio

import "unsafe"

// load32 is one 32-bit load that the compiler neither merges nor drops, with
// later loads of memory behind it.
//
//go:noescape
func load32(p unsafe.Pointer) uint32

// store32 is one 32-bit store with all earlier stores before it. A store of
// sync/atomic would be an exchange: a read and a write of the device.
//
//go:noescape
func store32(p unsafe.Pointer, v uint32)
