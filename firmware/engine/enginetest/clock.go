// SPDX-License-Identifier: Apache-2.0

package enginetest

import (
	"sync"
	"time"

	"toebox/firmware/engine"
)

// Clock is an [engine.Clock] that stands still until [Clock.Advance] moves it.
type Clock struct {
	mu     sync.Mutex
	now    time.Time
	serial uint64
	timers map[*timer]struct{}
}

var _ engine.Clock = (*Clock)(nil)

// NewClock returns a clock that shows the start of the year 2000.
func NewClock() *Clock {
	return &Clock{now: time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC), timers: make(map[*timer]struct{})}
}

// Now returns the clock's time.
func (c *Clock) Now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.now
}

type timer struct {
	clock  *Clock
	due    time.Time
	serial uint64 // orders timers that are due at the same time
	f      func()
}

// AfterFunc calls f within the Advance that reaches its time.
func (c *Clock) AfterFunc(d time.Duration, f func()) engine.Timer {
	t := &timer{clock: c, f: f}
	t.Reset(d)
	return t
}

// Stop prevents the call.
func (t *timer) Stop() bool {
	t.clock.mu.Lock()
	defer t.clock.mu.Unlock()
	_, pending := t.clock.timers[t]
	delete(t.clock.timers, t)
	return pending
}

// Reset arms the timer anew.
func (t *timer) Reset(d time.Duration) {
	c := t.clock
	c.mu.Lock()
	defer c.mu.Unlock()
	c.serial++
	t.serial, t.due = c.serial, c.now.Add(max(d, 0))
	c.timers[t] = struct{}{}
}

// Due says whether a timer is due d from now.
func (c *Clock) Due(d time.Duration) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	for t := range c.timers {
		if t.due.Equal(c.now.Add(d)) {
			return true
		}
	}
	return false
}

// Advance moves the clock and calls what becomes due, in order, on the
// caller's goroutine.
func (c *Clock) Advance(d time.Duration) {
	c.mu.Lock()
	end := c.now.Add(d)
	for {
		var next *timer
		for t := range c.timers {
			if t.due.After(end) || next != nil && (t.due.After(next.due) || t.due.Equal(next.due) && t.serial > next.serial) {
				continue
			}
			next = t
		}
		if next == nil {
			break
		}
		delete(c.timers, next)
		if next.due.After(c.now) {
			c.now = next.due
		}
		c.mu.Unlock()
		next.f()
		c.mu.Lock()
	}
	c.now = end
	c.mu.Unlock()
}
