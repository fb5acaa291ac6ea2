// SPDX-License-Identifier: Apache-2.0

package pci_test

import (
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"strings"
	"sync"
	"testing"

	"toebox/vfio-user/pci"
	"toebox/vfio-user/vfiousertest"
)

func TestMain(m *testing.M) { vfiousertest.Main(m) }

const configRegion = 7

// rig is a function and who listens to its interrupts.
type rig struct {
	testing.TB
	*pci.Function
	irqs *edges
}

func newRig(t testing.TB, cfg pci.Config) *rig {
	t.Helper()
	f, err := pci.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	r := &rig{t, f, &edges{}}
	f.Connect(r.irqs)
	return r
}

func (r *rig) read(region int, offset uint64, n int) []byte {
	r.Helper()
	p := make([]byte, n)
	if err := r.ReadRegion(region, offset, p); err != nil {
		r.Fatalf("read of %d bytes at %#x of region %d: %v", n, offset, region, err)
	}
	return p
}

func (r *rig) write(region int, offset uint64, p ...byte) {
	r.Helper()
	if err := r.WriteRegion(region, offset, p); err != nil {
		r.Fatalf("write of %d bytes at %#x of region %d: %v", len(p), offset, region, err)
	}
}

// get and set access configuration space.
func (r *rig) get(offset, n int) uint64 {
	r.Helper()
	var b [8]byte
	copy(b[:], r.read(configRegion, uint64(offset), n))
	return binary.LittleEndian.Uint64(b[:])
}

func (r *rig) set(offset, n int, v uint64) {
	r.Helper()
	r.write(configRegion, uint64(offset), binary.LittleEndian.AppendUint64(nil, v)[:n]...)
}

func (r *rig) want(what string, offset, n int, v uint64) {
	r.Helper()
	if got := r.get(offset, n); got != v {
		r.Errorf("%s: %#x, want %#x", what, got, v)
	}
}

func (r *rig) wantIRQs(what, s string) {
	r.Helper()
	if got := r.irqs.take(); got != s {
		r.Errorf("%s: interrupts %s, want %s", what, got, s)
	}
}

// edges records triggers as INDEX.VECTOR.
type edges struct {
	mu     sync.Mutex
	seen   []string
	refuse error
}

func (e *edges) note(s string) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.seen = append(e.seen, s)
	return e.refuse
}

func (e *edges) Trigger(index, vector int) error { return e.note(fmt.Sprintf("%d.%d", index, vector)) }

func (e *edges) take() string {
	e.mu.Lock()
	defer e.mu.Unlock()
	s := fmt.Sprint(e.seen)
	e.seen = nil
	return s
}

// levels also sees the pin as a level.
type levels struct{ edges }

func (l *levels) SetINTx(on bool) error { return l.note(fmt.Sprint(on)) }

// unhex reads bytes as documents print them.
func unhex(t testing.TB, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(strings.Join(strings.Fields(s), ""))
	if err != nil {
		t.Fatal(err)
	}
	return b
}
