// SPDX-License-Identifier: Apache-2.0

package guestdriver

import (
	"runtime"
	"testing"
	"time"

	"toebox/vdev/abi"
)

// TestLate has requests that can wait cost no doorbell of their own, and the adapter,
// which asked for one at the first of them, hear of them with the next request.
func TestLate(t *testing.T) {
	_, ln := still(t)
	q := ln.queue
	f := []abi.Fields{{Type: 2, Tag: 1}}
	bells := uint64(0)
	rings := func(why string, want bool) {
		t.Helper()
		if want {
			bells++
		}
		if n := q.Stats().DoorbellsIn; n != bells {
			t.Fatalf("%s: %d doorbells, want %d", why, n, bells)
		}
	}
	post := func(late bool) {
		t.Helper()
		if n, err := q.post(f, late); n != 1 || err != nil {
			t.Fatalf("posted %d, %v", n, err)
		}
	}
	sleep := func() { abi.StoreWord(q.event[abi.EventInPublished:], uint32(abi.EventAt(q.in.next))) }

	sleep()
	post(true)
	post(true)
	rings("late", false)
	post(false)
	rings("with the next", true)
	post(false)
	rings("it is awake", false)

	sleep()
	post(true)
	q.ring()
	rings("at last", true)
	q.ring()
	rings("once", false)

	post(true)
	sleep() // behind the late one, which it has taken
	q.ring()
	rings("it came upon it", false)
	post(false)
	rings("it sleeps", true)

	sleep()
	for q.in.free(0) {
		post(true)
	}
	rings("there is room", false)
	if n, err := q.post(f, true); n != 0 || err != nil {
		t.Fatalf("posted %d to a full table, %v", n, err)
	}
	rings("there is no room", true)

	var next abi.Index
	take(q, &next)
	sleep()
	post(true)
	q.kill(errClosed)
	q.ring()
	rings("it ended", false)
}

// TestSpin has callers look longer when what they wait for comes soon after they have
// given up, and not when it takes long.
func TestSpin(t *testing.T) {
	ln := &lane{a: &Adapter{}}
	ln.spin.Store(int64(time.Hour))
	now := time.Now()
	for _, test := range []struct{ ago, want time.Duration }{
		{time.Minute, patience * time.Hour},
		{(patience + 1) * time.Hour, time.Second},
	} {
		ln.at.spin = time.Second
		v := vigil{ln: ln, began: now.Add(-test.ago), slept: now}
		v.woke()
		if ln.at.spin != test.want {
			t.Errorf("after %v they look for %v, want %v", test.ago, ln.at.spin, test.want)
		}
	}
}

// TestSpinCalls has calls that wait for a control request learn so, too.
func TestSpinCalls(t *testing.T) {
	a, ln := still(t)
	ln.mode.Store(uint32(ModeHybrid))
	ln.spin.Store(int64(time.Hour))
	buf := a.ctl.alloc(0, false)
	done := make(chan error, 1)
	go func() {
		_, err := ln.control(t.Context(), request{kind: kindAttribute, call: newCall(), buf: buf}, abi.Fields{Type: abi.TypeAdapterAttr, Aux: 1})
		done <- err
	}()
	var in, out abi.Index
	var f abi.Fields
	for ok := false; !ok; runtime.Gosched() {
		f, ok = takeOne(ln.queue, &in)
	}
	answer(ln.queue, &out, abi.Fields{Type: abi.TypeAdapterAttrs, Flags: abi.FlagFinal, Tag: f.Tag})
	ln.pass()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if want := patience * time.Hour; ln.at.spin != want {
		t.Errorf("they look for %v, want %v", ln.at.spin, want)
	}
}

// TestLapsedTaken has the end of a lapse not wait for whoever attends again already.
func TestLapsedTaken(t *testing.T) {
	ln := &lane{a: &Adapter{}}
	ln.at.taken = true
	ln.at.busy.Lock() // by who attends, for as long as it takes
	ln.lapsed()
	ln.at.abandon()
}
