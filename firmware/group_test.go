// SPDX-License-Identifier: Apache-2.0

package firmware_test

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"

	"toebox/firmware/engine/enginetest"
	"toebox/vdev/abi"
)

// groupBuffer is a buffer of a group.
func (r *rig) groupBuffer(id uint64, n int) abi.Fields {
	f := r.buffer(abi.TypeBufferAvailable, id, n)
	f.Flags = abi.FlagGroup
	return f
}

// TestGroupIDs posts buffers under ids, in SPEC.md's layout, of which a
// connection from local port 4000 belongs to some.
func TestGroupIDs(t *testing.T) {
	for _, c := range []struct {
		name  string
		attrs []uint64
		id    uint64
		takes bool
	}{
		{"by port", nil, 0x08_00_0fa0_0000_0000, true},
		{"another port", nil, 0x08_00_0fa1_0000_0000, false},
		{"explicit", []uint64{0x0231, 16, 0x0230, 0xc0ffee}, 0x80_00_0000_00c0_ffee, true},
		{"by port, not explicit", []uint64{0x0230, 7}, 0x08_00_0fa0_0000_0000, true},
		{"explicit 0", []uint64{0x0231, 16}, 0x80_00_0000_0000_0000, true},
		{"all", []uint64{0x0231, 31, 0x0230, 5, 0x0213, 6, 0x0214, 0xab}, 0xfe_ab_0fa0_0000_0005, true},
		{"priority and class", []uint64{0x0231, 6, 0x0214, 9}, 0x33_09_0000_0000_0000, true},
		{"other priority", []uint64{0x0231, 6, 0x0214, 9}, 0x34_09_0000_0000_0000, false},
		{"in none", []uint64{0x0231, 0}, 0x08_00_0fa0_0000_0000, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := newRig(t, 6)
			tuples, n := scalars(c.attrs...)
			x := connectTarget()
			x.Local = netip.MustParseAddrPort("0.0.0.0:4000")
			f := r.control(abi.TypeConnect, n+1, appendTarget(tuples, x))
			r.post(f)
			r.settle()
			ep := r.fake.Last()
			ep.Establish()
			id := r.next().Conn
			b := r.groupBuffer(c.id, 16)
			r.post(b)
			ep.Deliver([]byte("bytes"))
			seen := r.settle()
			if (len(seen) == 1) != c.takes {
				t.Fatalf("told %+v", seen)
			}
			want := abi.Fields{Type: abi.TypeBufferReceive, Flags: abi.FlagFinal, Tag: b.Tag, Conn: id, Base: b.Base, Length: 5}
			if c.takes && seen[0] != want {
				t.Errorf("response %+v\n    want %+v", seen[0], want)
			}
			if c.takes {
				r.wantCounter(abi.CounterGroupDeliveries, 1)
			}
		})
	}
}

// TestGroupRefused posts buffers under what is no group's id.
func TestGroupRefused(t *testing.T) {
	r := newRig(t, 4)
	for _, id := range []uint64{0, 1, 0x08_01_0050_0000_0000, 0x09_00_0050_0000_0000, 0x08_00_0050_0000_0001, 0x10_00_0050_0000_0000} {
		b := r.groupBuffer(id, 16)
		r.post(b)
		r.expect(abi.Fields{Type: abi.TypeBufferDone, Flags: abi.FlagFinal, Tag: b.Tag, Aux: 36, Conn: id, Base: b.Base})
	}
}

// TestGroupEnds cancels and drains buffers of groups, and finds that idle groups
// are forgotten.
func TestGroupEnds(t *testing.T) {
	r := newRig(t, 6)
	const id = 0x80_00_0000_0000_0001
	b := r.groupBuffer(id, 16)
	cancel := abi.Fields{Type: abi.TypeCancellation, Tag: r.Tag(), Conn: id, Offset: b.Tag}
	r.post(b, cancel)
	r.expect(abi.Fields{Type: abi.TypeBufferDone, Flags: abi.FlagFinal, Tag: b.Tag, Aux: 2, Conn: id, Base: b.Base})
	r.expect(abi.Fields{Type: abi.TypeCancelled, Flags: abi.FlagFinal, Tag: cancel.Tag, Conn: id})
	for i := range uint64(300) {
		b := r.groupBuffer(id+i, 16)
		r.post(b, abi.Fields{Type: abi.TypeCancellation, Tag: r.Tag(), Conn: id + i, Offset: b.Tag})
		r.next()
		r.next()
	}
	r.settle()
	if n := r.counter(abi.CounterMemoryUsed); n > 64*256 {
		t.Errorf("300 groups without buffers keep %d bytes of adapter memory", n)
	}
	b = r.groupBuffer(id, 16)
	r.post(b)
	r.settle()
	r.fw.Command(0, abi.QueueDrain, r.Config)
	r.expect(abi.Fields{Type: abi.TypeBufferDone, Flags: abi.FlagFinal, Tag: b.Tag, Aux: 2, Conn: id, Base: b.Base})
}

// TestGroupFault gives a group a buffer where no memory is: the bytes go to the
// next.
func TestGroupFault(t *testing.T) {
	r := newRig(t, 4)
	conn, ep := r.connectWith(scalars(0x0231, 16))
	const id = 0x80_00_0000_0000_0000
	bad, good := r.groupBuffer(id, 16), r.groupBuffer(id, 16)
	bad.Base = 1 << 40
	r.post(bad, good)
	ep.Deliver([]byte("bytes"))
	r.expect(abi.Fields{Type: abi.TypeBufferDone, Flags: abi.FlagFinal, Tag: bad.Tag, Aux: 39, Conn: id, Base: bad.Base})
	r.expect(abi.Fields{Type: abi.TypeBufferReceive, Flags: abi.FlagFinal, Tag: good.Tag, Conn: conn, Base: good.Base, Length: 5})
}

// TestGroupQueue lets connections of two groups wait, for any buffer before the
// group has ever had one, or for one of the group, and posts buffers: they go to
// those that waited longest, and none stays posted while one of its group waits.
func TestGroupQueue(t *testing.T) {
	for _, policy := range []uint64{0, 1} {
		t.Run(fmt.Sprint("policy ", policy), func(t *testing.T) {
			r := newRig(t, 6)
			r.fw.SetPolicyClock(true)
			type member struct {
				id uint64
				ep *enginetest.Endpoint
			}
			var all [2][]member
			for i := range 20 {
				g := uint64(i % 2)
				id, ep := r.connectWith(scalars(0x0231, 16, 0x0230, g, 0x0232, policy, 0x0233, 1<<62))
				all[g] = append(all[g], member{id, ep})
			}
			for g := range all {
				if policy == 1 {
					b := r.groupBuffer(0x80_00_0000_0000_0000+uint64(g), 16)
					r.post(b, abi.Fields{Type: abi.TypeCancellation, Tag: r.Tag(), Conn: b.Conn, Offset: b.Tag})
					r.next()
					r.next()
				}
			}
			for i := range 10 {
				for g := range all {
					all[g][i].ep.Deliver([]byte("waits"))
					if seen := r.settle(); len(seen) != 0 {
						t.Fatalf("told %+v", seen)
					}
				}
			}
			// One that gets a buffer of its own, one that ends, do not stand in
			// the way of the others.
			own := r.buffer(abi.TypeBufferAvailable, all[1][0].id, 5)
			r.post(own)
			if got := r.next(); got.Tag != own.Tag {
				t.Errorf("response %+v", got)
			}
			abort := abi.Fields{Type: abi.TypeTermination, Tag: r.Tag(), Conn: all[1][1].id, Length: 1}
			r.post(abort)
			r.next()
			for g, from := range []int{0, 2} {
				for _, m := range all[g][from:] {
					b := r.groupBuffer(0x80_00_0000_0000_0000+uint64(g), 16)
					r.post(b)
					r.expect(abi.Fields{Type: abi.TypeBufferReceive, Flags: abi.FlagFinal, Tag: b.Tag, Conn: m.id, Base: b.Base, Length: 5})
				}
			}
			if seen := r.settle(); len(seen) != 0 {
				t.Errorf("told %+v", seen)
			}
		})
	}
}

// TestRegroup moves a connection that waits to another group.
func TestRegroup(t *testing.T) {
	r := newRig(t, 6)
	conn, ep := r.connectWith(scalars(0x0231, 16, 0x0230, 1))
	b := r.groupBuffer(0x80_00_0000_0000_0002, 16)
	r.post(b)
	ep.Deliver([]byte("waits"))
	if seen := r.settle(); len(seen) != 0 {
		t.Fatalf("told %+v", seen)
	}
	f := r.control(abi.TypeConnectionAttr, 1, abi.AppendSetScalar(nil, 0x0230, 2))
	f.Conn = conn
	r.post(f)
	if got := r.next(); got.Tag != f.Tag {
		t.Errorf("response %+v", got)
	}
	r.expect(abi.Fields{Type: abi.TypeBufferReceive, Flags: abi.FlagFinal, Tag: b.Tag, Conn: conn, Base: b.Base, Length: 5})
}

// entry is one of the buffer table, and memory that it declares.
type entry struct {
	base, length, speed, node, group, flags uint64
}

// matcher is SPEC.md §14.5, a second time.
func match(size int, weights, group uint64, pool []abi.Fields, table []entry) int {
	best, rank := -1, []int64(nil)
	for i, f := range pool[:min(64, len(pool))] {
		room := int64(f.Length - f.Offset)
		var e entry
		for _, x := range table {
			if f.Base >= x.base && f.Base+uint64(f.Length) <= x.base+x.length {
				e = x
				break
			}
		}
		k := []int64{0, -room, 1, 0, 0}
		if room < int64(size) {
			k[0], k[1] = -1, room
		}
		if e.length != 0 {
			if e.group != 0 {
				k[2] = 0
			}
			if e.group != 0 && e.group == group {
				k[2] = 2
			}
			if e.node == weights>>24 {
				k[3] += int64(weights&0xff) * 255
			}
			k[3] += int64(weights>>8&0xff) * int64(min(e.speed, 255))
			k[4] = int64(e.flags & 1)
		}
		if best < 0 || slices.Compare(k, rank) > 0 {
			best, rank = i, k
		}
	}
	return best
}

// TestPoolMatch compares choices among bulk buffers, with tables read at each
// choice or kept, with what the rule predicts.
func TestPoolMatch(t *testing.T) {
	for seed := range uint64(12) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			rng := rand.New(rand.NewPCG(seed, 2))
			r := newRig(t, 8)
			weights := uint64(0x01010000) | rng.Uint64N(4) | rng.Uint64N(4)<<8
			conn, ep := r.connectWith(scalars(0x0238, weights, 0x0231, 16, 0x0230, 9))
			const mine = 0x80_00_0000_0000_0009
			const areas, size = 8, 4096
			base := r.Chip.Alloc(areas*size, 4096)
			at := r.Chip.Alloc(areas*48, 8)
			var table []entry
			for i := range uint64(areas - 1) { // one area is not declared
				table = append(table, entry{base + i*size, size, rng.Uint64N(400), rng.Uint64N(3), []uint64{0, mine, 5}[rng.IntN(3)], rng.Uint64N(2)})
			}
			store := func() {
				var b []byte
				for _, e := range table {
					b = abi.AppendBufferEntry(b, abi.BufferEntry{Base: e.base, Length: e.length, Speed: e.speed, Node: e.node, Group: e.group, Flags: e.flags})
				}
				copy(r.Chip.Bytes(at, areas*48), b)
			}
			store()
			set := abi.AppendTuple(nil, true, 0x010f, binary.LittleEndian.AppendUint64(binary.LittleEndian.AppendUint64(nil, at), areas-1))
			set = abi.AppendSetScalar(set, 0x0110, seed%2)
			if f, _ := r.attributes(0, 2, set); f.Aux != 0 {
				t.Fatalf("set of the table: %+v", f)
			}
			used := slices.Clone(table)
			var pool []abi.Fields
			for range 200 {
				for len(pool) < 1+rng.IntN(90) {
					n := 1 + rng.IntN(6)*40
					f := abi.Fields{
						Type: abi.TypeBufferAvailable, Tag: r.Tag(), Base: base + rng.Uint64N(areas*size-uint64(n)), Length: uint32(n), Offset: uint32(rng.IntN(min(n, 2))),
					}
					pool = append(pool, f)
					r.post(f)
				}
				if rng.IntN(8) == 0 {
					r.settle()
					k := rng.IntN(len(table))
					table[k].speed = rng.Uint64N(400)
					store()
					if seed%2 == 0 {
						used = slices.Clone(table)
					}
				}
				left := 1 + rng.IntN(220)
				r.settle()
				ep.Deliver(make([]byte, left))
				for left > 0 && len(pool) > 0 {
					i := match(left, weights, mine, pool, used)
					f := pool[i]
					n := min(left, int(f.Length-f.Offset))
					r.expect(abi.Fields{Type: abi.TypeBufferReceive, Flags: abi.FlagFinal, Tag: f.Tag, Conn: conn, Base: f.Base, Offset: f.Offset, Length: uint32(n)})
					pool = slices.Delete(pool, i, i+1)
					left -= n
				}
				if left > 0 { // the pool is empty: the bytes wait for the next
					f := r.buffer(abi.TypeBufferAvailable, 0, left)
					r.post(f)
					r.expect(abi.Fields{Type: abi.TypeBufferReceive, Flags: abi.FlagFinal, Tag: f.Tag, Conn: conn, Base: f.Base, Length: f.Length})
				}
			}
			if n := r.counter(abi.CounterBufferTableReads); (n == 1) != (seed%2 == 1) {
				t.Errorf("%d DMA reads of the table in mode %d", n, seed%2)
			}
		})
	}
}

// TestTableSettings sets tables that are refused, and one that cannot be read.
func TestTableSettings(t *testing.T) {
	r := newRig(t, 6)
	two := func(a, b uint64) []byte {
		return binary.LittleEndian.AppendUint64(binary.LittleEndian.AppendUint64(nil, a), b)
	}
	set := func(attr abi.Attribute, v []byte, want abi.Status) {
		t.Helper()
		_, buf := r.attributes(0, 1, abi.AppendTuple(nil, true, attr, v))
		if s, _ := abi.TupleResult(buf); s != want {
			t.Errorf("set of %#x to %x: %v, want %v", attr, v, s, want)
		}
	}
	one := binary.LittleEndian.AppendUint64(nil, 1)
	set(0x010f, one, abi.StatusBadLength)
	set(0x010f, two(1, 257), abi.StatusBadValue)
	set(0x010f, two(1<<64-1, 1), abi.StatusBadValue)
	set(0x0110, binary.LittleEndian.AppendUint64(nil, 2), abi.StatusBadValue)
	set(0x010f, two(1<<40, 4), abi.StatusOK)
	set(0x0110, one, abi.StatusBadMemory)
	// A table that cannot be read is an empty one: the smallest that fits.
	id, ep := r.connectWith(scalars(0x0238, 0x000101ff))
	a, b := r.buffer(abi.TypeBufferAvailable, 0, 64), r.buffer(abi.TypeBufferAvailable, 0, 16)
	r.post(a, b)
	r.settle()
	ep.Deliver([]byte("bytes"))
	r.expect(abi.Fields{Type: abi.TypeBufferReceive, Flags: abi.FlagFinal, Tag: b.Tag, Conn: id, Base: b.Base, Length: 5})
	set(0x010f, two(0, 0), abi.StatusOK)
	set(0x0110, one, abi.StatusOK)
	set(0x010f, two(1<<40, 4), abi.StatusBadMemory)
	if got := r.attribute(0, 0x010f, 16); string(got) != string(two(0, 0)) {
		t.Errorf("BUFFER_TABLE is %x", got)
	}
	if got := r.attribute(0, 0x0110, 8); got[0] != 1 {
		t.Errorf("BUFFER_TABLE_MODE is %x", got)
	}
	if f, buf := r.attributes(id, 1, abi.AppendSetScalar(nil, 0x0238, 1<<17)); f.Aux != 1 {
		t.Errorf("POOL_WEIGHTS with a bit that has no meaning: %+v %x", f, buf)
	}
}
