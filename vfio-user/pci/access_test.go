// SPDX-License-Identifier: Apache-2.0

package pci_test

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"syscall"
	"testing"

	vfiouser "toebox/vfio-user"
	"toebox/vfio-user/pci"
)

// TestOutside: what leaves a region, or names one that is not there, is EINVAL
// and reaches nobody.
func TestOutside(t *testing.T) {
	none := func(uint64, []byte) { t.Error("the device was asked") }
	r := newRig(t, pci.Config{
		BARs: [6]pci.BAR{{Size: 4096, Read: none, Write: none}, {Kind: pci.IO, Size: 32, Read: none, Write: none}},
		ROM:  []byte{1}, IgnoreCommand: true,
	})
	for _, c := range []struct {
		region int
		offset uint64
		n      int
	}{
		{0, 4096, 1}, {0, 4093, 4}, {0, 0, 4097}, {0, 1 << 63, 1}, {0, ^uint64(0), 1}, {0, ^uint64(0) - 3, 8}, {0, 4097, 0},
		{1, 32, 1}, {1, 0, 33}, {2, 0, 1}, {2, 0, 0}, {5, 0, 4}, {6, 2048, 1}, {6, 2047, 2},
		{7, 256, 1}, {7, 255, 2}, {7, 0, 257}, {7, ^uint64(0), 2}, {8, 0, 1}, {9, 0, 1}, {-1, 0, 1}, {1 << 40, 0, 1},
	} {
		p := make([]byte, c.n)
		if err := r.ReadRegion(c.region, c.offset, p); !errors.Is(err, syscall.EINVAL) {
			t.Errorf("read of %d bytes at %#x of region %d: %v", c.n, c.offset, c.region, err)
		}
		if err := r.WriteRegion(c.region, c.offset, p); !errors.Is(err, syscall.EINVAL) {
			t.Errorf("write of %d bytes at %#x of region %d: %v", c.n, c.offset, c.region, err)
		}
	}
	if err := r.WriteRegion(6, 0, []byte{1}); !errors.Is(err, syscall.EINVAL) {
		t.Errorf("write of ROM: %v", err)
	}
	for _, c := range []struct {
		region int
		offset uint64
	}{{0, 4096}, {0, 0}, {6, 2048}, {7, 256}} {
		r.read(c.region, c.offset, 0)
	}
}

func TestROM(t *testing.T) {
	rom := bytes.Repeat([]byte{0x55, 0xaa}, 1500)
	r := newRig(t, pci.Config{ROM: rom})
	if got := r.read(6, 0, 4096); !bytes.Equal(got, append(slices.Clone(rom), bytes.Repeat([]byte{0xff}, 1096)...)) {
		t.Errorf("ROM % x", got)
	}
	if got := r.read(6, 2998, 4); !bytes.Equal(got, []byte{0x55, 0xaa, 0xff, 0xff}) {
		t.Errorf("the end of the ROM % x", got)
	}
}

// TestGates: BARs answer as Command and the power state say, each kind by its
// own bit.
func TestGates(t *testing.T) {
	for _, ignore := range []bool{false, true} {
		var seen []string
		bar := func(name string, kind pci.BARKind) pci.BAR {
			return pci.BAR{Kind: kind, Size: 32,
				Read:  func(at uint64, p []byte) { seen = append(seen, fmt.Sprint(name, " r ", at)); clear(p) },
				Write: func(at uint64, p []byte) { seen = append(seen, fmt.Sprint(name, " w ", at)) },
			}
		}
		r := newRig(t, pci.Config{
			BARs:          [6]pci.BAR{bar("memory", pci.Memory64), {}, bar("io", pci.IO), {Size: 16}},
			Capabilities:  []pci.Capability{pci.PM{NoSoftReset: true, D1: true}},
			IgnoreCommand: ignore,
		})
		for _, c := range []struct {
			command, power uint64
			memory, io     bool
		}{{0, 0, false, false}, {1, 0, false, true}, {2, 0, true, false}, {3, 0, true, true}, {3, 3, false, false}, {3, 1, false, false}, {3, 0, true, true}} {
			seen = nil
			r.set(0x04, 2, c.command)
			r.set(0x44, 2, c.power)
			var want []string
			for i, on := range []bool{c.memory || ignore && c.power == 0, c.io || ignore && c.power == 0} {
				value := byte(0xff)
				if on {
					name := []string{"memory", "io"}[i]
					want = append(want, name+" r 5", name+" w 6")
					value = 0
				}
				if got := r.read(2*i, 5, 4); got[0] != value || got[3] != value {
					t.Errorf("%+v: BAR%d reads % x", c, 2*i, got)
				}
				r.write(2*i, 6, 1)
			}
			if !slices.Equal(seen, want) {
				t.Errorf("%+v, ignored %v: the device saw %q, want %q", c, ignore, seen, want)
			}
			if s := r.State(); s.Memory != c.memory || s.IO != c.io || int(s.Power) != int(c.power) || s.Memory != r.Memory() {
				t.Errorf("%+v: state %+v", c, s)
			}
			r.write(3, 0, 1, 2, 3)
			if got := r.read(3, 0, 3); c.memory && !bytes.Equal(got, []byte{0, 0, 0}) {
				t.Errorf("a BAR with nothing behind it reads % x", got)
			}
		}
		r.Close()
		seen = nil
		if got := r.read(0, 0, 1); got[0] != 0xff || len(seen) != 0 {
			t.Errorf("closed: %x, %q", got, seen)
		}
	}
}

// TestTableInBAR: an access that runs over table, pending bits and the device
// is cut up, and each gets its own.
func TestTableInBAR(t *testing.T) {
	type call struct {
		at uint64
		n  int
	}
	var reads, writes []call
	r := newRig(t, pci.Config{
		BARs: [6]pci.BAR{1: {
			Size: 4096,
			Read: func(at uint64, p []byte) {
				reads = append(reads, call{at, len(p)})
				copy(p, bytes.Repeat([]byte{0xdd}, len(p)))
			},
			Write: func(at uint64, p []byte) { writes = append(writes, call{at, len(p)}) },
		}},
		// Pending bits at 0x20 to 0x28, the table at 0x40 to 0x70.
		Capabilities: []pci.Capability{pci.MSIX{Vectors: 3, BAR: 1, Table: 0x40, PBA: 0x20}},
	})
	r.set(0x04, 2, 6)
	dd, zero := bytes.Repeat([]byte{0xdd}, 256), make([]byte, 256)
	fresh := append(slices.Clone(zero[:12]), 1, 0, 0, 0) // an entry: masked
	want := slices.Concat(dd[:0x20], zero[:8], dd[:0x18], fresh, fresh, fresh, dd[:0x10])
	if got := r.read(1, 0, 0x80); !bytes.Equal(got, want) {
		t.Errorf("BAR\n% x, want\n% x", got, want)
	}
	r.write(1, 0, bytes.Repeat([]byte{0xff}, 0x80)...)
	pieces := []call{{0, 0x20}, {0x28, 0x18}, {0x70, 0x10}}
	if !slices.Equal(reads, pieces) || !slices.Equal(writes, pieces) {
		t.Errorf("the device saw %v and %v, want %v", reads, writes, pieces)
	}
	entry := []byte{0xfc, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 1, 0, 0, 0}
	want = slices.Concat(dd[:0x20], zero[:8], dd[:0x18], entry, entry, entry, dd[:0x10])
	if got := r.read(1, 0, 0x80); !bytes.Equal(got, want) {
		t.Errorf("BAR after ones\n% x, want\n% x", got, want)
	}
	// Every cut, every length up to 8.
	for at := range uint64(0x78) {
		for n := 1; n <= 8; n++ {
			if got := r.read(1, at, n); !bytes.Equal(got, want[at:][:n]) {
				t.Errorf("%d bytes at %#x: % x, want % x", n, at, got, want[at:][:n])
			}
		}
	}
	// A bus reset puts the table back.
	if err := r.Reset(); err != nil {
		t.Fatal(err)
	}
	r.set(0x04, 2, 6)
	if got := r.read(1, 0x50, 16); !bytes.Equal(got, fresh) {
		t.Errorf("entry after reset % x", got)
	}
}

// TestOwnBAR: an MSI-X BAR that is not declared has the size it needs.
func TestOwnBAR(t *testing.T) {
	for _, c := range []struct {
		msix pci.MSIX
		want uint64
	}{
		{pci.MSIX{Vectors: 1, BAR: 4}, 4096},
		{pci.MSIX{Vectors: 2048, BAR: 4}, 65536},
		{pci.MSIX{Vectors: 1, BAR: 4, Table: 8192}, 16384},
	} {
		r := newRig(t, pci.Config{Capabilities: []pci.Capability{pci.At(0x70, c.msix)}})
		s := r.ServerConfig()
		if n := r.RegionSize(4); n != c.want || s.Regions[4].Size != c.want || s.IRQs[vfiouser.IRQMSIX].Count != uint32(c.msix.Vectors) {
			t.Errorf("%+v: BAR of %d bytes, %+v", c.msix, n, s)
		}
		r.set(0x20, 4, 0xffffffff)
		r.want("size", 0x20, 4, -c.want&0xffffffff)
		r.set(0x04, 2, 2)
		r.read(4, 0, int(c.want)) // all of it answers
	}
}

func TestServerConfig(t *testing.T) {
	c := newRig(t, pci.Config{
		BARs: [6]pci.BAR{{Size: 64}, {}, {Kind: pci.IO, Size: 8}}, ROM: []byte{1}, Pin: 1,
		Capabilities: []pci.Capability{pci.Express{}, pci.MSI{Vectors: 4}},
	}).ServerConfig()
	const rw = vfiouser.RegionRead | vfiouser.RegionWrite
	want := vfiouser.Config{Resettable: true}
	want.Regions = [9]vfiouser.Region{0: {Size: 64, Flags: rw}, 2: {Size: 8, Flags: rw}, 6: {Size: 2048, Flags: 1}, 7: {Size: 4096, Flags: rw}}
	want.IRQs = [5]vfiouser.IRQ{{Count: 1, Flags: 7}, {Count: 4, Flags: 1}, {}, {Count: 1, Flags: 1}, {}}
	if fmt.Sprint(c) != fmt.Sprint(want) {
		t.Errorf("%+v, want\n%+v", c, want)
	}
}
