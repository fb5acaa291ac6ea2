// SPDX-License-Identifier: Apache-2.0

package keeper

import (
	"fmt"
	"slices"
	"syscall"

	"golang.org/x/sys/unix"
)

// maxVectors is the most that an IRQ index can have (MSI-X).
const maxVectors = 2048

// irqIndex is what the client has set of an IRQ index. It owns the descriptors.
type irqIndex struct {
	fds      []int // one for each vector, -1: none
	masked   []bool
	resample int // eventfd that unmasks vector 0, -1: none
}

func newIRQIndex(count int) irqIndex {
	q := irqIndex{fds: make([]int, count), masked: make([]bool, count), resample: -1}
	for i := range q.fds {
		q.fds[i] = -1
	}
	return q
}

// irqSet is a request to set interrupts.
type irqSet struct{ flags, index, start, count uint32 }

// parseIRQSet judges a request against the layout of the device.
func parseIRQSet(p []byte, fds int, irqs []irqIndex) (r irqSet, err error) {
	if len(p) < irqSetSize {
		return r, fmt.Errorf("irq set in %d bytes: %w", len(p), syscall.EINVAL)
	}
	r = irqSet{native32(p, 4), native32(p, 8), native32(p, 12), native32(p, 16)}
	data, action := r.flags&(irqNone|irqBool|irqEventFD), r.flags&(irqMask|irqUnmask|irqTrigger)
	switch {
	case r.flags != data|action || data&(data-1) != 0 || data == 0 || action&(action-1) != 0 || action == 0:
		err = syscall.EINVAL
	case uint64(r.index) >= uint64(len(irqs)):
		err = syscall.EINVAL
	case uint64(r.start)+uint64(r.count) > uint64(len(irqs[r.index].fds)):
		err = syscall.EINVAL
	case r.count == 0 && (data != irqNone || action != irqTrigger || r.start != 0):
		err = syscall.EINVAL
	case data == irqBool && len(p)-irqSetSize < int(r.count):
		err = syscall.EINVAL
	case fds != 0 && (data != irqEventFD || fds != int(r.count)):
		err = syscall.EINVAL
	}
	if err != nil {
		err = fmt.Errorf("irq set flags %#x index %d [%d, +%d) with %d file descriptors: %w", r.flags, r.index, r.start, r.count, fds, err)
	}
	return r, err
}

// apply makes a request that parseIRQSet has passed part of the state. It takes
// descriptors out of fds. data is what follows the request's fixed part.
func (q *irqIndex) apply(r irqSet, data []byte, fds []int) {
	start, end := int(r.start), int(r.start)+int(r.count)
	switch {
	case r.flags == irqEventFD|irqUnmask:
		closeFD(&q.resample)
		if len(fds) > 0 {
			q.resample, fds[0] = fds[0], -1
		}
	case r.flags == irqEventFD|irqTrigger:
		for i := start; i < end; i++ {
			closeFD(&q.fds[i])
			if len(fds) > 0 {
				q.fds[i], fds[i-start] = fds[i-start], -1
			}
		}
	case r.flags == irqNone|irqTrigger && r.count == 0:
		for i := range q.fds {
			closeFD(&q.fds[i])
			q.masked[i] = false
		}
		closeFD(&q.resample)
	case r.flags&irqEventFD == 0 && r.flags&irqTrigger == 0:
		for i := start; i < end; i++ {
			if r.flags&irqBool == 0 || data[i-start] != 0 {
				q.masked[i] = r.flags&irqMask != 0
			}
		}
	}
}

// set reports whether anything is set.
func (q *irqIndex) set() bool {
	return q.resample >= 0 || slices.Contains(q.masked, true) || slices.ContainsFunc(q.fds, func(fd int) bool { return fd >= 0 })
}

// close closes all descriptors.
func (q *irqIndex) close() {
	for i := range q.fds {
		closeFD(&q.fds[i])
	}
	closeFD(&q.resample)
}

// requests calls send for the requests that put the state of the index in
// place of whatever a server has. The descriptors are lent.
func (q *irqIndex) requests(index uint32, maxFDs int, send func(r irqSet, fds []int)) {
	send(irqSet{irqNone | irqTrigger, index, 0, 0}, nil)
	for i := 0; i < len(q.fds); {
		n := 0
		for i+n < len(q.fds) && q.fds[i+n] >= 0 && n < maxFDs {
			n++
		}
		if n > 0 {
			send(irqSet{irqEventFD | irqTrigger, index, uint32(i), uint32(n)}, q.fds[i:i+n])
		}
		i += max(n, 1)
	}
	for i, m := range q.masked {
		if m {
			send(irqSet{irqNone | irqMask, index, uint32(i), 1}, nil)
		}
	}
	if q.resample >= 0 {
		send(irqSet{irqEventFD | irqUnmask, index, 0, 1}, []int{q.resample})
	}
}

func (r irqSet) append(b []byte) []byte {
	return words(b, irqSetSize, r.flags, r.index, r.start, r.count)
}

func closeFD(fd *int) {
	if *fd >= 0 {
		unix.Close(*fd)
		*fd = -1
	}
}

func closeFDs(fds []int) {
	for i := range fds {
		closeFD(&fds[i])
	}
}
