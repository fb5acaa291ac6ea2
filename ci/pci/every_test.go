// SPDX-License-Identifier: Apache-2.0

package pci_test

import (
	"bytes"
	"encoding/binary"
	"sync"
	"testing"

	vfiouser "toebox/vfio-user"
	"toebox/vfio-user/pci"
	"toebox/vfio-user/vfiousertest"
)

func TestMain(m *testing.M) { vfiousertest.Main(m) }

const (
	romSize   = 4096
	msiCount  = 4
	msixCount = 40
)

func rom() []byte { return bytes.Repeat([]byte{0x55, 0xaa, 0x12, 0x34}, romSize/4) }

// every is a device with all that a function can have. BAR0 is memory; what is
// written to its last 4 bytes signals that vector, and lowers the pin if it is
// ones. BAR1 is I/O and shows BAR0's first 32 bytes. MSI-X has BAR2. BAR4 is of
// 64 bits, prefetchable.
type every struct {
	*pci.Function
	mu     sync.Mutex
	mem    [256]byte
	resets [3]int // by kind
}

func newEvery(t *testing.T) *every {
	t.Helper()
	d := &every{}
	read := func(at uint64, p []byte) {
		d.mu.Lock()
		defer d.mu.Unlock()
		copy(p, d.mem[at:])
	}
	var err error
	d.Function, err = pci.New(pci.Config{
		Vendor: 0x1234, Device: 0xe7e1, Revision: 2, Class: 0xff0000, SubsystemVendor: 0x1af4, Subsystem: 0x1100, Pin: 1,
		BARs: [6]pci.BAR{
			0: {Size: 256, Read: read, Write: d.write},
			1: {Kind: pci.IO, Size: 32, Read: read},
			4: {Kind: pci.Memory64, Size: 1 << 21, Prefetchable: true, Read: func(at uint64, p []byte) {
				for i := range p {
					p[i] = byte(at>>12) + byte(i)
				}
			}},
		},
		ROM: rom(),
		Capabilities: []pci.Capability{
			pci.PM{D1: true, D2: true, PME: 0x1f},
			pci.MSI{Vectors: msiCount, Masking: true},
			pci.MSIX{Vectors: msixCount, BAR: 2},
			pci.Vendor{Size: 12, Fields: []pci.Field{{Offset: 4, Width: 8, Reset: 0x0123456789abcdef}}},
			pci.Subsystem{Vendor: 0x1af4, ID: 0x1100},
			pci.Express{FLR: true, MaxPayload: 512, Speed: 3, Width: 4},
			pci.AER{},
			pci.DSN{Serial: 0x0011_22ff_fe33_4455},
			pci.TPH{Device: true, Tags: 8},
			pci.VSEC{ID: 0x42, Revision: 1, Size: 16},
			pci.Custom{ID: 0x18, Extended: true, Version: 1, Size: 8, Fields: []pci.Field{ // latency tolerance reporting
				{Offset: 4, Width: 4, Writable: 0x1fff1fff},
			}},
		},
		Reset: func(k pci.ResetKind) {
			d.mu.Lock()
			defer d.mu.Unlock()
			d.resets[k]++
			d.mem = [256]byte{}
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func (d *every) write(at uint64, p []byte) {
	d.mu.Lock()
	copy(d.mem[at:], p)
	d.mu.Unlock()
	switch v := append(bytes.Clone(p), 0, 0, 0, 0); {
	case at != 252:
	case bytes.Equal(p, []byte{255, 255, 255, 255}):
		d.SetINTx(false)
	default:
		d.Signal(int(binary.LittleEndian.Uint32(v)))
	}
}

// took returns how many resets of a kind there were.
func (d *every) took(k pci.ResetKind) int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.resets[k]
}

// config reads configuration space as the function itself has it.
func (d *every) config(t *testing.T) []byte {
	t.Helper()
	p := make([]byte, d.RegionSize(vfiouser.RegionConfig))
	if err := d.ReadRegion(vfiouser.RegionConfig, 0, p); err != nil {
		t.Fatal(err)
	}
	return p
}
