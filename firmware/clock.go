// SPDX-License-Identifier: Apache-2.0

package firmware

import (
	"sync"
	"time"
)

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

// when is a time of this clock as one of the source, at least 1; 0: a clock
// that stands still does not reach it by itself.
func (c *policyClock) when(t uint64) time.Duration {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.manual || int64(t-c.shift) > 1<<62 {
		return 0
	}
	return max(time.Duration(t-c.shift), 1)
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

// step moves a manual clock by ns; a real one is left alone.
func (c *policyClock) step(ns uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.manual {
		c.stand += ns
	}
}

// reset makes the clock real and without a shift.
func (c *policyClock) reset() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.manual, c.stand, c.shift = false, 0, 0
}
