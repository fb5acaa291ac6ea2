// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"toebox/ci/conformance"
	"toebox/ci/runner"
	"toebox/ci/suite"
	images "toebox/images/rig"
	"toebox/images/toolchain"
)

// inGuest is the part of the kit that each boot of a guest runs.
const inGuest = `RIG02|RIG03|IF01_Create|IF02|IF11|CE01_Connect|CE02_Listen|MM01_Buffered|IF15_(Echo|HTTP)`

func main() {
	vm := flag.Bool("vm", true, "boot a guest")
	race := flag.Bool("race", true, "use the race detector")
	inputs := flag.Int("fuzz", 5000, "how many inputs each fuzz target of the protocol gets")
	limit := flag.Duration("timeout", 30*time.Minute, "give up after so long")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	ctx, cancel := context.WithTimeoutCause(ctx, *limit, fmt.Errorf("not done after %v", *limit))
	defer cancel()
	c := &check{out: os.Stdout}
	paths, err := images.DefaultPaths()
	if err == nil {
		err = os.Chdir(paths.Source)
	}
	if err != nil {
		fmt.Fprintf(os.Stderr, "check: %v\n", err)
		os.Exit(runner.ExitNoRig)
	}
	// The network is waited for while the sources are looked at.
	got := make(chan bool, 1)
	go func() {
		got <- c.step(ctx, "QEMU and kernel", func(ctx context.Context) error {
			o := images.Options{Paths: paths, Report: progress{c}}
			_, err := toolchain.Get(ctx, o.Tools())
			return err
		})
	}()
	c.step(ctx, "gofmt", gofmt)
	c.step(ctx, "vet", func(ctx context.Context) error { return command(ctx, "go", "vet", "./...") })
	c.step(ctx, "staticcheck", func(ctx context.Context) error {
		return command(ctx, "go", "tool", "-modfile="+filepath.Join("ci", "tools", "go.mod"), "staticcheck", "./...")
	})
	rig := <-got
	c.tests(ctx, *race, rig)
	// Guests boot while fuzz targets are built.
	var guests sync.WaitGroup
	if *vm && rig {
		guests.Go(func() { c.guest(ctx, paths) })
	}
	if *inputs > 0 {
		c.fuzz(ctx, *inputs)
	}
	guests.Wait()
	fmt.Fprintln(c, c.sum)
	os.Exit(c.sum.ExitCode())
}

// check is what runs; steps may run at the same time.
type check struct {
	mu  sync.Mutex
	out io.Writer
	sum runner.Summary
}

// Write is out for steps.
func (c *check) Write(p []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.out.Write(p)
}

// add counts.
func (c *check) add(sum runner.Summary) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.sum.Add(sum)
}

func (c *check) failed() { c.add(runner.Summary{Failed: 1}) }

type progress struct{ w io.Writer }

func (p progress) Step(line string)            { fmt.Fprintln(p.w, line) }
func (p progress) Amount(string, int64, int64) {}

// step runs one check that passes or fails as a whole.
func (c *check) step(ctx context.Context, name string, f func(context.Context) error) bool {
	began := time.Now()
	if err := f(ctx); err != nil {
		c.failed()
		fmt.Fprintf(c, "FAIL %s (%.1fs)\n%v\n", name, time.Since(began).Seconds(), err)
		return false
	}
	c.add(runner.Summary{Passed: 1})
	fmt.Fprintf(c, "ok   %s (%.1fs)\n", name, time.Since(began).Seconds())
	return true
}

// command runs a program; what it printed is the error.
func command(ctx context.Context, name string, args ...string) error {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.WaitDelay = 5 * time.Second
	out, err := cmd.CombinedOutput()
	if err != nil {
		return fmt.Errorf("%w\n%s", errors.Join(err, context.Cause(ctx)), bytes.TrimSpace(out))
	}
	return nil
}

func gofmt(ctx context.Context) error {
	out, err := exec.CommandContext(ctx, "gofmt", "-l", ".").CombinedOutput()
	if err != nil || len(bytes.TrimSpace(out)) > 0 {
		return fmt.Errorf("gofmt -l . lists files (%v):\n%s", err, bytes.TrimSpace(out))
	}
	return nil
}

// tests runs all tests of the module and counts them, each function of the kit
// as one.
func (c *check) tests(ctx context.Context, race, rig bool) {
	began := time.Now()
	// Vet was a step of its own, and nobody debugs these programs: to leave both out
	// saves a good part of a build from nothing. Tests wait as much as they compute:
	// more of them than cores run at a time.
	atOnce := runtime.GOMAXPROCS(0) * 3 / 2
	args := []string{"test", "-json", "-timeout=15m", "-vet=off", "-ldflags=-w", fmt.Sprintf("-p=%d", max(atOnce, 2))}
	if race {
		args = append(args, "-race")
	}
	cmd := exec.CommandContext(ctx, "go", append(args, "./...")...)
	cmd.Env = os.Environ()
	if rig {
		cmd.Env = append(cmd.Env, "CI_REQUIRE="+require(os.Getenv("CI_REQUIRE"), "qemu"))
	}
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	cmd.WaitDelay = 10 * time.Second
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		c.failed()
		fmt.Fprintf(c, "FAIL go test: %v\n", err)
		return
	}
	var col runner.Collector
	s := newScan(col.Sink())
	s.read(out)
	err = cmd.Wait()
	sum, red := s.count(col.Results)
	c.add(sum)
	for _, text := range red {
		fmt.Fprint(c, text)
	}
	switch {
	case ctx.Err() != nil:
		c.failed()
		fmt.Fprintf(c, "go test: %v\n", context.Cause(ctx))
	case err != nil && sum.Failed == 0:
		c.failed()
		fmt.Fprintf(c, "go test: %v\n%s", err, stderr.String())
	}
	fmt.Fprintf(c, "%s go test: %v (%.1fs; slowest: %s)\n", word(err), sum, time.Since(began).Seconds(), s.slowest(8))
}

// require adds to a list of what tests must not skip for the want of.
func require(list, what string) string {
	if list == "" || slices.Contains(strings.Split(list, ","), what) {
		return cmp.Or(list, what)
	}
	return list + "," + what
}

func word(err error) string {
	if err != nil {
		return "FAIL"
	}
	return "ok  "
}

// guest boots a machine for each driver of the kernel and runs a part of the kit in
// it.
func (c *check) guest(ctx context.Context, paths images.Paths) {
	var counted counter
	code := suite.Run(ctx, suite.Options{
		Buses: []string{conformance.RungVM, conformance.RungUIO}, Pattern: inGuest, Seed: 1, Images: images.Options{Paths: paths},
		Out: io.MultiWriter(c, &counted),
	})
	c.add(counted.sum)
	if code != runner.ExitOK && counted.sum.Failed == 0 {
		c.failed() // the machine itself
	}
}
