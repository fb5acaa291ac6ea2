// SPDX-License-Identifier: Apache-2.0

package vdev

import (
	"sync"
	"time"

	"toebox/vdev/abi"
)

// Log lines about guests: so many at once, and one more per interval.
const (
	logBurst    = 10
	logInterval = time.Second
)

// limiter is a token bucket for log lines that a guest can provoke.
type limiter struct {
	mu         sync.Mutex
	spent      int
	last       time.Duration
	suppressed uint64
}

// allow says whether a line may be logged at time now, and how many were
// suppressed since the last one.
func (l *limiter) allow(now time.Duration) (suppressed uint64, ok bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if earned := int((now - l.last) / logInterval); earned > 0 {
		l.spent = max(0, l.spent-earned)
		l.last += time.Duration(earned) * logInterval
	}
	if l.spent >= logBurst {
		l.suppressed++
		return 0, false
	}
	l.spent++
	suppressed, l.suppressed = l.suppressed, 0
	return suppressed, true
}

// misbehaves logs what a guest did wrong.
func (f *Function) misbehaves(msg string, args ...any) {
	suppressed, ok := f.limit.allow(f.clock())
	if !ok {
		return
	}
	if suppressed > 0 {
		args = append(args, "suppressed", suppressed)
	}
	f.log.Warn(msg, args...)
}

func (f *Function) badAccess(op string, offset uint64, n int) {
	f.count(abi.CounterMMIOBadAccess)
	f.misbehaves("register access that is not 32 bits wide and aligned", "op", op, "offset", offset, "size", n)
}

func (f *Function) badValue(register string, v uint32) {
	f.count(abi.CounterMMIOBadValue)
	f.misbehaves("register value out of range", "register", register, "value", v)
}
