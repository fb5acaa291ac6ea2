// SPDX-License-Identifier: Apache-2.0

package pool

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// Address returns where memory that the garbage collector does not move lies.
func Address(mem []byte) uint64 { return uint64(uintptr(unsafe.Pointer(unsafe.SliceData(mem)))) }

// MapPages maps ordinary pages.
func MapPages(n int) ([]byte, error) {
	return unix.Mmap(-1, 0, n, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS|unix.MAP_POPULATE)
}

// Blank replaces a mapping by private zero pages in the same place.
func Blank(mem []byte) error {
	_, _, errno := unix.Syscall6(unix.SYS_MMAP, uintptr(unsafe.Pointer(unsafe.SliceData(mem))), uintptr(len(mem)),
		unix.PROT_READ|unix.PROT_WRITE, unix.MAP_FIXED|unix.MAP_PRIVATE|unix.MAP_ANONYMOUS|unix.MAP_NORESERVE,
		^uintptr(0), 0)
	if errno != 0 {
		return errno
	}
	return nil
}
