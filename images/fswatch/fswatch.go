// SPDX-License-Identifier: Apache-2.0

package fswatch

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

const (
	eventHead = unix.SizeofInotifyEvent
	// quiet is how long nothing more may be saved for a save to be over.
	quiet = 15 * time.Millisecond
	// patience bounds that wait: something may write without end.
	patience = 500 * time.Millisecond
	// written is what happens to a file that is saved in whatever way, removed, or
	// put in place.
	written = unix.IN_CLOSE_WRITE | unix.IN_MOVED_TO | unix.IN_MOVED_FROM | unix.IN_DELETE
)

// A Change is a save.
type Change struct {
	Files []string  // sorted; empty if the kernel could not say which
	Time  time.Time // of the first
}

// A Watcher watches directories.
type Watcher struct {
	f   *os.File // the inotify descriptor
	buf []byte

	mu   sync.Mutex
	dirs map[int]string // by watch descriptor
}

// New returns a watcher of nothing yet.
func New() (*Watcher, error) {
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return nil, fmt.Errorf("fswatch: %w", err)
	}
	return &Watcher{f: os.NewFile(uintptr(fd), "inotify"), buf: make([]byte, 64<<10), dirs: map[int]string{}}, nil
}

// Set makes dirs the directories that are watched. One that cannot be is an error, and
// the others are watched.
func (w *Watcher) Set(dirs []string) error {
	rc, err := w.f.SyscallConn()
	if err != nil {
		return fmt.Errorf("fswatch: %w", err)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	var errs []error
	now := map[int]string{}
	err = rc.Control(func(fd uintptr) {
		for _, dir := range dirs {
			wd, err := unix.InotifyAddWatch(int(fd), dir, written|unix.IN_ONLYDIR)
			if err != nil {
				errs = append(errs, fmt.Errorf("fswatch: %s: %w", dir, err))
				continue
			}
			now[wd] = dir
		}
		for wd := range w.dirs {
			if _, ok := now[wd]; !ok {
				unix.InotifyRmWatch(int(fd), uint32(wd)) //nolint:errcheck // its directory may be gone
			}
		}
	})
	w.dirs = now
	return errors.Join(append(errs, err)...)
}

// Next waits for a save.
func (w *Watcher) Next(ctx context.Context) (Change, error) {
	stop := context.AfterFunc(ctx, func() { w.f.SetReadDeadline(time.Unix(1, 0)) }) //nolint:errcheck // inotify has deadlines
	defer stop()
	var c Change
	for {
		deadline := time.Time{}
		if !c.Time.IsZero() {
			if deadline = time.Now().Add(quiet); deadline.After(c.Time.Add(patience)) {
				deadline = c.Time.Add(patience)
			}
		}
		w.f.SetReadDeadline(deadline) //nolint:errcheck // inotify has deadlines
		if ctx.Err() != nil {
			return Change{}, context.Cause(ctx)
		}
		n, err := w.f.Read(w.buf)
		switch {
		case ctx.Err() != nil:
			return Change{}, context.Cause(ctx)
		case errors.Is(err, os.ErrDeadlineExceeded) && c.Time.IsZero():
			continue // that of a call before
		case errors.Is(err, os.ErrDeadlineExceeded):
			slices.Sort(c.Files)
			c.Files = slices.Compact(c.Files)
			return c, nil
		case err != nil:
			return Change{}, fmt.Errorf("fswatch: %w", err)
		}
		files, lost := w.parse(w.buf[:n])
		if (len(files) > 0 || lost) && c.Time.IsZero() {
			c.Time = time.Now()
		}
		c.Files = append(c.Files, files...)
	}
}

// parse returns the source files that events are about, and whether the kernel had to
// drop some.
func (w *Watcher) parse(b []byte) (files []string, lost bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for len(b) >= eventHead {
		// struct inotify_event: wd, mask, cookie, len, name
		wd := int(int32(binary.NativeEndian.Uint32(b)))
		mask, n := binary.NativeEndian.Uint32(b[4:]), int(binary.NativeEndian.Uint32(b[12:]))
		if n > len(b)-eventHead {
			return files, true
		}
		name := strings.TrimRight(string(b[eventHead:eventHead+n]), "\x00")
		b = b[eventHead+n:]
		if mask&unix.IN_Q_OVERFLOW != 0 {
			lost = true
		}
		dir, ok := w.dirs[wd]
		if ok && mask&written != 0 && source(name) {
			files = append(files, filepath.Join(dir, name))
		}
	}
	return files, lost
}

// source reports whether a program can be built from a file of that name: editors keep
// files of their own beside it, and tests are of no program.
func source(name string) bool {
	if strings.HasPrefix(name, ".") || strings.HasPrefix(name, "_") || strings.HasPrefix(name, "#") || strings.HasSuffix(name, "_test.go") {
		return false
	}
	switch filepath.Ext(name) {
	case ".go", ".s", ".h", ".mod", ".sum":
		return true
	}
	return false
}

// Close ends watching; a Next that waits fails.
func (w *Watcher) Close() error { return w.f.Close() }
