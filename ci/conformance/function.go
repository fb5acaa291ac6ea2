// SPDX-License-Identifier: Apache-2.0

package conformance

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
)

// TestRIG02_Config walks configuration space (SPEC.md §2).
func TestRIG02_Config(t *T) {
	c := t.open()
	for _, f := range []struct {
		name         string
		offset, size int
		want         uint32
	}{
		{"vendor", 0x00, 2, 0x1234},
		{"device", 0x02, 2, 0x7422},
		{"revision", 0x08, 1, 0x01},
		{"class", 0x09, 1, 0x00},
		{"subclass", 0x0a, 1, 0x00},
		{"base class", 0x0b, 1, 0xff},
		{"header type", 0x0e, 1, 0x00},
		{"subsystem vendor", 0x2c, 2, 0x1234},
		{"subsystem", 0x2e, 2, 0x0001},
		{"interrupt pin", 0x3d, 1, 0x01},
	} {
		v, err := c.bus.ReadConfig(f.offset, f.size)
		check(t, "read "+f.name, err)
		want(t, f.name, v, f.want)
	}
	for bar, name := range map[int]string{0x10: "BAR0", 0x18: "BAR2"} {
		v, err := c.bus.ReadConfig(bar, 4)
		check(t, "read "+name, err)
		want(t, name+": 64-bit memory, not prefetchable", v&0xf, 4)
	}
	status, err := c.bus.ReadConfig(0x06, 2)
	check(t, "read Status", err)
	want(t, "Status: capability list", status&0x10, 0x10)
	seen := map[uint32]int{}
	ptr, err := c.bus.ReadConfig(0x34, 1)
	check(t, "read the capability pointer", err)
	for i := 0; ptr != 0; i++ {
		if i == 48 || ptr&3 != 0 || ptr < 0x40 {
			t.Fatalf("capability list is broken at %#x", ptr)
		}
		v, err := c.bus.ReadConfig(int(ptr), 2)
		check(t, "read a capability", err)
		seen[v&0xff] = int(ptr)
		ptr = v >> 8
	}
	for id, name := range map[uint32]string{0x01: "power management", 0x10: "PCI Express", 0x11: "MSI-X"} {
		if seen[id] == 0 {
			t.Errorf("no capability %s", name)
		}
	}
	if p := seen[0x11]; p != 0 {
		v, _ := c.bus.ReadConfig(p+2, 2)
		want(t, "MSI-X table size - 1", v&0x7ff, 32)
		v, _ = c.bus.ReadConfig(p+4, 4)
		want(t, "MSI-X table in BAR2 at 0", v, 2)
		v, _ = c.bus.ReadConfig(p+8, 4)
		want(t, "PBA in BAR2 at 0x800", v, 0x802)
	}
	if p := seen[0x10]; p != 0 {
		v, _ := c.bus.ReadConfig(p+4, 4)
		want(t, "device capabilities: function-level reset", v>>28&1, 1)
	}
}

// TestRIG02_Registers checks identity and reset values (SPEC.md §3).
func TestRIG02_Registers(t *T) {
	c := t.open()
	for _, r := range []struct {
		name   string
		offset uint32
		want   uint32
	}{
		{"ID", 0x0000, 0x424f4554},
		{"VERSION", 0x0004, 0x00010000},
		{"FEATURES", 0x0008, 0x0000000f},
		{"LIMITS", 0x000c, 0x10042120},
		{"CONTROL", 0x0010, 0},
		{"EVENT_MASK", 0x0024, 0},
		{"INTX_CAUSE", 0x0028, 0},
		{"INTX_QUEUES", 0x002c, 0},
		{"SCRATCH", 0x0080, 0},
		{"TEST_ADDR_LO", 0x0090, 0},
		{"TEST_LENGTH", 0x0098, 0},
		{"TEST_STATUS", 0x00a4, 0},
		{"CLOCK_MODE", 0x00c0, 0},
		{"CHECKER", 0x00e0, 0},
		{"NVM_ADDR", 0x0100, 0},
		{"STAT_SELECT", 0x0200, 0},
		{"Q_STATE 0", 0x1004, 0},
		{"Q_VECTOR 0", 0x1024, 1},
		{"Q_VECTOR 31", 0x17e4, 32},
		{"a reserved register", 0x0ffc, 0},
		{"a write-only register (RAISE)", 0x0084, 0},
		{"a doorbell", 0x4000, 0},
	} {
		want(t, r.name, c.read(r.offset), r.want)
	}
	if g := c.read(regGeneration); g == 0 {
		t.Errorf("GENERATION is 0")
	}
	want(t, "EVENTS bit 0, firmware started", c.read(regEvents)&1, 1)
	want(t, "STATUS bit 6, bus master on", c.read(regStatus)>>6&1, 1)
	c.master(false)
	want(t, "STATUS bit 6, bus master off", c.read(regStatus)>>6&1, 0)
	for _, off := range []uint32{0x0000, 0x0014, 0x0018, 0x1004, 0x0ffc} {
		old := c.read(off)
		c.write(off, ^old)
		want(t, "a read-only register after a write", c.read(off), old)
	}
	c.write(regEvents, 1)
	want(t, "EVENTS bit 0 written 1 to clear", c.read(regEvents)&1, 0)
}

// TestRIG02_Scratch: SCRATCH keeps what is written until reset (SPEC.md §12).
func TestRIG02_Scratch(t *T) {
	c := t.open()
	for _, v := range []uint32{0, 1, 0x80000000, 0xffffffff, 0xdeadbeef} {
		c.write(0x0080, v)
		want(t, "SCRATCH", c.read(0x0080), v)
	}
	c.reset()
	want(t, "SCRATCH after CONTROL.RESET", c.read(0x0080), 0)
}

// reset resets by CONTROL.RESET and waits until the function is ready.
func (c *card) reset() {
	c.Helper()
	c.side = nil
	c.write(regControl, 1<<31)
	c.until("STATUS.READY after CONTROL.RESET", func() bool { return c.read(regStatus)&1 != 0 })
}

// restart is reset and run.
func (c *card) restart() {
	c.Helper()
	c.reset()
	c.run()
}

// clearEvents takes the standing events away. Enabling MSI-X over the one of a start
// signals vector 0, when it likes (SPEC.md §9.3).
func (c *card) clearEvents() {
	c.Helper()
	c.write(regEvents, 0xffffffff)
	want(c.T, "EVENTS after clearing all", c.read(regEvents), 0)
}

// TestRIG02_Raise: RAISE signals each vector without a cause (SPEC.md §12).
func TestRIG02_Raise(t *T) {
	c := t.open()
	c.clearEvents()
	c.enableVectors()
	msix := uint32(1)
	if t.Env.Rung == RungUIO {
		msix = 0 // vectors are made of INTx there
	}
	want(t, "STATUS bit 5, MSI-X on", c.read(regStatus)>>5&1, msix)
	for _, v := range []int{0, 1, 2, 17, 32} {
		w := c.vector(v)
		before := w.seen()
		c.write(0x0084, uint32(v))
		w.atLeast(t, "the raised vector", before+1)
	}
	other := c.vector(5)
	bad := c.moved(ctrBadValue, func() { c.write(0x0084, 33) })
	want(t, "mmio_bad_value after RAISE of 33", bad, 1)
	want(t, "interrupts of a vector not raised", other.seen(), 0)
}

// testDMA runs a command of the test registers and returns TEST_STATUS.
func (c *card) testDMA(addr uint64, n, seed, cmd uint32) uint32 {
	c.Helper()
	c.write(0x0090, uint32(addr))
	c.write(0x0094, uint32(addr>>32))
	c.write(0x0098, n)
	c.write(0x009c, seed)
	c.write(0x00a0, cmd)
	var s uint32
	c.until("the test DMA", func() bool { s = c.read(0x00a4); return s > 1 })
	return s
}

// TestRIG02_DMA writes and reads the test pattern (SPEC.md §12).
func TestRIG02_DMA(t *T) {
	c := t.open()
	m := c.alloc(65536 + 8)
	run := c.testDMA
	for _, n := range []uint32{4, 32, 4096, 65536} {
		const seed = 0x1234567
		clear(m.Bytes)
		must(t, "TEST_STATUS of a write", run(m.IOVA+4, n, seed, 1), 2)
		sum := c.read(0x00a8)
		expect := make([]byte, n)
		for k := uint32(0); k < n/4; k++ {
			binary.LittleEndian.PutUint32(expect[4*k:], seed+k*0x9e3779b9)
		}
		if string(m.Bytes[4:4+n]) != string(expect) {
			t.Fatalf("pattern of %d bytes is not in memory", n)
		}
		want(t, "bytes before and after the pattern", binary.LittleEndian.Uint32(m.Bytes)|
			binary.LittleEndian.Uint32(m.Bytes[4+n:]), 0)
		want(t, "TEST_RESULT of a write", sum, crc32.ChecksumIEEE(expect))
		m.Bytes[4] ^= 0xff
		must(t, "TEST_STATUS of a read", run(m.IOVA+4, n, 0, 2), 2)
		want(t, "TEST_RESULT of a read", c.read(0x00a8), crc32.ChecksumIEEE(m.Bytes[4:4+n]))
	}
	for _, n := range []uint32{0, 2, 65540, 0xfffffffc} {
		want(t, "TEST_STATUS of a bad length", run(m.IOVA, n, 0, 1), 3)
	}
	failed := c.moved(ctrDMAErrors, func() {
		want(t, "TEST_STATUS where no memory is", run(0x7fff_ffff_f000, 64, 0, 1), 4)
		want(t, "TEST_STATUS beyond 2^64", run(0xffff_ffff_ffff_fff0, 64, 0, 2), 4)
		c.master(false)
		want(t, "TEST_STATUS with bus mastering off", run(m.IOVA, 64, 0, 1), 4)
		c.master(true)
	})
	if failed < 2 {
		t.Errorf("dma_errors moved by %d for three failures", failed)
	}
	want(t, "TEST_STATUS afterwards", run(m.IOVA, 64, 0, 1), 2)
}

// TestRIG02_Reset: CONTROL.RESET and a function-level reset give reset values
// back and end writing into old tables (SPEC.md §11).
func TestRIG02_Reset(t *T) {
	for name, reset := range map[string]func(*card){
		"register": (*card).reset,
		"function": func(c *card) {
			check(t, "function-level reset", c.bus.Reset())
			c.master(true)
			c.until("STATUS.READY after a reset", func() bool { return c.read(regStatus)&1 != 0 })
		},
	} {
		t.Run(name, func(t *T) {
			c := t.start()
			r := c.ring(0, ringConfig{})
			r.setScalar(reqAdapter, 0, 0x010d, 77)
			m := r.buffer(64)
			r.available(0, m, 0)
			c.write(regEventMask, 0x7f)
			reset(c)
			want(t, "Q_STATE", r.state(), 0)
			want(t, "CONTROL", c.read(regControl)&1, 0)
			want(t, "STATUS.RUNNING", c.read(regStatus)&2, 0)
			want(t, "EVENTS bit 0", c.read(regEvents)&1, 1)
			want(t, "EVENT_MASK", c.read(regEventMask), 0)
			want(t, "bases of the queue", c.read(0x1008)|c.read(0x1010)|c.read(0x1020), 0)
			r.quiet("a response after the reset", func(desc) bool { return true })
			if c.counter(ctrFunctionResets) == 0 {
				t.Errorf("resets_function did not move")
			}
			c.run()
			n := c.ring(0, ringConfig{})
			want(t, "MAX_CONNECTIONS after the reset", n.scalar(reqAdapter, 0, 0x010d), 65536)
			want(t, "first bulk buffer", m.Bytes[0], 0)
		})
	}
}

// TestRIG02_Events: an event under its mask signals vector 0, and so does
// setting the mask over a standing one (SPEC.md §9.3).
func TestRIG02_Events(t *T) {
	c := t.open()
	c.clearEvents()
	w := c.vector(0)
	before := w.seen()
	c.write(0x0084, 0)
	w.atLeast(t, "RAISE of vector 0", before+1)
	want(t, "EVENTS bit 5 after RAISE of vector 0", c.read(regEvents)>>5&1, 1)
	before = w.seen()
	c.write(regEventMask, 1<<5)
	w.atLeast(t, "an interrupt for a standing event", before+1)
	c.write(regEvents, 1<<5)
	want(t, "EVENTS bit 5 after clearing", c.read(regEvents)>>5&1, 0)
}

// TestRIG02_PolicyClock: the policy clock stands still in manual mode and moves
// by steps (SPEC.md §12).
func TestRIG02_PolicyClock(t *T) {
	c := t.open()
	now := func() uint64 {
		lo := c.read(0x00cc)
		return uint64(c.read(0x00d0))<<32 | uint64(lo)
	}
	a := now()
	t.until("the real clock to move", func() bool { return now() > a })
	c.write(0x00c0, 1)
	b := now()
	if b < a {
		t.Errorf("the clock went back from %d to %d when it became manual", a, b)
	}
	t.never("the manual clock moved", nothing/4, func() bool { return now() != b })
	const step = 5_000_000_123
	c.write(0x00c4, step&0xffffffff)
	c.write(0x00c8, step>>32)
	want(t, "clock after a step", now(), b+step)
	c.write(0x00c0, 0)
	t.until("the clock to go on from there", func() bool { return now() > b+step })
}

// TestIF17_NVM reads, writes and commits the non-volatile image (SPEC.md §10).
func TestIF17_NVM(t *T) {
	c := t.open()
	cmd := func(addr, command uint32) uint32 {
		c.write(0x0100, addr)
		c.write(0x0108, command)
		var s uint32
		c.until("the NVM command", func() bool { s = c.read(0x010c); return s&0xff != 1 })
		return s & 0xff
	}
	word := func(addr uint32) uint32 {
		must(t, "NVM read", cmd(addr, 1), 2)
		return c.read(0x0104)
	}
	put := func(addr, v uint32) {
		c.write(0x0104, v)
		must(t, "NVM write", cmd(addr, 2), 2)
	}
	must(t, "NVM restore of factory defaults", cmd(0, 4), 2)
	must(t, "NVM commit", cmd(0, 3), 2)
	want(t, "magic, first half", word(0), 0x4e454f54)  // "TOEN"
	want(t, "magic, second half", word(4), 0x31304d56) // "VM01"
	image := make([]byte, 512)
	for a := uint32(0); a < 512; a += 4 {
		binary.LittleEndian.PutUint32(image[a:], word(a))
	}
	want(t, "CRC-32 of bytes 12..511", binary.LittleEndian.Uint32(image[8:]), crc32.ChecksumIEEE(image[12:]))
	want(t, "MAC_LO", c.read(0x0030), binary.LittleEndian.Uint32(image[16:]))
	want(t, "MAC_HI", c.read(0x0034)&0xffff, uint32(binary.LittleEndian.Uint16(image[20:])))
	for _, a := range []uint32{2, 512, 0xfffffffc} {
		want(t, "NVM read of a bad address", cmd(a, 1), 3)
		want(t, "NVM write of a bad address", cmd(a, 2), 3)
	}
	want(t, "unknown NVM command", cmd(0, 9), 3)

	// A new MAC and serial number hold after commit and reset, not before.
	old := c.read(0x0030)
	put(16, 0x00020052) // 52:00:02:00
	put(20, 0x0000aa55)
	put(24, 0x746c6f42) // "Bolt"
	want(t, "MAC_LO before the commit", c.read(0x0030), old)
	must(t, "NVM commit", cmd(0, 3), 2)
	c.reset()
	want(t, "MAC_LO after commit and reset", c.read(0x0030), 0x00020052)
	want(t, "MAC_HI after commit and reset", c.read(0x0034)&0xffff, 0xaa55)
	want(t, "serial number, first word, after a reset", word(24), 0x746c6f42)
	c.run()
	r := c.ring(0, ringConfig{})
	_, rs := r.attrs(reqAdapter, 0, new(ctl).get(0x0100, 6).get(0x010a, 255))
	if string(rs[0].Value[:6]) != "\x52\x00\x02\x00\x55\xaa" {
		t.Errorf("attribute MAC is %x", rs[0].Value[:6])
	}
	if n := rs[1].Length; n < 4 || string(rs[1].Value[:4]) != "Bolt" {
		t.Errorf("attribute SERIAL has length %d and begins with %q", n, rs[1].Value[:4])
	}
	must(t, "NVM restore of factory defaults", cmd(0, 4), 2)
	must(t, "NVM commit", cmd(0, 3), 2)
	c.reset()
}

// TestRIG02_BadAccess: accesses of BAR0 that are not aligned read all ones, write
// nothing, and are counted (SPEC.md §2.1). Machines split them into others.
func TestRIG02_BadAccess(t *T) {
	c := t.start()
	c.write(0x0080, 0x12345678)
	bad := c.counter(ctrBadAccess)
	for _, off := range []uint32{0x0001, 0x0082, 0x4003} {
		want(t, fmt.Sprintf("read at %#x", off), c.read(off), 0xffffffff)
	}
	for _, off := range []uint32{0x0081, 0x007e} {
		c.write(off, 0xa5a5a5a5)
	}
	want(t, "mmio_bad_access", c.counter(ctrBadAccess)-bad, 5)
	want(t, "SCRATCH", c.read(0x0080), 0x12345678)
}
