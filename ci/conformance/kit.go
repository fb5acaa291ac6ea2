// SPDX-License-Identifier: Apache-2.0

package conformance

import (
	"context"
	"fmt"
	"hash/fnv"
	"math/rand/v2"
	"runtime"
	"slices"
	"time"

	"toebox/guestdriver"
)

// TB is what the kit needs of a test's reporting; a small wrapper makes a
// testing.T one (see the kit's own test), and package runner has its own.
type TB interface {
	Helper()
	Logf(format string, args ...any)
	Errorf(format string, args ...any)
	// Fatalf and Skipf end the calling goroutine, which must be the test's.
	Fatalf(format string, args ...any)
	Skipf(format string, args ...any)
	Failed() bool
	Cleanup(func())
	// RunSub runs a named part of the test and reports whether it passed.
	RunSub(name string, f func(TB)) bool
}

// Env is the rung a test runs on.
type Env struct {
	// Rung is inproc, socket, qtest, vm or uio.
	Rung string
	// Open opens the adapter in its reset state. The caller closes it.
	Open func(ctx context.Context) (guestdriver.Bus, error)
	// OpenPolling is Open without interrupts, for buses that can do without.
	OpenPolling func(ctx context.Context) (guestdriver.Bus, error)
	// Restart puts new firmware in the place of the running one, as when that has
	// died; nil where the kit has no hold of the adapter.
	Restart func() error
	// Peer is the other end of the adapter's network; nil when there is none.
	Peer Peer
	// Seed makes schedules and payload repeat.
	Seed uint64
	// Scale multiplies the bounds of waits; 0 is 1. Emulation is slow.
	Scale float64
}

// Rungs of the ladder.
const (
	RungInproc = "inproc"
	RungSocket = "socket"
	RungQTest  = "qtest"
	RungVM     = "vm"  // a guest with an IOMMU, over VFIO
	RungUIO    = "uio" // a guest without, over UIO and the interrupt pin
)

// Needs are what a test needs beyond an adapter.
type Needs uint8

// Needs.
const (
	NeedPeer Needs = 1 << iota // a Peer
	NeedBulk                   // room and time for tens of megabytes
)

// Test is one function of the kit.
type Test struct {
	Name  string
	IDs   []string // of requirements
	Needs Needs
	// Wire: it carries data and holds over a bad wire as well, where the
	// functions of RIG08 run it.
	Wire bool
	// Six: it holds over IPv6 as well, where TestIF15_IPv6 runs it.
	Six bool
	// Lowest says, if not empty, why of the rungs with the kernel as the peer the
	// lowest is enough.
	Lowest string
	// Rungs where it makes sense; empty: all.
	Rungs []string
	// Limit on one run before scaling; 0 is 30 s.
	Limit time.Duration
	// Offends says that the function breaks the protocol on purpose: what the
	// adapter's protocol checker finds does not fail it.
	Offends bool
	Func    func(*T)
}

// On reports whether the test makes sense on a rung.
func (t *Test) On(rung string) bool { return len(t.Rungs) == 0 || slices.Contains(t.Rungs, rung) }

// Peers of the adapter.
const (
	PeerNAT    = "nat"    // the host's loopback behind a gateway
	PeerKernel = "kernel" // the Linux kernel behind a tap device
)

// With reports whether the test makes sense with a peer on a rung; without one it
// runs with nat only.
func (t *Test) With(peer, rung string) bool {
	return peer != PeerKernel || t.Needs&NeedPeer != 0 && (t.Lowest == "" || rung == RungInproc)
}

// DefaultLimit bounds a test that names no limit of its own.
const DefaultLimit = time.Minute

// Bound is how long one run of the test may take in env.
func (t *Test) Bound(env *Env) time.Duration {
	d := t.Limit
	if d == 0 {
		d = DefaultLimit
	}
	return env.scale(d)
}

func (e *Env) scale(d time.Duration) time.Duration {
	if e.Scale > 1 {
		d = time.Duration(float64(d) * e.Scale)
	}
	return d
}

// T is what a function of the kit gets.
type T struct {
	TB
	// Env is the rung.
	Env *Env
	// Name of the running test.
	Name string

	ctx     context.Context
	rng     *rand.Rand
	offends bool
	bad     bool // the wire is
	six     bool // over IPv6
}

// Run runs one test in env under tb, until ctx ends at the latest.
func Run(ctx context.Context, tb TB, test *Test, env *Env) {
	tb.Helper()
	if test.Needs&NeedPeer != 0 && env.Peer == nil {
		tb.Skipf("needs a peer: run it on a rung that has a network")
		return
	}
	h := fnv.New64a()
	fmt.Fprint(h, test.Name)
	ctx, cancel := context.WithTimeout(ctx, test.Bound(env))
	tb.Cleanup(cancel)
	if test.Needs&NeedPeer != 0 {
		// A test that was given up may have left the wire bad.
		if _, err := env.Peer.Impair(ctx, "none"); err != nil {
			tb.Fatalf("make the wire good: %v", err)
		}
	}
	test.Func(&T{
		TB: tb, Env: env, Name: test.Name, ctx: ctx,
		rng: rand.New(rand.NewPCG(env.Seed, h.Sum64())), offends: test.Offends,
	})
}

// Context ends when the test's time is over.
func (t *T) Context() context.Context { return t.ctx }

// Rand is the test's own source, made from the environment's seed and the
// test's name, so that a test repeats whatever ran before it.
func (t *T) Rand() *rand.Rand { return t.rng }

// Run runs a named part.
func (t *T) Run(name string, f func(*T)) bool {
	t.Helper()
	return t.RunSub(name, func(tb TB) {
		sub := *t
		sub.TB = tb
		sub.Name = t.Name + "/" + name
		f(&sub)
	})
}

// Peer is the environment's peer.
func (t *T) Peer() Peer { return t.Env.Peer }

// patience bounds each single wait of a test on something that is to happen. A
// connection whose handshake met losses waits seconds for each retransmission.
const patience = 30 * time.Second

// until waits until cond holds, looking again after growing pauses of at most
// a millisecond, and fails the test when it does not in time.
func (t *T) until(what string, cond func() bool) {
	t.Helper()
	if !t.within(t.Env.scale(patience), cond) {
		t.Fatalf("waited %v in vain for %s", t.Env.scale(patience), what)
	}
}

// within is until with a bound of its own and a result.
func (t *T) within(d time.Duration, cond func() bool) bool {
	deadline := time.Now().Add(d)
	step := 10 * time.Microsecond
	for i := 0; ; i++ {
		if cond() {
			return true
		}
		if i < 20 {
			runtime.Gosched()
			continue
		}
		if time.Now().After(deadline) || t.ctx.Err() != nil {
			return cond()
		}
		pause(step)
		step = min(2*step, time.Millisecond)
	}
}

// never watches for d that cond stays false.
func (t *T) never(what string, d time.Duration, cond func() bool) {
	t.Helper()
	if t.within(d, cond) {
		t.Fatalf("%s, which must not happen", what)
	}
}

func pause(d time.Duration) { <-time.After(d) }

// want fails the test, going on with it, when got is not want.
func want[V comparable](t *T, what string, got, want V) {
	t.Helper()
	if got != want {
		t.Errorf("%s: got %s, want %s", what, show(got), show(want))
	}
}

// must is want that ends the test.
func must[V comparable](t *T, what string, got, want V) {
	t.Helper()
	if got != want {
		t.Fatalf("%s: got %s, want %s", what, show(got), show(want))
	}
}

// check ends the test on an error.
func check(t *T, what string, err error) {
	t.Helper()
	if err != nil {
		t.Fatalf("%s: %v", what, err)
	}
}

func show(v any) string {
	switch v := v.(type) {
	case uint8, uint16, uint32, uint64:
		return fmt.Sprintf("%#x", v)
	}
	return fmt.Sprintf("%v", v)
}
