// SPDX-License-Identifier: Apache-2.0

package conformance

import (
	"bytes"
	"encoding/binary"
	"time"

	"toebox/guestdriver"
)

// Attributes and counters of SPEC.md §14.4 and §14.5.
const (
	priorityAttr    = 0x0213
	classAttr       = 0x0214
	groupAttr       = 0x0230
	groupByAttr     = 0x0231
	poolWeights     = 0x0238
	memoryUsed      = 0x0108
	bufferTable     = 0x010f
	bufferTableMode = 0x0110

	ctrGroupDeliveries = 93
	ctrPoolMatches     = 94
	ctrPoolWhole       = 95
	ctrTableReads      = 96
)

// portGroup is the id of the group of a local port.
func portGroup(port uint16) uint64 { return 1<<59 | uint64(port)<<32 }

// shared posts a buffer of a group.
func (r *ring) shared(id uint64, m guestdriver.DMA) uint32 {
	r.Helper()
	return r.post(desc{Type: reqAvailable, Flags: flagGroup, Base: m.IOVA, Conn: id, Length: uint32(len(m.Bytes))})
}

// accepted lets the peer open a connection to a port that the adapter listens at,
// and returns its id.
func (r *ring) accepted(port uint16, s Script) (Session, uint64) {
	r.Helper()
	p, err := r.Peer().Dial(r.ctx, port, s)
	check(r.T, "peer: dial", err)
	r.Cleanup(func() { p.Close() })
	return p, r.unsolicited(rspArrival, 0).Conn
}

// into takes a delivery of n bytes of the stream of seed 1 that fills a buffer
// which others could have used.
func (r *ring) into(what string, conn uint64, tag uint32, m guestdriver.DMA, n int) {
	r.Helper()
	d := r.take(what, func(d desc) bool { return d.Type == rspReceive })
	expect := make([]byte, n)
	Payload(expect, 1, 0)
	if d.Tag != tag || d.Conn != conn || int(d.Length) != n || !d.final() || !bytes.Equal(m.Bytes[:n], expect) {
		r.Errorf("%s: %v, want %d bytes of connection %#x, tag %#x, FINAL", what, d, n, conn, tag)
	}
}

// TestMM04_ReceiveGroup: connections of one local port draw from one pool, which
// nobody else touches; a buffer of a connection's own comes first, the pool of the
// queue last.
func TestMM04_ReceiveGroup(t *T) {
	c := t.start()
	r := c.ring(0, ringConfig{})
	before := c.counter(ctrGroupDeliveries)
	ports, err := t.Peer().Reachable(t.ctx, 2)
	check(t, "peer: reachable ports", err)
	for _, port := range ports {
		terminal(t, "listen", r.listen(goal{count: 1, lport: port}), rspListen, stOK)
	}
	send := Script{{Op: OpWait}, {Op: OpSend, N: 100, Seed: 1}, {Op: OpDiscard}}
	a, first := r.accepted(ports[0], send)
	b, second := r.accepted(ports[0], send)
	other, stranger := r.accepted(ports[1], send)
	m, k, own, bulk := r.buffer(128), r.buffer(128), r.buffer(100), r.buffer(128)
	oldest, next := r.shared(portGroup(ports[0]), m), r.shared(portGroup(ports[0]), k)
	pool := r.available(0, bulk, 0)
	mine := r.available(second, own, 0)

	check(t, "peer: signal", a.Signal(t.ctx))
	r.into("the group's oldest buffer", first, oldest, m, 100)
	check(t, "peer: signal", b.Signal(t.ctx))
	r.into("a buffer of its own first", second, mine, own, 100)
	check(t, "peer: signal", other.Signal(t.ctx))
	r.into("another port: the pool", stranger, pool, bulk, 100)
	want(t, "group_deliveries", c.counter(ctrGroupDeliveries)-before, 1)

	d := r.do(desc{Type: reqCancel, Conn: portGroup(ports[0]), Offset: next})
	terminal(t, "cancellation of a group's buffer", d, rspCancelled, stOK)
	d = r.answer(next)
	terminal(t, "the group's buffer", d, rspDone, stCancelled)
	want(t, "its connection id: the group's", d.Conn, portGroup(ports[0]))
	d = r.do(desc{Type: reqAvailable, Flags: flagGroup, Base: m.IOVA, Conn: 1, Length: 128})
	terminal(t, "a buffer of what is no group", d, rspDone, stBadConnection)
}

// TestMM04_GroupBy: groups by a conjunction of attributes; a change of one of them
// while bytes wait is a change of group.
func TestMM04_GroupBy(t *T) {
	c := t.start()
	r := c.ring(0, ringConfig{})
	// Priority 5, QoS class 9, explicit id 0xabc.
	const id = 22<<59 | 5<<56 | 9<<48 | 0xabc
	m := r.buffer(128)
	tag := r.shared(id, m)
	empty := c.counter(ctrPoolEmpty)
	_, conn := r.serve(Script{{Op: OpSend, N: 100, Seed: 1}, {Op: OpDiscard}},
		attr(groupByAttr, 22), attr(priorityAttr, 5), attr(classAttr, 9), attr(groupAttr, 0xabd))
	t.until("bytes to wait", func() bool { return c.counter(ctrPoolEmpty) > empty })
	status, old := r.setScalar(reqConnAttr, conn, groupAttr, 0xabc)
	want(t, "status of GROUP", status, stOK)
	want(t, "GROUP before", old, 0xabd)
	r.into("the group's buffer", conn, tag, m, 100)
	r.finish(conn)
}

// TestMM04_Proportion: 1,000 connections of one port receive through 16 buffers,
// as many as there are messages in flight. What that takes of host and adapter
// memory is measured against a buffer for each.
func TestMM04_Proportion(t *T) {
	const conns, flight, size, message = 1000, 16, 2048, 1024
	c := t.start()
	r := c.ring(0, ringConfig{inLog: 8, outLog: 10})
	port := t.reachable()
	terminal(t, "listen", r.listen(goal{count: 1, lport: port, backlog: 1024}), rspListen, stOK)
	way, err := t.Peer().Hairpin(t.ctx, port)
	check(t, "peer: hairpin", err)
	var senders, receivers []uint64
	for len(senders) < conns {
		k := new(ctl)
		for range 250 {
			g := to(way)
			g.limit = 10 * time.Minute
			k.target(g)
		}
		_, tag := r.control(reqConnect, 0, k)
		for left := 250; left > 0; left-- {
			d := r.answer(tag)
			must(t, "status of a connect", d.Aux, stOK)
			senders = append(senders, d.Conn)
		}
	}
	for range conns {
		receivers = append(receivers, r.unsolicited(rspArrival, 0).Conn)
	}

	used := func() uint64 { return r.scalar(reqAdapter, 0, memoryUsed) }
	before := used()
	memory := map[uint32]guestdriver.DMA{}
	post := func(m guestdriver.DMA) { memory[r.shared(portGroup(port), m)] = m }
	for range flight {
		post(r.buffer(size))
	}
	grouped := used() - before
	out := r.buffer(flight * message)
	var got [conns][]byte
	next, whole := 0, 0
	sends := map[uint32]int{}
	send := func(slot int) {
		if next == conns {
			return
		}
		m := guestdriver.DMA{IOVA: out.IOVA + uint64(slot*message), Bytes: out.Bytes[slot*message:][:message]}
		Payload(m.Bytes, uint64(next), 0)
		binary.LittleEndian.PutUint64(m.Bytes, uint64(next))
		sends[r.send(senders[next], m, 0)] = slot
		next++
	}
	for slot := range flight {
		send(slot)
	}
	pieces := map[uint64][]byte{}
	for whole < conns {
		d := r.take("a delivery or a completed send", func(desc) bool { return true })
		if slot, ok := sends[d.Tag]; ok {
			terminal(t, "send", d, rspDone, stOK)
			delete(sends, d.Tag)
			send(slot)
			continue
		}
		m, ok := memory[d.Tag]
		if !ok || d.Type != rspReceive || !d.final() || int(d.Length) > size {
			t.Fatalf("delivery into a buffer of the group: %v", d)
		}
		delete(memory, d.Tag)
		pieces[d.Conn] = append(pieces[d.Conn], m.Bytes[:d.Length]...)
		if b := pieces[d.Conn]; len(b) == message {
			i := int(binary.LittleEndian.Uint64(b))
			if i >= conns || got[i] != nil {
				t.Fatalf("message %d, of connection %#x, is none or came twice", i, d.Conn)
			}
			got[i] = b
			whole++
		}
		post(m)
	}
	expect := make([]byte, message)
	for i, b := range got {
		Payload(expect, uint64(i), 0)
		binary.LittleEndian.PutUint64(expect, uint64(i))
		must(t, "message", bytes.Equal(b, expect), true)
	}

	// The same with a buffer for each connection.
	before = used()
	m := r.buffer(1) // the memory itself can be counted without having it
	for _, id := range receivers {
		r.available(id, m, 0)
	}
	each := used() - before
	t.Logf("%d connections, %d messages in flight: %d KiB of host memory and %d bytes of adapter memory for buffers of the group; %d KiB and %d bytes with one for each connection",
		conns, flight, flight*size>>10, grouped, conns*size>>10, each)
	want(t, "adapter memory for the group", grouped, flight*64+256)
	want(t, "adapter memory for a buffer each", each, conns*64)
}

// TestRX10_Match: of bulk buffers the smallest that takes the bytes as a whole,
// else the largest; by default the oldest.
func TestRX10_Match(t *T) {
	c := t.chooser(3, attr(poolWeights, 1<<16))
	large, small, fits := c.buffer(1000), c.buffer(40), c.buffer(64)
	c.available(0, large, 0)
	short := c.available(0, small, 0)
	c.gotAll("the smallest that takes all", 1, c.available(0, fits, 0), fits)
	c.moved("pool_matches", ctrPoolMatches, 1)
	c.moved("pool_whole", ctrPoolWhole, 1)

	status, _ := c.setScalar(reqConnAttr, c.id, poolWeights, 0)
	want(t, "status of POOL_WEIGHTS", status, stOK)
	c.got = nil
	medium := c.buffer(50)
	last := c.available(0, medium, 0)
	d := c.do(desc{Type: reqCancel, Offset: short})
	terminal(t, "cancellation", d, rspCancelled, stOK)
	terminal(t, "the cancelled buffer", c.answer(short), rspDone, stCancelled)
	c.arrive()
	d = c.take("a delivery", func(d desc) bool { return d.Type == rspReceive })
	want(t, "length of the delivery into the oldest", d.Length, 64)
	c.moved("pool_matches", ctrPoolMatches, 1)

	// None takes all: the largest first.
	status, _ = c.setScalar(reqConnAttr, c.id, poolWeights, 1<<16)
	want(t, "status of POOL_WEIGHTS", status, stOK)
	rest := c.available(0, small, 0)
	c.arrive()
	for i, w := range []struct {
		tag uint32
		n   uint32
	}{{last, 50}, {rest, 14}} {
		d = c.take("a delivery", func(d desc) bool { return d.Type == rspReceive })
		if d.Tag != w.tag || d.Length != w.n {
			t.Errorf("part %d: %v, want %d bytes with tag %#x", i, d, w.n, w.tag)
		}
	}
	c.finish(c.id)
}

// gotAll lets 64 bytes arrive and finds them in one buffer.
func (c *chooser) gotAll(what string, n uint64, tag uint32, m guestdriver.DMA) {
	c.Helper()
	c.arrive()
	c.gets(what, n, tag, m)
}

// TestMM16_Table: what the host declares of its buffers decides between equals,
// read by DMA at each choice, or kept.
func TestMM16_Table(t *T) {
	// Best match, weight 1 of speed, 2 of the node, which is 7.
	c := t.chooser(6, attr(poolWeights, 7<<24|1<<16|1<<8|2))
	slow, fast, near := c.buffer(64), c.buffer(64), c.buffer(64)
	table := c.alloc(3 * 48)
	declare := func(i int, m guestdriver.DMA, speed, node uint64) {
		b := table.Bytes[48*i:]
		for k, v := range []uint64{m.IOVA, 64, speed, node, 0, 0} {
			binary.LittleEndian.PutUint64(b[8*k:], v)
		}
	}
	declare(0, slow, 1, 1)
	declare(1, fast, 200, 1)
	declare(2, near, 1, 7)
	set := func(mode uint64) {
		t.Helper()
		v := binary.LittleEndian.AppendUint64(nil, table.IOVA)
		k := new(ctl).tuple(true, bufferTable, binary.LittleEndian.AppendUint64(v, 3)).set(bufferTableMode, mode)
		d, _ := c.attrs(reqAdapter, 0, k)
		must(t, "status of BUFFER_TABLE", d.Aux, stOK)
	}
	// The others are posted before: equals, but for the table.
	all := func() (s, f, n uint32) {
		return c.available(0, slow, 0), c.available(0, fast, 0), c.available(0, near, 0)
	}
	set(0)
	s, f, n := all()
	c.gotAll("on the connection's node", 1, n, near)
	c.gotAll("the faster of two", 2, f, fast)
	c.moved("buffer_table_reads", ctrTableReads, 2)
	c.gotAll("the last", 3, s, slow)
	c.moved("buffer_table_reads", ctrTableReads, 2)

	// Read at each choice, a change holds at once; kept, from the next set on.
	declare(0, slow, 1, 1)
	declare(1, fast, 3, 7)
	_, f, _ = all()
	c.gotAll("a table that changed", 4, f, fast)
	set(1)
	f = c.available(0, fast, 0)
	declare(1, fast, 3, 1)
	c.gotAll("a copy of a table that changed", 5, f, fast)
	set(1)
	f = c.available(0, fast, 0)
	c.arrive()
	d := c.take("a delivery", func(d desc) bool { return d.Type == rspReceive })
	if d.Tag == f {
		t.Errorf("a copy that was read anew: %v", d)
	}
	c.moved("buffer_table_reads", ctrTableReads, 2+1+3)
	c.finish(c.id)
}
