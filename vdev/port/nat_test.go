// SPDX-License-Identifier: Apache-2.0

package port

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"gvisor.dev/gvisor/pkg/tcpip"

	"toebox/firmware/engine"
)

// halfCloser is a stream that can end one direction: a host's or the adapter's.
type halfCloser interface {
	net.Conn
	CloseWrite() error
}

// pairs are the two ways a connection comes about. connect returns the
// adapter's end and the host's.
var pairs = []struct {
	name    string
	connect func(t testing.TB, n *NAT, p *peer) (adapter, host halfCloser)
}{
	{"outbound", outboundPair},
	{"outbound6", outboundPair6},
	{"inbound", inboundPair},
}

func hostListen(t testing.TB, addr string) *net.TCPListener {
	t.Helper()
	l, err := net.Listen("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l.(*net.TCPListener)
}

func portOf(a net.Addr) uint16 { return netip.MustParseAddrPort(a.String()).Port() }

func outboundPair(t testing.TB, n *NAT, p *peer) (adapter, host halfCloser) {
	return outboundTo(t, n, p, n.gateway, "127.0.0.1:0")
}

func outboundPair6(t testing.TB, n *NAT, p *peer) (adapter, host halfCloser) {
	return outboundTo(t, n, p, n.gateway6, "[::1]:0")
}

func outboundTo(t testing.TB, n *NAT, p *peer, gateway netip.Addr, at string) (adapter, host halfCloser) {
	t.Helper()
	l := hostListen(t, at)
	a, err := p.dial(deadline(t), netip.AddrPortFrom(gateway, portOf(l.Addr())))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { a.Close() })
	h, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { h.Close() })
	eventually(t, "the gateway serves the connection", func() bool { return n.Stats().TCPOpen > 0 })
	return a, h.(*net.TCPConn)
}

func inboundPair(t testing.TB, n *NAT, p *peer) (adapter, host halfCloser) {
	t.Helper()
	gl := p.listen(t, netip.AddrPortFrom(n.adapter, 80))
	l := hostListen(t, "127.0.0.1:0")
	if err := n.Forward(l, netip.AddrPortFrom(netip.Addr{}, 80)); err != nil {
		t.Fatal(err)
	}
	h, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { h.Close() })
	a, err := gl.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { a.Close() })
	eventually(t, "the gateway serves the connection", func() bool { return n.Stats().TCPOpen > 0 })
	return a.(halfCloser), h.(*net.TCPConn)
}

// transfer sends n seeded bytes and checks what arrives by its hash.
func transfer(from, to halfCloser, n int64, seed byte) error {
	src := func() io.Reader { return io.LimitReader(rand.NewChaCha8([32]byte{seed}), n) }
	want := sha256.New()
	io.Copy(want, src())
	errs := make(chan error, 1)
	go func() {
		_, err := io.CopyBuffer(struct{ io.Writer }{from}, src(), make([]byte, 64<<10))
		errs <- errors.Join(err, from.CloseWrite())
	}()
	to.SetReadDeadline(time.Now().Add(3 * limit))
	got := sha256.New()
	k, err := io.Copy(got, to)
	if err := errors.Join(err, <-errs); err != nil {
		return err
	}
	if k != n || !bytes.Equal(got.Sum(nil), want.Sum(nil)) {
		return errors.New("arrived damaged")
	}
	return nil
}

func TestTransfer(t *testing.T) {
	const size = 64 << 20
	for _, c := range pairs {
		t.Run(c.name, func(t *testing.T) {
			n, p := setup(t, NATConfig{})
			a, h := c.connect(t, n, p)
			var wg sync.WaitGroup
			wg.Add(2)
			go func() {
				defer wg.Done()
				if err := transfer(a, h, size, 1); err != nil {
					t.Errorf("to host: %v", err)
				}
			}()
			go func() {
				defer wg.Done()
				if err := transfer(h, a, size, 2); err != nil {
					t.Errorf("from host: %v", err)
				}
			}()
			wg.Wait()
			eventually(t, "the connection is gone", func() bool { return n.Stats().TCPOpen == 0 })
			s := n.Stats()
			if s.BytesToHost != size || s.BytesFromHost != size || s.TCPResets != 0 {
				t.Errorf("stats: %+v", s)
			}
			// 64 MiB in segments of 64 KiB, each way, with room for the start.
			if s.FramesFromAdapter > 30000 || s.DroppedQueueFull+s.DroppedChecksum != 0 {
				t.Errorf("frames: %+v", s)
			}
		})
	}
}

// TestHalfClose: the end of one direction leaves the other alone.
func TestHalfClose(t *testing.T) {
	for _, c := range pairs {
		for _, first := range []string{"adapter", "host"} {
			t.Run(c.name+"/"+first, func(t *testing.T) {
				n, p := setup(t, NATConfig{})
				x, y := c.connect(t, n, p)
				if first == "host" {
					x, y = y, x
				}
				x.SetDeadline(time.Now().Add(limit))
				y.SetDeadline(time.Now().Add(limit))
				x.Write([]byte("request"))
				if err := x.CloseWrite(); err != nil {
					t.Fatal(err)
				}
				if b, err := io.ReadAll(y); string(b) != "request" || err != nil {
					t.Fatalf("read %q, %v", b, err)
				}
				y.Write([]byte("response"))
				y.Close()
				if b, err := io.ReadAll(x); string(b) != "response" || err != nil {
					t.Fatalf("read %q, %v", b, err)
				}
				eventually(t, "the connection is gone", func() bool { return n.Stats().TCPOpen == 0 })
				if s := n.Stats(); s.TCPResets != 0 {
					t.Errorf("%d resets", s.TCPResets)
				}
			})
		}
	}
}

// abortGuest resets the adapter's end.
func abortGuest(p *peer) {
	for _, e := range p.stack.RegisteredEndpoints() {
		if ep, ok := e.(tcpip.Endpoint); ok {
			ep.Abort()
		}
	}
}

func TestReset(t *testing.T) {
	for _, c := range pairs {
		for _, half := range []bool{false, true} {
			name := c.name
			if half {
				name += "/half closed"
			}
			t.Run(name+"/host resets", func(t *testing.T) {
				n, p := setup(t, NATConfig{})
				a, h := c.connect(t, n, p)
				if half {
					a.CloseWrite()
					h.SetReadDeadline(time.Now().Add(limit))
					if _, err := h.Read(make([]byte, 1)); err != io.EOF {
						t.Fatal(err)
					}
				}
				h.(*net.TCPConn).SetLinger(0)
				h.Close()
				a.SetReadDeadline(time.Now().Add(limit))
				if _, err := a.Read(make([]byte, 1)); err == nil || !strings.Contains(err.Error(), "reset by peer") {
					t.Errorf("read: %v, want a reset", err)
				}
				eventually(t, "the reset is counted", func() bool { return n.Stats().TCPResets == 1 })
			})
			t.Run(name+"/adapter resets", func(t *testing.T) {
				n, p := setup(t, NATConfig{})
				a, h := c.connect(t, n, p)
				if half {
					h.CloseWrite()
					a.SetReadDeadline(time.Now().Add(limit))
					if _, err := a.Read(make([]byte, 1)); err != io.EOF {
						t.Fatal(err)
					}
				}
				abortGuest(p)
				h.SetReadDeadline(time.Now().Add(limit))
				if _, err := h.Read(make([]byte, 1)); !errors.Is(err, unix.ECONNRESET) {
					t.Errorf("read: %v, want a reset", err)
				}
				eventually(t, "the reset is counted", func() bool { return n.Stats().TCPResets > 0 })
				if s := n.Stats(); s.TCPResets != 1 {
					t.Errorf("stats: %+v", s)
				}
			})
		}
	}
}

// TestResetAfterFIN: the adapter ends its direction and later resets, while the
// host has nothing to say and nothing to read.
func TestResetAfterFIN(t *testing.T) {
	for _, c := range pairs {
		t.Run(c.name, func(t *testing.T) {
			n, p := setup(t, NATConfig{})
			a, h := c.connect(t, n, p)
			a.CloseWrite()
			h.SetReadDeadline(time.Now().Add(limit))
			if _, err := h.Read(make([]byte, 1)); err != io.EOF {
				t.Fatal(err)
			}
			abortGuest(p)
			eventually(t, "the reset is passed on", func() bool { return n.Stats().TCPResets == 1 })
			// It is counted before the host's socket is closed.
			eventually(t, "the host learns of it", func() bool {
				_, err := h.Write([]byte("x"))
				return errors.Is(err, unix.ECONNRESET) || errors.Is(err, unix.EPIPE)
			})
		})
	}
}

// TestHostResetWhileAdapterStalls: nobody reads on the adapter's side, so the
// gateway reads no more from the host, and still notices its reset.
func TestHostResetWhileAdapterStalls(t *testing.T) {
	n, p := setup(t, NATConfig{})
	_, h := outboundPair(t, n, p)
	h.SetWriteDeadline(time.Now().Add(time.Second))
	for b := make([]byte, 1<<20); ; {
		if _, err := h.Write(b); err != nil {
			break
		}
	}
	h.(*net.TCPConn).SetLinger(0)
	h.Close()
	eventually(t, "the reset is passed on", func() bool { return n.Stats().TCPResets == 1 })
}

// closedPort is a TCP port of both families that refuses, and that nobody else gets
// until the test ends: it is bound, but nobody listens.
func closedPort(t *testing.T) uint16 {
	t.Helper()
	fd, err := unix.Socket(unix.AF_INET6, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	if err := unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_V6ONLY, 0); err != nil {
		t.Fatal(err)
	}
	if err := unix.Bind(fd, &unix.SockaddrInet6{}); err != nil {
		t.Fatal(err)
	}
	at, err := unix.Getsockname(fd)
	if err != nil {
		t.Fatal(err)
	}
	return uint16(at.(*unix.SockaddrInet6).Port)
}

func TestOutboundFailures(t *testing.T) {
	closed := closedPort(t)
	blackHole := func(ctx context.Context, _, _ string) (net.Conn, error) {
		<-ctx.Done()
		return nil, &net.OpError{Op: "dial", Err: ctx.Err()}
	}
	fail := func(err error) func(context.Context, string, string) (net.Conn, error) {
		return func(context.Context, string, string) (net.Conn, error) { return nil, err }
	}
	unexpected := func(_ context.Context, _, addr string) (net.Conn, error) {
		t.Errorf("dialled %s", addr)
		return nil, unix.EPERM
	}
	for _, c := range []struct {
		name string
		to   string // %p in it is a closed port
		dial func(context.Context, string, string) (net.Conn, error)
		want string
		stat func(Stats) uint64
		// timeout of the dial: 0 but where it decides.
		timeout time.Duration
	}{
		{"refused", "10.0.2.2:%p", nil, "refused", func(s Stats) uint64 { return s.TCPRefused }, 0},
		{"refused v6", "[fd00:2::2]:%p", nil, "refused", func(s Stats) uint64 { return s.TCPRefused }, 0},
		{"no such service on the resolver", "10.0.2.3:80", unexpected, "refused", func(s Stats) uint64 { return s.TCPRefused }, 0},
		{"loopback", "127.0.0.1:80", unexpected, "", nil, 0}, // the stack itself does not send it
		{"link-local", "169.254.169.254:80", unexpected, "refused", func(s Stats) uint64 { return s.TCPDenied }, 0},
		{"this network", "0.1.2.3:80", unexpected, "refused", func(s Stats) uint64 { return s.TCPDenied }, 0},
		{"reserved", "240.0.0.1:80", unexpected, "refused", func(s Stats) uint64 { return s.TCPDenied }, 0},
		{"mapped", "[::ffff:127.0.0.1]:80", unexpected, "", nil, 0},
		{"compatible", "[::7f00:1]:80", unexpected, "refused", func(s Stats) uint64 { return s.TCPDenied }, 0},
		{"site-local", "[fec0::1]:80", unexpected, "refused", func(s Stats) uint64 { return s.TCPDenied }, 0},
		{"host unreachable", "203.0.113.1:80", fail(unix.EHOSTUNREACH), "no route", func(s Stats) uint64 { return s.TCPUnreachable }, 0},
		{"network unreachable", "203.0.113.1:80", fail(unix.ENETUNREACH), "unreachable", func(s Stats) uint64 { return s.TCPUnreachable }, 0},
		{"network unreachable v6", "[2001:db8::1]:80", fail(unix.ENETUNREACH), "unreachable", func(s Stats) uint64 { return s.TCPUnreachable }, 0},
		{"host unreachable v6", "[2001:db8::1]:80", fail(unix.EHOSTUNREACH), "unreachable", func(s Stats) uint64 { return s.TCPUnreachable }, 0},
		{"silent", "203.0.113.1:80", blackHole, "no route", func(s Stats) uint64 { return s.TCPTimedOut }, time.Millisecond},
		{"no descriptors", "203.0.113.1:80", fail(unix.EMFILE), "refused", func(s Stats) uint64 { return s.TCPNoRoom }, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			cfg := NATConfig{Dial: c.dial, DialTimeout: c.timeout}
			n, p := setup(t, cfg)
			ctx, cancel := context.WithTimeout(context.Background(), limit)
			defer cancel()
			a := netip.MustParseAddrPort(strings.ReplaceAll(c.to, "%p", "1"))
			if strings.Contains(c.to, "%p") {
				a = netip.AddrPortFrom(a.Addr(), closed)
			}
			if c.stat == nil {
				// Only a hostile adapter sends it: judge the decision alone.
				if _, v := n.route(a); v != denied {
					t.Fatalf("verdict %d", v)
				}
				return
			}
			conn, err := p.dial(ctx, a)
			if err == nil {
				conn.Close()
				t.Fatal("connected")
			}
			if !strings.Contains(err.Error(), c.want) {
				t.Errorf("dial: %v, want %q", err, c.want)
			}
			if got := c.stat(n.Stats()); got != 1 {
				t.Errorf("counted %d; %+v", got, n.Stats())
			}
		})
	}
}

// TestNoSuchHost: nobody answers for the other addresses of the network.
func TestNoSuchHost(t *testing.T) {
	n, p := setup(t, NATConfig{})
	_, err := p.dial(deadline(t), netip.MustParseAddrPort("10.0.2.77:80"))
	if err == nil || !strings.Contains(err.Error(), "no route") {
		t.Errorf("dial: %v", err)
	}
	if n.Stats().DroppedNeighbor == 0 {
		t.Error("not counted")
	}
}

// wantReset connects to l and fails the test if that does not end in a reset.
func wantReset(t *testing.T, l net.Listener) {
	t.Helper()
	c, err := net.Dial("tcp", l.Addr().String())
	if err == nil { // else the reset was faster
		defer c.Close()
		c.SetDeadline(time.Now().Add(limit))
		_, err = c.Read(make([]byte, 1))
	}
	if !errors.Is(err, unix.ECONNRESET) {
		t.Errorf("%v, want a reset", err)
	}
}

func TestInboundRefused(t *testing.T) {
	n, _ := setup(t, NATConfig{ConnectTimeout: time.Hour}) // a refusal does not wait for it
	l := hostListen(t, "127.0.0.1:0")
	if err := n.Forward(l, netip.AddrPortFrom(netip.IPv4Unspecified(), 81)); err != nil {
		t.Fatal(err)
	}
	wantReset(t, l)
	if s := n.Stats(); s.TCPRefused != 1 {
		t.Errorf("stats: %+v", s)
	}
}

// TestInboundRestarted: after a restart clients wait for the adapter's program to
// listen again, but once it does a refusal is one, and also when it never does.
func TestInboundRestarted(t *testing.T) {
	forward := func(t *testing.T, n *NAT) net.Listener {
		t.Helper()
		l := hostListen(t, "127.0.0.1:0")
		if err := n.Forward(l, netip.AddrPortFrom(n.adapter, 80)); err != nil {
			t.Fatal(err)
		}
		return l
	}
	t.Run("listens again", func(t *testing.T) {
		n, p := setup(t, NATConfig{ConnectTimeout: time.Hour, Restarted: true})
		l := forward(t, n)
		h, err := net.Dial("tcp", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer h.Close()
		before := n.Stats().FramesFromAdapter
		eventually(t, "the adapter has refused", func() bool { return n.Stats().FramesFromAdapter > before+4 })
		gl := p.listen(t, netip.AddrPortFrom(n.adapter, 80))
		a, err := gl.Accept()
		if err != nil {
			t.Fatal(err)
		}
		a.Close()
		gl.Close()
		// From then on the gateway knows that the adapter listens again.
		h.SetReadDeadline(time.Now().Add(limit))
		if _, err := h.Read(make([]byte, 1)); err != io.EOF {
			t.Fatalf("read: %v", err)
		}
		wantReset(t, l)
		if s := n.Stats(); s.TCPRefused != 1 || s.TCPInbound != 1 {
			t.Errorf("stats: %+v", s)
		}
	})
	t.Run("never", func(t *testing.T) {
		n, _ := setup(t, NATConfig{ConnectTimeout: 100 * time.Millisecond, Restarted: true})
		wantReset(t, forward(t, n))
	})
}

// TestInboundBeforeAdapter: a client that comes before the adapter is up gets
// through when it comes up in time, and is reset when it does not.
func TestInboundBeforeAdapter(t *testing.T) {
	t.Run("in time", func(t *testing.T) {
		checkLeaks(t)
		n, err := NewNAT(NATConfig{ConnectTimeout: 2 * limit})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { n.Close() })
		l := hostListen(t, "127.0.0.1:0")
		if err := n.Forward(l, netip.AddrPortFrom(netip.Addr{}, 80)); err != nil {
			t.Fatal(err)
		}
		h, err := net.Dial("tcp", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer h.Close()
		eventually(t, "the gateway looks for the adapter", func() bool { return n.Stats().DroppedNotAttached > 0 })
		p := makePeer(t, n, n.Lease(), true)
		gl := p.listen(t, netip.AddrPortFrom(n.adapter, 80))
		p.plug(t) // listening: the next SYN finds it
		a, err := gl.Accept()
		if err != nil {
			t.Fatal(err)
		}
		a.Close()
		h.SetDeadline(time.Now().Add(limit))
		if _, err := h.Read(make([]byte, 1)); err != io.EOF {
			t.Errorf("read: %v", err)
		}
	})
	t.Run("never", func(t *testing.T) {
		checkLeaks(t)
		n, err := NewNAT(NATConfig{ConnectTimeout: 300 * time.Millisecond})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { n.Close() })
		l := hostListen(t, "127.0.0.1:0")
		if err := n.Forward(l, netip.AddrPortFrom(netip.Addr{}, 80)); err != nil {
			t.Fatal(err)
		}
		wantReset(t, l)
		if s := n.Stats(); s.TCPTimedOut != 1 {
			t.Errorf("stats: %+v", s)
		}
	})
}

// closes fails the test if Close waits for what does not come.
func closes(t *testing.T, n *NAT) {
	t.Helper()
	closed := make(chan struct{})
	go func() {
		defer close(closed)
		n.Close()
	}()
	select {
	case <-closed:
	case <-time.After(limit):
		t.Fatal("Close does not return")
	}
}

// TestCloseWhileBusy closes the gateway under connections in every state, of which
// none would end by itself.
func TestCloseWhileBusy(t *testing.T) {
	stuck := make(chan struct{})
	n, p := setup(t, NATConfig{DialTimeout: time.Hour, ConnectTimeout: time.Hour, Dial: func(ctx context.Context, network, addr string) (net.Conn, error) {
		if strings.HasPrefix(addr, "203.") {
			close(stuck)
			<-ctx.Done()
			return nil, ctx.Err()
		}
		return (&net.Dialer{}).DialContext(ctx, network, addr)
	}})
	_, h := outboundPair(t, n, p)
	_, h2 := inboundPair(t, n, p)
	h2.CloseWrite()
	go h.Write(make([]byte, 64<<20)) // nobody reads it
	go p.dial(deadline(t), netip.MustParseAddrPort("203.0.113.1:80"))
	<-stuck
	l := hostListen(t, "127.0.0.1:0")
	if err := n.Forward(l, netip.MustParseAddrPort("10.0.2.77:80")); err != nil { // never answers
		t.Fatal(err)
	}
	if c, err := net.Dial("tcp", l.Addr().String()); err != nil {
		t.Fatal(err)
	} else {
		defer c.Close()
	}
	closes(t, n)
	closes(t, n)
	if err := n.Forward(hostListen(t, "127.0.0.1:0"), netip.MustParseAddrPort("10.0.2.15:80")); !errors.Is(err, net.ErrClosed) {
		t.Errorf("Forward after Close: %v", err)
	}
	if k := n.Transmit([]engine.Frame{{Data: [][]byte{make([]byte, 64)}}}); k != 0 {
		t.Error("Transmit after Close")
	}
}
