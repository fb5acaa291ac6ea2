// SPDX-License-Identifier: Apache-2.0

package engine_test

import (
	"errors"
	"sync/atomic"
	"testing"

	"toebox/firmware/engine"
	"toebox/firmware/engine/enginetest"
)

func flowOf(t testing.TB, p peer) engine.Flow {
	t.Helper()
	f, err := p.Endpoint.(engine.Tracker).Flow()
	if err != nil {
		t.Fatal(err)
	}
	return f
}

// The two ends of a connection at rest describe it alike.
func TestFlowAgrees(t *testing.T) {
	for _, v6 := range []bool{false, true} {
		a, b := twoEngines(t, enginetest.PipeOptions{}, nil)
		l := listen(t, a, v6, 80, 16)
		to := a.v4
		if v6 {
			to = a.v6
		}
		c := connect(t, b, v6, addrPort(to, 80))
		s := accept(t, l)
		check := func(sent, received int) {
			t.Helper()
			c.ev.until(t, "the acknowledgement", func() bool { return c.Info().Acked == uint64(sent) })
			s.ev.until(t, "the acknowledgement", func() bool { return s.Info().Acked == uint64(received) })
			f, g := flowOf(t, c), flowOf(t, s)
			if f.Local != g.Remote || f.Remote != g.Local || f.State != engine.StateEstablished || g.State != engine.StateEstablished {
				t.Errorf("%+v\n%+v", f, g)
			}
			if f.SendSequence != g.ReceiveSequence || f.ReceiveSequence != g.SendSequence {
				t.Errorf("sequences %#x %#x, at the peer %#x %#x", f.SendSequence, f.ReceiveSequence, g.ReceiveSequence, g.SendSequence)
			}
			if f.SendScale != g.ReceiveScale || f.ReceiveScale != g.SendScale || !f.Scaling || !f.SACK || !f.Timestamps {
				t.Errorf("%+v\n%+v", f, g)
			}
			want := uint32(1460)
			if v6 {
				want = 1440
			}
			if f.MSS != want || g.MSS != want || f.Payload != want-40 {
				t.Errorf("MSS %d and %d, payload %d; want %d", f.MSS, g.MSS, f.Payload, want)
			}
			if f.Queued != uint64(sent) || f.Sent != f.Queued || f.Acked != f.Queued || g.Received != f.Queued || g.Delivered != f.Queued {
				t.Errorf("counts of %d bytes: %+v\n%+v", sent, f, g)
			}
			if g.Queued != uint64(received) || g.Sent != g.Queued || g.Acked != g.Queued || f.Received != g.Queued || f.Delivered != g.Queued {
				t.Errorf("counts of %d bytes: %+v\n%+v", received, f, g)
			}
			if int32(f.Time-g.RecentTime) < 0 || int32(g.Time-f.RecentTime) < 0 || f.Timers != 0 || g.Timers != 0 {
				t.Errorf("%+v\n%+v", f, g)
			}
			if f.SendWindow > g.ReceiveWindow || f.SendWindow+1<<f.SendScale+1<<20 < g.ReceiveWindow || f.SendWindow == 0 {
				t.Errorf("the window is %d bytes, the peer opened %d", f.SendWindow, g.ReceiveWindow)
			}
		}
		check(0, 0)
		send(t, c, make([]byte, 100_001))
		receive(t, s, 100_001)
		check(100_001, 0)
		send(t, s, make([]byte, 7))
		receive(t, c, 7)
		check(100_001, 7)
		if err := c.SetOption(engine.OptKeepAlive, 1); err != nil {
			t.Fatal(err)
		}
		if f := flowOf(t, c); f.Timers != engine.TimerKeepAlive {
			t.Errorf("timers %#x with keep-alive", f.Timers)
		}
	}
}

// What the peer has not acknowledged is sent, and a timer runs; what it has no
// room for is not sent, and another one runs.
func TestFlowUnacknowledged(t *testing.T) {
	var deaf atomic.Bool
	a, b := twoEngines(t, enginetest.PipeOptions{Drop: func(port int, frame []byte) bool { return deaf.Load() && port == 1 }}, nil)
	client, server := connected(t, a, b)
	before := flowOf(t, client)
	deaf.Store(true) // what the client sends is lost
	send(t, client, make([]byte, 500))
	f := flowOf(t, client)
	if f.Queued != 500 || f.Sent != 500 || f.Acked != 0 || f.Timers != engine.TimerRetransmit || f.SendSequence != before.SendSequence {
		t.Errorf("%+v", f)
	}
	deaf.Store(false)
	receive(t, server, 500)
	client.ev.until(t, "the acknowledgement", func() bool { return client.Info().Acked == 500 })

	// The server reads nothing: its window closes.
	for {
		if _, err := client.Write(1<<20, func(p []byte) error { return nil }); errors.Is(err, engine.ErrWouldBlock) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
		if f := flowOf(t, client); f.Queued > 16<<20 {
			break
		}
	}
	eventually(t, "the window to close", func() bool { f = flowOf(t, client); return f.Timers == engine.TimerPersist })
	g := flowOf(t, server)
	if f.Sent != f.Acked || f.Queued <= f.Sent || g.Received != f.Acked || g.Delivered != 500 || f.SendSequence != g.ReceiveSequence {
		t.Errorf("%+v\n%+v", f, g)
	}
	if err := server.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the FIN", func() bool { return flowOf(t, client).State == engine.StateCloseWait })
	if f := flowOf(t, client); f.Received != 0 || f.ReceiveSequence != before.ReceiveSequence+1 {
		t.Errorf("a FIN counts as a byte: %+v", f)
	}
	client.Abort()
	if _, err := client.Endpoint.(engine.Tracker).Flow(); !errors.Is(err, engine.ErrNotConnected) {
		t.Errorf("flow of an aborted connection: %v", err)
	}
	idle := open(t, a, engine.TCP, false)
	if _, err := idle.Endpoint.(engine.Tracker).Flow(); !errors.Is(err, engine.ErrNotConnected) {
		t.Errorf("flow of no connection: %v", err)
	}
}

// eventually waits for what no event tells of.
func eventually(t testing.TB, what string, cond func() bool) {
	t.Helper()
	for late := newLimit(); !cond(); yield() {
		if late() {
			t.Fatalf("waited %v for: %s", patience, what)
		}
	}
}
