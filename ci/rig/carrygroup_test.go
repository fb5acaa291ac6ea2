// SPDX-License-Identifier: Apache-2.0

package rig_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"testing"

	"toebox/guestdriver"
	"toebox/vdev/abi"
)

// TestCarryOverReceiveGroup: orderly stops, each followed by new firmware, while members
// of a receive group of two queue pairs receive: those that were taken in and those that
// arrived at a listener. Their streams have no gap, and the buffers stay posted.
func TestCarryOverReceiveGroup(t *testing.T) {
	const conns, bufs, size, total, stops = 6, 10, 3000, 60_000, 3
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	c := newCarrier(t, 2)
	echo := echoServer(t)
	q := guestdriver.NewCompletionQueue()
	g, err := c.a.NewReceiveGroup(guestdriver.GroupKey{By: guestdriver.GroupByPriority | guestdriver.GroupByID, Priority: 4}, q)
	if err != nil {
		t.Fatal(err)
	}
	m, err := c.a.Alloc(bufs * size)
	if err != nil {
		t.Fatal(err)
	}
	for i := range bufs {
		b, err := m.Buffer(i*size, size)
		if err == nil {
			err = g.Post(b)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	sent := make([]byte, total)
	for i := range sent {
		sent[i] = byte(i ^ i>>8 ^ i>>16)
	}
	ends := make(chan error, conns)
	members := map[*guestdriver.Conn]int{}
	for range conns {
		nc, err := c.a.Dial("tcp", "10.0.2.2:"+echo)
		conn := within(t, nc, err)
		if err := g.Add(conn); err != nil {
			t.Fatal(err)
		}
		members[conn] = 0
		go func() {
			_, err := conn.Write(sent)
			ends <- err
		}()
	}
	stopped, received := 0, 0
	for left := conns; left > 0; {
		d, err := q.Next(ctx)
		if err != nil {
			t.Fatalf("%v: %+v, %+v", err, g.Stats(), c.a.Stats())
		}
		at, ours := members[d.Conn]
		switch {
		case !ours || !d.Final:
			t.Fatalf("%+v", d)
		case d.Buffer == nil:
			if d.Err != io.EOF || at != total {
				t.Errorf("the end of one after %d bytes: %v", at, d.Err)
			}
			left--
			continue
		case d.Err != nil || at+d.N > total || !bytes.Equal(d.Buffer.Bytes()[:d.N], sent[at:at+d.N]):
			t.Fatalf("after %d bytes: %+v", at, d)
		}
		if members[d.Conn] += d.N; members[d.Conn] == total {
			if err := d.Conn.CloseWrite(); err != nil {
				t.Error(err)
			}
		}
		received += d.N
		if received > total*(stopped+1)/(stops+1) && stopped < stops { // none has all of it
			c.stop(true) // with this buffer not posted again
			stopped++
			c.until("all to go on", func() bool {
				s := c.a.Stats()
				return s.CarriedOver+s.CarryFailed == uint64(conns*stopped)
			})
		}
		if err := g.Post(d.Buffer); err != nil {
			t.Fatal(err)
		}
	}
	for range conns {
		if err := <-ends; err != nil {
			t.Error(err)
		}
	}
	if s := c.a.Stats(); s.CarryFailed != 0 || s.LostBuffers != 0 || s.GroupLends != 0 || stopped != stops {
		t.Errorf("%d stops: %+v", stopped, s)
	}
	for conn := range members {
		for attr, want := range map[uint16]uint64{0x0213: 4, 0x0230: uint64(g.Key().ID), 0x0231: 18} {
			if v, err := c.a.Scalar(ctx, conn.ID(), abi.Attribute(attr)); v != want || err != nil {
				t.Errorf("attribute %#x: %d, %v, want %d", attr, v, err, want)
			}
		}
		conn.Close()
	}
	if s := g.Stats(); s.Posted != bufs || s.Lent != 0 || s.Members != 0 || s.Bytes != conns*total {
		t.Errorf("%+v", s)
	}
}

// TestCarryOverArrivals: connections that arrived at a listener whose connections are
// members of a receive group, or use a pool, are that under new firmware, too.
func TestCarryOverArrivals(t *testing.T) {
	c := newCarrier(t, 1)
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	q := guestdriver.NewCompletionQueue()
	g, err := c.a.NewReceiveGroup(guestdriver.GroupKey{By: guestdriver.GroupByID}, q)
	if err != nil {
		t.Fatal(err)
	}
	m, err := c.a.Alloc(1000)
	if err != nil {
		t.Fatal(err)
	}
	b, err := m.Buffer(0, 1000)
	if err != nil {
		t.Fatal(err)
	}
	pool, err := c.a.NewPool(guestdriver.PoolConfig{Buffers: 2, Size: 1000})
	if err != nil {
		t.Fatal(err)
	}
	var near [2]net.Conn
	var far [2]*guestdriver.Conn
	for i := range near {
		nl, err := c.a.Listen("tcp4", ":0")
		if err != nil {
			t.Fatal(err)
		}
		l := nl.(*guestdriver.Listener)
		if i == 0 {
			err = l.SetReceiveGroup(g)
		} else {
			err = l.SetPool(pool)
		}
		if err != nil {
			t.Fatal(err)
		}
		in, err := net.Listen("tcp4", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		if err := c.dev.NAT().Forward(in, netip.AddrPortFrom(netip.Addr{}, uint16(l.Addr().(*net.TCPAddr).Port))); err != nil {
			t.Fatal(err)
		}
		if near[i], err = net.Dial("tcp4", in.Addr().String()); err != nil {
			t.Fatal(err)
		}
		defer near[i].Close()
		nc, err := l.Accept()
		far[i] = within(t, nc, err)
	}
	for round := range 2 {
		if err := g.Post(b); err != nil {
			t.Fatal(err)
		}
		text := fmt.Sprintf("in life %d", round)
		for _, p := range near {
			if _, err := io.WriteString(p, text); err != nil {
				t.Fatal(err)
			}
		}
		if d, err := q.Next(ctx); err != nil || d.Buffer != b || d.Conn != far[0] || string(b.Bytes()[:d.N]) != text {
			t.Errorf("%+v, %v", d, err)
		}
		s, err := far[1].ReadSegment()
		if err != nil || string(s.Bytes()) != text {
			t.Fatalf("%q, %v", s.Bytes(), err)
		}
		if err := s.Release(); err != nil {
			t.Error(err)
		}
		if round == 0 {
			c.stop(true)
			c.until("all to go on", func() bool { return c.a.Stats().CarriedOver == 2 })
		}
	}
	pool.Close()
}

// TestRIG09_ReceiveGroup: a member that goes on on another adapter is told that it is none
// any more, and goes on with Read; the buffers come back from the adapter that stands by.
func TestRIG09_ReceiveGroup(t *testing.T) {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	l := newLink(t)
	l.echo(":7")
	first, second := l.at[0].a, l.at[1].a
	q := guestdriver.NewCompletionQueue()
	g, err := first.NewReceiveGroup(guestdriver.GroupKey{By: guestdriver.GroupByID}, q)
	if err != nil {
		t.Fatal(err)
	}
	m, err := first.Alloc(2000)
	if err != nil {
		t.Fatal(err)
	}
	for i := range 2 {
		b, err := m.Buffer(1000*i, 1000)
		if err == nil {
			err = g.Post(b)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	nc, err := first.Dial("tcp", "10.0.2.2:7")
	c := within(t, nc, err)
	if err := g.Add(c); err != nil {
		t.Fatal(err)
	}
	next := func() guestdriver.Completion {
		t.Helper()
		d, err := q.Next(ctx)
		if err != nil {
			t.Fatal(err)
		}
		return d
	}
	if _, err := io.WriteString(c, "one"); err != nil {
		t.Fatal(err)
	}
	d := next()
	if d.Buffer == nil || d.Conn != c || string(d.Buffer.Bytes()[:d.N]) != "one" {
		t.Fatalf("%+v", d)
	}
	if err := g.Post(d.Buffer); err != nil {
		t.Fatal(err)
	}
	if err := l.g.Failover(t.Context(), first); err != nil {
		t.Fatal(err)
	}
	if d := next(); d.Buffer != nil || d.Conn != c || !d.Final || d.Err == nil || d.Err == io.EOF {
		t.Errorf("%+v", d)
	}
	exchange(t, c, "two")
	if err := g.Add(c); err == nil {
		t.Error("a connection of another adapter was taken in")
	}
	other, err := second.NewReceiveGroup(guestdriver.GroupKey{By: guestdriver.GroupByID}, q)
	if err != nil {
		t.Fatal(err)
	}
	if err := other.Add(c); err != nil {
		t.Error(err)
	}
	if s := g.Stats(); s.Posted != 2 || s.Members != 0 {
		t.Errorf("%+v", s)
	}
	if err := g.Close(); err != nil {
		t.Error(err)
	}
	for range 2 {
		if d := next(); d.Buffer == nil || d.N != 0 || !errors.Is(d.Err, net.ErrClosed) {
			t.Errorf("%+v", d)
		}
	}
	if err := m.Deregister(); err != nil {
		t.Error(err)
	}
}
