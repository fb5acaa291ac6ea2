// SPDX-License-Identifier: Apache-2.0

package guestdriver

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"syscall"

	"toebox/vdev/abi"
)

// Fail-over (RIG09): another adapter of the group takes over what one that
// stopped, or is gone, had:
//
//	running --stopped in order, gone, or does not start--> standby
//	   ^                                                      │
//	   └──────── new firmware, or Group.Rejoin ───────────────┘
//
// First the addresses move, then the listeners, then the connections, each as
// after a stop of one adapter (carry.go) but with its data copied to memory of
// the other one, whose bus knows no other.

// ErrStandby says that another adapter of the group works in this one's place.
var ErrStandby = errors.New("guestdriver: adapter stands by: another one of its group has taken over")

// takeOver moves what from had to another adapter of the group, and reports
// whether there is one that takes it; ended are connections of from that do not go
// on. The caller holds from.life; nothing is
// outstanding on from, and nobody can post to it.
func (g *Group) takeOver(from *Adapter, cause error, ended map[uint64]endpoint) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	to := g.heirLocked(from)
	if to == nil {
		return false
	}
	ctx, cancel := timeout(startTimeout)
	defer cancel()
	addresses, err := to.adopt(ctx, from)
	if err != nil {
		g.failed.Add(1)
		from.loseAll(fmt.Errorf("%w: %w", cause, err))
		return false
	}
	g.takeovers.Add(1)
	from.disown()
	from.standby.Store(true)
	from.host.takenOver.Add(1)
	// Before the connections: a peer that has heard of one, or of its end, may connect.
	for _, l := range from.moveListeners(to) {
		l.again()
	}
	moved := from.moveConns(to)
	// In goroutines of their own: the answers may need this one.
	for ln, list := range moved {
		from.workers.Go(func() {
			for _, c := range list {
				ln.restore(c)
			}
		})
	}
	for p := range from.takePackets() {
		from.workers.Go(func() { p.reopen(to) })
	}
	from.workers.Go(func() { to.bury(ended) })
	// Whoever is told comes at once. An error is as a loss on the link.
	_ = to.SetAttribute(ctx, 0, abi.AttrAnnounce, appendAddresses(addresses))
	from.endAll(ErrStandby)
	return true
}

// heirLocked is the first adapter of the group that could take over from's part.
func (g *Group) heirLocked(from *Adapter) *Adapter {
	for _, a := range g.members {
		if a != from && a.works() {
			return a
		}
	}
	return nil
}

// works reports whether the adapter is in operation.
func (a *Adapter) works() bool {
	if a.standby.Load() || a.stopped.Load() {
		return false
	}
	a.mu.RLock()
	defer a.mu.RUnlock()
	select {
	case <-a.up:
		return !a.closing
	default:
		return false
	}
}

// adopt makes the addresses of from this adapter's too. Its routes come with
// them, as far as there are none for their destinations. It returns those
// addresses.
func (a *Adapter) adopt(ctx context.Context, from *Adapter) ([]abi.Address, error) {
	from.mu.RLock()
	addresses := slices.Clone(from.aliases)
	for _, own := range from.address {
		if own.Addr.IsValid() {
			addresses = append(addresses, own)
		}
	}
	routes := slices.Clone(from.routes)
	from.mu.RUnlock()
	a.mu.RLock()
	all := append(slices.Clone(a.aliases), addresses...)
	table := slices.Clone(a.routes)
	a.mu.RUnlock()
	n := len(table)
	for _, r := range routes {
		if !slices.ContainsFunc(table, func(o driverRoute) bool { return o.destination() == r.destination() }) {
			table = append(table, r)
		}
	}
	if len(addresses) > 0 {
		if err := a.setAliases(ctx, all); err != nil {
			return nil, err
		}
	}
	if len(table) > n {
		if err := a.SetAttribute(ctx, 0, abi.AttrRoutes, appendRoutes(table)); err != nil {
			return nil, err
		}
	}
	return addresses, nil
}

func (a *Adapter) setAliases(ctx context.Context, list []abi.Address) error {
	return a.SetAttribute(ctx, 0, abi.AttrAliases, appendAddresses(list))
}

func appendAddresses(list []abi.Address) []byte {
	var b []byte
	for _, ad := range list {
		b = abi.AppendAddress(b, ad)
	}
	return b
}

// moveListeners makes the listeners another adapter's, and returns them. Those of
// a GroupListener that listens there already stay.
func (a *Adapter) moveListeners(to *Adapter) []*Listener {
	var list []*Listener
	has := map[*GroupListener]bool{}
	to.mu.RLock()
	for l := range to.bound {
		has[l.group] = l.group != nil
	}
	to.mu.RUnlock()
	a.mu.Lock()
	for l := range a.bound {
		if !has[l.group] {
			list = append(list, l)
			delete(a.bound, l)
		}
	}
	a.mu.Unlock()
	for _, l := range list {
		l.mu.Lock()
		clear(l.ids) // of another adapter: they mean something else there
		l.on.Store(to.lane())
		l.mu.Unlock()
		to.mu.Lock()
		to.bound[l] = struct{}{}
		to.mu.Unlock()
	}
	return list
}

// moveConns makes the carried connections another adapter's, which has not been
// told of them yet. Those for which it has no room end.
func (a *Adapter) moveConns(to *Adapter) map[*lane][]*Conn {
	a.mu.Lock()
	all := a.carried
	a.carried = map[*Conn]struct{}{}
	a.signalIdleLocked()
	a.mu.Unlock()
	moved := map[*lane][]*Conn{}
	for c := range all {
		ln := to.lane()
		err := c.moveTo(ln)
		if err == nil {
			err = to.expect(c)
		}
		if err != nil {
			c.lost(fmt.Errorf("%w: connection does not go on: %w", ErrReset, err))
			continue
		}
		moved[ln] = append(moved[ln], c)
	}
	return moved
}

// bury has the peers of connections that do not go on told so: to restore one
// from a record that is not exact is refused, and answered to the peer with a
// reset (SPEC.md §6.5).
func (a *Adapter) bury(ended map[uint64]endpoint) {
	ctx, cancel := timeout(startTimeout)
	defer cancel()
	for id, e := range ended {
		c, ok := e.(*Conn)
		if !ok {
			continue
		}
		c.mu.Lock()
		local, remote := c.local.AddrPort(), c.remote.AddrPort()
		c.mu.Unlock()
		if !local.Addr().IsValid() || !remote.Addr().IsValid() {
			continue // nobody has accepted it
		}
		r := abi.StateRecord{
			Conn: id, Protocol: 6, State: 4,
			Local:  abi.Address{Addr: local.Addr().Unmap(), Port: local.Port()},
			Remote: abi.Address{Addr: remote.Addr().Unmap(), Port: remote.Port()},
		}
		call := newCall()
		call.restored = c
		_, err := a.lane().openTuples(ctx, request{kind: kindConnect, call: call},
			abi.AppendTuple(nil, true, abi.AttrRestore, abi.AppendStateRecord(nil, &r)), 1)
		if ctx.Err() != nil || errors.Is(err, errClosed) {
			return
		}
	}
}

// expect enters a connection that comes from another adapter.
func (a *Adapter) expect(c *Conn) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.closing {
		return errClosed
	}
	if len(a.conns)+len(a.carried)+a.dialing >= a.maxConns() {
		return statusErr("socket", abi.StatusNoMemory)
	}
	a.carried[c] = struct{}{}
	return nil
}

// errRestoring says that nobody knows whether a connection had gone on already.
var errRestoring = errors.New("the adapter ended while it took the connection over")

// moveTo takes what the connection keeps out of its adapter's memory. It changes
// nothing when the other one's does not suffice, or somebody restores it.
func (c *Conn) moveTo(ln *lane) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if k := c.carry; k != nil && k.trying {
		return errRestoring
	}
	kept := make([]keptSend, 0, len(c.kept))
	held := 0
	for _, k := range c.kept {
		for rest := k.buf.data[k.off:k.buf.filled]; len(rest) > 0; {
			buf := ln.a.tx.allocMost(len(rest))
			if buf == nil {
				for _, k := range kept {
					k.buf.release()
				}
				return os.NewSyscallError("write", syscall.ENOBUFS)
			}
			n := copy(buf.data, rest)
			buf.filled = uint32(n)
			rest = rest[n:]
			held += len(buf.data)
			kept = append(kept, keptSend{buf: buf})
		}
	}
	for _, k := range c.kept {
		if b := k.buf.user; b != nil {
			b.cancel = cancelNone // it was for the life before
			b.point = PointRead
		}
		c.sendOverLocked(k.buf, abi.StatusOK, k.buf.filled)
	}
	c.held += held
	c.sends += len(kept) - len(c.kept)
	c.kept = kept
	for i := range c.segs {
		if i > 0 || !c.reading { // else its reader gives it back
			c.copySegmentLocked(&c.segs[i])
		}
	}
	c.on.Store(ln)
	return nil
}

// copySegmentLocked puts what waits for a reader into ordinary memory.
func (c *Conn) copySegmentLocked(s *segment) {
	old := s.buf
	b := bytes.Clone(old.data[s.off : s.off+s.n])
	old.consumed += s.n
	c.recycleLocked(old)
	*s = segment{&buffer{data: b, filled: s.n, final: true}, 0, s.n}
	c.bufs++
}

// allocMost returns a piece for n bytes, or for as many of them as there is one.
func (a *arena) allocMost(n int) *buffer {
	for class := min(classFor(n), sendClass); class >= 0; class-- {
		if buf := a.alloc(class, class == 0); buf != nil {
			return buf
		}
	}
	return nil
}

// homeLocked returns what was filled for a send in memory of the adapter that has
// the connection now; with an error it is the buffer as it was.
func (c *Conn) homeLocked(buf *buffer) (*buffer, error) {
	a := c.lane().a
	switch {
	case buf.user != nil && buf.user.m.a != a:
		return buf, errMemory
	case buf.user != nil || buf.block.arena == a.tx:
		return buf, nil
	}
	next := a.tx.alloc(min(classFor(len(buf.data)), sendClass), true)
	if next == nil {
		return buf, os.NewSyscallError("write", syscall.ENOBUFS)
	}
	next.filled = uint32(copy(next.data, buf.data[:buf.filled]))
	c.held += len(next.data) - len(buf.data)
	buf.release()
	return next, nil
}

// rejoinLocked starts an adapter that stood by. Its addresses are another's now.
func (a *Adapter) rejoinLocked() error {
	a.standby.Store(false)
	a.setUp(false)
	defer a.setUp(true)
	err := a.startLocked(context.Background())
	if err == nil {
		err = errors.Join(a.putDefaults(), a.putTable(), a.reclaim())
	}
	if err != nil {
		a.standby.Store(true)
		a.endAll(ErrStandby)
		return fmt.Errorf("guestdriver: %s: rejoin: %w", a.bus.Name(), err)
	}
	a.listenAgain()
	return nil
}

// disown notes that what the adapter had of addresses is another's.
func (a *Adapter) disown() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.address, a.aliases, a.stripped = [2]abi.Address{}, nil, true
}

// reclaim gives an adapter that was reset the addresses that it had before.
func (a *Adapter) reclaim() error {
	a.mu.RLock()
	aliases, routes, stripped := slices.Clone(a.aliases), slices.Clone(a.routes), a.stripped
	a.mu.RUnlock()
	ctx, cancel := timeout(startTimeout)
	defer cancel()
	if stripped {
		if err := a.strip(ctx); err != nil {
			return err
		}
	}
	if len(aliases) > 0 {
		if err := a.setAliases(ctx, aliases); err != nil {
			return err
		}
		if err := a.SetAttribute(ctx, 0, abi.AttrRoutes, appendRoutes(routes)); err != nil {
			return err
		}
		return a.SetAttribute(ctx, 0, abi.AttrAnnounce, appendAddresses(aliases))
	}
	return nil
}

// strip takes the adapter's own addresses from it.
func (a *Adapter) strip(ctx context.Context) error {
	none := abi.AppendAddress(nil, abi.Address{})
	for _, attr := range [...]abi.Attribute{abi.AttrAddress4, abi.AttrAddress6} {
		if err := a.SetAttribute(ctx, 0, attr, none); err != nil {
			return err
		}
	}
	return nil
}

// driverRoute is an entry of the attribute ROUTES.
type driverRoute struct{ to, gateway abi.Address }

func (r driverRoute) destination() netip.Prefix {
	return netip.PrefixFrom(r.to.Addr, int(r.to.Prefix)).Masked()
}

func appendRoutes(list []driverRoute) []byte {
	var b []byte
	for _, r := range list {
		b = abi.AppendAddress(b, r.to)
		b = abi.AppendAddress(b, r.gateway)
	}
	return b
}
