// SPDX-License-Identifier: Apache-2.0

package rig

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"toebox/images/control"
	"toebox/images/vm"
)

func TestExitCode(t *testing.T) {
	for want, errs := range map[int][]error{
		0:   {nil},
		7:   {&StatusError{7}},
		2:   {&UsageError{"x"}, fmt.Errorf("y: %w", &UsageError{"x"})},
		3:   {vm.ErrPanic, fmt.Errorf("x: %w", vm.ErrQEMU), ErrDevice, &RunError{Err: vm.ErrPanic}},
		124: {context.DeadlineExceeded, &RunError{Err: fmt.Errorf("boot: %w", context.DeadlineExceeded)}},
		125: {errors.New("x"), &vm.PhaseError{Phase: "bind", Text: "no"}, os.ErrPermission, ErrNotRunning},
	} {
		for _, err := range errs {
			if got := ExitCode(err); got != want {
				t.Errorf("%v: %d, want %d", err, got, want)
			}
		}
	}
}

func TestForward(t *testing.T) {
	taken, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	port := taken.Addr().(*net.TCPAddr).Port
	_, err = Forward(port)
	if err == nil || !strings.Contains(err.Error(), fmt.Sprint(port)) || !strings.Contains(err.Error(), "--port") || ExitCode(err) != 125 {
		t.Errorf("in use: %v", err)
	}
	for _, p := range []int{-1, 0, 65536} {
		if _, err := Forward(p); ExitCode(err) != 2 {
			t.Errorf("%d: %v", p, err)
		}
	}
}

// testPaths is a machine's worth of directories, with a short one for sockets.
func testPaths(t *testing.T) Paths {
	t.Helper()
	short, err := os.MkdirTemp("", "rig")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(short) })
	return Paths{Cache: t.TempDir(), State: t.TempDir(), Runtime: short}
}

func TestRuns(t *testing.T) {
	p := testPaths(t)
	if _, err := Running(p); !errors.Is(err, ErrNotRunning) {
		t.Errorf("nothing runs: %v", err)
	}
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	a, err := newRun(p, now, 8080, 1)
	if err != nil {
		t.Fatal(err)
	}
	if !strings.HasPrefix(a.ID, "20260102-030405-") {
		t.Errorf("id = %s", a.ID)
	}
	// It is there once it answers.
	if _, err := Running(p); !errors.Is(err, ErrNotRunning) {
		t.Errorf("not listening: %v", err)
	}
	l, err := ListenSocket(a.Socket())
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if r, err := Running(p); err != nil || r.ID != a.ID || r.Port != 8080 || r.PID != os.Getpid() {
		t.Errorf("running = %+v, %v", r, err)
	}
	// A killed one: its lock is gone, its files are not.
	b, err := newRun(p, now.Add(time.Second), 0, 1)
	if err != nil {
		t.Fatal(err)
	}
	b.lock.Close()
	if r, err := Running(p); err != nil || r.ID != a.ID {
		t.Errorf("beside a killed one: %+v, %v", r, err)
	}
	if target, err := os.Readlink(filepath.Join(p.State, "runs/latest")); err != nil || target != b.ID {
		t.Errorf("latest -> %s, %v", target, err)
	}
	c, err := newRun(p, now.Add(2*time.Second), 0, 1)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(b.Sockets); !errors.Is(err, os.ErrNotExist) {
		t.Error("the killed run's sockets are still there")
	}
	if _, err := os.Stat(a.Sockets); err != nil {
		t.Error("the living run's sockets are gone")
	}
	c.close()
	a.close()
	if _, err := os.Stat(a.Sockets); !errors.Is(err, os.ErrNotExist) {
		t.Error("sockets outlive their run")
	}
	for i := range keepRuns + 5 {
		f, err := newRun(p, now.Add(time.Duration(i+3)*time.Second), 0, 1)
		if err != nil {
			t.Fatal(err)
		}
		f.close()
	}
	if n := len(runIDs(filepath.Join(p.State, "runs"))); n > keepRuns+1 {
		t.Errorf("%d folders kept", n)
	}
}

// A record somebody edited must not have us remove somebody else's files.
func TestTidyRemovesOnlyOurs(t *testing.T) {
	p := testPaths(t)
	victim := filepath.Join(t.TempDir(), "precious")
	if err := os.MkdirAll(victim, 0o755); err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(p.State, "runs/20260101-000000-aaaaaa")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "instance.json"), []byte(`{"sockets":"`+victim+`"}`), 0o644); err != nil {
		t.Fatal(err)
	}
	f, err := newRun(p, time.Now(), 0, 1)
	if err != nil {
		t.Fatal(err)
	}
	f.close()
	if _, err := os.Stat(victim); err != nil {
		t.Error("removed a directory that is not ours")
	}
}

func TestListenSocketReplacesTheDead(t *testing.T) {
	path := filepath.Join(testPaths(t).Runtime, "s")
	dead, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := ListenSocket(path); err == nil || !strings.Contains(err.Error(), "in use") {
		t.Errorf("a living one: %v", err)
	}
	dead.SetUnlinkOnClose(false)
	dead.Close()
	l, err := ListenSocket(path)
	if err != nil {
		t.Fatal(err)
	}
	l.Close()
}

func TestRelayEnds(t *testing.T) {
	p := testPaths(t)
	f, err := newRun(p, time.Now(), 0, 1)
	if err != nil {
		t.Fatal(err)
	}
	defer f.close()
	a, b := net.Pipe()
	guest := control.New(b, control.Config{Role: control.Guest, Handler: func(context.Context, *control.Stream) control.Result {
		return control.Result{Status: 4}
	}})
	defer guest.Close()
	host := control.New(a, control.Config{Role: control.Host})
	defer host.Close()
	l, err := ListenSocket(f.Socket())
	if err != nil {
		t.Fatal(err)
	}
	r := newRelay(l, host)
	s, err := Dial(t.Context(), f.Record)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if res, err := control.Run(t.Context(), s, control.Request{}, control.Streams{}); err != nil || res.Status != 4 {
		t.Errorf("through the relay: %+v, %v", res, err)
	}
	r.close()
	<-s.Done()
	if _, err := Dial(t.Context(), f.Record); err == nil {
		t.Error("a closed relay answers")
	}
}

func TestFindSource(t *testing.T) {
	dir := t.TempDir()
	t.Setenv("TOEBOX_SOURCE", dir)
	if _, err := FindSource(); err == nil || !strings.Contains(err.Error(), "TOEBOX_SOURCE") {
		t.Errorf("empty directory: %v", err)
	}
	if err := os.WriteFile(filepath.Join(dir, "go.mod"), []byte("// x\nmodule toebox\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	if got, err := FindSource(); err != nil || got != dir {
		t.Errorf("named: %s, %v", got, err)
	}
	t.Setenv("TOEBOX_SOURCE", "")
	sub := filepath.Join(dir, "a/b")
	if err := os.MkdirAll(sub, 0o755); err != nil {
		t.Fatal(err)
	}
	t.Chdir(sub)
	if got, err := FindSource(); err != nil || got != dir {
		t.Errorf("above: %s, %v", got, err)
	}
	t.Chdir(t.TempDir())
	if _, err := FindSource(); !errors.Is(err, errNoSource) {
		t.Errorf("nowhere: %v", err)
	}
}

func TestDefaultPaths(t *testing.T) {
	home := t.TempDir()
	t.Setenv("HOME", home)
	t.Setenv("XDG_CACHE_HOME", "relative")
	t.Setenv("XDG_STATE_HOME", "/state")
	t.Setenv("XDG_RUNTIME_DIR", filepath.Join(home, "none"))
	t.Setenv("TMPDIR", "/tmp")
	p, err := DefaultPaths()
	if err != nil {
		t.Fatal(err)
	}
	if p.Cache != home+"/.cache/toebox" || p.State != "/state/toebox" || p.Runtime != "/tmp" {
		t.Errorf("paths = %+v", p)
	}
}
