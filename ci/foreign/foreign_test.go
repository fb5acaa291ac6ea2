// SPDX-License-Identifier: Apache-2.0

package foreign_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os/exec"
	"strings"
	"testing"
	"time"

	"toebox/ci/foreign"
	"toebox/ci/rig"
	"toebox/ci/runner"
	"toebox/ci/suite"
	"toebox/vfio-user/vfiousertest"
)

func TestMain(m *testing.M) { vfiousertest.Main(m) }

// TestExample: the example passes all functions.
func TestExample(t *testing.T) {
	if _, err := exec.LookPath("python3"); err != nil {
		t.Skip("needs python3: install it (apt install python3)")
	}
	var out bytes.Buffer
	code := suite.Run(t.Context(), suite.Options{
		Driver: "exec python3 example/driver.py", Seed: 1, Strict: true, TimeoutScale: 3, Out: &out,
	})
	if code != runner.ExitOK || !strings.Contains(out.String(), "\n11 passed, 0 failed, 0 skipped\n") {
		t.Errorf("exit code %d\n%s", code, &out)
	}
}

// say is a program that offers some operations and answers each as told.
func say(answers string) string {
	return `echo toebox-driver 1 reset; while read op; do ` + answers + `; done`
}

func start(t *testing.T, command string) (*foreign.Driver, error) {
	t.Helper()
	r, err := rig.Socket(rig.Config{Seed: 1})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close() })
	d, err := foreign.Start(t.Context(), foreign.Config{Command: command, Socket: r.SocketPath()})
	if err == nil {
		t.Cleanup(func() {
			for range 2 {
				if err := d.Close(); err != nil {
					t.Errorf("close: %v", err)
				}
			}
		})
	}
	return d, err
}

// TestAnswers: what a program may write, and what it must not.
func TestAnswers(t *testing.T) {
	for _, c := range []struct{ name, program, want, err string }{
		{"ok", say("echo ok"), "", ""},
		{"words", say("echo ok 1 two"), "1 two", ""},
		{"status", say("echo err 4 nobody there"), "", "status 4: nobody there"},
		{"no status", say("echo err nobody there"), "", "has no status"},
		{"nonsense", say("echo hello"), "", "neither ok, err nor bus"},
		{"empty", say("echo"), "", "neither ok, err nor bus"},
		{"bus", say("echo bus open; read a; echo ok $a"), "ok 0x4000000000 8388608", ""},
		{"configuration", say("echo bus open; read a; echo bus cfgw 4 2 6; read a; echo bus cfgr 4 2; read b; echo ok $a $b"), "ok ok 6", ""},
		{"register", say("echo bus open; read a; echo bus cfgw 4 2 6; read a; echo bus r32 0 0; read b; echo ok $b"), "ok 1112491348", ""}, // TEOB
		{"write", say("echo bus open; read a; echo bus cfgw 4 2 6; read a; echo bus w32 0 8 7; read b; echo ok $b"), "ok", ""},
		{"bus not open", say("echo bus r32 0 0; read a; echo ok $a"), "err bus open comes first", ""},
		{"no BAR", say("echo bus open; read a; echo bus r32 6 0; read a; echo ok $a"), "err no BAR 6", ""},
		{"beyond the BAR", say("echo bus open; read a; echo bus r32 0 0xffffffffffffffff; read a b; echo ok $a"), "err", ""},
		{"size", say("echo bus open; read a; echo bus cfgr 0 3; read a; echo ok $a"), "err an access of 3 bytes", ""},
		{"numbers", say("echo bus r32 0; read a b; echo ok $a"), "err", ""},
		{"no number", say("echo bus r32 0 x; read a b; echo ok $a"), "err", ""},
		{"end", say("exit 0"), "", "the program ended"},
		{"long line", say("head -c 100000 /dev/zero | tr '\\0' x; echo"), "", "a line too long"},
	} {
		t.Run(c.name, func(t *testing.T) {
			d, err := start(t, c.program)
			if err != nil {
				t.Fatal(err)
			}
			if !d.Offers("reset") || d.Offers("connect") {
				t.Error("operations are not those of the first line")
			}
			words, err := d.Do(t.Context(), "reset")
			if c.err == "" && (err != nil || strings.Join(words, " ") != c.want) || c.err != "" && (err == nil || !strings.Contains(err.Error(), c.err)) {
				t.Errorf("%q, %v; want %q, %q", words, err, c.want, c.err)
			}
		})
	}
}

func TestStart(t *testing.T) {
	for _, program := range []string{"exit 1", "echo hello", "/no/such/program 2>/dev/null"} {
		if d, err := start(t, program); err == nil {
			d.Close()
			t.Errorf("%s: started", program)
		}
	}
}

// TestSilence: a program that does not answer, and its children, end with the
// time of the function.
func TestSilence(t *testing.T) {
	d, err := start(t, say("sleep 1000 & sleep 1000"))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := d.Do(ctx, "reset"); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v", err)
	}
	if err := d.Close(); err != nil {
		t.Error(err)
	}
}

// TestSkipped: functions that need more than the program offers are skipped,
// with the cure; a driver on another rung is a mistake of usage.
func TestSkipped(t *testing.T) {
	var out bytes.Buffer
	code := suite.Run(t.Context(), suite.Options{Driver: say("echo ok"), Pattern: "Connect", Seed: 1, Out: &out})
	if code != runner.ExitSkipped || !strings.Contains(out.String(), `does not offer "connect": add it`) {
		t.Errorf("exit code %d\n%s", code, &out)
	}
	if code := suite.Run(t.Context(), suite.Options{Driver: "true", Buses: []string{"inproc"}, Out: io.Discard}); code != runner.ExitUsage {
		t.Errorf("on another rung: exit code %d", code)
	}
}

// TestDeaf: a program that asks and never reads the answers does not hold an
// operation beyond its time.
func TestDeaf(t *testing.T) {
	d, err := start(t, "echo toebox-driver 1 reset; exec yes bus nothing")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
	defer cancel()
	if _, err := d.Do(ctx, "reset"); err == nil {
		t.Error("an operation that was never answered succeeded")
	}
}
