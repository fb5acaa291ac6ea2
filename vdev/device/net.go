// SPDX-License-Identifier: Apache-2.0

package device

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strconv"
	"strings"

	"toebox/vdev/port"
)

// Modes of [Net].
const (
	ModeNone = ""
	ModeNAT  = "nat"
	ModeTap  = "tap"
)

// Net is the network that an adapter is plugged into.
type Net struct {
	Mode     string
	NAT      port.NATConfig
	Forwards []Forward
	Tap      *port.Tap  // of mode tap
	Lease    port.Lease // the adapter's addressing there
}

// Forward makes connections that Listener accepts connections to the adapter,
// or passes datagrams of clients of Socket on to it: one of the two is set.
type Forward struct {
	Listener net.Listener
	Socket   *net.UDPConn
	// Guest is the target; without an address the adapter's own.
	Guest netip.AddrPort
}

func (f *Forward) close() {
	if f.Socket != nil {
		_ = f.Socket.Close()
	} else {
		_ = f.Listener.Close()
	}
}

// ParseNet reads the description of a network and opens the listeners that it
// names:
//
//	none
//	nat[:FORWARD,...]
//	tap:OPTION,...    (see parseTap)
//
// where FORWARD is one of
//
//	fwd=tcp:HOSTIP:PORT-[GUESTIP]:PORT   listen on the host
//	fwd=udp:HOSTIP:PORT-[GUESTIP]:PORT   datagrams to the host's port
//	fwd-fd=N-[GUESTIP]:PORT              an inherited TCP socket that listens
//
// On error nothing stays open.
func ParseNet(s string) (n Net, err error) {
	defer func() {
		if err != nil {
			for _, f := range n.Forwards {
				f.close()
			}
			if n.Tap != nil {
				_ = n.Tap.Close()
			}
			n, err = Net{}, fmt.Errorf("device: network %q: %w", s, err)
		}
	}()
	mode, rest, _ := strings.Cut(s, ":")
	switch mode {
	case "none":
		if s != mode {
			return n, errors.New("none has no options")
		}
		return n, nil
	case "nat":
		n.Mode = ModeNAT
	case "tap":
		n.Mode = ModeTap
		n.Tap, n.Lease, err = parseTap(rest)
		return n, err
	default:
		return n, errors.New("it is neither none, nat nor tap")
	}
	if rest == "" {
		return n, nil
	}
	for option := range strings.SplitSeq(rest, ",") {
		key, value, _ := strings.Cut(option, "=")
		host, guest, ok := strings.Cut(value, "-")
		if !ok || key != "fwd" && key != "fwd-fd" {
			return n, fmt.Errorf("%q is no forward", option)
		}
		f := Forward{}
		if f.Guest, err = parseGuest(guest); err != nil {
			return n, err
		}
		switch {
		case key == "fwd-fd":
			f.Listener, err = inheritTCP(host)
		case strings.HasPrefix(host, "udp:"):
			f.Socket, err = listenUDP(host)
		default:
			f.Listener, err = listenTCP(host)
		}
		if err != nil {
			return n, err
		}
		n.Forwards = append(n.Forwards, f)
	}
	return n, nil
}

// parseGuest reads [GUESTIP]:PORT.
func parseGuest(s string) (netip.AddrPort, error) {
	host, digits, err := net.SplitHostPort(s)
	if err != nil {
		return netip.AddrPort{}, fmt.Errorf("guest address: %w", err)
	}
	number, err := strconv.ParseUint(digits, 10, 16)
	if err != nil || number == 0 {
		return netip.AddrPort{}, fmt.Errorf("guest address %q: the port is not between 1 and 65535", s)
	}
	var a netip.Addr
	if host != "" {
		if a, err = netip.ParseAddr(host); err != nil {
			return netip.AddrPort{}, fmt.Errorf("guest address: %w", err)
		}
	}
	return netip.AddrPortFrom(a, uint16(number)), nil
}

// listenTCP listens on tcp:HOSTIP:PORT.
func listenTCP(s string) (net.Listener, error) {
	address, ok := strings.CutPrefix(s, "tcp:")
	if !ok {
		return nil, fmt.Errorf("%q has no prefix \"tcp:\" or \"udp:\"", s)
	}
	ap, err := netip.ParseAddrPort(address)
	if err != nil {
		return nil, fmt.Errorf("host address: %w", err)
	}
	return net.ListenTCP("tcp", net.TCPAddrFromAddrPort(ap))
}

// listenUDP binds to udp:HOSTIP:PORT.
func listenUDP(s string) (*net.UDPConn, error) {
	ap, err := netip.ParseAddrPort(strings.TrimPrefix(s, "udp:"))
	if err != nil {
		return nil, fmt.Errorf("host address: %w", err)
	}
	return net.ListenUDP("udp", net.UDPAddrFromAddrPort(ap))
}

// inheritTCP takes over a file descriptor that listens.
func inheritTCP(s string) (net.Listener, error) {
	file, err := InheritedFile(s)
	if err != nil {
		return nil, err
	}
	defer file.Close() // FileListener has a duplicate
	l, err := net.FileListener(file)
	if err != nil {
		return nil, fmt.Errorf("file descriptor %s: %w", s, err)
	}
	if _, ok := l.(*net.TCPListener); !ok {
		l.Close()
		return nil, fmt.Errorf("file descriptor %s is no TCP socket", s)
	}
	return l, nil
}

// InheritedFile takes over an inherited file descriptor given by number.
func InheritedFile(s string) (*os.File, error) {
	fd, err := strconv.ParseUint(s, 10, 16)
	if err != nil || fd < 3 {
		return nil, fmt.Errorf("%q is no number of an inherited file descriptor", s)
	}
	file := os.NewFile(uintptr(fd), "fd "+s)
	if _, err := file.Stat(); err != nil {
		file.Close() // now, not when the number means something else
		return nil, fmt.Errorf("file descriptor %s: %w", s, err)
	}
	return file, nil
}
