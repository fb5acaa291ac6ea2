// SPDX-License-Identifier: Apache-2.0

package firmware_test

import (
	"slices"
	"testing"

	"toebox/firmware/engine/enginetest"
	"toebox/vdev/abi"
)

const combine = 0x0245

const turn = 64 << 10 // SPEC.md §14.3

// covered is a response to deliveries: which buffer it names, by its place in the
// order of posts, the buffer of its base, and what it says.
type covered struct {
	last, first    int
	offset, length uint32
	flags          abi.Flags
}

// TestCombine delivers what waited into buffers and compares the responses with
// what SPEC.md §5.5 says.
func TestCombine(t *testing.T) {
	const final, combined = abi.FlagFinal, abi.FlagFinal | abi.FlagCombined
	type post struct {
		at, length, offset int // in the memory of the test
		bulk               bool
		skip               int // tags left out before
		flags              abi.Flags
	}
	for _, c := range []struct {
		name  string
		off   bool
		posts []post
		n     int
		want  []covered
		count uint64
	}{
		{"three", false, []post{{at: 0, length: 64}, {at: 64, length: 32}, {at: 96, length: 64}}, 160,
			[]covered{{2, 0, 0, 160, combined}}, 2},
		{"off", true, []post{{at: 0, length: 64}, {at: 64, length: 32}}, 96,
			[]covered{{0, 0, 0, 64, final}, {1, 1, 0, 32, final}}, 0},
		{"the last is not full", false, []post{{at: 0, length: 64}, {at: 64, length: 64}, {at: 128, length: 64}}, 130,
			[]covered{{1, 0, 0, 128, combined}, {2, 2, 0, 2, 0}}, 1},
		{"the last is not full, but final", false, []post{{at: 0, length: 64}, {at: 64, length: 64, flags: abi.FlagOnce}, {at: 128, length: 64}}, 70,
			[]covered{{1, 0, 0, 70, combined}}, 1},
		{"one that is final and not full is followed", false,
			[]post{{at: 0, length: 64, bulk: true}, {at: 64, length: 64, bulk: true}, {at: 128, length: 64, bulk: true}}, 100,
			[]covered{{1, 0, 0, 100, combined}}, 1},
		{"the first from an offset", false, []post{{at: 0, length: 64, offset: 60}, {at: 64, length: 64}}, 68,
			[]covered{{1, 0, 60, 68, combined}}, 1},
		{"another from an offset", false, []post{{at: 0, length: 64}, {at: 60, length: 64, offset: 4}}, 124,
			[]covered{{0, 0, 0, 64, final}, {1, 1, 4, 60, final}}, 0},
		{"a gap in memory", false, []post{{at: 0, length: 64}, {at: 65, length: 64}}, 128,
			[]covered{{0, 0, 0, 64, final}, {1, 1, 0, 64, final}}, 0},
		{"backwards", false, []post{{at: 64, length: 64}, {at: 0, length: 64}}, 128,
			[]covered{{0, 0, 0, 64, final}, {1, 1, 0, 64, final}}, 0},
		{"a gap in tags", false, []post{{at: 0, length: 64}, {at: 64, length: 64, skip: 1}, {at: 128, length: 64}}, 192,
			[]covered{{0, 0, 0, 64, final}, {2, 1, 0, 128, combined}}, 1},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := newRig(t, 6)
			l := r.timeline()
			id, ep := r.connect()
			on := uint64(1)
			if c.off {
				on = 0
			}
			r.setAll(id, notifyTime, 10*ms, notifyMax, 10*ms, combine, on)
			memory := r.Chip.Alloc(4096, 64)
			ep.Deliver(make([]byte, c.n))
			l.look()
			r.pause()
			var posted []abi.Fields
			for _, p := range c.posts {
				for range p.skip {
					r.Tag()
				}
				f := abi.Fields{
					Type: abi.TypeBufferAvailable, Flags: p.flags, Tag: r.Tag(), Conn: id,
					Base: memory + uint64(p.at), Length: uint32(p.length), Offset: uint32(p.offset),
				}
				if p.bulk {
					f.Conn = 0
				}
				posted = append(posted, f)
			}
			r.post(posted...)
			r.fw.Command(0, abi.QueueResume, r.Config)
			l.look()
			l.to(10 * ms)
			var want []abi.Fields
			for _, w := range c.want {
				want = append(want, abi.Fields{
					Type: abi.TypeBufferReceive, Flags: w.flags, Tag: posted[w.last].Tag, Base: posted[w.first].Base,
					Conn: id, Offset: w.offset, Length: w.length,
				})
			}
			if !slices.Equal(l.seen, want) {
				t.Errorf("responses %+v\nwant %+v", l.seen, want)
			}
			r.wantCounter(abi.CounterResultsCombined, c.count)
		})
	}
}

// TestCombineBetween: what another connection is told of in between ends a run.
func TestCombineBetween(t *testing.T) {
	r := newRig(t, 6)
	l := r.timeline()
	var eps []*enginetest.Endpoint
	for range 2 {
		id, ep := r.connect()
		eps = append(eps, ep)
		r.setAll(id, notifyTime, 10*ms, notifyMax, 10*ms, combine, 1)
		// A turn is 64 KiB.
		base := r.Chip.Alloc(2*turn, 64)
		for i := range uint64(2) {
			r.post(abi.Fields{Type: abi.TypeBufferAvailable, Tag: r.Tag(), Conn: id, Base: base + i*turn, Length: turn})
		}
	}
	for _, ep := range eps {
		ep.Deliver(make([]byte, turn+100))
		ep.Deliver(make([]byte, turn-101))
	}
	l.look()
	l.to(10 * ms)
	for i, f := range l.seen {
		if f.Length != []uint32{turn, turn, turn - 1, turn - 1}[i] || i == 1 && f.Conn == l.seen[0].Conn {
			t.Errorf("response %d: %+v", i, f)
		}
	}
	if len(l.seen) != 4 {
		t.Errorf("responses %+v", l.seen)
	}
	r.wantCounter(abi.CounterResultsCombined, 0)
}
