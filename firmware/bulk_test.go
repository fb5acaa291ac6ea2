// SPDX-License-Identifier: Apache-2.0

package firmware_test

import (
	"encoding/binary"
	"slices"
	"sync"
	"testing"
	"time"

	"toebox/vdev/abi"
)

// set sets a scalar attribute of a connection.
func (r *rig) set(conn uint64, a abi.Attribute, v uint64) {
	r.t.Helper()
	if f, buf := r.attributes(conn, 1, abi.AppendSetScalar(nil, a, v)); f.Aux != 0 {
		s, _ := abi.TupleResult(buf)
		r.t.Fatalf("set %#x to %d: %v", a, v, s)
	}
}

// held publishes requests while the queue takes none, so that it takes them all
// at once, and lets it go on.
func (r *rig) held(fs ...abi.Fields) {
	r.t.Helper()
	r.fw.Command(r.Queue, abi.QueuePause, r.Config)
	if err := r.State(abi.QueuePaused); err != nil {
		r.t.Fatal(err)
	}
	for _, f := range fs {
		r.Publish(f)
	}
	r.fw.Command(r.Queue, abi.QueueResume, r.Config)
}

// dmaLog is the order in which payload is moved, by the addresses of buffers.
type dmaLog struct {
	mu     sync.Mutex
	names  map[uint64]string // by base
	order  []string
	moving func()
}

// watch records the DMA of payload of the buffers that are named, and calls
// moving, if it is not nil, before each.
func (r *rig) watch(write bool, moving func()) *dmaLog {
	l := &dmaLog{names: map[uint64]string{}, moving: moving}
	r.chip.OnView(func(iova uint64, _ int, w bool) {
		l.mu.Lock()
		defer l.mu.Unlock()
		name, ok := l.names[iova]
		if !ok || w != write {
			return
		}
		if l.moving != nil {
			l.moving()
		}
		l.order = append(l.order, name)
	})
	r.t.Cleanup(func() { r.chip.OnView(nil) })
	return l
}

func (l *dmaLog) name(f abi.Fields, s string) {
	l.mu.Lock()
	l.names[f.Base] = s
	l.mu.Unlock()
}

func (l *dmaLog) take() []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	o := l.order
	l.order = nil
	return o
}

// TestBulkSends: interleaved descriptors of three connections of falling
// priority are read from host memory as A A A B B B C C C, in whatever order the
// connections came; ASAP goes before all of them (MM12, MM09).
func TestBulkSends(t *testing.T) {
	r := newRig(t, 5)
	l := r.watch(false, nil)
	ids := map[string]uint64{}
	for name, priority := range map[string]uint64{"A": 6, "B": 4, "C": 2, "D": 0} {
		ids[name], _ = r.connect()
		r.set(ids[name], abi.AttrPriority, priority)
	}
	post := func(order string, asap string) {
		t.Helper()
		var all []abi.Fields
		for _, c := range order {
			f := r.buffer(abi.TypeBufferSend, ids[string(c)], 1000)
			f.Base, f.Length = r.Chip.Alloc(1064, 64), 1000 // adjacent to none
			f.ASAP = string(c) == asap
			l.name(f, string(c))
			all = append(all, f)
		}
		r.held(all...)
		r.settle()
	}
	post("ABCABCABC", "")
	want := []string{"A", "A", "A", "B", "B", "B", "C", "C", "C"}
	if got := l.take(); !slices.Equal(got, want) {
		t.Errorf("read in the order %v, want %v", got, want)
	}
	r.wantCounter(abi.CounterTurnsPriority, 2)
	post("CBACBACBA", "")
	if got := l.take(); !slices.Equal(got, want) {
		t.Errorf("read in the order %v, want %v", got, want)
	}
	post("ABCDABCD", "D")
	want = []string{"D", "D", "A", "A", "B", "B", "C", "C"}
	if got := l.take(); !slices.Equal(got, want) {
		t.Errorf("read in the order %v, want %v", got, want)
	}
	r.wantCounter(abi.CounterTurnsExpedited, 1)
	r.wantCounter(abi.CounterTurnsStarved, 0)
	if got := binary.LittleEndian.Uint64(r.attribute(ids["A"], abi.AttrPriority, 8)); got != 6 {
		t.Errorf("PRIORITY is %d", got)
	}
}

// TestBulkStarved: a connection of low priority gets its turn after STARVATION,
// and each time again, while another one sends without end.
func TestBulkStarved(t *testing.T) {
	r := newRig(t, 5)
	const unit = 64 << 10
	// Time goes on by 1 ms with each turn of 64 KiB.
	l := r.watch(false, func() { r.clock.advance(time.Millisecond) })
	high, ep := r.connect()
	ep.SetRoom(1 << 30)
	low, _ := r.connect()
	r.set(high, abi.AttrPriority, 7)
	r.set(low, abi.AttrPriority, 0)
	r.set(low, abi.AttrStarvation, uint64(40*time.Millisecond))
	const size, times = 20, 8
	long := r.buffer(abi.TypeBufferSend, high, size*unit)
	var all []abi.Fields
	for i := range times {
		f := long
		f.Tag = long.Tag + uint32(100+i)
		all = append(all, f)
	}
	for i := range uint64(size) {
		l.name(abi.Fields{Base: long.Base + i*unit}, "high")
	}
	short := r.buffer(abi.TypeBufferSend, low, 3*unit)
	for i := range uint64(3) {
		l.name(abi.Fields{Base: short.Base + i*unit}, "low")
	}
	r.held(append([]abi.Fields{short}, all...)...)
	const sent = (size*times + 3) * unit
	if err := r.Wait("end of the sends", func() bool { return r.counter(abi.CounterBytesSent) == sent }); err != nil {
		t.Fatal(err)
	}
	got := l.take()
	// The time is looked at once in a pass of 32 turns: it is 0, 32, 64 and so on,
	// and what waits for 40 ms is starved at the second pass after.
	var at []int
	for i, s := range got {
		if s == "low" {
			at = append(at, i)
		}
	}
	if want := []int{64, 128, size*times + 2}; !slices.Equal(at, want) || len(got) != size*times+3 {
		t.Errorf("of %d turns %v were the low one's, want %v", len(got), at, want)
	}
	r.wantCounter(abi.CounterTurnsStarved, 2)
}

// TestBulkReceive: bulk buffers that come go first to a starved connection, then
// by priority, then to the one that waited first; and a connection whose
// attributes change moves at once.
func TestBulkReceive(t *testing.T) {
	r := newRig(t, 5)
	type one struct {
		id uint64
		in func([]byte)
	}
	var all []one
	for i := range 5 {
		id, ep := r.connect()
		r.set(id, abi.AttrPriority, uint64([]int{2, 5, 5, 1, 7}[i]))
		r.set(id, abi.AttrStarvation, uint64(time.Second))
		all = append(all, one{id, ep.Deliver})
	}
	r.set(all[3].id, abi.AttrStarvation, uint64(20*time.Millisecond))
	arrive := func(i int) {
		t.Helper()
		all[i].in([]byte("x"))
		r.settle()
	}
	take := func(want ...int) {
		t.Helper()
		for _, i := range want {
			f := r.buffer(abi.TypeBufferAvailable, 0, 16)
			r.post(f)
			if got := r.next(); got.Tag != f.Tag || got.Conn != all[i].id || got.Length != 1 {
				t.Fatalf("got %+v, want 1 byte of connection %d", got, i)
			}
		}
	}
	for i := range 5 {
		arrive(i)
	}
	take(4, 1, 2, 0, 3)
	r.wantCounter(abi.CounterTurnsPriority, 4)
	for i := range 5 {
		arrive(4 - i)
	}
	r.clock.advance(20 * time.Millisecond)
	r.set(all[0].id, abi.AttrPriority, 6)
	take(3, 4, 0, 2, 1)
	r.wantCounter(abi.CounterTurnsStarved, 1)

	// One pass with buffers for all delivers in the same order.
	for i := range 4 {
		arrive(i)
	}
	var fs []abi.Fields
	for range 4 {
		fs = append(fs, r.buffer(abi.TypeBufferAvailable, 0, 16))
	}
	r.held(fs...)
	for k, i := range []int{0, 1, 2, 3} {
		if got := r.next(); got.Tag != fs[k].Tag || got.Conn != all[i].id {
			t.Fatalf("got %+v, want connection %d in buffer %d", got, i, k)
		}
	}
}
