// SPDX-License-Identifier: Apache-2.0

// Package vfio is the guestdriver.Bus of a Linux guest: a PCI function bound
// to vfio-pci, reached through a VFIO container, group and device
// (Documentation/driver-api/vfio.rst, linux/vfio.h), with a type 1 IOMMU.
//
// [List] finds adapters, [Bind] binds one to vfio-pci, [Open] opens it. The
// kernel needs vfio-pci, vfio_iommu_type1 and an IOMMU.
//
// # Ownership and concurrency
//
// A [Bus] owns the container and everything mapped through it until Close.
// After Close its memory and registers are still there as private zero pages,
// so that a goroutine that was about to touch them does not fault; the adapter
// sees nothing of it. All methods are safe for concurrent use.
//
// DMA memory comes from huge pages of 2 MiB where the guest has them reserved:
// behind a virtual IOMMU every 4 KiB page costs a message to the device.
package vfio
