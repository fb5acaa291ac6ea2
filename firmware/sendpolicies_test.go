// SPDX-License-Identifier: Apache-2.0

package firmware_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"toebox/vdev/abi"
)

// sending is a host that sends, and a path that takes it, in time of the policy
// clock: one segment each so long, acknowledged a round trip later.
type sending struct {
	name        string
	total, size int
	gap         uint64 // from one send to the next
	most        int    // bytes posted and not done
	segment     uint64 // ns on the wire
	rtt         uint64
	cwnd        uint32 // segments
}

func sendings(mib int) []sending {
	const wire, slow = 11_680, 1_168_000 // 1,460 bytes at 1 Gbit/s, at 10 Mbit/s
	return []sending{
		{"bulk", mib << 20, 64 << 10, 0, 512 << 10, wire, 500 * us, 64},
		{"writes", mib << 18, 1000, 2 * us, 256 << 10, wire, 500 * us, 64},
		{"slow path", mib << 15, 4096, 10 * us, 128 << 10, slow, 20 * ms, 20},
		{"small window", mib << 18, 1460, 2 * us, 256 << 10, wire, 2 * ms, 8},
		{"records", mib << 17, 8192, 2 * ms, 256 << 10, wire, 500 * us, 64},
		{"requests", mib << 13, 300, 50 * us, 300, wire, 500 * us, 64},
	}
}

type sendPolicy struct {
	name    string
	dynamic bool
	attrs   []uint64
}

func sendPolicies() []sendPolicy {
	const criteria, dynamic = 0x0220, 0x0224
	return []sendPolicy{
		{"the defaults", false, nil},
		{"congestion window", false, []uint64{criteria, 1}},
		{"congestion window, dynamic", true, []uint64{criteria, 1, dynamic, 1}},
		{"bandwidth-delay", false, []uint64{criteria, 2}},
		{"bandwidth-delay, dynamic", true, []uint64{criteria, 2, dynamic, 1}},
	}
}

// sendFigures are what a run costs, per MiB, how long it took, and how long bytes
// were left in host memory.
type sendFigures struct {
	reads, responses, interrupts float64
	span                         float64 // ms
	mean, most                   float64 // us
}

// sendRun is a run of a sending.
type sendRun struct {
	*driven
	w      *sending
	memory uint64

	posted, done, read int
	next               uint64 // when the next send may be posted
	left               []step // not read yet
	sum                float64
	longest            uint64

	departed int    // bytes that have left the adapter
	free     uint64 // when the wire is
	acks     []step // that come
	acked    int
}

func (s *sendRun) postSends() {
	w := s.w
	for s.posted < w.total && s.next <= s.now && s.posted-s.done+w.size <= max(w.most, w.size) {
		place := s.posted / w.size % max(w.most/w.size, 1)
		s.post(abi.Fields{
			Type: abi.TypeBufferSend, Tag: s.host.Tag(), Conn: s.conn,
			Base: s.memory + uint64(place*w.size), Length: uint32(w.size),
		})
		s.posted += w.size
		s.left = append(s.left, step{s.now, w.size})
		s.next = s.now + w.gap
	}
}

// flow moves segments onto the wire, as the congestion window lets them.
func (s *sendRun) flow() {
	w := s.w
	for queued := int(s.ep.Info().Queued); s.departed < queued && s.free <= s.now && s.departed-s.acked < int(w.cwnd)*segment; {
		n := min(segment, queued-s.departed)
		s.departed += n
		s.free = s.now + w.segment*uint64(n)/segment
		s.acks = append(s.acks, step{s.free + w.rtt, n})
	}
}

// work lets the adapter act, and looks what it has read and answered.
func (s *sendRun) work() {
	s.passes()
	read := int(s.fw.Counters().Load(abi.CounterPayloadBytesRead))
	for n := read - s.read; n > 0; {
		c := &s.left[0]
		k := min(n, c.n)
		s.sum += float64(k) * float64(s.now-c.at)
		s.longest = max(s.longest, s.now-c.at)
		n -= k
		if c.n -= k; c.n == 0 {
			s.left = s.left[1:]
		}
	}
	s.read = read
	for f, ok := s.host.Take(); ok; f, ok = s.host.Take() {
		if f.Type != abi.TypeBufferDone || f.Aux != 0 || int(f.Length) != s.w.size {
			s.t.Fatalf("unexpected %+v", f)
		}
		s.done += s.w.size
	}
}

func runSends(t *testing.T, w *sending, attrs []uint64) sendFigures {
	t.Helper()
	s := &sendRun{driven: drive(t, attrs), w: w}
	defer s.close()
	s.memory = s.chip.Alloc(max(w.most, w.size), 4096)
	info := s.ep.Info()
	info.MSS, info.Cwnd, info.SendWindow, info.RTT = segment, w.cwnd, 1<<20, time.Duration(w.rtt)
	s.ep.SetInfo(info)
	w.total -= w.total % w.size
	cost := s.costs(w.total, abi.CounterPayloadReads, abi.CounterResponses, abi.CounterInterrupts)
	for s.done < w.total {
		next := uint64(1) << 60
		if s.posted < w.total && s.posted-s.done+w.size <= max(w.most, w.size) {
			next = s.next
		}
		if len(s.acks) > 0 {
			next = min(next, s.acks[0].at)
		}
		if s.departed < int(s.ep.Info().Queued) && s.departed-s.acked < int(w.cwnd)*segment {
			next = min(next, s.free)
		}
		if due, ok := s.q.Due(); ok {
			next = min(next, due)
		}
		if next == 1<<60 {
			t.Fatalf("%s: nothing happens any more, %d bytes of %d", w.name, s.done, w.total)
		}
		s.step(next)
		for len(s.acks) > 0 && s.acks[0].at <= s.now {
			s.acked += s.acks[0].n
			s.ep.Ack(s.acks[0].n)
			s.acks = s.acks[1:]
		}
		s.postSends()
		s.work()
		s.flow()
	}
	c := cost()
	return sendFigures{
		reads: c[0], responses: c[1], interrupts: c[2],
		span: float64(s.now) / 1e6, mean: s.sum / float64(w.total) / 1e3, most: float64(s.longest) / 1e3,
	}
}

// TestSendPolicies counts what sending costs under each policy, and holds what
// sets itself against the defaults: fewer DMA reads, responses or interrupts for at
// least one workload, and nowhere 10% more of them, or of time.
func TestSendPolicies(t *testing.T) {
	var table strings.Builder
	fmt.Fprintf(&table, "\n| workload | policy | DMA reads | responses | interrupts | time | mean wait | longest |\n|---|---|---|---|---|---|---|---|\n")
	better := make([]bool, len(sendPolicies()))
	for _, w := range sendings(*bulkMiB) {
		var usual sendFigures
		for i, p := range sendPolicies() {
			f := runSends(t, &w, p.attrs)
			fmt.Fprintf(&table, "| %s | %s | %.1f | %.1f | %.1f | %.1f ms | %.0f us | %.0f us |\n",
				w.name, p.name, f.reads, f.responses, f.interrupts, f.span, f.mean, f.most)
			if i == 0 {
				usual = f
			}
			// A wait is bounded by DELAY_AGE.
			if f.most > 1000 {
				t.Errorf("%s, %s: bytes waited %v us", w.name, p.name, f.most)
			}
			if !p.dynamic {
				continue
			}
			for _, c := range []struct {
				what     string
				is, then float64
			}{
				{"DMA reads", f.reads, usual.reads}, {"responses", f.responses, usual.responses},
				{"interrupts", f.interrupts, usual.interrupts}, {"ms", f.span, usual.span},
			} {
				if c.is > 1.1*c.then {
					t.Errorf("%s, %s: %.1f %s, %.1f by default", w.name, p.name, c.is, c.what, c.then)
				}
				if c.is < 0.9*c.then {
					better[i] = true
				}
			}
		}
	}
	for i, p := range sendPolicies() {
		if p.dynamic && !better[i] {
			t.Errorf("policy %d, %s: nowhere better than the defaults", i, p.name)
		}
	}
	t.Log(table.String())
}
