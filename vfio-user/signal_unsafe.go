// SPDX-License-Identifier: Apache-2.0

package vfiouser

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// aioSetup makes a context for n reads.
func aioSetup(n uintptr) (ctx uintptr, errno unix.Errno) {
	_, _, errno = unix.Syscall(unix.SYS_IO_SETUP, n, uintptr(unsafe.Pointer(&ctx)), 0)
	return ctx, errno
}

func aioDestroy(ctx uintptr) { _, _, _ = unix.Syscall(unix.SYS_IO_DESTROY, ctx, 0, 0) }

// aioSubmit asks for the read of cb, which must live on the heap.
func aioSubmit(ctx uintptr, cb **ioControl) unix.Errno {
	_, _, errno := unix.Syscall(unix.SYS_IO_SUBMIT, ctx, 1, uintptr(unsafe.Pointer(cb)))
	return errno
}

// aioEnded takes reads that have ended out of a context, without waiting for one.
func aioEnded(ctx uintptr, ends []ioEnd, zero *unix.Timespec) int {
	n, _, errno := unix.Syscall6(unix.SYS_IO_GETEVENTS, ctx, 0, uintptr(len(ends)),
		uintptr(unsafe.Pointer(unsafe.SliceData(ends))), uintptr(unsafe.Pointer(zero)), 0)
	if errno != 0 {
		return 0
	}
	return int(n)
}
