// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"testing"
	"time"
)

// TestIdle reads /proc/stat as Linux 6.12 writes it.
func TestIdle(t *testing.T) {
	const stat = `cpu  120 0 80 1000 25 3 2 0 0 0
cpu0 60 0 40 600 20 1 1 0 0 0
cpu1 60 0 40 400 5 2 1 0 0 0
intr 4711 0 0
ctxt 815
`
	d, n, err := idle([]byte(stat))
	if err != nil || d != 10250*time.Millisecond || n != 2 {
		t.Errorf("%v on %d processors, %v", d, n, err)
	}
	for _, bad := range []string{"", "intr 1\n", "cpu 1 2 3 x 5\n"} {
		if _, _, err := idle([]byte(bad)); err == nil {
			t.Errorf("%q was read", bad)
		}
	}
}

// TestInterrupts adds up one function's vectors on both processors.
func TestInterrupts(t *testing.T) {
	const list = `           CPU0       CPU1       
  4:        310          0  IR-IO-APIC    4-edge      ttyS0
 27:         10         20  IR-PCI-MSIX-0000:00:06.0    0-edge      virtio1-config
 28:        100        200  IR-PCI-MSIX-0000:00:06.0    1-edge      virtio1-input.0
 29:       1000          7  IR-PCI-MSIX-0000:00:05.0    1-edge      vfio-msix[1](0000:00:05.0)
NMI:          0          0   Non-maskable interrupts
`
	for bdf, want := range map[string]uint64{"0000:00:06.0": 330, "0000:00:05.0": 1007, "0000:00:07.0": 0, "": 0} {
		if n := interrupts([]byte(list), bdf); n != want {
			t.Errorf("%s: %d, want %d", bdf, n, want)
		}
	}
}

func TestMemAvailable(t *testing.T) {
	if n, err := memAvailable([]byte("MemFree:  1 kB\nMemAvailable:    1000 kB\n")); n != 1024000 || err != nil {
		t.Errorf("%d, %v", n, err)
	}
	for _, bad := range []string{"", "MemAvailable: x kB\n"} {
		if _, err := memAvailable([]byte(bad)); err == nil {
			t.Errorf("%q was read", bad)
		}
	}
}
