// SPDX-License-Identifier: Apache-2.0

package vfiouser

import (
	"encoding/binary"
	"fmt"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// Flags of VFIO_USER_DEVICE_GET_REGION_INFO that say what came with a reply.
const (
	regionFlagMmap uint32 = 1 << 2
	regionFlagCaps uint32 = 1 << 3
)

// Region capabilities: a header of id, version and place of the next one, then
// the number of areas, then the areas. All areas of the first are in one file, at
// the region's offset plus their own. Those of the second name a descriptor and a
// place in it each; a server sends it only if the client said sparse_mmap_fds.
const (
	capSparseMmap      uint16 = 1      // VFIO_REGION_INFO_CAP_SPARSE_MMAP
	capSparseMmapFDs   uint16 = 0x8001 // VFIO_REGION_INFO_CAP_SPARSE_MMAP_FDS
	capSparseMmapDraft uint16 = 16     // its number in a draft that asked for no consent

	capHeaderSize  = 8
	capSparseSize  = capHeaderSize + 8
	areaEntrySize  = 16
	areaFDsSize    = 32
	capVersion     = 1
	maxRegionReply = leastMessage - regionInfoSize // bytes of capabilities that we read
)

// maxAreas bounds the areas of a region, as every description of it lists them.
const maxAreas = 128

// Area is a part of a region that a client may map into its own memory, and so
// reach without the device. Every access by message works there as well.
//
// A client's loads and stores in an area are seen by nobody; a device finds what
// they left when it looks. QEMU waits for each store to all regions, areas apart,
// as soon as one region has an area: registers that are written often are faster
// in a device without any.
type Area struct {
	Offset, Size uint64 // in the region, multiples of 4096
	// File holds the area, FileOffset bytes from its start, a multiple of 4096. In
	// a Config it stays the device's and must be open, and as long, while the
	// server serves; each description of the region lends it to the client, which
	// maps it for what the region's flags allow and could do as much to any other
	// part of the file. It could shrink it, too, unless the file is sealed against
	// that. Areas from a client belong to the caller; those with the same
	// descriptor share a File.
	File       *os.File
	FileOffset uint64
}

// checkAreas judges the areas of a region in a configuration.
func checkAreas(r Region) error {
	if len(r.Areas) > maxAreas {
		return fmt.Errorf("%d areas", len(r.Areas))
	}
	for i, a := range r.Areas {
		if err := a.check(r.Size); err != nil {
			return err
		}
		for _, b := range r.Areas[:i] {
			if a.Offset < b.Offset+b.Size && b.Offset < a.Offset+a.Size {
				return fmt.Errorf("area %#x+%#x over %#x+%#x", a.Offset, a.Size, b.Offset, b.Size)
			}
		}
		if err := a.checkFile(r.Flags); err != nil {
			return fmt.Errorf("area %#x+%#x: %w", a.Offset, a.Size, err)
		}
	}
	return nil
}

// check judges the place of an area in a region, and its alignment.
func (a Area) check(size uint64) error {
	if a.Size == 0 || a.Offset > size || a.Size > size-a.Offset || (a.Offset|a.Size|a.FileOffset)&(pageSize-1) != 0 ||
		a.FileOffset > 1<<62 || a.Size > 1<<62 {
		return fmt.Errorf("area %#x+%#x, at %#x in its file, of a region of %#x bytes", a.Offset, a.Size, a.FileOffset, size)
	}
	return nil
}

// checkFile judges whether the file can be mapped as the region's flags say.
func (a Area) checkFile(flags RegionFlags) error {
	if a.File == nil {
		return fmt.Errorf("no file")
	}
	rc, err := a.File.SyscallConn()
	if err != nil {
		return err
	}
	var failed error
	err = rc.Control(func(fd uintptr) {
		var st unix.Stat_t
		if failed = unix.Fstat(int(fd), &st); failed != nil {
			return
		}
		mode, err := unix.FcntlInt(fd, unix.F_GETFL, 0)
		switch mode &= unix.O_ACCMODE; {
		case err != nil:
			failed = err
		case mode == unix.O_WRONLY || flags&RegionWrite != 0 && mode != unix.O_RDWR:
			failed = fmt.Errorf("file is open for less than the region's flags say: %w", syscall.EACCES)
		case st.Mode&unix.S_IFMT == unix.S_IFREG && (st.Size < 0 || a.FileOffset+a.Size > uint64(st.Size)):
			failed = fmt.Errorf("ends at %#x in a file of %#x bytes: %w", a.FileOffset+a.Size, st.Size, syscall.EINVAL)
		}
	})
	if err != nil {
		return err
	}
	return failed
}

// areaForm is how the areas of a region are told to a client.
type areaForm struct {
	base  uint64     // offset of the region in its file, with one file
	files []*os.File // in the order of their indexes
	fds   bool       // with the descriptor and place of each
}

// areaForm chooses the form that a client takes; false: there is none, and to
// this client the region is one without areas.
func (r Region) areaForm(l limits) (f areaForm, ok bool) {
	one := true
	for i, a := range r.Areas {
		if f.index(a.File) < 0 {
			f.files = append(f.files, a.File)
		}
		base := a.FileOffset - a.Offset
		if i == 0 {
			f.base = base
		}
		one = one && base == f.base && a.FileOffset >= a.Offset
	}
	f.fds = !one || len(f.files) > 1
	if f.fds {
		f.base = 0
	}
	return f, len(f.files) > 0 && len(f.files) <= l.peerFDs && (!f.fds || l.sparseFDs)
}

func (f areaForm) index(file *os.File) int {
	for i := range f.files {
		if f.files[i] == file {
			return i
		}
	}
	return -1
}

// append appends the capability, which is the only one.
func (f areaForm) append(b []byte, areas []Area) []byte {
	id := capSparseMmap
	if f.fds {
		id = capSparseMmapFDs
	}
	b = binary.NativeEndian.AppendUint16(b, id)
	b = binary.NativeEndian.AppendUint16(b, capVersion)
	b = binary.NativeEndian.AppendUint32(b, 0) // no other follows
	b = binary.NativeEndian.AppendUint32(b, uint32(len(areas)))
	b = binary.NativeEndian.AppendUint32(b, 0)
	for _, a := range areas {
		b = binary.NativeEndian.AppendUint64(b, a.Offset)
		if f.fds {
			b = binary.NativeEndian.AppendUint64(b, a.FileOffset)
		}
		b = binary.NativeEndian.AppendUint64(b, a.Size)
		if f.fds {
			b = binary.NativeEndian.AppendUint32(b, uint32(f.index(a.File)))
			b = binary.NativeEndian.AppendUint32(b, 0)
		}
	}
	return b
}

func (f areaForm) size(areas []Area) int {
	if f.fds {
		return capSparseSize + areaFDsSize*len(areas)
	}
	return capSparseSize + areaEntrySize*len(areas)
}

// regionInfo serves VFIO_USER_DEVICE_GET_REGION_INFO. A client whose argsz has no
// room for the areas learns how much they need, and gets no descriptors yet.
func (c *conn) regionInfo(m *message) error {
	var r regionInfo
	if err := r.UnmarshalBinary(m.payload); err != nil || r.argsz < regionInfoSize || r.index >= NumRegions {
		return fmt.Errorf("argsz %d region %d in %d bytes: %w", r.argsz, r.index, len(m.payload), syscall.EINVAL)
	}
	g := c.srv.cfg.Regions[r.index]
	reply := regionInfo{argsz: regionInfoSize, flags: uint32(g.Flags), index: r.index, size: g.Size}
	form, ok := g.areaForm(c.limits)
	if ok {
		reply.argsz += uint32(form.size(g.Areas))
	}
	if !ok || r.argsz < reply.argsz {
		c.out, _ = reply.AppendBinary(c.out)
		return nil
	}
	if err := c.lend(form.files); err != nil {
		return fmt.Errorf("areas of region %d: %w", r.index, err)
	}
	reply.flags |= regionFlagMmap | regionFlagCaps
	reply.capOffset, reply.offset = regionInfoSize, form.base
	c.out, _ = reply.AppendBinary(c.out)
	c.out = form.append(c.out, g.Areas)
	return nil
}

// lend has the reply that is being made carry descriptors of files.
func (c *conn) lend(files []*os.File) error {
	for _, f := range files {
		fd, err := duplicate(f)
		if err != nil {
			closeFDs(c.outFDs)
			c.outFDs = c.outFDs[:0]
			return err
		}
		c.outFDs = append(c.outFDs, fd)
	}
	return nil
}

// duplicate returns another descriptor of f. File.Fd would make the file blocking
// for everyone.
func duplicate(f *os.File) (fd int, err error) {
	rc, err := f.SyscallConn()
	if err != nil {
		return -1, err
	}
	cerr := rc.Control(func(old uintptr) { fd, err = unix.FcntlInt(old, unix.F_DUPFD_CLOEXEC, 0) })
	if cerr != nil {
		return -1, cerr
	}
	return fd, err
}

// parseAreas takes the areas out of a reply to VFIO_USER_DEVICE_GET_REGION_INFO.
// It takes over the descriptors that it uses.
func parseAreas(r regionInfo, b []byte, fds []int) ([]Area, error) {
	var at uint32
	if r.flags&regionFlagCaps != 0 {
		at = r.capOffset
		if at < regionInfoSize {
			return nil, fmt.Errorf("capabilities at %#x", at)
		}
	}
	var areas []Area
	var index []uint32 // of each area's descriptor; nil: all have the first
	listed := false
	// A list that only goes up ends.
	for at != 0 {
		if uint64(at)+capHeaderSize > uint64(len(b)) {
			return nil, fmt.Errorf("capability at %#x of %#x bytes", at, len(b))
		}
		c := cursor{b: b[at:]}
		id, _, next := c.u16(), c.u16(), c.u32()
		if next != 0 && next < at+capHeaderSize {
			return nil, fmt.Errorf("capability at %#x is followed by one at %#x", at, next)
		}
		var err error
		switch {
		case listed: // one list of areas will do
		case id == capSparseMmap:
			areas, _, err = parseArray(&c, r.offset, false)
			listed = true
		case id == capSparseMmapFDs || id == capSparseMmapDraft:
			areas, index, err = parseArray(&c, 0, true)
			listed = true
		}
		if err != nil {
			return nil, err
		}
		at = next
	}
	if r.flags&regionFlagMmap == 0 {
		return nil, nil
	}
	if !listed {
		areas = []Area{{Size: r.size, FileOffset: r.offset}} // all of it
	}
	files := make(map[uint32]*os.File)
	for i := range areas {
		a := &areas[i]
		var n uint32
		if index != nil {
			n = index[i]
		}
		if int64(n) >= int64(len(fds)) {
			closeAreas(areas)
			return nil, fmt.Errorf("area in descriptor %d of %d", n, len(fds))
		}
		if err := a.check(r.size); err != nil {
			closeAreas(areas)
			return nil, err
		}
		if files[n] == nil {
			files[n] = os.NewFile(uintptr(fds[n]), fmt.Sprintf("region %d", r.index))
			fds[n] = -1
		}
		a.File = files[n]
	}
	return areas, nil
}

// parseArray takes the areas of one capability. With base, they are in one file.
func parseArray(c *cursor, base uint64, fds bool) (areas []Area, index []uint32, err error) {
	n := c.u32()
	c.u32()
	if n > maxAreas {
		return nil, nil, fmt.Errorf("%d areas", n)
	}
	for range n {
		var a Area
		a.Offset = c.u64()
		if fds {
			a.FileOffset = c.u64()
		}
		a.Size = c.u64()
		if fds {
			index = append(index, c.u32())
			c.u32()
		} else if a.FileOffset = base + a.Offset; a.FileOffset < base {
			return nil, nil, fmt.Errorf("area at %#x of a region at %#x of its file", a.Offset, base)
		}
		areas = append(areas, a)
	}
	return areas, index, c.err()
}

func closeAreas(areas []Area) {
	for _, a := range areas {
		if a.File != nil {
			a.File.Close() // harmless where two share one
		}
	}
}

// Areas returns the parts of a region that can be mapped; none if there is none.
// Their files are the caller's to close.
func (c *Client) Areas(region int) ([]Area, error) {
	argsz := uint32(regionInfoSize)
	for {
		head, _ := regionInfo{argsz: argsz, index: uint32(region)}.AppendBinary(nil)
		p, fds, err := c.doFDs(CommandRegionInfo, head)
		if err != nil {
			return nil, err
		}
		var r regionInfo
		if r.UnmarshalBinary(p) != nil || r.index != uint32(region) || uint64(r.argsz) < uint64(len(p)) || uint32(len(p)) > argsz {
			closeFDs(fds)
			return nil, short(CommandRegionInfo)
		}
		if r.argsz > argsz && argsz == regionInfoSize {
			closeFDs(fds)
			argsz = r.argsz
			if argsz > regionInfoSize+maxRegionReply {
				return nil, fmt.Errorf("vfiouser: %d bytes on region %d: %w", argsz, region, syscall.E2BIG)
			}
			continue
		}
		areas, err := parseAreas(r, p, fds)
		closeFDs(fds)
		if err != nil {
			return nil, fmt.Errorf("vfiouser: region %d: %v: %w", region, err, syscall.EPROTO)
		}
		return areas, nil
	}
}
