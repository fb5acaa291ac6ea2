// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"toebox/images/rig"
)

// TestFwWatch goes with a developer from save to save: good ones are loaded and tested,
// bad ones are shown, and it goes on.
func TestFwWatch(t *testing.T) {
	tr := newTree(t)
	m := newMachine(t, "20260101-000000-aaaaaa")
	c := begin(t, &FwWatchCmd{Test: "TestIF01"})
	watching := fmt.Sprintf("watching 3 directories of the firmware of %s", tr.root)
	c.out.wait(t, 1, watching)
	m.unloaded()

	tr.firmware("second")
	if got := m.next(); got != "second" {
		t.Errorf("%q was loaded", got)
	}
	c.out.wait(t, 1, "saved: firmware/firmware.go")
	c.out.wait(t, 1, "first HTTP byte through it ")
	c.out.wait(t, 1, "second is tested by TestIF01")
	c.out.wait(t, 1, "tests passed in ")

	tr.write("firmware/firmware.go", brokenFirmware)
	c.out.wait(t, 1, "undefined: undefinedThing")
	tr.write("firmware/firmware.go", "")
	c.out.wait(t, 2, "the firmware does not build:")

	m.set(func() {
		m.answer = func(rig.Load) rig.Loaded { return rig.Loaded{Error: "BAR0 differs", Generation: 3} }
	})
	tr.firmware("third")
	if got := m.next(); got != "third" {
		t.Errorf("after two that are broken, %q was loaded", got)
	}
	c.out.wait(t, 1, "the one before goes on: BAR0 differs")
	m.set(func() { m.answer, m.stats = nil, statistics(9, 1) })
	tr.firmware("fourth")
	m.next()
	c.out.wait(t, 1, "did not last")

	m.set(func() { m.stats = nil })
	tr.write("more/more.go", "package more\n\nconst Name = \"fifth\"\n")
	tr.write("firmware/firmware.go", "package firmware\n\nimport \"toebox/more\"\n\ntype Config struct{}\n\nfunc New(Config) string { return more.Name }\n")
	if got := m.next(); got != "fifth" {
		t.Errorf("%q was loaded", got)
	}
	c.out.wait(t, 2, "tests passed in ")
	tr.firmware("fails")
	m.next()
	c.out.wait(t, 1, "tests failed after ")
	if strings.Contains(c.out.String(), "third is tested") || strings.Contains(c.out.String(), "fourth is tested") {
		t.Errorf("what does not serve is tested:\n%s", c.out)
	}
	if status := c.interrupt(); status != 0 {
		t.Errorf("Ctrl-C: status %d\n%s", status, c.out)
	}
	if n := strings.Count(c.out.String(), "built in"); n != 5 {
		t.Errorf("%d builds, want 5\n%s", n, c.out)
	}
}

// TestFwWatchNewPackage: the directories that are watched follow the program.
func TestFwWatchNewPackage(t *testing.T) {
	tr := newTree(t)
	m := newMachine(t, "20260101-000000-aaaaaa")
	c := begin(t, &FwWatchCmd{})
	c.out.wait(t, 1, "watching 3 directories")
	more := func(version string) {
		tr.write("more/more.go", fmt.Sprintf("package more\n\nconst Name = %q\n", version))
	}
	more("second")
	tr.write("firmware/firmware.go", "package firmware\n\nimport \"toebox/more\"\n\ntype Config struct{}\n\nfunc New(Config) string { return more.Name }\n")
	m.next()
	// Whenever it begins to watch, a save after that is seen.
	for n := 0; ; n++ {
		want := fmt.Sprintf("third %d", n)
		more(want)
		tr.write("vdev/vdev.go", fmt.Sprintf("package vdev\n\ntype (\n\tFirmware = string\n\tCounters = int\n)\n\n// Save %d.\n", n))
		for m.next() != want {
		}
		if strings.Contains(c.out.String(), "saved: more/more.go") {
			break
		}
	}
	if status := c.interrupt(); status != 0 {
		t.Errorf("Ctrl-C: status %d\n%s", status, c.out)
	}
}

// TestFwWatchBurst: saves that come while one is being loaded are one build.
func TestFwWatchBurst(t *testing.T) {
	tr := newTree(t)
	m := newMachine(t, "20260101-000000-aaaaaa")
	release := make(chan struct{})
	m.set(func() {
		m.answer = func(rig.Load) rig.Loaded {
			<-release
			return rig.Loaded{Generation: 1}
		}
	})
	c := begin(t, &FwWatchCmd{})
	c.out.wait(t, 1, "watching ")
	tr.firmware("second")
	m.next()
	for n := range 40 {
		tr.firmware(fmt.Sprint("burst ", n))
		tr.write("vdev/vdev.go", "package vdev\n\ntype (\n\tFirmware = string\n\tCounters = int\n)\n")
	}
	close(release)
	if got := m.next(); got != "burst 39" {
		t.Errorf("%q was loaded", got)
	}
	c.out.wait(t, 1, "saved: firmware/firmware.go, vdev/vdev.go")
	c.out.wait(t, 2, "first HTTP byte")
	tr.firmware("last")
	if got := m.next(); got != "last" {
		t.Errorf("then %q was loaded", got)
	}
	if status := c.interrupt(); status != 0 {
		t.Errorf("Ctrl-C: status %d\n%s", status, c.out)
	}
}

// TestFwInterrupted: Ctrl-C ends each phase, at once: what the phases wait for never
// comes, and their own limits lie behind the test's.
func TestFwInterrupted(t *testing.T) {
	load, watch := &hasty{patience: 2 * patience}, &FwWatchCmd{Test: "TestIF01"}
	for _, test := range []struct {
		name   string
		verb   interface{ Run(*app) error }
		stall  string // of the go command
		save   bool
		status int
		hold   func(m *machine, reached chan<- struct{})
	}{
		{name: "load, build", verb: load, stall: "'build '*", status: 125},
		{name: "load, take over", verb: load, status: 125, hold: holdLoad},
		{name: "load, statistics", verb: load, status: 125, hold: func(m *machine, reached chan<- struct{}) { m.stats = hang(reached) }},
		{name: "load, no driver", verb: load, status: 125, hold: func(m *machine, reached chan<- struct{}) {
			m.stats = func(w http.ResponseWriter, r *http.Request) {
				statistics(2, 0)(w, r)
				select {
				case reached <- struct{}{}:
				default:
				}
			}
		}},
		{name: "load, first byte", verb: load, status: 125, hold: func(m *machine, reached chan<- struct{}) { m.page = hang(reached) }},
		{name: "watch, looking around", verb: watch, stall: "'list '*"},
		{name: "watch, first build", verb: watch, stall: "'build '*"},
		{name: "watch, idle", verb: watch},
		{name: "watch, take over", verb: watch, save: true, hold: holdLoad},
		{name: "watch, statistics", verb: watch, save: true, hold: func(m *machine, reached chan<- struct{}) { m.stats = hang(reached) }},
		{name: "watch, first byte", verb: watch, save: true, hold: func(m *machine, reached chan<- struct{}) { m.page = hang(reached) }},
		{name: "watch, tests", verb: watch, stall: "'run '*", save: true},
		{name: "time, looking around", verb: &FwTimeCmd{Count: 1, File: "firmware/firmware.go"}, stall: "'list '*", status: 125},
		{name: "time, first build", verb: &FwTimeCmd{Count: 1, File: "firmware/firmware.go"}, stall: "'build '*", status: 125},
		{name: "time, take over", verb: &FwTimeCmd{Count: 1, File: "firmware/firmware.go"}, status: 125, hold: holdLoad},
	} {
		t.Run(test.name, func(t *testing.T) {
			tr := newTree(t)
			m := newMachine(t, "20260101-000000-aaaaaa")
			var phase <-chan struct{}
			if test.stall != "" {
				phase = stall(t, test.stall)
			}
			if test.hold != nil {
				reached := make(chan struct{}, 1)
				phase = reached
				m.set(func() { test.hold(m, reached) })
			}
			c := begin(t, test.verb)
			if test.save || phase == nil {
				c.out.wait(t, 1, "watching ")
			}
			if test.save {
				tr.firmware("second")
			}
			if phase != nil {
				c.reached(phase)
			}
			if status := c.interrupt(); status != test.status {
				t.Errorf("status %d, want %d\n%s", status, test.status, c.out)
			}
			if test.status != 0 && !strings.HasSuffix(c.out.String(), "interrupted by interrupt\n") {
				t.Errorf("says\n%s", c.out)
			}
			if strings.Contains(test.stall, "build") {
				m.unloaded()
			}
		})
	}
}

// holdLoad has the run take firmware and not answer before the test ends.
func holdLoad(m *machine, reached chan<- struct{}) {
	done := make(chan struct{})
	m.t.Cleanup(func() { close(done) })
	m.answer = func(rig.Load) rig.Loaded {
		reached <- struct{}{}
		<-done
		return rig.Loaded{Error: "over"}
	}
}

// TestFwTime: a copy of the tree is changed and loaded so often, the tree never.
func TestFwTime(t *testing.T) {
	for name, linked := range map[string]func(t *testing.T, tr *tree){
		"plain": func(*testing.T, *tree) {},
		"a link to the tree": func(t *testing.T, tr *tree) {
			path := filepath.Join(t.TempDir(), "link")
			if err := os.Symlink(tr.root, path); err != nil {
				t.Fatal(err)
			}
			t.Setenv("TOEBOX_SOURCE", path)
		},
		"links in the tree": func(t *testing.T, tr *tree) {
			dir, file := t.TempDir(), filepath.Join(tr.root, "vdev/vdev.go")
			if err := os.Rename(filepath.Join(tr.root, "firmware"), filepath.Join(dir, "firmware")); err != nil {
				t.Fatal(err)
			}
			if err := os.Symlink(filepath.Join(dir, "firmware"), filepath.Join(tr.root, "firmware")); err != nil {
				t.Fatal(err)
			}
			if err := os.Rename(file, filepath.Join(dir, "v")); err != nil {
				t.Fatal(err)
			}
			if err := os.Symlink(filepath.Join(dir, "v"), file); err != nil {
				t.Fatal(err)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			tr := newTree(t)
			t.Setenv("TMPDIR", t.TempDir())
			linked(t, tr)
			m := newMachine(t, "20260101-000000-aaaaaa")
			before, err := os.ReadFile(filepath.Join(tr.root, "firmware/firmware.go"))
			if err != nil {
				t.Fatal(err)
			}
			c := begin(t, &FwTimeCmd{Count: 3, File: "firmware/firmware.go"})
			if status := c.end(); status != 0 || !strings.Contains(c.out.String(), "first HTTP byte, 3 times: median ") {
				t.Fatalf("status %d\n%s", status, c.out)
			}
			for range 3 {
				m.next()
			}
			after, err := os.ReadFile(filepath.Join(tr.root, "firmware/firmware.go"))
			if err != nil || !slices.Equal(before, after) {
				t.Errorf("the tree was changed: %v\n%s", err, after)
			}
			if left, err := filepath.Glob(filepath.Join(os.Getenv("TMPDIR"), "toebox-*")); err != nil || len(left) > 1 { // the machine's sockets
				t.Errorf("left behind: %q, %v", left, err)
			}
		})
	}
}

// TestFwTimeMistakes: what cannot be measured is told.
func TestFwTimeMistakes(t *testing.T) {
	tr := newTree(t)
	m := newMachine(t, "20260101-000000-aaaaaa")
	for _, test := range []struct {
		args   []string
		status int
		says   string
	}{
		{[]string{"--count", "0"}, 2, "want a count from 1"},
		{[]string{"--file", "../x.go"}, 2, "a file of the tree"},
		{[]string{"--file", "/etc/hostname"}, 2, "a file of the tree"},
		{[]string{"--file", "firmware/none.go"}, 125, "no such file"},
	} {
		out := newTold()
		if status := run(append([]string{"fw", "time"}, test.args...), os.Stdin, out, out); status != test.status || !strings.Contains(out.String(), test.says) {
			t.Errorf("%q: status %d, want %d\n%s", test.args, status, test.status, out)
		}
	}
	m.set(func() { m.answer = func(rig.Load) rig.Loaded { return rig.Loaded{Error: "no", Generation: 2} } })
	out := newTold()
	if status := run([]string{"fw", "time", "--file", "firmware/firmware.go"}, os.Stdin, out, out); status != 3 || !strings.Contains(out.String(), "take over") {
		t.Errorf("refused: status %d\n%s", status, out)
	}
	// A workspace of the user's may bring a second main module.
	outside := &tree{t: t, root: filepath.Join(t.TempDir(), "other")}
	outside.write("go.mod", "module example.com/other\n\ngo 1.26\n")
	outside.write("other.go", "package other\n\nconst Name = \"other\"\n")
	tr.write("firmware/firmware.go", "package firmware\n\nimport \"example.com/other\"\n\ntype Config struct{}\n\nfunc New(Config) string { return other.Name }\n")
	outside.write("go.work", fmt.Sprintf("go 1.26\n\nuse %q\nuse .\n", tr.root))
	t.Setenv("GOWORK", filepath.Join(outside.root, "go.work"))
	out = newTold()
	if status := run([]string{"fw", "time", "--file", "firmware/firmware.go"}, os.Stdin, out, out); status != 125 || !strings.Contains(out.String(), "is not below") {
		t.Errorf("a module outside: status %d\n%s", status, out)
	}
}
