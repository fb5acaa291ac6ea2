// SPDX-License-Identifier: Apache-2.0

package firmware

import (
	"math"

	"toebox/vdev/abi"
)

// combiner is what is known of the newest response, as long as it is held and
// another may be combined with it (RX12, SPEC.md §5.5).
type combiner struct {
	open bool
	conn uint64
	tag  uint32 // of its last buffer
	end  uint64 // the address behind its bytes
	full bool   // its last buffer is, and FINAL
}

// goesOn reports whether f is of a buffer that begins where the newest response
// ends.
func (k *combiner) goesOn(f *abi.Fields) bool {
	return k.open && k.full && f.Conn == k.conn && f.Tag == k.tag+1 &&
		f.Base == k.end && f.Offset == 0 && f.Flags&abi.FlagFinal != 0
}

// respondBytes queues the response to a delivery into r, or lets the newest one
// cover it, too.
func (q *queue) respondBytes(c *conn, r *request, f *abi.Fields) {
	if f.Type != abi.TypeBufferReceive || f.Aux != 0 || f.Flags&abi.FlagRedirect != 0 || c.attrs.of(abi.AttrCombine) == 0 {
		q.respond(*f)
		return
	}
	k := &q.combine
	next := combiner{
		open: true, conn: f.Conn, tag: f.Tag, end: f.Base + uint64(f.Offset) + uint64(f.Length),
		full: f.Flags&abi.FlagFinal != 0 && f.Offset+f.Length == r.length,
	}
	if q.held.n == 0 || !k.goesOn(f) || !q.held.grow(f) {
		q.respond(*f)
	} else {
		q.count(abi.CounterResultsCombined, 1)
		if q.check != nil {
			q.check.responded(f)
		}
	}
	*k = next
}

// grow lets the newest response cover f, too, unless it would be too long.
func (r *ring) grow(f *abi.Fields) bool {
	d := r.at(r.n - 1)
	all := d.Decode()
	if uint64(all.Length)+uint64(f.Length) > math.MaxUint32 {
		return false
	}
	all.Tag = f.Tag
	all.Flags |= abi.FlagCombined
	all.Length += f.Length
	d.Encode(&all, false)
	return true
}
