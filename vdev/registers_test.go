// SPDX-License-Identifier: Apache-2.0

package vdev

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	"golang.org/x/sys/unix"

	"toebox/firmware"
	"toebox/vdev/abi"
)

// TestAccessRules checks what is not an aligned access of 32 bits (SPEC.md §2.1).
func TestAccessRules(t *testing.T) {
	r := enabled(t, nil)
	r.set(0x80, 0x11223344)
	bad := 0
	for _, c := range []struct {
		offset uint64
		n      int
	}{{0x80, 1}, {0x80, 2}, {0x80, 3}, {0x80, 8}, {0x82, 2}, {0x81, 4}, {0x82, 4}, {0x80, 4096}, {0x4000, 8}, {0x4001, 4}, {0xfffd, 3}} {
		p := make([]byte, c.n)
		r.access(0, c.offset, p, true)
		r.access(0, c.offset, p, false)
		if !bytes.Equal(p, bytes.Repeat([]byte{0xff}, c.n)) {
			t.Errorf("%d bytes at %#x read % x", c.n, c.offset, p[:1])
		}
		bad += 2
	}
	r.want(0x80, 0x11223344)
	if got := r.f.Counter(46); got != uint64(bad) {
		t.Errorf("mmio_bad_access is %d, want %d", got, bad)
	}
	if r.fw.doorbells.Load() != 0 {
		t.Error("a bad access rang a doorbell")
	}
	// Aligned but not there: reads 0, writes nothing, is no bad access.
	for _, offset := range []uint64{0x38, 0x3fc, 0x400, 0xffc, 0x1038, 0x17fc, 0x1800, 0x3ffc, 0x4100, 0xfffc} {
		r.set(offset, 0xffffffff)
		r.want(offset, 0)
	}
	if got := r.f.Counter(46); got != uint64(bad) {
		t.Errorf("mmio_bad_access is %d after reserved registers, want %d", got, bad)
	}
	for _, c := range []struct {
		region int
		offset uint64
		n      int
	}{{0, 0xfffd, 4}, {0, 0x10000, 1}, {0, 1 << 63, 4}, {0, ^uint64(0), 4}, {1, 0, 4}, {2, 0xffe, 4}, {6, 0, 4}, {7, 4095, 2}, {7, 1 << 40, 1}, {8, 0, 1}, {9, 0, 1}, {-1, 0, 1}} {
		if err := r.f.ReadRegion(c.region, c.offset, make([]byte, c.n)); err != unix.EINVAL {
			t.Errorf("read of region %d at %#x: %v", c.region, c.offset, err)
		}
		if err := r.f.WriteRegion(c.region, c.offset, make([]byte, c.n)); err != unix.EINVAL {
			t.Errorf("write of region %d at %#x: %v", c.region, c.offset, err)
		}
	}
}

// TestReadOnlyAndWriteOnly writes all ones to every register that must ignore
// or not show them.
func TestReadOnlyAndWriteOnly(t *testing.T) {
	r := enabled(t, nil)
	for _, reg := range registers() {
		if reg.access == accessRO && reg.read == nil {
			before := r.get(uint64(reg.offset))
			r.set(uint64(reg.offset), ^before)
			r.want(uint64(reg.offset), before)
		}
	}
	for _, offset := range []uint64{0x84, 0xa0, 0x108, 0x1000, 0x4000, 0x4004, 0x40fc} {
		r.set(offset, 0x40)
		r.want(offset, 0)
	}
}

// TestMemorySpace checks that BARs answer only while they are enabled, in D0.
func TestMemorySpace(t *testing.T) {
	r := newRig(t, nil)
	b := make([]byte, 4)
	silent := func(why string) {
		t.Helper()
		r.set(0x80, 5)
		r.set(0x4000, 5)
		r.access(2, 0, []byte{1, 2, 3, 4}, true)
		r.want(0x80, 0xffffffff)
		r.access(2, 0, b, false)
		if !bytes.Equal(b, []byte{255, 255, 255, 255}) || r.fw.doorbells.Load() != 0 {
			t.Errorf("BARs answer %s", why)
		}
	}
	silent("while memory space is off")
	r.setConfig(0x04, 2, 2)
	r.want(0x80, 0)
	r.setConfig(0x44, 2, 3)
	silent("in D3hot")
}

// TestDoorbells checks stride, the 30 bits, and that doorbells cost nothing.
func TestDoorbells(t *testing.T) {
	r := enabled(t, nil)
	for q := range uint64(32) {
		r.set(0x4000+8*q, 0xc0000001+uint32(q))
		if r.fw.lastBell != abi.Index(1+q) {
			t.Fatalf("IN_DOORBELL %d passed %#x", q, r.fw.lastBell)
		}
		r.set(0x4004+8*q, 0xffffffff)
		if r.fw.lastBell != 0x3fffffff {
			t.Fatalf("OUT_DOORBELL %d passed %#x", q, r.fw.lastBell)
		}
	}
	if got := r.fw.doorbells.Load(); got != 32<<32|32 {
		t.Errorf("%d in, %d out", got>>32, uint32(got))
	}
	r.f.mu.Lock() // a doorbell waits for no lock
	p := []byte{1, 0, 0, 0}
	if n := testing.AllocsPerRun(100, func() { _ = r.f.WriteRegion(0, 0x4000, p) }); n != 0 {
		t.Errorf("%v allocations per doorbell", n)
	}
	r.f.mu.Unlock()
}

// TestControl walks RUN and STOP (SPEC.md §11).
func TestControl(t *testing.T) {
	r := enabled(t, nil)
	for _, c := range []struct {
		write, status uint32
		calls         []string
	}{
		{0, 0x41, nil},
		{1, 0x43, []string{"run"}},
		{1, 0x43, nil},
		{3, 0x45, []string{"stop"}},
		{2, 0x45, nil},
		{0, 0x45, nil},
		{1, 0x43, []string{"run"}},
		{0, 0x45, []string{"stop"}},
		{2, 0x45, []string{"stop"}},
		{0x7ffffffc, 0x45, nil},
		{0x80000001, 0x41, []string{"reset"}},
	} {
		r.set(0x10, c.write)
		r.want(0x14, c.status)
		if got := r.fw.take(); !slices.Equal(got, c.calls) {
			t.Errorf("CONTROL %#x: %q, want %q", c.write, got, c.calls)
		}
	}
	r.want(0x10, 0)
	r.f.SetLink(true)
	r.want(0x14, 0x51)
	r.want(0x20, 3)
	r.setConfig(0x8a, 2, 0x8000)
	r.want(0x14, 0x71)
}

// TestQueueRegisters checks what create hands to the firmware, and what status
// shows.
func TestQueueRegisters(t *testing.T) {
	r := enabled(t, nil)
	base := uint64(0x1000 + 0x40*31)
	for i, v := range []uint32{0x11111100, 0x1, 0x22222200, 0x2, 0x33333300, 0x3, 0xffff0a09, 5} {
		r.set(base+8+4*uint64(i), v)
	}
	r.want(base+0x20, 0x0a09)
	r.set(base, 1)
	want := firmware.QueueConfig{In: 0x1_11111100, Out: 0x2_22222200, Event: 0x3_33333300, InLog2: 9, OutLog2: 10, Vector: 5}
	if r.fw.config != want {
		t.Errorf("create passes %+v", r.fw.config)
	}
	r.set(base, 0xffffffff)
	if got := r.fw.take(); !slices.Equal(got, []string{"command 31 1", "command 31 4294967295"}) {
		t.Errorf("commands %q", got)
	}
	r.fw.status[31] = firmware.QueueStatus{State: 5, Last: 68, InIndex: 0x3fffffff, OutIndex: 4, Held: 9, Error: 3}
	for i, v := range map[uint64]uint32{4: 68<<16 | 5, 0x28: 0x3fffffff, 0x2c: 4, 0x30: 9, 0x34: 3} {
		r.want(base+i, v)
		r.set(base+i, 0)
	}
	r.want(0x1004, 0)
}

// TestLatches checks the registers whose high half is latched.
func TestLatches(t *testing.T) {
	r := enabled(t, nil)
	r.now.Store(0x2_00000001)
	r.want(0x40, 1)
	r.now.Store(0x3_00000001)
	r.want(0x44, 2)

	r.want(0xc0, 0)
	r.set(0xc8, 1) // the real clock does not step
	r.want(0xcc, 0)
	r.set(0xc0, 1)
	r.set(0xc4, 5)
	r.set(0xc8, 7)
	r.want(0xcc, 5)
	r.set(0xc8, 1)
	r.want(0xd0, 7)
	r.want(0xcc, 10)
	r.want(0xd0, 8)
	r.set(0xc0, 2)
	r.want(0xc0, 1)
	r.set(0xc0, 0)
	if got := r.fw.take(); !slices.Equal(got, []string{"manual true", "manual false"}) {
		t.Errorf("clock %q", got)
	}
	r.set(0xe0, 0xffffffff)
	r.want(0xe0, 1)
	r.set(0xe0, 0)
	if got := r.fw.take(); !slices.Equal(got, []string{"checker true", "checker false"}) {
		t.Errorf("checker %q", got)
	}

	r.fw.counters[63].Store(0x9_00000008)
	r.set(0x200, 63)
	r.fw.counters[63].Store(0)
	r.want(0x204, 8)
	r.want(0x208, 9)
	bad := r.f.Counter(47)
	for _, v := range []uint32{abi.NumCounters, 0xffffffff} {
		r.set(0x200, v)
		r.want(0x200, v)
		r.want(0x204, 0)
		r.want(0x208, 0)
	}
	if got := r.f.Counter(47) - bad; got != 2 {
		t.Errorf("mmio_bad_value counted %d", got)
	}
	r.fw.counters[59].Store(5)
	r.want(0xe4, 5)
	r.set(0x10, 1<<31)
	r.want(0xe4, 0)
	r.set(0xe0, 0xffffffff)
	r.want(0xe0, 1)
}

// TestEveryRegisterResets writes random values everywhere and resets in every
// way there is: BAR0 then reads as that of a new function.
func TestEveryRegisterResets(t *testing.T) {
	// Not compared: time, GENERATION (a committed image starts new firmware),
	// STATUS (bus mastering differs).
	skip := map[uint64]bool{0x14: true, 0x18: true, 0x40: true}
	for name, reset := range map[string]func(r *rig){
		"CONTROL.RESET": func(r *rig) { r.set(0x10, 1<<31) },
		"FLR":           func(r *rig) { r.setConfig(0x50, 2, 0x8000) },
		"FLR, one byte": func(r *rig) { r.setConfig(0x51, 1, 0x80) },
		"device reset":  func(r *rig) { _ = r.f.Reset() },
		"D3hot to D0":   func(r *rig) { r.setConfig(0x44, 2, 3); r.setConfig(0x44, 2, 0) },
		"disconnect":    func(r *rig) { r.f.Disconnected() },
	} {
		t.Run(name, func(t *testing.T) {
			r := enabled(t, nil)
			fresh := enabled(t, nil)
			rng := rand.New(rand.NewPCG(1, 2))
			for range 20000 {
				offset := rng.Uint64N(0x4100/4) * 4
				if offset != 0x10 {
					r.set(offset, rng.Uint32()>>rng.IntN(32))
				}
			}
			for r.get(0x10c)&0xff == 1 || r.get(0xa4) == 1 { // workers end
			}
			r.fw.take()
			r.resetsOnce(func() { reset(r) })
			r.setConfig(0x04, 2, 0x0006)
			for offset := uint64(0); offset < 0x4100; offset += 4 {
				if got, want := r.get(offset), fresh.get(offset); got != want && !skip[offset] {
					t.Errorf("register %#x: %#x, want %#x", offset, got, want)
				}
			}
		})
	}
}

// resetsOnce checks that do resets the firmware exactly once and is counted.
func (r *rig) resetsOnce(do func()) {
	r.Helper()
	before, resets := r.fw, 0
	before.onReset = func() { resets++ }
	was := before.counters.Load(48)
	do()
	if resets != 1 || before.counters.Load(48) != was+1 {
		r.Errorf("%d resets of the firmware, resets_function counted %d", resets, before.counters.Load(48)-was)
	}
}

// TestCounters reads all counters by name.
func TestCounters(t *testing.T) {
	r := enabled(t, nil)
	for i := range r.fw.counters {
		r.fw.counters[i].Store(uint64(i) + 100)
	}
	m := r.f.Counters()
	if len(m) != abi.NumCounters || m["requests"] != 100 || m["copies_bytes"] != 163 || m["mmio_bad_value"] != 147 {
		t.Errorf("counters %v", m)
	}
}

// TestLimiter checks the bound on log lines.
func TestLimiter(t *testing.T) {
	var l limiter
	lines := 0
	for range 1000 {
		if _, ok := l.allow(0); ok {
			lines++
		}
	}
	if lines != 10 {
		t.Errorf("%d lines at once", lines)
	}
	n, ok := l.allow(1_500_000_000)
	if !ok || n != 990 {
		t.Errorf("after 1.5 s: %v, %d suppressed", ok, n)
	}
	if _, ok := l.allow(1_900_000_000); ok {
		t.Error("a second line within a second")
	}
	if _, ok := l.allow(2_000_000_000); !ok {
		t.Error("no line at 2 s")
	}
}

// FuzzRegions makes accesses out of bytes: 8 bytes an access. Nothing may
// panic, and the function must work after a reset.
func FuzzRegions(f *testing.F) {
	f.Add([]byte{0, 1, 0x10, 0, 1, 0, 0, 0, 7, 1, 4, 0, 6, 0, 0, 0})
	f.Add([]byte{7, 1, 0x51, 0, 0x80, 0, 0, 0, 2, 1, 0x0c, 0, 1, 0, 0, 0, 7, 1, 0x8b, 0, 0xc0, 0, 0, 0})
	f.Add([]byte{0, 1, 0x98, 0, 0, 1, 0, 0, 0, 1, 0xa0, 0, 1, 0, 0, 0, 0, 1, 0x08, 1, 3, 0, 0, 0, 0, 1, 0x84, 0, 0, 0, 0, 0})
	f.Fuzz(func(t *testing.T, ops []byte) {
		r := enabled(t, nil)
		for ; len(ops) >= 8; ops = ops[8:] {
			region, write := int(ops[0]%10), ops[1]&1 != 0
			size := []int{4, 1, 2, 8, 0, 3, 64, 4}[ops[1]>>1&7]
			p := make([]byte, size)
			copy(p, ops[4:8])
			offset := uint64(binary.LittleEndian.Uint16(ops[2:]))
			if ops[1]&0x80 != 0 {
				offset = ^offset
			}
			if write {
				_ = r.f.WriteRegion(region, offset, p)
			} else {
				_ = r.f.ReadRegion(region, offset, p)
			}
		}
		if err := r.f.Reset(); err != nil {
			t.Fatal(err)
		}
		r.setConfig(0x04, 2, 6)
		r.want(0, 0x424f4554)
		r.want(0x10, 0)
		if err := r.f.Close(); err != nil {
			t.Fatal(err)
		}
		if fmt.Sprint(r.fw.take()) == "[]" {
			t.Fatal("the firmware was not closed")
		}
	})
}
