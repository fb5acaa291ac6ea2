// SPDX-License-Identifier: Apache-2.0

package firmware_test

import (
	"bytes"
	"encoding/binary"
	"net/netip"
	"testing"

	"toebox/firmware"
	"toebox/firmware/engine"
	"toebox/firmware/engine/enginetest"
	"toebox/firmware/firmwaretest"
	"toebox/vdev/abi"
)

// header4 is an ADDRESS of 10.0.2.9 port 0x1234, as SPEC.md §6.1 lays it out.
func header4() []byte {
	return []byte{
		4, 0, 0x34, 0x12, // family, prefix, port
		0, 0, 0, 0,
		10, 0, 2, 9, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
	}
}

// datagram makes a datagram endpoint: with a peer, or without one.
func (r *rig) datagram(peered bool, tuples ...[]byte) (uint64, *enginetest.Endpoint) {
	r.t.Helper()
	typ, answer := abi.TypeListen, abi.TypeListenResponse
	target := abi.Target{Protocol: 17, Count: 1, Local: netip.MustParseAddrPort("0.0.0.0:5000"), Remote: netip.MustParseAddrPort("0.0.0.0:0"), Cookie: 5}
	if peered {
		typ, answer = abi.TypeConnect, abi.TypeCompletion
		target.Remote, target.Local = peer, netip.MustParseAddrPort("0.0.0.0:0")
	}
	b := bytes.Join(tuples, nil)
	f := r.control(typ, len(tuples)+1, appendTarget(b, target))
	r.post(f)
	got := r.next()
	ep := r.fake.Last()
	want := abi.Fields{
		Type: answer, Flags: abi.FlagFinal, Tag: f.Tag, Conn: got.Conn, Base: 5, Length: uint32(ep.Info().Local.Port()),
	}
	if got != want || got.Conn == 0 || !peered && got.Length != 5000 {
		r.t.Fatalf("opened %+v, want %+v", got, want)
	}
	return got.Conn, ep
}

// done is a buffer available response to a datagram's buffer.
func done(f abi.Fields, status uint16, n uint32) abi.Fields {
	return abi.Fields{Type: abi.TypeBufferDone, Flags: abi.FlagFinal, Aux: status, Tag: f.Tag, Base: f.Base, Conn: f.Conn, Length: n, Offset: f.Offset}
}

// got is a buffer receive response.
func got(f abi.Fields, conn uint64, status uint16, n uint32) abi.Fields {
	d := done(f, status, n)
	d.Type, d.Conn = abi.TypeBufferReceive, conn
	return d
}

func TestDatagramSend(t *testing.T) {
	r := newRig(t, 5)
	id, ep := r.datagram(true)
	var want [][]byte
	send := func(n int, off uint32, status uint16, length uint32) {
		t.Helper()
		f := r.buffer(abi.TypeBufferSend, id, n)
		f.Offset = off
		if status == 0 {
			want = append(want, append([]byte(nil), r.bytes(f)[off:]...))
		}
		r.post(f)
		r.expect(done(f, status, length))
	}
	send(100, 0, 0, 100)
	send(100, 40, 0, 60)
	send(1, 1, 0, 0) // an empty one
	send(65507, 0, 0, 65507)
	send(65508, 0, 38, 0)
	send(65508, 1, 0, 65507)
	send(10, 11, 38, 0)
	ep.FailSend(engine.ErrHostUnreachable)
	send(10, 0, 6, 0)
	send(10, 0, 0, 10)
	r.post(r.buffer(abi.TypeBufferAvailable, 0, 50))
	ep.Unreachable()
	if seen := r.settle(); len(seen) != 0 {
		t.Fatalf("told to a bulk buffer: %+v", seen)
	}
	send(10, 0, 4, 0) // no buffer of its own was there to tell it
	send(11, 0, 0, 11)
	if got := ep.Datagrams(); len(got) != len(want) {
		t.Fatalf("%d datagrams, want %d", len(got), len(want))
	} else {
		for i := range got {
			if !bytes.Equal(got[i], want[i]) {
				t.Errorf("datagram %d has %d bytes, want %d", i, len(got[i]), len(want[i]))
			}
		}
	}
	r.wantCounter(abi.CounterDatagramsSent, uint64(len(want)))
	r.wantCounter(abi.CounterDatagramsRefused, 1)
	bad := r.buffer(abi.TypeBufferSend, id, 8)
	bad.Base = firmwaretest.Base + testMemory
	r.post(bad)
	r.expect(done(bad, 39, 0))
	send(12, 0, 0, 12) // there is no gap

	// On a stream a send of nothing is refused.
	stream, _ := r.connect()
	f := r.buffer(abi.TypeBufferSend, stream, 5)
	f.Offset = 5
	r.post(f)
	r.expect(done(f, 38, 0))
}

func TestDatagramSendTo(t *testing.T) {
	r := newRig(t, 5)
	id, ep := r.datagram(false)
	send := func(n int, status uint16, length uint32, change ...func(h []byte)) {
		t.Helper()
		f := r.buffer(abi.TypeBufferSend, id, n)
		copy(r.bytes(f), header4())
		for _, c := range change {
			c(r.bytes(f))
		}
		r.post(f)
		r.expect(done(f, status, length))
	}
	send(24, 0, 24) // empty
	send(34, 0, 34)
	send(23, 38, 0)
	send(24+65507, 0, 24+65507)
	send(24+65508, 38, 0)
	for _, c := range []struct {
		at int
		v  byte
	}{{0, 0}, {0, 6}, {0, 5}, {1, 1}, {4, 1}, {7, 1}} {
		send(30, 9, 0, func(h []byte) { h[c.at] = c.v })
	}
	send(30, 9, 0, func(h []byte) { h[2], h[3] = 0, 0 })
	send(30, 9, 0, func(h []byte) { clear(h[8:12]) })
	to := netip.MustParseAddrPort("10.0.2.9:4660")
	for i, a := range ep.SentTo() {
		if a != to {
			t.Errorf("datagram %d to %v", i, a)
		}
	}
	if d := ep.Datagrams(); len(d) != 3 || len(d[0]) != 0 || len(d[1]) != 10 || len(d[2]) != 65507 {
		t.Errorf("%d datagrams", len(d))
	}
	// A header, or a payload behind it, that cannot be read.
	f := r.buffer(abi.TypeBufferSend, id, 40)
	f.Base = firmwaretest.Base + testMemory - 8
	r.post(f)
	r.expect(done(f, 39, 0))
	f = r.buffer(abi.TypeBufferSend, id, 40)
	f.Base = firmwaretest.Base + testMemory - 24
	copy(r.Chip.Bytes(f.Base, 24), header4())
	r.post(f)
	r.expect(done(f, 39, 0))

	// A full engine: the send waits, and ends with the endpoint.
	ep.SetRoom(0)
	f = r.buffer(abi.TypeBufferSend, id, 40)
	copy(r.bytes(f), header4())
	r.post(f)
	if seen := r.settle(); len(seen) != 0 {
		t.Fatalf("answered without room: %+v", seen)
	}
	ep.SetRoom(1 << 30)
	r.expect(done(f, 0, 40))
}

func TestDatagramReceive(t *testing.T) {
	for _, peered := range []bool{true, false} {
		r := newRig(t, 5)
		id, ep := r.datagram(peered)
		from, head := peer, []byte(nil)
		if !peered {
			from, head = netip.MustParseAddrPort("10.0.2.9:4660"), header4()
		}
		h := uint32(len(head))
		check := func(f abi.Fields, payload string) {
			t.Helper()
			want := append(append([]byte(nil), head...), payload...)
			room := r.bytes(f)[f.Offset:]
			want = want[:min(len(want), len(room))]
			if !bytes.Equal(room[:len(want)], want) {
				t.Errorf("buffer % x, want % x", room, want)
			}
		}
		// Own buffers in order, one datagram each, whatever room is left.
		a, b := r.buffer(abi.TypeBufferAvailable, id, 100), r.buffer(abi.TypeBufferAvailable, id, 100)
		b.Offset = 10
		r.post(a, b)
		ep.DeliverFrom(from, []byte("one"))
		r.expect(got(a, id, 0, h+3))
		check(a, "one")
		ep.DeliverFrom(from, nil)
		r.expect(got(b, id, 0, h))
		check(b, "")
		// A bulk buffer; too small ones, also for the header.
		ep.DeliverFrom(from, []byte("sixteen bytes ..."))
		bulk := r.buffer(abi.TypeBufferAvailable, 0, 64)
		r.post(bulk)
		r.expect(got(bulk, id, 0, h+17))
		check(bulk, "sixteen bytes ...")
		for _, n := range []int{1, 10, 30} {
			small := r.buffer(abi.TypeBufferAvailable, id, n)
			r.post(small)
			ep.DeliverFrom(from, bytes.Repeat([]byte("x"), 40))
			r.expect(got(small, id, 17, h+40))
			check(small, string(bytes.Repeat([]byte("x"), 40)))
		}
		exact := r.buffer(abi.TypeBufferAvailable, id, int(h)+40)
		r.post(exact)
		ep.DeliverFrom(from, bytes.Repeat([]byte("y"), 40))
		r.expect(got(exact, id, 0, h+40))
		// A buffer that cannot be written costs its datagram, and no other.
		bad, good := r.buffer(abi.TypeBufferAvailable, id, 50), r.buffer(abi.TypeBufferAvailable, id, 50)
		bad.Base = firmwaretest.Base + testMemory
		r.post(bad, good)
		ep.DeliverFrom(from, []byte("lost"))
		ep.DeliverFrom(from, []byte("kept"))
		r.expect(done(bad, 39, 0))
		r.expect(got(good, id, 0, h+4))
		check(good, "kept")
		r.wantCounter(abi.CounterDatagramsDelivered, 8)
		r.wantCounter(abi.CounterDatagramsTruncated, 3)
		r.wantCounter(abi.CounterDatagramsDropped, 1)
		r.wantCounter(abi.CounterPoolDeliveries, 1)
		r.wantCounter(abi.CounterOwnDeliveries, 7)

		// A refusal goes to the oldest own buffer, and ends nothing. Without a
		// peer there is none to refuse.
		own, next := r.buffer(abi.TypeBufferAvailable, id, 50), r.buffer(abi.TypeBufferAvailable, id, 50)
		r.post(own, next)
		r.settle()
		if peered {
			ep.Unreachable()
			r.expect(done(own, 4, 0))
			own = next
		}
		ep.DeliverFrom(from, []byte("after"))
		r.expect(got(own, id, 0, h+5))
		ep.SetRoom(0)
		held := r.buffer(abi.TypeBufferSend, id, 30)
		copy(r.bytes(held), header4())
		last := r.buffer(abi.TypeBufferAvailable, id, 50)
		r.post(held, last)
		r.settle()
		term := abi.Fields{Type: abi.TypeTermination, Tag: r.Tag(), Conn: id, Length: 1}
		r.post(term)
		r.expect(done(held, 12, 0))
		if !peered {
			r.expect(done(next, 12, 0))
		}
		r.expect(done(last, 12, 0))
		r.expect(abi.Fields{Type: abi.TypeTerminated, Flags: abi.FlagFinal, Tag: term.Tag, Conn: id, Length: 1})
		r.wantCounter(abi.CounterConnections, 0)
	}
}

func TestDatagramEnds(t *testing.T) {
	r := newRig(t, 5)
	id, ep := r.datagram(true)
	// Half: sends are CLOSED, the rest goes on.
	terminate := func(mode, ended uint32) {
		t.Helper()
		f := abi.Fields{Type: abi.TypeTermination, Tag: r.Tag(), Conn: id, Length: mode}
		r.post(f)
		r.expect(abi.Fields{Type: abi.TypeTerminated, Flags: abi.FlagFinal, Tag: f.Tag, Conn: id, Length: ended})
	}
	terminate(2, 4)
	f := r.buffer(abi.TypeBufferSend, id, 5)
	r.post(f)
	r.expect(done(f, 12, 0))
	b := r.buffer(abi.TypeBufferAvailable, id, 50)
	r.post(b)
	r.settle()
	ep.Deliver([]byte("x"))
	r.expect(got(b, id, 0, 1))
	terminate(3, 4)
	b = r.buffer(abi.TypeBufferAvailable, id, 50)
	r.post(b)
	r.expect(done(b, 12, 0))
	terminate(0, 0)

	// Graceful: what is queued goes out first.
	id, ep = r.datagram(true, abi.AppendSetScalar(nil, abi.AttrLinger, 0))
	ep.SetRoom(0)
	f = r.buffer(abi.TypeBufferSend, id, 5)
	r.post(f)
	term := abi.Fields{Type: abi.TypeTermination, Tag: r.Tag(), Conn: id}
	r.post(term)
	if seen := r.settle(); len(seen) != 0 {
		t.Fatalf("answered with a send outstanding: %+v", seen)
	}
	ep.SetRoom(1000)
	r.expect(done(f, 0, 5))
	r.expect(abi.Fields{Type: abi.TypeTerminated, Flags: abi.FlagFinal, Tag: term.Tag, Conn: id})
	if c, a := ep.Ends(); c != 1 || a != 0 {
		t.Errorf("%d closes, %d aborts", c, a)
	}

	// Without a peer: cancelled by id, or at a limit.
	id, _ = r.datagram(false)
	b = r.buffer(abi.TypeBufferAvailable, id, 50)
	cancel := abi.Fields{Type: abi.TypeCancellation, Tag: r.Tag(), Conn: id, Offset: b.Tag}
	r.post(b, cancel)
	r.expect(done(b, 2, 0))
	r.expect(abi.Fields{Type: abi.TypeCancelled, Flags: abi.FlagFinal, Tag: cancel.Tag, Conn: id})
	b = r.buffer(abi.TypeBufferAvailable, id, 50)
	cancel = abi.Fields{Type: abi.TypeCancellation, Tag: r.Tag(), Conn: id}
	r.post(b, cancel)
	r.expect(done(b, 2, 0))
	r.expect(abi.Fields{Type: abi.TypeTerminated, Flags: abi.FlagFinal, Aux: 2, Conn: id, Length: 6})
	r.expect(abi.Fields{Type: abi.TypeCancelled, Flags: abi.FlagFinal, Tag: cancel.Tag, Conn: id})
	id, _ = r.datagram(false, abi.AppendSetScalar(nil, abi.AttrListenLimit, 1e9))
	b = r.buffer(abi.TypeBufferAvailable, id, 50)
	r.post(b)
	r.settle()
	r.clock.advance(2e9)
	r.fw.SetPolicyClock(false) // wakes the workers
	r.expect(done(b, 3, 0))
	r.expect(abi.Fields{Type: abi.TypeTerminated, Flags: abi.FlagFinal, Aux: 3, Conn: id, Length: 6})

	// One with a peer is no listener; a drain answers all.
	id, _ = r.datagram(true)
	cancel = abi.Fields{Type: abi.TypeCancellation, Tag: r.Tag(), Conn: id}
	r.post(cancel)
	r.expect(abi.Fields{Type: abi.TypeCancelled, Flags: abi.FlagFinal, Aux: 34, Tag: cancel.Tag, Conn: id})
	b = r.buffer(abi.TypeBufferAvailable, id, 50)
	r.post(b)
	r.settle()
	if s := r.fw.Command(0, abi.QueueDrain, firmware.QueueConfig{}); s != 0 {
		t.Fatal(s)
	}
	r.expect(done(b, 2, 0))
}

func TestDatagramAttributes(t *testing.T) {
	r := newRig(t, 5)
	id, ep := r.datagram(false)
	conn, _ := r.datagram(true)
	stream, _ := r.connect()
	le := binary.LittleEndian
	status := func(id uint64, tuple []byte) abi.Status {
		t.Helper()
		f := r.control(abi.TypeConnectionAttr, 1, tuple)
		f.Conn = id
		_, buf := r.attributeRequest(f)
		s, _ := abi.TupleResult(buf)
		return s
	}
	if p, s := le.Uint64(r.attribute(id, abi.AttrProtocol, 8)), le.Uint64(r.attribute(id, abi.AttrState, 8)); p != 17 || s != 0 {
		t.Errorf("protocol %d, state %d", p, s)
	}
	if s := le.Uint64(r.attribute(conn, abi.AttrState, 8)); s != 4 {
		t.Errorf("state %d with a peer", s)
	}
	for _, a := range []abi.Attribute{
		0x0204, 0x0206, 0x0209, 0x020a, 0x020b, 0x020c, 0x020d, 0x020e, 0x020f, 0x0210, 0x0216, 0x0217,
		0x0280, 0x0281, 0x0283, 0x0288, 0x028b,
	} {
		if s := status(id, abi.AppendGet(nil, a, 8)); s != 16 {
			t.Errorf("get %#x of a datagram endpoint: %v", a, s)
		}
		if s := status(id, abi.AppendSetScalar(nil, a, 1)); s != 16 {
			t.Errorf("set %#x of a datagram endpoint: %v", a, s)
		}
	}
	for a := abi.Attribute(0x0218); a <= 0x021c; a++ {
		if s := status(stream, abi.AppendGet(nil, a, 64)); s != 16 {
			t.Errorf("get %#x of a connection: %v", a, s)
		}
		if s := status(stream, abi.AppendSetScalar(nil, a, 1)); s != 16 {
			t.Errorf("set %#x of a connection: %v", a, s)
		}
	}
	for _, c := range []struct {
		attr  abi.Attribute
		value uint64
		want  abi.Status
		opt   engine.Option
	}{
		{0x0218, 2, 52, 0}, {0x0218, 1, 0, engine.OptBroadcast}, {0x0219, 256, 52, 0}, {0x0219, 0, 0, engine.OptMulticastTTL},
		{0x0219, 9, 0, engine.OptMulticastTTL}, {0x021a, 2, 52, 0}, {0x021a, 0, 0, engine.OptMulticastLoop}, {0x0207, 8192, 0, engine.OptReceiveWindow},
	} {
		if s := status(id, abi.AppendSetScalar(nil, c.attr, c.value)); s != c.want {
			t.Errorf("set %#x to %d: %v", c.attr, c.value, s)
		}
		if v, _ := ep.Option(c.opt); c.want == 0 && uint64(v) != c.value {
			t.Errorf("option of %#x is %d", c.attr, v)
		}
	}
	group := func(s string) []byte {
		return abi.AppendAddress(nil, abi.Address{Addr: netip.MustParseAddr(s)})
	}
	odd := group("239.1.2.3")
	odd[2] = 1 // a port
	for _, c := range []struct {
		attr  abi.Attribute
		value []byte
		want  abi.Status
	}{
		{0x021b, group("239.1.2.3"), 0}, {0x021b, group("239.1.2.4"), 0}, {0x021b, group("239.1.2.3"), 8},
		{0x021b, group("10.0.2.2"), 52}, {0x021b, group("ff02::1"), 52}, {0x021b, odd, 52}, {0x021b, make([]byte, 24), 52},
		{0x021b, make([]byte, 8), 38}, {0x021c, group("239.1.2.3"), 0}, {0x021c, group("239.1.2.3"), 9},
	} {
		if s := status(id, abi.AppendTuple(nil, true, c.attr, c.value)); s != c.want {
			t.Errorf("set %#x to % x: %v, want %v", c.attr, c.value, s, c.want)
		}
	}
	for _, a := range []abi.Attribute{0x021b, 0x021c} {
		if got := r.attribute(id, a, 240); !bytes.Equal(got, group("239.1.2.4")) {
			t.Errorf("groups % x", got)
		}
	}
	if s := status(0, abi.AppendGet(nil, 0x021b, 24)); s != 36 {
		t.Errorf("default of JOIN: %v", s)
	}
	if s := status(0, abi.AppendTuple(nil, true, 0x021b, group("239.1.2.3"))); s != 16 {
		t.Errorf("JOIN of all: %v", s)
	}

	// Limits are those of connections.
	r.attributes(0, 1, abi.AppendSetScalar(nil, abi.AttrMaxConnections, 3))
	target := abi.Target{Protocol: 17, Count: 1, Local: netip.MustParseAddrPort("0.0.0.0:0"), Remote: netip.MustParseAddrPort("0.0.0.0:0")}
	f := r.target(abi.TypeListen, target)
	r.post(f)
	r.expect(abi.Fields{Type: abi.TypeListenResponse, Flags: abi.FlagFinal, Aux: 11, Tag: f.Tag})
	r.wantCounter(abi.CounterConnections, 3)
	target.Backlog = 1
	f = r.target(abi.TypeListen, target)
	r.post(f)
	r.expect(abi.Fields{Type: abi.TypeListenResponse, Flags: abi.FlagFinal, Aux: 33, Tag: f.Tag})
}
