// SPDX-License-Identifier: Apache-2.0

package conformance

import (
	"encoding/binary"
	"fmt"

	"toebox/vdev/abi"
)

// TestIF01_AllQueues: 32 queue pairs with rings of all sizes at a time, each
// with its own vector; one after the other is paused, drained, destroyed and
// created anew while the others work.
func TestIF01_AllQueues(t *T) {
	c := t.start()
	c.enableVectors()
	all := make([]*ring, 32)
	pings := make([]desc, len(all))
	for q := range all {
		// 16 slots up to 4,096; the largest once, in either table.
		cfg := ringConfig{inLog: 4 + uint(q)%9, outLog: 12 - uint(q)%9, first: 2 << 30}
		switch q {
		case 7:
			cfg.inLog = 16
		case 8:
			cfg.outLog = 16
		}
		all[q] = c.ring(uint32(q), cfg)
		pings[q] = all[q].ping()
	}
	want(t, "QUEUE_COUNT", all[0].scalar(reqAdapter, 0, 0x0112), 32)
	others := func(but int) {
		t.Helper()
		last := make([]uint32, len(all)) // tags of a queue are consecutive numbers
		for q, r := range all {
			if q != but {
				last[q] = r.post(pings[q], pings[q], pings[q])
			}
		}
		for q, r := range all {
			for i := uint32(0); i < 3 && q != but; i++ {
				pong(t, r.answer(last[q]-2+i))
			}
		}
	}
	for q, r := range all {
		w := c.vector(q + 1)
		before := w.seen()
		pong(t, r.do(pings[q]))
		w.atLeast(t, fmt.Sprintf("the interrupt of queue %d", q), before+1)
	}
	for q := 0; q < len(all); q += 3 {
		r := all[q]
		r.command(2)
		r.await(2)
		tag := r.post(pings[q])
		others(q)
		want(t, fmt.Sprintf("owner of the request while queue %d is paused", q), abi.LoadWord(r.inSlot(r.produced-1))&0x80, 0x80)
		r.command(3)
		pong(t, r.answer(tag))
		held := r.available(0, r.buffer(64), 0)
		pong(t, r.do(pings[q]))
		r.command(4)
		others(q)
		r.await(4)
		terminal(t, "a bulk buffer at a drain", r.answer(held), rspDone, stCancelled)
		r.command(5)
		others(q)
		r.await(0)
		all[q] = c.ring(uint32(q), ringConfig{inLog: r.outLog, outLog: r.inLog})
		pings[q] = all[q].ping()
		others(-1)
	}
	want(t, "QUEUE_COUNT at last", all[0].scalar(reqAdapter, 0, 0x0112), 32)
}

// TestIF01_Anywhere: tables and event blocks lie anywhere: side by side, at
// every multiple of 32 around a page's end, and over a 4 GiB boundary where
// the bus gives memory there.
func TestIF01_Anywhere(t *T) {
	c := t.start()
	m := c.alloc(2 << 20)
	places := []uint64{4096 - 32, 4096 - 512, 8192 - 64, 65536 - 96, 1<<20 + 32}
	if over := -m.IOVA & (1<<32 - 1); over >= 4096 && over < 2<<20-4096 {
		places = append(places, over-32, over-256, over-512, over-512-32, over-1024)
	} else {
		t.Logf("no memory over a 4 GiB boundary on this rung")
	}
	for _, at := range places {
		for _, second := range []uint64{512, 544} { // of 16 slots each, with and without a gap
			r := c.build(4, ringConfig{inLog: 4, outLog: 4})
			part := func(off, n uint64) (d struct {
				b    []byte
				iova uint64
			}) {
				d.b, d.iova = m.Bytes[off:off+n:off+n], m.IOVA+off
				return d
			}
			in, out := part(at, 512), part(at+second, 512)
			ev := part((at+second+512+63)&^63, 256)
			r.in.Bytes, r.in.IOVA = in.b, in.iova
			r.out.Bytes, r.out.IOVA = out.b, out.iova
			r.ev.Bytes, r.ev.IOVA = ev.b, m.IOVA+(ev.iova-m.IOVA)
			r.blank()
			r.program()
			r.create()
			p := r.ping()
			for range 40 { // twice round the tables
				pong(t, r.do(p))
			}
			r.command(5)
			r.await(0)
		}
	}
}

// TestIF08_Overlap: control buffers that overlap each other, and the tables
// themselves: each request is answered once where its answer has a place to
// stand, and another queue does not notice.
func TestIF08_Overlap(t *T) {
	c := t.start()
	r, other := c.ring(0, ringConfig{}), c.ring(1, ringConfig{})
	m := r.alloc(4096)
	k := new(ctl)
	for range 64 {
		k.get(0x0113, 8)
	}
	copy(m.Bytes, k.b)
	// The results of the first lie where the second one's tuples are: values
	// and statuses become headers. Whatever they say, each is answered.
	ds := make([]desc, 8)
	for i := range ds {
		ds[i] = desc{Type: reqAdapter, Aux: 40, Base: m.IOVA + 8*uint64(i), Length: 1024 - 8*uint32(i), Tag: r.tag()}
	}
	r.post(ds...)
	for i, d := range ds {
		got := r.answer(d.Tag)
		want(t, fmt.Sprintf("FINAL of overlapping request %d", i), got.final(), true)
		want(t, fmt.Sprintf("type of the answer to request %d", i), got.Type, rspAdapter)
	}
	// One control buffer twice in a run.
	p := r.ping()
	p.Tag = r.tag()
	twice := p
	twice.Tag = r.tag()
	r.post(p, twice)
	pong(t, r.answer(p.Tag))
	pong(t, r.answer(twice.Tag))
	// The input table as a control buffer: free slots, then what the host wrote
	// there for that purpose.
	slot := r.inSlot(40)
	binary.LittleEndian.PutUint16(slot, 0x0113)
	binary.LittleEndian.PutUint32(slot[4:], 8)
	pong(t, r.do(desc{Type: reqAdapter, Aux: 1, Base: r.in.IOVA + 32*40, Length: 16}))
	clear(slot)
	pong(t, other.do(other.ping()))
	pong(t, r.do(r.ping()))
}
