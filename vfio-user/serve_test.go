// SPDX-License-Identifier: Apache-2.0

package vfiouser_test

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

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
		case <-time.After(time.Minute):
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

// lingering is a device that takes its time when a client goes.
type lingering struct {
	quiet
	gone, leave chan struct{}
}

func (l *lingering) Disconnected() {
	l.gone <- struct{}{}
	<-l.leave
}

// TestReconnect has a client come while the connection before it is being
// taken down: it is served, but not before that is done.
func TestReconnect(t *testing.T) {
	l := &lingering{gone: make(chan struct{}), leave: make(chan struct{}, 2)}
	srv, first := vfiousertest.Serve(t, l, vfiousertest.Config())
	vfiousertest.NewPeer(t, first).Version()
	first.Close()
	<-l.gone
	second := vfiousertest.NewPeer(t, reconnect(t, srv))
	second.Send(vfiousertest.Message{ID: 1, Command: 1, Payload: []byte{0, 0, 0, 0}}.Bytes())
	for range 1000 {
		runtime.Gosched() // let the second find the first in its way
	}
	if n := srv.Stats().Messages; n != 1 {
		t.Errorf("%d messages served with the device busy", n)
	}
	l.leave <- struct{}{}
	expect(t, second.Recv(), 0)
	if st := srv.Stats(); st.Refused != 0 || st.Connections != 2 {
		t.Errorf("stats %+v", st)
	}
	l.leave <- struct{}{}
	second.Conn().Close()
	<-l.gone
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
	case <-time.After(time.Minute):
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
		"maps":              func(c *vfiouser.Config) { c.MaxDMAMaps = 1<<24 + 1 },
		"negative timeouts": func(c *vfiouser.Config) { c.DMATimeout = -1 },
	} {
		cfg := vfiousertest.Config()
		breakIt(&cfg)
		if _, err := vfiouser.NewServer(nil, cfg); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

// TestConfigOfMigrator refuses a device that could not leave ERROR.
func TestConfigOfMigrator(t *testing.T) {
	cfg := vfiousertest.Config()
	cfg.Resettable = false
	if _, err := vfiouser.NewServer(vfiousertest.NewMigrator(cfg), cfg); err == nil {
		t.Error("accepted")
	}
}

// TestLog checks what is logged: refused requests, but not each of them for
// ever, and with VFIOUSERDEBUG=1 every message.
func TestLog(t *testing.T) {
	for _, debug := range []string{"", "1"} {
		t.Setenv("VFIOUSERDEBUG", debug)
		var b bytes.Buffer
		cfg := vfiousertest.Config()
		cfg.Logger = slog.New(slog.NewTextHandler(&b, &slog.HandlerOptions{Level: slog.LevelDebug}))
		dev := vfiousertest.NewDevice(cfg)
		_, conn := vfiousertest.Serve(t, dev, cfg)
		p := vfiousertest.NewPeer(t, conn)
		p.Version()
		for range 1000 {
			p.Do(vfiousertest.Message{ID: 5, Command: 14})
		}
		conn.Close()
		<-dev.Gone
		refused, traced := strings.Count(b.String(), "request refused"), strings.Count(b.String(), "msg=\"vfiouser: message\"")
		// The first 8, then the 16th, 32nd, ... 512th.
		if refused != 14 {
			t.Errorf("%d lines for 1000 refused requests", refused)
		}
		if want := map[string]int{"": 0, "1": 1001}[debug]; traced != want {
			t.Errorf("VFIOUSERDEBUG=%s: %d lines for 1001 messages", debug, traced)
		}
	}
}

// TestServeClosedListener ends with an error when the listener does.
func TestServeClosedListener(t *testing.T) {
	srv, err := vfiouser.NewServer(quiet{}, vfiousertest.Config())
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: filepath.Join(t.TempDir(), "s"), Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	l.Close()
	if err := srv.Serve(context.Background(), l); !errors.Is(err, net.ErrClosed) {
		t.Errorf("serve: %v", err)
	}
}

// lines passes on what is logged, as far as there is room.
type lines chan string

func (l lines) Write(b []byte) (int, error) {
	select {
	case l <- string(b):
	default:
	}
	return len(b), nil
}

// TestServeWithoutDescriptors waits until a client can be accepted again, and
// ends while it waits.
func TestServeWithoutDescriptors(t *testing.T) {
	failed := make(lines, 1)
	cfg := vfiousertest.Config()
	cfg.Logger = slog.New(slog.NewTextHandler(failed, nil))
	srv, err := vfiouser.NewServer(quiet{}, cfg)
	if err != nil {
		t.Fatal(err)
	}
	path, end := listen(t, srv)
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	client := os.NewFile(uintptr(fd), "client")
	defer client.Close()
	var old unix.Rlimit
	if err := unix.Prlimit(0, unix.RLIMIT_NOFILE, nil, &old); err != nil {
		t.Fatal(err)
	}
	next, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	unix.Close(next)
	low := unix.Rlimit{Cur: uint64(next), Max: old.Max}
	if err := unix.Prlimit(0, unix.RLIMIT_NOFILE, &low, nil); err != nil {
		t.Fatal(err)
	}
	err = unix.Connect(fd, &unix.SockaddrUnix{Name: path})
	line := ""
	if err == nil {
		select {
		case line = <-failed:
		case <-time.After(time.Minute):
		}
	}
	served := srv.Stats().Connections
	if err := unix.Prlimit(0, unix.RLIMIT_NOFILE, &old, nil); err != nil {
		t.Fatal(err)
	}
	if err != nil || served != 0 || !strings.Contains(line, "too many open files") {
		t.Fatalf("connect: %v; %d connections without descriptors; logged %q", err, served, line)
	}
	waitFor(t, "the client to be served", func() bool { return srv.Stats().Connections == 1 })
	if err := end(); err != nil {
		t.Error(err)
	}
}
