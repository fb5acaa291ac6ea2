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
	"strings"
	"syscall"
	"testing"

	"toebox/guestdriver"
	"toebox/guestdriver/guestdrivertest"
	"toebox/vdev/abi"
)

// receivers makes a group, and posts n buffers of size bytes there.
func receivers(t testing.TB, a *guestdriver.Adapter, key guestdriver.GroupKey, n, size int) (*guestdriver.ReceiveGroup, *guestdriver.CompletionQueue, []*guestdriver.Buffer) {
	t.Helper()
	q := guestdriver.NewCompletionQueue()
	g, err := a.NewReceiveGroup(key, q)
	if err != nil {
		t.Fatal(err)
	}
	return g, q, post(t, a, g, n, size)
}

func post(t testing.TB, a *guestdriver.Adapter, g *guestdriver.ReceiveGroup, n, size int) []*guestdriver.Buffer {
	t.Helper()
	if n == 0 {
		return nil
	}
	m := region(t, a, n*size)
	bufs := make([]*guestdriver.Buffer, n)
	for i := range bufs {
		bufs[i] = part(t, m, i*size, size)
		if err := g.Post(bufs[i]); err != nil {
			t.Fatal(err)
		}
	}
	return bufs
}

// got takes a completion of bytes of c.
func got(t testing.TB, q *guestdriver.CompletionQueue, c *guestdriver.Conn, want string) *guestdriver.Buffer {
	t.Helper()
	d := next(t, q)
	if d.Buffer == nil || d.Conn != c || d.Op != guestdriver.OpGroup || d.Offset != 0 || !d.Final || d.Err != nil || string(d.Buffer.Bytes()[:d.N]) != want {
		t.Fatalf("%+v, want %q of %d", d, want, c.ID())
	}
	return d.Buffer
}

func write(t testing.TB, c io.Writer, s string) {
	t.Helper()
	if _, err := io.WriteString(c, s); err != nil {
		t.Fatal(err)
	}
}

// TestReceiveGroupTuples: what the adapter is told of a buffer, a member, and a
// listener whose connections are members.
func TestReceiveGroupTuples(t *testing.T) {
	a, f := open(t, guestdriver.Options{NoReadAhead: true})
	c, far := pair(t, a)
	defer c.Close()
	defer far.Close()
	l, err := a.Listen("tcp", "10.0.2.15:1234")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	posted, tuples := make(chan abi.Fields, 4), make(chan []byte, 4)
	f.Intercept(func(_ int, r abi.Fields) bool {
		switch r.Type {
		case abi.TypeBufferAvailable:
			posted <- r
		case abi.TypeConnectionAttr:
			b := make([]byte, r.Length)
			f.Peek(r.Base, b)
			tuples <- b
		}
		return false
	})
	q := guestdriver.NewCompletionQueue()
	const all = guestdriver.GroupByPriority | guestdriver.GroupByClass | guestdriver.GroupByID
	for _, k := range []struct {
		key    guestdriver.GroupKey
		id     uint64
		flags  abi.Flags
		tuples []byte
	}{
		{guestdriver.GroupKey{By: all, Priority: 5, Class: 9, ID: 0xabc}, 0xb5090000_00000abc, 0x08, []byte{
			0x13, 0x82, 0, 0, 8, 0, 0, 0, 5, 0, 0, 0, 0, 0, 0, 0, // set PRIORITY, 8 bytes
			0x14, 0x82, 0, 0, 8, 0, 0, 0, 9, 0, 0, 0, 0, 0, 0, 0, // QOS_CLASS
			0x30, 0x82, 0, 0, 8, 0, 0, 0, 0xbc, 0x0a, 0, 0, 0, 0, 0, 0, // GROUP
			0x31, 0x82, 0, 0, 8, 0, 0, 0, 22, 0, 0, 0, 0, 0, 0, 0, // GROUP_BY
		}},
		{guestdriver.GroupKey{By: guestdriver.GroupByPort, Port: 1234}, 0x080004d2_00000000, 0x08, []byte{
			0x31, 0x82, 0, 0, 8, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0,
		}},
		{guestdriver.GroupKey{}, 0, 0, nil},
	} {
		g, err := a.NewReceiveGroup(k.key, q)
		if err != nil {
			t.Fatal(err)
		}
		b := post(t, a, g, 1, 100)[0]
		if r := <-posted; r.Conn != k.id || r.Flags != k.flags || r.Length != 100 || r.Offset != 0 || r.Base != b.Memory().IOVA() {
			t.Errorf("%+v: posted %+v", k.key, r)
		}
		if err := l.(*guestdriver.Listener).SetReceiveGroup(g); err != nil {
			t.Fatal(err)
		}
		want := k.tuples
		if want == nil { // out of the group before
			want = []byte{
				0x30, 0x82, 0, 0, 8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
				0x31, 0x82, 0, 0, 8, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0,
			}
		}
		if got := <-tuples; !bytes.Equal(got, want) {
			t.Errorf("%+v: the listener was set by\n% x, want\n% x", k.key, got, want)
		}
		if k.key.By&guestdriver.GroupByPort == 0 {
			if err := g.Add(c); err != nil {
				t.Fatal(err)
			}
			if k.tuples != nil {
				if got := <-tuples; !bytes.Equal(got, k.tuples) {
					t.Errorf("%+v: a connection was set by\n% x, want\n% x", k.key, got, k.tuples)
				}
			}
			g.Remove(c)
			if k.tuples != nil {
				<-tuples
			}
		}
		if err := g.Close(); err != nil {
			t.Error(err)
		}
		if d := next(t, q); d.Buffer != b || d.Conn != nil || d.N != 0 || !d.Final || d.Err != net.ErrClosed {
			t.Errorf("after Close: %+v", d)
		}
		if err := g.Post(b); err != net.ErrClosed {
			t.Errorf("post to a closed group: %v", err)
		}
	}
	if len(tuples) > 0 {
		t.Errorf("one more control: % x", <-tuples)
	}
	for _, k := range []struct {
		key  guestdriver.GroupKey
		name string
	}{
		{guestdriver.GroupKey{By: 8}, "GROUP_BY 0x0231"},
		{guestdriver.GroupKey{Port: 1}, "LOCAL 0x0201"},
		{guestdriver.GroupKey{By: guestdriver.GroupByPort, Port: 65536}, "LOCAL 0x0201"},
		{guestdriver.GroupKey{By: guestdriver.GroupByPriority, Priority: 8}, "PRIORITY 0x0213"},
		{guestdriver.GroupKey{By: guestdriver.GroupByClass, Class: -1}, "QOS_CLASS 0x0214"},
		{guestdriver.GroupKey{By: guestdriver.GroupByID, ID: 1 << 31}, "GROUP 0x0230"},
	} {
		if _, err := a.NewReceiveGroup(k.key, q); !errors.Is(err, abi.StatusBadValue) || !strings.Contains(err.Error(), k.name) {
			t.Errorf("%+v: %v", k.key, err)
		}
	}
}

// TestReceiveGroup: connections that arrive at a listener, and others, receive into
// the same buffers, of two queue pairs; a buffer of a connection comes first, what comes
// for one that is no member is for Read.
func TestReceiveGroup(t *testing.T) {
	a, _ := open(t, guestdriver.Options{Queues: 2})
	nl, err := a.Listen("tcp", "10.0.2.15:80")
	if err != nil {
		t.Fatal(err)
	}
	defer nl.Close()
	l := nl.(*guestdriver.Listener)
	dial := func() (near, far *guestdriver.Conn) {
		t.Helper()
		c, err := a.Dial("tcp", "10.0.2.15:80")
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		s, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { s.Close() })
		return c.(*guestdriver.Conn), s.(*guestdriver.Conn)
	}
	strange, stranger := dial() // before the group was there
	stranger.SetReadAhead(false)
	g, q, bufs := receivers(t, a, guestdriver.GroupKey{By: guestdriver.GroupByPort, Port: 80}, 4, 10)
	if err := l.SetReceiveGroup(g); err != nil {
		t.Fatal(err)
	}
	if s := g.Stats(); s != (guestdriver.ReceiveGroupStats{Posted: 4}) {
		t.Errorf("%+v", s)
	}
	near, one := dial()
	near2, two := dial()
	write(t, near, "0123456789abc")
	b := got(t, q, one, "0123456789")
	b2 := got(t, q, one, "abc")
	write(t, near2, "x")
	// The listener's queue pair has no more of the four.
	if err := g.Post(b); err != nil {
		t.Fatal(err)
	}
	b3 := got(t, q, two, "x")
	if err := errors.Join(g.Post(b2), g.Post(b3)); err != nil {
		t.Fatal(err)
	}

	// A buffer of its own first, then those of the group.
	own := part(t, region(t, a, 4), 0, 4)
	if err := one.PostBuffer(own, q); err != nil {
		t.Fatal(err)
	}
	write(t, near, "ownedrest")
	if d := next(t, q); d != (guestdriver.Completion{Buffer: own, Conn: one, Op: guestdriver.OpReceive, N: 4, Final: true}) || string(own.Bytes()) != "owne" {
		t.Errorf("%+v", d)
	}
	if err := g.Post(got(t, q, one, "drest")); err != nil {
		t.Fatal(err)
	}

	// One that is no member.
	write(t, strange, "from a stranger")
	waitFor(t, "a buffer to be lent", func() bool { return g.Stats().Lent > 0 })
	read := make([]byte, 15)
	if _, err := io.ReadFull(struct{ io.Reader }{stranger}, read); err != nil || string(read) != "from a stranger" {
		t.Errorf("%q, %v", read, err)
	}
	waitFor(t, "it to come back", func() bool { s := g.Stats(); return s.Lent == 0 && s.Posted == 4 })
	if s := g.Stats(); s.Lends == 0 || s.Members != 2 || s.Buffers != 4 || s.Bytes != 19 {
		t.Errorf("%+v", s)
	}

	// Ends: the peer's, its own.
	if err := near.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	if d := next(t, q); d != (guestdriver.Completion{Conn: one, Op: guestdriver.OpGroup, Final: true, Err: io.EOF}) {
		t.Errorf("%+v", d)
	}
	two.Close()
	if d := next(t, q); d != (guestdriver.Completion{Conn: two, Op: guestdriver.OpGroup, Final: true, Err: net.ErrClosed}) {
		t.Errorf("%+v", d)
	}
	if err := near2.SetLinger(0); err != nil {
		t.Fatal(err)
	}
	near3, three := dial()
	if err := near3.SetLinger(0); err != nil {
		t.Fatal(err)
	}
	near3.Close()
	if d := next(t, q); d.Conn != three || d.Buffer != nil || !errors.Is(d.Err, syscall.ECONNRESET) {
		t.Errorf("%+v", d)
	}
	if n := g.Stats().Members; n != 0 {
		t.Errorf("%d members", n)
	}

	// Cancelled, and taken back by Close.
	if err := g.Cancel(bufs[0]); err != nil {
		t.Fatal(err)
	}
	if d := next(t, q); d.Buffer != bufs[0] || d.N != 0 || !d.Final || !errors.Is(d.Err, syscall.ECANCELED) {
		t.Errorf("%+v", d)
	}
	if err := g.Cancel(bufs[0]); err != nil {
		t.Error(err)
	}
	near4, four := dial()
	write(t, near4, "kept")
	if err := g.Post(got(t, q, four, "kept")); err != nil {
		t.Fatal(err)
	}
	g.Close()
	if err := g.Close(); err != nil {
		t.Error(err)
	}
	for range 3 {
		if d := next(t, q); d.Buffer == nil || d.N != 0 || !d.Final || d.Err != net.ErrClosed {
			t.Errorf("%+v", d)
		}
	}
	if err := bufs[0].Memory().Deregister(); err != nil {
		t.Error(err)
	}
	write(t, near4, "by Read")
	if _, err := io.ReadFull(four, read[:7]); err != nil || string(read[:7]) != "by Read" {
		t.Errorf("%q, %v", read[:7], err)
	}
}

// TestReceiveGroupMember: bytes that the driver has when a connection becomes a member
// come first, in buffers of the group, the only one of which the adapter has; who is in
// another group cannot be.
func TestReceiveGroupMember(t *testing.T) {
	a, _ := open(t, guestdriver.Options{})
	c, far := pair(t, a)
	defer c.Close()
	defer far.Close()
	g, q, _ := receivers(t, a, guestdriver.GroupKey{By: guestdriver.GroupByID}, 1, 5)
	if g.Key().ID < 1<<31 {
		t.Errorf("id %#x", g.Key().ID)
	}
	write(t, c, "read ahead")
	waitFor(t, "the bytes", func() bool { return far.Buffered() == 10 })
	if err := g.Add(far); err != nil {
		t.Fatal(err)
	}
	if err := g.Add(far); err != nil {
		t.Errorf("again: %v", err)
	}
	write(t, c, ", more")
	var all []byte
	for len(all) < 16 {
		d := next(t, q)
		if d.Conn != far || d.N == 0 || !d.Final || d.Err != nil {
			t.Fatalf("%+v", d)
		}
		all = append(all, d.Buffer.Bytes()[:d.N]...)
		if err := g.Post(d.Buffer); err != nil {
			t.Fatal(err)
		}
	}
	if string(all) != "read ahead, more" {
		t.Errorf("%q", all)
	}
	if s := a.Stats(); s.HostCopyBytes < 26 || s.HostCopyBytes > 32 || s.GroupBuffers < 4 || s.GroupLends != 0 {
		t.Errorf("%+v", s)
	}

	pool, err := a.NewPool(guestdriver.PoolConfig{Buffers: 1, Size: 100})
	if err != nil {
		t.Fatal(err)
	}
	defer pool.Close()
	other, err := a.NewReceiveGroup(guestdriver.GroupKey{}, q)
	if err != nil {
		t.Fatal(err)
	}
	for what, err := range map[string]error{"another": other.Add(far), "a pool": far.SetPool(pool), "a send group": a.NewSendGroup().Add(far)} {
		if err == nil || !strings.Contains(err.Error(), "connection is in a group") {
			t.Errorf("in a group, and in %s: %v", what, err)
		}
	}
	byPort, err := a.NewReceiveGroup(guestdriver.GroupKey{By: guestdriver.GroupByPort, Port: 9}, q)
	if err != nil {
		t.Fatal(err)
	}
	if err := byPort.Add(c); !errors.Is(err, abi.StatusBadValue) || !strings.Contains(err.Error(), "LOCAL") {
		t.Errorf("of another port: %v", err)
	}

	// Out again.
	g.Remove(far)
	g.Remove(far)
	for attr, want := range map[abi.Attribute]uint64{0x0230: 0, 0x0231: 1} {
		if v, err := a.Scalar(context.Background(), far.ID(), attr); v != want || err != nil {
			t.Errorf("attribute %#x of one that left: %d, %v", attr, v, err)
		}
	}
	write(t, c, "for Read")
	p := make([]byte, 8)
	if _, err := io.ReadFull(far, p); err != nil || string(p) != "for Read" {
		t.Errorf("%q, %v", p, err)
	}

	// Of the pool of the adapter it may be, and in a send group.
	sends := a.NewSendGroup()
	if err := sends.Add(far); err != nil {
		t.Fatal(err)
	}
	post(t, a, other, 1, 100)
	if err := other.Add(far); err != nil {
		t.Fatal(err)
	}
	write(t, c, "pooled")
	got(t, q, far, "pooled")
	far.Close()
	if d := next(t, q); d.Conn != far || d.Err != net.ErrClosed {
		t.Errorf("%+v", d)
	}
	c.Close()
	if err := other.Add(c); !errors.Is(err, net.ErrClosed) {
		t.Errorf("a closed connection: %v", err)
	}
}

// A server reads the requests of all its connections, from their first byte on, through
// eight buffers.
func ExampleReceiveGroup() {
	ctx := context.Background()
	a, err := guestdriver.Open(ctx, guestdrivertest.New(), guestdriver.Options{})
	if err != nil {
		log.Fatal(err)
	}
	defer a.Close()
	l, err := a.Listen("tcp", "10.0.2.15:80")
	if err != nil {
		log.Fatal(err)
	}
	defer l.Close()
	q := guestdriver.NewCompletionQueue()
	g, err := a.NewReceiveGroup(guestdriver.GroupKey{By: guestdriver.GroupByPort, Port: 80}, q)
	if err != nil {
		log.Fatal(err)
	}
	if err := l.(*guestdriver.Listener).SetReceiveGroup(g); err != nil {
		log.Fatal(err)
	}
	m, err := a.Alloc(8 * 2048)
	if err != nil {
		log.Fatal(err)
	}
	for i := range 8 {
		b, err := m.Buffer(i*2048, 2048)
		if err == nil {
			err = g.Post(b)
		}
		if err != nil {
			log.Fatal(err)
		}
	}

	c, err := a.Dial("tcp", "10.0.2.15:80") // a client
	if err != nil {
		log.Fatal(err)
	}
	fmt.Fprint(c, "hello")
	c.Close()
	for {
		d, err := q.Next(ctx)
		if err != nil {
			log.Fatal(err)
		}
		if d.Buffer == nil { // the end of d.Conn
			fmt.Println(d.Err)
			return
		}
		fmt.Printf("%s\n", d.Buffer.Bytes()[:d.N])
		if err := g.Post(d.Buffer); err != nil {
			log.Fatal(err)
		}
	}
	// Output:
	// hello
	// EOF
}
