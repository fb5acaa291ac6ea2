// SPDX-License-Identifier: Apache-2.0

package guestdriver_test

import (
	"errors"
	"syscall"
	"testing"

	"toebox/guestdriver"
	"toebox/guestdriver/guestdrivertest"
)

// TestMap registers memory of the test's own, posts a part of it, and has it
// back; while the adapter has it that is refused.
func TestMap(t *testing.T) {
	a, f := open(t, guestdriver.Options{})
	c, s := pair(t, a)
	defer c.Close()
	defer s.Close()
	mem, err := syscall.Mmap(-1, 0, 16<<10, syscall.PROT_READ|syscall.PROT_WRITE, syscall.MAP_PRIVATE|syscall.MAP_ANON)
	if err != nil {
		t.Fatal(err)
	}
	defer syscall.Munmap(mem)
	for what, p := range map[string][]byte{"nothing": nil, "half a page": mem[:2048], "within a page": mem[1:4097]} {
		if _, err := a.Map(p); err == nil {
			t.Errorf("mapped %s", what)
		}
	}
	m, err := a.Map(mem)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := a.Map(mem[4096:8192]); err == nil {
		t.Error("mapped twice")
	}
	q := guestdriver.NewCompletionQueue()
	seen, release := hold(f)
	if err := c.SendBuffer(part(t, m, 0, len(mem)), q); err != nil {
		t.Fatal(err)
	}
	r := <-seen
	if r.Base != m.IOVA() || r.Length != uint32(len(mem)) {
		t.Errorf("request %+v, memory at %#x", r, m.IOVA())
	}
	if err := m.Deregister(); !errors.Is(err, guestdriver.ErrBusy) {
		t.Errorf("deregister in use: %v", err)
	}
	release()
	f.Restart()
	if d := next(t, q); !errors.Is(d.Err, guestdriver.ErrReset) {
		t.Errorf("completion: %+v", d)
	}
	if err := m.Deregister(); err != nil {
		t.Errorf("deregister: %v", err)
	}
	if err := f.UnmapDMA(guestdriver.DMA{Bytes: mem, IOVA: m.IOVA()}); err == nil {
		t.Error("it is still mapped")
	}
}

// plain is a bus that maps nothing.
type plain struct{ guestdriver.Bus }

func TestMapUnsupported(t *testing.T) {
	a, err := guestdriver.Open(t.Context(), plain{guestdrivertest.New()}, guestdriver.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer a.Close()
	if _, err := a.Map(make([]byte, 4096)); !errors.Is(err, errors.ErrUnsupported) {
		t.Errorf("map: %v", err)
	}
}
