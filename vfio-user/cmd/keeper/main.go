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
	"os/exec"
	"os/signal"
	"strconv"
	"strings"
	"sync"
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
		fmt.Fprintln(stderr, "usage: keeper --socket-path=PATH [FLAGS] -- SERVER-COMMAND...\n{socket} or {fd} in the command stands for the socket to serve.")
		flags.PrintDefaults()
	}
	path := flags.String("socket-path", "", "unix socket to listen on for QEMU, `PATH`")
	socket := flags.Int("socket-fd", 0, "or: inherited unix socket that listens already, `N`")
	ctl := flags.Int("control-fd", 0, "inherited unix socket for orders and reports, `N`")
	var inherit []int
	flags.Func("inherit", "file descriptor for the server, `N`; can be given several times", func(v string) error {
		n, err := strconv.Atoi(v)
		inherit = append(inherit, n)
		return err
	})
	patience := flags.Duration("patience", 3*time.Second, "how long QEMU waits for an answer of the server, `TIME`; it gives up after 5 s")
	switch err := flags.Parse(args); {
	case errors.Is(err, flag.ErrHelp):
		return exitOK
	case err != nil: // already told
		return exitUsage
	case (*path == "") == (*socket == 0) || flags.NArg() == 0 || *patience <= 0:
		fmt.Fprintln(stderr, "keeper: wanted: --socket-path=PATH, a patience above 0, and after -- the command of a server")
		return exitUsage
	}
	p := &program{server: &server{args: flags.Args()}, stdout: stdout, log: slog.New(slog.NewTextHandler(stderr, nil))}
	if err := p.open(*path, *socket, *ctl, inherit); err != nil {
		fmt.Fprintln(stderr, "keeper:", err)
		return exitFailed
	}
	defer p.close()
	cfg := keeper.Config{Command: p.command, Stderr: stderr, Logger: p.log, Patience: *patience}
	if p.control != nil {
		cfg.Event = p.control.event
	}
	k, err := keeper.New(cfg)
	if err != nil {
		fmt.Fprintln(stderr, "keeper:", err)
		return exitUsage
	}
	if err := p.serve(ctx, k, hup); err != nil {
		fmt.Fprintln(stderr, "keeper:", err)
		return exitFailed
	}
	return exitOK
}

// program is what the command has open.
type program struct {
	server   *server
	stdout   io.Writer
	log      *slog.Logger
	listener *net.UnixListener
	control  *control   // nil: none
	files    []*os.File // for each server
}

func (p *program) open(path string, socket, ctl int, inherit []int) (err error) {
	defer func() {
		if err != nil {
			p.close()
		}
	}()
	if _, err := exec.LookPath(p.server.get()[0]); err != nil {
		return err
	}
	for _, fd := range inherit {
		f, err := inherited(fd, "inherited")
		if err != nil {
			return fmt.Errorf("--inherit: %w", err)
		}
		p.files = append(p.files, f)
	}
	if ctl != 0 {
		if p.control, err = newControl(ctl, p.server, p.log); err != nil {
			return err
		}
	}
	if socket == 0 {
		p.listener, err = vfiouser.Listen(path)
		return err
	}
	f, err := inherited(socket, "socket")
	if err != nil {
		return fmt.Errorf("--socket-fd: %w", err)
	}
	defer f.Close() // FileListener has a duplicate
	l, err := net.FileListener(f)
	if err != nil {
		return fmt.Errorf("--socket-fd: %w", err)
	}
	u, ok := l.(*net.UnixListener)
	if !ok {
		l.Close()
		return fmt.Errorf("--socket-fd: file descriptor %d is no unix socket", socket)
	}
	u.SetUnlinkOnClose(false) // the path is somebody else's
	p.listener = u
	return nil
}

func (p *program) close() {
	if p.listener != nil {
		p.listener.Close()
	}
	if p.control != nil {
		p.control.conn.Close()
	}
	for _, f := range p.files {
		f.Close()
	}
}

// serve keeps the device until ctx or the control connection ends.
func (p *program) serve(ctx context.Context, k *keeper.Keeper, hup <-chan os.Signal) error {
	ctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			select {
			case <-hup:
				if err := replace(ctx, k); err != nil {
					p.log.Error("keeper: replace", "err", err)
				}
			case <-ctx.Done():
				return
			}
		}
	})
	if p.control != nil {
		wg.Go(func() { p.control.write(ctx) })
		orders := make(chan []byte, maxOrders)
		wg.Go(func() { p.control.obey(ctx, k, orders) })
		wg.Go(func() {
			p.control.read(ctx, orders)
			cancel() // whoever holds the other end has gone
		})
	}
	err := k.Serve(ctx, p.listener)
	cancel()
	if p.control != nil {
		p.control.conn.Close() // unblocks the reader
	}
	wg.Wait()
	return err
}

func replace(ctx context.Context, k *keeper.Keeper) error {
	ctx, cancel := context.WithTimeout(ctx, replaceTime)
	defer cancel()
	return k.Replace(ctx)
}

// command is the server's, with the placeholders filled in.
func (p *program) command(l keeper.Launch) *exec.Cmd {
	const firstExtra = 3 // what exec.Cmd makes of ExtraFiles[0]
	server := p.server.get()
	byFD := false
	args := make([]string, len(server))
	for i, a := range server {
		byFD = byFD || strings.Contains(a, "{fd}")
		a = strings.ReplaceAll(a, "{fd}", fmt.Sprint(firstExtra))
		args[i] = strings.ReplaceAll(a, "{socket}", l.Socket)
	}
	cmd := exec.Command(args[0], args[1:]...)
	cmd.Stdout = p.stdout
	if !byFD {
		l.Listener = nil // 3 stays closed
	}
	if byFD || len(p.files) > 0 {
		cmd.ExtraFiles = append([]*os.File{l.Listener}, p.files...)
	}
	return cmd
}
