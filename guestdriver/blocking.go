// SPDX-License-Identifier: Apache-2.0

package guestdriver

import (
	"sync"
	"time"
)

// blocking is what calls of a connection wait with.
type blocking struct {
	mu           sync.Mutex
	rcond, wcond sync.Cond // of readers and writers
	rdl, wdl     deadline
	closed       bool
}

// ready is called once, before anybody waits.
func (b *blocking) ready() { b.rcond.L, b.wcond.L = &b.mu, &b.mu }

// moveDeadlines sets the deadlines of one or both directions. It reports false
// when the connection is closed.
func (b *blocking) moveDeadlines(t time.Time, rd, wr bool) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.closed {
		return false
	}
	if rd {
		b.rdl.setLocked(&b.mu, &b.rcond, t)
	}
	if wr {
		b.wdl.setLocked(&b.mu, &b.wcond, t)
	}
	return true
}

// deadline is one direction's deadline; the lock of its blocking protects it.
type deadline struct {
	timer   *time.Timer
	epoch   int // counts the settings, so that a late timer does nothing
	expired bool
}

// setLocked moves a deadline and wakes who waits under it when it is past.
func (d *deadline) setLocked(mu *sync.Mutex, cond *sync.Cond, t time.Time) {
	if d.timer != nil {
		d.timer.Stop()
		d.timer = nil
	}
	d.epoch++
	d.expired = false
	if t.IsZero() {
		return
	}
	left := time.Until(t)
	if left <= 0 {
		d.expired = true
		cond.Broadcast()
		return
	}
	epoch := d.epoch
	d.timer = time.AfterFunc(left, func() {
		mu.Lock()
		defer mu.Unlock()
		if d.epoch == epoch {
			d.expired = true
			cond.Broadcast()
		}
	})
}
