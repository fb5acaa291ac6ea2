// SPDX-License-Identifier: Apache-2.0

package firmware_test

import (
	"testing"
	"time"

	"toebox/vdev/abi"
)

func terminated(f abi.Fields, ended uint32) abi.Fields {
	return abi.Fields{Type: abi.TypeTerminated, Flags: abi.FlagFinal, Tag: f.Tag, Conn: f.Conn, Length: ended}
}

// TestAbort answers what is open, and resets.
func TestAbort(t *testing.T) {
	r := newRig(t, 4)
	id, ep := r.connect()
	send := r.buffer(abi.TypeBufferSend, id, 100)
	own := r.buffer(abi.TypeBufferAvailable, id, 100)
	graceful := abi.Fields{Type: abi.TypeTermination, Tag: r.Tag(), Conn: id}
	late := r.buffer(abi.TypeBufferSend, id, 100)
	deaf := r.buffer(abi.TypeBufferAvailable, id, 100)
	end := abi.Fields{Type: abi.TypeTermination, Tag: r.Tag(), Conn: id, Length: 1}
	r.post(send, own, graceful, late, deaf)
	r.expect(sendDone(own, 12, 0))
	r.expect(sendDone(late, 12, 0))
	r.expect(sendDone(deaf, 12, 0))
	r.settle()
	ep.Ack(3)
	r.settle()
	r.post(end)
	r.expect(sendDone(send, 12, 3))
	r.expect(terminated(graceful, 1))
	r.expect(terminated(end, 1))
	if closes, aborts := ep.Ends(); closes != 0 || aborts != 1 {
		t.Errorf("closed %d times, aborted %d times", closes, aborts)
	}
	r.wantCounter(abi.CounterTerminations, 2)
}

// TestGracefulDrops drops what has arrived and what comes.
func TestGracefulDrops(t *testing.T) {
	r := newRig(t, 4)
	id, ep := r.connect()
	ep.Deliver(make([]byte, 100_000))
	send := r.buffer(abi.TypeBufferSend, id, 10)
	end := abi.Fields{Type: abi.TypeTermination, Tag: r.Tag(), Conn: id}
	r.post(send, end)
	r.settle()
	ep.Deliver(make([]byte, 50))
	r.settle()
	if n := ep.Unread(); n != 0 {
		t.Errorf("%d bytes are unread", n)
	}
	ep.Ack(10)
	r.expect(sendDone(send, 0, 10))
	r.expect(terminated(end, 0))
	r.wantCounter(abi.CounterOrphanBytes, 100_050)

	// Also when nothing is left to send: unread bytes would make a reset of it.
	id, ep = r.connect()
	ep.Deliver(make([]byte, 100_000))
	end = abi.Fields{Type: abi.TypeTermination, Tag: r.Tag(), Conn: id}
	r.post(end)
	r.expect(terminated(end, 0))
	if n := ep.Unread(); n != 0 {
		t.Errorf("%d bytes were unread at the end", n)
	}
}

// TestGracefulReset has the peer reset what is about to end.
func TestGracefulReset(t *testing.T) {
	r := newRig(t, 4)
	id, ep := r.connect()
	send := r.buffer(abi.TypeBufferSend, id, 10)
	end := abi.Fields{Type: abi.TypeTermination, Tag: r.Tag(), Conn: id}
	r.post(send, end)
	r.settle()
	ep.Reset()
	r.expect(sendDone(send, 5, 0))
	r.expect(terminated(end, 2))
	r.wantCounter(abi.CounterConnections, 0)
}

// TestLinger resets when a graceful end takes too long.
func TestLinger(t *testing.T) {
	r := newRig(t, 4)
	id, ep := r.connect()
	if f, _ := r.attributes(id, 1, abi.AppendSetScalar(nil, abi.AttrLinger, 5e9)); f.Aux != 0 {
		t.Fatalf("set: %+v", f)
	}
	send := r.buffer(abi.TypeBufferSend, id, 10)
	end := abi.Fields{Type: abi.TypeTermination, Tag: r.Tag(), Conn: id}
	r.post(send, end)
	r.settle()
	r.clock.advance(5*time.Second - 1)
	if extra := r.settle(); len(extra) != 0 {
		t.Fatalf("too early: %+v", extra)
	}
	r.clock.advance(1)
	r.fw.Doorbell(0, 0)
	r.expect(sendDone(send, 3, 0))
	r.expect(terminated(end, 1))
	if _, aborts := ep.Ends(); aborts != 1 {
		t.Errorf("aborted %d times", aborts)
	}
}

// TestHalfClose ends each direction on its own.
func TestHalfClose(t *testing.T) {
	r := newRig(t, 4)
	id, ep := r.connect()
	own := r.buffer(abi.TypeBufferAvailable, id, 10)
	send := r.buffer(abi.TypeBufferSend, id, 10)
	half := abi.Fields{Type: abi.TypeTermination, Tag: r.Tag(), Conn: id, Length: 2}
	late := r.buffer(abi.TypeBufferSend, id, 10)
	r.post(own, send, half, late)
	r.expect(sendDone(late, 12, 0))
	r.settle()
	ep.Ack(10)
	r.expect(sendDone(send, 0, 10))
	r.expect(terminated(half, 4))
	if !ep.FINSent() {
		t.Error("no FIN")
	}
	ep.Deliver([]byte("still here"))
	r.expect(abi.Fields{
		Type: abi.TypeBufferReceive, Flags: abi.FlagFinal, Tag: own.Tag, Base: own.Base, Conn: id, Length: 10,
	})
	own.Tag = r.Tag()
	half = abi.Fields{Type: abi.TypeTermination, Tag: r.Tag(), Conn: id, Length: 3}
	r.post(own, half)
	r.expect(sendDone(own, 12, 0))
	r.expect(terminated(half, 4))
	own.Tag = r.Tag()
	r.post(own)
	r.expect(sendDone(own, 12, 0))
	ep.Deliver([]byte("nobody listens"))
	ep.DeliverFIN()
	if extra := r.settle(); len(extra) != 0 {
		t.Fatalf("unexpected %+v", extra)
	}
	// With both directions ended it is still the host's to give up.
	ep.Reset()
	r.expect(abi.Fields{Type: abi.TypeTerminated, Flags: abi.FlagFinal, Aux: 5, Conn: id, Length: 2})
	end := abi.Fields{Type: abi.TypeTermination, Tag: r.Tag(), Conn: id, Length: 1}
	r.post(end)
	r.expect(terminated(end, 2))
}

// TestTerminateMany ends several by one request.
func TestTerminateMany(t *testing.T) {
	r := newRig(t, 4)
	a, _ := r.connect()
	b, epB := r.connect()
	send := r.buffer(abi.TypeBufferSend, b, 10)
	r.post(send)
	tuples := abi.AppendTuple(nil, true, abi.AttrTerminate, abi.AppendTerminate(nil, b, 0))
	tuples = abi.AppendTuple(tuples, true, abi.AttrTerminate, abi.AppendTerminate(nil, a, 1))
	tuples = abi.AppendTuple(tuples, true, abi.AttrTerminate, abi.AppendTerminate(nil, a, 1))
	tuples = abi.AppendTuple(tuples, true, abi.AttrTerminate, abi.AppendTerminate(nil, b, 4))
	tuples = abi.AppendTuple(tuples, true, abi.AttrTerminate, []byte{1})
	tuples = abi.AppendTuple(tuples, true, abi.AttrTerminate, []byte{15: 1})
	f := r.control(abi.TypeTermination, 6, tuples)
	r.post(f)
	r.expect(abi.Fields{Type: abi.TypeTerminated, Tag: f.Tag, Conn: a, Length: 1, Offset: 1})
	r.expect(abi.Fields{Type: abi.TypeTerminated, Tag: f.Tag, Conn: a, Aux: 36, Offset: 2})
	r.expect(abi.Fields{Type: abi.TypeTerminated, Tag: f.Tag, Conn: b, Aux: 44, Offset: 3})
	r.expect(abi.Fields{Type: abi.TypeTerminated, Tag: f.Tag, Aux: 38, Offset: 4})
	r.expect(abi.Fields{Type: abi.TypeTerminated, Tag: f.Tag, Aux: 33, Offset: 5})
	// A termination under way cannot be cancelled, nor its tag be used.
	cancel := abi.Fields{Type: abi.TypeCancellation, Tag: r.Tag(), Offset: f.Tag}
	again := abi.Fields{Type: abi.TypeTermination, Tag: f.Tag, Conn: b, Length: 1}
	r.post(cancel, again)
	r.expect(abi.Fields{Type: abi.TypeCancelled, Flags: abi.FlagFinal, Aux: 15, Tag: cancel.Tag})
	r.expect(abi.Fields{Type: abi.TypeTerminated, Flags: abi.FlagFinal, Aux: 35, Tag: f.Tag, Conn: b})
	r.settle()
	epB.Ack(10)
	r.expect(sendDone(send, 0, 10))
	r.expect(abi.Fields{Type: abi.TypeTerminated, Flags: abi.FlagFinal, Tag: f.Tag, Conn: b})
}
