// SPDX-License-Identifier: Apache-2.0

package initramfs

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"sort"
	"strings"
	"time"

	"github.com/u-root/mkuimage/cpio"

	"toebox/images/initramfs/layout"
	"toebox/images/toolchain"
)

const (
	align = 512 // archives start at multiples of it
	keep  = 8   // images left in the cache: tests use several at once
)

// A File goes into the archive.
type File struct {
	Path string // without leading slash
	Mode fs.FileMode
	Data []byte
	Link string // target, for a symbolic link
}

// Modules turns kernel modules into files that load in the order of their names.
func Modules(modules []toolchain.Module) []File {
	var files []File
	for i, m := range modules {
		files = append(files, File{Path: fmt.Sprintf("%s/%02d-%s.ko", layout.ModuleDir, i, m.Name), Mode: 0o644, Data: m.Data})
	}
	return files
}

// Write writes files as one archive, with the directories they need.
func Write(w io.Writer, files []File) error {
	files = slices.Clone(files)
	sort.SliceStable(files, func(i, j int) bool { return files[i].Path < files[j].Path })
	rw := cpio.Newc.Writer(w)
	// The kernel opens its console before init can mount /dev.
	records := []cpio.Record{
		cpio.Directory("dev", 0o755), cpio.CharDev("dev/console", 0o600, 5, 1),
	}
	have := map[string]bool{"dev": true}
	for _, f := range files {
		if !fs.ValidPath(f.Path) {
			return fmt.Errorf("initramfs: %q is no path", f.Path)
		}
		var parents []string
		for d := path.Dir(f.Path); d != "." && !have[d]; d = path.Dir(d) {
			have[d] = true
			parents = append(parents, d)
		}
		slices.Reverse(parents)
		for _, d := range parents {
			records = append(records, cpio.Directory(d, 0o755))
		}
		switch {
		case f.Mode.IsDir():
			if !have[f.Path] {
				have[f.Path] = true
				records = append(records, cpio.Directory(f.Path, uint64(f.Mode.Perm())))
			}
		case f.Link != "":
			records = append(records, cpio.Symlink(f.Path, f.Link))
		default:
			records = append(records, cpio.StaticRecord(f.Data, cpio.Info{
				Name: f.Path, Mode: cpio.S_IFREG | uint64(f.Mode.Perm()), FileSize: uint64(len(f.Data)),
			}))
		}
	}
	for i, r := range records {
		r.Ino, r.MTime = uint64(i+1), 0
		if err := rw.WriteRecord(r); err != nil {
			return fmt.Errorf("initramfs: %s: %w", r.Name, err)
		}
	}
	if err := cpio.WriteTrailer(rw); err != nil {
		return fmt.Errorf("initramfs: %w", err)
	}
	return nil
}

// Image returns the path of an image made of base and files, written only if the
// cache has none with these contents.
func Image(c Config, base string, files []File) (string, error) {
	var over bytes.Buffer
	if err := Write(&over, files); err != nil {
		return "", err
	}
	b, err := os.ReadFile(base)
	if err != nil {
		return "", fmt.Errorf("initramfs: %w", err)
	}
	b = append(b, make([]byte, -len(b)&(align-1))...)
	h := sha256.New()
	h.Write(b)            //nolint:errcheck // cannot fail
	h.Write(over.Bytes()) //nolint:errcheck // cannot fail
	dir := filepath.Join(c.CacheDir, "initramfs")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", fmt.Errorf("initramfs: %w", err)
	}
	name := filepath.Join(dir, hex.EncodeToString(h.Sum(nil))+".cpio")
	// Comparing costs some milliseconds; a name alone says nothing of a killed run.
	if old, err := os.ReadFile(name); err == nil && len(old) == len(b)+over.Len() &&
		bytes.Equal(old[:len(b)], b) && bytes.Equal(old[len(b):], over.Bytes()) {
		now := time.Now()
		os.Chtimes(name, now, now) //nolint:errcheck // only its place in line for removal
		return name, nil
	}
	tmp, err := os.CreateTemp(dir, "tmp-*.part")
	if err != nil {
		return "", fmt.Errorf("initramfs: %w", err)
	}
	defer os.Remove(tmp.Name()) //nolint:errcheck // gone already when all went well
	_, err1 := tmp.Write(b)
	_, err2 := tmp.Write(over.Bytes())
	if err := errors.Join(err1, err2, tmp.Close()); err != nil {
		return "", fmt.Errorf("initramfs: %w", err)
	}
	if err := os.Rename(tmp.Name(), name); err != nil {
		return "", fmt.Errorf("initramfs: %w", err)
	}
	prune(dir)
	return name, nil
}

// prune removes all but the newest images, and what killed runs left.
func prune(dir string) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return
	}
	type image struct {
		path string
		time time.Time
	}
	var images []image
	for _, e := range entries {
		st, err := e.Info()
		if err != nil {
			continue
		}
		p := filepath.Join(dir, e.Name())
		if strings.HasSuffix(p, ".part") {
			if time.Since(st.ModTime()) > time.Hour {
				os.Remove(p) //nolint:errcheck // only wasted space if it stays
			}
			continue
		}
		images = append(images, image{p, st.ModTime()})
	}
	sort.Slice(images, func(i, j int) bool { return images[i].time.After(images[j].time) })
	for _, im := range images[min(len(images), keep):] {
		os.Remove(im.path) //nolint:errcheck // only wasted space if it stays
	}
}
