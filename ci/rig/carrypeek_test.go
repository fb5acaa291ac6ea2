// SPDX-License-Identifier: Apache-2.0

package rig_test

import (
	"context"
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
