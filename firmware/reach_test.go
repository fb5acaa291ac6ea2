// SPDX-License-Identifier: Apache-2.0

package firmware_test

import (
	"fmt"
	"slices"
	"testing"

	"toebox/vdev/abi"
)

// TestReach has segments arrive while three buffers stand in memory one behind the
// other, and compares transfers and responses with SPEC.md §14.3 (MM11).
func TestReach(t *testing.T) {
	const once, skip, fragment, peek = abi.FlagOnce, abi.FlagSkip, abi.FlagFragment, abi.FlagPeek
	type post struct {
		at, length int // in the memory of the test
		offset     uint32
		flags      abi.Flags
	}
	type write struct{ at, n int }
	row := []post{{at: 0, length: 100}, {at: 100, length: 100}, {at: 200, length: 100}}
	for _, c := range []struct {
		name     string
		posts    []post
		segments []int
		attrs    []uint64
		unmap    int // a page of the memory, from 1 on
		writes   []write
		results  []string // type, status, place of the buffer, offset, length
		merged   uint64
	}{
		{name: "one segment", posts: row, segments: []int{250}, writes: []write{{0, 250}},
			results: []string{"16 0 0 0 100", "16 0 1 0 100", "16 0 2 0 50"}, merged: 2},
		{name: "two segments", posts: row, segments: []int{150, 150}, writes: []write{{0, 150}, {150, 150}},
			results: []string{"16 0 0 0 100", "16 0 1 0 100", "16 0 2 0 100"}, merged: 2},
		{name: "segments that end with buffers", posts: row, segments: []int{100, 200}, writes: []write{{0, 100}, {100, 200}},
			results: []string{"16 0 0 0 100", "16 0 1 0 100", "16 0 2 0 100"}, merged: 1},
		{name: "the first of them over two", posts: row, segments: []int{200, 100}, writes: []write{{0, 200}, {200, 100}},
			results: []string{"16 0 0 0 100", "16 0 1 0 100", "16 0 2 0 100"}, merged: 1},
		{name: "gathered", posts: row, segments: []int{120, 130}, attrs: []uint64{notifyBytes, 250}, writes: []write{{0, 250}},
			results: []string{"16 0 0 0 100", "16 0 1 0 100", "16 0 2 0 50"}, merged: 2},
		{name: "with ONCE", posts: []post{{at: 0, length: 100, flags: once}, {at: 100, length: 100, flags: once}}, segments: []int{150}, writes: []write{{0, 150}},
			results: []string{"16 0 0 0 100", "16 0 1 0 50"}, merged: 1},
		{name: "from an offset", posts: []post{{at: 0, length: 100, offset: 60}, {at: 60, length: 100, offset: 40}}, segments: []int{100}, writes: []write{{60, 100}},
			results: []string{"16 0 0 60 40", "16 0 1 40 60"}, merged: 1},
		{name: "a hole", posts: []post{{at: 0, length: 100}, {at: 101, length: 100}}, segments: []int{150}, writes: []write{{0, 100}, {101, 50}},
			results: []string{"16 0 0 0 100", "16 0 1 0 50"}},
		{name: "backwards", posts: []post{{at: 100, length: 100}, {at: 0, length: 100}}, segments: []int{150}, writes: []write{{100, 100}, {0, 50}},
			results: []string{"16 0 0 0 100", "16 0 1 0 50"}},
		{name: "behind a skip", posts: []post{{at: 0, length: 100, offset: 10, flags: skip}, {at: 100, length: 100}}, segments: []int{160}, writes: []write{{0, 150}},
			results: []string{"16 0 0 0 100", "16 0 1 0 50"}, merged: 1},
		{name: "into a skip", posts: []post{{at: 0, length: 100}, {at: 100, length: 100, offset: 10, flags: skip}}, segments: []int{160}, writes: []write{{0, 100}, {100, 50}},
			results: []string{"16 0 0 0 100", "16 0 1 0 50"}},
		{name: "into one with FRAGMENT", posts: []post{{at: 0, length: 100}, {at: 100, length: 100, flags: fragment}}, segments: []int{150}, writes: []write{{0, 100}, {100, 50}},
			results: []string{"16 0 0 0 100", "16 0 1 0 50"}},
		{name: "into a peek", posts: []post{{at: 0, length: 100}, {at: 100, length: 100, flags: peek}}, segments: []int{220}, writes: []write{{0, 100}, {100, 100}},
			results: []string{"16 0 0 0 100", "16 0 1 0 100"}},
		{name: "SKIP", posts: row[:2], segments: []int{160}, attrs: []uint64{0x0264, 5}, writes: []write{{0, 100}, {100, 50}},
			results: []string{"16 0 0 0 100", "16 0 1 0 50"}},
		{name: "PLACEMENT 3", posts: row[:2], segments: []int{150}, attrs: []uint64{0x0260, 3}, writes: []write{{0, 100}, {100, 50}},
			results: []string{"16 0 0 0 100", "16 0 1 0 50"}},
		{name: "DMA_WHEN", posts: []post{{at: 0, length: 100, flags: once}, {at: 100, length: 100, flags: once}}, segments: []int{150}, attrs: []uint64{0x0239, 1}, writes: []write{{0, 100}, {100, 50}},
			results: []string{"16 0 0 0 100", "16 0 1 0 50"}},
		{name: "the second cannot be written", posts: []post{{at: 3996, length: 100}, {at: 4096, length: 100}, {at: 300, length: 100}}, segments: []int{250}, unmap: 1,
			writes:  []write{{3996, 200}, {3996, 100}, {4096, 100}, {300, 100}},
			results: []string{"16 0 0 0 100", "17 39 1 0 0", "16 0 2 0 100"}},
		{name: "the third cannot be written", posts: []post{{at: 3896, length: 100}, {at: 3996, length: 100}, {at: 4096, length: 100}, {at: 300, length: 100}}, segments: []int{300}, unmap: 1,
			writes:  []write{{3896, 300}, {3896, 100}, {3996, 200}, {3996, 100}, {4096, 100}, {300, 100}},
			results: []string{"16 0 0 0 100", "16 0 1 0 100", "17 39 2 0 0", "16 0 3 0 100"}},
		{name: "the second cannot, gathered", posts: []post{{at: 3996, length: 100}, {at: 4096, length: 100}, {at: 300, length: 100}}, segments: []int{100, 100}, attrs: []uint64{notifyBytes, 200}, unmap: 1,
			writes:  []write{{3996, 100}, {4096, 100}, {300, 100}},
			results: []string{"16 0 0 0 100", "17 39 1 0 0", "16 0 2 0 100"}},
		{name: "neither can be written", posts: []post{{at: 4096, length: 100}, {at: 4196, length: 100}, {at: 300, length: 100}}, segments: []int{100}, unmap: 1,
			writes:  []write{{4096, 100}, {4196, 100}, {300, 100}},
			results: []string{"17 39 0 0 0", "17 39 1 0 0", "16 0 2 0 100"}},
		{name: "neither can, gathered", posts: []post{{at: 4096, length: 100}, {at: 4196, length: 100}, {at: 300, length: 100}}, segments: []int{100, 100}, attrs: []uint64{notifyBytes, 200}, unmap: 1,
			writes:  []write{{4096, 200}, {4096, 100}, {4196, 100}, {300, 100}},
			results: []string{"17 39 0 0 0", "17 39 1 0 0", "16 0 2 0 100"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := newRig(t, 5)
			r.fw.SetPolicyClock(true)
			gathered := len(c.attrs) > 0 && c.attrs[0] == notifyBytes
			attrs := append([]uint64{gatherThreshold, 0}, c.attrs...)
			if gathered {
				attrs = append(c.attrs, gatherThreshold, 1<<20, linkTransferSize, 4096)
			}
			id, ep := r.connectWith(scalars(attrs...))
			const size = 3 * 4096
			base := r.Chip.Alloc(size, 4096)
			if c.unmap > 0 {
				r.Chip.Unmap(base+uint64(c.unmap)*4096, 4096)
			}
			place := make(map[uint32]int)
			var posts []abi.Fields
			for i, p := range c.posts {
				f := abi.Fields{Type: abi.TypeBufferAvailable, Flags: p.flags, Tag: r.Tag(), Conn: id, Base: base + uint64(p.at), Length: uint32(p.length), Offset: p.offset}
				place[f.Tag] = i
				posts = append(posts, f)
			}
			var writes []write
			r.pause()
			r.Chip.OnView(func(iova uint64, n int, to bool) {
				if to && iova >= base && iova < base+size {
					writes = append(writes, write{int(iova - base), n})
				}
			})
			data := make([]byte, 0, 512)
			for _, n := range c.segments {
				from := len(data)
				for i := range n {
					data = append(data, byte((from+i)*7+1))
				}
				ep.Deliver(data[from:])
			}
			r.post(posts...)
			r.fw.Command(0, abi.QueueResume, r.Config)
			var results []string
			err := r.Wait("results", func() bool {
				for _, f := range r.Pending() {
					results = append(results, fmt.Sprint(uint16(f.Type), f.Aux, place[f.Tag], f.Offset, f.Length))
				}
				return len(results) >= len(c.results)
			})
			if err != nil {
				t.Error(err)
			}
			if seen := r.settle(); len(seen) > 0 {
				t.Errorf("more: %+v", seen)
			}
			r.Chip.OnView(nil)
			if !slices.Equal(writes, c.writes) {
				t.Errorf("transfers %v\nwant      %v", writes, c.writes)
			}
			if !slices.Equal(results, c.results) {
				t.Errorf("results %q\nwant    %q", results, c.results)
			}
			r.wantCounter(abi.CounterDeliveriesMerged, c.merged)
		})
	}
}
