// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"

	"github.com/alecthomas/kong"

	"toebox/images/rig"
)

// A CLI is the command line.
type CLI struct {
	Common `embed:""`

	Run     RunCmd     `cmd:"" help:"Start a machine with the adapter; a shell in it on a terminal."`
	Shell   ShellCmd   `cmd:"" help:"Open a shell in the running machine."`
	Exec    ExecCmd    `cmd:"" help:"Run a command in the running machine."`
	Stats   StatsCmd   `cmd:"" help:"Show the running adapter's counters."`
	Fault   FaultCmd   `cmd:"" help:"Do harm to the running adapter on purpose."`
	Fw      FwCmd      `cmd:"" help:"Bring new firmware into the running adapter, while its machine stays up."`
	Test    TestCmd    `cmd:"" help:"Run the conformance kit on rungs of the bus ladder."`
	Bench   BenchCmd   `cmd:"" help:"Measure the adapter beside virtio-net, in one machine that has both."`
	Serve   ServeCmd   `cmd:"" help:"Run the device only, for a QEMU of your own; prints its -device argument."`
	Doctor  DoctorCmd  `cmd:"" help:"Try what toebox needs, and say what is wrong and how to cure it."`
	Get     GetCmd     `cmd:"" help:"Get QEMU and kernel and build everything, without starting anything."`
	Clean   CleanCmd   `cmd:"" help:"Remove caches and run folders."`
	Env     EnvCmd     `cmd:"" help:"Show settings and where each comes from."`
	Version VersionCmd `cmd:"" help:"Show versions."`
}

// Common are the flags of all verbs.
type Common struct {
	QEMU    string `name:"qemu" env:"TOEBOX_QEMU,VMTEST_QEMU" placeholder:"PROGRAM" help:"QEMU to use (>= 10.1, with vfio-user-pci)."`
	Kernel  string `env:"TOEBOX_KERNEL,VMTEST_KERNEL" placeholder:"FILE" help:"Kernel to boot, a bzImage or vmlinux."`
	Modules string `env:"TOEBOX_MODULES" placeholder:"DIR" help:"Directory with the kernel's modules."`
	Mirror  string `name:"debian-mirror" env:"TOEBOX_DEBIAN_MIRROR" placeholder:"URL" help:"Debian mirror to get QEMU and kernel from, instead of the machine's."`
	Accel   string `env:"TOEBOX_ACCEL" enum:"auto,kvm,tcg" default:"auto" help:"Accelerator: auto, kvm or tcg."`
}

// An app is what the verbs work with.
type app struct {
	common  *Common
	args    []string // of the command
	paths   rig.Paths
	report  *reporter
	stdin   *os.File
	stdout  io.Writer
	stderr  io.Writer
	signals chan os.Signal // SIGINT, SIGTERM, and SIGHUP unless it was ignored from the start
}

// options makes a machine's options of the common flags.
func (a *app) options() rig.Options {
	return rig.Options{
		Paths: a.paths, QEMU: a.common.QEMU, Kernel: a.common.Kernel, Modules: a.common.Modules,
		Mirror: a.common.Mirror, Accel: a.common.Accel, Report: a.report,
	}
}

// interruptible returns a context that ends with the first signal.
func (a *app) interruptible() (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancelCause(context.Background())
	done := make(chan struct{})
	go func() {
		select {
		case s := <-a.signals:
			cancel(interrupted{s})
		case <-done:
		}
	}()
	return ctx, func() { close(done); cancel(nil) }
}

// interrupted is the cause of a context that a signal ended.
type interrupted struct{ os.Signal }

func (i interrupted) Error() string { return "interrupted by " + i.Signal.String() }

func main() {
	os.Exit(run(os.Args[1:], os.Stdin, os.Stdout, os.Stderr))
}

// run is main without the process around it.
func run(args []string, stdin *os.File, stdout, stderr io.Writer) int {
	var cli CLI
	exited, status := false, 0
	parser, err := kong.New(&cli,
		kong.Name("toebox"), kong.Description("A TCP-offload adapter for a QEMU near you."),
		kong.Writers(stdout, stderr), kong.UsageOnError(),
		kong.Exit(func(code int) { exited, status = true, code }),
	)
	if err != nil {
		fmt.Fprintln(stderr, "toebox:", err)
		return rig.ExitCannot
	}
	k, err := parser.Parse(args)
	if exited { // --help
		return status
	}
	if err != nil {
		fmt.Fprintf(stderr, "toebox: %v (see toebox --help)\n", err)
		return rig.ExitUsage
	}
	paths, err := rig.DefaultPaths()
	if err != nil {
		fmt.Fprintln(stderr, "toebox:", err)
		return rig.ExitCannot
	}
	// Asking for the signals also undoes an inherited SIG_IGN.
	signals := make(chan os.Signal, 2)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM)
	if !signal.Ignored(syscall.SIGHUP) { // nohup's wish is kept
		signal.Notify(signals, syscall.SIGHUP)
	}
	defer signal.Stop(signals)
	a := &app{
		common: &cli.Common, args: args, paths: paths, report: newReporter(stderr), stdin: stdin, stdout: stdout, stderr: stderr, signals: signals,
	}
	err = k.Run(a)
	a.report.clear()
	return a.explain(err)
}

// explain prints an error with what helps to understand it, and returns its code.
func (a *app) explain(err error) int {
	var status *rig.StatusError
	if err == nil {
		return rig.ExitOK
	}
	code := rig.ExitCode(err)
	if errors.As(err, &status) {
		return code
	}
	fmt.Fprintln(a.stderr, "toebox:", err)
	var run *rig.RunError
	if errors.As(err, &run) {
		if line, err := os.ReadFile(run.Dir + "/cmdline"); err == nil {
			fmt.Fprintf(a.stderr, "toebox: QEMU was: %s", line)
		}
		fmt.Fprintf(a.stderr, "toebox: console and logs are in %s\n", run.Dir)
	}
	return code
}
