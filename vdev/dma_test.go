// SPDX-License-Identifier: Apache-2.0

package vdev

import (
	"bytes"
	"encoding/binary"
	"errors"
	"hash/crc32"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	vfiouser "toebox/vfio-user"
)

// pattern is the test pattern of SPEC.md §12.
func pattern(seed uint32, n int) []byte {
	var b []byte
	for k := range uint32(n / 4) {
		b = binary.LittleEndian.AppendUint32(b, seed+k*0x9e3779b9)
	}
	return b
}

// transferTest runs a DMA test and returns TEST_STATUS.
func (r *rig) transferTest(addr uint64, length, command uint32) uint32 {
	r.Helper()
	r.set(0x90, uint32(addr))
	r.set(0x94, uint32(addr>>32))
	r.set(0x98, length)
	r.set(0x9c, 0x12345678)
	r.set(0xa0, command)
	return r.poll(0xa4, 1)
}

func TestTestDMA(t *testing.T) {
	r := enabled(t, nil)
	r.want(0xa4, 0)
	for _, n := range []int{4, 4096, 5000, 65536} {
		clear(r.dma.mem)
		r.fw.with(func(w *fakeFirmware) { w.wrote = 0 })
		if s := r.transferTest(0x10_0010, uint32(n), 1); s != 2 {
			t.Fatalf("%d bytes: status %d", n, s)
		}
		r.fw.with(func(w *fakeFirmware) {
			if w.wrote != uint64(n) {
				t.Errorf("the firmware was told of %d bytes written, want %d", w.wrote, n)
			}
		})
		want := pattern(0x12345678, n)
		r.want(0xa8, crc32.ChecksumIEEE(want))
		if !bytes.Equal(r.dma.mem[0x10:0x10+n], want) || r.dma.mem[0xf] != 0 || r.dma.mem[0x10+n] != 0 {
			t.Errorf("%d bytes: memory is not the pattern", n)
		}
	}
	copy(r.dma.mem, "abcdefgh")
	if s := r.transferTest(0x10_0000, 8, 2); s != 2 {
		t.Errorf("read: status %d", s)
	}
	r.want(0xa8, 0xaeef2a50)

	for _, n := range []uint32{0, 1, 6, 65540, 0xfffffffc} {
		if s := r.transferTest(0x10_0000, n, 1); s != 3 {
			t.Errorf("%d bytes: status %d, want 3", n, s)
		}
	}
	before := r.f.Counter(17)
	for _, c := range []struct {
		addr uint64
		n    uint32
	}{{0, 4}, {0xf_fffc, 8}, {0x13_fffc, 8}, {1<<64 - 4, 8}, {1<<64 - 4, 4}} {
		if s := r.transferTest(c.addr, c.n, 2); s != 4 {
			t.Errorf("%d bytes at %#x: status %d, want 4", c.n, c.addr, s)
		}
	}
	if got := r.f.Counter(17) - before; got != 5 {
		t.Errorf("dma_errors counted %d, want 5", got)
	}
	bad := r.f.Counter(47)
	r.set(0xa0, 0)
	r.set(0xa0, 3)
	if got := r.f.Counter(47) - bad; got != 2 {
		t.Errorf("mmio_bad_value counted %d", got)
	}
}

// TestDMAGate: without bus mastering, or in D3hot, no DMA of any kind.
func TestDMAGate(t *testing.T) {
	for name, closeGate := range map[string]func(r *rig){
		"at reset":       func(r *rig) { _ = r.f.Reset() },
		"bus master off": func(r *rig) { r.setConfig(0x04, 2, 2) },
		"D3hot":          func(r *rig) { r.setConfig(0x44, 2, 3) },
		"closed":         func(r *rig) { r.f.Close() },
		"closed, then enabled": func(r *rig) {
			r.f.Close()
			r.setConfig(0x04, 2, 6)
		},
	} {
		t.Run(name, func(t *testing.T) {
			r := enabled(t, nil)
			p := make([]byte, 4)
			do := func() (errs []error) {
				return []error{
					r.f.Read(0x10_0000, p), r.f.Write(0x10_0000, p),
					r.f.View(0x10_0000, 4, true, func([]byte) error { return nil }),
				}
			}
			for i, err := range do() {
				if err != nil {
					t.Errorf("access %d while enabled: %v", i, err)
				}
			}
			if !r.f.Shared(0x10_0000, 4) {
				t.Error("not shared while enabled")
			}
			closeGate(r)
			before := r.f.Counter(17)
			for i, err := range do() {
				if !errors.Is(err, unix.EACCES) {
					t.Errorf("access %d: %v", i, err)
				}
			}
			if r.f.Shared(0x10_0000, 4) {
				t.Error("shared")
			}
			if got := r.f.Counter(17) - before; got != 3 {
				t.Errorf("dma_errors counted %d, want 3", got)
			}
		})
	}
}

// TestViewCallbackError: what the firmware's own callback answers is no DMA
// error.
func TestViewCallbackError(t *testing.T) {
	r := enabled(t, nil)
	mine := errors.New("mine")
	if err := r.f.View(0x10_0000, 4, false, func([]byte) error { return mine }); err != mine {
		t.Errorf("%v", err)
	}
	if got := r.f.Counter(17); got != 0 {
		t.Errorf("dma_errors is %d", got)
	}
	fn := func([]byte) error { return nil }
	if n := testing.AllocsPerRun(100, func() { _ = r.f.View(0x10_0000, 64, true, fn) }); n != 0 {
		t.Errorf("%v allocations per view", n)
	}
}

// TestResetAbandonsMessages: a reset does not wait for memory that only the
// client can reach, and the worker that waits for it writes nothing after.
func TestResetAbandonsMessages(t *testing.T) {
	r := enabled(t, nil)
	r.dma.remote, r.dma.hold = 0x12_0000, make(chan struct{})
	start := func() {
		r.set(0x90, 0x12_0000)
		r.set(0x94, 0)
		r.set(0x98, 8192)
		r.set(0xa0, 1)
	}
	start()
	<-r.dma.entered
	r.want(0xa4, 1)
	r.set(0xa0, 1) // busy: refused
	if got := r.f.Counter(47); got != 1 {
		t.Errorf("mmio_bad_value is %d", got)
	}
	result := make(chan error)
	p := []byte{1, 2, 3, 4}
	go func() { result <- r.f.Read(0x12_0000, p) }()
	<-r.dma.entered
	r.set(0x10, 1<<31)
	if err := <-result; !errors.Is(err, unix.ECANCELED) {
		t.Errorf("read across the reset: %v", err)
	}
	r.want(0xa4, 0)
	close(r.dma.hold)
	r.f.work.Wait()
	for end := time.Now().Add(time.Minute); r.f.messages.running.Load() != 0; {
		if time.Now().After(end) {
			t.Fatal("abandoned accesses do not end")
		}
	}
	if !bytes.Equal(p, []byte{1, 2, 3, 4}) {
		t.Error("an abandoned read changed the caller's memory")
	}
	r.want(0xa4, 0)
	if s := r.transferTest(0x10_0000, 4, 1); s != 2 {
		t.Errorf("after the reset: status %d", s)
	}
	r.dma.mu.Lock()
	defer r.dma.mu.Unlock()
	for i, v := range r.dma.mem[0x2_1000:0x2_2000] {
		if v != 0 {
			t.Fatalf("byte %#x was written after the reset", 0x12_1000+i)
		}
	}
}

// TestTestDMARunOver: a worker whose run a reset ended moves nothing more, and
// as long as it has not ended there is no second one.
func TestTestDMARunOver(t *testing.T) {
	r := enabled(t, nil)
	r.f.mu.Lock()
	run := r.f.test.next()
	r.f.test.running = true
	r.f.mu.Unlock()
	if err := r.f.testAccess(run, true, 0x10_0000, []byte{1}); err != nil || r.dma.mem[0] != 1 {
		t.Errorf("during the run: %v", err)
	}
	r.set(0x10, 1<<31)
	if err := r.f.testAccess(run, true, 0x10_0000, []byte{2}); !errors.Is(err, unix.ECANCELED) || r.dma.mem[0] != 1 {
		t.Errorf("after the reset: %v", err)
	}
	if s := r.transferTest(0x10_0000, 4, 1); s != 4 || r.dma.mem[0] != 1 {
		t.Errorf("a second worker: status %d", s)
	}
}

// everywhere is memory at each address.
type everywhere struct{ fakeDMA }

func (*everywhere) Write(uint64, []byte) error                { return nil }
func (*everywhere) Backed(uint64, uint64, vfiouser.Prot) bool { return true }

// TestTestDMAWrap: a transfer does not go on at address 0.
func TestTestDMAWrap(t *testing.T) {
	r := enabled(t, func(c *Config) { c.DMA = &everywhere{} })
	if s := r.transferTest(1<<64-4096, 4096, 1); s != 2 {
		t.Errorf("up to the last byte: status %d", s)
	}
	if s := r.transferTest(1<<64-4096, 8192, 1); s != 4 {
		t.Errorf("across it: status %d", s)
	}
}

// TestMessageLimit: however many wait, goroutines are bounded.
func TestMessageLimit(t *testing.T) {
	r := enabled(t, nil)
	r.dma.remote, r.dma.hold = 0x12_0000, make(chan struct{})
	results := make(chan error, 64)
	for range 64 {
		go func() { results <- r.f.Write(0x12_0000, []byte{1}) }()
		<-r.dma.entered
	}
	if err := r.f.Write(0x12_0000, []byte{1}); !errors.Is(err, unix.EBUSY) {
		t.Errorf("the 65th: %v", err)
	}
	close(r.dma.hold)
	for range 64 {
		if err := <-results; err != nil {
			t.Error(err)
		}
	}
	if r.dma.mem[0x2_0000] != 1 {
		t.Error("nothing was written")
	}
}
