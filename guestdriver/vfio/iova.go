// SPDX-License-Identifier: Apache-2.0

package vfio

import (
	"cmp"
	"errors"
	"slices"
)

// IOVAs are given from 4 GiB upwards, clear of the holes that machines have
// below (the MSI area among them), and below the 39 bits that every IOMMU of
// interest translates, unless the kernel names other ranges.
const (
	iovaBase = 1 << 32
	iovaEnd  = 1<<39 - 1
)

var errNoIOVA = errors.New("vfio: no IOVAs left")

// iovas hands out IOVAs.
type iovas struct {
	ranges []iovaRange // what is left, in the order of use
}

// newIOVAs returns an allocator over what the kernel allows, nil if it does not
// say, and the function reaches, up to last.
func newIOVAs(allowed []iovaRange, last uint64) *iovas {
	switch {
	case len(allowed) == 0 && last < iovaBase:
		allowed = []iovaRange{{0, last}}
	case len(allowed) == 0:
		allowed = []iovaRange{{iovaBase, iovaEnd}}
	}
	var high, low []iovaRange
	for _, r := range allowed {
		r.end = min(r.end, last)
		if r.end < r.start {
			continue
		}
		if r.end >= iovaBase {
			high = append(high, iovaRange{max(r.start, iovaBase), r.end})
		}
		if r.start < iovaBase {
			// Not page 0: an address of 0 looks like none.
			low = append(low, iovaRange{max(r.start, 1<<20), min(r.end, iovaBase-1)})
		}
	}
	slices.SortFunc(high, byUse)
	slices.SortFunc(low, byUse)
	return &iovas{append(high, low...)}
}

// take returns size bytes of IOVAs at a multiple of align, a power of two.
func (a *iovas) take(size, align uint64) (uint64, error) {
	for i := range a.ranges {
		r := &a.ranges[i]
		start := (r.start + align - 1) &^ (align - 1)
		if start < r.start || start > r.end || r.end-start < size-1 {
			continue
		}
		if r.end-start == size-1 {
			a.ranges = slices.Delete(a.ranges, i, i+1)
		} else {
			r.start = start + size
		}
		return start, nil
	}
	return 0, errNoIOVA
}

// byUse orders ranges: those above 4 GiB first. None crosses that.
func byUse(a, b iovaRange) int {
	if a, b := a.start < iovaBase, b.start < iovaBase; a != b {
		if b {
			return -1
		}
		return 1
	}
	return cmp.Compare(a.start, b.start)
}

// give takes size bytes at start back, which take gave.
func (a *iovas) give(start, size uint64) {
	r := iovaRange{start, start + size - 1}
	i, _ := slices.BinarySearchFunc(a.ranges, r, byUse)
	if i < len(a.ranges) && r.end+1 == a.ranges[i].start && r.end+1 != iovaBase {
		r.end = a.ranges[i].end
		a.ranges = slices.Delete(a.ranges, i, i+1)
	}
	if i > 0 && a.ranges[i-1].end+1 == r.start && r.start != iovaBase {
		r.start = a.ranges[i-1].start
		i--
		a.ranges = slices.Delete(a.ranges, i, i+1)
	}
	a.ranges = slices.Insert(a.ranges, i, r)
}
