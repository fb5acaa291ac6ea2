// SPDX-License-Identifier: Apache-2.0

package guestdriver

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"toebox/vdev/abi"
)

// Mode says how the host learns of responses (IF11).
type Mode uint32

// Modes.
const (
	ModeInterrupt Mode = iota // sleep until the queue's vector is signalled
	ModePoll                  // look again and again, no interrupts
	ModeHybrid                // poll for a while, then sleep
)

// Defaults of a queue.
const (
	defaultInLog2  = 8
	defaultOutLog2 = 9
	defaultTimeout = 5 * time.Second
	defaultSpin    = 500 * time.Microsecond
)

// QueueConfig configures a queue; the zero value is usable.
type QueueConfig struct {
	InLog2, OutLog2 uint8 // log2 of the slots; 0: 8 and 9
	Vector          int   // MSI-X vector; 0: that of the queue, q + 1
	Mode            Mode
	Spin            time.Duration // of ModeHybrid; 0: 500 us
	Timeout         time.Duration // bounds a command, and Post; 0: 5 s
}

func (c *QueueConfig) setDefaults(q int) {
	if c.InLog2 == 0 {
		c.InLog2 = defaultInLog2
	}
	if c.OutLog2 == 0 {
		c.OutLog2 = defaultOutLog2
	}
	if c.Vector == 0 {
		c.Vector = q + 1
	}
	if c.Spin <= 0 {
		c.Spin = defaultSpin
	}
	if c.Timeout <= 0 {
		c.Timeout = defaultTimeout
	}
}

// ErrQueueFull says that the input table stayed full.
var ErrQueueFull = errors.New("guestdriver: input table full")

// QueueError is a command to a queue that the adapter refused or did not do.
type QueueError struct {
	Queue  int
	Op     string
	State  abi.QueueState
	Status abi.Status // OK: it was not done in time
}

func (e *QueueError) Error() string {
	if e.Status == abi.StatusOK {
		return fmt.Sprintf("guestdriver: %s queue %d: timed out in state %d", e.Op, e.Queue, e.State)
	}
	return fmt.Sprintf("guestdriver: %s queue %d: %v", e.Op, e.Queue, e.Status)
}

// Unwrap returns the status, or os.ErrDeadlineExceeded's cause for a timeout.
func (e *QueueError) Unwrap() error {
	if e.Status == abi.StatusOK {
		return context.DeadlineExceeded
	}
	return e.Status
}

// QueueStats are counters of one queue, from its creation.
type QueueStats struct {
	Requests, Responses       uint64
	DoorbellsIn, DoorbellsOut uint64 // rung
	Polls                     uint64 // looks at the output table
	Interrupts                uint64 // returns from a wait for the vector
}

// Queue is a queue pair as driver developers see it: requests in, responses
// out, nothing in between. Any goroutine may post. One goroutine at a time
// consumes: Poll, Next and Wait.
//
// The queue owns its tables and event block until it is destroyed. What the
// descriptors name is the caller's.
type Queue struct {
	bus Bus
	q   int
	cfg QueueConfig
	mem DMA
	// event is the event block (SPEC.md §4.4).
	event []byte
	mode  atomic.Uint32
	spin  atomic.Int64 // ns

	inMu sync.Mutex
	in   inRing
	rung abi.Index // producer index at the last look at IN_PUBLISHED
	dead error     // once set, nothing is stored in the tables any more

	outMu sync.Mutex
	out   outRing

	requests, responses, bellsIn, bellsOut, polls, interrupts atomic.Uint64

	pumpOnce sync.Once
	pumpEnd  chan struct{} // closed when the pump has ended
	wake     chan struct{} // one token: the vector was signalled
	stopped  atomic.Bool
}

// NewQueue creates queue pair q in memory of the bus. Waiting by interrupt
// needs [Bus.EnableVectors] first.
func NewQueue(bus Bus, q int, cfg QueueConfig) (*Queue, error) {
	cfg.setDefaults(q)
	if q < 0 || q >= abi.MaxQueues || cfg.InLog2 > abi.MaxRingLog2 || cfg.OutLog2 > abi.MaxRingLog2 {
		return nil, fmt.Errorf("guestdriver: create queue %d: %w", q, abi.StatusBadSize)
	}
	inSize, outSize := abi.DescriptorSize<<cfg.InLog2, abi.DescriptorSize<<cfg.OutLog2
	mem, err := bus.AllocDMA(inSize + outSize + abi.EventBlockSize)
	if err != nil {
		return nil, fmt.Errorf("guestdriver: create queue %d: %w", q, err)
	}
	qu := &Queue{
		bus: bus, q: q, cfg: cfg, mem: mem,
		in:      inRing{table: mem.Bytes[:inSize:inSize], log2: uint(cfg.InLog2)},
		out:     outRing{table: mem.Bytes[inSize : inSize+outSize], log2: uint(cfg.OutLog2)},
		event:   mem.Bytes[inSize+outSize : inSize+outSize+abi.EventBlockSize],
		pumpEnd: make(chan struct{}),
		wake:    make(chan struct{}, 1),
	}
	qu.SetMode(cfg.Mode, cfg.Spin)
	qu.out.fill()
	for _, r := range [...]struct {
		reg uint32
		v   uint64
	}{
		{abi.QRegInLo, mem.IOVA},
		{abi.QRegOutLo, mem.IOVA + uint64(inSize)},
		{abi.QRegEventLo, mem.IOVA + uint64(inSize+outSize)},
	} {
		qu.write(r.reg, uint32(r.v))
		qu.write(r.reg+4, uint32(r.v>>32))
	}
	qu.write(abi.QRegSizes, uint32(cfg.InLog2)|uint32(cfg.OutLog2)<<8)
	qu.write(abi.QRegVector, uint32(cfg.Vector))
	if err := qu.command(context.Background(), "create", abi.QueueCreate, abi.QueueRunning); err != nil {
		if state, _ := qu.State(); state == abi.QueueDisabled {
			bus.FreeDMA(mem)
		}
		return nil, err
	}
	return qu, nil
}

func (q *Queue) reg(r uint32) uint32 { return abi.RegQueueBase + uint32(q.q)*abi.RegQueueStride + r }

func (q *Queue) write(r, v uint32) { q.bus.Write32(abi.BARRegisters, q.reg(r), v) }

// State returns the queue's state and the status of the last command.
func (q *Queue) State() (abi.QueueState, abi.Status) {
	v := q.bus.Read32(abi.BARRegisters, q.reg(abi.QRegState))
	return abi.QueueState(v & 0xf), abi.Status(v >> 16)
}

// command writes a command and waits until the queue is in state want.
func (q *Queue) command(ctx context.Context, op string, c abi.QueueCommand, want abi.QueueState) error {
	ctx, cancel := context.WithTimeout(ctx, q.cfg.Timeout)
	defer cancel()
	q.ring()
	q.write(abi.QRegCommand, uint32(c))
	var state abi.QueueState
	var status abi.Status
	err := pollUntil(ctx, func() bool {
		state, status = q.State()
		return status != abi.StatusOK || state == want
	})
	if err == nil && status == abi.StatusOK {
		return nil
	}
	return &QueueError{Queue: q.q, Op: op, State: state, Status: status}
}

// pollUntil calls done until it is true or ctx ends, at growing distances.
func pollUntil(ctx context.Context, done func() bool) error {
	const first, last = 20 * time.Microsecond, 2 * time.Millisecond
	var t *time.Timer
	for d := first; ; d = min(2*d, last) {
		if done() {
			return nil
		}
		if t == nil {
			t = time.NewTimer(d)
			defer t.Stop()
		} else {
			t.Reset(d)
		}
		select {
		case <-ctx.Done():
			if done() {
				return nil
			}
			return ctx.Err()
		case <-t.C:
		}
	}
}

// Index returns the number of the queue pair.
func (q *Queue) Index() int { return q.q }

// Memory returns the tables and the event block, in this order and without
// gaps, for tests and dumps.
func (q *Queue) Memory() DMA { return q.mem }

// SetMode changes how Wait waits. It takes effect at the next wait.
func (q *Queue) SetMode(m Mode, spin time.Duration) {
	if spin <= 0 {
		spin = q.cfg.Spin
	}
	q.spin.Store(int64(spin))
	q.mode.Store(uint32(m))
}

// TryPost posts as many of the requests as there is room for, in order, and
// returns how many. A queue that was destroyed takes none.
func (q *Queue) TryPost(reqs ...abi.Fields) int {
	n, _ := q.post(reqs, false)
	return n
}

// post puts requests into the table. Late ones cost no doorbell of their own: the
// adapter may come upon them, and is told of them with the next or by ring.
func (q *Queue) post(reqs []abi.Fields, late bool) (int, error) {
	q.inMu.Lock()
	defer q.inMu.Unlock()
	if q.dead != nil {
		return 0, q.dead
	}
	n := q.in.put(reqs)
	q.requests.Add(uint64(n))
	if !late || n < len(reqs) {
		q.ringLocked()
	}
	return n, nil
}

// ring tells the adapter of late requests, if it has to be told.
func (q *Queue) ring() {
	q.inMu.Lock()
	defer q.inMu.Unlock()
	if q.dead == nil {
		q.ringLocked()
	}
}

func (q *Queue) ringLocked() {
	old := q.rung
	if q.rung = q.in.next; old == q.rung {
		return
	}
	// The stores of put are a full barrier before this load (SPEC.md §4.4).
	if abi.EventWord(abi.LoadWord(q.event[abi.EventInPublished:])).Wants(old, q.rung) {
		q.bellsIn.Add(1)
		q.bus.Write32(abi.BARRegisters, abi.RegDoorbells+uint32(q.q)*abi.DoorbellStride, uint32(q.rung))
	}
}

// Post posts all requests, waiting for room at most as long as the queue's
// timeout. On an error the first few may have been posted.
func (q *Queue) Post(reqs ...abi.Fields) error {
	n, err := q.post(reqs, false)
	if n == len(reqs) || err != nil {
		return err
	}
	return q.postRest(reqs[n:])
}

func (q *Queue) postRest(reqs []abi.Fields) error {
	ctx, cancel := context.WithTimeout(context.Background(), q.cfg.Timeout)
	defer cancel()
	var failed error
	err := pollUntil(ctx, func() bool {
		n, err := q.post(reqs, false)
		reqs, failed = reqs[n:], err
		return len(reqs) == 0 || failed != nil
	})
	if err != nil {
		return ErrQueueFull
	}
	return failed
}

// armRoom asks for an interrupt when the adapter hands back the slot at the
// producer index, and reports whether it is free already.
func (q *Queue) armRoom() bool {
	q.inMu.Lock()
	defer q.inMu.Unlock()
	if q.dead != nil {
		return true
	}
	abi.StoreWord(q.event[abi.EventInFreed:], uint32(abi.EventAt(q.in.next.Add(-(1 << q.in.log2)))))
	return q.in.free(0)
}

func (q *Queue) isDead() bool {
	q.inMu.Lock()
	defer q.inMu.Unlock()
	return q.dead != nil
}

// Poll consumes up to len(dst) responses and returns how many there were. It
// never waits.
func (q *Queue) Poll(dst []abi.Fields) int {
	q.outMu.Lock()
	defer q.outMu.Unlock()
	q.polls.Add(1)
	old := q.out.next
	n := q.out.take(dst)
	if n == 0 {
		return 0
	}
	q.responses.Add(uint64(n))
	if abi.EventWord(abi.LoadWord(q.event[abi.EventOutFreed:])).Wants(old, q.out.next) {
		q.bellsOut.Add(1)
		q.bus.Write32(abi.BARRegisters, abi.RegDoorbells+uint32(q.q)*abi.DoorbellStride+abi.DoorbellOut, uint32(q.out.next))
	}
	return n
}

// Pending reports whether a response waits to be consumed.
func (q *Queue) Pending() bool {
	q.outMu.Lock()
	defer q.outMu.Unlock()
	return q.out.pending()
}

// arm asks for an interrupt when the next response is published, and reports
// whether one stands there already: then there may be none.
func (q *Queue) arm() bool {
	q.outMu.Lock()
	defer q.outMu.Unlock()
	abi.StoreWord(q.event[abi.EventOutPublished:], uint32(abi.EventAt(q.out.next)))
	return q.out.pending()
}

// disarm asks for no interrupts.
func (q *Queue) disarm() {
	q.outMu.Lock()
	defer q.outMu.Unlock()
	abi.StoreWord(q.event[abi.EventOutPublished:], uint32(abi.EventNever))
}

// Wait returns when a response can be consumed, waiting as the mode says.
func (q *Queue) Wait(ctx context.Context) error {
	for !q.Pending() {
		mode := Mode(q.mode.Load())
		if mode != ModeInterrupt && q.spinFor(ctx, mode) {
			continue
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		q.startPump()
		if q.arm() {
			break
		}
		select {
		case <-q.wake:
		case <-q.pumpEnd:
			return q.deadErr()
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return nil
}

// spinFor looks at the table for the time that the mode allows and reports
// whether to look again: a response came, the mode changed, the queue ended.
func (q *Queue) spinFor(ctx context.Context, mode Mode) bool {
	q.disarm()
	end := time.Now().Add(time.Duration(q.spin.Load()))
	for i := 0; ; i++ {
		if q.Pending() || Mode(q.mode.Load()) != mode {
			return true
		}
		if i&0xf == 0xf && (ctx.Err() != nil || q.stopped.Load() || mode == ModeHybrid && time.Now().After(end)) {
			return false
		}
		runtime.Gosched()
	}
}

// Next consumes one response, waiting for it.
func (q *Queue) Next(ctx context.Context) (abi.Fields, error) {
	var f [1]abi.Fields
	for q.Poll(f[:]) == 0 {
		if err := q.Wait(ctx); err != nil {
			return abi.Fields{}, err
		}
	}
	return f[0], nil
}

// startPump starts the goroutine that turns interrupts into tokens, so that a
// wait can end with a context.
func (q *Queue) startPump() {
	q.pumpOnce.Do(func() {
		go func() {
			defer close(q.pumpEnd)
			for !q.stopped.Load() {
				if q.bus.Wait(q.cfg.Vector) != nil {
					q.kill(errClosed)
					return
				}
				q.interrupts.Add(1)
				select {
				case q.wake <- struct{}{}:
				default:
				}
			}
		}()
	})
}

func (q *Queue) deadErr() error {
	q.inMu.Lock()
	defer q.inMu.Unlock()
	if q.dead != nil {
		return q.dead
	}
	return errClosed
}

// kill makes every later post fail with err. The tables are not touched again
// by posts when it returns.
func (q *Queue) kill(err error) {
	q.inMu.Lock()
	defer q.inMu.Unlock()
	if q.dead == nil {
		q.dead = err
	}
}

// Pause lets requests stay in the table; responses still come.
func (q *Queue) Pause(ctx context.Context) error {
	return q.command(ctx, "pause", abi.QueuePause, abi.QueuePaused)
}

// Resume ends a pause.
func (q *Queue) Resume(ctx context.Context) error {
	return q.command(ctx, "resume", abi.QueueResume, abi.QueueRunning)
}

// Drain has everything that the adapter took answered and nothing new taken.
// The responses must be consumed meanwhile if they may exceed the table.
func (q *Queue) Drain(ctx context.Context) error {
	return q.command(ctx, "drain", abi.QueueDrain, abi.QueueDrained)
}

// Destroy ends the queue and its connections and frees the tables. Responses
// not consumed before are lost. When the adapter does not give the tables
// back, they stay allocated until the bus is closed.
func (q *Queue) Destroy(ctx context.Context) error {
	if q.stopped.Swap(true) {
		return nil
	}
	q.kill(errClosed)
	err := q.command(ctx, "destroy", abi.QueueDestroy, abi.QueueDisabled)
	if state, _ := q.State(); err != nil && state == abi.QueueDisabled {
		err = nil // a reset was faster
	}
	started := true
	q.pumpOnce.Do(func() { started = false; close(q.pumpEnd) })
	if started {
		// The pump may sit in the bus's wait, which only the vector ends.
		q.bus.Write32(abi.BARRegisters, abi.RegRaise, uint32(q.cfg.Vector))
		t := time.NewTimer(q.cfg.Timeout)
		defer t.Stop()
		select {
		case <-q.pumpEnd:
		case <-t.C:
			err = errors.Join(err, &QueueError{Queue: q.q, Op: "end the wait of"})
		}
	}
	if err == nil {
		err = q.freeTables()
	}
	return err
}

// lose is kill for a queue that the adapter has lost: what it published before
// is not consumed, either, since what that would answer has ended.
func (q *Queue) lose(err error) {
	q.kill(err)
	q.leaveTables()
}

// freeTables gives the memory back.
func (q *Queue) freeTables() error {
	q.leaveTables()
	return q.bus.FreeDMA(q.mem)
}

// leaveTables makes what looks at the tables later see private memory, in which
// nothing happens.
func (q *Queue) leaveTables() {
	q.inMu.Lock()
	defer q.inMu.Unlock()
	q.outMu.Lock()
	defer q.outMu.Unlock()
	private := make([]byte, abi.DescriptorSize+abi.EventBlockSize)
	q.out = outRing{table: private[:abi.DescriptorSize], next: q.out.next}
	q.out.fill()
	q.in = inRing{table: private[:abi.DescriptorSize], next: q.in.next}
	q.event = private[abi.DescriptorSize:]
}

// Stats returns the queue's counters.
func (q *Queue) Stats() QueueStats {
	return QueueStats{
		Requests: q.requests.Load(), Responses: q.responses.Load(),
		DoorbellsIn: q.bellsIn.Load(), DoorbellsOut: q.bellsOut.Load(),
		Polls: q.polls.Load(), Interrupts: q.interrupts.Load(),
	}
}
