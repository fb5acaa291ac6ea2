// SPDX-License-Identifier: Apache-2.0

package guestdriver

import (
	"errors"
	"math/rand/v2"
	"net"
	"slices"
	"testing"
	"time"

	"toebox/vdev/abi"
)

// stillBus is a bus with nobody behind it: tests play the adapter by hand.
type stillBus struct {
	regs map[uint32]uint32
	next uint64
	fail bool
}

func (b *stillBus) Name() string                        { return "still" }
func (b *stillBus) ReadConfig(int, int) (uint32, error) { return 0x74221234, nil }
func (b *stillBus) WriteConfig(int, int, uint32) error  { return nil }
func (b *stillBus) Read32(_ int, off uint32) uint32     { return b.regs[off] }
func (b *stillBus) Write32(_ int, off uint32, v uint32) {}
func (b *stillBus) FreeDMA(DMA) error                   { return nil }
func (b *stillBus) EnableVectors(int) error             { return nil }
func (b *stillBus) Wait(int) error                      { return net.ErrClosed }
func (b *stillBus) Reset() error                        { return nil }
func (b *stillBus) Close() error                        { return nil }
func (b *stillBus) AllocDMA(n int) (DMA, error) {
	if b.fail {
		return DMA{}, errors.New("none")
	}
	b.next += 1 << 24
	return DMA{make([]byte, n), b.next}, nil
}

// still returns an adapter with one lane whose queue nobody serves.
func still(t testing.TB) (*Adapter, *lane) {
	bus := &stillBus{regs: map[uint32]uint32{0x1004: 1}}
	opts := Options{}
	opts.setDefaults()
	a := &Adapter{bus: bus, opts: opts, rx: newArena(bus, 4<<20, 1<<20), tx: newArena(bus, 4<<20, 1<<20),
		ctl: newArena(bus, 1<<20, 0), conns: map[uint64]endpoint{}}
	ln := &lane{a: a, vector: 1}
	a.lanes = []*lane{ln}
	q, err := NewQueue(bus, 0, QueueConfig{InLog2: 4, OutLog2: 4})
	if err != nil {
		t.Fatal(err)
	}
	ln.install(q)
	return a, ln
}

// take plays the adapter: it takes every request and returns the last.
func take(q *Queue, next *abi.Index) (last abi.Fields) {
	for {
		f, ok := takeOne(q, next)
		if !ok {
			return last
		}
		last = f
	}
}

// takeOne plays the adapter: it takes a request, if there is one.
func takeOne(q *Queue, next *abi.Index) (f abi.Fields, ok bool) {
	slot := slotOf(q.in.table, *next, q.in.log2)
	w := abi.LoadWord(slot)
	if w&abi.WordOwner == 0 {
		return f, false
	}
	f = slot.Decode()
	abi.StoreWord(slot, w&^abi.WordOwner)
	*next = next.Add(1)
	return f, true
}

// answer plays the adapter: it publishes a response.
func answer(q *Queue, next *abi.Index, f abi.Fields) {
	slot := slotOf(q.out.table, *next, q.out.log2)
	slot.EncodeBody(&f)
	abi.StoreWord(slot, f.Word(false))
	*next = next.Add(1)
}

// TestLostQueue: a response that stands in the table of a queue that was lost is
// not taken, for its request has ended, and nothing of the queue's is touched.
func TestLostQueue(t *testing.T) {
	a, ln := still(t)
	q := ln.queue
	event := q.event
	var out abi.Index
	answer(q, &out, abi.Fields{Type: abi.TypeAdapterAttrs, Flags: abi.FlagFinal, Tag: 5})
	if !q.arm() {
		t.Fatal("no response stands in the table")
	}
	abi.StoreWord(event[abi.EventOutPublished:], 0x5a5a)
	if ended := ln.replace(ErrReset); len(ended) != 0 {
		t.Errorf("ended %v", ended)
	}
	if n := ln.pass(); n != 0 || a.bad.tag.Load() != 0 || q.Stats().DoorbellsOut != 0 {
		t.Errorf("%d responses taken, %d bad tags, %+v", n, a.bad.tag.Load(), q.Stats())
	}
	if q.arm() || q.Pending() {
		t.Error("the dispatcher does not sleep")
	}
	if got := abi.LoadWord(event[abi.EventOutPublished:]); got != 0x5a5a {
		t.Errorf("event word %#x", got)
	}
}

func TestRequests(t *testing.T) {
	var r requests
	a := r.add(request{kind: kindSend})
	b := r.add(request{kind: kindReceive})
	if a == 0 || b == 0 || a == b || r.find(a).kind != kindSend || r.find(b).kind != kindReceive {
		t.Fatalf("tags %#x, %#x", a, b)
	}
	r.remove(a)
	c := r.add(request{kind: kindConnect})
	if r.find(a) != nil || r.find(c).kind != kindConnect || c == a {
		t.Errorf("a used tag %#x names the request of %#x", a, c)
	}
	for _, tag := range []uint32{0, 0xffff, 0xffffffff, 1 << 16, c + 1<<16} {
		if r.find(tag) != nil {
			t.Errorf("tag %#x names a request", tag)
		}
	}
	if all := r.takeAll(); len(all) != 2 || r.used != 0 || r.find(b) != nil || r.find(c) != nil {
		t.Errorf("takeAll: %d, %d left", len(all), r.used)
	}
	for range maxRequests {
		if r.add(request{kind: kindSend}) == 0 {
			t.Fatal("full too early")
		}
	}
	if r.add(request{kind: kindSend}) != 0 {
		t.Error("more requests than tags")
	}
}

// TestArenaCuts has blocks be cut once for a class, not again and again.
func TestArenaCuts(t *testing.T) {
	a := newArena(&stillBus{}, 2*blockSize, 0)
	turn := func() {
		for _, class := range []int{0, receiveClass} {
			if buf := a.alloc(class, false); buf == nil || len(buf.data) != classSize(class) {
				t.Fatalf("class %d: %+v", class, buf)
			} else {
				a.release(buf)
			}
		}
	}
	turn()
	first := a.empty[0][0].pieces
	if n := testing.AllocsPerRun(1000, turn); n != 0 {
		t.Errorf("%v allocations", n)
	}
	if now := a.empty[0][0].pieces; &now[0] != &first[0] {
		t.Error("a block was cut anew")
	}
	// All other memory in use, a block of another class is taken.
	for range 2 {
		if a.alloc(numClasses-1, false) == nil {
			t.Errorf("%d bytes in use of %d", a.inUse(), 2*blockSize)
		}
	}
	if a.alloc(0, false) != nil {
		t.Error("more memory than there is")
	}
}

// TestArena allocates and frees at random: no two pieces overlap, the reserve
// is kept, everything comes back.
func TestArena(t *testing.T) {
	bus := &stillBus{}
	a := newArena(bus, 8*blockSize, 2*blockSize)
	rng := rand.New(rand.NewPCG(3, 4))
	owner := map[uint64]*buffer{} // by KiB of IOVA
	var held []*buffer
	for range 50_000 {
		if rng.IntN(2) == 0 {
			buf := a.alloc(rng.IntN(numClasses), false)
			if buf == nil {
				continue
			}
			for at := buf.iova; at < buf.iova+uint64(len(buf.data)); at += minPiece {
				if owner[at] != nil {
					t.Fatalf("%#x given twice", at)
				}
				owner[at] = buf
			}
			held = append(held, buf)
		} else if len(held) > 0 {
			i := rng.IntN(len(held))
			buf := held[i]
			held[i] = held[len(held)-1]
			held = held[:len(held)-1]
			for at := buf.iova; at < buf.iova+uint64(len(buf.data)); at += minPiece {
				delete(owner, at)
			}
			a.release(buf)
		}
	}
	for _, buf := range held {
		a.release(buf)
	}
	if a.inUse() != 0 || a.spared != a.blocks || a.blocks > 8 {
		t.Errorf("%d bytes in use, %d of %d blocks empty", a.inUse(), a.spared, a.blocks)
	}
	n := 0
	for a.alloc(4, false) != nil {
		n++
	}
	if n != 6 || a.alloc(0, false) != nil {
		t.Errorf("%d large pieces without the reserve, want 6", n)
	}
	n = 0
	for a.alloc(0, true) != nil {
		n++
	}
	if n != 512 {
		t.Errorf("%d pieces in the reserve, want 512", n)
	}
	// Ordinary pieces of the smallest class are not the reserve's.
	few := newArena(bus, 2*blockSize, blockSize)
	n = 0
	for few.alloc(0, false) != nil {
		n++
	}
	if n != 256 || few.alloc(0, true) == nil || few.alloc(0, false) != nil {
		t.Errorf("%d ordinary pieces, want 256", n)
	}
	bus.fail = true
	if newArena(bus, 1<<20, 0).alloc(0, true) != nil {
		t.Error("memory from nowhere")
	}
}

// TestSendFew: with the arena exhausted by others a writer gets the reserve.
func TestSendFew(t *testing.T) {
	a, ln := still(t)
	for a.tx.alloc(numClasses-1, false) != nil {
	}
	c := newConn(ln, 7, "tcp", nil, nil)
	buf, err := c.sendBuffer(100_000)
	if err != nil || len(buf.data) != minPiece {
		t.Fatalf("%v, %v", buf, err)
	}
	if err := c.send(buf, 10); err != nil {
		t.Fatal(err)
	}
	c.SetWriteDeadline(time.Now().Add(time.Millisecond))
	if _, err := c.sendBuffer(1); err == nil {
		t.Error("a second piece while the first is outstanding")
	}
}

// TestSendLimit: a connection never holds more than its limit.
func TestSendLimit(t *testing.T) {
	a, ln := still(t)
	a.opts.SendLimit = 128 << 10
	c := newConn(ln, 7, "tcp", nil, nil)
	written := make(chan int)
	go func() {
		n, _ := c.Write(make([]byte, 1<<20))
		written <- n
	}()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	// Held counts before a buffer is posted: two of 64 KiB have to be.
	for held, posted := 0, uint64(0); held < 128<<10 || posted < 2; {
		<-tick.C
		c.mu.Lock()
		held = c.held
		c.mu.Unlock()
		posted = ln.queue.Stats().Requests
	}
	c.SetWriteDeadline(time.Unix(1, 0))
	if n := <-written; n != 128<<10 {
		t.Errorf("wrote %d bytes", n)
	}
}

// TestReceiveLimit: a connection that is not read gets 16 buffers, the later ones
// larger and more at a time, up to 8, and others for those that were read.
func TestReceiveLimit(t *testing.T) {
	a, ln := still(t)
	var in, out abi.Index
	c := newConn(ln, 7, "tcp", nil, nil)
	a.enter(c)
	c.begin()
	var sizes []uint32
	total := 0
	var posted []abi.Fields
	var ahead []int
	more := func() {
		for f, ok := takeOne(ln.queue, &in); ok; f, ok = takeOne(ln.queue, &in) {
			posted = append(posted, f)
		}
	}
	for more(); len(posted) > 0; more() {
		ahead = append(ahead, len(posted))
		f := posted[0]
		posted = posted[1:]
		sizes = append(sizes, f.Length)
		total += int(f.Length)
		answer(ln.queue, &out, abi.Fields{Type: 16, Flags: abi.FlagFinal, Tag: f.Tag, Conn: 7, Length: f.Length})
		ln.pass()
	}
	if want := append([]uint32{4 << 10, 16 << 10}, slices.Repeat([]uint32{64 << 10}, 14)...); !slices.Equal(sizes, want) {
		t.Errorf("buffers of %v, want %v", sizes, want)
	}
	if want := []int{1, 1, 1, 2, 3, 4, 5, 6, 7, 7, 6, 5, 4, 3, 2, 1}; !slices.Equal(ahead, want) {
		t.Errorf("%v with the adapter, want %v", ahead, want)
	}
	if n, err := c.Read(make([]byte, 1<<20)); n != total || err != nil {
		t.Errorf("read %d of %d, %v", n, total, err)
	}
	if f := take(ln.queue, &in); f.Length != 64<<10 {
		t.Errorf("after the read: a buffer of %d", f.Length)
	}
}

// toldOnce counts how often it was told of room.
type toldOnce struct{ n int }

func (w *toldOnce) roomFreed() { w.n++ }

// TestRoomIsAskedForAnew: a slot that comes free and is taken by somebody else
// leaves those that wait with an event word for the next slot; they are told
// once.
func TestRoomIsAskedForAnew(t *testing.T) {
	_, ln := still(t)
	q := ln.queue
	for i := range 16 {
		q.TryPost(abi.Fields{Type: 2, Tag: uint32(i + 1)})
	}
	w := &toldOnce{}
	asked := func(want abi.Index) {
		t.Helper()
		if got := abi.LoadWord(q.event[0x80:]); got != 1<<30|uint32(want) {
			t.Errorf("IN_FREED is %#x, want the slot of index %d", got, want)
		}
	}
	free := func(slot int) { abi.StoreWord(q.in.table[32*slot:], 0) }
	if ln.awaitRoom(w) {
		t.Fatal("room in a full table")
	}
	asked(0)
	free(0)
	q.TryPost(abi.Fields{Type: 2, Tag: 17})
	ln.room()
	asked(1)
	if w.n != 0 {
		t.Error("told of room that is gone")
	}
	ln.awaitRoom(w) // once more is still once
	free(1)
	ln.room()
	ln.room()
	if w.n != 1 {
		t.Errorf("told %d times", w.n)
	}
	// Room in the table is of no use without a tag.
	for ln.reqs.add(request{kind: kindSend}) != 0 {
	}
	if ln.awaitRoom(w) {
		t.Error("room without a tag")
	}
	ln.leaveRoom(w)
	ln.room()
	if w.n != 1 {
		t.Error("told after it left")
	}
}
