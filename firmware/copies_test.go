// SPDX-License-Identifier: Apache-2.0

package firmware_test

import (
	"bytes"
	"testing"

	"toebox/firmware/engine"
	"toebox/vdev/abi"
)

// keeper is a connection with KEEP_SENDS and room for all that is sent.
func (r *rig) keeper() *sender {
	s := r.sender(uint64(abi.AttrKeepSends), 1)
	s.ep.SetRoom(1 << 30)
	return s
}

// again sends a buffer once more, and says how many bytes were read for that.
func (s *sender) again(f abi.Fields, modified bool) (read uint64) {
	s.t.Helper()
	before := s.counter(abi.CounterPayloadBytesRead)
	f.Tag, f.Modify, f.Conn = s.Tag(), modified, s.id
	s.held(f)
	s.expect(readDone(f, 0, f.Length-f.Offset))
	return s.counter(abi.CounterPayloadBytesRead) - before
}

// fill gives a buffer new bytes.
func (s *sender) fill(f abi.Fields, with byte) []byte {
	b := s.bytes(f)
	for i := range b {
		b[i] = byte(i*11>>4) ^ with
	}
	return b[f.Offset:]
}

// TestModify: the second send of an unchanged buffer reads nothing; a host that
// lies gets the old bytes, all of them (MM10).
func TestModify(t *testing.T) {
	r := newRig(t, 5)
	const size = 1 << 20
	s := r.keeper()
	f := r.buffer(abi.TypeBufferSend, s.id, size)
	f.Offset = 16
	send := func(what string, modified bool, want []byte, read uint64) {
		t.Helper()
		if n := s.again(f, modified); n != read {
			t.Errorf("%s: %d bytes were read, want %d", what, n, read)
		}
		s.want = append(s.want, want...)
	}
	old := bytes.Clone(s.fill(f, 1))
	send("first", false, old, size-16)
	send("unchanged", false, old, 0)
	now := bytes.Clone(s.fill(f, 2))
	send("a lie", false, old, 0)
	send("changed", true, now, size-16)
	send("unchanged", false, now, 0)
	s.whole()
	// Another connection of the queue finds them, too; one without KEEP_SENDS does
	// not, and other bytes are other bytes.
	s.want = nil
	s = r.keeper()
	send("another connection", false, now, 0)
	f.Offset = 17
	send("one byte less", false, now[1:], size-17)
	s.whole()
	plain := r.sender()
	plain.ep.SetRoom(1 << 30)
	if n := plain.again(f, false); n != size-17 {
		t.Errorf("without KEEP_SENDS: %d bytes were read", n)
	}
	r.wantCounter(abi.CounterCopiesKept, 3)
	r.wantCounter(abi.CounterCopiesFound, 4)
	r.wantCounter(abi.CounterCopiesDropped, 1)
	r.wantCounter(abi.CounterBytesKept, 3*size-16-16-17)
}

// TestModifyEvicted: a copy that gave way to another one is read again.
func TestModifyEvicted(t *testing.T) {
	r := newRig(t, 5)
	const size = 1 << 20
	s := r.keeper()
	limit := func(n uint64) {
		t.Helper()
		if f, _ := r.attributes(0, 1, abi.AppendSetScalar(nil, abi.AttrSendCache, n)); f.Aux != 0 {
			t.Fatalf("set: %+v", f)
		}
	}
	limit(2*size + 300)
	var all []abi.Fields
	for i := range 3 {
		f := r.buffer(abi.TypeBufferSend, s.id, size)
		s.fill(f, byte(i))
		all = append(all, f)
	}
	for i, c := range []struct {
		buffer int
		read   uint64
	}{{0, size}, {1, size}, {0, 0}, {2, size}, {0, 0}, {1, size}, {1, 0}, {2, size}} {
		f := all[c.buffer]
		if n := s.again(f, false); n != c.read {
			t.Errorf("send %d: %d bytes were read, want %d", i, n, c.read)
		}
		s.want = append(s.want, r.bytes(f)...)
	}
	r.wantCounter(abi.CounterCopiesEvicted, 3)
	limit(0)
	for range 2 {
		if n := s.again(all[0], false); n != size {
			t.Errorf("without room: %d bytes were read", n)
		}
		s.want = append(s.want, r.bytes(all[0])...)
	}
	s.whole()
}

// TestModifyMany: a queue keeps at most 256.
func TestModifyMany(t *testing.T) {
	r := newRig(t, 5)
	s := r.keeper()
	f := r.buffer(abi.TypeBufferSend, s.id, 1000)
	for i := range uint32(300) {
		f.Offset = i
		s.again(f, false)
	}
	r.wantCounter(abi.CounterCopiesEvicted, 300-256)
	for _, c := range []struct {
		offset uint32
		read   uint64
	}{{299, 0}, {44, 0}, {43, 957}} {
		f.Offset = c.offset
		if n := s.again(f, false); n != c.read {
			t.Errorf("from %d on: %d bytes were read, want %d", c.offset, n, c.read)
		}
	}
}

// TestModifyInvalid: what happens to the memory of a copy drops it.
func TestModifyInvalid(t *testing.T) {
	const size = 100_000
	for _, c := range []struct {
		name   string
		change func(r *rig, s *sender, f abi.Fields)
	}{
		{"unmapped and mapped", func(r *rig, _ *sender, f abi.Fields) {
			r.Chip.Unmap(f.Base+50_000, 4096)
			r.Chip.MapAll()
		}},
		{"a delivery into its last byte", func(r *rig, s *sender, f abi.Fields) {
			r.post(abi.Fields{Type: abi.TypeBufferAvailable, Tag: r.Tag(), Conn: s.id, Base: f.Base + size - 1, Length: 1})
			s.ep.Deliver([]byte{1})
			if got := r.next(); got.Type != abi.TypeBufferReceive {
				r.t.Fatalf("delivery %+v", got)
			}
		}},
		{"an attribute's value in its first bytes", func(r *rig, _ *sender, f abi.Fields) {
			copy(r.bytes(f), abi.AppendGet(nil, abi.AttrLink, 8))
			r.post(abi.Fields{Type: abi.TypeAdapterAttr, Tag: r.Tag(), Aux: 1, Base: f.Base, Length: 16})
			if got := r.next(); got.Aux != 0 {
				r.t.Fatalf("get %+v", got)
			}
		}},
		{"test DMA", func(r *rig, _ *sender, f abi.Fields) { r.fw.Wrote(f.Base+10, 4) }},
		{"a send of another queue", func(r *rig, _ *sender, f abi.Fields) {
			q := r.second(1)
			o := q.sender()
			o.ep.SetRoom(1 << 20)
			o.again(abi.Fields{Type: abi.TypeBufferSend, Base: f.Base + 99_000, Length: 2000}, true)
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := newRig(t, 5)
			s := r.keeper()
			f := r.buffer(abi.TypeBufferSend, s.id, size)
			if a, b := s.again(f, false), s.again(f, false); a != size || b != 0 {
				t.Fatalf("%d and %d bytes were read", a, b)
			}
			c.change(r, s, f)
			if n := s.again(f, false); n != size {
				t.Errorf("%d bytes were read", n)
			}
			if n := s.again(f, false); n != 0 {
				t.Errorf("the second time %d bytes were read", n)
			}
		})
	}
	t.Run("beside it", func(t *testing.T) {
		r := newRig(t, 5)
		s := r.keeper()
		f := r.buffer(abi.TypeBufferSend, s.id, size)
		s.again(f, false)
		r.fw.Wrote(f.Base-10, 10)
		r.fw.Wrote(f.Base+size, 10)
		r.fw.Wrote(f.Base, 0)
		if n := s.again(f, false); n != 0 {
			t.Errorf("%d bytes were read", n)
		}
	})
	t.Run("reset", func(t *testing.T) {
		r := newRig(t, 5)
		s := r.keeper()
		f := r.buffer(abi.TypeBufferSend, s.id, size)
		s.again(f, false)
		r.fw.Reset()
		if n := r.counter(abi.CounterMemoryUsed); n != 0 {
			t.Errorf("%d bytes of adapter memory are in use", n)
		}
		r.Clear()
		r.fw.Run()
		if s := r.Create(); s != 0 {
			t.Fatal(s)
		}
		s = r.keeper()
		if n := s.again(f, false); n != size {
			t.Errorf("%d bytes were read", n)
		}
	})
}

// TestModifyCut: a send that ends before its copy was whole leaves none: what
// comes later would be of another time.
func TestModifyCut(t *testing.T) {
	r := newRig(t, 5)
	s := r.keeper()
	s.ep.SetRoom(70_000)
	f := r.buffer(abi.TypeBufferSend, s.id, 200_000)
	old := bytes.Clone(s.fill(f, 1))
	r.post(f)
	r.settle()
	cancel := abi.Fields{Type: abi.TypeCancellation, Tag: r.Tag(), Conn: s.id, Offset: f.Tag}
	r.post(cancel)
	r.expect(readDone(f, 2, 70_000))
	if got := r.next(); got.Aux != 0 {
		t.Fatalf("cancellation %+v", got)
	}
	now := bytes.Clone(s.fill(f, 2))
	s.ep.SetRoom(1 << 30)
	if n := s.again(f, false); n != 200_000 {
		t.Errorf("%d bytes were read", n)
	}
	s.want = append(bytes.Clone(old[:70_000]), now...)
	s.whole()
	// The same with the end of the connection, and memory that goes.
	s.ep.SetRoom(10)
	f.Tag = r.Tag()
	r.Chip.Unmap(f.Base+100_000, 4096)
	r.post(f)
	r.settle()
	s.ep.SetRoom(1 << 30)
	if got := r.next(); got.Aux != 39 || got.Length > 100_000 {
		t.Fatalf("unmapped: %+v", got)
	}
	s.ep.Fail(engine.ErrReset)
	if got := r.next(); got.Type != abi.TypeTerminated {
		t.Fatalf("reset: %+v", got)
	}
}
