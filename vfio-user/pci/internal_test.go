// SPDX-License-Identifier: Apache-2.0

package pci

import "testing"

// took counts what it is told to trigger.
type took struct{ n int }

func (t *took) Trigger(int, int) error { t.n++; return nil }

// TestUnblockedMeanwhile: a signaller found its vector masked, and before it
// made that pending all masks were cleared. Nobody else will send it.
func TestUnblockedMeanwhile(t *testing.T) {
	f, err := New(Config{Capabilities: []Capability{At(0x40, MSIX{Vectors: 70})}})
	if err != nil {
		t.Fatal(err)
	}
	var client took
	f.Connect(&client)
	for _, w := range [][]byte{{0x04, 4}, {0x43, 0x80}} { // bus master, MSI-X
		if err := f.WriteRegion(7, uint64(w[0]), w[1:]); err != nil {
			t.Fatal(err)
		}
	}
	f.keep(1, 1<<3)
	if client.n != 1 || f.irq.pending[1].Load() != 0 {
		t.Errorf("%d interrupts, pending %#x", client.n, f.irq.pending[1].Load())
	}
}
