// SPDX-License-Identifier: Apache-2.0

package vfiouser

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"slices"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"pgregory.net/rapid"
)

// model is the kernel's type1 v2 IOMMU as a plain list, the oracle for maps
// and unmaps: whole mappings, none cut in two, none over another.
type model struct {
	maps []modelMap // in order
	gran uint64
	most int

	anywhere map[int]bool // files that can be mapped from any offset on
}

type modelMap struct {
	iova, last, off uint64
	file            int // -1: none
	prot            Prot
}

func (o *model) add(iova, size, off uint64, file int, prot Prot, fileSize uint64) syscall.Errno {
	last := iova + size - 1
	if size == 0 || last < iova || iova%o.gran != 0 || size%o.gran != 0 || file >= 0 && !o.anywhere[file] && off%4096 != 0 {
		return syscall.EINVAL
	}
	m := modelMap{iova, last, off, file, prot}
	if file < 0 {
		m.off = 0
	}
	for _, x := range o.maps {
		if x == m && (file < 0 || off+size <= fileSize) {
			return 0
		}
		if x.iova <= last && iova <= x.last && (x.iova != iova || x.last != last) {
			return syscall.EEXIST
		}
	}
	exact := slices.ContainsFunc(o.maps, func(x modelMap) bool { return x.iova == iova && x.last == last })
	if !exact && len(o.maps) >= o.most {
		return syscall.ENOSPC
	}
	if file >= 0 && (off+size < off || off+size > fileSize) {
		return syscall.EINVAL
	}
	if exact {
		return syscall.EEXIST
	}
	o.maps = append(o.maps, m)
	slices.SortFunc(o.maps, func(a, b modelMap) int {
		if a.iova < b.iova {
			return -1
		}
		return 1
	})
	return 0
}

func (o *model) remove(addr, size uint64, all bool) (uint64, syscall.Errno) {
	last := addr + size - 1
	if all {
		if addr != 0 || size != 0 {
			return 0, syscall.EINVAL
		}
	} else if size == 0 || last < addr || addr%4096 != 0 || size%4096 != 0 {
		return 0, syscall.EINVAL
	}
	var gone uint64
	var keep []modelMap
	for _, x := range o.maps {
		switch {
		case x.last < addr || x.iova > last:
			keep = append(keep, x)
		case x.iova < addr || x.last > last:
			return 0, syscall.EINVAL
		default:
			gone += x.last - x.iova + 1
		}
	}
	o.maps = keep
	return gone, 0
}

// at returns the map that holds a.
func (o *model) at(a uint64) *modelMap {
	for i := range o.maps {
		if o.maps[i].iova <= a && a <= o.maps[i].last {
			return &o.maps[i]
		}
	}
	return nil
}

// testFile returns the descriptor of a file whose byte at x is a function of x
// and tag.
func testFile(t testing.TB, size int, tag byte) int {
	fd, err := unix.MemfdCreate("vfiousertest", unix.MFD_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	b := make([]byte, size)
	for i := range b {
		b[i] = byteAt(uint64(i), tag)
	}
	if _, err := unix.Write(fd, b); err != nil {
		t.Fatal(err)
	}
	return fd
}

func byteAt(off uint64, tag byte) byte { return byte(off>>12)*7 + byte(off) + tag }

const (
	modelFileSize = 64 << 12
	modelFiles    = 2
)

// dmaPair drives a DMA and the model alike.
type dmaPair struct {
	d   *DMA
	o   *model
	fds [modelFiles]int
}

func newDMAPair(t testing.TB, fds [modelFiles]int) *dmaPair {
	return &dmaPair{d: newDMA(new(counters)), o: &model{gran: 4096, most: 40}, fds: fds}
}

func (p *dmaPair) add(iova, size, off uint64, file int, prot Prot) error {
	fd := -1
	if file >= 0 {
		fd = p.fds[file]
	}
	err := p.d.mapFile(dmaMap{offset: off, addr: iova, size: size}, prot, fd, limits{pageSizes: 4096, maxDMAMaps: p.o.most})
	want := p.o.add(iova, size, off, file, prot, modelFileSize)
	return compare(fmt.Sprintf("map %#x+%#x of file %d at %#x", iova, size, file, off), err, want)
}

func (p *dmaPair) remove(addr, size uint64, all bool) error {
	got, err := p.d.unmap(addr, size, all)
	want, errno := p.o.remove(addr, size, all)
	if err == nil && errno == 0 && got != want {
		return fmt.Errorf("unmap %#x+%#x: %#x bytes, want %#x", addr, size, got, want)
	}
	return compare(fmt.Sprintf("unmap %#x+%#x", addr, size), err, errno)
}

func compare(what string, err error, want syscall.Errno) error {
	if want == 0 && err != nil || want != 0 && !errors.Is(err, want) {
		return fmt.Errorf("%s: %v, want %v", what, err, want)
	}
	return nil
}

// read compares a read byte by byte with what the model says about each.
func (p *dmaPair) read(iova uint64, n int) error {
	b := make([]byte, n)
	err := p.d.Read(iova, b)
	for i := range b {
		m := p.o.at(iova + uint64(i))
		var want syscall.Errno
		switch {
		case iova+uint64(n)-1 < iova, m == nil:
			want = syscall.EFAULT
		case m.prot&ProtRead == 0:
			want = syscall.EACCES
		case m.file < 0:
			want = syscall.EFAULT // nobody serves messages here
		default:
			if v := byteAt(m.off+iova+uint64(i)-m.iova, byte(m.file)); err == nil && b[i] != v {
				return fmt.Errorf("read %#x+%#x: byte %d is %#x, want %#x", iova, n, i, b[i], v)
			}
			continue
		}
		var e *DMAError
		if !errors.As(err, &e) || e.Errno != want || e.IOVA > iova+uint64(i) {
			return fmt.Errorf("read %#x+%#x: %v, want %v at byte %d", iova, n, err, want, i)
		}
		return nil
	}
	return compare(fmt.Sprintf("read %#x+%#x", iova, n), err, 0)
}

// check compares the whole map and the accounts.
func (p *dmaPair) check() error {
	var got []modelMap
	refs := make(map[*hostFile]int)
	last := uint64(0)
	p.d.root.Load().tree.each(func(m *mapping) {
		file := -1
		if m.file != nil {
			refs[m.file]++
			file = int(m.file.win.Load().mem[0]) // byteAt(0, tag)
		}
		got = append(got, modelMap{m.iova, m.last, m.off, file, m.prot})
		last = max(last, m.last)
	})
	if !slices.Equal(got, p.o.maps) || p.d.count != len(got) {
		return fmt.Errorf("maps %+v (count %d), want %+v", got, p.d.count, p.o.maps)
	}
	for _, f := range p.d.files.files {
		if f.refs != refs[f] {
			return fmt.Errorf("file has %d maps, its count is %d", refs[f], f.refs)
		}
		if idle := slices.Contains(p.d.files.idle, f); idle != (f.refs == 0) {
			return fmt.Errorf("file with %d maps is idle: %v", f.refs, idle)
		}
	}
	return nil
}

// FuzzDMAMap runs maps, unmaps and reads against the type1 v2 model. Each
// operation takes four bytes of input.
func FuzzDMAMap(f *testing.F) {
	f.Add([]byte{0, 1, 4, 0, 1, 0, 8, 0, 3, 0, 8, 8, 2, 0, 0, 0})             // map, superset unmap, read
	f.Add([]byte{0, 0, 4, 0, 0, 0, 4, 0, 0, 0, 4, 1, 1, 1, 2, 0, 1, 0, 4, 0}) // identical, other offset, bisect, exact
	f.Add([]byte{4, 255, 1, 0, 1, 255, 1, 0, 1, 255, 2, 0, 2, 0, 0, 0})       // the top of the address space
	var fds [modelFiles]int
	for i := range fds {
		fds[i] = testFile(f, modelFileSize, byte(i))
	}
	f.Fuzz(func(t *testing.T, in []byte) {
		p := newDMAPair(t, fds)
		defer p.d.clear()
		for len(in) >= 4 && !t.Failed() {
			op, a, n, x := in[0], uint64(in[1]), uint64(in[2]), uint64(in[3])
			in = in[4:]
			// A few pages at the bottom, and the top of the address space.
			addr := a % 64 << 12
			if a >= 192 {
				addr = -(256 - a) << 12
			}
			size := n << 12
			if n == 255 {
				addr, size = addr+1, 4096
			}
			var err error
			switch op % 6 {
			case 0, 4:
				err = p.add(addr, size, x%70<<12, int(op/6)%(modelFiles+1)-1, Prot(1+x%3))
			case 1:
				err = p.remove(addr, size, false)
			case 2:
				err = p.remove(addr*(x&1), 0, true)
			case 3:
				err = p.read(addr+x*16, int(n)<<8)
			case 5:
				// Powers of two over the whole width, as a vIOMMU's replay does.
				size := uint64(1) << (12 + x%52)
				err = p.remove(addr&^(size-1), size, false)
			}
			if err == nil {
				err = p.check()
			}
			if err != nil {
				t.Fatal(err)
			}
		}
	})
}

// TestDMAMapRandom runs longer sequences of the operations of FuzzDMAMap.
func TestDMAMapRandom(t *testing.T) {
	var fds [modelFiles]int
	for i := range fds {
		fds[i] = testFile(t, modelFileSize, byte(i))
	}
	rapid.Check(t, func(r *rapid.T) {
		p := newDMAPair(t, fds)
		defer p.d.clear()
		page := rapid.Uint64Range(0, 63)
		for range 60 {
			a, n, off := page.Draw(r, "page")<<12, rapid.Uint64Range(1, 6).Draw(r, "pages")<<12, page.Draw(r, "offset")<<12
			var err error
			switch rapid.IntRange(0, 4).Draw(r, "op") {
			case 0, 1:
				err = p.add(a, n, off, rapid.IntRange(-1, modelFiles-1).Draw(r, "file"), Prot(rapid.IntRange(1, 3).Draw(r, "prot")))
			case 2:
				err = p.remove(a, n<<rapid.IntRange(0, 4).Draw(r, "shift"), false)
			case 3:
				err = p.read(a+off>>8, int(n))
			case 4:
				err = p.remove(a&^(n-1), n, false)
			}
			if err = errors.Join(err, p.check()); err != nil {
				r.Fatal(err)
			}
		}
	})
}

// TestStuckReader bounds what a reader that does not end can do: the unmap
// fails in time, and all is well once the reader has gone.
func TestStuckReader(t *testing.T) {
	d := newDMA(new(counters))
	d.patient = 10 * time.Millisecond
	fd := testFile(t, 0x2000, 0)
	l := limits{pageSizes: 4096, maxDMAMaps: 10}
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(d.mapFile(dmaMap{addr: 0, size: 0x1000}, ProtRead, fd, l))
	inside, leave := make(chan struct{}), make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		d.View(0, 8, ProtRead, func(b []byte) error {
			close(inside)
			<-leave
			if b[5] != 5 {
				t.Error("the view's memory went away")
			}
			return nil
		})
	})
	<-inside
	if n, err := d.unmap(0, 0x1000, false); n != 0x1000 || !errors.Is(err, syscall.EBUSY) {
		t.Errorf("unmap: %#x, %v", n, err)
	}
	if err := d.Read(0, make([]byte, 1)); !errors.Is(err, syscall.EFAULT) {
		t.Errorf("read after the unmap: %v", err)
	}
	// Other maps come and go meanwhile; growth keeps the old window.
	must(unix.Ftruncate(fd, 0x4000))
	must(d.mapFile(dmaMap{addr: 0, size: 0x1000, offset: 0x3000}, ProtRead, fd, l))
	if _, err := d.unmap(0, 0, true); !errors.Is(err, syscall.EBUSY) {
		t.Errorf("unmap of another: %v", err)
	}
	if err := d.clear(); !errors.Is(err, syscall.EBUSY) {
		t.Errorf("clear: %v", err)
	}
	close(leave)
	wg.Wait()
	must(d.mapFile(dmaMap{addr: 0, size: 0x1000}, ProtRead, fd, l))
	if _, err := d.unmap(0, 0x1000, false); err != nil {
		t.Error(err)
	}
	must(d.clear())
	if len(d.files.files) != 0 || len(d.files.idle) != 0 || len(d.files.old) != 0 {
		t.Errorf("left over: %+v", d.files)
	}
}

// TestReadersOverlap has readers overlap so that there is always one: a wait
// ends with those that it found, whoever came after.
func TestReadersOverlap(t *testing.T) {
	var r readers
	r.wake = make(chan struct{}, 1)
	before := r.enter()
	phase := r.phase.Load()
	done := make(chan bool)
	go func() { done <- r.wait(2 * time.Minute) }()
	for deadline := time.Now().Add(time.Minute); r.phase.Load() == phase && time.Now().Before(deadline); {
		runtime.Gosched()
	}
	after := r.enter()
	select {
	case <-done:
		t.Error("the wait ended with a reader from before")
	default:
	}
	r.leave(before)
	if !<-done {
		t.Error("the wait took a reader that came after for one from before")
	}
	r.leave(after)
	if !r.wait(0) {
		t.Error("a wait for nobody ran out")
	}
}

// TestLimits meets the limits on maps and files.
func TestLimits(t *testing.T) {
	d := newDMA(new(counters))
	defer d.clear()
	l := limits{pageSizes: 1 << 16, maxDMAMaps: 3}
	for i := range uint64(3) {
		if err := d.mapFile(dmaMap{addr: i << 16, size: 1 << 16}, ProtRead, -1, l); err != nil {
			t.Fatal(err)
		}
	}
	for _, tt := range []struct {
		addr, size uint64
		want       syscall.Errno
	}{
		{3 << 16, 1 << 16, syscall.ENOSPC}, {2 << 16, 1 << 16, 0}, {1 << 15, 1 << 16, syscall.EINVAL}, {4 << 16, 4096, syscall.EINVAL},
	} {
		err := d.mapFile(dmaMap{addr: tt.addr, size: tt.size}, ProtRead, -1, l)
		if err := compare(fmt.Sprintf("map %#x+%#x", tt.addr, tt.size), err, tt.want); err != nil {
			t.Error(err)
		}
	}
	// More files than a process may map are refused before the kernel does.
	files := fileTable{files: make(map[fileKey]*hostFile)}
	for i := range uint64(maxFiles) {
		files.files[fileKey{single: i + 1<<32}] = &hostFile{refs: 1}
	}
	if _, _, err := files.open(testFile(t, 4096, 0), 0, 4096, ProtRead); !errors.Is(err, syscall.ENOSPC) {
		t.Errorf("one file too many: %v", err)
	}
	// A sparse file larger than the address space is mapped in part.
	huge, err := os.Create(t.TempDir() + "/huge")
	if err != nil {
		t.Fatal(err)
	}
	defer huge.Close()
	if unix.Ftruncate(int(huge.Fd()), 1<<43) == nil {
		tbl := fileTable{files: make(map[fileKey]*hostFile)}
		var addr unix.Rlimit
		_ = unix.Prlimit(0, unix.RLIMIT_AS, nil, &addr)
		f, _, err := tbl.open(int(huge.Fd()), 1<<42, 4096, ProtRead)
		if err != nil || !f.win.Load().holds(1<<42, 4096) || f.win.Load().holds(1<<43, 1) {
			t.Errorf("sparse file: %v", err)
		}
		tbl.reap(0)
	}
}

// TestRoundOut makes windows of whole blocks, 2 MiB among them, that hold what
// they were asked to hold.
func TestRoundOut(t *testing.T) {
	const huge = 2 << 20
	for _, tt := range []struct{ first, last, block, wantFirst, wantLast uint64 }{
		{0x1000, 0x2000, 4096, 0x1000, 0x2000},
		{0x1000, 0x2000, huge, 0, huge},
		{huge - 0x1000, huge, huge, 0, huge},
		{huge - 0x1000, huge + 0x1000, huge, 0, 2 * huge},
		{huge, 2 * huge, huge, huge, 2 * huge},
		{huge + 0x1000, 3*huge + 0x1000, huge, huge, 4 * huge},
		{0x1800, 0x1900, 0, 0x1000, 0x2000},
		{0x1000, 0x2000, 3 << 12, 0x1000, 0x2000},
		{0x1000, 1<<64 - 0x1000, huge, 0, 1<<64 - 0x1000}, // no room for another block
	} {
		first, last := roundOut(tt.first, tt.last, tt.block)
		if first != tt.wantFirst || last != tt.wantLast {
			t.Errorf("[%#x, %#x) in blocks of %#x: [%#x, %#x)", tt.first, tt.last, tt.block, first, last)
		}
	}
}
