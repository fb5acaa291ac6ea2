// SPDX-License-Identifier: Apache-2.0

package sysfstest

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"toebox/guestdriver/internal/sysfs"
)

// New makes files (values) and links (values beginning with "->").
func New(t *testing.T, files map[string]string) sysfs.Dir {
	t.Helper()
	root := t.TempDir()
	for name, v := range files {
		path := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		var err error
		if target, ok := strings.CutPrefix(v, "->"); ok {
			err = os.Symlink(target, path)
		} else {
			err = os.WriteFile(path, []byte(v), 0o644)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	return sysfs.Dir(root)
}

// Machine has a bridge, an adapter that vfio-pci has, one that no driver has,
// and QEMU's edu device, which is a function of the same vendor.
func Machine() map[string]string {
	const dev = "bus/pci/devices/"
	return map[string]string{
		dev + "0000:00:00.0/vendor":          "0x8086\n",
		dev + "0000:00:00.0/device":          "0x29c0\n",
		dev + "0000:00:05.0/vendor":          "0x1234\n",
		dev + "0000:00:05.0/device":          "0x7422\n",
		dev + "0000:00:05.0/iommu_group":     "->../../../kernel/iommu_groups/3",
		dev + "0000:00:05.0/driver":          "->../../../bus/pci/drivers/vfio-pci",
		dev + "0000:00:06.0/vendor":          "0x1234\n",
		dev + "0000:00:06.0/device":          "0x7422\n",
		dev + "0000:00:06.0/driver_override": "",
		dev + "0000:00:07.0/vendor":          "0x1234\n",
		dev + "0000:00:07.0/device":          "0x11e8\n",
		"bus/pci/drivers/vfio-pci/new_id":    "",
		"bus/pci/drivers_probe":              "",
	}
}
