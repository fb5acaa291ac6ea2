// SPDX-License-Identifier: Apache-2.0

package vfio

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// IDs of the adapter (SPEC.md §2) as sysfs prints them.
const (
	vendor = "0x1234"
	device = "0x7422"
)

// driverName is the driver that Bind binds to.
const driverName = "vfio-pci"

// Function is an adapter that List found.
type Function struct {
	BDF    string // domain:bus:device.function
	Driver string // that it is bound to, or ""
	Group  string // IOMMU group, or ""
}

// sysfs is a mounted sysfs, or a fake one in tests.
type sysfs string

const realSysfs sysfs = "/sys"

// List returns the adapters of this machine in the order of their addresses.
func List() ([]Function, error) { return realSysfs.list() }

// Bind binds a function to vfio-pci, taking it away from another driver if
// need be.
func Bind(bdf string) error { return realSysfs.bind(bdf) }

func (s sysfs) function(bdf string) string {
	return filepath.Join(string(s), "bus/pci/devices", bdf)
}

func (s sysfs) list() ([]Function, error) {
	entries, err := os.ReadDir(filepath.Join(string(s), "bus/pci/devices"))
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil // no PCI at all
	}
	if err != nil {
		return nil, fmt.Errorf("vfio: list functions: %w", err)
	}
	var all []Function
	for _, e := range entries {
		dir := s.function(e.Name())
		if attribute(dir, "vendor") == vendor && attribute(dir, "device") == device {
			all = append(all, Function{
				BDF: e.Name(), Driver: linkBase(dir, "driver"), Group: linkBase(dir, "iommu_group"),
			})
		}
	}
	return all, nil
}

func attribute(dir, name string) string {
	b, err := os.ReadFile(filepath.Join(dir, name))
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(b))
}

func linkBase(dir, name string) string {
	target, err := os.Readlink(filepath.Join(dir, name))
	if err != nil {
		return ""
	}
	return filepath.Base(target)
}

// checkBDF keeps a string that is not a PCI address out of paths.
func checkBDF(bdf string) error {
	var d, b, s, f uint
	if n, err := fmt.Sscanf(bdf, "%04x:%02x:%02x.%01x", &d, &b, &s, &f); n != 4 || err != nil ||
		fmt.Sprintf("%04x:%02x:%02x.%x", d, b, s, f) != bdf {
		return fmt.Errorf("vfio: %q is not a PCI address such as 0000:00:05.0", bdf)
	}
	return nil
}

func (s sysfs) bind(bdf string) error {
	if err := checkBDF(bdf); err != nil {
		return err
	}
	dir := s.function(bdf)
	if _, err := os.Stat(dir); err != nil {
		return fmt.Errorf("vfio: bind %s: %w", bdf, err)
	}
	old := linkBase(dir, "driver")
	if old == driverName {
		return nil
	}
	if _, err := os.Stat(filepath.Join(string(s), "bus/pci/drivers", driverName)); err != nil {
		return fmt.Errorf("vfio: bind %s: the kernel has no %s driver (modprobe %s): %w", bdf, driverName, driverName, err)
	}
	steps := []struct{ file, value string }{{filepath.Join(dir, "driver_override"), driverName}}
	if old != "" {
		steps = append(steps, struct{ file, value string }{filepath.Join(dir, "driver/unbind"), bdf})
	}
	steps = append(steps, struct{ file, value string }{filepath.Join(string(s), "bus/pci/drivers_probe"), bdf})
	for _, st := range steps {
		// Without O_CREATE and O_TRUNC: these are files of the kernel.
		f, err := os.OpenFile(st.file, os.O_WRONLY, 0)
		if err == nil {
			_, err = f.WriteString(st.value)
			err = errors.Join(err, f.Close())
		}
		if err != nil {
			return fmt.Errorf("vfio: bind %s: %w", bdf, err)
		}
	}
	return nil
}

// group returns the number of a function's IOMMU group.
func (s sysfs) group(bdf string) (string, error) {
	if err := checkBDF(bdf); err != nil {
		return "", err
	}
	dir := s.function(bdf)
	if _, err := os.Stat(dir); err != nil {
		return "", fmt.Errorf("vfio: open %s: %w", bdf, err)
	}
	g := linkBase(dir, "iommu_group")
	if g == "" {
		return "", fmt.Errorf("vfio: open %s: it is in no IOMMU group (is there an IOMMU, and is it on?)", bdf)
	}
	if d := linkBase(dir, "driver"); d != driverName {
		return "", fmt.Errorf("vfio: open %s: it is bound to %q, not to %s", bdf, d, driverName)
	}
	return g, nil
}
