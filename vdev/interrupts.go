// SPDX-License-Identifier: Apache-2.0

package vdev

import (
	"encoding/binary"
	"sync"
	"sync/atomic"

	"toebox/vdev/abi"
)

// IRQs delivers interrupts to the client. Index and vector are those of VFIO:
// index 0 is INTx, index 2 MSI-X. Its methods must not block and must not call
// the function; *vfiouser.Server implements it.
//
// One that also has SetINTx is told the level of INTA and looks after masking
// itself; to others INTA is a trigger at each assertion, and again when it
// stands after the host cleared a cause.
type IRQs interface {
	Trigger(index, vector int) error
}

// intxLevel is the optional part of [IRQs].
type intxLevel interface {
	SetINTx(asserted bool) error
}

const (
	irqINTx = 0
	irqMSIX = 2

	msixEntrySize = 16
	msixTableSize = abi.NumVectors * msixEntrySize
	msixPBASize   = 8 // 33 bits, read as one 64-bit word
	allVectors    = 1<<abi.NumVectors - 1
)

// Delivery says how a signal leaves the function.
const (
	deliverNothing uint32 = iota // D3hot
	deliverINTx
	deliverMSIX
)

// irqConfig is what configuration space says about interrupts.
type irqConfig struct {
	awake, master, intxDisable, msix, masked bool
}

// interrupts turns vectors into MSI-X messages or INTx (SPEC.md §9).
//
// A signal of an unmasked MSI-X vector takes no lock. Nothing is lost against a
// concurrent unmask: the signaller sets the pending bit and looks at the mask
// again, the unmasking side clears the mask and then takes the pending bits.
type interrupts struct {
	irqs    atomic.Pointer[IRQs]
	deliver atomic.Uint32
	blocked atomic.Uint64 // vectors that must not be sent now
	pending atomic.Uint64 // the PBA
	refused atomic.Uint64 // vectors that are none, triggers the client's side refused

	mu     sync.Mutex
	config irqConfig
	table  [msixTableSize]byte
	// written: the client programs the table here. QEMU keeps the table to
	// itself and moves eventfds instead, so that masks of a table that
	// nobody has written since reset say nothing.
	written bool

	cause, queues     uint32 // INTX_CAUSE, INTX_QUEUES
	events, eventMask uint32 // EVENTS, EVENT_MASK
	line              bool   // INTA as last shown to the client
}

// reset gives everything its reset value and signals vector 0 if MSI-X is on.
// The MSI-X table is part of the PCI function and survives a CONTROL.RESET.
// After another reset MSI-X is off: c is what configuration space says then.
func (i *interrupts) reset(table bool, c irqConfig, events uint32) (signalled bool) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.config = c
	i.pending.Store(0)
	i.cause, i.queues = 0, 0
	i.events, i.eventMask = events, 0
	if table {
		i.table = [msixTableSize]byte{}
		for v := range abi.NumVectors {
			i.table[v*msixEntrySize+12] = 1 // masked
		}
		i.written = false
	}
	signalled = i.standLocked()
	i.updateLocked()
	return signalled
}

// standLocked makes vector 0 pending if MSI-X is on and an event stands that
// the mask lets through, or the start of the firmware, which needs no mask bit
// (SPEC.md §9.3).
func (i *interrupts) standLocked() bool {
	if !i.config.msix || i.events&(i.eventMask|abi.EventFirmware) == 0 {
		return false
	}
	i.pending.Or(1)
	return true
}

// configure follows configuration space. The other kind of interrupt starts
// with a clean slate, but for events that stand.
func (i *interrupts) configure(c irqConfig) (signalled bool) {
	i.mu.Lock()
	defer i.mu.Unlock()
	changed := c.msix != i.config.msix
	i.config = c
	if changed {
		i.pending.Store(0)
		i.cause, i.queues = 0, 0
		switch {
		case c.msix:
			signalled = i.standLocked()
		case i.events&i.eventMask != 0:
			i.cause = 1
		}
	}
	i.updateLocked()
	return signalled
}

// updateLocked derives delivery, masks and the INTx line from the state, and
// sends what became sendable.
func (i *interrupts) updateLocked() {
	deliver, blocked := deliverINTx, uint64(0)
	switch {
	case !i.config.awake:
		deliver = deliverNothing
	case i.config.msix:
		deliver = deliverMSIX
	}
	if !i.config.master || i.config.masked {
		blocked = allVectors
	} else if i.written {
		for v := range abi.NumVectors {
			blocked |= uint64(i.table[v*msixEntrySize+12]&1) << v
		}
	}
	i.blocked.Store(blocked)
	i.deliver.Store(deliver)

	if deliver == deliverMSIX {
		for v := range abi.NumVectors {
			i.release(v)
		}
	}
	i.lineLocked(false)
}

// release sends a pending vector that is not blocked any more.
func (i *interrupts) release(v int) {
	bit := uint64(1) << v
	if i.deliver.Load() != deliverMSIX || i.blocked.Load()&bit != 0 {
		return
	}
	if i.pending.Load()&bit != 0 && i.pending.And(^bit)&bit != 0 {
		i.trigger(irqMSIX, v)
	}
}

func (i *interrupts) trigger(index, vector int) {
	if irqs := i.irqs.Load(); irqs == nil || (*irqs).Trigger(index, vector) != nil {
		i.refused.Add(1)
	}
}

// signal raises a vector.
func (i *interrupts) signal(v int) {
	if v < 0 || v >= abi.NumVectors {
		i.refused.Add(1)
		return
	}
	switch i.deliver.Load() {
	case deliverMSIX:
		bit := uint64(1) << v
		if i.blocked.Load()&bit == 0 {
			i.trigger(irqMSIX, v)
			return
		}
		i.pending.Or(bit)
		i.release(v)
	case deliverINTx:
		i.mu.Lock()
		defer i.mu.Unlock()
		i.causeLocked(v)
	}
}

// causeLocked sets the cause bit of a vector while INTx is in use.
func (i *interrupts) causeLocked(v int) {
	if i.deliver.Load() != deliverINTx {
		return
	}
	if v == 0 {
		i.cause |= 1
	} else {
		i.queues |= 1 << (v - 1)
	}
	i.lineLocked(false)
}

// lineLocked shows the INTx line to the client. again: the host has just
// looked at the causes, and one that sees edges only needs another.
func (i *interrupts) lineLocked(again bool) {
	line := i.deliver.Load() == deliverINTx && !i.config.intxDisable && i.cause|i.queues != 0
	was := i.line
	i.line = line
	irqs := i.irqs.Load()
	if irqs == nil {
		return
	}
	if level, ok := (*irqs).(intxLevel); ok {
		if line != was && level.SetINTx(line) != nil {
			i.refused.Add(1)
		}
		return
	}
	if line && (again || !was) {
		i.trigger(irqINTx, 0)
	}
}

// standing is bit 3 of the Status register: INTx stands, disabled or not.
func (i *interrupts) standing() bool {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.deliver.Load() == deliverINTx && i.cause|i.queues != 0
}

// event sets bits of EVENTS and signals vector 0 if one of them became 1 that
// the mask lets through.
func (i *interrupts) event(bits uint32) (signalled bool) {
	i.mu.Lock()
	fresh := bits &^ i.events
	i.events |= bits
	signalled = fresh&i.eventMask != 0
	i.mu.Unlock()
	if signalled {
		i.signal(0)
	}
	return signalled
}

// note sets bits of EVENTS without a signal.
func (i *interrupts) note(bits uint32) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.events |= bits
}

func (i *interrupts) clearEvents(v uint32) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.events &^= v
}

// setEventMask stores EVENT_MASK; a bit that is newly set over a standing event
// signals vector 0.
func (i *interrupts) setEventMask(v uint32) (signalled bool) {
	i.mu.Lock()
	signalled = v&^i.eventMask&i.events != 0
	i.eventMask = v
	i.mu.Unlock()
	if signalled {
		i.signal(0)
	}
	return signalled
}

// clearCauses clears bits of INTX_CAUSE and INTX_QUEUES. An event that stands
// and is not masked sets its cause again; a line that stays asserted is shown
// again, as a level-triggered input sees it.
func (i *interrupts) clearCauses(cause, queues uint32) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.cause &^= cause
	i.queues &^= queues
	if i.deliver.Load() == deliverINTx && i.events&i.eventMask != 0 {
		i.cause |= 1
	}
	i.lineLocked(true)
}

func (i *interrupts) load(p *uint32) uint32 {
	i.mu.Lock()
	defer i.mu.Unlock()
	return *p
}

// readTable copies BAR2, table and PBA, to p.
func (i *interrupts) readTable(offset int, p []byte) {
	clear(p)
	i.mu.Lock()
	defer i.mu.Unlock()
	if offset < msixTableSize {
		copy(p, i.table[offset:])
	}
	var pba [msixPBASize]byte
	binary.LittleEndian.PutUint64(pba[:], i.pending.Load())
	for n := range pba {
		if at := abi.MSIXPBAOffset + n - offset; at >= 0 && at < len(p) {
			p[at] = pba[n]
		}
	}
}

// writeTable writes entries of the MSI-X table; the PBA and what lies between
// ignores writes.
func (i *interrupts) writeTable(offset int, p []byte) {
	if offset >= msixTableSize {
		return
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	i.written = true
	for n, v := range p {
		at := offset + n
		if at >= msixTableSize {
			break
		}
		switch {
		case at%msixEntrySize == 0:
			v &^= 3 // message addresses are aligned to 4 bytes
		case at%msixEntrySize == 12:
			v &= 1
		case at%msixEntrySize > 12:
			v = 0
		}
		i.table[at] = v
	}
	i.updateLocked()
}
