// SPDX-License-Identifier: Apache-2.0

package peer

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/netip"
	"sync"

	"toebox/ci/conformance"
)

// hairpin listens on the host's address for connections that it takes on to way,
// an address of the adapter. The relay ends with the Host.
func (h *Host) hairpin(way netip.AddrPort) (netip.AddrPort, error) {
	s, err := h.newSession()
	if err != nil {
		return netip.AddrPort{}, err
	}
	l, err := h.listen()
	if err != nil {
		_ = s.Close()
		return netip.AddrPort{}, fmt.Errorf("peer: hairpin: %w", err)
	}
	s.l = l
	h.wg.Go(func() {
		for {
			c, err := l.AcceptTCP()
			if err != nil {
				return
			}
			h.wg.Go(func() { h.relay(s.ctx, c, way) })
		}
	})
	return netip.AddrPortFrom(h.cfg.Gateway, l.Addr().(*net.TCPAddr).AddrPort().Port()), nil
}

// relay joins a connection to another that it makes to way: each end of a
// direction is passed on, and what breaks one of them breaks both.
func (h *Host) relay(ctx context.Context, c *net.TCPConn, way netip.AddrPort) {
	defer c.Close()
	var d *net.TCPConn
	if err := h.cfg.Do(func() error {
		x, err := new(net.Dialer).DialContext(ctx, "tcp", way.String())
		if err == nil {
			d = x.(*net.TCPConn)
		}
		return err
	}); err != nil {
		_ = c.SetLinger(0)
		return
	}
	defer d.Close()
	defer context.AfterFunc(ctx, func() { c.Close(); d.Close() })()
	var wg sync.WaitGroup
	pass := func(to, from *net.TCPConn) {
		// Not by splice, whose pipes would outlive the relay.
		_, err := io.Copy(struct{ io.Writer }{to}, struct{ io.Reader }{from})
		if err == nil {
			err = to.CloseWrite()
		}
		if err != nil {
			for _, x := range []*net.TCPConn{to, from} {
				_ = x.SetLinger(0)
				_ = x.Close()
			}
		}
	}
	wg.Go(func() { pass(d, c) })
	pass(c, d)
	wg.Wait()
}

var _ conformance.Peer = (*Host)(nil)
