// SPDX-License-Identifier: Apache-2.0

package engine

import (
	"slices"
	"testing"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"
)

// someRoom takes payload as far as it has room, and remembers what it was asked.
type someRoom struct {
	room  int
	asked []Arrival
}

func (a *someRoom) Admit(x Arrival) int {
	a.asked = append(a.asked, x)
	n := min(x.Bytes, a.room)
	a.room -= n
	return n
}

func (a *someRoom) Release(n int, _ Sink) { a.room += n }

// TestIntake: what of segments is taken, and what counts, from literal sequence
// numbers on. The probe speaks when a step says so.
func TestIntake(t *testing.T) {
	first := uint32(0xffff_fc00) // 1,024 bytes before the numbers wrap
	sink := nothing{}
	account := &someRoom{room: 10_000}
	n := new(netstack)
	n.Account(account)
	c := &conn{endpoint: endpoint{engine: n, sink: sink}}
	var asked []Arrival
	type probe struct {
		next, limit uint32
		received    uint64
		pending     bool
		closed      bool
	}
	for _, s := range []struct {
		what   string
		seq    uint32
		n      int
		keep   int
		ask    *Arrival
		took   int
		probe  *probe
		counts int
	}{
		{what: "the first segment", seq: first, n: 1000, keep: 1000, ask: &Arrival{Bytes: 1000}, counts: 1000},
		{what: "the same again", seq: first, n: 1000, keep: 1000, counts: 1000},
		{what: "one that overlaps, and wraps", seq: first + 500, n: 1500, keep: 1500, ask: &Arrival{Bytes: 1000, Held: 1000, At: 1000}, counts: 2000},
		{what: "the probe", probe: &probe{next: first + 2000, limit: first + 60_000, received: 2000}, counts: 2000},
		{what: "a read", took: 1500, counts: 500},
		{what: "behind a gap of 1,000", seq: first + 3000, n: 1000, keep: 1000, ask: &Arrival{Bytes: 2000, Held: 500, At: 2000, Gap: true}, counts: 2500},
		{what: "the probe", probe: &probe{next: first + 2000, limit: first + 60_000, received: 2000, pending: true}, counts: 2500},
		{what: "behind what waits", seq: first + 4000, n: 100, keep: 100, ask: &Arrival{Bytes: 100, Held: 2500, At: 4000, Gap: true}, counts: 2600},
		{what: "what was missing", seq: first + 2000, n: 1000, keep: 1000, counts: 2600},
		{what: "the probe", probe: &probe{next: first + 4100, limit: first + 60_000, received: 4100}, counts: 2600},
		{what: "more than there is room for", seq: first + 4100, n: 8000, keep: 7400, ask: &Arrival{Bytes: 8000, Held: 2600, At: 4100}, counts: 10_000},
		{what: "more, without room", seq: first + 12_100, n: 100, ask: &Arrival{Bytes: 700, Held: 10_000, At: 11_500, Gap: true}, counts: 10_000},
		{what: "a read of what arrived", took: 2600, counts: 7400},
		{what: "room for what is missing only", seq: first + 14_500, n: 100, ask: &Arrival{Bytes: 3100, Held: 7400, At: 11_500, Gap: true}, counts: 7400},
		{what: "the probe: nothing beyond the window was kept", probe: &probe{next: first + 4100, limit: first + 6100, received: 4100}, counts: 2000},
		{what: "from nowhere", seq: first + 1<<30, n: 1000, counts: 2000},
		{what: "from long ago", seq: first - 1<<30, n: 1000, keep: 1000, counts: 2000},
		{what: "the probe: the peer has ended", probe: &probe{next: first + 4101, limit: first + 6100, received: 4100, closed: true}, counts: 0},
		{what: "behind the end", seq: first + 4101, n: 50, keep: 50, counts: 0},
	} {
		if s.n > 0 {
			if keep := c.admit(s.seq, s.n); keep != s.keep {
				t.Errorf("%s: %d bytes taken, not %d", s.what, keep, s.keep)
			}
		}
		if s.ask != nil {
			s.ask.Sink = sink
			asked = append(asked, *s.ask)
		}
		if s.took > 0 {
			c.took(s.took)
		}
		if p := s.probe; p != nil {
			c.ackMu.Lock()
			c.peerClosed = p.closed
			c.intake.taken(p.next, p.limit, p.pending, p.closed)
			c.arrivedLocked(p.received, sink)
			c.ackMu.Unlock()
		}
		if c.intake.counted != s.counts || account.room != 10_000-s.counts || n.Held() != int64(s.counts) {
			t.Errorf("%s: %d bytes count, %d held, room for %d; not %d", s.what, c.intake.counted, n.Held(), account.room, s.counts)
		}
		if !slices.Equal(account.asked, asked) {
			t.Fatalf("%s: asked %+v", s.what, account.asked)
		}
	}
	c.peerClosed = false
	c.admit(first+4101, 10)
	if c.settle(); account.room != 10_000 || n.Held() != 0 {
		t.Errorf("room for %d, %d held after the end", account.room, n.Held())
	}
	if keep := c.admit(first+4111, 10); keep != 10 || account.room != 10_000 {
		t.Errorf("after the end %d bytes are taken, room for %d", keep, account.room)
	}
}

// TestFragment: packets that may be parts of segments, which nobody can count, and
// segments behind extension headers, which can be.
func TestFragment(t *testing.T) {
	v4 := func(proto byte, fragment uint16) []byte {
		b := make([]byte, 40)
		b[0], b[3], b[6], b[7], b[9], b[32] = 0x45, 40, byte(fragment>>8), byte(fragment), proto, 5<<4
		return b
	}
	v6 := func(next byte, more ...byte) []byte {
		b := make([]byte, 40, 80)
		b[0], b[6] = 0x60, next
		b = append(append(b, more...), make([]byte, 20)...)
		b[len(b)-20+12] = 5 << 4
		b[5] = byte(len(b) - 40)
		return b
	}
	hop, routing := []byte{60, 1, 1, 4, 0, 0, 0, 0, 1, 4, 0, 0, 0, 0, 1, 0}, []byte{6, 0, 0, 0, 0, 0, 0, 0}
	options := []byte{43, 0, 1, 4, 0, 0, 0, 0}
	for _, c := range []struct {
		what     string
		ip       tcpip.NetworkProtocolNumber
		b        []byte
		fragment bool
		at       int // of the segment; 0: it is none
	}{
		{"a segment", header.IPv4ProtocolNumber, v4(6, 0), false, 20},
		{"one that is not to be cut up", header.IPv4ProtocolNumber, v4(6, 0x4000), false, 20},
		{"the first fragment of one", header.IPv4ProtocolNumber, v4(6, 0x2000), true, 20},
		{"a later fragment of one", header.IPv4ProtocolNumber, v4(6, 1), true, 0},
		{"a datagram", header.IPv4ProtocolNumber, v4(17, 0), false, 0},
		{"a fragment of a datagram", header.IPv4ProtocolNumber, v4(17, 0x2000), false, 0},
		{"a short packet", header.IPv4ProtocolNumber, v4(6, 1)[:19], false, 0},
		{"an IPv6 segment", header.IPv6ProtocolNumber, v6(6), false, 40},
		{"behind extension headers", header.IPv6ProtocolNumber, v6(0, append(append(hop, options...), routing...)...), false, 72},
		{"behind a route that goes on", header.IPv6ProtocolNumber, v6(43, 6, 0, 0, 1, 0, 0, 0, 0), false, 0},
		{"behind options that do not end", header.IPv6ProtocolNumber, v6(60, 6, 9, 1, 4, 0, 0, 0, 0), false, 0},
		{"in a fragment that is all", header.IPv6ProtocolNumber, v6(44, 6, 0, 0, 0, 1, 2, 3, 4), false, 48},
		{"the first IPv6 fragment", header.IPv6ProtocolNumber, v6(44, 6, 0, 0, 1, 1, 2, 3, 4), true, 0},
		{"a later IPv6 fragment, behind options", header.IPv6ProtocolNumber, v6(60, 44, 0, 1, 4, 0, 0, 0, 0, 6, 0, 1, 0, 1, 2, 3, 4), true, 0},
		{"a datagram behind options", header.IPv6ProtocolNumber, v6(60, 17, 0, 1, 4, 0, 0, 0, 0), false, 0},
		{"neighbour discovery", header.IPv6ProtocolNumber, v6(58), false, 0},
		{"a header alone", header.IPv6ProtocolNumber, v6(44)[:40], true, 0},
		{"ARP", header.ARPProtocolNumber, make([]byte, 28), false, 0},
	} {
		if got := fragment(c.ip, c.b); got != c.fragment {
			t.Errorf("%s: a fragment: %t", c.what, got)
		}
		if s, ok := parseInbound(c.ip, c.b, len(c.b)); ok != (c.at != 0) || ok && (s.at != c.at || s.payload != 0) {
			t.Errorf("%s: a segment at %d, %t, %d bytes of payload", c.what, s.at, ok, s.payload)
		}
		if b := stripped(c.ip, c.b, len(c.b), 0); (b == nil) != (c.fragment || c.at == 0) {
			t.Errorf("%s: stripped: % x", c.what, b)
		}
	}
}
