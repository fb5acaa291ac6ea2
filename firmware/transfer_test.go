// SPDX-License-Identifier: Apache-2.0

package firmware_test

import (
	"crypto/sha256"
	"hash"
	"net/netip"
	"testing"
	"time"

	"toebox/firmware"
	"toebox/firmware/engine"
	"toebox/firmware/engine/enginetest"
	"toebox/firmware/firmwaretest"
	"toebox/vdev/abi"
)

// pair is two adapters, back to back.
func pair(t *testing.T, log2 uint8, change ...func(*firmware.Config)) (a, b *rig) {
	t.Helper()
	_, a, b = pairPorts(t, log2, change...)
	return a, b
}

// pairPorts is pair, with the ports of a and b.
func pairPorts(t *testing.T, log2 uint8, change ...func(*firmware.Config)) (ports [2]engine.Port, a, b *rig) {
	t.Helper()
	pa, pb := enginetest.Pipe(enginetest.PipeOptions{MTU: 1500})
	ports = [2]engine.Port{pa, pb}
	sides := [2]*rig{}
	for i, port := range ports {
		e, err := engine.New(engine.Config{
			Port: port, MAC: []byte{2, 0, 0, 0, 0, byte(i + 1)},
			Addresses: []netip.Prefix{netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 0, 2, byte(i + 1)}), 24)},
			Routes:    []engine.Route{{Destination: netip.MustParsePrefix("10.0.2.0/24")}},
		})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := e.Close(); err != nil {
				t.Error(err)
			}
			if err := port.Close(); err != nil {
				t.Error(err)
			}
		})
		sides[i] = &rig{t: t}
		sides[i].start(e, log2, change...)
	}
	return ports, sides[0], sides[1]
}

// join connects a to a listener of b.
func join(t *testing.T, a, b *rig) (idA, idB uint64) {
	t.Helper()
	listen := b.target(abi.TypeListen, abi.Target{Protocol: 6, Count: 1, Local: netip.MustParseAddrPort("0.0.0.0:80"),
		Remote: netip.MustParseAddrPort("0.0.0.0:0")})
	b.post(listen)
	l := b.next()
	if l.Type != abi.TypeListenResponse || l.Aux != 0 || l.Length != 80 || l.Conn == 0 {
		t.Fatalf("listen: %+v", l)
	}
	connect := a.target(abi.TypeConnect, abi.Target{Protocol: 6, Count: 1, Local: netip.MustParseAddrPort("0.0.0.0:0"),
		Remote: netip.MustParseAddrPort("10.0.2.2:80")})
	a.post(connect)
	c := a.next()
	if c.Type != abi.TypeCompletion || c.Aux != 0 {
		t.Fatalf("connect: %+v", c)
	}
	got := b.next()
	want := abi.Fields{Type: abi.TypeArrival, Flags: abi.FlagFinal, Base: l.Conn, Conn: got.Conn,
		Length: 0x0a000201, Offset: c.Length | 80<<16}
	if got != want {
		t.Fatalf("arrival %+v\n   want %+v", got, want)
	}
	return c.Conn, got.Conn
}

// stream is one direction of a transfer: a sender that keeps some sends in
// flight and a receiver that keeps some buffers posted.
type stream struct {
	from, to     *rig
	idFrom, idTo uint64
	size         int // of buffers
	left         int
	sent, got    hash.Hash
	sends        map[uint32]abi.Fields
	buffers      map[uint32]abi.Fields
	received     int
	seed         uint32
}

func newStream(from, to *rig, idFrom, idTo uint64, total int, own bool) *stream {
	s := &stream{
		from: from, to: to, idFrom: idFrom, idTo: idTo, size: 20_001, left: total,
		sent: sha256.New(), got: sha256.New(),
		sends: map[uint32]abi.Fields{}, buffers: map[uint32]abi.Fields{}, seed: uint32(total),
	}
	conn := idTo
	if !own {
		conn = 0
	}
	for range 6 {
		s.send(from.buffer(abi.TypeBufferSend, idFrom, s.size))
		s.receive(to.buffer(abi.TypeBufferAvailable, conn, s.size))
	}
	return s
}

// send posts a send with new contents in the memory of f.
func (s *stream) send(f abi.Fields) {
	n := min(s.size, s.left)
	if n == 0 {
		return
	}
	f.Length, f.Tag = uint32(n), s.from.Tag()
	b := s.from.bytes(f)
	for i := range b {
		s.seed = s.seed*1664525 + 1013904223
		b[i] = byte(s.seed >> 24)
	}
	s.sent.Write(b)
	s.left -= n
	s.sends[f.Tag] = f
	s.from.post(f)
}

func (s *stream) receive(f abi.Fields) {
	f.Tag = s.to.Tag()
	s.buffers[f.Tag] = f
	s.to.post(f)
}

// handle takes a response of side r; it reports false when it is not of this
// stream.
func (s *stream) handle(t *testing.T, r *rig, f abi.Fields) bool {
	t.Helper()
	if send, ok := s.sends[f.Tag]; ok && r == s.from && f.Type == abi.TypeBufferDone {
		if f.Aux != 0 || f.Length != send.Length || f.Flags != abi.FlagFinal {
			t.Fatalf("send %+v answered %+v", send, f)
		}
		delete(s.sends, f.Tag)
		send.Length = uint32(s.size)
		s.send(send)
		return true
	}
	if b, ok := s.buffers[f.Tag]; ok && r == s.to && f.Type == abi.TypeBufferReceive {
		if f.Aux != 0 || f.Conn != s.idTo || f.Base != b.Base || f.Offset+f.Length > b.Length || f.Length == 0 {
			t.Fatalf("buffer %+v answered %+v", b, f)
		}
		s.got.Write(s.to.bytes(b)[f.Offset : f.Offset+f.Length])
		s.received += int(f.Length)
		if f.Flags&abi.FlagFinal != 0 {
			delete(s.buffers, f.Tag)
			s.receive(b)
		}
		return true
	}
	return false
}

// TestTransfer moves bytes both ways at once between two adapters, over the
// real engine, one way through bulk buffers, the other through own ones.
func TestTransfer(t *testing.T) {
	a, b := pair(t, 4)
	idA, idB := join(t, a, b)
	total := 8 << 20
	if testing.Short() {
		total = 1 << 20
	}
	up := newStream(a, b, idA, idB, total, true)
	down := newStream(b, a, idB, idA, total+12345, false)
	sides := map[*rig][2]*stream{a: {up, down}, b: {up, down}}
	limit := time.After(6 * firmwaretest.Patience)
	for up.received < total || down.received < total+12345 || len(up.sends)+len(down.sends) > 0 {
		handled := false
		for r, streams := range sides {
			for _, f := range r.Pending() {
				if !streams[0].handle(t, r, f) && !streams[1].handle(t, r, f) {
					t.Fatalf("unexpected response %+v", f)
				}
				handled = true
			}
		}
		if handled { // posting may have taken the token of a later response
			continue
		}
		select {
		case <-a.Chip.Wake():
		case <-b.Chip.Wake():
		case <-limit:
			t.Fatalf("stuck: %d and %d bytes received", up.received, down.received)
		}
	}
	for _, s := range []*stream{up, down} {
		if string(s.sent.Sum(nil)) != string(s.got.Sum(nil)) {
			t.Fatal("other bytes arrived")
		}
	}
	end := abi.Fields{Type: abi.TypeTermination, Tag: a.Tag(), Conn: idA}
	a.post(end)
	for f := a.next(); f.Tag != end.Tag; f = a.next() {
		if f.Type != abi.TypeBufferDone {
			t.Fatalf("unexpected response %+v", f)
		}
	}
	f := b.next()
	for ; f.Type == abi.TypeBufferDone; f = b.next() {
	}
	if (f != abi.Fields{Type: abi.TypeTerminated, Flags: abi.FlagFinal, Conn: idB, Length: 5}) {
		t.Fatalf("end of stream: %+v", f)
	}
	a.wantCounter(abi.CounterBytesSent, uint64(total))
	b.wantCounter(abi.CounterBytesDelivered, uint64(total))
}
