// SPDX-License-Identifier: Apache-2.0

package vdev

import (
	"encoding/binary"
	"sync"
	"testing"
)

// pba reads the pending bits.
func (r *rig) pba() uint64 {
	var b [8]byte
	r.access(2, 0x800, b[:], false)
	return binary.LittleEndian.Uint64(b[:])
}

// entry writes a vector's table entry.
func (r *rig) entry(v int, control byte) {
	r.access(2, uint64(16*v), []byte{0x03, 0, 0xe0, 0xfe, 0, 0, 0, 0, 0x41, 0, 0, 0, control, 0xff, 0xff, 0xff}, true)
}

// TestMSIXTableElsewhere: a client that keeps the table to itself gets every
// signal, but for the function mask.
func TestMSIXTableElsewhere(t *testing.T) {
	r := enabled(t, nil)
	r.set(0x20, 0xffffffff)
	r.setConfig(0x8a, 2, 0x8000)
	r.f.Signal(0)
	r.f.Signal(32)
	r.wantIRQs("[2.0 2.32]")
	r.f.Signal(33)
	r.f.Signal(-1)
	r.wantIRQs("[]")
	if got := r.f.RefusedInterrupts(); got != 2 {
		t.Errorf("%d interrupts refused, want 2", got)
	}

	r.setConfig(0x8a, 2, 0xc000)
	r.f.Signal(3)
	r.f.Signal(3)
	r.f.Signal(32)
	r.wantIRQs("[]")
	if got := r.pba(); got != 1<<3|1<<32 {
		t.Errorf("PBA %#x", got)
	}
	r.setConfig(0x8a, 2, 0x8000)
	r.wantIRQs("[2.3 2.32]")
	if got := r.pba(); got != 0 {
		t.Errorf("PBA %#x after unmask", got)
	}

	// Bus mastering gates messages; what was pending comes after.
	r.setConfig(0x04, 2, 0x0002)
	r.f.Signal(1)
	r.wantIRQs("[]")
	r.setConfig(0x04, 2, 0x0006)
	r.wantIRQs("[2.1]")

	// Turning MSI-X off forgets what was pending.
	r.setConfig(0x8a, 2, 0xc000)
	r.f.Signal(1)
	r.setConfig(0x8a, 2, 0)
	r.setConfig(0x8a, 2, 0x8000)
	r.wantIRQs("[]")
}

// TestMSIXTableHere: once the table is programmed here, its masks count.
func TestMSIXTableHere(t *testing.T) {
	r := enabled(t, nil)
	r.set(0x20, 0xffffffff)
	for v := range 33 {
		r.entry(v, 0)
	}
	r.entry(2, 1)
	r.setConfig(0x8a, 2, 0x8000)
	var b [16]byte
	r.access(2, 32, b[:], false)
	if want := [16]byte{0x00, 0, 0xe0, 0xfe, 0, 0, 0, 0, 0x41, 0, 0, 0, 1}; b != want {
		t.Errorf("entry % x, want % x", b, want)
	}
	r.f.Signal(2)
	r.f.Signal(1)
	r.wantIRQs("[2.1]")
	if got := r.pba(); got != 1<<2 {
		t.Errorf("PBA %#x", got)
	}
	r.access(2, 0x800, []byte{0, 0, 0, 0, 0, 0, 0, 0}, true) // read only
	if got := r.pba(); got != 1<<2 {
		t.Errorf("PBA %#x after a write", got)
	}
	r.access(2, 2*16+12, []byte{0, 0, 0, 0}, true)
	r.wantIRQs("[2.2]")
	// The table of 33 entries ends at 528; a write across its end is cut.
	r.access(2, 524, []byte{1, 0, 0, 0, 0xff, 0xff, 0xff, 0xff}, true)
	r.f.Signal(32)
	r.wantIRQs("[]")
	r.access(2, 528, b[:4], false)
	if b[0] != 0 {
		t.Errorf("byte 528 reads %#x", b[0])
	}
	// CONTROL.RESET leaves the PCI function alone, but pending bits go.
	r.set(0x10, 1<<31)
	if got := r.pba(); got != 0 {
		t.Errorf("PBA %#x after CONTROL.RESET", got)
	}
	r.wantIRQs("[2.0]") // the reset itself
	r.f.Signal(1)
	r.wantIRQs("[2.1]")
	// A function-level reset masks all entries, in a table that is used.
	_ = r.f.Reset()
	r.setConfig(0x04, 2, 0x0006)
	r.access(2, 16+12, b[:4], false)
	if b[0] != 1 {
		t.Error("entry 1 is not masked after a device reset")
	}
	r.setConfig(0x8a, 2, 0x8000)
	r.entry(0, 0)
	r.wantIRQs("[2.0]") // the reset, of which nobody knew
	r.f.Signal(1)
	r.wantIRQs("[]")
}

// TestINTx walks INTx for a client that sees edges.
func TestINTx(t *testing.T) {
	r := enabled(t, nil)
	status := func(want uint32) {
		t.Helper()
		if got := r.getConfig(0x06, 2) & 8; got != want {
			t.Errorf("interrupt status %d, want %d", got, want)
		}
		if got := r.getConfig(0x04, 4) >> 16 & 8; got != want {
			t.Errorf("interrupt status of a wide read %d, want %d", got, want)
		}
	}
	r.f.Signal(1)
	r.f.Signal(32)
	r.wantIRQs("[0.0]") // one edge
	r.want(0x2c, 0x80000001)
	r.want(0x28, 0)
	status(8)
	r.set(0x2c, 1)
	r.wantIRQs("[0.0]") // stands still
	r.set(0x2c, 0x80000000)
	r.wantIRQs("[]")
	status(0)

	// Disabled: the status shows it, the line does not; enabling it asserts.
	r.setConfig(0x04, 2, 0x0406)
	r.f.Signal(5)
	r.wantIRQs("[]")
	status(8)
	r.setConfig(0x04, 2, 0x0006)
	r.wantIRQs("[0.0]")

	// MSI-X clears the causes and takes over.
	r.set(0x20, 0xffffffff)
	r.setConfig(0x8a, 2, 0x8000)
	r.want(0x2c, 0)
	status(0)
	r.f.Signal(5)
	r.wantIRQs("[2.5]")
	r.want(0x2c, 0)
	r.setConfig(0x8a, 2, 0)
	r.wantIRQs("[]")

	// INTx does not need bus mastering; in D3hot nothing comes.
	r.setConfig(0x04, 2, 0x0002)
	r.f.Signal(5)
	r.wantIRQs("[0.0]")
	r.setConfig(0x44, 2, 3)
	r.f.Signal(6)
	r.f.Event(1 << 2)
	r.wantIRQs("[]")
	status(0)
}

// TestINTxLevel: a client that looks after the level is told its changes.
func TestINTxLevel(t *testing.T) {
	irqs := &levelIRQs{}
	r := enabled(t, func(c *Config) { c.IRQs = irqs })
	r.irqs = &irqs.fakeIRQs
	r.f.Signal(1)
	r.f.Signal(2)
	r.wantIRQs("[true]")
	r.set(0x2c, 1)
	r.wantIRQs("[]")
	r.set(0x2c, 2)
	r.wantIRQs("[false]")
	r.f.Signal(0)
	r.wantIRQs("[true]")
	_ = r.f.Reset()
	r.wantIRQs("[false]")
}

// TestEvents walks EVENTS, EVENT_MASK and vector 0 (SPEC.md §9.3).
func TestEvents(t *testing.T) {
	r := enabled(t, nil)
	r.setConfig(0x8a, 2, 0x8000)
	r.wantIRQs("[2.0]")
	r.want(0x20, 1)
	r.f.Event(1 << 2)
	r.wantIRQs("[]")
	r.set(0x24, 1<<2|1<<6) // standing
	r.wantIRQs("[2.0]")
	r.set(0x24, 1<<2|1<<6|1<<4) // the new bit does not stand
	r.wantIRQs("[]")
	r.f.Event(1 << 2) // stands already
	r.wantIRQs("[]")
	r.f.Event(1<<6 | 1<<3)
	r.wantIRQs("[2.0]")
	r.want(0x20, 1|1<<2|1<<6|1<<3)
	r.set(0x20, 1<<2)
	r.want(0x20, 1|1<<6|1<<3)
	r.f.Event(1 << 2)
	r.wantIRQs("[2.0]")
	r.f.SetLink(true)
	r.f.SetLink(true)
	r.wantIRQs("[]")
	r.want(0x20, 1|1<<1|1<<2|1<<6|1<<3)
	if got := r.fw.counters.Load(6); got != 4 {
		t.Errorf("interrupts counted %d", got)
	}

	// With INTx, an event that stands sets its cause again.
	r.setConfig(0x8a, 2, 0)
	r.set(0x20, 0xffffffff)
	r.f.Event(1 << 4)
	r.want(0x28, 1)
	r.wantIRQs("[0.0]")
	r.set(0x28, 1)
	r.want(0x28, 1)
	r.set(0x20, 1<<4)
	r.set(0x28, 1)
	r.want(0x28, 0)

	// What stands under its mask is shown by the other kind as well.
	r.irqs.take()
	r.f.Event(1 << 4)
	r.setConfig(0x8a, 2, 0x8000)
	r.want(0x28, 0)
	r.wantIRQs("[0.0 2.0]")
	r.setConfig(0x8a, 2, 0)
	r.want(0x28, 1)
	r.wantIRQs("[0.0]")
}

// TestStartSignals: whatever EVENT_MASK says, a start of the firmware signals
// vector 0 by MSI-X, and never INTx (SPEC.md §9.3).
func TestStartSignals(t *testing.T) {
	r := enabled(t, nil)
	r.set(0x10, 1<<31)
	_ = r.f.Reset()
	r.setConfig(0x04, 2, 0x0006)
	r.want(0x28, 0)
	r.wantIRQs("[]") // INTx

	r.setConfig(0x8a, 2, 0x8000) // over the standing event
	r.wantIRQs("[2.0]")
	r.setConfig(0x8a, 2, 0x8000) // on already
	r.wantIRQs("[]")
	for range 2 { // whether bit 0 was cleared or not
		r.set(0x10, 1<<31)
		r.want(0x24, 0)
		r.want(0x20, 1)
		r.wantIRQs("[2.0]")
	}
	// Masked: once it is unmasked.
	r.setConfig(0x8a, 2, 0xc000)
	r.set(0x10, 1<<31)
	r.wantIRQs("[]")
	if got := r.pba(); got != 1 {
		t.Errorf("PBA %#x", got)
	}
	r.setConfig(0x8a, 2, 0x8000)
	r.wantIRQs("[2.0]")
	// A function-level reset turns MSI-X off, so that the signal comes when it
	// is turned on again.
	r.setConfig(0x51, 1, 0x80)
	r.wantIRQs("[]")
	r.setConfig(0x04, 2, 0x0006)
	r.setConfig(0x8a, 2, 0x8000)
	r.wantIRQs("[2.0]")
	if got := r.fw.counters.Load(6); got != 5 {
		t.Errorf("interrupts counted %d", got)
	}
	// Nothing to learn: the host has cleared the bit.
	r.set(0x20, 1)
	r.setConfig(0x8a, 2, 0)
	r.setConfig(0x8a, 2, 0x8000)
	r.wantIRQs("[]")
}

// TestRaise walks RAISE (SPEC.md §12).
func TestRaise(t *testing.T) {
	r := enabled(t, nil)
	r.set(0x84, 0)
	r.want(0x28, 1)
	r.want(0x20, 1|1<<5)
	r.set(0x84, 1)
	r.set(0x84, 32)
	r.want(0x2c, 1|1<<31)
	r.setConfig(0x8a, 2, 0x8000)
	r.irqs.take()
	r.set(0x20, 0xffffffff)
	for v := range uint32(33) {
		r.set(0x84, v)
	}
	r.wantIRQs("[2.0 2.1 2.2 2.3 2.4 2.5 2.6 2.7 2.8 2.9 2.10 2.11 2.12 2.13 2.14 2.15 2.16 2.17 2.18 2.19 2.20 2.21 2.22 2.23 2.24 2.25 2.26 2.27 2.28 2.29 2.30 2.31 2.32]")
	r.want(0x20, 1<<5)
	if got := r.f.Counter(47); got != 0 {
		t.Errorf("mmio_bad_value is %d", got)
	}
	r.set(0x84, 33)
	r.set(0x84, 0xffffffff)
	r.wantIRQs("[]")
	if got := r.f.Counter(47); got != 2 {
		t.Errorf("mmio_bad_value is %d, want 2", got)
	}
}

// TestMaskRace signals while another goroutine masks and unmasks: after the
// last unmask nothing is left pending and at least one signal came.
func TestMaskRace(t *testing.T) {
	r := enabled(t, nil)
	r.setConfig(0x8a, 2, 0x8000)
	for range 300 {
		var wg sync.WaitGroup
		wg.Go(func() {
			for range 20 {
				r.f.Signal(4)
			}
		})
		for range 20 {
			r.setConfig(0x8a, 2, 0xc000)
			r.setConfig(0x8a, 2, 0x8000)
		}
		wg.Wait()
		if got := r.pba(); got != 0 {
			t.Fatalf("PBA %#x while nothing is masked", got)
		}
		if r.irqs.take() == "[]" {
			t.Fatal("20 signals, no interrupt")
		}
	}
}
