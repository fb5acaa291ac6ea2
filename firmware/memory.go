// SPDX-License-Identifier: Apache-2.0

package firmware

import "sync/atomic"

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
	charged atomic.Int64
	used    atomic.Int64 // MEMORY_USED: what is charged, and payload
	limit   atomic.Int64 // MEMORY_SIZE
}

// charge takes n bytes, or none and reports false.
func (m *memory) charge(n int) bool {
	for {
		used := m.used.Load()
		if used+int64(n) > m.limit.Load() {
			return false
		}
		if m.used.CompareAndSwap(used, used+int64(n)) {
			m.charged.Add(int64(n))
			return true
		}
	}
}

// admit is charge for what lets the host take payload out of the adapter: that
// must not wait for payload to go.
func (m *memory) admit(n int) bool {
	if m.charged.Add(int64(n)) > m.limit.Load() {
		m.charged.Add(-int64(n))
		return false
	}
	m.used.Add(int64(n))
	return true
}

func (m *memory) release(n int) {
	m.charged.Add(-int64(n))
	m.used.Add(-int64(n))
}

// hold takes up to n bytes for payload, as far as no more than a mark is used then.
func (m *memory) hold(n int, mark int64) int {
	for {
		used := m.used.Load()
		k := min(int64(n), mark-used)
		if k <= 0 {
			return 0
		}
		if m.used.CompareAndSwap(used, used+k) {
			return int(k)
		}
	}
}

// leave gives back n bytes of payload.
func (m *memory) leave(n int) { m.used.Add(-int64(n)) }

func (m *memory) load() uint64 { return uint64(max(0, m.used.Load())) }
