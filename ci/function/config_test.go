// SPDX-License-Identifier: Apache-2.0

package function

import "testing"

// TestConfigSpace compares configuration space with SPEC.md §2.
func TestConfigSpace(t *testing.T) {
	m := start(t)
	m.setConfig(0x04, 2, 0)
	for _, c := range []struct {
		what   string
		offset uint8
		size   int
		want   uint32
	}{
		{"vendor", 0x00, 2, 0x1234},
		{"device", 0x02, 2, 0x7422},
		{"Command", 0x04, 2, 0},
		{"Status: capabilities list", 0x06, 2, 0x0010},
		{"revision", 0x08, 1, 0x01},
		{"class", 0x09, 1, 0x00},
		{"class", 0x0a, 2, 0xff00},
		{"header type", 0x0e, 1, 0x00},
		{"no BAR4", 0x20, 4, 0},
		{"no BAR5", 0x24, 4, 0},
		{"subsystem vendor", 0x2c, 2, 0x1234},
		{"subsystem", 0x2e, 2, 0x0001},
		{"no expansion ROM", 0x30, 4, 0},
		{"interrupt pin", 0x3d, 1, 1},
	} {
		if got := m.config(c.offset, c.size); got != c.want {
			t.Errorf("%s: %#x, want %#x", c.what, got, c.want)
		}
		if c.offset == 0x04 {
			continue
		}
		m.setConfig(c.offset, c.size, ^c.want)
		if got := m.config(c.offset, c.size); got != c.want {
			t.Errorf("%s can be written: %#x", c.what, got)
		}
	}

	// The BARs: 64 bits wide, memory, not prefetchable, 64 KiB and 4 KiB.
	for i, want := range []uint32{0xffff0004, allOnes, 0xfffff004, allOnes} {
		m.setConfig(uint8(0x10+4*i), 4, allOnes)
		if got := m.config(uint8(0x10+4*i), 4); got != want {
			t.Errorf("BAR register %d: size mask %#x, want %#x", i, got, want)
		}
	}

	power, express, msix := m.capability(0x01), m.capability(0x10), m.capability(0x11)
	if got := m.config(power+4, 2) & 3; got != 0 {
		t.Errorf("power state D%d, want D0", got)
	}
	if got := m.config(express+2, 2) & 0xf; got != 2 {
		t.Errorf("PCI Express capability of version %d, want 2", got)
	}
	if got := m.config(express+4, 4); got&(1<<28) == 0 {
		t.Errorf("device capabilities %#x without function-level reset", got)
	}
	if got := m.config(msix+2, 2); got != 33-1 {
		t.Errorf("MSI-X control %#x, want 33 vectors, disabled", got)
	}
	if table, pba := m.config(msix+4, 4), m.config(msix+8, 4); table != 0x000|2 || pba != 0x800|2 {
		t.Errorf("MSI-X table at %#x, PBA at %#x", table, pba)
	}
}

// TestSerialNumber reads the one extended capability by the enhanced mechanism:
// the serial number is the MAC address as an EUI-64.
func TestSerialNumber(t *testing.T) {
	m := start(t)
	m.check(m.WriteConfig(hostBridge, 0x64, 4, 0))
	m.check(m.WriteConfig(hostBridge, 0x60, 4, ecam|1)) // PCIEXBAR of a q35
	read := func(offset uint64) uint32 {
		v, err := m.Read32(ecam + 5<<15 + offset)
		m.check(err)
		return v
	}
	if got := read(0); got != 0x74221234 {
		t.Fatalf("ids %#x", got)
	}
	if got := read(0x100); got&0xfffff != 0x10003 || got>>20 != 0 {
		t.Errorf("extended capability %#x, want the serial number, version 1, alone", got)
	}
	lo, hi := m.get(0x0030), m.get(0x0034)
	want := uint64(lo&0xff)<<56 | uint64(lo>>8&0xff)<<48 | uint64(lo>>16&0xff)<<40 | 0xfffe<<24 |
		uint64(lo>>24)<<16 | uint64(hi&0xff)<<8 | uint64(hi>>8&0xff)
	if got := uint64(read(0x108))<<32 | uint64(read(0x104)); got != want || lo&1 != 0 || hi>>16 != 0 || want == 0xfffe<<24 {
		t.Errorf("serial number %#x, want %#x of MAC registers %#x %#x", got, want, lo, hi)
	}
}

// TestRegisters compares the register map with SPEC.md §3 as it stands after a
// reset, and holds accesses to §2.1.
func TestRegisters(t *testing.T) {
	m := start(t)
	for _, r := range []struct {
		name   string
		offset uint64
		want   uint32
	}{
		{"ID", 0x0000, 0x424f4554},
		{"VERSION", 0x0004, 0x00010000},
		{"FEATURES", 0x0008, 0x0000000f},
		{"LIMITS", 0x000c, 0x10042120},
		{"CONTROL", 0x0010, 0},
		{"STATUS: ready, link, bus master", 0x0014, 0x51},
		{"GENERATION", 0x0018, 1},
		{"EVENTS", 0x0020, 1},
		{"EVENT_MASK", 0x0024, 0},
		{"INTX_CAUSE", 0x0028, 0},
		{"INTX_QUEUES", 0x002c, 0},
		{"SCRATCH", 0x0080, 0},
		{"RAISE", 0x0084, 0},
		{"TEST_STATUS", 0x00a4, 0},
		{"CLOCK_MODE", 0x00c0, 0},
		{"Q_STATE 0", 0x1004, 0},
		{"Q_VECTOR 0", 0x1024, 1},
		{"Q_VECTOR 31", 0x17e4, 32},
		{"IN_DOORBELL 0", 0x4000, 0},
		{"reserved", 0x0048, 0},
		{"reserved, behind the queues", 0x1800, 0},
		{"reserved, the last", 0xfffc, 0},
	} {
		m.want(r.name, r.offset, r.want)
	}
	m.set(0x0000, 0x12345678)
	m.set(0x0048, 0x12345678)
	m.set(0xfffc, 0x12345678)
	m.want("ID after a write", 0x0000, 0x424f4554)
	m.want("reserved after a write", 0x0048, 0)
	m.want("reserved after a write", 0xfffc, 0)

	const pattern = 0xc001d00d
	m.set(0x0080, pattern)
	m.want("SCRATCH", 0x0080, pattern)
	bad := m.counter(46) // mmio_bad_access
	if v, err := m.Read8(bar0 + 0x80); err != nil || v != 0xff {
		t.Errorf("8 bits read %#x, %v", v, err)
	}
	if v, err := m.Read16(bar0 + 0x82); err != nil || v != 0xffff {
		t.Errorf("16 bits read %#x, %v", v, err)
	}
	if v, err := m.Read64(bar0 + 0x80); err != nil || v != 1<<64-1 {
		t.Errorf("64 bits read %#x, %v", v, err)
	}
	m.check(m.Write8(bar0+0x80, 1))
	m.check(m.Write16(bar0+0x80, 2))
	m.check(m.Write64(bar0+0x80, 3))
	if got := m.counter(46) - bad; got != 6 {
		t.Errorf("%d accesses counted as bad, want 6", got)
	}
	// QEMU cuts these into several, none of them 32 bits wide.
	if v, err := m.Read32(bar0 + 0x81); err != nil || v != allOnes {
		t.Errorf("unaligned read %#x, %v", v, err)
	}
	m.check(m.Write32(bar0+0x82, 4))
	if got := m.counter(46) - bad; got < 8 {
		t.Errorf("%d accesses counted as bad, want 8 or more", got)
	}
	m.want("SCRATCH after bad writes", 0x0080, pattern)

	m.setConfig(0x04, 2, 4) // memory space off
	m.check(m.Write32(bar0+0x80, 5))
	m.setConfig(0x04, 2, 6)
	m.want("SCRATCH after a write with memory space off", 0x0080, pattern)
}
