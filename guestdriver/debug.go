// SPDX-License-Identifier: Apache-2.0

package guestdriver

import (
	"errors"
	"fmt"
	"hash/crc32"
	"runtime"
	"strings"
)

// ErrReleased says that a [Segment] was released before.
var ErrReleased = errors.New("guestdriver: segment was released")

// OwnershipError is a mistake with memory that belongs to the adapter, or to
// nobody, found by the debug mode (Options.Debug).
type OwnershipError struct {
	// Mistake says what was done, Offset where: of the first byte that is not as
	// it was, or -1.
	Mistake string
	Offset  int
	// Since is the call by which the memory ceased to be the caller's: its stack.
	Since string

	err error // ErrBusy or ErrReleased, of calls that were refused
}

func (e *OwnershipError) Error() string {
	at := ""
	if e.Offset >= 0 {
		at = fmt.Sprintf(" (byte %d)", e.Offset)
	}
	return fmt.Sprintf("guestdriver: %s%s; not the caller's since:\n%s", e.Mistake, at, e.Since)
}

// Unwrap returns what the call would have returned without the debug mode.
func (e *OwnershipError) Unwrap() error { return e.err }

// poison fills receive buffers that the adapter has, and released memory, in
// the debug mode.
const poison = 0xdb

func fillPoison(p []byte) {
	for i := range p {
		p[i] = poison
	}
}

// unpoisoned returns the place of the first byte that was written since
// fillPoison, or -1.
func unpoisoned(p []byte) int {
	for i, c := range p {
		if c != poison {
			return i
		}
	}
	return -1
}

// trace is the stack of a call, for the debug mode.
type trace struct {
	pcs [16]uintptr
	n   int
}

// newTrace is the stack of whoever called into the driver.
func newTrace() *trace {
	t := new(trace)
	t.n = runtime.Callers(3, t.pcs[:])
	return t
}

func (t *trace) String() string {
	if t == nil {
		return "(unknown)\n"
	}
	var s strings.Builder
	frames := runtime.CallersFrames(t.pcs[:t.n])
	for {
		f, more := frames.Next()
		fmt.Fprintf(&s, "\t%s\n\t\t%s:%d\n", f.Function, f.File, f.Line)
		if !more {
			return s.String()
		}
	}
}

// debugging reports whether the debug mode is on.
func (a *Adapter) debugging() bool { return a.opts.Debug != nil }

// mistake counts and tells of a mistake.
func (a *Adapter) mistake(e *OwnershipError) error {
	a.host.mistakes.Add(1)
	a.opts.Debug(e)
	return e
}

// refuse is the error of a call on a buffer that is posted.
func (b *Buffer) refuse(call string) error {
	a := b.m.a
	if !a.debugging() {
		return ErrBusy
	}
	return a.mistake(&OwnershipError{Mistake: call + " of a posted buffer", Offset: -1, Since: b.since.Load().String(), err: ErrBusy})
}

// guard notes what a buffer that is posted now looks like.
func (b *Buffer) guard() {
	if b.redirect != nil || !b.m.a.debugging() {
		return
	}
	sum := crc32.ChecksumIEEE(b.buf.data)
	if b.op == OpSend && b.send.Unchanged && b.summed == len(b.buf.data) && sum != b.sum {
		b.m.a.mistake(&OwnershipError{Mistake: "send of a buffer as unchanged that was changed", Offset: -1, Since: b.since.Load().String()})
	}
	b.since.Store(newTrace())
	b.sum, b.summed = sum, 0
	if b.op == OpSend {
		b.summed = len(b.buf.data)
	}
}

// guardFree poisons the part of a receive buffer that the adapter is to fill.
func (b *Buffer) guardFree() {
	if b.redirect == nil && b.m.a.debugging() {
		fillPoison(b.buf.data[b.buf.filled:])
		b.poisoned = true
	}
}

// inspect looks, at the end of a post, whether the application has kept its
// hands off, and returns err, or what it found.
func (b *Buffer) inspect(err error) error {
	if b.redirect != nil || !b.m.a.debugging() {
		return err
	}
	a := b.m.a
	e := &OwnershipError{Mistake: "write to a posted send buffer", Offset: -1}
	switch {
	case b.op == OpSend && crc32.ChecksumIEEE(b.buf.data) == b.sum:
		return err
	case b.op != OpSend:
		at := -1
		if b.poisoned {
			at = unpoisoned(b.buf.data[b.buf.filled:])
		}
		if at < 0 {
			return err
		}
		e.Mistake, e.Offset = "write to a posted receive buffer", int(b.buf.filled)+at
	}
	if b.cast != nil && !b.cast.mistaken.CompareAndSwap(false, true) {
		return err // the same of another connection
	}
	e.Since = b.since.Load().String()
	a.mistake(e)
	if err == nil {
		return e
	}
	return err
}
