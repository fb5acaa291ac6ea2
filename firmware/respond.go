// SPDX-License-Identifier: Apache-2.0

package firmware

import (
	"errors"

	"toebox/vdev/abi"
)

// ring holds responses until they are published. It grows as far as requests
// and connections, which are charged to adapter memory, have responses to
// come.
type ring struct {
	slots []([abi.DescriptorSize]byte) // a power of two
	head  int
	n     int
}

func (r *ring) push(f *abi.Fields) {
	if r.n == len(r.slots) {
		grown := make([][abi.DescriptorSize]byte, max(64, 2*len(r.slots)))
		for i := range r.n {
			grown[i] = r.slots[(r.head+i)&(len(r.slots)-1)]
		}
		r.slots, r.head = grown, 0
	}
	abi.Descriptor(r.slots[(r.head+r.n)&(len(r.slots)-1)][:]).Encode(f, false)
	r.n++
}

// at returns the i-th oldest.
func (r *ring) at(i int) abi.Descriptor { return r.slots[(r.head+i)&(len(r.slots)-1)][:] }

func (r *ring) drop(n int) {
	r.head = (r.head + n) & (len(r.slots) - 1)
	r.n -= n
	if r.n == 0 && len(r.slots) > 2*holdLimit {
		*r = ring{}
	}
}

// respond queues a response.
func (q *queue) respond(f abi.Fields) {
	q.held.push(&f)
	q.combine.open = false
	if q.check != nil {
		q.check.responded(&f)
	}
}

// stalled reports that no more responses may be caused, once the host was
// given what its table takes.
func (q *queue) stalled() bool {
	if q.held.n < holdLimit {
		return false
	}
	q.flush()
	return q.held.n >= holdLimit
}

// flush publishes responses: bodies of a run first, then word 0 of each slot,
// then, after the barrier within the last store, the host's event word is
// judged once for all of them (SPEC.md §4.2, §4.4).
func (q *queue) flush() {
	if q.held.n == 0 || q.state == abi.QueueError {
		return
	}
	if q.low {
		q.low = q.scarce() // the host may have freed slots since the last response
	}
	old, log2 := q.out, uint(q.config.OutLog2)
	for q.held.n > 0 {
		if q.free == q.out {
			q.scanFree(q.held.n)
			if q.free == q.out {
				break
			}
		}
		slot := q.out.Slot(log2)
		n := min(q.held.n, int(q.free.Sub(q.out)), 1<<log2-slot)
		start := q.out
		err := q.fw.chip.View(q.config.Out+uint64(slot)*abi.DescriptorSize, n*abi.DescriptorSize, true, q.looks.put)
		if q.out != start {
			q.count(abi.CounterDescriptorWrites, 1)
		}
		if err != nil {
			q.fail(err)
			break
		}
	}
	q.shownHeld.Store(uint32(q.held.n))
	if q.out == old {
		return
	}
	q.progress = true
	q.shownOut.Store(uint32(q.out))
	q.count(abi.CounterResponses, uint64(q.out.Sub(old)))
	if q.held.n > 0 {
		q.count(abi.CounterResponsesHeld, uint64(q.held.n))
	}
	if q.state != abi.QueueError {
		q.tell(old)
	}
}

// tell interrupts for responses from index old on, if the host asked for it or
// the table is nearly full (IF12).
func (q *queue) tell(old abi.Index) {
	w, err := q.loadEvent(abi.EventOutPublished)
	if err != nil {
		q.fail(err)
		return
	}
	wanted := w.Wants(old, q.out)
	urgent := q.fellBelow()
	switch {
	case wanted || urgent:
		q.signal()
	default:
		q.count(abi.CounterInterruptsSuppressed, 1)
	}
	if urgent {
		q.count(abi.CounterInterruptsUrgent, 1)
	}
}

// fellBelow reports whether the number of free output slots fell below
// OUT_THRESHOLD since it was last at or above it.
func (q *queue) fellBelow() bool {
	was := q.low
	q.low = q.scarce()
	return q.low && !was
}

// scarce reports whether fewer output slots than OUT_THRESHOLD are free.
func (q *queue) scarce() bool {
	threshold := q.fw.adapter.outThreshold.Load()
	if threshold == 0 {
		threshold = 1 << q.config.OutLog2 / 8
	}
	if uint64(q.free.Sub(q.out)) < threshold {
		q.scanFree(int(min(threshold, 1<<q.config.OutLog2)))
	}
	return uint64(q.free.Sub(q.out)) < threshold
}

// scanFree looks for free slots behind those known, until want are known or one
// is not free.
func (q *queue) scanFree(want int) {
	log2 := uint(q.config.OutLog2)
	for {
		known := int(q.free.Sub(q.out))
		slot := q.free.Slot(log2)
		n := min(want-known, 1<<log2-known, 1<<log2-slot)
		if n <= 0 {
			return
		}
		start := q.free
		err := q.fw.chip.View(q.config.Out+uint64(slot)*abi.DescriptorSize, n*abi.DescriptorSize, true, q.looks.scan)
		if err != nil && !errors.Is(err, errStop) {
			q.fail(err)
			return
		}
		if int(q.free.Sub(start)) < n {
			return
		}
	}
}

func (q *queue) scanPiece(p []byte) error {
	if len(p)%abi.DescriptorSize != 0 || !wordAligned(p) {
		return errPiece
	}
	for i := 0; i < len(p); i += abi.DescriptorSize {
		if abi.LoadWord(p[i:])&abi.WordOwner == 0 {
			return errStop
		}
		if q.check != nil {
			q.check.freed(q.free, p[i:])
		}
		q.free = q.free.Add(1)
	}
	return nil
}

// putPiece publishes into one piece of the output table.
func (q *queue) putPiece(p []byte) error {
	if len(p)%abi.DescriptorSize != 0 || !wordAligned(p) {
		return errPiece
	}
	n := len(p) / abi.DescriptorSize
	if q.check != nil {
		q.check.giving(p)
	}
	for i := range n { // 1. bodies
		copy(p[i*abi.DescriptorSize+4:(i+1)*abi.DescriptorSize], q.held.at(i)[4:])
	}
	for i := range n { // 2. word 0 of each, in order
		abi.StoreWord(p[i*abi.DescriptorSize:], q.held.at(i).Word())
	}
	q.held.drop(n)
	q.out = q.out.Add(n)
	return nil
}
