// SPDX-License-Identifier: Apache-2.0

package pci_test

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"toebox/ci/golden"
	"toebox/images/toolchain/toolchaintest"
	vfiouser "toebox/vfio-user"
)

// TestLspci has pciutils decode the configuration space of a function with
// every capability.
func TestLspci(t *testing.T) {
	lspci, err := exec.LookPath("lspci")
	if err != nil {
		toolchaintest.Missing(t, "lspci", "no lspci: apt install pciutils")
	}
	d := newEvery(t)
	for _, w := range []struct {
		at uint64
		p  []byte
	}{
		{0x10, []byte{0, 0, 0, 0xfe}}, {0x14, []byte{0, 0xc0, 0, 0}}, {0x18, []byte{0, 0x10, 0, 0xfe}},
		{0x20, []byte{0, 0, 0, 0xc0}}, {0x30, []byte{1, 0, 0x10, 0xfe}}, {0x04, []byte{7, 0}},
	} {
		if err := d.WriteRegion(vfiouser.RegionConfig, w.at, w.p); err != nil {
			t.Fatal(err)
		}
	}
	var dump bytes.Buffer
	dump.WriteString("00:05.0 Class\n")
	config := d.config(t)
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
		"ff00: 1234:e7e1 (rev 02)", "Subsystem: 1af4:1100", "Control: I/O+ Mem+ BusMaster+", "Interrupt: pin A",
		"Region 0: Memory at fe000000 (32-bit, non-prefetchable)", "Region 1: I/O ports at c000",
		"Region 2: Memory at fe001000 (32-bit, non-prefetchable)", "Region 4: Memory at c0000000 (64-bit, prefetchable)",
		"Expansion ROM at fe100000",
		"[40] Power Management version 3", "D1+ D2+", "PME(D0+,D1+,D2+,D3hot+,D3cold+)",
		"[48] MSI: Enable- Count=1/4 Maskable+ 64bit+", "Masking: 00000000  Pending: 00000000",
		"[60] MSI-X: Enable- Count=40 Masked-", "Vector table: BAR=2 offset=00000000", "PBA: BAR=2 offset=00000280",
		"[6c] Vendor Specific Information: Len=0c", "[78] Subsystem: 1af4:1100",
		"[80] Express (v2) Endpoint", "MaxPayload 512 bytes", "FLReset+", "Speed 8GT/s", "Width x4",
		"[100 v2] Advanced Error Reporting", "[148 v1] Device Serial Number 00-11-22-ff-fe-33-44-55",
		"[154 v1] Transaction Processing Hints", "Device specific mode supported",
		"[170 v1] Vendor Specific Information: ID=0042 Rev=1 Len=010", "[180 v1] Latency Tolerance Reporting",
	} {
		if !strings.Contains(string(out), want) {
			t.Errorf("lspci does not say %q", want)
		}
	}
	if bad := golden.Complaints(string(out)); len(bad) > 0 {
		t.Errorf("lspci complains of %q", bad)
	}
	if bad := regexp.MustCompile(`(?i)access denied|unknown|overlap|chain|broken|\?\?`).Find(out); bad != nil {
		t.Errorf("lspci says %q", bad)
	}
	if t.Failed() {
		t.Logf("%s", out)
	}
}
