// SPDX-License-Identifier: Apache-2.0

package conformance

import "sync"

// flooded is an adapter with a listener and a connection while segments come that
// nobody means.
type flooded struct {
	*ring
	port             uint16
	peer             Session
	conn             uint64
	memory, sessions uint64
}

// beforeFlood opens them.
func (t *T) beforeFlood(backlog uint32) *flooded {
	t.Helper()
	c := t.start()
	f := &flooded{ring: c.ring(0, ringConfig{}), port: t.reachable()}
	terminal(t, "listen", f.listen(goal{count: 1, lport: f.port, backlog: backlog}), rspListen, stOK)
	f.peer, f.conn = f.serve(Script{{Op: OpDiscard}})
	f.scalar(reqAdapter, 0, 0x0108) // the tables of the checker are charged by now
	f.memory, f.sessions = f.scalar(reqAdapter, 0, 0x0108), c.counter(ctrConnections)
	return f
}

// flood sends a flood and waits until the adapter has seen it.
func (f *flooded) flood(x Flood) {
	f.Helper()
	frames := f.counter(ctrFramesReceived)
	check(f.T, "peer: flood", f.Peer().Flood(f.ctx, x))
	f.until("frames_received", func() bool { return f.counter(ctrFramesReceived) >= frames+uint64(x.Count) })
}

// unharmed checks that the flood took nothing: the connection goes on, and the
// listener still hears who means it.
func (f *flooded) unharmed() {
	f.Helper()
	want(f.T, "MEMORY_USED after the flood", f.scalar(reqAdapter, 0, 0x0108), f.memory)
	want(f.T, "connections after the flood", f.counter(ctrConnections), f.sessions)
	f.sendAll(f.conn, 3000, 5)
	p, err := f.Peer().Dial(f.ctx, f.port, Script{{Op: OpSend, N: 500, Seed: 6}, {Op: OpDiscard}})
	check(f.T, "peer: dial", err)
	f.Cleanup(func() { p.Close() })
	d := f.unsolicited(rspArrival, 0)
	f.stream(d.Conn, 6, 0, 500, 500)
	f.sendAll(d.Conn, 700, 7)
	for _, id := range []uint64{d.Conn, f.conn} {
		terminal(f.T, "termination", f.terminate(id, 0), rspTerminated, stOK)
	}
	want(f.T, "bytes at the caller", f.outcome(p).Received, 700)
	want(f.T, "bytes at the peer", f.outcome(f.peer).Received, 3000)
}

// TestCE03_Flood: callers that never answer, more than the backlog takes, cost
// nothing that others would miss.
func TestCE03_Flood(t *T) {
	f := t.beforeFlood(8)
	arrivals := f.counter(ctrArrivals)
	f.flood(Flood{Port: f.port, Ports: 1, Count: 3000})
	want(t, "arrivals of callers that do not answer", f.counter(ctrArrivals)-arrivals, 0)
	f.unharmed()
}

// TestCE03_PortScan: neither does a scan of ports.
func TestCE03_PortScan(t *T) {
	f := t.beforeFlood(0)
	arrivals := f.counter(ctrArrivals)
	f.flood(Flood{Port: 1, Ports: 6000, Count: 6000, Scan: true}) // the listener's is none of them
	want(t, "arrivals", f.counter(ctrArrivals)-arrivals, 0)
	f.unharmed()
}

// TestCE03_Backlog: while the host consumes nothing the adapter accepts nobody;
// callers fill the backlog, and those beyond are told nothing, until there is
// room: then all come in.
func TestCE03_Backlog(t *T) {
	const callers, results = 12, 4200
	c := t.start()
	r := c.ring(0, ringConfig{outLog: 4})
	port := t.reachable()
	terminal(t, "listen", r.listen(goal{count: 1, lport: port, backlog: 4}), rspListen, stOK)
	// Results that the host does not take: datagram endpoints ask nobody.
	_, tag := r.control(reqConnect, 0, new(ctl).target(goal{proto: 17, count: results, remote: t.Peer().Unreachable().Addr(), rport: 10_000}))
	c.until("4096 held responses", func() bool { return c.read(0x1000+0x30) >= 4096 })
	arrivals, drops := c.counter(ctrArrivals), c.counter(ctrBacklogDrops)
	// Some peers' calls are done when they are in the backlog, some when there is room.
	calls := make(chan error, callers)
	var made sync.WaitGroup
	for range callers {
		made.Go(func() {
			p, err := t.Peer().Dial(t.ctx, port, Script{{Op: OpSend, N: 10, Seed: 1}, {Op: OpDiscard}})
			if err == nil {
				t.Cleanup(func() { p.Close() })
			}
			calls <- err
		})
	}
	t.Cleanup(made.Wait)
	c.until("backlog_drops", func() bool { return c.counter(ctrBacklogDrops) > drops })
	want(t, "arrivals meanwhile", c.counter(ctrArrivals)-arrivals, 0)
	for range results {
		want(t, "status of a datagram endpoint", r.answer(tag).Aux, stOK)
	}
	for range callers {
		d := r.unsolicited(rspArrival, 0)
		r.stream(d.Conn, 1, 0, 10, 10)
	}
	want(t, "arrivals", c.counter(ctrArrivals)-arrivals, callers)
	for range callers {
		check(t, "peer: dial", <-calls)
	}
}
