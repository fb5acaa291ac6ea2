// SPDX-License-Identifier: Apache-2.0

package guest

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// The adapter's PCI ids, SPEC.md.
const (
	adapterVendor = "0x1234"
	adapterDevice = "0x7422"
)

const bindTimeout = 5 * time.Second

// kernelDriver returns the name of the kernel's driver behind one of the tool's.
func kernelDriver(name string) string {
	if name == DriverUIO {
		return "uio_pci_generic"
	}
	return "vfio-pci"
}

// bindAll gives the adapters to the kernel's driver and returns where each is. bus is
// the sysfs directory of the PCI bus.
func bindAll(bus, name string, timeout time.Duration) ([]string, error) {
	addresses, err := findFunctions(bus)
	if err != nil {
		return nil, err
	}
	for n, address := range addresses {
		if addresses[n], err = bind(bus, address, name, timeout); err != nil {
			return nil, err
		}
	}
	return addresses, nil
}

// bind gives one to it.
func bind(bus, address, name string, timeout time.Duration) (string, error) {
	driver := kernelDriver(name)
	dir := filepath.Join(bus, "devices", address)
	if err := os.WriteFile(filepath.Join(dir, "driver_override"), []byte(driver), 0); err != nil {
		return "", fmt.Errorf("guest: bind %s: %w", address, err)
	}
	if bound(dir) != driver {
		if bound(dir) != "" {
			if err := os.WriteFile(filepath.Join(dir, "driver/unbind"), []byte(address), 0); err != nil {
				return "", fmt.Errorf("guest: unbind %s from %s: %w", address, bound(dir), err)
			}
		}
		if err := os.WriteFile(filepath.Join(bus, "drivers_probe"), []byte(address), 0); err != nil {
			return "", fmt.Errorf("guest: bind %s to %s: %w", address, driver, err)
		}
	}
	for deadline := time.Now().Add(timeout); bound(dir) != driver; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			return "", fmt.Errorf("guest: bind %s: %s did not take it (see dmesg)", address, driver)
		}
	}
	if name == DriverUIO {
		return address + " " + driver, nil
	}
	group, err := os.Readlink(filepath.Join(dir, "iommu_group"))
	if err != nil {
		return "", fmt.Errorf("guest: %s is in no IOMMU group: no vIOMMU", address)
	}
	return address + " group " + filepath.Base(group), nil
}

// findFunctions returns the addresses of the adapters on the bus, in their order.
func findFunctions(bus string) (found []string, err error) {
	entries, err := os.ReadDir(filepath.Join(bus, "devices"))
	if err != nil {
		return nil, fmt.Errorf("guest: %w", err)
	}
	read := func(address, name string) string {
		b, err := os.ReadFile(filepath.Join(bus, "devices", address, name))
		if err != nil {
			return ""
		}
		return strings.TrimSpace(string(b))
	}
	for _, e := range entries {
		if read(e.Name(), "vendor") == adapterVendor && read(e.Name(), "device") == adapterDevice {
			found = append(found, e.Name())
		}
	}
	if len(found) == 0 {
		return nil, errors.New("guest: no adapter (PCI function 1234:7422) on the bus")
	}
	return found, nil
}

// bound returns the name of the driver that has the function.
func bound(dir string) string {
	link, err := os.Readlink(filepath.Join(dir, "driver"))
	if err != nil {
		return ""
	}
	return filepath.Base(link)
}

// linkUp brings a network interface of the guest's kernel up.
func linkUp(name string) {
	s, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return
	}
	defer unix.Close(s) //nolint:errcheck // a socket that sent nothing
	r, err := unix.NewIfreq(name)
	if err != nil {
		return
	}
	r.SetUint16(unix.IFF_UP | unix.IFF_RUNNING)
	unix.IoctlIfreq(s, unix.SIOCSIFFLAGS, r) //nolint:errcheck // commands that need it will tell
}
