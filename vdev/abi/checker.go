// SPDX-License-Identifier: Apache-2.0

package abi

import (
	"encoding/binary"
	"fmt"
)

// CheckerRule is a rule of the protocol checker that a host broke (SPEC.md §15).
type CheckerRule uint16

// Rules.
const (
	CheckInRewritten    CheckerRule = 1  // IN_REWRITTEN
	CheckInWithdrawn    CheckerRule = 2  // IN_WITHDRAWN
	CheckOutOwner       CheckerRule = 3  // OUT_OWNER
	CheckOutWritten     CheckerRule = 4  // OUT_WRITTEN
	CheckOutEarly       CheckerRule = 5  // OUT_EARLY
	CheckBellNothing    CheckerRule = 6  // BELL_NOTHING
	CheckBellIndex      CheckerRule = 7  // BELL_INDEX
	CheckSendChanged    CheckerRule = 8  // SEND_CHANGED
	CheckBufferChanged  CheckerRule = 9  // BUFFER_CHANGED
	CheckControlChanged CheckerRule = 10 // CONTROL_CHANGED
	CheckReportOverlap  CheckerRule = 11 // REPORT_OVERLAP
)

// String returns the rule's name in SPEC.md §15.
func (r CheckerRule) String() string {
	names := [...]string{"", "IN_REWRITTEN", "IN_WITHDRAWN", "OUT_OWNER", "OUT_WRITTEN", "OUT_EARLY",
		"BELL_NOTHING", "BELL_INDEX", "SEND_CHANGED", "BUFFER_CHANGED", "CONTROL_CHANGED", "REPORT_OVERLAP"}
	if int(r) < len(names) && r != 0 {
		return names[r]
	}
	return "rule " + itoa(int(r))
}

// Places of a violation (SPEC.md §15).
const (
	PlaceInput   = 1
	PlaceOutput  = 2
	PlaceBuffer  = 3
	PlaceControl = 4
)

// Kinds of events of a tag (SPEC.md §15).
const (
	TagSeen     = 1 // seen in the table
	TagTaken    = 2
	TagAnswered = 3
	TagDone     = 4 // its terminal response was made
)

// Sizes of the value of CHECKER_REPORT (SPEC.md §15).
const (
	CheckerHeaderSize = 16
	CheckerEntrySize  = 160
	CheckerKept       = 32 // entries
	CheckerTagEvents  = 4  // of an entry
)

// TagEvent is one event of a tag. Kind 0 is none.
type TagEvent struct {
	Kind   uint8
	Type   Type
	Status Status
	Value  uint32 // input index, or length
	Uptime uint64
}

// CheckerEntry is one violation.
type CheckerEntry struct {
	Rule       CheckerRule
	Queue      uint8
	Place      uint8
	Index      uint32
	Address    uint64
	Tag        uint32
	Detail     uint32
	Uptime     uint64
	Descriptor [DescriptorSize]byte
	Found      [DescriptorSize]byte
	Events     [CheckerTagEvents]TagEvent
}

// String is one line for logs.
func (e *CheckerEntry) String() string {
	place := [...]string{"nowhere", "input table", "output table", "buffer", "control buffer"}[min(int(e.Place), PlaceControl)]
	s := fmt.Sprintf("%v: queue %d, %s, index %#x, address %#x, tag %#x, detail %#x",
		e.Rule, e.Queue, place, e.Index, e.Address, e.Tag, e.Detail)
	if e.Descriptor != [DescriptorSize]byte{} {
		s += fmt.Sprintf(", descriptor %x", e.Descriptor)
	}
	if e.Found != [DescriptorSize]byte{} {
		s += fmt.Sprintf(", found %x", e.Found)
	}
	for _, v := range e.Events {
		switch v.Kind {
		case TagSeen, TagTaken:
			s += fmt.Sprintf(", type %d %s at %d ns, index %d", v.Type, [...]string{"seen", "taken"}[v.Kind-TagSeen], v.Uptime, v.Value)
		case TagAnswered, TagDone:
			s += fmt.Sprintf(", answered by type %d at %d ns, status %d, length %d", v.Type, v.Uptime, uint16(v.Status), v.Value)
		}
	}
	return s
}

// CheckerReport is the value of CHECKER_REPORT.
type CheckerReport struct {
	Violations uint32 // since reset
	Looked     uint64 // requests and buffers remembered
	Entries    []CheckerEntry
}

// AppendCheckerReport appends the value.
func AppendCheckerReport(b []byte, r *CheckerReport) []byte {
	le := binary.LittleEndian
	b = le.AppendUint32(b, r.Violations)
	b = le.AppendUint32(b, uint32(len(r.Entries)))
	b = le.AppendUint64(b, r.Looked)
	for i := range r.Entries {
		e := &r.Entries[i]
		b = le.AppendUint16(b, uint16(e.Rule))
		b = append(b, e.Queue, e.Place)
		b = le.AppendUint32(b, e.Index)
		b = le.AppendUint64(b, e.Address)
		b = le.AppendUint32(b, e.Tag)
		b = le.AppendUint32(b, e.Detail)
		b = le.AppendUint64(b, e.Uptime)
		b = append(b, e.Descriptor[:]...)
		b = append(b, e.Found[:]...)
		for _, v := range e.Events {
			b = append(b, v.Kind, byte(v.Type))
			b = le.AppendUint16(b, uint16(v.Status))
			b = le.AppendUint32(b, v.Value)
			b = le.AppendUint64(b, v.Uptime)
		}
	}
	return b
}

// ParseCheckerReport parses the value; ok is false when its length does not fit
// what it says.
func ParseCheckerReport(b []byte) (r CheckerReport, ok bool) {
	le := binary.LittleEndian
	if len(b) < CheckerHeaderSize {
		return r, false
	}
	r.Violations, r.Looked = le.Uint32(b), le.Uint64(b[8:])
	n := uint64(le.Uint32(b[4:]))
	b = b[CheckerHeaderSize:]
	if n*CheckerEntrySize != uint64(len(b)) {
		return CheckerReport{}, false
	}
	for ; len(b) > 0; b = b[CheckerEntrySize:] {
		e := CheckerEntry{
			Rule: CheckerRule(le.Uint16(b)), Queue: b[2], Place: b[3], Index: le.Uint32(b[4:]),
			Address: le.Uint64(b[8:]), Tag: le.Uint32(b[16:]), Detail: le.Uint32(b[20:]), Uptime: le.Uint64(b[24:]),
			Descriptor: [DescriptorSize]byte(b[32:]), Found: [DescriptorSize]byte(b[64:]),
		}
		for i := range e.Events {
			v := b[96+16*i:]
			e.Events[i] = TagEvent{
				Kind: v[0], Type: Type(v[1]), Status: Status(le.Uint16(v[2:])), Value: le.Uint32(v[4:]), Uptime: le.Uint64(v[8:]),
			}
		}
		r.Entries = append(r.Entries, e)
	}
	return r, true
}
