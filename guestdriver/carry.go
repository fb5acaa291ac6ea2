// SPDX-License-Identifier: Apache-2.0

package guestdriver

import (
	"bytes"
	"context"
	"fmt"
	"slices"
	"time"

	"toebox/vdev/abi"
)

// A connection that an orderly stop hands over (SPEC.md §11.1) lives on here
// until the adapter runs again:
//
//	open --exact record in a report buffer--> carried --RESTORE--> open
//	                                             └─ refused ──> dead
//
// Meanwhile its id means nothing: reads take what is there, writes wait. What
// was sent and is not acknowledged stays in its DMA buffers (Conn.kept) and is
// posted again.

const (
	// Each lane has reportBuffers buffers of reportSize bytes for records, and
	// for what was received and not read: at most a whole receive window of
	// one connection in each.
	reportSize    = 1 << 20
	reportBuffers = 2
	// stopWait bounds an orderly stop as the driver sees it.
	stopWait = 3 * time.Second
)

// carried is a connection between two adapters.
type carried struct {
	record abi.StateRecord
	trying bool          // a goroutine restores it
	over   chan struct{} // closed when it is open again, or dead
}

// keptSend is a send that the peer has not acknowledged, as far as is known.
type keptSend struct {
	buf    *buffer
	off    uint32 // bytes before it are acknowledged
	posted bool   // it is the adapter's
}

// makeReports takes the memory for records from the bus.
func (a *Adapter) makeReports() error {
	for _, ln := range a.lanes {
		for range reportBuffers {
			m, err := a.bus.AllocDMA(reportSize)
			if err != nil {
				return fmt.Errorf("memory for state records: %w", err)
			}
			ln.reports = append(ln.reports, &buffer{data: m.Bytes, iova: m.IOVA})
		}
	}
	return nil
}

// postReports gives a new queue the lane's report buffers.
func (ln *lane) postReports() error {
	for _, b := range ln.reports {
		r := request{kind: kindReport, buf: b}
		if _, err := ln.start(r, ReportRequest(0, DMA{Bytes: b.data, IOVA: b.iova}), true); err != nil {
			return err
		}
	}
	return nil
}

// reported acts on a report buffer that is the host's again.
func (ln *lane) reported(r request, f *abi.Fields) {
	list, err := ReadReport(*f, DMA{Bytes: r.buf.data, IOVA: r.buf.iova})
	if err != nil {
		ln.a.bad.length.Add(1)
	}
	for i := range list {
		if s := list[i].State; s != nil && s.Flags&abi.RecordExact != 0 {
			ln.carry(&list[i])
		}
	}
}

// carry takes over a connection that has left the adapter.
func (ln *lane) carry(r *Record) {
	a := ln.a
	c, ok := a.conn(r.State.Conn).(*Conn)
	if !ok || c.lane() != ln {
		a.bad.conn.Add(1)
		return
	}
	if !c.leave(r) {
		a.bad.length.Add(1) // the restart that follows ends it
		return
	}
	a.mu.Lock()
	delete(a.conns, r.State.Conn)
	a.carried[c] = struct{}{}
	a.mu.Unlock()
}

// leave notes where c stands. It returns false when that cannot be.
func (c *Conn) leave(r *Record) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.carry != nil || c.isGone || c.stay || r.State.Acked < c.acked || !c.skipLocked(r.State.Acked-c.acked) {
		return false
	}
	c.acked = r.State.Acked
	c.away.Store(true)
	c.carry = &carried{record: *r.State, over: make(chan struct{})}
	if n := uint32(len(r.Unread)); n > 0 && !c.closed && !c.rdShut {
		copied := bytes.Clone(r.Unread) // its memory is posted again
		c.segs = append(c.segs, segment{&buffer{data: copied, filled: n, final: true}, 0, n})
		c.bufs++
		c.rcond.Signal()
	}
	return true
}

// skipLocked takes n acknowledged bytes off what is kept. It returns false, and
// changes nothing, when there are not so many in sends that were answered.
func (c *Conn) skipLocked(n uint64) bool {
	left := n
	for _, k := range c.kept {
		if left == 0 {
			break
		}
		if k.posted {
			return false
		}
		left -= min(left, uint64(k.buf.filled-k.off))
	}
	if left > 0 {
		return false
	}
	for n > 0 {
		k := &c.kept[0]
		rest := uint64(k.buf.filled - k.off)
		if n < rest {
			k.off += uint32(n)
			return true
		}
		n -= rest
		c.sends--
		buf := k.buf
		c.kept = slices.Delete(c.kept, 0, 1)
		c.sendOverLocked(buf, abi.StatusOK, buf.filled)
	}
	return true
}

// keptOffLocked is how many bytes of a send were acknowledged in a life before.
func (c *Conn) keptOffLocked(buf *buffer) uint32 {
	if i := slices.IndexFunc(c.kept, func(k keptSend) bool { return k.buf == buf }); i >= 0 {
		return c.kept[i].off
	}
	return 0
}

// keepLocked notes the end of a send, and reports whether its buffer stays for
// a life to come: it was cancelled, as a stop does, or lost with the adapter
// after c had left it.
func (c *Conn) keepLocked(buf *buffer, s abi.Status) bool {
	i := slices.IndexFunc(c.kept, func(k keptSend) bool { return k.buf == buf })
	switch {
	case i < 0:
		return false
	case s == abi.StatusCancelled && (buf.user == nil || buf.user.cancel == cancelNone):
		c.kept[i].posted = false
		return true
	case s == abi.StatusCancelled:
		c.stay = true // a part of it may be missing
	case s == abi.StatusOK:
		c.acked += uint64(buf.filled - c.kept[i].off)
	}
	c.kept = slices.Delete(c.kept, i, i+1)
	return false
}

// keepLostLocked notes that a send has no end, and reports whether its buffer
// stays for a life to come.
func (c *Conn) keepLostLocked(buf *buffer) bool {
	i := slices.IndexFunc(c.kept, func(k keptSend) bool { return k.buf == buf })
	switch {
	case i < 0:
		return false
	case c.carry != nil:
		c.kept[i].posted = false
		return true
	}
	c.kept = slices.Delete(c.kept, i, i+1)
	return false
}

// dropKeptLocked gives up what will not be sent again.
func (c *Conn) dropKeptLocked() {
	for _, k := range c.kept {
		if !k.posted {
			c.sends--
			c.sendOverLocked(k.buf, abi.StatusAborted, k.off)
		}
	}
	c.kept = nil
}

// awaitStop waits for the end of an orderly stop that is under way, and reads
// what the stopped adapter has answered. It reports whether it is stopped still.
func (a *Adapter) awaitStop() bool {
	ctx, cancel := timeout(stopWait)
	defer cancel()
	s := uint32(0)
	_ = pollUntil(ctx, func() bool { // in any case what was read holds
		s = a.read(abi.RegStatus)
		done := s == ^uint32(0) || s&(abi.StatusRunning|abi.StatusStopped) != 0 ||
			a.read(abi.RegGeneration) != a.generation || a.read(abi.RegEventMask) != eventMask // it was reset
		for _, ln := range a.lanes {
			ln.pass()
		}
		return done
	})
	return s != ^uint32(0) && s&(abi.StatusRunning|abi.StatusStopped) == abi.StatusStopped
}

// restoreAll has the connections that left go on, in goroutines of their own:
// the answers may need the caller's.
func (a *Adapter) restoreAll() {
	lists := map[*lane][]*Conn{}
	a.mu.RLock()
	for c := range a.carried {
		lists[c.lane()] = append(lists[c.lane()], c)
	}
	a.mu.RUnlock()
	for ln, list := range lists {
		a.workers.Go(func() {
			for _, c := range list {
				ln.restore(c)
			}
		})
	}
	for p := range a.takePackets() {
		a.workers.Go(func() { p.reopen(a) })
	}
}

// restore has a connection go on, unless another goroutine does, or it has moved.
func (ln *lane) restore(c *Conn) {
	c.mu.Lock()
	k := c.carry
	if k == nil || k.trying || c.lane() != ln {
		c.mu.Unlock()
		return
	}
	k.trying = true
	tuples, n := c.restoreTuplesLocked()
	c.mu.Unlock()
	ctx, cancel := timeout(startTimeout)
	defer cancel()
	call := newCall()
	call.restored = c
	if _, err := ln.openTuples(ctx, request{kind: kindConnect, call: call}, tuples, n); err != nil {
		ln.a.lose(c, fmt.Errorf("%w: connection does not go on: %w", ErrReset, err))
	}
}

// restoreTuplesLocked returns the tuples that restore c, with the attributes
// that were set on it.
func (c *Conn) restoreTuplesLocked() (tuples []byte, n int) {
	tuples = abi.AppendSetScalar(nil, abi.AttrCarryOver, 1)
	all := c.born.over(c.lane().a.defaults.Load(), c.settings)
	for _, s := range all.list() {
		tuples = abi.AppendSetScalar(tuples, s.attr, s.value)
	}
	tuples = abi.AppendTuple(tuples, true, abi.AttrRestore, abi.AppendStateRecord(nil, &c.carry.record))
	return tuples, 2 + len(all)
}

// restored acts on the completion of a RESTORE target.
func (ln *lane) restored(r request, f *abi.Fields) {
	a, c := ln.a, r.call.restored
	if s := abi.Status(f.Aux); s != abi.StatusOK {
		a.finish(r, result{err: statusErr("restore", s)})
		return
	}
	a.mu.Lock()
	_, taken := a.conns[f.Conn]
	taken = taken || f.Conn == 0
	_, wanted := a.carried[c]
	// Whoever gave up waiting has ended c.
	wanted = wanted && !taken && r.call.deliver(result{})
	if wanted {
		delete(a.carried, c)
		a.conns[f.Conn] = c
		c.id.Store(f.Conn)
	}
	a.mu.Unlock()
	switch {
	case wanted:
		a.host.carried.Add(1)
		c.goOn()
		c.wakeSources()
		return
	case taken:
		a.bad.conn.Add(1)
	default:
		newConn(ln, f.Conn, c.network, c.local, c.remote).abort()
	}
	a.finish(r, result{err: statusErr("restore", abi.StatusBadConnection)})
}

// goOn takes up what waited while c was carried: first of all what the peer may
// not have.
func (c *Conn) goOn() {
	c.mu.Lock()
	defer c.mu.Unlock()
	close(c.carry.over)
	c.carry = nil
	c.away.Store(false)
	for i := range c.kept {
		k := &c.kept[i]
		f := sendFields(c.id.Load(), k.buf)
		f.Offset, f.Modify = k.off, true
		tag, err := c.lane().start(request{kind: kindSend, conn: c, buf: k.buf}, f, true)
		if err != nil {
			c.failLocked(err)
			break
		}
		k.buf.tag = tag
		if b := k.buf.user; b != nil {
			b.cancel, b.part = cancelNone, nil // those were of the life before
			b.posted.Store(true)
		}
		k.posted = true
		c.requests++
	}
	switch {
	case c.closed:
		c.terminateLocked()
	default:
		if c.wrShut {
			_ = c.halfCloseLocked(abi.TerminateSend) // an error has ended c
		}
		if c.rdShut {
			_ = c.halfCloseLocked(abi.TerminateReceive)
		}
	}
	c.paused = false
	c.advanceLocked()
	c.rcond.Broadcast()
	c.wcond.Broadcast()
}

// lose ends a carried connection that does not go on.
func (a *Adapter) lose(c *Conn, err error) {
	a.mu.Lock()
	_, here := a.carried[c]
	delete(a.carried, c)
	a.signalIdleLocked()
	a.mu.Unlock()
	if here {
		c.lost(err)
	}
}

// loseAll ends all connections that are carried.
func (a *Adapter) loseAll(err error) {
	a.mu.Lock()
	all := a.carried
	a.carried = map[*Conn]struct{}{}
	a.signalIdleLocked()
	a.mu.Unlock()
	for c := range all {
		c.lost(err)
	}
	for p := range a.takePackets() {
		p.fail(err)
	}
}

func (c *Conn) lost(err error) {
	c.lane().a.host.uncarried.Add(1)
	c.mu.Lock()
	close(c.carry.over)
	c.carry = nil
	c.away.Store(false)
	c.mu.Unlock()
	c.fail(err)
	c.gone()
	c.wakeSources()
}

// awaitCarried waits until c is not between two adapters, and returns where it is
// and its id there.
func (c *Conn) awaitCarried(ctx context.Context) (*lane, uint64, error) {
	for {
		c.mu.Lock()
		k, ln, id := c.carry, c.lane(), c.id.Load()
		c.mu.Unlock()
		if k == nil {
			return ln, id, nil
		}
		select {
		case <-k.over:
		case <-ctx.Done():
			return nil, 0, ctx.Err()
		}
	}
}
