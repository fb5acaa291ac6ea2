// SPDX-License-Identifier: Apache-2.0

package uio

import (
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"testing"
)

// registers are the cause registers of SPEC.md §9.2 behind posted writes, which
// arrive with the next read.
type registers struct {
	cause, queues uint32
	event         bool // an event stands: its cause comes back when it is cleared
	gone          bool
	posted        []func()
	log           []string
}

func (r *registers) read(reg uint32) uint32 {
	for _, f := range r.posted {
		f()
	}
	r.posted = nil
	if r.event {
		r.cause |= 1
	}
	r.log = append(r.log, fmt.Sprintf("read %#x", reg))
	switch {
	case r.gone:
		return ^uint32(0)
	case reg == 0x28:
		return r.cause
	case reg == 0x2c:
		return r.queues
	}
	return 0xbad
}

func (r *registers) write(reg, v uint32) {
	r.log = append(r.log, fmt.Sprintf("write %#x %#x", reg, v))
	r.posted = append(r.posted, func() {
		if reg == 0x28 {
			r.cause &^= v
		} else {
			r.queues &^= v
		}
	})
}

func newLine(r *registers, n int) *line {
	l := &line{read: r.read, write: r.write, vectors: make([]chan struct{}, n)}
	for i := range l.vectors {
		l.vectors[i] = make(chan struct{}, 1)
	}
	return l
}

// signalled takes the signals.
func signalled(l *line) (vs []int) {
	for v, c := range l.vectors {
		select {
		case <-c:
			vs = append(vs, v)
		default:
		}
	}
	return vs
}

func TestCollect(t *testing.T) {
	for _, c := range []struct {
		name   string
		r      registers
		want   []int
		stands bool
		log    []string
	}{
		{"nothing", registers{}, nil, false, []string{"read 0x28", "read 0x2c"}},
		{"an event", registers{cause: 1}, []int{0}, false, []string{"read 0x28", "read 0x2c", "write 0x28 0x1", "read 0x28"}},
		{"an event that stands", registers{cause: 1, event: true}, []int{0}, true, nil},
		{"first and last queue", registers{queues: 0x80000001}, []int{1, 32}, false,
			[]string{"read 0x28", "read 0x2c", "write 0x2c 0x80000001", "read 0x28"}},
		{"all queues", registers{queues: 0xffffffff}, []int{1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21,
			22, 23, 24, 25, 26, 27, 28, 29, 30, 31, 32}, false, nil},
		{"both", registers{cause: 1, queues: 4}, []int{0, 3}, false, nil},
	} {
		l := newLine(&c.r, 33)
		if got := l.collect(); got != c.stands {
			t.Errorf("%s: stands: %v", c.name, got)
		}
		if got := signalled(l); !slices.Equal(got, c.want) {
			t.Errorf("%s: vectors %v, want %v", c.name, got, c.want)
		}
		if len(c.r.posted) > 0 {
			t.Errorf("%s: signalled while a clear was on its way", c.name)
		}
		if c.log != nil && !slices.Equal(c.r.log, c.log) {
			t.Errorf("%s: %q, want %q", c.name, c.r.log, c.log)
		}
		if c.r.queues != 0 || c.r.cause != 0 && !c.r.event {
			t.Errorf("%s: %#x and %#x are left", c.name, c.r.cause, c.r.queues)
		}
	}
}

// A queue that the driver did not ask a vector for is cleared and forgotten, and
// two signals that nobody took are one.
func TestCollectFew(t *testing.T) {
	r := &registers{queues: 0xff}
	l := newLine(r, 2)
	l.collect()
	r.queues = 1
	l.collect()
	if got := signalled(l); !slices.Equal(got, []int{1}) {
		t.Errorf("vectors %v", got)
	}
	if got := signalled(l); got != nil {
		t.Errorf("then %v", got)
	}
}

// While the function answers with ones all who wait look, once; nothing is
// written.
func TestCollectGone(t *testing.T) {
	r := &registers{gone: true}
	l := newLine(r, 3)
	for i, want := range [][]int{{0, 1, 2}, nil, nil} {
		if !l.collect() {
			t.Errorf("%d: no pause", i)
		}
		if got := signalled(l); !slices.Equal(got, want) {
			t.Errorf("%d: vectors %v, want %v", i, got, want)
		}
	}
	l.clear()
	if len(r.posted) > 0 {
		t.Errorf("wrote: %q", r.log)
	}
	r.gone, r.queues = false, 2
	if l.collect() || !slices.Equal(signalled(l), []int{2}) {
		t.Error("it came back and was not noticed")
	}
	r.gone = true
	if l.collect(); !slices.Equal(signalled(l), []int{0, 1, 2}) {
		t.Error("it went again and nobody looked")
	}
}

// When the kernel has no more interrupts nobody waits for one.
func TestServeEnds(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	l := newLine(&registers{}, 1)
	l.file, l.arm = r, func() error { return nil }
	l.done, l.ended = make(chan struct{}), make(chan struct{})
	go l.serve()
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	b := &Bus{line: l}
	if err := b.Wait(0); !errors.Is(err, net.ErrClosed) {
		t.Errorf("wait: %v", err)
	}
	l.end()
}
