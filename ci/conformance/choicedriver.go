// SPDX-License-Identifier: Apache-2.0

package conformance

import (
	"bytes"
	"fmt"
	"net"
	"time"

	"toebox/guestdriver"
)

// driverChooser is a connection of the driver whose peer sends 64 bytes at each signal,
// and the pool of the adapter, under a policy clock that the test moves. What comes is
// told by one queue, from whichever buffer.
type driverChooser struct {
	*T
	a     *guestdriver.Adapter
	c     *guestdriver.Conn
	pool  *guestdriver.ReceiveGroup
	q     *guestdriver.CompletionQueue
	peer  Session
	n     uint64 // signals so far
	marks []uint64
}

func (t *T) driverChooser(signals int, p guestdriver.ChoicePolicy) *driverChooser {
	t.Helper()
	c := &driverChooser{T: t, a: t.driver(), q: guestdriver.NewCompletionQueue()}
	bus := c.a.Bus()
	bus.Write32(0, 0x00c0, 1)
	t.Cleanup(func() { bus.Write32(0, 0x00c0, 0) })
	var s Script
	for i := range signals {
		s = append(s, Step{Op: OpWait}, Step{Op: OpSend, N: 64, Seed: uint64(1 + i)})
	}
	peer, conn := t.dialPeer(c.a, append(s, Step{Op: OpDiscard}))
	c.peer, c.c = peer, conn.(*guestdriver.Conn)
	c.c.SetReadAhead(false)
	var err error
	c.pool, err = c.a.NewReceiveGroup(guestdriver.GroupKey{}, c.q)
	check(t, "make the pool", err)
	check(t, "receive by the pool", c.pool.Add(c.c))
	check(t, "set the policy", c.c.SetChoicePolicy(p))
	got, err := c.c.ChoicePolicy()
	check(t, "policy", err)
	want(t, "policy", got, p)
	c.marks, err = c.a.Counters(t.ctx)
	check(t, "counters", err)
	return c
}

// usualChoice is the policy by default.
func usualChoice() guestdriver.ChoicePolicy {
	return guestdriver.ChoicePolicy{Wait: 5 * time.Millisecond, Count: 16, Threshold: 50}
}

// step advances the policy clock; see notifier.step.
func (c *driverChooser) step(d time.Duration) {
	bus := c.a.Bus()
	bus.Write32(0, 0x00c4, uint32(d))
	bus.Write32(0, 0x00c8, uint32(uint64(d)>>32))
	bus.Read32(0, 0x00c8)
}

// moved is how far a counter went since the connection was there.
func (c *driverChooser) moved(what string, i int, by uint64) {
	c.Helper()
	want(c.T, what, c.counterOf(c.a, i)-c.marks[i], by)
}

// arrive lets 64 bytes arrive, and returns when the adapter has acted on them.
func (c *driverChooser) arrive() {
	c.Helper()
	acted := func() (n uint64) {
		for _, i := range []int{ctrPoolDeliveries, ctrOwnDeliveries, ctrPoolEmpty, ctrBufferWaits} {
			n += c.counterOf(c.a, i)
		}
		return n
	}
	before := acted()
	check(c.T, "peer: signal", c.peer.Signal(c.ctx))
	c.n++
	c.until("64 bytes to arrive", func() bool { return c.number(c.a, c.c.ID(), bytesReceived) >= 64*c.n })
	c.until("the adapter to act on them", func() bool { return acted() > before })
}

// post posts a buffer of the pool, own one of the connection.
func (c *driverChooser) post(b *guestdriver.Buffer) *guestdriver.Buffer {
	c.Helper()
	check(c.T, "post to the pool", c.pool.Post(b))
	return b
}

func (c *driverChooser) own(b *guestdriver.Buffer) *guestdriver.Buffer {
	c.Helper()
	check(c.T, "post a buffer of one's own", c.c.PostBuffer(b, c.q))
	return b
}

// gets takes the completion of all bytes of the n-th signal, from 1 on, in a buffer.
func (c *driverChooser) gets(what string, n uint64, b *guestdriver.Buffer, op guestdriver.Op) {
	c.Helper()
	d, err := c.q.Next(c.ctx)
	check(c.T, what, err)
	want(c.T, what, d, guestdriver.Completion{Buffer: b, Conn: c.c, Op: op, N: 64, Final: true})
	want(c.T, what+": the bytes", bytes.Equal(b.Bytes()[:64], piece(n, 64)), true)
}

// none fails the test if something was told.
func (c *driverChooser) none(what string) {
	c.Helper()
	c.number(c.a, c.c.ID(), bytesReceived) // what was under way comes before
	var some [1]guestdriver.Completion
	if c.q.Poll(some[:]) > 0 {
		c.Fatalf("%s: told %+v", what, some[0])
	}
}

// TestRX07_Driver: what finds no buffer of the connection goes to the driver's pool at
// once; without one there it waits for either.
func TestRX07_Driver(t *T) {
	p := usualChoice()
	c := t.driverChooser(4, p)
	bufs := t.buffers(c.a, 2, 64)
	c.post(bufs[0])
	c.arrive()
	c.gets("a buffer of the pool", 1, bufs[0], guestdriver.OpGroup)
	c.moved("pool_deliveries", ctrPoolDeliveries, 1)
	c.post(bufs[0])
	c.own(bufs[1])
	c.arrive()
	c.gets("a buffer of its own first", 2, bufs[1], guestdriver.OpReceive)
	c.arrive()
	c.gets("then the pool", 3, bufs[0], guestdriver.OpGroup)
	c.arrive()
	c.none("no buffer at all")
	c.gets("a buffer of the pool, late", 4, c.post(bufs[0]), guestdriver.OpGroup)
	c.moved("pool_deliveries", ctrPoolDeliveries, 3)
	c.moved("buffer_waits", ctrBufferWaits, 0)
}

// TestRX08_Driver: bytes wait for a buffer of the connection as long as the driver's
// policy says, to the nanosecond.
func TestRX08_Driver(t *T) {
	const wait = 10 * time.Millisecond
	p := usualChoice()
	p.Choice, p.Wait = guestdriver.ChooseWait, wait
	c := t.driverChooser(3, p)
	bufs := t.buffers(c.a, 2, 64)
	c.post(bufs[0])
	c.arrive()
	c.step(wait - 1)
	c.none("1 ns before the end of a wait")
	c.gets("a buffer in time", 1, c.own(bufs[1]), guestdriver.OpReceive)
	c.moved("buffer_waits_met", ctrWaitsMet, 1)
	c.step(wait)
	c.arrive()
	c.step(wait - 1)
	c.none("1 ns before the end of a wait")
	c.step(1)
	c.gets("the pool after the wait", 2, bufs[0], guestdriver.OpGroup)
	c.moved("buffer_waits_over", ctrWaitsOver, 1)

	// What is set ends a wait.
	c.post(bufs[0])
	c.arrive()
	c.none("a wait")
	check(t, "set the policy", c.c.SetChoicePolicy(usualChoice()))
	c.gets("the pool, by another policy", 3, bufs[0], guestdriver.OpGroup)
}

// TestRX09_Driver: the wait is that of the history, which the driver shows; the adapter's
// policy is that of connections to come.
func TestRX09_Driver(t *T) {
	const wait = 10 * time.Millisecond
	p := guestdriver.ChoicePolicy{Choice: guestdriver.ChooseHistory, Wait: wait, Count: 4, Threshold: 50}
	c := t.driverChooser(8, p)
	bufs := t.buffers(c.a, 2, 64)
	now, from := time.Duration(0), time.Duration(-1)
	step := func(d time.Duration) { c.step(d); now += d }
	var past []guestdriver.Transfer
	says := func(what string, found int, ns time.Duration) {
		t.Helper()
		h, err := c.c.ChoiceHistory()
		check(t, what, err)
		window := past[max(0, len(past)-4):]
		if from < 0 && len(h.Transfers) > 0 {
			from = h.Transfers[0].At - window[0].At
		}
		expect := guestdriver.ChoiceHistory{Found: found, Wait: ns}
		for _, k := range window {
			expect.Transfers = append(expect.Transfers, guestdriver.Transfer{At: k.At + from, Found: k.Found})
		}
		want(t, what, fmt.Sprintf("%+v", h), fmt.Sprintf("%+v", expect))
	}
	n := uint64(0)
	found := func(what string) {
		t.Helper()
		c.own(bufs[1])
		c.arrive()
		n++
		c.gets(what, n, bufs[1], guestdriver.OpReceive)
		past = append(past, guestdriver.Transfer{At: now, Found: true})
		step(time.Millisecond)
	}
	missed := func(what string, d time.Duration) {
		t.Helper()
		c.arrive()
		n++
		if d > 0 {
			step(d - 1)
			c.none(what + ": 1 ns early")
			step(1)
		}
		c.gets(what, n, c.post(bufs[0]), guestdriver.OpGroup)
		past = append(past, guestdriver.Transfer{At: now})
		step(time.Millisecond)
	}
	says("no history", 0, wait)
	found("100%")
	says("1 of 1", 1, wait)
	missed("1 of 1", wait)
	missed("1 of 2", wait)
	says("1 of 3", 1, 0)
	missed("1 of 3: no wait", 0)
	c.moved("history_none", ctrHistoryNone, 1)
	p.Reduce = true
	check(t, "reduce the wait", c.c.SetChoicePolicy(p))
	says("1 of 4, reduced", 1, wait/2)
	missed("1 of 4, reduced", wait/2)
	c.moved("history_reduced", ctrHistoryReduced, 1)
	found("0 of 4")
	found("1 of 4")
	says("2 of 4: the wait is back", 2, wait)
	missed("2 of 4", wait)
	p.Span = 500 * time.Microsecond
	check(t, "go by time", c.c.SetChoicePolicy(p))
	past = nil
	says("none of late", 0, wait)

	check(t, "set the adapter's policy", c.a.SetChoicePolicy(t.ctx, p))
	got, err := c.a.ChoicePolicy(t.ctx)
	check(t, "the adapter's policy", err)
	want(t, "the adapter's policy", got, p)
	_, conn := t.dialPeer(c.a, Script{{Op: OpDiscard}})
	got, err = conn.(*guestdriver.Conn).ChoicePolicy()
	check(t, "policy of a new connection", err)
	want(t, "policy of a new connection", got, p)
	t.numbers(c.a, conn.(*guestdriver.Conn).ID(), "new connection", map[uint16]uint64{
		bufferPolicy: 2, bufferWait: 10 * ms, historyCount: 4, historyTime: 500_000, historyThreshold: 50, historyMode: 1, poolWeights: 0,
	})
}

// TestRX10_Driver: of the pool's buffers the smallest that takes all, else the largest
// first, as the driver's policy says; by default the oldest.
func TestRX10_Driver(t *T) {
	p := usualChoice()
	p.Match.Best = true
	c := t.driverChooser(3, p)
	m, err := c.a.Alloc(2000)
	check(t, "register memory", err)
	cut := func(off, n int) *guestdriver.Buffer {
		t.Helper()
		b, err := m.Buffer(off, n)
		check(t, "make a buffer", err)
		return b
	}
	large, small, fits, medium := cut(0, 1000), cut(1000, 14), cut(1100, 64), cut(1200, 50)
	c.post(large)
	c.post(small)
	c.post(fits)
	c.arrive()
	c.gets("the smallest that takes all", 1, fits, guestdriver.OpGroup)
	c.moved("pool_matches", ctrPoolMatches, 1)
	c.moved("pool_whole", ctrPoolWhole, 1)
	check(t, "set the policy", c.c.SetChoicePolicy(usualChoice()))
	c.arrive()
	c.gets("the oldest", 2, large, guestdriver.OpGroup)
	c.moved("pool_matches", ctrPoolMatches, 1)
	check(t, "set the policy", c.c.SetChoicePolicy(p))
	c.post(medium)
	c.arrive()
	var all []byte
	for _, b := range []*guestdriver.Buffer{medium, small} {
		d, err := c.q.Next(t.ctx)
		check(t, "none takes all: the largest first", err)
		want(t, "none takes all: the largest first", d,
			guestdriver.Completion{Buffer: b, Conn: c.c, Op: guestdriver.OpGroup, N: len(b.Bytes()), Final: true})
		all = append(all, b.Bytes()...)
	}
	want(t, "the bytes", bytes.Equal(all, piece(3, 64)), true)
}

// TestMM16_Driver: what the driver declares of registered memory decides between equals,
// read by DMA for each choice, or kept by the adapter.
func TestMM16_Driver(t *T) {
	p := usualChoice()
	p.Match = guestdriver.PoolMatch{Best: true, Node: 7, NodeWeight: 2, SpeedWeight: 1}
	c := t.driverChooser(7, p)
	all := t.buffers(c.a, 3, 64)
	slow, fast, near := all[0], all[1], all[2]
	declare := func(i int, d guestdriver.Declaration) {
		t.Helper()
		check(t, "declare memory", all[i].Memory().Declare(64*i, 64, d))
	}
	declare(0, guestdriver.Declaration{Speed: 1, Node: 1})
	declare(1, guestdriver.Declaration{Speed: 200, Node: 1})
	declare(2, guestdriver.Declaration{Speed: 1, Node: 7})
	want(t, "declared", len(c.a.BufferTable()), 3)
	for _, b := range all {
		c.post(b)
	}
	reads := c.counterOf(c.a, ctrTableReads)
	c.arrive()
	c.gets("on the connection's node", 1, near, guestdriver.OpGroup)
	c.arrive()
	c.gets("the faster of two", 2, fast, guestdriver.OpGroup)
	want(t, "buffer_table_reads", c.counterOf(c.a, ctrTableReads)-reads, 2)
	c.arrive()
	c.gets("the last", 3, slow, guestdriver.OpGroup)
	want(t, "buffer_table_reads of no choice", c.counterOf(c.a, ctrTableReads)-reads, 2)

	// Contiguous memory, and that of another group.
	other, err := c.a.NewReceiveGroup(guestdriver.GroupKey{By: guestdriver.GroupByID}, c.q)
	check(t, "make a group", err)
	declare(0, guestdriver.Declaration{Speed: 9})
	declare(1, guestdriver.Declaration{Speed: 9, Contiguous: true})
	declare(2, guestdriver.Declaration{Speed: 99, Group: other})
	for _, b := range all {
		c.post(b)
	}
	c.arrive()
	c.gets("contiguous", 4, fast, guestdriver.OpGroup)
	c.arrive()
	c.gets("not another group's", 5, slow, guestdriver.OpGroup)

	// Kept: once for the mode, then once for each change.
	reads = c.counterOf(c.a, ctrTableReads)
	check(t, "have the adapter keep the table", c.a.SetTableMode(t.ctx, guestdriver.TableKept))
	mode, err := c.a.TableMode(t.ctx)
	check(t, "mode", err)
	want(t, "mode", mode, guestdriver.TableKept)
	c.post(slow)
	c.arrive()
	c.gets("not another group's, by the copy", 6, slow, guestdriver.OpGroup)
	want(t, "buffer_table_reads of a copy", c.counterOf(c.a, ctrTableReads)-reads, 1)
	declare(0, guestdriver.Declaration{Speed: 3})
	declare(2, guestdriver.Declaration{Speed: 4})
	c.post(slow)
	c.arrive()
	c.gets("the faster, by the copy", 7, near, guestdriver.OpGroup)
	want(t, "buffer_table_reads of changes", c.counterOf(c.a, ctrTableReads)-reads, 3)
	check(t, "close the group", other.Close())
	check(t, "close the pool", c.pool.Close())
	d, err := c.q.Next(t.ctx)
	check(t, "the buffer that is left", err)
	want(t, "the buffer that is left", d, guestdriver.Completion{Buffer: slow, Op: guestdriver.OpGroup, Final: true, Err: net.ErrClosed})
	check(t, "have the adapter read the table", c.a.SetTableMode(t.ctx, guestdriver.TableRead))
}
