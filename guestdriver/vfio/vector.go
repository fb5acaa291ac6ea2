// SPDX-License-Identifier: Apache-2.0

package vfio

import (
	"fmt"
	"os"
	"sync/atomic"
	"syscall"

	"golang.org/x/sys/unix"
)

// vector is the eventfd of an interrupt, on the runtime's poller: who waits holds no thread.
//
// It is read by a raw system call, which never blocks. One that the runtime knows of
// would wake its monitor each time that the program had nothing to do: a thread, and
// system calls, that cost more than all else about an interrupt.
type vector struct {
	file   *os.File
	raw    syscall.RawConn
	failed atomic.Uint32      // errno; 0: none
	take   func(uintptr) bool // made once
}

// newVector makes an eventfd, and returns its descriptor for the kernel to signal.
func newVector(n int) (*vector, int32, error) {
	fd, err := unix.Eventfd(0, unix.EFD_NONBLOCK|unix.EFD_CLOEXEC)
	if err != nil {
		return nil, 0, err
	}
	v := &vector{file: os.NewFile(uintptr(fd), fmt.Sprintf("vector %d", n))}
	if v.raw, err = v.file.SyscallConn(); err != nil {
		v.file.Close() //nolint:errcheck // the other error says more
		return nil, 0, err
	}
	v.take = func(fd uintptr) bool {
		errno := readCount(fd)
		if errno != 0 && errno != unix.EAGAIN && errno != unix.EINTR {
			v.failed.Store(uint32(errno))
		}
		return errno != unix.EAGAIN
	}
	return v, int32(fd), nil
}

// wait waits for a signal.
func (v *vector) wait() error {
	if err := v.raw.Read(v.take); err != nil {
		return err
	}
	if errno := v.failed.Load(); errno != 0 {
		return os.NewSyscallError("read", syscall.Errno(errno))
	}
	return nil
}
