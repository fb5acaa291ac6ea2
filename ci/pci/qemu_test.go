// SPDX-License-Identifier: Apache-2.0

package pci_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"toebox/images/qtest"
	"toebox/images/toolchain/toolchaintest"
	vfiouser "toebox/vfio-user"
	"toebox/vfio-user/pci"
)

const (
	patience = 60 * time.Second
	ram      = 64 << 20

	// Guest physical addresses and I/O ports.
	cookies   = 0x100000 // where messages go, 64 bytes apart
	bar0      = 0xe0000000
	bar1      = 0xc000
	bar2      = 0xe0001000
	bar4      = 0xe0200000
	romAt     = 0xe0400000
	ecam      = 0xb0000000
	intxInput = 21 // of the I/O APIC: a q35's INTA# of slot n is input 16 + 4 + n mod 4

	// Places of the registers that the test uses.
	command = 0x04
	pmcsr   = 0x44
	msi     = 0x48
	msix    = 0x60
	express = 0x80
)

// machine is QEMU with the device at 00:05.0, or at 01:00.0 behind a root port.
type machine struct {
	*qtest.Machine
	t   *testing.T
	dev *every
	srv *vfiouser.Server
	bdf qtest.BDF
	mem []byte
}

func start(t *testing.T, behindPort bool) *machine {
	t.Helper()
	qemu := toolchaintest.QEMU(t)
	dir, err := os.MkdirTemp("", "pci") // short enough for a socket
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	m := &machine{t: t, dev: newEvery(t), bdf: qtest.NewBDF(0, 5, 0)}
	path := filepath.Join(dir, "dev")
	m.serve(path)
	args, place := []string(nil), `"addr":"5.0"`
	if behindPort {
		args, place = []string{"-device", "pcie-root-port,id=rp,chassis=1,addr=4.0"}, `"bus":"rp"`
		m.bdf = qtest.NewBDF(1, 0, 0)
	}
	m.Machine, err = qtest.Start(t.Context(), qtest.Config{
		Command: qemu.Command, Dir: dir, Memory: ram,
		Args: append(args, "-device", fmt.Sprintf(`{"driver":"vfio-user-pci",%s,"socket":{"type":"unix","path":%q}}`, place, path)),
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := m.Close(); err != nil {
			t.Error(err)
		}
		if log := m.Log(); log != "" {
			t.Errorf("QEMU says: %s", log)
		}
	})
	m.mem, err = unix.Mmap(int(m.RAM.Fd()), 0, ram, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	m.check(err)
	t.Cleanup(func() { unix.Munmap(m.mem) }) //nolint:errcheck // nobody looks any more
	if behindPort {
		m.check(m.WriteConfig(qtest.NewBDF(0, 4, 0), 0x18, 4, 0x00010100)) // bus 1 is behind it
	}
	return m
}

func (m *machine) serve(path string) {
	m.t.Helper()
	var err error
	m.srv, err = vfiouser.NewServer(m.dev, m.dev.ServerConfig())
	m.check(err)
	m.dev.Connect(m.srv)
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	m.check(err)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- m.srv.Serve(ctx, l) }()
	m.t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			m.t.Error(err)
		}
		l.Close()
		if s := m.srv.Stats(); s.Errors != 0 || s.NoReplyFailed != 0 || s.StrayReplies != 0 {
			m.t.Errorf("the server refused messages: %+v", s)
		}
	})
}

// place does what firmware does after a reset.
func (m *machine) place() {
	m.t.Helper()
	for _, w := range []struct {
		at uint8
		v  uint32
	}{{0x10, bar0}, {0x14, bar1}, {0x18, bar2}, {0x20, bar4}, {0x24, 0}, {0x30, romAt | 1}} {
		m.set(w.at, 4, w.v)
	}
	m.set(command, 2, 7)
}

func (m *machine) check(err error) {
	m.t.Helper()
	if err != nil {
		m.t.Fatal(err)
	}
}

// get and set access configuration space.
func (m *machine) get(at uint8, n int) uint32 {
	m.t.Helper()
	v, err := m.ReadConfig(m.bdf, at, n)
	m.check(err)
	return v
}

func (m *machine) set(at uint8, n int, v uint32) {
	m.t.Helper()
	m.check(m.WriteConfig(m.bdf, at, n, v))
}

func (m *machine) load(addr uint64) uint32 {
	m.t.Helper()
	v, err := m.Read32(addr)
	m.check(err)
	return v
}

func (m *machine) store(addr uint64, v uint32) {
	m.t.Helper()
	m.check(m.Write32(addr, v))
}

// until looks again and again until met. Each look lets QEMU's main loop go on.
func (m *machine) until(what string, met func() bool) {
	m.t.Helper()
	for deadline := time.Now().Add(patience); !met(); m.get(0, 4) {
		if time.Now().After(deadline) {
			m.t.Fatalf("waited in vain for %s; QEMU says: %s", what, m.Log())
		}
	}
}

// message waits for the cookie that vector v writes and takes it away.
func (m *machine) message(v int) {
	m.t.Helper()
	p := m.mem[cookies+64*v:][:4]
	m.until("a message", func() bool { return binary.LittleEndian.Uint32(p) != 0 })
	if got := binary.LittleEndian.Uint32(p); got != 0x4000+uint32(v) {
		m.t.Errorf("vector %d wrote %#x", v, got)
	}
	clear(p)
}

// silent checks that vector v has written nothing.
func (m *machine) silent(what string, v int) {
	m.t.Helper()
	for range 3 {
		m.load(bar0)
		m.get(0, 4)
	}
	if got := binary.LittleEndian.Uint32(m.mem[cookies+64*v:]); got != 0 {
		m.t.Errorf("%s: vector %d wrote %#x", what, v, got)
	}
}

// signal has the device signal.
func (m *machine) signal(v uint32) {
	m.t.Helper()
	m.store(bar0+252, v)
}

// TestQEMUAttaches: QEMU takes the device without a word, and shows its guest
// what the function has.
func TestQEMUAttaches(t *testing.T) {
	m := start(t, false)
	own := m.dev.config(t)
	// QEMU shows an endpoint that is not behind a port as one of the root
	// complex, without a link. The list of capabilities starts elsewhere and
	// is in another order.
	var ids []uint32
	at := map[uint32]uint8{}
	for p := uint8(m.get(0x34, 1)); p != 0 && len(ids) < 48; p = uint8(m.get(p+1, 1)) {
		id := m.get(p, 1)
		ids = append(ids, id)
		at[id] = p
	}
	if len(ids) != 6 || at[0x01] != pmcsr-4 || at[0x05] != msi || at[0x11] != msix || at[0x10] != express || at[0x09] == 0 || at[0x0d] == 0 {
		t.Errorf("capabilities %x at %v", ids, at)
	}
	for _, r := range []struct{ at, n int }{{0x00, 4}, {0x08, 4}, {0x2c, 4}, {0x3d, 1}, {0x42, 2}, {0x4a, 2}, {0x62, 2}, {0x64, 4}, {0x68, 4}, {0x6e, 1}, {0x70, 4}, {0x74, 4}, {0x7c, 4}, {0x84, 4}} {
		want := binary.LittleEndian.Uint32(append(bytes.Clone(own[r.at:r.at+r.n]), 0, 0, 0, 0))
		if got := m.get(uint8(r.at), r.n); got != want {
			t.Errorf("register %#x: %#x, want %#x", r.at, got, want)
		}
	}
	// The extended ones, by the enhanced mechanism.
	host := qtest.NewBDF(0, 0, 0)
	m.check(m.WriteConfig(host, 0x64, 4, 0))
	m.check(m.WriteConfig(host, 0x60, 4, ecam|1)) // PCIEXBAR of a q35
	want := map[uint32]bool{0x20001: true, 0x10003: true, 0x10017: true, 0x1000b: true, 0x10018: true}
	for p := uint64(0x100); p != 0; {
		header := m.load(ecam + 5<<15 + p)
		if !want[header&0xfffff] || p < 0x100 {
			t.Fatalf("extended capability %#x at %#x", header, p)
		}
		delete(want, header&0xfffff)
		p = uint64(header >> 20)
	}
	if len(want) != 0 {
		t.Errorf("extended capabilities %v are missing", want)
	}
	// Sizes of the BARs.
	for _, b := range []struct {
		at   uint8
		want uint32
	}{{0x10, 0xffffff00}, {0x14, 0xffffffe1}, {0x18, 0xfffff000}, {0x1c, 0}, {0x20, 0xffe0000c}, {0x24, 0xffffffff}, {0x30, 0xfffff001}} {
		m.set(b.at, 4, 0xffffffff)
		if got := m.get(b.at, 4); got != b.want {
			t.Errorf("BAR register %#x: size mask %#x, want %#x", b.at, got, b.want)
		}
	}
}

// TestQEMUBehindPort: the device is an endpoint with a link, as the function
// says.
func TestQEMUBehindPort(t *testing.T) {
	m := start(t, true)
	own := m.dev.config(t)
	for _, at := range []int{0x00, express, express + 4, express + 0x0c} {
		want := binary.LittleEndian.Uint32(own[at:])
		got := m.get(uint8(at), 4)
		if at == express { // the list is in another order
			want, got = want&^0xff00, got&^0xff00
		}
		if got != want {
			t.Errorf("register %#x: %#x, want %#x", at, got, want)
		}
	}
}

// TestQEMUUses: BARs of each kind, ROM, interrupts of each kind.
func TestQEMUUses(t *testing.T) {
	m := start(t, false)
	m.check(m.InterceptIn("ioapic"))
	m.place()
	m.store(bar0+4, 0x11223344)
	if got := m.load(bar0 + 4); got != 0x11223344 {
		t.Errorf("BAR0 %#x", got)
	}
	if got, err := m.In32(bar1 + 4); err != nil || got != 0x11223344 {
		t.Errorf("BAR1 %#x, %v", got, err)
	}
	if got := m.load(bar4 + 0x103000); got != 0x06050403 {
		t.Errorf("BAR4 %#x", got)
	}
	p := make([]byte, romSize)
	m.check(m.Read(romAt, p))
	if !bytes.Equal(p, rom()) {
		t.Errorf("ROM % x...", p[:16])
	}

	// QEMU lowers the line at each access to a BAR, and raises it again if the
	// device says so: nobody touches one while the line is to rise.
	line := func(what string, on bool) {
		t.Helper()
		m.until(what, func() bool { return m.IRQ(intxInput) == on })
	}
	m.signal(0)
	line("the pin to rise", true)
	if got := m.get(0x06, 2); got&8 == 0 {
		t.Errorf("status %#x", got)
	}
	m.signal(0xffffffff)
	line("the pin to fall", false)

	// MSI: 4 vectors write consecutive numbers to one place.
	m.set(msi+4, 4, cookies)
	m.set(msi+8, 4, 0)
	m.set(msi+12, 2, 0x4000)
	m.set(msi+16, 4, 0)
	m.set(msi+2, 2, 1|2<<4)
	for v := range uint32(msiCount) {
		m.signal(v)
		word := m.mem[cookies:][:4]
		m.until("MSI", func() bool { return binary.LittleEndian.Uint32(word) == 0x4000+v })
		clear(word)
	}
	m.set(msi+16, 4, 1) // the mask
	m.signal(0)
	m.silent("masked", 0)
	m.set(msi+16, 4, 0)
	m.message(0)
	m.set(msi+2, 2, 0)

	m.enableMSIX()
	for _, v := range []int{0, 1, 31, msixCount - 1} {
		m.signal(uint32(v))
		m.message(v)
	}
	m.set(msix+2, 2, 0xc000)
	m.signal(3)
	m.silent("function mask", 3)
	m.set(msix+2, 2, 0x8000)
	m.message(3)
}

func (m *machine) enableMSIX() {
	m.t.Helper()
	for v := range msixCount {
		for i, w := range [4]uint32{uint32(cookies + 64*v), 0, 0x4000 + uint32(v), 0} {
			m.store(bar2+uint64(16*v+4*i), w)
		}
	}
	m.set(msix+2, 2, 0x8000)
}

// TestQEMUResets: function-level reset, sleep and a reset of the machine leave
// a device that works.
func TestQEMUResets(t *testing.T) {
	m := start(t, false)
	for _, c := range []struct {
		what string
		kind pci.ResetKind
		do   func()
	}{
		{"function-level reset", pci.ResetFunction, func() { m.set(express+8, 2, m.get(express+8, 2)|1<<15) }},
		{"sleep", pci.ResetPower, func() { m.set(pmcsr, 2, 3); m.set(pmcsr, 2, 0) }},
		{"system reset", pci.ResetBus, func() { m.check(m.Out8(0xcf9, 6)) }},
		{"another", pci.ResetBus, func() { m.check(m.Out8(0xcf9, 6)) }},
	} {
		m.place()
		m.store(bar0+4, 0x11223344)
		m.enableMSIX()
		m.signal(1)
		m.message(1)
		before := m.dev.took(c.kind)
		c.do()
		m.until(c.what, func() bool { return m.dev.took(c.kind) > before })
		m.until("Command to be clear", func() bool { return m.get(command, 2) == 0 })
		m.place()
		if got := m.load(bar0 + 4); got != 0 {
			t.Errorf("%s: BAR0 %#x", c.what, got)
		}
		if got := m.dev.State(); got.Mode != pci.ModeINTx || !got.Memory || !got.Master || got.Power != 0 {
			t.Errorf("%s: state %+v", c.what, got)
		}
		m.set(msix+2, 2, 0)
	}
}
