// SPDX-License-Identifier: Apache-2.0

package firmware

import (
	"fmt"
	"math/bits"
	"math/rand/v2"
	"slices"
	"testing"

	"toebox/vdev/abi"
)

// listed is a connection in the list that TestBulkOrder keeps beside.
type listed struct {
	conn    *conn
	place   int32
	rank    uint8
	since   uint64
	starved uint64
	number  int // of its coming to the list
	ranked  int // of its coming to the rank
}

// TestBulkOrder compares the list with one that is searched from end to end, over
// comings, goings, turns and changes by seed.
func TestBulkOrder(t *testing.T) {
	for seed := range uint64(20) {
		rng := rand.New(rand.NewPCG(seed, 1))
		var b bulk
		var all []*listed
		now, number := uint64(0), 0
		patience := func() uint64 { return []uint64{0, 5, 20, 20, 1 << 62, never}[rng.IntN(6)] }
		for step := range 5000 {
			now += rng.Uint64N(3)
			number++
			pick := func() int { return rng.IntN(len(all)) }
			switch op := rng.IntN(10); {
			case op < 4 || len(all) == 0:
				e := &listed{conn: new(conn), rank: uint8(rng.IntN(numRanks)), since: now, number: number, ranked: number}
				p := patience()
				e.starved = after(now, p)
				e.place = b.add(e.conn, e.rank, now, p)
				all = append(all, e)
			case op < 5:
				i := pick()
				b.remove(all[i].place)
				all = slices.Delete(all, i, i+1)
			case op < 6:
				e := all[pick()]
				rank, p := uint8(rng.IntN(numRanks)), patience()
				if rank != e.rank {
					e.rank, e.ranked = rank, number
				}
				e.starved = after(e.since, p)
				b.change(e.place, rank, p)
			default:
				want := slices.MinFunc(all, func(x, y *listed) int {
					if x.rank != y.rank {
						return int(y.rank) - int(x.rank)
					}
					return x.ranked - y.ranked
				})
				lower := slices.ContainsFunc(all, func(e *listed) bool { return e.rank < want.rank })
				plain := slices.ContainsFunc(all, func(e *listed) bool { return e.rank < expedited })
				why, before := abi.CounterTurnsPriority, lower
				if want.rank >= expedited && plain {
					why = abi.CounterTurnsExpedited
					// A rank below that is expedited, too, stands between.
					if slices.ContainsFunc(all, func(e *listed) bool { return e.rank < want.rank && e.rank >= expedited }) {
						why = abi.CounterTurnsPriority
					}
				}
				hungry := slices.MinFunc(all, func(x, y *listed) int {
					switch {
					case x.starved < y.starved:
						return -1
					case x.starved > y.starved:
						return 1
					}
					return x.number - y.number
				})
				if hungry.starved <= now && hungry != want {
					want, why, before = hungry, abi.CounterTurnsStarved, true
				}
				i, gotWhy, gotBefore := b.next(now)
				if b.places[i].conn != want.conn || gotBefore != before || before && gotWhy != why {
					t.Fatalf("seed %d, step %d: place %d for %v (%v), want place %d for %v (%v)",
						seed, step, i, gotWhy, gotBefore, want.place, why, before)
				}
				b.remove(i)
				all = slices.DeleteFunc(all, func(e *listed) bool { return e == want })
			}
			if b.len() != len(all) {
				t.Fatalf("seed %d, step %d: %d in the list, want %d", seed, step, b.len(), len(all))
			}
		}
		for _, e := range all {
			b.remove(e.place)
		}
		if b.len() != 0 || b.used != 0 || slices.ContainsFunc(b.places, func(p bulkPlace) bool { return p.conn != nil }) {
			t.Fatalf("seed %d: the empty list is not empty", seed)
		}
	}
}

// BenchmarkBulk measures a turn, with many connections of mixed priorities of
// which some starve.
func BenchmarkBulk(b *testing.B) {
	for _, n := range []int{1, 100, 10_000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			var l bulk
			conns := make([]conn, n)
			for i := range conns {
				l.add(&conns[i], uint8(bits.Reverse8(uint8(i))>>5), uint64(i), uint64(n))
			}
			b.ReportAllocs()
			now := uint64(n)
			for b.Loop() {
				i, _, _ := l.next(now)
				c, rank := l.places[i].conn, l.places[i].rank
				l.remove(i)
				l.add(c, rank, now, uint64(n))
				now++
			}
		})
	}
}
