// SPDX-License-Identifier: Apache-2.0

package firmware

import (
	"encoding/binary"
	"math"

	"toebox/firmware/engine"
	"toebox/vdev/abi"
)

// values are the settable attributes of connections: scalars by id, and the
// pattern of NOTIFY_PATTERN, nil while it is off. They are shared by all
// connections that have the same and never changed in place.
type values struct {
	scalars [abi.AttrSkip - abi.AttrProtocol + 1]uint64
	pattern *pattern
}

func (v *values) of(a abi.Attribute) uint64 { return v.scalars[a-abi.AttrProtocol] }

// with returns a copy in which a is n.
func (v *values) with(a abi.Attribute, n uint64) *values {
	w := *v
	w.scalars[a-abi.AttrProtocol] = n
	return &w
}

// bytes is the value of NOTIFY_PATTERN.
func (v *values) bytes() []byte {
	if v.pattern == nil {
		return make([]byte, abi.NotifyPatternSize)
	}
	return v.pattern.value
}

// plain reports whether gathered notices go at once.
func (v *values) plain() bool {
	return v.of(abi.AttrNotifyCount) == 1 && v.of(abi.AttrNotifyAdaptive) == 0
}

// setting is what this firmware knows of an attribute of connections that can
// be set.
type setting struct {
	min, max uint64
	engine   bool // an option of the engine, too
	option   engine.Option
	inverse  bool   // the option's 1 is the attribute's 0
	always   bool   // the engine's default is not the attribute's
	zero     bool   // 0 is good, too: off
	bits     uint64 // that may be set; 0: any
}

// Bounds of this firmware, not of SPEC.md.
const (
	minBuffer  = 4 << 10
	maxWindow  = 8 << 20
	maxSendBuf = 16 << 20
	maxTime    = math.MaxInt64 // ns

	maxNotifyCount = 1 << 20
	maxDelayCount  = 1 << 20
	minTransfer    = 4 << 10
	maxTransfer    = 1 << 20
)

func makeSettings() map[abi.Attribute]setting {
	option := func(lo, hi uint64, o engine.Option) setting {
		return setting{min: lo, max: hi, engine: true, option: o}
	}
	window := option(minBuffer, maxWindow, engine.OptReceiveWindow)
	window.always = true
	buffer := option(minBuffer, maxSendBuf, engine.OptSendBuffer)
	buffer.always = true
	nagle := option(0, 1, engine.OptNoDelay)
	nagle.inverse = true
	return map[abi.Attribute]setting{
		abi.AttrConnectLimit:      {min: 1, max: maxTime},
		abi.AttrListenLimit:       {max: maxTime},
		abi.AttrBacklog:           {min: 1, max: maxBacklog},
		abi.AttrReceiveWindow:     window,
		abi.AttrSendBuffer:        buffer,
		abi.AttrNagle:             nagle,
		abi.AttrSACK:              option(0, 1, engine.OptSACK),
		abi.AttrKeepalive:         option(0, 1, engine.OptKeepAlive),
		abi.AttrKeepaliveIdle:     option(1, maxTime, engine.OptKeepAliveIdle),
		abi.AttrKeepaliveInterval: option(1, maxTime, engine.OptKeepAliveInterval),
		abi.AttrKeepaliveCount:    option(1, 127, engine.OptKeepAliveCount),
		abi.AttrUserTimeout:       option(0, maxTime, engine.OptUserTimeout),
		abi.AttrCongestion:        option(0, math.MaxInt64, engine.OptCongestion),
		abi.AttrTOS:               option(0, 255, engine.OptTOS),
		abi.AttrTTL:               option(1, 255, engine.OptTTL),
		abi.AttrPriority:          {max: expedited - 1},
		abi.AttrDelayCriteria:     {max: enoughAll},
		abi.AttrDelayCount:        {min: 1, max: maxDelayCount},
		abi.AttrDelayBytes:        {min: 1, max: maxDelayCount << 10},
		abi.AttrDelayAge:          {max: maxTime},
		abi.AttrDelayDynamic:      {max: 1},
		abi.AttrASAPMode:          {max: 1},
		abi.AttrKeepSends:         {max: 1},
		abi.AttrCompletionPoint:   {max: 2},
		abi.AttrLinger:            {max: math.MaxUint64},
		abi.AttrSteering:          {max: math.MaxUint32},
		abi.AttrQoSClass:          {max: 255},
		abi.AttrGroup:             {max: math.MaxUint32},
		abi.AttrGroupBy:           {max: byAll},
		abi.AttrPoolWeights:       {max: weightBits, bits: weightBits},
		abi.AttrBufferPolicy:      {max: policyHistory},
		abi.AttrBufferWait:        {max: maxTime},
		abi.AttrHistoryCount:      {min: 1, max: historyMost},
		abi.AttrHistoryTime:       {max: maxTime},
		abi.AttrHistoryThreshold:  {max: 100},
		abi.AttrHistoryMode:       {max: 1},
		abi.AttrDMAWhen:           {max: 1},
		abi.AttrStarvation:        {max: maxTime},
		abi.AttrNotifyTime:        {max: maxTime},
		abi.AttrNotifyBytes:       {max: maxWindow},
		abi.AttrNotifyDynamic:     {max: dynamicAll},
		abi.AttrNotifyMax:         {max: maxTime},
		abi.AttrLinkTransferSize:  {min: minTransfer, max: maxTransfer},
		abi.AttrGatherThreshold:   {max: math.MaxUint32},
		abi.AttrExpedited:         {max: 1},
		abi.AttrCombine:           {max: 1},
		abi.AttrNotifyCount:       {max: maxNotifyCount},
		abi.AttrNotifyAmount:      {max: maxNotifyCount * abi.ReportSize},
		abi.AttrNotifyFirst:       {max: maxTime},
		abi.AttrNotifyLast:        {max: maxTime},
		abi.AttrNotifyCeiling:     {max: maxTime},
		abi.AttrNotifyAdaptive:    {max: adaptAll},
		abi.AttrNotifyData:        {max: maxWindow},
		abi.AttrNotifyFailures:    {max: 1},
		abi.AttrNotifyReport:      {max: 1},
		abi.AttrBroadcast:         option(0, 1, engine.OptBroadcast),
		abi.AttrMulticastTTL:      option(0, 255, engine.OptMulticastTTL),
		abi.AttrMulticastLoop:     option(0, 1, engine.OptMulticastLoop),
		abi.AttrCarryOver:         {max: 1},
		abi.AttrPlacement:         {max: placeAdaptive},
		abi.AttrPlacementBudget:   {max: math.MaxInt64},
		abi.AttrPeek:              {max: maxWindow},
		abi.AttrPeekWait:          {max: maxTime},
		abi.AttrSkip:              {max: math.MaxUint32},
		abi.AttrReportPeriod:      {min: uint64(minReportPeriod), max: maxTime, zero: true},
	}
}

func (s *setting) check(v uint64) abi.Status {
	switch {
	case s.engine && s.option == engine.OptCongestion && v != 0:
		return abi.StatusNotSupported
	case v == 0 && s.zero:
	case v < s.min || v > s.max || s.bits != 0 && v&^s.bits != 0:
		return abi.StatusBadValue
	}
	return abi.StatusOK
}

// apply sets the engine's option.
func (s *setting) apply(ep engine.Endpoint, v uint64) abi.Status {
	n := int64(v)
	if s.inverse {
		n = 1 - n
	}
	return statusOf(ep.SetOption(s.option, n))
}

// applyOptions sets on a new endpoint all that differs from the engine's own
// defaults, which are those of SPEC.md §7 except where noted.
func (f *Firmware) applyOptions(c *conn) abi.Status {
	first := abi.StatusOK
	for a, s := range f.settings {
		if !c.means(a) {
			continue
		}
		if n := c.attrs.of(a); s.engine && (s.always || n != f.table[a].Default) {
			if st := s.apply(c.ep, n); st != abi.StatusOK && first == abi.StatusOK {
				first = st
			}
		}
	}
	return first
}

// withTuple returns the values with those of a set tuple in them.
func (f *Firmware) withTuple(v *values, t abi.Tuple) (*values, abi.Status) {
	n, s := f.checkSet(t)
	if s == abi.StatusOK && t.Attr == abi.AttrNotifyPattern {
		w := *v
		if w.pattern, s = newPattern(t.Value); s == abi.StatusOK {
			return &w, s
		}
	}
	if s != abi.StatusOK {
		return v, s
	}
	return v.with(t.Attr, n), abi.StatusOK
}

// checkSet checks a set tuple of a connection, and returns a scalar's value.
func (f *Firmware) checkSet(t abi.Tuple) (uint64, abi.Status) {
	info, known := f.table[t.Attr]
	switch {
	case !known || !info.Connection:
		return 0, abi.StatusUnknownAttribute
	case !info.Settable:
		return 0, abi.StatusReadOnly
	case info.Kind == abi.KindScalar && len(t.Value) != 8:
		return 0, abi.StatusBadLength
	}
	if t.Attr == abi.AttrNotifyPattern {
		_, s := newPattern(t.Value)
		return 0, s
	}
	s, built := f.settings[t.Attr]
	if !built {
		return 0, abi.StatusNotSupported
	}
	n := binary.LittleEndian.Uint64(t.Value)
	return n, s.check(n)
}

// setConnection sets an attribute of c and returns the value before.
func (q *queue) setConnection(c *conn, t abi.Tuple) ([]byte, abi.Status) {
	switch {
	case !c.means(t.Attr):
		return nil, abi.StatusNotSupported
	case t.Attr == abi.AttrJoin, t.Attr == abi.AttrLeave:
		defer q.regroup(c)
		return c.setGroup(t)
	}
	n, s := q.fw.checkSet(t)
	if s != abi.StatusOK {
		return nil, s
	}
	if t.Attr == abi.AttrNotifyPattern {
		old := c.attrs.bytes()
		c.attrs, s = q.fw.withTuple(c.attrs, t)
		return old, s
	}
	old := c.attrs.of(t.Attr)
	set := q.fw.settings[t.Attr]
	if set.engine {
		if s := set.apply(c.ep, n); s != abi.StatusOK {
			return nil, s
		}
	}
	c.attrs = c.attrs.with(t.Attr, n)
	if t.Attr == abi.AttrCompletionPoint && c.phase == open {
		q.completeSends(c)
	}
	if t.Attr == abi.AttrSendBuffer {
		c.full = false
		q.sendSoon(c)
	}
	q.delayAnew(c)
	switch t.Attr {
	case abi.AttrReportPeriod:
		q.armReport(c)
	case abi.AttrPriority, abi.AttrStarvation, abi.AttrExpedited:
		q.reorder(c)
	case abi.AttrQoSClass:
		q.load.class(c)
	case abi.AttrDelayCriteria, abi.AttrDelayCount, abi.AttrDelayBytes, abi.AttrDelayAge, abi.AttrDelayDynamic, abi.AttrASAPMode:
		q.switchParking(c)
		q.sendSoon(c)
	case abi.AttrReceiveWindow:
		if c.squeezed != 0 {
			q.window(c)
		}
	}
	switch t.Attr {
	case abi.AttrBufferPolicy:
		if c.choice == nil || c.choice.state != choicePeeked {
			q.emptied(c)
		}
		q.regroup(c)
	case abi.AttrPeek:
		if c.phase == open {
			q.receiveSoon(c)
		}
	case abi.AttrDMAWhen, abi.AttrGroup, abi.AttrGroupBy, abi.AttrPriority, abi.AttrQoSClass:
		q.regroup(c)
	}
	return scalar(old), abi.StatusOK
}

// getConnection returns an attribute of c.
func (q *queue) getConnection(c *conn, a abi.Attribute) ([]byte, abi.Status) {
	info, known := q.fw.table[a]
	if !known || !info.Connection {
		return nil, abi.StatusUnknownAttribute
	}
	switch {
	case !c.means(a):
		return nil, abi.StatusNotSupported
	case a == abi.AttrJoin, a == abi.AttrLeave:
		return c.groups(), abi.StatusOK
	}
	if info.Settable {
		if info.Kind != abi.KindScalar {
			return c.attrs.bytes(), abi.StatusOK
		}
		return scalar(c.attrs.of(a)), abi.StatusOK
	}
	i := c.ep.Info()
	switch a {
	case abi.AttrProtocol:
		return scalar(uint64(i.Protocol)), abi.StatusOK
	case abi.AttrLocal:
		return abi.AppendAddress(nil, abi.Address{Addr: i.Local.Addr(), Port: i.Local.Port()}), abi.StatusOK
	case abi.AttrRemote:
		return abi.AppendAddress(nil, abi.Address{Addr: i.Remote.Addr(), Port: i.Remote.Port()}), abi.StatusOK
	case abi.AttrState:
		return scalar(uint64(i.State)), abi.StatusOK
	case abi.AttrRTT:
		return scalar(uint64(i.RTT)), abi.StatusOK
	case abi.AttrCongestionWindow:
		return scalar(uint64(i.Cwnd) * uint64(i.MSS)), abi.StatusOK
	case abi.AttrBytesSent:
		return scalar(c.base.acked + c.queued), abi.StatusOK
	case abi.AttrBytesAcked:
		return scalar(c.base.acked + min(i.Acked, c.queued)), abi.StatusOK
	case abi.AttrBytesReceived:
		return scalar(c.base.received + i.Received), abi.StatusOK
	case abi.AttrBytesDelivered:
		return scalar(c.base.received + c.delivered), abi.StatusOK
	case abi.AttrSegmentsSent:
		return scalar(i.SegmentsSent), abi.StatusOK
	case abi.AttrSegmentsReceived:
		return scalar(i.SegmentsRecvd), abi.StatusOK
	case abi.AttrRetransmits:
		return scalar(i.Retransmits), abi.StatusOK
	case abi.AttrHeldBuffers:
		return c.heldBuffers(), abi.StatusOK
	case abi.AttrRecord:
		return q.appendRecord(nil, c), abi.StatusOK
	case abi.AttrMSS:
		return scalar(uint64(i.MSS)), abi.StatusOK
	case abi.AttrHistory:
		return q.historyValue(c), abi.StatusOK
	}
	return nil, abi.StatusNotSupported
}

// heldBuffers lists what the adapter holds for c: sends, then receive buffers,
// each in order.
func (c *conn) heldBuffers() []byte {
	b := make([]byte, 0, c.heldSize())
	for _, l := range []*requestList{&c.sends, &c.buffers, c.early()} {
		for r := l.front; r != nil; r = r.next {
			b = abi.AppendHeldBuffer(b, abi.HeldBuffer{Tag: r.tag, Length: r.length, Base: r.base})
		}
	}
	return b
}

// heldSize is the length of heldBuffers.
func (c *conn) heldSize() int { return abi.HeldBufferSize * (c.sends.n + c.buffers.n + c.early().n) }

func scalar(v uint64) []byte { return binary.LittleEndian.AppendUint64(nil, v) }
