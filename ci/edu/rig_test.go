// SPDX-License-Identifier: Apache-2.0

package edu

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"toebox/images/qtest"
	"toebox/images/toolchain/toolchaintest"
	"toebox/vfio-user/edu"
)

const (
	memory   = 64 << 20
	barSize  = 1 << 20
	patience = 60 * time.Second

	// Guest physical addresses.
	cookieAt = 0x100000 // where MSI writes
	scratch  = 0x180000 // a page to look at the buffer

	noCookie = 0xa5a5a5a5 // more bits than an MSI has
)

// card is one of the two devices.
type card struct {
	name string
	bdf  qtest.BDF
	bar  uint64
	line int // input of the I/O APIC
}

// outcome is what an operation showed.
type outcome struct {
	values []uint64
	data   []byte
	line   bool
	cookie uint32
}

func (o *outcome) add(v ...uint64) { o.values = append(o.values, v...) }

// rig is a machine with both devices in it.
type rig struct {
	t            *testing.T
	m            *qtest.Machine
	dev          *edu.Device
	rng          *rand.Rand
	theirs, ours card
	cookie       cookie
	master       bool // bus mastering is on
	line         bool // both pins are asserted
	last         outcome
	done         []string
	seen         struct{ msi, rises, falls int } // interrupts that both had
}

func newRig(t *testing.T, seed uint64) *rig {
	dir, err := os.MkdirTemp("", "edu") // short enough for a socket
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	r := &rig{
		t: t, rng: rand.New(rand.NewPCG(seed, 0)),
		// A q35's INTA# of slot n comes in at input 16 + 4 + n mod 4.
		theirs: card{name: "QEMU's", bdf: qtest.NewBDF(0, 5, 0), bar: 0xe0000000, line: 21},
		ours:   card{name: "ours", bdf: qtest.NewBDF(0, 6, 0), bar: 0xe1000000, line: 22},
	}
	path := filepath.Join(dir, "device")
	r.serve(path)
	r.m, err = qtest.Start(t.Context(), qtest.Config{
		Command: toolchaintest.QEMU(t).Command, Dir: dir, Memory: memory,
		Args: []string{
			"-device", "edu,addr=5.0",
			"-device", fmt.Sprintf(`{"driver":"vfio-user-pci","addr":"6.0","socket":{"type":"unix","path":%q}}`, path),
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.m.Close() })
	r.cookie.ram = r.m.RAM
	r.cookie.t = t
	r.check(r.m.InterceptIn("ioapic"))
	r.place()
	return r
}

// serve starts our device.
func (r *rig) serve(path string) {
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		r.t.Fatal(err)
	}
	if r.dev, err = edu.New(edu.Config{}); err != nil {
		r.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- r.dev.Server().Serve(ctx, l) }()
	r.t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			r.t.Error(err)
		}
		l.Close()
		r.dev.Close()
	})
}

// place does what firmware and driver do after a reset.
func (r *rig) place() {
	for _, c := range []*card{&r.theirs, &r.ours} {
		r.setConfig(c, 0x10, 4, uint32(c.bar))
		r.setConfig(c, 0x44, 4, cookieAt)
		r.setConfig(c, 0x48, 4, 0)
		r.setConfig(c, 0x4c, 2, 0x4041)
		r.setConfig(c, 0x04, 2, 6)
	}
	r.master = true
	r.cookie.reset()
}

// both does an operation to QEMU's device, then to ours, and compares.
func (r *rig) both(what string, op func(c *card, o *outcome)) {
	r.t.Helper()
	r.done = append(r.done, what)
	var want, got outcome
	op(&r.theirs, &want)
	want.line = r.m.IRQ(r.theirs.line)
	want.cookie = r.cookie.take()
	op(&r.ours, &got)
	r.last = got
	if !slices.Equal(got.values, want.values) {
		r.fail("ours answers %#x, QEMU's %#x", got.values, want.values)
	}
	if !bytes.Equal(got.data, want.data) {
		i := 0
		for got.data[i] == want.data[i] {
			i++
		}
		r.fail("data differ from byte %d of %d on: ours %.16x, QEMU's %.16x", i, len(got.data), got.data[i:], want.data[i:])
	}
	r.follow(want)
}

// follow waits until our device's interrupts show what QEMU's did.
func (r *rig) follow(want outcome) {
	r.t.Helper()
	r.settle()
	if want.cookie != noCookie {
		// Any command lets QEMU's main loop look at its eventfds.
		r.poll("our MSI", func() bool { r.config(&r.ours, 0, 4); return r.cookie.peek() != noCookie })
	}
	if got := r.cookie.take(); got != want.cookie {
		r.fail("our MSI wrote %#x, QEMU's %#x", got, want.cookie)
	}
	if want.cookie != noCookie {
		r.seen.msi++
	}
	switch was := r.line; {
	case want.line && !was:
		r.seen.rises++
	case was && !want.line:
		r.seen.falls++
	}
	r.line = want.line
	if want.line {
		ctx, cancel := context.WithTimeout(r.t.Context(), patience)
		defer cancel()
		if err := r.m.WaitIRQ(ctx, r.ours.line, true); err != nil {
			r.fail("our INTx: %v", err)
		}
	} else {
		r.poll("our INTx to fall", func() bool { r.settle(); return !r.m.IRQ(r.ours.line) })
	}
}

// settle returns when QEMU has seen what our device has signalled so far. The
// read is answered after the writes posted before it, and is an end of
// interrupt for QEMU: the pin falls and, if still asserted, rises again. By the
// second command after it QEMU's main loop has been around once.
func (r *rig) settle() {
	r.load(&r.ours, 0x00, 4)
	r.config(&r.ours, 0x00, 4)
}

// poll waits for something in steps that take a while themselves.
func (r *rig) poll(what string, met func() bool) {
	r.t.Helper()
	for deadline := time.Now().Add(patience); !met(); {
		if time.Now().After(deadline) {
			r.fail("waited in vain for %s", what)
		}
	}
}

// reset resets the machine, and puts back what a reset takes away.
func (r *rig) reset() {
	r.t.Helper()
	r.done = append(r.done, "reset")
	r.check(r.m.Out8(0xcf9, 6))
	for _, c := range []*card{&r.theirs, &r.ours} {
		r.poll("the reset", func() bool { return r.config(c, 0x10, 4) == 0 })
	}
	r.configSpace()
	r.place()
	r.both("state after the reset", func(c *card, o *outcome) {
		for _, reg := range registers() {
			o.add(r.load(c, reg, 4))
		}
	})
}

// dma makes a transfer and waits for its end.
func (r *rig) dma(c *card, size int, source, dest, count, command uint64) {
	r.t.Helper()
	r.store(c, 0x80, size, source)
	r.store(c, 0x88, size, dest)
	r.store(c, 0x90, size, count)
	r.store(c, 0x98, size, command)
	if c == &r.theirs {
		_, err := r.m.ClockStep(101 * time.Millisecond)
		r.check(err)
	}
	r.poll("the transfer", func() bool { return r.load(c, 0x98, 8)&1 == 0 })
}

func (r *rig) load(c *card, offset uint64, size int) uint64 {
	r.t.Helper()
	s, err := r.m.Command("read%c %#x", "?bw?l???q"[size], c.bar+offset)
	r.check(err)
	var v uint64
	if _, err := fmt.Sscanf(s, "0x%x", &v); err != nil {
		r.fail("answer %q", s)
	}
	return v
}

func (r *rig) store(c *card, offset uint64, size int, v uint64) {
	r.t.Helper()
	_, err := r.m.Command("write%c %#x %#x", "?bw?l???q"[size], c.bar+offset, v&(1<<(8*size)-1))
	r.check(err)
}

func (r *rig) config(c *card, offset uint8, size int) uint32 {
	r.t.Helper()
	v, err := r.m.ReadConfig(c.bdf, offset, size)
	r.check(err)
	return v
}

func (r *rig) setConfig(c *card, offset uint8, size int, v uint32) {
	r.t.Helper()
	r.check(r.m.WriteConfig(c.bdf, offset, size, v))
}

// fill and fetch access guest memory, where there is any.
func (r *rig) fill(addr uint64, p []byte) {
	if addr < 1<<20 || addr >= memory {
		return
	}
	_, err := r.m.RAM.WriteAt(p[:min(len(p), int(memory-addr))], int64(addr))
	r.check(err)
}

func (r *rig) fetch(addr uint64, n int) []byte {
	if addr < 1<<20 || addr >= memory {
		return nil
	}
	p := make([]byte, min(n, int(memory-addr)))
	_, err := r.m.RAM.ReadAt(p, int64(addr))
	r.check(err)
	return p
}

func (r *rig) check(err error) {
	r.t.Helper()
	if err != nil {
		r.fail("%v", err)
	}
}

// fail ends the test with what led to it.
func (r *rig) fail(format string, args ...any) {
	r.t.Helper()
	const last = 20
	r.t.Fatalf("operation %d: %s\nlast operations:\n  %s\nQEMU says: %s", len(r.done), fmt.Sprintf(format, args...),
		strings.Join(r.done[max(0, len(r.done)-last):], "\n  "), r.m.Log())
}

// cookie is the word that both devices' MSI writes.
type cookie struct {
	t   *testing.T
	ram *os.File
}

func (k *cookie) peek() uint32 {
	var b [4]byte
	if _, err := k.ram.ReadAt(b[:], cookieAt); err != nil {
		k.t.Fatal(err)
	}
	return binary.LittleEndian.Uint32(b[:])
}

func (k *cookie) reset() {
	if _, err := k.ram.WriteAt(binary.LittleEndian.AppendUint32(nil, noCookie), cookieAt); err != nil {
		k.t.Fatal(err)
	}
}

// take returns the word and puts noCookie in its place.
func (k *cookie) take() uint32 {
	v := k.peek()
	k.reset()
	return v
}
