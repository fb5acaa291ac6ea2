// SPDX-License-Identifier: Apache-2.0

package guestdriver

import (
	"bytes"
	"errors"
	"net/netip"
	"runtime"
	"testing"
	"time"

	"toebox/vdev/abi"
)

// leaver is a connection, number 7, of which three sends of 1,000 bytes were
// posted: one completed, one cancelled, one not taken. Tests play the adapter by
// hand.
type leaver struct {
	*testing.T
	a       *Adapter
	ln      *lane
	c       *Conn
	in, out abi.Index
	base    uint64 // of the second send
}

func newLeaver(t *testing.T) *leaver {
	a, ln := still(t)
	a.opts.CarryOver = true
	a.carried, a.listeners = map[*Conn]struct{}{}, map[uint64]*Listener{}
	if err := a.makeReports(); err != nil {
		t.Fatal(err)
	}
	l := &leaver{T: t, a: a, ln: ln}
	if err := ln.postReports(); err != nil {
		t.Fatal(err)
	}
	take(ln.queue, &l.in)
	l.c = newConn(ln, 7, "tcp", nil, nil)
	l.c.SetDeadline(time.Now().Add(time.Minute))
	a.enter(l.c)
	for i := range 3 {
		if _, err := l.c.Write(bytes.Repeat([]byte{byte(i)}, 1000)); err != nil {
			t.Fatal(err)
		}
		f := abi.Fields{}
		switch i {
		case 0:
			f = take(ln.queue, &l.in)
			f.Aux = 0
		case 1:
			f = take(ln.queue, &l.in)
			f.Aux, f.Length, l.base = uint16(abi.StatusCancelled), 400, f.Base
		case 2:
			continue
		}
		f.Type, f.Flags = abi.TypeBufferDone, abi.FlagFinal
		answer(ln.queue, &l.out, f)
		ln.pass()
	}
	return l
}

// report has the driver find a record in the lane's first report buffer.
func (l *leaver) report(s abi.StateRecord, unread string) {
	l.Helper()
	l.publish(s, unread)
	l.ln.pass()
}

func (l *leaver) publish(s abi.StateRecord, unread string) {
	l.Helper()
	m := l.ln.reports[0]
	b := abi.AppendReport(nil, abi.Report{Type: abi.TypeConnectionAttrs, Flags: abi.FlagFinal, Conn: s.Conn})
	b = append(abi.AppendStateRecord(b, &s), unread...)
	n := copy(m.data, b)
	tag := uint32(0)
	for i, r := range l.ln.reqs.table {
		if r.kind == kindReport && r.buf == m {
			tag = uint32(r.seq)<<16 | uint32(i+1)
		}
	}
	answer(l.ln.queue, &l.out, abi.Fields{
		Type: abi.TypeConnectionAttrs, Flags: abi.FlagFinal | abi.FlagReport, Tag: tag, Base: m.iova, Length: uint32((n + 63) &^ 63),
	})
}

func exact(id, acked uint64) abi.StateRecord {
	at := func(s string) abi.Address { return abi.Address{Addr: netip.MustParseAddr(s), Port: 80} }
	return abi.StateRecord{Conn: id, Flags: abi.RecordExact, Acked: acked, Local: at("10.0.2.15"), Remote: at("10.0.2.2"), State: 4, Protocol: 6}
}

// TestCarryRecords: records that the driver cannot go by leave the connection
// where it is.
func TestCarryRecords(t *testing.T) {
	for _, c := range []struct {
		name          string
		record        abi.StateRecord
		carried       bool
		conns, length uint64 // counted as bad
	}{
		{name: "nothing of the second", record: exact(7, 1000), carried: true},
		{name: "part of the second", record: exact(7, 1400), carried: true},
		{name: "all of the second", record: exact(7, 2000), carried: true},
		{name: "less than completed", record: exact(7, 999), length: 1},
		{name: "part of what was not taken", record: exact(7, 2001), length: 1},
		{name: "more than was sent", record: exact(7, 1<<40), length: 1},
		{name: "wrapped", record: exact(7, 1<<64-1), length: 1},
		{name: "unknown connection", record: exact(8, 1000), conns: 1},
		{name: "not exact", record: abi.StateRecord{Conn: 7, Acked: 1000}},
	} {
		l := newLeaver(t)
		l.report(c.record, "")
		if _, there := l.a.conns[7]; there == c.carried || len(l.a.carried) == 1 != c.carried {
			t.Errorf("%s: carried %v", c.name, !there)
		}
		if s := l.a.Stats(); s.BadConns != c.conns || s.BadLengths != c.length {
			t.Errorf("%s: %d and %d are bad", c.name, s.BadConns, s.BadLengths)
		}
		l.a.endAll(ErrReset)
		l.a.loseAll(ErrReset)
		if s := l.a.Stats(); s.Memory != 0 || s.Outstanding != 0 || l.c.sends != 0 || l.c.held != 0 {
			t.Errorf("%s: %d bytes, %d sends and %d requests are left", c.name, s.Memory, l.c.sends, s.Outstanding)
		}
		if _, err := l.c.Write([]byte{1}); !errors.Is(err, ErrReset) {
			t.Errorf("%s: write: %v", c.name, err)
		}
	}
}

// TestAwaitStop: what a stopped adapter has written counts, though no interrupt
// tells of it.
func TestAwaitStop(t *testing.T) {
	l := newLeaver(t)
	l.a.bus.(*stillBus).regs = map[uint32]uint32{0x0014: 1 | 4, 0x0024: eventMask} // READY, STOPPED; the driver's events
	l.publish(exact(7, 1400), "")
	l.a.awaitStop()
	if len(l.a.carried) != 1 {
		t.Error("the record was not read")
	}
}

// TestCarryRestore: what goes to the next adapter, and what a refusal does.
func TestCarryRestore(t *testing.T) {
	for _, refused := range []bool{false, true} {
		l := newLeaver(t)
		l.c.note(abi.AttrTOS, 8)
		record := exact(7, 1400)
		record.Unread = 5
		l.report(record, "later")
		l.a.endAll(ErrReset)
		q, err := NewQueue(l.a.bus, 0, QueueConfig{InLog2: 4, OutLog2: 4})
		if err != nil {
			t.Fatal(err)
		}
		l.ln.install(q)
		l.in, l.out = 0, 0
		b := make([]byte, 9)
		if n, err := l.c.Read(b); err != nil || string(b[:n]) != "later" {
			t.Errorf("read %q, %v", b[:n], err)
		}
		done := make(chan struct{})
		go func() { l.ln.restore(l.c); close(done) }()
		f := abi.Fields{}
		for f.Type == 0 {
			select {
			case <-done:
				t.Fatal("nothing was asked for")
			default:
				runtime.Gosched()
			}
			f = take(q, &l.in)
		}
		want := abi.AppendSetScalar(nil, 0x025b, 1)
		want = abi.AppendSetScalar(want, 0x0211, 8)
		want = abi.AppendTuple(want, true, 0x0004, abi.AppendStateRecord(nil, &record))
		l.ln.mu.Lock()
		got := l.ln.reqs.find(f.Tag).buf.data[:f.Length]
		l.ln.mu.Unlock()
		if f.Type != abi.TypeConnect || f.Aux != 3 || !bytes.Equal(got, want) {
			t.Errorf("request %+v with % x, want % x", f, got, want)
		}
		reply := abi.Fields{Type: abi.TypeCompletion, Flags: abi.FlagFinal, Tag: f.Tag, Conn: 9, Base: 7}
		if refused {
			reply.Conn, reply.Aux = 0, uint16(abi.StatusAborted)
		}
		answer(q, &l.out, reply)
		l.ln.pass()
		<-done
		if refused {
			if _, err := l.c.Write([]byte{1}); !errors.Is(err, ErrReset) || !errors.Is(err, abi.StatusAborted) {
				t.Errorf("write after a refusal: %v", err)
			}
			if s := l.a.Stats(); s.Memory != 0 || s.CarryFailed != 1 {
				t.Errorf("after a refusal: %+v", s)
			}
			continue
		}
		if l.c.ID() != 9 || l.a.conn(9) != endpoint(l.c) || len(l.a.carried) != 0 {
			t.Errorf("the connection is %d", l.c.ID())
		}
		var sends []abi.Fields
		for slot := l.in; ; slot = slot.Add(1) {
			d := slotOf(q.in.table, slot, q.in.log2)
			if abi.LoadWord(d)&abi.WordOwner == 0 {
				break
			}
			if f := d.Decode(); f.Type == abi.TypeBufferSend {
				sends = append(sends, f)
			}
		}
		if len(sends) != 2 || sends[0].Base != l.base || sends[0].Offset != 400 || sends[0].Length != 1000 ||
			sends[1].Offset != 0 || sends[1].Length != 1000 || sends[0].Conn != 9 || sends[1].Conn != 9 {
			t.Errorf("sent again: %+v", sends)
		}
	}
}

// TestCarryPolicies: a connection that goes on has the policies that it had, also
// where the adapter's are others by now.
func TestCarryPolicies(t *testing.T) {
	l := newLeaver(t)
	l.c.born = &settings{abi.AttrNotifyTime: 5, abi.AttrPriority: 6}
	l.a.defaults.Store(&settings{abi.AttrNotifyTime: 9, abi.AttrPriority: 7, abi.AttrDelayAge: 7})
	l.c.note(abi.AttrPriority, 2)
	l.report(exact(7, 1000), "")
	got, n := l.c.restoreTuplesLocked()
	want := abi.AppendSetScalar(nil, 0x025b, 1)
	want = abi.AppendSetScalar(want, 0x0213, 2)         // PRIORITY: set
	want = abi.AppendSetScalar(want, 0x0223, 1_000_000) // DELAY_AGE: as ever
	want = abi.AppendSetScalar(want, 0x0240, 5)         // NOTIFY_TIME: of when it began
	record := exact(7, 1000)
	want = abi.AppendTuple(want, true, 0x0004, abi.AppendStateRecord(nil, &record))
	if n != 5 || !bytes.Equal(got, want) {
		t.Errorf("%d tuples % x, want % x", n, got, want)
	}
	l.a.endAll(ErrReset)
	l.a.loseAll(ErrReset)
}

// TestCarryElsewhere: a connection that has moved is for its new adapter to
// restore, and one that may have been restored does not move.
func TestCarryElsewhere(t *testing.T) {
	l := newLeaver(t)
	l.report(exact(7, 1400), "")
	l.a.endAll(ErrReset)
	before := &lane{a: l.a, err: ErrStandby}
	before.restore(l.c)
	if l.c.carry == nil || l.c.carry.trying {
		t.Fatal("the adapter before has restored it")
	}
	l.c.carry.trying = true
	if err := l.c.moveTo(before); !errors.Is(err, errRestoring) || l.c.lane() != l.ln {
		t.Errorf("moved while it is restored: %v", err)
	}
	l.a.loseAll(ErrReset)
}
