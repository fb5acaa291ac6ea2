// SPDX-License-Identifier: Apache-2.0

package firmware

import (
	"errors"
	"net/netip"

	"toebox/firmware/engine"
	"toebox/vdev/abi"
)

// job is a connect or listen request at work. Its targets are started in turns
// as responses have room: a request may name millions.
type job struct {
	r       *request
	buf     []byte // the control buffer, charged to adapter memory
	off     int    // of the next tuple
	tuples  int    // not looked at yet
	attrs   *values
	span    abi.Target       // the range under way
	restore *abi.StateRecord // the target under way, if it is one
	started uint16           // of its targets
	ordinal uint32           // of the next target

	waiting   connList // connecting ones
	origin    origin   // of results that wait to be told
	cancelled bool
	queued    bool     // in the queue's list of jobs
	waiters   []target // cancellations that wait for the end
}

// requestTargets checks a connect or listen request as a whole and makes a job
// of it.
func (q *queue) requestTargets(f *abi.Fields) {
	defer q.controlDone()
	buf, s := q.control(f)
	if s == abi.StatusOK {
		s = q.refuseJob(f, buf)
	}
	if s != abi.StatusOK {
		q.refuse(f, s)
	}
}

// refuseJob starts a job, or says why not.
func (q *queue) refuseJob(f *abi.Fields, buf []byte) abi.Status {
	attrs := q.fw.defaults.Load()
	targets, s := q.countTargets(f.Type, buf, int(f.Aux), attrs)
	if s != abi.StatusOK {
		return s
	}
	if !q.fw.memory.charge(len(buf)) {
		return abi.StatusNoMemory
	}
	r := q.hold(f, nil)
	if r == nil {
		q.fw.memory.release(len(buf))
		return abi.StatusOK // answered by hold
	}
	r.left = targets
	r.job = &job{r: r, buf: append([]byte(nil), buf...), tuples: int(f.Aux), attrs: attrs}
	q.jobSoon(r.job)
	return abi.StatusOK
}

// countTargets walks all tuples. A bad attribute fails the request before
// anything is done; a bad target only itself (SPEC.md §5.6).
func (q *queue) countTargets(typ abi.Type, buf []byte, tuples int, attrs *values) (uint32, abi.Status) {
	var n uint32
	off := 0
	for range tuples {
		t, next, ok := abi.NextTuple(buf, off)
		if !ok {
			return 0, abi.StatusBadControlBuffer
		}
		off = next
		switch {
		case !t.Set:
			return 0, abi.StatusWrongDirection
		case t.Attr == abi.AttrTarget:
			if target, s := abi.ParseTarget(t.Value); s == abi.StatusOK {
				n += uint32(target.Count)
			} else {
				n++
			}
		case t.Attr == abi.AttrRestore && typ == abi.TypeConnect:
			n++
		default:
			var s abi.Status
			if attrs, s = q.fw.withTuple(attrs, t); s != abi.StatusOK {
				return 0, s
			}
		}
	}
	if n == 0 {
		return 0, abi.StatusBadControlBuffer
	}
	return n, abi.StatusOK
}

func (q *queue) jobSoon(j *job) {
	if !j.queued {
		j.queued = true
		q.jobs.push(j)
	}
}

// turnJobs gives each job a turn.
func (q *queue) turnJobs() {
	for range min(q.jobs.len(), turns) {
		j := q.jobs.pop()
		n := 0
		for ; n < jobTurn && !q.dying.Load() && !q.stalled() && q.step(j); n++ {
			q.progress = true
		}
		if q.hasStep(j) {
			q.jobs.push(j)
		} else {
			j.queued = false
		}
	}
}

// hasStep reports whether step has something to do.
func (q *queue) hasStep(j *job) bool {
	return j.started < j.span.Count || j.tuples > 0 || j.cancelled && j.waiting.front != nil
}

// step starts, or cancels, one target, or goes to the next tuple.
func (q *queue) step(j *job) bool {
	switch {
	case j.cancelled && j.waiting.front != nil:
		q.failTarget(j.waiting.front, abi.StatusCancelled)
	case j.started < j.span.Count:
		n := j.started
		j.started++
		j.ordinal++
		switch {
		case j.cancelled:
			q.answerJob(j, abi.Fields{Aux: uint16(abi.StatusCancelled), Offset: j.ordinal - 1, Base: j.span.Cookie})
		case j.restore != nil:
			q.startRestore(j, j.ordinal-1)
		case j.r.kind == abi.TypeListen:
			q.startListen(j, n, j.ordinal-1)
		default:
			q.startConnect(j, n, j.ordinal-1)
		}
	case j.tuples > 0:
		q.stepTuple(j)
	default:
		return false
	}
	return true
}

func (q *queue) stepTuple(j *job) {
	t, next, _ := abi.NextTuple(j.buf, j.off)
	j.off = next
	j.tuples--
	j.restore = nil
	switch t.Attr {
	case abi.AttrTarget:
	case abi.AttrRestore:
		q.stepRestore(j, t.Value)
		return
	default:
		j.attrs, _ = q.fw.withTuple(j.attrs, t)
		return
	}
	var s abi.Status
	j.span, s = abi.ParseTarget(t.Value)
	j.started = 0
	if s == abi.StatusOK {
		return
	}
	j.ordinal++
	q.result(j, nil, netip.AddrPort{}, abi.Fields{Aux: uint16(s), Offset: j.ordinal - 1})
}

// answerJob answers one target. With the last the job ends.
func (q *queue) answerJob(j *job, f abi.Fields) {
	last := j.r.left == 1
	if last && q.check != nil {
		q.check.control(&abi.Fields{
			Type: j.r.kind, Flags: j.r.flags, Tag: j.r.tag, Base: j.r.base, Length: j.r.length,
		}, 0, j.buf)
	}
	q.answerTarget(j.r, f)
	if last {
		q.endJob(j)
	}
}

// endJob ends a job whose targets all have their results. Cancellations that
// named it are answered.
func (q *queue) endJob(j *job) {
	q.fw.memory.release(len(j.buf))
	for _, w := range j.waiters {
		q.count(abi.CounterCancellations, 1)
		q.answerTarget(w.r, abi.Fields{Offset: w.ordinal})
	}
	j.waiters = nil
}

// targetStatus checks what the parser leaves open, and the protocols have in
// common.
func targetStatus(t *abi.Target, listen bool) abi.Status {
	switch {
	case listen && (t.Remote.Port() != 0 || !t.Remote.Addr().IsUnspecified()):
		return abi.StatusReserved
	case !listen && t.Backlog != 0:
		return abi.StatusReserved
	case !listen && t.Remote.Port() == 0:
		return abi.StatusBadValue
	case !listen && t.Remote.Addr().IsUnspecified():
		return abi.StatusBadAddress
	}
	return abi.StatusOK
}

// startConnect starts the handshake of the n-th target of the range under way.
func (q *queue) startConnect(j *job, n uint16, ordinal uint32) {
	t := &j.span
	q.count(abi.CounterConnects, 1)
	if j.attrs.of(abi.AttrNotifyAdaptive) != 0 {
		q.notices.tempo.request(q.fw.policy.now())
	}
	proto := protocolOf(t)
	s := targetStatus(t, false)
	if s == abi.StatusOK {
		s = proto.checkConnect(t)
	}
	var c *conn
	if s == abi.StatusOK {
		c, s = q.openTarget(j, proto, ordinal, connecting)
	}
	if s == abi.StatusOK && (t.Local.Port() != 0 || !t.Local.Addr().IsUnspecified()) {
		s = statusOf(c.ep.Bind(t.Local))
	}
	remote := netip.AddrPortFrom(t.Remote.Addr(), t.Remote.Port()+n)
	if s == abi.StatusOK {
		c.remote = remote
		s = statusOf(c.ep.Connect(remote))
	}
	if s != abi.StatusOK {
		q.dropTarget(j, c, remote, ordinal, s)
		return
	}
	j.waiting.push(c)
	ns := t.Limit
	if ns == 0 {
		ns = c.attrs.of(abi.AttrConnectLimit)
	}
	q.limit(c, ns)
}

// openTarget makes the endpoint of a target. On an error what was made is for
// dropTarget.
func (q *queue) openTarget(j *job, proto protocol, ordinal uint32, p phase) (*conn, abi.Status) {
	c := q.newConn(proto, p, j.attrs)
	if c == nil {
		return nil, abi.StatusNoMemory
	}
	c.job, c.ordinal, c.cookie = j, ordinal, j.span.Cookie
	ep, err := q.fw.engine.Open(proto.number(), j.span.V6, c)
	if err != nil {
		return c, statusOf(err)
	}
	c.ep = ep
	return c, q.fw.applyOptions(c)
}

// dropTarget answers a target that could not be started.
func (q *queue) dropTarget(j *job, c *conn, remote netip.AddrPort, ordinal uint32, s abi.Status) {
	if c != nil {
		if c.ep != nil {
			c.ep.Abort()
		}
		q.forget(c)
	}
	if j.r.kind == abi.TypeConnect {
		q.count(abi.CounterConnectsFailed, 1)
	}
	q.result(j, c, remote, abi.Fields{Aux: uint16(s), Offset: ordinal, Base: j.span.Cookie})
}

// connected looks how the handshake of c ended.
func (q *queue) connected(c *conn) {
	err := c.ep.ConnectResult()
	if errors.Is(err, engine.ErrWouldBlock) {
		return
	}
	if err != nil {
		q.failTarget(c, statusOf(err))
		return
	}
	j := c.job
	j.waiting.remove(c)
	c.job = nil
	q.limits.clear(c)
	c.phase = open
	q.register(c)
	q.count(abi.CounterConnectsOK, 1)
	if c.restored {
		q.count(abi.CounterCarriedIn, 1)
	}
	q.result(j, c, c.remote, abi.Fields{
		Conn: c.id, Offset: c.ordinal, Base: c.cookie, Length: uint32(c.ep.Info().Local.Port()),
	})
	if c.ends {
		c.shut = true
		q.progressClose(c)
	}
	q.receiveSoon(c)
}

// failTarget ends a connecting target with a status.
func (q *queue) failTarget(c *conn, s abi.Status) {
	c.ep.Abort()
	q.dropWaiting(c, s)
}

// dropWaiting is failTarget for a target without an endpoint.
func (q *queue) dropWaiting(c *conn, s abi.Status) {
	j := c.job
	j.waiting.remove(c)
	c.job = nil
	q.forget(c)
	q.count(abi.CounterConnectsFailed, 1)
	q.result(j, c, c.remote, abi.Fields{Aux: uint16(s), Offset: c.ordinal, Base: c.cookie})
}
