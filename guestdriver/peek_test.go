// SPDX-License-Identifier: Apache-2.0

package guestdriver_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"syscall"
	"testing"

	"toebox/guestdriver"
	"toebox/vdev/abi"
)

// source3 are a connection with nothing read ahead, what the other end of it is,
// and two more connections, all on one queue pair.
func source3(t testing.TB, a *guestdriver.Adapter) (c, far *guestdriver.Conn, to [2]*guestdriver.Conn) {
	t.Helper()
	c, far = pair(t, a)
	t.Cleanup(func() { c.Close(); far.Close() })
	c.SetReadAhead(false)
	d := a.Dialer()
	d.Near = c
	for i := range to {
		n, err := d.Dial("tcp", "10.0.2.2:7")
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { n.Close() })
		to[i] = n.(*guestdriver.Conn)
	}
	return c, far, to
}

// TestPeekRedirect takes records apart whose headers, of 3 to 10 bytes, say which of
// two connections their payload is for, while they come in pieces: by peeks at the
// headers and redirections of the payload, into posted buffers of one of the
// connections and to the Reads of the other.
func TestPeekRedirect(t *testing.T) {
	const records = 60
	var found mistakes
	a, _ := open(t, guestdriver.Options{Queues: 2, Debug: found.add})
	c, far, to := source3(t, a)
	rng := rand.New(rand.NewPCG(1, 2))
	var stream []byte
	var payload [2][]byte
	var sizes []int
	for range records {
		kind, size, n := rng.IntN(2), 3+rng.IntN(8), 1+rng.IntN(2000)
		h := make([]byte, size)
		h[0] = byte(size<<1 | kind)
		binary.LittleEndian.PutUint16(h[1:], uint16(n))
		p := make([]byte, n)
		for i := range p {
			p[i] = byte(rng.Uint32())
		}
		stream = append(append(stream, h...), p...)
		payload[kind] = append(payload[kind], p...)
		sizes = append(sizes, size)
	}
	go func() {
		cut := rand.New(rand.NewPCG(3, 4))
		for p := stream; len(p) > 0; {
			n := min(len(p), 1+cut.IntN(700))
			if _, err := far.Write(p[:n]); err != nil {
				t.Errorf("write: %v", err)
				return
			}
			p = p[n:]
		}
		far.CloseWrite()
	}()
	read := make(chan []byte, 1)
	go func() {
		p := make([]byte, len(payload[1]))
		if _, err := io.ReadFull(to[1], p); err != nil {
			t.Errorf("read: %v", err)
		}
		read <- p
	}()
	m := region(t, a, 16+len(payload[0]))
	clear(m.Bytes())
	head := part(t, m, 0, 10)
	got := guestdriver.NewCompletionQueue()
	if err := to[0].PostBuffer(part(t, m, 16, len(payload[0])), got); err != nil {
		t.Fatal(err)
	}
	q := guestdriver.NewCompletionQueue()
	before := a.Stats()
	r := &guestdriver.Redirect{}
	skipped := 0
	for i := range records {
		for known := 0; known < 3; {
			if err := c.PeekBuffer(head, 0, q); err != nil {
				t.Fatal(err)
			}
			d := next(t, q)
			if d.Buffer != head || d.Conn != c || d.Op != guestdriver.OpPeek || d.Err != nil || !d.Final || d.Offset != 0 || d.N <= known {
				t.Fatalf("peek at record %d, of which %d bytes are known: %+v", i, known, d)
			}
			known = d.N
		}
		h := head.Bytes()
		r.To, r.Skip, r.N = to[h[0]&1], int(h[0]>>1), int(binary.LittleEndian.Uint16(h[1:]))
		skipped += r.Skip
		if r.Skip != sizes[i] {
			t.Fatalf("header %d of %d bytes: %x", i, sizes[i], h)
		}
		if err := c.PostRedirect(r, q); err != nil {
			t.Fatal(err)
		}
		if d := next(t, q); d != (guestdriver.Completion{Redirect: r, Conn: c, Op: guestdriver.OpRedirect, N: r.N, Skipped: r.Skip, Final: true}) {
			t.Fatalf("redirection %d: %+v", i, d)
		}
	}
	for n := 0; n < len(payload[0]); {
		d := next(t, got)
		if d.Conn != to[0] || d.From != c || d.Offset != n || d.Err != nil {
			t.Fatalf("destination: %+v", d)
		}
		n += d.N
	}
	if !bytes.Equal(m.Bytes()[16:], payload[0]) || !bytes.Equal(<-read, payload[1]) {
		t.Error("other payload")
	}
	if err := c.PeekBuffer(head, 0, q); err == nil {
		if d := next(t, q); d.Err != io.EOF || d.N != 0 || !d.Final {
			t.Errorf("peek at the end: %+v", d)
		}
	} else if err != io.EOF {
		t.Error(err)
	}
	s := a.Stats()
	if s.Redirects != records || s.RedirectedBytes != uint64(len(stream)-skipped) || s.SkippedBytes != uint64(skipped) ||
		s.Peeks < records || s.PeekedBytes < 3*records || s.DirectBytes-before.DirectBytes != uint64(len(payload[0])) {
		t.Errorf("%d bytes, %d skipped: %+v", len(stream), skipped, s)
	}
	found.none(t)
	if err := m.Deregister(); err != nil {
		t.Error(err)
	}
}

// TestPostBufferSkip skips bytes that are there and that come, more than one
// buffer's, and those that the driver holds.
func TestPostBufferSkip(t *testing.T) {
	a, _ := open(t, guestdriver.Options{})
	c, s := pair(t, a)
	defer c.Close()
	defer s.Close()
	m := region(t, a, 100)
	q := guestdriver.NewCompletionQueue()
	if _, err := c.Write([]byte("0123456789")); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(s, make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	waitFor(t, "the rest", func() bool { return s.Buffered() == 9 })
	b := part(t, m, 0, 5)
	if err := s.PostBufferSkip(b, 12, q); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Write([]byte("abcdefgh")); err != nil {
		t.Fatal(err)
	}
	for n := 0; n < 5; {
		d := next(t, q)
		if n += d.N; d.N == 0 || d.Err != nil || d.Final != (n == 5) || d.Final && d.Skipped != 12 {
			t.Fatalf("%+v", d)
		}
	}
	if st := a.Stats(); string(b.Bytes()) != "defgh" || st.SkippedBytes != 12 {
		t.Errorf("%q, %d bytes skipped", b.Bytes(), st.SkippedBytes)
	}
	if err := s.PostBufferSkip(b, 100, q); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Write([]byte("1234")); err != nil {
		t.Fatal(err)
	}
	c.CloseWrite()
	if d := next(t, q); d.N != 0 || d.Err != io.EOF || !d.Final || d.Skipped != 4 {
		t.Errorf("%+v", d)
	}
}

// TestPeekRefused: what cannot be shown or redirected is refused, and nothing is
// posted then.
func TestPeekRefused(t *testing.T) {
	a, _ := open(t, guestdriver.Options{Queues: 2})
	c, far, to := source3(t, a)
	m := region(t, a, 100)
	q := guestdriver.NewCompletionQueue()
	b := part(t, m, 0, 10)
	r := &guestdriver.Redirect{To: to[0], N: 10}
	check := func(what string, want error) {
		t.Helper()
		if err := c.PeekBuffer(b, 0, q); !errors.Is(err, want) {
			t.Errorf("%s: peek: %v", what, err)
		}
		if err := c.PostRedirect(r, q); !errors.Is(err, want) {
			t.Errorf("%s: redirection: %v", what, err)
		}
	}
	c.SetReadAhead(true)
	check("reading ahead", guestdriver.ErrReadAhead)
	if _, err := far.Write([]byte("held")); err != nil {
		t.Fatal(err)
	}
	waitFor(t, "bytes", func() bool { return c.Buffered() == 4 })
	c.SetReadAhead(false)
	check("bytes are held", guestdriver.ErrReadAhead)
	if _, err := io.ReadFull(c, make([]byte, 4)); err != nil {
		t.Fatal(err)
	}
	for _, bad := range []*guestdriver.Redirect{{To: to[0]}, {N: 1}, {To: c, N: 1}, {To: to[0], N: -1}, {To: to[0], N: 1 << 32}, {To: to[0], N: 1, Skip: -1}} {
		if err := c.PostRedirect(bad, q); !errors.Is(err, syscall.EINVAL) {
			t.Errorf("%d bytes, %d skipped: %v", bad.N, bad.Skip, err)
		}
	}
	if err := c.PeekBuffer(b, -1, q); !errors.Is(err, syscall.EINVAL) {
		t.Errorf("skip -1: %v", err)
	}
	strangers := 0
	for range 2 {
		n, err := a.Dial("tcp", "10.0.2.2:7")
		if err != nil {
			t.Fatal(err)
		}
		defer n.Close()
		x := guestdriver.Redirect{To: n.(*guestdriver.Conn), N: 1}
		if err := c.PostRedirect(&x, q); errors.Is(err, guestdriver.ErrOtherQueue) {
			strangers++
		} else if err != nil {
			t.Error(err)
		} else if err := c.CancelRedirect(&x); err != nil {
			t.Error(err)
		} else if d := next(t, q); d.Redirect != &x || !errors.Is(d.Err, syscall.ECANCELED) {
			t.Errorf("cancelled: %+v", d)
		}
	}
	if strangers != 1 {
		t.Errorf("%d of 2 connections are of the other queue pair", strangers)
	}
	for _, post := range []func() error{func() error { return c.PeekBuffer(b, 0, q) }, func() error { return c.PostRedirect(r, q) }} {
		if err := post(); err != nil {
			t.Fatal(err)
		}
		if err := post(); !errors.Is(err, guestdriver.ErrBusy) {
			t.Errorf("second post: %v", err)
		}
	}
	c.Close()
	for range 2 {
		if d := next(t, q); !d.Final || !errors.Is(d.Err, net.ErrClosed) {
			t.Errorf("%+v", d)
		}
	}
	check("closed", net.ErrClosed)
}

// TestPeekEnds: whatever ends a connection with a peek, a redirection and a buffer
// outstanding ends each once, with the reason; what ends the destination alone ends
// the redirection, and the bytes are for what is behind it.
func TestPeekEnds(t *testing.T) {
	type ends = [3]error // of the peek, the redirection, the buffer
	all := func(err error) ends { return ends{err, err, err} }
	for name, end := range map[string]struct {
		do   func(a *guestdriver.Adapter, c, far, to *guestdriver.Conn, restart func())
		want ends
	}{
		"close":   {func(_ *guestdriver.Adapter, c, _, _ *guestdriver.Conn, _ func()) { c.Close() }, all(net.ErrClosed)},
		"FIN":     {func(_ *guestdriver.Adapter, _, far, _ *guestdriver.Conn, _ func()) { far.CloseWrite() }, all(io.EOF)},
		"RST":     {func(_ *guestdriver.Adapter, _, far, _ *guestdriver.Conn, _ func()) { far.SetLinger(0); far.Close() }, all(syscall.ECONNRESET)},
		"restart": {func(_ *guestdriver.Adapter, _, _, _ *guestdriver.Conn, restart func()) { restart() }, all(guestdriver.ErrReset)},
		"destination": {func(_ *guestdriver.Adapter, _, far, to *guestdriver.Conn, _ func()) {
			to.SetLinger(0)
			to.Close()
			far.Write(make([]byte, 10))
		}, ends{nil, net.ErrClosed, nil}},
	} {
		t.Run(name, func(t *testing.T) {
			a, f := open(t, guestdriver.Options{})
			c, far, to := source3(t, a)
			posted := make(chan abi.Fields, 64)
			f.Intercept(func(_ int, r abi.Fields) bool {
				if r.Type == abi.TypeBufferAvailable && r.Conn == c.ID() {
					posted <- r
				}
				return false
			})
			m := region(t, a, 20)
			q := guestdriver.NewCompletionQueue()
			peek, buf := part(t, m, 0, 10), part(t, m, 10, 10)
			r := &guestdriver.Redirect{To: to[0], N: 10}
			if err := errors.Join(c.PeekBuffer(peek, 0, q), c.PostRedirect(r, q), c.PostBuffer(buf, q)); err != nil {
				t.Fatal(err)
			}
			for _, flags := range []abi.Flags{2, 32, 0} {
				if p := <-posted; p.Flags != flags {
					t.Errorf("posted %+v, want flags %#x", p, flags)
				}
			}
			end.do(a, c, far, to[0], f.Restart)
			var got ends
			for n := 0; n < 3; {
				d := next(t, q)
				if !d.Final {
					continue
				}
				n++
				switch {
				case d.Buffer == peek:
					got[0] = d.Err
				case d.Redirect == r && d.N == 0:
					got[1] = d.Err
				case d.Buffer == buf:
					got[2] = d.Err
				default:
					t.Fatalf("%+v", d)
				}
			}
			for i, err := range got {
				if !errors.Is(err, end.want[i]) {
					t.Errorf("end %d: %v, want %v", i, err, end.want[i])
				}
			}
			if err := m.Deregister(); err != nil {
				t.Error(err)
			}
		})
	}
}

// TestPeekHostile: answers that cannot be are counted and dropped, and the right
// ones that follow them count.
func TestPeekHostile(t *testing.T) {
	a, f := open(t, guestdriver.Options{})
	c, _, to := source3(t, a)
	posted := make(chan abi.Fields, 64)
	f.Intercept(func(_ int, r abi.Fields) bool {
		if r.Type == abi.TypeBufferAvailable && (r.Conn == c.ID() || r.Conn == to[0].ID()) {
			posted <- r
			return true
		}
		return false
	})
	q := guestdriver.NewCompletionQueue()
	m := region(t, a, 100)
	bad := func() uint64 { s := a.Stats(); return s.BadLengths + s.BadConns + s.BadTypes + s.BadFinals }
	inject := func(r abi.Fields) {
		t.Helper()
		n := bad()
		f.Inject(0, r)
		waitFor(t, "the count", func() bool { return bad() == n+1 })
	}
	if err := c.PeekBuffer(part(t, m, 0, 10), 5, q); err != nil {
		t.Fatal(err)
	}
	p := <-posted
	if p.Flags != 2|16 || p.Offset != 5 || p.Length != 10 {
		t.Errorf("posted %+v", p)
	}
	good := abi.Fields{Type: 16, Flags: 1 | 2, Tag: p.Tag, Base: p.Base, Conn: p.Conn, Length: 4}
	for _, change := range []func(*abi.Fields){
		func(r *abi.Fields) { r.Flags = 1 },          // no peek
		func(r *abi.Fields) { r.Flags = 2 },          // not final
		func(r *abi.Fields) { r.Flags = 1 | 2 | 32 }, // redirected to itself
		func(r *abi.Fields) { r.Length = 11 },
		func(r *abi.Fields) { r.Offset = 1 },
		func(r *abi.Fields) { r.Type, r.Flags, r.Length, r.Offset, r.Aux = 17, 1, 0, 6, 2 }, // skipped too many
	} {
		r := good
		change(&r)
		inject(r)
	}
	f.Inject(0, good)
	if d := next(t, q); d.N != 4 || d.Skipped != 5 || d.Err != nil {
		t.Errorf("%+v", d)
	}
	to[0].SetReadAhead(false)
	dst := part(t, m, 50, 20)
	if err := to[0].PostBuffer(dst, q); err != nil {
		t.Fatal(err)
	}
	p = <-posted
	moved := abi.Fields{Type: 16, Flags: 32, Tag: p.Tag, Base: p.Base, Conn: c.ID(), Length: 4}
	inject(moved) // nothing is redirected
	r := &guestdriver.Redirect{To: to[0], N: 10, Skip: 3}
	if err := c.PostRedirect(r, q); err != nil {
		t.Fatal(err)
	}
	p = <-posted
	for _, change := range []func(*abi.Fields){
		func(r *abi.Fields) { r.Length = 11 }, // more than the redirection's
		func(r *abi.Fields) { r.Length = 0 },
		func(r *abi.Fields) { r.Offset = 1 },
		func(r *abi.Fields) { r.Conn = to[0].ID() }, // to itself
		func(r *abi.Fields) { r.Conn = to[1].ID() }, // which redirects nothing
		func(r *abi.Fields) { r.Conn = 1 },
		func(r *abi.Fields) { r.Flags = 0 }, // not as its own
	} {
		r := moved
		change(&r)
		inject(r)
	}
	f.Inject(0, moved)
	if d := next(t, q); d.Buffer != dst || d.Conn != to[0] || d.From != c || d.N != 4 || d.Final || d.Err != nil {
		t.Errorf("%+v", d)
	}
	if p.Flags != 32|16 || p.Offset != 3 || p.Length != 10 || p.Base != to[0].ID() {
		t.Errorf("posted %+v", p)
	}
	good = abi.Fields{Type: 17, Flags: 1, Tag: p.Tag, Base: p.Base, Conn: p.Conn, Length: 4, Offset: 2, Aux: uint16(abi.StatusTimedOut)}
	for _, change := range []func(*abi.Fields){
		func(r *abi.Fields) { r.Length = 5 }, // four came
		func(r *abi.Fields) { r.Offset = 4 },
		func(r *abi.Fields) { r.Type = 16 },
	} {
		r := good
		change(&r)
		inject(r)
	}
	f.Inject(0, good)
	if d := next(t, q); d.N != 4 || d.Skipped != 2 || !errors.Is(d.Err, syscall.ETIMEDOUT) {
		t.Errorf("%+v", d)
	}
	f.Intercept(nil)
	if err := c.PostBuffer(part(t, m, 0, 10), q); err != nil { // it is alive
		t.Error(err)
	}
}
