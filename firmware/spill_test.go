// SPDX-License-Identifier: Apache-2.0

package firmware_test

import (
	"encoding/binary"
	"testing"

	"toebox/firmware/engine"
	"toebox/firmware/engine/enginetest"
	"toebox/vdev/abi"
)

// headroom sets SPILL_THRESHOLD and MEMORY_SIZE to so much above what is in use.
func (r *rig) headroom(threshold, limit uint64) {
	r.t.Helper()
	used := binary.LittleEndian.Uint64(r.attribute(0, 0x0108, 8))
	f, buf := r.attributes(0, 2, abi.AppendSetScalar(abi.AppendSetScalar(nil, 0x010e, used+threshold), 0x0107, used+limit))
	if f.Aux != 0 {
		r.t.Fatalf("set of memory: %+v % x", f, buf)
	}
}

// window is the receive window that the engine was given.
func window(t *testing.T, ep *enginetest.Endpoint) int64 {
	t.Helper()
	n, err := ep.Option(engine.OptReceiveWindow)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// TestSpillWaits: what waits for a buffer of its own goes to the pool when memory
// is short, on all queues.
func TestSpillWaits(t *testing.T) {
	r := newRig(t, 6)
	r.fw.SetPolicyClock(true)
	other := r.second(1)
	waits := []uint64{0x0232, 1, 0x0233, 1 << 62}
	id, ep := r.connectWith(scalars(waits...))
	id2, ep2 := other.connectWith(scalars(waits...))
	bulk, bulk2 := r.buffer(abi.TypeBufferAvailable, 0, 64), other.buffer(abi.TypeBufferAvailable, 0, 64)
	bulk2.Base = r.Chip.Alloc(64, 1)
	r.post(bulk)
	other.post(bulk2)
	r.settle()
	other.settle()
	r.headroom(1000, 2000)
	used := r.counter(abi.CounterMemoryUsed)
	ep.Deliver(make([]byte, 64))
	ep2.Deliver(make([]byte, 60))
	if seen := append(r.settle(), other.settle()...); len(seen) != 0 {
		t.Fatalf("told %+v", seen)
	}
	// Two waits, 128 bytes each, and what has arrived.
	r.wantCounter(abi.CounterMemoryUsed, used+64+60+2*128)
	ep.Deliver(make([]byte, 1000))
	r.expect(abi.Fields{Type: abi.TypeBufferReceive, Flags: abi.FlagFinal, Tag: bulk.Tag, Conn: id, Base: bulk.Base, Length: 64})
	other.expect(abi.Fields{Type: abi.TypeBufferReceive, Flags: abi.FlagFinal, Tag: bulk2.Tag, Conn: id2, Base: bulk2.Base, Length: 60})
	r.wantCounter(abi.CounterMemoryShort, 1)
	r.wantCounter(abi.CounterSpilledBytes, 64+60)
	r.wantCounter(abi.CounterBufferWaitsOver, 0)
	// The rest has no buffer. When it is gone bytes wait again.
	last := r.buffer(abi.TypeBufferAvailable, 0, 2000)
	r.post(last)
	r.expect(abi.Fields{Type: abi.TypeBufferReceive, Flags: abi.FlagFinal, Tag: last.Tag, Conn: id, Base: last.Base, Length: 1000})
	r.post(r.buffer(abi.TypeBufferAvailable, 0, 64))
	r.settle()
	ep.Deliver(make([]byte, 10))
	if seen := r.settle(); len(seen) != 0 {
		t.Errorf("told %+v", seen)
	}
	r.wantCounter(abi.CounterBufferWaits, 3)
}

// TestSpillWindows: payload that has nowhere to go closes its connection's window,
// and opens it again; that of others is not touched.
func TestSpillWindows(t *testing.T) {
	r := newRig(t, 6)
	id, ep := r.connectWith(scalars())
	_, idle := r.connectWith(scalars())
	r.headroom(20_000, 100_000)
	ep.Deliver(make([]byte, 20_000))
	r.settle()
	if n := window(t, ep); n != 512<<10 {
		t.Errorf("window %d at the threshold", n)
	}
	r.wantCounter(abi.CounterMemoryShort, 0)
	ep.Deliver(make([]byte, 1))
	r.settle()
	r.wantCounter(abi.CounterMemoryShort, 1)
	r.wantCounter(abi.CounterWindowsClosed, 1)
	if n := window(t, ep); n != 64<<10 {
		t.Errorf("window %d above the threshold", n)
	}
	if n := window(t, idle); n != 512<<10 {
		t.Errorf("window %d of a connection without payload", n)
	}
	// A window that the host sets meanwhile holds afterwards.
	r.attributes(id, 1, abi.AppendSetScalar(nil, 0x0207, 300_000))
	if n := window(t, ep); n != 64<<10 {
		t.Errorf("window %d after a set of RECEIVE_WINDOW", n)
	}
	ep.Deliver(make([]byte, 70_000))
	r.settle()

	b := r.buffer(abi.TypeBufferAvailable, 0, 20_001+70_000)
	r.post(b)
	r.expect(abi.Fields{Type: abi.TypeBufferReceive, Flags: abi.FlagFinal, Tag: b.Tag, Conn: id, Base: b.Base, Length: b.Length})
	r.wantCounter(abi.CounterSpilledBytes, uint64(b.Length))
	r.settle()
	if n := window(t, ep); n != 300_000 {
		t.Errorf("window %d when all is delivered", n)
	}
	// Below the threshold again, nothing is short.
	ep.Deliver(make([]byte, 4000))
	r.settle()
	if n := window(t, ep); n != 300_000 {
		t.Errorf("window %d below the threshold", n)
	}
	r.wantCounter(abi.CounterMemoryShort, 1)
}

// TestSpillTakes: payload is taken as far as there is room for it: half-way to the
// limit for a connection that holds some, 7/8 of that way for one that holds none.
func TestSpillTakes(t *testing.T) {
	r := newRig(t, 4)
	_, full := r.connectWith(scalars())
	_, ep := r.connectWith(scalars())
	_, other := r.connectWith(scalars())
	r.headroom(20_000, 100_000)
	used := r.counter(abi.CounterMemoryUsed)
	takes := func(what string, ep *enginetest.Endpoint, n, want int) {
		t.Helper()
		if got := ep.Arrives(n, false); got != want {
			t.Errorf("%s: %d of %d bytes taken, not %d", what, got, n, want)
		}
	}
	takes("the first payload", full, 10_000, 10_000)
	takes("more of it", full, 60_000, 50_000)
	takes("half-way to the limit", full, 1, 0)
	takes("of one that holds none", ep, 29_999, 29_999)
	takes("of one that holds none, as much as is left", other, 2, 1)
	takes("7/8 of the way", r.fake.Last(), 1, 0)
	r.wantCounter(abi.CounterMemoryUsed, used+90_000)
}

// TestSpillReserve: whatever the threshold, payload leaves 1/64 of memory to
// requests.
func TestSpillReserve(t *testing.T) {
	r := newRig(t, 4)
	_, ep := r.connectWith(scalars())
	_, other := r.connectWith(scalars())
	r.headroom(100_000, 100_000)
	used := r.counter(abi.CounterMemoryUsed)
	limit := used + 100_000
	room := int(limit - limit/64 - used)
	if n := ep.Arrives(50_000, false); n != 50_000 {
		t.Errorf("%d bytes taken", n)
	}
	if n := other.Arrives(100_000, false); n != room-50_000 {
		t.Errorf("%d bytes taken, not %d", n, room-50_000)
	}
	r.wantCounter(abi.CounterMemoryUsed, limit-limit/64)
}

// TestSpillHungry: bytes that go at once into buffers of their connection are taken
// whatever others hold, 64 KiB of a queue at a time, though memory is full; and no
// byte more, nor while the host takes no responses.
func TestSpillHungry(t *testing.T) {
	const conns = 4
	r := newRig(t, 4)
	var ids []uint64
	var eps []*enginetest.Endpoint
	for range conns {
		id, ep := r.connectWith(scalars())
		ids, eps = append(ids, id), append(eps, ep)
	}
	reads, unread := r.connectWith(scalars(0x0239, 1)) // DMA_WHEN
	peeks, unseen := r.connectWith(scalars())
	_, full := r.connectWith(scalars())
	early := r.buffer(abi.TypeBufferAvailable, ids[0], 100_000)
	r.post(early)
	r.settle()
	r.headroom(8000, 20_000)
	full.Deliver(make([]byte, 20_000))
	r.settle()
	takes := func(what string, ep *enginetest.Endpoint, n, want int) {
		t.Helper()
		if got := ep.Arrives(n, false); got != want {
			t.Errorf("%s: %d of %d bytes taken, not %d", what, got, n, want)
		}
	}
	delivered := func(what string, b abi.Fields, at, n uint32) {
		t.Helper()
		if got := r.next(); got.Tag != b.Tag || got.Offset != at || got.Length != n {
			t.Fatalf("%s: %+v", what, got)
		}
	}
	takes("nothing posted", eps[1], 1, 0)
	takes("a buffer posted before", eps[0], 1000, 1000)
	delivered("a buffer posted before", early, 0, 1000)
	for i, id := range ids[1:] {
		r.post(r.buffer(abi.TypeBufferAvailable, id, 1000))
		r.settle()
		takes("a buffer posted", eps[i+1], 1100, 1000)
		r.next()
		takes("the buffer is full", eps[i+1], 1, 0)
	}
	if got := eps[0].Arrives(1000, true); got != 0 {
		t.Errorf("%d bytes taken behind others that are missing", got)
	}
	r.post(r.buffer(abi.TypeBufferAvailable, reads, 1000))
	b := r.buffer(abi.TypeBufferAvailable, peeks, 1000)
	b.Flags = abi.FlagPeek
	r.post(b)
	r.settle()
	takes("a buffer that waits for a read", unread, 1, 0)
	takes("a buffer that peeks", unseen, 1, 0)

	// All at once: the queue has 64 KiB, which is enough for all of it in turn.
	for _, id := range ids {
		r.post(r.buffer(abi.TypeBufferAvailable, id, 1<<16))
	}
	r.settle()
	used := r.counter(abi.CounterMemoryUsed)
	left := [conns]int{}
	for i := range left {
		left[i] = 1 << 16
	}
	total := uint32(0)
	err := r.Wait("bytes of all connections", func() bool {
		for i := range left {
			left[i] -= eps[i].Arrives(left[i], false)
		}
		if n := r.counter(abi.CounterMemoryUsed); n > used {
			t.Fatalf("%d bytes in use, %d before", n, used)
		}
		for _, f := range r.Pending() {
			total += f.Length
		}
		return total == conns<<16
	})
	if err != nil {
		t.Fatalf("%v: %d bytes told, left %v", err, total, left)
	}
	for range 16 + 4096 {
		if err := r.Wait("room", r.Room); err != nil {
			t.Fatal(err)
		}
		old := r.Index()
		r.Publish(abi.Fields{Type: 9, Tag: r.Tag()})
		r.Ring(old)
	}
	if err := r.Wait("a stalled queue", func() bool { return r.fw.QueueStatus(0).Held >= 4096 }); err != nil {
		t.Fatal(err)
	}
	err = r.Wait("a stalled queue to take nothing", func() bool { return eps[0].Arrives(1, false) == 0 })
	if err != nil {
		t.Fatal(err)
	}
	for range 16 + 4096 {
		r.next()
	}
}

// TestSpillRequests: payload that fills memory keeps out connections, not the
// buffers that take it out.
func TestSpillRequests(t *testing.T) {
	r := newRig(t, 6)
	id, ep := r.connectWith(scalars())
	r.headroom(10_000, 20_000)
	ep.Deliver(make([]byte, 30_000))
	r.settle()
	f := r.target(abi.TypeConnect, connectTarget())
	r.post(f)
	if got := r.next(); got.Tag != f.Tag || got.Aux != 11 {
		t.Errorf("connect: %+v", got)
	}
	own := r.buffer(abi.TypeBufferAvailable, id, 30_000)
	r.post(own)
	r.expect(abi.Fields{Type: abi.TypeBufferReceive, Flags: abi.FlagFinal, Tag: own.Tag, Conn: id, Base: own.Base, Length: 30_000})
}

// TestSpillStalled: windows close also while the host takes no responses.
func TestSpillStalled(t *testing.T) {
	r := newRig(t, 4)
	_, ep := r.connectWith(scalars())
	r.headroom(8000, 10_000)
	// The fewest responses that hold the queue up: refused requests.
	for range 16 + 4096 {
		if err := r.Wait("room", r.Room); err != nil {
			t.Fatal(err)
		}
		old := r.Index()
		r.Publish(abi.Fields{Type: 9, Tag: r.Tag()})
		r.Ring(old)
	}
	if err := r.Wait("a stalled queue", func() bool { return r.fw.QueueStatus(0).Held >= 4096 }); err != nil {
		t.Fatal(err)
	}
	ep.Deliver(make([]byte, 10_000))
	if err := r.Wait("the window to close", func() bool { return window(t, ep) == 64<<10 }); err != nil {
		t.Fatal(err)
	}
	for range 16 + 4096 {
		r.next()
	}
}
