// SPDX-License-Identifier: Apache-2.0

package firmware_test

import (
	"bytes"
	"testing"

	"toebox/firmware/engine"
	"toebox/vdev/abi"
)

// groupOf is the id of the group with GROUP_BY 16 and a GROUP (SPEC.md §14.4).
func groupOf(n uint64) uint64 { return 0x8000_0000_0000_0000 | n }

// crowd are connections of one group.
func (r *rig) crowd(n int, group uint64) []*sender {
	r.t.Helper()
	var all []*sender
	for range n {
		s := r.sender(uint64(abi.AttrGroup), group, uint64(abi.AttrGroupBy), 16)
		s.ep.SetRoom(1 << 30)
		all = append(all, s)
	}
	return all
}

// TestBroadcast sends one buffer on 100 connections, by one descriptor for all and
// by one for each: it is read once.
func TestBroadcast(t *testing.T) {
	const conns = 100
	size := 1 << 20
	if raceEnabled || testing.Short() {
		size = 100_000
	}
	r := newRig(t, 8)
	crowd := r.crowd(conns, 5)
	other := r.crowd(1, 6)[0]
	f := r.buffer(abi.TypeBufferSend, groupOf(5), size)
	f.Flags, f.Modify = abi.FlagGroup, true
	content := bytes.Clone(crowd[0].fill(f, 9))
	read := func(what string, want uint64, post func()) {
		t.Helper()
		before := r.counter(abi.CounterPayloadBytesRead)
		post()
		if n := r.counter(abi.CounterPayloadBytesRead) - before; n != want {
			t.Errorf("%s: %d bytes were read, want %d", what, n, want)
		}
	}
	read("one descriptor", uint64(size), func() {
		r.post(f)
		ids := map[uint64]bool{}
		for i := range conns {
			got := r.next()
			want := readDone(f, 0, uint32(size))
			want.Conn = got.Conn
			if want.Flags = 0; i == conns-1 {
				want.Flags = abi.FlagFinal
			}
			if got != want || ids[got.Conn] {
				t.Fatalf("response %d: %+v", i, got)
			}
			ids[got.Conn] = true
		}
		for _, s := range crowd {
			if !ids[s.id] {
				t.Fatalf("no result of connection %#x", s.id)
			}
		}
	})
	r.wantCounter(abi.CounterGroupSends, conns)
	r.wantCounter(abi.CounterSendsDone, 1)
	for _, s := range crowd {
		if s.want = content; !bytes.Equal(s.ep.Sent(), content) {
			t.Fatalf("connection %#x sent %d other bytes", s.id, len(s.ep.Sent()))
		}
	}
	if n := len(other.ep.Sent()); n != 0 {
		t.Errorf("a connection of another group sent %d bytes", n)
	}
	read("the same again", 0, func() {
		f.Tag, f.Modify = r.Tag(), false
		r.post(f)
		for range conns {
			if got := r.next(); got.Aux != 0 || got.Length != uint32(size) {
				t.Fatalf("response %+v", got)
			}
		}
	})
	const few = 20
	read("a descriptor for each", uint64(size), func() {
		var fs []abi.Fields
		for i, s := range crowd[:few] {
			r.set(s.id, abi.AttrKeepSends, 1)
			g := f
			g.Flags, g.Tag, g.Conn, g.Modify = 0, r.Tag(), s.id, i == 0
			fs = append(fs, g)
		}
		r.held(fs...)
		for range fs {
			if got := r.next(); got.Aux != 0 || got.Length != uint32(size) || got.Flags != abi.FlagFinal {
				t.Fatalf("response %+v", got)
			}
		}
	})
}

// TestBroadcastEnds: each connection of a group has a result of its own, the last
// of them is FINAL, and what cannot take part is left out.
func TestBroadcastEnds(t *testing.T) {
	r := newRig(t, 6)
	crowd := r.crowd(4, 5)
	done, reset, stuck, shut := crowd[0], crowd[1], crowd[2], crowd[3]
	r.post(abi.Fields{Type: abi.TypeTermination, Tag: r.Tag(), Conn: shut.id, Length: 2})
	r.settle()
	reset.ep.SetRoom(300)
	stuck.ep.SetRoom(200)
	f := r.buffer(abi.TypeBufferSend, groupOf(5), 1000)
	f.Flags = abi.FlagGroup
	result := func(s *sender, status abi.Status, n uint32, final bool) {
		t.Helper()
		want := readDone(f, status, n)
		want.Conn = s.id
		if !final {
			want.Flags = 0
		}
		r.expect(want)
	}
	r.post(f)
	result(done, 0, 1000, false)
	r.settle()
	reset.ep.Fail(engine.ErrReset)
	result(reset, 5, 300, false)
	if got := r.next(); got.Type != abi.TypeTerminated || got.Conn != reset.id {
		t.Fatalf("reset: %+v", got)
	}
	late := abi.Fields{Type: abi.TypeCancellation, Tag: r.Tag(), Conn: stuck.id, Offset: f.Tag}
	r.post(late)
	if got := r.next(); got.Aux != 34 {
		t.Fatalf("cancellation with the id of a connection: %+v", got)
	}
	held := r.attribute(stuck.id, abi.AttrHeldBuffers, 64)
	if len(held) != 16 || held[0] != byte(f.Tag) {
		t.Errorf("HELD_BUFFERS is % x", held)
	}
	cancel := abi.Fields{Type: abi.TypeCancellation, Tag: r.Tag(), Conn: groupOf(5), Offset: f.Tag}
	r.post(cancel)
	result(stuck, 2, 200, true)
	if got := r.next(); got.Tag != cancel.Tag || got.Aux != 0 {
		t.Fatalf("cancellation: %+v", got)
	}
	r.wantCounter(abi.CounterSendsDone, 0)

	// The same for a drain, with several that are open.
	stuck.ep.SetRoom(0)
	done.ep.SetRoom(0)
	f.Tag = r.Tag()
	r.post(f)
	r.settle()
	r.fw.Command(0, abi.QueueDrain, r.Config)
	seen := map[uint64]bool{}
	for i := range 2 {
		got := r.next()
		if seen[got.Conn] = true; got.Aux != 2 || (got.Flags == abi.FlagFinal) != (i == 1) || got.Length != 0 {
			t.Fatalf("drained: %+v", got)
		}
	}
	if !seen[stuck.id] || !seen[done.id] {
		t.Errorf("answered were %v", seen)
	}
}

// TestBroadcastRefused: ids that name no group, or one without connections, memory
// that is short, and memory that is none.
func TestBroadcastRefused(t *testing.T) {
	r := newRig(t, 6)
	crowd := r.crowd(3, 5)
	f := r.buffer(abi.TypeBufferSend, groupOf(6), 1000)
	f.Flags = abi.FlagGroup
	refused := func(what string, s abi.Status) {
		t.Helper()
		f.Tag = r.Tag()
		r.post(f)
		if got := r.next(); got != sendDone(f, s, 0) {
			t.Errorf("%s: %+v, want status %d", what, got, s)
		}
	}
	refused("a group of nobody", 36)
	f.Conn = crowd[0].id
	refused("a connection's id", 36)
	f.Conn = groupOf(5) | 1<<40
	refused("an id that says more than GROUP_BY", 36)
	f.Conn, f.Offset = groupOf(5), 1000
	refused("nothing to send", 38)
	f.Offset = 0
	used := r.counter(abi.CounterMemoryUsed)
	limit := func(n uint64) {
		t.Helper()
		if f, _ := r.attributes(0, 1, abi.AppendSetScalar(nil, abi.AttrMemorySize, n)); f.Aux != 0 {
			t.Fatalf("set: %+v", f)
		}
	}
	limit(used + 4*64 - 1)
	refused("memory for three of four", 11)
	limit(used + 4*64)
	// Without memory for a copy each reads for itself.
	before := r.counter(abi.CounterPayloadBytesRead)
	f.Tag = r.Tag()
	r.post(f)
	for range 3 {
		if got := r.next(); got.Aux != 0 || got.Length != 1000 {
			t.Fatalf("response %+v", got)
		}
	}
	if n := r.counter(abi.CounterPayloadBytesRead) - before; n != 3000 {
		t.Errorf("%d bytes were read", n)
	}
	limit(1 << 28)
	r.Chip.Unmap(f.Base, 4096)
	f.Tag = r.Tag()
	r.post(f)
	for i := range 3 {
		if got := r.next(); got.Aux != 39 || got.Length != 0 || (got.Flags == abi.FlagFinal) != (i == 2) {
			t.Fatalf("response %+v", got)
		}
	}
}
