// SPDX-License-Identifier: Apache-2.0

package firmware

import (
	"math"

	"toebox/vdev/abi"
)

// never is a time of the policy clock that does not come.
const never = math.MaxUint64

// after is now plus a time that may be for ever.
func after(now, ns uint64) uint64 {
	if ns > never-now {
		return never
	}
	return now + ns
}

// criteria are what one notice wants of the list that it joins.
type criteria struct {
	bytes   uint64 // that telling it writes to host memory
	ceiling uint64 // when it has to go

	// By NOTIFY_COUNT and its neighbours; 0: off.
	count, amount, sinceFirst, sinceLast uint64
	last                                 uint64 // when a notice of the queue went out last
	any                                  bool   // one did

	// By NOTIFY_ADAPTIVE: count, and a time when to go.
	dynamic bool
	time    uint64
}

// gather decides when the gathered notices of a queue go out (SPEC.md §14.1):
// each is judged by its own attributes against the whole list, and all go when
// one has to. The zero value is an empty list.
type gather struct {
	n     uint64
	bytes uint64
	first uint64 // when the list began

	count, amount uint64 // the least of those asked for; 0: none
	byFirst       uint64 // times; 0: none
	byLast        uint64
	byCeiling     uint64
	dynamic       bool
	dynamicCount  uint64 // as the last that joined has it
	dynamicTime   uint64
}

// join adds a notice.
func (g *gather) join(now uint64, l criteria) {
	if g.n == 0 {
		*g = gather{first: now, byFirst: never, byLast: never, byCeiling: never, count: never, amount: never}
	}
	g.n++
	g.bytes += l.bytes
	g.byCeiling = min(g.byCeiling, l.ceiling)
	if l.dynamic {
		g.dynamic, g.dynamicCount, g.dynamicTime = true, l.count, l.time
		return
	}
	if l.count != 0 {
		g.count = min(g.count, l.count)
	}
	if l.amount != 0 {
		g.amount = min(g.amount, l.amount)
	}
	if l.sinceFirst != 0 {
		g.byFirst = min(g.byFirst, after(g.first, l.sinceFirst))
	}
	switch {
	case l.sinceLast == 0:
	case l.any:
		g.byLast = min(g.byLast, after(l.last, l.sinceLast))
	default:
		g.byLast = 0
	}
}

// due reports whether the list has to go out, and which counter says why.
func (g *gather) due(now uint64) (abi.Counter, bool) {
	switch {
	case g.n == 0:
		return 0, false
	case g.n >= g.count:
		return abi.CounterNotifyCount, true
	case g.bytes >= g.amount:
		return abi.CounterNotifyAmount, true
	case now >= g.byFirst:
		return abi.CounterNotifyFirst, true
	case now >= g.byLast:
		return abi.CounterNotifyLast, true
	case g.dynamic && (g.n >= g.dynamicCount || now >= g.dynamicTime):
		return abi.CounterNotifyDynamic, true
	case now >= g.byCeiling:
		return abi.CounterNotifyCeiling, true
	}
	return 0, false
}

// next is when the list has to go out if nothing joins it.
func (g *gather) next() uint64 {
	if g.n == 0 {
		return never
	}
	t := min(g.byFirst, g.byLast, g.byCeiling)
	if g.dynamic {
		t = min(t, g.dynamicTime)
	}
	return t
}
