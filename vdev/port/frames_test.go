// SPDX-License-Identifier: Apache-2.0

package port

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"strings"
	"sync"
	"testing"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"

	"toebox/firmware/engine"
)

// raw is an adapter without a stack: it sends bytes and keeps what it gets.
type raw struct {
	t   testing.TB
	n   *NAT
	mu  sync.Mutex
	got [][]byte
}

func newRaw(t testing.TB, cfg NATConfig) *raw {
	t.Helper()
	checkLeaks(t)
	n, err := NewNAT(cfg)
	if err != nil {
		t.Fatal(err)
	}
	r := &raw{t: t, n: n}
	n.Attach(r.receive)
	t.Cleanup(func() { n.Close() })
	return r
}

func (r *raw) receive(frames []engine.Frame) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for i := range frames {
		r.got = append(r.got, bytes.Join(frames[i].Data, nil))
	}
}

// send transmits one frame, cut in pieces of size cut.
func (r *raw) send(frame []byte, cut int) int {
	var f engine.Frame
	for b := frame; len(b) > 0; {
		k := min(cut, len(b))
		f.Data = append(f.Data, b[:k])
		b = b[k:]
	}
	return r.n.Transmit([]engine.Frame{f})
}

// expect waits for a frame that match accepts.
func (r *raw) expect(what string, match func(p gopacket.Packet) bool) gopacket.Packet {
	r.t.Helper()
	var found gopacket.Packet
	eventually(r.t, what, func() bool {
		r.mu.Lock()
		defer r.mu.Unlock()
		for _, b := range r.got {
			p := gopacket.NewPacket(b, layers.LayerTypeEthernet, gopacket.Default)
			if match(p) {
				found = p
				return true
			}
		}
		return false
	})
	return found
}

func (r *raw) frames() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.got)
}

// hexBytes reads hex with spaces, line ends and comments from # on.
func hexBytes(t testing.TB, s string) []byte {
	t.Helper()
	var b strings.Builder
	for _, l := range strings.Split(s, "\n") {
		l, _, _ = strings.Cut(l, "#")
		b.WriteString(strings.Join(strings.Fields(l), ""))
	}
	out, err := hex.DecodeString(b.String())
	if err != nil {
		t.Fatal(err)
	}
	return out
}

const (
	arpRequest = `
ffffffffffff 020000000015 0806   # Ethernet: broadcast, from the adapter, ARP
0001 0800 06 04 0001             # Ethernet, IPv4, lengths, request
020000000015 0a00020f            # sender 10.0.2.15
000000000000 0a000202            # target 10.0.2.2`
	arpReply = `
020000000015 52550a000202 0806   # Ethernet: to the adapter
0001 0800 06 04 0002             # reply
52550a000202 0a000202            # sender: the gateway
020000000015 0a00020f            # target: the adapter`
)

func TestARP(t *testing.T) {
	r := newRaw(t, NATConfig{})
	req := hexBytes(t, arpRequest)
	for _, cut := range []int{1, 7, 14, 1000} {
		r.mu.Lock()
		r.got = nil
		r.mu.Unlock()
		if r.send(req, cut) != 1 {
			t.Fatal("not taken")
		}
		eventually(t, "an answer", func() bool { return r.frames() > 0 })
		r.mu.Lock()
		if want := hexBytes(t, arpReply); !bytes.Equal(r.got[0], want) {
			t.Errorf("got %x, want %x", r.got[0], want)
		}
		r.mu.Unlock()
	}
}

// TestDropped: what the filter keeps from the gateway's stack, each under its
// counter and without an answer.
func TestDropped(t *testing.T) {
	arp := hexBytes(t, arpRequest)
	with := func(b []byte, at int, v ...byte) []byte {
		b = bytes.Clone(b)
		copy(b[at:], v)
		return b
	}
	udp := hexBytes(t, `
52550a000202 020000000015 0800
45 00 001e 0001 0000 40 11 0000 0a00020f cb007101 # to 203.0.113.1
1000 2000 000a 0000 6869`)
	binary.BigEndian.PutUint16(udp[24:], ^sum16(udp[14:34], 0))
	tcp := hexBytes(t, `
52550a000202 020000000015 0800
45 00 0028 0001 0000 40 06 0000 0a00020f 0a000202
1000 0001 00000001 00000000 50 02 2000 1234 0000 # checksum 0x1234 is wrong`)
	binary.BigEndian.PutUint16(tcp[24:], ^sum16(tcp[14:34], 0))
	ping := hexBytes(t, `
52550a000202 020000000015 0800
45 00 001c 0001 0000 40 01 0000 0a00020f 08080808
08 00 f7fd 0001 0001`)
	binary.BigEndian.PutUint16(ping[24:], ^sum16(ping[14:34], 0))
	tcp6 := hexBytes(t, `
52550a000202 020000000015 86dd
60000000 0014 06 40 fd000002000000000000000000000015 fd000002000000000000000000000002
1000 0001 00000001 00000000 50 02 2000 1234 0000`)
	solicit := hexBytes(t, `
3333ff000015 020000000015 86dd
60000000 0018 3a ff 00000000000000000000000000000000 ff0200000000000000000001ff000015
87 00 0000 00000000 fd000002000000000000000000000015`)
	ping6 := hexBytes(t, `
52550a000202 020000000015 86dd
60000000 0008 3a 40 fd000002000000000000000000000015 20010db8000000000000000000000001
80 00 0000 0001 0001`)
	long := make([]byte, 14+65536)
	copy(long, udp)
	for _, c := range []struct {
		name  string
		frame []byte
		stat  func(Stats) uint64
	}{
		{"no header", arp[:13], func(s Stats) uint64 { return s.DroppedShort }},
		{"nothing", nil, func(s Stats) uint64 { return s.DroppedShort }},
		{"header only", arp[:14], func(s Stats) uint64 { return s.DroppedShort }},
		{"too long", long, func(s Stats) uint64 { return s.DroppedLong }},
		{"other station", with(arp, 0, 0x52, 0x55, 0x0a, 0, 2, 3), func(s Stats) uint64 { return s.DroppedOtherMAC }},
		{"LLDP", with(arp, 12, 0x88, 0xcc), func(s Stats) uint64 { return s.DroppedProtocol }},
		{"ARP cut", arp[:41], func(s Stats) uint64 { return s.DroppedShort }},
		{"ARP for a neighbour", with(arp, 38, 10, 0, 2, 4), func(s Stats) uint64 { return s.DroppedNeighbor }},
		{"ARP for itself", with(arp, 38, 10, 0, 2, 15), func(s Stats) uint64 { return s.DroppedNeighbor }},
		{"IPv4 cut", udp[:40], func(s Stats) uint64 { return s.DroppedShort }},
		{"IPv4 checksum", with(udp, 24, 0, 0), func(s Stats) uint64 { return s.DroppedChecksum }},
		{"IPv4 version", with(udp, 14, 0x65), func(s Stats) uint64 { return s.DroppedShort }},
		{"IPv6 cut", tcp6[:50], func(s Stats) uint64 { return s.DroppedShort }},
		{"TCP checksum", tcp, func(s Stats) uint64 { return s.DroppedChecksum }},
		{"TCP checksum, IPv6", tcp6, func(s Stats) uint64 { return s.DroppedChecksum }},
		{"UDP checksum", with(udp, 40, 0x12, 0x34), func(s Stats) uint64 { return s.DroppedChecksum }},
		{"UDP length beyond", with(udp, 38, 0, 11), func(s Stats) uint64 { return s.DroppedShort }},
		{"UDP length below", with(udp, 38, 0, 7), func(s Stats) uint64 { return s.DroppedShort }},
		{"ping of someone else", ping, func(s Stats) uint64 { return s.DroppedEcho }},
		{"ping of someone else, IPv6", ping6, func(s Stats) uint64 { return s.DroppedEcho }},
		{"duplicate address detection", solicit, func(s Stats) uint64 { return s.DroppedNeighbor }},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := newRaw(t, NATConfig{})
			if k := r.send(c.frame, 1000); k != 0 {
				t.Error("taken")
			}
			if s := r.n.Stats(); c.stat(s) != 1 || s.FramesFromAdapter != 0 {
				t.Errorf("stats: %+v", s)
			}
			// An ARP request behind it shows that nothing was answered before.
			r.send(arp, 1000)
			p := r.expect("the ARP reply", func(gopacket.Packet) bool { return true })
			if p.Layer(layers.LayerTypeARP) == nil || r.frames() != 1 {
				t.Errorf("%d frames, the first %v", r.frames(), p)
			}
		})
	}
}

// sum16 is the Internet checksum's sum (RFC 1071), written out once more to
// check the one that the code uses.
func sum16(b []byte, start uint32) uint16 {
	s := start
	for i := 0; i+1 < len(b); i += 2 {
		s += uint32(b[i])<<8 | uint32(b[i+1])
	}
	if len(b)%2 == 1 {
		s += uint32(b[len(b)-1]) << 8
	}
	for s > 0xffff {
		s = s>>16 + s&0xffff
	}
	return uint16(s)
}

func TestPing(t *testing.T) {
	r := newRaw(t, NATConfig{})
	r.send(hexBytes(t, arpRequest), 1000) // so that the gateway knows the MAC
	for i, dst := range []string{"0a000202", "0a000203"} {
		b := hexBytes(t, `
52550a000202 020000000015 0800
45 00 0020 0001 0000 40 01 0000 0a00020f`+dst+`
08 00 0000 0001 0009 70696e67 # echo request, id 1, sequence 9, "ping"`)
		b[39] = byte(i + 1) // the id
		binary.BigEndian.PutUint16(b[24:], ^sum16(b[14:34], 0))
		binary.BigEndian.PutUint16(b[36:], ^sum16(b[34:], 0))
		r.send(b, 20)
		r.expect("echo reply of "+dst, func(p gopacket.Packet) bool {
			icmp, ok := p.Layer(layers.LayerTypeICMPv4).(*layers.ICMPv4)
			return ok && icmp.TypeCode.Type() == layers.ICMPv4TypeEchoReply && icmp.Id == uint16(i+1) && icmp.Seq == 9 && string(icmp.Payload) == "ping"
		})
	}
}

func TestPing6(t *testing.T) {
	r := newRaw(t, NATConfig{})
	ask := hexBytes(t, `
3333ff000002 020000000015 86dd
60000000 0020 3a ff fd000002000000000000000000000015 ff0200000000000000000001ff000002
87 00 0000 00000000 fd000002000000000000000000000002 # who has fd00:2::2?
01 01 020000000015                                    # source link-layer address`)
	putSum6(ask)
	r.send(ask, 1000)
	r.expect("neighbour advertisement", func(p gopacket.Packet) bool {
		na, ok := p.Layer(layers.LayerTypeICMPv6NeighborAdvertisement).(*layers.ICMPv6NeighborAdvertisement)
		return ok && na.TargetAddress.String() == "fd00:2::2"
	})
	ping := hexBytes(t, `
52550a000202 020000000015 86dd
60000000 000c 3a 40 fd000002000000000000000000000015 fd000002000000000000000000000002
80 00 0000 0001 0009 70696e67`)
	putSum6(ping)
	r.send(ping, 1000)
	r.expect("echo reply", func(p gopacket.Packet) bool {
		icmp, ok := p.Layer(layers.LayerTypeICMPv6).(*layers.ICMPv6)
		return ok && icmp.TypeCode.Type() == layers.ICMPv6TypeEchoReply
	})
}

// putSum6 stores the checksum of an ICMPv6 frame without extension headers.
func putSum6(b []byte) {
	body := b[54:]
	binary.BigEndian.PutUint16(body[2:], 0)
	pseudo := uint32(sum16(b[22:54], 0)) + uint32(len(body)) + 58
	binary.BigEndian.PutUint16(body[2:], ^sum16(body, pseudo))
}

// TestHalfOpen: the adapter sends a SYN and never answers the SYN-ACK. The
// gateway holds a host socket meanwhile and lets go of it with Close.
func TestHalfOpen(t *testing.T) {
	r := newRaw(t, NATConfig{})
	l := hostListen(t, "127.0.0.1:0")
	r.send(hexBytes(t, arpRequest), 1000)
	syn := hexBytes(t, `
52550a000202 020000000015 0800
45 00 0028 0001 0000 40 06 0000 0a00020f 0a000202
1000 0000 00000001 00000000 50 02 2000 0000 0000`)
	binary.BigEndian.PutUint16(syn[36:], portOf(l.Addr()))
	binary.BigEndian.PutUint16(syn[24:], ^sum16(syn[14:34], 0))
	binary.BigEndian.PutUint16(syn[50:], ^sum16(syn[34:], uint32(sum16(syn[26:34], 0))+20+6))
	for range 3 {
		r.send(syn, 1000) // the second and third are taken for repetitions
	}
	p := r.expect("SYN-ACK", func(p gopacket.Packet) bool {
		tcp, ok := p.Layer(layers.LayerTypeTCP).(*layers.TCP)
		return ok && tcp.SYN && tcp.ACK && tcp.Ack == 2
	})
	if err := p.ErrorLayer(); err != nil {
		t.Error(err.Error())
	}
	closes(t, r.n)
}

// FuzzTransmit sends arbitrary frames, whole and in pieces, with arbitrary
// offload metadata.
func FuzzTransmit(f *testing.F) {
	for _, s := range []string{arpRequest, arpReply} {
		f.Add(hexBytes(f, s), uint8(0), uint16(0))
	}
	f.Add(hexBytes(f, `
52550a000202 020000000015 0800
45 00 0028 0001 0000 40 06 2cb1 0a00020f 0a000202
1000 0001 00000001 00000000 50 02 2000 0000 0000`), uint8(1), uint16(0xffff))
	f.Add(hexBytes(f, `
52550a000202 020000000015 86dd
60000000 0020 3a ff fd000002000000000000000000000015 ff0200000000000000000001ff000002
87 00 0000 00000000 fd000002000000000000000000000002 01 01 020000000015`), uint8(3), uint16(9))
	n, err := NewNAT(NATConfig{Dial: refuseDial, Connections: 16, Flows: 16})
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(func() { n.Close() })
	n.Attach(func([]engine.Frame) {})
	f.Fuzz(func(t *testing.T, b []byte, flags uint8, meta uint16) {
		fr := engine.Frame{
			GSO: engine.GSOType(flags & 3), GSOSize: meta, HeaderLen: meta,
			NeedsChecksum: flags&4 != 0, ChecksumStart: meta, ChecksumOffset: meta, ChecksumValid: flags&8 != 0,
		}
		cut := int(flags>>4)*5 + 1
		for p := b; len(p) > 0; {
			k := min(cut, len(p))
			fr.Data = append(fr.Data, p[:k], nil)
			p = p[k:]
		}
		n.Transmit([]engine.Frame{fr})
	})
}
