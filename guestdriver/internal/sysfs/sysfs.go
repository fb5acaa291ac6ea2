// SPDX-License-Identifier: Apache-2.0

package sysfs

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

// Function is an adapter that List found.
type Function struct {
	BDF    string // domain:bus:device.function
	Driver string // that it is bound to, or ""
	Group  string // IOMMU group, or ""
}

// Dir is where a sysfs is mounted.
type Dir string

// Mounted is the machine's own.
const Mounted Dir = "/sys"

// Function returns the directory of a PCI function.
func (s Dir) Function(bdf string) string {
	return filepath.Join(string(s), "bus/pci/devices", bdf)
}

// List returns the adapters in the order of their addresses.
func (s Dir) List() ([]Function, error) {
	entries, err := os.ReadDir(filepath.Join(string(s), "bus/pci/devices"))
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil // no PCI at all
	}
	if err != nil {
		return nil, fmt.Errorf("list functions: %w", err)
	}
	var all []Function
	for _, e := range entries {
		dir := s.Function(e.Name())
		if Attribute(dir, "vendor") == vendor && Attribute(dir, "device") == device {
			all = append(all, Function{
				BDF: e.Name(), Driver: Link(dir, "driver"), Group: Link(dir, "iommu_group"),
			})
		}
	}
	return all, nil
}

// Attribute reads a file of a directory, "" if it is not there.
func Attribute(dir, name string) string {
	b, err := os.ReadFile(filepath.Join(dir, name))
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(b))
}

// Link returns the last element of what a link points to, or "".
func Link(dir, name string) string {
	target, err := os.Readlink(filepath.Join(dir, name))
	if err != nil {
		return ""
	}
	return filepath.Base(target)
}

// Check keeps a string that is not a PCI address out of paths.
func Check(bdf string) error {
	var d, b, s, f uint
	if n, err := fmt.Sscanf(bdf, "%04x:%02x:%02x.%01x", &d, &b, &s, &f); n != 4 || err != nil ||
		fmt.Sprintf("%04x:%02x:%02x.%x", d, b, s, f) != bdf {
		return fmt.Errorf("%q is not a PCI address such as 0000:00:05.0", bdf)
	}
	return nil
}

// Bind binds a function to a driver, taking it away from another if need be.
func (s Dir) Bind(bdf, driver string) error {
	if err := Check(bdf); err != nil {
		return err
	}
	dir := s.Function(bdf)
	if _, err := os.Stat(dir); err != nil {
		return fmt.Errorf("bind %s: %w", bdf, err)
	}
	old := Link(dir, "driver")
	if old == driver {
		return nil
	}
	if _, err := os.Stat(filepath.Join(string(s), "bus/pci/drivers", driver)); err != nil {
		return fmt.Errorf("bind %s: the kernel has no %s driver (modprobe %s): %w", bdf, driver, driver, err)
	}
	steps := []struct{ file, value string }{{filepath.Join(dir, "driver_override"), driver}}
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
			return fmt.Errorf("bind %s: %w", bdf, err)
		}
	}
	return nil
}
