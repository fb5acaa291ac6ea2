// SPDX-License-Identifier: Apache-2.0

package golden_test

import (
	"bytes"
	"context"
	"flag"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"testing"

	"toebox/ci/golden"
	"toebox/ci/rig"
	"toebox/images/initramfs"
	images "toebox/images/rig"
	"toebox/images/toolchain/toolchaintest"
)

var update = flag.Bool("update", false, "write the golden file anew")

const file = "lspci-vv.txt"

// TestLspci boots a guest and compares what it sees of the adapter.
func TestLspci(t *testing.T) {
	toolchaintest.QEMU(t)
	toolchaintest.Kernel(t)
	lspci, err := exec.LookPath("lspci")
	if err != nil {
		toolchaintest.Missing(t, "lspci", "no lspci: apt install pciutils")
	}
	version, err := exec.Command(lspci, "--version").Output()
	if err != nil {
		t.Fatal(err)
	}
	paths, err := images.DefaultPaths()
	if err != nil {
		t.Fatal(err)
	}
	v, err := rig.StartVM(t.Context(), rig.Config{Seed: 1}, images.Options{Paths: paths, Files: program(t, lspci)}, t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := v.Close(); err != nil {
			t.Error(err)
		}
	}()
	in := func(args ...string) string {
		t.Helper()
		var out, errs bytes.Buffer
		status, err := v.Exec(context.WithoutCancel(t.Context()), args, nil, &out, &errs)
		if err != nil || status != 0 {
			t.Fatalf("%q in the guest: status %d, %v: %s", args, status, err, errs.String())
		}
		return out.String()
	}
	resource := in("cat", "/sys/bus/pci/devices/0000:00:05.0/resource")
	got := golden.Normal(string(version)) + golden.Normal(in(lspci, "-vv", "-n", "-s", "00:05.0"))
	if bad := golden.Complaints(got); len(bad) > 0 {
		t.Errorf("lspci complains of %q:\n%s", bad, got)
	}
	for _, want := range []string{
		"ff00: 1234:7422 (rev 01)", "Subsystem: 1234:0001", "[size=64K]", "[size=4K]", "Power Management", "Express", "FLReset+",
		"MSI-X", "Count=33", "Vector table: BAR=2 offset=00000000", "PBA: BAR=2 offset=00000800", "Device Serial Number",
	} {
		if !strings.Contains(got, want) {
			t.Errorf("lspci does not show %q:\n%s", want, got)
		}
	}
	rs, err := golden.Resources(resource)
	if err != nil || len(rs) < 6 {
		t.Fatalf("resources: %v\n%s", err, resource)
	}
	if rs[0].Size() != 64<<10 || rs[2].Size() != 4<<10 {
		t.Errorf("BAR0 has %d bytes, BAR2 %d:\n%s", rs[0].Size(), rs[2].Size(), resource)
	}
	if a, b, found := golden.Overlap(rs); found {
		t.Errorf("resources overlap: %#x and %#x", a, b)
	}
	if *update {
		if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatalf("%v: run this test with -update", err)
	}
	if !strings.HasPrefix(string(want), golden.Normal(string(version))) {
		t.Logf("the golden file was written by another version of lspci: only the rules were checked")
		return
	}
	if got != string(want) {
		t.Errorf("lspci shows\n%s\nwant\n%s", got, want)
	}
}

// program returns a program of the host with its libraries, for the guest.
func program(t *testing.T, path string) []initramfs.File {
	t.Helper()
	out, err := exec.Command("ldd", path).Output()
	if err != nil {
		t.Fatalf("ldd %s: %v", path, err)
	}
	var files []initramfs.File
	for _, p := range append(regexp.MustCompile(`/[^ ()]+`).FindAllString(string(out), -1), path) {
		b, err := os.ReadFile(p)
		if err != nil {
			t.Fatal(err)
		}
		files = append(files, initramfs.File{Path: strings.TrimPrefix(p, "/"), Mode: 0o755, Data: b})
	}
	return files
}

func TestOverlap(t *testing.T) {
	rs, err := golden.Resources("0x1000 0x1fff 0x200\n0x0 0x0 0x0\n0x3000 0x3fff 0x200\n")
	if err != nil {
		t.Fatal(err)
	}
	if _, _, found := golden.Overlap(rs); found {
		t.Error("disjoint resources overlap")
	}
	if _, _, found := golden.Overlap(append(rs, golden.Resource{Start: 0x3fff, End: 0x5000})); !found {
		t.Error("an overlap was not found")
	}
	if _, err := golden.Resources("nonsense\n"); err == nil {
		t.Error("nonsense was parsed")
	}
}

func TestComplaints(t *testing.T) {
	if bad := golden.Complaints("Capabilities: <access denied>\nUnknown header type 7f"); len(bad) != 2 {
		t.Errorf("complaints are %q", bad)
	}
}
