// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"toebox/vfio-user/edu"
	"toebox/vfio-user/vfiousertest"
)

const (
	asKeeper = "KEEPER_TEST_KEEPER" // in the environment: be the command
	patience = 60 * time.Second
)

func TestMain(m *testing.M) {
	switch {
	case len(os.Args) > 1 && strings.HasPrefix(os.Args[1], "edu:"):
		serve(strings.TrimPrefix(os.Args[1], "edu:"))
		return
	case len(os.Args) > 1 && os.Args[1] == "fail:4":
		os.NewFile(4, "inherited").WriteString("failing")
		os.Exit(1)
	case os.Getenv(asKeeper) != "":
		main()
	}
	vfiousertest.Main(m)
}

// serve is the device server. where is its socket: a path, a number, or nothing
// if the environment has it.
func serve(where string) {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	var l net.Listener
	var err error
	switch where {
	case "3":
		l, err = net.FileListener(os.NewFile(3, "socket"))
	case "":
		l, err = net.Listen("unix", os.Getenv("VFIO_USER_SOCKET"))
	default:
		l, err = net.Listen("unix", where)
	}
	if err == nil {
		var dev *edu.Device
		if dev, err = edu.New(edu.Config{}); err == nil {
			err = dev.Server().Serve(ctx, l.(*net.UnixListener))
		}
	}
	if err != nil {
		os.Exit(1)
	}
}

// process is the command as a process, with output to a buffer, or standard
// output to a file.
func process(t *testing.T, stdout *os.File, args ...string) (*exec.Cmd, *bytes.Buffer) {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	t.Cleanup(cancel)
	for i, a := range args {
		args[i] = strings.ReplaceAll(a, "EXE", exe)
	}
	cmd := exec.CommandContext(ctx, exe, args...)
	cmd.Env = append(os.Environ(), asKeeper+"=1")
	out := new(bytes.Buffer)
	cmd.Stdout, cmd.Stderr = out, out
	if stdout != nil {
		cmd.Stdout = stdout
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	return cmd, out
}

func folder(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "keeper") // short enough for a socket
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

// TestCommand: a server is told its socket in each of the ways, SIGHUP replaces
// it, and SIGTERM ends both.
func TestCommand(t *testing.T) {
	for _, how := range []string{"edu:{socket}", "edu:{fd}", "edu:"} {
		t.Run(how, func(t *testing.T) {
			path := filepath.Join(folder(t), "s")
			cmd, out := process(t, nil, "--socket-path="+path, "--", "EXE", how)
			c := vfiousertest.Dial(t, path)
			b := make([]byte, 4)
			if err := c.WriteRegion(0, 4, []byte{1, 2, 3, 4}); err != nil {
				t.Fatal(err)
			}
			if err := c.ReadRegion(0, 4, b); err != nil || !bytes.Equal(b, []byte{0xfe, 0xfd, 0xfc, 0xfb}) {
				t.Errorf("% x, %v", b, err)
			}
			if err := cmd.Process.Signal(syscall.SIGHUP); err != nil {
				t.Fatal(err)
			}
			for deadline := time.Now().Add(patience); b[0] != 0; {
				if err := c.ReadRegion(0, 4, b); err != nil || time.Now().After(deadline) {
					t.Fatalf("% x, %v", b, err)
				}
			}
			if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
				t.Fatal(err)
			}
			if err := cmd.Wait(); err != nil || strings.Count(out.String(), "server ready") != 2 {
				t.Errorf("%v; said %s", err, out)
			}
			if _, err := os.Lstat(path); !errors.Is(err, os.ErrNotExist) {
				t.Errorf("the socket is left behind: %v", err)
			}
		})
	}
}

// TestKilled: with the keeper goes its server, a new one takes over the path, and
// nothing is left in the folder for temporary files: at once with a socket that is
// handed on, by the next keeper with one that has a name.
func TestKilled(t *testing.T) {
	path := filepath.Join(folder(t), "s")
	t.Setenv("TMPDIR", folder(t))
	temporary := func() []string {
		t.Helper()
		names, err := filepath.Glob(filepath.Join(os.Getenv("TMPDIR"), "*"))
		if err != nil {
			t.Fatal(err)
		}
		return names
	}
	var left []string
	for _, tt := range []struct {
		how  string
		want int // folders
	}{{"edu:{fd}", 0}, {"edu:{socket}", 1}, {"edu:", 1}} {
		r, w, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		defer r.Close()
		cmd, _ := process(t, w, "--socket-path="+path, "--", "EXE", tt.how)
		w.Close()
		vfiousertest.Dial(t, path)
		if now := temporary(); len(now) != tt.want || len(left) > 0 && slices.Contains(now, left[0]) {
			t.Errorf("%s: folders %v after %v", tt.how, now, left)
		}
		cmd.Process.Kill()
		cmd.Wait()
		// Standard output is the server's too.
		r.SetReadDeadline(time.Now().Add(patience))
		if b, err := io.ReadAll(r); err != nil {
			t.Fatalf("the server lives on: %q, %v", b, err)
		}
		if left = temporary(); len(left) != tt.want {
			t.Errorf("%s: folders %v are left", tt.how, left)
		}
	}
	cmd, out := process(t, nil, "--socket-path="+path, "--", "EXE", "edu:{socket}")
	vfiousertest.Dial(t, path)
	cmd.Process.Signal(syscall.SIGINT)
	if err := cmd.Wait(); err != nil || len(temporary()) != 0 {
		t.Errorf("%v; said %s; folders %v", err, out, temporary())
	}
}

func TestUsage(t *testing.T) {
	file := filepath.Join(folder(t), "f")
	if err := os.WriteFile(file, []byte("mine"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		args string
		want int
		say  string
	}{
		{"", exitUsage, "--socket-path"},
		{"--socket-path=a", exitUsage, "command of a server"},
		{"--socket-path=a --patience=0 -- true", exitUsage, "patience"},
		{"--socket=a -- true", exitUsage, "not defined"},
		{"--socket-path=a --socket-fd=3 -- true", exitUsage, "--socket-path"},
		{"--socket-path=a --inherit=x -- true", exitUsage, "inherit"},
		{"--socket-path=a --inherit=1000 -- true", exitFailed, "--inherit: file descriptor 1000"},
		{"--help", exitOK, "SERVER-COMMAND"},
		{"--socket-path=a -- /no/such/server", exitFailed, "no such file"},
		{"--socket-path=/nonexistent/s -- true", exitFailed, "no such file"},
		{"--socket-path=" + file + " -- true", exitFailed, "in use"},
	} {
		var stderr bytes.Buffer
		if got := run(t.Context(), strings.Fields(tt.args), nil, &stderr, &stderr); got != tt.want || !strings.Contains(stderr.String(), tt.say) {
			t.Errorf("%q: status %d, want %d; said %s", tt.args, got, tt.want, &stderr)
		}
	}
	if b, err := os.ReadFile(file); string(b) != "mine" {
		t.Errorf("the file holds %q, %v", b, err)
	}
}
