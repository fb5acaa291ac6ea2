// SPDX-License-Identifier: Apache-2.0

package vdev

import (
	"testing"

	"toebox/firmware"
	"toebox/vdev/abi"
)

// quietIRQs takes triggers and forgets them.
type quietIRQs struct{}

func (quietIRQs) Trigger(int, int) error { return nil }

// quiet is an enabled function whose fakes cost nothing.
func quiet(tb testing.TB) *Function {
	tb.Helper()
	fw := &fakeFirmware{}
	f, err := New(Config{
		DMA: newFakeDMA(0x10_0000, 1<<16), IRQs: quietIRQs{},
		Start: func(firmware.Chip, Identity, uint32) (Firmware, Counters, error) { return fw, &fw.counters, nil },
	})
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { f.Close() })
	for _, c := range []struct {
		offset uint64
		value  byte
	}{{0x04, 0x06}, {0x8b, 0x80}} {
		if err := f.WriteRegion(7, c.offset, []byte{c.value}); err != nil {
			tb.Fatal(err)
		}
	}
	return f
}

// hotPaths are what must not allocate.
func hotPaths(f *Function) map[string]func() {
	p := make([]byte, 4)
	view := func([]byte) error { return nil }
	return map[string]func(){
		"doorbell": func() { _ = f.WriteRegion(abi.BARRegisters, 0x4008, p) },
		"read":     func() { _ = f.ReadRegion(abi.BARRegisters, 0x80, p) },
		"status":   func() { _ = f.ReadRegion(abi.BARRegisters, 0x14, p) },
		"signal":   func() { f.Signal(1) },
		"view":     func() { _ = f.View(0x10_0000, 512, true, view) },
		"copy in":  func() { _ = f.Read(0x10_0000, p) },
		"copy out": func() { _ = f.Write(0x10_0000, p) },
	}
}

func TestNoAllocations(t *testing.T) {
	for name, path := range hotPaths(quiet(t)) {
		if n := testing.AllocsPerRun(100, path); n != 0 {
			t.Errorf("%s: %v allocations", name, n)
		}
	}
}

func BenchmarkFunction(b *testing.B) {
	for name, path := range hotPaths(quiet(b)) {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				path()
			}
		})
	}
}
