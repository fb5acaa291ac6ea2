// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os/exec"
	"time"

	"toebox/images/rig"
	"toebox/images/toolchain"
	"toebox/images/vm"
)

// DoctorCmd tries what toebox needs.
type DoctorCmd struct {
	JSON bool `name:"json" help:"Print findings as JSON."`
}

// A finding is the outcome of one trial.
type finding struct {
	Name   string `json:"name"`
	State  string `json:"state"` // stateGood, stateSlow or stateBad
	Found  string `json:"found"`
	Cure   string `json:"cure,omitempty"`
	Millis int64  `json:"ms"`
}

const (
	stateGood = "ok"
	stateSlow = "slow" // works, but could work better
	stateBad  = "bad"
)

// Run is called by kong.
func (c *DoctorCmd) Run(a *app) error {
	ctx, cancel := a.interruptible()
	defer cancel()
	d := &doctor{a: a, options: a.options()}
	d.options.Net = "nat"
	trials := []struct {
		name string
		run  func(context.Context) finding
	}{
		{"go", d.goTool}, {"source", d.source}, {"gcc", d.gcc}, {"qemu", d.qemu}, {"kernel", d.kernel}, {"kvm", d.kvm}, {"device", d.device},
	}
	var all []finding
	bad := false
	for _, t := range trials {
		begin := time.Now()
		f := t.run(ctx)
		f.Name, f.Millis = t.name, time.Since(begin).Milliseconds()
		bad = bad || f.State == stateBad
		all = append(all, f)
		if !c.JSON {
			a.report.clear()
			fmt.Fprintf(a.stdout, "%-7s %-5s %s\n", f.Name, f.State, f.Found)
			if f.Cure != "" {
				fmt.Fprintf(a.stdout, "%-7s       cure: %s\n", "", f.Cure)
			}
		}
	}
	if c.JSON {
		e := json.NewEncoder(a.stdout)
		e.SetIndent("", "  ")
		if err := e.Encode(struct {
			Findings []finding `json:"findings"`
		}{all}); err != nil {
			return err
		}
	}
	if bad {
		return errors.New("doctor: this machine cannot run toebox yet: see the cures above")
	}
	return nil
}

// A doctor carries what one trial leaves for the next.
type doctor struct {
	a       *app
	options rig.Options
	tool    *toolchain.QEMU
}

func (d *doctor) goTool(ctx context.Context) finding {
	out, err := exec.CommandContext(ctx, "go", "env", "GOVERSION").Output()
	if err != nil {
		return finding{State: stateBad, Found: err.Error(), Cure: "install Go (https://go.dev/dl)"}
	}
	return finding{State: stateGood, Found: string(out[:max(0, len(out)-1)])}
}

func (d *doctor) source(context.Context) finding {
	if d.options.Source == "" {
		return finding{State: stateBad, Found: "no toebox source here", Cure: "run toebox inside its source tree, or set TOEBOX_SOURCE"}
	}
	return finding{State: stateGood, Found: d.options.Source}
}

func (d *doctor) gcc(context.Context) finding {
	path, err := exec.LookPath("gcc")
	if err != nil {
		return finding{State: stateSlow, Found: "no gcc: no race detector in `make test`", Cure: "apt-get install gcc libc6-dev"}
	}
	return finding{State: stateGood, Found: path}
}

// qemu runs the one that would be used, and asks it for the device.
func (d *doctor) qemu(ctx context.Context) finding {
	q, err := toolchain.GetQEMU(ctx, d.options.Tools())
	if err == nil {
		version := q.Version
		if err = q.Probe(ctx); err == nil {
			d.tool = q
			return finding{State: stateGood, Found: fmt.Sprintf("%s has vfio-user-pci (%s)", version, q.Origin)}
		}
	}
	return finding{State: stateBad, Found: err.Error(), Cure: "set TOEBOX_QEMU to a QEMU >= 10.1, or TOEBOX_DEBIAN_MIRROR to a mirror that can be reached"}
}

func (d *doctor) kernel(ctx context.Context) finding {
	k, err := toolchain.GetKernel(ctx, d.options.Tools())
	if err == nil {
		_, err = k.Modules("vfio-pci", "vfio_iommu_type1")
	}
	if err != nil {
		return finding{State: stateBad, Found: err.Error(), Cure: "set TOEBOX_KERNEL and TOEBOX_MODULES, or TOEBOX_DEBIAN_MIRROR to a mirror that can be reached"}
	}
	f := finding{State: stateGood, Found: fmt.Sprintf("%s (%s)", k.Release, k.Origin)}
	if !k.Direct {
		f.State, f.Found = stateSlow, f.Found+", unpacks itself at each boot"
	}
	return f
}

// kvm runs a virtual CPU.
func (d *doctor) kvm(ctx context.Context) finding {
	if d.tool == nil {
		return finding{State: stateSlow, Found: "not tried without QEMU"}
	}
	if err := vm.TryKVM(ctx, d.tool); err != nil {
		return finding{
			State: stateSlow, Found: "does not work: " + err.Error(),
			Cure: "nothing needed: TCG is used instead; for KVM, enable (nested) virtualisation and join the group that owns /dev/kvm",
		}
	}
	return finding{State: stateGood, Found: "a virtual CPU ran"}
}

// device drives the real device with the real QEMU and no guest.
func (d *doctor) device(ctx context.Context) finding {
	if d.tool == nil || d.options.Source == "" {
		return finding{State: stateBad, Found: "not tried without QEMU and source"}
	}
	found, err := tryDevice(ctx, d.options, d.tool)
	if err != nil {
		return finding{State: stateBad, Found: err.Error(), Cure: "see the device's log named above; `toebox serve -v` shows more"}
	}
	return finding{State: stateGood, Found: found}
}
