// SPDX-License-Identifier: Apache-2.0

package engine_test

import (
	"errors"
	"net/netip"
	"sync/atomic"
	"testing"
	"time"

	"toebox/firmware/engine"
	"toebox/firmware/engine/enginetest"
)

// carried is the end of a connection that moves from engine to engine, and
// what its owner keeps, as a host does.
type carried struct {
	t      *testing.T
	port   *enginetest.PipePort
	engine engine.Engine
	peer
	total   int
	out     int // bytes written
	base    int // bytes acknowledged in engines before
	in      int // bytes read
	moves   int
	refused uint64 // segments that got no answer
}

func pattern(i int) byte { return byte(uint32(i) * 2654435761 >> 23) }

func (c *carried) newEngine(hush time.Duration) {
	c.t.Helper()
	e, err := engine.New(engine.Config{Port: c.port, MAC: macs[1], Addresses: nets[1], Hush: hush})
	if err != nil {
		c.t.Fatal(err)
	}
	c.engine = e
}

// write writes what there is room for; it reports whether anything.
func (c *carried) write() bool {
	n, err := c.Write(min(c.total-c.out, 100_000), func(p []byte) error {
		for i := range p {
			p[i] = pattern(c.out + i)
		}
		c.out += len(p)
		return nil
	})
	if err != nil && !errors.Is(err, engine.ErrWouldBlock) {
		c.t.Fatalf("write after %d bytes and %d moves: %v", c.out, c.moves, err)
	}
	return n > 0
}

// read reads what there is, and reports whether anything.
func (c *carried) read() bool {
	n, err := c.Read(100_000, func(p []byte) int {
		for i, b := range p {
			if b != pattern(c.in+i) {
				c.t.Fatalf("byte %d is %#x, want %#x, after %d moves", c.in+i, b, pattern(c.in+i), c.moves)
			}
		}
		c.in += len(p)
		return len(p)
	})
	if err != nil && !errors.Is(err, engine.ErrWouldBlock) {
		c.t.Fatalf("read after %d bytes and %d moves: %v", c.in, c.moves, err)
	}
	return n > 0
}

// move carries the connection over to a new engine.
func (c *carried) move() {
	c.t.Helper()
	old := c.Endpoint.(engine.Carrier)
	if err := old.Part(); err != nil {
		c.t.Fatal(err)
	}
	limit := time.NewTimer(20 * time.Millisecond)
	for waiting := true; waiting && !old.Quiet(); {
		select {
		case <-limit.C:
			waiting = false
		default:
			yield()
		}
	}
	limit.Stop()
	var f engine.Flow
	eventually(c.t, "the segments that came before", func() bool {
		var err error
		if f, err = old.Leave(); err != nil && !errors.Is(err, engine.ErrWouldBlock) {
			c.t.Fatal(err)
		}
		return err == nil
	})
	for c.read() {
	}
	if uint64(c.base)+f.Acked > uint64(c.out) || f.Sent < f.Acked || f.Queued < f.Sent {
		c.t.Fatalf("%+v", f)
	}
	old.Vanish()
	if err := c.engine.Close(); err != nil {
		c.t.Fatal(err)
	}
	c.refused += c.engine.Stats().FramesUnanswered

	c.newEngine(time.Minute)
	c.peer = open(c.t, c.engine, engine.TCP, f.Local.Addr().Is6())
	next := c.Endpoint.(engine.Carrier)
	if err := c.SetOption(engine.OptReceiveWindow, 256<<10); err != nil {
		c.t.Fatal(err)
	}
	if err := next.Restore(f); err != nil {
		c.t.Fatal(err)
	}
	c.ev.until(c.t, "the connection to be restored", func() bool { return c.ev.seen(engine.EventConnected) })
	if err := c.ConnectResult(); err != nil {
		c.t.Fatal(err)
	}
	g := flowOf(c.t, c.peer)
	if g.SendSequence != f.SendSequence || g.Payload != f.Payload || g.SendScale != f.SendScale || g.ReceiveScale != f.ReceiveScale || int32(g.Time-f.Time) < 0 {
		c.t.Errorf("restored as\n%+v, was\n%+v", g, f)
	}
	c.base += int(f.Acked)
	c.out = c.base
	c.moves++
}

// echo sends back what it receives until the end of the stream, and closes.
func echo(t *testing.T, p peer, done chan<- error) {
	var held []byte
	ended := false
	for late := newLimit(); ; {
		progress := false
		for len(held) > 0 {
			n, err := p.Write(len(held), fillFrom(held))
			held = held[n:]
			progress = progress || n > 0
			if errors.Is(err, engine.ErrWouldBlock) {
				break
			}
			if err != nil {
				done <- err
				return
			}
		}
		if ended && len(held) == 0 {
			done <- p.CloseWrite()
			return
		}
		if len(held) < 1<<20 && !ended {
			n, err := p.Read(1<<20, func(b []byte) int { held = append(held, b...); return len(b) })
			progress = progress || n > 0
			ended = errors.Is(err, engine.ErrEndOfStream)
			if err != nil && !ended && !errors.Is(err, engine.ErrWouldBlock) {
				done <- err
				return
			}
		}
		if !progress {
			if late() {
				done <- errors.New("late")
				return
			}
			yield()
		}
	}
}

// A connection with data under way both ways goes from engine to engine, and
// its peer notices nothing.
func TestCarryOver(t *testing.T) {
	for _, c := range []struct {
		name   string
		opts   enginetest.PipeOptions
		v6     bool
		noSACK bool
		total  int
	}{
		{name: "whole", total: 24 << 20},
		{name: "v6", v6: true, total: 8 << 20},
		{name: "without SACK", noSACK: true, total: 8 << 20},
		{name: "loss", opts: enginetest.PipeOptions{Loss: 0.01, Seed: 1}, total: 4 << 20},
		{name: "reordering", opts: enginetest.PipeOptions{Reorder: 0.05, Seed: 2}, total: 8 << 20},
	} {
		t.Run(c.name, func(t *testing.T) {
			x, y := enginetest.Pipe(c.opts)
			b, err := engine.New(engine.Config{Port: x, MAC: macs[0], Addresses: nets[0]})
			if err != nil {
				t.Fatal(err)
			}
			other := side{Engine: b, v4: nets[0][0].Addr(), v6: nets[0][1].Addr()}
			m := &carried{t: t, port: y, total: c.total}
			m.newEngine(0)
			done := make(chan error, 1)
			t.Cleanup(func() {
				if err := m.engine.Close(); err != nil {
					t.Error(err)
				}
				if err := b.Close(); err != nil {
					t.Error(err)
				}
				_, _ = x.Close(), y.Close()
			})
			l := listen(t, other, c.v6, 7, 16)
			to := other.v4
			if c.v6 {
				to = other.v6
			}
			m.peer = open(t, m.engine, engine.TCP, c.v6)
			if c.noSACK {
				if err := m.SetOption(engine.OptSACK, 0); err != nil {
					t.Fatal(err)
				}
			}
			if err := m.Connect(netip.AddrPortFrom(to, 7)); err != nil {
				t.Fatal(err)
			}
			m.ev.until(t, "the handshake", func() bool { return m.ev.seen(engine.EventConnected) })
			s := accept(t, l)
			go echo(t, s, done)

			const moves = 8
			late := newLimit()
			for m.in < m.total {
				progress := m.out < m.total && m.write()
				progress = m.read() || progress
				if m.moves < moves && m.in > (m.moves+1)*m.total/(moves+2) {
					m.move()
				}
				if !progress {
					if late() {
						t.Fatalf("stuck: %d of %d bytes out, %d back, %d moves\n%+v\n%+v", m.out, m.total, m.in, m.moves, flowOf(t, m.peer), flowOf(t, s))
					}
					yield()
				}
			}
			if err := m.CloseWrite(); err != nil {
				t.Fatal(err)
			}
			if err := ending(t, m.peer); !errors.Is(err, engine.ErrEndOfStream) {
				t.Errorf("end of the stream: %v", err)
			}
			if err := <-done; err != nil {
				t.Errorf("the peer: %v", err)
			}
			if got := b.Stats().ResetsReceived; got != 0 {
				t.Errorf("the peer got %d resets", got)
			}
			m.Close()
			s.Close()
		})
	}
}

// The peer of a connection that left gets no answer, until somebody says that
// it does not come back.
func TestHush(t *testing.T) {
	a, b := twoEngines(t, enginetest.PipeOptions{}, nil)
	client, server := connected(t, a, b)
	c := client.Endpoint.(engine.Carrier)
	if err := c.Part(); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the segments that came before", func() bool { _, err := c.Leave(); return err == nil })
	i := client.Info()
	c.Vanish()
	send(t, server, make([]byte, 100))
	// The gate of the connection that left keeps its segments; those of others
	// that are not known are counted.
	eventually(t, "the segment to be sent again", func() bool { return server.Info().Retransmits > 0 })
	if err := server.Err(); err != nil {
		t.Fatalf("the peer's connection ended: %v", err)
	}
	b.Engine.(engine.Disowner).Disown(i.Local, i.Remote)
	server.ev.until(t, "the reset", func() bool { return server.Err() != nil })
	if err := server.Err(); !errors.Is(err, engine.ErrReset) {
		t.Errorf("the peer's connection ended with %v", err)
	}
}

// An engine that starts after another gives segments of unknown connections no
// answer.
func TestHushAtStart(t *testing.T) {
	var dying atomic.Bool // what the first engine says at its end is lost
	x, y := enginetest.Pipe(enginetest.PipeOptions{Drop: func(int, []byte) bool { return dying.Load() }})
	start := func(p *enginetest.PipePort, i int, hush time.Duration) side {
		e, err := engine.New(engine.Config{Port: p, MAC: macs[i], Addresses: nets[i], Hush: hush})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = e.Close() })
		return side{Engine: e, v4: nets[i][0].Addr()}
	}
	t.Cleanup(func() { _, _ = x.Close(), y.Close() })
	a, b := start(x, 0, 0), start(y, 1, 0)
	_, server := connected(t, a, b)
	dying.Store(true)
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
	dying.Store(false)
	b = start(y, 1, time.Minute)
	send(t, server, make([]byte, 100))
	eventually(t, "segments without an answer", func() bool { return b.Stats().FramesUnanswered > 1 })
	if err := server.Err(); err != nil {
		t.Errorf("the peer's connection ended: %v", err)
	}
	// New connections are not affected.
	connect(t, a, false, addrPort(listenAt(t, b, 81), 81))
}

func listenAt(t *testing.T, s side, port uint16) netip.Addr {
	t.Helper()
	listen(t, s, false, port, 4)
	return s.v4
}

// A connection that the engine has is not touched when another that would have
// its addresses is disowned: it can leave still.
func TestDisownLive(t *testing.T) {
	a, b := twoEngines(t, enginetest.PipeOptions{}, nil)
	client, _ := connected(t, a, b)
	i := client.Info()
	b.Engine.(engine.Disowner).Disown(i.Local, i.Remote)
	if err := client.Endpoint.(engine.Carrier).Part(); err != nil {
		t.Error(err)
	}
}

// away takes a connection out of its engine, and back into the same.
func away(t *testing.T, e side, p peer) (peer, engine.Flow) {
	t.Helper()
	old := p.Endpoint.(engine.Carrier)
	if err := old.Part(); err != nil {
		t.Fatal(err)
	}
	var f engine.Flow
	eventually(t, "the segments that came before", func() bool {
		var err error
		if f, err = old.Leave(); err != nil && !errors.Is(err, engine.ErrWouldBlock) {
			t.Fatal(err)
		}
		return err == nil
	})
	old.Vanish()
	next := open(t, e, engine.TCP, f.Local.Addr().Is6())
	if err := next.Endpoint.(engine.Carrier).Restore(f); err != nil {
		t.Fatal(err)
	}
	next.ev.until(t, "the connection to be restored", func() bool { return next.ev.seen(engine.EventConnected) })
	if err := next.ConnectResult(); err != nil {
		t.Fatal(err)
	}
	return next, f
}

// A connection with a direction closed leaves and comes back, whoever closed it
// and whether or not the other knows. What is still open goes on, and the end is
// in order.
func TestCarryHalves(t *testing.T) {
	for _, c := range []struct {
		name         string
		mine, theirs bool // who has sent a FIN
		unheard      bool // mine is not acknowledged
		state        engine.State
	}{
		{"our FIN acknowledged", true, false, false, engine.StateFinWait2},
		{"our FIN not acknowledged", true, false, true, engine.StateFinWait1},
		{"the peer's FIN", false, true, false, engine.StateCloseWait},
		{"both, ours not acknowledged", true, true, true, engine.StateLastAck},
	} {
		t.Run(c.name, func(t *testing.T) {
			var deaf atomic.Bool // nothing of the peer arrives
			a, b := twoEngines(t, enginetest.PipeOptions{Drop: func(port int, _ []byte) bool { return port == 0 && deaf.Load() }}, nil)
			client, server := connected(t, a, b)
			send(t, client, []byte("before"))
			receive(t, server, 6)
			send(t, server, []byte("first"))
			receive(t, client, 5)
			eventually(t, "acknowledgements", func() bool {
				return flowOf(t, client).Acked == 6 && flowOf(t, server).Acked == 5
			})
			if c.theirs {
				if err := server.CloseWrite(); err != nil {
					t.Fatal(err)
				}
				if err := ending(t, client); !errors.Is(err, engine.ErrEndOfStream) {
					t.Fatal(err)
				}
			}
			deaf.Store(c.unheard)
			if c.mine {
				if err := client.CloseWrite(); err != nil {
					t.Fatal(err)
				}
			}
			if c.mine && !c.unheard {
				eventually(t, "our FIN's acknowledgement", func() bool { return client.Info().State == engine.StateFinWait2 })
			}
			client, f := away(t, b, client)
			deaf.Store(false)
			if f.State != c.state {
				t.Errorf("it left in state %d, want %d", f.State, c.state)
			}
			if c.mine {
				if err := client.CloseWrite(); err != nil {
					t.Fatal(err)
				}
			} else {
				send(t, client, []byte("after"))
				if got := receive(t, server, 5); string(got) != "after" {
					t.Errorf("the peer got %q", got)
				}
				if err := client.CloseWrite(); err != nil {
					t.Fatal(err)
				}
			}
			if err := ending(t, server); !errors.Is(err, engine.ErrEndOfStream) {
				t.Errorf("the peer's end of the stream: %v", err)
			}
			if !c.theirs {
				send(t, server, []byte("last"))
				if got := receive(t, client, 4); string(got) != "last" {
					t.Errorf("got %q", got)
				}
				if err := server.CloseWrite(); err != nil {
					t.Fatal(err)
				}
			}
			if err := ending(t, client); !errors.Is(err, engine.ErrEndOfStream) {
				t.Errorf("end of the stream: %v", err)
			}
			over := func(p peer) bool {
				s := p.Info().State
				return s == engine.StateClosed || s == engine.StateTimeWait
			}
			eventually(t, "the end", func() bool { return over(client) && over(server) })
			// Who is over answers what comes late with a reset, as any TCP does; it
			// has ended nothing.
			if mine, theirs := client.Err(), server.Err(); mine != nil || theirs != nil {
				t.Errorf("ended by %v and %v", mine, theirs)
			}
			if err := client.Endpoint.(engine.Carrier).Part(); err == nil {
				t.Error("a connection that is over leaves")
			}
			client.Close()
			server.Close()
		})
	}
}

// Bytes that nobody has read, and the end of the stream behind them, are there
// after the move: the bytes for the owner to take before, the end again.
func TestCarryUnreadEnd(t *testing.T) {
	a, b := twoEngines(t, enginetest.PipeOptions{}, nil)
	client, server := connected(t, a, b)
	send(t, server, []byte("unread"))
	if err := server.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the peer's FIN", func() bool { return client.Info().State == engine.StateCloseWait })
	old := client.Endpoint.(engine.Carrier)
	if err := old.Part(); err != nil {
		t.Fatal(err)
	}
	var f engine.Flow
	eventually(t, "the segments that came before", func() bool {
		var err error
		f, err = old.Leave()
		return err == nil
	})
	if got := receive(t, client, 6); string(got) != "unread" || f.Received != 6 {
		t.Errorf("%q of %d bytes received", got, f.Received)
	}
	old.Vanish()
	next := open(t, b, engine.TCP, false)
	if err := next.Endpoint.(engine.Carrier).Restore(f); err != nil {
		t.Fatal(err)
	}
	if err := ending(t, next); !errors.Is(err, engine.ErrEndOfStream) {
		t.Errorf("end of the stream: %v", err)
	}
	if g := flowOf(t, next); g.ReceiveSequence != f.ReceiveSequence || g.Received != 0 {
		t.Errorf("restored as %+v, was %+v", g, f)
	}
	next.Close()
	server.Close()
}
