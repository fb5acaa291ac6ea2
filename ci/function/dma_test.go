// SPDX-License-Identifier: Apache-2.0

package function

import (
	"bytes"
	"encoding/binary"
	"hash/crc32"
	"testing"
)

// Values of TEST_STATUS (SPEC.md §12).
const (
	testIdle      = 0
	testBusy      = 1
	testDone      = 2
	testBadLength = 3
	testFailed    = 4
)

// Values of TEST_COMMAND.
const (
	testWrite = 1
	testRead  = 2
)

// pattern is what the DMA test writes (SPEC.md §12).
func pattern(n int, seed uint32) []byte {
	var b []byte
	for k := range n / 4 {
		b = binary.LittleEndian.AppendUint32(b, seed+uint32(k)*0x9e3779b9)
	}
	return b
}

// begin starts a DMA test.
func (m *machine) begin(command uint32, addr uint64, length, seed uint32) {
	m.t.Helper()
	m.set(0x0090, uint32(addr))
	m.set(0x0094, uint32(addr>>32))
	m.set(0x0098, length)
	m.set(0x009c, seed)
	m.set(0x00a0, command)
}

// dma runs a DMA test and returns TEST_STATUS and TEST_RESULT.
func (m *machine) dma(command uint32, addr uint64, length, seed uint32) (status, result uint32) {
	m.t.Helper()
	m.begin(command, addr, length, seed)
	m.until("the DMA test", func() bool { status = m.get(0x00a4); return status != testBusy })
	return status, m.get(0x00a8)
}

// at reads memory as the guest's processor sees it.
func (m *machine) at(addr uint64, n int) []byte {
	m.t.Helper()
	b := make([]byte, n)
	m.check(m.Read(addr, b))
	return b
}

// TestDMA moves the test pattern to and from memory of each kind.
func TestDMA(t *testing.T) {
	m := start(t)
	crc := crc32.ChecksumIEEE
	for _, c := range []struct {
		name     string
		addr     uint64
		messages bool
	}{
		{"RAM, by the file", target, false},
		{"RAM, across pages, not aligned", target + 0x10ffd, false},
		{"the last of RAM", memory - 65536, false},
		{"memory without a file, by messages", vram, true},
	} {
		before := m.dev.Stats().Server.DMAMessages
		want := pattern(65536, 0xfedcba98)
		if s, r := m.dma(testWrite, c.addr, 65536, 0xfedcba98); s != testDone || r != crc(want) {
			t.Errorf("%s: write: status %d, result %#x, want %#x", c.name, s, r, crc(want))
		}
		if !bytes.Equal(m.at(c.addr, 65536), want) {
			t.Errorf("%s: the pattern is not there", c.name)
		}
		other := bytes.Repeat([]byte{1, 2, 3, 4, 5}, 4)
		m.check(m.Write(c.addr, other))
		if s, r := m.dma(testRead, c.addr, 20, 0); s != testDone || r != crc(other) {
			t.Errorf("%s: read: status %d, result %#x, want %#x", c.name, s, r, crc(other))
		}
		if got := m.dev.Stats().Server.DMAMessages != before; got != c.messages {
			t.Errorf("%s: messages used: %v", c.name, got)
		}
	}

	rom := m.at(biosROM, 4096)
	if s, r := m.dma(testRead, biosROM, 4096, 0); s != testDone || r != crc(rom) {
		t.Errorf("ROM: status %d, result %#x, want %#x", s, r, crc(rom))
	}
	m.dma(testWrite, biosROM, 4096, 1)
	if !bytes.Equal(m.at(biosROM, 4096), rom) {
		t.Error("ROM has changed")
	}
}

// TestDMARefused: what cannot be done is a status and a counter, and changes
// nothing.
func TestDMARefused(t *testing.T) {
	m := start(t)
	m.fill(target, 65536, 0xa5)
	m.fill(memory-4096, 4096, 0xa5)
	failed := m.counter(17) // dma_errors
	for _, c := range []struct {
		name    string
		command uint32
		addr    uint64
		length  uint32
		status  uint32
	}{
		{"nothing there", testRead, nothing, 4, testFailed},
		{"nothing there", testWrite, nothing, 4, testFailed},
		{"beyond all RAM", testWrite, 1 << 40, 4, testFailed},
		{"around the end of the address space", testWrite, 1<<64 - 4, 8, testFailed},
		{"its own registers", testRead, bar0, 4, testFailed},
		{"its own MSI-X table", testWrite, bar2, 16, testFailed},
		{"no length", testWrite, target, 0, testBadLength},
		{"not a multiple of 4", testWrite, target, 6, testBadLength},
		{"too long", testWrite, target, 65540, testBadLength},
		{"much too long", testRead, target, 0xfffffffc, testBadLength},
	} {
		if s, _ := m.dma(c.command, c.addr, c.length, 7); s != c.status {
			t.Errorf("%s: status %d, want %d", c.name, s, c.status)
		}
	}
	if got := m.counter(17) - failed; got != 6 {
		t.Errorf("%d failures counted, want 6", got)
	}
	bad := m.counter(47) // mmio_bad_value
	m.begin(3, target, 4, 7)
	m.want("TEST_STATUS after a command that is none", 0x00a4, testBadLength)
	if got := m.counter(47) - bad; got != 1 {
		t.Errorf("%d bad values counted, want 1", got)
	}

	m.setConfig(0x04, 2, 2) // bus master off
	m.want("STATUS without bus mastering", 0x0014, 0x11)
	for _, addr := range []uint64{target, vram} {
		if s, _ := m.dma(testWrite, addr, 4096, 7); s != testFailed {
			t.Errorf("write to %#x without bus mastering: status %d", addr, s)
		}
	}
	if !bytes.Equal(m.ram[target:target+65536], bytes.Repeat([]byte{0xa5}, 65536)) {
		t.Error("memory has changed")
	}
	if !bytes.Equal(m.at(vram, 4), make([]byte, 4)) {
		t.Error("memory without a file has changed")
	}
	m.setConfig(0x04, 2, 6)
	if s, _ := m.dma(testWrite, target, 4096, 7); s != testDone {
		t.Errorf("with bus mastering again: status %d", s)
	}
}
