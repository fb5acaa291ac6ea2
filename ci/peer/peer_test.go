// SPDX-License-Identifier: Apache-2.0

package peer

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"toebox/ci/conformance"
)

// loop is a host whose adapter is the loopback itself.
func loop(t *testing.T) *Host { return loopback(t, false) }

// loopback is a host on both loopbacks, or on that of IPv4 where there is no other.
func loopback(t *testing.T, relay bool) *Host {
	t.Helper()
	c, ok := config(t, "127.0.0.1", "192.0.2.1")
	if !ok {
		t.Fatal("no loopback")
	}
	c.Relay = relay
	if six, ok := config(t, "::1", "2001:db8::1"); ok {
		six.Bind = six.Gateway
		c.IPv6 = NewHost(six)
	}
	h := NewHost(c)
	t.Cleanup(func() {
		if err := h.Close(); err != nil {
			t.Error(err)
		}
	})
	return h
}

func config(t *testing.T, address, nobody string) (_ HostConfig, ok bool) {
	t.Helper()
	l, err := net.Listen("tcp", net.JoinHostPort(address, "0"))
	if err != nil {
		return HostConfig{}, false
	}
	t.Cleanup(func() { l.Close() })
	way := netip.MustParseAddrPort(l.Addr().String())
	go func() { // the adapter: an echo
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				io.Copy(c, c)
			}()
		}
	}()
	return HostConfig{
		Gateway: netip.MustParseAddr(address), Nobody: netip.MustParseAddr(nobody),
		Forwards: func(n int) ([]Forward, error) {
			if n != 1 {
				return nil, errors.New("one only")
			}
			return []Forward{{Port: way.Port(), Host: way}}, nil
		},
		Impair: func(rules string) (conformance.Harm, error) {
			if rules == "loss=2" {
				return conformance.Harm{}, errors.New("too much")
			}
			return conformance.Harm{Frames: 3, Lost: 2}, nil
		},
	}, true
}

func dial(t *testing.T, a netip.AddrPort) *net.TCPConn {
	t.Helper()
	c, err := net.DialTimeout("tcp", a.String(), 5*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c.(*net.TCPConn)
}

// exercise is what every implementation of the peer must do, over each family.
func exercise(t *testing.T, p conformance.Peer) {
	t.Run("IPv4", func(t *testing.T) { exerciseOne(t, p, "192.0.2.1") })
	t.Run("IPv6", func(t *testing.T) {
		six := p.IPv6()
		if six == nil {
			t.Skip("no IPv6: give the loopback ::1 (sysctl net.ipv6.conf.lo.disable_ipv6=0)")
		}
		exerciseOne(t, six, "2001:db8::1")
		if six.IPv6() != nil {
			t.Error("the peer over IPv6 has another")
		}
	})
}

func exerciseOne(t *testing.T, p conformance.Peer, nobody string) {
	ctx := t.Context()
	s, err := p.Serve(ctx, conformance.Script{
		{Op: conformance.OpDiscard, N: 5}, {Op: conformance.OpWait}, {Op: conformance.OpSend, N: 100_000, Seed: 3},
		{Op: conformance.OpFIN}, {Op: conformance.OpDiscard},
	})
	if err != nil {
		t.Fatal(err)
	}
	c := dial(t, s.Addr())
	if _, err := c.Write([]byte("hello")); err != nil {
		t.Fatal(err)
	}
	if err := s.Signal(ctx); err != nil {
		t.Fatal(err)
	}
	got, err := io.ReadAll(c)
	want := make([]byte, 100_000)
	conformance.Payload(want, 3, 0)
	if err != nil || !bytes.Equal(got, want) {
		t.Errorf("read %d bytes, %v", len(got), err)
	}
	if _, err := c.Write([]byte(" there")); err != nil {
		t.Fatal(err)
	}
	c.CloseWrite()
	res, err := s.Result(ctx)
	sum := sha256.Sum256([]byte("hello there"))
	if err != nil || res.Err != "" || !res.EOF || res.Received != 11 || res.Sum != hex.EncodeToString(sum[:]) ||
		res.Remote.String() != c.LocalAddr().String() {
		t.Errorf("result %+v, %v", res, err)
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	if _, err := s.Result(ctx); err == nil {
		t.Error("result of a closed session")
	}

	s, err = p.Serve(ctx, conformance.Script{{Op: conformance.OpDiscard, N: 1}, {Op: conformance.OpReset}})
	if err != nil {
		t.Fatal(err)
	}
	c = dial(t, s.Addr())
	c.Write([]byte("x"))
	if _, err := c.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("after a reset: %v", err)
	}

	ports, err := p.Reachable(ctx, 1)
	if err != nil || len(ports) != 1 {
		t.Fatalf("reachable: %v, %v", ports, err)
	}
	if _, err := p.Reachable(ctx, 2); err == nil {
		t.Error("more ports than there are")
	}
	s, err = p.Dial(ctx, ports[0], conformance.Script{{Op: conformance.OpSend, N: 7}, {Op: conformance.OpFIN}, {Op: conformance.OpDiscard}})
	if err != nil {
		t.Fatal(err)
	}
	if res, err := s.Result(ctx); err != nil || res.Received != 7 || res.Err != "" {
		t.Errorf("dialled: %+v, %v", res, err)
	}
	if _, err := p.Dial(ctx, ports[0]+1, nil); err == nil {
		t.Error("dialled a port that Reachable did not give")
	}
	if a, err := p.Hairpin(ctx, ports[0]); err != nil || a.Port() != ports[0] {
		t.Errorf("hairpin: %v, %v", a, err)
	}

	a, err := p.Refused(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := net.Dial("tcp", a.String()); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("refused: %v", err)
	}
	a, err = p.Hang(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := net.DialTimeout("tcp", a.String(), 50*time.Millisecond); err == nil || !err.(net.Error).Timeout() {
		t.Errorf("hang: %v", err)
	}
	if _, err := p.Impair(ctx, "none"); err != nil {
		t.Errorf("impair: %v", err)
	}
	if h, err := p.Impair(ctx, "loss=1%"); err != nil || h != (conformance.Harm{Frames: 3, Lost: 2}) {
		t.Errorf("impair: %+v, %v", h, err)
	}
	if _, err := p.Impair(ctx, "loss=2"); err == nil {
		t.Error("rules that the wire refuses")
	}
	if p.Unreachable().Addr().String() != nobody {
		t.Errorf("unreachable: %v", p.Unreachable())
	}

	s, err = p.Serve(ctx, conformance.Script{{Op: conformance.OpDiscard, N: 100}})
	if err != nil {
		t.Fatal(err)
	}
	c = dial(t, s.Addr())
	c.CloseWrite()
	if res, err := s.Result(ctx); err != nil || !strings.Contains(res.Err, "step 0 (discard)") {
		t.Errorf("a script that fails: %+v, %v", res, err)
	}
	short, cancel := context.WithTimeout(ctx, 10*time.Millisecond)
	defer cancel()
	if _, err := s.Result(short); !errors.Is(err, context.DeadlineExceeded) && !strings.Contains(err.Error(), "deadline") {
		t.Errorf("result of nothing: %v", err)
	}
}

func TestHost(t *testing.T) { exercise(t, loop(t)) }

// TestRelay: a hairpin that is relayed passes both directions on, the end of each,
// and a reset.
func TestRelay(t *testing.T) {
	h := loopback(t, true)
	ctx := t.Context()
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	way := netip.MustParseAddrPort(l.Addr().String())
	h.cfg.Forwards = func(int) ([]Forward, error) { return []Forward{{Port: 7, Host: way}}, nil }
	if _, err := h.Reachable(ctx, 1); err != nil {
		t.Fatal(err)
	}
	addr, err := h.Hairpin(ctx, 7)
	if err != nil || addr == way {
		t.Fatalf("hairpin %v, %v", addr, err)
	}
	pair := func() (c, d *net.TCPConn) {
		t.Helper()
		c = dial(t, addr)
		x, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { x.Close() })
		return c, x.(*net.TCPConn)
	}
	c, d := pair()
	if _, err := c.Write([]byte("there")); err != nil {
		t.Fatal(err)
	}
	c.CloseWrite()
	if b, err := io.ReadAll(d); err != nil || string(b) != "there" {
		t.Errorf("there: %q, %v", b, err)
	}
	if _, err := d.Write([]byte("back")); err != nil {
		t.Fatal(err)
	}
	d.Close()
	if b, err := io.ReadAll(c); err != nil || string(b) != "back" {
		t.Errorf("back: %q, %v", b, err)
	}

	c, d = pair()
	d.SetLinger(0)
	d.Close()
	if _, err := c.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("after a reset there: %v", err)
	}
	l.Close()
	x, err := net.DialTimeout("tcp4", addr.String(), 5*time.Second)
	if err == nil { // the reset came after the handshake
		_, err = x.Read(make([]byte, 1))
		x.Close()
	}
	if !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("with nobody there: %v", err)
	}
	if _, err := h.Hairpin(ctx, 8); err == nil {
		t.Error("a hairpin to a port that is none of Reachable's")
	}
}

func TestRemote(t *testing.T) {
	here, there := net.Pipe()
	h := loop(t)
	served := make(chan error, 1)
	go func() { served <- Serve(t.Context(), there, h); there.Close() }()
	r, err := NewRemote(t.Context(), here)
	if err != nil {
		t.Fatal(err)
	}
	exercise(t, r)
	if err := r.Close(); err != nil {
		t.Error(err)
	}
	if err := <-served; err != nil && !errors.Is(err, io.ErrClosedPipe) && !errors.Is(err, io.EOF) {
		t.Errorf("serve: %v", err)
	}
	if _, err := r.Refused(t.Context()); err == nil {
		t.Error("a call after the end")
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if len(h.sessions) != 0 {
		t.Errorf("%d sessions left open", len(h.sessions))
	}
}

// TestServeMany: connections beyond the bound are established, and their scripts run
// when others have ended.
func TestServeMany(t *testing.T) {
	cfg, ok := config(t, "127.0.0.1", "192.0.2.1")
	if !ok {
		t.Fatal("no loopback")
	}
	cfg.Accepts = 2
	h := NewHost(cfg)
	t.Cleanup(func() { h.Close() })
	s, err := h.Serve(t.Context(), conformance.Script{{Op: conformance.OpSend, N: 1, Seed: 1}, {Op: conformance.OpWait}})
	if err != nil {
		t.Fatal(err)
	}
	var conns []*net.TCPConn
	for range 5 {
		conns = append(conns, dial(t, s.Addr()))
	}
	for i, c := range conns {
		if i == cfg.Accepts {
			// None of the others has a place. If one had, this might still pass.
			for _, c := range conns[i:] {
				c.SetReadDeadline(time.Now().Add(20 * time.Millisecond))
				if n, err := c.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
					t.Fatalf("beyond the bound: read %d bytes, %v", n, err)
				}
				c.SetReadDeadline(time.Time{})
			}
		}
		if i >= cfg.Accepts {
			if err := s.Signal(t.Context()); err != nil {
				t.Fatal(err)
			}
			if _, err := s.Result(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := io.ReadFull(c, make([]byte, 1)); err != nil {
			t.Fatalf("connection %d: %v", i, err)
		}
	}
}

// TestServeHostile: nonsense gets an answer or ends the session; it does not
// hang or panic.
func TestServeHostile(t *testing.T) {
	h := loop(t)
	for _, in := range []string{
		"{}\n", `{"ID":1,"Method":"signal","Session":99}` + "\n", `{"ID":2,"Method":"reachable","N":-1}` + "\n",
		`{"ID":2,"Method":"reachable","N":100000}` + "\n", "nonsense\n", `{"ID":"x"}` + "\n",
		`{"ID":3,"Method":"dial","Port":1}` + "\n", strings.Repeat("x", maxLine+1) + "\n",
	} {
		var out bytes.Buffer
		err := Serve(t.Context(), struct {
			io.Reader
			io.Writer
		}{strings.NewReader(in), &out}, h)
		if err == nil && !strings.Contains(out.String(), `"Err"`) {
			t.Errorf("%.40q: answered %s", in, out.String())
		}
	}
}

// TestPayload: any part is what the whole says.
func TestPayload(t *testing.T) {
	whole := make([]byte, 1000)
	conformance.Payload(whole, 42, 0)
	for _, at := range []int{0, 1, 7, 8, 9, 500, 999} {
		part := make([]byte, 1000-at)
		conformance.Payload(part, 42, int64(at))
		if !bytes.Equal(part, whole[at:]) {
			t.Errorf("from %d on the stream differs", at)
		}
	}
	other := make([]byte, 1000)
	conformance.Payload(other, 43, 0)
	if bytes.Equal(whole, other) {
		t.Error("two seeds give one stream")
	}
}
