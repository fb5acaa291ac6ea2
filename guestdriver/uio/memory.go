// SPDX-License-Identifier: Apache-2.0

package uio

import (
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"slices"

	"golang.org/x/sys/unix"

	"toebox/guestdriver"
	"toebox/guestdriver/internal/pool"
)

// AllocDMA implements guestdriver.Bus. More than a huge page needs some that
// are adjacent.
func (b *Bus) AllocDMA(size int) (guestdriver.DMA, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.closed {
		return guestdriver.DMA{}, errClosed
	}
	d, err := b.memory.Alloc(size, b.pages.region)
	if err != nil {
		err = fmt.Errorf("uio: %w", err)
	}
	return d, err
}

// FreeDMA implements guestdriver.Bus. The memory stays, for later allocations.
func (b *Bus) FreeDMA(d guestdriver.DMA) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.closed {
		return nil
	}
	if err := b.memory.Free(d); err != nil {
		return fmt.Errorf("uio: %w", err)
	}
	return nil
}

// page is a huge page that no region has.
type page struct {
	physical uint64
	index    int // in the file
}

// hugePages takes huge pages from the kernel, one by one, and makes regions of
// those that are adjacent.
type hugePages struct {
	// take gets the page with the next index; mapRun maps pages one behind the
	// other.
	take   func(index int) (physical uint64, err error)
	mapRun func(run []page) ([]byte, error)
	close  func() error

	n    int
	free []page // by address
}

// region makes a region of at least n bytes.
func (h *hugePages) region(n int) (*pool.Region, error) {
	count := (n + pool.HugePage - 1) / pool.HugePage
	for {
		if at := adjacent(h.free, count); at >= 0 {
			run := slices.Clone(h.free[at : at+count])
			mem, err := h.mapRun(run)
			if err != nil {
				return nil, fmt.Errorf("map %d huge pages: %w", count, err)
			}
			h.free = slices.Delete(h.free, at, at+count)
			return pool.NewRegion(mem, run[0].physical), nil
		}
		physical, err := h.take(h.n)
		switch {
		case err == nil:
		case !errors.Is(err, unix.ENOMEM) && !errors.Is(err, unix.ENOSPC):
			return nil, err
		case h.n == 0:
			return nil, fmt.Errorf("no huge page of 2 MiB is free (hugepages=64 on the kernel's command line, or /proc/sys/vm/nr_hugepages): %w", err)
		default:
			return nil, fmt.Errorf("no %d adjacent huge pages for %d bytes among the %d left, and no more: reserve some at boot (hugepages=N): %w",
				count, n, len(h.free), err)
		}
		h.n++
		at, _ := slices.BinarySearchFunc(h.free, physical, func(p page, a uint64) int { return cmp.Compare(p.physical, a) })
		h.free = slices.Insert(h.free, at, page{physical, h.n - 1})
	}
}

// adjacent returns where a run of count pages begins, or -1.
func adjacent(free []page, count int) int {
	run := 0
	for i := range free {
		if run > 0 && free[i].physical != free[i-1].physical+pool.HugePage {
			run = 0
		}
		if run++; run == count {
			return i - count + 1
		}
	}
	return -1
}

// newHugePages is over the kernel's, in a file without a name.
func newHugePages(pagemap string) *hugePages {
	k := &kernelPages{fd: -1, pagemap: pagemap}
	return &hugePages{take: k.take, mapRun: k.mapRun, close: k.close}
}

type kernelPages struct {
	fd      int
	pagemap string
}

func (k *kernelPages) take(index int) (uint64, error) {
	if k.fd < 0 {
		fd, err := unix.MemfdCreate("toebox-dma", unix.MFD_CLOEXEC|unix.MFD_HUGETLB|unix.MFD_HUGE_2MB)
		if err != nil {
			return 0, fmt.Errorf("memory of huge pages: %w", err)
		}
		k.fd = fd
	}
	offset := int64(index) * pool.HugePage
	// Here, for an error: a page that is not there when it is touched kills. A
	// signal, which the Go runtime sends at any time, interrupts it.
	err := error(unix.EINTR)
	for err == unix.EINTR {
		err = unix.Fallocate(k.fd, 0, offset, pool.HugePage)
	}
	if err != nil {
		return 0, fmt.Errorf("take a huge page: %w", err)
	}
	mem, err := unix.Mmap(k.fd, offset, pool.HugePage, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED|unix.MAP_POPULATE)
	if err != nil {
		return 0, fmt.Errorf("map a huge page: %w", err)
	}
	defer unix.Munmap(mem)
	mem[0] = 0 // pagemap knows what was touched
	return physical(k.pagemap, pool.Address(mem))
}

func (k *kernelPages) mapRun(run []page) ([]byte, error) {
	mem, err := reserve(len(run)*pool.HugePage, pool.HugePage)
	if err != nil {
		return nil, err
	}
	for i, p := range run {
		if err := mapAt(mem[i*pool.HugePage:(i+1)*pool.HugePage], k.fd, int64(p.index)*pool.HugePage); err != nil {
			return nil, errors.Join(err, pool.Blank(mem))
		}
	}
	return mem, nil
}

func (k *kernelPages) close() error {
	if k.fd < 0 {
		return nil
	}
	fd := k.fd
	k.fd = -1
	return unix.Close(fd)
}

// Bits of an entry (Documentation/admin-guide/mm/pagemap.rst).
const (
	pagemapPresent = 1 << 63
	pagemapFrame   = 1<<55 - 1
)

// physical returns the physical address of a virtual one.
func physical(pagemap string, address uint64) (uint64, error) {
	f, err := os.Open(pagemap)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	var entry [8]byte
	if _, err := f.ReadAt(entry[:], int64(address/pool.PageSize*8)); err != nil {
		return 0, fmt.Errorf("%s: %w", pagemap, err)
	}
	v := binary.NativeEndian.Uint64(entry[:])
	switch {
	case v&pagemapPresent == 0:
		return 0, fmt.Errorf("%s: the page at %#x is not in memory", pagemap, address)
	case v&pagemapFrame == 0:
		return 0, fmt.Errorf("%s hides physical addresses: the program needs CAP_SYS_ADMIN", pagemap)
	}
	return v&pagemapFrame*pool.PageSize + address%pool.PageSize, nil
}
