// SPDX-License-Identifier: Apache-2.0

package keeper

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"sync"
	"syscall"
	"testing"
	"time"

	vfiouser "toebox/vfio-user"
	"toebox/vfio-user/edu"
	"toebox/vfio-user/vfiousertest"
)

const (
	asServer = "KEEPER_TEST_SERVER" // in the environment: be that server
	patience = 3 * time.Minute      // of tests
)

func TestMain(m *testing.M) {
	if kind := os.Getenv(asServer); kind != "" {
		serveAs(kind)
		return
	}
	vfiousertest.Main(m)
}

// serveAs is a device server of the kind.
func serveAs(kind string) {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	if kind == "child" {
		// A wrapper whose own child does the work.
		exe, _ := os.Executable()
		cmd := exec.Command(exe)
		cmd.Env = append(os.Environ(), asServer+"=path")
		cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
		fmt.Println(cmd.Run())
		return
	}
	var l net.Listener
	var err error
	if kind == "fd" {
		l, err = net.FileListener(os.NewFile(3, "socket"))
	} else {
		l, err = net.Listen("unix", os.Getenv(EnvSocket))
	}
	if err == nil && kind == "hang" {
		cfg := vfiousertest.Config()
		dev := vfiousertest.NewDevice(cfg)
		dev.SetHooks(vfiousertest.Hooks{Read: func(region int, _ uint64, _ []byte) error {
			if region == 0 {
				select {}
			}
			return nil
		}})
		srv, _ := vfiouser.NewServer(dev, cfg)
		_ = srv.Serve(ctx, l.(*net.UnixListener))
	}
	var dev *edu.Device
	if err == nil {
		dev, err = edu.New(edu.Config{DMAMask: ^uint64(0)})
	}
	if err == nil {
		err = dev.Server().Serve(ctx, l.(*net.UnixListener))
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// command starts this test program as a server.
func command(t testing.TB, kind string) func(Launch) *exec.Cmd {
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	return func(l Launch) *exec.Cmd {
		cmd := exec.Command(exe)
		cmd.Env = append(os.Environ(), asServer+"="+kind)
		if kind == "fd" {
			cmd.ExtraFiles = []*os.File{l.Listener}
		}
		return cmd
	}
}

// rig is a keeper under test.
type rig struct {
	t    testing.TB
	k    *Keeper
	path string

	mu     sync.Mutex
	events []Event
	news   chan struct{}
}

// start runs a keeper until the test ends.
func start(t testing.TB, cfg Config) *rig {
	t.Helper()
	dir, err := os.MkdirTemp("", "keeper")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	r := &rig{t: t, path: filepath.Join(dir, "s"), news: make(chan struct{})}
	also := cfg.Event
	cfg.Event = func(e Event) {
		if also != nil {
			also(e)
		}
		r.mu.Lock()
		r.events = append(r.events, e)
		close(r.news)
		r.news = make(chan struct{})
		r.mu.Unlock()
	}
	if r.k, err = New(cfg); err != nil {
		t.Fatal(err)
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: r.path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- r.k.Serve(ctx, l) }()
	t.Cleanup(func() {
		cancel()
		select {
		case err := <-done:
			if err != nil {
				t.Errorf("Serve: %v", err)
			}
		case <-time.After(patience):
			t.Error("the keeper does not end")
		}
		l.Close()
		if t.Failed() {
			r.mu.Lock()
			for _, e := range r.events {
				t.Logf("%+v %s", e, e.Trace)
			}
			r.mu.Unlock()
		}
	})
	return r
}

// wait waits for the first event that f accepts.
func (r *rig) wait(what string, f func(Event) bool) Event {
	r.t.Helper()
	deadline := time.After(patience)
	for seen := 0; ; {
		r.mu.Lock()
		events, news := r.events, r.news
		r.mu.Unlock()
		for ; seen < len(events); seen++ {
			if f(events[seen]) {
				return events[seen]
			}
		}
		select {
		case <-news:
		case <-deadline:
			r.t.Fatalf("waited in vain for %s", what)
		}
	}
}

// ready waits until generation n serves the client.
func (r *rig) ready(n uint32) Event {
	r.t.Helper()
	return r.wait("generation "+strconv.Itoa(int(n)), func(e Event) bool { return e.Kind == EventReady && e.Generation >= n })
}

// outOfPatience has every request that waits be overdue.
func (r *rig) outOfPatience() { r.session().overdue(time.Now().Add(time.Hour)) }

func (r *rig) session() *session {
	r.k.mu.Lock()
	defer r.k.mu.Unlock()
	return r.k.session
}

// dial returns a client of the keeper, with a test's patience unless cfg has one.
func (r *rig) dial(cfg vfiouser.ClientConfig) *vfiouser.Client {
	r.t.Helper()
	if cfg.Timeout == 0 {
		cfg.Timeout = patience
	}
	c, err := vfiouser.Dial(context.Background(), r.path, cfg)
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() { c.Close() })
	return c
}

// eventually waits until f holds.
func eventually(t testing.TB, what string, f func() bool) {
	t.Helper()
	for deadline := time.Now().Add(patience); !f(); <-time.After(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("waited in vain for %s", what)
		}
	}
}
