// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"time"

	"toebox/images/devbuild"
	"toebox/images/rig"
)

// Limits of what follows a load.
const (
	fwBuildPatience = 10 * time.Minute
	recoverPatience = 10 * time.Second
)

// FwCmd are the verbs about firmware.
type FwCmd struct {
	Load  FwLoadCmd  `cmd:"" help:"Build the device process and have it take over in the running machine."`
	Watch FwWatchCmd `cmd:"" help:"Do so at every saved change of firmware source, and say what the change did."`
	Time  FwTimeCmd  `cmd:"" help:"Measure how long a saved change takes, on a copy of the source."`
}

// FwTarget are the flags of both.
type FwTarget struct {
	Adapter  `embed:""`
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
	_, err = l.load(ctx, time.Now(), "the request")
	return err
}

// A fwLoader builds firmware for one run and brings it there.
type fwLoader struct {
	a       *app
	run     rig.Record
	adapter int
	build   devbuild.Config
	name    string
	client  *http.Client // of the device

	patience time.Duration // for the driver, and then a byte of HTTP, to come back
	bound    boundFunc     // ends what takes longer
}

// boundFunc is the kind of context.WithTimeoutCause.
type boundFunc = func(context.Context, time.Duration, error) (context.Context, context.CancelFunc)

func (a *app) fwLoader(c *FwTarget) (*fwLoader, error) {
	if a.paths.Source == "" {
		return nil, errors.New("fw: no toebox source here: run this in its tree, or set TOEBOX_SOURCE")
	}
	run, err := rig.Find(a.paths, c.RunID)
	if err == nil {
		err = run.Has(c.Adapter.Adapter)
	}
	if err != nil {
		return nil, err
	}
	l := &fwLoader{
		a: a, run: run, adapter: c.Adapter.Adapter, name: "the firmware of " + a.paths.Source, client: statsClient(run, c.Adapter.Adapter), patience: recoverPatience, bound: context.WithTimeoutCause,
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

// load builds, loads, and says how long what took. It returns when the first byte of
// HTTP came, zero if none did. since is what the time to that is counted from, and
// event names it.
func (l *fwLoader) load(ctx context.Context, since time.Time, event string) (time.Time, error) {
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
	done, err := rig.SendLoad(ctx, l.run, rig.Load{Program: program, Name: l.name, Adapter: l.adapter}, func() {
		l.say("another load is under way: waiting for it")
	})
	if err != nil {
		return time.Time{}, err // it may serve nonetheless: the run cleans up
	}
	if done.Error != "" {
		os.RemoveAll(filepath.Dir(program)) //nolint:errcheck // only wasted space if it stays
		if done.Generation == 0 {
			return time.Time{}, errors.New("fw: " + done.Error) // nothing was started
		}
		return time.Time{}, &refusedError{done.Error}
	}
	l.say("generation %d serves after %s", done.Generation, seconds(done.Took))
	byteAt, err := l.served(ctx, done.Generation, begin)
	if err == nil && !byteAt.IsZero() {
		l.say("first HTTP byte through it %s after %s", seconds(byteAt.Sub(since)), event)
	}
	return byteAt, err
}

func (l *fwLoader) compile(ctx context.Context, program string) error {
	ctx, cancel := context.WithTimeoutCause(ctx, fwBuildPatience, fmt.Errorf("fw: not built after %v: %w", fwBuildPatience, context.DeadlineExceeded))
	defer cancel()
	return devbuild.Build(ctx, l.build, program)
}

// refusedError is a firmware that could not take over.
type refusedError struct{ why string }

func (e *refusedError) Error() string {
	return "the firmware could not take over, the one before goes on: " + e.why
}

func (e *refusedError) Is(target error) bool { return target == rig.ErrFirmware }

// lateError is a firmware that took over, and with which no driver came back.
type lateError struct{ err error }

func (e *lateError) Error() string { return "the firmware serves, but " + e.err.Error() }

func (e *lateError) Unwrap() error { return e.err }

func (e *lateError) Is(target error) bool { return target == rig.ErrFirmware }

// seconds writes a duration as people compare them.
func seconds(d time.Duration) string {
	if d < time.Second {
		return fmt.Sprintf("%d ms", d.Milliseconds())
	}
	return fmt.Sprintf("%.2f s", d.Seconds())
}
