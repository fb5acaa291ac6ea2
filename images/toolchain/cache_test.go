// SPDX-License-Identifier: Apache-2.0

package toolchain

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

// builder counts how often it builds a small part.
type builder struct{ built int }

func (b *builder) build(_ context.Context, tmp string) (Manifest, error) {
	b.built++
	if err := os.Mkdir(filepath.Join(tmp, "d"), 0o755); err != nil {
		return Manifest{}, err
	}
	if err := os.WriteFile(filepath.Join(tmp, "d/file"), []byte("contents"), 0o644); err != nil {
		return Manifest{}, err
	}
	if err := os.Symlink("d/file", filepath.Join(tmp, "link")); err != nil {
		return Manifest{}, err
	}
	return Manifest{Packages: []Package{{"p", "1"}}}, nil
}

func TestEnsureRepairs(t *testing.T) {
	for name, test := range map[string]struct {
		damage func(dir string) error
		builds int
	}{
		"nothing":         {func(string) error { return nil }, 1},
		"touched":         {func(d string) error { return os.Chtimes(d+"/d/file", time.Time{}, time.Unix(1, 0)) }, 1},
		"truncated":       {func(d string) error { return os.Truncate(d+"/d/file", 3) }, 2},
		"emptied":         {func(d string) error { return os.Truncate(d+"/d/file", 0) }, 2},
		"changed":         {func(d string) error { return os.WriteFile(d+"/d/file", []byte("CONTENTS"), 0o644) }, 2},
		"removed":         {func(d string) error { return os.Remove(d + "/d/file") }, 2},
		"now a directory": {func(d string) error { return errors.Join(os.Remove(d+"/d/file"), os.Mkdir(d+"/d/file", 0o755)) }, 2},
		"link elsewhere":  {func(d string) error { return errors.Join(os.Remove(d+"/link"), os.Symlink("/etc", d+"/link")) }, 2},
		"no manifest":     {func(d string) error { return os.Remove(d + "/manifest.json") }, 2},
		"half a manifest": {func(d string) error { return os.Truncate(d+"/manifest.json", 40) }, 2},
		"empty manifest": {func(d string) error {
			return os.WriteFile(d+"/manifest.json", []byte(`{"version":1,"key":"k"}`), 0o644)
		}, 2},
		"escaping path": {func(d string) error {
			return os.WriteFile(d+"/manifest.json", []byte(`{"version":1,"key":"k","files":[{"path":"../x"}]}`), 0o644)
		}, 2},
		"all of it gone":    {os.RemoveAll, 2},
		"file in its place": {func(d string) error { return errors.Join(os.RemoveAll(d), os.WriteFile(d, nil, 0o644)) }, 2},
	} {
		t.Run(name, func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), "part")
			var b builder
			if _, err := Ensure(t.Context(), dir, "k", nil, b.build); err != nil {
				t.Fatal(err)
			}
			if err := test.damage(dir); err != nil {
				t.Fatal(err)
			}
			m, err := Ensure(t.Context(), dir, "k", nil, b.build)
			if err != nil {
				t.Fatal(err)
			}
			if b.built != test.builds {
				t.Errorf("built %d times, want %d", b.built, test.builds)
			}
			if len(m.Packages) != 1 || m.Packages[0] != (Package{"p", "1"}) {
				t.Errorf("packages = %v", m.Packages)
			}
			if got, err := os.ReadFile(filepath.Join(dir, "link")); err != nil || string(got) != "contents" {
				t.Errorf("contents = %q, %v", got, err)
			}
			rest, err := filepath.Glob(dir + ".tmp-*")
			if err != nil || len(rest) != 0 {
				t.Errorf("left behind: %v", rest)
			}
		})
	}
}

func TestEnsureOtherKeyAndStaleBuilds(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "part")
	var b builder
	// What a killed process leaves.
	if err := os.MkdirAll(dir+".tmp-1/root", 0o755); err != nil {
		t.Fatal(err)
	}
	for _, key := range []string{"one", "one", "two"} {
		if _, err := Ensure(t.Context(), dir, key, nil, b.build); err != nil {
			t.Fatal(err)
		}
	}
	if b.built != 2 {
		t.Errorf("built %d times, want 2", b.built)
	}
	if _, err := os.Stat(dir + ".tmp-1"); !errors.Is(err, os.ErrNotExist) {
		t.Error("the killed build is still there")
	}
}

func TestEnsureFailsClean(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "part")
	broken := errors.New("no network")
	_, err := Ensure(t.Context(), dir, "k", nil, func(_ context.Context, tmp string) (Manifest, error) {
		return Manifest{}, errors.Join(os.WriteFile(tmp+"/half", nil, 0o644), broken)
	})
	if !errors.Is(err, broken) {
		t.Errorf("err = %v", err)
	}
	entries, err := os.ReadDir(filepath.Dir(dir))
	if err != nil || len(entries) != 1 || entries[0].Name() != "part.lock" {
		t.Errorf("left behind: %v, %v", entries, err)
	}
}

func TestEnsureBuildsOnceForMany(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "part")
	var b builder // the lock orders its users
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			if _, err := Ensure(t.Context(), dir, "k", nil, b.build); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if b.built != 1 {
		t.Errorf("built %d times", b.built)
	}
}

func TestLockWaitIsBounded(t *testing.T) {
	path := filepath.Join(t.TempDir(), "x.lock")
	unlock, err := Lock(t.Context(), path, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer unlock()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	if _, err := Lock(ctx, path, nil); !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "x.lock") {
		t.Errorf("err = %v", err)
	}
}

func TestOfflineSaysWhatIsMissing(t *testing.T) {
	c := Config{CacheDir: t.TempDir(), Offline: true}
	t.Setenv("PATH", "")
	if _, err := GetQEMU(t.Context(), c); !errors.Is(err, ErrMissing) {
		t.Errorf("qemu: %v", err)
	}
	if _, err := GetKernel(t.Context(), c); !errors.Is(err, ErrMissing) {
		t.Errorf("kernel: %v", err)
	}
}
