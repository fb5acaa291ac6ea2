// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"toebox/images/devbuild"
	"toebox/images/fswatch"
	"toebox/images/proc"
	"toebox/images/rig"
)

// Limits of what follows a load.
const (
	fwBuildPatience = 10 * time.Minute
	fwTestPatience  = 10 * time.Minute
	recoverPatience = 10 * time.Second
	recoverPeriod   = 2 * time.Millisecond
)

// FwCmd are the verbs about firmware.
type FwCmd struct {
	Load  FwLoadCmd  `cmd:"" help:"Build the device process and have it take over in the running machine."`
	Watch FwWatchCmd `cmd:"" help:"Do so at every saved change of firmware source, and say what the change did."`
	Time  FwTimeCmd  `cmd:"" help:"Measure how long a saved change takes, on a copy of the source."`
}

// FwTarget are the flags of both.
type FwTarget struct {
	Firmware string `placeholder:"PACKAGE" help:"Package to build as the firmware instead of the tree's: a directory of any module (with a dot or a slash in front) or an import path of the tree. It exports New, as package vdev/device says."`
	RunID    string `arg:"" optional:"" name:"run" placeholder:"RUN" help:"The run to bring it to, by the end of its folder's name; the newest by default."`
}

// FwLoadCmd loads once.
type FwLoadCmd struct {
	FwTarget `embed:""`
}

// Run is called by kong.
func (c *FwLoadCmd) Run(a *app) error {
	ctx, cancel := a.interruptible()
	defer cancel()
	l, err := a.fwLoader(&c.FwTarget)
	if err != nil {
		return err
	}
	return l.load(ctx, time.Now(), "the request")
}

// FwWatchCmd loads whenever source is saved.
type FwWatchCmd struct {
	FwTarget `embed:""`
	Test     string `placeholder:"REGEXP" help:"After each load, run these functions of the conformance kit on the changed source (inproc)."`
}

// Run is called by kong.
func (c *FwWatchCmd) Run(a *app) error {
	if c.Test != "" && c.Firmware != "" {
		return &rig.UsageError{Text: "fw watch: --test runs the tree's firmware: leave out --firmware"}
	}
	ctx, cancel := a.interruptible()
	defer cancel()
	l, err := a.fwLoader(&c.FwTarget)
	if err == nil {
		err = l.watch(ctx, c.Test)
	}
	var sig interrupted
	if errors.As(context.Cause(ctx), &sig) {
		return nil
	}
	return err
}

// A fwLoader builds firmware for one run and brings it there.
type fwLoader struct {
	a      *app
	run    rig.Record
	build  devbuild.Config
	name   string
	client *http.Client // of the device
}

func (a *app) fwLoader(c *FwTarget) (*fwLoader, error) {
	if a.paths.Source == "" {
		return nil, errors.New("fw: no toebox source here: run this in its tree, or set TOEBOX_SOURCE")
	}
	run, err := rig.Find(a.paths, c.RunID)
	if err != nil {
		return nil, err
	}
	l := &fwLoader{
		a: a, run: run, name: "the firmware of " + a.paths.Source, client: statsClient(run),
		build: devbuild.Config{Source: a.paths.Source, Firmware: c.Firmware},
	}
	if c.Firmware != "" {
		l.name = c.Firmware
	}
	return l, nil
}

func (l *fwLoader) say(format string, args ...any) {
	l.a.report.Step("fw: " + fmt.Sprintf(format, args...))
}

// load builds, loads, and says how long what took. since is what the time to the first
// byte is counted from, and event names that.
func (l *fwLoader) load(ctx context.Context, since time.Time, event string) error {
	_, err := l.loadTimed(ctx, since, event)
	return err
}

// loadTimed is load, and returns when the first byte of HTTP came; zero: none did.
func (l *fwLoader) loadTimed(ctx context.Context, since time.Time, event string) (time.Time, error) {
	program, err := rig.NewFirmware(l.a.paths, l.run)
	if err != nil {
		return time.Time{}, err
	}
	begin := time.Now()
	if err := l.compile(ctx, program); err != nil {
		os.RemoveAll(filepath.Dir(program)) //nolint:errcheck // only wasted space if it stays
		return time.Time{}, err
	}
	l.say("built in %s", seconds(time.Since(begin)))
	begin = time.Now()
	done, err := rig.SendLoad(ctx, l.run, rig.Load{Program: program, Name: l.name})
	if err != nil {
		return time.Time{}, err // it may serve nonetheless: the run cleans up
	}
	if done.Error != "" {
		os.RemoveAll(filepath.Dir(program)) //nolint:errcheck // only wasted space if it stays
		return time.Time{}, &refusedError{done.Error}
	}
	l.say("generation %d serves after %s", done.Generation, seconds(done.Took))
	first := make(chan error, 1)
	var byteAt time.Time
	go func() {
		var err error
		byteAt, err = l.firstByte(ctx)
		first <- err
	}()
	recovered, err := l.recovered(ctx, done.Generation)
	if err == nil {
		l.say("driver back after %s: its first request is answered", seconds(recovered.Sub(begin)))
	}
	back := err
	err = <-first
	switch {
	case ctx.Err() != nil:
		return time.Time{}, context.Cause(ctx)
	case back != nil:
		return time.Time{}, &lateError{back}
	case err != nil:
		l.say("no HTTP answer at port %d within %v: %v", l.run.Port, recoverPatience, err)
		return time.Time{}, nil
	}
	l.say("first HTTP byte through it %s after %s", seconds(byteAt.Sub(since)), event)
	return byteAt, nil
}

// lateError is a firmware that took over, and with which no driver came back.
type lateError struct{ err error }

func (e *lateError) Error() string { return "the firmware serves, but " + e.err.Error() }
func (e *lateError) Unwrap() error { return e.err }

// refusedError is a firmware that could not take over.
type refusedError struct{ why string }

func (e *refusedError) Error() string {
	return "the firmware could not take over, the one before goes on: " + e.why
}

func (l *fwLoader) compile(ctx context.Context, program string) error {
	ctx, cancel := context.WithTimeoutCause(ctx, fwBuildPatience, fmt.Errorf("fw: not built after %v: %w", fwBuildPatience, context.DeadlineExceeded))
	defer cancel()
	return devbuild.Build(ctx, l.build, program)
}

// recovered waits until the adapter of the generation has answered a request.
func (l *fwLoader) recovered(ctx context.Context, generation uint32) (time.Time, error) {
	for deadline := time.Now().Add(recoverPatience); ; {
		s, err := l.stats()
		switch {
		case err == nil && s.Generation != generation:
			return time.Time{}, fmt.Errorf("generation %d did not last: see what the run says of it", generation)
		case err == nil && s.Counters["responses"] > 0:
			return time.Now(), nil
		case time.Now().After(deadline):
			return time.Time{}, fmt.Errorf("no driver has come back within %v", recoverPatience)
		}
		if err := pause(ctx, recoverPeriod); err != nil {
			return time.Time{}, err
		}
	}
}

// fwStats is what is looked at of the device's statistics.
type fwStats struct {
	Generation uint32            `json:"generation"`
	Counters   map[string]uint64 `json:"counters"`
}

func (l *fwLoader) stats() (s fwStats, err error) {
	resp, err := l.client.Get("http://device/stats")
	if err != nil {
		return s, err
	}
	defer resp.Body.Close() //nolint:errcheck // read only
	return s, json.NewDecoder(io.LimitReader(resp.Body, maxStats)).Decode(&s)
}

// firstByte asks the guest's HTTP server through the new firmware until there is an
// answer, and returns when its first byte came.
func (l *fwLoader) firstByte(ctx context.Context) (time.Time, error) {
	deadline := time.Now().Add(recoverPatience)
	for {
		at, err := l.askByte(ctx, deadline)
		if err == nil {
			return at, nil
		}
		if time.Now().After(deadline) {
			return time.Time{}, err
		}
		if err := pause(ctx, recoverPeriod); err != nil {
			return time.Time{}, err
		}
	}
}

func (l *fwLoader) askByte(ctx context.Context, deadline time.Time) (time.Time, error) {
	d := net.Dialer{Deadline: deadline}
	conn, err := d.DialContext(ctx, "tcp4", net.JoinHostPort("127.0.0.1", strconv.Itoa(l.run.Port)))
	if err != nil {
		return time.Time{}, err
	}
	defer conn.Close()                                      //nolint:errcheck // a byte is enough
	conn.SetDeadline(deadline)                              //nolint:errcheck // the read tells
	stop := context.AfterFunc(ctx, func() { conn.Close() }) //nolint:errcheck // unblocks
	defer stop()
	if _, err := io.WriteString(conn, "HEAD / HTTP/1.0\r\nHost: guest\r\n\r\n"); err != nil {
		return time.Time{}, err
	}
	_, err = conn.Read(make([]byte, 1))
	return time.Now(), err
}

// watch loads at every save until ctx ends or the run does.
func (l *fwLoader) watch(ctx context.Context, test string) error {
	w, err := fswatch.New()
	if err != nil {
		return err
	}
	defer w.Close() //nolint:errcheck // the process ends
	dirs, err := l.look(ctx, w)
	if err != nil {
		return err
	}
	if err := l.warm(ctx); err != nil {
		return err
	}
	l.say("watching %d directories of %s; Ctrl-C ends it", len(dirs), l.name)
	for {
		c, err := w.Next(ctx)
		if err != nil {
			return err
		}
		l.say("saved: %s", strings.Join(l.short(c.Files), ", "))
		err = l.load(ctx, c.Time, "the save")
		var broken *devbuild.Error
		var refused *refusedError
		var late *lateError
		switch {
		case err == nil:
			if test != "" {
				l.test(ctx, test)
			}
		case errors.As(err, &broken), errors.As(err, &refused), errors.As(err, &late):
			l.say("%v", err)
		default:
			return err
		}
		// The change may have brought packages, or taken some away.
		if _, err := l.look(ctx, w); err != nil && ctx.Err() == nil {
			l.say("%v", err)
		}
	}
}

// look has w watch what the program is built from now.
func (l *fwLoader) look(ctx context.Context, w *fswatch.Watcher) ([]string, error) {
	dirs, err := devbuild.Dirs(ctx, l.build)
	if err != nil {
		return nil, err
	}
	return dirs, w.Set(dirs)
}

// warm builds once, for the go command's cache, so that the first save is as fast as
// the others. Source that does not build is for the saves to tell.
func (l *fwLoader) warm(ctx context.Context) error {
	dir, err := os.MkdirTemp("", "toebox-")
	if err != nil {
		return fmt.Errorf("fw: %w", err)
	}
	defer os.RemoveAll(dir) //nolint:errcheck // only wasted space if it stays
	var broken *devbuild.Error
	if err := l.compile(ctx, filepath.Join(dir, "warm")); errors.As(err, &broken) {
		l.say("%v", err)
	} else if err != nil {
		return err
	}
	return nil
}

// short names files as a person in the tree would.
func (l *fwLoader) short(files []string) []string {
	out := make([]string, len(files))
	for i, f := range files {
		out[i] = f
		if rel, err := filepath.Rel(l.a.paths.Source, f); err == nil && filepath.IsLocal(rel) {
			out[i] = rel
		}
	}
	return out
}

// test runs functions of the conformance kit, built from the source as it is now: the
// kit in this process has the firmware that this process was built with.
func (l *fwLoader) test(ctx context.Context, pattern string) {
	ctx, cancel := context.WithTimeoutCause(ctx, fwTestPatience, fmt.Errorf("not done after %v", fwTestPatience))
	defer cancel()
	begin := time.Now()
	cmd := exec.Command("go", "run", "./images/cmd/toebox", "test", "--bus", "inproc", "--run", pattern)
	cmd.Dir = l.a.paths.Source
	cmd.Stdout, cmd.Stderr = l.a.stdout, l.a.stderr
	if err := proc.Run(ctx, cmd); err != nil {
		l.say("tests failed after %s: %v", seconds(time.Since(begin)), err)
		return
	}
	l.say("tests passed in %s", seconds(time.Since(begin)))
}

// pause waits.
func pause(ctx context.Context, d time.Duration) error {
	select {
	case <-time.After(d):
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// seconds writes a duration as people compare them.
func seconds(d time.Duration) string {
	if d < time.Second {
		return fmt.Sprintf("%d ms", d.Milliseconds())
	}
	return fmt.Sprintf("%.2f s", d.Seconds())
}
