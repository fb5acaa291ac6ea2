// SPDX-License-Identifier: Apache-2.0

package vfiouser

import (
	"sync"
	"sync/atomic"
	"time"
)

// readerShards spreads the counters of readers over cache lines.
const readerShards = 8

// readers counts the accesses that are running, so that whoever takes a map
// away can wait for those that may still use it, and for no others.
//
// A reader counts itself and then loads the map, so that whoever has the old map
// was counted before the new one was published: once a counter has been zero
// after that, none of those it counts has the old map. As one counter might
// never be zero under load, there are two, and readers to come are sent to the
// one that is not being waited for.
type readers struct {
	phase   atomic.Uint64
	waiting atomic.Bool
	near    sync.Pool // of *readerShard, so that a processor stays with one
	next    atomic.Uint32
	wake    chan struct{} // capacity 1
	shards  [readerShards]readerShard
}

type readerShard struct {
	running [2]atomic.Int64 // by parity of the phase
	_       [112]byte       // two cache lines: neighbours are fetched in pairs
}

// enter starts an access and returns what leave needs.
func (r *readers) enter() *atomic.Int64 {
	// Any shard will do, but one that another processor has just written to is
	// far away.
	s, _ := r.near.Get().(*readerShard)
	if s == nil {
		s = &r.shards[r.next.Add(1)%readerShards]
	}
	r.near.Put(s)
	c := &s.running[r.phase.Load()&1]
	c.Add(1)
	return c
}

// leave ends an access.
func (r *readers) leave(c *atomic.Int64) {
	if c.Add(-1) == 0 && r.waiting.Load() {
		select {
		case r.wake <- struct{}{}:
		default:
		}
	}
}

// wait returns once no access is running that began before the call, or false
// when the time is up. Calls must not overlap.
func (r *readers) wait(timeout time.Duration) bool {
	if !r.idle(0) || !r.idle(1) {
		r.waiting.Store(true)
		defer r.waiting.Store(false)
		timer := time.NewTimer(timeout)
		defer timer.Stop()
		// First the parity that no reader is sent to now: a wait that timed out
		// may have left some there, as may one who read the phase long ago.
		p := r.phase.Load()
		if !r.drain((p+1)&1, timer) {
			return false
		}
		r.phase.Add(1)
		return r.drain(p&1, timer)
	}
	return true
}

// drain waits until no reader is counted under the parity.
func (r *readers) drain(parity uint64, timer *time.Timer) bool {
	for !r.idle(parity) {
		select {
		case <-r.wake:
		case <-timer.C:
			timer.Reset(0) // for the next drain
			return r.idle(parity)
		}
	}
	return true
}

// idle reports whether each shard was seen without a reader of the parity.
func (r *readers) idle(parity uint64) bool {
	for i := range r.shards {
		if r.shards[i].running[parity].Load() != 0 {
			return false
		}
	}
	return true
}
