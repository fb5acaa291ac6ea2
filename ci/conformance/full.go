// SPDX-License-Identifier: Apache-2.0

package conformance

import "toebox/vdev/abi"

// TestIF12_NearlyFull: when free output slots fall below OUT_THRESHOLD an
// interrupt comes whatever OUT_PUBLISHED says, once per fall (SPEC.md §4.4).
func TestIF12_NearlyFull(t *T) {
	c := t.start()
	w := c.vector(1)
	r := c.ring(0, ringConfig{inLog: 6, outLog: 4})
	if s, _ := r.setScalar(reqAdapter, 0, 0x010c, 4); s != stOK {
		t.Fatalf("set of OUT_THRESHOLD: status %d", s)
	}
	p := r.ping()
	batch := func(n int) []uint32 {
		tags := make([]uint32, n)
		for i := range tags {
			tags[i] = r.post(p)
		}
		return tags
	}
	done := func(tags []uint32) {
		t.Helper()
		for _, tag := range tags {
			pong(t, r.answer(tag))
		}
	}
	for round := range 3 {
		urgent := c.counter(ctrUrgent)
		before := w.seen()
		// 12 responses leave 4 free: not below the threshold.
		tags := batch(12)
		t.until("12 responses", func() bool { return c.read(0x1030) == 0 && c.read(0x102c) == r.taken+12 })
		r.settle()
		want(t, "interrupts_urgent with 4 slots free", c.counter(ctrUrgent)-urgent, 0)
		tags = append(tags, batch(1)...)
		w.atLeast(t, "the urgent interrupt", before+1)
		tags = append(tags, batch(2)...)
		t.until("15 responses", func() bool { return c.read(0x102c) == r.taken+15 })
		r.settle()
		want(t, "interrupts_urgent in one fall", c.counter(ctrUrgent)-urgent, 1)
		done(tags)
		if round == 0 {
			want(t, "interrupts that arrived", w.seen(), before+1)
		}
	}
}

// TestIF12_Full: with the output table full the adapter holds responses,
// counts them, and delivers each once when the host consumes again.
func TestIF12_Full(t *T) {
	c := t.start()
	r := c.ring(0, ringConfig{inLog: 8, outLog: 4})
	p := r.ping()
	held := c.counter(ctrResponsesHeld)
	ds := make([]desc, 100)
	for i := range ds {
		ds[i] = p
		ds[i].Tag = r.tag()
		r.note(ds[i])
		r.put(ds[i])
	}
	r.ringIn()
	t.until("the output table to be full", func() bool { return c.read(0x102c) == 16 })
	t.until("responses to be held", func() bool { return c.read(0x1030) > 0 })
	r.settle()
	if c.counter(ctrResponsesHeld) == held {
		t.Errorf("responses_held did not move")
	}
	for _, d := range ds {
		pong(t, r.answer(d.Tag))
	}
	want(t, "requests without a terminal response", len(r.open), 0)
	t.until("Q_HELD to be 0", func() bool { return c.read(0x1030) == 0 })
	r.quiet("a response too many", func(desc) bool { return true })
}

// TestIF12_HostStops: a host that consumes nothing and posts for ever does not
// make the adapter grow without bound: it stops taking requests, goes on
// afterwards, and every request is answered once.
func TestIF12_HostStops(t *T) {
	c := t.start()
	r := c.ring(0, ringConfig{inLog: 10, outLog: 4})
	p := r.ping()
	const total = 60000
	const ctrRequestsStalled = 42
	before := c.counter(ctrRequestsStalled)
	posted := 0
	stalled := false
	for posted < total && !stalled {
		p.Tag = r.tag()
		s := r.inSlot(r.produced)
		taken := func() bool { return abi.LoadWord(s)&0x80 == 0 }
		r.until("a request to be taken, or to wait", func() bool {
			stalled = !taken() && c.counter(ctrRequestsStalled) != before
			return stalled || taken()
		})
		if stalled {
			break
		}
		r.note(p)
		r.put(p)
		r.tell(r.produced - 1)
		posted++
	}
	if !stalled {
		t.Errorf("the adapter took %d requests without any response consumed", posted)
	}
	if n := c.read(0x1030); n == 0 || n > 1<<16 {
		t.Errorf("Q_HELD is %d", n)
	}
	for range posted {
		r.take("each response once", func(d desc) bool { return d.Type == rspAdapter })
	}
	want(t, "requests without a terminal response", len(r.open), 0)
	p.Tag = 0
	pong(t, r.do(p))
}

// TestIF12_Destroy: destroy of a queue whose host consumes nothing ends after
// about a second, and what could not be posted is counted (SPEC.md §3.2).
func TestIF12_Destroy(t *T) {
	c := t.start()
	r := c.ring(0, ringConfig{inLog: 6, outLog: 4})
	p := r.ping()
	for range 40 {
		p.Tag = r.tag()
		r.note(p)
		r.put(p)
	}
	r.ringIn()
	t.until("responses to be held", func() bool { return c.read(0x1030) > 0 })
	abandoned := c.moved(41, func() {
		r.command(5)
		r.await(0)
	})
	if abandoned == 0 {
		t.Errorf("responses_abandoned did not move")
	}
}
