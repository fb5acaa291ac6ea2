// SPDX-License-Identifier: Apache-2.0

package firmware

import (
	"errors"
	"net/netip"

	"toebox/firmware/engine"
	"toebox/vdev/abi"
)

// datagrams is UDP: endpoints with a peer, which connect makes, and without,
// which listen makes (SPEC.md §5.11).
type datagrams struct{}

// datagramCost is what a datagram counts in a turn at least, in bytes: turns of
// empty ones end, too.
const datagramCost = 512

func (datagrams) number() engine.Protocol { return engine.UDP }

func (datagrams) checkConnect(*abi.Target) abi.Status { return abi.StatusOK }

func (datagrams) checkListen(t *abi.Target, _ *values) abi.Status {
	if t.Backlog != 0 {
		return abi.StatusReserved
	}
	return abi.StatusOK
}

func (datagrams) listenPhase() phase { return open }

// listen has nothing left to do: to be bound is enough.
func (datagrams) listen(c *conn, _ *abi.Target) error {
	c.loose = true
	return nil
}

func (datagrams) linger(*queue, *conn) {}

// mayBeEmpty reports whether a buffer request may transfer nothing: a send of
// an empty datagram to the endpoint's peer.
func (q *queue) mayBeEmpty(f *abi.Fields) bool {
	c := q.conns[f.Conn]
	return f.Type == abi.TypeBufferSend && c != nil && c.phase == open && c.proto.number() == engine.UDP && !c.loose
}

func (datagrams) checkSend(c *conn, size uint32) abi.Status {
	d, ok := c.ep.(engine.Datagrams)
	if !ok {
		return abi.StatusNotSupported
	}
	n := int64(size)
	if c.loose {
		n -= abi.AddressSize
	}
	if n < 0 || n > int64(d.MaxDatagram()) {
		return abi.StatusBadLength
	}
	return abi.StatusOK
}

// send sends the datagrams of a turn. Each is answered at once: what the
// network does with it nobody can say.
func (datagrams) send(q *queue, c *conn) {
	for moved, left := 0, c.fetchable(); c.fetch != nil && moved < turnBytes && left > 0; left-- {
		r := c.fetch
		if q.check != nil {
			q.check.unchanged(r)
		}
		n, err := q.sendDatagram(c, r)
		s := statusOf(err)
		switch {
		case q.move.bad != nil:
			s, q.move.bad = abi.StatusBadMemory, nil
		case errors.Is(err, engine.ErrWouldBlock):
			c.full = true
			return
		case errors.Is(err, engine.ErrRefused):
			q.count(abi.CounterDatagramsRefused, 1)
		}
		if s == abi.StatusOK {
			q.count(abi.CounterDatagramsSent, 1)
			q.count(abi.CounterBytesSent, uint64(n))
			c.queued += uint64(n)
			c.acked = c.queued
		}
		moved += max(r.todo(), datagramCost)
		done := uint32(0)
		if s == abi.StatusOK {
			done = r.length - r.offset
		}
		q.endSend(c, r, s, done)
	}
	q.progressClose(c)
	q.sendSoon(c)
}

// sendDatagram hands one datagram to the network and returns how long its
// payload is.
func (q *queue) sendDatagram(c *conn, r *request) (int, error) {
	d, ok := c.ep.(engine.Datagrams)
	if !ok {
		return 0, engine.ErrNotSupported
	}
	m := &q.move
	m.r, m.pos, m.bad = r, 0, nil
	defer func() { m.r, m.piece = nil, nil }()
	n := int(r.length - r.offset)
	if !c.loose {
		if err := d.TakeError(); err != nil {
			return 0, err
		}
		return d.Write(n, q.looks.fill)
	}
	if err := q.fw.chip.Read(r.base+uint64(r.offset), q.header[:]); err != nil {
		m.bad = r
		return 0, err
	}
	to, ok := abi.ParseAddress(q.header[:])
	if !ok || !to.Addr.IsValid() || to.Prefix != 0 || to.Port == 0 || to.Addr.IsUnspecified() {
		return 0, engine.ErrBadAddress
	}
	m.pos = abi.AddressSize
	n -= abi.AddressSize
	return n, d.SendTo(netip.AddrPortFrom(to.Addr, to.Port), n, q.looks.fill)
}

// deliver moves one datagram into one buffer. A refusal by the peer's host goes
// to a buffer of the endpoint's own.
func (datagrams) deliver(q *queue, c *conn, r *request, _ int) (int, error) {
	d, ok := c.ep.(engine.Datagrams)
	if !ok {
		return 0, engine.ErrNotSupported
	}
	bulk := r.conn == nil
	if !bulk && !c.loose {
		if err := d.TakeError(); err != nil {
			q.count(abi.CounterDatagramsRefused, 1)
			q.returnBuffer(r, statusOf(err))
			return datagramCost, nil
		}
	}
	m := &q.move
	m.to, m.left, m.moved, m.err, m.head, m.size = r.base+uint64(r.offset), r.todo(), 0, nil, c.loose, 0
	q.place(c)
	err := d.Receive(q.looks.datagram)
	q.placed(m.moved)
	m.piece = nil
	switch {
	case err != nil:
		return 0, err
	case m.err != nil:
		q.count(abi.CounterDatagramsDropped, 1)
		q.returnBuffer(r, abi.StatusBadMemory)
		return datagramCost, nil
	}
	payload, header := m.moved, 0
	if c.loose {
		header = abi.AddressSize
		payload = max(0, payload-header)
	}
	c.delivered += uint64(payload)
	q.count(abi.CounterBytesReceived, uint64(m.size-header))
	q.count(abi.CounterBytesDelivered, uint64(payload))
	q.count(abi.CounterDatagramsDelivered, 1)
	q.delivered(c, r, payload)
	f := abi.Fields{
		Type: abi.TypeBufferReceive, Tag: r.tag, Base: r.base, Conn: c.id,
		Length: uint32(m.size), Offset: r.offset,
	}
	if m.size > m.moved {
		f.Aux = uint16(abi.StatusTruncated)
		q.count(abi.CounterDatagramsTruncated, 1)
	}
	q.removeBuffer(r)
	q.terminal(&f)
	q.settle(r)
	return max(m.moved, datagramCost), nil
}

// putDatagram copies one datagram to where the mover stands, as much of it as
// fits.
func (q *queue) putDatagram(from netip.AddrPort, p []byte) {
	m := &q.move
	m.size = len(p)
	if m.head {
		m.size += abi.AddressSize
		q.deliver(abi.AppendAddress(q.header[:0], abi.Address{Addr: from.Addr(), Port: from.Port()}))
	}
	q.deliver(p)
}

// setGroup joins or leaves a multicast group and returns the groups before.
func (c *conn) setGroup(t abi.Tuple) ([]byte, abi.Status) {
	d, ok := c.ep.(engine.Datagrams)
	a, valid := abi.ParseAddress(t.Value)
	switch {
	case !ok:
		return nil, abi.StatusNotSupported
	case len(t.Value) != abi.AddressSize:
		return nil, abi.StatusBadLength
	case !valid || a.Prefix != 0 || a.Port != 0:
		return nil, abi.StatusBadValue
	}
	old := c.groups()
	if t.Attr == abi.AttrJoin {
		return old, statusOf(d.Join(a.Addr))
	}
	return old, statusOf(d.Leave(a.Addr))
}

// groups are the multicast groups of an endpoint, an ADDRESS each.
func (c *conn) groups() []byte {
	d, ok := c.ep.(engine.Datagrams)
	if !ok {
		return nil
	}
	var b []byte
	for _, g := range d.Groups() {
		b = abi.AppendAddress(b, abi.Address{Addr: g})
	}
	return b
}
