// SPDX-License-Identifier: Apache-2.0

package uio

import (
	"unsafe"

	"golang.org/x/sys/unix"

	"toebox/guestdriver/internal/pool"
)

// reserve returns n bytes of address space at a multiple of align, a power of
// two, with nothing in it. What is beside them stays reserved.
func reserve(n, align int) ([]byte, error) {
	p, err := unix.MmapPtr(-1, 0, nil, uintptr(n+align), unix.PROT_NONE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS|unix.MAP_NORESERVE)
	if err != nil {
		return nil, err
	}
	mem := unsafe.Slice((*byte)(p), n+align)
	skip := -int(pool.Address(mem)) & (align - 1)
	return mem[skip : skip+n : skip+n], nil
}

// mapAt maps a piece of a file over reserved address space.
func mapAt(mem []byte, fd int, offset int64) error {
	_, err := unix.MmapPtr(fd, offset, unsafe.Pointer(unsafe.SliceData(mem)), uintptr(len(mem)),
		unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED|unix.MAP_FIXED|unix.MAP_POPULATE)
	return err
}
