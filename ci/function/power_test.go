// SPDX-License-Identifier: Apache-2.0

package function

import (
	"bytes"
	"testing"
)

// Power states in the control register of power management.
const (
	d0    = 0
	d3hot = 3
)

// TestD3hot: asleep, the function answers nobody, does not interrupt and does
// no DMA; waking up resets it (No_Soft_Reset is 0).
func TestD3hot(t *testing.T) {
	m := start(t)
	pmcsr := m.capability(0x01) + 4
	m.check(m.InterceptIn("ioapic"))
	m.set(0x0080, 0x12345678)
	m.raise(3)
	m.line("INTA to rise", true)
	resets := m.dev.Stats().Counters["resets_function"]

	m.setConfig(pmcsr, 2, d3hot)
	if got := m.config(pmcsr, 2) & 3; got != d3hot {
		t.Errorf("power state D%d", got)
	}
	if got := m.config(0x06, 2); got&(1<<3) != 0 {
		t.Errorf("Status %#x says that an interrupt stands", got)
	}
	// QEMU takes the BARs of a sleeping function off the bus. What the
	// function itself would say is asked without it.
	none, err := m.Read32(nothing)
	m.check(err)
	for _, addr := range []uint64{bar0, bar0 + 0x80, bar2, bar2 + 0x800} {
		if got, err := m.Read32(addr); err != nil || got != none && got != allOnes {
			t.Errorf("%#x reads %#x asleep, %v", addr, got, err)
		}
	}
	for _, region := range []int{0, 2} {
		var p [8]byte
		if err := m.dev.Function().ReadRegion(region, 0x800, p[:]); err != nil || !bytes.Equal(p[:], bytes.Repeat([]byte{0xff}, 8)) {
			t.Errorf("BAR%d reads %x asleep, %v", region, p, err)
		}
	}
	m.check(m.Write32(bar0+0x84, 3))
	m.setConfig(pmcsr, 2, 1) // a state that it does not have
	if got := m.config(pmcsr, 2) & 3; got != d3hot {
		t.Errorf("power state D%d after D1 was asked for", got)
	}
	if got := m.config(0x00, 4); got != 0x74221234 {
		t.Errorf("configuration space asleep: ids %#x", got)
	}

	m.setConfig(pmcsr, 2, d0)
	if got := m.config(0x04, 2); got != 0 {
		t.Errorf("Command %#x after waking up", got)
	}
	m.place()
	m.want("SCRATCH", 0x0080, 0)
	m.want("INTX_QUEUES", 0x002c, 0)
	m.want("EVENTS", 0x0020, 1)
	// QEMU lowers a line at the first access to a BAR after the device did.
	m.line("INTA to fall", false)
	m.stays("INTA after waking up", false)
	if got := m.counter(48) - resets; got != 1 {
		t.Errorf("%d resets counted, want 1", got)
	}
}

// TestD3hotStopsDMA puts the function to sleep in the middle of a transfer.
func TestD3hotStopsDMA(t *testing.T) {
	m := start(t)
	pmcsr := m.capability(0x01) + 4
	// A transfer by messages has QEMU take part in each of its 16 pieces, so
	// that few are done when the next command comes.
	want := pattern(65536, 3)
	cut, pieces := 0, 0
	for range 20 {
		m.check(m.Memset(vram, 65536, 0))
		m.begin(testWrite, vram, 65536, 3)
		m.setConfig(pmcsr, 2, d3hot)
		// One piece may be on its way at that moment, and arrives when it does; no
		// other may be begun.
		m.config(0x00, 4)
		m.at(vram, 65536)
		asleep := m.at(vram, 65536)
		for range 20 {
			m.config(0x00, 4)
		}
		if moved(asleep, m.at(vram, 65536)) > 1 {
			t.Fatal("the transfer goes on while the function sleeps")
		}
		m.setConfig(pmcsr, 2, d0)
		m.place()
		m.want("TEST_STATUS after waking up", 0x00a4, testIdle)
		m.settle()
		if moved(asleep, m.at(vram, 65536)) > 1 {
			t.Fatal("the transfer goes on after the function woke up")
		}
		if !bytes.Equal(asleep, want) {
			cut++
		}
		for at := 0; at < 65536 && asleep[at] == want[at]; at += 4096 {
			pieces++
		}
	}
	t.Logf("%d of 20 transfers were cut off; %d pieces done", cut, pieces)
	if cut == 0 {
		t.Error("each transfer was done before the function slept: nothing is shown")
	}
	if s, _ := m.dma(testWrite, vram, 65536, 3); s != testDone || !bytes.Equal(m.at(vram, 65536), want) {
		t.Errorf("transfer after waking up: status %d", s)
	}
}

// moved counts the 4 KiB pieces in which two states of memory differ.
func moved(a, b []byte) (n int) {
	for at := 0; at < len(a); at += 4096 {
		if !bytes.Equal(a[at:at+4096], b[at:at+4096]) {
			n++
		}
	}
	return n
}
