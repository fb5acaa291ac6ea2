// SPDX-License-Identifier: Apache-2.0

package conformance

import (
	"bytes"

	"toebox/guestdriver"
)

// Attributes and a counter of SPEC.md §14.6.
const (
	notifyDynamic    = 0x0242
	linkTransferSize = 0x0227
	gatherThreshold  = 0x0228
	combine          = 0x0245

	ctrPayloadWrites = 12
)

// own posts a buffer of the connection and waits until the adapter has it.
func (d *delayed) own(n int) guestdriver.DMA {
	d.Helper()
	m := d.buffer(n)
	d.available(d.conn, m, 0)
	d.scalar(reqConnAttr, d.conn, attrArrived) // behind it in the table
	return m
}

// tens are n pieces of 10 bytes.
func tens(n int) []int {
	p := make([]int, n)
	for i := range p {
		p[i] = 10
	}
	return p
}

// bursts lets four bursts come, each of two pieces 2 ms apart, and then the
// first piece of another.
func (d *delayed) bursts(buf []byte) {
	d.Helper()
	for i := range 4 {
		d.piece()
		d.expect("the first of a burst, at once", buf, 2*i, 2*i+1)
		d.step(2 * ms)
		d.piece()
		d.expect("the second of a burst, at once", buf, 2*i+1, 2*i+2)
		d.step(100 * ms)
	}
	d.begins()
	want(d.T, "told of the first of a burst", d.told(), 0)
}

// TestRX02_Arrivals: bytes wait for the rest of a burst like those before.
func TestRX02_Arrivals(t *T) {
	d := t.delay(tens(11), nil, attr(notifyDynamic, 1), attr(notifyMax, 20*ms))
	m := d.own(4096)
	d.bursts(m.Bytes)
	d.step(2 * ms)
	d.piece()
	d.expect("a whole burst", m.Bytes, 8, 10)
	d.step(100 * ms)
	d.begins()
	d.still("5/4 of the span of a burst", 2*ms+ms/2)
	d.expect("the first of a burst that ended early", m.Bytes, 10, 11)
	want(t, "receive_by_arrivals", d.since(ctrByArrivals), 2)
	want(t, "receive_waits", d.since(ctrWaits), 2)
}

// TestRX03_Posts: bytes wait as long as the host needs from one post to the
// next.
func TestRX03_Posts(t *T) {
	d := t.delay(tens(3), nil, attr(notifyDynamic, 2), attr(notifyMax, 50*ms))
	m := d.own(4096)
	for range 3 {
		d.step(10 * ms)
		d.own(64)
	}
	d.piece()
	d.expect("bytes, without history", m.Bytes, 0, 1)
	d.step(10 * ms)
	d.own(64)
	d.begins()
	d.still("the mean gap between posts", 10*ms)
	d.expect("bytes", m.Bytes, 1, 2)
	want(t, "receive_by_posts", d.since(ctrByPosts), 1)
	d.step(1000 * ms)
	d.own(64)
	d.piece()
	d.expect("bytes, with a mean above NOTIFY_MAX", m.Bytes, 2, 3)
	want(t, "receive_waits", d.since(ctrWaits), 1)
}

// TestRX04_Consumption: bytes wait as long as the host needs from a notification
// to the next post.
func TestRX04_Consumption(t *T) {
	d := t.delay(tens(6), nil, attr(notifyDynamic, 4), attr(notifyMax, 50*ms))
	m := d.own(4096)
	for i := range 4 {
		d.piece()
		d.expect("bytes, without history", m.Bytes, i, i+1)
		d.step(3 * ms)
		d.own(64)
		d.step(70 * ms)
	}
	d.begins()
	d.step(ms)
	d.piece()
	d.still("the mean time to a post", 2*ms)
	d.expect("bytes", m.Bytes, 4, 6)
	want(t, "receive_by_consumption", d.since(ctrByConsumption), 1)
}

// TestRX05_Amounts: bytes wait for as many as came in bursts before.
func TestRX05_Amounts(t *T) {
	d := t.delay(tens(11), nil, attr(notifyDynamic, 8), attr(notifyMax, 20*ms))
	m := d.own(4096)
	d.bursts(m.Bytes)
	d.step(10 * ms)
	d.piece()
	d.expect("a whole burst", m.Bytes, 8, 10)
	want(t, "receive_by_amounts", d.since(ctrByAmounts), 1)
	d.step(100 * ms)
	d.begins()
	d.still("NOTIFY_MAX", 20*ms)
	d.expect("the first of a burst that ended early", m.Bytes, 10, 11)
	want(t, "receive_by_max", d.since(ctrByMax), 1)
}

// TestMM08_Gather: a large buffer is filled in link transfers while bytes come
// fast, one DMA and one response for each; what comes slowly does not wait.
func TestMM08_Gather(t *T) {
	const us = ms / 1000
	d := t.delay([]int{2048, 2048, 1024, 3072, 100, 50, 3000}, nil, attr(linkTransferSize, 4096), attr(gatherThreshold, 8192))
	m := d.own(64 << 10)
	told := 0
	upTo := func(what string, n int) {
		t.Helper()
		for told < n {
			r := d.take(what, func(r desc) bool { return r.Type == rspReceive })
			if int(r.Offset) != told || r.Conn != d.conn {
				t.Fatalf("%s: %v, want what follows %d bytes", what, r, told)
			}
			told += int(r.Length)
		}
		want(t, what+": told of", told, n)
	}
	d.piece()
	upTo("half a unit", 2048)
	d.step(us)
	d.piece()
	upTo("a unit", 4096)
	before := d.since(ctrWaits)
	d.piece()
	d.until("a wait to begin", func() bool { return d.since(ctrWaits) == before+1 })
	want(t, "told of a quarter", d.told(), 0)
	d.step(us)
	writes, units := d.counter(ctrPayloadWrites), d.since(ctrUnits)
	d.piece()
	d.expect("a unit", m.Bytes, 2, 4)
	told += 4096
	d.settle()
	want(t, "DMA writes of a unit", d.counter(ctrPayloadWrites)-writes, 1)
	want(t, "gathered_units", d.since(ctrUnits)-units, 1)
	d.begins()
	d.still("twice the time of a unit", 2*us)
	upTo("a part", 8292)
	want(t, "gathered_parts", d.since(ctrParts), 1)
	d.step(10 * ms)
	before = d.since(ctrWaits)
	d.piece()
	upTo("bytes after a pause, at once", 8342)
	want(t, "receive_waits", d.since(ctrWaits)-before, 0)
	// Per packet.
	status, _ := d.setScalar(reqConnAttr, d.conn, gatherThreshold, 0)
	want(t, "set GATHER_THRESHOLD", status, stOK)
	d.piece()
	upTo("bytes, per packet", 11342)
	want(t, "receive_waits", d.since(ctrWaits)-before, 0)
	for _, bad := range []uint64{0, 4095, 1<<20 + 1} {
		status, _ := d.setScalar(reqConnAttr, d.conn, linkTransferSize, bad)
		want(t, "bad LINK_TRANSFER_SIZE", status, stBadValue)
	}
}

// TestRX12_Combined: results of buffers that lie one behind the other become
// one, and the host finds each of them by its tag.
func TestRX12_Combined(t *T) {
	const size = 64
	d := t.delay([]int{2*size + 22, size - 22, size + 30, 2 * size}, nil, attr(notifyTime, 5*ms), attr(notifyMax, 5*ms), attr(combine, 1))
	m := d.buffer(8 * size)
	at := 0
	post := func(conn uint64) desc {
		at += size
		return desc{Type: reqAvailable, Base: m.IOVA + uint64(at-size), Conn: conn, Length: size}
	}
	// two takes the result of pieces, which covers two buffers under tag, and
	// compares its bytes.
	two := func(what string, tag uint32, base, n, piece int) {
		t.Helper()
		r := d.take(what, func(r desc) bool { return r.Type == rspReceive })
		if r.Flags != flagCombined|flagFinal || r.Tag != tag || r.Base != m.IOVA+uint64(base) || r.Offset != 0 ||
			int(r.Length) != n || r.Conn != d.conn || r.Aux != stOK {
			t.Fatalf("%s: %v", what, r)
		}
		expect := make([]byte, n)
		Payload(expect, uint64(piece), 0)
		if !bytes.Equal(m.Bytes[base:base+n], expect) {
			t.Errorf("%s: other bytes", what)
		}
	}
	third := d.post(post(d.conn), post(d.conn), post(d.conn))
	d.settle() // one of them alone would be full
	d.begins()
	d.still("NOTIFY_TIME", 5*ms)
	two("two full buffers", third-1, 0, 2*size, 0)
	r := d.answer(third)
	if r.final() || r.Flags != 0 || r.Offset != 0 || r.Length != 22 {
		t.Errorf("the part of a third: %v", r)
	}
	d.begins() // and ends: the buffers are full
	r = d.answer(third)
	if r.Flags != flagFinal || r.Offset != 22 || r.Length != size-22 {
		t.Errorf("the rest of the third: %v", r)
	}
	want(t, "results_combined", d.since(ctrCombined), 1)
	// The last one of bulk buffers need not be full.
	base := at
	last := d.post(post(0), post(0))
	d.settle()
	d.begins()
	d.step(5 * ms)
	two("bulk buffers", last, base, size+30, 2)
	want(t, "results_combined", d.since(ctrCombined), 2)
	// Switched off.
	status, _ := d.setScalar(reqConnAttr, d.conn, combine, 0)
	want(t, "set COMBINE", status, stOK)
	d.post(post(0), post(0))
	d.settle()
	d.begins()
	d.step(5 * ms)
	for range 2 {
		r := d.take("a result", func(r desc) bool { return r.Type == rspReceive })
		if r.Flags != flagFinal || r.Length != size {
			t.Errorf("a result, not combined: %v", r)
		}
	}
	status, _ = d.setScalar(reqConnAttr, d.conn, combine, 2)
	want(t, "COMBINE of 2", status, stBadValue)
}
