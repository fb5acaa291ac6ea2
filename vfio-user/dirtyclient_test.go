// SPDX-License-Identifier: Apache-2.0

package vfiouser_test

import (
	"errors"
	"slices"
	"syscall"
	"testing"

	vfiouser "toebox/vfio-user"
	"toebox/vfio-user/vfiousertest"
)

// TestDirtyPages is a client that asks which pages the device has written to,
// in memory with a file and without.
func TestDirtyPages(t *testing.T) {
	const MiB = 1 << 20
	cfg := vfiousertest.Config()
	dev := vfiousertest.NewDevice(cfg)
	m := &ramMemory{b: make([]byte, 8*MiB)}
	// Bitmaps of 64 bytes: 2 MiB of pages of 4 KiB.
	srv, c := vfiousertest.Start(t, dev, cfg, vfiouser.ClientConfig{Memory: m, MaxTransfer: 64})
	d := srv.DMA()
	ram := vfiousertest.Memory(t, 8*MiB)
	mapAll(t, c, nil, mapping{0, 2 * MiB, 0, rd | wr})
	mapAll(t, c, ram, mapping{2 * MiB, 6 * MiB, 2 * MiB, rd | wr})
	if err := errors.Join(c.Probe(vfiouser.FeatureDirtyLogStart, false, true), c.Probe(vfiouser.FeatureDirtyLogReport, true, false)); err != nil {
		t.Error(err)
	}
	if err := c.Probe(vfiouser.FeatureMigration, true, false); !errors.Is(err, syscall.ENOTTY) {
		t.Errorf("migration: %v", err)
	}
	if _, err := c.DirtyPages(0, MiB, 4096); !errors.Is(err, syscall.EINVAL) {
		t.Errorf("pages without a log: %v", err)
	}

	// Logged in pages of 4 KiB, reported over several messages.
	if size, err := c.StartDirtyLog(4096, vfiouser.Range{IOVA: 0, Len: 4 * MiB}, vfiouser.Range{IOVA: 4 * MiB, Len: 4096}); size != 4096 || err != nil {
		t.Fatalf("start: %d, %v", size, err)
	}
	for _, a := range []uint64{0x3000, 0x5fff, 2*MiB + 0x1000, 7*MiB - 1} {
		if err := d.Write(a, []byte{1, 2}); err != nil {
			t.Fatal(err)
		}
	}
	want := make([]uint64, 32)
	want[0] = 0x68
	want[8] = 0x2
	want[27], want[28] = 1<<63, 1
	if got, err := c.DirtyPages(0, 8*MiB, 4096); err != nil || !slices.Equal(got, want) {
		t.Errorf("pages %#x, %v; want %#x", got, err, want)
	}
	if got, err := c.DirtyPages(0, 8*MiB, 4096); err != nil || slices.ContainsFunc(got, func(w uint64) bool { return w != 0 }) {
		t.Errorf("pages once more %#x, %v", got, err)
	}
	if err := c.StopDirtyLog(); err != nil {
		t.Error(err)
	}

	// Logged in pages of 2 MiB, reported in 4 KiB and in 4 MiB.
	if size, err := c.StartDirtyLog(2 * MiB); size != 2*MiB || err != nil {
		t.Fatalf("start: %d, %v", size, err)
	}
	if err := errors.Join(d.WriteByMessage(2*MiB-1, []byte{1, 2}), d.Write(6*MiB+5, []byte{1})); err != nil {
		t.Fatal(err)
	}
	for i := range want {
		want[i] = ^uint64(0)
		if i/8 == 2 {
			want[i] = 0
		}
	}
	if got, err := c.DirtyPages(0, 8*MiB, 4096); err != nil || !slices.Equal(got, want) {
		t.Errorf("pages of a coarse log %#x, %v; want %#x", got, err, want)
	}
	if err := d.Write(6*MiB, []byte{1}); err != nil {
		t.Fatal(err)
	}
	// A part of a page does not take the whole from the log.
	for range 2 {
		if got, err := c.DirtyPages(6*MiB+4096, 65*4096, 4096); err != nil || !slices.Equal(got, []uint64{^uint64(0), 1}) {
			t.Errorf("part of a page: %#x, %v", got, err)
		}
	}
	if got, err := c.DirtyPages(0, 8*MiB, 4*MiB); err != nil || !slices.Equal(got, []uint64{2}) {
		t.Errorf("large pages %#x, %v", got, err)
	}

	// What is dirty in a map that goes, and what was in it when it had gone.
	if err := d.Write(2*MiB, []byte{1}); err != nil {
		t.Fatal(err)
	}
	if n, got, err := c.UnmapDirty(2*MiB, 6*MiB, 2*MiB); n != 6*MiB || err != nil || !slices.Equal(got, []uint64{1}) {
		t.Errorf("unmap: %#x, %#x, %v", n, got, err)
	}
	if _, _, err := c.UnmapDirty(0, 2*MiB, 1); !errors.Is(err, syscall.E2BIG) {
		t.Errorf("unmap in bytes: %v", err)
	}
	if err := d.Write(0, []byte{1}); err != nil {
		t.Fatal(err)
	}
	if n, err := c.Unmap(0, 2*MiB); n != 2*MiB || err != nil {
		t.Errorf("unmap: %#x, %v", n, err)
	}
	if got, err := c.DirtyPages(0, 2*MiB, 2*MiB); err != nil || !slices.Equal(got, []uint64{1}) {
		t.Errorf("pages of a map that has gone: %#x, %v", got, err)
	}
	for name, f := range map[string]func() error{
		"pages of nothing":  func() error { _, err := c.DirtyPages(0, 0, 4096); return err },
		"pages that wrap":   func() error { _, err := c.DirtyPages(1<<63, 1<<63+1, 1<<63); return err },
		"odd pages":         func() error { _, err := c.DirtyPages(0, MiB, 5); return err },
		"start in odd size": func() error { _, err := c.StartDirtyLog(5000); return err },
		"start again":       func() error { _, err := c.StartDirtyLog(4096); return err },
	} {
		if err := f(); !errors.Is(err, syscall.EINVAL) {
			t.Errorf("%s: %v", name, err)
		}
	}
	// The log goes with the client.
	c.Close()
	<-dev.Gone
	c, err := vfiouser.NewClient(reconnect(t, srv), vfiouser.ClientConfig{})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := c.DirtyPages(0, MiB, 4096); !errors.Is(err, syscall.EINVAL) {
		t.Errorf("pages from the client before: %v", err)
	}
}

// TestByMessage reaches memory that has a file by message.
func TestByMessage(t *testing.T) {
	m := &ramMemory{b: pattern(0x4000)}
	cfg := vfiousertest.Config()
	srv, c := vfiousertest.Start(t, vfiousertest.NewDevice(cfg), cfg, vfiouser.ClientConfig{Memory: m, MaxTransfer: 0x800})
	d := srv.DMA()
	f := vfiousertest.Memory(t, 0x3000)
	mapAll(t, c, f, mapping{0, 0x1000, 0, rd | wr}, mapping{0x1000, 0x1000, 0x1000, rd}, mapping{0x2000, 0x1000, 0x2000, wr})
	b := make([]byte, 0x1c00)
	if err := d.ReadByMessage(0x200, b); err != nil || !slices.Equal(b, pattern(0x4000)[0x200:0x1e00]) {
		t.Errorf("read: %v", err)
	}
	err := d.WriteByMessage(0x2ffe, []byte("ab"))
	m.mu.Lock()
	if err != nil || string(m.b[0x2ffe:0x3000]) != "ab" {
		t.Errorf("write: %v", err)
	}
	m.mu.Unlock()
	if n := srv.Stats().DMAMessages; n != 5 {
		t.Errorf("%d messages", n) // two for each map that was read, one for the write
	}
	file := make([]byte, 0x3000)
	if _, err := f.ReadAt(file, 0); err != nil || !slices.Equal(file, make([]byte, 0x3000)) {
		t.Errorf("the file was written: %v", err)
	}
	errno(t, "write to read-only", d.WriteByMessage(0x1000, []byte{1}), 0x1000, syscall.EACCES)
	errno(t, "read of write-only", d.ReadByMessage(0x1fff, []byte{1, 2}), 0x2000, syscall.EACCES)
	errno(t, "beyond the maps", d.WriteByMessage(0x2fff, []byte{1, 2}), 0x3000, syscall.EFAULT)
	errno(t, "beyond 2^64", d.ReadByMessage(^uint64(0), []byte{1, 2}), ^uint64(0), syscall.EFAULT)
}
