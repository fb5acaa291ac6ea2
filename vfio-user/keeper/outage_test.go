// SPDX-License-Identifier: Apache-2.0

package keeper

import (
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"net"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	vfiouser "toebox/vfio-user"
	"toebox/vfio-user/vfiousertest"
)

// unhex decodes hexadecimal digits; anything but digits is for the eye.
func unhex(t testing.TB, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(strings.Join(strings.Fields(s), ""))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// answers plays a server of 8 regions and 3 irq indexes, without a configuration
// space, up to the end of the inventory. extra is the end of region information.
func answers(t testing.TB, p *vfiousertest.Peer, version string) (asked string) {
	t.Helper()
	m := p.Recv()
	asked = string(m.Payload[4 : len(m.Payload)-1])
	answer(p, m, append([]byte{0, 0, 0, 0}, version+"\x00"...))
	m = p.Recv()
	answer(p, m, unhex(t, "10000000 02000000 08000000 03000000"))
	for i := range byte(8) {
		m := p.Recv()
		if m.Command != 5 || m.Payload[8] != i {
			t.Fatalf("%+v", m)
		}
		switch i {
		case 0:
			// Readable, writable, mappable, with a sparse mmap capability and a file.
			f := vfiousertest.Memory(t, 4096)
			r := vfiousertest.Message{ID: m.ID, Command: 5, Flags: 1, Payload: unhex(t,
				"40000000 0f000000 00000000 20000000 0010000000000000 0000000000000000"+
					"0100 0100 00000000 01000000 00000000 0000000000000000 0010000000000000")}
			p.Send(r.Bytes(), int(f.Fd()))
		case 6:
			p.Send(vfiousertest.Message{ID: m.ID, Command: 5, Flags: 0x21, Errno: 22}.Bytes())
		default:
			answer(p, m, append(unhex(t, "20000000 03000000"), append([]byte{i}, unhex(t, "000000 00000000 0000000000000000 0000000000000000")...)...))
		}
	}
	for range 3 {
		m := p.Recv()
		answer(p, m, append(append(unhex(t, "10000000 01000000"), m.Payload[8:12]...), 4, 0, 0, 0))
	}
	return asked
}

func answer(p *vfiousertest.Peer, m vfiousertest.Message, payload []byte) {
	p.Send(vfiousertest.Message{ID: m.ID, Command: m.Command, Flags: vfiousertest.Reply, Payload: payload}.Bytes())
}

const agreed = `{"capabilities":{"max_msg_fds":8,"max_data_xfer_size":65536,"max_dma_maps":1000,"pgsizes":4096}}`

// connect returns a peer in the place of QEMU, and one in the place of its
// server, after both have agreed.
func (r *rig) connect(f *fakes) (client, server *vfiousertest.Peer) {
	r.t.Helper()
	server = f.peer()
	a, err := net.Dial("unix", r.path)
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() { a.Close() })
	client = vfiousertest.NewPeer(r.t, a.(*net.UnixConn))
	client.Send(vfiousertest.Message{ID: 9, Command: 1, Payload: append([]byte{0, 0, 0, 0}, vfiousertest.QEMUVersion+"\x00"...)}.Bytes())
	answers(r.t, server, agreed)
	m := client.Recv()
	if m.ID != 9 || m.Command != 1 || m.Flags != 1 {
		r.t.Fatalf("version: %+v", m)
	}
	return client, server
}

// TestRequestsOfTheDead: of what a server dies over, reads go to the next one,
// writes are answered, and its own DMA messages end with it.
func TestRequestsOfTheDead(t *testing.T) {
	f := newFakes(t)
	r := start(t, f.config())
	client, first := r.connect(f)
	read := vfiousertest.Message{ID: 100, Command: 9, Payload: unhex(t, "1000000000000000 00000000 04000000")}
	write := vfiousertest.Message{ID: 101, Command: 10, Payload: unhex(t, "2000000000000000 00000000 04000000 aabbccdd")}
	posted := write
	posted.ID, posted.Flags = 102, vfiousertest.NoReply
	client.Send(slices.Concat(read.Bytes(), write.Bytes(), posted.Bytes()))
	for _, want := range []vfiousertest.Message{read, write, posted} {
		if m := first.Recv(); m.Command != want.Command || m.Flags != want.Flags || !bytes.Equal(m.Payload, want.Payload) {
			t.Fatalf("%+v, want %+v", m, want)
		}
	}
	// The server asks for memory, by ids of its own.
	first.Send(vfiousertest.Message{ID: 7, Command: 11, Payload: unhex(t, "0050000000000000 0400000000000000")}.Bytes())
	asked := client.Recv()
	if asked.Command != 11 || asked.Flags != 0 {
		t.Fatalf("%+v", asked)
	}
	second := f.peer()
	(<-f.made).kill()
	if m := client.Recv(); m.ID != 101 || m.Flags != 1 || !bytes.Equal(m.Payload, write.Payload[:16]) {
		t.Errorf("the write is answered by %+v", m)
	}
	answers(t, second, agreed)
	again := second.Recv()
	if again.Command != 9 || !bytes.Equal(again.Payload, read.Payload) {
		t.Fatalf("%+v", again)
	}
	// Another message by the same id of another server; then the answers to both.
	second.Send(vfiousertest.Message{ID: 7, Command: 11, Payload: unhex(t, "0060000000000000 0400000000000000")}.Bytes())
	asked2 := client.Recv()
	if asked2.Command != 11 || asked2.ID == asked.ID || !bytes.Equal(asked2.Payload, unhex(t, "0060000000000000 0400000000000000")) {
		t.Fatalf("%+v after %+v", asked2, asked)
	}
	answer(client, asked, unhex(t, "0050000000000000 0400000000000000 01010101"))
	answer(client, asked2, unhex(t, "0060000000000000 0400000000000000 02020202"))
	if m := second.Recv(); m.ID != 7 || m.Flags != 1 || !bytes.Equal(m.Payload, unhex(t, "0060000000000000 0400000000000000 02020202")) {
		t.Errorf("the new server gets %+v", m)
	}
	answer(second, again, append(slices.Clone(read.Payload), 1, 2, 3, 4))
	if m := client.Recv(); m.ID != 100 || m.Flags != 1 || !bytes.Equal(m.Payload[16:], []byte{1, 2, 3, 4}) {
		t.Errorf("the read is answered by %+v", m)
	}
	if s := r.k.Stats(); s.StaleReplies != 1 || s.Resent != 1 || s.Dropped != 1 {
		t.Errorf("%+v", s)
	}
}

// TestNotTwice: what changes where a migration stands is not given to a second
// server, for the first may have done it; what only asks is.
func TestNotTwice(t *testing.T) {
	f := newFakes(t)
	r := start(t, f.config())
	client, first := r.connect(f)
	once := []vfiousertest.Message{
		{ID: 100, Command: 16, Payload: unhex(t, "10000000 02000200 01000000 ffffffff")}, // set: STOP
		{ID: 101, Command: 17, Payload: unhex(t, "08000000 04000000")},
		{ID: 102, Command: 18, Payload: unhex(t, "08000000 04000000 01020304")},
	}
	get := vfiousertest.Message{ID: 103, Command: 16, Payload: unhex(t, "10000000 02000100")}
	for _, m := range append(slices.Clone(once), get) {
		client.Send(m.Bytes())
		if got := first.Recv(); got.Command != m.Command || !bytes.Equal(got.Payload, m.Payload) {
			t.Fatalf("%+v, want %+v", got, m)
		}
	}
	second := f.peer()
	(<-f.made).kill()
	for _, m := range once {
		if got := client.Recv(); got.ID != m.ID || got.Flags != vfiousertest.Reply|vfiousertest.Failed || got.Errno != 5 {
			t.Errorf("%+v is answered by %+v", m, got)
		}
	}
	answers(t, second, agreed)
	if got := second.Recv(); got.Command != 16 || !bytes.Equal(got.Payload, get.Payload) {
		t.Errorf("the new server gets %+v", got)
	}
}

// TestNothingThatDoesNotSurvive: neither areas to map nor descriptors of I/O
// regions nor a twin socket get to the client.
func TestNothingThatDoesNotSurvive(t *testing.T) {
	f := newFakes(t)
	r := start(t, Config{Start: f.Start, Patience: patience, MaxFDs: 4, MaxTransfer: 1 << 16})
	server := f.peer()
	a, err := net.Dial("unix", r.path)
	if err != nil {
		t.Fatal(err)
	}
	defer a.Close()
	client := vfiousertest.NewPeer(t, a.(*net.UnixConn))
	client.Send(vfiousertest.Message{ID: 1, Command: 1, Payload: append([]byte{0, 0, 1, 0},
		`{"capabilities":{"twin_socket":{"supported":true},"max_msg_fds":16,"max_data_xfer_size":1048576,"migration":{"pgsize":4096},"write_multiple":true}}`+"\x00"...)}.Bytes())
	asked := answers(t, server, `{"capabilities":{"max_msg_fds":4,"max_data_xfer_size":65536,"spurious":1}}`)
	if want := `{"capabilities":{"max_msg_fds":4,"max_data_xfer_size":65536,"migration":{"pgsize":4096},"write_multiple":true}}`; asked != want {
		t.Errorf("proposed %s, want %s", asked, want)
	}
	if m := client.Recv(); string(m.Payload[4:]) != `{"capabilities":{"max_msg_fds":4,"max_data_xfer_size":65536}}`+"\x00" {
		t.Errorf("agreed %q", m.Payload)
	}
	for _, tt := range []struct {
		cmd       uint16
		ask, want string
		errno     uint32
	}{
		{4, "10000000 00000000 00000000 00000000", "10000000 02000000 08000000 03000000", 0},
		{5, "40000000 00000000 00000000 00000000 0000000000000000 0000000000000000", "20000000 03000000 00000000 00000000 0010000000000000 0000000000000000", 0},
		{5, "20000000 00000000 06000000 00000000 0000000000000000 0000000000000000", "", 22},
		{5, "20000000 00000000 08000000 00000000 0000000000000000 0000000000000000", "", 22},
		{5, "1f000000 00000000 00000000 00000000 0000000000000000 0000000000000000", "", 22},
		{6, "10000000 00000000 00000000 00000000", "10000000 00000000 00000000 00000000", 0},
		{7, "10000000 00000000 02000000 00000000", "10000000 01000000 02000000 04000000", 0},
		{7, "10000000 00000000 03000000 00000000", "", 22},
		{7, "10000000 00000000", "", 22},
	} {
		m := client.Do(vfiousertest.Message{ID: 5, Command: tt.cmd, Payload: unhex(t, tt.ask)})
		if !bytes.Equal(m.Payload, unhex(t, tt.want)) || m.Errno != tt.errno {
			t.Errorf("command %d %s: %+v", tt.cmd, tt.ask, m)
		}
	}
}

// TestReaped: until the old process is gone for good, no new one is started and
// no unmap is answered.
func TestReaped(t *testing.T) {
	f := newFakes(t)
	r := start(t, f.config())
	stuck := make(chan struct{})
	dev, cfg := plain()
	f.stuck(dev, cfg, stuck)
	c := r.dial(vfiouser.ClientConfig{})
	ram := vfiousertest.Memory(t, 1<<20)
	if err := c.Map(0, 1<<20, 0, 3, ram); err != nil {
		t.Fatal(err)
	}
	old := <-f.made
	old.kill()
	eventually(t, "the connection to end", func() bool { return !r.k.Stats().Ready })
	var gone atomic.Bool
	other := newFakes(t)
	other.device(plain())
	next := <-other.start
	f.start <- func() (*fake, error) {
		if !gone.Load() {
			t.Error("a server is started beside the old one")
		}
		return next()
	}
	unmapped := make(chan error, 1)
	go func() {
		_, err := c.Unmap(0, 1<<20)
		if !gone.Load() {
			t.Error("unmap is answered while the old server can write to the memory")
		}
		unmapped <- err
	}()
	eventually(t, "the unmap to be held", func() bool { return r.k.Stats().Held == 1 })
	r.outOfPatience() // not even then
	select {
	case <-old.asked: // to end: the keeper has nothing left to do but to wait
	case <-time.After(patience):
		t.Fatal("the old server is not told to end")
	}
	if n := r.k.Stats().Held; n != 1 {
		t.Errorf("%d requests are held", n)
	}
	gone.Store(true)
	close(stuck)
	if err := <-unmapped; err != nil {
		t.Error(err)
	}
	if e := r.ready(2); e.Maps != 0 {
		t.Errorf("%+v", e)
	}
}

// TestAbsent: while no server can be started the client is answered in its stead.
func TestAbsent(t *testing.T) {
	f := newFakes(t)
	r := start(t, f.config())
	dev, dcfg := plain()
	f.device(dev, dcfg)
	c := r.dial(vfiouser.ClientConfig{WriteMultiple: true, Timeout: patience / 2})
	ram := vfiousertest.Memory(t, 1<<20)
	for _, err := range []error{c.Map(0, 4096, 0, 3, ram), c.WriteRegion(7, 4, []byte{2, 0})} {
		if err != nil {
			t.Fatal(err)
		}
	}
	dev.Set(vfiouser.RegionConfig, 0x90, []byte("seen"))
	if err := c.ReadRegion(7, 0x90, make([]byte, 4)); err != nil {
		t.Fatal(err)
	}
	(<-f.made).kill()
	r.wait("the end", func(e Event) bool { return e.Kind == EventExited && string(e.Trace) == "a trace" && !e.Expected })
	// The first one waits, for a server might come.
	b := make([]byte, 4)
	read := make(chan error, 1)
	go func() { read <- c.ReadRegion(0, 0x10, b) }()
	eventually(t, "the read to be held", func() bool { return r.k.Stats().Held == 1 })
	r.outOfPatience()
	if err := <-read; err != nil || !bytes.Equal(b, []byte{0xff, 0xff, 0xff, 0xff}) {
		t.Errorf("% x, %v", b, err)
	}
	// From then on all is answered at once: what waits is not answered in time.
	for range 100 {
		if err := c.ReadRegion(7, 0x90, b); err != nil || string(b) != "seen" {
			t.Fatalf("% x, %v", b, err)
		}
	}
	if err := c.ReadRegion(7, 0, b); err != nil || !bytes.Equal(b, []byte{0xef, 0xbe, 0xad, 0xde}) {
		t.Errorf("% x, %v", b, err)
	}
	if err := c.ReadRegion(7, 4, b); err != nil || !bytes.Equal(b, []byte{2, 0, 0x10, 0}) {
		t.Errorf("% x, %v", b, err)
	}
	irq := vfiousertest.NewEventFD(t)
	for i, err := range []error{
		c.WriteRegion(0, 0x20, b), c.PostRegion(0, 0x20, b), c.WriteRegion(7, 4, []byte{6, 0}), c.WriteRegion(7, 0xb2, []byte{0, 0x80}),
		c.Map(0x10000, 0x2000, 0, 3, ram), c.Map(0x10000, 0x2000, 0, 3, ram), c.Map(0x20000, 0x1000, 0, 1, nil),
		c.AssignIRQ(vfiouser.IRQMSIX, 0, irq.FD()),
	} {
		if err != nil {
			t.Errorf("%d: %v", i, err)
		}
	}
	for _, tt := range []struct {
		err  error
		want syscall.Errno
	}{
		{c.Map(0x11000, 0x1000, 0, 3, ram), syscall.EEXIST},
		{c.Map(0x30000, 0, 0, 3, ram), syscall.EINVAL},
		{c.Map(0x30000, 0x800, 0, 3, ram), syscall.EINVAL},
		{c.Map(^uint64(0xfff), 0x2000, 0, 3, ram), syscall.EINVAL},
		{c.Map(0x30000, 0x1000, 0, 0, ram), syscall.EINVAL},
		{c.AssignIRQ(vfiouser.IRQMSIX, 32, irq.FD()), syscall.EINVAL},
		{c.DisableIRQ(9), syscall.EINVAL},
	} {
		if !errors.Is(tt.err, tt.want) {
			t.Errorf("%v, want %v", tt.err, tt.want)
		}
	}
	for _, tt := range []struct{ iova, size, want uint64 }{{0, 0x10000, 0x1000}, {0x40000, 0x1000, 0}, {0x20000, 0x1000, 0x1000}} {
		if n, err := c.Unmap(tt.iova, tt.size); n != tt.want || err != nil {
			t.Errorf("unmap %#x: %#x, %v", tt.iova, n, err)
		}
	}
	if _, err := c.Unmap(0x10000, 0x1000); !errors.Is(err, syscall.EINVAL) {
		t.Errorf("unmap of half a map: %v", err)
	}
	dev2, _ := plain()
	f.start <- func() (*fake, error) { return nil, errors.New("does not build") }
	srv := f.device(dev2, dcfg)
	r.wait("a failed start", func(e Event) bool { return e.Kind == EventFailed && strings.Contains(e.Err.Error(), "build") })
	r.ready(3)
	if got, want := dev2.Calls(), []string{"read 7 0x0 4096", "write 7 0xb2 0080", "write 7 0x4 0600"}; !slices.Equal(got, want) {
		t.Errorf("%q, want %q", got, want)
	}
	if n := srv.Stats().DMAMapped; n != 1 {
		t.Errorf("%d maps", n)
	}
	if err := c.WriteRegion(0, 0x20, []byte{5}); err != nil || !slices.Equal(dev2.Calls(), []string{"write 0 0x20 05"}) {
		t.Errorf("the new server does not serve: %v", err)
	}
	// A new outage, new patience.
	(<-f.made).kill()
	r.wait("the second end", func(e Event) bool { return e.Kind == EventExited && e.Generation == 3 })
	go func() { read <- c.ReadRegion(7, 0, b) }()
	eventually(t, "the read to be held once more", func() bool { return r.k.Stats().Held == 1 })
	f.device(plain())
	if err := <-read; err != nil || !bytes.Equal(b, []byte{0xef, 0xbe, 0xad, 0xde}) {
		t.Errorf("% x, %v", b, err)
	}
}

// TestHeld: what arrives while there is no server reaches the next one in order;
// after a reset, what came before does not.
func TestHeld(t *testing.T) {
	f := newFakes(t)
	r := start(t, f.config())
	f.device(plain())
	c := r.dial(vfiouser.ClientConfig{})
	(<-f.made).kill()
	eventually(t, "the connection to end", func() bool { return !r.k.Stats().Ready })
	var wg sync.WaitGroup
	defer wg.Wait()
	if err := c.PostRegion(0, 1, []byte{1}); err != nil {
		t.Fatal(err)
	}
	if err := c.Reset(); err != nil {
		t.Fatal(err)
	}
	for i := range byte(3) {
		if err := c.PostRegion(0, 2, []byte{i}); err != nil {
			t.Fatal(err)
		}
	}
	wg.Go(func() {
		if err := c.ReadRegion(0, 2, make([]byte, 1)); err != nil {
			t.Error(err)
		}
	})
	eventually(t, "the requests", func() bool { return r.k.Stats().Held == 4 })
	dev, cfg := plain()
	f.device(dev, cfg)
	wg.Wait()
	if got, want := dev.Calls(), []string{"read 7 0x0 4096", "write 0 0x2 00", "write 0 0x2 01", "write 0 0x2 02", "read 0 0x2 1"}; !slices.Equal(got, want) {
		t.Errorf("%q, want %q", got, want)
	}
	if s := r.k.Stats(); s.Dropped != 1 {
		t.Errorf("%+v", s)
	}
}

// TestHung: a server that does not answer is ended, and its requests are served.
func TestHung(t *testing.T) {
	f := newFakes(t)
	r := start(t, f.config())
	dev, dcfg := plain()
	reading, hang := make(chan struct{}), make(chan struct{})
	f.device(dev, dcfg)
	c := r.dial(vfiouser.ClientConfig{})
	r.ready(1)
	dev.SetHooks(vfiousertest.Hooks{Read: func(int, uint64, []byte) error { close(reading); <-hang; return nil }})
	dev2, _ := plain()
	f.device(dev2, dcfg)
	ram := vfiousertest.Memory(t, 4096)
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := c.ReadRegion(0, 0x40, make([]byte, 4)); err != nil {
			t.Error(err)
		}
	})
	wg.Go(func() {
		if err := c.Map(0, 4096, 0, 3, ram); err != nil {
			t.Error(err)
		}
	})
	<-reading
	r.outOfPatience()
	e := r.wait("the hang", func(e Event) bool { return e.Kind == EventHung })
	close(hang) // what is in the place of a process can end only then
	wg.Wait()
	if e.Generation != 1 {
		t.Errorf("%+v", e)
	}
	if e := r.ready(2); e.Generation != 2 {
		t.Errorf("%+v", e)
	}
}

// TestNotReading: a server that takes no more messages is ended in time.
func TestNotReading(t *testing.T) {
	f := newFakes(t)
	cfg := f.config()
	cfg.SendTimeout = 2 * time.Second
	r := start(t, cfg)
	dev, dcfg := plain()
	hang := make(chan struct{})
	f.device(dev, dcfg)
	c := r.dial(vfiouser.ClientConfig{})
	dev.SetHooks(vfiousertest.Hooks{Write: func(int, uint64, []byte) error { <-hang; return nil }})
	var wg sync.WaitGroup
	wg.Go(func() {
		for range 300 {
			if err := c.PostRegion(0, 0, make([]byte, 2048)); err != nil {
				t.Error(err)
			}
		}
		b := make([]byte, 4)
		if err := c.ReadRegion(0, 0x40, b); err != nil || b[0] != 0xff {
			t.Errorf("% x, %v", b, err)
		}
	})
	r.wait("the hang", func(e Event) bool { return e.Kind == EventHung && strings.Contains(e.Err.Error(), "does not read") })
	answered := make(chan struct{})
	go func() {
		wg.Wait()
		close(answered)
	}()
	// Answered although the one that hangs is not even gone.
	eventually(t, "the answer", func() bool {
		r.outOfPatience()
		select {
		case <-answered:
			return true
		default:
			return false
		}
	})
	close(hang)
	f.device(plain())
	r.ready(2)
}

// TestReplace: the old server answers what it has, ends when asked to, and only
// then the new one is started.
func TestReplace(t *testing.T) {
	r := start(t, Config{Command: command(t, "path"), Patience: patience, StopGrace: patience})
	r.wait("a start", func(e Event) bool { return e.Kind == EventStarted })
	if err := r.k.Replace(t.Context()); err != nil { // without a client
		t.Error(err)
	}
	c := r.dial(vfiouser.ClientConfig{})
	if err := c.WriteRegion(7, 4, []byte{6, 0}); err != nil {
		t.Fatal(err)
	}
	before := r.ready(1)
	if err := r.k.Replace(t.Context()); err != nil {
		t.Fatal(err)
	}
	after := r.ready(before.Generation + 1)
	e := r.wait("the end", func(e Event) bool { return e.Kind == EventExited && e.Generation == before.Generation })
	if after.PID == before.PID || !e.Expected || e.Err != nil {
		t.Errorf("%+v, %+v, %+v", before, e, after)
	}
	b := make([]byte, 4)
	if err := c.ReadRegion(7, 4, b); err != nil || b[0] != 6 {
		t.Errorf("% x, %v", b, err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := r.k.Replace(ctx); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}

// TestReplaceQuiet: a server that is replaced answers what it was asked before it
// is told to end; what comes meanwhile is for the next one.
func TestReplaceQuiet(t *testing.T) {
	f := newFakes(t)
	cfg := f.config()
	cfg.QuietTime = patience
	r := start(t, cfg)
	client, first := r.connect(f)
	old := <-f.made
	read := func(id uint16) vfiousertest.Message {
		return vfiousertest.Message{ID: id, Command: 9, Payload: unhex(t, "1000000000000000 00000000 04000000")}
	}
	client.Send(read(100).Bytes())
	m := first.Recv()
	replaced := make(chan error, 1)
	go func() { replaced <- r.k.Replace(t.Context()) }()
	eventually(t, "the server to be left alone", func() bool { return !r.k.Stats().Ready })
	client.Send(read(101).Bytes())
	eventually(t, "the second read to be held", func() bool { return r.k.Stats().Held == 1 })
	select {
	case <-old.asked:
		t.Error("the server is told to end with a request unanswered")
	default:
	}
	second := f.peer()
	answer(first, m, append(slices.Clone(m.Payload), 1, 1, 1, 1))
	if m := client.Recv(); m.ID != 100 || m.Flags != 1 || !bytes.Equal(m.Payload[16:], []byte{1, 1, 1, 1}) {
		t.Errorf("the first read is answered by %+v", m)
	}
	answers(t, second, agreed)
	m = second.Recv()
	answer(second, m, append(slices.Clone(m.Payload), 2, 2, 2, 2))
	if m := client.Recv(); m.ID != 101 || m.Flags != 1 || !bytes.Equal(m.Payload[16:], []byte{2, 2, 2, 2}) {
		t.Errorf("the second read is answered by %+v", m)
	}
	if err := <-replaced; err != nil {
		t.Error(err)
	}
	if s := r.k.Stats(); s.Resent != 0 {
		t.Errorf("%+v", s)
	}
}

// TestClients: one at a time; the next finds the same device.
func TestClients(t *testing.T) {
	f := newFakes(t)
	r := start(t, f.config())
	dev, cfg := plain()
	srv := f.device(dev, cfg)
	c := r.dial(vfiouser.ClientConfig{})
	ram := vfiousertest.Memory(t, 4096)
	if err := c.Map(0, 4096, 0, 3, ram); err != nil {
		t.Fatal(err)
	}
	if err := c.WriteRegion(0, 0, []byte{42}); err != nil {
		t.Fatal(err)
	}
	if _, err := vfiouser.Dial(t.Context(), r.path, vfiouser.ClientConfig{}); err == nil {
		t.Error("a second client is served")
	}
	c.Close()
	b := make([]byte, 1)
	if err := r.dial(vfiouser.ClientConfig{}).ReadRegion(0, 0, b); err != nil || b[0] != 42 {
		t.Errorf("%d, %v", b, err)
	}
	if s := r.k.Stats(); s.Starts != 1 || s.Clients != 2 || s.Refused != 1 || srv.Stats().DMAMapped != 0 {
		t.Errorf("%+v, %+v", s, srv.Stats())
	}
	if err := r.k.Serve(t.Context(), nil); err == nil {
		t.Error("it serves twice")
	}
}
