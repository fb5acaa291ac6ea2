// SPDX-License-Identifier: Apache-2.0

package firmware

import "toebox/vdev/abi"

// drain answers everything that was taken: what waits is CANCELLED (SPEC.md
// §3.2). Connections stay as they are. Targets of jobs are answered in turns as
// the table has room.
func (q *queue) drain() {
	if q.state != abi.QueueRunning && q.state != abi.QueuePaused {
		return
	}
	q.setState(abi.QueueDraining)
	q.progress = true
	for ; q.runPos < q.runEnd; q.runPos += abi.DescriptorSize {
		f := abi.Descriptor(q.run[q.runPos:]).Decode()
		s := q.checkCommon(&f)
		if s == abi.StatusOK {
			s = abi.StatusCancelled
		}
		q.refuse(&f, s)
	}
	q.drainNotices()
	if q.stopping {
		q.withdraw()
		q.leave()
	}
	for _, c := range q.conns {
		if !c.leaving {
			q.endDelay(c)
			q.cancelAll(c)
		}
	}
	for _, r := range q.tags {
		if r.job != nil {
			r.job.cancelled = true
			q.jobSoon(r.job)
		}
	}
	if !q.leaving.active {
		q.returnAll()
	}
}

// cancelAll answers what waits of a connection.
func (q *queue) cancelAll(c *conn) {
	q.failSends(c, abi.StatusCancelled)
	q.failBuffers(c, abi.StatusCancelled)
	q.answerTerms(c, abi.StatusCancelled, 0)
}

// returnAll returns the buffers that belong to no connection.
func (q *queue) returnAll() {
	q.flushReport()
	for r := q.reports.buffers.front; r != nil; r = q.reports.buffers.front {
		q.returnBuffer(r, abi.StatusCancelled)
	}
	q.returnGroups()
	for r := q.pool.front; r != nil; r = q.pool.front {
		q.returnBuffer(r, abi.StatusCancelled)
	}
}

// end leaves nothing of the queue behind. The worker has stopped: nobody but
// this goroutine touches the state any more, and host memory is left alone.
func (q *queue) end() {
	if !q.dying.Load() {
		q.stopped()
	}
	q.mu.Lock()
	q.closed = true
	hand, stop := q.hand, q.orders.stop
	q.hand = nil
	q.mu.Unlock()
	for _, c := range hand {
		c.ep.Abort()
		q.forget(c)
	}
	for _, c := range q.conns {
		q.stay(c)
		c.ep.Abort()
		q.forget(c)
	}
	for _, l := range q.notices.lists {
		q.fw.memory.release(l.n * noticeCharge)
	}
	q.copies.clear()
	for _, r := range q.tags {
		q.leaveCopy(r)
		for m := r.members; m != nil; m = m.sibling {
			q.leaveCopy(m)
		}
		q.fw.memory.release(requestCharge + r.extra)
		if j := r.job; j != nil {
			q.fw.memory.release(len(j.buf))
			for c := j.waiting.front; c != nil; c = c.next {
				c.ep.Abort()
				q.forget(c)
			}
		}
	}
	clear(q.tags)
	q.fw.memory.release((len(q.groups) + len(q.sinks)) * groupCharge)
	q.endTable()
	q.endChecker()
	q.shownHeld.Store(0)
	q.setState(abi.QueueDisabled)
	if stop && !q.dying.Load() {
		q.fw.drained()
	}
}
