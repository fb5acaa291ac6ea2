// SPDX-License-Identifier: Apache-2.0

package engine

import (
	"sync"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"gvisor.dev/gvisor/pkg/waiter"
)

// finPatience is how long a closed connection waits for its peer's FIN, which
// may never come, before the stack is left to it, whose FIN-WAIT-2 ends by itself.
const finPatience = time.Minute

// parting is a connection that its owner has closed while the peer still sends.
//
// The stack's own Close is not for it yet: from then on the stack takes a bare
// acknowledgement that overtakes the peer's FIN, or follows one that was lost,
// for data that nobody will read, and resets the connection. The peer would lose
// what it has not read yet. So only a FIN goes out at first, and the stack hears
// of the close when the peer's FIN is here; data, for which there is no reader,
// resets the connection as ever.
type parting struct {
	engine *netstack
	ep     tcpip.Endpoint
	wq     *waiter.Queue
	entry  waiter.Entry
	timer  tcpip.Timer
	once   sync.Once
}

// part closes a connection. Its owner gets no more events.
func (c *conn) part() {
	p := &parting{engine: c.engine, ep: c.ep, wq: c.wq}
	c.ackMu.Lock()
	done := c.peerClosed
	c.ackMu.Unlock()
	p.entry.Init(p, waiter.ReadableEvents|waiter.EventErr|waiter.EventHUp)
	if done || !p.sending() || !c.engine.keepParting(p) {
		c.ep.Close()
		return
	}
	_ = p.ep.Shutdown(tcpip.ShutdownWrite) // an error means that it is over, which is looked at
	p.look()
}

// sending says whether the peer may still send, and has sent nothing that is unread.
func (p *parting) sending() bool {
	switch tcp.EndpointState(p.ep.State()) {
	case tcp.StateEstablished, tcp.StateFinWait1, tcp.StateFinWait2:
	default:
		return false
	}
	_, terr := p.ep.Read(&taker{}, tcpip.ReadOptions{Peek: true})
	_, nothing := terr.(*tcpip.ErrWouldBlock)
	return nothing
}

// NotifyEvent implements waiter.EventListener. The endpoint's lock may be held.
func (p *parting) NotifyEvent(waiter.EventMask) { go p.look() }

// look ends the wait when there is something else to wait for. The stack resets a
// connection that is closed with unread data.
func (p *parting) look() {
	if !p.sending() {
		p.end(p.ep.Close)
	}
}

// shut resets the connection with its engine.
func (p *parting) shut() { p.end(p.ep.Abort) }

func (p *parting) end(how func()) {
	p.once.Do(func() {
		p.wq.EventUnregister(&p.entry)
		p.engine.forgetParting(p)
		how()
	})
}

// keepParting enters p into the set that Close ends; false when it has.
func (n *netstack) keepParting(p *parting) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.closed {
		return false
	}
	n.parting[p] = struct{}{}
	p.wq.EventRegister(&p.entry)
	p.timer = n.stack.Clock().AfterFunc(finPatience, func() { p.end(p.ep.Close) })
	return true
}

func (n *netstack) forgetParting(p *parting) {
	n.mu.Lock()
	defer n.mu.Unlock()
	delete(n.parting, p)
	p.timer.Stop()
}
