// SPDX-License-Identifier: Apache-2.0

package sample_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	vfiouser "toebox/vfio-user"
	"toebox/vfio-user/sample"
	"toebox/vfio-user/vfiousertest"
)

// messages is what the device sends for the page at iova to a client that takes
// 1024 bytes in a message.
func messages(iova uint64) (want []string) {
	for _, what := range []string{"write", "read"} {
		for i := range uint64(4) {
			want = append(want, fmt.Sprintf("%s %#x 1024", what, iova+i*1024))
		}
	}
	return want
}

// written is what the device leaves in a page.
var written = slices.Concat(bytes.Repeat([]byte("A"), 1024), bytes.Repeat([]byte("B"), 1024), bytes.Repeat([]byte("C"), 1024), bytes.Repeat([]byte("D"), 1024))

// TestClientSample plays libvfio-user's client sample: it sets the device up,
// has it do DMA with its writes logged, and moves it to a second one.
func TestClientSample(t *testing.T) {
	clk := newClock()
	ram := vfiousertest.Memory(t, 16*4096)
	r := newRig(t, clk, ram)
	c := r.c

	// A region that there is not; then those that there are.
	if err := c.ReadRegion(0xdeadbeef, 0, make([]byte, 4)); !errors.Is(err, syscall.EINVAL) {
		t.Errorf("region 0xdeadbeef: %v", err)
	}
	if regions, irqs, reset, err := c.Info(); regions != 9 || irqs != 5 || !reset || err != nil {
		t.Errorf("info: %d regions, %d irqs, reset %v, %v", regions, irqs, reset, err)
	}
	for i, size := range []uint64{0x4000, 0x4000, 0, 0, 0, 0, 0, 256, 0} {
		g, err := c.Region(i)
		if err != nil || g.Size != size {
			t.Errorf("region %d: %d bytes, %v", i, g.Size, err)
		}
		areas, err := c.Areas(i)
		if want := map[int]int{1: 1}[i]; len(areas) != want || err != nil {
			t.Errorf("region %d: areas %v, %v", i, areas, err)
		}
		for _, a := range areas {
			shared, err := a.Map(g.Flags)
			if err != nil || a.Offset != 0 || a.Size != 0x3000 {
				t.Fatalf("area %+v: %v", a, err)
			}
			r.must(errors.Join(shared.Store32(0x2ffc, 0x04030201), a.File.Close()))
			if b := r.bar1(); !bytes.Equal(b[0x2ffc:], []byte{1, 2, 3, 4}) {
				t.Errorf("BAR1 by message holds %x", b[0x2ffc:])
			}
			r.must(shared.Close())
		}
	}
	header := make([]byte, 64)
	r.must(c.ReadRegion(7, 0, header))
	if want := []byte{0xad, 0xde, 0xef, 0xbe}; !bytes.Equal(header[:4], want) {
		t.Errorf("vendor and device %x", header[:4])
	}
	if want := []byte{0xfe, 0xca, 0xbe, 0xba}; !bytes.Equal(header[0x2c:0x30], want) {
		t.Errorf("subsystem %x", header[0x2c:0x30])
	}
	r.must(c.Reset())

	// Memory, the interrupt, and a log of what the device writes.
	r.pages(0, 16)
	for i, count := range []uint32{1, 0, 0, 1, 0} {
		if q, err := c.IRQ(i); q.Count != count || err != nil {
			t.Errorf("irq %d: %+v, %v", i, q, err)
		}
	}
	irq := vfiousertest.NewEventFD(t)
	r.must(c.AssignIRQ(vfiouser.IRQINTx, 0, irq.FD()))
	if size, err := c.StartDirtyLog(4096); size != 4096 || err != nil {
		t.Fatalf("start of the log: %d, %v", size, err)
	}

	// The alarm, and what follows it.
	r.setAlarm(clk.Now().Add(time.Second))
	if s := r.sinceAlarm(); s != -1 {
		t.Errorf("%d seconds since the alarm", s)
	}
	if n := clk.advance(999 * time.Millisecond); n != 0 || irq.Take() != 0 {
		t.Error("the alarm is early")
	}
	clk.advance(time.Millisecond)
	if n := irq.Wait(); n != 1 {
		t.Errorf("%d interrupts", n)
	}
	if got := r.mem.next(t, 8); !slices.Equal(got, messages(0)) {
		t.Errorf("messages %q", got)
	}
	r.settled(2)
	for i := range uint64(16) {
		got, err := c.DirtyPages(i*4096, 4096, 4096)
		want := []uint64{0}
		if i < 2 {
			want[0] = 1
		}
		if err != nil || !slices.Equal(got, want) {
			t.Errorf("page %d: dirty %v, %v", i, got, err)
		}
	}
	r.must(c.StopDirtyLog())
	page := make([]byte, 4096)
	for i := range int64(3) {
		want := written
		if i == 2 {
			want = make([]byte, 4096)
		}
		if _, err := ram.ReadAt(page, i*4096); err != nil || !bytes.Equal(page, want) {
			t.Errorf("page %d: %v", i, err)
		}
	}
	for i := range uint64(8) {
		if n, err := c.Unmap(i*4096, 4096); n != 4096 || err != nil {
			t.Errorf("unmap: %d, %v", n, err)
		}
	}

	// An alarm that the device will not live to see, then away with it while
	// the guest keeps writing to BAR1.
	alarm := clk.Now().Add(10 * time.Second)
	r.setAlarm(alarm)
	if precopy, err := c.Migration(); !precopy || err != nil {
		t.Errorf("migration: %v, %v", precopy, err)
	}
	var guest sync.WaitGroup
	var done atomic.Bool
	last := make([]byte, 0x3000)
	guest.Go(func() {
		rng := rand.New(rand.NewPCG(1, 2))
		for more := true; more; {
			more = !done.Load()
			for i := range last {
				last[i] = byte(rng.Uint32())
			}
			if err := c.WriteRegion(1, 0, last); err != nil {
				t.Error(err)
				return
			}
		}
	})
	r.must(c.SetMigrationState(vfiouser.StatePrecopy))
	state := make([]byte, 1024)
	for i := range uint64(12) {
		if initial, dirty, err := c.PrecopyInfo(); initial != 0x3000-i*1024 || dirty != 0 || err != nil {
			t.Errorf("precopy info %#x, %d, %v", initial, dirty, err)
		}
		if n, err := c.ReadState(state); n != 1024 || err != nil {
			t.Fatalf("read %d: %d bytes, %v", i, n, err)
		}
	}
	if n, err := c.ReadState(state); n != 0 || err != io.EOF {
		t.Errorf("read of more: %d bytes, %v", n, err)
	}
	done.Store(true)
	guest.Wait()
	r.must(c.SetMigrationState(vfiouser.StateStopCopy))
	var all [][]byte
	for i := range 13 {
		b := make([]byte, 1024)
		n, err := c.ReadState(b)
		if want := min(1024, 0x3008-i*1024); n != want || err != nil {
			t.Fatalf("read %d: %d bytes, %v", i, n, err)
		}
		all = append(all, b[:n])
	}
	r.must(c.SetMigrationState(vfiouser.StateStop))

	// The second device.
	to := newRig(t, clk, ram)
	to.must(to.c.SetMigrationState(vfiouser.StateResuming))
	for _, b := range all {
		to.must(to.c.WriteState(b))
	}
	to.must(to.c.SetMigrationState(vfiouser.StateStop))
	if !bytes.Equal(to.bar1(), last) {
		t.Error("BAR1 differs")
	}
	to.must(to.c.SetMigrationState(vfiouser.StateRunning))
	to.pages(8, 8)
	irq2 := vfiousertest.NewEventFD(t)
	to.must(to.c.AssignIRQ(vfiouser.IRQINTx, 0, irq2.FD()))
	if n := clk.advance(10 * time.Second); n != 1 {
		t.Errorf("%d timers ran out", n)
	}
	if n := irq2.Wait(); n != 1 || irq.Take() != 0 {
		t.Errorf("%d interrupts of the second device", n)
	}
	if got := to.mem.next(t, 8); !slices.Equal(got, messages(8*4096)) {
		t.Errorf("messages %q", got)
	}
	if s := to.settled(2); s != (sample.Stats{Alarms: 1, Direct: 1, Messages: 1}) {
		t.Errorf("stats %+v", s)
	}
	if n, err := to.c.UnmapAll(); n != 8*4096 || err != nil {
		t.Errorf("unmap all: %#x, %v", n, err)
	}
	if s := r.dev.Stats(); s != (sample.Stats{Alarms: 1, Direct: 1, Messages: 1}) {
		t.Errorf("stats of the first %+v", s)
	}
}

// TestRegisters reads and writes parts of the BARs and beyond what there is.
func TestRegisters(t *testing.T) {
	clk := newClock()
	r := newRig(t, clk, vfiousertest.Memory(t, 4096))
	irq := vfiousertest.NewEventFD(t)
	r.must(r.c.AssignIRQ(vfiouser.IRQINTx, 0, irq.FD()))
	for _, tt := range []struct {
		region      int
		offset      uint64
		write, want []byte
	}{
		{0, 8, []byte{1, 2, 3, 4}, []byte{0, 0, 0, 0}},
		{0, 0, []byte{1}, nil}, // not the whole alarm: nothing
		{0, 4, []byte{1, 2, 3, 4}, nil},
		{0, 0x3fff, []byte{1}, []byte{0}},
		{1, 0x2ffe, []byte{1, 2, 3, 4}, []byte{1, 2, 0, 0}},
		{1, 0x3000, []byte{1, 2, 3, 4}, []byte{0, 0, 0, 0}},
		{1, 0, []byte{7}, []byte{7}},
	} {
		r.must(r.c.WriteRegion(tt.region, tt.offset, tt.write))
		got := make([]byte, len(tt.want))
		if r.must(r.c.ReadRegion(tt.region, tt.offset, got)); !bytes.Equal(got, tt.want) {
			t.Errorf("BAR%d at %#x reads %x, want %x", tt.region, tt.offset, got, tt.want)
		}
	}
	if s := r.sinceAlarm(); s != clk.Now().Unix() {
		t.Errorf("%d seconds since no alarm", s)
	}
	part := make([]byte, 3)
	r.setAlarm(clk.Now().Add(-0x030201 * time.Second)) // long ago: at once
	if n := irq.Wait(); n != 1 {
		t.Errorf("%d interrupts", n)
	}
	if r.must(r.c.ReadRegion(0, 1, part)); !bytes.Equal(part, []byte{2, 3, 0}) {
		t.Errorf("part of the alarm %x", part)
	}
	// The pin was let go of: unmasking does not signal again.
	r.must(r.c.MaskIRQ(vfiouser.IRQINTx, 0, 1, false))
	if n := irq.Take(); n != 0 {
		t.Errorf("%d interrupts more", n)
	}
	// Alarms at the ends of time, one taken back, and one lost in a reset.
	r.setAlarm(time.Unix(-1<<63, 0))
	if n := irq.Wait(); n != 1 {
		t.Errorf("%d interrupts at the beginning of time", n)
	}
	r.setAlarm(time.Unix(1<<63-1, 0))
	r.setAlarm(time.Unix(0, 0))
	r.setAlarm(clk.Now().Add(time.Second))
	r.must(r.c.Reset())
	if n := clk.advance(time.Hour); n != 0 {
		t.Errorf("%d alarms after a reset", n)
	}
	if b := r.bar1(); !bytes.Equal(b, make([]byte, 0x3000)) {
		t.Error("memory outlives a reset")
	}
	if s := r.dev.Stats(); s.Direct+s.Messages+s.Failed != 0 {
		t.Errorf("DMA without memory: %+v", s)
	}
}

// TestPages gives the device memory that is not meant for it.
func TestPages(t *testing.T) {
	clk := newClock()
	f := vfiousertest.Memory(t, 16*4096)
	r := newRig(t, clk, f)
	const both = vfiouser.ProtRead | vfiouser.ProtWrite
	r.must(errors.Join(r.c.Map(0, 8192, 0, both, f), r.c.Map(0x10000, 4096, 0, vfiouser.ProtRead, f), r.c.Map(0x20000, 4096, 0, vfiouser.ProtWrite, f),
		r.c.Map(0x30000, 4096, 0, both, nil), r.c.Map(0xa000, 4096, 0xa000, both, f)))
	irq := vfiousertest.NewEventFD(t)
	r.must(r.c.AssignIRQ(vfiouser.IRQINTx, 0, irq.FD()))
	r.setAlarm(clk.Now())
	irq.Wait()
	// The second page of its own comes later, below the first.
	r.must(errors.Join(r.c.Map(0x9000, 4096, 0x9000, both, f), r.c.MaskIRQ(vfiouser.IRQINTx, 0, 1, false)))
	r.setAlarm(clk.Now())
	if got := r.mem.next(t, 8); !slices.Equal(got, messages(0x9000)) {
		t.Errorf("messages %q", got)
	}
	r.settled(2)
	all := make([]byte, 16*4096)
	if _, err := f.ReadAt(all, 0); err != nil {
		t.Fatal(err)
	}
	want := make([]byte, 16*4096)
	copy(want[0x9000:], written)
	copy(want[0xa000:], written)
	if !bytes.Equal(all, want) {
		t.Error("the device wrote elsewhere, or not there")
	}
}

// TestStop stops the device in the middle of a transfer, in all the ways there
// are; what was to follow does not, and nobody waits for anybody.
func TestStop(t *testing.T) {
	for name, stop := range map[string]func(r *rig) error{
		"stop":      func(r *rig) error { return r.c.SetMigrationState(vfiouser.StateStop) },
		"stop copy": func(r *rig) error { return r.c.SetMigrationState(vfiouser.StateStopCopy) },
		"precopy, stop copy": func(r *rig) error {
			return errors.Join(r.c.SetMigrationState(vfiouser.StatePrecopy), r.c.SetMigrationState(vfiouser.StateStopCopy))
		},
		"resuming": func(r *rig) error { return r.c.SetMigrationState(vfiouser.StateResuming) },
	} {
		t.Run(name, func(t *testing.T) {
			clk := newClock()
			r := newRig(t, clk, vfiousertest.Memory(t, 16*4096))
			r.pages(0, 2)
			// The request to stop is sent before the first message is answered.
			// Meanwhile the client reads nothing.
			r.setAlarm(clk.Now().Add(time.Second))
			release := r.mem.holdBack()
			defer release()
			clk.advance(time.Second)
			if got := r.mem.next(t, 1); !slices.Equal(got, messages(0)[:1]) {
				t.Errorf("messages %q", got)
			}
			stopped := make(chan error, 1)
			go func() { stopped <- stop(r) }()
			for deadline := time.Now().Add(patience); r.dev.Server().Stats().Messages < 5; { // version, maps, alarm, stop
				if time.Now().After(deadline) {
					t.Fatal("no request to stop")
				}
				<-time.After(time.Millisecond)
			}
			release()
			if err := <-stopped; err != nil {
				t.Fatal(err)
			}
			s := r.settled(2)
			if s.Direct != 1 || s.Messages+s.Failed != 1 {
				t.Errorf("stats %+v", s)
			}
			// An alarm waits until the device runs again.
			r.setAlarm(clk.Now())
			if n := clk.advance(time.Second); n != 0 {
				t.Error("an alarm while the device stands still")
			}
			r.must(r.c.Reset())
			if state, err := r.c.MigrationState(); state != vfiouser.StateRunning || err != nil {
				t.Errorf("state %v, %v", state, err)
			}
		})
	}
}

// TestResume gives a device state that is none.
func TestResume(t *testing.T) {
	clk := newClock()
	r := newRig(t, clk, vfiousertest.Memory(t, 4096))
	r.must(r.c.WriteRegion(1, 0, []byte("before")))
	r.must(r.c.SetMigrationState(vfiouser.StateResuming))
	if err := r.c.SetMigrationState(vfiouser.StateRunning); !errors.Is(err, syscall.EINVAL) {
		t.Errorf("no state: %v", err)
	}
	r.must(r.c.WriteState(make([]byte, 0x3007)))
	if err := r.c.SetMigrationState(vfiouser.StateStop); !errors.Is(err, syscall.EINVAL) {
		t.Errorf("a byte short: %v", err)
	}
	if err := r.c.WriteState(make([]byte, 2)); !errors.Is(err, syscall.EINVAL) {
		t.Errorf("a byte too many: %v", err)
	}
	if b := r.bar1(); !bytes.HasPrefix(b, []byte("before")) {
		t.Error("half a state is in place")
	}
	r.must(r.c.WriteState([]byte{0}))
	r.must(r.c.SetMigrationState(vfiouser.StateRunning))
	if b := r.bar1(); !bytes.Equal(b, make([]byte, 0x3000)) {
		t.Error("the state is not in place")
	}
	// Back and forth without a move: state is saved from the start each time.
	for range 2 {
		r.must(r.c.SetMigrationState(vfiouser.StatePrecopy))
		if initial, _, err := r.c.PrecopyInfo(); initial != 0x3000 || err != nil {
			t.Errorf("precopy info %#x, %v", initial, err)
		}
		if n, err := r.c.ReadState(make([]byte, 100)); n != 100 || err != nil {
			t.Errorf("read: %d, %v", n, err)
		}
		r.must(r.c.SetMigrationState(vfiouser.StateRunning))
	}
}

// lateClock is one whose timers run out when the test says so, stopped or not.
type lateClock struct {
	mu     sync.Mutex
	timers []func()
}

func (c *lateClock) Now() time.Time { return time.Unix(1_800_000_000, 0) }

func (c *lateClock) AfterFunc(_ time.Duration, f func()) func() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.timers = append(c.timers, f)
	return func() bool { return false }
}

// run has timer i run out.
func (c *lateClock) run(i int) {
	c.mu.Lock()
	f := c.timers[i]
	c.mu.Unlock()
	f()
}

// TestLateTimer has timers run out whose alarm has been changed meanwhile.
func TestLateTimer(t *testing.T) {
	clk := &lateClock{}
	r := newRig(t, clk, vfiousertest.Memory(t, 4096))
	r.setAlarm(clk.Now())
	r.setAlarm(clk.Now().Add(time.Second))
	clk.run(0)
	if s := r.dev.Stats(); s.Alarms != 0 {
		t.Errorf("an alarm that was changed: %+v", s)
	}
	clk.run(1)
	if s := r.dev.Stats(); s.Alarms != 1 {
		t.Errorf("the alarm that was set: %+v", s)
	}
	r.setAlarm(clk.Now())
	r.must(r.c.SetMigrationState(vfiouser.StateStop))
	clk.run(2)
	if s := r.dev.Stats(); s.Alarms != 1 {
		t.Errorf("an alarm of a device that was stopped: %+v", s)
	}
}
