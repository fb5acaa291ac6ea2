// SPDX-License-Identifier: Apache-2.0

package firmware_test

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	"toebox/firmware/engine/enginetest"
	"toebox/vdev/abi"
)

// transfer is one that the model remembers.
type transfer struct {
	when  uint64
	found bool
}

// chooser is SPEC.md §14.2, a second time: it says what a trace of posts,
// arrivals and steps of the clock leads to.
type chooser struct {
	policy, wait, count, span, threshold, mode uint64

	now       uint64
	unread    uint32
	own, pool []abi.Fields // what is left of posted buffers: from Offset on
	waiting   bool
	due       uint64
	released  bool
	past      []transfer

	waits, met, over, none, reduced uint64
}

// window are the transfers that count.
func (m *chooser) window() []transfer {
	past := m.past[max(0, len(m.past)-256):]
	if m.span == 0 {
		return past[max(0, len(past)-int(m.count)):]
	}
	for len(past) > 0 && m.now-past[0].when > m.span {
		past = past[1:]
	}
	return past
}

func (m *chooser) patience() uint64 {
	w := m.window()
	n, f := uint64(len(w)), uint64(0)
	for _, x := range w {
		if x.found {
			f++
		}
	}
	switch {
	case m.policy == 1, 100*f >= m.threshold*n:
		return m.wait
	case m.mode == 0:
		return 0
	}
	return m.wait * 100 * f / (m.threshold * n)
}

// history is the value of HISTORY.
func (m *chooser) history() []byte {
	w := m.window()
	f := uint32(0)
	var list []byte
	for _, x := range w {
		v := x.when
		if x.found {
			v |= 1 << 63
			f++
		}
		list = binary.LittleEndian.AppendUint64(list, v)
	}
	b := binary.LittleEndian.AppendUint32(nil, uint32(len(w)))
	b = binary.LittleEndian.AppendUint32(b, f)
	b = binary.LittleEndian.AppendUint64(b, m.patience())
	return append(b, list...)
}

// run returns the deliveries that are due.
func (m *chooser) run() []abi.Fields {
	var out []abi.Fields
	for m.unread > 0 {
		from, found := &m.own, true
		if len(m.own) == 0 {
			if !m.release() || len(m.pool) == 0 {
				return out
			}
			from, found = &m.pool, false
		}
		b := &(*from)[0]
		n := min(m.unread, b.Length-b.Offset)
		f := abi.Fields{Type: abi.TypeBufferReceive, Tag: b.Tag, Base: b.Base, Offset: b.Offset, Length: n}
		m.unread -= n
		b.Offset += n
		if !found || b.Offset == b.Length {
			f.Flags = abi.FlagFinal
			*from = (*from)[1:]
		}
		if found {
			if m.waiting {
				m.met++
			}
			m.waiting, m.released = false, false
		}
		if m.policy == 2 {
			m.past = append(m.past, transfer{m.now, found})
		}
		out = append(out, f)
	}
	m.waiting, m.released = false, false
	return out
}

// release reports whether bulk buffers will do.
func (m *chooser) release() bool {
	switch {
	case m.policy == 0 || m.released:
	case m.waiting && m.now < m.due:
		return false
	case m.waiting:
		m.over++
		m.waiting, m.released = false, true
	default:
		d := m.patience()
		if d == 0 {
			m.released = true
			if m.wait > 0 {
				m.none++
			}
			return true
		}
		if d < m.wait {
			m.reduced++
		}
		m.waits++
		m.waiting, m.due = true, m.now+d
		return false
	}
	return true
}

// TestChoiceTrace records traces and compares each decision, the history and
// the counters with what the rule predicts.
func TestChoiceTrace(t *testing.T) {
	for seed := range uint64(24) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			rng := rand.New(rand.NewPCG(seed, 1))
			m := &chooser{
				policy: seed % 3, wait: []uint64{0, ms, 5 * ms, 1000}[rng.IntN(4)], count: 1 + rng.Uint64N(8), threshold: rng.Uint64N(101),
				mode: rng.Uint64N(2),
			}
			if seed%2 == 1 {
				m.span = 1 + rng.Uint64N(20*ms)
			}
			r := newRig(t, 6)
			r.fw.SetPolicyClock(true)
			m.now = r.fw.PolicyNow()
			id, ep := r.connectWith(scalars(0x0232, m.policy, 0x0233, m.wait, 0x0234, m.count, 0x0235, m.span, 0x0236, m.threshold, 0x0237, m.mode))
			for step := range 300 {
				what := r.choiceStep(rng, m, id, ep)
				want := m.run()
				for i := range want {
					want[i].Conn = id
				}
				if got := r.settle(); !slices.Equal(got, want) {
					t.Fatalf("step %d, %s: responses %+v\n   want %+v", step, what, got, want)
				}
				if got := r.attribute(id, 0x023a, 16+8*256); string(got) != string(m.history()) {
					t.Fatalf("step %d, %s: history %x\n   want %x", step, what, got, m.history())
				}
			}
			r.wantCounter(abi.CounterBufferWaits, m.waits)
			r.wantCounter(abi.CounterBufferWaitsMet, m.met)
			r.wantCounter(abi.CounterBufferWaitsOver, m.over)
			r.wantCounter(abi.CounterHistoryNone, m.none)
			r.wantCounter(abi.CounterHistoryReduced, m.reduced)
		})
	}
}

// choiceStep makes one step of a trace, on the rig and in the model.
func (r *rig) choiceStep(rng *rand.Rand, m *chooser, id uint64, ep *enginetest.Endpoint) string {
	switch k := rng.IntN(10); {
	case k < 3 && len(m.own) < 20:
		f := r.buffer(abi.TypeBufferAvailable, id, 1+rng.IntN(64))
		m.own = append(m.own, f)
		r.post(f)
		return "own buffer"
	case k < 5 && len(m.pool) < 20:
		f := r.buffer(abi.TypeBufferAvailable, 0, 1+rng.IntN(64))
		m.pool = append(m.pool, f)
		r.post(f)
		return "bulk buffer"
	case k < 8:
		n := 1 + rng.IntN(100)
		m.unread += uint32(n)
		ep.Deliver(make([]byte, n))
		return "arrival"
	}
	ns := 1 + rng.Uint64N(3*ms)
	if m.waiting && rng.IntN(2) == 0 {
		ns = max(m.due-m.now-rng.Uint64N(2), 1) // to its end, or 1 ns before
	}
	m.now += ns
	r.fw.StepPolicyClock(ns)
	return "step"
}

// TestWaitEnds ends waits otherwise than by time or a buffer.
func TestWaitEnds(t *testing.T) {
	for _, c := range []struct {
		name string
		end  func(r *rig, id uint64, ep *enginetest.Endpoint)
		told abi.Type // after the delivery; 0: nothing
	}{
		{"FIN", func(_ *rig, _ uint64, ep *enginetest.Endpoint) { ep.DeliverFIN() }, abi.TypeTerminated},
		{"reset", func(_ *rig, _ uint64, ep *enginetest.Endpoint) { ep.Reset() }, abi.TypeTerminated},
		{"pool again", func(r *rig, id uint64, _ *enginetest.Endpoint) {
			tuples, n := scalars(0x0232, 0)
			f := r.control(abi.TypeConnectionAttr, n, tuples)
			f.Conn = id
			r.post(f)
			r.next()
		}, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := newRig(t, 6)
			r.fw.SetPolicyClock(true)
			id, ep := r.connectWith(scalars(0x0232, 1, 0x0233, 1<<63-1))
			b := r.buffer(abi.TypeBufferAvailable, 0, 64)
			r.post(b)
			ep.Deliver([]byte("waits"))
			r.fw.StepPolicyClock(1 << 60)
			if seen := r.settle(); len(seen) != 0 {
				t.Fatalf("told %+v", seen)
			}
			c.end(r, id, ep)
			r.expect(abi.Fields{Type: abi.TypeBufferReceive, Flags: abi.FlagFinal, Tag: b.Tag, Conn: id, Base: b.Base, Length: 5})
			if c.told != 0 {
				if got := r.next(); got.Type != c.told {
					t.Errorf("response %+v", got)
				}
			}
			r.wantCounter(abi.CounterBufferWaits, 1)
			r.wantCounter(abi.CounterBufferWaitsOver, 0)
		})
	}
}

// TestWaitReal lets a wait end by the real clock, without another event.
func TestWaitReal(t *testing.T) {
	r := newRig(t, 6)
	id, ep := r.connectWith(scalars(0x0232, 1, 0x0233, 20*ms))
	b := r.buffer(abi.TypeBufferAvailable, 0, 64)
	r.post(b)
	ep.Deliver([]byte("waits"))
	if seen := r.settle(); len(seen) != 0 {
		t.Fatalf("told %+v", seen)
	}
	r.clock.advance(20 * 1e6)
	r.expect(abi.Fields{Type: abi.TypeBufferReceive, Flags: abi.FlagFinal, Tag: b.Tag, Conn: id, Base: b.Base, Length: 5})
}

// TestWaitWithoutMemory: who cannot be charged does not wait.
func TestWaitWithoutMemory(t *testing.T) {
	r := newRig(t, 6)
	r.fw.SetPolicyClock(true)
	id, ep := r.connectWith(scalars(0x0232, 2))
	b := r.buffer(abi.TypeBufferAvailable, 0, 64)
	r.post(b)
	r.settle()
	used := binary.LittleEndian.Uint64(r.attribute(0, 0x0108, 8))
	r.attributes(0, 1, abi.AppendTuple(nil, true, 0x0107, binary.LittleEndian.AppendUint64(nil, used+100)))
	ep.Deliver([]byte("goes on"))
	r.expect(abi.Fields{Type: abi.TypeBufferReceive, Flags: abi.FlagFinal, Tag: b.Tag, Conn: id, Base: b.Base, Length: 7})
	r.wantCounter(abi.CounterBufferWaits, 0)
}

// connectWith is connect with attributes.
func (r *rig) connectWith(tuples []byte, n int) (uint64, *enginetest.Endpoint) {
	r.t.Helper()
	f := r.control(abi.TypeConnect, n+1, appendTarget(tuples, connectTarget()))
	r.post(f)
	r.settle()
	ep := r.fake.Last()
	ep.Establish()
	got := r.next()
	if got.Type != abi.TypeCompletion || got.Aux != 0 {
		r.t.Fatalf("completion %+v", got)
	}
	return got.Conn, ep
}
