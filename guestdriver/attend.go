// SPDX-License-Identifier: Apache-2.0

package guestdriver

import (
	"runtime"
	"sync"
	"syscall"
	"time"
)

const (
	// lapse is how long a lane that was attended to goes without an interrupt: who
	// comes back within it needs none. It doubles, up to mostLapse, each time that
	// somebody did: its end wakes a thread, and another processor.
	lapse     = 10 * time.Millisecond
	mostLapse = 40 * time.Millisecond
	// leastSpin is below what it is not worth while to look.
	leastSpin = time.Microsecond
	// looks is how often a caller looks at the table before it looks at why it waits.
	looks = 64
	// turn is after how many of these, about half a millisecond, it lets other goroutines run:
	// each time wakes a thread that looks for some, and another processor with it.
	turn = 64
	// patience is how much longer a caller looks than it was told to when waits turn out to
	// be about as long: sleep, an interrupt, and changes of goroutines cost as much.
	patience = 4
)

// attendance is how callers that wait consume responses themselves, unless the mode
// is ModeInterrupt: what they wait for then costs no interrupt and no change of
// goroutines. One at a time attends to a lane; the dispatcher rests meanwhile.
//
//	         enter                    leave, nobody sleeps
//	armed ───────────> taken ──────────────────────────────> lapsing
//	  ^ ^                │  ^            enter                │  │
//	  │ └────────────────┘  └─────────────────────────────────┘  │
//	  │   leave, somebody sleeps                                 │ a lapse later
//	  └──────────────────────────────────────────────────────────┘
//
// In armed the dispatcher has asked for an interrupt, or works. Of those that sleep the
// ones are counted that found the lane taken or attended in vain; what else waits for
// responses, without attending, waits for at most a lapse longer.
type attendance struct {
	// busy is held while a caller, or the end of a lapse, is at the tables.
	busy sync.Mutex

	mu      sync.Mutex
	taken   bool
	lapsing bool
	gone    bool          // the tables are, or are about to be
	asleep  int           // callers
	spin    time.Duration // how long one attends: less after it was in vain
	due     time.Time     // when the lapse ends
	span    time.Duration // how long the next one is; 0: lapse
	timer   *time.Timer   // ends it; nil: there was none yet
	ticking bool          // the timer will call lapsed
	left    chan struct{} // of ModePoll: one token, somebody sleeps and nobody attends
	// Of naps; only who attends touches them.
	burst int           // responses that came at once, smoothed, times 8
	nap   time.Duration // how long to sleep before the next look
}

// vigil is one call's wait for something that responses bring. Its zero value is ready.
type vigil struct {
	ln     *lane
	on     bool          // it attends to ln
	vain   bool          // it did, in vain, and was not woken since
	asleep bool          // it is counted
	began  time.Time     // the wait
	spin   time.Duration // of ModeHybrid: how long it looks
	until  time.Time     // ... and until when
	rested bool          // it has taken its nap, or others wait, too
	slept  time.Time     // since when
	n      int           // looks
}

// look attends to ln for a moment and reports whether to look again at what the caller
// waits for. Otherwise the caller, which holds mu all the time then, sleeps until it is
// woken, and calls woke. A mu that is not nil is released meanwhile.
func (v *vigil) look(ln *lane, mu *sync.Mutex) bool {
	mode := Mode(ln.mode.Load())
	if v.ln != ln || mode == ModeInterrupt {
		v.end()
		v.ln = ln
		ln.ring() // what the caller waits for may come of it
	}
	if mode == ModeInterrupt || !v.on && !v.enter(mode) {
		return false
	}
	if mu != nil {
		mu.Unlock()
		defer mu.Lock()
	}
	if !v.rested {
		v.rested = true
		ln.at.rest(v)
	}
	if v.n++; mode == ModePoll && v.n%turn == 0 {
		runtime.Gosched()
	}
	if n := ln.attend(); n > 0 {
		ln.at.learn(n, ln.outstanding())
	} else if mode != ModePoll && !time.Now().Before(v.until) {
		v.leave(true)
	}
	return true // what came before leave is seen before the caller sleeps
}

// enter has the vigil attend. It counts as one that sleeps when it does not.
func (v *vigil) enter(mode Mode) bool {
	at, q := &v.ln.at, v.ln.current()
	at.mu.Lock()
	defer at.mu.Unlock()
	if at.taken || at.gone || v.vain || mode == ModeHybrid && at.spin < leastSpin || v.ln.a.stopped.Load() {
		if !v.asleep {
			v.asleep = true
			at.asleep++
		}
		v.slept = time.Now()
		if v.began.IsZero() {
			v.began = v.slept
		}
		switch {
		case at.gone:
		case at.lapsing && q.arm():
			at.lapseLocked(v.ln, 0) // the caller may hold locks that consuming needs
		default:
			at.lapsing = false
		}
		return false
	}
	if v.asleep {
		v.asleep = false
		at.asleep--
	}
	at.taken, at.lapsing = true, false
	q.disarm()
	v.on, v.rested, v.spin = true, mode != ModeHybrid || at.asleep > 0, at.spin
	now := time.Now()
	if v.began.IsZero() {
		v.began = now
	}
	v.until = now.Add(v.spin)
	return true
}

// woke says that the caller was woken.
func (v *vigil) woke() {
	v.vain = false
	if v.ln == nil || v.slept.IsZero() {
		return
	}
	// The wait would have been shorter without the interrupt and the change of goroutines.
	if longest := patience * time.Duration(v.ln.spin.Load()); time.Since(v.began) < longest {
		v.ln.at.setSpin(longest)
	}
	v.slept = time.Time{}
}

func (at *attendance) setSpin(d time.Duration) {
	at.mu.Lock()
	defer at.mu.Unlock()
	at.spin = d
}

// end ends the wait.
func (v *vigil) end() {
	if v.on {
		v.leave(false)
	}
	if v.asleep {
		v.asleep = false
		at := &v.ln.at
		at.mu.Lock()
		at.asleep--
		at.mu.Unlock()
	}
	v.vain = false
}

// leave gives the lane up. With vain the caller is about to sleep.
func (v *vigil) leave(vain bool) {
	at, q := &v.ln.at, v.ln.current()
	at.mu.Lock()
	defer at.mu.Unlock()
	at.taken, v.on, v.vain = false, false, vain
	if vain {
		at.spin /= 2
		v.asleep = true
		at.asleep++
	}
	if at.gone {
		return
	}
	wait := max(at.span, lapse)
	if at.asleep > 0 {
		if Mode(v.ln.mode.Load()) == ModePoll {
			select {
			case at.left <- struct{}{}:
			default: // or the lane has no dispatcher
			}
			return
		}
		if !q.arm() {
			return
		}
		wait = 0 // the caller may hold locks that consuming needs
	}
	at.lapseLocked(v.ln, wait)
}

// lapseLocked has lapsed called after a time.
func (at *attendance) lapseLocked(ln *lane, wait time.Duration) {
	at.lapsing, at.due = true, time.Now().Add(wait)
	if wait == 0 || !at.ticking {
		at.tickLocked(ln, wait)
	}
}

func (at *attendance) tickLocked(ln *lane, wait time.Duration) {
	if at.timer == nil {
		at.timer = time.AfterFunc(wait, ln.lapsed)
	} else {
		at.timer.Reset(wait)
	}
	at.ticking = true
}

// lapsed is called when a lapse may have ended, and asks for interrupts if so.
func (ln *lane) lapsed() {
	at := &ln.at
	if !at.over(ln) {
		return // without busy, which whoever attends holds
	}
	at.busy.Lock()
	defer at.busy.Unlock()
	for range watchPasses {
		if at.isTaken() || ln.a.stopped.Load() {
			return
		}
		if ln.pass(); !ln.current().arm() {
			return
		}
	}
	at.mu.Lock()
	defer at.mu.Unlock()
	if !at.taken {
		at.lapseLocked(ln, 0)
	}
}

// over ends a lapse that is over, and reports whether responses stand there already.
func (at *attendance) over(ln *lane) bool {
	at.mu.Lock()
	defer at.mu.Unlock()
	at.ticking = false
	if !at.taken && !at.lapsing || at.gone || ln.a.stopped.Load() {
		return false
	}
	left := time.Until(at.due)
	if at.taken || left > 0 { // somebody came back
		at.span = min(2*max(at.span, lapse), mostLapse)
		if at.taken {
			left = at.span // no lapse begins that would end sooner
		}
		at.tickLocked(ln, left)
		return false
	}
	at.lapsing, at.span = false, 0
	return Mode(ln.mode.Load()) != ModePoll && ln.current().arm()
}

func (at *attendance) isTaken() bool {
	at.mu.Lock()
	defer at.mu.Unlock()
	return at.taken
}

// attended reports whether the dispatcher may rest; otherwise it has asked for an
// interrupt, unless some response stands there already.
func (ln *lane) attended(q *Queue) (rest, pending bool) {
	at := &ln.at
	at.mu.Lock()
	defer at.mu.Unlock()
	if at.taken || at.lapsing {
		return true, false
	}
	return false, q.arm()
}

// abandon keeps callers from the tables from now on. Nobody is at them any more.
func (at *attendance) abandon() {
	at.mu.Lock()
	defer at.mu.Unlock()
	at.gone = true
	if at.timer != nil {
		at.timer.Stop()
	}
}

// isAttended reports whether a caller attends, or may be back soon.
func (ln *lane) isAttended() bool {
	ln.at.mu.Lock()
	defer ln.at.mu.Unlock()
	return ln.at.taken || ln.at.lapsing
}

// attend looks at the table for a moment, consumes what stands there and returns how many
// responses that were.
func (ln *lane) attend() int {
	at := &ln.at
	at.busy.Lock()
	defer at.busy.Unlock()
	if ln.a.stopped.Load() {
		return 0
	}
	q := ln.current()
	for range looks {
		if q.Pending() {
			return ln.pass()
		}
	}
	ln.polls.Add(looks)
	ln.room()
	return 0
}

// Where responses come in bursts, whoever attends sleeps before it looks: long enough that
// half of what is outstanding is answered at once, at most mostNap. That costs less than
// to look all the time, or to be interrupted.
const (
	leastBurst = 4 // responses
	firstNap   = 100 * time.Microsecond
	mostNap    = time.Millisecond
)

// rest is the nap, if it is time for one.
func (at *attendance) rest(v *vigil) {
	if at.burst < 8*leastBurst {
		at.nap = 0
		return
	}
	nap := syscall.NsecToTimespec(int64(max(at.nap, firstNap)))
	at.nap = time.Duration(nap.Nano())
	_ = syscall.Nanosleep(&nap, nil) // a shorter one does no harm
	v.until = time.Now().Add(v.spin)
}

// learn takes account of n responses that came at once, while so many requests were
// outstanding.
func (at *attendance) learn(n, outstanding int) {
	at.burst += n - at.burst/8
	switch want := max(outstanding/2, leastBurst); {
	case at.nap == 0:
	case n < want:
		at.nap = min(at.nap+at.nap/4, mostNap)
	case n > want:
		at.nap = max(at.nap/2, firstNap)
	}
}

func (ln *lane) outstanding() int {
	ln.mu.Lock()
	defer ln.mu.Unlock()
	return ln.reqs.used
}
