// SPDX-License-Identifier: Apache-2.0

package firmware

import (
	"hash/crc32"
	"sync"
	"sync/atomic"
	"time"

	"toebox/vdev/abi"
)

// rest is the part of a buffer that must not change: all of a send, of a
// receive buffer what is not delivered.
func (r *request) rest() (base, n uint64) {
	base, n = r.base+uint64(r.offset), uint64(r.length-r.offset)
	if r.kind == abi.TypeBufferAvailable {
		base, n = base+uint64(r.done), n-uint64(r.done)
	}
	return base, n
}

// Bounds of the search for buffers in each other's memory (SPEC.md §15).
const (
	reportsLooked = 64   // report buffers
	ledgerLooked  = 1024 // requests
)

// posted is told of a buffer that the host handed over.
func (k *checker) posted(r *request) {
	k.remember(r)
	if r.flags&abi.FlagReport == 0 {
		n := 0
		for o := k.q.reports.buffers.front; o != nil && n < reportsLooked; o = o.next {
			k.apart(r, o)
			n++
		}
		return
	}
	n := 0
	for _, o := range k.q.tags {
		if n++; n > ledgerLooked {
			return
		}
		if o != r && (o.kind == abi.TypeBufferSend || o.kind == abi.TypeBufferAvailable && o.flags&abi.FlagRedirect == 0) {
			k.apart(r, o)
		}
	}
}

// apart looks whether r has no memory of o, a buffer that was posted before. One
// of them is a report buffer.
func (k *checker) apart(r, o *request) {
	base, n := r.rest()
	other, m := o.rest()
	if n == 0 || m == 0 || base-other >= m && other-base >= n {
		return
	}
	e := abi.CheckerEntry{
		Rule: abi.CheckReportOverlap, Place: abi.PlaceBuffer, Address: max(base, other), Tag: r.tag, Detail: o.tag,
	}
	r.describe(e.Descriptor[:])
	o.describe(e.Found[:])
	k.report(e)
}

// describe stores the buffer request that r was.
func (r *request) describe(d abi.Descriptor) {
	f := abi.Fields{Type: r.kind, Flags: r.flags, ASAP: r.asap, Tag: r.tag, Base: r.base, Length: r.length, Offset: r.offset + r.skip}
	if r.conn != nil {
		f.Conn = r.conn.id
	}
	d.Encode(&f, true)
}

// remember takes the checksum of a buffer.
func (k *checker) remember(r *request) {
	r.summed = nil
	var ok bool
	if r.sum, ok = k.sum(r); ok {
		r.summed = k
	}
	k.looked++
}

// sum is the checksum of the part of a buffer that must not change, by the rule
// of SPEC.md §15; ok is false when the memory cannot be looked at.
func (k *checker) sum(r *request) (sum uint32, ok bool) {
	base, n := r.rest()
	if n == 0 || !k.q.fw.chip.Shared(base, n) {
		return 0, false
	}
	add := func(p []byte) error {
		sum = crc32.Update(sum, k.crc, p)
		return nil
	}
	if n <= sampleWhole {
		return sum, k.q.fw.chip.View(base, int(n), false, add) == nil
	}
	for i := range uint64(samplePieces) {
		at := base + (n-samplePiece)*i/(samplePieces-1)
		if k.q.fw.chip.View(at, samplePiece, false, add) != nil {
			return 0, false
		}
	}
	return sum, true
}

// unchanged looks whether a buffer is as it was remembered.
func (k *checker) unchanged(r *request) {
	if r.summed != k {
		return
	}
	now, ok := k.sum(r)
	if !ok || now == r.sum {
		return
	}
	r.summed = nil // once
	base, _ := r.rest()
	e := abi.CheckerEntry{Rule: abi.CheckSendChanged, Place: abi.PlaceBuffer, Address: base, Tag: r.tag}
	if r.kind == abi.TypeBufferAvailable {
		e.Rule = abi.CheckBufferChanged
	}
	r.describe(e.Descriptor[:])
	k.report(e)
}

// control looks whether host memory at base+off still is what was copied from
// there.
func (k *checker) control(f *abi.Fields, off int, was []byte) {
	base := f.Base + uint64(off)
	if len(was) == 0 || !k.q.fw.chip.Shared(base, uint64(len(was))) {
		return
	}
	at, same := 0, true
	err := k.q.fw.chip.View(base, len(was), false, func(p []byte) error {
		d := differ(was[at:at+len(p)], p)
		at += int(d)
		if same = int(d) == len(p); !same {
			return errStop
		}
		return nil
	})
	if same || err == nil {
		return
	}
	e := abi.CheckerEntry{
		Rule: abi.CheckControlChanged, Place: abi.PlaceControl, Address: f.Base, Tag: f.Tag, Detail: uint32(off + at),
	}
	abi.Descriptor(e.Descriptor[:]).Encode(f, true)
	k.report(e)
}

// note adds an event of a tag.
func (k *checker) note(tag uint32, e abi.TagEvent) {
	e.Uptime = uint64(k.q.now)
	slot := &k.events[k.event%tagEvents]
	slot.tag, slot.TagEvent = tag, e
	k.event++
}

// responded notes a response.
func (k *checker) responded(f *abi.Fields) {
	e := abi.TagEvent{Kind: abi.TagAnswered, Type: f.Type, Status: abi.Status(f.Aux), Value: f.Length}
	if f.Flags&abi.FlagFinal != 0 {
		e.Kind = abi.TagDone
	}
	k.note(f.Tag, e)
}

// report counts a violation and keeps its description until the end of the
// pass: this may be within a View, which nothing may be called out of.
func (k *checker) report(e abi.CheckerEntry) {
	k.q.count(abi.CounterCheckerViolations, 1)
	k.q.fw.violations.total.Add(1)
	if len(k.found) >= foundLimit {
		return
	}
	e.Queue, e.Uptime = uint8(k.q.index), uint64(k.q.now)
	if e.Tag != 0 {
		at := len(e.Events)
		for i := 1; i <= min(k.event, tagEvents) && at > 0; i++ {
			if v := &k.events[(k.event-i)%tagEvents]; v.tag == e.Tag {
				at--
				e.Events[at] = v.TagEvent
			}
		}
		n := copy(e.Events[:], e.Events[at:])
		clear(e.Events[n:])
	}
	k.found = append(k.found, e)
}

// publish makes what was found known.
func (k *checker) publish() {
	f := k.q.fw
	if k.looked != 0 {
		f.violations.looked.Add(k.looked)
		k.looked = 0
	}
	if len(k.found) == 0 {
		return
	}
	f.violations.add(k.found)
	for i := range k.found {
		if f.violations.mayLog(k.q.now) {
			f.log.Warn("protocol violation", "what", k.found[i].String())
		}
	}
	k.found = k.found[:0]
	f.chip.Event(abi.EventChecker)
}

// logsPerSecond bounds the checker's lines in the log.
const logsPerSecond = 20

// violations keeps the last violations of all queues.
type violations struct {
	total  atomic.Uint32
	looked atomic.Uint64

	mu     sync.Mutex
	list   []abi.CheckerEntry // oldest first
	second time.Duration      // when the count of lines began
	lines  int
}

func (r *violations) add(list []abi.CheckerEntry) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.list = append(r.list, list...)
	if n := len(r.list) - abi.CheckerKept; n > 0 {
		r.list = r.list[:copy(r.list, r.list[n:])]
	}
}

func (r *violations) mayLog(now time.Duration) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if now-r.second >= time.Second || now < r.second {
		r.second, r.lines = now, 0
	}
	r.lines++
	return r.lines <= logsPerSecond
}

func (r *violations) reset() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.total.Store(0)
	r.looked.Store(0)
	r.list = nil
}

// value is CHECKER_REPORT.
func (r *violations) value() []byte {
	r.mu.Lock()
	defer r.mu.Unlock()
	return abi.AppendCheckerReport(nil, &abi.CheckerReport{
		Violations: r.total.Load(), Looked: r.looked.Load(), Entries: r.list,
	})
}

// SetChecker is CHECKER bit 0. Queues follow at their next pass.
func (f *Firmware) SetChecker(on bool) {
	f.checking.Store(on)
	f.wakeAll()
}
