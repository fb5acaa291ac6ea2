// SPDX-License-Identifier: Apache-2.0

package firmware_test

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	"toebox/vdev/abi"
)

// puzzle is SPEC.md §14.10, a second time: the buffers of one connection, and what
// comes of posts, arrivals and cancellations.
type puzzle struct {
	usable []abi.Fields // what is left of them: from Offset on
	early  []abi.Fields
	next   map[uint8]uint8
	unread uint32
}

func (m *puzzle) posted(id uint8) int {
	of := func(f abi.Fields) bool { return uint8(f.Aux>>8) == id }
	n := 0
	for _, f := range append(slices.Clone(m.usable), m.early...) {
		if of(f) {
			n++
		}
	}
	return n
}

// post returns the refusal, if there is one.
func (m *puzzle) post(f abi.Fields) []abi.Fields {
	if f.Aux == 0 {
		m.usable = append(m.usable, f)
		return nil
	}
	id, seq := uint8(f.Aux>>8), uint8(f.Aux)
	for _, o := range append(slices.Clone(m.usable), m.early...) {
		if o.Aux == f.Aux {
			return []abi.Fields{{Type: abi.TypeBufferDone, Flags: abi.FlagFinal, Aux: 52, Tag: f.Tag, Base: f.Base, Conn: f.Conn}}
		}
	}
	if seq == 0 && m.posted(id) == 0 {
		m.next[id] = 0
	}
	m.early = append(m.early, f)
	for {
		i := slices.IndexFunc(m.early, func(o abi.Fields) bool { return o.Aux == uint16(id)<<8|uint16(m.next[id]) })
		if i < 0 {
			return nil
		}
		at := len(m.usable)
		for k, o := range m.usable {
			if uint8(o.Aux>>8) == id {
				at = k + 1
			}
		}
		m.usable = slices.Insert(m.usable, at, m.early[i])
		m.early = slices.Delete(m.early, i, i+1)
		m.next[id]++
	}
}

// run returns the deliveries that are due.
func (m *puzzle) run() (out []abi.Fields) {
	for m.unread > 0 && len(m.usable) > 0 {
		b := &m.usable[0]
		n := min(m.unread, b.Length-b.Offset)
		f := abi.Fields{Type: abi.TypeBufferReceive, Tag: b.Tag, Base: b.Base, Conn: b.Conn, Offset: b.Offset, Length: n}
		m.unread -= n
		b.Offset += n
		if b.Offset == b.Length {
			f.Flags = abi.FlagFinal
			m.usable = m.usable[1:]
		}
		out = append(out, f)
	}
	return out
}

// end ends the i-th buffer, of the early ones if usable is false, and what is
// behind it.
func (m *puzzle) end(usable bool, i int, status uint16) []abi.Fields {
	from := &m.early
	if usable {
		from = &m.usable
	}
	f := (*from)[i]
	*from = slices.Delete(*from, i, i+1)
	gone := []abi.Fields{f}
	if id := uint8(f.Aux >> 8); f.Aux != 0 {
		old := m.next[id]
		for usable && i < len(m.usable) && uint8(m.usable[i].Aux>>8) == id {
			gone = append(gone, m.usable[i])
			m.usable = slices.Delete(m.usable, i, i+1)
		}
		for d := range 256 { // in the order of the sequence
			seq := old + uint8(d)
			if !usable && seq-old <= uint8(f.Aux)-old {
				continue
			}
			k := slices.IndexFunc(m.early, func(o abi.Fields) bool { return o.Aux == uint16(id)<<8|uint16(seq) })
			if k >= 0 {
				gone = append(gone, m.early[k])
				m.early = slices.Delete(m.early, k, k+1)
			}
		}
		if usable {
			m.next[id] = uint8(f.Aux)
		}
	}
	var out []abi.Fields
	for _, f := range gone {
		out = append(out, abi.Fields{Type: abi.TypeBufferDone, Flags: abi.FlagFinal, Aux: status, Tag: f.Tag, Base: f.Base, Conn: f.Conn, Offset: f.Offset})
	}
	return out
}

// TestPieceTrace posts pieces in all orders, lets bytes arrive, cancels, and
// compares each response and the list of held buffers with what the rule says.
func TestPieceTrace(t *testing.T) {
	for seed := range uint64(16) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			rng := rand.New(rand.NewPCG(seed, 3))
			r := newRig(t, 6)
			id, ep := r.connect()
			m := &puzzle{next: map[uint8]uint8{}}
			for step := range 400 {
				var want []abi.Fields
				var what string
				switch k := rng.IntN(10); {
				case k < 6:
					f := r.buffer(abi.TypeBufferAvailable, id, 1+rng.IntN(20))
					if number := uint8(rng.IntN(3)); number > 0 {
						// Near what comes next, and sometimes what begins anew.
						seq := m.next[number] + uint8(rng.IntN(5)) - 1
						if rng.IntN(8) == 0 {
							seq = 0
						}
						f.Aux = uint16(number)<<8 | uint16(seq)
					}
					what = fmt.Sprintf("post of %#x", f.Aux)
					r.post(f)
					want = m.post(f)
				case k < 8:
					n := 1 + rng.IntN(60)
					what = fmt.Sprintf("%d bytes", n)
					ep.Deliver(make([]byte, n))
					m.unread += uint32(n)
				default:
					n := len(m.usable) + len(m.early)
					if n == 0 {
						continue
					}
					i := rng.IntN(n)
					usable := i < len(m.usable)
					var tag uint32
					if usable {
						tag = m.usable[i].Tag
					} else {
						i -= len(m.usable)
						tag = m.early[i].Tag
					}
					what = fmt.Sprintf("cancellation of %#x", tag)
					f := abi.Fields{Type: abi.TypeCancellation, Tag: r.Tag(), Conn: id, Offset: tag}
					r.post(f)
					want = append(m.end(usable, i, 2), abi.Fields{Type: abi.TypeCancelled, Flags: abi.FlagFinal, Tag: f.Tag, Conn: id})
				}
				want = append(want, m.run()...)
				if got := r.settle(); !slices.Equal(got, want) {
					t.Fatalf("step %d, %s: responses %+v\n   want %+v", step, what, got, want)
				}
				var held []byte
				for _, f := range append(slices.Clone(m.usable), m.early...) {
					held = abi.AppendHeldBuffer(held, abi.HeldBuffer{Tag: f.Tag, Length: f.Length, Base: f.Base})
				}
				if got := r.attribute(id, 0x0289, 16*1024); string(got) != string(held) {
					t.Fatalf("step %d, %s: held %x\n   want %x", step, what, got, held)
				}
			}
		})
	}
}

// TestPieceEnds ends a connection, and a piece by its memory, with pieces posted
// that cannot be used yet.
func TestPieceEnds(t *testing.T) {
	for _, c := range []struct {
		name   string
		end    func(r *rig)
		status uint16
	}{
		{"FIN", func(r *rig) { r.fake.Last().DeliverFIN() }, 13},
		{"reset", func(r *rig) { r.fake.Last().Reset() }, 5},
		{"drain", func(r *rig) { r.fw.Command(0, abi.QueueDrain, r.Config) }, 2},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := newRig(t, 6)
			id, _ := r.connect()
			var want []abi.Fields
			for _, piece := range []uint16{0x0100, 0x0102, 0x0101, 0x0104, 0x0703} {
				f := r.buffer(abi.TypeBufferAvailable, id, 8)
				f.Aux = piece
				r.post(f)
				want = append(want, abi.Fields{Type: abi.TypeBufferDone, Flags: abi.FlagFinal, Aux: c.status, Tag: f.Tag, Base: f.Base, Conn: id})
			}
			r.settle()
			c.end(r)
			want[1], want[2] = want[2], want[1]
			for _, w := range want {
				r.expect(w)
			}
		})
	}
	t.Run("bad memory", func(t *testing.T) {
		r := newRig(t, 6)
		id, ep := r.connect()
		var fs []abi.Fields
		for _, piece := range []uint16{0x0100, 0x0101, 0x0102, 0, 0x0104} {
			f := r.buffer(abi.TypeBufferAvailable, id, 8)
			f.Aux = piece
			fs = append(fs, f)
		}
		fs[1].Base = 1 << 40
		r.post(fs...)
		r.settle()
		ep.Deliver(make([]byte, 12))
		done := func(f abi.Fields) abi.Fields {
			return abi.Fields{Type: abi.TypeBufferDone, Flags: abi.FlagFinal, Aux: 39, Tag: f.Tag, Base: f.Base, Conn: id}
		}
		r.expect(abi.Fields{Type: abi.TypeBufferReceive, Flags: abi.FlagFinal, Tag: fs[0].Tag, Base: fs[0].Base, Conn: id, Length: 8})
		r.expect(done(fs[1]))
		r.expect(done(fs[2]))
		r.expect(done(fs[4]))
		r.expect(abi.Fields{Type: abi.TypeBufferReceive, Tag: fs[3].Tag, Base: fs[3].Base, Conn: id, Length: 4})
		// The sequence goes on with the number that failed.
		f := r.buffer(abi.TypeBufferAvailable, id, 8)
		f.Aux = 0x0101
		r.post(f)
		ep.Deliver(make([]byte, 6))
		r.expect(abi.Fields{Type: abi.TypeBufferReceive, Flags: abi.FlagFinal, Tag: fs[3].Tag, Base: fs[3].Base, Conn: id, Offset: 4, Length: 4})
		r.expect(abi.Fields{Type: abi.TypeBufferReceive, Tag: f.Tag, Base: f.Base, Conn: id, Length: 2})
	})
}

// TestPieceOfDatagrams: datagrams do not fill buffers.
func TestPieceOfDatagrams(t *testing.T) {
	r := newRig(t, 6)
	tuples, n := scalars()
	x := connectTarget()
	x.Protocol = 17
	f := r.control(abi.TypeConnect, n+1, appendTarget(tuples, x))
	r.post(f)
	id := r.next().Conn
	b := r.buffer(abi.TypeBufferAvailable, id, 8)
	b.Aux = 0x0100
	r.post(b)
	r.expect(abi.Fields{Type: abi.TypeBufferDone, Flags: abi.FlagFinal, Aux: 16, Tag: b.Tag, Base: b.Base, Conn: id})
}

// TestFragments gives buffers with FRAGMENT back before they are full when, and
// only when, the next takes all that has arrived.
func TestFragments(t *testing.T) {
	for _, c := range []struct {
		name    string
		flags   abi.Flags
		sizes   [2]int
		arrive  [2]int
		returns bool
	}{
		{"permitted", abi.FlagFragment, [2]int{100, 100}, [2]int{60, 50}, true},
		{"not permitted", 0, [2]int{100, 100}, [2]int{60, 50}, false},
		{"room enough", abi.FlagFragment, [2]int{100, 100}, [2]int{60, 40}, false},
		{"nothing in it yet", abi.FlagFragment, [2]int{40, 100}, [2]int{0, 50}, false},
		{"the next too small", abi.FlagFragment, [2]int{100, 49}, [2]int{60, 50}, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := newRig(t, 6)
			id, ep := r.connect()
			a, b := r.buffer(abi.TypeBufferAvailable, id, c.sizes[0]), r.buffer(abi.TypeBufferAvailable, id, c.sizes[1])
			a.Flags, b.Flags = c.flags, c.flags
			r.post(a, b)
			r.settle()
			got := func(f abi.Fields, from, n int) {
				t.Helper()
				want := abi.Fields{Type: abi.TypeBufferReceive, Tag: f.Tag, Base: f.Base, Conn: id, Offset: uint32(from), Length: uint32(n)}
				if uint32(from+n) == f.Length {
					want.Flags = abi.FlagFinal
				}
				r.expect(want)
			}
			if n := c.arrive[0]; n > 0 {
				ep.Deliver(make([]byte, n))
				got(a, 0, n)
			}
			ep.Deliver(make([]byte, c.arrive[1]))
			if c.returns {
				r.expect(abi.Fields{Type: abi.TypeBufferDone, Flags: abi.FlagFinal, Tag: a.Tag, Base: a.Base, Conn: id, Offset: uint32(c.arrive[0])})
				got(b, 0, c.arrive[1])
				r.wantCounter(abi.CounterFragments, 1)
				return
			}
			first := min(c.sizes[0]-c.arrive[0], c.arrive[1])
			got(a, c.arrive[0], first)
			if first < c.arrive[1] {
				got(b, 0, c.arrive[1]-first)
			}
			r.wantCounter(abi.CounterFragments, 0)
		})
	}
}
