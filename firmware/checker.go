// SPDX-License-Identifier: Apache-2.0

package firmware

import (
	"bytes"
	"encoding/binary"
	"hash/crc32"
	"sync"

	"toebox/vdev/abi"
)

// Bounds of the checker (SPEC.md §15).
const (
	checkerCharge = 32 << 10 // besides the copy of the output table
	watched       = 256      // requests that wait in the table
	tagEvents     = 512      // events kept, of all tags
	bellsKept     = 64       // doorbells between two passes
	foundLimit    = 64       // violations of a pass that are described
	sampleWhole   = 4 << 10  // buffers up to this size are summed whole
	samplePieces  = 16       // of larger ones
	samplePiece   = 256      // bytes
	half          = 1 << 29  // indexes further apart than this are in the other order
	bellIn        = 0        // of bell.table
	bellOut       = 1
)

// checker looks whether the host keeps its side of the protocol (SPEC.md §15).
// It belongs to the worker of its queue. It changes nothing of what the queue
// does.
type checker struct {
	q      *queue
	crc    *crc32.Table
	out    []byte // what the adapter wrote into each slot of the output table
	seen   []byte // copies of requests [q.in, seenTo), by index modulo watched
	seenTo abi.Index
	next   abi.Index // index of the slot that takePiece is at
	bells  [2]lastBell
	rung   []bell // scratch
	ctl    []byte // the control buffer at hand as it was copied

	events [tagEvents]struct {
		tag uint32
		abi.TagEvent
	}
	event int

	found  []abi.CheckerEntry // of this pass
	looked uint64             // of this pass
}

// lastBell is the index of the last doorbell that was right.
type lastBell struct {
	index abi.Index
	known bool
}

// bell is a doorbell on its way from a register access to the worker.
type bell struct {
	table int
	index abi.Index
}

// bells collects doorbells for the worker's next pass.
type bells struct {
	mu   sync.Mutex
	list []bell
}

// add notes a doorbell. When too many come between two passes the oldest are
// forgotten.
func (b *bells) add(v bell) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(b.list) >= bellsKept {
		b.list = b.list[:copy(b.list, b.list[1:])]
	}
	b.list = append(b.list, v)
}

// take moves what there is to dst.
func (b *bells) take(dst []bell) []bell {
	b.mu.Lock()
	defer b.mu.Unlock()
	dst = append(dst[:0], b.list...)
	b.list = b.list[:0]
	return dst
}

// switchChecker follows the register CHECKER.
func (q *queue) switchChecker() {
	q.checked = !q.checked
	if !q.checked {
		q.endChecker()
		return
	}
	size := abi.DescriptorSize << q.config.OutLog2
	if !q.fw.memory.charge(size + checkerCharge) {
		q.fw.log.Warn("no adapter memory to check a queue", "queue", q.index)
		return
	}
	k := &checker{
		q: q, crc: crc32.MakeTable(crc32.Castagnoli),
		out: make([]byte, size), seen: make([]byte, watched*abi.DescriptorSize), seenTo: q.in,
	}
	if q.in == 0 && q.out == 0 {
		k.bells = [2]lastBell{{known: true}, {known: true}}
	} else {
		k.rung = q.bells.take(k.rung) // of an earlier time
	}
	q.check = k
	if err := k.snapshot(); err != nil {
		q.endChecker()
		q.fail(err)
	}
}

func (q *queue) endChecker() {
	if q.check != nil {
		q.check.publish()
		q.fw.memory.release(len(q.check.out) + checkerCharge)
		q.check = nil
	}
}

// snapshot copies what stands in the output table. Word 0 may change meanwhile
// and is left out.
func (k *checker) snapshot() error {
	at := 0
	return k.q.fw.chip.View(k.q.config.Out, len(k.out), false, func(p []byte) error {
		for ; len(p) >= abi.DescriptorSize; p = p[abi.DescriptorSize:] {
			copy(k.out[at+4:at+abi.DescriptorSize], p[4:])
			at += abi.DescriptorSize
		}
		return nil
	})
}

// look is the checker's part of a pass, before anything is taken.
func (k *checker) look() {
	k.rung = k.q.bells.take(k.rung)
	for _, b := range k.rung {
		if b.table == bellIn {
			k.bellIn(b.index)
		} else {
			k.bellOut(b.index)
		}
	}
	k.observe()
}

func (k *checker) inSlot(i abi.Index) uint64 {
	return k.q.config.In + uint64(i.Slot(uint(k.q.config.InLog2)))*abi.DescriptorSize
}

func (k *checker) outSlot(i abi.Index) uint64 {
	return k.q.config.Out + uint64(i.Slot(uint(k.q.config.OutLog2)))*abi.DescriptorSize
}

// order checks a doorbell's index against the one before.
func (k *checker) order(table int, place uint8, p abi.Index) bool {
	last := k.bells[table]
	if !last.known {
		return true
	}
	switch d := p.Sub(last.index); {
	case d == 0:
		k.report(abi.CheckerEntry{Rule: abi.CheckBellNothing, Place: place, Index: uint32(p), Detail: uint32(last.index)})
		return false
	case d >= half:
		k.report(abi.CheckerEntry{Rule: abi.CheckBellIndex, Place: place, Index: uint32(p), Detail: uint32(last.index)})
		return false
	}
	return true
}

// bellIn checks a doorbell of the input table: all slots before its index were
// published.
func (k *checker) bellIn(p abi.Index) {
	if !k.order(bellIn, abi.PlaceInput, p) {
		return
	}
	q := k.q
	size := uint32(1) << q.config.InLog2
	if ahead := p.Sub(q.in); ahead < half {
		from := q.in
		if last := k.bells[bellIn]; last.known && last.index.Sub(q.in) <= ahead {
			from = last.index
		}
		wrong := abi.CheckerEntry{Rule: abi.CheckBellIndex, Place: abi.PlaceInput, Index: uint32(p)}
		if ahead > size {
			wrong.Address, wrong.Detail = k.inSlot(q.in.Add(int(size))), uint32(q.in.Add(int(size)))
			k.report(wrong)
			return
		}
		for i := from; i != p; i = i.Add(1) {
			w, err := q.loadWord(k.inSlot(i))
			if err != nil {
				return // the queue finds it itself
			}
			if w&abi.WordOwner == 0 {
				wrong.Address, wrong.Detail = k.inSlot(i), uint32(i)
				k.report(wrong)
				return
			}
		}
	}
	k.bells[bellIn] = lastBell{p, true}
}

// bellOut checks a doorbell of the output table: all slots before its index
// were handed back.
func (k *checker) bellOut(p abi.Index) {
	if !k.order(bellOut, abi.PlaceOutput, p) {
		return
	}
	q := k.q
	if lead := p.Sub(q.out); lead != 0 && lead < half {
		k.report(abi.CheckerEntry{
			Rule: abi.CheckOutEarly, Place: abi.PlaceOutput, Index: uint32(p), Address: k.outSlot(q.out), Detail: uint32(q.out),
		})
		return
	}
	// Slots before this one are known to be back, and may be given again.
	from := q.free.Add(-(1 << q.config.OutLog2))
	if p.Sub(from) < half {
		for i := from; i != p; i = i.Add(1) {
			w, err := q.loadWord(k.outSlot(i))
			if err != nil {
				return
			}
			if w&abi.WordOwner == 0 {
				k.report(abi.CheckerEntry{
					Rule: abi.CheckBellIndex, Place: abi.PlaceOutput, Index: uint32(p), Address: k.outSlot(i), Detail: uint32(i),
				})
				return
			}
		}
	}
	k.bells[bellOut] = lastBell{p, true}
}

// watch is the copy of the request with index i.
func (k *checker) watch(i abi.Index) []byte {
	at := int(i) % watched * abi.DescriptorSize
	return k.seen[at : at+abi.DescriptorSize]
}

// observe remembers the requests that wait in the table, and looks whether
// those remembered are still there.
func (k *checker) observe() {
	q := k.q
	if k.seenTo.Sub(q.in) > watched {
		k.seenTo = q.in
	}
	for i := q.in; i != k.seenTo; i = i.Add(1) {
		w, err := q.loadWord(k.inSlot(i))
		if err != nil {
			return
		}
		if w&abi.WordOwner == 0 {
			d := k.watch(i)
			e := abi.CheckerEntry{
				Rule: abi.CheckInWithdrawn, Place: abi.PlaceInput, Index: uint32(i), Address: k.inSlot(i),
				Tag: abi.Descriptor(d).Tag(), Descriptor: [abi.DescriptorSize]byte(d), Found: [abi.DescriptorSize]byte(d),
			}
			binary.LittleEndian.PutUint32(e.Found[:], w)
			k.report(e)
			k.seenTo = i
			return
		}
	}
	for most := min(watched, uint32(1)<<q.config.InLog2); k.seenTo.Sub(q.in) < most; k.seenTo = k.seenTo.Add(1) {
		i := k.seenTo
		published := false
		err := q.fw.chip.View(k.inSlot(i), abi.DescriptorSize, false, func(p []byte) error {
			if len(p) != abi.DescriptorSize || !wordAligned(p) {
				return errPiece
			}
			if w := abi.LoadWord(p); w&abi.WordOwner != 0 {
				published = true
				k.copySlot(k.watch(i), w, p)
			}
			return nil
		})
		if err != nil || !published {
			return
		}
		k.looked++
		d := abi.Descriptor(k.watch(i))
		k.note(d.Tag(), abi.TagEvent{Kind: abi.TagSeen, Type: d.Type(), Value: uint32(i)})
	}
}

// copySlot copies a slot whose word 0 was loaded.
func (k *checker) copySlot(dst []byte, w uint32, p []byte) {
	binary.LittleEndian.PutUint32(dst, w)
	copy(dst[4:], p[4:abi.DescriptorSize])
}

// taken is told of slots p that were copied to c and are not handed back yet.
func (k *checker) taken(p, c []byte) {
	for ; len(c) > 0; p, c = p[abi.DescriptorSize:], c[abi.DescriptorSize:] {
		i := k.next
		k.next = i.Add(1)
		k.looked++
		d := abi.Descriptor(c[:abi.DescriptorSize])
		k.note(d.Tag(), abi.TagEvent{Kind: abi.TagTaken, Type: d.Type(), Value: uint32(i)})
		e := abi.CheckerEntry{Rule: abi.CheckInRewritten, Place: abi.PlaceInput, Index: uint32(i), Address: k.inSlot(i), Tag: d.Tag()}
		if ahead := k.seenTo.Sub(k.q.in); ahead <= watched && i.Sub(k.q.in) < ahead && !bytes.Equal(k.watch(i), d) {
			e.Descriptor, e.Found = [abi.DescriptorSize]byte(k.watch(i)), [abi.DescriptorSize]byte(d)
		} else {
			k.copySlot(e.Found[:], abi.LoadWord(p), p)
			e.Descriptor = [abi.DescriptorSize]byte(d)
		}
		if e.Descriptor != e.Found {
			e.Tag = abi.Descriptor(e.Descriptor[:]).Tag()
			e.Detail = differ(e.Descriptor[:], e.Found[:])
			k.report(e)
		}
	}
}

// giving is told of free slots p of the output table, from q.out on, that are
// about to be written.
func (k *checker) giving(p []byte) {
	q := k.q
	for n := 0; len(p) > 0; n, p = n+1, p[abi.DescriptorSize:] {
		i := q.out.Add(n)
		slot := k.shadow(i)
		if w := abi.LoadWord(p); w&abi.WordOwner == 0 {
			k.outWrong(abi.CheckOutOwner, i, w, p)
		} else if !bytes.Equal(slot[4:], p[4:abi.DescriptorSize]) {
			k.outWrong(abi.CheckOutWritten, i, w, p)
		}
		copy(slot, q.held.at(n))
	}
}

// freed is told of a slot that the host has handed back. index is the
// adapter's producer index for its next use.
func (k *checker) freed(index abi.Index, p []byte) {
	if slot := k.shadow(index); !bytes.Equal(slot[4:], p[4:abi.DescriptorSize]) {
		k.outWrong(abi.CheckOutWritten, index.Add(-(1 << k.q.config.OutLog2)), abi.LoadWord(p), p)
		copy(slot[4:], p[4:])
	}
}

func (k *checker) shadow(i abi.Index) []byte {
	at := i.Slot(uint(k.q.config.OutLog2)) * abi.DescriptorSize
	return k.out[at : at+abi.DescriptorSize]
}

func (k *checker) outWrong(rule abi.CheckerRule, i abi.Index, w uint32, p []byte) {
	d := abi.Descriptor(k.shadow(i))
	e := abi.CheckerEntry{
		Rule: rule, Place: abi.PlaceOutput, Index: uint32(i), Address: k.outSlot(i), Tag: d.Tag(),
		Descriptor: [abi.DescriptorSize]byte(d),
	}
	k.copySlot(e.Found[:], w, p)
	if rule == abi.CheckOutWritten {
		e.Detail = 4 + differ(e.Descriptor[4:], e.Found[4:])
	}
	k.report(e)
}

// differ is where a and b, which are equally long, differ first.
func differ(a, b []byte) uint32 {
	for i := range a {
		if a[i] != b[i] {
			return uint32(i)
		}
	}
	return uint32(len(a))
}
