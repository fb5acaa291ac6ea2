// SPDX-License-Identifier: Apache-2.0

package port

import (
	"sync"
	"time"
)

// Log lines that an adapter or a client can provoke: so many at once, and one
// more per interval.
const (
	logBurst    = 10
	logInterval = time.Second
)

// limiter is a token bucket for log lines.
type limiter struct {
	mu         sync.Mutex
	spent      int
	last       time.Time
	suppressed uint64
}

// allow says whether a line may be logged at time now, and how many were
// suppressed since the last one.
func (l *limiter) allow(now time.Time) (suppressed uint64, ok bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.last.IsZero() {
		l.last = now
	}
	if earned := now.Sub(l.last) / logInterval; earned > 0 {
		l.spent = int(max(0, time.Duration(l.spent)-earned))
		l.last = l.last.Add(earned * logInterval)
	}
	if l.spent >= logBurst {
		l.suppressed++
		return 0, false
	}
	l.spent++
	suppressed, l.suppressed = l.suppressed, 0
	return suppressed, true
}

// warn logs what went wrong, and how often it was not said.
func (n *NAT) warn(msg string, args ...any) {
	suppressed, ok := n.limit.allow(n.cfg.Clock.Now())
	if !ok {
		return
	}
	if suppressed > 0 {
		args = append(args, "suppressed", suppressed)
	}
	n.log.Warn(msg, args...)
}
