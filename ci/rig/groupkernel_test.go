// SPDX-License-Identifier: Apache-2.0

package rig_test

import (
	"net"
	"testing"

	"toebox/ci/netns"
	"toebox/ci/netns/netnstest"
	"toebox/ci/rig/rigtest"
	"toebox/vdev/port"
)

// TestRIG09_Kernel: the same as TestRIG09_Failover, with the Linux kernel's TCP as the
// peer, on a tap device at the adapters' switch: it learns where its peer's address is
// now, and neither gets nor sends a reset.
func TestRIG09_Kernel(t *testing.T) {
	if !netnstest.Here(t) {
		return
	}
	check := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	const total, parts = 3 << 20, 3
	n, err := netns.New()
	check(err)
	t.Cleanup(func() { check(n.Close()) })
	file, err := n.Tap()
	check(err)
	tap, err := port.NewTap(file, linkMTU)
	check(err)
	t.Cleanup(func() { check(tap.Close()) })
	sw := port.NewSwitch(linkMTU)
	wire := sw.Open()
	t.Cleanup(func() { check(wire.Close()) })
	t.Cleanup(port.Join(tap, wire))
	addresses := []string{n.Gateway().String()}
	if six := n.Gateway6(); six.IsValid() {
		addresses = append(addresses, six.String())
	}
	l := newGroup(t, sw, "fd00:2::")
	before := netnstest.Resets(t, n)
	var conns []net.Conn
	for _, address := range addresses {
		var in net.Listener
		check(n.Do(func() (err error) {
			in, err = net.Listen("tcp", net.JoinHostPort(address, "0"))
			return err
		}))
		t.Cleanup(func() { check(in.Close()) })
		go rigtest.Echo(in)
		for range 2 {
			c, err := l.at[0].a.Dial("tcp", in.Addr().String())
			conns = append(conns, within(t, c, err))
		}
	}
	rigtest.Transfers(t, conns, total, parts, func(part int) {
		from, to := l.at[part%2], l.at[(part+1)%2]
		check(l.g.Rejoin(to.a))
		check(l.g.Failover(t.Context(), from.a))
	})
	for i, s := range l.at {
		if s := s.a.Stats(); s.CarriedOver != uint64(len(conns)) || s.CarryFailed != 0 || s.TakenOver != 1 {
			t.Errorf("adapter %d: %d carried over, %d failed, %d taken over", i, s.CarriedOver, s.CarryFailed, s.TakenOver)
		}
	}
	if after := netnstest.Resets(t, n); after != before {
		t.Errorf("the kernel: %s, %s before", after, before)
	}
}
