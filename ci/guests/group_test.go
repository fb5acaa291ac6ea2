// SPDX-License-Identifier: Apache-2.0

package guests

import (
	"fmt"
	"net/netip"
	"path/filepath"
	"testing"

	adapter "toebox/ci/rig"
	"toebox/ci/rig/rigtest"
	"toebox/guestdriver"
	"toebox/images/vm"
	"toebox/vdev/device"
	"toebox/vdev/port"
)

// echoes opens an adapter of this process on a link, and has it send back what
// comes to port 7.
func echoes(t *testing.T, p *port.SwitchPort, address string) *device.Device {
	t.Helper()
	d, bus := rigtest.Device(t, device.Config{Port: p, Lease: port.Lease{Prefixes: []netip.Prefix{netip.MustParsePrefix(address)}}, Seed: 9})
	l, err := rigtest.Driver(t, bus, guestdriver.Options{}).Listen("tcp4", ":7")
	if err != nil {
		t.Fatal(err)
	}
	go rigtest.Echo(l)
	return d
}

// TestRIG09_Guest: a guest with two adapters on one link. A connection goes from
// one to the other and back while bytes go both ways; neither the bytes nor the
// peer, which is here, notice.
func TestRIG09_Guest(t *testing.T) {
	if testing.Short() {
		t.Skip("boots a machine, some seconds: run without -short")
	}
	const mtu = 1500
	o, parts, sockets := prepare(t, "none", vm.IOMMUIntel)
	m := &machine{t: t, dir: t.TempDir()}
	mc := o.MachineConfig(parts, m.dir, sockets)
	sw := port.NewSwitch(mtu)
	peer := echoes(t, sw.Open(), "10.0.2.2/24")
	for i, address := range []string{"10.0.2.15/24", "10.0.2.16/24"} {
		d, err := device.New(device.Config{
			Firmware: adapter.Firmware, Port: sw.Open(), Lease: port.Lease{Prefixes: []netip.Prefix{netip.MustParsePrefix(address)}}, Seed: uint64(1 + i),
		})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := d.Close(); err != nil {
				t.Error(err)
			}
		})
		path := filepath.Join(sockets, fmt.Sprint("adapter", i))
		serve(t, path, d.Serve)
		mc.Args = append(mc.Args, "-device", deviceArg(5+i, path))
		m.adapter = d
	}
	m.start(mc)
	m.up()
	out, err := m.exec(probe, "failover", "10.0.2.2:7", fmt.Sprint(3<<20))
	m.check("failover "+out, err)
	t.Log(out)
	if s := peer.Stats().Engine; s.ResetsReceived+s.ResetsSent != 0 {
		t.Errorf("the peer got %d resets and sent %d", s.ResetsReceived, s.ResetsSent)
	}
	m.Stop()
	if log := m.qemuLog(); log != "" {
		t.Errorf("QEMU says: %s", log)
	}
}
