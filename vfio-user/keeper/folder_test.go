// SPDX-License-Identifier: Apache-2.0

package keeper

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"testing"
)

// TestFolders: keepers that start at once in one place each get a folder of their
// own, remove what others left behind and nothing else, and leave nothing.
func TestFolders(t *testing.T) {
	place := filepath.Join(t.TempDir(), "a[b") // no pattern
	left := filepath.Join(place, folderPrefix+"left", "s")
	others := filepath.Join(place, "other", "s")
	for _, path := range []string{left, others} {
		if err := os.MkdirAll(path, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	t.Setenv("TMPDIR", place)
	used, err := newFolder()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(left); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("what was left behind: %v", err)
	}
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range 100 {
				f, err := newFolder()
				if err != nil {
					t.Error(err)
					continue
				}
				if err := os.WriteFile(filepath.Join(f.path, "s"), nil, 0o600); err != nil {
					t.Error(err)
				}
				f.remove()
				f.remove()
			}
		})
	}
	wg.Wait()
	for _, path := range []string{used.path, others} {
		if _, err := os.Stat(path); err != nil {
			t.Error(err)
		}
	}
	used.remove()
	if entries, err := os.ReadDir(place); len(entries) != 1 || err != nil {
		t.Errorf("%v are left, %v", entries, err)
	}
}

// TestNoFolder: a place that cannot be written to, or is none, is an error.
func TestNoFolder(t *testing.T) {
	t.Setenv("TMPDIR", filepath.Join(t.TempDir(), "none"))
	if f, err := newFolder(); f != nil || !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("%v, %v", f, err)
	}
}
