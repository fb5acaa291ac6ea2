// SPDX-License-Identifier: Apache-2.0

package firmware

import "toebox/vdev/abi"

// Driven is queue 0 without a worker.
type Driven struct{ q *queue }

// Drive creates queue 0, whose passes the caller makes.
func (f *Firmware) Drive(cfg QueueConfig) (*Driven, error) {
	q := newQueue(f, 0, cfg)
	for off, w := range map[uint64]abi.EventWord{abi.EventInPublished: abi.EventAt(0), abi.EventOutFreed: abi.EventNever} {
		if err := q.storeEvent(off, w); err != nil {
			return nil, err
		}
	}
	f.queues[0].Store(q)
	return &Driven{q}, nil
}

// Pass makes a pass, which never sleeps, and reports whether something came of
// it.
func (d *Driven) Pass() bool {
	select {
	case d.q.woken <- struct{}{}:
	default:
	}
	d.q.pass()
	return d.q.progress
}

// Due is when the next wait, of received bytes or of sends in host memory, ends by
// time, on the policy clock; false: none does.
func (d *Driven) Due() (at uint64, ok bool) {
	if a := d.q.delays.next(); a != nil {
		at, ok = uint64(a.when), true
	}
	if p := d.q.parked.ages.next(); p != nil && (!ok || uint64(p.when) < at) {
		at, ok = uint64(p.when), true
	}
	return at, ok
}

// End lets a worker take over, which a reset ends.
func (d *Driven) End() { go d.q.work() }
