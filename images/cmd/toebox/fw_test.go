// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"toebox/images/rig"
)

// hasty is FwLoadCmd with other patience for what comes after a load.
type hasty struct {
	FwTarget
	patience time.Duration
	over     <-chan struct{} // if there is one, patience ends with it, however long it took
}

func (c *hasty) Run(a *app) error {
	ctx, cancel := a.interruptible()
	defer cancel()
	l, err := a.fwLoader(&c.FwTarget)
	if err != nil {
		return err
	}
	l.patience, l.client.Timeout = c.patience, 0 // nothing but the context ends a question
	if c.over != nil {
		l.bound = func(ctx context.Context, _ time.Duration, cause error) (context.Context, context.CancelFunc) {
			ctx, cancel := context.WithCancelCause(ctx)
			go func() {
				select {
				case <-c.over:
					cancel(cause)
				case <-ctx.Done():
				}
			}()
			return ctx, func() { cancel(nil) }
		}
	}
	_, err = l.load(ctx, time.Now(), "the request")
	return err
}

// TestFwLoad: what becomes of firmware is told, and told apart by the exit status.
func TestFwLoad(t *testing.T) {
	refuses := func(why string, generation uint32) func(m *machine) {
		return func(m *machine) {
			m.answer = func(rig.Load) rig.Loaded { return rig.Loaded{Error: why, Generation: generation} }
		}
	}
	for _, test := range []struct {
		name     string
		source   string // of the firmware; "": it is good
		machine  func(m *machine)
		patience time.Duration
		status   int
		says     []string
		not      string
		loaded   bool // a program came to the machine
		stays    bool // and it is its
	}{
		{name: "serves", says: []string{"built in ", "generation 2 serves after 1 ms", "driver back after ", "first HTTP byte through it "}, loaded: true, stays: true},
		{name: "waits for another load", machine: func(m *machine) { m.before = `{"state":"waits"}` + "\n" + `{"state":"begins"}` + "\n" },
			says: []string{"another load is under way: waiting for it", "generation 2 serves"}, loaded: true, stays: true},
		{name: "does not build", source: brokenFirmware, status: 125,
			says: []string{"the firmware does not build:", "firmware/firmware.go:5:", "undefined: undefinedThing"}, not: "built in"},
		{name: "no Go at all", source: "package", status: 125, says: []string{"the firmware does not build:", "firmware/firmware.go:1:"}, not: "built in"},
		{name: "other regions", machine: refuses("BAR0: 64 KiB, and not 128 KiB", 3), status: 3,
			says: []string{"could not take over, the one before goes on: BAR0: 64 KiB, and not 128 KiB"}, not: "serves after", loaded: true},
		{name: "put back to the one before", machine: refuses("the server ended before it served (exit status 7: cannot)", 4), status: 3,
			says: []string{"the one before goes on: the server ended", "exit status 7: cannot"}, not: "serves after", loaded: true},
		{name: "not taken", machine: refuses("this machine runs without an adapter", 0), status: 125,
			says: []string{"fw: this machine runs without an adapter"}, not: "take over", loaded: true},
		{name: "did not last", machine: func(m *machine) { m.stats = statistics(3, 1); m.page = hang(nil) }, status: 3,
			says: []string{"generation 2 serves", "the firmware serves, but generation 2 did not last"}, not: "driver back", loaded: true, stays: true},
		{name: "no driver", machine: func(m *machine) { m.stats = statistics(2, 0); m.page = hang(nil) }, patience: 50 * time.Millisecond, status: 3,
			says: []string{"generation 2 serves", "no driver has come back within 50ms"}, not: "driver back", loaded: true, stays: true},
		{name: "device that says nothing", machine: func(m *machine) { m.stats = hang(nil) }, patience: 50 * time.Millisecond, status: 3,
			says: []string{"no driver has come back within 50ms"}, not: "driver back", loaded: true, stays: true},
		{name: "statistics that are none", machine: func(m *machine) { m.stats = http.NotFound }, patience: 50 * time.Millisecond, status: 3,
			says: []string{"no driver has come back within 50ms"}, not: "driver back", loaded: true, stays: true},
	} {
		t.Run(test.name, func(t *testing.T) {
			tr := newTree(t)
			if test.source != "" {
				tr.write("firmware/firmware.go", test.source)
			}
			m := newMachine(t, "20260101-000000-aaaaaa")
			if test.machine != nil {
				m.set(func() { test.machine(m) })
			}
			verb := &hasty{patience: patience}
			if test.patience != 0 {
				verb.patience = test.patience
			}
			c := begin(t, verb)
			if status := c.end(); status != test.status {
				t.Errorf("status %d, want %d\n%s", status, test.status, c.out)
			}
			for _, want := range test.says {
				if !strings.Contains(c.out.String(), want) {
					t.Errorf("says\n%s\nwithout %q", c.out, want)
				}
			}
			if test.not != "" && strings.Contains(c.out.String(), test.not) {
				t.Errorf("says\n%s\nwith %q", c.out, test.not)
			}
			if test.loaded {
				if got := m.next(); got != "first" {
					t.Errorf("%q was loaded", got)
				}
			}
			if !test.stays {
				m.unloaded()
			}
		})
	}
}

// TestFwLoadWithoutHTTP: a guest that serves no page is no failure of the firmware.
func TestFwLoadWithoutHTTP(t *testing.T) {
	newTree(t)
	m := newMachine(t, "20260101-000000-aaaaaa")
	m.set(func() { m.page = hang(nil) })
	over := make(chan struct{})
	c := begin(t, &hasty{patience: 3 * time.Second, over: over})
	c.out.wait(t, 1, "driver back after ")
	close(over)
	if status := c.end(); status != 0 || !strings.Contains(c.out.String(), fmt.Sprintf("no HTTP answer at port %d within 3s", m.record.Port)) {
		t.Errorf("status %d\n%s", status, c.out)
	}
}

// TestFwWhichMachine: the newest is brought the firmware, or the one that is named.
func TestFwWhichMachine(t *testing.T) {
	newTree(t)
	older, newer := newMachine(t, "20260101-000000-aaaaaa"), newMachine(t, "20260102-000000-bbbbbb")
	for _, test := range []struct {
		args []string
		m    *machine
	}{{nil, newer}, {[]string{"aaaaaa"}, older}, {[]string{newer.record.ID}, newer}} {
		out := newTold()
		if status := run(append([]string{"fw", "load"}, test.args...), os.Stdin, out, out); status != 0 {
			t.Errorf("%q: status %d\n%s", test.args, status, out)
		}
		test.m.next()
		for _, m := range []*machine{older, newer} {
			select {
			case <-m.took:
				t.Errorf("%q: %s got it, too", test.args, m.record.ID)
			default:
			}
		}
	}
	for _, args := range [][]string{{"fw", "load", "cccccc"}, {"fw", "watch", "cccccc"}, {"fw", "time", "cccccc"}} {
		out := newTold()
		if status := run(args, os.Stdin, out, out); status != 125 || !strings.Contains(out.String(), "no run cccccc is up") {
			t.Errorf("%q: status %d\n%s", args, status, out)
		}
	}
}

// louder is a firmware package of a module of its own.
const louder = "package louder\n\nimport (\n\t\"toebox/firmware\"\n\t\"toebox/vdev\"\n)\n\n" +
	"func New(c firmware.Config) (vdev.Firmware, vdev.Counters) { return firmware.New(c) + \" louder\", 0 }\n"

// TestFwElsewhere: the firmware comes from a module outside the tree, and either may
// be reached by symbolic links.
func TestFwElsewhere(t *testing.T) {
	tr := newTree(t)
	m := newMachine(t, "20260101-000000-aaaaaa")
	other := filepath.Join(t.TempDir(), "other")
	outside := &tree{t: t, root: other}
	outside.write("go.mod", "module example.com/louder\n\ngo 1.26\n")
	outside.write("fw/louder.go", louder)
	tr.write("trial/louder.go", louder)
	links := t.TempDir()
	link := func(name, to string) string {
		t.Helper()
		path := filepath.Join(links, name)
		if err := os.Symlink(to, path); err != nil {
			t.Fatal(err)
		}
		return path
	}
	linkedTree, linkedOther := link("tree", tr.root), link("other", other)
	for _, test := range []struct{ source, wd, firmware, want string }{
		{tr.root, other, "./fw", "first louder"},
		{tr.root, filepath.Join(other, "fw"), ".", "first louder"},
		{tr.root, links, filepath.Join(other, "fw"), "first louder"},
		{tr.root, linkedOther, "./fw", "first louder"},
		{linkedTree, linkedOther, "./fw", "first louder"},
		{linkedTree, linkedTree, "", "first"},
		{tr.root, tr.root, "./trial", "first louder"},
		{tr.root, tr.root, "toebox/trial", "first louder"},
		{tr.root, linkedTree, "./trial", "first louder"},
		{linkedTree, tr.root, "./trial", "first louder"},
		{linkedTree, links, filepath.Join(linkedTree, "trial"), "first louder"},
	} {
		t.Setenv("TOEBOX_SOURCE", test.source)
		t.Chdir(test.wd)
		args := []string{"fw", "load"}
		if test.firmware != "" {
			args = append(args, "--firmware", test.firmware)
		}
		out := newTold()
		if status := run(args, os.Stdin, out, out); status != 0 {
			t.Errorf("%+v: status %d\n%s", test, status, out)
			continue
		}
		if got := m.next(); got != test.want {
			t.Errorf("%+v: %q was loaded", test, got)
		}
	}
}
