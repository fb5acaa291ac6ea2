// SPDX-License-Identifier: Apache-2.0

package firmware

import (
	"encoding/binary"
	"math"

	"toebox/firmware/engine"
	"toebox/vdev/abi"
)

// POOL_WEIGHTS (SPEC.md §14.5).
const (
	weightBits  = 0xff01ffff
	weightSpeed = 8
	weightMatch = 1 << 16
	weightNode  = 24 // the connection's node; its weight is in bits 7..0
)

// Bounds of the choice among bulk buffers.
const (
	matchMost  = 64  // bulk buffers looked at, the oldest
	tableMost  = 256 // entries of BUFFER_TABLE
	contiguous = 1   // flag of an entry
)

// table is BUFFER_TABLE: where it is and, if the adapter keeps one, the copy.
type table struct {
	at   abi.BufferTable
	keep bool   // BUFFER_TABLE_MODE
	copy []byte // charged to adapter memory
}

// tableReader is where a queue reads the table to.
type tableReader struct{ buf []byte }

// setTable makes t the table. The caller holds the lock of the adapter's
// attributes.
func (f *Firmware) setTableLocked(t table) abi.Status {
	n := int(t.at.Entries) * abi.BufferEntrySize
	old := f.adapter.table.Load()
	if t.keep && n > 0 {
		if !f.memory.charge(n) {
			return abi.StatusNoMemory
		}
		t.copy = make([]byte, n)
		f.counters.Add(abi.CounterBufferTableReads, 1)
		if err := f.chip.Read(t.at.Base, t.copy); err != nil {
			f.memory.release(n)
			return abi.StatusBadMemory
		}
	}
	f.memory.release(len(old.copy))
	f.adapter.table.Store(&t)
	return abi.StatusOK
}

// setBufferTableLocked sets BUFFER_TABLE.
func (f *Firmware) setBufferTableLocked(value []byte) abi.Status {
	at, ok := abi.ParseBufferTable(value)
	switch {
	case !ok:
		return abi.StatusBadLength
	case at.Entries > tableMost, at.Entries > 0 && at.Base > math.MaxUint64-(at.Entries*abi.BufferEntrySize-1):
		return abi.StatusBadValue
	}
	return f.setTableLocked(table{at: at, keep: f.adapter.table.Load().keep})
}

// setTableMode sets BUFFER_TABLE_MODE.
func (f *Firmware) setTableMode(v uint64) abi.Status {
	if v > 1 {
		return abi.StatusBadValue
	}
	f.adapter.mu.Lock()
	defer f.adapter.mu.Unlock()
	return f.setTableLocked(table{at: f.adapter.table.Load().at, keep: v == 1})
}

// entries is the table as a choice reads it: the copy, or the host's by DMA. It
// is empty when there is none, or none can be read.
func (q *queue) entries() []byte {
	t := q.fw.adapter.table.Load()
	n := int(t.at.Entries) * abi.BufferEntrySize
	if t.keep || n == 0 {
		return t.copy
	}
	b := &q.table.buf
	if len(*b) < n {
		if !q.fw.memory.charge(n - len(*b)) {
			return nil
		}
		*b = make([]byte, n)
	}
	q.count(abi.CounterBufferTableReads, 1)
	if q.fw.chip.Read(t.at.Base, (*b)[:n]) != nil {
		return nil
	}
	return (*b)[:n]
}

func (q *queue) endTable() {
	q.fw.memory.release(len(q.table.buf))
	q.table.buf = nil
}

// entryOf is the first entry that the memory of r lies in.
func entryOf(entries []byte, r *request) (e abi.BufferEntry) {
	le := binary.LittleEndian
	last := r.base + uint64(r.length) - 1
	for b := entries; len(b) >= abi.BufferEntrySize; b = b[abi.BufferEntrySize:] {
		base, length := le.Uint64(b), le.Uint64(b[8:])
		if r.base >= base && length > 0 && last-base < length {
			return abi.BufferEntry{
				Base: base, Length: length, Speed: le.Uint64(b[16:]), Node: le.Uint64(b[24:]), Group: le.Uint64(b[32:]), Flags: le.Uint64(b[40:]),
			}
		}
	}
	return e
}

// merit is how well a bulk buffer matches the bytes of a connection. The one that
// is better in the first field that differs is the better match.
type merit struct {
	whole      bool   // it takes the bytes as a whole
	room       int    // smaller is better if it does, larger if not
	group      int    // 2 declared for the connection's group, 1 for none, 0 for another
	score      uint64 // by weights
	contiguous bool
}

func (m *merit) better(o *merit) bool {
	switch {
	case m.whole != o.whole:
		return m.whole
	case m.room != o.room:
		return (m.room < o.room) == m.whole
	case m.group != o.group:
		return m.group > o.group
	case m.score != o.score:
		return m.score > o.score
	}
	return m.contiguous && !o.contiguous
}

// meritOf judges r for size bytes of a connection.
func meritOf(r *request, size uint64, weights uint64, group uint64, entries []byte) merit {
	m := merit{whole: uint64(r.todo()) >= size, room: r.todo(), group: 1}
	if len(entries) == 0 {
		return m
	}
	e := entryOf(entries, r)
	if e.Length == 0 {
		return m
	}
	if e.Group != 0 {
		m.group = 0
		if e.Group == group {
			m.group = 2
		}
	}
	if e.Node == weights>>weightNode {
		m.score = 255 * (weights & 0xff)
	}
	m.score += min(e.Speed, 255) * (weights >> weightSpeed & 0xff)
	m.contiguous = e.Flags&contiguous != 0
	return m
}

// poolBuffer chooses a bulk buffer for the bytes of c that are there: the oldest,
// or the best match (SPEC.md §14.5); nil: there is none.
func (q *queue) poolBuffer(c *conn) *request {
	weights := c.attrs.of(abi.AttrPoolWeights)
	best := q.pool.front
	if weights&weightMatch == 0 || best == nil {
		return best
	}
	q.count(abi.CounterPoolMatches, 1)
	size := q.ahead(c)
	size -= min(size, uint64(c.toSkipNext()))
	var entries []byte
	if q.pool.n > 1 {
		entries = q.entries()
	}
	m := meritOf(best, size, weights, c.group(), entries)
	n := 1
	for r := best.next; r != nil && n < matchMost; r = r.next {
		if k := meritOf(r, size, weights, c.group(), entries); k.better(&m) {
			best, m = r, k
		}
		n++
	}
	if m.whole {
		q.count(abi.CounterPoolWhole, 1)
	}
	return best
}

// ahead is how many bytes one delivery of c would take at most: what has
// arrived, or the next datagram with its header.
func (q *queue) ahead(c *conn) uint64 {
	if c.proto.number() == engine.TCP {
		i := c.ep.Info()
		return i.Received - min(i.Delivered, i.Received)
	}
	n, _ := c.ep.Peek(math.MaxInt32, q.looks.drop)
	if c.loose {
		n += abi.AddressSize
	}
	return uint64(n)
}
