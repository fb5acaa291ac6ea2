// SPDX-License-Identifier: Apache-2.0

package vfio

import (
	"bytes"
	"errors"
	"slices"
	"strings"
	"testing"

	"toebox/guestdriver"
	"toebox/guestdriver/internal/pool"
	"toebox/guestdriver/internal/sysfs/sysfstest"
)

func TestGroup(t *testing.T) {
	s := sysfstest.New(t, sysfstest.Machine())
	if g, err := group(s, "0000:00:05.0"); g != "3" || err != nil {
		t.Errorf("got %q, %v", g, err)
	}
	for bdf, want := range map[string]string{
		"0000:00:06.0":    "no IOMMU group",
		"0000:00:08.0":    "no such file",
		"../../etc":       "not a PCI address",
		"0000:00:05.0/..": "not a PCI address",
		"00:05.0":         "not a PCI address",
	} {
		if _, err := group(s, bdf); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", bdf, err, want)
		}
	}
}

// TestLayout compares with the bytes that a C program sees on a little-endian
// machine.
func TestLayout(t *testing.T) {
	for _, c := range []struct {
		name      string
		got, want []byte
	}{
		{"vfio_region_info", regionInfoRequest(7), []byte{
			32, 0, 0, 0, // argsz
			0, 0, 0, 0, // flags
			7, 0, 0, 0, // index
			0, 0, 0, 0, // cap_offset
			0, 0, 0, 0, 0, 0, 0, 0, // size
			0, 0, 0, 0, 0, 0, 0, 0, // offset
		}},
		{"vfio_irq_info", irqInfoRequest(2), []byte{16, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0}},
		{"vfio_irq_set", irqSetRequest(2, []int32{9, 300}), []byte{
			28, 0, 0, 0, // argsz
			0x24, 0, 0, 0, // flags: DATA_EVENTFD | ACTION_TRIGGER
			2, 0, 0, 0, // index
			0, 0, 0, 0, // start
			2, 0, 0, 0, // count
			9, 0, 0, 0,
			0x2c, 1, 0, 0,
		}},
		{"vfio_iommu_type1_dma_map", dmaMapRequest(0x7f0000001000, 0x100000000, 0x200000), []byte{
			32, 0, 0, 0, // argsz
			3, 0, 0, 0, // flags: READ | WRITE
			0, 0x10, 0, 0, 0, 0x7f, 0, 0, // vaddr
			0, 0, 0, 0, 1, 0, 0, 0, // iova
			0, 0, 0x20, 0, 0, 0, 0, 0, // size
		}},
		{"vfio_iommu_type1_dma_unmap", dmaUnmapRequest(0x100000000, 0x200000), []byte{
			24, 0, 0, 0, // argsz
			0, 0, 0, 0, // flags
			0, 0, 0, 0, 1, 0, 0, 0, // iova
			0, 0, 0x20, 0, 0, 0, 0, 0, // size
		}},
	} {
		if !bytes.Equal(c.got, c.want) {
			t.Errorf("%s:\n got %v\nwant %v", c.name, c.got, c.want)
		}
	}
	r := parseRegionInfo([]byte{
		32, 0, 0, 0, 7, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
		0, 0, 1, 0, 0, 0, 0, 0, // size 64 KiB
		0, 0, 0, 0, 0, 1, 0, 0, // offset 1 << 40
	})
	if r != (regionInfo{flags: 7, size: 65536, offset: 1 << 40}) {
		t.Errorf("region info %+v", r)
	}
	if n := irqCount([]byte{16, 0, 0, 0, 9, 0, 0, 0, 2, 0, 0, 0, 33, 0, 0, 0}); n != 33 {
		t.Errorf("irq count %d", n)
	}
}

// iommuInfo is struct vfio_iommu_type1_info of an Intel IOMMU: a migration
// capability, then the IOVA ranges around the MSI area.
func iommuInfo() []byte {
	return []byte{
		88, 0, 0, 0, // argsz
		3, 0, 0, 0, // flags: PGSIZES | CAPS
		0, 0xf0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, // iova_pgsizes
		24, 0, 0, 0, // cap_offset
		0, 0, 0, 0,
		2, 0, 1, 0, 40, 0, 0, 0, // 24: id 2, version 1, next 40
		0, 0, 0, 0, 0, 0, 0, 0,
		1, 0, 1, 0, 0, 0, 0, 0, // 40: id 1, version 1, next 0
		2, 0, 0, 0, 0, 0, 0, 0, // nr_iovas 2
		0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 0xdf, 0xfe, 0, 0, 0, 0,
		0, 0, 0xf0, 0xfe, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0x7f, 0, 0, 0,
	}
}

func TestIOVARanges(t *testing.T) {
	got, err := parseIOVARanges(iommuInfo())
	want := []iovaRange{{0, 0xfedfffff}, {0xfef00000, 0x7fffffffff}}
	if err != nil || len(got) != 2 || got[0] != want[0] || got[1] != want[1] {
		t.Errorf("got %x, %v, want %x", got, err, want)
	}
	for name, change := range map[string]func([]byte) []byte{
		"offset beyond": func(b []byte) []byte { b[16] = 200; return b },
		"loop":          func(b []byte) []byte { b[28] = 24; return b },
		"too many":      func(b []byte) []byte { b[48] = 3; return b },
		"cut off":       func(b []byte) []byte { return b[:50] },
	} {
		if r, err := parseIOVARanges(change(iommuInfo())); err == nil {
			t.Errorf("%s: got %x", name, r)
		}
	}
	none := iommuInfo()
	none[4] = 1
	if r, err := parseIOVARanges(none); len(r) != 0 || err != nil {
		t.Errorf("without capabilities: %x, %v", r, err)
	}
}

func TestIOVAs(t *testing.T) {
	a := newIOVAs([]iovaRange{{0, 0xfedfffff}, {0xfef00000, 0x1_003f_ffff}}, ^uint64(0))
	for i, c := range []struct{ size, align, want uint64 }{
		{0x1000, 0x1000, 0x1_0000_0000},       // above 4 GiB first
		{0x20_0000, 0x20_0000, 0x1_0020_0000}, // aligned; this fills the range
		{0x1000, 0x1000, 0x10_0000},           // then low, not page 0
		{0xff00_0000, 0x20_0000, 0},           // too large by the start
		{0xee00_0000, 0x20_0000, 0x20_0000},   // exactly aligned
	} {
		got, err := a.take(c.size, c.align)
		if got != c.want || (err != nil) != (c.want == 0) {
			t.Errorf("%d: take(%#x, %#x) = %#x, %v, want %#x", i, c.size, c.align, got, err, c.want)
		}
	}
	if got, err := newIOVAs(nil, ^uint64(0)).take(0x1000, 0x1000); got != 0x1_0000_0000 || err != nil {
		t.Errorf("without ranges: %#x, %v", got, err)
	}
	full := newIOVAs([]iovaRange{{1 << 63, ^uint64(0)}}, ^uint64(0))
	if _, err := full.take(1<<63, 1<<62); err != nil {
		t.Errorf("the last byte of the space: %v", err)
	}
	if _, err := full.take(1, 1); !errors.Is(err, errNoIOVA) {
		t.Errorf("when empty: %v", err)
	}
}

// TestIOVAsGive: what is given back joins its neighbours and is given again,
// what lies above 4 GiB first.
func TestIOVAsGive(t *testing.T) {
	a := newIOVAs([]iovaRange{{0x10_0000, 0x10_2fff}, {0xffff_f000, 0x1_0000_2fff}}, ^uint64(0))
	whole := slices.Clone(a.ranges)
	var got []uint64
	for range 7 {
		v, err := a.take(0x1000, 0x1000)
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, v)
	}
	if want := []uint64{0x1_0000_0000, 0x1_0000_1000, 0x1_0000_2000, 0x10_0000, 0x10_1000, 0x10_2000, 0xffff_f000}; !slices.Equal(got, want) {
		t.Fatalf("got %#x, want %#x", got, want)
	}
	for _, i := range []int{6, 1, 4, 0, 3, 2, 5} {
		a.give(got[i], 0x1000)
	}
	if !slices.Equal(a.ranges, whole) {
		t.Errorf("at last %#x, at first %#x", a.ranges, whole)
	}
	for range 3 { // the same again: nothing is lost
		v, err := a.take(0x3000, 0x1000)
		if v != 0x1_0000_0000 || err != nil {
			t.Errorf("%#x, %v", v, err)
		}
		a.give(v, 0x3000)
	}
}

// A function of few address bits gets low IOVAs, and none beyond its own.
func TestIOVAsBelowMask(t *testing.T) {
	for name, allowed := range map[string][]iovaRange{
		"known":   {{0, 0xfedfffff}, {0xfef00000, 0x7fffffffff}},
		"unknown": nil,
	} {
		a := newIOVAs(allowed, 1<<28-1)
		if got, err := a.take(0x20_0000, 0x20_0000); got != 0x20_0000 || err != nil {
			t.Errorf("%s: %#x, %v", name, got, err)
		}
		if got, err := a.take(0xfc0_0000, 0x20_0000); got != 0x40_0000 || err != nil {
			t.Errorf("%s: all the rest: %#x, %v", name, got, err)
		}
		if got, err := a.take(0x1000, 0x1000); !errors.Is(err, errNoIOVA) {
			t.Errorf("%s: beyond the mask: %#x, %v", name, got, err)
		}
	}
	if got, err := newIOVAs([]iovaRange{{0xfef00000, 0x7fffffffff}}, 1<<33-1).take(1<<32, 1<<32); got != 1<<32 || err != nil {
		t.Errorf("33 bits: %#x, %v", got, err)
	}
}

// What is closed gives no memory and no interrupts, and late accesses do not
// fault.
func TestClosed(t *testing.T) {
	mem, err := pool.MapPages(pool.PageSize)
	if err != nil {
		t.Fatal(err)
	}
	defer unmap(mem)
	b := &Bus{container: -1, group: -1, device: -1, iovas: newIOVAs(nil, ^uint64(0))}
	b.bars[0] = bar{mem: mem, info: regionInfo{size: pool.PageSize}}
	b.Write32(0, 0, 7)
	for range 2 {
		if err := b.Close(); err != nil {
			t.Error(err)
		}
	}
	if v := b.Read32(0, 0); v != 0 {
		t.Errorf("a register after close is %#x", v)
	}
	if _, err := b.AllocDMA(1); !errors.Is(err, errClosed) {
		t.Errorf("alloc after close: %v", err)
	}
	if _, err := b.MapDMA(mem); !errors.Is(err, errClosed) {
		t.Errorf("map after close: %v", err)
	}
	if err := b.UnmapDMA(guestdriver.DMA{}); err != nil {
		t.Errorf("unmap after close: %v", err)
	}
	if err := b.FreeDMA(guestdriver.DMA{}); err != nil {
		t.Errorf("free after close: %v", err)
	}
	if err := b.Wait(0); !errors.Is(err, errClosed) {
		t.Errorf("wait after close: %v", err)
	}
}

func TestMMIO(t *testing.T) {
	mem, err := pool.MapPages(pool.PageSize)
	if err != nil {
		t.Fatal(err)
	}
	defer unmap(mem)
	b := &Bus{container: -1, group: -1, device: -1}
	b.bars[0] = bar{mem: mem, info: regionInfo{size: pool.PageSize}}
	b.Write32(0, 8, 0x11223344)
	if v := b.Read32(0, 8); v != 0x11223344 || mem[7] != 0 || mem[12] != 0 {
		t.Errorf("read %#x, around %x", v, mem[:16])
	}
	if n := testing.AllocsPerRun(10, func() { b.Write32(0, 16, b.Read32(0, 8)) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
	for _, off := range []uint32{2, pool.PageSize, pool.PageSize - 2, ^uint32(0), ^uint32(3)} {
		b.Write32(0, off, 1)
		if v := b.Read32(0, off); v != ^uint32(0) {
			t.Errorf("offset %#x: %#x", off, v)
		}
	}
	for _, n := range []int{-1, 1, 6} {
		b.Write32(n, 0, 1)
		if v := b.Read32(n, 0); v != ^uint32(0) {
			t.Errorf("BAR %d: %#x", n, v)
		}
	}
	for _, c := range [][2]int{{-1, 1}, {0, 3}, {2, 4}, {4096, 1}} {
		b.config.size = 4096
		if _, err := b.ReadConfig(c[0], c[1]); err == nil {
			t.Errorf("config %v read", c)
		}
		if err := b.WriteConfig(c[0], c[1], 0); err == nil {
			t.Errorf("config %v written", c)
		}
	}
}
