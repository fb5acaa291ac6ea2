// SPDX-License-Identifier: Apache-2.0

package firmware

import (
	"math"

	"toebox/vdev/abi"
)

// request is a request between being taken and its terminal response: an entry
// of the queue's ledger (IF10).
type request struct {
	tag     uint32
	kind    abi.Type
	flags   abi.Flags
	asap    bool
	bad     bool // send: its memory could not be read; of a group send: of one member or more
	past    bool // send: nothing of it is to be fetched any more
	conn    *conn
	group   *group // whose buffer it is
	piece   uint16 // of a virtual buffer; 0: of none
	early   bool   // a piece that cannot be used yet
	job     *job   // of connect and listen
	base    uint64
	length  uint32
	offset  uint32
	done    uint32     // bytes moved so far
	skip    uint32     // bytes of the stream to skip before
	skipped uint32     // of them, those that were
	start   uint64     // send: position of its first byte in the stream
	status  abi.Status // send: what it ends with when it is its turn
	left    uint32     // control: targets without a response
	extra   int        // charged to adapter memory besides requestCharge
	sum     uint32     // taken by summed
	summed  *checker

	kept *kept // send: adapter memory with its bytes; nil: none

	// Of a group send: what the host posted, and a request for each member.
	crowd   uint64 // the group's id
	parent  *request
	members *request
	sibling *request

	prev, next *request
}

// todo is how many bytes are still to move.
func (r *request) todo() int { return int(r.length - r.offset - r.done) }

// named is the id that the request names: of a connection, or of a group.
func (r *request) named() uint64 {
	switch {
	case r.conn != nil:
		return r.conn.id
	case r.group != nil:
		return r.group.id
	}
	return r.crowd
}

// end is the stream position behind what was moved.
func (r *request) end() uint64 { return r.start + uint64(r.done) }

// responseOf is the type of the response to a request that is refused, or
// TypeRejected.
func responseOf(t abi.Type) abi.Type {
	switch t {
	case abi.TypeBufferSend, abi.TypeBufferAvailable:
		return abi.TypeBufferDone
	case abi.TypeConnect:
		return abi.TypeCompletion
	case abi.TypeTermination:
		return abi.TypeTerminated
	case abi.TypeListen:
		return abi.TypeListenResponse
	case abi.TypeCancellation:
		return abi.TypeCancelled
	case abi.TypeConnectionAttr:
		return abi.TypeConnectionAttrs
	case abi.TypeAdapterAttr:
		return abi.TypeAdapterAttrs
	}
	return abi.TypeRejected
}

// allowedFlags are those of SPEC.md §5.4 to §5.10.
func allowedFlags(t abi.Type) abi.Flags {
	switch t {
	case abi.TypeBufferSend:
		return abi.FlagFragment | abi.FlagGroup
	case abi.TypeBufferAvailable:
		return abi.FlagPeek | abi.FlagFragment | abi.FlagGroup | abi.FlagSkip | abi.FlagRedirect | abi.FlagOnce | abi.FlagReport
	case abi.TypeConnect, abi.TypeListen:
		return abi.FlagReport
	}
	return 0
}

// request acts on one request.
func (q *queue) request(d abi.Descriptor) {
	f := d.Decode()
	switch f.Type {
	case abi.TypeBufferSend:
		q.count(abi.CounterSends, 1)
	case abi.TypeBufferAvailable:
		q.count(abi.CounterBuffersPosted, 1)
	}
	if s := q.checkCommon(&f); s != abi.StatusOK {
		q.refuse(&f, s)
		return
	}
	switch f.Type {
	case abi.TypeBufferSend:
		q.requestSend(&f)
	case abi.TypeBufferAvailable:
		q.requestBuffer(&f)
	case abi.TypeConnect, abi.TypeListen:
		q.requestTargets(&f)
	case abi.TypeTermination:
		q.requestTermination(&f)
	case abi.TypeCancellation:
		q.requestCancellation(&f)
	case abi.TypeConnectionAttr, abi.TypeAdapterAttr:
		q.requestAttributes(&f)
	}
}

// checkCommon checks type, tag, flags and reserved fields.
func (q *queue) checkCommon(f *abi.Fields) abi.Status {
	if responseOf(f.Type) == abi.TypeRejected {
		return abi.StatusBadType
	}
	if f.Tag == 0 {
		return abi.StatusBadTag
	}
	if _, used := q.tags[f.Tag]; used {
		return abi.StatusTagInUse
	}
	if f.Flags&^allowedFlags(f.Type) != 0 {
		return abi.StatusReserved
	}
	if (f.ASAP || f.Modify) && f.Type != abi.TypeBufferSend {
		return abi.StatusReserved
	}
	reserved := false
	switch f.Type {
	case abi.TypeBufferSend, abi.TypeBufferAvailable:
		if f.Aux != 0 && !mayBePiece(f) || badAnswer(f) {
			return abi.StatusReserved
		}
		return q.checkBuffer(f)
	case abi.TypeConnect, abi.TypeListen:
		reserved = f.Conn != 0 || f.Offset != 0
	case abi.TypeTermination:
		reserved = f.Offset != 0 || f.Aux == 0 && f.Base != 0 || f.Aux != 0 && f.Conn != 0
	case abi.TypeCancellation:
		reserved = f.Aux == 0 && (f.Base != 0 || f.Length != 0) || f.Aux != 0 && (f.Conn != 0 || f.Offset != 0)
	case abi.TypeConnectionAttr:
		reserved = f.Offset != 0
	case abi.TypeAdapterAttr:
		reserved = f.Offset != 0 || f.Conn != 0
	}
	if reserved || f.Aux > 0xff {
		return abi.StatusReserved
	}
	return abi.StatusOK
}

// checkBuffer checks the arithmetic of SPEC.md §5.3.
func (q *queue) checkBuffer(f *abi.Fields) abi.Status {
	if f.Flags&abi.FlagRedirect != 0 && f.Length > 0 {
		return abi.StatusOK // no memory
	}
	offset := f.Offset
	if f.Flags&abi.FlagSkip != 0 {
		offset = 0 // it is of the stream
	}
	empty := offset == f.Length && !q.mayBeEmpty(f)
	if f.Length == 0 || empty || offset > f.Length || f.Base > math.MaxUint64-uint64(f.Length-1) {
		return abi.StatusBadLength
	}
	return abi.StatusOK
}

// refuse answers a request that was never held.
func (q *queue) refuse(f *abi.Fields, s abi.Status) {
	r := abi.Fields{
		Type: responseOf(f.Type), Flags: abi.FlagFinal, Aux: uint16(s),
		Tag: f.Tag, Base: f.Base, Conn: f.Conn, Offset: f.Offset,
	}
	switch f.Type {
	case abi.TypeBufferAvailable:
		q.count(abi.CounterBuffersReturned, 1)
		if f.Flags&abi.FlagSkip != 0 {
			r.Offset = 0 // nothing was skipped (SPEC.md §14.11)
		}
	case abi.TypeConnect, abi.TypeListen, abi.TypeTermination, abi.TypeCancellation,
		abi.TypeConnectionAttr, abi.TypeAdapterAttr:
		r.Base, r.Offset = 0, abi.NoOrdinal
		if (f.Type == abi.TypeTermination || f.Type == abi.TypeCancellation) && f.Aux == 0 {
			r.Offset = 0 // its only target
		}
	}
	q.terminal(&r)
}

// terminal queues the terminal response of a request.
func (q *queue) terminal(r *abi.Fields) {
	r.Flags |= abi.FlagFinal
	q.answered(r.Tag, r.Aux)
	q.respond(*r)
}

// answered notes that a tag has its terminal result.
func (q *queue) answered(tag uint32, status uint16) {
	if status >= uint16(abi.StatusBadType) {
		q.count(abi.CounterRequestsRejected, 1)
	}
	q.recent[tag%recentTags] = tag
}

// hold enters a request into the ledger, or refuses it for want of adapter
// memory and returns nil.
func (q *queue) hold(f *abi.Fields, c *conn) *request {
	if !q.fw.memory.admit(requestCharge) {
		q.refuse(f, abi.StatusNoMemory)
		return nil
	}
	r := q.newRequest()
	*r = request{
		tag: f.Tag, kind: f.Type, flags: f.Flags, asap: f.ASAP, conn: c,
		base: f.Base, length: f.Length, offset: f.Offset,
	}
	if f.Flags&abi.FlagSkip != 0 {
		r.offset, r.skip = 0, f.Offset
	}
	q.tags[f.Tag] = r
	return r
}

// newRequest takes a request from the free list.
func (q *queue) newRequest() *request {
	r := q.spare
	if r == nil {
		return new(request)
	}
	q.spare = r.next
	return r
}

// holdTargets is hold for a request with n targets that may wait.
func (q *queue) holdTargets(f *abi.Fields, n int) *request {
	extra := (n - 1) * targetCharge
	if !q.fw.memory.charge(extra) {
		q.refuse(f, abi.StatusNoMemory)
		return nil
	}
	r := q.hold(f, nil)
	if r == nil {
		q.fw.memory.release(extra)
		return nil
	}
	r.left, r.extra = uint32(n), extra
	return r
}

// settle takes a request whose terminal response was queued out of the ledger.
// It must be in no list any more.
func (q *queue) settle(r *request) {
	if q.tags[r.tag] != r {
		// Twice settled: a fault of the firmware, not of the host.
		q.count(abi.CounterCheckerViolations, 1)
		q.fw.log.Error("request answered twice", "queue", q.index, "tag", r.tag)
		return
	}
	delete(q.tags, r.tag)
	q.leaveCopy(r)
	q.fw.memory.release(requestCharge + r.extra)
	*r = request{next: q.spare}
	q.spare = r
}

// answerTarget answers one target of a control request, with FINAL if it was
// the last.
func (q *queue) answerTarget(r *request, f abi.Fields) {
	f.Type, f.Tag = responseOf(r.kind), r.tag
	r.left--
	if r.left > 0 {
		q.respond(f)
		return
	}
	q.terminal(&f)
	q.settle(r)
}
