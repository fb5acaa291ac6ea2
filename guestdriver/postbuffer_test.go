// SPDX-License-Identifier: Apache-2.0

package guestdriver_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"sync"
	"syscall"
	"testing"
	"time"

	"toebox/guestdriver"
	"toebox/vdev/abi"
)

// TestPostBuffer: bytes go to posted buffers in the order of the posts, partial
// deliveries are told of at once, and nothing is copied by the reader.
func TestPostBuffer(t *testing.T) {
	a, _ := open(t, guestdriver.Options{NoReadAhead: true})
	c, s := pair(t, a)
	defer c.Close()
	defer s.Close()
	m := region(t, a, 10_000)
	clear(m.Bytes())
	q := guestdriver.NewCompletionQueue()
	first, second := part(t, m, 0, 6000), part(t, m, 6000, 4000)
	for _, b := range []*guestdriver.Buffer{first, second} {
		if err := s.PostBuffer(b, q); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.PostBuffer(first, q); !errors.Is(err, guestdriver.ErrBusy) {
		t.Errorf("second post: %v", err)
	}
	text := bytes.Repeat([]byte("abcdefghij"), 900)
	at := 0
	for _, n := range []int{1, 4999, 1000, 2000, 1000} {
		if _, err := c.Write(text[at : at+n]); err != nil {
			t.Fatal(err)
		}
		d := next(t, q)
		b, off := first, at
		if at >= 6000 {
			b, off = second, at-6000
		}
		if d != (guestdriver.Completion{Buffer: b, Conn: s, Op: guestdriver.OpReceive, Offset: off, N: n, Final: at+n == 6000}) {
			t.Fatalf("completion %+v", d)
		}
		if at += n; !bytes.Equal(m.Bytes()[:at], text[:at]) {
			t.Fatalf("bytes differ before %d", at)
		}
	}
	c.CloseWrite()
	if d := next(t, q); d.Buffer != second || d.N != 0 || d.Offset != 3000 || !d.Final || d.Err != io.EOF {
		t.Errorf("end of stream: %+v", d)
	}
	if err := s.PostBuffer(first, q); err != io.EOF {
		t.Errorf("post behind the end: %v", err)
	}
	if st := a.Stats(); st.HostCopyBytes != 9000 || st.DirectBytes != 9000 {
		t.Errorf("copied %d (by the writer), direct %d", st.HostCopyBytes, st.DirectBytes)
	}
	if err := m.Deregister(); err != nil {
		t.Error(err)
	}
}

// TestPostLate: what came before the post, into the driver's own buffers, is
// copied to the front of it; a Read behind it gets what follows.
func TestPostLate(t *testing.T) {
	a, _ := open(t, guestdriver.Options{})
	c, s := pair(t, a)
	defer c.Close()
	defer s.Close()
	m := region(t, a, 100)
	if _, err := c.Write([]byte("early ")); err != nil {
		t.Fatal(err)
	}
	one := make([]byte, 1)
	if _, err := io.ReadFull(s, one); err != nil || one[0] != 'e' {
		t.Fatal(one, err)
	}
	q := guestdriver.NewCompletionQueue()
	b := part(t, m, 0, 9)
	if err := s.PostBuffer(b, q); err != nil {
		t.Fatal(err)
	}
	if d := next(t, q); d.N != 5 || d.Final {
		t.Errorf("completion %+v", d)
	}
	rest := make(chan string, 1)
	go func() {
		p := make([]byte, 5)
		n, err := io.ReadFull(s, p)
		rest <- fmt.Sprint(string(p[:n]), err)
	}()
	if _, err := c.Write([]byte("late beyon")); err != nil {
		t.Fatal(err)
	}
	if d := next(t, q); d.Offset != 5 || d.N != 4 || !d.Final || string(b.Bytes()) != "arly late" {
		t.Errorf("completion %+v, %q", d, b.Bytes())
	}
	if _, err := c.Write([]byte("d.")); err != nil {
		t.Fatal(err)
	}
	if got := <-rest; got != " beyo<nil>" {
		t.Errorf("read %q", got)
	}
}

// TestReadDirect: a Read into registered memory that is there before the data
// gets it without a copy; one that is late, small or elsewhere copies.
func TestReadDirect(t *testing.T) {
	a, f := open(t, guestdriver.Options{ZeroCopy: 64})
	c, s := pair(t, a)
	defer c.Close()
	defer s.Close()
	m := region(t, a, 8192)
	posted := make(chan abi.Fields, 16)
	f.Intercept(func(_ int, r abi.Fields) bool {
		if r.Type == abi.TypeBufferAvailable && r.Base == m.IOVA()+100 {
			posted <- r
		}
		return false
	})
	type result struct {
		n   int
		err error
	}
	over := make(chan result, 1)
	read := func(p []byte) { n, err := s.Read(p); over <- result{n, err} }
	go read(m.Bytes()[100:1100])
	if r := <-posted; r.Length != 1000 || r.Flags != abi.FlagOnce || r.Conn != s.ID() {
		t.Errorf("posted %+v", r)
	}
	before := a.Stats()
	text := bytes.Repeat([]byte("0123456789"), 120)
	if _, err := c.Write(text); err != nil {
		t.Fatal(err)
	}
	if r := <-over; r.n != 1000 || r.err != nil || !bytes.Equal(m.Bytes()[100:1100], text[:1000]) {
		t.Fatalf("read %+v", r)
	}
	after := a.Stats()
	if after.DirectReads != 1 || after.HostCopyBytes-before.HostCopyBytes != 1200 || after.DirectBytes != 1000 {
		t.Errorf("%d reads direct; copied %d, by the writer too; direct %d", after.DirectReads, after.HostCopyBytes-before.HostCopyBytes, after.DirectBytes)
	}
	// What is beyond it comes by the driver's buffers to a small read, and then
	// all of it is there: the next read is late.
	p := m.Bytes()[2000:3000]
	if n, err := s.Read(p[:1]); n != 1 || err != nil {
		t.Errorf("read %d, %v", n, err)
	}
	if n, err := s.Read(p[1:]); n != 199 || err != nil || !bytes.Equal(p[:200], text[1000:]) {
		t.Errorf("read %d, %v", n, err)
	}
	if st := a.Stats(); st.DirectReads != 1 || st.BufferedReads != 2 {
		t.Errorf("%d reads direct, %d buffered", st.DirectReads, st.BufferedReads)
	}

	// A deadline gets the memory back, and only then is the call over.
	go read(m.Bytes()[100:1100])
	<-posted
	s.SetReadDeadline(time.Now())
	if r := <-over; r.n != 0 || !errors.Is(r.err, os.ErrDeadlineExceeded) {
		t.Errorf("read past its deadline: %+v", r)
	}
	if err := m.Deregister(); err != nil {
		t.Error(err)
	}
	s.SetReadDeadline(time.Time{})
	if _, err := c.Write([]byte("x")); err != nil {
		t.Error(err)
	}
	if n, err := s.Read(p); n != 1 || err != nil || p[0] != 'x' {
		t.Errorf("read %d, %v", n, err)
	}
}

// TestCloseBeforeFIN: a buffer of a closed connection says so, also when the peer's
// FIN reaches the adapter before the close does.
func TestCloseBeforeFIN(t *testing.T) {
	a, f := open(t, guestdriver.Options{})
	c, s := pair(t, a)
	m := region(t, a, 1000)
	posted, held := make(chan abi.Fields, 4), make(chan abi.Fields, 1)
	f.Intercept(func(_ int, r abi.Fields) bool {
		switch {
		case r.Type == abi.TypeTermination && r.Conn == s.ID():
			held <- r
			return true
		case r.Type == abi.TypeBufferAvailable && r.Base == m.IOVA():
			posted <- r
		}
		return false
	})
	q := guestdriver.NewCompletionQueue()
	if err := s.PostBuffer(part(t, m, 0, 1000), q); err != nil {
		t.Fatal(err)
	}
	<-posted
	s.Close()
	r := <-held
	c.CloseWrite()
	if d := next(t, q); !d.Final || d.N != 0 || !errors.Is(d.Err, net.ErrClosed) {
		t.Errorf("%+v", d)
	}
	f.Inject(0, abi.Fields{Type: abi.TypeTerminated, Flags: abi.FlagFinal, Tag: r.Tag, Conn: r.Conn})
	c.SetLinger(0)
	c.Close()
}

// TestReceiveEnds: whatever ends a connection gives posted buffers, and the
// memory of a Read, back once, with the reason.
func TestReceiveEnds(t *testing.T) {
	for name, end := range map[string]struct {
		do   func(a *guestdriver.Adapter, c, s *guestdriver.Conn, restart func())
		want error // of the posted buffers
		read error
	}{
		"close": {func(_ *guestdriver.Adapter, _, s *guestdriver.Conn, _ func()) { s.Close() }, net.ErrClosed, net.ErrClosed},
		"close read": {func(_ *guestdriver.Adapter, _, s *guestdriver.Conn, _ func()) {
			s.CloseRead()
			s.SetLinger(0)
			s.Close()
		}, net.ErrClosed, nil},
		"FIN":     {func(_ *guestdriver.Adapter, c, _ *guestdriver.Conn, _ func()) { c.CloseWrite() }, io.EOF, io.EOF},
		"RST":     {func(_ *guestdriver.Adapter, c, _ *guestdriver.Conn, _ func()) { c.SetLinger(0); c.Close() }, syscall.ECONNRESET, syscall.ECONNRESET},
		"restart": {func(_ *guestdriver.Adapter, _, _ *guestdriver.Conn, restart func()) { restart() }, guestdriver.ErrReset, guestdriver.ErrReset},
		"adapter": {func(a *guestdriver.Adapter, _, _ *guestdriver.Conn, _ func()) { a.Close() }, net.ErrClosed, net.ErrClosed},
	} {
		t.Run(name, func(t *testing.T) {
			a, f := open(t, guestdriver.Options{ZeroCopy: 1})
			c, s := pair(t, a)
			defer c.Close()
			defer s.Close()
			m := region(t, a, 4000)
			posted := make(chan abi.Fields, 64)
			f.Intercept(func(_ int, r abi.Fields) bool {
				if r.Type == abi.TypeBufferAvailable && r.Base >= m.IOVA() && r.Base < m.IOVA()+4000 {
					posted <- r
				}
				return false
			})
			q := guestdriver.NewCompletionQueue()
			left := map[*guestdriver.Buffer]bool{}
			for i := range 3 {
				b := part(t, m, i*1000, 1000)
				if left[b] = true; s.PostBuffer(b, q) != nil {
					t.Fatal("not posted")
				}
			}
			over := make(chan error, 1)
			go func() {
				n, err := s.Read(m.Bytes()[3000:])
				if n != 0 {
					t.Errorf("read %d bytes", n)
				}
				over <- err
			}()
			for range 4 {
				<-posted
			}
			end.do(a, c, s, f.Restart)
			for len(left) > 0 {
				d := next(t, q)
				if !left[d.Buffer] || !d.Final || d.N != 0 || !errors.Is(d.Err, end.want) && !(name == "close read" && d.Err == io.EOF) {
					t.Fatalf("completion %+v", d)
				}
				delete(left, d.Buffer)
			}
			if err := <-over; end.read != nil && !errors.Is(err, end.read) {
				t.Errorf("read: %v", err)
			}
			if err := m.Deregister(); err != nil {
				t.Error(err)
			}
			var more [1]guestdriver.Completion
			if q.Poll(more[:]) != 0 {
				t.Errorf("one more completion: %+v", more)
			}
		})
	}
}

// TestCancelReceive: a buffer that the adapter has, and one that waits in the
// driver, come back when asked for.
func TestCancelReceive(t *testing.T) {
	a, f := open(t, guestdriver.Options{})
	c, s := pair(t, a)
	defer c.Close()
	defer s.Close()
	m := region(t, a, 2000)
	q := guestdriver.NewCompletionQueue()
	first, second := part(t, m, 0, 1000), part(t, m, 1000, 1000)
	f.Pause(0, true) // the driver does not get its own buffers back
	for _, b := range []*guestdriver.Buffer{first, second} {
		if err := s.PostBuffer(b, q); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.CancelBuffer(first); err != nil {
		t.Error(err)
	}
	if d := next(t, q); d.Buffer != first || !d.Final || !errors.Is(d.Err, syscall.ECANCELED) {
		t.Errorf("completion %+v", d)
	}
	f.Pause(0, false)
	if _, err := c.Write([]byte("hello")); err != nil {
		t.Fatal(err)
	}
	if d := next(t, q); d.Buffer != second || d.N != 5 || d.Final {
		t.Errorf("completion %+v", d)
	}
	if err := c.CancelBuffer(second); err != nil { // not of c: nothing happens
		t.Error(err)
	}
	if err := s.CancelBuffer(second); err != nil {
		t.Error(err)
	}
	if d := next(t, q); d.Buffer != second || d.N != 0 || d.Offset != 5 || !d.Final || !errors.Is(d.Err, syscall.ECANCELED) {
		t.Errorf("completion %+v", d)
	}
	if _, err := c.Write([]byte("again")); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, 5)
	if _, err := io.ReadFull(s, got); err != nil || string(got) != "again" {
		t.Errorf("%q, %v", got, err)
	}
}

// TestSwitch reads and posts early, late, too small and never, by seed, while
// bytes flow both ways: none is lost, none out of order.
func TestSwitch(t *testing.T) {
	for seed := range uint64(8) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			a, _ := open(t, guestdriver.Options{ZeroCopy: 256, Queues: 2, NoReadAhead: seed%4 == 3})
			c, s := pair(t, a)
			defer c.Close()
			defer s.Close()
			var wg sync.WaitGroup
			for i, e := range []*guestdriver.Conn{c, s} {
				rng := rand.New(rand.NewPCG(seed, uint64(i)))
				wg.Go(func() { sendMixed(t, a, e, rng, byte(i)) })
				rng2 := rand.New(rand.NewPCG(seed, uint64(i)+10))
				wg.Go(func() { receiveMixed(t, a, e, rng2, byte(1-i)) })
			}
			wg.Wait()
		})
	}
}

const mixedTotal = 1 << 20

// sendMixed sends mixedTotal bytes of the stream of id by every kind of send.
func sendMixed(t *testing.T, a *guestdriver.Adapter, c *guestdriver.Conn, rng *rand.Rand, id byte) {
	src := rand.NewChaCha8([32]byte{id})
	m, err := a.Alloc(256 << 10)
	if err != nil {
		t.Error(err)
		return
	}
	heap := make([]byte, 32<<10)
	q := guestdriver.NewCompletionQueue()
	for left := mixedTotal; left > 0; {
		n := min(left, 1+rng.IntN(32<<10))
		left -= n
		p := m.Bytes()[rng.IntN(1000):][:n]
		switch rng.IntN(3) {
		case 0:
			src.Read(heap[:n])
			_, err = c.Write(heap[:n])
		case 1:
			src.Read(p)
			_, err = c.Write(p)
		case 2:
			var b *guestdriver.Buffer
			if b, err = m.Buffer(64<<10, n); err == nil {
				src.Read(b.Bytes())
				if err = c.SendBuffer(b, q); err == nil {
					if d := next(t, q); d.N != n || d.Err != nil || !d.Final {
						t.Errorf("completion %+v", d)
					}
				}
			}
		}
		if err != nil {
			t.Errorf("send: %v", err)
			return
		}
	}
	if err := errors.Join(c.CloseWrite(), m.Deregister()); err != nil {
		t.Error(err)
	}
}

// receiveMixed receives the stream of id to its end by every kind of receive.
func receiveMixed(t *testing.T, a *guestdriver.Adapter, c *guestdriver.Conn, rng *rand.Rand, id byte) {
	src, expect := rand.NewChaCha8([32]byte{id}), make([]byte, 64<<10)
	got := 0
	take := func(p []byte) bool {
		src.Read(expect[:len(p)])
		if !bytes.Equal(p, expect[:len(p)]) {
			t.Errorf("bytes differ behind %d", got)
			return false
		}
		got += len(p)
		return true
	}
	m, err := a.Alloc(256 << 10)
	if err != nil {
		t.Error(err)
		return
	}
	heap := make([]byte, 64<<10)
	q := guestdriver.NewCompletionQueue()
	for err == nil {
		n := 1 + rng.IntN(16<<10)
		switch rng.IntN(5) {
		case 0:
			k := 0
			k, err = c.Read(heap[:n])
			if !take(heap[:k]) {
				return
			}
		case 1, 2:
			k := 0
			p := m.Bytes()[rng.IntN(100):][:n]
			k, err = c.Read(p)
			if !take(p[:k]) {
				return
			}
		case 3: // several posts at once, and one Read behind them that has to wait
			var k int
			posted := 0
			for i := range 1 + rng.IntN(3) {
				b, _ := m.Buffer(i*(16<<10), 1+rng.IntN(16<<10))
				if perr := c.PostBuffer(b, q); perr == io.EOF {
					err = perr
				} else if perr != nil {
					t.Errorf("post: %v", perr)
					return
				} else {
					posted++
				}
			}
			for posted > 0 {
				d := next(t, q)
				if !take(d.Buffer.Bytes()[d.Offset : d.Offset+d.N]) {
					return
				}
				if d.Final {
					posted--
					if err = d.Err; err != nil && err != io.EOF {
						t.Errorf("completion %+v", d)
						return
					}
				}
			}
			_ = k
		case 4: // posted and asked for again
			b, _ := m.Buffer(128<<10, n)
			if err = c.PostBuffer(b, q); err != nil {
				break
			}
			if rng.IntN(2) == 0 {
				c.SetReadAhead(rng.IntN(2) == 0)
			}
			if cerr := c.CancelBuffer(b); cerr != nil {
				t.Error(cerr)
			}
			for final := false; !final; {
				d := next(t, q)
				if !take(b.Bytes()[d.Offset : d.Offset+d.N]) {
					return
				}
				if final = d.Final; d.Err != nil && !errors.Is(d.Err, syscall.ECANCELED) {
					err = d.Err
				}
			}
		}
	}
	if err != io.EOF || got != mixedTotal {
		t.Errorf("received %d of %d bytes: %v", got, mixedTotal, err)
	}
	if err := m.Deregister(); err != nil {
		t.Error(err)
	}
}
