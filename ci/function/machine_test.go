// SPDX-License-Identifier: Apache-2.0

package function

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"toebox/ci/rig"
	"toebox/images/qtest"
	"toebox/images/toolchain/toolchaintest"
	"toebox/vdev/device"
)

const (
	memory   = 64 << 20
	patience = 60 * time.Second

	// Guest physical addresses. RAM below 1 MiB has holes.
	cookies   = 0x100000 // where MSI-X messages go, 64 bytes apart
	target    = 0x200000 // of test DMA
	bar0      = 0xe0000000
	bar2      = 0xe0010000
	vram      = 0xe4000000 // memory that has no file to be mapped
	nothing   = 0xe8000000 // nobody answers here
	biosROM   = 0xfffc0000
	ecam      = 0xb0000000
	intxInput = 21 // of the I/O APIC: a q35's INTA# of slot n is input 16 + 4 + n mod 4

	allOnes = 0xffffffff
)

// The functions of the machine.
var (
	hostBridge = qtest.NewBDF(0, 0, 0)
	adapter    = qtest.NewBDF(0, 5, 0)
	display    = qtest.NewBDF(0, 6, 0)
)

// machine is QEMU with an adapter in it, both of this test's.
type machine struct {
	*qtest.Machine
	t   *testing.T
	dev *device.Device
	ram []byte // all of the machine's memory
	mon *monitor
}

// start makes a machine whose BARs have their places and whose adapter answers
// and may master the bus.
func start(t *testing.T) *machine {
	t.Helper()
	qemu := toolchaintest.QEMU(t)
	dir, err := os.MkdirTemp("", "tbf") // short enough for a socket
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	m := &machine{t: t}
	path := filepath.Join(dir, "dev")
	m.serve(path)
	m.Machine, err = qtest.Start(t.Context(), qtest.Config{
		Command: qemu.Command, Dir: dir, Memory: memory,
		Args: []string{
			"-device", fmt.Sprintf(`{"driver":"vfio-user-pci","addr":"5.0","socket":{"type":"unix","path":%q}}`, path),
			"-device", "bochs-display,addr=6.0",
			"-qmp", "unix:" + filepath.Join(dir, "qmp") + ",server=on,wait=off",
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := m.Machine.Close(); err != nil {
			t.Error(err)
		}
		if log := m.Log(); log != "" {
			t.Errorf("QEMU says: %s", log)
		}
	})
	m.ram, err = unix.Mmap(int(m.RAM.Fd()), 0, memory, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	m.check(err)
	t.Cleanup(func() { unix.Munmap(m.ram) }) //nolint:errcheck // nobody looks any more
	m.mon = dialMonitor(t, filepath.Join(dir, "qmp"))
	m.place()
	return m
}

// serve makes the adapter and offers it at path. No time limit of the adapter's own
// frees a request of QEMU that waits for a transfer which QEMU answers later: QEMU
// gives up, and says so.
func (m *machine) serve(path string) {
	m.t.Helper()
	dev, err := device.New(device.Config{Firmware: rig.Firmware, Net: device.Net{Mode: device.ModeNAT}, Seed: 1, DMATimeout: 2 * patience})
	m.check(err)
	m.dev = dev
	m.t.Cleanup(func() {
		if err := dev.Close(); err != nil {
			m.t.Error(err)
		}
	})
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	m.check(err)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- dev.Serve(ctx, l) }()
	m.t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			m.t.Error(err)
		}
		l.Close()
		s := dev.Stats().Server
		if s.Errors != 0 || s.NoReplyFailed != 0 || s.StrayReplies != 0 {
			m.t.Errorf("the server refused messages: %+v", *s)
		}
	})
}

// place does what a guest's firmware does after a reset.
func (m *machine) place() {
	m.t.Helper()
	for i, v := range []uint32{bar0, 0, bar2, 0} {
		m.setConfig(uint8(0x10+4*i), 4, v)
	}
	m.check(m.WriteConfig(display, 0x10, 4, vram))
	m.check(m.WriteConfig(display, 0x04, 2, 2))
	m.setConfig(0x04, 2, 6)
}

func (m *machine) check(err error) {
	m.t.Helper()
	if err != nil {
		m.t.Fatal(err)
	}
}

// until looks again and again until met.
func (m *machine) until(what string, met func() bool) {
	m.t.Helper()
	for deadline := time.Now().Add(patience); !met(); {
		if time.Now().After(deadline) {
			m.t.Fatalf("waited in vain for %s; QEMU says: %s", what, m.Log())
		}
	}
}

// settle returns when QEMU has seen what the adapter signalled so far: the read
// is answered after all writes posted before it, and QEMU's main loop goes round
// between two commands.
func (m *machine) settle() {
	m.t.Helper()
	for range 3 {
		m.get(0x0000)
		m.config(0x00, 4)
	}
}

func (m *machine) config(offset uint8, size int) uint32 {
	m.t.Helper()
	v, err := m.ReadConfig(adapter, offset, size)
	m.check(err)
	return v
}

func (m *machine) setConfig(offset uint8, size int, v uint32) {
	m.t.Helper()
	m.check(m.WriteConfig(adapter, offset, size, v))
}

// capability finds a capability of configuration space.
func (m *machine) capability(id uint32) uint8 {
	m.t.Helper()
	p := m.config(0x34, 1)
	for range 48 {
		if p == 0 {
			break
		}
		if m.config(uint8(p), 1) == id {
			return uint8(p)
		}
		p = m.config(uint8(p)+1, 1)
	}
	m.t.Fatalf("no capability %#x", id)
	return 0
}

// get and set access a register.
func (m *machine) get(offset uint64) uint32 {
	m.t.Helper()
	v, err := m.Read32(bar0 + offset)
	m.check(err)
	return v
}

func (m *machine) set(offset uint64, v uint32) {
	m.t.Helper()
	m.check(m.Write32(bar0+offset, v))
}

// want checks a register.
func (m *machine) want(what string, offset uint64, v uint32) {
	m.t.Helper()
	if got := m.get(offset); got != v {
		m.t.Errorf("%s: register %#x reads %#x, want %#x", what, offset, got, v)
	}
}

// counter reads a counter of SPEC.md §13.
func (m *machine) counter(index uint32) uint64 {
	m.t.Helper()
	m.set(0x0200, index)
	return uint64(m.get(0x0208))<<32 | uint64(m.get(0x0204))
}

// word is 32 bits of the machine's memory.
func (m *machine) word(at int) uint32 { return binary.LittleEndian.Uint32(m.ram[at:]) }

// fill gives memory one value.
func (m *machine) fill(at, n int, v byte) {
	for i := range m.ram[at : at+n] {
		m.ram[at+i] = v
	}
}

// monitor is a QMP connection that knows one command at a time.
type monitor struct {
	conn net.Conn
	in   *json.Decoder
}

// dialMonitor connects and leaves QMP's capabilities negotiation behind.
func dialMonitor(t *testing.T, path string) *monitor {
	t.Helper()
	c, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	mon := &monitor{conn: c, in: json.NewDecoder(c)}
	if err := mon.execute("qmp_capabilities", ""); err != nil {
		t.Fatal(err)
	}
	return mon
}

// execute runs a command and, when event is not empty, waits for that event.
func (m *monitor) execute(command, event string) error {
	if err := m.conn.SetDeadline(time.Now().Add(patience)); err != nil {
		return err
	}
	if _, err := fmt.Fprintf(m.conn, `{"execute":%q}`, command); err != nil {
		return err
	}
	for done := false; !done || event != ""; {
		var line struct {
			Return, Error json.RawMessage
			Event         string
		}
		if err := m.in.Decode(&line); err != nil {
			return fmt.Errorf("qmp: %s: %w", command, err)
		}
		switch {
		case line.Error != nil:
			return fmt.Errorf("qmp: %s: %s", command, line.Error)
		case line.Return != nil:
			done = true
		case line.Event == event:
			event = ""
		}
	}
	return nil
}
