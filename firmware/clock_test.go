// SPDX-License-Identifier: Apache-2.0

package firmware

import (
	"math"
	"testing"
	"time"

	"toebox/vdev/abi"
)

// TestPolicyClockWhen: what comes, what has come and what never does, also of a
// clock that steps have moved as far as they can.
func TestPolicyClockWhen(t *testing.T) {
	source := 5 * time.Second
	for _, c := range []struct {
		name  string
		steps []uint64
		t     uint64 // from now on
		want  time.Duration
	}{
		{"now", nil, 0, 1},
		{"soon", nil, 7, source + 7},
		{"in a year", nil, uint64(365 * 24 * time.Hour), source + 365*24*time.Hour},
		{"the largest time that can be set", nil, math.MaxInt64, 0},
		{"never", nil, math.MaxUint64 - uint64(source), 0},
		{"soon, after a step", []uint64{1e9}, 7, source + 7},
		{"soon, after all steps", []uint64{math.MaxUint64, math.MaxUint64, 1 << 63}, 7, source + 7},
		{"the largest time, after all steps", []uint64{math.MaxUint64, math.MaxUint64}, math.MaxInt64, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			p := policyClock{source: func() time.Duration { return source }}
			p.set(true)
			for _, n := range c.steps {
				before := p.now()
				if p.step(n); p.now() < before {
					t.Fatalf("a step of %d took the clock from %d back to %d", n, before, p.now())
				}
			}
			at := after(p.now(), c.t)
			if got := p.when(at); got != 0 {
				t.Errorf("a clock that stands still comes to %d at %d", at, got)
			}
			p.set(false)
			if got := p.when(at); got != c.want {
				t.Errorf("%d at %d, want %d", at, got, c.want)
			}
		})
	}
}

// TestDeadlineInError: a queue whose tables went while connections leave it does
// not look at them again and again.
func TestDeadlineInError(t *testing.T) {
	q := &queue{state: abi.QueueDraining, leaving: leaving{active: true, limit: 7}}
	if got := q.deadline(); got != 7 {
		t.Errorf("while draining: %d, want 7", got)
	}
	q.held.n = holdLimit // until the host frees slots
	if got := q.deadline(); got != 0 {
		t.Errorf("with a full table: %d, want none", got)
	}
	q.held.n, q.state = 0, abi.QueueError
	if got := q.deadline(); got != 0 {
		t.Errorf("in error: %d, want none", got)
	}
}
