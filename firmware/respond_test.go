// SPDX-License-Identifier: Apache-2.0

package firmware_test

import (
	"sync"
	"testing"

	"toebox/vdev/abi"
)

// burst posts n buffers that are refused at once, in one doorbell.
func (r *rig) burst(n int) {
	for range n {
		r.Publish(abi.Fields{Type: abi.TypeBufferAvailable, Tag: r.Tag(), Length: 8, Conn: 99})
	}
	r.fw.Doorbell(0, 0)
}

// published waits until the adapter has published up to index n.
func (r *rig) published(n abi.Index) {
	r.t.Helper()
	err := r.Wait("responses to be published", func() bool { return r.fw.QueueStatus(0).OutIndex == n })
	if err != nil {
		r.t.Fatal(err)
	}
	r.quiet()
}

// quiet waits until the worker sleeps: it has asked for a doorbell at the index
// where it stands, and looked again.
func (r *rig) quiet() {
	r.t.Helper()
	asleep := r.counter(abi.CounterQueueWakeups)
	r.fw.DoorbellOut(0, 0)
	if err := r.Wait("the worker to wake", func() bool { return r.counter(abi.CounterQueueWakeups) > asleep }); err != nil {
		r.t.Fatal(err)
	}
}

// TestInterrupts checks what the host's event words ask for.
func TestInterrupts(t *testing.T) {
	for _, c := range []struct {
		name       string
		out        abi.EventWord
		in         abi.EventWord
		signals    uint64
		suppressed uint64
	}{
		{"never", 0, 0, 0, 1},
		{"always", 0x80000000, 0, 1, 0},
		{"reserved is always", 0xc0000000, 0, 1, 0},
		{"a slot in the run", 0x40000002, 0, 1, 0},
		{"a slot behind the run", 0x40000004, 0, 0, 1},
		{"a slot before", 0x7fffffff, 0, 0, 1},
		{"freed always", 0, 0x80000000, 1, 1},
		{"freed in the run", 0, 0x40000003, 1, 1},
		{"freed behind", 0, 0x40000004, 0, 1},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := newRig(t, 6)
			r.quiet()
			r.SetEvent(abi.EventOutPublished, c.out)
			r.SetEvent(abi.EventInFreed, c.in)
			r.burst(4)
			r.published(4)
			if n := r.Chip.Signals(1); n != c.signals {
				t.Errorf("%d interrupts, want %d", n, c.signals)
			}
			r.wantCounter(abi.CounterInterrupts, c.signals)
			r.wantCounter(abi.CounterInterruptsSuppressed, c.suppressed)
			r.wantCounter(abi.CounterDescriptorReads, 1)
			r.wantCounter(abi.CounterDescriptorWrites, 1)
		})
	}
}

// TestNearlyFull checks IF12: one interrupt when free slots fall below the
// threshold, though the host polls, and again after they rose.
func TestNearlyFull(t *testing.T) {
	r := newRig(t, 4)
	if f, _ := r.attributes(0, 1, abi.AppendSetScalar(nil, abi.AttrOutThreshold, 4)); f.Aux != 0 {
		t.Fatalf("set: %+v", f)
	}
	r.SetEvent(abi.EventOutPublished, 0)
	r.quiet()
	before := r.Chip.Signals(1)
	expect := func(step string, signals uint64) {
		t.Helper()
		if n := r.Chip.Signals(1) - before; n != signals {
			t.Errorf("%s: %d interrupts, want %d", step, n, signals)
		}
		r.wantCounter(abi.CounterInterruptsUrgent, signals)
	}
	r.burst(12)
	r.published(13)
	expect("4 free", 0)
	r.burst(1)
	r.published(14)
	expect("3 free", 1)
	r.burst(2)
	r.published(16)
	expect("1 free", 1)
	r.burst(5)
	r.published(17)
	if n := r.fw.QueueStatus(0).Held; n != 4 {
		t.Errorf("%d responses are held", n)
	}
	expect("full", 1)
	// The host frees all; the held ones leave 12 free.
	if n := len(r.Pending()); n != 16 {
		t.Errorf("%d responses", n)
	}
	r.published(21)
	expect("freed", 1)
	r.burst(9)
	r.published(30)
	expect("3 free again", 2)
	if n := len(r.Pending()); n != 13 {
		t.Errorf("%d responses", n)
	}
}

// TestIndexes lets the rings go round many times with a host that is asked to
// ring, so that a lost wake-up would stop it.
func TestIndexes(t *testing.T) {
	r := newRig(t, 4)
	const n = 5000
	got := 0
	take := func() {
		t.Helper()
		if f := r.next(); f.Type != abi.TypeBufferDone || f.Aux != 36 {
			t.Fatalf("response %+v", f)
		}
		got++
	}
	for i := range n {
		f := abi.Fields{Type: abi.TypeBufferAvailable, Tag: r.Tag(), Length: 8, Conn: 99}
		r.post(f)
		if i%7 == 0 { // sometimes let it run full
			continue
		}
		take()
	}
	for got < n {
		take()
	}
	s := r.fw.QueueStatus(0)
	if s.InIndex != n || s.Held != 0 {
		t.Errorf("status %+v", s)
	}
	if d := r.counter(abi.CounterDoorbellsIn); d == 0 || d > n {
		t.Errorf("%d doorbells for %d requests", d, n)
	}
}

// TestNoDoorbells checks that a worker which is awake asks for no doorbell.
func TestNoDoorbells(t *testing.T) {
	r := newRig(t, 6)
	r.quiet()
	asked := r.Event(abi.EventInPublished)
	if asked != 0x40000000 {
		t.Fatalf("IN_PUBLISHED is %#x while the worker sleeps", asked)
	}
	if !asked.Wants(0, 1) || asked.Wants(1, 60) {
		t.Error("more than one doorbell per sleep")
	}
}

// TestPieces runs over tables that lie in several pieces of memory.
func TestPieces(t *testing.T) {
	r := newRig(t, 9) // tables of 16 KiB: four pieces each
	for range 3 {
		r.burst(400)
		for range 400 {
			if f := r.next(); f.Aux != 36 {
				t.Fatalf("response %+v", f)
			}
		}
	}
	r.wantCounter(abi.CounterRequests, 1200)
	r.wantCounter(abi.CounterResponses, 1200)
}

// TestNoLostWakeup lets the host act just before the worker stores an event
// word: it sees the old one and rings no doorbell.
func TestNoLostWakeup(t *testing.T) {
	t.Run("in", func(t *testing.T) {
		r := newRig(t, 4)
		r.quiet()
		var once sync.Once
		r.Chip.OnView(func(iova uint64, _ int, write bool) {
			if write && iova == r.Config.Event+abi.EventInPublished {
				once.Do(func() { r.Publish(abi.Fields{Type: abi.TypeBufferAvailable, Tag: 99, Length: 8, Conn: 99}) })
			}
		})
		r.burst(1)
		if err := r.Wait("both responses", func() bool { return r.fw.QueueStatus(0).OutIndex == 2 }); err != nil {
			t.Fatal(err)
		}
	})
	t.Run("out", func(t *testing.T) {
		r := newRig(t, 4)
		r.burst(16)
		r.published(16)
		var once sync.Once
		r.Chip.OnView(func(iova uint64, _ int, write bool) {
			if write && iova == r.Config.Event+abi.EventOutFreed {
				once.Do(func() {
					for _, ok := r.Take(); ok; _, ok = r.Take() {
					}
				})
			}
		})
		r.burst(3)
		if err := r.Wait("held responses", func() bool { return r.fw.QueueStatus(0).OutIndex == 19 }); err != nil {
			t.Fatal(err)
		}
	})
}
