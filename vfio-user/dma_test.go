// SPDX-License-Identifier: Apache-2.0

package vfiouser_test

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	vfiouser "toebox/vfio-user"
	"toebox/vfio-user/vfiousertest"
)

const (
	rd = vfiouser.ProtRead
	wr = vfiouser.ProtWrite
)

// start serves a device and returns its server and a client with memory to be
// reached by message.
func start(t testing.TB, m vfiouser.Memory) (*vfiouser.Server, *vfiouser.Client) {
	cfg := vfiousertest.Config()
	cfg.DMATimeout = time.Minute
	return vfiousertest.Start(t, vfiousertest.NewDevice(cfg), cfg, vfiouser.ClientConfig{Memory: m})
}

// pattern returns n bytes that differ from place to place.
func pattern(n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(i>>12) ^ byte(i*31)
	}
	return b
}

// filled returns a file of guest memory that holds the pattern.
func filled(t testing.TB, n int) *os.File {
	f := vfiousertest.Memory(t, int64(n))
	if _, err := f.WriteAt(pattern(n), 0); err != nil {
		t.Fatal(err)
	}
	return f
}

// mapping is an argument list of Client.Map.
type mapping struct {
	iova, size, offset uint64
	prot               vfiouser.Prot
}

func mapAll(t testing.TB, c *vfiouser.Client, f *os.File, maps ...mapping) {
	t.Helper()
	for _, m := range maps {
		if err := c.Map(m.iova, m.size, m.offset, m.prot, f); err != nil {
			t.Fatalf("map %+v: %v", m, err)
		}
	}
}

// errno fails the test unless err is a DMAError that starts at iova.
func errno(t *testing.T, what string, err error, iova uint64, want syscall.Errno) {
	t.Helper()
	var e *vfiouser.DMAError
	if !errors.As(err, &e) || e.Errno != want || e.IOVA != iova || !errors.Is(err, want) {
		t.Errorf("%s: %v, want %v at %#x", what, err, want, iova)
	}
}

// TestDMA reads and writes through maps that meet, with holes and rights.
func TestDMA(t *testing.T) {
	srv, c := start(t, nil)
	d := srv.DMA()
	f := filled(t, 1<<20)
	want := pattern(1 << 20)
	before := d.Epoch()
	mapAll(t, c, f,
		mapping{0x10000, 0x10000, 0x8000, rd | wr},
		mapping{0x20000, 0x1000, 0x0, rd | wr}, // meets the first, elsewhere in the file
		mapping{0x21000, 0x1000, 0x1000, rd},   // contiguous with the second, read-only
		mapping{0x30000, 0x1000, 0x50000, wr},  // beyond a hole, write-only
		mapping{0xffff_ffff_ffff_f000, 0x1000, 0x3000, rd | wr},
	)
	if d.Epoch() == before {
		t.Error("a map does not change the epoch")
	}
	b := make([]byte, 0x12000)
	if err := d.Read(0x10000, b); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(b, slices.Concat(want[0x8000:0x18000], want[:0x2000])) {
		t.Error("read over three maps differs")
	}
	errno(t, "read into the hole", d.Read(0x21ff0, make([]byte, 0x20)), 0x22000, syscall.EFAULT)
	errno(t, "read before the first", d.Read(0xffff, make([]byte, 1)), 0xffff, syscall.EFAULT)
	errno(t, "read of write-only", d.Read(0x30000, make([]byte, 1)), 0x30000, syscall.EACCES)
	errno(t, "write into read-only", d.Write(0x20ffe, []byte("abcd")), 0x21000, syscall.EACCES)
	got := make([]byte, 4)
	if _, err := f.ReadAt(got, 0xffe); err != nil || string(got[:2]) != "ab" || !bytes.Equal(got[2:], want[0x1000:0x1002]) {
		t.Errorf("write up to read-only left %x, %v", got, err)
	}
	if err := d.Write(0x30ffc, []byte("wxyz")); err != nil {
		t.Error(err)
	}
	errno(t, "write past the end", d.Write(0x30ffc, []byte("wxyz!")), 0x31000, syscall.EFAULT)
	if err := d.Read(^uint64(3), got); err != nil || !bytes.Equal(got, want[0x3ffc:0x4000]) {
		t.Errorf("read of the last bytes: %x, %v", got, err)
	}
	errno(t, "read beyond 2^64", d.Read(^uint64(3), make([]byte, 5)), ^uint64(3), syscall.EFAULT)
	if err := errors.Join(d.Read(5, nil), d.Write(5, nil), d.View(5, 0, rd, nil)); err != nil {
		t.Errorf("nothing at all: %v", err)
	}
	for _, tt := range []struct {
		iova, n uint64
		prot    vfiouser.Prot
		want    bool
	}{
		{0x10000, 0x12000, rd, true}, {0x10000, 0x12001, rd, false}, {0x10000, 0x11000, rd | wr, true},
		{0x10000, 0x11001, wr, false}, {0xffff, 1, rd, false}, {0x30000, 0x1000, wr, true}, {0x30000, 1, rd, false},
		{^uint64(0), 1, rd, true}, {^uint64(0), 2, rd, false}, {0, 0, rd, true}, {0x10000, ^uint64(0), rd, false},
	} {
		if got := d.Backed(tt.iova, tt.n, tt.prot); got != tt.want {
			t.Errorf("Backed(%#x, %#x, %d) = %v", tt.iova, tt.n, tt.prot, got)
		}
	}
	epoch := d.Epoch()
	if n, err := c.Unmap(0x10000, 0x11000); n != 0x11000 || err != nil || d.Epoch() == epoch {
		t.Errorf("unmap: %#x, %v", n, err)
	}
	errno(t, "read of the unmapped", d.Read(0x20000, got), 0x20000, syscall.EFAULT)
}

// TestGeneration: a range has another generation when a part of it was mapped anew,
// and none while a part is not mapped.
func TestGeneration(t *testing.T) {
	srv, c := start(t, nil)
	d := srv.DMA()
	f := filled(t, 0x4000)
	mapAll(t, c, f, mapping{0x1000, 0x1000, 0, rd}, mapping{0x2000, 0x1000, 0x1000, rd | wr}, mapping{0xffff_ffff_ffff_f000, 0x1000, 0x2000, rd})
	both, first := d.Generation(0x1ff0, 0x20), d.Generation(0x1000, 0x1000)
	if both == 0 || first == 0 || d.Generation(0x1fff, 1) != first {
		t.Fatalf("generations %d and %d", both, first)
	}
	if n := d.Generation(0xffff_ffff_ffff_f000, 0x1000); n == 0 {
		t.Error("the last page has no generation")
	}
	for _, r := range [][2]uint64{{0xfff, 1}, {0x2fff, 2}, {0x1000, 1 << 63}, {0xffff_ffff_ffff_ff00, 0x101}} {
		if n := d.Generation(r[0], r[1]); n != 0 {
			t.Errorf("generation of %#x bytes at %#x is %d", r[1], r[0], n)
		}
	}
	remap := func(iova, offset uint64) {
		t.Helper()
		if _, err := c.Unmap(iova, 0x1000); err != nil {
			t.Fatal(err)
		}
		if n := d.Generation(0x1ff0, 0x20); n != 0 {
			t.Errorf("generation %d while a part is not mapped", n)
		}
		mapAll(t, c, f, mapping{iova, 0x1000, offset, rd | wr})
		if n := d.Generation(0x1ff0, 0x20); n <= both {
			t.Errorf("generation %d after %d", n, both)
		}
		both = d.Generation(0x1ff0, 0x20)
	}
	remap(0x2000, 0x1000)
	if n := d.Generation(0x1000, 0x1000); n != first {
		t.Errorf("generation of the page that stayed is %d, was %d", n, first)
	}
	remap(0x1000, 0)
	remap(0x2000, 0x1000)
}

// TestUnmapCounts tells unmaps that find just what they name, parts of it, and
// nothing.
func TestUnmapCounts(t *testing.T) {
	srv, c := start(t, nil)
	mapAll(t, c, vfiousertest.Memory(t, 0x4000), mapping{0x1000, 0x1000, 0, rd}, mapping{0x2000, 0x1000, 0x1000, rd},
		mapping{0x8000, 0x1000, 0x2000, rd}, mapping{0xa000, 0x1000, 0x3000, rd})
	for _, tt := range []struct{ addr, size, removed, void, wide uint64 }{
		{0x1000, 0x2000, 0x2000, 0, 0}, // two maps, to the byte
		{0x1000, 0x2000, 0, 1, 0},      // again
		{0x8000, 0x8000, 0x2000, 1, 1}, // a power of two around two maps
		{0, 1 << 63, 0, 2, 1},
	} {
		n, err := c.Unmap(tt.addr, tt.size)
		s := srv.Stats()
		if n != tt.removed || err != nil || s.DMAUnmapsVoid != tt.void || s.DMAUnmapsWide != tt.wide {
			t.Errorf("unmap(%#x, %#x) = %#x, %v; counts %d void, %d wide; want %+v", tt.addr, tt.size, n, err, s.DMAUnmapsVoid, s.DMAUnmapsWide, tt)
		}
	}
	if s := srv.Stats(); s.DMAUnmaps != 4 || s.DMAMapped != 0 {
		t.Errorf("%d unmaps, %d maps left", s.DMAUnmaps, s.DMAMapped)
	}
}

// TestView lends memory in pieces.
func TestView(t *testing.T) {
	srv, c := start(t, nil)
	d := srv.DMA()
	f := filled(t, 1<<20)
	want := pattern(1 << 20)
	// Four single pages that follow each other in the file too, then one that
	// does not, then a big one.
	mapAll(t, c, f, mapping{0x0000, 0x1000, 0x4000, rd | wr}, mapping{0x1000, 0x1000, 0x5000, rd | wr}, mapping{0x2000, 0x1000, 0x6000, rd | wr},
		mapping{0x3000, 0x1000, 0x7000, rd | wr}, mapping{0x4000, 0x1000, 0x0, rd | wr}, mapping{0x5000, 0x40000, 0x10000, rd})
	if err := c.Map(0x100000, 0x1000, 0, rd|wr, nil); err != nil {
		t.Fatal(err)
	}
	var got []byte
	var sizes []int
	collect := func(b []byte) error {
		got = append(got, b...)
		sizes = append(sizes, len(b))
		if cap(b) != len(b) {
			t.Errorf("piece of %d bytes reaches %d", len(b), cap(b))
		}
		return nil
	}
	if err := d.View(0x800, 0x800+0x4000+0x20800, rd, collect); err != nil {
		t.Fatal(err)
	}
	if w := []int{0x3800, 0x1000, 0x10000, 0x10000, 0x800}; !slices.Equal(sizes, w) {
		t.Errorf("pieces %#x, want %#x", sizes, w)
	}
	if !bytes.Equal(got, slices.Concat(want[0x4800:0x8000], want[:0x1000], want[0x10000:0x30800])) {
		t.Error("pieces differ from the file")
	}
	if err := d.View(0x10, 4, wr, func(b []byte) error { copy(b, "abcd"); return nil }); err != nil {
		t.Error(err)
	}
	four := make([]byte, 4)
	if _, err := f.ReadAt(four, 0x4010); err != nil || string(four) != "abcd" {
		t.Errorf("file holds %q, %v", four, err)
	}
	none := func([]byte) error { t.Error("called"); return nil }
	errno(t, "view of nothing", d.View(0x60000, 4, rd, none), 0x60000, syscall.EFAULT)
	errno(t, "view for writing", d.View(0x5000, 4, wr, none), 0x5000, syscall.EACCES)
	errno(t, "view without a file", d.View(0x100000, 4, rd, none), 0x100000, syscall.ENOTSUP)
	errno(t, "negative length", d.View(0, -1, rd, none), 0, syscall.EINVAL)
	sizes = nil
	errno(t, "view that runs out", d.View(0x44ffc, 8, rd, collect), 0x45000, syscall.EFAULT)
	if len(sizes) != 1 {
		t.Errorf("%d pieces before the end", len(sizes))
	}
	mine := fmt.Errorf("mine")
	n := 0
	if err := d.View(0, 0x6000, rd, func([]byte) error { n++; return mine }); err != mine || n != 1 {
		t.Errorf("view with an error of the callback: %v after %d pieces", err, n)
	}
	func() {
		defer func() {
			if r := recover(); r != "mine" {
				t.Errorf("recovered %v", r)
			}
		}()
		d.View(0, 4, rd, func([]byte) error { panic("mine") })
	}()
	func() {
		defer func() {
			if r, ok := recover().(error); !ok || !strings.Contains(r.Error(), "nil pointer") && !strings.Contains(r.Error(), "invalid memory address") {
				t.Errorf("recovered %v", r)
			}
		}()
		d.View(0, 4, rd, func([]byte) error { var p *int; *p = 1; return nil })
	}()
	// A fault elsewhere is not the guest's doing.
	other := vfiousertest.Memory(t, 4096)
	mem, err := unix.Mmap(int(other.Fd()), 0, 4096, unix.PROT_READ, unix.MAP_SHARED)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Munmap(mem)
	if err := other.Truncate(0); err != nil {
		t.Fatal(err)
	}
	func() {
		defer func() {
			if _, ok := recover().(interface{ Addr() uintptr }); !ok {
				t.Error("a fault outside the view is taken for one inside")
			}
		}()
		d.View(0, 4, rd, func(b []byte) error { b[0] = mem[0]; return nil })
	}()
	// None of these has left a reader behind.
	if n, err := c.UnmapAll(); err != nil || n != 0x46000 {
		t.Errorf("unmap: %#x, %v", n, err)
	}
}

// TestShrunkenFile accesses memory whose file has been cut short: an error, no
// crash, and other memory goes on working.
func TestShrunkenFile(t *testing.T) {
	srv, c := start(t, nil)
	d := srv.DMA()
	f := filled(t, 0x10000)
	mapAll(t, c, f, mapping{0, 0x10000, 0, rd | wr})
	if err := f.Truncate(0x4000); err != nil {
		t.Fatal(err)
	}
	b := make([]byte, 0x1000)
	if err := d.Read(0x3000, b); err != nil {
		t.Error(err)
	}
	errno(t, "read", d.Read(0x4000, b), 0x4000, syscall.EFAULT)
	errno(t, "read across", d.Read(0x3fff, b), 0x3fff, syscall.EFAULT)
	errno(t, "write", d.Write(0x8123, b[:3]), 0x8123, syscall.EFAULT)
	errno(t, "view", d.View(0x5000, 8, rd|wr, func(b []byte) error {
		b[4]++
		t.Error("got past a fault")
		return nil
	}), 0x5000, syscall.EFAULT)
	if err := f.Truncate(0x10000); err != nil {
		t.Fatal(err)
	}
	if err := d.Read(0x4000, b); err != nil || !bytes.Equal(b, make([]byte, len(b))) {
		t.Errorf("read after the file grew back: %v", err)
	}
	if err := c.Map(0x20000, 0x11000, 0, rd, f); !errors.Is(err, syscall.EINVAL) {
		t.Errorf("map beyond the file: %v", err)
	}
	if n, err := c.UnmapAll(); err != nil || n != 0x10000 {
		t.Errorf("unmap: %#x, %v", n, err)
	}
}

// mapped counts the mmaps of guest memory in this process.
func mapped(t *testing.T) int {
	b, err := os.ReadFile("/proc/self/maps")
	if err != nil {
		t.Fatal(err)
	}
	return strings.Count(string(b), "memfd:vfiousertest")
}

// TestFiles checks that there is one mmap for each file and access mode, that
// it grows with the file, and that files come and go.
func TestFiles(t *testing.T) {
	srv, c := start(t, nil)
	d := srv.DMA()
	f := filled(t, 0x10000)
	for i := range uint64(16) {
		mapAll(t, c, f, mapping{i * 0x2000, 0x1000, (15 - i) * 0x1000, rd | wr})
	}
	if n := mapped(t); n != 1 {
		t.Errorf("%d mmaps of one file", n)
	}
	// The same file, read-only: a mapping of its own.
	ro, err := os.Open(fmt.Sprintf("/proc/self/fd/%d", f.Fd()))
	if err != nil {
		t.Fatal(err)
	}
	defer ro.Close()
	mapAll(t, c, ro, mapping{0x100000, 0x1000, 0, rd})
	if n := mapped(t); n != 2 {
		t.Errorf("%d mmaps of one file with two access modes", n)
	}
	if err := c.Map(0x110000, 0x1000, 0, rd|wr, ro); !errors.Is(err, syscall.EACCES) {
		t.Errorf("map for writing of a read-only file: %v", err)
	}
	wo, err := os.OpenFile(filepath.Join(t.TempDir(), "w"), os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer wo.Close()
	if err := errors.Join(wo.Truncate(4096), c.Map(0x110000, 0x1000, 0, rd, wo)); !errors.Is(err, syscall.EACCES) {
		t.Errorf("map of a write-only file: %v", err)
	}
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	defer w.Close()
	if err := c.Map(0x110000, 0x1000, 0, rd, r); err == nil {
		t.Error("map of a pipe succeeds")
	}
	zero, err := os.OpenFile("/dev/zero", os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer zero.Close()
	mapAll(t, c, zero, mapping{0x110000, 0x1000, 0, rd | wr}, mapping{0x120000, 0x1000, 0, rd | wr})
	b := make([]byte, 4)
	if err := errors.Join(d.Write(0x110000, []byte("1234")), d.Read(0x120000, b)); err != nil || string(b) == "1234" {
		t.Errorf("two maps of a device are one: %v", err)
	}
	// Growth keeps what is mapped.
	if err := f.Truncate(0x40000); err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteAt([]byte("tail"), 0x3f000); err != nil {
		t.Fatal(err)
	}
	mapAll(t, c, f, mapping{0x200000, 0x1000, 0x3f000, rd})
	if n := mapped(t); n != 2 {
		t.Errorf("%d mmaps after growth", n)
	}
	if err := d.Read(0x200000, b); err != nil || string(b) != "tail" {
		t.Errorf("read %q, %v", b, err)
	}
	if err := d.Read(0x2000, b); err != nil || !bytes.Equal(b, pattern(0x10000)[0xe000:0xe004]) {
		t.Errorf("read %x, %v after growth", b, err)
	}
	// A window that shrank in the file but not in the maps.
	if err := f.Truncate(0x10000); err != nil {
		t.Fatal(err)
	}
	if n, err := c.UnmapAll(); n != 0x14000 || err != nil {
		t.Errorf("unmap: %#x, %v", n, err)
	}
	// Idle files are kept, but not many.
	for range 20 {
		mapAll(t, c, vfiousertest.Memory(t, 0x1000), mapping{0, 0x1000, 0, rd})
		if _, err := c.UnmapAll(); err != nil {
			t.Fatal(err)
		}
	}
	if n := mapped(t); n > 8 {
		t.Errorf("%d idle mmaps", n)
	}
	c.Close()
	waitFor(t, "the maps to go", func() bool { return mapped(t) == 0 })
}

// waitFor polls until cond holds.
func waitFor(t *testing.T, what string, cond func() bool) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); !cond(); {
		if time.Now().After(deadline) {
			t.Fatal("waited in vain for " + what)
		}
		<-time.After(time.Millisecond)
	}
}

// TestUnmapWaits checks that the reply to an unmap waits for a reader that
// began before, and for none that began after.
func TestUnmapWaits(t *testing.T) {
	srv, c := start(t, nil)
	d := srv.DMA()
	f := filled(t, 0x2000)
	mapAll(t, c, f, mapping{0, 0x1000, 0, rd}, mapping{0x1000, 0x1000, 0x1000, rd})
	inside, leave := make(chan struct{}), make(chan struct{})
	var ended atomic.Bool
	var wg sync.WaitGroup
	wg.Go(func() {
		d.View(0, 4, rd, func([]byte) error {
			close(inside)
			<-leave
			ended.Store(true)
			return nil
		})
	})
	<-inside
	epoch := d.Epoch()
	result := make(chan error, 1)
	go func() {
		_, err := c.Unmap(0, 0x1000)
		if err == nil && !ended.Load() {
			err = errors.New("unmap did not wait")
		}
		result <- err
	}()
	waitFor(t, "the map to go", func() bool { return d.Epoch() != epoch })
	// New readers have the new map while the unmap waits, and do not hold it up.
	beside(func(int) {
		var b [4]byte
		errno(t, "read of the unmapped", d.Read(0, b[:]), 0, syscall.EFAULT)
		if err := d.Read(0x1000, b[:]); err != nil {
			t.Error(err)
		}
	}, func() {})
	select {
	case err := <-result:
		t.Fatalf("unmap returned %v with a reader inside", err)
	default:
	}
	close(leave)
	if err := <-result; err != nil {
		t.Error(err)
	}
	wg.Wait()
}

// TestDMARace maps, unmaps and grows while readers run; the race detector and
// the memory itself judge.
func TestDMARace(t *testing.T) {
	srv, c := start(t, nil)
	d := srv.DMA()
	f := filled(t, 0x10000)
	want := pattern(0x10000)
	var good atomic.Int64
	work := func(i int) {
		var b [64]byte
		a := uint64(i) * 0x1100
		if err := d.Read(a, b[:]); err == nil {
			if !bytes.Equal(b[:], want[a:a+64]) {
				t.Error("read something else")
			}
			good.Add(1)
		} else if !errors.Is(err, syscall.EFAULT) {
			t.Error(err)
		}
	}
	for i := range 100 {
		beside(work, func() {
			mapAll(t, c, f, mapping{0, 0x8000, 0, rd}, mapping{0x8000, 0x8000, 0x8000, rd})
		})
		if i%10 == 0 {
			size := int64(0x10000 + i*0x1000)
			if err := f.Truncate(size); err != nil {
				t.Fatal(err)
			}
			beside(work, func() { mapAll(t, c, f, mapping{0x100000, 0x1000, uint64(size) - 0x1000, rd}) })
		}
		beside(work, func() {
			if _, err := c.Unmap(0, 1<<32); err != nil {
				t.Error(err)
			}
		})
	}
	if good.Load() == 0 {
		t.Error("no read ever found a map")
	}
}
