// SPDX-License-Identifier: Apache-2.0

package pci_test

import (
	"fmt"
	"slices"
	"testing"

	"toebox/vfio-user/pci"
)

// witness is a device that writes down what it is told. Each of its hooks calls
// the function, which must be allowed.
type witness struct {
	*rig
	seen []string
}

func (w *witness) note(format string, a ...any) { w.seen = append(w.seen, fmt.Sprintf(format, a...)) }

func (w *witness) want(what string, want ...string) {
	w.Helper()
	if !slices.Equal(w.seen, want) {
		w.Errorf("%s: the device was told %q, want %q", what, w.seen, want)
	}
	w.seen = nil
}

// newWitness has power management at 0x40, Express at 0x48, its own fields
// at 0x90.
func newWitness(t *testing.T, pm pci.PM) *witness {
	w := &witness{}
	w.rig = newRig(t, pci.Config{
		Pin:          1,
		BARs:         [6]pci.BAR{{Size: 16}, {Kind: pci.IO, Size: 16}},
		Capabilities: []pci.Capability{pm, pci.Express{FLR: true}, pci.At(0xc0, pci.MSI{Masking: true}), pci.AER{}},
		Fields: []pci.Field{
			{Offset: 0x90, Width: 2, Reset: 0x1234, Writable: 0xffff, Written: func(v uint64) { w.Message(0); w.note("field %#x", v) }},
			{Offset: 0x92, Width: 1, Writable: 0xff, Sticky: 0x0f, FLRKeeps: 0xf0, Read: func(v uint64) uint64 { w.Message(0); return ^v & 0xff }},
			{Offset: 0x93, Width: 1, Writable: 0x7f, Filter: func(old, v uint64) uint64 { return max(old, v) }, Written: func(v uint64) { w.note("largest %#x", v) }},
		},
		Changed: func(was, now pci.State) {
			if now != w.State() {
				t.Errorf("told of %+v, is %+v", now, w.State())
			}
			w.note("%v to %v", was, now)
		},
		Reset: func(k pci.ResetKind) { w.Signal(0); w.note("reset %d, field %#x", k, w.Load(0x90, 2)) },
	})
	return w
}

// TestHooks: what the device is told of writes, and that its hooks may call the
// function.
func TestHooks(t *testing.T) {
	w := newWitness(t, pci.PM{D1: true})
	w.set(0x90, 2, 0xabcd)
	w.want("a field", "field 0xabcd")
	w.set(0x90, 1, 0xee)
	w.want("half of it", "field 0xabee")
	w.set(0x8f, 1, 1)
	w.set(0x92, 1, 0x5a)
	w.want("its neighbours")
	if got := w.get(0x92, 1); got != 0xa5 {
		t.Errorf("a field reads %#x, want the complement of what was written", got)
	}
	if got := w.get(0x8f, 8); got != 0xa5abee00 {
		t.Errorf("a wide access reads %#x", got)
	}
	w.set(0x93, 1, 0x33)
	w.set(0x91, 4, 0x110077) // 0x91, 0x92, 0x93
	w.want("several", "largest 0x33", "field 0x77ee", "largest 0x33")
	w.set(0x04, 2, 7)
	w.want("Command", "{0 false false false false 1} to {0 true true true false 1}")
	w.set(0x04, 2, 7)
	w.want("Command as it was")
	w.set(0x04, 2, 0x404)
	w.want("Command", "{0 true true true false 1} to {0 false false true true 1}")
	w.set(0xc2, 2, 1)
	w.want("MSI", "{0 false false true true 1} to {0 false false true true 2}")
	w.set(0x44, 2, 2) // D2 is not there
	w.want("no state")
	w.set(0x44, 2, 1)
	w.want("D1", "{0 false false true true 2} to {1 false false false false 0}")
	w.set(0x44, 2, 0)
	w.want("D0, no reset", "{1 false false false false 0} to {0 false false true true 2}")

	// The device's own changes, whatever the masks say.
	w.Store(0x104, 4, 0x00100000)
	if got := w.get(0x104, 4); got != 0x00100000 {
		t.Errorf("AER status %#x", got)
	}
	w.set(0x104, 4, 0x00100000)
	if got := w.get(0x104, 4); got != 0 {
		t.Errorf("AER status %#x after it was cleared", got)
	}
	w.Preset(0x90, 2, 0x4321)
	if got := w.get(0x90, 2); got != 0x4321 {
		t.Errorf("preset field %#x", got)
	}
	_ = w.Reset()
	if got := w.get(0x90, 2); got != 0x4321 {
		t.Errorf("preset field %#x after a reset", got)
	}
}

// TestResets: what each kind leaves, and the order of what the device is told.
func TestResets(t *testing.T) {
	for _, c := range []struct {
		name  string
		pm    pci.PM
		reset func(w *witness)
		kind  string // as the device is told; "" for no reset
		own   uint64 // of the field at 0x92, as stored
		link  uint64 // link control
		maxes uint64 // device control
	}{
		{"bus", pci.PM{}, func(w *witness) { _ = w.Reset() }, "0", 0x0f, 0, 0x2810},
		{"client gone", pci.PM{}, func(w *witness) { w.Disconnected() }, "0", 0x0f, 0, 0x2810},
		{"function level", pci.PM{}, func(w *witness) { w.Function.WriteRegion(7, 0x50, []byte{0, 0x80}) }, "1", 0xff, 0xc8, 0x2810},
		{"function level, payload kept", pci.PM{}, func(w *witness) { w.set(0x50, 2, 0x80e0) }, "1", 0xff, 0xc8, 0x28f0},
		{"function level, by a wide access", pci.PM{}, func(w *witness) { w.set(0x4f, 8, 0x800000) }, "1", 0xff, 0xc8, 0x2810},
		{"power", pci.PM{}, func(w *witness) { w.set(0x44, 2, 3); w.seen = nil; w.set(0x44, 2, 0) }, "2", 0x0f, 0, 0x2810},
		{"power, kept", pci.PM{NoSoftReset: true}, func(w *witness) { w.set(0x44, 2, 3); w.seen = nil; w.set(0x44, 2, 0) }, "", 0xff, 0xc8, 0x0000},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := newWitness(t, c.pm)
			w.set(0x90, 2, 0x5555)
			w.set(0x92, 1, 0xff)
			w.set(0x50, 2, 0)
			w.set(0x58, 2, 0xffff)
			w.set(0x108, 4, 0xffffffff) // AER masks are sticky
			w.set(0x04, 2, 6)
			w.Signal(0)
			w.seen = nil
			c.reset(w)
			if c.kind == "" {
				w.want("no reset", "{3 false false false false 0} to {0 true false true false 1}")
			} else {
				was := "{0 true false true false 1}"
				if c.kind == "2" {
					was = "{3 false false false false 0}"
				}
				w.want("reset", "reset "+c.kind+", field 0x5555", was+" to {0 false false false false 1}")
				if got := w.get(0x90, 2); got != 0x1234 {
					t.Errorf("field %#x", got)
				}
				if got := w.get(0x06, 2); got != 0x10 {
					t.Errorf("status %#x", got)
				}
			}
			for _, r := range []struct {
				at, n int
				want  uint64
			}{{0x92, 1, ^c.own & 0xff}, {0x58, 2, c.link}, {0x50, 2, c.maxes}, {0x108, 4, 0x005ff030}} {
				if got := w.get(r.at, r.n); got != r.want {
					t.Errorf("register %#x reads %#x, want %#x", r.at, got, r.want)
				}
			}
		})
	}
}

// TestNotReset: what looks like a reset and is none.
func TestNotReset(t *testing.T) {
	w := newWitness(t, pci.PM{})
	w.set(0x50, 1, 0x80)
	w.set(0x44, 2, 0) // D0 already
	w.set(0x52, 2, 0x8000)
	w.want("nothing")
	w.Close()
	w.set(0x50, 2, 0x8000)
	_ = w.Reset()
	w.Disconnected()
	w.want("closed")

	// Without the capability the bit means nothing.
	told := false
	r := newRig(t, pci.Config{Capabilities: []pci.Capability{pci.Express{}}, Reset: func(pci.ResetKind) { told = true }})
	r.set(0x48, 2, 0x8000)
	r.want("device control", 0x48, 2, 0)
	// A device that wants to be left alone when the client goes.
	gone := 0
	r2 := newRig(t, pci.Config{Disconnected: func() { gone++ }, Reset: func(pci.ResetKind) { told = true }})
	r2.Disconnected()
	if told || gone != 1 {
		t.Errorf("reset %v, told %d times that the client has gone", told, gone)
	}
}

// TestFind finds capabilities, and registers by them.
func TestFind(t *testing.T) {
	w := newWitness(t, pci.PM{})
	for _, c := range []struct {
		id       uint16
		extended bool
		at       int
		ok       bool
	}{{0x10, false, 0x48, true}, {0x01, false, 0x40, true}, {0x01, true, 0x100, true}, {0x10, true, 0, false}, {0x11, false, 0, false}} {
		if at, ok := w.Find(c.id, c.extended); at != c.at || ok != c.ok {
			t.Errorf("capability %#x, extended %v: at %#x, %v", c.id, c.extended, at, ok)
		}
	}
}

// resets is who is told of resets too.
type resets struct{ edges }

func (r *resets) DeviceReset() { _ = r.note("reset") }

// TestResetsTold: the server hears of each reset once, of whatever kind, and of
// nothing else.
func TestResetsTold(t *testing.T) {
	f, err := pci.New(pci.Config{Capabilities: []pci.Capability{pci.PM{}, pci.Express{FLR: true}}})
	if err != nil {
		t.Fatal(err)
	}
	told := &resets{}
	f.Connect(told)
	for _, tt := range []struct {
		what string
		do   func()
		want string
	}{
		{"a write of no reset", func() { _ = f.WriteRegion(configRegion, 0x50, []byte{0x10, 0}) }, "[]"},
		{"function level reset", func() { _ = f.WriteRegion(configRegion, 0x50, []byte{0, 0x80}) }, "[reset]"},
		{"to D3hot", func() { _ = f.WriteRegion(configRegion, 0x44, []byte{3, 0}) }, "[]"},
		{"to D0", func() { _ = f.WriteRegion(configRegion, 0x44, []byte{0, 0}) }, "[reset]"},
		{"bus reset", func() { _ = f.Reset() }, "[reset]"},
		{"no client", f.Disconnected, "[reset]"},
		{"after the end", func() { f.Close(); _ = f.Reset() }, "[]"},
	} {
		tt.do()
		if got := told.take(); got != tt.want {
			t.Errorf("%s: told %s, want %s", tt.what, got, tt.want)
		}
	}
}
