// SPDX-License-Identifier: Apache-2.0

package socket_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"toebox/ci/bus/socket"
	"toebox/ci/rig"
	"toebox/guestdriver"
	"toebox/vdev/device"
	vfiouser "toebox/vfio-user"
	"toebox/vfio-user/vfiousertest"
)

const (
	asDevice = "SOCKET_TEST_DEVICE" // in the environment: be the device process
	patience = 60 * time.Second
)

func TestMain(m *testing.M) {
	if os.Getenv(asDevice) != "" {
		serve()
		return
	}
	vfiousertest.Main(m)
}

// serve is a device process: it serves on the socket that it inherits.
func serve() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	l, err := net.FileListener(os.NewFile(3, "socket"))
	if err == nil {
		var d *device.Device
		if d, err = device.New(device.Config{Net: device.Net{Mode: device.ModeNAT}, Firmware: rig.Firmware}); err == nil {
			err = d.Serve(ctx, l.(*net.UnixListener))
		}
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// process starts a device process and returns it with its socket's path.
func process(t *testing.T) (*os.Process, string) {
	t.Helper()
	dir, err := os.MkdirTemp("", "tbx") // short enough for a socket
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	path := filepath.Join(dir, "dev")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	l.SetUnlinkOnClose(false)
	f, err := l.File()
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(exe)
	cmd.Env = append(os.Environ(), asDevice+"=1")
	cmd.ExtraFiles, cmd.Stderr = []*os.File{f}, os.Stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill() // gone already, in some tests
		_ = cmd.Wait()
	})
	return cmd.Process, path
}

func dial(t *testing.T, path string, timeout time.Duration) *socket.Bus {
	t.Helper()
	b, err := socket.Dial(t.Context(), path, vfiouser.ClientConfig{Timeout: timeout})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { b.Close() })
	return b
}

// ends fails the test if f does not return in time.
func ends(t *testing.T, what string, f func()) {
	t.Helper()
	done := make(chan struct{})
	go func() {
		defer close(done)
		f()
	}()
	select {
	case <-done:
	case <-time.After(patience):
		t.Fatalf("%s did not end in %v", what, patience)
	}
}

// gone checks what a bus says whose server is gone.
func gone(t *testing.T, b *socket.Bus) {
	t.Helper()
	if v := b.Read32(0, 0); v != 0xffffffff {
		t.Errorf("register: %#x", v)
	}
	b.Write32(0, 0x10, 1)
	if _, err := b.ReadConfig(0, 4); err == nil {
		t.Error("configuration space was read")
	}
	if err := b.WriteConfig(4, 2, 6); err == nil {
		t.Error("configuration space was written")
	}
	if _, err := b.AllocDMA(4096); err == nil {
		t.Error("memory was mapped")
	}
	if err := b.EnableVectors(1); err == nil {
		t.Error("vectors were enabled")
	}
	if err := b.Reset(); err == nil {
		t.Error("reset succeeded")
	}
	ends(t, "Wait", func() {
		if err := b.Wait(1); !errors.Is(err, net.ErrClosed) {
			t.Errorf("wait: %v", err)
		}
	})
	for range 2 {
		if err := b.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
	}
	maps, err := os.ReadFile("/proc/self/maps")
	if err != nil {
		t.Fatal(err)
	}
	if bytes.Contains(maps, []byte("toebox dma")) {
		t.Error("DMA memory is still mapped after Close")
	}
}

// TestMemory: pieces are aligned, apart, zeroed also when used again, and
// bounded.
func TestMemory(t *testing.T) {
	_, path := process(t)
	b := dial(t, path, patience)
	x, err := b.AllocDMA(5000)
	if err != nil {
		t.Fatal(err)
	}
	y, err := b.AllocDMA(1)
	if err != nil {
		t.Fatal(err)
	}
	if len(x.Bytes) != 5000 || x.IOVA%4096 != 0 || x.IOVA>>32 == 0 || y.IOVA < x.IOVA+3*4096 {
		t.Errorf("%d bytes at %#x, the next at %#x", len(x.Bytes), x.IOVA, y.IOVA)
	}
	for i := range x.Bytes {
		x.Bytes[i] = 0xff
	}
	if err := b.FreeDMA(x); err != nil {
		t.Error(err)
	}
	if err := b.FreeDMA(x); !errors.Is(err, unix.EINVAL) {
		t.Errorf("freed twice: %v", err)
	}
	z, err := b.AllocDMA(5000)
	if err != nil || z.IOVA != x.IOVA || !bytes.Equal(z.Bytes, make([]byte, 5000)) {
		t.Errorf("again: %v at %#x, or bytes that are not zero", err, z.IOVA)
	}
	for size, want := range map[int]error{0: unix.EINVAL, -1: unix.EINVAL, 1 << 40: unix.EINVAL, 1 << 30: unix.ENOMEM} {
		if _, err := b.AllocDMA(size); !errors.Is(err, want) {
			t.Errorf("%d bytes: %v, want %v", size, err, want)
		}
	}
	if err := b.Close(); err != nil {
		t.Error(err)
	}
	if _, err := b.AllocDMA(1); err == nil {
		t.Error("memory of a closed bus")
	}
	if err := b.FreeDMA(y); err == nil {
		t.Error("freed memory of a closed bus")
	}
}

// TestArguments: what no adapter has is an error, not a panic.
func TestArguments(t *testing.T) {
	_, path := process(t)
	b := dial(t, path, patience)
	for _, err := range []error{
		b.EnableVectors(0), b.EnableVectors(34), b.Wait(-1), b.Wait(33),
		b.WriteConfig(-1, 1, 0), b.WriteConfig(0, 3, 0),
		second(b.ReadConfig(-1, 1)), second(b.ReadConfig(0, 3)),
	} {
		if !errors.Is(err, unix.EINVAL) {
			t.Errorf("got %v, want EINVAL", err)
		}
	}
	if _, err := b.ReadConfig(1<<20, 4); err == nil {
		t.Error("read beyond configuration space")
	}
	if v := b.Read32(0, 1<<30); v != 0xffffffff {
		t.Errorf("register beyond the BAR: %#x", v)
	}
	if !strings.HasSuffix(b.Name(), path) {
		t.Errorf("name %q", b.Name())
	}
	if _, err := socket.Dial(t.Context(), path+"x", vfiouser.ClientConfig{}); err == nil {
		t.Error("dialled a socket that is not there")
	}
}

func second(_ uint32, err error) error { return err }

// TestKilled: the device process dies under a driver at work.
func TestKilled(t *testing.T) {
	proc, path := process(t)
	b := dial(t, path, patience)
	a, err := guestdriver.Open(t.Context(), b, guestdriver.Options{Memory: 4 << 20})
	if err != nil {
		t.Fatal(err)
	}
	// A connection to a host of the adapter's own network that is not there
	// takes seconds to fail.
	dialled := make(chan error, 1)
	go func() {
		_, err := a.DialContext(t.Context(), "tcp", "10.0.2.99:1")
		dialled <- err
	}()
	waits := make(chan error, 1)
	go func() { waits <- b.Wait(32) }()
	if err := proc.Kill(); err != nil {
		t.Fatal(err)
	}
	ends(t, "Wait", func() {
		if err := <-waits; !errors.Is(err, net.ErrClosed) {
			t.Errorf("wait: %v", err)
		}
	})
	ends(t, "dial", func() {
		if err := <-dialled; err == nil {
			t.Error("a connection over an adapter that is gone")
		}
	})
	ends(t, "Close of the driver", func() { a.Close() })
	gone(t, b)
}

// TestStopped: a server that answers no more is given up in time.
func TestStopped(t *testing.T) {
	proc, path := process(t)
	dial(t, path, patience).Close()    // the process is up
	b := dial(t, path, 10*time.Second) // also bounds what sets the bus up
	if err := proc.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	// The signal is there when the process is seen not to run.
	var ws syscall.WaitStatus
	if _, err := syscall.Wait4(proc.Pid, &ws, syscall.WUNTRACED, nil); err != nil || !ws.Stopped() {
		t.Fatalf("wait for the stop: %v, %v", ws, err)
	}
	ends(t, "a read", func() {
		if _, err := b.ReadConfig(0, 4); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("read: %v", err)
		}
	})
	gone(t, b)
}

// TestClientGone: a client that goes without a word leaves the adapter to the
// next one, in its reset state.
func TestClientGone(t *testing.T) {
	_, path := process(t)
	for range 3 {
		b := dial(t, path, patience)
		if v, err := b.ReadConfig(4, 2); err != nil || v != 2 {
			t.Errorf("Command is %#x, %v; want memory space only", v, err)
		}
		a, err := guestdriver.Open(t.Context(), b, guestdriver.Options{Memory: 4 << 20})
		if err != nil {
			t.Fatal(err)
		}
		if v, err := b.ReadConfig(4, 2); err != nil || v&4 == 0 {
			t.Errorf("Command is %#x, %v; want bus master enabled", v, err)
		}
		b.Drop()
		ends(t, "Close of the driver", func() { a.Close() })
		gone(t, b)
	}
}
