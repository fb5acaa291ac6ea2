// SPDX-License-Identifier: Apache-2.0

package keeper

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

const (
	// folderPrefix begins the names of the folders in which servers make their sockets.
	folderPrefix = "vfio-user-keeper-"
	// folderTries is how often a folder is made. It takes another keeper that starts
	// in the same moment each time to make it fail.
	folderTries = 100
)

// folder is one that only this process uses. The lock on it ends with the
// process, so that the next keeper can tell a folder that was left behind.
type folder struct {
	path string
	lock *os.File
}

// newFolder makes a folder and removes those of keepers that were killed.
func newFolder() (*folder, error) {
	// Not by a pattern: the name of the place may hold what patterns are made of.
	entries, _ := os.ReadDir(os.TempDir())
	for _, e := range entries {
		if !e.IsDir() || !strings.HasPrefix(e.Name(), folderPrefix) {
			continue
		}
		if f, err := lockFolder(filepath.Join(os.TempDir(), e.Name())); err == nil {
			f.remove()
		}
	}
	var taken error
	for range folderTries {
		path, err := os.MkdirTemp("", folderPrefix)
		if err != nil {
			return nil, fmt.Errorf("keeper: %w", err)
		}
		// Before it is locked another keeper may take it for one left behind: it has
		// it locked, has removed it, or has removed it while we waited for the lock.
		f, err := lockFolder(path)
		if err == nil {
			if _, err = os.Lstat(path); err == nil {
				return f, nil
			}
			f.lock.Close()
		}
		if !errors.Is(err, unix.EWOULDBLOCK) && !errors.Is(err, unix.ENOENT) {
			os.Remove(path)
			return nil, fmt.Errorf("keeper: %w", err)
		}
		taken = err
	}
	return nil, fmt.Errorf("keeper: %w", taken)
}

// lockFolder fails for a folder that is not ours or in use.
func lockFolder(path string) (*folder, error) {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: path, Err: err}
	}
	f := &folder{path, os.NewFile(uintptr(fd), path)}
	var st unix.Stat_t
	if err = unix.Fstat(fd, &st); err == nil && int(st.Uid) != os.Geteuid() {
		err = unix.EPERM
	}
	if err == nil {
		err = unix.Flock(fd, unix.LOCK_EX|unix.LOCK_NB)
	}
	if err != nil {
		f.lock.Close()
		return nil, &os.PathError{Op: "lock", Path: path, Err: err}
	}
	return f, nil
}

// remove removes the folder with what is in it. It may be called again.
func (f *folder) remove() {
	if f.lock == nil {
		return
	}
	os.RemoveAll(f.path)
	f.lock.Close()
	f.lock = nil
}

// listen returns a listening socket that has no name any more, and what stands
// for its name: the entry of its descriptor in /proc can be connected to.
func (f *folder) listen() (socket, place *os.File, err error) {
	path := filepath.Join(f.path, "l")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"}) // unlinked with the first close
	if err != nil {
		return nil, nil, fmt.Errorf("keeper: %w", err)
	}
	defer l.Close()
	fd, err := unix.Open(path, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("keeper: %w", &os.PathError{Op: "open", Path: path, Err: err})
	}
	place = os.NewFile(uintptr(fd), "/proc/self/fd/"+strconv.Itoa(fd))
	if socket, err = l.File(); err != nil {
		place.Close()
		return nil, nil, fmt.Errorf("keeper: %w", err)
	}
	return socket, place, nil
}
