// SPDX-License-Identifier: Apache-2.0

package pci_test

import (
	"bytes"
	"testing"

	"toebox/vfio-user/pci"
)

// TestCapabilityBytes compares each capability, alone but for what it needs,
// with the layout of its specification, and again after all ones were written.
func TestCapabilityBytes(t *testing.T) {
	express := pci.Express{}
	for _, c := range []struct {
		name      string
		caps      []pci.Capability // the last is looked at
		at        int
		is, after string // after: "" for the same
	}{
		// PCI Power Management 1.2: id, next, PMC, PMCSR, bridge, data.
		{"PM", []pci.Capability{pci.PM{}}, 0x40, "01 00 0300 0000 00 00", "01 00 0300 0300 00 00"},
		{"PM, all of it", []pci.Capability{pci.PM{D1: true, D2: true, NoSoftReset: true, PME: 0x1f}}, 0x40,
			"01 00 03fe 0800 00 00", "01 00 03fe 0b01 00 00"},

		// PCI Express Base 3.0 §7.8.
		{"Express", []pci.Capability{express}, 0x40,
			"10 00 0200" + // version 2, endpoint
				"00800000" + // role-based error reporting, 128 bytes
				"1028 0000" + // relaxed ordering, no snoop, 512 bytes; status
				"11004000 0000 1100" + // x1 at 2.5 GT/s, ASPM optionality; control; status
				"00000000 0000 0000" + // slot
				"0000 0000 00000000" + // root
				"10000000 0000 0000" + // completion timeout can be disabled
				"02000000 0100 0000" + // 2.5 GT/s; target speed; status
				"00000000 0000 0000", // slot
			"10 00 0200 00800000 ff78 0000 11004000 c800 1100 00000000 0000 0000 0000 0000 00000000" +
				"10000000 1000 0000 02000000 0f00 0000 00000000 0000 0000"},
		{"Express, FLR, 512 bytes, 8 GT/s, x4", []pci.Capability{pci.Express{FLR: true, MaxPayload: 512, Speed: 3, Width: 4}}, 0x40,
			"10 00 0200 02800010 1028 0000 43004000 0000 4300 00000000 0000 0000 0000 0000 00000000" +
				"10000000 0000 0000 0e000000 0300 0000 00000000 0000 0000",
			// The reset bit is among the ones: of those written before it only
			// link control is left.
			"10 00 0200 02800010 ff28 0000 43004000 c800 4300 00000000 0000 0000 0000 0000 00000000" +
				"10000000 0000 0000 0e000000 0300 0000 00000000 0000 0000"},
		{"Express, integrated", []pci.Capability{pci.Express{Integrated: true}}, 0x40,
			"10 00 9200 00800000 1028 0000 00000000 0000 0000 00000000 0000 0000 0000 0000 00000000" +
				"10000000 0000 0000 00000000 0000 0000 00000000 0000 0000",
			"10 00 9200 00800000 ff78 0000 00000000 0000 0000 00000000 0000 0000 0000 0000 00000000" +
				"10000000 1000 0000 00000000 0000 0000 00000000 0000 0000"},

		// PCI Local Bus 3.0 §6.8.1: id, next, control, address, data, mask, pending.
		{"MSI", []pci.Capability{pci.MSI{}}, 0x40,
			"05 00 8000 00000000 00000000 0000", "05 00 8100 fcffffff ffffffff ffff"},
		{"MSI, 32 bits", []pci.Capability{pci.MSI{Vectors: 32, Address: 32}}, 0x40,
			"05 00 0a00 00000000 0000", "05 00 5b00 fcffffff ffff"},
		{"MSI, 32 bits, masks", []pci.Capability{pci.MSI{Vectors: 8, Address: 32, Masking: true}}, 0x40,
			"05 00 0601 00000000 0000 0000 00000000 00000000", "05 00 3701 fcffffff ffff 0000 ff000000 00000000"},
		{"MSI, masks", []pci.Capability{pci.MSI{Vectors: 32, Masking: true}}, 0x40,
			"05 00 8a01 00000000 00000000 0000 0000 00000000 00000000",
			"05 00 db01 fcffffff ffffffff ffff 0000 ffffffff 00000000"},

		// PCI Local Bus 3.0 §6.8.2: id, next, control, table, PBA.
		{"MSI-X", []pci.Capability{pci.MSIX{Vectors: 33, BAR: 2, Table: 0x1000, PBA: 0x800}}, 0x40,
			"11 00 2000 02100000 02080000", "11 00 20c0 02100000 02080000"},
		{"MSI-X, the most", []pci.Capability{pci.MSIX{Vectors: 2048, BAR: 5}}, 0x40,
			"11 00 ff07 05000000 05800000", "11 00 ffc7 05000000 05800000"},

		{"vendor", []pci.Capability{pci.Vendor{Size: 8, Fields: []pci.Field{{Offset: 4, Width: 4, Reset: 0x11223344, Writable: 0xff}}}}, 0x40,
			"09 00 08 00 44332211", "09 00 08 00 ff332211"},
		{"subsystem", []pci.Capability{pci.Subsystem{Vendor: 0x1af4, ID: 0x1100}}, 0x40, "0d 00 0000 f41a 0011", ""},
		{"custom", []pci.Capability{pci.Custom{ID: 0x13, Size: 6}}, 0x40, "13 00 0000 0000", ""},

		// PCI Express Base 3.0 §7.10: header; uncorrectable status, mask,
		// severity; correctable status, mask; control; header log; nothing
		// (root); prefix log.
		{"AER", []pci.Capability{express, pci.AER{}}, 0x100,
			"01000200 00000000 00004000 30204600 00000000 00200000 00000000" +
				"00000000 00000000 00000000 00000000 00000000 00000000 00000000 00000000 00000000 00000000 00000000",
			"01000200 00000000 30f05f00 30f05f00 00000000 c1310000 00000000" +
				"00000000 00000000 00000000 00000000 00000000 00000000 00000000 00000000 00000000 00000000 00000000"},
		{"DSN", []pci.Capability{express, pci.DSN{Serial: 0x0123456789abcdef}}, 0x100, "03000100 efcdab89 67452301", ""},
		{"TPH", []pci.Capability{express, pci.TPH{}}, 0x100, "17000100 01000000 00000000", "17000100 01000000 00010000"},
		// Of the modes written, 7, there is none: that part is dropped.
		{"TPH, a table", []pci.Capability{express, pci.TPH{Vector: true, Device: true, Tags: 3}}, 0x100,
			"17000100 07020200 00000000 0000 0000 0000 0000", "17000100 07020200 00010000 ff00 ff00 ff00 0000"},
		{"VSEC", []pci.Capability{express, pci.VSEC{ID: 0x4242, Revision: 3, Size: 12, Fields: []pci.Field{{Offset: 8, Width: 4, Writable: 0xffff0000}}}}, 0x100,
			"0b000100 42 42 c300 00000000", "0b000100 4242c300 0000ffff"},
		{"custom, extended", []pci.Capability{express, pci.Custom{ID: 0x18, Extended: true, Version: 1, Size: 8}}, 0x100, "18000100 00000000", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := newRig(t, pci.Config{Capabilities: c.caps})
			want := unhex(t, c.is)
			if got := r.read(configRegion, uint64(c.at), len(want)); !bytes.Equal(got, want) {
				t.Errorf("bytes\n% x, want\n% x", got, want)
			}
			if c.after != "" {
				want = unhex(t, c.after)
			}
			// From the end, so that what a bit does early is seen.
			for i := len(want) - 1; i >= 0; i-- {
				r.write(configRegion, uint64(c.at+i), 0xff)
			}
			if got := r.read(configRegion, uint64(c.at), len(want)); !bytes.Equal(got, want) {
				t.Errorf("after ones\n% x, want\n% x", got, want)
			}
		})
	}
}

// TestTPHMode: modes that are there can be chosen.
func TestTPHMode(t *testing.T) {
	r := newRig(t, pci.Config{Capabilities: []pci.Capability{pci.Express{}, pci.TPH{Device: true, Tags: 1}}})
	for _, c := range []struct{ write, want uint64 }{{2, 2}, {1, 2}, {0x103, 0x102}, {0, 0}, {6, 0}} {
		r.set(0x108, 4, c.write)
		r.want("control", 0x108, 4, c.want)
	}
}

// TestHeaderBytes compares the header with PCI Local Bus 3.0 §6.1.
func TestHeaderBytes(t *testing.T) {
	r := newRig(t, pci.Config{
		Vendor: 0x1122, Device: 0x3344, Revision: 0x55, Class: 0x667788, SubsystemVendor: 0x99aa, Subsystem: 0xbbcc, Pin: 4,
		BARs: [6]pci.BAR{
			{Size: 16},
			{Kind: pci.IO, Size: 32},
			{Kind: pci.Memory64, Size: 1 << 33, Prefetchable: true},
			4: {Kind: pci.Memory64, Size: 1 << 20},
		},
		ROM:          make([]byte, 2049),
		Capabilities: []pci.Capability{pci.PM{}},
	})
	for _, c := range []struct{ what, bytes string }{
		{"fresh", `2211 4433 0000 1000 55 887766 00000000
			00000000 01000000 0c000000 00000000 04000000 00000000
			00000000 aa99 ccbb 00000000 40000000 00000000 00 04 0000`},
		{"after ones", `2211 4433 4705 1000 55 887766 ff000000
			f0ffffff e1ffffff 0c000000 feffffff 0400f0ff ffffffff
			00000000 aa99 ccbb 01f0ffff 40000000 00000000 ff 04 0000`},
	} {
		want := unhex(t, c.bytes)
		if got := r.read(configRegion, 0, 64); !bytes.Equal(got, want) {
			t.Errorf("%s:\n% x, want\n% x", c.what, got, want)
		}
		r.write(configRegion, 0, bytes.Repeat([]byte{0xff}, 64)...)
	}
	r = newRig(t, pci.Config{CommandMask: 0x0103})
	r.set(0x04, 2, 0xffff)
	r.want("Command", 0x04, 2, 0x0103)
	r.want("no capabilities", 0x06, 2, 0)
	r.want("no capabilities pointer", 0x34, 1, 0)
	if n := r.RegionSize(configRegion); n != 256 {
		t.Errorf("configuration space of %d bytes", n)
	}
}
