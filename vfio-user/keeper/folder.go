// SPDX-License-Identifier: Apache-2.0

package keeper

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"

	"golang.org/x/sys/unix"
)

// folderPrefix begins the names of the folders in which servers make their sockets.
const folderPrefix = "vfio-user-keeper-"

// folder is one that only this process uses. The lock on it ends with the
// process, so that the next keeper can tell a folder that was left behind.
type folder struct {
	path string
	lock *os.File
}

// newFolder makes a folder and removes those of keepers that were killed.
func newFolder() (*folder, error) {
	left, _ := filepath.Glob(filepath.Join(os.TempDir(), folderPrefix+"*"))
	for _, path := range left {
		if f, err := lockFolder(path); err == nil {
			f.remove()
		}
	}
	for {
		path, err := os.MkdirTemp("", folderPrefix)
		if err != nil {
			return nil, fmt.Errorf("keeper: %w", err)
		}
		f, err := lockFolder(path)
		if err != nil {
			os.Remove(path)
			return nil, fmt.Errorf("keeper: %w", err)
		}
		// Before it was locked another keeper may have taken it for one left behind.
		if _, err := os.Lstat(path); err == nil {
			return f, nil
		}
		f.lock.Close()
	}
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
