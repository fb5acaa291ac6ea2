// SPDX-License-Identifier: Apache-2.0

package firmware_test

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	"toebox/vdev/abi"
)

const skipAttr = 0x0264

func streamBytes(from uint64, n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = streamByte(int(from) + i)
	}
	return b
}

// skipper is SPEC.md §14.11, a second time: what comes of posts, arrivals,
// cancellations and sets of SKIP.
type skipper struct {
	own, pool []skipBuffer
	came, pos uint64 // of the stream: arrived, consumed
	attr      uint64
	progress  uint64 // of attr, before the next buffer
	skipped   uint64
}

type skipBuffer struct {
	abi.Fields        // Offset: where the next byte goes
	named      bool   // with SKIP
	left       uint32 // of its own
	total      uint32
}

// told is a response, and where in the stream its bytes are.
type told struct {
	abi.Fields
	pos uint64
}

func (m *skipper) run() (out []told) {
	for m.pos < m.came {
		list := &m.own
		if len(m.own) == 0 {
			list = &m.pool
		}
		if len(*list) == 0 {
			return out
		}
		b := &(*list)[0]
		want := uint64(b.left)
		if !b.named {
			want = 0
			if b.Offset == 0 && m.attr > m.progress {
				want = m.attr - m.progress
			}
		}
		if n := min(want, m.came-m.pos); n > 0 {
			m.pos += n
			m.skipped += n
			if b.named {
				b.left -= uint32(n)
			} else {
				m.progress += n
			}
			continue
		}
		n := uint32(min(uint64(b.Length-b.Offset), m.came-m.pos))
		f := abi.Fields{Type: abi.TypeBufferReceive, Tag: b.Tag, Base: b.Base, Conn: b.Conn, Offset: b.Offset, Length: n}
		pos := m.pos
		m.pos += uint64(n)
		m.progress = 0
		b.Offset += n
		if list == &m.pool || b.Flags&abi.FlagOnce != 0 || b.Offset == b.Length {
			f.Flags = abi.FlagFinal
			*list = (*list)[1:]
		}
		out = append(out, told{f, pos})
	}
	return out
}

// TestSkipTrace posts buffers with and without SKIP, sets the attribute, lets
// bytes arrive, cancels, and compares each response, the bytes and the counts
// with what the rule says.
func TestSkipTrace(t *testing.T) {
	for seed := range uint64(16) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			rng := rand.New(rand.NewPCG(seed, 11))
			r := newRig(t, 6)
			id, ep := r.connect()
			m := &skipper{}
			for step := range 400 {
				var want []told
				var what string
				switch k := rng.IntN(12); {
				case k < 4:
					f := r.buffer(abi.TypeBufferAvailable, id, 1+rng.IntN(40))
					b := skipBuffer{Fields: f}
					if rng.IntN(2) == 0 {
						f.Flags, f.Offset = abi.FlagSkip, uint32(rng.IntN(100))
						b.named, b.left, b.total = true, f.Offset, f.Offset
					}
					if rng.IntN(3) == 0 {
						f.Flags |= abi.FlagOnce
						b.Flags = abi.FlagOnce
					}
					what = fmt.Sprintf("post %+v", f)
					r.post(f)
					m.own = append(m.own, b)
				case k < 5:
					f := r.buffer(abi.TypeBufferAvailable, 0, 1+rng.IntN(40))
					what = fmt.Sprintf("post %+v", f)
					r.post(f)
					f.Conn = id
					m.pool = append(m.pool, skipBuffer{Fields: f})
				case k < 9:
					n := 1 + rng.IntN(60)
					what = fmt.Sprintf("%d bytes", n)
					ep.Deliver(streamBytes(m.came, n))
					m.came += uint64(n)
				case k < 10:
					m.attr = uint64(rng.IntN(3) * rng.IntN(40))
					what = fmt.Sprintf("SKIP %d", m.attr)
					tuples, n := scalars(skipAttr, m.attr)
					f := r.control(abi.TypeConnectionAttr, n, tuples)
					f.Conn = id
					r.post(f)
					want = append(want, told{Fields: abi.Fields{
						Type: abi.TypeConnectionAttrs, Flags: abi.FlagFinal, Tag: f.Tag, Conn: id, Length: 1, Offset: abi.NoOrdinal,
					}})
				case len(m.own) == 0:
					continue
				default:
					i := rng.IntN(len(m.own))
					b := m.own[i]
					m.own = slices.Delete(m.own, i, i+1)
					f := abi.Fields{Type: abi.TypeCancellation, Tag: r.Tag(), Conn: id, Offset: b.Tag}
					what = fmt.Sprintf("cancellation of %+v", b)
					r.post(f)
					end := abi.Fields{
						Type: abi.TypeBufferDone, Flags: abi.FlagFinal, Aux: uint16(abi.StatusCancelled), Tag: b.Tag, Base: b.Base, Conn: id, Offset: b.Offset,
					}
					if b.Offset == 0 {
						end.Offset = b.total - b.left
					}
					want = append(want, told{Fields: end}, told{Fields: abi.Fields{
						Type: abi.TypeCancelled, Flags: abi.FlagFinal, Tag: f.Tag, Conn: id,
					}})
				}
				want = append(want, m.run()...)
				got := r.settle()
				for i, f := range got {
					if i >= len(want) || f != want[i].Fields {
						t.Fatalf("step %d, %s: response %d\n     %+v\nwant %+v", step, what, i, f, want)
					}
					if f.Type == abi.TypeBufferReceive {
						b := r.Chip.Bytes(f.Base+uint64(f.Offset), int(f.Length))
						if !slices.Equal(b, streamBytes(want[i].pos, len(b))) {
							t.Fatalf("step %d, %s: response %d has other bytes than those from %d", step, what, i, want[i].pos)
						}
					}
				}
				if len(got) != len(want) {
					t.Fatalf("step %d, %s: %d responses, want %+v", step, what, len(got), want)
				}
			}
			r.wantCounter(abi.CounterSkippedBytes, m.skipped)
			r.wantCounter(abi.CounterBytesReceived, m.pos)
			r.wantCounter(abi.CounterBytesDelivered, m.pos-m.skipped)
			if got := binary.LittleEndian.Uint64(r.attribute(id, abi.AttrBytesDelivered, 8)); got != m.pos {
				t.Errorf("BYTES_DELIVERED is %d, want %d", got, m.pos)
			}
			if n := ep.Unread(); uint64(n) != m.came-m.pos {
				t.Errorf("the engine has %d bytes, want %d", n, m.came-m.pos)
			}
		})
	}
}

// TestSkipEnd: the end of the stream comes while bytes are to be skipped.
func TestSkipEnd(t *testing.T) {
	r := newRig(t, 4)
	id, ep := r.connect()
	f := r.buffer(abi.TypeBufferAvailable, id, 10)
	f.Flags, f.Offset = abi.FlagSkip, 1<<32-1
	r.post(f)
	ep.Deliver(streamBytes(0, 100<<10)) // more than a turn
	ep.DeliverFIN()
	r.expect(abi.Fields{
		Type: abi.TypeBufferDone, Flags: abi.FlagFinal, Aux: uint16(abi.StatusEndOfStream), Tag: f.Tag, Base: f.Base, Conn: id, Offset: 100 << 10,
	})
	r.expect(abi.Fields{Type: abi.TypeTerminated, Flags: abi.FlagFinal, Conn: id, Length: abi.EndedStream})
	r.wantCounter(abi.CounterSkippedBytes, 100<<10)
}

// TestSkipPieces: SKIP is before the first piece of a virtual buffer only.
func TestSkipPieces(t *testing.T) {
	r := newRig(t, 4)
	id, ep := r.connect()
	r.setAll(id, skipAttr, 5)
	var tags []uint32
	for seq := range uint16(2) {
		f := r.buffer(abi.TypeBufferAvailable, id, 10)
		f.Aux = 0x0100 | seq
		r.post(f)
		tags = append(tags, f.Tag)
	}
	ep.Deliver(streamBytes(0, 40))
	for i, tag := range tags {
		f := r.next()
		if f.Tag != tag || f.Length != 10 || !slices.Equal(r.Chip.Bytes(f.Base, 10), streamBytes(5+10*uint64(i), 10)) {
			t.Errorf("piece %d: %+v", i, f)
		}
	}
	if n := ep.Unread(); n != 15 {
		t.Errorf("%d bytes unread, want 15", n)
	}
}

// TestSkipWaits: bytes that wait are skipped when the wait ends, and what is
// skipped is no reason to wait longer.
func TestSkipWaits(t *testing.T) {
	r := newRig(t, 4)
	id, ep := r.connect()
	r.setAll(id, notifyBytes, 1000, gatherThreshold, 0)
	f := r.buffer(abi.TypeBufferAvailable, id, 60)
	f.Flags, f.Offset = abi.FlagSkip, 40
	r.post(f)
	ep.Deliver(streamBytes(0, 99))
	if got := r.settle(); len(got) != 0 || ep.Unread() != 99 {
		t.Fatalf("%d bytes are left, told %+v", ep.Unread(), got)
	}
	ep.Deliver(streamBytes(99, 1)) // with it they fill the buffer: 14.6, room
	got := r.next()
	if got.Tag != f.Tag || got.Length != 60 || !slices.Equal(r.bytes(f), streamBytes(40, 60)) {
		t.Errorf("told %+v", got)
	}
	r.wantCounter(abi.CounterReceiveByRoom, 1)
}

// TestSkipBadMemory: a buffer that cannot be written says what was skipped before.
func TestSkipBadMemory(t *testing.T) {
	r := newRig(t, 4)
	id, ep := r.connect()
	f := r.buffer(abi.TypeBufferAvailable, id, 10)
	f.Flags, f.Offset = abi.FlagSkip, 7
	r.Chip.Unmap(f.Base, 10)
	r.post(f)
	ep.Deliver(streamBytes(0, 20))
	r.expect(abi.Fields{
		Type: abi.TypeBufferDone, Flags: abi.FlagFinal, Aux: uint16(abi.StatusBadMemory), Tag: f.Tag, Base: f.Base, Conn: id, Offset: 7,
	})
	if n := ep.Unread(); n != 13 {
		t.Errorf("%d bytes unread, want 13", n)
	}
}

// TestSkipRefused: what SKIP is not for.
func TestSkipRefused(t *testing.T) {
	r := newRig(t, 4)
	id, _ := r.connect()
	udp, _ := r.datagram(true)
	for _, c := range []struct {
		name  string
		conn  uint64
		flags abi.Flags
		aux   uint16
		want  uint16
	}{
		{"bulk buffer", 0, abi.FlagSkip, 0, 33},
		{"group", 1 << 59, abi.FlagSkip | abi.FlagGroup, 0, 33},
		{"piece", id, abi.FlagSkip, 0x0100, 33},
		{"datagrams", udp, abi.FlagSkip, 0, 16},
		{"report buffer", 0, abi.FlagSkip | abi.FlagReport, 0, 33},
	} {
		f := r.buffer(abi.TypeBufferAvailable, c.conn, 512)
		f.Flags, f.Aux, f.Offset = c.flags, c.aux, 600
		r.post(f)
		if got := r.next(); got.Tag != f.Tag || got.Aux != c.want || got.Offset != 0 || got.Length != 0 || got.Flags != abi.FlagFinal {
			t.Errorf("%s: %+v, want status %d", c.name, got, c.want)
		}
	}
}
