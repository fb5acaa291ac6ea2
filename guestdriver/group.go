// SPDX-License-Identifier: Apache-2.0

package guestdriver

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"

	"toebox/vdev/abi"
)

// Group joins adapters of one machine (RIG09), as bonding joins interfaces. It
// chooses an adapter for each connection by their routes, and when one stops in
// order, by whoever it is stopped, another one on the same link takes over its
// addresses, listeners and connections: the bytes that the peer has not
// acknowledged are sent again, and neither side's stream has a gap. When one is
// gone without that, its connections end with an error, and the others have its
// addresses and listeners.
//
// Who has taken over keeps what it has. An adapter that comes back, with new
// firmware or by Rejoin, stands by without addresses until it is needed.
type Group struct {
	members []*Adapter // by preference

	mu        sync.Mutex // one fail-over at a time; after Adapter.life
	takeovers atomic.Uint64
	failed    atomic.Uint64
}

// GroupStats count what a group did.
type GroupStats struct {
	Takeovers uint64 // an adapter's part went to another
	Failed    uint64 // ... and the other one did not take the addresses
}

// NewGroup joins adapters that were opened with Options.CarryOver, on one link.
// The first that works is preferred where routes do not decide.
func NewGroup(adapters ...*Adapter) (*Group, error) {
	g := &Group{members: slices.Clone(adapters)}
	if len(adapters) < 2 {
		return nil, errors.New("guestdriver: a group is of two adapters or more")
	}
	for i, a := range adapters {
		if !a.opts.CarryOver {
			return nil, fmt.Errorf("guestdriver: group: %s is open without Options.CarryOver", a.bus.Name())
		}
		if !a.group.CompareAndSwap(nil, g) {
			for _, b := range adapters[:i] {
				b.group.Store(nil)
			}
			return nil, fmt.Errorf("guestdriver: group: %s is in a group already", a.bus.Name())
		}
	}
	return g, nil
}

// Adapters returns the members, by preference.
func (g *Group) Adapters() []*Adapter { return slices.Clone(g.members) }

// Stats returns what the group did so far.
func (g *Group) Stats() GroupStats {
	return GroupStats{Takeovers: g.takeovers.Load(), Failed: g.failed.Load()}
}

// Standby reports whether another adapter of the group works in this one's
// place, or would: see [Group.Rejoin].
func (a *Adapter) Standby() bool { return a.standby.Load() }

// Failover stops an adapter of the group in order: another one takes over.
func (g *Group) Failover(ctx context.Context, a *Adapter) error {
	if !slices.Contains(g.members, a) {
		return fmt.Errorf("guestdriver: fail-over: %s is not of the group", a.bus.Name())
	}
	if g.heir(a) == nil {
		return fmt.Errorf("guestdriver: fail-over: nobody can take over from %s", a.bus.Name())
	}
	before := a.host.takenOver.Load()
	if a.standby.Load() {
		return nil
	}
	// To stop it now would end what it is about to take over.
	settled, cancel := context.WithTimeout(ctx, startTimeout)
	_ = pollUntil(settled, a.settled)
	cancel()
	a.write(abi.RegControl, abi.ControlRun|abi.ControlStop)
	err := pollUntil(ctx, func() bool {
		a.check()
		a.life.Lock() // whoever takes over has all of it when that ends
		defer a.life.Unlock()
		return a.host.takenOver.Load() != before || a.works() && a.read(abi.RegStatus)&abi.StatusRunning != 0
	})
	switch {
	case err != nil:
		return fmt.Errorf("guestdriver: fail-over of %s: %w", a.bus.Name(), err)
	case a.host.takenOver.Load() == before:
		return fmt.Errorf("guestdriver: fail-over: nobody took over from %s", a.bus.Name())
	}
	return nil
}

// settled reports whether no connection is between another life and this one.
func (a *Adapter) settled() bool {
	a.mu.RLock()
	defer a.mu.RUnlock()
	return len(a.carried) == 0
}

func (g *Group) heir(a *Adapter) *Adapter {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.heirLocked(a)
}

// Rejoin starts an adapter that stands by, so that it can take over.
func (g *Group) Rejoin(a *Adapter) error {
	a.life.Lock()
	defer a.life.Unlock()
	switch {
	case !slices.Contains(g.members, a):
		return fmt.Errorf("guestdriver: rejoin: %s is not of the group", a.bus.Name())
	case a.stopped.Load():
		return errClosed
	case !a.standby.Load():
		return nil
	}
	return a.rejoinLocked()
}

// errNoAdapter says that no adapter of the group works and has a route.
var errNoAdapter = errors.New("no adapter of the group has a route")

// Route returns the adapter for connections to an address: of those that work
// the one with the longest prefix, among its own addresses' and those of its
// attribute ROUTES, that the address is in.
func (g *Group) Route(to netip.Addr) (*Adapter, error) {
	to = to.Unmap()
	var best *Adapter
	most := -1
	for _, a := range g.members {
		if !a.works() {
			continue
		}
		if n := a.reach(to); n > most {
			best, most = a, n
		}
	}
	if best == nil {
		return nil, errNoAdapter
	}
	return best, nil
}

// reach is the length of the longest prefix that leads to an address; -1: none.
func (a *Adapter) reach(to netip.Addr) int {
	a.mu.RLock()
	defer a.mu.RUnlock()
	most, have := -1, false
	see := func(p netip.Prefix) {
		if p.Contains(to) {
			most = max(most, p.Bits())
		}
	}
	for _, own := range append(a.address[:], a.aliases...) {
		if own.Addr.IsValid() && own.Addr.Is4() == to.Is4() {
			have = true
			see(netip.PrefixFrom(own.Addr, int(own.Prefix)))
		}
	}
	if !have {
		return -1 // nothing to send from
	}
	for _, r := range a.routes {
		see(r.destination())
	}
	return most
}

// Dial connects; see [Group.DialContext].
func (g *Group) Dial(network, address string) (net.Conn, error) {
	return g.DialContext(context.Background(), network, address)
}

// DialContext is [Dialer.DialContext] over the adapter that the address is
// routed to. To choose one, dial over that adapter.
func (g *Group) DialContext(ctx context.Context, network, address string) (net.Conn, error) {
	fail := func(err error) (net.Conn, error) {
		return nil, &net.OpError{Op: "dial", Net: network, Err: err}
	}
	resolver := g.working()
	if resolver == nil {
		return fail(errNoAdapter)
	}
	addrs, err := resolver.resolve(ctx, network, address)
	if err != nil {
		return fail(err)
	}
	var first error
	for _, addr := range addrs {
		// Once more for a fail-over meanwhile.
		for again := true; ; again = false {
			a, err := g.Route(addr.Addr())
			if err != nil {
				return fail(err)
			}
			c, err := a.DialContext(ctx, network, addr.String())
			if err == nil {
				return c, nil
			}
			if first == nil {
				first = err
			}
			if !again || !errors.Is(err, ErrStandby) && !errors.Is(err, ErrReset) {
				break
			}
		}
		if ctx.Err() != nil {
			break
		}
	}
	return nil, first
}

func (g *Group) working() *Adapter {
	for _, a := range g.members {
		if a.works() {
			return a
		}
	}
	return nil
}

// Close closes all adapters of the group.
func (g *Group) Close() error {
	var errs []error
	for _, a := range g.members {
		a.group.CompareAndSwap(g, nil) // nobody takes over from one that is closed
	}
	for _, a := range g.members {
		errs = append(errs, a.Close())
	}
	return errors.Join(errs...)
}
