// SPDX-License-Identifier: Apache-2.0

package port

import (
	"bytes"
	"context"
	"encoding/binary"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"
	"golang.org/x/sys/unix"

	"toebox/firmware/engine/enginetest"
)

// refuseDial stands for a host without a network.
func refuseDial(context.Context, string, string) (net.Conn, error) { return nil, unix.ECONNREFUSED }

// udpEcho answers datagrams on the host's loopback.
func udpEcho(t testing.TB, answer func([]byte) []byte) netip.AddrPort {
	t.Helper()
	return udpServe(t, func(b []byte) [][]byte {
		if r := answer(b); r != nil {
			return [][]byte{r}
		}
		return nil
	})
}

// udpServe sends back what answers says, on the host's loopback.
func udpServe(t testing.TB, answers func([]byte) [][]byte) netip.AddrPort {
	t.Helper()
	c, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Add(1)
	go func() {
		defer wg.Done()
		buf := make([]byte, 65536)
		for {
			k, from, err := c.ReadFrom(buf)
			if err != nil {
				return
			}
			for _, r := range answers(buf[:k]) {
				c.WriteTo(r, from)
			}
		}
	}()
	t.Cleanup(func() { c.Close(); wg.Wait() })
	return netip.MustParseAddrPort(c.LocalAddr().String())
}

func TestUDP(t *testing.T) {
	clock := enginetest.NewClock()
	n, p := setup(t, NATConfig{FlowIdle: time.Second, Clock: clock})
	echo := udpEcho(t, func(b []byte) []byte { return b })
	c := p.dialUDP(t, netip.AddrPortFrom(n.gateway, echo.Port()))
	c.SetDeadline(time.Now().Add(limit))
	buf := make([]byte, 65536)
	// One byte, none, one frame, several fragments, and the longest.
	for _, size := range []int{1, 0, 1472, 5000, 65507} {
		want := bytes.Repeat([]byte{byte(size)}, size)
		if _, err := c.Write(want); err != nil {
			t.Fatal(size, err)
		}
		k, err := c.Read(buf)
		if err != nil || !bytes.Equal(buf[:k], want) {
			t.Fatalf("%d bytes: got %d, %v", size, k, err)
		}
	}
	clock.Advance(time.Second - 1)
	if s := n.Stats(); s.UDPFlows != 1 || s.UDPOpen != 1 {
		t.Errorf("stats: %+v", s)
	}
	clock.Advance(1)
	eventually(t, "the idle flow ends", func() bool { return n.Stats().UDPOpen == 0 })
	c.Write([]byte("again"))
	if k, err := c.Read(buf); err != nil || string(buf[:k]) != "again" {
		t.Errorf("after idling: %v", err)
	}
}

func TestUDPRefusals(t *testing.T) {
	sink := udpEcho(t, func([]byte) []byte { return nil })
	t.Run("port unreachable", func(t *testing.T) {
		// Nobody else gets the port meanwhile, and only sink reaches it.
		l, err := net.DialUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)}, net.UDPAddrFromAddrPort(sink))
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		port := portOf(l.LocalAddr())
		n, p := setup(t, NATConfig{})
		c := p.dialUDP(t, netip.AddrPortFrom(n.gateway, port))
		c.Write([]byte("anyone?"))
		eventually(t, "the error arrives", func() bool {
			c.SetReadDeadline(time.Now().Add(10 * time.Millisecond)) // it does not wake a reader
			_, err := c.Read(make([]byte, 1))
			return err != nil && strings.Contains(err.Error(), "refused")
		})
		if s := n.Stats(); s.UDPRefused == 0 {
			t.Errorf("stats: %+v", s)
		}
	})
	t.Run("denied", func(t *testing.T) {
		n, p := setup(t, NATConfig{Dial: refuseDial})
		c := p.dialUDP(t, netip.MustParseAddrPort("169.254.169.254:53"))
		c.Write([]byte("metadata"))
		eventually(t, "it is counted", func() bool { return n.Stats().UDPDenied == 1 })
	})
	t.Run("table full", func(t *testing.T) {
		n, p := setup(t, NATConfig{Flows: 1})
		for range 2 {
			p.dialUDP(t, netip.AddrPortFrom(n.gateway, sink.Port())).Write([]byte("x"))
		}
		eventually(t, "it is counted", func() bool { return n.Stats().UDPNoRoom == 1 })
	})
}

// A query for example.com, type A, id 0x1234, recursion desired.
const dnsQuery = `
1234 0100 0001 0000 0000 0000
07 6578616d706c65 03 636f6d 00 0001 0001`

func TestDNS(t *testing.T) {
	q := hexBytes(t, dnsQuery)
	answer := hexBytes(t, `
1234 8180 0001 0001 0000 0000
07 6578616d706c65 03 636f6d 00 0001 0001
c00c 0001 0001 00000e10 0004 cb007105`)
	fake := func(b []byte) []byte {
		if !bytes.Equal(b, q) {
			return []byte("not the query")
		}
		return answer
	}
	good := func(t *testing.T) netip.AddrPort { return udpEcho(t, fake) }
	const patience = time.Second
	clock := enginetest.NewClock()
	silent := func(t *testing.T) netip.AddrPort {
		return udpEcho(t, func([]byte) []byte { clock.Advance(patience); return nil })
	}
	wrong := func(t *testing.T) netip.AddrPort {
		return udpServe(t, func(b []byte) [][]byte {
			r := bytes.Clone(answer)
			r[0]++
			return [][]byte{r, fake(b)}
		})
	}
	servfail := hexBytes(t, `1234 8182 0000 0000 0000 0000`)
	for _, c := range []struct {
		name    string
		servers []func(*testing.T) netip.AddrPort
		want    []byte
	}{
		{"answered", []func(*testing.T) netip.AddrPort{good}, answer},
		{"by the second", []func(*testing.T) netip.AddrPort{silent, good}, answer},
		{"another's answer is not taken", []func(*testing.T) netip.AddrPort{wrong}, answer},
		{"by nobody", []func(*testing.T) netip.AddrPort{silent}, servfail},
		{"no resolver", nil, servfail},
	} {
		t.Run(c.name, func(t *testing.T) {
			servers := []netip.AddrPort{}
			for _, f := range c.servers {
				servers = append(servers, f(t))
			}
			n, p := setup(t, NATConfig{Resolvers: servers, QueryTimeout: patience, Clock: clock})
			for _, at := range []netip.Addr{n.resolver, n.resolver6} {
				u := p.dialUDP(t, netip.AddrPortFrom(at, 53))
				u.SetDeadline(time.Now().Add(limit))
				u.Write([]byte("short"))
				u.Write(answer) // not a query: no answer
				u.Write(q)
				buf := make([]byte, 512)
				k, err := u.Read(buf)
				if err != nil || !bytes.Equal(buf[:k], c.want) {
					t.Errorf("%v: got %x, %v; want %x", at, buf[:k], err, c.want)
				}
			}
			// Datagrams that waited for the neighbour may come after the query.
			eventually(t, "all are counted", func() bool {
				s := n.Stats()
				return s.DNSQueries == 6 && s.DNSDropped == 4 && s.DNSAnswers+s.DNSFailures == 2
			})
		})
	}
}

func TestDNSOverTCP(t *testing.T) {
	l := hostListen(t, "127.0.0.1:0")
	go func() {
		c, err := l.Accept()
		if err != nil {
			return
		}
		defer c.Close()
		io.Copy(c, c)
	}()
	n, p := setup(t, NATConfig{Resolvers: []netip.AddrPort{netip.MustParseAddrPort(l.Addr().String())}})
	c, err := p.dial(deadline(t), netip.AddrPortFrom(n.resolver, 53))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(limit))
	c.Write([]byte("query"))
	b := make([]byte, 5)
	if _, err := io.ReadFull(c, b); err != nil || string(b) != "query" {
		t.Errorf("%q, %v", b, err)
	}
}

func TestDNSOverTCPWithoutResolver(t *testing.T) {
	n, p := setup(t, NATConfig{Resolvers: []netip.AddrPort{}})
	if _, err := p.dial(deadline(t), netip.AddrPortFrom(n.resolver, 53)); err == nil || !strings.Contains(err.Error(), "refused") {
		t.Errorf("dial: %v", err)
	}
}

func TestResolvConf(t *testing.T) {
	path := filepath.Join(t.TempDir(), "resolv.conf")
	r := resolvConf{path: path}
	if got := r.list(); len(got) != 0 {
		t.Errorf("no file: %v", got)
	}
	write := func(s string, at int64) {
		if err := os.WriteFile(path, []byte(s), 0o644); err != nil {
			t.Fatal(err)
		}
		if err := os.Chtimes(path, time.Unix(at, 0), time.Unix(at, 0)); err != nil {
			t.Fatal(err)
		}
	}
	write("# c\nsearch x\nnameserver 192.0.2.1\nnameserver\nnameserver bogus\n nameserver\t2001:db8::1 #c\nnameserver fe80::1%eth0\nnameserver 192.0.2.4\n", 1)
	want := "[192.0.2.1:53 [2001:db8::1]:53 [fe80::1%eth0]:53]"
	if got := sprint(r.list()); got != want {
		t.Errorf("got %v, want %v", got, want)
	}
	write("nameserver 192.0.2.9\n", 2)
	if got := sprint(r.list()); got != "[192.0.2.9:53]" {
		t.Errorf("after a change: %v", got)
	}
}

func sprint(a []netip.AddrPort) string {
	var s []string
	for _, x := range a {
		s = append(s, x.String())
	}
	return "[" + strings.Join(s, " ") + "]"
}

// discover is the start of a DHCPDISCOVER, options left out.
func discover(t testing.TB, options string) []byte {
	return append(append(hexBytes(t, `
01 01 06 00 deadbeef 0000 8000            # request, Ethernet, xid, broadcast flag
00000000 00000000 00000000 00000000       # ciaddr yiaddr siaddr giaddr
020000000015 00000000000000000000         # chaddr`),
		make([]byte, 192)...), hexBytes(t, "63825363"+options)...)
}

func TestDHCPMessages(t *testing.T) {
	s := dhcpServer{
		server: netip.MustParseAddr("10.0.2.2"), client: netip.MustParseAddr("10.0.2.15"), resolver: netip.MustParseAddr("10.0.2.3"),
		network: netip.MustParsePrefix("10.0.2.0/24"), mtu: 1500, domain: "lab",
	}
	lease := `
3304 00015180 3a04 0000a8c0 3b04 00012750 # lease, renewal, rebinding time
0104 ffffff00 0304 0a000202 0604 0a000203 # mask, router, resolver
1a02 05dc 0f03 6c6162 ff                  # MTU, domain`
	reply := func(yiaddr, options string) []byte {
		b := append(append(hexBytes(t, `
02 01 06 00 deadbeef 0000 8000
00000000`+yiaddr+`00000000 00000000
020000000015 00000000000000000000`),
			make([]byte, 192)...), hexBytes(t, "63825363"+options)...)
		return append(b, make([]byte, 300-len(b))...)
	}
	relayed := discover(t, "3501 01 ff")
	relayed[24] = 10
	for _, c := range []struct {
		name string
		req  []byte
		want []byte
		err  bool
	}{
		{"discover", discover(t, "00 3501 01 3704 01030f06 ff"), reply("0a00020f", "3501 02 3604 0a000202"+lease), false},
		{"request", discover(t, "3501 03 3204 0a00020f 3604 0a000202 ff"), reply("0a00020f", "3501 05 3604 0a000202"+lease), false},
		{"request after a reboot", discover(t, "3501 03 3204 0a00020f ff"), reply("0a00020f", "3501 05 3604 0a000202"+lease), false},
		{"request of another address", discover(t, "3501 03 3204 0a000210 ff"), reply("00000000", "3501 06 3604 0a000202 3810 6e6f7420796f75722061646472657373 ff"), false},
		{"request to another server", discover(t, "3501 03 3204 0a00020f 3604 0a000209 ff"), nil, false},
		{"inform", discover(t, "3501 08 ff"), reply("00000000", `3501 05 3604 0a000202
0104 ffffff00 0304 0a000202 0604 0a000203 1a02 05dc 0f03 6c6162 ff`), false},
		{"release", discover(t, "3501 07 ff"), nil, false},
		{"decline", discover(t, "3501 04 ff"), nil, false},
		{"unknown type", discover(t, "3501 63 ff"), nil, true},
		{"an offer of a rogue server", discover(t, "3501 02 ff"), nil, true},
		{"no type", discover(t, "ff"), nil, true},
		{"no end", discover(t, "3501 01"), nil, true},
		{"option cut in its head", discover(t, "3501 01 32"), nil, true},
		{"option cut in its value", discover(t, "3501 01 3204 0a00"), nil, true},
		{"option of a wrong length", discover(t, "3502 0101 ff"), nil, true},
		{"address of a wrong length", discover(t, "3501 03 3203 0a0002 ff"), nil, true},
		{"option twice", discover(t, "3501 01 3501 03 ff"), nil, true},
		{"cut in the header", discover(t, "")[:239], nil, true},
		{"relayed", relayed, nil, true},
		{"wrong cookie", append(discover(t, "")[:236], hexBytes(t, "63825364 3501 01 ff")...), nil, true},
		{"a reply", append([]byte{2}, discover(t, "3501 01 ff")[1:]...), nil, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, err := s.answer(c.req)
			if (err != nil) != c.err {
				t.Errorf("error %v", err)
			}
			if !bytes.Equal(got, c.want) {
				t.Errorf("got  %x\nwant %x", got, c.want)
			}
		})
	}
}

// TestDHCPOnTheWire: an adapter without an address gets its lease.
func TestDHCPOnTheWire(t *testing.T) {
	r := newRaw(t, NATConfig{})
	m := discover(t, "3501 01 ff")
	b := append(hexBytes(t, `
ffffffffffff 020000000015 0800
45 00 0000 0001 0000 40 11 0000 00000000 ffffffff
0044 0043 0000 0000`), m...)
	binary.BigEndian.PutUint16(b[16:], uint16(28+len(m)))
	binary.BigEndian.PutUint16(b[38:], uint16(8+len(m)))
	binary.BigEndian.PutUint16(b[24:], ^sum16(b[14:34], 0))
	r.send(b, 1000)
	p := r.expect("an offer", func(p gopacket.Packet) bool {
		d, ok := p.Layer(layers.LayerTypeDHCPv4).(*layers.DHCPv4)
		return ok && d.Operation == layers.DHCPOpReply && d.Xid == 0xdeadbeef && d.YourClientIP.String() == "10.0.2.15"
	})
	ip := p.Layer(layers.LayerTypeIPv4).(*layers.IPv4)
	if ip.SrcIP.String() != "10.0.2.2" || ip.DstIP.String() != "255.255.255.255" {
		t.Errorf("from %v to %v", ip.SrcIP, ip.DstIP)
	}
	if eth := p.Layer(layers.LayerTypeEthernet).(*layers.Ethernet); eth.DstMAC.String() != "ff:ff:ff:ff:ff:ff" {
		t.Errorf("to %v", eth.DstMAC)
	}
	eventually(t, "the reply is counted, behind its sending", func() bool { return r.n.Stats().DHCPReplies > 0 })
	if s := r.n.Stats(); s.DHCPRequests != 1 || s.DHCPReplies != 1 || s.DHCPDropped != 0 {
		t.Errorf("stats: %+v", s)
	}
}

// FuzzDHCP: no request panics, and what is answered is well formed.
func FuzzDHCP(f *testing.F) {
	f.Add(discover(f, "3501 01 ff"))
	f.Add(discover(f, "3501 03 3204 0a00020f 3604 0a000202 ff"))
	s := dhcpServer{
		server: netip.MustParseAddr("10.0.2.2"), client: netip.MustParseAddr("10.0.2.15"), resolver: netip.MustParseAddr("10.0.2.3"),
		network: netip.MustParsePrefix("10.0.2.0/24"), mtu: 1500,
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		r, err := s.answer(b)
		if err != nil && r != nil {
			t.Fatal("an answer and an error")
		}
		if r == nil {
			return
		}
		p := gopacket.NewPacket(r, layers.LayerTypeDHCPv4, gopacket.Default)
		if e := p.ErrorLayer(); e != nil {
			t.Fatal(e.Error())
		}
	})
}
