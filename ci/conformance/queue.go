// SPDX-License-Identifier: Apache-2.0

package conformance

import (
	"fmt"

	"toebox/vdev/abi"
)

// ping is a request that costs nothing and is answered at once: a get of
// attribute LINK through a control buffer that the caller provides.
func (r *ring) ping() desc {
	r.Helper()
	m := r.alloc(16)
	copy(m.Bytes, new(ctl).get(0x0113, 8).b)
	return desc{Type: reqAdapter, Aux: 1, Base: m.IOVA, Length: 16}
}

// pong checks the answer to a ping.
func pong(t *T, d desc) {
	t.Helper()
	terminal(t, "get of attribute LINK", d, rspAdapter, stOK)
	want(t, "tuples done", d.Length, 1)
	want(t, "first failed tuple", d.Offset, 0xffffffff)
}

// TestIF01_Create creates a queue, uses it, destroys it, creates it again.
func TestIF01_Create(t *T) {
	c := t.start()
	r := c.ring(0, ringConfig{})
	want(t, "status of create", r.lastStatus(), 0)
	pong(t, r.do(r.ping()))
	r.settle()
	want(t, "Q_IN_INDEX", c.read(0x1028), 1)
	want(t, "Q_OUT_INDEX", c.read(0x102c), 1)
	r.command(1)
	want(t, "state after a second create", r.state(), 1)
	want(t, "status of a second create", r.lastStatus(), 0)
	r.command(5)
	r.await(0)
	want(t, "status of destroy", r.lastStatus(), 0)
	r.command(5)
	want(t, "status of a second destroy", r.lastStatus(), 0)
	ignored := c.moved(ctrDoorbellIgnored, func() { c.write(0x4000, 5) })
	want(t, "doorbell_ignored for a queue not running", ignored, 1)
	r.blank()
	r.create()
	pong(t, r.do(r.ping()))
}

// TestIF01_Refused goes through every reason to refuse a create (SPEC.md §3.2).
func TestIF01_Refused(t *T) {
	c := t.open()
	r := c.build(0, ringConfig{})
	refuse := func(name string, status uint32, f func()) {
		t.Helper()
		r.blank()
		r.program()
		r.reg(0x24, 1)
		f()
		r.command(1)
		c.until("the answer to a create: "+name, func() bool { return r.lastStatus() == status || r.state() == 1 })
		want(t, name+": status", r.lastStatus(), status)
		want(t, name+": state", r.state(), 0)
	}
	refuse("CONTROL.RUN is 0", stNotRunning, func() {})
	c.run()
	refuse("vector 33", stBadVector, func() { r.reg(0x24, 33) })
	refuse("vector 2^32-1", stBadVector, func() { r.reg(0x24, 0xffffffff) })
	for _, sizes := range []uint32{3 | 6<<8, 6 | 3<<8, 17 | 6<<8, 6 | 17<<8, 0, 0xff06, 0x06ff} {
		refuse(fmt.Sprintf("sizes %#x", sizes), stBadSize, func() { r.reg(0x20, sizes) })
	}
	refuse("input table at 16", stBadAlignment, func() { r.reg(0x08, uint32(r.in.IOVA)+16) })
	refuse("output table at 1", stBadAlignment, func() { r.reg(0x10, uint32(r.out.IOVA)+1) })
	refuse("event block at 32", stBadAlignment, func() { r.reg(0x18, uint32(r.ev.IOVA)+32) })
	refuse("input table where no memory is", stBadMemory, func() { r.reg(0x0c, 0x7fff) })
	refuse("output table where no memory is", stBadMemory, func() { r.reg(0x14, 0x7fff) })
	refuse("event block where no memory is", stBadMemory, func() { r.reg(0x1c, 0x7fff) })
	refuse("table beyond 2^64", stBadMemory, func() { r.reg(0x08, 0xffffffe0); r.reg(0x0c, 0xffffffff) })
	refuse("input table is output table", stOverlap, func() {
		r.reg(0x10, uint32(r.in.IOVA))
		r.reg(0x14, uint32(r.in.IOVA>>32))
	})
	refuse("event block in the input table", stOverlap, func() {
		r.reg(0x18, uint32(r.in.IOVA)+1024)
		r.reg(0x1c, uint32(r.in.IOVA>>32))
	})
	refuse("an input slot of owner 1", stBadOwner, func() { abi.StoreWord(r.in.Bytes[32*63:], 0x80) })
	refuse("an output slot of owner 0", stBadOwner, func() { abi.StoreWord(r.out.Bytes[32*7:], 0) })
	refuse("a zeroed output table", stBadOwner, func() { clear(r.out.Bytes) })
	r.command(77)
	want(t, "an unknown command: status", r.lastStatus(), stBadCommand)
	want(t, "an unknown command: state", r.state(), 0)

	r.blank()
	r.program()
	r.reg(0x24, 1)
	r.create()
	other := c.build(1, ringConfig{})
	other.reg(0x18, uint32(r.in.IOVA))
	other.reg(0x1c, uint32(r.in.IOVA>>32))
	other.command(1)
	want(t, "event block in another queue's table: status", other.lastStatus(), stOverlap)
	want(t, "event block in another queue's table: state", other.state(), 0)
	pong(t, r.do(r.ping()))
}

// TestIF01_Sizes: rings of the smallest and the largest size, and unequal ones.
func TestIF01_Sizes(t *T) {
	c := t.start()
	for q, s := range [][2]uint{{4, 4}, {4, 12}, {12, 4}, {16, 16}} {
		r := c.ring(uint32(q), ringConfig{inLog: s[0], outLog: s[1]})
		p := r.ping()
		for range 40 {
			pong(t, r.do(p))
		}
		r.command(5)
		r.await(0)
	}
}

// TestIF01_SeveralQueues: queues do not disturb each other, each with its own
// tables and vector.
func TestIF01_SeveralQueues(t *T) {
	c := t.start()
	c.enableVectors()
	var rings []*ring
	for _, q := range []uint32{0, 1, 2, 30, 31} {
		rings = append(rings, c.ring(q, ringConfig{inLog: 4, outLog: 4, first: 2 << 30}))
	}
	waits := make([]*vectorWait, len(rings))
	for i, r := range rings {
		waits[i] = c.vector(int(r.q) + 1)
	}
	for round := range 3 {
		for i, r := range rings {
			tag := r.post(r.ping())
			waits[i].atLeast(t, fmt.Sprintf("interrupt %d of queue %d", round+1, r.q), round+1)
			pong(t, r.answer(tag))
		}
	}
	rings[1].command(5)
	rings[1].await(0)
	_, rs := rings[0].attrs(reqAdapter, 0, new(ctl).get(0x0112, 8))
	want(t, "attribute QUEUE_COUNT", rs[0].scalar(), 4)
	for i, r := range rings {
		if i != 1 {
			pong(t, r.do(r.ping()))
		}
	}
	conn := desc{Type: reqTerminate, Conn: 0x1234, Length: 1}
	terminal(t, "an id that never was", rings[2].do(conn), rspTerminated, stBadConnection)
}

// TestIF01_PauseDrain: pause keeps requests in the table, drain answers what
// was taken (SPEC.md §3.2).
func TestIF01_PauseDrain(t *T) {
	c := t.start()
	r := c.ring(0, ringConfig{})
	r.command(2)
	r.await(2)
	tag := r.post(r.ping())
	r.ringIn()
	r.quiet("an answer while the queue is paused", func(desc) bool { return true })
	want(t, "owner bit of a slot while paused", abi.LoadWord(r.inSlot(0))&0x80, 0x80)
	r.command(2)
	want(t, "status of a second pause", r.lastStatus(), 0)
	r.command(3)
	r.await(1)
	pong(t, r.answer(tag))
	m := r.buffer(256)
	waiting := r.available(0, m, 0)
	pong(t, r.do(r.ping()))
	r.command(4)
	r.await(4)
	d := r.answer(waiting)
	terminal(t, "a bulk buffer at a drain", d, rspDone, stCancelled)
	want(t, "its length", d.Length, 0)
	late := r.post(r.ping())
	r.ringIn()
	r.quiet("an answer of a drained queue", func(d desc) bool { return d.Tag == late })
	r.command(5)
	r.await(0)
}

// TestIF01_ConfigTakenAtCreate: registers written later count for the next create.
func TestIF01_ConfigTakenAtCreate(t *T) {
	c := t.start()
	r := c.ring(0, ringConfig{})
	for off := uint32(0x08); off <= 0x24; off += 4 {
		r.reg(off, 0xffffffff)
	}
	pong(t, r.do(r.ping()))
}

// TestIF02_HandBack: a taken slot gets owner 0 and keeps its other bits
// (SPEC.md §4.2).
func TestIF02_HandBack(t *T) {
	c := t.start()
	r := c.ring(0, ringConfig{})
	p := r.ping()
	p.Tag = 0x51
	r.post(p)
	pong(t, r.answer(0x51))
	// Type 8, owner 0, one tuple; base and length as posted.
	want(t, "word 0 of the slot", abi.LoadWord(r.inSlot(0)), 0x00010020)
	d := parse(0, r.inSlot(0))
	want(t, "base in the slot", d.Base, p.Base)
	want(t, "tag in the slot", d.Tag, 0x51)
}

// TestIF02_Gap: nothing behind the first slot that is not the adapter's is
// taken, whatever the doorbell says.
func TestIF02_Gap(t *T) {
	c := t.start()
	r := c.ring(0, ringConfig{})
	first, second, third := r.ping(), r.ping(), r.ping()
	for i, d := range []*desc{&first, &second, &third} {
		d.Tag = r.tag()
		r.note(*d)
		d.body(r.inSlot(uint32(i)))
	}
	// Published out of order: the third, then the second; the first is the gap.
	abi.StoreWord(r.inSlot(2), third.word())
	abi.StoreWord(r.inSlot(1), second.word())
	r.produced = 3
	r.ringIn()
	r.quiet("an answer to a request behind a gap", func(desc) bool { return true })
	want(t, "Q_IN_INDEX before the gap is filled", c.read(0x1028), 0)
	abi.StoreWord(r.inSlot(0), first.word())
	c.write(0x4000, 3)
	for _, d := range []desc{first, second, third} {
		pong(t, r.answer(d.Tag))
	}
}

// TestIF02_DoorbellOwnsNothing: a doorbell far ahead makes nothing a request.
func TestIF02_DoorbellOwnsNothing(t *T) {
	c := t.start()
	r := c.ring(0, ringConfig{})
	d := r.ping()
	d.Tag = 7
	for i := range uint32(8) {
		d.body(r.inSlot(i))
		abi.StoreWord(r.inSlot(i), d.word()&^0x80)
	}
	for _, v := range []uint32{8, 64, 1 << 29, 0x3fffffff, 0xffffffff} {
		c.write(0x4000, v)
		c.write(0x4004, v)
	}
	r.quiet("a response to a slot of owner 0", func(desc) bool { return true })
	want(t, "Q_IN_INDEX", c.read(0x1028), 0)
	pong(t, r.do(r.ping()))
}

// TestIF02_Wrap goes round both tables many times, in batches that straddle
// the end.
func TestIF02_Wrap(t *T) {
	c := t.start()
	r := c.ring(0, ringConfig{inLog: 4, outLog: 4})
	p := r.ping()
	n := 0
	for round := 0; n < 1000; round++ {
		batch := 1 + round%16
		tags := make([]uint32, batch)
		ds := make([]desc, batch)
		for i := range ds {
			ds[i] = p
			ds[i].Tag = r.tag()
			tags[i] = ds[i].Tag
		}
		r.post(ds...)
		for _, tag := range tags {
			pong(t, r.answer(tag))
		}
		n += batch
	}
	r.settle()
	want(t, "Q_IN_INDEX", c.read(0x1028), uint32(n))
	want(t, "Q_OUT_INDEX", c.read(0x102c), uint32(n))
}

// TestIF03_Runs: one doorbell for many requests, one DMA read per contiguous
// run, two where the table wraps, one DMA write per run of responses.
func TestIF03_Runs(t *T) {
	c := t.start()
	r := c.ring(0, ringConfig{inLog: 4, outLog: 6})
	p := r.ping()
	batch := func(n int) (reads, writes, bells uint64) {
		t.Helper()
		r.command(2)
		r.await(2)
		ds := make([]desc, n)
		for i := range ds {
			ds[i] = p
		}
		b0, r0, w0 := c.counter(ctrDoorbellsIn), c.counter(ctrDescriptorReads), c.counter(ctrDescriptorWrites)
		for i := range ds {
			ds[i].Tag = r.tag()
			r.note(ds[i])
			r.put(ds[i])
		}
		r.ringIn()
		r.command(3)
		for _, d := range ds {
			pong(t, r.answer(d.Tag))
		}
		r.settle()
		return c.counter(ctrDescriptorReads) - r0, c.counter(ctrDescriptorWrites) - w0, c.counter(ctrDoorbellsIn) - b0
	}
	reads, writes, bells := batch(10)
	want(t, "descriptor_reads for 10 requests in a row", reads, 1)
	want(t, "descriptor_writes for their responses", writes, 1)
	want(t, "doorbells_in", bells, 1)
	reads, _, _ = batch(12) // slots 10..15, 0..5
	want(t, "descriptor_reads for 12 requests around the end", reads, 2)
}

// TestIF11_Polling: a host that polls gets no interrupt.
func TestIF11_Polling(t *T) {
	c := t.start()
	w := c.vector(1)
	r := c.ring(0, ringConfig{})
	p := r.ping()
	irqs := c.counter(ctrInterrupts)
	suppressed := c.moved(ctrSuppressed, func() {
		for range 20 {
			pong(t, r.do(p))
		}
		r.settle()
	})
	want(t, "interrupts while polling", c.counter(ctrInterrupts)-irqs, 0)
	want(t, "interrupts that arrived", w.seen(), 0)
	if suppressed == 0 {
		t.Errorf("interrupts_suppressed did not move")
	}
}

// TestIF11_Interrupt: mode 2 tells each time, mode 1 when the asked slot is
// published and not before (SPEC.md §4.4).
func TestIF11_Interrupt(t *T) {
	c := t.start()
	w := c.vector(1)
	r := c.ring(0, ringConfig{first: 2 << 30})
	p := r.ping()
	for i := range 5 {
		tag := r.post(p)
		w.atLeast(t, "an interrupt for each response in mode 2", i+1)
		pong(t, r.answer(tag))
	}
	ask := func(v uint32) { abi.StoreWord(r.ev.Bytes[evOutPublished:], v) }
	ask(1<<30 | (r.taken + 3))
	before := w.seen()
	for range 3 {
		pong(t, r.do(p))
	}
	t.never("an interrupt before the asked slot was published", nothing/2, func() bool { return w.seen() != before })
	tag := r.post(p)
	w.atLeast(t, "the interrupt of the asked slot", before+1)
	pong(t, r.answer(tag))
	pong(t, r.do(p))
	t.never("a second interrupt for one event word", nothing/2, func() bool { return w.seen() != before+1 })
	ask(3 << 30)
	before = w.seen()
	tag = r.post(p)
	w.atLeast(t, "an interrupt in mode 3, which is as 2", before+1)
	pong(t, r.answer(tag))
	ask(0)
	before = w.seen()
	pong(t, r.do(p))
	t.never("an interrupt in mode 0", nothing/2, func() bool { return w.seen() != before })
}

// TestIF11_InputFreed: event word IN_FREED tells when a slot is handed back.
func TestIF11_InputFreed(t *T) {
	c := t.start()
	w := c.vector(1)
	r := c.ring(0, ringConfig{})
	p := r.ping()
	abi.StoreWord(r.ev.Bytes[evInFreed:], 1<<30|1)
	pong(t, r.do(p))
	t.never("an interrupt for slot 0 when slot 1 was asked", nothing/2, func() bool { return w.seen() != 0 })
	pong(t, r.do(p))
	w.atLeast(t, "the interrupt for slot 1", 1)
}

// TestIF11_Switch changes between polling and interrupts while requests run:
// no response is lost and no wake-up either.
func TestIF11_Switch(t *T) {
	c := t.start()
	w := c.vector(1)
	r := c.ring(0, ringConfig{})
	p := r.ping()
	for i := range 200 {
		polling := t.rng.IntN(2) == 0
		if polling {
			abi.StoreWord(r.ev.Bytes[evOutPublished:], 0)
			pong(t, r.do(p))
			continue
		}
		tag := r.post(p)
		// The waiting side: ask, then look once more, then sleep.
		abi.StoreWord(r.ev.Bytes[evOutPublished:], 1<<30|r.taken)
		before := w.seen()
		if !r.consume() {
			w.atLeast(t, fmt.Sprintf("wake-up %d", i), before+1)
		}
		pong(t, r.answer(tag))
	}
}

// TestIF11_DoorbellOnlyIfAsked: while the adapter polls or is told not to, no
// doorbell is needed; when it sleeps its event word asks for one.
func TestIF11_DoorbellOnlyIfAsked(t *T) {
	c := t.start()
	r := c.ring(0, ringConfig{})
	p := r.ping()
	for range 50 {
		pong(t, r.do(p)) // tell rings only when asked: an answer must come all the same
	}
	if r.doorbells > 50 {
		t.Errorf("%d doorbells for 50 requests", r.doorbells)
	}
	// An idle adapter must have asked to be told, or it will never look.
	t.until("IN_PUBLISHED to ask for a doorbell", func() bool {
		return asked(abi.LoadWord(r.ev.Bytes[evInPublished:]), r.produced, (r.produced+1)&(1<<30-1))
	})
}
