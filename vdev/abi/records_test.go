// SPDX-License-Identifier: Apache-2.0

package abi

import (
	"bytes"
	"net/netip"
	"reflect"
	"testing"
)

// Values of SPEC.md §7 and §7.1, byte by byte.

func stateRecordBytes() []byte {
	return bytes.Join([][]byte{
		{7, 0, 0, 0, 0, 0, 2, 0}, // 0 connection id
		{4, 0, 80, 0, 0, 0, 0, 0, 10, 0, 2, 15, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0},       // 8 local 10.0.2.15:80
		{6, 0, 0x90, 0x1f, 0, 0, 0, 0, 0xfd, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2}, // 32 remote [fd00:2::2]:8080
		{4, 0, 0, 0}, {6, 0, 0, 0}, // 56 established, 60 TCP
		{1, 1, 0, 0, 0, 0, 0, 0},      // 64 accepted
		{0, 1, 0, 0, 0, 0, 0, 0},      // 72 sent
		{0xff, 0, 0, 0, 0, 0, 0, 0},   // 80 acknowledged
		{3, 0, 0, 0, 0, 0, 0, 0},      // 88 received
		{2, 0, 0, 0, 0, 0, 0, 0},      // 96 delivered
		{0xb4, 5, 0, 0}, {5, 0, 0, 0}, // 104 MSS 1460, 108 SACK and scaling
		{0, 0, 1, 0}, {0, 0, 8, 0}, // 112 send window, 116 receive window
		{0x40, 0x42, 0xf, 0, 0, 0, 0, 0},          // 120 RTT 1 ms
		{0, 0xc2, 0xeb, 0xb, 0, 0, 0, 0},          // 128 RTO 200 ms
		{9, 0, 0, 0, 0, 0, 0, 0},                  // 136 retransmission and persist timers
		{0x78, 0x56, 0x34, 0x12}, {1, 0, 0, 0x80}, // 144, 148 sequence numbers
		{7, 8, 0, 0, 0, 0, 0, 0},               // 152, 153 scales
		{0, 0xca, 0x9a, 0x3b, 0, 0, 0, 0},      // 160 uptime 1 s
		{0x0d, 0x0c, 0x0b, 0x0a}, {4, 3, 2, 1}, // 168, 172 time stamps
		{1, 0, 0, 0}, {0, 0, 1, 0}, // 176 exact, 180 unread
		make([]byte, 8),
	}, nil)
}

func TestStateRecord(t *testing.T) {
	want := stateRecordBytes()
	r := StateRecord{
		Conn:  2<<48 | 7,
		Local: Address{Addr: netip.MustParseAddr("10.0.2.15"), Port: 80}, Remote: Address{Addr: netip.MustParseAddr("fd00:2::2"), Port: 8080},
		State: 4, Protocol: 6, Accepted: 257, Sent: 256, Acked: 255, Received: 3, Delivered: 2,
		MSS: 1460, Options: RecordSACK | RecordScaling, SendWindow: 65536, ReceiveWindow: 524288,
		RTT: 1_000_000, RTO: 200_000_000, Timers: TimerRetransmit | TimerPersist,
		SendSequence: 0x12345678, ReceiveSequence: 0x80000001, SendScale: 7, ReceiveScale: 8, Uptime: 1_000_000_000,
		Time: 0x0a0b0c0d, RecentTime: 0x01020304, Flags: RecordExact, Unread: 65536,
	}
	if got := AppendStateRecord([]byte{1, 2, 3}, &r); !bytes.Equal(got[3:], want) {
		t.Errorf("encoded\n% x, want\n% x", got[3:], want)
	}
	if got, ok := ParseStateRecord(want); !ok || got != r {
		t.Errorf("parsed %+v %v, want %+v", got, ok, r)
	}
	for n := range len(want) {
		if _, ok := ParseStateRecord(want[:n]); ok {
			t.Errorf("a record of %d bytes was taken", n)
		}
	}
	for _, at := range []int{8, 32} { // an unknown family
		bad := bytes.Clone(want)
		bad[at] = 5
		if _, ok := ParseStateRecord(bad); ok {
			t.Errorf("a record with family 5 at %d was taken", at)
		}
	}
}

func TestHeldBuffer(t *testing.T) {
	want := []byte{1, 0, 0, 0x80 /* tag */, 0, 0x10, 0, 0 /* length */, 8, 7, 6, 5, 4, 3, 2, 1 /* base */}
	h := HeldBuffer{Tag: 0x80000001, Length: 4096, Base: 0x0102030405060708}
	if got := AppendHeldBuffer(nil, h); !bytes.Equal(got, want) {
		t.Errorf("encoded % x, want % x", got, want)
	}
	if got, ok := ParseHeldBuffer(want); !ok || got != h {
		t.Errorf("parsed %+v %v", got, ok)
	}
	if _, ok := ParseHeldBuffer(want[:15]); ok {
		t.Error("15 bytes were taken")
	}
}

func TestBufferTable(t *testing.T) {
	want := []byte{0, 0, 0, 0, 1, 0, 0, 0 /* base */, 3, 0, 0, 0, 0, 0, 0, 0 /* entries */}
	table := BufferTable{Base: 1 << 32, Entries: 3}
	if got := AppendBufferTable(nil, table); !bytes.Equal(got, want) {
		t.Errorf("encoded % x, want % x", got, want)
	}
	if got, ok := ParseBufferTable(want); !ok || got != table {
		t.Errorf("parsed %+v %v", got, ok)
	}
	if _, ok := ParseBufferTable(append(want, 0)); ok {
		t.Error("17 bytes were taken")
	}
	var entry []byte
	for i := range byte(6) { // base, length, speed, node, group, flags
		entry = append(entry, i+1, 0, 0, 0, 0, 0, 0, 0)
	}
	e := BufferEntry{Base: 1, Length: 2, Speed: 3, Node: 4, Group: 5, Flags: 6}
	if got := AppendBufferEntry(nil, e); !bytes.Equal(got, entry) {
		t.Errorf("encoded % x, want % x", got, entry)
	}
	if got, ok := ParseBufferEntry(entry); !ok || got != e {
		t.Errorf("parsed %+v %v", got, ok)
	}
	if _, ok := ParseBufferEntry(entry[:47]); ok {
		t.Error("47 bytes were taken")
	}
}

func TestNotifyPattern(t *testing.T) {
	want := []byte{1 /* at the start */, 1 /* all */, 4, 0, 0, 2, 0, 0 /* bytes */, 0, 0xca, 0x9a, 0x3b, 0, 0, 0, 0 /* 1 s */, 'G', 'E', 'T', ' '}
	p := NotifyPattern{Mode: 1, Scope: 1, Bytes: 512, Time: 1_000_000_000, Pattern: []byte("GET ")}
	if got := AppendNotifyPattern(nil, p); !bytes.Equal(got, want) {
		t.Errorf("encoded % x, want % x", got, want)
	}
	if got, s := ParseNotifyPattern(want); s != 0 || !reflect.DeepEqual(got, p) {
		t.Errorf("parsed %+v %v", got, s)
	}
	for name, c := range map[string]struct {
		change func(b []byte) []byte
		want   Status // SPEC.md §8: 38 BAD_LENGTH, 52 BAD_VALUE
	}{
		"short":      {func(b []byte) []byte { return b[:15] }, 38},
		"cut":        {func(b []byte) []byte { return b[:19] }, 38},
		"longer":     {func(b []byte) []byte { return append(b, 0) }, 38},
		"too long":   {func(b []byte) []byte { b[2] = 65; return append(b[:16], make([]byte, 65)...) }, 38},
		"mode":       {func(b []byte) []byte { b[0] = 3; return b }, 52},
		"scope":      {func(b []byte) []byte { b[1] = 2; return b }, 52},
		"no pattern": {func(b []byte) []byte { b[2] = 0; return b[:16] }, 52},
	} {
		if _, s := ParseNotifyPattern(c.change(bytes.Clone(want))); s != c.want {
			t.Errorf("%s: %v, want %v", name, s, c.want)
		}
	}
}
