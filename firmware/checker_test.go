// SPDX-License-Identifier: Apache-2.0

package firmware_test

import (
	"bytes"
	"encoding/binary"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"

	"toebox/firmware"
	"toebox/vdev/abi"
)

// checked is a rig with the checker on.
type checked struct {
	*rig
	side *rig // a second queue, which reads reports; made when it is needed
}

// lines is a log.
type lines struct {
	mu sync.Mutex
	b  strings.Builder
}

func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lines) text() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

func newChecked(t *testing.T, log2 uint8, change ...func(*firmware.Config)) *checked {
	t.Helper()
	r := newRig(t, log2, change...)
	k := &checked{rig: r}
	r.fw.SetChecker(true)
	r.settle()
	return k
}

func (k *checked) report() abi.CheckerReport {
	k.t.Helper()
	if k.side == nil {
		k.side = k.second(1)
	}
	v, ok := abi.ParseCheckerReport(k.side.attribute(0, abi.AttrCheckerReport, 16+32*160))
	if !ok {
		k.t.Fatal("CHECKER_REPORT cannot be parsed")
	}
	return v
}

// looked returns when the checker of the only queue, which does nothing else,
// has looked at its tables.
func (k *checked) looked() {
	k.t.Helper()
	if k.side != nil {
		k.t.Fatal("a second queue makes passes, too")
	}
	// The second pass begins when the first one is over.
	for range 2 {
		n := k.counter(abi.CounterQueuePasses)
		k.fw.SetChecker(true)
		k.waitFor("a pass", func() bool { return k.counter(abi.CounterQueuePasses) > n })
	}
}

func (k *checked) waitFor(what string, f func() bool) {
	k.t.Helper()
	if err := k.Wait(what, f); err != nil {
		k.t.Fatal(err)
	}
}

// found waits for the one violation more than there were, and compares what
// does not depend on the layout of memory and on time.
func (k *checked) found(want abi.CheckerEntry) abi.CheckerEntry {
	k.t.Helper()
	k.violations++
	var r abi.CheckerReport
	k.waitFor("a violation", func() bool { r = k.report(); return uint64(len(r.Entries)) >= k.violations })
	if uint64(r.Violations) != k.violations || uint64(len(r.Entries)) != k.violations {
		k.t.Fatalf("%d violations, %d entries, want %d: %v", r.Violations, len(r.Entries), k.violations, r.Entries)
	}
	got := r.Entries[len(r.Entries)-1]
	cut := got
	cut.Uptime, cut.Descriptor, cut.Found, cut.Events = 0, want.Descriptor, want.Found, want.Events
	if cut != want {
		k.t.Fatalf("violation %v\n     want %v", &got, &want)
	}
	k.waitFor("EVENTS bit 4", func() bool { return k.Chip.Events()&16 != 0 })
	return got
}

// kinds are the kinds of the events of a tag, but for "seen": whether a request
// is seen before it is taken is a matter of chance.
func kinds(e abi.CheckerEntry) (list []uint8) {
	for _, v := range e.Events {
		if v.Kind != 1 && v.Kind != 0 {
			list = append(list, v.Kind)
		}
	}
	return list
}

// clean fails the test when there is a violation more.
func (k *checked) clean(what string) {
	k.t.Helper()
	k.settle()
	if r := k.report(); uint64(r.Violations) != k.violations {
		k.t.Fatalf("%s: %d violations, want %d: %v", what, r.Violations, k.violations, r.Entries)
	}
}

func (k *checked) command(c abi.QueueCommand, s abi.QueueState) {
	k.t.Helper()
	if st := k.fw.Command(0, c, k.Config); st != 0 {
		k.t.Fatalf("command %d: %v", c, st)
	}
	if err := k.State(s); err != nil {
		k.t.Fatal(err)
	}
}

// slot is a slot of a table by index.
func (k *checked) slot(base uint64, log2 uint8, i abi.Index) (uint64, []byte) {
	at := base + uint64(i.Slot(uint(log2)))*32
	return at, k.Chip.Bytes(at, 32)
}

// waiting publishes a request that the paused queue does not take, and waits
// until the checker has seen it.
func (k *checked) waiting() (abi.Index, abi.Fields) {
	k.t.Helper()
	k.command(abi.QueuePause, abi.QueuePaused)
	i, f := k.Index(), k.control(abi.TypeAdapterAttr, 1, abi.AppendGet(nil, abi.AttrLink, 8))
	k.Publish(f)
	k.fw.Doorbell(0, k.Index())
	k.looked()
	return i, f
}

func TestCheckerInput(t *testing.T) {
	t.Run("rewritten", func(t *testing.T) {
		k := newChecked(t, 4)
		i, f := k.waiting()
		at, slot := k.slot(k.Config.In, 4, i)
		before := [32]byte(slot)
		before[0] |= 0x80
		slot[17] = 0xee // the connection id
		k.command(abi.QueueResume, abi.QueueRunning)
		got := k.found(abi.CheckerEntry{Rule: 1, Place: 1, Index: uint32(i), Address: at, Tag: f.Tag, Detail: 17})
		after := before
		after[17] = 0xee
		if got.Descriptor != before || got.Found != after {
			t.Errorf("descriptor %x\nfound %x", got.Descriptor, got.Found)
		}
		if e := got.Events; e[0].Kind != 1 || e[0].Type != 8 || e[0].Value != uint32(i) || e[1].Kind != 2 || e[2].Kind != 0 {
			t.Errorf("events of the tag %v, want seen, taken", e)
		}
		if f := k.next(); f.Aux != 33 {
			t.Errorf("the request as it was found was answered %+v, want RESERVED", f)
		}
	})
	t.Run("withdrawn", func(t *testing.T) {
		k := newChecked(t, 4)
		i, f := k.waiting()
		at, slot := k.slot(k.Config.In, 4, i)
		abi.StoreWord(slot, abi.LoadWord(slot)&^0x80)
		k.command(abi.QueueResume, abi.QueueRunning)
		got := k.found(abi.CheckerEntry{Rule: 2, Place: 1, Index: uint32(i), Address: at, Tag: f.Tag})
		if got.Descriptor[0]&0x80 == 0 || got.Found[0]&0x80 != 0 || !bytes.Equal(got.Descriptor[1:], got.Found[1:]) {
			t.Errorf("descriptor %x\nfound %x", got.Descriptor, got.Found)
		}
	})
	t.Run("many wait", func(t *testing.T) {
		k := newChecked(t, 9)
		k.command(abi.QueuePause, abi.QueuePaused)
		f := k.control(abi.TypeAdapterAttr, 1, abi.AppendGet(nil, abi.AttrLink, 8))
		for range 500 {
			f.Tag = k.Tag()
			k.Publish(f)
		}
		k.fw.Doorbell(0, k.Index())
		k.looked()
		k.command(abi.QueueResume, abi.QueueRunning)
		for range 500 {
			k.next()
		}
		k.clean("500 requests that waited")
	})
}

func TestCheckerOutput(t *testing.T) {
	t.Run("owner", func(t *testing.T) {
		k := newChecked(t, 4)
		i := k.fw.QueueStatus(0).OutIndex
		at, slot := k.slot(k.Config.Out, 4, i)
		abi.StoreWord(slot, abi.LoadWord(slot)&^0x80)
		// The driver does not look at the table before the adapter has.
		k.Publish(k.control(abi.TypeAdapterAttr, 1, abi.AppendGet(nil, abi.AttrLink, 8)))
		k.fw.Doorbell(0, k.Index())
		k.waitFor("a violation", func() bool { return k.counter(abi.CounterCheckerViolations) > 0 })
		k.found(abi.CheckerEntry{Rule: 3, Place: 2, Index: uint32(i), Address: at})
	})
	t.Run("free slot written", func(t *testing.T) {
		k := newChecked(t, 4)
		i := k.fw.QueueStatus(0).OutIndex
		at, slot := k.slot(k.Config.Out, 4, i)
		slot[31] = 9
		k.settle()
		k.found(abi.CheckerEntry{Rule: 4, Place: 2, Index: uint32(i), Address: at, Detail: 31})
	})
	t.Run("response written", func(t *testing.T) {
		k := newChecked(t, 4)
		i := k.fw.QueueStatus(0).OutIndex
		f := k.control(abi.TypeAdapterAttr, 1, abi.AppendGet(nil, abi.AttrLink, 8))
		k.Publish(f)
		k.fw.Doorbell(0, k.Index())
		at, slot := k.slot(k.Config.Out, 4, i)
		k.waitFor("the response", func() bool { return abi.LoadWord(slot)&0x80 == 0 })
		was := [32]byte(slot)
		slot[8] ^= 1
		k.next()
		for range 8 { // until the adapter looks at the slot again
			k.settle()
		}
		got := k.found(abi.CheckerEntry{Rule: 4, Place: 2, Index: uint32(i), Address: at, Tag: f.Tag, Detail: 8})
		if got.Descriptor != was || !slices.Equal(kinds(got), []uint8{2, 4}) {
			t.Errorf("descriptor %x, want %x; events %v, want taken, terminal response", got.Descriptor, was, got.Events)
		}
	})
}

func TestCheckerDoorbells(t *testing.T) {
	k := newChecked(t, 4)
	in := func(i abi.Index) { k.fw.Doorbell(0, i) }
	out := func(i abi.Index) { k.fw.DoorbellOut(0, i) }
	p := k.Index()
	f := k.control(abi.TypeAdapterAttr, 1, abi.AppendGet(nil, abi.AttrLink, 8))
	k.Publish(f)
	in(p + 1)
	k.next()
	in(p + 1)
	k.found(abi.CheckerEntry{Rule: 6, Place: 1, Index: uint32(p + 1), Detail: uint32(p + 1)})
	in(p)
	k.found(abi.CheckerEntry{Rule: 7, Place: 1, Index: uint32(p), Detail: uint32(p + 1)})
	at, _ := k.slot(k.Config.In, 4, p+1)
	in(p + 3)
	k.found(abi.CheckerEntry{Rule: 7, Place: 1, Index: uint32(p + 3), Address: at, Detail: uint32(p + 1)})
	at, _ = k.slot(k.Config.In, 4, p+17)
	in(p + 100)
	k.found(abi.CheckerEntry{Rule: 7, Place: 1, Index: uint32(p + 100), Address: at, Detail: uint32(p + 17)})
	f.Tag = k.Tag()
	k.Publish(f)
	in(p + 2)
	k.next()
	k.settle()
	o := k.fw.QueueStatus(0).OutIndex
	at, _ = k.slot(k.Config.Out, 4, o)
	out(o + 2)
	k.found(abi.CheckerEntry{Rule: 5, Place: 2, Index: uint32(o + 2), Address: at, Detail: uint32(o)})
	out(o - 1)
	out(o - 1)
	k.found(abi.CheckerEntry{Rule: 6, Place: 2, Index: uint32(o - 1), Detail: uint32(o - 1)})
	out(o - 2)
	k.found(abi.CheckerEntry{Rule: 7, Place: 2, Index: uint32(o - 2), Detail: uint32(o - 1)})

	// A response that the host has not handed back yet.
	k.command(abi.QueuePause, abi.QueuePaused)
	f.Tag = k.Tag()
	k.Publish(f)
	k.command(abi.QueueResume, abi.QueueRunning)
	at, slot := k.slot(k.Config.Out, 4, o)
	k.waitFor("the response", func() bool { return abi.LoadWord(slot)&0x80 == 0 })
	o++
	out(o)
	k.found(abi.CheckerEntry{Rule: 7, Place: 2, Index: uint32(o), Address: at, Detail: uint32(o - 1)})
	k.next()
}

// TestCheckerFlood: what comes between two passes is bounded.
func TestCheckerFlood(t *testing.T) {
	var log lines
	k := newChecked(t, 4, func(c *firmware.Config) { c.Logger = slog.New(slog.NewTextHandler(&log, nil)) })
	p := k.Index()
	for range 1000 {
		k.fw.Doorbell(0, p+2)
	}
	k.settle()
	k.violations = k.counter(abi.CounterCheckerViolations)
	r := k.report()
	if k.violations == 0 || len(r.Entries) > 32 || uint64(r.Violations) != k.violations {
		t.Errorf("%d violations, %d entries, counter %d", r.Violations, len(r.Entries), k.violations)
	}
	// The fake clock stands still: at most a second's worth of lines.
	if n := strings.Count(log.text(), "protocol violation"); n == 0 || n > 20 {
		t.Errorf("%d lines in the log", n)
	}
}

func TestCheckerSend(t *testing.T) {
	for name, at := range map[string]int{"small": 0, "last byte": 99_999, "piece 7": 45_000} {
		t.Run(name, func(t *testing.T) {
			k := newChecked(t, 4)
			id, ep := k.connect()
			n := 100
			if at > 0 {
				n = 100_000
			}
			f := k.buffer(abi.TypeBufferSend, id, n)
			k.post(f)
			k.settle()
			if at == 45_000 {
				// Piece 7 is [7*(100000-256)/15, +256) = [46547, 46803).
				k.bytes(f)[46_546]++
				k.bytes(f)[46_803]++
				k.clean("bytes between the pieces")
				at = 46_547
			}
			k.bytes(f)[at]++
			ep.Ack(n)
			got := k.found(abi.CheckerEntry{Rule: 8, Place: 3, Address: f.Base, Tag: f.Tag})
			if d := abi.Descriptor(got.Descriptor[:]); d.Base() != f.Base || d.Conn() != id || d.Length() != f.Length || d.Type() != 1 {
				t.Errorf("descriptor %x", got.Descriptor)
			}
			k.expect(sendDone(f, 0, f.Length))
		})
	}
	t.Run("before it is fetched", func(t *testing.T) {
		k := newChecked(t, 4)
		id, ep := k.connect()
		ep.SetRoom(10)
		f := k.buffer(abi.TypeBufferSend, id, 20)
		k.post(f)
		k.settle()
		k.bytes(f)[19]++
		ep.Ack(10)
		k.found(abi.CheckerEntry{Rule: 8, Place: 3, Address: f.Base, Tag: f.Tag})
		k.settle()
		ep.Ack(10)
		k.expect(sendDone(f, 0, 20))
	})
}

func TestCheckerReceive(t *testing.T) {
	for _, bulk := range []bool{false, true} {
		k := newChecked(t, 4)
		id, ep := k.connect()
		owner := id
		if bulk {
			owner = 0
		}
		f := k.buffer(abi.TypeBufferAvailable, owner, 64)
		k.post(f)
		k.settle()
		if !bulk {
			ep.Deliver([]byte("0123456789"))
			k.next()
			k.bytes(f)[3] = 'x' // the host's by now
			k.clean("delivered bytes changed")
			k.bytes(f)[10] = 'y'
			ep.Deliver([]byte("0"))
			k.found(abi.CheckerEntry{Rule: 9, Place: 3, Address: f.Base + 10, Tag: f.Tag})
		} else {
			k.bytes(f)[63] = 'y'
			ep.Deliver([]byte("0"))
			k.found(abi.CheckerEntry{Rule: 9, Place: 3, Address: f.Base, Tag: f.Tag})
		}
		k.next()

		g := k.buffer(abi.TypeBufferAvailable, owner, 64)
		k.post(g)
		k.settle()
		k.bytes(g)[0] = 'z'
		k.post(abi.Fields{Type: abi.TypeCancellation, Tag: k.Tag(), Conn: owner, Offset: g.Tag})
		k.found(abi.CheckerEntry{Rule: 9, Place: 3, Address: g.Base, Tag: g.Tag})
	}
}

func TestCheckerControl(t *testing.T) {
	t.Run("connect", func(t *testing.T) {
		k := newChecked(t, 4)
		f := k.target(abi.TypeConnect, connectTarget())
		k.post(f)
		k.settle()
		k.Chip.Bytes(f.Base, 72)[70] ^= 1 // its cookie
		k.fake.Last().Establish()
		got := k.found(abi.CheckerEntry{Rule: 10, Place: 4, Address: f.Base, Tag: f.Tag, Detail: 70})
		if abi.Descriptor(got.Descriptor[:]).Type() != 3 || !slices.Equal(kinds(got), []uint8{2}) {
			t.Errorf("entry %v", &got)
		}
		if c := k.next(); c.Base != 0xc00c1e {
			t.Errorf("completion %+v: the change took effect", c)
		}
	})
	t.Run("attributes", func(t *testing.T) {
		k := newChecked(t, 4)
		f := k.control(abi.TypeAdapterAttr, 2, abi.AppendGet(abi.AppendGet(nil, abi.AttrLink, 8), abi.AttrMTU, 8))
		// The checker's look at the second tuple is the only View of it: what is
		// changed before was changed after the copy.
		k.Chip.OnView(func(iova uint64, n int, write bool) {
			if iova == f.Base+16 && !write {
				k.Chip.Bytes(f.Base, 32)[17] = 0x7f
			}
		})
		k.post(f)
		k.found(abi.CheckerEntry{Rule: 10, Place: 4, Address: f.Base, Tag: f.Tag, Detail: 17})
		k.Chip.OnView(nil)
		if a := k.next(); a.Aux != 0 || a.Length != 2 {
			t.Errorf("response %+v: the change took effect", a)
		}
	})
}

// TestCheckerSwitch: off, the same offences are none; on again, what began
// before is not held against the host; its copies are charged, and without room
// the queue works unchecked.
func TestCheckerSwitch(t *testing.T) {
	k := newChecked(t, 4)
	id, ep := k.connect()
	k.report()
	used := k.counter(abi.CounterMemoryUsed)
	f := k.buffer(abi.TypeBufferSend, id, 64)
	g := k.buffer(abi.TypeBufferAvailable, id, 64)
	k.post(f, g)
	k.settle()
	k.fw.SetChecker(false)
	k.settle()
	k.side.settle()
	if now := k.counter(abi.CounterMemoryUsed); now != used+2*64-2*(16*32+32<<10) {
		t.Errorf("%d bytes in use, %d before", now, used)
	}
	p := k.Index()
	k.fw.Doorbell(0, p+9)
	k.fw.Doorbell(0, p)
	ep.Deliver([]byte("abc"))
	k.next()
	k.bytes(g)[50] = 1
	k.bytes(f)[50]++
	k.settle()
	k.fw.SetChecker(true)
	k.fw.Doorbell(0, k.Index())
	k.settle()
	ep.Ack(64)
	k.expect(sendDone(f, 0, 64))
	k.clean("off")

	k.fw.SetChecker(false)
	k.settle()
	k.side.settle()
	limit := k.counter(abi.CounterMemoryUsed) + 8192
	if s, _ := abi.TupleResult(func() []byte {
		_, b := k.attributes(0, 1, abi.AppendTuple(nil, true, abi.AttrMemorySize, binary.LittleEndian.AppendUint64(nil, limit)))
		return b
	}()); s != 0 {
		t.Fatalf("set of MEMORY_SIZE: %v", s)
	}
	k.fw.SetChecker(true)
	k.settle()
	k.fw.Doorbell(0, k.Index()+9)
	k.settle()
	k.clean("no room")
}

func TestCheckerReset(t *testing.T) {
	k := newChecked(t, 4)
	k.fw.DoorbellOut(0, 100)
	k.found(abi.CheckerEntry{Rule: 5, Place: 2, Index: 100, Address: k.Config.Out + 32*uint64(k.fw.QueueStatus(0).OutIndex%16), Detail: uint32(k.fw.QueueStatus(0).OutIndex)})
	k.fw.Reset()
	k.fw.Run()
	for _, r := range []*rig{k.rig, k.side} {
		r.Clear()
		if s := r.Create(); s != 0 {
			t.Fatal(s)
		}
	}
	if r := k.report(); r.Violations != 0 || len(r.Entries) != 0 || r.Looked != 0 {
		t.Errorf("after a reset: %+v", r)
	}
	k.violations = 0
	k.fw.DoorbellOut(0, 100)
	k.clean("off after a reset")
	// On before create, it knows that nothing was rung yet.
	k.fw.Reset()
	k.fw.Run()
	k.fw.SetChecker(true)
	for _, r := range []*rig{k.rig, k.side} {
		r.Clear()
		if s := r.Create(); s != 0 {
			t.Fatal(s)
		}
	}
	k.fw.Doorbell(0, 0)
	k.found(abi.CheckerEntry{Rule: 6, Place: 1})
	k.violations = 2 // counted since New
}

// BenchmarkChecker measures sends of 64 bytes with the protocol checker off,
// where it costs nothing, and on.
func BenchmarkChecker(b *testing.B) {
	for _, on := range []bool{false, true} {
		b.Run(map[bool]string{false: "off", true: "on"}[on], func(b *testing.B) {
			fw, h, id, _ := flatRig(b, 8)
			fw.SetChecker(on)
			f := abi.Fields{Type: abi.TypeBufferSend, Conn: id, Base: h.Chip.Alloc(64, 64), Length: 64}
			b.ReportAllocs()
			for b.Loop() {
				rounds(b, h, f, 64)
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/64, "ns/descriptor")
		})
	}
}
