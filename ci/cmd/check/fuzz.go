// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"time"
)

// fuzzed is where fuzz targets are run: what the other end of a socket writes.
const fuzzed = "vfio-user"

// fuzzLimit bounds one target, its build included.
const fuzzLimit = 5 * time.Minute

// target is a fuzz function and the folder of its package.
type target struct{ dir, name string }

// fuzzTargets returns the fuzz functions below a folder, in order.
func fuzzTargets(root string) ([]target, error) {
	function := regexp.MustCompile(`(?m)^func (Fuzz\w+)\(\w+ \*testing\.F\)`)
	var found []target
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || !strings.HasSuffix(path, "_test.go") {
			return err
		}
		b, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		for _, m := range function.FindAllSubmatch(b, -1) {
			found = append(found, target{filepath.Dir(path), string(m[1])})
		}
		return nil
	})
	if err == nil && len(found) == 0 {
		err = fmt.Errorf("no fuzz targets below %s", root)
	}
	return found, err
}

// fuzz gives each target so many inputs; a number and no time, as go test now and
// then fails a target whose time is up. One that fails leaves its input in the
// package's testdata, where all later tests use it.
func (c *check) fuzz(ctx context.Context, inputs int) {
	targets, err := fuzzTargets(fuzzed)
	if err != nil {
		c.step(ctx, "fuzz", func(context.Context) error { return err })
		return
	}
	for _, t := range targets {
		c.step(ctx, "fuzz "+t.dir+" "+t.name, func(ctx context.Context) error {
			ctx, cancel := context.WithTimeoutCause(ctx, fuzzLimit, fmt.Errorf("not done after %v", fuzzLimit))
			defer cancel()
			// Inputs that are merely new are not made smaller: that takes a minute each.
			return command(ctx, "go", "test", "-vet=off", "-run=^$", "-fuzz=^"+t.name+"$", fmt.Sprintf("-fuzztime=%dx", inputs), "-fuzzminimizetime=1x", "./"+filepath.ToSlash(t.dir))
		})
	}
}
