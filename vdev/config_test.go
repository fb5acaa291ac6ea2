// SPDX-License-Identifier: Apache-2.0

package vdev

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// TestConfigBytes compares the reset configuration space with literal bytes.
func TestConfigBytes(t *testing.T) {
	r := newRig(t, nil)
	got := make([]byte, 4096)
	r.access(7, 0, got, false)
	want := make([]byte, 4096)
	for at, b := range map[int][]byte{
		0x00: {0x34, 0x12, 0x22, 0x74}, // vendor, device
		0x04: {0x00, 0x00, 0x10, 0x00}, // command, status: capabilities list
		0x08: {0x01, 0x00, 0x00, 0xff}, // revision, class ff0000
		0x10: {0x04, 0, 0, 0},          // BAR0: 64 bits
		0x18: {0x04, 0, 0, 0},          // BAR2: 64 bits
		0x2c: {0x34, 0x12, 0x01, 0x00}, // subsystem
		0x34: {0x40},                   // first capability
		0x3d: {0x01},                   // INTA

		0x40: {0x01, 0x48, 0x03, 0x00, 0x00, 0x00, 0x00, 0x00}, // power management, no PME

		0x48: {0x10, 0x88, 0x02, 0x00}, // PCI Express, version 2, endpoint
		0x4c: {0x00, 0x80, 0x00, 0x10}, // device capabilities: FLR, role-based errors
		0x50: {0x10, 0x28, 0x00, 0x00}, // device control: relaxed ordering, no snoop, 512 bytes; status
		0x54: {0x11, 0x00, 0x40, 0x00}, // link capabilities: 2.5 GT/s, x1
		0x58: {0x00, 0x00, 0x11, 0x00}, // link control, status
		0x6c: {0x10, 0x00, 0x00, 0x00}, // device capabilities 2: completion timeout disable
		0x74: {0x02, 0x00, 0x00, 0x00}, // link capabilities 2
		0x78: {0x01, 0x00, 0x00, 0x00}, // link control 2

		0x88: {0x11, 0x00, 0x20, 0x00, 0x02, 0x00, 0x00, 0x00, 0x02, 0x08, 0x00, 0x00}, // MSI-X: 33, BAR2 at 0 and 0x800

		0x100: {0x03, 0x00, 0x01, 0x00}, // device serial number
	} {
		copy(want[at:], b)
	}
	mac := r.f.Identity().MAC
	copy(want[0x104:], []byte{mac[5], mac[4], mac[3], 0xfe, 0xff, mac[2], mac[1], mac[0]})
	for i := range want {
		if got[i] != want[i] {
			t.Errorf("byte %#x: %#02x, want %#02x", i, got[i], want[i])
		}
	}
}

// TestConfigWrites writes all ones, and other things, to registers.
func TestConfigWrites(t *testing.T) {
	for _, c := range []struct {
		name        string
		offset      uint64
		n           int
		write, want uint32
	}{
		{"ids", 0x00, 4, 0xffffffff, 0x74221234},
		{"command", 0x04, 2, 0xffff, 0x0546},
		{"status", 0x06, 2, 0xffff, 0x0010},
		{"class", 0x08, 4, 0xffffffff, 0xff000001},
		{"cache line", 0x0c, 1, 0xff, 0xff},
		{"BAR0 size is 64 KiB", 0x10, 4, 0xffffffff, 0xffff0004},
		{"BAR0 high", 0x14, 4, 0xffffffff, 0xffffffff},
		{"BAR2 size is 4 KiB", 0x18, 4, 0xffffffff, 0xfffff004},
		{"BAR2 high", 0x1c, 4, 0xffffffff, 0xffffffff},
		{"BAR4 is none", 0x20, 4, 0xffffffff, 0},
		{"BAR5 is none", 0x24, 4, 0xffffffff, 0},
		{"no ROM", 0x30, 4, 0xfffff801, 0},
		{"line", 0x3c, 1, 0x0b, 0x0b},
		{"pin", 0x3d, 1, 0xff, 0x01},
		{"D1 is not there", 0x44, 2, 0x0001, 0x0000},
		{"D3hot", 0x44, 2, 0xffff, 0x0003},
		{"device control without FLR", 0x50, 2, 0x7fff, 0x78ff},
		{"link control 2", 0x78, 2, 0xffff, 0x000f},
		{"MSI-X control", 0x8a, 2, 0xffff, 0xc020},
		{"MSI-X table", 0x8c, 4, 0xffffffff, 0x00000002},
		{"serial number", 0x100, 4, 0xffffffff, 0x00010003},
		{"nothing", 0xffc, 4, 0xffffffff, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := newRig(t, nil)
			r.setConfig(c.offset, c.n, c.write)
			if got := r.getConfig(c.offset, c.n); got != c.want {
				t.Errorf("%#x, want %#x", got, c.want)
			}
			if err := r.f.Reset(); err != nil {
				t.Fatal(err)
			}
			if got, fresh := r.getConfig(c.offset, c.n), newRig(t, nil).getConfig(c.offset, c.n); got != fresh {
				t.Errorf("%#x after reset, want %#x", got, fresh)
			}
		})
	}
}

// TestConfigWalk walks the capability lists as system software does.
func TestConfigWalk(t *testing.T) {
	r := newRig(t, nil)
	var found []string
	seen := map[uint32]bool{}
	for at := r.getConfig(0x34, 1); at != 0; at = r.getConfig(uint64(at)+1, 1) {
		if at < 0x40 || at > 0xfc || at%4 != 0 || seen[at] {
			t.Fatalf("capability at %#x", at)
		}
		seen[at] = true
		found = append(found, fmt.Sprintf("%02x", r.getConfig(uint64(at), 1)))
	}
	for at := uint32(0x100); at != 0; at = r.getConfig(uint64(at), 4) >> 20 {
		if at < 0x100 || at%4 != 0 || seen[at] {
			t.Fatalf("extended capability at %#x", at)
		}
		seen[at] = true
		found = append(found, fmt.Sprintf("%04x", r.getConfig(uint64(at), 4)&0xffff))
	}
	if got := strings.Join(found, " "); got != "01 10 11 0003" {
		t.Errorf("capabilities %s", got)
	}
}

// TestLspci has pciutils decode the configuration space.
func TestLspci(t *testing.T) {
	lspci, err := exec.LookPath("lspci")
	if err != nil {
		if slices.Contains(strings.Split(os.Getenv("CI_REQUIRE"), ","), "lspci") {
			t.Fatal(err)
		}
		t.Skip("no lspci here: install the package pciutils")
	}
	r := newRig(t, nil)
	r.setConfig(0x10, 4, 0xfebf0000)
	r.setConfig(0x18, 4, 0xfebe0000)
	r.setConfig(0x04, 2, 0x0006)
	config := make([]byte, 4096)
	r.access(7, 0, config, false)
	var dump bytes.Buffer
	dump.WriteString("00:05.0 Class\n")
	for at := 0; at < len(config); at += 16 {
		fmt.Fprintf(&dump, "%02x: % x\n", at, config[at:at+16])
	}
	path := filepath.Join(t.TempDir(), "dump")
	if err := os.WriteFile(path, dump.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command(lspci, "-vv", "-n", "-F", path).CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	for _, want := range []string{
		"1234:7422", "Subsystem: 1234:0001", "Interrupt: pin A",
		"Region 0: Memory at febf0000 (64-bit, non-prefetchable)",
		"Region 2: Memory at febe0000 (64-bit, non-prefetchable)",
		"Power Management version 3", "Express (v2) Endpoint", "FLReset+",
		"MSI-X: Enable- Count=33 Masked-", "Vector table: BAR=2 offset=00000000", "PBA: BAR=2 offset=00000800",
		"Device Serial Number",
	} {
		if !strings.Contains(string(out), want) {
			t.Errorf("lspci does not say %q", want)
		}
	}
	if bad := regexp.MustCompile(`(?i)access denied|unknown|chain|broken|\?\?`).Find(out); bad != nil {
		t.Errorf("lspci says %q", bad)
	}
	if t.Failed() {
		t.Logf("%s", out)
	}
}
