// SPDX-License-Identifier: Apache-2.0

package vfiouser

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"math/bits"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"pgregory.net/rapid"
)

// logModel is a log of dirty pages as a plain list.
type logModel struct {
	shift uint
	pages []uint64 // dirty, by number
}

func (o *logModel) mark(first, last uint64) {
	for p := first >> o.shift; ; p++ {
		if !slices.Contains(o.pages, p) {
			o.pages = append(o.pages, p)
		}
		if p == last>>o.shift {
			return
		}
	}
}

// report asks for each bit about each dirty page.
func (o *logModel) report(first, last uint64, shift uint) []byte {
	n := (last-first)>>shift + 1
	out := make([]byte, (n+63)/64*8)
	var stay []uint64
	for _, p := range o.pages {
		low, high := p<<o.shift, p<<o.shift|(1<<o.shift-1)
		if low < first || high > last {
			stay = append(stay, p)
		}
		if high < first || low > last {
			continue
		}
		for i := range n {
			from := first + i<<shift
			to := from + (1<<shift - 1)
			if to > last || to < from {
				to = last
			}
			if from <= high && low <= to {
				out[i/8] |= 1 << (i % 8)
			}
		}
	}
	o.pages = stay
	return out
}

// TestDirtyLogModel compares a log with the model, for logs and reports of all
// page sizes, in ranges that begin and end anywhere.
func TestDirtyLogModel(t *testing.T) {
	rapid.Check(t, func(r *rapid.T) {
		shift := uint(rapid.IntRange(12, 63).Draw(r, "log"))
		l := &dirtyLog{shift: shift}
		o := &logModel{shift: shift}
		size := uint64(1) << shift
		// Places where something ends: memory, words and leaves of the log.
		var edges []uint64
		for _, page := range []uint64{0, 64, leafPages, 3 * leafPages, 1 << 40} {
			if hi, _ := bits.Mul64(page, size); hi == 0 {
				edges = append(edges, page<<shift)
			}
		}
		place := func(name string, near uint64) uint64 {
			e := rapid.SampledFrom(edges).Draw(r, name+" edge")
			step := max(near>>rapid.IntRange(0, 13).Draw(r, name+" step"), 1)
			return e + uint64(rapid.IntRange(-70, 70).Draw(r, name))*step // may wrap: any place will do
		}
		for range rapid.IntRange(1, 20).Draw(r, "steps") {
			if rapid.Bool().Draw(r, "mark") {
				first := place("first", size)
				n := rapid.Uint64Range(0, min(size*70-1, 1<<62)).Draw(r, "length")
				if size >= 1<<56 {
					n = rapid.Uint64Range(0, 1<<62).Draw(r, "length of much")
				}
				last := first + n
				if last < first {
					last = ^uint64(0)
				}
				if last>>shift-first>>shift > 200 {
					last = first
				}
				if !l.mark(first, last) {
					r.Fatal("the log is full")
				}
				o.mark(first, last)
				continue
			}
			as := uint(rapid.IntRange(max(0, int(shift)-10), min(63, int(shift)+10)).Draw(r, "report"))
			first := place("from", 1<<as)
			last := first + rapid.Uint64Range(0, 2000).Draw(r, "pages")<<as + rapid.Uint64Range(0, 1<<as-1).Draw(r, "rest")
			if last < first {
				last = ^uint64(0)
			}
			if (last-first)>>as > 4000 {
				last = first + 4000<<as
			}
			n, s, err := bitmapSize(first, last-first+1, 1<<as, 1<<20)
			if last-first == ^uint64(0) {
				continue // 2^64 bytes cannot be asked for
			}
			if err != nil || s != as {
				r.Fatalf("bitmap of [%#x, %#x] in pages of %#x: %v", first, last, uint64(1)<<as, err)
			}
			got := make([]byte, n)
			l.report(first, last, as, got)
			if want := o.report(first, last, as); !bytes.Equal(got, want) {
				r.Fatalf("log of 1<<%d: [%#x, %#x] in 1<<%d is\n%x, want\n%x", shift, first, last, as, got, want)
			}
		}
	})
}

// TestDirtyLogSizes has each page size of a log reported in each page size,
// three pages of it written.
func TestDirtyLogSizes(t *testing.T) {
	for shift := uint(12); shift <= 30; shift++ {
		for as := uint(10); as <= 34; as++ {
			l := &dirtyLog{shift: shift}
			o := &logModel{shift: shift}
			total := uint64(8) << max(shift, as)
			if total>>as > 1<<16 {
				total = 1 << 16 << as
			}
			for _, at := range []uint64{0, total / 2, total - 1} {
				l.mark(at, at)
				o.mark(at, at)
			}
			n, _, err := bitmapSize(0, total, 1<<as, 1<<20)
			if err != nil {
				t.Fatal(err)
			}
			got := make([]byte, n)
			l.report(0, total-1, as, got)
			if want := o.report(0, total-1, as); !bytes.Equal(got, want) {
				t.Errorf("log of 1<<%d reported in 1<<%d: %x, want %x", shift, as, got, want)
			}
			clear(got)
			l.report(0, total-1, as, got)
			if shift <= as && !bytes.Equal(got, make([]byte, n)) {
				t.Errorf("log of 1<<%d reported in 1<<%d is not empty after that", shift, as)
			}
		}
	}
}

// TestDirtyLogFull writes in more places than the log has room for: nothing is
// lost by it.
func TestDirtyLogFull(t *testing.T) {
	d := newDMA(new(counters))
	if _, err := d.startLog(4096); err != nil {
		t.Fatal(err)
	}
	for i := range uint64(maxLeaves + 2) {
		d.wrote(i*leafPages*4096, 1)
	}
	if n := d.stats.dirtyLogsFull.Load(); n != 1 {
		t.Errorf("counted %d times", n)
	}
	l, err := d.logged()
	if err != nil {
		t.Fatal(err)
	}
	if n := l.leaves.Load(); n != maxLeaves {
		t.Errorf("%d leaves", n)
	}
	for range 2 {
		out := make([]byte, 16)
		l.report(1<<50, 1<<50+99*4096, 12, out)
		if want := append(bytes.Repeat([]byte{0xff}, 12), 0x0f, 0, 0, 0); !bytes.Equal(out, want) {
			t.Errorf("report %x", out)
		}
	}
	// A log that begins again is empty.
	d.stopLog()
	if _, err := d.startLog(4096); err != nil {
		t.Fatal(err)
	}
	l, _ = d.logged()
	out := make([]byte, 8)
	l.report(0, 63*4096, 12, out)
	if !bytes.Equal(out, make([]byte, 8)) {
		t.Errorf("report of a new log %x", out)
	}
}

// TestDirtyLogCost writes with and without a log.
func TestDirtyLogCost(t *testing.T) {
	d := newDMA(new(counters))
	fd := testFile(t, 1<<20, 0)
	if err := d.mapFile(dmaMap{size: 1 << 20}, ProtRead|ProtWrite, fd, limits{pageSizes: 4096, maxDMAMaps: 10}); err != nil {
		t.Fatal(err)
	}
	defer d.clear()
	p := make([]byte, 200)
	write := func() {
		if err := d.Write(0xff80, p); err != nil {
			t.Fatal(err)
		}
		if err := d.View(0x20000, 64, ProtRead|ProtWrite, func([]byte) error { return nil }); err != nil {
			t.Fatal(err)
		}
	}
	if n := testing.AllocsPerRun(100, write); n != 0 {
		t.Errorf("%v allocations without a log", n)
	}
	if _, err := d.startLog(4096); err != nil {
		t.Fatal(err)
	}
	write() // makes the leaf
	if n := testing.AllocsPerRun(100, write); n != 0 {
		t.Errorf("%v allocations with a log", n)
	}
}

// TestDirtyLogWrites checks which accesses mark pages.
func TestDirtyLogWrites(t *testing.T) {
	d := newDMA(new(counters))
	l := limits{pageSizes: 4096, maxDMAMaps: 10}
	fd := testFile(t, 16*4096, 0)
	for _, m := range []dmaMap{{addr: 0, size: 8 * 4096}, {addr: 8 * 4096, size: 8 * 4096, offset: 8 * 4096}} {
		if err := d.mapFile(m, ProtRead|ProtWrite, fd, l); err != nil {
			t.Fatal(err)
		}
	}
	defer d.clear()
	if err := d.Write(0, []byte{1}); err != nil { // before the log
		t.Fatal(err)
	}
	if size, err := d.startLog(1); size != 4096 || err != nil {
		t.Fatalf("log in pages of 1: %d, %v", size, err)
	}
	if _, err := d.startLog(4096); !errors.Is(err, syscall.EINVAL) {
		t.Errorf("second log: %v", err)
	}
	log, err := d.logged()
	if err != nil {
		t.Fatal(err)
	}
	expect := func(what string, want uint64) {
		t.Helper()
		var out [8]byte
		log.report(0, 64*4096-1, 12, out[:])
		if got := binary.LittleEndian.Uint64(out[:]); got != want {
			t.Errorf("%s: dirty %#x, want %#x", what, got, want)
		}
	}
	nothing := func([]byte) error { return nil }
	stop := errors.New("stop")
	for _, tt := range []struct {
		what string
		f    func() error
		want uint64
	}{
		{"nothing yet", func() error { return nil }, 0},
		{"read", func() error { return d.Read(0, make([]byte, 4096)) }, 0},
		{"view for reading", func() error { return d.View(0, 4096, ProtRead, nothing) }, 0},
		{"write", func() error { return d.Write(4095, []byte{1, 2}) }, 0x3},
		{"write of nothing", func() error { return d.Write(4095, nil) }, 0},
		{"write over both maps", func() error { return d.Write(7*4096+5, make([]byte, 4096)) }, 0x180},
		{"view for writing", func() error { return d.View(2*4096, 2*4096, ProtWrite, nothing) }, 0xc},
		{"view for both", func() error { return d.View(5*4096, 1, ProtRead|ProtWrite, nothing) }, 0x20},
		{"write that runs out", func() error { return d.Write(15*4096, make([]byte, 2*4096)) }, 0x8000},
		{"view that ends in an error", func() error { return d.View(9*4096, 1, ProtWrite, func([]byte) error { return stop }) }, 0x200},
	} {
		if err := tt.f(); err != nil && !errors.Is(err, syscall.EFAULT) && err != stop {
			t.Errorf("%s: %v", tt.what, err)
		}
		expect(tt.what, tt.want)
	}
	// A file that has shrunk: what was stored before the fault counts.
	if err := unix.Ftruncate(fd, 10*4096); err != nil {
		t.Fatal(err)
	}
	if err := d.Write(9*4096, make([]byte, 2*4096)); !errors.Is(err, syscall.EFAULT) {
		t.Errorf("write to a file that has shrunk: %v", err)
	}
	expect("fault", 0x600)
	// The log outlives the maps, and ends with the client.
	if err := d.Write(0, []byte{1}); err != nil {
		t.Fatal(err)
	}
	if err := d.clear(); err != nil {
		t.Fatal(err)
	}
	expect("after the maps", 1)
	if _, err := d.logged(); !errors.Is(err, syscall.EINVAL) {
		t.Errorf("log after the client: %v", err)
	}
}

// TestDirtyLogReaders has a write under way when a log begins: the start waits
// for it, as its data may be seen later than its mark would have been.
func TestDirtyLogReaders(t *testing.T) {
	d := newDMA(new(counters))
	d.patient = 10 * time.Millisecond
	if err := d.mapFile(dmaMap{size: 4096}, ProtWrite, testFile(t, 4096, 0), limits{pageSizes: 4096, maxDMAMaps: 10}); err != nil {
		t.Fatal(err)
	}
	inside, leave, left := make(chan struct{}), make(chan struct{}), make(chan error)
	go func() {
		left <- d.View(0, 8, ProtWrite, func([]byte) error {
			close(inside)
			<-leave
			return nil
		})
	}()
	<-inside
	if _, err := d.startLog(4096); !errors.Is(err, syscall.EBUSY) {
		t.Errorf("start: %v", err)
	}
	if _, err := d.logged(); err == nil {
		t.Error("a log that did not start is there")
	}
	d.patient = time.Minute
	started := make(chan error, 1)
	go func() {
		_, err := d.startLog(4096)
		started <- err
	}()
	early := false
	for deadline := time.Now().Add(time.Minute); !d.readers.waiting.Load() && !early && time.Now().Before(deadline); runtime.Gosched() {
		early = len(started) > 0
	}
	if early = early || len(started) > 0; early {
		t.Error("the log starts with a write under way")
	}
	close(leave)
	if err := <-started; err != nil {
		t.Error(err)
	}
	if err := <-left; err != nil {
		t.Error(err)
	}
	if err := d.clear(); err != nil {
		t.Error(err)
	}
}

// TestDirtyLogNothingLost copies memory as a client that migrates does, again
// and again while it is being written, only the pages that are dirty: in the end
// the copy is the same as the memory. Each page is written once, so that nothing
// makes up for a mark that is lost or early.
func TestDirtyLogNothingLost(t *testing.T) {
	const piece, writers, pieces = 16 * 4096, 3, 32
	const size = writers * pieces * piece
	d := newDMA(new(counters))
	if err := d.mapFile(dmaMap{size: size}, ProtRead|ProtWrite, testFile(t, size, 0), limits{pageSizes: 4096, maxDMAMaps: 10}); err != nil {
		t.Fatal(err)
	}
	defer d.clear()
	if _, err := d.startLog(8192); err != nil {
		t.Fatal(err)
	}
	log, err := d.logged()
	if err != nil {
		t.Fatal(err)
	}
	shadow := make([]byte, size)
	if err := d.Read(0, shadow); err != nil {
		t.Fatal(err)
	}
	update := func() (copied int) {
		out := make([]byte, size/4096/8)
		log.report(0, size-1, 12, out)
		for i := range uint64(size / 4096) {
			if out[i/8]&(1<<(i%8)) != 0 {
				copied++
				if err := d.Read(i*4096, shadow[i*4096:][:4096]); err != nil {
					t.Error(err)
				}
			}
		}
		return copied
	}
	var wg sync.WaitGroup
	var running atomic.Int64
	running.Store(writers)
	for w := range uint64(writers) {
		wg.Go(func() {
			defer running.Add(-1)
			b := bytes.Repeat([]byte{byte(0xa0 + w)}, piece)
			for i := range uint64(pieces) {
				if err := d.Write((i*writers+w)*piece, b); err != nil {
					t.Error(err)
				}
				runtime.Gosched()
			}
		})
	}
	for running.Load() > 0 {
		update()
	}
	wg.Wait()
	update()
	now := make([]byte, size)
	if err := d.Read(0, now); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(now, shadow) {
		t.Error("the copy differs")
	}
	if n := update(); n != 0 {
		t.Errorf("%d pages dirty with nobody writing", n)
	}
}

// TestDirtyLogTogether has several mark neighbouring pages at the same time,
// each once, while reports take them: each page is in one report.
func TestDirtyLogTogether(t *testing.T) {
	const writers = 3
	for range 30 {
		l := &dirtyLog{shift: 12}
		const pages = 512
		var wg sync.WaitGroup
		var ready, running atomic.Int64
		running.Store(writers)
		for w := range uint64(writers) {
			wg.Go(func() {
				defer running.Add(-1)
				for ready.Add(1); ready.Load() < writers; {
					runtime.Gosched()
				}
				for p := w; p < pages; p += writers {
					l.mark(p<<12, p<<12)
				}
			})
		}
		times := make([]int, pages)
		take := func() {
			out := make([]byte, pages/8)
			l.report(0, pages<<12-1, 12, out)
			for p := range times {
				times[p] += int(out[p/8] >> (p % 8) & 1)
			}
		}
		for running.Load() > 0 {
			take()
		}
		wg.Wait()
		take()
		for p, n := range times {
			if n != 1 {
				t.Fatalf("page %d is in %d reports", p, n)
			}
		}
		if n := l.leaves.Load(); n != 1 {
			t.Fatalf("%d leaves", n)
		}
	}
}

// TestDirtyLogOrder reports while memory is lent for writing: the page is dirty
// afterwards all the same.
func TestDirtyLogOrder(t *testing.T) {
	d := newDMA(new(counters))
	if err := d.mapFile(dmaMap{size: 4096}, ProtWrite, testFile(t, 4096, 0), limits{pageSizes: 4096, maxDMAMaps: 10}); err != nil {
		t.Fatal(err)
	}
	defer d.clear()
	if _, err := d.startLog(4096); err != nil {
		t.Fatal(err)
	}
	log, _ := d.logged()
	out := make([]byte, 8)
	err := d.View(0, 8, ProtWrite, func(b []byte) error {
		log.report(0, 4095, 12, out)
		b[0]++
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	clear(out)
	if log.report(0, 4095, 12, out); out[0] != 1 {
		t.Error("the page is clean")
	}
}

// TestBitmapSize works out sizes up to and over the limit.
func TestBitmapSize(t *testing.T) {
	const all = ^uint64(0)
	for _, tt := range []struct {
		first, size, page uint64
		limit             int
		want              int
		err               error
	}{
		{0, 1, 4096, 8, 8, nil},
		{0, 64 * 4096, 4096, 8, 8, nil},
		{0, 64*4096 + 1, 4096, 16, 16, nil},
		{0, 64*4096 + 1, 4096, 15, 0, syscall.E2BIG},
		{0, 1, 1, 7, 0, syscall.E2BIG},
		{0, 1, 1, 0, 0, syscall.E2BIG},
		{0, all, 1, 1 << 30, 0, syscall.E2BIG},
		{0, all, 1 << 63, 8, 8, nil},
		{1, all, 1 << 63, 8, 8, nil},
		{2, all, 4096, 8, 0, syscall.EINVAL},
		{all, 1, 4096, 8, 8, nil},
		{all, 2, 4096, 8, 0, syscall.EINVAL},
		{0, 0, 4096, 8, 0, syscall.EINVAL},
		{0, 4096, 0, 8, 0, syscall.EINVAL},
		{0, 4096, 4097, 8, 0, syscall.EINVAL},
		{0, 4096, all, 8, 0, syscall.EINVAL},
	} {
		got, _, err := bitmapSize(tt.first, tt.size, tt.page, tt.limit)
		if got != tt.want || !errors.Is(err, tt.err) {
			t.Errorf("%s: %d, %v; want %d, %v", fmt.Sprintf("%#x+%#x in %#x, limit %d", tt.first, tt.size, tt.page, tt.limit), got, err, tt.want, tt.err)
		}
	}
}

// BenchmarkDirtyLog writes 64 bytes with and without a log.
func BenchmarkDirtyLog(b *testing.B) {
	for _, on := range []bool{false, true} {
		b.Run(fmt.Sprintf("log=%v", on), func(b *testing.B) {
			d := newDMA(new(counters))
			if err := d.mapFile(dmaMap{size: 1 << 20}, ProtRead|ProtWrite, testFile(b, 1<<20, 0), limits{pageSizes: 4096, maxDMAMaps: 10}); err != nil {
				b.Fatal(err)
			}
			defer d.clear()
			if on {
				if _, err := d.startLog(4096); err != nil {
					b.Fatal(err)
				}
			}
			var p [64]byte
			b.ReportAllocs()
			for i := uint64(0); b.Loop(); i++ {
				if err := d.Write(i%255*4096, p[:]); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
