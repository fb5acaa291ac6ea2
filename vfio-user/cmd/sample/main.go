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

	vfiouser "toebox/vfio-user"
	"toebox/vfio-user/backend"
	"toebox/vfio-user/sample"
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
	flags := flag.NewFlagSet("sample", flag.ContinueOnError)
	flags.SetOutput(stderr)
	path := flags.String("socket-path", "", "unix socket to listen on, `PATH`")
	fd := flags.Int("fd", -1, "inherited unix socket `N`, listening or connected")
	verbose := flags.Bool("v", false, "tell what each alarm did")
	switch err := flags.Parse(args); {
	case errors.Is(err, flag.ErrHelp):
		return exitOK
	case err != nil: // already told
		return exitUsage
	}
	ways := flags.NArg()
	if *path != "" {
		ways++
	}
	if *fd >= 0 {
		ways++
	}
	if ways != 1 {
		fmt.Fprintln(stderr, "sample: wanted: one of --socket-path=PATH, --fd=N and PATH")
		return exitUsage
	}
	level := slog.LevelWarn
	if *verbose {
		level = slog.LevelInfo
	}
	dev, err := sample.New(sample.Config{Logger: slog.New(slog.NewTextHandler(stderr, &slog.HandlerOptions{Level: level}))})
	if err == nil {
		if once := flags.Arg(0); once != "" {
			err = serveOne(ctx, dev.Server(), once)
		} else {
			err = backend.Serve(ctx, dev.Server(), *path, *fd)
		}
		err = errors.Join(err, dev.Close())
	}
	if err != nil {
		fmt.Fprintln(stderr, "sample:", err)
		return exitFailed
	}
	return exitOK
}

// serveOne serves the first client that connects to path, until it goes or ctx
// ends.
func serveOne(ctx context.Context, s *vfiouser.Server, path string) error {
	l, err := vfiouser.Listen(path)
	if err != nil {
		return err
	}
	stop := context.AfterFunc(ctx, func() { l.Close() })
	c, err := l.AcceptUnix()
	stop()
	l.Close()
	switch {
	case err == nil:
		return s.ServeConn(ctx, c)
	case ctx.Err() != nil:
		return nil
	}
	return err
}
