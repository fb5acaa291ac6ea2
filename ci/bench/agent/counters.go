// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"bufio"
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"toebox/ci/bench/task"
)

// tick is the unit of /proc/stat (USER_HZ).
const tick = 10 * time.Millisecond

// counters are readings at one instant.
type counters struct {
	at                    time.Time
	processors            int
	idle                  time.Duration // of all processors, since the start
	own                   time.Duration
	interrupts, doorbells uint64
}

// read takes the counters that tell what a side costs.
func (a *Agent) read(side task.Side) (c counters, err error) {
	stat, err := os.ReadFile(filepath.Join(a.cfg.Proc, "stat"))
	if err != nil {
		return c, err
	}
	list, err := os.ReadFile(filepath.Join(a.cfg.Proc, "interrupts"))
	if err != nil {
		return c, err
	}
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		return c, err
	}
	c.at = time.Now()
	c.own = time.Duration(u.Utime.Nano() + u.Stime.Nano())
	if c.idle, c.processors, err = idle(stat); err != nil {
		return c, err
	}
	c.interrupts = interrupts(list, a.bdf[side])
	switch {
	case a.signals != nil:
		c.doorbells = a.signals()
	case side == task.Adapter:
		s := a.adapter.Stats()
		c.doorbells = s.DoorbellsIn + s.DoorbellsOut
	}
	return c, nil
}

// since is what happened between two readings.
func (c counters) since(b counters) task.Result {
	elapsed := c.at.Sub(b.at)
	return task.Result{
		Elapsed: elapsed, Own: c.own - b.own,
		// Idle time comes in ticks: it may be a little more than there was.
		Busy:       max(time.Duration(c.processors)*elapsed-(c.idle-b.idle), 0),
		Interrupts: c.interrupts - b.interrupts, Doorbells: c.doorbells - b.doorbells,
	}
}

// idle reads how long processors had nothing to do, and how many there are, from
// /proc/stat (proc_stat(5)).
func idle(stat []byte) (sum time.Duration, processors int, err error) {
	for line := range bytes.Lines(stat) {
		f := strings.Fields(string(line))
		if len(f) < 6 || !strings.HasPrefix(f[0], "cpu") {
			continue
		}
		if f[0] != "cpu" {
			processors++
			continue
		}
		for _, column := range f[4:6] { // idle, iowait
			n, err := strconv.ParseUint(column, 10, 63)
			if err != nil {
				return 0, 0, fmt.Errorf("/proc/stat: %w", err)
			}
			sum += time.Duration(n) * tick
		}
	}
	if processors == 0 {
		return 0, 0, fmt.Errorf("/proc/stat names no processor")
	}
	return sum, processors, nil
}

// interrupts adds up, from /proc/interrupts, those of one PCI function, on all
// processors. A function that is not there has none.
func interrupts(list []byte, bdf string) (sum uint64) {
	if bdf == "" {
		return 0
	}
	lines := bufio.NewScanner(bytes.NewReader(list))
	for lines.Scan() {
		if !strings.Contains(lines.Text(), bdf) {
			continue
		}
		for _, f := range strings.Fields(lines.Text())[1:] {
			n, err := strconv.ParseUint(f, 10, 64)
			if err != nil {
				break // the counts are over, names follow
			}
			sum += n
		}
	}
	return sum
}
