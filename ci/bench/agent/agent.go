// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"toebox/ci/bench/task"
	"toebox/guestdriver"
)

// dialPatience bounds the set-up of a connection.
const dialPatience = 30 * time.Second

// recount is how often one looks whether something has happened.
const recount = 10 * time.Millisecond

// Config says what an agent works with.
type Config struct {
	// Bus opens the adapter's, and says which PCI function it is.
	Bus func() (bus guestdriver.Bus, bdf string, err error)
	// Link gives the other device an address with prefix length, and says which
	// PCI function it is.
	Link func(address string) (bdf string, err error)
	// Memory is what the driver may hold of DMA memory, bytes; 0: what it does by itself.
	Memory int
	// Threads sets how many threads run goroutines at a time, and returns how many did;
	// nil: that does not change. Tasks that have one goroutine wait and work in turns have
	// one, whichever the side: others would look for work, on the processors that what it
	// waits for needs.
	Threads func(n int) int
	// Proc is where the kernel shows its counters; empty: /proc.
	Proc string
}

// Agent does tasks.
type Agent struct {
	cfg     Config
	adapter *guestdriver.Adapter
	bdf     map[task.Side]string
	signals func() uint64 // doorbells, while somebody else than the driver rings them
}

// New returns an agent that has opened nothing yet.
func New(cfg Config) *Agent {
	if cfg.Proc == "" {
		cfg.Proc = "/proc"
	}
	return &Agent{cfg: cfg, bdf: map[task.Side]string{}}
}

// Close gives the adapter up.
func (a *Agent) Close() error {
	if a.adapter == nil {
		return nil
	}
	err := a.adapter.Close()
	a.adapter = nil
	return err
}

// Serve does what comes in until that ends.
func (a *Agent) Serve(ctx context.Context, in io.Reader, out io.Writer) error {
	lines := task.NewLines(in, out)
	for {
		var t task.Task
		if err := lines.Read(&t); err != nil {
			if err == io.EOF {
				err = nil
			}
			return err
		}
		answer := task.Answer{}
		r, err := a.Do(ctx, &t, func() error { return lines.Write(task.Answer{Begun: true}) })
		if err != nil {
			answer.Error = err.Error()
		} else {
			answer.Result = r
		}
		if err := lines.Write(answer); err != nil {
			return err
		}
	}
}

// Do does one task. begun is called when the measurement begins.
func (a *Agent) Do(ctx context.Context, t *task.Task, begun func() error) (*task.Result, error) {
	if err := t.Check(); err != nil {
		return nil, err
	}
	if t.Kind == task.SetUp {
		return &task.Result{}, a.setUp(ctx, t)
	}
	if t.Side == task.Adapter {
		if a.adapter == nil {
			return nil, errors.New("agent: the adapter was not set up")
		}
		a.adapter.SetMode(mode(t.Mode), 0)
		defer func() {
			if a.adapter != nil {
				a.adapter.SetMode(guestdriver.ModeHybrid, 0)
			}
		}()
	}
	if a.cfg.Threads != nil && inTurns(t) {
		before := a.cfg.Threads(1)
		defer a.cfg.Threads(before)
	}
	r := &run{agent: a, task: t, begun: begun, started: make(chan struct{})}
	var err error
	switch t.Kind {
	case task.Send, task.Receive:
		err = r.stream(ctx)
	case task.Echo:
		err = r.echo(ctx)
	case task.Connect:
		err = r.connect(ctx)
	case task.Accept:
		err = r.accept(ctx)
	case task.Bulk:
		err = r.bulk(ctx)
	case task.Idle:
		err = r.idle(ctx)
	case task.Map:
		err = r.mapping(ctx)
	}
	if err != nil {
		return nil, fmt.Errorf("agent: %s over %s: %w", t.Kind, t.Side, err)
	}
	return &r.result, nil
}

// inTurns reports whether one goroutine does a task, waiting for each answer.
func inTurns(t *task.Task) bool {
	switch t.Kind {
	case task.Echo, task.Connect, task.Accept:
		return t.Conns <= 1
	}
	return false
}

func mode(name string) guestdriver.Mode {
	switch name {
	case task.Interrupt:
		return guestdriver.ModeInterrupt
	case task.Poll:
		return guestdriver.ModePoll
	}
	return guestdriver.ModeHybrid
}

// setUp opens a device.
func (a *Agent) setUp(ctx context.Context, t *task.Task) error {
	if t.Side == task.Virtio {
		bdf, err := a.cfg.Link(t.Peer)
		if err != nil {
			return fmt.Errorf("agent: %w", err)
		}
		a.bdf[task.Virtio] = bdf
		return nil
	}
	if a.adapter != nil {
		return errors.New("agent: the adapter is set up")
	}
	return a.open(ctx)
}

// open starts the driver.
func (a *Agent) open(ctx context.Context) error {
	bus, bdf, err := a.cfg.Bus()
	if err != nil {
		return fmt.Errorf("agent: %w", err)
	}
	adapter, err := guestdriver.Open(ctx, bus, guestdriver.Options{Memory: a.cfg.Memory})
	if err != nil {
		return errors.Join(fmt.Errorf("agent: %w", err), bus.Close())
	}
	a.adapter, a.bdf[task.Adapter] = adapter, bdf
	return nil
}

// run is a task being done.
type run struct {
	agent  *Agent
	task   *task.Task
	begun  func() error
	result task.Result

	bytes, ops atomic.Uint64
	counting   atomic.Bool   // the measurement is on
	started    chan struct{} // closed when it is
	whole      bool          // it lasts until the workers are done
	over       atomic.Bool   // what fails now fails because it was told to end
	failed     chan error    // has room for all who may fail
	work       sync.WaitGroup

	mu   sync.Mutex
	took []time.Duration // of operations
	ends []func()        // what ends workers that wait
}

// dial connects to the peer.
func (r *run) dial(ctx context.Context) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, dialPatience)
	defer cancel()
	if r.task.Side == task.Adapter {
		return r.agent.adapter.DialContext(ctx, "tcp", r.task.Peer)
	}
	var d net.Dialer
	return d.DialContext(ctx, "tcp", r.task.Peer)
}

// conns makes the task's connections; they end with the run.
func (r *run) conns(ctx context.Context) ([]net.Conn, error) {
	var all []net.Conn
	for range r.task.Conns {
		c, err := r.dial(ctx)
		if err != nil {
			return nil, err
		}
		r.atEnd(func() { discard(c) })
		all = append(all, c)
	}
	return all, nil
}

// discard ends a connection at once, whatever is under way.
func discard(c net.Conn) {
	if l, ok := c.(interface{ SetLinger(int) error }); ok {
		_ = l.SetLinger(0) // then the rest is sent, which does no harm
	}
	_ = c.Close()
}

// atEnd has f called when the run ends.
func (r *run) atEnd(f func()) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.ends = append(r.ends, f)
}

// worker runs f beside the measurement, until it fails because the run ends.
func (r *run) worker(f func() error) {
	r.work.Go(func() {
		if err := f(); err != nil && !r.over.Load() {
			select {
			case r.failed <- err:
			default: // one is enough
			}
		}
	})
}

// measure counts for the time of the task, what workers do meanwhile, and ends them.
func (r *run) measure(ctx context.Context, start func()) error {
	r.failed = make(chan error, 1)
	start()
	err := r.count(ctx)
	r.over.Store(true)
	r.end()
	r.work.Wait()
	return err
}

// end ends what the run has begun.
func (r *run) end() {
	r.mu.Lock()
	ends := r.ends
	r.ends = nil
	r.mu.Unlock()
	for _, f := range ends {
		f()
	}
}

// count lets the time of the task pass and takes the difference of all counters.
func (r *run) count(ctx context.Context) error {
	if err := r.pass(ctx, r.task.Warm); err != nil {
		return err
	}
	if err := r.begun(); err != nil {
		return err
	}
	before, err := r.agent.read(r.task.Side)
	if err != nil {
		return err
	}
	bytes, ops := r.bytes.Load(), r.ops.Load()
	r.counting.Store(true)
	close(r.started)
	if r.whole {
		return r.finish(ctx, before)
	}
	// A measurement of nothing says nothing: it goes on until there is something.
	for wait := r.task.For; wait > 0; wait = recount {
		if err := r.pass(ctx, wait); err != nil {
			return err
		}
		if r.bytes.Load() > bytes || r.ops.Load() > ops {
			break
		}
	}
	r.counting.Store(false)
	after, err := r.agent.read(r.task.Side)
	if err != nil {
		return err
	}
	r.result = after.since(before)
	r.result.Bytes, r.result.Ops = r.bytes.Load()-bytes, r.ops.Load()-ops
	return nil
}

// finish ends a measurement of something that has an end.
func (r *run) finish(ctx context.Context, before counters) error {
	done := make(chan struct{})
	go func() {
		r.work.Wait()
		close(done)
	}()
	select {
	case <-done:
	case err := <-r.failed:
		return err
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	after, err := r.agent.read(r.task.Side)
	if err != nil {
		return err
	}
	r.result = after.since(before)
	r.result.Bytes, r.result.Ops = r.bytes.Load(), r.ops.Load()
	select {
	case err := <-r.failed:
		return err
	default:
		return nil
	}
}

// pass waits for d.
func (r *run) pass(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case err := <-r.failed:
		return err
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
