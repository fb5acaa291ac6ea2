// SPDX-License-Identifier: Apache-2.0

package function

import (
	"encoding/binary"
	"testing"
)

const vectors = 33

func (m *machine) cookie(v int) uint32 { return m.word(cookies + 64*v) }

func (m *machine) clearCookie(v int) { binary.LittleEndian.PutUint32(m.ram[cookies+64*v:], 0) }

// message is what vector v writes.
func message(v int) uint32 { return 0xc0de0000 + uint32(v) }

// program writes the MSI-X table, all vectors unmasked.
func (m *machine) program() {
	m.t.Helper()
	for v := range vectors {
		m.clearCookie(v)
		for i, w := range [4]uint32{uint32(cookies + 64*v), 0, message(v), 0} {
			m.check(m.Write32(bar2+uint64(16*v+4*i), w))
		}
	}
}

// enableMSIX turns MSI-X on with no event standing. (A start of the firmware
// that stands is signalled when the function sees the enable bit. QEMU assigns
// eventfds only then, so that the first such signal finds none.)
func (m *machine) enableMSIX() {
	m.t.Helper()
	m.set(0x0020, allOnes)
	m.program()
	m.setConfig(m.capability(0x11)+2, 2, 0x8000)
}

// mask sets a vector's mask bit.
func (m *machine) mask(v int, on uint32) {
	m.t.Helper()
	m.check(m.Write32(bar2+uint64(16*v+12), on))
}

func (m *machine) pba() uint64 {
	m.t.Helper()
	v, err := m.Read64(bar2 + 0x800)
	m.check(err)
	return v
}

func (m *machine) raise(v int) {
	m.t.Helper()
	m.set(0x0084, uint32(v))
}

// delivered waits for vector v and takes its message away.
func (m *machine) delivered(v int) {
	m.t.Helper()
	m.until("vector's message", func() bool { m.config(0x00, 4); return m.cookie(v) != 0 })
	if got := m.cookie(v); got != message(v) {
		m.t.Errorf("vector %d wrote %#x, want %#x", v, got, message(v))
	}
	m.clearCookie(v)
}

// quiet checks that no vector has written.
func (m *machine) quiet(when string) {
	m.t.Helper()
	m.settle()
	for v := range vectors {
		if got := m.cookie(v); got != 0 {
			m.t.Errorf("%s: vector %d has written %#x", when, v, got)
			m.clearCookie(v)
		}
	}
}

func TestMSIX(t *testing.T) {
	m := start(t)
	control := m.capability(0x11) + 2
	for v := range vectors {
		if w, err := m.Read32(bar2 + uint64(16*v+12)); err != nil || w != 1 {
			t.Errorf("vector %d: control %#x after reset, want masked; %v", v, w, err)
		}
	}
	m.enableMSIX()
	m.want("STATUS with MSI-X", 0x0014, 0x71)

	for v := range vectors {
		m.raise(v)
		m.delivered(v)
	}
	m.quiet("each vector raised and seen once")
	m.want("EVENTS after RAISE 0", 0x0020, 0x20)
	bad := m.counter(47) // mmio_bad_value
	m.raise(vectors)
	if got := m.counter(47) - bad; got != 1 {
		t.Errorf("RAISE 33: %d bad values counted, want 1", got)
	}
	m.quiet("RAISE 33")

	t.Run("vector mask", func(t *testing.T) {
		// QEMU keeps single vectors' masks to itself, and what is pending
		// with them: the function's PBA has no part in it.
		m.mask(5, 1)
		m.raise(5)
		m.raise(7)
		m.delivered(7)
		m.quiet("vector 5 masked")
		m.mask(5, 0)
		m.delivered(5)
		m.quiet("vector 5 unmasked")
	})
	t.Run("function mask", func(t *testing.T) {
		m.setConfig(control, 2, 0xc000)
		if got := m.config(control, 2); got != 0xc020 {
			t.Errorf("MSI-X control %#x", got)
		}
		for _, v := range []int{0, 6, 32} {
			m.raise(v)
			m.raise(v)
		}
		m.quiet("function masked")
		if got := m.pba(); got != 1<<32|1<<6|1<<0 {
			t.Errorf("PBA %#x", got)
		}
		m.setConfig(control, 2, 0x8000)
		for _, v := range []int{0, 6, 32} {
			m.delivered(v)
		}
		m.quiet("function unmasked")
		if got := m.pba(); got != 0 {
			t.Errorf("PBA %#x after delivery", got)
		}
	})
	t.Run("bus master off", func(t *testing.T) {
		m.setConfig(0x04, 2, 2)
		m.raise(9)
		m.quiet("bus master off")
		m.setConfig(0x04, 2, 6)
		m.delivered(9)
		m.quiet("bus master on")
	})
}

// line waits until INTA is asserted, or is not.
func (m *machine) line(what string, level bool) {
	m.t.Helper()
	m.until(what, func() bool { m.settle(); return m.IRQ(intxInput) == level })
}

// stays checks that INTA keeps its level. Each read of a register is an end of
// interrupt for QEMU, which lowers the line, unmasks it at the server and gets
// it back while it is asserted.
func (m *machine) stays(what string, level bool) {
	m.t.Helper()
	for range 10 {
		m.settle()
		m.line(what, level)
	}
}

func TestINTx(t *testing.T) {
	m := start(t)
	m.check(m.InterceptIn("ioapic"))
	standing := func(what string, want bool) {
		t.Helper()
		if got := m.config(0x06, 2)&(1<<3) != 0; got != want {
			t.Errorf("%s: Status bit 3 is %v", what, got)
		}
	}
	standing("at rest", false)
	m.stays("INTA at rest", false)

	m.raise(3)
	m.line("INTA to rise", true)
	standing("after RAISE 3", true)
	m.want("INTX_QUEUES", 0x002c, 1<<2)
	m.stays("INTA to come back after each end of interrupt", true)

	m.raise(0)
	m.raise(32)
	m.want("INTX_CAUSE", 0x0028, 1)
	m.want("INTX_QUEUES", 0x002c, 1<<31|1<<2)
	m.set(0x002c, 1<<2)
	m.want("INTX_QUEUES, one cleared", 0x002c, 1<<31)
	m.stays("INTA for the causes left", true)
	m.set(0x002c, allOnes)
	m.stays("INTA for the cause left", true)
	m.set(0x0028, allOnes)
	m.line("INTA to fall", false)
	standing("all cleared", false)
	m.stays("INTA, all cleared", false)

	t.Run("disabled by Command", func(t *testing.T) {
		m.raise(9)
		m.line("INTA to rise", true)
		m.setConfig(0x04, 2, 0x406)
		m.line("INTA to fall when disabled", false)
		standing("disabled", true)
		// QEMU holds the line down by itself: what the adapter does about it
		// are the signals that do not come.
		signals := m.dev.Stats().Server.Triggers
		m.raise(10)
		m.stays("INTA, disabled", false)
		if got := m.dev.Stats().Server.Triggers - signals; got != 0 {
			t.Errorf("%d signals while disabled", got)
		}
		m.setConfig(0x04, 2, 6)
		m.line("INTA to rise when enabled", true)
		m.set(0x002c, 1<<8|1<<9)
		m.line("INTA to fall", false)
	})
	t.Run("event that stands", func(t *testing.T) {
		m.want("EVENTS", 0x0020, 0x21)
		m.stays("INTA while events are masked", false)
		m.set(0x0024, 0x20)
		m.line("INTA when the mask lets a standing event through", true)
		m.set(0x0028, 1)
		m.stays("INTA while the event stands", true)
		m.set(0x0020, 0x20)
		m.set(0x0028, 1)
		m.line("INTA to fall", false)
		m.want("EVENTS", 0x0020, 0x01)
	})
	t.Run("not with MSI-X", func(t *testing.T) {
		control := m.capability(0x11) + 2
		m.raise(4)
		m.line("INTA to rise", true)
		m.enableMSIX()
		m.line("INTA to fall with MSI-X", false)
		m.raise(4)
		m.delivered(4)
		m.stays("INTA with MSI-X", false)
		m.setConfig(control, 2, 0)
		m.raise(4)
		m.line("INTA to rise without MSI-X", true)
		m.quiet("MSI-X off")
	})
}
