// SPDX-License-Identifier: Apache-2.0

package abi

import (
	"bytes"
	"reflect"
	"testing"
)

func TestCheckerRulesAreSPEC(t *testing.T) {
	numbers, cells := table(t, "## 15. Protocol checker")
	compare(t, "Check", numbers, column(cells, 0), nil, "erHeaderSize", "erEntrySize", "erKept", "erTagEvents")
	for i, n := range numbers {
		if got := CheckerRule(n).String(); got != cells[i][0] {
			t.Errorf("rule %d is called %s, SPEC.md says %s", n, got, cells[i][0])
		}
	}
	for _, n := range []CheckerRule{0, 12, 65535} {
		if got := n.String(); got != "rule "+itoa(int(n)) {
			t.Errorf("rule %d is called %s", uint16(n), got)
		}
	}
}

// TestCheckerReport: the literal bytes of SPEC.md §15, both ways.
func TestCheckerReport(t *testing.T) {
	raw := []byte{
		5, 0, 0, 0, // violations since reset
		1, 0, 0, 0, // entries that follow
		9, 0, 0, 0, 0, 0, 0, 1, // things looked at
		7, 0, 31, 1, // BELL_INDEX, queue 31, input table
		0xff, 0xff, 0xff, 0x3f, // index
		0, 0x10, 0, 0, 0x40, 0, 0, 0, // address
		0x51, 0, 0, 0, // tag
		0x20, 0, 0, 0, // detail
		1, 2, 3, 4, 5, 6, 7, 8, // uptime
	}
	raw = append(raw, bytes.Repeat([]byte{0xaa}, 32)...) // as the adapter knew it
	raw = append(raw, bytes.Repeat([]byte{0xbb}, 32)...) // as it was found
	raw = append(raw,
		2, 8, 0, 0, 7, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, // taken, type 8, index 7
		4, 24, 1, 0, 3, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, // terminal, type 24, PARTIAL, length 3
	)
	raw = append(raw, make([]byte, 32)...)
	want := CheckerReport{Violations: 5, Looked: 0x0100_0000_0000_0009, Entries: []CheckerEntry{{
		Rule: 7, Queue: 31, Place: 1, Index: 0x3fffffff, Address: 0x40_0000_1000, Tag: 0x51, Detail: 0x20,
		Uptime:     0x0807060504030201,
		Descriptor: [32]byte(bytes.Repeat([]byte{0xaa}, 32)), Found: [32]byte(bytes.Repeat([]byte{0xbb}, 32)),
		Events: [4]TagEvent{{Kind: 2, Type: 8, Value: 7, Uptime: 1}, {Kind: 4, Type: 24, Status: 1, Value: 3, Uptime: 2}},
	}}}
	if got, ok := ParseCheckerReport(raw); !ok || !reflect.DeepEqual(got, want) {
		t.Errorf("parsed %+v, %v\n  want %+v", got, ok, want)
	}
	if got := AppendCheckerReport(nil, &want); !bytes.Equal(got, raw) {
		t.Errorf("bytes %x\n want %x", got, raw)
	}
	for _, bad := range [][]byte{nil, raw[:15], raw[:16], raw[:len(raw)-1], append(bytes.Clone(raw), 0),
		append([]byte{0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff}, make([]byte, 8)...)} {
		if _, ok := ParseCheckerReport(bad); ok {
			t.Errorf("%d bytes were parsed", len(bad))
		}
	}
	const text = "BELL_INDEX: queue 31, input table, index 0x3fffffff, address 0x4000001000, tag 0x51, detail 0x20, descriptor " +
		"aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa, found " +
		"bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb, type 8 taken at 1 ns, index 7, " +
		"answered by type 24 at 2 ns, status 1, length 3"
	if got := want.Entries[0].String(); got != text {
		t.Errorf("text %q\nwant %q", got, text)
	}
	if got := (&CheckerEntry{Place: 200}).String(); got != "rule 0: queue 0, control buffer, index 0x0, address 0x0, tag 0x0, detail 0x0" {
		t.Errorf("text %q", got)
	}
}
