// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"strings"

	"toebox/vdev/abi"
)

// attr gets one attribute, or all of the adapter or of a connection, or sets
// one, and returns printable lines.
func attr(ctx context.Context, in inspector, q request) ([]string, error) {
	if q.Attr == "" && q.Value != "" {
		return nil, errors.New("a value needs the name of an attribute")
	}
	var lines []string
	for _, a := range abi.Attributes() {
		all := q.Attr == "" && a.Connection == (q.Conn != 0) && a.ID != abi.AttrCounters
		if !all && !strings.EqualFold(q.Attr, a.Name) {
			continue
		}
		if q.Value != "" {
			v, err := parseValue(a, q.Value)
			if err != nil {
				return nil, err
			}
			return nil, in.SetAttribute(ctx, q.Conn, a.ID, v)
		}
		v, err := in.Attribute(ctx, q.Conn, a.ID)
		switch {
		case err != nil && all:
			var s abi.Status
			if !errors.As(err, &s) {
				return nil, err
			}
			lines = append(lines, fmt.Sprintf("%-20s (%s)", a.Name, s.String()))
		case err != nil:
			return nil, err
		default:
			lines = append(lines, fmt.Sprintf("%-20s %s", a.Name, formatValue(a, v)))
		}
	}
	if len(lines) == 0 {
		return nil, fmt.Errorf("no attribute is called %q", q.Attr)
	}
	return lines, nil
}

func formatValue(a abi.AttributeInfo, v []byte) string {
	switch {
	case a.Kind == abi.KindScalar && len(v) == 8:
		return strconv.FormatUint(binary.LittleEndian.Uint64(v), 10)
	case a.ID == abi.AttrMAC:
		return net.HardwareAddr(v).String()
	case a.Kind == abi.KindString:
		return strconv.Quote(string(v))
	case a.Kind == abi.KindAddress, a.ID == abi.AttrResolvers, a.ID == abi.AttrRoutes:
		if s, ok := formatAddresses(v); ok {
			return s
		}
	}
	return hex.EncodeToString(v)
}

func formatAddresses(v []byte) (string, bool) {
	var s []string
	for ; len(v) >= abi.AddressSize; v = v[abi.AddressSize:] {
		ad, ok := abi.ParseAddress(v[:abi.AddressSize])
		if !ok {
			return "", false
		}
		switch {
		case !ad.Addr.IsValid():
			s = append(s, "-")
		case ad.Port != 0:
			s = append(s, netip.AddrPortFrom(ad.Addr, ad.Port).String())
		case ad.Prefix != 0:
			s = append(s, netip.PrefixFrom(ad.Addr, int(ad.Prefix)).String())
		default:
			s = append(s, ad.Addr.String())
		}
	}
	return strings.Join(s, " "), len(v) == 0
}

// parseValue turns what a person types into the bytes of an attribute.
func parseValue(a abi.AttributeInfo, s string) ([]byte, error) {
	switch a.Kind {
	case abi.KindScalar:
		n, err := strconv.ParseUint(s, 0, 64)
		if err != nil {
			return nil, fmt.Errorf("%s takes a number: %w", a.Name, err)
		}
		return binary.LittleEndian.AppendUint64(nil, n), nil
	case abi.KindString:
		return []byte(s), nil
	case abi.KindAddress:
		p, err := netip.ParsePrefix(s)
		if err != nil {
			return nil, fmt.Errorf("%s takes an address with a prefix length: %w", a.Name, err)
		}
		return abi.AppendAddress(nil, abi.Address{Addr: p.Addr(), Prefix: uint8(p.Bits())}), nil
	}
	b, err := hex.DecodeString(s)
	if err != nil {
		return nil, fmt.Errorf("%s takes hexadecimal digits: %w", a.Name, err)
	}
	return b, nil
}
