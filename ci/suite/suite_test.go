// SPDX-License-Identifier: Apache-2.0

package suite

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"toebox/ci/conformance"
	"toebox/ci/netns"
	"toebox/ci/runner"
	"toebox/ci/suite/internal/deadly"
	images "toebox/images/rig"
	"toebox/images/toolchain/toolchaintest"
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
		"a peer that is none":        {Buses: []string{"inproc+nat"}},
		"two peers":                  {Peer: "nat", Buses: []string{"inproc+kernel"}},
		"twice":                      {Peer: "kernel", Buses: []string{"vm", "inproc", "vm+kernel"}},
		"a peer of no driver's":      {Peer: "kernel", Driver: "true"},
		"a driver of no rung's":      {Driver: "true", Buses: []string{"socket", "qtest"}},
		"a driver that is no file":   {Driver: "echo toebox-driver 1", Buses: []string{"vm"}},
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
	for name, c := range map[string]struct {
		o    Options
		want string
	}{
		"two rungs": {
			Options{Buses: []string{"inproc", "vm"}, Pattern: "IF02_Gap"},
			"inproc TestIF02_Gap IF02\nvm TestIF02_Gap IF02\n",
		},
		"all": {
			Options{Pattern: "TestCE01_Refused|TestIF02_Gap"},
			"inproc TestCE01_Refused CE01\ninproc TestIF02_Gap IF02\nsocket TestCE01_Refused CE01\nsocket TestIF02_Gap IF02\n" +
				"qtest TestCE01_Refused CE01\nqtest TestIF02_Gap IF02\nvm TestCE01_Refused CE01\nvm TestIF02_Gap IF02\n" +
				"uio TestCE01_Refused CE01\nuio TestIF02_Gap IF02\n" +
				"inproc+kernel TestCE01_Refused CE01\nsocket+kernel TestCE01_Refused CE01\nvm+kernel TestCE01_Refused CE01\n",
		},
		"the kernel": {
			Options{Peer: "kernel", Pattern: "TestCE01_Refused|TestIF02_Gap"},
			"inproc+kernel TestCE01_Refused CE01\nsocket+kernel TestCE01_Refused CE01\nvm+kernel TestCE01_Refused CE01\n",
		},
		"a rung with the kernel": {
			Options{Peer: "kernel", Buses: []string{"qtest"}, Pattern: "TestCE01_Refused"},
			"qtest+kernel TestCE01_Refused CE01\n",
		},
		"without the kernel": {
			Options{Peer: "nat", Buses: []string{"uio"}, Pattern: "TestCE01_Refused"},
			"uio TestCE01_Refused CE01\n",
		},
		"what the lowest rung is enough for": {
			Options{Peer: "kernel", Pattern: "TestRIG08_Loss"},
			"inproc+kernel TestRIG08_Loss RIG08\n",
		},
		"nothing": {Options{Buses: []string{"vm+kernel"}, Pattern: "TestRIG08_Loss"}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			var out bytes.Buffer
			c.o.List, c.o.Out = true, &out
			if code := Run(t.Context(), c.o); code != runner.ExitOK || out.String() != c.want {
				t.Errorf("exit code %d, listed\n%s", code, out.String())
			}
		})
	}
}

// TestRefused: columns of the kernel where its networks are not to be had are skipped,
// once each, with the cure, and that makes no run red.
func TestRefused(t *testing.T) {
	dir := t.TempDir()
	o := Options{
		Buses: []string{"inproc", "inproc+kernel", "vm+kernel"}, Pattern: "TestCE01_(Refused|Connect)", Seed: 1, Strict: true,
		JUnit:   filepath.Join(dir, "junit"),
		Network: func() error { return fmt.Errorf("a test: %w", netns.ErrPrivilege) },
	}
	for name, c := range map[string]struct {
		change func(*Options)
		code   int
		want   []string
	}{
		"refused": {nil, runner.ExitOK, []string{
			"ok   inproc TestCE01_Connect", "skip inproc+kernel Network", "\na test: no network namespace", "run it as root",
			"\nCE01         2/2           skip       skip\n", "\n2 passed, 0 failed, 2 skipped\n",
		}},
		"refused all": {func(o *Options) { o.Peer, o.Buses = "kernel", nil }, runner.ExitSkipped, []string{"\n0 passed, 0 failed, 3 skipped\n"}},
		"broken": {
			func(o *Options) { o.Network = func() error { return os.ErrDeadlineExceeded } }, runner.ExitNoRig,
			[]string{"inproc+kernel: cannot run: "},
		},
	} {
		t.Run(name, func(t *testing.T) {
			var out bytes.Buffer
			o := o
			o.Out = &out
			if c.change != nil {
				c.change(&o)
			}
			if code := Run(t.Context(), o); code != c.code {
				t.Errorf("exit code %d, want %d", code, c.code)
			}
			for _, want := range c.want {
				if !strings.Contains(out.String(), want) {
					t.Errorf("output has no %q:\n%s", want, out.String())
				}
			}
			b, err := os.ReadFile(o.JUnit)
			if err != nil || strings.Count(string(b), "<skipped ") != strings.Count("\n"+out.String(), "\nskip ") {
				t.Errorf("JUnit: %v\n%s", err, b)
			}
		})
	}
}

// TestKernelWanted: only what makes networks of the kernel's has the command ask for
// the privileges.
func TestKernelWanted(t *testing.T) {
	for name, c := range map[string]struct {
		o    Options
		want bool
	}{
		"all":     {Options{}, true},
		"kernel":  {Options{Buses: []string{"vm+kernel"}}, true},
		"nat":     {Options{Peer: "nat"}, false},
		"a rung":  {Options{Buses: []string{"inproc"}}, false},
		"no peer": {Options{Pattern: "TestIF02_Gap"}, false},
		"a list":  {Options{List: true}, false},
		"usage":   {Options{Pattern: "("}, false},
		"driver":  {Options{Driver: "true"}, false},
	} {
		if got := c.o.Kernel(); got != c.want {
			t.Errorf("%s: %v", name, got)
		}
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
	Matrix(&out, conformance.Tests(), []runner.Result{
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
	s := &suite{Options: Options{Seed: 7, Out: &out}}
	for i := range maxAgain + 2 {
		action := runner.ActionFail
		if i == 0 {
			action = runner.ActionPass
		}
		s.collector.Results = append(s.collector.Results, runner.Result{Package: "x/qtest+kernel", Name: "TestIF02_Gap", Action: action})
	}
	s.again()
	line := "again: toebox test --bus qtest+kernel --seed 7 --run '^TestIF02_Gap$'\n"
	if want := strings.Repeat(line, maxAgain); out.String() != want {
		t.Errorf("got %s", out.String())
	}
}

// TestDeath: in a guest a function hangs, and is given up with all goroutines; the
// next ones run. Then one ends the kernel: it has failed, the others were not run.
func TestDeath(t *testing.T) {
	toolchaintest.QEMU(t)
	toolchaintest.Kernel(t)
	paths, err := images.DefaultPaths()
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	s := &suite{
		tests: deadly.Tests(), kit: "toebox/ci/suite/internal/deadly/cmd/toebox-deadly",
		Options: Options{Buses: []string{"vm"}, Seed: 1, TimeoutScale: 0.25, Images: images.Options{Paths: paths}, Out: &out},
	}
	if code := s.run(t.Context()); code != runner.ExitCrashed {
		t.Errorf("exit code %d, want %d", code, runner.ExitCrashed)
	}
	want := []struct{ name, action, output string }{
		{"TestRIG07_APasses", runner.ActionPass, "on vm"},
		{"TestRIG07_BHangs", runner.ActionFail, "deadly.hangs"},
		{"TestRIG07_CPasses", runner.ActionPass, "on vm"},
		{"TestRIG07_DPanics", runner.ActionFail, "the guest ended while this test ran"},
		{"TestRIG07_ENeverRuns", runner.ActionFail, "not run"},
		{"TestRIG07_FNeverRuns", runner.ActionFail, "not run"},
	}
	results := s.collector.Results
	if len(results) != len(want) {
		t.Fatalf("%d results, want %d\n%s", len(results), len(want), &out)
	}
	for i, w := range want {
		if r := results[i]; r.Name != w.name || r.Action != w.action || !strings.Contains(r.Output, w.output) {
			t.Errorf("result %d: %s %s, want %s %s and %q in\n%s", i, r.Name, r.Action, w.name, w.action, w.output, r.Output)
		}
	}
	if !strings.Contains(out.String(), "sysrq triggered crash") || !strings.Contains(out.String(), "2 passed, 4 failed, 0 skipped\n") {
		t.Errorf("output\n%s", &out)
	}
}
