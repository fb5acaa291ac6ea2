// SPDX-License-Identifier: Apache-2.0

package guestdriver

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"

	"toebox/vdev/abi"
)

// Declaration says what buffers in a part of registered memory are like, for a choice
// among those of the pool by [PoolMatch] (MM16; SPEC.md §14.5). How large each is its
// post says.
type Declaration struct {
	Speed      int           // larger is faster; more than 255 is as 255
	Node       int           // of NUMA
	Group      *ReceiveGroup // for whose connections they are; nil: for any
	Contiguous bool          // in physical memory
}

// Declared is an entry of the buffer table.
type Declared struct {
	Memory *Memory
	Off, N int // the part of it
	Declaration
}

// TableMode says how the adapter knows the buffer table.
type TableMode uint8

// Modes of SPEC.md §7.
const (
	TableRead TableMode = iota // it reads the table by DMA for each choice
	TableKept                  // it keeps a copy, in its memory
)

// BUFFER_TABLE (SPEC.md §7).
const (
	tableMost       = 256
	entryContiguous = 1
)

// bufferTable is what was declared. It stands in host memory, in one of two places: a
// change is written to the other one, since the adapter may be reading.
type bufferTable struct {
	change sync.Mutex // held by who changes it, also while the adapter is told; before mu

	mu    sync.Mutex // what a restart of the adapter tells it, change or not
	now   tableState
	place [2]DMA
}

type tableState struct {
	entries []Declared // the first that a buffer is in counts: the newest
	at      int
	told    bool // the adapter is told of the table
	mode    TableMode
	moded   bool // ... and of the mode
}

func (t *bufferTable) state() tableState {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.now
}

func (t *bufferTable) set(s tableState) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.now = s
}

// Declare says what buffers in the n bytes at off are like, in the place of what was
// said of the same part before; of a part of another part both hold, the newer first.
// There are 256 entries at most. With an error, which names what the adapter refused,
// nothing has changed. Deregister takes back what was declared; a reset does not.
func (m *Memory) Declare(off, n int, d Declaration) error {
	if off < 0 || n <= 0 || n > len(m.dma.Bytes)-off || d.Group != nil && d.Group.a != m.a {
		return fmt.Errorf("guestdriver: declare %d bytes at %d of %d: %w", n, off, len(m.dma.Bytes), errMemory)
	}
	if d.Speed < 0 || d.Node < 0 {
		return fmt.Errorf("guestdriver: declare speed %d, node %d: %w", d.Speed, d.Node,
			&AttributeError{"set", abi.AttrBufferTable, abi.StatusBadValue})
	}
	if !m.pin() {
		return errMemory
	}
	defer m.unpin()
	t := &m.a.table
	t.change.Lock()
	defer t.change.Unlock()
	next := slices.DeleteFunc(slices.Clone(t.state().entries), func(e Declared) bool {
		return e.Memory == m && e.Off == off && e.N == n
	})
	return m.a.declare(slices.Insert(next, 0, Declared{m, off, n, d}))
}

// undeclare takes back what was declared of a region that is gone. What an adapter that
// cannot be told knows of it is of no buffer.
func (a *Adapter) undeclare(m *Memory) {
	t := &a.table
	ofM := func(e Declared) bool { return e.Memory == m }
	if !slices.ContainsFunc(t.state().entries, ofM) {
		return
	}
	t.change.Lock()
	defer t.change.Unlock()
	s := t.state()
	next := slices.DeleteFunc(slices.Clone(s.entries), ofM)
	if len(next) < len(s.entries) && a.declare(next) != nil {
		s.entries = next
		t.set(s)
	}
}

// BufferTable returns what was declared, in the order in which it counts.
func (a *Adapter) BufferTable() []Declared { return slices.Clone(a.table.state().entries) }

// TableMode returns how the adapter knows the buffer table.
func (a *Adapter) TableMode(ctx context.Context) (TableMode, error) {
	v, err := a.Scalar(ctx, 0, abi.AttrBufferTableMode)
	if err == nil && v > uint64(TableKept) {
		err = fmt.Errorf("value %d: %w", v, &AttributeError{"get", abi.AttrBufferTableMode, abi.StatusBadValue})
	}
	if err != nil {
		return TableRead, err
	}
	return TableMode(v), nil
}

// SetTableMode says how the adapter is to know the buffer table; with TableKept it takes
// the copy now, and with each Declare. With an error nothing has changed.
func (a *Adapter) SetTableMode(ctx context.Context, mode TableMode) error {
	t := &a.table
	t.change.Lock()
	defer t.change.Unlock()
	s := t.state()
	s.mode, s.moded = mode, true
	return a.changeTable(s, func() error {
		err := a.SetScalar(ctx, 0, abi.AttrBufferTableMode, uint64(mode))
		if err != nil {
			err = fmt.Errorf("value %d: %w", mode, err)
		}
		return err
	})
}

// declare makes entries the table. The caller holds change.
func (a *Adapter) declare(entries []Declared) error {
	t := &a.table
	if len(entries) > tableMost {
		return fmt.Errorf("guestdriver: declare %d entries: %w", len(entries), &AttributeError{"set", abi.AttrBufferTable, abi.StatusBadValue})
	}
	for i := range t.place {
		if t.place[i].Bytes != nil {
			continue
		}
		m, err := a.bus.AllocDMA(tableMost * abi.BufferEntrySize)
		if err != nil {
			return fmt.Errorf("guestdriver: memory for the buffer table: %w", err)
		}
		t.place[i] = m
	}
	s := t.state()
	s.entries, s.at, s.told = entries, 1-s.at, true
	b := t.place[s.at].Bytes[:0]
	for i := range entries {
		b = abi.AppendBufferEntry(b, entries[i].entry())
	}
	return a.changeTable(s, func() error {
		ctx, cancel := timeout(startTimeout)
		defer cancel()
		return a.tellTable(ctx, s)
	})
}

// changeTable makes s what the adapter is told of the table, and has it told: a restart
// meanwhile tells it, too. With an error all is as before.
func (a *Adapter) changeTable(s tableState, tell func() error) error {
	t := &a.table
	was, resets := t.state(), a.host.resets.Load()
	t.set(s)
	err := tell()
	if err == nil {
		return nil
	}
	t.set(was)
	if a.host.resets.Load() != resets {
		_ = a.putTable() // what a restart has told is not so; an error is of the next one
	}
	return err
}

// entry is the declaration as the adapter reads it.
func (d *Declared) entry() abi.BufferEntry {
	e := abi.BufferEntry{Base: d.Memory.dma.IOVA + uint64(d.Off), Length: uint64(d.N), Speed: uint64(d.Speed), Node: uint64(d.Node)}
	if d.Group != nil {
		e.Group = d.Group.id
	}
	if d.Contiguous {
		e.Flags = entryContiguous
	}
	return e
}

func (a *Adapter) tellTable(ctx context.Context, s tableState) error {
	return a.SetAttribute(ctx, 0, abi.AttrBufferTable,
		abi.AppendBufferTable(nil, abi.BufferTable{Base: a.table.place[s.at].IOVA, Entries: uint64(len(s.entries))}))
}

// putTable gives an adapter that was reset the table that it had. What new firmware
// refuses it does without.
func (a *Adapter) putTable() error {
	s := a.table.state()
	ctx, cancel := timeout(startTimeout)
	defer cancel()
	var err error
	if s.moded {
		err = a.SetScalar(ctx, 0, abi.AttrBufferTableMode, uint64(s.mode))
	}
	var refused *AttributeError
	if s.told && (err == nil || errors.As(err, &refused)) {
		err = a.tellTable(ctx, s)
	}
	if errors.As(err, &refused) {
		return nil
	}
	return err
}
