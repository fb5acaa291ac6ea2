// SPDX-License-Identifier: Apache-2.0

package uio

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"toebox/guestdriver/internal/sysfs"
)

// driverName is the driver that Bind binds to.
const driverName = "uio_pci_generic"

// Function is an adapter that List found.
type Function = sysfs.Function

// List returns the adapters of this machine in the order of their addresses.
func List() ([]Function, error) {
	all, err := sysfs.Mounted.List()
	if err != nil {
		return nil, fmt.Errorf("uio: %w", err)
	}
	return all, nil
}

// Bind binds a function to uio_pci_generic, taking it away from another driver
// if need be.
func Bind(bdf string) error {
	if err := sysfs.Mounted.Bind(bdf, driverName); err != nil {
		return fmt.Errorf("uio: %w", err)
	}
	return nil
}

// node returns the name of the function's device node.
func node(dir string) (string, error) {
	entries, err := os.ReadDir(filepath.Join(dir, "uio"))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return "", err
	}
	for _, e := range entries {
		if n, ok := strings.CutPrefix(e.Name(), "uio"); ok {
			if _, err := strconv.ParseUint(n, 10, 32); err == nil {
				return e.Name(), nil
			}
		}
	}
	return "", fmt.Errorf("it is bound to %q, not to %s", sysfs.Link(dir, "driver"), driverName)
}

// resourceMem is IORESOURCE_MEM of linux/ioport.h.
const resourceMem = 0x200

// memoryBARs reads which BARs are memory, and how large, from a function's
// resource file: a line of first address, last address and flags for each.
func memoryBARs(text string) (sizes [numBARs]uint64, err error) {
	lines := strings.Split(text, "\n")
	if len(lines) < numBARs {
		return sizes, fmt.Errorf("resource has %d lines", len(lines))
	}
	for i := range sizes {
		var first, last, flags uint64
		if n, err := fmt.Sscanf(lines[i], "0x%x 0x%x 0x%x", &first, &last, &flags); n != 3 {
			return sizes, fmt.Errorf("resource %d: %q: %w", i, lines[i], err)
		}
		if flags&resourceMem != 0 && last > first {
			sizes[i] = last - first + 1
		}
	}
	return sizes, nil
}
