// SPDX-License-Identifier: Apache-2.0

package vfio

import (
	"encoding/binary"
	"fmt"
)

// Requests, linux/vfio.h: _IO(';', 100 + n).
const (
	ioctlGetAPIVersion     = 0x3b64
	ioctlCheckExtension    = 0x3b65
	ioctlSetIOMMU          = 0x3b66
	ioctlGroupGetStatus    = 0x3b67
	ioctlGroupSetContainer = 0x3b68
	ioctlGroupGetDeviceFD  = 0x3b6a
	ioctlGetRegionInfo     = 0x3b6c
	ioctlGetIRQInfo        = 0x3b6d
	ioctlSetIRQs           = 0x3b6e
	ioctlReset             = 0x3b6f
	ioctlIOMMUGetInfo      = 0x3b70
	ioctlMapDMA            = 0x3b71
	ioctlUnmapDMA          = 0x3b72
)

// Numbers of linux/vfio.h.
const (
	apiVersion = 0

	iommuType1   = 1 // VFIO_TYPE1_IOMMU
	iommuType1v2 = 3 // VFIO_TYPE1v2_IOMMU

	groupViable = 1 << 0 // VFIO_GROUP_FLAGS_VIABLE

	regionConfig = 7      // VFIO_PCI_CONFIG_REGION_INDEX
	regionMmap   = 1 << 2 // VFIO_REGION_INFO_FLAG_MMAP

	irqMSI         = 1      // VFIO_PCI_MSI_IRQ_INDEX
	irqMSIX        = 2      // VFIO_PCI_MSIX_IRQ_INDEX
	irqDataEventFD = 1 << 2 // VFIO_IRQ_SET_DATA_EVENTFD
	irqTrigger     = 1 << 5 // VFIO_IRQ_SET_ACTION_TRIGGER

	dmaRead  = 1 << 0 // VFIO_DMA_MAP_FLAG_READ
	dmaWrite = 1 << 1 // VFIO_DMA_MAP_FLAG_WRITE

	iommuInfoCaps   = 1 << 1 // VFIO_IOMMU_INFO_CAPS
	capIOVARange    = 1      // VFIO_IOMMU_TYPE1_INFO_CAP_IOVA_RANGE
	maxIOMMUInfo    = 64 << 10
	regionInfoSize  = 32
	irqInfoSize     = 16
	irqSetSize      = 20
	dmaMapSize      = 32
	dmaUnmapSize    = 24
	groupStatusSize = 8
	iommuInfoSize   = 24 // with pgsizes and cap_offset
)

// The structs are in the byte order of the machine and begin with their size.

func u32s(b []byte, v ...uint32) []byte {
	for _, x := range v {
		b = binary.NativeEndian.AppendUint32(b, x)
	}
	return b
}

func u64s(b []byte, v ...uint64) []byte {
	for _, x := range v {
		b = binary.NativeEndian.AppendUint64(b, x)
	}
	return b
}

// regionInfo is struct vfio_region_info.
type regionInfo struct {
	flags        uint32
	size, offset uint64
}

func regionInfoRequest(index uint32) []byte {
	return u64s(u32s(nil, regionInfoSize, 0, index, 0), 0, 0)
}

func parseRegionInfo(b []byte) regionInfo {
	return regionInfo{
		flags: binary.NativeEndian.Uint32(b[4:]),
		size:  binary.NativeEndian.Uint64(b[16:]), offset: binary.NativeEndian.Uint64(b[24:]),
	}
}

// irqInfoRequest is struct vfio_irq_info; irqCount is its result.
func irqInfoRequest(index uint32) []byte { return u32s(nil, irqInfoSize, 0, index, 0) }

func irqCount(b []byte) int { return int(binary.NativeEndian.Uint32(b[12:])) }

// irqSetRequest is struct vfio_irq_set with one eventfd per vector from 0.
func irqSetRequest(index uint32, fds []int32) []byte {
	b := u32s(nil, uint32(irqSetSize+4*len(fds)), irqDataEventFD|irqTrigger, index, 0, uint32(len(fds)))
	for _, fd := range fds {
		b = u32s(b, uint32(fd))
	}
	return b
}

// dmaMapRequest is struct vfio_iommu_type1_dma_map.
func dmaMapRequest(vaddr, iova, size uint64) []byte {
	return u64s(u32s(nil, dmaMapSize, dmaRead|dmaWrite), vaddr, iova, size)
}

// dmaUnmapRequest is struct vfio_iommu_type1_dma_unmap; dmaUnmapped is its
// result, in bytes.
func dmaUnmapRequest(iova, size uint64) []byte {
	return u64s(u32s(nil, dmaUnmapSize, 0), iova, size)
}

func dmaUnmapped(b []byte) uint64 { return binary.NativeEndian.Uint64(b[16:]) }

// iovaRange is a range of IOVAs, both ends included.
type iovaRange struct{ start, end uint64 }

// parseIOVARanges finds the ranges in a struct vfio_iommu_type1_info with its
// capabilities; none if the kernel does not say.
func parseIOVARanges(b []byte) ([]iovaRange, error) {
	if len(b) < iommuInfoSize || binary.NativeEndian.Uint32(b[4:])&iommuInfoCaps == 0 {
		return nil, nil
	}
	off := binary.NativeEndian.Uint32(b[16:])
	for seen := 0; off != 0; seen++ {
		if uint64(off)+8 > uint64(len(b)) || seen > 64 {
			return nil, fmt.Errorf("vfio: IOMMU info: capability at %d of %d bytes", off, len(b))
		}
		h := b[off:]
		if binary.NativeEndian.Uint16(h) == capIOVARange {
			if len(h) < 16 {
				return nil, fmt.Errorf("vfio: IOMMU info: IOVA capability cut off")
			}
			n := binary.NativeEndian.Uint32(h[8:])
			if uint64(n)*16 > uint64(len(h)-16) {
				return nil, fmt.Errorf("vfio: IOMMU info: %d IOVA ranges in %d bytes", n, len(h))
			}
			var all []iovaRange
			for i := range n {
				e := h[16+16*i:]
				all = append(all, iovaRange{binary.NativeEndian.Uint64(e), binary.NativeEndian.Uint64(e[8:])})
			}
			return all, nil
		}
		off = binary.NativeEndian.Uint32(h[4:])
	}
	return nil, nil
}
