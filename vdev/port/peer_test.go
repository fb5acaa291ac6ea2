// SPDX-License-Identifier: Apache-2.0

package port

import (
	"context"
	"net"
	"net/netip"
	"os"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"gvisor.dev/gvisor/pkg/buffer"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/adapters/gonet"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/network/arp"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv4"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv6"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/icmp"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"gvisor.dev/gvisor/pkg/tcpip/transport/udp"

	"toebox/firmware/engine"
)

// peer plays the adapter: a stack of its own on an engine.Port, with sockets.
type peer struct {
	port   engine.Port
	mac    tcpip.LinkAddress
	stack  *stack.Stack
	disp   atomic.Pointer[stack.NetworkDispatcher]
	onePkt bool // no segmentation offload
}

const peerMAC = tcpip.LinkAddress("\x02\x00\x00\x00\x00\x15")

func newPeer(t testing.TB, p engine.Port, lease Lease, gso bool) *peer {
	t.Helper()
	e := makePeer(t, p, lease, gso)
	e.plug(t)
	return e
}

// plug connects the peer to its port.
func (e *peer) plug(t testing.TB) {
	e.port.Attach(e.receive)
	t.Cleanup(func() { e.port.Attach(nil) })
}

// makePeer returns a peer that hears nothing yet.
func makePeer(t testing.TB, p engine.Port, lease Lease, gso bool) *peer {
	t.Helper()
	e := &peer{port: p, mac: peerMAC, onePkt: !gso}
	e.stack = stack.New(stack.Options{
		NetworkProtocols:   []stack.NetworkProtocolFactory{ipv4.NewProtocol, ipv6.NewProtocol, arp.NewProtocol},
		TransportProtocols: []stack.TransportProtocolFactory{tcp.NewProtocol, udp.NewProtocol, icmp.NewProtocol4, icmp.NewProtocol6},
	})
	rack := tcpip.TCPRecovery(0)
	sack := tcpip.TCPSACKEnabled(true)
	cc := tcpip.CongestionControlOption("reno")
	snd := tcpip.TCPSendBufferSizeRangeOption{Min: 4096, Default: 512 << 10, Max: 16 << 20}
	rcv := tcpip.TCPReceiveBufferSizeRangeOption{Min: 4096, Default: 1 << 20, Max: 16 << 20}
	tw := tcpip.TCPTimeWaitTimeoutOption(100 * time.Millisecond)
	for _, o := range []tcpip.SettableTransportProtocolOption{&rack, &sack, &cc, &snd, &rcv, &tw} {
		if err := e.stack.SetTransportProtocolOption(tcp.ProtocolNumber, o); err != nil {
			t.Fatal(err)
		}
	}
	if err := e.stack.CreateNIC(1, e); err != nil {
		t.Fatal(err)
	}
	for _, a := range lease.Prefixes {
		pa := tcpip.ProtocolAddress{
			Protocol:          networkProtocol(a.Addr()),
			AddressWithPrefix: tcpip.AddressWithPrefix{Address: toAddress(a.Addr()), PrefixLen: a.Bits()},
		}
		if err := e.stack.AddProtocolAddress(1, pa, stack.AddressProperties{}); err != nil {
			t.Fatal(err)
		}
	}
	var routes []tcpip.Route
	for _, r := range lease.Routes {
		d, err := tcpip.NewSubnet(toAddress(r.Destination.Addr()), tcpip.MaskFromBytes(net.CIDRMask(r.Destination.Bits(), r.Destination.Addr().BitLen())))
		if err != nil {
			t.Fatal(err)
		}
		tr := tcpip.Route{Destination: d, NIC: 1}
		if r.Gateway.IsValid() {
			tr.Gateway = toAddress(r.Gateway)
		}
		routes = append(routes, tr)
	}
	e.stack.SetRouteTable(routes)
	t.Cleanup(e.stack.Destroy)
	return e
}

func (e *peer) MTU() uint32                             { return uint32(e.port.MTU()) }
func (e *peer) SetMTU(uint32)                           {}
func (e *peer) MaxHeaderLength() uint16                 { return header.EthernetMinimumSize }
func (e *peer) LinkAddress() tcpip.LinkAddress          { return e.mac }
func (e *peer) SetLinkAddress(tcpip.LinkAddress)        {}
func (e *peer) Wait()                                   {}
func (e *peer) ARPHardwareType() header.ARPHardwareType { return header.ARPHardwareEther }
func (e *peer) Close()                                  {}
func (e *peer) SetOnCloseAction(func())                 {}
func (e *peer) ParseHeader(*stack.PacketBuffer) bool    { return true }
func (e *peer) GSOMaxSize() uint32                      { return 65535 }
func (e *peer) IsAttached() bool                        { return e.disp.Load() != nil }
func (e *peer) SupportedGSO() stack.SupportedGSO {
	if e.onePkt {
		return stack.GSONotSupported
	}
	return stack.HostGSOSupported
}
func (e *peer) Capabilities() stack.LinkEndpointCapabilities {
	return stack.CapabilityResolutionRequired | stack.CapabilityRXChecksumOffload
}
func (e *peer) Attach(d stack.NetworkDispatcher) {
	if d == nil {
		e.disp.Store(nil)
		return
	}
	e.disp.Store(&d)
}
func (e *peer) AddHeader(pkt *stack.PacketBuffer) {
	header.Ethernet(pkt.LinkHeader().Push(header.EthernetMinimumSize)).Encode(&header.EthernetFields{
		SrcAddr: e.mac, DstAddr: pkt.EgressRoute.RemoteLinkAddress, Type: pkt.NetworkProtocolNumber,
	})
}
func (e *peer) WritePackets(pkts stack.PacketBufferList) (int, tcpip.Error) {
	for _, p := range pkts.AsSlice() {
		var f engine.Frame
		describe(&f, p)
		e.port.Transmit([]engine.Frame{f})
	}
	return pkts.Len(), nil
}

func (e *peer) receive(frames []engine.Frame) {
	d := e.disp.Load()
	if d == nil {
		return
	}
	for i := range frames {
		v := buffer.NewView(frames[i].Len())
		for _, p := range frames[i].Data {
			v.Write(p)
		}
		pkt := stack.NewPacketBuffer(stack.PacketBufferOptions{Payload: buffer.MakeWithView(v)})
		if b, ok := pkt.LinkHeader().Consume(header.EthernetMinimumSize); ok {
			h := header.Ethernet(b)
			dst := h.DestinationAddress()
			if dst == e.mac || dst[0]&1 == 1 {
				if dst == header.EthernetBroadcastAddress {
					pkt.PktType = tcpip.PacketBroadcast
				}
				pkt.NetworkProtocolNumber = h.Type()
				(*d).DeliverNetworkPacket(h.Type(), pkt)
			}
		}
		pkt.DecRef()
	}
}

func full(a netip.AddrPort) tcpip.FullAddress {
	return tcpip.FullAddress{NIC: 1, Addr: toAddress(a.Addr()), Port: a.Port()}
}

func (e *peer) dial(ctx context.Context, to netip.AddrPort) (*gonet.TCPConn, error) {
	return gonet.DialContextTCP(ctx, e.stack, full(to), networkProtocol(to.Addr()))
}

func (e *peer) listen(t testing.TB, at netip.AddrPort) *gonet.TCPListener {
	t.Helper()
	l, err := gonet.ListenTCP(e.stack, full(at), networkProtocol(at.Addr()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l
}

func (e *peer) dialUDP(t testing.TB, to netip.AddrPort) *gonet.UDPConn {
	t.Helper()
	a := full(to)
	c, err := gonet.DialUDP(e.stack, nil, &a, networkProtocol(to.Addr()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// setup makes a gateway and a peer on it. Leaks of either fail the test.
func setup(t testing.TB, cfg NATConfig) (*NAT, *peer) {
	t.Helper()
	checkLeaks(t)
	n, err := NewNAT(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { n.Close() })
	return n, newPeer(t, n, n.Lease(), true)
}

// limit is the patience of a test with anything that should happen.
const limit = 60 * time.Second

func deadline(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	t.Cleanup(cancel)
	return ctx
}

// eventually polls for what no event announces.
func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for end := time.After(limit); !ok(); {
		select {
		case <-tick.C:
		case <-end:
			t.Fatalf("not within %v: %s", limit, what)
		}
	}
}

// checkLeaks fails the test if goroutines of this package or descriptors are
// left after all its cleanups.
func checkLeaks(t testing.TB) {
	t.Helper()
	// The runtime's poller opens its own descriptors with the first socket.
	if l, err := net.Listen("tcp", "127.0.0.1:0"); err == nil {
		l.Close()
	}
	fds := openFiles(t)
	t.Cleanup(func() {
		if t.Failed() {
			return
		}
		var last string
		tick := time.NewTicker(5 * time.Millisecond)
		defer tick.Stop()
		for end := time.After(limit); ; {
			last = ourGoroutines()
			if last == "" && openFiles(t) <= fds {
				return
			}
			select {
			case <-tick.C:
			case <-end:
				t.Errorf("leaked: %d descriptors before, %d after; goroutines:\n%s", fds, openFiles(t), last)
				return
			}
		}
	})
}

func openFiles(t testing.TB) int {
	t.Helper()
	d, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(d)
}

// ourGoroutines are the stacks of goroutines that this package or a stack of
// its making started.
func ourGoroutines() string {
	buf := make([]byte, 4<<20)
	var out []string
	for _, g := range strings.Split(string(buf[:runtime.Stack(buf, true)]), "\n\n") {
		i := strings.LastIndex(g, "created by ")
		if i < 0 || strings.Contains(g[i:], "testing.") {
			continue
		}
		if strings.Contains(g[i:], "vdev/port.(*") || strings.Contains(g[i:], "gvisor.dev/gvisor/pkg/tcpip") {
			out = append(out, g)
		}
	}
	return strings.Join(out, "\n\n")
}
