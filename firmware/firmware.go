// SPDX-License-Identifier: Apache-2.0

package firmware

import (
	"io"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"toebox/firmware/engine"
	"toebox/vdev/abi"
)

// Firmware runs the queues of one adapter. All methods are safe for concurrent
// use; none may be called from within [Chip.Signal] or [Chip.Event] except
// the doorbells.
type Firmware struct {
	config     Config
	chip       Chip
	engine     engine.Engine
	log        *slog.Logger
	now        func() time.Duration
	counters   Counters
	memory     memory
	copies     atomic.Int64 // of sends, that queues have listed
	keeping    keeping
	holder     engine.Holder // nil: the engine does not tell what it holds
	spill      spill
	policy     policyClock
	checking   atomic.Bool // CHECKER bit 0
	violations violations
	settings   map[abi.Attribute]setting
	table      map[abi.Attribute]abi.AttributeInfo
	defaults   atomic.Pointer[values] // of new connections
	ids        atomic.Uint64
	dir        directory
	adapter    adapter

	// mu serialises commands and life cycle. Workers never take it.
	mu     sync.Mutex
	closed bool

	running atomic.Bool
	stopped atomic.Bool
	halted  atomic.Bool  // stopped, or about to say so
	hearing sync.Mutex   // of hear
	stop    atomic.Int32 // queues that an orderly stop waits for, plus 1 while it counts them
	queues  [abi.MaxQueues]atomic.Pointer[queue]
	last    [abi.MaxQueues]atomic.Uint32
}

// New makes a firmware that waits for [Firmware.Run].
func New(c Config) *Firmware {
	f := &Firmware{config: c, chip: c.Chip, engine: c.Engine, log: c.Logger, now: c.Clock}
	f.chip = writes{c.Chip, f}
	if f.log == nil {
		f.log = slog.New(slog.NewTextHandler(io.Discard, nil))
	}
	if f.now == nil {
		start := time.Now()
		f.now = func() time.Duration { return time.Since(start) }
	}
	f.policy.source = f.now
	f.counters.memory = &f.memory
	f.counters.stats = c.Engine.Stats
	f.dir.owner = make(map[uint64]int)
	f.settings = makeSettings()
	f.table = make(map[abi.Attribute]abi.AttributeInfo)
	for _, info := range abi.Attributes() {
		f.table[info.ID] = info
	}
	f.resetAttributes()
	if h, ok := c.Engine.(engine.Holder); ok {
		f.holder = h
		h.Account(account{f})
	}
	return f
}

// Run is CONTROL.RUN: queues may be created from now on.
func (f *Firmware) Run() {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.closed {
		return
	}
	f.stopped.Store(false)
	f.halted.Store(false)
	f.running.Store(true)
	f.hear()
}

// Running reports STATUS.RUNNING.
func (f *Firmware) Running() bool { return f.running.Load() }

// Stop starts the orderly stop (SPEC.md §11): every queue drains. EVENTS bit 6
// and [Firmware.Stopped] say when it is done.
func (f *Firmware) Stop() {
	f.mu.Lock()
	defer f.mu.Unlock()
	if !f.running.Load() {
		return
	}
	f.running.Store(false)
	f.stop.Store(1)
	for i := range f.queues {
		if q := f.queues[i].Load(); q != nil {
			f.stop.Add(1)
			if !q.orderStop() {
				f.stop.Add(-1)
			}
		}
	}
	f.drained()
}

// Stopped reports STATUS.STOPPED.
func (f *Firmware) Stopped() bool { return f.stopped.Load() }

// drained notes that one part of an orderly stop is done.
func (f *Firmware) drained() {
	if f.stop.Add(-1) == 0 {
		f.halted.Store(true)
		f.hear()
		f.stopped.Store(true)
		f.chip.Event(abi.EventStopped)
	}
}

// hear has the engine hear the link, unless the adapter is stopped: then another
// may have its addresses (SPEC.md §11.2).
func (f *Firmware) hear() {
	if e, ok := f.engine.(engine.Announcer); ok {
		f.hearing.Lock()
		defer f.hearing.Unlock()
		e.Deafen(f.halted.Load() && !f.running.Load())
	}
}

// Command carries out a write of Q_COMMAND. Create is done when it returns,
// the others when [Firmware.QueueStatus] says so.
func (f *Firmware) Command(i int, c abi.QueueCommand, cfg QueueConfig) abi.Status {
	if i < 0 || i >= abi.MaxQueues {
		return abi.StatusBadCommand
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	s := f.commandLocked(i, c, cfg)
	f.last[i].Store(uint32(s))
	return s
}

func (f *Firmware) commandLocked(i int, c abi.QueueCommand, cfg QueueConfig) abi.Status {
	q := f.queues[i].Load()
	state := abi.QueueDisabled
	if q != nil {
		state = q.currentState()
	}
	ordered := orders{}
	if q != nil {
		ordered = q.ordered()
	}
	switch c {
	case abi.QueueCreate:
		return f.create(i, q, state, cfg)
	case abi.QueuePause, abi.QueueResume:
		switch {
		case state == abi.QueueDisabled:
			return abi.StatusNotRunning
		case state > abi.QueuePaused, ordered.drain, ordered.destroy:
			return abi.StatusQueueBusy
		}
		q.order(func(o *orders) { o.pause = c == abi.QueuePause })
	case abi.QueueDrain:
		switch state {
		case abi.QueueDisabled:
			return abi.StatusNotRunning
		case abi.QueueError:
			return abi.StatusQueueBusy
		}
		q.order(func(o *orders) { o.drain = true })
	case abi.QueueDestroy:
		if state != abi.QueueDisabled {
			q.order(func(o *orders) { o.destroy = true })
		}
	default:
		return abi.StatusBadCommand
	}
	return abi.StatusOK
}

// QueueStatus returns what the queue's read-only registers show.
func (f *Firmware) QueueStatus(i int) QueueStatus {
	if i < 0 || i >= abi.MaxQueues {
		return QueueStatus{}
	}
	s := QueueStatus{Last: abi.Status(f.last[i].Load())}
	if q := f.queues[i].Load(); q != nil {
		if s.State = q.currentState(); s.State == abi.QueueDisabled {
			return s
		}
		s.InIndex = abi.Index(q.shownIn.Load())
		s.OutIndex = abi.Index(q.shownOut.Load())
		s.Held = q.shownHeld.Load()
		s.Error = q.shownError.Load()
	}
	return s
}

// Doorbell is a write of IN_DOORBELL. The index is a hint, and used by the
// checker only.
func (f *Firmware) Doorbell(i int, index abi.Index) {
	f.doorbell(i, abi.CounterDoorbellsIn, bell{bellIn, index})
}

// DoorbellOut is a write of OUT_DOORBELL.
func (f *Firmware) DoorbellOut(i int, index abi.Index) {
	f.doorbell(i, abi.CounterDoorbellsOut, bell{bellOut, index})
}

func (f *Firmware) doorbell(i int, c abi.Counter, b bell) {
	f.counters.Add(c, 1)
	if i >= 0 && i < abi.MaxQueues {
		if q := f.queues[i].Load(); q != nil {
			if s := q.currentState(); s >= abi.QueueRunning && s <= abi.QueueDraining {
				if f.checking.Load() {
					q.bells.add(b)
				}
				q.wake()
				return
			}
		}
	}
	f.counters.Add(abi.CounterDoorbellIgnored, 1)
}

// Reset disables all queues and aborts all connections. When it returns
// nothing is written to the old tables any more and all attributes have their
// reset values. It waits for copies that are under way, so a [Chip.Read] or
// Write that waits for the host must end first.
func (f *Firmware) Reset() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.resetLocked()
}

func (f *Firmware) resetLocked() {
	f.running.Store(false)
	for i := range f.queues {
		if q := f.queues[i].Load(); q != nil {
			q.kill()
		}
	}
	for i := range f.queues {
		if q := f.queues[i].Load(); q != nil {
			<-q.done
			f.queues[i].Store(nil)
		}
		f.last[i].Store(0)
	}
	f.stop.Store(0)
	f.stopped.Store(false)
	f.halted.Store(false)
	f.hear()
	f.policy.reset()
	f.checking.Store(false)
	f.violations.reset()
	f.resetAttributes()
}

// Counters are the adapter's counters.
func (f *Firmware) Counters() *Counters { return &f.counters }

// SetPolicyClock is CLOCK_MODE.
func (f *Firmware) SetPolicyClock(manual bool) {
	f.policy.set(manual)
	f.wakeAll()
}

// StepPolicyClock advances a manual policy clock.
func (f *Firmware) StepPolicyClock(ns uint64) {
	f.policy.step(ns)
	f.wakeAll()
}

// PolicyNow is CLOCK_NOW.
func (f *Firmware) PolicyNow() uint64 { return f.policy.now() }

func (f *Firmware) wakeAll() {
	for i := range f.queues {
		if q := f.queues[i].Load(); q != nil {
			q.wake()
		}
	}
}

// Close resets for good.
func (f *Firmware) Close() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.closed = true
	f.resetLocked()
	if f.holder != nil {
		f.holder.Account(nil)
	}
	return nil
}

// directory says which queue a connection belongs to.
type directory struct {
	mu    sync.RWMutex
	owner map[uint64]int
}

func (d *directory) add(id uint64, queue int) {
	d.mu.Lock()
	d.owner[id] = queue
	d.mu.Unlock()
}

func (d *directory) remove(id uint64) {
	d.mu.Lock()
	delete(d.owner, id)
	d.mu.Unlock()
}

func (d *directory) has(id uint64) bool {
	d.mu.RLock()
	_, ok := d.owner[id]
	d.mu.RUnlock()
	return ok
}

func (d *directory) count() int {
	d.mu.RLock()
	defer d.mu.RUnlock()
	return len(d.owner)
}

// newID gives an id of a connection or a listener (SPEC.md §5.2).
func (f *Firmware) newID() uint64 {
	return uint64(f.config.Generation&0xffff)<<48 | f.ids.Add(1)&(1<<48-1)
}
