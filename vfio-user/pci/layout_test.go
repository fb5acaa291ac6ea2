// SPDX-License-Identifier: Apache-2.0

package pci_test

import (
	"fmt"
	"strings"
	"testing"

	"toebox/vfio-user/pci"
)

// chain walks both lists as system software does.
func (r *rig) chain() string {
	r.Helper()
	var found []string
	seen := map[uint64]bool{}
	for at := r.get(0x34, 1); at != 0; at = r.get(int(at)+1, 1) {
		if at < 0x40 || at > 0xfc || at%4 != 0 || seen[at] {
			r.Fatalf("capability at %#x after %s", at, found)
		}
		seen[at] = true
		found = append(found, fmt.Sprintf("%02x@%x", r.get(int(at), 1), at))
	}
	if r.RegionSize(configRegion) == 256 || r.get(0x100, 4) == 0 {
		return strings.Join(found, " ")
	}
	for at := uint64(0x100); at != 0; at = r.get(int(at), 4) >> 20 {
		if at < 0x100 || at%4 != 0 || seen[at] {
			r.Fatalf("extended capability at %#x after %s", at, found)
		}
		seen[at] = true
		found = append(found, fmt.Sprintf("%04x@%x", r.get(int(at), 2), at))
	}
	return strings.Join(found, " ")
}

func TestLayout(t *testing.T) {
	for _, c := range []struct {
		name string
		cfg  pci.Config
		want string
	}{
		{"nothing", pci.Config{}, ""},
		{"Express alone", pci.Config{Capabilities: []pci.Capability{&pci.Express{}}}, "10@40"},
		{"one after the other", pci.Config{Capabilities: []pci.Capability{
			pci.PM{}, pci.MSI{}, pci.Vendor{Size: 5}, pci.Vendor{Size: 3}, pci.Express{}, pci.TPH{}, pci.DSN{}, pci.VSEC{Size: 10}, pci.AER{},
		}}, "01@40 05@48 09@58 09@60 10@64 0017@100 0003@10c 000b@118 0001@124"},
		{"a gap that is too small", pci.Config{
			Fields:       []pci.Field{{Offset: 0x44, Width: 1}},
			Capabilities: []pci.Capability{pci.PM{}, pci.Custom{ID: 0x99, Size: 4}},
		}, "01@48 99@40"},
		{"around what has a place", pci.Config{
			Fields: []pci.Field{{Offset: 0x44, Width: 1}},
			Capabilities: []pci.Capability{
				pci.PM{}, pci.Subsystem{}, pci.At(0x50, pci.Express{}), pci.At(0x40, pci.Custom{ID: 0x99, Size: 4}),
				pci.DSN{}, pci.At(0x100, pci.TPH{}), pci.At(0x200, pci.AER{}),
			},
		}, "01@48 0d@8c 10@50 99@40 0017@100 0003@10c 0001@200"},
		{"to the last byte", pci.Config{
			Capabilities: []pci.Capability{pci.Custom{ID: 0x77, Size: 96}, pci.Vendor{Size: 96}},
		}, "77@40 09@a0"},
		{"to the last byte of all", pci.Config{Capabilities: []pci.Capability{
			pci.Express{}, pci.Custom{ID: 0x55, Extended: true, Version: 15, Size: 4096 - 0x100 - 8}, pci.VSEC{Size: 8},
		}}, "10@40 0055@100 000b@ff8"},
	} {
		t.Run(c.name, func(t *testing.T) {
			if got := newRig(t, c.cfg).chain(); got != c.want {
				t.Errorf("%s, want %s", got, c.want)
			}
		})
	}
}

// TestRefused: what cannot be declared, and what the error names.
func TestRefused(t *testing.T) {
	caps := func(c ...pci.Capability) pci.Config { return pci.Config{Capabilities: c} }
	bar := func(n int, b pci.BAR) pci.Config {
		var c pci.Config
		c.BARs[n] = b
		return c
	}
	field := func(f pci.Field) pci.Config { return pci.Config{Fields: []pci.Field{f}} }
	x := pci.Express{}
	for _, c := range []struct {
		name string
		cfg  pci.Config
		want string
	}{
		{"no capability", caps(nil), "no capability"},
		{"no capability at a place", caps(pci.At(0x40, nil)), "no capability"},
		{"twice", caps(pci.PM{}, pci.PM{}), "0x01: twice"},
		{"twice, one by a pointer", caps(pci.MSIX{Vectors: 1}, &pci.MSIX{Vectors: 1}), "0x11: twice"},
		{"in the header", caps(pci.At(0x3c, pci.PM{})), "cannot be at 0x3c"},
		{"over the end", caps(pci.At(0xfc, pci.PM{})), "cannot be at 0xfc"},
		{"not aligned", caps(pci.At(0x42, pci.PM{})), "cannot be at 0x42"},
		{"extended among the others", caps(x, pci.At(0xc0, pci.DSN{})), "cannot be at 0xc0"},
		{"over the end of all", caps(x, pci.DSN{}, pci.At(0xffc, pci.TPH{})), "cannot be at 0xffc"},
		{"the place is taken", caps(pci.At(0x40, pci.PM{}), pci.At(0x44, pci.MSI{})), "0x05 at 0x44: the place is taken"},
		{"no room", caps(pci.Vendor{Size: 100}, pci.Vendor{Size: 100}), "0x09: no room for 100 bytes"},
		{"no room, though more beyond", caps(x, pci.Vendor{Size: 36}, pci.Vendor{Size: 100}), "no room"},
		{"no room among the extended", caps(x, pci.VSEC{Size: 2000}, pci.VSEC{Size: 2000}), "0x000b: no room"},
		{"extended without Express", caps(pci.DSN{}), "without the PCI Express"},
		{"the first extended elsewhere", caps(x, pci.At(0x140, pci.DSN{})), "no extended capability at 0x100"},
		{"PME", caps(pci.PM{PME: 32}), "PME"},
		{"payload", caps(pci.Express{MaxPayload: 100}), "payload of 100"},
		{"payload", caps(pci.Express{MaxPayload: 8192}), "payload of 8192"},
		{"speed", caps(pci.Express{Speed: 5}), "speed 5"},
		{"width", caps(pci.Express{Width: -1}), "width -1"},
		{"MSI vectors", caps(pci.MSI{Vectors: 3}), "3 vectors"},
		{"MSI vectors", caps(pci.MSI{Vectors: 64}), "64 vectors"},
		{"MSI address", caps(pci.MSI{Address: 16}), "16 address bits"},
		{"MSI-X vectors", caps(pci.MSIX{}), "0 vectors"},
		{"MSI-X vectors", caps(pci.MSIX{Vectors: 2049}), "2049 vectors"},
		{"MSI-X BAR", caps(pci.MSIX{Vectors: 1, BAR: 6}), "BAR6"},
		{"MSI-X table", caps(pci.MSIX{Vectors: 1, Table: 4}), "table at 0x4"},
		{"MSI-X PBA", caps(pci.MSIX{Vectors: 1, PBA: -8}), "PBA at -0x8"},
		{"MSI-X far away", caps(pci.MSIX{Vectors: 1, Table: 1 << 31}), "table at 0x80000000"},
		{"MSI-X overlap", caps(pci.MSIX{Vectors: 2, PBA: 24}), "overlap"},
		{"MSI-X overlap", caps(pci.MSIX{Vectors: 65, Table: 16, PBA: 8}), "overlap"},
		{"MSI-X leaves the BAR", func() pci.Config {
			c := bar(1, pci.BAR{Size: 4096})
			c.Capabilities = []pci.Capability{pci.MSIX{Vectors: 33, BAR: 1, Table: 4096 - 33*16}}
			return c
		}(), "end at 0x1008"},
		{"MSI-X in I/O", func() pci.Config {
			c := bar(1, pci.BAR{Kind: pci.IO, Size: 4096})
			c.Capabilities = []pci.Capability{pci.MSIX{Vectors: 1, BAR: 1}}
			return c
		}(), "not memory"},
		{"vendor size", caps(pci.Vendor{Size: 2}), "2 bytes"},
		{"vendor field in the length", caps(pci.Vendor{Size: 8, Fields: []pci.Field{{Offset: 2, Width: 1}}}), "overlaps another"},
		{"vendor field in the header", caps(pci.Vendor{Size: 8, Fields: []pci.Field{{Offset: 1, Width: 1}}}), "overlaps another"},
		{"vendor field over the end", caps(pci.Vendor{Size: 8, Fields: []pci.Field{{Offset: 7, Width: 2}}}), "leave the 8"},
		{"VSEC size", caps(x, pci.VSEC{Size: 7}), "7 bytes"},
		{"VSEC revision", caps(x, pci.VSEC{Size: 8, Revision: 16}), "revision 16"},
		{"steering tags", caps(x, pci.TPH{Tags: -1}), "-1 steering tags"},
		{"steering tags", caps(x, pci.TPH{Tags: 1 << 40}), "steering tags"},
		{"modes without a table", caps(x, pci.TPH{Vector: true}), "0 steering tags"},
		{"custom of a type", caps(pci.Custom{ID: 0x05, Size: 24}), "type of its own"},
		{"custom id", caps(pci.Custom{ID: 0x100, Size: 24}), "0x100"},
		{"custom size", caps(pci.Custom{ID: 0x20, Size: 1}), "1 bytes"},
		{"custom version", caps(x, pci.Custom{ID: 0x20, Size: 8, Extended: true}), "version 0"},
		{"BAR size", bar(0, pci.BAR{Size: 24}), "BAR0: 24 bytes"},
		{"BAR too small", bar(0, pci.BAR{Size: 8}), "BAR0: 8 bytes"},
		{"BAR too large", bar(3, pci.BAR{Size: 1 << 32}), "BAR3"},
		{"BAR far too large", bar(0, pci.BAR{Kind: pci.Memory64, Size: 1 << 63}), "BAR0"},
		{"I/O too large", bar(0, pci.BAR{Kind: pci.IO, Size: 1 << 17}), "BAR0"},
		{"I/O prefetchable", bar(0, pci.BAR{Kind: pci.IO, Size: 16, Prefetchable: true}), "prefetchable"},
		{"kind of BAR", bar(0, pci.BAR{Kind: 3, Size: 16}), "kind 3"},
		{"the last with 64 bits", bar(5, pci.BAR{Kind: pci.Memory64, Size: 16}), "upper half"},
		{"in the upper half", pci.Config{BARs: [6]pci.BAR{{Kind: pci.Memory64, Size: 16}, {Size: 16}}}, "BAR1: is the upper half of BAR0"},
		{"ROM", pci.Config{ROM: make([]byte, 16<<20+1)}, "ROM of"},
		{"class", pci.Config{Class: 1 << 24}, "class"},
		{"pin", pci.Config{Pin: 5}, "pin 5"},
		{"field in the header", field(pci.Field{Offset: 0x30, Width: 4}), "field at 0x30: the place is taken"},
		{"field over the end", field(pci.Field{Offset: 0xfe, Width: 4}), "field at 0xfe"},
		{"field before the start", field(pci.Field{Offset: -1, Width: 4}), "the place is taken"},
		{"field far away", field(pci.Field{Offset: 1<<63 - 1, Width: 4}), "the place is taken"},
		{"field without width", field(pci.Field{Offset: 0x40}), "field at 0x40"},
		{"field too wide", field(pci.Field{Offset: 0x40, Width: 9}), "width 9"},
		{"field's bits", field(pci.Field{Offset: 0x40, Width: 2, Reset: 0x10000}), "bits beyond"},
		{"field both ways", field(pci.Field{Offset: 0x40, Width: 1, Writable: 3, W1C: 2}), "bits 0x2 both"},
		{"fields overlap", pci.Config{Fields: []pci.Field{{Offset: 0x40, Width: 4}, {Offset: 0x43, Width: 1}}}, "the place is taken"},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := pci.New(c.cfg)
			if err == nil || !strings.Contains(err.Error(), c.want) || !strings.HasPrefix(err.Error(), "pci: ") {
				t.Errorf("error %v, want one with %q", err, c.want)
			}
		})
	}
}
