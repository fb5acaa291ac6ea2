// SPDX-License-Identifier: Apache-2.0

package guestdriver_test

import (
	"context"
	"sync"
	"testing"
	"time"

	"toebox/guestdriver"
	"toebox/guestdriver/guestdrivertest"
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
		c.SetWriteDeadline(time.Now().Add(limit))
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

// loseInterrupt makes stray responses, which are counted as such, until the
// watch has found one that no interrupt told of, and returns how many. One that
// comes before the driver sleeps needs no interrupt.
func loseInterrupt(t *testing.T, a *guestdriver.Adapter, f *guestdrivertest.Fake) (strays uint64) {
	t.Helper()
	waitFor(t, "the watch to find a response", func() bool {
		stray(f)
		strays++
		return a.Stats().MissedInterrupts > 0
	})
	waitFor(t, "all strays", func() bool { return a.Stats().BadTags == strays })
	return strays
}

// stray publishes a response to nothing.
func stray(f *guestdrivertest.Fake) {
	f.Inject(0, abi.Fields{Type: abi.TypeBufferReceive, Flags: final, Tag: 0xfffe})
}

// TestInterruptsAfterLost: when the watch has found what a lost interrupt did
// not tell of, the driver asks for the next one, and each that it asks for
// comes.
func TestInterruptsAfterLost(t *testing.T) {
	a, f := open(t, guestdriver.Options{Watch: 2 * time.Millisecond})
	f.Mute(true)
	strays := loseInterrupt(t, a, f)
	f.Mute(false)
	for range 20 {
		told := a.Stats().Interrupts
		waitFor(t, "the driver to ask for the next response", func() bool {
			return f.Asked(0) == 1<<30|uint32(a.Stats().Responses)
		})
		stray(f)
		strays++
		waitFor(t, "the interrupt", func() bool { return a.Stats().Interrupts > told })
		waitFor(t, "the response", func() bool { return a.Stats().BadTags == strays })
	}
}
