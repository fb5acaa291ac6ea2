// SPDX-License-Identifier: Apache-2.0

package firmware

import (
	"errors"
	"math"

	"toebox/vdev/abi"
)

// area is memory of a queue.
type area struct{ base, size uint64 }

func (a area) overlaps(b area) bool {
	return a.base <= b.base+(b.size-1) && b.base <= a.base+(a.size-1)
}

func areas(c *QueueConfig) [3]area {
	return [3]area{
		{c.In, abi.DescriptorSize << c.InLog2},
		{c.Out, abi.DescriptorSize << c.OutLog2},
		{c.Event, abi.EventBlockSize},
	}
}

// create checks in the order of SPEC.md §3.2 and starts a worker. Calls are
// serialised by the caller.
func (f *Firmware) create(i int, old *queue, state abi.QueueState, cfg QueueConfig) abi.Status {
	switch {
	case (state == abi.QueueRunning || state == abi.QueuePaused) && old.config == cfg && f.running.Load():
		return abi.StatusOK // the same create once more
	case state != abi.QueueDisabled:
		return abi.StatusQueueBusy
	case !f.running.Load():
		return abi.StatusNotRunning
	case cfg.Vector < 0 || cfg.Vector >= abi.NumVectors:
		return abi.StatusBadVector
	case badLog2(cfg.InLog2), badLog2(cfg.OutLog2):
		return abi.StatusBadSize
	case cfg.In%abi.DescriptorSize != 0, cfg.Out%abi.DescriptorSize != 0, cfg.Event%64 != 0:
		return abi.StatusBadAlignment
	}
	mine := areas(&cfg)
	for _, a := range mine {
		if a.base > math.MaxUint64-(a.size-1) || !f.chip.Shared(a.base, a.size) {
			return abi.StatusBadMemory
		}
	}
	if mine[0].overlaps(mine[1]) || mine[0].overlaps(mine[2]) || mine[1].overlaps(mine[2]) {
		return abi.StatusOverlap
	}
	for k := range f.queues {
		q := f.queues[k].Load()
		if k == i || q == nil || q.currentState() == abi.QueueDisabled {
			continue
		}
		for _, a := range mine {
			for _, b := range areas(&q.config) {
				if a.overlaps(b) {
					return abi.StatusOverlap
				}
			}
		}
	}
	if old != nil {
		<-old.done // disabled: it is on its way out
	}
	if s := f.checkOwners(mine[0], 0); s != abi.StatusOK {
		return s
	}
	if s := f.checkOwners(mine[1], abi.WordOwner); s != abi.StatusOK {
		return s
	}
	q := newQueue(f, i, cfg)
	if q.storeEvent(abi.EventInPublished, abi.EventAt(0)) != nil || q.storeEvent(abi.EventOutFreed, abi.EventNever) != nil {
		return abi.StatusBadMemory
	}
	f.queues[i].Store(q)
	go q.work()
	return abi.StatusOK
}

func badLog2(n uint8) bool { return n < abi.MinRingLog2 || n > abi.MaxRingLog2 }

// checkOwners looks whether all slots of a table carry the owner bit want.
func (f *Firmware) checkOwners(a area, want uint32) abi.Status {
	err := f.chip.View(a.base, int(a.size), true, func(p []byte) error {
		if len(p)%abi.DescriptorSize != 0 || !wordAligned(p) {
			return errPiece
		}
		for ; len(p) > 0; p = p[abi.DescriptorSize:] {
			if abi.LoadWord(p)&abi.WordOwner != want {
				return errOwner
			}
		}
		return nil
	})
	switch {
	case errors.Is(err, errOwner):
		return abi.StatusBadOwner
	case err != nil:
		return abi.StatusBadMemory
	}
	return abi.StatusOK
}

var (
	errOwner = errors.New("firmware: slot with the wrong owner")
	errPiece = errors.New("firmware: memory is not aligned for descriptors")
	errStop  = errors.New("firmware: enough") // ends a View early
)
