// SPDX-License-Identifier: Apache-2.0

package guestdriver

import "toebox/vdev/abi"

// inRing is the host's side of an input table: it produces requests
// (SPEC.md §4.2).
type inRing struct {
	table []byte
	log2  uint
	next  abi.Index // producer index
}

func slotOf(table []byte, i abi.Index, log2 uint) abi.Descriptor {
	off := i.Slot(log2) * abi.DescriptorSize
	return abi.Descriptor(table[off : off+abi.DescriptorSize : off+abi.DescriptorSize])
}

// free reports whether the slot of index next+ahead is the host's to fill.
func (r *inRing) free(ahead int) bool {
	return ahead < 1<<r.log2 && abi.LoadWord(slotOf(r.table, r.next.Add(ahead), r.log2))&abi.WordOwner == 0
}

// put posts as many requests as there are free slots and returns how many.
// Order of stores: 1 all bodies, 2 words 0 from the last to the first, so that
// the adapter finds the run whole.
func (r *inRing) put(reqs []abi.Fields) int {
	n := 0
	for n < len(reqs) && r.free(n) {
		slotOf(r.table, r.next.Add(n), r.log2).EncodeBody(&reqs[n])
		n++
	}
	for i := n - 1; i >= 0; i-- {
		abi.StoreWord(slotOf(r.table, r.next.Add(i), r.log2), reqs[i].Word(true))
	}
	r.next = r.next.Add(n)
	return n
}

// outRing is the host's side of an output table: it consumes responses.
type outRing struct {
	table []byte
	log2  uint
	next  abi.Index // consumer index
}

// fill hands every slot to the adapter, as create demands (SPEC.md §4.1).
func (r *outRing) fill() {
	for i := range 1 << r.log2 {
		abi.StoreWord(slotOf(r.table, abi.Index(i), r.log2), abi.WordOwner)
	}
}

// pending reports whether a response stands at the consumer index.
func (r *outRing) pending() bool {
	return abi.LoadWord(slotOf(r.table, r.next, r.log2))&abi.WordOwner == 0
}

// take copies a run of responses out, decodes the copies and hands the slots
// back. It returns how many.
func (r *outRing) take(dst []abi.Fields) int {
	if len(dst) > 1<<r.log2 {
		dst = dst[:1<<r.log2]
	}
	n := 0
	for n < len(dst) {
		slot := slotOf(r.table, r.next.Add(n), r.log2)
		if abi.LoadWord(slot)&abi.WordOwner == 0 {
			var d [abi.DescriptorSize]byte
			copy(d[:], slot)
			dst[n] = abi.Descriptor(d[:]).Decode()
			n++
			continue
		}
		break
	}
	for i := range n {
		abi.StoreWord(slotOf(r.table, r.next.Add(i), r.log2), abi.WordOwner)
	}
	r.next = r.next.Add(n)
	return n
}
