// SPDX-License-Identifier: Apache-2.0

package guestdrivertest

import (
	"encoding/binary"
	"net/netip"

	"toebox/vdev/abi"
)

// attributeLocked does the tuples of an attribute control request.
func (f *Fake) attributeLocked(qi int, c *conn, r abi.Fields) {
	t := abi.TypeAdapterAttrs
	if r.Type == abi.TypeConnectionAttr {
		t = abi.TypeConnectionAttrs
	}
	if r.Type == abi.TypeConnectionAttr && r.Conn != 0 && c == nil && f.listeners[r.Conn] == nil {
		f.answerLocked(qi, Answer(r, t, abi.StatusBadConnection))
		return
	}
	buf := f.bytesLocked(r.Base, int(r.Length))
	a := Answer(r, t, abi.StatusOK)
	for at, left := 0, r.Aux; left > 0; left-- {
		tu, next, ok := abi.NextTuple(buf, at)
		if !ok {
			a.Aux = uint16(abi.StatusBadControlBuffer)
			break
		}
		at = next
		s, length := f.tupleLocked(c, f.listeners[r.Conn], tu)
		abi.PutTupleResult(buf[tu.Offset:], s, length)
		if s != abi.StatusOK {
			a.Aux = uint16(abi.StatusPartial)
		}
	}
	f.answerLocked(qi, a)
}

// tupleLocked does a tuple of a connection, a listener, or, with neither, of the
// adapter.
func (f *Fake) tupleLocked(c *conn, l *listener, tu abi.Tuple) (s abi.Status, length uint32) {
	scalars := f.scalars
	switch {
	case c != nil:
		scalars = c.scalars
	case l != nil:
		scalars = l.scalars
	}
	s, v := f.valueLocked(c, scalars, tu.Attr)
	length = uint32(len(v))
	switch {
	case s != abi.StatusOK:
	case tu.Set && tu.Attr == abi.AttrBufferTable:
		t, ok := abi.ParseBufferTable(tu.Value)
		if !ok || t.Entries > 256 {
			return abi.StatusBadValue, 0
		}
		f.table = append([]byte(nil), tu.Value...)
		copy(tu.Value, v)
	case tu.Set && len(tu.Value) != 8:
		s = abi.StatusReadOnly
	case tu.Set:
		now := binary.LittleEndian.Uint64(tu.Value)
		if s = judge(tu.Attr, now); s == abi.StatusOK {
			scalars[tu.Attr] = now
			copy(tu.Value, v)
		}
	case len(v) > len(tu.Value):
		s = abi.StatusShortBuffer
	default:
		copy(tu.Value, v)
	}
	return s, length
}

// judge judges the value of a policy as SPEC.md §7 does, of those that the fake
// has bounds for.
func judge(attr abi.Attribute, v uint64) abi.Status {
	most := uint64(1<<64 - 1)
	switch attr {
	case abi.AttrDelayCount, abi.AttrDelayBytes:
		if v == 0 {
			return abi.StatusBadValue
		}
	case abi.AttrDelayCriteria:
		most = 31
	case abi.AttrHistoryThreshold:
		most = 100
	case abi.AttrBufferTableMode:
		most = 1
	case abi.AttrPoolWeights:
		most = 0xff01ffff
	case abi.AttrPriority:
		most = 7
	case abi.AttrCompletionPoint:
		most = 2
	}
	if v > most {
		return abi.StatusBadValue
	}
	return abi.StatusOK
}

func (f *Fake) valueLocked(c *conn, scalars map[abi.Attribute]uint64, attr abi.Attribute) (abi.Status, []byte) {
	addr := func(a netip.Addr, port uint16) []byte {
		return abi.AppendAddress(nil, abi.Address{Addr: a, Prefix: uint8(a.BitLen()), Port: port})
	}
	switch attr {
	case abi.AttrMAC:
		return abi.StatusOK, []byte{0x52, 0x54, 0, 1, 2, 3}
	case abi.AttrAddress4:
		return abi.StatusOK, addr(address(false), 0)
	case abi.AttrAddress6:
		return abi.StatusOK, addr(address(true), 0)
	case abi.AttrResolvers:
		return abi.StatusOK, addr(netip.MustParseAddr("10.0.2.3"), 0)
	case abi.AttrRoutes:
		return abi.StatusOK, make([]byte, 6000) // longer than a driver expects
	case abi.AttrCounters:
		return abi.StatusOK, make([]byte, 8*abi.NumCounters)
	case abi.AttrBufferTable:
		return abi.StatusOK, f.table
	case abi.AttrLocal:
		if c != nil {
			return abi.StatusOK, addr(c.local.Addr(), c.local.Port())
		}
	case abi.AttrRemote:
		if c != nil {
			return abi.StatusOK, addr(c.remote.Addr(), c.remote.Port())
		}
	case abi.AttrMTU, abi.AttrNagle, abi.AttrLinger, abi.AttrKeepalive, abi.AttrKeepaliveIdle,
		abi.AttrKeepaliveInterval, abi.AttrReceiveWindow, abi.AttrSendBuffer,
		abi.AttrGroup, abi.AttrGroupBy, abi.AttrPeekWait, abi.AttrBufferTableMode:
		return abi.StatusOK, binary.LittleEndian.AppendUint64(nil, scalars[attr])
	}
	// Policies, which the fake remembers, and does not obey.
	for _, info := range abi.Attributes() {
		if info.ID == attr && attr >= abi.AttrPriority && attr < abi.AttrRTT && info.Settable && info.Kind == abi.KindScalar {
			v, ok := scalars[attr]
			if !ok {
				v = info.Default
			}
			return abi.StatusOK, binary.LittleEndian.AppendUint64(nil, v)
		}
	}
	return abi.StatusUnknownAttribute, nil
}
