// SPDX-License-Identifier: Apache-2.0

package conformance

import "net/netip"

// Attributes of SPEC.md §14.1.
const (
	notifyCount    = 0x0250
	notifyAmount   = 0x0251
	notifyFirst    = 0x0252
	notifyLast     = 0x0253
	notifyCeiling  = 0x0254
	notifyAdaptive = 0x0255
	notifyData     = 0x0256
	notifyFailures = 0x0257
	notifyPattern  = 0x0258
	notifyReport   = 0x0259
)

// Counters of SPEC.md §14.1.
const (
	ctrReportsWaiting = 43
	ctrSegmentsIn     = 55
	ctrNotices        = 64
	ctrByCount        = 65
	ctrByAmount       = 66
	ctrByFirst        = 67
	ctrByLast         = 68
	ctrByCeiling      = 69
	ctrDynamic        = 70
	ctrByData         = 71
	ctrByPattern      = 72
	ctrByEnd          = 73
	ctrReports        = 74
	ctrReportRecords  = 75
)

const ms = 1_000_000 // ns

// notifier is a queue whose connects go to a peer, under a policy clock that
// the test moves.
type notifier struct {
	*ring
	peer    Session
	addr    netip.AddrPort
	notices uint64 // that wait or waited, so far
	before  map[uint32]uint64
}

// since is how far a counter went since the notifier was made.
func (n *notifier) since(i uint32) uint64 { return n.counter(i) - n.before[i] }

// notifier serves a script, and makes the policy clock manual, at a multiple of
// 100 ms.
func (t *T) notifier(s Script) *notifier {
	t.Helper()
	c := t.start()
	r := c.ring(0, ringConfig{outLog: 8})
	p, err := t.Peer().Serve(t.ctx, s)
	check(t, "peer: serve", err)
	t.Cleanup(func() { p.Close() })
	c.write(0x00c0, 1)
	t.Cleanup(func() { c.write(0x00c0, 0) })
	n := &notifier{ring: r, peer: p, addr: p.Addr(), notices: c.counter(ctrNotices), before: map[uint32]uint64{}}
	for i := uint32(ctrReportsWaiting); i <= ctrReportRecords; i++ {
		n.before[i] = c.counter(i)
	}
	lo := c.read(0x00cc)
	now := uint64(c.read(0x00d0))<<32 | uint64(lo)
	n.step(100*ms - now%(100*ms))
	return n
}

// step advances the policy clock. The writes are posted: what comes over the network
// could overtake them, but for the read, which comes back behind them.
func (n *notifier) step(ns uint64) {
	n.write(0x00c4, uint32(ns))
	n.write(0x00c8, uint32(ns>>32))
	n.read(0x00c8)
}

// begin posts a connect of count targets.
func (n *notifier) begin(count int, attrs ...func(*ctl)) uint32 {
	n.Helper()
	k := new(ctl)
	for _, a := range attrs {
		a(k)
	}
	for range count {
		k.target(to(n.addr))
	}
	_, tag := n.control(reqConnect, 0, k)
	return tag
}

// gather posts a connect of count targets and waits until their notices do.
func (n *notifier) gather(count int, attrs ...func(*ctl)) uint32 {
	n.Helper()
	tag := n.begin(count, attrs...)
	n.waiting(count)
	return tag
}

// waiting waits until count more notices wait, or have waited.
func (n *notifier) waiting(count int) {
	n.Helper()
	n.notices += uint64(count)
	n.until("notices to wait", func() bool { return n.counter(ctrNotices) >= n.notices })
}

// told returns how many responses are there when the adapter has acted on all
// that happened.
func (n *notifier) told() int {
	n.Helper()
	n.settle()
	n.consume()
	k := len(n.got)
	n.got = nil
	return k
}

// after steps the clock to 1 ns before a time, where nothing may be told, then
// to it, where count have to be.
func (n *notifier) after(what string, ns uint64, count int) {
	n.Helper()
	if ns > 1 {
		n.step(ns - 1)
		want(n.T, what+", 1 ns early: told", n.told(), 0)
	}
	n.step(1)
	want(n.T, what+": told", n.told(), count)
}

// TestCE05_Count: notices are told together when there are enough of them,
// failures counted like successes, by one run of responses.
func TestCE05_Count(t *T) {
	n := t.notifier(Script{{Op: OpWait}})
	no, err := t.Peer().Refused(t.ctx)
	check(t, "peer: refused", err)
	count := attr(notifyCount, 3)
	first := n.gather(1, count)
	n.addr, no = no, n.addr
	n.gather(1, count)
	want(t, "told of two", n.told(), 0)
	n.addr = no
	writes := n.counter(ctrDescriptorWrites)
	n.gather(1, count)
	n.settle()
	n.consume()
	want(t, "runs of responses", n.counter(ctrDescriptorWrites)-writes, 1)
	want(t, "notify_count", n.since(ctrByCount), 1)
	if len(n.got) != 3 || n.got[0].Tag != first || n.got[0].Aux != stOK || n.got[1].Aux != stRefused || n.got[2].Aux != stOK {
		t.Fatalf("told %v", n.got)
	}
	for _, d := range n.got {
		if d.Type != rspCompletion || !d.final() {
			t.Errorf("notice %v", d)
		}
	}
	// The next list begins with nothing, and a notice with the defaults takes
	// it along.
	n.got = nil
	n.gather(1, count)
	want(t, "told of one", n.told(), 0)
	d := n.connect(to(n.addr))
	terminal(t, "connect with the defaults", d, rspCompletion, stOK)
	want(t, "told with it", n.told(), 1)
}

// TestCE05_Amount: enough bytes to tell.
func TestCE05_Amount(t *T) {
	n := t.notifier(Script{{Op: OpWait}})
	a := []func(*ctl){attr(notifyCount, 0), attr(notifyAmount, 65)}
	n.gather(2, a...)
	want(t, "told at 64 bytes", n.told(), 0)
	n.gather(1, a...)
	want(t, "told at 96 bytes", n.told(), 3)
	want(t, "notify_amount", n.since(ctrByAmount), 1)
}

// TestCE05_Times: by time since the first one pending, since the last
// notification, and by the ceiling, to the nanosecond.
func TestCE05_Times(t *T) {
	n := t.notifier(Script{{Op: OpWait}})
	none := attr(notifyCount, 0)
	first := attr(notifyFirst, 5*ms)
	n.gather(1, none, first)
	n.step(2 * ms)
	n.gather(1, none, first)
	n.after("NOTIFY_FIRST", 3*ms, 2)
	want(t, "notify_first", n.since(ctrByFirst), 1)

	last := attr(notifyLast, 10*ms)
	n.step(4 * ms)
	n.gather(1, none, last)
	n.step(3 * ms)
	n.gather(1, none, last)
	n.after("NOTIFY_LAST", 3*ms, 2)
	want(t, "notify_last", n.since(ctrByLast), 1)
	n.step(10 * ms)
	n.gather(1, none, last)
	want(t, "told when the last notification is long ago", n.told(), 1)

	n.gather(1, none, attr(notifyCeiling, 7*ms))
	n.step(ms)
	n.gather(1, attr(notifyCount, 9))
	n.after("NOTIFY_CEILING", 6*ms, 2)
	n.gather(1, none)
	n.after("NOTIFY_CEILING by default", 1000*ms, 1)
	want(t, "notify_ceiling", n.since(ctrByCeiling), 2)
}

// TestCE05_Untold: what the host was not told does not exist for it.
func TestCE05_Untold(t *T) {
	n := t.notifier(Script{{Op: OpWait}})
	known := n.dial(n.addr)
	n.gather(1, attr(notifyCount, 2))
	terminal(t, "abort of a connection that was not told", n.terminate(known+1, 1), rspTerminated, stBadConnection)
	n.gather(1, attr(notifyCount, 2))
	want(t, "told", n.told(), 2)
	terminal(t, "abort of it afterwards", n.terminate(known+1, 1), rspTerminated, stOK)
}

// TestCE05_Arrivals: arrivals wait like completions.
func TestCE05_Arrivals(t *T) {
	n := t.notifier(Script{{Op: OpWait}})
	port := t.reachable()
	l := n.listen(goal{count: 1, lport: port}, attr(notifyCount, 2))
	terminal(t, "listen", l, rspListen, stOK)
	for i := range 2 {
		s, err := t.Peer().Dial(t.ctx, port, Script{{Op: OpWait}})
		check(t, "peer: dial", err)
		t.Cleanup(func() { s.Close() })
		n.waiting(1)
		if i == 0 {
			want(t, "told of one", n.told(), 0)
		}
	}
	for range 2 {
		d := n.unsolicited(rspArrival, 0)
		want(t, "listener of the arrival", d.Base, l.Conn)
	}
	// The end of the listener tells what waits.
	s, err := t.Peer().Dial(t.ctx, port, Script{{Op: OpWait}})
	check(t, "peer: dial", err)
	t.Cleanup(func() { s.Close() })
	n.waiting(1)
	d := n.terminate(l.Conn, 0)
	terminal(t, "termination of the listener", d, rspTerminated, stOK)
	if len(n.got) != 1 || n.got[0].Type != rspArrival {
		t.Errorf("before it: %v", n.got)
	}
	want(t, "notify_end", n.since(ctrByEnd), 1)
}

// TestCE05_Ends: cancellation and drain tell first what waits.
func TestCE05_Ends(t *T) {
	n := t.notifier(Script{{Op: OpWait}})
	tag := n.gather(3, attr(notifyCount, 0))
	d := n.do(desc{Type: reqCancel, Offset: tag})
	terminal(t, "cancellation of what has happened", d, rspCancelled, stTooLate)
	want(t, "notices before it", len(n.got), 3)
	for i, d := range n.got {
		if d.Tag != tag || d.Aux != stOK || d.final() != (i == 2) {
			t.Errorf("notice %v", d)
		}
	}
	n.got = nil
	n.gather(2, attr(notifyCount, 0))
	n.gather(1, attr(notifyData, 1))
	n.command(4)
	n.await(4)
	n.consume()
	want(t, "told by a drain", len(n.got), 3)
	want(t, "notify_end", n.since(ctrByEnd), 2)
	want(t, "open requests", len(n.open), 0)
}

// TestCE06_Bursts: bursts of 10 in 10 ms, then 10 s of quiet: one notification
// per burst; one that is not finished is told after 1 s.
func TestCE06_Bursts(t *T) {
	n := t.notifier(Script{{Op: OpWait}})
	bursts := attr(notifyAdaptive, 8)
	burst := func(what string, count int) {
		t.Helper()
		for i := range count {
			want(t, what+": told before its last", n.told(), 0)
			if i > 0 {
				n.step(ms)
			}
			n.gather(1, bursts)
		}
	}
	burst("first burst", 10)
	n.after("the first burst, without history", 1000*ms-9*ms, 10)
	for range 2 {
		n.step(10_000 * ms)
		writes := n.counter(ctrDescriptorWrites)
		burst("a burst of 10", 10)
		want(t, "told with its last", n.told(), 10)
		want(t, "runs of responses", n.counter(ctrDescriptorWrites)-writes, 1)
	}
	n.step(10_000 * ms)
	burst("an unfinished burst", 7)
	n.after("an unfinished burst", 1000*ms-6*ms, 7)
	want(t, "notify_dynamic", n.since(ctrDynamic), 2)
	want(t, "notify_ceiling", n.since(ctrByCeiling), 2)
}

// TestCE06_Inputs: the other inputs of NOTIFY_ADAPTIVE, as SPEC.md §14.1
// computes them.
func TestCE06_Inputs(t *T) {
	t.Run("rate", func(t *T) {
		n := t.notifier(Script{{Op: OpWait}})
		rate := attr(notifyAdaptive, 1)
		// Gaps of 2 ms: the first four have no rate, then 5 come in 10 ms.
		for i := range 9 {
			n.gather(1, rate)
			want(t, "told at a gap of 2 ms", n.told(), []int{1, 1, 1, 1, 0, 0, 0, 0, 5}[i])
			n.step(2 * ms)
		}
		n.gather(1, rate)
		n.after("the rest, after 10 ms", 10*ms, 1)
		n.step(200 * ms)
		n.gather(1, rate)
		want(t, "told after a pause", n.told(), 1)
		want(t, "notify_dynamic", n.since(ctrDynamic), 7)
	})
	t.Run("requests", func(t *T) {
		n := t.notifier(Script{{Op: OpWait}})
		n.gather(12, attr(notifyAdaptive, 2))
		// The last of them knew a rate of targets without a gap.
		n.after("targets that start at once", 10*ms, 12)
	})
	t.Run("period", func(t *T) {
		n := t.notifier(Script{{Op: OpWait}})
		period := attr(notifyAdaptive, 4)
		for range 3 {
			n.gather(1, period)
			want(t, "told without a period before", n.told(), 1)
		}
		n.step(110 * ms)
		n.gather(2, period)
		want(t, "told of two, after a period of three", n.told(), 0)
		n.gather(1, period)
		want(t, "told of three", n.told(), 3)
		n.gather(1, period)
		n.after("the end of the period", 90*ms, 1)
	})
}
