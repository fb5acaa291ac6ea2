// SPDX-License-Identifier: Apache-2.0

package conformance

import (
	"fmt"
	"sync"
)

// impair makes the wire bad until the end of the test, by rules and a seed of
// the test's own. The function it returns says what the wire did since.
func (t *T) impair(rules string) (harm func() Harm) {
	t.Helper()
	before, err := t.Peer().Impair(t.ctx, fmt.Sprintf("%s,seed=%d", rules, 1+t.rng.Uint64N(1<<32)))
	check(t, "peer: impair", err)
	t.bad = true
	t.Cleanup(func() {
		if _, err := t.Peer().Impair(t.ctx, "none"); err != nil {
			t.Errorf("peer: impair: %v", err)
		}
	})
	return func() Harm {
		t.Helper()
		now, err := t.Peer().Impair(t.ctx, "none")
		check(t, "peer: impair", err)
		return Harm{
			Frames: now.Frames - before.Frames, Lost: now.Lost - before.Lost, Corrupted: now.Corrupted - before.Corrupted,
			Duplicated: now.Duplicated - before.Duplicated, Reordered: now.Reordered - before.Reordered, Delivered: now.Delivered - before.Delivered,
		}
	}
}

// amount is how much data a function moves that moves n bytes over a good wire.
func (t *T) amount(n int64) int64 {
	if t.bad {
		return n / 8
	}
	return n
}

// over runs all functions that carry data over a bad wire, and checks that it
// was bad by what hurt says of the frames.
func (t *T) over(rules string, hurt func(Harm) uint64) {
	var sum uint64
	for _, test := range Tests() {
		if !test.Wire || !test.On(t.Env.Rung) {
			continue
		}
		t.Run(rules+" "+test.Name, func(t *T) {
			harm := t.impair(rules)
			t.offends = test.Offends
			test.Func(t)
			h := harm()
			t.Logf("%+v", h)
			sum += hurt(h)
		})
	}
	if sum == 0 && !t.Failed() {
		t.Errorf("the wire hurt no frame under %s", rules)
	}
}

// TestRIG08_Loss: what carries data does so over a wire that loses 1% and 5% of
// the frames each way.
func TestRIG08_Loss(t *T) {
	lost := func(h Harm) uint64 { return h.Lost }
	t.over("loss=1%", lost)
	t.over("loss=5%", lost)
}

// TestRIG08_Reorder: and over one on which frames overtake each other.
func TestRIG08_Reorder(t *T) {
	t.over("reorder=5%,reorderby=1ms", func(h Harm) uint64 { return h.Reordered })
}

// TestRIG08_Wire sends 256 KiB each way at the same time over wires with one
// fault each, and over one with all of them.
func TestRIG08_Wire(t *T) {
	const total = 256 << 10
	delivered := func(h Harm) uint64 { return h.Delivered }
	for _, k := range []struct {
		rules string
		hurt  func(Harm) uint64
	}{
		{"duplicate=5%", func(h Harm) uint64 { return h.Duplicated }},
		{"corrupt=2%", func(h Harm) uint64 { return h.Corrupted }},
		{"delay=2ms,jitter=3ms", delivered},
		{"rate=4M", delivered},
		{"to.loss=3%", func(h Harm) uint64 { return h.Lost }},
		{"from.loss=3%", func(h Harm) uint64 { return h.Lost }},
		{"loss=1%,corrupt=0.5%,duplicate=1%,reorder=2%,delay=1ms,jitter=1ms,rate=8M", func(h Harm) uint64 { return h.Lost + h.Corrupted }},
	} {
		t.Run(k.rules, func(t *T) {
			harm := t.impair(k.rules)
			a := t.driver()
			p, c := t.dialPeer(a, Script{{Op: OpEcho}})
			var wg sync.WaitGroup
			wg.Go(func() {
				buf := make([]byte, total)
				Payload(buf, 11, 0)
				if _, err := c.Write(buf); err != nil {
					t.Errorf("write: %v", err)
				}
				if err := c.CloseWrite(); err != nil {
					t.Errorf("half-close: %v", err)
				}
			})
			if err := expect(c, 11, 0, total); err != nil {
				t.Errorf("echo: %v", err)
			}
			wg.Wait()
			want(t, "bytes at the peer", t.outcome(p).Received, total)
			if h := harm(); k.hurt(h) == 0 {
				t.Errorf("the wire hurt no frame: %+v", h)
			}
		})
	}
}

// TestRIG08_Rules: rules change while a connection is up; a wire that loses all
// stops it, and a good one lets it go on.
func TestRIG08_Rules(t *T) {
	if _, err := t.Peer().Impair(t.ctx, "loss=200%"); err == nil {
		t.Errorf("a loss of 200%% was accepted")
	}
	a := t.driver()
	_, c := t.dialPeer(a, Script{{Op: OpEcho}})
	ping := func(seed uint64) {
		t.Helper()
		var b [100]byte
		Payload(b[:], seed, 0)
		_, err := c.Write(b[:])
		check(t, "write", err)
	}
	ping(1)
	check(t, "echo", expect(c, 1, 0, 100))
	harm := t.impair("loss=100%")
	ping(2)
	t.until("a frame to be lost", func() bool {
		h, err := t.Peer().Impair(t.ctx, "loss=100%")
		return err == nil && h.Lost > 0
	})
	h := harm()
	want(t, "frames that got over a wire that loses all", h.Delivered, 0)
	check(t, "echo over a wire that is good again", expect(c, 2, 0, 100))
}
