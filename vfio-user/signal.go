// SPDX-License-Identifier: Apache-2.0

package vfiouser

import (
	"encoding/binary"
	"runtime"
	"sync"

	"golang.org/x/sys/unix"
)

// signaller adds 1 to eventfds without ever waiting.
//
// A write waits on an eventfd that is full if O_NONBLOCK is off, and that is the
// client's to turn off and the client's to fill, between any look of ours and the
// write; the flags that would make one write not wait (pwritev2, RWF_NOWAIT) are
// refused for eventfds. The kernel itself adds to an eventfd without waiting, and
// does so for us when an asynchronous read has ended (IOCB_FLAG_RESFD). The read
// is one of no bytes of the eventfd, which takes nothing and ends, as too short,
// before the call that asks for it returns.
//
// Where a kernel has no such reads, none to spare (fs.aio-max-nr), or refuses one
// (a seccomp filter, which may come late), a poll and a write must do.
type signaller struct {
	once sync.Once
	aio  uintptr // context; 0: write

	mu   sync.Mutex
	ends [aioDepth]ioEnd
	zero unix.Timespec
}

const (
	// aioDepth is for how many reads that have ended there is room; the kernel
	// makes more of it.
	aioDepth = 64
	// aioTries is how often room is made for a read. It takes others who used the
	// room up each time to make it fail.
	aioTries = 100
)

// ioControl is struct iocb of linux/aio_abi.h; its opcode 0 is IOCB_CMD_PREAD.
type ioControl struct {
	_         uint64
	_, _      uint32
	_         uint16
	_         int16
	file      uint32
	_, _      uint64
	_         int64
	_         uint64
	flags     uint32
	signalled uint32 // eventfd
}

const aioFlagSignal = 1 << 0 // IOCB_FLAG_RESFD

// ioEnd is struct io_event.
type ioEnd struct{ _, _, _, _ uint64 }

// control returns what signal takes for an eventfd. It belongs to one caller at
// a time.
func (s *signaller) control(fd int) *ioControl {
	s.once.Do(s.start)
	return newControl(fd)
}

func newControl(fd int) *ioControl {
	return &ioControl{file: uint32(fd), flags: aioFlagSignal, signalled: uint32(fd)}
}

// start makes a context and tries whether it does what it is for.
func (s *signaller) start() {
	ctx, errno := aioSetup(aioDepth)
	if errno != 0 {
		return
	}
	var b [8]byte
	if fd, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK); err == nil {
		cb := newControl(fd)
		if aioSubmit(ctx, &cb) == 0 {
			_, _ = unix.Read(fd, b[:])
		}
		unix.Close(fd)
	}
	if binary.NativeEndian.Uint64(b[:]) != 1 {
		aioDestroy(ctx)
		return
	}
	s.aio = ctx
	// The kernel takes tens of milliseconds over it: nothing for the end of a
	// connection.
	runtime.AddCleanup(s, aioDestroy, ctx)
}

// signal adds 1 to the eventfd of cb, unless that is at its maximum.
func (s *signaller) signal(cb **ioControl) error {
	if s.aio == 0 {
		return writeEvent(int((*cb).signalled))
	}
	for range aioTries {
		if errno := aioSubmit(s.aio, cb); errno == 0 {
			return nil
		} else if errno != unix.EAGAIN {
			break
		}
		s.mu.Lock()
		for aioEnded(s.aio, s.ends[:], &s.zero) == len(s.ends) {
		}
		s.mu.Unlock()
	}
	return writeEvent(int((*cb).signalled))
}

// writeEvent is signal by other means. O_NONBLOCK alone would not do: the client
// may have turned it off.
func writeEvent(fd int) error {
	p := [1]unix.PollFd{{Fd: int32(fd), Events: unix.POLLOUT}}
	n, err := unix.Poll(p[:], 0)
	if err != nil || n != 1 || p[0].Revents&unix.POLLOUT == 0 {
		return nil // at its maximum: the client will find it set anyway
	}
	var one [8]byte
	binary.NativeEndian.PutUint64(one[:], 1)
	if _, err = unix.Write(fd, one[:]); err == unix.EAGAIN {
		return nil
	}
	return err
}
