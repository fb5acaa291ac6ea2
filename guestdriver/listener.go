// SPDX-License-Identifier: Apache-2.0

package guestdriver

import (
	"encoding/binary"
	"errors"
	"net"
	"net/netip"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"toebox/vdev/abi"
)

// Listener accepts TCP connections of the adapter. It is open again by itself
// after the adapter was reset.
type Listener struct {
	on      atomic.Pointer[lane] // another adapter's after a fail-over
	group   *GroupListener       // that it is a part of; nil: none
	network string
	born    *settings            // the adapter's when it began
	pool    atomic.Pointer[Pool] // of connections that arrive
	receive atomic.Pointer[ReceiveGroup]

	opening sync.Mutex // held by who has the adapter listen; before mu

	mu      sync.Mutex
	cond    sync.Cond
	dl      deadline
	addrs   []netip.AddrPort // with the ports that the adapter picked
	ids     []uint64         // adapter's ids, one per address; of a reset adapter they mean nothing
	waiting bool             // a goroutine waits to open it again
	pending []*Conn
	closed  bool
	err     error
}

// Listen announces on an address of the adapter; network is tcp, tcp4 or
// tcp6. An empty host means every address, of both families with tcp. The
// listener is a *[Listener].
func (a *Adapter) Listen(network, address string) (net.Listener, error) {
	l, err := a.listen(network, address, nil)
	if err != nil {
		return nil, err
	}
	return l, nil
}

func (a *Adapter) listen(network, address string, group *GroupListener) (*Listener, error) {
	addrs, err := listenAddrs(network, address, a.features&abi.FeatureIPv6 != 0)
	if err != nil {
		return nil, &net.OpError{Op: "listen", Net: network, Err: err}
	}
	if isUDP(network) {
		return nil, wrongKind(network, net.UDPAddrFromAddrPort(addrs[0]))
	}
	l := &Listener{network: network, group: group}
	l.on.Store(a.lane())
	l.born = a.defaults.Load()
	l.cond.L = &l.mu
	a.mu.Lock()
	closing := a.closing
	if !closing {
		a.bound[l] = struct{}{}
	}
	a.mu.Unlock()
	if closing {
		return nil, &net.OpError{Op: "listen", Net: network, Err: errClosed}
	}
	l.opening.Lock()
	defer l.opening.Unlock()
	for i, at := range addrs {
		if at.Port() == 0 && len(l.addrs) > 0 {
			at = netip.AddrPortFrom(at.Addr(), l.addrs[0].Port())
		}
		err := l.open(at)
		if err != nil && i > 0 && at.Addr().Is6() {
			break // "" with tcp: no IPv6 here, IPv4 serves
		}
		if err != nil {
			l.Close()
			return nil, &net.OpError{Op: "listen", Net: network, Addr: net.TCPAddrFromAddrPort(at), Err: err}
		}
	}
	return l, nil
}

// lane is where the listener is.
func (l *Listener) lane() *lane { return l.on.Load() }

// open has the adapter listen on one address.
func (l *Listener) open(at netip.AddrPort) error {
	ctx, cancel := timeout(startTimeout)
	defer cancel()
	call := newCall()
	call.listener = l
	call.remote = &target{addr: at}
	ln := l.lane()
	_, err := ln.openTarget(ctx, request{kind: kindListen, call: call}, abi.Target{
		Protocol: 6, Count: 1, Local: at, V6: at.Addr().Is6(),
		Backlog: uint32(ln.a.opts.Backlog),
	}, slices.Concat(ln.a.carryAttrs(), l.born.over(ln.a.defaults.Load(), nil).list(), l.pool.Load().attrs(), l.receive.Load().attrs())...)
	return err
}

// again opens the listener after a reset. Resets may follow each other faster
// than that: one goroutine works, one more waits, and looks what is left to do.
func (l *Listener) again() {
	l.mu.Lock()
	waiting := l.waiting
	l.waiting = true
	l.mu.Unlock()
	if waiting {
		return
	}
	l.opening.Lock()
	defer l.opening.Unlock()
	l.mu.Lock()
	l.waiting = false
	closed, addrs, ids := l.closed, slices.Clone(l.addrs), slices.Clone(l.ids)
	l.mu.Unlock()
	if closed {
		return
	}
	for i, at := range addrs {
		if l.lane().a.listener(ids[i]) == l {
			continue // since this reset
		}
		switch err := l.open(at); {
		case errors.Is(err, ErrReset):
			return // who ended it opens again
		case err != nil:
			l.fail(err)
			return
		}
	}
}

// listening acts on a listen response.
func (ln *lane) listening(r request, f *abi.Fields) {
	a, l := ln.a, r.call.listener
	if s := abi.Status(f.Aux); s != abi.StatusOK {
		a.finish(r, result{err: statusErr("bind", s)})
		return
	}
	a.mu.Lock()
	_, taken := a.listeners[f.Conn]
	if !taken && f.Conn != 0 {
		a.listeners[f.Conn] = l
	}
	a.mu.Unlock()
	if taken || f.Conn == 0 {
		a.bad.conn.Add(1)
		a.finish(r, result{err: statusErr("bind", abi.StatusBadConnection)})
		return
	}
	l.mu.Lock()
	closed := l.closed
	if !closed {
		at := netip.AddrPortFrom(r.call.remote.addr.Addr(), uint16(f.Length))
		if i := slices.Index(l.addrs, at); i >= 0 {
			l.ids[i] = f.Conn
		} else {
			l.ids = append(l.ids, f.Conn)
			l.addrs = append(l.addrs, at)
		}
	}
	l.mu.Unlock()
	switch {
	case closed:
		l.terminate(f.Conn)
		a.finish(r, result{err: errClosed})
	case !r.call.deliver(result{}):
		l.terminate(f.Conn)
		a.ctl.release(r.buf)
	}
}

// arrived acts on a connection arrival.
func (ln *lane) arrived(f *abi.Fields) {
	a := ln.a
	l := a.listener(f.Base)
	remote := netip.AddrPortFrom(netip.Addr{}, uint16(f.Offset))
	localPort := int(f.Offset >> 16)
	c := newConn(ln, f.Conn, "tcp", nil, nil)
	if f.Length != 0 {
		var b [4]byte
		binary.BigEndian.PutUint32(b[:], f.Length)
		remote = netip.AddrPortFrom(netip.AddrFrom4(b), remote.Port())
	}
	local := a.localFor(f.Length == 0)
	a.mu.RLock()
	if len(a.aliases) > 0 {
		local = netip.Addr{} // one of several
	}
	a.mu.RUnlock()
	c.remote = net.TCPAddrFromAddrPort(remote)
	c.local = &net.TCPAddr{IP: net.IP(local.AsSlice()), Port: localPort}
	if l != nil {
		c.born = l.born
		c.arriveIn(l)
	}
	if !a.enter(c) {
		if f.Conn == 0 || a.conn(f.Conn) != nil {
			a.bad.conn.Add(1)
			return
		}
		a.host.refused.Add(1)
		c.abort()
		return
	}
	if l == nil || !l.offer(c) {
		a.host.refused.Add(1)
		c.abort()
		return
	}
	c.begin()
}

// offer queues a connection for Accept; false when there is no room.
func (l *Listener) offer(c *Conn) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed || l.err != nil || len(l.pending) >= l.lane().a.opts.Backlog {
		return false
	}
	c.network = l.network
	l.pending = append(l.pending, c)
	l.cond.Signal()
	return true
}

// Accept waits for a connection; it is a *[Conn].
func (l *Listener) Accept() (net.Conn, error) {
	c, err := l.accept()
	if err != nil {
		return nil, &net.OpError{Op: "accept", Net: l.network, Addr: l.Addr(), Err: err}
	}
	c.learnEnds()
	return c, nil
}

func (l *Listener) accept() (*Conn, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	var v vigil
	defer v.end()
	for {
		switch {
		case l.closed:
			return nil, errClosed
		case l.dl.expired:
			return nil, os.ErrDeadlineExceeded
		case len(l.pending) > 0:
			c := l.pending[0]
			l.pending[0] = nil
			l.pending = l.pending[1:]
			return c, nil
		case l.err != nil:
			return nil, l.err
		}
		if !v.look(l.lane(), &l.mu) {
			l.cond.Wait()
			v.woke()
		}
	}
}

// learnEnds gets the addresses that an arrival has no place for: the remote one
// over IPv6, and which of several is the local one. A connection that has gone
// already keeps the unspecified one.
func (c *Conn) learnEnds() {
	ctx, cancel := timeout(startTimeout)
	defer cancel()
	for attr, end := range map[abi.Attribute]*net.TCPAddr{abi.AttrRemote: c.remote, abi.AttrLocal: c.local} {
		if len(end.IP) != 0 {
			continue
		}
		ip := net.IPv6unspecified
		if ln, id, err := c.awaitCarried(ctx); err == nil {
			if v, err := ln.a.Addresses(ctx, id, attr); err == nil && len(v) == 1 && v[0].Addr.IsValid() {
				ip = net.IP(v[0].Addr.AsSlice())
			}
		}
		c.mu.Lock()
		end.IP = ip
		c.mu.Unlock()
	}
}

// SetDeadline bounds Accept, also one that waits already.
func (l *Listener) SetDeadline(t time.Time) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return errClosed // bare, as package net's
	}
	l.dl.setLocked(&l.mu, &l.cond, t)
	return nil
}

// Addr returns a *net.TCPAddr.
func (l *Listener) Addr() net.Addr {
	l.mu.Lock()
	defer l.mu.Unlock()
	switch len(l.addrs) {
	case 0:
		return &net.TCPAddr{}
	case 1:
		return net.TCPAddrFromAddrPort(l.addrs[0])
	}
	return &net.TCPAddr{IP: net.IPv6unspecified, Port: int(l.addrs[0].Port())}
}

// ID returns the adapter's id of the listener's first address.
func (l *Listener) ID() uint64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.ids) == 0 {
		return 0
	}
	return l.ids[0]
}

// fail ends accepting with err, behind what is pending.
func (l *Listener) fail(err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.err == nil {
		l.err = err
	}
	l.cond.Broadcast()
}

// Close ends listening. Connections that nobody accepted are reset.
func (l *Listener) Close() error {
	l.mu.Lock()
	if l.closed {
		l.mu.Unlock()
		return &net.OpError{Op: "close", Net: l.network, Addr: l.Addr(), Err: errClosed}
	}
	l.closed = true
	l.dl.setLocked(&l.mu, &l.cond, time.Time{})
	ids, pending := l.ids, l.pending
	l.pending = nil
	l.cond.Broadcast()
	l.mu.Unlock()
	a := l.lane().a
	a.mu.Lock()
	delete(a.bound, l)
	a.mu.Unlock()
	for _, id := range ids {
		l.terminate(id)
	}
	for _, c := range pending {
		c.abort()
	}
	return nil
}

// terminate ends the adapter's side. Its answer takes the id out.
func (l *Listener) terminate(id uint64) {
	if id == 0 { // it was another adapter's
		return
	}
	l.lane().start(request{kind: kindTerminate, listener: l},
		abi.Fields{Type: abi.TypeTermination, Conn: id, Length: abi.TerminateGraceful}, true)
}

// forgetListener takes the id of a listener out that is gone.
func (a *Adapter) forgetListener(l *Listener, id uint64) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.listeners[id] == l {
		delete(a.listeners, id)
	}
}
