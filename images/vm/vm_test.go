// SPDX-License-Identifier: Apache-2.0

package vm

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"toebox/images/control"
	"toebox/images/guest"
	"toebox/images/toolchain"
)

// The test binary plays QEMU when told to: it makes QEMU's sockets, speaks QMP and
// the guest's half of the control channel, and ends as the script says.
func TestMain(m *testing.M) {
	if script := os.Getenv("VM_TEST_QEMU"); script != "" {
		playQEMU(script, os.Getenv("VM_TEST_SOCKETS"))
		return
	}
	os.Exit(m.Run())
}

func playQEMU(script, sockets string) {
	if script == "dies" {
		fmt.Fprintln(os.Stderr, "qemu: no such device")
		os.Exit(1)
	}
	if script == "gone" {
		os.Exit(0)
	}
	ctl, err := net.Listen("unix", filepath.Join(sockets, "control"))
	if err != nil {
		os.Exit(90)
	}
	if script == "kvm" {
		fmt.Fprintln(os.Stderr, "KVM internal error. Suberror: 1")
	}
	qmp, err := net.Listen("unix", filepath.Join(sockets, "qmp"))
	if err != nil {
		os.Exit(91)
	}
	go func() {
		for n := 0; ; n++ {
			c, err := qmp.Accept()
			if err != nil {
				return
			}
			if script == "leaves" && n > 0 { // the first connection is to see whether it listens
				os.Exit(0)
			}
			go serveQMP(c)
		}
	}()
	conn, err := ctl.Accept()
	if err != nil {
		os.Exit(92)
	}
	if script == "mute" {
		io.Copy(io.Discard, conn)
	}
	boot := func(conn net.Conn, kernel string) (report func(guest.Phase)) {
		s := control.New(conn, control.Config{Role: control.Guest, Info: map[string]string{"kernel": kernel}})
		return func(p guest.Phase) { control.Call(context.Background(), s, guest.KindPhase, p, nil) }
	}
	report := boot(conn, "6.1")
	report(guest.Phase{Name: guest.PhaseModules})
	switch script {
	case "good":
		report(guest.Phase{Name: guest.PhaseBind})
		report(guest.Phase{Name: guest.PhaseServe})
		report(guest.Phase{Name: guest.PhaseReady})
	case "restarts":
		report(guest.Phase{Name: guest.PhaseBind, Error: "of the first boot"})
		if conn, err = ctl.Accept(); err != nil {
			os.Exit(93)
		}
		report = boot(conn, "6.2")
		report(guest.Phase{Name: guest.PhaseReady})
	case "unbound":
		report(guest.Phase{Name: guest.PhaseBind, Error: "vfio-pci did not take it"})
	case "panic":
		fmt.Println("[    1.0] Kernel panic - not syncing: boom")
		os.Exit(0)
	case "off":
		os.Exit(0)
	}
	select {}
}

func serveQMP(c net.Conn) {
	fmt.Fprintln(c, `{"QMP":{"version":{"qemu":{"micro":3,"minor":1,"major":11},"package":""},"capabilities":[]}}`)
	for d := json.NewDecoder(c); ; {
		var r struct{ Execute string }
		if d.Decode(&r) != nil {
			return
		}
		switch r.Execute {
		case "quit":
			fmt.Fprintln(c, `{"return":{}}`)
			os.Exit(0)
		case "system_reset":
			fmt.Fprintln(c, `{"return":{}}`)
			fmt.Fprintln(c, `{"timestamp":{"seconds":1,"microseconds":1},"event":"RESET","data":{"guest":false,"reason":"host-qmp-system-reset"}}`)
		case "query-name":
			fmt.Fprintln(c, `{"timestamp":{"seconds":1,"microseconds":1},"event":"RTC_CHANGE","data":{}}`)
			fmt.Fprintln(c, `{"return":{"name":"toebox"}}`)
		default:
			fmt.Fprintln(c, `{"return":{}}`)
		}
	}
}

func play(t *testing.T, script string) (Config, context.Context) {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	sockets, err := os.MkdirTemp("", "vm")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(sockets) })
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	t.Cleanup(cancel)
	return Config{
		QEMU:   &toolchain.QEMU{Argv: []string{exe}, Env: []string{"VM_TEST_QEMU=" + script, "VM_TEST_SOCKETS=" + sockets}},
		Kernel: &toolchain.Kernel{Image: "vmlinux"}, Accel: AccelTCG, CPUs: 1, MemoryMiB: 512, Dir: t.TempDir(), SocketDir: sockets,
	}, ctx
}

func TestGoodLife(t *testing.T) {
	c, ctx := play(t, "good")
	v, err := Start(ctx, c, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer v.Stop()
	if h, err := v.Hello(ctx); err != nil || h.Info["kernel"] != "6.1" {
		t.Errorf("hello = %+v, %v", h, err)
	}
	var seen []string
	if err := v.Ready(ctx, func(p guest.Phase) { seen = append(seen, p.Name) }); err != nil {
		t.Error(err)
	}
	if got := strings.Join(seen, " "); got != "modules bind serve ready" {
		t.Errorf("phases: %s", got)
	}
	var name struct{ Name string }
	if err := v.Execute(ctx, "query-name", nil, &name); err != nil || name.Name != "toebox" {
		t.Errorf("query-name = %+v, %v", name, err)
	}
	v.Stop()
	v.Stop()
	if err := v.Wait(); err != nil {
		t.Errorf("stopped: %v", err)
	}
	if b, err := os.ReadFile(filepath.Join(c.Dir, "cmdline")); err != nil || !strings.Contains(string(b), "-accel tcg") {
		t.Errorf("cmdline = %q, %v", b, err)
	}
}

// A machine that may restart has a new guest after a reset, whose phases are not
// mixed up with those of the one before.
func TestRestarted(t *testing.T) {
	c, ctx := play(t, "restarts")
	c.Reboot = true
	v, err := Start(ctx, c, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer v.Stop()
	if h, err := v.Hello(ctx); err != nil || h.Info["kernel"] != "6.1" {
		t.Errorf("hello = %+v, %v", h, err)
	}
	first := v.Control()
	short, cancel := context.WithTimeout(ctx, 50*time.Millisecond)
	defer cancel()
	if err := v.Restarted(short); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("no reset: %v", err)
	}
	if err := v.Execute(ctx, "system_reset", nil, nil); err != nil {
		t.Fatal(err)
	}
	if err := v.Restarted(ctx); err != nil {
		t.Fatal(err)
	}
	select {
	case <-first.Done():
	default:
		t.Error("the session with the guest before is still there")
	}
	if h, err := v.Hello(ctx); err != nil || h.Info["kernel"] != "6.2" {
		t.Errorf("hello = %+v, %v", h, err)
	}
	if err := v.Ready(ctx, nil); err != nil {
		t.Error(err)
	}
}

func TestBadEnds(t *testing.T) {
	for script, test := range map[string]struct {
		is   error
		text string
	}{
		"dies":    {ErrQEMU, "no such device"},
		"kvm":     {ErrKVM, "Suberror"},
		"panic":   {ErrPanic, "boom"},
		"off":     {ErrQEMU, "switched itself off"},
		"gone":    {ErrQEMU, "switched itself off"},
		"leaves":  {ErrQEMU, "switched itself off"},
		"unbound": {nil, "bind: vfio-pci did not take it"},
	} {
		t.Run(script, func(t *testing.T) {
			c, ctx := play(t, script)
			v, err := Start(ctx, c, nil)
			if err == nil {
				defer v.Stop()
				err = v.Ready(ctx, nil)
			}
			if test.is != nil && !errors.Is(err, test.is) || err == nil || !strings.Contains(err.Error(), test.text) {
				t.Errorf("err = %v, want %v with %q", err, test.is, test.text)
			}
		})
	}
}

func TestMuteGuestTimesOut(t *testing.T) {
	c, ctx := play(t, "mute")
	v, err := Start(ctx, c, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer v.Stop()
	short, cancel := context.WithTimeout(ctx, 50*time.Millisecond)
	defer cancel()
	if _, err := v.Hello(short); !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "boot") {
		t.Errorf("hello: %v", err)
	}
	if err := v.Ready(short, nil); !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "modules") {
		t.Errorf("ready: %v", err)
	}
}

func TestLongSocketPath(t *testing.T) {
	c, ctx := play(t, "good")
	c.SocketDir = "/tmp/" + strings.Repeat("x", 100)
	if _, err := Start(ctx, c, nil); err == nil || !strings.Contains(err.Error(), "XDG_RUNTIME_DIR") {
		t.Errorf("err = %v", err)
	}
}
