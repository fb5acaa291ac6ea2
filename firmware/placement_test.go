// SPDX-License-Identifier: Apache-2.0

package firmware_test

import (
	"bytes"
	"fmt"
	"testing"

	"toebox/vdev/abi"
)

const (
	placement       = 0x0260
	placementBudget = 0x0261
	qosClass        = 0x0214
)

// TestPlacement delivers under each PLACEMENT and compares the bytes, those around
// them, and how many were written by non-temporal stores.
func TestPlacement(t *testing.T) {
	const n, guard = 20_000, 64
	for _, c := range []struct {
		name  string
		attrs []uint64
		want  uint64
	}{
		{"ordinary", []uint64{placement, 0}, 0},
		{"non-temporal", []uint64{placement, 1}, n},
		{"by class, 0", []uint64{placement, 2}, n},
		{"by class, 1", []uint64{placement, 2, qosClass, 1}, 0},
		{"adaptive, 1 MiB", []uint64{placement, 3}, 0},
		{"adaptive, nothing", []uint64{placement, 3, placementBudget, 0}, n},
		{"gathered", []uint64{placement, 1, notifyBytes, n}, n},
	} {
		for at := range 3 {
			t.Run(fmt.Sprintf("%s/%d", c.name, at), func(t *testing.T) {
				r := newRig(t, 4)
				id, ep := r.connect()
				r.setAll(id, c.attrs...)
				base := r.Chip.Alloc(n+2*guard, 1<<12) + guard + uint64(at*13)
				around := r.Chip.Bytes(base-guard, n+2*guard-at*13)
				for i := range around {
					around[i] = 0xee
				}
				want := bytes.Clone(around)
				copy(want[guard:], streamBytes(0, n))
				f := abi.Fields{Type: abi.TypeBufferAvailable, Tag: r.Tag(), Conn: id, Base: base, Length: n}
				r.post(f)
				ep.Deliver(streamBytes(0, n))
				r.expect(abi.Fields{Type: abi.TypeBufferReceive, Flags: abi.FlagFinal, Tag: f.Tag, Base: base, Conn: id, Length: n})
				if !bytes.Equal(around, want) {
					t.Error("other bytes in the buffer, or around it")
				}
				r.wantCounter(abi.CounterNonTemporalBytes, c.want)
			})
		}
	}
}

// TestPlacementAdaptive: deliveries are ordinary while less than the budget was
// injected in this millisecond and the one before, by all connections.
func TestPlacementAdaptive(t *testing.T) {
	r := newRig(t, 6)
	r.fw.SetPolicyClock(true)
	tuples, k := scalars(placement, 3, placementBudget, 1000)
	if f, _ := r.attributeRequest(r.control(abi.TypeConnectionAttr, k, tuples)); f.Aux != 0 {
		t.Fatalf("defaults: %+v", f)
	}
	a, first := r.connect()
	b, second := r.connect()
	d, third := r.datagram(true)
	now := r.fw.PolicyNow()
	r.fw.StepPolicyClock(ms - now%ms)
	written := uint64(0)
	for i, s := range []struct {
		step uint64
		from int // a, b, or the datagram endpoint
		n    int
		over bool
	}{
		{0, 0, 600, false},
		{0, 1, 399, false}, // 600 before it
		{0, 0, 1, false},   // 999
		{0, 0, 300, true},  // 1000
		{ms - 1, 1, 1, true},
		{1, 1, 500, true}, // the period before still counts
		{ms, 2, 700, false},
		{0, 2, 400, false}, // 700
		{0, 1, 400, true},  // 1100
		{2*ms - 1, 0, 400, true},
		{1, 0, 400, false},
		{100 * ms, 0, 400, false},
	} {
		r.fw.StepPolicyClock(s.step)
		f := r.buffer(abi.TypeBufferAvailable, []uint64{a, b, d}[s.from], s.n)
		r.post(f)
		r.settle()
		switch s.from {
		case 0:
			first.Deliver(streamBytes(0, s.n))
		case 1:
			second.Deliver(streamBytes(0, s.n))
		case 2:
			third.DeliverFrom(peer, streamBytes(0, s.n))
		}
		if got := r.next(); got.Tag != f.Tag || got.Length != uint32(s.n) || !bytes.Equal(r.bytes(f), streamBytes(0, s.n)) {
			t.Fatalf("delivery %d: %+v, or other bytes", i, got)
		}
		if s.over {
			written += uint64(s.n)
		}
		if got := r.counter(abi.CounterNonTemporalBytes); got != written {
			t.Fatalf("delivery %d: %d bytes by non-temporal stores, want %d", i, got, written)
		}
	}
	r.wantCounter(abi.CounterPlacementsOver, 5)
}
