// SPDX-License-Identifier: Apache-2.0

package firmware

import (
	"net/netip"
	"time"

	"toebox/vdev/abi"
)

// notice is a connection completion, a listen response or a connection arrival
// that the host has not been told (SPEC.md §14.1):
//
//	new --> gathered, held or riding --> reporting --> told
//
// What goes at once skips the second, what goes as a response of its own the
// third. While it waits it is charged to adapter memory.
type notice struct {
	alarm // its ceiling, while held, riding or reporting
	place noticePlace

	f       abi.Fields // its response, but for tag and FINAL
	job     *job       // whose target it is of; nil: an arrival
	conn    *conn      // stands still until the host was told; nil: a failure, or a listener
	report  bool       // through a report buffer
	missed  bool       // no report buffer was there
	final   bool       // its record is the last of its request
	charged bool
	due     uint64 // its ceiling, policy clock

	// Of the record.
	protocol uint8
	port     uint16 // local
	remote   netip.AddrPort
	uptime   time.Duration

	scan scan // of a held one

	prev, next *notice // in its place

	// With others of the same request or listener.
	origin         *origin
	elder, younger *notice
}

type noticePlace uint8

const (
	placeNone      noticePlace = iota
	placeGathered              // until a criterion is met for all there
	placeHeld                  // until bytes of its connection came
	placeRiding                // a failure, until the next release
	placeReporting             // released, until there is a report buffer
	numPlaces
)

// noticeCharge is what a notice that waits is charged.
const noticeCharge = 256

// origin is a request or listener of which notices wait.
type origin struct{ oldest, youngest *notice }

func (o *origin) add(n *notice) {
	n.origin, n.elder = o, o.youngest
	if o.youngest != nil {
		o.youngest.younger = n
	} else {
		o.oldest = n
	}
	o.youngest = n
}

func (o *origin) remove(n *notice) {
	if n.elder != nil {
		n.elder.younger = n.younger
	} else {
		o.oldest = n.younger
	}
	if n.younger != nil {
		n.younger.elder = n.elder
	} else {
		o.youngest = n.elder
	}
	n.origin, n.elder, n.younger = nil, nil, nil
}

// noticeList is a list of notices in order.
type noticeList struct {
	front, back *notice
	n           int
}

func (l *noticeList) push(n *notice) {
	n.prev, n.next = l.back, nil
	if l.back != nil {
		l.back.next = n
	} else {
		l.front = n
	}
	l.back = n
	l.n++
}

func (l *noticeList) remove(n *notice) {
	if n.prev != nil {
		n.prev.next = n.next
	} else {
		l.front = n.next
	}
	if n.next != nil {
		n.next.prev = n.prev
	} else {
		l.back = n.prev
	}
	n.prev, n.next = nil, nil
	l.n--
}

// notices are those of a queue that wait.
type notices struct {
	lists  [numPlaces]noticeList
	held   timers[*notice] // held and riding
	late   timers[*notice] // reporting
	gather gather
	tempo  tempo
	last   uint64 // when one went out last, policy clock
	any    bool   // one went out
	spare  *notice
	look   look
}

// put lets n wait in a place.
func (w *notices) put(n *notice, p noticePlace) {
	n.place = p
	w.lists[p].push(n)
	when := alarmAt(n.due)
	switch p {
	case placeHeld, placeRiding:
		w.held.set(n, when)
	case placeReporting:
		w.late.set(n, when)
	}
}

// take takes n out of its place.
func (w *notices) take(n *notice) {
	switch n.place {
	case placeNone:
		return
	case placeHeld, placeRiding:
		w.held.clear(n)
	case placeReporting:
		w.late.clear(n)
	}
	w.lists[n.place].remove(n)
	n.place = placeNone
}

// newNotice returns an empty notice.
func (q *queue) newNotice() *notice {
	n := q.notices.spare
	if n == nil {
		n = new(notice)
	} else {
		q.notices.spare = n.next
	}
	*n = notice{uptime: q.now}
	return n
}

// told ends a notice that the host was told. Its connection goes on.
func (q *queue) told(n *notice) {
	if n.charged {
		q.fw.memory.release(noticeCharge)
	}
	if n.origin != nil {
		n.origin.remove(n)
	}
	if c := n.conn; c != nil {
		c.notice = nil
		q.receiveSoon(c)
	}
	*n = notice{next: q.notices.spare}
	q.notices.spare = n
}

// record appends the record of n to b (SPEC.md §6.4).
func (n *notice) record(b []byte) []byte {
	r := abi.Report{
		Status: abi.Status(n.f.Aux), Type: n.f.Type, Conn: n.f.Conn, Cookie: n.f.Base,
		Protocol: n.protocol, LocalPort: n.port, Remote: n.remote, Uptime: uint64(n.uptime),
	}
	if n.job != nil {
		r.Tag, r.Ordinal = n.job.r.tag, n.f.Offset
	}
	if n.final {
		r.Flags = abi.FlagFinal
	}
	return abi.AppendReport(b, r)
}
