// SPDX-License-Identifier: Apache-2.0

package guestdriver_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"toebox/guestdriver"
	"toebox/guestdriver/guestdrivertest"
	"toebox/vdev/abi"
)

// TestReceiveGroupHostile: what does not fit a buffer of a group changes nothing.
func TestReceiveGroupHostile(t *testing.T) {
	var found mistakes
	a, f := open(t, guestdriver.Options{Debug: found.add})
	c, far := pair(t, a)
	defer c.Close()
	defer far.Close()
	posted := make(chan abi.Fields, 16)
	f.Intercept(func(_ int, r abi.Fields) bool {
		if r.Flags&abi.FlagGroup == 0 {
			return r.Type == abi.TypeCancellation && r.Conn>>59 == 16
		}
		posted <- r
		return true
	})
	g, q, bufs := receivers(t, a, guestdriver.GroupKey{By: guestdriver.GroupByID, ID: 7}, 2, 100)
	for _, c := range []*guestdriver.Conn{c, far} {
		if err := g.Add(c); err != nil {
			t.Fatal(err)
		}
	}
	first, second := <-posted, <-posted
	fill := func(change func(r *abi.Fields)) {
		r := guestdrivertest.Answer(first, abi.TypeBufferReceive, abi.StatusOK)
		r.Conn, r.Length, r.Base = c.ID(), 10, first.Base
		change(&r)
		f.Inject(0, r)
	}
	counts := func() string {
		s := a.Stats()
		return fmt.Sprintf("lengths %d, connections %d, finals %d, types %d", s.BadLengths, s.BadConns, s.BadFinals, s.BadTypes)
	}
	for _, k := range []struct {
		change func(r *abi.Fields)
		counts string
		again  bool // it is posted again
	}{
		{func(r *abi.Fields) { r.Length = 101 }, "lengths 1, connections 0, finals 0, types 0", false},
		{func(r *abi.Fields) { r.Offset = 1 }, "lengths 2, connections 0, finals 0, types 0", false},
		{func(r *abi.Fields) { r.Flags = 0 }, "lengths 2, connections 0, finals 1, types 0", false},
		{func(r *abi.Fields) { r.Type = abi.TypeBufferDone }, "lengths 3, connections 0, finals 1, types 0", false},
		{func(r *abi.Fields) { r.Type, r.Length = abi.TypeBufferDone, 0 }, "lengths 3, connections 1, finals 1, types 0", false},
		{func(r *abi.Fields) { r.Type = abi.TypeCompletion }, "lengths 3, connections 1, finals 1, types 1", false},
		{func(r *abi.Fields) { r.Conn = 12345 }, "lengths 3, connections 2, finals 1, types 1", true},
		{func(r *abi.Fields) { r.Length = 0 }, "lengths 4, connections 2, finals 1, types 1", true},
		{func(r *abi.Fields) { r.Length, r.Aux = 101, uint16(abi.StatusTruncated) }, "lengths 5, connections 2, finals 1, types 1", true},
	} {
		fill(k.change)
		waitFor(t, k.counts, func() bool { return counts() == k.counts })
		if k.again {
			if r := <-posted; r.Base != first.Base || r.Tag == first.Tag {
				t.Errorf("%s: posted %+v", k.counts, r)
			} else {
				first = r
			}
		}
	}
	if len(posted) > 0 {
		t.Errorf("posted %+v", <-posted)
	}
	found.none(t)

	// What is said of two buffers at once.
	if second.Base != first.Base+100 {
		t.Fatalf("buffers at %#x and %#x", first.Base, second.Base)
	}
	fill(func(r *abi.Fields) {
		r.Tag, r.Length = second.Tag, 150
		r.Flags |= abi.FlagCombined
	})
	if second.Tag == first.Tag+1 { // the first one was posted again since
		t.Fatal("tags in order")
	}
	waitFor(t, "a run of tags that is none", func() bool { return a.Stats().BadLengths == 6 })

	// Somebody writes to what the adapter has.
	bufs[0].Bytes()[50]++
	fill(func(*abi.Fields) {})
	if d := next(t, q); d.Buffer != bufs[0] || d.Conn != c || d.N != 10 || d.Err == nil {
		t.Errorf("%+v", d)
	}
	if e := found.one(t); e.Offset != 50 || !strings.Contains(e.Since, "ReceiveGroup") {
		t.Errorf("%v", e)
	}
	if err := g.Post(bufs[1]); !errors.Is(err, guestdriver.ErrBusy) {
		t.Errorf("posted twice: %v", err)
	}
	found.one(t)
	if err := bufs[1].Memory().Deregister(); !errors.Is(err, guestdriver.ErrBusy) {
		t.Errorf("deregister: %v", err)
	}

	// Refused as a whole, or not written: the host's again.
	for _, s := range []abi.Status{abi.StatusBadMemory, abi.StatusNoMemory} {
		if err := g.Post(bufs[0]); err != nil {
			t.Fatal(err)
		}
		first = <-posted
		r := guestdrivertest.Answer(first, abi.TypeBufferDone, s)
		r.Base = first.Base
		f.Inject(0, r)
		if d := next(t, q); d.Buffer != bufs[0] || d.Conn != nil || d.N != 0 || !errors.Is(d.Err, s) || !d.Final {
			t.Errorf("%+v", d)
		}
	}
	// Taken back, and never answered: a reset ends it.
	if err := errors.Join(g.Cancel(bufs[1]), g.Cancel(bufs[1])); err != nil {
		t.Error(err)
	}
	f.Restart()
	// The connections end with it, each in its own time.
	for range 3 {
		d := next(t, q)
		switch {
		case d.Buffer == bufs[1] && errors.Is(d.Err, syscall.ECANCELED):
		case d.Buffer == nil && errors.Is(d.Err, guestdriver.ErrReset):
		default:
			t.Errorf("%+v", d)
		}
	}
}

// TestReceiveGroupCombined: one response for a run of buffers, of the group and of the
// connection itself, tells of each.
func TestReceiveGroupCombined(t *testing.T) {
	a, f := open(t, guestdriver.Options{NoReadAhead: true})
	c, far := pair(t, a)
	defer c.Close()
	defer far.Close()
	posted := make(chan abi.Fields, 16)
	f.Intercept(func(_ int, r abi.Fields) bool {
		if r.Type == abi.TypeBufferAvailable {
			posted <- r
			return true
		}
		return false
	})
	g, q, _ := receivers(t, a, guestdriver.GroupKey{By: guestdriver.GroupByID}, 0, 0)
	if err := g.Add(far); err != nil {
		t.Fatal(err)
	}
	m := region(t, a, 300)
	bufs := []*guestdriver.Buffer{part(t, m, 0, 100), part(t, m, 100, 100), part(t, m, 200, 100)}
	if err := errors.Join(far.PostBuffer(bufs[0], q), g.Post(bufs[1]), g.Post(bufs[2])); err != nil {
		t.Fatal(err)
	}
	<-posted
	<-posted
	r := guestdrivertest.Answer(<-posted, abi.TypeBufferReceive, abi.StatusOK)
	r.Base, r.Conn, r.Length = m.IOVA(), far.ID(), 250
	r.Flags |= abi.FlagCombined
	f.Inject(0, r)
	for i, op := range []guestdriver.Op{guestdriver.OpReceive, guestdriver.OpGroup, guestdriver.OpGroup} {
		want := guestdriver.Completion{Buffer: bufs[i], Conn: far, Op: op, N: 100, Final: true}
		if i == 2 {
			want.N = 50
		}
		if d := next(t, q); d != want {
			t.Errorf("%+v, want %+v", d, want)
		}
	}
	if s := a.Stats(); s.Combined != 1 || s.CombinedBuffers != 3 || s.BadLengths != 0 {
		t.Errorf("%+v", s)
	}
}

// TestReceiveGroupReset: buffers stay posted over resets, arrivals are members of the
// group behind them, and the end of the adapter is that of all.
func TestReceiveGroupReset(t *testing.T) {
	a, f := open(t, guestdriver.Options{Queues: 2})
	nl, err := a.Listen("tcp", "10.0.2.15:80")
	if err != nil {
		t.Fatal(err)
	}
	l := nl.(*guestdriver.Listener)
	g, q, bufs := receivers(t, a, guestdriver.GroupKey{By: guestdriver.GroupByID | guestdriver.GroupByPort, Port: 80}, 6, 1000)
	if err := l.SetReceiveGroup(g); err != nil {
		t.Fatal(err)
	}
	for round := range 3 {
		var near net.Conn
		for until := time.Now().Add(limit); near == nil; {
			if near, err = a.Dial("tcp", "10.0.2.15:80"); err != nil && time.Now().After(until) {
				t.Fatal(err)
			}
		}
		far, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		c := far.(*guestdriver.Conn)
		text := fmt.Sprintf("life %d", round)
		write(t, near, text)
		if err := g.Post(got(t, q, c, text)); err != nil {
			t.Fatal(err)
		}
		if s := g.Stats(); s.Posted != 6 || s.Members != 1 || s.Buffers != uint64(round+1) {
			t.Errorf("%+v", s)
		}
		if round == 2 {
			break
		}
		f.Restart()
		if d := next(t, q); d.Conn != c || d.Buffer != nil || !errors.Is(d.Err, guestdriver.ErrReset) {
			t.Errorf("%+v", d)
		}
		waitFor(t, "the restart", func() bool { return a.Stats().Resets == uint64(round+1) })
		near.Close()
		far.Close()
	}
	if err := a.Close(); err != nil {
		t.Fatal(err)
	}
	left := map[*guestdriver.Buffer]bool{nil: true}
	for _, b := range bufs {
		left[b] = true
	}
	for range 7 {
		d := next(t, q)
		if !left[d.Buffer] || d.N != 0 || !d.Final || !errors.Is(d.Err, net.ErrClosed) {
			t.Errorf("%+v", d)
		}
		delete(left, d.Buffer)
	}
	if _, err := a.NewReceiveGroup(guestdriver.GroupKey{}, q); err != net.ErrClosed {
		t.Errorf("a group of a closed adapter: %v", err)
	}
}

// TestReceiveGroupMany: connections come and go, some members and some not, while
// buffers are cancelled and posted again; no byte of anybody is lost or out of order.
func TestReceiveGroupMany(t *testing.T) {
	const conns, rounds, size = 12, 40, 300
	a, _ := open(t, guestdriver.Options{Queues: 2, NoReadAhead: true})
	g, q, _ := receivers(t, a, guestdriver.GroupKey{By: guestdriver.GroupByID}, 8, size)
	var senders, readers sync.WaitGroup
	want := map[*guestdriver.Conn]*[]byte{}
	all := make([][]byte, conns)
	for i := range conns {
		near, far := pair(t, a)
		defer near.Close()
		defer far.Close()
		for j := range rounds {
			all[i] = append(all[i], bytes.Repeat([]byte{byte(i), byte(j)}, 1+(i*j)%400)...)
		}
		if i%4 == 3 { // in the group for the adapter, not for the driver
			ctx := context.Background()
			if err := errors.Join(a.SetScalar(ctx, far.ID(), 0x0230, uint64(g.Key().ID)), a.SetScalar(ctx, far.ID(), 0x0231, 16)); err != nil {
				t.Fatal(err)
			}
			readers.Go(func() {
				if b, err := io.ReadAll(struct{ io.Reader }{far}); err != nil || !bytes.Equal(b, all[i]) {
					t.Errorf("connection %d, by Read: %d of %d bytes, %v", i, len(b), len(all[i]), err)
				}
			})
		} else {
			if err := g.Add(far); err != nil {
				t.Fatal(err)
			}
			want[far] = &all[i]
		}
		senders.Go(func() {
			for b := all[i]; len(b) > 0; {
				n := min(len(b), 777)
				if _, err := near.Write(b[:n]); err != nil {
					t.Errorf("connection %d: %v", i, err)
					return
				}
				b = b[n:]
			}
			if err := near.CloseWrite(); err != nil {
				t.Errorf("connection %d: %v", i, err)
			}
		})
	}
	got := map[*guestdriver.Conn][]byte{}
	for n := 0; len(want) > 0; n++ {
		d := next(t, q)
		switch {
		case d.Buffer == nil:
			if w := want[d.Conn]; w == nil || d.Err != io.EOF || !bytes.Equal(got[d.Conn], *w) {
				t.Errorf("the end of %d: %v, %d bytes", d.Conn.ID(), d.Err, len(got[d.Conn]))
			}
			delete(want, d.Conn)
			continue
		case errors.Is(d.Err, syscall.ECANCELED):
		case d.Err != nil || !d.Final:
			t.Fatalf("%+v", d)
		default:
			got[d.Conn] = append(got[d.Conn], d.Buffer.Bytes()[:d.N]...)
		}
		if err := g.Post(d.Buffer); err != nil {
			t.Fatal(err)
		}
		if n%7 == 0 {
			if err := g.Cancel(d.Buffer); err != nil {
				t.Fatal(err)
			}
		}
	}
	senders.Wait()
	readers.Wait()
	waitFor(t, "all buffers to be posted", func() bool {
		var some [4]guestdriver.Completion
		for _, d := range some[:q.Poll(some[:])] { // of cancellations
			if err := g.Post(d.Buffer); err != nil {
				t.Error(err)
			}
		}
		s := g.Stats()
		return s.Posted == 8 && s.Lent == 0
	})
}
