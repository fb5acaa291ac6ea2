// SPDX-License-Identifier: Apache-2.0

package fswatch

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"
)

const wait = 60 * time.Second

func watch(t *testing.T, dirs ...string) *Watcher {
	t.Helper()
	w, err := New()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { w.Close() })
	if err := w.Set(dirs); err != nil {
		t.Fatal(err)
	}
	return w
}

func next(t *testing.T, w *Watcher) Change {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), wait)
	defer cancel()
	c, err := w.Next(ctx)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func write(t *testing.T, path string) {
	t.Helper()
	if err := os.WriteFile(path, []byte("package x\n"), 0o644); err != nil {
		t.Fatal(err)
	}
}

// TestSaves: every way to save is one, and what is no source is none.
func TestSaves(t *testing.T) {
	dir, other := t.TempDir(), t.TempDir()
	w := watch(t, dir, other)
	a, b := filepath.Join(dir, "a.go"), filepath.Join(other, "b.go")
	for _, test := range []struct {
		name string
		save func()
		want []string
	}{
		{"in place", func() { write(t, a) }, []string{a}},
		{"another file renamed", func() {
			write(t, filepath.Join(dir, ".a.go.tmp"))
			if err := os.Rename(filepath.Join(dir, ".a.go.tmp"), a); err != nil {
				t.Error(err)
			}
		}, []string{a}},
		{"old one renamed first, as vi does", func() {
			write(t, filepath.Join(dir, "4913"))
			if err := errors.Join(os.Remove(filepath.Join(dir, "4913")), os.Rename(a, a+"~")); err != nil {
				t.Error(err)
			}
			write(t, a)
			if err := os.Remove(a + "~"); err != nil {
				t.Error(err)
			}
		}, []string{a}},
		{"no source", func() {
			for _, name := range []string{"a_test.go", ".#a.go", "#a.go#", "a.go.swp", "notes.txt", "_a.go"} {
				write(t, filepath.Join(dir, name))
			}
			write(t, b) // is told alone
		}, []string{b}},
		{"gone", func() { os.Remove(b) }, []string{b}},
	} {
		test.save()
		var got []string
		for c := (Change{}); !slices.Contains(got, test.want[len(test.want)-1]); got = append(got, c.Files...) {
			c = next(t, w)
			if c.Time.IsZero() || time.Since(c.Time) > wait {
				t.Errorf("%s: at %v", test.name, c.Time)
			}
		}
		slices.Sort(got)
		if got = slices.Compact(got); !slices.Equal(got, test.want) {
			t.Errorf("%s: %q, want %q", test.name, got, test.want)
		}
	}
}

// TestSet: directories come and go, and one that is not there is named.
func TestSet(t *testing.T) {
	dir, other := t.TempDir(), t.TempDir()
	w := watch(t, dir)
	if err := w.Set([]string{other, filepath.Join(dir, "none")}); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("one that is not there: %v", err)
	}
	write(t, filepath.Join(dir, "a.go"))
	b := filepath.Join(other, "b.go")
	write(t, b)
	if c := next(t, w); !slices.Equal(c.Files, []string{b}) {
		t.Errorf("%q", c.Files)
	}
}

func TestNextEnds(t *testing.T) {
	w := watch(t, t.TempDir())
	why := errors.New("enough")
	ctx, cancel := context.WithCancelCause(t.Context())
	ended := make(chan error, 1)
	go func() {
		_, err := w.Next(ctx)
		ended <- err
	}()
	cancel(why)
	if err := <-ended; !errors.Is(err, why) {
		t.Errorf("cancelled: %v", err)
	}
	go func() {
		_, err := w.Next(t.Context())
		ended <- err
	}()
	w.Close()
	if err := <-ended; !errors.Is(err, os.ErrClosed) {
		t.Errorf("closed: %v", err)
	}
}

// TestParse: what the kernel writes is judged like anything else.
func TestParse(t *testing.T) {
	w := &Watcher{dirs: map[int]string{1: "/d"}}
	event := "\x01\x00\x00\x00" + "\x08\x00\x00\x00" + "\x00\x00\x00\x00" + "\x08\x00\x00\x00" + "a.go\x00\x00\x00\x00"
	for in, want := range map[string]struct {
		files []string
		lost  bool
	}{
		event:         {[]string{"/d/a.go"}, false},
		event + event: {[]string{"/d/a.go", "/d/a.go"}, false},
		event[:20]:    {nil, true},
		event[:15]:    {nil, false},
		"\xff\xff\xff\xff\x00\x40\x00\x00" + "\x00\x00\x00\x00" + "\x00\x00\x00\x00": {nil, true},
		"\x02" + event[1:]: {nil, false},
	} {
		if files, lost := w.parse([]byte(in)); !slices.Equal(files, want.files) || lost != want.lost {
			t.Errorf("%q: %q, %t", in, files, lost)
		}
	}
}
