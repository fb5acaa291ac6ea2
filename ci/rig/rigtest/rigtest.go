// SPDX-License-Identifier: Apache-2.0

package rigtest

import (
	"testing"
	"time"

	"toebox/ci/bus/inproc"
	"toebox/ci/rig"
	"toebox/guestdriver"
	"toebox/vdev/device"
)

// Device makes an adapter of the tree's firmware, and a bus to it by function
// calls. c's Firmware, DMA and IRQs are set here. It is closed when t ends.
func Device(t testing.TB, c device.Config) (*device.Device, *inproc.Bus) {
	t.Helper()
	mem, irqs := inproc.NewMemory(), inproc.NewInterrupts()
	c.Firmware, c.DMA, c.IRQs = rig.Firmware, mem, irqs
	d, err := device.New(c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := d.Close(); err != nil {
			t.Error(err)
		}
	})
	bus, err := inproc.New(d.Function(), mem, irqs)
	if err != nil {
		t.Fatal(err)
	}
	return d, bus
}

// Driver opens the adapter on bus. When t ends it is closed; then the adapter must
// have answered each request once, and the driver must have its memory back.
func Driver(t testing.TB, bus guestdriver.Bus, o guestdriver.Options) *guestdriver.Adapter {
	t.Helper()
	a, err := guestdriver.Open(t.Context(), bus, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := a.Close(); err != nil {
			t.Error(err)
		}
		s := a.Stats()
		if s.BadTags+s.BadTypes+s.BadFinals+s.BadConns+s.BadLengths+s.LostBuffers+s.Memory != 0 {
			t.Errorf("at the end: %+v", s)
		}
	})
	return a
}

// patience bounds what Until waits for, which happens at once or never.
const patience = 60 * time.Second

// Until waits for what other goroutines bring about. t fails if they do not, and
// says what state returns.
func Until(t testing.TB, what string, cond func() bool, state func() string) {
	t.Helper()
	end := time.NewTimer(patience)
	defer end.Stop()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for !cond() {
		select {
		case <-tick.C:
		case <-end.C:
			t.Fatalf("%s: not in time; %s", what, state())
		}
	}
}
