// SPDX-License-Identifier: Apache-2.0

package firmware

import (
	"sync/atomic"

	"toebox/firmware/engine"
)

// What is charged to adapter memory (SPEC.md §14), in bytes.
const (
	connectionCharge = 8 << 10
	listenerCharge   = 8 << 10
	requestCharge    = 64
	targetCharge     = 32 // of a termination or cancellation, but the first
)

// memory is the account of adapter memory (CE03): what is charged, and received
// payload that the engine holds.
type memory struct {
	used   atomic.Int64
	limit  atomic.Int64  // MEMORY_SIZE
	engine engine.Holder // nil: it does not tell
}

// charge takes n bytes, or none and reports false.
func (m *memory) charge(n int) bool { return m.take(n, m.payload()) }

// admit is charge for what lets the host take payload out of the adapter: that
// must not wait for payload to go.
func (m *memory) admit(n int) bool { return m.take(n, 0) }

func (m *memory) take(n int, payload int64) bool {
	if m.used.Add(int64(n))+payload > m.limit.Load() {
		m.used.Add(-int64(n))
		return false
	}
	return true
}

func (m *memory) release(n int) { m.used.Add(-int64(n)) }

// payload is what the engine holds.
func (m *memory) payload() int64 {
	if m.engine == nil {
		return 0
	}
	return max(0, m.engine.Held())
}

func (m *memory) load() uint64 { return uint64(max(0, m.used.Load()) + m.payload()) }
