// SPDX-License-Identifier: Apache-2.0

package firmware

import (
	"toebox/firmware/nontemporal"
	"toebox/vdev/abi"
)

// Values of PLACEMENT (RX11, SPEC.md §14.13).
const (
	placeOrdinary = iota
	placeNonTemporal
	placeByClass
	placeAdaptive
)

// injectPeriod is how long bytes count as recently injected, and once more at
// most.
const injectPeriod = 1_000_000 // ns

// injected is how many bytes ordinary stores of adaptive connections have written
// in this period of the policy clock, and in the one before.
type injected struct {
	period    uint64
	now, past uint64
}

// recent is how many bytes were injected recently.
func (i *injected) recent(now uint64) uint64 {
	switch p := now / injectPeriod; {
	case p == i.period:
	case p == i.period+1:
		*i = injected{period: p, past: i.now}
	default:
		*i = injected{period: p}
	}
	return i.now + i.past
}

// place chooses the stores for the next delivery of c.
func (q *queue) place(c *conn) {
	q.streams, q.adapts = false, false
	switch c.attrs.of(abi.AttrPlacement) {
	case placeNonTemporal:
		q.streams = true
	case placeByClass:
		q.streams = c.attrs.of(abi.AttrQoSClass) == 0
	case placeAdaptive:
		q.streams = q.injected.recent(q.fw.policy.now()) >= c.attrs.of(abi.AttrPlacementBudget)
		q.adapts = true
	}
}

// placed notes that a delivery has written n bytes, and returns to ordinary
// stores.
func (q *queue) placed(n int) {
	switch {
	case q.streams && n > 0:
		q.count(abi.CounterNonTemporalBytes, uint64(n))
		if q.adapts {
			q.count(abi.CounterPlacementsOver, 1)
		}
	case q.adapts:
		q.injected.now += uint64(n)
	}
	q.streams = false
}

// store copies received bytes to host memory, by the stores chosen.
func (q *queue) store(dst, src []byte) int {
	if q.streams {
		return nontemporal.Copy(dst, src)
	}
	return copy(dst, src)
}
