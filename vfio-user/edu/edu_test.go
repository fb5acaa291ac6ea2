// SPDX-License-Identifier: Apache-2.0

package edu_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"net"
	"os"
	"testing"
	"time"

	vfiouser "toebox/vfio-user"
	"toebox/vfio-user/edu"
	"toebox/vfio-user/vfiousertest"
)

// driver plays the driver of a device, and the machine around it: 64 KiB of RAM
// at 0, 4 KiB that must not be written at 0x10000.
type driver struct {
	t   *testing.T
	dev *edu.Device
	c   *vfiouser.Client
	ram *os.File
}

const (
	ramSize = 0x10000
	romAt   = 0x10000
)

func start(t *testing.T, cfg edu.Config) *driver {
	t.Helper()
	dev, err := edu.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { dev.Close() }) // after the server has ended
	d := &driver{t: t, dev: dev, ram: vfiousertest.Memory(t, ramSize+4096)}
	d.connect()
	return d
}

// connect begins a session.
func (d *driver) connect() {
	d.t.Helper()
	c, err := vfiouser.NewClient(vfiousertest.Connect(d.t, d.dev.Server()), vfiouser.ClientConfig{})
	if err != nil {
		d.t.Fatal(err)
	}
	d.t.Cleanup(func() { c.Close() })
	d.c = c
	d.check(c.Map(0, ramSize, 0, vfiouser.ProtRead|vfiouser.ProtWrite, d.ram))
	d.check(c.Map(romAt, 4096, ramSize, vfiouser.ProtRead, d.ram))
}

func (d *driver) check(err error) {
	d.t.Helper()
	if err != nil {
		d.t.Fatal(err)
	}
}

func (d *driver) load(region int, offset uint64, size int) uint64 {
	d.t.Helper()
	var b [8]byte
	d.check(d.c.ReadRegion(region, offset, b[:size]))
	return binary.LittleEndian.Uint64(b[:])
}

func (d *driver) store(region int, offset uint64, size int, v uint64) {
	d.t.Helper()
	d.check(d.c.WriteRegion(region, offset, binary.LittleEndian.AppendUint64(nil, v)[:size]))
}

func (d *driver) want(what string, got, want uint64) {
	d.t.Helper()
	if got != want {
		d.t.Errorf("%s: %#x, want %#x", what, got, want)
	}
}

// poll waits until the bits of a register are clear.
func (d *driver) poll(offset, bits uint64) {
	d.t.Helper()
	for deadline := time.Now().Add(time.Minute); d.load(0, offset, 4)&bits != 0; {
		if time.Now().After(deadline) {
			d.t.Fatalf("bits %#x of register %#x stay set", bits, offset)
		}
	}
}

// transfer makes a transfer and waits for its end.
func (d *driver) transfer(source, dest, count, command uint64) {
	d.t.Helper()
	for i, v := range []uint64{source, dest, count, command} {
		d.store(0, 0x80+8*uint64(i), 8, v)
	}
	d.poll(0x98, 1)
}

func (d *driver) eventFD(index int) *vfiousertest.EventFD {
	d.t.Helper()
	ev := vfiousertest.NewEventFD(d.t)
	d.check(d.c.AssignIRQ(index, 0, ev.FD()))
	return ev
}

func TestRegisters(t *testing.T) {
	d := start(t, edu.Config{})
	const ones = math.MaxUint64
	for _, tt := range []struct {
		offset uint64
		size   int
		write  uint64 // before the read
		want   uint64
	}{
		{0x00, 4, 0xffffffff, 0x010000ed}, // read only
		{0x00, 8, 0, ones},                // too wide for this half
		{0x00, 2, 0, 0},                   // too narrow for any
		{0x04, 4, 0x12345678, 0xedcba987},
		{0x04, 2, 0, 0},
		{0x04, 4, 0xffffffff, 0},
		{0x04, 4, 0xfffffffe, 1},
		{0x20, 4, 0xffffffff, 0x80}, // one bit can be written
		{0x20, 4, 0xffffff7f, 0x00},
		{0x24, 4, 0xffffffff, 0}, // read only
		{0x0c, 4, 0, 0xffffffff}, // no register
		{0x60, 4, 0, 0xffffffff}, // write only
		{0x64, 4, 0, 0xffffffff},
		{0x80, 8, 0x1122334455667788, 0x1122334455667788},
		{0x80, 4, 0x99aabbcc, 0x99aabbcc},
		{0x80, 8, 0, 0},
		{0x84, 4, 0, 0xffffffff},
		{0x88, 8, 0xffffffffffffffff, 0xffffffffffffffff},
		{0x90, 8, 0x8000000000000001, 0x8000000000000001},
		{0x98, 8, 6, 0}, // does not start anything
		{0xa0, 8, 0, ones},
		{0x40000, 8, 0, ones}, // the buffer is for DMA only
		{0xffff8, 8, 0, ones},
		{0xfffff, 1, 0xff, 0},
	} {
		d.store(0, tt.offset, tt.size, tt.write)
		d.want(fmt.Sprintf("register %#x, size %d", tt.offset, tt.size), d.load(0, tt.offset, tt.size), tt.want)
	}
	// 4 bytes written to a wide register clear the rest.
	d.store(0, 0x80, 8, math.MaxUint64)
	d.store(0, 0x80, 4, 1)
	d.want("source", d.load(0, 0x80, 8), 1)
	// Sizes that no processor has.
	for _, n := range []int{0, 3, 5, 16, 1 << 20} {
		p := bytes.Repeat([]byte{0xff}, n)
		d.check(d.c.WriteRegion(0, 0, p))
		d.check(d.c.ReadRegion(0, 0, p))
		if !bytes.Equal(p, make([]byte, n)) {
			t.Errorf("a read of %d bytes is not zero", n)
		}
	}
	d.want("liveness after that", d.load(0, 0x04, 4), 1)
	d.store(0, 0x04, 8, 0) // too wide to change it
	d.want("liveness after 8 bytes", d.load(0, 0x04, 4), 1)
}

func TestConfigSpace(t *testing.T) {
	d := start(t, edu.Config{})
	head := []byte{
		0x34, 0x12, 0xe8, 0x11, // QEMU's ids
		0x00, 0x00, 0x10, 0x00, // command, status: capabilities
		0x10, 0x00, 0xff, 0x00, // revision, class
		0x00, 0x00, 0x00, 0x00,
		0x00, 0x00, 0x00, 0x00, // BAR0
	}
	got := make([]byte, 256)
	d.check(d.c.ReadRegion(7, 0, got))
	if !bytes.Equal(got[:len(head)], head) || got[0x34] != 0x40 || got[0x3d] != 1 || !bytes.Equal(got[0x40:0x44], []byte{0x05, 0, 0x80, 0}) {
		t.Errorf("configuration space\n%x", got)
	}
	d.check(d.c.WriteRegion(7, 0, bytes.Repeat([]byte{0xff}, 256)))
	for _, tt := range []struct{ offset, want uint64 }{
		{0x00, 0x11e81234}, {0x04, 0x00100507}, {0x0c, 0xff}, {0x10, 0xfff00000}, {0x14, 0}, {0x3c, 0x1ff}, {0x40, 0x00810005}, {0x44, 0xfffffffc},
	} {
		d.want(fmt.Sprintf("config %#x after ones", tt.offset), d.load(7, tt.offset, 4), tt.want)
	}
	d.store(0, 0x04, 4, 0)
	d.check(d.c.Reset())
	d.want("command after reset", d.load(7, 0x04, 4), 0x00100000)
	d.want("BAR0 after reset", d.load(7, 0x10, 4), 0)
	d.want("MSI after reset", d.load(7, 0x40, 4), 0x00800005)
	d.want("liveness after reset", d.load(0, 0x04, 4), 0xffffffff)
}

func TestFactorial(t *testing.T) {
	d := start(t, edu.Config{})
	ev := d.eventFD(vfiouser.IRQMSI)
	d.store(7, 0x42, 2, 1)
	for _, tt := range []struct{ n, want uint64 }{
		{0, 1}, {1, 1}, {5, 120}, {12, 479001600}, {13, 0x7328cc00}, {33, 0x80000000}, {34, 0}, {0xffffffff, 0},
	} {
		for _, irq := range []uint64{0, 0x80} {
			d.store(0, 0x64, 4, 0xffffffff)
			d.store(0, 0x20, 4, irq)
			d.store(0, 0x08, 4, tt.n)
			d.poll(0x20, 1)
			d.want(fmt.Sprintf("factorial of %d", tt.n), d.load(0, 0x08, 4), tt.want)
			d.want("interrupt status", d.load(0, 0x24, 4), irq>>7)
			if got := ev.Take(); got != int(irq>>7) {
				t.Errorf("factorial of %d, interrupt wanted %#x: %d interrupts", tt.n, irq, got)
			}
		}
	}
}

func TestINTx(t *testing.T) {
	d := start(t, edu.Config{})
	ev := d.eventFD(vfiouser.IRQINTx)
	unmask := func() { d.check(d.c.MaskIRQ(vfiouser.IRQINTx, 0, 1, false)) }
	expect := func(what string, n int, status uint64) {
		t.Helper()
		if got := ev.Take(); got != n {
			t.Errorf("%s: %d interrupts, want %d", what, got, n)
		}
		d.want(what+": status", d.load(7, 0x06, 2)&8, status)
	}
	d.store(0, 0x60, 4, 0)
	expect("raised by nothing", 0, 0)
	d.store(0, 0x60, 4, 0x30)
	expect("raised", 1, 8)
	d.want("interrupt status", d.load(0, 0x24, 4), 0x30)
	d.store(0, 0x60, 4, 0x40)
	expect("raised once more", 0, 8)
	unmask()
	expect("unmasked", 1, 8)
	d.store(0, 0x64, 4, 0x50)
	d.want("interrupt status", d.load(0, 0x24, 4), 0x20)
	unmask()
	expect("acknowledged in part", 1, 8)
	d.store(0, 0x64, 4, 0xffffffff)
	unmask()
	expect("acknowledged", 0, 0)
	d.store(7, 0x04, 2, 0x400)
	d.store(0, 0x60, 4, 1)
	expect("raised while disabled", 0, 8)
	d.store(7, 0x04, 2, 0)
	expect("enabled", 1, 8)
	d.store(7, 0x42, 2, 1)
	unmask()
	expect("MSI enabled", 0, 0)
	d.store(7, 0x42, 2, 0)
	expect("MSI disabled", 0, 0)
	d.store(0, 0x60, 4, 0)
	expect("raised by nothing new", 1, 8)
	d.check(d.c.Reset())
	unmask()
	expect("reset", 0, 0)
}

func TestMSI(t *testing.T) {
	d := start(t, edu.Config{})
	intx := d.eventFD(vfiouser.IRQINTx)
	msi := d.eventFD(vfiouser.IRQMSI)
	d.store(7, 0x42, 2, 1)
	for _, tt := range []struct {
		reg, v uint64
		want   int
	}{
		{0x60, 0, 0}, {0x60, 1, 1}, {0x60, 1, 1}, {0x60, 0, 1}, {0x64, 1, 0}, {0x60, 0, 0},
	} {
		d.store(0, tt.reg, 4, tt.v)
		if got := msi.Take(); got != tt.want {
			t.Errorf("%#x written to %#x: %d interrupts, want %d", tt.v, tt.reg, got, tt.want)
		}
	}
	if n := intx.Take(); n != 0 {
		t.Errorf("%d interrupts on the pin", n)
	}
}

func TestTransfer(t *testing.T) {
	d := start(t, edu.Config{DMAMask: 0xfffff})
	ev := d.eventFD(vfiouser.IRQMSI)
	d.store(7, 0x42, 2, 1)
	d.store(7, 0x04, 2, 4)
	whole := make([]byte, 4096)
	for i := range whole {
		whole[i] = byte(i*7 + i>>8)
	}
	_, err := d.ram.WriteAt(whole, 0x2001)
	d.check(err)
	ram := func(at int64, n int) []byte {
		p := make([]byte, n)
		_, err := d.ram.ReadAt(p, at)
		d.check(err)
		return p
	}
	d.transfer(0xabc00002001, 0x40000, 4096, 1) // the mask takes the top off
	d.want("command", d.load(0, 0x98, 8), 0)
	d.transfer(0x40000, 0xff00000005000, 4096, 0xa5a500000000_0007)
	d.want("command", d.load(0, 0x98, 8), 0xa5a500000000_0006)
	d.want("interrupt status", d.load(0, 0x24, 4), 0x100)
	if !bytes.Equal(ram(0x5000, 4096), whole) {
		t.Error("4096 bytes did not come through")
	}
	if n := ev.Take(); n != 1 {
		t.Errorf("%d interrupts for one", n)
	}
	d.transfer(0x40000+4000, 0x7000, 96, 3)
	if !bytes.Equal(ram(0x7000, 97), append(whole[4000:4096:4096], 0)) {
		t.Error("the end of the buffer did not come through")
	}
	d.transfer(0x41000, 0x7000, 0, 3)
	d.want("faults", d.dev.Faults(), 0)

	// None of these changes RAM; each ends, with its interrupt.
	before := ram(0, ramSize+4096)
	const top = math.MaxUint64
	for _, tt := range []struct {
		name                         string
		source, dest, count, command uint64
		noMaster                     bool
	}{
		{"below the buffer", 0x3ffff, 0x1000, 2, 7, false},
		{"over the end", 0x40fff, 0x1000, 2, 7, false},
		{"behind it", 0x41001, 0x1000, 0, 7, false},
		{"too much", 0x40000, 0x1000, 4097, 7, false},
		{"all there is", 0x40000, 0x1000, top, 7, false},
		{"around the end of numbers", 0x40800, 0x1000, top - 0x407ff, 7, false},
		{"around it to the buffer's start", 0x40800, 0x1000, top - 0x7ff, 7, false},
		{"from the last address", top, 0x1000, 2, 7, false},
		{"into nowhere", 0x1000, top - 3, 8, 5, false},
		{"no memory there", 0x40000, 0x80000, 8, 7, false},
		{"nor there", 0x80000, 0x40000, 8, 5, false},
		{"memory that is read only", 0x40000, romAt, 8, 7, false},
		{"not a bus master", 0x40000, 0x1000, 8, 7, true},
		{"nor a reader", 0x1000, 0x40000, 8, 5, true},
	} {
		faults := d.dev.Faults()
		d.store(0, 0x64, 4, top)
		command := uint64(4)
		if tt.noMaster {
			command = 0
		}
		d.store(7, 0x04, 2, command)
		d.transfer(tt.source, tt.dest, tt.count, tt.command)
		d.want(tt.name+": faults", d.dev.Faults(), faults+1)
		d.want(tt.name+": interrupt status", d.load(0, 0x24, 4), 0x100)
		if n := ev.Take(); n != 1 {
			t.Errorf("%s: %d interrupts", tt.name, n)
		}
		if !bytes.Equal(ram(0, ramSize+4096), before) {
			t.Fatalf("%s: memory has changed", tt.name)
		}
	}
	// What could not be read is zero, what could be is there.
	d.store(7, 0x04, 2, 4)
	d.transfer(romAt+4096-4, 0x40000, 8, 1)
	d.transfer(0x40000, 0x1000, 16, 3)
	want := append(make([]byte, 8), whole[8:16]...)
	if got := ram(0x1000, 16); !bytes.Equal(got, want) {
		t.Errorf("buffer %x, want %x", got, want)
	}
}

// TestRunning looks at the device while a transfer waits for memory that has no
// file: its DMA message is answered last.
func TestRunning(t *testing.T) {
	dev, err := edu.New(edu.Config{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { dev.Close() })
	p := vfiousertest.NewPeer(t, vfiousertest.Connect(t, dev.Server()))
	p.Version()
	word := binary.NativeEndian.AppendUint64
	do := func(id, cmd uint16, payload []byte) vfiousertest.Message {
		t.Helper()
		m := p.Do(vfiousertest.Message{ID: id, Command: cmd, Payload: payload})
		if m.Flags&vfiousertest.Failed != 0 {
			t.Fatalf("command %d: errno %d", cmd, m.Errno)
		}
		return m
	}
	store := func(region, offset, v uint64) { // 8 bytes, or 2 of configuration space
		t.Helper()
		n := uint64(8)
		if region == 7 {
			n = 2
		}
		do(1, 10, append(word(word(nil, offset), region|n<<32), word(nil, v)[:n]...))
	}
	load := func(offset uint64) uint64 {
		t.Helper()
		m := do(2, 9, word(word(nil, offset), 8<<32))
		return binary.LittleEndian.Uint64(m.Payload[16:])
	}
	// DMA_MAP: argsz 32, flags read and write, offset, address, size; no file.
	do(3, 2, word(word(word(word(nil, 32|3<<32), 0), 0x1000), 0x1000))
	store(7, 0x04, 4)
	store(0, 0x80, 0x1010)
	store(0, 0x88, 0x40000)
	store(0, 0x90, 4)
	// The reply to the start and the DMA message come in either order.
	p.Send(vfiousertest.Message{ID: 4, Command: 10, Payload: word(word(word(nil, 0x98), 8<<32), 5)}.Bytes())
	var ask vfiousertest.Message
	for range 2 {
		if m := p.Recv(); m.Command == 11 {
			ask = m
		}
	}
	if want := word(word(nil, 0x1010), 4); !bytes.Equal(ask.Payload, want) {
		t.Fatalf("the device asks for %x, want %x", ask.Payload, want)
	}
	for reg := uint64(0x80); reg <= 0x98; reg += 8 {
		store(0, reg, 0x1111111111111111)
	}
	for i, want := range []uint64{0x1010, 0x40000, 4, 5} {
		if got := load(0x80 + 8*uint64(i)); got != want {
			t.Errorf("register %#x is %#x while the transfer runs, want %#x", 0x80+8*i, got, want)
		}
	}
	p.Send(vfiousertest.Message{ID: ask.ID, Command: 11, Flags: vfiousertest.Reply, Payload: append(ask.Payload, "data"...)}.Bytes())
	for deadline := time.Now().Add(time.Minute); load(0x98) != 4; {
		if time.Now().After(deadline) {
			t.Fatal("the transfer does not end")
		}
	}
	if n := dev.Faults(); n != 0 {
		t.Errorf("%d faults", n)
	}
}

// TestReconnect: the state outlives a client, its memory and eventfds do not.
func TestReconnect(t *testing.T) {
	d := start(t, edu.Config{})
	d.store(0, 0x04, 4, 1)
	d.store(0, 0x60, 4, 7)
	d.store(7, 0x04, 2, 4)
	d.c.Close()
	for deadline := time.Now().Add(time.Minute); d.dev.Server().Stats().DMAMapped > 0; {
		if time.Now().After(deadline) {
			t.Fatal("the server does not notice that the client has gone")
		}
	}
	again, err := vfiouser.NewClient(vfiousertest.Connect(t, d.dev.Server()), vfiouser.ClientConfig{})
	for deadline := time.Now().Add(time.Minute); errors.Is(err, net.ErrClosed) && time.Now().Before(deadline); {
		// The old session is just ending.
		again, err = vfiouser.NewClient(vfiousertest.Connect(t, d.dev.Server()), vfiouser.ClientConfig{})
	}
	d.check(err)
	t.Cleanup(func() { again.Close() })
	d.c = again
	d.want("liveness", d.load(0, 0x04, 4), 0xfffffffe)
	d.want("interrupt status", d.load(0, 0x24, 4), 7)
	if ev := d.eventFD(vfiouser.IRQINTx); ev.Take() != 1 {
		t.Error("the pin that is still asserted does not signal")
	}
	d.transfer(0, 0x40000, 4, 1) // memory is gone
	d.want("faults", d.dev.Faults(), 1)
}

// FuzzAccess makes any accesses, each given by 12 bytes: what, size, offset,
// value. Whatever they are, the device answers and comes to rest.
func FuzzAccess(f *testing.F) {
	f.Add([]byte("\x01\x08\x90\x00\xff\xff\xff\xff\xff\xff\xff\xff" + "\x01\x08\x98\x00\x07\x00\x00\x00\x00\x00\x00\x00"))
	f.Add([]byte("\x01\x04\x08\x00\xff\xff\xff\xff\x00\x00\x00\x00" + "\x00\x08\x20\x00\x00\x00\x00\x00\x00\x00\x00\x00"))
	f.Add([]byte("\x03\x04\x04\x00\xff\xff\xff\xff\x00\x00\x00\x00" + "\x03\x04\x40\x00\xff\xff\xff\xff\xff\x00\x00\x00"))
	f.Fuzz(func(t *testing.T, b []byte) {
		dev, err := edu.New(edu.Config{})
		if err != nil {
			t.Fatal(err)
		}
		for ; len(b) >= 12; b = b[12:] {
			region, limit := 0, uint64(1<<20)
			if b[0]&2 != 0 {
				region, limit = 7, 256
			}
			size := uint64(b[1] % 9)
			offset := min(uint64(b[2])|uint64(b[3])<<8, limit-size)
			p := append([]byte(nil), b[4:4+size]...)
			if b[0]&1 != 0 {
				err = dev.Function().WriteRegion(region, offset, p)
			} else {
				err = dev.Function().ReadRegion(region, offset, p)
			}
			if err != nil {
				t.Fatal(err)
			}
		}
		dev.Close()
		fn, status, command := dev.Function(), make([]byte, 4), make([]byte, 8)
		if err := errors.Join(fn.ReadRegion(0, 0x20, status), fn.ReadRegion(0, 0x98, command), fn.Reset()); err != nil {
			t.Fatal(err)
		}
		if status[0]&1 != 0 || command[0]&1 != 0 {
			t.Errorf("at rest: status %x, command %x", status, command)
		}
	})
}
