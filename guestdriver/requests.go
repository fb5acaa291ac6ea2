// SPDX-License-Identifier: Apache-2.0

package guestdriver

import "toebox/vdev/abi"

// kind is what a request was.
type kind uint8

const (
	kindNone      kind = iota
	kindSend           // conn, buf
	kindReceive        // conn, buf
	kindConnect        // call, buf (control)
	kindListen         // call, buf (control)
	kindAttribute      // call, buf (control)
	kindTerminate      // conn or listener
	kindHalfClose      // conn
	kindReport         // buf (of the lane)
	kindPool           // buf (of a pool)
	kindCancel         // buf (of a send that the application posted), or nothing
	kindRedirect       // conn, buf (of the redirection)
	kindCast           // cast
	kindGroup          // buf (of a receive group)
)

// answeredBy reports whether a response of type t may answer the kind.
func (k kind) answeredBy(t abi.Type) bool {
	switch k {
	case kindSend, kindRedirect:
		return t == abi.TypeBufferDone
	case kindReceive, kindPool, kindGroup:
		return t == abi.TypeBufferReceive || t == abi.TypeBufferDone
	case kindConnect:
		return t == abi.TypeCompletion
	case kindListen:
		return t == abi.TypeListenResponse
	case kindAttribute:
		return t == abi.TypeConnectionAttrs || t == abi.TypeAdapterAttrs
	case kindTerminate, kindHalfClose:
		return t == abi.TypeTerminated
	case kindReport:
		return t == abi.TypeConnectionAttrs || t == abi.TypeBufferDone
	case kindCancel:
		return t == abi.TypeCancelled
	}
	return false
}

// endpoint is what the adapter has an id for and takes data requests of: a Conn,
// or an end of a PacketConn.
type endpoint interface {
	connID() uint64
	onLane() *lane
	// received acts on a buffer receive response. It returns false, and changes
	// nothing, when the response does not fit the buffer.
	received(f *abi.Fields, buf *buffer, final bool) bool
	// bufferBack acts on the response to a receive buffer that ends without
	// further data, bufferLost on one that will have no response.
	bufferBack(f *abi.Fields, buf *buffer)
	bufferLost(buf *buffer, err error)
	// sent acts on the completion of a send of which n bytes count.
	sent(buf *buffer, s abi.Status, n uint32)
	sendLost(buf *buffer, err error)
	// ended acts on a termination response that nobody asked for.
	ended(how uint32)
	// fail makes what is called from now on return err; gone says that the id
	// is no more.
	fail(err error)
	gone()
	// shut is the half of Close that ends calls, with net.ErrClosed; false says
	// that it was closed already. terminate is the other half: it tells the
	// adapter.
	shut() bool
	terminate()
}

// request is one outstanding request: from its post to its terminal response,
// or to a reset.
type request struct {
	kind     kind
	late     bool   // the adapter may be told of it a little later
	seq      uint16 // counts the uses of the entry, so that stale tags differ
	next     uint16 // of an unused entry: the one that is used after it
	conn     endpoint
	listener *Listener
	call     *call
	buf      *buffer
	cast     *castPart
}

// Tags: bits 31..16 seq, bits 15..0 index in the table + 1. So a tag is never
// 0 and a late or doubled response does not hit a new request.
const maxRequests = 0xffff

// startRequests is how many entries a table begins with.
const startRequests = 512

// requests is the table of what is outstanding on a queue. The lane's lock
// protects it. Entries are used in turn, each again in the order in which they came
// back, so that requests which follow each other have consecutive tags, nearly
// always: it is those whose results the adapter combines (SPEC.md §5.5).
type requests struct {
	table       []request
	first, last uint16 // of the unused entries
	used        int
}

// add enters a request and returns its tag; 0 when the table is full.
func (t *requests) add(r request) uint32 {
	var i int
	if t.table == nil {
		t.table = make([]request, startRequests)
		for i := range t.table {
			t.table[i].next = uint16(i + 1)
		}
		t.last = startRequests - 1
	}
	if t.used < len(t.table) {
		i = int(t.first)
		t.first = t.table[i].next
	} else {
		if t.full() {
			return 0
		}
		i = len(t.table)
		t.table = append(t.table, request{})
	}
	r.seq = t.table[i].seq + 1
	t.table[i] = r
	t.used++
	return uint32(r.seq)<<16 | uint32(i+1)
}

// full reports whether add would find no room.
func (t *requests) full() bool { return t.used == maxRequests }

// find returns the request of a tag, or nil.
func (t *requests) find(tag uint32) *request {
	i := int(tag&0xffff) - 1
	if i < 0 || i >= len(t.table) || t.table[i].kind == kindNone || t.table[i].seq != uint16(tag>>16) {
		return nil
	}
	return &t.table[i]
}

// remove ends the request of a tag that find knows.
func (t *requests) remove(tag uint32) {
	i := int(tag&0xffff) - 1
	t.table[i] = request{seq: t.table[i].seq}
	if t.used == len(t.table) {
		t.first = uint16(i)
	} else {
		t.table[t.last].next = uint16(i)
	}
	t.last = uint16(i)
	t.used--
}

// takeAll ends everything and returns what there was.
func (t *requests) takeAll() []request {
	var all []request
	for i := range t.table {
		if r := t.table[i]; r.kind != kindNone {
			all = append(all, r)
			t.remove(uint32(r.seq)<<16 | uint32(i+1))
		}
	}
	return all
}
