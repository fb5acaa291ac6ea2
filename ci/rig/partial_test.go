// SPDX-License-Identifier: Apache-2.0

package rig_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"slices"
	"testing"

	"toebox/ci/conformance"
	"toebox/guestdriver"
	"toebox/vdev/port"
)

// TestPartialBuffers: segments of 1,460 bytes fill a buffer of 4 MiB at an odd address,
// one across a page and, through a table that holds fewer, hundreds of one byte; each
// comes back part by part, by offset and length, and once for good. Then Read takes
// another 4 MiB into such memory. The host copies nothing.
func TestPartialBuffers(t *testing.T) {
	const (
		large, page = 4 << 20, 4096
		singles     = 600 // the input table has 256 slots
		segment     = 1460
		slack       = 64 << 10 // Read copies what would be few bytes
		seed        = 5
	)
	sw := port.NewSwitch(linkMTU)
	peer := newStation(t, sw.Open(), 9, guestdriver.Options{}, "10.0.2.2/24")
	s := newStation(t, sw.Open(), 1, guestdriver.Options{}, "10.0.2.15/24")
	// A wire with a rule carries no more than a segment at once.
	if err := s.dev.Impair(port.Impairments{ToAdapter: port.Rules{Rate: 1 << 40}}); err != nil {
		t.Fatal(err)
	}
	m, err := s.a.Alloc(large + slack)
	if err != nil {
		t.Fatal(err)
	}
	var buffers []*guestdriver.Buffer
	total := 0
	add := func(off, n int) {
		t.Helper()
		b, err := m.Buffer(off, n)
		if err != nil {
			t.Fatal(err)
		}
		buffers = append(buffers, b)
		total += n
	}
	add(1, large)
	add(large+page-5, 11)
	add(large+page+7, segment+1)
	for i := range singles {
		add(large+2*page+i, 1)
	}
	posted := total
	total += large // by Read

	l, err := peer.a.Listen("tcp", ":9")
	if err != nil {
		t.Fatal(err)
	}
	sent := make(chan error, 1)
	go func() {
		c, err := l.Accept()
		if err != nil {
			sent <- err
			return
		}
		defer c.Close()
		if _, err = io.ReadFull(c, make([]byte, 1)); err == nil {
			all := make([]byte, total)
			conformance.Payload(all, seed, 0)
			_, err = c.Write(all)
		}
		sent <- err
	}()
	nc, err := s.a.Dial("tcp", "10.0.2.2:9")
	conn := within(t, nc, err)
	conn.SetReadAhead(false)
	q := guestdriver.NewCompletionQueue()
	for _, b := range buffers {
		if err := conn.PostBuffer(b, q); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := conn.Write([]byte{1}); err != nil {
		t.Fatal(err)
	}

	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	parts, filled, got := 0, 0, 0
	expect := make([]byte, large)
	for left := slices.Clone(buffers); len(left) > 0; {
		d, err := q.Next(ctx)
		if err != nil {
			t.Fatalf("behind %d bytes: %v", got, err)
		}
		b := left[0]
		if d.Buffer != b || d.Err != nil || d.Offset != filled || d.N < 1 || d.Final != (filled+d.N == len(b.Bytes())) {
			t.Fatalf("behind %d bytes, %d of them in a buffer of %d: %+v", got, filled, len(b.Bytes()), d)
		}
		conformance.Payload(expect[:d.N], seed, int64(got))
		if !bytes.Equal(b.Bytes()[filled:filled+d.N], expect[:d.N]) {
			t.Fatalf("bytes [%d, %d) differ", got, got+d.N)
		}
		got += d.N
		if len(left) == len(buffers) {
			parts++
		}
		if filled += d.N; d.Final {
			filled, left = 0, left[1:]
		}
	}
	if got != posted || parts < 2 {
		t.Errorf("%d of %d bytes, the first buffer in %d parts", got, posted, parts)
	}

	p := m.Bytes()[3:]
	for n := 0; n < large; {
		k, err := conn.Read(p[n:])
		if err != nil {
			t.Fatalf("read behind %d bytes: %v", n, err)
		}
		n += k
	}
	conformance.Payload(expect, seed, int64(posted))
	if !bytes.Equal(p[:large], expect) {
		t.Error("what Read took differs")
	}
	if n, err := conn.Read(p); n != 0 || !errors.Is(err, io.EOF) {
		t.Errorf("at the end: %d bytes, %v", n, err)
	}
	if err := <-sent; err != nil {
		t.Error(err)
	}
	st := s.a.Stats()
	if st.HostCopyBytes != 1 || st.DirectReads == 0 { // the byte that was written
		t.Errorf("%d bytes copied, %d direct reads", st.HostCopyBytes, st.DirectReads)
	}
	if w := s.dev.Stats().Wire; w.ToAdapter.Frames < uint64(total/segment) {
		t.Errorf("%d frames for %d bytes", w.ToAdapter.Frames, total)
	}
	t.Logf("4 MiB in %d parts, %d direct reads", parts, st.DirectReads)
	conn.Close()
	if err := m.Deregister(); err != nil {
		t.Error(err)
	}
}
