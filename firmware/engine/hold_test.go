// SPDX-License-Identifier: Apache-2.0

package engine_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"math/rand/v2"
	"net/netip"
	"slices"
	"sync"
	"testing"

	"toebox/firmware/engine"
	"toebox/firmware/engine/enginetest"
)

// TestHeld counts what nobody has read, of streams and datagrams, however it goes.
func TestHeld(t *testing.T) {
	a, b := twoEngines(t, enginetest.PipeOptions{}, nil)
	h := a.Engine.(engine.Holder)
	client, server := connected(t, a, b)
	held := func(p peer, what string, n int64) {
		t.Helper()
		p.ev.until(t, what, func() bool { return h.Held() == n })
	}
	send(t, client, make([]byte, 5000))
	held(server, "5000 bytes held", 5000)
	receive(t, server, 1234)
	held(server, "the rest of them", 3766)
	d := open(t, a.Engine, engine.UDP, false)
	if err := d.Bind(addrPort(a.v4, 53)); err != nil {
		t.Fatal(err)
	}
	from := open(t, b.Engine, engine.UDP, false)
	if err := from.Connect(addrPort(a.v4, 53)); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if _, err := from.Write(100, fillFrom(make([]byte, 100))); err != nil {
			t.Fatal(err)
		}
	}
	d.ev.until(t, "two datagrams held", func() bool { return h.Held() == 3766+2*612 })
	if _, err := d.Read(1000, func(p []byte) int { return len(p) }); err != nil {
		t.Fatal(err)
	}
	held(d, "one datagram held", 3766+612)
	d.Close()
	held(d, "none after the endpoint's end", 3766)
	server.Abort()
	held(server, "nothing after the connection's end", 0)
}

// bounded is an account that takes no more than a limit.
type bounded struct {
	mu          sync.Mutex
	limit       int
	total, peak int
}

func (b *bounded) Admit(a engine.Arrival) int {
	b.mu.Lock()
	defer b.mu.Unlock()
	n := min(a.Bytes, b.limit-b.total)
	if n < 0 || a.Datagram && n < a.Bytes {
		n = 0
	}
	b.total += n
	b.peak = max(b.peak, b.total)
	return n
}

func (b *bounded) Release(n int, _ engine.Sink) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.total -= n
	b.peak = max(b.peak, b.total)
}

func (b *bounded) used() (total, peak int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.total, b.peak
}

// TestAdmit takes payload as far as there is room, over a wire that loses and
// reorders: the bound is never passed, and no byte is lost.
func TestAdmit(t *testing.T) {
	const total, bound, conns = 300_000, 50_000, 3
	for _, c := range []struct {
		name string
		opts enginetest.PipeOptions
		late bool // nobody accepts the connections before payload was refused
		v6   bool // behind an extension header
	}{
		{name: "clean"},
		{name: "lossy", opts: enginetest.PipeOptions{Loss: 0.01, Reorder: 0.02, Seed: 5}},
		{name: "backlog", late: true},
		{name: "backlog, lossy", late: true, opts: enginetest.PipeOptions{Loss: 0.01, Reorder: 0.02, Seed: 6}},
		{name: "extension headers", v6: true},
		{name: "extension headers, lossy", v6: true, late: true, opts: enginetest.PipeOptions{Loss: 0.01, Reorder: 0.02, Seed: 7}},
	} {
		t.Run(c.name, func(t *testing.T) {
			n := 0
			a, b := twoEngines(t, c.opts, func(f *engine.Config) {
				if n++; n == 2 && c.v6 {
					f.Port = tap{f.Port, extend}
				}
			})
			account := &bounded{limit: bound}
			a.Engine.(engine.Holder).Account(account)
			all := make([]byte, total)
			_, _ = rand.NewChaCha8([32]byte{9}).Read(all)
			var servers []peer
			var senders sync.WaitGroup
			l := listen(t, a, c.v6, 80, 16)
			to := a.v4
			if c.v6 {
				to = a.v6
			}
			for range conns {
				client := connect(t, b, c.v6, netip.AddrPortFrom(to, 80))
				if !c.late {
					servers = append(servers, accept(t, l))
				}
				senders.Go(func() { send(t, client, all) })
			}
			for over := newLimit(); a.Stats().SegmentsRefused == 0; yield() {
				if over() {
					t.Fatalf("no payload was refused, and %d bytes are held", a.Engine.(engine.Holder).Held())
				}
			}
			for len(servers) < conns {
				servers = append(servers, accept(t, l))
			}
			var got [conns][]byte
			read := 0
			for over := newLimit(); read < conns*total; yield() {
				for i, s := range servers {
					n, err := s.Read(total, func(p []byte) int { got[i] = append(got[i], p...); return len(p) })
					if read += n; n > 0 {
						over = newLimit()
					} else if !errors.Is(err, engine.ErrWouldBlock) {
						t.Fatalf("read: %v", err)
					}
				}
				if over() {
					t.Fatalf("%d of %d bytes came", read, conns*total)
				}
			}
			for i := range got {
				if !bytes.Equal(got[i], all) {
					t.Errorf("stream %d differs", i)
				}
			}
			senders.Wait()
			for _, s := range servers {
				s.ev.until(t, "nothing to be held", func() bool { n, _ := account.used(); return n == 0 })
			}
			if _, peak := account.used(); peak > bound || peak < bound/2 {
				t.Errorf("%d bytes were held, the bound is %d", peak, bound)
			}
			if n := a.Engine.(engine.Holder).Held(); n != 0 {
				t.Errorf("%d bytes are held in the end", n)
			}
		})
	}
}

// extend puts destination options (RFC 8200 section 4.6) into frames with segments.
func extend(frames []engine.Frame) {
	const at, size = 14 + 40, 8
	for i := range frames {
		f := &frames[i]
		b := slices.Concat(f.Data...)
		if len(b) < at || string(b[12:14]) != "\x86\xdd" || b[20] != 6 {
			continue
		}
		b[20] = 60
		binary.BigEndian.PutUint16(b[18:], binary.BigEndian.Uint16(b[18:])+size)
		f.Data = [][]byte{slices.Insert(b, at, 6, 0, 1, 4, 0, 0, 0, 0)}
		if f.NeedsChecksum {
			f.ChecksumStart += size
		}
		if f.HeaderLen > 0 {
			f.HeaderLen += size
		}
	}
}

// TestAdmitNobody: what unaccepted connections held counts no more when they have
// ended, by their peer or with their listener.
func TestAdmitNobody(t *testing.T) {
	a, b := twoEngines(t, enginetest.PipeOptions{}, nil)
	account := &bounded{limit: 1 << 20}
	a.Engine.(engine.Holder).Account(account)
	l := listen(t, a, false, 80, 16)
	var clients []peer
	for range 3 {
		c := connect(t, b, false, netip.AddrPortFrom(a.v4, 80))
		send(t, c, make([]byte, 10_000))
		clients = append(clients, c)
	}
	counted := func(what string, n int) {
		t.Helper()
		for over := newLimit(); ; yield() {
			now, _ := account.used()
			if now == n {
				return
			}
			if over() {
				t.Fatalf("%s: %d bytes, not %d", what, now, n)
			}
		}
	}
	counted("what nobody has accepted", 30_000)
	clients[0].Abort()
	counted("what is left after a reset", 20_000)
	s := accept(t, l)
	if s.Info().Remote == clients[0].Info().Local {
		s.Abort() // it was in the queue before
		s = accept(t, l)
	}
	counted("the same after an accept", 20_000)
	receive(t, s, 4000)
	counted("what was not read", 16_000)
	l.Close()
	counted("what is left after the listener's end", 6000)
	s.Abort()
	counted("nothing", 0)
}
