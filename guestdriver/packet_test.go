// SPDX-License-Identifier: Apache-2.0

package guestdriver

import (
	"errors"
	"net"
	"net/netip"
	"os"
	"runtime"
	"syscall"
	"testing"
	"time"

	"toebox/vdev/abi"
)

// packets is a PacketConn of an adapter that the test plays.
type packets struct {
	t       *testing.T
	a       *Adapter
	ln      *lane
	p       *PacketConn
	in, out abi.Index
}

func newPackets(t *testing.T, remote *net.UDPAddr) *packets {
	a, ln := still(t)
	s := &packets{t: t, a: a, ln: ln, p: newPacketConn("udp")}
	s.p.local, s.p.remote = &net.UDPAddr{IP: net.IPv4(10, 0, 2, 15), Port: 9}, remote
	e := &packetEnd{p: s.p, ln: ln, id: 7}
	a.conns[7] = e
	s.p.ends = []*packetEnd{e}
	if err := e.beginLocked(); err != nil {
		t.Fatal(err)
	}
	return s
}

// posted are the requests that the driver posted since.
func (s *packets) posted() (all []abi.Fields) {
	q := s.ln.queue
	for {
		slot := slotOf(q.in.table, s.in, q.in.log2)
		w := abi.LoadWord(slot)
		if w&abi.WordOwner == 0 {
			return all
		}
		all = append(all, slot.Decode())
		abi.StoreWord(slot, w&^abi.WordOwner)
		s.in = s.in.Add(1)
	}
}

// await waits for requests.
func (s *packets) await() []abi.Fields {
	s.t.Helper()
	for end := time.Now().Add(2 * time.Minute); time.Now().Before(end); runtime.Gosched() {
		if f := s.posted(); len(f) > 0 {
			return f
		}
	}
	s.t.Fatal("no request")
	return nil
}

// answer plays a response and has the driver act on it.
func (s *packets) answer(f abi.Fields) {
	answer(s.ln.queue, &s.out, f)
	s.ln.pass()
}

// write puts a datagram where the adapter would.
func (s *packets) write(f abi.Fields, b []byte) {
	for _, r := range s.ln.reqs.table {
		if r.buf != nil && r.buf.iova == f.Base {
			copy(r.buf.data, b)
		}
	}
}

func receiveOf(f abi.Fields, s abi.Status, n uint32) abi.Fields {
	return abi.Fields{Type: abi.TypeBufferReceive, Flags: abi.FlagFinal, Aux: uint16(s), Tag: f.Tag, Base: f.Base, Conn: 7, Length: n}
}

// TestPacketResponses: responses that fit no datagram change nothing; the right
// one that follows does.
func TestPacketResponses(t *testing.T) {
	s := newPackets(t, nil)
	bufs := s.posted()
	if len(bufs) == 0 || len(bufs) > maxPackets {
		t.Fatalf("%d buffers posted", len(bufs))
	}
	f := bufs[0]
	if f.Type != abi.TypeBufferAvailable || f.Conn != 7 || f.Length != 65536 || f.Flags != 0 || f.Offset != 0 {
		t.Errorf("posted %+v", f)
	}
	bad := uint64(0)
	for name, change := range map[string]func(*abi.Fields){
		"not final":             func(f *abi.Fields) { f.Flags = 0 },
		"an offset":             func(f *abi.Fields) { f.Offset = 1 },
		"longer than it can be": func(f *abi.Fields) { f.Length = 65537 },
		"no header":             func(f *abi.Fields) { f.Length = 23 },
		"truncated, but fits":   func(f *abi.Fields) { f.Aux = 17 },
		"another status":        func(f *abi.Fields) { f.Aux = 5 },
	} {
		r := receiveOf(f, 0, 30)
		change(&r)
		s.answer(r)
		if bad++; s.a.bad.length.Load() != bad {
			t.Errorf("%s: %d responses counted as bad, want %d", name, s.a.bad.length.Load(), bad)
		}
	}
	// A header that is none is dropped by the reader, the buffer posted again.
	s.write(f, make([]byte, 24))
	s.answer(receiveOf(f, 0, 24))
	s.write(bufs[1], append(abi.AppendAddress(nil, abi.Address{Addr: netip.MustParseAddr("10.0.2.2"), Port: 5}), "hello"...))
	s.answer(receiveOf(bufs[1], 0, 29))
	b := make([]byte, 100)
	n, from, err := s.p.ReadFrom(b)
	if err != nil || string(b[:n]) != "hello" || from.String() != "10.0.2.2:5" || s.a.bad.length.Load() != bad+1 {
		t.Errorf("%q from %v, %v; %d bad", b[:n], from, err, s.a.bad.length.Load())
	}
	if again := s.posted(); len(again) != 2 {
		t.Errorf("%d buffers posted again", len(again))
	}
	// The second time the tag names nothing.
	s.answer(receiveOf(f, 0, 30))
	if s.a.bad.tag.Load() != 1 {
		t.Error("a stale tag was not counted")
	}
}

func TestPacketSend(t *testing.T) {
	s := newPackets(t, &net.UDPAddr{IP: net.IPv4(10, 0, 2, 2), Port: 5})
	s.posted()
	for _, c := range []struct {
		status abi.Status
		want   error
	}{
		{0, nil}, {4, syscall.ECONNREFUSED}, {6, syscall.EHOSTUNREACH}, {9, syscall.EACCES}, {11, syscall.ENOBUFS}, {38, syscall.EMSGSIZE},
	} {
		for _, b := range []string{"datagram", ""} {
			done := make(chan error, 1)
			go func() { _, err := s.p.Write([]byte(b)); done <- err }()
			f := s.await()
			if want := uint32(max(1, len(b))); f[0].Type != abi.TypeBufferSend || f[0].Length != want || f[0].Offset != want-uint32(len(b)) || !f[0].Modify {
				t.Errorf("posted %+v", f[0])
			}
			r := abi.Fields{Type: abi.TypeBufferDone, Flags: abi.FlagFinal, Aux: uint16(c.status), Tag: f[0].Tag, Base: f[0].Base, Conn: 7, Length: uint32(len(b)) + 1}
			s.answer(r) // more than was sent: counted, and the right one counts
			if r.Length--; c.status != 0 {
				r.Length = 0
			}
			s.answer(r)
			if err := <-done; c.want == nil && err != nil || !errors.Is(err, c.want) {
				t.Errorf("status %v: %v", c.status, err)
			}
		}
	}
	// A write whose deadline passes leaves its buffer until the answer comes.
	used := s.a.tx.inUse()
	if err := s.p.SetWriteDeadline(time.Now().Add(-time.Second)); err != nil {
		t.Fatal(err)
	}
	if _, err := s.p.Write([]byte("x")); !errors.Is(err, os.ErrDeadlineExceeded) || len(s.posted()) != 0 {
		t.Errorf("write past the deadline: %v", err)
	}
	s.p.SetWriteDeadline(time.Time{})
	done := make(chan error, 1)
	go func() { _, err := s.p.Write([]byte("x")); done <- err }()
	f := s.await()
	s.p.SetWriteDeadline(time.Now().Add(-time.Second))
	if err := <-done; !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("write at the deadline: %v", err)
	}
	if s.a.tx.inUse() == used {
		t.Error("the adapter's buffer was freed")
	}
	s.answer(abi.Fields{Type: abi.TypeBufferDone, Flags: abi.FlagFinal, Tag: f[0].Tag, Base: f[0].Base, Conn: 7, Length: 1})
	if s.a.tx.inUse() != used {
		t.Error("the buffer was not freed")
	}
}

func TestPacketEnds(t *testing.T) {
	s := newPackets(t, &net.UDPAddr{IP: net.IPv4(10, 0, 2, 2), Port: 5})
	bufs := s.posted()
	b := make([]byte, 10)
	back := func(f abi.Fields, st abi.Status) {
		s.answer(abi.Fields{Type: abi.TypeBufferDone, Flags: abi.FlagFinal, Aux: uint16(st), Tag: f.Tag, Base: f.Base, Conn: 7})
	}
	// Refused: told once, the buffer is posted again.
	back(bufs[0], abi.StatusRefused)
	if _, err := s.p.Read(b); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("refused: %v", err)
	}
	again := s.posted()
	if len(again) != 1 || again[0].Base != bufs[0].Base {
		t.Fatalf("posted %+v", again)
	}
	// Truncated beyond the largest buffer cannot be; a datagram that the close
	// finds unread goes with it.
	s.write(again[0], []byte("unread"))
	s.answer(receiveOf(again[0], 0, 6))
	if err := s.p.Close(); err != nil {
		t.Fatal(err)
	}
	end := s.posted()
	if len(end) != 1 || end[0].Type != abi.TypeTermination || end[0].Conn != 7 || end[0].Length != 0 {
		t.Fatalf("posted %+v", end)
	}
	for _, f := range bufs[1:] {
		back(f, abi.StatusClosed)
	}
	s.answer(abi.Fields{Type: abi.TypeTerminated, Flags: abi.FlagFinal, Tag: end[0].Tag, Conn: 7})
	if n := s.a.rx.inUse(); n != 0 || s.a.conn(7) != nil || s.a.host.lost.Load() != 0 {
		t.Errorf("%d bytes in use, %d buffers lost", n, s.a.host.lost.Load())
	}

	// A reset: what waits is read, then the error; nothing leaks.
	s = newPackets(t, &net.UDPAddr{IP: net.IPv4(10, 0, 2, 2), Port: 5})
	bufs = s.posted()
	s.write(bufs[0], []byte("kept"))
	s.answer(receiveOf(bufs[0], 0, 4))
	blocked := make(chan error, 1)
	go func() { _, err := s.p.Write([]byte("x")); blocked <- err }()
	s.await()
	s.a.endAll(ErrReset)
	if err := <-blocked; !errors.Is(err, ErrReset) {
		t.Errorf("write: %v", err)
	}
	if n, err := s.p.Read(b); err != nil || string(b[:n]) != "kept" {
		t.Errorf("read %q, %v", b[:n], err)
	}
	if _, err := s.p.Read(b); !errors.Is(err, ErrReset) {
		t.Errorf("read: %v", err)
	}
	if rx, tx := s.a.rx.inUse(), s.a.tx.inUse(); rx != 0 || tx != 0 {
		t.Errorf("%d and %d bytes in use", rx, tx)
	}
	if err := s.p.Close(); err != nil {
		t.Error(err)
	}
}
