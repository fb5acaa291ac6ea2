// SPDX-License-Identifier: Apache-2.0

package port

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/udp"
	"gvisor.dev/gvisor/pkg/waiter"
)

// udpForward passes datagrams of the host's clients on to the adapter: each
// client has a flow, with a port of the gateway's to which the adapter answers.
type udpForward struct {
	n     *NAT
	c     *net.UDPConn
	guest netip.AddrPort

	mu    sync.Mutex
	flows map[netip.AddrPort]*udpFlow
}

// shut implements closer.
func (w *udpForward) shut() { w.c.Close() }

// ForwardUDP sends the datagrams that come to c to guest, from the gateway;
// without an address in it, to the adapter's IPv4 address. What the adapter
// answers goes back to who sent. The gateway owns c from here and closes it in
// Close. A client's flow ends when it is idle.
func (n *NAT) ForwardUDP(c *net.UDPConn, guest netip.AddrPort) error {
	guest, err := n.target(guest)
	if err != nil {
		return err
	}
	w := &udpForward{n: n, c: c, guest: guest, flows: map[netip.AddrPort]*udpFlow{}}
	if !n.enter(w) {
		c.Close()
		return fmt.Errorf("port: forward %v: %w", guest, net.ErrClosed)
	}
	go func() {
		defer n.leave(w)
		w.serve()
	}()
	return nil
}

func (w *udpForward) serve() {
	n := w.n
	b := make([]byte, maxDatagram+1)
	for {
		size, from, err := w.c.ReadFromUDPAddrPort(b)
		if err != nil {
			if errors.Is(err, net.ErrClosed) || n.ctx.Err() != nil {
				return
			}
			n.stats.UDPDroppedToPeer.Add(1)
			n.warn("receive failed", "socket", w.c.LocalAddr(), "err", err)
			if !n.pause(retryPause) {
				return
			}
			continue
		}
		f := w.flow(from)
		if f == nil {
			continue
		}
		f.touch()
		p := payload(b[:size])
		if _, terr := f.ep.Write(&p, tcpip.WriteOptions{}); terr != nil {
			n.stats.UDPDroppedToPeer.Add(1)
		}
	}
}

// flow is the flow of a client, new if need be; nil when there is no room.
func (w *udpForward) flow(client netip.AddrPort) *udpFlow {
	w.mu.Lock()
	f := w.flows[client]
	w.mu.Unlock()
	if f != nil {
		return f
	}
	n := w.n
	n.mu.Lock()
	full := n.closed || n.flows >= n.cfg.Flows
	if !full {
		n.flows++
	}
	n.mu.Unlock()
	if full {
		n.stats.UDPNoRoom.Add(1)
		return nil
	}
	f, err := w.open()
	if err != nil {
		n.stats.UDPNoRoom.Add(1)
		n.endFlow()
		return nil
	}
	if !n.enter(f) {
		f.ep.Close()
		n.endFlow()
		return nil
	}
	w.mu.Lock()
	w.flows[client] = f
	w.mu.Unlock()
	n.stats.UDPFlows.Add(1)
	n.stats.UDPOpen.Add(1)
	go func() {
		defer n.leave(f)
		defer n.stats.UDPOpen.Add(^uint64(0))
		defer n.endFlow()
		f.toHost(udpClient{w.c, client})
		w.mu.Lock()
		delete(w.flows, client)
		w.mu.Unlock()
		f.shut()
	}()
	return f
}

// open makes the gateway's end of a flow.
func (w *udpForward) open() (*udpFlow, error) {
	n, wq := w.n, &waiter.Queue{}
	ep, terr := n.stack.NewEndpoint(udp.ProtocolNumber, networkProtocol(w.guest.Addr()), wq)
	if terr != nil {
		return nil, goError(terr)
	}
	gateway := n.gateway
	if w.guest.Addr().Is6() {
		gateway = n.gateway6
	}
	if terr = ep.Bind(tcpip.FullAddress{Addr: toAddress(gateway)}); terr == nil {
		terr = ep.Connect(tcpip.FullAddress{NIC: nicID, Addr: toAddress(w.guest.Addr()), Port: w.guest.Port()})
	}
	if terr != nil {
		ep.Close()
		return nil, goError(terr)
	}
	f := &udpFlow{n: n, ep: ep, wq: wq, dead: make(chan struct{})}
	if info, ok := ep.Info().(*stack.TransportEndpointInfo); ok {
		f.id = info.ID
	}
	f.touch()
	return f, nil
}

// udpClient writes to one client of a socket.
type udpClient struct {
	c  *net.UDPConn
	to netip.AddrPort
}

func (u udpClient) Write(p []byte) (int, error) { return u.c.WriteToUDPAddrPort(p, u.to) }
