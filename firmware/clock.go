// SPDX-License-Identifier: Apache-2.0

package firmware

import (
	"sync"
	"time"
)

// endOfTime is how far steps move the policy clock, in ns (SPEC.md §12). What is
// as far away again does not come.
const endOfTime = 1 << 61

// policyClock is the clock that policies read (SPEC.md §12): real, or standing
// still and moved by steps.
type policyClock struct {
	source func() time.Duration

	mu     sync.Mutex
	manual bool
	stand  uint64 // ns, while manual
	shift  uint64 // ns to add to the source, while real
}

func (c *policyClock) now() uint64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.nowLocked()
}

func (c *policyClock) nowLocked() uint64 {
	if c.manual {
		return c.stand
	}
	return uint64(c.source()) + c.shift
}

// at is the time of this clock at a time of the source that was read before.
func (c *policyClock) at(source time.Duration) uint64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.manual {
		return c.stand
	}
	return uint64(source) + c.shift
}

// when is a time of this clock as one of the source, at least 1; 0: a clock
// that stands still does not reach it by itself.
func (c *policyClock) when(t uint64) time.Duration {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.manual {
		return 0
	}
	source := c.source()
	now := uint64(source) + c.shift
	switch left := t - now; {
	case t <= now:
		return 1
	case left < endOfTime:
		return source + time.Duration(left)
	}
	return 0
}

// set switches the mode; the time goes on from where it is.
func (c *policyClock) set(manual bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.manual == manual {
		return
	}
	now := c.nowLocked()
	c.manual = manual
	c.stand = now
	c.shift = now - uint64(c.source())
}

// step moves a manual clock by ns, not beyond its end; a real one is left alone.
func (c *policyClock) step(ns uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.manual && c.stand < endOfTime {
		c.stand += min(ns, endOfTime-c.stand)
	}
}

// alarmAt is when an alarm goes off that is set on this clock.
func alarmAt(t uint64) time.Duration { return time.Duration(min(t, maxTime)) }

// reset makes the clock real and without a shift.
func (c *policyClock) reset() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.manual, c.stand, c.shift = false, 0, 0
}
