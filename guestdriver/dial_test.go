// SPDX-License-Identifier: Apache-2.0

package guestdriver_test

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/net/dns/dnsmessage"

	"toebox/guestdriver"
	"toebox/vdev/abi"
)

// serveDNS answers A questions for host.test. over TCP (RFC 7766).
func serveDNS(l net.Listener, ip [4]byte) {
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		go func() {
			defer c.Close()
			for {
				var n [2]byte
				if _, err := io.ReadFull(c, n[:]); err != nil {
					return
				}
				msg := make([]byte, binary.BigEndian.Uint16(n[:]))
				if _, err := io.ReadFull(c, msg); err != nil {
					return
				}
				var m dnsmessage.Message
				if m.Unpack(msg) != nil || len(m.Questions) != 1 {
					return
				}
				m.Response, m.Additionals = true, nil
				q := m.Questions[0]
				switch {
				case q.Name.String() != "host.test.":
					m.RCode = dnsmessage.RCodeNameError
				case q.Type == dnsmessage.TypeA:
					m.Answers = []dnsmessage.Resource{{
						Header: dnsmessage.ResourceHeader{Name: q.Name, Class: q.Class, TTL: 60},
						Body:   &dnsmessage.AResource{A: ip},
					}}
				}
				out, err := m.AppendPack(make([]byte, 2))
				if err != nil {
					return
				}
				binary.BigEndian.PutUint16(out, uint16(len(out)-2))
				c.Write(out)
			}
		}()
	}
}

// TestNames: names are resolved by the adapter's resolver, through the adapter.
func TestNames(t *testing.T) {
	a, _ := open(t, guestdriver.Options{})
	l, err := a.Listen("tcp4", ":53")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go serveDNS(l, [4]byte{10, 0, 2, 77})
	c, err := a.DialContext(short(t), "tcp", "host.test:7")
	if err != nil {
		t.Fatal(err)
	}
	if got := c.RemoteAddr().String(); got != "10.0.2.77:7" {
		t.Errorf("connected to %s", got)
	}
	c.Close()
	var de *net.DNSError
	if _, err := a.DialContext(short(t), "tcp", "other.test:7"); !errors.As(err, &de) || !de.IsNotFound {
		t.Errorf("unknown name: %v", err)
	}
	if _, err := a.DialContext(short(t), "tcp6", "host.test:7"); err == nil {
		t.Error("a name without an IPv6 address dialled over tcp6")
	}
}

// TestDialer looks at what the adapter is asked for.
func TestDialer(t *testing.T) {
	a, f := open(t, guestdriver.Options{})
	var mu sync.Mutex
	var asked []abi.Target
	var at time.Time // when the last was asked for
	f.Intercept(func(_ int, r abi.Fields) bool {
		if r.Type == abi.TypeConnect {
			var b [72]byte
			f.Peek(r.Base, b[:])
			tg, s := abi.ParseTarget(b[8:])
			if s != abi.StatusOK || r.Length != 72 || r.Aux != 1 {
				t.Errorf("target %v in %+v", s, r)
			}
			mu.Lock()
			asked, at = append(asked, tg), time.Now()
			mu.Unlock()
		}
		return false
	})
	d := a.Dialer()
	d.LocalAddr = &net.TCPAddr{IP: net.IPv4(10, 0, 2, 15), Port: 1234}
	d.Timeout = limit
	began := time.Now()
	c, err := d.Dial("tcp4", "10.0.2.2:7")
	if err != nil {
		t.Fatal(err)
	}
	c.Close()
	if len(asked) != 1 || asked[0].Local != netip.MustParseAddrPort("10.0.2.15:1234") ||
		asked[0].Remote != netip.MustParseAddrPort("10.0.2.2:7") || asked[0].Protocol != 6 || asked[0].V6 {
		t.Fatalf("asked for %+v", asked)
	}
	// The host's own limit comes first, then the adapter's, a second later.
	if l, most := time.Duration(asked[0].Limit), limit+time.Second; l > most || l < most-at.Sub(began) {
		t.Errorf("limit %v", l)
	}
	if _, err := d.Dial("tcp6", "[fd00::1]:7"); err == nil {
		t.Error("dialled IPv6 from an IPv4 address")
	}
	d = &guestdriver.Dialer{Adapter: a, Deadline: time.Now().Add(-time.Second)}
	var ne net.Error
	if _, err := d.Dial("tcp", "10.0.2.2:7"); !errors.As(err, &ne) || !ne.Timeout() {
		t.Errorf("deadline in the past: %v", err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if _, err := a.DialContext(ctx, "tcp", "10.0.2.2:7"); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
}

// TestDialLate: a connection that comes when nobody waits for it any more is
// reset, and nothing stays behind.
func TestDialLate(t *testing.T) {
	a, f := open(t, guestdriver.Options{})
	var aborted atomic.Int32
	for i := range 30 {
		ctx, cancel := context.WithCancel(context.Background())
		defer cancel()
		f.Intercept(func(q int, r abi.Fields) bool {
			switch r.Type {
			case abi.TypeConnect:
				go cancel()
				return true
			case abi.TypeCancellation:
				go f.Inject(q, abi.Fields{Type: 19, Flags: 1, Tag: r.Offset, Conn: uint64(i + 1), Length: 5})
			case abi.TypeTermination:
				if r.Conn == uint64(i+1) && r.Length == 1 {
					aborted.Add(1)
				}
			}
			return false
		})
		if _, err := a.DialContext(ctx, "tcp", "10.0.2.2:7"); !errors.Is(err, context.Canceled) {
			t.Fatal(err)
		}
		waitFor(t, "the reset of the connection", func() bool { return aborted.Load() == int32(i+1) })
	}
	waitFor(t, "all to end", func() bool {
		s := a.Stats()
		return s.Connections == 0 && s.Outstanding == 0 && s.Memory == 0
	})
}
