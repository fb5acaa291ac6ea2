// SPDX-License-Identifier: Apache-2.0

package firmware_test

import (
	"bytes"
	"slices"
	"testing"

	"toebox/firmware"
	"toebox/firmware/engine"
	"toebox/vdev/abi"
)

func sendDone(f abi.Fields, s abi.Status, n uint32) abi.Fields {
	return abi.Fields{
		Type: abi.TypeBufferDone, Flags: abi.FlagFinal, Aux: uint16(s), Tag: f.Tag,
		Base: f.Base, Conn: f.Conn, Length: n, Offset: f.Offset,
	}
}

// readDone is sendDone with completion point 0.
func readDone(f abi.Fields, s abi.Status, n uint32) abi.Fields {
	d := sendDone(f, s, n)
	d.ASAP = true // bits 1..0 of byte 0: 2, read
	return d
}

// TestSendOrder sends several requests, partial and large ones, through little
// room: the stream is whole and results come in order.
func TestSendOrder(t *testing.T) {
	r := newRig(t, 5)
	id, ep := r.connect()
	ep.SetRoom(50_000)
	var all []abi.Fields
	var want []byte
	for i, n := range []int{1, 70_000, 3, 65_536, 200_000, 17} {
		f := r.buffer(abi.TypeBufferSend, id, n)
		f.Offset = uint32(i % 2)
		f.Modify = i%3 == 0
		want = append(want, r.bytes(f)[f.Offset:]...)
		all = append(all, f)
	}
	r.post(all...)
	for done := 0; done < len(all); {
		got := r.settle()
		for _, g := range got {
			if f := all[done]; g != sendDone(f, 0, f.Length-f.Offset) {
				t.Fatalf("got %+v for %+v", g, f)
			}
			done++
		}
		if ep.Ack(30_000) == 0 && len(got) == 0 {
			t.Fatalf("stuck after %d sends", done)
		}
	}
	if !bytes.Equal(ep.Sent(), want) {
		t.Error("other bytes were sent")
	}
	r.wantCounter(abi.CounterSendsDone, uint64(len(all)))
	r.wantCounter(abi.CounterBytesSent, uint64(len(want)))
	r.wantCounter(abi.CounterPayloadBytesRead, uint64(len(want)))
}

// TestCompletionPoints checks MM14.
func TestCompletionPoints(t *testing.T) {
	r := newRig(t, 4)
	id, ep := r.connect()
	ep.SetInfo(engine.Info{MSS: 100, Cwnd: 3, SendWindow: 1000})
	point := func(n uint64) {
		t.Helper()
		if f, _ := r.attributes(id, 1, abi.AppendSetScalar(nil, abi.AttrCompletionPoint, n)); f.Aux != 0 {
			t.Fatalf("set: %+v", f)
		}
	}
	point(0)
	f := r.buffer(abi.TypeBufferSend, id, 500)
	r.post(f)
	r.expect(readDone(f, 0, 500))
	// 300 bytes are in flight by the congestion window, so 200 of the 500
	// must be acknowledged before another 100 are handed to the network.
	point(1)
	g := r.buffer(abi.TypeBufferSend, id, 100)
	r.post(g)
	ep.Ack(200)
	if extra := r.settle(); len(extra) != 0 {
		t.Fatalf("too early: %+v", extra)
	}
	ep.Ack(100)
	done := sendDone(g, 0, 100)
	done.Modify = true // 1, handed to the network
	r.expect(done)
	point(2)
	ep.Ack(300)
	r.settle()
	h := r.buffer(abi.TypeBufferSend, id, 10)
	r.post(h)
	if extra := r.settle(); len(extra) != 0 {
		t.Fatalf("too early: %+v", extra)
	}
	ep.Ack(10)
	r.expect(sendDone(h, 0, 10))
}

// TestSendFault takes the memory of one of several sends away: the peer gets
// nothing from behind the gap, and no FIN.
func TestSendFault(t *testing.T) {
	r := newRig(t, 4)
	id, ep := r.connect()
	first := r.buffer(abi.TypeBufferSend, id, 100)
	bad := abi.Fields{
		Type: abi.TypeBufferSend, Tag: r.Tag(), Conn: id,
		Base: r.Chip.Alloc(200_000, 4096), Length: 200_000,
	}
	r.Chip.Unmap(bad.Base+150_000, 1)
	behind := r.buffer(abi.TypeBufferSend, id, 100)
	want := append([]byte(nil), r.bytes(first)...)
	r.post(first, bad, behind)
	r.settle()
	sent := ep.Sent()
	if n := len(sent) - 100; n < 0 || n > 150_000 || !bytes.Equal(sent[:100], want) {
		t.Fatalf("%d bytes were sent", len(sent))
	}
	for _, c := range sent[100:] {
		if c != 0 {
			t.Fatal("other bytes were sent")
		}
	}
	ep.Ack(len(sent))
	r.expect(sendDone(first, 0, 100))
	r.expect(sendDone(bad, 39, uint32(len(sent)-100)))
	r.expect(sendDone(behind, 14, 0))
	late := r.buffer(abi.TypeBufferSend, id, 100)
	end := abi.Fields{Type: abi.TypeTermination, Tag: r.Tag(), Conn: id}
	r.post(late, end)
	r.expect(sendDone(late, 14, 0))
	r.expect(abi.Fields{Type: abi.TypeTerminated, Flags: abi.FlagFinal, Tag: end.Tag, Conn: id, Length: 1})
	if closes, aborts := ep.Ends(); ep.FINSent() || closes != 0 || aborts != 1 {
		t.Errorf("FIN %v, closed %d times, aborted %d times", ep.FINSent(), closes, aborts)
	}
}

// TestHalfAfterFault ends the sending direction of a stream with a gap.
func TestHalfAfterFault(t *testing.T) {
	r := newRig(t, 4)
	id, ep := r.connect()
	bad := abi.Fields{Type: abi.TypeBufferSend, Tag: r.Tag(), Conn: id, Base: 4096, Length: 8}
	end := abi.Fields{Type: abi.TypeTermination, Tag: r.Tag(), Conn: id, Length: 2}
	r.post(bad, end)
	r.expect(sendDone(bad, 39, 0))
	r.expect(abi.Fields{Type: abi.TypeTerminated, Flags: abi.FlagFinal, Tag: end.Tag, Conn: id, Length: 1})
	r.expect(abi.Fields{Type: abi.TypeTerminated, Flags: abi.FlagFinal, Aux: 14, Conn: id, Length: 1})
	end = abi.Fields{Type: abi.TypeTermination, Tag: r.Tag(), Conn: id, Length: 1}
	r.post(end)
	r.expect(abi.Fields{Type: abi.TypeTerminated, Flags: abi.FlagFinal, Tag: end.Tag, Conn: id, Length: 1})
	if _, aborts := ep.Ends(); ep.FINSent() || aborts != 1 {
		t.Errorf("FIN %v, aborted %d times", ep.FINSent(), aborts)
	}
}

// writeOrder notes which endpoint, by the order of opening, each write went to.
type writeOrder struct {
	engine.Engine
	opened int
	order  []int
}

func (w *writeOrder) Open(p engine.Protocol, v6 bool, s engine.Sink) (engine.Endpoint, error) {
	ep, err := w.Engine.Open(p, v6, s)
	w.opened++
	return &noted{ep, w, w.opened}, err
}

type noted struct {
	engine.Endpoint
	to *writeOrder
	n  int
}

func (e *noted) Write(n int, fill func([]byte) error) (int, error) {
	e.to.order = append(e.to.order, e.n)
	return e.Endpoint.Write(n, fill)
}

// TestASAP lets a connection with an ASAP request overtake one without, but not
// its own earlier bytes.
func TestASAP(t *testing.T) {
	writes := &writeOrder{}
	r := newRig(t, 4, func(c *firmware.Config) { writes.Engine, c.Engine = c.Engine, writes })
	slow, _ := r.connect()
	fast, ep2 := r.connect()
	r.fw.Command(0, abi.QueuePause, r.Config)
	if err := r.State(abi.QueuePaused); err != nil {
		t.Fatal(err)
	}
	a := r.buffer(abi.TypeBufferSend, slow, 3*65536)
	b := r.buffer(abi.TypeBufferSend, fast, 65536)
	c := r.buffer(abi.TypeBufferSend, fast, 65536)
	c.ASAP = true
	r.Publish(a)
	r.Publish(b)
	r.Publish(c)
	r.fw.Command(0, abi.QueueResume, r.Config)
	r.settle()
	if want := []int{2, 2, 1, 1, 1}; !slices.Equal(writes.order, want) {
		t.Fatalf("order %v, want %v", writes.order, want)
	}
	if !bytes.Equal(ep2.Sent(), append(append([]byte(nil), r.bytes(b)...), r.bytes(c)...)) {
		t.Error("other bytes were sent")
	}
}

// TestSendCancel cancels sends that are fetched in full, in part and not at all.
func TestSendCancel(t *testing.T) {
	r := newRig(t, 4)
	id, ep := r.connect()
	ep.SetRoom(150)
	full := r.buffer(abi.TypeBufferSend, id, 100)
	part := r.buffer(abi.TypeBufferSend, id, 100)
	none := r.buffer(abi.TypeBufferSend, id, 100)
	none.ASAP = true
	last := r.buffer(abi.TypeBufferSend, id, 10)
	want := append(append(append([]byte(nil), r.bytes(full)...), r.bytes(part)[:50]...), r.bytes(last)...)
	r.post(full, part, none, last)
	r.settle()
	ep.SetRoom(0)
	ep.Ack(20)
	r.settle()
	for _, c := range []struct {
		send abi.Fields
		n    uint32
		sent uint32 // fetched
	}{{none, 0, 0}, {full, 20, 100}, {part, 0, 50}} {
		cancel := abi.Fields{Type: abi.TypeCancellation, Tag: r.Tag(), Conn: id, Offset: c.send.Tag}
		r.post(cancel)
		r.expect(sendDone(c.send, 2, c.n))
		r.expect(abi.Fields{Type: abi.TypeCancelled, Flags: abi.FlagFinal, Tag: cancel.Tag, Conn: id, Length: c.sent})
		cancel.Tag = r.Tag()
		r.post(cancel)
		r.expect(abi.Fields{Type: abi.TypeCancelled, Flags: abi.FlagFinal, Aux: 15, Tag: cancel.Tag, Conn: id})
	}
	ep.SetRoom(1000)
	r.settle()
	ep.Ack(200)
	r.expect(sendDone(last, 0, 10))
	if !bytes.Equal(ep.Sent(), want) {
		t.Errorf("%d bytes were sent, want %d", len(ep.Sent()), len(want))
	}
	r.wantCounter(abi.CounterCancellations, 3)
}

// TestPeerReset answers all that is open before it says that the peer reset the
// connection, and what comes later with the same.
func TestPeerReset(t *testing.T) {
	for _, c := range []struct {
		name   string
		err    error
		status abi.Status
		ended  uint32
	}{
		{"reset", engine.ErrReset, 5, 2},
		{"timed out", engine.ErrTimedOut, 3, 3},
		{"unreachable", engine.ErrHostUnreachable, 6, 3},
		{"aborted", engine.ErrAborted, 14, 1},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := newRig(t, 4)
			id, ep := r.connect()
			send := r.buffer(abi.TypeBufferSend, id, 100)
			half := abi.Fields{Type: abi.TypeTermination, Tag: r.Tag(), Conn: id, Length: 2}
			ep.Deliver([]byte("abc"))
			r.post(send, half)
			r.settle()
			ep.Ack(7)
			ep.Fail(c.err)
			// Sends fail at once, the rest waits for the data before it.
			r.expect(sendDone(send, c.status, 7))
			if extra := r.settle(); len(extra) != 0 {
				t.Fatalf("too early: %+v", extra)
			}
			own := r.buffer(abi.TypeBufferAvailable, id, 100)
			r.post(own)
			r.expect(abi.Fields{Type: abi.TypeBufferReceive, Tag: own.Tag, Base: own.Base, Conn: id, Length: 3})
			r.expect(abi.Fields{
				Type: abi.TypeBufferDone, Flags: abi.FlagFinal, Aux: uint16(c.status), Tag: own.Tag,
				Base: own.Base, Conn: id, Offset: 3,
			})
			r.expect(abi.Fields{Type: abi.TypeTerminated, Flags: abi.FlagFinal, Tag: half.Tag, Conn: id, Length: c.ended})
			r.expect(abi.Fields{Type: abi.TypeTerminated, Flags: abi.FlagFinal, Aux: uint16(c.status), Conn: id, Length: c.ended})

			// The id stays until the host gives it up.
			send = r.buffer(abi.TypeBufferSend, id, 100)
			own = r.buffer(abi.TypeBufferAvailable, id, 100)
			half.Tag = r.Tag()
			end := abi.Fields{Type: abi.TypeTermination, Tag: r.Tag(), Conn: id}
			r.post(send, own, half)
			r.expect(sendDone(send, c.status, 0))
			r.expect(sendDone(own, c.status, 0))
			r.expect(abi.Fields{Type: abi.TypeTerminated, Flags: abi.FlagFinal, Tag: half.Tag, Conn: id, Length: c.ended})
			r.wantCounter(abi.CounterConnections, 1)
			r.post(end)
			r.expect(abi.Fields{Type: abi.TypeTerminated, Flags: abi.FlagFinal, Tag: end.Tag, Conn: id, Length: c.ended})
			r.wantCounter(abi.CounterConnections, 0)
			if closes, aborts := ep.Ends(); closes+aborts != 1 {
				t.Errorf("closed %d times, aborted %d times", closes, aborts)
			}
		})
	}
}
