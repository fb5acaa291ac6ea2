// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/iotest"

	"toebox/images/rig"
	"toebox/images/vm"
)

// isolate keeps a test away from the caches, runs and settings of this machine.
func isolate(t *testing.T) {
	t.Helper()
	home := t.TempDir()
	t.Setenv("HOME", home)
	for _, v := range []string{"XDG_CACHE_HOME", "XDG_STATE_HOME", "XDG_RUNTIME_DIR"} {
		t.Setenv(v, filepath.Join(home, v))
	}
	for _, e := range os.Environ() {
		if name, _, _ := strings.Cut(e, "="); strings.HasPrefix(name, "TOEBOX_") || strings.HasPrefix(name, "VMTEST_") {
			t.Setenv(name, "")
			os.Unsetenv(name)
		}
	}
}

func TestExitStatuses(t *testing.T) {
	taken, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	port := fmt.Sprint(taken.Addr().(*net.TCPAddr).Port)
	for _, test := range []struct {
		name string
		args []string
		env  string
		want int
		says string
	}{
		{"help", []string{"--help"}, "", 0, "Commands:"},
		{"no verb", nil, "", 2, "expected one of"},
		{"unknown verb", []string{"dance"}, "", 2, "dance"},
		{"unknown flag", []string{"run", "--tap"}, "", 2, "--tap"},
		{"accelerator", []string{"run", "--accel", "hvf"}, "", 2, "accel"},
		{"port 0", []string{"run", "--port", "0"}, "", 2, "--port"},
		{"port 70000", []string{"run"}, "TOEBOX_PORT=70000", 2, "--port 70000"},
		{"memory", []string{"run", "--memory", "5"}, "", 2, "--memory"},
		{"net", []string{"run", "--net", "natty"}, "", 2, "--net natty"},
		{"cpus", []string{"run", "--cpus", "0"}, "", 2, "--cpus"},
		{"port in use", []string{"run", "--port", port}, "", 125, "port " + port + " is in use: choose another with --port"},
		{"port in use by environment", []string{"run"}, "TOEBOX_PORT=" + port, 125, "port " + port + " is in use"},
		{"exec without machine", []string{"exec", "--", "true"}, "", 125, "no toebox is running"},
		{"exec without command", []string{"exec", "--"}, "", 2, "command"},
		{"shell without machine", []string{"shell"}, "", 125, "no toebox is running"},
		{"stats without machine", []string{"stats"}, "", 125, "no toebox is running"},
		{"firmware without machine", []string{"fw", "load"}, "", 125, "no toebox is running"},
		{"firmware of no machine", []string{"fw", "load", "abc123"}, "", 125, "no run abc123 is up"},
		{"watch without machine", []string{"fw", "watch", "--test", "x"}, "", 125, "no toebox is running"},
		{"watch a package with the kit", []string{"fw", "watch", "--test", "x", "--firmware", "./y"}, "", 2, "--firmware"},
		{"firmware verb", []string{"fw"}, "", 2, "load"},
		{"test behind no such IOMMU", []string{"test", "--iommu", "amd"}, "", 2, "--iommu"},
		{"test lists", []string{"test", "--list", "--iommu", "virtio", "--run", "TestIF01_Create$"}, "", 0, "TestIF01_Create"},
		{"no adapters", []string{"run", "--adapters", "0"}, "", 2, "--adapters 0"},
		{"too many adapters", []string{"run", "--adapters", "5"}, "", 2, "want 1 to 4"},
		{"networks of too few adapters", []string{"run", "--net", "nat", "--net", "nat"}, "", 2, "for 1 adapters"},
		{"adapters on nothing", []string{"run", "--adapters", "2", "--net", "nat", "--net", "none"}, "", 2, "without adapters"},
		{"the second network", []string{"run", "--adapters", "2", "--net", "nat", "--net", "natty"}, "", 2, "--net natty"},
		{"serve two", []string{"serve", "--net", "nat", "--net", "nat"}, "", 2, "one --net"},
		{"serve nothing", []string{"serve", "--net", "none"}, "", 2, "nothing to serve"},
		{"rules of the wire", []string{"run", "--impair", "loss=200%"}, "", 2, "share 2"},
		{"fault without machine", []string{"fault", "net", "loss=1%"}, "", 125, "no toebox is running"},
		{"fault without rules, without machine", []string{"fault", "net"}, "", 125, "no toebox is running"},
		{"fault of no kind", []string{"fault", "net", "lost=1%"}, "", 2, "want loss"},
		{"fault verb", []string{"fault"}, "", 2, "net"},
		{"clean nothing", []string{"clean"}, "", 0, ""},
		{"environment", []string{"env"}, "TOEBOX_PORT=9090", 0, "TOEBOX_PORT=9090\t# TOEBOX_PORT"},
		{"version", []string{"version"}, "", 0, "toebox "},
	} {
		t.Run(test.name, func(t *testing.T) {
			isolate(t)
			if name, value, ok := strings.Cut(test.env, "="); ok {
				t.Setenv(name, value)
			}
			var out bytes.Buffer
			if got := run(test.args, os.Stdin, &out, &out); got != test.want {
				t.Errorf("status %d, want %d\n%s", got, test.want, &out)
			}
			if !strings.Contains(out.String(), test.says) {
				t.Errorf("says %q, want %q in it", &out, test.says)
			}
		})
	}
}

func TestExplain(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(dir+"/cmdline", []byte("qemu -x\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	a := &app{stderr: &out}
	if got := a.explain(&rig.RunError{Err: fmt.Errorf("%w: boom", vm.ErrPanic), Dir: dir}); got != 3 {
		t.Errorf("status %d", got)
	}
	for _, want := range []string{"guest kernel panic: boom", "qemu -x", dir} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("says %q, want %q in it", &out, want)
		}
	}
	out.Reset()
	if got := a.explain(&rig.StatusError{Status: 9}); got != 9 || out.Len() != 0 {
		t.Errorf("a command's status: %d, %q", got, &out)
	}
}

func TestEscapes(t *testing.T) {
	for in, test := range map[string]struct {
		out  string
		quit bool
	}{
		"plain":             {"plain", false},
		"a\x01xb":           {"a", true},
		"\x01Xb":            {"", true},
		"\x01\x18":          {"", true},
		"\x01\x01x":         {"\x01x", false},
		"a\x01bc":           {"abc", false},
		"\x01\x01\x01\x01!": {"\x01\x01!", false},
		"ends with \x01":    {"ends with ", false},
	} {
		for name, wrap := range map[string]func(io.Reader) io.Reader{
			"at once": func(r io.Reader) io.Reader { return r }, "byte by byte": iotest.OneByteReader, "data with error": iotest.DataErrReader,
		} {
			quit := false
			got, err := io.ReadAll(&escapes{r: wrap(strings.NewReader(in)), quit: func() { quit = true }})
			if err != nil || string(got) != test.out || quit != test.quit {
				t.Errorf("%q %s: %q, quit %v, %v; want %q, %v", in, name, got, quit, err, test.out, test.quit)
			}
		}
	}
}

func TestReporter(t *testing.T) {
	var out bytes.Buffer
	r := newReporter(&out)
	r.Amount("x", 1, 2)
	r.Step("line")
	if s := out.String(); !strings.HasSuffix(s, "line\n") || strings.ContainsAny(s, "\r\x1b") {
		t.Errorf("plain output = %q", s)
	}
	out.Reset()
	r.live, r.stamp = true, false
	r.Amount("x", 1, 2)
	r.Amount("x", 1, 0)
	r.Step("line")
	if s := out.String(); s != "\r\x1b[Ktoebox: x: 50% of 0.0 MB\r\x1b[Ktoebox: line\n" {
		t.Errorf("moving output = %q", s)
	}
	out.Reset()
	r.setRaw(true)
	r.Step("two\nlines")
	r.setRaw(false)
	r.Step("line")
	if s := out.String(); s != "\r\x1b[Ktoebox: two\r\nlines\r\ntoebox: line\n" {
		t.Errorf("output on a raw terminal = %q", s)
	}
}

func TestInterruptible(t *testing.T) {
	a := &app{signals: make(chan os.Signal, 1)}
	ctx, cancel := a.interruptible()
	a.signals <- os.Interrupt
	<-ctx.Done()
	cancel()
	if err := ctx.Err(); err == nil {
		t.Error("not cancelled")
	}
	if s := (interrupted{os.Interrupt}).Error(); !strings.Contains(s, "interrupt") {
		t.Errorf("says %q", s)
	}
	var usage *rig.UsageError
	if !errors.As((&Machine{CPUs: 1, Memory: 1024, Port: -1}).apply(&rig.Options{}), &usage) {
		t.Error("port -1 passes")
	}
}
