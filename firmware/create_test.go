// SPDX-License-Identifier: Apache-2.0

package firmware_test

import (
	"testing"

	"toebox/firmware"
	"toebox/firmware/firmwaretest"
	"toebox/vdev/abi"
)

// TestCreateRefused checks each refusal of SPEC.md §3.2.
func TestCreateRefused(t *testing.T) {
	for _, c := range []struct {
		name   string
		change func(r *rig, h *firmwaretest.Host)
		want   abi.Status
	}{
		{"busy", func(r *rig, h *firmwaretest.Host) { h.Queue = 0 }, 64},
		{"not running", func(r *rig, h *firmwaretest.Host) { r.fw.Stop() }, 65},
		{"vector", func(r *rig, h *firmwaretest.Host) { h.Config.Vector = 33 }, 66},
		{"negative vector", func(r *rig, h *firmwaretest.Host) { h.Config.Vector = -1 }, 66},
		{"small", func(r *rig, h *firmwaretest.Host) { h.Config.InLog2 = 3 }, 67},
		{"large", func(r *rig, h *firmwaretest.Host) { h.Config.OutLog2 = 17 }, 67},
		{"input base", func(r *rig, h *firmwaretest.Host) { h.Config.In += 16 }, 40},
		{"output base", func(r *rig, h *firmwaretest.Host) { h.Config.Out += 1 }, 40},
		{"event base", func(r *rig, h *firmwaretest.Host) { h.Config.Event += 32 }, 40},
		{"unmapped", func(r *rig, h *firmwaretest.Host) { r.Chip.Unmap(h.Config.Out+511, 1) }, 39},
		{"unmapped event block", func(r *rig, h *firmwaretest.Host) { r.Chip.Unmap(h.Config.Event+0xff, 1) }, 39},
		{"beyond 2^64", func(r *rig, h *firmwaretest.Host) { h.Config.In = 1<<64 - 256 }, 39},
		{"itself", func(r *rig, h *firmwaretest.Host) { h.Config.Out = h.Config.In + 480 }, 68},
		{"its event block", func(r *rig, h *firmwaretest.Host) { h.Config.Event = h.Config.Out + 448 }, 68},
		{"another queue", func(r *rig, h *firmwaretest.Host) { h.Config.Event = r.Config.In }, 68},
		{"input owner", func(r *rig, h *firmwaretest.Host) { r.Chip.Bytes(h.Config.In+480, 1)[0] = 0x80 }, 69},
		{"output owner", func(r *rig, h *firmwaretest.Host) { r.Chip.Bytes(h.Config.Out+480, 1)[0] = 0x7f }, 69},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := newRig(t, 4)
			h := firmwaretest.NewHost(r.fw, r.Chip, 1, 4)
			if s := r.fw.QueueStatus(1); s != (firmware.QueueStatus{}) {
				t.Fatalf("status before: %+v", s)
			}
			c.change(r, h)
			if got := h.Create(); got != c.want {
				t.Fatalf("create: %v, want %v", got, c.want)
			}
			if s := r.fw.QueueStatus(h.Queue); s.Last != c.want {
				t.Errorf("Q_STATE shows %v, want %v", s.Last, c.want)
			}
		})
	}
}

func TestCommands(t *testing.T) {
	r := newRig(t, 4)
	command := func(c abi.QueueCommand, want abi.Status) {
		t.Helper()
		if s := r.fw.Command(0, c, r.Config); s != want {
			t.Fatalf("command %d: %v, want %v", c, s, want)
		}
	}
	state := func(want abi.QueueState) {
		t.Helper()
		if err := r.State(want); err != nil {
			t.Fatal(err)
		}
	}
	command(abi.QueueCreate, 0) // the same once more
	command(0, 70)
	command(6, 70)
	if s := r.fw.Command(32, abi.QueueCreate, r.Config); s != 70 {
		t.Errorf("queue 32: %v", s)
	}
	if s := r.fw.Command(1, abi.QueuePause, r.Config); s != 65 {
		t.Errorf("pause of a disabled queue: %v", s)
	}
	if s := r.fw.Command(1, abi.QueueDestroy, r.Config); s != 0 {
		t.Errorf("destroy of a disabled queue: %v", s)
	}

	// Paused, requests stay in the table and responses still come.
	id, ep := r.connect()
	own := r.buffer(abi.TypeBufferAvailable, id, 8)
	r.post(own)
	r.settle()
	command(abi.QueuePause, 0)
	state(abi.QueuePaused)
	command(abi.QueuePause, 0)
	before := r.fw.QueueStatus(0).InIndex
	late := r.buffer(abi.TypeBufferAvailable, id, 8)
	r.Publish(late)
	r.fw.Doorbell(0, 0)
	ep.Deliver([]byte("abc"))
	if f := r.next(); f.Tag != own.Tag || f.Length != 3 {
		t.Fatalf("response while paused: %+v", f)
	}
	if n := r.fw.QueueStatus(0).InIndex; n != before {
		t.Fatalf("%d requests were taken while paused", n.Sub(before))
	}
	command(abi.QueueResume, 0)
	state(abi.QueueRunning)
	r.settle()

	// Drained, all that waited is CANCELLED.
	send := r.buffer(abi.TypeBufferSend, id, 8)
	bulk := r.buffer(abi.TypeBufferAvailable, 0, 8)
	connect := r.target(abi.TypeConnect, connectTarget())
	end := abi.Fields{Type: abi.TypeTermination, Tag: r.Tag(), Conn: id, Length: 2}
	r.post(send, bulk, connect, end)
	r.settle()
	ep.Ack(5)
	r.settle()
	command(abi.QueueDrain, 0)
	command(abi.QueueResume, 64)
	want := map[uint32]abi.Fields{
		send.Tag:    {Type: abi.TypeBufferDone, Base: send.Base, Conn: id, Length: 5},
		own.Tag:     {Type: abi.TypeBufferDone, Base: own.Base, Conn: id, Offset: 3},
		late.Tag:    {Type: abi.TypeBufferDone, Base: late.Base, Conn: id},
		bulk.Tag:    {Type: abi.TypeBufferDone, Base: bulk.Base},
		connect.Tag: {Type: abi.TypeCompletion, Base: 0xc00c1e},
		end.Tag:     {Type: abi.TypeTerminated, Conn: id},
	}
	for range len(want) {
		f := r.next()
		w := want[f.Tag]
		w.Tag, w.Aux, w.Flags = f.Tag, 2, abi.FlagFinal
		if f != w {
			t.Errorf("drained: %+v\n    want %+v", f, w)
		}
		delete(want, f.Tag)
	}
	state(abi.QueueDrained)
	command(abi.QueueDrain, 0)
	command(abi.QueueDestroy, 0)
	state(abi.QueueDisabled)
	if _, aborts := ep.Ends(); aborts != 1 {
		t.Errorf("aborted %d times", aborts)
	}
	r.wantCounter(abi.CounterConnections, 0)
	r.wantCounter(abi.CounterMemoryUsed, 0)

	// Its tables are free for another.
	r.Clear()
	command(abi.QueueCreate, 0)
	r.settle()
	r.wantCounter(abi.CounterDoorbellIgnored, 0)
	r.fw.Doorbell(7, 0)
	r.fw.DoorbellOut(32, 0)
	r.wantCounter(abi.CounterDoorbellIgnored, 2)
}

// TestDestroyStuck destroys a queue whose host takes no responses.
func TestDestroyStuck(t *testing.T) {
	r := newRig(t, 4)
	for i := range 3 {
		for range 8 {
			r.Publish(r.buffer(abi.TypeBufferAvailable, 0, 8))
		}
		r.fw.Doorbell(0, 0)
		taken := abi.Index(8 * (i + 1))
		if err := r.Wait("requests to be taken", func() bool { return r.fw.QueueStatus(0).InIndex == taken }); err != nil {
			t.Fatal(err)
		}
	}
	r.fw.Command(0, abi.QueueDestroy, r.Config)
	if err := r.Wait("held responses", func() bool { return r.fw.QueueStatus(0).Held == 8 }); err != nil {
		t.Fatal(err)
	}
	if s := r.fw.QueueStatus(0).State; s != abi.QueueDraining {
		t.Fatalf("state %d", s)
	}
	r.clock.advance(1e9)
	r.fw.DoorbellOut(0, 0)
	if err := r.State(abi.QueueDisabled); err != nil {
		t.Fatal(err)
	}
	r.wantCounter(abi.CounterResponsesAbandoned, 8)
}

// TestStop checks the orderly stop and the start after it.
func TestStop(t *testing.T) {
	r := newRig(t, 4)
	bulk := r.buffer(abi.TypeBufferAvailable, 0, 8)
	r.post(bulk)
	r.settle()
	r.fw.Stop()
	r.expect(abi.Fields{Type: abi.TypeBufferDone, Flags: abi.FlagFinal, Aux: 2, Tag: bulk.Tag, Base: bulk.Base})
	if err := r.Wait("the stop", r.fw.Stopped); err != nil {
		t.Fatal(err)
	}
	if r.Chip.Events()&(1<<6) == 0 || r.fw.Running() {
		t.Errorf("events %#x, running %v", r.Chip.Events(), r.fw.Running())
	}
	r.fw.Run()
	if r.fw.Stopped() || !r.fw.Running() {
		t.Error("does not run again")
	}
	r.fw.Command(0, abi.QueueDestroy, r.Config)
	if err := r.State(abi.QueueDisabled); err != nil {
		t.Fatal(err)
	}
	r.fw.Stop() // nothing to wait for
	if !r.fw.Stopped() {
		t.Error("not stopped")
	}
}

// TestReset leaves old tables alone and forgets everything.
func TestReset(t *testing.T) {
	r := newRig(t, 4)
	id, ep := r.connect()
	own := r.buffer(abi.TypeBufferAvailable, id, 64)
	r.post(own, r.target(abi.TypeConnect, connectTarget()),
		r.control(abi.TypeAdapterAttr, 1, abi.AppendSetScalar(nil, abi.AttrMaxConnections, 5)))
	r.settle()
	pending := r.fake.Last()
	r.fw.Reset()
	table := append([]byte(nil), r.Chip.Bytes(r.Config.Out, 512)...)
	ep.Deliver([]byte("late"))
	pending.Establish()
	r.Publish(r.buffer(abi.TypeBufferAvailable, 0, 8))
	r.fw.Doorbell(0, 1)
	if s := r.fw.QueueStatus(0); s != (firmware.QueueStatus{}) {
		t.Errorf("status %+v", s)
	}
	for _, e := range []interface{ Ends() (int, int) }{ep, pending} {
		if closes, aborts := e.Ends(); closes != 0 || aborts != 1 {
			t.Errorf("closed %d times, aborted %d times", closes, aborts)
		}
	}
	if s := r.Create(); s != 65 {
		t.Errorf("create before RUN: %v", s)
	}
	if string(r.bytes(own)[:4]) != "\x00\x00\x00\x00" || string(table) != string(r.Chip.Bytes(r.Config.Out, 512)) {
		t.Error("memory was written after the reset")
	}
	r.Clear()
	r.fw.Run()
	if s := r.Create(); s != 0 {
		t.Fatalf("create: %v", s)
	}
	if got := r.attribute(0, abi.AttrMaxConnections, 8); string(got) != "\x00\x00\x01\x00\x00\x00\x00\x00" {
		t.Errorf("MAX_CONNECTIONS is % x", got)
	}
	next, _ := r.connect()
	if next <= id {
		t.Errorf("id %#x after %#x", next, id)
	}
}

// TestTableFault takes memory away from a running queue.
func TestTableFault(t *testing.T) {
	for _, c := range []struct {
		name string
		area func(*firmware.QueueConfig) uint64
	}{
		{"input", func(c *firmware.QueueConfig) uint64 { return c.In }},
		{"output", func(c *firmware.QueueConfig) uint64 { return c.Out }},
		{"event", func(c *firmware.QueueConfig) uint64 { return c.Event }},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := newRig(t, 4)
			r.post(r.buffer(abi.TypeBufferSend, 0, 8)) // refused
			r.next()
			r.Chip.Unmap(c.area(&r.Config), 256)
			r.Publish(r.buffer(abi.TypeBufferSend, 0, 8))
			r.fw.Doorbell(0, 2)
			if err := r.State(abi.QueueError); err != nil {
				t.Fatal(err)
			}
			if err := r.Wait("the event", func() bool { return r.Chip.Events()&(1<<2) != 0 }); err != nil {
				t.Fatal(err)
			}
			if e := r.fw.QueueStatus(0).Error; e != 1 && e != 2 {
				t.Errorf("Q_ERROR is %d", e)
			}
			if s := r.fw.Command(0, abi.QueueDrain, r.Config); s != 64 {
				t.Errorf("drain: %v", s)
			}
			r.fw.Command(0, abi.QueueDestroy, r.Config)
			if err := r.State(abi.QueueDisabled); err != nil {
				t.Fatal(err)
			}
			r.Chip.MapAll()
			r.Clear()
			if s := r.Create(); s != 0 {
				t.Errorf("create: %v", s)
			}
		})
	}
}
