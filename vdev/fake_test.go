// SPDX-License-Identifier: Apache-2.0

package vdev

import (
	"encoding/binary"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"toebox/firmware"
	"toebox/vdev/abi"
	vfiouser "toebox/vfio-user"
)

// fakeFirmware records what the function asks of it.
type fakeFirmware struct {
	counters   fakeCounters
	id         Identity
	generation uint32
	doorbells  atomic.Uint64 // in << 32 | out

	mu       sync.Mutex
	calls    []string
	running  bool
	stopped  bool
	closed   bool
	stuck    bool // it never stops
	status   [abi.MaxQueues]firmware.QueueStatus
	config   firmware.QueueConfig
	lastBell abi.Index
	policy   uint64
	wrote    uint64
	onReset  func()
}

type fakeCounters [abi.NumCounters]atomic.Uint64

func (c *fakeCounters) Add(i abi.Counter, n uint64) { c[i].Add(n) }
func (c *fakeCounters) Load(i abi.Counter) uint64   { return c[i].Load() }
func (w *fakeFirmware) call(format string, a ...any) {
	w.calls = append(w.calls, fmt.Sprintf(format, a...))
}
func (w *fakeFirmware) with(fn func(w *fakeFirmware)) { w.mu.Lock(); defer w.mu.Unlock(); fn(w) }

func (w *fakeFirmware) Run() {
	w.with(func(w *fakeFirmware) { w.call("run"); w.running = true; w.stopped = false })
}
func (w *fakeFirmware) Stop() {
	w.with(func(w *fakeFirmware) { w.call("stop"); w.running = false; w.stopped = !w.stuck })
}
func (w *fakeFirmware) Running() bool { w.mu.Lock(); defer w.mu.Unlock(); return w.running }
func (w *fakeFirmware) Stopped() bool { w.mu.Lock(); defer w.mu.Unlock(); return w.stopped }
func (w *fakeFirmware) Command(q int, c abi.QueueCommand, cfg firmware.QueueConfig) abi.Status {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.call("command %d %d", q, c)
	w.config = cfg
	return 0
}

func (w *fakeFirmware) QueueStatus(q int) firmware.QueueStatus {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.status[q]
}
func (w *fakeFirmware) Doorbell(q int, i abi.Index)    { w.doorbells.Add(1 << 32); w.lastBell = i }
func (w *fakeFirmware) DoorbellOut(q int, i abi.Index) { w.doorbells.Add(1); w.lastBell = i }
func (w *fakeFirmware) Reset() {
	if w.onReset != nil {
		w.onReset()
	}
	w.with(func(w *fakeFirmware) { w.call("reset"); w.running, w.stopped = false, false })
}
func (w *fakeFirmware) SetPolicyClock(m bool) {
	w.with(func(w *fakeFirmware) { w.call("manual %v", m) })
}
func (w *fakeFirmware) StepPolicyClock(ns uint64) { w.with(func(w *fakeFirmware) { w.policy += ns }) }
func (w *fakeFirmware) PolicyNow() uint64         { w.mu.Lock(); defer w.mu.Unlock(); return w.policy }
func (w *fakeFirmware) Wrote(_, n uint64)         { w.with(func(w *fakeFirmware) { w.wrote += n }) }
func (w *fakeFirmware) SetChecker(on bool) {
	w.with(func(w *fakeFirmware) { w.call("checker %v", on) })
}
func (w *fakeFirmware) Close() error {
	w.with(func(w *fakeFirmware) { w.call("close"); w.closed = true })
	return nil
}

// take returns the calls since the last take.
func (w *fakeFirmware) take() []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	c := w.calls
	w.calls = nil
	return c
}

// fakeDMA is memory at base. Memory from remote on is reached by message only,
// and then held up while hold is not nil.
type fakeDMA struct {
	base, remote uint64
	mu           sync.Mutex
	mem          []byte
	hold         chan struct{}
	entered      chan struct{}
}

func newFakeDMA(base uint64, n int) *fakeDMA {
	return &fakeDMA{base: base, remote: ^uint64(0), mem: make([]byte, n), entered: make(chan struct{}, 16)}
}

func (d *fakeDMA) piece(iova uint64, n int) ([]byte, error) {
	if iova < d.base || iova-d.base > uint64(len(d.mem)) || uint64(n) > uint64(len(d.mem))-(iova-d.base) {
		return nil, &vfiouser.DMAError{IOVA: iova, Len: uint64(n), Errno: unix.EFAULT}
	}
	return d.mem[iova-d.base:][:n], nil
}

func (d *fakeDMA) wait(iova uint64) {
	if iova >= d.remote {
		d.entered <- struct{}{}
		<-d.hold
	}
}

func (d *fakeDMA) Read(iova uint64, p []byte) error {
	d.wait(iova)
	d.mu.Lock()
	defer d.mu.Unlock()
	b, err := d.piece(iova, len(p))
	copy(p, b)
	return err
}

func (d *fakeDMA) Write(iova uint64, p []byte) error {
	d.wait(iova)
	d.mu.Lock()
	defer d.mu.Unlock()
	b, err := d.piece(iova, len(p))
	copy(b, p)
	return err
}

func (d *fakeDMA) View(iova uint64, n int, _ vfiouser.Prot, fn func([]byte) error) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	b, err := d.piece(iova, n)
	if err != nil {
		return err
	}
	return fn(b)
}

func (d *fakeDMA) Backed(iova, n uint64, _ vfiouser.Prot) bool {
	_, err := d.piece(iova, int(n))
	return err == nil && iova+n <= d.remote
}

func (d *fakeDMA) Generation(iova, n uint64) uint64 {
	if _, err := d.piece(iova, int(n)); err != nil {
		return 0
	}
	return 1
}

// fakeIRQs records triggers. It is of the kind that sees edges.
type fakeIRQs struct {
	mu   sync.Mutex
	seen []string
}

func (i *fakeIRQs) Trigger(index, vector int) error {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.seen = append(i.seen, fmt.Sprintf("%d.%d", index, vector))
	return nil
}

func (i *fakeIRQs) take() string {
	i.mu.Lock()
	defer i.mu.Unlock()
	s := fmt.Sprint(i.seen)
	i.seen = nil
	return s
}

// levelIRQs sees INTx as a level.
type levelIRQs struct{ fakeIRQs }

func (i *levelIRQs) SetINTx(on bool) error {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.seen = append(i.seen, fmt.Sprint(on))
	return nil
}

// rig is a function between fakes. Numbers in tests are those of SPEC.md and
// of the PCI specifications, not the constants under test.
type rig struct {
	*testing.T
	f    *Function
	fw   *fakeFirmware
	dma  *fakeDMA
	irqs *fakeIRQs
	now  atomic.Int64 // ns
}

func newRig(t *testing.T, change func(*Config)) *rig {
	t.Helper()
	r := &rig{T: t, dma: newFakeDMA(0x10_0000, 1<<18), irqs: &fakeIRQs{}}
	cfg := Config{
		DMA: r.dma, IRQs: r.irqs, Seed: 1, Generation: 7,
		Clock: func() time.Duration { return time.Duration(r.now.Load()) },
		Start: func(_ firmware.Chip, id Identity, generation uint32) (Firmware, Counters, error) {
			r.fw = &fakeFirmware{id: id, generation: generation}
			return r.fw, &r.fw.counters, nil
		},
	}
	if change != nil {
		change(&cfg)
	}
	f, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	r.f = f
	t.Cleanup(func() { f.Close() })
	return r
}

// enabled is a rig whose driver has turned on memory and bus master.
func enabled(t *testing.T, change func(*Config)) *rig {
	r := newRig(t, change)
	r.setConfig(0x04, 2, 0x0006)
	return r
}

func (r *rig) access(region int, offset uint64, p []byte, write bool) {
	r.Helper()
	do := r.f.ReadRegion
	if write {
		do = r.f.WriteRegion
	}
	if err := do(region, offset, p); err != nil {
		r.Fatalf("region %d at %#x, %d bytes: %v", region, offset, len(p), err)
	}
}

func (r *rig) getConfig(offset uint64, n int) uint32 {
	r.Helper()
	var b [4]byte
	r.access(7, offset, b[:n], false)
	return binary.LittleEndian.Uint32(b[:])
}

func (r *rig) setConfig(offset uint64, n int, v uint32) {
	r.Helper()
	var b [4]byte
	binary.LittleEndian.PutUint32(b[:], v)
	r.access(7, offset, b[:n], true)
}

func (r *rig) get(offset uint64) uint32 {
	r.Helper()
	var b [4]byte
	r.access(0, offset, b[:], false)
	return binary.LittleEndian.Uint32(b[:])
}

func (r *rig) set(offset uint64, v uint32) {
	r.Helper()
	var b [4]byte
	binary.LittleEndian.PutUint32(b[:], v)
	r.access(0, offset, b[:], true)
}

func (r *rig) want(offset uint64, v uint32) {
	r.Helper()
	if got := r.get(offset); got != v {
		r.Errorf("register %#x: %#x, want %#x", offset, got, v)
	}
}

func (r *rig) wantIRQs(s string) {
	r.Helper()
	if got := r.irqs.take(); got != s {
		r.Errorf("interrupts %s, want %s", got, s)
	}
}

// poll reads a register until it is no longer v.
func (r *rig) poll(offset uint64, v uint32) uint32 {
	r.Helper()
	for end := time.Now().Add(time.Minute); time.Now().Before(end); {
		if got := r.get(offset); got != v {
			return got
		}
	}
	r.Fatalf("register %#x stays %#x", offset, v)
	return 0
}
