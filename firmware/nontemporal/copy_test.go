// SPDX-License-Identifier: Apache-2.0

package nontemporal

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"runtime/debug"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// pattern fills b by seed.
func pattern(b []byte, seed uint64) {
	rng := rand.New(rand.NewPCG(seed, 1))
	for i := range b {
		b[i] = byte(rng.Uint32())
	}
}

// same copies n bytes between two places of their buffers both ways, and compares
// all of the buffer.
func same(t *testing.T, to, from, n, room int) {
	t.Helper()
	src, want := make([]byte, from+n), make([]byte, to+n+room)
	pattern(src, uint64(n))
	pattern(want, 99)
	got := bytes.Clone(want)
	k := copy(want[to:], src[from:])
	if r := Copy(got[to:], src[from:]); r != k || !bytes.Equal(got, want) {
		t.Errorf("%d bytes from %d to %d, room for %d more: %d copied, want %d; equal: %v", n, from, to, room, r, k, bytes.Equal(got, want))
	}
}

func TestCopy(t *testing.T) {
	for to := range line + 1 {
		for from := range 18 {
			for _, n := range []int{0, 1, least - 1, least, least + 1, least + line - 1, least + line, 1500} {
				same(t, to, from, n, 70)
				same(t, to, from, n, -min(n, 1)) // dst is shorter
			}
		}
	}
	same(t, 3, 5, 64<<10, 100)
}

func FuzzCopy(f *testing.F) {
	f.Add(uint16(0), uint16(0), uint16(1024))
	f.Add(uint16(63), uint16(1), uint16(321))
	f.Fuzz(func(t *testing.T, to, from, n uint16) { same(t, int(to), int(from), int(n), 128) })
}

// TestFault: memory that has gone, at either end of a copy and in the middle of
// it, is a panic that can be recovered from, as that of copy is.
func TestFault(t *testing.T) {
	const size = 64 << 10
	page := unix.Getpagesize()
	fd, err := unix.MemfdCreate("nontemporal", unix.MFD_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	if err := unix.Ftruncate(fd, int64(size)); err != nil {
		t.Fatal(err)
	}
	mem, err := unix.Mmap(fd, 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Munmap(mem)
	if err := unix.Ftruncate(fd, int64(page)); err != nil { // the rest is SIGBUS
		t.Fatal(err)
	}
	own := make([]byte, size)
	faults := func(dst, src []byte) (caught any) {
		defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
		defer func() { caught = recover() }()
		Copy(dst, src)
		return nil
	}
	for _, c := range []struct {
		name     string
		dst, src []byte
		want     bool
	}{
		{"all there", mem[:page], own, false},
		{"stores into what has gone", mem[page:], own, true},
		{"stores that run into it", mem[7:], own, true},
		{"loads from what has gone", own, mem[page+1:], true},
		{"loads that run into it", own, mem[1:], true},
		{"there still", mem[1:page], own, false},
	} {
		caught := faults(c.dst, c.src)
		fault, ok := caught.(interface{ Addr() uintptr })
		if ok != c.want || (caught != nil) != c.want {
			t.Errorf("%s: %v", c.name, caught)
		}
		// The DMA map believes a fault only at an address of the memory itself.
		if ok && (fault.Addr() < address(mem[page:]) || fault.Addr() >= address(mem)+size) {
			t.Errorf("%s: a fault at %#x, the memory that has gone is at %#x", c.name, fault.Addr(), address(mem[page:]))
		}
	}
}

// deliveries are how bytes come to host memory.
func deliveries() map[string]func(dst, src []byte) int {
	return map[string]func(dst, src []byte) int{
		"ordinary":    func(dst, src []byte) int { return copy(dst, src) },
		"nontemporal": Copy,
	}
}

// touch reads a byte of each line.
func touch(b []byte) (sum byte) {
	for i := 0; i < len(b); i += line {
		sum += b[i]
	}
	return sum
}

// BenchmarkFresh copies a transfer and reads it at once, as a host does that waits
// for it.
func BenchmarkFresh(b *testing.B) {
	for name, deliver := range deliveries() {
		for _, size := range []int{4 << 10, 64 << 10, 1 << 20} {
			b.Run(fmt.Sprintf("%s/%dKiB", name, size>>10), func(b *testing.B) {
				src, dst := make([]byte, size), make([]byte, size)
				b.SetBytes(int64(size))
				for b.Loop() {
					deliver(dst, src)
					touch(dst)
				}
			})
		}
	}
}

// BenchmarkNeighbour reads a working set after each 4 MiB of a bulk receive; what
// counts is the time of the reading alone: ns-read is the median.
func BenchmarkNeighbour(b *testing.B) {
	for name, deliver := range deliveries() {
		for _, size := range []int{256 << 10, 1 << 20} {
			b.Run(fmt.Sprintf("%s/%dKiB", name, size>>10), func(b *testing.B) {
				src, set := make([]byte, 64<<10), make([]byte, size)
				dst := make([]byte, 64<<20)
				pattern(src, 1)
				copy(dst, make([]byte, len(dst))) // its pages are there
				at := 0
				var readings []time.Duration
				for b.Loop() {
					for range 64 {
						deliver(dst[at:at+len(src)], src)
						at = (at + len(src)) % len(dst)
					}
					start := time.Now()
					touch(set)
					readings = append(readings, time.Since(start))
				}
				slices.Sort(readings)
				b.ReportMetric(float64(readings[len(readings)/2]), "ns-read")
			})
		}
	}
}
