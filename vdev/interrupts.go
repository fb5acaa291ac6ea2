// SPDX-License-Identifier: Apache-2.0

package vdev

import (
	"sync"

	"toebox/vdev/abi"
	"toebox/vfio-user/pci"
)

// IRQs delivers interrupts to the client; *vfiouser.Server implements it.
type IRQs = pci.IRQs

// interrupts is what the adapter adds to the interrupts of a PCI function
// (SPEC.md §9): events, and for INTx the causes behind the pin.
//
// A signal by MSI-X takes no lock.
type interrupts struct {
	pci *pci.Function

	mu                sync.Mutex // before the lock of pci
	cause, queues     uint32     // INTX_CAUSE, INTX_QUEUES
	events, eventMask uint32     // EVENTS, EVENT_MASK
}

// reset gives everything its reset value. With a reset of the PCI function
// MSI-X goes off and its table back; else vector 0 is signalled if MSI-X is on.
func (i *interrupts) reset(function bool, events uint32) (signalled bool) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.cause, i.queues = 0, 0
	i.events, i.eventMask = events, 0
	if function {
		return false
	}
	i.pci.ClearInterrupts()
	return i.standLocked()
}

// standLocked signals vector 0 if MSI-X is on and an event stands that the mask
// lets through, or the start of the firmware, which needs no mask bit (SPEC.md
// §9.3).
func (i *interrupts) standLocked() bool {
	if i.pci.State().Mode != pci.ModeMSIX || i.events&(i.eventMask|abi.EventFirmware) == 0 {
		return false
	}
	return i.pci.Message(0)
}

// changed follows the PCI function. The other kind of interrupt starts with a
// clean slate, but for events that stand.
func (i *interrupts) changed(was, now pci.State) (signalled bool) {
	if was.Mode == now.Mode {
		return false
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	i.cause, i.queues = 0, 0
	if now.Mode == pci.ModeINTx && i.events&i.eventMask != 0 {
		i.cause = 1
	}
	i.pci.SetINTx(i.cause != 0)
	return i.standLocked()
}

// signal raises a vector.
func (i *interrupts) signal(v int) {
	if !i.pci.Message(v) {
		i.mu.Lock()
		defer i.mu.Unlock()
		i.causeLocked(v)
	}
}

// causeLocked sets the cause bit of a vector while INTx is in use.
func (i *interrupts) causeLocked(v int) {
	if i.pci.State().Mode != pci.ModeINTx {
		return
	}
	if v == 0 {
		i.cause |= 1
	} else {
		i.queues |= 1 << (v - 1)
	}
	i.pci.SetINTx(true)
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
// and is not masked sets its cause again; a pin that stays asserted is shown
// again, as a level-triggered input sees it.
func (i *interrupts) clearCauses(cause, queues uint32) {
	i.mu.Lock()
	defer i.mu.Unlock()
	stood := i.cause|i.queues != 0
	i.cause &^= cause
	i.queues &^= queues
	if i.pci.State().Mode == pci.ModeINTx && i.events&i.eventMask != 0 {
		i.cause |= 1
	}
	if stands := i.cause|i.queues != 0; stands && stood {
		i.pci.RepeatINTx()
	} else {
		i.pci.SetINTx(stands)
	}
}

func (i *interrupts) load(p *uint32) uint32 {
	i.mu.Lock()
	defer i.mu.Unlock()
	return *p
}
