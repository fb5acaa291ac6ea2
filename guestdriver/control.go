// SPDX-License-Identifier: Apache-2.0

package guestdriver

import (
	"context"
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"syscall"
	"time"

	"toebox/vdev/abi"
)

func timeout(d time.Duration) (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.Background(), d)
}

// AttributeError is an attribute that could not be read or set.
type AttributeError struct {
	Op     string // "get" or "set"
	Attr   abi.Attribute
	Status abi.Status
}

func (e *AttributeError) Error() string {
	name := ""
	for _, info := range abi.Attributes() {
		if info.ID == e.Attr {
			name = info.Name + " "
		}
	}
	return fmt.Sprintf("guestdriver: %s attribute %s%#04x: %v", e.Op, name, uint16(e.Attr), e.Status)
}

// Unwrap returns the status.
func (e *AttributeError) Unwrap() error { return e.Status }

// attributeRoom is what a first get offers; a longer value is asked for again.
const attributeRoom = 4<<10 - abi.TupleHeaderSize

// Attribute returns the value of an attribute of the adapter or, if a is one
// of connections, of connection conn; conn 0 names the defaults.
func (a *Adapter) Attribute(ctx context.Context, conn uint64, attr abi.Attribute) ([]byte, error) {
	v, s, n, err := a.attribute(ctx, conn, attr, nil, attributeRoom)
	if err == nil && s == abi.StatusShortBuffer && int(n) > attributeRoom && int(n) <= blockSize-abi.TupleHeaderSize {
		v, s, _, err = a.attribute(ctx, conn, attr, nil, int(n))
	}
	if err != nil {
		return nil, err
	}
	if s != abi.StatusOK {
		return nil, &AttributeError{"get", attr, s}
	}
	return v, nil
}

// SetAttribute sets an attribute.
func (a *Adapter) SetAttribute(ctx context.Context, conn uint64, attr abi.Attribute, value []byte) error {
	if len(value) > blockSize-abi.TupleHeaderSize {
		return &AttributeError{"set", attr, abi.StatusBadLength}
	}
	_, s, _, err := a.attribute(ctx, conn, attr, value, len(value))
	if err != nil {
		return err
	}
	if s != abi.StatusOK {
		return &AttributeError{"set", attr, s}
	}
	switch attr {
	case abi.AttrAddress4, abi.AttrAddress6, abi.AttrAliases, abi.AttrRoutes:
		a.noteAddress(attr, value)
	}
	return nil
}

// attribute runs one tuple: a set if set is not nil, else a get with room
// bytes. It returns the value, the tuple's status and the value's true length.
func (a *Adapter) attribute(ctx context.Context, conn uint64, attr abi.Attribute, set []byte, room int) ([]byte, abi.Status, uint32, error) {
	ln := a.lanes[0]
	f := abi.Fields{Type: abi.TypeAdapterAttr, Aux: 1}
	if attr >= abi.AttrProtocol {
		f.Type, f.Conn = abi.TypeConnectionAttr, conn
		if c := a.conn(conn); c != nil {
			ln = c.onLane()
		} else if l := a.listener(conn); l != nil {
			ln = l.lane()
		}
	}
	buf, err := a.controlBuffer(abi.TupleHeaderSize + room)
	if err != nil {
		return nil, 0, 0, err
	}
	clear(buf.data[:abi.TupleHeaderSize+room])
	h := buf.data
	op := uint16(attr)
	if set != nil {
		op |= 1 << 15
		copy(h[abi.TupleHeaderSize:], set)
	}
	binary.LittleEndian.PutUint16(h, op)
	binary.LittleEndian.PutUint32(h[4:], uint32(room))
	f.Base, f.Length = buf.iova, uint32((abi.TupleHeaderSize+room+7)&^7)
	if int(f.Length) > len(buf.data) {
		f.Length = uint32(len(buf.data))
	}
	res, err := ln.control(ctx, request{kind: kindAttribute, call: newCall(), buf: buf}, f)
	if err != nil {
		return nil, 0, 0, err
	}
	defer a.ctl.release(buf)
	if s := abi.Status(res.fields.Aux); s != abi.StatusOK && s != abi.StatusPartial {
		return nil, s, 0, nil
	}
	// One copy, then the copy is judged.
	got := append([]byte(nil), buf.data[:abi.TupleHeaderSize+room]...)
	s, n := abi.TupleResult(got)
	if s == abi.StatusOK && int64(n) > int64(room) {
		a.bad.length.Add(1)
		return nil, abi.StatusBadLength, n, nil
	}
	if s != abi.StatusOK {
		return nil, s, n, nil
	}
	return got[abi.TupleHeaderSize : abi.TupleHeaderSize+int(n)], s, n, nil
}

func (a *Adapter) controlBuffer(n int) (*buffer, error) {
	if buf := a.ctl.alloc(classFor(n), false); buf != nil {
		return buf, nil
	}
	return nil, errNoDMA
}

// Scalar returns an attribute that is a number.
func (a *Adapter) Scalar(ctx context.Context, conn uint64, attr abi.Attribute) (uint64, error) {
	v, err := a.Attribute(ctx, conn, attr)
	if err != nil {
		return 0, err
	}
	if len(v) != 8 {
		return 0, &AttributeError{"get", attr, abi.StatusBadLength}
	}
	return binary.LittleEndian.Uint64(v), nil
}

// SetScalar sets an attribute that is a number.
func (a *Adapter) SetScalar(ctx context.Context, conn uint64, attr abi.Attribute, v uint64) error {
	return a.SetAttribute(ctx, conn, attr, scalarBytes(v))
}

func scalarBytes(v uint64) []byte { return binary.LittleEndian.AppendUint64(nil, v) }

// Addresses returns an attribute that is one or several addresses.
func (a *Adapter) Addresses(ctx context.Context, conn uint64, attr abi.Attribute) ([]abi.Address, error) {
	v, err := a.Attribute(ctx, conn, attr)
	if err != nil {
		return nil, err
	}
	var all []abi.Address
	for ; len(v) >= abi.AddressSize; v = v[abi.AddressSize:] {
		ad, ok := abi.ParseAddress(v[:abi.AddressSize])
		if !ok {
			break
		}
		all = append(all, ad)
	}
	if len(v) != 0 {
		return nil, &AttributeError{"get", attr, abi.StatusBadLength}
	}
	return all, nil
}

// MAC returns the adapter's address on its link.
func (a *Adapter) MAC(ctx context.Context) (net.HardwareAddr, error) {
	v, err := a.Attribute(ctx, 0, abi.AttrMAC)
	if err == nil && len(v) != 6 {
		err = &AttributeError{"get", abi.AttrMAC, abi.StatusBadLength}
	}
	return net.HardwareAddr(v), err
}

// MTU returns the adapter's MTU.
func (a *Adapter) MTU(ctx context.Context) (int, error) {
	v, err := a.Scalar(ctx, 0, abi.AttrMTU)
	return int(v), err
}

// Counters returns the adapter's counters in the order of SPEC.md §13.
func (a *Adapter) Counters(ctx context.Context) ([]uint64, error) {
	v, err := a.Attribute(ctx, 0, abi.AttrCounters)
	if err != nil {
		return nil, err
	}
	all := make([]uint64, len(v)/8)
	for i := range all {
		all[i] = binary.LittleEndian.Uint64(v[i*8:])
	}
	return all, nil
}

// target is the other end, or the place, of a connect or listen request.
type target struct {
	network string
	addr    netip.AddrPort
}

// scalarAttr is an attribute for a target.
type scalarAttr struct {
	attr  abi.Attribute
	value uint64
}

// carryAttrs are the attributes of connections that are to survive a stop.
func (a *Adapter) carryAttrs() []scalarAttr {
	if !a.opts.CarryOver {
		return nil
	}
	return []scalarAttr{{abi.AttrCarryOver, 1}}
}

// openTarget runs a connect or listen request with one target and returns its
// result. The time limit, if not 0, is the adapter's. Attributes hold for it.
func (ln *lane) openTarget(ctx context.Context, r request, t abi.Target, attrs ...scalarAttr) (result, error) {
	var tuples []byte
	for _, s := range attrs {
		tuples = abi.AppendSetScalar(tuples, s.attr, s.value)
	}
	tuples = abi.AppendTuple(tuples, true, abi.AttrTarget, abi.AppendTarget(nil, t))
	return ln.openTuples(ctx, r, tuples, 1+len(attrs))
}

// openTuples runs a connect or listen request with n tuples, one of them of a
// target, and returns its result.
func (ln *lane) openTuples(ctx context.Context, r request, tuples []byte, n int) (result, error) {
	buf, err := ln.a.controlBuffer(len(tuples))
	if err != nil {
		return result{}, &statusError{"socket", syscall.ENOBUFS, abi.StatusNoMemory}
	}
	r.buf = buf
	copy(buf.data, tuples)
	f := abi.Fields{Type: abi.TypeConnect, Aux: uint16(n), Base: buf.iova, Length: uint32(len(tuples))}
	if r.kind == kindListen {
		f.Type = abi.TypeListen
	}
	res, err := ln.control(ctx, r, f)
	if err == nil {
		ln.a.ctl.release(buf)
	}
	return res, err
}

// connected acts on a connection completion: if it says yes, the connection
// exists from here on, whether or not the caller still waits.
func (ln *lane) connected(r request, f *abi.Fields) {
	a := ln.a
	s := abi.Status(f.Aux)
	if s != abi.StatusOK {
		a.finish(r, result{err: statusErr("connect", s)})
		return
	}
	t := r.call.remote
	local := &net.TCPAddr{IP: net.IP(t.local(a).AsSlice()), Port: int(uint16(f.Length))}
	c := newConn(ln, f.Conn, t.network, local, net.TCPAddrFromAddrPort(t.addr))
	c.born = r.call.born
	if !a.enter(c) {
		if f.Conn == 0 || a.conn(f.Conn) != nil {
			a.bad.conn.Add(1)
		} else {
			c.abort()
		}
		a.finish(r, result{err: statusErr("connect", abi.StatusNoMemory)})
		return
	}
	c.begin()
	if !r.call.deliver(result{conn: c}) {
		a.ctl.release(r.buf)
		c.abort()
	}
}

// local returns the adapter's address of the target's family.
func (t *target) local(a *Adapter) netip.Addr {
	return a.localFor(t.addr.Addr().Is6())
}
