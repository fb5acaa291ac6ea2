// SPDX-License-Identifier: Apache-2.0

package port

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync/atomic"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"gvisor.dev/gvisor/pkg/waiter"
)

// retryPause is between attempts to reach an adapter that does not answer, and
// between attempts to accept when the host has no descriptor left.
const retryPause = 100 * time.Millisecond

// reopenPause is between attempts to reach a program that is about to listen
// again.
const reopenPause = 10 * time.Millisecond

// How a connect to the adapter fails.
var (
	errGuestRefused = errors.New("port: refused by the adapter")
	errGuestReset   = errors.New("port: reset by the adapter")
	errNoAnswer     = errors.New("port: no answer from the adapter")
)

// listener closes a forwarded listener with the gateway.
type listener struct{ net.Listener }

func (l listener) shut() { l.Close() }

// Forward makes each connection that l accepts a connection from the gateway to
// guest; without an address in it, to the adapter's IPv4 address. The gateway
// owns l from here and closes it in Close. A client whose connection the
// adapter refuses is reset; while the adapter does not answer at all, the
// client waits for ConnectTimeout and is then reset.
func (n *NAT) Forward(l net.Listener, guest netip.AddrPort) error {
	guest, err := n.target(guest)
	if err != nil {
		return err
	}
	c := listener{l}
	if !n.enter(c) {
		l.Close()
		return fmt.Errorf("port: forward %v: %w", guest, net.ErrClosed)
	}
	f := &forward{guest: guest}
	f.reopening.Store(n.cfg.Restarted)
	go func() {
		defer n.leave(c)
		n.accept(l, f)
	}()
	return nil
}

// target is what a forward's address of the adapter means.
func (n *NAT) target(guest netip.AddrPort) (netip.AddrPort, error) {
	a := guest.Addr().Unmap()
	if !a.IsValid() || a.IsUnspecified() {
		a = n.adapter
		if guest.Addr().Is6() && !guest.Addr().Is4In6() {
			a = n.adapter6
		}
	}
	if guest.Port() == 0 {
		return netip.AddrPort{}, fmt.Errorf("port: forward %v: no port", guest)
	}
	return netip.AddrPortFrom(a, guest.Port()), nil
}

// forward is where the connections of a listener go.
type forward struct {
	guest netip.AddrPort
	// reopening says that a refusal is not the last word: NATConfig.Restarted.
	reopening atomic.Bool
}

func (n *NAT) accept(l net.Listener, f *forward) {
	for {
		c, err := l.Accept()
		if err != nil {
			if errors.Is(err, net.ErrClosed) || n.ctx.Err() != nil {
				return
			}
			// Out of descriptors, usually: others may end.
			n.stats.AcceptErrors.Add(1)
			n.warn("accept failed", "listener", l.Addr(), "err", err)
			if !n.pause(retryPause) {
				return
			}
			continue
		}
		host, ok := c.(*net.TCPConn)
		if !ok || !n.reserve() {
			n.stats.TCPNoRoom.Add(1)
			resetConn(c)
			continue
		}
		if !n.enter(nil) {
			n.release()
			resetConn(c)
			return
		}
		go func() {
			defer n.leave(nil)
			defer n.release()
			n.inbound(host, f)
		}()
	}
}

// resetConn closes a host connection with a reset where it has one.
func resetConn(c net.Conn) {
	if t, ok := c.(*net.TCPConn); ok {
		t.SetLinger(0)
	}
	c.Close()
}

// inbound serves one accepted connection.
func (n *NAT) inbound(host *net.TCPConn, f *forward) {
	ep, wq, err := n.connectGuest(f.guest)
	for errors.Is(err, errGuestRefused) && f.reopening.Load() && time.Since(n.began) < n.cfg.ConnectTimeout && n.pause(reopenPause) {
		ep, wq, err = n.connectGuest(f.guest)
	}
	if err == nil {
		f.reopening.Store(false)
	}
	if err != nil {
		switch {
		case errors.Is(err, errGuestRefused):
			n.stats.TCPRefused.Add(1)
		case errors.Is(err, errGuestReset):
			n.stats.TCPAborted.Add(1)
		default:
			n.stats.TCPTimedOut.Add(1)
		}
		resetConn(host)
		return
	}
	n.stats.TCPInbound.Add(1)
	n.runFlow(ep, wq, host)
}

// pause waits, and says whether the gateway still runs.
func (n *NAT) pause(d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-n.ctx.Done():
		return false
	}
}

// connectGuest opens a connection to the adapter. Within ConnectTimeout the
// stack sends SYNs again; an attempt that fails for another reason than a
// reset (no answer to ARP: the adapter's firmware is not up) is made again.
func (n *NAT) connectGuest(guest netip.AddrPort) (tcpip.Endpoint, *waiter.Queue, error) {
	deadline := time.Now().Add(n.cfg.ConnectTimeout)
	for {
		err := n.resolve(guest.Addr(), deadline)
		if err == nil {
			var ep tcpip.Endpoint
			var wq *waiter.Queue
			if ep, wq, err = n.connectOnce(guest, deadline); err == nil {
				return ep, wq, nil
			}
		}
		if errors.Is(err, errGuestRefused) || errors.Is(err, errGuestReset) || time.Until(deadline) <= retryPause || !n.pause(retryPause) {
			return nil, nil, err
		}
	}
}

// resolve finds the adapter's MAC address first: of the packets that wait for
// it in the stack only a few hundred are kept.
func (n *NAT) resolve(a netip.Addr, deadline time.Time) error {
	done := make(chan tcpip.Error, 1)
	err := n.stack.GetLinkAddress(nicID, toAddress(a), tcpip.Address{}, networkProtocol(a), func(r stack.LinkResolutionResult) {
		done <- r.Err
	})
	if _, ok := err.(*tcpip.ErrWouldBlock); !ok {
		return goError(err)
	}
	t := time.NewTimer(time.Until(deadline))
	defer t.Stop()
	select {
	case err := <-done:
		return goError(err)
	case <-t.C:
		return errNoAnswer
	case <-n.ctx.Done():
		return net.ErrClosed
	}
}

func goError(err tcpip.Error) error {
	if err == nil {
		return nil
	}
	return errors.New("port: " + err.String())
}

func (n *NAT) connectOnce(guest netip.AddrPort, deadline time.Time) (tcpip.Endpoint, *waiter.Queue, error) {
	wq := &waiter.Queue{}
	ep, terr := n.stack.NewEndpoint(tcp.ProtocolNumber, networkProtocol(guest.Addr()), wq)
	if terr != nil {
		return nil, nil, goError(terr)
	}
	e, ch := waiter.NewChannelEntry(waiter.WritableEvents | waiter.EventErr | waiter.EventHUp)
	wq.EventRegister(&e)
	defer wq.EventUnregister(&e)
	terr = ep.Connect(tcpip.FullAddress{NIC: nicID, Addr: toAddress(guest.Addr()), Port: guest.Port()})
	if _, ok := terr.(*tcpip.ErrConnectStarted); !ok && terr != nil {
		ep.Close()
		return nil, nil, goError(terr)
	}
	t := time.NewTimer(time.Until(deadline))
	defer t.Stop()
	for {
		switch tcp.EndpointState(ep.State()) {
		case tcp.StateConnecting, tcp.StateSynSent, tcp.StateSynRecv:
		case tcp.StateError, tcp.StateClose:
			err := ep.LastError()
			ep.Close()
			switch err.(type) {
			case *tcpip.ErrConnectionRefused:
				return nil, nil, errGuestRefused
			case *tcpip.ErrHostUnreachable, *tcpip.ErrNetworkUnreachable, *tcpip.ErrTimeout:
				return nil, nil, errNoAnswer
			}
			return nil, nil, errGuestReset // established and over
		default:
			return ep, wq, nil
		}
		select {
		case <-ch:
		case <-t.C:
			ep.Abort()
			return nil, nil, errNoAnswer
		case <-n.ctx.Done():
			ep.Abort()
			return nil, nil, net.ErrClosed
		}
	}
}
