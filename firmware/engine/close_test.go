// SPDX-License-Identifier: Apache-2.0

package engine_test

import (
	"encoding/binary"
	"errors"
	"net"
	"net/netip"
	"sync/atomic"
	"testing"
	"time"

	"toebox/firmware/engine"
	"toebox/firmware/engine/enginetest"
)

// TCP flags (RFC 9293 section 3.1).
const (
	flagFIN = 0x01
	flagSYN = 0x02
	flagRST = 0x04
)

// segment reads what tests want to know of an IPv4 frame: TCP flags and the
// length of the payload.
func segment(frame []byte) (flags byte, payload int, ok bool) {
	const ip, tcp = 14, 34
	if len(frame) < tcp+20 || binary.BigEndian.Uint16(frame[12:]) != 0x0800 || frame[ip] != 0x45 || frame[ip+9] != 6 {
		return 0, 0, false
	}
	return frame[tcp+13], int(binary.BigEndian.Uint16(frame[ip+2:])) - 20 - int(frame[tcp+12]>>4)*4, true
}

func TestHalfClose(t *testing.T) {
	a, b := twoEngines(t, enginetest.PipeOptions{}, nil)
	client, server := connected(t, a, b)
	send(t, client, []byte("request"))
	if err := client.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	if n, err := client.Write(1, func([]byte) error { return nil }); n != 0 || !errors.Is(err, engine.ErrClosed) || !errors.Is(err, net.ErrClosed) {
		t.Errorf("write after the FIN: %d, %v", n, err)
	}
	receive(t, server, 7)
	if err := ending(t, server); !errors.Is(err, engine.ErrEndOfStream) {
		t.Errorf("server's end: %v", err)
	}
	if s := server.Info().State; s != engine.StateCloseWait {
		t.Errorf("server's state %d", s)
	}
	client.ev.until(t, "the ACK of the FIN", func() bool { return client.Info().Acked == 7 && client.Info().State == engine.StateFinWait2 })
	send(t, server, []byte("answer"))
	if got := string(receive(t, client, 6)); got != "answer" {
		t.Errorf("client read %q", got)
	}
	if err := server.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	if err := ending(t, client); !errors.Is(err, engine.ErrEndOfStream) {
		t.Errorf("client's end: %v", err)
	}
	for name, p := range map[string]peer{"client": client, "server": server} {
		p.ev.until(t, name+"'s end", func() bool { return p.ev.seen(engine.EventClosed) })
		if err := p.Err(); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if i := p.Info(); i.Acked != i.Queued || i.Queued == 0 {
			t.Errorf("%s: %+v", name, i)
		}
	}
	if c, s := client.Info().State, server.Info().State; c != engine.StateTimeWait || s != engine.StateClosed {
		t.Errorf("states %d and %d", c, s)
	}
}

// One ACK covers the last bytes and the FIN, and ends the connection.
func TestAckedByTheLastAck(t *testing.T) {
	tests := []struct {
		name string
		drop func() func(port int, frame []byte) bool
	}{
		{"ACKs before the last are lost", func() func(int, []byte) bool {
			var answering atomic.Bool // the server has sent bytes
			var end atomic.Uint32     // the sequence number behind its FIN
			return func(port int, frame []byte) bool {
				flags, payload, ok := segment(frame)
				if !ok {
					return false
				}
				if port == 0 {
					if payload > 0 {
						answering.Store(true)
					}
					if flags&flagFIN != 0 {
						end.Store(binary.BigEndian.Uint32(frame[38:]) + 1)
					}
					return false
				}
				return answering.Load() && binary.BigEndian.Uint32(frame[42:]) != end.Load()
			}
		}},
		{"bytes are lost, and the FIN is sent again", func() func(int, []byte) bool {
			var finSeen atomic.Bool
			return func(port int, frame []byte) bool {
				flags, payload, ok := segment(frame)
				if !ok || port != 0 {
					return false
				}
				if flags&flagFIN != 0 {
					finSeen.Store(true)
				}
				return payload > 0 && !finSeen.Load()
			}
		}},
	}
	for _, tt := range tests {
		a, b := twoEngines(t, enginetest.PipeOptions{Drop: tt.drop()}, nil)
		c, s := connected(t, a, b)
		if err := c.CloseWrite(); err != nil {
			t.Fatal(err)
		}
		if err := ending(t, s); !errors.Is(err, engine.ErrEndOfStream) {
			t.Fatal(err)
		}
		send(t, s, []byte("last words"))
		if err := s.CloseWrite(); err != nil {
			t.Fatal(err)
		}
		s.ev.until(t, "the end when "+tt.name, func() bool { return s.ev.seen(engine.EventClosed) })
		if i := s.Info(); i.State != engine.StateClosed || i.Acked != 10 || s.Err() != nil {
			t.Errorf("%s: %+v, %v", tt.name, i, s.Err())
		}
		if !s.ev.seen(engine.EventAcked) {
			t.Errorf("%s: no event told of the acknowledgement", tt.name)
		}
	}
}

// A reset after the peer's FIN is a failure, and what it cut off does not
// count as acknowledged.
func TestResetAfterFIN(t *testing.T) {
	a, b := twoEngines(t, enginetest.PipeOptions{Drop: func(port int, frame []byte) bool {
		_, payload, ok := segment(frame)
		return ok && port == 0 && payload > 0
	}}, nil)
	c, s := connected(t, a, b)
	if err := c.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	if err := ending(t, s); !errors.Is(err, engine.ErrEndOfStream) {
		t.Fatal(err)
	}
	send(t, s, []byte("lost words"))
	c.Abort()
	s.ev.until(t, "the reset", func() bool { return s.ev.seen(engine.EventClosed) })
	if err := s.Err(); !errors.Is(err, engine.ErrReset) {
		t.Errorf("error %v", err)
	}
	if i := s.Info(); i.Acked != 0 || i.Queued != 10 {
		t.Errorf("%+v", i)
	}
}

// A FIN that is lost does not make the acknowledgements that follow it into
// data that nobody reads: an orderly end of both stays one.
func TestCloseWhenTheFINIsLost(t *testing.T) {
	var lost atomic.Bool
	a, b := twoEngines(t, enginetest.PipeOptions{Drop: func(port int, frame []byte) bool {
		flags, _, ok := segment(frame)
		return ok && port == 1 && flags&flagFIN != 0 && lost.CompareAndSwap(false, true)
	}}, nil)
	c, s := connected(t, a, b)
	send(t, c, []byte("request"))
	if err := c.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	receive(t, s, 7)
	send(t, s, []byte("answer"))
	s.ev.until(t, "the acknowledgement", func() bool { return s.Info().Acked == 6 })
	if !lost.Load() {
		t.Fatal("no FIN was lost")
	}
	s.Close()
	if got := string(receive(t, c, 6)); got != "answer" {
		t.Errorf("client read %q", got)
	}
	c.ev.until(t, "the end", func() bool { return c.ev.seen(engine.EventClosed) })
	if err := ending(t, c); !errors.Is(err, engine.ErrEndOfStream) || c.Err() != nil {
		t.Errorf("client's end: %v, %v", err, c.Err())
	}
	if n := a.Stats().ResetsSent + b.Stats().ResetsSent; n != 0 {
		t.Errorf("%d resets", n)
	}
}

// What a peer sends to a connection that is closed resets it.
func TestDataAfterClose(t *testing.T) {
	a, b := twoEngines(t, enginetest.PipeOptions{}, nil)
	c, s := connected(t, a, b)
	s.Close()
	if err := ending(t, c); !errors.Is(err, engine.ErrEndOfStream) {
		t.Errorf("client's end: %v", err)
	}
	send(t, c, []byte("for nobody"))
	c.ev.until(t, "the reset", func() bool { return c.ev.seen(engine.EventClosed) })
	if err := c.Err(); !errors.Is(err, engine.ErrReset) {
		t.Errorf("client: %v", err)
	}
}

func TestReset(t *testing.T) {
	a, b := twoEngines(t, enginetest.PipeOptions{}, nil)
	client, server := connected(t, a, b)
	send(t, server, []byte("data before the reset"))
	client.ev.until(t, "data", func() bool { return client.Info().Received == 21 })
	server.Abort()
	client.ev.until(t, "the reset", func() bool { return client.ev.seen(engine.EventClosed) })
	if got := string(receive(t, client, 21)); got != "data before the reset" {
		t.Errorf("read %q", got)
	}
	for range 2 {
		if _, err := client.Read(1, func([]byte) int { return 0 }); !errors.Is(err, engine.ErrReset) {
			t.Errorf("read: %v", err)
		}
		if _, err := client.Write(1, func([]byte) error { return nil }); !errors.Is(err, engine.ErrReset) {
			t.Errorf("write: %v", err)
		}
		if err := client.Err(); !errors.Is(err, engine.ErrReset) {
			t.Errorf("error: %v", err)
		}
		if err := client.CloseWrite(); !errors.Is(err, engine.ErrReset) {
			t.Errorf("close write: %v", err)
		}
	}
	if err := client.ConnectResult(); err != nil {
		t.Errorf("the handshake had gone well, now %v", err)
	}
	// A second one may answer an ACK that was under way.
	if r := b.Stats().ResetsReceived; r < 1 || r > 2 {
		t.Errorf("%d resets received", r)
	}
}

// After Close or Abort nothing is reported, and the other calls do no harm.
func TestSilenceAfterTheEnd(t *testing.T) {
	for _, abort := range []bool{false, true} {
		a, b := twoEngines(t, enginetest.PipeOptions{}, nil)
		client, server := connected(t, a, b)
		client.ev.until(t, "the connection", func() bool { return client.ev.seen(engine.EventConnected) })
		if abort {
			client.Abort()
		} else {
			client.Close()
		}
		client.ev.mu.Lock()
		client.ev.all = 0
		client.ev.mu.Unlock()
		want := engine.ErrEndOfStream
		if abort {
			want = engine.ErrReset
		}
		if err := ending(t, server); !errors.Is(err, want) {
			t.Errorf("abort %v: the peer sees %v", abort, err)
		}
		server.Close()
		client.Close()
		client.Abort()
		client.Info()
		_ = client.Err()
		_, _ = client.Read(1, func([]byte) int { return 1 })
		_, _ = client.Write(1, func([]byte) error { return nil })
		_ = client.CloseWrite()
		if client.ev.seen(engine.EventReadable) || client.ev.seen(engine.EventWritable) || client.ev.seen(engine.EventClosed) {
			t.Errorf("abort %v: events %b after the end", abort, client.ev.all)
		}
		if n := b.Stats().Endpoints; n != 0 {
			t.Errorf("%d endpoints open", n)
		}
	}
}

func TestCloseWithUnreadDataResets(t *testing.T) {
	a, b := twoEngines(t, enginetest.PipeOptions{}, nil)
	client, server := connected(t, a, b)
	send(t, client, []byte("unread"))
	server.ev.until(t, "data", func() bool { return server.Info().Received == 6 })
	server.Close()
	client.ev.until(t, "the reset", func() bool { return client.ev.seen(engine.EventClosed) })
	if err := client.Err(); !errors.Is(err, engine.ErrReset) {
		t.Error(err)
	}
}

func TestEngineClose(t *testing.T) {
	a, b := twoEngines(t, enginetest.PipeOptions{}, nil)
	client, server := connected(t, a, b)
	listener := listen(t, b, false, 1, 1)
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
	server.ev.until(t, "the reset", func() bool { return server.ev.seen(engine.EventClosed) })
	if err := server.Err(); !errors.Is(err, engine.ErrReset) {
		t.Error(err)
	}
	if _, err := client.Write(1, func([]byte) error { return nil }); !errors.Is(err, engine.ErrAborted) {
		t.Errorf("write: %v", err)
	}
	if _, err := b.Open(engine.TCP, false, newEvents()); !errors.Is(err, net.ErrClosed) {
		t.Errorf("open: %v", err)
	}
	client.Close()
	listener.Abort()
	if err := b.Close(); err != nil {
		t.Error(err)
	}
}

// manual gives both engines one clock that the test moves.
func manual() (*enginetest.Clock, func(*engine.Config)) {
	clock := enginetest.NewClock()
	return clock, func(c *engine.Config) { c.Clock = clock }
}

// step moves the clock until cond, giving the engines' goroutines time
// between the steps; it says how much the clock moved. How far it gets before a
// goroutine does what a timer has told it to depends on the machine; frames on
// their way to and from e, such as those that find a neighbour, arrive before.
func step(t *testing.T, e side, clock *enginetest.Clock, by time.Duration, cond func() bool) time.Duration {
	t.Helper()
	start := clock.Now()
	for limit := newLimit(); !cond(); {
		if limit() {
			t.Fatalf("nothing after %v", clock.Now().Sub(start))
		}
		if !e.port.Settled() {
			yield()
			continue
		}
		clock.Advance(by)
		for until := time.Now().Add(2 * time.Millisecond); time.Now().Before(until) && !cond(); {
			yield()
		}
	}
	return clock.Now().Sub(start)
}

func TestConnectFailures(t *testing.T) {
	const unroutable = "203.0.113.1"
	tests := []struct {
		name string
		drop func(int, []byte) bool
		to   string
		want error
	}{
		{name: "no such neighbour", to: "198.18.0.77", want: engine.ErrHostUnreachable},
		{name: "no answer", to: "198.18.0.1", want: engine.ErrTimedOut,
			drop: func(_ int, f []byte) bool { flags, _, ok := segment(f); return ok && flags&flagSYN != 0 }},
	}
	for _, tt := range tests {
		clock, change := manual()
		_, b := twoEngines(t, enginetest.PipeOptions{Drop: tt.drop}, change)
		c := open(t, b, engine.TCP, false)
		if err := c.Connect(netip.MustParseAddrPort(tt.to + ":80")); err != nil {
			t.Fatal(tt.name, err)
		}
		if err := c.ConnectResult(); !errors.Is(err, engine.ErrWouldBlock) {
			t.Errorf("%s: result at once: %v", tt.name, err)
		}
		took := step(t, b, clock, time.Second, func() bool { return c.ev.seen(engine.EventConnected) })
		if err := c.ConnectResult(); !errors.Is(err, tt.want) {
			t.Errorf("%s: %v after %v, want %v", tt.name, err, took, tt.want)
		}
	}

	_, b := twoEngines(t, enginetest.PipeOptions{}, nil)
	for to, want := range map[string]error{
		unroutable + ":80":   engine.ErrNetUnreachable,
		"198.18.0.1:0":       engine.ErrBadAddress,
		"0.0.0.0:80":         engine.ErrBadAddress,
		"224.0.0.1:80":       engine.ErrBadAddress,
		"255.255.255.255:80": engine.ErrBadAddress,
		"[fd00:1::1]:80":     engine.ErrBadAddress, // of an IPv4 endpoint
	} {
		c := open(t, b, engine.TCP, false)
		if err := c.Connect(netip.MustParseAddrPort(to)); !errors.Is(err, want) {
			t.Errorf("%s: %v, want %v", to, err, want)
		}
		if c.ev.all != 0 {
			t.Errorf("%s: events %b of a handshake that never started", to, c.ev.all)
		}
		if err := c.ConnectResult(); !errors.Is(err, engine.ErrNotConnected) {
			t.Errorf("%s: result %v", to, err)
		}
		// The endpoint is as good as before.
		if err := c.Connect(netip.MustParseAddrPort("198.18.0.1:80")); err != nil {
			t.Errorf("%s, then another: %v", to, err)
		}
		if err := c.Connect(netip.MustParseAddrPort("198.18.0.1:80")); !errors.Is(err, engine.ErrInvalidState) {
			t.Errorf("connecting twice: %v", err)
		}
		c.Close()
	}
}

func TestTimeWait(t *testing.T) {
	clock, change := manual()
	a, b := twoEngines(t, enginetest.PipeOptions{}, change)
	l := listen(t, a, false, 80, 1)
	client := open(t, b, engine.TCP, false)
	if err := client.Connect(addrPort(a.v4, 80)); err != nil {
		t.Fatal(err)
	}
	// Neighbour resolution starts by a timer of no duration.
	step(t, b, clock, 0, func() bool { return client.ev.seen(engine.EventConnected) })
	server := accept(t, l)
	send(t, client, []byte("x"))
	receive(t, server, 1)
	if err := client.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	if err := ending(t, server); !errors.Is(err, engine.ErrEndOfStream) {
		t.Fatal(err)
	}
	server.Close()
	client.ev.until(t, "TIME-WAIT", func() bool { return client.Info().State == engine.StateTimeWait })
	// The timer starts after the state can be seen.
	step(t, b, clock, 0, func() bool { return clock.Due(2 * time.Second) })
	clock.Advance(2*time.Second - 1)
	if s := client.Info().State; s != engine.StateTimeWait {
		t.Errorf("%v before 2 s are over", s)
	}
	clock.Advance(1)
	if s := client.Info().State; s != engine.StateClosed {
		t.Errorf("%v after 2 s", s)
	}
	if i := client.Info(); i.Acked != 1 || client.Err() != nil {
		t.Errorf("%+v, %v", i, client.Err())
	}
}
