// SPDX-License-Identifier: Apache-2.0

package guestdriver_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/net/nettest"

	"toebox/guestdriver"
	"toebox/guestdriver/guestdrivertest"
)

// limit bounds every wait of these tests.
const limit = 60 * time.Second

func open(t testing.TB, opts guestdriver.Options) (*guestdriver.Adapter, *guestdrivertest.Fake) {
	t.Helper()
	f := guestdrivertest.New()
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	a, err := guestdriver.Open(ctx, f, opts)
	if err != nil {
		f.Close()
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := a.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
	})
	return a, f
}

// pair returns the two ends of a connection.
func pair(t testing.TB, a *guestdriver.Adapter) (dialed, accepted *guestdriver.Conn) {
	t.Helper()
	l, err := a.Listen("tcp", "10.0.2.15:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	c, err := a.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	s, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	return c.(*guestdriver.Conn), s.(*guestdriver.Conn)
}

func TestNetTest(t *testing.T) {
	for name, opts := range map[string]guestdriver.Options{
		"interrupt": {},
		"hybrid":    {Mode: guestdriver.ModeHybrid, Queues: 3},
		"poll":      {Mode: guestdriver.ModePoll, InLog2: 4, OutLog2: 4},
	} {
		t.Run(name, func(t *testing.T) {
			a, _ := open(t, opts)
			nettest.TestConn(t, func() (net.Conn, net.Conn, func(), error) {
				c, s := pair(t, a)
				return c, s, func() { c.Close(); s.Close() }, nil
			})
		})
	}
}

func TestTransfer(t *testing.T) {
	a, _ := open(t, guestdriver.Options{Queues: 2})
	c, s := pair(t, a)
	const size = 8 << 20
	send := func(c *guestdriver.Conn, seed byte) [32]byte {
		h := sha256.New()
		src := io.TeeReader(io.LimitReader(rand.NewChaCha8([32]byte{seed}), size), h)
		for n := 1; ; n = n*3%200_000 + 1 {
			m, err := io.CopyN(struct{ io.Writer }{c}, src, int64(n))
			if err == io.EOF && m == 0 {
				break
			}
			if err != nil && err != io.EOF {
				t.Errorf("write: %v", err)
				break
			}
		}
		if err := c.CloseWrite(); err != nil {
			t.Errorf("close write: %v", err)
		}
		return [32]byte(h.Sum(nil))
	}
	receive := func(c *guestdriver.Conn) [32]byte {
		h := sha256.New()
		n, err := io.Copy(h, struct{ io.Reader }{c})
		if n != size || err != nil {
			t.Errorf("read %d bytes: %v", n, err)
		}
		return [32]byte(h.Sum(nil))
	}
	var sums [4][32]byte
	var wg sync.WaitGroup
	wg.Go(func() { sums[0] = send(c, 1) })
	wg.Go(func() { sums[1] = receive(s) })
	wg.Go(func() { sums[2] = send(s, 2) })
	wg.Go(func() { sums[3] = receive(c) })
	wg.Wait()
	if sums[0] != sums[1] || sums[2] != sums[3] {
		t.Error("bytes differ")
	}
	if got := a.Stats().HostCopyBytes; got != 4*size {
		t.Errorf("host copied %d bytes, want one copy at each end: %d", got, 4*size)
	}
	c.Close()
	s.Close()
}

// TestUnread shows that a connection that nobody reads stops no other.
func TestUnread(t *testing.T) {
	a, _ := open(t, guestdriver.Options{Memory: 2 << 20})
	var stuck []net.Conn
	for range 20 {
		c, s := pair(t, a)
		c.SetWriteDeadline(time.Now().Add(50 * time.Millisecond))
		if _, err := c.Write(make([]byte, 4<<20)); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Fatalf("write to a peer that does not read: %v", err)
		}
		stuck = append(stuck, c, s)
	}
	c, s := pair(t, a)
	data := bytes.Repeat([]byte("0123456789abcdef"), 1<<14)
	go func() { c.Write(data); c.CloseWrite() }()
	s.SetReadDeadline(time.Now().Add(limit))
	got, err := io.ReadAll(s)
	if err != nil || !bytes.Equal(got, data) {
		t.Fatalf("read %d bytes: %v", len(got), err)
	}
	for _, c := range append(stuck, c, s) {
		c.(*guestdriver.Conn).SetLinger(0)
		c.Close()
	}
	waitFor(t, "the end of closed connections", func() bool { s := a.Stats(); return s.Memory == 0 && s.Outstanding == 0 })
	if s := a.Stats(); s.LostBuffers != 0 {
		t.Errorf("left behind: %+v", s)
	}
}

// waitFor polls a condition that another goroutine makes true.
func waitFor(t testing.TB, what string, done func() bool) {
	t.Helper()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	end := time.After(limit)
	for !done() {
		select {
		case <-tick.C:
		case <-end:
			t.Fatalf("timed out waiting for %s", what)
		}
	}
}

func TestErrors(t *testing.T) {
	a, _ := open(t, guestdriver.Options{})
	_, err := a.Dial("tcp", "10.0.2.2:1")
	var op *net.OpError
	if !errors.Is(err, syscall.ECONNREFUSED) || !errors.As(err, &op) || op.Op != "dial" || op.Addr.String() != "10.0.2.2:1" {
		t.Errorf("refused: %v", err)
	}
	if want := "dial tcp 10.0.2.2:1: connect: connection refused"; err.Error() != want {
		t.Errorf("refused: %q, want %q", err, want)
	}
	l, err := a.Listen("tcp4", ":80")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := a.Listen("tcp4", ":80"); !errors.Is(err, syscall.EADDRINUSE) {
		t.Errorf("second listen: %v", err)
	}
	done := make(chan error)
	go func() { _, err := l.Accept(); done <- err }()
	l.Close()
	if err := <-done; !errors.Is(err, net.ErrClosed) {
		t.Errorf("accept after close: %v", err)
	}
	waitFor(t, "the port", func() bool {
		l, err := a.Listen("tcp4", ":80")
		if err == nil {
			l.Close()
		}
		return err == nil
	})

	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Millisecond)
	defer cancel()
	_, err = a.DialContext(ctx, "tcp", "10.0.2.2:99")
	var ne net.Error
	if !errors.As(err, &ne) || !ne.Timeout() || !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("dial timeout: %v", err)
	}
	waitFor(t, "the cancelled connect", func() bool { return a.Stats().Outstanding == 0 })
	for _, bad := range [][2]string{{"udp", "10.0.2.2:1"}, {"tcp", "10.0.2.2"}, {"tcp6", "10.0.2.2:1"}, {"tcp", ":1"}, {"tcp", "10.0.2.2:no-such-service"}} {
		if _, err := a.Dial(bad[0], bad[1]); !errors.As(err, &op) {
			t.Errorf("dial %q: %v", bad, err)
		}
	}
	for _, bad := range [][2]string{{"udp", ":1"}, {"tcp", "host:1"}, {"tcp6", "10.0.2.15:1"}, {"tcp", "x"}} {
		if _, err := a.Listen(bad[0], bad[1]); !errors.As(err, &op) {
			t.Errorf("listen %q: %v", bad, err)
		}
	}
}

func TestHalfCloseAndReset(t *testing.T) {
	a, _ := open(t, guestdriver.Options{})
	c, s := pair(t, a)
	c.Write([]byte("last words"))
	c.CloseWrite()
	if _, err := c.Write([]byte("x")); !errors.Is(err, syscall.EPIPE) {
		t.Errorf("write after close write: %v", err)
	}
	if got, err := io.ReadAll(s); string(got) != "last words" || err != nil {
		t.Errorf("read %q, %v", got, err)
	}
	s.Write([]byte("answer"))
	s.Close()
	if got, err := io.ReadAll(c); string(got) != "answer" || err != nil {
		t.Errorf("read %q, %v", got, err)
	}
	c.Close()
	if err := c.Close(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("second close: %v", err)
	}

	c, s = pair(t, a)
	c.SetLinger(0)
	c.Close()
	if _, err := s.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("read of a reset connection: %v", err)
	}
	if _, err := s.Write([]byte("x")); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("write to a reset connection: %v", err)
	}
	s.Close()

	c, s = pair(t, a)
	if err := s.CloseRead(); err != nil {
		t.Error(err)
	}
	if _, err := s.Read(make([]byte, 1)); err != io.EOF {
		t.Errorf("read after close read: %v", err)
	}
	if _, err := c.Write(make([]byte, 1<<20)); err != nil {
		t.Errorf("write to one that does not read any more: %v", err)
	}
	c.Close()
	s.Close()
}

func TestCopies(t *testing.T) {
	a, _ := open(t, guestdriver.Options{})
	c, s := pair(t, a)
	text := strings.Repeat("all the world's a stage ", 40_000)
	go func() {
		if n, err := c.ReadFrom(strings.NewReader(text)); n != int64(len(text)) || err != nil {
			t.Errorf("ReadFrom: %d, %v", n, err)
		}
		b := net.Buffers{[]byte("and all "), nil, []byte("the men "), []byte("and women")}
		if n, err := c.WriteBuffers(&b); n != 25 || err != nil || len(b) != 0 {
			t.Errorf("WriteBuffers: %d, %v, %d left", n, err, len(b))
		}
		c.CloseWrite()
	}()
	var got strings.Builder
	if _, err := s.WriteTo(&got); err != nil {
		t.Fatal(err)
	}
	if got.String() != text+"and all the men and women" {
		t.Errorf("got %d bytes", got.Len())
	}
	if st := a.Stats(); st.HostCopyBytes != 25 || st.DirectBytes != uint64(2*len(text)+25) {
		t.Errorf("copied %d, direct %d", st.HostCopyBytes, st.DirectBytes)
	}
}

func TestHTTP(t *testing.T) {
	a, _ := open(t, guestdriver.Options{Queues: 2})
	l, err := a.Listen("tcp", ":80")
	if err != nil {
		t.Fatal(err)
	}
	srv := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		b, _ := io.ReadAll(r.Body)
		io.WriteString(w, strings.ToUpper(string(b)))
	})}
	go srv.Serve(l)
	defer srv.Close()
	for _, keep := range []bool{true, false} {
		tr := &http.Transport{DialContext: a.DialContext, DisableKeepAlives: !keep}
		defer tr.CloseIdleConnections()
		cl := http.Client{Transport: tr, Timeout: limit}
		var wg sync.WaitGroup
		for range 4 {
			wg.Go(func() {
				for range 50 {
					for _, url := range []string{"http://10.0.2.15/", "http://[fd00::2]/"} {
						res, err := cl.Post(url, "text/plain", strings.NewReader("who is there"))
						if err != nil {
							t.Error(err)
							return
						}
						b, err := io.ReadAll(res.Body)
						res.Body.Close()
						if string(b) != "WHO IS THERE" || err != nil {
							t.Errorf("%q, %v", b, err)
						}
					}
				}
			})
		}
		wg.Wait()
	}
}

func TestAddresses(t *testing.T) {
	a, _ := open(t, guestdriver.Options{})
	for _, network := range []string{"tcp4", "tcp6"} {
		host := map[string]string{"tcp4": "10.0.2.15", "tcp6": "fd00::2"}[network]
		l, err := a.Listen(network, net.JoinHostPort(host, "0"))
		if err != nil {
			t.Fatal(err)
		}
		c, err := a.Dial(network, l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		s, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		if c.RemoteAddr().String() != l.Addr().String() || c.LocalAddr().String() != s.RemoteAddr().String() ||
			c.RemoteAddr().String() != s.LocalAddr().String() || c.LocalAddr().(*net.TCPAddr).IP.String() != host {
			t.Errorf("%v -> %v, %v -> %v", c.LocalAddr(), c.RemoteAddr(), s.LocalAddr(), s.RemoteAddr())
		}
		c.Close()
		s.Close()
		l.Close()
	}
}

type panicWriter struct{}

func (panicWriter) Write([]byte) (int, error) { panic("writer") }

// TestWriteToPanics: a writer that panics does not take the connection with it.
func TestWriteToPanics(t *testing.T) {
	a, _ := open(t, guestdriver.Options{})
	c, s := pair(t, a)
	defer c.Close()
	defer s.Close()
	if _, err := s.Write([]byte("hello")); err != nil {
		t.Fatal(err)
	}
	func() {
		defer func() {
			if recover() != "writer" {
				t.Error("no panic")
			}
		}()
		c.WriteTo(panicWriter{})
	}()
	c.SetReadDeadline(time.Now().Add(limit))
	buf := make([]byte, 5)
	if _, err := io.ReadFull(c, buf); err != nil || string(buf) != "hello" {
		t.Errorf("%q, %v", buf, err)
	}
}
