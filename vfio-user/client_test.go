// SPDX-License-Identifier: Apache-2.0

package vfiouser_test

import (
	"context"
	"errors"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	vfiouser "toebox/vfio-user"
	"toebox/vfio-user/vfiousertest"
)

// TestClient makes every request of the client to a server of ours.
func TestClient(t *testing.T) {
	cfg := vfiousertest.Config()
	cfg.WriteMultiple = true
	cfg.MaxTransfer = 100
	cfg.MaxFDs = 3
	dev := vfiousertest.NewDevice(cfg)
	srv, c := vfiousertest.Start(t, dev, cfg, vfiouser.ClientConfig{WriteMultiple: true})
	if r, q, reset, err := c.Info(); r != 9 || q != 5 || !reset || err != nil {
		t.Errorf("info: %d regions, %d irqs, reset %v, %v", r, q, reset, err)
	}
	for i, want := range cfg.Regions {
		if got, err := c.Region(i); !reflect.DeepEqual(got, want) || err != nil {
			t.Errorf("region %d: %+v, %v", i, got, err)
		}
	}
	for i, want := range cfg.IRQs {
		if got, err := c.IRQ(i); got != want || err != nil {
			t.Errorf("irq %d: %+v, %v", i, got, err)
		}
	}
	var e *vfiouser.Error
	if _, err := c.Region(9); !errors.As(err, &e) || e.Command != vfiouser.CommandRegionInfo || !errors.Is(err, syscall.EINVAL) {
		t.Errorf("region 9: %v", err)
	}
	if _, err := c.IRQ(5); !errors.Is(err, syscall.EINVAL) {
		t.Errorf("irq 5: %v", err)
	}
	want := pattern(250)
	got := make([]byte, 250)
	if err := errors.Join(c.WriteRegion(7, 0x100, want), c.ReadRegion(7, 0x100, got)); err != nil || string(got) != string(want) {
		t.Errorf("250 bytes in messages of 100: %v", err)
	}
	if calls := dev.Calls(); len(calls) != 6 || calls[5] != "read 7 0x1c8 50" {
		t.Errorf("device saw %q", calls)
	}
	if err := errors.Join(c.ReadRegion(7, 0, nil), c.WriteRegion(7, 0, nil), c.PostRegion(0, 8, want[:4]), c.ReadRegion(0, 8, got[:4])); err != nil || string(got[:4]) != string(want[:4]) {
		t.Errorf("posted write: %x, %v", got[:4], err)
	}
	if err := c.PostRegion(0, 0, make([]byte, 101)); !errors.Is(err, syscall.E2BIG) {
		t.Errorf("post of 101 bytes: %v", err)
	}
	n, err := c.WriteRegions([]vfiouser.RegionStore{{Region: 0, Offset: 0, Data: []byte("ab")}, {Region: 7, Offset: 8, Data: []byte("12345678")}, {Region: 6, Data: []byte("x")}})
	if n != 2 || err != nil {
		t.Errorf("write multi: %d, %v", n, err)
	}
	if _, err := c.WriteRegions([]vfiouser.RegionStore{{Data: make([]byte, 9)}}); !errors.Is(err, syscall.EINVAL) {
		t.Errorf("write multi of 9 bytes: %v", err)
	}
	ev := vfiousertest.NewEventFD(t)
	fd := ev.FD()
	if err := c.AssignIRQ(vfiouser.IRQMSIX, 0, fd, fd, fd, fd, fd, fd, fd); err != nil {
		t.Errorf("7 eventfds in messages of 3: %v", err)
	}
	if err := srv.Trigger(vfiouser.IRQMSIX, 6); err != nil || ev.Take() != 1 {
		t.Errorf("trigger: %v", err)
	}
	// Requests from many goroutines are told apart.
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			b := []byte{byte(i)}
			for range 50 {
				if err := errors.Join(c.WriteRegion(0, uint64(i), b), c.ReadRegion(0, uint64(i), b)); err != nil || b[0] != byte(i) {
					t.Errorf("goroutine %d read %d, %v", i, b[0], err)
				}
			}
		})
	}
	wg.Wait()
	c.Close()
	c.Close()
	<-c.Done()
	if err := c.Reset(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("reset of a closed client: %v", err)
	}
}

// TestClientAgainstBadServers has servers answer what none should.
func TestClientAgainstBadServers(t *testing.T) {
	reply := func(q vfiousertest.Message, payload string) []byte {
		return vfiousertest.Message{ID: q.ID, Command: q.Command, Flags: vfiousertest.Reply, Payload: []byte(payload)}.Bytes()
	}
	good := "\x00\x00\x00\x00{}\x00"
	for _, tt := range []struct{ name, version string }{
		{"major", "\x01\x00\x00\x00"}, {"minor", "\x00\x00\x09\x00"}, {"empty", ""}, {"no NUL", "\x00\x00\x00\x00{}"},
		{"no data", "\x00\x00\x00\x00{\"capabilities\":{\"max_data_xfer_size\":0}}\x00"},
	} {
		a, b := vfiousertest.Pair(t)
		p := vfiousertest.NewPeer(t, b)
		go func() { p.Send(reply(p.Recv(), tt.version)) }()
		if _, err := vfiouser.NewClient(a, vfiouser.ClientConfig{}); !errors.Is(err, syscall.EPROTO) {
			t.Errorf("%s: %v", tt.name, err)
		}
	}

	a, b := vfiousertest.Pair(t)
	p := vfiousertest.NewPeer(t, b)
	go func() { p.Send(reply(p.Recv(), good)) }()
	c, err := vfiouser.NewClient(a, vfiouser.ClientConfig{})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := c.WriteRegions(nil); !errors.Is(err, syscall.ENOTSUP) {
		t.Errorf("write multi not agreed: %v", err)
	}
	for _, tt := range []struct {
		name string
		do   func() error
		send func(q vfiousertest.Message) []byte
		want syscall.Errno
	}{
		{"short info", func() error { _, _, _, err := c.Info(); return err }, func(q vfiousertest.Message) []byte { return reply(q, "123") }, syscall.EPROTO},
		{"another region", func() error { _, err := c.Region(0); return err }, func(q vfiousertest.Message) []byte { return reply(q, strings.Repeat("\x01", 32)) }, syscall.EPROTO},
		{"another irq", func() error { _, err := c.IRQ(0); return err }, func(q vfiousertest.Message) []byte { return reply(q, strings.Repeat("\x01", 16)) }, syscall.EPROTO},
		{"short read", func() error { return c.ReadRegion(0, 0, make([]byte, 4)) }, func(q vfiousertest.Message) []byte { return reply(q, string(q.Payload)+"abc") }, syscall.EPROTO},
		{"short write", func() error { return c.WriteRegion(0, 0, make([]byte, 4)) }, func(q vfiousertest.Message) []byte { return reply(q, strings.Repeat("\x00", 16)) }, syscall.EPROTO},
		{"short unmap", func() error { _, err := c.Unmap(0, 4096); return err }, func(q vfiousertest.Message) []byte { return reply(q, "") }, syscall.EPROTO},
		{"long reply", func() error { return c.Reset() }, func(q vfiousertest.Message) []byte { return reply(q, strings.Repeat("x", 2<<20)) }, syscall.EMSGSIZE},
		{"errno 0", func() error { return c.Reset() }, func(q vfiousertest.Message) []byte {
			return vfiousertest.Message{ID: q.ID, Command: q.Command, Flags: vfiousertest.Reply | vfiousertest.Failed}.Bytes()
		}, syscall.EIO},
		{"a stray reply before the right one", func() error { return c.Reset() }, func(q vfiousertest.Message) []byte {
			return append(vfiousertest.Message{ID: q.ID, Command: 99, Flags: vfiousertest.Reply}.Bytes(), reply(q, "")...)
		}, 0},
	} {
		var wg sync.WaitGroup
		wg.Go(func() { p.Send(tt.send(p.Recv())) })
		err := tt.do()
		wg.Wait() // a long reply is refused before it has come to its end
		if tt.want == 0 && err != nil || tt.want != 0 && !errors.Is(err, tt.want) {
			t.Errorf("%s: %v, want %v", tt.name, err, tt.want)
		}
	}
	// DMA messages that a client without memory, or of any kind, refuses.
	for _, tt := range []struct {
		cmd   uint16
		p     string
		errno uint32
	}{
		{11, strings.Repeat("\x00", 8) + "\x04\x00\x00\x00\x00\x00\x00\x00", 14},
		{11, strings.Repeat("\x00", 8) + "\x01\x00\x10\x00\x00\x00\x00\x00", 7},
		{11, "1234", 22}, {12, "1234", 22}, {13, "", 95}, {11, strings.Repeat("x", 2<<20), 7},
	} {
		r := p.Do(vfiousertest.Message{ID: 1, Command: tt.cmd, Payload: []byte(tt.p)})
		if r.Errno != tt.errno {
			t.Errorf("command %d of %d bytes: errno %d, want %d", tt.cmd, len(tt.p), r.Errno, tt.errno)
		}
	}
	// No answer at all ends the connection, and the request at once, even while
	// the client is busy with another.
	a, b = vfiousertest.Pair(t)
	p = vfiousertest.NewPeer(t, b)
	go func() { p.Send(reply(p.Recv(), good)) }()
	held := &heldMemory{inside: make(chan struct{}), leave: make(chan struct{})}
	c, err = vfiouser.NewClient(a, vfiouser.ClientConfig{Memory: held})
	if err != nil {
		t.Fatal(err)
	}
	c.SetTimeout(20 * time.Millisecond)
	p.Send(vfiousertest.Message{ID: 1, Command: 11, Payload: unhex(t, "0000000000000000 0400000000000000")}.Bytes())
	<-held.inside
	if err := c.Reset(); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("no answer: %v", err)
	}
	if n := c.Waiting(); n != 0 {
		t.Errorf("%d requests wait", n)
	}
	close(held.leave)
	<-c.Done()
	if _, err := vfiouser.Dial(context.Background(), filepath.Join(t.TempDir(), "none"), vfiouser.ClientConfig{}); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("dial: %v", err)
	}
	x, _ := vfiousertest.Pair(t)
	if _, err := vfiouser.NewClient(x, vfiouser.ClientConfig{MaxFDs: 254}); !errors.Is(err, syscall.EINVAL) {
		t.Errorf("254 fds: %v", err)
	}
}

// heldMemory is a guest's that answers a read when it is told to.
type heldMemory struct{ inside, leave chan struct{} }

func (m *heldMemory) ReadDMA(uint64, []byte) error {
	close(m.inside)
	<-m.leave
	return nil
}

func (m *heldMemory) WriteDMA(uint64, []byte) error { return nil }
