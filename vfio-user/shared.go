// SPDX-License-Identifier: Apache-2.0

package vfiouser

import (
	"fmt"
	"os"
	"runtime/debug"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// Shared is the memory of an [Area], mapped into this process while another has
// it mapped as well. Each access is checked against its bounds. Methods are safe
// for use from any goroutine, Close included.
//
// Loads and stores of 4 and 8 bytes at a multiple of their size are those of
// sync/atomic, those of 1 and 2 bytes are made in one go; so the other process
// never sees half of one. As much holds for ReadAt and WriteAt with 1, 2, 4 or 8
// aligned bytes, which is how an access to the region by message arrives: a device
// can serve the area with them.
type Shared struct {
	file   *os.File
	off    uint64
	own    bool        // nobody can make it fault: made here, and sealed
	rights RegionFlags // what it is mapped for

	mu  sync.RWMutex // a reader while mem is in use
	mem []byte       // nil: closed
}

// NewShared makes size bytes of memory, zeroed, that a device can share with its
// client. Nobody can change the size. Size is a multiple of 4096. The caller
// closes it, after the server that offers its area.
func NewShared(size uint64) (*Shared, error) {
	if size == 0 || size > 1<<40 || size&(pageSize-1) != 0 {
		return nil, fmt.Errorf("vfiouser: %#x bytes to share: %w", size, syscall.EINVAL)
	}
	fd, err := unix.MemfdCreate("vfiouser", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	if err != nil {
		return nil, fmt.Errorf("vfiouser: share: %w", os.NewSyscallError("memfd_create", err))
	}
	f := os.NewFile(uintptr(fd), "shared")
	if err = unix.Ftruncate(fd, int64(size)); err == nil {
		// A client gets a descriptor that could shrink what we have mapped.
		_, err = unix.FcntlInt(uintptr(fd), unix.F_ADD_SEALS, unix.F_SEAL_SHRINK|unix.F_SEAL_GROW|unix.F_SEAL_SEAL)
	}
	var s *Shared
	if err == nil {
		s, err = mapShared(f, 0, size, RegionRead|RegionWrite)
	}
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("vfiouser: share: %w", err)
	}
	s.own = true
	return s, nil
}

// Map maps an area for what flags, of its region, allow. The area's file may be
// closed afterwards.
func (a Area) Map(flags RegionFlags) (*Shared, error) {
	if a.File == nil || a.Size == 0 || (a.Size|a.FileOffset)&(pageSize-1) != 0 || a.Size > 1<<46 || a.FileOffset > 1<<62 {
		return nil, fmt.Errorf("vfiouser: map of %#x bytes at %#x: %w", a.Size, a.FileOffset, syscall.EINVAL)
	}
	fd, err := duplicate(a.File)
	if err != nil {
		return nil, fmt.Errorf("vfiouser: map area: %w", err)
	}
	f := os.NewFile(uintptr(fd), "area")
	s, err := mapShared(f, a.FileOffset, a.Size, flags)
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("vfiouser: map area: %w", err)
	}
	return s, nil
}

// mapShared takes over f unless it fails.
func mapShared(f *os.File, off, size uint64, flags RegionFlags) (*Shared, error) {
	prot := 0
	if flags&RegionRead != 0 {
		prot |= unix.PROT_READ
	}
	if flags&RegionWrite != 0 {
		prot |= unix.PROT_WRITE
	}
	rc, err := f.SyscallConn()
	if err != nil {
		return nil, err
	}
	var mem []byte
	cerr := rc.Control(func(fd uintptr) { mem, err = unix.Mmap(int(fd), int64(off), int(size), prot, unix.MAP_SHARED) })
	if cerr != nil {
		err = cerr
	}
	if err != nil {
		return nil, os.NewSyscallError("mmap", err)
	}
	return &Shared{file: f, off: off, mem: mem, rights: flags}, nil
}

// Area returns the memory as an area at offset of a region. Its file is s's.
func (s *Shared) Area(offset uint64) Area {
	return Area{Offset: offset, Size: s.Size(), File: s.file, FileOffset: s.off}
}

// Size returns how many bytes there are; 0 after Close.
func (s *Shared) Size() uint64 {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return uint64(len(s.mem))
}

// Close takes the mapping away, once the accesses that are running have ended,
// and closes the file.
func (s *Shared) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.mem == nil {
		return nil
	}
	mem := s.mem
	s.mem = nil
	err := unix.Munmap(mem)
	if cerr := s.file.Close(); err == nil {
		err = cerr
	}
	return err
}

// at returns n bytes of the memory. The caller holds mu.
func (s *Shared) at(off uint64, n, align int, need RegionFlags) ([]byte, error) {
	switch {
	case s.mem == nil:
		return nil, fmt.Errorf("vfiouser: shared memory: %w", os.ErrClosed)
	case off > uint64(len(s.mem)) || uint64(n) > uint64(len(s.mem))-off || off&uint64(align-1) != 0:
		return nil, fmt.Errorf("vfiouser: %d bytes at %#x of %#x of shared memory: %w", n, off, len(s.mem), syscall.EINVAL)
	case s.rights&need != need:
		return nil, fmt.Errorf("vfiouser: shared memory is not mapped for that: %w", syscall.EACCES)
	}
	return s.mem[off:][:n:n], nil
}

// access runs f on n bytes of the memory. A fault in them is EFAULT: the file has
// shrunk.
func (s *Shared) access(off uint64, n, align int, need RegionFlags, f func(b []byte)) (err error) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	b, err := s.at(off, n, align, need)
	if err != nil {
		return err
	}
	if !s.own {
		defer catchFault(b, debug.SetPanicOnFault(true), &err)
		if n > 0 {
			// The race detector's atomics cannot be recovered from: fault here.
			load8(b)
		}
	}
	f(b)
	return nil
}

// ReadAt copies memory from off on to p. It reads all of p or nothing.
func (s *Shared) ReadAt(p []byte, off int64) (n int, err error) {
	err = s.access(uint64(off), len(p), 1, RegionRead, func(b []byte) { loadBytes(p, b, uint64(off)) })
	if err != nil {
		return 0, err
	}
	return len(p), nil
}

// WriteAt copies p to memory from off on. It writes all of p or nothing, but for
// a fault on the way.
func (s *Shared) WriteAt(p []byte, off int64) (n int, err error) {
	err = s.access(uint64(off), len(p), 1, RegionWrite, func(b []byte) { storeBytes(b, p, uint64(off)) })
	if err != nil {
		return 0, err
	}
	return len(p), nil
}

// Load8 loads the byte at off.
func (s *Shared) Load8(off uint64) (v uint8, err error) {
	err = s.access(off, 1, 1, RegionRead, func(b []byte) { v = load8(b) })
	return v, err
}

// Load16 loads the 16 bits at off.
func (s *Shared) Load16(off uint64) (v uint16, err error) {
	err = s.access(off, 2, 2, RegionRead, func(b []byte) { v = load16(b) })
	return v, err
}

// Load32 loads the 32 bits at off.
func (s *Shared) Load32(off uint64) (v uint32, err error) {
	err = s.access(off, 4, 4, RegionRead, func(b []byte) { v = load32(b) })
	return v, err
}

// Load64 loads the 64 bits at off.
func (s *Shared) Load64(off uint64) (v uint64, err error) {
	err = s.access(off, 8, 8, RegionRead, func(b []byte) { v = load64(b) })
	return v, err
}

// Store8 stores a byte at off.
func (s *Shared) Store8(off uint64, v uint8) error {
	return s.access(off, 1, 1, RegionWrite, func(b []byte) { store8(b, v) })
}

// Store16 stores 16 bits at off.
func (s *Shared) Store16(off uint64, v uint16) error {
	return s.access(off, 2, 2, RegionWrite, func(b []byte) { store16(b, v) })
}

// Store32 stores 32 bits at off.
func (s *Shared) Store32(off uint64, v uint32) error {
	return s.access(off, 4, 4, RegionWrite, func(b []byte) { store32(b, v) })
}

// Store64 stores 64 bits at off.
func (s *Shared) Store64(off uint64, v uint64) error {
	return s.access(off, 8, 8, RegionWrite, func(b []byte) { store64(b, v) })
}

// Swap32 stores 32 bits at off and returns what was there: a device takes a
// doorbell with it and loses none that is rung meanwhile.
func (s *Shared) Swap32(off uint64, v uint32) (old uint32, err error) {
	err = s.access(off, 4, 4, RegionRead|RegionWrite, func(b []byte) { old = swap32(b, v) })
	return old, err
}

// CompareAndSwap32 stores new at off if old is there.
func (s *Shared) CompareAndSwap32(off uint64, old, new uint32) (swapped bool, err error) {
	err = s.access(off, 4, 4, RegionRead|RegionWrite, func(b []byte) { swapped = cas32(b, old, new) })
	return swapped, err
}
