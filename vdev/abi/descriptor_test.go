// SPDX-License-Identifier: Apache-2.0

package abi

import (
	"bytes"
	"testing"
)

// descriptors are fields with their bytes (SPEC.md §5).
func descriptors() []struct {
	name   string
	fields Fields
	host   bool
	bytes  []byte
} {
	return []struct {
		name   string
		fields Fields
		host   bool
		bytes  []byte
	}{
		{"send", Fields{
			Type: TypeBufferSend, ASAP: true, Modify: true, Flags: FlagFragment | FlagGroup, Aux: 0x0201, Tag: 0x04030201,
			Base: 0x0807060504030201, Conn: 0x1817161514131211, Length: 0x24232221, Offset: 0x34333231,
		}, true, []byte{
			0x80 | 1<<2 | 2 | 1, // owner, type, ASAP, modify
			0x0c,                // fragment, group
			0x01, 0x02,          // piece: id 2, sequence 1
			0x01, 0x02, 0x03, 0x04, // tag
			0x01, 0x02, 0x03, 0x04, 0x05, 0x06, 0x07, 0x08, // base
			0x11, 0x12, 0x13, 0x14, 0x15, 0x16, 0x17, 0x18, // connection
			0x21, 0x22, 0x23, 0x24, // length
			0x31, 0x32, 0x33, 0x34, // offset
		}},
		{"rejected", Fields{Type: TypeRejected, Flags: FlagFinal, Aux: 32, Tag: 9}, false, []byte{
			31 << 2, 1, 32, 0, 9, 0, 0, 0,
			0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
		}},
		{"free slot of the output table", Fields{}, true, append([]byte{0x80}, make([]byte, 31)...)},
		{"all ones", Fields{
			Type: 31, ASAP: true, Modify: true, Flags: 0xff, Aux: 0xffff, Tag: 0xffffffff,
			Base: 1<<64 - 1, Conn: 1<<64 - 1, Length: 0xffffffff, Offset: 0xffffffff,
		}, true, bytes.Repeat([]byte{0xff}, 32)},
	}
}

func TestDescriptorBytes(t *testing.T) {
	for _, c := range descriptors() {
		t.Run(c.name, func(t *testing.T) {
			d := Descriptor(bytes.Repeat([]byte{0x5a}, 32))
			d.Encode(&c.fields, c.host)
			if !bytes.Equal(d, c.bytes) {
				t.Errorf("encoded\n% x, want\n% x", []byte(d), c.bytes)
			}
			d = Descriptor(c.bytes)
			if got := d.Decode(); got != c.fields || d.HostOwned() != c.host {
				t.Errorf("decoded %+v, host %v, want %+v", got, d.HostOwned(), c.fields)
			}
			if d.Status() != Status(c.fields.Aux) || d.Tuples() != c.fields.Aux || d.Piece() != c.fields.Aux {
				t.Errorf("bytes 2-3: %d %d %d", d.Status(), d.Tuples(), d.Piece())
			}
			if d.Word() != c.fields.Word(c.host) {
				t.Errorf("word 0 %#x, want %#x", d.Word(), c.fields.Word(c.host))
			}
			body := make(Descriptor, 32)
			body.EncodeBody(&c.fields)
			if !bytes.Equal(body[:4], make([]byte, 4)) || !bytes.Equal(body[4:], c.bytes[4:]) {
				t.Errorf("body % x", []byte(body))
			}
		})
	}
	wide := Fields{Type: 32 + 3}
	if got := wide.Word(false); got != 3<<2 {
		t.Errorf("a type of more than 5 bits spills: %#x", got)
	}
}

func TestSharedWord(t *testing.T) {
	b := make([]byte, 64) // an allocation of this size is aligned
	StoreWord(b[4:], 0x80030201)
	if want := []byte{0, 0, 0, 0, 1, 2, 3, 0x80, 0, 0, 0, 0}; !bytes.Equal(b[:12], want) {
		t.Errorf("% x", b)
	}
	if got := LoadWord(b[4:]); got != 0x80030201 {
		t.Errorf("%#x", got)
	}
	for name, bad := range map[string][]byte{"short": b[4:7:7], "empty": nil, "not aligned": b[1:]} {
		func() {
			defer func() {
				if recover() == nil {
					t.Errorf("a %s word did not panic", name)
				}
			}()
			LoadWord(bad)
		}()
	}
}

func TestIndex(t *testing.T) {
	const top = Index(1<<30 - 1)
	if top.Add(1) != 0 || Index(0).Add(-1) != top || top.Add(5) != 4 || Index(4).Add(1<<30) != 4 {
		t.Error("indexes do not wrap at 2^30")
	}
	if Index(2).Sub(top) != 3 || top.Sub(2) != 1<<30-3 || Index(7).Sub(7) != 0 {
		t.Error("differences do not wrap at 2^30")
	}
	if top.Slot(4) != 15 || Index(16).Slot(4) != 0 || Index(65537).Slot(16) != 1 {
		t.Error("slots")
	}
}

// TestEventWants compares the formula of SPEC.md §4.4 with its meaning: the
// slot asked for is among those just done.
func TestEventWants(t *testing.T) {
	if EventAt(5) != 0x40000005 || EventAt(Index(0xffffffff)) != 0x7fffffff {
		t.Errorf("EventAt: %#x %#x", EventAt(5), EventAt(Index(0xffffffff)))
	}
	for start := -4; start < 4; start++ {
		before := Index(0).Add(start)
		for n := range 5 {
			after := before.Add(n)
			for k := -6; k < 6; k++ {
				asked := before.Add(k)
				if got, want := EventAt(asked).Wants(before, after), k >= 0 && k < n; got != want {
					t.Errorf("from %#x to %#x, asked for %#x: %v", before, after, asked, got)
				}
				if EventWord(uint32(asked)).Wants(before, after) {
					t.Error("mode 0 wants")
				}
				for _, mode := range []EventWord{2 << 30, 3 << 30} {
					if got := (mode | EventWord(asked)).Wants(before, after); got != (n > 0) {
						t.Errorf("mode %d over %d slots: %v", mode>>30, n, got)
					}
				}
			}
		}
	}
}
