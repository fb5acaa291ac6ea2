// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"syscall"

	"toebox/vfio-user/backend"
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
		err = errors.Join(backend.Serve(ctx, dev.Server(), *path, *fd), dev.Close())
	}
	if err != nil {
		fmt.Fprintln(stderr, "edu:", err)
		return exitFailed
	}
	return exitOK
}
