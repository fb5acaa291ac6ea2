// SPDX-License-Identifier: Apache-2.0

package firmware_test

import (
	"bytes"
	"testing"

	"toebox/vdev/abi"
)

// TestReceiveOnce checks ONCE and the order of buffers.
func TestReceiveOnce(t *testing.T) {
	r := newRig(t, 4)
	id, ep := r.connect()
	once := r.buffer(abi.TypeBufferAvailable, id, 100)
	once.Flags = abi.FlagOnce | abi.FlagFragment
	next := r.buffer(abi.TypeBufferAvailable, id, 4)
	bulk := r.buffer(abi.TypeBufferAvailable, 0, 5)
	r.post(bulk, once, next)
	r.settle()
	ep.Deliver([]byte("ab"))
	r.expect(abi.Fields{
		Type: abi.TypeBufferReceive, Flags: abi.FlagFinal, Tag: once.Tag, Base: once.Base, Conn: id, Length: 2,
	})
	ep.Deliver([]byte("cdefghijkl"))
	r.expect(abi.Fields{
		Type: abi.TypeBufferReceive, Flags: abi.FlagFinal, Tag: next.Tag, Base: next.Base, Conn: id, Length: 4,
	})
	r.expect(abi.Fields{
		Type: abi.TypeBufferReceive, Flags: abi.FlagFinal, Tag: bulk.Tag, Base: bulk.Base, Conn: id, Length: 5,
	})
	// The last byte waits for a buffer, and so does the end behind it.
	ep.DeliverFIN()
	if extra := r.settle(); len(extra) != 0 {
		t.Fatalf("too early: %+v", extra)
	}
	r.wantCounter(abi.CounterPoolEmpty, 1)
	if n := ep.Unread(); n != 1 {
		t.Errorf("%d bytes are left", n)
	}
	bulk.Tag = r.Tag()
	r.post(bulk)
	r.expect(abi.Fields{
		Type: abi.TypeBufferReceive, Flags: abi.FlagFinal, Tag: bulk.Tag, Base: bulk.Base, Conn: id, Length: 1,
	})
	r.expect(abi.Fields{Type: abi.TypeTerminated, Flags: abi.FlagFinal, Conn: id, Length: 5})
	if got := string(r.bytes(bulk)); got != "lhijk" {
		t.Errorf("buffer holds %q", got)
	}
	late := r.buffer(abi.TypeBufferAvailable, id, 4)
	r.post(late)
	r.expect(sendDone(late, 13, 0))
}

// TestPoolShared gives bulk buffers to connections that wait, each in turn.
func TestPoolShared(t *testing.T) {
	r := newRig(t, 5)
	ids := map[uint64]bool{}
	for range 8 {
		id, ep := r.connect()
		ids[id] = true
		ep.Deliver([]byte("x"))
	}
	r.settle()
	r.wantCounter(abi.CounterPoolEmpty, 8)
	// The first of those that wait ends without taking a buffer.
	end := abi.Fields{Type: abi.TypeTermination, Tag: r.Tag(), Conn: 7<<48 | 1, Length: 1}
	r.post(end)
	r.expect(abi.Fields{Type: abi.TypeTerminated, Flags: abi.FlagFinal, Tag: end.Tag, Conn: end.Conn, Length: 1})
	delete(ids, end.Conn)
	for range 7 {
		r.post(r.buffer(abi.TypeBufferAvailable, 0, 8))
	}
	for range 7 {
		f := r.next()
		if f.Type != abi.TypeBufferReceive || f.Length != 1 || !ids[f.Conn] {
			t.Fatalf("unexpected %+v", f)
		}
		delete(ids, f.Conn)
	}
}

// TestReceiveFault takes the memory of buffers away: no byte is lost.
func TestReceiveFault(t *testing.T) {
	r := newRig(t, 4)
	id, ep := r.connect()
	// The second page of this buffer is not there.
	own := abi.Fields{Type: abi.TypeBufferAvailable, Tag: r.Tag(), Conn: id, Base: r.Chip.Alloc(8192, 4096), Length: 8192}
	r.Chip.Unmap(own.Base+4096, 4096)
	gone := abi.Fields{Type: abi.TypeBufferAvailable, Tag: r.Tag(), Base: 64, Length: 100}
	bulk := r.buffer(abi.TypeBufferAvailable, 0, 8192)
	r.post(own, gone, bulk)
	r.settle()
	data := make([]byte, 5000)
	for i := range data {
		data[i] = byte(i * 31)
	}
	ep.Deliver(data[:3000])
	r.expect(abi.Fields{Type: abi.TypeBufferReceive, Tag: own.Tag, Base: own.Base, Conn: id, Length: 3000})
	ep.Deliver(data[3000:])
	r.expect(abi.Fields{
		Type: abi.TypeBufferDone, Flags: abi.FlagFinal, Aux: 39, Tag: own.Tag, Base: own.Base, Conn: id, Offset: 3000,
	})
	r.expect(abi.Fields{Type: abi.TypeBufferDone, Flags: abi.FlagFinal, Aux: 39, Tag: gone.Tag, Base: gone.Base})
	r.expect(abi.Fields{
		Type: abi.TypeBufferReceive, Flags: abi.FlagFinal, Tag: bulk.Tag, Base: bulk.Base, Conn: id, Length: 2000,
	})
	if !bytes.Equal(r.bytes(own)[:3000], data[:3000]) || !bytes.Equal(r.bytes(bulk)[:2000], data[3000:]) {
		t.Error("other bytes were delivered")
	}
	r.wantCounter(abi.CounterBytesDelivered, 5000)
}

// TestReceiveFaultMidway breaks off between segments of one delivery.
func TestReceiveFaultMidway(t *testing.T) {
	r := newRig(t, 4)
	id, ep := r.connect()
	ep.Deliver(bytes.Repeat([]byte("a"), 4096))
	ep.Deliver(bytes.Repeat([]byte("b"), 100))
	own := abi.Fields{Type: abi.TypeBufferAvailable, Tag: r.Tag(), Conn: id, Base: r.Chip.Alloc(8192, 4096), Length: 8192}
	r.Chip.Unmap(own.Base+4096, 4096)
	r.post(own)
	r.expect(abi.Fields{
		Type: abi.TypeBufferReceive, Flags: abi.FlagFinal, Aux: 39, Tag: own.Tag, Base: own.Base, Conn: id, Length: 4096,
	})
	if n := ep.Unread(); n != 100 {
		t.Errorf("%d bytes are left", n)
	}
}

// TestBufferCancel takes posted buffers back.
func TestBufferCancel(t *testing.T) {
	r := newRig(t, 4)
	id, ep := r.connect()
	own := r.buffer(abi.TypeBufferAvailable, id, 100)
	bulk := r.buffer(abi.TypeBufferAvailable, 0, 100)
	r.post(own, bulk)
	ep.Deliver([]byte("abc"))
	r.expect(abi.Fields{Type: abi.TypeBufferReceive, Tag: own.Tag, Base: own.Base, Conn: id, Length: 3})
	// Two targets and one that is none, in one request.
	tuples := abi.AppendTuple(nil, true, abi.AttrCancel, abi.AppendCancel(nil, id, own.Tag))
	tuples = abi.AppendTuple(tuples, true, abi.AttrCancel, abi.AppendCancel(nil, id, bulk.Tag))
	tuples = abi.AppendTuple(tuples, true, abi.AttrCancel, abi.AppendCancel(nil, 0, bulk.Tag))
	tuples = abi.AppendTuple(tuples, false, abi.AttrCancel, abi.AppendCancel(nil, 0, bulk.Tag))
	tuples = abi.AppendTuple(tuples, true, abi.AttrTerminate, abi.AppendCancel(nil, 0, bulk.Tag))
	f := r.control(abi.TypeCancellation, 5, tuples)
	r.post(f)
	r.expect(abi.Fields{
		Type: abi.TypeBufferDone, Flags: abi.FlagFinal, Aux: 2, Tag: own.Tag, Base: own.Base, Conn: id, Offset: 3,
	})
	r.expect(abi.Fields{Type: abi.TypeCancelled, Tag: f.Tag, Conn: id})
	r.expect(abi.Fields{Type: abi.TypeCancelled, Aux: 34, Tag: f.Tag, Conn: id, Offset: 1})
	r.expect(sendDone(bulk, 2, 0))
	r.expect(abi.Fields{Type: abi.TypeCancelled, Tag: f.Tag, Offset: 2})
	r.expect(abi.Fields{Type: abi.TypeCancelled, Aux: 50, Tag: f.Tag, Offset: 3})
	r.expect(abi.Fields{Type: abi.TypeCancelled, Flags: abi.FlagFinal, Aux: 48, Tag: f.Tag, Offset: 4})
	r.wantCounter(abi.CounterCancellations, 2)
}
