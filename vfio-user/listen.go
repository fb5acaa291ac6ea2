// SPDX-License-Identifier: Apache-2.0

package vfiouser

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// listenPatience bounds the wait for another process that replaces a socket in
	// the same folder, which takes it a few system calls.
	listenPatience = 5 * time.Second
	listenRetry    = 5 * time.Millisecond
)

// Listen listens on a unix socket at path, for [Server.Serve]. A socket that a
// process left there is replaced; one that is in use is not, and not disturbed
// either, nor is a file of any other kind. Of several processes that find the
// same left-over socket, one gets the place. Closing the listener removes the
// socket.
func Listen(path string) (*net.UnixListener, error) {
	address := &net.UnixAddr{Name: path, Net: "unix"}
	l, err := net.ListenUnix("unix", address)
	if errors.Is(err, syscall.EADDRINUSE) {
		l, err = replace(address, err)
	}
	if err != nil {
		return nil, fmt.Errorf("vfiouser: listen: %w", err)
	}
	return l, nil
}

// replace listens on an address that is taken, if only by a left-over; otherwise
// it returns taken or why it could not tell.
func replace(address *net.UnixAddr, taken error) (*net.UnixListener, error) {
	// Between finding a socket dead and removing it, another process might put
	// its own there. All who remove one hold this lock; it leaves nothing behind.
	dir, err := os.Open(filepath.Dir(address.Name))
	if err != nil {
		return nil, errors.Join(taken, err)
	}
	defer dir.Close()
	if err := lock(dir, listenPatience); err != nil {
		return nil, errors.Join(taken, err)
	}
	if fi, err := os.Lstat(address.Name); err == nil {
		if fi.Mode().Type() != os.ModeSocket || !abandoned(address.Name) {
			return nil, taken
		}
		if err := os.Remove(address.Name); err != nil {
			return nil, errors.Join(taken, err)
		}
	}
	return net.ListenUnix("unix", address)
}

// lock takes an advisory lock on f, which closing it gives back.
func lock(f *os.File, patience time.Duration) error {
	rc, err := f.SyscallConn()
	if err != nil {
		return err
	}
	for deadline := time.Now().Add(patience); ; {
		cerr := rc.Control(func(fd uintptr) { err = unix.Flock(int(fd), unix.LOCK_EX|unix.LOCK_NB) })
		switch {
		case cerr != nil:
			return cerr
		case err == nil:
			return nil
		case err != unix.EWOULDBLOCK && err != unix.EINTR:
			return os.NewSyscallError("flock", err)
		case time.Now().After(deadline):
			return fmt.Errorf("lock of %s: %w", f.Name(), os.ErrDeadlineExceeded)
		}
		<-time.After(listenRetry)
	}
}

// abandoned reports whether no process has the socket at path any more. It asks
// with a socket of another type, so that one who is there sees no connection come
// and go, and is found even if it does not listen yet.
func abandoned(path string) bool {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return false
	}
	defer unix.Close(fd)
	return unix.Connect(fd, &unix.SockaddrUnix{Name: path}) == unix.ECONNREFUSED
}
