// SPDX-License-Identifier: Apache-2.0

package spans

import "slices"

const pageSize = 4096

// span is a free piece.
type span struct{ at, n uint64 }

// Set is a range of which pieces are in use.
type Set struct {
	free []span // by place, never adjacent
	used map[uint64]uint64
}

// New returns the range [at, at+n), all of it free.
func New(at, n uint64) *Set {
	return &Set{free: []span{{at, n}}, used: map[uint64]uint64{}}
}

// Take returns the place of n free bytes, rounded up to pages.
func (s *Set) Take(n uint64) (at uint64, ok bool) {
	n = (n + pageSize - 1) &^ (pageSize - 1)
	if n == 0 {
		return 0, false // nothing, or so much that it wrapped
	}
	for i := range s.free {
		f := &s.free[i]
		if f.n < n {
			continue
		}
		at = f.at
		f.at, f.n = f.at+n, f.n-n
		if f.n == 0 {
			s.free = slices.Delete(s.free, i, i+1)
		}
		s.used[at] = n
		return at, true
	}
	return 0, false
}

// Give frees the piece at a place of Take and returns its size in whole pages.
func (s *Set) Give(at uint64) (n uint64, ok bool) {
	n, ok = s.used[at]
	if !ok {
		return 0, false
	}
	delete(s.used, at)
	i, _ := slices.BinarySearchFunc(s.free, at, func(f span, at uint64) int {
		if f.at < at {
			return -1
		}
		return 1
	})
	s.free = slices.Insert(s.free, i, span{at, n})
	if i+1 < len(s.free) && s.free[i].at+s.free[i].n == s.free[i+1].at {
		s.free[i].n += s.free[i+1].n
		s.free = slices.Delete(s.free, i+1, i+2)
	}
	if i > 0 && s.free[i-1].at+s.free[i-1].n == s.free[i].at {
		s.free[i-1].n += s.free[i].n
		s.free = slices.Delete(s.free, i, i+1)
	}
	return n, true
}
