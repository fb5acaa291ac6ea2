// SPDX-License-Identifier: Apache-2.0

package firmware_test

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"strings"
	"testing"

	"toebox/vdev/abi"
)

// TestRefused posts bad requests as literal bytes and compares the responses,
// in which the adapter's word 0 carries owner 0.
func TestRefused(t *testing.T) {
	r := newRig(t, 4)
	id, _ := r.connect()
	held := r.buffer(abi.TypeBufferAvailable, 0, 8)
	held.Tag = 0x77
	r.post(held)
	listen := r.target(abi.TypeListen, abi.Target{Protocol: 6, Count: 1})
	r.post(listen)
	l := r.next()
	ctl := r.Chip.Alloc(64, 8)
	for _, c := range []struct{ name, in, out string }{
		{"type 0", "00 00 0000 05000000 0100000000000000 0200000000000000 03000000 04000000",
			"7c 01 2000 05000000 0100000000000000 0200000000000000 00000000 04000000"},
		{"type 16, a response", "40 00 0000 05000000 0000000000000000 0000000000000000 01000000 00000000",
			"7c 01 2000 05000000 0000000000000000 0000000000000000 00000000 00000000"},
		{"send with tag 0", "04 00 0000 00000000 0000004000000000 CONN 08000000 00000000",
			"44 01 2200 00000000 0000004000000000 CONN 00000000 00000000"},
		{"buffer with a tag in use", "08 00 0000 77000000 0000004000000000 CONN 08000000 00000000",
			"44 01 2300 77000000 0000004000000000 CONN 00000000 00000000"},
		{"send with FINAL", "04 01 0000 05000000 0000004000000000 CONN 08000000 00000000",
			"44 01 2100 05000000 0000004000000000 CONN 00000000 00000000"},
		{"send with ONCE", "04 40 0000 05000000 0000004000000000 CONN 08000000 00000000",
			"44 01 2100 05000000 0000004000000000 CONN 00000000 00000000"},
		{"buffer with ASAP", "0a 00 0000 05000000 0000004000000000 CONN 08000000 00000000",
			"44 01 2100 05000000 0000004000000000 CONN 00000000 00000000"},
		{"connect with MODIFY", "0d 00 0100 05000000 0000004000000000 0000000000000000 48000000 00000000",
			"4c 01 2100 05000000 0000000000000000 0000000000000000 00000000 ffffffff"},
		{"send to what is no group", "04 08 0000 05000000 0000004000000000 CONN 08000000 00000000",
			"44 01 2400 05000000 0000004000000000 CONN 00000000 00000000"},
		{"send of a piece", "04 00 0101 05000000 0000004000000000 CONN 08000000 00000000",
			"44 01 2100 05000000 0000004000000000 CONN 00000000 00000000"},
		{"piece without a number", "08 00 0100 05000000 0000004000000000 CONN 08000000 00000000",
			"44 01 2100 05000000 0000004000000000 CONN 00000000 00000000"},
		{"piece with ONCE", "08 40 0001 05000000 0000004000000000 CONN 08000000 00000000",
			"44 01 2100 05000000 0000004000000000 CONN 00000000 00000000"},
		{"piece with FRAGMENT", "08 04 0001 05000000 0000004000000000 CONN 08000000 00000000",
			"44 01 2100 05000000 0000004000000000 CONN 00000000 00000000"},
		{"piece of a group", "08 08 0001 05000000 0000004000000000 0000000050000008 08000000 00000000",
			"44 01 2100 05000000 0000004000000000 0000000050000008 00000000 00000000"},
		{"bulk buffer as a piece", "08 00 0001 05000000 0000004000000000 0000000000000000 08000000 00000000",
			"44 01 2100 05000000 0000004000000000 0000000000000000 00000000 00000000"},
		{"bulk buffer as a peek", "08 02 0000 05000000 0000004000000000 0000000000000000 08000000 00000000",
			"44 01 2100 05000000 0000004000000000 0000000000000000 00000000 00000000"},
		{"empty send", "04 00 0000 05000000 0000004000000000 CONN 00000000 00000000",
			"44 01 2600 05000000 0000004000000000 CONN 00000000 00000000"},
		{"offset at the end", "08 00 0000 05000000 0000004000000000 CONN 08000000 08000000",
			"44 01 2600 05000000 0000004000000000 CONN 00000000 08000000"},
		{"beyond 2^64", "08 00 0000 05000000 f9ffffffffffffff CONN 08000000 00000000",
			"44 01 2600 05000000 f9ffffffffffffff CONN 00000000 00000000"},
		{"send without connection", "04 00 0000 05000000 0000004000000000 0000000000000000 08000000 00000000",
			"44 01 2400 05000000 0000004000000000 0000000000000000 00000000 00000000"},
		{"buffer of an unknown connection", "08 00 0000 05000000 0000004000000000 ffffffffffffffff 08000000 00000000",
			"44 01 2400 05000000 0000004000000000 ffffffffffffffff 00000000 00000000"},
		{"send to a listener", "04 00 0000 05000000 0000004000000000 LISTENER 08000000 00000000",
			"44 01 2b00 05000000 0000004000000000 LISTENER 00000000 00000000"},
		{"buffer of a listener", "08 00 0000 05000000 0000004000000000 LISTENER 08000000 00000000",
			"44 01 2b00 05000000 0000004000000000 LISTENER 00000000 00000000"},
		{"connect with connection id", "0c 00 0100 05000000 0000004000000000 0100000000000000 48000000 00000000",
			"4c 01 2100 05000000 0000000000000000 0100000000000000 00000000 ffffffff"},
		{"listen with 256 tuples", "14 00 0001 05000000 0000004000000000 0000000000000000 48000000 00000000",
			"50 01 2100 05000000 0000000000000000 0000000000000000 00000000 ffffffff"},
		{"report buffer of a connection", "08 80 0000 05000000 0000004000000000 CONN 00010000 00000000",
			"44 01 2100 05000000 0000004000000000 CONN 00000000 00000000"},
		{"report buffer with ONCE", "08 c0 0000 05000000 0000004000000000 0000000000000000 00010000 00000000",
			"44 01 2100 05000000 0000004000000000 0000000000000000 00000000 00000000"},
		{"report buffer with too little room", "08 80 0000 05000000 0000004000000000 0000000000000000 07010000 08000000",
			"44 01 2600 05000000 0000004000000000 0000000000000000 00000000 08000000"},
		{"connect without tuples", "0c 00 0000 05000000 0000004000000000 0000000000000000 48000000 00000000",
			"4c 01 2900 05000000 0000000000000000 0000000000000000 00000000 ffffffff"},
		{"connect without anything", "0c 00 0000 05000000 0000004000000000 0000000000000000 00000000 00000000",
			"4c 01 2900 05000000 0000000000000000 0000000000000000 00000000 ffffffff"},
		{"control buffer without length", "0c 00 0100 05000000 0000004000000000 0000000000000000 00000000 00000000",
			"4c 01 2900 05000000 0000000000000000 0000000000000000 00000000 ffffffff"},
		{"control buffer misaligned", "0c 00 0100 05000000 0400004000000000 0000000000000000 48000000 00000000",
			"4c 01 2800 05000000 0000000000000000 0000000000000000 00000000 ffffffff"},
		{"control buffer over 1 MiB", "20 00 0100 05000000 0000004000000000 0000000000000000 01001000 00000000",
			"60 01 2600 05000000 0000000000000000 0000000000000000 00000000 ffffffff"},
		{"control buffer beyond 2^64", "20 00 0100 05000000 f8ffffffffffffff 0000000000000000 10000000 00000000",
			"60 01 2600 05000000 0000000000000000 0000000000000000 00000000 ffffffff"},
		{"control buffer unmapped", "20 00 0100 05000000 0000000000000000 0000000000000000 10000000 00000000",
			"60 01 2700 05000000 0000000000000000 0000000000000000 00000000 ffffffff"},
		{"tuple too long for its buffer", "1c 00 0100 05000000 CTL CONN 08000000 00000000",
			"5c 01 2900 05000000 0000000000000000 CONN 00000000 00000000"},
		{"termination of nothing", "10 00 0000 05000000 0000000000000000 0900000000000000 00000000 00000000",
			"54 01 2400 05000000 0000000000000000 0900000000000000 00000000 00000000"},
		{"termination with base", "10 00 0000 05000000 0100000000000000 CONN 00000000 00000000",
			"54 01 2100 05000000 0000000000000000 CONN 00000000 00000000"},
		{"termination with bad mode", "10 00 0000 05000000 0000000000000000 CONN 04000000 00000000",
			"54 01 2c00 05000000 0000000000000000 CONN 00000000 00000000"},
		{"half of a listener", "10 00 0000 05000000 0000000000000000 LISTENER 02000000 00000000",
			"54 01 2b00 05000000 0000000000000000 LISTENER 00000000 00000000"},
		{"termination with tuples and id", "10 00 0100 05000000 0000004000000000 CONN 18000000 00000000",
			"54 01 2100 05000000 0000000000000000 CONN 00000000 ffffffff"},
		{"cancellation of nothing", "18 00 0000 05000000 0000000000000000 0000000000000000 00000000 88000000",
			"58 01 2200 05000000 0000000000000000 0000000000000000 00000000 00000000"},
		{"cancellation of another connection's", "18 00 0000 05000000 0000000000000000 CONN 00000000 77000000",
			"58 01 2200 05000000 0000000000000000 CONN 00000000 00000000"},
		{"cancellation with length", "18 00 0000 05000000 0000000000000000 CONN 01000000 77000000",
			"58 01 2100 05000000 0000000000000000 CONN 00000000 00000000"},
		{"cancellation of itself", "18 00 0000 05000000 0000000000000000 0000000000000000 00000000 05000000",
			"58 01 2200 05000000 0000000000000000 0000000000000000 00000000 00000000"},
		{"cancellation of a connection", "18 00 0000 05000000 0000000000000000 CONN 00000000 00000000",
			"58 01 2200 05000000 0000000000000000 CONN 00000000 00000000"},
		{"attributes of an unknown connection", "1c 00 0100 05000000 0000004000000000 0900000000000000 10000000 00000000",
			"5c 01 2400 05000000 0000000000000000 0900000000000000 00000000 ffffffff"},
		{"attributes of the adapter with id", "20 00 0100 05000000 0000004000000000 CONN 10000000 00000000",
			"60 01 2100 05000000 0000000000000000 CONN 00000000 ffffffff"},
		{"attributes without tuples", "20 00 0000 05000000 0000000000000000 0000000000000000 00000000 00000000",
			"60 01 2900 05000000 0000000000000000 0000000000000000 00000000 ffffffff"},
	} {
		t.Run(c.name, func(t *testing.T) {
			literal := func(s string) []byte {
				for name, v := range map[string]uint64{"CONN": id, "LISTENER": l.Conn, "CTL": ctl} {
					s = strings.ReplaceAll(s, name, hex.EncodeToString(binary.LittleEndian.AppendUint64(nil, v)))
				}
				b, err := hex.DecodeString(strings.ReplaceAll(s, " ", ""))
				if err != nil || len(b) != 32 {
					t.Fatalf("%d bytes, %v", len(b), err)
				}
				return b
			}
			// A tag of its own each: what 5 was before must not matter.
			in, out := literal(c.in), literal(c.out)
			tag := func(b []byte) {
				if b[4] == 5 {
					binary.LittleEndian.PutUint32(b[4:], 0x1000+r.Tag())
				}
			}
			if in[0]>>2 == 6 && in[28] == 5 { // cancels itself
				tag(in)
				copy(in[28:], in[4:8])
				copy(out[4:], in[4:8])
			} else {
				tag(in)
				copy(out[4:], in[4:8])
			}
			binary.LittleEndian.PutUint32(r.Chip.Bytes(ctl, 8)[4:], 1)
			rejected := r.counter(abi.CounterRequestsRejected)
			r.post(abi.Descriptor(in).Decode())
			got := r.next()
			if want := abi.Descriptor(out).Decode(); got != want {
				t.Fatalf("got  %+v\nwant %+v", got, want)
			}
			if got.Aux >= 32 {
				rejected++
			}
			r.wantCounter(abi.CounterRequestsRejected, rejected)
		})
	}
	if extra := r.settle(); len(extra) != 0 {
		t.Errorf("left: %+v", extra)
	}
}

// TestWrongQueue names a connection in another queue's table.
func TestWrongQueue(t *testing.T) {
	r := newRig(t, 4)
	id, _ := r.connect()
	other := r.second(1)
	f := other.buffer(abi.TypeBufferSend, id, 8)
	other.post(f)
	other.expect(abi.Fields{Type: abi.TypeBufferDone, Flags: abi.FlagFinal, Aux: 37, Tag: f.Tag, Base: f.Base, Conn: id})
}

// TestRequestMemory holds requests until adapter memory is used up.
func TestRequestMemory(t *testing.T) {
	r := newRig(t, 4)
	set, _ := r.attributes(0, 1, abi.AppendSetScalar(nil, abi.AttrMemorySize, 3*64))
	if set.Aux != 0 {
		t.Fatalf("set: %+v", set)
	}
	var last abi.Fields
	for range 4 {
		last = r.buffer(abi.TypeBufferAvailable, 0, 8)
		r.post(last)
	}
	r.expect(abi.Fields{Type: abi.TypeBufferDone, Flags: abi.FlagFinal, Aux: 11, Tag: last.Tag, Base: last.Base})
	f := r.target(abi.TypeConnect, connectTarget())
	r.post(f)
	r.expect(abi.Fields{Type: abi.TypeCompletion, Flags: abi.FlagFinal, Aux: 11, Tag: f.Tag, Offset: abi.NoOrdinal})
	r.wantCounter(abi.CounterMemoryUsed, 3*64)
}

// TestTargetMemory: terminations with many targets that wait are accounted for
// by target, and refused when there is no memory for them.
func TestTargetMemory(t *testing.T) {
	r := newRig(t, 4)
	id, ep := r.connect()
	send := r.buffer(abi.TypeBufferSend, id, 10)
	r.post(send)
	r.settle()
	before := r.counter(abi.CounterMemoryUsed)
	half := []byte{
		0x02, 0x80, 0, 0, 16, 0, 0, 0, // TERMINATE, set
		0, 0, 0, 0, 0, 0, 0, 0, // connection
		2, 0, 0, 0, 0, 0, 0, 0, // end sending
	}
	binary.LittleEndian.PutUint64(half[8:], id)
	f := r.control(abi.TypeTermination, 3, bytes.Repeat(half, 3))
	r.post(f)
	r.settle()
	r.wantCounter(abi.CounterMemoryUsed, before+64+2*32)
	set, _ := r.attributes(0, 1, abi.AppendSetScalar(nil, abi.AttrMemorySize, before+64+2*32+64+31))
	if set.Aux != 0 {
		t.Fatalf("set: %+v", set)
	}
	g := r.control(abi.TypeTermination, 2, bytes.Repeat(half, 2))
	r.post(g)
	r.expect(abi.Fields{Type: abi.TypeTerminated, Flags: abi.FlagFinal, Aux: 11, Tag: g.Tag, Offset: abi.NoOrdinal})
	r.wantCounter(abi.CounterMemoryUsed, before+64+2*32)
	ep.Ack(10)
	r.expect(sendDone(send, 0, 10))
	for i := range uint32(3) {
		want := abi.Fields{Type: abi.TypeTerminated, Tag: f.Tag, Conn: id, Length: 4, Offset: i}
		if i == 2 {
			want.Flags = abi.FlagFinal
		}
		r.expect(want)
	}
	r.wantCounter(abi.CounterMemoryUsed, before-64)
}

// TestHeldBuffersTooLong: a list that does not fit has its true length.
func TestHeldBuffersTooLong(t *testing.T) {
	r := newRig(t, 4)
	id, _ := r.connect()
	for range 3 {
		r.post(r.buffer(abi.TypeBufferAvailable, id, 8))
	}
	f, buf := r.attributes(id, 1, abi.AppendGet(nil, abi.AttrHeldBuffers, 47))
	if s, n := abi.TupleResult(buf); f.Aux != 1 || s != 51 || n != 48 || bytes.IndexFunc(buf[8:], func(c rune) bool { return c != 0 }) >= 0 {
		t.Errorf("room for 47 bytes: %v, length %d, response %+v", s, n, f)
	}
	if got := r.attribute(id, abi.AttrHeldBuffers, 48); len(got) != 48 {
		t.Errorf("%d bytes", len(got))
	}
}
