// SPDX-License-Identifier: Apache-2.0

package enginetest_test

import (
	"errors"
	"io"
	"net/netip"
	"testing"
	"time"

	"toebox/firmware/engine"
	"toebox/firmware/engine/enginetest"
)

// recorder is a sink that keeps the events since it was last asked.
type recorder struct{ ev engine.Events }

func (r *recorder) Notify(ev engine.Events) { r.ev |= ev }

func (r *recorder) take() engine.Events {
	ev := r.ev
	r.ev = 0
	return ev
}

func (r *recorder) want(t *testing.T, what string, ev engine.Events) {
	t.Helper()
	if got := r.take(); got != ev {
		t.Errorf("%s: events %07b, want %07b", what, got, ev)
	}
}

var server = netip.MustParseAddrPort("192.0.2.1:80")

func dial(t *testing.T, e *enginetest.Engine, p engine.Protocol) (engine.Endpoint, *enginetest.Endpoint, *recorder) {
	t.Helper()
	r := new(recorder)
	ep, err := e.Open(p, false, r)
	if err != nil {
		t.Fatal(err)
	}
	if err := ep.Connect(server); err != nil {
		t.Fatal(err)
	}
	return ep, e.Last(), r
}

func TestStream(t *testing.T) {
	e := enginetest.NewEngine()
	if err := e.SetAddresses([]netip.Prefix{netip.MustParsePrefix("192.0.2.9/24")}); err != nil {
		t.Fatal(err)
	}
	ep, fake, r := dial(t, e, engine.TCP)
	if err := ep.ConnectResult(); err != engine.ErrWouldBlock {
		t.Errorf("result %v", err)
	}
	if _, err := ep.Write(1, func([]byte) error { return nil }); err != engine.ErrWouldBlock {
		t.Errorf("write while connecting: %v", err)
	}
	r.want(t, "connecting", 0)
	fake.Establish()
	r.want(t, "established", engine.EventConnected|engine.EventWritable)
	if err := ep.ConnectResult(); err != nil {
		t.Errorf("result %v", err)
	}
	if i := ep.Info(); i.Local != netip.MustParseAddrPort("192.0.2.9:49152") || i.Remote != server || i.State != engine.StateEstablished {
		t.Errorf("%+v", i)
	}

	fake.SetRoom(100)
	next := byte(0)
	count := func(p []byte) error {
		for i := range p {
			p[i], next = next, next+1
		}
		return nil
	}
	if n, err := ep.Write(150, count); n != 100 || err != engine.ErrWouldBlock {
		t.Errorf("write %d, %v", n, err)
	}
	if n := fake.Ack(40); n != 40 || ep.Writable() != 40 {
		t.Errorf("acknowledged %d, room %d", n, ep.Writable())
	}
	r.want(t, "acknowledged", engine.EventAcked|engine.EventWritable)
	if n, err := ep.Write(30, func([]byte) error { return io.EOF }); n != 0 || err != io.EOF {
		t.Errorf("failing fill: %d, %v", n, err)
	}
	if n, err := ep.Write(30, count); n != 30 || err != nil {
		t.Errorf("write %d, %v", n, err)
	}
	sent := fake.Sent()
	if len(sent) != 130 || sent[129] != 129 {
		t.Errorf("sent % x", sent)
	}

	fake.Deliver([]byte("hello "))
	fake.Deliver([]byte("world"))
	r.want(t, "delivered", engine.EventReadable)
	var got []byte
	keep := func(p []byte) int { got = append(got, p...); return len(p) }
	if n, err := ep.Peek(7, keep); n != 7 || err != nil || string(got) != "hello w" {
		t.Errorf("peek %d, %v, %q", n, err, got)
	}
	got = nil
	if n, err := ep.Read(3, keep); n != 3 || err != nil || fake.Unread() != 8 {
		t.Errorf("read %d, %v, unread %d", n, err, fake.Unread())
	}
	if n, err := ep.Read(100, keep); n != 8 || err != nil || string(got) != "hello world" {
		t.Errorf("read %d, %v, %q", n, err, got)
	}
	if _, err := ep.Read(1, keep); err != engine.ErrWouldBlock {
		t.Errorf("read %v", err)
	}
	fake.DeliverFIN()
	r.want(t, "FIN", engine.EventReadable)
	if _, err := ep.Read(1, keep); err != engine.ErrEndOfStream {
		t.Errorf("read %v", err)
	}
	if err := ep.CloseWrite(); err != nil || !fake.FINSent() || ep.Info().State != engine.StateLastAck {
		t.Errorf("close write: %v, %+v", err, ep.Info())
	}
	fake.AckFIN()
	r.want(t, "all acknowledged", engine.EventAcked|engine.EventClosed)
	if i := ep.Info(); i.Acked != 130 || i.Queued != 130 || i.Delivered != 11 || i.Received != 11 || i.State != engine.StateClosed {
		t.Errorf("%+v", i)
	}
	ep.Close()
	fake.Deliver([]byte("late"))
	r.want(t, "after close", 0)
	if c, a := fake.Ends(); c != 1 || a != 0 || e.Stats().Endpoints != 0 {
		t.Errorf("%d closes, %d aborts, %+v", c, a, e.Stats())
	}
}

func TestFailures(t *testing.T) {
	e := enginetest.NewEngine()
	ep, fake, r := dial(t, e, engine.TCP)
	fake.Refuse()
	r.want(t, "refused", engine.EventConnected|engine.EventClosed|engine.EventReadable|engine.EventWritable)
	if err := ep.ConnectResult(); err != engine.ErrRefused {
		t.Errorf("result %v", err)
	}

	e.OnConnect = (*enginetest.Endpoint).Establish
	ep, fake, r = dial(t, e, engine.TCP)
	r.want(t, "at once", engine.EventConnected|engine.EventWritable)
	fake.Deliver([]byte("x"))
	fake.Reset()
	if n, err := ep.Read(1, func([]byte) int { return 1 }); n != 1 || err != nil {
		t.Errorf("data before the reset: %d, %v", n, err)
	}
	if _, err := ep.Read(1, nil); err != engine.ErrReset || ep.ConnectResult() != nil {
		t.Errorf("read %v, result %v", err, ep.ConnectResult())
	}
	e.RefuseOpen(engine.ErrNoMemory)
	if _, err := e.Open(engine.TCP, false, r); err != engine.ErrNoMemory {
		t.Errorf("open %v", err)
	}
	if err := e.Close(); err != nil {
		t.Error(err)
	}
	if _, a := fake.Ends(); a != 1 {
		t.Errorf("%d aborts", a)
	}
}

func TestListener(t *testing.T) {
	e := enginetest.NewEngine()
	r := new(recorder)
	l, err := e.Open(engine.TCP, false, r)
	if err != nil {
		t.Fatal(err)
	}
	local := netip.MustParseAddrPort("0.0.0.0:80")
	if err := errors.Join(l.Bind(local), l.Listen(1)); err != nil {
		t.Fatal(err)
	}
	other, _ := e.Open(engine.TCP, false, r)
	if err := other.Bind(local); err != engine.ErrAddressInUse {
		t.Errorf("second bind: %v", err)
	}
	fake := e.Endpoints()[0]
	remote := netip.MustParseAddrPort("198.51.100.7:1234")
	a := fake.Arrive(remote)
	r.want(t, "arrival", engine.EventReadable)
	if fake.Arrive(remote) != nil || e.Stats().ListenOverflows != 1 {
		t.Error("the backlog of one took two")
	}
	a.Deliver([]byte("early"))
	ar := new(recorder)
	ep, err := l.Accept(func(engine.Endpoint) engine.Sink { return ar })
	if err != nil || ep.Info().Remote != remote || ep.Info().Local.Port() != 80 {
		t.Fatalf("accept %v", err)
	}
	if n, err := ep.Read(9, func(p []byte) int { return len(p) }); n != 5 || err != nil {
		t.Errorf("early bytes: %d, %v", n, err)
	}
	a.Deliver([]byte("more"))
	ar.want(t, "bytes", engine.EventReadable)
	if _, err := l.Accept(nil); err != engine.ErrWouldBlock {
		t.Errorf("accept %v", err)
	}
	fake.Arrive(remote)
	l.Close()
	if _, aborts := e.Last().Ends(); aborts != 1 {
		t.Error("an arrival that nobody took outlives its listener")
	}
}

func TestDatagrams(t *testing.T) {
	e := enginetest.NewEngine()
	ep, fake, r := dial(t, e, engine.UDP)
	r.want(t, "connected", engine.EventConnected|engine.EventWritable)
	for n := range 2 {
		if k, err := ep.Write(n, func(p []byte) error { p[0] = 7; return nil }); k != n || err != nil {
			t.Errorf("write %d, %v", k, err)
		}
	}
	if d := fake.Datagrams(); len(d) != 2 || len(d[0]) != 0 || len(d[1]) != 1 || ep.Info().Acked != 1 {
		t.Errorf("sent %v", d)
	}
	fake.Deliver([]byte("abc"))
	fake.Deliver([]byte("de"))
	for _, want := range []int{2, 2} {
		if n, err := ep.Read(2, func(p []byte) int { return len(p) }); n != want || err != nil {
			t.Errorf("read %d, %v", n, err)
		}
	}
	if _, err := ep.Read(2, nil); err != engine.ErrWouldBlock {
		t.Errorf("read %v", err)
	}
}

func TestClock(t *testing.T) {
	c := enginetest.NewClock()
	start := c.Now()
	var got []string
	at := func(name string) func() {
		return func() { got = append(got, name+c.Now().Sub(start).String()) }
	}
	c.AfterFunc(2*time.Second, at("b"))
	c.AfterFunc(time.Second, func() {
		at("a")()
		c.AfterFunc(500*time.Millisecond, at("n"))
	})
	stopped := c.AfterFunc(time.Second, at("x"))
	if !stopped.Stop() || stopped.Stop() {
		t.Error("stop does not say whether it came in time")
	}
	c.AfterFunc(2*time.Second, at("c"))
	late := c.AfterFunc(time.Minute, at("l"))
	c.Advance(3 * time.Second)
	late.Reset(0)
	c.Advance(0)
	want := []string{"a1s", "n1.5s", "b2s", "c2s", "l3s"}
	if len(got) != len(want) {
		t.Fatalf("%v, want %v", got, want)
	}
	for i := range want {
		if got[i] != want[i] {
			t.Errorf("%v, want %v", got, want)
		}
	}
}
