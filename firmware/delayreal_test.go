// SPDX-License-Identifier: Apache-2.0

package firmware_test

import (
	"slices"
	"testing"
	"time"

	"toebox/firmware/engine/enginetest"
	"toebox/vdev/abi"
)

// TestMaximumDelay has bytes wait for 1 ms of the real clock, under each policy
// that ends a wait by time, and prints how long they did until the host had the
// response. How much more than 1 ms that is depends on the machine; how much less, on
// how long the pass was under way that saw the bytes: its time is that of its
// start. Neither is judged, but nothing else may end the wait.
func TestMaximumDelay(t *testing.T) {
	const rounds, limit = 100, time.Millisecond
	criteria, age := uint64(abi.AttrDelayCriteria), uint64(abi.AttrDelayAge)
	for _, k := range []struct {
		name  string
		attrs []uint64
		sends int // posted at once; 0: bytes are received
		by    abi.Counter
	}{
		{"NOTIFY_TIME (RX01)", []uint64{notifyTime, ms, notifyMax, 60_000 * ms}, 0, byTime},
		{"NOTIFY_MAX (RX05, RX06)", []uint64{notifyBytes, 1 << 16, notifyMax, ms}, 0, byMax},
		{"DELAY_AGE (MM07)", []uint64{criteria, 1, age, ms}, 1, abi.CounterDelayAge},
		{"DELAY_AGE, adjacent (MM11)", []uint64{criteria, 1, age, ms}, 8, abi.CounterDelayAge},
	} {
		t.Run(k.name, func(t *testing.T) {
			r := &rig{t: t, fake: enginetest.NewEngine()}
			r.start(r.fake, 6)
			s := r.sender(k.attrs...)
			s.path(1, 0)
			if k.sends > 0 {
				r.done("what fills the congestion window", s.send(false, 100)...)
			}
			var took []time.Duration
			for range rounds {
				var begin time.Time
				if k.sends == 0 {
					r.post(r.buffer(abi.TypeBufferAvailable, 0, 64))
					begin = time.Now()
					s.ep.Deliver(make([]byte, 10))
					r.next()
				} else {
					base := r.Chip.Alloc(16*k.sends, 16)
					r.pause()
					for i := range k.sends {
						r.Publish(abi.Fields{Type: abi.TypeBufferSend, Tag: r.Tag(), Conn: s.id, Base: base + uint64(16*i), Length: 16})
					}
					begin = time.Now()
					r.fw.Command(r.Queue, abi.QueueResume, r.Config)
					for range k.sends {
						r.next()
					}
				}
				took = append(took, time.Since(begin))
			}
			slices.Sort(took)
			t.Logf("%d waits of %v: least %v, median %v, 99%% %v, longest %v", rounds, limit, took[0], took[rounds/2], took[rounds*99/100-1], took[rounds-1])
			r.wantCounter(k.by, rounds)
			r.wantCounter(abi.CounterTransfersMerged, uint64(rounds*max(k.sends-1, 0)))
		})
	}
}
