// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"context"
	"reflect"
	"testing"
	"time"

	"toebox/ci/bench/task"
)

// paces is a Runner whose adapter moves bytes at one speed in runs of the quick pace and
// at another one in those of the full pace, and fails at speed 0.
type paces struct {
	quick, full uint64 // MB/s; virtio's are 100
	runs        map[time.Duration]int
}

func (p *paces) Run(_ context.Context, t *task.Task) (*Sample, error) {
	p.runs[t.For]++
	speed := p.full
	switch {
	case t.Side == task.Virtio:
		speed = 100
	case t.For == QuickPace().For:
		speed = p.quick
	}
	if speed == 0 {
		return nil, &TaskError{Text: "no speed"}
	}
	return &Sample{Result: task.Result{Bytes: speed * 1e6, Elapsed: time.Second, Interrupts: speed}, Window: time.Second}, nil
}

// TestMeasureAgain: a case whose short runs are far from what is published is measured at
// the full pace, and that counts.
func TestMeasureAgain(t *testing.T) {
	c := Cases(QuickPace())[0]
	published := []Published{{Case: c.Name, Way: zeroCopy, Metric: nameThroughput, Ratio: 4}}
	short, long := QuickPace().Rounds*(1+len(c.Ways)), FullPace().Rounds*(1+len(c.Ways))
	for _, k := range []struct {
		name        string
		quick, full uint64
		user        bool
		runs        map[time.Duration]int
		ratio       float64
		worse       int
		failed      []string
	}{
		{name: "good", quick: 200, runs: map[time.Duration]int{QuickPace().For: short}, ratio: 2},
		{name: "a busy moment", quick: 190, full: 400, runs: map[time.Duration]int{QuickPace().For: short, FullPace().For: long}, ratio: 4},
		{name: "worse", quick: 100, full: 190, runs: map[time.Duration]int{QuickPace().For: short, FullPace().For: long}, ratio: 1.9, worse: 1},
		{name: "user networking", quick: 100, user: true, runs: map[time.Duration]int{QuickPace().For: short}, ratio: 1},
		{
			name: "fails", quick: 100, runs: map[time.Duration]int{QuickPace().For: short, FullPace().For: 2},
			failed: []string{"bench: " + c.Name + ": no speed"},
		},
	} {
		p := &Plan{Pace: QuickPace(), Say: func(string, ...any) {}, Published: published}
		r := &Report{Counts: !k.user, Pace: p.Pace}
		runner := &paces{quick: k.quick, full: k.full, runs: map[time.Duration]int{}}
		if err := r.measure(t.Context(), runner, &c, p); err != nil {
			t.Errorf("%s: %v", k.name, err)
		}
		if !reflect.DeepEqual(runner.runs, k.runs) || !reflect.DeepEqual(r.Failed, k.failed) {
			t.Errorf("%s: runs %v, want %v; failed %q, want %q", k.name, runner.runs, k.runs, r.Failed, k.failed)
		}
		if got := r.Worse(published); len(got) != k.worse {
			t.Errorf("%s: %q, want %d lines", k.name, got, k.worse)
		}
		for _, row := range r.Rows {
			if row.Way == zeroCopy && row.Metric == nameThroughput && *row.Ratio != k.ratio {
				t.Errorf("%s: %vx, want %vx", k.name, *row.Ratio, k.ratio)
			}
		}
		if (len(r.Rows) == 0) != (k.failed != nil) {
			t.Errorf("%s: %d rows", k.name, len(r.Rows))
		}
	}
}
