// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"context"
	"encoding/json"
	"io"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	vfiouser "toebox/vfio-user"
	"toebox/vfio-user/keeper"
	"toebox/vfio-user/vfiousertest"
)

// above is a program that stands above a keeper.
type above struct {
	t       *testing.T
	conn    net.Conn
	reports *bufio.Scanner
	cmd     *exec.Cmd
	path    string // where QEMU finds the device
}

// start runs a keeper with inherited sockets, and servers that inherit extra.
func startAbove(t *testing.T, extra *os.File, server ...string) *above {
	t.Helper()
	a := &above{t: t, path: filepath.Join(folder(t), "s")}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: a.path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	l.SetUnlinkOnClose(false)
	socket, err := l.File()
	l.Close()
	if err != nil {
		t.Fatal(err)
	}
	fds, err := syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	mine, its := os.NewFile(uintptr(fds[0]), "control"), os.NewFile(uintptr(fds[1]), "control")
	a.conn, err = net.FileConn(mine)
	mine.Close()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { a.conn.Close() })
	a.conn.SetDeadline(time.Now().Add(patience))
	a.reports = bufio.NewScanner(a.conn)
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	a.cmd = exec.Command(exe, append([]string{"--socket-fd=3", "--control-fd=4", "--inherit=5", "--", exe}, server...)...)
	a.cmd.Env = append(os.Environ(), asKeeper+"=1")
	a.cmd.Stderr = os.Stderr
	a.cmd.ExtraFiles = []*os.File{socket, its, extra}
	if err := a.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	socket.Close()
	its.Close()
	t.Cleanup(func() { a.cmd.Process.Kill() })
	return a
}

// report waits for one of the kind.
func (a *above) report(kind string) keeper.Report {
	a.t.Helper()
	for a.reports.Scan() {
		var r keeper.Report
		if err := json.Unmarshal(a.reports.Bytes(), &r); err != nil {
			a.t.Fatal(err)
		}
		if r.Kind == kind {
			return r
		}
	}
	a.t.Fatalf("no report %q: %v", kind, a.reports.Err())
	return keeper.Report{}
}

func (a *above) order(line string) keeper.Report {
	a.t.Helper()
	if _, err := io.WriteString(a.conn, line+"\n"); err != nil {
		a.t.Fatal(err)
	}
	return a.report(keeper.KindReplaced)
}

// TestControl: another command serves when it is ordered to, the one before when
// the other cannot, the servers have what they inherit, and the keeper ends with
// who ordered.
func TestControl(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	a := startAbove(t, w, "edu:{fd}")
	w.Close()
	c := vfiousertest.Dial(t, a.path)
	if got := a.report("ready"); got.Generation != 1 || got.PID == 0 {
		t.Errorf("%+v", got)
	}
	exe, _ := os.Executable()
	last := uint32(1)
	for _, test := range []struct {
		order, says string
		starts      uint32 // at least: a server that fails may be tried again before its order is taken back
	}{
		{`{"server":["` + exe + `","edu:{socket}"]}`, "", 1},
		{`{"server":["` + exe + `","fail:4"]}`, "ended before", 2},
		{`{"server":[]}`, "no server", 0},
		{`{`, "unexpected end", 0},
		{`{"server":["/no/such/program"]}`, "no such file", 0},
	} {
		got := a.order(test.order)
		starts := got.Generation - last
		if starts < test.starts || test.starts < 2 && starts > test.starts || !strings.Contains(got.Error, test.says) || (test.says == "") != (got.Error == "") {
			t.Errorf("%s: %+v after generation %d, want %d starts and %q", test.order, got, last, test.starts, test.says)
		}
		last = got.Generation
		if err := c.ReadRegion(vfiouser.RegionConfig, 0, make([]byte, 4)); err != nil {
			t.Errorf("%s: the device: %v", test.order, err)
		}
	}
	// The server that failed said so to what it inherits.
	b := make([]byte, 64)
	r.SetReadDeadline(time.Now().Add(patience))
	if n, err := r.Read(b); !strings.HasPrefix(string(b[:n]), "failing") {
		t.Errorf("inherited: %q, %v", b[:n], err)
	}
	a.conn.Close()
	if err := a.cmd.Wait(); err != nil {
		t.Errorf("the keeper: %v", err)
	}
	if n, err := r.Read(b); n != 0 || err != io.EOF {
		t.Errorf("somebody lives on: %q, %v", b[:n], err)
	}
}

func TestInheritedRefused(t *testing.T) {
	file, err := os.Create(filepath.Join(folder(t), "f"))
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	for _, flag := range []string{"--socket-fd", "--control-fd"} {
		for value, says := range map[string]string{"2": "no number", "1000": "bad file descriptor", "3": "socket"} {
			args := []string{flag + "=" + value, "--", "true"}
			if flag == "--control-fd" {
				args = append([]string{"--socket-path=" + filepath.Join(folder(t), "s")}, args...)
			}
			exe, _ := os.Executable()
			cmd := exec.Command(exe, args...)
			cmd.Env = append(os.Environ(), asKeeper+"=1")
			cmd.ExtraFiles = []*os.File{file}
			out, err := cmd.CombinedOutput()
			if cmd.ProcessState.ExitCode() != exitFailed || !strings.Contains(string(out), says) || !strings.Contains(string(out), flag) {
				t.Errorf("%s=%s: %v, %s; want %q", flag, value, err, out, says)
			}
		}
	}
}

// controlled is a control connection whose other end the test holds, and nothing that
// serves it yet.
func controlled(t *testing.T) (c *control, other net.Conn, k *keeper.Keeper) {
	t.Helper()
	mine, other := net.Pipe()
	t.Cleanup(func() { mine.Close(); other.Close() })
	other.SetDeadline(time.Now().Add(patience))
	k, err := keeper.New(keeper.Config{Command: func(keeper.Launch) *exec.Cmd { return exec.Command("true") }})
	if err != nil {
		t.Fatal(err)
	}
	return &control{
		conn: mine, log: slog.New(slog.DiscardHandler), reports: make(chan keeper.Report, maxReports), deaf: make(chan struct{}), server: &server{args: []string{"true"}},
	}, other, k
}

// ended waits for a goroutine.
func ended(t *testing.T, what string, done <-chan struct{}) {
	t.Helper()
	select {
	case <-done:
	case <-time.After(patience):
		t.Fatalf("%s goes on", what)
	}
}

func started(f func()) <-chan struct{} {
	done := make(chan struct{})
	go func() { defer close(done); f() }()
	return done
}

// TestHungUp: that the other end has gone is noticed while an order is under way, and
// while more wait than there is room for once the keeper ends.
func TestHungUp(t *testing.T) {
	c, other, _ := controlled(t)
	orders := make(chan []byte, 2) // nobody obeys
	done := started(func() { c.read(t.Context(), orders) })
	io.WriteString(other, "one\ntwo\n")
	other.Close()
	ended(t, "reading", done)
	for _, want := range []string{"one", "two", ""} {
		if got := <-orders; string(got) != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
	c, other, _ = controlled(t)
	ctx, cancel := context.WithCancel(t.Context())
	done = started(func() { c.read(ctx, make(chan []byte)) })
	io.WriteString(other, "one\n")
	cancel()
	ended(t, "reading", done)
}

// TestReportsNotRead: events that nobody takes are dropped when there are too many of
// them, answers never are.
func TestReportsNotRead(t *testing.T) {
	c, other, k := controlled(t)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	for n := range maxReports + 10 {
		c.event(keeper.Event{Kind: keeper.EventStarted, Generation: uint32(n)})
	}
	orders := make(chan []byte, 2)
	obeyed := started(func() { c.obey(ctx, k, orders) })
	orders <- []byte("{")
	orders <- []byte("[]")
	close(orders)
	written := started(func() { c.write(ctx) })
	lines := bufio.NewScanner(other)
	for n := range maxReports + 2 {
		if !lines.Scan() {
			t.Fatal(lines.Err())
		}
		var r keeper.Report
		if err := json.Unmarshal(lines.Bytes(), &r); err != nil {
			t.Fatal(err)
		}
		if answer := r.Kind == keeper.KindReplaced; answer != (n >= maxReports) || !answer && r.Generation != uint32(n) || answer && r.Error == "" {
			t.Errorf("line %d: %+v", n, r)
		}
	}
	ended(t, "obeying", obeyed)
	cancel()
	ended(t, "writing", written)

	// When none can be sent any more, orders are obeyed all the same.
	c, other, k = controlled(t)
	other.Close()
	for range maxReports {
		c.event(keeper.Event{Kind: keeper.EventStarted})
	}
	orders = make(chan []byte, 2*maxReports)
	for range cap(orders) {
		orders <- []byte("{")
	}
	close(orders)
	obeyed = started(func() { c.obey(t.Context(), k, orders) })
	ended(t, "writing", started(func() { c.write(t.Context()) }))
	ended(t, "obeying", obeyed)
}
