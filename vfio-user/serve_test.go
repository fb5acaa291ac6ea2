// SPDX-License-Identifier: Apache-2.0

package vfiouser_test

import (
	"context"
	"errors"
	"net"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	vfiouser "toebox/vfio-user"
	"toebox/vfio-user/vfiousertest"
)

// reconnect has srv, whose client has gone, serve another.
func reconnect(t *testing.T, srv *vfiouser.Server) *net.UnixConn {
	t.Helper()
	return vfiousertest.Connect(t, srv)
}

// listen serves dev on a socket and returns its address and a function that
// ends the server and returns its error.
func listen(t *testing.T, srv *vfiouser.Server) (path string, end func() error) {
	t.Helper()
	path = filepath.Join(t.TempDir(), "s")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- srv.Serve(ctx, l) }()
	ended := false
	end = func() error {
		if ended {
			return nil
		}
		ended = true
		cancel()
		select {
		case err := <-done:
			l.Close()
			return err
		case <-time.After(10 * time.Second):
			t.Fatal("the server does not end")
			return nil
		}
	}
	t.Cleanup(func() { end() })
	return path, end
}

// TestServe has clients come one after another and two at a time.
func TestServe(t *testing.T) {
	cfg := vfiousertest.Config()
	dev := vfiousertest.NewDevice(cfg)
	srv, err := vfiouser.NewServer(dev, cfg)
	if err != nil {
		t.Fatal(err)
	}
	path, end := listen(t, srv)
	ctx := context.Background()
	const clients = 10 // below what dev.Gone holds
	ram := vfiousertest.Memory(t, 1<<20)
	e := vfiousertest.NewEventFD(t)

	for range clients {
		first, err := vfiouser.Dial(ctx, path, vfiouser.ClientConfig{})
		if err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(first.Map(0, 1<<20, 0, 3, ram), first.AssignIRQ(vfiouser.IRQMSIX, 0, e.FD())); err != nil {
			t.Fatal(err)
		}
		if second, err := vfiouser.Dial(ctx, path, vfiouser.ClientConfig{}); err == nil {
			second.Close()
			t.Fatal("two clients at a time")
		}
		if err := first.Reset(); err != nil {
			t.Errorf("the first client after a second was turned away: %v", err)
		}
		if err := errors.Join(srv.DMA().Write(0, []byte{1}), srv.Trigger(vfiouser.IRQMSIX, 0)); err != nil || e.Take() != 1 {
			t.Errorf("device with the first client: %v", err)
		}
		// The next client comes while this one's end may still be unnoticed.
		first.Close()
	}
	for range clients {
		<-dev.Gone
	}
	if st := srv.Stats(); st.Connections != clients || st.Refused != clients || st.DMAMapped != 0 {
		t.Errorf("stats %+v", st)
	}
	if err := srv.Trigger(vfiouser.IRQMSIX, 0); err != nil || e.Take() != 0 {
		t.Errorf("trigger without a client: %v", err)
	}
	// An end with a client connected.
	last, err := vfiouser.Dial(ctx, path, vfiouser.ClientConfig{})
	if err != nil {
		t.Fatal(err)
	}
	defer last.Close()
	if err := end(); err != nil {
		t.Errorf("serve: %v", err)
	}
	<-last.Done()
	if err := last.Reset(); !errors.Is(err, net.ErrClosed) && !errors.Is(err, syscall.EPIPE) {
		t.Errorf("reset after the server ended: %v", err)
	}
	if n := len(dev.Gone); n != 1 {
		t.Errorf("device heard %d times that the last client went", n)
	}
}

// TestServeConnTwice refuses a second connection and leaves the first alone.
func TestServeConnTwice(t *testing.T) {
	cfg := vfiousertest.Config()
	srv, client := vfiousertest.Start(t, vfiousertest.NewDevice(cfg), cfg, vfiouser.ClientConfig{})
	a, b := vfiousertest.Pair(t)
	if err := srv.ServeConn(context.Background(), b); !errors.Is(err, syscall.EBUSY) {
		t.Errorf("second connection: %v", err)
	}
	vfiousertest.NewPeer(t, a).ExpectEOF()
	if err := client.Reset(); err != nil {
		t.Error(err)
	}
}

// TestSilentClient gives up on a client that does not read.
func TestSilentClient(t *testing.T) {
	cfg := vfiousertest.Config()
	cfg.Regions[7].Size = 1 << 20
	cfg.SendTimeout = 20 * time.Millisecond
	dev := vfiousertest.NewDevice(cfg)
	_, conn := vfiousertest.Serve(t, dev, cfg)
	p := vfiousertest.NewPeer(t, conn)
	p.Version()
	for id := range uint16(8) {
		p.Send(region(id, 9, 0, 0, 1<<20).Bytes())
	}
	select {
	case <-dev.Gone:
	case <-time.After(10 * time.Second):
		t.Fatal("the server waits for ever")
	}
}

// TestConfig refuses what no client could be told.
func TestConfig(t *testing.T) {
	for name, breakIt := range map[string]func(*vfiouser.Config){
		"mmap":              func(c *vfiouser.Config) { c.Regions[0].Flags |= 4 },
		"two pins":          func(c *vfiouser.Config) { c.IRQs[vfiouser.IRQINTx].Count = 2 },
		"2049 vectors":      func(c *vfiouser.Config) { c.IRQs[vfiouser.IRQMSIX].Count = 2049 },
		"254 fds":           func(c *vfiouser.Config) { c.MaxFDs = 254 },
		"transfer":          func(c *vfiouser.Config) { c.MaxTransfer = 64<<20 + 1 },
		"maps":              func(c *vfiouser.Config) { c.MaxDMAMaps = 65536 },
		"negative timeouts": func(c *vfiouser.Config) { c.DMATimeout = -1 },
	} {
		cfg := vfiousertest.Config()
		breakIt(&cfg)
		if _, err := vfiouser.NewServer(nil, cfg); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}
