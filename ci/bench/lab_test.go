// SPDX-License-Identifier: Apache-2.0

package bench_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"toebox/ci/bench"
	"toebox/ci/bench/task"
	images "toebox/images/rig"
	"toebox/images/toolchain/toolchaintest"
)

// TestLab: in a VM with both devices, on user networking, each does what there is to
// do, and is seen to cost something.
func TestLab(t *testing.T) {
	if testing.Short() {
		t.Skip("boots a machine, some seconds: run without -short")
	}
	toolchaintest.QEMU(t)
	toolchaintest.Kernel(t)
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Minute)
	defer cancel()
	paths, err := images.DefaultPaths()
	if err != nil {
		t.Fatal(err)
	}
	dir, err := os.MkdirTemp("", "tbx") // short enough for sockets
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	paths.State, paths.Runtime = filepath.Join(dir, "s"), dir
	l, err := bench.NewLab(ctx, bench.Config{Images: images.Options{Paths: paths}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	})
	for _, side := range []task.Side{task.Virtio, task.Adapter} {
		k := task.Task{Side: side, Kind: task.Echo, Conns: 1, Size: 64, For: 20 * time.Millisecond}
		var total bench.Sample
		// A tick of a processor's time, and an interrupt, come some time.
		for total.Interrupts == 0 || total.Device == 0 || total.Busy == 0 || side == task.Adapter && total.Doorbells == 0 {
			s, err := l.Run(ctx, &k)
			if err != nil {
				t.Fatalf("%s: %v; so far %+v", side, err, total)
			}
			if s.Ops == 0 || s.Bytes < 64 || s.Median <= 0 || s.Window <= 0 {
				t.Fatalf("%s: %+v", side, s)
			}
			total.Interrupts += s.Interrupts
			total.Doorbells += s.Doorbells
			total.Device += s.Device
			total.Busy += s.Busy
		}
	}
	rows, err := bench.Measure(ctx, l, &bench.Case{
		Name:    "send",
		Virtio:  task.Task{Side: task.Virtio, Kind: task.Send, Conns: 1, Size: 4096, For: 10 * time.Millisecond},
		Ways:    []bench.Way{{Name: "direct", Task: task.Task{Side: task.Adapter, Kind: task.Send, Conns: 1, Size: 64 << 10, Direct: true, For: 10 * time.Millisecond}}},
		Metrics: []bench.Metric{{Name: "throughput", Of: func(s *bench.Sample) float64 { return float64(s.Bytes) / s.Elapsed.Seconds() }}},
	}, 1, false)
	if err != nil || len(rows) != 1 || rows[0].Ratio == nil {
		t.Errorf("%+v, %v", rows, err)
	}
	var no *bench.TaskError
	k := task.Task{Side: task.Virtio, Kind: task.Send, Conns: 1, Size: 1, Direct: true, For: 1}
	if _, err := l.Run(ctx, &k); !errors.As(err, &no) {
		t.Errorf("what cannot be done: %v", err)
	}
	k = task.Task{Side: task.Virtio, Kind: task.Connect, For: time.Millisecond}
	if s, err := l.Run(ctx, &k); err != nil || s.Ops == 0 {
		t.Errorf("after a failure: %+v, %v", s, err)
	}
}
