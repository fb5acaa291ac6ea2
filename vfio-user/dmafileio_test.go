// SPDX-License-Identifier: Apache-2.0

package vfiouser_test

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	vfiouser "toebox/vfio-user"
	"toebox/vfio-user/vfiousertest"
)

// TestFileIO reaches guest memory by pread and pwrite, and across to other kinds.
func TestFileIO(t *testing.T) {
	m := &ramMemory{b: pattern(0x10000)}
	srv, c := start(t, m)
	d := srv.DMA()
	f := filled(t, 0x20000)
	w := pattern(0x20000)
	before := openFDs(t)
	// By mmap, by file I/O at an odd offset, the same continued, by message.
	if err := errors.Join(c.Map(0, 0x1000, 0, rd|wr, f), c.MapFileIO(0x1000, 0x11000, 0x123, rd|wr, f),
		c.MapFileIO(0x12000, 0x1000, 0x11123, rd, f), c.Map(0x13000, 0x1000, 0, rd|wr, nil)); err != nil {
		t.Fatal(err)
	}
	if n := openFDs(t) - before; n != 1 {
		t.Errorf("%d descriptors for two maps of a file", n)
	}
	m.mu.Lock()
	m.b = append(make([]byte, 0x13000), m.b...)
	m.mu.Unlock()
	b := make([]byte, 0x12ff0)
	if err := d.Read(0xff8, b); err != nil || !bytes.Equal(b, slices.Concat(w[0xff8:0x1000], w[0x123:0x12123], w[:0xfe8])) {
		t.Errorf("read over all kinds: %v", err)
	}
	if err := d.Write(0x1ffe, []byte("abcd")); err != nil {
		t.Error(err)
	}
	got := make([]byte, 4)
	if _, err := f.ReadAt(got, 0x1121); err != nil || string(got) != "abcd" {
		t.Errorf("the file has %q, %v", got, err)
	}
	if err := d.Read(0x1ffe, got); err != nil || string(got) != "abcd" {
		t.Errorf("read %q, %v", got, err)
	}
	errno(t, "write to read-only", d.Write(0x11fff, []byte("ab")), 0x12000, syscall.EACCES)
	errno(t, "view", d.View(0x1000, 8, rd, func([]byte) error { t.Error("lent"); return nil }), 0x1000, syscall.ENOTSUP)
	if d.Backed(0x1000, 1, rd) || d.Backed(0xfff, 2, rd) || !d.Backed(0xfff, 1, rd) {
		t.Error("what is reached by file I/O can be lent")
	}
	// The file shrinks; a write must not make it grow.
	if err := f.Truncate(0x2000); err != nil {
		t.Fatal(err)
	}
	errno(t, "read of what is cut off", d.Read(0x4000, got), 0x4000, syscall.EFAULT)
	errno(t, "read across the end", d.Read(0x2edd-2, got), 0x2edd, syscall.EFAULT)
	if n, err := c.Unmap(0x1000, 0x12000); n != 0x12000 || err != nil {
		t.Errorf("unmap: %#x, %v", n, err)
	}
	errno(t, "read after the unmap", d.Read(0x1000, got), 0x1000, syscall.EFAULT)
	// More files than we keep descriptors for.
	var n uint64
	var err error
	dir := t.TempDir()
	for ; n < 300 && err == nil; n++ {
		var g *os.File
		if g, err = os.Create(filepath.Join(dir, fmt.Sprint(n))); err != nil {
			t.Fatal(err)
		}
		if err = g.Truncate(0x1000); err != nil {
			t.Fatal(err)
		}
		err = c.MapFileIO(1<<32+n<<12, 0x1000, 0, rd|wr, g)
		g.Close()
	}
	if !errors.Is(err, syscall.ENOSPC) || n < 200 || n > 257 {
		t.Errorf("file %d: %v", n, err)
	}
	if _, err := c.UnmapAll(); err != nil {
		t.Error(err)
	}
	if n := openFDs(t) - before; n > 8 {
		t.Errorf("%d descriptors are kept without a map", n)
	}
	c.Close()
	waitFor(t, "the descriptors to be closed", func() bool { return openFDs(t) < before })
}

// TestFilesOfAllKinds maps what is no memory, in both ways: an error each time, and
// the session goes on.
func TestFilesOfAllKinds(t *testing.T) {
	srv, c := start(t, nil)
	d := srv.DMA()
	dir := t.TempDir()
	plain := filepath.Join(dir, "plain")
	if err := os.WriteFile(plain, make([]byte, 0x1000), 0o600); err != nil {
		t.Fatal(err)
	}
	open := func(path string, flags int) *os.File {
		fd, err := unix.Open(path, flags|unix.O_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		f := os.NewFile(uintptr(fd), path)
		t.Cleanup(func() { f.Close() })
		return f
	}
	pipe, other, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer pipe.Close()
	defer other.Close()
	conn, _ := vfiousertest.Pair(t)
	socket, err := conn.File()
	if err != nil {
		t.Fatal(err)
	}
	defer socket.Close()
	// sealed returns a file that is sealed.
	sealed := func(seals int) *os.File {
		fd, err := unix.MemfdCreate("vfiousertest", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
		if err == nil {
			err = unix.Ftruncate(fd, 0x1000)
		}
		if err == nil {
			_, err = unix.FcntlInt(uintptr(fd), unix.F_ADD_SEALS, seals)
		}
		if err != nil {
			t.Fatal(err)
		}
		f := os.NewFile(uintptr(fd), "sealed")
		t.Cleanup(func() { f.Close() })
		return f
	}
	const ok = syscall.Errno(0)
	before := openFDs(t)
	for _, tt := range []struct {
		name       string
		f          *os.File
		prot       vfiouser.Prot
		mmap, file syscall.Errno
		write      syscall.Errno // of a write to the map by file I/O
	}{
		{"file", open(plain, unix.O_RDWR), rd | wr, ok, ok, ok},
		{"pipe", pipe, rd, syscall.ENODEV, syscall.EINVAL, 0},
		{"write end of a pipe", other, wr, syscall.EACCES, syscall.EACCES, 0},
		{"socket", socket, rd | wr, syscall.ENODEV, syscall.EINVAL, 0},
		{"folder", open(dir, unix.O_RDONLY), rd, syscall.ENODEV, syscall.EINVAL, 0},
		{"/dev/null", open("/dev/null", unix.O_RDWR), rd | wr, syscall.ENODEV, syscall.EINVAL, 0},
		{"eventfd", eventFile(t), rd | wr, syscall.ENODEV, syscall.EINVAL, 0},
		{"name only", open(plain, unix.O_PATH), rd, syscall.EBADF, syscall.EBADF, 0},
		{"read-only", open(plain, unix.O_RDONLY), rd | wr, syscall.EACCES, syscall.EACCES, 0},
		{"write-only", open(plain, unix.O_WRONLY), wr, syscall.EACCES, syscall.EACCES, 0},
		{"appended to", open(plain, unix.O_RDWR|unix.O_APPEND), rd | wr, ok, syscall.EINVAL, 0},
		{"sealed against writes", sealed(unix.F_SEAL_WRITE), rd | wr, syscall.EPERM, ok, syscall.EPERM},
		{"sealed against writes, to be read", sealed(unix.F_SEAL_WRITE), rd, syscall.EPERM, ok, syscall.EACCES},
		{"sealed against changes of size", sealed(unix.F_SEAL_SHRINK | unix.F_SEAL_GROW), rd | wr, ok, ok, ok},
		{"empty", vfiousertest.Memory(t, 0), rd, syscall.EINVAL, syscall.EINVAL, 0},
	} {
		if err := c.Map(0x1000, 0x1000, 0, tt.prot, tt.f); (err == nil) != (tt.mmap == ok) || tt.mmap != ok && !errors.Is(err, tt.mmap) {
			t.Errorf("%s by mmap: %v, want %v", tt.name, err, tt.mmap)
		}
		err := c.MapFileIO(0x2000, 0x1000, 0, tt.prot, tt.f)
		if (err == nil) != (tt.file == ok) || tt.file != ok && !errors.Is(err, tt.file) {
			t.Errorf("%s by file I/O: %v, want %v", tt.name, err, tt.file)
		}
		// The client needs its descriptor no more.
		tt.f.Close()
		b := make([]byte, 16)
		if tt.mmap == ok {
			if err := errors.Join(d.Read(0x1000, b), d.Write(0x1ff0, b)); err != nil {
				t.Errorf("%s by mmap: %v", tt.name, err)
			}
		}
		if tt.file == ok {
			if err := d.Read(0x2000, b); err != nil {
				t.Errorf("%s by file I/O: %v", tt.name, err)
			}
			err := d.Write(0x2ff0, b)
			if (err == nil) != (tt.write == ok) || tt.write != ok && !errors.Is(err, tt.write) {
				t.Errorf("%s: write by file I/O: %v, want %v", tt.name, err, tt.write)
			}
		}
		if _, err := c.UnmapAll(); err != nil {
			t.Errorf("%s: unmap: %v", tt.name, err)
		}
	}
	c.Close()
	waitFor(t, "the end", func() bool { return srv.Stats().DMAMapped == 0 && openFDs(t) < before })
}

// TestAppendedToShared: a descriptor open to be appended to is not taken for
// reading either, since maps for writing of the same file would come to use it.
func TestAppendedToShared(t *testing.T) {
	_, c := vfiousertest.Start(t, quiet{}, vfiousertest.Config(), vfiouser.ClientConfig{})
	path := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(path, make([]byte, 0x1000), 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(path, os.O_RDWR|os.O_APPEND, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := c.MapFileIO(0x1000, 0x1000, 0, vfiouser.ProtRead, f); !errors.Is(err, syscall.EINVAL) {
		t.Errorf("%v, want EINVAL", err)
	}
}
