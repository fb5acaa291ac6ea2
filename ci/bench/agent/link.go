// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"toebox/ci/bench/task"

	"toebox/guestdriver"
	"toebox/guestdriver/vfio"
)

// OpenVFIO opens the machine's adapter, for a Config.
func OpenVFIO() (guestdriver.Bus, string, error) {
	all, err := vfio.List()
	if err != nil {
		return nil, "", err
	}
	if len(all) != 1 {
		return nil, "", fmt.Errorf("%d adapters on the bus", len(all))
	}
	bdf := all[0].BDF
	if err := vfio.Bind(bdf); err != nil {
		return nil, bdf, err
	}
	bus, err := vfio.Open(bdf)
	if err != nil {
		return nil, bdf, err
	}
	return bus, bdf, nil
}

// SetLink gives the machine's only network interface that is a virtio device an
// address, and brings it up, for a Config.
func SetLink(address string) (bdf string, err error) {
	prefix, err := netip.ParsePrefix(address)
	if err != nil || !prefix.Addr().Is4() {
		return "", fmt.Errorf("%q is no IPv4 address with prefix length", address)
	}
	name, bdf, err := virtioLink("/sys")
	if err != nil {
		return "", err
	}
	s, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return "", err
	}
	defer unix.Close(s)
	for _, step := range []struct {
		request uint
		address []byte
	}{
		{unix.SIOCSIFADDR, prefix.Addr().AsSlice()},
		{unix.SIOCSIFNETMASK, net.CIDRMask(prefix.Bits(), 32)},
		{unix.SIOCSIFFLAGS, nil},
	} {
		ifr, err := unix.NewIfreq(name)
		if err != nil {
			return "", err
		}
		if step.address == nil {
			ifr.SetUint16(unix.IFF_UP | unix.IFF_RUNNING)
		} else if err := ifr.SetInet4Addr(step.address); err != nil {
			return "", err
		}
		if err := unix.IoctlIfreq(s, step.request, ifr); err != nil {
			return "", fmt.Errorf("interface %s: %w", name, err)
		}
	}
	// Each connection of a measurement leaves its port waiting for a while; at one that
	// does nobody could listen.
	ports := fmt.Appendf(nil, "%d 65535", task.AcceptPort+1)
	return bdf, os.WriteFile("/proc/sys/net/ipv4/ip_local_port_range", ports, 0)
}

// virtioLink finds the interface below a sysfs, and the PCI function that it is.
func virtioLink(sys string) (name, bdf string, err error) {
	found, err := filepath.Glob(filepath.Join(sys, "bus/virtio/drivers/virtio_net/virtio*/net/*"))
	if err != nil {
		return "", "", err
	}
	if len(found) != 1 {
		return "", "", fmt.Errorf("%d virtio interfaces", len(found))
	}
	// virtioN/net/eth0 stands below the function, whichever way one came.
	real, err := filepath.EvalSymlinks(found[0])
	if err != nil {
		return "", "", err
	}
	bdf = filepath.Base(filepath.Dir(filepath.Dir(filepath.Dir(real))))
	if bdf == "." || bdf == "/" {
		return "", "", errors.New("a virtio interface that is no PCI function")
	}
	return filepath.Base(found[0]), bdf, nil
}
