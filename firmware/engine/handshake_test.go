// SPDX-License-Identifier: Apache-2.0

package engine_test

import (
	"encoding/binary"
	"net/netip"
	"sync/atomic"
	"testing"
	"time"

	"toebox/firmware/engine"
	"toebox/firmware/engine/enginetest"
)

// TestRetransmittedSYN: what a handshake took in which SYNs were lost is not taken
// for a round trip.
func TestRetransmittedSYN(t *testing.T) {
	for _, v6 := range []bool{false, true} {
		var lost atomic.Int32
		drop := func(_ int, f []byte) bool {
			tcp, protocol := 34, f[23]
			if binary.BigEndian.Uint16(f[12:]) == 0x86dd {
				tcp, protocol = 54, f[20]
			}
			return protocol == 6 && len(f) > tcp+13 && f[tcp+13] == flagSYN && lost.Add(1) <= 2
		}
		clock, change := manual()
		a, b := twoEngines(t, enginetest.PipeOptions{Drop: drop}, change)
		l := listen(t, a, v6, 80, 1)
		to := a.v4
		if v6 {
			to = a.v6
		}
		client := open(t, b, engine.TCP, v6)
		if err := client.Connect(netip.AddrPortFrom(to, 80)); err != nil {
			t.Fatal(err)
		}
		took := step(t, b, clock, 50*time.Millisecond, func() bool { return client.ev.seen(engine.EventConnected) })
		server := accept(t, l)
		send(t, client, []byte("x"))
		receive(t, server, 1)
		client.ev.until(t, "the acknowledgement", func() bool { return client.Info().Acked == 1 })
		if i := client.Info(); lost.Load() < 3 || took < 3*time.Second || i.RTO == 0 || i.RTO > time.Second {
			t.Errorf("IPv6 %t: %d SYNs, connected after %v: round trip %v, time-out %v", v6, lost.Load(), took, i.RTT, i.RTO)
		}
	}
}
