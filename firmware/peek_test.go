// SPDX-License-Identifier: Apache-2.0

package firmware_test

import (
	"slices"
	"testing"

	"toebox/firmware/engine/enginetest"
	"toebox/vdev/abi"
)

const (
	peekAttr = 0x0262
	peekWait = 0x0263
)

// viewer is a connection whose bytes are peeked at, under a manual policy clock.
type viewer struct {
	*rig
	id   uint64
	ep   *enginetest.Endpoint
	came uint64
}

func newViewer(t *testing.T, attrs ...uint64) *viewer {
	t.Helper()
	r := newRig(t, 6)
	r.fw.SetPolicyClock(true)
	v := &viewer{rig: r}
	v.id, v.ep = r.connect()
	if len(attrs) > 0 {
		r.setAll(v.id, attrs...)
	}
	return v
}

// arrive lets n more bytes of the stream arrive.
func (v *viewer) arrive(n int) {
	v.ep.Deliver(streamBytes(v.came, n))
	v.came += uint64(n)
}

// own posts a buffer of n bytes of the connection with flags and an offset.
func (v *viewer) own(n int, flags abi.Flags, offset uint32) abi.Fields {
	v.t.Helper()
	f := v.buffer(abi.TypeBufferAvailable, v.id, n)
	f.Flags, f.Offset = flags, offset
	v.post(f)
	return f
}

// redirect posts a redirection of n bytes to a connection, behind skip.
func (v *viewer) redirect(to uint64, n, skip uint32) abi.Fields {
	v.t.Helper()
	f := abi.Fields{Type: abi.TypeBufferAvailable, Flags: abi.FlagRedirect, Tag: v.Tag(), Conn: v.id, Base: to, Length: n, Offset: skip}
	if skip > 0 {
		f.Flags |= abi.FlagSkip
	}
	v.post(f)
	return f
}

// gets takes the next response: n bytes of the stream from pos on in buffer f.
func (v *viewer) gets(what string, f abi.Fields, flags abi.Flags, at uint32, pos uint64, n int) {
	v.t.Helper()
	got := v.next()
	want := abi.Fields{Type: abi.TypeBufferReceive, Flags: flags, Tag: f.Tag, Base: f.Base, Conn: v.id, Offset: at, Length: uint32(n)}
	if got != want {
		v.t.Fatalf("%s: %+v\nwant %+v", what, got, want)
	}
	if b := v.Chip.Bytes(f.Base+uint64(at), n); !slices.Equal(b, streamBytes(pos, n)) {
		v.t.Fatalf("%s: other bytes than [%d, %d)", what, pos, pos+uint64(n))
	}
}

// ends takes the next response: the end of a request without bytes.
func (v *viewer) ends(what string, f abi.Fields, s abi.Status, length, offset uint32) {
	v.t.Helper()
	got := v.next()
	want := abi.Fields{Type: abi.TypeBufferDone, Flags: abi.FlagFinal, Aux: uint16(s), Tag: f.Tag, Base: f.Base, Conn: f.Conn, Length: length, Offset: offset}
	if got != want {
		v.t.Fatalf("%s: %+v\nwant %+v", what, got, want)
	}
}

// quiet fails the test if the host is told something.
func (v *viewer) quiet(what string) {
	v.t.Helper()
	if got := v.settle(); len(got) != 0 {
		v.t.Fatalf("%s: told %+v", what, got)
	}
}

const shown = abi.FlagFinal | abi.FlagPeek

// TestPeekRequest: a buffer with PEEK gets a copy; the bytes wait for an answer,
// and another peek for more bytes.
func TestPeekRequest(t *testing.T) {
	v := newViewer(t, peekWait, 10*ms)
	p := v.own(8, abi.FlagPeek, 0)
	v.arrive(3)
	v.gets("the first bytes", p, shown, 0, 0, 3)
	if n := v.ep.Unread(); n != 3 {
		t.Fatalf("%d bytes left, want 3", n)
	}
	p = v.own(8, abi.FlagPeek, 2)
	v.quiet("nothing new")
	v.arrive(1)
	v.gets("one more", p, shown, 2, 0, 4)
	p = v.own(4, abi.FlagPeek, 0)
	v.gets("what fills it was shown", p, shown, 0, 0, 4)
	v.wantCounter(abi.CounterPeeks, 3)
	v.wantCounter(abi.CounterPeekedBytes, 11)

	// Nothing more in time: the same again.
	p = v.own(8, abi.FlagPeek, 0)
	v.quiet("nothing new")
	v.fw.StepPolicyClock(10*ms - 1)
	v.quiet("1 ns before PEEK_WAIT")
	v.fw.StepPolicyClock(1)
	v.gets("nothing more in time", p, shown, 0, 0, 4)

	// The answer: behind the header, from byte 2 on.
	v.arrive(6)
	b := v.own(8, abi.FlagSkip, 2)
	v.gets("the answer", b, abi.FlagFinal, 0, 2, 8)
	v.wantCounter(abi.CounterPeeksAnswered, 1)
	v.wantCounter(abi.CounterPeeksOver, 0)
	v.wantCounter(abi.CounterBytesDelivered, 8)

	// Peeks and buffers in one list: in order.
	p, b = v.own(4, abi.FlagPeek|abi.FlagSkip, 1), v.own(4, 0, 0)
	q := v.own(4, abi.FlagPeek, 0)
	v.arrive(6)
	v.gets("a peek behind a skip", p, shown, 0, 11, 4)
	v.gets("the buffer behind it", b, abi.FlagFinal, 0, 11, 4)
	v.gets("the peek behind that", q, shown, 0, 15, 1)
}

// TestPeekOver: no answer in time: bulk buffers.
func TestPeekOver(t *testing.T) {
	v := newViewer(t, peekWait, 10*ms, 0x0232, 1) // BUFFER_POLICY 1
	p := v.own(4, abi.FlagPeek, 0)
	bulk := v.buffer(abi.TypeBufferAvailable, 0, 64)
	v.post(bulk)
	v.arrive(9)
	v.gets("the peek", p, shown, 0, 0, 4)
	v.fw.StepPolicyClock(10*ms - 1)
	v.quiet("1 ns before PEEK_WAIT")
	v.fw.StepPolicyClock(1)
	v.gets("no answer", bulk, abi.FlagFinal, 0, 0, 9)
	v.wantCounter(abi.CounterPeeksOver, 1)
	v.wantCounter(abi.CounterPeeksAnswered, 0)
	v.wantCounter(abi.CounterBufferWaits, 0)

	// PEEK_WAIT 0: no wait at all.
	v.setAll(v.id, peekWait, 0)
	p = v.own(4, abi.FlagPeek, 0)
	v.post(bulk)
	v.arrive(9)
	v.gets("the peek", p, shown, 0, 9, 4)
	v.gets("no wait for an answer", bulk, abi.FlagFinal, 0, 9, 9)
}

// TestPeekArrivals: with PEEK each arrival is shown in a bulk buffer, or in one of
// the group.
func TestPeekArrivals(t *testing.T) {
	v := newViewer(t, peekAttr, 4, peekWait, 10*ms, skipAttr, 4)
	v.arrive(10)
	v.quiet("no buffer to show them in")
	v.wantCounter(abi.CounterPoolEmpty, 1)
	bulk := v.buffer(abi.TypeBufferAvailable, 0, 64)
	v.post(bulk)
	v.gets("the first bytes", bulk, shown, 0, 0, 4)
	v.post(bulk)
	v.arrive(2)
	v.quiet("more bytes, no answer")
	b := v.own(4, 0, 0)
	v.gets("the answer, behind SKIP", b, abi.FlagFinal, 0, 4, 4)
	v.gets("what is left, shown anew", bulk, shown, 0, 8, 4)
	b = v.own(8, 0, 0)
	v.quiet("all skipped")
	v.arrive(8)
	v.gets("the answer", b, abi.FlagFinal, 0, 12, 8)

	// No answer: the pool, until nothing is left; then they are shown again.
	v.post(bulk)
	v.arrive(6)
	v.gets("an arrival", bulk, shown, 0, 20, 4)
	v.fw.StepPolicyClock(10 * ms)
	v.post(bulk)
	v.gets("no answer, behind SKIP", bulk, abi.FlagFinal, 0, 24, 2)
	group := v.buffer(abi.TypeBufferAvailable, 1<<59|uint64(v.ep.Info().Local.Port())<<32, 64)
	group.Flags = abi.FlagGroup
	v.post(bulk, group)
	v.arrive(6)
	v.gets("shown in a buffer of the group", group, shown, 0, 26, 4)
	v.fw.StepPolicyClock(10 * ms)
	v.gets("no answer", bulk, abi.FlagFinal, 0, 30, 2)
}

// TestPeekEnds: the end of the stream, cancellation, bad memory, short memory.
func TestPeekEnds(t *testing.T) {
	v := newViewer(t, peekWait, 1<<60)
	p := v.own(4, abi.FlagPeek, 0)
	v.Chip.Unmap(p.Base, 4)
	v.arrive(2)
	v.ends("a peek that cannot be written", p, abi.StatusBadMemory, 0, 0)
	v.Chip.MapAll()
	p = v.own(4, abi.FlagPeek, 0)
	v.gets("the next one", p, shown, 0, 0, 2)
	p = v.own(4, abi.FlagPeek, 0)
	c := abi.Fields{Type: abi.TypeCancellation, Tag: v.Tag(), Conn: v.id, Offset: p.Tag}
	v.post(c)
	v.ends("a cancelled peek", p, abi.StatusCancelled, 0, 0)
	v.expect(abi.Fields{Type: abi.TypeCancelled, Flags: abi.FlagFinal, Tag: c.Tag, Conn: v.id})
	p = v.own(4, abi.FlagPeek, 0)
	v.quiet("nothing new")
	v.ep.DeliverFIN()
	v.gets("no more will come", p, shown, 0, 0, 2)
	b := v.own(8, 0, 0)
	v.gets("the answer", b, 0, 0, 0, 2)
	v.ends("behind it", b, abi.StatusEndOfStream, 0, 2)
	v.expect(abi.Fields{Type: abi.TypeTerminated, Flags: abi.FlagFinal, Conn: v.id, Length: abi.EndedStream})
}

// TestRedirect: bytes go to the buffers of another connection, behind what is
// skipped; what is left goes on as before.
func TestRedirect(t *testing.T) {
	const redirected = abi.FlagRedirect
	v := newViewer(t, peekWait, 10*ms)
	to, dst := v.connect()
	b := v.buffer(abi.TypeBufferAvailable, to, 10)
	own := v.own(4, 0, 0)
	d := v.redirect(to, 16, 3)
	behind := v.own(2, 0, 0)
	v.post(b)
	v.arrive(12)
	v.gets("before it", own, abi.FlagFinal, 0, 0, 4)
	v.gets("redirected", b, redirected, 0, 7, 5)
	dst.Deliver(streamBytes(0, 2)) // bytes of its own between
	v.expect(abi.Fields{Type: abi.TypeBufferReceive, Tag: b.Tag, Base: b.Base, Conn: to, Offset: 5, Length: 2})
	v.arrive(13)
	v.gets("full", b, redirected|abi.FlagFinal, 7, 12, 3)
	v.quiet("no buffer of the destination")
	v.fw.StepPolicyClock(10*ms - 1)
	v.quiet("1 ns before PEEK_WAIT")
	b = v.buffer(abi.TypeBufferAvailable, to, 5)
	v.post(b)
	v.gets("another buffer", b, redirected|abi.FlagFinal, 0, 15, 5)
	v.fw.StepPolicyClock(10*ms - 1)
	v.quiet("1 ns before PEEK_WAIT, anew")
	v.fw.StepPolicyClock(1)
	v.ends("no buffer in time", d, abi.StatusTimedOut, 13, 3)
	v.gets("behind it", behind, abi.FlagFinal, 0, 20, 2)
	v.wantCounter(abi.CounterRedirectsOver, 1)
	v.wantCounter(abi.CounterRedirectedBytes, 13)

	// The three bytes that are left: all at once, and complete.
	d = v.redirect(to, 3, 0)
	peeks := v.buffer(abi.TypeBufferAvailable, to, 5)
	peeks.Flags = abi.FlagPeek // is passed over
	b = v.buffer(abi.TypeBufferAvailable, to, 5)
	v.post(peeks, b)
	v.gets("all of it", b, redirected, 0, 22, 3)
	v.ends("the redirection", d, abi.StatusOK, 3, 0)

	// Cancelled, and ended by the destination's end.
	d = v.redirect(to, 8, 2)
	v.arrive(3)
	v.gets("redirected", b, redirected, 3, 27, 1)
	c := abi.Fields{Type: abi.TypeCancellation, Tag: v.Tag(), Conn: v.id, Offset: d.Tag}
	v.post(c)
	v.ends("a cancelled redirection", d, abi.StatusCancelled, 1, 2)
	v.expect(abi.Fields{Type: abi.TypeCancelled, Flags: abi.FlagFinal, Tag: c.Tag, Conn: v.id})
	d = v.redirect(to, 8, 0)
	v.arrive(4)
	v.gets("the rest of the buffer", b, redirected|abi.FlagFinal, 4, 28, 1)
	v.quiet("no buffer of the destination")
	term := abi.Fields{Type: abi.TypeTermination, Tag: v.Tag(), Conn: to, Length: abi.TerminateAbort}
	v.post(term)
	v.ends("the destination's peek", peeks, abi.StatusClosed, 0, 0)
	v.expect(abi.Fields{Type: abi.TypeTerminated, Flags: abi.FlagFinal, Tag: term.Tag, Conn: to, Length: abi.EndedHostReset})
	v.ends("the redirection", d, abi.StatusClosed, 1, 0)
	own = v.own(3, 0, 0)
	v.gets("what is left", own, abi.FlagFinal, 0, 29, 3)
}

// TestRedirectQueue: connections that wait for the buffers of one destination get
// them one after another, and the end of one of them lets the next one go on.
func TestRedirectQueue(t *testing.T) {
	v := newViewer(t, peekWait, 10*ms)
	to, _ := v.connect()
	type source struct {
		viewer
		d abi.Fields
	}
	var list []*source
	for range 4 {
		s := &source{viewer: viewer{rig: v.rig}}
		s.id, s.ep = v.connect()
		s.d = s.redirect(to, 4, 0)
		s.arrive(4)
		s.quiet("no buffer")
		list = append(list, s)
	}
	term := abi.Fields{Type: abi.TypeTermination, Tag: v.Tag(), Conn: list[0].id, Length: abi.TerminateAbort}
	v.post(term)
	list[0].ends("of the first", list[0].d, abi.StatusClosed, 0, 0)
	v.expect(abi.Fields{Type: abi.TypeTerminated, Flags: abi.FlagFinal, Tag: term.Tag, Conn: list[0].id, Length: abi.EndedHostReset})
	for i, s := range list[1:] {
		b := v.buffer(abi.TypeBufferAvailable, to, 4)
		v.post(b)
		s.gets("in turn", b, abi.FlagRedirect|abi.FlagFinal, 0, 0, 4)
		s.ends("in turn", s.d, abi.StatusOK, 4, 0)
		v.quiet("one buffer, one connection")
		v.wantCounter(abi.CounterRedirectedBytes, uint64(4*i+4))
	}

	// A buffer that takes the bytes of two.
	for _, s := range list[1:] {
		s.d = s.redirect(to, 2, 0)
		s.arrive(2)
		s.quiet("no buffer")
	}
	b := v.buffer(abi.TypeBufferAvailable, to, 6)
	v.post(b)
	for i, s := range list[1:] {
		flags := abi.FlagRedirect
		if i == 2 {
			flags |= abi.FlagFinal
		}
		s.gets("in turn", b, flags, uint32(2*i), 4, 2)
		s.ends("in turn", s.d, abi.StatusOK, 2, 0)
	}
}

// TestPeekRefused: what PEEK and REDIRECT are not for.
func TestPeekRefused(t *testing.T) {
	r := newRig(t, 6)
	id, _ := r.connect()
	to, _ := r.connect()
	udp, _ := r.datagram(true)
	f := r.target(abi.TypeListen, abi.Target{Protocol: 6, Count: 1, Local: peer, Remote: connectTarget().Local, Cookie: 1})
	r.post(f)
	listener := r.next().Conn
	other := r.second(1)
	far, _ := other.connect()
	const peek, redirect, skip = abi.FlagPeek, abi.FlagRedirect, abi.FlagSkip
	for _, c := range []struct {
		name   string
		conn   uint64
		flags  abi.Flags
		base   uint64
		length uint32
		offset uint32
		aux    uint16
		want   uint16
	}{
		{"peek, bulk", 0, peek, 0x4000_0000, 9, 0, 0, 33},
		{"peek, group", 1 << 59, peek | abi.FlagGroup, 0x4000_0000, 9, 0, 0, 33},
		{"peek, once", id, peek | abi.FlagOnce, 0x4000_0000, 9, 0, 0, 33},
		{"peek, piece", id, peek, 0x4000_0000, 9, 0, 0x100, 33},
		{"peek, no room", id, peek, 0x4000_0000, 9, 9, 0, 38},
		{"peek, datagrams", udp, peek, 0x4000_0000, 9, 0, 0, 16},
		{"redirection, bulk", 0, redirect, to, 9, 0, 0, 33},
		{"redirection and peek", id, redirect | peek, to, 9, 0, 0, 33},
		{"redirection, fragment", id, redirect | abi.FlagFragment, to, 9, 0, 0, 33},
		{"redirection, offset", id, redirect, to, 9, 1, 0, 33},
		{"redirection, nothing", id, redirect | skip, to, 0, 1, 0, 38},
		{"redirection, piece", id, redirect, to, 9, 0, 0x100, 33},
		{"redirection of datagrams", udp, redirect, to, 9, 0, 0, 16},
		{"redirection to datagrams", id, redirect, udp, 9, 0, 0, 16},
		{"redirection to itself", id, redirect, id, 9, 0, 0, 52},
		{"redirection to nobody", id, redirect, 1, 9, 0, 0, 36},
		{"redirection to another queue", id, redirect, far, 9, 0, 0, 37},
		{"redirection to a listener", id, redirect, listener, 9, 0, 0, 43},
	} {
		f := abi.Fields{Type: abi.TypeBufferAvailable, Flags: c.flags, Aux: c.aux, Tag: r.Tag(), Base: c.base, Conn: c.conn, Length: c.length, Offset: c.offset}
		r.post(f)
		want := abi.Fields{Type: abi.TypeBufferDone, Flags: abi.FlagFinal, Aux: c.want, Tag: f.Tag, Base: f.Base, Conn: f.Conn, Offset: f.Offset}
		if f.Flags&skip != 0 {
			want.Offset = 0
		}
		if got := r.next(); got != want {
			t.Errorf("%s: %+v, want status %d", c.name, got, c.want)
		}
	}
	// The destination takes no more.
	r.post(abi.Fields{Type: abi.TypeTermination, Tag: r.Tag(), Conn: to, Length: abi.TerminateReceive})
	r.next()
	f = abi.Fields{Type: abi.TypeBufferAvailable, Flags: redirect, Tag: r.Tag(), Base: to, Conn: id, Length: 9}
	r.post(f)
	r.expect(done(f, uint16(abi.StatusClosed), 0))
}
