// SPDX-License-Identifier: Apache-2.0

package firmware_test

import (
	"encoding/binary"
	"errors"
	"testing"
	"time"

	"toebox/firmware"
	"toebox/firmware/engine"
	"toebox/vdev/abi"
)

// oddEngine answers as a test says.
type oddEngine struct {
	engine.Engine
	mtu int
	err error // of Open, SetMTU, and endpoints' Write
}

func (e *oddEngine) SetMTU(n int) error {
	if e.err == nil {
		e.mtu = n
	}
	return e.err
}

// TestMTU changes the MTU of an engine that can.
func TestMTU(t *testing.T) {
	odd := &oddEngine{}
	r := newRig(t, 4, func(c *firmware.Config) { odd.Engine, c.Engine = c.Engine, odd })
	set := func(v uint64, want abi.Status) {
		t.Helper()
		_, buf := r.attributes(0, 1, abi.AppendSetScalar(nil, abi.AttrMTU, v))
		if s, _ := abi.TupleResult(buf); s != want {
			t.Errorf("set to %d: %v, want %v", v, s, want)
		}
	}
	set(1400, 0)
	if got := binary.LittleEndian.Uint64(r.attribute(0, abi.AttrMTU, 8)); got != 1400 || odd.mtu != 1400 {
		t.Errorf("MTU is %d, the engine's %d", got, odd.mtu)
	}
	odd.err = engine.ErrBadOption
	set(1300, 52)
}

// TestOpenFails maps the engine's refusals to statuses.
func TestOpenFails(t *testing.T) {
	r := newRig(t, 4)
	for err, want := range map[error]uint16{
		engine.ErrNoMemory: 11, engine.ErrNoPorts: 10, engine.ErrAddressInUse: 8, engine.ErrBadAddress: 9,
		engine.ErrNotSupported: 16, engine.ErrBadOption: 52, engine.ErrMessageTooLong: 38, engine.ErrInvalidState: 43,
		engine.ErrNotConnected: 43, engine.ErrReset: 5, errors.New("odd"): 14,
	} {
		r.fake.RefuseOpen(err)
		f := r.target(abi.TypeConnect, connectTarget())
		r.post(f)
		r.expect(abi.Fields{Type: abi.TypeCompletion, Flags: abi.FlagFinal, Aux: want, Tag: f.Tag, Base: 0xc00c1e})
	}
	r.wantCounter(abi.CounterMemoryUsed, 0)
	r.wantCounter(abi.CounterConnections, 0)
}

// TestSpin serves a queue whose worker looks for a while before it sleeps.
func TestSpin(t *testing.T) {
	r := newRig(t, 4, func(c *firmware.Config) { c.Spin = 200 * time.Microsecond })
	for range 200 {
		f := r.buffer(abi.TypeBufferAvailable, 99, 1)
		r.post(f)
		r.expect(sendDone(f, 36, 0))
	}
}

// TestEngineCounters reads totals that the engine counts.
func TestEngineCounters(t *testing.T) {
	r := newRig(t, 4)
	r.fake.SetStats(engine.Stats{
		FramesSent: 1, FramesReceived: 2, FramesDropped: 3, SegmentsSent: 4, SegmentsReceived: 5, Retransmits: 6,
	})
	all := r.fw.Counters().Snapshot()
	for i := range abi.Counter(6) {
		c := abi.CounterFramesSent + i
		if r.counter(c) != uint64(i+1) || all[c] != uint64(i+1) {
			t.Errorf("%v is %d and %d, want %d", c, r.counter(c), all[c], i+1)
		}
	}
	if n := r.counter(-1) + r.counter(abi.NumCounters); n != 0 {
		t.Errorf("counters that are none: %d", n)
	}
	r.fw.Counters().Add(abi.NumCounters, 1)
	r.fw.Counters().Add(abi.CounterMMIOReads, 7)
	r.wantCounter(abi.CounterMMIOReads, 7)
}
