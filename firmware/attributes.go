// SPDX-License-Identifier: Apache-2.0

package firmware

import (
	"encoding/binary"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"unicode/utf8"

	"toebox/firmware/engine"
	"toebox/vdev/abi"
)

// adapter holds the adapter's own attributes.
type adapter struct {
	outThreshold   atomic.Uint64 // 0: 1/8 of the table
	maxConnections atomic.Uint64
	sendCache      atomic.Uint64
	table          atomic.Pointer[table]

	mu        sync.Mutex // guards the rest
	address   [2]abi.Address
	domain    string
	aliases   []abi.Address
	announced []abi.Address
	resolvers []abi.Address
	routes    []Route
	mtu       uint64
	moved     bool // addresses or routes are not those of reset
}

// Bounds of attributes (SPEC.md §7).
const (
	maxAliases   = 16
	maxResolvers = 4
	maxRoutes    = 64
	maxString    = 255
)

// resetAttributes gives all attributes their reset values. No worker runs.
func (f *Firmware) resetAttributes() {
	var v values
	scalars := make(map[abi.Attribute]uint64)
	for a, info := range f.table {
		n := info.Default
		if d, ok := f.config.Defaults[a]; ok && info.Settable && info.Kind == abi.KindScalar {
			if s, built := f.settings[a]; !info.Connection || built && s.check(d) == abi.StatusOK {
				n = d
			}
		}
		if info.Connection && info.Settable && info.Kind == abi.KindScalar {
			v.scalars[a-abi.AttrProtocol] = n
		}
		scalars[a] = n
	}
	f.defaults.Store(&v)
	a := &f.adapter
	a.outThreshold.Store(scalars[abi.AttrOutThreshold])
	a.maxConnections.Store(scalars[abi.AttrMaxConnections])
	a.sendCache.Store(scalars[abi.AttrSendCache])
	f.spill.on.Store(false)
	f.spill.threshold.Store(0)
	if n := scalars[abi.AttrSpillThreshold]; n != f.table[abi.AttrSpillThreshold].Default {
		f.spill.threshold.Store(int64(min(n, maxMemory)))
	}
	if t := a.table.Load(); t != nil {
		f.memory.release(len(t.copy))
	}
	a.table.Store(&table{keep: scalars[abi.AttrBufferTableMode] == 1})
	f.memory.limit.Store(int64(min(scalars[abi.AttrMemorySize], maxMemory)))

	a.mu.Lock()
	defer a.mu.Unlock()
	moved := a.moved
	a.address = [2]abi.Address{f.config.Address4, f.config.Address6}
	a.aliases, a.announced = nil, nil
	a.domain = f.config.Domain
	a.resolvers = f.config.Resolvers
	a.routes = f.config.Routes
	a.mtu = uint64(f.config.MTU)
	a.moved = false
	if moved {
		f.setAddressesLocked(a.address, nil)
		f.setRoutesLocked(a.routes)
	}
}

// maxMemory bounds MEMORY_SIZE, which a host may set: it is memory of ours.
const maxMemory = 1 << 30

// requestAttributes gets and sets attributes (SPEC.md §5.10).
func (q *queue) requestAttributes(f *abi.Fields) {
	var c *conn
	if f.Conn != 0 {
		var s abi.Status
		if c, s = q.lookup(f.Conn); s != abi.StatusOK {
			q.refuse(f, s)
			return
		}
	}
	defer q.controlDone()
	buf, s := q.control(f)
	if s == abi.StatusOK && f.Aux == 0 {
		s = abi.StatusBadControlBuffer
	}
	if s != abi.StatusOK {
		q.refuse(f, s)
		return
	}
	if q.check != nil {
		q.check.ctl = append(q.check.ctl[:0], buf...)
	}
	done, failed := uint32(0), uint32(abi.NoOrdinal)
	off := 0
	for i := range uint32(f.Aux) {
		t, next, ok := abi.NextTuple(buf, off)
		if !ok {
			s = abi.StatusBadControlBuffer
			failed = min(failed, i)
			break
		}
		ts := q.tuple(f, c, t)
		if ts == abi.StatusOK {
			done++
		} else {
			failed = min(failed, i)
			s = abi.StatusPartial
		}
		stored := abi.TupleHeaderSize
		if ts == abi.StatusOK {
			_, n := abi.TupleResult(buf[off:])
			stored += min(int(n), len(t.Value))
		}
		if q.check != nil {
			q.check.control(f, off, q.check.ctl[off:min(next, len(buf))])
		}
		q.count(abi.CounterControlWrites, 1)
		if err := q.fw.chip.Write(f.Base+uint64(off), buf[off:off+stored]); err != nil {
			s = abi.StatusBadMemory
			failed = min(failed, i)
			break
		}
		off = next
	}
	q.terminal(&abi.Fields{
		Type: responseOf(f.Type), Aux: uint16(s), Tag: f.Tag, Conn: f.Conn, Length: done, Offset: failed,
	})
}

// tuple carries out one tuple and stores its result in the copy of the control
// buffer.
func (q *queue) tuple(f *abi.Fields, c *conn, t abi.Tuple) abi.Status {
	var out []byte
	var s abi.Status
	if t.Set {
		q.count(abi.CounterAttributeSets, 1)
	} else {
		q.count(abi.CounterAttributeGets, 1)
	}
	if c != nil && !t.Set && t.Attr == abi.AttrHeldBuffers {
		// A list of millions is not written to find that it does not fit.
		if n := c.heldSize(); n > len(t.Value) {
			abi.PutTupleResult(q.ctl[t.Offset:], abi.StatusShortBuffer, uint32(n))
			return abi.StatusShortBuffer
		}
	}
	switch {
	case f.Type == abi.TypeAdapterAttr && !t.Set && t.Attr == abi.AttrRecords:
		out, s = q.allRecords(t.Value)
	case f.Type == abi.TypeAdapterAttr && t.Set:
		out, s = q.fw.setAdapter(t)
	case f.Type == abi.TypeAdapterAttr:
		out, s = q.fw.getAdapter(t.Attr)
	case c != nil && t.Set:
		out, s = q.setConnection(c, t)
	case c != nil:
		out, s = q.getConnection(c, t.Attr)
	case !t.Set && t.Attr == abi.AttrRecord:
		out, s = q.namedRecord(t.Value)
	case t.Set:
		out, s = q.fw.setDefault(t)
	default:
		out, s = q.fw.getDefault(t.Attr)
	}
	n := uint32(len(out))
	switch {
	case s != abi.StatusOK:
		n = uint32(len(t.Value))
	case len(out) <= len(t.Value):
		copy(t.Value, out)
	case !t.Set:
		s = abi.StatusShortBuffer
	}
	abi.PutTupleResult(q.ctl[t.Offset:], s, n)
	return s
}

func (f *Firmware) setDefault(t abi.Tuple) ([]byte, abi.Status) {
	for {
		old := f.defaults.Load()
		next, s := f.withTuple(old, t)
		if s != abi.StatusOK {
			return nil, s
		}
		if f.defaults.CompareAndSwap(old, next) {
			if t.Attr == abi.AttrNotifyPattern {
				return old.bytes(), abi.StatusOK
			}
			return scalar(old.of(t.Attr)), abi.StatusOK
		}
	}
}

func (f *Firmware) getDefault(a abi.Attribute) ([]byte, abi.Status) {
	info, known := f.table[a]
	switch {
	case !known || !info.Connection:
		return nil, abi.StatusUnknownAttribute
	case !info.Settable, info.Kind == abi.KindAddress:
		return nil, abi.StatusBadConnection // it has no default
	case info.Kind != abi.KindScalar:
		return f.defaults.Load().bytes(), abi.StatusOK
	}
	return scalar(f.defaults.Load().of(a)), abi.StatusOK
}

func (f *Firmware) getAdapter(id abi.Attribute) ([]byte, abi.Status) {
	info, known := f.table[id]
	if !known || info.Connection {
		return nil, abi.StatusUnknownAttribute
	}
	a := &f.adapter
	a.mu.Lock()
	defer a.mu.Unlock()
	var n uint64
	switch id {
	case abi.AttrMAC:
		return f.config.MAC[:], abi.StatusOK
	case abi.AttrAddress4:
		return abi.AppendAddress(nil, a.address[0]), abi.StatusOK
	case abi.AttrAddress6:
		return abi.AppendAddress(nil, a.address[1]), abi.StatusOK
	case abi.AttrDomain:
		return []byte(a.domain), abi.StatusOK
	case abi.AttrAliases:
		return appendAddresses(a.aliases), abi.StatusOK
	case abi.AttrAnnounce:
		return appendAddresses(a.announced), abi.StatusOK
	case abi.AttrResolvers:
		return appendAddresses(a.resolvers), abi.StatusOK
	case abi.AttrRoutes:
		return appendRoutes(a.routes), abi.StatusOK
	case abi.AttrSerial:
		return []byte(f.config.Serial), abi.StatusOK
	case abi.AttrFirmware:
		return []byte(f.config.Name), abi.StatusOK
	case abi.AttrCounters:
		b := make([]byte, 0, 8*abi.NumCounters)
		for _, c := range f.counters.Snapshot() {
			b = binary.LittleEndian.AppendUint64(b, c)
		}
		return b, abi.StatusOK
	case abi.AttrCheckerReport:
		return f.violations.value(), abi.StatusOK
	case abi.AttrBufferTable:
		return abi.AppendBufferTable(nil, a.table.Load().at), abi.StatusOK
	case abi.AttrMTU:
		n = a.mtu
	case abi.AttrMemorySize:
		n = uint64(f.memory.limit.Load())
	case abi.AttrSpillThreshold:
		n = uint64(f.spillAt())
	case abi.AttrMemoryUsed:
		n = f.memory.load()
	case abi.AttrOutThreshold:
		n = a.outThreshold.Load()
	case abi.AttrMaxConnections:
		n = a.maxConnections.Load()
	case abi.AttrSendCache:
		n = a.sendCache.Load()
	case abi.AttrBufferTableMode:
		if a.table.Load().keep {
			n = 1
		}
	case abi.AttrEndpointCount:
		n = uint64(f.dir.count())
	case abi.AttrQueueCount:
		n = f.queueCount()
	case abi.AttrLink:
		if !f.config.NoLink {
			n = 1
		}
	default:
		n = info.Default
	}
	return scalar(n), abi.StatusOK
}

func (f *Firmware) queueCount() uint64 {
	n := uint64(0)
	for i := range f.queues {
		if q := f.queues[i].Load(); q != nil && q.currentState() == abi.QueueRunning {
			n++
		}
	}
	return n
}

// setAdapter sets an attribute of the adapter and returns the value before.
func (f *Firmware) setAdapter(t abi.Tuple) ([]byte, abi.Status) {
	info, known := f.table[t.Attr]
	switch {
	case !known || info.Connection:
		return nil, abi.StatusUnknownAttribute
	case !info.Settable:
		return nil, abi.StatusReadOnly
	case info.Kind == abi.KindScalar && len(t.Value) != 8:
		return nil, abi.StatusBadLength
	}
	old, s := f.getAdapter(t.Attr)
	if s != abi.StatusOK {
		return nil, s
	}
	if info.Kind == abi.KindScalar {
		return old, f.setAdapterScalar(t.Attr, binary.LittleEndian.Uint64(t.Value))
	}
	a := &f.adapter
	a.mu.Lock()
	defer a.mu.Unlock()
	switch t.Attr {
	case abi.AttrAddress4, abi.AttrAddress6:
		s = f.setAddressLocked(t)
	case abi.AttrAliases:
		s = f.setAliasesLocked(t.Value)
	case abi.AttrAnnounce:
		s = f.announceLocked(t.Value)
	case abi.AttrDomain:
		switch v := t.Value; {
		case len(v) > maxString:
			s = abi.StatusBadLength
		case !utf8.Valid(v) || hasNUL(v):
			s = abi.StatusBadValue
		default:
			a.domain = string(v)
		}
	case abi.AttrResolvers:
		var list []abi.Address
		if list, s = parseAddresses(t.Value, maxResolvers); s == abi.StatusOK {
			for _, r := range list {
				if !r.Addr.IsValid() {
					return nil, abi.StatusBadValue
				}
			}
			a.resolvers = list
		}
	case abi.AttrBufferTable:
		s = f.setBufferTableLocked(t.Value)
	case abi.AttrRoutes:
		var list []Route
		if list, s = parseRoutes(t.Value); s == abi.StatusOK {
			if s = f.setRoutesLocked(list); s == abi.StatusOK {
				a.routes, a.moved = list, true
			}
		}
	default:
		s = abi.StatusNotSupported
	}
	return old, s
}

func (f *Firmware) setAdapterScalar(id abi.Attribute, v uint64) abi.Status {
	a := &f.adapter
	switch id {
	case abi.AttrMTU:
		return f.setMTU(v)
	case abi.AttrBufferTableMode:
		return f.setTableMode(v)
	case abi.AttrMemorySize:
		if v == 0 || v > maxMemory {
			return abi.StatusBadValue
		}
		f.memory.limit.Store(int64(v))
		f.watchMemory()
	case abi.AttrSpillThreshold:
		if v > maxMemory {
			return abi.StatusBadValue
		}
		f.spill.threshold.Store(int64(v))
		f.watchMemory()
	case abi.AttrOutThreshold:
		if v > 1<<abi.MaxRingLog2 {
			return abi.StatusBadValue
		}
		a.outThreshold.Store(v)
	case abi.AttrMaxConnections:
		if v > 1<<24 {
			return abi.StatusBadValue
		}
		a.maxConnections.Store(v)
	case abi.AttrSendCache:
		if v > maxSendCache {
			return abi.StatusBadValue
		}
		a.sendCache.Store(v)
	default:
		return abi.StatusNotSupported
	}
	return abi.StatusOK
}

// setMTU is for engines that can change it.
func (f *Firmware) setMTU(v uint64) abi.Status {
	a := &f.adapter
	a.mu.Lock()
	defer a.mu.Unlock()
	if v < 576 || v > uint64(f.config.MTU) {
		return abi.StatusBadValue
	}
	if v == a.mtu {
		return abi.StatusOK
	}
	e, ok := f.engine.(interface{ SetMTU(int) error })
	if !ok {
		return abi.StatusNotSupported
	}
	if err := e.SetMTU(int(v)); err != nil {
		return statusOf(err)
	}
	a.mtu = v
	return abi.StatusOK
}

func (f *Firmware) setAddressLocked(t abi.Tuple) abi.Status {
	v, ok := abi.ParseAddress(t.Value)
	i, v6 := 0, t.Attr == abi.AttrAddress6
	if v6 {
		i = 1
	}
	switch {
	case len(t.Value) != abi.AddressSize:
		return abi.StatusBadLength
	case !ok, v.Port != 0, v.Addr.IsValid() && (v.Addr.Is6() != v6 || v.Addr.IsUnspecified() || v.Addr.IsMulticast()):
		return abi.StatusBadValue
	}
	next := f.adapter.address
	next[i] = v
	if s := f.setAddressesLocked(next, f.adapter.aliases); s != abi.StatusOK {
		return s
	}
	f.adapter.address, f.adapter.moved = next, true
	return abi.StatusOK
}

// setAliasesLocked sets the addresses that the adapter has besides its own.
func (f *Firmware) setAliasesLocked(v []byte) abi.Status {
	list, s := parseAddresses(v, maxAliases)
	if s != abi.StatusOK {
		return s
	}
	for _, a := range list {
		if !a.Addr.IsValid() || a.Port != 0 || a.Addr.IsUnspecified() || a.Addr.IsMulticast() {
			return abi.StatusBadValue
		}
	}
	if e, ok := f.engine.(engine.Announcer); ok {
		e.Expect()
	}
	if s := f.setAddressesLocked(f.adapter.address, list); s != abi.StatusOK {
		return s
	}
	f.adapter.aliases, f.adapter.moved = list, true
	return abi.StatusOK
}

// announceLocked has the link know of addresses of the adapter.
func (f *Firmware) announceLocked(v []byte) abi.Status {
	list, s := parseAddresses(v, maxAliases)
	if s != abi.StatusOK {
		return s
	}
	var told []netip.Addr
	for _, a := range list {
		same := func(o abi.Address) bool { return o.Addr == a.Addr }
		if !a.Addr.IsValid() || !slices.ContainsFunc(append(f.adapter.address[:], f.adapter.aliases...), same) {
			return abi.StatusBadAddress
		}
		told = append(told, a.Addr)
	}
	e, ok := f.engine.(engine.Announcer)
	if !ok {
		return abi.StatusNotSupported
	}
	e.Announce(told)
	f.adapter.announced = list
	return abi.StatusOK
}

func (f *Firmware) setAddressesLocked(own [2]abi.Address, aliases []abi.Address) abi.Status {
	var p []netip.Prefix
	for _, a := range append(own[:], aliases...) {
		if a.Addr.IsValid() {
			p = append(p, netip.PrefixFrom(a.Addr, int(a.Prefix)))
		}
	}
	return statusOf(f.engine.SetAddresses(p))
}

func (f *Firmware) setRoutesLocked(list []Route) abi.Status {
	var r []engine.Route
	for _, a := range list {
		r = append(r, engine.Route{
			Destination: netip.PrefixFrom(a.Destination.Addr, int(a.Destination.Prefix)).Masked(),
			Gateway:     a.Gateway.Addr,
		})
	}
	return statusOf(f.engine.SetRoutes(r))
}

func parseAddresses(b []byte, most int) ([]abi.Address, abi.Status) {
	if len(b)%abi.AddressSize != 0 || len(b) > most*abi.AddressSize {
		return nil, abi.StatusBadLength
	}
	var list []abi.Address
	for ; len(b) > 0; b = b[abi.AddressSize:] {
		a, ok := abi.ParseAddress(b[:abi.AddressSize])
		if !ok {
			return nil, abi.StatusBadValue
		}
		list = append(list, a)
	}
	return list, abi.StatusOK
}

func parseRoutes(b []byte) ([]Route, abi.Status) {
	list, s := parseAddresses(b, 2*maxRoutes)
	switch {
	case s != abi.StatusOK:
		return nil, s
	case len(list)%2 != 0:
		return nil, abi.StatusBadLength
	}
	var routes []Route
	for i := 0; i < len(list); i += 2 {
		r := Route{Destination: list[i], Gateway: list[i+1]}
		if !r.Destination.Addr.IsValid() || r.Gateway.Addr.IsValid() && r.Gateway.Addr.Is6() != r.Destination.Addr.Is6() {
			return nil, abi.StatusBadValue
		}
		routes = append(routes, r)
	}
	return routes, abi.StatusOK
}

func appendAddresses(list []abi.Address) []byte {
	var b []byte
	for _, a := range list {
		b = abi.AppendAddress(b, a)
	}
	return b
}

func appendRoutes(list []Route) []byte {
	var b []byte
	for _, r := range list {
		b = abi.AppendAddress(b, r.Destination)
		b = abi.AppendAddress(b, r.Gateway)
	}
	return b
}

func hasNUL(b []byte) bool {
	for _, c := range b {
		if c == 0 {
			return true
		}
	}
	return false
}
