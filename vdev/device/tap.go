// SPDX-License-Identifier: Apache-2.0

package device

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strconv"
	"strings"

	"toebox/firmware/engine"
	"toebox/vdev/port"
)

// Bounds of a tap device's MTU, bytes.
const (
	defaultMTU = 1500
	leastMTU   = 1280 // of IPv6 (RFC 8200 §5)
	mostMTU    = 65535
)

// parseTap reads the options of the network tap and opens the device:
//
//	if=NAME       the tap device
//	fd=N          or an inherited file of one, with IFF_NO_PI and IFF_VNET_HDR
//	ip=ADDR/LEN   an address of the adapter, with its network; again for more
//	gw=ADDR       the way to all else of that family
//	dns=ADDR      a resolver
//	mtu=N         1500 if not given
func parseTap(s string) (*port.Tap, port.Lease, error) {
	var name, fd string
	var gateways []netip.Addr
	l := port.Lease{MTU: defaultMTU}
	for option := range strings.SplitSeq(s, ",") {
		key, value, _ := strings.Cut(option, "=")
		var err error
		var a netip.Addr
		switch key {
		case "if":
			name = value
		case "fd":
			fd = value
		case "ip":
			p, e := netip.ParsePrefix(value)
			if e != nil {
				err = fmt.Errorf("%q is no address with a prefix length", value)
				break
			}
			l.Prefixes = append(l.Prefixes, p)
			l.Routes = append(l.Routes, engine.Route{Destination: p.Masked()})
		case "gw":
			if a, err = netip.ParseAddr(value); err == nil {
				gateways = append(gateways, a)
			}
		case "dns":
			if a, err = netip.ParseAddr(value); err == nil {
				l.Resolvers = append(l.Resolvers, a)
			}
		case "mtu":
			if l.MTU, err = strconv.Atoi(value); err == nil && (l.MTU < leastMTU || l.MTU > mostMTU) {
				err = fmt.Errorf("%d is not between %d and %d", l.MTU, leastMTU, mostMTU)
			}
		case "":
		default:
			err = fmt.Errorf("%q is no option", option)
		}
		if err != nil {
			return nil, l, fmt.Errorf("%s: %w", key, err)
		}
	}
	switch {
	case name == "" && fd == "":
		return nil, l, errors.New("tap needs if= or fd=")
	case name != "" && fd != "":
		return nil, l, errors.New("if= or fd=, not both")
	case len(l.Prefixes) == 0:
		return nil, l, errors.New("tap needs ip=")
	}
	for _, g := range gateways {
		near := false
		for _, p := range l.Prefixes {
			near = near || p.Contains(g)
		}
		if !near {
			return nil, l, fmt.Errorf("gw: %v is in none of its networks", g)
		}
		all := netip.PrefixFrom(netip.IPv4Unspecified(), 0)
		if g.Is6() {
			all = netip.PrefixFrom(netip.IPv6Unspecified(), 0)
		}
		l.Routes = append(l.Routes, engine.Route{Destination: all, Gateway: g})
	}
	var f *os.File
	var err error
	if fd != "" {
		f, err = InheritedFile(fd)
	} else {
		f, err = port.OpenTap(name)
	}
	if err != nil {
		return nil, l, err
	}
	t, err := port.NewTap(f, l.MTU)
	return t, l, err
}
