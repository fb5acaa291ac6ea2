// SPDX-License-Identifier: Apache-2.0

package guestdriver_test

import (
	"context"
	"sync"
	"testing"
	"time"

	"toebox/guestdriver"
	"toebox/vdev/abi"
)

// TestRoomWithoutResponses: sends that the adapter takes and does not answer
// give room in the table, and nothing but the event word tells of it. Several
// writers compete for a small table; nobody watches.
func TestRoomWithoutResponses(t *testing.T) {
	a, f := open(t, guestdriver.Options{InLog2: 4, Watch: -1})
	const writers, writes = 4, 150
	var conns []*guestdriver.Conn
	for range writers {
		c, s := pair(t, a)
		defer s.Close()
		defer c.Close()
		conns = append(conns, c)
	}
	var mu sync.Mutex
	taken := 0
	f.Intercept(func(_ int, r abi.Fields) bool {
		mu.Lock()
		defer mu.Unlock()
		if r.Type == abi.TypeBufferSend {
			taken++
		}
		return r.Type == abi.TypeBufferSend
	})
	if _, err := a.Counters(context.Background()); err != nil { // all before it is taken
		t.Fatal(err)
	}
	f.Pause(0, true)
	before := a.Stats().Requests
	done := make(chan error, writers)
	for _, c := range conns {
		c.SetWriteDeadline(time.Now().Add(limit / 4))
		go func() {
			for range writes {
				if _, err := c.Write([]byte("x")); err != nil {
					done <- err
					return
				}
			}
			done <- nil
		}()
	}
	waitFor(t, "the table to be full", func() bool { return a.Stats().Requests-before >= 16 })
	f.Pause(0, false)
	for range writers {
		if err := <-done; err != nil {
			t.Errorf("write: %v", err)
		}
	}
	waitFor(t, "the adapter to take all", func() bool {
		mu.Lock()
		defer mu.Unlock()
		return taken == writers*writes
	})
	f.Restart() // ends what is never answered
}

// TestInterruptsAfterLost: when the watch has found what a lost interrupt did
// not tell of, interrupts tell of the next responses again.
func TestInterruptsAfterLost(t *testing.T) {
	a, f := open(t, guestdriver.Options{Watch: 2 * time.Millisecond})
	f.Mute(true)
	// A response that comes before the driver sleeps needs no interrupt.
	for try := 0; a.Stats().MissedInterrupts == 0; try++ {
		if try == 1000 {
			t.Fatal("none was lost")
		}
		if _, err := a.Counters(context.Background()); err != nil {
			t.Fatal(err)
		}
	}
	f.Mute(false)
	missed, irqs := a.Stats().MissedInterrupts, a.Stats().Interrupts
	const rounds = 20
	for range rounds {
		if _, err := a.Counters(context.Background()); err != nil {
			t.Fatal(err)
		}
	}
	s := a.Stats()
	if s.Interrupts-irqs < rounds/2 || s.MissedInterrupts-missed > rounds/2 {
		t.Errorf("of %d responses %d were told of and %d found", rounds, s.Interrupts-irqs, s.MissedInterrupts-missed)
	}
}
