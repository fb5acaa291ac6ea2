// SPDX-License-Identifier: Apache-2.0

package guestdriver

import (
	"context"
	"errors"
	"maps"
	"slices"
	"time"

	"toebox/vdev/abi"
)

// events waits for the adapter's own vector.
func (a *Adapter) events() {
	for a.bus.Wait(0) == nil && !a.stopped.Load() {
		a.host.events.Add(1)
		e := a.read(abi.RegEvents)
		if e == ^uint32(0) {
			a.check()
			continue
		}
		a.write(abi.RegEvents, e)
		if e&(abi.EventFirmware|abi.EventStopped) != 0 {
			a.check()
		}
		if e&abi.EventQueueError != 0 {
			a.checkQueues()
		}
	}
}

// watch looks after the adapter when no event says anything.
func (a *Adapter) watch() {
	t := time.NewTicker(a.opts.Watch)
	defer t.Stop()
	last := make([]uint64, len(a.lanes))  // passes at the last look
	waiting := make([]bool, len(a.lanes)) // a response stood there at the last look
	for {
		select {
		case <-a.stop:
			return
		case <-t.C:
		}
		a.check()
		for i, ln := range a.lanes {
			passes := ln.passes.Load()
			pending := ln.current().Pending()
			if pending && waiting[i] && passes == last[i] {
				ln.missed()
			}
			waiting[i] = pending
			ln.room()
			last[i] = passes
		}
	}
}

// check looks whether the adapter is the one that was started, and starts
// over if not.
func (a *Adapter) check() {
	a.life.Lock()
	defer a.life.Unlock()
	if a.stopped.Load() {
		return
	}
	gen, status := a.read(abi.RegGeneration), a.read(abi.RegStatus)
	if a.standby.Load() {
		if gen != a.generation && status != ^uint32(0) && status&abi.StatusReady != 0 {
			_ = a.rejoinLocked() // the watch tries again
		}
		return
	}
	if !a.down && gen == a.generation && status&abi.StatusRunning != 0 && status != ^uint32(0) {
		return
	}
	stopped := false
	if a.opts.CarryOver && !a.down {
		stopped = a.awaitStop()
	}
	a.restartLocked(stopped)
}

// checkQueues starts over when a queue is in error: nothing of it can be
// relied on.
func (a *Adapter) checkQueues() {
	a.life.Lock()
	defer a.life.Unlock()
	for _, ln := range a.lanes {
		if state, _ := ln.current().State(); state == abi.QueueError && !a.stopped.Load() {
			a.write(abi.RegControl, abi.ControlReset)
			a.restartLocked(false)
			return
		}
	}
}

// restartLocked ends everything that was outstanding with ErrReset, once, and
// brings the adapter up again with the listeners that were open and the
// connections that were carried over. One that stopped in order, or does not
// start, leaves that to another one of its group.
func (a *Adapter) restartLocked(stopped bool) {
	a.host.resets.Add(1)
	a.setUp(false)
	defer a.setUp(true)
	cause := ErrReset
	if a.read(abi.RegID) != abi.IDValue {
		cause = ErrGone
	}
	ended := a.endAll(cause)
	g := a.group.Load()
	if g != nil && (stopped || cause == ErrGone) && g.takeOver(a, cause, ended) {
		return
	}
	if cause == ErrGone {
		a.loseAll(cause)
		a.endListeners(cause)
		return
	}
	err := a.startLocked(context.Background())
	if err == nil {
		err = errors.Join(a.putDefaults(), a.putTable(), a.reclaim())
	}
	if a.down = err != nil; a.down {
		a.endAll(err)
		if g != nil && g.takeOver(a, err, ended) {
			a.down = false
			return
		}
		a.loseAll(err)
		a.endListeners(err)
		return
	}
	a.listenAgain()
	a.restoreAll()
}

// listenAgain has the listeners listen at the adapter, which was reset: in goroutines
// of their own, since the answers may need this one.
func (a *Adapter) listenAgain() {
	a.mu.RLock()
	again := slices.Collect(maps.Keys(a.bound))
	a.mu.RUnlock()
	for _, l := range again {
		a.workers.Go(l.again)
	}
}

// setUp says whether calls that find no queue may go on, or wait for one.
func (a *Adapter) setUp(up bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	select {
	case <-a.up:
		if !up {
			a.up = make(chan struct{})
		}
	default:
		if up {
			close(a.up)
		}
	}
}

// awaitUp waits for the end of a restart.
func (a *Adapter) awaitUp(ctx context.Context) error {
	a.mu.RLock()
	up := a.up
	a.mu.RUnlock()
	select {
	case <-up:
		return nil
	case <-a.stop:
		return errClosed
	case <-ctx.Done():
		return ctx.Err()
	}
}

// endAll takes the queues away and ends what is outstanding on them. It returns
// the connections that it ended.
func (a *Adapter) endAll(err error) (ended map[uint64]endpoint) {
	for _, ln := range a.lanes {
		ln.disp.Lock()
	}
	var all []request
	for _, ln := range a.lanes {
		all = append(all, ln.replace(err)...)
	}
	for _, r := range all {
		a.endRequest(r, err)
	}
	a.mu.Lock()
	conns := a.conns
	a.conns, a.listeners = map[uint64]endpoint{}, map[uint64]*Listener{}
	a.signalIdleLocked()
	a.mu.Unlock()
	for _, c := range conns {
		if e, ok := c.(*packetEnd); ok && e.lose(err) {
			continue
		}
		c.fail(err)
		c.gone()
	}
	for _, ln := range a.lanes {
		ln.disp.Unlock()
	}
	return conns
}

// endRequest completes a request that will have no response.
func (a *Adapter) endRequest(r request, err error) {
	switch {
	case r.kind == kindSend:
		r.conn.sendLost(r.buf, err)
	case r.kind == kindReceive, r.kind == kindRedirect:
		r.conn.bufferLost(r.buf, err)
	case r.kind == kindCast:
		r.cast.lose(err)
	case r.kind == kindPool:
		r.buf.pool.lostBuffer(r.buf)
	case r.kind == kindGroup:
		r.buf.user.group.Load().lost(r.buf.user)
	case r.kind == kindCancel:
		if r.buf != nil {
			r.buf.user.cancelled(abi.StatusTooLate, 0)
		}
	case r.call != nil:
		a.finish(r, result{err: err})
	}
}

// finish ends a call and frees its control buffer unless the result is for
// somebody who looks into it.
func (a *Adapter) finish(r request, res result) {
	if !r.call.deliver(res) || res.err != nil {
		a.ctl.release(r.buf)
	}
}

func (a *Adapter) endListeners(err error) {
	a.mu.Lock()
	all := a.bound
	a.bound = map[*Listener]struct{}{}
	a.mu.Unlock()
	for l := range all {
		l.fail(err)
	}
}
