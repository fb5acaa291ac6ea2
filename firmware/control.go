// SPDX-License-Identifier: Apache-2.0

package firmware

import (
	"math"

	"toebox/vdev/abi"
)

// control copies the control buffer of a request, once, into scratch memory of
// the queue, which the next call overwrites (SPEC.md §6).
func (q *queue) control(f *abi.Fields) ([]byte, abi.Status) {
	switch {
	case (f.Aux == 0) != (f.Length == 0):
		return nil, abi.StatusBadControlBuffer
	case f.Aux == 0:
		return nil, abi.StatusOK
	case f.Base%abi.TupleAlign != 0:
		return nil, abi.StatusBadAlignment
	case f.Length > abi.MaxControlSize, f.Base > math.MaxUint64-uint64(f.Length-1):
		return nil, abi.StatusBadLength
	}
	n := int(f.Length)
	if cap(q.ctl) < n {
		q.ctl = make([]byte, max(n, 4096))
	}
	buf := q.ctl[:n]
	q.count(abi.CounterControlReads, 1)
	if err := q.fw.chip.Read(f.Base, buf); err != nil {
		return nil, abi.StatusBadMemory
	}
	return buf, abi.StatusOK
}

// controlDone lets go of scratch memory that only a hostile host needs.
func (q *queue) controlDone() {
	if cap(q.ctl) > 64<<10 {
		q.ctl = nil
	}
	if q.check != nil && cap(q.check.ctl) > 64<<10 {
		q.check.ctl = nil
	}
}

// target is one target of a termination or cancellation request.
type target struct {
	r       *request
	ordinal uint32
	mode    uint32
}

// pairs reads the TERMINATE or CANCEL tuples of a control buffer that must
// hold nothing else. Each element has its own status.
type pair struct {
	conn   uint64
	value  uint32
	status abi.Status
}

func (q *queue) pairs(f *abi.Fields, want abi.Attribute) ([]pair, abi.Status) {
	defer q.controlDone()
	buf, s := q.control(f)
	if s != abi.StatusOK {
		return nil, s
	}
	out := make([]pair, 0, f.Aux)
	off := 0
	for range f.Aux {
		t, next, ok := abi.NextTuple(buf, off)
		if !ok {
			return nil, abi.StatusBadControlBuffer
		}
		off = next
		var p pair
		switch {
		case t.Attr != want:
			p.status = abi.StatusUnknownAttribute
		case !t.Set:
			p.status = abi.StatusWrongDirection
		default:
			p.conn, p.value, p.status = abi.ParsePair(t.Value)
		}
		out = append(out, p)
	}
	return out, abi.StatusOK
}
