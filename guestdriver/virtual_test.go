// SPDX-License-Identifier: Apache-2.0

package guestdriver_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"slices"
	"syscall"
	"testing"

	"toebox/guestdriver"
	"toebox/guestdriver/guestdrivertest"
	"toebox/vdev/abi"
)

// virtualOf makes a virtual buffer of n pieces of size bytes, which lie in memory the
// other way round.
func virtualOf(t testing.TB, m *guestdriver.Memory, n, size int) (*guestdriver.VirtualBuffer, []*guestdriver.Buffer) {
	t.Helper()
	var pieces []*guestdriver.Buffer
	for i := range n {
		pieces = append(pieces, part(t, m, (n-1-i)*size, size))
	}
	v, err := guestdriver.NewVirtualBuffer(pieces...)
	if err != nil || !slices.Equal(v.Pieces(), pieces) {
		t.Fatal(v, err)
	}
	return v, pieces
}

// buffersAsked tells of the receive buffers that the adapter gets.
func buffersAsked(f *guestdrivertest.Fake) <-chan abi.Fields {
	ch := make(chan abi.Fields, 512)
	f.Intercept(func(_ int, r abi.Fields) bool {
		if r.Type == abi.TypeBufferAvailable {
			ch <- r
		}
		return false
	})
	return ch
}

// TestVirtualBuffer: pieces are posted with a number and their sequence, and
// filled in that order; each has results of its own.
func TestVirtualBuffer(t *testing.T) {
	const size = 1000
	var found mistakes
	a, f := open(t, guestdriver.Options{NoReadAhead: true, Debug: found.add})
	c, far := pair(t, a)
	defer c.Close()
	m := region(t, a, 6*size)
	first, pieces := virtualOf(t, m, 3, size)
	plain := part(t, m, 3*size, size)
	second, err := guestdriver.NewVirtualBuffer(part(t, m, 4*size, size), part(t, m, 5*size, size))
	if err != nil {
		t.Fatal(err)
	}
	q := guestdriver.NewCompletionQueue()
	post := func(v *guestdriver.VirtualBuffer) {
		t.Helper()
		if err := c.PostVirtual(v, q); err != nil {
			t.Fatal(err)
		}
	}
	seen := buffersAsked(f)
	post(first)
	if err := c.PostBuffer(plain, q); err != nil {
		t.Fatal(err)
	}
	post(second)
	for i, piece := range []uint16{0x0100, 0x0101, 0x0102, 0, 0x0200, 0x0201} {
		if r := <-seen; r.Aux != piece || r.Length != size || r.Flags != 0 || r.Conn != c.ID() {
			t.Errorf("request %d: piece %#04x, want %#04x: %+v", i, r.Aux, piece, r)
		}
	}
	if err := c.PostVirtual(first, q); !errors.Is(err, guestdriver.ErrBusy) {
		t.Errorf("posted twice: %v", err)
	}
	found.one(t)
	data := make([]byte, 5*size+size/2)
	for i := range data {
		data[i] = byte(i * 7 >> 3)
	}
	for at := 0; at < len(data); at += size / 4 * 3 { // across the ends of pieces
		if _, err := far.Write(data[at:min(at+size/4*3, len(data))]); err != nil {
			t.Fatal(err)
		}
	}
	bufs := append(append(slices.Clone(pieces), plain), second.Pieces()...)
	n, ended := 0, 0
	for n < len(data) || ended < 5 {
		d := next(t, q)
		i := n / size
		want := guestdriver.Completion{Buffer: bufs[i], Conn: c, Op: guestdriver.OpReceive, Offset: n % size, N: d.N, Final: n%size+d.N == size}
		switch {
		case i < 3:
			want.Virtual, want.At = first, n
		case i > 3:
			want.Virtual, want.At = second, n-4*size
		}
		if d != want || d.N == 0 {
			t.Fatalf("after %d bytes: %+v, want %+v", n, d, want)
		}
		if !bytes.Equal(d.Buffer.Bytes()[d.Offset:d.Offset+d.N], data[n:n+d.N]) {
			t.Fatalf("other bytes from %d on", n)
		}
		if n += d.N; d.Final {
			ended++
		}
	}
	// Its number is free again, that of the second is not.
	post(first)
	for i, piece := range []uint16{0x0100, 0x0101, 0x0102} {
		if r := <-seen; r.Aux != piece {
			t.Errorf("request %d of the third: piece %#04x, want %#04x", i, r.Aux, piece)
		}
	}
	far.Close()
	for i, b := range append([]*guestdriver.Buffer{bufs[5]}, pieces...) {
		if d := next(t, q); d.Buffer != b || d.N != 0 || d.Err != io.EOF || !d.Final || (d.Virtual == first) != (i > 0) {
			t.Errorf("end of the stream, %d: %+v", i, d)
		}
	}
	if s := a.Stats(); s.VirtualBuffers != 3 || s.HostCopyBytes != uint64(len(data)) { // by Write
		t.Errorf("%d virtual buffers, %d bytes copied", s.VirtualBuffers, s.HostCopyBytes)
	}
	if err := c.PostVirtual(first, q); !errors.Is(err, io.EOF) {
		t.Errorf("after the end: %v", err)
	}
	if err := m.Deregister(); err != nil {
		t.Errorf("deregister: %v", err)
	}
}

// TestVirtualBufferCancel: what was filled stays, what lies behind a piece that was
// cancelled is the application's again, and nothing is filled behind a hole.
func TestVirtualBufferCancel(t *testing.T) {
	const size = 1000
	a, _ := open(t, guestdriver.Options{NoReadAhead: true})
	c, far := pair(t, a)
	defer c.Close()
	defer far.Close()
	m := region(t, a, 4*size)
	v, pieces := virtualOf(t, m, 4, size)
	q := guestdriver.NewCompletionQueue()
	for _, k := range []struct {
		name   string
		sent   int
		cancel func() error
		keeps  int // pieces before the first one that was cancelled
	}{
		{"all", 0, func() error { return c.CancelVirtual(v) }, 0},
		{"the rest", 1500, func() error { return c.CancelVirtual(v) }, 1},
		{"from a piece on", 500, func() error { return c.CancelBuffer(pieces[2]) }, 2},
		{"the last piece", 0, func() error { return c.CancelBuffer(pieces[3]) }, 3},
	} {
		if err := c.PostVirtual(v, q); err != nil {
			t.Fatalf("%s: %v", k.name, err)
		}
		if _, err := far.Write(make([]byte, k.sent)); err != nil {
			t.Fatal(err)
		}
		n := 0
		take := func() guestdriver.Completion {
			t.Helper()
			d := next(t, q)
			if d.N > 0 && (d.At != n || d.Virtual != v) {
				t.Errorf("%s: after %d bytes %+v", k.name, n, d)
			}
			n += d.N
			return d
		}
		for n < k.sent {
			take()
		}
		if err := k.cancel(); err != nil {
			t.Errorf("%s: %v", k.name, err)
		}
		over := map[*guestdriver.Buffer]bool{}
		for range len(pieces) - k.keeps {
			d := take()
			if at := slices.Index(pieces, d.Buffer); at < k.keeps || over[d.Buffer] || !errors.Is(d.Err, syscall.ECANCELED) || d.N != 0 || !d.Final {
				t.Errorf("%s: piece %d: %+v", k.name, at, d)
			}
			over[d.Buffer] = true
		}
		rest := k.keeps*size - k.sent
		if _, err := far.Write(make([]byte, max(0, rest))); err != nil {
			t.Fatal(err)
		}
		for n < k.sent+max(0, rest) {
			take()
		}
		if err := c.CancelVirtual(v); err != nil {
			t.Errorf("%s: nothing is posted: %v", k.name, err)
		}
	}
	if s := a.Stats(); s.Outstanding != 0 {
		t.Errorf("%d requests are outstanding", s.Outstanding)
	}
}

// TestVirtualBufferHole: pieces that wait in the driver, for its own buffers to come
// back, end behind one that was cancelled; the one before goes to the adapter.
func TestVirtualBufferHole(t *testing.T) {
	a, f := open(t, guestdriver.Options{NoReadAhead: true})
	c, far := pair(t, a)
	defer c.Close()
	defer far.Close()
	v, pieces := virtualOf(t, region(t, a, 4000), 4, 1000)
	q := guestdriver.NewCompletionQueue()
	recalls, asked := make(chan func(), 4), make(chan abi.Fields, 16)
	f.Intercept(func(queue int, r abi.Fields) bool {
		switch {
		case r.Type == abi.TypeBufferAvailable && r.Aux != 0:
			asked <- r
		case r.Type == abi.TypeBufferAvailable: // the driver's own
			return true
		case r.Type == abi.TypeCancellation && r.Conn == c.ID():
			recalls <- func() {
				f.Inject(queue, abi.Fields{Type: 17, Flags: 1, Aux: 2, Tag: r.Offset, Conn: r.Conn})
				f.Inject(queue, abi.Fields{Type: 22, Flags: 1, Tag: r.Tag, Conn: r.Conn})
			}
			return true
		}
		return false
	})
	c.SetReadAhead(true)
	if err := c.PostVirtual(v, q); err != nil {
		t.Fatal(err)
	}
	recalled := <-recalls
	if len(asked) != 0 {
		t.Fatalf("asked for %+v before the driver's own buffer was back", <-asked)
	}
	if err := c.CancelBuffer(pieces[2]); err != nil {
		t.Fatal(err)
	}
	for _, b := range []*guestdriver.Buffer{pieces[3], pieces[2]} {
		if d := next(t, q); d.Buffer != b || !errors.Is(d.Err, syscall.ECANCELED) || !d.Final {
			t.Errorf("%+v", d)
		}
	}
	recalled()
	for i := range 2 {
		if r := <-asked; r.Aux != 0x0100|uint16(i) {
			t.Errorf("asked for %+v", r)
		}
	}
	f.Intercept(nil)
	if _, err := far.Write(make([]byte, 2000)); err != nil {
		t.Fatal(err)
	}
	for n := 0; n < 2000; {
		d := next(t, q)
		if d.At != n || d.Err != nil {
			t.Fatalf("after %d bytes %+v", n, d)
		}
		n += d.N
	}
}

// TestVirtualBufferRefused: what is refused is the application's.
func TestVirtualBufferRefused(t *testing.T) {
	a, _ := open(t, guestdriver.Options{NoReadAhead: true, Memory: 8 << 20})
	c, far := pair(t, a)
	defer far.Close()
	m := region(t, a, 1000)
	b, other := part(t, m, 0, 10), part(t, m, 10, 10)
	q := guestdriver.NewCompletionQueue()
	for n, pieces := range map[int][]*guestdriver.Buffer{0: nil, 257: slices.Repeat([]*guestdriver.Buffer{b}, 257)} {
		if v, err := guestdriver.NewVirtualBuffer(pieces...); err == nil {
			t.Errorf("%d pieces: %v", n, v)
		}
	}
	twice, err := guestdriver.NewVirtualBuffer(other, b, b)
	if err != nil {
		t.Fatal(err)
	}
	if err := c.PostVirtual(twice, q); !errors.Is(err, guestdriver.ErrBusy) {
		t.Errorf("a piece that is in it twice: %v", err)
	}
	for i := range 255 {
		v, err := guestdriver.NewVirtualBuffer(part(t, m, 20+i, 1))
		if err == nil {
			err = c.PostVirtual(v, q)
		}
		if err != nil {
			t.Fatalf("%d: %v", i, err)
		}
	}
	v, _ := guestdriver.NewVirtualBuffer(other, b)
	if err := c.PostVirtual(v, q); !errors.Is(err, syscall.ENOBUFS) {
		t.Errorf("one too many: %v", err)
	}
	c.Close()
	if err := c.PostVirtual(v, q); !errors.Is(err, net.ErrClosed) {
		t.Errorf("of a closed connection: %v", err)
	}
	for i := range 255 {
		if d := next(t, q); d.Err != net.ErrClosed || !d.Final {
			t.Fatalf("%d: %+v", i, d)
		}
	}
	if err := m.Deregister(); err != nil {
		t.Errorf("deregister: %v", err)
	}
}

// TestVirtualBufferPiece: when the adapter refuses a piece, those behind it come
// back, and nothing else ends.
func TestVirtualBufferPiece(t *testing.T) {
	a, f := open(t, guestdriver.Options{NoReadAhead: true})
	c, far := pair(t, a)
	defer c.Close()
	defer far.Close()
	v, pieces := virtualOf(t, region(t, a, 4000), 4, 1000)
	q := guestdriver.NewCompletionQueue()
	f.Intercept(func(queue int, r abi.Fields) bool {
		if r.Type == abi.TypeBufferAvailable && r.Aux == 0x0101 {
			go f.Inject(queue, abi.Fields{Type: 17, Flags: 1, Aux: 11, Tag: r.Tag, Base: r.Base, Conn: r.Conn}) // NO_MEMORY
			return true
		}
		return false
	})
	if err := c.PostVirtual(v, q); err != nil {
		t.Fatal(err)
	}
	for range 3 {
		d := next(t, q)
		expect := syscall.ECANCELED
		if d.Buffer == pieces[1] {
			expect = syscall.ENOBUFS
		}
		if d.Buffer == pieces[0] || !d.Final || d.N != 0 || !errors.Is(d.Err, expect) {
			t.Errorf("%+v", d)
		}
	}
	f.Intercept(nil)
	if err := c.PostBuffer(pieces[1], q); err != nil {
		t.Fatal(err)
	}
	if _, err := far.Write(make([]byte, 2000)); err != nil {
		t.Fatal(err)
	}
	for n := 0; n < 2000; {
		d := next(t, q)
		if d.Buffer != pieces[n/1000] || d.Err != nil || (d.Virtual == nil) != (n >= 1000) {
			t.Fatalf("after %d bytes %+v", n, d)
		}
		n += d.N
	}
}

// TestFragment: a buffer whose adapter may give it back before it is full comes back
// without an error when it does; that costs the connection nothing.
func TestFragment(t *testing.T) {
	a, f := open(t, guestdriver.Options{NoReadAhead: true})
	c, far := pair(t, a)
	defer c.Close()
	defer far.Close()
	m := region(t, a, 2000)
	b, behind := part(t, m, 0, 1000), part(t, m, 1000, 1000)
	q := guestdriver.NewCompletionQueue()
	queue := make(chan int, 4)
	seen := make(chan abi.Fields, 4)
	f.Intercept(func(qi int, r abi.Fields) bool {
		if r.Type == abi.TypeBufferAvailable {
			queue <- qi
			seen <- r
			return true
		}
		return false
	})
	if err := c.PostBufferWith(b, guestdriver.ReceiveOptions{Fragment: true}, q); err != nil {
		t.Fatal(err)
	}
	if err := c.PostBufferWith(behind, guestdriver.ReceiveOptions{Skip: 3}, q); err != nil {
		t.Fatal(err)
	}
	r, s, qi := <-seen, <-seen, <-queue
	if r.Flags != 4 || r.Offset != 0 || s.Flags != 16 || s.Offset != 3 { // FRAGMENT; SKIP
		t.Errorf("requests %+v, %+v", r, s)
	}
	f.Inject(qi, abi.Fields{Type: 16, Tag: r.Tag, Base: r.Base, Conn: r.Conn, Length: 64})
	if d := next(t, q); d != (guestdriver.Completion{Buffer: b, Conn: c, Op: guestdriver.OpReceive, N: 64}) {
		t.Errorf("bytes: %+v", d)
	}
	f.Inject(qi, abi.Fields{Type: 17, Flags: 1, Tag: r.Tag, Base: r.Base, Conn: r.Conn})
	if d := next(t, q); d != (guestdriver.Completion{Buffer: b, Conn: c, Op: guestdriver.OpReceive, Offset: 64, Final: true}) {
		t.Errorf("given back: %+v", d)
	}
	f.Inject(qi, abi.Fields{Type: 16, Flags: 1, Tag: s.Tag, Base: s.Base, Conn: s.Conn, Length: 1000})
	if d := next(t, q); d != (guestdriver.Completion{Buffer: behind, Conn: c, Op: guestdriver.OpReceive, N: 1000, Skipped: 3, Final: true}) {
		t.Errorf("the next buffer: %+v", d)
	}
	if s := a.Stats(); s.Fragments != 1 || s.BadLengths != 0 {
		t.Errorf("%d fragments, %d bad lengths", s.Fragments, s.BadLengths)
	}
}

// A record of a known size comes into two places of registered memory at once: its
// header to the one, its payload to the other.
func ExampleConn_PostVirtual() {
	a, err := guestdriver.Open(context.Background(), guestdrivertest.New(), guestdriver.Options{})
	if err != nil {
		log.Fatal(err)
	}
	defer a.Close()
	c, err := a.Dial("tcp", "10.0.2.2:7") // an echo
	if err != nil {
		log.Fatal(err)
	}
	defer c.Close()
	conn := c.(*guestdriver.Conn)
	m, err := a.Alloc(4096)
	if err != nil {
		log.Fatal(err)
	}
	header, err1 := m.Buffer(0, 4)
	payload, err2 := m.Buffer(1024, 5)
	v, err3 := guestdriver.NewVirtualBuffer(header, payload)
	if err := errors.Join(err1, err2, err3); err != nil {
		log.Fatal(err)
	}
	q := guestdriver.NewCompletionQueue()
	if err := conn.PostVirtual(v, q); err != nil {
		log.Fatal(err)
	}
	if _, err := conn.Write([]byte("len5hello")); err != nil {
		log.Fatal(err)
	}
	for n := 0; n < 9; {
		d, err := q.Next(context.Background())
		if err != nil || d.Err != nil {
			log.Fatal(err, d.Err)
		}
		n += d.N
	}
	fmt.Printf("%s, %s\n", header.Bytes(), payload.Bytes())
	// Output: len5, hello
}
