// SPDX-License-Identifier: Apache-2.0

package vfiouser_test

import (
	"bytes"
	"fmt"
	"net"
	"os"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	vfiouser "toebox/vfio-user"
	"toebox/vfio-user/vfiousertest"
)

// quiet is a device that does nothing, so that the protocol alone is measured.
type quiet struct{}

func (quiet) ReadRegion(int, uint64, []byte) error  { return nil }
func (quiet) WriteRegion(int, uint64, []byte) error { return nil }
func (quiet) Reset() error                          { return nil }
func (quiet) Disconnected()                         {}

// raw is a client as thin as can be: it sends bytes and reads a reply of a
// known length.
type raw struct {
	t    testing.TB
	conn *net.UnixConn
	in   [4096]byte
}

func newRaw(t testing.TB) (*vfiouser.Server, *raw) {
	srv, conn := vfiousertest.Serve(t, quiet{}, vfiousertest.Config())
	vfiousertest.NewPeer(t, conn).Version()
	return srv, &raw{t: t, conn: conn}
}

func (r *raw) do(b []byte, reply int) {
	if _, err := r.conn.Write(b); err != nil {
		r.t.Fatal(err)
	}
	if n, err := readFull(r.conn, r.in[:reply]); err != nil {
		r.t.Fatalf("%d bytes, %v", n, err)
	}
}

func BenchmarkRegionRead(b *testing.B) {
	_, r := newRaw(b)
	msg := region(1, 9, 0, 0, 4).Bytes()
	b.ReportAllocs()
	for b.Loop() {
		r.do(msg, 36)
	}
}

func BenchmarkRegionWrite(b *testing.B) {
	_, r := newRaw(b)
	msg := region(1, 10, 0, 0, 4, 1, 2, 3, 4).Bytes()
	b.ReportAllocs()
	for b.Loop() {
		r.do(msg, 32)
	}
}

// BenchmarkPostedWrite sends posted writes, one in a system call as QEMU does
// when it has nothing else to send, or many, and waits at the end until all
// have been served. An operation is one write.
func BenchmarkPostedWrite(b *testing.B) {
	for _, batch := range []int{1, 16, 512} {
		b.Run(fmt.Sprintf("batch=%d", batch), func(b *testing.B) {
			_, r := newRaw(b)
			post := bytes.Repeat(region(1, 10, vfiousertest.NoReply, 0, 4, 1, 2, 3, 4).Bytes(), batch)
			read := region(2, 9, 0, 0, 4).Bytes()
			b.ReportAllocs()
			b.ResetTimer()
			for n := b.N; n > 0; n -= batch {
				if _, err := r.conn.Write(post); err != nil {
					b.Fatal(err)
				}
			}
			r.do(read, 36)
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds()/1e6, "Mwrites/s")
		})
	}
}

// BenchmarkTrigger measures an interrupt that the kernel signals, and one that is
// written.
func BenchmarkTrigger(b *testing.B) {
	b.Run("kernel", func(b *testing.B) { benchmarkTrigger(b, false) })
	b.Run("write", func(b *testing.B) { benchmarkTrigger(b, true) })
}

func benchmarkTrigger(b *testing.B, write bool) {
	cfg := vfiousertest.Config()
	srv, c := vfiousertest.Start(b, quiet{}, cfg, vfiouser.ClientConfig{})
	if write {
		srv.WriteEvents()
	}
	e := vfiousertest.NewEventFD(b)
	if err := c.AssignIRQ(vfiouser.IRQMSIX, 0, e.FD()); err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		srv.Trigger(vfiouser.IRQMSIX, 0)
	}
}

// BenchmarkMapUnmap measures a pair of messages, round trips included, with 10
// and with 60,000 other maps live, in rounds that take turns, and reports the
// medians and their ratio.
func BenchmarkMapUnmap(b *testing.B) {
	const pairs = 2000
	few, many := newMaps(b, 10), newMaps(b, 60000)
	for b.Loop() {
		var f, m []float64
		for range rounds {
			f = append(f, few.churn(b, pairs))
			m = append(m, many.churn(b, pairs))
		}
		report(b, "10-live", f, "60000-live", m)
	}
}

// BenchmarkMillionMaps maps a million single pages and unmaps them with one
// message. It reports what a map takes, the unmap, and the mmaps of the process,
// of which the kernel allows 65530.
func BenchmarkMillionMaps(b *testing.B) {
	const live = 1000000
	for b.Loop() {
		start := time.Now()
		m := newMaps(b, live)
		b.ReportMetric(float64(time.Since(start).Microseconds())/live, "us/map")
		p, err := os.ReadFile("/proc/self/maps")
		if err != nil {
			b.Fatal(err)
		}
		b.ReportMetric(float64(bytes.Count(p, []byte("\n"))), "mmaps")
		start = time.Now()
		if n, err := m.client.Unmap(0, live<<13); n != live*4096 || err != nil {
			b.Fatal(n, err)
		}
		b.ReportMetric(float64(time.Since(start).Milliseconds()), "ms/unmap")
		b.ReportMetric(0, "ns/op")
	}
}

// maps is a connection with maps of single pages, no two of them adjacent.
type maps struct {
	srv    *vfiouser.Server
	client *vfiouser.Client
	file   *os.File
	live   int
}

const memorySize = 8 << 20

func newMaps(t testing.TB, live int) *maps {
	t.Helper()
	cfg := vfiousertest.Config()
	cfg.MaxDMAMaps = 1 << 21
	srv, c := vfiousertest.Start(t, quiet{}, cfg, vfiouser.ClientConfig{MaxDMAMaps: 1 << 21})
	m := &maps{srv, c, vfiousertest.Memory(t, memorySize), live}
	for i := range uint64(live) {
		if err := c.Map(i<<13, 4096, i<<12%(64<<10), 3, m.file); err != nil {
			t.Fatal(err)
		}
	}
	return m
}

// churn maps and unmaps a page n times, between the others, and returns the
// nanoseconds that a pair took.
func (m *maps) churn(t testing.TB, n int) float64 {
	t.Helper()
	start := time.Now()
	for i := range n {
		at := uint64(i*7919%m.live)<<13 + 4096
		if err := m.client.Map(at, 4096, 0, 3, m.file); err != nil {
			t.Fatal(err)
		}
		if size, err := m.client.Unmap(at, 4096); size != 4096 || err != nil {
			t.Fatal(size, err)
		}
	}
	return float64(time.Since(start).Nanoseconds()) / float64(n)
}

// report gives the medians of two series and how the second compares.
func report(b *testing.B, nameX string, x []float64, nameY string, y []float64) {
	slices.Sort(x)
	slices.Sort(y)
	b.ReportMetric(x[len(x)/2], "ns/"+nameX)
	b.ReportMetric(y[len(y)/2], "ns/"+nameY)
	b.ReportMetric(y[len(y)/2]/x[len(x)/2], "ratio")
	b.ReportMetric(0, "ns/op")
}

// BenchmarkRead is translation of an address and a copy of 64 bytes, on as many
// processors as -cpu says: at random addresses in all maps, and at random
// addresses in 16 of them, as a queue with its tables and buffers does. The maps
// share 64 KiB of a file, so that the memory itself is in the caches and the
// look-up is what counts.
func BenchmarkRead(b *testing.B) {
	for _, live := range []int{1, 1000, 60000} {
		for _, used := range []int{live, 16} {
			if used > live {
				continue
			}
			b.Run(fmt.Sprintf("live=%d/used=%d", live, used), func(b *testing.B) {
				d := newMaps(b, live).srv.DMA()
				b.ReportAllocs()
				b.ResetTimer()
				b.RunParallel(func(pb *testing.PB) {
					p := make([]byte, 64)
					apart := uint64(live / used)
					for x := uint64(1); pb.Next(); {
						// A period that branch prediction could learn would not be fair.
						x = x*6364136223846793005 + 1442695040888963407
						if err := d.Read(x>>33%uint64(used)*apart<<13+x>>20&0xfc0, p); err != nil {
							b.Error(err)
							return
						}
					}
				})
			})
		}
	}
}

// BenchmarkCopy compares copying 64 KiB to and from guest memory with a plain
// copy between two mappings, in rounds that take turns.
func BenchmarkCopy(b *testing.B) {
	const size, copies = 64 << 10, 2000
	srv, c := vfiousertest.Start(b, quiet{}, vfiousertest.Config(), vfiouser.ClientConfig{})
	guest := vfiousertest.Memory(b, memorySize)
	if err := c.Map(0, memorySize, 0, 3, guest); err != nil {
		b.Fatal(err)
	}
	plain, own := attach(b, guest), attach(b, vfiousertest.Memory(b, memorySize))
	clear(plain) // fault all pages in
	clear(own)
	d := srv.DMA()
	run := func(f func(at int) error) float64 {
		start := time.Now()
		for i := range copies {
			if err := f(i * size % memorySize); err != nil {
				b.Fatal(err)
			}
		}
		return float64(time.Since(start).Nanoseconds()) / copies
	}
	for _, bb := range []struct {
		name  string
		plain func(at int) error
		ours  func(at int) error
	}{
		{"read", func(at int) error { copy(own[at:at+size], plain[at:]); return nil },
			func(at int) error { return d.Read(uint64(at), own[at:at+size]) }},
		{"write", func(at int) error { copy(plain[at:at+size], own[at:]); return nil },
			func(at int) error { return d.Write(uint64(at), own[at:at+size]) }},
	} {
		b.Run(bb.name, func(b *testing.B) {
			run(bb.ours)
			for b.Loop() {
				var x, y []float64
				for range rounds {
					x = append(x, run(bb.plain))
					y = append(y, run(bb.ours))
				}
				report(b, "plain", x, "ours", y)
			}
		})
	}
}

func attach(t testing.TB, f *os.File) []byte {
	t.Helper()
	m, err := unix.Mmap(int(f.Fd()), 0, memorySize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Munmap(m) })
	return m
}

func BenchmarkView(b *testing.B) {
	srv, c := vfiousertest.Start(b, quiet{}, vfiousertest.Config(), vfiouser.ClientConfig{})
	if err := c.Map(0, 8<<20, 0, 3, vfiousertest.Memory(b, 8<<20)); err != nil {
		b.Fatal(err)
	}
	d := srv.DMA()
	var sum byte
	f := func(p []byte) error { sum += p[0]; return nil }
	b.ReportAllocs()
	for b.Loop() {
		if err := d.View(64, 64, vfiouser.ProtRead, f); err != nil {
			b.Fatal(err)
		}
	}
}

// TestAllocs holds the paths of the steady state to no allocation at all.
func TestAllocs(t *testing.T) {
	srv, r := newRaw(t)
	p := vfiousertest.NewPeer(t, r.conn)
	f := vfiousertest.Memory(t, 1<<20)
	e := vfiousertest.NewEventFD(t)
	expect(t, p.Do(dmaMap(1, 0, 0, 1<<20), int(f.Fd())), 0)
	expect(t, p.Do(irqs(2, 0x24, 2, 0, 1), e.FD()), 0)
	d := srv.DMA()
	small, large := make([]byte, 64), make([]byte, 200<<10)
	view := func(b []byte) error { small[0] = b[0]; return nil }
	read, write := region(3, 9, 0, 0, 4).Bytes(), region(4, 10, 0, 0, 4, 1, 2, 3, 4).Bytes()
	post := region(5, 10, vfiousertest.NoReply, 0, 4, 1, 2, 3, 4).Bytes()
	for name, f := range map[string]func(){
		"Read":         func() { d.Read(100, small) },
		"Write":        func() { d.Write(100, large) },
		"View":         func() { d.View(100, len(large), vfiouser.ProtRead, view) },
		"Backed":       func() { d.Backed(0, 1<<20, vfiouser.ProtRead) },
		"Trigger":      func() { srv.Trigger(vfiouser.IRQMSIX, 0) },
		"region read":  func() { r.do(read, 36) },
		"region write": func() { r.do(write, 32) },
		"posted write": func() { r.conn.Write(post); r.do(read, 36) },
	} {
		if n := testing.AllocsPerRun(200, f); n != 0 {
			t.Errorf("%s: %v allocations", name, n)
		}
	}
}
