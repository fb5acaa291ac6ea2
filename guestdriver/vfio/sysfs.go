// SPDX-License-Identifier: Apache-2.0

package vfio

import (
	"fmt"
	"os"

	"toebox/guestdriver/internal/sysfs"
)

// driverName is the driver that Bind binds to.
const driverName = "vfio-pci"

// Function is an adapter that List found.
type Function = sysfs.Function

// List returns the adapters of this machine in the order of their addresses.
func List() ([]Function, error) {
	all, err := sysfs.Mounted.List()
	if err != nil {
		return nil, fmt.Errorf("vfio: %w", err)
	}
	return all, nil
}

// Bind binds a function to vfio-pci, taking it away from another driver if
// need be.
func Bind(bdf string) error {
	if err := sysfs.Mounted.Bind(bdf, driverName); err != nil {
		return fmt.Errorf("vfio: %w", err)
	}
	return nil
}

// Group returns the number of the IOMMU group of a function that is bound to
// vfio-pci: /dev/vfio/ has it as a device.
func Group(bdf string) (string, error) { return group(sysfs.Mounted, bdf) }

// group returns the number of a function's IOMMU group.
func group(s sysfs.Dir, bdf string) (string, error) {
	if err := sysfs.Check(bdf); err != nil {
		return "", fmt.Errorf("vfio: %w", err)
	}
	dir := s.Function(bdf)
	if _, err := os.Stat(dir); err != nil {
		return "", fmt.Errorf("vfio: open %s: %w", bdf, err)
	}
	g := sysfs.Link(dir, "iommu_group")
	if g == "" {
		return "", fmt.Errorf("vfio: open %s: it is in no IOMMU group (is there an IOMMU, and is it on?)", bdf)
	}
	if d := sysfs.Link(dir, "driver"); d != driverName {
		return "", fmt.Errorf("vfio: open %s: it is bound to %q, not to %s", bdf, d, driverName)
	}
	return g, nil
}
