// SPDX-License-Identifier: Apache-2.0

package guestdriver

import (
	"context"
	"errors"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"toebox/vdev/abi"
)

const (
	// batch is how many responses a lane consumes before it hands the slots
	// back.
	batch = 64
	// lateness is how long the adapter is not told of what can wait, at most: most of it
	// goes with another request, which needs a doorbell anyway, before.
	lateness = time.Millisecond
	// watchPasses bounds the passes that the watch makes for a dispatcher.
	watchPasses = 16
)

// errNoRoom says that a request found no place on its queue; the caller waits
// with awaitRoom.
var errNoRoom = errors.New("guestdriver: no room in the input table")

// roomWaiter is told when a queue that was full has room. It must not block.
type roomWaiter interface{ roomFreed() }

// lane is a queue pair at work: the requests outstanding on it and the
// goroutine, the dispatcher, that consumes its responses. A lane lasts as long
// as the adapter; after a reset it gets a new Queue.
//
// The dispatcher never waits for room, memory or a reader: what it must post
// and cannot goes to the list later.
//
// Locks are taken in the order disp, Conn.mu or Listener.mu, mu.
type lane struct {
	a      *Adapter
	index  int
	vector int
	mode   atomic.Uint32
	spin   atomic.Int64 // ns

	// disp is held while responses are consumed and acted on.
	disp   sync.Mutex
	got    [batch]abi.Fields
	passes atomic.Uint64 // looks that found something

	mu      sync.Mutex
	queue   *Queue
	err     error // set while there is no queue to post to
	reqs    requests
	later   []abi.Fields            // to be posted when there is room; bounded by reqs
	waiters map[roomWaiter]struct{} // those that found no room
	past    QueueStats              // of queues before the last reset
	bell    *time.Timer             // calls ring; nil: there was none yet
	ticking bool                    // the bell will

	interrupts, polls atomic.Uint64

	at attendance

	reports []*buffer // for state records; posted anew with each queue

	// busy is held by the dispatcher except while it waits for its vector, so
	// that Close can tell when it is done with the tables.
	busy sync.Mutex
}

// start enters a request and posts its descriptor. When the table is full it
// fails with errNoRoom, or, with must, leaves the post to the dispatcher.
func (ln *lane) start(r request, f abi.Fields, must bool) (tag uint32, err error) {
	ln.mu.Lock()
	defer ln.mu.Unlock()
	if ln.err != nil {
		return 0, ln.err
	}
	if f.Tag = ln.reqs.add(r); f.Tag == 0 {
		return 0, errNoRoom
	}
	n := 0
	if len(ln.later) == 0 {
		one := [1]abi.Fields{f}
		n, err = ln.queue.post(one[:], r.late)
	}
	switch {
	case n == 1 && r.late:
		ln.ringSoonLocked()
	case n == 1:
	case err == nil && must:
		ln.later = append(ln.later, f)
		if ln.queue.armRoom() {
			ln.flushLocked()
		}
	default:
		ln.reqs.remove(f.Tag)
		if err == nil {
			err = errNoRoom
		}
		return 0, err
	}
	return f.Tag, nil
}

// ringSoonLocked has the adapter told of what was posted late.
func (ln *lane) ringSoonLocked() {
	switch {
	case ln.ticking:
		return
	case ln.bell == nil:
		ln.bell = time.AfterFunc(lateness, func() {
			ln.mu.Lock()
			ln.ticking = false
			ln.mu.Unlock()
			ln.ring()
		})
	default:
		ln.bell.Reset(lateness)
	}
	ln.ticking = true
}

// ring tells the adapter of what was posted late.
func (ln *lane) ring() {
	if q := ln.current(); q != nil {
		q.ring()
	}
}

// flushLocked posts what waits for room and reports whether there is more
// room.
func (ln *lane) flushLocked() bool {
	for {
		if len(ln.later) > 0 {
			n, _ := ln.queue.post(ln.later, false)
			ln.later = ln.later[:copy(ln.later, ln.later[n:])]
		}
		switch {
		case len(ln.later) > 0 && !ln.queue.armRoom():
			return false
		case len(ln.later) == 0:
			// Asked anew: the slot that an interrupt was for may be taken.
			return ln.queue.armRoom()
		}
		if ln.err != nil || ln.queue.isDead() {
			return false
		}
	}
}

// awaitRoom enters w to be told once, when there may be room, and reports
// whether there is some already: then w need not wait.
func (ln *lane) awaitRoom(w roomWaiter) bool {
	ln.mu.Lock()
	defer ln.mu.Unlock()
	if ln.err != nil {
		return true
	}
	if ln.waiters == nil {
		ln.waiters = map[roomWaiter]struct{}{}
	}
	ln.waiters[w] = struct{}{}
	// Tags come back with responses, and room looks after each pass.
	return ln.queue.armRoom() && len(ln.later) == 0 && !ln.reqs.full()
}

// leaveRoom undoes awaitRoom for one that waits no more.
func (ln *lane) leaveRoom(w roomWaiter) {
	ln.mu.Lock()
	defer ln.mu.Unlock()
	delete(ln.waiters, w)
}

// room posts what waited for room and tells those that wait.
func (ln *lane) room() {
	ln.mu.Lock()
	if len(ln.later) == 0 && len(ln.waiters) == 0 || ln.err != nil {
		ln.mu.Unlock()
		return
	}
	var told map[roomWaiter]struct{}
	if ln.flushLocked() {
		told, ln.waiters = ln.waiters, nil
	}
	ln.mu.Unlock()
	for w := range told {
		w.roomFreed()
	}
}

// run is the dispatcher. It ends when the adapter has stopped.
func (ln *lane) run() {
	ln.busy.Lock()
	defer ln.busy.Unlock()
	for !ln.a.stopped.Load() {
		// An interrupt may be late, and a caller attend already.
		if ln.taken() || ln.pass() == 0 {
			if !ln.sleep() {
				return
			}
		}
	}
}

// settle waits until the dispatcher, which was told to stop, touches the
// tables no more.
func (ln *lane) settle() {
	ln.busy.Lock()
	defer ln.busy.Unlock()
	ln.at.busy.Lock()
	defer ln.at.busy.Unlock()
}

// pass consumes what stands in the output table, at most one table's worth,
// and returns how many responses that were.
func (ln *lane) pass() int {
	ln.disp.Lock()
	defer ln.disp.Unlock()
	q := ln.current()
	total := 0
	for total < 1<<q.cfg.OutLog2 {
		n := q.Poll(ln.got[:])
		for i := range ln.got[:n] {
			ln.handle(&ln.got[i])
		}
		total += n
		if n < len(ln.got) {
			break
		}
	}
	if total > 0 {
		ln.passes.Add(1)
	}
	ln.room()
	return total
}

func (ln *lane) current() *Queue {
	ln.mu.Lock()
	defer ln.mu.Unlock()
	return ln.queue
}

// missed does the work of the dispatcher, whose interrupt was lost, and asks
// for the next one: what the dispatcher had asked for has passed.
func (ln *lane) missed() {
	ln.a.host.missed.Add(1)
	for range watchPasses {
		if ln.pass(); !ln.current().arm() {
			return
		}
	}
}

// sleep waits as the mode says until there may be something to do. It returns
// false when the bus is closed or the adapter has stopped.
func (ln *lane) sleep() bool {
	q := ln.current()
	if Mode(ln.mode.Load()) == ModePoll {
		ln.look(q)
		return !ln.a.stopped.Load()
	}
	// A reset may put a new queue in the place of q now; it arms that one.
	if _, pending := ln.attended(q); pending {
		return true
	}
	ln.busy.Unlock()
	err := ln.a.bus.Wait(ln.vector)
	ln.busy.Lock()
	ln.interrupts.Add(1)
	return err == nil && !ln.a.stopped.Load()
}

// taken reports whether the dispatcher leaves the table to a caller.
func (ln *lane) taken() bool {
	return Mode(ln.mode.Load()) != ModePoll && ln.at.isTaken()
}

// look polls the queue until there may be something to do, unless a caller attends to
// the lane.
func (ln *lane) look(q *Queue) {
	q.disarm()
	for i := 1; !q.Pending(); i++ {
		if i%looks != 0 {
			continue
		}
		ln.polls.Add(looks)
		ln.room()
		if ln.current() != q || Mode(ln.mode.Load()) != ModePoll || ln.a.stopped.Load() {
			return
		}
		if ln.isAttended() {
			ln.rest()
		} else {
			runtime.Gosched()
		}
	}
}

// rest has the dispatcher stand back: to look as well would take a processor from the
// caller that does. Nothing tells when that one leaves, unless somebody else sleeps.
func (ln *lane) rest() {
	t := time.NewTimer(lapse)
	defer t.Stop()
	select {
	case <-ln.at.left:
	case <-t.C:
	}
}

// handle acts on one response. What does not fit is counted and dropped.
func (ln *lane) handle(f *abi.Fields) {
	if f.Tag == 0 {
		ln.unsolicited(f)
		return
	}
	if f.Type == abi.TypeBufferReceive && f.Flags&abi.FlagCombined != 0 {
		ln.combined(f)
		return
	}
	ln.mu.Lock()
	p := ln.reqs.find(f.Tag)
	if p == nil {
		ln.mu.Unlock()
		ln.a.bad.tag.Add(1)
		return
	}
	r := *p
	ln.mu.Unlock()
	if r.kind == kindCast {
		ln.cast(&r, f)
		return
	}
	rejected := f.Type == abi.TypeRejected
	final := f.Flags&abi.FlagFinal != 0
	switch {
	case !rejected && (!r.kind.answeredBy(f.Type) || r.kind == kindSend && !pointed(f)):
		ln.a.bad.kind.Add(1)
		return
	case !final && (r.kind != kindReceive || f.Type != abi.TypeBufferReceive):
		ln.a.bad.final.Add(1)
		return
	case r.conn != nil && !rejected && f.Conn != r.conn.connID() && !isRedirected(f):
		ln.a.bad.conn.Add(1)
		return
	}
	// Bounds are judged before the request ends, so that a wrong response
	// takes nothing away from the right one.
	if r.kind == kindPool {
		if !r.buf.pool.fits(r.buf, f) {
			ln.a.bad.length.Add(1)
			return
		}
	} else if r.kind == kindGroup {
		g := r.buf.user.group.Load()
		switch {
		case !r.buf.user.fitsGroup(f):
			ln.a.bad.length.Add(1)
			return
		case f.Type == abi.TypeBufferDone && f.Conn != g.id:
			ln.a.bad.conn.Add(1)
			return
		}
	} else if f.Type == abi.TypeBufferReceive && isRedirected(f) {
		if !ln.redirected(&r, f, final) {
			return
		}
	} else if f.Type == abi.TypeBufferReceive {
		if !r.conn.received(f, r.buf, final) {
			ln.a.bad.length.Add(1)
			return
		}
	} else if r.buf != nil && r.buf.user != nil && r.buf.user.unfit(&r, f) {
		ln.a.bad.length.Add(1)
		return
	} else if !rejected && ((r.kind == kindSend || r.kind == kindCancel && r.buf != nil) && f.Length > r.buf.filled || r.kind == kindReceive && f.Length != 0) {
		ln.a.bad.length.Add(1)
		return
	}
	if !final {
		return
	}
	ln.mu.Lock()
	ln.reqs.remove(f.Tag)
	ln.mu.Unlock()
	switch {
	case r.kind == kindPool:
		ln.pooled(r.buf, f)
	case r.kind == kindGroup:
		ln.grouped(r.buf.user, f)
	case f.Type == abi.TypeBufferReceive: // done above
	case r.kind == kindSend:
		r.buf.user.notePoint(f)
		r.conn.sent(r.buf, abi.Status(f.Aux), f.Length)
	case r.kind == kindReceive:
		r.conn.bufferBack(f, r.buf)
	case r.kind == kindRedirect:
		r.conn.bufferBack(f, r.buf)
	case r.call != nil && r.call.packet != nil:
		ln.packetOpened(r, f)
	case r.kind == kindConnect && r.call.restored != nil:
		ln.restored(r, f)
	case r.kind == kindConnect:
		ln.connected(r, f)
	case r.kind == kindReport && f.Type == abi.TypeConnectionAttrs:
		ln.reported(r, f)
	case r.kind == kindCancel:
		if r.buf != nil {
			r.buf.user.cancelled(abi.Status(f.Aux), f.Length)
		}
	case r.kind == kindListen:
		ln.listening(r, f)
	case r.kind == kindAttribute:
		ln.a.finish(r, result{fields: *f})
	case r.kind == kindTerminate && r.conn != nil && ln.a.opts.CarryOver && abi.Status(f.Aux) == abi.StatusCancelled:
		// By a stop: the connection is carried over, or ended by the restart.
	case r.kind == kindTerminate && r.conn != nil:
		ln.a.forget(r.conn.connID())
		r.conn.gone()
	case r.kind == kindTerminate && r.listener != nil:
		ln.a.forgetListener(r.listener, f.Conn)
	}
}

// unsolicited acts on a response that nobody asked for (SPEC.md §5.1).
func (ln *lane) unsolicited(f *abi.Fields) {
	switch f.Type {
	case abi.TypeArrival:
		ln.arrived(f)
	case abi.TypeTerminated:
		if c := ln.a.conn(f.Conn); c != nil && c.onLane() == ln {
			c.ended(f.Length)
		} else if l := ln.a.listener(f.Conn); l != nil {
			l.fail(statusErr("accept", abi.StatusTimedOut))
		} else {
			ln.a.bad.conn.Add(1)
		}
	default:
		ln.a.bad.kind.Add(1)
	}
}

// result ends a call.
type result struct {
	fields abi.Fields
	conn   *Conn
	end    *packetEnd
	err    error
}

// call is a control request that a goroutine waits for.
type call struct {
	done chan result // one
	// state: 0 waiting, 1 the result was sent, 2 nobody waits any more.
	state    atomic.Uint32
	room     chan struct{} // one token: there may be room on the queue
	listener *Listener     // of a listen request
	remote   *target       // of a connect request
	packet   *PacketConn   // of a request for one of its ends
	spec     packetSpec    // of that end
	restored *Conn         // of a connect request with a RESTORE tuple
	born     *settings     // of a connect request
}

func newCall() *call {
	return &call{done: make(chan result, 1), room: make(chan struct{}, 1)}
}

func (c *call) roomFreed() {
	select {
	case c.room <- struct{}{}:
	default:
	}
}

// deliver ends the call and reports whether somebody waits for it.
func (c *call) deliver(r result) bool {
	if !c.state.CompareAndSwap(0, 1) {
		return false
	}
	c.done <- r
	return true
}

// control posts a control request and waits for its result. The control
// buffer is the request's from now on: it is the caller's again when a result
// with no error came, and freed otherwise.
func (ln *lane) control(ctx context.Context, r request, f abi.Fields) (result, error) {
	var tag uint32
	for {
		var err error
		if tag, err = ln.start(r, f, false); err == nil {
			break
		}
		switch err {
		case ErrReset: // not posted: it may wait for the restart
			if err = ln.a.awaitUp(ctx); err == nil {
				continue
			}
		case errNoRoom:
			if ln.awaitRoom(r.call) {
				runtime.Gosched()
			} else {
				select {
				case <-r.call.room:
				case <-ctx.Done():
				}
			}
			if err = ctx.Err(); err == nil {
				continue
			}
			ln.leaveRoom(r.call)
		}
		ln.a.ctl.release(r.buf)
		return result{}, err
	}
	var v vigil
	for ctx.Err() == nil && v.look(ln, nil) {
		select {
		case res := <-r.call.done:
			v.end()
			return res, res.err
		default:
		}
	}
	select {
	case res := <-r.call.done:
		v.woke()
		v.end()
		return res, res.err
	case <-ctx.Done():
		v.end()
	}
	if !r.call.state.CompareAndSwap(0, 2) {
		res := <-r.call.done
		return res, res.err
	}
	if r.kind == kindConnect || r.kind == kindListen {
		// The result, whoever wins, is disposed of by the dispatcher.
		ln.start(request{kind: kindCancel}, abi.Fields{Type: abi.TypeCancellation, Offset: tag}, true)
	}
	return result{}, ctx.Err()
}

// replace takes the queue away, ends everything outstanding, and returns it.
// The caller holds disp.
func (ln *lane) replace(err error) []request {
	ln.mu.Lock()
	old, told := ln.queue, ln.waiters
	ln.err, ln.later, ln.waiters = err, nil, nil
	all := ln.reqs.takeAll()
	ln.mu.Unlock()
	if old != nil {
		old.lose(err)
	}
	for w := range told {
		w.roomFreed()
	}
	return all
}

// install puts a new queue in place. The caller holds disp.
func (ln *lane) install(q *Queue) {
	q.arm()
	ln.mu.Lock()
	defer ln.mu.Unlock()
	if old := ln.queue; old != nil {
		s := old.Stats()
		ln.past.Requests += s.Requests
		ln.past.Responses += s.Responses
		ln.past.DoorbellsIn += s.DoorbellsIn
		ln.past.DoorbellsOut += s.DoorbellsOut
		ln.past.Polls += s.Polls
	}
	ln.queue, ln.err = q, nil
}
