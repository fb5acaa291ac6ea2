// SPDX-License-Identifier: Apache-2.0

package vfiouser

import (
	"fmt"
	"syscall"

	"golang.org/x/sys/unix"
)

// maxIOFiles bounds the descriptors that we keep for a client's maps by file I/O.
const maxIOFiles = 256

// openIO returns the file behind fd, a regular one or a block device, for access
// by pread and pwrite, with a descriptor of its own. It does not take over fd.
func (t *fileTable) openIO(fd int, off, size uint64, prot Prot) (*hostFile, error) {
	key, st, err := t.identify(fd, off, size, prot)
	if err != nil {
		return nil, err
	}
	key.io = true
	fl, err := unix.FcntlInt(uintptr(fd), unix.F_GETFL, 0)
	if err != nil {
		return nil, fmt.Errorf("fcntl: %w", err)
	}
	if fl&unix.O_PATH != 0 {
		return nil, fmt.Errorf("file is named, not open: %w", syscall.EBADF)
	}
	if fl&unix.O_APPEND != 0 { // maps for writing may come to share the descriptor
		return nil, fmt.Errorf("file is open to be appended to: %w", syscall.EINVAL)
	}
	if kind := st.Mode & unix.S_IFMT; kind != unix.S_IFREG && kind != unix.S_IFBLK {
		// An access to anything else might wait for ever for its other end.
		return nil, fmt.Errorf("file of type %#o: %w", kind, syscall.EINVAL)
	}
	if f := t.files[key]; f != nil {
		return f, nil
	}
	if t.ios >= maxIOFiles || len(t.files) >= maxFiles {
		return nil, fmt.Errorf("%d files: %w", len(t.files), syscall.ENOSPC)
	}
	own, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("fcntl: %w", err)
	}
	t.ios++
	f := &hostFile{key: key, fd: own}
	t.files[key] = f
	t.idle = append(t.idle, f)
	return f, nil
}

// byFile is what resolve says of memory that is reached by pread and pwrite. To
// those who cannot do that, it is memory without a file.
type byFile struct {
	fd  int
	off uint64
}

func (*byFile) Error() string { return "reached by file I/O" }

// Unwrap returns the errno for those who wanted memory.
func (*byFile) Unwrap() error { return syscall.ENOTSUP }

// copy moves the first bytes of an access. The caller is a reader, so that the
// descriptor stays open.
func (a *byFile) copy(p []byte, prot Prot) (int, error) {
	for {
		var n int
		var err error
		if prot == ProtRead {
			n, err = unix.Pread(a.fd, p, int64(a.off))
		} else {
			n, err = unix.Pwrite(a.fd, p, int64(a.off))
		}
		switch {
		case err == unix.EINTR:
			continue
		case err != nil:
			return 0, err
		case n <= 0:
			return 0, syscall.EFAULT // the file has shrunk
		}
		return n, nil
	}
}
