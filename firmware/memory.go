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

// memory is the account of adapter memory (CE03).
type memory struct {
	used  atomic.Int64
	limit atomic.Int64 // MEMORY_SIZE
}

// charge takes n bytes, or none and reports false.
func (m *memory) charge(n int) bool {
	if m.used.Add(int64(n)) > m.limit.Load() {
		m.used.Add(-int64(n))
		return false
	}
	return true
}

func (m *memory) release(n int) { m.used.Add(-int64(n)) }

func (m *memory) load() uint64 { return uint64(max(0, m.used.Load())) }
