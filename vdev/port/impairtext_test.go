// SPDX-License-Identifier: Apache-2.0

package port

import (
	"testing"
	"time"
)

func TestParseImpairments(t *testing.T) {
	lossy := Rules{Loss: 0.05}
	for s, want := range map[string]Impairments{
		"":           {},
		"none":       {},
		"loss=0%":    {},
		"loss=5%":    {ToAdapter: lossy, FromAdapter: lossy},
		"to.loss=5%": {ToAdapter: lossy},
		"from.loss=0.05,seed=18446744073709551615": {FromAdapter: lossy, Seed: 1<<64 - 1},
		"loss=1,to.loss=5%,from.loss=5%":           {ToAdapter: lossy, FromAdapter: lossy},
		"from.reorder=25%":                         {FromAdapter: Rules{Reorder: 0.25, ReorderBy: time.Millisecond}},
		"to.delay=10ms,to.jitter=500us,to.rate=3M,to.corrupt=50%,to.duplicate=100%,to.reorderby=2s,to.reorder=1": {ToAdapter: Rules{
			Delay: 10 * time.Millisecond, Jitter: 500 * time.Microsecond, Rate: 3_000_000, Corrupt: 0.5, Duplicate: 1,
			Reorder: 1, ReorderBy: 2 * time.Second,
		}},
		"to.rate=7,from.rate=8k": {ToAdapter: Rules{Rate: 7}, FromAdapter: Rules{Rate: 8000}},
	} {
		im, err := ParseImpairments(s)
		if err != nil || im != want {
			t.Errorf("%q: %+v, %v; want %+v", s, im, err, want)
		}
		again, err := ParseImpairments(im.String())
		if im.ToAdapter.none() && im.FromAdapter.none() {
			im.Seed = 0
		}
		if err != nil || again != im {
			t.Errorf("%q printed as %q: %+v, %v; want %+v", s, im.String(), again, err, im)
		}
	}
	for _, s := range []string{
		"loss", "loss=", "loss=x", "loss=101%", "loss=-1%", "loss=NaN", "delay=5", "delay=-1s", "delay=2h", "jitter=2h", "reorderby=2h",
		"rate=-1", "rate=1T", "rate=10000000000G", "seed=-1", "seed=1,", ",", "up.loss=1%", "to.seed=1", "to.to.loss=1%", "loss=1%;seed=1",
	} {
		if im, err := ParseImpairments(s); err == nil {
			t.Errorf("%q: %+v, want an error", s, im)
		}
	}
}
