// SPDX-License-Identifier: Apache-2.0

package vm

import "time"

// How HostTSC measures.
const (
	tscInterval  = 10 * time.Millisecond // doubles with each try
	tscReadings  = 16                    // for each end, of which the shortest counts
	tscTries     = 6                     // on a machine that does not let us
	tscPrecision = 500                   // one part of so many is enough
)

// HostTSC measures how many kHz this machine's time stamp counter has: an emulated
// processor's is the same one. 0 means that it cannot be told.
//
// A guest's kernel that has to find out by itself, against timers that QEMU emulates,
// is wrong by factors when QEMU does not get to run all the time. Its clock is then as
// wrong for as long as it runs.
//
// What is measured while others have the processor is vague, but never none at all:
// the most precise try counts.
func HostTSC() int {
	return measureTSC(readTSC, func(d time.Duration) { <-time.After(d) })
}

// measureTSC is HostTSC with a clock and a counter of its own.
func measureTSC(read func() (at time.Time, count uint64, gap time.Duration), wait func(time.Duration)) (khz int) {
	most := 0.0
	for try := range tscTries {
		begin, first, gap1 := read()
		wait(tscInterval << try)
		end, last, gap2 := read()
		d := end.Sub(begin)
		if first >= last || d <= 0 {
			return 0
		}
		if precision := float64(d) / float64(max(gap1+gap2, 1)); precision > most {
			most, khz = precision, int(float64(last-first)*float64(time.Millisecond)/float64(d))
		}
		if most > tscPrecision {
			break
		}
	}
	return khz
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
