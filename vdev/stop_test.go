// SPDX-License-Identifier: Apache-2.0

package vdev

import (
	"context"
	"errors"
	"slices"
	"testing"
)

// TestStop: an orderly stop that the device itself asks for.
func TestStop(t *testing.T) {
	r := enabled(t, nil)
	r.fw.take()
	if err := r.f.Stop(t.Context()); err != nil || len(r.fw.take()) != 0 {
		t.Errorf("nothing runs: %v", err)
	}
	r.set(0x0010, 1)
	if err := r.f.Stop(t.Context()); err != nil {
		t.Error(err)
	}
	if got := r.fw.take(); !slices.Equal(got, []string{"run", "stop"}) {
		t.Errorf("calls %q", got)
	}
	r.want(0x0014, 1|4|0x40) // READY, STOPPED, DMA

	r.set(0x0010, 1<<31) // RESET
	r.set(0x0010, 1)
	r.fw.with(func(w *fakeFirmware) { w.stuck = true })
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := r.f.Stop(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("a stop that does not end: %v", err)
	}
}
