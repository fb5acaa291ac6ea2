// SPDX-License-Identifier: Apache-2.0

package firmware_test

import (
	"sync/atomic"
	"testing"

	"toebox/firmware"
	"toebox/firmware/engine/enginetest"
	"toebox/vdev/abi"
)

// TestCarryOverTwice: an orderly stop while a connection is being restored. Before
// the adapter has its peer's link address nothing has begun; as soon as its first
// segment leaves the connection goes on there, whether the firmware has noticed or
// not. Either way the next firmware restores it, and to the peer nothing happened.
func TestCarryOverTwice(t *testing.T) {
	for _, c := range []struct {
		name    string
		resolve bool // the peer's link address
		lose    bool // what the peer acknowledges, at the first stop
	}{{"nothing has begun", false, false}, {"as it goes on", true, false}, {"nothing is acknowledged", true, true}} {
		t.Run(c.name, func(t *testing.T) {
			var lose atomic.Bool                        // what the peer sends
			var mute atomic.Bool                        // ARP gets no answer
			var first atomic.Pointer[firmware.Firmware] // is stopped at the first segment it sends
			pa, pb := enginetest.Pipe(enginetest.PipeOptions{Drop: func(port int, f []byte) bool {
				const arp, segment = 6, 6
				if port == 0 && f[12] == 8 && f[13] == 0 && f[23] == segment {
					if fw := first.Swap(nil); fw != nil {
						fw.Stop()
					}
				}
				return port == 1 && lose.Load() || mute.Load() && f[12] == 8 && f[13] == arp
			}})
			t.Cleanup(func() { _, _ = pa.Close(), pb.Close() })
			peer := newEchoPeer(t, pb)
			r := newCarryRig(t, pa)
			const total = 2 << 20
			u := newUser(r.rig, total/2)
			u.id = r.dial(abi.AppendSetScalar(nil, 0x025b, 1), 1) // CARRY_OVER
			report := r.reportBuffer(2<<20, 0)
			r.post(report)
			u.until("a quarter of the transfer", u.pump, func() bool { return u.in > total/4 })
			if c.lose {
				u.until("all to be acknowledged", u.take, func() bool { return len(u.sends) == 0 })
				lose.Store(true)
				u.total = total
				u.until("bytes on their way", u.pump, func() bool {
					now := parseRecord(t, r.attributeOf(u, 0x028a))
					return now.Sent > now.Acked
				})
			}
			r.fw.Stop()
			u.until("the stop", u.take, r.fw.Stopped)
			u.take()
			u.forgetUntaken()
			record := func() []byte {
				t.Helper()
				if len(u.reports) != 1 {
					t.Fatalf("%d reports", len(u.reports))
				}
				b := r.bytes(report)[:u.reports[0].Length]
				u.reports = nil
				got := parseRecord(t, b[64:256])
				u.check(b[256 : 256+got.Unread])
				u.acked = int(got.Acked)
				return append([]byte(nil), b[64:256]...)
			}
			last := record()
			lose.Store(false)
			if got := parseRecord(t, last); c.lose && got.Sent == got.Acked {
				t.Errorf("all is acknowledged: %+v", got)
			}

			mute.Store(!c.resolve)
			r.replace()
			report = r.reportBuffer(2<<20, 0)
			r.post(report)
			if c.resolve {
				first.Store(r.fw)
			}
			f := r.control(abi.TypeConnect, 2, abi.AppendTuple(abi.AppendSetScalar(nil, 0x025b, 1), true, 0x0004, last))
			r.post(f)
			if !c.resolve {
				if err := r.Wait("the restoring to begin", func() bool { return r.counter(abi.CounterConnects) == 1 }); err != nil {
					t.Fatal(err)
				}
				r.fw.Stop()
			}
			done := r.next()
			if err := r.Wait("the second stop", r.fw.Stopped); err != nil {
				t.Fatal(err)
			}
			mute.Store(false)
			switch abi.Status(done.Aux) {
			case abi.StatusOK:
				u.take()
				last = record()
				r.wantCounter(abi.CounterCarriedIn, 1)
				r.wantCounter(abi.CounterCarriedOut, 1)
			case abi.StatusCancelled:
				for _, f := range r.Pending() { // the report buffer
					if f.Aux != uint16(abi.StatusCancelled) {
						t.Errorf("%+v", f)
					}
				}
				r.wantCounter(abi.CounterCarriedIn, 0)
			default:
				t.Fatalf("%+v", done)
			}
			if done.Tag != f.Tag || done.Flags != abi.FlagFinal || !c.resolve && done.Aux == 0 || c.resolve && done.Aux != 0 {
				t.Errorf("%+v", done)
			}
			r.wantCounter(abi.CounterCarryRefused, 0)
			r.wantCounter(abi.CounterConnections, 0)

			r.replace()
			if done = r.restore(last); done.Aux != 0 {
				t.Fatalf("restored again: %+v", done)
			}
			u.id, u.out, u.total, u.cancelled = done.Conn, u.acked, total, 0
			u.until("the rest of the transfer", u.pump, func() bool { return u.in == total && u.acked == total })
			if n := peer.engine.Stats().ResetsReceived; n != 0 {
				t.Errorf("the peer got %d resets", n)
			}
		})
	}
}
