// SPDX-License-Identifier: Apache-2.0

package vfiouser_test

import (
	"fmt"
	"net"
	"os"
	"testing"

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

// BenchmarkPostedWrite sends one message a time, as QEMU does, and waits at
// the end until all have been served.
func BenchmarkPostedWrite(b *testing.B) {
	_, r := newRaw(b)
	post := region(1, 10, vfiousertest.NoReply, 0, 4, 1, 2, 3, 4).Bytes()
	read := region(2, 9, 0, 0, 4).Bytes()
	b.ReportAllocs()
	for b.Loop() {
		if _, err := r.conn.Write(post); err != nil {
			b.Fatal(err)
		}
	}
	r.do(read, 36)
}

func BenchmarkTrigger(b *testing.B) {
	cfg := vfiousertest.Config()
	srv, c := vfiousertest.Start(b, quiet{}, cfg, vfiouser.ClientConfig{})
	e := vfiousertest.NewEventFD(b)
	if err := c.AssignIRQ(vfiouser.IRQMSIX, 0, e.FD()); err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		srv.Trigger(vfiouser.IRQMSIX, 0)
	}
}

// pages maps n pages of f, every other one of the address space, so that none
// can be joined with its neighbour.
func pages(t testing.TB, c *vfiouser.Client, f *os.File, n int) {
	t.Helper()
	for i := range uint64(n) {
		if err := c.Map(i<<13, 4096, i%2048<<12, 3, f); err != nil {
			t.Fatal(err)
		}
	}
}

// BenchmarkMapUnmap measures a pair of messages, round trips included, with
// other maps live.
func BenchmarkMapUnmap(b *testing.B) {
	for _, live := range []int{10, 60000} {
		b.Run(fmt.Sprint(live), func(b *testing.B) {
			_, c := vfiousertest.Start(b, quiet{}, vfiousertest.Config(), vfiouser.ClientConfig{})
			f := vfiousertest.Memory(b, 8<<20)
			pages(b, c, f, live)
			for i := 0; b.Loop(); i++ {
				at := uint64(i%live)<<13 + 4096
				if err := c.Map(at, 4096, 0, 3, f); err != nil {
					b.Fatal(err)
				}
				if n, err := c.Unmap(at, 4096); n != 4096 || err != nil {
					b.Fatal(n, err)
				}
			}
		})
	}
}

func BenchmarkRead(b *testing.B) {
	for _, bb := range []struct{ live, size int }{{1, 64}, {10, 64}, {60000, 64}, {1, 1500}, {1, 64 << 10}} {
		b.Run(fmt.Sprintf("live=%d/size=%d", bb.live, bb.size), func(b *testing.B) {
			srv, c := vfiousertest.Start(b, quiet{}, vfiousertest.Config(), vfiouser.ClientConfig{})
			f := vfiousertest.Memory(b, 8<<20)
			pages(b, c, f, bb.live)
			const big = 1 << 40
			if err := c.Map(big, 8<<20, 0, 3, f); err != nil {
				b.Fatal(err)
			}
			d := srv.DMA()
			p := make([]byte, bb.size)
			b.SetBytes(int64(bb.size))
			b.ReportAllocs()
			for i := uint64(0); b.Loop(); i++ {
				at := i * 7919 % uint64(bb.live) << 13
				if bb.size > 64 {
					at = big
				}
				if err := d.Read(at, p); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
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
