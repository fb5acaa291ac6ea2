// SPDX-License-Identifier: Apache-2.0

package firmware

import (
	"bytes"
	"testing"

	"toebox/firmware/engine/enginetest"
	"toebox/vdev/abi"
)

func patternOf(t testing.TB, mode uint8, limit uint32, text []byte) *pattern {
	t.Helper()
	p, s := newPattern(abi.AppendNotifyPattern(nil, abi.NotifyPattern{Mode: mode, Bytes: limit, Pattern: text}))
	if s != abi.StatusOK {
		t.Fatal(s)
	}
	return p
}

// FuzzPattern looks for a pattern in pieces of a stream and compares with a
// search of the whole.
func FuzzPattern(f *testing.F) {
	f.Add([]byte("abababac"), []byte("xxabababababac"), []byte{3, 1, 9}, true)
	f.Add([]byte("aab"), []byte("aaaaaaab"), []byte{1}, true)
	f.Add([]byte("GET "), []byte("GET /"), []byte{2, 2}, false)
	f.Add([]byte("\r\n\r\n"), []byte("\r\n\r\r\n\r\n"), []byte{}, true)
	f.Fuzz(func(t *testing.T, text, stream, cuts []byte, anywhere bool) {
		if len(text) == 0 || len(text) > abi.MaxPattern {
			return
		}
		mode, end := uint8(patternStart), -1
		if anywhere {
			mode = patternEnd
			if i := bytes.Index(stream, text); i >= 0 {
				end = i + len(text)
			}
		} else if bytes.HasPrefix(stream, text) {
			end = len(text)
		}
		p := patternOf(t, mode, 0, text)
		var s scan
		for rest := stream; len(rest) > 0 && !s.found; {
			n := len(rest)
			if len(cuts) > 0 {
				n, cuts = min(n, int(cuts[0])), cuts[1:]
			}
			s.feed(p, rest[:n])
			rest = rest[n:]
		}
		if s.found != (end >= 0) || s.found && s.seen != uint64(end) || !s.found && s.seen != uint64(len(stream)) {
			t.Errorf("%q in %q: found %t after %d bytes, want %d", text, stream, s.found, s.seen, end)
		}
	})
}

// TestPace checks the arithmetic of rates with numbers worked out by hand.
func TestPace(t *testing.T) {
	for _, c := range []struct {
		times []uint64 // us
		want  uint64
	}{
		{nil, 1},
		{[]uint64{0, 1, 2, 3}, 1}, // three gaps
		{[]uint64{0, 1000, 2000, 3000, 4000}, 10},                                // 1 ms
		{[]uint64{0, 3000, 6000, 9000, 12000}, 3},                                // 3 ms: 3.33
		{[]uint64{0, 1000, 1000, 1000, 8000}, 5},                                 // 2 ms in the mean
		{[]uint64{0, 0, 0, 0, 0}, 256},                                           // at once
		{[]uint64{0, 1, 2, 3, 4}, 256},                                           // 10,000 at this rate
		{[]uint64{0, 1000, 2000, 3000, 100_000}, 1},                              // a pause
		{[]uint64{0, 9_000_000, 9_000_500, 9_001_000, 9_001_500, 9_002_000}, 20}, // the pause is forgotten
	} {
		var p pace
		for _, at := range c.times {
			p.add(at * 1000)
		}
		if got := p.count(); got != c.want {
			t.Errorf("%v: %d, want %d", c.times, got, c.want)
		}
	}
}

// TestPredict checks each input and their combination.
func TestPredict(t *testing.T) {
	const ms = 1_000_000
	var q tempo
	// A burst of 3, one of 6, one of 4 that is not over.
	at := uint64(1000 * ms)
	for _, n := range []int{3, 6, 4} {
		for range n {
			q.result(at)
			at += 2 * ms
		}
		at += 98 * ms
	}
	first := at - 100*ms
	for _, at := range []uint64{0, 10 * ms, 20 * ms, 30 * ms, 40 * ms} {
		q.request(at)
	}
	for _, c := range []struct {
		mask        uint64
		count, when uint64
	}{
		{adaptResults, 1, first + 10*ms}, // three gaps of 2 ms and the pause of 100 ms
		{adaptRequests, 1, first + 10*ms},
		{adaptPeriod, 6, (first/(100*ms) + 1) * 100 * ms},
		{adaptBursts, 6, never},
		{adaptPeriod | adaptBursts, 6, (first/(100*ms) + 1) * 100 * ms},
		{adaptAll, 1, first + 10*ms},
	} {
		if count, when := q.predict(c.mask, first); count != c.count || when != c.when {
			t.Errorf("inputs %#x: %d at %d, want %d at %d", c.mask, count, when, c.count, c.when)
		}
	}
	// Old bursts are forgotten: four of 2 after that of 6 and that of 4.
	for range 5 {
		at += 200 * ms
		q.result(at)
		q.result(at)
	}
	if count, _ := q.predict(adaptBursts, at); count != 2 {
		t.Errorf("%d after four bursts of 2", count)
	}
	var none tempo
	none.result(5)
	if count, when := none.predict(adaptBursts, 5); count != never || when != never {
		t.Errorf("without history %d at %d", count, when)
	}
}

// TestNoticesDoNotAllocate lets notices wait in every place and be recorded, in
// steady state.
func TestNoticesDoNotAllocate(t *testing.T) {
	f := New(Config{Engine: enginetest.NewEngine()})
	q := newQueue(f, 0, QueueConfig{InLog2: 4, OutLog2: 4})
	p := patternOf(t, patternEnd, 0, []byte("needle"))
	var from origin
	now := uint64(0)
	run := func() {
		w := &q.notices
		for range 64 {
			for place := placeGathered; place < numPlaces; place++ {
				n := q.newNotice()
				now++
				n.due = now + 7
				from.add(n)
				w.put(n, place)
				w.tempo.result(now)
				w.tempo.request(now)
				count, when := w.tempo.predict(adaptAll, now)
				w.gather.join(now, criteria{bytes: 64, count: count, time: when, dynamic: true})
				w.gather.due(now)
				n.scan.feed(p, []byte("haystack"))
			}
		}
		w.gather = gather{}
		b := q.reports.chunk[:0]
		for n := from.oldest; n != nil; n = from.oldest {
			b = n.record(b[:0])
			w.take(n)
			q.told(n)
		}
	}
	run()
	if n := testing.AllocsPerRun(10, run); n != 0 {
		t.Errorf("%v allocations for %d notices", n, 64*int(numPlaces-1))
	}
}
