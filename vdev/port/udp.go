// SPDX-License-Identifier: Apache-2.0

package port

import (
	"errors"
	"io"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/udp"
	"gvisor.dev/gvisor/pkg/waiter"
)

// maxDatagram is the longest UDP payload, in bytes.
const maxDatagram = 65507

// datagramPool holds buffers for datagrams under way between the stack and a
// socket. They are taken when there is one to move, never while waiting.
type datagramPool struct{ sync.Pool }

func (p *datagramPool) take() *[]byte {
	if b, ok := p.Get().(*[]byte); ok {
		return b
	}
	b := make([]byte, maxDatagram+1)
	return &b
}

// udpFlow is one pair of addresses of the adapter with its host socket.
type udpFlow struct {
	n    *NAT
	id   stack.TransportEndpointID
	ep   tcpip.Endpoint
	wq   *waiter.Queue
	used atomic.Int64 // time of the last datagram, Unix nanoseconds of the clock

	once sync.Once
	mu   sync.Mutex
	host net.Conn // set by run
	dead chan struct{}
}

// forwardUDP catches datagrams that belong to no flow yet.
func (n *NAT) forwardUDP() {
	fw := udp.NewForwarder(n.stack, n.datagram)
	n.stack.SetTransportProtocolHandler(udp.ProtocolNumber, fw.HandlePacket)
}

// datagram opens a flow. It runs in the adapter's Transmit and does not wait.
// false has the stack answer with port unreachable.
func (n *NAT) datagram(r *udp.ForwarderRequest) bool {
	id := r.ID()
	dst, v := n.route(netip.AddrPortFrom(toNetip(id.LocalAddress), id.LocalPort))
	switch v {
	case dialIt:
	case denied:
		n.stats.UDPDenied.Add(1)
		return true
	default:
		n.stats.UDPRefused.Add(1)
		return false
	}
	n.mu.Lock()
	full := n.closed || n.flows >= n.cfg.Flows
	if !full {
		n.flows++
	}
	n.mu.Unlock()
	if full {
		n.stats.UDPNoRoom.Add(1)
		return true
	}
	f := &udpFlow{n: n, id: id, wq: &waiter.Queue{}, dead: make(chan struct{})}
	ep, err := r.CreateEndpoint(f.wq)
	if err != nil {
		// Another goroutine opened the same flow just now.
		n.stats.UDPDroppedToHost.Add(1)
		n.endFlow()
		return true
	}
	f.ep = ep
	f.touch()
	if !n.enter(f) {
		ep.Close()
		n.endFlow()
		return true
	}
	n.stats.UDPFlows.Add(1)
	n.stats.UDPOpen.Add(1)
	go f.run(dst)
	return true
}

// endFlow gives back a place in the table of flows.
func (n *NAT) endFlow() {
	n.mu.Lock()
	n.flows--
	n.mu.Unlock()
}

func (f *udpFlow) touch() { f.used.Store(f.n.cfg.Clock.Now().UnixNano()) }

// shut implements closer.
func (f *udpFlow) shut() {
	f.once.Do(func() {
		close(f.dead)
		f.ep.Close()
		f.mu.Lock()
		defer f.mu.Unlock()
		if f.host != nil {
			f.host.Close()
		}
	})
}

// run serves the flow until it is idle for too long.
func (f *udpFlow) run(dst netip.AddrPort) {
	n := f.n
	defer n.leave(f)
	defer n.stats.UDPOpen.Add(^uint64(0))
	defer n.endFlow()
	defer f.shut()
	host, err := n.dial("udp", dst)
	if err != nil {
		n.stats.UDPNoRoom.Add(1)
		n.sendUnreachable(unreachHost, udp.ProtocolNumber, f.id, 0)
		return
	}
	f.mu.Lock()
	f.host = host
	f.mu.Unlock()
	select {
	case <-f.dead: // shut came before it could see host
		host.Close()
		return
	default:
	}
	fromHost := make(chan struct{})
	go func() {
		defer close(fromHost)
		f.fromHost(host)
	}()
	f.toHost(host)
	f.shut()
	<-fromHost
}

// toHost moves the adapter's datagrams until the flow is idle or shut.
func (f *udpFlow) toHost(host io.Writer) {
	e, ch := waiter.NewChannelEntry(waiter.ReadableEvents | waiter.EventErr | waiter.EventHUp)
	f.wq.EventRegister(&e)
	defer f.wq.EventUnregister(&e)
	clock, idle := f.n.cfg.Clock, make(chan struct{}, 1)
	t := clock.AfterFunc(f.n.cfg.FlowIdle, func() { idle <- struct{}{} })
	defer t.Stop()
	for {
		f.sendAll(host)
		select {
		case <-ch:
		case <-f.dead:
			return
		case <-idle:
			left := f.n.cfg.FlowIdle - clock.Now().Sub(time.Unix(0, f.used.Load()))
			if left <= 0 {
				return
			}
			t.Reset(left)
		}
	}
}

// collector gathers the pieces of one datagram.
type collector struct{ b []byte }

func (c *collector) Write(p []byte) (int, error) {
	c.b = append(c.b, p...)
	return len(p), nil
}

func (f *udpFlow) sendAll(host io.Writer) {
	buf := f.n.datagrams.take()
	defer f.n.datagrams.Put(buf)
	for {
		c := collector{(*buf)[:0]}
		if _, err := f.ep.Read(&c, tcpip.ReadOptions{}); err != nil {
			return
		}
		f.touch()
		if _, err := host.Write(c.b); err != nil {
			f.failed(err)
		}
	}
}

// failed counts a datagram that the host did not take, and passes a refusal on.
func (f *udpFlow) failed(err error) {
	if errors.Is(err, unix.ECONNREFUSED) {
		f.n.stats.UDPRefused.Add(1)
		f.n.sendUnreachable(unreachPort, udp.ProtocolNumber, f.id, 0)
		return
	}
	f.n.stats.UDPDroppedToHost.Add(1)
}

// fromHost moves the host's datagrams until the socket is closed.
func (f *udpFlow) fromHost(host net.Conn) {
	raw, err := rawConn(host)
	if err != nil {
		f.shut()
		return
	}
	for {
		var size int
		var rerr error
		var buf *[]byte
		err := raw.Read(func(fd uintptr) bool {
			if buf == nil {
				buf = f.n.datagrams.take()
			}
			for {
				if size, rerr = unix.Read(int(fd), *buf); rerr != unix.EINTR {
					break
				}
			}
			if rerr == unix.EAGAIN {
				f.n.datagrams.Put(buf) // nothing to move: wait without it
				buf = nil
				return false
			}
			return true
		})
		if err == nil && rerr == nil {
			f.touch()
			p := payload((*buf)[:size])
			if _, terr := f.ep.Write(&p, tcpip.WriteOptions{}); terr != nil {
				f.n.stats.UDPDroppedToPeer.Add(1)
			}
		}
		if buf != nil {
			f.n.datagrams.Put(buf)
		}
		switch {
		case err != nil:
			f.shut()
			return
		case rerr == unix.ECONNREFUSED: // the socket goes on after it
			f.failed(rerr)
		case rerr != nil:
			f.failed(rerr)
			f.shut()
			return
		}
		select {
		case <-f.dead:
			return
		default:
		}
	}
}

// payload is a tcpip.Payloader over bytes.
type payload []byte

// Len implements tcpip.Payloader.
func (p *payload) Len() int { return len(*p) }

// Read implements io.Reader.
func (p *payload) Read(b []byte) (int, error) {
	k := copy(b, *p)
	*p = (*p)[k:]
	return k, nil
}
