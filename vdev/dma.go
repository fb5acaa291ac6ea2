// SPDX-License-Identifier: Apache-2.0

package vdev

import (
	"errors"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"toebox/firmware/chip"
	"toebox/vdev/abi"
	vfiouser "toebox/vfio-user"
)

// DMA is host memory as the client mapped it; *vfiouser.DMA implements it. A
// failed access is an error that unwraps to an errno.
type DMA interface {
	Read(iova uint64, p []byte) error
	Write(iova uint64, p []byte) error
	// View calls fn with consecutive pieces of memory that is shared with
	// the client; a piece must not be kept.
	View(iova uint64, n int, prot vfiouser.Prot, fn func(p []byte) error) error
	// Backed reports whether the range is wholly mapped with that
	// protection in memory that View reaches.
	Backed(iova uint64, n uint64, prot vfiouser.Prot) bool
	// Generation is another number, never used before, after any of the
	// range was mapped anew, and 0 while it is not wholly mapped.
	Generation(iova, n uint64) uint64
}

var _ chip.Chip = (*Function)(nil)

// maxMessages bounds the goroutines that wait for memory which only the client
// can reach. Those that a reset abandoned count until the client answers or
// the transport's time limit ends them.
const maxMessages = 64

// epoch is the time between two resets: ended is closed when it is over.
type epoch struct{ ended chan struct{} }

// messages is access to memory behind the client: it may take as long as the
// client likes, so it never runs where a reset waits for it.
type messages struct {
	epoch   atomic.Pointer[epoch]
	running atomic.Int32
}

func (m *messages) begin() { m.epoch.Store(&epoch{ended: make(chan struct{})}) }
func (m *messages) end()   { close(m.epoch.Load().ended) }

// do runs fn in a goroutine of its own and waits for it, but no longer than
// until the next reset. fn must not touch memory of the caller.
func (m *messages) do(fn func() error) error {
	e := m.epoch.Load()
	select {
	case <-e.ended:
		return unix.ECANCELED
	default:
	}
	if m.running.Add(1) > maxMessages {
		m.running.Add(-1)
		return unix.EBUSY
	}
	done := make(chan error, 1)
	go func() {
		defer m.running.Add(-1)
		done <- fn()
	}()
	select {
	case err := <-done:
		return err
	case <-e.ended:
		return unix.ECANCELED
	}
}

// dmaGate returns the DMA map, or an error while the function must not master
// the bus.
func (f *Function) dmaGate() (DMA, error) {
	d := f.dma.Load()
	if d == nil || !f.pci.Master() {
		return nil, unix.EACCES
	}
	return *d, nil
}

// dmaDone counts a failed access. Errors that the caller's own callback made
// are no errnos and none of ours.
func (f *Function) dmaDone(err error) error {
	if err == nil {
		return nil
	}
	var errno unix.Errno
	if errors.As(err, &errno) {
		f.count(abi.CounterDMAErrors)
	}
	return err
}

// Read implements [chip.Chip].
func (f *Function) Read(iova uint64, p []byte) error {
	d, err := f.dmaGate()
	switch {
	case err != nil:
	case d.Backed(iova, uint64(len(p)), vfiouser.ProtRead):
		err = d.Read(iova, p)
	default:
		// The copy is private to the goroutine: it may outlive the call.
		b := make([]byte, len(p))
		if err = f.messages.do(func() error { return d.Read(iova, b) }); err == nil {
			copy(p, b)
		}
	}
	return f.dmaDone(err)
}

// Write implements [chip.Chip].
func (f *Function) Write(iova uint64, p []byte) error {
	d, err := f.dmaGate()
	switch {
	case err != nil:
	case d.Backed(iova, uint64(len(p)), vfiouser.ProtWrite):
		err = d.Write(iova, p)
	default:
		b := append([]byte(nil), p...)
		err = f.messages.do(func() error { return d.Write(iova, b) })
	}
	return f.dmaDone(err)
}

// View implements [chip.Chip].
func (f *Function) View(iova uint64, n int, write bool, fn func(p []byte) error) error {
	d, err := f.dmaGate()
	if err != nil {
		return f.dmaDone(err)
	}
	prot := vfiouser.ProtRead
	if write {
		prot = vfiouser.ProtWrite
	}
	return f.dmaDone(d.View(iova, n, prot, fn))
}

// Shared implements [chip.Chip].
func (f *Function) Shared(iova, n uint64) bool {
	d, err := f.dmaGate()
	return err == nil && d.Backed(iova, n, vfiouser.ProtRead|vfiouser.ProtWrite)
}

// Mapping implements [chip.Chip].
func (f *Function) Mapping(iova, n uint64) uint64 {
	d, err := f.dmaGate()
	if err != nil {
		return 0
	}
	return d.Generation(iova, n)
}

// Signal implements [chip.Chip].
func (f *Function) Signal(vector int) { f.irq.signal(vector) }

// Event implements [chip.Chip].
func (f *Function) Event(bits uint32) {
	if f.irq.event(bits) {
		f.count(abi.CounterInterrupts)
	}
}
