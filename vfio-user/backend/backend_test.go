// SPDX-License-Identifier: Apache-2.0

package backend_test

import (
	"context"
	"errors"
	"net"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	vfiouser "toebox/vfio-user"
	"toebox/vfio-user/backend"
	"toebox/vfio-user/vfiousertest"
)

func TestMain(m *testing.M) { vfiousertest.Main(m) }

const patience = 60 * time.Second

func server(t *testing.T) *vfiouser.Server {
	t.Helper()
	cfg := vfiousertest.Config()
	s, err := vfiouser.NewServer(vfiousertest.NewDevice(cfg), cfg)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// serve serves until the returned function is called, which gives the error.
func serve(t *testing.T, path string, fd int) (end func() error) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	s := server(t)
	go func() { done <- backend.Serve(ctx, s, path, fd) }()
	return func() error {
		cancel()
		return <-done
	}
}

// use connects as soon as it can and makes a request.
func use(t *testing.T, path string) {
	t.Helper()
	c := vfiousertest.Dial(t, path)
	defer c.Close()
	if err := c.Reset(); err != nil {
		t.Error(err)
	}
}

// listener returns the descriptor of a socket that listens at a path.
func listener(t *testing.T) (path string, fd int) {
	t.Helper()
	path = filepath.Join(t.TempDir(), "s")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	l.SetUnlinkOnClose(false)
	defer l.Close()
	return path, descriptor(t, l)
}

// descriptor returns a descriptor that belongs to whom it is given.
func descriptor(t *testing.T, c interface{ File() (*os.File, error) }) int {
	t.Helper()
	f, err := c.File()
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	fd, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	return fd
}

// TestPath serves at a path, in place of a socket that nobody listens on but not
// of anything else.
func TestPath(t *testing.T) {
	path, fd := listener(t)
	unix.Close(fd) // what a killed process leaves
	end := serve(t, path, -1)
	use(t, path)
	use(t, path)
	if err := backend.Serve(context.Background(), server(t), path, -1); !errors.Is(err, syscall.EADDRINUSE) {
		t.Errorf("second server: %v", err)
	}
	use(t, path)
	if err := end(); err != nil {
		t.Error(err)
	}
	if _, err := os.Lstat(path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the socket is left behind: %v", err)
	}
	if err := os.WriteFile(path, []byte("mine"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := backend.Serve(context.Background(), server(t), path, -1); !errors.Is(err, syscall.EADDRINUSE) {
		t.Errorf("in place of a file: %v", err)
	}
	if b, err := os.ReadFile(path); string(b) != "mine" {
		t.Errorf("the file holds %q, %v", b, err)
	}
}

// TestFD serves on descriptors that listen, are connected, or neither.
func TestFD(t *testing.T) {
	path, fd := listener(t)
	end := serve(t, "", fd)
	use(t, path)
	if err := end(); err != nil {
		t.Error(err)
	}
	if _, err := os.Lstat(path); err != nil {
		t.Errorf("the parent's socket is gone: %v", err)
	}

	a, b := vfiousertest.Pair(t)
	end = serve(t, "", descriptor(t, b))
	b.Close()
	c, err := vfiouser.NewClient(a, vfiouser.ClientConfig{Timeout: patience})
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(c.Reset(), c.Close(), end()); err != nil {
		t.Error(err)
	}

	l, err := net.ListenTCP("tcp", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	null, err := unix.Open(os.DevNull, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(null)
	for name, fd := range map[string]int{"tcp": descriptor(t, l), "no socket": null, "nothing": 1 << 20} {
		if err := backend.Serve(context.Background(), server(t), "", fd); err == nil {
			t.Errorf("%s: served", name)
		}
	}
}
