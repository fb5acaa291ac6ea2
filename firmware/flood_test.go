// SPDX-License-Identifier: Apache-2.0

package firmware_test

import (
	"encoding/binary"
	"net/netip"
	"testing"

	"toebox/firmware/engine"
	"toebox/vdev/abi"
)

// syn is an Ethernet frame to adapter b of pair: a TCP segment with the SYN bit
// and nothing else. Its checksum is left to a port that vouches for it.
func syn(src [4]byte, mac byte, from, to uint16, seq uint32) []byte {
	f := []byte{
		2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, mac, 8, 0, // Ethernet: IPv4
		0x45, 0, 0, 40, 0, 1, 0, 0, 64, 6, 0, 0, src[0], src[1], src[2], src[3], 10, 0, 2, 2, // IPv4: TCP
		0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x50, 2, 0xff, 0xff, 0, 0, 0, 0, // TCP: SYN
	}
	var sum uint32
	for i := 14; i < 34; i += 2 {
		sum += uint32(binary.BigEndian.Uint16(f[i:]))
	}
	for sum>>16 != 0 {
		sum = sum&0xffff + sum>>16
	}
	binary.BigEndian.PutUint16(f[24:], ^uint16(sum))
	binary.BigEndian.PutUint16(f[34:], from)
	binary.BigEndian.PutUint16(f[36:], to)
	binary.BigEndian.PutUint32(f[38:], seq)
	return f
}

// TestFlood: a SYN flood from addresses where nobody is and from a live host,
// and a scan of all ports, leave an adapter as it was: memory is bounded,
// nothing is charged, the connection it has goes on, and a new one is accepted
// (CE03).
func TestFlood(t *testing.T) {
	ports, a, b := pairPorts(t, 5)
	idA, idB := join(t, a, b)
	used, connections := b.counter(abi.CounterMemoryUsed), b.counter(abi.CounterConnections)
	before := heap()
	frames := b.counter(abi.CounterFramesReceived)
	sent := uint64(0)
	hit := func(f []byte) {
		if n := ports[0].Transmit([]engine.Frame{{Data: [][]byte{f}, ChecksumValid: true}}); n != 1 {
			t.Fatalf("%d frames taken", n)
		}
		if sent++; sent%1000 == 0 { // the pipe holds so many
			b.arrived(frames + sent)
		}
	}
	flood, scan := uint32(20_000), uint32(1<<16)
	if raceEnabled {
		flood, scan = 5_000, 8_192
	}
	for i := range flood {
		src, mac := [4]byte{10, 0, 2, byte(100 + i%100)}, byte(9)
		if i%4 == 0 {
			src, mac = [4]byte{10, 0, 2, 1}, 1
		}
		hit(syn(src, mac, uint16(1024+i), 80, i*7919))
	}
	for port := range scan {
		hit(syn([4]byte{10, 0, 2, byte(200 + port%50)}, 9, 4000, uint16(port), port))
	}
	b.arrived(frames + sent)
	b.settleQuiet()
	if n := b.counter(abi.CounterMemoryUsed); n != used {
		t.Errorf("%d bytes of adapter memory in use, %d before", n, used)
	}
	b.wantCounter(abi.CounterConnections, connections)
	// What may be held for a while: half-open connections up to the backlog, and
	// for each address that nobody answers for 256 packets, until that is given up.
	const bound = 4096*8<<10 + (100+50)*256*1536
	if now := heap(); now > before+bound {
		t.Errorf("%d bytes of heap, %d before, %d allowed", now, before, bound)
	}

	up := newStream(a, b, idA, idB, 100_000, true)
	for up.received < 100_000 || len(up.sends) > 0 {
		up.step(t)
	}
	if string(up.sent.Sum(nil)) != string(up.got.Sum(nil)) {
		t.Error("other bytes arrived")
	}
	f := a.target(abi.TypeConnect, abi.Target{Protocol: 6, Count: 1, Local: netip.MustParseAddrPort("0.0.0.0:0"),
		Remote: netip.MustParseAddrPort("10.0.2.2:80")})
	a.post(f)
	if c := a.next(); c.Tag != f.Tag || c.Aux != 0 {
		t.Errorf("a connect after the flood: %+v", c)
	}
	for c := b.next(); c.Type != abi.TypeArrival; c = b.next() {
		if c.Type != abi.TypeBufferReceive {
			t.Fatalf("unexpected response %+v", c)
		}
	}
}

// arrived waits until so many frames have come in.
func (r *rig) arrived(n uint64) {
	r.t.Helper()
	if err := r.Wait("frames to arrive", func() bool { return r.counter(abi.CounterFramesReceived) >= n }); err != nil {
		r.t.Fatal(err)
	}
}

// settleQuiet is settle of a queue that has nothing else to say.
func (r *rig) settleQuiet() {
	r.t.Helper()
	if seen := r.settle(); len(seen) != 0 {
		r.t.Fatalf("unexpected responses %+v", seen)
	}
}

// step takes the responses that there are, or waits for one.
func (s *stream) step(t *testing.T) {
	t.Helper()
	err := s.to.Wait("a response of a stream", func() bool {
		handled := false
		for _, r := range []*rig{s.from, s.to} {
			for _, f := range r.Pending() {
				if !s.handle(t, r, f) {
					t.Fatalf("unexpected response %+v", f)
				}
				handled = true
			}
		}
		return handled
	})
	if err != nil {
		t.Fatal(err)
	}
}
