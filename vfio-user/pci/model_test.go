// SPDX-License-Identifier: Apache-2.0

package pci_test

import (
	"bytes"
	"math/rand/v2"
	"testing"

	"toebox/vfio-user/pci"
)

// bitsOf is what the model knows of a register, from the specifications and
// from modelled.
type bitsOf struct {
	at, n                       int
	reset, rw, w1c, sticky, flr uint64
}

// modelled is the function that the model follows.
func modelled() pci.Config {
	return pci.Config{
		Vendor: 0x1234, Device: 0x5678, Pin: 1, BARs: [6]pci.BAR{{Kind: pci.Memory64, Size: 1 << 34, Prefetchable: true}, {}, {Kind: pci.IO, Size: 64}},
		Capabilities: []pci.Capability{
			pci.PM{D2: true, PME: 1 << 4}, pci.Express{FLR: true}, pci.MSI{Vectors: 4, Masking: true}, pci.MSIX{Vectors: 9, BAR: 3},
			pci.AER{}, pci.VSEC{Size: 21, Fields: []pci.Field{
				{Offset: 9, Width: 7, Reset: 0x11223344556677, Writable: 0x0f0f0f0f0f0f0f, W1C: 0x70707070707070, Sticky: 0xff0000000000ff, FLRKeeps: 0xff00},
				{Offset: 16, Width: 5, Writable: 0xffffffffff},
			}},
		},
		Fields: []pci.Field{{Offset: 0xf9, Width: 3, Reset: 0xaaaaaa, W1C: 0xffffff, Sticky: 0x00ff00}},
	}
}

func modelledBits() []bitsOf {
	return []bitsOf{
		{at: 0x00, n: 4, reset: 0x56781234}, {at: 0x04, n: 2, rw: 0x0547}, {at: 0x06, n: 2, reset: 0x10, w1c: 0xf900}, {at: 0x0c, n: 1, rw: 0xff},
		{at: 0x10, n: 8, reset: 0xc, rw: 0xfffffffc_00000000}, {at: 0x18, n: 4, reset: 1, rw: 0xffffffc0}, {at: 0x1c, n: 4, rw: 0xfffff000},
		{at: 0x34, n: 1, reset: 0x40}, {at: 0x3c, n: 2, reset: 0x100, rw: 0xff},
		{at: 0x40, n: 4, reset: 0x84034801}, {at: 0x44, n: 2, rw: 0x103, w1c: 0x8000, sticky: 0x8100},
		{at: 0x48, n: 4, reset: 0x00028410}, {at: 0x4c, n: 4, reset: 0x10008000}, {at: 0x50, n: 4, reset: 0x2810, rw: 0x78ff, w1c: 0xf0000, flr: 0xe0},
		{at: 0x54, n: 4, reset: 0x00400011}, {at: 0x58, n: 4, reset: 0x110000, rw: 0xc8, flr: 0xc8}, {at: 0x6c, n: 4, reset: 0x10}, {at: 0x70, n: 2, rw: 0x10},
		{at: 0x74, n: 4, reset: 2}, {at: 0x78, n: 2, reset: 1, rw: 0xf},
		{at: 0x84, n: 4, reset: 0x01849c05, rw: 0x710000}, {at: 0x88, n: 8, rw: 0xfffffffffffffffc}, {at: 0x90, n: 2, rw: 0xffff}, {at: 0x94, n: 4, rw: 0xf},
		{at: 0x9c, n: 4, reset: 0x00080011, rw: 0xc0000000}, {at: 0xa0, n: 4, reset: 3}, {at: 0xa4, n: 4, reset: 0x93},
		{at: 0xf9, n: 3, reset: 0xaaaaaa, w1c: 0xffffff, sticky: 0xff00},
		{at: 0x100, n: 4, reset: 0x14820001}, {at: 0x104, n: 4, w1c: 0x5ff030, sticky: 0x5ff030}, {at: 0x108, n: 4, reset: 0x400000, rw: 0x5ff030, sticky: 0x5ff030},
		{at: 0x10c, n: 4, reset: 0x462030, rw: 0x5ff030, sticky: 0x5ff030}, {at: 0x110, n: 4, w1c: 0x31c1, sticky: 0x31c1}, {at: 0x114, n: 4, reset: 0x2000, rw: 0x31c1, sticky: 0x31c1},
		{at: 0x148, n: 8, reset: 0x01500000_0001000b},
		{at: 0x151, n: 7, reset: 0x11223344556677, rw: 0x0f0f0f0f0f0f0f, w1c: 0x70707070707070, sticky: 0xff0000000000ff, flr: 0xff00},
		{at: 0x158, n: 5, rw: 0xffffffffff},
	}
}

// model is configuration space byte by byte.
type model struct {
	value, reset, rw, w1c, sticky, flr [4096]byte
}

func newModel() *model {
	m := &model{}
	for _, b := range modelledBits() {
		for i := range b.n {
			at, s := b.at+i, 8*i
			m.reset[at], m.rw[at], m.w1c[at] = byte(b.reset>>s), byte(b.rw>>s), byte(b.w1c>>s)
			m.sticky[at], m.flr[at] = byte(b.sticky>>s), byte(b.flr>>s)
		}
	}
	m.value = m.reset
	return m
}

func (m *model) back(function bool) {
	for i := range m.value {
		keep := m.sticky[i]
		if function {
			keep |= m.flr[i]
		}
		m.value[i] = m.value[i]&keep | m.reset[i]&^keep
	}
}

func (m *model) write(offset int, p []byte) {
	power := m.value[0x44] & 3
	function := false
	for i, v := range p {
		at := offset + i
		for bit := byte(1); bit != 0; bit <<= 1 {
			switch {
			case m.rw[at]&bit != 0:
				m.value[at] = m.value[at]&^bit | v&bit
			case m.w1c[at]&v&bit != 0:
				m.value[at] &^= bit
			}
		}
		function = function || at == 0x51 && v&0x80 != 0
	}
	if m.value[0x44]&3 == 1 { // there is no D1
		m.value[0x44] = m.value[0x44]&^3 | power
	}
	if m.value[0x86]&0x70 > 0x20 { // there are 4 vectors
		m.value[0x86] = m.value[0x86]&^0x70 | 0x20
	}
	if function || power == 3 && m.value[0x44]&3 == 0 {
		m.back(function)
	}
}

// follow makes accesses, each given by a byte that says what, two of an offset,
// one of a length and its data, to the function and to the model.
func follow(t *testing.T, ops []byte) {
	r := newRig(t, modelled())
	m := newModel()
	check := func(what string, offset, n int) {
		t.Helper()
		if got := r.read(configRegion, uint64(offset), n); !bytes.Equal(got, m.value[offset:offset+n]) {
			for i := range got {
				if got[i] != m.value[offset+i] {
					t.Fatalf("%s: byte %#x is %#02x, want %#02x", what, offset+i, got[i], m.value[offset+i])
				}
			}
		}
	}
	check("fresh", 0, 4096)
	for len(ops) >= 4 {
		n := int(ops[3])
		if ops[0]&0x20 == 0 {
			n = 1 << (n & 3)
		}
		offset := min((int(ops[1])|int(ops[2])<<8)&0xfff, 4096-n)
		if ops[0]&0x40 == 0 {
			offset = min(offset&0x1ff, 512-n)
		}
		ops = ops[4:]
		switch {
		case n == 0x55 && offset == 0:
			_ = r.Reset()
			m.back(false)
			check("reset", 0, 4096)
		case len(ops) < n:
			check("read", offset, n)
		default:
			r.write(configRegion, uint64(offset), ops[:n]...)
			m.write(offset, ops[:n])
			check("write", max(0, offset-8), min(n+16, 4096-max(0, offset-8)))
			ops = ops[n:]
		}
	}
	check("at the end", 0, 4096)
}

func TestModel(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 0))
	for range 30 {
		var ops []byte
		for range 200 {
			at := rng.IntN(512)
			if b := modelledBits(); rng.IntN(3) > 0 {
				at = b[rng.IntN(len(b))].at + rng.IntN(8) - 3
			}
			length := rng.IntN(256)
			n := length
			what := byte(rng.IntN(256))
			if rng.IntN(4) > 0 {
				what &^= 0x20
			}
			if what&0x20 == 0 {
				n = 1 << (n & 3)
			}
			ops = append(ops, what, byte(at), byte(max(at, 0)>>8), byte(length))
			for range n {
				ops = append(ops, byte(rng.Uint32()))
			}
			if rng.IntN(50) == 0 {
				ops = append(ops, 0x20, 0, 0, 0x55)
			}
		}
		follow(t, ops)
	}
}

// FuzzConfigSpace makes any accesses to configuration space.
func FuzzConfigSpace(f *testing.F) {
	f.Add([]byte("\x00\x04\x00\x02\x47\x05\x00\x10\x00\x00\x51\x00\x00\x80"))
	f.Add([]byte("\x00\x44\x00\x00\x03\x00\x44\x00\x00\x00"))
	f.Add([]byte("\x60\x00\x01\x10\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff"))
	f.Fuzz(func(t *testing.T, ops []byte) { follow(t, ops) })
}

// FuzzAccess makes any accesses to any region, inside and out: whatever they
// are, they end, and what is outside is refused.
func FuzzAccess(f *testing.F) {
	f.Add([]byte("\x0f\x04\x00\x02\x06\x00\x03\x00\x00\xff"))
	f.Fuzz(func(t *testing.T, ops []byte) {
		r := newRig(t, modelled())
		for len(ops) >= 4 {
			region, n := int(ops[0]&0xf)-1, int(ops[3])
			offset := uint64(ops[1]) | uint64(ops[2])<<8
			if ops[0]&0x20 != 0 {
				offset |= 0xffff_ffff_ffff_0000
			}
			write := ops[0]&0x10 != 0
			ops = ops[4:]
			p := make([]byte, n)
			copy(p, ops)
			do := r.ReadRegion
			if write {
				do = r.WriteRegion
				ops = ops[min(n, len(ops)):]
			}
			size := r.RegionSize(region)
			inside := size > 0 && offset <= size && uint64(n) <= size-offset
			if err := do(region, offset, p); (err == nil) != inside {
				t.Fatalf("%d bytes at %#x of region %d: %v", n, offset, region, err)
			}
			r.Signal(int(n % 10))
		}
	})
}
