// SPDX-License-Identifier: Apache-2.0

package guestdriver_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"syscall"
	"testing"
	"time"

	"toebox/guestdriver"
	"toebox/guestdriver/guestdrivertest"
	"toebox/vdev/abi"
)

// region registers size bytes of noise.
func region(t testing.TB, a *guestdriver.Adapter, size int) *guestdriver.Memory {
	t.Helper()
	m, err := a.Alloc(size)
	if err != nil {
		t.Fatal(err)
	}
	r := rand.NewChaCha8([32]byte{byte(size)})
	r.Read(m.Bytes())
	return m
}

func part(t testing.TB, m *guestdriver.Memory, off, n int) *guestdriver.Buffer {
	t.Helper()
	b, err := m.Buffer(off, n)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// next takes a completion within the limit.
func next(t testing.TB, q *guestdriver.CompletionQueue) guestdriver.Completion {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	d, err := q.Next(ctx)
	if err != nil {
		t.Fatalf("completion: %v", err)
	}
	return d
}

// hold keeps the fake from acting on sends that are longer than a page, until it
// is let go; it acts on them then.
func hold(f *guestdrivertest.Fake) (seen <-chan abi.Fields, release func()) {
	ch := make(chan abi.Fields, 256)
	f.Intercept(func(_ int, r abi.Fields) bool {
		if r.Type != abi.TypeBufferSend || r.Length <= 4096 {
			return false
		}
		ch <- r
		return true
	})
	return ch, func() { f.Intercept(nil) }
}

// TestSendBuffer posts three buffers of one region on a connection; their bytes
// come in order, nothing is copied at the sender, and the memory is the
// application's again with the completions.
func TestSendBuffer(t *testing.T) {
	a, _ := open(t, guestdriver.Options{})
	c, s := pair(t, a)
	defer c.Close()
	defer s.Close()
	m := region(t, a, 300_000)
	q := guestdriver.NewCompletionQueue()
	bufs := []*guestdriver.Buffer{part(t, m, 1, 99_999), part(t, m, 100_000, 1), part(t, m, 100_001, 199_999)}
	for _, b := range bufs {
		if err := c.SendBuffer(b, q); err != nil {
			t.Fatal(err)
		}
	}
	var got bytes.Buffer
	if _, err := io.CopyN(&got, struct{ io.Reader }{s}, 299_999); err != nil || !bytes.Equal(got.Bytes(), m.Bytes()[1:]) {
		t.Fatalf("%d bytes, %v", got.Len(), err)
	}
	for i, b := range bufs {
		if d := next(t, q); d != (guestdriver.Completion{Buffer: b, Conn: c, Op: guestdriver.OpSend, N: len(b.Bytes()), Final: true}) {
			t.Errorf("completion %d: %+v", i, d)
		}
	}
	if st := a.Stats(); st.HostCopyBytes != 299_999 || st.DirectBytes != 299_999 {
		t.Errorf("copied %d (by the reader), direct %d", st.HostCopyBytes, st.DirectBytes)
	}
	if err := m.Deregister(); err != nil {
		t.Errorf("deregister: %v", err)
	}
	if err := c.SendBuffer(bufs[0], q); err == nil {
		t.Error("a buffer of memory that is not registered was posted")
	}
}

// TestBufferBusy: what the adapter has cannot be posted, cut or deregistered.
func TestBufferBusy(t *testing.T) {
	a, f := open(t, guestdriver.Options{})
	c, s := pair(t, a)
	defer c.Close()
	defer s.Close()
	m := region(t, a, 10_000)
	q := guestdriver.NewCompletionQueue()
	b := part(t, m, 0, 10_000)
	if err := b.SetLen(8000); err != nil {
		t.Fatal(err)
	}
	seen, release := hold(f)
	if err := c.SendBuffer(b, q); err != nil {
		t.Fatal(err)
	}
	r := <-seen
	if r.Base != m.IOVA() || r.Length != 8000 {
		t.Errorf("posted %+v", r)
	}
	for what, err := range map[string]error{"send": c.SendBuffer(b, q), "cut": b.SetLen(5), "deregister": m.Deregister()} {
		if !errors.Is(err, guestdriver.ErrBusy) {
			t.Errorf("%s: %v", what, err)
		}
	}
	var none [1]guestdriver.Completion
	if q.Poll(none[:]) != 0 {
		t.Errorf("completion of a send that is not done: %+v", none)
	}
	release()
	done := guestdrivertest.Answer(r, abi.TypeBufferDone, abi.StatusOK)
	done.Length = 8000
	f.Inject(0, done)
	if d := next(t, q); d.N != 8000 || !d.Final || d.Err != nil {
		t.Errorf("completion %+v", d)
	}
	if err := m.Deregister(); err != nil {
		t.Error(err)
	}
}

// TestRegister: what is no memory, or is registered already, is refused.
func TestRegister(t *testing.T) {
	a, f := open(t, guestdriver.Options{})
	d, err := f.AllocDMA(8192)
	if err != nil {
		t.Fatal(err)
	}
	half := guestdriver.DMA{Bytes: d.Bytes[:4096], IOVA: d.IOVA}
	m, err := a.Register(half)
	if err != nil {
		t.Fatal(err)
	}
	for what, bad := range map[string]guestdriver.DMA{
		"the same":   half,
		"overlap":    {Bytes: d.Bytes[4095:], IOVA: d.IOVA + 4095},
		"around":     d,
		"nothing":    {IOVA: d.IOVA},
		"wraps":      {Bytes: d.Bytes[4096:], IOVA: ^uint64(0) - 100},
		"one within": {Bytes: d.Bytes[7:8], IOVA: d.IOVA + 7},
	} {
		if _, err := a.Register(bad); err == nil {
			t.Errorf("%s: registered", what)
		}
	}
	for _, bad := range [][2]int{{-1, 5}, {0, 0}, {0, 4097}, {4096, 1}, {4095, 2}, {5, -1}} {
		if _, err := m.Buffer(bad[0], bad[1]); err == nil {
			t.Errorf("buffer of %d bytes at %d", bad[1], bad[0])
		}
	}
	rest, err := a.Register(guestdriver.DMA{Bytes: d.Bytes[4096:], IOVA: d.IOVA + 4096})
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := errors.Join(m.Deregister(), rest.Deregister()); err != nil {
			t.Error(err)
		}
	}
	if m, err = a.Register(d); err != nil {
		t.Error(err)
	} else if err := m.Deregister(); err != nil {
		t.Error(err)
	}
	if err := f.FreeDMA(d); err != nil {
		t.Error(err)
	}
	if _, err := a.Alloc(0); err == nil {
		t.Error("allocated nothing")
	}
}

// TestWriteDirect: Write and WriteBuffers take registered memory as it is when
// it is long enough, and copy the rest, in order.
func TestWriteDirect(t *testing.T) {
	a, f := open(t, guestdriver.Options{ZeroCopy: 1000})
	c, s := pair(t, a)
	defer c.Close()
	defer s.Close()
	m := region(t, a, 200_000)
	heap := bytes.Repeat([]byte("heap "), 20_000)
	want := bytes.Join([][]byte{m.Bytes()[3:], m.Bytes()[:999], heap,
		m.Bytes()[:5000], m.Bytes()[7000:9000], heap[:3], heap, m.Bytes()[100:110], m.Bytes()[50_000:]}, nil)
	bases := make(chan uint64, 100)
	f.Intercept(func(_ int, r abi.Fields) bool {
		if r.Type == abi.TypeBufferSend && r.Base >= m.IOVA() && r.Base < m.IOVA()+200_000 {
			bases <- r.Base - m.IOVA()
		}
		return false
	})
	go func() {
		for _, p := range [][]byte{m.Bytes()[3:], m.Bytes()[:999], heap} {
			if n, err := c.Write(p); n != len(p) || err != nil {
				t.Errorf("write: %d, %v", n, err)
			}
		}
		v := net.Buffers{nil, m.Bytes()[:5000], m.Bytes()[7000:9000], {}, heap[:3], heap, m.Bytes()[100:110], m.Bytes()[50_000:], nil}
		if n, err := c.WriteBuffers(&v); n != 5000+2000+3+100_000+10+150_000 || err != nil || len(v) != 0 {
			t.Errorf("writev: %d, %v, %d left", n, err, len(v))
		}
		c.CloseWrite()
	}()
	got, err := io.ReadAll(struct{ io.Reader }{s})
	if err != nil || !bytes.Equal(got, want) {
		t.Fatalf("read %d bytes of %d: %v", len(got), len(want), err)
	}
	for _, want := range []uint64{3, 0, 7000, 50_000} {
		if got := <-bases; got != want {
			t.Errorf("sent from %d of the region, want %d", got, want)
		}
	}
	st := a.Stats()
	if st.DirectWrites != 4 || st.DirectBytes != 199_997+5000+2000+150_000 || st.BufferedWrites < 4 {
		t.Errorf("%d writes direct, %d bytes, %d buffered", st.DirectWrites, st.DirectBytes, st.BufferedWrites)
	}
	if got, want := st.HostCopyBytes, uint64(len(want)+999+100_000+3+100_000+10); got != want {
		t.Errorf("copied %d, want %d", got, want)
	}
	if err := m.Deregister(); err != nil {
		t.Error(err)
	}
}

// TestWriteDirectEnds: a deadline, Close and a reset end a write from registered
// memory, and only when the memory is the caller's again.
func TestWriteDirectEnds(t *testing.T) {
	for name, end := range map[string]struct {
		do   func(f *guestdrivertest.Fake, c *guestdriver.Conn)
		n    int64
		want error
	}{
		"deadline": {func(_ *guestdrivertest.Fake, c *guestdriver.Conn) { c.SetWriteDeadline(time.Now()) }, 10_123, os.ErrDeadlineExceeded},
		"close":    {func(_ *guestdrivertest.Fake, c *guestdriver.Conn) { c.Close() }, 10_123, net.ErrClosed},
		"reset":    {func(f *guestdrivertest.Fake, _ *guestdriver.Conn) { f.Restart() }, 0, guestdriver.ErrReset},
	} {
		t.Run(name, func(t *testing.T) {
			a, f := open(t, guestdriver.Options{ZeroCopy: 1})
			c, s := pair(t, a)
			defer c.Close()
			defer s.Close()
			m := region(t, a, 60_000)
			sends, cancels, terms := make(chan abi.Fields, 8), make(chan abi.Fields, 8), make(chan abi.Fields, 8)
			f.Intercept(func(_ int, r abi.Fields) bool {
				if r.Conn != c.ID() { // such as the end of the listener, which may come as late
					return false
				}
				switch r.Type {
				case abi.TypeBufferSend:
					sends <- r
				case abi.TypeCancellation:
					cancels <- r
				case abi.TypeTermination:
					terms <- r
				default:
					return false
				}
				return true
			})
			type result struct {
				n   int64
				err error
			}
			over := make(chan result, 1)
			go func() {
				v := net.Buffers{m.Bytes()[:10_000], m.Bytes()[10_000:40_000], m.Bytes()[40_000:]}
				n, err := c.WriteBuffers(&v)
				over <- result{n, err}
			}()
			posted := []abi.Fields{<-sends, <-sends, <-sends}
			end.do(f, c)
			if end.n > 0 {
				// The last piece is asked for first. The first is done already, 123
				// bytes of the second were fetched and 50 of them acknowledged.
				asked := []abi.Fields{<-cancels, <-cancels, <-cancels}
				results := []struct {
					target, cancel abi.Status
					acked, fetched uint32
				}{{abi.StatusOK, abi.StatusTooLate, 10_000, 0}, {abi.StatusCancelled, abi.StatusOK, 50, 123}, {abi.StatusCancelled, abi.StatusOK, 0, 0}}
				for i, r := range results {
					cancel := asked[2-i]
					if cancel.Offset != posted[i].Tag || cancel.Conn != c.ID() {
						t.Fatalf("cancellation %+v, want one of piece %d", cancel, i)
					}
					done := guestdrivertest.Answer(posted[i], abi.TypeBufferDone, r.target)
					done.Length = r.acked
					f.Inject(0, done)
					if m.Deregister() == nil {
						t.Fatal("the memory is free while the adapter has it")
					}
					done = guestdrivertest.Answer(cancel, abi.TypeCancelled, r.cancel)
					done.Length = r.fetched
					f.Inject(0, done)
				}
			}
			select {
			case r := <-over:
				if r.n != end.n || !errors.Is(r.err, end.want) {
					t.Errorf("write: %d, %v", r.n, r.err)
				}
			case <-time.After(limit):
				t.Fatal("write does not end")
			}
			if err := m.Deregister(); err != nil {
				t.Error(err)
			}
			if errors.Is(end.want, net.ErrClosed) {
				select {
				case r := <-terms:
					f.Inject(0, guestdrivertest.Answer(r, abi.TypeTerminated, abi.StatusOK))
				case <-time.After(limit):
					t.Error("the connection is not terminated")
				}
			}
			f.Intercept(nil)
		})
	}
}

// TestCancelSend: the completion of a cancelled send comes after both results,
// and says how much of it is in the stream.
func TestCancelSend(t *testing.T) {
	a, f := open(t, guestdriver.Options{})
	c, s := pair(t, a)
	defer c.Close()
	defer s.Close()
	m := region(t, a, 20_000)
	q := guestdriver.NewCompletionQueue()
	b := part(t, m, 0, 20_000)
	seen := make(chan abi.Fields, 8)
	f.Intercept(func(_ int, r abi.Fields) bool {
		if r.Type != abi.TypeBufferSend && r.Type != abi.TypeCancellation {
			return false
		}
		seen <- r
		return true
	})
	if err := c.CancelBuffer(b); err != nil {
		t.Errorf("cancellation of a free buffer: %v", err)
	}
	if err := c.SendBuffer(b, q); err != nil {
		t.Fatal(err)
	}
	send := <-seen
	for range 2 {
		if err := c.CancelBuffer(b); err != nil {
			t.Error(err)
		}
	}
	cancel := <-seen
	done := guestdrivertest.Answer(cancel, abi.TypeCancelled, abi.StatusOK)
	done.Length = 20_001 // impossible: dropped
	f.Inject(0, guestdrivertest.Answer(send, abi.TypeBufferDone, abi.StatusCancelled), done)
	waitFor(t, "the impossible count", func() bool { return a.Stats().BadLengths == 1 })
	var one [1]guestdriver.Completion
	if q.Poll(one[:]) != 0 {
		t.Fatalf("completion before the cancellation's result: %+v", one)
	}
	done.Length = 777
	f.Inject(0, done)
	if d := next(t, q); d.N != 777 || !d.Final || !errors.Is(d.Err, syscall.ECANCELED) {
		t.Errorf("completion %+v", d)
	}
	f.Intercept(nil)
	if _, err := c.Write([]byte("goes on")); err != nil {
		t.Error(err)
	}
}

// TestSendEnds: a reset of the adapter, with cancellations outstanding or not,
// and Close give every buffer back once.
func TestSendEnds(t *testing.T) {
	a, f := open(t, guestdriver.Options{})
	for _, end := range []struct {
		name string
		do   func(c *guestdriver.Conn)
		want error
	}{
		{"reset", func(*guestdriver.Conn) { f.Restart() }, guestdriver.ErrReset},
		{"abort", func(c *guestdriver.Conn) { c.SetLinger(0); c.Close() }, net.ErrClosed},
	} {
		t.Run(end.name, func(t *testing.T) {
			c, s := pair(t, a)
			defer c.Close()
			defer s.Close()
			// So much that the fake keeps the rest.
			m := region(t, a, 64*100_000)
			q := guestdriver.NewCompletionQueue()
			left := map[*guestdriver.Buffer]bool{}
			var bufs []*guestdriver.Buffer
			for i := range 64 {
				b := part(t, m, i*100_000, 100_000)
				if err := c.SendBuffer(b, q); err != nil {
					t.Fatal(err)
				}
				bufs, left[b] = append(bufs, b), true
			}
			if end.name == "reset" {
				f.Intercept(func(_ int, r abi.Fields) bool { return r.Type == abi.TypeCancellation })
				for _, b := range bufs[60:] {
					if err := c.CancelBuffer(b); err != nil {
						t.Error(err)
					}
				}
			}
			end.do(c)
			f.Intercept(nil)
			for len(left) > 0 {
				d := next(t, q)
				if !left[d.Buffer] || !d.Final || d.Err != nil && !errors.Is(d.Err, end.want) {
					t.Fatalf("completion %+v", d)
				}
				if delete(left, d.Buffer); d.Buffer == bufs[63] && d.Err == nil {
					t.Error("the last send is done")
				}
			}
			waitFor(t, "the memory", func() bool { return m.Deregister() == nil })
			var more [1]guestdriver.Completion
			if q.Poll(more[:]) != 0 {
				t.Errorf("one more completion: %+v", more)
			}
		})
	}
}
