// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"toebox/images/devbuild"
	"toebox/images/fswatch"
	"toebox/images/rig"
)

// FwTimeCmd measures what FwWatchCmd does, on a copy of the source.
type FwTimeCmd struct {
	Count int    `default:"7" help:"Save so often."`
	File  string `default:"firmware/send.go" help:"File of the tree to change."`
	RunID string `arg:"" optional:"" name:"run" placeholder:"RUN" help:"The run to bring it to."`
}

// Run is called by kong.
func (c *FwTimeCmd) Run(a *app) error {
	ctx, cancel := a.interruptible()
	defer cancel()
	all, err := c.times(ctx, a)
	if err != nil {
		return err
	}
	slices.Sort(all)
	a.report.Step(fmt.Sprintf("fw: from the saved file to the first HTTP byte, %d times: median %s (%s to %s)",
		len(all), seconds(all[len(all)/2]), seconds(all[0]), seconds(all[len(all)-1])))
	return nil
}

// times returns how long each save took.
func (c *FwTimeCmd) times(ctx context.Context, a *app) ([]time.Duration, error) {
	if c.Count < 1 || !filepath.IsLocal(c.File) {
		return nil, &rig.UsageError{Text: "fw time: want a count from 1 and a file of the tree"}
	}
	l, err := a.fwLoader(&FwTarget{RunID: c.RunID})
	if err != nil {
		return nil, err
	}
	dirs, err := devbuild.Dirs(ctx, l.build)
	if err != nil {
		return nil, err
	}
	tree, err := os.MkdirTemp("", "toebox-")
	if err != nil {
		return nil, fmt.Errorf("fw: %w", err)
	}
	defer os.RemoveAll(tree) //nolint:errcheck // only wasted space if it stays
	if err := copySource(l.build.Source, tree, dirs); err != nil {
		return nil, err
	}
	l.build.Source, l.name = tree, "a copy of the source"
	w, err := fswatch.New()
	if err != nil {
		return nil, err
	}
	defer w.Close() //nolint:errcheck // the process ends
	if _, err := l.look(ctx, w); err != nil {
		return nil, err
	}
	if err := l.warm(ctx); err != nil {
		return nil, err
	}
	var all []time.Duration
	for n := range c.Count {
		took, err := l.timed(ctx, w, filepath.Join(tree, c.File), n)
		if err != nil {
			return nil, err
		}
		all = append(all, took)
	}
	return all, nil
}

// timed saves a change of a file and returns how long it took to the first byte.
func (l *fwLoader) timed(ctx context.Context, w *fswatch.Watcher, path string, n int) (time.Duration, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return 0, fmt.Errorf("fw: %w", err)
	}
	begin := time.Now()
	change := fmt.Sprintf("\nfunc saved%d() int { return %d }\n", n, begin.UnixNano())
	if err := os.WriteFile(path, append(text, change...), 0o600); err != nil {
		return 0, fmt.Errorf("fw: %w", err)
	}
	if _, err := w.Next(ctx); err != nil {
		return 0, err
	}
	at, err := l.load(ctx, begin, "the save")
	if err == nil && at.IsZero() {
		err = fmt.Errorf("fw: the guest serves no HTTP at port %d", l.run.Port)
	}
	return at.Sub(begin), err
}

// copySource copies what the device is built from.
func copySource(from, to string, dirs []string) error {
	files := []string{"go.mod", "go.sum"}
	for _, dir := range dirs {
		rel, err := filepath.Rel(from, dir)
		if err != nil {
			return fmt.Errorf("fw: %w", err)
		}
		if !filepath.IsLocal(rel) {
			return fmt.Errorf("fw: %s is not below %s", dir, from)
		}
		entries, err := os.ReadDir(dir)
		if err != nil {
			return fmt.Errorf("fw: %w", err)
		}
		for _, e := range entries {
			// The go command follows links to files, too.
			st, err := os.Stat(filepath.Join(dir, e.Name()))
			if err == nil && st.Mode().IsRegular() && !strings.HasSuffix(e.Name(), "_test.go") {
				files = append(files, filepath.Join(rel, e.Name()))
			}
		}
	}
	for _, f := range files {
		b, err := os.ReadFile(filepath.Join(from, f))
		if err == nil {
			err = os.MkdirAll(filepath.Dir(filepath.Join(to, f)), 0o700)
		}
		if err == nil {
			err = os.WriteFile(filepath.Join(to, f), b, 0o600)
		}
		if err != nil {
			return fmt.Errorf("fw: %w", err)
		}
	}
	return nil
}
