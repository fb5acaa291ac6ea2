// SPDX-License-Identifier: Apache-2.0

package conformance

import (
	"encoding/binary"
	"time"
)

// storm is how many targets TestCE04_Storm has: half of them are refused.
const storm = 10_000

// group is a request with many targets until its last result.
type group struct {
	seen  []bool // by ordinal
	left  int
	first uint64 // cookie of ordinal 0
}

// result books one result and says which target it is of: each ordinal once,
// and FINAL in the last.
func (g *group) result(t *T, d desc) int {
	t.Helper()
	i := int(d.Offset)
	if i >= len(g.seen) || g.seen[i] {
		t.Fatalf("result of an ordinal that is none, or has one: %v", d)
	}
	g.seen[i] = true
	g.left--
	if d.final() != (g.left == 0) {
		t.Fatalf("FINAL with %d results to come: %v", g.left, d)
	}
	return i
}

// book takes results of groups until there are none to come.
func (r *ring) groups(what string, groups map[uint32]*group, got func(g *group, i int, d desc)) {
	r.Helper()
	for left := len(groups); left > 0; {
		d := r.take(what, func(desc) bool { return true })
		g := groups[d.Tag]
		if g == nil {
			r.Fatalf("%s: a response that nobody waits for: %v", what, d)
		}
		got(g, g.result(r.T, d), d)
		if g.left == 0 {
			left--
		}
	}
}

// TestCE04_Storm: 10,000 connects in 40 requests at once, every second one
// refused: each target is answered once; all are terminated by tuples, each
// once; what they were charged is given back, and was within 16 KiB each.
func TestCE04_Storm(t *T) {
	c := t.start()
	r := c.ring(0, ringConfig{inLog: 8, outLog: 12})
	p, err := t.Peer().Serve(t.ctx, Script{{Op: OpWait}})
	check(t, "peer: serve", err)
	t.Cleanup(func() { p.Close() })
	no, err := t.Peer().Refused(t.ctx)
	check(t, "peer: refused", err)
	r.scalar(reqAdapter, 0, 0x0108) // the tables of the checker are charged by now
	before := r.scalar(reqAdapter, 0, 0x0108)

	const each = 250
	connects := map[uint32]*group{}
	for first := 0; first < storm; first += each {
		k := new(ctl)
		for i := first; i < first+each; i++ {
			g := to(p.Addr())
			if i%2 == 1 {
				g = to(no)
			}
			g.cookie, g.limit = uint64(i), 10*time.Minute
			k.target(g)
		}
		_, tag := r.control(reqConnect, 0, k)
		connects[tag] = &group{seen: make([]bool, each), left: each, first: uint64(first)}
	}
	var ids []uint64
	refused := 0
	r.groups("completions", connects, func(g *group, i int, d desc) {
		if d.Type != rspCompletion || d.Base != g.first+uint64(i) {
			t.Fatalf("result of target %d: %v", i, d)
		}
		switch status := uint16(stRefused * (d.Base % 2)); {
		case d.Aux != status:
			t.Fatalf("status of target %d: %v, want %d", d.Base, d, status)
		case status == stOK:
			ids = append(ids, d.Conn)
		default:
			refused++
		}
	})
	want(t, "refused", refused, storm/2)
	must(t, "established", len(ids), storm/2)
	unique := map[uint64]bool{}
	for _, id := range ids {
		unique[id] = true
	}
	want(t, "connection ids, each another", len(unique), storm/2)
	want(t, "connections", c.counter(ctrConnections), storm/2)
	perConn := (r.scalar(reqAdapter, 0, 0x0108) - before) / (storm / 2)
	t.Logf("adapter memory charged for an idle connection: %d bytes", perConn)
	if perConn == 0 || perConn > 16<<10 {
		t.Errorf("adapter memory for an idle connection: %d bytes, want at most 16 KiB", perConn)
	}

	terminations := map[uint32]*group{}
	for first := 0; first < len(ids); first += each {
		k := new(ctl)
		for _, id := range ids[first : first+each] {
			v := binary.LittleEndian.AppendUint64(nil, id)
			k.tuple(true, 0x0002, append(v, 1, 0, 0, 0, 0, 0, 0, 0)) // mode 1, abort
		}
		_, tag := r.control(reqTerminate, 0, k)
		terminations[tag] = &group{seen: make([]bool, each), left: each, first: uint64(first)}
	}
	r.groups("termination responses", terminations, func(g *group, i int, d desc) {
		if d.Type != rspTerminated || d.Aux != stOK || d.Conn != ids[g.first+uint64(i)] || d.Length != 1 {
			t.Fatalf("result of target %d: %v", i, d)
		}
	})
	want(t, "requests without a terminal response", len(r.open), 0)
	want(t, "connections at last", c.counter(ctrConnections), 0)
	want(t, "MEMORY_USED at last", r.scalar(reqAdapter, 0, 0x0108), before)
	want(t, "ENDPOINT_COUNT at last", r.scalar(reqAdapter, 0, 0x0111), 0)
	pong(t, r.do(r.ping()))
}

// TestCE03_Arrivals: a caller beyond MAX_CONNECTIONS is reset and counted; the
// listener and the connections that are there go on.
func TestCE03_Arrivals(t *T) {
	c := t.start()
	r := c.ring(0, ringConfig{})
	port := t.reachable()
	d := r.listen(goal{count: 1, lport: port})
	terminal(t, "listen", d, rspListen, stOK)
	dial := func(s Script) Session {
		t.Helper()
		p, err := t.Peer().Dial(t.ctx, port, s)
		check(t, "peer: dial", err)
		t.Cleanup(func() { p.Close() })
		return p
	}
	p := dial(Script{{Op: OpDiscard}})
	first := r.unsolicited(rspArrival, 0).Conn
	r.setScalar(reqAdapter, 0, 0x010d, 1)
	arrivals, refused := c.counter(ctrArrivals), c.counter(ctrArrivalsRefused)
	// The reset may come before the peer's dial is over, or after it.
	if p, err := t.Peer().Dial(t.ctx, port, Script{{Op: OpDiscard}}); err == nil {
		want(t, "bytes to a caller over MAX_CONNECTIONS", t.outcome(p).Received, 0)
		p.Close()
	}
	t.until("arrivals_refused to move", func() bool { return c.counter(ctrArrivalsRefused) > refused })
	want(t, "arrivals over MAX_CONNECTIONS", c.counter(ctrArrivals)-arrivals, 0)
	r.sendAll(first, 1000, 3)
	r.setScalar(reqAdapter, 0, 0x010d, 65536)
	dial(Script{{Op: OpDiscard}})
	second := r.unsolicited(rspArrival, 0).Conn
	r.sendAll(second, 1000, 4)
	terminal(t, "graceful termination", r.terminate(first, 0), rspTerminated, stOK)
	want(t, "bytes of the first", t.outcome(p).Received, 1000)
}
