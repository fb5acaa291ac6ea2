// SPDX-License-Identifier: Apache-2.0

package firmware

import (
	"errors"
	"net/netip"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"toebox/vdev/abi"
)

// Bounds of one pass of a worker, and of what a queue holds.
const (
	quantum      = 256             // requests taken
	turns        = 32              // turns of connections in each direction
	turnBytes    = 64 << 10        // SPEC.md §14
	acceptTurn   = 64              // connections
	jobTurn      = 64              // targets
	holdLimit    = 4096            // responses held before requests wait
	recentTags   = 4096            // completed tags remembered
	destroyLimit = 1 * time.Second // SPEC.md §3.2
)

// orders are what commands want of a worker.
type orders struct {
	pause, drain, destroy bool
	stop                  bool // an orderly stop waits for the drain
}

// queue is one queue: two tables in host memory, an event block, a worker that
// owns all but the part that says so.
type queue struct {
	fw     *Firmware
	index  int
	config QueueConfig
	shard  *counterShard
	done   chan struct{} // closed when the worker has ended

	// Of any goroutine.
	pending atomic.Bool   // look: set before a token goes into woken
	lent    atomic.Int64  // bytes that are taken of transit
	woken   chan struct{} // of capacity 1
	ready   atomic.Pointer[conn]
	bells   bells
	dying   atomic.Bool

	mu     sync.Mutex // guards orders, hand, closed
	orders orders
	hand   []*conn // accepted by another queue for this one
	closed bool    // nothing can be handed over any more

	shownState, shownIn, shownOut, shownHeld, shownError atomic.Uint32

	// Of the worker.
	state    abi.QueueState
	checked  bool     // the state of CHECKER that was acted on
	check    *checker // nil: off
	now      time.Duration
	progress bool
	stopping bool
	ending   time.Duration // when a destroy gives up; 0: none
	spin     time.Duration
	timer    *time.Timer

	in       abi.Index // consumer index of the input table
	armedIn  int64     // index that IN_PUBLISHED asks for
	run      []byte    // copies of requests taken
	runPos   int
	runEnd   int
	word     uint32
	out      abi.Index // producer index of the output table
	free     abi.Index // slots in [out, free) are known to be free
	armedOut int64
	low      bool // fewer free output slots than OUT_THRESHOLD
	held     ring
	looks    pieces // View callbacks, made once

	tags     map[uint32]*request
	recent   []uint32
	spare    *request // free list
	conns    map[uint64]*conn
	limits   timers[*conn]
	jobs     fifo[*job]
	pool     requestList // bulk buffers
	reports  reports
	notices  notices
	roster   roster // connections by id
	leaving  leaving
	states   timers[*stateTimer]
	choices  timers[*choice] // that wait
	groups   map[uint64]*group
	sinks    map[uint64]*group // connections that bytes of others wait for
	stirred  []*group
	table    tableReader
	spills   bool    // adapter memory was above SPILL_THRESHOLD at the last look
	jammed   bool    // ... and the host took no responses
	squeezed []*conn // whose windows are narrowed
	delays   timers[*delay]
	ripe     int      // of them, ended in this pass
	tx, rx   bulk     // who has something to send, or to deliver or accept
	wait     bulk     // data without a buffer
	parked   parkings // sends that are left in host memory
	load     load
	copies   copies  // of what was sent
	crowd    []*conn // scratch: members of a group
	scanned  int     // connections that group sends looked at in this pass
	timed    bool    // time was read in this pass
	time     uint64
	move     mover
	gather   gatherer
	streams  bool // received bytes are written by non-temporal stores
	adapts   bool // that depends on how many were injected
	injected injected
	combine  combiner
	ctl      []byte                // scratch for control buffers
	header   [abi.AddressSize]byte // scratch for a datagram's
}

// pieces are the callbacks of [Chip.View]. Made once, they cost no allocation
// per use.
type pieces struct {
	take, put, scan, load, store func([]byte) error
	copyOut, copyIn, fill        func([]byte) error
	deliver, probe, drop, look   func([]byte) int
	assemble                     func([]byte) int
	copyAll                      func([]byte) error
	datagram                     func(netip.AddrPort, []byte)
}

func newQueue(f *Firmware, i int, cfg QueueConfig) *queue {
	q := &queue{
		fw: f, index: i, config: cfg, shard: &f.counters.shards[i+1],
		done: make(chan struct{}), woken: make(chan struct{}, 1),
		state: abi.QueueRunning, spin: f.config.Spin, timer: time.NewTimer(time.Hour),
		run: make([]byte, quantum*abi.DescriptorSize), armedIn: -1, armedOut: -1,
		free: abi.Index(1) << cfg.OutLog2,
		tags: make(map[uint32]*request), recent: make([]uint32, recentTags),
		conns: make(map[uint64]*conn),
	}
	q.looks = pieces{
		take: q.takePiece, put: q.putPiece, scan: q.scanPiece, load: q.loadPiece, store: q.storePiece,
		copyOut: q.copyOut, copyIn: q.copyIn, fill: q.fill,
		assemble: q.assemble, copyAll: q.copyAll,
		deliver: q.deliver, probe: q.probe, drop: q.drop, look: q.look,
		datagram: q.putDatagram,
	}
	q.copies.fw = f
	q.shownState.Store(uint32(q.state))
	return q
}

func (q *queue) count(c abi.Counter, n uint64) { q.shard.n[c].Add(n) }

func (q *queue) currentState() abi.QueueState { return abi.QueueState(q.shownState.Load()) }

func (q *queue) setState(s abi.QueueState) {
	q.state = s
	q.shownState.Store(uint32(s))
}

func (q *queue) order(change func(*orders)) {
	q.mu.Lock()
	change(&q.orders)
	q.mu.Unlock()
	q.wake()
}

func (q *queue) ordered() orders {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.orders
}

func (q *queue) kill() {
	q.dying.Store(true)
	q.wake()
}

// wake makes the worker look at everything once more.
func (q *queue) wake() {
	if !q.pending.Swap(true) {
		select {
		case q.woken <- struct{}{}:
		default:
		}
	}
}

// work is the worker.
func (q *queue) work() {
	defer close(q.done)
	for q.pass() {
	}
	q.timer.Stop()
	q.end()
}

// pass looks at everything once, and sleeps if nothing came of it. It reports
// whether the worker goes on.
func (q *queue) pass() bool {
	q.pending.Store(false)
	if q.dying.Load() {
		return false
	}
	q.count(abi.CounterQueuePasses, 1)
	q.progress = false
	q.now, q.timed, q.scanned = q.fw.now(), false, 0
	q.obey()
	if q.checked != q.fw.checking.Load() {
		q.switchChecker()
	}
	switch q.state {
	case abi.QueueRunning, abi.QueuePaused:
		if q.check != nil {
			q.check.look()
		}
		q.turnSpill()
		q.expire()
		q.expireNotices()
		q.expireDelays()
		q.adopt()
		q.collect()
		q.take()
		q.requests()
		q.turnJobs()
		q.writeReports()
		q.turnReceive()
		q.writeReports()
		q.flush()
		q.expireParked()
		q.turnSend()
		q.turnStates()
		q.flush()
	case abi.QueueDraining:
		q.turnJobs()
		q.turnLeaving()
		q.flush()
	}
	if q.check != nil {
		q.check.publish()
	}
	if !q.settleState() {
		return false
	}
	if q.progress {
		return true
	}
	q.sleep()
	return true
}

// obey carries out commands.
func (q *queue) obey() {
	o := q.ordered()
	if o.stop {
		q.stopping = true
	}
	switch {
	case o.destroy && q.ending == 0:
		q.ending = q.now + destroyLimit
		q.drain()
	case o.drain:
		q.drain()
	case o.pause && q.state == abi.QueueRunning:
		q.setState(abi.QueuePaused)
	case !o.pause && q.state == abi.QueuePaused:
		q.setState(abi.QueueRunning)
		q.progress = true
	}
}

// settleState goes on from draining when that is done. It reports whether the
// worker goes on.
func (q *queue) settleState() bool {
	empty := q.held.n == 0 && q.jobs.len() == 0 && !q.leaving.active
	if q.state == abi.QueueDraining && empty {
		q.setState(abi.QueueDrained)
	}
	if q.stopping && (q.state == abi.QueueDrained || q.state == abi.QueueError) {
		q.stopped()
	}
	if q.ending == 0 {
		return true
	}
	if q.state == abi.QueueDraining && q.now < q.ending {
		return true
	}
	q.count(abi.CounterResponsesAbandoned, uint64(q.held.n))
	return false
}

// orderStop asks for the drain of an orderly stop. It reports false when the
// worker has ended.
func (q *queue) orderStop() bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.closed {
		return false
	}
	q.orders.drain, q.orders.stop = true, true
	q.wake()
	return true
}

// stopped reports, once, that this queue is done with an orderly stop.
func (q *queue) stopped() {
	q.mu.Lock()
	done := q.orders.stop
	q.orders.stop = false
	q.mu.Unlock()
	q.stopping = false
	if done {
		q.fw.drained()
	}
}

// fail puts the queue into error: its tables cannot be reached (SPEC.md §9.3).
func (q *queue) fail(err error) {
	if q.state == abi.QueueError {
		return
	}
	q.shownError.Store(uint32(q.in))
	q.setState(abi.QueueError)
	q.fw.log.Warn("queue in error", "queue", q.index, "error", err)
	q.fw.chip.Event(abi.EventQueueError)
}

// take copies a run of requests and hands their slots back (SPEC.md §4.2). It
// does so only when the run before is dealt with and there is room for what
// may come of it.
func (q *queue) take() {
	if q.state != abi.QueueRunning {
		return
	}
	if q.stalled() {
		q.count(abi.CounterRequestsStalled, 1)
		return
	}
	if q.runPos < q.runEnd {
		return
	}
	q.runPos, q.runEnd = 0, 0
	old, log2 := q.in, uint(q.config.InLog2)
	for more := true; more && q.runEnd < len(q.run); {
		// The pass ends after a table's worth, and at the end of the table
		// the run goes on at its start.
		room := 1<<log2 - int(q.in.Sub(old))
		slot := q.in.Slot(log2)
		n := min(room, 1<<log2-slot, (len(q.run)-q.runEnd)/abi.DescriptorSize)
		if n == 0 {
			break
		}
		start := q.runEnd
		if q.check != nil {
			q.check.next = q.in
		}
		err := q.fw.chip.View(q.config.In+uint64(slot)*abi.DescriptorSize, n*abi.DescriptorSize, true, q.looks.take)
		got := (q.runEnd - start) / abi.DescriptorSize
		if got > 0 {
			q.count(abi.CounterDescriptorReads, 1)
			q.in = q.in.Add(got)
		}
		if err != nil && !errors.Is(err, errStop) {
			q.shownIn.Store(uint32(q.in))
			q.fail(err)
			return
		}
		more = got == n
	}
	if q.in == old {
		return
	}
	q.progress = true
	q.shownIn.Store(uint32(q.in))
	q.count(abi.CounterRequests, uint64(q.in.Sub(old)))
	w, err := q.loadEvent(abi.EventInFreed)
	if err != nil {
		q.fail(err)
		return
	}
	if w.Wants(old, q.in) {
		q.signal()
	}
}

// takePiece takes the requests at the start of one piece of the input table.
func (q *queue) takePiece(p []byte) error {
	if len(p)%abi.DescriptorSize != 0 || !wordAligned(p) {
		return errPiece
	}
	n := 0
	for n < len(p) && abi.LoadWord(p[n:])&abi.WordOwner != 0 {
		n += abi.DescriptorSize
	}
	// 1. copy the run, 2. hand its slots back with the other bits as they are.
	c := q.run[q.runEnd : q.runEnd+n]
	copy(c, p[:n])
	if q.check != nil {
		q.check.taken(p, c)
	}
	for i := 0; i < n; i += abi.DescriptorSize {
		abi.StoreWord(p[i:], abi.Descriptor(c[i:]).Word()&^abi.WordOwner)
	}
	q.runEnd += n
	if n < len(p) {
		return errStop
	}
	return nil
}

// requests acts on the run that was taken, as long as responses have room.
func (q *queue) requests() {
	for q.runPos < q.runEnd && q.state != abi.QueueError && !q.dying.Load() && !q.stalled() && q.scanned < scanLimit {
		d := abi.Descriptor(q.run[q.runPos : q.runPos+abi.DescriptorSize])
		q.runPos += abi.DescriptorSize
		q.progress = true
		q.request(d)
	}
}

// sleep waits for a doorbell, an event of a connection, a command, a time
// limit. The order of SPEC.md §4.4: event words, full barrier, one more look.
func (q *queue) sleep() {
	if q.spinning() || !q.arm() || q.pending.Load() {
		return
	}
	var limit <-chan time.Time
	if when := q.deadline(); when > 0 {
		// The timer's channel holds no stale tick after Reset.
		q.timer.Reset(max(0, when-q.fw.now()))
		limit = q.timer.C
	}
	slept := time.Now()
	select {
	case <-q.woken:
	case <-limit:
	}
	q.count(abi.CounterQueueWakeups, 1)
	if time.Since(slept) < 4*q.fw.config.Spin {
		q.spin = q.fw.config.Spin
	}
}

// deadline is when the worker has to look without being woken; 0: never.
func (q *queue) deadline() time.Duration {
	when := time.Duration(0)
	watching := q.state == abi.QueueRunning || q.state == abi.QueuePaused
	if watching && q.held.n < holdLimit {
		if c := q.limits.next(); c != nil {
			when = max(c.when, 1)
		}
		if n := q.noticeDeadline(); n > 0 && (when == 0 || n < when) {
			when = n
		}
		if at := q.stateDeadline(); at > 0 && (when == 0 || at < when) {
			when = at
		}
		if at := q.waitDeadline(); at > 0 && (when == 0 || at < when) {
			when = at
		}
		if at := q.delayDeadline(); at > 0 && (when == 0 || at < when) {
			when = at
		}
	}
	if at := q.parkedDeadline(); watching && at > 0 && (when == 0 || at < when) {
		when = at
	}
	if at := q.leaving.limit; q.leaving.active && q.state == abi.QueueDraining && q.held.n < holdLimit && (when == 0 || at < when) {
		when = at
	}
	if q.ending != 0 && (when == 0 || q.ending < when) {
		when = q.ending
	}
	return when
}

// spinning looks for work for a while; it spins less when that was in vain.
func (q *queue) spinning() bool {
	if q.spin < time.Microsecond || q.state != abi.QueueRunning || q.held.n >= holdLimit {
		return false
	}
	for start := time.Now(); time.Since(start) < q.spin; runtime.Gosched() {
		if q.pending.Load() || q.published() {
			return true
		}
	}
	q.spin /= 2
	return false
}

// arm stores the event words and reports whether there is still nothing to do.
func (q *queue) arm() bool {
	switch q.state {
	case abi.QueueRunning, abi.QueuePaused, abi.QueueDraining:
	default:
		return true
	}
	stalled := q.held.n >= holdLimit
	if q.state == abi.QueueRunning && !stalled {
		if q.armedIn != int64(q.in) {
			if err := q.storeEvent(abi.EventInPublished, abi.EventAt(q.in)); err != nil {
				q.fail(err)
				return false
			}
			q.armedIn = int64(q.in)
		}
		if q.published() {
			return false
		}
	}
	if q.held.n > 0 {
		// The slot that the producer index waits for was last the host's under
		// the index one table before.
		n := q.out.Add(-(1 << q.config.OutLog2))
		if q.armedOut != int64(n) {
			if err := q.storeEvent(abi.EventOutFreed, abi.EventAt(n)); err != nil {
				q.fail(err)
				return false
			}
			q.armedOut = int64(n)
		}
		if q.scanFree(1); q.free != q.out {
			return false
		}
	}
	return q.state != abi.QueueError
}

// published reports whether the next slot of the input table is the host's.
func (q *queue) published() bool {
	w, err := q.loadWord(q.config.In + uint64(q.in.Slot(uint(q.config.InLog2)))*abi.DescriptorSize)
	if err != nil {
		q.fail(err)
		return true
	}
	return w&abi.WordOwner != 0
}

func (q *queue) loadPiece(p []byte) error {
	if !wordAligned(p) {
		return errPiece
	}
	q.word = abi.LoadWord(p)
	return nil
}

func (q *queue) loadWord(iova uint64) (uint32, error) {
	err := q.fw.chip.View(iova, 4, false, q.looks.load)
	return q.word, err
}

func (q *queue) loadEvent(off uint64) (abi.EventWord, error) {
	w, err := q.loadWord(q.config.Event + off)
	return abi.EventWord(w), err
}

func (q *queue) storeEvent(off uint64, w abi.EventWord) error {
	q.word = uint32(w)
	return q.fw.chip.View(q.config.Event+off, 4, true, q.looks.store)
}

func (q *queue) storePiece(p []byte) error {
	if !wordAligned(p) {
		return errPiece
	}
	abi.StoreWord(p, q.word)
	return nil
}

// signal raises the queue's vector.
func (q *queue) signal() {
	q.count(abi.CounterInterrupts, 1)
	q.fw.chip.Signal(q.config.Vector)
}
