// SPDX-License-Identifier: Apache-2.0

package vfiouser_test

import (
	"encoding/hex"
	"errors"
	"io"
	"os"
	"slices"
	"sync"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	vfiouser "toebox/vfio-user"
	"toebox/vfio-user/vfiousertest"
)

const rw = vfiouser.RegionRead | vfiouser.RegionWrite

// inode tells which file a descriptor is for.
func inode(t testing.TB, f *os.File) uint64 {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		t.Fatal(err)
	}
	return st.Ino
}

// areaConfig is a device with BAR1 in one file, BAR2 in two, and BAR3 in one file
// that is not laid out as the region.
func areaConfig(t testing.TB) (cfg vfiouser.Config, a, b *os.File) {
	a, b = vfiousertest.Memory(t, 0x8000), vfiousertest.Memory(t, 0x8000)
	cfg = vfiousertest.Config()
	cfg.Regions[1] = vfiouser.Region{Size: 0x4000, Flags: rw, Areas: []vfiouser.Area{
		{Offset: 0x1000, Size: 0x1000, File: a, FileOffset: 0x3000}, {Offset: 0x2000, Size: 0x2000, File: a, FileOffset: 0x4000},
	}}
	cfg.Regions[2] = vfiouser.Region{Size: 0x4000, Flags: rw, Areas: []vfiouser.Area{
		{Offset: 0, Size: 0x1000, File: b, FileOffset: 0x1000}, {Offset: 0x3000, Size: 0x1000, File: a, FileOffset: 0}, {Offset: 0x2000, Size: 0x1000, File: b},
	}}
	cfg.Regions[3] = vfiouser.Region{Size: 0x4000, Flags: rw, Areas: []vfiouser.Area{{Offset: 0x2000, Size: 0x1000, File: b, FileOffset: 0x1000}}}
	return cfg, a, b
}

// TestAreas asks for regions with areas byte by byte: without room for them, with
// just enough, by clients that can take them and by others.
func TestAreas(t *testing.T) {
	cfg, a, b := areaConfig(t)
	const (
		one = "40000000 0f000000 01000000 20000000 0040000000000000 0020000000000000" + // the region is at 0x2000 of the file
			"0100 0100 00000000 02000000 00000000 0010000000000000 0010000000000000 0020000000000000 0020000000000000"
		two = "90000000 0f000000 02000000 20000000 0040000000000000 0000000000000000" +
			"0180 0100 00000000 03000000 00000000" +
			"0000000000000000 0010000000000000 0010000000000000 00000000 00000000" +
			"0030000000000000 0000000000000000 0010000000000000 01000000 00000000" +
			"0020000000000000 0000000000000000 0010000000000000 00000000 00000000"
		apart = "50000000 0f000000 03000000 20000000 0040000000000000 0000000000000000" +
			"0180 0100 00000000 01000000 00000000 0020000000000000 0010000000000000 0010000000000000 00000000 00000000"
		asksFDs = `{"capabilities":{"max_msg_fds":2,"sparse_mmap_fds":true}}`
	)
	plain := func(index string) string {
		return "20000000 03000000 " + index + " 00000000 0040000000000000 0000000000000000"
	}
	// So much the classic form says of BAR1 and needs 0x50 bytes for.
	oneFile := "5" + one[1:]
	for _, tt := range []struct {
		name, version string
		region        byte
		argsz         byte
		want          string
		files         []*os.File
	}{
		{"QEMU, no room", vfiousertest.QEMUVersion, 1, 0x20, "50" + plain("01000000")[2:], nil},
		{"QEMU, a byte too little", vfiousertest.QEMUVersion, 1, 0x4f, "50" + plain("01000000")[2:], nil},
		{"QEMU", vfiousertest.QEMUVersion, 1, 0x50, oneFile, []*os.File{a}},
		{"QEMU, plenty", vfiousertest.QEMUVersion, 1, 0xff, oneFile, []*os.File{a}},
		{"QEMU cannot take two files", vfiousertest.QEMUVersion, 2, 0xff, plain("02000000"), nil},
		{"QEMU cannot take one apart", vfiousertest.QEMUVersion, 3, 0xff, plain("03000000"), nil},
		{"two files, no room", asksFDs, 2, 0x20, "90" + plain("02000000")[2:], nil},
		{"two files", asksFDs, 2, 0x90, two, []*os.File{b, a}},
		{"one file apart", asksFDs, 3, 0x50, apart, []*os.File{b}},
		{"one file for a client of several", asksFDs, 1, 0x50, oneFile, []*os.File{a}},
		{"one descriptor by default", `{}`, 1, 0x50, oneFile, []*os.File{a}},
		{"two files are too many", `{"capabilities":{"sparse_mmap_fds":true}}`, 2, 0xff, plain("02000000"), nil},
		{"no descriptors", `{"capabilities":{"max_msg_fds":0}}`, 1, 0xff, plain("01000000"), nil},
		{"said no", `{"capabilities":{"max_msg_fds":9,"sparse_mmap_fds":false}}`, 2, 0xff, plain("02000000"), nil},
		{"without areas", asksFDs, 0, 0xff, "20000000 03000000 00000000 00000000 0010000000000000 0000000000000000", nil},
	} {
		_, conn := vfiousertest.Serve(t, vfiousertest.NewDevice(cfg), cfg)
		p := vfiousertest.NewPeer(t, conn)
		p.Version(tt.version)
		ask := make([]byte, 32)
		ask[0], ask[8] = tt.argsz, tt.region
		// Between two others, so that replies with and without descriptors meet.
		info := vfiousertest.Message{ID: 1, Command: 4, Payload: append([]byte{16}, make([]byte, 15)...)}
		q := vfiousertest.Message{ID: 2, Command: 5, Payload: ask}
		p.Send(slices.Concat(info.Bytes(), q.Bytes(), info.Bytes()))
		if _, files := p.RecvFDs(); len(files) != 0 {
			t.Errorf("%s: descriptors came with the reply before", tt.name)
		}
		r, files := p.RecvFDs()
		if want := unhex(t, tt.want); r.Errno != 0 || !slices.Equal(r.Payload, want) {
			t.Errorf("%s: errno %d\n%s, want\n%s", tt.name, r.Errno, hex.EncodeToString(r.Payload), hex.EncodeToString(want))
		}
		if len(files) != len(tt.files) {
			t.Fatalf("%s: %d files, want %d", tt.name, len(files), len(tt.files))
		}
		for i := range files {
			if inode(t, files[i]) != inode(t, tt.files[i]) {
				t.Errorf("%s: file %d is another", tt.name, i)
			}
		}
		if _, files := p.RecvFDs(); len(files) != 0 {
			t.Errorf("%s: descriptors came with the reply after", tt.name)
		}
		// Access by message is not affected.
		p.Do(region(3, 10, 0, 0x1000, 4, 1, 2, 3, 4))
		conn.Close()
	}
}

// TestAreasLent leaves no descriptor behind where a reply with some cannot be made
// or is not wanted.
func TestAreasLent(t *testing.T) {
	cfg, _, b := areaConfig(t)
	dev := vfiousertest.NewDevice(cfg)
	_, conn := vfiousertest.Serve(t, dev, cfg)
	p := vfiousertest.NewPeer(t, conn)
	p.Version(`{"capabilities":{"max_msg_fds":2,"sparse_mmap_fds":true}}`)
	before := openFDs(t)
	ask := vfiousertest.Message{ID: 7, Command: 5, Flags: vfiousertest.NoReply, Payload: make([]byte, 32)}
	ask.Payload[0], ask.Payload[8] = 0xff, 2
	p.Send(ask.Bytes())
	ask.Flags, ask.Payload[8] = 0, 0
	if r, files := p.DoFDs(ask); r.Errno != 0 || len(files) != 0 {
		t.Errorf("reply %+v with %d descriptors", r, len(files))
	}
	// The device has closed the second of two files.
	cfg.Regions[2].Areas[0], cfg.Regions[2].Areas[1] = cfg.Regions[2].Areas[1], cfg.Regions[2].Areas[0]
	ask.Payload[8] = 2
	b.Close()
	r, files := p.DoFDs(ask)
	if r.Errno == 0 || len(files) != 0 {
		t.Errorf("reply %+v with %d descriptors of a closed file", r, len(files))
	}
	if after := openFDs(t); after != before-1 {
		t.Errorf("%d descriptors before, %d after one was closed", before, after)
	}
}

// TestAreasConfig refuses areas that no client could be told of.
func TestAreasConfig(t *testing.T) {
	readOnly, err := os.Open("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	defer readOnly.Close()
	writeOnly, err := os.OpenFile(t.TempDir()+"/f", os.O_WRONLY|os.O_CREATE, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer writeOnly.Close()
	if err := writeOnly.Truncate(0x1000); err != nil {
		t.Fatal(err)
	}
	closed := vfiousertest.Memory(t, 0x1000)
	closed.Close()
	f := vfiousertest.Memory(t, 0x8000)
	many := make([]vfiouser.Area, 129)
	for i := range many {
		many[i] = vfiouser.Area{Offset: uint64(i) << 12, Size: 0x1000, File: f}
	}
	for name, areas := range map[string][]vfiouser.Area{
		"size 0":          {{File: f}},
		"beyond":          {{Offset: 0x3000, Size: 0x2000, File: f}},
		"far beyond":      {{Offset: 0x5000, Size: 0x1000, File: f}},
		"wraps":           {{Offset: 0x1000, Size: 1<<64 - 0x1000, File: f}},
		"misaligned":      {{Offset: 0x800, Size: 0x1000, File: f}},
		"half a page":     {{Size: 0x800, File: f}},
		"file offset":     {{Size: 0x1000, File: f, FileOffset: 0x10}},
		"beyond the file": {{Size: 0x1000, File: f, FileOffset: 0x8000}},
		"file wraps":      {{Size: 0x1000, File: f, FileOffset: 1<<64 - 0x1000}},
		"overlap":         {{Size: 0x2000, File: f}, {Offset: 0x1000, Size: 0x1000, File: f}},
		"no file":         {{Size: 0x1000}},
		"closed":          {{Size: 0x1000, File: closed}},
		"read-only file":  {{Size: 0x1000, File: readOnly}},
		"write-only file": {{Size: 0x1000, File: writeOnly}},
		"too many":        many,
	} {
		cfg := vfiousertest.Config()
		cfg.Regions[1] = vfiouser.Region{Size: 0x4000, Flags: rw, Areas: areas}
		if name == "too many" {
			cfg.Regions[1].Size = 1 << 20
		}
		if _, err := vfiouser.NewServer(nil, cfg); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

// sharing is a device whose BAR1 is shared with its client.
type sharing struct {
	quiet
	s *vfiouser.Shared
}

func (d sharing) ReadRegion(_ int, off uint64, p []byte) error {
	_, err := d.s.ReadAt(p, int64(off))
	return err
}

func (d sharing) WriteRegion(_ int, off uint64, p []byte) error {
	_, err := d.s.WriteAt(p, int64(off))
	return err
}

// TestShared has a client map the areas of a device and reach them both ways.
func TestShared(t *testing.T) {
	s, err := vfiouser.NewShared(0x4000)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	cfg := vfiousertest.Config()
	cfg.Regions[1] = vfiouser.Region{Size: 0x4000, Flags: rw, Areas: []vfiouser.Area{s.Area(0)}}
	srv, c := vfiousertest.Start(t, sharing{s: s}, cfg, vfiouser.ClientConfig{})
	areas, err := c.Areas(1)
	if err != nil || len(areas) != 1 || areas[0].Offset != 0 || areas[0].Size != 0x4000 {
		t.Fatalf("areas %+v, %v", areas, err)
	}
	m, err := areas[0].Map(rw)
	areas[0].File.Close()
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	messages := srv.Stats().Messages
	for i, f := range []func() error{
		func() error { return m.Store8(1, 0x11) }, func() error { return m.Store16(2, 0x3322) },
		func() error { return m.Store32(4, 0x77665544) }, func() error { return m.Store64(8, 0xffeeddccbbaa9988) },
	} {
		if err := f(); err != nil {
			t.Errorf("store %d: %v", i, err)
		}
	}
	want := "0x0 0x11 0x3322 0x77665544 0xffeeddccbbaa9988"
	v0, e0 := s.Load8(0)
	v1, e1 := s.Load8(1)
	v2, e2 := s.Load16(2)
	v3, e3 := s.Load32(4)
	v4, e4 := s.Load64(8)
	if err := errors.Join(e0, e1, e2, e3, e4); err != nil || v0 != 0 || v1 != 0x11 || v2 != 0x3322 || v3 != 0x77665544 || v4 != 0xffeeddccbbaa9988 {
		t.Errorf("device loads %#x %#x %#x %#x %#x, %v, want %s", v0, v1, v2, v3, v4, err, want)
	}
	if n := srv.Stats().Messages; n != messages {
		t.Errorf("%d messages for stores to an area", n-messages)
	}
	// The same by message, in words and in other pieces.
	for _, tt := range [][2]int{{0, 1}, {2, 2}, {4, 4}, {8, 8}, {1, 2}, {3, 4}, {5, 8}, {0, 16}, {0x3ffd, 3}, {0, 0}} {
		b := make([]byte, tt[1])
		if err := c.ReadRegion(1, uint64(tt[0]), b); err != nil {
			t.Error(err)
		}
		whole := append([]byte{0, 0x11, 0x22, 0x33, 0x44, 0x55, 0x66, 0x77, 0x88, 0x99, 0xaa, 0xbb, 0xcc, 0xdd, 0xee, 0xff}, make([]byte, 0x3ff0)...)
		if !slices.Equal(b, whole[tt[0]:][:tt[1]]) {
			t.Errorf("%d bytes at %d read %x", tt[1], tt[0], b)
		}
		if err := c.WriteRegion(1, uint64(tt[0]), b); err != nil {
			t.Error(err)
		}
		after := make([]byte, 16)
		if _, err := m.ReadAt(after, 0); err != nil || !slices.Equal(after, whole[:16]) {
			t.Errorf("%d bytes at %d written back: %x, %v", tt[1], tt[0], after, err)
		}
	}
	if old, err := s.Swap32(4, 5); old != 0x77665544 || err != nil {
		t.Errorf("swap: %#x, %v", old, err)
	}
	if ok, err := m.CompareAndSwap32(4, 4, 6); ok || err != nil {
		t.Errorf("compare and swap of another value: %v, %v", ok, err)
	}
	if ok, err := m.CompareAndSwap32(4, 5, 6); !ok || err != nil {
		t.Errorf("compare and swap: %v, %v", ok, err)
	}
	// The client cannot take the device's memory away.
	f, err := c.Areas(1)
	if err != nil {
		t.Fatal(err)
	}
	defer f[0].File.Close()
	if err := f[0].File.Truncate(0x1000); !errors.Is(err, syscall.EPERM) {
		t.Errorf("the client can shrink the device's memory: %v", err)
	}
	if n := testing.AllocsPerRun(100, func() { _ = m.Store32(4, 1); _, _ = m.Load64(8) }); n != 0 {
		t.Errorf("%v allocations for a store and a load", n)
	}
}

// TestSharedBounds goes beyond the bounds and the rights of shared memory.
func TestSharedBounds(t *testing.T) {
	for _, size := range []uint64{0, 1, 0x1001, 1<<40 + 0x1000, 1<<64 - 0x1000} {
		if s, err := vfiouser.NewShared(size); err == nil {
			s.Close()
			t.Errorf("%#x bytes shared", size)
		}
	}
	f := vfiousertest.Memory(t, 0x2000)
	area := vfiouser.Area{Size: 0x2000, File: f}
	for _, a := range []vfiouser.Area{{Size: 0x1000}, {File: f}, {Size: 0x800, File: f}, {Size: 0x1000, FileOffset: 1, File: f}, {Size: 1 << 47, File: f}} {
		if s, err := a.Map(rw); err == nil {
			s.Close()
			t.Errorf("%+v is mapped", a)
		}
	}
	s, err := area.Map(rw)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	ops := map[string]struct {
		n int
		f func(off uint64) error
	}{
		"load8":   {1, func(off uint64) error { _, err := s.Load8(off); return err }},
		"load16":  {2, func(off uint64) error { _, err := s.Load16(off); return err }},
		"load32":  {4, func(off uint64) error { _, err := s.Load32(off); return err }},
		"load64":  {8, func(off uint64) error { _, err := s.Load64(off); return err }},
		"store8":  {1, func(off uint64) error { return s.Store8(off, 1) }},
		"store16": {2, func(off uint64) error { return s.Store16(off, 1) }},
		"store32": {4, func(off uint64) error { return s.Store32(off, 1) }},
		"store64": {8, func(off uint64) error { return s.Store64(off, 1) }},
		"swap32":  {4, func(off uint64) error { _, err := s.Swap32(off, 1); return err }},
		"cas32":   {4, func(off uint64) error { _, err := s.CompareAndSwap32(off, 1, 1); return err }},
		"read":    {16, func(off uint64) error { _, err := s.ReadAt(make([]byte, 16), int64(off)); return err }},
		"write":   {16, func(off uint64) error { _, err := s.WriteAt(make([]byte, 16), int64(off)); return err }},
	}
	for name, op := range ops {
		if err := op.f(0x2000 - uint64(op.n)); err != nil {
			t.Errorf("%s of the last bytes: %v", name, err)
		}
		offs := []uint64{0x2000, 0x2000 + uint64(op.n), 1 << 63, -uint64(op.n)}
		if op.n > 1 {
			offs = append(offs, 0x2000-uint64(op.n)/2)
		}
		if op.n > 1 && op.n < 16 {
			offs = append(offs, 1, uint64(op.n)/2)
		}
		for _, off := range offs {
			if err := op.f(off); !errors.Is(err, syscall.EINVAL) {
				t.Errorf("%s at %#x: %v", name, off, err)
			}
		}
	}
	// The one whose file it is shrinks it.
	if err := f.Truncate(0x1000); err != nil {
		t.Fatal(err)
	}
	for name, op := range ops {
		if err := op.f(0x1000); !errors.Is(err, syscall.EFAULT) {
			t.Errorf("%s beyond the shrunken file: %v", name, err)
		}
		if err := op.f(0x1000 - uint64(op.n)); err != nil {
			t.Errorf("%s inside the shrunken file: %v", name, err)
		}
	}
	ro, err := vfiouser.Area{Size: 0x1000, File: f}.Map(vfiouser.RegionRead)
	if err != nil {
		t.Fatal(err)
	}
	_, err = ro.Swap32(0, 1)
	for _, err := range []error{ro.Store32(0, 1), err} {
		if !errors.Is(err, syscall.EACCES) {
			t.Errorf("store to memory mapped to be read: %v", err)
		}
	}
	if _, err := ro.Load32(0); err != nil {
		t.Error(err)
	}
	ro.Close()
	// Close waits for accesses, and those to come fail.
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for {
				if _, err := s.Load32(0); err != nil {
					if !errors.Is(err, os.ErrClosed) {
						t.Errorf("load beside close: %v", err)
					}
					return
				}
			}
		})
	}
	if err := errors.Join(s.Close(), s.Close()); err != nil {
		t.Error(err)
	}
	wg.Wait()
	if s.Size() != 0 {
		t.Errorf("closed memory has %d bytes", s.Size())
	}
	var _ io.ReaderAt = s
}

// TestClientAreas has servers describe areas as they should, and as none should.
func TestClientAreas(t *testing.T) {
	const (
		info = "0f000000 01000000 20000000 0040000000000000 0020000000000000" // BAR1, 0x4000 bytes, at 0x2000 of its file
		one  = "0100 0100 00000000 01000000 00000000"
		two  = "0180 0100 00000000 01000000 00000000"
	)
	f := vfiousertest.Memory(t, 0x8000)
	fd := int(f.Fd())
	for _, tt := range []struct {
		name  string
		reply string // after argsz
		fds   []int
		want  []vfiouser.Area
		bad   bool
	}{
		{"one file", info + one + "0010000000000000 0020000000000000", []int{fd}, []vfiouser.Area{{Offset: 0x1000, Size: 0x2000, FileOffset: 0x3000}}, false},
		{"several", info + two + "0010000000000000 0040000000000000 0020000000000000 01000000 00000000", []int{fd, fd}, []vfiouser.Area{{Offset: 0x1000, Size: 0x2000, FileOffset: 0x4000}}, false},
		{"the draft's number", info + "1000" + two[4:] + "0010000000000000 0040000000000000 0020000000000000 00000000 00000000", []int{fd}, []vfiouser.Area{{Offset: 0x1000, Size: 0x2000, FileOffset: 0x4000}}, false},
		{"behind another capability", info + "0900 0100 28000000" + one + "0000000000000000 0010000000000000", []int{fd}, []vfiouser.Area{{Size: 0x1000, FileOffset: 0x2000}}, false},
		{"all of it", "07000000 01000000 00000000 0040000000000000 0020000000000000", []int{fd}, []vfiouser.Area{{Size: 0x4000, FileOffset: 0x2000}}, false},
		{"none of it", info + "0100 0100 00000000 00000000 00000000", []int{fd}, nil, false},
		{"not mappable", "03000000 01000000 00000000 0040000000000000 0000000000000000", nil, nil, false},
		{"not mappable, with a file", "03000000 01000000 00000000 0040000000000000 0000000000000000", []int{fd}, nil, false},
		{"no file", info + one + "0010000000000000 0020000000000000", nil, nil, true},
		{"file out of range", info + two + "0010000000000000 0000000000000000 0010000000000000 02000000 00000000", []int{fd, fd}, nil, true},
		{"file far out of range", info + two + "0010000000000000 0000000000000000 0010000000000000 ffffffff 00000000", []int{fd}, nil, true},
		{"second area bad", info + "0180 0100 00000000 02000000 00000000" + "0000000000000000 0000000000000000 0010000000000000 00000000 00000000" +
			"0040000000000000 0000000000000000 0010000000000000 00000000 00000000", []int{fd}, nil, true},
		{"second file bad", info + "0180 0100 00000000 02000000 00000000" + "0000000000000000 0000000000000000 0010000000000000 00000000 00000000" +
			"0010000000000000 0000000000000000 0010000000000000 01000000 00000000", []int{fd}, nil, true},
		{"area of nothing", info + one + "0010000000000000 0000000000000000", []int{fd}, nil, true},
		{"area beyond", info + one + "0030000000000000 0020000000000000", []int{fd}, nil, true},
		{"area wraps", info + one + "0010000000000000 00f0ffffffffffff", []int{fd}, nil, true},
		{"area misaligned", info + one + "0110000000000000 0010000000000000", []int{fd}, nil, true},
		{"offset wraps", "0f000000 01000000 20000000 0040000000000000 00f0ffffffffffff" + one + "0010000000000000 0010000000000000", []int{fd}, nil, true},
		{"area cut short", info + one + "0010000000000000", []int{fd}, nil, true},
		{"too many areas", info + "0100 0100 00000000 81000000 00000000", []int{fd}, nil, true},
		{"areas without number", info + "0100 0100 00000000 ffffffff 00000000", []int{fd}, nil, true},
		{"capability cut short", info + "0100 0100", []int{fd}, nil, true},
		{"capability in the description", "0f000000 01000000 1f000000 0040000000000000 0020000000000000" + one, []int{fd}, nil, true},
		{"capability beyond", "0f000000 01000000 f0ffffff 0040000000000000 0020000000000000" + one, []int{fd}, nil, true},
		{"capability follows itself", info + "0900 0100 20000000" + one, []int{fd}, nil, true},
		{"capabilities overlap", info + "0900 0100 27000000" + one, []int{fd}, nil, true},
		{"another region", "0f000000 02000000 00000000 0040000000000000 0020000000000000", []int{fd}, nil, true},
		{"short", "0f000000", []int{fd}, nil, true},
	} {
		a, b := vfiousertest.Pair(t)
		p := vfiousertest.NewPeer(t, b)
		payload := unhex(t, "00000000"+tt.reply)
		payload[0] = byte(len(payload))
		var wg sync.WaitGroup
		wg.Go(func() {
			q := p.Recv()
			p.Send(vfiousertest.Message{ID: q.ID, Command: 1, Flags: 1, Payload: []byte("\x00\x00\x00\x00{}\x00")}.Bytes())
			q = p.Recv()
			if len(payload) > 32 {
				short := vfiousertest.Message{ID: q.ID, Command: 5, Flags: 1, Payload: slices.Clone(payload[:32])}
				p.Send(short.Bytes(), fd) // a descriptor with the first reply is one too early
				q = p.Recv()
			}
			p.Send(vfiousertest.Message{ID: q.ID, Command: 5, Flags: 1, Payload: payload}.Bytes(), tt.fds...)
		})
		c, err := vfiouser.NewClient(a, vfiouser.ClientConfig{})
		if err != nil {
			t.Fatal(err)
		}
		before := openFDs(t)
		got, err := c.Areas(1)
		wg.Wait()
		for i := range got {
			if inode(t, got[i].File) != inode(t, f) {
				t.Errorf("%s: area %d is in another file", tt.name, i)
			}
			got[i].File.Close()
			got[i].File = nil
		}
		if tt.bad != errors.Is(err, syscall.EPROTO) || !tt.bad && err != nil || !slices.Equal(got, tt.want) {
			t.Errorf("%s: %+v, %v, want %+v", tt.name, got, err, tt.want)
		}
		if after := openFDs(t); after > before {
			t.Errorf("%s: %d descriptors before, %d after", tt.name, before, after)
		}
		c.Close()
		b.Close()
	}
}
