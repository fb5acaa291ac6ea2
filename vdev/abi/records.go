// SPDX-License-Identifier: Apache-2.0

package abi

import "encoding/binary"

// Sizes of composite attribute values (SPEC.md §7).
const (
	HeldBufferSize    = 16
	BufferTableSize   = 16
	BufferEntrySize   = 48
	NotifyPatternSize = 16 // before the pattern
	MaxPattern        = 64
)

// StateRecord is the state of a connection (SPEC.md §7.1, CE09). Counts are
// payload bytes since the connection was opened, times are nanoseconds.
type StateRecord struct {
	Conn                                       uint64
	Local, Remote                              Address
	State, Protocol                            uint32
	Accepted, Sent, Acked, Received, Delivered uint64
	MSS                                        uint32
	Options                                    uint32 // [RecordSACK] ...
	SendWindow, ReceiveWindow                  uint32
	RTT, RTO                                   uint64
	Timers                                     uint64 // [TimerRetransmit] ...
	SendSequence, ReceiveSequence              uint32
	SendScale, ReceiveScale                    uint8
	Uptime                                     uint64
	Time, RecentTime                           uint32 // time stamps, RFC 7323
	Flags                                      uint32 // [RecordExact]
	Unread                                     uint32 // bytes received that follow the record
}

// RecordExact in the flags of a state record says that the connection left the
// adapter there.
const RecordExact = 1 << 0

// Options of a state record.
const (
	RecordSACK       = 1 << 0
	RecordTimestamps = 1 << 1
	RecordScaling    = 1 << 2
)

// Timers of a state record.
const (
	TimerRetransmit = 1 << 0
	TimerKeepAlive  = 1 << 1
	TimerTimeWait   = 1 << 2
	TimerPersist    = 1 << 3
)

// AppendStateRecord appends the 192 bytes of r.
func AppendStateRecord(buf []byte, r *StateRecord) []byte {
	le := binary.LittleEndian
	start := len(buf)
	buf = le.AppendUint64(buf, r.Conn)
	buf = AppendAddress(buf, r.Local)
	buf = AppendAddress(buf, r.Remote)
	buf = le.AppendUint32(buf, r.State)
	buf = le.AppendUint32(buf, r.Protocol)
	for _, v := range [...]uint64{r.Accepted, r.Sent, r.Acked, r.Received, r.Delivered} {
		buf = le.AppendUint64(buf, v)
	}
	for _, v := range [...]uint32{r.MSS, r.Options, r.SendWindow, r.ReceiveWindow} {
		buf = le.AppendUint32(buf, v)
	}
	for _, v := range [...]uint64{r.RTT, r.RTO, r.Timers} {
		buf = le.AppendUint64(buf, v)
	}
	buf = le.AppendUint32(buf, r.SendSequence)
	buf = le.AppendUint32(buf, r.ReceiveSequence)
	buf = append(buf, r.SendScale, r.ReceiveScale, 0, 0, 0, 0, 0, 0)
	buf = le.AppendUint64(buf, r.Uptime)
	buf = le.AppendUint32(buf, r.Time)
	buf = le.AppendUint32(buf, r.RecentTime)
	buf = le.AppendUint32(buf, r.Flags)
	buf = le.AppendUint32(buf, r.Unread)
	return append(buf, make([]byte, StateRecordSize-(len(buf)-start))...)
}

// ParseStateRecord parses a record; ok is false when the length or an address
// is wrong.
func ParseStateRecord(b []byte) (r StateRecord, ok bool) {
	if len(b) != StateRecordSize {
		return StateRecord{}, false
	}
	if r.Local, ok = ParseAddress(b[8:32]); !ok {
		return StateRecord{}, false
	}
	if r.Remote, ok = ParseAddress(b[32:56]); !ok {
		return StateRecord{}, false
	}
	le := binary.LittleEndian
	r.Conn = le.Uint64(b)
	r.State, r.Protocol = le.Uint32(b[56:]), le.Uint32(b[60:])
	r.Accepted, r.Sent, r.Acked = le.Uint64(b[64:]), le.Uint64(b[72:]), le.Uint64(b[80:])
	r.Received, r.Delivered = le.Uint64(b[88:]), le.Uint64(b[96:])
	r.MSS, r.Options = le.Uint32(b[104:]), le.Uint32(b[108:])
	r.SendWindow, r.ReceiveWindow = le.Uint32(b[112:]), le.Uint32(b[116:])
	r.RTT, r.RTO, r.Timers = le.Uint64(b[120:]), le.Uint64(b[128:]), le.Uint64(b[136:])
	r.SendSequence, r.ReceiveSequence = le.Uint32(b[144:]), le.Uint32(b[148:])
	r.SendScale, r.ReceiveScale = b[152], b[153]
	r.Uptime = le.Uint64(b[160:])
	r.Time, r.RecentTime = le.Uint32(b[168:]), le.Uint32(b[172:])
	r.Flags, r.Unread = le.Uint32(b[176:]), le.Uint32(b[180:])
	return r, true
}

// HeldBuffer is one entry of HELD_BUFFERS.
type HeldBuffer struct {
	Tag    uint32
	Length uint32
	Base   uint64
}

// AppendHeldBuffer appends the 16 bytes of h.
func AppendHeldBuffer(buf []byte, h HeldBuffer) []byte {
	buf = binary.LittleEndian.AppendUint32(buf, h.Tag)
	buf = binary.LittleEndian.AppendUint32(buf, h.Length)
	return binary.LittleEndian.AppendUint64(buf, h.Base)
}

// ParseHeldBuffer parses one entry; ok is false when b is not 16 bytes long.
func ParseHeldBuffer(b []byte) (h HeldBuffer, ok bool) {
	if len(b) != HeldBufferSize {
		return HeldBuffer{}, false
	}
	le := binary.LittleEndian
	return HeldBuffer{Tag: le.Uint32(b), Length: le.Uint32(b[4:]), Base: le.Uint64(b[8:])}, true
}

// BufferTable is the value of BUFFER_TABLE (MM16).
type BufferTable struct{ Base, Entries uint64 }

// AppendBufferTable appends the 16 bytes of t.
func AppendBufferTable(buf []byte, t BufferTable) []byte {
	buf = binary.LittleEndian.AppendUint64(buf, t.Base)
	return binary.LittleEndian.AppendUint64(buf, t.Entries)
}

// ParseBufferTable parses the value of BUFFER_TABLE; ok is false when b is not
// 16 bytes long.
func ParseBufferTable(b []byte) (t BufferTable, ok bool) {
	if len(b) != BufferTableSize {
		return BufferTable{}, false
	}
	return BufferTable{Base: binary.LittleEndian.Uint64(b), Entries: binary.LittleEndian.Uint64(b[8:])}, true
}

// BufferEntry is one entry of the host's table of buffer characteristics.
type BufferEntry struct{ Base, Length, Speed, Node, Group, Flags uint64 }

// AppendBufferEntry appends the 48 bytes of e.
func AppendBufferEntry(buf []byte, e BufferEntry) []byte {
	for _, v := range [...]uint64{e.Base, e.Length, e.Speed, e.Node, e.Group, e.Flags} {
		buf = binary.LittleEndian.AppendUint64(buf, v)
	}
	return buf
}

// ParseBufferEntry parses one entry; ok is false when b is not 48 bytes long.
func ParseBufferEntry(b []byte) (e BufferEntry, ok bool) {
	if len(b) != BufferEntrySize {
		return BufferEntry{}, false
	}
	le := binary.LittleEndian
	return BufferEntry{le.Uint64(b), le.Uint64(b[8:]), le.Uint64(b[16:]), le.Uint64(b[24:]), le.Uint64(b[32:]), le.Uint64(b[40:])}, true
}

// NotifyPattern is the value of NOTIFY_PATTERN (CE08).
type NotifyPattern struct {
	Mode    uint8 // 0 off, 1 at the start, 2 end marker
	Scope   uint8 // 0 own, 1 all
	Bytes   uint32
	Time    uint64 // ns
	Pattern []byte // a view of what was parsed
}

// AppendNotifyPattern appends p; a pattern longer than 64 bytes is the
// caller's mistake, and ParseNotifyPattern refuses it.
func AppendNotifyPattern(buf []byte, p NotifyPattern) []byte {
	buf = append(buf, p.Mode, p.Scope)
	buf = binary.LittleEndian.AppendUint16(buf, uint16(len(p.Pattern)))
	buf = binary.LittleEndian.AppendUint32(buf, p.Bytes)
	buf = binary.LittleEndian.AppendUint64(buf, p.Time)
	return append(buf, p.Pattern...)
}

// ParseNotifyPattern parses the value of NOTIFY_PATTERN. Status is BadLength
// when lengths do not fit, BadValue for an unknown mode or scope, or a mode
// that needs a pattern and has none.
func ParseNotifyPattern(b []byte) (p NotifyPattern, s Status) {
	if len(b) < NotifyPatternSize {
		return NotifyPattern{}, StatusBadLength
	}
	le := binary.LittleEndian
	n := int(le.Uint16(b[2:]))
	if n > MaxPattern || len(b) != NotifyPatternSize+n {
		return NotifyPattern{}, StatusBadLength
	}
	p = NotifyPattern{Mode: b[0], Scope: b[1], Bytes: le.Uint32(b[4:]), Time: le.Uint64(b[8:]), Pattern: b[NotifyPatternSize:]}
	if p.Mode > 2 || p.Scope > 1 || p.Mode != 0 && n == 0 {
		return NotifyPattern{}, StatusBadValue
	}
	return p, StatusOK
}
