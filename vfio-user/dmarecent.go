// SPDX-License-Identifier: Apache-2.0

package vfiouser

import "sync/atomic"

const (
	recentLog2  = 10 // of the slots for what was found lately
	recentAfter = 64 // look-ups in a version before it gets them
)

// version is the DMA map between two changes: the tree, which never changes, and
// what look-ups found in it lately. A device goes to the same few pages again and
// again, and most look-ups end here. What was found goes with its version, so
// that nothing in it can be older than the tree.
type version struct {
	tree    *page
	lookups atomic.Uint32 // while recent is nil
	recent  atomic.Pointer[[1 << recentLog2]atomic.Pointer[mapping]]
}

// find returns the mapping that holds a.
func (v *version) find(a uint64) *mapping {
	recent := v.recent.Load()
	if recent == nil {
		// A version that lives for few look-ups is not worth the memory.
		if v.lookups.Add(1) == recentAfter {
			v.recent.Store(new([1 << recentLog2]atomic.Pointer[mapping]))
		}
		return v.tree.find(a)
	}
	slot := &recent[a/pageSize*0x9e3779b97f4a7c15>>(64-recentLog2)] // Fibonacci hashing
	if m := slot.Load(); m != nil && m.iova <= a && a <= m.last {
		return m
	}
	m := v.tree.find(a)
	if m != nil {
		slot.Store(m)
	}
	return m
}
