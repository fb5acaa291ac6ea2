// SPDX-License-Identifier: Apache-2.0

package vfio

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"sync"

	"golang.org/x/sys/unix"

	"toebox/guestdriver"
	"toebox/guestdriver/internal/pool"
	"toebox/guestdriver/internal/sysfs"
	"toebox/guestdriver/mmio"
)

// errClosed is what calls after Close return.
var errClosed = net.ErrClosed

// numBARs is how many BARs a type 0 header has; maxBAR is the size of one, in
// bytes, up to which it is mapped.
const (
	numBARs = 6
	maxBAR  = 1 << 30
)

// Bus is an adapter reached through VFIO. It implements [guestdriver.Bus].
type Bus struct {
	bdf                      string
	mask                     uint64 // highest IOVA
	container, group, device int
	config                   regionInfo
	bars                     [numBARs]bar

	mu      sync.Mutex
	closed  bool
	iovas   *iovas
	memory  pool.Pool
	mapped  map[uint64]uint64 // sizes of the application's memory, by IOVA
	vectors []*vector
}

var (
	_ guestdriver.Bus    = (*Bus)(nil)
	_ guestdriver.Mapper = (*Bus)(nil)
)

// bar is one BAR: mapped, or by pread and pwrite.
type bar struct {
	mem  []byte
	info regionInfo
}

// Open opens a function that is bound to vfio-pci and whose group nobody else
// has open.
func Open(bdf string) (*Bus, error) { return OpenMasked(bdf, ^uint64(0)) }

// OpenMasked is Open for a function that reaches IOVAs up to mask only, which has
// all its low bits set.
func OpenMasked(bdf string, mask uint64) (*Bus, error) {
	group, err := group(sysfs.Mounted, bdf)
	if err != nil {
		return nil, err
	}
	b := &Bus{bdf: bdf, mask: mask, container: -1, group: -1, device: -1}
	if err := b.open(group); err != nil {
		b.Close()
		return nil, fmt.Errorf("vfio: open %s: %w", bdf, err)
	}
	return b, nil
}

func (b *Bus) open(group string) error {
	var err error
	if b.container, err = unix.Open("/dev/vfio/vfio", unix.O_RDWR|unix.O_CLOEXEC, 0); err != nil {
		return fmt.Errorf("/dev/vfio/vfio: %w", err)
	}
	if v, err := ioctl(b.container, ioctlGetAPIVersion, 0); err != nil || v != apiVersion {
		return fmt.Errorf("VFIO interface version %d: %w", v, err)
	}
	if b.group, err = unix.Open("/dev/vfio/"+group, unix.O_RDWR|unix.O_CLOEXEC, 0); err != nil {
		return fmt.Errorf("/dev/vfio/%s: %w", group, err)
	}
	status := u32s(nil, groupStatusSize, 0)
	if err := ioctlBytes(b.group, ioctlGroupGetStatus, status); err != nil {
		return fmt.Errorf("status of group %s: %w", group, err)
	}
	if binary.NativeEndian.Uint32(status[4:])&groupViable == 0 {
		return fmt.Errorf("group %s is not viable: another function of it has a kernel driver", group)
	}
	if err := ioctlBytes(b.group, ioctlGroupSetContainer, u32s(nil, uint32(b.container))); err != nil {
		return fmt.Errorf("join group %s: %w", group, err)
	}
	kind := uintptr(iommuType1v2)
	if ok, err := ioctl(b.container, ioctlCheckExtension, kind); err != nil || ok != 1 {
		kind = iommuType1
	}
	if _, err := ioctl(b.container, ioctlSetIOMMU, kind); err != nil {
		return fmt.Errorf("set IOMMU type %d (no interrupt remapping needs vfio_iommu_type1.allow_unsafe_interrupts=1): %w", kind, err)
	}
	ranges, err := b.ranges()
	if err != nil {
		return err
	}
	b.iovas = newIOVAs(ranges, b.mask)
	if b.device, err = ioctlString(b.group, ioctlGroupGetDeviceFD, b.bdf); err != nil {
		return fmt.Errorf("get the device of group %s: %w", group, err)
	}
	if b.config, err = b.region(regionConfig); err != nil {
		return err
	}
	for i := range b.bars {
		if err := b.mapBAR(i); err != nil {
			return err
		}
	}
	return nil
}

// ranges asks for the IOVAs that the IOMMU translates.
func (b *Bus) ranges() ([]iovaRange, error) {
	info := u64s(u32s(nil, iommuInfoSize, 0), 0, 0)
	if err := ioctlBytes(b.container, ioctlIOMMUGetInfo, info); err != nil {
		return nil, fmt.Errorf("IOMMU info: %w", err)
	}
	size := binary.NativeEndian.Uint32(info)
	if size > iommuInfoSize && size <= maxIOMMUInfo {
		info = make([]byte, size)
		binary.NativeEndian.PutUint32(info, size)
		if err := ioctlBytes(b.container, ioctlIOMMUGetInfo, info); err != nil {
			return nil, fmt.Errorf("IOMMU info: %w", err)
		}
	}
	return parseIOVARanges(info)
}

func (b *Bus) region(index uint32) (regionInfo, error) {
	r := regionInfoRequest(index)
	if err := ioctlBytes(b.device, ioctlGetRegionInfo, r); err != nil {
		return regionInfo{}, fmt.Errorf("info of region %d: %w", index, err)
	}
	return parseRegionInfo(r), nil
}

func (b *Bus) mapBAR(i int) error {
	info, err := b.region(uint32(i))
	if err != nil {
		return err
	}
	b.bars[i].info = info
	if info.size == 0 || info.flags&regionMmap == 0 || info.size > maxBAR {
		return nil
	}
	mem, err := unix.Mmap(b.device, int64(info.offset), int(info.size), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err == nil {
		b.bars[i].mem = mem
	}
	return nil // without a mapping: pread and pwrite
}

// Name implements guestdriver.Bus.
func (b *Bus) Name() string { return "vfio " + b.bdf }

// ReadConfig implements guestdriver.Bus.
func (b *Bus) ReadConfig(offset, size int) (uint32, error) {
	if err := b.checkConfig(offset, size); err != nil {
		return 0, err
	}
	var buf [4]byte
	if err := b.pread(buf[:size], int64(b.config.offset)+int64(offset)); err != nil {
		return 0, fmt.Errorf("vfio: %s: read config space at %#x: %w", b.bdf, offset, err)
	}
	return binary.LittleEndian.Uint32(buf[:]), nil
}

// WriteConfig implements guestdriver.Bus.
func (b *Bus) WriteConfig(offset, size int, v uint32) error {
	if err := b.checkConfig(offset, size); err != nil {
		return err
	}
	var buf [4]byte
	binary.LittleEndian.PutUint32(buf[:], v)
	if err := b.pwrite(buf[:size], int64(b.config.offset)+int64(offset)); err != nil {
		return fmt.Errorf("vfio: %s: write config space at %#x: %w", b.bdf, offset, err)
	}
	return nil
}

// pread and pwrite reach regions through the device's descriptor, which they
// keep from being closed, and its number from being used again, meanwhile.
func (b *Bus) pread(p []byte, off int64) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.closed {
		return errClosed
	}
	n, err := unix.Pread(b.device, p, off)
	if err == nil && n != len(p) {
		err = unix.EIO
	}
	return err
}

func (b *Bus) pwrite(p []byte, off int64) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.closed {
		return errClosed
	}
	n, err := unix.Pwrite(b.device, p, off)
	if err == nil && n != len(p) {
		err = unix.EIO
	}
	return err
}

func (b *Bus) checkConfig(offset, size int) error {
	if offset < 0 || size != 1 && size != 2 && size != 4 || offset%size != 0 || uint64(offset+size) > b.config.size {
		return fmt.Errorf("vfio: %s: %d bytes of config space at %#x", b.bdf, size, offset)
	}
	return nil
}

// Read32 implements guestdriver.Bus.
func (b *Bus) Read32(bar int, offset uint32) uint32 {
	if bar < 0 || bar >= numBARs || offset%4 != 0 || uint64(offset)+4 > b.bars[bar].info.size {
		return ^uint32(0)
	}
	if m := b.bars[bar].mem; m != nil {
		return mmio.Load(m, offset)
	}
	var buf [4]byte
	if b.pread(buf[:], int64(b.bars[bar].info.offset)+int64(offset)) != nil {
		return ^uint32(0)
	}
	return binary.LittleEndian.Uint32(buf[:])
}

// Write32 implements guestdriver.Bus.
func (b *Bus) Write32(bar int, offset uint32, v uint32) {
	if bar < 0 || bar >= numBARs || offset%4 != 0 || uint64(offset)+4 > b.bars[bar].info.size {
		return
	}
	if m := b.bars[bar].mem; m != nil {
		mmio.Store(m, offset, v)
		return
	}
	var buf [4]byte
	binary.LittleEndian.PutUint32(buf[:], v)
	b.pwrite(buf[:], int64(b.bars[bar].info.offset)+int64(offset)) // posted: nobody to tell
}

// vectorIndex returns the kind of vectors that the function has, and how many:
// MSI-X or, without it, MSI.
func (b *Bus) vectorIndex() (index uint32, n int, err error) {
	for _, index = range []uint32{irqMSIX, irqMSI} {
		info := irqInfoRequest(index)
		if err := ioctlBytes(b.device, ioctlGetIRQInfo, info); err != nil {
			return 0, 0, fmt.Errorf("vfio: info of interrupt %d: %w", index, err)
		}
		if n = irqCount(info); n > 0 {
			break
		}
	}
	return index, n, nil
}

// EnableVectors implements guestdriver.Bus.
func (b *Bus) EnableVectors(n int) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.closed {
		return errClosed
	}
	if b.vectors != nil {
		return errors.New("vfio: vectors are enabled already")
	}
	index, have, err := b.vectorIndex()
	if err != nil {
		return err
	}
	if n < 1 || n > have {
		return fmt.Errorf("vfio: %d vectors: the function has %d", n, have)
	}
	var vectors []*vector
	var fds []int32
	fail := func(err error) error {
		for _, v := range vectors {
			v.file.Close()
		}
		return fmt.Errorf("vfio: enable %d vectors: %w", n, err)
	}
	for i := range n {
		v, fd, err := newVector(i)
		if err != nil {
			return fail(err)
		}
		vectors = append(vectors, v)
		fds = append(fds, fd)
	}
	if err := ioctlBytes(b.device, ioctlSetIRQs, irqSetRequest(index, fds)); err != nil {
		return fail(err)
	}
	b.vectors = vectors
	return nil
}

// Wait implements guestdriver.Bus.
func (b *Bus) Wait(vector int) error {
	b.mu.Lock()
	if b.closed {
		b.mu.Unlock()
		return errClosed
	}
	if vector < 0 || vector >= len(b.vectors) {
		b.mu.Unlock()
		return fmt.Errorf("vfio: wait for vector %d of %d", vector, len(b.vectors))
	}
	v := b.vectors[vector]
	b.mu.Unlock()
	err := v.wait()
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.closed {
		return errClosed
	}
	return err
}

// Reset implements guestdriver.Bus.
func (b *Bus) Reset() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.closed {
		return errClosed
	}
	if _, err := ioctl(b.device, ioctlReset, 0); err != nil {
		return fmt.Errorf("vfio: reset %s: %w", b.bdf, err)
	}
	return nil
}

// Close implements guestdriver.Bus.
func (b *Bus) Close() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.closed {
		return nil
	}
	b.closed = true
	for _, v := range b.vectors {
		v.file.Close()
	}
	// The device first: its end stops DMA; the container's unmaps it.
	for _, fd := range []int{b.device, b.group, b.container} {
		if fd >= 0 {
			unix.Close(fd)
		}
	}
	var errs []error
	for i := range b.bars {
		if m := b.bars[i].mem; m != nil {
			errs = append(errs, pool.Blank(m))
		}
	}
	return errors.Join(append(errs, b.memory.Blank())...)
}
