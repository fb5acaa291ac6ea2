// SPDX-License-Identifier: Apache-2.0

package port

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"testing"
	"time"

	"toebox/firmware/engine"
)

// signal is a sink that wakes one goroutine.
type signal chan struct{}

func (s signal) Notify(engine.Events) {
	select {
	case s <- struct{}{}:
	default:
	}
}

// wait waits for an event.
func (s signal) wait(t testing.TB) {
	t.Helper()
	select {
	case <-s:
	case <-time.After(limit):
		t.Fatal("no event")
	}
}

// adapter is an engine on a gateway, as the firmware has it.
func adapter(t testing.TB, cfg NATConfig) (*NAT, engine.Engine) {
	t.Helper()
	checkLeaks(t)
	n, err := NewNAT(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { n.Close() })
	lease := n.Lease()
	e, err := engine.New(engine.Config{
		Port: n, MAC: net.HardwareAddr(peerMAC), Addresses: lease.Prefixes, Routes: lease.Routes, TimeWait: 100 * time.Millisecond,
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { e.Close() })
	return n, e
}

// connectEngine opens a connection of the engine to a host listener.
func connectEngine(t testing.TB, e engine.Engine, to netip.AddrPort) (engine.Endpoint, signal, error) {
	t.Helper()
	s := make(signal, 1)
	ep, err := e.Open(engine.TCP, to.Addr().Is6(), s)
	if err != nil {
		t.Fatal(err)
	}
	if err := ep.Connect(to); err != nil {
		ep.Close()
		return nil, nil, err
	}
	for {
		err := ep.ConnectResult()
		if err == nil {
			return ep, s, nil
		}
		if !errors.Is(err, engine.ErrWouldBlock) {
			ep.Close()
			return nil, nil, err
		}
		s.wait(t)
	}
}

// TestEngineTransfer moves bytes both ways between the adapter's engine and a
// host socket.
func TestEngineTransfer(t *testing.T) {
	const size = 64 << 20
	n, e := adapter(t, NATConfig{})
	l := hostListen(t, "127.0.0.1:0")
	ep, s, err := connectEngine(t, e, netip.AddrPortFrom(n.gateway, portOf(l.Addr())))
	if err != nil {
		t.Fatal(err)
	}
	defer ep.Close()
	h, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close()

	// The host sends back what it gets; the engine sends, receives and compares.
	go func() {
		io.CopyBuffer(struct{ io.Writer }{h}, struct{ io.Reader }{h}, make([]byte, 256<<10))
		h.(*net.TCPConn).CloseWrite()
	}()
	src := rand.NewChaCha8([32]byte{1})
	want, got := sha256.New(), sha256.New()
	chunk := make([]byte, 64<<10)
	var held []byte // made, not sent yet
	sent, received := 0, 0
	for ended := false; !ended; {
		progress := false
		for sent < size {
			if len(held) == 0 {
				src.Read(chunk)
				want.Write(chunk)
				held = chunk
			}
			k, err := ep.Write(len(held), func(p []byte) error {
				held = held[copy(p, held):]
				return nil
			})
			sent += k
			if sent == size {
				ep.CloseWrite()
			}
			if errors.Is(err, engine.ErrWouldBlock) {
				break
			}
			if err != nil {
				t.Fatal(err)
			}
			progress = true
		}
		for {
			k, err := ep.Read(1<<20, func(p []byte) int { got.Write(p); return len(p) })
			received += k
			if errors.Is(err, engine.ErrWouldBlock) {
				break
			}
			if err == engine.ErrEndOfStream {
				ended = true
				break
			}
			if err != nil {
				t.Fatal(err)
			}
			progress = true
		}
		if !progress && !ended {
			s.wait(t)
		}
	}
	if received != size || !bytes.Equal(got.Sum(nil), want.Sum(nil)) {
		t.Errorf("%d bytes came back, or others", received)
	}
	// Bytes are counted behind their way on.
	eventually(t, "all are counted", func() bool { s := n.Stats(); return s.BytesToHost >= size && s.BytesFromHost >= size })
	if s := n.Stats(); s.BytesToHost != size || s.BytesFromHost != size || s.DroppedChecksum+s.DroppedQueueFull != 0 {
		t.Errorf("stats: %+v", s)
	}
}

// TestEngineFailures: how a connect ends on the host is how it ends on the
// adapter.
func TestEngineFailures(t *testing.T) {
	closed := hostListen(t, "127.0.0.1:0")
	port := portOf(closed.Addr())
	closed.Close()
	n, e := adapter(t, NATConfig{})
	if _, _, err := connectEngine(t, e, netip.AddrPortFrom(n.gateway, port)); !errors.Is(err, engine.ErrRefused) {
		t.Errorf("refused: %v", err)
	}
	if _, _, err := connectEngine(t, e, netip.MustParseAddrPort("169.254.1.1:80")); !errors.Is(err, engine.ErrRefused) {
		t.Errorf("denied: %v", err)
	}
	if _, _, err := connectEngine(t, e, netip.MustParseAddrPort("10.0.2.99:80")); !errors.Is(err, engine.ErrHostUnreachable) {
		t.Errorf("nobody there: %v", err)
	}
}

// TestEngineInbound: a host client talks to a listener of the engine.
func TestEngineInbound(t *testing.T) {
	n, e := adapter(t, NATConfig{})
	ls := make(signal, 1)
	lep, err := e.Open(engine.TCP, false, ls)
	if err != nil {
		t.Fatal(err)
	}
	defer lep.Close()
	if err := errors.Join(lep.Bind(netip.AddrPortFrom(n.adapter, 80)), lep.Listen(16)); err != nil {
		t.Fatal(err)
	}
	l := hostListen(t, "127.0.0.1:0")
	if err := n.Forward(l, netip.AddrPortFrom(n.adapter, 80)); err != nil {
		t.Fatal(err)
	}
	h, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close()
	h.SetDeadline(time.Now().Add(limit))
	h.Write([]byte("hello"))
	s := make(signal, 1)
	var ep engine.Endpoint
	for {
		if ep, err = lep.Accept(func(engine.Endpoint) engine.Sink { return s }); err == nil {
			break
		}
		if !errors.Is(err, engine.ErrWouldBlock) {
			t.Fatal(err)
		}
		ls.wait(t)
	}
	defer ep.Close()
	var got []byte
	for len(got) < 5 {
		if _, err := ep.Read(16, func(p []byte) int { got = append(got, p...); return len(p) }); errors.Is(err, engine.ErrWouldBlock) {
			s.wait(t)
		} else if err != nil {
			t.Fatal(err)
		}
	}
	if _, err := ep.Write(3, func(p []byte) error { copy(p, "bye"); return nil }); err != nil {
		t.Fatal(err)
	}
	ep.CloseWrite()
	if b, err := io.ReadAll(h); string(b) != "bye" || err != nil || string(got) != "hello" {
		t.Errorf("host read %q, %v; adapter read %q", b, err, got)
	}
}

// TestEngineBulkConnect starts thousands of handshakes in a row from one
// goroutine, as a bulk connect does. None may be lost on the way.
func TestEngineBulkConnect(t *testing.T) {
	const count = 5000
	n, e := adapter(t, NATConfig{})
	l := hostListen(t, "127.0.0.1:0")
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			defer c.Close()
		}
	}()
	to := netip.AddrPortFrom(n.gateway, portOf(l.Addr()))
	first, _, err := connectEngine(t, e, to) // resolves the MAC
	if err != nil {
		t.Fatal(err)
	}
	defer first.Close()
	start := time.Now()
	eps := make([]engine.Endpoint, count)
	sinks := make([]signal, count)
	for i := range eps {
		sinks[i] = make(signal, 1)
		if eps[i], err = e.Open(engine.TCP, false, sinks[i]); err != nil {
			t.Fatal(err)
		}
		if err := eps[i].Connect(to); err != nil {
			t.Fatal(i, err)
		}
	}
	for i, ep := range eps {
		for err := ep.ConnectResult(); err != nil; err = ep.ConnectResult() {
			if !errors.Is(err, engine.ErrWouldBlock) {
				t.Fatal(i, err)
			}
			sinks[i].wait(t)
		}
	}
	t.Logf("%d connections in %v", count, time.Since(start))
	if s := n.Stats(); s.DroppedQueueFull+s.TCPNoRoom != 0 {
		t.Errorf("stats: %+v", s)
	}
	for _, ep := range eps {
		ep.Abort()
	}
	eventually(t, "all but one are gone", func() bool { return n.Stats().TCPOpen <= 1 })
}

// BenchmarkEngineBulk moves bytes between the adapter's engine and a host
// socket.
func BenchmarkEngineBulk(b *testing.B) {
	const chunk = 256 << 10
	n, e := adapter(b, NATConfig{})
	for _, toHost := range []bool{true, false} {
		name := "from host"
		if toHost {
			name = "to host"
		}
		b.Run(name, func(b *testing.B) {
			l := hostListen(b, "127.0.0.1:0")
			ep, s, err := connectEngine(b, e, netip.AddrPortFrom(n.gateway, portOf(l.Addr())))
			if err != nil {
				b.Fatal(err)
			}
			defer ep.Close()
			h, err := l.Accept()
			if err != nil {
				b.Fatal(err)
			}
			defer h.Close()
			total := b.N * chunk
			done := make(chan error, 1)
			buf := make([]byte, chunk)
			b.SetBytes(chunk)
			b.ResetTimer()
			go func() {
				var err error
				if toHost {
					_, err = io.CopyN(discard{buf}, h, int64(total))
				} else {
					for range b.N {
						if _, err = h.Write(buf); err != nil {
							break
						}
					}
				}
				done <- err
			}()
			guest := make([]byte, chunk)
			for moved := 0; moved < total; {
				var k int
				var err error
				if toHost {
					k, err = ep.Write(min(chunk, total-moved), func(p []byte) error { copy(p, guest); return nil })
				} else {
					k, err = ep.Read(chunk, func(p []byte) int { return copy(guest, p) })
				}
				moved += k
				if errors.Is(err, engine.ErrWouldBlock) {
					if moved < total {
						s.wait(b)
					}
				} else if err != nil {
					b.Fatal(err)
				}
			}
			if err := <-done; err != nil {
				b.Fatal(err)
			}
		})
	}
}
