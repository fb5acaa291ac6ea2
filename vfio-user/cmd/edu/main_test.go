// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	vfiouser "toebox/vfio-user"
	"toebox/vfio-user/vfiousertest"
)

const asCommand = "EDU_TEST_COMMAND" // in the environment: be the command

func TestMain(m *testing.M) {
	if os.Getenv(asCommand) != "" {
		main()
	}
	vfiousertest.Main(m)
}

const patience = 60 * time.Second

// tempDir returns a folder whose name is short enough for a socket.
func tempDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "edu")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

// start runs the command until the returned function is called, which gives the
// status.
func start(t *testing.T, args ...string) (stop func() int) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	status := make(chan int, 1)
	var stderr bytes.Buffer
	go func() { status <- run(ctx, args, &stderr) }()
	return func() int {
		cancel()
		s := <-status
		if s != exitOK {
			t.Logf("stderr: %s", &stderr)
		}
		return s
	}
}

// identify connects, as soon as it can, and reads the identification.
func identify(t *testing.T, path string) {
	t.Helper()
	c := vfiousertest.Dial(t, path)
	defer c.Close()
	identifyOn(t, c)
}

func identifyOn(t *testing.T, c *vfiouser.Client) {
	t.Helper()
	id := make([]byte, 4)
	if err := c.ReadRegion(0, 0, id); err != nil || !bytes.Equal(id, []byte{0xed, 0, 0, 1}) {
		t.Errorf("identification %x, %v", id, err)
	}
}

func TestSocketPath(t *testing.T) {
	path := filepath.Join(tempDir(t), "s")
	stop := start(t, "--socket-path="+path)
	identify(t, path)
	identify(t, path)
	// A second one must not take the place of the first.
	if s := run(context.Background(), []string{"--socket-path", path}, &bytes.Buffer{}); s != exitFailed {
		t.Errorf("second server: status %d", s)
	}
	identify(t, path)
	if s := stop(); s != exitOK {
		t.Errorf("status %d", s)
	}
	if _, err := os.Lstat(path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the socket is left behind: %v", err)
	}
}

// TestStaleSocket: the socket of a process that was killed is no obstacle, any
// other file is.
func TestStaleSocket(t *testing.T) {
	dir := tempDir(t)
	path := filepath.Join(dir, "s")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	l.SetUnlinkOnClose(false)
	l.Close()
	stop := start(t, "--socket-path="+path, "--dma-mask=0xffffffff")
	identify(t, path)
	if s := stop(); s != exitOK {
		t.Errorf("status %d", s)
	}
	file := filepath.Join(dir, "f")
	if err := os.WriteFile(file, []byte("mine"), 0o600); err != nil {
		t.Fatal(err)
	}
	if s := run(context.Background(), []string{"--socket-path", file}, &bytes.Buffer{}); s != exitFailed {
		t.Errorf("status %d", s)
	}
	if b, err := os.ReadFile(file); string(b) != "mine" {
		t.Errorf("the file holds %q, %v", b, err)
	}
}

func TestUsage(t *testing.T) {
	for _, tt := range []struct {
		args string
		want int
		say  string
	}{
		{"", exitUsage, "--socket-path"},
		{"--socket-path=a --fd=3", exitUsage, "either"},
		{"--socket-path=a b", exitUsage, "either"},
		{"--socket-path=a --dma-mask=0", exitUsage, "mask"},
		{"--fd=x", exitUsage, "fd"},
		{"--daemonize", exitUsage, "daemonize"},
		{"--help", exitOK, "dma-mask"},
		{"--fd=1000000", exitFailed, "bad file descriptor"},
		{"--socket-path=/nonexistent/s", exitFailed, "no such file"},
	} {
		var stderr bytes.Buffer
		if got := run(t.Context(), strings.Fields(tt.args), &stderr); got != tt.want || !strings.Contains(stderr.String(), tt.say) {
			t.Errorf("%q: status %d, want %d; said %s", tt.args, got, tt.want, &stderr)
		}
	}
}

// command is this program as a process, with a file as descriptor 3.
func command(t *testing.T, file *os.File, args ...string) (*exec.Cmd, *bytes.Buffer) {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	t.Cleanup(cancel)
	var out bytes.Buffer
	cmd := exec.CommandContext(ctx, exe, args...)
	cmd.Env = append(os.Environ(), asCommand+"=1")
	cmd.Stdout, cmd.Stderr = &out, &out
	cmd.ExtraFiles = []*os.File{file}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	return cmd, &out
}

// TestSignals ends the process as a manager of virtual machines would.
func TestSignals(t *testing.T) {
	for _, sig := range []os.Signal{syscall.SIGTERM, syscall.SIGINT} {
		t.Run(fmt.Sprint(sig), func(t *testing.T) {
			path := filepath.Join(tempDir(t), "s")
			l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
			if err != nil {
				t.Fatal(err)
			}
			defer l.Close()
			f, err := l.File()
			if err != nil {
				t.Fatal(err)
			}
			cmd, out := command(t, f, "--fd=3")
			f.Close()
			c, err := vfiouser.Dial(t.Context(), path, vfiouser.ClientConfig{Timeout: patience})
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			identifyOn(t, c)
			if err := cmd.Process.Signal(sig); err != nil {
				t.Fatal(err)
			}
			if err := cmd.Wait(); err != nil || out.Len() > 0 {
				t.Errorf("%v; said %q", err, out)
			}
			if _, err := os.Lstat(path); err != nil {
				t.Errorf("the parent's socket is gone: %v", err)
			}
		})
	}
}

// TestConnectedFD serves the one client that is there.
func TestConnectedFD(t *testing.T) {
	a, b := vfiousertest.Pair(t)
	f, err := b.File()
	if err != nil {
		t.Fatal(err)
	}
	cmd, out := command(t, f, "--fd=3")
	f.Close()
	b.Close()
	c, err := vfiouser.NewClient(a, vfiouser.ClientConfig{Timeout: patience})
	if err != nil {
		t.Fatal(err)
	}
	identifyOn(t, c)
	c.Close()
	if err := cmd.Wait(); err != nil || out.Len() > 0 {
		t.Errorf("%v; said %q", err, out)
	}
}

// TestFDOfAnotherKind: neither a file nor a socket of the network will do.
func TestFDOfAnotherKind(t *testing.T) {
	null, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	tcp, err := l.(*net.TCPListener).File()
	if err != nil {
		t.Fatal(err)
	}
	defer tcp.Close()
	for _, f := range []*os.File{null, tcp} {
		cmd, out := command(t, f, "--fd=3")
		err := cmd.Wait()
		var exit *exec.ExitError
		if !errors.As(err, &exit) || exit.ExitCode() != exitFailed || !strings.Contains(out.String(), "edu: --fd=3: ") {
			t.Errorf("%s: %v; said %q", f.Name(), err, out)
		}
	}
}
