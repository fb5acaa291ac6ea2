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
	"os/exec"
	"os/signal"
	"strings"
	"syscall"
	"time"

	vfiouser "toebox/vfio-user"
	"toebox/vfio-user/keeper"
)

// Exit statuses.
const (
	exitOK     = 0
	exitFailed = 1
	exitUsage  = 2
)

// replaceTime bounds the wait for a server that replaces another.
const replaceTime = 30 * time.Second

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	hup := make(chan os.Signal, 1)
	signal.Notify(hup, syscall.SIGHUP)
	status := run(ctx, os.Args[1:], hup, os.Stdout, os.Stderr)
	stop()
	os.Exit(status)
}

// run is the command; it returns the exit status. A value from hup replaces the
// server.
func run(ctx context.Context, args []string, hup <-chan os.Signal, stdout, stderr io.Writer) int {
	flags := flag.NewFlagSet("keeper", flag.ContinueOnError)
	flags.SetOutput(stderr)
	flags.Usage = func() {
		fmt.Fprintln(stderr, "usage: keeper --socket-path=PATH [--patience=TIME] -- SERVER-COMMAND...\n{socket} or {fd} in the command stands for the socket to serve.")
		flags.PrintDefaults()
	}
	path := flags.String("socket-path", "", "unix socket to listen on for QEMU, `PATH`")
	patience := flags.Duration("patience", 3*time.Second, "how long QEMU waits for an answer of the server, `TIME`; it gives up after 5 s")
	switch err := flags.Parse(args); {
	case errors.Is(err, flag.ErrHelp):
		return exitOK
	case err != nil: // already told
		return exitUsage
	case *path == "" || flags.NArg() == 0 || *patience <= 0:
		fmt.Fprintln(stderr, "keeper: wanted: --socket-path=PATH, a patience above 0, and after -- the command of a server")
		return exitUsage
	}
	server := flags.Args()
	if _, err := exec.LookPath(server[0]); err != nil {
		fmt.Fprintln(stderr, "keeper:", err)
		return exitFailed
	}
	log := slog.New(slog.NewTextHandler(stderr, nil))
	k, err := keeper.New(keeper.Config{
		Command:  func(l keeper.Launch) *exec.Cmd { return command(server, l, stdout) },
		Stderr:   stderr,
		Logger:   log,
		Patience: *patience,
	})
	if err != nil {
		fmt.Fprintln(stderr, "keeper:", err)
		return exitUsage
	}
	l, err := vfiouser.Listen(*path)
	if err != nil {
		fmt.Fprintln(stderr, "keeper:", err)
		return exitFailed
	}
	defer l.Close()
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			select {
			case <-hup:
				replace(ctx, k, log)
			case <-ctx.Done():
				return
			}
		}
	}()
	err = k.Serve(ctx, l)
	cancel()
	<-done
	if err != nil {
		fmt.Fprintln(stderr, "keeper:", err)
		return exitFailed
	}
	return exitOK
}

func replace(ctx context.Context, k *keeper.Keeper, log *slog.Logger) {
	ctx, cancel := context.WithTimeout(ctx, replaceTime)
	defer cancel()
	if err := k.Replace(ctx); err != nil {
		log.Error("keeper: replace", "err", err)
	}
}

// command is the server's, with the placeholders filled in.
func command(server []string, l keeper.Launch, stdout io.Writer) *exec.Cmd {
	const firstExtra = 3 // what exec.Cmd makes of ExtraFiles[0]
	byFD := false
	args := make([]string, len(server))
	for i, a := range server {
		byFD = byFD || strings.Contains(a, "{fd}")
		a = strings.ReplaceAll(a, "{fd}", fmt.Sprint(firstExtra))
		args[i] = strings.ReplaceAll(a, "{socket}", l.Socket)
	}
	cmd := exec.Command(args[0], args[1:]...)
	cmd.Stdout = stdout
	if byFD {
		cmd.ExtraFiles = []*os.File{l.Listener}
	}
	return cmd
}
