// SPDX-License-Identifier: Apache-2.0

package conformance

import (
	"fmt"
	"slices"
)

// history is the model of IF10: what a host may expect of the tags that it
// gave. It is told of requests and responses in their order, and says what
// breaks a rule of SPEC.md §5:
//
//   - a tag has one terminal response, and none after it;
//   - a response has the type that answers the request;
//   - a send says how much of it is done, all of it when it is OK;
//   - a receive buffer is filled in order from its offset on, never beyond its
//     end, and is FINAL when it is full;
//   - a redirection says how much of it is done, all of it when it is OK, and a
//     peek is answered once;
//   - a combined response is of buffers that lie one behind the other, all but
//     the last full, under consecutive tags;
//   - each target of a control request has one result, by a response or in a
//     report buffer;
//   - a cancellation and its target agree on who won, the target first;
//   - a report buffer comes back once, with records or without;
//   - each connection is told once, by a response or in a report buffer, and
//     nothing of it before.
type history struct {
	open map[uint32]*thread
	done map[uint32]ending
	told map[uint64]bool // connections, listeners, datagram endpoints
}

// thread is a request without its terminal response.
type thread struct {
	d        desc
	next     uint32 // of a receive buffer: where the next bytes go
	ordinals map[uint32]bool
	answers  int
	again    int // requests that came under the same tag meanwhile
}

// ending is how the last request of a tag ended.
type ending struct {
	typ     uint8
	status  uint16
	answers int
	vague   bool // more than one request had the tag
}

func newHistory() *history {
	return &history{open: map[uint32]*thread{}, done: map[uint32]ending{}, told: map[uint64]bool{}}
}

// post is told of a request before it is published.
func (h *history) post(d desc) {
	if d.Tag == 0 {
		return
	}
	if th := h.open[d.Tag]; th != nil {
		th.again++
		return
	}
	th := &thread{d: d, next: d.Offset}
	if d.Type == reqAvailable && d.Flags&flagSkip != 0 {
		th.next = 0 // the offset is of the stream
	}
	h.open[d.Tag] = th
}

// response is told of a response, and of what it says is in a report buffer,
// and returns the rules that it breaks.
func (h *history) response(d desc, b []byte) (broken []string) {
	say := func(format string, args ...any) {
		broken = append(broken, fmt.Sprintf(format, args...)+": "+d.String())
	}
	switch {
	case d.Type == rspReceive && d.Flags&flagCombined != 0:
		h.run(d, say)
		return broken
	case d.Flags&flagReport == 0:
		h.one(d, say)
		return broken
	}
	th := h.open[d.Tag]
	if th == nil || th.again > 0 || th.d.Type != reqAvailable || th.d.Flags&flagReport == 0 {
		say("a report that no buffer was posted for")
		return broken
	}
	th.reported(d, say)
	list, rest := records(b)
	if rest != 0 || len(list) == 0 || list[0].typ != d.Type {
		say("%d records, %d bytes left", len(list), rest)
	}
	for _, r := range list {
		in := desc{Type: r.typ, Flags: r.flags, Aux: r.status, Tag: r.tag, Base: r.cookie, Conn: r.conn, Offset: r.ordinal}
		wrong := func(format string, args ...any) { say("record %v: "+format, append([]any{in}, args...)...) }
		switch unasked := r.typ == rspArrival || r.typ == rspConnAttr; {
		case r.typ != rspCompletion && r.typ != rspListen && !unasked, unasked != (r.tag == 0), in.Flags&^flagFinal != 0:
			wrong("no record of a report")
		default:
			h.one(in, wrong)
		}
	}
	h.end(th, d)
	return broken
}

// one is told of a result, in a response of its own or in a record.
func (h *history) one(d desc, say func(string, ...any)) {
	h.tell(d, say)
	if d.Tag == 0 {
		return
	}
	th := h.open[d.Tag]
	if th == nil {
		if e, ok := h.done[d.Tag]; ok {
			say("a response after the terminal one of type %d, status %d", e.typ, e.status)
		} else {
			say("a response without a request")
		}
		return
	}
	if d.Aux == stTagInUse && d.final() && th.again > 0 {
		th.again--
		return
	}
	th.answers++
	if th.again == 0 {
		th.judge(d, say)
		if th.d.Type == reqCancel && th.d.Aux == 0 && th.d.Offset != 0 {
			h.cancelled(th.d.Offset, d, say)
		}
	}
	if d.final() {
		h.end(th, d)
	}
}

// covers are the tags of a combined response, the first first: from the last
// downwards until one has its base.
func (h *history) covers(d desc) (tags []uint32) {
	for tag := d.Tag; ; tag-- {
		th := h.open[tag]
		if th == nil || th.d.Type != reqAvailable {
			return nil
		}
		tags = append(tags, tag)
		if th.d.Base == d.Base {
			slices.Reverse(tags)
			return tags
		}
	}
}

// run is told of a combined response: of buffers that lie one behind the other,
// each FINAL, and all but the last full.
func (h *history) run(d desc, say func(string, ...any)) {
	tags := h.covers(d)
	if len(tags) < 2 || !d.final() || d.Aux != stOK {
		say("a combined result of %d buffers", len(tags))
		return
	}
	one, left := d, d.Length
	one.Flags &^= flagCombined
	for i, tag := range tags {
		q := h.open[tag].d
		if i > 0 && (q.Base != one.Base || q.Offset != 0) {
			say("a combined result over %v", q)
			return
		}
		one.Tag, one.Length = tag, left
		if i < len(tags)-1 {
			if one.Length = q.Length - one.Offset; one.Length >= left {
				say("a combined result that leaves nothing for the last buffer")
				return
			}
		}
		left -= one.Length
		h.one(one, say)
		one.Base, one.Offset = q.Base+uint64(q.Length), 0
	}
}

// end notes a terminal response.
func (h *history) end(th *thread, d desc) {
	old, used := h.done[d.Tag]
	h.done[d.Tag] = ending{th.d.Type, d.Aux, th.answers, th.again > 0 || used || old.vague}
	delete(h.open, d.Tag)
}

// tell follows what the host knows of connections.
func (h *history) tell(d desc, say func(string, ...any)) {
	switch {
	case d.Type == rspArrival, (d.Type == rspCompletion || d.Type == rspListen) && d.Aux == stOK:
		if h.told[d.Conn] {
			say("a connection that was told before")
		}
		h.told[d.Conn] = true
	case d.Type == rspReceive || d.Tag == 0 && (d.Type == rspTerminated || d.Type == rspConnAttr):
		if !h.told[d.Conn] {
			say("a connection that was not told")
		}
	}
}

// reported holds the return of a report buffer against its request.
func (th *thread) reported(d desc, say func(string, ...any)) {
	q := th.d
	switch {
	case d.Flags != flagReport|flagFinal || d.Conn != 0 || d.Aux != stOK && d.Aux != stBadMemory:
		say("a report with an id, or other flags or status")
	case d.Base != q.Base || d.Offset != q.Offset:
		say("a report in another buffer than %v", q)
	case d.Length == 0 || d.Length%64 != 0 || uint64(d.Offset)+uint64(d.Length) > uint64(q.Length):
		say("a report of a length that %v does not take", q)
	}
}

// judge holds a response against its request alone.
func (th *thread) judge(d desc, say func(string, ...any)) {
	q := th.d
	fits := d.Type == answerTo(q.Type) || q.Type == reqAvailable && d.Type == rspReceive
	if !fits {
		say("type %d answers a request of type %d", d.Type, q.Type)
		return
	}
	switch q.Type {
	case reqSend:
		todo := uint64(q.Length) - uint64(q.Offset)
		switch {
		case !d.final() && q.Flags&flagGroup == 0:
			say("a send with more than one response")
		case d.Base != q.Base || d.Conn != q.Conn && q.Flags&flagGroup == 0 || d.Offset != q.Offset:
			say("the answer names another buffer than %v", q)
		case d.Aux == stOK && uint64(d.Length) != todo, q.Offset <= q.Length && uint64(d.Length) > todo:
			say("a send of %d bytes", todo)
		}
	case reqAvailable:
		th.filled(d, say)
	case reqConnect, reqTerminate, reqListen, reqCancel:
		whole := d.Offset == 0xffffffff
		if whole && (th.answers > 1 || !d.final()) {
			say("a refusal of the whole request after results of targets")
		}
		if th.ordinals[d.Offset] {
			say("two results of one target")
		}
		if th.ordinals == nil {
			th.ordinals = map[uint32]bool{}
		}
		th.ordinals[d.Offset] = true
		for i := range uint32(len(th.ordinals)) {
			if d.final() && !whole && !th.ordinals[i] {
				say("FINAL, and target %d has no result", i)
				break
			}
		}
	default:
		if !d.final() {
			say("a request with more than one response")
		}
	}
}

// filled follows a receive buffer.
func (th *thread) filled(d desc, say func(string, ...any)) {
	q := th.d
	switch {
	case d.Type == rspDone && q.Flags&flagRedirect != 0:
		skip := q.Offset * uint32(q.Flags&flagSkip/flagSkip)
		if !d.final() || d.Length > q.Length || d.Aux < stBadType && d.Offset > skip || d.Aux == stOK && (d.Length != q.Length || d.Offset != skip) {
			say("the end of the redirection %v", q)
		}
	case q.Flags&flagRedirect != 0:
		say("bytes in a redirection")
	case (d.Flags&flagPeek != 0) != (q.Flags&flagPeek != 0) && d.Type == rspReceive && q.Conn != 0 && q.Flags&flagGroup == 0:
		say("bytes of a peek, or none, in %v", q)
	case d.Type == rspDone:
		if !d.final() || d.Length != 0 {
			say("a buffer that ends without bytes")
		}
	case q.Flags&flagReport != 0:
		say("bytes of a connection in a report buffer")
	case d.Aux != stOK:
		// A length that is not what was written.
	case d.Base != q.Base || q.Conn != 0 && q.Flags&flagGroup == 0 && d.Conn != q.Conn && d.Flags&flagRedirect == 0 || d.Offset != th.next:
		say("bytes at another place than offset %d of %v", th.next, q)
	case uint64(d.Offset)+uint64(d.Length) > uint64(q.Length):
		say("bytes beyond the end of %v", q)
	default:
		th.next += d.Length
		if (th.next == q.Length || d.Flags&flagPeek != 0) && !d.final() {
			say("a full buffer, or a peek, without FINAL")
		}
	}
}

// cancelled holds the answer d to a cancellation against its target's.
func (h *history) cancelled(target uint32, d desc, say func(string, ...any)) {
	e, ended := h.done[target]
	th := h.open[target]
	switch {
	case e.vague || th != nil && th.again > 0:
	case d.Aux == stOK && th != nil:
		say("tag %#x is cancelled and has no terminal response yet", target)
	case d.Aux == stOK && !ended:
		say("tag %#x is cancelled and never was", target)
	case d.Aux == stOK && e.answers == 1 && e.status != stCancelled:
		say("tag %#x is cancelled and ended with status %d", target, e.status)
	case d.Aux == stTooLate && th != nil && th.d.Type != reqTerminate && th.d.Type != reqCancel:
		say("it is too late for tag %#x, which has no terminal response yet", target)
	}
}

// answerTo is the type of the response to a type of request.
func answerTo(typ uint8) uint8 {
	switch typ {
	case reqSend, reqAvailable:
		return rspDone
	case reqConnect:
		return rspCompletion
	case reqTerminate:
		return rspTerminated
	case reqListen:
		return rspListen
	case reqCancel:
		return rspCancelled
	case reqConnAttr:
		return rspConnAttr
	case reqAdapter:
		return rspAdapter
	}
	return rspRejected
}
