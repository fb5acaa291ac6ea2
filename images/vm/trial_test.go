// SPDX-License-Identifier: Apache-2.0

package vm

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"toebox/images/toolchain"
	"toebox/images/toolchain/toolchaintest"
)

// patience bounds the waits of these tests.
const patience = 2 * time.Minute

// The trial's program must run where virtual CPUs are known to work.
func TestTrialRunsUnderTCG(t *testing.T) {
	q := toolchaintest.QEMU(t)
	if err := tryAccel(t.Context(), q, AccelTCG, time.After(patience)); err != nil {
		t.Fatal(err)
	}
}

func TestTrialFailsWithinItsTime(t *testing.T) {
	fifo := filepath.Join(t.TempDir(), "said")
	if err := unix.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	said, err := os.OpenFile(fifo, os.O_RDWR, 0) // with a writer, so that it opens at once
	if err != nil {
		t.Fatal(err)
	}
	defer said.Close()
	said.SetReadDeadline(time.Now().Add(patience))
	// Its time is over when it has said all.
	overdue := make(chan time.Time)
	var over time.Time
	go func() {
		defer close(overdue)
		if _, err := said.Read(make([]byte, 1)); err != nil {
			t.Error(err)
		}
		over = time.Now()
	}()
	const ends = 2 * patience // by itself
	spin := &toolchain.QEMU{Argv: []string{"sh", "-c", fmt.Sprintf(
		"echo 'KVM internal error. Suberror: 1' >&2; echo 'emulation failure' >&2; echo >%s; exec sleep %d", fifo, int(ends.Seconds()))}}
	err = tryAccel(t.Context(), spin, AccelKVM, overdue)
	if err == nil || err.Error() != "KVM internal error. Suberror: 1 emulation failure" {
		t.Errorf("err = %v", err)
	}
	<-overdue
	if d := time.Since(over); d >= patience {
		t.Errorf("took %v", d)
	}
	for script, want := range map[string]string{
		"echo failed to initialize kvm >&2; exit 1": "failed to initialize kvm",
		"exit 0": "QEMU ended (<nil>)", // it did not go through the program's last instruction
	} {
		q := &toolchain.QEMU{Argv: []string{"sh", "-c", script}}
		if err := tryAccel(t.Context(), q, AccelKVM, time.After(patience)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: err = %v", script, err)
		}
	}
}

func TestPickAccel(t *testing.T) {
	good := &toolchain.QEMU{Argv: []string{"sh", "-c", "exit 67"}}
	bad := &toolchain.QEMU{Argv: []string{"sh", "-c", "exit 1"}}
	if a, err := pickAccel(t.Context(), bad, AccelTCG, t.TempDir(), patience); err != nil || a.Name != AccelTCG {
		t.Errorf("tcg: %+v, %v", a, err)
	}
	if a, err := pickAccel(t.Context(), good, AccelKVM, t.TempDir(), patience); err != nil || a.Name != AccelKVM {
		t.Errorf("kvm: %+v, %v", a, err)
	}
	if _, err := pickAccel(t.Context(), bad, AccelKVM, t.TempDir(), patience); err == nil {
		t.Error("kvm that does not work passes")
	}
	if _, err := pickAccel(t.Context(), good, "hvf", t.TempDir(), patience); err == nil {
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
