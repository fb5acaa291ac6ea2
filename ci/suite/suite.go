// SPDX-License-Identifier: Apache-2.0

package suite

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"time"

	"toebox/ci/conformance"
	"toebox/ci/foreign"
	"toebox/ci/rig"
	"toebox/ci/runner"
	"toebox/images/guest"
	images "toebox/images/rig"
	"toebox/images/toolchain"
)

// Options of a run.
type Options struct {
	// Buses are columns of the matrix: a rung by name, "+kernel" behind it if the
	// adapter's peer is the Linux kernel (conformance.PeerKernel). None: those of
	// Columns.
	Buses []string
	// Pattern chooses functions by name.
	Pattern string
	// List prints the chosen functions instead of running them.
	List bool
	// Seed of schedules and payload; 0: a random one, which is printed.
	Seed  uint64
	Count int
	// Shard is "i/n": run the i-th of n parts.
	Shard string
	// Driver is the driver to be tested instead of ours (package foreign): on the
	// socket rung a shell command; in a guest a file or folder that is put there,
	// and arguments.
	Driver string
	// Peer is conformance.PeerNAT to leave out the columns of the kernel, or
	// conformance.PeerKernel to run them only, which makes them of rungs.
	Peer string
	// Network says whether networks of the kernel can be made, by an error that
	// wraps netns.ErrPrivilege if not; nil: netns.Try.
	Network func() error
	// Strict counts a skip as red, but for that of the kernel's columns for want of
	// privileges.
	Strict bool
	// Verbose prints the output of functions that passed, too.
	Verbose bool
	// KTAP prints the kernel's test format instead of text.
	KTAP bool
	// JSON and JUnit name files to write.
	JSON, JUnit string
	// TimeoutScale multiplies the bounds of waits; 0 is 1.
	TimeoutScale float64
	// Images says where QEMU, kernel, caches and source are.
	Images images.Options
	// Out gets what people read.
	Out    io.Writer
	Logger *slog.Logger
}

// patience is the factor for the bounds of waits of a rung: a shared machine
// under the race detector, one more process, emulation.
func patience(bus string) float64 {
	switch bus {
	case conformance.RungQTest:
		return 3
	case conformance.RungVM, conformance.RungUIO:
		return 6
	}
	return 2
}

// part reads "i/n".
func part(s string) (i, n int, err error) {
	if s == "" {
		return 1, 1, nil
	}
	if _, err := fmt.Sscanf(s, "%d/%d", &i, &n); err != nil || i < 1 || i > n || fmt.Sprintf("%d/%d", i, n) != s {
		return 0, 0, fmt.Errorf("shard %q: want i/n with 1 <= i <= n", s)
	}
	return i, n, nil
}

type suite struct {
	Options
	tests         []*conformance.Test
	kit           string // the package of what runs them in guests; empty: the kit's
	re            *regexp.Regexp
	shard, shards int
	collector     runner.Collector
	sink          runner.Sink

	mu    sync.Mutex // of what rungs that run at the same time share: the sinks' state, Out
	accel string
}

// atOnce is how many rungs run at the same time: much of a rung's time is waiting,
// for timers of the network's protocols or for a guest to boot.
const atOnce = 2

// take passes an event on.
func (s *suite) take(e runner.Event) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.sink(e)
}

// Write is Out for rungs.
func (s *suite) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.Out.Write(p)
}

// Run runs the kit and returns the exit code: 0 passed, 1 a test failed, 2
// usage, 3 guest or firmware crashed, 4 all skipped, 124 timed out, 125 this
// machine cannot run it.
func Run(ctx context.Context, o Options) int {
	return (&suite{Options: o, tests: conformance.Tests()}).run(ctx)
}

func (s *suite) run(ctx context.Context) int {
	o := &s.Options
	if s.Out == nil {
		s.Out = io.Discard
	}
	if err := s.check(); err != nil {
		fmt.Fprintf(s.Out, "toebox test: %v\n", err)
		return runner.ExitUsage
	}
	if o.List {
		s.list()
		return runner.ExitOK
	}
	if s.Seed == 0 {
		s.Seed = 1 + rand.Uint64N(1<<32)
	}
	events, err := s.openSinks()
	if err != nil {
		fmt.Fprintf(s.Out, "toebox test: %v\n", err)
		return runner.ExitNoRig
	}
	began := time.Now()
	code := s.columns(ctx)
	if err := s.finish(events); err != nil {
		fmt.Fprintf(s.Out, "toebox test: %v\n", err)
		code = max(code, runner.ExitFailed)
	}
	sum := s.collector.Summary()
	if !s.KTAP {
		o := s.options("")
		Matrix(s.Out, o.Tests, s.collector.Results, s.Buses)
		s.again()
		fmt.Fprintf(s.Out, "seed %d, %.1f s\n%v\n", s.Seed, time.Since(began).Seconds(), sum)
	}
	if code != runner.ExitOK {
		return code
	}
	if s.Strict && sum.Skipped > s.excused() {
		return runner.ExitFailed
	}
	return sum.ExitCode()
}

// columns runs the columns, some at the same time, and returns the exit code of the
// first in their order that has one. The results are in that order, too.
func (s *suite) columns(ctx context.Context) int {
	codes := make([]int, len(s.Buses))
	turn := make(chan struct{}, atOnce)
	var wg sync.WaitGroup
	for i, bus := range s.Buses {
		turn <- struct{}{}
		wg.Go(func() {
			codes[i] = s.bus(ctx, bus)
			<-turn
		})
	}
	wg.Wait()
	slices.SortStableFunc(s.collector.Results, func(a, b runner.Result) int {
		return cmp.Compare(slices.Index(s.Buses, columnName(&a)), slices.Index(s.Buses, columnName(&b)))
	})
	for _, code := range codes {
		if code != runner.ExitOK {
			return code
		}
	}
	return runner.ExitOK
}

// maxAgain is how many failures are worth a line more: beyond it, it is the rig.
const maxAgain = 10

// again prints the command that repeats each failure.
func (s *suite) again() {
	n := 0
	for i := range s.collector.Results {
		r := &s.collector.Results[i]
		if r.Action != runner.ActionFail || n == maxAgain {
			continue
		}
		n++
		driver := ""
		if s.Driver != "" {
			driver = " --driver '" + strings.ReplaceAll(s.Driver, "'", `'\''`) + "'"
		}
		fmt.Fprintf(s.Out, "again: toebox test --bus %s%s --seed %d --run '^%s$'\n", columnName(r), driver, s.Seed, r.Name)
	}
}

func (s *suite) check() error {
	if s.Driver != "" && len(s.Buses) == 0 && s.Peer == "" {
		s.Buses = []string{conformance.RungSocket}
	}
	var err error
	if s.Buses, err = choose(s.Buses, s.Peer); err != nil {
		return err
	}
	if s.Driver != "" {
		for _, b := range s.Buses {
			if !slices.Contains(foreign.Rungs(), b) {
				return fmt.Errorf("a driver of your own runs on --bus %s", strings.Join(foreign.Rungs(), ","))
			}
			if _, _, err := foreign.Pack(s.Driver); b != conformance.RungSocket && err != nil {
				return fmt.Errorf("a driver in a guest begins with a file or folder: %w", err)
			}
		}
	}
	if s.re, err = regexp.Compile(s.Pattern); err != nil {
		return fmt.Errorf("run: %w", err)
	}
	if s.shard, s.shards, err = part(s.Shard); err != nil {
		return err
	}
	if s.TimeoutScale < 0 || s.Count < 0 {
		return errors.New("count and timeout scale must not be negative")
	}
	// A column without a function is none.
	s.Buses = slices.DeleteFunc(s.Buses, func(b string) bool { o := s.options(b); return len(runner.Select(&o)) == 0 })
	if len(s.Buses) == 0 && !s.List {
		return fmt.Errorf("no function of shard %d/%d matches %q", s.shard, s.shards, s.Pattern)
	}
	return nil
}

func (s *suite) list() {
	for _, b := range s.Buses {
		o := s.options(b)
		for _, t := range runner.Select(&o) {
			fmt.Fprintf(s.Out, "%s %s %s\n", b, t.Name, strings.Join(t.IDs, ","))
		}
	}
}

func (s *suite) scale(bus string) float64 {
	bus, _ = split(bus)
	if s.TimeoutScale > 0 {
		return patience(bus) * s.TimeoutScale
	}
	return patience(bus)
}

func (s *suite) options(bus string) runner.Options {
	rung, peer := split(bus)
	tests := s.tests
	if s.Driver != "" {
		tests = foreign.Tests(nil)
	}
	return runner.Options{
		Tests: tests,
		Run:   s.re, Rung: rung, Peer: peer, Package: "toebox/ci/conformance/" + bus, Shard: s.shard, Shards: s.shards,
		Count: s.Count, Seed: s.Seed, Sink: s.take,
	}
}

// openSinks starts the writers of results that go along with the tests.
func (s *suite) openSinks() (*os.File, error) {
	sinks := []runner.Sink{s.collector.Sink()}
	if !s.KTAP {
		sinks = append(sinks, runner.Text(s.Out, s.Verbose))
	}
	var f *os.File
	if s.JSON != "" {
		var err error
		if f, err = os.Create(s.JSON); err != nil {
			return nil, err
		}
		sinks = append(sinks, runner.JSON(f))
	}
	s.sink = runner.Tee(sinks...)
	return f, nil
}

// finish writes the results that come at the end.
func (s *suite) finish(events *os.File) error {
	var errs []error
	if events != nil {
		errs = append(errs, events.Close())
	}
	if s.KTAP {
		errs = append(errs, runner.KTAP(s.Out, s.collector.Results))
	}
	if s.JUnit != "" {
		var b bytes.Buffer
		errs = append(errs, runner.JUnit(&b, s.collector.Results,
			runner.Property{Name: "seed", Value: fmt.Sprint(s.Seed)}, runner.Property{Name: "accel", Value: s.accel}))
		errs = append(errs, os.WriteFile(s.JUnit, b.Bytes(), 0o644))
	}
	return errors.Join(errs...)
}

// bus runs one rung and returns its exit code, 0 also for failed tests, which
// the summary has.
func (s *suite) bus(ctx context.Context, bus string) int {
	ok, err := s.network(bus)
	if ok {
		switch rung, _ := split(bus); rung {
		case conformance.RungVM:
			err = s.guest(ctx, bus, guest.DriverVFIO)
		case conformance.RungUIO:
			err = s.guest(ctx, bus, guest.DriverUIO)
		default:
			err = s.host(ctx, bus)
		}
	}
	switch {
	case err == nil:
		return runner.ExitOK
	case errors.Is(err, errCrashed):
		fmt.Fprintf(s, "%s: %v\n", bus, err)
		return runner.ExitCrashed
	case errors.Is(err, context.DeadlineExceeded), errors.Is(ctx.Err(), context.DeadlineExceeded):
		fmt.Fprintf(s, "%s: timed out: %v\n", bus, err)
		return runner.ExitTimeout
	}
	fmt.Fprintf(s, "%s: cannot run: %v\n", bus, err)
	return runner.ExitNoRig
}

var errCrashed = errors.New("the guest crashed")

// host runs a rung whose tests run in this process, each with a rig of its own.
func (s *suite) host(ctx context.Context, bus string) error {
	o := s.options(bus)
	cfg := rig.Config{Scale: s.scale(bus), Logger: s.Logger, Peer: o.Peer}
	if o.Rung == conformance.RungQTest {
		q, err := toolchain.GetQEMU(ctx, s.Images.Tools())
		if err != nil {
			return err
		}
		cfg.QEMU = q.Command
	}
	socket := "" // of the running test's adapter
	if s.Driver != "" {
		o.Tests = foreign.Tests(func(ctx context.Context) (*foreign.Driver, error) {
			return foreign.Start(ctx, foreign.Config{Command: s.Driver, Socket: socket, Stderr: s})
		})
	}
	o.Env = func(ctx context.Context, _ *conformance.Test, seed uint64) (*conformance.Env, func() error, error) {
		c := cfg
		c.Seed = seed
		var r *rig.Rig
		var err error
		switch o.Rung {
		case conformance.RungQTest:
			r, err = rig.QTest(ctx, c)
		case conformance.RungSocket:
			r, err = rig.Socket(c)
		default:
			r, err = rig.Inproc(c)
		}
		if err != nil {
			return nil, nil, err
		}
		socket = r.SocketPath()
		return r.Env(), r.Close, nil
	}
	runner.Run(ctx, o)
	return nil
}

// guest boots a machine and runs the kit in it.
func (s *suite) guest(ctx context.Context, bus, driver string) error {
	dir := filepath.Join(s.Images.State, "runs", time.Now().UTC().Format("20060102-150405.000-")+"conformance-"+bus)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	o := s.options(bus)
	images := s.Images
	images.Driver = driver
	var program []string
	if s.Driver != "" {
		files, args, err := foreign.Pack(s.Driver)
		if err != nil {
			return err
		}
		images.Files, program = slices.Concat(images.Files, files), args
	}
	v, err := rig.StartVM(ctx, rig.Config{Seed: s.Seed, Logger: s.Logger, Peer: o.Peer, Kit: s.kit}, images, dir)
	if err != nil {
		return err
	}
	s.mu.Lock()
	s.accel = v.Accel.Name
	s.mu.Unlock()
	limit := s.limit(o)
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	if s.Driver != "" {
		err = s.foreign(ctx, v, o, append([]string{rig.GuestProgram, "-driver", driver, "-exec"}, program...))
	} else {
		g := runner.Guest{
			Exec: v.Exec, Driver: driver, Program: rig.GuestProgram, Peer: v.Env().Peer, Options: o,
			Scale: s.scale(bus), Stderr: s,
		}
		_, err = g.Run(ctx)
	}
	if err != nil && ctx.Err() == nil {
		err = fmt.Errorf("%w: %w", errCrashed, err)
	}
	if err != nil {
		err = fmt.Errorf("%w (logs in %s)", err, dir)
	}
	return errors.Join(err, v.Close())
}

// foreign puts somebody's driver through its functions in a guest, where the kit
// starts it, beside the adapter. The functions run here.
func (s *suite) foreign(ctx context.Context, v *rig.VM, o runner.Options, args []string) error {
	o.Tests = foreign.Tests(func(ctx context.Context) (*foreign.Driver, error) {
		return foreign.Start(ctx, foreign.Config{
			Stderr: s,
			Exec: func(ctx context.Context, stdin io.Reader, stdout, stderr io.Writer) error {
				status, err := v.Exec(ctx, args, stdin, stdout, stderr)
				if err == nil && status != 0 {
					err = fmt.Errorf("the driver ended with status %d", status)
				}
				return err
			},
		})
	})
	o.Env = func(_ context.Context, _ *conformance.Test, seed uint64) (*conformance.Env, func() error, error) {
		if err := v.Died(); err != nil {
			return nil, nil, fmt.Errorf("not run: %w", err)
		}
		env := v.Env()
		env.Seed, env.Scale = seed, s.scale(o.Rung)
		return env, func() error { return nil }, nil
	}
	runner.Run(ctx, o)
	return v.Died()
}

// limit bounds a run in a guest: it ends by itself unless the guest is stuck.
func (s *suite) limit(o runner.Options) time.Duration {
	env := &conformance.Env{Scale: s.scale(o.Rung)}
	total := time.Minute
	for _, t := range runner.Select(&o) {
		total += t.Bound(env) / 4 // all of them at their bounds is no machine to run on
	}
	return total * time.Duration(max(s.Count, 1))
}
