// SPDX-License-Identifier: Apache-2.0

package rig

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"time"

	"toebox/ci/conformance"
	"toebox/images/control"
	"toebox/images/guest"
	"toebox/images/initramfs"
	images "toebox/images/rig"
	"toebox/images/vm"
	"toebox/vdev/device"
)

// GuestProgram is where the guest finds the kit.
const GuestProgram = "/bin/toebox-conformance"

const kitPackage = "toebox/ci/cmd/toebox-conformance"

const (
	bootPatience = 2 * time.Minute
	stopPatience = 5 * time.Second
)

// VM is a rig whose bus is a guest's: the kit runs in there.
type VM struct {
	*Rig
	// Dir has the console's log and QEMU's.
	Dir string
	// Accel says how the guest runs.
	Accel vm.Accel

	machine *vm.VM
}

// StartVM serves a device from this process and boots a guest on it that has
// the kit and no program that uses the adapter. Options say where tools, caches
// and source are; dir is where logs go.
func StartVM(ctx context.Context, cfg Config, o images.Options, dir string) (*VM, error) {
	o.Net = "none" // images starts no device of its own
	kitPackage := cmp.Or(cfg.Kit, kitPackage)
	programs, err := initramfs.Programs(ctx, initramfs.Config{CacheDir: o.Cache, Source: o.Source}, kitPackage)
	if err != nil {
		return nil, fmt.Errorf("rig: vm: %w", err)
	}
	kit, err := os.ReadFile(filepath.Join(programs, filepath.Base(kitPackage)))
	if err != nil {
		return nil, fmt.Errorf("rig: vm: %w", err)
	}
	o.Files = append(o.Files, initramfs.File{Path: GuestProgram[1:], Mode: 0o755, Data: kit})
	parts, err := images.Prepare(ctx, o)
	if err != nil {
		return nil, fmt.Errorf("rig: vm: %w", err)
	}
	rung := conformance.RungVM
	if o.Driver == guest.DriverUIO {
		rung = conformance.RungUIO
	}
	r, err := newRig(rung, cfg, device.Config{})
	if err != nil {
		return nil, err
	}
	v := &VM{Rig: r, Dir: dir, Accel: parts.Accel}
	if err := v.boot(ctx, o, parts); err != nil {
		return nil, errors.Join(fmt.Errorf("rig: vm: %w (logs in %s)", err, dir), r.Close())
	}
	return v, nil
}

func (v *VM) boot(ctx context.Context, o images.Options, parts *images.Parts) error {
	sockets, err := os.MkdirTemp(o.Runtime, "tbx")
	if err != nil {
		return err
	}
	v.ends = append(v.ends, func() error { return os.RemoveAll(sockets) })
	mc := o.MachineConfig(parts, v.Dir, sockets)
	socket := filepath.Join(sockets, vm.DeviceSocket)
	mc.Devices = []string{socket}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: socket, Net: "unix"})
	if err != nil {
		return err
	}
	v.serve(l)
	ctx, cancel := context.WithTimeoutCause(ctx, bootPatience, fmt.Errorf("the guest was not up after %v", bootPatience))
	defer cancel()
	if v.machine, err = vm.Start(ctx, mc, nil); err != nil {
		return err
	}
	v.ends = append(v.ends, func() error { v.machine.Stop(); return nil })
	if _, err := v.machine.Hello(ctx); err != nil {
		return err
	}
	return v.machine.Ready(ctx, nil)
}

// Died says how the guest ended, nil while it runs.
func (v *VM) Died() error {
	select {
	case <-v.machine.Done():
		if err := v.machine.Wait(); err != nil {
			return fmt.Errorf("rig: vm: %w; the console ends:\n%s", err, v.machine.ConsoleTail(20))
		}
		return errors.New("rig: vm: the guest has ended")
	default:
		return nil
	}
}

// Exec runs a program in the guest. When the guest dies, its last words are in
// the error.
func (v *VM) Exec(ctx context.Context, args []string, stdin io.Reader, stdout, stderr io.Writer) (int, error) {
	res, err := control.Run(ctx, v.machine.Control(), control.Request{Args: args}, control.Streams{Stdin: stdin, Stdout: stdout, Stderr: stderr})
	if err == nil && res.Error != "" {
		err = errors.New(res.Error)
	}
	if err == nil {
		return res.Status, nil
	}
	select {
	case <-v.machine.Done():
		if why := v.machine.Wait(); why != nil {
			err = fmt.Errorf("%w; the console ends:\n%s", why, v.machine.ConsoleTail(20))
		}
	case <-time.After(stopPatience / 5): // a death that is being noticed
	}
	return res.Status, err
}
