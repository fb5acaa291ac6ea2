// SPDX-License-Identifier: Apache-2.0

package firmware

import (
	"sync"

	"toebox/vdev/abi"
)

// Bounds of the copies that a queue keeps.
const (
	copyCharge   = 128 // besides the bytes
	maxCopies    = 256
	maxSendCache = 1 << 30
)

// kept is adapter memory that holds what was read of a send, for sends of the
// same bytes (MM10, SPEC.md §14.8). It is filled as the first of them is read, so
// that each byte is read once.
//
// The worker of the queue owns data and have while there are users; the rest is
// guarded by copies.mu.
type kept struct {
	base, n    uint64
	mapping    uint64 // [Chip.Mapping] when it was made
	data       []byte // nil: none yet
	have       uint64
	charged    int
	plain      bool // there was no room: its users read for themselves
	users      int  // sends that take their bytes from it
	listed     bool // new sends may use it
	prev, next *kept
}

// copies are those of a queue, the one used last at the back.
type copies struct {
	fw *Firmware

	mu          sync.Mutex
	front, back *kept
	n           int
}

// keeping is what the copies of all queues take.
type keeping struct {
	mu    sync.Mutex
	bytes int
}

func (k *copies) linkLocked(e *kept) {
	e.listed, e.prev, e.next = true, k.back, nil
	if k.back != nil {
		k.back.next = e
	} else {
		k.front = e
	}
	k.back = e
	k.n++
	k.fw.copies.Add(1)
}

func (k *copies) unlinkLocked(e *kept) {
	if e.prev != nil {
		e.prev.next = e.next
	} else {
		k.front = e.next
	}
	if e.next != nil {
		e.next.prev = e.prev
	} else {
		k.back = e.prev
	}
	e.listed, e.prev, e.next = false, nil, nil
	k.n--
	k.fw.copies.Add(-1)
}

// dropLocked lets no further send use e. Its memory is given back with its last
// user.
func (k *copies) dropLocked(e *kept) {
	if e.listed {
		k.unlinkLocked(e)
	}
	if e.users == 0 {
		k.fw.unkeep(e)
	}
}

// evictLocked gives up the copy that was used longest ago and that nobody uses.
func (k *copies) evictLocked() bool {
	for e := k.front; e != nil; e = e.next {
		if e.users == 0 {
			k.dropLocked(e)
			k.fw.counters.Add(abi.CounterCopiesEvicted, 1)
			return true
		}
	}
	return false
}

// wrote drops the copies of what overlaps [base, base+n).
func (k *copies) wrote(base, n uint64) {
	k.mu.Lock()
	defer k.mu.Unlock()
	for e := k.front; e != nil; {
		next := e.next
		if base-e.base < e.n || e.base-base < n {
			k.dropLocked(e)
			k.fw.counters.Add(abi.CounterCopiesDropped, 1)
		}
		e = next
	}
}

// find returns the copy of exactly these bytes, for one user more; nil: there is
// none.
func (k *copies) find(base, n, mapping uint64) *kept {
	k.mu.Lock()
	defer k.mu.Unlock()
	for e := k.back; e != nil; e = e.prev {
		if e.base != base || e.n != n {
			continue
		}
		if e.mapping != mapping {
			k.dropLocked(e)
			k.fw.counters.Add(abi.CounterCopiesDropped, 1)
			return nil
		}
		k.unlinkLocked(e)
		k.linkLocked(e)
		e.users++
		return e
	}
	return nil
}

// make makes a copy of which nothing is read yet, for one user; nil: there are
// too many.
func (k *copies) make(base, n, mapping uint64) *kept {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.n >= maxCopies && !k.evictLocked() {
		return nil
	}
	e := &kept{base: base, n: n, mapping: mapping, users: 1}
	k.linkLocked(e)
	return e
}

// join adds a user to a copy that has one.
func (k *copies) join(e *kept) {
	k.mu.Lock()
	e.users++
	k.mu.Unlock()
}

// room gets e its memory, at the cost of others that nobody uses.
func (k *copies) room(e *kept) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	for !k.fw.keep(e) {
		if !k.evictLocked() {
			e.plain = true
			if e.listed {
				k.unlinkLocked(e)
			}
			return false
		}
	}
	return true
}

// leave notes that a send does not need e any more. A copy that is not whole
// then would be of two times, and goes.
func (k *copies) leave(e *kept) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if e.users--; e.users > 0 {
		return
	}
	if !e.listed || e.have < e.n {
		k.dropLocked(e)
	}
}

// clear drops all of them.
func (k *copies) clear() {
	k.mu.Lock()
	defer k.mu.Unlock()
	for k.front != nil {
		k.dropLocked(k.front)
	}
}

// keep charges for the memory of e and makes it.
func (f *Firmware) keep(e *kept) bool {
	n := int(e.n) + copyCharge
	limit := min(int64(f.adapter.sendCache.Load()), f.memory.limit.Load()/4)
	f.keeping.mu.Lock()
	defer f.keeping.mu.Unlock()
	if int64(f.keeping.bytes+n) > limit || !f.memory.charge(n) {
		return false
	}
	f.keeping.bytes += n
	e.charged, e.data = n, make([]byte, e.n)
	return true
}

// unkeep gives it back.
func (f *Firmware) unkeep(e *kept) {
	if e.charged == 0 {
		return
	}
	f.keeping.mu.Lock()
	f.keeping.bytes -= e.charged
	f.keeping.mu.Unlock()
	f.memory.release(e.charged)
	e.charged, e.data = 0, nil
}

// Wrote notes that host memory was written by the adapter: copies of it are not
// what stands there.
func (f *Firmware) Wrote(iova, n uint64) {
	if n == 0 || f.copies.Load() == 0 {
		return
	}
	for i := range f.queues {
		if q := f.queues[i].Load(); q != nil {
			q.copies.wrote(iova, n)
		}
	}
}

// writes is a chip whose writes are noted, when they are done: what was read
// before may be old, or half of it.
type writes struct {
	Chip
	fw *Firmware
}

func (w writes) Write(iova uint64, p []byte) error {
	err := w.Chip.Write(iova, p)
	w.fw.Wrote(iova, uint64(len(p)))
	return err
}

func (w writes) View(iova uint64, n int, write bool, f func([]byte) error) error {
	err := w.Chip.View(iova, n, write, f)
	if write && n > 0 {
		w.fw.Wrote(iova, uint64(n))
	}
	return err
}

// present looks whether the bytes of a send are known, or are to be.
func (q *queue) present(r *request, modified, keep bool) {
	base, n := r.base+uint64(r.offset), uint64(r.length-r.offset)
	if modified {
		q.fw.Wrote(base, n)
	}
	if !keep || n == 0 || n > maxSendCache {
		return
	}
	mapping := q.fw.chip.Mapping(base, n)
	if mapping == 0 {
		return // reading it will say so
	}
	if !modified {
		if r.kept = q.copies.find(base, n, mapping); r.kept != nil {
			q.count(abi.CounterCopiesFound, 1)
			return
		}
	}
	r.kept = q.copies.make(base, n, mapping)
}

// leaveCopy lets a request do without its copy.
func (q *queue) leaveCopy(r *request) {
	if r.kept != nil {
		q.copies.leave(r.kept)
		r.kept = nil
	}
}

// fillKept copies bytes of a send from pos on to p, by way of its copy. It reports
// false when there is none.
func (q *queue) fillKept(r *request, pos uint32, p []byte) (bool, error) {
	e := r.kept
	if e == nil || e.plain || e.data == nil && !q.copies.room(e) {
		return false, nil
	}
	need := uint64(pos) + uint64(len(p))
	if e.have < need {
		n := need - e.have
		if err := q.fetch(e.base+e.have, e.data[e.have:need]); err != nil {
			return true, err
		}
		if e.have == 0 {
			q.count(abi.CounterCopiesKept, 1)
		}
		e.have = need
		q.count(abi.CounterPayloadReads, 1)
		q.count(abi.CounterPayloadBytesRead, n)
		q.count(abi.CounterBytesKept, n)
	}
	copy(p, e.data[pos:need])
	q.count(abi.CounterCopiesBytes, uint64(len(p)))
	return true, nil
}
