// SPDX-License-Identifier: Apache-2.0

package conformance

import (
	"bytes"
	"encoding/binary"
	"net/netip"
	"slices"
	"time"

	"toebox/guestdriver"
	"toebox/vdev/abi"
)

// report is what a record of a report buffer says (SPEC.md §6.4).
type report struct {
	tag                   uint32
	status                uint16
	typ, flags            uint8
	conn, cookie          uint64
	ordinal               uint32
	family, protocol      uint8
	localPort, remotePort uint16
	remote                netip.Addr
	zero                  bool // the reserved bytes are 0
	uptime                uint64
}

func reportOf(b []byte) report {
	le := binary.LittleEndian
	return report{
		tag: le.Uint32(b), status: le.Uint16(b[4:]), typ: b[6], flags: b[7], conn: le.Uint64(b[8:]), cookie: le.Uint64(b[16:]),
		ordinal: le.Uint32(b[24:]), family: b[28], protocol: b[29], localPort: le.Uint16(b[30:]), remotePort: le.Uint16(b[32:]),
		remote: netip.AddrFrom4([4]byte(b[40:44])), zero: bytes.Equal(b[34:40], make([]byte, 6)), uptime: le.Uint64(b[56:]),
	}
}

// records splits the bytes of a report; rest is how many are no record.
func records(b []byte) (list []report, rest int) {
	for len(b) >= 64 {
		r := reportOf(b)
		b = b[64:]
		if r.typ == rspConnAttr {
			if len(b) < recordSize {
				return list, len(b)
			}
			unread := (uint64(stateRecord(b).u32(180)) + 63) &^ 63
			b = b[recordSize:]
			if uint64(len(b)) < unread {
				return list, len(b)
			}
			b = b[unread:]
		}
		list = append(list, r)
	}
	return list, len(b)
}

// TestCE05_Report: one response reports many connections through a buffer of
// the host, whose other bytes stay as they were.
func TestCE05_Report(t *T) {
	n := t.notifier(Script{{Op: OpWait}})
	no, err := t.Peer().Refused(t.ctx)
	check(t, "peer: refused", err)
	m := n.buffer(1024)
	copy(m.Bytes, bytes.Repeat([]byte{0xee}, 1024))
	buf := n.post(desc{Type: reqAvailable, Flags: flagReport, Base: m.IOVA, Length: 1024, Offset: 8})
	const targets = 6
	k := new(ctl).set(notifyCount, targets)
	for i := range targets {
		g := to(n.addr)
		if i == 2 {
			g = to(no)
		}
		g.cookie = uint64(100 + i)
		k.target(g)
	}
	c := n.alloc(len(k.b))
	copy(c.Bytes, k.b)
	tag := n.post(desc{Type: reqConnect, Flags: flagReport, Aux: uint16(k.tuples), Base: c.IOVA, Length: uint32(len(k.b))})
	d := n.answer(buf)
	if d.Type != rspCompletion || d.Flags != flagReport|flagFinal || d.Aux != stOK || d.Base != m.IOVA || d.Offset != 8 ||
		d.Length != 64*targets || d.Conn != 0 {
		t.Fatalf("response %v", d)
	}
	seen := map[uint32]bool{}
	for i := range targets {
		r := reportOf(m.Bytes[8+64*i:])
		if r.tag != tag || r.typ != rspCompletion || (r.flags == flagFinal) != (i == targets-1) || r.ordinal >= targets || seen[r.ordinal] {
			t.Fatalf("record %d: %+v", i, r)
		}
		seen[r.ordinal] = true
		addr, status := n.addr, uint16(stOK)
		if r.ordinal == 2 {
			addr, status = no, stRefused
		}
		if r.status != status || r.cookie != uint64(100+r.ordinal) || r.family != 4 || r.protocol != 6 || !r.zero || r.uptime == 0 ||
			r.remote != addr.Addr() || r.remotePort != addr.Port() || (r.conn != 0) != (status == stOK) || status == stOK && r.localPort == 0 {
			t.Errorf("record %d: %+v", i, r)
		}
		if status == stOK {
			terminal(t, "abort of a reported connection", n.terminate(r.conn, 1), rspTerminated, stOK)
		}
	}
	rest := append(slices.Clone(m.Bytes[:8]), m.Bytes[8+64*targets:]...)
	if len(bytes.Trim(rest, "\xee")) != 0 {
		t.Errorf("bytes beside the records were written")
	}
	want(t, "reports", n.since(ctrReports), 1)
	want(t, "report_records", n.since(ctrReportRecords), targets)
}

// TestCE05_ReportWaits: without a report buffer records wait for one, and go as
// responses of their own at the ceiling.
func TestCE05_ReportWaits(t *T) {
	n := t.notifier(Script{{Op: OpWait}})
	a := []func(*ctl){attr(notifyReport, 1), attr(notifyCeiling, 20*ms)}
	n.gather(1, a...)
	want(t, "told without a buffer", n.told(), 0)
	want(t, "reports_waiting", n.since(ctrReportsWaiting), 1)
	m := n.buffer(256)
	post := desc{Type: reqAvailable, Flags: flagReport, Base: m.IOVA, Length: 256}
	d := n.do(post)
	terminal(t, "report buffer", d, rspCompletion, stOK)
	want(t, "length of the report", d.Length, 64)
	n.gather(1, a...)
	n.after("NOTIFY_CEILING without a report buffer", 20*ms, 1)

	for _, bad := range []struct {
		what   string
		change func(*desc)
		status uint16
	}{
		{"report buffer of a connection", func(d *desc) { d.Conn = 1 }, stReserved},
		{"report buffer with ONCE", func(d *desc) { d.Flags |= flagOnce }, stReserved},
		{"report buffer of 255 bytes", func(d *desc) { d.Length = 255 }, stBadLength},
	} {
		d := post
		bad.change(&d)
		terminal(t, bad.what, n.do(d), rspDone, bad.status)
	}
	tag := n.post(post)
	terminal(t, "cancellation of a report buffer", n.do(desc{Type: reqCancel, Offset: tag}), rspCancelled, stOK)
	terminal(t, "the report buffer", n.answer(tag), rspDone, stCancelled)
}

// TestCE04_Reports: 255 targets in one descriptor, ranges of targets and of
// listeners, told by one response each, through report buffers.
func TestCE04_Reports(t *T) {
	c := t.start()
	r := c.ring(0, ringConfig{})
	p, err := t.Peer().Serve(t.ctx, Script{{Op: OpWait}})
	check(t, "peer: serve", err)
	t.Cleanup(func() { p.Close() })
	no, err := t.Peer().Refused(t.ctx)
	check(t, "peer: refused", err)
	const most = 255
	m, second := r.buffer(64*most), r.buffer(256)
	for _, a := range []uint16{notifyFirst, notifyLast} {
		r.setScalar(reqConnAttr, 0, a, 0)
	}
	r.setScalar(reqConnAttr, 0, notifyCeiling, uint64(time.Hour))
	// told runs a request of n targets and returns its records, which are in one
	// buffer if they fit there.
	told := func(n int, k *ctl, buffers ...guestdriver.DMA) (list []report) {
		t.Helper()
		r.setScalar(reqConnAttr, 0, notifyCount, uint64(n))
		r.settle() // counters trail what they count
		reports, lines, responses := c.counter(ctrReports), c.counter(ctrReportRecords), c.counter(ctrResponses)
		var tags []uint32
		for _, m := range buffers {
			tags = append(tags, r.available(0, m, flagReport))
		}
		b := r.alloc(len(k.b))
		copy(b.Bytes, k.b)
		tag := r.post(desc{Type: reqConnect, Flags: flagReport, Aux: uint16(k.tuples), Base: b.IOVA, Length: uint32(len(k.b))})
		seen := map[uint32]bool{}
		for _, tag := range tags {
			d := r.answer(tag)
			terminal(t, "report buffer", d, rspCompletion, stOK)
			part, _ := records(r.reportBytes(d))
			list = append(list, part...)
		}
		must(t, "records", len(list), n)
		for i, rec := range list {
			if rec.tag != tag || rec.ordinal >= uint32(n) || seen[rec.ordinal] || (rec.flags == flagFinal) != (i == n-1) {
				t.Fatalf("record %d of %d: %+v", i, n, rec)
			}
			seen[rec.ordinal] = true
		}
		r.settle()
		want(t, "reports", c.counter(ctrReports)-reports, uint64(len(buffers)))
		want(t, "report_records", c.counter(ctrReportRecords)-lines, uint64(n))
		want(t, "responses", c.counter(ctrResponses)-responses, uint64(len(buffers)))
		return list
	}
	end := func(list []report) {
		t.Helper()
		k, n := new(ctl), 0
		for _, rec := range list {
			if rec.status == stOK {
				k.tuple(true, 0x0002, append(binary.LittleEndian.AppendUint64(nil, rec.conn), 1, 0, 0, 0, 0, 0, 0, 0))
				n++
			}
		}
		_, tag := r.control(reqTerminate, 0, k)
		for range n {
			want(t, "status of a termination", r.answer(tag).Aux, stOK)
		}
		want(t, "connections that are left", c.counter(ctrConnections), 0)
	}

	k := new(ctl)
	for i := range most {
		g := to(p.Addr())
		if i%3 == 0 {
			g = to(no)
		}
		g.cookie = uint64(7000 + i)
		k.target(g)
	}
	list := told(most, k, m)
	for _, rec := range list {
		status := uint16(stOK)
		if rec.ordinal%3 == 0 {
			status = stRefused
		}
		if rec.status != status || rec.cookie != uint64(7000+rec.ordinal) || (rec.conn != 0) != (status == stOK) {
			t.Errorf("record of target %d: %+v", rec.ordinal, rec)
		}
	}
	end(list)

	// A range: first port and count. Datagram endpoints ask nobody.
	list = told(most, new(ctl).target(goal{proto: 17, count: most, remote: p.Addr().Addr(), rport: 40_000, cookie: 5}), m)
	for _, rec := range list {
		if rec.status != stOK || rec.cookie != 5 || rec.remotePort != uint16(40_000+rec.ordinal) || rec.protocol != 17 {
			t.Errorf("record of port %d: %+v", 40_000+rec.ordinal, rec)
		}
	}
	end(list)

	// One where nobody is, in two buffers.
	list = told(6, new(ctl).target(goal{count: 6, remote: t.Peer().Unreachable().Addr(), rport: 9, limit: 50 * time.Millisecond}), second, m)
	for _, rec := range list {
		if rec.status != stTimedOut && rec.status != stHostUnreachable || rec.conn != 0 || rec.remotePort != uint16(9+rec.ordinal) {
			t.Errorf("record of port %d: %+v", 9+rec.ordinal, rec)
		}
	}

	// Results of a listen request wait for nothing: those of a pass are together.
	k = new(ctl).target(goal{count: most, lport: 4000})
	b := r.alloc(len(k.b))
	copy(b.Bytes, k.b)
	tag := r.post(desc{Type: reqListen, Flags: flagReport, Aux: 1, Base: b.IOVA, Length: uint32(len(k.b))})
	for list = nil; len(list) < most; {
		d := r.answer(r.available(0, m, flagReport))
		terminal(t, "report buffer", d, rspListen, stOK)
		part, _ := records(r.reportBytes(d))
		list = append(list, part...)
	}
	for i, rec := range list {
		if rec.tag != tag || rec.status != stOK || rec.ordinal != uint32(i) || rec.localPort != uint16(4000+i) {
			t.Errorf("record of listener %d: %+v", 4000+i, rec)
		}
	}
	end(list)
}

// TestCE05_Driver: a bulk connect of the driver, by responses and by report
// buffers that are too small for all.
func TestCE05_Driver(t *T) {
	c := t.start()
	p, err := t.Peer().Serve(t.ctx, Script{{Op: OpWait}})
	check(t, "peer: serve", err)
	t.Cleanup(func() { p.Close() })
	no, err := t.Peer().Refused(t.ctx)
	check(t, "peer: refused", err)
	const targets = 30
	q, err := guestdriver.NewQueue(c.bus, 0, guestdriver.QueueConfig{Mode: guestdriver.ModePoll, Timeout: t.Env.scale(patience)})
	check(t, "create a queue", err)
	tag := uint32(0)
	b := guestdriver.BulkConnect{Control: c.alloc(72*targets + 32), Tag: func() uint32 { tag++; return tag }}
	b.Tuples, b.Attributes = new(ctl).set(notifyCount, 8).set(notifyCeiling, 100*ms).b, 2
	for i := range targets {
		to := p.Addr()
		if i%3 == 0 {
			to = no
		}
		b.Targets = append(b.Targets, abi.Target{Protocol: 6, Count: 1, Remote: to, Cookie: uint64(500 + i)})
	}
	for _, reports := range []int{0, 3} {
		for range reports {
			b.Reports = append(b.Reports, c.alloc(256))
		}
		seen := map[uint32]bool{}
		err := q.BulkConnect(t.ctx, &b, func(r guestdriver.Record) {
			status := abi.Status(stOK)
			if r.Ordinal%3 == 0 {
				status = stRefused
			}
			if r.Type != rspCompletion || r.Ordinal >= targets || seen[r.Ordinal] || r.Status != status ||
				r.Cookie != uint64(500+r.Ordinal) || (r.Conn != 0) != (status == stOK) {
				t.Errorf("with %d report buffers: result %+v", reports, r)
			}
			seen[r.Ordinal] = true
		})
		check(t, "bulk connect", err)
		want(t, "results", len(seen), targets)
	}
	check(t, "destroy the queue", q.Destroy(t.ctx))
}
