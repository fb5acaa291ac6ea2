// SPDX-License-Identifier: Apache-2.0

package rig_test

import (
	"context"
	"errors"
	"testing"

	"toebox/guestdriver"
)

// TestCarryOverPeek: peeks, redirections and skipping buffers that nothing has come
// for yet stay posted over orderly stops, and go on.
func TestCarryOverPeek(t *testing.T) {
	c := newCarrier(t, 1)
	port := echoServer(t)
	nc, err := c.a.Dial("tcp", "10.0.2.2:"+port)
	conn := within(t, nc, err)
	conn.SetReadAhead(false)
	nc, err = c.a.Dial("tcp", "10.0.2.2:"+port)
	to := within(t, nc, err)
	to.SetReadAhead(false)
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	m, err := c.a.Alloc(300)
	if err != nil {
		t.Fatal(err)
	}
	var b [3]*guestdriver.Buffer
	for i := range b {
		if b[i], err = m.Buffer(100*i, 10); err != nil {
			t.Fatal(err)
		}
	}
	q := guestdriver.NewCompletionQueue()
	next := func() guestdriver.Completion {
		t.Helper()
		d, err := q.Next(ctx)
		if err != nil {
			t.Fatal(err)
		}
		return d
	}
	write := func(s string) {
		t.Helper()
		if _, err := conn.Write([]byte(s)); err != nil {
			t.Fatal(err)
		}
	}
	stops := uint64(0)
	stop := func(renew bool) {
		t.Helper()
		stops += 2
		c.stop(renew)
		c.until("both to go on", func() bool { return c.a.Stats().CarriedOver == stops })
	}
	for _, renew := range []bool{false, true} {
		skipped := c.a.Stats().SkippedBytes
		if err := conn.PeekBuffer(b[0], 2, q); err != nil {
			t.Fatal(err)
		}
		stop(renew)
		write("--0123456789")
		if d := next(); d.Buffer != b[0] || d.Op != guestdriver.OpPeek || d.N == 0 || d.Skipped != 2 || d.Err != nil || b[0].Bytes()[0] != '0' {
			t.Fatalf("a peek over a stop: %+v", d)
		}
		r := &guestdriver.Redirect{To: to, N: 4, Skip: 6}
		if err := to.PostBuffer(b[1], q); err != nil {
			t.Fatal(err)
		}
		// What was shown is consumed before the next stop; that it would hand over.
		if err := conn.PostRedirect(r, q); err != nil {
			t.Fatal(err)
		}
		for d := next(); d.Redirect != r; d = next() {
			if d.Buffer != b[1] || d.From != conn || d.Err != nil {
				t.Fatalf("%+v", d)
			}
		}
		r.N, r.Skip = 6, 3
		if err := conn.PostRedirect(r, q); err != nil {
			t.Fatal(err)
		}
		stop(renew)
		if err := conn.PostBufferSkip(b[2], 1, q); err != nil {
			t.Fatal(err)
		}
		write("---efghijxABCDEFGHIJ")
		for ended := 0; ended < 3; {
			d := next()
			if d.Err != nil {
				t.Fatalf("%+v", d)
			}
			if d.Final {
				ended++
			}
		}
		if s1, s2 := string(b[1].Bytes()), string(b[2].Bytes()); s1 != "6789efghij" || s2 != "ABCDEFGHIJ" {
			t.Fatalf("redirected %q, behind it %q", s1, s2)
		}
		if n := c.a.Stats().SkippedBytes - skipped; n != 12 {
			t.Errorf("%d bytes skipped, want 12", n)
		}
	}
}

// TestCarryOverPeekWait: of bytes that were shown, and of a peek that waits for more
// of them, the wait ends with an orderly stop: the bytes come, once, and are for
// Read. After it peeks wait as long as before.
func TestCarryOverPeekWait(t *testing.T) {
	const wait = 1 << 50 // ns
	c := newCarrier(t, 1)
	nc, err := c.a.Dial("tcp", "10.0.2.2:"+echoServer(t))
	conn := within(t, nc, err)
	conn.SetReadAhead(false)
	if err := conn.SetPeekWait(wait); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	m, err := c.a.Alloc(40)
	if err != nil {
		t.Fatal(err)
	}
	var b [4]*guestdriver.Buffer
	for i := range b {
		if b[i], err = m.Buffer(10*i, 10); err != nil {
			t.Fatal(err)
		}
	}
	q := guestdriver.NewCompletionQueue()
	next := func(what string, on *guestdriver.Buffer, n int, want error) {
		t.Helper()
		if d, err := q.Next(ctx); err != nil || d.Buffer != on || d.N != n || !d.Final || !errors.Is(d.Err, want) {
			t.Fatalf("%s: %+v, %v, want %d bytes, %v", what, d, err, n, want)
		}
	}
	peek := func(i int) {
		t.Helper()
		if err := conn.PeekBuffer(b[i], 0, q); err != nil {
			t.Fatal(err)
		}
	}
	for i, renew := range []bool{false, true} {
		if _, err := conn.Write([]byte{'x'}); err != nil {
			t.Fatal(err)
		}
		peek(0)
		next("a peek", b[0], 1, nil)
		peek(1) // for more
		c.stop(renew)
		c.until("it to go on", func() bool { return c.a.Stats().CarriedOver == uint64(i+1) })
		next("a peek whose bytes were handed over", b[1], 0, guestdriver.ErrReadAhead)
		got := make([]byte, 10)
		if n, err := conn.Read(got); err != nil || string(got[:n]) != "x" {
			t.Fatalf("read %q, %v", got[:n], err)
		}
		if v, err := c.a.Scalar(t.Context(), conn.ID(), 0x0263); err != nil || v != wait {
			t.Errorf("PEEK_WAIT is %d, %v", v, err)
		}
		// The same bytes are shown once more, with what came behind them.
		peek(2)
		if _, err := conn.Write([]byte{'y'}); err != nil {
			t.Fatal(err)
		}
		next("a peek after it", b[2], 1, nil)
		peek(3)
		if _, err := conn.Write([]byte{'z'}); err != nil {
			t.Fatal(err)
		}
		next("a peek for more", b[3], 2, nil)
		if err := conn.PostBuffer(b[0], q); err != nil {
			t.Fatal(err)
		}
		for total := 0; total < 2; {
			d, err := q.Next(ctx)
			if err != nil || d.Buffer != b[0] || d.N == 0 || d.Err != nil {
				t.Fatalf("the answer: %+v, %v", d, err)
			}
			total += d.N
		}
		if err := conn.CancelBuffer(b[0]); err != nil {
			t.Fatal(err)
		}
		d, err := q.Next(ctx)
		if err != nil || d.Buffer != b[0] || !d.Final || string(b[0].Bytes()[:2]) != "yz" || string(b[3].Bytes()[:2]) != "yz" {
			t.Fatalf("%q, then %q: %+v, %v", b[3].Bytes()[:2], b[0].Bytes()[:2], d, err)
		}
	}
}
