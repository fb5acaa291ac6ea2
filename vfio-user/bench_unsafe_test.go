// SPDX-License-Identifier: Apache-2.0

package vfiouser_test

import (
	"syscall"
	"unsafe"
)

// ioOnce is read or write as the bare system call.
func ioOnce(trap uintptr, fd int, p []byte) (int, error) {
	n, _, errno := syscall.Syscall(trap, uintptr(fd), uintptr(unsafe.Pointer(unsafe.SliceData(p))), uintptr(len(p)))
	if errno != 0 {
		return 0, errno
	}
	return int(n), nil
}
