// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"time"

	"toebox/ci/bench/task"
	images "toebox/images/rig"
	"toebox/images/vm"
)

// Plan is what a run of the benchmark does.
type Plan struct {
	Config
	Pace  Pace
	Match *regexp.Regexp // of the names of cases; nil: all
	Say   func(format string, args ...any)
	// Published is what a quick run is compared with, see [Report.Worse].
	Published []Published
}

// Run boots a VM, measures and returns the report. What was found before an error is in
// the report, too.
func Run(ctx context.Context, p Plan) (*Report, error) {
	r := &Report{When: time.Now(), Machine: ThisMachine(p.Images.Source), Network: "user", Pace: p.Pace}
	if p.Tap {
		r.Network, r.Counts = "tap", true
	}
	cases := p.cases()
	p.Ample = slices.ContainsFunc(cases, func(c Case) bool { return c.Ample })
	l, err := NewLab(ctx, p.Config)
	if err != nil {
		return r, err
	}
	if err := r.Machine.describe(ctx, l.VM, &p.Images); err != nil {
		return r, errors.Join(err, l.Close())
	}
	for _, c := range cases {
		p.Say("%s", c.Name)
		if err := r.measure(ctx, l, &c, &p); err != nil {
			return r, errors.Join(err, l.Close())
		}
	}
	if err := l.Close(); err != nil {
		return r, err
	}
	return r, nil
}

// measure adds the rows of a case. Short runs that meet a busy moment each say nothing of
// the adapter: where they are far from what is published, the case is measured once more
// at the full pace, and its rows are those.
func (r *Report) measure(ctx context.Context, l Runner, c *Case, p *Plan) error {
	rows, err := Measure(ctx, l, c, p.Pace.Rounds, r.Counts)
	if err == nil && r.compared() && len(worseRows(rows, p.Published)) > 0 {
		full := FullPace()
		p.Say("%s: far from what is published, once more at the full pace", c.Name)
		for _, longer := range Cases(full) {
			if longer.Name == c.Name {
				rows, err = Measure(ctx, l, &longer, full.Rounds, r.Counts)
			}
		}
	}
	r.Rows = append(r.Rows, rows...)
	var refused *TaskError
	if errors.As(err, &refused) {
		r.Failed = append(r.Failed, err.Error())
		return nil
	}
	return err
}

// cases are those of the plan that can be measured.
func (p *Plan) cases() []Case {
	return slices.DeleteFunc(Cases(p.Pace), func(c Case) bool {
		// User networking has no way in.
		return p.Match != nil && !p.Match.MatchString(c.Name) || c.Virtio.Kind == task.Accept && !p.Tap
	})
}

// describe adds what is known of a VM.
func (m *Machine) describe(ctx context.Context, i *images.Instance, o *images.Options) error {
	m.Accel = i.Accel.Name
	if i.Accel.Name == vm.AccelTCG {
		m.Accel += fmt.Sprintf(" (%s)", i.Accel.Why)
	}
	m.GuestProcessors = o.CPUs
	if o.CPUs == 0 {
		m.GuestProcessors = vm.DefaultCPUs
	}
	hello, err := i.Hello(ctx)
	if err != nil {
		return fmt.Errorf("bench: %w", err)
	}
	m.GuestKernel = hello.Info["kernel"]
	var version struct {
		QEMU struct{ Major, Minor, Micro int }
	}
	if err := i.Execute(ctx, "query-version", nil, &version); err != nil {
		return fmt.Errorf("bench: %w", err)
	}
	m.QEMU = fmt.Sprintf("QEMU %d.%d.%d", version.QEMU.Major, version.QEMU.Minor, version.QEMU.Micro)
	return nil
}
