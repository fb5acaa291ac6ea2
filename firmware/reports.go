// SPDX-License-Identifier: Apache-2.0

package firmware

import "toebox/vdev/abi"

// reportChunk is how many bytes of records are written to host memory at once.
const reportChunk = 64 * abi.ReportSize

// minReport is the least room of a report buffer: for the largest record.
const minReport = abi.ReportSize + abi.StateRecordSize

// reports are the buffers that the host posted with REPORT (SPEC.md §6.4). The
// first of them is filled; it is given back in the same pass, so that between
// passes none is partly filled.
type reports struct {
	buffers requestList
	kind    abi.Type // of the first record in the first buffer
	count   uint64   // of records in it
	chunk   [reportChunk]byte
}

// requestReportBuffer posts a buffer for reports.
func (q *queue) requestReportBuffer(f *abi.Fields) {
	switch {
	case f.Flags != abi.FlagReport || f.Conn != 0:
		q.refuse(f, abi.StatusReserved)
		return
	case f.Length-f.Offset < minReport:
		q.refuse(f, abi.StatusBadLength)
		return
	}
	if r := q.hold(f, nil); r != nil {
		if q.check != nil {
			q.check.posted(r)
		}
		q.reports.buffers.push(r)
	}
}

// reportRoom is how many bytes of records the first report buffer takes; 0:
// there is none. A buffer is given back when it takes no more.
func (q *queue) reportRoom() int {
	r := q.reports.buffers.front
	if r == nil {
		return 0
	}
	return r.todo() &^ (abi.ReportSize - 1)
}

// putReport writes count records, together at most reportRoom bytes of b, to
// the first report buffer. A buffer that cannot be written is answered
// BAD_MEMORY, and the records are the caller's still.
func (q *queue) putReport(kind abi.Type, b []byte, count int) bool {
	p := &q.reports
	r := p.buffers.front
	if q.check != nil {
		q.check.unchanged(r)
	}
	q.count(abi.CounterControlWrites, 1)
	if err := q.fw.chip.Write(r.base+uint64(r.offset)+uint64(r.done), b); err != nil {
		q.endReport(abi.StatusBadMemory)
		return false
	}
	if r.done == 0 {
		p.kind = kind
	}
	p.count += uint64(count)
	r.done += uint32(len(b))
	if q.check != nil && r.summed == q.check {
		q.check.remember(r)
	}
	if q.reportRoom() == 0 {
		q.endReport(abi.StatusOK)
	}
	return true
}

// flushReport gives the first report buffer back if there are records in it.
func (q *queue) flushReport() {
	if r := q.reports.buffers.front; r != nil && r.done > 0 {
		q.endReport(abi.StatusOK)
	}
}

// endReport answers the first report buffer: by the records in it, or, if it
// cannot be written and has none, by buffer available.
func (q *queue) endReport(s abi.Status) {
	p := &q.reports
	r := p.buffers.front
	f := abi.Fields{
		Type: abi.TypeBufferDone, Aux: uint16(s), Tag: r.tag, Base: r.base, Length: r.done, Offset: r.offset,
	}
	if r.done > 0 {
		f.Type, f.Flags = p.kind, abi.FlagReport
		q.count(abi.CounterReports, 1)
		q.count(abi.CounterReportRecords, p.count)
	}
	p.count = 0
	q.removeBuffer(r)
	if q.check != nil {
		q.check.unchanged(r)
	}
	q.terminal(&f)
	q.settle(r)
}
