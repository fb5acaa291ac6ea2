// SPDX-License-Identifier: Apache-2.0

package firmware_test

import (
	"bytes"
	"testing"

	"toebox/vdev/abi"
)

// TestJourney takes one connection through its life over the fake engine.
func TestJourney(t *testing.T) {
	r := newRig(t, 4)
	id, ep := r.connect()

	// A send completes when it is acknowledged, not before.
	send := r.buffer(abi.TypeBufferSend, id, 1000)
	r.post(send)
	if extra := r.settle(); len(extra) != 0 {
		t.Fatalf("answered before the acknowledgement: %+v", extra)
	}
	if !bytes.Equal(ep.Sent(), r.bytes(send)) {
		t.Fatal("other bytes were sent")
	}
	ep.Ack(999)
	if extra := r.settle(); len(extra) != 0 {
		t.Fatalf("answered before the acknowledgement: %+v", extra)
	}
	ep.Ack(1)
	r.expect(abi.Fields{
		Type: abi.TypeBufferDone, Flags: abi.FlagFinal, Tag: send.Tag, Base: send.Base, Conn: id, Length: 1000,
	})

	// A buffer of the connection is filled in parts.
	own := r.buffer(abi.TypeBufferAvailable, id, 10)
	own.Offset = 2
	r.post(own)
	ep.Deliver([]byte("abc"))
	r.expect(abi.Fields{Type: abi.TypeBufferReceive, Tag: own.Tag, Base: own.Base, Conn: id, Length: 3, Offset: 2})
	ep.Deliver([]byte("defghXYZ"))
	r.expect(abi.Fields{
		Type: abi.TypeBufferReceive, Flags: abi.FlagFinal, Tag: own.Tag, Base: own.Base, Conn: id, Length: 5, Offset: 5,
	})
	if got := string(r.bytes(own)); got != "\x00\x00abcdefgh" {
		t.Fatalf("buffer holds %q", got)
	}

	// What is left goes to a bulk buffer, which is final at once.
	bulk := r.buffer(abi.TypeBufferAvailable, 0, 100)
	r.post(bulk)
	r.expect(abi.Fields{
		Type: abi.TypeBufferReceive, Flags: abi.FlagFinal, Tag: bulk.Tag, Base: bulk.Base, Conn: id, Length: 3,
	})
	if got := string(r.bytes(bulk)[:3]); got != "XYZ" {
		t.Fatalf("buffer holds %q", got)
	}

	// The peer ends its stream: posted buffers come back, then the notice.
	own = r.buffer(abi.TypeBufferAvailable, id, 10)
	r.post(own)
	r.settle()
	ep.DeliverFIN()
	r.expect(abi.Fields{
		Type: abi.TypeBufferDone, Flags: abi.FlagFinal, Aux: 13, Tag: own.Tag, Base: own.Base, Conn: id,
	})
	r.expect(abi.Fields{Type: abi.TypeTerminated, Flags: abi.FlagFinal, Conn: id, Length: 5})

	// Graceful termination sends what is queued and a FIN.
	send = r.buffer(abi.TypeBufferSend, id, 10)
	end := abi.Fields{Type: abi.TypeTermination, Tag: r.Tag(), Conn: id}
	r.post(send, end)
	r.settle()
	if !ep.FINSent() {
		t.Fatal("no FIN")
	}
	ep.Ack(10)
	r.expect(abi.Fields{
		Type: abi.TypeBufferDone, Flags: abi.FlagFinal, Tag: send.Tag, Base: send.Base, Conn: id, Length: 10,
	})
	r.expect(abi.Fields{Type: abi.TypeTerminated, Flags: abi.FlagFinal, Tag: end.Tag, Conn: id})
	if closes, aborts := ep.Ends(); closes != 1 || aborts != 0 {
		t.Fatalf("closed %d times, aborted %d times", closes, aborts)
	}

	// The id is gone.
	late := r.buffer(abi.TypeBufferSend, id, 1)
	r.post(late)
	r.expect(abi.Fields{
		Type: abi.TypeBufferDone, Flags: abi.FlagFinal, Aux: 36, Tag: late.Tag, Base: late.Base, Conn: id,
	})
	r.wantCounter(abi.CounterConnections, 0)
	r.wantCounter(abi.CounterConnectsOK, 1)
	r.wantCounter(abi.CounterBytesAcked, 1010)
	r.wantCounter(abi.CounterBytesDelivered, 11)
	r.wantCounter(abi.CounterPoolDeliveries, 1)
	r.wantCounter(abi.CounterOwnDeliveries, 2)
	r.wantCounter(abi.CounterRemoteCloses, 1)
}
