// SPDX-License-Identifier: Apache-2.0

package keeper

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math"
	"net"
	"os/exec"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// Config says what is kept and how. A zero duration or limit stands for its
// default.
type Config struct {
	// Command returns the command of the device server, not started. It is
	// called for each start, so that a replaced server can be another program.
	// The keeper sets SysProcAttr, adds to Env, and takes Stderr if it is nil.
	Command func(Launch) *exec.Cmd
	// Start takes the place of Command for servers that are no command.
	Start func(ctx context.Context, generation uint32) (Process, error)
	// Stderr gets what a server started by Command writes to standard error.
	Stderr io.Writer

	Logger *slog.Logger
	// Event is told what happens to the server. It is called by one goroutine
	// at a time and must not block or call the keeper.
	Event func(Event)

	Generation   uint32        // of the first server, default 1
	Patience     time.Duration // how long a request waits before it is answered in the server's stead, default 3 s
	SendTimeout  time.Duration // for a server that does not read, default Patience
	StartTimeout time.Duration // for a server to listen and to take its state, default 10 s
	QuietTime    time.Duration // for answers before a server that is replaced is told to end, default 250 ms
	StopGrace    time.Duration // between SIGTERM and SIGKILL, default 1 s
	BackOff      time.Duration // before a server is started that ended soon after its start; doubles, default 50 ms
	MaxBackOff   time.Duration // default 2 s
	Uptime       time.Duration // after which an end is not soon, default 1 s
	Spin         time.Duration // as vfiouser.Config.Spin
	MaxTransfer  int           // bytes of data in a message, default 1 MiB
	MaxFDs       int           // file descriptors in a message, default 16
}

// EventKind says what an Event is about.
type EventKind int

// Kinds of events.
const (
	EventStarted EventKind = iota + 1 // a server was started
	EventReady                        // it has the client's state and serves it
	EventRefused                      // it is not fit to take over; Err says why
	EventHung                         // it left a request unanswered; Err says which
	EventExited                       // it is gone; Err says how, Trace is its last output
	EventFailed                       // it could not be started; Err says why
	EventPaused                       // it ended soon after its start; the next start is Took away
)

func (k EventKind) String() string {
	switch k {
	case EventStarted:
		return "started"
	case EventReady:
		return "ready"
	case EventRefused:
		return "refused"
	case EventHung:
		return "hung"
	case EventExited:
		return "exited"
	case EventFailed:
		return "failed to start"
	case EventPaused:
		return "paused"
	}
	return fmt.Sprintf("event %d", int(k))
}

// Event is something that happened to a server.
type Event struct {
	Kind       EventKind
	Generation uint32
	PID        int
	Err        error
	Expected   bool          // of EventExited: it was told to end
	Took       time.Duration // of EventReady: to put the state back; of EventPaused: until the next start
	Maps       int           // of EventReady: DMA maps put back
	Trace      []byte        // of EventExited: the end of its standard error
}

// Stats are counts since the keeper was made, and what there is now.
type Stats struct {
	Generation uint32 // of the server that runs or ran last
	Ready      bool   // a client is connected and a server serves it
	Starts     uint64
	Clients    uint64 // served
	Refused    uint64 // clients turned away

	Maps, Files, Held int // DMA maps, files behind them, requests that wait

	Resent       uint64 // requests given to a second server
	InStead      uint64 // requests answered in the server's stead
	Dropped      uint64 // writes that no server got, as far as is known
	StaleReplies uint64 // the client's answers to messages of a dead server
}

type counters struct {
	starts, clients, refused               atomic.Uint64
	resent, inStead, dropped, staleReplies atomic.Uint64
}

// Keeper keeps a device alive. Its methods are safe for concurrent use.
type Keeper struct {
	cfg   Config
	log   *slog.Logger
	stats counters

	eventMu sync.Mutex // one event at a time

	mu       sync.Mutex
	serving  bool
	changed  chan struct{} // closed and replaced with each change below
	current  *running      // nil: none
	gen      uint32
	session  *session // nil: no client
	replaces []replaceCall
	replace  chan struct{} // holds a value if replaces were asked for
}

// replaceCall waits in Replace for the fate of a server later than after.
type replaceCall struct {
	after uint32
	done  chan error
}

// running is a server between its start and its end.
type running struct {
	Process
	gen    uint32
	began  time.Time
	failMu sync.Mutex
	reason error         // why it is not wanted any more
	failed chan struct{} // closed with reason set
	hung   bool
}

// fail says that the process has to go.
func (p *running) fail(reason error, hung bool) {
	p.failMu.Lock()
	defer p.failMu.Unlock()
	if p.reason == nil {
		p.reason, p.hung = reason, hung
		close(p.failed)
	}
}

// New returns a keeper that has started nothing yet.
func New(cfg Config) (*Keeper, error) {
	if (cfg.Command == nil) == (cfg.Start == nil) {
		return nil, errors.New("keeper: wanted: either Command or Start")
	}
	preset(&cfg.Generation, 1)
	preset(&cfg.Patience, 3*time.Second)
	preset(&cfg.SendTimeout, cfg.Patience)
	preset(&cfg.StartTimeout, 10*time.Second)
	preset(&cfg.QuietTime, 250*time.Millisecond)
	preset(&cfg.StopGrace, time.Second)
	preset(&cfg.BackOff, 50*time.Millisecond)
	preset(&cfg.MaxBackOff, 2*time.Second)
	preset(&cfg.Uptime, time.Second)
	preset(&cfg.MaxTransfer, presetTransfer)
	preset(&cfg.MaxFDs, 16)
	preset(&cfg.Logger, slog.New(slog.DiscardHandler))
	if cfg.Patience < 0 || cfg.SendTimeout < 0 || cfg.StartTimeout < 0 || cfg.QuietTime < 0 || cfg.StopGrace < 0 || cfg.BackOff < 0 || cfg.MaxBackOff < cfg.BackOff ||
		cfg.Uptime < 0 || cfg.MaxTransfer < 0 || cfg.MaxTransfer > 64<<20 || cfg.MaxFDs < 0 || cfg.MaxFDs > 253 {
		return nil, errors.New("keeper: limit out of range")
	}
	return &Keeper{cfg: cfg, log: cfg.Logger, gen: cfg.Generation - 1, changed: make(chan struct{}), replace: make(chan struct{}, 1)}, nil
}

func preset[T comparable](p *T, v T) {
	var zero T
	if *p == zero {
		*p = v
	}
}

// Serve serves the clients that connect to l, one at a time, and keeps a server
// running, until ctx ends; then it stops the server and returns nil. While one
// client is served, others are turned away. l stays open.
func (k *Keeper) Serve(ctx context.Context, l *net.UnixListener) error {
	k.mu.Lock()
	if k.serving {
		k.mu.Unlock()
		return errors.New("keeper: serves already")
	}
	k.serving = true
	k.mu.Unlock()
	ctx, cancel := context.WithCancel(ctx)
	stop := context.AfterFunc(ctx, func() { l.SetDeadline(time.Unix(1, 0)) })
	var wg sync.WaitGroup
	wg.Go(func() { k.supervise(ctx) })
	err := k.accept(ctx, l, &wg)
	cancel()
	wg.Wait()
	if !stop() {
		l.SetDeadline(time.Time{})
	}
	k.mu.Lock()
	k.serving = false
	k.mu.Unlock()
	return err
}

// acceptRetry is how long accepting pauses when the machine lacks something.
const acceptRetry = 20 * time.Millisecond

func (k *Keeper) accept(ctx context.Context, l *net.UnixListener, wg *sync.WaitGroup) error {
	for {
		c, err := l.AcceptUnix()
		if ctx.Err() != nil {
			if err == nil {
				c.Close()
			}
			return nil
		}
		if errors.Is(err, net.ErrClosed) {
			return fmt.Errorf("keeper: serve: %w", err)
		}
		if err != nil {
			k.log.Warn("keeper: accept", "err", err)
			select {
			case <-time.After(acceptRetry):
			case <-ctx.Done():
			}
			continue
		}
		s, err := newSession(k, c)
		if err != nil {
			k.log.Warn("keeper: client", "err", err)
			continue
		}
		if !k.enter(ctx, s) {
			k.stats.refused.Add(1)
			k.log.Warn("keeper: a second client was turned away")
			s.client.Close()
			continue
		}
		k.stats.clients.Add(1)
		wg.Go(func() {
			s.run(ctx)
			k.leave(s)
		})
	}
}

// handOver is how long a client waits for the end of one that has hung up.
const handOver = 5 * time.Second

// enter makes s the session. One whose client has gone is waited for.
func (k *Keeper) enter(ctx context.Context, s *session) bool {
	timer := time.NewTimer(handOver)
	defer timer.Stop()
	for {
		k.mu.Lock()
		old, changed := k.session, k.changed
		if old == nil {
			k.session = s
			k.mu.Unlock()
			return true
		}
		k.mu.Unlock()
		if !old.hungUp() {
			return false
		}
		select {
		case <-changed:
		case <-timer.C:
			return false
		case <-ctx.Done():
			return false
		}
	}
}

func (k *Keeper) leave(s *session) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.session == s {
		k.session = nil
	}
	k.changeLocked()
}

func (k *Keeper) changeLocked() {
	close(k.changed)
	k.changed = make(chan struct{})
}

// server waits for a server that is none of the session's earlier ones.
func (k *Keeper) server(ctx context.Context, after uint32) (*running, error) {
	for {
		k.mu.Lock()
		p, changed := k.current, k.changed
		k.mu.Unlock()
		if p != nil && p.gen > after {
			return p, nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
}

// gone waits until p has ended and was reaped.
func (k *Keeper) gone(ctx context.Context, p *running) error {
	select {
	case <-p.Done():
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

func (k *Keeper) event(e Event) {
	k.eventMu.Lock()
	defer k.eventMu.Unlock()
	k.log.Info("keeper: server "+e.Kind.String(), "generation", e.Generation, "pid", e.PID, "took", e.Took, "err", e.Err)
	if k.cfg.Event != nil {
		k.cfg.Event(e)
	}
}

// supervise keeps a server running until ctx ends.
func (k *Keeper) supervise(ctx context.Context) {
	backOff := time.Duration(0)
	for {
		p, err := k.start(ctx)
		soon := true
		if err == nil {
			k.watch(ctx, p)
			soon = time.Since(p.began) < k.cfg.Uptime && !p.told()
		}
		if ctx.Err() != nil {
			k.answerReplaces(math.MaxUint32, context.Cause(ctx))
			return
		}
		if err != nil {
			k.answerReplaces(k.generation(), err)
		}
		if !soon {
			backOff = 0
			continue
		}
		backOff = min(max(2*backOff, k.cfg.BackOff), k.cfg.MaxBackOff)
		k.event(Event{Kind: EventPaused, Generation: k.generation(), Took: backOff})
		timer := time.NewTimer(backOff)
		select {
		case <-timer.C:
		case <-k.replace: // by a better one: at once
		case <-ctx.Done():
		}
		timer.Stop()
	}
}

// generation is that of the server that was started last.
func (k *Keeper) generation() uint32 {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.gen
}

// errTold is the reason for an end that was asked for.
var errTold = errors.New("keeper: replaced")

func (p *running) told() bool {
	p.failMu.Lock()
	defer p.failMu.Unlock()
	return errors.Is(p.reason, errTold)
}

// start starts a server of the next generation.
func (k *Keeper) start(ctx context.Context) (*running, error) {
	k.mu.Lock()
	k.gen++
	gen := k.gen
	select {
	case <-k.replace: // what was asked for by now is this server
	default:
	}
	k.mu.Unlock()
	k.stats.starts.Add(1)
	var p Process
	var err error
	if k.cfg.Start != nil {
		p, err = k.cfg.Start(ctx, gen)
	} else {
		p, err = startChild(k.cfg.Command, gen, k.cfg.Stderr)
	}
	if err != nil {
		k.event(Event{Kind: EventFailed, Generation: gen, Err: err})
		return nil, err
	}
	r := &running{Process: p, gen: gen, began: time.Now(), failed: make(chan struct{})}
	k.event(Event{Kind: EventStarted, Generation: gen, PID: p.PID()})
	k.mu.Lock()
	k.current = r
	alone := k.session == nil || !k.session.introduced()
	k.changeLocked()
	k.mu.Unlock()
	if alone {
		k.answerReplaces(gen, nil) // there is no state to take; whether it is fit shows later
	}
	return r, nil
}

const (
	// lastWords is how long a server that has failed gets to end by itself.
	lastWords = 300 * time.Millisecond
	// stackTime is how long one gets that was told to print its stacks: on a
	// busy machine thousands of goroutines take their time.
	stackTime = 2 * time.Second
)

// watch returns when p has ended, by itself or because it had to.
func (k *Keeper) watch(ctx context.Context, p *running) {
	select {
	case <-p.Done():
	case <-p.failed:
		p.failMu.Lock()
		reason, hung := p.reason, p.hung
		p.failMu.Unlock()
		patience := lastWords
		if hung {
			k.event(Event{Kind: EventHung, Generation: p.gen, PID: p.PID(), Err: reason})
			if d, ok := p.Process.(interface{ dump() }); ok {
				d.dump()
				patience = stackTime
			}
		}
		// A server that has closed its connection is mostly about to end and
		// to say why.
		timer := time.NewTimer(patience)
		select {
		case <-p.Done():
		case <-timer.C:
			p.Stop(0)
		}
		timer.Stop()
	case <-k.replace:
		p.fail(errTold, false)
		k.quiesce(p)
		p.Stop(k.cfg.StopGrace)
	case <-ctx.Done():
		p.fail(errTold, false)
		p.Stop(k.cfg.StopGrace)
	}
	k.mu.Lock()
	k.current = nil
	k.changeLocked()
	k.mu.Unlock()
	k.event(Event{Kind: EventExited, Generation: p.gen, PID: p.PID(), Err: p.Err(), Expected: p.told(), Trace: p.Trace()})
}

// quiesce has the client's requests held, and waits a moment for the answers to
// those that the server has.
func (k *Keeper) quiesce(p *running) {
	k.mu.Lock()
	s := k.session
	k.mu.Unlock()
	if s != nil {
		s.quiesce(p)
	}
}

// Replace ends the server in an orderly way, starts another, and returns when
// that serves the client, or cannot. In the second case the keeper goes on
// trying.
func (k *Keeper) Replace(ctx context.Context) error {
	k.mu.Lock()
	if !k.serving {
		k.mu.Unlock()
		return errors.New("keeper: replace: not serving")
	}
	done := make(chan error, 1)
	k.replaces = append(k.replaces, replaceCall{k.gen, done})
	select {
	case k.replace <- struct{}{}:
	default:
	}
	k.mu.Unlock()
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return fmt.Errorf("keeper: replace: %w", context.Cause(ctx))
	}
}

// answerReplaces tells those who wait in Replace what has become of it: err is
// that of the server of generation gen.
func (k *Keeper) answerReplaces(gen uint32, err error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.replaces = slices.DeleteFunc(k.replaces, func(c replaceCall) bool {
		if c.after >= gen {
			return false // asked for after this server was started
		}
		c.done <- err
		return true
	})
}

// ready notes that p serves the client.
func (k *Keeper) ready(p *running, took time.Duration, maps int) {
	k.event(Event{Kind: EventReady, Generation: p.gen, PID: p.PID(), Took: took, Maps: maps})
	if !p.told() {
		k.answerReplaces(p.gen, nil)
	}
}

// unfit notes that p cannot take over.
func (k *Keeper) unfit(p *running, err error) {
	if !p.told() {
		k.event(Event{Kind: EventRefused, Generation: p.gen, PID: p.PID(), Err: err})
		k.answerReplaces(p.gen, err)
	}
	p.fail(err, false)
}

// Stats returns the counts.
func (k *Keeper) Stats() Stats {
	c := &k.stats
	s := Stats{
		Starts: c.starts.Load(), Clients: c.clients.Load(), Refused: c.refused.Load(), Resent: c.resent.Load(),
		InStead: c.inStead.Load(), Dropped: c.dropped.Load(), StaleReplies: c.staleReplies.Load(),
	}
	k.mu.Lock()
	s.Generation = k.gen
	n := k.session
	k.mu.Unlock()
	if n != nil {
		n.count(&s)
	}
	return s
}
