// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/term"

	"toebox/images/guest"
	"toebox/images/rig"
	"toebox/images/vm"
	"toebox/vdev/port"
)

const endGrace = 5 * time.Second

// Machine are the flags of verbs that start one.
type Machine struct {
	Port   int      `env:"TOEBOX_PORT" default:"8080" help:"Port on the host's loopback that leads to the guest's port 80 (${default})."`
	Net    []string `env:"TOEBOX_NET" sep:"none" default:"nat" help:"What the adapter is plugged into: nat, tap:if=NAME,ip=ADDR/LEN[,gw=ADDR][,dns=ADDR][,mtu=N], or none for no adapter (${default}). Of several adapters the next one with each --net; the last holds for the rest."`
	Impair string   `env:"TOEBOX_IMPAIR" placeholder:"RULES" help:"How bad the adapter's wire is: [to.|from.]loss=1%,delay=5ms,jitter=T,reorder=P,reorderby=T,duplicate=P,corrupt=P,rate=N,seed=N."`
	Pcap   string   `env:"TOEBOX_PCAP" placeholder:"FILE" help:"Capture the adapter's frames as pcapng."`
	NVM    string   `name:"nvm" env:"TOEBOX_NVM" placeholder:"FILE" help:"File with the adapter's non-volatile image."`
	Seed   uint64   `env:"TOEBOX_SEED" help:"Seed of everything random in the adapter; 0 picks one."`
	CPUs   int      `name:"cpus" env:"TOEBOX_CPUS" default:"2" help:"CPUs of the guest (${default})."`
	Memory int      `env:"TOEBOX_MEMORY" default:"1024" help:"Memory of the guest in MiB (${default})."`
	Append string   `name:"kernel-append" env:"TOEBOX_KERNEL_APPEND,VMTEST_KERNEL_APPEND" placeholder:"WORDS" help:"More of the guest kernel's command line."`
	IOMMU  string   `name:"iommu" env:"TOEBOX_IOMMU" default:"intel" enum:"intel,virtio" help:"The virtual IOMMU: intel or virtio (${default})."`
	Driver string   `env:"TOEBOX_DRIVER" default:"vfio" enum:"vfio,uio" help:"What the guest reaches the adapter by: vfio, or uio without a virtual IOMMU (${default})."`
	GDB    bool     `name:"gdb" env:"TOEBOX_GDB" help:"Let a debugger into the guest's kernel at localhost:1234."`
	V      bool     `name:"verbose" short:"v" env:"TOEBOX_VERBOSE" help:"Let the device say more in device.log."`
}

func (m *Machine) apply(o *rig.Options) error {
	switch {
	case m.CPUs < 1 || m.CPUs > 64:
		return &rig.UsageError{Text: fmt.Sprintf("--cpus %d: want 1 to 64", m.CPUs)}
	case m.Memory < 512 || m.Memory > 1<<20:
		return &rig.UsageError{Text: fmt.Sprintf("--memory %d: want 512 MiB at least", m.Memory)}
	case m.Port < 1 || m.Port > 65535:
		return &rig.UsageError{Text: fmt.Sprintf("--port %d: want 1 to 65535", m.Port)}
	}
	if m.Driver == guest.DriverUIO && m.IOMMU == vm.IOMMUVirtio {
		return &rig.UsageError{Text: "--driver uio is for a machine without an IOMMU: leave --iommu out"}
	}
	if len(m.Net) == 0 {
		return &rig.UsageError{Text: "--net is empty"}
	}
	for _, s := range m.Net {
		if name, _, _ := strings.Cut(s, ":"); name != "nat" && name != "tap" && s != "none" {
			return &rig.UsageError{Text: fmt.Sprintf("--net %s: want nat, tap:if=NAME,ip=ADDR/LEN or none", s)}
		}
	}
	o.Port, o.Net, o.Seed, o.Verbose, o.GDB = m.Port, m.Net[0], m.Seed, m.V, m.GDB
	if strings.HasPrefix(o.Net, "tap:") {
		o.Port = 0 // the guest has an address of its own
	}
	if _, err := port.ParseImpairments(m.Impair); err != nil {
		return &rig.UsageError{Text: fmt.Sprintf("--impair: %v", err)}
	}
	o.Impair = m.Impair
	o.IOMMU, o.Driver, o.CPUs, o.MemoryMiB = m.IOMMU, m.Driver, m.CPUs, m.Memory
	o.Append = strings.Fields(m.Append)
	var err error
	// The device runs elsewhere and gets whole paths.
	for _, f := range []struct {
		to   *string
		path string
	}{{&o.Pcap, m.Pcap}, {&o.NVM, m.NVM}} {
		if f.path != "" {
			if *f.to, err = filepath.Abs(f.path); err != nil {
				return err
			}
		}
	}
	return nil
}

// RunCmd starts a machine.
type RunCmd struct {
	Machine  `embed:""`
	Adapters int  `env:"TOEBOX_ADAPTERS" default:"1" help:"How many adapters the machine has (${default}); other verbs name one with --adapter, counted from 0. --port leads to the first one."`
	DryRun   bool `env:"TOEBOX_DRY_RUN" help:"Print QEMU's command line, ready to paste, and start nothing."`
}

// more plugs in what adapters there are behind the first one.
func (c *RunCmd) more(o *rig.Options) error {
	switch {
	case c.Adapters < 1 || c.Adapters > rig.MaxAdapters:
		return &rig.UsageError{Text: fmt.Sprintf("--adapters %d: want 1 to %d", c.Adapters, rig.MaxAdapters)}
	case len(c.Net) > c.Adapters:
		return &rig.UsageError{Text: fmt.Sprintf("--net is there %d times, for %d adapters", len(c.Net), c.Adapters)}
	case c.Adapters > 1 && slices.Contains(c.Net, "none"):
		return &rig.UsageError{Text: "--net none is for a machine without adapters"}
	}
	for n := 1; n < c.Adapters; n++ {
		o.More = append(o.More, c.Net[min(n, len(c.Net)-1)])
	}
	return nil
}

// Run is called by kong.
func (c *RunCmd) Run(a *app) error {
	o := a.options()
	if err := c.apply(&o); err != nil {
		return err
	}
	if err := c.more(&o); err != nil {
		return err
	}
	ctx, cancel := a.interruptible()
	defer cancel()
	if c.DryRun {
		return dryRun(ctx, a, o)
	}
	i, err := rig.Up(ctx, o)
	if err != nil {
		var sig interrupted
		if errors.As(context.Cause(ctx), &sig) {
			return nil // told to end while starting: nothing is left, all is well
		}
		return err
	}
	defer i.Close()
	switch {
	case o.Net == "none":
		a.report.Step("guest: up, without an adapter")
	case strings.HasPrefix(o.Net, "tap"):
		a.report.Step(fmt.Sprintf("adapter: up, on %s (logs in %s)", o.Net, i.Dir))
	default:
		a.report.Step(fmt.Sprintf("adapter: up; the guest answers at http://127.0.0.1:%d/ (logs in %s)", c.Port, i.Dir))
	}
	for n, network := range o.More {
		a.report.Step(fmt.Sprintf("adapter %d: up, on %s", n+1, network))
	}
	if a.interactive() {
		a.report.Step("guest: a shell follows; toebox-guest is the adapter's tool; exit, poweroff or Ctrl-A X ends it all")
		ended := make(chan error, 1)
		go func() { ended <- a.shell(ctx, i.Control(), nil, nil) }()
		select {
		case err = <-ended:
			return c.end(a, i, err)
		case <-i.VM.Done():
		}
		// The shell's end puts the terminal right, before anything is printed on it.
		i.Control().Close() //nolint:errcheck // its machine is gone
		select {
		case <-ended:
		case <-time.After(endGrace):
		}
		return c.end(a, i, nil)
	}
	return c.attend(ctx, a, i)
}

// attend keeps the machine up until a signal or its own end.
func (c *RunCmd) attend(ctx context.Context, a *app, i *rig.Instance) error {
	for {
		select {
		case p := <-i.Phases():
			if p.Name == guest.PhaseServed {
				// The machine stays up to be looked at.
				a.report.Step("guest: " + p.Error)
			}
		case <-ctx.Done():
			a.report.Step("shutting down: " + context.Cause(ctx).Error())
			i.Close()
			return nil
		case <-i.VM.Done():
			return c.end(a, i, nil)
		}
	}
}

// end tells how the machine ended: a shell's own status is not the run's.
func (c *RunCmd) end(a *app, i *rig.Instance, shell error) error {
	var status *rig.StatusError
	var sig interrupted
	grace := time.Duration(0)
	if shell != nil && !errors.As(shell, &status) && !errors.Is(shell, errQuit) && !errors.As(shell, &sig) {
		grace = endGrace // the channel breaks a little before QEMU is gone
	}
	if i.Ended(grace) {
		err := i.Wait()
		if errors.Is(err, vm.ErrPanic) {
			fmt.Fprintln(a.stderr, i.ConsoleTail(20))
		}
		return err
	}
	i.Close()
	if grace == 0 {
		return nil
	}
	return shell
}

// dryRun prints the command line with the paths a run would use.
func dryRun(ctx context.Context, a *app, o rig.Options) error {
	parts, err := rig.Prepare(ctx, o)
	if err != nil {
		return err
	}
	m := o.MachineConfig(parts, a.paths.State, filepath.Join(a.paths.Runtime, "toebox-dry-run"))
	fmt.Fprintln(a.stdout, m.CommandLine())
	for n, socket := range m.Devices {
		o := o.Of(n)
		serve := []string{program(), "serve", "--net", o.Net, "--socket-path", socket}
		if o.Port != 0 {
			serve = append(serve, "--port", strconv.Itoa(o.Port))
		}
		for flag, value := range map[string]string{"--pcap": o.Pcap, "--nvm": o.NVM} {
			if value != "" {
				serve = append(serve, flag, value)
			}
		}
		fmt.Fprintf(a.stderr, "toebox: first: mkdir -p %s && %s\n", vm.ShellWords(filepath.Dir(socket)), vm.ShellWords(serve...))
	}
	return nil
}

// program is how to call this one from anywhere.
func program() string {
	if path, err := os.Executable(); err == nil {
		return path
	}
	return "toebox"
}

// interactive says whether a person sits at both ends.
func (a *app) interactive() bool {
	out, ok := a.stdout.(*os.File)
	return ok && a.stdin != nil && term.IsTerminal(int(a.stdin.Fd())) && term.IsTerminal(int(out.Fd()))
}
