// SPDX-License-Identifier: Apache-2.0

package firmware

import "toebox/vdev/abi"

// What NOTIFY_DYNAMIC looks at (SPEC.md §14.6).
const (
	dynamicArrivals    = 1 << iota // spans and amounts of bursts
	dynamicPosts                   // the rate of posting
	dynamicConsumption             // from a notification to the next buffer
	dynamicAmounts                 // amounts of bursts
	dynamicAll         = 1<<iota - 1
)

// rememberedBursts is how many bursts, gaps and times of use are remembered.
const rememberedBursts = 4

// receiveTempo is what a connection with NOTIFY_DYNAMIC remembers of its bytes
// and of its host. Times are of the policy clock, in ns.
type receiveTempo struct {
	// The burst under way, none while bytes is 0.
	began, latest, bytes uint64

	spans, amounts [rememberedBursts]uint64 // of the bursts that ended last
	bursts         int                      // how many have ended

	posts pace // posts of buffers of the connection

	told bool   // since the last post
	at   uint64 // when first
	uses [rememberedBursts]uint64
	used int
}

// arrive notes that n bytes have come. A burst ends when as much as most has
// passed since it began.
func (t *receiveTempo) arrive(now, n, most uint64) {
	if t.bytes > 0 && now-t.began >= most {
		i := t.bursts % rememberedBursts
		t.spans[i], t.amounts[i] = t.latest-t.began, t.bytes
		t.bursts++
		t.bytes = 0
	}
	if t.bytes == 0 {
		t.began = now
	}
	t.bytes += n
	t.latest = now
}

// post notes that the host has posted a buffer of the connection.
func (t *receiveTempo) post(now uint64) {
	t.posts.add(now)
	if t.told {
		t.uses[t.used%rememberedBursts] = now - t.at
		t.used++
		t.told = false
	}
}

// tell notes that the host was told of bytes.
func (t *receiveTempo) tell(now uint64) {
	if !t.told {
		t.told, t.at = true, now
	}
}

// burst is the least span and amount of the last bursts, 0 before there are
// enough.
func (t *receiveTempo) burst() (span, amount uint64) {
	if t.bursts < rememberedBursts {
		return 0, 0
	}
	span, amount = t.spans[0], t.amounts[0]
	for i := range rememberedBursts {
		span, amount = min(span, t.spans[i]), min(amount, t.amounts[i])
	}
	return span, amount
}

// posting is the mean of the last gaps between posts, 0 before there are
// enough.
func (t *receiveTempo) posting() uint64 {
	if t.posts.n < len(t.posts.at) {
		return 0
	}
	return (t.posts.at[tempoGaps] - t.posts.at[0]) / tempoGaps
}

// consumption is the mean of the last times from a notification to the next
// buffer, 0 before there are enough.
func (t *receiveTempo) consumption() uint64 {
	if t.used < rememberedBursts {
		return 0
	}
	sum := uint64(0)
	for _, u := range t.uses {
		sum += u / rememberedBursts
	}
	return sum
}

// add adds to l what the inputs in mask say. They say nothing as long as it is 0,
// a time above most, or less than least.
func (t *receiveTempo) add(l *delayCriteria, mask, most uint64, least *delayCriteria) {
	after := func(ns uint64, by abi.Counter) {
		if ns > 0 && ns <= most && ns >= least.time {
			l.after(ns, by)
		}
	}
	span, amount := t.burst()
	at := func(by abi.Counter) {
		if amount > 0 && amount >= least.amount {
			l.at(amount, by)
		}
	}
	if mask&dynamicArrivals != 0 && span > 0 {
		// A quarter more, so that the last bytes of a burst are not late.
		after(min(span+span/4, most), abi.CounterReceiveByArrivals)
		at(abi.CounterReceiveByArrivals)
	}
	if mask&dynamicPosts != 0 {
		after(t.posting(), abi.CounterReceiveByPosts)
	}
	if mask&dynamicConsumption != 0 {
		after(t.consumption(), abi.CounterReceiveByConsumption)
	}
	if mask&dynamicAmounts != 0 {
		at(abi.CounterReceiveByAmounts)
	}
}

// unitPace is how long the last link transfer's worth of bytes took to come
// (SPEC.md §14.6, MM08).
type unitPace struct {
	began, bytes uint64 // of the unit under way
	ended, took  uint64 // the last one; took 0: none
}

// arrive notes that n bytes have come, of units of so many.
func (p *unitPace) arrive(now, n, unit uint64) {
	if p.bytes == 0 {
		p.began = now
	}
	if p.bytes += n; p.bytes >= unit {
		p.ended, p.took, p.bytes = now, now-p.began, 0
	}
}

// patience is how long bytes may wait for the rest of their unit; 0: not at
// all, since no unit came within most, or none so short ago.
func (p *unitPace) patience(now, most uint64) uint64 {
	if p.took > most || now-p.ended > most {
		return 0
	}
	return 2 * p.took
}
