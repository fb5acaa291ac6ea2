// SPDX-License-Identifier: Apache-2.0

package device

import (
	"bytes"
	"context"
	"encoding/binary"
	"hash/crc32"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"toebox/firmware/engine"
	"toebox/vdev/port"
	vfiouser "toebox/vfio-user"
	"toebox/vfio-user/vfiousertest"
)

const (
	memory = 1 << 20    // bytes of guest memory
	iova   = 0x40000000 // where it is mapped
)

// guest is a client of a served device. Numbers are literals of SPEC.md.
type guest struct {
	*testing.T
	*vfiouser.Client
	ram []byte
	end func() // of the client
}

// serve serves a device until the test ends and returns how to connect.
func serve(t *testing.T, cfg Config) (*Device, func() *guest) {
	t.Helper()
	cfg.Firmware = tree
	d, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "s")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- d.Serve(ctx, l) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
		l.Close()
		if err := d.Close(); err != nil {
			t.Error(err)
		}
		if err := d.Close(); err != nil {
			t.Error("second close:", err)
		}
	})
	return d, func() *guest {
		t.Helper()
		c, err := vfiouser.Dial(t.Context(), path, vfiouser.ClientConfig{})
		if err != nil {
			t.Fatal(err)
		}
		file := vfiousertest.Memory(t, memory)
		if err := c.Map(iova, memory, 0, vfiouser.ProtRead|vfiouser.ProtWrite, file); err != nil {
			t.Fatal(err)
		}
		ram, err := unix.Mmap(int(file.Fd()), 0, memory, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
		if err != nil {
			t.Fatal(err)
		}
		g := &guest{T: t, Client: c, ram: ram}
		g.end = sync.OnceFunc(func() {
			c.Close()
			unix.Munmap(ram)
		})
		t.Cleanup(g.end)
		g.config(4, 6) // memory space, bus master
		return g
	}
}

// config writes 16 bits of configuration space.
func (g *guest) config(offset uint64, v uint16) {
	g.Helper()
	if err := g.WriteRegion(7, offset, binary.LittleEndian.AppendUint16(nil, v)); err != nil {
		g.Fatal(err)
	}
}

func (g *guest) get(offset uint64) uint32 {
	g.Helper()
	var b [4]byte
	if err := g.ReadRegion(0, offset, b[:]); err != nil {
		g.Fatal(err)
	}
	return binary.LittleEndian.Uint32(b[:])
}

func (g *guest) set(offset uint64, v uint32) {
	g.Helper()
	if err := g.PostRegion(0, offset, binary.LittleEndian.AppendUint32(nil, v)); err != nil {
		g.Fatal(err)
	}
}

// until polls a register.
func (g *guest) until(offset uint64, v uint32) {
	g.Helper()
	for end := time.Now().Add(time.Minute); g.get(offset) != v; {
		if time.Now().After(end) {
			g.Fatalf("register %#x is %#x, not %#x", offset, g.get(offset), v)
		}
	}
}

// TestServed drives the test registers over the socket.
func TestServed(t *testing.T) {
	d, connect := serve(t, Config{Net: Net{Mode: ModeNAT}})
	g := connect()
	for i, want := range []uint64{65536, 0, 4096, 0, 0, 0, 0, 4096, 0} {
		if r, err := g.Region(i); err != nil || r.Size != want {
			t.Errorf("region %d: %+v, %v", i, r, err)
		}
	}
	for i, want := range []uint32{1, 0, 33, 1, 0} {
		if q, err := g.IRQ(i); err != nil || q.Count != want {
			t.Errorf("irq index %d: %+v, %v", i, q, err)
		}
	}
	if id := g.get(0); id != 0x424f4554 {
		t.Errorf("ID %#x", id)
	}
	if s := g.get(0x14); s != 0x51 {
		t.Errorf("STATUS %#x", s)
	}

	// DMA.
	g.set(0x90, iova+0x1000)
	g.set(0x98, 8192)
	g.set(0x9c, 1)
	g.set(0xa0, 1)
	g.until(0xa4, 2)
	if got, want := g.get(0xa8), crc32.ChecksumIEEE(g.ram[0x1000:0x3000]); got != want || g.ram[0x1000] != 1 {
		t.Errorf("TEST_RESULT %#x, memory has %#x", got, want)
	}

	// INTx is a level: unmasked while it stands, it comes again.
	intx := vfiousertest.NewEventFD(t)
	if err := g.AssignIRQ(0, 0, intx.FD()); err != nil {
		t.Fatal(err)
	}
	g.set(0x84, 1)
	if n := intx.Wait(); n != 1 {
		t.Errorf("INTx came %d times", n)
	}
	if err := g.MaskIRQ(0, 0, 1, false); err != nil {
		t.Fatal(err)
	}
	if n := intx.Wait(); n != 1 {
		t.Errorf("after unmask INTx came %d times", n)
	}
	g.set(0x2c, 1)
	g.get(0)
	if err := g.MaskIRQ(0, 0, 1, false); err != nil {
		t.Fatal(err)
	}
	if n := intx.Take(); n != 0 {
		t.Errorf("after the cause was cleared INTx came %d times", n)
	}

	// MSI-X, with a table that the client keeps.
	if err := g.DisableIRQ(0); err != nil {
		t.Fatal(err)
	}
	last := vfiousertest.NewEventFD(t)
	if err := g.AssignIRQ(2, 32, last.FD()); err != nil {
		t.Fatal(err)
	}
	g.config(0x8a, 0x8000)
	g.set(0x84, 32)
	if n := last.Wait(); n != 1 {
		t.Errorf("vector 32 came %d times", n)
	}

	// The next client finds a function after reset.
	g.set(0x80, 5)
	g.get(0)
	g.end()
	g = connect()
	if v := g.get(0x80); v != 0 {
		t.Errorf("SCRATCH %#x", v)
	}
	g.set(0x80, 5)
	if err := g.Reset(); err != nil {
		t.Fatal(err)
	}
	g.config(4, 6)
	if v := g.get(0x80); v != 0 {
		t.Errorf("SCRATCH %#x after a device reset", v)
	}
	s := d.Stats()
	if s.Server == nil || s.Server.Connections != 2 || s.NAT == nil || s.Counters["resets_function"] < 2 || s.Generation != 1 {
		t.Errorf("stats %+v", s)
	}
}

// TestRequest passes one request through a queue of the whole device: an
// adapter attribute control that asks for MAC and ADDRESS4.
func TestRequest(t *testing.T) {
	d, connect := serve(t, Config{Net: Net{Mode: ModeNAT}, Seed: 3})
	g := connect()
	const in, out, event, control = 0x1000, 0x2000, 0x3000, 0x4000
	for slot := range 16 {
		g.ram[out+32*slot] = 0x80
	}
	binary.LittleEndian.PutUint32(g.ram[event+0x40:], 2<<30) // interrupt for each response
	copy(g.ram[control:], []byte{0x00, 0x01, 0, 0, 6, 0, 0, 0})
	copy(g.ram[control+16:], []byte{0x01, 0x01, 0, 0, 24, 0, 0, 0})
	copy(g.ram[in:], []byte{8<<2 | 0x80, 0, 2, 0, 77, 0, 0, 0, 0x00, 0x40, 0, 0x40})
	g.ram[in+24] = 48

	vector := vfiousertest.NewEventFD(t)
	if err := g.AssignIRQ(2, 1, vector.FD()); err != nil {
		t.Fatal(err)
	}
	g.config(0x8a, 0x8000)
	g.ram[in] &^= 0x80 // published after create
	g.set(0x10, 1)
	g.until(0x14, 0x73)
	for i, v := range []uint32{iova + in, 0, iova + out, 0, iova + event, 0, 0x0404} {
		g.set(0x1008+4*uint64(i), v)
	}
	g.set(0x1000, 1)
	g.until(0x1004, 1)
	g.ram[in] |= 0x80
	g.set(0x4000, 1)
	if n := vector.Wait(); n == 0 {
		t.Fatal("no interrupt")
	}
	g.get(0)
	if want := []byte{24 << 2, 1, 0, 0, 77, 0, 0, 0}; !bytes.Equal(g.ram[out:out+8], want) {
		t.Errorf("response % x, want % x", g.ram[out:out+32], want)
	}
	id := d.Function().Identity()
	if !bytes.Equal(g.ram[control+8:control+14], id.MAC[:]) || net.HardwareAddr(id.MAC[:]).String() != d.Stats().MAC {
		t.Errorf("MAC % x, want % x", g.ram[control+8:control+14], id.MAC)
	}
	if want := []byte{4, 24, 0, 0, 0, 0, 0, 0, 10, 0, 2, 15}; !bytes.Equal(g.ram[control+24:control+36], want) {
		t.Errorf("ADDRESS4 % x, want % x", g.ram[control+24:control+36], want)
	}
	if g.ram[in]&0x80 != 0 {
		t.Error("the input slot was not handed back")
	}
}

// wire is a port that remembers who is attached.
type wire struct {
	mu      sync.Mutex
	receive func([]engine.Frame)
	closed  bool
}

func (w *wire) MTU() int                      { return 1500 }
func (w *wire) Transmit(f []engine.Frame) int { return len(f) }
func (w *wire) Attach(receive func([]engine.Frame)) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.receive = receive
}
func (w *wire) Close() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.closed = true
	return nil
}

// TestNewIdentity commits a MAC address: the next reset brings new firmware on
// a new engine, and the old one neither sends nor takes the port along.
func TestNewIdentity(t *testing.T) {
	w := &wire{}
	d, connect := serve(t, Config{Port: w, Lease: port.Lease{Prefixes: []netip.Prefix{netip.MustParsePrefix("192.0.2.1/24")}}})
	g := connect()
	before := d.plug.current.Load()
	g.set(0x100, 16)
	g.set(0x104, 0x03020102)
	g.set(0x108, 2)
	g.set(0x108, 3)
	g.until(0x10c, 2)
	g.set(0x10, 1<<31)
	if mac := g.get(0x30); mac != 0x03020102 {
		t.Errorf("MAC_LO %#x", mac)
	}
	if n := g.get(0x18); n != 2 {
		t.Errorf("GENERATION %d", n)
	}
	d.Stats() // its lock orders the Wait behind the reset, which a socket does not
	d.retired.Wait()
	w.mu.Lock()
	if w.receive == nil {
		t.Error("the old engine detached the new one")
	}
	w.mu.Unlock()
	if n := before.Transmit([]engine.Frame{{Data: [][]byte{make([]byte, 60)}}}); n != 0 {
		t.Error("the old engine transmits")
	}
	if n := d.plug.current.Load().Transmit([]engine.Frame{{Data: [][]byte{make([]byte, 60)}}}); n != 1 {
		t.Error("the new engine does not transmit")
	}
	if mac := d.Stats().MAC; !strings.HasPrefix(mac, "02:01:02:03:") {
		t.Errorf("stats say %s", mac)
	}
}

// TestParts: devices that are not served, and what cannot be made. TestMain
// checks that nothing stays open.
func TestParts(t *testing.T) {
	path := filepath.Join(t.TempDir(), "pcap")
	file, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	d, err := New(Config{Firmware: tree, Capture: file, DMA: (*vfiouser.DMA)(nil), IRQs: (*vfiouser.Server)(nil)})
	if err != nil {
		t.Fatal(err)
	}
	if err := d.Serve(t.Context(), nil); err == nil || d.NAT() != nil {
		t.Error("a device with its own memory serves")
	}
	if err := d.Close(); err != nil {
		t.Error(err)
	}
	if b, err := os.ReadFile(path); err != nil || !bytes.HasPrefix(b, []byte{0x0a, 0x0d, 0x0d, 0x0a}) {
		t.Errorf("capture begins % x, %v", b[:min(4, len(b))], err)
	}
	if _, err := file.Write(nil); err == nil {
		t.Error("the capture's file is open")
	}

	listen := func() []Forward {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		return []Forward{{Listener: l, Guest: netip.AddrPortFrom(netip.Addr{}, 80)}}
	}
	portless := listen()
	portless[0].Guest = netip.AddrPort{}
	for want, c := range map[string]Config{
		"no firmware":          {Net: Net{Mode: ModeNAT, Forwards: listen()}},
		"a forward needs":      {Net: Net{Forwards: listen()}},
		"unknown network":      {Net: Net{Mode: "tap", Forwards: listen()}},
		"no port":              {Net: Net{Mode: ModeNAT, Forwards: append(portless, listen()...)}},
		"non-volatile image":   {Net: Net{Mode: ModeNAT, Forwards: listen()}, NVMPath: t.TempDir()},
		"start firmware: engi": {Port: &wire{}, Lease: port.Lease{Routes: []engine.Route{{}}}},
	} {
		if want != "no firmware" {
			c.Firmware = tree
		}
		if d, err := New(c); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %q", err, want)
			if err == nil {
				d.Close()
			}
		}
		if w, ok := c.Port.(*wire); ok && !w.closed {
			t.Errorf("%s: the port is open", want)
		}
		for _, f := range c.Net.Forwards {
			if c, err := net.Dial("tcp", f.Listener.Addr().String()); err == nil {
				c.Close()
				t.Errorf("%s: a listener is open", want)
			}
		}
	}
}
