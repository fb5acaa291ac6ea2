// SPDX-License-Identifier: Apache-2.0

package rig_test

import (
	"fmt"
	"net"
	"testing"

	"golang.org/x/net/nettest"

	"toebox/ci/rig"
	"toebox/guestdriver"
)

// TestNetConn holds the driver's connections, over the whole adapter and out
// through the host and back in, to what package net promises.
func TestNetConn(t *testing.T) {
	r, err := rig.Inproc(rig.Config{Seed: 1})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := r.Close(); err != nil {
			t.Error(err)
		}
	})
	env := r.Env()
	bus, err := env.Open(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	a, err := guestdriver.Open(t.Context(), bus, guestdriver.Options{Memory: 16 << 20})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := a.Close(); err != nil {
			t.Error(err)
		}
	})
	ports, err := env.Peer.Reachable(t.Context(), 1)
	if err != nil {
		t.Fatal(err)
	}
	way, err := env.Peer.Hairpin(t.Context(), ports[0])
	if err != nil {
		t.Fatal(err)
	}
	nettest.TestConn(t, func() (c1, c2 net.Conn, stop func(), err error) {
		l, err := a.Listen("tcp", fmt.Sprintf(":%d", ports[0]))
		if err != nil {
			return nil, nil, nil, err
		}
		defer l.Close()
		if c1, err = a.DialContext(t.Context(), "tcp", way.String()); err != nil {
			return nil, nil, nil, err
		}
		if c2, err = l.Accept(); err != nil {
			c1.Close()
			return nil, nil, nil, err
		}
		return c1, c2, func() { c1.Close(); c2.Close() }, nil
	})
}
