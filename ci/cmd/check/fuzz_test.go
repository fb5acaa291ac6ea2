// SPDX-License-Identifier: Apache-2.0

package main

import (
	"os"
	"path/filepath"
	"slices"
	"testing"
)

// TestFuzzTargets finds fuzz functions, and nothing that only looks like one.
func TestFuzzTargets(t *testing.T) {
	dir := t.TempDir()
	for name, text := range map[string]string{
		"a_test.go":     "package a\n\nfunc FuzzOne(f *testing.F) {}\n\nfunc TestTwo(t *testing.T) {}\n\nfunc FuzzThree(x *testing.F) {\n}\n",
		"sub/b_test.go": "package b\n\nfunc FuzzFour(f *testing.F) {}\n\nfunc FuzzFive(t *testing.T) {}\n\n// func FuzzSix(f *testing.F) {}\n",
		"c.go":          "package a\n\nfunc FuzzSeven(f *testing.F) {}\n",
	} {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	got, err := fuzzTargets(dir)
	want := []target{{dir, "FuzzOne"}, {dir, "FuzzThree"}, {filepath.Join(dir, "sub"), "FuzzFour"}}
	if err != nil || !slices.Equal(got, want) {
		t.Errorf("%v, %v, want %v", got, err, want)
	}
	if got, err := fuzzTargets(t.TempDir()); err == nil {
		t.Errorf("an empty folder has %v", got)
	}
	got, err = fuzzTargets(filepath.Join("..", "..", "..", fuzzed))
	if err != nil || !slices.ContainsFunc(got, func(t target) bool { return t.name == "FuzzSession" }) {
		t.Errorf("the protocol's: %v, %v", got, err)
	}
}
