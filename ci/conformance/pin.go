// SPDX-License-Identifier: Apache-2.0

package conformance

import (
	"encoding/binary"
	"fmt"
	"time"

	"toebox/guestdriver"
)

// Registers of interrupts (SPEC.md §3).
const (
	regINTxCause  = 0x0028
	regINTxQueues = 0x002c
	regRaise      = 0x0084
)

// command reads Command and Status of configuration space.
func (c *card) command() (command, status uint32) {
	c.Helper()
	v, err := c.bus.ReadConfig(4, 4)
	check(c.T, "read Command and Status", err)
	return v & 0xffff, v >> 16
}

// disableINTx sets or clears Interrupt Disable (Command bit 10).
func (c *card) disableINTx(on bool) {
	c.Helper()
	v, _ := c.command()
	v &^= 1 << 10
	if on {
		v |= 1 << 10
	}
	check(c.T, "write Command", c.bus.WriteConfig(4, 2, v))
}

// causes are INTX_CAUSE, INTX_QUEUES and Interrupt Status (Status bit 3).
func (c *card) causes() string {
	c.Helper()
	_, status := c.command()
	return fmt.Sprintf("%#x %#x %d", c.read(regINTxCause), c.read(regINTxQueues), status>>3&1)
}

// TestRIG02_INTxCause: with MSI-X off a vector sets its bit, and Interrupt Status
// is live although the pin is disabled; an event that stands sets its bit again;
// MSI-X takes all of it away (SPEC.md §2, §9.2).
func TestRIG02_INTxCause(t *T) {
	c := t.open()
	c.clearEvents()
	c.disableINTx(true)
	must(t, "causes at first", c.causes(), "0x0 0x0 0")
	for _, s := range []struct {
		what, want string
		reg, value uint32
	}{
		{"RAISE 0", "0x1 0x0 1", regRaise, 0},
		{"RAISE 1", "0x1 0x1 1", regRaise, 1},
		{"RAISE 32", "0x1 0x80000001 1", regRaise, 32},
		{"RAISE 33, which there is not", "0x1 0x80000001 1", regRaise, 33},
		{"writing 0", "0x1 0x80000001 1", regINTxQueues, 0},
		{"clearing the event", "0x0 0x80000001 1", regINTxCause, 1},
		{"clearing a bit that is not set", "0x0 0x80000001 1", regINTxQueues, 2},
		{"clearing queue 0", "0x0 0x80000000 1", regINTxQueues, 1},
		{"clearing the rest", "0x0 0x0 0", regINTxQueues, 0xffffffff},
		{"a mask bit over a standing event", "0x1 0x0 1", regEventMask, 1 << 5},
		{"clearing its cause", "0x1 0x0 1", regINTxCause, 1},
		{"clearing the event itself", "0x1 0x0 1", regEvents, 1 << 5},
		{"clearing its cause then", "0x0 0x0 0", regINTxCause, 1},
		{"RAISE 2", "0x0 0x2 1", regRaise, 2},
		{"CONTROL.RESET", "0x0 0x0 0", regControl, 1 << 31},
	} {
		c.write(s.reg, s.value)
		if s.reg == regControl {
			c.until("STATUS.READY after CONTROL.RESET", func() bool { return c.read(regStatus)&1 != 0 })
		}
		must(t, "causes after "+s.what, c.causes(), s.want)
	}
	if t.Env.Rung == RungUIO {
		return
	}
	c.clearEvents()
	c.write(regRaise, 3)
	must(t, "causes before MSI-X is on", c.causes(), "0x0 0x4 1")
	c.enableVectors()
	must(t, "causes with MSI-X on", c.causes(), "0x0 0x0 0")
	c.write(regRaise, 3)
	must(t, "causes of a vector with MSI-X on", c.causes(), "0x0 0x0 0")
}

// TestRIG03_NoneLost raises vectors in a random order, several at once, and has
// all of them come, each time.
func TestRIG03_NoneLost(t *T) {
	c := t.open()
	c.clearEvents()
	var waits [33]*vectorWait
	for v := range waits {
		waits[v] = c.vector(v)
	}
	for range 200 {
		some := t.Rand().Perm(len(waits))[:1+t.Rand().IntN(4)]
		before := map[int]int{}
		for _, v := range some {
			before[v] = waits[v].seen()
			c.write(regRaise, uint32(v))
		}
		for _, v := range some {
			waits[v].atLeast(t, fmt.Sprintf("vector %d of %v", v, some), before[v]+1)
		}
		c.write(regEvents, 1<<5) // RAISE of vector 0
	}
}

// TestRIG03_INTxStands: an event that nobody clears interrupts again and again,
// and others meanwhile; when it is cleared that ends.
func TestRIG03_INTxStands(t *T) {
	c := t.open()
	c.clearEvents()
	events, queue := c.vector(0), c.vector(7)
	c.write(regEventMask, 1<<5)
	c.write(regRaise, 0)
	events.atLeast(t, "an event that stands, again and again", 4)
	before := queue.seen()
	c.write(regRaise, 7)
	queue.atLeast(t, "another vector meanwhile", before+1)
	c.write(regEvents, 1<<5)
	c.until("the cause to be cleared", func() bool { return c.read(regINTxCause)|c.read(regINTxQueues) == 0 })
	// A signal may be on its way still.
	end := events.seen() + 2
	t.never("the event interrupted after it was cleared", nothing, func() bool { return events.seen() > end })
	c.write(regRaise, 7)
	queue.atLeast(t, "another vector afterwards", before+2)
}

// TestRIG03_INTxCommand: a driver that writes back Command as it read it, at
// any moment, does not lose the interrupt.
func TestRIG03_INTxCommand(t *T) {
	c := t.open()
	c.clearEvents()
	w := c.vector(3)
	for i := range 100 {
		before := w.seen()
		c.write(regRaise, 3)
		old, _ := c.command()
		if i%2 == 0 {
			w.atLeast(t, "an interrupt before Command is written", before+1)
		}
		check(t, "write Command", c.bus.WriteConfig(4, 2, old))
		w.atLeast(t, "an interrupt around a write of Command", before+1)
	}
}

// TestRIG03_Reset: interrupts come after resets of each kind, those included
// that overtake an interrupt on its way.
func TestRIG03_Reset(t *T) {
	c := t.open()
	c.clearEvents()
	w := c.vector(2)
	for i := range 12 {
		for _, v := range []uint32{2, 0, 1, 2}[:1+i%4] {
			c.write(regRaise, v)
		}
		if i%3 == 0 {
			check(t, "function-level reset", c.bus.Reset())
			c.master(true)
			c.until("STATUS.READY after a reset", func() bool { return c.read(regStatus)&1 != 0 })
		} else {
			c.reset()
		}
		// What was on its way may come late: only the second is surely of now.
		for range 2 {
			before := w.seen()
			c.write(regRaise, 2)
			w.atLeast(t, fmt.Sprintf("an interrupt after reset %d", i), before+1)
		}
	}
}

// TestRIG03_Polling: without the interrupt the driver's vectors come all the
// same, and it works.
func TestRIG03_Polling(t *T) {
	if t.Env.OpenPolling == nil {
		t.Fatalf("the rung %s has no bus that polls", t.Env.Rung)
	}
	polling := *t.Env
	polling.Open = polling.OpenPolling
	t.Run("vectors", func(t *T) {
		t.Env = &polling
		c := t.open()
		c.clearEvents()
		for _, v := range []int{0, 1, 32} {
			w := c.vector(v)
			before := w.seen()
			c.write(regRaise, uint32(v))
			w.atLeast(t, fmt.Sprintf("vector %d", v), before+1)
		}
		command, _ := c.command()
		want(t, "Interrupt Disable", command>>10&1, 1)
	})
	t.Run("driver", func(t *T) {
		t.Env = &polling
		a := t.driver()
		_, conn := t.dialPeer(a, Script{{Op: OpEcho}})
		check(t, "set a deadline", conn.SetDeadline(time.Now().Add(t.Env.scale(patience))))
		for i := range 20 {
			sent := []byte{byte(i), 'x', byte(i)}
			if _, err := conn.Write(sent); err != nil {
				t.Fatalf("write: %v", err)
			}
			got := make([]byte, len(sent))
			if _, err := conn.Read(got); err != nil || got[0] != byte(i) {
				t.Fatalf("read %v, %v, sent %v", got, err, sent)
			}
		}
	})
}

// TestRIG03_Memory: an allocation of several huge pages is one piece for the
// adapter, over all the borders within.
func TestRIG03_Memory(t *T) {
	const huge, size = 2 << 20, 6 << 20
	c := t.open()
	m := c.alloc(size)
	small := []guestdriver.DMA{c.alloc(1), c.alloc(4096), c.alloc(5000)}
	for i, s := range small {
		if s.IOVA%4096 != 0 || s.IOVA+uint64(len(s.Bytes)) > m.IOVA && s.IOVA < m.IOVA+size {
			t.Errorf("allocation %d is at %#x, the large one at %#x", i, s.IOVA, m.IOVA)
		}
	}
	pattern := func(addr uint64, n, seed uint32) {
		c.write(0x0090, uint32(addr))
		c.write(0x0094, uint32(addr>>32))
		c.write(0x0098, n)
		c.write(0x009c, seed)
		c.write(0x00a0, 1)
		c.until("the test DMA", func() bool { return c.read(0x00a4) > 1 })
		must(t, "TEST_STATUS", c.read(0x00a4), 2)
	}
	first := m.IOVA &^ (huge - 1)
	var checked int
	for border := first + huge; border < m.IOVA+size; border += huge {
		at := border - m.IOVA - 32<<10
		if border-m.IOVA < 32<<10 || border+32<<10 > m.IOVA+size {
			continue
		}
		seed := uint32(border)
		pattern(m.IOVA+at, 64<<10, seed)
		for k := range uint32(16 << 10) {
			if v := binary.LittleEndian.Uint32(m.Bytes[at+4*uint64(k):]); v != seed+k*0x9e3779b9 {
				t.Fatalf("word %d around the border at %#x is %#x", k, border, v)
			}
		}
		checked++
	}
	if checked < 2 {
		t.Errorf("only %d borders lie in the allocation", checked)
	}
	check(t, "free", c.bus.FreeDMA(m))
}
