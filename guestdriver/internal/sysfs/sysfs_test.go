// SPDX-License-Identifier: Apache-2.0

package sysfs_test

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"toebox/guestdriver/internal/sysfs"
	"toebox/guestdriver/internal/sysfs/sysfstest"
)

func TestList(t *testing.T) {
	got, err := sysfstest.New(t, sysfstest.Machine()).List()
	want := []sysfs.Function{{"0000:00:05.0", "vfio-pci", "3"}, {"0000:00:06.0", "", ""}}
	if err != nil || len(got) != 2 || got[0] != want[0] || got[1] != want[1] {
		t.Errorf("got %v, %v, want %v", got, err, want)
	}
	if got, err := sysfs.Dir(t.TempDir()).List(); len(got) != 0 || err != nil {
		t.Errorf("no PCI: %v, %v", got, err)
	}
}

func TestBind(t *testing.T) {
	files := sysfstest.Machine()
	s := sysfstest.New(t, files)
	if err := s.Bind("0000:00:05.0", "vfio-pci"); err != nil {
		t.Errorf("bound already: %v", err)
	}
	if err := s.Bind("0000:00:06.0", "vfio-pci"); err != nil {
		t.Error(err)
	}
	for name, want := range map[string]string{
		"bus/pci/devices/0000:00:06.0/driver_override": "vfio-pci",
		"bus/pci/drivers_probe":                        "0000:00:06.0",
	} {
		if got, _ := os.ReadFile(filepath.Join(string(s), name)); string(got) != want {
			t.Errorf("%s: %q, want %q", name, got, want)
		}
	}
	if err := s.Bind("0000:00:09.0", "vfio-pci"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("no such function: %v", err)
	}

	files["bus/pci/devices/0000:00:06.0/driver"] = "->../../drivers/other"
	files["bus/pci/drivers/other/unbind"] = ""
	s = sysfstest.New(t, files)
	if err := s.Bind("0000:00:06.0", "vfio-pci"); err != nil {
		t.Error(err)
	}
	if got, _ := os.ReadFile(filepath.Join(string(s), "bus/pci/drivers/other/unbind")); string(got) != "0000:00:06.0" {
		t.Errorf("unbind: %q", got)
	}

	delete(files, "bus/pci/drivers/vfio-pci/new_id")
	if err := sysfstest.New(t, files).Bind("0000:00:06.0", "vfio-pci"); err == nil || !strings.Contains(err.Error(), "modprobe vfio-pci") {
		t.Errorf("no driver: %v", err)
	}
}
