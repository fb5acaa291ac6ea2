// SPDX-License-Identifier: Apache-2.0

package guest

import (
	"bytes"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// sysfs builds a PCI bus below a temporary directory; names ending in / are
// directories, values starting with -> links.
func sysfs(t *testing.T, files map[string]string) string {
	t.Helper()
	bus := t.TempDir()
	for name, v := range files {
		path := filepath.Join(bus, name)
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
	return bus
}

// Only behind an IOMMU that does not check interrupts may they go unchecked.
func TestAllowInterrupts(t *testing.T) {
	const param = "module/vfio_iommu_type1/parameters/allow_unsafe_interrupts"
	for name, test := range map[string]struct {
		files map[string]string
		want  string
	}{
		"virtio": {map[string]string{param: "N\n", "bus/virtio/drivers/virtio_iommu/virtio0": "->../../devices/virtio0"}, "Y"},
		"intel":  {map[string]string{param: "N\n", "class/iommu/dmar0": "->../../devices/dmar0", "bus/virtio/drivers/virtio_iommu/bind": ""}, "N\n"},
	} {
		sys := sysfs(t, test.files)
		if err := allowInterrupts(sys); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if b, err := os.ReadFile(filepath.Join(sys, param)); err != nil || string(b) != test.want {
			t.Errorf("%s: parameter is %q, %v, want %q", name, b, err, test.want)
		}
	}
	if err := allowInterrupts(sysfs(t, map[string]string{"bus/virtio/drivers/virtio_iommu/virtio0": ""})); err == nil {
		t.Error("no such parameter: no error")
	}
}

func TestBind(t *testing.T) {
	const at = "devices/0000:00:05.0/"
	adapter := func(more map[string]string) map[string]string {
		m := map[string]string{
			"devices/0000:00:03.0/vendor": "0x1af4\n", "devices/0000:00:03.0/device": "0x1003\n",
			at + "vendor": "0x1234\n", at + "device": "0x7422\n", at + "driver_override": "", "drivers_probe": "",
			at + "iommu_group": "->../../../kernel/iommu_groups/7",
		}
		for k, v := range more {
			m[k] = v
		}
		return m
	}
	bus := sysfs(t, adapter(map[string]string{at + "driver": "->../../drivers/vfio-pci"}))
	if got, err := bindAll(bus, DriverVFIO, 0); err != nil || !slices.Equal(got, []string{"0000:00:05.0 group 7"}) {
		t.Errorf("bound already: %q, %v", got, err)
	}
	if b, err := os.ReadFile(filepath.Join(bus, at, "driver_override")); err != nil || string(b) != "vfio-pci" {
		t.Errorf("driver_override = %q, %v", b, err)
	}
	const second = "devices/0000:00:06.0/"
	two := adapter(map[string]string{
		at + "driver": "->../../drivers/vfio-pci", second + "driver": "->../../drivers/vfio-pci", second + "vendor": "0x1234\n", second + "device": "0x7422\n",
		second + "driver_override": "", second + "iommu_group": "->../../../kernel/iommu_groups/8",
	})
	if got, err := bindAll(sysfs(t, two), DriverVFIO, 0); err != nil || !slices.Equal(got, []string{"0000:00:05.0 group 7", "0000:00:06.0 group 8"}) {
		t.Errorf("two: %q, %v", got, err)
	}
	bus = sysfs(t, adapter(nil))
	if _, err := bindAll(bus, DriverVFIO, 0); err == nil || !strings.Contains(err.Error(), "did not take it") {
		t.Errorf("never bound: %v", err)
	}
	if b, err := os.ReadFile(filepath.Join(bus, "drivers_probe")); err != nil || string(b) != "0000:00:05.0" {
		t.Errorf("drivers_probe = %q, %v", b, err)
	}
	m := adapter(map[string]string{at + "driver": "->../../drivers/vfio-pci"})
	delete(m, at+"iommu_group")
	if _, err := bindAll(sysfs(t, m), DriverVFIO, 0); err == nil || !strings.Contains(err.Error(), "no vIOMMU") {
		t.Errorf("no group: %v", err)
	}
	// UIO wants no IOMMU.
	m[at+"driver"] = "->../../drivers/uio_pci_generic"
	if got, err := bindAll(sysfs(t, m), DriverUIO, 0); err != nil || !slices.Equal(got, []string{"0000:00:05.0 uio_pci_generic"}) {
		t.Errorf("UIO: %q, %v", got, err)
	}
	if _, err := bindAll(sysfs(t, map[string]string{"devices/0000:00:03.0/vendor": "0x1234"}), DriverVFIO, 0); err == nil || !strings.Contains(err.Error(), "1234:7422") {
		t.Errorf("no adapter: %v", err)
	}
	if _, err := bindAll(t.TempDir(), DriverVFIO, time.Second); err == nil {
		t.Error("no bus: no error")
	}
	// Another driver has it and does not let go.
	bus = sysfs(t, adapter(map[string]string{at + "driver/unbind": ""}))
	if err := os.Rename(filepath.Join(bus, at, "driver"), filepath.Join(bus, "other")); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("../../other", filepath.Join(bus, at, "driver")); err != nil {
		t.Fatal(err)
	}
	if _, err := bindAll(bus, DriverVFIO, 0); err == nil {
		t.Error("another driver's: no error")
	}
	if b, err := os.ReadFile(filepath.Join(bus, "other/unbind")); err != nil || string(b) != "0000:00:05.0" {
		t.Errorf("unbind = %q, %v", b, err)
	}
}

func TestZombies(t *testing.T) {
	proc := sysfs(t, map[string]string{
		"1/stat":   "1 (init) S 0 1 1 0",
		"7/stat":   "7 (dead) Z 1 7 7 0",
		"8/stat":   "8 (evil) Z 1) S 1 8 8 0", // a name that looks like the rest
		"9/stat":   "9 (others) Z 7 9 9 0",
		"10/stat":  "10 (x",
		"11/stat":  "",
		"self/x":   "",
		"12/other": "",
	})
	if got := zombies(proc); !slices.Equal(got, []int{7}) {
		t.Errorf("zombies = %v", got)
	}
	if got := zombies(filepath.Join(proc, "none")); got != nil {
		t.Errorf("zombies of nothing = %v", got)
	}
}

func TestLastLine(t *testing.T) {
	var to bytes.Buffer
	l := &lastLine{to: &to}
	for _, s := range []string{"first\n", "sec", "ond\n", ""} {
		if _, err := l.Write([]byte(s)); err != nil {
			t.Fatal(err)
		}
	}
	if l.String() != "second" || to.String() != "first\nsecond\n" {
		t.Errorf("last %q of %q", l, to.String())
	}
	l.Write(bytes.Repeat([]byte("x"), 10*maxLine))
	if n := len(l.String()); n != maxLine {
		t.Errorf("%d bytes kept", n)
	}
}
