// SPDX-License-Identifier: Apache-2.0

package bench_test

import (
	"reflect"
	"testing"

	"toebox/ci/bench"
	"toebox/ci/bench/task"
)

// TestWorse: rows are compared with half of what is published, in the direction in
// which they get worse, where figures can be compared at all.
func TestWorse(t *testing.T) {
	published := []bench.Published{
		{Case: "send", Way: "first", Metric: "throughput", Ratio: 4},
		{Case: "send", Way: "first", Metric: "interrupts", Ratio: 0.25},
		{Case: "send", Way: "second", Metric: "throughput", LeftOut: "noise"},
	}
	const throughput, interrupts = true, false
	row := func(way string, more bool, ratio float64) bench.Row {
		r := bench.Row{Case: "send", Way: way, Metric: "interrupts", More: more}
		if more {
			r.Metric = "throughput"
		}
		if ratio != 0 {
			r.Ratio = &ratio
		}
		return r
	}
	few := func(r bench.Row, of float64) bench.Row {
		r.Adapter, r.Target = *summary(of), &bench.Target{Most: 0.5}
		return r
	}
	quick := bench.Pace{Rounds: 3, Quick: true}
	for _, c := range []struct {
		name   string
		pace   bench.Pace
		user   bool
		rows   []bench.Row
		worse  []string
		inCase string
	}{
		{name: "as published", pace: quick, rows: []bench.Row{row("first", throughput, 4), row("first", interrupts, 0.25)}},
		{name: "half", pace: quick, rows: []bench.Row{row("first", throughput, 2), row("first", interrupts, 0.5)}},
		{name: "better", pace: quick, rows: []bench.Row{row("first", throughput, 40), row("first", interrupts, 0.02)}},
		{
			name: "worse", pace: quick, rows: []bench.Row{row("first", throughput, 1.99), row("first", interrupts, 0.51)},
			worse: []string{
				"send: first, throughput: 1.99x, less than half of the published 4.00x",
				"send: first, interrupts: 0.510x, more than twice the published 0.250x",
			},
		},
		{name: "nothing", pace: quick, rows: []bench.Row{row("first", throughput, 0)}, worse: []string{"send: first, throughput: no ratio, 4.00x is published"}},
		{name: "few", pace: quick, rows: []bench.Row{few(row("first", interrupts, 0.51), 0.4)}},
		{
			name: "not few", pace: quick, rows: []bench.Row{few(row("first", interrupts, 0.51), 0.6)},
			worse: []string{"send: first, interrupts: 0.510x, more than twice the published 0.250x"},
		},
		{name: "left out", pace: quick, rows: []bench.Row{row("second", throughput, 0.01)}},
		{name: "of another case", pace: quick, inCase: "receive", rows: []bench.Row{row("first", throughput, 0.01)}},
		{name: "user networking", pace: quick, user: true, rows: []bench.Row{row("first", throughput, 0.01)}},
		{name: "two rounds", pace: bench.Pace{Rounds: 2, Quick: true}, rows: []bench.Row{row("first", throughput, 0.01)}},
		{name: "the full pace", pace: bench.Pace{Rounds: 5}, rows: []bench.Row{row("first", throughput, 0.01)}},
	} {
		r := bench.Report{Counts: !c.user, Pace: c.pace, Rows: c.rows}
		for i := range r.Rows {
			if c.inCase != "" {
				r.Rows[i].Case = c.inCase
			}
		}
		if got := r.Worse(published); !reflect.DeepEqual(got, c.worse) {
			t.Errorf("%s: %q, want %q", c.name, got, c.worse)
		}
	}
}

// TestPublished: each row of the quick cases that has a ratio is published or left out
// for a reason, once, and nothing else is.
func TestPublished(t *testing.T) {
	all, err := bench.ReadPublished()
	if err != nil {
		t.Fatal(err)
	}
	type key struct{ name, way, metric string }
	there := map[key]bool{}
	for _, p := range all {
		k := key{p.Case, p.Way, p.Metric}
		if there[k] {
			t.Errorf("%+v: twice", p)
		}
		there[k] = true
		if (p.Ratio > 0) == (p.LeftOut != "") {
			t.Errorf("%+v: want a ratio, or a reason to be left out", p)
		}
	}
	compared := 0
	for _, c := range bench.Cases(bench.QuickPace()) {
		for _, w := range c.Ways {
			for _, m := range c.Metrics {
				if m.Alone || c.Virtio == (task.Task{}) {
					continue
				}
				k := key{c.Name, w.Name, m.Name}
				if !there[k] {
					t.Errorf("%+v is not published, nor left out", k)
				}
				delete(there, k)
				compared++
			}
		}
	}
	if len(there) > 0 || compared == 0 {
		t.Errorf("of %d rows; published, but not measured: %v", compared, there)
	}
}
