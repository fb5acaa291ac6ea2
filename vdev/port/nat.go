// SPDX-License-Identifier: Apache-2.0

package port

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip"
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

// NATConfig describes a gateway. The zero value is the usual one.
type NATConfig struct {
	// Network and Network6 are the adapter's networks; the gateway is their
	// address 2, the resolver 3, the adapter 15 (6: ::15). Default
	// 10.0.2.0/24 and fd00:2::/64.
	Network, Network6 netip.Prefix
	// MTU in bytes. Default 1500.
	MTU int
	// MAC of the gateway. Default 52:55:0a:00:02:02.
	MAC net.HardwareAddr
	// Domain is given to the adapter as its domain name, when not empty.
	Domain string

	// Deny lists the destinations of the host's network that the adapter may
	// not reach. Default: DefaultDeny(). The gateway's own address, which
	// stands for the host's loopback, is not subject to it.
	Deny []netip.Prefix
	// Resolvers answer the queries to the resolver's address. Default: the
	// nameservers of ResolvConf, which is read again when it changes; its
	// default is /etc/resolv.conf.
	Resolvers  []netip.AddrPort
	ResolvConf string
	// Dial opens host sockets. Default: net.Dialer.
	Dial func(ctx context.Context, network, address string) (net.Conn, error)

	// DialTimeout bounds an outbound connect. Default 10 s.
	DialTimeout time.Duration
	// Dials bounds the outbound connects that run at a time; others wait
	// their turn. Default 512.
	Dials int
	// Connections bounds the connections, those being opened included.
	// Default 32768.
	Connections int
	// ConnectTimeout bounds how long a host client waits for the adapter to
	// answer before its connection is reset. Default 5 s.
	ConnectTimeout time.Duration
	// Restarted says that the adapter's program was there before this gateway,
	// which took over from another: clients of a forward that the adapter
	// refuses within ConnectTimeout of the start wait for the program to
	// listen again, until the first is served.
	Restarted bool
	// Flows bounds the datagram flows. Default 2048.
	Flows int
	// FlowIdle ends a datagram flow without traffic. Default 60 s.
	FlowIdle time.Duration
	// QueryTimeout bounds the wait for one resolver. Default 3 s.
	QueryTimeout time.Duration

	// Clock times FlowIdle and QueryTimeout. Default: the system's.
	Clock engine.Clock
	// Logger is told about what an operator should know. Default: nobody.
	Logger *slog.Logger
}

// DefaultDeny is what an adapter has no business with on its host's network:
// loopback, link-local (with the metadata services of clouds), multicast,
// reserved, and IPv4 addresses in IPv6 clothes.
func DefaultDeny() []netip.Prefix {
	var out []netip.Prefix
	for _, s := range []string{
		"0.0.0.0/8", "127.0.0.0/8", "169.254.0.0/16", "224.0.0.0/4", "240.0.0.0/4",
		"::/96", "::ffff:0:0/96", "fe80::/10", "fec0::/10", "ff00::/8",
	} {
		out = append(out, netip.MustParsePrefix(s))
	}
	return out
}

// Lease is the static addressing of the adapter behind a NAT.
type Lease struct {
	Prefixes  []netip.Prefix // the adapter's addresses with their prefix lengths
	Routes    []engine.Route
	Resolvers []netip.Addr
	Domain    string
	MTU       int
}

// Host numbers in the networks, as in QEMU's user-mode network. 0x15 reads as
// 15 in an IPv6 address.
const (
	hostGateway  = 2
	hostResolver = 3
	hostAdapter  = 15
	hostAdapter6 = 0x15
)

// Our tunables.
const (
	nicID = 1
	// sendBuffer is the gateway's send buffer per connection in bytes:
	// enough for full speed, and it bounds what a stalled adapter keeps here.
	sendBuffer = 512 << 10
	// receiveBuffer in bytes; the window advertised is half of it.
	receiveBuffer = 1 << 20
	// bufferBudget is shared by all connections' send buffers, and once more
	// by their receive buffers: a connection opened beside n-1 others gets an
	// nth of it at most, and minBuffer at least. So an adapter that opens all
	// it can and lets them stall holds a few GiB here, not all memory.
	bufferBudget = 512 << 20
	minBuffer    = 32 << 10
	// timeWait is short: the link neither loses nor delays segments, so old
	// duplicates cannot turn up.
	timeWait = time.Second
	// maxTimeout bounds the time after which an unacknowledged segment is sent
	// again: to the adapter no round trip is long, but the stack takes one in
	// which a SYN or its answer was lost, and sent again, for that. An adapter
	// that says nothing, its program in a debugger perhaps, has maxRetries times
	// that long.
	maxTimeout = 2 * time.Second
	maxRetries = 450
)

// NAT is an Ethernet port with a user-mode gateway behind it.
type NAT struct {
	cfg   NATConfig
	log   *slog.Logger
	limit limiter // of log
	stats counters
	link  *link
	stack *stack.Stack

	gateway, resolver, adapter    netip.Addr
	gateway6, resolver6, adapter6 netip.Addr

	began  time.Time
	ctx    context.Context // ends with Close
	cancel context.CancelFunc
	wg     sync.WaitGroup

	dials     chan struct{} // a token per running dial
	datagrams datagramPool
	conf      resolvConf
	dhcp      dhcpServer

	mu         sync.Mutex
	closed     bool
	closers    map[closer]struct{}                  // what Close has to end
	conns      int                                  // connections counted against cfg.Connections
	lingering  map[*flow]time.Time                  // closed here, not acknowledged by the adapter yet: when to give up
	lingerHeld int                                  // bytes that they may hold
	pending    map[stack.TransportEndpointID]uint32 // undecided connects: sequence number of the SYN
	flows      int                                  // datagram flows
}

// closer is anything that Close ends: connections, datagram flows, listeners.
type closer interface{ shut() }

var _ engine.Port = (*NAT)(nil)

// NewNAT starts a gateway.
func NewNAT(cfg NATConfig) (*NAT, error) {
	if err := cfg.setDefaults(); err != nil {
		return nil, fmt.Errorf("port: nat: %w", err)
	}
	n := &NAT{
		cfg:       cfg,
		log:       cfg.Logger,
		gateway:   hostAddr(cfg.Network, hostGateway),
		resolver:  hostAddr(cfg.Network, hostResolver),
		adapter:   hostAddr(cfg.Network, hostAdapter),
		gateway6:  hostAddr(cfg.Network6, hostGateway),
		resolver6: hostAddr(cfg.Network6, hostResolver),
		adapter6:  hostAddr(cfg.Network6, hostAdapter6),
		dials:     make(chan struct{}, cfg.Dials),
		conf:      resolvConf{path: cfg.ResolvConf, fixed: cfg.Resolvers},
		closers:   make(map[closer]struct{}),
		lingering: make(map[*flow]time.Time),
		pending:   make(map[stack.TransportEndpointID]uint32),
		began:     time.Now(),
	}
	n.dhcp = dhcpServer{
		server: n.gateway, client: n.adapter, resolver: n.resolver,
		network: cfg.Network, mtu: cfg.MTU, domain: cfg.Domain,
	}
	n.ctx, n.cancel = context.WithCancel(context.Background())
	if err := n.start(); err != nil {
		n.Close()
		return nil, fmt.Errorf("port: nat: %w", err)
	}
	return n, nil
}

func (c *NATConfig) setDefaults() error {
	def := func(v *int, d int) {
		if *v == 0 {
			*v = d
		}
	}
	wait := func(v *time.Duration, d time.Duration) {
		if *v == 0 {
			*v = d
		}
	}
	def(&c.MTU, 1500)
	def(&c.Dials, 512)
	def(&c.Connections, 32768)
	def(&c.Flows, 2048)
	wait(&c.DialTimeout, 10*time.Second)
	wait(&c.ConnectTimeout, 5*time.Second)
	wait(&c.FlowIdle, 60*time.Second)
	wait(&c.QueryTimeout, 3*time.Second)
	if !c.Network.IsValid() {
		c.Network = netip.MustParsePrefix("10.0.2.0/24")
	}
	if !c.Network6.IsValid() {
		c.Network6 = netip.MustParsePrefix("fd00:2::/64")
	}
	if c.MAC == nil {
		c.MAC = net.HardwareAddr{0x52, 0x55, 0x0a, 0x00, 0x02, 0x02}
	}
	if c.Deny == nil {
		c.Deny = DefaultDeny()
	}
	if c.ResolvConf == "" {
		c.ResolvConf = "/etc/resolv.conf"
	}
	if c.Dial == nil {
		c.Dial = (&net.Dialer{}).DialContext
	}
	if c.Clock == nil {
		c.Clock = systemClock{}
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	c.Network, c.Network6 = c.Network.Masked(), c.Network6.Masked()
	switch {
	case c.Network.Addr().Unmap().Is6() || c.Network.Addr().Is4In6() || c.Network.Bits() > 27:
		return fmt.Errorf("network %v: not an IPv4 network of at least 32 addresses", c.Network)
	case !c.Network6.Addr().Is6() || c.Network6.Addr().Is4In6() || c.Network6.Bits() > 120:
		return fmt.Errorf("network %v: not an IPv6 network of at least 256 addresses", c.Network6)
	case c.MTU < header.IPv6MinimumMTU || c.MTU > maxGSO:
		return fmt.Errorf("mtu %d: not in [%d, %d]", c.MTU, header.IPv6MinimumMTU, maxGSO)
	case len(c.MAC) != header.EthernetAddressSize || c.MAC[0]&1 != 0:
		return fmt.Errorf("mac %v: not a unicast Ethernet address", c.MAC)
	case c.Dials < 0 || c.Connections < 0 || c.Flows < 0:
		return errors.New("negative limit")
	case c.DialTimeout < 0 || c.ConnectTimeout < 0 || c.FlowIdle < 0 || c.QueryTimeout < 0:
		return errors.New("negative timeout")
	}
	return nil
}

// hostAddr is the address with the given host number; the last byte of a
// network's own address is free for it (setDefaults sees to that).
func hostAddr(p netip.Prefix, host byte) netip.Addr {
	b := p.Addr().AsSlice()
	b[len(b)-1] |= host
	a, _ := netip.AddrFromSlice(b)
	return a
}

// start makes the stack and its services.
func (n *NAT) start() error {
	n.stack = stack.New(stack.Options{
		NetworkProtocols:   []stack.NetworkProtocolFactory{ipv4.NewProtocol, ipv6.NewProtocol, arp.NewProtocol},
		TransportProtocols: []stack.TransportProtocolFactory{tcp.NewProtocol, udp.NewProtocol, icmp.NewProtocol4, icmp.NewProtocol6},
	})
	f := &filter{own: make(map[tcpip.Address]bool), stats: &n.stats}
	mac := tcpip.LinkAddress(n.cfg.MAC)
	f.own[header.LinkLocalAddr(mac)] = true
	for _, a := range []netip.Addr{n.gateway, n.resolver, n.gateway6, n.resolver6} {
		f.own[toAddress(a)] = true
	}
	n.link = newLink(n.cfg.MTU, mac, f, &n.stats)
	if err := n.setOptions(); err != nil {
		return err
	}
	if err := n.stack.CreateNIC(nicID, n.link); err != nil {
		return errors.New(err.String())
	}
	for _, a := range []struct {
		addr netip.Addr
		bits int
		peb  stack.PrimaryEndpointBehavior
	}{
		{n.gateway, n.cfg.Network.Bits(), stack.CanBePrimaryEndpoint},
		{n.resolver, n.cfg.Network.Bits(), stack.NeverPrimaryEndpoint},
		{n.gateway6, n.cfg.Network6.Bits(), stack.CanBePrimaryEndpoint},
		{n.resolver6, n.cfg.Network6.Bits(), stack.NeverPrimaryEndpoint},
		{toNetip(header.LinkLocalAddr(mac)), 64, stack.NeverPrimaryEndpoint},
	} {
		pa := tcpip.ProtocolAddress{
			Protocol:          networkProtocol(a.addr),
			AddressWithPrefix: tcpip.AddressWithPrefix{Address: toAddress(a.addr), PrefixLen: a.bits},
		}
		if err := n.stack.AddProtocolAddress(nicID, pa, stack.AddressProperties{PEB: a.peb}); err != nil {
			return fmt.Errorf("address %v: %s", a.addr, err)
		}
	}
	// Take connections to any address, and answer from it.
	if err := n.stack.SetPromiscuousMode(nicID, true); err != nil {
		return errors.New(err.String())
	}
	if err := n.stack.SetSpoofing(nicID, true); err != nil {
		return errors.New(err.String())
	}
	n.stack.SetRouteTable([]tcpip.Route{
		{Destination: header.IPv4EmptySubnet, NIC: nicID},
		{Destination: header.IPv6EmptySubnet, NIC: nicID},
	})
	n.forwardTCP()
	n.forwardUDP()
	if err := n.serveDHCP(); err != nil {
		return err
	}
	for _, a := range []netip.Addr{n.resolver, n.resolver6} {
		if err := n.serveDNS(a); err != nil {
			return err
		}
	}
	n.wg.Add(1)
	go n.janitor()
	return nil
}

func (n *NAT) setOptions() error {
	sack := tcpip.TCPSACKEnabled(true)
	// The link neither loses nor reorders: what RACK would resend was never lost.
	rack := tcpip.TCPRecovery(0)
	cc := tcpip.CongestionControlOption("reno")
	snd := tcpip.TCPSendBufferSizeRangeOption{Min: 4096, Default: sendBuffer, Max: sendBuffer}
	rcv := tcpip.TCPReceiveBufferSizeRangeOption{Min: 4096, Default: receiveBuffer, Max: receiveBuffer}
	moderate := tcpip.TCPModerateReceiveBufferOption(false)
	tw := tcpip.TCPTimeWaitTimeoutOption(timeWait)
	rto := tcpip.TCPMaxRTOOption(maxTimeout)
	retries := tcpip.TCPMaxRetriesOption(maxRetries)
	for _, o := range []tcpip.SettableTransportProtocolOption{&sack, &rack, &cc, &snd, &rcv, &moderate, &tw, &rto, &retries} {
		if err := n.stack.SetTransportProtocolOption(tcp.ProtocolNumber, o); err != nil {
			return fmt.Errorf("tcp option %T: %s", o, err)
		}
	}
	if err := n.stack.SetPortRange(16000, 65535); err != nil {
		return errors.New(err.String())
	}
	return nil
}

// Lease returns the adapter's addressing, which never changes.
func (n *NAT) Lease() Lease {
	return Lease{
		Prefixes: []netip.Prefix{
			netip.PrefixFrom(n.adapter, n.cfg.Network.Bits()),
			netip.PrefixFrom(n.adapter6, n.cfg.Network6.Bits()),
		},
		Routes: []engine.Route{
			{Destination: n.cfg.Network},
			{Destination: netip.PrefixFrom(netip.IPv4Unspecified(), 0), Gateway: n.gateway},
			{Destination: n.cfg.Network6},
			{Destination: netip.PrefixFrom(netip.IPv6Unspecified(), 0), Gateway: n.gateway6},
		},
		Resolvers: []netip.Addr{n.resolver, n.resolver6},
		Domain:    n.cfg.Domain,
		MTU:       n.cfg.MTU,
	}
}

// Gateway is the address that stands for the host's loopback.
func (n *NAT) Gateway() netip.Addr { return n.gateway }

// Gateway6 is the gateway's IPv6 address.
func (n *NAT) Gateway6() netip.Addr { return n.gateway6 }

// Adapter6 is the adapter's.
func (n *NAT) Adapter6() netip.Addr { return n.adapter6 }

// MTU implements engine.Port.
func (n *NAT) MTU() int { return n.cfg.MTU }

// Attach implements engine.Port.
func (n *NAT) Attach(receive func([]engine.Frame)) { n.link.setReceive(receive) }

// Transmit implements engine.Port.
func (n *NAT) Transmit(frames []engine.Frame) int { return n.link.transmit(frames) }

// Stats returns the totals so far.
func (n *NAT) Stats() Stats { return n.stats.snapshot() }

// Close resets all connections, closes the forwarded listeners, and returns
// when nothing of the gateway runs any more.
func (n *NAT) Close() error {
	n.mu.Lock()
	first := !n.closed
	n.closed = true
	var all []closer
	for c := range n.closers {
		all = append(all, c)
	}
	n.mu.Unlock()
	n.cancel()
	for _, c := range all {
		c.shut()
	}
	if first && n.stack != nil {
		n.stack.Close() // ends handshakes that somebody waits for
	}
	n.wg.Wait()
	if n.stack != nil {
		n.stack.Wait()
	}
	if n.link != nil {
		n.link.close()
	}
	return nil
}

// enter registers a goroutine and what ends it; false after Close.
func (n *NAT) enter(c closer) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.closed {
		return false
	}
	n.wg.Add(1)
	if c != nil {
		n.closers[c] = struct{}{}
	}
	return true
}

// leave undoes enter.
func (n *NAT) leave(c closer) {
	if c != nil {
		n.mu.Lock()
		delete(n.closers, c)
		n.mu.Unlock()
	}
	n.wg.Done()
}

func toAddress(a netip.Addr) tcpip.Address { return tcpip.AddrFromSlice(a.AsSlice()) }

func toNetip(a tcpip.Address) netip.Addr {
	out, _ := netip.AddrFromSlice(a.AsSlice())
	return out
}

func networkProtocol(a netip.Addr) tcpip.NetworkProtocolNumber {
	if a.Is4() {
		return header.IPv4ProtocolNumber
	}
	return header.IPv6ProtocolNumber
}
