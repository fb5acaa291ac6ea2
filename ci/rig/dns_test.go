// SPDX-License-Identifier: Apache-2.0

package rig_test

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"syscall"
	"testing"
	"time"

	"toebox/ci/rig/rigtest"
	"toebox/guestdriver"
	"toebox/vdev/device"
	"toebox/vdev/port"
)

// adapter starts driver and device behind a gateway.
func adapter(t *testing.T, cfg port.NATConfig, opts guestdriver.Options) (*device.Device, *guestdriver.Adapter) {
	t.Helper()
	d, bus := rigtest.Device(t, device.Config{Net: device.Net{Mode: device.ModeNAT, NAT: cfg}, Seed: 1})
	return d, rigtest.Driver(t, bus, opts)
}

// behind is adapter for tests that need the driver alone.
func behind(t *testing.T, cfg port.NATConfig) *guestdriver.Adapter {
	t.Helper()
	_, a := adapter(t, cfg, guestdriver.Options{Memory: 4 << 20})
	return a
}

// fakeResolver answers each message of DNS over TCP (RFC 7766) with itself, as
// an answer, and closes after the last.
func fakeResolver(t *testing.T) netip.AddrPort {
	t.Helper()
	return netip.MustParseAddrPort("127.0.0.1:" + server(t, serveDNS))
}

func serveDNS(c *net.TCPConn) {
	for {
		var n [2]byte
		if _, err := io.ReadFull(c, n[:]); err != nil {
			return
		}
		m := make([]byte, 2+int(binary.BigEndian.Uint16(n[:])))
		copy(m, n[:])
		if _, err := io.ReadFull(c, m[2:]); err != nil {
			return
		}
		m[4] |= 0x80 // QR
		if _, err := c.Write(m); err != nil {
			return
		}
	}
}

// TestDNSOverTCP asks the gateway's resolver by DNS over TCP, through driver,
// adapter and gateway: several queries on a connection, whole, in pieces, and
// with the sending direction ended behind the last.
func TestDNSOverTCP(t *testing.T) {
	a := behind(t, port.NATConfig{Resolvers: []netip.AddrPort{fakeResolver(t)}})
	query := []byte{
		0, 29, // length
		0x12, 0x34, 0x01, 0x00, 0, 1, 0, 0, 0, 0, 0, 0, // header
		7, 'e', 'x', 'a', 'm', 'p', 'l', 'e', 3, 'c', 'o', 'm', 0, 0, 1, 0, 1,
	}
	want := append([]byte(nil), query...)
	want[4] |= 0x80
	for _, half := range []bool{false, true} {
		t.Run(fmt.Sprintf("half-close %t", half), func(t *testing.T) {
			c, err := a.DialContext(t.Context(), "tcp", "10.0.2.3:53")
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			c.SetDeadline(time.Now().Add(60 * time.Second))
			for cut := range 4 {
				for _, p := range [][]byte{query[:cut], query[cut:]} {
					if _, err := c.Write(p); err != nil {
						t.Fatal(err)
					}
				}
				if half && cut == 3 {
					if err := c.(interface{ CloseWrite() error }).CloseWrite(); err != nil {
						t.Fatal(err)
					}
				}
				got := make([]byte, len(want))
				if _, err := io.ReadFull(c, got); err != nil || string(got) != string(want) {
					t.Fatalf("query %d: % x, %v", cut, got, err)
				}
			}
			if !half {
				return
			}
			if n, err := c.Read(make([]byte, 1)); err != io.EOF {
				t.Errorf("after the end: %d bytes, %v", n, err)
			}
		})
	}
}

// TestDNSOverTCPRefused: a gateway that knows no resolver, or whose resolver
// takes no connections, refuses them.
func TestDNSOverTCPRefused(t *testing.T) {
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	nobody := netip.MustParseAddrPort(l.Addr().String())
	l.Close()
	for name, list := range map[string][]netip.AddrPort{"none": {}, "closed": {nobody}} {
		t.Run(name, func(t *testing.T) {
			a := behind(t, port.NATConfig{Resolvers: list})
			c, err := a.DialContext(t.Context(), "tcp", "10.0.2.3:53")
			if !errors.Is(err, syscall.ECONNREFUSED) {
				t.Errorf("dial: %v, %v", c, err)
			}
		})
	}
}
