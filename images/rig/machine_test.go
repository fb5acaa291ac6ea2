// SPDX-License-Identifier: Apache-2.0

package rig

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"toebox/images/control"
	"toebox/images/toolchain/toolchaintest"
	"toebox/images/vm"
)

// A real kernel boots our init, serves commands, and its panic is noticed. There is
// no adapter: this is about the rig.
func TestMachine(t *testing.T) {
	if testing.Short() {
		t.Skip("boots a machine, some seconds: run without -short")
	}
	c := toolchaintest.Config(t)
	toolchaintest.QEMU(t)
	toolchaintest.Kernel(t)
	p := testPaths(t)
	p.Cache = c.CacheDir
	var err error
	if p.Source, err = FindSource(); err != nil {
		t.Fatal(err)
	}
	i, err := Up(t.Context(), Options{
		Paths: p, QEMU: c.QEMU, Kernel: c.Kernel, Modules: c.Modules, Accel: os.Getenv("TOEBOX_ACCEL"), Net: "none",
	})
	if err != nil {
		var run *RunError
		if errors.As(err, &run) {
			b, _ := os.ReadFile(filepath.Join(run.Dir, "console.log"))
			t.Logf("console:\n%s", b)
		}
		t.Fatal(err)
	}
	defer i.Close()
	r, err := Running(p)
	if err != nil || r.ID != i.ID {
		t.Fatalf("running = %+v, %v", r, err)
	}
	s, err := Dial(t.Context(), r)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	for _, test := range []struct {
		r      control.Request
		in     string
		out    string
		status int
	}{
		{r: control.Request{Args: []string{"cat"}}, in: strings.Repeat("0123456789abcdef", 1<<16), out: strings.Repeat("0123456789abcdef", 1<<16)},
		{r: control.Request{Args: []string{"sh", "-c", "echo $X; exit 7"}, Env: []string{"X=y"}}, out: "y\n", status: 7},
		{r: control.Request{Args: []string{"tty"}, TTY: true}, out: "/dev/pts/"},
		{r: control.Request{Args: []string{"no-such-program"}}, status: 127},
		{r: control.Request{Args: []string{"grep", "-c", "^vfio_pci ", "/proc/modules"}}, out: "1\n"},
	} {
		var out bytes.Buffer
		res, err := control.Run(t.Context(), s, test.r, control.Streams{Stdin: strings.NewReader(test.in), Stdout: &out})
		if err != nil || res.Status != test.status || test.out != "" && !strings.Contains(out.String(), test.out) {
			t.Errorf("%v: %+v, %v, %.80q", test.r.Args, res, err, out.String())
		}
	}
	if _, err := control.Run(t.Context(), s, control.Request{Args: []string{"sh", "-c", "echo c > /proc/sysrq-trigger"}}, control.Streams{}); err != nil {
		t.Logf("the command that ended it all: %v", err)
	}
	if err := i.Wait(); !errors.Is(err, vm.ErrPanic) || ExitCode(err) != ExitCrashed {
		t.Errorf("ended: %v", err)
	}
	i.Close()
	b, err := os.ReadFile(filepath.Join(i.Dir, "console.log"))
	if err != nil || !strings.Contains(string(b), "Kernel panic") {
		t.Errorf("console.log lacks the panic (%v)", err)
	}
	if _, err := os.Stat(i.Sockets); !errors.Is(err, os.ErrNotExist) {
		t.Error("sockets outlive the machine")
	}
}
