// SPDX-License-Identifier: Apache-2.0

package socket_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"toebox/guestdriver"
	"toebox/vdev/abi"
	"toebox/vfio-user/vfiousertest"
)

const (
	shrunkenIOVA = 1 << 32
	shrunkenSize = 64 << 10
	shrunkenTo   = 8 << 10 // what is left of it
)

// shrunken is a driver of a device process, with DMA memory in a file that the
// test may cut short.
type shrunken struct {
	*testing.T
	a    *guestdriver.Adapter
	file *os.File
	m    *guestdriver.Memory
	ctx  context.Context
}

func newShrunken(t *testing.T) *shrunken {
	t.Helper()
	_, path := process(t)
	bus := dial(t, path, patience)
	s := &shrunken{T: t, file: vfiousertest.Memory(t, shrunkenSize)}
	mem, err := unix.Mmap(int(s.file.Fd()), 0, shrunkenSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Munmap(mem) })
	s.a, err = guestdriver.Open(t.Context(), bus, guestdriver.Options{Memory: 4 << 20})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.a.Close(); err != nil {
			t.Error(err)
		}
	})
	if err := bus.MapFile(shrunkenIOVA, shrunkenSize, s.file); err != nil {
		t.Fatal(err)
	}
	if s.m, err = s.a.Register(guestdriver.DMA{Bytes: mem, IOVA: shrunkenIOVA}); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	t.Cleanup(cancel)
	s.ctx = ctx
	return s
}

// truncate sets the file's length. Pages that it cuts off fault, until it is as
// long again.
func (s *shrunken) truncate(n int64) {
	s.Helper()
	if err := s.file.Truncate(n); err != nil {
		s.Fatal(err)
	}
}

// connect connects with serve on the host.
func (s *shrunken) connect(serve func(net.Conn)) *guestdriver.Conn {
	s.Helper()
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		s.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		c, err := l.Accept()
		if err != nil {
			return
		}
		defer c.Close()
		c.SetDeadline(time.Now().Add(patience))
		serve(c)
	}()
	s.Cleanup(func() { l.Close(); <-done })
	_, port, _ := net.SplitHostPort(l.Addr().String())
	c, err := s.a.DialContext(s.ctx, "tcp", "10.0.2.2:"+port)
	if err != nil {
		s.Fatal(err)
	}
	conn := c.(*guestdriver.Conn)
	s.Cleanup(func() {
		conn.SetLinger(0)
		conn.Close()
	})
	conn.SetDeadline(time.Now().Add(patience))
	return conn
}

// part is a buffer in memory.
func (s *shrunken) part(m *guestdriver.Memory, off, n int) *guestdriver.Buffer {
	s.Helper()
	b, err := m.Buffer(off, n)
	if err != nil {
		s.Fatal(err)
	}
	return b
}

// counter is one of the adapter's.
func (s *shrunken) counter(c abi.Counter) uint64 {
	s.Helper()
	all, err := s.a.Counters(s.ctx)
	if err != nil {
		s.Fatal(err)
	}
	return all[c]
}

// post posts receive buffers, one behind the other.
func (s *shrunken) post(c *guestdriver.Conn, q *guestdriver.CompletionQueue, bs ...*guestdriver.Buffer) {
	s.Helper()
	for _, b := range bs {
		if err := c.PostBuffer(b, q); err != nil {
			s.Fatal(err)
		}
	}
}

// TestShrunkenReceive cuts the file behind a posted buffer: the process of the
// device lives, whatever stores it was writing by, the buffer comes back with what
// is in it and an error, and the next one has the bytes from there on.
func TestShrunkenReceive(t *testing.T) {
	const n = 20_000
	const placement, notifyBytes, notifyMax = 0x0260, 0x0241, 0x0243
	for _, k := range []struct {
		name     string
		attrs    map[abi.Attribute]uint64
		streamed uint64 // bytes by non-temporal stores
	}{
		{"ordinary stores", nil, 0},
		{"non-temporal stores", map[abi.Attribute]uint64{placement: 1}, n},
		{"gathered", map[abi.Attribute]uint64{notifyBytes: n, notifyMax: 1 << 40}, 0},
		{"gathered, non-temporal stores", map[abi.Attribute]uint64{notifyBytes: n, notifyMax: 1 << 40, placement: 1}, n},
	} {
		t.Run(k.name, func(t *testing.T) {
			s := newShrunken(t)
			want := make([]byte, 1+n)
			for i := range want {
				want[i] = byte(i>>8) ^ byte(i*31)
			}
			c := s.connect(func(c net.Conn) {
				c.Write(want[:1])
				if _, err := io.ReadFull(c, make([]byte, 1)); err == nil {
					c.Write(want[1:])
				}
				io.Copy(io.Discard, c)
			})
			c.SetReadAhead(false)
			own, err := s.a.Alloc(32 << 10)
			if err != nil {
				t.Fatal(err)
			}
			q := guestdriver.NewCompletionQueue()
			// From then on the adapter has no buffer of the driver's, and has each
			// that is posted at once.
			s.post(c, q, s.part(own, 0, 1))
			if d, err := q.Next(s.ctx); err != nil || d.Err != nil || d.N != 1 {
				t.Fatalf("the first byte: %+v, %v", d, err)
			}
			for a, v := range k.attrs {
				if err := s.a.SetScalar(s.ctx, c.ID(), a, v); err != nil {
					t.Fatal(err)
				}
			}
			short, next := s.part(s.m, 100, 2*n), s.part(own, 64, n)
			s.post(c, q, short, next)
			s.truncate(shrunkenTo)
			if _, err := c.Write([]byte{1}); err != nil {
				t.Fatal(err)
			}
			var got []byte
			failed := false
			for len(got) < n {
				d, err := q.Next(s.ctx)
				if err != nil {
					t.Fatalf("behind %d bytes: %v", len(got), err)
				}
				if d.Buffer == next && !failed || d.Final && d.Buffer == short != errors.Is(d.Err, abi.StatusBadMemory) {
					t.Fatalf("behind %d bytes: %+v", len(got), d)
				}
				failed = failed || d.Final
				got = append(got, d.Buffer.Bytes()[d.Offset:d.Offset+d.N]...)
				if d.Buffer == short && len(got) > shrunkenTo-100 {
					t.Fatalf("%d bytes in a buffer that has %d", len(got), shrunkenTo-100)
				}
			}
			if !bytes.Equal(got, want[1:]) {
				t.Error("other bytes came")
			}
			if n := s.counter(abi.CounterDMAErrors); n == 0 {
				t.Error("no error was counted")
			}
			if n := s.counter(abi.CounterNonTemporalBytes); n != k.streamed {
				t.Errorf("%d bytes by non-temporal stores, want %d", n, k.streamed)
			}
		})
	}
}

// TestShrunkenSend cuts the file behind a buffer to be sent: an error, and with
// the file as long as it was the memory is as good as before.
func TestShrunkenSend(t *testing.T) {
	const n = 20_000
	s := newShrunken(t)
	c := s.connect(func(c net.Conn) { io.Copy(io.Discard, c) })
	q := guestdriver.NewCompletionQueue()
	b := s.part(s.m, 100, n)
	s.truncate(shrunkenTo)
	if err := c.SendBuffer(b, q); err != nil {
		t.Fatal(err)
	}
	if d, err := q.Next(s.ctx); err != nil || !errors.Is(d.Err, abi.StatusBadMemory) {
		t.Errorf("a send of memory that has gone: %+v, %v", d, err)
	}
	s.truncate(shrunkenSize)
	c = s.connect(func(c net.Conn) { io.Copy(c, c) })
	c.SetReadAhead(false)
	back := s.part(s.m, shrunkenSize/2, n)
	for i := range b.Bytes() {
		b.Bytes()[i] = byte(i * 7)
	}
	if err := c.SendBuffer(b, q); err != nil {
		t.Fatal(err)
	}
	if d, err := q.Next(s.ctx); err != nil || d.Err != nil || d.N != n {
		t.Fatalf("a send: %+v, %v", d, err)
	}
	s.post(c, q, back)
	for got := 0; got < n; {
		d, err := q.Next(s.ctx)
		if err != nil || d.Err != nil {
			t.Fatalf("behind %d bytes: %+v, %v", got, d, err)
		}
		got += d.N
	}
	if !bytes.Equal(back.Bytes(), b.Bytes()) {
		t.Error("other bytes came back")
	}
}
