// SPDX-License-Identifier: Apache-2.0

package guestdriver_test

import (
	"bytes"
	"context"
	"errors"
	"net"
	"strings"
	"testing"

	"toebox/guestdriver"
	"toebox/vdev/abi"
)

// TestPacketPolicies: the policies that datagram endpoints have go to the adapter by
// their attributes, and no others; they are there again after a reset, with those that
// the endpoint began with.
func TestPacketPolicies(t *testing.T) {
	ctx := context.Background()
	a, f := open(t, guestdriver.Options{CarryOver: true})
	if err := a.SetPlacement(ctx, placement); err != nil {
		t.Fatal(err)
	}
	conn, err := a.Dial("udp", "10.0.2.2:7")
	if err != nil {
		t.Fatal(err)
	}
	p := conn.(*guestdriver.PacketConn)
	defer p.Close()
	send := sendPolicy
	send.Complete = 0
	seen := controls(f)
	for _, k := range []struct {
		name string
		set  func() error
		want []byte
	}{
		{"send", func() error { return p.SetSendPolicy(send) }, []byte{
			0x20, 0x82, 0, 0, 8, 0, 0, 0, 17, 0, 0, 0, 0, 0, 0, 0, // set DELAY_CRITERIA, 8 bytes: cwnd, class
			0x21, 0x82, 0, 0, 8, 0, 0, 0, 5, 0, 0, 0, 0, 0, 0, 0, // DELAY_COUNT
			0x22, 0x82, 0, 0, 8, 0, 0, 0, 0x70, 0x11, 1, 0, 0, 0, 0, 0, // DELAY_BYTES
			0x23, 0x82, 0, 0, 8, 0, 0, 0, 0xc0, 0xc6, 0x2d, 0, 0, 0, 0, 0, // DELAY_AGE, ns
			0x24, 0x82, 0, 0, 8, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, // DELAY_DYNAMIC
			0x25, 0x82, 0, 0, 8, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, // ASAP_MODE
			0x29, 0x82, 0, 0, 8, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, // KEEP_SENDS
		}},
		{"schedule", func() error { return p.SetSchedule(schedule) }, []byte{
			0x13, 0x82, 0, 0, 8, 0, 0, 0, 6, 0, 0, 0, 0, 0, 0, 0, // PRIORITY
			0x14, 0x82, 0, 0, 8, 0, 0, 0, 200, 0, 0, 0, 0, 0, 0, 0, // QOS_CLASS
			0x26, 0x82, 0, 0, 8, 0, 0, 0, 0x40, 0x42, 0x0f, 0, 0, 0, 0, 0, // STARVATION, ns
		}},
		{"expedited", func() error { return p.SetExpedited(true) }, []byte{
			0x44, 0x82, 0, 0, 8, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, // EXPEDITED
		}},
	} {
		if err := k.set(); err != nil {
			t.Errorf("%s: %v", k.name, err)
			continue
		}
		if got := <-seen; !bytes.Equal(got, k.want) {
			t.Errorf("%s: set by\n% x, want\n% x", k.name, got, k.want)
		}
	}
	late := send
	late.Complete = guestdriver.PointRead
	if err := p.SetSendPolicy(late); !errors.Is(err, abi.StatusNotSupported) || !strings.Contains(err.Error(), "COMPLETION_POINT") || len(seen) != 0 {
		t.Errorf("a completion point: %v", err)
	}
	bad := schedule
	bad.Priority = 8
	if err := p.SetSchedule(bad); !errors.Is(err, abi.StatusBadValue) || !strings.Contains(err.Error(), "PRIORITY") || strings.Contains(err.Error(), "STARVATION") {
		t.Errorf("priority 8: %v", err)
	}
	f.Intercept(nil)
	look := func(when string) {
		t.Helper()
		s, err1 := p.SendPolicy()
		turn, err2 := p.Schedule()
		on, err3 := p.Expedited()
		at, err4 := p.Placement()
		if err := errors.Join(err1, err2, err3, err4); err != nil || s != send || turn != schedule || !on || at != placement {
			t.Errorf("%s: %+v, %+v, %v, %+v, %v", when, s, turn, on, at, err)
		}
	}
	look("set")
	if err := a.SetPlacement(ctx, guestdriver.Placement{Stores: guestdriver.StoresByClass, Budget: 1}); err != nil {
		t.Fatal(err)
	}
	id := p.ID()
	f.Restart()
	look("after a reset")
	if p.ID() == id {
		t.Error("it is the endpoint of before")
	}
	if err := p.SetPlacement(guestdriver.Placement{Stores: guestdriver.StoresNonTemporal, Budget: 9}); err != nil {
		t.Error(err)
	}
	if at, err := p.Placement(); err != nil || at != (guestdriver.Placement{Stores: guestdriver.StoresNonTemporal, Budget: 9}) {
		t.Errorf("set after a reset: %+v, %v", at, err)
	}
	p.Close()
	if err := p.SetSchedule(schedule); !errors.Is(err, net.ErrClosed) {
		t.Errorf("closed: %v", err)
	}
	if _, err := p.Expedited(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("closed: %v", err)
	}
}
