// SPDX-License-Identifier: Apache-2.0

package socket

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"toebox/ci/bus/internal/spans"
)

const (
	firstIOVA = 0x40_0000_0000
	pageSize  = 4096
	// memorySize bounds what one bus may allocate; only what was touched
	// costs memory.
	memorySize = 1 << 30
)

// memory is the file that holds all DMA memory, and what of it is in use. It
// is not safe for concurrent use.
type memory struct {
	file  *os.File
	bytes []byte // the whole file
	room  *spans.Set
}

func newMemory() (*memory, error) {
	fd, err := unix.MemfdCreate("toebox dma", unix.MFD_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("memfd: %w", err)
	}
	m := &memory{file: os.NewFile(uintptr(fd), "toebox dma"), room: spans.New(0, memorySize)}
	if err := m.file.Truncate(memorySize); err != nil {
		m.file.Close()
		return nil, err
	}
	if m.bytes, err = unix.Mmap(fd, 0, memorySize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED); err != nil {
		m.file.Close()
		return nil, fmt.Errorf("mmap: %w", err)
	}
	return m, nil
}

// pages rounds a size up.
func pages(n uint64) uint64 { return (n + pageSize - 1) &^ (pageSize - 1) }

// take finds room with a page behind it that is never mapped.
func (m *memory) take(size int) (at uint64, p []byte, err error) {
	if size <= 0 || size > memorySize {
		return 0, nil, unix.EINVAL
	}
	at, ok := m.room.Take(uint64(size) + pageSize)
	if !ok {
		return 0, nil, unix.ENOMEM
	}
	return at, m.bytes[at : at+uint64(size) : at+uint64(size)], nil
}

// give frees what take found and gives the pages back, so that the next reads
// zeros.
func (m *memory) give(at uint64) error {
	n, ok := m.room.Give(at)
	if !ok {
		return unix.EINVAL
	}
	return unix.Madvise(m.bytes[at:at+n-pageSize], unix.MADV_REMOVE)
}

func (m *memory) close() error {
	return errors.Join(unix.Munmap(m.bytes), m.file.Close())
}
