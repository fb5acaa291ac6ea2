// SPDX-License-Identifier: Apache-2.0

package guestdriver

import (
	"bytes"
	"testing"

	"toebox/vdev/abi"
)

// TestCombined gives responses that cover several buffers to a connection whose
// three buffers, of 1 KiB each, lie one behind the other, under tags that follow
// each other; the first holds 24 bytes already.
func TestCombined(t *testing.T) {
	const first, all = 0x1_0001, abi.FlagFinal | abi.FlagCombined
	answer := func(flags abi.Flags, tag uint32, offset, length uint32) abi.Fields {
		return abi.Fields{Type: 16, Flags: flags, Tag: tag, Base: 0x5000, Conn: 7, Offset: offset, Length: length}
	}
	with := func(f abi.Fields, change func(*abi.Fields)) abi.Fields { change(&f); return f }
	for _, c := range []struct {
		name string
		f    abi.Fields
		want int // bytes that can be read
		bad  func(*Adapter) uint64
	}{
		{"three", answer(all, first+2, 24, 3*1024-24), 3 * 1024, nil},
		{"the last is not full", answer(all, first+2, 24, 2*1024-23), 2*1024 + 1, nil},
		{"two", answer(all, first+1, 24, 2*1024-24), 2 * 1024, nil},
		{"nothing for the last", answer(all, first+2, 24, 2*1024-24), 24, badLength},
		{"too much", answer(all, first+2, 24, 3*1024-23), 24, badLength},
		{"far too much", answer(all, first+2, 24, 0xffffffff), 24, badLength},
		{"an offset beyond the buffer", answer(all, first+2, 0xffffffff, 2048), 24, badLength},
		{"a part left out", answer(all, first+2, 25, 3*1024-25), 24, badLength},
		{"a part twice", answer(all, first+2, 0, 3*1024), 24, badLength},
		{"one alone", answer(all, first, 24, 1000), 24, badLength},
		{"not final", answer(abi.FlagCombined, first+2, 24, 3*1024-24), 24, func(a *Adapter) uint64 { return a.bad.final.Load() }},
		{"another base", with(answer(all, first+2, 24, 3*1024-24), func(f *abi.Fields) { f.Base = 0x5400 - 1 }), 24, badLength},
		{"another connection", with(answer(all, first+2, 24, 3*1024-24), func(f *abi.Fields) { f.Conn = 8 }), 24, badLength},
		{"an unknown tag", answer(all, first+3, 24, 3*1024-24), 24, badLength},
		{"tag 0", answer(all, 0, 24, 3*1024-24), 24, func(a *Adapter) uint64 { return a.bad.kind.Load() }},
	} {
		t.Run(c.name, func(t *testing.T) {
			a, ln := still(t)
			conn := newConn(ln, 7, "tcp", nil, nil)
			a.enter(conn)
			memory := make([]byte, 3*1024)
			for i := range memory {
				memory[i] = byte(i * 7)
			}
			for i := range 3 {
				buf := &buffer{data: memory[i*1024 : (i+1)*1024 : (i+1)*1024], iova: 0x5000 + uint64(i*1024)}
				if tag := ln.reqs.add(request{kind: kindReceive, conn: conn, buf: buf}); tag != uint32(first+i) {
					t.Fatalf("tag %#x", tag)
				}
				conn.bufs++
				conn.requests++
				conn.room += len(buf.data)
			}
			conn.eof = true // nothing is posted
			ln.disp.Lock()
			ln.handle(&abi.Fields{Type: 16, Tag: first, Base: 0x5000, Conn: 7, Length: 24})
			ln.handle(&c.f)
			ln.disp.Unlock()
			got := make([]byte, 4096)
			n, err := conn.Read(got)
			if n != c.want || err != nil || !bytes.Equal(got[:n], memory[:n]) {
				t.Errorf("read %d bytes, %v, want %d", n, err, c.want)
			}
			if c.bad != nil && c.bad(a) != 1 {
				t.Errorf("counted %d times", c.bad(a))
			}
		})
	}
}

func badLength(a *Adapter) uint64 { return a.bad.length.Load() }
