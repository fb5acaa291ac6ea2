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
	if r.fake.Refuses(true, nil) || r.fake.Refuses(false, nil) {
		t.Errorf("payload is refused at the threshold")
	}
	// A window that the host sets meanwhile holds afterwards.
	r.attributes(id, 1, abi.AppendSetScalar(nil, 0x0207, 300_000))
	if n := window(t, ep); n != 64<<10 {
		t.Errorf("window %d after a set of RECEIVE_WINDOW", n)
	}
	// Refused from half-way to the limit on, of others at 7/8 of it.
	ep.Deliver(make([]byte, 40_000))
	if !r.fake.Refuses(true, nil) || r.fake.Refuses(false, nil) {
		t.Errorf("half-way to the limit payload of those that hold some: refused %t, of others %t", r.fake.Refuses(true, nil), r.fake.Refuses(false, nil))
	}
	ep.Deliver(make([]byte, 30_000))
	if !r.fake.Refuses(false, nil) {
		t.Errorf("payload of others is not refused at 7/8 of the way to the limit")
	}
	r.settle()

	b := r.buffer(abi.TypeBufferAvailable, 0, 20_001+40_000+30_000)
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

// TestSpillHungry: payload of a connection with a buffer of its own is taken
// whatever others hold, and no longer than that, nor while the host takes no
// responses.
func TestSpillHungry(t *testing.T) {
	r := newRig(t, 4)
	early, first := r.connectWith(scalars())
	id, ep := r.connectWith(scalars())
	reads, unread := r.connectWith(scalars(0x0239, 1)) // DMA_WHEN
	_, full := r.connectWith(scalars())
	r.post(r.buffer(abi.TypeBufferAvailable, early, 50_000))
	r.settle()
	refused := func(what string, ep *enginetest.Endpoint, holding, want bool) {
		t.Helper()
		r.settle()
		if got := r.fake.Refuses(holding, ep); got != want {
			t.Errorf("%s: refused %t, holding %t", what, got, holding)
		}
	}
	r.headroom(8000, 20_000)
	full.Deliver(make([]byte, 19_500))
	refused("nothing posted", ep, false, true)
	refused("a buffer posted before", first, false, false)
	refused("a buffer posted before", first, true, false)
	b := r.buffer(abi.TypeBufferAvailable, id, 1000)
	r.post(b)
	refused("a buffer posted", ep, false, false)
	refused("a buffer posted", ep, true, false)
	r.post(r.buffer(abi.TypeBufferAvailable, reads, 1000))
	refused("a buffer that waits for a read", unread, false, true)
	full.Deliver(make([]byte, 501))
	refused("no memory", ep, false, false)
	refused("no memory", ep, true, true)
	ep.Deliver(make([]byte, 1000))
	if got := r.next(); got.Tag != b.Tag || got.Length != 1000 {
		t.Fatalf("delivery %+v", got)
	}
	refused("the buffer is full", ep, false, true)
	for range 16 + 4096 {
		if err := r.Wait("room", r.Room); err != nil {
			t.Fatal(err)
		}
		old := r.Index()
		r.Publish(abi.Fields{Type: 9, Tag: r.Tag()})
		r.Ring(old)
	}
	if err := r.Wait("a stalled queue to refuse", func() bool { return r.fake.Refuses(false, first) }); err != nil {
		t.Fatal(err)
	}
	for range 16 + 4096 {
		r.next()
	}
	refused("the host takes responses", first, false, false)
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
