// SPDX-License-Identifier: Apache-2.0

package guestdriver

import (
	"context"
	"errors"
	"fmt"

	"toebox/vdev/abi"
)

// Record is one result out of a report buffer: of a target of a connect or
// listen request, an arrival, or, with State, a state record. Unread, in the
// buffer's memory, is what an orderly stop hands over of a connection besides:
// bytes of its peer (SPEC.md §11.1).
type Record struct {
	abi.Report
	State  *abi.StateRecord
	Unread []byte
}

// ErrReport says that a response with REPORT does not fit its buffer, or that
// what stands in the buffer is no record.
var ErrReport = errors.New("guestdriver: not a report")

// ReportRequest is the request that posts m as a buffer for reports: at least
// 256 bytes. The buffer is the adapter's until the response with its tag.
func ReportRequest(tag uint32, m DMA) abi.Fields {
	return abi.Fields{
		Type: abi.TypeBufferAvailable, Flags: abi.FlagReport, Tag: tag, Base: m.IOVA, Length: uint32(len(m.Bytes)),
	}
}

// ReadReport returns the records that response f says are in m, which is the
// host's again then. A buffer that came back without any has none.
func ReadReport(f abi.Fields, m DMA) ([]Record, error) {
	if f.Type == abi.TypeBufferDone {
		return nil, nil
	}
	size := uint64(len(m.Bytes))
	if f.Flags&abi.FlagReport == 0 || f.Base != m.IOVA || uint64(f.Offset)+uint64(f.Length) > size {
		return nil, fmt.Errorf("%w: response of type %d, [%d, +%d) of %d bytes", ErrReport, f.Type, f.Offset, f.Length, size)
	}
	var list []Record
	b := m.Bytes[f.Offset : uint64(f.Offset)+uint64(f.Length)]
	for at := 0; at < len(b); {
		if len(b)-at < abi.ReportSize {
			return list, fmt.Errorf("%w: %d bytes left", ErrReport, len(b)-at)
		}
		r, ok := abi.ParseReport(b[at : at+abi.ReportSize])
		if !ok {
			return list, fmt.Errorf("%w: record at %d", ErrReport, at)
		}
		at += abi.ReportSize
		rec := Record{Report: r}
		if r.Type == abi.TypeConnectionAttrs {
			if len(b)-at < abi.StateRecordSize {
				return list, fmt.Errorf("%w: %d bytes left for a state record", ErrReport, len(b)-at)
			}
			s, ok := abi.ParseStateRecord(b[at : at+abi.StateRecordSize])
			if !ok {
				return list, fmt.Errorf("%w: state record at %d", ErrReport, at)
			}
			rec.State = &s
			at += abi.StateRecordSize
			if n := uint64(s.Unread); n > 0 {
				whole := (n + abi.ReportSize - 1) / abi.ReportSize * abi.ReportSize
				if whole > uint64(len(b)-at) {
					return list, fmt.Errorf("%w: %d bytes left for %d unread ones", ErrReport, len(b)-at, n)
				}
				rec.Unread = b[at : at+int(n)]
				at += int(whole)
			}
		}
		list = append(list, rec)
	}
	return list, nil
}

// BulkConnect is one connect request for many targets (CE04).
type BulkConnect struct {
	// Tuples are set tuples of attributes that hold for all targets, Attributes
	// how many.
	Tuples     []byte
	Attributes int
	Targets    []abi.Target
	// Control is memory for the control buffer: the tuples, and 72 bytes for
	// each target. At most 255 tuples and targets go into one request.
	Control DMA
	// Reports are buffers for reports; without any each target has a response
	// of its own.
	Reports []DMA
	// Tag returns a tag that nothing outstanding has.
	Tag func() uint32
	// Other gets the responses that belong to something else; nil drops them.
	Other func(abi.Fields)
}

// BulkConnect posts the request and calls each with the result of each target
// as it is told, in the order of the adapter. It consumes the queue meanwhile.
// When it returns without an error, nothing of b is the adapter's any more.
func (q *Queue) BulkConnect(ctx context.Context, b *BulkConnect, each func(Record)) error {
	ctl := append([]byte(nil), b.Tuples...)
	for _, t := range b.Targets {
		ctl = abi.AppendTuple(ctl, true, abi.AttrTarget, abi.AppendTarget(nil, t))
	}
	if n := b.Attributes + len(b.Targets); n > abi.MaxTuples || len(ctl) > len(b.Control.Bytes) {
		return fmt.Errorf("guestdriver: bulk connect: %d tuples, %d bytes of control buffer: %w", n, len(ctl), abi.StatusBadLength)
	}
	copy(b.Control.Bytes, ctl)
	f := abi.Fields{
		Type: abi.TypeConnect, Tag: b.Tag(), Aux: uint16(b.Attributes + len(b.Targets)),
		Base: b.Control.IOVA, Length: uint32(len(ctl)),
	}
	posted := map[uint32]DMA{}
	for _, m := range b.Reports {
		f.Flags = abi.FlagReport
		tag := b.Tag()
		posted[tag] = m
		if err := q.Post(ReportRequest(tag, m)); err != nil {
			return err
		}
	}
	if err := q.Post(f); err != nil {
		return err
	}
	cancels := map[uint32]bool{}
	for done := false; !done || len(posted)+len(cancels) > 0; {
		r, err := q.Next(ctx)
		if err != nil {
			return err
		}
		m, report := posted[r.Tag]
		switch {
		case report:
			delete(posted, r.Tag)
			list, err := ReadReport(r, m)
			if err != nil {
				return err
			}
			for _, rec := range list {
				done = done || rec.Tag == f.Tag && rec.Flags&abi.FlagFinal != 0
				each(rec)
			}
			if s := abi.Status(r.Aux); s == abi.StatusOK && !done {
				tag := b.Tag()
				posted[tag] = m
				if err := q.Post(ReportRequest(tag, m)); err != nil {
					return err
				}
			} else if s != abi.StatusOK && s != abi.StatusCancelled {
				return fmt.Errorf("guestdriver: report buffer: %w", s)
			}
		case r.Tag == f.Tag && r.Offset == abi.NoOrdinal:
			return fmt.Errorf("guestdriver: bulk connect: %w", abi.Status(r.Aux))
		case r.Tag == f.Tag:
			done = r.Flags&abi.FlagFinal != 0
			each(Record{Report: abi.Report{
				Tag: r.Tag, Status: abi.Status(r.Aux), Type: r.Type, Flags: r.Flags, Conn: r.Conn,
				Cookie: r.Base, Ordinal: r.Offset, LocalPort: uint16(r.Length),
			}})
		case cancels[r.Tag]:
			delete(cancels, r.Tag)
		case b.Other != nil:
			b.Other(r)
		}
		if !done || len(cancels) > 0 {
			continue
		}
		for tag := range posted { // what was not needed
			c := abi.Fields{Type: abi.TypeCancellation, Tag: b.Tag(), Offset: tag}
			cancels[c.Tag] = true
			if err := q.Post(c); err != nil {
				return err
			}
		}
	}
	return nil
}
