// SPDX-License-Identifier: Apache-2.0

package netns_test

import (
	"net"
	"net/netip"
	"os/exec"
	"slices"
	"testing"

	"toebox/ci/netns"
	"toebox/ci/netns/netnstest"
	"toebox/vdev/port"
)

// TestPlug: a second tap device of a network has its address, and is there for others
// to open.
func TestPlug(t *testing.T) {
	if !netnstest.Here(t) {
		return
	}
	n := network(t)
	err := n.Do(func() error {
		if err := netns.Plug("other0", netip.MustParsePrefix("10.0.3.2/24")); err != nil {
			return err
		}
		i, err := net.InterfaceByName("other0")
		if err != nil {
			return err
		}
		list, err := i.Addrs()
		if err != nil {
			return err
		}
		has := func(a net.Addr) bool { return a.String() == "10.0.3.2/24" }
		if !slices.ContainsFunc(list, has) || i.Flags&net.FlagUp == 0 {
			t.Errorf("%v has %v", i, list)
		}
		f, err := port.OpenTap("other0")
		if err != nil {
			return err
		}
		return f.Close()
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := netns.Plug("other1", netip.MustParsePrefix("fd00::2/64")); err == nil {
		t.Error("an address that is not IPv4")
	}
}

// TestIsolate: a program in a namespace of its own has the loopback only.
func TestIsolate(t *testing.T) {
	if !netnstest.Here(t) {
		return
	}
	cmd := exec.CommandContext(t.Context(), "cat", "/proc/net/dev")
	netns.Isolate(cmd)
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	names := 0
	for _, b := range out {
		if b == ':' {
			names++
		}
	}
	if names != 1 {
		t.Errorf("not the loopback alone:\n%s", out)
	}
}
