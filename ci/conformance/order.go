// SPDX-License-Identifier: Apache-2.0

package conformance

import "slices"

// Attributes of SPEC.md §14.3.
const (
	attrPriority   = 0x0213
	attrStarvation = 0x0226
)

// Counters of SPEC.md §14.3.
const (
	ctrTurnsStarved   = 90
	ctrTurnsExpedited = 91
	ctrTurnsPriority  = 92
)

// atOnce publishes requests while the queue is paused, so that the adapter takes
// them in one pass.
func (r *ring) atOnce(ds ...desc) {
	r.Helper()
	r.command(2)
	r.await(2)
	for _, d := range ds {
		if d.Tag == 0 {
			d.Tag = r.tag()
		}
		r.note(d)
		r.put(d)
	}
	r.command(3)
	r.await(1)
}

// TestMM12_Sends: descriptors of three connections of falling priority that come
// interleaved run as A A A B B B C C C, whoever comes first; one with ASAP goes
// before all (MM09).
func TestMM12_Sends(t *T) {
	c := t.start()
	r := c.ring(0, ringConfig{})
	ids := map[string]uint64{}
	for i, name := range []string{"A", "B", "C"} {
		// Done when read: the order of results is the order of DMA.
		_, ids[name] = r.serve(Script{{Op: OpDiscard}}, attr(attrPriority, uint64(6-2*i)), attr(0x0215, 0))
		want(t, "PRIORITY of "+name, r.scalar(reqConnAttr, ids[name], attrPriority), uint64(6-2*i))
	}
	m := r.buffer(9 * 2048)
	run := func(order, asap, expect string) {
		t.Helper()
		names := map[uint32]string{}
		var ds []desc
		for i, b := range order {
			d := desc{
				Type: reqSend, Modify: true, Tag: r.tag(), Base: m.IOVA + uint64(2048*i), Conn: ids[string(b)], Length: 700,
				ASAP: string(b) == asap,
			}
			names[d.Tag] = string(b)
			ds = append(ds, d)
		}
		r.atOnce(ds...)
		got := ""
		for range order {
			d := r.take("the result of a send", func(d desc) bool { return d.Type == rspDone })
			terminal(t, "send", d, rspDone, stOK)
			got += names[d.Tag]
		}
		want(t, "order of "+order, got, expect)
	}
	moved := c.counter(ctrTurnsPriority)
	run("ABCABCABC", "", "AAABBBCCC")
	want(t, "turns_priority", c.counter(ctrTurnsPriority)-moved, 2)
	run("CBACBACBA", "", "AAABBBCCC")
	moved = c.counter(ctrTurnsExpedited)
	run("ABCABC", "C", "CCAABB")
	want(t, "turns_expedited", c.counter(ctrTurnsExpedited)-moved, 1)
	status, _ := r.setScalar(reqConnAttr, ids["B"], attrPriority, 7)
	want(t, "set of PRIORITY", status, stOK)
	run("ABCABC", "", "BBAACC")
	status, _ = r.setScalar(reqConnAttr, ids["B"], attrPriority, 8)
	want(t, "PRIORITY 8", status, stBadValue)
	for _, id := range ids {
		r.finish(id)
	}
}

// TestMM12_Receives: bulk buffers that come go to who starves, then by priority,
// then to who waited longest.
func TestMM12_Receives(t *T) {
	c := t.start()
	r := c.ring(0, ringConfig{})
	c.write(0x00c0, 1)
	t.Cleanup(func() { c.write(0x00c0, 0) })
	var ids []uint64
	var peers []Session
	for i, priority := range []uint64{2, 5, 5, 1} {
		p, id := r.serve(Script{{Op: OpWait}, {Op: OpSend, N: 1}, {Op: OpWait}, {Op: OpSend, N: 1}, {Op: OpDiscard}},
			attr(attrPriority, priority), attr(attrStarvation, uint64(1000*ms/(1+i/3*50))))
		ids, peers = append(ids, id), append(peers, p)
	}
	m := r.buffer(64)
	run := func(what string, expect ...int) {
		t.Helper()
		for _, i := range expect {
			d := r.answer(r.available(0, m, 0))
			terminal(t, what, d, rspReceive, stOK)
			want(t, what+": connection", slices.Index(ids, d.Conn), i)
		}
	}
	arrive := func(i int) {
		t.Helper()
		empty := c.counter(ctrPoolEmpty)
		check(t, "peer: signal", peers[i].Signal(t.ctx))
		t.until("data to wait for a buffer", func() bool { return c.counter(ctrPoolEmpty) > empty })
	}
	for i := range ids {
		arrive(i)
	}
	run("by priority", 1, 2, 0, 3)
	for i := range ids {
		arrive(i)
	}
	starved := c.counter(ctrTurnsStarved)
	c.stepClock(1000 * ms / 51)
	run("a starved one first", 3, 1, 2, 0)
	want(t, "turns_starved", c.counter(ctrTurnsStarved)-starved, 1)
	for _, id := range ids {
		r.finish(id)
	}
}
