// SPDX-License-Identifier: Apache-2.0

package guestdriver

import "toebox/vdev/abi"

// combined acts on a response that covers a run of buffers (SPEC.md §5.5), as if
// each had one of its own.
func (ln *lane) combined(f *abi.Fields) {
	if f.Flags&abi.FlagFinal == 0 {
		ln.a.bad.final.Add(1)
		return
	}
	tag, ok := ln.firstOf(f)
	if !ok {
		ln.a.bad.length.Add(1)
		return
	}
	ln.a.host.combined.Add(1)
	ln.a.host.combinedBuffers.Add(uint64(f.Tag-tag) + 1)
	one := abi.Fields{Type: f.Type, Flags: abi.FlagFinal, Aux: f.Aux, Base: f.Base, Conn: f.Conn, Offset: f.Offset}
	for left := f.Length; ; tag++ {
		one.Tag, one.Length = tag, left
		size := ln.sizeOf(tag)
		if tag != f.Tag {
			one.Length = size - one.Offset
		}
		ln.handle(&one)
		if tag == f.Tag {
			return
		}
		left -= one.Length
		one.Base, one.Offset = one.Base+uint64(size), 0
	}
}

// firstOf returns the first tag of the run of a combined response: receive
// buffers for one connection, one behind the other, of which all but the last
// are full now. It reports false when there is no such run.
func (ln *lane) firstOf(f *abi.Fields) (tag uint32, ok bool) {
	ln.mu.Lock()
	defer ln.mu.Unlock()
	var behind, last, whole uint64 // whole: from the first looked at on
	for tag = f.Tag; ; tag-- {
		r := ln.reqs.find(tag)
		if r == nil || !r.takes(f.Conn) {
			return 0, false
		}
		size := uint64(len(r.buf.data))
		whole += size
		switch {
		case tag == f.Tag:
			last = size
		case r.buf.iova+size != behind:
			return 0, false
		}
		behind = r.buf.iova
		if behind == f.Base {
			// filled changes by responses only, which the caller's lock orders.
			end := uint64(f.Offset) + uint64(f.Length)
			return tag, tag != f.Tag && f.Offset == r.buf.filled && uint64(f.Offset) < size && end > whole-last && end <= whole
		}
		if r.buf.filled != 0 || whole > uint64(f.Length)+last {
			return 0, false
		}
	}
}

// takes reports whether bytes of a connection may be in the buffer of a request.
func (r *request) takes(conn uint64) bool {
	switch r.kind {
	case kindReceive:
		return r.conn != nil && r.conn.connID() == conn
	case kindPool, kindGroup:
		return true
	}
	return false
}

func (ln *lane) sizeOf(tag uint32) uint32 {
	ln.mu.Lock()
	defer ln.mu.Unlock()
	if r := ln.reqs.find(tag); r != nil && r.buf != nil {
		return uint32(len(r.buf.data))
	}
	return 0
}
