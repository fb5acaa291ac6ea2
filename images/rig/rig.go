// SPDX-License-Identifier: Apache-2.0

package rig

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"toebox/images/guest"
	"toebox/images/initramfs"
	"toebox/images/toolchain"
	"toebox/images/vm"
)

// Limits of phases. Without KVM everything in the guest takes ten times as long.
const (
	buildPatience = 10 * time.Minute
	bootPatience  = 3 * time.Minute
	kvmPatience   = 20 * time.Second // a working KVM needs two
	readyPatience = 3 * time.Minute
	deviceGrace   = 3 * time.Second
)

// Packages that go into the guest, and the host's.
const (
	initPackage   = modulePath + "/images/guest/cmd/tbinit"
	shellPackage  = modulePath + "/images/guest/cmd/tbsh"
	toolPackage   = modulePath + "/guestdriver/cmd/toebox-guest"
	devicePackage = modulePath + "/vdev/cmd/" + deviceProgram
	keeperPackage = modulePath + "/vfio-user/cmd/" + keeperProgram
)

// Parts is what a machine is made of, ready to start.
type Parts struct {
	Tools     *toolchain.Tools
	Accel     vm.Accel
	Programs  string // directory with what was built
	Initramfs string
}

// Prepare gets and builds all parts. The second time it needs no network.
func Prepare(ctx context.Context, o Options) (*Parts, error) {
	ctx, cancel := context.WithTimeout(ctx, buildPatience)
	defer cancel()
	if o.Source == "" {
		return nil, errNoSource
	}
	ic := initramfs.Config{CacheDir: o.Cache, Source: o.Source, Progress: o.Report}
	p := &Parts{}
	var built error
	var base string
	var wg sync.WaitGroup
	// Downloads wait for the network, builds for processors. What fails first ends
	// the other, whose error is then of no interest.
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	wg.Go(func() {
		defer func() {
			if built != nil {
				stop()
			}
		}()
		packages := []string{initPackage, shellPackage}
		if o.adapters() > 0 {
			packages = append(packages, toolPackage, devicePackage, keeperPackage)
		}
		if p.Programs, built = initramfs.Programs(ctx, ic, packages...); built == nil {
			base, built = initramfs.Base(ctx, ic)
		}
	})
	tools, err := toolchain.Get(ctx, o.Tools())
	if err == nil {
		p.Tools = tools
		p.Accel, err = vm.PickAccel(ctx, tools.QEMU, o.Accel, o.Cache)
	}
	if err != nil && ctx.Err() == nil {
		stop()
		wg.Wait()
		return nil, err
	}
	wg.Wait()
	if built != nil {
		return nil, built
	}
	if err != nil {
		return nil, err
	}
	p.Initramfs, err = o.image(ic, p, base)
	return p, err
}

// image assembles the guest's file system.
func (o *Options) image(c initramfs.Config, p *Parts, base string) (string, error) {
	names := []string{"vfio-pci", "vfio_iommu_type1", "uio_pci_generic"}
	if o.iommu() == vm.IOMMUVirtio {
		names = append(names, "virtio-iommu")
	}
	names = append(names, o.Load...)
	modules, err := p.Tools.Kernel.Modules(names...)
	if err != nil {
		return "", err
	}
	files := initramfs.Modules(modules)
	programs := map[string]string{"init": "tbinit", guest.Shell[1:]: "tbsh"}
	if o.adapters() > 0 {
		programs["bin/toebox-guest"] = "toebox-guest"
	}
	for to, from := range programs {
		b, err := os.ReadFile(filepath.Join(p.Programs, from))
		if err != nil {
			return "", fmt.Errorf("rig: %w", err)
		}
		files = append(files, initramfs.File{Path: to, Mode: 0o755, Data: b})
	}
	files = append(files,
		initramfs.File{Path: "etc/passwd", Mode: 0o644, Data: []byte("root:x:0:0:root:/root:" + guest.Shell + "\n")},
		initramfs.File{Path: "etc/group", Mode: 0o644, Data: []byte("root:x:0:\n")},
		initramfs.File{Path: "root", Mode: os.ModeDir | 0o700},
		initramfs.File{Path: "bin/sh", Link: "/init"},
	)
	return initramfs.Image(c, base, append(files, o.Files...))
}

// An Instance is a running machine with its adapter.
type Instance struct {
	*vm.VM
	Record
	Dir   string // the run's folder
	Accel vm.Accel

	run     *folder
	devices []*device // by adapter
	relay   *relay
	loader  *loader // nil without an adapter

	once    sync.Once
	mu      sync.Mutex
	verdict error // the keeper's death
	over    chan struct{}
}

// Up prepares all parts and starts a machine; it returns when the guest serves over
// the adapter. If KVM gives up on the guest and was not asked for by name, it starts
// again without.
func Up(ctx context.Context, o Options) (*Instance, error) {
	var forward *net.TCPListener
	if o.Port != 0 && strings.HasPrefix(o.Net, "nat") {
		var err error
		if forward, err = Forward(o.Port); err != nil {
			return nil, err
		}
		defer forward.Close() //nolint:errcheck // the instance has its own
	}
	parts, err := Prepare(ctx, o)
	if err != nil {
		return nil, err
	}
	i, err := start(ctx, o, parts, forward)
	if errors.Is(err, vm.ErrKVM) && o.Accel != vm.AccelKVM {
		o.say("kvm: %v: starting again without it", err)
		vm.ForgetKVM(parts.Tools.QEMU, o.Cache, "KVM gave up on the guest before")
		parts.Accel = vm.Accel{Name: vm.AccelTCG, Why: "KVM gave up on the guest"}
		i, err = start(ctx, o, parts, forward)
	}
	return i, err
}

// iommu is the machine's IOMMU. A function behind one gives UIO no address that it
// could use.
func (o *Options) iommu() string {
	if o.Driver == guest.DriverUIO {
		return vm.IOMMUNone
	}
	return o.IOMMU
}

// MachineConfig is the machine that o and parts make.
func (o *Options) MachineConfig(p *Parts, dir, sockets string) vm.Config {
	c := vm.Config{
		QEMU: p.Tools.QEMU, Kernel: p.Tools.Kernel, Initramfs: p.Initramfs, Accel: p.Accel.Name,
		CPUs: o.CPUs, MemoryMiB: o.MemoryMiB, HugePages: vm.DefaultHugePages,
		Dir: dir, SocketDir: sockets, GDB: o.GDB, IOMMU: o.iommu(), Append: o.Append, Args: o.Args,
	}
	if p.Accel.Name == vm.AccelTCG {
		c.TSC = vm.HostTSC()
	}
	if c.CPUs == 0 {
		c.CPUs = vm.DefaultCPUs
	}
	if c.MemoryMiB == 0 {
		c.MemoryMiB = vm.DefaultMemoryMiB
	}
	if o.Driver == guest.DriverUIO {
		c.Append = append(c.Append[:len(c.Append):len(c.Append)], guest.UIO)
	}
	for n := range o.adapters() {
		c.Devices = append(c.Devices, filepath.Join(socketsOf(sockets, n), vm.DeviceSocket))
	}
	c.HugePages *= max(len(c.Devices), 1)
	if len(c.Devices) == 0 {
		c.Append = append(c.Append[:len(c.Append):len(c.Append)], guest.NoAdapter)
	}
	return c
}

// start brings one machine up; what it made is gone again when it fails.
func start(ctx context.Context, o Options, parts *Parts, forward *net.TCPListener) (i *Instance, err error) {
	run, err := newRun(o.Paths, time.Now(), o.Port, o.adapters())
	if err != nil {
		return nil, err
	}
	dir, record := run.dir, run.Record
	i = &Instance{Record: record, Dir: dir, Accel: parts.Accel, run: run, over: make(chan struct{})}
	defer func() {
		if err != nil {
			err = &RunError{Err: err, Dir: dir}
			i.Close()
			i = nil
		}
	}()
	if parts.Accel.Name == vm.AccelTCG {
		o.say("no KVM (%s): emulating with TCG, slower", parts.Accel.Why)
	}
	c := o.MachineConfig(parts, dir, record.Sockets)
	for n, path := range c.Devices {
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			return i, fmt.Errorf("rig: %w", err)
		}
		socket, err := ListenSocket(path)
		if err != nil {
			return i, err
		}
		socket.SetUnlinkOnClose(false) // the device listens on
		err = i.startKeeper(&o, n, parts, socket, forward)
		socket.Close() //nolint:errcheck // the keeper has its own
		if err != nil {
			return i, err
		}
		forward = nil // adapter 0's
	}
	begin := time.Now()
	patience, cause := bootPatience, context.DeadlineExceeded
	if parts.Accel.Name == vm.AccelKVM {
		// A KVM that spins for ever reports nothing.
		patience, cause = kvmPatience, vm.ErrKVM
	}
	bootCtx, cancel := context.WithTimeoutCause(ctx, patience, fmt.Errorf("nothing after %v: %w", patience, cause))
	defer cancel()
	if i.VM, err = vm.Start(bootCtx, c, o.Handlers); err != nil {
		return i, i.blame(err)
	}
	for _, d := range i.devices {
		go i.watch(d)
	}
	hello, err := i.Hello(bootCtx)
	if err != nil {
		return i, i.blame(err)
	}
	o.say("guest: Linux %s is up after %.1f s", hello.Info["kernel"], time.Since(begin).Seconds())
	readyCtx, cancelReady := context.WithTimeoutCause(ctx, readyPatience, fmt.Errorf("nothing after %v: %w", readyPatience, context.DeadlineExceeded))
	defer cancelReady()
	if err = i.Ready(readyCtx, nil); err != nil {
		return i, i.blame(err)
	}
	o.say("guest: ready after %.1f s", time.Since(begin).Seconds())
	l, err := ListenSocket(record.Socket())
	if err != nil {
		return i, err
	}
	i.relay = newRelay(l, i.Control())
	if len(i.devices) > 0 {
		i.loader, err = newLoader(i)
	}
	return i, err
}

// watch ends the machine when a keeper dies: QEMU never connects again.
func (i *Instance) watch(d *device) {
	select {
	case <-i.VM.Done():
	case <-d.proc.Done():
		err := d.death()
		select {
		case <-i.VM.Done():
		case <-i.over:
		default:
			i.mu.Lock()
			if i.verdict == nil {
				i.verdict = err
			}
			i.mu.Unlock()
			i.VM.Stop()
		}
	}
}

// blame prefers a device's death to what followed from it.
func (i *Instance) blame(err error) error {
	for _, d := range i.devices {
		if k := d.kept; k != nil && k.failed() {
			return d.death() // and QEMU's is what came of it
		}
		select {
		case <-d.proc.Done():
			return d.death()
		default:
		}
	}
	return err
}

// Wait waits for the end of the machine; nil is an orderly one.
func (i *Instance) Wait() error {
	err := i.VM.Wait()
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.verdict != nil {
		err = i.verdict
	}
	if err != nil {
		return &RunError{Err: err, Dir: i.Dir}
	}
	return nil
}

// Processes are the ids of the device process of adapter 0, which changes with its firmware and is 0
// when there is none, and of its keeper.
func (i *Instance) Processes() (device, keeper int) {
	if len(i.devices) == 0 {
		return 0, 0
	}
	d := i.devices[0]
	if d.kept != nil {
		device = d.kept.pidNow()
	}
	return device, d.proc.PID()
}

// Ended says whether the machine ends within grace.
func (i *Instance) Ended(grace time.Duration) bool {
	select {
	case <-i.VM.Done():
		return true
	default:
	}
	t := time.NewTimer(grace)
	defer t.Stop()
	select {
	case <-i.VM.Done():
		return true
	case <-t.C:
		return false
	}
}

// Close ends the machine and the device and removes the sockets. The run's folder
// stays.
func (i *Instance) Close() {
	i.once.Do(func() {
		close(i.over)
		if i.relay != nil {
			i.relay.close()
		}
		if i.loader != nil {
			i.loader.close()
		}
		if i.VM != nil {
			i.VM.Stop()
		}
		for _, d := range i.devices {
			d.close()
		}
		i.run.close()
	})
}

// A RunError is an error of a run that left files to look at.
type RunError struct {
	Err error
	Dir string
}

func (e *RunError) Error() string { return e.Err.Error() }
func (e *RunError) Unwrap() error { return e.Err }
