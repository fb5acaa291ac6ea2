// SPDX-License-Identifier: Apache-2.0

package vfiouser

import (
	"fmt"
	"sync/atomic"
	"syscall"

	"golang.org/x/sys/unix"
)

const (
	// pageSize is the granule of DMA maps, whatever the machine's pages are.
	pageSize = 4096
	// maxFiles bounds the mmaps we make for a client. The kernel allows a
	// process 65530, and a Go process that runs out of them dies.
	maxFiles = 4096
	// mostMapped bounds the bytes of them, in half of the address space: files
	// without content cost a client nothing.
	mostMapped = 1 << 46
	// maxIdleFiles is how many files without a DMA map stay mapped: QEMU
	// unmaps everything and maps it again many times while firmware runs.
	maxIdleFiles = 4
)

// fileKey tells files apart. Two descriptors with equal keys reach the same
// bytes with the same rights.
type fileKey struct {
	dev, ino uint64
	mode     int    // O_RDONLY or O_RDWR
	single   uint64 // not zero: a file whose dev and ino say nothing
	io       bool   // not mapped, but read and written
}

// hostFile is a file of the client's that is mapped into this process, once
// for all DMA maps into it.
type hostFile struct {
	key  fileKey
	refs int // DMA maps; 0: idle
	win  atomic.Pointer[window]
	fd   int // with key.io, in place of win; ours
}

// window is the part of a file that is mapped.
type window struct {
	mem  []byte
	base uint64 // place of mem[0] in the file
}

// holds reports whether [off, off+size) is mapped.
func (w *window) holds(off, size uint64) bool {
	return w != nil && off >= w.base && off-w.base <= uint64(len(w.mem)) && size <= uint64(len(w.mem))-(off-w.base)
}

// fileTable is the set of mapped files. It belongs to whoever holds DMA.mu.
type fileTable struct {
	files   map[fileKey]*hostFile
	idle    []*hostFile // oldest first
	old     [][]byte    // replaced, but a reader may still be in it
	singles uint64
	mapped  uint64 // bytes of all windows, those in old too
	ios     int    // files with key.io
}

// identify judges whether a map can have [off, off+size) of the file behind fd.
func (t *fileTable) identify(fd int, off, size uint64, prot Prot) (key fileKey, st unix.Stat_t, err error) {
	if err := unix.Fstat(fd, &st); err != nil {
		return key, st, fmt.Errorf("fstat: %w", err)
	}
	fl, err := unix.FcntlInt(uintptr(fd), unix.F_GETFL, 0)
	if err != nil {
		return key, st, fmt.Errorf("fcntl: %w", err)
	}
	mode := fl & unix.O_ACCMODE
	if mode == unix.O_WRONLY || prot&ProtWrite != 0 && mode != unix.O_RDWR {
		return key, st, fmt.Errorf("file is open for less than the map asks: %w", syscall.EACCES)
	}
	if off+size < off || off+size > 1<<63-1 {
		return key, st, fmt.Errorf("file offset %#x: %w", off+size, syscall.EINVAL)
	}
	key = fileKey{dev: st.Dev, ino: st.Ino, mode: mode}
	if st.Mode&unix.S_IFMT == unix.S_IFREG {
		// A short file would fault at each access; a file that shrinks later
		// does, and the copy then fails.
		if st.Size < 0 || off+size > uint64(st.Size) {
			return key, st, fmt.Errorf("map ends at %#x in a file of %#x bytes: %w", off+size, st.Size, syscall.EINVAL)
		}
	} else {
		// Devices and anonymous inodes share numbers.
		t.singles++
		key.single = t.singles
	}
	return key, st, nil
}

// open returns the mapped file behind fd with [off, off+size) in its window.
// It does not take over fd. replaced says that a window was exchanged, after
// which the caller waits for readers and calls reap.
func (t *fileTable) open(fd int, off, size uint64, prot Prot) (f *hostFile, replaced bool, err error) {
	key, st, err := t.identify(fd, off, size, prot)
	if err != nil {
		return nil, false, err
	}
	first, last := off, off+size // of the window to make
	f = t.files[key]
	if f == nil {
		if len(t.files) >= maxFiles {
			return nil, false, fmt.Errorf("%d files: %w", maxFiles, syscall.ENOSPC)
		}
		f = &hostFile{key: key}
	}
	old := f.win.Load()
	if old.holds(off, size) {
		return f, false, nil
	}
	if old != nil {
		first = min(first, old.base)
		last = max(last, old.base+uint64(len(old.mem)))
	}
	var w *window
	if key.single == 0 {
		// The whole file, so that one mmap serves all maps to come, and never
		// less than before: maps into the old window stay valid.
		w, err = t.mapWindow(fd, 0, max(uint64(st.Size), last), key.mode)
	}
	if w == nil {
		first, last = roundOut(first, last, uint64(max(st.Blksize, 0)))
		w, err = t.mapWindow(fd, first, last-first, key.mode)
	}
	if err != nil {
		return nil, false, err
	}
	f.win.Store(w)
	if old != nil {
		t.old = append(t.old, old.mem)
	} else {
		t.files[key] = f
		t.idle = append(t.idle, f)
	}
	return f, old != nil, nil
}

// roundOut returns [first, last) with both ends moved out to blocks, huge pages
// say, of the file; the window holds what it held.
func roundOut(first, last, block uint64) (uint64, uint64) {
	if block = max(block, pageSize); block&(block-1) != 0 {
		block = pageSize
	}
	first &^= block - 1
	if last+block > last {
		last = (last + block - 1) &^ (block - 1)
	}
	return first, last
}

func (t *fileTable) mapWindow(fd int, off, size uint64, mode int) (*window, error) {
	if size > mostMapped-t.mapped {
		return nil, fmt.Errorf("mmap of %#x bytes: %w", size, syscall.ENOMEM)
	}
	prot := unix.PROT_READ
	if mode == unix.O_RDWR {
		prot |= unix.PROT_WRITE
	}
	mem, err := unix.Mmap(fd, int64(off), int(size), prot, unix.MAP_SHARED)
	if err != nil {
		return nil, fmt.Errorf("mmap: %w", err)
	}
	// Guest memory is not ours to write into a core file. Best effort.
	_ = unix.Madvise(mem, unix.MADV_DONTDUMP)
	t.mapped += uint64(len(mem))
	return &window{mem: mem, base: off}, nil
}

// ref counts a DMA map into f.
func (t *fileTable) ref(f *hostFile) {
	if f.refs++; f.refs > 1 {
		return
	}
	for i, g := range t.idle {
		if g == f {
			t.idle = append(t.idle[:i], t.idle[i+1:]...)
			return
		}
	}
}

// unref drops a DMA map into f. The mmap stays until reap.
func (t *fileTable) unref(f *hostFile) {
	if f.refs--; f.refs == 0 {
		t.idle = append(t.idle, f)
	}
}

// reap unmaps what no DMA map needs, but for up to keep idle files. No reader
// may be left that began before those maps were taken away.
func (t *fileTable) reap(keep int) {
	for _, mem := range t.old {
		t.mapped -= uint64(len(mem))
		_ = unix.Munmap(mem)
	}
	t.old = nil
	for i := 0; i < len(t.idle); {
		f := t.idle[i]
		// A file of its own kind is never found again.
		if len(t.idle) <= keep && f.key.single == 0 {
			i++
			continue
		}
		t.idle = append(t.idle[:i], t.idle[i+1:]...)
		delete(t.files, f.key)
		if f.key.io {
			t.ios--
			_ = unix.Close(f.fd)
			continue
		}
		t.mapped -= uint64(len(f.win.Load().mem))
		_ = unix.Munmap(f.win.Load().mem)
	}
}
