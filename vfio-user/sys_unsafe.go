// SPDX-License-Identifier: Apache-2.0

package vfiouser

import (
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

// oobSize is room for the most file descriptors that one sendmsg can carry
// (SCM_MAX_FD, 253), so that only a full descriptor table can cut them off.
const oobSize = 1056

// socketIO holds the arguments of recvmsg or sendmsg, so that a call does not
// allocate. It must live on the heap and serve one call at a time.
type socketIO struct {
	hdr unix.Msghdr
	iov unix.Iovec
	oob [oobSize]byte
}

// recv makes one recvmsg that does not block. oob is valid until the next call.
func (s *socketIO) recv(fd int, p []byte) (n int, oob []byte, truncated bool, errno unix.Errno) {
	s.iov.Base = unsafe.SliceData(p)
	s.iov.SetLen(len(p))
	s.hdr = unix.Msghdr{Iov: &s.iov, Control: &s.oob[0]}
	s.hdr.SetIovlen(1)
	s.hdr.SetControllen(len(s.oob))
	r, _, errno := unix.RawSyscall(unix.SYS_RECVMSG, uintptr(fd), uintptr(unsafe.Pointer(&s.hdr)),
		unix.MSG_DONTWAIT|unix.MSG_CMSG_CLOEXEC)
	if errno != 0 {
		return 0, nil, false, errno
	}
	return int(r), s.oob[:s.hdr.Controllen], s.hdr.Flags&unix.MSG_CTRUNC != 0, 0
}

// send makes one sendmsg that does not block.
func (s *socketIO) send(fd int, p, oob []byte) (n int, errno unix.Errno) {
	s.iov.Base = unsafe.SliceData(p)
	s.iov.SetLen(len(p))
	s.hdr = unix.Msghdr{Iov: &s.iov}
	s.hdr.SetIovlen(1)
	if len(oob) > 0 {
		s.hdr.Control = unsafe.SliceData(oob)
		s.hdr.SetControllen(len(oob))
	}
	r, _, errno := unix.RawSyscall(unix.SYS_SENDMSG, uintptr(fd), uintptr(unsafe.Pointer(&s.hdr)),
		unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL)
	if errno != 0 {
		return 0, errno
	}
	return int(r), 0
}

// holds reports whether addr, as a fault reports it, lies in b. A fault may
// report the start of the page.
func holds(b []byte, addr uintptr) bool {
	start := uintptr(unsafe.Pointer(unsafe.SliceData(b)))
	return addr >= start&^uintptr(os.Getpagesize()-1) && addr < start+uintptr(len(b))
}
