// SPDX-License-Identifier: Apache-2.0

package vm

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"toebox/images/toolchain"
	"toebox/images/toolchain/toolchaintest"
)

// The trial's program must run where virtual CPUs are known to work.
func TestTrialRunsUnderTCG(t *testing.T) {
	q := toolchaintest.QEMU(t)
	if err := tryAccel(t.Context(), q, AccelTCG, 30*time.Second); err != nil {
		t.Fatal(err)
	}
}

func TestTrialFailsWithinItsTime(t *testing.T) {
	spin := &toolchain.QEMU{Argv: []string{"sh", "-c", "echo 'KVM internal error. Suberror: 1' >&2; echo 'emulation failure' >&2; sleep 60"}}
	begin := time.Now()
	err := tryAccel(t.Context(), spin, AccelKVM, 200*time.Millisecond)
	if err == nil || err.Error() != "KVM internal error. Suberror: 1 emulation failure" {
		t.Errorf("err = %v", err)
	}
	if d := time.Since(begin); d > 10*time.Second {
		t.Errorf("took %v", d)
	}
	for script, want := range map[string]string{
		"echo failed to initialize kvm >&2; exit 1": "failed to initialize kvm",
		"exit 0": "QEMU ended (<nil>)", // it did not go through the program's last instruction
	} {
		q := &toolchain.QEMU{Argv: []string{"sh", "-c", script}}
		if err := tryAccel(t.Context(), q, AccelKVM, 10*time.Second); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: err = %v", script, err)
		}
	}
}

func TestPickAccel(t *testing.T) {
	good := &toolchain.QEMU{Argv: []string{"sh", "-c", "exit 67"}}
	bad := &toolchain.QEMU{Argv: []string{"sh", "-c", "exit 1"}}
	if a, err := PickAccel(t.Context(), bad, AccelTCG, t.TempDir()); err != nil || a.Name != AccelTCG {
		t.Errorf("tcg: %+v, %v", a, err)
	}
	if a, err := PickAccel(t.Context(), good, AccelKVM, t.TempDir()); err != nil || a.Name != AccelKVM {
		t.Errorf("kvm: %+v, %v", a, err)
	}
	if _, err := PickAccel(t.Context(), bad, AccelKVM, t.TempDir()); err == nil {
		t.Error("kvm that does not work passes")
	}
	if _, err := PickAccel(t.Context(), good, "hvf", t.TempDir()); err == nil {
		t.Error("hvf passes")
	}
}

func TestAccelMemo(t *testing.T) {
	m := accelMemo{path: filepath.Join(t.TempDir(), "accel.json"), key: "boot 1"}
	if _, ok := m.load(); ok {
		t.Error("nothing loads")
	}
	want := Accel{Name: AccelTCG, Why: "because"}
	m.store(want)
	if got, ok := m.load(); !ok || got != want {
		t.Errorf("loaded %+v, %v", got, ok)
	}
	m.key = "boot 2"
	if _, ok := m.load(); ok {
		t.Error("another boot's outcome is used")
	}
	m.key = "boot 1"
	for _, broken := range []string{"", "{", `{"key":"boot 1","accel":{"Name":"xen"}}`} {
		if err := os.WriteFile(m.path, []byte(broken), 0o644); err != nil {
			t.Fatal(err)
		}
		if a, ok := m.load(); ok {
			t.Errorf("%q loads as %+v", broken, a)
		}
	}
}
