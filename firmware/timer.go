// SPDX-License-Identifier: Apache-2.0

package firmware

import "time"

// alarm is embedded in what waits for a time; it has at most one.
type alarm struct {
	when  time.Duration
	timer int // 1 + place in the heap, 0: not armed
}

func (a *alarm) itself() *alarm { return a }

type alarmed interface{ itself() *alarm }

// timers is a heap by time: connections by their time limit of the handshake,
// of the listener, or of the linger; notices by their ceiling.
type timers[T alarmed] []T

// set arms or moves the alarm of c.
func (t *timers[T]) set(c T, when time.Duration) {
	a := c.itself()
	a.when = when
	if a.timer == 0 {
		*t = append(*t, c)
		a.timer = len(*t)
	}
	t.fix(a.timer - 1)
}

// clear disarms c.
func (t *timers[T]) clear(c T) {
	a := c.itself()
	if a.timer == 0 {
		return
	}
	var none T
	h := *t
	i, last := a.timer-1, len(h)-1
	h[i] = h[last]
	h[i].itself().timer = i + 1
	h[last] = none
	*t = h[:last]
	a.timer = 0
	if i < last {
		t.fix(i)
	}
}

// next returns whose alarm comes first; nil, or the zero T, without any.
func (t timers[T]) next() (first T) {
	if len(t) > 0 {
		first = t[0]
	}
	return first
}

func (t timers[T]) at(i int) time.Duration { return t[i].itself().when }

func (t timers[T]) fix(i int) {
	for i > 0 && t.at(i) < t.at((i-1)/2) {
		t.swap(i, (i-1)/2)
		i = (i - 1) / 2
	}
	for {
		least := i
		for k := 2*i + 1; k <= 2*i+2 && k < len(t); k++ {
			if t.at(k) < t.at(least) {
				least = k
			}
		}
		if least == i {
			return
		}
		t.swap(i, least)
		i = least
	}
}

func (t timers[T]) swap(i, k int) {
	t[i], t[k] = t[k], t[i]
	t[i].itself().timer, t[k].itself().timer = i+1, k+1
}
