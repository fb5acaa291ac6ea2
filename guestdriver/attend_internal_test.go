// SPDX-License-Identifier: Apache-2.0

package guestdriver

import (
	"testing"
	"testing/synctest"
	"time"
)

// TestAbandon has callers stay away from tables that are gone: here there are none.
func TestAbandon(t *testing.T) {
	ln := &lane{a: &Adapter{}}
	ln.mode.Store(uint32(ModeHybrid))
	ln.spin.Store(int64(time.Minute))
	ln.at.spin, ln.at.taken, ln.at.asleep = time.Minute, true, 1
	attends := vigil{ln: ln, on: true}
	ln.at.abandon()
	attends.end()
	if ln.at.taken || ln.at.lapsing {
		t.Errorf("attended: %t, asks for interrupts later: %t", ln.at.taken, ln.at.lapsing)
	}
	ln.at.lapsing = true
	var comes vigil
	if comes.look(ln, nil) {
		t.Error("a caller attends")
	}
	comes.end()
	if ln.at.asleep != 1 {
		t.Errorf("%d callers sleep, want 1", ln.at.asleep)
	}
	ln.lapsed()
}

// TestNaps has whoever attends sleep before it looks while responses come in bursts: longer
// when fewer than half of what is outstanding came at once, else shorter, within bounds.
func TestNaps(t *testing.T) {
	var at attendance
	rest := func(want time.Duration) {
		t.Helper()
		v := vigil{spin: time.Minute}
		at.rest(&v)
		if slept := !v.until.IsZero(); at.nap != want || slept != (want > 0) {
			t.Errorf("slept: %t, for %v, want %v", slept, at.nap, want)
		}
	}
	learn := func(times, n, outstanding int) {
		for range times {
			at.learn(n, outstanding)
		}
	}
	rest(0)
	learn(50, 3, 6)
	rest(0) // that is no burst
	learn(50, 4, 8)
	rest(firstNap)
	learn(1, 8, 16) // as wanted
	rest(firstNap)
	learn(1, 8, 32)
	rest(firstNap * 5 / 4)
	learn(50, 8, 32)
	rest(mostNap)
	learn(1, 8, 8)
	rest(mostNap / 2)
	learn(10, 8, 8)
	rest(firstNap)
	learn(50, 1, 2)
	rest(0)
}

// TestLapses has a lane go without interrupts for a lapse after the last caller left, which
// is longer each time that one came back within it, up to a bound, and as short as at first
// after one in which nobody did.
func TestLapses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ln := &lane{a: &Adapter{}}
		ln.mode.Store(uint32(ModePoll)) // there is no queue to be armed
		enter := func() vigil {
			ln.at.mu.Lock()
			defer ln.at.mu.Unlock()
			ln.at.taken, ln.at.lapsing = true, false
			return vigil{ln: ln, on: true}
		}
		// over has time pass, and reports whether the lapse is over.
		over := func(d time.Duration) bool {
			<-time.After(d)
			synctest.Wait()
			ln.at.mu.Lock()
			defer ln.at.mu.Unlock()
			return !ln.at.taken && !ln.at.lapsing
		}
		ends := func(after time.Duration) {
			t.Helper()
			if over(after - time.Nanosecond) {
				t.Errorf("over before %v", after)
			}
			if !over(time.Nanosecond) {
				t.Errorf("not over after %v", after)
			}
		}
		v := enter()
		v.end()
		ends(lapse)
		v = enter()
		v.end()
		if over(lapse / 2) {
			t.Error("over half-way")
		}
		v = enter() // the timer fires while it is there
		if over(lapse) {
			t.Error("over while somebody attends")
		}
		v.end()
		ends(2 * lapse)
		for range 10 * mostLapse / lapse {
			v = enter()
			v.end()
			if over(lapse - time.Nanosecond) {
				t.Fatal("over while callers come back")
			}
		}
		v = enter()
		v.end()
		ends(mostLapse)
		v = enter()
		v.end()
		ends(lapse)
	})
}

// TestRest has a dispatcher that polls stand back for a lapse while a caller attends, and
// come back as soon as that one leaves while another one sleeps.
func TestRest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ln := &lane{a: &Adapter{}}
		ln.mode.Store(uint32(ModePoll))
		ln.at.left = make(chan struct{}, 1)
		rests := func(want time.Duration) {
			t.Helper()
			began := time.Now()
			if ln.rest(); time.Since(began) != want {
				t.Errorf("it stood back for %v, want %v", time.Since(began), want)
			}
		}
		rests(lapse)
		ln.at.taken, ln.at.asleep = true, 1
		v := vigil{ln: ln, on: true}
		time.AfterFunc(time.Millisecond, v.end)
		rests(time.Millisecond)
		rests(lapse)
	})
}
