// SPDX-License-Identifier: Apache-2.0

package firmware_test

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"net/netip"
	"strings"
	"testing"

	"toebox/vdev/abi"
)

// reportBuffer is a buffer for records, of which the first offset bytes are the
// host's.
func (r *rig) reportBuffer(n, offset int) abi.Fields {
	f := r.buffer(abi.TypeBufferAvailable, 0, n)
	f.Flags, f.Offset = abi.FlagReport, uint32(offset)
	for i, b := 0, r.bytes(f); i < n; i++ {
		b[i] = 0xee
	}
	return f
}

// reported is the response that gives a report buffer back with n records.
func reported(typ abi.Type, f abi.Fields, n int) abi.Fields {
	return abi.Fields{
		Type: typ, Flags: abi.FlagFinal | abi.FlagReport, Tag: f.Tag, Base: f.Base, Length: uint32(64 * n), Offset: f.Offset,
	}
}

func unhex(t *testing.T, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(strings.Join(strings.Fields(s), ""))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// gatherAll is a tuple that lets notices wait for a count.
func gatherAll(count uint64) []byte { return abi.AppendSetScalar(nil, abi.AttrNotifyCount, count) }

// TestReportRecord compares records of a completion, a failure, a target that
// names nothing, and an arrival with their bytes.
func TestReportRecord(t *testing.T) {
	r := newRig(t, 5)
	tuples := gatherAll(3)
	x := connectTarget()
	x.Count = 2
	tuples = appendTarget(tuples, x)
	tuples = abi.AppendTuple(tuples, true, abi.AttrTarget, make([]byte, 63))
	buf := r.reportBuffer(512, 8)
	f := r.control(abi.TypeConnect, 3, tuples)
	f.Flags = abi.FlagReport
	r.post(buf, f)
	r.settle() // the bad target waits, the others are under way
	eps := r.fake.Endpoints()
	eps[1].Refuse()
	r.settle()
	eps[0].Establish()
	r.expect(reported(abi.TypeCompletion, buf, 3))
	id := hex.EncodeToString(binary.LittleEndian.AppendUint64(nil, 7<<48|1))
	tag := hex.EncodeToString(binary.LittleEndian.AppendUint32(nil, f.Tag))
	want := unhex(t, strings.Repeat("ee", 8)+ // the host's
		tag+` 2600 13 00  0000000000000000  0000000000000000  02000000  00 00 0000 0000 000000000000  00000000000000000000000000000000  00ca9a3b00000000
		`+tag+`0400 13 00  0000000000000000  1e0cc00000000000  01000000  04 06 0000 5100 000000000000  0a000202000000000000000000000000  00ca9a3b00000000
		`+tag+`0000 13 01  `+id+` 1e0cc00000000000  00000000  04 06 00c0 5000 000000000000  0a000202000000000000000000000000  00ca9a3b00000000`)
	if got := r.bytes(buf)[:200]; !bytes.Equal(got, want) {
		t.Errorf("records\n% x\nwant\n% x", got, want)
	}
	if b := r.bytes(buf)[200:]; len(bytes.Trim(b, "\xee")) != 0 {
		t.Error("bytes behind the records were written")
	}
	r.wantCounter(abi.CounterReports, 1)
	r.wantCounter(abi.CounterReportRecords, 3)
	r.wantCounter(abi.CounterReportsWaiting, 0)
	r.wantCounter(abi.CounterRequestsRejected, 0)
	r.wantCounter(abi.CounterMemoryUsed, 8192)

	// An arrival, at once.
	buf = r.reportBuffer(256, 0)
	tuples = abi.AppendSetScalar(nil, abi.AttrNotifyReport, 1)
	l := r.control(abi.TypeListen, 2, appendTarget(tuples, listenTarget()))
	r.post(buf, l)
	listener := r.next()
	r.fake.Last().Arrive(netip.MustParseAddrPort("10.0.2.2:4369"))
	r.expect(reported(abi.TypeArrival, buf, 1))
	id = hex.EncodeToString(binary.LittleEndian.AppendUint64(nil, 7<<48|3))
	from := hex.EncodeToString(binary.LittleEndian.AppendUint64(nil, listener.Conn))
	want = unhex(t, `00000000 0000 12 01 `+id+from+` 00000000  04 06 5000 1111 000000000000 0a000202000000000000000000000000  00ca9a3b00000000`)
	if got := r.bytes(buf)[:64]; !bytes.Equal(got, want) {
		t.Errorf("record\n% x\nwant\n% x", got, want)
	}
}

func listenTarget() abi.Target {
	return abi.Target{Protocol: 6, Count: 1, Local: netip.MustParseAddrPort("0.0.0.0:80"), Remote: netip.MustParseAddrPort("0.0.0.0:0"), Cookie: 0x11}
}

// TestReportBuffers fills several buffers, goes round one that cannot be
// written, and lets records wait for one.
func TestReportBuffers(t *testing.T) {
	r := newRig(t, 6)
	bad := r.reportBuffer(4096, 0)
	r.Chip.ReadOnly(bad.Base, 4096)
	small, large := r.reportBuffer(64*4+63, 0), r.reportBuffer(64*200, 0)
	x := connectTarget()
	x.Count = 150
	f := r.control(abi.TypeConnect, 2, appendTarget(gatherAll(150), x))
	f.Flags = abi.FlagReport
	r.post(bad, small, f)
	// They are started in turns.
	if err := r.Wait("connects", func() bool { return r.counter(abi.CounterConnects) == 150 }); err != nil {
		t.Fatal(err)
	}
	r.settle()
	for _, e := range r.fake.Endpoints() {
		e.Establish()
	}
	r.expect(abi.Fields{Type: abi.TypeBufferDone, Flags: abi.FlagFinal, Aux: 39, Tag: bad.Tag, Base: bad.Base})
	r.expect(reported(abi.TypeCompletion, small, 4))
	r.settle()
	r.wantCounter(abi.CounterReportsWaiting, 146)
	r.wantCounter(abi.CounterMemoryUsed, 150*8192+64+88+146*256)
	r.post(large)
	r.expect(reported(abi.TypeCompletion, large, 146))
	seen := map[uint32]bool{}
	records := append(append([]byte(nil), r.bytes(small)[:256]...), r.bytes(large)[:146*64]...)
	for i := range 150 {
		b := records[64*i:]
		if n := binary.LittleEndian.Uint32(b[24:]); b[6] != 19 || (b[7] == 1) != (i == 149) || n >= 150 || seen[n] {
			t.Fatalf("record %d: % x", i, b[:64])
		} else {
			seen[n] = true
		}
	}
	r.wantCounter(abi.CounterReports, 2)
	r.wantCounter(abi.CounterReportRecords, 150)
	r.wantCounter(abi.CounterMemoryUsed, 150*8192)
	if r.bytes(small)[256] != 0xee {
		t.Error("a record was split")
	}
}

// TestReportBufferEnds cancels report buffers and drains them.
func TestReportBufferEnds(t *testing.T) {
	r := newRig(t, 5)
	a, b := r.reportBuffer(256, 0), r.reportBuffer(300, 8)
	cancel := abi.Fields{Type: abi.TypeCancellation, Tag: r.Tag(), Offset: a.Tag}
	r.post(a, b, cancel)
	r.expect(abi.Fields{Type: abi.TypeBufferDone, Flags: abi.FlagFinal, Aux: 2, Tag: a.Tag, Base: a.Base})
	r.expect(abi.Fields{Type: abi.TypeCancelled, Flags: abi.FlagFinal, Tag: cancel.Tag})
	r.fw.Command(0, abi.QueueDrain, r.Config)
	r.expect(abi.Fields{Type: abi.TypeBufferDone, Flags: abi.FlagFinal, Aux: 2, Tag: b.Tag, Base: b.Base, Offset: 8})
	if err := r.State(abi.QueueDrained); err != nil {
		t.Fatal(err)
	}
	r.wantCounter(abi.CounterBuffersPosted, 2)
	r.wantCounter(abi.CounterBuffersReturned, 2)
}

// TestListenReports puts the results of a listen request into a report buffer.
func TestListenReports(t *testing.T) {
	r := newRig(t, 5)
	buf := r.reportBuffer(512, 0)
	x := listenTarget()
	x.Count = 3
	f := r.control(abi.TypeListen, 1, appendTarget(nil, x))
	f.Flags = abi.FlagReport
	r.post(buf, f)
	r.expect(reported(abi.TypeListenResponse, buf, 3))
	for i := range 3 {
		b := r.bytes(buf)[64*i:]
		if b[6] != 20 || (b[7] == 1) != (i == 2) || b[24] != byte(i) || b[30] != byte(80+i) || binary.LittleEndian.Uint64(b[8:]) != uint64(7<<48|i+1) {
			t.Errorf("record %d: % x", i, b[:64])
		}
	}
}

// TestCheckerReports: report buffers that the host writes after it has posted
// them, and that are in the memory of others (SPEC.md §15, rules 9 and 11).
func TestCheckerReports(t *testing.T) {
	k := newChecked(t, 6)
	l := k.control(abi.TypeListen, 2, appendTarget(abi.AppendSetScalar(nil, abi.AttrNotifyReport, 1), listenTarget()))
	k.post(l)
	k.next()
	listener, from := k.fake.Last(), netip.MustParseAddrPort("10.0.2.2:4369")

	good, bad := k.reportBuffer(512, 8), k.reportBuffer(512, 8)
	k.post(good, bad)
	k.settle()
	k.bytes(bad)[7]++ // before offset: the host's
	listener.Arrive(from)
	k.expect(reported(abi.TypeArrival, good, 1))
	k.clean("a report buffer that is left alone")
	k.bytes(bad)[511]++
	listener.Arrive(from)
	k.expect(reported(abi.TypeArrival, bad, 1))
	v := k.found(abi.CheckerEntry{Rule: 9, Place: 3, Address: bad.Base + 8, Tag: bad.Tag})
	if d := abi.Descriptor(v.Descriptor[:]).Decode(); d.Flags != abi.FlagReport || d.Base != bad.Base || d.Length != 512 {
		t.Errorf("descriptor %+v", d)
	}

	report := k.reportBuffer(512, 64)
	inside := abi.Fields{Type: abi.TypeBufferAvailable, Tag: k.Tag(), Base: report.Base + 511, Length: 10}
	behind := abi.Fields{Type: abi.TypeBufferAvailable, Tag: k.Tag(), Base: report.Base + 512, Length: 10}
	before := abi.Fields{Type: abi.TypeBufferAvailable, Tag: k.Tag(), Base: report.Base, Length: 64}
	k.post(report, behind, before)
	k.clean("buffers beside a report buffer")
	k.post(inside)
	k.settle()
	v = k.found(abi.CheckerEntry{Rule: 11, Place: 3, Address: report.Base + 511, Tag: inside.Tag, Detail: report.Tag})
	if d := abi.Descriptor(v.Found[:]).Decode(); d.Flags != abi.FlagReport || d.Base != report.Base || d.Offset != 64 {
		t.Errorf("the other buffer %+v", d)
	}
	second := report
	second.Tag, second.Base, second.Length, second.Offset = k.Tag(), report.Base-193, 256, 0
	k.post(second)
	k.settle()
	k.found(abi.CheckerEntry{Rule: 11, Place: 3, Address: report.Base, Tag: second.Tag, Detail: before.Tag})
}
