// SPDX-License-Identifier: Apache-2.0

package toolchain

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

const (
	manifestName    = "manifest.json"
	manifestVersion = 1
	lockPoll        = 200 * time.Millisecond
)

// A Package is one Debian package a part was made of.
type Package struct {
	Name    string `json:"name"`
	Version string `json:"version"`
}

// A File is one entry of a part as it was when the part was complete.
type File struct {
	Path   string `json:"path"`
	Size   int64  `json:"size,omitempty"`
	Time   int64  `json:"time,omitempty"` // modification time, Unix ns
	SHA256 string `json:"sha256,omitempty"`
	Link   string `json:"link,omitempty"` // target, of symbolic links
}

// A Manifest marks a part as complete and says what is in it.
type Manifest struct {
	Version  int               `json:"version"`
	Key      string            `json:"key"` // what the part was built from; another key means build again
	Packages []Package         `json:"packages,omitempty"`
	Values   map[string]string `json:"values,omitempty"`
	Files    []File            `json:"files"`
}

// Ensure returns the manifest of the part in dir, which it builds when it is
// missing, damaged, or made from another key. build fills an empty directory and
// returns packages and values; the list of files is made here. Half-built
// directories of killed processes are removed.
func Ensure(ctx context.Context, dir, key string, report Progress, build func(ctx context.Context, tmp string) (Manifest, error)) (Manifest, error) {
	if m, err := Verify(dir, key); err == nil {
		return m, nil
	}
	if err := os.MkdirAll(filepath.Dir(dir), 0o755); err != nil {
		return Manifest{}, fmt.Errorf("toolchain: cache: %w", err)
	}
	unlock, err := Lock(ctx, dir+".lock", report)
	if err != nil {
		return Manifest{}, err
	}
	defer unlock()

	// Somebody else may have built it while we waited for the lock.
	m, err := Verify(dir, key)
	if err == nil {
		return m, nil
	}
	if _, statErr := os.Lstat(dir); statErr == nil && !errors.Is(err, errOtherKey) {
		step(report, "cache: %s is damaged (%v): getting it again", filepath.Base(dir), err)
	}
	stale, err := filepath.Glob(globEscape(dir) + ".tmp-*")
	if err != nil {
		return Manifest{}, fmt.Errorf("toolchain: cache: %w", err)
	}
	for _, d := range stale {
		os.RemoveAll(d) //nolint:errcheck // only wasted space if it stays
	}
	tmp, err := os.MkdirTemp(filepath.Dir(dir), filepath.Base(dir)+".tmp-")
	if err != nil {
		return Manifest{}, fmt.Errorf("toolchain: cache: %w", err)
	}
	defer os.RemoveAll(tmp) //nolint:errcheck // gone already when all went well
	if err := os.Chmod(tmp, 0o755); err != nil {
		return Manifest{}, fmt.Errorf("toolchain: cache: %w", err)
	}
	m, err = build(ctx, tmp)
	if err != nil {
		return Manifest{}, err
	}
	m.Version, m.Key = manifestVersion, key
	if m.Files, err = scan(tmp); err != nil {
		return Manifest{}, fmt.Errorf("toolchain: cache: %w", err)
	}
	return m, install(tmp, dir, m)
}

// install writes the manifest, flushes the part to disk and moves it to its place.
func install(tmp, dir string, m Manifest) error {
	b, err := json.MarshalIndent(m, "", " ")
	if err != nil {
		return fmt.Errorf("toolchain: cache: %w", err)
	}
	if err := os.WriteFile(filepath.Join(tmp, manifestName), b, 0o644); err != nil {
		return fmt.Errorf("toolchain: cache: %w", err)
	}
	// One syncfs instead of thousands of fsyncs: after a power cut the manifest
	// must not stand beside empty files.
	if d, err := os.Open(tmp); err == nil {
		unix.Syncfs(int(d.Fd())) //nolint:errcheck // Verify catches what this could not prevent
		d.Close()                //nolint:errcheck // read only
	}
	if _, err := os.Lstat(dir); err == nil {
		old, err := os.MkdirTemp(filepath.Dir(dir), filepath.Base(dir)+".tmp-")
		if err != nil {
			return fmt.Errorf("toolchain: cache: %w", err)
		}
		defer os.RemoveAll(old) //nolint:errcheck // only wasted space if it stays
		if err := os.Rename(dir, filepath.Join(old, "old")); err != nil {
			return fmt.Errorf("toolchain: cache: %w", err)
		}
	}
	if err := os.Rename(tmp, dir); err != nil {
		return fmt.Errorf("toolchain: cache: %w", err)
	}
	return nil
}

var errOtherKey = errors.New("made from something else")

// Verify checks the part in dir against its manifest without building anything.
func Verify(dir, key string) (Manifest, error) {
	var m Manifest
	b, err := os.ReadFile(filepath.Join(dir, manifestName))
	if err != nil {
		return m, err
	}
	if err := json.Unmarshal(b, &m); err != nil {
		return m, fmt.Errorf("%s: %w", manifestName, err)
	}
	if m.Version != manifestVersion || m.Key != key {
		return m, errOtherKey
	}
	if len(m.Files) == 0 {
		return m, errors.New("empty manifest")
	}
	for _, f := range m.Files {
		if err := f.verify(dir); err != nil {
			return m, err
		}
	}
	return m, nil
}

func (f File) verify(dir string) error {
	if !filepath.IsLocal(f.Path) {
		return fmt.Errorf("%s: not below the cache", f.Path)
	}
	path := filepath.Join(dir, f.Path)
	st, err := os.Lstat(path)
	if err != nil {
		return err
	}
	if f.Link != "" {
		target, err := os.Readlink(path)
		if err != nil {
			return err
		}
		if target != f.Link {
			return fmt.Errorf("%s: link to %s, want %s", f.Path, target, f.Link)
		}
		return nil
	}
	if !st.Mode().IsRegular() {
		return fmt.Errorf("%s: not a file", f.Path)
	}
	if st.Size() != f.Size {
		return fmt.Errorf("%s: %d bytes, want %d", f.Path, st.Size(), f.Size)
	}
	if st.ModTime().UnixNano() == f.Time {
		return nil
	}
	sum, err := HashFile(path)
	if err != nil {
		return err
	}
	if sum != f.SHA256 {
		return fmt.Errorf("%s: contents changed", f.Path)
	}
	return nil
}

// scan lists the files and links below dir, in lexical order.
func scan(dir string) ([]File, error) {
	var files []File
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(dir, path)
		if err != nil {
			return err
		}
		f := File{Path: rel}
		switch {
		case d.Type()&fs.ModeSymlink != 0:
			f.Link, err = os.Readlink(path)
		case d.Type().IsRegular():
			var st fs.FileInfo
			if st, err = d.Info(); err != nil {
				return err
			}
			f.Size, f.Time = st.Size(), st.ModTime().UnixNano()
			f.SHA256, err = HashFile(path)
		default:
			return nil
		}
		files = append(files, f)
		return err
	})
	return files, err
}

// HashFile returns the SHA-256 of a file, in hexadecimal digits.
func HashFile(path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer f.Close() //nolint:errcheck // read only
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		return "", err
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}

// Lock takes the exclusive lock of the file at path, which stays: removing a lock
// file lets two holders in. The kernel drops the lock when its holder dies.
func Lock(ctx context.Context, path string, report Progress) (func(), error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o644)
	if err != nil {
		return nil, fmt.Errorf("toolchain: lock: %w", err)
	}
	for said := false; ; said = true {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			return func() { f.Close() }, nil //nolint:errcheck // closing drops the lock
		}
		if err != unix.EWOULDBLOCK && err != unix.EINTR {
			f.Close() //nolint:errcheck // the lock's error is the one to tell
			return nil, fmt.Errorf("toolchain: lock %s: %w", path, err)
		}
		if !said {
			step(report, "cache: another toebox is filling %s: waiting", filepath.Base(strings.TrimSuffix(path, ".lock")))
		}
		select {
		case <-ctx.Done():
			f.Close() //nolint:errcheck // never locked
			return nil, fmt.Errorf("toolchain: waiting for %s: %w", path, ctx.Err())
		case <-time.After(lockPoll):
		}
	}
}

func globEscape(s string) string {
	return strings.NewReplacer(`\`, `\\`, `*`, `\*`, `?`, `\?`, `[`, `\[`).Replace(s)
}
