// SPDX-License-Identifier: Apache-2.0

package firmware_test

import (
	"math/rand/v2"
	"net/netip"
	"runtime"
	"testing"
	"time"

	"toebox/firmware/engine"
	"toebox/vdev/abi"
)

// driver is a host that does what bytes say: sensible requests and senseless
// ones, over an engine in which anything happens.
type driver struct {
	*rig
	ops      []byte
	ids      []uint64 // connections and listeners seen
	tags     []uint32
	requests map[uint32]int // posted, by tag
	finals   map[uint32]int // terminal responses, by tag
	left     int            // control memory
}

func (d *driver) byte() byte {
	if len(d.ops) == 0 {
		return 0
	}
	b := d.ops[0]
	d.ops = d.ops[1:]
	return b
}

func (d *driver) u16() int { return int(d.byte())<<8 | int(d.byte()) }

// tag is mostly a new one.
func (d *driver) tag() uint32 {
	b := d.byte()
	if b < 16 && len(d.tags) > 0 {
		return d.tags[int(d.byte())%len(d.tags)]
	}
	if b == 16 {
		return 0
	}
	t := d.Tag()
	d.tags = append(d.tags, t)
	return t
}

func (d *driver) oldTag() uint32 {
	if len(d.tags) == 0 {
		return 1
	}
	return d.tags[len(d.tags)-1-d.u16()%len(d.tags)]
}

func (d *driver) id() uint64 {
	b := d.byte()
	switch {
	case b < 8:
		return 0
	case b < 16, len(d.ids) == 0:
		return 7<<48 | uint64(d.byte())
	}
	return d.ids[len(d.ids)-1-int(b)%len(d.ids)]
}

func (d *driver) endpoint() interface {
	Establish()
	Refuse()
	Fail(error)
	Deliver([]byte)
	DeliverFIN()
	Ack(int) int
	AckFIN()
	SetRoom(int)
	Unreachable()
	FailSend(error)
} {
	all := d.fake.Endpoints()
	if len(all) == 0 {
		return nil
	}
	return all[len(all)-1-d.u16()%len(all)]
}

// send posts a request if the table has room.
func (d *driver) send(f abi.Fields) {
	// The worker gets some time, but may be paused.
	for n := 0; !d.Room(); n++ {
		if n == 200 {
			return
		}
		d.poll(0)
		runtime.Gosched()
	}
	if f.Tag != 0 {
		d.requests[f.Tag]++
	}
	d.Publish(f)
	d.fw.Doorbell(0, 0)
}

// poll takes up to n responses, all if n is 0.
func (d *driver) poll(n int) {
	for i := 0; n == 0 || i < n; i++ {
		f, ok := d.Take()
		if !ok {
			return
		}
		if f.Tag != 0 && f.Flags&abi.FlagFinal != 0 {
			d.finals[f.Tag]++
		}
		if f.Flags&abi.FlagReport != 0 {
			d.records(d.Chip.Bytes(f.Base+uint64(f.Offset), int(f.Length)))
		}
		if f.Conn != 0 && len(d.ids) < 1000 {
			d.ids = append(d.ids, f.Conn)
		}
	}
}

// records reads a report buffer.
func (d *driver) records(b []byte) {
	for ; len(b) > 0; b = b[abi.ReportSize:] {
		r, ok := abi.ParseReport(b[:abi.ReportSize])
		if !ok || r.Type < abi.TypeArrival || r.Type > abi.TypeListenResponse {
			d.t.Errorf("record % x", b[:abi.ReportSize])
		}
		if r.Tag != 0 && r.Flags&abi.FlagFinal != 0 {
			d.finals[r.Tag]++
		}
		if r.Conn != 0 && len(d.ids) < 1000 {
			d.ids = append(d.ids, r.Conn)
		}
	}
}

// controlOf posts a control request with these tuples, which may get a wrong
// count and a few wrong bytes.
func (d *driver) controlOf(typ abi.Type, n int, tuples []byte, id uint64) {
	if d.left < len(tuples) {
		return
	}
	d.left -= len(tuples) + 8
	if b := d.byte(); b < 32 && len(tuples) > 0 {
		tuples[d.u16()%len(tuples)] ^= d.byte()
	} else if b < 40 {
		n = int(d.byte())
	}
	f := d.control(typ, n, tuples)
	f.Tag, f.Conn = d.tag(), id
	if (typ == abi.TypeConnect || typ == abi.TypeListen) && d.byte() < 64 {
		f.Flags = abi.FlagReport
	}
	d.send(f)
}

const (
	payloadBase = 0x4000_0000 + 4<<20 // behind what the test allocates
	payloadSize = 4 << 20
)

func (d *driver) transfer(typ abi.Type, id uint64) {
	n := uint32(d.u16()) * uint32(1+d.byte()%4)
	f := abi.Fields{Type: typ, Tag: d.tag(), Conn: id, Length: n, Base: payloadBase + uint64(d.u16())*64}
	if b := d.byte(); b < 64 {
		f.Offset = uint32(d.u16())
		f.ASAP, f.Modify = b&1 != 0 && typ == abi.TypeBufferSend, b&2 != 0 && typ == abi.TypeBufferSend
	} else if b < 70 {
		f.Flags = abi.Flags(d.byte())
	} else if b < 74 {
		f.Base = -uint64(d.u16())
	} else if b < 120 && typ == abi.TypeBufferAvailable {
		f.Flags = abi.FlagOnce
	} else if b < 160 && typ == abi.TypeBufferAvailable && id == 0 && d.left > 4096 {
		// Memory of its own: records say what tags had their results.
		d.left -= 4096
		f.Flags, f.Base, f.Length = abi.FlagReport, d.Chip.Alloc(4096, 1), 4096
		if b < 124 {
			d.Chip.ReadOnly(f.Base+uint64(d.u16())%4096, 1)
		}
	}
	d.send(f)
}

// policy is a few attributes by which notices wait.
func (d *driver) policy() (tuples []byte, n int) {
	for range d.byte() % 4 {
		n++
		if b := d.byte() % 10; b == 8 {
			p := abi.NotifyPattern{Mode: d.byte() % 3, Scope: d.byte() % 2, Bytes: uint32(d.u16()), Time: uint64(d.byte()) * 1e9, Pattern: []byte{0, 0, 1}}
			tuples = abi.AppendTuple(tuples, true, abi.AttrNotifyPattern, abi.AppendNotifyPattern(nil, p))
		} else {
			tuples = abi.AppendSetScalar(tuples, abi.AttrNotifyCount+abi.Attribute(b), uint64(d.byte())>>(b%8))
		}
	}
	return tuples, n
}

func (d *driver) protocol() uint8 {
	if d.byte() < 100 {
		return 17
	}
	return 6
}

func (d *driver) step() {
	switch d.byte() % 20 {
	case 0: // anything
		var b [32]byte
		for i := range b {
			b[i] = d.byte()
		}
		f := abi.Descriptor(b[:]).Decode()
		f.Tag = d.tag()
		d.send(f)
	case 1, 2, 3:
		d.transfer(abi.TypeBufferSend, d.id())
	case 4, 5:
		d.transfer(abi.TypeBufferAvailable, d.id())
	case 6:
		d.transfer(abi.TypeBufferAvailable, 0)
	case 7, 8:
		x := connectTarget()
		x.Protocol = d.protocol()
		x.Count = uint16(d.byte()%4 + 1)
		x.Limit = uint64(d.byte()) * 1e9
		tuples, n := d.policy()
		tuples = appendTarget(tuples, x)
		if d.byte() < 64 {
			tuples = abi.AppendSetScalar(tuples, abi.Attribute(0x0200+int(d.byte())), uint64(d.byte()))
			d.controlOf(abi.TypeConnect, 3, appendTarget(tuples, x), 0)
			return
		}
		d.controlOf(abi.TypeConnect, n+1, tuples, 0)
	case 9:
		x := abi.Target{Protocol: d.protocol(), Count: uint16(d.byte()%3 + 1), Limit: uint64(d.byte()) * 1e9, Backlog: uint32(d.byte())}
		x.Local = netip.AddrPortFrom(netip.IPv4Unspecified(), uint16(d.byte()))
		x.Remote = netip.MustParseAddrPort("0.0.0.0:0")
		tuples, n := d.policy()
		d.controlOf(abi.TypeListen, n+1, appendTarget(tuples, x), 0)
	case 10:
		d.send(abi.Fields{Type: abi.TypeTermination, Tag: d.tag(), Conn: d.id(), Length: uint32(d.byte() % 5)})
	case 11:
		d.send(abi.Fields{Type: abi.TypeCancellation, Tag: d.tag(), Conn: d.id(), Offset: d.oldTag()})
	case 12:
		tuples := abi.AppendTuple(nil, true, abi.AttrCancel, abi.AppendCancel(nil, d.id(), d.oldTag()))
		tuples = abi.AppendTuple(tuples, true, abi.AttrCancel, abi.AppendCancel(nil, 0, d.oldTag()))
		d.controlOf(abi.TypeCancellation, 2, tuples, 0)
	case 13:
		tuples := abi.AppendTuple(nil, true, abi.AttrTerminate, abi.AppendTerminate(nil, d.id(), uint32(d.byte()%5)))
		tuples = abi.AppendTuple(tuples, true, abi.AttrTerminate, abi.AppendTerminate(nil, d.id(), uint32(d.byte()%4)))
		d.controlOf(abi.TypeTermination, 2, tuples, 0)
	case 14:
		a := abi.Attribute(0x0200 + int(d.byte()))
		tuples := abi.AppendGet(nil, a, int(d.byte()))
		d.controlOf(abi.TypeConnectionAttr, 2, abi.AppendSetScalar(tuples, a, uint64(d.u16())), d.id())
	case 15:
		a := abi.Attribute(0x0100 + int(d.byte()%0x18))
		tuples := abi.AppendGet(nil, a, d.u16()%1024)
		if a != abi.AttrMemorySize && a != abi.AttrMaxConnections {
			tuples = abi.AppendSetScalar(tuples, a, uint64(d.u16()))
		}
		d.controlOf(abi.TypeAdapterAttr, 2, tuples, 0)
	case 16, 17:
		d.network()
	case 18:
		d.poll(1 + int(d.byte())%32)
	case 19:
		switch d.byte() % 8 {
		case 0:
			d.fw.Command(0, abi.QueuePause, d.Config)
		case 1, 2, 3:
			d.fw.Command(0, abi.QueueResume, d.Config)
		case 4:
			d.clock.advance(time.Duration(d.u16()) * time.Millisecond)
			d.fw.SetPolicyClock(d.byte()%2 == 0)
			d.fw.StepPolicyClock(uint64(d.u16()) * 1e6)
		case 5:
			d.Chip.Unmap(payloadBase+uint64(d.u16())*64, uint64(d.u16())+1)
		case 6:
			d.Chip.MapAll()
		case 7:
			d.fw.DoorbellOut(0, 0)
		}
	}
}

// network is what the other side does.
func (d *driver) network() {
	e := d.endpoint()
	if e == nil {
		return
	}
	switch d.byte() % 12 {
	case 10:
		e.Unreachable()
	case 11:
		e.FailSend([]error{engine.ErrHostUnreachable, engine.ErrWouldBlock, engine.ErrNoMemory}[d.byte()%3])
	case 0, 1:
		e.Establish()
	case 2:
		e.Refuse()
	case 3:
		e.Fail([]error{engine.ErrReset, engine.ErrTimedOut, engine.ErrAborted}[d.byte()%3])
	case 4, 5:
		e.Deliver(make([]byte, d.u16()))
	case 6:
		e.DeliverFIN()
	case 7:
		e.Ack(d.u16())
	case 8:
		e.SetRoom(d.u16())
	case 9:
		if l := d.fake.Endpoints()[0]; l != nil {
			l.Arrive(netip.AddrPortFrom(peer.Addr(), uint16(d.u16()|1)))
		}
	}
}

// FuzzQueue lets a host do what bytes say. Then the queue is drained: every tag
// that was taken has exactly one terminal response.
func FuzzQueue(f *testing.F) {
	rnd := rand.New(rand.NewPCG(7422, 1))
	for range 24 {
		b := make([]byte, 6000)
		for i := range b {
			b[i] = byte(rnd.Uint32())
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, ops []byte) {
		r := newRig(t, 6)
		d := &driver{rig: r, ops: ops[:min(len(ops), 8000)], left: 3 << 20,
			requests: map[uint32]int{}, finals: map[uint32]int{}}
		if d.byte() < 128 { // a listener and two connections to begin with
			x := abi.Target{Protocol: 6, Count: 1, Local: netip.MustParseAddrPort("0.0.0.0:80"), Remote: netip.MustParseAddrPort("0.0.0.0:0")}
			r.post(r.target(abi.TypeListen, x))
			d.ids = append(d.ids, r.next().Conn)
			for range 2 {
				id, _ := r.connect()
				d.ids = append(d.ids, id)
			}
			for _, peered := range []bool{false, true} {
				id, _ := r.datagram(peered)
				d.ids = append(d.ids, id)
			}
		}
		for len(d.ops) > 0 {
			d.step()
		}
		d.fw.Command(0, abi.QueueDrain, d.Config)
		err := d.Wait("the queue to drain", func() bool {
			d.poll(0)
			d.fw.DoorbellOut(0, 0)
			return d.fw.QueueStatus(0).State == abi.QueueDrained
		})
		if err != nil {
			t.Fatal(err)
		}
		d.poll(0)
		for _, f := range d.Untaken() {
			d.requests[f.Tag]--
		}
		for tag, n := range d.requests {
			if tag != 0 && d.finals[tag] != n {
				t.Errorf("tag %d: %d requests, %d terminal responses", tag, n, d.finals[tag])
			}
		}
		for tag := range d.finals {
			if d.requests[tag] == 0 {
				t.Errorf("tag %d answered without a request", tag)
			}
		}
		d.fw.Command(0, abi.QueueDestroy, d.Config)
		if err := d.State(abi.QueueDisabled); err != nil {
			t.Fatal(err)
		}
		for i, e := range d.fake.Endpoints() {
			if closes, aborts := e.Ends(); closes+aborts != 1 {
				t.Errorf("endpoint %d: closed %d times, aborted %d times", i, closes, aborts)
			}
		}
	})
}
