// SPDX-License-Identifier: Apache-2.0

package firmware_test

import (
	"bytes"
	"testing"

	"toebox/firmware/engine"
	"toebox/firmware/engine/enginetest"
	"toebox/vdev/abi"
)

// heldConnect starts connections whose notices wait for bytes.
func (r *rig) heldConnect(count uint16, pattern *abi.NotifyPattern, attrs ...uint64) abi.Fields {
	r.t.Helper()
	tuples, n := scalars(attrs...)
	if pattern != nil {
		tuples = abi.AppendTuple(tuples, true, abi.AttrNotifyPattern, abi.AppendNotifyPattern(nil, *pattern))
		n++
	}
	x := connectTarget()
	x.Count = count
	f := r.control(abi.TypeConnect, n+1, appendTarget(tuples, x))
	r.post(f)
	r.settle()
	return f
}

// TestHeld lets bytes arrive, one string after the other, and time pass after
// them. It compares after which the notice was told, and why.
func TestHeld(t *testing.T) {
	get := &abi.NotifyPattern{Mode: 1, Pattern: []byte("GET ")}
	end := &abi.NotifyPattern{Mode: 2, Bytes: 16, Pattern: []byte("\r\n\r\n")}
	brief := &abi.NotifyPattern{Mode: 2, Bytes: 16, Time: 5 * ms, Pattern: []byte("abab")}
	const data, window = 0x0256, 0x0207
	for _, c := range []struct {
		name    string
		pattern *abi.NotifyPattern
		attrs   []uint64
		arrive  []string // "<FIN>", "<RST>" and "+" (5 ms) are what they say
		told    int      // after this many
		reason  abi.Counter
	}{
		{"first byte", nil, []uint64{data, 1}, []string{"x"}, 1, abi.CounterNotifyData},
		{"five bytes", nil, []uint64{data, 5}, []string{"ab", "cd", "e", "f"}, 3, abi.CounterNotifyData},
		{"half a window", nil, []uint64{data, 8 << 20, window, 8192}, []string{string(make([]byte, 4095)), "x"}, 2, abi.CounterNotifyData},
		{"whatever the count", nil, []uint64{data, 2, 0x0250, 5, 0x0252, 1}, []string{"+", "ab"}, 2, abi.CounterNotifyData},
		{"data ceiling", nil, []uint64{data, 5, 0x0254, 10 * ms}, []string{"ab", "+", "c", "+"}, 4, abi.CounterNotifyCeiling},
		{"data and FIN", nil, []uint64{data, 5}, []string{"ab", "<FIN>"}, 2, abi.CounterNotifyEnd},
		{"FIN alone", nil, []uint64{data, 5}, []string{"<FIN>"}, 1, abi.CounterNotifyEnd},
		{"data and reset", nil, []uint64{data, 5}, []string{"ab", "<RST>"}, 2, abi.CounterNotifyEnd},
		{"reset alone", get, nil, []string{"<RST>"}, 1, abi.CounterNotifyEnd},
		{"at the start", get, nil, []string{"G", "ET", " /", "x"}, 3, abi.CounterNotifyPattern},
		{"not at the start", get, []uint64{0x0254, 10 * ms}, []string{" GET ", "+", "x", "+"}, 4, abi.CounterNotifyCeiling},
		{"end marker", end, nil, []string{"line\r\n", "\r", "\n"}, 3, abi.CounterNotifyPattern},
		{"end marker that begins twice", end, nil, []string{"\r\n\r\r", "\n\r", "\n"}, 3, abi.CounterNotifyPattern},
		{"marker at the byte ceiling", end, nil, []string{"0123456789ab", "\r\n\r\n tail"}, 2, abi.CounterNotifyPattern},
		{"marker behind the byte ceiling", end, nil, []string{"0123456789abc\r\n", "\r\n"}, 2, abi.CounterNotifyCeiling},
		{"marker behind the byte ceiling, data awaited", end, []uint64{data, 64}, []string{"0123456789abc\r\n", "\r\n\r\n"}, 2, abi.CounterNotifyCeiling},
		{"byte ceiling", end, nil, []string{"0123456789abcde", "f"}, 2, abi.CounterNotifyCeiling},
		{"time ceiling", brief, nil, []string{"aba", "+", "b"}, 2, abi.CounterNotifyCeiling},
		{"pattern before data", end, []uint64{data, 4}, []string{"\r\n\r", "\n"}, 2, abi.CounterNotifyPattern},
		{"data before pattern", end, []uint64{data, 4}, []string{"abc", "d", "\r\n\r\n"}, 2, abi.CounterNotifyData},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := newRig(t, 6)
			r.fw.SetPolicyClock(true)
			buf := r.buffer(abi.TypeBufferAvailable, 0, 8192)
			r.post(buf)
			f := r.heldConnect(1, c.pattern, c.attrs...)
			ep := r.fake.Last()
			ep.Establish()
			var seen []abi.Fields
			all := []byte{}
			for i, s := range c.arrive {
				if seen = r.settle(); len(seen) != 0 {
					t.Fatalf("told after %d: %+v", i, seen)
				}
				switch s {
				case "<FIN>":
					ep.DeliverFIN()
				case "<RST>":
					ep.Reset()
				case "+":
					r.fw.StepPolicyClock(5 * ms)
				default:
					ep.Deliver([]byte(s))
					all = append(all, s...)
				}
				if i+1 == c.told {
					break
				}
			}
			got := r.next()
			if got.Type != abi.TypeCompletion || got.Tag != f.Tag || got.Flags != abi.FlagFinal || got.Aux != 0 {
				t.Errorf("response %+v", got)
			}
			id := got.Conn
			if len(all) > 0 {
				if got = r.next(); got.Type != abi.TypeBufferReceive || got.Conn != id || int(got.Length) != len(all) {
					t.Errorf("response %+v, want %d bytes", got, len(all))
				} else if !bytes.Equal(r.bytes(buf)[:len(all)], all) {
					t.Errorf("received %q", r.bytes(buf)[:len(all)])
				}
			}
			switch c.arrive[c.told-1] {
			case "<FIN>", "<RST>":
				if got = r.next(); got.Type != abi.TypeTerminated || got.Conn != id {
					t.Errorf("response %+v", got)
				}
			}
			for k := abi.CounterNotifyCount; k <= abi.CounterNotifyEnd; k++ {
				want := uint64(0)
				if k == c.reason {
					want = 1
				}
				r.wantCounter(k, want)
			}
			r.wantCounter(abi.CounterNotices, 1)
		})
	}
}

// TestHeldArrival lets an arrival wait for bytes that came before it was
// accepted, or after.
func TestHeldArrival(t *testing.T) {
	for _, early := range []bool{true, false} {
		r := newRig(t, 6)
		tuples, n := scalars(0x0256, 3)
		r.post(r.buffer(abi.TypeBufferAvailable, 0, 64), r.control(abi.TypeListen, n+1, appendTarget(tuples, listenTarget())))
		r.next()
		ep := r.fake.Last().Arrive(peer)
		if !early {
			if seen := r.settle(); len(seen) != 0 {
				t.Fatalf("told %+v", seen)
			}
		}
		ep.Deliver([]byte("abc"))
		if got := r.next(); got.Type != abi.TypeArrival {
			t.Errorf("response %+v", got)
		}
		if got := r.next(); got.Type != abi.TypeBufferReceive || got.Length != 3 {
			t.Errorf("response %+v", got)
		}
	}
}

// TestFailures compares both values of NOTIFY_FAILURES.
func TestFailures(t *testing.T) {
	fail := func(r *rig, e *enginetest.Endpoint) { e.Fail(engine.ErrTimedOut) }
	t.Run("at once", func(t *testing.T) {
		r := newRig(t, 6)
		f := r.heldConnect(2, nil, 0x0256, 1)
		eps := r.fake.Endpoints()
		eps[0].Establish()
		r.settle()
		fail(r, eps[1])
		r.expect(abi.Fields{Type: abi.TypeCompletion, Tag: f.Tag, Aux: 3, Base: 0xc00c1e, Offset: 1})
		if seen := r.settle(); len(seen) != 0 {
			t.Errorf("told %+v", seen)
		}
	})
	t.Run("with the next", func(t *testing.T) {
		r := newRig(t, 6)
		f := r.heldConnect(3, nil, 0x0256, 1, 0x0257, 1)
		eps := r.fake.Endpoints()
		fail(r, eps[0])
		fail(r, eps[2])
		eps[1].Establish()
		if seen := r.settle(); len(seen) != 0 {
			t.Fatalf("told %+v", seen)
		}
		eps[1].Deliver([]byte("x"))
		for i, ordinal := range []uint32{1, 0, 2} {
			if got := r.next(); got.Tag != f.Tag || got.Offset != ordinal || (got.Flags == abi.FlagFinal) != (i == 2) {
				t.Errorf("response %d: %+v", i, got)
			}
		}
		// The notice of another connection will do.
		f = r.heldConnect(1, nil, 0x0256, 1, 0x0257, 1)
		fail(r, r.fake.Last())
		r.settle()
		r.connect()
		if got := r.next(); got.Tag != f.Tag || got.Aux != 3 {
			t.Errorf("response %+v", got)
		}
	})
	t.Run("ceiling", func(t *testing.T) {
		r := newRig(t, 6)
		r.fw.SetPolicyClock(true)
		f := r.heldConnect(1, nil, 0x0256, 1, 0x0257, 1, 0x0254, ms)
		fail(r, r.fake.Last())
		r.settle()
		r.fw.StepPolicyClock(ms - 1)
		if seen := r.settle(); len(seen) != 0 {
			t.Fatalf("told %+v", seen)
		}
		r.fw.StepPolicyClock(1)
		if got := r.next(); got.Tag != f.Tag || got.Aux != 3 {
			t.Errorf("response %+v", got)
		}
		r.wantCounter(abi.CounterNotifyCeiling, 1)
	})
}

// TestPatternScope releases by one match all that waits.
func TestPatternScope(t *testing.T) {
	for _, all := range []bool{false, true} {
		r := newRig(t, 6)
		p := &abi.NotifyPattern{Mode: 2, Pattern: []byte("now")}
		if all {
			p.Scope = 1
		}
		gathered := r.heldConnect(1, nil, 0x0250, 9)
		held := r.heldConnect(1, nil, 0x0256, 9)
		riding := r.heldConnect(1, nil, 0x0256, 9, 0x0257, 1)
		own := r.heldConnect(1, p)
		eps := r.fake.Endpoints()
		eps[0].Establish()
		eps[1].Establish()
		eps[2].Refuse()
		eps[3].Establish()
		r.settle()
		eps[3].Deliver([]byte("...now"))
		want := []uint32{own.Tag, riding.Tag}
		if all {
			want = append(want, held.Tag, gathered.Tag)
		}
		for i, tag := range want {
			if got := r.next(); got.Tag != tag {
				t.Errorf("all %t: response %d: %+v", all, i, got)
			}
		}
		if seen := r.settle(); len(seen) != 0 {
			t.Errorf("all %t: told %+v", all, seen)
		}
		r.wantCounter(abi.CounterNotifyPattern, 1)
	}
}

// TestDatagramsAreNotHeld: an endpoint without a stream waits for no bytes of
// it.
func TestDatagramsAreNotHeld(t *testing.T) {
	r := newRig(t, 6)
	tuples, n := scalars(0x0256, 9)
	x := connectTarget()
	x.Protocol = 17
	f := r.control(abi.TypeConnect, n+1, appendTarget(tuples, x))
	r.post(f)
	if got := r.next(); got.Tag != f.Tag || got.Aux != 0 {
		t.Errorf("response %+v", got)
	}
}
