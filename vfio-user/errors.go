// SPDX-License-Identifier: Apache-2.0

package vfiouser

import (
	"errors"
	"fmt"
	"syscall"
)

// Error is a request that the peer made and we refused, or the other way
// round. It unwraps to the errno that went over the wire.
type Error struct {
	Command Command
	Errno   syscall.Errno
}

func (e *Error) Error() string {
	return fmt.Sprintf("vfiouser: %v: %v", e.Command, e.Errno)
}

// Unwrap returns the errno.
func (e *Error) Unwrap() error { return e.Errno }

// DMAError is an access to guest memory that could not be made, in whole or
// from IOVA on. It unwraps to the errno: EFAULT (not mapped, or the file
// behind the mapping has shrunk), EACCES (not mapped for this direction),
// ENOTSUP (a view of memory that has no file), EDEADLK, ETIMEDOUT, EIO or what
// the client answered (access by message).
type DMAError struct {
	IOVA  uint64 // first byte that was not accessed
	Len   uint64 // bytes from there to the end of the access
	Errno syscall.Errno
}

func (e *DMAError) Error() string {
	return fmt.Sprintf("vfiouser: dma: %d bytes at iova %#x: %v", e.Len, e.IOVA, e.Errno)
}

// Unwrap returns the errno.
func (e *DMAError) Unwrap() error { return e.Errno }

// errnoOf returns what an error reply says about err, which is not nil. An
// error without an errno is EIO: the header's field has room for no more.
func errnoOf(err error) syscall.Errno {
	var errno syscall.Errno
	if errors.As(err, &errno) && errno != 0 {
		return errno
	}
	return syscall.EIO
}
