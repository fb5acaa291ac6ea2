// SPDX-License-Identifier: Apache-2.0

package firmware

import (
	"sync/atomic"

	"toebox/firmware/engine"
	"toebox/vdev/abi"
)

// Counters are the counters of SPEC.md §13. Each queue adds to a shard of its
// own, all others to a common one; reading sums. Gauges and the engine's
// totals are looked up when read.
type Counters struct {
	shards      [1 + abi.MaxQueues]counterShard
	connections atomic.Int64
	peak        atomic.Int64
	memory      *memory
	stats       func() engine.Stats
}

// counterShard is a whole number of cache lines, and one more against false
// sharing with its neighbour.
type counterShard struct {
	n [abi.NumCounters]atomic.Uint64
	_ [64]byte
}

// Add adds n to a counter.
func (c *Counters) Add(i abi.Counter, n uint64) {
	if i >= 0 && i < abi.NumCounters {
		c.shards[0].n[i].Add(n)
	}
}

// Load returns a counter; an unknown one is 0.
func (c *Counters) Load(i abi.Counter) uint64 {
	switch i {
	case abi.CounterConnections:
		return uint64(max(0, c.connections.Load()))
	case abi.CounterConnectionsPeak:
		return uint64(max(0, c.peak.Load()))
	case abi.CounterMemoryUsed:
		return c.memory.load()
	case abi.CounterFramesSent, abi.CounterFramesReceived, abi.CounterFramesDropped,
		abi.CounterSegmentsSent, abi.CounterSegmentsReceived, abi.CounterRetransmits, abi.CounterSegmentsRefused, abi.CounterBacklogDrops:
		s := c.stats()
		return engineCounter(i, &s)
	}
	if i == abi.CounterDatagramsDropped {
		return c.sum(i) + c.stats().DatagramsDropped
	}
	if i < 0 || i >= abi.NumCounters {
		return 0
	}
	return c.sum(i)
}

// Snapshot returns all counters in the order of SPEC.md §13. It is not atomic
// over them.
func (c *Counters) Snapshot() [abi.NumCounters]uint64 {
	var out [abi.NumCounters]uint64
	s := c.stats()
	for i := range abi.Counter(abi.NumCounters) {
		if i >= abi.CounterFramesSent && i <= abi.CounterRetransmits {
			out[i] = engineCounter(i, &s)
		} else {
			out[i] = c.Load(i)
		}
	}
	return out
}

func (c *Counters) sum(i abi.Counter) uint64 {
	var n uint64
	for s := range c.shards {
		n += c.shards[s].n[i].Load()
	}
	return n
}

// connection notes one connection more or less.
func (c *Counters) connection(delta int64) {
	n := c.connections.Add(delta)
	for p := c.peak.Load(); n > p && !c.peak.CompareAndSwap(p, n); p = c.peak.Load() {
	}
}

func engineCounter(i abi.Counter, s *engine.Stats) uint64 {
	switch i {
	case abi.CounterFramesSent:
		return s.FramesSent
	case abi.CounterFramesReceived:
		return s.FramesReceived
	case abi.CounterFramesDropped:
		return s.FramesDropped
	case abi.CounterSegmentsSent:
		return s.SegmentsSent
	case abi.CounterSegmentsReceived:
		return s.SegmentsReceived
	case abi.CounterRetransmits:
		return s.Retransmits
	case abi.CounterBacklogDrops:
		return s.ListenOverflows
	case abi.CounterSegmentsRefused:
		return s.SegmentsRefused
	}
	return 0
}
