// SPDX-License-Identifier: Apache-2.0

package rig_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"toebox/ci/rig"
	"toebox/guestdriver"
)

// TestResetIsNoticed resets the adapter behind the driver's back. The driver
// does not watch, so that it learns of it by vector 0 or never.
func TestResetIsNoticed(t *testing.T) {
	r, err := rig.Inproc(rig.Config{Seed: 1})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := r.Close(); err != nil {
			t.Error(err)
		}
	})
	env := r.Env()
	bus, err := env.Open(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	a, err := guestdriver.Open(t.Context(), bus, guestdriver.Options{Memory: 4 << 20, Watch: -1})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := a.Close(); err != nil {
			t.Error(err)
		}
	})
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	hang, err := env.Peer.Hang(ctx)
	if err != nil {
		t.Fatal(err)
	}
	for round := range 3 {
		dialed := make(chan error, 1)
		go func() {
			_, err := a.DialContext(ctx, "tcp", hang.String())
			dialed <- err
		}()
		for started := uint64(round + 1); r.Device().Function().Counters()["connects"] < started; {
			if ctx.Err() != nil {
				t.Fatal("the adapter did not start to connect")
			}
		}
		began := time.Now()
		bus.Write32(0, 0x0010, 1<<31) // CONTROL.RESET
		if err := <-dialed; !errors.Is(err, guestdriver.ErrReset) {
			t.Errorf("round %d: dial: %v", round, err)
		}
		if _, err := a.Counters(ctx); err != nil {
			t.Errorf("round %d: counters: %v", round, err)
		}
		t.Logf("round %d: recovered after %v", round, time.Since(began))
		if n := a.Stats().Resets; n != uint64(round+1) {
			t.Errorf("round %d: %d resets", round, n)
		}
	}
}
