// SPDX-License-Identifier: Apache-2.0

package guestdriver_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"net/netip"
	"testing"

	"toebox/guestdriver"
	"toebox/vdev/abi"
)

// TestReadReport reads a record and a state record, and what does not fit.
func TestReadReport(t *testing.T) {
	m := guestdriver.DMA{IOVA: 0x4000, Bytes: make([]byte, 512)}
	b := m.Bytes[8:]
	copy(b, []byte{
		7, 0, 0, 0, 4, 0, 19, 1, // tag 7, REFUSED, completion, FINAL
		0, 0, 0, 0, 0, 0, 0, 0, 9, 0, 0, 0, 0, 0, 0, 0, // no connection, cookie 9
		2, 0, 0, 0, 4, 6, 0, 0, 80, 0, // ordinal 2, IPv4, TCP, remote port 80
	})
	copy(b[40:], []byte{10, 0, 2, 2})
	b[64+6] = 23
	b[64+8] = 5
	binary.LittleEndian.PutUint64(b[128:], 5)
	binary.LittleEndian.PutUint64(b[128+80:], 1234) // acknowledged
	good := abi.Fields{Type: abi.TypeCompletion, Flags: abi.FlagFinal | abi.FlagReport, Base: 0x4000, Offset: 8, Length: 320}
	list, err := guestdriver.ReadReport(good, m)
	if err != nil || len(list) != 2 {
		t.Fatal(list, err)
	}
	if r := list[0]; r.Tag != 7 || r.Status != abi.StatusRefused || r.Cookie != 9 || r.Ordinal != 2 || r.State != nil ||
		r.Remote != netip.MustParseAddrPort("10.0.2.2:80") {
		t.Errorf("record %+v", r)
	}
	if r := list[1]; r.Conn != 5 || r.State == nil || r.State.Conn != 5 || r.State.Acked != 1234 {
		t.Errorf("record %+v", r)
	}
	for name, change := range map[string]func(*abi.Fields){
		"no report":      func(f *abi.Fields) { f.Flags = abi.FlagFinal },
		"another buffer": func(f *abi.Fields) { f.Base++ },
		"beyond the end": func(f *abi.Fields) { f.Offset = 193 },
		"huge":           func(f *abi.Fields) { f.Offset, f.Length = 1<<32-1, 1<<32-1 },
		"half a record":  func(f *abi.Fields) { f.Length = 63 },
		"half a state":   func(f *abi.Fields) { f.Length = 319 },
		"unknown family": func(f *abi.Fields) { f.Offset = 12 },
	} {
		f := good
		change(&f)
		if _, err := guestdriver.ReadReport(f, m); !errors.Is(err, guestdriver.ErrReport) {
			t.Errorf("%s: %v", name, err)
		}
	}

	// What the peer sent stands behind the record: it is no record, whatever it
	// looks like.
	carried := guestdriver.DMA{IOVA: 0x4000, Bytes: make([]byte, 512)}
	copy(carried.Bytes, b[64:320])
	binary.LittleEndian.PutUint32(carried.Bytes[64+180:], 65)
	copy(carried.Bytes[256:], b[:64])
	carried.Bytes[256+64] = 0xaa
	copy(carried.Bytes[384:], b[:64])
	f := abi.Fields{Type: abi.TypeConnectionAttrs, Flags: abi.FlagFinal | abi.FlagReport, Base: 0x4000, Length: 448}
	list, err = guestdriver.ReadReport(f, carried)
	if err != nil || len(list) != 2 || list[0].State == nil || !bytes.Equal(list[0].Unread, carried.Bytes[256:321]) || list[1].Tag != 7 {
		t.Errorf("%+v, %v", list, err)
	}
	f.Length = 383
	if _, err := guestdriver.ReadReport(f, carried); !errors.Is(err, guestdriver.ErrReport) {
		t.Errorf("unread bytes beyond the end: %v", err)
	}
	if list, err := guestdriver.ReadReport(abi.Fields{Type: abi.TypeBufferDone, Aux: 2}, m); list != nil || err != nil {
		t.Errorf("a buffer without records: %v, %v", list, err)
	}
}
