// SPDX-License-Identifier: Apache-2.0

package conformance

import (
	"fmt"

	"toebox/guestdriver"
)

// Of SPEC.md §14.13.
const (
	placement       = 0x0260
	placementBudget = 0x0261

	ctrNonTemporal = 141
	ctrPlaceOver   = 142
)

// TestRX11_Placement: whatever stores write them, the bytes are those that the peer
// sent, at any address.
func TestRX11_Placement(t *T) {
	c := t.start()
	r := c.ring(0, ringConfig{})
	const n = 30_000
	for _, k := range []struct {
		name         string
		value, class uint64
		went         uint64
	}{
		{"ordinary", 0, 0, 0},
		{"non-temporal", 1, 0, n},
		{"by class, the least", 2, 0, n},
		{"by class, a greater one", 2, 7, 0},
	} {
		before := c.counter(ctrNonTemporal)
		_, id := r.serve(Script{{Op: OpSend, N: n, Seed: 4}, {Op: OpDiscard}}, attr(placement, k.value), attr(0x0214, k.class))
		at := 0
		for i, size := range []int{1, 255, 256, 4096, 10_000, n - 14_608} {
			m := r.buffer(size + 64)
			m = guestdriver.DMA{Bytes: m.Bytes[i*7 : i*7+size : i*7+size], IOVA: m.IOVA + uint64(i*7)}
			r.filled(fmt.Sprintf("%s: %d bytes", k.name, size), r.available(id, m, 0), m, 4, int64(at))
			at += size
		}
		want(t, k.name+": nontemporal_bytes", c.counter(ctrNonTemporal)-before, k.went)
		r.finish(id)
	}
	for a, most := range map[uint16]uint64{placement: 3, placementBudget: 1<<63 - 1} {
		status, _ := r.setScalar(reqConnAttr, 0, a, most+1)
		want(t, "status of a value beyond its bound", status, stBadValue)
	}
}

// TestRX11_Adaptive: deliveries are ordinary as long as less than the budget was
// injected in this millisecond and the one before.
func TestRX11_Adaptive(t *T) {
	c := t.chooser(7, attr(placement, 3), attr(placementBudget, 100))
	m := c.buffer(64)
	for i, k := range []struct {
		step uint64
		over bool
	}{
		{0, false},
		{0, false}, // 64 injected
		{0, true},  // 128
		{ms, true},
		{ms, false},
		{ms, false}, // 64
		{ms, false}, // 64: what was two milliseconds ago does not count
	} {
		c.step(k.step)
		over := c.counter(ctrPlaceOver)
		tag := c.available(c.id, m, 0)
		c.arrive()
		c.gets(fmt.Sprintf("arrival %d", i+1), uint64(i+1), tag, m)
		want(t, fmt.Sprintf("arrival %d: over the budget", i+1), c.counter(ctrPlaceOver)-over == 1, k.over)
	}
	c.finish(c.id)
}
