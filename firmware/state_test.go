// SPDX-License-Identifier: Apache-2.0

package firmware_test

import (
	"bytes"
	"encoding/binary"
	"net/netip"
	"testing"
	"time"

	"toebox/firmware/engine"
	"toebox/vdev/abi"
)

// named is the value of a RECORD tuple that names a connection.
func named(id uint64) []byte { return binary.LittleEndian.AppendUint64(nil, id) }

// record parses a state record, which must be one.
func parseRecord(t *testing.T, b []byte) abi.StateRecord {
	t.Helper()
	r, ok := abi.ParseStateRecord(b)
	if !ok {
		t.Fatalf("no record: % x", b)
	}
	return r
}

// TestRecordBytes compares a record with literal bytes.
func TestRecordBytes(t *testing.T) {
	r := newRig(t, 4)
	id, ep := r.connect()
	ep.SetFlow(engine.Flow{
		Sent: 8, SendSequence: 0x11223344, ReceiveSequence: 0x55667788, SendWindow: 0x10000, ReceiveWindow: 0x80000,
		SendScale: 7, ReceiveScale: 4, MSS: 1460, Payload: 1420, SACK: true, Scaling: true, Timestamps: true,
		Time: 0x01020304, RecentTime: 0x0a0b0c0d, RTT: time.Millisecond, RTO: 200 * time.Millisecond,
		Timers: engine.TimerRetransmit | engine.TimerPersist,
	})
	r.post(r.buffer(abi.TypeBufferSend, id, 9), r.buffer(abi.TypeBufferAvailable, id, 2))
	r.settle()
	ep.Deliver([]byte("abc")) // 2 of them have a buffer
	r.next()
	ep.Ack(5)
	local := ep.Info().Local.Port()
	want := bytes.Join([][]byte{
		{1, 0, 0, 0, 0, 0, 7, 0}, // 0 id
		{4, 0, byte(local), byte(local >> 8), 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}, // 8 local
		{4, 0, 80, 0, 0, 0, 0, 0, 10, 0, 2, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0},                        // 32 remote
		{4, 0, 0, 0}, {6, 0, 0, 0}, // 56 established, 60 TCP
		{9, 0, 0, 0, 0, 0, 0, 0},                           // 64 accepted
		{8, 0, 0, 0, 0, 0, 0, 0},                           // 72 sent
		{5, 0, 0, 0, 0, 0, 0, 0},                           // 80 acknowledged
		{3, 0, 0, 0, 0, 0, 0, 0},                           // 88 received
		{2, 0, 0, 0, 0, 0, 0, 0},                           // 96 delivered
		{0xb4, 5, 0, 0},                                    // 104 MSS
		{7, 0, 0, 0},                                       // 108 SACK, time stamps, scaling
		{0, 0, 1, 0},                                       // 112 send window
		{0, 0, 8, 0},                                       // 116 receive window
		{0x40, 0x42, 0xf, 0, 0, 0, 0, 0},                   // 120 RTT
		{0, 0xc2, 0xeb, 0xb, 0, 0, 0, 0},                   // 128 RTO
		{9, 0, 0, 0, 0, 0, 0, 0},                           // 136 timers
		{0x44, 0x33, 0x22, 0x11}, {0x88, 0x77, 0x66, 0x55}, // 144, 148 sequences
		{7, 4, 0, 0, 0, 0, 0, 0},           // 152 scales
		{0, 0xca, 0x9a, 0x3b, 0, 0, 0, 0},  // 160 uptime 1 s
		{4, 3, 2, 1}, {0xd, 0xc, 0xb, 0xa}, // 168 time stamps
		make([]byte, 16),
	}, nil)
	before := r.counter(abi.CounterStateRecords)
	if got := r.attribute(id, 0x028a, 192); !bytes.Equal(got, want) {
		t.Errorf("record\n% x, want\n% x", got, want)
	}
	r.wantCounter(abi.CounterStateRecords, before+1)

	// A dead connection has the counts that it ended with.
	ep.Reset()
	r.settle()
	dead := parseRecord(t, r.attribute(id, 0x028a, 192))
	if dead.State != 0 || dead.Accepted != 9 || dead.Acked != 5 || dead.Received != 3 || dead.Delivered != 2 || dead.MSS != 0 {
		t.Errorf("record of a dead connection: %+v", dead)
	}
}

// TestSeveralRecords names connections in tuples; each tuple has its own
// status.
func TestSeveralRecords(t *testing.T) {
	r := newRig(t, 4)
	a, _ := r.connect()
	b, _ := r.connect()
	f := r.target(abi.TypeListen, abi.Target{Protocol: 6, Count: 1, Local: netip.MustParseAddrPort("0.0.0.0:7"), Remote: netip.MustParseAddrPort("0.0.0.0:0")})
	r.post(f)
	listener := r.next().Conn
	var tuples []byte
	for _, id := range []uint64{b, 0, a, listener, 7<<48 | 0xffff} {
		tuples = abi.AppendTuple(tuples, false, 0x028a, append(named(id), make([]byte, 184)...))
	}
	tuples = abi.AppendTuple(tuples, false, 0x028a, named(a)) // too little room
	f = r.control(abi.TypeConnectionAttr, 6, tuples)
	got, buf := r.attributeRequest(f)
	if got.Aux != 1 || got.Length != 2 || got.Offset != 1 {
		t.Errorf("response %+v", got)
	}
	for i, want := range []struct {
		status abi.Status
		length uint32
		id     uint64
	}{{0, 192, b}, {36, 192, 0}, {0, 192, a}, {43, 192, listener}, {36, 192, 7<<48 | 0xffff}, {51, 192, a}} {
		at := i * 200
		s, n := abi.TupleResult(buf[at:])
		if id := binary.LittleEndian.Uint64(buf[at+8:]); s != want.status || n != want.length || id != want.id {
			t.Errorf("tuple %d: %v, %d bytes, id %#x; want %+v", i, s, n, id, want)
		}
	}
}

// TestAllRecords reads the records of all connections of a queue in pieces,
// with connections that come and go.
func TestAllRecords(t *testing.T) {
	r := newRig(t, 6)
	var ids []uint64
	for range 90 {
		id, _ := r.connect()
		ids = append(ids, id)
	}
	page := func(after uint64, room int) (abi.Status, []uint64) {
		t.Helper()
		value := make([]byte, room)
		copy(value, named(after))
		f := r.control(abi.TypeAdapterAttr, 1, abi.AppendTuple(nil, false, 0x0120, value))
		_, buf := r.attributeRequest(f)
		s, n := abi.TupleResult(buf)
		var got []uint64
		if s == abi.StatusOK {
			for b := buf[8 : 8+n]; len(b) > 0; b = b[192:] {
				got = append(got, parseRecord(t, b[:192]).Conn)
			}
		} else if n != 192 {
			t.Errorf("%v says that %d bytes are needed", s, n)
		}
		return s, got
	}
	all := func(room int) []uint64 {
		t.Helper()
		var list []uint64
		for after := uint64(0); ; after = list[len(list)-1] {
			s, got := page(after, room)
			if s != abi.StatusOK {
				t.Fatalf("after %#x: %v", after, s)
			}
			if list = append(list, got...); len(got) < room/192 {
				return list
			}
		}
	}
	check := func(room int) {
		t.Helper()
		got := all(room)
		if len(got) != len(ids) {
			t.Fatalf("%d records, want %d", len(got), len(ids))
		}
		for i := range ids {
			if got[i] != ids[i] {
				t.Fatalf("record %d is of %#x, want %#x", i, got[i], ids[i])
			}
		}
	}
	check(90 * 192)
	check(91 * 192)
	check(7*192 + 100)
	if s, _ := page(0, 191); s != 51 {
		t.Errorf("room for no record: %v", s)
	}
	if s, _ := page(0, 0); s != 51 {
		t.Errorf("no room: %v", s)
	}
	if s, got := page(ids[89], 8); s != 0 || got != nil {
		t.Errorf("no room behind the last: %v, %d records", s, len(got))
	}
	// Two of three go: the list of connections has holes, and is then put
	// together.
	kept := ids[:0]
	for i, id := range ids {
		if i%3 == 1 {
			kept = append(kept, id)
			continue
		}
		f := abi.Fields{Type: abi.TypeTermination, Tag: r.Tag(), Conn: id, Length: abi.TerminateAbort}
		r.post(f)
		r.next()
		if i == 40 {
			if _, got := page(ids[len(kept)-1], 100*192); len(got) != 90-41+0 {
				t.Errorf("%d records above the %d-th", len(got), i)
			}
		}
	}
	ids = kept
	id, _ := r.connect()
	ids = append(ids, id)
	check(4 * 192)
}

// TestReportPeriod moves the policy clock past reports that are due.
func TestReportPeriod(t *testing.T) {
	r := newRig(t, 5)
	r.fw.SetPolicyClock(true)
	step := func(d time.Duration) []abi.Fields {
		t.Helper()
		r.fw.StepPolicyClock(uint64(d))
		return r.settle()
	}
	set := func(id, v uint64, want abi.Status) {
		t.Helper()
		f := r.control(abi.TypeConnectionAttr, 1, abi.AppendSetScalar(nil, 0x025a, v))
		f.Conn = id
		if _, buf := r.attributeRequest(f); abi.Status(binary.LittleEndian.Uint16(buf[2:])) != want {
			t.Errorf("period %d: % x, want %v", v, buf[:4], want)
		}
	}
	silent, _ := r.connect()
	set(0, 999_999, 52)
	set(0, 1<<63, 52)
	// The longest period is no time that has passed long ago.
	set(0, 1<<63-1, 0)
	r.connect()
	set(0, 10e6, 0)
	id, ep := r.connect()
	ep.Deliver([]byte("abc"))
	buffer := r.buffer(abi.TypeBufferAvailable, id, 100)
	send := r.buffer(abi.TypeBufferSend, id, 50)
	r.post(buffer, send)
	r.settle()
	ep.Ack(20)
	report := abi.Fields{Type: 23, Flags: abi.FlagFinal, Conn: id, Base: 20, Length: 3, Offset: 3}
	expect := func(d time.Duration, want ...abi.Fields) {
		t.Helper()
		got := step(d)
		if len(got) != len(want) {
			t.Fatalf("after %v: %+v, want %+v", d, got, want)
		}
		for i := range want {
			if got[i] != want[i] {
				t.Fatalf("after %v: %+v, want %+v", d, got[i], want[i])
			}
		}
	}
	expect(9_999_999)
	expect(1, report)
	expect(9_999_999)
	ep.Ack(30)
	r.expect(sendDone(send, 0, 50))
	expect(1, report2(report, 50))
	// Four periods are one report; the next comes a period from then.
	expect(47*time.Millisecond, report2(report, 50))
	expect(9_999_999)
	expect(1, report2(report, 50))
	// Another period counts from when it is set.
	set(id, 1e6, 0)
	expect(1e6, report2(report, 50))
	set(id, 0, 0)
	expect(time.Hour)
	set(silent, 5e6, 0)
	expect(5e6, abi.Fields{Type: 23, Flags: abi.FlagFinal, Conn: silent})
	before := r.counter(abi.CounterStateRecords)
	// The dead report no more.
	set(id, 1e6, 0)
	ep.Reset()
	r.settle()
	set(silent, 0, 0)
	expect(time.Hour)
	r.wantCounter(abi.CounterStateRecords, before)
	// A clock that runs again wakes the worker by itself.
	set(silent, 1e6, 0)
	r.fw.SetPolicyClock(false)
	r.clock.advance(time.Millisecond)
	r.settle()
	if r.counter(abi.CounterStateRecords) == before {
		t.Error("no report by the running clock")
	}
}

func report2(f abi.Fields, acked uint64) abi.Fields {
	f.Base = acked
	return f
}

// TestReportState gathers periodic state of several connections in report
// buffers, and goes without where there is none.
func TestReportState(t *testing.T) {
	r := newRig(t, 5)
	r.fw.SetPolicyClock(true)
	tuples := abi.AppendSetScalar(abi.AppendSetScalar(nil, 0x025a, 1e6), 0x0259, 1) // REPORT_PERIOD, NOTIFY_REPORT
	b := r.reportBuffer(256, 0)
	f := r.control(abi.TypeConnect, 3, appendTarget(tuples, connectTarget()))
	r.post(b, f)
	r.settle()
	ep := r.fake.Last()
	ep.Establish()
	r.expect(reported(abi.TypeCompletion, b, 1))
	id := binary.LittleEndian.Uint64(r.bytes(b)[8:])
	r.attributeRequest(r.control(abi.TypeConnectionAttr, 1, abi.AppendSetScalar(nil, 0x025a, 1e6)))
	r.fw.StepPolicyClock(1)  // its reports come after the other's
	second, _ := r.connect() // without NOTIFY_REPORT
	ep.Deliver([]byte("ab"))

	short := func(id, received uint64) abi.Fields {
		return abi.Fields{Type: 23, Flags: abi.FlagFinal, Conn: id, Length: uint32(received)}
	}
	step := func(want ...abi.Fields) {
		t.Helper()
		r.fw.StepPolicyClock(1e6)
		for _, w := range want {
			r.expect(w)
		}
		if got := r.settle(); len(got) != 0 {
			t.Errorf("also %+v", got)
		}
	}
	step(short(id, 2), short(second, 0)) // no report buffer
	tight := r.reportBuffer(256+10, 10)
	bad := r.reportBuffer(256, 0)
	r.Chip.ReadOnly(bad.Base, 1)
	wide := r.reportBuffer(1024, 0)
	r.post(bad, tight, wide)
	r.settle()
	records := r.counter(abi.CounterReportRecords)
	fail := sendDone(bad, 39, 0)
	fail.Conn = 0
	step(fail, reported(23, tight, 4), short(second, 0))
	r.wantCounter(abi.CounterReportRecords, records+1)
	head, ok := abi.ParseReport(r.bytes(tight)[10:74])
	want := abi.Report{Type: 23, Flags: abi.FlagFinal, Conn: id, Protocol: 6, LocalPort: ep.Info().Local.Port(), Remote: peer, Uptime: 1e9}
	if !ok || head != want {
		t.Errorf("record %+v, want %+v", head, want)
	}
	if got := parseRecord(t, r.bytes(tight)[74:266]); got.Conn != id || got.Received != 2 || got.Delivered != 0 {
		t.Errorf("state %+v", got)
	}
	set := r.control(abi.TypeConnectionAttr, 1, abi.AppendSetScalar(nil, 0x0259, 1))
	set.Conn = second
	r.attributeRequest(set)
	step(reported(23, wide, 8)) // both in one
	if got := parseRecord(t, r.bytes(wide)[64+256:512]); got.Conn != second {
		t.Errorf("state %+v", got)
	}
}

// TestReportsWait fills the output table: reports wait with the responses that
// are held, bounded, and none is lost to a connection for good.
func TestReportsWait(t *testing.T) {
	r := newRig(t, 4)
	r.fw.SetPolicyClock(true)
	f := r.control(abi.TypeConnectionAttr, 1, abi.AppendSetScalar(nil, 0x025a, 1e6))
	r.attributeRequest(f)
	const conns = 60
	for range conns {
		r.connect()
	}
	if err := r.Wait("a full adapter", func() bool {
		r.fw.StepPolicyClock(1e6)
		return r.fw.QueueStatus(0).Held >= 4096
	}); err != nil {
		t.Fatal(err)
	}
	for range 100 {
		r.fw.StepPolicyClock(1e6)
	}
	if held := r.fw.QueueStatus(0).Held; held > 4096 {
		t.Errorf("%d responses are held", held)
	}
	n := 0
	if err := r.Wait("no more reports", func() bool {
		got := r.Pending()
		n += len(got)
		return len(got) == 0 && r.fw.QueueStatus(0).Held == 0
	}); err != nil {
		t.Fatal(err)
	}
	n += len(r.settle())
	if written := r.counter(abi.CounterStateRecords); uint64(n) != written {
		t.Errorf("%d reports came, %d were written", n, written)
	}
	r.fw.StepPolicyClock(1e6)
	if got := r.settle(); len(got) != conns {
		t.Errorf("after the table was full: %d reports", len(got))
	}
}
