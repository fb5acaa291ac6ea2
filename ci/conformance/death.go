// SPDX-License-Identifier: Apache-2.0

package conformance

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"sync/atomic"
	"syscall"
	"time"

	"toebox/guestdriver"
)

// TestIF10_Death: the firmware dies in the middle of random schedules on three
// queues. Nothing more is written into their tables and buffers; what is open is
// the host's to complete, once; and the new firmware works as new, with ids of
// its own (SPEC.md §11.4).
func TestIF10_Death(t *T) {
	t.Logf("seed %d", t.Env.Seed)
	c := t.start()
	violations := c.counter(ctrViolations)
	for range 5 {
		all := []*world{t.newWorld(c, 0, narrow), t.newWorld(c, 1, narrow), t.newWorld(c, 31, narrow)}
		all[0].announce()
		for range t.rng.IntN(80) {
			for _, w := range all {
				w.run(1 + w.rng.IntN(4))
			}
		}
		generation := c.read(regGeneration)
		want(t, "violations of the protocol", c.counter(ctrViolations), violations)
		violations, c.side = 0, nil
		check(t, "restart of the firmware", t.Env.Restart())
		var before [][]byte
		for _, w := range all {
			before = append(before, bytes.Clone(w.out.Bytes), bytes.Clone(w.in.Bytes), bytes.Clone(w.buf.Bytes))
		}
		want(t, "GENERATION", c.read(regGeneration), generation+1)
		want(t, "EVENTS bit 0", c.read(regEvents)&1, 1)
		want(t, "STATUS: ready, not running, not stopped", c.read(regStatus)&7, 1)
		pause(nothing / 3)
		for i, w := range all {
			for j, now := range [][]byte{w.out.Bytes, w.in.Bytes, w.buf.Bytes} {
				want(t, fmt.Sprintf("memory %d of queue %d stays as it was", j, w.q), bytes.Equal(now, before[3*i+j]), true)
			}
			want(t, "Q_STATE", w.state(), 0)
			// What the old firmware published counts, and nothing but that.
			w.drainGot()
			t.Logf("queue %d: %d tags without an answer", w.q, len(w.open))
		}
		c.run()
		want(t, "connections of the new firmware", c.counter(ctrConnections), 0)
		r := c.ring(2, ringConfig{})
		want(t, "bits 63..48 of an id of the new firmware", uint32(r.dial(all[0].echo)>>48), (generation+1)&0xffff)
		r.command(5)
		r.await(0)
	}
}

// mortal is the driver at work while its adapter's firmware dies.
type mortal struct {
	*T
	a                  *guestdriver.Adapter
	echo, closed, hang netip.AddrPort

	dying        atomic.Bool
	begun, ended atomic.Int64
}

// with runs f on a connection that was opened before the firmware died, and
// closes it.
func (m *mortal) with(a netip.AddrPort, f func(net.Conn) error) error {
	c, err := m.a.DialContext(m.ctx, "tcp", a.String())
	if err != nil {
		return err
	}
	// Of the next firmware's connections nobody takes care.
	if !m.dying.Load() {
		err = f(c)
	}
	return errors.Join(err, c.Close())
}

// operation chooses what a goroutine does.
func (m *mortal) operation(k int) func() error {
	n := 1 + m.rng.IntN(20_000)
	switch k % 6 {
	case 0: // until the end: nothing comes
		return func() error {
			return m.with(m.echo, func(c net.Conn) error {
				_, err := c.Read(make([]byte, 10))
				return err
			})
		}
	case 1: // until the end: nobody reads the echo
		return func() error {
			return m.with(m.echo, func(c net.Conn) (err error) {
				for p := make([]byte, n); err == nil; {
					_, err = c.Write(p)
				}
				return err
			})
		}
	case 2: // until the end: the other side waits
		return func() error {
			return m.with(m.echo, func(c net.Conn) error {
				go func() { // ends with the connection
					_, _ = io.Copy(c, &source{seed: uint64(n), left: 1 << 40})
				}()
				return expect(c, uint64(n), 0, 1<<40)
			})
		}
	case 3:
		return func() error {
			ctx, cancel := context.WithTimeout(m.ctx, 200*time.Millisecond)
			defer cancel()
			_, err := m.a.DialContext(ctx, "tcp", m.hang.String())
			if errors.Is(err, os.ErrDeadlineExceeded) || errors.Is(err, context.DeadlineExceeded) || errors.Is(err, syscall.ETIMEDOUT) {
				return nil
			}
			return err
		}
	case 4:
		return func() (err error) {
			for err == nil && !m.dying.Load() {
				_, err = m.a.DialContext(m.ctx, "tcp", m.closed.String())
				if errors.Is(err, syscall.ECONNREFUSED) {
					err = nil
				}
			}
			return err
		}
	default:
		return func() (err error) {
			for err == nil && !m.dying.Load() {
				_, err = m.a.Attribute(m.ctx, 0, 0x0106) // MTU
			}
			return err
		}
	}
}

// begin runs operations until they end, and says what they must not end with.
func (m *mortal) begin(count int) {
	for k := range count {
		do := m.operation(k)
		m.begun.Add(1)
		go func() {
			err := do()
			m.ended.Add(1)
			if err != nil && !errors.Is(err, guestdriver.ErrReset) {
				m.Errorf("an operation ended with %v", err)
			}
		}()
	}
}

// TestIF10_DriverDeath: the firmware dies under the driver, at a random moment:
// every call that waits ends, once, with ErrReset if its outcome is not known;
// nothing is left; and the driver goes on with the new firmware, its listeners
// open again.
func TestIF10_DriverDeath(t *T) {
	t.Logf("seed %d", t.Env.Seed)
	p, err := t.Peer().Serve(t.ctx, Script{{Op: OpEcho}})
	check(t, "peer: serve", err)
	t.Cleanup(func() { p.Close() })
	m := &mortal{T: t, a: t.driver(), echo: p.Addr()}
	m.closed, err = t.Peer().Refused(t.ctx)
	check(t, "peer: refused", err)
	m.hang, err = t.Peer().Hang(t.ctx)
	check(t, "peer: hang", err)
	port := t.reachable()
	l, err := m.a.Listen("tcp", fmt.Sprintf(":%d", port))
	check(t, "listen", err)
	t.Cleanup(func() { l.Close() })
	listens := t.counterOf(m.a, ctrListens) // from 0 in each firmware
	const rounds = 5
	for round := range rounds {
		m.dying.Store(false)
		m.begin(12)
		moment := m.a.Stats().Responses + uint64(m.rng.IntN(100))
		t.until("operations to be under way", func() bool { return m.a.Stats().Responses >= moment })
		m.dying.Store(true)
		check(t, "restart of the firmware", t.Env.Restart())
		t.until("the driver to see the reset", func() bool { return m.a.Stats().Resets > uint64(round) })
		t.until("every operation to end", func() bool { return m.ended.Load() == m.begun.Load() })
		t.until("nothing to be outstanding", func() bool {
			s := m.a.Stats()
			return s.Outstanding == 0 && s.Connections == 0 && s.Memory == 0
		})
		s := m.a.Stats()
		want(t, "resets that the driver saw", s.Resets, uint64(round+1))
		want(t, "responses to tags that had ended", s.BadTags, 0)
		want(t, "buffers that did not come back", s.LostBuffers, 0)

		// The peer may be refused until they are.
		t.until("the listeners to be open again", func() bool { return t.counterOf(m.a, ctrListens) == listens })
		check(t, "an echo with the new firmware", m.with(m.echo, func(net.Conn) error { return nil }))
	}
	m.dying.Store(false)
	check(t, "an echo", m.with(m.echo, func(c net.Conn) error {
		if _, err := io.CopyN(c, &source{seed: 3, left: 5000}, 5000); err != nil {
			return err
		}
		return expect(c, 3, 0, 5000)
	}))
	s, err := t.Peer().Dial(t.ctx, port, Script{{Op: OpSend, N: 1000, Seed: 4}})
	check(t, "peer: dial", err)
	t.Cleanup(func() { s.Close() })
	c, err := l.Accept()
	check(t, "accept by a listener from before", err)
	check(t, "what the caller sends", expect(c, 4, 0, 1000))
	check(t, "close", c.Close())
}
