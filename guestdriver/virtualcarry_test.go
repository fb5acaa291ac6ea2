// SPDX-License-Identifier: Apache-2.0

package guestdriver

import (
	"runtime"
	"testing"

	"toebox/vdev/abi"
)

// TestVirtualCarry: pieces that a stop gives back go on where the connection does,
// from the byte where they were, numbered anew.
func TestVirtualCarry(t *testing.T) {
	l := newLeaver(t)
	l.c.SetReadAhead(false)
	m, err := l.a.Alloc(3000)
	if err != nil {
		t.Fatal(err)
	}
	var pieces []*Buffer
	for i := range 3 {
		b, err := m.Buffer(i*1000, 1000)
		if err != nil {
			t.Fatal(err)
		}
		pieces = append(pieces, b)
	}
	v, err := NewVirtualBuffer(pieces...)
	if err != nil {
		t.Fatal(err)
	}
	q := NewCompletionQueue()
	if err := l.c.PostVirtual(v, q); err != nil {
		t.Fatal(err)
	}
	var asked []abi.Fields
	for f, ok := takeOne(l.ln.queue, &l.in); ok; f, ok = takeOne(l.ln.queue, &l.in) {
		if f.Type == abi.TypeBufferAvailable {
			asked = append(asked, f)
		}
	}
	if len(asked) != 3 || asked[2].Aux != 0x0102 {
		t.Fatalf("asked for %+v", asked)
	}
	say := func(f abi.Fields, kind abi.Type, status abi.Status, n uint32, flags abi.Flags) {
		f.Type, f.Aux, f.Length, f.Flags = kind, uint16(status), n, flags
		answer(l.ln.queue, &l.out, f)
		l.ln.pass()
	}
	say(asked[0], 16, 0, 1000, 1)
	say(asked[1], 16, 0, 300, 0)
	say(asked[1], 17, 2, 0, 1) // CANCELLED, and so is what lies behind it
	say(asked[2], 17, 2, 0, 1)
	record := exact(7, 1400)
	record.Unread = 5
	l.report(record, "later")
	l.a.endAll(ErrReset)
	next, err := NewQueue(l.a.bus, 0, QueueConfig{InLog2: 4, OutLog2: 4})
	if err != nil {
		t.Fatal(err)
	}
	l.ln.install(next)
	l.in, l.out = 0, 0
	done := make(chan struct{})
	go func() { l.ln.restore(l.c); close(done) }()
	f, ok := takeOne(next, &l.in)
	for ; !ok; f, ok = takeOne(next, &l.in) {
		runtime.Gosched()
	}
	answer(next, &l.out, abi.Fields{Type: abi.TypeCompletion, Flags: abi.FlagFinal, Tag: f.Tag, Conn: 9, Base: 7})
	l.ln.pass()
	<-done
	asked = nil
	for f, ok := takeOne(next, &l.in); ok; f, ok = takeOne(next, &l.in) {
		if f.Type == abi.TypeBufferAvailable {
			asked = append(asked, f)
		}
	}
	// What came with the record was copied into the piece.
	if len(asked) != 2 || asked[0].Aux != 0x0100 || asked[0].Offset != 305 || asked[1].Aux != 0x0101 || asked[1].Offset != 0 || asked[0].Conn != 9 {
		t.Errorf("asked again for %+v", asked)
	}
	var got [4]Completion
	if n := q.Poll(got[:]); n != 2 || got[0].Buffer != pieces[0] || !got[0].Final || got[1].Buffer != pieces[1] || got[1].N != 305 || got[1].At != 1000 || got[1].Final {
		t.Errorf("completions %+v", got[:n])
	}
	if string(pieces[1].Bytes()[300:305]) != "later" {
		t.Errorf("bytes %q", pieces[1].Bytes()[300:305])
	}
	l.c.Close()
	l.a.endAll(ErrReset)
	if n := q.Poll(got[:]); n != 2 || !got[0].Final || !got[1].Final || len(l.c.virtuals) != 0 {
		t.Errorf("after the end: %+v", got[:n])
	}
}
