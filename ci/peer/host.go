// SPDX-License-Identifier: Apache-2.0

package peer

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"sync"

	"golang.org/x/sys/unix"

	"toebox/ci/conformance"
)

// Forward is a way from the host to a port of the adapter.
type Forward struct {
	Port uint16         // of the adapter
	Host netip.AddrPort // where the host listens for it
}

// HostConfig says how the adapter and the host see each other.
type HostConfig struct {
	// Gateway is the adapter's address for the host's loopback, or for Bind.
	Gateway netip.Addr
	// Bind is the address of the host's sockets, of the gateway's family; 127.0.0.1
	// if there is none.
	Bind netip.Addr
	// Do runs what makes sockets, in another network namespace for example; nil:
	// it is just called.
	Do func(func() error) error
	// Nobody is an address on the adapter's link where nobody is.
	Nobody netip.Addr
	// Forwards returns n ways in that nobody else uses.
	Forwards func(n int) ([]Forward, error)
	// Relay says that the adapter does not reach the host's end of a Forward, so
	// that Hairpin relays connections.
	Relay bool
	// Impair sets the rules of the wire; nil: it has none.
	Impair func(rules string) (conformance.Harm, error)
	// Accepts bounds the connections of one Serve whose scripts run. Those beyond it
	// wait in the listener's backlog, established and without a descriptor. 0: an
	// eighth of the descriptors of the process, since kits may run side by side.
	Accepts int
	// IPv6 is the peer over IPv6, which the Host closes; nil: there is none.
	IPv6 *Host
	// Inject sends a frame to the adapter, which is at Adapter and MAC; nil: it
	// cannot be done.
	Inject  func(frame []byte) error
	Adapter netip.Addr
	MAC     [6]byte
}

// Bounds on what one peer holds.
const (
	maxSessions = 1024
	maxResults  = 16384 // results that wait to be asked for, a session
	minAccepts  = 64    // connections of one Serve whose scripts run
	maxAccepts  = maxResults
)

// Host is a conformance.Peer on the host's loopback, or on an address of the
// host's in a network namespace.
type Host struct {
	cfg    HostConfig
	ctx    context.Context
	cancel context.CancelFunc
	wg     sync.WaitGroup

	mu       sync.Mutex
	closed   bool
	fds      []int
	sessions map[*session]struct{}
	ways     map[uint16]netip.AddrPort
	hang     netip.AddrPort
	refused  netip.AddrPort
	unwill   netip.AddrPort
	socket   *net.UDPConn // of unwill
}

// NewHost makes a peer; Close ends it.
func NewHost(cfg HostConfig) *Host {
	if !cfg.Bind.IsValid() {
		cfg.Bind = netip.AddrFrom4([4]byte{127, 0, 0, 1})
	}
	if cfg.Do == nil {
		cfg.Do = func(f func() error) error { return f() }
	}
	if cfg.Accepts <= 0 {
		cfg.Accepts = maxAccepts
		var limit unix.Rlimit
		if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err == nil {
			cfg.Accepts = int(max(minAccepts, min(limit.Cur/8, maxAccepts)))
		}
	}
	h := &Host{cfg: cfg, sessions: map[*session]struct{}{}, ways: map[uint16]netip.AddrPort{}}
	h.ctx, h.cancel = context.WithCancel(context.Background())
	return h
}

// session is one served port or one dialled connection.
type session struct {
	h       *Host
	addr    netip.AddrPort
	l       io.Closer // listener or socket; nil for a dialled connection
	ctx     context.Context
	cancel  context.CancelFunc
	signal  chan struct{}
	results chan conformance.Result
}

func (h *Host) newSession() (*session, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.closed {
		return nil, net.ErrClosed
	}
	if len(h.sessions) >= maxSessions {
		return nil, errors.New("peer: too many sessions")
	}
	s := &session{h: h, signal: make(chan struct{}, maxResults), results: make(chan conformance.Result, maxResults)}
	s.ctx, s.cancel = context.WithCancel(h.ctx)
	h.sessions[s] = struct{}{}
	return s, nil
}

// listen listens on a new port of the host's address.
func (h *Host) listen() (l *net.TCPListener, err error) {
	err = h.cfg.Do(func() error {
		l, err = net.ListenTCP("tcp", net.TCPAddrFromAddrPort(netip.AddrPortFrom(h.cfg.Bind, 0)))
		return err
	})
	return l, err
}

// start runs the script on c in the background, and calls over at its end.
func (s *session) start(c *net.TCPConn, script conformance.Script, over func()) {
	s.h.wg.Go(func() {
		res := run(s.ctx, c, script, s.signal)
		over()
		select {
		case s.results <- res:
		default: // nobody asks for the results of so many
		}
	})
}

// Serve implements conformance.Peer.
func (h *Host) Serve(_ context.Context, script conformance.Script) (conformance.Session, error) {
	s, err := h.newSession()
	if err != nil {
		return nil, err
	}
	l, err := h.listen()
	if err != nil {
		s.Close()
		return nil, fmt.Errorf("peer: serve: %w", err)
	}
	s.l = l
	s.addr = netip.AddrPortFrom(h.cfg.Gateway, uint16(l.Addr().(*net.TCPAddr).Port))
	h.wg.Go(func() {
		places := make(chan struct{}, h.cfg.Accepts)
		for {
			select {
			case places <- struct{}{}:
			case <-s.ctx.Done():
				return
			}
			c, err := l.AcceptTCP()
			if err != nil {
				return
			}
			s.start(c, script, func() { <-places })
		}
	})
	return s, nil
}

// Dial implements conformance.Peer.
func (h *Host) Dial(ctx context.Context, port uint16, script conformance.Script) (conformance.Session, error) {
	h.mu.Lock()
	way, ok := h.ways[port]
	h.mu.Unlock()
	if !ok {
		return nil, fmt.Errorf("peer: dial: port %d is none that Reachable gave", port)
	}
	s, err := h.newSession()
	if err != nil {
		return nil, err
	}
	var c net.Conn
	if err := h.cfg.Do(func() (err error) {
		c, err = new(net.Dialer).DialContext(ctx, "tcp", way.String())
		return err
	}); err != nil {
		s.Close()
		return nil, fmt.Errorf("peer: dial: %w", err)
	}
	s.addr = way
	s.start(c.(*net.TCPConn), script, func() {})
	return s, nil
}

// Reachable implements conformance.Peer.
func (h *Host) Reachable(_ context.Context, n int) ([]uint16, error) {
	if h.cfg.Forwards == nil {
		return nil, errors.New("peer: this network has no way in")
	}
	fs, err := h.cfg.Forwards(n)
	if err != nil {
		return nil, fmt.Errorf("peer: reachable: %w", err)
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	var ports []uint16
	for _, f := range fs {
		h.ways[f.Port] = f.Host
		ports = append(ports, f.Port)
	}
	return ports, nil
}

// Hairpin implements conformance.Peer.
func (h *Host) Hairpin(_ context.Context, port uint16) (netip.AddrPort, error) {
	h.mu.Lock()
	way, ok := h.ways[port]
	h.mu.Unlock()
	if !ok {
		return netip.AddrPort{}, fmt.Errorf("peer: hairpin: port %d is none that Reachable gave", port)
	}
	if h.cfg.Relay {
		return h.hairpin(way)
	}
	return netip.AddrPortFrom(h.cfg.Gateway, way.Port()), nil
}

// bound makes a socket bound to a port of the host's address that stays open until
// Close; it listens with a backlog of 0 if asked to.
func (h *Host) bound(listen bool) (netip.AddrPort, error) {
	family := unix.AF_INET6
	var own unix.Sockaddr = &unix.SockaddrInet6{Addr: h.cfg.Bind.As16()}
	if h.cfg.Bind.Is4() {
		family, own = unix.AF_INET, &unix.SockaddrInet4{Addr: h.cfg.Bind.As4()}
	}
	fd, err := unix.Socket(family, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return netip.AddrPort{}, fmt.Errorf("peer: socket: %w", err)
	}
	h.fds = append(h.fds, fd)
	if err := unix.Bind(fd, own); err != nil {
		return netip.AddrPort{}, fmt.Errorf("peer: bind: %w", err)
	}
	in, err := unix.Getsockname(fd)
	if err != nil {
		return netip.AddrPort{}, fmt.Errorf("peer: getsockname: %w", err)
	}
	var port int
	switch in := in.(type) {
	case *unix.SockaddrInet4:
		port = in.Port
	case *unix.SockaddrInet6:
		port = in.Port
	}
	if listen {
		if err := unix.Listen(fd, 0); err != nil {
			return netip.AddrPort{}, fmt.Errorf("peer: listen: %w", err)
		}
		// The queue of a backlog of 0 holds one connection; with it full the
		// kernel answers no further SYN.
		for range 4 {
			c, err := unix.Socket(family, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
			if err != nil {
				return netip.AddrPort{}, fmt.Errorf("peer: socket: %w", err)
			}
			h.fds = append(h.fds, c)
			if err := unix.Connect(c, in); err != nil && !errors.Is(err, unix.EINPROGRESS) {
				return netip.AddrPort{}, fmt.Errorf("peer: connect: %w", err)
			}
		}
	}
	return netip.AddrPortFrom(h.cfg.Gateway, uint16(port)), nil
}

// Refused implements conformance.Peer: the port is bound, so nobody else can
// listen there, and does not listen.
func (h *Host) Refused(context.Context) (netip.AddrPort, error) {
	return h.once(&h.refused, false)
}

// Datagrams implements conformance.Peer.
func (h *Host) Datagrams(context.Context) (conformance.Session, error) {
	s, err := h.newSession()
	if err != nil {
		return nil, err
	}
	var c *net.UDPConn
	if err := h.cfg.Do(func() (err error) {
		c, err = net.ListenUDP("udp", &net.UDPAddr{IP: h.cfg.Bind.AsSlice()})
		return err
	}); err != nil {
		_ = s.Close()
		return nil, fmt.Errorf("peer: datagrams: %w", err)
	}
	s.l = c
	s.addr = netip.AddrPortFrom(h.cfg.Gateway, uint16(c.LocalAddr().(*net.UDPAddr).Port))
	h.wg.Go(func() {
		b := make([]byte, 1<<16)
		for {
			n, from, err := c.ReadFromUDPAddrPort(b)
			if err != nil {
				return
			}
			_, _ = c.WriteToUDPAddrPort(b[:n], from) // who sent it has gone
		}
	})
	return s, nil
}

// Unwilling implements conformance.Peer: the port's socket has a peer, and
// nobody else is heard.
func (h *Host) Unwilling(context.Context) (netip.AddrPort, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.closed {
		return netip.AddrPort{}, net.ErrClosed
	}
	if h.socket == nil {
		here := h.cfg.Bind.AsSlice()
		var c *net.UDPConn
		if err := h.cfg.Do(func() (err error) {
			c, err = net.DialUDP("udp", &net.UDPAddr{IP: here}, &net.UDPAddr{IP: here, Port: 1})
			return err
		}); err != nil {
			return netip.AddrPort{}, fmt.Errorf("peer: unwilling: %w", err)
		}
		h.socket = c
		h.unwill = netip.AddrPortFrom(h.cfg.Gateway, uint16(c.LocalAddr().(*net.UDPAddr).Port))
	}
	return h.unwill, nil
}

// Hang implements conformance.Peer.
func (h *Host) Hang(context.Context) (netip.AddrPort, error) {
	return h.once(&h.hang, true)
}

// Impair implements conformance.Peer.
func (h *Host) Impair(_ context.Context, rules string) (conformance.Harm, error) {
	if h.cfg.Impair == nil && rules == "none" {
		return conformance.Harm{}, nil
	}
	if h.cfg.Impair == nil {
		return conformance.Harm{}, errors.New("peer: impair: this network has no rules")
	}
	harm, err := h.cfg.Impair(rules)
	if err != nil {
		return harm, fmt.Errorf("peer: impair: %w", err)
	}
	return harm, nil
}

func (h *Host) once(a *netip.AddrPort, listen bool) (netip.AddrPort, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.closed {
		return netip.AddrPort{}, net.ErrClosed
	}
	if !a.IsValid() {
		var v netip.AddrPort
		if err := h.cfg.Do(func() (err error) {
			v, err = h.bound(listen)
			return err
		}); err != nil {
			return netip.AddrPort{}, err
		}
		*a = v
	}
	return *a, nil
}

// Unreachable implements conformance.Peer.
func (h *Host) Unreachable() netip.AddrPort { return netip.AddrPortFrom(h.cfg.Nobody, 9) }

// IPv6 implements conformance.Peer.
func (h *Host) IPv6() conformance.Peer {
	if h.cfg.IPv6 == nil {
		return nil
	}
	return h.cfg.IPv6
}

// Close ends all sessions and waits for their goroutines.
func (h *Host) Close() error {
	h.mu.Lock()
	if h.closed {
		h.mu.Unlock()
		return nil
	}
	h.closed = true
	var all []*session
	for s := range h.sessions {
		all = append(all, s)
	}
	fds, socket := h.fds, h.socket
	h.fds, h.socket = nil, nil
	h.mu.Unlock()
	h.cancel()
	if socket != nil {
		_ = socket.Close()
	}
	for _, s := range all {
		s.Close()
	}
	for _, fd := range fds {
		unix.Close(fd)
	}
	h.wg.Wait()
	if h.cfg.IPv6 != nil {
		return h.cfg.IPv6.Close()
	}
	return nil
}

// Addr implements conformance.Session.
func (s *session) Addr() netip.AddrPort { return s.addr }

// Signal implements conformance.Session.
func (s *session) Signal(context.Context) error {
	select {
	case s.signal <- struct{}{}:
		return nil
	default:
		return errors.New("peer: too many signals")
	}
}

// Result implements conformance.Session.
func (s *session) Result(ctx context.Context) (conformance.Result, error) {
	select {
	case r := <-s.results:
		return r, nil
	case <-ctx.Done():
		return conformance.Result{}, fmt.Errorf("peer: the connection did not end: %w", ctx.Err())
	case <-s.ctx.Done():
		return conformance.Result{}, net.ErrClosed
	}
}

// Close implements conformance.Session.
func (s *session) Close() error {
	s.cancel()
	if s.l != nil {
		s.l.Close()
	}
	s.h.mu.Lock()
	delete(s.h.sessions, s)
	s.h.mu.Unlock()
	return nil
}
