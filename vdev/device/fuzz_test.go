// SPDX-License-Identifier: Apache-2.0

package device

import (
	"encoding/binary"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	vfiouser "toebox/vfio-user"
)

// heap is guest memory at iova that its writer and the adapter share under a
// lock: the fuzzed host writes when it likes.
type heap struct {
	mu sync.Mutex
	b  []byte
}

func (h *heap) Backed(at, n uint64, _ vfiouser.Prot) bool {
	return at >= iova && at-iova <= uint64(len(h.b)) && n <= uint64(len(h.b))-(at-iova)
}

func (h *heap) Generation(at, n uint64) uint64 {
	if !h.Backed(at, n, vfiouser.ProtRead) {
		return 0
	}
	return 1
}

func (h *heap) View(at uint64, n int, prot vfiouser.Prot, fn func([]byte) error) error {
	if !h.Backed(at, uint64(n), prot) {
		return &vfiouser.DMAError{IOVA: at, Len: uint64(n), Errno: unix.EFAULT}
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	return fn(h.b[at-iova:][:n])
}

func (h *heap) Read(at uint64, p []byte) error {
	return h.View(at, len(p), vfiouser.ProtRead, func(b []byte) error { copy(p, b); return nil })
}

func (h *heap) Write(at uint64, p []byte) error {
	return h.View(at, len(p), vfiouser.ProtWrite, func(b []byte) error { copy(b, p); return nil })
}

type noIRQs struct{}

func (noIRQs) Trigger(int, int) error { return nil }

// FuzzDevice is a hostile host with a whole adapter: it writes registers, memory
// and descriptors as the input says, 16 bytes at a time. Nothing may panic or
// hang, and after a reset the adapter works.
func FuzzDevice(f *testing.F) {
	op := func(kind, a, b, c byte, rest ...byte) []byte {
		return append(append([]byte{kind, a, b, c}, rest...), make([]byte, 12-len(rest))...)
	}
	start := append(op(0, 0x10, 0, 0, 1), op(1, 0, 4, 4)...)
	f.Add(start)
	// Connect, listen and attribute controls with a control buffer of zeroes.
	for _, kind := range []byte{3, 5, 6, 7, 8} {
		f.Add(append(append([]byte{}, start...), op(2, kind, 0, 1, 5, 0, 0, 0, 0x00, 0x40, 72)...))
	}
	f.Add(append(append(append([]byte{}, start...), op(2, 2, 0, 0, 1, 0, 0, 0, 0, 0x50, 64)...), op(0, 0, 0x10, 0, 5)...))
	f.Fuzz(func(t *testing.T, input []byte) {
		watchdog := time.AfterFunc(30*time.Second, func() { panic("the adapter hangs") })
		defer watchdog.Stop()
		mem := &heap{b: make([]byte, 1<<16)}
		d, err := New(Config{Firmware: tree, DMA: mem, IRQs: noIRQs{}, Seed: 1})
		if err != nil {
			t.Fatal(err)
		}
		set := func(region int, offset uint64, v uint32) {
			_ = d.function.WriteRegion(region, offset, binary.LittleEndian.AppendUint32(nil, v))
		}
		set(7, 4, 6)
		slot := uint64(0)
		for ; len(input) >= 16; input = input[16:] {
			o := input[:16]
			v := binary.LittleEndian.Uint32(o[4:])
			switch o[0] % 6 {
			case 0: // a register of BAR0
				set(0, uint64(binary.LittleEndian.Uint16(o[1:]))&^3, v)
			case 1: // a queue as a driver makes it, sizes from the input
				q := uint64(o[1]%4) * 0x40
				for s := range uint64(16) {
					_ = mem.Write(iova+0x2000+32*s, []byte{0x80})
				}
				for i, v := range []uint32{iova + 0x1000, 0, iova + 0x2000, 0, iova + 0x3000, 0, uint32(o[2]) | uint32(o[3])<<8} {
					set(0, 0x1008+q+4*uint64(i), v)
				}
				set(0, 0x1000+q, 1)
			case 2: // a request: type, flags, bytes 2-3, tag, base, length
				b := make([]byte, 32)
				b[0], b[1], b[2] = o[1]<<2, o[2], o[3]
				copy(b[4:], o[4:8])
				binary.LittleEndian.PutUint64(b[8:], iova+uint64(binary.LittleEndian.Uint16(o[8:])))
				b[16], b[24], b[25], b[28] = o[12], o[10], o[11], o[13]
				at := iova + 0x1000 + 32*(slot%16)
				_ = mem.Write(at+1, b[1:])
				_ = mem.Write(at, []byte{b[0] | 0x80})
				slot++
				set(0, 0x4000, uint32(slot))
			case 3: // memory
				_ = mem.Write(iova+uint64(binary.LittleEndian.Uint16(o[1:])), o[4:])
			case 4: // configuration space
				set(7, uint64(o[1])&^3, v)
			case 5: // hand output slots back
				for s := range uint64(16) {
					_ = mem.Write(iova+0x2000+32*s, []byte{0x80})
				}
				set(0, 0x4004, v)
			}
		}
		_ = d.function.Reset()
		set(7, 4, 6)
		var b [4]byte
		if err := d.function.ReadRegion(0, 0, b[:]); err != nil || binary.LittleEndian.Uint32(b[:]) != 0x424f4554 {
			t.Errorf("ID % x, %v", b, err)
		}
		if err := d.Close(); err != nil {
			t.Error(err)
		}
	})
}
