// SPDX-License-Identifier: Apache-2.0

package vfiouser

import "encoding/binary"

// Fixed parts of the payloads. UnmarshalBinary accepts a longer payload: what
// follows the fixed part is data, or a field that a newer client knows.

// versionPrefix opens VFIO_USER_VERSION; a JSON text and a NUL may follow.
type versionPrefix struct{ major, minor uint16 }

const versionPrefixSize = 4

func (m versionPrefix) AppendBinary(b []byte) ([]byte, error) {
	b = binary.NativeEndian.AppendUint16(b, m.major)
	return binary.NativeEndian.AppendUint16(b, m.minor), nil
}

func (m *versionPrefix) UnmarshalBinary(b []byte) error {
	c := cursor{b: b}
	*m = versionPrefix{c.u16(), c.u16()}
	return c.err()
}

// Flags of VFIO_USER_DMA_MAP.
const (
	dmaMapRead   uint32 = 1 << 0
	dmaMapWrite  uint32 = 1 << 1
	dmaMapMmap   uint32 = 1 << 2 // reach it by mmap: needs a file descriptor
	dmaMapFileIO uint32 = 1 << 3 // reach it by pread and pwrite: needs a file descriptor
)

// dmaMap is the request VFIO_USER_DMA_MAP. The reply has no payload.
type dmaMap struct {
	argsz, flags       uint32
	offset, addr, size uint64
}

const dmaMapSize = 32

func (m dmaMap) AppendBinary(b []byte) ([]byte, error) {
	b = binary.NativeEndian.AppendUint32(b, m.argsz)
	b = binary.NativeEndian.AppendUint32(b, m.flags)
	b = binary.NativeEndian.AppendUint64(b, m.offset)
	b = binary.NativeEndian.AppendUint64(b, m.addr)
	return binary.NativeEndian.AppendUint64(b, m.size), nil
}

func (m *dmaMap) UnmarshalBinary(b []byte) error {
	c := cursor{b: b}
	*m = dmaMap{c.u32(), c.u32(), c.u64(), c.u64(), c.u64()}
	return c.err()
}

// Flags of VFIO_USER_DMA_UNMAP.
const (
	dmaUnmapDirtyBitmap uint32 = 1 << 0
	dmaUnmapAll         uint32 = 1 << 1
)

// dmaUnmap is request and reply of VFIO_USER_DMA_UNMAP; in the reply size is
// the number of bytes that were mapped.
type dmaUnmap struct {
	argsz, flags uint32
	addr, size   uint64
}

const dmaUnmapSize = 24

func (m dmaUnmap) AppendBinary(b []byte) ([]byte, error) {
	b = binary.NativeEndian.AppendUint32(b, m.argsz)
	b = binary.NativeEndian.AppendUint32(b, m.flags)
	b = binary.NativeEndian.AppendUint64(b, m.addr)
	return binary.NativeEndian.AppendUint64(b, m.size), nil
}

func (m *dmaUnmap) UnmarshalBinary(b []byte) error {
	c := cursor{b: b}
	*m = dmaUnmap{c.u32(), c.u32(), c.u64(), c.u64()}
	return c.err()
}

// Flags of VFIO_USER_DEVICE_GET_INFO.
const (
	deviceFlagReset uint32 = 1 << 0
	deviceFlagPCI   uint32 = 1 << 1
)

// deviceInfo is request and reply of VFIO_USER_DEVICE_GET_INFO.
type deviceInfo struct{ argsz, flags, regions, irqs uint32 }

const deviceInfoSize = 16

func (m deviceInfo) AppendBinary(b []byte) ([]byte, error) {
	b = binary.NativeEndian.AppendUint32(b, m.argsz)
	b = binary.NativeEndian.AppendUint32(b, m.flags)
	b = binary.NativeEndian.AppendUint32(b, m.regions)
	return binary.NativeEndian.AppendUint32(b, m.irqs), nil
}

func (m *deviceInfo) UnmarshalBinary(b []byte) error {
	c := cursor{b: b}
	*m = deviceInfo{c.u32(), c.u32(), c.u32(), c.u32()}
	return c.err()
}

// regionInfo is request and reply of VFIO_USER_DEVICE_GET_REGION_INFO.
type regionInfo struct {
	argsz, flags, index, capOffset uint32
	size, offset                   uint64
}

const regionInfoSize = 32

func (m regionInfo) AppendBinary(b []byte) ([]byte, error) {
	b = binary.NativeEndian.AppendUint32(b, m.argsz)
	b = binary.NativeEndian.AppendUint32(b, m.flags)
	b = binary.NativeEndian.AppendUint32(b, m.index)
	b = binary.NativeEndian.AppendUint32(b, m.capOffset)
	b = binary.NativeEndian.AppendUint64(b, m.size)
	return binary.NativeEndian.AppendUint64(b, m.offset), nil
}

func (m *regionInfo) UnmarshalBinary(b []byte) error {
	c := cursor{b: b}
	*m = regionInfo{c.u32(), c.u32(), c.u32(), c.u32(), c.u64(), c.u64()}
	return c.err()
}

// irqInfo is request and reply of VFIO_USER_DEVICE_GET_IRQ_INFO.
type irqInfo struct{ argsz, flags, index, count uint32 }

const irqInfoSize = 16

func (m irqInfo) AppendBinary(b []byte) ([]byte, error) {
	b = binary.NativeEndian.AppendUint32(b, m.argsz)
	b = binary.NativeEndian.AppendUint32(b, m.flags)
	b = binary.NativeEndian.AppendUint32(b, m.index)
	return binary.NativeEndian.AppendUint32(b, m.count), nil
}

func (m *irqInfo) UnmarshalBinary(b []byte) error {
	c := cursor{b: b}
	*m = irqInfo{c.u32(), c.u32(), c.u32(), c.u32()}
	return c.err()
}

// Flags of VFIO_USER_DEVICE_SET_IRQS: one kind of data, one action.
const (
	irqDataNone      uint32 = 1 << 0
	irqDataBool      uint32 = 1 << 1
	irqDataEventFD   uint32 = 1 << 2
	irqActionMask    uint32 = 1 << 3
	irqActionUnmask  uint32 = 1 << 4
	irqActionTrigger uint32 = 1 << 5

	irqDataBits   = irqDataNone | irqDataBool | irqDataEventFD
	irqActionBits = irqActionMask | irqActionUnmask | irqActionTrigger
)

// irqSet opens the request VFIO_USER_DEVICE_SET_IRQS; with irqDataBool one
// byte for each vector follows. The reply has no payload.
type irqSet struct{ argsz, flags, index, start, count uint32 }

const irqSetSize = 20

func (m irqSet) AppendBinary(b []byte) ([]byte, error) {
	b = binary.NativeEndian.AppendUint32(b, m.argsz)
	b = binary.NativeEndian.AppendUint32(b, m.flags)
	b = binary.NativeEndian.AppendUint32(b, m.index)
	b = binary.NativeEndian.AppendUint32(b, m.start)
	return binary.NativeEndian.AppendUint32(b, m.count), nil
}

func (m *irqSet) UnmarshalBinary(b []byte) error {
	c := cursor{b: b}
	*m = irqSet{c.u32(), c.u32(), c.u32(), c.u32(), c.u32()}
	return c.err()
}

// regionAccess opens request and reply of VFIO_USER_REGION_READ and
// VFIO_USER_REGION_WRITE; data follows where there is any.
type regionAccess struct {
	offset        uint64
	region, count uint32
}

const regionAccessSize = 16

func (m regionAccess) AppendBinary(b []byte) ([]byte, error) {
	b = binary.NativeEndian.AppendUint64(b, m.offset)
	b = binary.NativeEndian.AppendUint32(b, m.region)
	return binary.NativeEndian.AppendUint32(b, m.count), nil
}

func (m *regionAccess) UnmarshalBinary(b []byte) error {
	c := cursor{b: b}
	*m = regionAccess{c.u64(), c.u32(), c.u32()}
	return c.err()
}

// VFIO_USER_REGION_WRITE_MULTI: a 64-bit count, then entries of a
// regionAccess and 8 bytes of data each. The reply is the count done.
const (
	multiCountSize = 8
	multiDataSize  = 8
	multiEntrySize = regionAccessSize + multiDataSize
)

// dmaAccess opens request and reply of VFIO_USER_DMA_READ and
// VFIO_USER_DMA_WRITE; data follows where there is any.
type dmaAccess struct{ addr, count uint64 }

const dmaAccessSize = 16

func (m dmaAccess) AppendBinary(b []byte) ([]byte, error) {
	b = binary.NativeEndian.AppendUint64(b, m.addr)
	return binary.NativeEndian.AppendUint64(b, m.count), nil
}

func (m *dmaAccess) UnmarshalBinary(b []byte) error {
	c := cursor{b: b}
	*m = dmaAccess{c.u64(), c.u64()}
	return c.err()
}
