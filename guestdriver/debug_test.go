// SPDX-License-Identifier: Apache-2.0

package guestdriver_test

import (
	"errors"
	"strings"
	"sync"
	"syscall"
	"testing"

	"toebox/guestdriver"
	"toebox/guestdriver/guestdrivertest"
	"toebox/vdev/abi"
)

// mistakes collects what the debug mode tells.
type mistakes struct {
	mu  sync.Mutex
	all []error
}

func (m *mistakes) add(err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.all = append(m.all, err)
}

// one returns the only mistake so far, and forgets it.
func (m *mistakes) one(t testing.TB) *guestdriver.OwnershipError {
	t.Helper()
	m.mu.Lock()
	defer m.mu.Unlock()
	var e *guestdriver.OwnershipError
	if len(m.all) != 1 || !errors.As(m.all[0], &e) {
		t.Fatalf("mistakes: %v", m.all)
	}
	m.all = nil
	return e
}

func (m *mistakes) none(t testing.TB) {
	t.Helper()
	m.mu.Lock()
	defer m.mu.Unlock()
	if len(m.all) != 0 {
		t.Errorf("mistakes: %v", m.all)
	}
}

// TestDebugBuffers makes each mistake with posted buffers: it is told, names the
// post, and the completion carries it.
func TestDebugBuffers(t *testing.T) {
	var found mistakes
	a, f := open(t, guestdriver.Options{Debug: found.add, NoReadAhead: true, ZeroCopy: 1})
	c, s := pair(t, a)
	defer c.Close()
	defer s.Close()
	m := region(t, a, 20_000)
	q := guestdriver.NewCompletionQueue()
	seen, release := hold(f)
	sent := func(b *guestdriver.Buffer, do func()) guestdriver.Completion {
		t.Helper()
		if err := c.SendBuffer(b, q); err != nil {
			t.Fatal(err)
		}
		r := <-seen
		do()
		done := guestdrivertest.Answer(r, abi.TypeBufferDone, abi.StatusOK)
		done.Length = r.Length
		f.Inject(0, done)
		return next(t, q)
	}
	b := part(t, m, 0, 10_000)
	named := func(e *guestdriver.OwnershipError, mistake string, off int) {
		t.Helper()
		if e.Mistake != mistake || e.Offset != off || !strings.Contains(e.Since, "TestDebugBuffers") || !strings.Contains(e.Error(), mistake) {
			t.Errorf("%v", e)
		}
	}
	if d := sent(b, func() {}); d.Err != nil {
		t.Errorf("a good send: %+v", d)
	}
	found.none(t)
	d := sent(b, func() { m.Bytes()[9999]++ })
	var e *guestdriver.OwnershipError
	if !errors.As(d.Err, &e) || d.N != 10_000 {
		t.Errorf("completion %+v", d)
	}
	named(found.one(t), "write to a posted send buffer", -1)
	sent(b, func() {
		if err := c.SendBuffer(b, q); !errors.Is(err, guestdriver.ErrBusy) {
			t.Errorf("second post: %v", err)
		}
		named(found.one(t), "SendBuffer of a posted buffer", -1)
		if err := b.SetLen(3); !errors.Is(err, guestdriver.ErrBusy) {
			t.Errorf("set length: %v", err)
		}
		named(found.one(t), "SetLen of a posted buffer", -1)
	})
	release()

	r := part(t, m, 10_000, 5000)
	received := func(do func()) guestdriver.Completion {
		t.Helper()
		if err := s.PostBuffer(r, q); err != nil {
			t.Fatal(err)
		}
		if _, err := c.Write([]byte("some bytes")); err != nil {
			t.Fatal(err)
		}
		if d := next(t, q); d.N != 10 || d.Final || string(r.Bytes()[:10]) != "some bytes" {
			t.Errorf("completion %+v", d)
		}
		do()
		if err := s.CancelBuffer(r); err != nil {
			t.Error(err)
		}
		return next(t, q)
	}
	if d := received(func() { r.Bytes()[9] = 0 }); !errors.Is(d.Err, syscall.ECANCELED) {
		t.Errorf("completion %+v", d)
	}
	found.none(t)
	received(func() { r.Bytes()[4321] = 'x' })
	named(found.one(t), "write to a posted receive buffer", 4321)
	if got := a.Stats().Mistakes; got != 4 {
		t.Errorf("%d mistakes counted", got)
	}
	if err := m.Deregister(); err != nil {
		t.Error(err)
	}
}

// TestSegments lends one buffer to several consumers: it is posted again when the
// last has released it, and misuse is refused, and named in the debug mode.
func TestSegments(t *testing.T) {
	for _, debug := range []bool{false, true} {
		var found mistakes
		opts := guestdriver.Options{}
		if debug {
			opts.Debug = found.add
		}
		a, _ := open(t, opts)
		c, s := pair(t, a)
		text := strings.Repeat("0123456789abcdef", 256) // fills the first buffer
		if _, err := c.Write([]byte(text)); err != nil {
			t.Fatal(err)
		}
		var all []*guestdriver.Segment
		for got := ""; len(got) < len(text); {
			seg, err := s.ReadSegment()
			if err != nil {
				t.Fatal(err)
			}
			all = append(all, seg)
			if got += string(seg.Bytes()); !strings.HasPrefix(text, got) || seg.Conn() != s {
				t.Fatalf("read %q", got)
			}
		}
		second, err := all[0].Retain()
		if err != nil {
			t.Fatal(err)
		}
		for _, seg := range all {
			if err := seg.Release(); err != nil {
				t.Error(err)
			}
		}
		if string(second.Bytes()) != text[:len(second.Bytes())] || len(second.Bytes()) == 0 {
			t.Errorf("the second consumer sees %q", second.Bytes())
		}
		if all[0].Bytes() != nil {
			t.Error("a released segment has bytes")
		}
		for _, call := range []func() error{all[0].Release, func() error { _, err := all[0].Retain(); return err }} {
			err := call()
			if !errors.Is(err, guestdriver.ErrReleased) {
				t.Errorf("use of a released segment: %v", err)
			}
			if debug {
				if e := found.one(t); !strings.Contains(e.Since, "TestSegments") {
					t.Errorf("%v", e)
				}
			}
		}
		c.Close()
		s.Close()
		waitFor(t, "the end of the connections", func() bool { return a.Stats().Connections == 0 })
		if n := a.Stats().Memory; n == 0 {
			t.Error("memory that is lent was freed")
		}
		if err := second.Release(); err != nil {
			t.Error(err)
		}
		waitFor(t, "the memory", func() bool { return a.Stats().Memory == 0 })
	}
}

// TestPool: buffers of a pool serve several connections, each is posted again
// when its bytes were read and released; what does not fit is dropped.
func TestPool(t *testing.T) {
	var found mistakes
	a, f := open(t, guestdriver.Options{Debug: found.add})
	posted := make(chan abi.Fields, 16)
	f.Intercept(func(_ int, r abi.Fields) bool {
		if r.Flags&abi.FlagGroup == 0 {
			return false
		}
		posted <- r
		return true
	})
	p, err := a.NewPool(guestdriver.PoolConfig{Buffers: 2, Size: 4096})
	if err != nil {
		t.Fatal(err)
	}
	c, s := pair(t, a)
	defer c.Close()
	defer s.Close()
	for _, e := range []*guestdriver.Conn{c, s} {
		if err := e.SetPool(p); err != nil {
			t.Fatal(err)
		}
	}
	first, second := <-posted, <-posted
	if first.Type != abi.TypeBufferAvailable || first.Length != 4096 || first.Conn>>59 != 16 || second.Conn != first.Conn {
		t.Errorf("posted %+v", first)
	}
	fill := func(r abi.Fields, conn uint64, n uint32) {
		done := guestdrivertest.Answer(r, abi.TypeBufferReceive, abi.StatusOK)
		done.Conn, done.Length, done.Base = conn, n, r.Base
		f.Inject(0, done)
	}
	bad := func(what string, count func(guestdriver.Stats) uint64) {
		t.Helper()
		waitFor(t, what, func() bool { return count(a.Stats()) == 1 })
	}
	fill(first, c.ID(), 4097)
	bad("a length beyond the buffer", func(s guestdriver.Stats) uint64 { return s.BadLengths })
	fill(first, 12345, 10)
	bad("a connection that is none", func(s guestdriver.Stats) uint64 { return s.BadConns })
	first = <-posted

	fill(first, s.ID(), 100)
	fill(second, c.ID(), 50)
	one, err := s.ReadSegment()
	if err != nil || len(one.Bytes()) != 100 {
		t.Fatal(one, err)
	}
	two, err := one.Retain()
	if err != nil {
		t.Fatal(err)
	}
	half := make([]byte, 25)
	for range 2 {
		if n, err := c.Read(half); n != 25 || err != nil {
			t.Fatal(n, err)
		}
	}
	if r := <-posted; r.Base != second.Base {
		t.Errorf("posted again: %+v", r)
	}
	if err := one.Release(); err != nil {
		t.Error(err)
	}
	select {
	case r := <-posted:
		t.Errorf("posted while it is lent: %+v", r)
	default:
	}
	stale := two.Bytes()
	if err := two.Release(); err != nil {
		t.Error(err)
	}
	first = <-posted
	found.none(t)

	// A consumer that writes after its release is found with the next bytes.
	stale = stale[:cap(stale)]
	stale[99] = 0
	fill(first, s.ID(), 7)
	if one, err = s.ReadSegment(); err != nil {
		t.Fatal(err)
	}
	if e := found.one(t); e.Offset != 99 || !strings.Contains(e.Since, "TestPool") {
		t.Errorf("%v", e)
	}
	f.Intercept(nil)
	if err := p.Close(); err != nil {
		t.Error(err)
	}
	if err := one.Release(); err != nil {
		t.Error(err)
	}
	if _, err := a.NewPool(guestdriver.PoolConfig{Buffers: 1 << 20, Size: 1 << 20}); err == nil {
		t.Error("a pool of 1 TiB")
	}
}

// TestPoolCopy: what is lent is a copy, so that a slow consumer holds no buffer
// of the connection; one that finds no free copy waits, for a deadline or for a
// release.
func TestPoolCopy(t *testing.T) {
	a, _ := open(t, guestdriver.Options{})
	p, err := a.NewPool(guestdriver.PoolConfig{Buffers: 1, Size: 1000, Copy: true})
	if err != nil {
		t.Fatal(err)
	}
	c, s := pair(t, a)
	defer c.Close()
	defer s.Close()
	if err := s.SetPool(p); err != nil {
		t.Fatal(err)
	}
	text := strings.Repeat("0123456789", 150)
	if _, err := c.Write([]byte(text)); err != nil {
		t.Fatal(err)
	}
	got := ""
	var last *guestdriver.Segment
	for len(got) < len(text) {
		next := make(chan *guestdriver.Segment, 1)
		go func() {
			seg, err := s.ReadSegment()
			if err != nil {
				t.Error(err)
			}
			next <- seg
		}()
		if last != nil {
			if err := last.Release(); err != nil {
				t.Error(err)
			}
		}
		if last = <-next; last == nil {
			t.FailNow()
		}
		got += string(last.Bytes())
	}
	if got != text {
		t.Errorf("read %q", got)
	}
	if n := a.Stats().HostCopyBytes; n != 3000 {
		t.Errorf("copied %d bytes, want 1500 at each end", n)
	}
	if err := last.Release(); err != nil {
		t.Error(err)
	}
	if err := p.Close(); err != nil {
		t.Error(err)
	}
}
