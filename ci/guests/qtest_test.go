// SPDX-License-Identifier: Apache-2.0

package guests

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	adapter "toebox/ci/rig"
	"toebox/images/qtest"
	"toebox/images/toolchain/toolchaintest"
	"toebox/vdev/device"
	vfiouser "toebox/vfio-user"
	"toebox/vfio-user/edu"
	"toebox/vfio-user/sample"
)

const (
	ram        = 64 << 20 // of a machine without a guest
	adapterBAR = 0xe0000000
	eduBAR     = 0xe1000000
	sampleBAR0 = 0xe2000000
	sampleBAR1 = 0xe2100000

	// Registers of QEMU's intel-iommu (VT-d specification §10.4).
	vtdBase       = 0xfed90000
	vtdCommand    = vtdBase + 0x18 // bit 31: translate; bit 30: take the root table
	vtdStatus     = vtdBase + 0x1c // answers each bit
	vtdRoot       = vtdBase + 0x20
	vtdContext    = vtdBase + 0x28 // bits 63 and 61: forget all contexts
	vtdIOTLB      = vtdBase + 0xf8 // bits 63 and 60: forget all translations
	vtdTranslate  = 1 << 31
	vtdTakeRoot   = 1 << 30
	contextWidth3 = 1 // three levels of tables, 39 bits

	// Guest physical addresses of its tables.
	rootTable    = 0x300000
	contextTable = 0x301000
	tableTop     = 0x302000 // 1 GiB an entry
	tableMiddle  = 0x303000 // 2 MiB
	tableBottom  = 0x304000 // 4 KiB

	// IOVAs within what the teaching device can address, beyond the RAM.
	smallIOVA = 0x8000000 // of one page
	largeIOVA = 0x8200000 // of one of 2 MiB
)

// The devices' places.
var adapterSlot, eduSlot, sampleSlot = qtest.NewBDF(0, 5, 0), qtest.NewBDF(0, 6, 0), qtest.NewBDF(0, 7, 0)

// bench is a machine without a guest, which the test plays.
type bench struct {
	*qtest.Machine
	t       *testing.T
	adapter *device.Device
	edu     *edu.Device
	sample  *sample.Device
}

// startBench starts a machine with the devices behind an IOMMU, "" for none.
func startBench(t *testing.T, iommu string) *bench {
	t.Helper()
	dir, err := os.MkdirTemp("", "tbq") // short enough for sockets
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	b := &bench{t: t}
	if b.adapter, err = device.New(device.Config{Firmware: adapter.Firmware, Net: device.Net{Mode: device.ModeNAT}, Seed: 1}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { b.adapter.Close() })
	b.edu, b.sample = newCards(t)
	args := []string{}
	if iommu != "" {
		args = append(args, "-device", iommu)
	}
	for i, s := range []*vfiouser.Server{b.adapter.Server(), b.edu.Server(), b.sample.Server()} {
		path := filepath.Join(dir, fmt.Sprint("d", i))
		serve(t, path, s.Serve)
		args = append(args, "-device", deviceArg(5+i, path))
	}
	if b.Machine, err = qtest.Start(t.Context(), qtest.Config{Command: toolchaintest.QEMU(t).Command, Dir: dir, Memory: ram, Args: args}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := b.Machine.Close(); err != nil {
			t.Error(err)
		}
		if log := b.Log(); log != "" {
			t.Errorf("QEMU says: %s", log)
		}
		for name, s := range map[string]*vfiouser.Server{"adapter": b.adapter.Server(), "edu": b.edu.Server(), "sample": b.sample.Server()} {
			if s := s.Stats(); s.Errors != 0 || s.NoReplyFailed != 0 || s.StrayReplies != 0 || s.DMAMessageErrors != 0 {
				t.Errorf("the server of %s refused messages, or was refused: %+v", name, s)
			}
		}
	})
	return b
}

func (b *bench) check(err error) {
	b.t.Helper()
	if err != nil {
		b.t.Fatalf("%v\nQEMU says: %s", err, b.Log())
	}
}

func (b *bench) read32(addr uint64) uint32 {
	b.t.Helper()
	v, err := b.Read32(addr)
	b.check(err)
	return v
}

func (b *bench) write32(addr uint64, v uint32) {
	b.t.Helper()
	b.check(b.Write32(addr, v))
}

func (b *bench) write64(addr, v uint64) {
	b.t.Helper()
	b.check(b.Write64(addr, v))
}

// poll waits for something in steps that take a while themselves.
func (b *bench) poll(what string, met func() bool) {
	b.t.Helper()
	for deadline := time.Now().Add(patience); !met(); {
		if time.Now().After(deadline) {
			b.t.Fatalf("waited in vain for %s; QEMU says: %s", what, b.Log())
		}
	}
}

// place does what firmware does after a reset, and finds the devices.
func (b *bench) place() {
	b.t.Helper()
	b.check(b.WriteConfig(sampleSlot, 0x14, 4, sampleBAR1))
	for slot, bar := range map[qtest.BDF]uint32{adapterSlot: adapterBAR, eduSlot: eduBAR, sampleSlot: sampleBAR0} {
		b.check(b.WriteConfig(slot, 0x10, 4, bar))
		b.check(b.WriteConfig(slot, 0x04, 2, 6)) // memory space, bus master
	}
	for slot, want := range map[qtest.BDF]uint32{adapterSlot: 0x74221234, eduSlot: 0x11e81234, sampleSlot: 0xbeefdead} {
		if id, err := b.ReadConfig(slot, 0, 4); id != want || err != nil {
			b.t.Errorf("ids %#x, %v, want %#x", id, err, want)
		}
	}
	b.write32(adapterBAR+0x80, 0x600dcafe) // SCRATCH
	if v := b.read32(adapterBAR + 0x80); v != 0x600dcafe {
		b.t.Errorf("SCRATCH of the adapter is %#x", v)
	}
	if v := b.read32(eduBAR); v != 0x010000ed {
		b.t.Errorf("identification of edu is %#x", v)
	}
	if v := b.read32(sampleBAR0); v == 0 || v == 0xffffffff {
		b.t.Errorf("the clock of sample stands at %#x", v)
	}
	b.write32(sampleBAR1+0x2ffc, 0x600dcafe) // its memory's last word
	b.write32(sampleBAR1+0x3000, 0x600dcafe)
	if last, beyond := b.read32(sampleBAR1+0x2ffc), b.read32(sampleBAR1+0x3000); last != 0x600dcafe || beyond != 0 {
		b.t.Errorf("memory of sample ends with %#x, and then %#x", last, beyond)
	}
}

// reset resets the machine.
func (b *bench) reset() {
	b.t.Helper()
	b.check(b.Out8(0xcf9, 6))
	for _, slot := range []qtest.BDF{adapterSlot, eduSlot, sampleSlot} {
		b.poll("the reset", func() bool { v, err := b.ReadConfig(slot, 0x10, 4); b.check(err); return v&^0xf == 0 })
	}
}

// through has edu fetch a page by one IOVA and store it by another, and compares at
// the physical addresses that these lead to.
func (b *bench) through(from, to, fromPhysical, toPhysical uint64, seed byte) {
	b.t.Helper()
	want := make([]byte, 4096)
	for i := range want {
		want[i] = byte(i)*7 + byte(i>>8) + seed
	}
	_, err := b.RAM.WriteAt(want, int64(fromPhysical))
	b.check(err)
	for _, r := range [][3]uint64{{from, 0x40000, 1}, {0x40000, to, 3}} { // source, destination, command
		b.write64(eduBAR+0x80, r[0])
		b.write64(eduBAR+0x88, r[1])
		b.write64(eduBAR+0x90, 4096)
		b.write64(eduBAR+0x98, r[2])
		b.poll("the transfer", func() bool { return b.read32(eduBAR+0x98)&1 == 0 })
	}
	got := make([]byte, 4096)
	_, err = b.RAM.ReadAt(got, int64(toPhysical))
	b.check(err)
	if !bytes.Equal(got, want) {
		b.t.Errorf("from %#x to %#x: %#x holds % .16x, want % .16x", from, to, toPhysical, got, want)
	}
}

// TestAttach attaches the devices behind each kind of IOMMU, as firmware finds it,
// and resets the machine.
func TestAttach(t *testing.T) {
	for name, iommu := range map[string]string{
		"none": "", "intel": "intel-iommu,caching-mode=on", "virtio": "virtio-iommu-pci,addr=2.0",
	} {
		t.Run(name, func(t *testing.T) {
			b := startBench(t, iommu)
			for round := range byte(3) {
				b.place()
				b.through(0x200000, 0x210000, 0x200000, 0x210000, round)
				b.reset()
			}
		})
	}
}

// entry writes an entry of the IOMMU's tables.
func (b *bench) entry(at, v uint64) {
	b.t.Helper()
	_, err := b.RAM.WriteAt(binary.LittleEndian.AppendUint64(nil, v), int64(at))
	b.check(err)
}

// translate has the intel-iommu lead edu's two IOVAs to physical addresses.
func (b *bench) translate(small, large uint64) {
	b.t.Helper()
	const readWrite, present, huge = 3, 1, 1 << 7
	b.entry(tableTop, tableMiddle|readWrite)
	b.entry(tableMiddle+8*(smallIOVA>>21), tableBottom|readWrite)
	b.entry(tableMiddle+8*(largeIOVA>>21), large|huge|readWrite)
	b.entry(tableBottom, small|readWrite)
	b.entry(rootTable, contextTable|present)              // bus 0
	b.entry(contextTable+16*(6<<3), tableTop|present)     // function 6.0
	b.entry(contextTable+16*(6<<3)+8, 1<<8|contextWidth3) // domain 1
	b.write64(vtdRoot, rootTable)
	b.write32(vtdCommand, vtdTakeRoot)
	b.poll("the root table", func() bool { return b.read32(vtdStatus)&vtdTakeRoot != 0 })
	b.write64(vtdContext, 1<<63|1<<61)
	b.write64(vtdIOTLB, 1<<63|1<<60)
	b.write32(vtdCommand, vtdTranslate)
	b.poll("translation", func() bool { return b.read32(vtdStatus)&vtdTranslate != 0 })
}

// TestResetUnderMaps resets a machine whose IOMMU translates for a device. QEMU then
// takes away all IOVAs in powers of two, whatever is in them, and the next guest
// means other memory by the same IOVAs.
func TestResetUnderMaps(t *testing.T) {
	b := startBench(t, "intel-iommu,caching-mode=on")
	dma := b.edu.Server().DMA()
	const both = vfiouser.ProtRead | vfiouser.ProtWrite
	b.reset()
	fresh := b.edu.Server().Stats()
	b.place()
	for round := range uint64(4) {
		small, large := 0x400000+round<<12, 0x800000+round<<21
		b.translate(small, large)
		before := b.edu.Server().Stats()
		if before.DMAMapped != 2 || !dma.Backed(smallIOVA, 0x1000, both) || !dma.Backed(largeIOVA, 0x200000, both) || dma.Backed(0x200000, 1, both) {
			t.Fatalf("round %d: %d maps, or the wrong ones", round, before.DMAMapped)
		}
		b.through(smallIOVA, largeIOVA+0x1ff000, small, large+0x1ff000, byte(round))
		b.through(largeIOVA, smallIOVA, large, small, byte(round)+100)
		b.reset()
		after := b.edu.Server().Stats()
		if dma.Backed(smallIOVA, 1, vfiouser.ProtRead) || dma.Backed(largeIOVA, 1, vfiouser.ProtRead) {
			t.Errorf("round %d: a map outlives the reset", round)
		}
		if after.DMAMapped != fresh.DMAMapped {
			t.Errorf("round %d: %d maps after the reset, %d after the first one", round, after.DMAMapped, fresh.DMAMapped)
		}
		if after.DMAUnmapsWide == before.DMAUnmapsWide {
			t.Errorf("round %d: no unmap was wider than what was in its range", round)
		}
		b.place()
		b.through(0x200000, 0x210000, 0x200000, 0x210000, byte(round)+50)
	}
	t.Logf("%+v", b.edu.Server().Stats())
}
