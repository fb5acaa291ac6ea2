// SPDX-License-Identifier: Apache-2.0

package firmware_test

import (
	"net/netip"
	"testing"
	"time"

	"toebox/firmware"
	"toebox/firmware/engine"
	"toebox/firmware/engine/enginetest"
	"toebox/firmware/firmwaretest"
	"toebox/vdev/abi"
)

// rig is a firmware on a fake chip, with a driver of queue 0.
type rig struct {
	t    *testing.T
	chip *firmwaretest.Chip
	fake *enginetest.Engine // nil: a real one
	fw   *firmware.Firmware
	*firmwaretest.Host
	clock *clock
	// violations is how many of them the test commits.
	violations uint64
}

// clock is time that a test moves.
type clock struct{ now chan time.Duration }

func newClock() *clock {
	c := &clock{now: make(chan time.Duration, 1)}
	c.now <- time.Second
	return c
}

func (c *clock) read() time.Duration {
	d := <-c.now
	c.now <- d
	return d
}

func (c *clock) advance(d time.Duration) { c.now <- d + <-c.now }

const testMemory = 8 << 20

func newRig(t *testing.T, log2 uint8, change ...func(*firmware.Config)) *rig {
	t.Helper()
	fake := enginetest.NewEngine()
	r := &rig{t: t, fake: fake, clock: newClock()}
	r.start(fake, log2, append(change, func(c *firmware.Config) { c.Clock = r.clock.read })...)
	return r
}

func (r *rig) start(e engine.Engine, log2 uint8, change ...func(*firmware.Config)) {
	r.t.Helper()
	r.chip = firmwaretest.NewChip(testMemory, 4096)
	c := firmware.Config{
		Chip: r.chip, Engine: e, Generation: 7, Name: "toebox test", Serial: "T0001",
		MAC: [6]byte{2, 0, 0, 0, 0, 1}, MTU: 1500, Domain: "example.org",
		Address4:  abi.Address{Addr: netip.MustParseAddr("10.0.2.15"), Prefix: 24},
		Resolvers: []abi.Address{{Addr: netip.MustParseAddr("10.0.2.3"), Prefix: 32}},
	}
	for _, f := range change {
		f(&c)
	}
	r.fw = firmware.New(c)
	r.t.Cleanup(func() {
		if err := r.fw.Close(); err != nil {
			r.t.Error(err)
		}
		if n := r.fw.Counters().Load(abi.CounterMemoryUsed); n != 0 {
			r.t.Errorf("%d bytes of adapter memory are in use after a reset", n)
		}
		if n := r.fw.Counters().Load(abi.CounterConnections); n != 0 {
			r.t.Errorf("%d connections after a reset", n)
		}
		if n := r.fw.Counters().Load(abi.CounterCheckerViolations); n != r.violations {
			r.t.Errorf("%d checker violations, want %d; or a request was answered twice", n, r.violations)
		}
	})
	r.fw.Run()
	r.Host = firmwaretest.NewHost(r.fw, r.chip, 0, log2)
	if s := r.Create(); s != abi.StatusOK {
		r.t.Fatalf("create: %v", s)
	}
}

// post posts requests.
func (r *rig) post(fs ...abi.Fields) {
	r.t.Helper()
	if err := r.Post(fs...); err != nil {
		r.t.Fatal(err)
	}
}

// next returns the next response.
func (r *rig) next() abi.Fields {
	r.t.Helper()
	f, err := r.Next()
	if err != nil {
		r.t.Fatal(err)
	}
	return f
}

// expect takes the next response and compares it with want.
func (r *rig) expect(want abi.Fields) {
	r.t.Helper()
	if got := r.next(); got != want {
		r.t.Fatalf("response %+v\n    want %+v", got, want)
	}
}

// settle returns when the worker has acted on all that was there when it was
// called. It returns what else came meanwhile. A pass looks at events, then at
// requests, then gives turns: an event that comes between the first two is
// looked at in the pass of the second request, and its turn is over before that
// of the third.
func (r *rig) settle() []abi.Fields {
	r.t.Helper()
	var seen []abi.Fields
	for range 3 {
		f := r.control(abi.TypeAdapterAttr, 1, abi.AppendGet(nil, abi.AttrLink, 8))
		r.post(f)
		for got := r.next(); got.Tag != f.Tag; got = r.next() {
			seen = append(seen, got)
		}
	}
	return seen
}

// control is a request whose control buffer holds tuples.
func (r *rig) control(typ abi.Type, n int, tuples []byte) abi.Fields {
	base := r.Chip.Alloc(max(len(tuples), 1), 8)
	copy(r.Chip.Bytes(base, len(tuples)), tuples)
	return abi.Fields{Type: typ, Tag: r.Tag(), Aux: uint16(n), Base: base, Length: uint32(len(tuples))}
}

func (r *rig) target(typ abi.Type, t abi.Target) abi.Fields {
	return r.control(typ, 1, abi.AppendTarget([]byte{1, 0x80, 0, 0, 64, 0, 0, 0}, t))
}

var peer = netip.MustParseAddrPort("10.0.2.2:80")

func connectTarget() abi.Target {
	return abi.Target{Protocol: 6, Count: 1, Local: netip.MustParseAddrPort("0.0.0.0:0"), Remote: peer, Cookie: 0xc00c1e}
}

// connect establishes a connection over the fake engine.
func (r *rig) connect() (uint64, *enginetest.Endpoint) {
	r.t.Helper()
	f := r.target(abi.TypeConnect, connectTarget())
	r.post(f)
	r.settle()
	ep := r.fake.Last()
	ep.Establish()
	got := r.next()
	want := abi.Fields{
		Type: abi.TypeCompletion, Flags: abi.FlagFinal, Tag: f.Tag, Conn: got.Conn,
		Base: 0xc00c1e, Length: uint32(ep.Info().Local.Port()),
	}
	if got != want || got.Conn>>48 != 7 || got.Conn&(1<<48-1) == 0 {
		r.t.Fatalf("completion %+v\n     want %+v", got, want)
	}
	return got.Conn, ep
}

// buffer is a buffer of n bytes; send buffers are filled with a pattern.
func (r *rig) buffer(typ abi.Type, conn uint64, n int) abi.Fields {
	f := abi.Fields{Type: typ, Tag: r.Tag(), Conn: conn, Base: r.Chip.Alloc(n, 1), Length: uint32(n)}
	if typ == abi.TypeBufferSend {
		for i, b := 0, r.bytes(f); i < n; i++ {
			b[i] = byte(uint32(i)*7 + f.Tag)
		}
	}
	return f
}

// bytes is the memory of a buffer.
func (r *rig) bytes(f abi.Fields) []byte { return r.Chip.Bytes(f.Base, int(f.Length)) }

func (r *rig) counter(c abi.Counter) uint64 { return r.fw.Counters().Load(c) }

func (r *rig) wantCounter(c abi.Counter, want uint64) {
	r.t.Helper()
	if got := r.counter(c); got != want {
		r.t.Errorf("%v is %d, want %d", c, got, want)
	}
}

// attributes posts tuples and returns the response and the control buffer as
// the adapter left it.
func (r *rig) attributes(conn uint64, n int, tuples []byte) (abi.Fields, []byte) {
	r.t.Helper()
	typ := abi.TypeAdapterAttr
	if conn != 0 {
		typ = abi.TypeConnectionAttr
	}
	f := r.control(typ, n, tuples)
	f.Conn = conn
	return r.attributeRequest(f)
}

func (r *rig) attributeRequest(f abi.Fields) (abi.Fields, []byte) {
	r.t.Helper()
	r.post(f)
	got := r.next()
	if got.Tag != f.Tag {
		r.t.Fatalf("unexpected response %+v", got)
	}
	return got, r.Chip.Bytes(f.Base, int(f.Length))
}

// attribute gets one attribute, of the adapter if conn is 0.
func (r *rig) attribute(conn uint64, a abi.Attribute, room int) []byte {
	r.t.Helper()
	f, buf := r.attributes(conn, 1, abi.AppendGet(nil, a, room))
	s, n := abi.TupleResult(buf)
	if f.Aux != 0 || s != 0 || f.Length != 1 || f.Offset != abi.NoOrdinal {
		r.t.Fatalf("get %#x: %v, response %+v", a, s, f)
	}
	return buf[8 : 8+n]
}

// second creates another queue of the same adapter.
func (r *rig) second(q int) *rig {
	r.t.Helper()
	s := *r
	s.Host = firmwaretest.NewHost(r.fw, r.Chip, q, 4)
	if st := s.Create(); st != abi.StatusOK {
		r.t.Fatalf("create queue %d: %v", q, st)
	}
	return &s
}
