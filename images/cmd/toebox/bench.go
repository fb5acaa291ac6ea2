// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"regexp"
	"syscall"

	"toebox/ci/bench"
	"toebox/ci/netns"
	"toebox/images/rig"
)

// isolated in the environment says that this is the command that isolate runs.
const isolated = "TOEBOX_ISOLATED"

// BenchCmd compares the adapter with virtio-net.
type BenchCmd struct {
	Pattern string `arg:"" optional:"" placeholder:"REGEXP" help:"Measure the cases whose names match."`
	Quick   bool   `help:"A few cases and short runs, in about a minute; status 1 if over tap a ratio is worse than half of the published one."`
	Rounds  int    `help:"Repeat each measurement so often; 0: 5, or 3 with --quick."`
	User    bool   `help:"Use user networking, whose figures do not count, even if this user may make tap devices."`
	JSON    string `name:"json" default:"bench.json" placeholder:"FILE" help:"Write all figures (${default})."`
	Page    string `default:"bench.html" placeholder:"FILE" help:"Write a page with a plot (${default})."`
	CPUs    int    `name:"cpus" env:"TOEBOX_CPUS" default:"2" help:"CPUs of the guest (${default})."`
	List    bool   `help:"List the cases."`
}

// Run is called by kong.
func (c *BenchCmd) Run(a *app) error {
	pace := bench.FullPace()
	if c.Quick {
		pace = bench.QuickPace()
	}
	if c.Rounds < 0 || c.Rounds > 1000 {
		return &rig.UsageError{Text: fmt.Sprintf("--rounds %d: want 1 to 1000", c.Rounds)}
	}
	if c.Rounds > 0 {
		pace.Rounds = c.Rounds
	}
	if c.List {
		for _, k := range bench.Cases(pace) {
			fmt.Fprintln(a.stdout, k.Name)
		}
		if !c.Quick {
			fmt.Fprintf(a.stdout, "%s\n%s\n", bench.TimedRun, bench.TimedReload)
		}
		return nil
	}
	p := bench.Plan{Pace: pace, Say: func(format string, args ...any) { a.report.Step("bench: " + fmt.Sprintf(format, args...)) }}
	var err error
	if p.Published, err = bench.ReadPublished(); err != nil {
		return err
	}
	if c.Pattern != "" {
		if p.Match, err = regexp.Compile(c.Pattern); err != nil {
			return &rig.UsageError{Text: fmt.Sprintf("%s: %v", c.Pattern, err)}
		}
	}
	p.Images = a.options()
	p.Images.CPUs = c.CPUs
	if !c.User {
		did, tap, err := c.isolate(a)
		if did {
			return err
		}
		if p.Tap = tap; !tap {
			a.report.Step(fmt.Sprintf("bench: user networking, whose figures do not count: %v", err))
		}
	}
	ctx, stop := a.interruptible()
	defer stop()
	var timed []bench.Row
	var failed []string
	if !c.Quick {
		timed, failed = (&timer{app: a, match: p.Match, rounds: pace.Rounds, say: p.Say}).rows(ctx, p.Tap)
	}
	r, err := bench.Run(ctx, p)
	r.Rows, r.Failed = append(r.Rows, timed...), append(r.Failed, failed...)
	if len(r.Rows) > 0 {
		err = errors.Join(err, c.write(a, r))
	}
	if err != nil {
		return err
	}
	return c.judge(a, r, p.Published)
}

// judge says what went wrong, and what a quick run found to be far from what is published.
func (c *BenchCmd) judge(a *app, r *bench.Report, published []bench.Published) error {
	worse := r.Worse(published)
	if len(worse) > 0 {
		fmt.Fprintln(a.stdout)
	}
	for _, line := range worse {
		fmt.Fprintf(a.stdout, "WORSE: %s\n", line)
	}
	if len(r.Failed)+len(worse) > 0 {
		return &rig.StatusError{Status: rig.ExitFailed}
	}
	return nil
}

// write prints the table and writes the files.
func (c *BenchCmd) write(a *app, r *bench.Report) error {
	err := r.WriteTable(a.stdout)
	for _, f := range []struct {
		path  string
		write func(io.Writer) error
	}{{c.JSON, r.WriteJSON}, {c.Page, r.WritePage}} {
		if f.path != "" {
			err = errors.Join(err, writeFile(f.path, f.write))
		}
	}
	if missed, of := r.Missed(); of > 0 && r.Counts {
		fmt.Fprintf(a.stdout, "\n%d of %d targets missed\n", missed, of)
	}
	return err
}

func writeFile(path string, write func(io.Writer) error) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	return errors.Join(write(f), f.Close())
}

// isolate runs this command once more in a network namespace of its own, where it may
// make tap devices; the second one is told that tap devices are there. If this user may
// not, err says why.
func (c *BenchCmd) isolate(a *app) (did, tap bool, err error) {
	if os.Getenv(isolated) != "" {
		return false, true, nil
	}
	if err := netns.Try(); err != nil {
		if did, err := a.delegate(); did {
			return true, false, err
		}
		return false, false, err
	}
	// There is no network in there: what is to be got is got before.
	ctx, stop := a.interruptible()
	_, err = rig.Prepare(ctx, a.options())
	stop()
	if err != nil {
		return true, false, err
	}
	cmd := exec.Command("/proc/self/exe", a.args...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGTERM}
	netns.Isolate(cmd)
	return true, false, a.again(cmd, isolated)
}
