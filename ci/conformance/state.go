// SPDX-License-Identifier: Apache-2.0

package conformance

import (
	"bytes"
	"encoding/binary"
	"fmt"

	"toebox/guestdriver"
)

// recordSize is the length of a state record (SPEC.md §7.1).
const recordSize = 192

// stateRecord is a state record as it stands in memory.
type stateRecord []byte

func (s stateRecord) u64(at int) uint64 { return binary.LittleEndian.Uint64(s[at:]) }
func (s stateRecord) u32(at int) uint32 { return binary.LittleEndian.Uint32(s[at:]) }

// wantCounts checks the five byte counts.
func (s stateRecord) wantCounts(t *T, sent, received uint64) {
	t.Helper()
	want(t, "bytes accepted", s.u64(64), sent)
	want(t, "bytes sent", s.u64(72), sent)
	want(t, "bytes acknowledged", s.u64(80), sent)
	want(t, "bytes received", s.u64(88), received)
	want(t, "bytes delivered", s.u64(96), received)
}

// tupleOf is the value of a RECORD or RECORDS tuple that names a connection.
func tupleOf(id uint64, room int) []byte {
	b := make([]byte, room)
	binary.LittleEndian.PutUint64(b, id)
	return b
}

// TestCE09_Records: the state of one, of several and of all connections.
func TestCE09_Records(t *T) {
	c := t.start()
	r := c.ring(0, ringConfig{})
	p, a := r.serve(Script{{Op: OpEcho}})
	_, b := r.serve(Script{{Op: OpEcho}})
	written := c.counter(ctrStateRecords)
	r.sendAll(a, 3000, 5)
	r.stream(a, 5, 0, 3000, 1000)

	_, rs := r.attrs(reqConnAttr, a, new(ctl).get(0x028a, recordSize).get(0x0201, 24))
	must(t, "status of RECORD", rs[0].Status, stOK)
	must(t, "length of RECORD", rs[0].Length, recordSize)
	s := stateRecord(rs[0].Value)
	want(t, "connection id", s.u64(0), a)
	local, _ := addressOf(s[8:32])
	remote, _ := addressOf(s[32:56])
	own, _ := addressOf(rs[1].Value)
	want(t, "local address", local, own)
	want(t, "remote address", remote, p.Addr())
	want(t, "state: established", s.u32(56), 4)
	want(t, "protocol", s.u32(60), 6)
	s.wantCounts(t, 3000, 3000)
	if mss := s.u32(104); mss < 536 || mss > 65535 {
		t.Errorf("MSS is %d", mss)
	}
	if s.u32(112) == 0 || s.u32(116) == 0 || s.u64(160) == 0 {
		t.Errorf("windows %d and %d, uptime %d", s.u32(112), s.u32(116), s.u64(160))
	}

	_, rs = r.attrs(reqConnAttr, 0, new(ctl).tuple(false, 0x028a, tupleOf(b, recordSize)).
		tuple(false, 0x028a, tupleOf(b+1000, recordSize)).tuple(false, 0x028a, tupleOf(a, recordSize)))
	for i, id := range []uint64{b, 0, a} {
		if id == 0 {
			want(t, "status of an unknown connection", rs[i].Status, stBadConnection)
			continue
		}
		want(t, "status of a named connection", rs[i].Status, stOK)
		want(t, "id of a named connection", stateRecord(rs[i].Value).u64(0), id)
	}

	after := uint64(0)
	for i, id := range []uint64{a, b} {
		_, rs = r.attrs(reqAdapter, 0, new(ctl).tuple(false, 0x0120, tupleOf(after, recordSize+8)))
		must(t, "status of RECORDS", rs[0].Status, stOK)
		must(t, fmt.Sprintf("length of RECORDS, part %d", i), rs[0].Length, recordSize)
		after = stateRecord(rs[0].Value).u64(0)
		want(t, "connection in ascending order", after, id)
	}
	_, rs = r.attrs(reqAdapter, 0, new(ctl).tuple(false, 0x0120, tupleOf(0, 3*recordSize)).tuple(false, 0x0120, tupleOf(after, recordSize)).get(0x0120, 8))
	want(t, "length of all RECORDS", rs[0].Length, 2*recordSize)
	want(t, "length of RECORDS behind the last", rs[1].Length, 0)
	want(t, "status of RECORDS without room", rs[2].Status, stShortBuffer)
	want(t, "state_records", c.counter(ctrStateRecords)-written, 7)
	r.finish(a)
	r.finish(b)
}

// stepClock moves the manual policy clock.
func (c *card) stepClock(ns uint64) {
	c.write(0x00c4, uint32(ns))
	c.write(0x00c8, uint32(ns>>32))
	c.read(0x00c8) // behind the writes, which are posted
}

// TestCE09_Period: a report each REPORT_PERIOD of the policy clock, alone or in
// a report buffer.
func TestCE09_Period(t *T) {
	c := t.start()
	r := c.ring(0, ringConfig{})
	c.write(0x00c0, 1)
	_, id := r.serve(Script{{Op: OpEcho}}, attr(0x025a, 10_000_000))
	r.sendAll(id, 700, 5)
	r.stream(id, 5, 0, 700, 700)
	report := func(d desc) bool { return d.Type == rspConnAttr && d.Tag == 0 }
	c.stepClock(9_999_999)
	r.quiet("a report before its time", report)
	c.stepClock(1)
	d := r.unsolicited(rspConnAttr, id)
	want(t, "FINAL", d.Flags, flagFinal)
	want(t, "bytes acknowledged", d.Base, 700)
	want(t, "bytes received", d.Length, 700)
	want(t, "bytes delivered", d.Offset, 700)
	c.stepClock(35_000_000)
	r.unsolicited(rspConnAttr, id)
	r.quiet("a report for a period that was missed", report)

	m := r.buffer(512)
	tag := r.available(0, m, flagReport)
	status, _ := r.setScalar(reqConnAttr, id, 0x0259, 1)
	want(t, "set of NOTIFY_REPORT", status, stOK)
	written := c.counter(ctrStateRecords)
	c.stepClock(10_000_000)
	d = r.answer(tag)
	terminal(t, "report buffer", d, rspConnAttr, stOK)
	want(t, "flags", d.Flags, flagFinal|flagReport)
	must(t, "length", d.Length, 64+recordSize)
	want(t, "tag in the record", stateRecord(m.Bytes).u32(0), 0)
	want(t, "type in the record", m.Bytes[6], 23)
	want(t, "connection in the record", stateRecord(m.Bytes).u64(8), id)
	s := stateRecord(m.Bytes[64:])
	want(t, "connection id", s.u64(0), id)
	s.wantCounts(t, 700, 700)
	want(t, "state_records", c.counter(ctrStateRecords)-written, 1)

	status, _ = r.setScalar(reqConnAttr, id, 0x025a, 999_999)
	want(t, "a period below 1 ms", status, stBadValue)
	status, _ = r.setScalar(reqConnAttr, id, 0x025a, 0)
	want(t, "no period", status, stOK)
	c.stepClock(3600_000_000_000)
	r.quiet("a report without a period", report)
	c.write(0x00c0, 0)
	r.finish(id)
}

// again starts the adapter and its queue anew after a reset.
func (r *ring) again() {
	r.Helper()
	r.write(regControl, 1<<31)
	r.until("STATUS.READY", func() bool { return r.read(regStatus)&1 != 0 && r.read(regStatus)&2 == 0 })
	r.blank()
	r.program()
	r.run()
	r.create()
}

// restore asks for a connection to go on.
func (r *ring) restore(record []byte) desc {
	r.Helper()
	_, tag := r.control(reqConnect, 0, new(ctl).tuple(true, 0x0004, record))
	return r.answer(tag)
}

// TestCE09_CarryOver: an orderly stop in the middle of a transfer both ways.
// Records are exact, and after a reset the connection goes on as if nothing had
// happened to it.
func TestCE09_CarryOver(t *T) {
	c := t.start()
	r := c.ring(0, ringConfig{})
	const down, part = 600_000, 64 << 10
	report := r.buffer(2 << 20)
	reportTag := r.available(0, report, flagReport)
	p, id := r.serve(Script{{Op: OpSend, N: down, Seed: 7}, {Op: OpDiscard}}, attr(0x025b, 1))
	m := r.buffer(1 << 20)
	Payload(m.Bytes, 9, 0)
	send := func(conn uint64, from int) (tags []uint32) {
		for ; from < len(m.Bytes); from += part {
			n := min(part, len(m.Bytes)-from)
			tags = append(tags, r.post(desc{Type: reqSend, Modify: true, Base: m.IOVA + uint64(from), Conn: conn, Length: uint32(n)}))
		}
		return tags
	}
	tags := send(id, 0)
	r.stream(id, 7, 0, 100_000, 10_000)
	out, in, refused := c.counter(ctrCarriedOut), c.counter(ctrCarriedIn), c.counter(ctrCarryRefused)
	c.write(regControl, 2)
	c.until("STATUS.STOPPED", func() bool { return c.read(regStatus)&4 != 0 })
	acked := 0
	for i, tag := range tags {
		d := r.answer(tag)
		if d.Type != rspDone || !d.final() || d.Aux != stOK && d.Aux != stCancelled || d.Aux == stOK && d.Length != part {
			t.Fatalf("send %d: %v", i, d)
		}
		acked += int(d.Length)
	}
	d := r.answer(reportTag)
	terminal(t, "report buffer", d, rspConnAttr, stOK)
	want(t, "carried_out", c.counter(ctrCarriedOut)-out, 1)
	if d.Length < 64+recordSize {
		t.Fatalf("report buffer: %v", d)
	}
	s := stateRecord(append([]byte(nil), report.Bytes[64:64+recordSize]...))
	unread := int(s.u32(180))
	want(t, "connection id", s.u64(0), id)
	want(t, "flags: EXACT", s.u32(176), 1)
	want(t, "bytes acknowledged", s.u64(80), uint64(acked))
	want(t, "bytes delivered", s.u64(96), 100_000)
	want(t, "bytes received", s.u64(88), uint64(100_000+unread))
	must(t, "length of record and bytes unread", d.Length, uint32(64+recordSize+(unread+63)/64*64))
	if s.u64(72) < s.u64(80) || s.u64(64) < s.u64(72) {
		t.Errorf("%d bytes accepted, %d sent, %d acknowledged", s.u64(64), s.u64(72), s.u64(80))
	}
	expect := make([]byte, unread)
	Payload(expect, 7, 100_000)
	if !bytes.Equal(report.Bytes[64+recordSize:64+recordSize+unread], expect) {
		t.Errorf("the %d bytes behind the record differ", unread)
	}

	r.again()
	d = r.restore(s)
	terminal(t, "restore", d, rspCompletion, stOK)
	want(t, "the id before", d.Base, id)
	want(t, "carried_in", c.counter(ctrCarriedIn)-in, 1)
	if d.Conn == id || d.Conn == 0 {
		t.Errorf("the new id is %#x, the old one %#x", d.Conn, id)
	}
	id = d.Conn
	tags = send(id, acked)
	from := 100_000 + unread
	r.stream(id, 7, int64(from), down-from, 10_000)
	for _, tag := range tags {
		terminal(t, "send of what was not acknowledged", r.answer(tag), rspDone, stOK)
	}
	_, rs := r.attrs(reqConnAttr, id, new(ctl).get(0x028a, recordSize))
	stateRecord(rs[0].Value).wantCounts(t, 1<<20, down)
	want(t, "carry_refused", c.counter(ctrCarryRefused), refused)
	d = r.restore(s)
	terminal(t, "restore of a connection that is there", d, rspCompletion, stAddressInUse)
	want(t, "carry_refused", c.counter(ctrCarryRefused)-refused, 1)
	terminal(t, "termination", r.terminate(id, 0), rspTerminated, stOK)
	res := t.outcome(p)
	want(t, "peer's error", res.Err, "")
	want(t, "bytes at the peer", res.Received, 1<<20)
	want(t, "SHA-256 at the peer", res.Sum, sum(m.Bytes))
}

// halted stops the adapter in order, and returns the state record of its one
// connection, whose report buffer has tag.
func (r *ring) halted(tag uint32, m guestdriver.DMA) stateRecord {
	r.Helper()
	r.write(regControl, 2)
	r.until("STATUS.STOPPED", func() bool { return r.read(regStatus)&4 != 0 })
	d := r.answer(tag)
	terminal(r.T, "report buffer", d, rspConnAttr, stOK)
	if d.Length < 64+recordSize {
		r.Fatalf("report buffer: %v", d)
	}
	s := stateRecord(append([]byte(nil), m.Bytes[64:64+recordSize]...))
	want(r.T, "flags: EXACT", s.u32(176), 1)
	return s
}

// TestCE09_CarryHalves: connections with a direction closed are handed over, too.
func TestCE09_CarryHalves(t *T) {
	c := t.start()
	r := c.ring(0, ringConfig{})
	report := r.buffer(1 << 20)
	serve := func(s Script) (Session, uint64, uint32) {
		tag := r.available(0, report, flagReport)
		p, id := r.serve(s, attr(0x025b, 1))
		return p, id, tag
	}
	restored := func(s stateRecord) uint64 {
		t.Helper()
		r.again()
		d := r.restore(s)
		terminal(t, "restore", d, rspCompletion, stOK)
		return d.Conn
	}

	// The host ended sending, and the peer knows.
	p, id, tag := serve(Script{{Op: OpDiscard}, {Op: OpWait}, {Op: OpSend, N: 5000, Seed: 8}})
	r.sendAll(id, 100, 1)
	terminal(t, "half-close", r.terminate(id, 2), rspTerminated, stOK)
	c.until("the peer's acknowledgement", func() bool { return r.scalar(reqConnAttr, id, 0x0203) == 6 })
	s := r.halted(tag, report)
	want(t, "state: fin-wait-2", s.u32(56), 6)
	id = restored(s)
	d := r.answer(r.send(id, r.buffer(16), 0))
	terminal(t, "send after the half-close", d, rspDone, stClosed)
	terminal(t, "half-close once more", r.terminate(id, 2), rspTerminated, stOK)
	check(t, "peer: signal", p.Signal(t.ctx))
	r.stream(id, 8, 0, 5000, 2048)
	want(t, "how it ended: remote end of stream", r.unsolicited(rspTerminated, id).Length, 5)
	terminal(t, "termination", r.terminate(id, 0), rspTerminated, stOK)
	res := t.outcome(p)
	want(t, "bytes at the peer", res.Received, 100)
	want(t, "peer's error", res.Err, "")

	// The host ended sending behind bytes that the peer does not read yet.
	const total, part = 24 << 20, 1 << 20
	p, id, tag = serve(Script{{Op: OpWait}, {Op: OpDiscard}})
	m := r.buffer(total)
	Payload(m.Bytes, 9, 0)
	post := func(from int) (tags []uint32) {
		for ; from < total; from += part {
			n := min(part, total-from)
			tags = append(tags, r.post(desc{Type: reqSend, Modify: true, Base: m.IOVA + uint64(from), Conn: id, Length: uint32(n)}))
		}
		return tags
	}
	tags := post(0)
	end := r.post(desc{Type: reqTerminate, Conn: id, Length: 2})
	pong(t, r.do(r.ping())) // all are taken
	s = r.halted(tag, report)
	acked := 0
	for _, tag := range tags {
		acked += int(r.answer(tag).Length)
	}
	terminal(t, "half-close", r.answer(end), rspTerminated, stCancelled)
	want(t, "bytes acknowledged", s.u64(80), uint64(acked))
	if acked == total {
		t.Errorf("the peer has everything already")
	}
	id = restored(s)
	tags = post(acked)
	end = r.post(desc{Type: reqTerminate, Conn: id, Length: 2})
	check(t, "peer: signal", p.Signal(t.ctx))
	for _, tag := range tags {
		terminal(t, "send of what was not acknowledged", r.answer(tag), rspDone, stOK)
	}
	terminal(t, "half-close", r.answer(end), rspTerminated, stOK)
	terminal(t, "termination", r.terminate(id, 0), rspTerminated, stOK)
	res = t.outcome(p)
	want(t, "bytes at the peer", res.Received, total)
	want(t, "SHA-256 at the peer", res.Sum, sum(m.Bytes))
	want(t, "peer's error", res.Err, "")

	// The peer ended sending: the host is told again.
	p, id, tag = serve(Script{{Op: OpSend, N: 700, Seed: 4}, {Op: OpFIN}, {Op: OpDiscard}})
	r.stream(id, 4, 0, 700, 700)
	want(t, "how it ended: remote end of stream", r.unsolicited(rspTerminated, id).Length, 5)
	s = r.halted(tag, report)
	want(t, "state: close-wait", s.u32(56), 7)
	want(t, "bytes received", s.u64(88), 700)
	id = restored(s)
	want(t, "how it ended, once more: remote end of stream", r.unsolicited(rspTerminated, id).Length, 5)
	r.sendAll(id, 5000, 3)
	terminal(t, "termination", r.terminate(id, 0), rspTerminated, stOK)
	res = t.outcome(p)
	want(t, "bytes at the peer", res.Received, 5000)
	want(t, "peer's error", res.Err, "")
}

// TestCE09_Crash: a connection in the middle of a transfer both ways, whose last
// record is not exact, ends with a status and a reset: what was acknowledged to the
// peer and not delivered is never silently lost. What the host knows bounds what the
// peer has.
func TestCE09_Crash(t *T) {
	c := t.start()
	r := c.ring(0, ringConfig{})
	const down, delivered, part, parts = 30_000, 10_000, 64 << 10, 16
	p, id := r.serve(Script{{Op: OpSend, N: down, Seed: 7}, {Op: OpDiscard}}, attr(0x025b, 1))
	r.stream(id, 7, 0, delivered, delivered)
	r.sendAll(id, 5000, 3)
	var s stateRecord
	r.until("all that the peer sends acknowledged to it", func() bool {
		_, rs := r.attrs(reqConnAttr, id, new(ctl).get(0x028a, recordSize))
		s = stateRecord(append([]byte(nil), rs[0].Value...))
		return s.u64(88) == down
	})
	want(t, "bytes delivered", s.u64(96), delivered)
	m := r.buffer(part * parts)
	var tags []uint32
	for at := uint64(0); at < part*parts; at += part {
		tags = append(tags, r.post(desc{Type: reqSend, Modify: true, Base: m.IOVA + at, Conn: id, Length: part}))
	}
	terminal(t, "the first send", r.answer(tags[0]), rspDone, stOK)
	lower, upper := max(s.u64(80), 5000+part), uint64(5000+part*parts)
	refused := c.counter(ctrCarryRefused)
	r.again()
	d := r.restore(s)
	terminal(t, "restore from a record that is not exact", d, rspCompletion, 14)
	want(t, "connection id", d.Conn, 0)
	want(t, "carry_refused", c.counter(ctrCarryRefused)-refused, 1)
	res := t.outcome(p)
	if res.Err == "" || res.EOF {
		t.Errorf("the peer saw no reset: %+v", res)
	}
	if n := uint64(res.Received); n < lower || n > upper {
		t.Errorf("the peer got %d bytes, not %d to %d", n, lower, upper)
	}
}
