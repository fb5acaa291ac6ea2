// SPDX-License-Identifier: Apache-2.0

package keeper

import "encoding/binary"

// Integers on the socket are in the order of the host; those in configuration
// space are little-endian.

// Fixed parts of payloads, vfio-user "Message sizes and commands".
const (
	dmaMapSize     = 32 // argsz, flags u32; offset, address, size u64
	dmaUnmapSize   = 24 // argsz, flags u32; address, size u64
	deviceInfoSize = 16 // argsz, flags, regions, irqs u32
	regionInfoSize = 32 // argsz, flags, index, cap_offset u32; size, offset u64
	ioFDsSize      = 16 // argsz, flags, index, count u32
	irqInfoSize    = 16 // argsz, flags, index, count u32
	irqSetSize     = 20 // argsz, flags, index, start, count u32
	accessSize     = 16 // offset u64; region, count u32
	dmaAccessSize  = 16 // address, count u64
	featureSize    = 8  // argsz, flags u32
	multiEntrySize = 24 // an access and 8 bytes of data
)

// Flags of VFIO_USER_DMA_MAP and _UNMAP.
const (
	mapRead        = 1 << 0
	mapWrite       = 1 << 1
	mapKnown       = 1<<4 - 1
	unmapDirty     = 1 << 0
	unmapAll       = 1 << 1
	regionReadable = 1 << 0
	regionWritable = 1 << 1
	deviceReset    = 1 << 0
	featureSet     = 1 << 17
)

// Flags of VFIO_USER_DEVICE_SET_IRQS.
const (
	irqNone    = 1 << 0
	irqBool    = 1 << 1
	irqEventFD = 1 << 2
	irqMask    = 1 << 3
	irqUnmask  = 1 << 4
	irqTrigger = 1 << 5
)

const pageSize = 4096 // granule of DMA maps

// access is what opens a region read or write.
type access struct {
	offset        uint64
	region, count uint32
}

func parseAccess(b []byte) (a access, ok bool) {
	if len(b) < accessSize {
		return a, false
	}
	return access{binary.NativeEndian.Uint64(b), binary.NativeEndian.Uint32(b[8:]), binary.NativeEndian.Uint32(b[12:])}, true
}

func (a access) append(b []byte) []byte {
	b = binary.NativeEndian.AppendUint64(b, a.offset)
	b = binary.NativeEndian.AppendUint32(b, a.region)
	return binary.NativeEndian.AppendUint32(b, a.count)
}

// words appends 32-bit integers.
func words(b []byte, v ...uint32) []byte {
	for _, x := range v {
		b = binary.NativeEndian.AppendUint32(b, x)
	}
	return b
}

func native32(b []byte, at int) uint32 { return binary.NativeEndian.Uint32(b[at:]) }

func native64(b []byte, at int) uint64 { return binary.NativeEndian.Uint64(b[at:]) }

func nativeAppend64(b []byte, v uint64) []byte { return binary.NativeEndian.AppendUint64(b, v) }
