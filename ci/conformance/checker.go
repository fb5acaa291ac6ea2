// SPDX-License-Identifier: Apache-2.0

package conformance

import (
	"encoding/binary"
	"fmt"

	"toebox/guestdriver"
	"toebox/vdev/abi"
)

// innocent fails the test at its end when the protocol checker found more than
// it had before (SPEC.md §15). report reads CHECKER_REPORT.
func (t *T) innocent(bus guestdriver.Bus, report func() []byte) {
	count := func() uint64 {
		bus.Write32(0, regStatSelect, ctrViolations)
		lo := bus.Read32(0, regStatLo)
		return uint64(bus.Read32(0, regStatHi))<<32 | uint64(lo)
	}
	before := count()
	t.Cleanup(func() {
		n := count()
		if n < before {
			before = 0 // new firmware
		}
		if n == before || t.offends {
			return
		}
		t.Errorf("the protocol checker found %d violations", n-before)
		for _, v := range violations(report()) {
			t.Logf("%v", v)
		}
	})
}

// reportEntries reads CHECKER_REPORT by a queue of its own, if it can.
func (c *card) reportEntries() []byte {
	const q = 31
	if c.read(regStatus)&2 == 0 || c.read(0x1000+0x40*q+4)&0xf != 0 {
		return nil
	}
	r := c.ring(q, ringConfig{})
	_, rs := r.attrs(reqAdapter, 0, new(ctl).get(0x0114, 16+32*160))
	return rs[0].Value[:min(int(rs[0].Length), len(rs[0].Value))]
}

// Rules (SPEC.md §15).
const (
	ruleInRewritten    = 1
	ruleInWithdrawn    = 2
	ruleOutOwner       = 3
	ruleOutWritten     = 4
	ruleOutEarly       = 5
	ruleBellNothing    = 6
	ruleBellIndex      = 7
	ruleSendChanged    = 8
	ruleBufferChanged  = 9
	ruleControlChanged = 10
)

// violation is an entry of CHECKER_REPORT.
type violation struct {
	Rule    uint16
	Queue   uint8
	Place   uint8
	Index   uint32
	Address uint64
	Tag     uint32
	Detail  uint32
	Known   desc
	Found   desc
	Events  []string // kind and type
}

func (v violation) String() string { return fmt.Sprintf("violation %+v", struct{ violation any }{v}) }

// violations parses CHECKER_REPORT.
func violations(b []byte) (list []violation) {
	le := binary.LittleEndian
	if len(b) < 16 {
		return nil
	}
	for b = b[16:]; len(b) >= 160; b = b[160:] {
		v := violation{
			Rule: le.Uint16(b), Queue: b[2], Place: b[3], Index: le.Uint32(b[4:]), Address: le.Uint64(b[8:]),
			Tag: le.Uint32(b[16:]), Detail: le.Uint32(b[20:]),
			Known: parse(le.Uint32(b[32:]), b[32:64]), Found: parse(le.Uint32(b[64:]), b[64:96]),
		}
		for e := b[96:160]; len(e) > 0; e = e[16:] {
			if e[0] != 0 {
				v.Events = append(v.Events, fmt.Sprintf("%d/%d", e[0], e[1]))
			}
		}
		list = append(list, v)
	}
	return list
}

// found waits for the n-th violation since the reset and returns it.
func (c *card) found(n int) violation {
	c.Helper()
	c.until("CHECKER_COUNT", func() bool { return c.read(regChecker+4) >= uint32(n) })
	must(c.T, "CHECKER_COUNT", c.read(regChecker+4), uint32(n))
	// Counted at once, described at the end of the pass.
	c.until("EVENTS bit 4", func() bool { return c.read(regEvents)&0x10 != 0 })
	c.write(regEvents, 0x10)
	r := c.side
	if r == nil {
		r = c.ring(30, ringConfig{})
		c.side = r
	}
	_, rs := r.attrs(reqAdapter, 0, new(ctl).get(0x0114, 16+32*160))
	must(c.T, "status of CHECKER_REPORT", rs[0].Status, stOK)
	b := rs[0].Value[:rs[0].Length]
	must(c.T, "violations that the report says", binary.LittleEndian.Uint32(b), uint32(n))
	list := violations(b)
	must(c.T, "entries", len(list), n)
	v := list[n-1]
	c.Logf("%v", v)
	return v
}

// looked returns when the checker of the only queue, which does nothing else,
// has looked at its tables: the second pass begins when the first is over, and
// a write of CHECKER makes one.
func (c *card) looked() {
	c.Helper()
	for range 2 {
		n := c.counter(ctrPasses)
		c.write(regChecker, 1)
		c.until("a pass of the queue", func() bool { return c.counter(ctrPasses) > n })
	}
}

// wantViolation compares the fields that a driver author looks at first.
func wantViolation(t *T, v violation, rule uint16, place uint8, index uint32, address uint64, tag, detail uint32) {
	t.Helper()
	want(t, "rule", v.Rule, rule)
	want(t, "queue", v.Queue, 0)
	want(t, "place", v.Place, place)
	want(t, "index", v.Index, index)
	want(t, "address", v.Address, address)
	want(t, "tag", v.Tag, tag)
	want(t, "detail", v.Detail, detail)
}

// waiting publishes a ping that a paused queue does not take and returns it
// when the checker has seen it.
func (r *ring) waiting() desc {
	r.Helper()
	r.command(2)
	r.await(2)
	p := r.ping()
	p.Tag = r.tag()
	r.note(p)
	r.put(p)
	r.looked()
	return p
}

// TestIF02_CheckerInput: a request that waits in the table is changed, and
// another is taken back (SPEC.md §15, rules 1 and 2).
func TestIF02_CheckerInput(t *T) {
	c := t.start()
	r := c.ring(0, ringConfig{})
	p := r.waiting()
	slot := r.inSlot(0)
	slot[16] = 1 // the connection id, which is reserved
	r.command(3)
	d := r.answer(p.Tag)
	terminal(t, "the request as it was changed", d, rspAdapter, stReserved)
	v := c.found(1)
	wantViolation(t, v, ruleInRewritten, 1, 0, r.in.IOVA, p.Tag, 16)
	want(t, "connection id as seen", v.Known.Conn, 0)
	want(t, "connection id as found", v.Found.Conn, 1)
	want(t, "first events of the tag", fmt.Sprint(v.Events[:2]), "[1/8 2/8]")

	c.restart()
	r = c.ring(0, ringConfig{})
	p = r.waiting()
	abi.StoreWord(r.inSlot(0), p.word()&^0x80)
	r.command(3)
	v = c.found(1)
	wantViolation(t, v, ruleInWithdrawn, 1, 0, r.in.IOVA, p.Tag, 0)
	r.quiet("an answer to a request that was taken back", func(desc) bool { return true })
}

// TestIF02_CheckerOutput: the host writes into the table of responses: a slot
// that it handed back, and one that it is about to (rules 3 and 4).
func TestIF02_CheckerOutput(t *T) {
	c := t.start()
	r := c.ring(0, ringConfig{outLog: 4})
	at := func(i uint32) uint64 { return r.out.IOVA + 32*uint64(i%16) }
	p := r.ping()
	pong(t, r.do(p))
	// The host's consumer index is not at this slot until its response is there.
	abi.StoreWord(r.outSlot(1), 0)
	p.Tag = r.tag()
	r.note(p)
	r.put(p)
	r.ringIn()
	v := c.found(1)
	wantViolation(t, v, ruleOutOwner, 2, 1, at(1), 0, 0)
	pong(t, r.answer(p.Tag))

	r.outSlot(2)[20] = 0xaa
	p.Tag = 0
	pong(t, r.do(p))
	v = c.found(2)
	wantViolation(t, v, ruleOutWritten, 2, 2, at(2), 0, 20)

	// A response overwritten before its slot is handed back: found when the
	// adapter comes to it again.
	p.Tag = r.tag()
	r.note(p)
	r.put(p)
	r.ringIn()
	t.until("the response", func() bool { return abi.LoadWord(r.outSlot(3))&0x80 == 0 })
	r.outSlot(3)[4] ^= 0x40
	r.strict = false
	r.consume()
	r.strict = true
	r.got = nil
	tag := p.Tag
	delete(r.open, tag)
	p.Tag = 0
	for range 16 {
		pong(t, r.do(p))
	}
	v = c.found(3)
	wantViolation(t, v, ruleOutWritten, 2, 3, at(3), tag, 4)
	want(t, "tag that the adapter wrote", v.Known.Tag, tag)
	want(t, "tag that was found", v.Found.Tag, tag^0x40)
}

// TestIF02_CheckerDoorbells: doorbells that announce nothing, or what is not
// so (rules 5 to 7).
func TestIF02_CheckerDoorbells(t *T) {
	c := t.start()
	r := c.ring(0, ringConfig{inLog: 4, outLog: 4})
	p := r.ping()
	p.Tag = r.tag()
	r.note(p)
	r.put(p)
	c.write(0x4000, 1)
	pong(t, r.answer(p.Tag))
	c.write(0x4000, 1)
	wantViolation(t, c.found(1), ruleBellNothing, 1, 1, 0, 0, 1)
	c.write(0x4000, 3)
	wantViolation(t, c.found(2), ruleBellIndex, 1, 3, r.in.IOVA+32, 0, 1)
	c.write(0x4000, 0)
	wantViolation(t, c.found(3), ruleBellIndex, 1, 0, 0, 0, 1)
	c.write(0x4000, 18)
	wantViolation(t, c.found(4), ruleBellIndex, 1, 18, r.in.IOVA+32, 0, 17)
	c.write(0x4004, 1)
	c.write(0x4004, 1)
	wantViolation(t, c.found(5), ruleBellNothing, 2, 1, 0, 0, 1)
	c.write(0x4004, 2)
	wantViolation(t, c.found(6), ruleOutEarly, 2, 2, r.out.IOVA+32, 0, 1)
	p.Tag = 0
	pong(t, r.do(p))
}

// TestIF02_CheckerBuffers: buffers that change after they were handed over
// (rules 8 and 9).
func TestIF02_CheckerBuffers(t *T) {
	c := t.start()
	r := c.ring(0, ringConfig{})
	p, id := r.serve(Script{{Op: OpWait}, {Op: OpSend, N: 10, Seed: 1}, {Op: OpWait}, {Op: OpSend, N: 10, Seed: 2}, {Op: OpDiscard}})
	m := r.buffer(64)
	tag := r.available(id, m, 0)
	pong(t, r.do(r.ping())) // the buffer is taken
	check(t, "peer: signal", p.Signal(t.ctx))
	d := r.answer(tag)
	for n := d.Length; n < 10; {
		d = r.answer(tag)
		n += d.Length
	}
	pong(t, r.do(r.ping())) // the adapter has looked for more
	m.Bytes[0] = 0x55       // delivered: the host's
	m.Bytes[40] = 0xaa
	pong(t, r.do(r.ping()))
	check(t, "peer: signal", p.Signal(t.ctx))
	r.answer(tag)
	v := c.found(1)
	wantViolation(t, v, ruleBufferChanged, 3, 0, m.IOVA+10, tag, 0)
	want(t, "type in the descriptor", v.Known.Type, reqAvailable)
	want(t, "connection in the descriptor", v.Known.Conn, id)

	// A send behind one that cannot complete, because the peer does not read: it
	// is taken, and nothing of it is fetched.
	p, id = r.serve(Script{{Op: OpWait}, {Op: OpDiscard}})
	r.send(id, r.buffer(8<<20), 0)
	m = r.buffer(64)
	tag = r.send(id, m, 0)
	pong(t, r.do(r.ping()))
	m.Bytes[63]++
	pong(t, r.do(r.ping())) // the stores are before what the adapter reads later
	check(t, "peer: signal", p.Signal(t.ctx))
	terminal(t, "send", r.answer(tag), rspDone, stOK)
	v = c.found(2)
	wantViolation(t, v, ruleSendChanged, 3, 0, m.IOVA, tag, 0)
}

// TestIF02_CheckerControl: a control buffer that changes before the terminal
// response (rule 10).
func TestIF02_CheckerControl(t *T) {
	c := t.start()
	r := c.ring(0, ringConfig{})
	hang, err := t.Peer().Hang(t.ctx)
	check(t, "peer: hang", err)
	m, tag := r.control(reqConnect, 0, new(ctl).target(to(hang)))
	pong(t, r.do(r.ping())) // the request is taken
	m.Bytes[8+7] ^= 0x80    // its remote port
	d := r.do(desc{Type: reqCancel, Offset: tag})
	terminal(t, "cancellation", d, rspCancelled, stOK)
	terminal(t, "connect", r.answer(tag), rspCompletion, stCancelled)
	wantViolation(t, c.found(1), ruleControlChanged, 4, 0, m.IOVA, tag, 15)
}

// TestIF02_CheckerOff: off, nothing is said; the register is 0 after a reset.
func TestIF02_CheckerOff(t *T) {
	c := t.start()
	c.write(regChecker, 0)
	r := c.ring(0, ringConfig{})
	c.write(0x4000, 9)
	c.write(0x4004, 9)
	pong(t, r.do(r.ping()))
	want(t, "CHECKER_COUNT while off", c.read(regChecker+4), 0)
	c.write(regChecker, 1)
	r.looked()
	c.write(0x4004, 9)
	c.found(1)
	c.reset()
	want(t, "CHECKER after a reset", c.read(regChecker), 0)
	want(t, "CHECKER_COUNT after a reset", c.read(regChecker+4), 0)
}
