// SPDX-License-Identifier: Apache-2.0

package keeper

import (
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	vfiouser "toebox/vfio-user"
	"toebox/vfio-user/vfiousertest"
)

// TestChurn kills servers while the client maps, unmaps, sets interrupts and
// reads all the time, in several goroutines. No request fails, and the last
// server has exactly what the client believes.
func TestChurn(t *testing.T) {
	const kills, workers, slots = 40, 3, 64
	f := newFakes(t)
	r := start(t, f.config())
	dev, cfg := plain()
	f.device(dev, cfg)
	c := r.dial(vfiouser.ClientConfig{})
	ram := vfiousertest.Memory(t, workers*slots*4096)
	done := make(chan struct{})
	var wg sync.WaitGroup
	var mapped [workers][slots]bool
	var assigned [workers]bool
	for w := range workers {
		irq := vfiousertest.NewEventFD(t)
		rng := rand.New(rand.NewPCG(uint64(w), 1))
		wg.Go(func() {
			base := uint64(w) * slots * 4096
			for {
				select {
				case <-done:
					return
				default:
				}
				i := rng.IntN(slots)
				at := base + uint64(i)*4096
				var err error
				switch k := rng.IntN(10); {
				case k == 0:
					err = c.ReadRegion(0, at%4096, make([]byte, 4))
				case k == 1:
					if assigned[w] = !assigned[w]; assigned[w] {
						err = c.AssignIRQ(vfiouser.IRQMSIX, w, irq.FD())
					} else {
						err = c.UnassignIRQ(vfiouser.IRQMSIX, w, 1)
					}
				case k == 2:
					// A few at once.
					i &^= 7
					_, err = c.Unmap(base+uint64(i)*4096, 8*4096)
					clear(mapped[w][i : i+8])
				case !mapped[w][i]:
					err = c.Map(at, 4096, at, vfiouser.ProtRead|vfiouser.ProtWrite, ram)
					mapped[w][i] = true
				default:
					var n uint64
					if n, err = c.Unmap(at, 4096); n != 4096 {
						t.Errorf("unmap of %#x bytes", n)
					}
					mapped[w][i] = false
				}
				if err != nil {
					t.Errorf("worker %d: %v", w, err)
					return
				}
			}
		})
	}
	rng := rand.New(rand.NewPCG(7, 7))
	var srv *vfiouser.Server
	for kill := range uint32(kills) {
		r.ready(kill + 1)
		<-time.After(time.Duration(rng.IntN(2000)) * time.Microsecond)
		dev, _ := plain()
		srv = f.device(dev, cfg)
		(<-f.made).kill()
	}
	r.ready(kills + 1)
	close(done)
	wg.Wait()
	want := uint64(0)
	for w := range workers {
		for i, m := range mapped[w] {
			at := uint64(w*slots+i) * 4096
			if m {
				want++
			}
			if srv.DMA().Backed(at, 4096, vfiouser.ProtRead) != m {
				t.Errorf("slot %#x: mapped %v for the client only or the server only", at, m)
			}
		}
		before := srv.Stats().Triggers
		if err := srv.Trigger(vfiouser.IRQMSIX, w); err != nil || (srv.Stats().Triggers > before) != assigned[w] {
			t.Errorf("vector %d: assigned %v: %v", w, assigned[w], err)
		}
	}
	if s := srv.Stats(); s.DMAMapped != want || s.Errors != 0 {
		t.Errorf("%d maps, not %d; %+v", s.DMAMapped, want, s)
	}
	s := r.k.Stats()
	if s.Maps != int(want) || s.InStead != 0 || s.Held != 0 || want > 0 && s.Files != 1 {
		t.Errorf("%+v", s)
	}
	t.Logf("%+v", s)
}
