// SPDX-License-Identifier: Apache-2.0

package main

import (
	"log/slog"

	"toebox/ci/suite"
	"toebox/images/rig"
)

// TestCmd runs the conformance kit.
type TestCmd struct {
	Pattern string   `arg:"" optional:"" placeholder:"REGEXP" help:"Run the functions whose names match."`
	Regexp  string   `name:"run" env:"TOEBOX_RUN" placeholder:"REGEXP" help:"The same, as a flag."`
	Bus     []string `env:"TOEBOX_BUS" placeholder:"inproc,socket,qtest,vm,uio" help:"Rungs to run on; +kernel behind one puts the Linux kernel behind the adapter, in a network namespace over tap (inproc+kernel). Default: all, and those with the kernel that differ."`
	Driver  string   `env:"TOEBOX_TEST_DRIVER" placeholder:"CMD" help:"Test this driver, in any language, instead of ours (ci/foreign/DRIVER.md); with --bus vm or uio a file or folder for the guest."`
	Peer    string   `env:"TOEBOX_TEST_PEER" placeholder:"nat|kernel" enum:",nat,kernel" default:"" help:"Run with this peer only: nat, or kernel, which takes privileges; both by default."`
	List    bool     `help:"List the functions, their requirements and rungs."`
	Seed    uint64   `env:"TOEBOX_SEED" help:"Seed of schedules and payload; 0: a new one, which is printed."`
	Count   int      `default:"1" help:"Run each function so often."`
	Shard   string   `env:"TOEBOX_SHARD" placeholder:"I/N" help:"Run the I-th of N parts."`
	Strict  bool     `env:"TOEBOX_STRICT" help:"Count a skip as a failure."`
	Verbose bool     `short:"v" help:"Show the output of functions that passed, too."`
	KTAP    bool     `name:"ktap" help:"Print KTAP instead of text."`
	JSON    string   `name:"json" placeholder:"FILE" help:"Write go test -json events."`
	JUnit   string   `name:"junit" placeholder:"FILE" help:"Write a JUnit file."`
	IOMMU   string   `name:"iommu" env:"TOEBOX_IOMMU" default:"intel" enum:"intel,virtio" help:"The virtual IOMMU of the guest's rungs: intel or virtio (${default})."`
	Scale   float64  `name:"timeout-scale" env:"TOEBOX_TIMEOUT_SCALE" default:"1" help:"Multiply the bounds of waits."`
}

// Run is called by kong.
func (c *TestCmd) Run(a *app) error {
	pattern := c.Regexp
	if c.Pattern != "" {
		if pattern != "" {
			return &rig.UsageError{Text: "test: give the pattern once, as an argument or by --run"}
		}
		pattern = c.Pattern
	}
	images := a.options()
	images.IOMMU = c.IOMMU
	o := suite.Options{
		Buses: c.Bus, Pattern: pattern, List: c.List, Seed: c.Seed, Count: c.Count, Shard: c.Shard,
		Driver: c.Driver, Peer: c.Peer, Strict: c.Strict, Verbose: c.Verbose, KTAP: c.KTAP, JSON: c.JSON, JUnit: c.JUnit, TimeoutScale: c.Scale,
		Images: images, Out: a.stdout,
		Logger: slog.New(slog.NewTextHandler(a.stderr, &slog.HandlerOptions{Level: slog.LevelWarn})),
	}
	if o.Kernel() {
		if did, err := a.delegate(); did {
			return err
		}
	}
	ctx, stop := a.interruptible()
	defer stop()
	code := suite.Run(ctx, o)
	if code != rig.ExitOK {
		return &rig.StatusError{Status: code}
	}
	return nil
}
