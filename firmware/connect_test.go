// SPDX-License-Identifier: Apache-2.0

package firmware_test

import (
	"encoding/binary"
	"net/netip"
	"testing"
	"time"

	"toebox/firmware/engine"
	"toebox/vdev/abi"
)

func appendTarget(b []byte, t abi.Target) []byte {
	return abi.AppendTuple(b, true, abi.AttrTarget, abi.AppendTarget(nil, t))
}

// TestConnectFails maps how a handshake ends to a status.
func TestConnectFails(t *testing.T) {
	for _, c := range []struct {
		name string
		err  error
		want abi.Status
	}{
		{"timed out", engine.ErrTimedOut, 3},
		{"refused", engine.ErrRefused, 4},
		{"host unreachable", engine.ErrHostUnreachable, 6},
		{"network unreachable", engine.ErrNetUnreachable, 7},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := newRig(t, 4)
			f := r.target(abi.TypeConnect, connectTarget())
			r.post(f)
			r.settle()
			r.fake.Last().Fail(c.err)
			r.expect(abi.Fields{
				Type: abi.TypeCompletion, Flags: abi.FlagFinal, Aux: uint16(c.want), Tag: f.Tag, Base: 0xc00c1e,
			})
			if closes, aborts := r.fake.Last().Ends(); closes+aborts != 1 {
				t.Errorf("closed %d times, aborted %d times", closes, aborts)
			}
			r.wantCounter(abi.CounterConnections, 0)
			r.wantCounter(abi.CounterConnectsFailed, 1)
		})
	}
}

// TestConnectRefusedTargets gives each bad target a result of its own.
func TestConnectRefusedTargets(t *testing.T) {
	r := newRig(t, 5)
	good := connectTarget()
	change := func(f func(*abi.Target)) abi.Target {
		x := good
		f(&x)
		return x
	}
	tuple := func(t abi.Target) []byte { return appendTarget(nil, t) }
	raw := func(at int, v byte) []byte {
		b := tuple(good)
		b[8+at] = v
		return b
	}
	var tuples []byte
	cases := []struct {
		name  string
		tuple []byte
		want  abi.Status
	}{
		{"protocol", raw(0, 1), 42},
		{"UDP backlog", append(append([]byte(nil), raw(0, 17)[:8+48]...), append([]byte{1}, raw(0, 17)[8+49:]...)...), 33},
		{"family", raw(1, 5), 9},
		{"count 0", raw(2, 0), 52},
		{"reserved", raw(52, 1), 33},
		{"backlog", raw(48, 1), 33},
		{"length", abi.AppendTuple(nil, true, abi.AttrTarget, make([]byte, 63)), 38},
		{"no remote port", tuple(change(func(t *abi.Target) { t.Remote = netip.MustParseAddrPort("10.0.2.2:0") })), 52},
		{"no remote address", tuple(change(func(t *abi.Target) { t.Remote = netip.MustParseAddrPort("0.0.0.0:80") })), 9},
		{"multicast", tuple(change(func(t *abi.Target) { t.Remote = netip.MustParseAddrPort("224.0.0.1:80") })), 9},
		{"broadcast", tuple(change(func(t *abi.Target) { t.Remote = netip.MustParseAddrPort("255.255.255.255:80") })), 9},
	}
	for _, c := range cases {
		tuples = append(tuples, c.tuple...)
	}
	tuples = append(tuples, tuple(good)...)
	f := r.control(abi.TypeConnect, len(cases)+1, tuples)
	r.post(f)
	for i, c := range cases {
		got := r.next()
		if got.Type != abi.TypeCompletion || got.Tag != f.Tag || got.Aux != uint16(c.want) || got.Offset != uint32(i) ||
			got.Conn != 0 || got.Flags != 0 {
			t.Errorf("%s: %+v, want status %d", c.name, got, c.want)
		}
	}
	r.settle()
	r.fake.Last().Establish()
	if got := r.next(); got.Aux != 0 || got.Offset != uint32(len(cases)) || got.Flags != abi.FlagFinal {
		t.Errorf("the good one: %+v", got)
	}
}

// TestConnectAttributes checks that attribute tuples hold for the targets behind
// them, and that a bad one fails the request before anything is done.
func TestConnectAttributes(t *testing.T) {
	r := newRig(t, 4)
	one := connectTarget()
	tuples := abi.AppendSetScalar(nil, abi.AttrTTL, 9)
	tuples = appendTarget(tuples, one)
	tuples = abi.AppendSetScalar(tuples, abi.AttrTTL, 64)
	tuples = abi.AppendSetScalar(tuples, abi.AttrNagle, 1)
	one.Local = netip.MustParseAddrPort("10.0.2.15:1234")
	tuples = appendTarget(tuples, one)
	r.post(r.control(abi.TypeConnect, 5, tuples))
	r.settle()
	eps := r.fake.Endpoints()
	option := func(i int, o engine.Option) int64 {
		v, err := eps[i].Option(o)
		if err != nil {
			t.Error(err)
		}
		return v
	}
	if option(0, engine.OptTTL) != 9 || option(1, engine.OptTTL) != 0 || option(0, engine.OptNoDelay) != 0 {
		t.Error("wrong options for the first or TTL for the second")
	}
	if option(0, engine.OptReceiveWindow) != 512<<10 || option(1, engine.OptSendBuffer) != 512<<10 {
		t.Error("windows were not set")
	}
	if got := eps[1].Info().Local; got != one.Local {
		t.Errorf("local address %v", got)
	}
	for _, c := range []struct {
		name   string
		tuples []byte
		n      int
		want   uint16
	}{
		{"unknown", abi.AppendSetScalar(nil, 0x7fff, 1), 2, 48},
		{"of the adapter", abi.AppendSetScalar(nil, abi.AttrMaxConnections, 1), 2, 48},
		{"read only", abi.AppendSetScalar(nil, abi.AttrRTT, 1), 2, 49},
		{"get", abi.AppendGet(nil, abi.AttrTTL, 8), 2, 50},
		{"length", abi.AppendTuple(nil, true, abi.AttrTTL, []byte{1}), 2, 38},
		{"value", abi.AppendSetScalar(nil, abi.AttrTTL, 0), 2, 52},
		{"congestion", abi.AppendSetScalar(nil, abi.AttrCongestion, 1), 2, 16},
		{"pattern without one", abi.AppendTuple(nil, true, abi.AttrNotifyPattern, []byte{1, 15: 0}), 2, 52},
		{"no target", abi.AppendSetScalar(nil, abi.AttrTTL, 1), 1, 41},
		{"too few", nil, 2, 41},
	} {
		f := r.control(abi.TypeConnect, c.n, append(c.tuples, appendTarget(nil, one)...))
		r.post(f)
		if got := r.next(); got.Aux != c.want || got.Offset != abi.NoOrdinal || got.Tag != f.Tag || got.Flags != abi.FlagFinal {
			t.Errorf("%s: %+v, want status %d", c.name, got, c.want)
		}
	}
	if n := len(r.fake.Endpoints()); n != 2 {
		t.Errorf("%d endpoints", n)
	}
}

// TestConnectLimit checks the time limits of targets.
func TestConnectLimit(t *testing.T) {
	r := newRig(t, 4)
	a, b := connectTarget(), connectTarget()
	a.Limit, a.Cookie = 2e9, 1
	b.Cookie = 2
	tuples := abi.AppendSetScalar(nil, abi.AttrConnectLimit, 1e9)
	tuples = appendTarget(appendTarget(tuples, a), b)
	f := r.control(abi.TypeConnect, 3, tuples)
	r.post(f)
	r.settle()
	r.clock.advance(time.Second)
	r.fw.Doorbell(0, 0)
	r.expect(abi.Fields{Type: abi.TypeCompletion, Aux: 3, Tag: f.Tag, Base: 2, Offset: 1})
	r.clock.advance(time.Second - 1)
	if extra := r.settle(); len(extra) != 0 {
		t.Fatalf("too early: %+v", extra)
	}
	r.clock.advance(1)
	r.fw.Doorbell(0, 0)
	r.expect(abi.Fields{Type: abi.TypeCompletion, Flags: abi.FlagFinal, Aux: 3, Tag: f.Tag, Base: 1})
}

// TestConnectLimitWakes lets the worker's own timer end a handshake, with the
// system's clock.
func TestConnectLimitWakes(t *testing.T) {
	r := newRig(t, 4)
	r.fw.Close()
	r.start(r.fake, 4) // the system's clock
	x := connectTarget()
	x.Limit = uint64(time.Millisecond)
	r.post(r.target(abi.TypeConnect, x))
	if f := r.next(); f.Aux != 3 {
		t.Errorf("response %+v", f)
	}
}

// TestConnectMany names more targets than the output table and the adapter's
// memory for responses hold.
func TestConnectMany(t *testing.T) {
	const count = 9000
	r := newRig(t, 4)
	// 8 of them fit, besides the connection below.
	if f, _ := r.attributes(0, 1, abi.AppendSetScalar(nil, abi.AttrMaxConnections, 9)); f.Aux != 0 {
		t.Fatalf("set: %+v", f)
	}
	// A listener and a connection, which stand still while the adapter is full.
	r.post(r.target(abi.TypeListen, abi.Target{Protocol: 6, Count: 1,
		Local: netip.MustParseAddrPort("0.0.0.0:80"), Remote: netip.MustParseAddrPort("0.0.0.0:0")}))
	r.next()
	listener := r.fake.Last()
	id, conn := r.connect()
	own := r.buffer(abi.TypeBufferAvailable, id, 8)
	r.post(own)
	r.settle()
	x := connectTarget()
	x.Count = count
	f := r.target(abi.TypeConnect, x)
	r.post(f)
	if err := r.Wait("the adapter to be full", func() bool { return r.fw.QueueStatus(0).Held >= 4096 }); err != nil {
		t.Fatal(err)
	}
	// Nothing is taken now, and nothing is lost.
	before := r.fw.QueueStatus(0).InIndex
	listener.Arrive(peer)
	conn.Deliver([]byte("12345678"))
	late := r.buffer(abi.TypeBufferAvailable, 0, 8)
	r.Publish(late)
	r.fw.Doorbell(0, 0)
	if err := r.Wait("a pass without a request", func() bool { return r.counter(abi.CounterRequestsStalled) > 0 }); err != nil {
		t.Fatal(err)
	}
	if n := r.fw.QueueStatus(0).InIndex; n != before {
		t.Errorf("%d requests were taken", n.Sub(before))
	}
	r.wantCounter(abi.CounterArrivalsRefused, 0)
	r.wantCounter(abi.CounterBytesDelivered, 0)
	seen := make([]bool, count)
	for i := range count - 8 + 1 {
		got := r.next()
		if got.Tag == own.Tag && got.Length == 8 {
			continue
		}
		if got.Tag != f.Tag || got.Aux != 11 || got.Flags != 0 || got.Offset >= count || seen[got.Offset] {
			t.Fatalf("response %d: %+v", i, got)
		}
		seen[got.Offset] = true
	}
	// The request is cancelled: those that are left are answered first.
	cancel := abi.Fields{Type: abi.TypeCancellation, Tag: r.Tag(), Offset: f.Tag}
	r.post(cancel)
	for i := range 8 {
		got := r.next()
		if got.Tag != f.Tag || got.Aux != 2 || got.Offset >= count || seen[got.Offset] || (got.Flags == abi.FlagFinal) != (i == 7) {
			t.Fatalf("cancelled %d: %+v", i, got)
		}
		seen[got.Offset] = true
	}
	r.expect(abi.Fields{Type: abi.TypeCancelled, Flags: abi.FlagFinal, Tag: cancel.Tag})
	for _, e := range r.fake.Endpoints() {
		if closes, aborts := e.Ends(); closes+aborts != 1 && e != listener && e != conn {
			t.Fatalf("closed %d times, aborted %d times", closes, aborts)
		}
	}
	r.wantCounter(abi.CounterConnectionsPeak, 9)
	r.wantCounter(abi.CounterArrivalsRefused, 1)
	r.wantCounter(abi.CounterMemoryUsed, 2*8192+64) // and the late buffer
}

// TestDrainJob drains a queue with targets that were not even looked at.
func TestDrainJob(t *testing.T) {
	r := newRig(t, 4)
	x := connectTarget()
	x.Count = 20_000
	f := r.target(abi.TypeConnect, x)
	r.post(f)
	if err := r.Wait("connects", func() bool { return r.counter(abi.CounterConnects) > 0 }); err != nil {
		t.Fatal(err)
	}
	r.fw.Command(0, abi.QueueDrain, r.Config)
	for i := range 20_000 {
		if got := r.next(); got.Tag != f.Tag || got.Aux != 2 || (got.Flags == abi.FlagFinal) != (i == 19_999) {
			t.Fatalf("response %d: %+v", i, got)
		}
	}
	if err := r.State(abi.QueueDrained); err != nil {
		t.Fatal(err)
	}
}

// TestListen opens listeners and announces what arrives.
func TestListen(t *testing.T) {
	r := newRig(t, 5)
	x := abi.Target{Protocol: 6, Count: 2, Local: netip.MustParseAddrPort("10.0.2.15:8000"),
		Remote: netip.MustParseAddrPort("0.0.0.0:0"), Cookie: 9}
	tuples := abi.AppendSetScalar(nil, abi.AttrTOS, 8)
	tuples = appendTarget(tuples, x)
	for _, bad := range []func(*abi.Target){
		func(t *abi.Target) { t.Remote = peer },
		func(t *abi.Target) { t.Backlog = 65537 },
	} {
		y := x
		y.Count = 1
		bad(&y)
		tuples = appendTarget(tuples, y)
	}
	tuples = abi.AppendSetScalar(tuples, abi.AttrSACK, 0)
	tuples = appendTarget(tuples, x)
	f := r.control(abi.TypeListen, 6, tuples)
	r.post(f)
	var ids []uint64
	for i, want := range []uint16{0, 0, 33, 52, 16, 16} {
		got := r.next()
		flags := abi.Flags(0)
		if i == 5 {
			flags = abi.FlagFinal
		}
		port := uint32(0)
		if want == 0 {
			port = 8000 + uint32(i)
		}
		if (got != abi.Fields{Type: abi.TypeListenResponse, Flags: flags, Aux: want, Tag: f.Tag, Base: 9,
			Conn: got.Conn, Length: port, Offset: uint32(i)}) || (got.Conn == 0) != (want != 0) {
			t.Fatalf("listen %d: %+v, want status %d", i, got, want)
		}
		ids = append(ids, got.Conn)
	}
	l := r.fake.Endpoints()[1]
	c := l.Arrive(netip.MustParseAddrPort("192.168.1.2:5000"))
	c.Deliver([]byte("GET"))
	bulk := r.buffer(abi.TypeBufferAvailable, 0, 8)
	r.post(bulk)
	got := r.next()
	if (got != abi.Fields{Type: abi.TypeArrival, Flags: abi.FlagFinal, Base: ids[1], Conn: got.Conn,
		Length: 0xc0a80102, Offset: 8001<<16 | 5000}) {
		t.Fatalf("arrival %+v", got)
	}
	r.expect(abi.Fields{
		Type: abi.TypeBufferReceive, Flags: abi.FlagFinal, Tag: bulk.Tag, Base: bulk.Base, Conn: got.Conn, Length: 3,
	})
	if v, _ := c.Option(engine.OptTOS); v != 8 {
		t.Errorf("TOS %d", v)
	}

	// No room for a third connection: it is reset.
	if f, _ := r.attributes(0, 1, abi.AppendSetScalar(nil, abi.AttrMaxConnections, 1)); f.Aux != 0 {
		t.Fatalf("set: %+v", f)
	}
	refused := l.Arrive(netip.MustParseAddrPort("192.168.1.2:5001"))
	if extra := r.settle(); len(extra) != 0 {
		t.Fatalf("unexpected %+v", extra)
	}
	if _, aborts := refused.Ends(); aborts != 1 {
		t.Errorf("aborted %d times", aborts)
	}
	r.wantCounter(abi.CounterArrivalsRefused, 1)

	// A listener ends by termination or by cancellation.
	end := abi.Fields{Type: abi.TypeTermination, Tag: r.Tag(), Conn: ids[0]}
	cancel := abi.Fields{Type: abi.TypeCancellation, Tag: r.Tag(), Conn: ids[1]}
	r.post(end, cancel)
	r.expect(terminated(end, 6))
	r.expect(abi.Fields{Type: abi.TypeTerminated, Flags: abi.FlagFinal, Aux: 2, Conn: ids[1], Length: 6})
	r.expect(abi.Fields{Type: abi.TypeCancelled, Flags: abi.FlagFinal, Tag: cancel.Tag, Conn: ids[1]})
	if closes, _ := l.Ends(); closes != 1 {
		t.Errorf("closed %d times", closes)
	}
}

// TestListenV6 announces an IPv6 peer without its address.
func TestListenV6(t *testing.T) {
	r := newRig(t, 4)
	f := r.target(abi.TypeListen, abi.Target{Protocol: 6, Count: 1, V6: true,
		Local: netip.MustParseAddrPort("[::]:80"), Remote: netip.MustParseAddrPort("[::]:0")})
	r.post(f)
	l := r.next()
	remote := netip.MustParseAddrPort("[2001:db8::2]:4000")
	r.fake.Last().Arrive(remote)
	got := r.next()
	if (got != abi.Fields{Type: abi.TypeArrival, Flags: abi.FlagFinal, Base: l.Conn, Conn: got.Conn, Offset: 80<<16 | 4000}) {
		t.Fatalf("arrival %+v", got)
	}
	a, ok := abi.ParseAddress(r.attribute(got.Conn, abi.AttrRemote, 24))
	if !ok || a.Addr != remote.Addr() || a.Port != 4000 {
		t.Errorf("REMOTE is %+v", a)
	}
}

// TestListenLimit ends a listener by itself.
func TestListenLimit(t *testing.T) {
	r := newRig(t, 4)
	x := abi.Target{Protocol: 6, Count: 1, Limit: 3e9}
	x.Local, x.Remote = netip.MustParseAddrPort("0.0.0.0:80"), netip.MustParseAddrPort("0.0.0.0:0")
	r.post(r.target(abi.TypeListen, x))
	id := r.next().Conn
	r.clock.advance(3 * time.Second)
	r.fw.Doorbell(0, 0)
	r.expect(abi.Fields{Type: abi.TypeTerminated, Flags: abi.FlagFinal, Aux: 3, Conn: id, Length: 6})
	r.wantCounter(abi.CounterMemoryUsed, 0)
}

// TestSteering spreads accepted connections over queues that run.
func TestSteering(t *testing.T) {
	r := newRig(t, 5)
	other := r.second(3)
	x := abi.Target{Protocol: 6, Count: 1, Local: netip.MustParseAddrPort("0.0.0.0:80"), Remote: netip.MustParseAddrPort("0.0.0.0:0")}
	// Queue 5 does not run.
	tuples := appendTarget(abi.AppendSetScalar(nil, abi.AttrSteering, 1<<0|1<<3|1<<5), x)
	r.post(r.control(abi.TypeListen, 2, tuples))
	l := r.next()
	counts := map[*rig]int{}
	for i := range uint16(12) {
		c := r.fake.Endpoints()[0].Arrive(netip.AddrPortFrom(peer.Addr(), 1000+i))
		c.Deliver([]byte{byte(i)})
	}
	for _, q := range []*rig{r, other} {
		for range 6 {
			q.post(q.buffer(abi.TypeBufferAvailable, 0, 8))
		}
		for range 12 {
			switch f := q.next(); {
			case f.Type == abi.TypeArrival && f.Base == l.Conn:
				counts[q]++
			case f.Type == abi.TypeBufferReceive && f.Aux == 0:
			default:
				t.Fatalf("unexpected %+v", f)
			}
		}
	}
	if counts[r] != 6 || counts[other] != 6 {
		t.Errorf("queue 0 got %d, queue 3 %d", counts[r], counts[other])
	}
}

// TestIDs checks that ids are of this generation and never the same.
func TestIDs(t *testing.T) {
	r := newRig(t, 4)
	last := uint64(0)
	for range 5 {
		id, _ := r.connect()
		if id>>48 != 7 || id <= last {
			t.Errorf("id %#x after %#x", id, last)
		}
		last = id
		end := abi.Fields{Type: abi.TypeTermination, Tag: r.Tag(), Conn: id, Length: 1}
		r.post(end)
		r.expect(terminated(end, 1))
	}
	if n := binary.LittleEndian.Uint64(r.attribute(0, abi.AttrEndpointCount, 8)); n != 0 {
		t.Errorf("%d endpoints", n)
	}
}
