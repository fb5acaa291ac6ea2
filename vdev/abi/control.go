// SPDX-License-Identifier: Apache-2.0

package abi

import (
	"encoding/binary"
	"net/netip"
)

// Sizes in control buffers (SPEC.md §6).
const (
	TupleHeaderSize = 8
	TupleAlign      = 8
	AddressSize     = 24
	TargetSize      = 64
	TerminateSize   = 16
	CancelSize      = 16
	ReportSize      = 64
	StateRecordSize = 192
	MaxTuples       = 255
)

const tupleSet = 1 << 15

// Tuple is one tuple of a control buffer.
type Tuple struct {
	Set    bool
	Attr   Attribute
	Offset int    // of the tuple in the control buffer
	Value  []byte // a view of the control buffer; its length is the room of a get
}

// NextTuple returns the tuple at offset off and the offset of the next. ok is
// false when it does not fit in buf.
func NextTuple(buf []byte, off int) (t Tuple, next int, ok bool) {
	if off < 0 || off > len(buf) || len(buf)-off < TupleHeaderSize {
		return Tuple{}, 0, false
	}
	h := buf[off:]
	op := binary.LittleEndian.Uint16(h)
	n := uint64(binary.LittleEndian.Uint32(h[4:]))
	if n > uint64(len(h)-TupleHeaderSize) {
		return Tuple{}, 0, false
	}
	end := TupleHeaderSize + int(n)
	next = off + (end+TupleAlign-1)&^(TupleAlign-1)
	return Tuple{
		Set: op&tupleSet != 0, Attr: Attribute(op &^ tupleSet), Offset: off,
		Value: h[TupleHeaderSize:end:end],
	}, next, true
}

// PutTupleResult stores the status and the value's true length in the tuple
// header at the start of h.
func PutTupleResult(h []byte, s Status, length uint32) {
	binary.LittleEndian.PutUint16(h[2:], uint16(s))
	binary.LittleEndian.PutUint32(h[4:], length)
}

// TupleResult reads what the adapter stored in the tuple header at the start
// of h.
func TupleResult(h []byte) (s Status, length uint32) {
	return Status(binary.LittleEndian.Uint16(h[2:])), binary.LittleEndian.Uint32(h[4:])
}

// AppendTuple appends a tuple with a value, padded to the next tuple.
func AppendTuple(buf []byte, set bool, a Attribute, value []byte) []byte {
	op := uint16(a)
	if set {
		op |= tupleSet
	}
	buf = binary.LittleEndian.AppendUint16(buf, op)
	buf = binary.LittleEndian.AppendUint16(buf, 0)
	buf = binary.LittleEndian.AppendUint32(buf, uint32(len(value)))
	buf = append(buf, value...)
	for len(buf)%TupleAlign != 0 {
		buf = append(buf, 0)
	}
	return buf
}

// AppendGet appends a tuple that asks for an attribute of at most room bytes.
func AppendGet(buf []byte, a Attribute, room int) []byte {
	return AppendTuple(buf, false, a, make([]byte, room))
}

// AppendSetScalar appends a tuple that sets a scalar.
func AppendSetScalar(buf []byte, a Attribute, v uint64) []byte {
	var b [8]byte
	binary.LittleEndian.PutUint64(b[:], v)
	return AppendTuple(buf, true, a, b[:])
}

// Address is an ADDRESS value (SPEC.md §6.1): an address with a prefix length
// and a port, each of which may be unused.
type Address struct {
	Addr   netip.Addr // invalid: family 0
	Prefix uint8
	Port   uint16
}

// AppendAddress appends the 24 bytes of a.
func AppendAddress(buf []byte, a Address) []byte {
	var b [AddressSize]byte
	b[0] = putAddr(b[8:24], a.Addr)
	b[1] = a.Prefix
	binary.LittleEndian.PutUint16(b[2:], a.Port)
	return append(buf, b[:]...)
}

// ParseAddress parses the 24 bytes of an ADDRESS; ok is false when the length,
// the family, the prefix or a reserved byte is wrong.
func ParseAddress(b []byte) (a Address, ok bool) {
	if len(b) != AddressSize || binary.LittleEndian.Uint32(b[4:]) != 0 {
		return Address{}, false
	}
	if b[0] != 0 {
		if a.Addr, ok = addrOf(b[0], b[8:24]); !ok {
			return Address{}, false
		}
		if int(b[1]) > a.Addr.BitLen() {
			return Address{}, false
		}
	}
	a.Prefix, a.Port = b[1], binary.LittleEndian.Uint16(b[2:])
	return a, true
}

// putAddr stores an address in 16 bytes and returns its family.
func putAddr(b []byte, a netip.Addr) uint8 {
	switch {
	case a.Is4() || a.Is4In6():
		v := a.Unmap().As4()
		copy(b, v[:])
		return 4
	case a.Is6():
		v := a.As16()
		copy(b, v[:])
		return 6
	}
	return 0
}

// addrOf refuses IPv4 addresses in IPv6 clothes: each address has one form.
func addrOf(family uint8, b []byte) (netip.Addr, bool) {
	switch family {
	case 4:
		return netip.AddrFrom4([4]byte(b[:4])), true
	case 6:
		a := netip.AddrFrom16([16]byte(b[:16]))
		return a, !a.Is4In6()
	}
	return netip.Addr{}, false
}

// Target is a target of connect or listen (SPEC.md §6.2).
type Target struct {
	Protocol uint8
	Count    uint16
	Local    netip.AddrPort // port 0 or an unspecified address: the adapter picks
	Remote   netip.AddrPort // invalid for listen
	V6       bool
	Limit    uint64 // ns
	Backlog  uint32
	Cookie   uint64
}

// AppendTarget appends the 64 bytes of t.
func AppendTarget(buf []byte, t Target) []byte {
	var b [TargetSize]byte
	b[0] = t.Protocol
	b[1] = 4
	if t.V6 {
		b[1] = 6
	}
	binary.LittleEndian.PutUint16(b[2:], t.Count)
	binary.LittleEndian.PutUint16(b[4:], t.Local.Port())
	binary.LittleEndian.PutUint16(b[6:], t.Remote.Port())
	putAddr(b[8:24], t.Local.Addr())
	putAddr(b[24:40], t.Remote.Addr())
	binary.LittleEndian.PutUint64(b[40:], t.Limit)
	binary.LittleEndian.PutUint32(b[48:], t.Backlog)
	binary.LittleEndian.PutUint64(b[56:], t.Cookie)
	return append(buf, b[:]...)
}

// ParseTarget parses a TARGET. Status is BadLength, BadProtocol, BadAddress
// (family, or an IPv4-mapped address), Reserved or BadValue (count 0, or ports
// beyond 65535).
func ParseTarget(b []byte) (t Target, s Status) {
	if len(b) != TargetSize {
		return Target{}, StatusBadLength
	}
	t = Target{
		Protocol: b[0], Count: binary.LittleEndian.Uint16(b[2:]), V6: b[1] == 6,
		Limit: binary.LittleEndian.Uint64(b[40:]), Backlog: binary.LittleEndian.Uint32(b[48:]),
		Cookie: binary.LittleEndian.Uint64(b[56:]),
	}
	local, ok := addrOf(b[1], b[8:24])
	remote, ok2 := addrOf(b[1], b[24:40])
	if !ok || !ok2 {
		return Target{}, StatusBadAddress
	}
	lp, rp := binary.LittleEndian.Uint16(b[4:]), binary.LittleEndian.Uint16(b[6:])
	t.Local, t.Remote = netip.AddrPortFrom(local, lp), netip.AddrPortFrom(remote, rp)
	switch {
	case t.Protocol != 6 && t.Protocol != 17:
		return Target{}, StatusBadProtocol
	case binary.LittleEndian.Uint32(b[52:]) != 0:
		return Target{}, StatusReserved
	case t.Count == 0, rp != 0 && int(rp)+int(t.Count) > 65536, rp == 0 && lp != 0 && int(lp)+int(t.Count) > 65536:
		return Target{}, StatusBadValue
	}
	return t, StatusOK
}

// AppendTerminate appends the 16 bytes of a TERMINATE (SPEC.md §6.3).
func AppendTerminate(buf []byte, conn uint64, mode uint32) []byte {
	buf = binary.LittleEndian.AppendUint64(buf, conn)
	buf = binary.LittleEndian.AppendUint32(buf, mode)
	return append(buf, 0, 0, 0, 0)
}

// AppendCancel appends the 16 bytes of a CANCEL (SPEC.md §6.3).
func AppendCancel(buf []byte, conn uint64, tag uint32) []byte {
	return AppendTerminate(buf, conn, tag)
}

// ParsePair parses a TERMINATE (id, mode) or a CANCEL (id, tag).
func ParsePair(b []byte) (conn uint64, v uint32, s Status) {
	if len(b) != TerminateSize {
		return 0, 0, StatusBadLength
	}
	if binary.LittleEndian.Uint32(b[12:]) != 0 {
		return 0, 0, StatusReserved
	}
	return binary.LittleEndian.Uint64(b), binary.LittleEndian.Uint32(b[8:]), StatusOK
}

// Report is one record of a report buffer (SPEC.md §6.4).
type Report struct {
	Tag       uint32
	Status    Status
	Type      Type
	Flags     Flags
	Conn      uint64
	Cookie    uint64 // of the target; of an arrival the listener's id
	Ordinal   uint32
	Protocol  uint8
	LocalPort uint16
	Remote    netip.AddrPort
	Uptime    uint64 // ns
}

// AppendReport appends the 64 bytes of r.
func AppendReport(buf []byte, r Report) []byte {
	var b [ReportSize]byte
	binary.LittleEndian.PutUint32(b[0:], r.Tag)
	binary.LittleEndian.PutUint16(b[4:], uint16(r.Status))
	b[6], b[7] = uint8(r.Type), uint8(r.Flags)
	binary.LittleEndian.PutUint64(b[8:], r.Conn)
	binary.LittleEndian.PutUint64(b[16:], r.Cookie)
	binary.LittleEndian.PutUint32(b[24:], r.Ordinal)
	b[28] = putAddr(b[40:56], r.Remote.Addr())
	b[29] = r.Protocol
	binary.LittleEndian.PutUint16(b[30:], r.LocalPort)
	binary.LittleEndian.PutUint16(b[32:], r.Remote.Port())
	binary.LittleEndian.PutUint64(b[56:], r.Uptime)
	return append(buf, b[:]...)
}

// ParseReport parses one record; ok is false when b is not 64 bytes long or
// the family is unknown.
func ParseReport(b []byte) (r Report, ok bool) {
	if len(b) != ReportSize {
		return Report{}, false
	}
	var addr netip.Addr
	if b[28] != 0 {
		if addr, ok = addrOf(b[28], b[40:56]); !ok {
			return Report{}, false
		}
	}
	return Report{
		Tag: binary.LittleEndian.Uint32(b), Status: Status(binary.LittleEndian.Uint16(b[4:])),
		Type: Type(b[6]), Flags: Flags(b[7]), Conn: binary.LittleEndian.Uint64(b[8:]),
		Cookie: binary.LittleEndian.Uint64(b[16:]), Ordinal: binary.LittleEndian.Uint32(b[24:]),
		Protocol: b[29], LocalPort: binary.LittleEndian.Uint16(b[30:]),
		Remote: netip.AddrPortFrom(addr, binary.LittleEndian.Uint16(b[32:])),
		Uptime: binary.LittleEndian.Uint64(b[56:]),
	}, true
}
