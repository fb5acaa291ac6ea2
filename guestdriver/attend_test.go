// SPDX-License-Identifier: Apache-2.0

package guestdriver_test

import (
	"bytes"
	"context"
	"io"
	"runtime"
	"testing"
	"time"

	"toebox/guestdriver"
	"toebox/guestdriver/guestdrivertest"
	"toebox/vdev/abi"
)

// patient are options of callers that attend to what they wait for until it comes.
// Nobody finds what is lost.
func patient() guestdriver.Options {
	return guestdriver.Options{Mode: guestdriver.ModeHybrid, Spin: limit, Watch: -1}
}

// asks waits until the driver asks for interrupts of queue 0, or no more.
func asks(t *testing.T, f *guestdrivertest.Fake, want bool) {
	t.Helper()
	for end := time.Now().Add(limit); (f.Asked(0) != 0) != want; runtime.Gosched() {
		if time.Now().After(end) {
			t.Fatalf("after %v the driver asks for an interrupt: not %t", limit, want)
		}
	}
}

// exchange has an echo of p come back.
func exchange(t *testing.T, c *guestdriver.Conn, p []byte) {
	t.Helper()
	got := make([]byte, len(p))
	if _, err := c.Write(p); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(c, got); err != nil || !bytes.Equal(got, p) {
		t.Fatalf("read %q, %v", got, err)
	}
}

// TestAttend has every kind of call get what it waits for while all interrupts are lost.
func TestAttend(t *testing.T) {
	a, f := open(t, patient())
	f.Mute(true)
	defer f.Mute(false)
	c, s := pair(t, a) // Dial and Accept
	c.SetDeadline(time.Now().Add(limit))
	s.SetDeadline(time.Now().Add(limit))
	if _, err := c.Write([]byte("copied")); err != nil {
		t.Fatal(err)
	}
	p := make([]byte, 6)
	if _, err := io.ReadFull(s, p); err != nil || string(p) != "copied" {
		t.Fatalf("read %q, %v", p, err)
	}

	m, err := a.Alloc(256 << 10)
	if err != nil {
		t.Fatal(err)
	}
	direct := m.Bytes()[:128<<10]
	// Write waits until the peer has it, Read posts its slice: both are of 64 KiB, so
	// that neither needs the other.
	if _, err := c.Write(direct[:64<<10]); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(s, direct[64<<10:]); err != nil {
		t.Fatal(err)
	}

	q := guestdriver.NewCompletionQueue()
	b, err := m.Buffer(128<<10, 4096)
	if err != nil {
		t.Fatal(err)
	}
	if err := c.SendBuffer(b, q); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	defer cancel()
	if d, err := q.Next(ctx); err != nil || !d.Final || d.Err != nil || d.N != 4096 {
		t.Fatalf("completion %+v, %v", d, err)
	}
	if n := a.Stats().MissedInterrupts; n != 0 {
		t.Errorf("%d responses were found by looking after the adapter", n)
	}
}

// TestAttendOnce has two calls wait, of which one attends: the other one gets what it
// waits for when that one has left.
func TestAttendOnce(t *testing.T) {
	a, _ := open(t, patient())
	c1, s1 := pair(t, a)
	c2, s2 := pair(t, a)
	for i := range 20 {
		got := make(chan error, 2)
		for _, s := range []*guestdriver.Conn{s1, s2} {
			s.SetDeadline(time.Now().Add(limit))
			go func() {
				_, err := io.ReadFull(s, make([]byte, 1))
				got <- err
			}()
		}
		for k := range 2 {
			if _, err := []*guestdriver.Conn{c1, c2}[(i+k)%2].Write([]byte{1}); err != nil {
				t.Fatal(err)
			}
			if err := <-got; err != nil {
				t.Fatalf("round %d: %v", i, err)
			}
		}
	}
}

// TestAttendInVain has a call that has attended in vain be woken by an interrupt.
func TestAttendInVain(t *testing.T) {
	opts := patient()
	opts.Spin = time.Nanosecond
	a, f := open(t, opts)
	c, s := pair(t, a)
	s.SetDeadline(time.Now().Add(limit))
	for range 20 {
		got := make(chan error, 1)
		go func() {
			_, err := io.ReadFull(s, make([]byte, 1))
			got <- err
		}()
		asks(t, f, true)
		if _, err := c.Write([]byte{1}); err != nil {
			t.Fatal(err)
		}
		if err := <-got; err != nil {
			t.Fatal(err)
		}
	}
}

// TestLapse has the driver ask for interrupts again when no caller has come back.
func TestLapse(t *testing.T) {
	a, f := open(t, patient())
	conn, err := a.Dial("tcp", "10.0.2.2:7") // the fake's echo
	if err != nil {
		t.Fatal(err)
	}
	c := conn.(*guestdriver.Conn)
	c.SetDeadline(time.Now().Add(limit))
	for range 10 {
		exchange(t, c, []byte("again"))
		asks(t, f, true)
	}
	got := make(chan error, 1)
	go func() {
		_, err := c.Read(make([]byte, 1))
		got <- err
	}()
	asks(t, f, false) // it attends
	a.SetMode(guestdriver.ModeInterrupt, 0)
	asks(t, f, true)
	if _, err := c.Write([]byte{1}); err != nil {
		t.Fatal(err)
	}
	if err := <-got; err != nil {
		t.Fatal(err)
	}
}

// TestClosedSoon has the adapter hear of a connection's end though the driver has nothing
// else to tell.
func TestClosedSoon(t *testing.T) {
	for name, mode := range map[string]guestdriver.Mode{"interrupt": guestdriver.ModeInterrupt, "hybrid": guestdriver.ModeHybrid, "poll": guestdriver.ModePoll} {
		t.Run(name, func(t *testing.T) {
			opts := patient()
			opts.Mode = mode
			a, f := open(t, opts)
			over := make(chan struct{}, 1)
			f.Intercept(func(_ int, req abi.Fields) bool {
				if req.Type == abi.TypeTermination {
					over <- struct{}{}
				}
				return false
			})
			for i := range 3 {
				c, err := a.Dial("tcp", "10.0.2.2:7")
				if err != nil {
					t.Fatal(err)
				}
				if err := c.Close(); err != nil {
					t.Fatal(err)
				}
				select {
				case <-over:
				case <-time.After(limit):
					t.Fatalf("after %v the adapter does not know of the end of connection %d", limit, i)
				}
			}
			f.Intercept(nil)
		})
	}
}
