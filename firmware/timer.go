// SPDX-License-Identifier: Apache-2.0

package firmware

import "time"

// timers is a heap of connections by their next time limit: of the handshake,
// of the listener, or of the linger. A connection has at most one.
type timers []*conn

// set arms or moves the limit of c.
func (t *timers) set(c *conn, when time.Duration) {
	c.when = when
	if c.timer == 0 {
		*t = append(*t, c)
		c.timer = len(*t)
	}
	t.fix(c.timer - 1)
}

// clear disarms c.
func (t *timers) clear(c *conn) {
	if c.timer == 0 {
		return
	}
	h := *t
	i, last := c.timer-1, len(h)-1
	h[i] = h[last]
	h[i].timer = i + 1
	h[last] = nil
	*t = h[:last]
	c.timer = 0
	if i < last {
		t.fix(i)
	}
}

// next returns the connection whose limit comes first, or nil.
func (t timers) next() *conn {
	if len(t) == 0 {
		return nil
	}
	return t[0]
}

func (t timers) fix(i int) {
	for i > 0 && t[i].when < t[(i-1)/2].when {
		t.swap(i, (i-1)/2)
		i = (i - 1) / 2
	}
	for {
		least := i
		for k := 2*i + 1; k <= 2*i+2 && k < len(t); k++ {
			if t[k].when < t[least].when {
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

func (t timers) swap(i, k int) {
	t[i], t[k] = t[k], t[i]
	t[i].timer, t[k].timer = i+1, k+1
}
