// SPDX-License-Identifier: Apache-2.0

package guestkit

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"regexp"
	"sync"
	"syscall"

	"toebox/ci/conformance"
	"toebox/ci/peer"
	"toebox/ci/runner"
	"toebox/guestdriver"
	"toebox/guestdriver/uio"
	"toebox/guestdriver/vfio"
	"toebox/images/guest"
)

// lines lets several writers share a stream, a line at a time.
type lines struct {
	mu sync.Mutex
	w  io.Writer
}

func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.w.Write(p)
}

// Main runs functions of tests as args say, and returns the exit status. stdin and
// stdout are the way to the peer and for events.
func Main(tests []*conformance.Test, args []string, stdin io.Reader, stdout, stderr io.Writer) int {
	fs := flag.NewFlagSet("toebox-conformance", flag.ContinueOnError)
	fs.SetOutput(stderr)
	pattern := fs.String("run", "", "run the functions whose name matches")
	list := fs.Bool("list", false, "list the functions and end")
	seed := fs.Uint64("seed", 1, "seed of schedules and payload")
	count := fs.Int("count", 1, "how often to run each")
	shard := fs.Int("shard", 1, "which of -shards parts to run")
	shards := fs.Int("shards", 1, "number of parts")
	scale := fs.Float64("scale", 1, "factor for the bounds of waits")
	driver := fs.String("driver", guest.DriverVFIO, "vfio, or uio in a guest without an IOMMU")
	bdf := fs.String("bdf", "", "the adapter; default: the only one")
	with := fs.String("peer", "stdio", "stdio or none")
	network := fs.String("network", conformance.PeerNAT, "what the peer is, which chooses functions: nat or kernel")
	other := fs.Bool("exec", false, "run the program that the arguments name, with the adapter's place in its environment")
	if err := fs.Parse(args); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			return runner.ExitOK
		}
		return runner.ExitUsage
	}
	re, err := regexp.Compile(*pattern)
	if err != nil || (fs.NArg() > 0) != *other || *shard < 1 || *shard > *shards || *with != "stdio" && *with != "none" ||
		*driver != guest.DriverVFIO && *driver != guest.DriverUIO || *network != conformance.PeerNAT && *network != conformance.PeerKernel {
		fmt.Fprintf(stderr, "toebox-conformance: bad arguments (%v): see -help\n", err)
		return runner.ExitUsage
	}
	if *other {
		err := execute(*driver, bdf, fs.Args())
		fmt.Fprintf(stderr, "toebox-conformance: %v\n", err)
		return runner.ExitNoRig
	}
	env := environment(*driver, bdf)
	env.Scale = *scale
	o := runner.Options{
		Tests: tests,
		Run:   re, Rung: env.Rung, Peer: *network, Package: env.Rung, Seed: *seed, Count: *count, Shard: *shard, Shards: *shards,
	}
	if *list {
		for _, t := range runner.Select(&o) {
			fmt.Fprintln(stdout, t.Name)
		}
		return runner.ExitOK
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	if err := prepare(*driver, bdf); err != nil {
		fmt.Fprintf(stderr, "toebox-conformance: %v\n", err)
		return runner.ExitNoRig
	}
	out := &lines{w: stdout}
	// Before each function the host has the events so far, so that the death of the
	// guest is laid at the door of the one that ran.
	tell := func(context.Context) error { return nil }
	if *with == "stdio" {
		p, err := peer.NewRemote(ctx, struct {
			io.Reader
			io.Writer
		}{stdin, out})
		if err != nil {
			fmt.Fprintf(stderr, "toebox-conformance: nobody answers on standard input (-peer=none runs without): %v\n", err)
			return runner.ExitNoRig
		}
		env.Peer, tell = p, p.Sync
	}
	o.Sink = runner.JSON(out)
	o.Env = func(ctx context.Context, _ *conformance.Test, seed uint64) (*conformance.Env, func() error, error) {
		if err := tell(ctx); err != nil {
			return nil, nil, fmt.Errorf("tell the host: %w", err)
		}
		e := env
		e.Seed = seed
		return &e, func() error { return nil }, nil
	}
	return runner.Run(ctx, o).ExitCode()
}

// execute becomes another program, somebody's driver (ci/foreign/DRIVER.md). It
// returns only if it cannot.
func execute(driver string, bdf *string, args []string) error {
	if err := prepare(driver, bdf); err != nil {
		return err
	}
	env := append(os.Environ(), "TOEBOX_KERNEL_DRIVER="+driver, "TOEBOX_BDF="+*bdf)
	if driver == guest.DriverVFIO {
		group, err := vfio.Group(*bdf)
		if err != nil {
			return err
		}
		env = append(env, "TOEBOX_GROUP="+group)
	}
	return fmt.Errorf("run %s: %w", args[0], syscall.Exec(args[0], args, env))
}

// environment is the rung that goes with a driver. The address is known later.
func environment(driver string, bdf *string) conformance.Env {
	if driver == guest.DriverUIO {
		return conformance.Env{
			Rung:        conformance.RungUIO,
			Open:        func(context.Context) (guestdriver.Bus, error) { return uio.Open(*bdf, uio.Options{}) },
			OpenPolling: func(context.Context) (guestdriver.Bus, error) { return uio.Open(*bdf, uio.Options{Poll: true}) },
		}
	}
	return conformance.Env{
		Rung: conformance.RungVM,
		Open: func(context.Context) (guestdriver.Bus, error) { return vfio.Open(*bdf) },
	}
}

// prepare finds the adapter and gives it to the kernel's driver.
func prepare(driver string, bdf *string) error {
	if *bdf == "" {
		all, err := vfio.List()
		if err != nil {
			return err
		}
		if len(all) != 1 {
			return fmt.Errorf("found %d adapters, need one: name it with -bdf", len(all))
		}
		*bdf = all[0].BDF
	}
	if driver == guest.DriverUIO {
		return uio.Bind(*bdf)
	}
	return vfio.Bind(*bdf)
}
