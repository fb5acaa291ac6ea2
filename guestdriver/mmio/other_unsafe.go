// SPDX-License-Identifier: Apache-2.0

//go:build !amd64 && !arm64

package mmio

import (
	"sync/atomic"
	"unsafe"
)

// load32 is one 32-bit load.
//
//go:noinline
func load32(p unsafe.Pointer) uint32 { return atomic.LoadUint32((*uint32)(p)) }

// store32 is one 32-bit store. Where sync/atomic exchanges instead, the device
// sees a read as well.
//
//go:noinline
func store32(p unsafe.Pointer, v uint32) { atomic.StoreUint32((*uint32)(p), v) }
