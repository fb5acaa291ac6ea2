// SPDX-License-Identifier: Apache-2.0

package vfio

import (
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

// ioctl does a request whose argument is a number.
func ioctl(fd int, req, arg uintptr) (int, error) {
	r, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), req, arg)
	if errno != 0 {
		return 0, errno
	}
	return int(r), nil
}

// ioctlBytes does a request whose argument is a struct, laid out in b.
func ioctlBytes(fd int, req uintptr, b []byte) error {
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), req, uintptr(unsafe.Pointer(unsafe.SliceData(b))))
	runtime.KeepAlive(b)
	if errno != 0 {
		return errno
	}
	return nil
}

// ioctlString does a request whose argument is a C string.
func ioctlString(fd int, req uintptr, s string) (int, error) {
	b := append([]byte(s), 0)
	r, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), req, uintptr(unsafe.Pointer(unsafe.SliceData(b))))
	runtime.KeepAlive(b)
	if errno != 0 {
		return -1, errno
	}
	return int(r), nil
}

// readCount reads, and clears, the count of an eventfd that does not block.
func readCount(fd uintptr) unix.Errno {
	var count [8]byte
	_, _, errno := unix.RawSyscall(unix.SYS_READ, fd, uintptr(unsafe.Pointer(&count)), unsafe.Sizeof(count))
	return errno
}

// mapHuge maps reserved huge pages of 2 MiB.
func mapHuge(n int) ([]byte, error) {
	const huge2M = 21 << unix.MAP_HUGE_SHIFT
	return unix.Mmap(-1, 0, n, unix.PROT_READ|unix.PROT_WRITE,
		unix.MAP_PRIVATE|unix.MAP_ANONYMOUS|unix.MAP_HUGETLB|unix.MAP_POPULATE|huge2M)
}

func unmap(mem []byte) { unix.Munmap(mem) }
