// SPDX-License-Identifier: Apache-2.0

package pci_test

import (
	"bytes"
	"errors"
	"fmt"
	"sync/atomic"
	"testing"

	"toebox/vfio-user/pci"
)

// Places in every, the function with all kinds of interrupts.
const (
	command   = 0x04
	status    = 0x06
	msi       = 0x40 // control +2, address, data, mask +0x10, pending +0x14
	msix      = 0x60
	pmcsr     = 0x74
	table     = 0x000 // of BAR0
	pba       = 0x800
	numMSIX   = 70
	allowFour = 2 << 4 // of MSI's vectors
)

func every() pci.Config {
	return pci.Config{Pin: 1, Capabilities: []pci.Capability{
		pci.At(0x40, pci.MSI{Vectors: 8, Masking: true}),
		pci.At(0x60, pci.MSIX{Vectors: numMSIX, Table: table, PBA: pba}),
		pci.At(0x70, pci.PM{}),
	}}
}

// TestINTx walks the pin for a client that sees edges.
func TestINTx(t *testing.T) {
	r := newRig(t, every())
	r.Signal(0)
	r.wantIRQs("asserted", "[0.0]")
	r.want("status", status, 2, 0x18)
	r.want("status, in a wide access", 0x01, 8, 0x00_0018_0000_0000_00)
	r.want("status, half of it", status, 1, 0x18)
	r.want("status, the other half", status+1, 1, 0)
	r.Signal(3)
	r.SetINTx(true)
	r.wantIRQs("asserted again", "[]")
	r.RepeatINTx()
	r.wantIRQs("repeated", "[0.0]")
	r.set(status, 2, 0xffff)
	r.want("status cannot be written", status, 2, 0x18)

	r.set(command, 2, 1<<10)
	r.want("status while disabled", status, 2, 0x18)
	r.RepeatINTx()
	r.wantIRQs("repeated while disabled", "[]")
	r.set(command, 2, 0)
	r.wantIRQs("enabled", "[0.0]")
	r.SetINTx(false)
	r.want("status", status, 2, 0x10)
	r.RepeatINTx()
	r.wantIRQs("nothing to repeat", "[]")

	// Asleep it is neither shown nor forgotten; leaving D3hot is a reset.
	r.Signal(0)
	r.set(pmcsr, 2, 3)
	r.want("status asleep", status, 2, 0x10)
	r.irqs.take()
	r.Signal(0)
	r.wantIRQs("asleep", "[]")
	r.set(pmcsr, 2, 0)
	r.want("status after waking up", status, 2, 0x10)
	r.wantIRQs("awake", "[]")

	r.Signal(0)
	r.ClearInterrupts()
	r.want("status after clearing", status, 2, 0x10)

	// Without a pin there is nothing to assert.
	r = newRig(t, pci.Config{})
	r.Signal(0)
	r.wantIRQs("no pin", "[]")
	r.want("status without a pin", status, 2, 0)
}

// TestINTxLevel: a client that looks after the level is told its changes.
func TestINTxLevel(t *testing.T) {
	r := newRig(t, every())
	l := &levels{}
	r.Connect(l)
	r.irqs = &l.edges
	for _, c := range []struct {
		what string
		do   func()
		want string
	}{
		{"asserted", func() { r.Signal(0) }, "[true]"},
		{"again", func() { r.Signal(0) }, "[]"},
		{"repeated", func() { r.RepeatINTx() }, "[]"},
		{"disabled", func() { r.set(command, 2, 1<<10) }, "[false]"},
		{"enabled", func() { r.set(command, 2, 0) }, "[true]"},
		{"MSI on", func() { r.set(msi+2, 2, 1) }, "[false]"},
		{"MSI off", func() { r.set(msi+2, 2, 0) }, "[]"},
		{"asserted anew", func() { r.Signal(0) }, "[true]"},
		{"reset", func() { _ = r.Reset() }, "[false]"},
		{"asserted anew", func() { r.Signal(0) }, "[true]"},
		{"closed", func() { r.Close() }, "[false]"},
	} {
		c.do()
		r.wantIRQs(c.what, c.want)
	}
}

// TestMSI walks MSI: vectors allowed, masks, pending bits, bus mastering.
func TestMSI(t *testing.T) {
	r := newRig(t, every())
	r.set(command, 2, 4)
	r.set(msi+2, 2, 1|allowFour)
	for _, v := range []int{0, 3, 6, 8, -1} {
		r.Signal(v) // 6 is 2 where 4 are allowed, and 8 is 0; -1 is none
	}
	r.wantIRQs("signals", "[1.0 1.3 1.2 1.0]")
	r.want("status: the pin is out of use", status, 2, 0x10)

	r.set(msi+0x10, 4, 0xfffffffa)
	r.want("mask", msi+0x10, 4, 0xfa)
	for _, v := range []int{0, 1, 3, 3, 7} {
		r.Signal(v)
	}
	r.wantIRQs("masked in part", "[1.0]")
	r.want("pending", msi+0x14, 4, 0x0a)
	r.want("pending, in part", msi+0x13, 2, 0x0a00)
	r.set(msi+0x14, 4, 0)
	r.want("pending is read only", msi+0x14, 4, 0x0a)
	r.set(msi+0x10, 1, 0x08)
	r.wantIRQs("unmasked in part", "[1.1]")
	r.set(command, 2, 0)
	r.Signal(0)
	r.want("pending, no bus master", msi+0x14, 4, 0x09)
	r.set(command, 2, 4)
	r.wantIRQs("bus master", "[1.0]")
	r.want("pending", msi+0x14, 4, 0x08)
	r.set(command, 2, 6)
	if got := r.read(0, pba, 8); !bytes.Equal(got, make([]byte, 8)) {
		t.Errorf("PBA % x while MSI is in use", got)
	}

	// Turning it off forgets what was pending.
	r.set(msi+2, 2, 0)
	r.set(msi+0x10, 4, 0)
	r.set(msi+2, 2, 1)
	r.wantIRQs("off and on", "[]")
	r.Signal(5)
	r.wantIRQs("one vector allowed", "[1.0]")

	// Without masks there is nowhere to keep what may not go.
	r = newRig(t, pci.Config{Capabilities: []pci.Capability{pci.MSI{}}})
	r.set(msi+2, 2, 1)
	r.Signal(0)
	r.set(command, 2, 4)
	r.wantIRQs("no bus master", "[]")
	r.Signal(0)
	r.wantIRQs("bus master", "[1.0]")
	r = newRig(t, pci.Config{Capabilities: []pci.Capability{pci.MSI{}}, IgnoreCommand: true})
	r.set(msi+2, 2, 1)
	r.Signal(0)
	r.wantIRQs("Command ignored", "[1.0]")
}

// entry masks or unmasks an entry of the MSI-X table.
func (r *rig) entry(v int, masked byte) {
	r.Helper()
	r.write(0, uint64(table+16*v), 0, 0, 0xe0, 0xfe, 0, 0, 0, 0, 0x41, 0, 0, 0, masked, 0, 0, 0)
}

// pending reads the pending bits.
func (r *rig) pending() string {
	r.Helper()
	return fmt.Sprintf("%x", r.read(0, pba, 16))
}

func TestMSIX(t *testing.T) {
	r := newRig(t, every())
	r.set(command, 2, 6)
	r.set(msix+2, 2, 0x8000)
	// A client that keeps the table to itself gets every message.
	for _, v := range []int{0, 63, 64, 69, 70, -1} {
		r.Signal(v)
	}
	r.wantIRQs("table elsewhere", "[2.0 2.63 2.64 2.69]")
	if n := r.Refused(); n != 2 {
		t.Errorf("%d refused, want 2", n)
	}
	// Function mask.
	r.set(msix+2, 2, 0xc000)
	for _, v := range []int{69, 3, 3, 64, 52} {
		r.Signal(v)
	}
	r.wantIRQs("function mask", "[]")
	const some = "08000000000010002100000000000000"
	if got := r.pending(); got != some {
		t.Errorf("PBA %s, want %s", got, some)
	}
	for at := range uint64(16) {
		if got, want := fmt.Sprintf("%x", r.read(0, pba+at, 1)), some[2*at:][:2]; got != want {
			t.Errorf("PBA byte %d: %s, want %s", at, got, want)
		}
	}
	if got := fmt.Sprintf("%x", r.read(0, pba+5, 8)); got != some[10:26] {
		t.Errorf("PBA from byte 5 %s", got)
	}
	r.write(0, pba, 0, 0, 0, 0, 0, 0, 0, 0)
	if got := r.pending(); got != some {
		t.Errorf("PBA %s after a write", got)
	}
	r.set(msix+2, 2, 0x8000)
	r.wantIRQs("function mask off", "[2.3 2.52 2.64 2.69]")

	// A table that was written counts, each entry.
	r.entry(65, 0)
	r.Signal(65)
	r.Signal(64)
	r.wantIRQs("one entry is not masked", "[2.65]")
	r.entry(64, 0)
	r.wantIRQs("nor the next", "[2.64]")
	r.entry(65, 1)
	r.Signal(65)
	r.write(0, table+16*65+15, 0) // not the mask
	r.wantIRQs("masked again", "[]")
	r.write(0, table+16*65+12, 0xfe)
	r.wantIRQs("unmasked by a byte", "[2.65]")

	// Bus mastering, sleep.
	r.set(command, 2, 2)
	r.Signal(64)
	r.wantIRQs("no bus master", "[]")
	r.set(command, 2, 6)
	r.wantIRQs("bus master", "[2.64]")
	r.Signal(1) // masked
	r.ClearInterrupts()
	r.entry(1, 0)
	r.wantIRQs("cleared", "[]")
	r.set(pmcsr, 2, 3)
	r.Signal(1)
	r.wantIRQs("asleep", "[]")
	r.set(pmcsr, 2, 0)
	r.want("control after waking up", msix+2, 2, numMSIX-1)
	r.Signal(1)
	r.wantIRQs("awake, MSI-X off", "[0.0]")

	// After a reset the table says nothing until it is written anew.
	r.set(command, 2, 6)
	r.set(msix+2, 2, 0x8000)
	r.Signal(1)
	r.wantIRQs("reset", "[2.1]")
	// Both at once, which software must not do.
	r.set(msi+2, 2, 1)
	r.Signal(1)
	r.wantIRQs("both", "[2.1]")
	r.set(msix+2, 2, 0)
	r.Signal(0)
	r.wantIRQs("MSI", "[1.0]")
}

// TestFewerMSIX: a number that MSI has and MSI-X lacks.
func TestFewerMSIX(t *testing.T) {
	r := newRig(t, pci.Config{Pin: 1, Capabilities: []pci.Capability{pci.MSI{Vectors: 4}, pci.At(0x60, pci.MSIX{Vectors: 2})}})
	r.set(command, 2, 4)
	r.set(0x62, 2, 0x8000)
	r.Signal(1)
	r.Signal(2)
	r.wantIRQs("two vectors", "[2.1]")
	if n := r.Refused(); n != 1 {
		t.Errorf("%d refused", n)
	}
}

// TestRefusedByClient: nobody there, or one that will not have it.
func TestRefusedByClient(t *testing.T) {
	f, err := pci.New(every())
	if err != nil {
		t.Fatal(err)
	}
	r := &rig{t, f, nil}
	r.set(command, 2, 4)
	r.set(msi+2, 2, 1)
	f.Signal(0)
	f.Connect(&edges{refuse: errors.New("no")})
	f.Signal(0)
	r.set(msi+2, 2, 0)
	f.Signal(0)
	f.Connect(&levels{edges{refuse: errors.New("no")}})
	f.SetINTx(false)
	if n := f.Refused(); n != 4 {
		t.Errorf("%d interrupts refused, want 4", n)
	}
}

// TestMaskRace unmasks in each way there is, at the moment that another
// goroutine signals: each signal comes out once, and none stays pending.
func TestMaskRace(t *testing.T) {
	const rounds = 500
	for _, c := range []struct {
		name      string
		vector    int
		set       func(r *rig)
		mask, off func(r *rig)
	}{
		{"function mask", 66, func(r *rig) {},
			func(r *rig) { r.set(msix+2, 2, 0xc000) }, func(r *rig) { r.set(msix+2, 2, 0x8000) }},
		{"entry", 66, func(r *rig) { r.set(msix+2, 2, 0x8000) },
			func(r *rig) { r.entry(66, 1) }, func(r *rig) { r.entry(66, 0) }},
		{"bus master", 66, func(r *rig) { r.set(msix+2, 2, 0x8000) },
			func(r *rig) { r.set(command, 2, 2) }, func(r *rig) { r.set(command, 2, 6) }},
		{"MSI", 4, func(r *rig) { r.set(msi+2, 2, 1|3<<4) },
			func(r *rig) { r.set(msi+0x10, 4, 0x10) }, func(r *rig) { r.set(msi+0x10, 4, 0) }},
	} {
		t.Run(c.name, func(t *testing.T) {
			f, err := pci.New(every())
			if err != nil {
				t.Fatal(err)
			}
			var came atomic.Int64
			f.Connect(counter{&came})
			r := &rig{t, f, nil}
			r.set(command, 2, 6)
			c.set(r)
			begin, done := make(chan struct{}), make(chan struct{})
			go func() {
				defer close(done)
				for range begin {
					r.Signal(c.vector)
					done <- struct{}{}
				}
			}()
			for n := int64(1); n <= rounds; n++ {
				c.mask(r)
				begin <- struct{}{}
				c.off(r)
				<-done
				if got := came.Load(); got != n {
					t.Errorf("%d interrupts after %d signals; PBA %s, MSI %#x", got, n, r.pending(), r.get(msi+0x14, 4))
					break
				}
			}
			close(begin)
			<-done
		})
	}
}

// counter counts triggers.
type counter struct{ n *atomic.Int64 }

func (c counter) Trigger(int, int) error {
	c.n.Add(1)
	return nil
}

// TestMessageAllocations: a message that is not masked allocates nothing and
// takes no lock.
func TestMessageAllocations(t *testing.T) {
	f, err := pci.New(every())
	if err != nil {
		t.Fatal(err)
	}
	r := &rig{t, f, nil}
	r.set(command, 2, 4)
	r.set(msix+2, 2, 0x8000)
	f.Connect(lockFree{f})
	if n := testing.AllocsPerRun(100, func() { f.Message(7) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

// lockFree calls the function from where only a message without lock gets.
type lockFree struct{ f *pci.Function }

func (l lockFree) Trigger(int, int) error {
	l.f.Load(0, 4)
	return nil
}
