// SPDX-License-Identifier: Apache-2.0

package devbuild

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

func source(t *testing.T) string {
	t.Helper()
	root, err := filepath.Abs(filepath.Join("..", ".."))
	if err != nil {
		t.Fatal(err)
	}
	return root
}

// write makes a module outside the tree.
func write(t *testing.T, files map[string]string) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "a module")
	for name, text := range files {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// TestBuild builds with the tree's firmware and with a package outside of it.
func TestBuild(t *testing.T) {
	if testing.Short() {
		t.Skip("builds programs, some seconds: run without -short")
	}
	for firmware, want := range map[string]bool{"": false, "testdata/louder": true} {
		c := Config{Source: source(t), Temp: t.TempDir()}
		if firmware != "" {
			text, err := os.ReadFile(filepath.Join(firmware, "louder.go"))
			if err != nil {
				t.Fatal(err)
			}
			// A module may have told its own tools where the tree is.
			c.Firmware = write(t, map[string]string{
				"go.mod": "module example.com/louder\n\ngo 1.26\n\nrequire toebox v0.0.0\n\nreplace toebox => " + source(t) + "\n", "louder.go": string(text),
			})
		}
		out := filepath.Join(t.TempDir(), "device")
		if err := Build(t.Context(), c, out); err != nil {
			t.Fatal(err)
		}
		b, err := os.ReadFile(out)
		if err != nil || bytes.Contains(b, []byte("louder 2.0")) != want {
			t.Errorf("%q: %v; the package is in it: %t", firmware, err, !want)
		}
		if left, err := os.ReadDir(c.Temp); err != nil || len(left) != 0 {
			t.Errorf("left behind: %v, %v", left, err)
		}
	}
}

func TestDirs(t *testing.T) {
	root := source(t)
	louder := filepath.Join(root, "images/devbuild/testdata/louder")
	for firmware, also := range map[string]string{"": root, louder: louder, "toebox/firmware/engine/enginetest": filepath.Join(root, "firmware/engine/enginetest")} {
		dirs, err := Dirs(t.Context(), Config{Source: root, Firmware: firmware})
		if err != nil {
			t.Fatal(err)
		}
		for _, want := range []string{"firmware", "firmware/engine", "vdev", "vdev/abi", "vdev/device", "vdev/cmd/toebox-device", "vfio-user"} {
			if !slices.Contains(dirs, filepath.Join(root, want)) {
				t.Errorf("%s: %q lacks %s", firmware, dirs, want)
			}
		}
		if also != root && !slices.Contains(dirs, also) {
			t.Errorf("%s: %q lacks it", firmware, dirs)
		}
		for _, d := range dirs {
			if !strings.HasPrefix(d, root) || strings.HasPrefix(d, filepath.Join(root, "images")) && d != also {
				t.Errorf("%s: %s", firmware, d)
			}
		}
	}
}

// TestMistakes: what cannot be built is told by what is wrong with it.
func TestMistakes(t *testing.T) {
	broken := write(t, map[string]string{"go.mod": "module example.com/broken\n\ngo 1.26\n", "b.go": "package broken\n\nfunc New() int { return \"one\" }\n"})
	other := write(t, map[string]string{"go.mod": "module example.com/other\n\ngo 1.26\n", "o.go": "package other\n\nfunc New() {}\n"})
	for firmware, want := range map[string]string{
		broken: "b.go:3:", other: "custom.New",
		filepath.Join(broken, "none"): "cannot find package",
		t.TempDir():                   "in no module",
		write(t, map[string]string{"go.mod": "module example.com/empty\n"}):                             "no buildable Go",
		write(t, map[string]string{"go.mod": "module example.com/program\n", "p.go": "package main\n"}): "program",
		"example.com/elsewhere": "neither",
		write(t, map[string]string{"go.mod": "module example.com/late\n\ngo 1.999\n", "l.go": "package late"}): "1.999",
	} {
		err := Build(t.Context(), Config{Source: source(t), Firmware: firmware}, filepath.Join(t.TempDir(), "device"))
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", firmware, err, want)
		}
		var e *Error
		if firmware == broken && !errors.As(err, &e) {
			t.Errorf("%T is no build error", err)
		}
	}
}

func TestNewer(t *testing.T) {
	for _, v := range []struct {
		a, b string
		want bool
	}{{"1.27", "1.26", true}, {"1.9", "1.26", false}, {"1.26.8", "1.26", true}, {"1.26", "1.26.8", false}, {"1.26", "1.26", false}, {"", "1.26", false}, {"x", "1.26", false}} {
		if newer(v.a, v.b) != v.want {
			t.Errorf("%s newer than %s: %t", v.a, v.b, !v.want)
		}
	}
}
