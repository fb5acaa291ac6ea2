// SPDX-License-Identifier: Apache-2.0

package conformance

import (
	"bytes"
	"fmt"

	"toebox/guestdriver"
	"toebox/vdev/abi"
)

// Attributes and counters of SPEC.md §14.9.
const (
	memorySize     = 0x0107
	spillThreshold = 0x010e
	receiveWindow  = 0x0207

	ctrMemoryShort     = 128
	ctrSpilledBytes    = 129
	ctrWindowsClosed   = 130
	ctrSegmentsRefused = 131
)

// scarce gives the adapter so much memory above what is in use, and returns the
// limit.
func (r *ring) scarce(threshold, size uint64) uint64 {
	r.Helper()
	used := r.scalar(reqAdapter, 0, memoryUsed)
	d, _ := r.attrs(reqAdapter, 0, new(ctl).set(spillThreshold, used+threshold).set(memorySize, used+size))
	must(r.T, "status of the set of memory", d.Aux, stOK)
	return used + size
}

// TestMM13_Overflow: with little adapter memory and a host that gives no buffers
// windows close, memory stays within its limit, and another connection goes on.
// When buffers come, all of it arrives.
func TestMM13_Overflow(t *T) {
	c := t.start()
	r := c.ring(0, ringConfig{inLog: 8, outLog: 8})
	const conns, total = 10, 400_000
	other, id := r.serve(Script{{Op: OpWait}, {Op: OpSend, N: 100_000, Seed: 77}, {Op: OpDiscard}})
	var ids []uint64
	var peers []Session
	for i := range conns {
		p, id := r.serve(Script{{Op: OpWait}, {Op: OpSend, N: total, Seed: uint64(30 + i)}, {Op: OpDiscard}}, attr(receiveWindow, 64<<10))
		peers, ids = append(peers, p), append(ids, id)
	}
	limit := r.scarce(300_000, 2_000_000)
	short, closed := c.counter(ctrMemoryShort), c.counter(ctrWindowsClosed)
	for _, p := range peers {
		check(t, "peer: signal", p.Signal(t.ctx))
	}
	peak := uint64(0)
	look := func() {
		used := r.scalar(reqAdapter, 0, memoryUsed)
		if peak = max(peak, used); used > limit {
			t.Fatalf("MEMORY_USED is %d, the limit %d", used, limit)
		}
	}
	t.until("windows to close", func() bool {
		look()
		return c.counter(ctrMemoryShort) > short && c.counter(ctrWindowsClosed)-closed >= conns
	})
	t.never("memory above its limit", nothing, func() bool { look(); return false })
	t.Logf("MEMORY_USED was at most %d of %d", peak, limit)
	check(t, "peer: signal", other.Signal(t.ctx))
	r.stream(id, 77, 0, 100_000, 100_000)
	for i, id := range ids {
		r.stream(id, uint64(30+i), 0, total, total)
		look()
	}
	want(t, "memory_short", c.counter(ctrMemoryShort)-short, 1)
	for _, id := range append(ids, id) {
		r.finish(id)
	}
}

// TestMM13_Refuse: payload that there is no memory for counts as not arrived, and
// none of it is lost.
func TestMM13_Refuse(t *T) {
	c := t.start()
	r := c.ring(0, ringConfig{})
	const total = 1 << 20
	p, id := r.serve(Script{{Op: OpWait}, {Op: OpSend, N: total, Seed: 9}, {Op: OpDiscard}}, attr(receiveWindow, 4<<20))
	r.scarce(200_000, 200_000)
	refused := c.counter(ctrSegmentsRefused)
	check(t, "peer: signal", p.Signal(t.ctx))
	t.until("payload to be refused", func() bool { return c.counter(ctrSegmentsRefused) > refused })
	r.stream(id, 9, 0, total, total)
	r.finish(id)
}

// TestMM13_Spill: bytes that wait for a buffer of their connection go to bulk
// buffers when memory is short, and wait again when it is not.
func TestMM13_Spill(t *T) {
	c := t.chooser(3, attr(bufferPolicy, 1), attr(bufferWait, 1<<62))
	const fill = 100_000
	_, big := c.serve(Script{{Op: OpSend, N: fill, Seed: 5}, {Op: OpDiscard}}, attr(bufferPolicy, 1), attr(bufferWait, 1<<62))
	c.until("the bytes to wait", func() bool {
		return c.scalar(reqConnAttr, big, bytesReceived) == fill && c.counter(ctrBufferWaits) > c.marks[ctrBufferWaits]
	})
	bulk, spilled := c.buffer(64), c.buffer(fill)
	tag := c.available(0, bulk, 0)
	c.arrive()
	c.none("memory enough")
	before := c.counter(ctrSpilledBytes)
	// As much as is in use is 1 byte too much.
	used := c.scalar(reqAdapter, 0, memoryUsed)
	d, _ := c.attrs(reqAdapter, 0, new(ctl).set(spillThreshold, used-1).set(memorySize, used+40_000))
	must(t, "status of the set of memory", d.Aux, stOK)
	got := map[uint64][]byte{}
	memory := map[uint32]guestdriver.DMA{tag: bulk, c.available(0, spilled, 0): spilled}
	for len(got[c.id]) < 64 || len(got[big]) < fill {
		d := c.take("a delivery", func(d desc) bool { return d.Type == rspReceive })
		m := memory[d.Tag]
		got[d.Conn] = append(got[d.Conn], m.Bytes[:d.Length]...)
		memory[c.available(0, m, 0)] = m
	}
	for id, w := range map[uint64]struct {
		seed uint64
		n    int
	}{c.id: {1, 64}, big: {5, fill}} {
		expect := make([]byte, w.n)
		Payload(expect, w.seed, 0)
		want(t, fmt.Sprintf("bytes of %#x are right", id), bytes.Equal(got[id], expect), true)
	}
	// The last bytes may go when memory is not short any more.
	if n := c.counter(ctrSpilledBytes) - before; n < fill || n > fill+64 {
		t.Errorf("spilled_bytes moved by %d", n)
	}
	c.none("after the spill")
	c.arrive()
	c.none("memory is not short any more")
	c.finish(big)
	c.finish(c.id)
}

// TestMM13_HostStops: with little adapter memory, a host that takes no response
// at all, and connections that would wait for buffers of their own: what arrives
// spills to bulk buffers, then windows close, then the adapter takes no requests;
// memory stays within its limit. When the host takes responses all of it resumes.
func TestMM13_HostStops(t *T) {
	c := t.start()
	r := c.ring(0, ringConfig{inLog: 8, outLog: 4})
	const conns, total, bulks, size, stall = 6, 200_000, 32, 4096, 4096
	send := Script{{Op: OpWait}, {Op: OpSend, N: total, Seed: 40}, {Op: OpDiscard}}
	var peers []Session
	got := map[uint64]int{}
	for range conns {
		p, id := r.serve(send, attr(receiveWindow, 64<<10), attr(bufferPolicy, 1), attr(bufferWait, 1<<62))
		peers, got[id] = append(peers, p), 0
	}
	late := peers[conns-1]
	memory := map[uint32]guestdriver.DMA{}
	post := func(m guestdriver.DMA) { memory[r.available(0, m, 0)] = m }
	for range bulks {
		post(r.buffer(size))
	}
	p := r.ping()
	limit := r.scarce(100_000, 2_000_000)
	spilled, closed, delivered := c.counter(ctrSpilledBytes), c.counter(ctrWindowsClosed), c.counter(ctrPoolDeliveries)
	peak := uint64(0)
	look := func() {
		used := c.counter(ctrMemoryUsed)
		if peak = max(peak, used); used > limit {
			t.Fatalf("MEMORY_USED is %d, the limit %d", used, limit)
		}
	}

	// From here on the host takes nothing.
	for _, p := range peers[:conns-1] {
		check(t, "peer: signal", p.Signal(t.ctx))
	}
	t.until("the spill to fill the bulk buffers", func() bool { look(); return c.counter(ctrPoolDeliveries)-delivered == bulks })
	t.until("windows to close", func() bool { look(); return c.counter(ctrWindowsClosed)-closed >= conns-1 })
	want(t, "bytes were spilled", c.counter(ctrSpilledBytes) > spilled, true)
	pings := 0
	for c.read(0x1030) < stall {
		s := r.inSlot(r.produced)
		t.until("a free input slot, or a stalled queue", func() bool { return abi.LoadWord(s)&0x80 == 0 || c.read(0x1030) >= stall })
		if abi.LoadWord(s)&0x80 != 0 {
			break
		}
		p.Tag = r.tag()
		r.note(p)
		r.put(p)
		r.tell(r.produced - 1)
		pings++
	}
	check(t, "peer: signal", late.Signal(t.ctx))
	t.until("the window of one more connection to close", func() bool { look(); return c.counter(ctrWindowsClosed)-closed >= conns })
	want(t, "deliveries while the host takes nothing", c.counter(ctrPoolDeliveries)-delivered, bulks)
	t.Logf("MEMORY_USED was at most %d of %d, %d responses were held", peak, limit, c.read(0x1030))

	for range pings {
		terminal(t, "a request posted meanwhile", r.take("a request's result", func(d desc) bool { return d.Type == rspAdapter }), rspAdapter, stOK)
	}
	for id := range got {
		status, _ := r.setScalar(reqConnAttr, id, bufferPolicy, 0)
		must(t, "status of BUFFER_POLICY", status, stOK)
	}
	expect := make([]byte, size)
	for left := conns * total; left > 0; look() {
		d := r.take("a delivery", func(d desc) bool { return d.Type == rspReceive })
		m, n := memory[d.Tag], int(d.Length)
		at, ok := got[d.Conn]
		if m.Bytes == nil || !ok || !d.final() || d.Offset != 0 || n > size {
			t.Fatalf("delivery into a bulk buffer: %v", d)
		}
		Payload(expect[:n], 40, int64(at))
		if !bytes.Equal(m.Bytes[:n], expect[:n]) {
			t.Fatalf("bytes [%d, %d) of connection %#x differ", at, at+n, d.Conn)
		}
		delete(memory, d.Tag)
		got[d.Conn] = at + n
		left -= n
		post(m)
	}
	for id, n := range got {
		want(t, "bytes of a connection", n, total)
		r.finish(id)
	}
}

// TestMM13_Others: what the host does not read fills memory, so that payload of
// everybody else is refused; a connection whose buffers are posted goes on.
func TestMM13_Others(t *T) {
	c := t.start()
	r := c.ring(0, ringConfig{})
	const conns, fill, total = 10, 60_000, 300_000
	for i := range conns {
		_, id := r.serve(Script{{Op: OpSend, N: fill, Seed: uint64(i)}, {Op: OpDiscard}}, attr(receiveWindow, 64<<10))
		t.until("bytes that nobody reads", func() bool { return r.scalar(reqConnAttr, id, bytesReceived) == fill })
	}
	p, id := r.serve(Script{{Op: OpWait}, {Op: OpSend, N: total, Seed: 50}, {Op: OpDiscard}})
	// 7/8 of the way from the threshold to the limit is less than what is in use.
	used := r.scalar(reqAdapter, 0, memoryUsed)
	d, _ := r.attrs(reqAdapter, 0, new(ctl).set(spillThreshold, used-conns*fill).set(memorySize, used+64<<10))
	must(t, "status of the set of memory", d.Aux, stOK)
	m := r.buffer(total)
	tag := r.available(id, m, 0)
	check(t, "peer: signal", p.Signal(t.ctx))
	expect := make([]byte, total)
	Payload(expect, 50, 0)
	for at := uint32(0); at < total; {
		d := r.answer(tag)
		if d.Type != rspReceive || d.Aux != stOK || d.Offset != at || d.Length == 0 {
			t.Fatalf("delivery at %d: %v", at, d)
		}
		at += d.Length
	}
	want(t, "bytes are right", bytes.Equal(m.Bytes, expect), true)
	want(t, "memory is as full as before", r.scalar(reqAdapter, 0, memoryUsed) >= used, true)
	r.finish(id)
}

// TestMM13_Limit: what the host does not read fills memory, and then many
// connections whose buffers are posted get payload at the same time: all of it
// arrives, and memory stays within its limit.
func TestMM13_Limit(t *T) {
	c := t.start()
	r := c.ring(0, ringConfig{})
	const full, fill, conns, total = 2, 60_000, 8, 200_000
	for i := range full {
		_, id := r.serve(Script{{Op: OpSend, N: fill, Seed: uint64(i)}, {Op: OpDiscard}}, attr(receiveWindow, 64<<10))
		t.until("bytes that nobody reads", func() bool { return r.scalar(reqConnAttr, id, bytesReceived) == fill })
	}
	type stream struct {
		peer   Session
		memory guestdriver.DMA
		tag    uint32
		at     uint32
	}
	streams := make(map[uint64]*stream)
	for i := range conns {
		p, id := r.serve(Script{{Op: OpWait}, {Op: OpSend, N: total, Seed: uint64(50 + i)}, {Op: OpDiscard}})
		m := r.buffer(total)
		streams[id] = &stream{peer: p, memory: m, tag: r.available(id, m, 0)}
	}
	// All but what the adapter keeps for requests is in use.
	used := r.scalar(reqAdapter, 0, memoryUsed)
	limit := (used*64 + 62) / 63
	d, _ := r.attrs(reqAdapter, 0, new(ctl).set(spillThreshold, used-full*fill).set(memorySize, limit))
	must(t, "status of the set of memory", d.Aux, stOK)
	for _, s := range streams {
		check(t, "peer: signal", s.peer.Signal(t.ctx))
	}
	peak := uint64(0)
	for left := conns * total; left > 0; {
		for range 20 {
			n := c.counter(ctrMemoryUsed)
			if peak = max(peak, n); n > limit {
				t.Fatalf("MEMORY_USED is %d, the limit %d", n, limit)
			}
		}
		d := r.take("a delivery", func(d desc) bool { return d.Type == rspReceive })
		s := streams[d.Conn]
		if s == nil || d.Tag != s.tag || d.Aux != stOK || d.Offset != s.at || d.Length == 0 {
			t.Fatalf("delivery: %v", d)
		}
		s.at += d.Length
		left -= int(d.Length)
	}
	t.Logf("MEMORY_USED was at most %d of %d", peak, limit)
	expect := make([]byte, total)
	for i := range conns {
		Payload(expect, uint64(50+i), 0)
		found := false
		for _, s := range streams {
			found = found || bytes.Equal(s.memory.Bytes, expect)
		}
		want(t, "bytes of a connection are right", found, true)
	}
	for id := range streams {
		r.finish(id)
	}
}
