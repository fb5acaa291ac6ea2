// SPDX-License-Identifier: Apache-2.0

package conformance

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"sync"
	"syscall"
	"time"

	"toebox/guestdriver"
	"toebox/vdev/abi"
)

// driver opens the adapter through the driver under test.
func (t *T) driver() *guestdriver.Adapter {
	t.Helper()
	bus, err := t.Env.Open(t.ctx)
	check(t, "open the adapter", err)
	a, err := guestdriver.Open(t.ctx, bus, guestdriver.Options{Memory: 16 << 20})
	if err != nil {
		bus.Close()
		t.Fatalf("start the driver: %v", err)
	}
	t.Cleanup(func() {
		if err := a.Close(); err != nil {
			t.Errorf("close the driver: %v", err)
		}
	})
	bus.Write32(0, regChecker, 1)
	t.innocent(bus, func() []byte {
		v, err := a.Attribute(context.Background(), 0, 0x0114)
		if err != nil {
			t.Logf("CHECKER_REPORT: %v", err)
		}
		return v
	})
	return a
}

// half is what a connection of the driver offers beyond net.Conn.
type half interface {
	net.Conn
	CloseRead() error
	CloseWrite() error
	SetLinger(sec int) error
}

// dialPeer connects the driver to a script of the peer.
func (t *T) dialPeer(a *guestdriver.Adapter, s Script) (Session, half) {
	t.Helper()
	p, err := t.Peer().Serve(t.ctx, s)
	check(t, "peer: serve", err)
	t.Cleanup(func() { p.Close() })
	c, err := a.DialContext(t.ctx, "tcp", p.Addr().String())
	check(t, "dial", err)
	t.Cleanup(func() { c.Close() })
	h, ok := c.(half)
	if !ok {
		t.Fatalf("%T has no CloseRead, CloseWrite, SetLinger", c)
	}
	want(t, "remote address", c.RemoteAddr().String(), p.Addr().String())
	if l, ok := c.LocalAddr().(*net.TCPAddr); !ok || l.Port == 0 || l.IP.IsUnspecified() {
		t.Errorf("local address is %v", c.LocalAddr())
	}
	return p, h
}

// expect reads n bytes of the stream of seed from off.
func expect(r io.Reader, seed uint64, off int64, n int64) error {
	buf, ref := make([]byte, 64<<10), make([]byte, 64<<10)
	for n > 0 {
		k, err := r.Read(buf[:min(n, int64(len(buf)))])
		Payload(ref[:k], seed, off)
		if !bytes.Equal(buf[:k], ref[:k]) {
			return fmt.Errorf("bytes [%d, %d) differ", off, off+int64(k))
		}
		off += int64(k)
		n -= int64(k)
		if err != nil && n > 0 {
			return fmt.Errorf("after %d bytes: %w", off, err)
		}
	}
	return nil
}

// source is the stream of seed as a reader.
type source struct {
	seed uint64
	off  int64
	left int64
}

func (s *source) Read(p []byte) (int, error) {
	if s.left == 0 {
		return 0, io.EOF
	}
	p = p[:min(int64(len(p)), s.left)]
	Payload(p, s.seed, s.off)
	s.off += int64(len(p))
	s.left -= int64(len(p))
	return len(p), nil
}

// TestIF15_Echo: a connection of the driver against an echo, read and written
// at the same time, in pieces of every size.
func TestIF15_Echo(t *T) {
	a := t.driver()
	p, c := t.dialPeer(a, Script{{Op: OpEcho}})
	total := t.amount(3 << 20)
	var wg sync.WaitGroup
	wg.Go(func() {
		buf := make([]byte, 200_000)
		for off := int64(0); off < total; {
			n := min(int64(1+t.rng.IntN(len(buf))), total-off)
			Payload(buf[:n], 3, off)
			k, err := c.Write(buf[:n])
			if err != nil || int64(k) != n {
				t.Errorf("write of %d bytes at %d: %d, %v", n, off, k, err)
				return
			}
			off += n
		}
		if err := c.CloseWrite(); err != nil {
			t.Errorf("half-close: %v", err)
		}
	})
	if err := expect(c, 3, 0, total); err != nil {
		t.Errorf("echo: %v", err)
	}
	wg.Wait()
	n, err := c.Read(make([]byte, 1))
	if n != 0 || !errors.Is(err, io.EOF) {
		t.Errorf("read at the end: %d, %v", n, err)
	}
	want(t, "bytes at the peer", t.outcome(p).Received, total)
	check(t, "close", c.Close())
	if err := c.Close(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("second close: %v", err)
	}
	if _, err := c.Write([]byte("x")); !errors.Is(err, net.ErrClosed) {
		t.Errorf("write after close: %v", err)
	}
	if _, err := c.Read(make([]byte, 1)); !errors.Is(err, net.ErrClosed) {
		t.Errorf("read after close: %v", err)
	}
}

// TestIF15_Read: a read returns what is there and never waits to fill its
// buffer; an empty one returns at once.
func TestIF15_Read(t *T) {
	a := t.driver()
	p, c := t.dialPeer(a, Script{{Op: OpSend, N: 10, Seed: 1}, {Op: OpWait}, {Op: OpSend, N: 5, Seed: 2}, {Op: OpFIN}, {Op: OpDiscard}})
	buf := make([]byte, 4096)
	n, err := c.Read(buf)
	if err != nil || n == 0 || n > 10 {
		t.Fatalf("first read: %d, %v", n, err)
	}
	_, err = io.ReadFull(c, buf[n:10])
	check(t, "the rest", err)
	if n, err := c.Read(nil); n != 0 || err != nil {
		t.Errorf("read of nothing: %d, %v", n, err)
	}
	check(t, "peer: signal", p.Signal(t.ctx))
	rest, err := io.ReadAll(c)
	check(t, "read to the end", err)
	want(t, "bytes after the signal", len(rest), 5)
}

// TestIF15_HalfClose: the peer sees the end and its answer still arrives.
func TestIF15_HalfClose(t *T) {
	a := t.driver()
	p, c := t.dialPeer(a, Script{{Op: OpDiscard}, {Op: OpSend, N: 100_000, Seed: 9}})
	_, err := c.Write(make([]byte, 1000))
	check(t, "write", err)
	check(t, "CloseWrite", c.CloseWrite())
	if _, err := c.Write([]byte("x")); err == nil {
		t.Errorf("write after CloseWrite succeeded")
	}
	if err := expect(c, 9, 0, 100_000); err != nil {
		t.Errorf("answer after the half-close: %v", err)
	}
	if _, err := c.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
		t.Errorf("read at the end: %v", err)
	}
	res := t.outcome(p)
	want(t, "bytes at the peer", res.Received, 1000)
	want(t, "EOF at the peer", res.EOF, true)
}

// TestIF15_Deadline: deadlines end a read that blocks, can be moved while it
// blocks, and can be taken back.
func TestIF15_Deadline(t *T) {
	a := t.driver()
	p, c := t.dialPeer(a, Script{{Op: OpWait}, {Op: OpSend, N: 4, Seed: 1}, {Op: OpWait}})
	buf := make([]byte, 16)
	check(t, "set a deadline", c.SetReadDeadline(time.Now().Add(30*time.Millisecond)))
	_, err := c.Read(buf)
	var ne net.Error
	if !errors.Is(err, os.ErrDeadlineExceeded) || !errors.As(err, &ne) || !ne.Timeout() {
		t.Errorf("read past its deadline: %v", err)
	}
	check(t, "set no deadline", c.SetReadDeadline(time.Time{}))
	moved := make(chan error, 1)
	go func() {
		_, err := c.Read(make([]byte, 1))
		moved <- err
	}()
	check(t, "move the deadline while a read blocks", c.SetReadDeadline(time.Now().Add(-time.Second)))
	select {
	case err := <-moved:
		if !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("read whose deadline was moved into the past: %v", err)
		}
	case <-t.ctx.Done():
		t.Fatalf("a read did not end when its deadline was moved into the past")
	}
	check(t, "set no deadline", c.SetDeadline(time.Time{}))
	check(t, "peer: signal", p.Signal(t.ctx))
	_, err = io.ReadFull(c, buf[:4])
	check(t, "read after the deadline was taken back", err)

	check(t, "set a write deadline", c.SetWriteDeadline(time.Now().Add(100*time.Millisecond)))
	big := make([]byte, 32<<20)
	n, err := c.Write(big)
	if !errors.Is(err, os.ErrDeadlineExceeded) || n >= len(big) {
		t.Errorf("write to a peer that does not read: %d, %v", n, err)
	}
	check(t, "set linger 0", c.SetLinger(0))
}

// TestIF15_Close: Close ends a read and a write that block.
func TestIF15_Close(t *T) {
	a := t.driver()
	_, c := t.dialPeer(a, Script{{Op: OpWait}})
	ends := make(chan error, 2)
	go func() {
		_, err := c.Read(make([]byte, 1))
		ends <- err
	}()
	go func() {
		_, err := c.Write(make([]byte, 32<<20))
		ends <- err
	}()
	check(t, "set linger 0", c.SetLinger(0))
	pause(nothing / 3) // so that both block, most of the time
	check(t, "close", c.Close())
	for range 2 {
		select {
		case err := <-ends:
			if !errors.Is(err, net.ErrClosed) {
				t.Errorf("blocked call when the connection is closed: %v", err)
			}
		case <-t.ctx.Done():
			t.Fatalf("a blocked call did not end at Close")
		}
	}
}

// TestIF15_Errors: the errors of package net.
func TestIF15_Errors(t *T) {
	a := t.driver()
	refused, err := t.Peer().Refused(t.ctx)
	check(t, "peer: refused", err)
	is := func(what string, err, want error) {
		t.Helper()
		var op *net.OpError
		if !errors.Is(err, want) || !errors.As(err, &op) {
			t.Errorf("%s: %v (%T), want a *net.OpError of %v", what, err, err, want)
		}
	}
	_, err = a.DialContext(t.ctx, "tcp", refused.String())
	is("dial to a port where nobody listens", err, syscall.ECONNREFUSED)
	_, err = a.DialContext(t.ctx, "tcp4", t.Peer().Unreachable().String())
	is("dial to a host that is not there", err, syscall.EHOSTUNREACH)
	hang, err := t.Peer().Hang(t.ctx)
	check(t, "peer: hang", err)
	ctx, cancel := context.WithTimeout(t.ctx, 50*time.Millisecond)
	_, err = a.DialContext(ctx, "tcp", hang.String())
	cancel()
	var ne net.Error
	if !errors.As(err, &ne) || !ne.Timeout() {
		t.Errorf("dial past the context's deadline: %v", err)
	}
	ctx, cancel = context.WithCancel(t.ctx)
	time.AfterFunc(20*time.Millisecond, cancel)
	if _, err = a.DialContext(ctx, "tcp", hang.String()); err == nil {
		t.Errorf("dial under a cancelled context succeeded")
	}
	l, err := a.Listen("tcp", ":4500")
	check(t, "listen", err)
	_, err = a.Listen("tcp", ":4500")
	is("listen on a port in use", err, syscall.EADDRINUSE)
	check(t, "close the listener", l.Close())
	_, err = l.Accept()
	is("accept on a closed listener", err, net.ErrClosed)
	l, err = a.Listen("tcp", ":4500")
	check(t, "listen again", err)
	l.Close()
	_, err = a.DialContext(t.ctx, "tcp5", "10.0.2.2:1")
	if err == nil {
		t.Errorf("dial on network tcp5 succeeded")
	}
	p, c := t.dialPeer(a, Script{{Op: OpWait}, {Op: OpReset}})
	check(t, "peer: signal", p.Signal(t.ctx))
	_, err = c.Read(make([]byte, 1))
	is("read on a connection that the peer reset", err, syscall.ECONNRESET)
}

// TestIF15_Listener: connections arrive, several at a time; Close ends an
// Accept that blocks.
func TestIF15_Listener(t *T) {
	a := t.driver()
	port := t.reachable()
	l, err := a.Listen("tcp", fmt.Sprintf(":%d", port))
	check(t, "listen", err)
	want(t, "port of Addr", l.Addr().(*net.TCPAddr).Port, int(port))
	const n = 8
	var sessions []Session
	for i := range n {
		s, err := t.Peer().Dial(t.ctx, port, Script{{Op: OpSend, N: 10_000, Seed: uint64(i)}, {Op: OpFIN}, {Op: OpDiscard}})
		check(t, "peer: dial", err)
		sessions = append(sessions, s)
		t.Cleanup(func() { s.Close() })
	}
	var wg sync.WaitGroup
	for range n {
		c, err := l.Accept()
		check(t, "accept", err)
		wg.Go(func() {
			defer c.Close()
			k, err := io.Copy(c, c)
			if err != nil || k != 10_000 {
				t.Errorf("echo: %d, %v", k, err)
			}
		})
	}
	for _, s := range sessions {
		res := t.outcome(s)
		want(t, "bytes at the peer", res.Received, 10_000)
		want(t, "peer's error", res.Err, "")
	}
	wg.Wait()
	ended := make(chan error, 1)
	go func() {
		_, err := l.Accept()
		ended <- err
	}()
	check(t, "close the listener", l.Close())
	select {
	case err := <-ended:
		if !errors.Is(err, net.ErrClosed) {
			t.Errorf("accept on a listener that is closed: %v", err)
		}
	case <-t.ctx.Done():
		t.Fatalf("Accept did not end at Close")
	}
}

// TestIF15_SlowReader: a connection that nobody reads does not stop another.
func TestIF15_SlowReader(t *T) {
	a := t.driver()
	const total = 24 << 20
	_, idle := t.dialPeer(a, Script{{Op: OpSend, N: total, Seed: 1}})
	_, busy := t.dialPeer(a, Script{{Op: OpSend, N: total, Seed: 2}})
	if err := expect(busy, 2, 0, total); err != nil {
		t.Errorf("beside a connection that nobody reads: %v", err)
	}
	if err := expect(idle, 1, 0, total); err != nil {
		t.Errorf("read late: %v", err)
	}
}

// TestIF15_Attributes: what the driver says about the adapter.
func TestIF15_Attributes(t *T) {
	a := t.driver()
	mac, err := a.MAC(t.ctx)
	check(t, "MAC", err)
	want(t, "length of the MAC address", len(mac), 6)
	all, err := a.Counters(t.ctx)
	check(t, "counters", err)
	want(t, "counters", len(all), counters)
	mtu, err := a.Scalar(t.ctx, 0, abi.Attribute(0x0106))
	check(t, "MTU", err)
	if mtu < 576 || mtu > 65535 {
		t.Errorf("MTU is %d", mtu)
	}
	if _, err := a.Attribute(t.ctx, 0, abi.Attribute(0x7abc)); err == nil {
		t.Errorf("get of an unknown attribute succeeded")
	}
}

// TestIF15_IPv6 runs functions of connections, listeners and datagrams over IPv6.
func TestIF15_IPv6(t *T) {
	peer := t.Peer().IPv6()
	if peer == nil {
		t.Skipf("the host has no IPv6: give its loopback ::1 (sysctl net.ipv6.conf.lo.disable_ipv6=0)")
	}
	env := *t.Env
	env.Peer = peer
	for _, test := range Tests() {
		if !test.Six || !test.On(env.Rung) {
			continue
		}
		t.Run(test.Name, func(t *T) {
			t.Env, t.offends, t.six = &env, test.Offends, true
			test.Func(t)
		})
	}
}

// TestIF15_HTTP serves and fetches 64 MiB both ways by net/http, server and
// client both on the adapter, by way of the peer.
func TestIF15_HTTP(t *T) {
	const total = 64 << 20
	a := t.driver()
	port := t.reachable()
	l, err := a.Listen("tcp", fmt.Sprintf(":%d", port))
	check(t, "listen", err)
	mux := http.NewServeMux()
	mux.HandleFunc("GET /bytes", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Length", fmt.Sprint(total))
		_, _ = io.Copy(w, &source{seed: 5, left: total})
	})
	mux.HandleFunc("POST /sum", func(w http.ResponseWriter, r *http.Request) {
		h := sha256.New()
		n, err := io.Copy(h, r.Body)
		fmt.Fprintf(w, "%d %s %v", n, hex.EncodeToString(h.Sum(nil)), err)
	})
	srv := &http.Server{Handler: mux}
	served := make(chan error, 1)
	go func() { served <- srv.Serve(l) }()
	t.Cleanup(func() {
		srv.Close()
		<-served
	})
	way, err := t.Peer().Hairpin(t.ctx, port)
	check(t, "peer: hairpin", err)
	client := t.client(a)
	base := "http://" + way.String()

	res, err := client.Get(base + "/bytes")
	check(t, "GET", err)
	if err := expect(res.Body, 5, 0, total); err != nil {
		t.Errorf("GET: %v", err)
	}
	res.Body.Close()

	h := sha256.New()
	_, _ = io.Copy(h, &source{seed: 6, left: total})
	res, err = client.Post(base+"/sum", "application/octet-stream", &source{seed: 6, left: total})
	check(t, "POST", err)
	body, err := io.ReadAll(res.Body)
	res.Body.Close()
	check(t, "answer to POST", err)
	want(t, "length and SHA-256 of what was posted", string(body), fmt.Sprintf("%d %s <nil>", total, hex.EncodeToString(h.Sum(nil))))
}

// client is an HTTP client whose connections run over the adapter.
func (t *T) client(a *guestdriver.Adapter) *http.Client {
	tr := &http.Transport{DialContext: a.DialContext}
	t.Cleanup(tr.CloseIdleConnections)
	return &http.Client{Transport: tr}
}

// TestIF15_Requests: 100 requests over kept connections and 100 over fresh ones.
func TestIF15_Requests(t *T) {
	a := t.driver()
	port := t.reachable()
	l, err := a.Listen("tcp", fmt.Sprintf(":%d", port))
	check(t, "listen", err)
	srv := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintf(w, "hello %s", r.URL.Path)
	})}
	served := make(chan error, 1)
	go func() { served <- srv.Serve(l) }()
	t.Cleanup(func() {
		srv.Close()
		<-served
	})
	way, err := t.Peer().Hairpin(t.ctx, port)
	check(t, "peer: hairpin", err)
	t.requests(a, way, false)
	t.requests(a, way, true)
}

func (t *T) requests(a *guestdriver.Adapter, way netip.AddrPort, fresh bool) {
	t.Helper()
	client := t.client(a)
	client.Transport.(*http.Transport).DisableKeepAlives = fresh
	for i := range 100 {
		res, err := client.Get(fmt.Sprintf("http://%s/%d", way, i))
		check(t, "GET", err)
		body, err := io.ReadAll(res.Body)
		res.Body.Close()
		check(t, "body", err)
		must(t, "body", string(body), fmt.Sprintf("hello /%d", i))
	}
}
