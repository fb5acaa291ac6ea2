// SPDX-License-Identifier: Apache-2.0

package spans

import (
	"math/rand/v2"
	"testing"
)

func TestSet(t *testing.T) {
	s := New(0x2000, 0x4000) // four pages
	take := func(n, want uint64, fits bool) {
		t.Helper()
		if at, ok := s.Take(n); at != want || ok != fits {
			t.Errorf("take %#x: %#x, %v; want %#x, %v", n, at, ok, want, fits)
		}
	}
	take(1, 0x2000, true)
	take(0x1001, 0x3000, true)
	take(0x1001, 0, false)
	take(0, 0, false)
	take(1<<64-1, 0, false)
	if n, ok := s.Give(0x3000); n != 0x2000 || !ok {
		t.Errorf("give: %#x, %v", n, ok)
	}
	if _, ok := s.Give(0x3000); ok {
		t.Error("gave twice")
	}
	take(0x3000, 0x3000, true)
	s.Give(0x2000)
	s.Give(0x3000)
	take(0x4000, 0x2000, true)
}

// TestSetRandom: pieces in use never overlap, and when all are given back the
// range is whole.
func TestSetRandom(t *testing.T) {
	const first, size = 1 << 32, 64 * pageSize
	rng := rand.New(rand.NewPCG(1, 1))
	s := New(first, size)
	type piece struct{ at, n uint64 }
	var in []piece
	for range 5000 {
		if len(in) > 0 && rng.IntN(2) == 0 {
			i := rng.IntN(len(in))
			if n, ok := s.Give(in[i].at); !ok || n != in[i].n {
				t.Fatalf("give %#x: %#x, %v; want %#x", in[i].at, n, ok, in[i].n)
			}
			in[i] = in[len(in)-1]
			in = in[:len(in)-1]
			continue
		}
		n := (1 + rng.Uint64N(8)) * pageSize
		at, ok := s.Take(n)
		if !ok {
			continue
		}
		if at < first || at+n > first+size {
			t.Fatalf("[%#x, +%#x) lies outside", at, n)
		}
		for _, p := range in {
			if at < p.at+p.n && p.at < at+n {
				t.Fatalf("[%#x, +%#x) overlaps [%#x, +%#x)", at, n, p.at, p.n)
			}
		}
		in = append(in, piece{at, n})
	}
	for _, p := range in {
		s.Give(p.at)
	}
	if at, ok := s.Take(size); at != first || !ok {
		t.Errorf("all given back: %#x, %v", at, ok)
	}
}
