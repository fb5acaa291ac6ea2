// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strconv"
	"syscall"
	"time"

	"toebox/ci/bench"
	"toebox/ci/netns"
)

// Limits of a machine that is timed. The first one may have to build.
const (
	timedPatience = 10 * time.Minute
	timedGrace    = 30 * time.Second
)

// timer measures how long people wait for the first byte of HTTP.
type timer struct {
	app    *app
	match  *regexp.Regexp // of the names of what is timed; nil: all
	rounds int
	say    func(format string, args ...any)
}

func (t *timer) wants(name string) bool { return t.match == nil || t.match.MatchString(name) }

// rows times what matches. A namespace says that nobody has turned the loopback on.
func (t *timer) rows(ctx context.Context, namespace bool) (rows []bench.Row, failed []string) {
	if !t.wants(bench.TimedRun) && !t.wants(bench.TimedReload) {
		return nil, nil
	}
	runs, reloads, err := t.measure(ctx, namespace)
	for _, m := range []struct {
		name  string
		times []time.Duration
	}{{bench.TimedRun, runs}, {bench.TimedReload, reloads}} {
		if len(m.times) > 0 {
			rows = append(rows, bench.TimedRow(m.name, m.times))
		}
	}
	if err != nil && ctx.Err() == nil {
		failed = append(failed, err.Error())
	}
	return rows, failed
}

// measure has folders of its own for the machines that it starts, for there may be
// others.
func (t *timer) measure(ctx context.Context, namespace bool) (runs, reloads []time.Duration, err error) {
	if namespace {
		if err := netns.Loopback(); err != nil {
			return nil, nil, err
		}
	}
	dir, err := os.MkdirTemp("", "tbx") // short enough for sockets
	if err != nil {
		return nil, nil, fmt.Errorf("bench: %w", err)
	}
	defer os.RemoveAll(dir) //nolint:errcheck // only wasted space if it stays
	port, err := freePort()
	if err != nil {
		return nil, nil, err
	}
	state := filepath.Join(dir, "s")
	command := func(ctx context.Context) *exec.Cmd {
		// The program that it builds is the benchmark's own, too: the tree's stays as it is.
		cmd := exec.CommandContext(ctx, "make", "--silent", "-C", t.app.paths.Source, "run",
			"TOEBOX="+filepath.Join(dir, "toebox"), "ARGS=--port "+strconv.Itoa(port))
		cmd.Env = append(os.Environ(), "XDG_STATE_HOME="+state, "XDG_RUNTIME_DIR="+dir, "MAKEFLAGS=")
		return cmd
	}
	if t.wants(bench.TimedRun) {
		t.say("%s", bench.TimedRun)
	}
	// The last machine stays for the reloads. What is not warm yet is the first one's.
	for n := range t.rounds + 1 {
		if !t.wants(bench.TimedRun) && n < t.rounds {
			continue
		}
		var then func(context.Context) error
		if n == t.rounds && t.wants(bench.TimedReload) {
			then = func(ctx context.Context) (err error) {
				t.say("%s", bench.TimedReload)
				a := *t.app
				a.paths.State, a.paths.Runtime = filepath.Join(state, "toebox"), dir
				a.report = newReporter(io.Discard)
				reloads, err = (&FwTimeCmd{Count: t.rounds, File: "firmware/send.go"}).times(ctx, &a)
				return err
			}
		}
		took, err := timeRun(ctx, command, port, then)
		if err != nil {
			return runs, reloads, err
		}
		if n > 0 && t.wants(bench.TimedRun) {
			runs = append(runs, took)
		}
	}
	return runs, reloads, nil
}

// timeRun starts a machine and returns how long it was to the first byte of HTTP at
// port. Then it calls then, if there is one, and has the machine end.
func timeRun(ctx context.Context, command func(context.Context) *exec.Cmd, port int, then func(context.Context) error) (time.Duration, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, timedPatience, fmt.Errorf("bench: no HTTP after %v", timedPatience))
	defer cancel()
	running, end := context.WithCancelCause(ctx)
	cmd := command(running)
	var said bytes.Buffer
	cmd.Stdout, cmd.Stderr = &said, &said
	// Signals of the terminal are for this process, which ends the machine.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGTERM}
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = timedGrace
	// Pdeathsig is about the thread that starts it.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	begin := time.Now()
	if err := cmd.Start(); err != nil {
		end(err) // unless it was the cause
		return 0, fmt.Errorf("bench: %w", context.Cause(running))
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		cmd.Wait() //nolint:errcheck // its state says more
		end(fmt.Errorf("%s ended by itself: %v", filepath.Base(cmd.Path), cmd.ProcessState))
	}()
	at, err := firstByte(running, port)
	if err == nil && then != nil {
		err = then(running)
	}
	if running.Err() != nil {
		err = context.Cause(running) // and no consequence of it
	}
	end(nil)
	<-ended
	if err != nil {
		return 0, fmt.Errorf("bench: %w: %s", err, bytes.TrimSpace(said.Bytes()))
	}
	return at.Sub(begin), nil
}

// freePort is a port of the loopback that nobody listens at.
func freePort() (int, error) {
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		return 0, fmt.Errorf("bench: %w", err)
	}
	port := l.Addr().(*net.TCPAddr).Port
	return port, l.Close()
}
