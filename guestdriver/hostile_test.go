// SPDX-License-Identifier: Apache-2.0

package guestdriver_test

import (
	"context"
	"errors"
	"net"
	"syscall"
	"testing"
	"time"

	"toebox/guestdriver"
	"toebox/guestdriver/guestdrivertest"
	"toebox/vdev/abi"
)

const final = abi.FlagFinal

// TestHostile publishes responses that no adapter should, beside a connection
// that has a receive buffer of 4 KiB posted, and shows that each is counted,
// changes nothing, and that the adapter goes on to work.
func TestHostile(t *testing.T) {
	type stat = func(guestdriver.Stats) uint64
	tags := func(s guestdriver.Stats) uint64 { return s.BadTags }
	types := func(s guestdriver.Stats) uint64 { return s.BadTypes }
	finals := func(s guestdriver.Stats) uint64 { return s.BadFinals }
	conns := func(s guestdriver.Stats) uint64 { return s.BadConns }
	lengths := func(s guestdriver.Stats) uint64 { return s.BadLengths }
	refused := func(s guestdriver.Stats) uint64 { return s.Refused }
	// rx is the tag of the receive buffer, id the connection.
	for name, c := range map[string]struct {
		resp  func(rx uint32, id uint64) abi.Fields
		count stat
	}{
		"unknown tag": {func(rx uint32, id uint64) abi.Fields {
			return abi.Fields{Type: 16, Flags: final, Tag: 0xfffe, Conn: id}
		}, tags},
		"stale tag": {func(rx uint32, id uint64) abi.Fields {
			return abi.Fields{Type: 16, Flags: final, Tag: rx + 1<<16, Conn: id}
		}, tags},
		"zero entry":   {func(rx uint32, id uint64) abi.Fields { return abi.Fields{Type: 16, Tag: 1 << 16, Conn: id} }, tags},
		"wrong type":   {func(rx uint32, id uint64) abi.Fields { return abi.Fields{Type: 19, Flags: final, Tag: rx, Conn: id} }, types},
		"request type": {func(rx uint32, id uint64) abi.Fields { return abi.Fields{Type: 2, Flags: final, Tag: rx, Conn: id} }, types},
		"tag 0":        {func(rx uint32, id uint64) abi.Fields { return abi.Fields{Type: 16, Flags: final, Conn: id} }, types},
		"not final":    {func(rx uint32, id uint64) abi.Fields { return abi.Fields{Type: 17, Tag: rx, Conn: id} }, finals},
		"other conn":   {func(rx uint32, id uint64) abi.Fields { return abi.Fields{Type: 16, Tag: rx, Conn: id + 1, Length: 1} }, conns},
		"beyond":       {func(rx uint32, id uint64) abi.Fields { return abi.Fields{Type: 16, Tag: rx, Conn: id, Length: 4097} }, lengths},
		"far beyond": {func(rx uint32, id uint64) abi.Fields {
			return abi.Fields{Type: 16, Tag: rx, Conn: id, Length: 0xffffffff, Offset: 1}
		}, lengths},
		"hole": {func(rx uint32, id uint64) abi.Fields {
			return abi.Fields{Type: 16, Tag: rx, Conn: id, Length: 1, Offset: 1}
		}, lengths},
		"nothing":        {func(rx uint32, id uint64) abi.Fields { return abi.Fields{Type: 16, Tag: rx, Conn: id} }, lengths},
		"full not final": {func(rx uint32, id uint64) abi.Fields { return abi.Fields{Type: 16, Tag: rx, Conn: id, Length: 4096} }, lengths},
		"done with length": {func(rx uint32, id uint64) abi.Fields {
			return abi.Fields{Type: 17, Flags: final, Tag: rx, Conn: id, Length: 1}
		}, lengths},
		"arrival again":    {func(rx uint32, id uint64) abi.Fields { return abi.Fields{Type: 18, Flags: final, Conn: id} }, conns},
		"arrival of 0":     {func(rx uint32, id uint64) abi.Fields { return abi.Fields{Type: 18, Flags: final} }, conns},
		"nobody listens":   {func(rx uint32, id uint64) abi.Fields { return abi.Fields{Type: 18, Flags: final, Conn: 77, Base: 5} }, refused},
		"unknown ended":    {func(rx uint32, id uint64) abi.Fields { return abi.Fields{Type: 21, Flags: final, Conn: 78} }, conns},
		"unasked rejected": {func(rx uint32, id uint64) abi.Fields { return abi.Fields{Type: 31, Flags: final, Conn: id} }, types},
	} {
		t.Run(name, func(t *testing.T) {
			a, f := open(t, guestdriver.Options{})
			posted := make(chan abi.Fields, 16)
			f.Intercept(func(_ int, r abi.Fields) bool {
				if r.Type == abi.TypeBufferAvailable {
					posted <- r
				}
				return false
			})
			cn, err := a.Dial("tcp", "10.0.2.2:7")
			if err != nil {
				t.Fatal(err)
			}
			defer cn.Close()
			rx := <-posted
			f.Intercept(nil)
			if rx.Length != 4096 {
				t.Fatalf("buffer of %d bytes", rx.Length)
			}
			f.Inject(0, c.resp(rx.Tag, rx.Conn))
			waitFor(t, "the count", func() bool { return c.count(a.Stats()) == 1 })
			cn.SetDeadline(time.Now().Add(limit))
			buf := make([]byte, 1)
			cn.Write([]byte("y"))
			if _, err := cn.Read(buf); err != nil || buf[0] != 'y' {
				t.Errorf("the connection was hurt: %q, %v", buf, err)
			}
			echo(t, a)
		})
	}
}

// TestHostileTwice answers each request of a connection's life twice.
func TestHostileTwice(t *testing.T) {
	a, f := open(t, guestdriver.Options{})
	f.Intercept(func(q int, r abi.Fields) bool {
		if r.Type == abi.TypeBufferSend || r.Type == abi.TypeTermination {
			go f.Inject(q, guestdrivertest.Answer(r, map[abi.Type]abi.Type{1: 17, 4: 21}[r.Type], abi.StatusOK))
		}
		return false
	})
	for range 50 {
		echo(t, a)
	}
	waitFor(t, "the doubles", func() bool { return a.Stats().BadTags >= 100 })
	waitFor(t, "all to end", func() bool {
		s := a.Stats()
		return s.Connections == 0 && s.Outstanding == 0 && s.Memory == 0
	})
}

// TestHostileAnswers forges the answer to a control request.
func TestHostileAnswers(t *testing.T) {
	a, f := open(t, guestdriver.Options{})
	forge := func(typ abi.Type, resp func(r abi.Fields) abi.Fields) {
		f.Intercept(func(q int, r abi.Fields) bool {
			if r.Type != typ {
				return false
			}
			go f.Inject(q, resp(r))
			return true
		})
	}
	var op *net.OpError
	for name, c := range map[string]struct {
		resp func(r abi.Fields) abi.Fields
		want error
	}{
		"id 0": {func(r abi.Fields) abi.Fields { return abi.Fields{Type: 19, Flags: final, Tag: r.Tag} }, syscall.ENOBUFS},
		"rejected": {func(r abi.Fields) abi.Fields {
			return abi.Fields{Type: 31, Flags: final, Tag: r.Tag, Aux: 32}
		}, abi.StatusBadType},
		"unknown status": {func(r abi.Fields) abi.Fields {
			return abi.Fields{Type: 19, Flags: final, Tag: r.Tag, Aux: 0xffff}
		}, syscall.EIO},
		"unreachable": {func(r abi.Fields) abi.Fields {
			return abi.Fields{Type: 19, Flags: final, Tag: r.Tag, Aux: 6, Offset: 0xffffffff}
		}, syscall.EHOSTUNREACH},
		"timed out": {func(r abi.Fields) abi.Fields {
			return abi.Fields{Type: 19, Flags: final, Tag: r.Tag, Aux: 3}
		}, syscall.ETIMEDOUT},
	} {
		forge(abi.TypeConnect, c.resp)
		if _, err := a.Dial("tcp", "10.0.2.2:7"); !errors.Is(err, c.want) || !errors.As(err, &op) {
			t.Errorf("dial, %s: %v, want %v", name, err, c.want)
		}
	}
	forge(abi.TypeListen, func(r abi.Fields) abi.Fields { return abi.Fields{Type: 20, Flags: final, Tag: r.Tag} })
	if _, err := a.Listen("tcp4", ":1"); !errors.As(err, &op) {
		t.Errorf("listen, id 0: %v", err)
	}
	// The value would end beyond its room.
	f.Intercept(func(q int, r abi.Fields) bool {
		if r.Type != abi.TypeAdapterAttr {
			return false
		}
		f.Poke(r.Base+2, []byte{0, 0, 0xff, 0xff, 0xff, 0xff})
		go f.Inject(q, abi.Fields{Type: 24, Flags: final, Tag: r.Tag})
		return true
	})
	if v, err := a.Attribute(context.Background(), 0, abi.AttrMAC); !errors.Is(err, abi.StatusBadLength) {
		t.Errorf("attribute: %d bytes, %v", len(v), err)
	}
	f.Intercept(nil)
	echo(t, a)
	waitFor(t, "all to end", func() bool {
		s := a.Stats()
		return s.Connections == 0 && s.Outstanding == 0 && s.Memory == 0
	})
}

// TestBacklog: arrivals beyond the backlog are reset and counted.
func TestBacklog(t *testing.T) {
	a, _ := open(t, guestdriver.Options{Backlog: 2})
	l, err := a.Listen("tcp", "10.0.2.15:80")
	if err != nil {
		t.Fatal(err)
	}
	for range 5 {
		c, err := a.Dial("tcp", "10.0.2.15:80")
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
	}
	waitFor(t, "refusals", func() bool { return a.Stats().Refused == 3 })
	for i := range 3 {
		if i == 2 { // the last one waits for nothing
			l.(*guestdriver.Listener).SetDeadline(time.Now().Add(10 * time.Millisecond))
		}
		c, err := l.Accept()
		if (err == nil) != (i < 2) {
			t.Errorf("accept %d: %v", i, err)
		}
		if err == nil {
			c.Close()
		}
	}
	if err := l.Close(); err != nil {
		t.Error(err)
	}
	if err := l.Close(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("second close: %v", err)
	}
}

func TestAttributes(t *testing.T) {
	a, _ := open(t, guestdriver.Options{})
	ctx := context.Background()
	if m, err := a.MAC(ctx); m.String() != "52:54:00:01:02:03" || err != nil {
		t.Errorf("MAC %v, %v", m, err)
	}
	if v, err := a.Attribute(ctx, 0, abi.AttrRoutes); len(v) != 6000 || err != nil {
		t.Errorf("a long value: %d bytes, %v", len(v), err)
	}
	if v, err := a.Counters(ctx); len(v) != abi.NumCounters || err != nil {
		t.Errorf("%d counters, %v", len(v), err)
	}
	if err := a.SetScalar(ctx, 0, abi.AttrMTU, 1400); err != nil {
		t.Error(err)
	}
	if v, err := a.MTU(ctx); v != 1400 || err != nil {
		t.Errorf("MTU %d, %v", v, err)
	}
	if v, err := a.Addresses(ctx, 0, abi.AttrAddress4); err != nil || len(v) != 1 || v[0].Addr.String() != "10.0.2.15" {
		t.Errorf("address %v, %v", v, err)
	}
	var ae *guestdriver.AttributeError
	if _, err := a.Attribute(ctx, 0, abi.AttrSerial); !errors.As(err, &ae) || ae.Status != abi.StatusUnknownAttribute {
		t.Errorf("unknown: %v", err)
	}
	if err := a.SetAttribute(ctx, 0, abi.AttrMAC, make([]byte, 6)); !errors.Is(err, abi.StatusReadOnly) {
		t.Errorf("read only: %v", err)
	}
	if err := a.SetAttribute(ctx, 0, abi.AttrMAC, make([]byte, 1<<20)); !errors.Is(err, abi.StatusBadLength) {
		t.Errorf("too long: %v", err)
	}
	if _, err := a.Attribute(ctx, 12345, abi.AttrLocal); !errors.Is(err, abi.StatusBadConnection) {
		t.Errorf("no such connection: %v", err)
	}
	c, s := pair(t, a)
	defer s.Close()
	for name, err := range map[string]error{
		"SetNoDelay": c.SetNoDelay(false), "SetKeepAlive": c.SetKeepAlive(true),
		"SetKeepAlivePeriod": c.SetKeepAlivePeriod(time.Minute), "SetLinger": c.SetLinger(3),
		"SetReadBuffer": c.SetReadBuffer(1 << 16), "SetWriteBuffer": c.SetWriteBuffer(1 << 16),
	} {
		if err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	for attr, want := range map[abi.Attribute]uint64{abi.AttrNagle: 1, abi.AttrKeepaliveIdle: 60e9, abi.AttrLinger: 3e9} {
		if v, err := a.Scalar(ctx, c.ID(), attr); v != want || err != nil {
			t.Errorf("attribute %#x is %d, %v, want %d", attr, v, err, want)
		}
	}
	c.Close()
	if err := c.SetNoDelay(true); !errors.Is(err, net.ErrClosed) {
		t.Errorf("option of a closed connection: %v", err)
	}
	if err := c.SetDeadline(time.Now()); !errors.Is(err, net.ErrClosed) {
		t.Errorf("deadline of a closed connection: %v", err)
	}
}
