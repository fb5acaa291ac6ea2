// SPDX-License-Identifier: Apache-2.0

package port

import (
	"bytes"
	"errors"
	"io"
	"net"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"toebox/firmware/engine"
)

// unixPair returns the ends of a unix stream socket.
func unixPair(t testing.TB) (net.Conn, net.Conn) {
	t.Helper()
	l, err := net.Listen("unix", filepath.Join(t.TempDir(), "s"))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	a, err := net.Dial("unix", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	b, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { a.Close(); b.Close() })
	return a, b
}

func newStream(t testing.TB) (*Stream, net.Conn) {
	t.Helper()
	checkLeaks(t)
	a, b := unixPair(t)
	s, err := NewStream(a, 1500)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	b.SetDeadline(time.Now().Add(limit))
	return s, b
}

func TestStreamBytes(t *testing.T) {
	s, wire := newStream(t)
	f := gsoFrame(t, false)
	small := engine.Frame{Data: [][]byte{make([]byte, 10), {1, 2, 3, 4, 5}}}
	if k := s.Transmit([]engine.Frame{small, f, {Data: [][]byte{make([]byte, streamFrame+1)}}}); k != 2 {
		t.Errorf("took %d", k)
	}
	want := append([]byte{0, 0, 0, 15}, append(make([]byte, 10), 1, 2, 3, 4, 5)...)
	for _, b := range split(&f) { // 1,058 bytes twice, then 558
		want = append(append(want, 0, 0, byte(len(b)>>8), byte(len(b))), b...)
	}
	got := make([]byte, len(want))
	if _, err := io.ReadFull(wire, got); err != nil || !bytes.Equal(got, want) {
		t.Errorf("got %x, %v", got, err)
	}

	wire.Write([]byte{0, 0, 0, 14}) // nobody receives yet
	wire.Write(make([]byte, 14))
	eventually(t, "it is counted", func() bool { return s.Stats().DroppedNotAttached == 1 })
	var mu sync.Mutex
	var in [][]byte
	s.Attach(func(frames []engine.Frame) {
		mu.Lock()
		defer mu.Unlock()
		for i := range frames {
			in = append(in, bytes.Join(frames[i].Data, nil))
		}
	})
	var sent []byte
	for k := range 200 { // more than one batch in one write, then bytes one by one
		sent = append(append(sent, 0, 0, 0, 14), bytes.Repeat([]byte{byte(k)}, 14)...)
	}
	wire.Write(sent)
	for _, b := range append([]byte{0, 0, 0, 16}, bytes.Repeat([]byte{200}, 16)...) {
		wire.Write([]byte{b})
	}
	eventually(t, "all arrive", func() bool { mu.Lock(); defer mu.Unlock(); return len(in) == 201 })
	for k, b := range in {
		if n := 14 + 2*(k/200); !bytes.Equal(b, bytes.Repeat([]byte{byte(k)}, n)) {
			t.Fatalf("frame %d: %x", k, b)
		}
	}
	s.Attach(nil)
	if st := s.Stats(); st.FramesFromAdapter != 4 || st.FramesToAdapter != 201 || st.DroppedLong != 1 {
		t.Errorf("%+v", st)
	}
}

func TestStreamEnds(t *testing.T) {
	for _, c := range []struct {
		name string
		send []byte
		want error
	}{
		{"in order", nil, io.EOF},
		{"in a length", []byte{0, 0}, io.ErrUnexpectedEOF},
		{"behind a length", []byte{0, 0, 0, 14}, io.ErrUnexpectedEOF},
		{"in a frame", []byte{0, 0, 0, 14, 1}, io.ErrUnexpectedEOF},
		{"too short", []byte{0, 0, 0, 13}, errFrameLength},
		{"too long", []byte{0, 1, 0, 14}, errFrameLength},
		{"far too long", []byte{255, 255, 255, 255}, errFrameLength},
	} {
		t.Run(c.name, func(t *testing.T) {
			s, wire := newStream(t)
			wire.Write(c.send)
			wire.(*net.UnixConn).CloseWrite()
			select {
			case <-s.Done():
			case <-time.After(limit):
				t.Fatal("goes on")
			}
			if err := s.Err(); !errors.Is(err, c.want) {
				t.Errorf("error %v, want %v", err, c.want)
			}
			if k := s.Transmit([]engine.Frame{{Data: [][]byte{make([]byte, 14)}}}); k != 0 || s.Stats().DroppedFull != 1 {
				t.Error("took a frame after the end")
			}
		})
	}
}

// TestStreamLongFrames: the longest frames, as many as the reader can hold.
func TestStreamLongFrames(t *testing.T) {
	s, wire := newStream(t)
	wire.(*net.UnixConn).SetWriteBuffer(8 << 20)
	const count = 100
	got := make(chan int, count)
	s.Attach(func(frames []engine.Frame) {
		for i := range frames {
			got <- frames[i].Len()
		}
	})
	one := append([]byte{0, 1, 0, 13}, make([]byte, streamFrame)...)
	wire.Write(bytes.Repeat(one, count))
	for range count {
		select {
		case n := <-got:
			if n != streamFrame {
				t.Fatalf("a frame of %d bytes", n)
			}
		case <-s.Done():
			t.Fatal(s.Err())
		}
	}
}

// TestStreamFull: a socket that nobody reads costs frames, not time or memory.
func TestStreamFull(t *testing.T) {
	s, _ := newStream(t)
	frame := []engine.Frame{{Data: [][]byte{make([]byte, 60000)}}}
	sent := 0
	for range 2 * streamBuffer / 60000 * 2 {
		sent += s.Transmit(frame)
	}
	if sent*60000 > 3*streamBuffer || s.Stats().DroppedFull == 0 {
		t.Errorf("took %d frames", sent)
	}
	s.Close()
	if err := s.Err(); !errors.Is(err, net.ErrClosed) {
		t.Error(err)
	}
	a, _ := unixPair(t)
	if _, err := NewStream(a, 10); err == nil {
		t.Error("mtu 10 accepted")
	}
}

// TestStreamTransfer runs a gateway at the other end of the socket.
func TestStreamTransfer(t *testing.T) {
	checkLeaks(t)
	n, err := NewNAT(NATConfig{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { n.Close() })
	x, y := unixPair(t)
	near, err := NewStream(x, 1500)
	if err != nil {
		t.Fatal(err)
	}
	far, err := NewStream(y, 1500)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { near.Close(); far.Close() })
	n.Attach(func(f []engine.Frame) { far.Transmit(f) })
	far.Attach(func(f []engine.Frame) { n.Transmit(f) })
	p := newPeer(t, near, n.Lease(), true)
	a, h := outboundPair(t, n, p)
	if err := transfer(a, h, 16<<20, 1); err != nil {
		t.Error(err)
	}
	if err := transfer(h, a, 16<<20, 2); err != nil {
		t.Error(err)
	}
}
