// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"toebox/guestdriver"
	"toebox/vdev/abi"
)

// Of bulk connects: targets of a request, how many reports a buffer holds, and how
// long a target may take.
const (
	bulkTargets = 250
	bulkReports = 256
	bulkLimit   = 30 * time.Second
)

// bulk has the adapter connect to the peer as often as the task says, from as few
// requests as can be, and closes the connections after the measurement. It works on a
// queue below the driver's Adapter, which starts anew afterwards.
func (r *run) bulk(ctx context.Context) (err error) {
	a := r.agent
	peer, err := netip.ParseAddrPort(r.task.Peer)
	if err != nil {
		return err
	}
	// The adapter finds out where the peer is before many want to know.
	c, err := r.dial(ctx)
	if err != nil {
		return err
	}
	if err := errors.Join(c.Close(), a.Close()); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, a.open(ctx)) }()
	bus, _, err := a.cfg.Bus()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, bus.Close()) }()
	q, err := newQueue(ctx, bus)
	if err != nil {
		return err
	}
	a.signals = func() uint64 {
		s := q.Stats()
		return s.DoorbellsIn + s.DoorbellsOut
	}
	defer func() { a.signals = nil }()
	b := &guestdriver.BulkConnect{}
	var tag uint32
	b.Tag = func() uint32 { tag++; return tag }
	if b.Control, err = bus.AllocDMA(bulkTargets * (abi.TupleHeaderSize + abi.TargetSize)); err != nil {
		return err
	}
	reports, err := bus.AllocDMA(bulkReports * abi.ReportSize)
	if err != nil {
		return err
	}
	b.Reports = []guestdriver.DMA{reports}
	target := abi.Target{Protocol: 6, Count: 1, Limit: uint64(bulkLimit), Local: netip.AddrPortFrom(netip.IPv4Unspecified(), 0), Remote: peer}
	r.whole = true
	err = r.measure(ctx, func() {
		r.worker(func() error {
			select {
			case <-r.started:
			case <-ctx.Done():
				return context.Cause(ctx)
			}
			var failed error
			for left := r.task.Conns; left > 0 && failed == nil; left -= len(b.Targets) {
				b.Targets = b.Targets[:0]
				for range min(left, bulkTargets) {
					b.Targets = append(b.Targets, target)
				}
				err := q.BulkConnect(ctx, b, func(rec guestdriver.Record) {
					if rec.Status != abi.StatusOK {
						failed = fmt.Errorf("a target of a bulk connect: %w", rec.Status)
					}
					r.ops.Add(1)
				})
				if err != nil {
					return err
				}
			}
			return failed
		})
	})
	// Connections end with the queue.
	return errors.Join(err, q.Destroy(context.WithoutCancel(ctx)))
}

// newQueue brings an adapter up that no driver has, with one queue.
func newQueue(ctx context.Context, bus guestdriver.Bus) (*guestdriver.Queue, error) {
	const command, busMaster = 0x04, 1 << 2
	v, err := bus.ReadConfig(command, 2)
	if err == nil {
		err = bus.WriteConfig(command, 2, v|busMaster)
	}
	if err == nil {
		err = bus.EnableVectors(2)
	}
	if err != nil {
		return nil, err
	}
	bus.Write32(abi.BARRegisters, abi.RegControl, abi.ControlRun)
	for wait := time.NewTicker(recount); bus.Read32(abi.BARRegisters, abi.RegStatus)&abi.StatusRunning == 0; {
		select {
		case <-wait.C:
		case <-ctx.Done():
			wait.Stop()
			return nil, fmt.Errorf("the adapter does not start: %w", context.Cause(ctx))
		}
	}
	return guestdriver.NewQueue(bus, 0, guestdriver.QueueConfig{Timeout: bulkLimit})
}
