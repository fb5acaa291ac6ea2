// SPDX-License-Identifier: Apache-2.0

package abi

import (
	"bytes"
	"encoding/binary"
	"net/netip"
	"testing"
)

func TestTupleBytes(t *testing.T) {
	var b []byte
	b = AppendSetScalar(b, AttrNagle, 0x0102)
	b = AppendGet(b, AttrMAC, 6)
	b = AppendTuple(b, true, AttrDomain, []byte("example.org"))
	b = AppendGet(b, AttrCounters, 0)
	want := []byte{
		0x09, 0x82, 0, 0, 8, 0, 0, 0, 0x02, 0x01, 0, 0, 0, 0, 0, 0, // set 0x0209
		0x00, 0x01, 0, 0, 6, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, // get 0x0100, room of 6, padded
		0x03, 0x81, 0, 0, 11, 0, 0, 0, 'e', 'x', 'a', 'm', 'p', 'l', 'e', '.', 'o', 'r', 'g', 0, 0, 0, 0, 0,
		0x09, 0x01, 0, 0, 0, 0, 0, 0,
	}
	if !bytes.Equal(b, want) {
		t.Fatalf("% x, want\n% x", b, want)
	}
	off := 0
	for i, c := range []struct {
		set   bool
		attr  Attribute
		at, n int
	}{{true, 0x209, 0, 8}, {false, 0x100, 16, 6}, {true, 0x103, 32, 11}, {false, 0x109, 56, 0}} {
		tuple, next, ok := NextTuple(b, off)
		if !ok || tuple.Set != c.set || tuple.Attr != c.attr || tuple.Offset != c.at || len(tuple.Value) != c.n || cap(tuple.Value) != c.n {
			t.Errorf("tuple %d: %+v, %v", i, tuple, ok)
		}
		off = next
	}
	if off != len(b) {
		t.Errorf("the walk ends at %d of %d", off, len(b))
	}
	PutTupleResult(b[16:], StatusShortBuffer, 0x01020304)
	if !bytes.Equal(b[16:24], []byte{0x00, 0x01, 51, 0, 4, 3, 2, 1}) {
		t.Errorf("result % x", b[16:24])
	}
	if s, n := TupleResult(b[16:]); s != 51 || n != 0x01020304 {
		t.Errorf("result %v %#x", s, n)
	}
}

// TestTupleHostile: what does not fit is no tuple.
func TestTupleHostile(t *testing.T) {
	for name, c := range map[string]struct {
		buf []byte
		off int
		ok  bool
	}{
		"nothing":               {nil, 0, false},
		"half a header":         {make([]byte, 7), 0, false},
		"header only":           {make([]byte, 8), 0, true},
		"value cut":             {[]byte{1, 0, 0, 0, 9, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8}, 0, false},
		"value without padding": {[]byte{1, 0, 0, 0, 3, 0, 0, 0, 1, 2, 3}, 0, true},
		"length 2^32-1":         {[]byte{1, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0, 0, 0, 0, 0}, 0, false},
		"length 2^32-8":         {[]byte{1, 0, 0, 0, 0xf8, 0xff, 0xff, 0xff, 0, 0, 0, 0, 0, 0, 0, 0}, 0, false},
		"length 2^31":           {[]byte{1, 0, 0, 0, 0, 0, 0, 0x80}, 0, false},
		"offset behind the end": {make([]byte, 16), 24, false},
		"offset at the end":     {make([]byte, 16), 16, false},
		"negative offset":       {make([]byte, 16), -8, false},
		"largest offset":        {make([]byte, 16), 1<<63 - 1, false},
	} {
		if _, _, ok := NextTuple(c.buf, c.off); ok != c.ok {
			t.Errorf("%s: %v", name, ok)
		}
	}
}

// FuzzNextTuple walks arbitrary buffers: the walk makes progress, stays inside
// the buffer, and what it finds is what the bytes say.
func FuzzNextTuple(f *testing.F) {
	f.Add(AppendGet(AppendSetScalar(nil, AttrTTL, 7), AttrRecord, 192))
	f.Add([]byte{1, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0})
	f.Add([]byte{1, 0, 0, 0, 3, 0, 0, 0, 1, 2, 3})
	f.Fuzz(func(t *testing.T, b []byte) {
		for off, n := 0, 0; ; n++ {
			tuple, next, ok := NextTuple(b, off)
			if !ok {
				break
			}
			if next <= off || next%8 != 0 || tuple.Offset != off || n > len(b)/8 {
				t.Fatalf("from %d to %d", off, next)
			}
			if end := off + 8 + len(tuple.Value); end > len(b) || end > next {
				t.Fatalf("value ends at %d of %d, the next tuple is at %d", end, len(b), next)
			}
			again := AppendTuple(nil, tuple.Set, tuple.Attr, tuple.Value)
			if again[0] != b[off] || again[1] != b[off+1] || binary.LittleEndian.Uint32(again[4:]) != uint32(len(tuple.Value)) || len(again) != next-off {
				t.Fatalf("% x became % x", b[off:], again)
			}
			off = next
		}
	})
}

func TestAddressBytes(t *testing.T) {
	v6 := netip.MustParseAddr("fd00:2::15")
	for name, c := range map[string]struct {
		address Address
		bytes   []byte
	}{
		"none": {Address{}, make([]byte, 24)},
		"IPv4": {Address{Addr: netip.MustParseAddr("10.0.2.15"), Prefix: 24, Port: 0x1f90}, []byte{
			4, 24, 0x90, 0x1f, 0, 0, 0, 0, 10, 0, 2, 15, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
		}},
		"IPv6": {Address{Addr: v6, Prefix: 128}, []byte{
			6, 128, 0, 0, 0, 0, 0, 0, 0xfd, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x15,
		}},
	} {
		if got := AppendAddress([]byte{9}, c.address); got[0] != 9 || !bytes.Equal(got[1:], c.bytes) {
			t.Errorf("%s: % x", name, got)
		}
		if got, ok := ParseAddress(c.bytes); !ok || got != c.address {
			t.Errorf("%s: %+v, %v", name, got, ok)
		}
	}
	// An IPv4 address in IPv6 clothes is IPv4.
	if got := AppendAddress(nil, Address{Addr: netip.MustParseAddr("::ffff:1.2.3.4")}); got[0] != 4 || !bytes.Equal(got[8:12], []byte{1, 2, 3, 4}) {
		t.Errorf("mapped: % x", got)
	}
	for name, change := range map[string]func(b []byte) []byte{
		"short":       func(b []byte) []byte { return b[:23] },
		"long":        func(b []byte) []byte { return append(b, 0) },
		"empty":       func(b []byte) []byte { return nil },
		"family":      func(b []byte) []byte { b[0] = 5; return b },
		"IPv4 prefix": func(b []byte) []byte { b[1] = 33; return b },
		"IPv6 prefix": func(b []byte) []byte { b[0], b[1] = 6, 129; return b },
		"reserved":    func(b []byte) []byte { b[7] = 1; return b },
		"IPv4-mapped": func(b []byte) []byte {
			b[0] = 6
			return append(b[:8], 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 10, 0, 2, 15)
		},
		"reserved, low byte": func(b []byte) []byte { b[4] = 1; return b },
	} {
		b := AppendAddress(nil, Address{Addr: netip.MustParseAddr("10.0.2.15"), Prefix: 24})
		if got, ok := ParseAddress(change(b)); ok {
			t.Errorf("%s: %+v", name, got)
		}
	}
}

// target is a TARGET in literal bytes (SPEC.md §6.2).
func target() []byte {
	return []byte{
		6, 4, 3, 0, // TCP, IPv4, three ports
		0x00, 0x00, 0x50, 0x00, // local port 0, remote port 80
		0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, // local address: any
		10, 0, 2, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, // remote address
		1, 2, 3, 4, 5, 6, 7, 8, // limit
		9, 0, 0, 0, // backlog
		0, 0, 0, 0,
		0x11, 0x12, 0x13, 0x14, 0x15, 0x16, 0x17, 0x18, // cookie
	}
}

func TestTargetBytes(t *testing.T) {
	any4 := netip.AddrPortFrom(netip.IPv4Unspecified(), 0)
	v6 := target()
	v6[0], v6[1] = 17, 6
	copy(v6[24:], netip.MustParseAddr("fd00:2::2").AsSlice())
	for name, c := range map[string]struct {
		target Target
		bytes  []byte
	}{
		"IPv4": {Target{
			Protocol: 6, Count: 3, Local: any4, Remote: netip.MustParseAddrPort("10.0.2.2:80"),
			Limit: 0x0807060504030201, Backlog: 9, Cookie: 0x1817161514131211,
		}, target()},
		"IPv6": {Target{
			Protocol: 17, Count: 3, Local: netip.AddrPortFrom(netip.IPv6Unspecified(), 0), Remote: netip.MustParseAddrPort("[fd00:2::2]:80"),
			V6: true, Limit: 0x0807060504030201, Backlog: 9, Cookie: 0x1817161514131211,
		}, v6},
	} {
		if got := AppendTarget(nil, c.target); !bytes.Equal(got, c.bytes) {
			t.Errorf("%s: % x, want\n% x", name, got, c.bytes)
		}
		if got, s := ParseTarget(c.bytes); s != 0 || got != c.target {
			t.Errorf("%s: %+v, %v", name, got, s)
		}
	}
	for name, c := range map[string]struct {
		change func(b []byte) []byte
		want   Status
	}{
		"as it is":             {func(b []byte) []byte { return b }, 0},
		"short":                {func(b []byte) []byte { return b[:63] }, 38},
		"long":                 {func(b []byte) []byte { return append(b, 0) }, 38},
		"empty":                {func(b []byte) []byte { return nil }, 38},
		"protocol":             {func(b []byte) []byte { b[0] = 1; return b }, 42},
		"family":               {func(b []byte) []byte { b[1] = 0; return b }, 9},
		"mapped local address": {func(b []byte) []byte { b[1], b[18], b[19] = 6, 0xff, 0xff; return b }, 9},
		"mapped remote address": {func(b []byte) []byte {
			b[1] = 6
			copy(b[24:], []byte{0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 10, 0, 2, 2})
			return b
		}, 9},
		"reserved":               {func(b []byte) []byte { b[55] = 1; return b }, 33},
		"count 0":                {func(b []byte) []byte { b[2] = 0; return b }, 52},
		"last remote port":       {func(b []byte) []byte { b[6], b[7] = 0xfd, 0xff; return b }, 0},
		"remote ports beyond":    {func(b []byte) []byte { b[6], b[7] = 0xfe, 0xff; return b }, 52},
		"local ports beyond":     {func(b []byte) []byte { b[6], b[4], b[5] = 0, 0xfe, 0xff; return b }, 52},
		"last local port":        {func(b []byte) []byte { b[6], b[4], b[5] = 0, 0xfd, 0xff; return b }, 0},
		"local port of connects": {func(b []byte) []byte { b[4], b[5] = 0xff, 0xff; return b }, 0},
	} {
		if _, got := ParseTarget(c.change(target())); got != c.want {
			t.Errorf("%s: %v, want %v", name, got, c.want)
		}
	}
}

func TestPairBytes(t *testing.T) {
	want := []byte{1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 0, 0, 0, 0}
	if got := AppendTerminate(nil, 0x0807060504030201, 0x0c0b0a09); !bytes.Equal(got, want) {
		t.Errorf("TERMINATE % x", got)
	}
	if got := AppendCancel(nil, 0x0807060504030201, 0x0c0b0a09); !bytes.Equal(got, want) {
		t.Errorf("CANCEL % x", got)
	}
	if id, v, s := ParsePair(want); id != 0x0807060504030201 || v != 0x0c0b0a09 || s != 0 {
		t.Errorf("%#x %#x %v", id, v, s)
	}
	for _, n := range []int{0, 15, 17} {
		if _, _, s := ParsePair(make([]byte, n)); s != 38 {
			t.Errorf("%d bytes: %v", n, s)
		}
	}
	want[15] = 1
	if _, _, s := ParsePair(want); s != 33 {
		t.Errorf("reserved: %v", s)
	}
}

func TestReportBytes(t *testing.T) {
	r := Report{
		Tag: 0x04030201, Status: 4, Type: TypeCompletion, Flags: FlagFinal, Conn: 0x1817161514131211, Cookie: 0x2827262524232221,
		Ordinal: 0x34333231, Protocol: 6, LocalPort: 0x4241, Remote: netip.AddrPortFrom(netip.MustParseAddr("10.0.2.2"), 0x5251),
		Uptime: 0x6867666564636261,
	}
	want := []byte{
		0x01, 0x02, 0x03, 0x04, 4, 0, 19, 1,
		0x11, 0x12, 0x13, 0x14, 0x15, 0x16, 0x17, 0x18,
		0x21, 0x22, 0x23, 0x24, 0x25, 0x26, 0x27, 0x28,
		0x31, 0x32, 0x33, 0x34, 4, 6, 0x41, 0x42,
		0x51, 0x52, 0, 0, 0, 0, 0, 0,
		10, 0, 2, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
		0x61, 0x62, 0x63, 0x64, 0x65, 0x66, 0x67, 0x68,
	}
	if got := AppendReport(nil, r); !bytes.Equal(got, want) {
		t.Errorf("% x, want\n% x", got, want)
	}
	if got, ok := ParseReport(want); !ok || got != r {
		t.Errorf("%+v, %v", got, ok)
	}
	want[28] = 7
	if _, ok := ParseReport(want); ok {
		t.Error("family 7")
	}
	want[28] = 0 // no address
	if got, ok := ParseReport(want); !ok || got.Remote.Addr().IsValid() {
		t.Errorf("family 0: %+v, %v", got, ok)
	}
	for _, n := range []int{0, 63, 65} {
		if _, ok := ParseReport(make([]byte, n)); ok {
			t.Errorf("%d bytes", n)
		}
	}
}

// FuzzRecords parses arbitrary bytes as each record; what is accepted encodes
// to something that is accepted and means the same.
func FuzzRecords(f *testing.F) {
	f.Add(target())
	f.Add(AppendAddress(nil, Address{Addr: netip.MustParseAddr("::1"), Prefix: 128}))
	f.Add(AppendTerminate(nil, 1, 2))
	f.Fuzz(func(t *testing.T, b []byte) {
		if a, ok := ParseAddress(b); ok {
			if again, ok := ParseAddress(AppendAddress(nil, a)); !ok || again != a {
				t.Errorf("%+v became %+v", a, again)
			}
		}
		if a, s := ParseTarget(b); s == StatusOK {
			if again, s := ParseTarget(AppendTarget(nil, a)); s != StatusOK || again != a {
				t.Errorf("%+v became %+v, %v", a, again, s)
			}
		}
		if id, v, s := ParsePair(b); s == StatusOK && !bytes.Equal(AppendTerminate(nil, id, v), b) {
			t.Errorf("% x became %#x %#x", b, id, v)
		}
		if a, ok := ParseReport(b); ok {
			if again, ok := ParseReport(AppendReport(nil, a)); !ok || again != a {
				t.Errorf("%+v became %+v", a, again)
			}
		}
	})
}
