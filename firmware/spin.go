// SPDX-License-Identifier: Apache-2.0

package firmware

import (
	"time"

	"toebox/vdev/abi"
)

// spin decides whether a worker that has nothing to do looks at its input table for a
// while before it sleeps. That saves the host a doorbell, an exit of its virtual machine
// and messages between processes, and the worker a wake-up, if the host posts soon; but
// it takes a processor that the host may need. So it is done as long as it has mostly
// been worth while: of late a request came in time more often than not.
//
// What the network brings wakes the worker cheaply. It counts against looking, but so
// little that an exchange of requests and responses, in which one of two waits ends that
// way, goes on.
type spin struct {
	worth int
	vain  bool // look was called for nothing, and counted that
}

// Bounds of worth, and shares by which it moves.
const (
	spinMost   = 1 << 10
	spinEnough = spinMost / 2
	spinShare  = 8  // of what is missing or there: a request came in time, nothing came
	spinLess   = 16 // of what is there: something else came
)

func (s *spin) hit()   { s.worth += (spinMost - s.worth) / spinShare }
func (s *spin) miss()  { s.worth -= s.worth / spinShare }
func (s *spin) other() { s.worth -= s.worth / spinLess }

// look looks for work for a while, if that is worth while, and reports whether there is
// some. It does not call Gosched, which would each time wake a thread that looks for
// other goroutines.
func (s *spin) look(q *queue) bool {
	most := q.fw.config.Spin
	if most <= 0 || s.worth < spinEnough || q.state != abi.QueueRunning || q.held.n >= holdLimit {
		return false
	}
	for start := time.Now(); time.Since(start) < most; {
		if q.published() {
			s.hit()
			return true
		}
		if q.pending.Load() {
			s.other()
			return true
		}
	}
	s.miss()
	s.vain = true
	return false
}

// slept takes account of a sleep before which there was no look.
func (s *spin) slept(q *queue, d time.Duration) {
	most := q.fw.config.Spin
	switch {
	case s.vain:
		s.vain = false
	case most <= 0 || q.state != abi.QueueRunning:
	case d >= most:
		s.miss()
	case q.published():
		s.hit()
	default:
		s.other()
	}
}
