// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/signal"
	"syscall"

	"golang.org/x/sys/unix"

	vfiouser "toebox/vfio-user"
	"toebox/vfio-user/edu"
)

// Exit statuses.
const (
	exitOK     = 0
	exitFailed = 1
	exitUsage  = 2
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	status := run(ctx, os.Args[1:], os.Stderr)
	stop()
	os.Exit(status)
}

// run is the command; it returns the exit status.
func run(ctx context.Context, args []string, stderr io.Writer) int {
	flags := flag.NewFlagSet("edu", flag.ContinueOnError)
	flags.SetOutput(stderr)
	path := flags.String("socket-path", "", "unix socket to listen on, `PATH`")
	fd := flags.Int("fd", -1, "inherited unix socket `N`, listening or connected")
	mask := flags.Uint64("dma-mask", edu.DefaultDMAMask, "address bits that DMA has, `MASK`")
	switch err := flags.Parse(args); {
	case errors.Is(err, flag.ErrHelp):
		return exitOK
	case err != nil: // already told
		return exitUsage
	case (*path == "") == (*fd < 0) || flags.NArg() > 0 || *mask == 0:
		fmt.Fprintln(stderr, "edu: wanted: either --socket-path=PATH or --fd=N, and a mask that is not 0")
		return exitUsage
	}
	dev, err := edu.New(edu.Config{DMAMask: *mask, Logger: slog.New(slog.NewTextHandler(stderr, nil))})
	if err == nil {
		err = errors.Join(serve(ctx, dev.Server(), *path, *fd), dev.Close())
	}
	if err != nil {
		fmt.Fprintln(stderr, "edu:", err)
		return exitFailed
	}
	return exitOK
}

// serve serves clients until ctx ends, or the one that fd is connected to until
// it goes.
func serve(ctx context.Context, s *vfiouser.Server, path string, fd int) error {
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
