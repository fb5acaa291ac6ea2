// SPDX-License-Identifier: Apache-2.0

package engine_test

import (
	"errors"
	"io"
	"testing"

	"toebox/firmware/engine"
	"toebox/firmware/engine/enginetest"
)

// world is an engine with somebody at the other end of its connections.
type world struct {
	name string
	engine.Engine
	// meet connects an endpoint to the other end.
	meet func(t *testing.T, ep peer) other
}

// other is the peer of a connection.
type other struct {
	deliver func([]byte)
	fin     func()
	reset   func()
	read    func(n int) []byte
}

// The fake answers as the real engine does.
func TestFakeIsLikeTheRealOne(t *testing.T) {
	for _, fake := range []bool{true, false} {
		w := realWorld(t)
		if fake {
			w = fakeWorld()
		}
		t.Run(w.name, func(t *testing.T) { script(t, w) })
	}
}

func script(t *testing.T, w world) {
	want := func(what string, n int, err error, wantN int, wantErr error) {
		t.Helper()
		if n != wantN || !errors.Is(err, wantErr) {
			t.Errorf("%s: %d, %v, want %d, %v", what, n, err, wantN, wantErr)
		}
	}
	all := func(p []byte) int { return len(p) }
	zero := func([]byte) error { return nil }

	idle := open(t, w, engine.TCP, false)
	n, err := idle.Read(1, all)
	want("read of an idle endpoint", n, err, 0, engine.ErrNotConnected)
	n, err = idle.Write(0, zero)
	want("write of nothing", n, err, 0, nil)
	want("result of an idle endpoint", 0, idle.ConnectResult(), 0, engine.ErrNotConnected)
	want("FIN of an idle endpoint", 0, idle.CloseWrite(), 0, engine.ErrNotConnected)
	_, err = idle.Accept(nil)
	want("accept of an idle endpoint", 0, err, 0, engine.ErrInvalidState)
	want("bind", 0, idle.Bind(mustAddrPort("0.0.0.0:99")), 0, nil)
	want("connect to nowhere", 0, idle.Connect(mustAddrPort("0.0.0.0:80")), 0, engine.ErrBadAddress)
	idle.Close()

	c := open(t, w, engine.TCP, false)
	o := w.meet(t, c)
	want("result", 0, c.ConnectResult(), 0, nil)
	want("second connect", 0, c.Connect(mustAddrPort("198.18.0.1:80")), 0, engine.ErrInvalidState)
	want("listen of a connection", 0, c.Listen(1), 0, engine.ErrInvalidState)
	n, err = c.Read(1, all)
	want("read of nothing", n, err, 0, engine.ErrWouldBlock)
	n, err = c.Read(0, all)
	want("read without limit", n, err, 0, nil)
	n, err = c.Write(10, func([]byte) error { return io.EOF })
	want("failing fill", n, err, 0, io.EOF)
	if err := c.SetOption(engine.OptSendBuffer, 1<<20); err != nil {
		t.Error(err)
	}
	n, err = c.Write(100_000, zero)
	want("write", n, err, 100_000, nil)
	if got := o.read(100_000); len(got) != 100_000 {
		t.Errorf("%d bytes arrived", len(got))
	}
	c.ev.until(t, "acknowledgement", func() bool { return c.Info().Acked == 100_000 })
	if r := c.Writable(); r != 1<<20 {
		t.Errorf("room %d", r)
	}
	o.deliver([]byte("abc"))
	c.ev.until(t, "bytes", func() bool { return c.Info().Received == 3 })
	n, err = c.Peek(9, all)
	want("peek", n, err, 3, nil)
	n, err = c.Read(2, all)
	want("read", n, err, 2, nil)
	o.fin()
	c.ev.until(t, "FIN", func() bool { return c.Info().State == engine.StateCloseWait })
	n, err = c.Read(9, all)
	want("read before the end", n, err, 1, nil)
	n, err = c.Read(9, all)
	want("read at the end", n, err, 0, engine.ErrEndOfStream)
	want("FIN", 0, c.CloseWrite(), 0, nil)
	want("second FIN", 0, c.CloseWrite(), 0, nil)
	n, err = c.Write(1, zero)
	want("write after the FIN", n, err, 0, engine.ErrClosed)
	c.Close()

	c = open(t, w, engine.TCP, false)
	o = w.meet(t, c)
	o.reset()
	c.ev.until(t, "reset", func() bool { return c.ev.seen(engine.EventClosed | engine.EventReadable | engine.EventWritable) })
	n, err = c.Read(1, all)
	want("read after a reset", n, err, 0, engine.ErrReset)
	n, err = c.Write(1, zero)
	want("write after a reset", n, err, 0, engine.ErrReset)
	want("FIN after a reset", 0, c.CloseWrite(), 0, engine.ErrReset)
	want("result after a reset", 0, c.ConnectResult(), 0, nil)
	want("error after a reset", 0, c.Err(), 0, engine.ErrReset)
	if s := c.Info().State; s != engine.StateClosed {
		t.Errorf("state %d", s)
	}
	c.Abort()
	want("open endpoints", int(w.Stats().Endpoints), nil, 0, nil)
}

func realWorld(t *testing.T) world {
	a, b := twoEngines(t, enginetest.PipeOptions{}, nil)
	l := listen(t, a, false, 80, 4)
	return world{"real", b, func(t *testing.T, c peer) other {
		if err := c.Connect(addrPort(a.v4, 80)); err != nil {
			t.Fatal(err)
		}
		c.ev.until(t, "the handshake", func() bool { return c.ev.seen(engine.EventConnected) })
		s := accept(t, l)
		return other{
			deliver: func(p []byte) { send(t, s, p) },
			fin:     func() { _ = s.CloseWrite() },
			reset:   s.Abort,
			read:    func(n int) []byte { return receive(t, s, n) },
		}
	}}
}

func fakeWorld() world {
	e := enginetest.NewEngine()
	e.OnConnect = (*enginetest.Endpoint).Establish
	return world{"fake", e, func(t *testing.T, c peer) other {
		if err := c.Connect(mustAddrPort("198.18.0.1:80")); err != nil {
			t.Fatal(err)
		}
		s := e.Last()
		return other{
			deliver: s.Deliver,
			fin:     s.DeliverFIN,
			reset:   s.Reset,
			read: func(int) []byte {
				got := s.Sent()
				s.Ack(len(got))
				return got
			},
		}
	}}
}
