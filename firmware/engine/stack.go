// SPDX-License-Identifier: Apache-2.0

package engine

import (
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"reflect"
	"sync"
	"sync/atomic"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/network/arp"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv4"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv6"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/icmp"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"gvisor.dev/gvisor/pkg/tcpip/transport/udp"
	"gvisor.dev/gvisor/pkg/waiter"
)

// nic is the stack's one Ethernet interface.
const nic tcpip.NICID = 1

// netstack is the [Engine] over gVisor.
type netstack struct {
	stack   *stack.Stack
	link    *link
	port    Port
	log     *slog.Logger
	conns   connTable
	hold    hold
	callers callers
	// datagramsDropped counts those that the stack did not drop itself.
	datagramsDropped atomic.Uint64
	announcer        announcer
	// unacked is where a connection's sender keeps SND.UNA.
	unacked reflect.StructField

	configMu sync.Mutex // SetAddresses and SetRoutes, one at a time
	prefixes []netip.Prefix
	routes   []Route

	mu      sync.Mutex
	open    map[closer]struct{}
	parting map[*parting]struct{} // closed by their owners
	closed  bool
}

// closer is an endpoint as its engine sees it.
type closer interface {
	// shut ends the endpoint with a reset, for an owner that does not.
	shut()
}

var _ Engine = (*netstack)(nil)

// New builds an engine on cfg.Port and attaches to it.
func New(cfg Config) (Engine, error) {
	if err := cfg.check(); err != nil {
		return nil, err
	}
	unacked, err := unackedField()
	if err != nil {
		return nil, err
	}
	if err := checkFlowFields(); err != nil {
		return nil, err
	}
	n := &netstack{
		port:    cfg.Port,
		log:     cfg.Logger,
		open:    make(map[closer]struct{}),
		parting: make(map[*parting]struct{}),
		unacked: unacked,
		link:    newLink(cfg.Port, tcpip.LinkAddress(cfg.MAC), cfg.MTU),
	}
	n.conns.init()
	opts := stack.Options{
		NetworkProtocols: []stack.NetworkProtocolFactory{
			arp.NewProtocol,
			ipv4.NewProtocol,
			// The host says which addresses and routes there are: neither
			// router advertisements nor address detection have a part in it.
			ipv6.NewProtocolWithOptions(ipv6.Options{AutoGenLinkLocal: true}),
		},
		TransportProtocols: []stack.TransportProtocolFactory{
			// With a probe the default is Reno, and so it stays.
			tcp.NewProtocolProbe(n.observe),
			udp.NewProtocol,
			icmp.NewProtocol4,
			icmp.NewProtocol6,
		},
		Clock:       newStackClock(cfg.Clock),
		HandleLocal: false,
	}
	if cfg.Random != nil {
		opts.SecureRNG = &lockedReader{r: cfg.Random}
	}
	n.stack = stack.New(opts)
	n.link.gates.stack = n.stack
	n.announcer.link, n.announcer.after = n.link, n.stack.Clock().AfterFunc
	n.link.judge, n.link.unclock = n.judge, n.unclock
	if cfg.Hush > 0 {
		n.link.gates.quiet(cfg.Hush)
	}
	if err := n.configure(&cfg); err != nil {
		n.stack.Destroy()
		return nil, err
	}
	return n, nil
}

func (n *netstack) configure(cfg *Config) error {
	reno := tcpip.CongestionControlOption("reno")
	sack := tcpip.TCPSACKEnabled(true)
	recovery := tcpip.TCPRecovery(0)
	if cfg.RACK {
		recovery = tcpip.TCPRACKLossDetection
	}
	send := tcpip.TCPSendBufferSizeRangeOption{Min: minBuffer, Default: defaultBuffer, Max: maxBuffer}
	receive := tcpip.TCPReceiveBufferSizeRangeOption{Min: minBuffer, Default: defaultBuffer, Max: maxBuffer}
	moderate := tcpip.TCPModerateReceiveBufferOption(true)
	timeWait := tcpip.TCPTimeWaitTimeoutOption(cfg.TimeWait)
	for _, o := range []tcpip.SettableTransportProtocolOption{&reno, &sack, &recovery, &send, &receive, &moderate, &timeWait} {
		if err := n.stack.SetTransportProtocolOption(tcp.ProtocolNumber, o); err != nil {
			return fmt.Errorf("engine: new: set %T: %v", o, err)
		}
	}
	if err := n.stack.SetPortRange(firstLocalPort, lastLocalPort); err != nil {
		return fmt.Errorf("engine: new: port range: %v", err)
	}
	// The interface may transmit as soon as it is there, so the port is
	// attached before; what arrives too early is counted and dropped.
	n.port.Attach(n.link.receive)
	err := n.configureInterface(cfg)
	if err != nil {
		n.port.Attach(nil)
	}
	return err
}

func (n *netstack) configureInterface(cfg *Config) error {
	if err := n.stack.CreateNICWithOptions(nic, n.link, stack.NICOptions{Name: "adapter"}); err != nil {
		return fmt.Errorf("engine: new: interface: %v", err)
	}
	v4, err := n.stack.GetNetworkEndpoint(nic, ipv4.ProtocolNumber)
	if err != nil {
		return fmt.Errorf("engine: new: IPv4: %v", err)
	}
	v6, err := n.stack.GetNetworkEndpoint(nic, ipv6.ProtocolNumber)
	if err != nil {
		return fmt.Errorf("engine: new: IPv6: %v", err)
	}
	n.link.start(v4, v6)
	if err := n.SetAddresses(cfg.Addresses); err != nil {
		return err
	}
	return n.SetRoutes(cfg.Routes)
}

// SetAddresses replaces the interface's addresses. An address's prefix is on
// the link without a route that says so.
func (n *netstack) SetAddresses(prefixes []netip.Prefix) error {
	if len(prefixes) > maxConfiguration {
		return fmt.Errorf("engine: set addresses: %d of at most %d: %w", len(prefixes), maxConfiguration, ErrNoMemory)
	}
	want := make(map[netip.Addr]netip.Prefix, len(prefixes))
	for _, p := range prefixes {
		if !p.IsValid() || p.Addr().Is4In6() || p.Addr().IsMulticast() || p.Addr().IsUnspecified() {
			return fmt.Errorf("engine: set addresses: %v: %w", p, ErrBadAddress)
		}
		if _, twice := want[p.Addr()]; twice {
			return fmt.Errorf("engine: set addresses: %v twice: %w", p.Addr(), ErrBadAddress)
		}
		want[p.Addr()] = p
	}
	n.configMu.Lock()
	defer n.configMu.Unlock()
	for _, p := range n.prefixes {
		if want[p.Addr()] == p {
			delete(want, p.Addr())
			continue
		}
		if err := n.stack.RemoveAddress(nic, toStack(p.Addr())); err != nil {
			return fmt.Errorf("engine: set addresses: remove %v: %w", p, fromStack(err))
		}
	}
	n.prefixes = append([]netip.Prefix(nil), prefixes...)
	n.announcer.keep(prefixes)
	for _, p := range prefixes {
		if _, add := want[p.Addr()]; !add {
			continue
		}
		a := tcpip.ProtocolAddress{
			Protocol:          protocolOf(p.Addr()),
			AddressWithPrefix: tcpip.AddressWithPrefix{Address: toStack(p.Addr()), PrefixLen: p.Bits()},
		}
		if err := n.stack.AddProtocolAddress(nic, a, stack.AddressProperties{}); err != nil {
			return fmt.Errorf("engine: set addresses: add %v: %w", p, fromStack(err))
		}
	}
	return n.setRouteTable()
}

// SetRoutes replaces the routing table; the longest prefix wins. The links'
// own prefixes, and what neighbour discovery and multicast need, are there
// without being named.
func (n *netstack) SetRoutes(routes []Route) error {
	if len(routes) > maxConfiguration {
		return fmt.Errorf("engine: set routes: %d of at most %d: %w", len(routes), maxConfiguration, ErrNoMemory)
	}
	for _, r := range routes {
		if !r.Destination.IsValid() || r.Gateway.IsValid() && r.Gateway.Is4() != r.Destination.Addr().Is4() {
			return fmt.Errorf("engine: set routes: %v by way of %v: %w", r.Destination, r.Gateway, ErrBadAddress)
		}
	}
	n.configMu.Lock()
	defer n.configMu.Unlock()
	n.routes = append([]Route(nil), routes...)
	return n.setRouteTable()
}

// linkRoutes are on every Ethernet link: link-local and multicast addresses.
func linkRoutes() []netip.Prefix {
	return []netip.Prefix{
		netip.MustParsePrefix("fe80::/10"),
		netip.MustParsePrefix("ff00::/8"),
		netip.MustParsePrefix("224.0.0.0/4"),
		netip.MustParsePrefix("255.255.255.255/32"),
	}
}

// setRouteTable needs configMu.
func (n *netstack) setRouteTable() error {
	var table []tcpip.Route
	add := func(p netip.Prefix, gateway netip.Addr) error {
		p = p.Masked()
		mask := tcpip.MaskFromBytes(maskBytes(p))
		subnet, err := tcpip.NewSubnet(toStack(p.Addr()), mask)
		if err != nil {
			return fmt.Errorf("engine: route to %v: %w", p, err)
		}
		r := tcpip.Route{Destination: subnet, NIC: nic}
		if gateway.IsValid() {
			r.Gateway = toStack(gateway)
		}
		table = append(table, r)
		return nil
	}
	// The table keeps equal prefixes in this order.
	for _, r := range n.routes {
		if err := add(r.Destination, r.Gateway); err != nil {
			return err
		}
	}
	for _, p := range append(n.prefixes, linkRoutes()...) {
		if err := add(p, netip.Addr{}); err != nil {
			return err
		}
	}
	n.stack.SetRouteTable(table)
	// A gateway's Ethernet address is asked for now: only so many packets
	// wait for the answer (256), and a bulk connect has more SYNs than that.
	for _, r := range n.routes {
		if r.Gateway.IsValid() {
			_ = n.stack.GetLinkAddress(nic, toStack(r.Gateway), tcpip.Address{}, protocolOf(r.Gateway), func(stack.LinkResolutionResult) {})
		}
	}
	return nil
}

func maskBytes(p netip.Prefix) []byte {
	mask := make([]byte, p.Addr().BitLen()/8)
	for i := range p.Bits() {
		mask[i/8] |= 0x80 >> (i % 8)
	}
	return mask
}

// Open makes an endpoint.
func (n *netstack) Open(p Protocol, v6 bool, sink Sink) (Endpoint, error) {
	if sink == nil {
		return nil, fmt.Errorf("engine: open: no sink: %w", ErrInvalidState)
	}
	network := ipv4.ProtocolNumber
	if v6 {
		network = ipv6.ProtocolNumber
	}
	var transport tcpip.TransportProtocolNumber
	switch p {
	case TCP:
		transport = tcp.ProtocolNumber
	case UDP:
		transport = udp.ProtocolNumber
	default:
		return nil, fmt.Errorf("engine: open protocol %d: %w", p, ErrNotSupported)
	}
	wq := new(waiter.Queue)
	ep, err := n.stack.NewEndpoint(transport, network, wq)
	if err != nil {
		return nil, fmt.Errorf("engine: open: %w", fromStack(err))
	}
	if v6 {
		ep.SocketOptions().SetV6Only(true)
	}
	if p == UDP {
		return n.keep(newDatagram(n, ep, wq, v6, sink))
	}
	c := newConn(n, ep.(*tcp.Endpoint), wq, v6)
	c.attach(sink)
	return n.keep(c)
}

// keep enters an endpoint into the set that Close ends.
func (n *netstack) keep(e interface {
	Endpoint
	closer
}) (Endpoint, error) {
	n.mu.Lock()
	closed := n.closed
	if !closed {
		n.open[e] = struct{}{}
	}
	n.mu.Unlock()
	if closed {
		e.shut()
		return nil, fmt.Errorf("engine: open: %w", ErrClosed)
	}
	return e, nil
}

func (n *netstack) forget(e closer) {
	n.mu.Lock()
	delete(n.open, e)
	n.mu.Unlock()
}

// Stats returns the totals since New.
func (n *netstack) Stats() Stats {
	t, l := n.stack.Stats().TCP, &n.link.stats
	s := Stats{
		FramesSent:         l.sent.Load(),
		FramesReceived:     l.received.Load(),
		FrameBytesSent:     l.sentBytes.Load(),
		FrameBytesReceived: l.receivedBytes.Load(),
		FramesRefused:      l.refused.Load(),
		FramesShort:        l.short.Load(),
		FramesOversize:     l.long.Load(),
		FramesOtherAddress: l.otherMAC.Load(),
		FramesOtherType:    l.otherType.Load(),
		FramesDetached:     l.detached.Load(),
		FramesUnanswered:   n.link.gates.kept.Load(),
		SegmentsRefused:    n.hold.refused.Load(),
		SegmentsSent:       t.SegmentsSent.Value(),
		SegmentsReceived:   t.ValidSegmentsReceived.Value(),
		Retransmits:        t.Retransmits.Value(),
		ActiveOpens:        t.ActiveConnectionOpenings.Value(),
		PassiveOpens:       t.PassiveConnectionOpenings.Value(),
		ResetsSent:         t.ResetsSent.Value(),
		ResetsReceived:     t.ResetsReceived.Value(),
		ChecksumErrors:     t.ChecksumErrors.Value(),
		ListenOverflows:    t.ListenOverflowSynDrop.Value() + t.ListenOverflowAckDrop.Value(),
	}
	s.FramesDropped = s.FramesRefused + s.FramesShort + s.FramesOversize + s.FramesOtherAddress + s.FramesOtherType + s.FramesDetached + s.FramesUnanswered
	s.DatagramsDropped = n.datagramsDropped.Load() + n.stack.Stats().UDP.ReceiveBufferErrors.Value()
	n.mu.Lock()
	s.Endpoints = uint64(len(n.open))
	n.mu.Unlock()
	return s
}

// Close aborts all endpoints and detaches from the port.
func (n *netstack) Close() error {
	n.mu.Lock()
	if n.closed {
		n.mu.Unlock()
		return nil
	}
	n.closed = true
	n.announcer.end()
	all := make([]closer, 0, len(n.open))
	for e := range n.open {
		all = append(all, e)
	}
	for p := range n.parting {
		all = append(all, p)
	}
	n.mu.Unlock()
	for _, e := range all {
		e.shut()
	}
	n.endCallers()
	// Connections that their owners have closed and that still linger.
	n.stack.Close()
	n.port.Attach(nil)
	n.stack.Wait()
	return nil
}

// lockedReader makes a source of randomness safe for concurrent use.
type lockedReader struct {
	mu sync.Mutex
	r  io.Reader
}

func (l *lockedReader) Read(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.r.Read(p)
}

func toStack(a netip.Addr) tcpip.Address {
	switch {
	case a.Is4():
		return tcpip.AddrFrom4(a.As4())
	case a.Is6():
		return tcpip.AddrFrom16(a.As16())
	}
	return tcpip.Address{}
}

func fromStackAddr(a tcpip.Address) netip.Addr {
	switch a.Len() {
	case header.IPv4AddressSize:
		return netip.AddrFrom4(a.As4())
	case header.IPv6AddressSize:
		return netip.AddrFrom16(a.As16())
	}
	return netip.Addr{}
}

func protocolOf(a netip.Addr) tcpip.NetworkProtocolNumber {
	if a.Is4() {
		return ipv4.ProtocolNumber
	}
	return ipv6.ProtocolNumber
}
