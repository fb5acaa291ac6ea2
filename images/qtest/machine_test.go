// SPDX-License-Identifier: Apache-2.0

package qtest_test

import (
	"context"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"toebox/images/qtest"
	"toebox/images/toolchain/toolchaintest"
)

func start(t *testing.T, args ...string) *qtest.Machine {
	t.Helper()
	// A test's own temporary directory can be too long for a socket's path.
	dir, err := os.MkdirTemp("", "qt")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	m, err := qtest.Start(t.Context(), qtest.Config{
		Command: toolchaintest.QEMU(t).Command, Dir: dir, Memory: 64 << 20, Args: args,
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := m.Close(); err != nil {
			t.Error(err)
		}
	})
	return m
}

// The teaching device of QEMU (docs/specs/edu.rst): an identification register at
// 0, a liveness check at 4, raising its interrupt at 0x60, lowering it at 0x64.
func TestEduDevice(t *testing.T) {
	m := start(t, "-device", "edu,addr=5.0")
	f := qtest.NewBDF(0, 5, 0)
	id, err := m.ReadConfig(f, 0, 4)
	if err != nil || id != 0x11e81234 {
		t.Fatalf("id = %#x, %v", id, err)
	}
	const bar = 0xe0000000
	for _, w := range []struct {
		offset uint8
		size   int
		value  uint32
	}{{0x10, 4, bar}, {0x04, 2, 6}} {
		if err := m.WriteConfig(f, w.offset, w.size, w.value); err != nil {
			t.Fatal(err)
		}
	}
	if v, err := m.Read32(bar); err != nil || v != 0x010000ed {
		t.Errorf("identification = %#x, %v", v, err)
	}
	if err := m.Write32(bar+4, 0x12345678); err != nil {
		t.Fatal(err)
	}
	if v, err := m.Read32(bar + 4); err != nil || v != ^uint32(0x12345678) {
		t.Errorf("liveness = %#x, %v", v, err)
	}
	if err := m.InterceptIn("ioapic"); err != nil {
		t.Fatal(err)
	}
	if err := m.Write32(bar+0x60, 1); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	// Slot 5's INTA# comes in at PIRQ E+ (5 mod 4) on a q35, which is input 21.
	if err := m.WaitIRQ(ctx, 21, true); err != nil {
		t.Error(err)
	}
	if err := m.Write32(bar+0x64, 1); err != nil {
		t.Fatal(err)
	}
	if err := m.WaitIRQ(ctx, 21, false); err != nil {
		t.Error(err)
	}
}

func TestRAMIsShared(t *testing.T) {
	m := start(t)
	want := strings.Repeat("toebox", 1000)
	if err := m.Write(0x200000, []byte(want)); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, len(want))
	if _, err := m.RAM.ReadAt(got, 0x200000); err != nil || string(got) != want {
		t.Errorf("the file does not show what QEMU wrote (%v)", err)
	}
}

func TestStartSaysWhatQEMUSaid(t *testing.T) {
	_, err := qtest.Start(t.Context(), qtest.Config{
		Command: func(...string) *exec.Cmd { return exec.Command("sh", "-c", "echo no such thing >&2; exit 1") },
		Dir:     t.TempDir(), Memory: 1 << 20,
	})
	if err == nil || !strings.Contains(err.Error(), "no such thing") {
		t.Errorf("err = %v", err)
	}
}
