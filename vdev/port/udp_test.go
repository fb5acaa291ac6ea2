// SPDX-License-Identifier: Apache-2.0

package port

import (
	"encoding/binary"
	"net/netip"
	"sync"
	"testing"
	"time"
)

// TestUDPFlowOnce: datagrams that open a flow at the same time, as of an adapter
// that sends what waited for ARP beside what is new, all get through.
func TestUDPFlowOnce(t *testing.T) {
	const senders, rounds = 4, 500
	got := make(chan [2]byte, senders*rounds)
	sink := udpServe(t, func(b []byte) [][]byte {
		got <- [2]byte(b)
		return nil
	})
	r := newRaw(t, NATConfig{})
	for round := range uint16(rounds) {
		var start, sent sync.WaitGroup
		start.Add(1)
		for k := range byte(senders) {
			b := datagramFrame(t, 1024+round, sink, [2]byte{byte(round), k})
			sent.Go(func() {
				start.Wait()
				r.send(b, 1000)
			})
		}
		start.Done()
		sent.Wait()
		seen := map[[2]byte]bool{}
		for range senders {
			select {
			case b := <-got:
				seen[b] = true
			case <-time.After(limit):
				t.Fatalf("round %d: %v of %d came; %+v", round, seen, senders, r.n.Stats())
			}
		}
		if len(seen) != senders {
			t.Fatalf("round %d: %v", round, seen)
		}
	}
}

// datagramFrame is a frame of the adapter's to a port of the host.
func datagramFrame(t *testing.T, from uint16, to netip.AddrPort, payload [2]byte) []byte {
	b := hexBytes(t, `
52550a000202 020000000015 0800
45 00 001e 0001 0000 40 11 0000 0a00020f 0a000202
0000 0000 000a 0000 0000 # UDP without a checksum`)
	binary.BigEndian.PutUint16(b[24:], ^sum16(b[14:34], 0))
	binary.BigEndian.PutUint16(b[34:], from)
	binary.BigEndian.PutUint16(b[36:], to.Port())
	copy(b[42:], payload[:])
	return b
}
