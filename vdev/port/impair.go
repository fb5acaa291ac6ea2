// SPDX-License-Identifier: Apache-2.0

package port

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip/header"

	"toebox/firmware/engine"
)

// Our tunables.
const (
	// impairLimit bounds the frames that are under way in one direction.
	impairLimit = 16384
	// defaultReorder is how much later a frame comes that others overtake.
	defaultReorder = time.Millisecond
	// longestDelay is beyond what any test of a network needs, and far from
	// where sums overflow.
	longestDelay = time.Hour
)

// Rules are what happens to frames in one direction. Shares are in [0, 1], and
// each is decided for each frame by itself.
type Rules struct {
	Loss float64 // is lost
	// Corrupt is the share of IP packets with one bit flipped. Others are
	// spared: a wrong address in an ARP reply, which no checksum guards, would
	// stop all traffic for as long as the receiver believes it.
	Corrupt   float64
	Duplicate float64 // comes twice
	Reorder   float64 // comes later by ReorderBy, and may be overtaken
	// ReorderBy is the delay of a reordered frame. Default 1 ms.
	ReorderBy time.Duration
	// Delay is the time on the way; Jitter is added to it, evenly
	// distributed up to its value, without changing the order.
	Delay, Jitter time.Duration
	// Rate is the speed in bytes per second; 0 is no limit.
	Rate int64
}

// Impairments describe a bad wire; the zero value is a good one.
type Impairments struct {
	ToAdapter, FromAdapter Rules
	// Seed makes runs repeat: the fate of a frame depends on the seed, on the
	// direction and on how many came before it since the rules were set.
	Seed uint64
	// Clock times delays. Default: the system's.
	Clock engine.Clock
}

// ImpairStats are the totals of one direction while there were rules for it.
type ImpairStats struct {
	Frames     uint64 `json:"frames"` // came in, segments of large frames counted
	Lost       uint64 `json:"lost"`
	Corrupted  uint64 `json:"corrupted"`
	Duplicated uint64 `json:"duplicated"`
	Reordered  uint64 `json:"reordered"`
	Overflowed uint64 `json:"overflowed"` // lost, since too many were under way
	Delivered  uint64 `json:"delivered"`
}

// ImpairPort is a port with a bad wire.
type ImpairPort struct {
	inner     engine.Port
	to, from  lane
	setMu     sync.Mutex
	set       Impairments
	receiveMu sync.Mutex // held while receive runs
	receive   func([]engine.Frame)
}

var _ engine.Port = (*ImpairPort)(nil)

// Impair puts a wire between p and the adapter that may be bad. Frames that
// stand for many are cut into those first, since that is what a wire would
// lose; a direction without rules passes frames on as they are.
func Impair(p engine.Port, im Impairments) (*ImpairPort, error) {
	if im.Clock == nil {
		im.Clock = systemClock{}
	}
	i := &ImpairPort{inner: p}
	i.to.clock, i.to.deliver = im.Clock, i.toAdapter
	i.from.clock, i.from.deliver = im.Clock, func(f []engine.Frame) int { return i.inner.Transmit(f) }
	if err := i.Set(im); err != nil {
		return nil, err
	}
	return i, nil
}

// Set changes the rules for frames to come; the clock stays. What is under way
// arrives as it would have.
func (i *ImpairPort) Set(im Impairments) error {
	for _, r := range []*Rules{&im.ToAdapter, &im.FromAdapter} {
		if err := r.check(); err != nil {
			return err
		}
	}
	i.setMu.Lock()
	defer i.setMu.Unlock()
	i.set = im
	i.to.set(im.ToAdapter, im.Seed, 1)
	i.from.set(im.FromAdapter, im.Seed, 2)
	return nil
}

// Impairments returns what was set last.
func (i *ImpairPort) Impairments() Impairments {
	i.setMu.Lock()
	defer i.setMu.Unlock()
	return i.set
}

// check judges the rules and fills in what has a default.
func (r *Rules) check() error {
	for _, s := range []float64{r.Loss, r.Corrupt, r.Duplicate, r.Reorder} {
		if !(s >= 0 && s <= 1) { // NaN too
			return fmt.Errorf("port: impair: share %v is not between 0 and 1", s)
		}
	}
	if r.ReorderBy < 0 || r.Delay < 0 || r.Jitter < 0 || r.Rate < 0 {
		return errors.New("port: impair: negative time or rate")
	}
	if r.ReorderBy > longestDelay || r.Delay > longestDelay || r.Jitter > longestDelay {
		return fmt.Errorf("port: impair: a delay of more than %v", longestDelay)
	}
	if r.ReorderBy == 0 && r.Reorder > 0 {
		r.ReorderBy = defaultReorder
	}
	return nil
}

// none reports whether the rules leave frames alone.
func (r *Rules) none() bool {
	return r.Loss == 0 && r.Corrupt == 0 && r.Duplicate == 0 && r.Reorder == 0 && r.Delay == 0 && r.Jitter == 0 && r.Rate == 0
}

// MTU implements engine.Port.
func (i *ImpairPort) MTU() int { return i.inner.MTU() }

// Attach implements engine.Port.
func (i *ImpairPort) Attach(receive func([]engine.Frame)) {
	if receive == nil {
		i.inner.Attach(nil)
	}
	i.receiveMu.Lock()
	i.receive = receive
	i.receiveMu.Unlock()
	if receive != nil {
		i.inner.Attach(func(f []engine.Frame) { i.to.send(f) })
	}
}

func (i *ImpairPort) toAdapter(f []engine.Frame) int {
	i.receiveMu.Lock()
	defer i.receiveMu.Unlock()
	if i.receive != nil {
		i.receive(f)
	}
	return len(f)
}

// Inject puts a frame on the wire to the adapter, as if the network had sent it.
func (i *ImpairPort) Inject(frame []byte) { i.to.send([]engine.Frame{{Data: [][]byte{frame}}}) }

// Transmit implements engine.Port. A bad wire takes every frame.
func (i *ImpairPort) Transmit(frames []engine.Frame) int { return i.from.send(frames) }

// Stats returns the totals to and from the adapter.
func (i *ImpairPort) Stats() (toAdapter, fromAdapter ImpairStats) {
	return i.to.snapshot(), i.from.snapshot()
}

// Close implements engine.Port. Frames under way are lost.
func (i *ImpairPort) Close() error {
	i.to.close()
	i.from.close()
	return i.inner.Close()
}

// lane is one direction.
//
// Frames leave it in the order of due, under deliverMu, which is taken before
// mu. The lane to the adapter may be entered from nothing else, and the one
// from the adapter from within it (an answer to what is delivered), never the
// other way round: a port does not call receive from Transmit.
type lane struct {
	clock   engine.Clock
	deliver func([]engine.Frame) int

	good atomic.Bool // no rules and nothing under way: frames just pass

	deliverMu sync.Mutex

	mu     sync.Mutex
	rules  Rules
	random *rand.Rand
	queue  []held // in order of due
	last   time.Time
	free   time.Time // when the wire is free again, at Rate
	timer  engine.Timer
	closed bool
	stats  ImpairStats
}

// held is a frame under way, in memory of the lane.
type held struct {
	due  time.Time
	data []byte
}

func (l *lane) set(r Rules, seed, stream uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.rules = r
	l.random = rand.New(rand.NewPCG(seed, stream))
	l.free = time.Time{}
	l.judgeLocked()
}

func (l *lane) judgeLocked() { l.good.Store(l.rules.none() && len(l.queue) == 0 && !l.closed) }

func (l *lane) snapshot() ImpairStats {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.stats
}

// send decides about frames, delivers those that are due, and returns how many
// it took.
func (l *lane) send(frames []engine.Frame) int {
	if l.good.Load() {
		return l.deliver(frames)
	}
	l.mu.Lock()
	now := l.clock.Now()
	for i := range frames {
		for _, b := range split(&frames[i]) {
			l.admitLocked(b, now)
		}
	}
	l.mu.Unlock()
	l.run()
	return len(frames)
}

func (l *lane) chance(share float64) bool { return share > 0 && l.random.Float64() < share }

// admitLocked decides what becomes of one frame.
func (l *lane) admitLocked(b []byte, now time.Time) {
	l.stats.Frames++
	if l.chance(l.rules.Loss) {
		l.stats.Lost++
		return
	}
	if n := len(b) - header.EthernetMinimumSize; n > 0 && isIP(b) && l.chance(l.rules.Corrupt) {
		l.stats.Corrupted++
		bit := l.random.IntN(n * 8)
		b[header.EthernetMinimumSize+bit/8] ^= 1 << (bit % 8)
	}
	copies := 1
	if l.chance(l.rules.Duplicate) {
		l.stats.Duplicated++
		copies = 2
	}
	for range copies {
		if len(l.queue) >= impairLimit || l.closed {
			l.stats.Overflowed++
			continue
		}
		l.enqueueLocked(b, now)
	}
}

// isIP reports whether a frame, which has a whole Ethernet header, is one of IP.
func isIP(b []byte) bool {
	t := header.Ethernet(b).Type()
	return t == header.IPv4ProtocolNumber || t == header.IPv6ProtocolNumber
}

// enqueueLocked puts a frame where its due time has it.
func (l *lane) enqueueLocked(b []byte, now time.Time) {
	due := now
	if l.rules.Rate > 0 {
		if l.free.Before(now) {
			l.free = now
		}
		l.free = l.free.Add(time.Duration(float64(len(b)) / float64(l.rules.Rate) * float64(time.Second)))
		due = l.free
	}
	due = due.Add(l.rules.Delay)
	if l.rules.Jitter > 0 {
		due = due.Add(time.Duration(l.random.Int64N(int64(l.rules.Jitter) + 1)))
	}
	if l.chance(l.rules.Reorder) {
		l.stats.Reordered++
		due = due.Add(l.rules.ReorderBy)
	} else {
		// In order with all that were not reordered on purpose.
		if due.Before(l.last) {
			due = l.last
		}
		l.last = due
	}
	at := len(l.queue)
	for at > 0 && l.queue[at-1].due.After(due) {
		at--
	}
	l.queue = append(l.queue, held{})
	copy(l.queue[at+1:], l.queue[at:])
	l.queue[at] = held{due: due, data: b}
}

// run delivers what is due, and sets the timer for the rest.
func (l *lane) run() {
	l.deliverMu.Lock()
	defer l.deliverMu.Unlock()
	for {
		batch := l.due()
		if len(batch) == 0 {
			return
		}
		l.deliver(batch)
	}
}

// due takes frames off the queue whose time has come.
func (l *lane) due() []engine.Frame {
	l.mu.Lock()
	defer l.mu.Unlock()
	now := l.clock.Now()
	n := 0
	for n < len(l.queue) && n < frameBatch && !l.queue[n].due.After(now) {
		n++
	}
	batch := make([]engine.Frame, n)
	for i := range batch {
		batch[i] = engine.Frame{Data: [][]byte{l.queue[i].data}}
		l.queue[i].data = nil
	}
	l.queue = l.queue[n:]
	l.stats.Delivered += uint64(n)
	if n == 0 { // what was delivered before has arrived
		l.judgeLocked()
	}
	if n == 0 && len(l.queue) > 0 && !l.closed {
		wait := l.queue[0].due.Sub(now)
		if l.timer == nil {
			l.timer = l.clock.AfterFunc(wait, l.run)
		} else {
			l.timer.Reset(wait)
		}
	}
	return batch
}

// close loses what is under way, and waits for a delivery that is running.
func (l *lane) close() {
	l.mu.Lock()
	l.closed = true
	l.queue = nil
	l.judgeLocked()
	if l.timer != nil {
		l.timer.Stop()
	}
	l.mu.Unlock()
	l.deliverMu.Lock() // a delivery that is running holds it
	defer l.deliverMu.Unlock()
}

// systemClock is the machine's clock.
type systemClock struct{}

func (systemClock) Now() time.Time { return time.Now() }

func (systemClock) AfterFunc(d time.Duration, f func()) engine.Timer {
	return systemTimer{time.AfterFunc(d, f)}
}

type systemTimer struct{ *time.Timer }

func (t systemTimer) Reset(d time.Duration) { t.Timer.Reset(d) }
