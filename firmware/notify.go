// SPDX-License-Identifier: Apache-2.0

package firmware

import (
	"errors"
	"net/netip"
	"time"

	"toebox/firmware/engine"
	"toebox/vdev/abi"
)

// result tells the host the result of a target of j, or lets it wait. c is the
// connection or listener, if there is one, remote where the target leads.
func (q *queue) result(j *job, c *conn, remote netip.AddrPort, f abi.Fields) {
	v, protocol := j.attrs, j.span.Protocol
	if c != nil {
		v, protocol = c.attrs, uint8(c.proto.number()) // the range under way may be another
	}
	listen := j.r.kind == abi.TypeListen
	report := j.r.flags&abi.FlagReport != 0 || !listen && v.of(abi.AttrNotifyReport) != 0
	switch {
	case j.cancelled, listen && !report:
		q.answerJob(j, f)
		return
	case !report && q.passes(v, protocol):
		q.answerJob(j, f)
		q.released(q.fw.policy.now())
		return
	}
	f.Type = responseOf(j.r.kind)
	n := q.newNotice()
	n.f, n.job, n.report = f, j, report
	n.protocol, n.port, n.remote = protocol, uint16(f.Length), remote
	if f.Aux == 0 && !listen {
		n.conn = c
	}
	q.notify(n, v, &j.origin)
}

// arrived tells the host the arrival of c, or lets it wait.
func (q *queue) arrived(c *conn, remote netip.AddrPort, f abi.Fields) {
	report := c.attrs.of(abi.AttrNotifyReport) != 0
	protocol := uint8(c.proto.number())
	if !report && q.passes(c.attrs, protocol) {
		q.respond(f)
		q.released(q.fw.policy.now())
		return
	}
	n := q.newNotice()
	n.f, n.conn, n.report = f, c, report
	n.protocol, n.port, n.remote = protocol, uint16(f.Offset>>16), remote
	if c.attrs.of(abi.AttrNotifyAdaptive) != 0 {
		q.notices.tempo.request(q.fw.policy.now())
	}
	var from *origin
	if l := q.conns[c.parent]; l != nil {
		from = &l.origin
	}
	q.notify(n, c.attrs, from)
}

// passes reports whether a notice with these attributes goes at once and takes
// no gathered ones with it: the default.
func (q *queue) passes(v *values, protocol uint8) bool {
	return v.plain() && !gated(v, protocol) && q.notices.lists[placeGathered].n == 0
}

// gated reports whether a notice waits for bytes of its connection: a datagram
// endpoint has no stream.
func gated(v *values, protocol uint8) bool {
	return (v.of(abi.AttrNotifyData) != 0 || v.pattern != nil) && protocol == uint8(engine.TCP)
}

// notify lets a notice wait where its attributes say, and releases what is due.
func (q *queue) notify(n *notice, v *values, from *origin) {
	now := q.fw.policy.now()
	w := &q.notices
	if n.conn != nil {
		n.conn.notice = n
	}
	if n.charged = q.fw.memory.charge(noticeCharge); !n.charged {
		// There is no memory to wait in.
		n.report = false
		q.releaseGathered(now, abi.CounterNotifyEnd)
		q.release(n)
		q.released(now)
		return
	}
	if from != nil {
		from.add(n)
	}
	n.due = after(now, v.of(abi.AttrNotifyCeiling))
	gated := gated(v, n.protocol)
	switch {
	case n.f.Type == abi.TypeListenResponse:
		q.release(n)
	case gated && n.conn != nil:
		if p := v.pattern; p != nil && p.time != 0 {
			n.due = min(n.due, after(now, p.time))
		}
		q.count(abi.CounterNotices, 1)
		w.put(n, placeHeld)
		q.receiveSoon(n.conn) // bytes may be there
	case gated && v.of(abi.AttrNotifyFailures) == 0:
		q.release(n)
		q.released(now)
	case gated:
		q.count(abi.CounterNotices, 1)
		w.put(n, placeRiding)
	default:
		if c, due := w.gather.due(now); due {
			q.releaseGathered(now, c) // that was before this one came
		}
		q.count(abi.CounterNotices, 1)
		w.put(n, placeGathered)
		q.join(n, v, now)
		if c, due := w.gather.due(now); due {
			q.releaseGathered(now, c)
		}
	}
}

// join tells the gathering policy of a notice.
func (q *queue) join(n *notice, v *values, now uint64) {
	w := &q.notices
	l := criteria{ceiling: n.due, bytes: abi.DescriptorSize}
	if n.report {
		l.bytes = abi.ReportSize
	}
	if mask := v.of(abi.AttrNotifyAdaptive); mask != 0 {
		l.dynamic = true
		w.tempo.result(now)
		first := now
		if w.gather.n > 0 {
			first = w.gather.first
		}
		l.count, l.time = w.tempo.predict(mask, first)
	} else {
		l.count, l.amount = v.of(abi.AttrNotifyCount), v.of(abi.AttrNotifyAmount)
		l.sinceFirst, l.sinceLast = v.of(abi.AttrNotifyFirst), v.of(abi.AttrNotifyLast)
		l.last, l.any = w.last, w.any
	}
	w.gather.join(now, l)
}

// releaseGathered releases the gathered notices, all together.
func (q *queue) releaseGathered(now uint64, reason abi.Counter) {
	w := &q.notices
	l := &w.lists[placeGathered]
	w.gather = gather{}
	if l.front == nil {
		return
	}
	q.count(reason, 1)
	for n := l.front; n != nil; n = l.front {
		q.release(n)
	}
	q.released(now)
}

// releaseHeld releases one held or riding notice.
func (q *queue) releaseHeld(n *notice, now uint64, reason abi.Counter) {
	q.count(reason, 1)
	q.release(n)
	q.released(now)
}

// releaseAll releases everything that waits.
func (q *queue) releaseAll(now uint64) {
	w := &q.notices
	for n := w.lists[placeHeld].front; n != nil; n = w.lists[placeHeld].front {
		q.release(n)
	}
	w.gather = gather{}
	for n := w.lists[placeGathered].front; n != nil; n = w.lists[placeGathered].front {
		q.release(n)
	}
	q.released(now)
}

// released notes a release; failures that wait for one go with it.
func (q *queue) released(now uint64) {
	w := &q.notices
	w.last, w.any = now, true
	for n := w.lists[placeRiding].front; n != nil; n = w.lists[placeRiding].front {
		q.release(n)
	}
}

// release tells the host of n, or lets it wait for a report buffer.
func (q *queue) release(n *notice) {
	q.notices.take(n)
	q.progress = true
	if n.report {
		q.notices.put(n, placeReporting)
		return
	}
	q.emit(n)
}

// emit tells the host of n by a response of its own.
func (q *queue) emit(n *notice) {
	q.notices.take(n)
	j, f := n.job, n.f
	q.told(n)
	if j == nil {
		q.respond(f)
		return
	}
	q.answerJob(j, f)
}

// emitOf tells the host of all notices of a request or listener that end, each
// by a response of its own. Gathered ones take the others with them.
func (q *queue) emitOf(o *origin) {
	if o.oldest == nil {
		return
	}
	now := q.fw.policy.now()
	q.count(abi.CounterNotifyEnd, 1)
	gathered := false
	for n := o.oldest; n != nil; n = o.oldest {
		gathered = gathered || n.place == placeGathered
		q.emit(n)
	}
	if gathered {
		q.notices.gather = gather{}
		for n := q.notices.lists[placeGathered].front; n != nil; n = q.notices.lists[placeGathered].front {
			q.release(n)
		}
	}
	q.released(now)
}

// expireNotices releases what is due by the clock.
func (q *queue) expireNotices() {
	w := &q.notices
	if w.gather.n == 0 && len(w.held) == 0 {
		return
	}
	now := q.fw.policy.now()
	if c, due := w.gather.due(now); due && !q.stalled() {
		q.releaseGathered(now, c)
	}
	for n := w.held.next(); n != nil && n.when <= time.Duration(now) && !q.stalled(); n = w.held.next() {
		q.releaseHeld(n, now, abi.CounterNotifyCeiling)
	}
}

// writeReports fills report buffers with what was released for them. What finds
// none waits until its ceiling, and goes as a response of its own then.
func (q *queue) writeReports() {
	w := &q.notices
	l := &w.lists[placeReporting]
	if l.front == nil {
		return
	}
	for l.front != nil && q.reportRoom() > 0 && !q.stalled() {
		q.writeChunk(l)
	}
	q.flushReport()
	if l.front == nil {
		return
	}
	for n := l.back; n != nil && !n.missed; n = n.prev {
		n.missed = true
		q.count(abi.CounterReportsWaiting, 1)
	}
	now := time.Duration(q.fw.policy.now())
	for n := w.late.next(); n != nil && n.when <= now && !q.stalled(); n = w.late.next() {
		q.progress = true
		q.emit(n)
	}
}

// writeChunk writes the records of the first notices of l to the first report
// buffer. Requests whose last record that is are settled when it is written.
func (q *queue) writeChunk(l *noticeList) {
	room := min(q.reportRoom(), reportChunk) / abi.ReportSize
	b, count := q.reports.chunk[:0], 0
	for n := l.front; n != nil && count < room; n = n.next {
		if n.final = n.job == nil; n.job != nil {
			n.job.r.left--
			n.final = n.job.r.left == 0
		}
		b = n.record(b)
		count++
	}
	q.progress = true
	if !q.putReport(l.front.f.Type, b, count) {
		for n := l.front; count > 0; n = n.next {
			if n.job != nil {
				n.job.r.left++
			}
			count--
		}
		return
	}
	for ; count > 0; count-- {
		n := l.front
		j, final, s := n.job, n.final, n.f.Aux
		q.notices.take(n)
		q.told(n)
		if j != nil && final {
			q.answered(j.r.tag, s)
			q.settle(j.r)
			q.endJob(j)
		}
	}
}

// drainNotices tells the host of everything, what report buffers do not take by
// responses of its own.
func (q *queue) drainNotices() {
	waiting := 0
	for _, p := range []noticePlace{placeGathered, placeHeld, placeRiding} {
		waiting += q.notices.lists[p].n
	}
	if waiting > 0 {
		q.count(abi.CounterNotifyEnd, 1)
		q.releaseAll(q.fw.policy.now())
	}
	q.writeReports()
	l := &q.notices.lists[placeReporting]
	for n := l.front; n != nil; n = l.front {
		q.emit(n)
	}
}

// noticeDeadline is when the worker has to look at notices without being woken;
// 0: never. A policy clock that stands still wakes it when it moves.
func (q *queue) noticeDeadline() time.Duration {
	w := &q.notices
	due := w.gather.next()
	if n := w.held.next(); n != nil {
		due = min(due, uint64(n.when))
	}
	if n := w.late.next(); n != nil {
		due = min(due, uint64(n.when))
	}
	if due == never {
		return 0
	}
	return q.fw.policy.when(due)
}

// look is what a Peek of the bytes that a notice waits for goes by.
type look struct {
	scan    *scan
	pattern *pattern
	pos     uint64 // bytes offered so far
	until   uint64 // the byte ceiling of the pattern
}

// look takes the next bytes of a stream: it counts them, and shows the pattern
// those that it has not seen.
func (q *queue) look(p []byte) int {
	l := &q.notices.look
	s := l.scan
	from, to := l.pos, l.pos+uint64(len(p))
	if l.pattern != nil && !s.found && s.seen < min(to, l.until) {
		s.feed(l.pattern, p[s.seen-from:min(to, l.until)-from])
	}
	l.pos = to
	return len(p)
}

// gate looks whether the bytes are there that the notice of c waits for.
func (q *queue) gate(c *conn) {
	n := c.notice
	if n.place != placeHeld {
		return
	}
	// What the window does not take would never come.
	most := c.attrs.of(abi.AttrReceiveWindow) / 2
	data := min(c.attrs.of(abi.AttrNotifyData), most)
	l := &q.notices.look
	*l = look{scan: &n.scan, pattern: c.attrs.pattern}
	if l.pattern != nil {
		l.until = min(l.pattern.bytes, most)
	}
	_, err := c.ep.Peek(int(max(data, l.until)), q.looks.look)
	now := q.fw.policy.now()
	switch {
	case n.scan.found:
		q.releaseHeld(n, now, abi.CounterNotifyPattern)
		if l.pattern.all {
			q.releaseAll(now)
		}
	case data > 0 && l.pos >= data:
		q.releaseHeld(n, now, abi.CounterNotifyData)
	case l.pattern != nil && l.pos >= l.until:
		q.releaseHeld(n, now, abi.CounterNotifyCeiling)
	case c.failed || err != nil && !errors.Is(err, engine.ErrWouldBlock) || finished(c.ep.Info().State):
		q.releaseHeld(n, now, abi.CounterNotifyEnd) // no more bytes come
	}
	l.scan, l.pattern = nil, nil
}

// finished reports whether the peer sends no more on a connection in this state
// that the host has not touched.
func finished(s engine.State) bool {
	return s != engine.StateEstablished && s != engine.StateSynReceived
}
