// SPDX-License-Identifier: Apache-2.0

package rig_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"toebox/guestdriver"
	"toebox/vdev/port"
)

// stack is package net, or the driver in its place. Either reaches servers on
// the host's loopback, and is reached by clients there.
type stack struct {
	listen func(network, address string) (net.Listener, error)
	dial   func(ctx context.Context, network, address string) (net.Conn, error)
	host   string // the host's loopback as the stack sees it
	own    string // what the stack's listeners are bound to
	// outside returns where the host reaches a listener of the stack.
	outside func(t *testing.T, l net.Listener) string
}

// standard is the kernel's TCP through package net.
func standard(*testing.T) *stack {
	var d net.Dialer
	return &stack{
		listen: net.Listen, dial: d.DialContext, host: "127.0.0.1", own: "127.0.0.1",
		outside: func(_ *testing.T, l net.Listener) string { return l.Addr().String() },
	}
}

// offload is the adapter through the driver.
func offload(t *testing.T) *stack {
	t.Helper()
	d, a := adapter(t, port.NATConfig{}, guestdriver.Options{Queues: 2})
	return &stack{
		listen: a.Listen, dial: a.DialContext, host: "10.0.2.2", own: "10.0.2.15",
		outside: func(t *testing.T, l net.Listener) string {
			t.Helper()
			in, err := net.Listen("tcp4", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			at := in.Addr().String()
			to := netip.AddrPortFrom(netip.Addr{}, uint16(l.Addr().(*net.TCPAddr).Port))
			if err := d.NAT().Forward(in, to); err != nil {
				t.Fatal(err)
			}
			return at
		},
	}
}

// patience bounds each of these programs.
const patience = 60 * time.Second

// server serves one connection after the other on the host's loopback.
func server(t *testing.T, serve func(*net.TCPConn)) string {
	t.Helper()
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	t.Cleanup(func() { l.Close(); <-done })
	go func() {
		defer close(done)
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			c.SetDeadline(time.Now().Add(patience))
			serve(c.(*net.TCPConn))
			c.Close()
		}
	}()
	_, port, _ := net.SplitHostPort(l.Addr().String())
	return port
}

// describe says of an error what programs look at: the errors that it is, the
// shape that package net gives it, whether it is a time-out.
func describe(err error) string {
	if err == nil {
		return "nil"
	}
	if err == io.EOF {
		return "EOF"
	}
	var out []string
	var op *net.OpError
	if errors.As(err, &op) {
		out = append(out, fmt.Sprintf("%s %s source %t address %t", op.Op, op.Net, op.Source != nil, op.Addr != nil))
	}
	for name, is := range map[string]error{
		"ErrClosed": net.ErrClosed, "ErrDeadlineExceeded": os.ErrDeadlineExceeded,
		"context.Canceled": context.Canceled, "context.DeadlineExceeded": context.DeadlineExceeded,
		"ECONNREFUSED": syscall.ECONNREFUSED, "ECONNRESET": syscall.ECONNRESET, "EPIPE": syscall.EPIPE,
		"EADDRINUSE": syscall.EADDRINUSE, "EADDRNOTAVAIL": syscall.EADDRNOTAVAIL, "ETIMEDOUT": syscall.ETIMEDOUT,
	} {
		if errors.Is(err, is) {
			out = append(out, name)
		}
	}
	slices.Sort(out)
	var ne net.Error
	if errors.As(err, &ne) {
		out = append(out, fmt.Sprintf("timeout %t", ne.Timeout()))
	}
	for _, as := range []struct {
		name   string
		target any
	}{
		{"AddrError", new(*net.AddrError)}, {"DNSError", new(*net.DNSError)}, {"UnknownNetworkError", new(net.UnknownNetworkError)},
	} {
		if errors.As(err, as.target) {
			out = append(out, as.name)
		}
	}
	return strings.Join(out, ", ")
}

// half is what both stacks' connections can do beyond net.Conn.
type half interface {
	net.Conn
	io.ReaderFrom
	io.WriterTo
	CloseRead() error
	CloseWrite() error
	SetLinger(sec int) error
	SetNoDelay(bool) error
	SetKeepAlive(bool) error
	SetKeepAlivePeriod(time.Duration) error
	SetReadBuffer(int) error
	SetWriteBuffer(int) error
}

// program is run on both stacks and says what it saw.
type program struct {
	t   *testing.T
	s   *stack
	saw []string
}

func (p *program) note(what string, n any, err error) {
	p.saw = append(p.saw, fmt.Sprintf("%s: %v, %s", what, n, describe(err)))
}

// connect dials a server on the host.
func (p *program) connect(serve func(*net.TCPConn)) half {
	p.t.Helper()
	c, err := p.s.dial(p.t.Context(), "tcp", net.JoinHostPort(p.s.host, server(p.t, serve)))
	if err != nil {
		p.t.Fatal(err)
	}
	p.t.Cleanup(func() { c.Close() })
	return c.(half)
}

// hold keeps a connection open until the other side ends it.
func hold(c *net.TCPConn) { io.Copy(io.Discard, c) }

// deaf is a port of the host that the test holds and where nobody listens.
func deaf(t *testing.T) string {
	t.Helper()
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	if err := unix.Bind(fd, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}); err != nil {
		t.Fatal(err)
	}
	at, err := unix.Getsockname(fd)
	if err != nil {
		t.Fatal(err)
	}
	return strconv.Itoa(at.(*unix.SockaddrInet4).Port)
}

// past is a deadline that is over.
var past = time.Unix(1, 0)

var programs = map[string]func(*program){
	"end of stream": func(p *program) {
		c := p.connect(func(c *net.TCPConn) { io.WriteString(c, "hello") })
		b, err := io.ReadAll(c)
		p.note("read all", string(b), err)
		n, err := c.Read(make([]byte, 1))
		p.note("read again", n, err)
		n, err = c.Read(nil)
		p.note("read nothing", n, err)
	},
	"nothing": func(p *program) {
		c := p.connect(hold)
		n, err := c.Write(nil)
		p.note("write", n, err)
		n, err = c.Read(nil)
		p.note("read", n, err)
	},
	"addresses": func(p *program) {
		c := p.connect(hold)
		p.note("local", fmt.Sprintf("%T %s", c.LocalAddr(), c.LocalAddr().Network()), nil)
		p.note("remote", fmt.Sprintf("%T %s %t", c.RemoteAddr(), c.RemoteAddr().Network(),
			strings.HasPrefix(c.RemoteAddr().String(), p.s.host+":")), nil)
	},
	"read deadline": func(p *program) {
		c := p.connect(func(c *net.TCPConn) {
			io.ReadFull(c, make([]byte, 1))
			io.WriteString(c, "x")
			hold(c)
		})
		p.note("set", nil, c.SetReadDeadline(past))
		n, err := c.Read(make([]byte, 8))
		p.note("past", n, err)
		p.note("set", nil, c.SetDeadline(time.Time{}))
		blocked := make(chan error)
		go func() {
			_, err := c.Read(make([]byte, 8))
			blocked <- err
		}()
		c.SetReadDeadline(time.Now().Add(time.Hour))
		c.SetReadDeadline(past)
		p.note("moved under a read", nil, <-blocked)
		c.SetReadDeadline(time.Now().Add(patience))
		io.WriteString(c, ".")
		n, err = c.Read(make([]byte, 8))
		p.note("moved on", n, err)
	},
	"write deadline": func(p *program) {
		stop := make(chan struct{})
		c := p.connect(func(c *net.TCPConn) { <-stop })
		defer close(stop)
		c.SetWriteDeadline(past)
		n, err := c.Write([]byte("x"))
		p.note("past", n, err)
		c.SetWriteDeadline(time.Time{})
		blocked := make(chan error)
		go func() {
			n, err := c.Write(make([]byte, 64<<20))
			if n == 64<<20 {
				err = errors.New("nobody read, and all was written")
			}
			blocked <- err
		}()
		// Whether it waits already or not, the deadline ends it.
		c.SetWriteDeadline(time.Now().Add(50 * time.Millisecond))
		p.note("moved under a write", nil, <-blocked)
	},
	"half-close": func(p *program) {
		c := p.connect(func(c *net.TCPConn) {
			b, _ := io.ReadAll(c)
			fmt.Fprintf(c, "%d bytes", len(b))
		})
		io.WriteString(c, "12345")
		p.note("close write", nil, c.CloseWrite())
		n, err := c.Write([]byte("x"))
		p.note("write", n, err)
		b, err := io.ReadAll(c)
		p.note("read", string(b), err)
		p.note("close", nil, c.Close())
	},
	"close read": func(p *program) {
		c := p.connect(hold)
		p.note("close read", nil, c.CloseRead())
		n, err := c.Read(make([]byte, 1))
		p.note("read", n, err)
		n, err = c.Write([]byte("x"))
		p.note("write", n, err)
	},
	"closed": func(p *program) {
		c := p.connect(hold)
		blocked := make(chan error)
		go func() {
			_, err := c.Read(make([]byte, 1))
			blocked <- err
		}()
		p.note("close", nil, c.Close())
		p.note("read under way", nil, <-blocked)
		n, err := c.Read(make([]byte, 1))
		p.note("read", n, err)
		n, err = c.Write([]byte("x"))
		p.note("write", n, err)
		p.note("close write", nil, c.CloseWrite())
		p.note("close read", nil, c.CloseRead())
		p.note("deadline", nil, c.SetDeadline(past))
		p.note("read deadline", nil, c.SetReadDeadline(past))
		p.note("write deadline", nil, c.SetWriteDeadline(past))
		p.note("no delay", nil, c.SetNoDelay(true))
		p.note("keep-alive", nil, c.SetKeepAlive(true))
		p.note("linger", nil, c.SetLinger(1))
		p.note("read buffer", nil, c.SetReadBuffer(65536))
		p.note("write buffer", nil, c.SetWriteBuffer(65536))
		p.note("close again", nil, c.Close())
		m, err := c.ReadFrom(strings.NewReader("x"))
		p.note("read from", m, err)
		m, err = c.WriteTo(io.Discard)
		p.note("write to", m, err)
	},
	"options": func(p *program) {
		c := p.connect(hold)
		p.note("no delay", nil, errors.Join(c.SetNoDelay(false), c.SetNoDelay(true)))
		p.note("keep-alive", nil, errors.Join(c.SetKeepAlive(true), c.SetKeepAlivePeriod(time.Minute)))
		p.note("linger", nil, errors.Join(c.SetLinger(5), c.SetLinger(-1)))
		p.note("buffers", nil, errors.Join(c.SetReadBuffer(1<<18), c.SetWriteBuffer(1<<18)))
	},
	"reset": func(p *program) {
		c := p.connect(func(c *net.TCPConn) {
			io.ReadFull(c, make([]byte, 1))
			c.SetLinger(0)
		})
		io.WriteString(c, "x")
		n, err := c.Read(make([]byte, 1))
		p.note("read", n, err)
	},
	"streams": func(p *program) {
		c := p.connect(func(c *net.TCPConn) { io.Copy(c, c) })
		const size = 1 << 20
		sent := make(chan error, 1)
		go func() {
			n, err := c.ReadFrom(io.LimitReader(endless{}, size))
			if err == nil && n != size {
				err = fmt.Errorf("%d bytes", n)
			}
			sent <- errors.Join(err, c.CloseWrite())
		}()
		var got counting
		n, err := c.WriteTo(&got)
		p.note("write to", n, err)
		p.note("bytes", got.wrong, nil)
		p.note("read from", nil, <-sent)
	},
	"vectors": func(p *program) {
		c := p.connect(func(c *net.TCPConn) { io.Copy(c, c) })
		v := net.Buffers{[]byte("one "), nil, []byte("two "), []byte("three")}
		n, err := v.WriteTo(c)
		p.note("write", n, err)
		p.note("left", len(v), nil)
		c.CloseWrite()
		b, err := io.ReadAll(c)
		p.note("read", string(b), err)
	},
	"refused": func(p *program) {
		_, err := p.s.dial(p.t.Context(), "tcp", net.JoinHostPort(p.s.host, deaf(p.t)))
		p.note("dial", nil, err)
	},
	"dial without time": func(p *program) {
		ctx, cancel := context.WithDeadline(p.t.Context(), past)
		defer cancel()
		_, err := p.s.dial(ctx, "tcp", p.s.host+":9")
		p.note("deadline", nil, err)
		ctx, cancel = context.WithCancel(p.t.Context())
		cancel()
		_, err = p.s.dial(ctx, "tcp", p.s.host+":9")
		p.note("cancelled", nil, err)
	},
	"wrong addresses": func(p *program) {
		for _, a := range []string{"", "host", ":", "1.2.3.4", "1.2.3.4:", "1.2.3.4:65536", "1.2.3.4:-1", "1.2.3.4:nosuch", "::1:80", "[::1", "[::1]80"} {
			if a == ":" || a == "1.2.3.4:" {
				continue // port 0: what follows is the stack's own affair
			}
			_, err := p.s.dial(p.t.Context(), "tcp", a)
			p.note("dial "+a, nil, err)
			if a != "" { // an empty address is a port of any kind
				_, err = p.s.listen("tcp", a)
				p.note("listen "+a, nil, err)
			}
		}
		for _, network := range []string{"", "tcp5", "TCP"} {
			_, err := p.s.dial(p.t.Context(), network, "1.2.3.4:80")
			p.note("dial on "+network, nil, err)
		}
		_, err := p.s.dial(p.t.Context(), "tcp6", "1.2.3.4:80")
		p.note("dial tcp6", nil, err)
		_, err = p.s.listen("tcp6", p.s.own+":0")
		p.note("listen tcp6", nil, err)
		_, err = p.s.listen("tcp", "192.0.2.1:0")
		p.note("listen elsewhere", nil, err)
	},
	"listen": func(p *program) {
		l, err := p.s.listen("tcp", p.s.own+":0")
		if err != nil {
			p.t.Fatal(err)
		}
		p.note("address", fmt.Sprintf("%T %s", l.Addr(), l.Addr().Network()), nil)
		_, err = p.s.listen("tcp", l.Addr().String())
		p.note("in use", nil, err)
		d := l.(interface{ SetDeadline(time.Time) error })
		d.SetDeadline(past)
		_, err = l.Accept()
		p.note("deadline", nil, err)
		d.SetDeadline(time.Time{})
		at := p.s.outside(p.t, l)
		peer, err := net.Dial("tcp", at)
		if err != nil {
			p.t.Fatal(err)
		}
		defer peer.Close()
		d.SetDeadline(time.Now().Add(patience))
		c, err := l.Accept()
		p.note("accept", nil, err)
		if err == nil {
			io.WriteString(c, "hello")
			c.Close()
			peer.SetDeadline(time.Now().Add(patience))
			b, err := io.ReadAll(peer)
			p.note("served", string(b), err)
		}
		blocked := make(chan error)
		go func() {
			_, err := l.Accept()
			blocked <- err
		}()
		p.note("close", nil, l.Close())
		p.note("accept under way", nil, <-blocked)
		_, err = l.Accept()
		p.note("accept closed", nil, err)
		p.note("deadline closed", nil, d.SetDeadline(past))
		p.note("close again", nil, l.Close())
	},
}

// endless reads as a pattern that shows its place.
type endless struct{}

func (endless) Read(p []byte) (int, error) {
	n := len(p) &^ 0xff
	if n == 0 {
		n = len(p)
	}
	for i := range p[:n] {
		p[i] = byte(i)
	}
	return n, nil
}

// counting checks that pattern.
type counting struct {
	at    byte
	wrong int
}

func (c *counting) Write(p []byte) (int, error) {
	for _, b := range p {
		if b != c.at {
			c.wrong++
		}
		c.at++
	}
	return len(p), nil
}

// TestAsPackageNet runs the same programs over package net and over the driver:
// what they see is the same.
func TestAsPackageNet(t *testing.T) {
	ours := offload(t)
	for name, f := range programs {
		t.Run(name, func(t *testing.T) {
			want := program{t: t, s: standard(t)}
			f(&want)
			got := program{t: t, s: ours}
			f(&got)
			for i := range max(len(want.saw), len(got.saw)) {
				var w, g string
				if i < len(want.saw) {
					w = want.saw[i]
				}
				if i < len(got.saw) {
					g = got.saw[i]
				}
				if w != g {
					t.Errorf("package net: %s\n       driver: %s", w, g)
				}
			}
		})
	}
}
