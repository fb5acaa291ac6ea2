// SPDX-License-Identifier: Apache-2.0

package suite

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"toebox/ci/runner"
)

func TestUsage(t *testing.T) {
	for name, o := range map[string]Options{
		"bus":                        {Buses: []string{"isa"}},
		"a bus twice":                {Buses: []string{"inproc", "vm", "inproc"}},
		"pattern":                    {Pattern: "("},
		"nothing":                    {Buses: []string{"inproc"}, Pattern: "NoSuchTest"},
		"shard 0":                    {Shard: "0/2"},
		"shard 3":                    {Shard: "3/2"},
		"shard x":                    {Shard: "1/2x"},
		"scale":                      {TimeoutScale: -1},
		"peer":                       {Peer: "somebody"},
		"a peer of another rung":     {Peer: "kernel", Buses: []string{"inproc", "vm"}},
		"a peer of no driver's":      {Peer: "kernel", Driver: "true"},
		"nothing to do for the peer": {Peer: "kernel", Buses: []string{"inproc"}, Pattern: "IF02_Gap"},
	} {
		var out bytes.Buffer
		o.Out = &out
		if code := Run(t.Context(), o); code != runner.ExitUsage || !strings.HasPrefix(out.String(), "toebox test: ") {
			t.Errorf("%s: exit code %d, output %s", name, code, out.String())
		}
	}
}

func TestList(t *testing.T) {
	var out bytes.Buffer
	if code := Run(t.Context(), Options{Buses: []string{"inproc", "vm"}, Pattern: "IF02_Gap", List: true, Out: &out}); code != runner.ExitOK {
		t.Errorf("exit code %d", code)
	}
	if want := "inproc TestIF02_Gap IF02\nvm TestIF02_Gap IF02\n"; out.String() != want {
		t.Errorf("listed %q, want %q", out.String(), want)
	}
}

// TestRungs: rungs that run at the same time end up in their order, in all that is
// written, and none of their lines is cut.
func TestRungs(t *testing.T) {
	var out, ktap bytes.Buffer
	o := Options{Buses: []string{"socket", "inproc"}, Pattern: "TestRIG02_(Config|Registers|Scratch)$", Seed: 5, Count: 5, Verbose: true, Out: &out}
	if code := Run(t.Context(), o); code != runner.ExitOK {
		t.Errorf("exit code %d\n%s", code, out.String())
	}
	for _, bus := range o.Buses {
		ended := regexp.MustCompile(`(?m)^ok   ` + bus + ` TestRIG02_(Config|Registers|Scratch) \(\d+\.\d\ds\)\n    seed [5-9]$`)
		if n := len(ended.FindAllString(out.String(), -1)); n != 15 {
			t.Errorf("%d functions ended on %s, want 15:\n%s", n, bus, out.String())
		}
	}
	if want := "\n          socket  inproc\nRIG02      15/15   15/15\n"; !strings.Contains(out.String(), want) {
		t.Errorf("output has no %q:\n%s", want, out.String())
	}
	o.KTAP, o.Count, o.Out = true, 1, &ktap
	o.JUnit = filepath.Join(t.TempDir(), "junit")
	if code := Run(t.Context(), o); code != runner.ExitOK {
		t.Errorf("exit code %d\n%s", code, ktap.String())
	}
	if want := "KTAP version 1\n1..6\n" +
		"ok 1 TestRIG02_Config\nok 2 TestRIG02_Registers\nok 3 TestRIG02_Scratch\n" +
		"ok 4 TestRIG02_Config\nok 5 TestRIG02_Registers\nok 6 TestRIG02_Scratch\n"; ktap.String() != want {
		t.Errorf("KTAP is\n%s\nwant\n%s", ktap.String(), want)
	}
	b, err := os.ReadFile(o.JUnit)
	socket, inproc := strings.Index(string(b), `/socket" tests="3"`), strings.Index(string(b), `/inproc" tests="3"`)
	if err != nil || socket < 0 || inproc < socket {
		t.Errorf("JUnit: %v\n%s", err, b)
	}
}

// TestNoRung: a rung that cannot run has the exit code, and stops no other.
func TestNoRung(t *testing.T) {
	var out bytes.Buffer
	o := Options{Buses: []string{"inproc", "qtest", "socket"}, Pattern: "RIG02_Config", Out: &out}
	o.Images.QEMU, o.Images.Cache = filepath.Join(t.TempDir(), "qemu"), t.TempDir()
	if code := Run(t.Context(), o); code != runner.ExitNoRig {
		t.Errorf("exit code %d", code)
	}
	for _, want := range []string{"qtest: cannot run: ", "\n2 passed, 0 failed, 0 skipped\n"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("output has no %q:\n%s", want, out.String())
		}
	}
}

// TestRun runs two functions for real and looks at everything that is written.
func TestRun(t *testing.T) {
	var out bytes.Buffer
	dir := t.TempDir()
	o := Options{
		Buses: []string{"inproc"}, Pattern: "TestIF02_(Gap|Wrap)$", Seed: 5, Count: 2, Out: &out,
		JSON: filepath.Join(dir, "events"), JUnit: filepath.Join(dir, "junit"),
	}
	if code := Run(t.Context(), o); code != runner.ExitOK {
		t.Errorf("exit code %d\n%s", code, out.String())
	}
	for _, want := range []string{"ok   inproc TestIF02_Gap", "\nIF02         4/4\n", "\nseed 5, ", "\n4 passed, 0 failed, 0 skipped\n"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("output has no %q:\n%s", want, out.String())
		}
	}
	b, err := os.ReadFile(o.JUnit)
	if err != nil || strings.Count(string(b), "<testcase ") != 4 || !strings.Contains(string(b), `name="seed" value="5"`) {
		t.Errorf("JUnit: %v\n%s", err, b)
	}
	b, err = os.ReadFile(o.JSON)
	if err != nil {
		t.Fatal(err)
	}
	passed := 0
	for line := range strings.Lines(string(b)) {
		var e runner.Event
		if err := json.Unmarshal([]byte(line), &e); err != nil {
			t.Fatalf("%v: %s", err, line)
		}
		if e.Action == runner.ActionPass && e.Test != "" && e.Package == "toebox/ci/conformance/inproc" {
			passed++
		}
	}
	if passed != 4 {
		t.Errorf("%d functions passed in the events, want 4", passed)
	}
}

func TestMatrix(t *testing.T) {
	var out bytes.Buffer
	Matrix(&out, []runner.Result{
		{Package: "x/inproc", Name: "TestIF04_Types", Action: runner.ActionPass},
		{Package: "x/inproc", Name: "TestIF04_BadType", Action: runner.ActionFail},
		{Package: "x/vm", Name: "TestIF04_Types", Action: runner.ActionSkip},
	}, []string{"inproc", "vm"})
	want := "\n          inproc      vm\nIF04       ! 1/2   ! 0/1\nIF05       ! 1/2   ! 0/1\n"
	if out.String() != want {
		t.Errorf("got %q, want %q", out.String(), want)
	}
}

func TestAgain(t *testing.T) {
	var out bytes.Buffer
	s := &suite{Options: Options{Seed: 7, Out: &out, Peer: "kernel"}}
	for i := range maxAgain + 2 {
		action := runner.ActionFail
		if i == 0 {
			action = runner.ActionPass
		}
		s.collector.Results = append(s.collector.Results, runner.Result{Package: "x/qtest", Name: "TestIF02_Gap", Action: action})
	}
	s.again()
	line := "again: toebox test --bus qtest --peer kernel --seed 7 --run '^TestIF02_Gap$'\n"
	if want := strings.Repeat(line, maxAgain); out.String() != want {
		t.Errorf("got %s", out.String())
	}
}
