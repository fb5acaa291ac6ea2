// SPDX-License-Identifier: Apache-2.0

package guestdriver_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"syscall"
	"testing"

	"toebox/guestdriver"
	"toebox/guestdriver/guestdrivertest"
	"toebox/vdev/abi"
)

// audience is a group of connections, and their other ends, from which nothing is
// read unless a test does.
type audience struct {
	*guestdriver.SendGroup
	conns, far []*guestdriver.Conn
	q          *guestdriver.CompletionQueue
}

func newAudience(t testing.TB, a *guestdriver.Adapter, n int) *audience {
	t.Helper()
	g := &audience{SendGroup: a.NewSendGroup(), q: guestdriver.NewCompletionQueue()}
	for range n {
		c, far := pair(t, a)
		t.Cleanup(func() { c.Close(); far.Close() })
		if len(g.conns)%2 == 1 {
			c, far = far, c // on another queue pair, if there are two
		}
		far.SetReadAhead(false)
		if err := g.Add(c); err != nil {
			t.Fatal(err)
		}
		g.conns, g.far = append(g.conns, c), append(g.far, far)
	}
	return g
}

// results takes the completions of a broadcast of b, the last of which is Final, by
// connection.
func (g *audience) results(t testing.TB, b *guestdriver.Buffer, n int) map[*guestdriver.Conn]guestdriver.Completion {
	t.Helper()
	all := map[*guestdriver.Conn]guestdriver.Completion{}
	for i := range n {
		d := next(t, g.q)
		if d.Buffer != b || d.Op != guestdriver.OpBroadcast || d.Offset != 0 || d.Final != (i == n-1) {
			t.Fatalf("completion %d of %d: %+v", i, n, d)
		}
		if _, twice := all[d.Conn]; twice {
			t.Fatalf("two completions of one connection: %+v", d)
		}
		d.Buffer, d.Final = nil, false
		all[d.Conn] = d
	}
	return all
}

// TestBroadcast sends two buffers on seven connections of two queue pairs, between
// what each of them writes: one descriptor goes to the adapter for each queue pair.
func TestBroadcast(t *testing.T) {
	var found mistakes
	a, f := open(t, guestdriver.Options{Queues: 2, NoReadAhead: true, Debug: found.add})
	g := newAudience(t, a, 7)
	seen := make(chan abi.Fields, 64)
	f.Intercept(func(_ int, r abi.Fields) bool {
		if r.Type == abi.TypeBufferSend && r.Flags&abi.FlagGroup != 0 {
			seen <- r
		}
		return false
	})
	m := region(t, a, 20_000)
	b := part(t, m, 100, 15_000)
	before := a.Stats()
	for round := range 2 {
		for i, c := range g.conns {
			fmt.Fprintf(c, "%d of %d:", i, round)
		}
		if err := b.SetLen(15_000 - round); err != nil {
			t.Fatal(err)
		}
		f.Pause(0, true)
		f.Pause(1, true)
		if err := g.Send(b, g.q); err != nil {
			t.Fatal(err)
		}
		if err := g.Send(b, g.q); !errors.Is(err, guestdriver.ErrBusy) {
			t.Errorf("a second time: %v", err)
		}
		if err := m.Deregister(); !errors.Is(err, guestdriver.ErrBusy) {
			t.Errorf("deregister: %v", err)
		}
		f.Pause(0, false)
		f.Pause(1, false)
		found.one(t) // that of the second time
		all := g.results(t, b, 7)
		for _, c := range g.conns {
			if d := all[c]; d != (guestdriver.Completion{Conn: c, Op: guestdriver.OpBroadcast, N: 15_000 - round}) {
				t.Errorf("round %d: %+v", round, d)
			}
		}
		for range 2 {
			if r := <-seen; !r.Modify || r.ASAP || r.Flags != abi.FlagGroup || r.Conn>>59 != 16 || r.Base != m.IOVA()+100 || r.Offset != 0 || int(r.Length) != 15_000-round {
				t.Errorf("request %+v", r)
			}
		}
		for i, c := range g.far {
			want := fmt.Appendf(nil, "%d of %d:", i, round)
			want = append(want, b.Bytes()...)
			got := make([]byte, len(want))
			if _, err := io.ReadFull(c, got); err != nil || !bytes.Equal(got, want) {
				t.Errorf("connection %d: %.20q, want %.20q, %v", i, got, want, err)
			}
		}
	}
	if len(seen) != 0 {
		t.Errorf("one more request: %+v", <-seen)
	}
	s := a.Stats()
	if s.Broadcasts-before.Broadcasts != 2 || s.BroadcastSends-before.BroadcastSends != 14 || s.DirectBytes-before.DirectBytes != 7*29_999 {
		t.Errorf("%+v", s)
	}
	// Who is in.
	c := g.conns[0]
	g.Remove(c)
	g.Remove(c)
	if v, err := a.Scalar(context.Background(), c.ID(), 0x0231); v != 1 || err != nil || len(g.Conns()) != 6 {
		t.Errorf("GROUP_BY %d, %v, of one that left %d", v, err, len(g.Conns()))
	}
	other := a.NewSendGroup()
	if err := other.Add(g.conns[1]); err == nil {
		t.Error("a connection is of two groups")
	}
	if err := g.conns[1].SetPool(nil); err == nil {
		t.Error("a connection of a group got another one by SetPool")
	}
	if err := other.Send(b, g.q); !errors.Is(err, abi.StatusBadConnection) {
		t.Errorf("to nobody: %v", err)
	}
	p, err := a.NewPool(guestdriver.PoolConfig{Buffers: 1, Size: 100})
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	if err := c.SetPool(p); err != nil {
		t.Fatal(err)
	}
	if err := other.Add(c); err == nil {
		t.Error("a connection is of a group and a pool")
	}
}

// TestBroadcastEnds: while a broadcast is under way a connection is closed, one is
// reset by its peer, one goes on and the rest is cancelled; then the adapter is reset
// under another broadcast. Each connection has its result, and the memory comes back.
func TestBroadcastEnds(t *testing.T) {
	a, f := open(t, guestdriver.Options{NoReadAhead: true})
	g := newAudience(t, a, 5)
	const size = 300_000 // fills what the fake takes without a reader
	m := region(t, a, 2*size)
	first, second := part(t, m, 0, size), part(t, m, size, size)
	if err := g.Send(first, g.q); err != nil {
		t.Fatal(err)
	}
	g.results(t, first, 5)
	for _, c := range []*guestdriver.Conn{g.conns[0], g.far[1]} {
		if err := c.SetLinger(0); err != nil {
			t.Fatal(err)
		}
	}
	if err := g.Send(second, g.q); err != nil {
		t.Fatal(err)
	}
	one := func(what string, c *guestdriver.Conn, n int, cause error, final bool) {
		t.Helper()
		d := next(t, g.q)
		if d.Buffer != second || d.Conn != c || d.N != n || !errors.Is(d.Err, cause) || d.Final != final {
			t.Errorf("%s: %+v", what, d)
		}
	}
	g.conns[0].Close()
	one("closed", g.conns[0], 0, net.ErrClosed, false)
	g.far[1].Close()
	one("reset by its peer", g.conns[1], 0, syscall.ECONNRESET, false)
	if _, err := io.CopyN(io.Discard, struct{ io.Reader }{g.far[2]}, size); err != nil {
		t.Fatal(err)
	}
	one("read on", g.conns[2], size, nil, false)
	if err := m.Deregister(); !errors.Is(err, guestdriver.ErrBusy) {
		t.Errorf("deregister: %v", err)
	}
	for range 2 {
		if err := g.Cancel(second); err != nil {
			t.Fatal(err)
		}
	}
	left := map[*guestdriver.Conn]bool{g.conns[3]: true, g.conns[4]: true}
	for i := range 2 {
		d := next(t, g.q)
		if !left[d.Conn] || d.Buffer != second || d.N != 0 || !errors.Is(d.Err, syscall.ECANCELED) || d.Final != (i == 1) {
			t.Errorf("cancelled: %+v", d)
		}
		delete(left, d.Conn)
	}
	if err := g.Cancel(second); err != nil {
		t.Errorf("cancel of nothing: %v", err)
	}

	// The failed ones are still in.
	f.Pause(0, true)
	if err := g.Send(second, g.q); err != nil {
		t.Fatal(err)
	}
	for _, c := range g.conns[:2] {
		cause := error(net.ErrClosed)
		if c == g.conns[1] {
			cause = syscall.ECONNRESET
		}
		one("one that failed before", c, 0, cause, false)
	}
	f.Restart()
	for c, d := range g.results(t, second, 3) {
		if !errors.Is(d.Err, guestdriver.ErrReset) {
			t.Errorf("%p under a reset: %+v", c, d)
		}
	}
	if err := g.Send(second, g.q); err != nil {
		t.Fatal(err)
	}
	for _, d := range g.results(t, second, 5) {
		if d.Err == nil || d.N != 0 {
			t.Errorf("all have failed: %+v", d)
		}
	}
	if err := m.Deregister(); err != nil {
		t.Errorf("deregister: %v", err)
	}
	if err := g.Send(second, g.q); err == nil {
		t.Error("memory that is not registered was sent")
	}
	if s := a.Stats(); s.LostBuffers != 0 || s.Outstanding != 0 {
		t.Errorf("%+v", s)
	}
}

// TestBroadcastResponses: of what the adapter answers only what can be is believed.
func TestBroadcastResponses(t *testing.T) {
	a, f := open(t, guestdriver.Options{NoReadAhead: true})
	g := newAudience(t, a, 3)
	seen := make(chan abi.Fields, 4)
	f.Intercept(func(_ int, r abi.Fields) bool {
		if r.Type == abi.TypeBufferSend {
			seen <- r
			return true
		}
		return false
	})
	m := region(t, a, 1000)
	b := part(t, m, 0, 1000)
	send := func() abi.Fields {
		t.Helper()
		if err := g.Send(b, g.q); err != nil {
			t.Fatal(err)
		}
		r := guestdrivertest.Answer(<-seen, abi.TypeBufferDone, abi.StatusOK)
		r.Length = 1000
		return r
	}
	of := func(r abi.Fields, c *guestdriver.Conn, final bool) abi.Fields {
		r.Conn = c.ID()
		if !final {
			r.Flags = 0
		}
		return r
	}
	r := send()
	long, odd, twice, early := of(r, g.conns[0], false), of(r, g.conns[0], false), of(r, g.conns[0], false), of(r, g.conns[2], false)
	long.Length, odd.Type = 1001, abi.TypeBufferReceive
	group := r
	group.Flags = 0
	f.Inject(0, long, odd, group, of(r, g.far[0], false), of(r, g.conns[0], false), twice, of(r, g.conns[1], false), early, of(r, g.conns[2], true))
	for c, d := range g.results(t, b, 3) {
		if d.Err != nil || d.N != 1000 {
			t.Errorf("%p: %+v", c, d)
		}
	}
	if s := a.Stats(); s.BadLengths != 1 || s.BadTypes != 1 || s.BadConns != 3 || s.BadFinals != 1 || s.BadTags != 0 {
		t.Errorf("%+v", s)
	}

	// Left out, for which there is no reason.
	r = send()
	f.Inject(0, of(r, g.conns[1], true))
	all := g.results(t, b, 3)
	for i, c := range g.conns {
		if d := all[c]; (i == 1) != (d.Err == nil) || i != 1 && !errors.Is(d.Err, net.ErrClosed) {
			t.Errorf("connection %d: %+v", i, d)
		}
	}

	// Refused as a whole.
	g = newAudience(t, a, 2)
	for _, s := range []abi.Status{abi.StatusNoMemory, abi.StatusReserved} {
		r = send()
		r.Aux, r.Length = uint16(s), 0
		if s == abi.StatusReserved {
			r.Type = abi.TypeRejected
		}
		f.Inject(0, r)
		for c, d := range g.results(t, b, 2) {
			if !errors.Is(d.Err, s) || d.N != 0 {
				t.Errorf("%p: %+v, want %v", c, d, s)
			}
		}
		g = newAudience(t, a, 2)
	}
}

// One buffer for all: it is written once, posted once, and free when the last
// connection has it.
func ExampleSendGroup() {
	ctx := context.Background()
	a, err := guestdriver.Open(ctx, guestdrivertest.New(), guestdriver.Options{})
	if err != nil {
		log.Fatal(err)
	}
	defer a.Close()
	g := a.NewSendGroup()
	for range 3 {
		c, err := a.Dial("tcp", "10.0.2.2:7")
		if err != nil {
			log.Fatal(err)
		}
		defer c.Close()
		if err := g.Add(c.(*guestdriver.Conn)); err != nil {
			log.Fatal(err)
		}
	}
	m, err := a.Alloc(4096)
	if err != nil {
		log.Fatal(err)
	}
	b, _ := m.Buffer(0, copy(m.Bytes(), "news for all"))
	q := guestdriver.NewCompletionQueue()
	if err := g.Send(b, q); err != nil { // the adapter's from here on
		log.Fatal(err)
	}
	for final := false; !final; {
		d, err := q.Next(ctx)
		if err != nil {
			log.Fatal(err)
		}
		if d.Err != nil {
			g.Remove(d.Conn)
		}
		final = d.Final
	}
	news := make([]byte, len(b.Bytes()))
	for _, c := range g.Conns() {
		if _, err := io.ReadFull(c, news); err != nil {
			log.Fatal(err)
		}
		fmt.Println(string(news))
	}
	// Output:
	// news for all
	// news for all
	// news for all
}
