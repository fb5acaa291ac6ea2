// SPDX-License-Identifier: Apache-2.0

package uio

import (
	"errors"
	"fmt"
	"math/bits"
	"os"
	"sync"
	"time"

	"toebox/vdev/abi"
)

const (
	// pollPeriod is how often the cause registers are looked at without an
	// interrupt.
	pollPeriod = time.Millisecond
	// standPause is how long an event that stands after its vector was
	// signalled may stand before it interrupts again: the driver is about to
	// clear it.
	standPause = time.Millisecond
)

// line makes vectors of the interrupt pin.
type line struct {
	// read and write reach the cause registers; arm lets the next interrupt
	// come.
	read  func(reg uint32) uint32
	write func(reg, v uint32)
	arm   func() error
	// file is /dev/uioN; nil: poll.
	file    *os.File
	vectors []chan struct{} // each holds a signal
	gone    bool            // the registers read all ones

	once  sync.Once
	done  chan struct{}
	ended chan struct{}
}

// EnableVectors implements guestdriver.Bus.
func (b *Bus) EnableVectors(n int) error {
	b.mu.Lock()
	switch {
	case b.closed:
		b.mu.Unlock()
		return errClosed
	case b.line != nil:
		b.mu.Unlock()
		return errors.New("uio: vectors are enabled already")
	case n < 1 || n > abi.NumVectors:
		b.mu.Unlock()
		return fmt.Errorf("uio: %d vectors: the function has %d", n, abi.NumVectors)
	}
	l := &line{
		read:    func(reg uint32) uint32 { return b.Read32(abi.BARRegisters, reg) },
		write:   func(reg, v uint32) { b.Write32(abi.BARRegisters, reg, v) },
		arm:     func() error { return b.setINTxDisable(b.poll) },
		vectors: make([]chan struct{}, n),
		done:    make(chan struct{}), ended: make(chan struct{}),
	}
	for i := range l.vectors {
		l.vectors[i] = make(chan struct{}, 1)
	}
	if !b.poll {
		// Non-blocking: a Read waits on the runtime's poller, not in a thread.
		l.file = os.NewFile(uintptr(b.node), b.Name())
		b.node = -1
	}
	b.line = l
	b.mu.Unlock()
	l.clear()
	if err := l.arm(); err != nil {
		close(l.ended)
		return fmt.Errorf("uio: enable vectors: %w", err)
	}
	go l.serve()
	return nil
}

// Wait implements guestdriver.Bus.
func (b *Bus) Wait(vector int) error {
	b.mu.Lock()
	l, closed := b.line, b.closed
	b.mu.Unlock()
	switch {
	case closed:
		return errClosed
	case l == nil || vector < 0 || vector >= len(l.vectors):
		return fmt.Errorf("uio: wait for vector %d, which is not enabled", vector)
	}
	select {
	case <-l.vectors[vector]:
		return nil
	case <-l.done:
		return errClosed
	}
}

// serve hands interrupts on until the line ends. When the kernel has no more of
// them, because the function was taken away, that ends every wait, too.
func (l *line) serve() {
	defer close(l.ended)
	defer l.stop()
	for l.next() {
		if l.collect() {
			select {
			case <-time.After(standPause):
			case <-l.done:
				return
			}
		}
		// An error: the bus is being closed, or the function is gone, which
		// the driver finds out by itself.
		_ = l.arm()
	}
}

// next waits for the interrupt, or for the time to look.
func (l *line) next() bool {
	if l.file == nil {
		select {
		case <-time.After(pollPeriod):
			return true
		case <-l.done:
			return false
		}
	}
	var count [4]byte // of interrupts so far
	_, err := l.file.Read(count[:])
	return err == nil
}

// collect reads the causes, clears them and signals their vectors. It reports
// whether an event stands that only the driver can clear.
func (l *line) collect() (stands bool) {
	cause := l.read(abi.RegINTxCause)
	if cause == ^uint32(0) {
		// The function is gone, or for the moment: those who wait look.
		if !l.gone {
			l.gone = true
			for v := range l.vectors {
				l.signal(v)
			}
		}
		return true
	}
	l.gone = false
	queues := l.read(abi.RegINTxQueues)
	if cause|queues == 0 {
		return false
	}
	left := l.clearSeen(cause, queues)
	if cause != 0 {
		l.signal(0)
	}
	for ; queues != 0; queues &= queues - 1 {
		l.signal(1 + bits.TrailingZeros32(queues))
	}
	return cause&left != 0
}

// clear forgets causes of the time before the vectors were enabled.
func (l *line) clear() {
	if cause := l.read(abi.RegINTxCause); cause != ^uint32(0) {
		l.clearSeen(cause, l.read(abi.RegINTxQueues))
	}
}

// clearSeen clears causes and returns INTX_CAUSE afterwards. The read makes the
// writes arrive: one that is still on its way when the driver looks at its
// tables takes a cause with it that came after the look.
func (l *line) clearSeen(cause, queues uint32) (left uint32) {
	if cause != 0 {
		l.write(abi.RegINTxCause, cause)
	}
	if queues != 0 {
		l.write(abi.RegINTxQueues, queues)
	}
	return l.read(abi.RegINTxCause)
}

func (l *line) signal(v int) {
	if v >= len(l.vectors) {
		return
	}
	select {
	case l.vectors[v] <- struct{}{}:
	default: // one is there already
	}
}

// stop ends every wait.
func (l *line) stop() {
	l.once.Do(func() {
		close(l.done)
		if l.file != nil {
			l.file.Close()
		}
	})
}

// end ends every wait and returns when the goroutine is done.
func (l *line) end() {
	l.stop()
	<-l.ended
}
