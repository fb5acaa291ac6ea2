// SPDX-License-Identifier: Apache-2.0

package guestdriver

import (
	"errors"
	"net"
	"sync"
)

// GroupListener accepts connections of all adapters of a group.
type GroupListener struct {
	members []*Listener
	conns   chan net.Conn
	done    chan struct{} // closed by Close
	dead    chan struct{} // closed when no member accepts any more
	once    sync.Once
	wg      sync.WaitGroup

	mu   sync.Mutex
	left int   // members that accept
	err  error // why the last one does not
}

// Listen announces on an address of each adapter of the group: as
// [Adapter.Listen] does, on the same port. An adapter that does not have the
// address, or does not work, has no part in it; one at least has to.
func (g *Group) Listen(network, address string) (*GroupListener, error) {
	l := &GroupListener{conns: make(chan net.Conn), done: make(chan struct{}), dead: make(chan struct{})}
	var first error
	for _, a := range g.members {
		if !a.works() {
			continue
		}
		m, err := a.listen(network, address, l)
		if err != nil {
			if first == nil {
				first = err
			}
			continue
		}
		if len(l.members) == 0 {
			if host, _, err := net.SplitHostPort(address); err == nil {
				_, port, _ := net.SplitHostPort(m.Addr().String())
				address = net.JoinHostPort(host, port) // the others' too
			}
		}
		l.members = append(l.members, m)
	}
	switch {
	case len(l.members) > 0:
	case first == nil:
		return nil, &net.OpError{Op: "listen", Net: network, Err: errNoAdapter}
	default:
		return nil, first
	}
	l.left = len(l.members)
	for _, m := range l.members {
		l.wg.Go(func() { l.accept(m) })
	}
	return l, nil
}

// accept passes on what a member accepts.
func (l *GroupListener) accept(m *Listener) {
	for {
		c, err := m.Accept()
		if err != nil {
			l.ended(err)
			return
		}
		select {
		case l.conns <- c:
		case <-l.done:
			_ = c.Close()
		}
	}
}

// Accept waits for a connection; it is a *[Conn].
func (l *GroupListener) Accept() (net.Conn, error) {
	select {
	case c := <-l.conns:
		return c, nil
	case <-l.done:
		return nil, &net.OpError{Op: "accept", Net: "tcp", Addr: l.Addr(), Err: errClosed}
	case <-l.dead:
		return nil, l.err
	}
}

// ended notes that a member accepts no more.
func (l *GroupListener) ended(err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.left--; l.left == 0 {
		l.err = err
		close(l.dead)
	}
}

// Addr returns the address on the first of the adapters, a *net.TCPAddr.
func (l *GroupListener) Addr() net.Addr { return l.members[0].Addr() }

// Close ends listening on all adapters.
func (l *GroupListener) Close() error {
	var errs []error
	l.once.Do(func() {
		close(l.done)
		for _, m := range l.members {
			errs = append(errs, m.Close())
		}
		l.wg.Wait()
	})
	return errors.Join(errs...)
}

var _ net.Listener = (*GroupListener)(nil)
