// SPDX-License-Identifier: Apache-2.0

package uio

import (
	"encoding/binary"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"toebox/guestdriver"
	"toebox/guestdriver/internal/pool"
	"toebox/guestdriver/internal/sysfs/sysfstest"
)

const (
	bdf = "0000:00:05.0"
	dev = "bus/pci/devices/" + bdf + "/"

	patience = 60 * time.Second // for what must happen

	// Command with memory space and bus master on, as SPEC.md §2 has them.
	commandOn = 0x06
)

// resource is what the kernel writes about a function with two 64-bit BARs.
const resource = `0x00000000fe000000 0x00000000fe00ffff 0x0000000000140204
0x0000000000000000 0x0000000000000000 0x0000000000000000
0x00000000fe010000 0x00000000fe010fff 0x0000000000140204
0x0000000000000000 0x0000000000000000 0x0000000000000000
0x000000000000c000 0x000000000000c01f 0x0000000000040101
0x0000000000000000 0x0000000000000000 0x0000000000000000
0x0000000000000000 0x0000000000000000 0x0000000000000000
`

// function is a function of plain files. Its device node is a FIFO.
type function struct {
	at   places
	dir  string
	node *os.File // interrupts are written here
}

func newFunction(t *testing.T, change func(files map[string]string)) *function {
	t.Helper()
	config := make([]byte, 256)
	binary.LittleEndian.PutUint32(config, 0x74221234)
	binary.LittleEndian.PutUint16(config[4:], commandOn|0x400)
	files := map[string]string{
		dev + "uio/uio3/name": "uio_pci_generic\n", dev + "driver": "->../../drivers/uio_pci_generic",
		dev + "config": string(config), dev + "resource": resource, dev + "reset": "",
		dev + "resource0": string(make([]byte, 0x10000)), dev + "resource2": string(make([]byte, 0x1000)),
	}
	if change != nil {
		change(files)
	}
	f := &function{at: places{sysfs: sysfstest.New(t, files), dev: t.TempDir(), pagemap: "/proc/self/pagemap"}}
	f.dir = f.at.sysfs.Function(bdf)
	path := filepath.Join(f.at.dev, "uio3")
	if err := unix.Mkfifo(path, 0o600); err != nil {
		t.Fatal(err)
	}
	var err error
	if f.node, err = os.OpenFile(path, os.O_RDWR, 0); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.node.Close() })
	return f
}

func (f *function) open(t *testing.T, o Options) *Bus {
	t.Helper()
	b, err := open(f.at, bdf, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := b.Close(); err != nil {
			t.Error(err)
		}
	})
	return b
}

// interrupt does what uio_pci_generic's handler does.
func (f *function) interrupt(t *testing.T) {
	t.Helper()
	f.setCommand(t, f.command(t)|0x400)
	if _, err := f.node.Write([]byte{1, 0, 0, 0}); err != nil {
		t.Fatal(err)
	}
}

func (f *function) command(t *testing.T) uint16 {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(f.dir, "config"))
	if err != nil {
		t.Fatal(err)
	}
	return binary.LittleEndian.Uint16(b[4:])
}

func (f *function) setCommand(t *testing.T, v uint16) {
	t.Helper()
	c, err := os.OpenFile(filepath.Join(f.dir, "config"), os.O_RDWR, 0)
	if err == nil {
		_, err = c.WriteAt(binary.LittleEndian.AppendUint16(nil, v), 4)
		err = errors.Join(err, c.Close())
	}
	if err != nil {
		t.Fatal(err)
	}
}

// until waits for what another goroutine does.
func until(t *testing.T, what string, cond func() bool) {
	t.Helper()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for deadline := time.After(patience); !cond(); {
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatalf("waited in vain for %s", what)
		}
	}
}

// waitVector waits for a vector, for a bounded time.
func waitVector(t *testing.T, b *Bus, v int) {
	t.Helper()
	done := make(chan error, 1)
	go func() { done <- b.Wait(v) }()
	select {
	case err := <-done:
		if err != nil {
			t.Fatalf("wait for vector %d: %v", v, err)
		}
	case <-time.After(patience):
		t.Fatalf("vector %d was not signalled", v)
	}
}

func TestOpen(t *testing.T) {
	f := newFunction(t, nil)
	b := f.open(t, Options{})
	if r, err := os.ReadFile(filepath.Join(f.dir, "reset")); string(r) != "1" || err != nil {
		t.Errorf("reset got %q, %v", r, err)
	}
	if v, err := b.ReadConfig(0, 4); v != 0x74221234 || err != nil {
		t.Errorf("ids %#x, %v", v, err)
	}
	b.Write32(0, 0xfffc, 0x11223344)
	if r, err := os.ReadFile(filepath.Join(f.dir, "resource0")); err != nil || string(r[0xfffc:]) != "\x44\x33\x22\x11" {
		t.Errorf("the last register: % x, %v", r[0xfffc:], err)
	}
	if v := b.Read32(0, 0xfffc); v != 0x11223344 {
		t.Errorf("the last register reads %#x", v)
	}
	for _, c := range []struct {
		bar    int
		offset uint32
	}{{0, 0x10000}, {0, 2}, {0, ^uint32(3)}, {2, 0x1000}, {1, 0}, {4, 0}, {-1, 0}, {6, 0}} {
		b.Write32(c.bar, c.offset, 1)
		if v := b.Read32(c.bar, c.offset); v != ^uint32(0) {
			t.Errorf("BAR %d, %#x: %#x", c.bar, c.offset, v)
		}
	}
	for _, c := range [][2]int{{-1, 1}, {0, 3}, {2, 4}, {4096, 1}, {4094, 4}} {
		if _, err := b.ReadConfig(c[0], c[1]); err == nil {
			t.Errorf("config %v read", c)
		}
		if err := b.WriteConfig(c[0], c[1], 0); err == nil {
			t.Errorf("config %v written", c)
		}
	}
	if err := b.WriteConfig(0x3c, 1, 0x15); err != nil {
		t.Error(err)
	}
	if v, err := b.ReadConfig(0x3c, 4); v != 0x15 || err != nil {
		t.Errorf("after a write: %#x, %v", v, err)
	}
	if err := b.Wait(0); err == nil {
		t.Error("waited for a vector that is not enabled")
	}
}

func TestOpenFails(t *testing.T) {
	for name, c := range map[string]struct {
		change func(map[string]string)
		want   string
	}{
		"other driver": {func(m map[string]string) {
			delete(m, dev+"uio/uio3/name")
			m[dev+"driver"] = "->../../drivers/vfio-pci"
		}, `bound to "vfio-pci"`},
		"strange node": {func(m map[string]string) {
			delete(m, dev+"uio/uio3/name")
			m[dev+"uio/uio../name"] = ""
		}, "bound to"},
		"no resource":   {func(m map[string]string) { delete(m, dev+"resource") }, "no such file"},
		"short":         {func(m map[string]string) { m[dev+"resource"] = "0x0 0x0 0x0\n" }, "resource has 2 lines"},
		"no numbers":    {func(m map[string]string) { m[dev+"resource"] = strings.Repeat("-\n", 6) }, "resource 0"},
		"no config":     {func(m map[string]string) { delete(m, dev+"config") }, "no such file"},
		"no BAR":        {func(m map[string]string) { delete(m, dev+"resource2") }, "map BAR 2"},
		"broken reset":  {func(m map[string]string) { delete(m, dev+"reset"); m[dev+"reset/x"] = "" }, "reset"},
		"node vanished": {func(m map[string]string) { delete(m, dev+"uio/uio3/name"); m[dev+"uio/uio9/name"] = "" }, "uio9"},
	} {
		f := newFunction(t, c.change)
		if b, err := open(f.at, bdf, Options{}); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, %v, want %q", name, b, err, c.want)
		}
	}
	for _, bad := range []string{"../etc", "0000:00:06.0"} {
		if _, err := open(newFunction(t, nil).at, bad, Options{}); err == nil {
			t.Errorf("%s was opened", bad)
		}
	}
	// A function that the kernel cannot reset is the driver's to reset.
	f := newFunction(t, func(m map[string]string) { delete(m, dev+"reset") })
	if err := f.open(t, Options{}).Reset(); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("reset without a way: %v", err)
	}
}

// TestVectors lets interrupts go round.
func TestVectors(t *testing.T) {
	f := newFunction(t, nil)
	b := f.open(t, Options{})
	for _, n := range []int{0, -1, 34} {
		if err := b.EnableVectors(n); err == nil {
			t.Errorf("enabled %d vectors", n)
		}
	}
	if err := b.EnableVectors(33); err != nil {
		t.Fatal(err)
	}
	if err := b.EnableVectors(1); err == nil {
		t.Error("enabled twice")
	}
	if c := f.command(t); c != commandOn {
		t.Errorf("Command %#x after enabling", c)
	}
	for _, v := range []int{1, 17, 32} {
		b.Write32(0, 0x2c, 1<<(v-1)) // INTX_QUEUES; in plain memory it stays
		f.interrupt(t)
		waitVector(t, b, v)
		until(t, "Interrupt Disable to be cleared", func() bool { return f.command(t) == commandOn })
	}
	b.Write32(0, 0x2c, 0)
	b.Write32(0, 0x28, 1) // INTX_CAUSE
	f.interrupt(t)
	waitVector(t, b, 0)
	until(t, "Interrupt Disable to be cleared", func() bool { return f.command(t) == commandOn })

	// An interrupt of another device on the line.
	b.Write32(0, 0x28, 0)
	f.interrupt(t)
	until(t, "Interrupt Disable to be cleared", func() bool { return f.command(t) == commandOn })

	// A driver that writes back what it read while an interrupt was masked
	// does not mask for ever.
	if err := b.WriteConfig(4, 2, commandOn|0x400); err != nil {
		t.Error(err)
	}
	if err := b.WriteConfig(4, 4, commandOn|0x400); err != nil {
		t.Error(err)
	}
	if err := b.WriteConfig(5, 1, 0x04); err != nil {
		t.Error(err)
	}
	if c := f.command(t); c != commandOn {
		t.Errorf("Command %#x after the driver's writes", c)
	}
	if err := b.WriteConfig(6, 2, 0xffff); err != nil {
		t.Error(err)
	}

	waits := make(chan error, 1)
	go func() { waits <- b.Wait(3) }()
	if err := b.Close(); err != nil {
		t.Error(err)
	}
	if err := <-waits; !errors.Is(err, errClosed) {
		t.Errorf("a wait ended with %v", err)
	}
	if c := f.command(t); c != 0x402 {
		t.Errorf("Command %#x after close, want bus master off and interrupts disabled", c)
	}
}

// TestPoll: without the interrupt the registers are looked at, and the pin stays
// disabled.
func TestPoll(t *testing.T) {
	f := newFunction(t, nil)
	b := f.open(t, Options{Poll: true})
	f.setCommand(t, commandOn)
	if err := b.EnableVectors(2); err != nil {
		t.Fatal(err)
	}
	if c := f.command(t); c != commandOn|0x400 {
		t.Errorf("Command %#x", c)
	}
	b.Write32(0, 0x2c, 0x80000001) // queue 31 has no vector here
	waitVector(t, b, 1)
	if err := b.WriteConfig(4, 2, commandOn); err != nil {
		t.Error(err)
	}
	if c := f.command(t); c != commandOn|0x400 {
		t.Errorf("Command %#x after a write", c)
	}
}

// TestNoInterrupt: the device node of a function without an interrupt answers
// reads with EIO, as a process's own memory does at 0.
func TestNoInterrupt(t *testing.T) {
	f := newFunction(t, nil)
	path := filepath.Join(f.at.dev, "uio3")
	if err := errors.Join(os.Remove(path), os.Symlink("/proc/self/mem", path)); err != nil {
		t.Fatal(err)
	}
	b := f.open(t, Options{})
	if err := b.EnableVectors(1); err != nil {
		t.Fatal(err)
	}
	b.Write32(0, 0x28, 1)
	waitVector(t, b, 0)
}

func TestClosed(t *testing.T) {
	f := newFunction(t, nil)
	b := f.open(t, Options{})
	b.Write32(0, 0, 7)
	for range 2 {
		if err := b.Close(); err != nil {
			t.Error(err)
		}
	}
	if v := b.Read32(0, 0); v != 0 {
		t.Errorf("a register after close is %#x", v)
	}
	_, configErr := b.ReadConfig(0, 4)
	_, allocErr := b.AllocDMA(1)
	for name, err := range map[string]error{
		"read config": configErr, "write config": b.WriteConfig(0, 4, 0), "alloc": allocErr,
		"enable": b.EnableVectors(1), "wait": b.Wait(0), "reset": b.Reset(),
	} {
		if !errors.Is(err, errClosed) {
			t.Errorf("%s after close: %v", name, err)
		}
	}
	if err := b.FreeDMA(guestdriver.DMA{}); err != nil {
		t.Errorf("free after close: %v", err)
	}
}

func TestBARs(t *testing.T) {
	sizes, err := memoryBARs(resource)
	if want := [numBARs]uint64{0: 0x10000, 2: 0x1000}; err != nil || sizes != want {
		t.Errorf("got %#x, %v, want %#x: I/O ports are no memory", sizes, err, want)
	}
}

func TestPhysical(t *testing.T) {
	path := filepath.Join(t.TempDir(), "pagemap")
	var b []byte
	for _, v := range []uint64{
		1<<63 | 0x12345,                // present
		1 << 63,                        // present, its frame hidden
		1<<62 | 0x777,                  // swapped out
		1<<63 | 1<<61 | 1<<55 | 0x3e00, // a file's, soft-dirty
	} {
		b = binary.NativeEndian.AppendUint64(b, v)
	}
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		address, want uint64
		err           string
	}{
		{0x0000, 0x12345000, ""},
		{0x0123, 0x12345123, ""},
		{0x1000, 0, "CAP_SYS_ADMIN"},
		{0x2000, 0, "not in memory"},
		{0x3000, 0x3e00000, ""},
		{0x4000, 0, "EOF"},
	} {
		got, err := physical(path, c.address)
		if got != c.want || (err != nil) != (c.err != "") || err != nil && !strings.Contains(err.Error(), c.err) {
			t.Errorf("%#x: %#x, %v, want %#x, %q", c.address, got, err, c.want, c.err)
		}
	}
	if _, err := physical(path+"x", 0); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("no pagemap: %v", err)
	}
}

// TestRegion gives huge pages in a given order of addresses.
func TestRegion(t *testing.T) {
	const m = pool.HugePage
	none := errors.New("broken")
	for _, c := range []struct {
		name   string
		pages  []uint64 // physical addresses in units of m
		end    error    // behind them
		counts []int    // of regions asked for
		want   []uint64 // where they are; 0: refused
		err    string
	}{
		{"one by one", []uint64{7, 9}, unix.ENOMEM, []int{1, 1, 1}, []uint64{7, 9, 0}, "no 1 adjacent"},
		{"in order", []uint64{4, 5, 6}, unix.ENOMEM, []int{3}, []uint64{4}, ""},
		{"downwards", []uint64{6, 5, 4}, unix.ENOMEM, []int{3}, []uint64{4}, ""},
		{"a hole first", []uint64{2, 4, 5, 7, 6}, unix.ENOSPC, []int{4, 1}, []uint64{4, 2}, ""},
		{"scattered", []uint64{2, 4, 6, 8}, unix.ENOMEM, []int{2, 1}, []uint64{0, 2}, "no 2 adjacent"},
		{"filled later", []uint64{2, 4, 3}, unix.ENOMEM, []int{1, 2}, []uint64{2, 3}, ""},
		{"none at all", nil, unix.ENOMEM, []int{1}, []uint64{0}, "hugepages="},
		{"another error", []uint64{1}, none, []int{2}, []uint64{0}, "broken"},
	} {
		mapped := map[int]bool{}
		h := &hugePages{
			take: func(i int) (uint64, error) {
				if i >= len(c.pages) {
					return 0, c.end
				}
				return c.pages[i] * m, nil
			},
			mapRun: func(run []page) ([]byte, error) {
				for i, p := range run {
					if mapped[p.index] || p.physical != run[0].physical+uint64(i)*m || p.physical != c.pages[p.index]*m {
						t.Errorf("%s: mapped %v", c.name, run)
					}
					mapped[p.index] = true
				}
				return make([]byte, len(run)*m), nil
			},
		}
		var p pool.Pool
		for i, n := range c.counts {
			d, err := p.Alloc(n*m, h.region)
			if d.IOVA != c.want[i]*m || (err != nil) != (c.want[i] == 0) {
				t.Errorf("%s: %d pages are at %#x, %v, want %#x", c.name, n, d.IOVA, err, c.want[i]*m)
			}
			if err != nil && !strings.Contains(err.Error(), c.err) {
				t.Errorf("%s: %v, want %q", c.name, err, c.err)
			}
		}
	}
	h := &hugePages{take: func(int) (uint64, error) { return m, nil }, mapRun: func([]page) ([]byte, error) { return nil, none }}
	if _, err := h.region(1); !errors.Is(err, none) || len(h.free) != 1 {
		t.Errorf("a page that cannot be mapped: %v, %d left", err, len(h.free))
	}
}

// TestMapRun maps pieces of a file of ordinary pages out of their order.
func TestMapRun(t *testing.T) {
	fd, err := unix.MemfdCreate("test", unix.MFD_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	k := &kernelPages{fd: fd}
	if err := unix.Ftruncate(fd, 3*pool.HugePage); err != nil {
		t.Fatal(err)
	}
	for i := range 3 {
		if _, err := unix.Pwrite(fd, []byte{byte('a' + i)}, int64(i)*pool.HugePage); err != nil {
			t.Fatal(err)
		}
	}
	mem, err := k.mapRun([]page{{index: 2}, {index: 0}})
	if err != nil {
		t.Fatal(err)
	}
	if len(mem) != 2*pool.HugePage || pool.Address(mem)%pool.HugePage != 0 || mem[0] != 'c' || mem[pool.HugePage] != 'a' {
		t.Errorf("%d bytes at %#x: %q %q", len(mem), pool.Address(mem), mem[0], mem[pool.HugePage])
	}
	if err := errors.Join(k.close(), k.close()); err != nil {
		t.Error(err)
	}
	if _, err := k.mapRun([]page{{index: 0}}); err == nil {
		t.Error("mapped a page of no file")
	}
	if err := pool.Blank(mem); err != nil || mem[0] != 0 {
		t.Errorf("blank: %v, %q", err, mem[0])
	}
}
