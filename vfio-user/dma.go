// SPDX-License-Identifier: Apache-2.0

package vfiouser

import (
	"errors"
	"fmt"
	"iter"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

// Prot says what the device may do to a range of guest memory.
type Prot uint32

// Rights of a DMA map.
const (
	ProtRead  Prot = 1
	ProtWrite Prot = 2
)

// maxPiece bounds what is copied or lent in one go, and with it how long an
// unmap waits for a reader.
const maxPiece = 64 << 10

// DMA is guest memory as the client has mapped it for the device. Methods are
// safe for use from any goroutine.
type DMA struct {
	root    atomic.Pointer[version] // published map
	epoch   atomic.Uint64
	readers readers
	remote  atomic.Pointer[conn]     // who serves memory without a file
	log     atomic.Pointer[dirtyLog] // nil: writes are not logged
	stats   *counters

	mu      sync.Mutex // serialises changes
	files   fileTable
	count   int
	patient time.Duration // how long a change waits for readers
}

// dmaWait is how long an unmap waits for readers. QEMU gives up after 5 s.
const dmaWait = 3 * time.Second

func newDMA(stats *counters) *DMA {
	d := &DMA{stats: stats, patient: dmaWait}
	d.readers.wake = make(chan struct{}, 1)
	d.root.Store(new(version))
	d.files.files = make(map[fileKey]*hostFile)
	return d
}

// Epoch returns a number that changes with each map and unmap.
func (d *DMA) Epoch() uint64 { return d.epoch.Load() }

// Read copies guest memory from iova on to p. It goes piece by piece and stops
// at the first byte that it cannot have; the pieces before are in p by then.
func (d *DMA) Read(iova uint64, p []byte) error { return d.transfer(iova, p, ProtRead) }

// Write copies p to guest memory from iova on. It goes piece by piece and stops
// at the first byte that it cannot store; the pieces before are there by then.
func (d *DMA) Write(iova uint64, p []byte) error { return d.transfer(iova, p, ProtWrite) }

func (d *DMA) transfer(iova uint64, p []byte, prot Prot) error {
	if err := checkRange(iova, uint64(len(p))); err != nil {
		return err
	}
	until := deadline{size: len(p)}
	for len(p) > 0 {
		n, err := d.copyPiece(iova, p, prot)
		if err == errNoFile {
			n, err = d.message(iova, p[:n], prot, &until)
		}
		if err != nil {
			return dmaError(iova, uint64(len(p)), err)
		}
		iova += uint64(n)
		p = p[n:]
	}
	return nil
}

// View lends guest memory to f: n bytes from iova on in pieces that are
// contiguous in the host, at most 64 KiB each, in order. The alignment of a
// piece is that of its address up to 4096. f must not keep b, block, or call
// into the server; what the guest does to the memory meanwhile shows in b, so f
// reads each word once or uses sync/atomic. View ends with f's first error. A
// fault in b while f runs ends f and is an error; any other panic goes on.
// Memory without a file, or reached by file I/O, cannot be lent: ENOTSUP.
func (d *DMA) View(iova uint64, n int, prot Prot, f func(b []byte) error) error {
	if n < 0 {
		return &DMAError{IOVA: iova, Errno: syscall.EINVAL}
	}
	if err := checkRange(iova, uint64(n)); err != nil {
		return err
	}
	for n > 0 {
		k, err := d.viewPiece(iova, n, prot, f)
		if err == errNoFile {
			err = syscall.ENOTSUP
		}
		if k == 0 {
			return dmaError(iova, uint64(n), err)
		}
		if err != nil {
			return err
		}
		iova += uint64(k)
		n -= k
	}
	return nil
}

// Backed reports whether the n bytes from iova on are all mapped with a file, so
// that they can be lent, and for all of prot.
func (d *DMA) Backed(iova, n uint64, prot Prot) bool {
	if checkRange(iova, n) != nil {
		return false
	}
	root := d.root.Load()
	for n > 0 {
		m := root.find(iova)
		if m == nil || m.file == nil || m.file.key.io || m.prot&prot != prot {
			return false
		}
		rest := m.last - iova // bytes of m after iova
		if n-1 <= rest {
			return true
		}
		n -= rest + 1
		iova += rest + 1
	}
	return true
}

// Generation returns a number that is greater after any of the n bytes from iova
// on was mapped anew, and 0 while one of them is not mapped. Who has a copy of
// the bytes learns by it that they may be others.
func (d *DMA) Generation(iova, n uint64) uint64 {
	if checkRange(iova, n) != nil {
		return 0
	}
	root := d.root.Load()
	newest := uint64(0)
	for n > 0 {
		m := root.find(iova)
		if m == nil {
			return 0
		}
		newest = max(newest, m.serial)
		rest := m.last - iova // bytes of m after iova
		if n-1 <= rest {
			break
		}
		n -= rest + 1
		iova += rest + 1
	}
	return newest
}

// Map is a DMA map of a client's.
type Map struct {
	IOVA, Size uint64 // Size is 0 if it is 2^64
	Prot       Prot
	Backed     bool // it can be lent, see [DMA.View]
}

// Maps returns the maps that there are, in order of their addresses. They may be
// gone when the caller looks.
func (d *DMA) Maps() iter.Seq[Map] {
	return func(yield func(Map) bool) {
		for m := d.root.Load().tree.ceil(0); m != nil; m = d.root.Load().tree.ceil(m.last + 1) {
			backed := m.file != nil && !m.file.key.io
			if !yield(Map{m.iova, m.size(), m.prot, backed}) || m.last == ^uint64(0) {
				return
			}
		}
	}
}

// checkRange is the one check of a guest's (address, length).
func checkRange(iova, n uint64) error {
	if n > 0 && iova+(n-1) < iova {
		return &DMAError{IOVA: iova, Len: n, Errno: syscall.EFAULT}
	}
	return nil
}

// errNoFile says that a range is mapped, but reached by messages only.
var errNoFile = errors.New("no file")

func dmaError(iova, n uint64, err error) error {
	return &DMAError{IOVA: iova, Len: n, Errno: errnoOf(err)}
}

// resolve returns memory of the host for the bytes from iova on, at most n and
// at least one. With errNoFile, it returns how far the mapping goes in count.
// The caller is a reader, and the memory is its own until it leaves.
func (d *DMA) resolve(iova uint64, n int, prot Prot) (b []byte, count int, err error) {
	root := d.root.Load()
	m := root.find(iova)
	switch {
	case m == nil:
		return nil, 0, syscall.EFAULT
	case m.prot&prot != prot:
		return nil, 0, syscall.EACCES
	}
	want := uint64(min(n, maxPiece))
	have := min(m.last-iova, want-1) + 1
	if m.file == nil {
		return nil, int(have), errNoFile
	}
	off := m.off + (iova - m.iova)
	if m.file.key.io {
		return nil, int(have), &byFile{m.file.fd, off}
	}
	for have < want {
		next := root.tree.find(m.last + 1)
		if next == nil || !next.continues(m) || next.prot&prot != prot {
			break
		}
		have += min(next.last-next.iova, want-have-1) + 1
		m = next
	}
	// Taken last: a window is replaced only by one that holds more.
	w := m.file.win.Load()
	return w.mem[off-w.base:][:have:have], int(have), nil
}

// copyPiece copies the first bytes of an access, in one reader section.
func (d *DMA) copyPiece(iova uint64, p []byte, prot Prot) (n int, err error) {
	c := d.readers.enter()
	defer d.readers.leave(c)
	b, n, err := d.resolve(iova, len(p), prot)
	if f, ok := err.(*byFile); ok {
		n, err = f.copy(p[:n], prot)
		if prot != ProtRead {
			d.wrote(iova, uint64(max(n, 1)))
		}
		return n, err
	}
	if err != nil {
		return n, err
	}
	if prot != ProtRead {
		defer d.wrote(iova, uint64(n)) // a fault included
	}
	defer catchFault(b, debug.SetPanicOnFault(true), &err)
	if prot == ProtRead {
		copy(p, b)
	} else {
		copy(b, p)
	}
	return n, nil
}

// viewPiece lends the first bytes of an access, in one reader section. n is 0
// if the error is about the memory, else f's.
func (d *DMA) viewPiece(iova uint64, size int, prot Prot, f func([]byte) error) (n int, err error) {
	c := d.readers.enter()
	defer d.readers.leave(c)
	b, _, err := d.resolve(iova, size, prot)
	if err != nil {
		return 0, err
	}
	if prot&ProtWrite != 0 {
		defer d.wrote(iova, uint64(len(b))) // whatever f did to it
	}
	defer catchFault(b, debug.SetPanicOnFault(true), &err)
	err = f(b)
	return len(b), err
}

// catchFault, deferred, turns a fault in b into EFAULT: the file has shrunk
// below what the client mapped. Other panics go on. It puts back what
// SetPanicOnFault had returned.
func catchFault(b []byte, old bool, err *error) {
	debug.SetPanicOnFault(old)
	switch v := recover().(type) {
	case nil:
	case interface{ Addr() uintptr }:
		if !holds(b, v.Addr()) {
			panic(v)
		}
		*err = syscall.EFAULT
	default:
		panic(v)
	}
}

// mapFile adds a DMA map as type1 v2 does. fd is -1 for memory without a file
// and stays the caller's.
func (d *DMA) mapFile(r dmaMap, prot Prot, fd int, l limits) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	gran := l.granule()
	last := r.addr + r.size - 1
	if r.size == 0 || last < r.addr || (r.addr|r.size)&(gran-1) != 0 || fd >= 0 && r.flags&dmaMapFileIO == 0 && r.offset&(pageSize-1) != 0 {
		return fmt.Errorf("map of %#x bytes at %#x: %w", r.size, r.addr, syscall.EINVAL)
	}
	m := mapping{iova: r.addr, last: last, prot: prot, serial: d.epoch.Load() + 1}
	root := d.root.Load().tree
	clash := root.overlaps(r.addr, last)
	if clash != nil && (clash.iova != m.iova || clash.last != m.last) {
		return fmt.Errorf("map of [%#x, %#x] over [%#x, %#x]: %w", m.iova, last, clash.iova, clash.last, syscall.EEXIST)
	}
	if clash == nil && d.count >= l.maxDMAMaps {
		return fmt.Errorf("%d maps: %w", d.count, syscall.ENOSPC)
	}
	if fd >= 0 {
		var f *hostFile
		var replaced bool
		var err error
		if r.flags&dmaMapFileIO != 0 {
			f, err = d.files.openIO(fd, r.offset, r.size, prot)
		} else {
			f, replaced, err = d.files.open(fd, r.offset, r.size, prot)
		}
		if err != nil {
			return err
		}
		m.file, m.off = f, r.offset
		if replaced || len(d.files.idle) > maxIdleFiles+1 {
			defer d.settle()
		}
	}
	if clash != nil {
		if !clash.sameAs(&m) {
			return fmt.Errorf("another map of [%#x, %#x]: %w", m.iova, last, syscall.EEXIST)
		}
		return nil
	}
	if m.file != nil {
		d.files.ref(m.file)
	}
	d.count++
	d.publish(root.insert(m))
	return nil
}

// unmap removes the DMA maps that lie in [addr, addr+size), or all of them,
// and returns how many bytes those had. It returns when no access to them can
// be running any more; with EBUSY the maps are gone, but a reader is not.
func (d *DMA) unmap(addr, size uint64, all bool) (uint64, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	last := addr + size - 1
	root := d.root.Load().tree
	if all {
		if addr != 0 || size != 0 {
			return 0, fmt.Errorf("unmap all with a range: %w", syscall.EINVAL)
		}
	} else {
		if size == 0 || last < addr || (addr|size)&(pageSize-1) != 0 {
			return 0, fmt.Errorf("unmap of %#x bytes at %#x: %w", size, addr, syscall.EINVAL)
		}
		for _, edge := range [2]uint64{addr, last} {
			m := root.find(edge)
			if m != nil && (m.iova < addr || m.last > last) {
				return 0, fmt.Errorf("unmap of [%#x, %#x] cuts [%#x, %#x]: %w", addr, last, m.iova, m.last, syscall.EINVAL)
			}
		}
	}
	var bytes uint64
	before := d.count
	rest := root.cut(addr, last, func(m *mapping) {
		d.count--
		if m.file != nil {
			d.files.unref(m.file)
		}
		if bytes += m.size(); bytes == 0 {
			bytes-- // 2^64 does not fit the field
		}
	})
	if d.count == before {
		return 0, nil
	}
	d.publish(rest)
	if !d.settle() {
		return bytes, fmt.Errorf("unmap of [%#x, %#x]: a reader does not end: %w", addr, last, syscall.EBUSY)
	}
	return bytes, nil
}

// clear removes everything, with the mmaps and the log.
func (d *DMA) clear() error {
	d.stopLog()
	_, err := d.unmap(0, 0, true)
	if err != nil {
		return err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if !d.readers.wait(d.patient) {
		return fmt.Errorf("a reader does not end: %w", syscall.EBUSY)
	}
	d.files.reap(0)
	return nil
}

// publish makes a map the current one.
func (d *DMA) publish(root *page) {
	d.root.Store(&version{tree: root})
	d.epoch.Add(1)
	d.stats.dmaMapped.Store(uint64(d.count))
}

// settle waits for the readers of maps taken away and frees what only they
// had. If one does not end, that is left for the next time.
func (d *DMA) settle() bool {
	if !d.readers.wait(d.patient) {
		return false
	}
	d.files.reap(maxIdleFiles)
	return true
}
