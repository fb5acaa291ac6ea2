// SPDX-License-Identifier: Apache-2.0

package firmware

import "testing"

// TestSpinWorth goes through what ends the waits of a worker, again and again, and says
// whether it looks before it sleeps then.
func TestSpinWorth(t *testing.T) {
	for _, c := range []struct {
		name, ends string // r: a request came in time, n: something else, -: nothing
		want       bool
	}{
		{"requests", "r", true},
		{"an exchange: the answer of the network, the next request", "nr", true},
		{"requests, some late", "rrr-", true},
		{"bytes of the network, buffers now and then", "nnnnnnr", false},
		{"nothing", "-", false},
		{"as often late as in time", "r--", false},
	} {
		for _, start := range []int{0, spinMost} {
			s := spin{worth: start}
			for i := range 60 * len(c.ends) {
				switch c.ends[i%len(c.ends)] {
				case 'r':
					s.hit()
				case 'n':
					s.other()
				case '-':
					s.miss()
				}
			}
			if got := s.worth >= spinEnough; got != c.want {
				t.Errorf("%s, from %d: looks: %t (%d)", c.name, start, got, s.worth)
			}
		}
	}
}
