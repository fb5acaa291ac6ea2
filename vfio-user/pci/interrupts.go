// SPDX-License-Identifier: Apache-2.0

package pci

import (
	"encoding/binary"
	"math/bits"
	"sync/atomic"

	vfiouser "toebox/vfio-user"
)

// IRQs delivers interrupts to the client. Index and vector are those of VFIO.
// Its methods must not block and must not call the function; *vfiouser.Server
// implements it.
//
// One that also has SetINTx(bool) error is told the level of the pin and looks
// after masking itself; to others the pin is a trigger at each assertion, and
// at [Function.RepeatINTx].
type IRQs interface {
	Trigger(index, vector int) error
}

// intxLevel is the optional part of [IRQs].
type intxLevel interface {
	SetINTx(asserted bool) error
}

const (
	wordBits = 64
	entryCtl = 12 // offset of Vector Control in a table entry
)

// interrupts is the state behind messages and the pin.
//
// A message of a vector that is not masked takes no lock. Nothing is lost
// against a concurrent unmask: the signaller sets the pending bit and looks at
// the mask again, the unmasking side clears the mask and then takes the pending
// bits.
type interrupts struct {
	client  atomic.Pointer[IRQs]
	refused atomic.Uint64
	vectors int // numbers that Message takes
	// One bit for each vector, of whichever of MSI and MSI-X is enabled.
	blocked, pending []atomic.Uint64
	keeps            [ModeMSIX + 1]bool // a blocked message becomes pending, else it is gone

	// Guarded by [Function.mu].
	table []byte   // MSI-X
	masks []uint64 // a bit for each entry's mask
	// written: the client programs the table here. QEMU keeps the table to
	// itself and moves eventfds instead, so that masks of a table that nobody
	// has written since reset say nothing.
	written bool
	pin     bool // the device's interrupt stands
	line    bool // as last shown to the client
}

func (i *interrupts) init(msi *MSI, msix *MSIX) {
	i.vectors = 1
	if msi != nil {
		i.vectors, i.keeps[ModeMSI] = msi.vectors(), msi.Masking
	}
	if msix != nil {
		i.vectors, i.keeps[ModeMSIX] = max(i.vectors, msix.Vectors), true
		i.table = make([]byte, msix.tableSize())
	}
	n := (i.vectors + wordBits - 1) / wordBits
	i.blocked, i.pending, i.masks = make([]atomic.Uint64, n), make([]atomic.Uint64, n), make([]uint64, n)
	i.resetTableLocked()
}

// resetTableLocked masks all entries and clears the rest.
func (i *interrupts) resetTableLocked() {
	clear(i.table)
	for v := entryCtl; v < len(i.table); v += msixEntrySize {
		i.table[v] = 1
	}
	for w := range i.masks {
		i.masks[w] = ^uint64(0)
	}
	i.written = false
}

// forgetLocked drops what is pending and lets go of the pin.
func (i *interrupts) forgetLocked() {
	for w := range i.pending {
		i.pending[w].Store(0)
	}
	i.pin = false
}

func (i *interrupts) blockAllLocked() {
	for w := range i.blocked {
		i.blocked[w].Store(^uint64(0))
	}
}

// blockLocked masks the vectors in masks; words beyond those are not masked.
func (i *interrupts) blockLocked(masks []uint64) {
	for w := range i.blocked {
		var m uint64
		if w < len(masks) {
			m = masks[w]
		}
		i.blocked[w].Store(m)
	}
}

// pendingMSI is the Pending Bits register.
func (i *interrupts) pendingMSI(kind Mode) uint64 {
	if kind != ModeMSI {
		return 0
	}
	return i.pending[0].Load() & 0xffffffff
}

func (i *interrupts) trigger(index, vector int) {
	if c := i.client.Load(); c == nil || (*c).Trigger(index, vector) != nil {
		i.refused.Add(1)
	}
}

// Refused returns how many interrupts were lost because the client's side
// refused them or the function has no such vector.
func (f *Function) Refused() uint64 { return f.irq.refused.Load() }

// Signal raises interrupt v in the way that software has chosen: as a message,
// or by asserting the pin, which stays so until SetINTx.
func (f *Function) Signal(v int) {
	if !f.Message(v) {
		f.SetINTx(true)
	}
}

// Message sends message v if MSI or MSI-X is in use, and reports false if INTx
// is. A message that is masked becomes pending; of MSI vectors that software
// did not allow the low bits of the number count. Outside D0 nothing leaves.
func (f *Function) Message(v int) (taken bool) {
	if v < 0 || v >= f.irq.vectors {
		f.irq.refused.Add(1)
		return true
	}
	gates := f.gates.Load()
	mode := Mode(gates >> gateMode & 3)
	index := vfiouser.IRQMSIX
	switch mode {
	case ModeNone:
		return true
	case ModeINTx:
		return false
	case ModeMSI:
		index = vfiouser.IRQMSI
		v &= 1<<(gates>>gateMultiple&7) - 1
	case ModeMSIX:
		if v >= f.msix.Vectors {
			f.irq.refused.Add(1)
			return true
		}
	}
	word, bit := v/wordBits, uint64(1)<<(v%wordBits)
	if f.irq.blocked[word].Load()&bit == 0 {
		f.irq.trigger(index, v)
		return true
	}
	if f.irq.keeps[mode] {
		f.keep(word, bit)
	}
	return true
}

// keep makes a blocked vector pending. It may have been unblocked since that
// was looked at, by one who did not see it pending.
func (f *Function) keep(word int, bit uint64) {
	f.irq.pending[word].Or(bit)
	f.release(word)
}

// release sends what is pending in a word and not blocked any more.
func (f *Function) release(word int) {
	index := vfiouser.IRQMSIX
	switch Mode(f.gates.Load() >> gateMode & 3) {
	case ModeMSI:
		index = vfiouser.IRQMSI
	case ModeMSIX:
	default:
		return
	}
	p := &f.irq.pending[word]
	ready := p.Load() &^ f.irq.blocked[word].Load()
	if ready == 0 {
		return
	}
	for ready &= p.And(^ready); ready != 0; ready &= ready - 1 {
		f.irq.trigger(index, word*wordBits+bits.TrailingZeros64(ready))
	}
}

func (f *Function) releaseAllLocked() {
	for w := range f.irq.pending {
		f.release(w)
	}
}

// SetINTx says whether the device's interrupt stands. That shows in Status and,
// unless Command disables it, on the pin, while INTx is in use. With MSI or
// MSI-X enabled, or without a pin, it does nothing; changing over, either way,
// lets go of the pin.
func (f *Function) SetINTx(asserted bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.inta && f.kind == ModeINTx && f.irq.pin != asserted {
		f.irq.pin = asserted
		f.lineLocked(false)
	}
}

// RepeatINTx signals a pin that stays asserted once more, to a client that sees
// edges only: software has just looked at the causes and left some.
func (f *Function) RepeatINTx() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.lineLocked(true)
}

// ClearInterrupts drops what is pending and lets go of the pin, as a reset of
// the device that leaves the PCI function alone does.
func (f *Function) ClearInterrupts() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.irq.forgetLocked()
	f.lineLocked(false)
}

// standingLocked is the Interrupt Status bit: set also while Command disables
// the pin.
func (f *Function) standingLocked() bool {
	return f.irq.pin && Mode(f.gates.Load()>>gateMode&3) == ModeINTx
}

// lineLocked shows the pin to the client.
func (f *Function) lineLocked(again bool) {
	line := f.standingLocked() && f.gates.Load()&gateINTxDisable == 0
	was := f.irq.line
	f.irq.line = line
	c := f.irq.client.Load()
	if c == nil {
		return
	}
	if level, ok := (*c).(intxLevel); ok {
		if line != was && level.SetINTx(line) != nil {
			f.irq.refused.Add(1)
		}
		return
	}
	if line && (again || !was) {
		f.irq.trigger(vfiouser.IRQINTx, 0)
	}
}

func (f *Function) readTable(offset int, p []byte) {
	f.mu.Lock()
	defer f.mu.Unlock()
	copy(p, f.irq.table[offset:])
}

// writeTable writes table entries. Message addresses are aligned to 4 bytes; of
// Vector Control only the mask is there.
func (f *Function) writeTable(offset int, p []byte) {
	f.mu.Lock()
	defer f.mu.Unlock()
	i := &f.irq
	i.written = true
	for n, v := range p {
		at := offset + n
		switch entry, field := at/msixEntrySize, at%msixEntrySize; {
		case field == 0:
			v &^= 3
		case field == entryCtl:
			v &= 1
			bit := uint64(1) << (entry % wordBits)
			i.masks[entry/wordBits] = i.masks[entry/wordBits]&^bit | uint64(v)<<(entry%wordBits)
		case field > entryCtl:
			v = 0
		}
		i.table[at] = v
	}
	f.deriveLocked()
}

// readPBA copies the pending bit array, which ignores writes, to p.
func (f *Function) readPBA(offset int, p []byte) {
	clear(p)
	if f.State().Mode != ModeMSIX {
		return
	}
	var word [8]byte
	for n := range p {
		at := offset + n
		if n == 0 || at%8 == 0 {
			binary.LittleEndian.PutUint64(word[:], f.irq.pending[at/8].Load())
		}
		p[n] = word[at%8]
	}
}
