// SPDX-License-Identifier: Apache-2.0

package guestdriver_test

import (
	"bytes"
	"context"
	"errors"
	"net"
	"runtime"
	"testing"
	"time"

	"toebox/guestdriver"
	"toebox/guestdriver/guestdrivertest"
	"toebox/vdev/abi"
)

// running returns a fake that queues can be created on.
func running(t *testing.T) *guestdrivertest.Fake {
	t.Helper()
	f := guestdrivertest.New()
	t.Cleanup(func() { f.Close() })
	f.WriteConfig(4, 2, 6)
	if err := f.EnableVectors(2); err != nil {
		t.Fatal(err)
	}
	f.Write32(0, 0x10, 1) // CONTROL.RUN
	return f
}

func newQueue(t *testing.T, f *guestdrivertest.Fake, cfg guestdriver.QueueConfig) *guestdriver.Queue {
	t.Helper()
	if cfg.Timeout == 0 {
		cfg.Timeout = limit
	}
	q, err := guestdriver.NewQueue(f, 0, cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := q.Destroy(context.Background()); err != nil {
			t.Errorf("destroy: %v", err)
		}
	})
	return q
}

func short(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	t.Cleanup(cancel)
	return ctx
}

// TestQueueBytes compares what lies in the tables with the bytes of SPEC.md §5.
func TestQueueBytes(t *testing.T) {
	f := running(t)
	f.Pause(0, true)
	q := newQueue(t, f, guestdriver.QueueConfig{InLog2: 4, OutLog2: 5})
	m := q.Memory()
	if len(m.Bytes) != 16*32+32*32+256 {
		t.Fatalf("%d bytes of tables and event block", len(m.Bytes))
	}
	for i := range 48 {
		want := byte(0x80) // an output slot: the adapter's to fill
		if i < 16 {
			want = 0
		}
		if m.Bytes[i*32] != want {
			t.Errorf("slot %d begins with %#x, want %#x", i, m.Bytes[i*32], want)
		}
	}
	for reg, want := range map[uint32]uint32{
		0x1008: uint32(m.IOVA), 0x100c: uint32(m.IOVA >> 32),
		0x1010: uint32(m.IOVA + 0x200), 0x1014: uint32(m.IOVA >> 32),
		0x1018: uint32(m.IOVA + 0x600), 0x101c: uint32(m.IOVA >> 32),
		0x1020: 0x0504, 0x1024: 1,
	} {
		if got := f.Read32(0, reg); got != want {
			t.Errorf("register %#x is %#x, want %#x", reg, got, want)
		}
	}
	f.Pause(0, true)
	n := q.TryPost(abi.Fields{
		Type: abi.TypeBufferSend, ASAP: true, Modify: true, Flags: abi.FlagFragment, Aux: 0x0102, Tag: 0x11223344,
		Base: 0x0102030405060708, Conn: 0x1112131415161718, Length: 0x21222324, Offset: 0x31323334,
	})
	want := []byte{
		0x87, 0x04, 0x02, 0x01, // owner, type 1, ASAP, MODIFY; FRAGMENT; piece
		0x44, 0x33, 0x22, 0x11, // tag
		8, 7, 6, 5, 4, 3, 2, 1, // base
		0x18, 0x17, 0x16, 0x15, 0x14, 0x13, 0x12, 0x11, // connection id
		0x24, 0x23, 0x22, 0x21, // length
		0x34, 0x33, 0x32, 0x31, // offset
	}
	if got := f.Memory(m.IOVA, 32); n != 1 || !bytes.Equal(got, want) {
		t.Errorf("posted %d:\n got %x\nwant %x", n, got, want)
	}
}

func TestQueueRefused(t *testing.T) {
	f := guestdrivertest.New()
	defer f.Close()
	var qe *guestdriver.QueueError
	if _, err := guestdriver.NewQueue(f, 0, guestdriver.QueueConfig{}); !errors.As(err, &qe) || qe.Status != 65 {
		t.Errorf("not running: %v", err)
	}
	f.Write32(0, 0x10, 1)
	q, err := guestdriver.NewQueue(f, 0, guestdriver.QueueConfig{Timeout: limit})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := guestdriver.NewQueue(f, 0, guestdriver.QueueConfig{}); !errors.Is(err, abi.StatusQueueBusy) {
		t.Errorf("busy: %v", err)
	}
	for _, cfg := range []guestdriver.QueueConfig{{InLog2: 3}, {OutLog2: 17}} {
		if _, err := guestdriver.NewQueue(f, 1, cfg); !errors.Is(err, abi.StatusBadSize) {
			t.Errorf("%+v: %v", cfg, err)
		}
	}
	if _, err := guestdriver.NewQueue(f, 32, guestdriver.QueueConfig{}); err == nil {
		t.Error("queue 32 created")
	}
	if err := q.Destroy(short(t)); err != nil {
		t.Error(err)
	}
	if err := q.Destroy(short(t)); err != nil {
		t.Errorf("second destroy: %v", err)
	}
	if err := q.Post(abi.Fields{}); !errors.Is(err, net.ErrClosed) {
		t.Errorf("post after destroy: %v", err)
	}
	if q.Poll(make([]abi.Fields, 4)) != 0 || q.Pending() {
		t.Error("responses after destroy")
	}
	f.Kill()
	if _, err := guestdriver.NewQueue(f, 0, guestdriver.QueueConfig{Timeout: time.Millisecond}); err == nil {
		t.Error("queue created on an adapter that is gone")
	}
}

func TestQueueFull(t *testing.T) {
	f := running(t)
	// Two queues of a kind: one whose Post gives up, one whose Post must not.
	impatient, err := guestdriver.NewQueue(f, 1, guestdriver.QueueConfig{InLog2: 4, OutLog2: 4, Vector: 1, Timeout: limit})
	if err != nil {
		t.Fatal(err)
	}
	defer impatient.Destroy(short(t))
	q := newQueue(t, f, guestdriver.QueueConfig{InLog2: 4, OutLog2: 4})
	if err := errors.Join(q.Pause(short(t)), impatient.Pause(short(t))); err != nil {
		t.Fatal(err)
	}
	reqs := make([]abi.Fields, 40)
	for i := range reqs {
		reqs[i] = abi.Fields{Type: 30, Tag: uint32(i + 1)}
	}
	if n := q.TryPost(reqs...); n != 16 {
		t.Errorf("posted %d in a table of 16", n)
	}
	impatient.TryPost(reqs...)
	impatient.SetTimeout(20 * time.Millisecond)
	if err := impatient.Post(reqs[16]); !errors.Is(err, guestdriver.ErrQueueFull) {
		t.Errorf("post in a full table: %v", err)
	}
	impatient.SetTimeout(limit)
	if err := q.Resume(short(t)); err != nil {
		t.Fatal(err)
	}
	if err := q.Post(reqs[16:]...); err != nil {
		t.Error(err)
	}
	// 40 responses go through a table of 16: OUT_FREED is asked for and told.
	for i := range reqs {
		r, err := q.Next(short(t))
		if err != nil || r.Tag != uint32(i+1) || r.Type != 31 || r.Aux != 32 {
			t.Fatalf("response %d: %+v, %v", i, r, err)
		}
	}
	s := q.Stats()
	if s.Requests != 40 || s.Responses != 40 || s.DoorbellsOut == 0 {
		t.Errorf("%+v", s)
	}
}

func TestQueueModes(t *testing.T) {
	f := running(t)
	q := newQueue(t, f, guestdriver.QueueConfig{})
	for name, mode := range map[string]guestdriver.Mode{
		"interrupt": guestdriver.ModeInterrupt, "poll": guestdriver.ModePoll, "hybrid": guestdriver.ModeHybrid,
	} {
		q.SetMode(mode, time.Millisecond)
		before := q.Stats()
		for i := range 20 {
			go func() {
				// By interrupt: not before the host has asked for one.
				event := q.Memory().Bytes[len(q.Memory().Bytes)-256:]
				asked := uint32(1<<30) | uint32(before.Responses) + uint32(i)
				for mode == guestdriver.ModeInterrupt && abi.LoadWord(event[0x40:]) != asked {
					runtime.Gosched()
				}
				f.Inject(0, abi.Fields{Type: abi.TypeArrival, Conn: uint64(i + 1)})
			}()
			if r, err := q.Next(short(t)); err != nil || r.Conn != uint64(i+1) {
				t.Fatalf("%s: %+v, %v", name, r, err)
			}
		}
		irqs := q.Stats().Interrupts - before.Interrupts
		if mode == guestdriver.ModePoll && irqs > 1 || mode == guestdriver.ModeInterrupt && irqs < 20 {
			t.Errorf("%s: %d interrupts", name, irqs)
		}
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Millisecond)
		if _, err := q.Next(ctx); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("%s: wait for nothing: %v", name, err)
		}
		cancel()
	}
}

// TestQueueDoorbells shows that an adapter that polls hears no doorbell.
func TestQueueDoorbells(t *testing.T) {
	f := running(t)
	q := newQueue(t, f, guestdriver.QueueConfig{})
	waitFor(t, "the adapter to sleep", func() bool {
		return abi.LoadWord(q.Memory().Bytes[len(q.Memory().Bytes)-256:])>>30 == 1
	})
	f.Pause(0, true)
	before := f.Doorbells()
	for range 10 {
		q.TryPost(abi.Fields{Type: 30, Tag: 1})
	}
	if n := f.Doorbells() - before; n != 1 {
		t.Errorf("%d doorbells for the index that was asked for, want 1", n)
	}
}
