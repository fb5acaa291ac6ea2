// SPDX-License-Identifier: Apache-2.0

package sample_test

import (
	"context"
	"encoding/binary"
	"fmt"
	"os"
	"slices"
	"sync"
	"testing"
	"time"

	vfiouser "toebox/vfio-user"
	"toebox/vfio-user/sample"
	"toebox/vfio-user/vfiousertest"
)

// patience bounds every wait.
const patience = 60 * time.Second

// clock is a time that moves when it is told to.
type clock struct {
	mu     sync.Mutex
	now    time.Time
	timers []*timer
}

type timer struct {
	at time.Time
	f  func()
}

func newClock() *clock { return &clock{now: time.Unix(1_800_000_000, 0)} }

func (c *clock) Now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.now
}

func (c *clock) AfterFunc(d time.Duration, f func()) func() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	t := &timer{c.now.Add(d), f}
	c.timers = append(c.timers, t)
	c.fireLocked()
	return func() bool {
		c.mu.Lock()
		defer c.mu.Unlock()
		i := slices.Index(c.timers, t)
		if i >= 0 {
			c.timers = slices.Delete(c.timers, i, i+1)
		}
		return i >= 0
	}
}

// advance moves time on and returns how many timers have run out.
func (c *clock) advance(d time.Duration) int {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now = c.now.Add(d)
	return c.fireLocked()
}

func (c *clock) fireLocked() (n int) {
	c.timers = slices.DeleteFunc(c.timers, func(t *timer) bool {
		if t.at.After(c.now) {
			return false
		}
		go t.f()
		n++
		return true
	})
	return n
}

// memory serves DMA messages from a file that is mapped at iova 0, and tells of
// each.
type memory struct {
	file  *os.File
	calls chan string

	mu   sync.Mutex
	hold chan struct{} // if not nil, a message is answered when it is closed
}

func (m *memory) ReadDMA(iova uint64, p []byte) error { return m.serve("read", iova, p, m.file.ReadAt) }

func (m *memory) WriteDMA(iova uint64, p []byte) error {
	return m.serve("write", iova, p, m.file.WriteAt)
}

func (m *memory) serve(what string, iova uint64, p []byte, f func([]byte, int64) (int, error)) error {
	m.calls <- fmt.Sprintf("%s %#x %d", what, iova, len(p))
	m.mu.Lock()
	hold := m.hold
	m.mu.Unlock()
	if hold != nil {
		<-hold
	}
	_, err := f(p, int64(iova))
	return err
}

// holdBack has messages wait for the function that it returns.
func (m *memory) holdBack() (release func()) {
	hold := make(chan struct{})
	m.mu.Lock()
	defer m.mu.Unlock()
	m.hold = hold
	return sync.OnceFunc(func() { close(hold) })
}

// next returns what the next n messages were.
func (m *memory) next(t *testing.T, n int) (got []string) {
	t.Helper()
	timer := time.NewTimer(patience)
	defer timer.Stop()
	for range n {
		select {
		case s := <-m.calls:
			got = append(got, s)
		case <-timer.C:
			t.Fatalf("no message after %q", got)
		}
	}
	return got
}

// rig is a device and a client of it, with 16 pages of guest memory.
type rig struct {
	t   *testing.T
	dev *sample.Device
	c   *vfiouser.Client
	mem *memory
}

// newRig starts a device and connects as the client sample does.
func newRig(t *testing.T, clk sample.Clock, file *os.File) *rig {
	dev, err := sample.New(sample.Config{Clock: clk})
	if err != nil {
		t.Fatal(err)
	}
	r := &rig{t: t, dev: dev, mem: &memory{file: file, calls: make(chan string, 100)}}
	a, b := vfiousertest.Pair(t)
	ctx, cancel := context.WithCancel(context.Background())
	served := make(chan error, 1)
	go func() { served <- dev.Server().ServeConn(ctx, b) }()
	t.Cleanup(func() {
		cancel()
		if err := <-served; err != nil {
			t.Errorf("serve: %v", err)
		}
		if err := dev.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
	})
	r.c, err = vfiouser.NewClient(a, vfiouser.ClientConfig{Memory: r.mem, MaxTransfer: 1024, MaxFDs: 32, Timeout: patience})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.c.Close() })
	return r
}

func (r *rig) must(err error) {
	r.t.Helper()
	if err != nil {
		r.t.Fatal(err)
	}
}

// pages maps pages of the file, each at its own offset.
func (r *rig) pages(first, n uint64) {
	r.t.Helper()
	for i := first; i < first+n; i++ {
		r.must(r.c.Map(i*4096, 4096, i*4096, vfiouser.ProtRead|vfiouser.ProtWrite, r.mem.file))
	}
}

// setAlarm writes BAR0.
func (r *rig) setAlarm(at time.Time) {
	r.t.Helper()
	r.must(r.c.WriteRegion(0, 0, binary.LittleEndian.AppendUint64(nil, uint64(at.Unix()))))
}

// sinceAlarm reads BAR0.
func (r *rig) sinceAlarm() int64 {
	r.t.Helper()
	b := make([]byte, 8)
	r.must(r.c.ReadRegion(0, 0, b))
	return int64(binary.LittleEndian.Uint64(b))
}

// bar1 reads the memory of BAR1.
func (r *rig) bar1() []byte {
	r.t.Helper()
	b := make([]byte, 0x3000)
	r.must(r.c.ReadRegion(1, 0, b))
	return b
}

// settled waits until the device has counted n transfers, right or not.
func (r *rig) settled(n uint64) sample.Stats {
	r.t.Helper()
	for deadline := time.Now().Add(patience); ; {
		s := r.dev.Stats()
		if s.Direct+s.Messages+s.Failed >= n || time.Now().After(deadline) {
			return s
		}
		<-time.After(time.Millisecond)
	}
}
