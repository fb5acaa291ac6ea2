// SPDX-License-Identifier: Apache-2.0

package firmware

// What NOTIFY_ADAPTIVE looks at (SPEC.md §14.1).
const (
	adaptResults  = 1 << iota // rate of establishment
	adaptRequests             // rate of requests
	adaptPeriod               // number in a period
	adaptBursts               // burst history
	adaptAll      = 1<<iota - 1
)

// Constants of the dynamic rule (SPEC.md §14.1), times in ns.
const (
	tempoWait   = 10_000_000  // that rates look ahead
	tempoPeriod = 100_000_000 // of the number in a period
	tempoQuiet  = 100_000_000 // that ends a burst
	tempoGaps   = 4           // between the results that make a rate
	tempoBursts = 4           // remembered
	tempoMost   = 256         // results that a rate or a period waits for
)

// pace is when the last few things happened.
type pace struct {
	at [tempoGaps + 1]uint64
	n  int // how many happened, at most what is remembered
}

func (p *pace) add(now uint64) {
	if p.n == len(p.at) {
		copy(p.at[:], p.at[1:])
		p.n--
	}
	p.at[p.n] = now
	p.n++
}

// count is how many come within the time that rates look ahead, at the mean of
// the last gaps.
func (p *pace) count() uint64 {
	if p.n < len(p.at) {
		return 1
	}
	span := p.at[tempoGaps] - p.at[0]
	if span == 0 {
		return tempoMost
	}
	return bounded(tempoWait * tempoGaps / span)
}

func bounded(n uint64) uint64 { return min(max(n, 1), tempoMost) }

// tempo is what a queue remembers of results, and of targets of connect
// requests, for NOTIFY_ADAPTIVE.
type tempo struct {
	results, requests pace

	period       uint64 // the number of the running one
	inPeriod     uint64 // results in it
	inPeriodPast uint64 // in the one before

	latest uint64 // when the last result came
	burst  uint64 // results in the burst under way
	bursts [tempoBursts]uint64
	past   int // bursts that have ended
}

// result notes a result that NOTIFY_ADAPTIVE is set for.
func (t *tempo) result(now uint64) {
	t.results.add(now)

	switch p := now / tempoPeriod; {
	case p == t.period:
		t.inPeriod++
	case p == t.period+1:
		t.period, t.inPeriodPast, t.inPeriod = p, t.inPeriod, 1
	default:
		t.period, t.inPeriodPast, t.inPeriod = p, 0, 1
	}

	if t.burst > 0 && now-t.latest >= tempoQuiet {
		t.bursts[t.past%tempoBursts] = t.burst
		t.past++
		t.burst = 0
	}
	t.burst++
	t.latest = now
}

// request notes that a target of a connect request was started.
func (t *tempo) request(now uint64) { t.requests.add(now) }

// predict says at which number a list that began at first goes out, and when at
// the latest: of what the inputs in mask say the least.
func (t *tempo) predict(mask, first uint64) (count, when uint64) {
	count, when = never, never
	if mask&adaptResults != 0 {
		count, when = min(count, t.results.count()), min(when, after(first, tempoWait))
	}
	if mask&adaptRequests != 0 {
		count, when = min(count, t.requests.count()), min(when, after(first, tempoWait))
	}
	if mask&adaptPeriod != 0 {
		count = min(count, bounded(t.inPeriodPast))
		when = min(when, after(first-first%tempoPeriod, tempoPeriod))
	}
	if mask&adaptBursts != 0 && t.past > 0 {
		largest := uint64(0)
		for _, n := range t.bursts {
			largest = max(largest, n)
		}
		count = min(count, largest)
	}
	return count, when
}
