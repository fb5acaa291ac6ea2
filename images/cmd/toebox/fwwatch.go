// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"toebox/images/devbuild"
	"toebox/images/fswatch"
	"toebox/images/proc"
	"toebox/images/rig"
)

// fwTestPatience bounds the tests after a load.
const fwTestPatience = 10 * time.Minute

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
		_, err = l.load(ctx, c.Time, "the save")
		var broken *devbuild.Error
		switch {
		case err == nil:
			if test != "" {
				l.test(ctx, test)
			}
		case errors.As(err, &broken), errors.Is(err, rig.ErrFirmware):
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
	patient, cancel := context.WithTimeoutCause(ctx, fwTestPatience, fmt.Errorf("not done after %v", fwTestPatience))
	defer cancel()
	begin := time.Now()
	cmd := exec.Command("go", "run", "./images/cmd/toebox", "test", "--bus", "inproc", "--run", pattern)
	cmd.Dir = l.a.paths.Source
	cmd.Stdout, cmd.Stderr = l.a.stdout, l.a.stderr
	err := proc.Run(patient, cmd)
	switch {
	case ctx.Err() != nil: // whoever ended it knows
	case err != nil:
		l.say("tests failed after %s: %v", seconds(time.Since(begin)), err)
	default:
		l.say("tests passed in %s", seconds(time.Since(begin)))
	}
}
