// SPDX-License-Identifier: Apache-2.0

package guestdriver

import (
	"errors"
	"fmt"
	"slices"
	"sync"
)

// ErrBusy says that the adapter has the buffer, or a part of the memory: it is
// the caller's again with the final completion.
var ErrBusy = errors.New("guestdriver: in use by the adapter")

// mapPage is the alignment of memory that is mapped for DMA.
const mapPage = 4 << 10

// errMemory says that a region or a part of it is no such thing.
var errMemory = errors.New("guestdriver: not memory for DMA")

// Memory is a registered region (MM02): memory that is mapped for DMA and
// belongs to the application, which posts parts of it as a [Buffer], or gives
// slices of it to [Conn.Write], [Conn.WriteBuffers] and [Conn.Read]. Other
// slices go through the driver's own buffers, by a copy.
//
// What the adapter has is not to be touched (of a send: not to be changed)
// until the completion, or the end of the call.
type Memory struct {
	a     *Adapter
	dma   DMA
	start uintptr
	free  func(DMA) error // gives it back to the bus at Deregister; nil: nobody does

	mu   sync.Mutex
	pins int // posted buffers in it
	gone bool
}

// Alloc takes memory from the bus and registers it. It is zero.
func (a *Adapter) Alloc(size int) (*Memory, error) {
	if size <= 0 {
		return nil, fmt.Errorf("guestdriver: allocate %d bytes: %w", size, errMemory)
	}
	d, err := a.bus.AllocDMA(size)
	if err != nil {
		return nil, fmt.Errorf("guestdriver: allocate %d bytes: %w", size, err)
	}
	m, err := a.register(d, a.bus.FreeDMA)
	if err != nil {
		_ = a.bus.FreeDMA(d) // the error before tells more
	}
	return m, err
}

// Map maps memory that the application has mapped itself for DMA, and registers
// it: whole pages of mmap, readable and writable, shared or not, of a file or
// of none. It stays the application's, who keeps it mapped until Deregister has
// returned nil or the adapter is closed. The error is [errors.ErrUnsupported]
// on a bus that is no [Mapper].
func (a *Adapter) Map(p []byte) (*Memory, error) {
	bus, ok := a.bus.(Mapper)
	switch {
	case !ok:
		return nil, fmt.Errorf("guestdriver: map %d bytes for DMA: bus %s: %w", len(p), a.bus.Name(), errors.ErrUnsupported)
	case len(p) == 0 || len(p)%mapPage != 0 || addressOf(p)%mapPage != 0:
		return nil, fmt.Errorf("guestdriver: map %d bytes for DMA: not whole pages: %w", len(p), errMemory)
	}
	d, err := bus.MapDMA(p)
	if err != nil {
		return nil, fmt.Errorf("guestdriver: map %d bytes for DMA: %w", len(p), err)
	}
	m, err := a.register(d, bus.UnmapDMA)
	if err != nil {
		_ = bus.UnmapDMA(d) // the error before tells more
	}
	return m, err
}

// Register registers memory of [Bus.AllocDMA] of the adapter's bus, or a part
// of it. It stays the caller's, who frees it after Deregister.
func (a *Adapter) Register(d DMA) (*Memory, error) { return a.register(d, nil) }

func (a *Adapter) register(d DMA, free func(DMA) error) (*Memory, error) {
	n := uint64(len(d.Bytes))
	if n == 0 || d.IOVA+n-1 < d.IOVA {
		return nil, fmt.Errorf("guestdriver: register %d bytes at %#x: %w", n, d.IOVA, errMemory)
	}
	m := &Memory{a: a, dma: d, start: addressOf(d.Bytes), free: free}
	a.regMu.Lock()
	defer a.regMu.Unlock()
	var all []*Memory
	if p := a.regions.Load(); p != nil {
		all = *p
	}
	i := regionAfter(all, m.start)
	if i > 0 && all[i-1].end() > m.start || i < len(all) && m.end() > all[i].start {
		return nil, fmt.Errorf("guestdriver: register %d bytes at %#x: registered already: %w", n, d.IOVA, errMemory)
	}
	all = slices.Insert(slices.Clone(all), i, m)
	a.regions.Store(&all)
	return m, nil
}

// regionAfter returns the index of the first region that begins behind addr.
func regionAfter(all []*Memory, addr uintptr) int {
	lo, hi := 0, len(all)
	for lo < hi {
		if mid := (lo + hi) / 2; all[mid].start > addr {
			hi = mid
		} else {
			lo = mid + 1
		}
	}
	return lo
}

func (m *Memory) end() uintptr { return m.start + uintptr(len(m.dma.Bytes)) }

// lookup returns the region that p lies in wholly, and its place there; nil
// when there is none.
func (a *Adapter) lookup(p []byte) (m *Memory, off int) {
	all := a.regions.Load()
	if all == nil || len(p) == 0 {
		return nil, 0
	}
	addr := addressOf(p)
	i := regionAfter(*all, addr) - 1
	if i < 0 {
		return nil, 0
	}
	m = (*all)[i]
	at := addr - m.start
	if at >= uintptr(len(m.dma.Bytes)) || len(p) > len(m.dma.Bytes)-int(at) {
		return nil, 0
	}
	return m, int(at)
}

func (m *Memory) pin() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.gone {
		return false
	}
	m.pins++
	return true
}

func (m *Memory) unpin() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.pins--
}

// Bytes returns the memory.
func (m *Memory) Bytes() []byte { return m.dma.Bytes }

// IOVA returns where the adapter sees the memory.
func (m *Memory) IOVA() uint64 { return m.dma.IOVA }

// Deregister ends the registration; memory of Alloc is freed and must not be
// touched any more, that of Map is the application's alone. While the adapter has a part of it the error is [ErrBusy].
// A second call does nothing.
func (m *Memory) Deregister() error {
	m.mu.Lock()
	switch {
	case m.gone:
		m.mu.Unlock()
		return nil
	case m.pins > 0:
		m.mu.Unlock()
		return fmt.Errorf("guestdriver: deregister memory: %w", ErrBusy)
	}
	m.gone = true
	m.mu.Unlock()
	a := m.a
	a.regMu.Lock()
	all := slices.DeleteFunc(slices.Clone(*a.regions.Load()), func(x *Memory) bool { return x == m })
	a.regions.Store(&all)
	a.regMu.Unlock()
	a.undeclare(m)
	if m.free != nil && !a.stopped.Load() {
		return m.free(m.dma)
	}
	return nil
}

// Buffer returns the n bytes at off as a buffer to post. Several buffers may
// share memory: one sent on several connections at once, or the parts of one.
func (m *Memory) Buffer(off, n int) (*Buffer, error) {
	if off < 0 || n <= 0 || n > len(m.dma.Bytes)-off || n > maxPost {
		return nil, fmt.Errorf("guestdriver: buffer of %d bytes at %d of %d: %w", n, off, len(m.dma.Bytes), errMemory)
	}
	b := &Buffer{}
	b.set(m, off, n)
	return b, nil
}
