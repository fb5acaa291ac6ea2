// SPDX-License-Identifier: Apache-2.0

package initramfs

import (
	"bytes"
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/u-root/mkuimage/cpio"

	"toebox/images/toolchain"
)

func TestWrite(t *testing.T) {
	files := []File{
		{Path: "init", Mode: 0o755, Data: []byte("#!")},
		{Path: "a/b/c", Mode: 0o600, Data: []byte("deep")},
		{Path: "a/link", Link: "/init"},
		{Path: "root", Mode: os.ModeDir | 0o700},
	}
	var out bytes.Buffer
	if err := Write(&out, files); err != nil {
		t.Fatal(err)
	}
	// newc: 6 bytes of magic, 13 fields of 8 digits, then the name.
	if got := out.String()[:14]; got != "07070100000001" {
		t.Errorf("starts %q", got)
	}
	records, err := cpio.ReadAllRecords(cpio.Newc.Reader(bytes.NewReader(out.Bytes())))
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, r := range records {
		got = append(got, r.Name)
		if r.Name == "a/b/c" && (r.Mode != 0o100600 || r.FileSize != 4) {
			t.Errorf("a/b/c: mode %o, %d bytes", r.Mode, r.FileSize)
		}
		if r.Name == "root" && r.Mode != 0o040700 {
			t.Errorf("root: mode %o", r.Mode)
		}
	}
	if want := []string{"dev", "dev/console", "a", "a/b", "a/b/c", "a/link", "init", "root"}; !slices.Equal(got, want) {
		t.Errorf("records %v, want %v", got, want)
	}
	var again bytes.Buffer
	slices.Reverse(files)
	if err := Write(&again, files); err != nil || !bytes.Equal(again.Bytes(), out.Bytes()) {
		t.Errorf("the same files make another archive (%v)", err)
	}
	for _, path := range []string{"/abs", "../up", "", "a//b"} {
		if err := Write(&again, []File{{Path: path}}); err == nil {
			t.Errorf("%q passes", path)
		}
	}
}

func TestImage(t *testing.T) {
	c := Config{CacheDir: t.TempDir()}
	base := filepath.Join(t.TempDir(), "base")
	if err := os.WriteFile(base, []byte("base!"), 0o644); err != nil {
		t.Fatal(err)
	}
	files := []File{{Path: "init", Mode: 0o755, Data: []byte("one")}}
	first, err := Image(c, base, files)
	if err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(first)
	if err != nil || !bytes.HasPrefix(b, []byte("base!\x00")) || string(b[512:518]) != "070701" {
		t.Errorf("image starts %.20q, %v", b, err)
	}
	// What a killed or clumsy process left under the right name is not believed.
	for _, damage := range [][]byte{nil, b[:len(b)-1], bytes.Replace(b, []byte("one"), []byte("two"), 1)} {
		if err := os.WriteFile(first, damage, 0o644); err != nil {
			t.Fatal(err)
		}
		again, err := Image(c, base, files)
		if err != nil || again != first {
			t.Errorf("again: %s, %v", again, err)
		}
		if got, err := os.ReadFile(first); err != nil || !bytes.Equal(got, b) {
			t.Errorf("not repaired (%v)", err)
		}
	}
	for i := range 10 {
		files[0].Data = []byte{byte(i)}
		if _, err := Image(c, base, files); err != nil {
			t.Fatal(err)
		}
	}
	entries, err := os.ReadDir(filepath.Join(c.CacheDir, "initramfs"))
	if err != nil || len(entries) != keep {
		t.Errorf("%d images kept, %v", len(entries), err)
	}
	if _, err := Image(c, base+"x", files); err == nil {
		t.Error("no base: no error")
	}
}

func TestModulesKeepTheirOrder(t *testing.T) {
	var in []toolchain.Module
	for i := range 12 {
		in = append(in, toolchain.Module{Name: string(rune('z' - i))})
	}
	var names []string
	for _, f := range Modules(in) {
		names = append(names, f.Path)
	}
	if !slices.IsSorted(names) || !strings.HasPrefix(names[0], "lib/modules/toebox/00-z.ko") {
		t.Errorf("names %v", names)
	}
}

func TestPrograms(t *testing.T) {
	if _, err := exec.LookPath("go"); err != nil {
		t.Skip("no go on PATH: install Go (https://go.dev/dl)")
	}
	c := Config{CacheDir: t.TempDir(), Source: t.TempDir()}
	write := func(name, text string) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(c.Source, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	write("go.mod", "module prog\n")
	write("main.go", "package main\n\nfunc main() { println(42) }\n")
	dir, err := Programs(t.Context(), c, ".")
	if err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command(filepath.Join(dir, "prog")).CombinedOutput(); err != nil || string(out) != "42\n" {
		t.Errorf("ran: %q, %v", out, err)
	}
	// A program cut short, by whatever, is built again, and nothing else stays behind.
	if err := os.Truncate(filepath.Join(dir, "prog"), 600_000); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(filepath.Join(dir, "tmp-killed"), 0o755); err != nil {
		t.Fatal(err)
	}
	if _, err := Programs(t.Context(), c, "."); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command(filepath.Join(dir, "prog")).CombinedOutput(); err != nil || string(out) != "42\n" {
		t.Errorf("after damage: %q, %v", out, err)
	}
	if entries, err := os.ReadDir(dir); err != nil || len(entries) != 2 {
		t.Errorf("%v beside the program and its hash (%v)", entries, err)
	}
	over, cancel := context.WithCancelCause(t.Context())
	cancel(os.ErrProcessDone)
	if _, err := Programs(over, c, "."); !errors.Is(err, os.ErrProcessDone) {
		t.Errorf("after the end: %v", err)
	}
	write("main.go", "package main\n\nfunc main() { nonsense }\n")
	if _, err := Programs(t.Context(), c, "."); err == nil || !strings.Contains(err.Error(), "nonsense") {
		t.Errorf("err = %v", err)
	}
	t.Setenv("PATH", "")
	if _, err := Programs(t.Context(), c, "."); err == nil || !strings.Contains(err.Error(), "install Go") {
		t.Errorf("err = %v", err)
	}
}

func TestURootSum(t *testing.T) {
	dir := t.TempDir()
	if _, err := urootSum(dir); err == nil {
		t.Error("no go.sum: no error")
	}
	for text, want := range map[string]string{
		"github.com/u-root/u-root v0.16.0/go.mod h1:a\ngithub.com/u-root/u-root v0.16.0 h1:b\n": "v0.16.0 h1:b",
		"github.com/u-root/uio v0.1 h1:x\n":                                                     "",
	} {
		if err := os.WriteFile(filepath.Join(dir, "go.sum"), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		if got, err := urootSum(dir); got != want || (err == nil) != (want != "") {
			t.Errorf("%q, %v; want %q", got, err, want)
		}
	}
}
