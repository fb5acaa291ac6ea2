// SPDX-License-Identifier: Apache-2.0

package keeper

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	vfiouser "toebox/vfio-user"
	"toebox/vfio-user/vfiousertest"
)

// TestPutBack: a new server gets the final state, and nothing else.
func TestPutBack(t *testing.T) {
	f := newFakes(t)
	r := start(t, f.config())
	dev, cfg := plain()
	old := f.device(dev, cfg)
	c := r.dial(vfiouser.ClientConfig{})
	r.ready(1)

	ram, other := vfiousertest.Memory(t, 1<<20), vfiousertest.Memory(t, 1<<16)
	for _, m := range []struct {
		iova, size, offset uint64
		prot               vfiouser.Prot
		file               *os.File
	}{
		{0, 0x4000, 0x1000, 3, ram}, {0x4000, 0x4000, 0x5000, 3, ram}, {0x10000, 0x1000, 0, 1, ram},
		{0x20000, 0x1000, 0, 3, other}, {0xffff0000, 0x10000, 0, 1, nil}, {0x30000, 0x1000, 0x2000, 3, ram},
	} {
		if err := c.Map(m.iova, m.size, m.offset, m.prot, m.file); err != nil {
			t.Fatal(err)
		}
	}
	if n, err := c.Unmap(0x30000, 0x1000); n != 0x1000 || err != nil {
		t.Fatal(n, err)
	}
	if s := r.k.Stats(); s.Maps != 5 || s.Files != 2 {
		t.Errorf("%+v", s)
	}
	var msix [3]*vfiousertest.EventFD
	for i := range msix {
		msix[i] = vfiousertest.NewEventFD(t)
	}
	intx, resample := vfiousertest.NewEventFD(t), vfiousertest.NewEventFD(t)
	for _, err := range []error{
		c.AssignIRQ(vfiouser.IRQMSIX, 0, msix[0].FD(), msix[1].FD(), msix[2].FD()),
		c.UnassignIRQ(vfiouser.IRQMSIX, 1, 1),
		c.AssignIRQ(vfiouser.IRQINTx, 0, intx.FD()),
		c.MaskIRQ(vfiouser.IRQINTx, 0, 1, true),
		c.ResampleINTx(resample.FD()),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	for _, w := range []struct {
		at    uint64
		bytes string
	}{
		{0x04, "\x07\x00"}, {0x04, "\x06\x04"}, // Command; the last one counts
		{0x06, "\xff\xff"},                                                     // Status: write 1 to clear
		{0x10, "\xff\xff\xff\xff"}, {0x10, "\x00\x00\x00\xe0"}, {0x3c, "\x0b"}, // BAR0, interrupt line
		{0x44, "\x0b\x80"},                             // PM control: D3hot, and PME status, write 1 to clear
		{0x52, "\x81\x00"}, {0x54, "\x00\x00\xe0\xfe"}, // MSI control, and its address
		{0x78, "\x3f\x20"}, {0x7a, "\x0f\x00"}, // PCIe device control, and status: write 1 to clear
		{0xb2, "\x00\xc0"}, // MSI-X control
		{0x30, "\x00\xf8\xff\xff"}, {0x30, "\x00\x00\x00\x00"},
		{0x100, "\x01"},
	} {
		if err := c.WriteRegion(vfiouser.RegionConfig, w.at, []byte(w.bytes)); err != nil {
			t.Fatal(err)
		}
	}
	if err := c.WriteRegion(0, 8, []byte{1}); err != nil {
		t.Fatal(err)
	}

	dev2, _ := plain()
	srv := f.device(dev2, cfg)
	(<-f.made).kill()
	e := r.ready(2)
	if e.Maps != 5 {
		t.Errorf("%+v", e)
	}
	// The inventory reads; then these writes, and no reset.
	want := []string{
		"read 7 0x0 4096",
		"write 7 0x30 00000000", "write 7 0x10 000000e0", "write 7 0x3c 0b",
		"write 7 0x52 8100", "write 7 0x78 3f20", "write 7 0xb2 00c0",
		"write 7 0x4 0604", "write 7 0x44 0b00",
	}
	if got := dev2.Calls(); !slices.Equal(got, want) {
		t.Errorf("the new server saw\n%q, want\n%q", got, want)
	}
	d := srv.DMA()
	if old.Stats().DMAMapped != 0 || srv.Stats().DMAMapped != 5 || srv.Stats().Errors != 0 {
		t.Errorf("%+v", srv.Stats())
	}
	if err := d.Write(0x3ffc, []byte("adjacent")); err != nil {
		t.Error(err)
	}
	b := make([]byte, 8)
	if _, err := ram.ReadAt(b, 0x4ffc); string(b) != "adjacent" {
		t.Errorf("%q, %v", b, err)
	}
	if err := d.Write(0x20000, []byte("other")); err != nil {
		t.Error(err)
	}
	if _, err := other.ReadAt(b[:5], 0); string(b[:5]) != "other" {
		t.Errorf("%q, %v", b, err)
	}
	if d.Backed(0x10000, 0x1000, vfiouser.ProtWrite) || !d.Backed(0x10000, 0x1000, vfiouser.ProtRead) || d.Backed(0x30000, 1, vfiouser.ProtRead) {
		t.Error("rights or ranges differ")
	}
	// Adjacent maps can be taken away one by one.
	if n, err := c.Unmap(0x4000, 0x4000); n != 0x4000 || err != nil {
		t.Errorf("unmap: %#x, %v", n, err)
	}
	for i := range 3 {
		if err := srv.Trigger(vfiouser.IRQMSIX, i); err != nil {
			t.Error(err)
		}
	}
	if a, b, c := msix[0].Take(), msix[1].Take(), msix[2].Take(); a != 1 || b != 0 || c != 1 {
		t.Errorf("MSI-X %d %d %d", a, b, c)
	}
	if err := srv.Trigger(vfiouser.IRQINTx, 0); err != nil || intx.Take() != 0 {
		t.Errorf("INTx is not masked; %v", err)
	}
	resample.Signal()
	intx.Wait()
}

// TestInterruptsBeforeControl: a device that has something to say raises it as
// soon as MSI, MSI-X or Command let it. By then its eventfds are there, and the
// memory.
func TestInterruptsBeforeControl(t *testing.T) {
	f := newFakes(t)
	r := start(t, f.config())
	f.device(plain())
	c := r.dial(vfiouser.ClientConfig{})
	r.ready(1)
	irq := vfiousertest.NewEventFD(t)
	for _, err := range []error{
		c.Map(0x1000, 0x1000, 0, 3, vfiousertest.Memory(t, 4096)),
		c.AssignIRQ(vfiouser.IRQMSIX, 5, irq.FD()),
		c.WriteRegion(vfiouser.RegionConfig, 0x04, []byte{6, 4}),
		c.WriteRegion(vfiouser.RegionConfig, 0x52, []byte{0x81, 0}),
		c.WriteRegion(vfiouser.RegionConfig, 0xb2, []byte{0, 0x80}),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	dev, cfg := plain()
	var srv *vfiouser.Server
	writes := make(chan string, 16)
	dev.SetHooks(vfiousertest.Hooks{Write: func(_ int, at uint64, _ []byte) error {
		err := srv.Trigger(vfiouser.IRQMSIX, 5)
		writes <- fmt.Sprintf("%#x: %d, %v, %t", at, irq.Take(), err, srv.DMA().Backed(0x1000, 0x1000, vfiouser.ProtWrite))
		return nil
	}})
	srv = f.device(dev, cfg)
	(<-f.made).kill()
	r.ready(2)
	want := []string{"0x52: 1, <nil>, true", "0xb2: 1, <nil>, true", "0x4: 1, <nil>, true"}
	var got []string
	for len(writes) > 0 {
		got = append(got, <-writes)
	}
	if !slices.Equal(got, want) {
		t.Errorf("register, interrupts, error, memory:\n%q, want\n%q", got, want)
	}
}

// TestPutBackAfterReset: what the client wrote before a reset is not put back,
// nor is what it wrote before a function level reset.
func TestPutBackAfterReset(t *testing.T) {
	for name, reset := range map[string]func(c *vfiouser.Client) error{
		"message": (*vfiouser.Client).Reset,
		"PCIe":    func(c *vfiouser.Client) error { return c.WriteRegion(7, 0x78, []byte{0x10, 0xa8}) },
		"AF":      func(c *vfiouser.Client) error { return c.WriteRegion(7, 0xc4, []byte{1}) },
	} {
		t.Run(name, func(t *testing.T) {
			f := newFakes(t)
			r := start(t, f.config())
			f.device(plain())
			c := r.dial(vfiouser.ClientConfig{})
			for _, err := range []error{
				c.WriteRegion(7, 4, []byte{6, 0}), c.WriteRegion(7, 0x10, []byte{0, 0, 0, 0xe0}), reset(c),
				c.WriteRegion(7, 0xb2, []byte{0, 0x80}),
			} {
				if err != nil {
					t.Fatal(err)
				}
			}
			dev, cfg := plain()
			f.device(dev, cfg)
			(<-f.made).kill()
			r.ready(2)
			if got, want := dev.Calls(), []string{"read 7 0x0 4096", "write 7 0xb2 0080"}; !slices.Equal(got, want) {
				t.Errorf("the new server saw %q, want %q", got, want)
			}
		})
	}
}

// TestMapsAtOnce: maps are put back without waiting for the answer to one before
// the next is sent.
func TestMapsAtOnce(t *testing.T) {
	const count = 1000
	f := newFakes(t)
	r := start(t, f.config())
	client, first := r.connect(f)
	ram := vfiousertest.Memory(t, 4096)
	for i := range uint64(count) {
		m := vfiousertest.Message{ID: uint16(i), Command: 2, Payload: unhex(t, "20000000 03000000 0000000000000000 0000000000000000 0010000000000000")}
		binary.LittleEndian.PutUint64(m.Payload[16:], i*8192)
		client.Send(m.Bytes(), int(ram.Fd()))
		answer(first, first.Recv(), nil)
		if m := client.Recv(); m.ID != uint16(i) || m.Errno != 0 {
			t.Fatalf("map %d: %+v", i, m)
		}
	}
	second := f.peer()
	(<-f.made).kill()
	answers(t, second, agreed)
	var maps []vfiousertest.Message
	for range count {
		maps = append(maps, second.Recv())
	}
	for _, m := range maps {
		if m.Command != 2 {
			t.Errorf("%+v", m)
		}
		answer(second, m, nil)
	}
	if e := r.ready(2); e.Maps != count {
		t.Errorf("%+v", e)
	}
}

// TestPatienceWhileRestoring: what the client asks for while its maps are put
// back waits for the server, but not longer than the client has patience.
func TestPatienceWhileRestoring(t *testing.T) {
	f := newFakes(t)
	r := start(t, f.config())
	client, first := r.connect(f)
	ram := vfiousertest.Memory(t, 4096)
	var maps []vfiousertest.Message
	for i := range uint16(3) {
		m := vfiousertest.Message{ID: i, Command: 2, Payload: unhex(t, "20000000 03000000 0000000000000000 0000000000000000 0010000000000000")}
		binary.LittleEndian.PutUint64(m.Payload[16:], uint64(i)*8192)
		client.Send(m.Bytes(), int(ram.Fd()))
		answer(first, first.Recv(), nil)
		if m := client.Recv(); m.ID != i || m.Errno != 0 {
			t.Fatalf("map %d: %+v", i, m)
		}
	}
	second := f.peer()
	(<-f.made).kill()
	answers(t, second, agreed)
	for range 3 {
		maps = append(maps, second.Recv())
	}
	// The server has them and does not answer yet.
	read := vfiousertest.Message{ID: 100, Command: 9, Payload: unhex(t, "1000000000000000 00000000 04000000")}
	write := vfiousertest.Message{ID: 101, Command: 10, Payload: unhex(t, "2000000000000000 00000000 04000000 aabbccdd")}
	gone := append(slices.Clone(read.Payload), 0xff, 0xff, 0xff, 0xff)
	client.Send(read.Bytes())
	eventually(t, "the read to be held", func() bool { return r.k.Stats().Held == 1 })
	r.session().overdue(time.Now().Add(-patience)) // there is time yet
	if s := r.k.Stats(); s.Held != 1 || s.InStead != 0 {
		t.Errorf("%+v", s)
	}
	r.outOfPatience()
	if m := client.Recv(); m.ID != 100 || m.Flags != 1 || !bytes.Equal(m.Payload, gone) {
		t.Errorf("read: %+v", m)
	}
	// From then on at once: nobody waits twice for the same server.
	if m := client.Do(read); m.Flags != 1 || !bytes.Equal(m.Payload, gone) {
		t.Errorf("read again: %+v", m)
	}
	if m := client.Do(write); m.Flags != 1 || !bytes.Equal(m.Payload, write.Payload[:16]) {
		t.Errorf("write: %+v", m)
	}
	if s := r.k.Stats(); s.Ready || s.InStead != 3 || s.Dropped != 1 || s.Held != 0 {
		t.Errorf("%+v", s)
	}
	// It was slow, nothing more.
	for _, m := range maps {
		answer(second, m, nil)
	}
	if e := r.ready(2); e.Maps != 3 {
		t.Errorf("%+v", e)
	}
	client.Send(read.Bytes())
	m := second.Recv()
	if m.Command != 9 || !bytes.Equal(m.Payload, read.Payload) {
		t.Fatalf("the server gets %+v", m)
	}
	answer(second, m, append(slices.Clone(read.Payload), 1, 2, 3, 4))
	if m := client.Recv(); m.ID != 100 || m.Flags != 1 || !bytes.Equal(m.Payload[16:], []byte{1, 2, 3, 4}) {
		t.Errorf("read: %+v", m)
	}
}

// TestManyMaps puts back as many maps as QEMU may make: in 3 s, or what QEMU asks
// for is answered in the meantime.
func TestManyMaps(t *testing.T) {
	const count, inTime = 60_000, 3 * time.Second
	f := newFakes(t)
	r := start(t, f.config())
	dev, cfg := plain()
	f.device(dev, cfg)
	c := r.dial(vfiouser.ClientConfig{})
	ram := vfiousertest.Memory(t, count*4096)
	for i := range uint64(count) {
		// Never adjacent.
		if err := c.Map(i*8192, 4096, (i*7919%count)*4096, 3, ram); err != nil {
			t.Fatal(err)
		}
	}
	(<-f.made).kill()
	eventually(t, "the connection to end", func() bool { return !r.k.Stats().Ready })
	b := make([]byte, 4)
	read := make(chan error, 1)
	go func() { read <- c.ReadRegion(vfiouser.RegionConfig, 0, b) }()
	eventually(t, "the read to be held", func() bool { return r.k.Stats().Held == 1 })
	held := time.Now()
	dev2, _ := plain()
	srv := f.device(dev2, cfg)
	judged := make(chan struct{})
	late := time.AfterFunc(inTime, func() {
		defer close(judged)
		// In the place of the clock of the keeper's patience, which is a test's.
		n := r.session()
		n.overdue(held)
		n.mu.Lock()
		defer n.mu.Unlock()
		if inStead := r.k.stats.inStead.Load(); n.state != stateUp && inStead != 1 {
			t.Errorf("%d requests are answered after %v without the server", inStead, inTime)
		}
	})
	e := r.ready(2)
	if !late.Stop() {
		<-judged
	}
	if err := <-read; err != nil || !bytes.Equal(b, []byte{0xef, 0xbe, 0xad, 0xde}) {
		t.Errorf("read: % x, %v", b, err)
	}
	if e.Maps != count || srv.Stats().DMAMapped != count {
		t.Errorf("%+v", e)
	}
	t.Logf("%d maps in %v", count, e.Took)
	if s := r.k.Stats(); s.Files != 1 {
		t.Errorf("%+v", s)
	}
}

// TestMapsWhileRestoring: what the client changes while its state is put back is
// answered at once and reaches the server.
func TestMapsWhileRestoring(t *testing.T) {
	f := newFakes(t)
	r := start(t, f.config())
	f.device(plain())
	c := r.dial(vfiouser.ClientConfig{})
	ram := vfiousertest.Memory(t, 1<<20)
	for i := range uint64(4) {
		if err := c.Map(i<<16, 4096, i<<12, 3, ram); err != nil {
			t.Fatal(err)
		}
	}
	dev, cfg := plain()
	reading, goOn := make(chan struct{}), make(chan struct{})
	dev.SetHooks(vfiousertest.Hooks{Read: func(_ int, _ uint64, p []byte) error {
		close(reading)
		<-goOn
		copy(p, space())
		return nil
	}})
	srv := f.device(dev, cfg)
	(<-f.made).kill()
	<-reading // of the inventory
	irq := vfiousertest.NewEventFD(t)
	for _, err := range []error{
		c.Map(8<<16, 4096, 0x8000, 3, ram), c.Map(8<<16, 4096, 0x8000, 3, ram),
		c.AssignIRQ(vfiouser.IRQMSIX, 3, irq.FD()),
	} {
		if err != nil {
			t.Error(err)
		}
	}
	if err := c.Map(0x8000<<4, 8192, 0, 3, ram); !errors.Is(err, syscall.EEXIST) {
		t.Errorf("overlap: %v", err)
	}
	if n, err := c.Unmap(1<<16, 2<<16); n != 8192 || err != nil {
		t.Errorf("unmap: %#x, %v", n, err)
	}
	dev.SetHooks(vfiousertest.Hooks{})
	close(goOn)
	r.ready(2)
	if n := srv.Stats().DMAMapped; n != 3 {
		t.Errorf("%d maps", n)
	}
	if err := srv.Trigger(vfiouser.IRQMSIX, 3); err != nil || irq.Take() != 1 {
		t.Errorf("irq: %v", err)
	}
}

// TestAnotherDevice: a server with another layout is refused by name, the next
// one is tried.
func TestAnotherDevice(t *testing.T) {
	f := newFakes(t)
	r := start(t, f.config())
	dev, cfg := plain()
	f.device(dev, cfg)
	r.dial(vfiouser.ClientConfig{})
	p := <-f.made
	for i, tt := range []struct {
		change func(c *vfiouser.Config, space []byte)
		want   string
	}{
		{func(c *vfiouser.Config, _ []byte) { c.Regions[0].Size = 8192 }, "region 0 (BAR0): size 0x1000 became 0x2000"},
		{func(c *vfiouser.Config, _ []byte) { c.Regions[6].Flags |= vfiouser.RegionWrite }, "region 6 (ROM): flags 0x1 became 0x3"},
		{func(c *vfiouser.Config, _ []byte) { c.IRQs[2].Count = 8 }, "irq 2: count 32, flags 0x1 became count 8, flags 0x1"},
		{func(c *vfiouser.Config, _ []byte) { c.Resettable = false }, "device flags 0x3 became 0x2"},
		{func(_ *vfiouser.Config, b []byte) { b[0] = 0 }, "vendor and device"},
		{func(_ *vfiouser.Config, b []byte) { b[0x10] = 0x0c }, "type of BAR0 0x4 became 0xc"},
		{func(_ *vfiouser.Config, b []byte) { b[0x41] = 0x70 }, "capabilities"},
		{func(c *vfiouser.Config, _ []byte) { c.MaxDMAMaps = 16 }, "max_dma_maps 65535 became 16"},
		{func(c *vfiouser.Config, _ []byte) { c.MaxFDs = 2 }, "max_msg_fds 16 became 2"},
		{func(c *vfiouser.Config, _ []byte) { c.MaxTransfer = 512 }, "max_data_xfer_size 1048576 became 512"},
	} {
		cfg, space := cfg, space()
		tt.change(&cfg, space)
		dev := vfiousertest.NewDevice(cfg)
		dev.Set(7, 0, space)
		f.device(dev, cfg)
		p.kill()
		p = <-f.made
		e := r.wait(tt.want, func(e Event) bool { return e.Kind == EventRefused && e.Generation == uint32(i+2) })
		if !strings.Contains(e.Err.Error(), tt.want) {
			t.Errorf("%v, want %s", e.Err, tt.want)
		}
	}
	// Told to try another, the keeper says what became of it.
	bad := cfg
	bad.Regions[0].Size = 0
	f.device(vfiousertest.NewDevice(bad), bad)
	<-f.made
	f.device(plain())
	r.ready(uint32(10))
}

// TestMapsTable compares the table of maps with a plain list.
func TestMapsTable(t *testing.T) {
	var s memory
	s.files.byKey = map[fileKey]*file{}
	var list []dmaMap
	rng := uint64(1)
	random := func(n uint64) uint64 {
		rng ^= rng << 13
		rng ^= rng >> 7
		rng ^= rng << 17
		return rng % n
	}
	for step := range 40_000 {
		addr, n := random(8192)*4096, (1+random(3))*4096
		if random(4) == 0 && step > 8000 {
			n = (1 + random(40)) * 4096
		}
		last := addr + n - 1
		inside := func(m dmaMap) bool { return m.addr >= addr && m.last <= last }
		cut := slices.ContainsFunc(list, func(m dmaMap) bool {
			return !inside(m) && m.addr <= last && m.last >= addr
		})
		if random(3) > 0 {
			m := dmaMap{addr: addr, last: last, offset: random(2)}
			at := slices.IndexFunc(list, func(m dmaMap) bool { return m.addr <= last && m.last >= addr })
			err := s.add(m)
			if want := at < 0 || list[at] == m; (err == nil) != want {
				t.Fatalf("step %d: add: %v, want success %v", step, err, want)
			}
			if at < 0 {
				list = append(list, m)
			}
		} else {
			var want uint64
			if !cut {
				list = slices.DeleteFunc(list, func(m dmaMap) bool {
					if inside(m) {
						want += m.last - m.addr + 1
					}
					return inside(m)
				})
			}
			if got, err := s.unmap(unmap{addr: addr, last: last}); got != want || (err != nil) != cut {
				t.Fatalf("step %d: unmap %#x, %v, want %#x, cut %v", step, got, err, want, cut)
			}
		}
		if step%1000 == 0 || step > 39_900 {
			all := slices.Clone(list)
			slices.SortFunc(all, func(a, b dmaMap) int { return int(int64(a.addr) - int64(b.addr)) })
			if got := s.maps.all(); !slices.Equal(got, all) || s.maps.count != len(all) {
				t.Fatalf("step %d: %d maps, want %d", step, len(got), len(all))
			}
		}
	}
	if n := s.remove(unmap{last: ^uint64(0)}); s.maps.count != 0 || len(s.maps.pages) != 0 || n == 0 {
		t.Errorf("%d maps are left in %d pages", s.maps.count, len(s.maps.pages))
	}
}

// TestCapabilities: a list that is broken ends, it does not loop.
func TestCapabilities(t *testing.T) {
	loop := space()
	loop[0x41] = 0x40
	far := space()
	far[0x34], far[0xfc], far[0xfd] = 0xfc, 0x10, 0x04 // PCIe, where it cannot be
	for name, b := range map[string][]byte{"loop": loop, "far": far, "short": space()[:64], "none": nil, "ones": []byte(strings.Repeat("\xff", 256))} {
		c := newConfigSpace(b)
		if n := len(capabilities(b)); n > 48 {
			t.Errorf("%s: %d capabilities", name, n)
		}
		c.wrote(0, b)
		for _, w := range c.final() {
			if int(w.at)+len(w.data) > len(b) {
				t.Errorf("%s: write at %#x", name, w.at)
			}
		}
	}
	// A function level reset is no final value, even if it came to be noted.
	c := newConfigSpace(space())
	c.last[0x79], c.written[0x79] = 0x80, true
	if w := c.final(); len(w) != 1 || w[0].data[1] != 0 {
		t.Errorf("%+v", w)
	}
	c = newConfigSpace(space())
	c.wrote(4094, []byte{1, 2, 3})
	p := make([]byte, 4)
	c.answer(4094, p)
	if binary.LittleEndian.Uint32(p) != 0xffffffff || len(c.final()) > 0 {
		t.Errorf("% x", p)
	}
	if s := fmt.Sprint(capability{0x11, 0xb0}); s != "0x11 at 0xb0" {
		t.Error(s)
	}
}
