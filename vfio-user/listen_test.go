// SPDX-License-Identifier: Apache-2.0

package vfiouser_test

import (
	"errors"
	"net"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	vfiouser "toebox/vfio-user"
)

// leave leaves a socket at path that nobody has any more.
func leave(t *testing.T, path string) {
	t.Helper()
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	l.SetUnlinkOnClose(false)
	l.Close()
}

// TestListen takes a free place and one with a left-over, and no other.
func TestListen(t *testing.T) {
	dir := t.TempDir()
	for name, prepare := range map[string]func(t *testing.T, path string){
		"free": func(*testing.T, string) {},
		"left": leave,
	} {
		path := filepath.Join(dir, name)
		prepare(t, path)
		l, err := vfiouser.Listen(path)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		c, err := net.Dial("unix", path)
		if err != nil {
			t.Errorf("%s: %v", name, err)
		} else {
			c.Close()
		}
		l.Close()
		if _, err := os.Lstat(path); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s: the socket remains: %v", name, err)
		}
	}
	for name, prepare := range map[string]func(t *testing.T, path string){
		"in use": func(t *testing.T, path string) {
			l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { l.Close() })
		},
		"not listening yet": func(t *testing.T, path string) {
			fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
			if err == nil {
				t.Cleanup(func() { unix.Close(fd) })
				err = unix.Bind(fd, &unix.SockaddrUnix{Name: path})
			}
			if err != nil {
				t.Fatal(err)
			}
		},
		"datagrams": func(t *testing.T, path string) {
			c, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { c.Close() })
		},
		"file": func(t *testing.T, path string) {
			if err := os.WriteFile(path, []byte("precious"), 0o600); err != nil {
				t.Fatal(err)
			}
		},
		"folder": func(t *testing.T, path string) {
			if err := os.Mkdir(path, 0o700); err != nil {
				t.Fatal(err)
			}
		},
		"link to a left-over": func(t *testing.T, path string) {
			leave(t, path+"x")
			if err := os.Symlink(path+"x", path); err != nil {
				t.Fatal(err)
			}
		},
	} {
		path := filepath.Join(dir, name)
		prepare(t, path)
		before, err := os.Lstat(path)
		if err != nil {
			t.Fatal(err)
		}
		if l, err := vfiouser.Listen(path); !errors.Is(err, syscall.EADDRINUSE) {
			t.Errorf("%s: %v", name, err)
			if err == nil {
				l.Close()
			}
		}
		after, err := os.Lstat(path)
		if err != nil || !os.SameFile(before, after) {
			t.Errorf("%s: is another file now: %v", name, err)
		}
	}
	if _, err := vfiouser.Listen(filepath.Join(dir, "none", "s")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("no folder: %v", err)
	}
}

// TestListenRace has many find the same left-over: one gets the place, and no
// other takes it away again.
func TestListenRace(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	for range 20 {
		leave(t, path)
		var mu sync.Mutex
		var got []*net.UnixListener
		var wg sync.WaitGroup
		for range 8 {
			wg.Go(func() {
				l, err := vfiouser.Listen(path)
				if err != nil {
					if !errors.Is(err, syscall.EADDRINUSE) {
						t.Error(err)
					}
					return
				}
				mu.Lock()
				got = append(got, l)
				mu.Unlock()
			})
		}
		wg.Wait()
		if len(got) != 1 {
			t.Fatalf("%d of 8 have the place", len(got))
		}
		c, err := net.Dial("unix", path)
		if err != nil {
			t.Fatal(err)
		}
		c.Close()
		got[0].Close()
	}
}

// TestListenWaits has another process be about to replace a left-over: Listen waits
// for it, and does not take its socket for the left-over.
func TestListenWaits(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "s")
	leave(t, path)
	other, err := os.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	if err := unix.Flock(int(other.Fd()), unix.LOCK_EX); err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() {
		l, err := vfiouser.Listen(path)
		if err == nil {
			l.Close()
		}
		done <- err
	}()
	waitFor(t, "Listen to come to the lock", func() bool {
		fds, err := os.ReadDir("/proc/self/fd")
		if err != nil {
			t.Fatal(err)
		}
		n := 0
		for _, e := range fds {
			if name, err := os.Readlink("/proc/self/fd/" + e.Name()); err == nil && name == dir {
				n++
			}
		}
		return n == 2 || len(done) > 0
	})
	if err := os.Remove(path); err != nil {
		t.Fatalf("Listen did not wait: %v", err)
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	other.Close() // and with it the lock
	if err := <-done; !errors.Is(err, syscall.EADDRINUSE) {
		t.Errorf("listen: %v", err)
	}
	c, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	c.Close()
}
