// SPDX-License-Identifier: Apache-2.0

package engine

import (
	"net/netip"
	"testing"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
)

// quietPort takes everything and gives nothing.
type quietPort struct{}

func (quietPort) MTU() int               { return 1500 }
func (quietPort) Attach(func([]Frame))   {}
func (quietPort) Transmit(f []Frame) int { return len(f) }
func (quietPort) Close() error           { return nil }

func gateEngine(t testing.TB) *netstack {
	t.Helper()
	e, err := New(Config{Port: quietPort{}, MAC: []byte{2, 0, 0, 0, 0, 1}, Addresses: []netip.Prefix{netip.MustParsePrefix("10.0.0.1/24")}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := e.Close(); err != nil {
			t.Error(err)
		}
	})
	return e.(*netstack)
}

// Gates that have nothing to do any more do not pile up.
func TestGatesAreSwept(t *testing.T) {
	n := gateEngine(t)
	local := netip.MustParseAddrPort("10.0.0.1:80")
	for i := range 10_000 {
		n.Disown(local, netip.AddrPortFrom(netip.MustParseAddr("10.0.0.2"), uint16(i+1)))
		if k := len(n.link.gates.all); k > minGates {
			t.Fatalf("%d gates after %d connections", k, i+1)
		}
	}
	// Connections that never come take their gates with them.
	for i := range 200 {
		ep, err := n.Open(TCP, false, nothing{})
		if err != nil {
			t.Fatal(err)
		}
		err = ep.(Carrier).Restore(Flow{
			State: StateEstablished, MSS: 1460, Local: netip.AddrPortFrom(local.Addr(), uint16(1000+i)),
			Remote: netip.MustParseAddrPort("10.0.0.9:9"),
		})
		if err != nil {
			t.Fatal(err)
		}
		ep.Abort()
	}
	if k := len(n.link.gates.all); k > minGates {
		t.Errorf("%d gates of connections that never came", k)
	}
}

type nothing struct{}

func (nothing) Notify(Events) {}

// FuzzGate lets any packet arrive through gates in all states.
func FuzzGate(f *testing.F) {
	b := make([]byte, 60)
	header.IPv4(b).Encode(&header.IPv4Fields{
		TotalLength: 60, TTL: 64, Protocol: 6,
		SrcAddr: tcpip.AddrFrom4([4]byte{10, 0, 0, 2}), DstAddr: tcpip.AddrFrom4([4]byte{10, 0, 0, 1}),
	})
	header.TCP(b[20:]).Encode(&header.TCPFields{SrcPort: 2, DstPort: 1, SeqNum: 7, AckNum: 9, DataOffset: 40, Flags: header.TCPFlagAck})
	f.Add(b, uint8(0), uint8(0))
	f.Add(b[:40], uint8(1), uint8(1))
	f.Add(b[:19], uint8(2), uint8(2))
	n := gateEngine(f)
	f.Fuzz(func(t *testing.T, b []byte, block, kind uint8) {
		x := &gate{came: kind&1 != 0, flow: Flow{SendScale: kind % 15, ReceiveScale: block % 15}, scale: kind >> 4}
		x.block.Store(uint32(block % 3))
		x.joined.Store(kind&2 != 0)
		id := stack.TransportEndpointID{
			LocalPort: 1, LocalAddress: tcpip.AddrFrom4([4]byte{10, 0, 0, 1}),
			RemotePort: 2, RemoteAddress: tcpip.AddrFrom4([4]byte{10, 0, 0, 2}),
		}
		g := gates{stack: n.stack, all: map[stack.TransportEndpointID]*gate{id: x}}
		g.n.Store(1)
		for _, proto := range []tcpip.NetworkProtocolNumber{header.IPv4ProtocolNumber, header.IPv6ProtocolNumber, header.ARPProtocolNumber} {
			p := append([]byte(nil), b...)
			valid := checksumValid(proto, p)
			v := g.inbound(proto, p, len(p))
			if v == pass && checksumValid(proto, p) != valid {
				t.Errorf("the checksum was good: %v, is not so now", valid)
			}
			if s, ok := parseInbound(proto, p, len(p)); ok {
				keep := min(int(kind), s.payload)
				c, whole := parseInbound(proto, stripped(proto, p, len(p), int(kind)), len(p))
				if !whole || c.payload != keep || c.is(header.TCPFlagFin) {
					t.Errorf("%d of %d bytes left: %+v", keep, s.payload, c)
				}
			}
			if v == strip {
				s, ok := parseInbound(proto, stripped(proto, p, len(p), 0), len(p))
				if !ok || !s.bare() {
					t.Errorf("stripped to %+v", s)
				}
			}
		}
	})
}
