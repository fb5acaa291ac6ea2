// SPDX-License-Identifier: Apache-2.0

package edu

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"testing"
)

const steps = 1500

// What the two devices are known to differ in, and how the test steers clear:
//
//   - Transfers that leave the device's buffer: QEMU's accesses its own heap out
//     of bounds (or, in older versions, exits). Never asked for here; the unit
//     tests of vfio-user/edu say what ours does.
//   - Transfers from memory that does not answer on to memory that does: QEMU
//     goes on behind the gap, ours ends at it. Only the reverse is asked for.
//   - The time that things take: QEMU's transfers end 100 ms of virtual time
//     after their start, ours when they are done. Both are waited for, and
//     nothing is asked while they run.
//   - QEMU clears the busy bit of a factorial before it raises the interrupt,
//     ours does both at once. The test acknowledges the interrupt before and
//     waits for it after.
//   - BAR0 lies where the test has put it.

// TestSameAsQEMU does random operations to both devices.
func TestSameAsQEMU(t *testing.T) {
	seeds := []uint64{1, rand.Uint64()}
	if s := os.Getenv("TOEBOX_SEED"); s != "" {
		v, err := strconv.ParseUint(s, 0, 64)
		if err != nil {
			t.Fatalf("TOEBOX_SEED: %v", err)
		}
		seeds = []uint64{v}
	}
	for _, seed := range seeds {
		t.Run(fmt.Sprint("seed ", seed), func(t *testing.T) {
			t.Logf("repeat with TOEBOX_SEED=%d", seed)
			r := newRig(t, seed)
			r.everyRegister()
			r.configSpace()
			for range steps {
				r.random()
			}
			r.configSpace()
			if log := r.m.Log(); log != "" {
				t.Errorf("QEMU says: %s", log)
			}
			s := r.dev.Server().Stats()
			t.Logf("%d of our transfers faulted; %+v; %+v", r.dev.Faults(), r.seen, s)
			if r.seen.msi == 0 || r.seen.rises == 0 || r.seen.falls == 0 || r.dev.Faults() == 0 || s.DMAMessages == 0 {
				t.Error("some kind of interrupt or transfer did not occur: more steps are needed")
			}
			if s.Errors != 0 || s.NoReplyFailed != 0 || s.StrayReplies != 0 {
				t.Errorf("the server refused messages: %+v", s)
			}
		})
	}
}

// random does one operation.
func (r *rig) random() {
	switch k := r.rng.IntN(100); {
	case k < 25:
		r.read(r.offset(), r.size())
	case k < 45:
		r.write(r.offset(), r.size(), r.rng.Uint64())
	case k < 55:
		r.interrupts()
	case k < 65:
		r.factorial()
	case k < 85:
		r.transfer()
	case k < 90:
		r.readConfig()
	case k < 99:
		r.writeConfig()
	default:
		r.reset()
	}
}

// registers are the offsets that mean something, in BAR0.
func registers() []uint64 {
	return []uint64{0x00, 0x04, 0x08, 0x20, 0x24, 0x60, 0x64, 0x80, 0x88, 0x90, 0x98}
}

// offset returns a register, mostly; else a neighbour of one, or any place.
func (r *rig) offset() uint64 {
	all := registers()
	reg := all[r.rng.IntN(len(all))]
	switch r.rng.IntN(10) {
	case 0:
		return reg + r.rng.Uint64N(9)
	case 1:
		return r.rng.Uint64N(barSize - 8)
	case 2:
		return 0x40000 + r.rng.Uint64N(4096) // the buffer is not there for the CPU
	}
	return reg
}

func (r *rig) size() int { return 1 << r.rng.IntN(4) }

// everyRegister reads and writes each register once at each size.
func (r *rig) everyRegister() {
	for _, reg := range registers() {
		for size := 1; size <= 8; size *= 2 {
			r.write(reg, size, r.rng.Uint64())
			r.read(reg, size)
		}
	}
}

func (r *rig) read(offset uint64, size int) {
	r.both(fmt.Sprintf("read %#x size %d", offset, size), func(c *card, o *outcome) {
		o.add(r.load(c, offset, size))
	})
}

// write stores a value, but starts neither a factorial nor a transfer.
func (r *rig) write(offset uint64, size int, v uint64) {
	// QEMU cuts an access that is not aligned into ones that are.
	for at, rest := offset, uint64(size); rest > 0; {
		n := uint64(8)
		for at&(n-1) != 0 || n > rest {
			n /= 2
		}
		if at == 0x08 && n == 4 {
			return
		}
		if at == 0x98 {
			v &^= 1 << (8 * (at - offset))
		}
		at, rest = at+n, rest-n
	}
	r.both(fmt.Sprintf("write %#x size %d: %#x", offset, size, v), func(c *card, o *outcome) {
		r.store(c, offset, size, v)
		o.add(r.load(c, 0x24, 4)) // may have raised or lowered something
	})
}

// interrupts raises or acknowledges a few reasons.
func (r *rig) interrupts() {
	reg := []uint64{0x60, 0x64}[r.rng.IntN(2)]
	v := []uint64{0, 1, 0x100, 0x101, 0xffffffff, r.rng.Uint64N(16)}[r.rng.IntN(6)]
	r.both(fmt.Sprintf("interrupts %#x: %#x", reg, v), func(c *card, o *outcome) {
		r.store(c, reg, 4, v)
		o.add(r.load(c, 0x24, 4))
	})
}

func (r *rig) factorial() {
	n := r.rng.Uint64N(40)
	if r.rng.IntN(5) == 0 {
		n = r.rng.Uint64N(100_000)
	}
	irq := r.rng.Uint64() & 0x80
	r.both(fmt.Sprintf("factorial of %d, irq %#x", n, irq), func(c *card, o *outcome) {
		r.store(c, 0x64, 4, 1)
		r.store(c, 0x20, 4, irq)
		r.cookie.reset() // of an interrupt that the acknowledgement did not prevent
		r.store(c, 0x08, 4, n)
		r.poll("the factorial", func() bool { return r.load(c, 0x20, 4)&1 == 0 })
		if irq != 0 {
			r.poll("its interrupt", func() bool { return r.load(c, 0x24, 4)&1 != 0 })
		}
		o.add(r.load(c, 0x08, 4), r.load(c, 0x20, 4), r.load(c, 0x24, 4))
	})
}

// transfer copies between the buffer and guest memory, and back to see what
// is in the buffer.
func (r *rig) transfer() {
	inside := r.rng.Uint64N(4097)
	count := r.rng.Uint64N(4096 - inside + 1)
	if r.rng.IntN(4) == 0 {
		inside, count = 0, 4096
	}
	command := r.rng.Uint64()&^3 | 1
	if r.rng.IntN(2) == 0 {
		command &= 7
	}
	addr := 0x200000 + r.rng.Uint64N(32<<20)
	switch r.rng.IntN(10) {
	case 0: // to the end of RAM and beyond
		addr = memory - r.rng.Uint64N(4096)
	case 1: // where nothing is
		addr = 100<<20 + r.rng.Uint64N(100<<20)
	case 2: // firmware, which has no file to be mapped
		addr = 0xf0000 + r.rng.Uint64N(0x8000)
	}
	if r.rng.IntN(3) == 0 {
		addr |= r.rng.Uint64() << 28 // the mask takes that off
	}
	pattern := make([]byte, count+32)
	for i := range pattern {
		pattern[i] = byte(r.rng.Uint32())
	}
	toRAM := r.rng.IntN(2) == 0
	name, source, dest := "RAM to buffer", addr, 0x40000+inside
	if toRAM {
		command |= 2
		name, source, dest = "buffer to RAM", dest, source
	}
	wide := 4 << r.rng.IntN(2)
	r.both(fmt.Sprintf("%s: %#x to %#x, %d bytes, command %#x, size %d", name, source, dest, count, command, wide), func(c *card, o *outcome) {
		around := addr&0xfffffff - 16
		r.fill(around, pattern)
		r.dma(c, wide, source, dest, count, command)
		for reg := uint64(0x80); reg <= 0x98; reg += 8 {
			o.add(r.load(c, reg, 8))
		}
		o.add(r.load(c, 0x24, 4))
		o.data = append(o.data, r.fetch(around, len(pattern))...)
		r.fill(scratch, make([]byte, 4096))
		r.dma(c, 8, 0x40000, scratch, 4096, 3)
		o.data = append(o.data, r.fetch(scratch, 4096)...)
	})
	if toRAM && r.master && addr&0xfffffff < memory-4096 && addr&0xfffffff > 1<<20 && count > 0 {
		// The comparison itself must not be of nothing with nothing.
		if bytes.Equal(r.last.data[16:16+count], pattern[16:16+count]) && count > 8 {
			r.fail("the transfer has changed nothing")
		}
	}
}

// configSpace compares all of it.
func (r *rig) configSpace() {
	for offset := range 64 {
		if offset != 4 {
			r.readConfigAt(uint8(4*offset), 4)
		}
	}
}

func (r *rig) readConfig() {
	size := 1 << r.rng.IntN(3)
	offset := uint8(r.rng.IntN(256/size) * size)
	if offset&^3 != 0x10 {
		r.readConfigAt(offset, size)
	}
}

func (r *rig) readConfigAt(offset uint8, size int) {
	r.both(fmt.Sprintf("config read %#x size %d", offset, size), func(c *card, o *outcome) {
		o.add(uint64(r.config(c, offset, size)))
	})
}

// writeConfig changes how interrupts go, whether DMA may, or what is of no
// consequence.
func (r *rig) writeConfig() {
	offset, size, v := uint8(0), 2, uint32(0)
	switch r.rng.IntN(5) {
	case 0: // Command; memory space stays on
		offset, v = 0x04, uint32([]int{2, 6, 6, 6, 0x106, 0x406, 0x402, 0xffff}[r.rng.IntN(8)])
		r.master = v&4 != 0
	case 1: // MSI control
		offset, v = 0x42, r.rng.Uint32()&0xffff
	case 2: // MSI data
		offset, v = 0x4c, r.rng.Uint32()&0xffff
	case 3: // what can be written by accident
		offset, size, v = uint8(0x50+4*r.rng.IntN(44)), 4, r.rng.Uint32()
	case 4: // identification, and the interrupt line
		offset, size, v = []uint8{0x00, 0x08, 0x0c, 0x2c, 0x34, 0x3c}[r.rng.IntN(6)], 4, r.rng.Uint32()
	}
	r.both(fmt.Sprintf("config write %#x size %d: %#x", offset, size, v), func(c *card, o *outcome) {
		r.setConfig(c, offset, size, v)
		o.add(uint64(r.config(c, offset, size)), uint64(r.config(c, 0x04, 4)))
	})
}
