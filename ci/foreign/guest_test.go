// SPDX-License-Identifier: Apache-2.0

package foreign_test

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"toebox/ci/foreign"
	"toebox/ci/runner"
	"toebox/ci/suite"
	images "toebox/images/rig"
	"toebox/images/toolchain/toolchaintest"
)

// TestGuest: the example in Go passes functions in a guest, from a folder of its
// own.
func TestGuest(t *testing.T) {
	toolchaintest.QEMU(t)
	toolchaintest.Kernel(t)
	paths, err := images.DefaultPaths()
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	build := exec.CommandContext(t.Context(), "go", "build", "-o", filepath.Join(dir, "driver"), "./example/guest")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	var out bytes.Buffer
	code := suite.Run(t.Context(), suite.Options{
		Buses: []string{"vm"}, Driver: dir, Pattern: "Driver(Listen|Cancel|Set|Stats|Reset)$", Seed: 1, Strict: true, TimeoutScale: 2, Images: images.Options{Paths: paths}, Out: &out,
	})
	for _, want := range []string{"\n5 passed, 0 failed, 0 skipped\n", "\nCE10         1/1\n"} {
		if code != runner.ExitOK || !strings.Contains(out.String(), want) {
			t.Fatalf("exit code %d, want %q in\n%s", code, want, &out)
		}
	}
}

// TestPack: a file, a folder, and what is neither.
func TestPack(t *testing.T) {
	dir := t.TempDir()
	write := func(name, text string, mode os.FileMode) {
		t.Helper()
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), mode); err != nil {
			t.Fatal(err)
		}
	}
	write("one", "a program", 0o600)
	write("all/driver", "another", 0o755)
	write("all/lib/x.so", "code", 0o644)
	write("data/driver", "not executable", 0o644)
	if err := os.Symlink("x.so", filepath.Join(dir, "all/lib/x")); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		command string
		args    []string
		files   string
	}{
		{"one -v x", []string{"/driver/one", "-v", "x"}, "driver/one=a program"},
		{"all", []string{"/driver/driver"}, "driver/driver=another driver/lib= driver/lib/x->x.so driver/lib/x.so=code"},
		{"data", nil, ""},
		{"nothing", nil, ""},
	} {
		files, args, err := foreign.Pack(filepath.Join(dir, c.command))
		var got []string
		for _, f := range files {
			text := f.Path + "=" + string(f.Data)
			if f.Link != "" {
				text = f.Path + "->" + f.Link
			}
			got = append(got, text)
		}
		if (err != nil) != (c.args == nil) || !slices.Equal(args, c.args) || strings.Join(got, " ") != c.files {
			t.Errorf("%s: %q, %q, %v", c.command, args, got, err)
		}
	}
	if _, _, err := foreign.Pack(" "); err == nil {
		t.Error("packed nothing")
	}
}
