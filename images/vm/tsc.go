// SPDX-License-Identifier: Apache-2.0

package vm

import "time"

// How HostTSC measures.
const (
	tscInterval  = 10 * time.Millisecond
	tscReadings  = 16  // for each end, of which the shortest counts
	tscTries     = 5   // on a machine that does not let us
	tscPrecision = 500 // one part of so many
)

// HostTSC measures how many kHz this machine's time stamp counter has: an emulated
// processor's is the same one. 0 means that it cannot be told.
//
// A guest's kernel that has to find out by itself, against timers that QEMU emulates,
// is wrong by factors when QEMU does not get to run all the time. Its clock is then as
// wrong for as long as it runs.
func HostTSC() int {
	for range tscTries {
		begin, first, gap1 := readTSC()
		<-time.After(tscInterval)
		end, last, gap2 := readTSC()
		d := end.Sub(begin)
		if first >= last {
			return 0
		}
		if (gap1+gap2)*tscPrecision < d {
			return int(float64(last-first) * float64(time.Millisecond) / float64(d))
		}
	}
	return 0
}

// readTSC reads clock and counter as if at once, and says how long that took.
func readTSC() (at time.Time, count uint64, gap time.Duration) {
	for i := range tscReadings {
		t := time.Now()
		c := counter()
		if g := time.Since(t); i == 0 || g < gap {
			at, count, gap = t.Add(g/2), c, g
		}
	}
	return at, count, gap
}
