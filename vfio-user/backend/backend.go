// SPDX-License-Identifier: Apache-2.0

package backend

import (
	"context"
	"fmt"
	"net"
	"os"

	"golang.org/x/sys/unix"

	vfiouser "toebox/vfio-user"
)

// Serve listens on path, or if that is empty takes over the descriptor fd, and
// serves clients until ctx ends. A descriptor may be a socket that listens or one
// that is connected; then Serve ends with the connection.
func Serve(ctx context.Context, s *vfiouser.Server, path string, fd int) error {
	if path != "" {
		l, err := vfiouser.Listen(path)
		if err != nil {
			return err
		}
		defer l.Close()
		return s.Serve(ctx, l)
	}
	listening, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ACCEPTCONN)
	if err != nil {
		return fmt.Errorf("--fd=%d: %w", fd, err)
	}
	f := os.NewFile(uintptr(fd), "socket")
	defer f.Close()
	if listening != 0 {
		l, err := net.FileListener(f)
		if err != nil {
			return fmt.Errorf("--fd=%d: %w", fd, err)
		}
		defer l.Close()
		if u, ok := l.(*net.UnixListener); ok {
			u.SetUnlinkOnClose(false) // the path is the parent's
			return s.Serve(ctx, u)
		}
	} else {
		c, err := net.FileConn(f)
		if err != nil {
			return fmt.Errorf("--fd=%d: %w", fd, err)
		}
		defer c.Close()
		if u, ok := c.(*net.UnixConn); ok {
			return s.ServeConn(ctx, u)
		}
	}
	return fmt.Errorf("--fd=%d: not a unix stream socket", fd)
}
