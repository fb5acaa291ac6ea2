// SPDX-License-Identifier: Apache-2.0

package pci

import (
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
)

// took counts what it is told to trigger.
type took struct{ n atomic.Int64 }

func (t *took) Trigger(int, int) error { t.n.Add(1); return nil }

// messages returns a function whose MSI-X messages may leave, and who counts them.
func messages(t *testing.T) (*Function, *took) {
	t.Helper()
	f, err := New(Config{Capabilities: []Capability{At(0x40, MSIX{Vectors: 70})}})
	if err != nil {
		t.Fatal(err)
	}
	client := new(took)
	f.Connect(client)
	for _, w := range [][]byte{{0x04, 4}, {0x43, 0x80}} { // bus master, MSI-X
		if err := f.WriteRegion(7, uint64(w[0]), w[1:]); err != nil {
			t.Fatal(err)
		}
	}
	return f, client
}

// TestUnblockedMeanwhile: a signaller found its vector masked, and before it
// made that pending all masks were cleared. Nobody else will send it.
func TestUnblockedMeanwhile(t *testing.T) {
	f, client := messages(t)
	f.keep(1, 1<<3)
	if n := client.n.Load(); n != 1 || f.irq.pending[1].Load() != 0 {
		t.Errorf("%d interrupts, pending %#x", n, f.irq.pending[1].Load())
	}
}

// TestReleasedOnce: of two who find messages that may leave now, one sends them.
func TestReleasedOnce(t *testing.T) {
	f, client := messages(t)
	const vectors, all, rounds = 64, 1<<64 - 1, 1000
	// Both at once: the moment in which both could take a message is short.
	var arrived atomic.Int64
	meet := func(n int64) {
		arrived.Add(1)
		for spin := 0; arrived.Load() < n; spin++ {
			if spin > 1000 {
				runtime.Gosched()
			}
		}
	}
	var wg sync.WaitGroup
	for who := range 2 {
		wg.Go(func() {
			for round := range int64(rounds) {
				if who == 0 {
					f.irq.pending[0].Store(all)
				}
				meet(4*round + 2)
				f.release(0)
				meet(4*round + 4)
				if who == 0 {
					if n := client.n.Swap(0); n != vectors || f.irq.pending[0].Load() != 0 {
						t.Errorf("round %d: %d interrupts of %d, pending %#x", round, n, vectors, f.irq.pending[0].Load())
					}
				}
			}
		})
	}
	wg.Wait()
}
