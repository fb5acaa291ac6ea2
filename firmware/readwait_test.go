// SPDX-License-Identifier: Apache-2.0

package firmware_test

import (
	"testing"

	"toebox/vdev/abi"
)

// TestReadWait sets DMA_WHEN: bytes move only while a buffer of the connection
// with ONCE is posted, to those before it first; then the end is told, too.
func TestReadWait(t *testing.T) {
	r := newRig(t, 5)
	id, ep := r.connect()
	r.set(id, abi.AttrDMAWhen, 1)
	early := r.buffer(abi.TypeBufferAvailable, id, 6)
	bulk := r.buffer(abi.TypeBufferAvailable, 0, 100)
	r.post(early, bulk)
	quiet := func(when string) {
		t.Helper()
		if extra := r.settle(); len(extra) != 0 {
			t.Fatalf("%s: %+v", when, extra)
		}
	}
	received := func(b abi.Fields, off, n uint32, final bool) {
		t.Helper()
		f := abi.Fields{Type: abi.TypeBufferReceive, Tag: b.Tag, Base: b.Base, Conn: id, Length: n, Offset: off}
		if final {
			f.Flags = abi.FlagFinal
		}
		r.expect(f)
	}
	ep.Deliver([]byte("abcd"))
	quiet("bytes, no read")
	ep.Deliver([]byte("ef"))
	quiet("more bytes, no read")
	r.wantCounter(abi.CounterReadWaits, 1)
	r.wantCounter(abi.CounterPoolEmpty, 0)

	read := r.buffer(abi.TypeBufferAvailable, id, 10)
	read.Flags = abi.FlagOnce
	r.post(read)
	received(early, 0, 6, true)
	quiet("all is delivered")
	ep.Deliver([]byte("ghij"))
	received(read, 0, 4, true)
	ep.Deliver([]byte("kl"))
	quiet("bytes behind the read")
	r.wantCounter(abi.CounterReadWaits, 2)

	// One that is cancelled is no read any more.
	read.Tag = r.Tag()
	cancel := abi.Fields{Type: abi.TypeCancellation, Tag: r.Tag(), Conn: id, Offset: read.Tag}
	r.pause()
	r.post(read, cancel)
	r.fw.Command(0, abi.QueueResume, r.Config)
	got := append([]abi.Fields{r.next(), r.next()}, r.settle()...)
	if got[0].Tag != read.Tag || got[1].Tag != cancel.Tag {
		t.Errorf("%+v", got)
	}
	if got[0].Aux == 2 {
		quiet("after the cancellation")
	}

	// Switched off: the bulk buffer takes what waits, and the end comes behind.
	ep.Deliver([]byte("mn"))
	ep.DeliverFIN()
	quiet("the end behind bytes that wait")
	rest := uint32(ep.Unread())
	f := r.control(abi.TypeConnectionAttr, 1, abi.AppendSetScalar(nil, abi.AttrDMAWhen, 0))
	f.Conn = id
	r.post(f)
	for range 3 {
		switch d := r.next(); d.Type {
		case abi.TypeConnectionAttrs:
		case abi.TypeBufferReceive:
			if d.Tag != bulk.Tag || d.Length != rest {
				t.Errorf("delivery %+v, want %d bytes", d, rest)
			}
		case abi.TypeTerminated:
			if d.Length != 5 {
				t.Errorf("%+v", d)
			}
		default:
			t.Errorf("unexpected %+v", d)
		}
	}
}
