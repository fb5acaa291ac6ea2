// SPDX-License-Identifier: Apache-2.0

package inproc

import (
	"slices"
	"sync"

	"golang.org/x/sys/unix"

	"toebox/guestdriver"
	vfiouser "toebox/vfio-user"
)

const (
	// Somewhat below a multiple of 4 GiB, so that a test can get memory on both
	// sides of it.
	firstIOVA = 0x40_0000_0000 - 1<<20
	pageSize  = 4096
	// heapPage is what Go aligns large objects to; a size that is a multiple
	// of it is aligned, too.
	heapPage = 8192
	// pieceSize is the largest piece that View hands out.
	pieceSize = 64 << 10
	// memoryLimit bounds what one bus may allocate.
	memoryLimit = 1 << 30
)

// chunk is one allocation.
type chunk struct {
	iova  uint64
	bytes []byte
}

// Memory is the driver's DMA memory as the function sees it; it implements
// what vdev calls DMA.
type Memory struct {
	mu     sync.RWMutex // held for reading during accesses of the function
	chunks []chunk      // by iova
	next   uint64
	total  uint64
}

// NewMemory returns empty memory.
func NewMemory() *Memory { return &Memory{next: firstIOVA} }

func (m *Memory) alloc(size int) (guestdriver.DMA, error) {
	if size <= 0 || size > memoryLimit {
		return guestdriver.DMA{}, unix.EINVAL
	}
	return m.add(make([]byte, (size+heapPage-1)&^(heapPage-1))[:size:size])
}

// add gives memory IOVAs.
func (m *Memory) add(b []byte) (guestdriver.DMA, error) {
	size := uint64(len(b))
	m.mu.Lock()
	defer m.mu.Unlock()
	if size > memoryLimit-m.total {
		return guestdriver.DMA{}, unix.ENOMEM
	}
	c := chunk{iova: m.next, bytes: b}
	m.chunks = append(m.chunks, c)
	m.next += (size+pageSize-1)&^(pageSize-1) + pageSize
	m.total += size
	return guestdriver.DMA{Bytes: b, IOVA: c.iova}, nil
}

func (m *Memory) free(d guestdriver.DMA) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	i, ok := m.find(d.IOVA)
	if !ok || m.chunks[i].iova != d.IOVA {
		return unix.EINVAL
	}
	m.total -= uint64(len(m.chunks[i].bytes))
	m.chunks = slices.Delete(m.chunks, i, i+1)
	return nil
}

func (m *Memory) clear() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.chunks, m.total = nil, 0
}

// find returns the chunk that holds iova.
func (m *Memory) find(iova uint64) (int, bool) {
	return slices.BinarySearchFunc(m.chunks, iova, func(c chunk, v uint64) int {
		switch {
		case v < c.iova:
			return 1
		case v-c.iova >= uint64(len(c.bytes)):
			return -1
		}
		return 0
	})
}

// rangeLocked returns the bytes [iova, iova+n), which lie in one chunk or fail.
func (m *Memory) rangeLocked(iova, n uint64) ([]byte, error) {
	i, ok := m.find(iova)
	if !ok {
		return nil, unix.EFAULT
	}
	c := m.chunks[i]
	off := iova - c.iova
	if n > uint64(len(c.bytes))-off {
		return nil, unix.EFAULT
	}
	return c.bytes[off : off+n], nil
}

// Read copies memory at iova into p.
func (m *Memory) Read(iova uint64, p []byte) error {
	m.mu.RLock()
	defer m.mu.RUnlock()
	b, err := m.rangeLocked(iova, uint64(len(p)))
	if err == nil {
		copy(p, b)
	}
	return err
}

// Write copies p to memory at iova.
func (m *Memory) Write(iova uint64, p []byte) error {
	m.mu.RLock()
	defer m.mu.RUnlock()
	b, err := m.rangeLocked(iova, uint64(len(p)))
	if err == nil {
		copy(b, p)
	}
	return err
}

// View calls f with the pieces of [iova, iova+n).
func (m *Memory) View(iova uint64, n int, _ vfiouser.Prot, f func(p []byte) error) error {
	if n < 0 {
		return unix.EINVAL
	}
	m.mu.RLock()
	defer m.mu.RUnlock()
	b, err := m.rangeLocked(iova, uint64(n))
	for err == nil && len(b) > 0 {
		p := b[:min(len(b), pieceSize)]
		b = b[len(p):]
		err = f(p)
	}
	return err
}

// Generation is the address of the allocation that [iova, iova+n) lies in, or 0:
// none gets the address of another.
func (m *Memory) Generation(iova, n uint64) uint64 {
	m.mu.RLock()
	defer m.mu.RUnlock()
	if _, err := m.rangeLocked(iova, n); err != nil {
		return 0
	}
	i, _ := m.find(iova)
	return m.chunks[i].iova
}

// Backed reports whether [iova, iova+n) lies in one allocation.
func (m *Memory) Backed(iova, n uint64, _ vfiouser.Prot) bool {
	m.mu.RLock()
	defer m.mu.RUnlock()
	_, err := m.rangeLocked(iova, n)
	return err == nil
}
