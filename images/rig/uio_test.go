// SPDX-License-Identifier: Apache-2.0

package rig

import (
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"toebox/images/guest"
)

// TestUIO kills the device of a machine that drives it over UIO, in the middle of
// transfers: an interrupt that was on its way, asserted or masked does not stop those
// of the next device.
func TestUIO(t *testing.T) {
	if testing.Short() {
		t.Skip("boots a machine, some seconds: run without -short")
	}
	m := upForReload(t, func(o *Options) { o.Driver = guest.DriverUIO })
	m.answers()
	if s := m.exec("toebox-guest", "ls"); !strings.Contains(s, "driver uio_pci_generic, IOMMU group none") {
		t.Errorf("the guest has %s", s)
	}
	flow := m.ask()
	defer flow.wg.Wait()
	defer flow.stop()
	until := func(what string, cond func() bool) {
		t.Helper()
		for deadline := time.Now().Add(reloadPatience); !cond(); <-time.After(10 * time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatalf("waited in vain for %s; %d requests were served", what, flow.served.Load())
			}
		}
	}
	more := func() {
		t.Helper()
		enough := flow.served.Load() + 3
		until("requests to be served", func() bool { return flow.served.Load() >= enough })
	}
	for range 3 {
		more()
		old := m.devices[0].kept.pidNow()
		if err := syscall.Kill(old, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		until("the next device", func() bool { pid := m.devices[0].kept.pidNow(); return pid != 0 && pid != old })
	}
	more()
	flow.stop()
	flow.wg.Wait()
	if n := flow.hung.Load(); n > 0 {
		t.Errorf("%d requests hung", n)
	}
	if s := m.exec("cat", "/proc/interrupts"); !strings.Contains(s, "uio_pci_generic") {
		t.Errorf("no interrupt of the adapter:\n%s", s)
	}
	b, err := os.ReadFile(filepath.Join(m.Dir, "console.log"))
	if err != nil || strings.Contains(string(b), "nobody cared") {
		t.Errorf("the kernel gave the interrupt up (%v):\n%s", err, b)
	}
}
